// The objects in three dimensions, drawn by NiiVue, which is loaded when the first mask is there.

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
    this.busy = Promise.resolve();
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
    this.timer = setTimeout(() => {
      this.busy = this.busy.then(() => this.#update()).catch(() => this.#fail());
    }, PAUSE_MS);
  }

  async #update() {
    const { session, volume } = this.view;
    const shown = session.objects.filter(({ visible, voxels }) => visible && voxels);
    this.note.textContent = shown.length ? "" : "Objects appear here once they have a mask.";
    if (!shown.length && !this.scene) return;
    await this.#start();
    const wanted = new Map(shown.map((object) => [keyOf(object), object]));
    for (const [key, object] of wanted) {
      if (this.meshes.has(key)) continue;
      const mesh = await this.#mesh(object, volume);
      if (this.view.volume !== volume) return; // another scan was opened meanwhile
      this.meshes.set(key, mesh);
    }
    const gone = [...this.meshes].filter(([key]) => !wanted.has(key));
    for (const [key] of gone) this.meshes.delete(key);
    this.scene.meshes = [...this.meshes.values()].filter(Boolean);
    for (const [, mesh] of gone) mesh?.unloadMesh(this.scene.gl);
    this.scene.updateGLVolume();
  }

  async #mesh({ id, name, colour }, { affine }) {
    const box = this.view.session.masks.boxes.get(id);
    const made = box && (await this.#surface(box, affine));
    if (!made) return null;
    const rgba = new Uint8Array([...[1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)), 255]);
    const mesh = new this.NVMesh(made.points, made.triangles, name, rgba, 1, true, this.scene.gl);
    mesh.meshShaderIndex = this.light;
    return mesh;
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

  /** Triangles of a mask, made in a worker so that the page stays quick; one after the other. */
  #surface(box, affine) {
    this.worker ??= new Worker(new URL("./surface.js", import.meta.url), { type: "module" });
    return new Promise((done) => {
      this.worker.onmessage = ({ data }) => done(data);
      this.worker.postMessage({ box, affine });
    });
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

/** Whatever changes how an object looks here. */
function keyOf({ id, changed, voxels, colour }) {
  return [id, changed, voxels, colour].join("/");
}
