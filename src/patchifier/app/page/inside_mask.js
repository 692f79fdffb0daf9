// The masked model: hide patches, see what is drawn in their place, and how large the error is.

import { post } from "./api.js";
import { bar, button, bytes, clock, debounce, el, errorMessage, fill, loading } from "./dom.js";
import { paint } from "./mel.js";
import { player } from "./player.js";
import { slider } from "./slider.js";
import { on } from "./state.js";

const PANES = [
  ["original", "Original"],
  ["masked", "Masked"],
  ["reconstructed", "Reconstructed"],
  ["error", "Error"],
];

/** Draw the section for one window of a song. */
export function masking(view, place, data) {
  view.leaveMask?.abort();
  view.leaveMask = new AbortController();
  view.signal.addEventListener("abort", () => view.leaveMask.abort());
  const mask = { data, hidden: new Set(), run: 0, view, panes: {}, sound: null };
  const ratio = slider("Masked", view.share, {
    max: 0.95, step: 0.05, name: "Share of patches to mask", text: (value) => `${Math.round(100 * value)} %`,
    change: (value) => {
      view.share = value;
      mask.random();
    },
  });
  mask.random = debounce(() => reconstruct(mask, { ratio: view.share, seed: view.seed }), 120);
  mask.chosen = debounce(() => reconstruct(mask, { masked: [...mask.hidden].sort((one, other) => one - other) }), 200);
  mask.result = el("div.mask-result", { "aria-live": "polite" });
  const again = button("Other patches", () => {
    view.seed += 1;
    mask.random();
  }, { kind: "small" });
  const clear = button("None", () => {
    mask.hidden.clear();
    mark(mask);
    mask.chosen();
  }, { kind: "small" });
  const panes = PANES.map(([name, title]) => pane(mask, name, title));
  fill(
    place,
    el("h2", { id: "mask-title" }, "What the model fills in"),
    el("p.lead", {}, "What has the model learnt about music? Stretches of the song are hidden from it, and it guesses them from the rest."),
    el("p.lead", {}, `The picture, a log-mel spectrogram, has time from left to right, low tones below, and loud ones bright. A patch is a stretch of ${(data.patch_frames * data.frame_s).toFixed(2)} s: click or drag over patches to hide them.`),
    el("div.mask-controls", {}, ratio, el("div.buttons", {}, again, clear)),
    el("div.panes", {}, panes),
    mask.result,
  );
  on("time", (seconds) => heads(mask, seconds), view.leaveMask.signal);
  mask.random();
}

// --- panes ---

function pane(mask, name, title) {
  const { data } = mask;
  const canvas = el("canvas.mel", { role: "img", "aria-label": `${title} spectrogram` });
  const head = el("div.playhead", { hidden: true });
  const extra = el("span.small.soft");
  const hear = name === "original" || name === "reconstructed" ? button("Hear", () => listen(mask, name), { kind: "quiet small", "aria-label": `Hear the ${title.toLowerCase()}` }) : null;
  const stage = el("div.mel-stage", {}, canvas, head);
  mask.panes[name] = { canvas, head, extra, stage };
  if (name === "original" || name === "masked") {
    paint(canvas, bytes(data.log_mel), { rows: data.n_mels, columns: data.n_frames });
    stage.append(grid(mask, name));
  }
  return el("figure.pane", {}, el("figcaption", {}, el("b", {}, title), extra, hear), stage);
}

/** One check box for each patch, over the spectrogram: pointer, or arrow keys and Space. */
function grid(mask, name) {
  const { data } = mask;
  const width = (100 * data.patch_frames) / data.n_frames;
  let drawing = null;
  const set = (index, hide) => {
    if (mask.hidden.has(index) === hide) return;
    if (hide) mask.hidden.add(index);
    else mask.hidden.delete(index);
    mask.run += 1; // an answer to what was asked before would undo this
    mark(mask);
    mask.chosen();
  };
  const boxes = Array.from({ length: data.n_patches }, (_, index) =>
    el("span.patch", {
      role: "checkbox", "aria-checked": "false", "data-patch": index, tabIndex: index || name === "original" ? -1 : 0, "aria-label": `Hide patch ${index + 1}, ${clock(data.start_s + index * data.patch_frames * data.frame_s)}`,
      style: { left: `${index * width}%`, width: `${width}%` },
    }),
  );
  const whole = el(`div.patches.${name}`, { role: "group", "aria-label": "Patches" }, boxes);
  const under = (event) => {
    const hit = document.elementFromPoint(event.clientX, event.clientY)?.dataset?.patch;
    return hit === undefined ? -1 : Number(hit);
  };
  whole.addEventListener("pointerdown", (event) => {
    const index = under(event);
    if (index < 0) return;
    event.preventDefault();
    drawing = !mask.hidden.has(index);
    set(index, drawing);
    whole.setPointerCapture(event.pointerId);
  });
  whole.addEventListener("pointermove", (event) => {
    if (drawing === null) return;
    const index = under(event);
    if (index >= 0) set(index, drawing);
  });
  const stop = () => (drawing = null);
  whole.addEventListener("pointerup", stop);
  whole.addEventListener("pointercancel", stop);
  whole.addEventListener("keydown", (event) => {
    const index = boxes.indexOf(event.target);
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: boxes.length - 1 }[event.key];
    if (event.key === " " || event.key === "Enter") set(index, !mask.hidden.has(index));
    else if (boxes[to]) {
      boxes[index].tabIndex = -1;
      boxes[to].tabIndex = 0;
      boxes[to].focus();
    } else return;
    event.preventDefault();
  });
  return whole;
}

