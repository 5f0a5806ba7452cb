// The scan in the browser: voxels as the server's NIfTI has them, and the three planes through them.

const HEADER_BYTES = { 348: 352, 540: 544 };
const TYPES = {
  2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 64: Float64Array, 256: Int8Array, 512: Uint16Array,
  768: Uint32Array, 1024: BigInt64Array, 1280: BigUint64Array,
};
// Types whose every value has a place in a table of grey levels, and how far their values lie below 0.
const TABLES = new Map([[Uint8Array, 0], [Int8Array, 128], [Int16Array, 32768], [Uint16Array, 0]]);

/** Voxels on a lattice; `state` is the server's description of the session. Voxels come in while it is filled. */
export class Volume {
  constructor(state) {
    this.shape = state.shape;
    this.affine = state.affine;
    this.spacing = state.spacing;
    this.planes = planesOf(state);
    this.data = null;
    this.raw = null;
    this.slope = 1;
    this.intercept = 0;
    this.table = { levels: new Uint32Array(0), low: NaN, high: NaN };
  }

  /** Read a NIfTI as it arrives; `onProgress` gets the part that is there, 0 to 1. */
  async fill(response, packed, onProgress) {
    const plain = packed ? response.body.pipeThrough(new DecompressionStream("gzip")) : response.body;
    const reader = plain.getReader();
    let head = new Uint8Array(0);
    let bytes = null;
    let at = 0;
    let ready = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      let chunk = value;
      if (!bytes) {
        head = joined(head, chunk);
        const start = this.#prepare(head);
        if (start === null) continue;
        bytes = new Uint8Array(this.raw.buffer);
        chunk = head.subarray(start);
      }
      bytes.set(chunk.subarray(0, bytes.length - at), at);
      at = Math.min(at + chunk.length, bytes.length);
      const whole = Math.floor(at / this.raw.BYTES_PER_ELEMENT); // a chunk may end within a voxel
      this.#settle(ready, whole);
      ready = whole;
      onProgress(at / bytes.length);
    }
    if (!bytes || at < bytes.length) throw new Error("The volume arrived incomplete; reload the page to fetch it again.");
  }

  /** Where voxels begin in the file, once the header is there; makes room for them. */
  #prepare(head) {
    if (head.length < 4) return null;
    const view = new DataView(head.buffer, head.byteOffset, head.length);
    const little = view.getInt32(0, true) in HEADER_BYTES;
    const kind = view.getInt32(0, little);
    if (!(kind in HEADER_BYTES)) throw new Error("The server sent something that is not a NIfTI; reload the page.");
    if (head.length < HEADER_BYTES[kind]) return null;
    const second = kind === 540;
    const Type = TYPES[view.getInt16(second ? 12 : 70, little)];
    if (!Type) throw new Error("The volume has a type of voxel that this page cannot show.");
    const start = second ? Number(view.getBigInt64(168, little)) : view.getFloat32(108, little);
    if (head.length < start) return null;
    const slope = second ? view.getFloat64(176, little) : view.getFloat32(112, little);
    const intercept = second ? view.getFloat64(184, little) : view.getFloat32(116, little);
    if (Number.isFinite(slope) && slope !== 0) [this.slope, this.intercept] = [slope, intercept];
    this.swapped = !little;
    this.raw = new Type(this.shape[0] * this.shape[1] * this.shape[2]);
    // Integers of 64 bits become numbers in the room that they came in; beyond 2 ** 53 they are rounded.
    const wide = this.raw instanceof BigInt64Array || this.raw instanceof BigUint64Array;
    this.data = wide ? new Float64Array(this.raw.buffer) : this.raw;
    return start;
  }

  /** Voxels that have arrived, `from` to `to`, as this machine reads them. */
  #settle(from, to) {
    const { raw, data } = this;
    const size = raw.BYTES_PER_ELEMENT;
    if (this.swapped && size > 1) turn(new Uint8Array(raw.buffer, from * size, (to - from) * size), size);
    if (data !== raw) for (let n = from; n < to; n++) data[n] = Number(raw[n]);
  }

  /** The value of a voxel as the file means it. */
  value([i, j, k]) {
    const [ni, nj] = this.shape;
    return this.data ? this.data[i + ni * (j + nj * k)] * this.slope + this.intercept : 0;
  }

  /** Voxel indices, with fractions, of millimetres RAS+. */
  toVoxels([x, y, z]) {
    const [[a, b, c, p], [d, e, f, q], [g, h, i, r]] = this.affine;
    const determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
    const [u, v, w] = [x - p, y - q, z - r];
    return [
      ((e * i - f * h) * u + (c * h - b * i) * v + (b * f - c * e) * w) / determinant,
      ((f * g - d * i) * u + (a * i - c * g) * v + (c * d - a * f) * w) / determinant,
      ((d * h - e * g) * u + (b * g - a * h) * v + (a * e - b * d) * w) / determinant,
    ];
  }

  /** Paint one slice in grey: `pixels` is a Uint32Array of width × height, `window` the values shown black and white. */
  paint(plane, index, [low, high], pixels) {
    if (!this.data) return pixels.fill(0xff000000);
    const { start, stepU, stepV } = this.walk(plane, index);
    const { data } = this;
    const bias = TABLES.get(data.constructor);
    let n = 0;
    if (bias !== undefined) {
      const levels = this.#levels(low, high, bias);
      for (let v = 0, row = start; v < plane.height; v++, row += stepV) {
        for (let u = 0, at = row; u < plane.width; u++, at += stepU) pixels[n++] = levels[data[at] + bias];
      }
      return pixels;
    }
    const scale = (255 / Math.max(high - low, 1e-9)) * this.slope;
    const offset = (255 / Math.max(high - low, 1e-9)) * (this.intercept - low);
    for (let v = 0, row = start; v < plane.height; v++, row += stepV) {
      for (let u = 0, at = row; u < plane.width; u++, at += stepU) pixels[n++] = grey(data[at] * scale + offset);
    }
    return pixels;
  }

  /** How to walk through the voxels of a slice in the order of its pixels. */
  walk(plane, index) {
    const strides = [1, this.shape[0], this.shape[0] * this.shape[1]];
    const { u, v } = plane;
    return {
      start: index * strides[plane.axis] + first(u, strides) + first(v, strides),
      stepU: (u.flip ? -1 : 1) * strides[u.axis],
      stepV: (v.flip ? -1 : 1) * strides[v.axis],
    };
  }

  #levels(low, high, bias) {
    const { table } = this;
    if (table.low === low && table.high === high && table.levels.length) return table.levels;
    const count = bias === 128 || this.data instanceof Uint8Array ? 256 : 65536;
    if (table.levels.length !== count) table.levels = new Uint32Array(count);
    const scale = 255 / Math.max(high - low, 1e-9);
    for (let n = 0; n < count; n++) {
      table.levels[n] = grey(((n - bias) * this.slope + this.intercept - low) * scale);
    }
    table.low = low;
    table.high = high;
    return table.levels;
  }
}

