// Taking masks out of a session: into a file of this computer, or beside the scan.

import { ask, askSave } from "./sheets.js";

/** Ask what to save and how, and do it. */
export async function save(session, messages) {
  const { api } = session;
  const choice = await askSave(session);
  if (!choice) return;
  try {
    if (choice.place === "beside") {
      const format = choice.format === "dcm" ? "dicom_seg" : choice.format;
      const wish = { tag: choice.tag, format, objects: choice.objects };
      const saved = await beside(api, wish);
      if (saved) messages.note(`${saved.replaced ? "Replaced" : "Saved as"} ${saved.path} in the folder of studies.`);
      return;
    }
    const { path, name } = wanted(session, choice);
    hand(await (await api.response("GET", path)).blob(), name);
    messages.note("The masks were downloaded.");
  } catch (error) {
    messages.error(error);
  }
}

/** Write labels beside the scan; null if older ones were there and are to stay. */
async function beside(api, wish) {
  try {
    return await api.call("POST", "session/save", { ...wish, replace: false });
  } catch (error) {
    if (error.code !== "exists") throw error;
    const yes = await ask(`Labels of this scan are in labels/${wish.tag} already. Replace them?`);
    return yes ? api.call("POST", "session/save", { ...wish, replace: true }) : null;
  }
}

function wanted({ state, current }, { objects, format }) {
  const named = objects ? current.name.replace(/[^\p{L}\p{N}_-]+/gu, "_") : "labels";
  const name = `${state.name}_${named}.${format}`;
  if (objects && format !== "dcm") return { name, path: `session/objects/${objects[0]}/mask.${format}` };
  return { name, path: `session/labels.${format}${objects ? `?objects=${objects.join(",")}` : ""}` };
}

function hand(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
