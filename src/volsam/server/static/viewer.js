// The page: opens a scan, joins its parts, and turns buttons and keys into actions.

import { Api } from "./api.js";
import { Insight } from "./insight.js";
import { fillSheet, listen } from "./keys.js";
import { Messages } from "./messages.js";
import { element, Panel, round } from "./panel.js";
import { save } from "./saving.js";
import { Session } from "./session.js";
import { annotator, ask, askFrame, askKey, StartSheet } from "./sheets.js";
import { Space } from "./space.js";
import { TOOLS, Tools } from "./tools.js";
import { View } from "./view.js";
import { Volume } from "./volume.js";

const SESSION_PLACE = "volsam-session";
const THEME_PLACE = "volsam-theme";
const SHOW_MS = 300; // between two looks at a scan that is arriving
const SIZES = { normal: 1, large: 1.2, largest: 1.45 };
const PICTURES = {
  point: '<circle cx="12" cy="12" r="3"/><path d="M12 3v4m0 10v4M3 12h4m10 0h4"/>',
  box: '<rect x="4" y="6" width="16" height="12" rx="1"/>',
  scribble: '<path d="M3 17c3-9 6-9 7-3s4 5 5-1 3-7 6-6"/>',
  lasso: '<path d="M12 4c5 0 9 2.500 9 6s-4 6-9 6-9-2.500-9-6 4-6 9-6Zm-5 11c-2 2-1 5 2 5"/>',
  look: '<path d="M3 12h18M12 3v18"/><circle cx="12" cy="12" r="5"/>',
};

const byId = (id) => document.getElementById(id);
const api = new Api();
const session = new Session(api);
const messages = new Messages(api, session);
const view = new View(session);
const tools = new Tools(view);
const panel = new Panel(view);
const insight = new Insight(view, panel, messages);
const space = new Space(byId("space"), view);
const start = new StartSheet(api);
window.volsam = { api, session, view, tools, space, lastServerMs: 0 }; // for tests and the console

// --- opening ---------------------------------------------------------------------------------------------------------

async function begin() {
  const query = new URLSearchParams(location.search);
  api.session = sessionStorage.getItem(SESSION_PLACE);
  await listModels();
  if (query.has("session")) return open({ resume: query.get("session") });
  const parts = ["frame", "channel"].filter((name) => query.has(name)).map((name) => [name, Number(query.get(name))]);
  if (query.has("study")) return open(await orResume({ study: query.get("study"), ...Object.fromEntries(parts) }));
  return start.show(open, { required: true });
}

/** A study anew, or the last session of it, if there is one and the user wants it. */
async function orResume(request) {
  const { study } = request;
  const { sessions } = await api.look(`sessions?${new URLSearchParams({ study })}`).catch(() => ({ sessions: [] }));
  const last = sessions.filter(({ prompts }) => prompts).sort((a, b) => (a.modified < b.modified ? 1 : -1))[0];
  if (!last) return request;
  const when = new Date(last.modified).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const who = last.annotator && last.annotator !== annotator() ? last.annotator : "you";
  const text = `Go on with what ${who} did on ${when} (${last.objects.join(", ")})? No begins anew and keeps it.`;
  return (await ask(text)) ? { resume: last.id } : request;
}

/** Open a study, a file of this computer, or a saved session. */
async function open(choice) {
  messages.progress("Opening the scan", 0);
  try {
    const who = annotator() || undefined;
    if (choice.file) await session.upload(choice.file, byId("model").value, choice.frame, who);
    else await session.open(choice.study ? { ...choice, annotator: who } : choice);
    if (who && session.state.annotator === null) await session.signed(who);
  } catch (error) {
    messages.progress();
    if (error.code === "key") return undefined;
    if (error.code === "gone") throw error;
    if (error.code === "conflict" && choice.resume && !choice.take) {
      const yes = await ask("This session is open in another place. Take it over? Nothing in it is lost.");
      if (yes) return open({ ...choice, take: true });
    }
    if (error.code === "model" && choice.resume) {
      const { model, default: other } = error.facts;
      const yes = await ask(`This session was made with ${model}, which is not here. Make all its masks anew with ${other}?`);
      if (yes) return open({ ...choice, model: other });
      return session.state ? undefined : start.show(open, { required: true });
    }
    if (error.code === "frames") {
      const frame = await askFrame(choice.file?.name ?? choice.study, error.facts.frames);
      if (frame !== null) return open({ ...choice, frame });
      return session.state ? undefined : start.show(open, { required: true });
    }
    if (session.state) return messages.error(error);
    const missing = error.code === "not_found" && choice.study && !choice.labels;
    const trouble = missing ? `There is no scan ${choice.study} on this server: choose one below.` : error.message;
    return start.show(open, { required: true, trouble });
  }
  return undefined;
}

