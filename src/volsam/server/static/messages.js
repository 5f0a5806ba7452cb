// What the page says: a line that goes away, a line that stays while the server is gone, and whether all is saved.

const NOTE_MS = 5000;
const SAVED = { busy: "Working", kept: "All steps saved", lost: "Not connected" };
const GONE = "The server does not answer; is volsam still running? This page goes on by itself as soon as it does.";

const byId = (id) => document.getElementById(id);

/** One-sentence messages for the user. */
export class Messages {
  constructor(api, session) {
    this.toast = byId("toast");
    this.toast.querySelector("button").addEventListener("click", () => this.close());
    session.addEventListener("trouble", ({ detail }) => this.error(detail));
    session.addEventListener("saved", () => this.toast.dataset.kind === "error" && this.close());
    session.addEventListener("busy", ({ detail }) => this.saved(detail ? "busy" : "kept"));
    api.addEventListener("lost", () => {
      this.saved("lost");
      byId("banner").textContent = GONE;
      byId("banner").hidden = false;
    });
    api.addEventListener("found", () => (byId("banner").hidden = true));
    api.addEventListener("resumed", () => {
      this.saved("kept");
      this.note("Connected again; the session goes on where the server had saved it.");
    });
  }

  /** What went wrong. A server that is gone has the banner. */
  error(error) {
    if (error.code !== "gone") this.#show(error.message ?? String(error), "error");
  }

  /** Something good to know; it goes away by itself. */
  note(text) {
    this.#show(text, "note");
    this.timer = setTimeout(() => this.close(), NOTE_MS);
  }

  /** For those who listen instead of looking. */
  announce(text) {
    byId("live").textContent = text;
  }

  close() {
    this.toast.hidden = true;
  }

  saved(state) {
    byId("saved").dataset.state = state;
    byId("saved").textContent = SAVED[state];
  }

  /** How far something is, 0 to 1; without a text the bar goes away. */
  progress(text, part) {
    const bar = byId("progress");
    bar.hidden = text === undefined;
    if (bar.hidden) return;
    const percent = Math.round(part * 100);
    bar.setAttribute("aria-valuenow", percent);
    bar.querySelector("span").style.setProperty("--part", `${percent}%`);
    bar.querySelector("b").textContent = part ? `${text}, ${percent} %` : `${text} …`;
  }

  #show(text, kind) {
    clearTimeout(this.timer);
    this.toast.querySelector("span").textContent = text;
    this.toast.dataset.kind = kind;
    this.toast.hidden = false;
  }
}
