// The player at the bottom: one audio element, the list that the song came from, a waveform to seek in.

import { audioUrl, inside } from "./api.js";
import { bytes, clock, colour, el, fill, icon, iconButton, speak } from "./dom.js";
import { on, select, state, tell } from "./state.js";
import WaveSurfer from "./vendor/wavesurfer.js";

// Formats that a browser may not play; the server makes another of them on the fly.
const TYPES = {
  flac: "audio/flac", mp3: "audio/mpeg", m4a: "audio/mp4", mp4: "audio/mp4", aac: "audio/aac", ogg: "audio/ogg",
  oga: "audio/ogg", opus: 'audio/ogg; codecs="opus"', wav: "audio/wav", webm: "audio/webm",
};

class Player {
  constructor() {
    this.audio = new Audio();
    this.audio.preload = "metadata";
    this.song = null;
    this.list = [];
    this.stretch = null; // {end, then}: play until here, then do that
    this.forms = []; // what to try next when the browser cannot play a file
    this.wave = null;
    const { audio } = this;
    for (const name of ["play", "pause", "ended"]) audio.addEventListener(name, () => this.update());
    for (const name of ["loadedmetadata", "durationchange", "seeked"]) audio.addEventListener(name, () => this.tick());
    audio.addEventListener("timeupdate", () => this.tick());
    audio.addEventListener("ended", () => (this.stretch ? this.endStretch() : this.step(1)));
    audio.addEventListener("error", () => this.fallback());
  }

  get playing() {
    return !this.audio.paused && !this.audio.ended;
  }

  /** Play a song; `list` is where previous and next lead. */
  play(song, { list = null, start = 0 } = {}) {
    this.stretch = null;
    if (list) this.list = list;
    select(song);
    this.load(song, start);
    return this.run();
  }

  /** Play one stretch, then the next: how the reason of a similarity is compared by ear. */
  playStretches(stretches) {
    const [first, ...rest] = stretches;
    if (!first) return;
    this.load(first.song, first.start_s);
    this.stretch = { end: first.end_s, then: rest };
    this.run();
    speak(`${first.song.title}, ${clock(first.start_s)} to ${clock(first.end_s)}`);
  }

  load(song, start) {
    if (this.song?.id !== song.id) {
      this.song = song;
      const type = TYPES[song.path?.split(".").pop().toLowerCase()];
      const able = !type || this.audio.canPlayType(type);
      this.forms = able ? ["", "ogg", "wav"] : ["ogg", "wav"];
      this.fail("");
      this.source(this.forms.shift(), start);
      this.drawSong();
      this.drawWave(song);
    } else {
      this.audio.currentTime = start;
    }
    tell("playing", song);
  }

  source(form, start) {
    this.start = start;
    this.audio.src = audioUrl(this.song.id, form);
    if (start) this.audio.addEventListener("loadedmetadata", () => (this.audio.currentTime = this.start), { once: true });
  }

  async run() {
    try {
      await this.audio.play();
    } catch (error) {
      if (error.name === "NotAllowedError") this.fail("The browser waits for a click before it plays sound. Press play.");
    }
  }

  /** A source that failed is asked for in another form; when none is left, the server says why. */
  async fallback() {
    if (!this.song || !this.audio.getAttribute("src")) return;
    const form = this.forms.shift();
    if (form !== undefined) {
      this.source(form, this.start);
      this.run();
      return;
    }
    const { song } = this;
    let reason = "The browser cannot play it, and neither can the form that the server made.";
    try {
      const answer = await fetch(audioUrl(song.id), { headers: { Range: "bytes=0-1" } });
      if (!answer.ok) reason = (await answer.json()).error;
    } catch {
      reason = "The server does not answer.";
    }
    if (this.song === song) this.fail(reason);
  }

  fail(text) {
    this.parts.error.textContent = text;
    this.parts.error.hidden = !text;
  }

  toggle() {
    if (!this.song) {
      if (state.song) this.play(state.song, { list: [state.song] });
      return;
    }
    if (this.playing) this.audio.pause();
    else this.run();
  }

  step(by) {
    const index = this.list.findIndex((song) => song.id === this.song?.id);
    const next = this.list[index + by];
    if (index >= 0 && next) this.play(next);
  }

