// Map: every song is a point; near points sound alike. Colour, lasso, hover, play, a path.

import * as api from "./api.js";
import { bar, button, download, el, errorMessage, fill, iconButton, loading, plural, speak } from "./dom.js";
import { KINDS, OTHER, hexes, viridis } from "./palette.js";
import { picker } from "./picker.js";
import { player } from "./player.js";
import { renderer, scatter } from "./scatter.js";
import { scatter2d } from "./scatter2d.js";
import { songList, songName } from "./songs.js";
import { go, on, select, state, tell } from "./state.js";

const COLOURS = [
  ["cluster", "Group"],
  ["artist", "Artist"],
  ["album", "Album"],
  ["genre", "Genre"],
  ["year", "Year"],
];

const LABEL = "label:"; // before the name of a head
const LIBRARIES = "It first loads libraries, which takes some seconds.";
const FIRST = `A first view, by the two directions in which the songs differ most. The map is being made. ${LIBRARIES}`;
const CLICK = "Click a point to hear it. Draw a lasso around songs to list them.";
const GROUPS = "A group is a set of songs that sound alike, found by computer (k-means). Group 1 is the largest.";
const GROUPS_LATER = "Groups of songs that sound alike are found with the map.";

export async function show(place, { query, signal }) {
  place.classList.add("wide");
  fill(place, loading("Asking for the map"));
  const status = await api.get("api/map", {}, { signal });
  if (status.state === "done") return draw(place, { query, signal });
  if (status.first && status.state === "running") return drawFirst(place, { query, signal });
  return wait(place, { query, signal, status });
}

// --- before there is a map ---

function wait(place, { query, signal, status }) {
  const share = status.progress ?? 0;
  if (status.state === "running") {
    fill(place, el("div.empty", {}, el("h2", {}, "Drawing the map"), el("p", {}, `This is done once for a library, and kept. ${LIBRARIES} ${plural(Math.round(status.seconds ?? 0), "second")} so far.`), el("div.map-wait", {}, share > 0 ? bar(share) : el("div.bar.waiting", {}, el("i")))));
    const timer = setTimeout(async () => {
      try {
        const next = await api.get("api/map", {}, { signal });
        if (signal.aborted) return;
        if (next.state === "done") await draw(place, { query, signal });
        else if (next.first && next.state === "running") await drawFirst(place, { query, signal });
        else wait(place, { query, signal, status: next });
      } catch (error) {
        if (!signal.aborted) fill(place, errorMessage(error, () => show(place, { query, signal })));
      }
    }, 700);
    signal.addEventListener("abort", () => clearTimeout(timer));
    return;
  }
  const begin = async () => {
    try {
      wait(place, { query, signal, status: await api.post("api/map") });
    } catch (error) {
      fill(place, errorMessage(error, begin));
    }
  };
  const text = status.error || "Every song becomes a point, and songs that sound alike lie close. It takes some seconds to load libraries, and then about a minute for ten thousand songs.";
  fill(place, el("div.empty", {}, el("h2", {}, "A map of the library"), el("p", {}, text), button("Draw the map", begin, { kind: "primary" })));
}

/** Show the first points, and the map in their place when it is made. */
async function drawFirst(place, { query, signal }) {
  const first = new AbortController();
  signal.addEventListener("abort", () => first.abort());
  const view = await draw(place, { query, signal: first.signal, first: true });
  const timer = setInterval(async () => {
    const next = await api.get("api/map", {}, { signal }).catch(() => null);
    if (signal.aborted || !next || next.state === "running") return;
    clearInterval(timer);
    first.abort();
    if (next.state === "done") await draw(place, { query, signal, wanted: view?.wanted });
    else wait(place, { query, signal, status: next });
  }, 1000);
  signal.addEventListener("abort", () => clearInterval(timer));
}

// --- the map ---

