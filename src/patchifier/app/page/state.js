// What the views share: the server's status, one selected song, the seeds of Similar, the selection of the map.

import { track } from "./api.js";

const events = new EventTarget();

export const state = {
  status: null,
  song: null,
  like: [],
  unlike: [],
  mode: "near",
  weights: {},
  drawn: [], // ids of the path on the map
  left: "", // id of the song that was selected when Similar was left
  lasso: [], // ids that were selected on the map
};

export function on(name, call, signal = undefined) {
  events.addEventListener(name, (event) => call(event.detail), { signal });
}

export function tell(name, detail = null) {
  events.dispatchEvent(new CustomEvent(name, { detail }));
}

/** Make a song the selected one of all views. */
export function select(song) {
  if (!song || state.song?.id === song.id) return;
  state.song = song;
  keep("song", song.id.startsWith("upload-") ? "" : song.id);
  tell("song", song);
}

/** The song that was selected last time, if this table has it. */
export async function restore() {
  const id = kept("song");
  if (!id) return;
  try {
    if (!state.song) select(await track(id));
  } catch {
    keep("song", "");
  }
}

export function seed(song, kind = "like") {
  const other = kind === "like" ? "unlike" : "like";
  state[other] = state[other].filter((one) => one.id !== song.id);
  if (!state[kind].some((one) => one.id === song.id)) state[kind] = [...state[kind], song];
}

/** Seed a song, and tell so. */
export function want(song, kind) {
  seed(song, kind);
  tell("seeds");
}

export function kept(name, fallback = "") {
  try {
    return localStorage.getItem(`patchifier.${name}`) ?? fallback;
  } catch {
    return fallback;
  }
}

export function keep(name, text) {
  try {
    localStorage.setItem(`patchifier.${name}`, text);
  } catch {
    // Without storage the page works; it only forgets when it is closed.
  }
}

// --- addresses: #/similar?like=a,b ---

export function address() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { view: path || "library", query: new URLSearchParams(query) };
}

export function go(view, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  location.hash = `#/${view}${query ? `?${query}` : ""}`;
}

/** Change the address without a new entry in the history and without drawing the view again. */
export function note(view, parameters) {
  const entries = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null);
  const query = entries.map(([key, value]) => `${key}=${encodeURIComponent(value).replaceAll("%2C", ",")}`).join("&");
  history.replaceState(null, "", `#/${view}${query ? `?${query}` : ""}`);
}
