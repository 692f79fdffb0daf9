// A slider with its name and its value in words.

import { el } from "./dom.js";

/** Show the part left of the thumb in the accent. */
export function filled(input) {
  const paint = () => input.style.setProperty("--at", `${(100 * (input.value - input.min)) / (input.max - input.min)}%`);
  input.addEventListener("input", paint);
  paint();
  return input;
}

/**
 * @param {string} label
 * @param {number} value
 * @param {{min?: number, max: number, step: number, text: (value: number) => string, change: (value: number) => void, name?: string}} options
 *     `name` is for screen readers, where the label alone is too short
 */
export function slider(label, value, { min = 0, max, step, text, change, name = label }) {
  const shown = el("output.small", {}, text(value));
  const input = filled(el("input", { type: "range", min, max, step, value, "aria-label": name, "aria-valuetext": text(value) }));
  input.addEventListener("input", () => {
    shown.textContent = text(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
    change(Number(input.value));
  });
  return el("label.slider", {}, el("span", {}, label), shown, input);
}
