// Keyboard shortcuts, and the sheet that lists them.

import { element } from "./panel.js";

/** Shortcuts as the sheet shows them: `[keys, what they do]`; documentation has the same list. */
export const SHEET = {
  Tools: [
    ["P", "Point"],
    ["B", "Box"],
    ["S", "Scribble"],
    ["L", "Lasso"],
    ["X", "Look: move the crosshair only"],
    ["T", "Add or take away"],
    ["Alt or Shift + click", "The other sign, once"],
    ["F", "Boxes: one slice or three dimensions"],
    ["Esc", "Give up what is being drawn"],
  ],
  Steps: [
    ["Ctrl Z", "Undo"],
    ["Ctrl Y, Ctrl Shift Z", "Redo"],
    ["Del", "Delete the chosen prompt, else the last"],
    ["R", "Take all prompts away"],
    ["Ctrl S", "Save"],
  ],
  Objects: [
    ["E, Shift E", "Next object, previous object"],
    ["N", "New object"],
    ["V", "Show or hide the object"],
    ["K", "Lock or unlock the object"],
    ["F2", "Rename the object"],
  ],
  "On a plane, with the keyboard": [
    ["Arrow keys", "Move the crosshair by a voxel; with Shift by ten"],
    ["Page Up, Page Down", "Next slice, previous slice"],
    ["Enter", "Click at the crosshair; begin and end a shape"],
    ["Shift Enter", "Click with the other sign"],
    ["+  −  0", "Zoom in, out, whole slices"],
    ["H", "Centre on the object"],
    ["Tab", "Next plane"],
  ],
  "What is shown": [
    ["1  2  3  4", "Axial, coronal, sagittal, 3D large; again: all four"],
    ["W", "Next window"],
    ["U", "Where the model is in doubt"],
    ["G", "Go where a click would tell most"],
    ["M", "Masks"],
    ["C", "Crosshair"],
    ["I", "Smooth or plain voxels"],
    ["A", "Larger type"],
    ["D", "Light or dark"],
    ["?", "This sheet"],
  ],
  Mouse: [
    ["Wheel", "Slices"],
    ["Ctrl + wheel", "Zoom"],
    ["Right drag", "Window: sideways width, up and down level"],
    ["Middle drag, Space + drag", "Move the picture"],
    ["Drag in 3D", "Turn"],
  ],
};

/** Send keys to the page's commands, see viewer.js. Nothing happens while one types or a dialog is open. */
export function listen(commands) {
  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const typing = event.target.matches?.("input:not([type=radio]):not([type=color]), select, textarea");
    const control = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (control && key === "s") return run(event, commands.save);
    if (typing) return undefined;
    if (control && key === "z") return run(event, event.shiftKey ? commands.redo : commands.undo);
    if (control && key === "y") return run(event, commands.redo);
    if (control || event.metaKey) return undefined;
    const onPlane = event.target.matches?.("[data-view] canvas");
    if (onPlane && commands.plane(event)) return event.preventDefault();
    const name = event.shiftKey && key.length === 1 && commands[`shift ${key}`] ? `shift ${key}` : key;
    if (event.altKey || !Object.hasOwn(commands, name)) return undefined;
    return run(event, commands[name]);
  });
}

function run(event, command) {
  event.preventDefault();
  command();
}

/** Fill the sheet. */
export function fillSheet(place) {
  for (const [title, rows] of Object.entries(SHEET)) {
    place.append(element("h2", { textContent: title }));
    for (const [keys, text] of rows) {
      const row = document.createElement("div");
      const words = document.createElement("span");
      for (const key of keys.split(", ")) words.append(element("kbd", { textContent: key }), " ");
      row.append(element("span", { textContent: text }), words);
      place.append(row);
    }
  }
}
