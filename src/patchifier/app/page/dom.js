// Making elements. Text reaches the page through text nodes alone, so a tag with markup is shown as it is.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  play: "M8 5.5v13l10.5-6.5z",
  pause: "M7 5h3.6v14H7zM13.4 5H17v14h-3.6z",
  next: "M6 5.5v13l9-6.5zM16 5.5h2.4v13H16z",
  previous: "M18 5.5v13l-9-6.5zM5.6 5.5H8v13H5.6z",
  plus: "M11 5h2v6h6v2h-6v6h-2v-6H5v-2h6z",
  minus: "M5 11h14v2H5z",
  close: "M6.4 5 5 6.4 10.6 12 5 17.6 6.4 19l5.6-5.6 5.6 5.6 1.4-1.4-5.6-5.6L19 6.4 17.6 5 12 10.6z",
  up: "M12 7.5 5.5 14l1.4 1.4 5.1-5.1 5.1 5.1 1.4-1.4z",
  down: "M12 16.5 5.5 10l1.4-1.4 5.1 5.1 5.1-5.1 1.4 1.4z",
  sun: "M12 7.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9zM11 1.5h2v3.2h-2zM11 19.3h2v3.2h-2zM1.5 11h3.2v2H1.5zM19.3 11h3.2v2h-3.2zM4 5.4 5.4 4l2.2 2.2-1.4 1.4zM16.4 17.8l1.4-1.4 2.2 2.2-1.4 1.4zM4 18.6l2.2-2.2 1.4 1.4L5.4 20zM16.4 6.2 18.6 4 20 5.4l-2.2 2.2z",
  moon: "M20 14.6A8.5 8.5 0 0 1 9.4 4 8.5 8.5 0 1 0 20 14.6z",
  similar: "M4 10h2v4H4zM8 6h2v12H8zM12 9h2v6h-2zM16 4h2v16h-2zM20 10h2v4h-2z",
  inside: "M4 4h16v16H4zm2 2v5h5V6zm7 0v5h5V6zm-7 7v5h5v-5zm7 0v5h5v-5z",
};

/**
 * Make an element. `on...` properties are listeners; true and false set or leave out an attribute.
 * @param {string} name tag, with classes behind dots: "button.primary"
 */
export function el(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) set(node, key, value);
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function set(node, key, value) {
  if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
  else if (key === "style") Object.entries(value).forEach(([name, text]) => node.style.setProperty(name, text));
  else if (["value", "checked", "disabled", "hidden", "tabIndex"].includes(key)) node[key] = value;
  else if (value === true) node.setAttribute(key, "");
  else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
}

/** Replace what an element holds. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An icon, hidden from screen readers: the button around it has the name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  path.setAttribute("fill", "currentColor");
  svg.append(path);
  return svg;
}

/** A round button with an icon and a name. */
export function iconButton(name, label, onclick, properties = {}) {
  return el("button.icon-button", { type: "button", "aria-label": label, title: label, onclick, ...properties }, icon(name));
}

export function button(text, onclick, { kind = "", ...properties } = {}) {
  return el(`button.button${kind ? `.${kind.replaceAll(" ", ".")}` : ""}`, { type: "button", onclick, ...properties }, text);
}

/** An error's sentence, where it happened. */
export function errorMessage(error, retry = null) {
  const again = retry && el("div.buttons", {}, button("Try again", retry, { kind: "small" }));
  return el("div.message.error", { role: "alert" }, el("p", {}, error.message), again);
}

export function loading(text = "Loading") {
  return el("div.loading", { role: "status" }, el("p.soft.small", {}, text), el("div.bar.waiting", {}, el("i")));
}

/** A bar from 0 to 1. */
export function bar(value, kind = "") {
  const share = Math.max(0, Math.min(1, value || 0));
  return el(`div.bar${kind ? `.${kind}` : ""}`, { "aria-hidden": "true" }, el("i", { style: { width: `${(100 * share).toFixed(1)}%` } }));
}

/** Minutes and seconds: 3:07. */
export function clock(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  const whole = Math.max(0, Math.floor(seconds + 1e-6));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const tail = `${String(rest).padStart(2, "0")}`;
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}

/** One or many: plural(1, "song") is "1 song". */
export function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** A reason without the name in front of it, where the name is shown beside it. */
export function without(name, reason) {
  return reason.startsWith(`${name}: `) ? reason.slice(name.length + 2) : reason;
}

/** Tell a screen reader what changed. */
export function speak(text) {
  document.getElementById("spoken").textContent = text;
}

/** Call a function after the calls have paused. */
export function debounce(call, wait = 160) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), wait);
  };
}

/** Bytes from base64. */
export function bytes(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let index = 0; index < raw.length; index += 1) out[index] = raw.charCodeAt(index);
  return out;
}

/** Let the browser save an answer as a file. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A canvas with the device's pixels; returns its context, scaled to CSS pixels. */
export function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

/** A colour of the theme. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
