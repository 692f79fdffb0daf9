// Teach: name labels, give each a few songs, train a head on the stored vectors, and label the library.

import * as api from "./api.js";
import { button, download, el, errorMessage, fill, iconButton, loading, plural, speak } from "./dom.js";
import { picker } from "./picker.js";
import { playButton, songList, songName } from "./songs.js";
import { go, keep, kept, on, state } from "./state.js";

const LEAST = 2; // labels, and songs of each
const MOST = 10;

const lesson = { name: "my labels", labels: null, answer: null, applied: null };

export async function show(place, { query, signal }) {
  await recall();
  const view = { place, signal, cards: el("div.cards"), results: el("div", { "aria-live": "polite" }), lasso: el("div") };
  const name = el("input", { type: "text", value: lesson.name, "aria-label": "Name of the labels", maxlength: 60 });
  name.addEventListener("input", () => {
    lesson.name = name.value.trim();
    save();
  });
  view.train = button("Train", () => train(view), { kind: "primary" });
  fill(
    place,
    el("div.page-head", {}, el("div", {}, el("h1", {}, "Teach labels"), el("p.lead", {}, "Name two to ten labels and give each a few songs. A small classifier learns them in seconds from the vectors that the library already has.")), el("label.field", {}, "Name", name)),
    view.lasso,
    view.cards,
    el("div.buttons.teach-buttons", {}, view.train, button("Add a label", () => addLabel(view), {}), button("Start again", () => clear(view), { kind: "quiet" })),
    view.results,
  );
  on("song", () => drawCards(view), signal);
  drawLasso(view, query.get("from") === "map");
  drawCards(view);
  if (lesson.answer) drawAnswer(view);
}

// --- labels are kept in this browser ---

async function recall() {
  if (lesson.labels) return;
  lesson.labels = [{ name: "", songs: [] }, { name: "", songs: [] }];
  try {
    const stored = JSON.parse(kept(`teach.${state.status?.name ?? ""}`, "null"));
    if (!stored) return;
    const songs = (ids) => Promise.all(ids.map((id) => api.track(id).catch(() => null)));
    const labels = await Promise.all(stored.labels.map(async (label) => ({ name: label.name, songs: (await songs(label.ids)).filter(Boolean) })));
    Object.assign(lesson, { name: stored.name, labels });
  } catch {
    // What was kept cannot be read: the labels begin empty.
  }
}

function save() {
  const labels = lesson.labels.map((label) => ({ name: label.name, ids: label.songs.map((song) => song.id) }));
  keep(`teach.${state.status?.name ?? ""}`, JSON.stringify({ name: lesson.name, labels }));
}

function changed(view) {
  save();
  drawCards(view);
}

/** A song has one label: to give it a second one takes it from the first. */
export function give(label, songs) {
  const ids = new Set(songs.map((song) => song.id));
  for (const one of lesson.labels) one.songs = one.songs.filter((song) => !ids.has(song.id));
  label.songs.push(...songs);
}

function addLabel(view) {
  if (lesson.labels.length >= MOST) return fill(view.results, el("p.message", {}, `${MOST} labels are the most.`));
  lesson.labels.push({ name: "", songs: [] });
  changed(view);
  return view.cards.querySelector(".card:last-child input").focus();
}

function clear(view) {
  Object.assign(lesson, { labels: [{ name: "", songs: [] }, { name: "", songs: [] }], answer: null, applied: null });
  fill(view.results);
  changed(view);
}

function drawLasso(view, fresh) {
  const count = state.lasso.length;
  if (!count) return fill(view.lasso, el("p.message.small", {}, "Or select songs on the ", el("a", { href: "#/map" }, "map"), " with the lasso, and give them a label here."));
  return fill(view.lasso, el(`p.message${fresh ? ".fresh" : ""}`, {}, `${plural(count, "song")} selected on the map. Choose the label that gets them: “Add from the map”.`));
}

function drawCards(view) {
  fill(view.cards, lesson.labels.map((label, index) => card(view, label, index)));
  drawTrain(view);
}

function drawTrain(view) {
  const ready = lesson.labels.filter((label) => label.name && label.songs.length >= LEAST).length;
  view.train.disabled = ready < 2;
  view.train.title = ready < 2 ? "Two labels with a name and two songs each are needed" : "";
}

