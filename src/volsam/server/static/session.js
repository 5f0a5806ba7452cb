// What the page knows of the session: the server's state, the masks, and the actions that change them.

import { Masks } from "./masks.js";
import { decode } from "./wire.js";

/**
 * One session on the server, seen from the page. Actions are sent one after the other, in the order they were asked for,
 * and so are openings. What an action is about, such as the current object, is decided when its turn comes; one that was
 * meant for a scan that is not open any more is dropped.
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
    this.promptsOf = null; // the object that they belong to
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

  open(request) {
    return this.#opening(() => this.api.open(request));
  }

  upload(file, model, frame, annotator) {
    return this.#opening(() => this.api.upload(file, model, frame, annotator));
  }

  #opening(work) {
    const done = this.last.then(async () => {
      await work();
      await this.#take(await this.api.call("GET", "session?masks=true"), true);
    });
    this.last = done.catch(() => {}); // told by the one who asked for it
    return done;
  }

  async #take(state, asked) {
    const masks = await Promise.all(state.objects.map(({ mask }) => (mask ? decode(mask) : null)));
    if (state.id !== this.api.session) return; // another one was opened meanwhile
    // One that was opened without the page having heard of it, since the server went away in between, is a new one too.
    const fresh = asked || (this.state && this.state.id !== state.id);
    this.state = state;
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
    return this.#act(() => {
      if (this.current.locked) throw new Error(`${this.current.name} is locked; K unlocks it.`);
      return ["POST", "session/prompts", { object: this.state.current, space: "voxel", prompts }];
    });
  }

  undo() {
    return this.#act(() => ["POST", "session/undo", { object: this.state.current }]);
  }

  redo() {
    return this.#act(() => ["POST", "session/redo", { object: this.state.current }]);
  }

  reset() {
    return this.#act(() => ["POST", "session/reset", { object: this.state.current }]);
  }

  /** One of the prompts that are listed; it stays its object's, whichever is current when its turn comes. */
  removePrompt(number, object = this.promptsOf) {
    return this.#act(() => ["DELETE", `session/prompts/${number}?object=${object}`]);
  }

  /** The last prompt of the current object, also if that is still on its way now. */
  removeLast() {
    return this.#act(async () => {
      const { object, prompts } = await this.#ask("GET", `session/prompts?object=${this.state.current}`);
      return prompts.length ? ["DELETE", `session/prompts/${prompts.at(-1).id}?object=${object}`] : null;
    });
  }

  setModel(model) {
    return this.#queue(async () => {
      const answer = await this.#ask("PUT", "session/model", { model });
      await this.#apply(answer.changes);
      this.state = await this.#ask("GET", "session"); // the answer tells neither the model nor what it takes
      this.#changed();
      return answer;
    });
  }

  /** Say who works on it. */
  signed(annotator) {
    return this.#queue(async () => {
      this.state = await this.#ask("PATCH", "session", { annotator });
      this.#changed();
    });
  }

  async refreshPrompts() {
    const asked = ++this.asked; // of several questions on their way the last one counts
    this.listing++;
    try {
      const answer = await this.api.call("GET", `session/prompts?object=${this.state.current}&space=voxel`);
      if (asked !== this.asked || this.state.id !== this.api.session) return;
      this.prompts = answer.prompts;
      this.promptsOf = answer.object;
      this.#tell("prompts");
    } finally {
      this.listing--;
    }
  }

  // --- objects -------------------------------------------------------------------------------------------------------

  select(id) {
    return this.change(id, { select: true });
  }

  /** Select the object that is so many places further on in the list. */
  selectNext(by) {
    return this.#change(() => {
      const { objects } = this;
      const at = objects.indexOf(this.current) + by + objects.length;
      return objects.length > 1 ? [objects[at % objects.length].id, { select: true }] : null;
    });
  }

  newObject() {
    return this.#queue(async () => {
      await this.#ask("POST", "session/objects", { select: true });
      await this.#objects();
    });
  }

  /** Name, colour, lock, visibility or selection of an object. */
  change(id, change) {
    return this.#change(() => [id, change]);
  }

  /** Turn "visible" or "locked" of an object over, of the current one if none is named. */
  toggle(field, id) {
    return this.#change(() => {
      const object = id === undefined ? this.current : this.objects.find((one) => one.id === id);
      return object ? [object.id, { [field]: !object[field] }] : null;
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
      const { changes, ...state } = await this.#ask("PATCH", "session", { policy });
      await this.#apply(changes); // another rule may give voxels to other objects at once
      this.state = { ...this.state, ...state };
      if (changes.length) this.#tell("masks");
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

  /** An action on masks; `build` gives method, path and body when its turn comes, or nothing if there is nothing to do. */
  #act(build) {
    return this.#queue(async () => {
      const request = await build();
      if (!request) return undefined;
      const answer = await this.#ask(...request);
      await this.#apply(answer.changes, answer.object);
      this.#note(answer);
      this.#changed();
      return answer;
    });
  }

  /** An action on an object; `build` gives its id and what to change when its turn comes, or nothing. */
  #change(build) {
    return this.#queue(async () => {
      const request = build();
      if (!request) return;
      const [id, change] = request;
      await this.#ask("PATCH", `session/objects/${id}`, change);
      await this.#objects();
    });
  }

  #changed() {
    this.#tell("masks");
    this.#tell("objects");
    this.refreshPrompts().catch((error) => this.#tell("trouble", error));
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

  #note({ object, ...answer }) {
    const { quality, can_undo, can_redo, prompts, voxels, volume_ml, changed } = answer;
    const known = { quality, can_undo, can_redo, prompts, voxels, volume_ml, changed };
    this.#amend(object, Object.fromEntries(Object.entries(known).filter(([, value]) => value !== undefined)));
    if (object !== undefined) this.state.current = object;
  }

  #amend(id, fields) {
    this.state.objects = this.objects.map((object) => (object.id === id ? { ...object, ...fields } : object));
  }

  #queue(work) {
    const meant = this.state?.id;
    this.#tell("busy", ++this.waiting);
    const done = this.last.then(async () => {
      if (meant !== this.api.session) return undefined; // another scan is open by now
      const answer = await work();
      this.#tell("saved");
      return answer;
    }).catch(async (error) => {
      this.#tell("trouble", error);
      if (error.code === "gone") await this.api.whenBack();
    });
    this.last = done.finally(() => this.#tell("busy", --this.waiting));
    return done;
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