session.addEventListener("opened", async () => {
  const { state } = session;
  sessionStorage.setItem(SESSION_PLACE, state.id);
  history.replaceState(null, "", `?session=${encodeURIComponent(state.id)}`);
  document.title = `${state.name} – volsam`;
  byId("study").textContent = byId("study").title = state.study ?? state.name;
  const notes = state.notes.map((note) => element("li", { textContent: withoutName(note, state.name) }));
  byId("notes").replaceChildren(...notes);
  byId("notes").hidden = !state.notes.length;
  byId("save").disabled = false;
  tools.deep = !session.takes("flat box");
  tools.choose(session.takes("point") ? "point" : "look");
  const volume = new Volume(state);
  view.show(volume, state);
  messages.saved("kept");
  lookAtObject();
  await load(volume);
});

/** What another model does not take is put down. */
function fitTools() {
  if (!tools.deep && !session.takes("flat box")) tools.toggleDeep();
  if (tools.tool !== "look" && !session.takes(tools.tool)) tools.choose(session.takes("point") ? "point" : "look");
}

/** A warning about a file, whose name stands at the top of the page anyway. */
function withoutName(note, name) {
  return note.startsWith(name) ? `This scan${note.slice(name.length).replace(/^(\.\w+)+/, "")}` : note;
}

/** Fetch the voxels; slices appear as they come. */
async function load(volume) {
  const near = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  let shown = 0;
  document.body.dataset.ready = "false";
  try {
    const response = await api.response("GET", `session/image.nii${near ? "" : ".gz"}`);
    await volume.fill(response, !near, (part) => {
      if (view.volume !== volume) return;
      messages.progress("Loading the scan", part);
      if (performance.now() - shown < SHOW_MS) return;
      view.refill();
      shown = performance.now();
    });
    if (view.volume !== volume) return; // another scan was opened meanwhile
    document.body.dataset.ready = "true";
  } catch (error) {
    if (view.volume !== volume) return;
    messages.error(error);
  }
  messages.progress();
  view.refill();
}

async function listModels() {
  const { models, default: first } = await api.look("models");
  const told = ({ summary, licence }) => [summary, licence && `licence: ${licence}`].filter(Boolean).join("; ");
  const option = (model) => Object.assign(new Option(model.name, model.name), { title: told(model) });
  byId("model").replaceChildren(...models.map(option));
  byId("model").value = first;
}

/** The first calls failed: wait for the server, or say why. */
async function retry(error) {
  if (error.code === "key") return undefined;
  if (error.code !== "gone") return start.show(open, { required: true, trouble: error.message });
  await api.whenBack();
  return begin().catch(retry);
}

api.addEventListener("failed", ({ detail }) => messages.error(detail));
let asking = null;
api.addEventListener("key", () => {
  asking ??= askKey().then((key) => {
    asking = null;
    api.setKey(key);
    begin().catch(retry);
  });
});

// --- actions ---------------------------------------------------------------------------------------------------------

/** Send a prompt; `began` is when the hand moved, so that the time until the mask is painted can be told. */
view.send = async (prompt, began) => {
  insight.forget();
  const answer = await session.add(prompt);
  if (!answer) return undefined;
  // The frame that shows the mask is out when a task runs after it.
  requestAnimationFrame(() => setTimeout(() => {
    const { duration } = performance.measure("prompt-to-mask", { start: began, end: performance.now() });
    const model = 1000 * (answer.seconds?.total ?? 0);
    window.volsam.lastServerMs = model;
    const told = `${duration.toFixed(0)} ms to the mask, ${model.toFixed(0)} of them on the server`;
    byId("times").textContent = byId("times").title = told;
  }));
  return tell(answer);
};

async function step(action) {
  insight.forget();
  const answer = await session[action]();
  if (answer?.done === false) messages.note(action === "undo" ? "There is nothing to undo." : "There is nothing to redo.");
  else if (answer) tell(answer);
}

function tell({ quality, volume_ml: volume }) {
  const sure = typeof quality === "number" ? `, expected Dice ${quality.toFixed(2)}` : "";
  messages.announce(`${session.current.name}: ${volume ? `${round(volume)} ml${sure}` : "no mask"}`);
}

async function deletePrompt() {
  const prompt = session.prompts.find(({ id }) => id === view.chosen);
  view.chosen = null;
  if (prompt) await session.removePrompt(prompt.id);
  else await session.removeLast();
}

function lookAtObject() {
  const box = session.masks.boxes.get(session.state?.current);
  if (box && session.current.voxels) view.moveTo(box.low.map((low, axis) => (low + box.high[axis] - 1) / 2));
}

view.ask = ask;
view.choose = (prompt) => {
  view.chosen = view.chosen === prompt.id ? null : prompt.id;
  const middle = prompt.low?.map((low, axis) => (low + prompt.high[axis]) / 2);
  const place = prompt.position ?? prompt.points?.[0] ?? middle;
  if (place) view.moveTo(place);
  panel.paintPrompts();
};

// --- buttons and keys ------------------------------------------------------------------------------------------------

