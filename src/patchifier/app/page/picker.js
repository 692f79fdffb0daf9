// A field that finds songs by name: type, choose with the arrow keys, Enter.

import { get, remember } from "./api.js";
import { debounce, el, fill } from "./dom.js";

let count = 0;

/** Make the field; `choose` gets the song. */
export function picker(label, choose) {
  count += 1;
  const id = `picker-${count}`;
  const list = el("ul.picker-list", { role: "listbox", id, hidden: true, "aria-label": "Songs found" });
  const field = el("input", {
    type: "text", role: "combobox", placeholder: label, "aria-label": label, "aria-controls": id, "aria-expanded": "false", autocomplete: "off", spellcheck: "false",
  });
  let songs = [];
  let active = 0;

  const close = () => {
    list.hidden = true;
    field.setAttribute("aria-expanded", "false");
  };
  const draw = () => {
    const rows = songs.map((song, index) =>
      el(
        "li",
        { role: "option", id: `${id}-${index}`, "aria-selected": String(index === active), onmousedown: (event) => pick(event, index) },
        el("span.song-title", {}, song.title),
        el("span.song-artist", {}, [song.artist, song.album].filter(Boolean).join(" · ") || song.path),
      ),
    );
    fill(list, rows.length ? rows : el("li.soft", { role: "option" }, "No song has this name"));
    list.hidden = false;
    field.setAttribute("aria-expanded", "true");
    field.setAttribute("aria-activedescendant", rows.length ? `${id}-${active}` : "");
  };
  const pick = (event, index) => {
    event.preventDefault();
    if (!songs[index]) return;
    choose(songs[index]);
    field.value = "";
    close();
  };
  const find = debounce(async () => {
    const search = field.value.trim();
    if (!search) return close();
    try {
      songs = remember((await get("api/tracks", { search, limit: 8 })).tracks);
      active = 0;
      draw();
    } catch (error) {
      fill(list, el("li", {}, error.message));
      list.hidden = false;
    }
    return undefined;
  });
  field.addEventListener("input", find);
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      active = (active + (event.key === "ArrowDown" ? 1 : songs.length - 1)) % Math.max(1, songs.length);
      if (songs.length) draw();
      event.preventDefault();
    } else if (event.key === "Enter" && !list.hidden) pick(event, active);
    else if (event.key === "Escape") close();
  });
  return el("div.picker", {}, field, list);
}
