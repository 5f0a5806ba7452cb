// The objects in three dimensions, drawn by NiiVue, which is loaded when the first mask is there.

import { surface } from "./surface.js";

const PAUSE_MS = 250; // after the last change, so that clicks come first
const HOME = [110, 15];
// A light over the left shoulder and a weaker one at the eye, so that no side is black. Towards the eye is minus z.
const LIGHT = `#version 300 es
precision highp float;
uniform float opacity;
in vec4 vClr;
in vec3 vN;
out vec4 color;
void main() {
  vec3 n = normalize(vN);
  float key = max(dot(n, normalize(vec3(-0.45, 0.75, -0.6))), 0.0);
  float eye = max(-n.z, 0.0);
  color = vec4(vClr.rgb * (0.28 + 0.3 * eye + 0.55 * key) + 0.16 * pow(key, 20.0), opacity);
}`;

/** The 3D view. */
export class Space {
  constructor(canvas, view) {
    this.canvas = canvas;
    this.view = view;
    this.note = document.getElementById("space-note");
    this.meshes = new Map();
    this.turn = [...HOME];
    const { session } = view;
    for (const event of ["masks", "objects"]) session.addEventListener(event, () => this.#soon());
    session.addEventListener("opened", () => this.#clear());
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.from = [event.clientX, event.clientY];
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.from) return;
      this.#turnBy(event.clientX - this.from[0], event.clientY - this.from[1]);
      this.from = [event.clientX, event.clientY];
    });
    canvas.addEventListener("pointerup", () => (this.from = null));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#zoom(2 ** (-event.deltaY / 400));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const turns = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] };
      if (!turns[event.key]) return;
      event.preventDefault();
      this.#turnBy(...turns[event.key]);
    });
  }

  #soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#update().catch(() => this.#fail()), PAUSE_MS);
  }

  async #update() {
    const { session, volume } = this.view;
    const shown = session.objects.filter(({ visible, voxels }) => visible && voxels);
    this.note.textContent = shown.length ? "" : "Objects appear here once they have a mask.";
    if (!shown.length && !this.scene) return;
    await this.#start();
    const { NVMesh, scene } = this;
    const keep = new Set(shown.map((object) => `${object.id}/${object.changed}/${object.voxels}/${object.colour}`));
    for (const [key, mesh] of this.meshes) {
      if (keep.has(key)) continue;
      mesh?.unloadMesh(scene.gl);
      this.meshes.delete(key);
    }
    for (const object of shown) {
      const key = `${object.id}/${object.changed}/${object.voxels}/${object.colour}`;
      if (this.meshes.has(key)) continue;
      const box = session.masks.boxes.get(object.id);
      const made = box && surface(box, volume);
      const rgba = [1, 3, 5].map((at) => parseInt(object.colour.slice(at, at + 2), 16));
      const mesh =
        made && new NVMesh(made.points, made.triangles, object.name, new Uint8Array([...rgba, 255]), 1, true, scene.gl);
      if (mesh) mesh.meshShaderIndex = this.light;
      this.meshes.set(key, mesh);
    }
    scene.meshes = [...this.meshes.values()].filter(Boolean);
    scene.updateGLVolume();
  }

  /** NiiVue, on first use. */
  async #start() {
    this.starting ??= (async () => {
      const { Niivue, NVMesh } = await import("./vendor/niivue.js");
      this.NVMesh = NVMesh;
      const scene = new Niivue({
        logLevel: "fatal", interactive: false, dragAndDropEnabled: false, loadingText: "", isOrientCube: true, sliceType: 4,
        backColor: [0.03, 0.045, 0.06, 1],
      });
      await scene.attachToCanvas(this.canvas, true);
      this.light = scene.setCustomMeshShader(LIGHT, "volsam");
      scene.setRenderAzimuthElevation(...this.turn);
      this.canvas.tabIndex = 0;
      this.scene = scene;
    })();
    await this.starting;
  }

  #clear() {
    if (this.scene) {
      for (const mesh of this.meshes.values()) mesh?.unloadMesh(this.scene.gl);
      this.scene.meshes = [];
      this.scene.drawScene();
    }
    this.meshes.clear();
    this.#soon();
  }

  #fail() {
    this.note.textContent = "3D needs WebGL 2, which this browser does not offer; the planes work without it.";
  }

  #turnBy(dx, dy) {
    this.turn = [(this.turn[0] + dx * 0.6 + 360) % 360, Math.min(Math.max(this.turn[1] + dy * 0.6, -90), 90)];
    this.scene?.setRenderAzimuthElevation(...this.turn);
  }

  #zoom(factor) {
    const { scene } = this;
    if (scene) scene.setScale(Math.min(Math.max(scene.scene.volScaleMultiplier * factor, 0.3), 4));
  }
}