const commands = {
  p: () => tools.choose("point"),
  b: () => tools.choose("box"),
  s: () => tools.choose("scribble"),
  l: () => tools.choose("lasso"),
  x: () => tools.choose("look"),
  t: () => tools.toggleSign(),
  f: () => tools.toggleDeep(),
  Escape: () => tools.cancel(),
  Delete: deletePrompt,
  Backspace: deletePrompt,
  r: () => step("reset"),
  e: () => session.selectNext(1),
  "shift e": () => session.selectNext(-1),
  n: () => session.newObject(),
  v: () => session.toggle("visible"),
  k: () => session.toggle("locked"),
  F2: () => byId("objects").querySelector("[aria-current=true] .name")?.select(),
  h: lookAtObject,
  w: () => view.nextWindow(),
  u: () => insight.toggle(),
  g: () => insight.next(),
  m: () => toggle("show-masks", "showMasks"),
  c: () => toggle("show-crosshair", "showCrosshair"),
  i: () => toggle("smooth", "smooth"),
  0: () => view.planes.forEach((plane) => plane.fit()),
  1: () => view.enlarge("axial"),
  2: () => view.enlarge("coronal"),
  3: () => view.enlarge("sagittal"),
  4: () => view.enlarge("space"),
  a: () => setSize(after(Object.keys(SIZES), document.documentElement.dataset.size)),
  d: () => {
    setTheme(after(["dark", "light"], document.documentElement.dataset.theme));
    localStorage.setItem(THEME_PLACE, document.documentElement.dataset.theme);
  },
  "?": () => byId("help-sheet").showModal(),
  undo: () => step("undo"),
  redo: () => step("redo"),
  save: () => session.state && save(session, messages),
  plane: (event) => view.volume && view.planes.some((plane) => plane.canvas === event.target && tools.key(plane, event)),
};

const BUTTONS = {
  undo: commands.undo, redo: commands.redo, reset: commands.r, sign: commands.t, deep: commands.f, save: commands.save,
  theme: commands.d, size: commands.a, help: commands["?"], doubt: commands.u, next: commands.g, fit: commands[0],
  "show-masks": commands.m, "show-crosshair": commands.c, smooth: commands.i, open: () => start.show(open),
};

for (const [name, { name: word, key }] of Object.entries(TOOLS)) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: "tool", title: `${word} (${key.toUpperCase()})` });
  button.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true">${PICTURES[name]}</svg>${word}`;
  button.dataset.tool = name;
  button.addEventListener("click", () => tools.choose(name));
  byId("tools").append(button);
}
for (const [id, command] of Object.entries(BUTTONS)) byId(id).addEventListener("click", () => command());
byId("model").addEventListener("change", async ({ target }) => {
  if (!session.state) return;
  if (await session.setModel(target.value)) fitTools();
  else target.value = session.state.model;
});
for (const plane of view.planes) tools.listen(plane);
fillSheet(byId("keys"));
listen(commands);

function toggle(id, field) {
  view[field] = !view[field];
  byId(id).setAttribute("aria-pressed", view[field]);
  view.repaint();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

function setSize(size) {
  document.documentElement.dataset.size = size;
  localStorage.setItem("volsam-size", size);
  view.textScale = SIZES[size];
  view.repaint();
}

function after(all, one) {
  return all[(all.indexOf(one) + 1) % all.length];
}

// --- what buttons show -----------------------------------------------------------------------------------------------

tools.addEventListener("change", paintTools);
session.addEventListener("objects", () => {
  const { current, state } = session;
  byId("undo").disabled = !current?.can_undo;
  byId("redo").disabled = !current?.can_redo;
  byId("reset").disabled = !current?.prompts;
  byId("model").value = state.model;
  paintTools();
});
view.addEventListener("window", () => {
  const buttons = view.presets.map(([name, window]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    button.setAttribute("aria-pressed", String(window) === String(view.window));
    button.addEventListener("click", () => view.setWindow(window));
    return button;
  });
  byId("presets").replaceChildren(...buttons);
  const [low, high] = view.window;
  byId("window").textContent = `${round(low)} to ${round(high)}; drag with the right button to change.`;
});

function paintTools() {
  for (const button of byId("tools").children) {
    const { tool } = button.dataset;
    button.setAttribute("aria-pressed", tool === tools.tool);
    button.disabled = Boolean(session.state) && tool !== "look" && !session.takes(tool);
  }
  const plus = tools.positive;
  byId("sign").dataset.sign = plus ? "plus" : "minus";
  const sign = `M5 12h14${plus ? "M12 5v14" : ""}`;
  const picture = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${sign}"/></svg>`;
  byId("sign").innerHTML = `${picture}${plus ? "Add" : "Take away"}`;
  byId("deep").hidden = tools.tool !== "box";
  byId("deep").textContent = tools.deep ? "3D box" : "One slice";
  byId("hint").textContent = session.current?.locked ? "This object is locked: K unlocks it." : tools.hint;
}

const bright = matchMedia("(prefers-color-scheme: light)").matches;
setTheme(localStorage.getItem(THEME_PLACE) ?? (bright ? "light" : "dark"));
setSize(localStorage.getItem("volsam-size") ?? "normal");
paintTools();
begin().catch(retry);