/** `wanted` is the colour that was chosen on a view before this one; `first`, whether this is that view. */
async function draw(place, { query, signal, wanted, first = false }) {
  delete place.dataset.ready;
  const [raw, ids] = await Promise.all([api.buffer("api/map/points"), api.get("api/map/ids")]);
  const points = parse(raw);
  if (!ids.length) return fill(place, el("div.empty", {}, el("h2", {}, "No songs yet"), el("p", {}, "The map needs songs. Start `patchifier app FOLDER` with a folder that holds music.")));
  const view = {
    place, signal, points, ids, first, wanted: wanted ?? query.get("by") ?? "", heads: [], painted: null, at: new Map(ids.map((id, index) => [id, index])), choosing: false,
    canvas: el("canvas", { tabIndex: 0, role: "application", "aria-label": `Map of ${plural(ids.length, "song")}. Arrow keys go to the next song in a direction, Enter plays it.` }),
    card: el("div.map-card", { hidden: true }), legend: el("div.map-legend", { role: "group", "aria-label": "Colours", tabIndex: 0 }), side: el("aside.map-side", { "aria-label": "Songs" }, el("p.soft", {}, CLICK)), hint: el("p.map-hint.small", { role: "status", hidden: true }),
  };
  fill(place, toolbar(view), el("div.map-stage", {}, view.canvas, view.card, view.hint), view.legend, view.side);
  if (first) hint(view, FIRST, { busy: true });
  const name = query.get("renderer") === "canvas" ? "" : renderer();
  place.dataset.renderer = name || "canvas";
  const handlers = { over: (index) => hover(view, index), out: () => unhover(view), click: (index) => clicked(view, index), lasso: (indices) => lassoed(view, indices) };
  stretch(points.x, view.canvas.clientWidth / Math.max(1, view.canvas.clientHeight));
  view.plot = await (name ? scatter : scatter2d)(view.canvas, points, handlers);
  signal.addEventListener("abort", () => view.plot.destroy());
  if (signal.aborted) return view.plot.destroy();
  if (!name && !first) hint(view, "Drawn without WebGL, which this browser does not offer. Many points move more slowly.");
  view.canvas.addEventListener("keydown", (event) => arrows(view, event));
  on("song", () => follow(view), signal);
  on("theme", () => {
    view.plot.theme();
    paint(view);
  }, signal);
  if (view.wanted.startsWith(LABEL)) await view.headsAdded;
  await paint(view);
  if (state.drawn.length) await drawPath(view, state.drawn);
  else follow(view);
  place.dataset.ready = "true";
  return view;
}

/** uint32 n, then n times float32 x, float32 y, uint16 cluster; x and y are scaled to [-0.95, 0.95]. */
function parse(raw) {
  const data = new DataView(raw);
  const n = data.getUint32(0, true);
  const [x, y, cluster] = [new Float32Array(n), new Float32Array(n), new Uint16Array(n)];
  for (let index = 0; index < n; index += 1) {
    const from = 4 + 10 * index;
    x[index] = data.getFloat32(from, true);
    y[index] = data.getFloat32(from + 4, true);
    cluster[index] = data.getUint16(from + 8, true);
  }
  for (const axis of [x, y]) {
    const low = axis.reduce((least, value) => Math.min(least, value), Infinity);
    const high = axis.reduce((most, value) => Math.max(most, value), -Infinity);
    for (let index = 0; index < n; index += 1) axis[index] = high > low ? 1.9 * ((axis[index] - low) / (high - low)) - 0.95 : 0;
  }
  return { x, y, cluster };
}

/** The map has no units: it is as wide as its frame. */
function stretch(x, aspect) {
  const by = Math.min(1.7, Math.max(0.5, aspect));
  x.forEach((value, index) => (x[index] = value * by));
}

function toolbar(view) {
  const change = () => {
    view.wanted = by.value;
    return paint(view);
  };
  const by = el("select", { "aria-label": "Colour by", onchange: change }, COLOURS.map(([value, text]) => el("option", { value }, text)));
  view.by = by;
  choose(view);
  view.headsAdded = addHeads(view);
  view.lasso = button("Lasso", () => setLasso(view, view.lasso.getAttribute("aria-pressed") !== "true"), { "aria-pressed": "false", title: "Draw around songs to select them. Or hold Shift and drag." });
  view.route = button("Path", () => startPath(view), { title: "From the selected song to another" });
  return el(
    "div.map-bar",
    {},
    el("h1", {}, "Map"),
    el("label.map-by", {}, el("span.small.soft", {}, "Colour"), by),
    view.lasso,
    view.route,
    button("Fit", () => view.plot.fit(), { title: "Show all songs" }),
    picker("Find a song", (song) => {
      select(song);
      if (view.at.has(song.id)) view.plot.zoomTo([view.at.get(song.id)]);
    }),
  );
}

async function addHeads(view) {
  try {
    view.heads = await api.get("api/heads");
    view.by.append(...view.heads.map((head) => el("option", { value: `${LABEL}${head.name}` }, `Label: ${head.name}`)));
    choose(view);
  } catch {
    // Labels are an addition; the other colours work without them.
  }
}

/** Select the wanted colour, if it is one of the list by now. */
function choose(view) {
  if ([...view.by.options].some((option) => option.value === view.wanted)) view.by.value = view.wanted;
}

// --- colours and legend ---

