// What the page knows of the session: the server's state, the masks, and the actions that change them.

import { Masks } from "./masks.js";
import { decode } from "./wire.js";

/**
 * One session on the server, seen from the page. Actions are sent one after the other, in the order they were asked for.
 *
 * Events: "opened" when another volume is there, "objects" when anything about the objects changed, "masks" when voxels
 * changed, "prompts" when the list of prompts may have changed, "busy" (detail: how many actions wait), "saved" after an
 * action was kept by the server, "trouble" (detail: an error) when an action failed.
 */
export class Session extends EventTarget {
  constructor(api) {
    super();
    this.api = api;
    this.masks = new Masks();
    this.state = null;
    this.prompts = [];
    this.waiting = 0;
    this.asked = 0;
    this.listing = 0;
    this.last = Promise.resolve();
    this.taken = Promise.resolve();
    this.heat = null;
    api.addEventListener("resumed", ({ detail }) => {
      this.taken = this.#take(detail, false).catch((error) => this.#tell("trouble", error));
    });
  }

  get objects() {
    return this.state?.objects ?? [];
  }

  get current() {
    return this.objects.find(({ id }) => id === this.state.current);
  }

  takes(kind) {
    return this.state?.takes.includes(kind) ?? false;
  }

  // --- opening -------------------------------------------------------------------------------------------------------

  async open(request) {
    await this.api.open(request);
    await this.#take(await this.api.call("GET", "session?masks=true"), true);
  }

  async upload(file, model, frame) {
    await this.api.upload(file, model, frame);
    await this.#take(await this.api.call("GET", "session?masks=true"), true);
  }

  async #take(state, fresh) {
    const masks = await Promise.all(state.objects.map(({ mask }) => (mask ? decode(mask) : null)));
    this.state = state;
    this.heat = null;
    this.masks.clear();
    state.objects.forEach((object, n) => this.masks.replace(object.id, masks[n]));
    if (fresh) this.#tell("opened");
    this.#tell("objects");
    this.#tell("masks");
    await this.refreshPrompts();
  }

  // --- prompts -------------------------------------------------------------------------------------------------------

  /** Prompts in voxels; several are answered together. Resolves when the masks are there. */
  add(...prompts) {
    return this.#act("POST", "session/prompts", { object: this.state.current, space: "voxel", prompts });
  }

  undo() {
    return this.#act("POST", "session/undo", { object: this.state.current });
  }

  redo() {
    return this.#act("POST", "session/redo", { object: this.state.current });
  }

  reset() {
    return this.#act("POST", "session/reset", { object: this.state.current });
  }

  removePrompt(number) {
    return this.#act("DELETE", `session/prompts/${number}?object=${this.state.current}`);
  }

  setModel(model) {
    return this.#act("PUT", "session/model", { model });
  }

  async refreshPrompts() {
    const asked = ++this.asked; // of several questions on their way the last one counts
    this.listing++;
    try {
      const answer = await this.api.call("GET", `session/prompts?object=${this.state.current}&space=voxel`);
      if (asked !== this.asked) return;
      this.prompts = answer.prompts;
      this.#tell("prompts");
    } finally {
      this.listing--;
    }
  }

  // --- objects -------------------------------------------------------------------------------------------------------

  select(id) {
    return this.change(id, { select: true });
  }

  newObject() {
    return this.#queue(async () => {
      await this.#ask("POST", "session/objects", { select: true });
      await this.#objects();
    });
  }

  /** Name, colour, lock, visibility or selection of an object. */
  change(id, change) {
    return this.#queue(async () => {
      await this.#ask("PATCH", `session/objects/${id}`, change);
      await this.#objects();
    });
  }

  deleteObject(id) {
    return this.#queue(async () => {
      const answer = await this.#ask("DELETE", `session/objects/${id}`);
      this.masks.remove(id);
      await this.#apply(answer.changes);
      await this.#objects();
      this.#tell("masks");
    });
  }

  setPolicy(policy) {
    return this.#queue(async () => {
      this.state = { ...this.state, ...(await this.#ask("PATCH", "session", { policy })) };
      this.#tell("objects");
    });
  }

  async #objects() {
    const { objects, current } = await this.#ask("GET", "session/objects");
    const moved = current !== this.state.current;
    this.state = { ...this.state, objects, current };
    this.#tell("objects");
    if (moved || !this.prompts.length) await this.refreshPrompts();
  }

  // --- what can be asked ---------------------------------------------------------------------------------------------

  measure() {
    return this.api.call("GET", `session/objects/${this.state.current}/measurements`);
  }

  /** Where the model is in doubt about the current object; the bands come decoded. */
  async doubt() {
    const answer = await this.api.call("GET", `session/objects/${this.state.current}/uncertainty`);
    return { ...answer, bands: await decode(answer.bands) };
  }

  // --- inside --------------------------------------------------------------------------------------------------------

  /** The answer to an action, once the masks of a session that was resumed for it are unpacked: it changes those. */
  async #ask(method, path, body) {
    const answer = await this.api.call(method, path, body);
    await this.taken;
    return answer;
  }

  #act(method, path, body) {
    return this.#queue(async () => {
      const answer = await this.#ask(method, path, body);
      await this.#apply(answer.changes, answer.object);
      this.#note(answer);
      this.#tell("masks");
      this.#tell("objects");
      this.refreshPrompts().catch((error) => this.#tell("trouble", error));
      return answer;
    });
  }

  async #apply(changes, worked) {
    const parts = await Promise.all(changes.map(decode));
    changes.forEach(({ object }, n) => this.masks.apply(object, parts[n]));
    // The answer tells the size of the object that was worked on; others that lost or got voxels are counted here.
    const millilitres = this.state.spacing.reduce((volume, spacing) => volume * spacing, 1) / 1000;
    for (const { object } of changes.filter(({ object }) => object !== worked)) {
      const voxels = this.masks.count(object);
      this.#amend(object, { voxels, volume_ml: voxels * millilitres });
    }
  }

  #note({ object, model, changes, ...answer }) {
    const { quality, can_undo, can_redo, prompts, voxels, volume_ml, changed } = answer;
    const known = { quality, can_undo, can_redo, prompts, voxels, volume_ml, changed };
    this.#amend(object, Object.fromEntries(Object.entries(known).filter(([, value]) => value !== undefined)));
    if (object !== undefined) this.state.current = object;
    if (model) this.state.model = model;
  }

  #amend(id, fields) {
    this.state.objects = this.objects.map((object) => (object.id === id ? { ...object, ...fields } : object));
  }

  #queue(work) {
    this.#tell("busy", ++this.waiting);
    const done = this.last.then(work).then(
      (answer) => {
        this.#tell("saved");
        return answer;
      },
      async (error) => {
        this.#tell("trouble", error);
        if (error.code === "gone") await this.api.whenBack();
      },
    );
    this.last = done.finally(() => this.#tell("busy", --this.waiting));
    return done;
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
