// Start: the server's status, the views behind the tabs, keys, dropped files, the theme.

import * as api from "./api.js";
import { el, errorMessage, fill, icon, speak } from "./dom.js";
import * as inside from "./inside.js";
import * as library from "./library.js";
import * as map from "./map.js";
import { player } from "./player.js";
import * as similar from "./similar.js";
import { address, go, keep, on, restore, seed, select, state, tell } from "./state.js";
import * as teach from "./teach.js";

const VIEWS = {
  library: { title: "Library", ...library },
  similar: { title: "Similar", ...similar },
  map: { title: "Map", ...map },
  inside: { title: "Inside", ...inside },
  teach: { title: "Teach", ...teach },
};

const main = document.getElementById("view");
let shown = { name: "", leave: new AbortController() };

async function show() {
  const { view, query } = address();
  const name = VIEWS[view] ? view : "library";
  shown.leave.abort();
  shown = { name, leave: new AbortController() };
  for (const link of document.querySelectorAll("#tabs a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[name].title} · Patchifier`;
  const { signal } = shown.leave;
  main.className = `view-${name}`;
  main.scrollTop = 0;
  const place = el("div.page");
  fill(main, place);
  try {
    await VIEWS[name].show(place, { query, signal });
  } catch (error) {
    if (!signal.aborted) fill(place, errorMessage(error, show));
  }
}

function drawTabs() {
  const links = Object.entries(VIEWS).map(([name, view]) => el("a", { href: `#/${name}`, "data-view": name }, view.title));
  fill(document.getElementById("tabs"), links);
}

// --- status ---

async function refresh() {
  const before = state.status;
  let lost = false;
  try {
    state.status = await api.get("api/status");
  } catch (error) {
    state.status ??= { name: "", n_tracks: 0, slices: [], job: null, message: error.message };
    state.status = { ...state.status, message: error.message };
    lost = true;
  }
  const { name, n_tracks: count } = state.status;
  const label = name ? `${name} · ${count.toLocaleString("en")}` : "";
  document.getElementById("table-name").textContent = lost ? "No answer from the server" : label;
  if (JSON.stringify(before) !== JSON.stringify(state.status)) tell("status", state.status);
  const running = state.status.job?.state === "running";
  setTimeout(refresh, running ? 700 : 5000);
}

// --- theme ---

function drawTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const toggle = document.getElementById("theme");
  fill(toggle, icon(dark ? "sun" : "moon"));
  const label = dark ? "Light colours" : "Dark colours";
  toggle.setAttribute("aria-label", label);
  toggle.title = label;
  toggle.onclick = () => {
    root.dataset.theme = dark ? "light" : "dark";
    keep("theme", root.dataset.theme);
    drawTheme();
    tell("theme");
  };
}

// --- keys ---

const TYPING = "input:not([type=range]):not([type=checkbox]), textarea, select";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const target = event.target;
  if (event.key === "Escape" && target.matches?.("input[type=search]")) target.blur();
  if (target.matches?.(TYPING)) return;
  if (event.key === "/") {
    const field = main.querySelector("input[type=search]");
    if (field) field.focus();
    else go("library", { focus: "search" });
    event.preventDefault();
  } else if (event.key === " " && !target.closest?.("button, a, summary, [role=checkbox]")) {
    player.toggle();
    event.preventDefault();
  }
});

// --- dropped files ---

const drop = document.getElementById("drop");
const isFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

document.addEventListener("dragover", (event) => {
  if (!isFile(event)) return;
  event.preventDefault();
  drop.hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.hidden = true;
});
document.addEventListener("drop", (event) => {
  if (!isFile(event)) return;
  event.preventDefault();
  drop.hidden = true;
  receive([...event.dataTransfer.files]);
});

/** Send files one by one; each becomes a seed of Similar, or its reason is shown there. */
async function receive(files) {
  // a file that is dropped on another view, or on a path, where it cannot stand, is the first seed
  let fresh = address().view !== "similar" || state.mode === "path";
  if (fresh) {
    state.mode = "near";
    go("similar");
  }
  for (const file of files) {
    try {
      tell("upload", { name: file.name, share: 0 });
      const song = await api.upload(file, (share) => tell("upload", { name: file.name, share }));
      api.remember([song]);
      if (fresh) Object.assign(state, { like: [], unlike: [], mode: "near" });
      fresh = false;
      seed(song);
      select(song);
      tell("upload", null);
      tell("seeds");
      speak(`${song.title} was added.`);
    } catch (error) {
      tell("upload", { name: file.name, error });
    }
  }
}
on("files", receive);
on("similar", (song) => {
  Object.assign(state, { like: [], unlike: [], mode: "near" });
  seed(song);
  go("similar", { like: song.id });
});
on("inside", (song) => go("inside", { song: song.id }));

drawTabs();
drawTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawTheme();
  tell("theme");
});
player.draw(document.getElementById("player"));
window.addEventListener("hashchange", show);
await refresh();
await restore();
await show();