  endStretch() {
    const { then } = this.stretch;
    this.stretch = null;
    if (then.length) this.playStretches(then);
    else this.audio.pause();
  }

  seek(seconds) {
    this.stretch = null;
    this.audio.currentTime = Math.max(0, Math.min(seconds, this.duration || seconds));
    this.tick();
  }

  get duration() {
    const known = this.audio.duration;
    return Number.isFinite(known) && known > 0 ? known : (this.song?.duration_s ?? 0);
  }

  // --- what is drawn ---

  draw(place) {
    const slider = el("input", { type: "range", min: 0, max: 1000, value: 0, "aria-label": "Position in the song" });
    slider.addEventListener("input", () => this.seek((slider.value / 1000) * this.duration));
    this.parts = {
      place,
      title: el("span.song-title", {}, "Nothing is playing"),
      artist: el("span.song-artist", {}, "Choose a song"),
      play: iconButton("play", "Play", () => this.toggle(), { class: "icon-button play" }),
      now: el("span.number", {}, "0:00"),
      total: el("span", {}, "0:00"),
      line: el("div.bar.line", {}, el("i")),
      wave: el("div.wave"),
      slider,
      error: el("p.player-error", { role: "alert", hidden: true }),
    };
    const { title, artist, play, now, total, line, wave, error } = this.parts;
    fill(
      place,
      el("div.player-song", {}, title, artist),
      el("div.player-buttons", {}, iconButton("previous", "Previous song", () => this.step(-1)), play, iconButton("next", "Next song", () => this.step(1))),
      el("div.player-seek", {}, now, el("div.player-wave", {}, line, wave, slider), total),
      el(
        "div.player-end",
        {},
        iconButton("similar", "Songs similar to this one", () => this.song && tell("similar", this.song)),
        iconButton("inside", "Look inside this song", () => this.song && tell("inside", this.song)),
      ),
      error,
      this.audio,
    );
    place.classList.add("idle");
    on("theme", () => this.song && this.drawWave(this.song));
  }

  drawSong() {
    const { title, artist, place } = this.parts;
    title.textContent = this.song.title;
    title.title = this.song.title;
    artist.textContent = [this.song.artist, this.song.album].filter(Boolean).join(" · ") || this.song.path;
    place.classList.remove("idle");
  }

  /** Peaks come from the server, so a long file is not decoded in the browser. */
  async drawWave(song) {
    this.wave?.destroy();
    this.wave = null;
    this.parts.line.hidden = false;
    let peaks;
    try {
      const answer = await inside(song.id);
      peaks = [Float32Array.from(new Int8Array(bytes(answer.waveform).buffer), (value) => value / 127)];
      if (this.song !== song || this.wave) return;
    } catch {
      return; // The plain line stays; why the song cannot be read is said by the audio element.
    }
    this.wave = WaveSurfer.create({
      container: this.parts.wave, height: "auto", peaks, duration: song.duration_s || 1, interact: false,
      waveColor: colour("wave"), progressColor: colour("accent"), cursorWidth: 0, barWidth: 2, barGap: 1, barRadius: 1, normalize: true,
    });
    this.parts.line.hidden = true;
    this.tick();
  }

  tick() {
    const { audio, parts, duration } = this;
    if (this.stretch && audio.currentTime >= this.stretch.end) this.endStretch();
    const share = duration ? audio.currentTime / duration : 0;
    parts.now.textContent = clock(audio.currentTime) || "0:00";
    parts.total.textContent = clock(duration) || "0:00";
    parts.slider.value = Math.round(share * 1000);
    parts.slider.setAttribute("aria-valuetext", `${clock(audio.currentTime)} of ${clock(duration)}`);
    parts.line.firstChild.style.width = `${100 * share}%`;
    this.wave?.setTime?.(Math.min(audio.currentTime, duration));
    tell("time", audio.currentTime);
  }

  update() {
    const { play } = this.parts;
    fill(play, icon(this.playing ? "pause" : "play"));
    play.setAttribute("aria-label", this.playing ? "Pause" : "Play");
    play.title = this.playing ? "Pause" : "Play";
    tell("playing", this.song);
  }
}

export const player = new Player();
