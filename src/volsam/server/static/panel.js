// The panel on the right: objects, prompts and measurements of the session.

const ICONS = {
  eye: '<path d="M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12Z"/><circle cx="12" cy="12" r="3"/>',
  hidden: '<path d="M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12ZM4 4l16 16"/>',
  lock: '<rect x="5" y="11" width="14" height="9" rx="2"/><path d="M8 11V8a4 4 0 0 1 8 0v3"/>',
  free: '<rect x="5" y="11" width="14" height="9" rx="2"/><path d="M8 11V8a4 4 0 0 1 7.5-2"/>',
  bin: '<path d="M5 7h14M10 7V4h4v3m-7 0 1 13h8l1-13"/>',
};
const WORDS = { point: "Point", box: "Box", scribble: "Scribble", mask: "Mask" };

/** Paints the lists and sends what is clicked in them to the session. */
export class Panel {
  constructor(view) {
    this.view = view;
    const { session } = view;
    this.objects = document.getElementById("objects");
    this.prompts = document.getElementById("prompts");
    this.measures = document.getElementById("measurements");
    session.addEventListener("objects", () => this.#paintObjects());
    session.addEventListener("prompts", () => this.paintPrompts());
    document.getElementById("new-object").addEventListener("click", () => session.newObject());
    for (const radio of document.querySelectorAll("input[name=policy]")) {
      radio.addEventListener("change", () => session.setPolicy(radio.value));
    }
  }

  #paintObjects() {
    const { session } = this.view;
    const active = document.activeElement;
    if (this.objects.contains(active) && active.matches(".name")) {
      // A name that is being typed stays; the rest waits until that is done.
      if (!this.late) active.addEventListener("blur", () => setTimeout(() => this.#paintObjects()), { once: true });
      this.late = true;
      const current = String(session.state.current);
      for (const row of this.objects.children) row.setAttribute("aria-current", row.dataset.object === current);
      return;
    }
    this.late = false;
    const focused = active?.dataset?.focus;
    this.objects.replaceChildren(...session.objects.map((object) => this.#objectRow(object)));
    if (focused) this.objects.querySelector(`[data-focus="${focused}"]`)?.focus();
    const { policy } = session.state;
    for (const radio of document.querySelectorAll("input[name=policy]")) radio.checked = radio.value === policy;
  }

  #objectRow(object) {
    const { session } = this.view;
    const row = document.createElement("li");
    const current = object.id === session.state.current;
    row.dataset.object = object.id;
    row.setAttribute("aria-current", current);
    const colour = element("input", { type: "color", value: object.colour, ariaLabel: `Colour of ${object.name}` });
    colour.addEventListener("change", () => session.change(object.id, { colour: colour.value }));
    const name = element("input", { className: "name", value: object.name, title: object.name, spellcheck: false, ariaLabel: "Name" });
    name.dataset.focus = `name-${object.id}`;
    name.addEventListener("focus", () => current || session.select(object.id));
    name.addEventListener("keydown", (event) => event.key === "Enter" && name.blur());
    name.addEventListener("change", () => {
      const typed = name.value.trim();
      if (typed && typed !== object.name) session.change(object.id, { name: typed });
      else name.value = object.name;
    });
    const seen = this.#toggle(object, "visible", object.visible ? "eye" : "hidden", !object.visible, "Show", "V");
    const lock = this.#toggle(object, "locked", object.locked ? "lock" : "free", object.locked, "Lock", "K");
    const bin = icon("bin", `Delete ${object.name}`);
    bin.addEventListener("click", async () => {
      if (!object.voxels || (await this.view.ask(`Delete ${object.name} and its mask?`))) session.deleteObject(object.id);
    });
    row.append(colour, name, seen, lock, bin, element("span", { className: "facts", textContent: facts(object) }));
    row.addEventListener("click", (event) => {
      if (!current && !event.target.closest("button, input")) session.select(object.id);
    });
    return row;
  }

  #toggle(object, field, picture, pressed, word, key) {
    const button = icon(picture, `${word} ${object.name}`, `${word} (${key})`);
    button.dataset.focus = `${field}-${object.id}`;
    button.setAttribute("aria-pressed", field === "visible" ? object.visible : pressed);
    if (field === "visible") button.classList.toggle("off", !object.visible);
    button.addEventListener("click", () => this.view.session.toggle(field, object.id));
    return button;
  }

  paintPrompts() {
    const { session, chosen } = this.view;
    document.getElementById("prompt-count").textContent = session.prompts.length || "";
    if (!session.prompts.length) {
      return this.prompts.replaceChildren(element("li", { className: "none", textContent: "None yet for this object." }));
    }
    const rows = session.prompts.map((prompt) => {
      const row = document.createElement("li");
      row.setAttribute("aria-current", prompt.id === chosen);
      const go = element("button", { type: "button", className: "go", title: "Go there" });
      const sign = prompt.positive === false ? "−" : "+";
      go.append(
        element("span", { className: sign === "+" ? "plus" : "minus", textContent: sign }),
        element("span", { textContent: WORDS[prompt.type] ?? prompt.type }),
        element("span", { className: "where", textContent: place(prompt) }),
      );
      go.addEventListener("click", () => this.view.choose(prompt));
      const bin = icon("bin", `Delete prompt ${prompt.id}`, "Delete this prompt (Del)");
      bin.addEventListener("click", () => session.removePrompt(prompt.id));
      row.append(go, bin);
      return row;
    });
    this.prompts.replaceChildren(...rows);
    rows[rows.length - 1].scrollIntoView({ block: "nearest" });
    return undefined;
  }

  /** Show measurements, null for none. */
  paintMeasures(answer) {
    if (!answer?.voxels) {
      this.measures.replaceChildren(element("dd", { className: "none", textContent: "No mask yet." }));
      return;
    }
    const flat = answer.longest_in_plane;
    const rows = [["Volume", `${round(answer.volume_ml)} ml`]];
    if (answer.longest_diameter) rows.push(["Longest diameter", `${answer.longest_diameter.mm.toFixed(1)} mm`]);
    if (flat) {
      const across = flat.across ? ` × ${flat.across.mm.toFixed(1)}` : "";
      const { plane } = this.view.planes.find((one) => one.plane.axis === flat.axis);
      rows.push([`In ${plane.name} slice ${flat.index + 1}`, `${flat.mm.toFixed(1)}${across} mm`]);
    }
    const { intensity } = answer;
    if (intensity) rows.push(["Mean intensity", `${round(intensity.mean)} ± ${round(intensity.std)}`]);
    this.measures.replaceChildren(
      ...rows.flatMap(([word, value]) => [element("dt", { textContent: word }), element("dd", { textContent: value })]),
    );
  }
}

/** An element with properties. */
export function element(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

function icon(name, label, title = label) {
  const button = element("button", { type: "button", className: "icon", title, ariaLabel: label });
  button.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true">${ICONS[name]}</svg>`;
  return button;
}

function facts({ voxels, volume_ml, quality, prompts }) {
  if (!voxels) return prompts ? "no voxels" : "empty";
  const sure = quality === null || quality === undefined ? "" : ` · expected Dice ${quality.toFixed(2)}`;
  return `${round(volume_ml)} ml${sure}`;
}

function place(prompt) {
  if (prompt.position) return prompt.position.map(Math.round).join(", ");
  if (prompt.points) return `${prompt.points.length} points`;
  if (prompt.low) return `${prompt.low.map(Math.round).join(", ")} – ${prompt.high.map(Math.round).join(", ")}`;
  return "";
}

/** A number as people read it: three digits that matter. */
export function round(value) {
  const size = Math.abs(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  return size >= 0.1 || size === 0 ? value.toFixed(2) : value.toPrecision(2);
}
