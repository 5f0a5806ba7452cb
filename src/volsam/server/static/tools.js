// Pointing with a mouse, a pen or a finger, and the same tools from the keyboard: what is drawn becomes a prompt.

import { toPixel } from "./volume.js";

const CLICK_PIXELS = 4;
const STEP = 0.7; // shortest distance in voxels between two points of a stroke

export const TOOLS = {
  point: { key: "p", name: "Point", hint: "Click in the object. Alt or Shift and click: not the object." },
  box: { key: "b", name: "Box", hint: "Drag a box around the object." },
  scribble: { key: "s", name: "Scribble", hint: "Draw over the object. With Alt or Shift: over what is not." },
  lasso: { key: "l", name: "Lasso", hint: "Draw around the object in this slice. With Alt or Shift: around what is not." },
  look: { key: "x", name: "Look", hint: "Click or drag to move the crosshair; nothing is sent." },
};

/**
 * Turns gestures on the planes into prompts. `view` is the page's shared view, see viewer.js.
 *
 * Left: the tool. Right: window, sideways its width, up and down its level. Middle, or left with Space: move the picture.
 * Wheel: slices; with Ctrl: zoom.
 */
export class Tools extends EventTarget {
  constructor(view) {
    super();
    this.view = view;
    this.tool = "point";
    this.positive = true;
    this.deep = false;
    this.gesture = null;
    this.anchored = null; // a shape begun with Enter
    this.box = null; // a flat box that waits for its depth
    this.space = false;
  }

  choose(tool) {
    this.cancel();
    this.tool = tool;
    this.#tell();
  }

  toggleSign() {
    this.positive = !this.positive;
    this.#tell();
  }

  toggleDeep() {
    this.deep = !this.deep;
    this.#tell();
  }

  /** What to do next, one sentence. */
  get hint() {
    if (this.box) return "Now drag across the object in another plane for the depth; Enter takes this slice alone.";
    if (this.anchored?.kind === "box") return "Go with the arrow keys to the other corner, then press Enter. Esc gives up.";
    if (this.anchored) return "Draw with the arrow keys, then press Enter. Esc gives up.";
    if (this.tool === "box" && this.deep) return "Drag a box around the object, then give its depth in another plane.";
    return TOOLS[this.tool].hint;
  }

  cancel() {
    this.gesture = this.anchored = this.box = null;
    for (const plane of this.view.planes) plane.draft = null;
    this.view.repaint();
    this.#tell();
  }

  listen(plane) {
    const { canvas } = plane;
    canvas.addEventListener("pointerdown", (event) => this.#down(plane, event));
    canvas.addEventListener("pointermove", (event) => this.#move(plane, event));
    canvas.addEventListener("pointerup", (event) => this.#up(plane, event));
    canvas.addEventListener("lostpointercapture", () => this.gesture && this.cancel());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.#wheel(plane, event), { passive: false });
    canvas.addEventListener("keyup", ({ key }) => key === " " && (this.space = false));
  }

  // --- pointer -------------------------------------------------------------------------------------------------------

  #down(plane, event) {
    if (!this.view.volume?.data || this.gesture) return;
    event.preventDefault();
    plane.canvas.focus();
    plane.canvas.setPointerCapture(event.pointerId);
    const pixel = plane.pixelAt(event);
    const pans = event.button === 1 || this.space;
    const kind = event.button === 2 ? "window" : pans ? "pan" : this.tool;
    const positive = this.positive !== (event.altKey || event.shiftKey);
    const client = [event.clientX, event.clientY];
    this.gesture = { kind, plane, positive, client, from: pixel, points: [], moved: false };
    if (kind === "window") this.gesture.window = this.view.window;
    if (kind === "scribble" || kind === "lasso") this.gesture.points.push(plane.voxelOf(clamped(plane, pixel)));
    if (kind === "look") this.#moveCursor(plane, pixel);
  }

  #move(plane, event) {
    const { gesture } = this;
    if (!gesture || gesture.plane !== plane) return;
    const [x, y] = [event.clientX - gesture.client[0], event.clientY - gesture.client[1]];
    if (Math.hypot(x, y) > CLICK_PIXELS) gesture.moved = true;
    if (!gesture.moved) return;
    const pixel = clamped(plane, plane.pixelAt(event));
    switch (gesture.kind) {
      case "window": {
        const [low, high] = gesture.window;
        const width = Math.max((high - low) * 2 ** (x / 200), 1e-3);
        const level = (low + high) / 2 + (y / 300) * (high - low);
        this.view.setWindow([level - width / 2, level + width / 2]);
        break;
      }
      case "pan":
        plane.panBy(x, y);
        gesture.client = [event.clientX, event.clientY];
        break;
      case "box":
        this.#draftBox(plane, gesture.from, pixel);
        break;
      case "scribble":
      case "lasso":
        for (const part of event.getCoalescedEvents?.() ?? [event]) {
          extend(gesture.points, plane.voxelOf(clamped(plane, plane.pixelAt(part))));
        }
        plane.draft = { kind: gesture.kind, points: gesture.points, positive: gesture.positive };
        plane.paint();
        break;
      default:
        this.#moveCursor(plane, pixel);
    }
  }

  #up(plane, event) {
    const { gesture } = this;
    if (!gesture || gesture.plane !== plane) return;
    this.gesture = null;
    plane.draft = null;
    const pixel = plane.pixelAt(event);
    if (gesture.kind === "point" && !gesture.moved && plane.inside(pixel)) {
      this.#point(plane, pixel, gesture.positive, event.timeStamp);
    } else if (gesture.kind === "box" && gesture.moved) {
      this.#boxed(plane, this.#cornersOf(plane, gesture.from, clamped(plane, pixel)));
    } else if (gesture.kind === "scribble" || (gesture.kind === "lasso" && gesture.moved)) {
      this.#send({ type: gesture.kind, points: gesture.points, positive: gesture.positive });
    } else plane.paint();
  }

