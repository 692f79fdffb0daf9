// Why a song is in a list: how near each part of its vector is, and stretches that match.

import { post } from "./api.js";
import { bar, button, clock, el, errorMessage, fill, loading } from "./dom.js";
import { player } from "./player.js";
import { mark } from "./songs.js";
import { state, want } from "./state.js";

/** A button that opens the reason why `song` is near `first`; `place` takes the reason. */
export function whyButton(first, song, place) {
  if (!first || first.id === song.id) return el("span.why-space");
  const inside = el("div.why", { hidden: true });
  place(inside);
  const toggle = button("Why", (event) => {
    event.stopPropagation();
    inside.hidden = !inside.hidden;
    toggle.setAttribute("aria-expanded", String(!inside.hidden));
    if (!inside.childElementCount) explain(inside, first, song);
  }, { kind: "quiet small", "aria-expanded": "false", "aria-label": `Why ${song.title}` });
  return toggle;
}

async function explain(place, first, second) {
  fill(place, loading("Comparing ten seconds at a time"));
  try {
    const weights = state.mode === "near" ? state.weights : {};
    const answer = await post("api/why", { first: first.id, second: second.id, weights });
    const stretches = (answer.stretches ?? []).map((one) => stretch(one, first, second));
    fill(
      place,
      (state.like.length > 1 || state.unlike.length > 0 || state.mode !== "near") && el("p.small.soft.whole", {}, `Compared with ${first.title}`),
      state.mode === "near" && el("div.buttons.why-narrow", {}, button("More like this", () => want(second, "like"), { kind: "small" }), button("Less like this", () => want(second, "unlike"), { kind: "small" })),
      Object.keys(answer.slices ?? {}).length > 0 && parts(answer, first),
      stretches.length > 0 && el("div", {}, el("h3", {}, "Stretches that match"), el("div.stretches", {}, stretches)),
    );
    mark(place);
  } catch (error) {
    fill(place, errorMessage(error, () => explain(place, first, second)));
  }
}

/** How near each part of the vector is, among the songs of the library, and how much it counts. */
function parts({ similarity, slices, counts, closer_than: closer, slices_closer_than: closers }, first) {
  const titles = Object.fromEntries((state.status?.slices ?? []).map(({ name, title }) => [name, title || name]));
  const row = (kind, name, standing, cosine, counted) =>
    el(`div.agreement.part${kind}`, {}, el("span", {}, name), bar(standing ?? 0), el("span.number", {}, share(standing)), el("span.number", {}, cosine.toFixed(2)), el("span.number", {}, counted));
  return el(
    "div",
    {},
    el("h3", {}, "How near each part is"),
    el("p.small.soft", {}, `Closer than 90 %: 90 % of the other songs are less like ${first.title} in this part. The weights change what counts.`),
    el(
      "div.agreements",
      {},
      el("div.agreement.part.soft", {}, el("span", {}, "Part"), el("span.spanned.number", {}, "closer than"), el("span.number", {}, "cosine"), el("span.number", {}, "counts")),
      Object.entries(slices).map(([name, value]) => row("", titles[name] ?? name, closers[name], value, counts[name] < 0.01 ? "< 1 %" : `${Math.round(100 * counts[name])} %`)),
      row(".total", "Similarity", closer, similarity, ""),
    ),
  );
}

/** A share in percent, rounded down: 100 % is all. */
function share(value) {
  return value === null || value === undefined ? "" : `${Math.floor(100 * value + 1e-9)} %`;
}

/** Two stretches that match: plays the first song's, then the second's. */
function stretch(one, first, second) {
  const play = () =>
    player.playStretches([
      { song: first, start_s: one.first_start_s, end_s: one.first_end_s },
      { song: second, start_s: one.second_start_s, end_s: one.second_end_s },
    ]);
  const span = (start, end) => `${clock(start)}–${clock(end)}`;
  return el(
    "button.stretch",
    { type: "button", onclick: play, title: `Play ${span(one.first_start_s, one.first_end_s)} of ${first.title}, then ${span(one.second_start_s, one.second_end_s)} of ${second.title}` },
    el("span", {}, span(one.first_start_s, one.first_end_s)),
    el("span.soft", {}, "then"),
    el("span", {}, span(one.second_start_s, one.second_end_s)),
    el("span.number.soft", {}, one.similarity.toFixed(2)),
  );
}
