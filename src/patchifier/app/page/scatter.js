// The points of the map in WebGL, by regl-scatterplot. scatter2d.js has the same functions without WebGL.

import { colour } from "./dom.js";
import createScatterplot from "./vendor/regl-scatterplot.js";

/** Whether this browser can draw with WebGL; the renderer's name, or "". */
export function renderer() {
  const gl = document.createElement("canvas").getContext("webgl");
  if (!gl || !gl.getExtension("OES_texture_float") || !gl.getExtension("ANGLE_instanced_arrays")) return "";
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const name = gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return name;
}

const size = (count) => (count < 400 ? 10 : count < 3000 ? 6 : 3.5);

/**
 * @param {HTMLCanvasElement} canvas
 * @param {{x: Float32Array, y: Float32Array}} points in [-1, 1]
 * @param {{over, out, click, lasso}} handlers of indices
 */
export async function scatter(canvas, points, handlers) {
  const count = points.x.length;
  const plot = createScatterplot({
    canvas, width: "auto", height: "auto", aspectRatio: 1, pointSize: size(count), pointSizeSelected: 4, pointOutlineWidth: 2,
    opacity: count < 3000 ? 0.9 : 0.65, opacityInactiveMax: 0.3, lassoMinDelay: 5, lassoMinDist: 2, lassoInitiator: false,
    deselectOnDblClick: false, deselectOnEscape: true, actionKeyMap: { lasso: "shift" },
  });
  let lassoed = false;
  let lines = [];
  let table = null;
  let drawing = Promise.resolve();
  let ended = false;
  const live = (work) => (...given) => (ended ? undefined : work(...given)); // buffers are gone after the end
  const paint = () =>
    plot.set({
      backgroundColor: colour("paper"), pointColorActive: colour("accent"), pointColorHover: colour("accent"), lassoColor: colour("accent"), reticleColor: colour("accent"),
    });
  paint();
  plot.subscribe("lassoStart", () => (lassoed = true));
  plot.subscribe("lassoEnd", () => (lassoed = false));
  plot.subscribe("select", ({ points: chosen }) => (lassoed ? handlers.lasso(chosen) : handlers.click(chosen.at(-1))));
  plot.subscribe("pointOver", (index) => handlers.over(index));
  plot.subscribe("pointOut", () => handlers.out());

  return {
    name: "WebGL",
    /** values: a Float32Array; kinds (integers below colours.length) or shares (0 to 1). */
    async colours({ values, palette, kind }) {
      const by = kind === "category" ? "category" : "value";
      const zeros = new Float32Array(count);
      plot.set({ colorBy: by, pointColor: palette });
      table = kind === "category" ? { z: values, w: zeros } : { z: zeros, w: values };
      const index = plot.get("spatialIndex");
      if (ended) return;
      drawing = plot.draw({ ...points, ...table }, { zDataType: "categorical", wDataType: "continuous", ...(index ? { spatialIndex: index } : {}) });
      await drawing;
      if (lines.length && !ended) plot.drawAnnotations(lines);
    },
    select: live((indices) => (indices.length ? plot.select(indices, { preventEvent: true }) : plot.deselect({ preventEvent: true }))),
    lassoMode: live((active) => plot.set({ mouseMode: active ? "lasso" : "panZoom" })),
    path(indices) {
      if (ended) return;
      const vertices = indices.map((index) => [points.x[index], points.y[index]]);
      lines = vertices.length > 1 ? [{ vertices, lineColor: colour("ink"), lineWidth: 2 }] : [];
      if (lines.length) plot.drawAnnotations(lines);
      else plot.clearAnnotations();
    },
    at: (index) => plot.getScreenPosition(index),
    fit: live(() => plot.reset()),
    zoomTo: live((indices) => plot.zoomToPoints(indices, { padding: 0.4, transition: !matchMedia("(prefers-reduced-motion: reduce)").matches, transitionDuration: 350 })),
    theme: live(paint),
    /** What is being drawn ends first: its buffers must be there. */
    destroy() {
      ended = true;
      drawing.catch(() => {}).finally(() => plot.destroy());
    },
  };
}
