// Library: search as you type, sort, play. Only the rows in sight are drawn, so 50,000 songs scroll as well as 50.

import { get, post, remember } from "./api.js";
import { bar, button, clock, debounce, el, errorMessage, fill, iconButton, plural, speak, without } from "./dom.js";
import { showDuplicates } from "./duplicates.js";
import { player } from "./player.js";
import { mark, playButton, songName } from "./songs.js";
import { note, on, select, state, tell } from "./state.js";

const PAGE = 100;
const COLUMNS = [
  ["title", "Title"],
  ["artist", "Artist"],
  ["album", "Album"],
  ["year", "Year"],
  ["duration", "Length"],
];

class Rows {
  constructor({ query, signal }) {
    this.search = query.get("search") ?? "";
    this.sort = query.get("sort") ?? "title";
    this.order = query.get("order") ?? "asc";
    this.signal = signal;
    this.total = 0;
    this.reset();
  }

  reset() {
    this.songs = [];
    this.asked = new Set();
    this.run = (this.run ?? 0) + 1;
  }

  /** Ask for the pages that hold rows first to last, once each. */
  async need(first, last, then) {
    for (let page = Math.floor(first / PAGE); page <= Math.floor(last / PAGE); page += 1) {
      if (this.asked.has(page)) continue;
      this.asked.add(page);
      const { run, search, sort, order } = this;
      const answer = await get("api/tracks", { search, sort, order, offset: page * PAGE, limit: PAGE }, { signal: this.signal });
      if (run !== this.run) return;
      this.total = answer.total;
      remember(answer.tracks).forEach((song, index) => (this.songs[page * PAGE + index] = song));
      then();
    }
  }
}

export async function show(place, { query, signal }) {
  if (query.has("duplicates")) return showDuplicates(place, { signal });
  return showSongs(place, { query, signal });
}

async function showSongs(place, { query, signal }) {
  const rows = new Rows({ query, signal });
  const count = el("p.soft.small", { role: "status" });
  const field = el("input", { type: "search", value: rows.search, placeholder: "Search title, artist, album, path or year", "aria-label": "Search", autocomplete: "off", spellcheck: "false" });
  const head = el("div.row.row-head", { role: "row" });
  const body = el("div.rows-body", { role: "rowgroup" });
  const grid = el("div.rows", { role: "grid", "aria-label": "Songs", tabIndex: -1 }, el("div.rows-head", { role: "rowgroup" }, head), body);
  const trouble = el("div");
  const job = el("div.job");
  fill(place, el("h1.visually-hidden", {}, "Library"), job, el("div.library-top", {}, el("div.search", {}, field, el("kbd", { "aria-hidden": "true" }, "/")), count, el("a.button", { href: "#/library?duplicates=1" }, "Duplicates")), trouble, grid);

  let focus = 0;
  const height = () => parseInt(getComputedStyle(grid).getPropertyValue("--row"), 10);

  const drawHead = () => {
    const cells = COLUMNS.map(([name, title]) => {
      const sorted = rows.sort === name;
      const arrow = sorted ? (rows.order === "asc" ? " ↑" : " ↓") : "";
      return el(
        `span.cell.${name}`,
        { role: "columnheader", "aria-sort": sorted ? (rows.order === "asc" ? "ascending" : "descending") : "none" },
        el("button", { type: "button", onclick: () => sortBy(name) }, title + arrow),
      );
    });
    fill(head, el("span.cell", { role: "columnheader" }, el("span.visually-hidden", {}, "Play")), cells, el("span.cell", { role: "columnheader" }, el("span.visually-hidden", {}, "Actions")));
  };

  const draw = () => {
    const size = height();
    const first = Math.max(0, Math.floor(grid.scrollTop / size) - 6);
    const last = Math.min(rows.total - 1, Math.ceil((grid.scrollTop + grid.clientHeight) / size) + 6);
    body.style.height = `${rows.total * size}px`;
    grid.setAttribute("aria-rowcount", rows.total + 1);
    const held = document.activeElement?.closest?.(".row[data-index]");
    const inRow = held && grid.contains(held);
    const lines = [];
    for (let index = first; index <= last; index += 1) lines.push(row(rows, index, { size, focus }));
    fill(body, lines);
    mark(body);
    if (inRow) body.querySelector(`[data-index="${focus}"]`)?.focus({ preventScroll: true });
    count.textContent = rows.search ? `${plural(rows.total, "song")} found` : plural(rows.total, "song");
    if (!rows.total) fill(body, nothing(rows));
  };

  const load = async () => {
    const size = height();
    const first = Math.floor(grid.scrollTop / size);
    try {
      await rows.need(first, Math.min(first + Math.ceil(grid.clientHeight / size) + 6, Math.max(0, rows.total - 1)), draw);
      fill(trouble);
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      rows.asked.clear();
      fill(trouble, errorMessage(error, again));
    }
  };
  const again = async () => {
    rows.reset();
    await load();
    draw();
  };
  const restart = () => {
    note("library", { search: rows.search, sort: rows.sort === "title" ? "" : rows.sort, order: rows.order === "asc" ? "" : rows.order });
    grid.scrollTop = 0;
    focus = 0;
    drawHead();
    return again();
  };
  const sortBy = (name) => {
    rows.order = rows.sort === name && rows.order === "asc" ? "desc" : "asc";
    rows.sort = name;
    restart();
  };

  field.addEventListener("input", debounce(async () => {
    rows.search = field.value.trim();
    await restart();
    speak(count.textContent);
  }));
  field.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown") return;
    move(0);
    event.preventDefault();
  });

  const move = (to) => {
    if (to < 0 || to >= rows.total) return;
    focus = to;
    const size = height();
    const top = head.offsetHeight;
    if (to * size < grid.scrollTop) grid.scrollTop = to * size;
    else if ((to + 1) * size > grid.scrollTop + grid.clientHeight - top) grid.scrollTop = (to + 1) * size - grid.clientHeight + top;
    draw();
    body.querySelector(`[data-index="${to}"]`)?.focus({ preventScroll: true });
    if (rows.songs[to]) select(rows.songs[to]);
  };
  grid.addEventListener("keydown", (event) => {
    const line = event.target.closest(".row[data-index]");
    if (!line || event.target !== line) return;
    const index = Number(line.dataset.index);
    const step = Math.max(1, Math.floor(grid.clientHeight / height()) - 1);
    const to = { ArrowDown: index + 1, ArrowUp: index - 1, PageDown: Math.min(rows.total - 1, index + step), PageUp: Math.max(0, index - step), Home: 0, End: rows.total - 1 }[event.key];
    if (to !== undefined) move(to);
    else if (event.key === "Enter") player.play(rows.songs[index], { list: rows.songs.filter(Boolean) });
    else return;
    event.preventDefault();
  });
  grid.addEventListener("scroll", () => {
    draw();
    load();
  });
  const resized = new ResizeObserver(() => rows.total && draw());
  resized.observe(grid);
  signal.addEventListener("abort", () => resized.disconnect());

  let known = state.status?.n_tracks;
  on("status", (status) => {
    drawJob(job, status);
    if (status.n_tracks !== known) {
      known = status.n_tracks;
      rows.reset();
      load();
    }
  }, signal);
  drawJob(job, state.status);
  drawHead();
  await load();
  draw();
  if (query.get("focus")) field.focus();
}

