// Drawing: spectrograms and matrices from bytes, waveforms from pairs.

import { bytes, sized } from "./dom.js";
import { magma } from "./palette.js";

/** Paint values (rows x columns, bytes) into a canvas of exactly that size; `flip` puts row 0 at the bottom. */
export function paint(canvas, values, { rows, columns, flip = true, table = magma }) {
  canvas.width = columns;
  canvas.height = rows;
  const image = new ImageData(columns, rows);
  for (let row = 0; row < rows; row += 1) {
    const from = (flip ? rows - 1 - row : row) * columns;
    for (let column = 0; column < columns; column += 1) {
      const at = 4 * (row * columns + column);
      const tint = 3 * values[from + column];
      image.data.set([table[tint], table[tint + 1], table[tint + 2], 255], at);
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Waveform: pairs of least and most, -127 to 127, over the canvas' width. */
export function wave(canvas, text, tint) {
  const pairs = new Int8Array(bytes(text).buffer);
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const context = sized(canvas, width, height);
  const columns = pairs.length / 2;
  const most = pairs.reduce((sum, value) => Math.max(sum, Math.abs(value)), 1);
  context.fillStyle = tint;
  for (let x = 0; x < width; x += 1) {
    const first = Math.floor((x / width) * columns);
    const last = Math.max(first + 1, Math.floor(((x + 1) / width) * columns));
    let [low, high] = [127, -127];
    for (let column = first; column < last; column += 1) {
      low = Math.min(low, pairs[2 * column]);
      high = Math.max(high, pairs[2 * column + 1]);
    }
    const scale = (0.5 * height) / most;
    context.fillRect(x, 0.5 * height - high * scale, 1, Math.max(1, (high - low) * scale));
  }
}

/** A curve of values 0 to its maximum, filled from below. */
export function curve(canvas, values, tint) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const context = sized(canvas, width, height);
  const most = Math.max(...values, 1e-9);
  context.beginPath();
  context.moveTo(0, height);
  values.forEach((value, index) => context.lineTo(((index + 0.5) / values.length) * width, height - (value / most) * (height - 2)));
  context.lineTo(width, height);
  context.fillStyle = tint;
  context.globalAlpha = 0.25;
  context.fill();
  context.globalAlpha = 1;
  context.strokeStyle = tint;
  context.lineWidth = 1.5;
  context.stroke();
}
