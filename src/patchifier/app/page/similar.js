// Similar: songs like some and unlike others, a path between songs, or a mix.

import { post, postForFile, remember, track } from "./api.js";
import { bar, button, debounce, download, el, errorMessage, fill, iconButton, loading, plural, speak, without } from "./dom.js";
import { picker } from "./picker.js";
import { player } from "./player.js";
import { slider } from "./slider.js";
import { songList } from "./songs.js";
import { go, note, on, seed, select, state, tell, want } from "./state.js";
import { whyButton } from "./why.js";

const MODES = [
  ["near", "Similar"],
  ["path", "Path"],
  ["mix", "Mix"],
];
const LEADS = {
  near: "The songs nearest to those you like, away from those you do not.",
  path: "From the first song to the last in even steps, by way of those between.",
  mix: "A list that begins near your songs. Drift lets it wander.",
};

const COUNTS = { near: 20, path: 10, mix: 25 };
const settings = { count: 0, drift: 0.3, artist: "", genre: "", album: "", year_from: "", year_to: "", max_per_artist: 0, max_per_album: 0 };
let results = [];

export async function show(place, { query, signal }) {
  await readAddress(query);
  signal.addEventListener("abort", () => (state.left = state.song?.id ?? ""));
  const seeds = el("div.seeds");
  const upload = el("div", { "aria-live": "polite" });
  const list = el("div.results", { "aria-live": "off" });
  const title = el("h1");
  const lead = el("p.lead");
  const view = { seeds, upload, list, title, lead, signal, run: 0 };
  view.update = () => {
    drawSeeds(view);
    return find(view);
  };
  view.soon = debounce(() => find(view), 60);
  const modes = el(
    "div.segments",
    { role: "group", "aria-label": "What to look for" },
    MODES.map(([name, text]) => el("button", { type: "button", "data-mode": name, onclick: () => setMode(view, name) }, text)),
  );
  view.modes = modes;
  view.controls = el("div");
  fill(
    place,
    el("div.page-head", {}, el("div", {}, title, lead), modes),
    el("div.split", {}, el("aside", { "aria-label": "What to start from" }, el("section.panel", {}, seeds, upload, adding(view)), view.controls), list),
  );
  on("seeds", view.update, signal);
  on("upload", (what) => drawUpload(upload, what), signal);
  drawControls(view);
  await view.update();
}

/** Seeds from the address; else the song that was selected in another view; else those of before. */
async function readAddress(query) {
  const ids = (name) => (query.get(name) ?? "").split(",").filter(Boolean);
  if (query.has("mode")) state.mode = query.get("mode");
  if (query.has("like")) state.like = await Promise.all(ids("like").map(track));
  if (query.has("unlike")) state.unlike = await Promise.all(ids("unlike").map(track));
  const other = !query.has("like") && state.song && state.song.id !== state.left;
  if (other) Object.assign(state, { like: [], unlike: [] });
  if (!state.like.length && state.song) seed(state.song);
}

function setMode(view, mode) {
  state.mode = mode;
  drawControls(view);
  view.update();
}

// --- seeds ---

function drawSeeds({ seeds, modes, title, lead, choose }) {
  modes.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.mode === state.mode)));
  const { like, unlike, mode } = state;
  const first = like[0]?.title ?? "a song";
  const titles = { near: like.length > 1 ? `Like ${plural(like.length, "song")}` : `Like ${first}`, path: like.length > 1 ? `${first} to ${like.at(-1).title}` : "A path between two songs", mix: "A mix" };
  title.textContent = like.length ? titles[mode] : "Find music by its sound";
  lead.textContent = LEADS[mode];
  choose.hidden = mode === "path"; // an upload cannot stand in a path
  const number = (index) => (mode === "path" ? el("span.small", {}, `${index + 1}`) : null);
  fill(
    seeds,
    el("h2", {}, mode === "path" ? "Songs of the path" : "More like"),
    el("div.chips", { role: "list" }, like.map((song, index) => chip(song, "like", number(index)))),
    unlike.length > 0 && mode === "near" && [el("h2", {}, "Less like"), el("div.chips", { role: "list" }, unlike.map((song) => chip(song, "unlike")))],
  );
}

function chip(song, kind, before = null) {
  const remove = () => {
    state[kind] = state[kind].filter((one) => one.id !== song.id);
    tell("seeds");
  };
  const flip = () => want(song, kind === "like" ? "unlike" : "like");
  return el(
    `span.chip.${kind}`,
    { role: "listitem" },
    before,
    el("b", { title: song.title }, song.title),
    state.mode === "near" && iconButton(kind === "like" ? "minus" : "plus", `Move ${song.title} to “${kind === "like" ? "Less" : "More"} like”`, flip),
    iconButton("close", `Remove ${song.title} from this search`, remove),
  );
}

