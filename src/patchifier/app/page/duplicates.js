// Duplicates: pairs of songs by class, one side above the other, both to be played. Part of the library view.

import { get, post, remember } from "./api.js";
import { bar, button, clock, el, errorMessage, fill, loading, plural, speak } from "./dom.js";
import { player } from "./player.js";
import { songList } from "./songs.js";

const KINDS = [
  ["same recording", "Same recording", "The same sound from beginning to end, perhaps at another level or in another format."],
  ["same recording edited or re-encoded", "Same recording, edited or re-encoded", "They share a stretch of the same sound: cut, faded, faster or slower, or with a sample of the other."],
  ["probably another version", "Probably another version", "No sound is shared, and they are nearly alike: a remix, or another take."],
  ["not checked", "Not checked", "Their vectors are nearly the same. Whether they share a recording, a check of the files says."],
];
const LOOK_MS = 700;
const SHOWN = 100; // pairs of a class, until all are asked for

export async function showDuplicates(place, { signal }) {
  const head = el("div.page-head.duplicates-head");
  const list = el("div.pairs");
  list.addEventListener("keydown", arrows);
  place.classList.add("duplicates");
  const view = { head, list, signal, state: "" };
  fill(place, head, list);
  fill(list, loading("Comparing the songs"));
  await look(view);
}

/** Show the state of the check, and its pairs; look again while it runs. */
async function look(view) {
  try {
    const { pairs, check, compared } = await get("api/duplicates", {}, { signal: view.signal });
    drawHead(view, check, pairs);
    if (view.state !== check.state) drawPairs(view, pairs, compared || check.state === "running" ? check.state : "many");
    view.state = check.state;
    if (check.state !== "running") return;
  } catch (error) {
    if (view.signal.aborted || error.name === "AbortError") return;
    fill(view.list, errorMessage(error, () => look(view)));
    return;
  }
  const timer = setTimeout(() => look(view), LOOK_MS);
  view.signal.addEventListener("abort", () => clearTimeout(timer));
}

async function start(view) {
  try {
    await post("api/duplicates");
    await look(view);
  } catch (error) {
    fill(view.list, errorMessage(error, () => start(view)));
  }
}

function drawHead(view, check, pairs) {
  const running = check.state === "running";
  const share = check.total ? check.done / check.total : 0;
  const lead = {
    missing: "Pairs whose vectors are nearly the same. A check compares the sound of the files, and finds more.",
    running: "Each file is decoded once, and its sound compared. This goes on if you leave the view.",
    done: "Confirmed by the sound of the files. The list says what is the same; nothing is deleted.",
    failed: "The check stopped.",
  }[check.state];
  fill(
    view.head,
    el("div", {}, el("h1", {}, "Duplicates"), el("p.lead", {}, lead)),
    el("div.buttons", {}, el("a.button", { href: "#/library" }, "All songs"), !running && check.state !== "done" && button("Check the files", () => start(view), { kind: "primary" })),
    running && el("div.check", { role: "progressbar", "aria-label": "Check of the files", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * share) }, bar(share), el("span.number.small.soft", {}, `${Math.round(100 * share)} %`)),
    check.error && el("p.message.error", { role: "alert" }, check.error),
  );
  if (view.state && view.state !== check.state) speak(check.state === "done" ? `${plural(pairs.length, "pair")} found` : lead);
}

const NONE = {
  running: ["No pairs yet", "They appear here when all files are compared."],
  done: ["No duplicates", "No two songs share a recording."],
  many: ["No pairs yet", "This library has too many songs to compare their vectors while you wait. Press “Check the files” to find pairs."],
};
const NONE_BY_VECTORS = ["No pairs with nearly equal vectors", "Press “Check the files” to find more: copies can have the same sound and other vectors."];

function drawPairs(view, pairs, state) {
  if (!pairs.length) {
    const [title, text] = NONE[state] ?? NONE_BY_VECTORS;
    return fill(view.list, el("div.empty", {}, el("h2", {}, title), el("p", {}, text)));
  }
  pairs.forEach((pair) => remember([pair.first, pair.second]));
  const sections = KINDS.map(([kind, title, about]) => {
    const own = pairs.filter((pair) => pair.kind === kind);
    return own.length > 0 && section(title, about, own);
  });
  return fill(view.list, sections);
}

function section(title, about, pairs) {
  const rest = el("div", {}, pairs.length > SHOWN && button(`Show all ${pairs.length.toLocaleString("en")}`, () => fill(rest, pairs.slice(SHOWN).map(drawPair)), { kind: "small" }));
  return el("section.section", { "aria-label": title }, el("h2", {}, title, el("span.soft", {}, ` · ${plural(pairs.length, "pair")}`)), el("p.lead", {}, about), pairs.slice(0, SHOWN).map(drawPair), rest);
}

function drawPair(pair) {
  const songs = [pair.first, pair.second];
  const shared = sharedFolder(pair.first.path, pair.second.path);
  const facts = [
    `similarity ${pair.similarity.toFixed(2)}`,
    pair.agreement !== null && `${Math.round(100 * pair.agreement)} % of the fingerprint agrees`,
    pair.offset_s !== null && Math.abs(pair.offset_s) >= 0.1 && `${pair.offset_s > 0 ? "the first" : "the second"} begins ${Math.abs(pair.offset_s).toFixed(1)} s into the other`,
    pair.reason,
  ].filter(Boolean);
  return el(
    "div.pair",
    {},
    songList(songs, { label: `${pair.first.title} and ${pair.second.title}`, end: (song) => [el("span.soft.small.number", {}, clock(song.duration_s))], below: (song) => el("p.pair-path.small.soft", { title: song.path }, song.path.slice(shared)) }),
    el("p.pair-facts.small", {}, el("span.soft", {}, facts.join(" · ")), pair.offset_s !== null && button("Play both", () => playBoth(pair), { kind: "small", "aria-label": `Play both, ${pair.first.title}` })),
  );
}

/** Letters of the folder that both paths lie in. */
function sharedFolder(one, other) {
  let same = 0;
  while (same < one.length && one[same] === other[same]) same += 1;
  return same && Math.max(one.lastIndexOf("/", same - 1), one.lastIndexOf("\\", same - 1)) + 1;
}

/** Ten seconds of the same place of the one, then of the other. */
function playBoth(pair) {
  const from = Math.max(0, -pair.offset_s);
  const starts = [from, from + pair.offset_s];
  player.playStretches([pair.first, pair.second].map((song, index) => ({ song, start_s: starts[index], end_s: starts[index] + 10 })));
}

/** Up and Down go on to the next pair at the end of one. */
function arrows(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.defaultPrevented || !event.target.matches(".song")) return;
  const rows = [...event.currentTarget.querySelectorAll(".song")];
  rows[rows.indexOf(event.target) + step]?.focus();
  event.preventDefault();
}
