// The points of the map on a plain canvas, for a browser without WebGL: the same functions as scatter.js.

import { colour, sized } from "./dom.js";

const REACH = 9; // pixels around the pointer in which a point is found

export async function scatter2d(canvas, points, handlers) {
  const count = points.x.length;
  let view = { scale: 1, x: 0, y: 0 }; // of CSS pixels from the middle
  let painted = { values: new Float32Array(count), palette: [colour("soft")], kind: "category" };
  let [chosen, line, lasso, drag, lassoing, hovered] = [new Set(), [], [], null, false, -1];
  let asked = 0;

  const box = () => canvas.getBoundingClientRect();
  const unit = () => Math.min(canvas.clientWidth, canvas.clientHeight) / 2;
  const px = (index) => canvas.clientWidth / 2 + view.x + points.x[index] * unit() * view.scale;
  const py = (index) => canvas.clientHeight / 2 + view.y - points.y[index] * unit() * view.scale;
  const radius = () => (count < 400 ? 4.5 : count < 3000 ? 3 : 1.7);
  const tint = (index) => {
    const { values, palette, kind } = painted;
    return palette[kind === "category" ? values[index] : Math.round(values[index] * (palette.length - 1))] ?? palette[0];
  };

  function paint() {
    asked = 0;
    const context = sized(canvas, canvas.clientWidth, canvas.clientHeight);
    context.fillStyle = colour("paper");
    context.fillRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    const r = radius();
    const dim = chosen.size > 0;
    const strong = colour("accent");
    for (let index = 0; index < count; index += 1) {
      const [x, y] = [px(index), py(index)];
      if (x < -r || y < -r || x > canvas.clientWidth + r || y > canvas.clientHeight + r) continue;
      const active = chosen.has(index) || index === hovered;
      context.globalAlpha = active ? 1 : dim ? 0.3 : 0.8;
      context.fillStyle = active ? strong : tint(index);
      if (count < 3000) {
        context.beginPath();
        context.arc(x, y, active ? r + 2 : r, 0, 7);
        context.fill();
      } else context.fillRect(x - r, y - r, 2 * r, 2 * r);
    }
    context.globalAlpha = 1;
    stroke(context, line.map((index) => [px(index), py(index)]), colour("ink"));
    stroke(context, lasso, strong);
  }

  function stroke(context, corners, style) {
    if (corners.length < 2) return;
    context.beginPath();
    corners.forEach(([x, y]) => context.lineTo(x, y));
    context.strokeStyle = style;
    context.lineWidth = 2;
    context.stroke();
  }

  const soon = () => (asked ||= requestAnimationFrame(paint));

  function near(x, y) {
    let [best, distance] = [-1, REACH ** 2];
    for (let index = 0; index < count; index += 1) {
      const square = (px(index) - x) ** 2 + (py(index) - y) ** 2;
      if (square < distance) [best, distance] = [index, square];
    }
    return best;
  }

  function within() {
    const inside = (x, y) => {
      let odd = false;
      for (let one = 0, other = lasso.length - 1; one < lasso.length; other = one, one += 1) {
        const [[ax, ay], [bx, by]] = [lasso[one], lasso[other]];
        if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
      }
      return odd;
    };
    return Array.from({ length: count }, (_, index) => index).filter((index) => inside(px(index), py(index)));
  }

  const spot = (event) => [event.clientX - box().left, event.clientY - box().top];
  const down = (event) => {
    canvas.setPointerCapture(event.pointerId);
    drag = { start: spot(event), view: { ...view }, moved: false };
    lasso = lassoing || event.shiftKey ? [drag.start] : [];
  };
  const moved = (event) => {
    const [x, y] = spot(event);
    if (!drag) return hover(near(x, y));
    drag.moved ||= Math.hypot(x - drag.start[0], y - drag.start[1]) > 3;
    if (lasso.length) lasso.push([x, y]);
    else view = { ...view, x: drag.view.x + x - drag.start[0], y: drag.view.y + y - drag.start[1] };
    return soon();
  };
  const hover = (index) => {
    if (index === hovered) return;
    hovered = index;
    if (index >= 0) handlers.over(index);
    else handlers.out();
    soon();
  };
  const up = (event) => {
    if (!drag) return;
    const { moved: far } = drag;
    drag = null;
    if (lasso.length > 2) handlers.lasso(within());
    else if (!far) {
      const index = near(...spot(event));
      if (index >= 0) handlers.click(index);
    }
    lasso = [];
    soon();
  };
  const wheel = (event) => {
    event.preventDefault();
    const [x, y] = spot(event);
    const factor = Math.exp(-event.deltaY / 400);
    const [cx, cy] = [x - canvas.clientWidth / 2, y - canvas.clientHeight / 2];
    view = { scale: view.scale * factor, x: cx - (cx - view.x) * factor, y: cy - (cy - view.y) * factor };
    soon();
  };
  canvas.addEventListener("pointerdown", down);
  canvas.addEventListener("pointermove", moved);
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("wheel", wheel, { passive: false });
  const resized = new ResizeObserver(soon);
  resized.observe(canvas);

  const change = (call) => (...values) => {
    call(...values);
    soon();
  };
  return {
    name: "canvas",
    colours: async (how) => change(() => (painted = how))(),
    select: change((indices) => (chosen = new Set(indices))),
    lassoMode: (active) => (lassoing = active),
    path: change((indices) => (line = indices)),
    at: (index) => [px(index), py(index)],
    fit: change(() => (view = { scale: 1, x: 0, y: 0 })),
    zoomTo: change(([index]) => (view = { scale: 3, x: -points.x[index] * unit() * 3, y: points.y[index] * unit() * 3 })),
    theme: soon,
    destroy: () => resized.disconnect(),
  };
}
