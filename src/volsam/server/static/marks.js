// What lies over a slice: crosshair, prompts, diameters, the hint, what is being drawn, and letters. `on` is the Plane.

import { toPixel } from "./volume.js";

const POSITIVE = "#3ddc84";
const NEGATIVE = "#ff5c5c";
const CROSSHAIR = "#4cc9f0";
const NOTED = "#ffd166";

export function crosshair(on) {
  const { context, canvas, view } = on;
  const [x, y] = on.place(toPixel(on.plane, view.cursor)).map((value) => Math.round(value) + 0.5);
  const ratio = devicePixelRatio || 1;
  const gap = 9 * ratio;
  context.strokeStyle = CROSSHAIR;
  context.globalAlpha = 0.75;
  context.lineWidth = ratio;
  context.beginPath();
  for (const [a, b] of [[0, x - gap], [x + gap, canvas.width]]) context.moveTo(a, y), context.lineTo(b, y);
  for (const [a, b] of [[0, y - gap], [y + gap, canvas.height]]) context.moveTo(x, a), context.lineTo(x, b);
  context.stroke();
  context.globalAlpha = 1;
}

export function prompts(on) {
  for (const prompt of on.view.session.prompts) {
    const chosen = prompt.id === on.view.chosen;
    if (prompt.type === "point") point(on, prompt, chosen);
    if (prompt.type === "box") box(on, prompt.low, prompt.high, [], chosen);
    if (prompt.type === "scribble") stroke(on, prompt, chosen);
  }
}

function point(on, { position, positive }, chosen) {
  const away = Math.abs(position[on.plane.axis] - on.index);
  if (away > 2) return;
  const { context } = on;
  const ratio = devicePixelRatio || 1;
  const [x, y] = on.place(toPixel(on.plane, position));
  const radius = (chosen ? 9 : 7) * ratio;
  context.globalAlpha = away < 0.75 ? 1 : 0.35;
  context.lineWidth = (chosen ? 3 : 2) * ratio;
  context.fillStyle = positive ? POSITIVE : NEGATIVE;
  context.strokeStyle = "#000";
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.fill();
  context.stroke();
  context.beginPath(); // told apart by shape, too
  context.moveTo(x - radius / 2, y), context.lineTo(x + radius / 2, y);
  if (positive) context.moveTo(x, y - radius / 2), context.lineTo(x, y + radius / 2);
  context.stroke();
  context.globalAlpha = 1;
}