function card(view, label, index) {
  const name = el("input.label-name", { type: "text", value: label.name, placeholder: `Label ${index + 1}`, "aria-label": `Name of label ${index + 1}`, maxlength: 40 });
  // The cards are not drawn again: that would take the focus from the next field.
  name.addEventListener("input", () => {
    label.name = name.value.trim();
    name.closest(".card").setAttribute("aria-label", label.name || `Label ${index + 1}`);
    save();
    drawTrain(view);
  });
  const add = (songs) => {
    give(label, songs);
    changed(view);
  };
  const { song } = state;
  const lassoed = async () => {
    try {
      add(await Promise.all(state.lasso.map(api.track)));
      state.lasso = [];
      drawLasso(view);
    } catch (error) {
      fill(view.results, errorMessage(error));
    }
  };
  const remove = (one) => {
    label.songs = label.songs.filter((other) => other !== one);
    changed(view);
  };
  return el(
    "section.panel.card",
    { "aria-label": label.name || `Label ${index + 1}` },
    el(
      "div.card-head",
      {},
      name,
      el("span.small.soft", {}, String(label.songs.length)),
      lesson.labels.length > LEAST && iconButton("close", `Remove label ${label.name || index + 1}`, () => {
        lesson.labels.splice(index, 1);
        changed(view);
      }),
    ),
    el("ul.card-songs", {}, label.songs.map((one) => el("li", {}, playButton(one, () => label.songs), songName(one), iconButton("close", `Remove ${one.title}`, () => remove(one))))),
    picker("Add a song", (one) => add([one])),
    el(
      "div.buttons",
      {},
      song && !label.songs.some((one) => one.id === song.id) && button(`Add “${short(song.title)}”`, () => add([song]), { kind: "small", title: `Add the selected song, ${song.title}` }),
      state.lasso.length > 0 && button("Add from the map", lassoed, { kind: "small" }),
    ),
  );
}

const short = (text) => (text.length > 22 ? `${text.slice(0, 21)}…` : text);

// --- training ---

async function train(view) {
  const labels = Object.fromEntries(lesson.labels.filter((label) => label.name && label.songs.length).map((label) => [label.name, label.songs.map((song) => song.id)]));
  fill(view.results, loading("Training"));
  view.train.disabled = true;
  try {
    lesson.answer = await api.post("api/teach", { name: lesson.name || "my labels", labels });
    lesson.applied = null;
    drawAnswer(view);
    speak("Trained");
  } catch (error) {
    fill(view.results, errorMessage(error));
  }
  drawCards(view);
}

function drawAnswer(view) {
  const { answer } = lesson;
  const percent = (value) => `${Math.round(100 * value)} %`;
  const [low, high] = answer.interval ?? [];
  const range = low === undefined || low === null ? "" : `95 % interval: ${percent(low)} to ${percent(high)}`;
  const done = el("div", { "aria-live": "polite" });
  const saved = el("div", { "aria-live": "polite" });
  fill(
    view.results,
    el(
      "section.section.teach-results",
      { "aria-label": "Result" },
      el(
        "div",
        {},
        el("h2", {}, "How well it does"),
        answer.accuracy !== null && answer.accuracy !== undefined && el(answer.enough ? "p.big" : "p.big.soft", {}, percent(answer.accuracy), el("span.small.soft", {}, range)),
        !answer.enough && el("p.tag", {}, "Too few to say"),
        answer.majority && el("p.lead", {}, `Always saying “${answer.majority.label}” would give ${percent(answer.majority.accuracy)}.`),
        answer.note && el("p.lead", {}, answer.note),
        never(answer),
        related(answer),
        el("p.small.soft", {}, `${answer.method}, ${plural(answer.n, "song")}`),
        confusion(answer),
      ),
      el("div", {}, el("h2", {}, "Most doubtful songs"), el("p.lead", {}, "Label these next: they teach the most."), doubtful(view, answer)),
    ),
    el(
      "div.buttons.teach-buttons",
      {},
      button("Label the whole library", () => apply(view, done), { kind: "primary" }),
      button("Save predictions (CSV)", () => saveAs(answer.head, "csv", saved), { title: "A label for every song; the column “given” has those that are yours" }),
      button("Save the classifier", () => saveAs(answer.head, "head", saved)),
    ),
    saved,
    done,
  );
}

