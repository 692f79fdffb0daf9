// The song's form: where it resembles itself, where it changes, which sections come again.

import { get } from "./api.js";
import { bytes, clock, colour, el, errorMessage, fill, loading } from "./dom.js";
import { lane } from "./lane.js";
import { curve, paint } from "./mel.js";
import { KINDS } from "./palette.js";
import { player } from "./player.js";
import { on } from "./state.js";

const tint = (label) => KINDS[(label.charCodeAt(0) - 65 + KINDS.length * 100) % KINDS.length];

export async function form(view, place) {
  const title = [el("h2", { id: "form-title" }, "Form"), el("p.lead", {}, "Each point compares two moments of the song: bright where they sound alike. Click to hear the moment.")];
  fill(place, title, loading("Comparing the song with itself"));
  try {
    const data = await get(`api/inside/${encodeURIComponent(view.song.id)}/structure`, {}, { signal: view.signal });
    if (!view.current()) return;
    draw(view, place, { title, data });
  } catch (error) {
    if (view.current()) fill(place, title, errorMessage(error, () => form(view, place)));
  }
}

function draw(view, place, { title, data }) {
  const { n, novelty, sections, hop_s: hop } = data;
  const matrix = el("canvas.matrix", { role: "img", "aria-label": "Self-similarity of the song" });
  const line = el("canvas.novelty", { role: "img", "aria-label": "Novelty: high where the song changes" });
  const across = el("div.playhead", { hidden: true });
  paint(matrix, bytes(data.similarity), { rows: n, columns: n, flip: true });
  const stage = el("div.matrix-stage", {}, matrix, across);
  stage.addEventListener("click", (event) => {
    const { left, width } = stage.getBoundingClientRect();
    player.play(view.song, { list: [view.song], start: (n * hop * (event.clientX - left)) / width });
  });
  const list = sections.map((one) =>
    el(
      "li",
      {},
      el(
        "button.stretch",
        { type: "button", onclick: () => player.play(view.song, { list: [view.song], start: one.start_s }) },
        el("b.section-label", { style: { "--tint": tint(one.label) } }, one.label),
        el("span", {}, `${clock(one.start_s)}–${clock(one.end_s)}`),
      ),
    ),
  );
  fill(
    place,
    title,
    el(
      "div.form",
      {},
      el("div.form-figure", {}, stage, line, el("p.small.soft", {}, "Novelty: high where the song changes")),
      el("div", {}, el("h3", {}, sections.length ? "Sections; the same letter sounds alike" : "Sections"), sections.length ? el("ol.section-list", {}, list) : el("p.soft.small", {}, "The song is too short, or too even, to find sections.")),
    ),
  );
  if (sections.length) view.parts.lanes.prepend(lane("Sections", sections, view, (one) => tint(one.label)));
  const paintLine = () => curve(line, novelty, colour("accent"));
  const resized = new ResizeObserver(paintLine);
  resized.observe(line);
  view.signal.addEventListener("abort", () => resized.disconnect());
  on("theme", paintLine, view.signal);
  on("time", (seconds) => {
    across.hidden = player.song?.id !== view.song.id;
    across.style.left = `${Math.min(100, (100 * seconds) / (n * hop))}%`;
  }, view.signal);
}