function mark(mask) {
  for (const name of ["original", "masked"]) {
    mask.panes[name].stage.querySelectorAll(".patch").forEach((box, index) => box.setAttribute("aria-checked", String(mask.hidden.has(index))));
  }
  mask.panes.masked.extra.textContent = `${mask.hidden.size} of ${mask.data.n_patches} patches hidden`;
}

function heads(mask, seconds) {
  const { data, view, panes } = mask;
  const here = player.song?.id === view.song.id && seconds >= data.start_s && seconds <= data.end_s;
  const share = (100 * (seconds - data.start_s)) / (data.n_frames * data.frame_s);
  Object.values(panes).forEach(({ head }) => {
    head.hidden = !here || share > 100;
    head.style.left = `${share}%`;
  });
}

// --- what the model draws ---

async function reconstruct(mask, what) {
  const { data, view, panes } = mask;
  mask.run += 1;
  const { run } = mask;
  if (what.masked && !what.masked.length) {
    fill(mask.result, el("p.soft.small", {}, "Nothing is hidden, so there is nothing to draw."));
    for (const name of ["reconstructed", "error"]) panes[name].canvas.getContext("2d").clearRect(0, 0, 1e5, 1e5);
    return;
  }
  if (!mask.result.childElementCount) fill(mask.result, loading("The model draws the patches"));
  try {
    const answer = await post(`api/inside/${encodeURIComponent(view.song.id)}/reconstruct`, { start_s: data.start_s, ...what }, { signal: view.leaveMask.signal });
    if (run !== mask.run) return;
    mask.hidden = new Set(answer.masked);
    mark(mask);
    const shape = { rows: data.n_mels, columns: data.n_frames };
    paint(panes.reconstructed.canvas, bytes(answer.reconstructed), shape);
    paint(panes.error.canvas, bytes(answer.error), shape);
    fill(mask.result, errors(answer));
  } catch (error) {
    if (run === mask.run && error.name !== "AbortError") fill(mask.result, errorMessage(error));
  }
}

/** The mean squared error of the hidden patches, beside those of two guesses that need no model. */
function errors({ mse, model_name: model }) {
  const rows = [
    [model, mse.model, ""],
    ["Interpolation between visible patches", mse.interpolation, "soft"],
    ["Mean of the visible patches", mse.visible_mean, "soft"],
  ].filter(([, value]) => value !== null && value !== undefined);
  const most = Math.max(...rows.map(([, value]) => value), 1e-9);
  return el(
    "div.errors",
    {},
    el("h3", {}, "How far the guesses are off: mean squared error of the hidden patches (less is better)"),
    rows.map(([name, value, kind]) => el("div.agreement.error-row", {}, el("span", {}, name), bar(value / most, kind), el("span.number", {}, value.toFixed(4)))),
  );
}

/** Sound from a spectrogram has lost its phase; the server estimates it (Griffin-Lim). */
function listen(mask, kind) {
  const { data, view, panes } = mask;
  player.audio.pause();
  mask.sound?.pause();
  const query = new URLSearchParams({ start_s: data.start_s, kind, masked: [...mask.hidden].sort((one, other) => one - other).join(",") });
  const sound = new Audio(`api/inside/${encodeURIComponent(view.song.id)}/sound?${query}`);
  mask.sound = sound;
  const say = (text) => (panes[kind].extra.textContent = text);
  say("Making sound");
  sound.addEventListener("playing", () => say("Playing a rough inversion"));
  sound.addEventListener("ended", () => say(""));
  sound.addEventListener("error", () => say("The sound could not be made. Try again."));
  view.leaveMask.signal.addEventListener("abort", () => sound.pause());
  view.signal.addEventListener("abort", () => sound.pause());
  player.audio.addEventListener("play", () => sound.pause(), { once: true });
  sound.play().catch(() => {});
  mask.sound.dataset.kind = kind;
}