/** Labels of which no song was named right. */
function never({ never_right: names }) {
  if (!names?.length) return null;
  return el("p.lead.never", {}, `No song was named right of: ${names.join(", ")}.`);
}

/** Songs of one artist or album, of which one is tested while the other teaches. */
function related({ shared, n }) {
  if (!shared?.length) return null;
  const counts = shared.map((one) => `${one.n} of ${n} songs share their ${one.tag} with another labelled song (most: ${one.most})`);
  const tags = shared.map((one) => one.tag).join(" or ");
  return el("p.lead.shared", {}, `${counts.join(", ")}. Songs of one ${tags} may be on both sides of the test, so the accuracy may be too high.`);
}

/** Rows are the labels that were given, columns those that were predicted without the song itself. */
function confusion({ confusion: counts, names }) {
  if (!counts?.length) return null;
  const most = Math.max(1, ...counts.flat());
  const cell = (count, row, column) =>
    el("td", { style: { "--share": `${Math.round((75 * count) / most)}%` }, class: row === column ? "right" : "wrong" }, String(count));
  return el(
    "table.confusion",
    {},
    el("caption.small.soft", {}, "Rows: your label. Columns: the prediction."),
    el("thead", {}, el("tr", {}, el("td"), names.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, counts.map((line, row) => el("tr", {}, el("th", { scope: "row" }, names[row]), line.map((count, column) => cell(count, row, column))))),
  );
}

function doubtful(view, answer) {
  const songs = (answer.doubtful ?? []).map((one) => one.track);
  api.remember(songs);
  if (!songs.length) return el("p.soft.small", {}, "No song is doubtful.");
  return songList(songs, {
    label: "Most doubtful songs",
    end: (song, index) => [el("span.small.soft.wide", {}, `${answer.doubtful[index].label} ${Math.round(100 * answer.doubtful[index].probability)} %`)],
    below: (song) => {
      const choices = lesson.labels.filter((label) => label.name).map((label) =>
        button(label.name, (event) => {
          event.stopPropagation();
          give(label, [song]);
          changed(view);
          event.currentTarget.closest(".song").classList.add("labelled");
          event.currentTarget.parentElement.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(one === event.currentTarget)));
        }, { kind: "small", "aria-pressed": "false" }),
      );
      return el("div.buttons.choices", {}, choices);
    },
  });
}

async function apply(view, place) {
  fill(place, loading("Labelling the library"));
  try {
    const { labels } = await api.post("api/teach/apply", { head: lesson.answer.head });
    lesson.applied = labels;
    const counts = new Map();
    Object.values(labels).forEach(({ label }) => counts.set(label, (counts.get(label) ?? 0) + 1));
    const most = Math.max(...counts.values());
    fill(
      place,
      el(
        "div.applied",
        {},
        el("h3", {}, `${plural(Object.keys(labels).length, "song")} labelled`),
        [...counts].sort((one, other) => other[1] - one[1]).map(([label, count]) =>
          el("div.agreement", {}, el("span", {}, label), el("div.bar", {}, el("i", { style: { width: `${(100 * count) / most}%` } })), el("span.number", {}, String(count))),
        ),
        el("div.buttons", {}, button("See them on the map", () => go("map", { by: `label:${lesson.answer.head}` }), { kind: "small" })),
      ),
    );
  } catch (error) {
    fill(place, errorMessage(error));
  }
}

async function saveAs(head, what, place) {
  try {
    const { blob, name } = await api.postForFile("api/teach/save", { head, what }, what === "csv" ? "predicted.csv" : "head.zip");
    download(blob, name);
    const use = what === "csv" ? "The column “given” has the labels that are yours; the others are predicted." : `As it is, it is a model of “patchifier predict ${name} MUSIC --out labels.csv”.`;
    fill(place, el("p.small", {}, `Saved as ${name}. ${use}`));
  } catch (error) {
    fill(place, errorMessage(error));
  }
}