/** The three planes as they are looked at in a clinic: patient's right on the left, front and head up. */
function planesOf({ shape, affine, spacing }) {
  const axes = anatomical(affine);
  const seen = {
    axial: ["x", "y", "z", { left: "R", right: "L", top: "A", bottom: "P" }],
    coronal: ["x", "z", "y", { left: "R", right: "L", top: "S", bottom: "I" }],
    sagittal: ["y", "z", "x", { left: "A", right: "P", top: "S", bottom: "I" }],
  };
  const planes = {};
  for (const [name, [across, down, through, letters]] of Object.entries(seen)) {
    const plane = { name, letters, axis: axes[through].axis };
    // To the right of the picture lie the patient's left and back, below lie back and feet: all of them minus in RAS+.
    for (const [side, letter] of [["u", across], ["v", down]]) {
      const { axis, sign } = axes[letter];
      plane[side] = { axis, size: shape[axis], flip: sign > 0, spacing: spacing[axis] };
    }
    plane.width = plane.u.size;
    plane.height = plane.v.size;
    plane.depth = shape[plane.axis];
    // Scrolling up goes to the head, the front and the patient's left.
    plane.up = axes[through].sign * (through === "x" ? -1 : 1);
    planes[name] = plane;
  }
  return planes;
}

/** Which voxel axis runs nearest to x, y and z of RAS+, and whether it runs with it or against it. */
function anatomical(affine) {
  const lengths = [0, 1, 2].map((axis) => Math.hypot(affine[0][axis], affine[1][axis], affine[2][axis]));
  const along = (world, axis) => affine[world][axis] / lengths[axis];
  const orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
  const fit = (order) => order.reduce((sum, axis, world) => sum + Math.abs(along(world, axis)), 0);
  const best = orders.reduce((a, b) => (fit(b) > fit(a) + 1e-9 ? b : a));
  const found = {};
  best.forEach((axis, world) => (found["xyz"[world]] = { axis, sign: along(world, axis) < 0 ? -1 : 1 }));
  return found;
}

/** Pixel of a slice, voxel centres at whole numbers, to voxel indices. */
export function toVoxel(plane, index, u, v) {
  const voxel = [0, 0, 0];
  voxel[plane.axis] = index;
  voxel[plane.u.axis] = plane.u.flip ? plane.u.size - 1 - u : u;
  voxel[plane.v.axis] = plane.v.flip ? plane.v.size - 1 - v : v;
  return voxel;
}

/** Voxel indices to the pixel of a plane. */
export function toPixel(plane, voxel) {
  const place = ({ axis, flip, size }) => (flip ? size - 1 - voxel[axis] : voxel[axis]);
  return [place(plane.u), place(plane.v)];
}

function first({ axis, flip, size }, strides) {
  return flip ? (size - 1) * strides[axis] : 0;
}

function grey(level) {
  const byte = level <= 0 ? 0 : level >= 255 ? 255 : level | 0;
  return 0xff000000 | (byte << 16) | (byte << 8) | byte; // ABGR, as little-endian pixels lie
}

/** The bytes of every number the other way round. */
function turn(bytes, size) {
  for (let at = 0; at < bytes.length; at += size) {
    for (let a = at, b = at + size - 1; a < b; a++, b--) {
      const byte = bytes[a];
      bytes[a] = bytes[b];
      bytes[b] = byte;
    }
  }
}

function joined(a, b) {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
