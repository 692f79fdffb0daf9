// A list of songs: play, select, arrow keys. Each view adds its own buttons at the end of a row.

import { el, fill, icon, iconButton } from "./dom.js";
import { player } from "./player.js";
import { on, select, state } from "./state.js";

/** Title and artist in two lines. */
export function songName(song) {
  const below = [song.artist, song.album].filter(Boolean).join(" · ") || song.path;
  return el(
    "span.song-name",
    {},
    el("span.song-title", { title: song.title }, song.title),
    el("span.song-artist", {}, song.missing ? "The file is missing" : below),
  );
}

/**
 * A play button that shows whether its song plays.
 * @param {object} song
 * @param {() => object[]} list where previous and next lead
 */
export function playButton(song, list) {
  const toggle = iconButton("play", `Play ${song.title}`, (event) => {
    event.stopPropagation();
    if (player.song?.id === song.id) player.toggle();
    else player.play(song, { list: list() });
  });
  toggle.dataset.song = song.id;
  return toggle;
}

/**
 * A list of songs.
 * @param {object[]} songs
 * @param {{label: string, end?: (song, index) => Node[], below?: (song, index) => Node}} options
 */
export function songList(songs, { label, end = () => [], below = () => null }) {
  const rows = songs.map((song, index) =>
    el(
      "li.song",
      { tabIndex: index ? -1 : 0, "data-id": song.id, onclick: () => select(song) },
      el("div.song-line", {}, playButton(song, () => songs), songName(song), el("div.song-end", {}, end(song, index))),
      below(song, index),
    ),
  );
  rows.forEach((row, index) => row.classList.toggle("missing", Boolean(songs[index].missing)));
  const list = el("ul.songs", { "aria-label": label }, rows);
  list.addEventListener("keydown", (event) => arrows(event, rows, songs));
  mark(list);
  return list;
}

/** Up, Down, Home and End move; Enter plays. */
function arrows(event, rows, songs) {
  const index = rows.indexOf(event.target);
  if (index < 0) return;
  const to = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (to !== undefined && rows[to]) {
    rows[index].tabIndex = -1;
    rows[to].tabIndex = 0;
    rows[to].focus();
    select(songs[to]);
    event.preventDefault();
  } else if (event.key === "Enter") {
    player.play(songs[index], { list: songs });
    event.preventDefault();
  }
}

/** Show which song is selected and which one plays, in all lists of a place. */
export function mark(place = document.getElementById("view")) {
  for (const row of place.querySelectorAll("[data-id]")) {
    row.classList.toggle("selected", row.dataset.id === state.song?.id);
    row.classList.toggle("playing", row.dataset.id === player.song?.id);
  }
  for (const toggle of place.querySelectorAll("button[data-song]")) {
    const plays = toggle.dataset.song === player.song?.id && player.playing;
    if (toggle.dataset.plays === String(plays)) continue;
    toggle.dataset.plays = String(plays);
    fill(toggle, icon(plays ? "pause" : "play"));
    toggle.setAttribute("aria-label", toggle.getAttribute("aria-label").replace(/^\w+/, plays ? "Pause" : "Play"));
  }
}

on("song", () => mark());
on("playing", () => mark());
