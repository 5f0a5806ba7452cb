// What is looked at, shared by all planes: cursor, window, switches; and when it is painted.

import { round } from "./panel.js";
import { Plane } from "./slices.js";

const CT = [["Soft tissue", [-160, 240]], ["Lung", [-1350, 150]], ["Bone", [-450, 1350]], ["Brain", [0, 80]]];

const DESCRIBE_MS = 150;

/** The view of one session's volume. Event: "window" when other values are shown black and white. */
export class View extends EventTarget {
  constructor(session) {
    super();
    this.session = session;
    this.volume = null;
    this.cursor = [0, 0, 0];
    this.window = [0, 1];
    this.presets = [];
    this.filled = 0;
    this.smooth = true;
    this.showMasks = true;
    this.showCrosshair = true;
    this.measured = null;
    this.hint = null;
    this.chosen = null;
    this.active = "axial";
    this.layout = "grid";
    this.textScale = 1;
    this.planes = ["axial", "coronal", "sagittal"].map((name) => new Plane(document.getElementById(name), name, this));
    for (const plane of this.planes) plane.canvas.addEventListener("focus", () => this.activate(plane.name));
    session.addEventListener("masks", () => this.paint());
    session.addEventListener("prompts", () => this.repaint());
    session.addEventListener("objects", () => this.repaint());
  }

  /** Look at another volume, from its middle. */
  show(volume, { intensity }) {
    this.volume = volume;
    this.cursor = volume.shape.map((size) => Math.floor(size / 2));
    this.hint = this.measured = this.chosen = null;
    const { low, high, window } = intensity;
    const ct = low < -400 && high > 200;
    this.presets = [...(ct ? CT : []), ["Auto", window], ["Full", [low, high]]];
    for (const plane of this.planes) [plane.zoom, plane.center] = [1, null];
    this.setWindow(this.presets[0][1]);
    this.moveTo(this.cursor);
  }

  get plane() {
    return this.planes.find(({ name }) => name === this.active);
  }

  activate(name) {
    this.active = name;
    this.repaint();
  }

  /** Move the crosshair to a voxel, kept in the volume. */
  moveTo(voxel) {
    this.cursor = voxel.map((at, axis) => Math.min(Math.max(Math.round(at), 0), this.volume.shape[axis] - 1));
    this.repaint();
    clearTimeout(this.describing);
    this.describing = setTimeout(() => this.#describe(), DESCRIBE_MS);
  }

  /** Move the crosshair in a plane by pixels to the right and down. */
  step(name, right, down) {
    const plane = this.volume.planes[name];
    const voxel = [...this.cursor];
    voxel[plane.u.axis] += plane.u.flip ? -right : right;
    voxel[plane.v.axis] += plane.v.flip ? -down : down;
    this.moveTo(voxel);
  }

  /** Go through the slices of a plane; up is towards head, front or left. */
  scroll(name, steps) {
    const plane = this.volume.planes[name];
    const voxel = [...this.cursor];
    voxel[plane.axis] += steps * plane.up;
    this.moveTo(voxel);
  }

  setWindow(window) {
    this.window = window;
    this.repaint();
    this.dispatchEvent(new Event("window"));
  }

  nextWindow() {
    const at = this.presets.findIndex(([, window]) => String(window) === String(this.window));
    this.setWindow(this.presets[(at + 1) % this.presets.length][1]);
  }

  /** Enlarge one of the four views; the same again shows all. */
  enlarge(name) {
    this.layout = this.layout === name ? "grid" : name;
    document.getElementById("views").dataset.layout = this.layout;
  }

  /** Voxels of the scan have come in. */
  refill() {
    this.filled++;
    this.paint();
  }

  /** Paint with the next frame. */
  repaint() {
    this.asked ??= requestAnimationFrame(() => this.paint());
  }

  /** Paint now. */
  paint() {
    if (this.asked) cancelAnimationFrame(this.asked);
    this.asked = undefined;
    for (const plane of this.planes) plane.paint();
  }

  /** Say in words what the planes show. */
  #describe() {
    const value = round(this.volume.value(this.cursor));
    for (const { canvas, name, index, plane } of this.planes) {
      const where = `${name} slice ${index + 1} of ${plane.depth}, crosshair at voxel ${this.cursor.join(", ")}`;
      canvas.setAttribute("aria-label", `${where}, value ${value}; arrow keys move it, Enter clicks`);
    }
  }
}
