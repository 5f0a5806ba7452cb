// The masks of all objects, each kept only in the box around it, and what a slice through them looks like.

import { toVoxel } from "./volume.js";

const FILL = 0.32;

/** Masks by object id. Later objects lie over earlier ones where they share voxels. */
export class Masks {
  constructor() {
    this.boxes = new Map();
    this.outlines = new Map();
  }

  clear() {
    this.boxes.clear();
    this.outlines.clear();
  }

  remove(id) {
    this.boxes.delete(id);
    this.#forget(id);
  }

  /** Put decoded voxels of one box in the place of what was there. */
  apply(id, part) {
    let box = this.boxes.get(id);
    if (!box) box = part;
    else {
      if (!holds(box, part)) box = grown(box, part);
      copy(part, box);
    }
    this.boxes.set(id, box);
    this.#forget(id);
  }

  /** All voxels of an object at once, or null for none. */
  replace(id, part) {
    if (part) this.boxes.set(id, part);
    else this.boxes.delete(id);
    this.#forget(id);
  }

  /** Voxels of an object. */
  count(id) {
    const box = this.boxes.get(id);
    let sum = 0;
    if (box) for (let n = 0; n < box.values.length; n++) sum += box.values[n];
    return sum;
  }

  /** Colour the slice: `pixels` (Uint32Array, width × height) gets the colours of the visible objects, else 0. */
  paint(plane, index, objects, pixels) {
    pixels.fill(0);
    let painted = false;
    for (const object of objects) {
      const box = this.boxes.get(object.id);
      const part = object.visible && box && window2d(plane, index, box);
      if (!part) continue;
      painted = true;
      const colour = abgr(object.colour, FILL);
      walk(plane, index, box, part, (u, v, value) => {
        if (value) pixels[u + plane.width * v] = colour;
      });
    }
    return painted;
  }

  /** The outline of an object in a slice, a Path2D in pixels whose corners are whole numbers; null where it is absent. */
  outline(plane, index, id) {
    const key = `${id}/${plane.name}/${index}`;
    if (this.outlines.has(key)) return this.outlines.get(key);
    const box = this.boxes.get(id);
    const part = box && window2d(plane, index, box);
    const path = part ? trace(plane, index, box, part) : null;
    if (this.outlines.size > 400) this.outlines.clear();
    this.outlines.set(key, path);
    return path;
  }

  #forget(id) {
    for (const key of this.outlines.keys()) if (key.startsWith(`${id}/`)) this.outlines.delete(key);
  }
}

/** The pixels of a slice that a box covers: `[u0, v0, u1, v1]`, ends excluded, or null if the slice misses it. */
export function window2d(plane, index, box) {
  if (index < box.low[plane.axis] || index >= box.high[plane.axis]) return null;
  const range = ({ axis, flip, size }) =>
    flip ? [size - box.high[axis], size - box.low[axis]] : [box.low[axis], box.high[axis]];
  const [u0, u1] = range(plane.u);
  const [v0, v1] = range(plane.v);
  return u1 > u0 && v1 > v0 ? [u0, v0, u1, v1] : null;
}

/** Visit the pixels of a slice that a box covers, with the values of the box there. */
export function walk(plane, index, box, [u0, v0, u1, v1], visit) {
  const strides = [1, box.size[0], box.size[0] * box.size[1]];
  const stepU = (plane.u.flip ? -1 : 1) * strides[plane.u.axis];
  const stepV = (plane.v.flip ? -1 : 1) * strides[plane.v.axis];
  let row = offset(box, toVoxel(plane, index, u0, v0));
  for (let v = v0; v < v1; v++, row += stepV) {
    for (let u = u0, at = row; u < u1; u++, at += stepU) visit(u, v, box.values[at]);
  }
}

function trace(plane, index, box, part) {
  const [u0, v0, u1, v1] = part;
  const width = u1 - u0 + 2;
  const inside = new Uint8Array(width * (v1 - v0 + 2)); // a rim of zeros around
  walk(plane, index, box, part, (u, v, value) => {
    inside[u - u0 + 1 + width * (v - v0 + 1)] = value;
  });
  const path = new Path2D();
  let any = false;
  // Edges between unlike pixels, neighbouring edges joined to one line.
  const lines = (rows, length, at, draw) => {
    for (let row = 1; row < rows; row++) {
      for (let n = 0, from = -1; n <= length; n++) {
        const edge = n < length && inside[at(n, row)] !== inside[at(n, row - 1)];
        if (edge && from < 0) from = n;
        if (!edge && from >= 0) {
          draw(row, from, n);
          from = -1;
          any = true;
        }
      }
    }
  };
  lines(v1 - v0 + 2, width, (n, row) => n + width * row, (row, from, to) => {
    path.moveTo(u0 - 1 + from, v0 - 1 + row);
    path.lineTo(u0 - 1 + to, v0 - 1 + row);
  });
  lines(width, v1 - v0 + 2, (n, row) => row + width * n, (row, from, to) => {
    path.moveTo(u0 - 1 + row, v0 - 1 + from);
    path.lineTo(u0 - 1 + row, v0 - 1 + to);
  });
  return any ? path : null;
}

function offset(box, [i, j, k]) {
  return i - box.low[0] + box.size[0] * (j - box.low[1] + box.size[1] * (k - box.low[2]));
}

function holds(box, part) {
  return box.low.every((low, axis) => low <= part.low[axis]) && box.high.every((high, axis) => high >= part.high[axis]);
}

function grown(box, part) {
  const low = box.low.map((value, axis) => Math.min(value, part.low[axis]));
  const high = box.high.map((value, axis) => Math.max(value, part.high[axis]));
  const size = high.map((value, axis) => value - low[axis]);
  const larger = { low, high, size, values: new Uint8Array(size[0] * size[1] * size[2]) };
  copy(box, larger);
  return larger;
}

/** Write a smaller box into a larger one that holds it, row by row. */
function copy(part, box) {
  const [ni, nj, nk] = part.size;
  for (let k = 0, from = 0; k < nk; k++) {
    for (let j = 0; j < nj; j++, from += ni) {
      const to = offset(box, [part.low[0], part.low[1] + j, part.low[2] + k]);
      box.values.set(part.values.subarray(from, from + ni), to);
    }
  }
}

function abgr(colour, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return ((Math.round(alpha * 255) << 24) | (b << 16) | (g << 8) | r) >>> 0;
}