  #wheel(plane, event) {
    event.preventDefault();
    if (!this.view.volume) return;
    if (event.ctrlKey) plane.zoomBy(2 ** (-event.deltaY / 300), plane.pixelAt(event));
    else {
      this.turned = (this.turned ?? 0) + (event.deltaMode ? event.deltaY * 40 : event.deltaY);
      const steps = Math.trunc(this.turned / 40);
      if (!steps) return;
      this.turned = 0;
      this.view.scroll(plane.name, -steps);
    }
  }

  // --- keyboard ------------------------------------------------------------------------------------------------------

  /** A key on a plane that has the focus; true if it means something there. */
  key(plane, { key, shiftKey, altKey }) {
    const by = shiftKey ? 10 : 1;
    const moves = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
    const scrolls = { PageUp: by, PageDown: -by };
    const middle = () => toPixel(plane.plane, this.view.cursor);
    if (moves[key]) this.view.step(plane.name, ...moves[key]);
    else if (scrolls[key]) this.view.scroll(plane.name, scrolls[key]);
    else if (key === "Enter") this.enter(plane, shiftKey || altKey);
    else if (key === "+" || key === "=") plane.zoomBy(1.25, middle());
    else if (key === "-") plane.zoomBy(0.8, middle());
    else if (key === " ") this.space = true;
    else return false;
    if (moves[key] || scrolls[key]) this.follow();
    return true;
  }

  /** Enter on a plane: a point at the crosshair, or the beginning or the end of a shape. */
  enter(plane, other) {
    const { cursor } = this.view;
    const positive = this.positive !== other;
    if (this.box) return this.#sendBox(this.box);
    if (this.tool === "point") return this.#send({ type: "point", position: [...cursor], positive });
    if (this.tool === "look") return undefined;
    if (!this.anchored) {
      this.anchored = { kind: this.tool, plane, positive, points: [[...cursor]] };
      this.#tell();
      return undefined;
    }
    const { kind, points, plane: begun } = this.anchored;
    const sign = this.anchored.positive;
    this.cancel();
    if (kind === "box") return this.#boxed(begun, corners(points[0], cursor));
    return this.#send({ type: kind, points, positive: sign });
  }

  /** The crosshair was moved by a key: a shape that was begun follows it. */
  follow() {
    const { anchored } = this;
    if (!anchored) return;
    const cursor = [...this.view.cursor];
    if (cursor[anchored.plane.plane.axis] !== anchored.points[0][anchored.plane.plane.axis]) return this.cancel();
    if (anchored.kind === "box") {
      const [low, high] = corners(anchored.points[0], cursor);
      anchored.plane.draft = { kind: "box", low, high };
    } else {
      anchored.points.push(cursor);
      anchored.plane.draft = { kind: anchored.kind, points: anchored.points, positive: anchored.positive };
    }
    anchored.plane.paint();
    return undefined;
  }

  // --- prompts -------------------------------------------------------------------------------------------------------

  #point(plane, pixel, positive, began) {
    const position = plane.voxelOf(pixel.map(Math.round));
    this.view.moveTo(position);
    this.#send({ type: "point", position, positive }, began);
  }

  #draftBox(plane, from, to) {
    const [low, high] = this.#cornersOf(plane, from, to);
    for (const other of this.box ? this.view.planes : [plane]) {
      other.draft = { kind: "box", low, high };
      other.paint();
    }
  }

  /** Corners of the box that is being dragged; a box that waits for its depth gets it from another plane. */
  #cornersOf(plane, from, to) {
    const [low, high] = corners(plane.voxelOf(from.map(Math.round)), plane.voxelOf(to.map(Math.round)));
    if (!this.box || this.box.axis === plane.plane.axis) return [low, high];
    const deep = [[...this.box.low], [...this.box.high]];
    deep[0][this.box.axis] = low[this.box.axis];
    deep[1][this.box.axis] = high[this.box.axis];
    return deep;
  }

  #boxed(plane, [low, high]) {
    const { axis } = plane.plane;
    const waits = this.deep && !(this.box && this.box.axis !== axis);
    if (!waits) return this.#sendBox({ low, high });
    this.box = { low, high, axis };
    for (const other of this.view.planes) other.draft = { kind: "box", low, high };
    this.view.repaint();
    this.#tell();
    return undefined;
  }

  #sendBox({ low, high }) {
    this.cancel();
    return this.#send({ type: "box", low, high });
  }

  #send(prompt, began = performance.now()) {
    this.#tell();
    return this.view.send(prompt, began);
  }

  #moveCursor(plane, pixel) {
    this.view.moveTo(plane.voxelOf(clamped(plane, pixel).map(Math.round)));
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }
}

function corners(a, b) {
  return [a.map((value, axis) => Math.min(value, b[axis])), a.map((value, axis) => Math.max(value, b[axis]))];
}

function clamped({ plane }, [u, v]) {
  return [Math.min(Math.max(u, 0), plane.width - 1), Math.min(Math.max(v, 0), plane.height - 1)];
}

function extend(points, voxel) {
  const last = points[points.length - 1];
  if (Math.hypot(...voxel.map((value, axis) => value - last[axis])) >= STEP) points.push(voxel);
}