function adding(view) {
  const file = el("input", { type: "file", accept: "audio/*,video/mp4,.opus,.flac", multiple: true, hidden: true, "aria-label": "Audio files" });
  file.addEventListener("change", () => {
    tell("files", [...file.files]);
    file.value = "";
  });
  const add = (song) => {
    seed(song);
    select(song);
    tell("seeds");
  };
  view.choose = button("Choose a file, or drop one here", () => file.click(), { kind: "small" });
  return el("div.adding", {}, picker("Add a song", add), file, view.choose);
}

function drawUpload(place, what) {
  if (!what) return fill(place);
  if (what.error) return fill(place, el("div.message.error", { role: "alert" }, el("p", {}, el("b", {}, what.name)), el("p.small", {}, without(what.name, what.error.message))));
  const text = what.share < 1 ? `Sending ${what.name}` : `Embedding ${what.name}`;
  return fill(place, el("p.small.soft", {}, text), what.share < 1 ? bar(what.share) : el("div.bar.waiting", {}, el("i")));
}

// --- weights, filters, caps ---

function drawControls(view) {
  const wide = matchMedia("(min-width: 821px)").matches;
  const field = (name, label, type = "text") => {
    const input = el("input", { type, value: settings[name] || "", placeholder: name === "count" ? COUNTS[state.mode] : type === "number" ? "any" : "", min: 0, autocomplete: "off" });
    input.addEventListener("input", debounce(() => {
      settings[name] = type === "number" ? Number(input.value) || 0 : input.value.trim();
      find(view);
    }, 250));
    return el("label.field", {}, label, input);
  };
  fill(
    view.controls,
    state.mode === "mix" && el("section.panel", {}, slider("Drift", settings.drift, { max: 1, step: 0.05, text: (value) => value.toFixed(2), change: (value) => {
      settings.drift = value;
      view.soon();
    } })),
    state.mode === "near" && weighing(view, wide),
    el(
      "details.panel",
      { open: wide && Object.entries(settings).some(([key, value]) => value && !["count", "drift"].includes(key)) },
      el("summary", {}, "Only some songs"),
      el(
        "div.fields",
        {},
        field("artist", "Artist"), field("album", "Album"), field("genre", "Genre"), field("count", "Songs", "number"),
        field("year_from", "From year", "number"), field("year_to", "To year", "number"),
        field("max_per_artist", "Most per artist", "number"), field("max_per_album", "Most per album", "number"),
      ),
    ),
  );
}

const MOST_WEIGHT = 4;
const GROUPS = { sound: "Sound as a whole", timbre: "Timbre", harmony: "Harmony", rhythm: "Rhythm" };

/** One slider for each group of slices; the slices themselves below, for those who want them. */
function weighing(view, open) {
  const slices = state.status?.slices ?? [];
  if (!slices.length) return null;
  const one = ({ name, title }) => weight(view, title || name, [name], () => {});
  const fine = el("div.sliders", {}, slices.map(one));
  const groups = Object.entries(GROUPS).map(([group, title]) => {
    const names = slices.filter((slice) => slice.group === group).map((slice) => slice.name);
    return names.length > 0 && weight(view, title, names, () => fill(fine, slices.map(one)));
  });
  const reset = button("Reset", () => {
    state.weights = {};
    drawControls(view);
    find(view);
  }, { kind: "quiet small" });
  return el(
    "details.panel",
    { open },
    el("summary", {}, "What counts"),
    el("p.small.soft", {}, `1 is the usual weight. At 2, each counts as much as ${slices.some(({ group }) => group === "sound") ? "the sound as a whole" : "what is learnt"} at 1.`),
    el("div.sliders", {}, groups, el("details.finer", {}, el("summary.small", {}, "In detail"), fine), reset),
  );
}

/** Slices share what their group gains above 1: so a group of four counts no more than one of two. */
function weight(view, label, names, changed) {
  const mean = names.reduce((sum, name) => sum + (state.weights[name] ?? 1), 0) / names.length;
  const known = mean > 1 ? Math.min(MOST_WEIGHT, 1 + names.length * (mean - 1)) : mean;
  return slider(label, known, {
    max: MOST_WEIGHT, step: 0.1, name: `Weight of ${label}`, text: (value) => value.toFixed(1),
    change: (value) => {
      const each = value > 1 ? 1 + (value - 1) / names.length : value;
      names.forEach((name) => (state.weights[name] = each));
      changed();
      view.soon();
    },
  });
}

