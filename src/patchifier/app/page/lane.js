// Stretches of a song as a band under its waveform: sections, chords.

import { clock, el } from "./dom.js";
import { player } from "./player.js";

/** A band of named stretches under the waveform; a click plays from there. */
export function lane(name, stretches, view, tint = () => "") {
  const { duration } = view.parts;
  return el(
    "div.lane",
    { role: "group", "aria-label": name },
    stretches.map((one) =>
      el(
        "button",
        {
          type: "button", title: `${one.title ?? one.label}, ${clock(one.start_s)} to ${clock(one.end_s)}`, tabIndex: -1,
          style: { left: `${(100 * one.start_s) / duration}%`, width: `${(100 * (one.end_s - one.start_s)) / duration}%`, "--tint": tint(one) },
          onclick: () => player.play(view.song, { list: [view.song], start: one.start_s }),
        },
        one.label,
      ),
    ),
  );
}
