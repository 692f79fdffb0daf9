// The server's answers. Every failure is an Error whose message is one plain sentence.

const GONE = "The server does not answer. Is `patchifier app` still running? Start it again, then try again.";

const TRIES = 4; // of a request that a busy server puts off
const MOST_WAIT_S = 5;

async function call(path, options = {}, tries = TRIES) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(GONE);
  }
  if (answer.ok) return answer;
  if (answer.status === 429 && tries > 1) {
    const wait = Math.min(MOST_WAIT_S, Number(answer.headers.get("Retry-After")) || 1);
    await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
    return call(path, options, tries - 1);
  }
  throw await failure(answer);
}

async function failure(answer) {
  let text = "";
  try {
    text = (await answer.json()).error;
  } catch {
    // Not JSON: the status says what there is to say.
  }
  const error = new Error(sentence(text) || `The server answered with status ${answer.status}. Try again, or look at the terminal in which it runs.`);
  error.status = answer.status;
  return error;
}

/** With a capital, unless it begins with the name of a file. */
function sentence(text) {
  return /^[a-z]+[ ,]/.test(text ?? "") ? text[0].toUpperCase() + text.slice(1) : (text ?? "");
}

export async function get(path, parameters = {}, options = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return (await call(query.size ? `${path}?${query}` : path, options)).json();
}

async function send(path, body, options = {}) {
  return call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...options });
}

export async function post(path, body = {}, options = {}) {
  return (await send(path, body, options)).json();
}

/** The answer as a file, with the name that the server gives it. */
export async function postForFile(path, body, fallback) {
  const answer = await send(path, body);
  const named = /filename="?([^";]+)"?/.exec(answer.headers.get("Content-Disposition") || "");
  return { blob: await answer.blob(), name: named ? named[1] : fallback };
}

export async function buffer(path) {
  return (await call(path)).arrayBuffer();
}

/** Send a file's bytes; report the sent share, 0 to 1. */
export function upload(file, report = () => {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `api/upload?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("Content-Type", file.type || "application/octet-stream");
    request.upload.onprogress = (event) => event.lengthComputable && report(event.loaded / event.total);
    request.onerror = () => reject(new Error(GONE));
    request.onload = () => settle(request, resolve, reject);
    request.send(file);
  });
}

function settle(request, resolve, reject) {
  let body = {};
  try {
    body = JSON.parse(request.responseText);
  } catch {
    // Not JSON: the status says what there is to say.
  }
  if (request.status < 300) resolve(body.track);
  else reject(new Error(sentence(body.error) || `The upload was refused with status ${request.status}.`));
}

const tracks = new Map();

/** Keep what lists brought, so that a song is asked for once. */
export function remember(list) {
  list.forEach((track) => tracks.set(track.id, track));
  return list;
}

export async function track(id) {
  if (!tracks.has(id)) tracks.set(id, await get(`api/tracks/${encodeURIComponent(id)}`));
  return tracks.get(id);
}

export function audioUrl(id, form = "") {
  return `api/audio/${encodeURIComponent(id)}${form ? `?as=${form}` : ""}`;
}

const insides = new Map();

/** Waveform of a whole song (1,200 pairs) and the log-mel of one window; the newest 40 are kept. */
export async function inside(id, start = null) {
  const key = `${id} ${start ?? ""}`;
  if (!insides.has(key)) {
    const answer = get(`api/inside/${encodeURIComponent(id)}`, { start_s: start ?? 0 });
    insides.set(key, answer);
    answer.catch(() => insides.delete(key));
    if (insides.size > 40) insides.delete(insides.keys().next().value);
  }
  return insides.get(key);
}