function request() {
  const { artist, album, genre, year_from, year_to, count, max_per_artist, max_per_album } = settings;
  const filters = Object.fromEntries(Object.entries({ artist, album, genre, year_from, year_to }).filter(([, value]) => value));
  const like = state.like.map((song) => song.id);
  const common = { count: count || COUNTS[state.mode], filters, max_per_artist, max_per_album };
  if (state.mode === "path") return ["api/path", { start: like[0], end: like.at(-1), waypoints: like.slice(1, -1), ...common }];
  if (state.mode === "mix") return ["api/mix", { seeds: like, drift: settings.drift, ...common }];
  return ["api/similar", { like, unlike: state.unlike.map((song) => song.id), weights: state.weights, ...common }];
}

// --- results ---

async function find(view) {
  const { like, unlike, mode } = state;
  note("similar", { like: like.map((song) => song.id).join(","), unlike: unlike.map((song) => song.id).join(","), mode: mode === "near" ? "" : mode });
  view.run += 1;
  const { run } = view;
  results = [];
  if (!like.length) return fill(view.list, start(mode === "near" && unlike.length > 0));
  const sent = mode === "path" && like.find((song) => song.id.startsWith("upload-"));
  if (sent) return fill(view.list, el("div.empty", {}, el("h2", {}, "Only songs of the library"), el("p", {}, `${sent.title} is a file that you chose, and not in the library, so it cannot stand in a path. Remove it, and add a song.`)));
  if (mode === "path" && like.length < 2) return fill(view.list, el("div.empty", {}, el("h2", {}, "One more song"), el("p", {}, "A path needs a first and a last song. Add the song where it should end.")));
  if (!view.list.childElementCount) fill(view.list, loading("Comparing"));
  try {
    const answer = await post(...request(), { signal: view.signal });
    if (run !== view.run) return undefined;
    results = answer.results;
    remember(results.map((one) => one.track));
    drawResults(view, answer);
  } catch (error) {
    if (run === view.run && error.name !== "AbortError") fill(view.list, errorMessage(error, canPass(error) && (() => find(view))));
  }
  return undefined;
}

/** Whether the same request may be met later: what is refused for what it asks will not. */
function canPass({ status }) {
  return !status || status >= 500 || status === 429;
}

function start(unlikeAlone) {
  if (unlikeAlone) return el("div.empty", {}, el("h2", {}, "A song to be like"), el("p", {}, "What the songs should be less like is not enough: add a song that they should be more like."));
  return el("div.empty", {}, el("h2", {}, "Start from a song"), el("p", {}, "Add a song of your library by its name, or drop an audio file anywhere on this page. The file stays on this computer."));
}

function drawResults(view, answer) {
  const songs = results.map((one) => one.track);
  if (!songs.length) return fill(view.list, el("div.empty", {}, el("h2", {}, "No song is left"), el("p", {}, "The filters leave none. Take one away.")));
  const reasons = new Map();
  const list = songList(songs, {
    label: "Results",
    end: (song, index) => [meter(results[index].similarity), whyButton(near(index), song, (reason) => reasons.set(index, reason)), state.mode === "near" && actions(song)],
    below: (_, index) => reasons.get(index),
  });
  const saving = el("p.small", { role: "status" });
  fill(
    view.list,
    answer.note && el("p.message", { role: "note" }, answer.note),
    el(
      "div.results-head",
      {},
      el("span.soft.small", {}, plural(songs.length, "song")),
      el(
        "div.buttons",
        {},
        button("Play all", () => player.play(songs[0], { list: songs }), { kind: "small" }),
        state.mode !== "near" && button("Draw on the map", () => drawPath(songs), { kind: "small" }),
        button("Save as M3U8", () => save(songs, saving), { kind: "small" }),
      ),
    ),
    saving,
    list,
  );
  speak(`${plural(songs.length, "song")} found`);
  return undefined;
}

/** The song that a result's similarity is about. */
function near(index) {
  return state.mode === "near" ? state.like[0] : results[index - 1]?.track;
}

function meter(value) {
  return el("span.meter", { title: `Similarity ${value.toFixed(3)}` }, bar(value), el("span.number.small", {}, value.toFixed(2)));
}

function actions(song) {
  const as = (kind) => (event) => {
    event.stopPropagation();
    want(song, kind);
  };
  return [
    iconButton("plus", `More like ${song.title}`, as("like"), { class: "icon-button wide" }),
    iconButton("minus", `Less like ${song.title}`, as("unlike"), { class: "icon-button wide" }),
  ];
}

async function save(songs, place) {
  try {
    const name = state.mode === "near" ? `Like ${state.like[0].title}` : state.mode === "path" ? "Path" : "Mix";
    const { blob, name: file } = await postForFile("api/playlist", { ids: songs.map((song) => song.id), name }, "playlist.m3u8");
    download(blob, file);
    fill(place, `Saved as ${file}.`);
  } catch (error) {
    fill(place, errorMessage(error));
  }
}

function drawPath(songs) {
  state.drawn = songs.map((song) => song.id);
  go("map");
}
