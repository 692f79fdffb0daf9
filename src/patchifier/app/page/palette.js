// Colours of data: ten for kinds, two ramps for numbers (viridis for the map, magma for spectrograms).

export const KINDS = ["#4269d0", "#e39c0b", "#ff725c", "#2fa69a", "#3ca951", "#e86fa3", "#a463f2", "#6f9bdb", "#9c6b4e", "#7a8a2a"];
export const OTHER = "#9a958e";

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const MAGMA = ["#000004", "#140e36", "#3b0f70", "#641a80", "#8c2981", "#b73779", "#de4968", "#f7705c", "#fe9f6d", "#fecf92", "#fcfdbf"];

const parse = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** A ramp as 256 colours: Uint8Array of 3 x 256, interpolated between the stops. */
function ramp(stops) {
  const colours = stops.map(parse);
  const out = new Uint8Array(3 * 256);
  for (let value = 0; value < 256; value += 1) {
    const where = (value / 255) * (colours.length - 1);
    const low = Math.min(Math.floor(where), colours.length - 2);
    for (let part = 0; part < 3; part += 1) out[3 * value + part] = Math.round(colours[low][part] + (where - low) * (colours[low + 1][part] - colours[low][part]));
  }
  return out;
}

export const magma = ramp(MAGMA);
export const viridis = ramp(VIRIDIS);

/** A ramp as hexadecimal colours. */
export function hexes(table, count = 64) {
  return Array.from({ length: count }, (_, index) => {
    const at = 3 * Math.round((255 * index) / (count - 1));
    return `#${[...table.slice(at, at + 3)].map((part) => part.toString(16).padStart(2, "0")).join("")}`;
  });
}