function box(on, low, high, dash, strong) {
  const { context, plane, index } = on;
  const ends = [Math.min(low[plane.axis], high[plane.axis]), Math.max(low[plane.axis], high[plane.axis])];
  if (index < ends[0] - 0.5 || index > ends[1] + 0.5) return;
  const a = toPixel(plane, low);
  const b = toPixel(plane, high);
  const [x0, y0] = on.place([Math.min(a[0], b[0]) - 0.5, Math.min(a[1], b[1]) - 0.5]);
  const [x1, y1] = on.place([Math.max(a[0], b[0]) + 0.5, Math.max(a[1], b[1]) + 0.5]);
  const ratio = devicePixelRatio || 1;
  context.lineWidth = (strong ? 3 : 2) * ratio;
  for (const [colour, shift] of [["#000", 1], [POSITIVE, 0]]) {
    context.strokeStyle = colour;
    context.setLineDash(dash);
    context.strokeRect(x0 + shift, y0 + shift, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
}

function stroke(on, { points, positive }, chosen) {
  const { context, plane, index } = on;
  const near = points.filter((point) => Math.abs(point[plane.axis] - index) < 0.75);
  if (!near.length) return;
  const ratio = devicePixelRatio || 1;
  context.fillStyle = positive ? POSITIVE : NEGATIVE;
  context.globalAlpha = chosen ? 1 : 0.75;
  for (const point of near) {
    const [x, y] = on.place(toPixel(plane, point));
    context.fillRect(x - 1.5 * ratio, y - 1.5 * ratio, 3 * ratio, 3 * ratio);
  }
  context.globalAlpha = 1;
}

export function diameters(on, { longest_in_plane: flat, longest_diameter: longest }) {
  const shown = [];
  if (flat) shown.push(flat, flat.across);
  if (longest) shown.push(longest);
  const { context, plane, index, view } = on;
  const ratio = devicePixelRatio || 1;
  for (const line of shown.filter(Boolean)) {
    const ends = [line.from, line.to].map((end) => view.volume.toVoxels(end));
    if (ends.some((end) => Math.abs(end[plane.axis] - index) > 0.75)) continue;
    const [from, to] = ends.map((end) => on.place(toPixel(plane, end)));
    for (const [colour, width] of [["#000", 4], [NOTED, 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * ratio;
      context.beginPath();
      context.moveTo(...from), context.lineTo(...to);
      context.stroke();
    }
    text(on, `${line.mm.toFixed(1)} mm`, to[0] + 6 * ratio, to[1] - 6 * ratio, "left", NOTED, 13);
  }
}

export function hint(on, voxel) {
  if (Math.abs(voxel[on.plane.axis] - on.index) > 0.75) return;
  const { context } = on;
  const ratio = devicePixelRatio || 1;
  const [x, y] = on.place(toPixel(on.plane, voxel));
  for (const [colour, width] of [["#000", 6], ["#ffb41f", 3]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * ratio;
    context.setLineDash([6 * ratio, 4 * ratio]);
    context.beginPath();
    context.arc(x, y, 14 * ratio, 0, 7);
    context.stroke();
  }
  context.setLineDash([]);
}

export function draft(on, { kind, points, low, high, positive }) {
  const { context } = on;
  const ratio = devicePixelRatio || 1;
  if (kind === "box") return box(on, low, high, [7 * ratio, 5 * ratio], true);
  context.lineJoin = context.lineCap = "round";
  for (const [colour, width] of [["#000", 5], [positive ? POSITIVE : NEGATIVE, 3]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * ratio;
    context.beginPath();
    points.forEach((point, n) => {
      const place = on.place(toPixel(on.plane, point));
      if (n) context.lineTo(...place);
      else context.moveTo(...place);
    });
    if (kind === "lasso") context.closePath();
    context.stroke();
  }
  return undefined;
}

/** Directions at the edges, the name of the plane, and voxel and value under the crosshair of the plane in use. */
export function letters(on) {
  const { canvas, plane, view } = on;
  const ratio = devicePixelRatio || 1;
  const edge = 14 * ratio;
  const sides = plane.letters;
  text(on, sides.left, edge, canvas.height / 2, "center");
  text(on, sides.right, canvas.width - edge, canvas.height / 2, "center");
  const narrow = canvas.width < 340 * ratio * view.textScale;
  if (!narrow) text(on, sides.top, canvas.width / 2, edge, "center");
  text(on, sides.bottom, canvas.width / 2, canvas.height - edge, "center");
  const name = `${plane.name[0].toUpperCase()}${plane.name.slice(1)}`;
  text(on, `${name}  ${on.index + 1} / ${plane.depth}`, edge - 4 * ratio, edge + 4 * ratio, "left", "#fff", 14);
  if (view.active !== plane.name) return;
  const value = view.volume.value(view.cursor);
  const words = `${view.cursor.join(", ")}   ${Number.isInteger(value) ? value : value.toPrecision(4)}`;
  text(on, words, edge - 4 * ratio, canvas.height - edge, "left", "#cfe9f5", 13);
}

function text(on, text, x, y, align, colour = NOTED, size = 15) {
  const { context } = on;
  const ratio = (devicePixelRatio || 1) * (on.view.textScale ?? 1);
  context.font = `600 ${size * ratio}px system-ui, "DejaVu Sans", sans-serif`;
  context.textAlign = align;
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = 3 * ratio;
  context.strokeStyle = "#000";
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}
