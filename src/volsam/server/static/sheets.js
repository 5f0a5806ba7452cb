// The dialogs: opening a scan, saving masks, asking for a key or for a yes.

import { element } from "./panel.js";

const byId = (id) => document.getElementById(id);

/** A yes or no from the user. */
export async function ask(text) {
  byId("ask-text").textContent = text;
  return (await answered(byId("ask"))) === "yes";
}

byId("frame-cancel").addEventListener("click", () => byId("frame-sheet").close());

/** Which frame of several to open; null for none. */
export async function askFrame(name, frames) {
  byId("frame-text").textContent = `${name} holds ${frames} frames, such as time points. Which one, from 0 to ${frames - 1}?`;
  byId("frame").max = frames - 1;
  byId("frame").value = 0;
  return (await answered(byId("frame-sheet"))) === "open" ? Number(byId("frame").value) : null;
}

/** Wait for the server's key. */
export async function askKey() {
  await answered(byId("key-sheet"));
  return byId("key").value;
}

/** Choose what to open: resolves with `{study}`, `{resume}` or `{file}`. */
export class StartSheet {
  constructor(api) {
    this.api = api;
    this.sheet = byId("start");
    this.waiting = null;
    byId("file").addEventListener("change", ({ target }) => target.files[0] && this.#chosen({ file: target.files[0] }));
    byId("query").addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.#list(), 200);
    });
    const drop = byId("drop");
    for (const place of [drop, byId("views")]) {
      place.addEventListener("dragover", (event) => {
        event.preventDefault();
        drop.classList.add("over");
      });
      place.addEventListener("dragleave", () => drop.classList.remove("over"));
      place.addEventListener("drop", (event) => {
        event.preventDefault();
        drop.classList.remove("over");
        const [file] = event.dataTransfer.files;
        if (file) this.#chosen({ file });
      });
    }
    this.sheet.addEventListener("cancel", (event) => this.required && event.preventDefault());
  }

  /** Show the sheet; with `required` it cannot be closed without a choice. `trouble` is shown in it. */
  show(onChoice, { required = false, trouble = "" } = {}) {
    this.onChoice = onChoice;
    this.required = required;
    byId("start-error").textContent = trouble;
    byId("start-error").hidden = !trouble;
    if (!this.sheet.open) this.sheet.showModal();
    this.#list();
  }

  #chosen(choice) {
    byId("file").value = "";
    if (this.sheet.open) this.sheet.close();
    this.onChoice?.(choice);
  }

  async #list() {
    const query = byId("query").value.trim();
    let studies;
    try {
      ({ studies } = await this.api.look(`studies?${new URLSearchParams({ query, limit: 200 })}`));
    } catch {
      return; // a server without a folder of studies takes files
    }
    byId("studies-part").hidden = false;
    const rows = await Promise.all(studies.map((study) => this.#rows(study)));
    const none = element("li", { textContent: query ? "No scan has that in its name." : "The folder of studies is empty." });
    byId("studies").replaceChildren(...(rows.length ? rows.flat() : [none]));
  }

  async #rows(study) {
    const open = element("button", { type: "button" });
    const size = study.bytes === undefined ? "DICOM series" : bytesAsRead(study.bytes);
    open.append(element("span", { textContent: study.path, title: study.path }), element("small", { textContent: size }));
    open.addEventListener("click", () => this.#chosen({ study: study.path }));
    const rows = [item(open)];
    const asked = this.api.look(`sessions?${new URLSearchParams({ study: study.path })}`);
    const { sessions } = await asked.catch(() => ({ sessions: [] }));
    for (const saved of sessions.filter(({ prompts }) => prompts).slice(0, 3)) {
      const again = element("button", { type: "button", className: "resume" });
      const when = new Date(saved.modified).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
      const what = `Go on: ${saved.objects.join(", ")}`;
      again.append(
        element("span", { textContent: what, title: what }),
        element("small", { textContent: `${saved.prompts} prompts, ${when}${saved.open ? ", open" : ""}` }),
      );
      again.addEventListener("click", () => this.#chosen({ resume: saved.id }));
      rows.push(item(again));
    }
    return rows;
  }
}

/** Ask what to save and how: `{place, objects, format}`, or null. */
export async function askSave(session, isDicom) {
  byId("save-current").textContent = session.current.name;
  byId("save-dicom").hidden = !isDicom;
  const { study } = session.state;
  byId("save-beside").hidden = byId("save-place").hidden = !study;
  const folder = study?.split("/").slice(0, -1).join("/");
  byId("save-place").textContent = `Download gives a file to this computer; the other button writes into ${
    ["labels/final", folder].filter(Boolean).join("/")} of the folder of studies.`;
  const sheet = byId("save-sheet");
  const place = await answered(sheet);
  if (place !== "download" && place !== "beside") return null;
  const chosen = (name) => sheet.querySelector(`input[name=${name}]:checked`).value;
  return { place, objects: chosen("what") === "all" ? null : [session.state.current], format: chosen("format") };
}

function answered(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue), { once: true }));
}

function bytesAsRead(bytes) {
  if (bytes >= 2 ** 20) return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  return bytes >= 1024 ? `${(bytes / 1024).toFixed(1)} KiB` : `${bytes} bytes`;
}

function item(child) {
  const row = document.createElement("li");
  row.append(child);
  return row;
}
