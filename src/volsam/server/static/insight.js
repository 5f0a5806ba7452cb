// What can be asked about the mask: measurements, where the model is in doubt, and where to click next.

const PAUSE_MS = 400;

const byId = (id) => document.getElementById(id);

/** Asks and shows; measurements follow the mask by themselves, doubt is asked for. */
export class Insight {
  constructor(view, panel, messages) {
    Object.assign(this, { view, panel, messages });
    const { session } = view;
    session.addEventListener("masks", () => this.#soon());
    session.addEventListener("objects", () => {
      if (this.measured !== session.state.current) this.#soon();
      if (this.found && this.found !== this.#place()) this.forget();
    });
  }

  #soon() {
    this.measured = this.view.session.state.current;
    this.view.measured = null;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#measure(), PAUSE_MS);
  }

  async #measure() {
    const { view, panel } = this;
    const { session } = view;
    if (!session.current?.voxels) return panel.paintMeasures(null);
    const place = this.#place();
    try {
      const answer = await session.measure();
      if (place !== this.#place()) return undefined; // what changed meanwhile has asked again
      view.measured = answer;
      panel.paintMeasures(answer);
      view.repaint();
    } catch {
      if (place === this.#place()) panel.paintMeasures(null); // the next change asks again
    }
    return undefined;
  }

  /** Show where the model is in doubt, or stop showing it. */
  async toggle() {
    const { session } = this.view;
    if (session.heat) return this.forget();
    const found = await this.#find();
    if (!found) return undefined;
    session.heat = found;
    byId("doubt").setAttribute("aria-pressed", true);
    return this.view.repaint();
  }

  /** Go where a click would tell most. */
  async next() {
    const { view } = this;
    const found = view.session.heat ?? (await this.#find());
    if (!found) return;
    if (!found.next_click) {
      this.messages.note("The model is sure everywhere; there is no better place to click.");
      return;
    }
    view.hint = found.next_click.voxel.map(Math.round);
    view.moveTo(view.hint);
    byId("doubt-note").textContent = "A click in the ring would tell most: Enter if it is the object, Shift Enter if not.";
    view.plane.canvas.focus();
  }

  /** What was found does not hold any more. */
  forget() {
    this.view.session.heat = this.view.hint = this.found = null;
    byId("doubt").setAttribute("aria-pressed", false);
    byId("doubt-note").textContent = "";
    this.view.repaint();
  }

  async #find() {
    const note = byId("doubt-note");
    const place = (this.found = this.#place()); // from now on, so that a change takes the question away, too
    note.textContent = "Asking the model …";
    try {
      const found = await this.view.session.doubt();
      if (this.found !== place) return null; // forgotten meanwhile
      const worst = found.worst_slice ? ` The least certain slice is ${found.worst_slice.index + 1}.` : "";
      note.textContent = `Mean spread in the mask ${found.spread.toFixed(2)}.${worst}`;
      return found;
    } catch (error) {
      if (this.found === place) note.textContent = error.message;
      return null;
    }
  }

  /** What a question is about: the session, the object, and how often its mask has changed. */
  #place() {
    const { state, current } = this.view.session;
    return [state?.id, current?.id, current?.changed].join("/");
  }
}