function row(rows, index, { size, focus }) {
  const song = rows.songs[index];
  const place = { "data-index": index, style: { top: `${index * size}px` }, role: "row", "aria-rowindex": index + 2 };
  if (!song) return el("div.row.waiting", place, el("span.cell"), el("span.cell.title", {}, "…"));
  const cell = (name, ...inside) => el(`span.cell.${name}`, { role: "gridcell" }, ...inside);
  const line = el(
    "div.row",
    { ...place, "data-id": song.id, tabIndex: index === focus ? 0 : -1, onclick: () => select(song), ondblclick: () => player.play(song, { list: rows.songs.filter(Boolean) }) },
    cell("start", playButton(song, () => rows.songs.filter(Boolean))),
    cell("title", songName(song)),
    cell("artist", song.artist ?? ""),
    cell("album", song.album ?? ""),
    cell("year", song.year ? String(song.year) : ""),
    cell("duration", clock(song.duration_s)),
    cell(
      "end",
      iconButton("similar", `Songs similar to ${song.title}`, (event) => similar(event, song)),
      iconButton("inside", `Look inside ${song.title}`, (event) => inside(event, song)),
    ),
  );
  if (song.missing) line.classList.add("missing");
  return line;
}

function similar(event, song) {
  event.stopPropagation();
  select(song);
  tell("similar", song);
}

function inside(event, song) {
  event.stopPropagation();
  select(song);
  tell("inside", song);
}

function nothing(rows) {
  if (rows.search) return el("div.empty", {}, el("h2", {}, "No song matches"), el("p", {}, `Every word of “${rows.search}” is looked for in title, artist, album, path and year. Try fewer words.`));
  if (state.status?.job?.state === "running") return el("div.empty", {}, el("h2", {}, "No songs yet"), el("p", {}, "Songs appear here while they are embedded."));
  const text = state.status?.message || "This library has no songs yet. Start `patchifier app FOLDER` with a folder that holds music.";
  return el("div.empty", {}, el("h2", {}, "No songs yet"), el("p", {}, text));
}

// --- embedding: what is done, what it works on, what was skipped and why ---

function drawJob(place, status) {
  const { job, n_skipped: lost } = status ?? {};
  if (!lost && (!job || job.state === "done")) return fill(place);
  const open = place.querySelector("details")?.open ?? false;
  return fill(place, el("section.panel", { "aria-label": "Embedding" }, job && progress(job, status), lost > 0 && skipped(status, open)));
}

function progress(job, { n_tracks: count, n_skipped: lost }) {
  const number = (value) => value.toLocaleString("en");
  const running = job.state === "running";
  const done = `${number(count)} of ${plural(count + lost, "file")} embedded, ${number(lost)} skipped`;
  const titles = { running: "Embedding the songs", done, failed: "Embedding stopped", cancelled: "Embedding was cancelled" };
  return [
    el(
      "div.job-line",
      {},
      el("h2", {}, titles[job.state]),
      job.state !== "done" && el("span.soft.small", {}, `${number(job.done)} of ${plural(job.total, "file")}`),
      running && button("Cancel", () => post("api/job/cancel"), { kind: "quiet small" }),
    ),
    running && bar(job.total ? job.done / job.total : 0),
    running && job.current && el("p.soft.small.job-current", {}, job.current),
    job.error && el("p.small", { role: "alert" }, job.error),
  ];
}

function skipped({ skipped: some, n_skipped: count }, open) {
  const lines = some.map(([path, reason]) => el("li", {}, el("b", {}, path), el("span.soft", {}, without(path, reason))));
  const rest = count - some.length;
  const title = `${plural(count, "file")} ${count === 1 ? "was" : "were"} skipped`;
  return el("details.skipped", { open }, el("summary", {}, title), el("ul", {}, lines, rest > 0 && el("li.soft", {}, `and ${rest} more`)));
}