async function paint(view) {
  try {
    const by = view.by.value;
    const answer = await api.get("api/map/colours", { by }, { signal: view.signal });
    const how = answer.kind === "number" ? numbers(answer) : kinds(answer);
    await view.plot.colours(how);
    fill(view.legend, how.legend, measured(view, by), by === "cluster" && el("p.small.soft", {}, view.first ? GROUPS_LATER : GROUPS));
    view.painted = { by, ...answer };
    if (!view.listed) follow(view);
  } catch (error) {
    if (!view.signal.aborted) fill(view.legend, errorMessage(error));
  }
}

/** The accuracy of the head whose labels are shown, if it is known. */
function measured(view, by) {
  const found = view.heads.find((head) => by === `${LABEL}${head.name}`)?.accuracy;
  if (!Number.isFinite(found?.accuracy)) return null;
  const percent = (value) => `${Math.round(100 * value)} %`;
  const [low, high] = found.interval ?? [];
  const range = Number.isFinite(low) && Number.isFinite(high) ? ` (95 % interval: ${percent(low)} to ${percent(high)})` : "";
  return el("p.small.soft.map-measured", {}, `Accuracy ${percent(found.accuracy)}${range}`);
}

/** The label of a song, where the points have the colours of a head. */
function labelOf({ painted }, index) {
  if (!painted?.by.startsWith(LABEL)) return null;
  const name = painted.names[painted.values[index]];
  return name && el("p.small.map-label", {}, `${painted.by.slice(LABEL.length)}: ${name}`);
}

/** The ten most frequent kinds get a colour; the rest is grey. */
function kinds({ values, names }) {
  const counts = new Map();
  values.forEach((value) => value !== null && value !== undefined && counts.set(value, (counts.get(value) ?? 0) + 1));
  const shown = [...counts.keys()].sort((one, other) => counts.get(other) - counts.get(one)).slice(0, KINDS.length);
  const order = new Map(shown.map((value, index) => [value, index]));
  const rest = values.length - shown.reduce((sum, value) => sum + counts.get(value), 0);
  const item = (tint, name, count) => el("li", {}, el("i", { style: { background: tint } }), el("span", {}, name), el("span.soft", {}, count.toLocaleString("en")));
  return {
    kind: "category",
    values: Float32Array.from(values, (value) => order.get(value) ?? shown.length),
    palette: [...KINDS.slice(0, shown.length), OTHER],
    legend: el("ul", {}, shown.map((value, index) => item(KINDS[index], names?.[value] ?? `Group ${value + 1}`, counts.get(value))), rest > 0 && item(OTHER, "Others, or not known", rest)),
  };
}

function numbers({ values }) {
  const known = values.filter((value) => value !== null && value !== undefined);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const span = Math.max(high - low, 1e-9);
  const palette = [OTHER, ...hexes(viridis, 63)];
  const stops = hexes(viridis, 8).join(", ");
  return {
    kind: "number",
    values: Float32Array.from(values, (value) => (value === null || value === undefined ? 0 : (1 + 62 * ((value - low) / span)) / 63)),
    palette,
    legend: known.length
      ? el("div.map-ramp", {}, el("span", {}, String(low)), el("i", { style: { background: `linear-gradient(90deg, ${stops})` } }), el("span", {}, String(high)))
      : el("p.small", {}, "No song of this library has this tag."),
  };
}

// --- pointing, choosing ---

const REST_MS = 40; // a pointer that passes over many points asks for none of them
let pointed = -1;

async function hover(view, index) {
  pointed = index;
  await new Promise((resolve) => setTimeout(resolve, REST_MS));
  if (pointed !== index) return;
  try {
    const song = await api.track(view.ids[index]);
    if (pointed !== index) return;
    fill(view.card, songName(song), el("span.small.soft", {}, [song.genre, song.year].filter(Boolean).join(" · ")));
    const [x, y] = view.plot.at(index) ?? [0, 0];
    const right = x > view.canvas.clientWidth - 240;
    Object.assign(view.card.style, { left: `${right ? x - 236 : x + 14}px`, top: `${Math.min(y + 8, view.canvas.clientHeight - 80)}px` });
    view.card.hidden = false;
  } catch {
    view.card.hidden = true;
  }
}

function unhover(view) {
  pointed = -1;
  view.card.hidden = true;
}

async function clicked(view, index) {
  try {
    const song = await api.track(view.ids[index]);
    if (view.choosing) return finishPath(view, song);
    return await player.play(song, { list: [song] });
  } catch (error) {
    return fill(view.side, errorMessage(error));
  }
}

