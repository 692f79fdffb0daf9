// Embed wav files with an exported model, in JavaScript.
//
//   patchifier export --onnx model.onnx         once, where torch is
//   npm install onnxruntime-node                or onnxruntime-web in a browser
//   ffmpeg -i song.mp3 -ar 22050 -ac 1 song.wav
//   export ORT_DISABLE_TELEMETRY=1              or onnxruntime would send events to its maker
//   node onnx_embed.mjs model.onnx song.wav     prints a line of JSON for each file

import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";

const SAMPLE_RATE = 22050; // of patchifier-base and patchifier-paper

/** Mean of the channels of a wav file of 16-bit integers or 32-bit floats. */
function readWav(path) {
  const bytes = readFileSync(path);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = (at) => bytes.toString("latin1", at, at + 4);
  if (bytes.length < 12 || text(0) !== "RIFF" || text(8) !== "WAVE") throw new Error("not a wav file");
  let format;
  for (let at = 12; at + 8 <= bytes.length; at += 8 + view.getUint32(at + 4, true) + (view.getUint32(at + 4, true) % 2)) {
    const size = Math.min(view.getUint32(at + 4, true), bytes.length - at - 8);
    if (text(at) === "fmt ") format = { channels: view.getUint16(at + 10, true), rate: view.getUint32(at + 12, true), bits: view.getUint16(at + 22, true) };
    if (text(at) === "data" && format) return mono(view, at + 8, size, format);
  }
  throw new Error("a wav file without samples");
}

function mono(view, start, size, { channels, rate, bits }) {
  if (rate !== SAMPLE_RATE) throw new Error(`${rate} Hz, expected ${SAMPLE_RATE}: ffmpeg -i IN -ar ${SAMPLE_RATE} OUT.wav`);
  if (bits !== 16 && bits !== 32) throw new Error(`${bits} bits, expected 16-bit integers or 32-bit floats`);
  const read = bits === 16 ? (at) => view.getInt16(at, true) / 32768 : (at) => view.getFloat32(at, true);
  const frame = (channels * bits) / 8;
  const samples = new Float32Array(Math.floor(size / frame));
  for (let n = 0; n < samples.length; n++) {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += read(start + n * frame + (c * bits) / 8);
    samples[n] = sum / channels;
  }
  return samples;
}

const [model, ...files] = process.argv.slice(2);
if (!files.length) {
  console.error("usage: node onnx_embed.mjs model.onnx song.wav ...");
  process.exit(2);
}
const session = await ort.InferenceSession.create(model);
for (const path of files) {
  try {
    const waveform = readWav(path);
    const input = new ort.Tensor("float32", waveform, [1, waveform.length]);
    const { embedding } = await session.run({ waveform: input });
    console.log(JSON.stringify({ path, embedding: Array.from(embedding.data) }));
  } catch (error) {
    console.error(`${path}: ${error.message}`);
    process.exitCode = 1;
  }
}
