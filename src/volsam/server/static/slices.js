// One plane of the scan on a canvas: slice, masks, doubt, prompts, crosshair and what is being drawn.

import * as marks from "./marks.js";
import { window2d, walk } from "./masks.js";
import { toPixel, toVoxel } from "./volume.js";

// Doubt by band of probability, 0 to 9: none where the model is sure, strongest where it is at odds with itself.
const DOUBT = [0, 0.15, 0.3, 0.5, 0.8, 0.8, 0.5, 0.3, 0.12, 0];

/** A plane. `view` is what all planes share: volume, session, cursor, window and switches; see viewer.js. */
export class Plane {
  constructor(canvas, name, view) {
    this.canvas = canvas;
    this.name = name;
    this.view = view;
    this.context = canvas.getContext("2d", { alpha: false });
    this.zoom = 1;
    this.center = null;
    this.draft = null;
    this.scan = layer();
    this.fill = layer();
    this.shown = "";
    new ResizeObserver(() => this.#resize()).observe(canvas);
  }

  get plane() {
    return this.view.volume?.planes[this.name];
  }

  get index() {
    return this.view.cursor[this.plane.axis];
  }

  /** The whole slice in the middle of the canvas. */
  fit() {
    this.zoom = 1;
    this.center = null;
    this.paint();
  }

  /** Pixels of the canvas (of the device) for one mm. */
  get scale() {
    const { plane, canvas } = this;
    const wide = canvas.width / (plane.width * plane.u.spacing);
    const high = canvas.height / (plane.height * plane.v.spacing);
    return Math.min(wide, high) * 0.96 * this.zoom;
  }

  /** Where a pixel of the slice lies on the canvas; centres of pixels at whole numbers. */
  place([u, v]) {
    const [cu, cv] = this.#middle();
    return [
      this.canvas.width / 2 + (u - cu) * this.plane.u.spacing * this.scale,
      this.canvas.height / 2 + (v - cv) * this.plane.v.spacing * this.scale,
    ];
  }

  /** The pixel of the slice, with fractions, under a place of the page. */
  pixelAt({ clientX, clientY }) {
    const bounds = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / Math.max(bounds.width, 1);
    const [cu, cv] = this.#middle();
    return [
      cu + ((clientX - bounds.left) * ratio - this.canvas.width / 2) / (this.plane.u.spacing * this.scale),
      cv + ((clientY - bounds.top) * ratio - this.canvas.height / 2) / (this.plane.v.spacing * this.scale),
    ];
  }

  /** The place on the page where a voxel is shown. */
  clientOf(voxel) {
    const [x, y] = this.place(toPixel(this.plane, voxel));
    const bounds = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / Math.max(bounds.width, 1);
    return [bounds.left + x / ratio, bounds.top + y / ratio];
  }

  /** Voxel indices, with fractions, of a pixel in the slice that is shown. */
  voxelOf([u, v]) {
    return toVoxel(this.plane, this.index, u, v);
  }

  inside([u, v]) {
    return u >= -0.5 && v >= -0.5 && u <= this.plane.width - 0.5 && v <= this.plane.height - 0.5;
  }

  /** Enlarge around a pixel of the slice, which stays where it is. */
  zoomBy(factor, pixel) {
    const [cu, cv] = this.#middle();
    const zoom = Math.min(Math.max(this.zoom * factor, 0.5), 40);
    const kept = this.zoom / zoom;
    this.center = [pixel[0] + (cu - pixel[0]) * kept, pixel[1] + (cv - pixel[1]) * kept];
    this.zoom = zoom;
    this.paint();
  }

  /** Shift the picture by pixels of the page. */
  panBy(dx, dy) {
    const ratio = this.canvas.width / Math.max(this.canvas.getBoundingClientRect().width, 1);
    const [cu, cv] = this.#middle();
    this.center = [
      cu - (dx * ratio) / (this.plane.u.spacing * this.scale),
      cv - (dy * ratio) / (this.plane.v.spacing * this.scale),
    ];
    this.paint();
  }

  /** Paint now. */
  paint() {
    const { context, canvas, view } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (!view.volume?.data || canvas.width < 2) return;
    this.#paintScan();
    this.#onPixels();
    context.imageSmoothingEnabled = view.smooth;
    context.imageSmoothingQuality = "medium";
    context.drawImage(this.scan.canvas, -0.5, -0.5);
    if (view.showMasks) this.#paintMasks();
    if (view.session.heat) this.#paintDoubt(view.session.heat.bands);
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (view.measured && view.showMasks) marks.diameters(this, view.measured);
    if (view.showCrosshair) marks.crosshair(this);
    marks.prompts(this);
    if (view.hint) marks.hint(this, view.hint);
    if (this.draft) marks.draft(this, this.draft);
    marks.letters(this);
  }

  #middle() {
    return this.center ?? [(this.plane.width - 1) / 2, (this.plane.height - 1) / 2];
  }

  #onPixels() {
    const { context, plane, scale } = this;
    const [x, y] = this.place([0, 0]);
    context.setTransform(plane.u.spacing * scale, 0, 0, plane.v.spacing * scale, x, y);
  }

  #resize() {
    const ratio = devicePixelRatio || 1;
    const { width, height } = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.paint();
  }

  #paintScan() {
    const { volume, window, filled } = this.view;
    const key = [volume.shape, this.index, window, filled].join("/");
    if (key === this.shown) return;
    const image = this.scan.sized(this.plane.width, this.plane.height);
    volume.paint(this.plane, this.index, window, this.scan.pixels);
    this.scan.context.putImageData(image, 0, 0);
    this.shown = key;
  }

  #paintMasks() {
    const { context, plane, index, view, scale } = this;
    const { masks, objects, state } = view.session;
    const image = this.fill.sized(plane.width, plane.height);
    if (masks.paint(plane, index, objects, this.fill.pixels)) {
      this.fill.context.putImageData(image, 0, 0);
      context.imageSmoothingEnabled = false;
      context.drawImage(this.fill.canvas, -0.5, -0.5);
    }
    const ratio = devicePixelRatio || 1;
    for (const object of objects) {
      const path = object.visible && masks.outline(plane, index, object.id);
      if (!path) continue;
      context.save();
      context.translate(-0.5, -0.5);
      context.strokeStyle = object.colour;
      context.lineCap = "square";
      const width = (object.id === state.current ? 2 : 1.2) * ratio;
      context.lineWidth = width / (scale * Math.max(plane.u.spacing, plane.v.spacing));
      context.stroke(path);
      context.restore();
    }
  }

  #paintDoubt(box) {
    const part = window2d(this.plane, this.index, box);
    if (!part) return;
    const image = this.fill.sized(this.plane.width, this.plane.height);
    this.fill.pixels.fill(0);
    const colours = DOUBT.map((alpha) => ((Math.round(alpha * 255) << 24) | 0x1fb4ff) >>> 0); // amber, as ABGR
    walk(this.plane, this.index, box, part, (u, v, band) => {
      this.fill.pixels[u + this.plane.width * v] = DOUBT[band] ? colours[band] : 0;
    });
    this.fill.context.putImageData(image, 0, 0);
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(this.fill.canvas, -0.5, -0.5);
  }
}

/** A picture of one slice, at one pixel a voxel, that is scaled when it is drawn. */
function layer() {
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const made = { canvas, context, pixels: null, image: null };
  made.sized = (width, height) => {
    if (made.image?.width !== width || made.image?.height !== height) {
      canvas.width = width;
      canvas.height = height;
      made.image = new ImageData(width, height);
      made.pixels = new Uint32Array(made.image.data.buffer);
    }
    return made.image;
  };
  return made;
}
