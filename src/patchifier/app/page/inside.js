// Inside: one song as the model gets it. The masked model is in inside_mask.js, the song's form in inside_form.js.

import { get, inside, track } from "./api.js";
import { clock, colour, el, errorMessage, fill, loading } from "./dom.js";
import { form } from "./inside_form.js";
import { masking } from "./inside_mask.js";
import { lane } from "./lane.js";
import { wave } from "./mel.js";
import { picker } from "./picker.js";
import { player } from "./player.js";
import { playButton } from "./songs.js";
import { note, on, select, state } from "./state.js";

export async function show(place, { query, signal }) {
  if (query.get("song")) select(await track(query.get("song")));
  on("song", () => draw(place, { start: 0, signal }), signal);
  await draw(place, { start: Number(query.get("start")) || 0, signal });
}

let leave = new AbortController(); // what belongs to the song that is shown ends with it

async function draw(place, { start, signal }) {
  const { song } = state;
  leave.abort();
  leave = new AbortController();
  if (!song) {
    fill(place, el("div.empty", {}, el("h2", {}, "Choose a song to look inside"), el("div.inside-pick", {}, picker("Find a song", select))));
    return;
  }
  note("inside", { song: song.id, start: start || "" });
  const ended = AbortSignal.any([signal, leave.signal]);
  const view = { song, signal: ended, share: 0.75, seed: 0, parts: {}, current: () => !ended.aborted };
  const facts = el("div.facts");
  const overview = el("section.section", { "aria-label": "The whole song" }, loading("Reading the song"));
  const masks = el("section.section", { "aria-labelledby": "mask-title" });
  const structure = el("section.section", { "aria-labelledby": "form-title" });
  fill(
    place,
    el("div.page-head", {}, el("div.inside-head", {}, playButton(song, () => [song]), el("div", {}, el("h1", {}, song.title), el("p.lead", {}, [song.artist, song.album, song.year].filter(Boolean).join(" · ") || song.path))), facts),
    overview, masks, structure,
  );
  try {
    const data = await inside(song.id, start);
    if (!view.current()) return;
    drawOverview(view, { overview, masks, data });
    masking(view, masks, data);
    form(view, structure);
    music(view, facts);
  } catch (error) {
    if (view.current()) fill(overview, errorMessage(error, () => draw(place, { start, signal })));
  }
}

/** The waveform of the whole song, the window that is looked at, and where the player is. */
function drawOverview(view, { overview, masks, data }) {
  const { song, signal } = view;
  const duration = data.duration_s;
  const canvas = el("canvas");
  const frame = el("div.window");
  const head = el("div.playhead", { hidden: true });
  const slider = el("input", { type: "range", min: 0, max: Math.max(0, duration - 1), step: 0.1, value: data.start_s, "aria-label": "Start of the window, in seconds" });
  const label = el("span.small.soft");
  const lanes = el("div.lanes");
  Object.assign(view.parts, { lanes, duration });
  let run = 0;

  const mark = ({ start_s: from, end_s: to }) => {
    frame.style.left = `${(100 * from) / duration}%`;
    frame.style.width = `${(100 * (to - from)) / duration}%`;
    label.textContent = `Window ${clock(from)} to ${clock(to)} of ${clock(duration)}. Drag to move it.`;
    slider.setAttribute("aria-valuetext", `${clock(from)} to ${clock(to)}`);
  };
  const length = data.end_s - data.start_s;
  slider.addEventListener("input", () => mark({ start_s: Number(slider.value), end_s: Math.min(duration, Number(slider.value) + length) }));
  slider.addEventListener("change", async () => {
    run += 1;
    const mine = run;
    try {
      const next = await inside(song.id, Number(slider.value));
      if (mine !== run || !view.current()) return;
      mark(next);
      note("inside", { song: song.id, start: next.start_s || "" });
      masking(view, masks, next);
    } catch (error) {
      fill(masks, errorMessage(error));
    }
  });
  const strip = el("div.overview", {}, canvas, frame, head, slider);
  strip.addEventListener("dblclick", (event) => {
    const { left, width } = strip.getBoundingClientRect();
    player.play(song, { list: [song], start: (duration * (event.clientX - left)) / width });
  });
  fill(overview, strip, lanes, label);
  const paint = () => wave(canvas, data.waveform, colour("wave"));
  const resized = new ResizeObserver(paint);
  resized.observe(canvas);
  signal.addEventListener("abort", () => resized.disconnect());
  on("theme", paint, signal);
  on("time", (seconds) => {
    head.hidden = player.song?.id !== song.id;
    head.style.left = `${(100 * seconds) / duration}%`;
  }, signal);
  mark(data);
}

/** A chord as a lead sheet writes it: "A minor" is Am. */
const short = (name) => name.replace(" major", "").replace(" minor", "m");

/** Tempo, key and chords, each with how strongly the sound says so. */
async function music(view, facts) {
  try {
    const { tempo, key, chords } = await get(`api/inside/${encodeURIComponent(view.song.id)}/music`, {}, { signal: view.signal });
    if (!view.current()) return;
    const fact = (name, value, sure) =>
      el("div.fact", {}, el("span.small.soft", {}, name), el("b", {}, value), el("span.small.soft", {}, sure));
    const sure = (one) => (one?.confidence === undefined || one.confidence === null ? "" : `strength ${one.confidence.toFixed(2)}`);
    fill(facts, fact("Tempo", tempo ? `${Math.round(tempo.bpm)} BPM` : "cannot be said", sure(tempo)), fact("Key", key ? key.name : "cannot be said", sure(key)));
    if (chords?.length) view.parts.lanes.append(lane("Chords", chords.map((one) => ({ ...one, label: short(one.name), title: one.name })), view));
  } catch (error) {
    if (view.current()) fill(facts, el("p.small.soft", {}, error.message));
  }
}
