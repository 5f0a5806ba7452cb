// The dialogs: opening a scan, saving masks, asking for a key or for a yes.

import { archived, dropped } from "./archive.js";
import { element } from "./panel.js";

const NAME_PLACE = "volsam-annotator";
const MOST_SESSIONS = 10_000; // as many as the server lists at once

const byId = (id) => document.getElementById(id);

/** The name of the one who works here, "" if none was given. */
export function annotator() {
  return localStorage.getItem(NAME_PLACE) ?? "";
}

/** A yes or no from the user. */
export async function ask(text) {
  byId("ask-text").textContent = text;
  return (await answered(byId("ask"))) === "yes";
}

byId("frame-cancel").addEventListener("click", () => byId("frame-sheet").close());
byId("save-cancel").addEventListener("click", () => byId("save-sheet").close());

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
    this.asked = 0;
    byId("file").addEventListener("change", ({ target }) => this.#takeFiles([...target.files]));
    byId("folder").addEventListener("change", ({ target }) => {
      this.#takeFiles([...target.files], target.files[0]?.webkitRelativePath.split("/")[0]);
    });
    byId("annotator").value = annotator();
    byId("annotator").addEventListener("input", ({ target }) => localStorage.setItem(NAME_PLACE, target.value.trim()));
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
      place.addEventListener("drop", async (event) => {
        event.preventDefault();
        drop.classList.remove("over");
        const { files, folder } = await dropped(event.dataTransfer);
        this.#takeFiles(files, folder);
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
    this.saved = this.#sessions(); // once, since the server reads every saved session to answer
    this.#list();
  }

  /** One file is opened as it is; several are the slices of a series. */
  #takeFiles(all, folder) {
    const files = all.filter(({ name }) => !name.startsWith("."));
    if (files.length) this.#chosen({ file: files.length === 1 ? files[0] : archived(files, folder) });
  }

  #chosen(choice) {
    byId("file").value = byId("folder").value = "";
    if (this.sheet.open) this.sheet.close();
    this.onChoice?.(choice);
  }

  async #list() {
    const query = byId("query").value.trim();
    const asked = ++this.asked; // of several questions on their way the last one counts
    let studies;
    try {
      ({ studies } = await this.api.look(`studies?${new URLSearchParams({ query, limit: 200 })}`));
    } catch {
      return; // a server without a folder of studies takes files
    }
    const saved = await this.saved;
    if (asked !== this.asked) return;
    byId("studies-part").hidden = false;
    const rows = studies.map((study) => this.#rows(study, saved.get(study.path) ?? []));
    const none = element("li", { textContent: query ? "No scan has that in its name." : "The folder of studies is empty." });
    byId("studies").replaceChildren(...(rows.length ? rows.flat() : [none]));
  }

  /** Saved sessions with prompts by study, newest first. */
  async #sessions() {
    const { sessions } = await this.api.look(`sessions?limit=${MOST_SESSIONS}`).catch(() => ({ sessions: [] }));
    const found = new Map();
    for (const saved of sessions.filter(({ study, prompts }) => study && prompts)) {
      if (!found.has(saved.study)) found.set(saved.study, []);
      found.get(saved.study).push(saved);
    }
    return found;
  }

  #rows(study, sessions) {
    const open = element("button", { type: "button" });
    const size = study.bytes === undefined ? "DICOM series" : bytesAsRead(study.bytes);
    open.append(element("span", { textContent: study.path, title: study.path }), element("small", { textContent: size }));
    open.addEventListener("click", () => this.#chosen({ study: study.path }));
    const rows = [item(open)];
    for (const tag of study.ready) {
      const mend = element("button", { type: "button", className: "resume" });
      mend.append(element("span", { textContent: `Correct: labels/${tag}` }));
      mend.addEventListener("click", () => this.#chosen({ study: study.path, labels: tag }));
      rows.push(item(mend));
    }
    for (const saved of sessions.slice(0, 3)) {
      const again = element("button", { type: "button", className: "resume" });
      const when = new Date(saved.modified).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
      const what = `Go on: ${saved.objects.join(", ")}`;
      const facts = [saved.annotator, `${saved.prompts} prompt${saved.prompts === 1 ? "" : "s"}`, when, saved.open && "open"];
      again.append(
        element("span", { textContent: what, title: what }),
        element("small", { textContent: facts.filter(Boolean).join(", ") }),
      );
      again.addEventListener("click", () => this.#chosen({ resume: saved.id }));
      rows.push(item(again));
    }
    return rows;
  }
}

/** Ask what to save and how: `{place, objects, format, tag}`, or null. */
export async function askSave(session) {
  const { study, dicom } = session.state;
  const [tag, beside] = [byId("tag"), byId("save-beside")];
  byId("save-current").textContent = session.current.name;
  byId("save-dicom").hidden = !dicom;
  byId("save-tag").hidden = beside.hidden = beside.disabled = byId("save-place").hidden = !study;
  const folder = study?.split("/").slice(0, -1).join("/");
  tag.oninput = () => {
    const place = `labels/${tag.value}`;
    beside.textContent = `Save into ${place}`;
    byId("save-place").textContent = `Download gives a file to this computer; the other button writes into ${
      [place, folder].filter(Boolean).join("/")} of the folder of studies.`;
  };
  if (!tag.checkValidity()) tag.value = tag.defaultValue;
  tag.oninput();
  const sheet = byId("save-sheet");
  const place = await answered(sheet);
  if (place !== "download" && place !== "beside") return null;
  const chosen = (name) => sheet.querySelector(`input[name=${name}]:checked`).value;
  const objects = chosen("what") === "all" ? null : [session.state.current];
  return { place, objects, format: chosen("format"), tag: tag.value };
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