/** Show the selected song on the map and beside it. */
function follow(view) {
  const { song } = state;
  if (!song) return fill(view.side, el("p.soft", {}, CLICK));
  const index = view.at.get(song.id);
  if (index !== undefined) view.plot.select([index]);
  if (view.listed) return undefined;
  return fill(
    view.side,
    el("h2", {}, "Selected song"),
    songList([song], { label: "Selected song", end: () => [iconButton("similar", `Songs similar to ${song.title}`, () => tell("similar", song)), iconButton("inside", `Look inside ${song.title}`, () => tell("inside", song))] }),
    index !== undefined && labelOf(view, index),
    index === undefined && el("p.small.soft", {}, "This song is not on the map: it was uploaded, or came after the map was drawn."),
  );
}

function setLasso(view, active) {
  view.lasso.setAttribute("aria-pressed", String(active));
  view.plot.lassoMode(active);
  hint(view, active ? "Draw around the songs." : "");
}

async function lassoed(view, indices) {
  setLasso(view, false);
  state.lasso = indices.map((index) => view.ids[index]);
  view.plot.select(indices);
  await list(view, state.lasso, `${plural(indices.length, "song")} selected`, [button("Use as a label", () => go("teach", { from: "map" }), { kind: "small" })]);
}

/** List songs beside the map; of many, the first hundred. */
async function list(view, ids, title, more = []) {
  view.listed = true;
  const clear = () => {
    view.listed = false;
    state.drawn = [];
    view.plot.path([]);
    view.plot.select([]);
    follow(view);
  };
  try {
    const songs = await Promise.all(ids.slice(0, 100).map(api.track));
    const save = async () => {
      const { blob, name } = await api.postForFile("api/playlist", { ids, name: title }, "playlist.m3u8");
      download(blob, name);
    };
    fill(
      view.side,
      el("div.side-head", {}, el("h2", {}, title), iconButton("close", "Clear the list", clear)),
      el("div.buttons", {}, songs.length > 0 && button("Play", () => player.play(songs[0], { list: songs }), { kind: "small" }), ids.length > 0 && button("Save as M3U8", () => save().catch((error) => hint(view, error.message)), { kind: "small" }), more),
      songs.length > 0 && songList(songs, { label: title }),
      ids.length > 100 && el("p.small.soft", {}, `and ${plural(ids.length - 100, "more song")}`),
    );
    speak(title);
  } catch (error) {
    fill(view.side, errorMessage(error));
  }
}

function hint(view, text, { busy = false } = {}) {
  fill(view.hint, text, busy && el("span.bar.waiting", { "aria-hidden": "true" }, el("i")));
  view.hint.hidden = !text;
}

// --- a path ---

function startPath(view) {
  if (!state.song || !view.at.has(state.song.id)) return hint(view, "First click the song where the path begins.");
  view.choosing = true;
  return hint(view, `From ${state.song.title}: click the song where the path ends.`);
}

async function finishPath(view, song) {
  view.choosing = false;
  hint(view, "");
  try {
    const { results } = await api.post("api/path", { start: state.song.id, end: song.id, count: 10 });
    api.remember(results.map((one) => one.track));
    await drawPath(view, results.map((one) => one.track.id));
  } catch (error) {
    fill(view.side, errorMessage(error));
  }
}

async function drawPath(view, ids) {
  state.drawn = ids;
  const indices = ids.map((id) => view.at.get(id)).filter((index) => index !== undefined);
  view.plot.path(indices);
  view.plot.select(indices);
  await list(view, ids, `Path of ${plural(ids.length, "song")}`);
}

// --- keys ---

/** Arrow keys go to the next song in a direction, from the middle of the map if none is selected. */
function arrows(view, event) {
  const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  if (event.key === "Enter" && state.song) {
    if (view.choosing) finishPath(view, state.song);
    else player.play(state.song);
  }
  if (!way) return;
  event.preventDefault();
  const from = view.at.get(state.song?.id);
  const best = from === undefined ? nearest(view.points, (x, y) => Math.hypot(x, y)) : nearest(view.points, ahead(view.points, from, way));
  if (best >= 0) reach(view, best);
}

/** How far a point is in a direction; what lies aside counts twice, what lies behind does not count. */
function ahead({ x, y }, from, [dx, dy]) {
  return (px, py) => {
    const [across, up] = [px - x[from], py - y[from]];
    const along = across * dx + up * dy;
    return along > 0 ? along + 2 * Math.abs(across * dy + up * dx) : Infinity;
  };
}

function nearest({ x, y }, distance) {
  let [best, least] = [-1, Infinity];
  for (let index = 0; index < x.length; index += 1) {
    const far = distance(x[index], y[index]);
    if (far < least) [best, least] = [index, far];
  }
  return best;
}

async function reach(view, index) {
  try {
    const song = await api.track(view.ids[index]);
    select(song);
    hover(view, index);
    speak([song.title, song.artist].filter(Boolean).join(", "));
  } catch (error) {
    hint(view, error.message);
  }
}
