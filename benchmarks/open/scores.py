"""Scores through SoundFonts: collection, mode, key, tonic, metre and onset rate, with timbre, speed, key and level drawn independently.

Collections still differ in melody, harmony, rhythm, number of parts and register, in the entries of the parts, and in short pieces that begin
again. Collections of one part and of several parts are two tasks.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import score_sources
from duplicate_pieces import without_duplicates
from groups import balanced, deal, dice, write_manifest
from score_sources import COLLECTIONS, key_of
from sound import PRE_ROLL_S, PROGRAMS, Note, Sound, draw_finish, render_all, soundfont_for

CLIP_S = 10.0
ONSETS_PER_S = (2.0, 5.5)
NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
METRES = ("2/4", "3/4", "4/4", "6/8")
HIGHEST = {58: 66}  # FluidR3's tuba is silent above
MIDI_CHANNELS = [channel for channel in range(16) if channel != 9]


def build(root: Path, workers: int, progress: Callable[[str], Any]) -> None:
    """Draw, render and list the clips of this family."""
    pieces = dealt(root)
    kept = without_duplicates(pieces)
    print(
        f"scores: {len(pieces) - len(kept)} of {len(pieces):,} pieces are left out, since they train or test under another name too",
        flush=True,
    )
    drawn = [draw(piece, side) for piece, side in kept]
    render_all(root, [sound for sound, _ in drawn], workers, progress)
    for task, rows in tasks([row for _, row in drawn]).items():
        write_manifest(root / "tasks" / f"scores-{task}.jsonl", rows)


def dealt(
    root: Path, names: Sequence[str] = tuple(COLLECTIONS)
) -> list[tuple[dict[str, Any], str]]:
    """Return every piece of these collections with its side."""
    found = []
    for name in names:
        pieces = score_sources.read(name, root / "work" / "scores")
        sides = deal((piece["group"] for piece in pieces), f"scores/{name}")
        found += [(piece, sides[piece["group"]]) for piece in pieces]
    return found


def draw(piece: dict[str, Any], side: str) -> tuple[Sound, dict[str, Any]]:
    """Return the clip of a piece and its labels."""
    sound, place = perform(piece, f"clips/scores/{piece['id']}.ogg", soundfont_for(side), CLIP_S)
    return sound, describe(piece, sound, place) | {"split": side}


def perform(
    piece: dict[str, Any], path: str, soundfont: str, seconds: float
) -> tuple[Sound, dict[str, float]]:
    """Draw everything of a clip from its path alone; return the sound, and its place in the score."""
    generator = dice("perform", path)
    rate = math.exp(generator.uniform(*np.log(ONSETS_PER_S)))
    quarters_per_s = rate / (piece["onsets"] / piece["quarters"])
    length_s = piece["quarters"] / quarters_per_s
    start_s = generator.uniform(0, max(0.0, length_s - seconds))
    transposed = int(generator.integers(-6, 6))
    parts = piece["parts"]
    programs = (
        generator.choice(PROGRAMS, parts)
        if generator.random() < 0.5
        else np.full(parts, generator.choice(PROGRAMS))
    )
    loudness = generator.uniform(70, 105, parts)
    notes = []
    for repeat in range(
        1 + math.ceil(max(0.0, seconds - length_s) / length_s)
    ):  # a short piece begins again
        for start, length, pitch, part in piece["notes"]:
            at = repeat * length_s + start / quarters_per_s - start_s
            end = at + 0.97 * length / quarters_per_s
            if end > -PRE_ROLL_S and at < seconds:
                jitter, accent = generator.normal(0, 0.005), generator.normal(0, 6)
                velocity = int(np.clip(loudness[part] + accent, 20, 127))
                notes.append(
                    Note(
                        at + jitter,
                        end,
                        playable(pitch + transposed, int(programs[part])),
                        velocity,
                        MIDI_CHANNELS[part],
                    )
                )
    sound = Sound(
        path,
        soundfont,
        {MIDI_CHANNELS[part]: int(program) for part, program in enumerate(programs)},
        notes,
        seconds,
        **draw_finish(generator),
    )
    return sound, {
        "first": start_s * quarters_per_s,
        "last": (start_s + seconds) * quarters_per_s,
        "transposed": transposed,
        "length_s": length_s,
    }


def playable(pitch: int, program: int) -> int:
    """Return the pitch, or a lower octave of it if the preset is silent there."""
    while pitch > HIGHEST.get(program, 115):
        pitch -= 12
    return pitch


def describe(piece: dict[str, Any], sound: Sound, place: dict[str, float]) -> dict[str, Any]:
    """Labels of a clip; "" where unknown. `onsets` counts the moments at which notes start."""
    name = piece["collection"]
    sounding = [note for note in piece["notes"] if place["first"] <= note[0] < place["last"]]
    tonic, mode, source = key_of(name, piece["notes"], in_force(piece["keys"], place["first"]))
    steady = constant(piece["keys"], place["first"], place["last"])
    agrees = len(sounding) > 3 and key_of(name, sounding, None)[:2] == (tonic, mode)
    certain = source == "notated" and steady and agrees and mode in ("major", "minor")
    sounding = NAMES[(tonic + int(place["transposed"])) % 12]
    metre = in_force(piece["metres"], place["first"])
    known = (
        metre is not None
        and constant(piece["metres"], place["first"], place["last"])
        and (COLLECTIONS[name].polyphonic or len(piece["metres"]) == 1)
    )
    onsets = moments([note.start_s for note in sound.notes if 0 <= note.start_s < sound.seconds])
    return {
        "path": sound.path, "group": f"scores/{piece['group']}", "collection": name, "mode": mode if certain else "", "tonic": sounding if certain else "",
        "key": f"{sounding} {mode}" if certain else "", "metre": metre[1] if known and metre else "", "onsets": len(onsets),
        "looped": int(place["length_s"] < sound.seconds), "tuning_cents": round(sound.tuning_cents, 1),
    }  # fmt: skip


def moments(times_s: Sequence[float]) -> list[float]:
    """Select times more than 40 ms apart, so that the jitter of a chord is one onset."""
    apart: list[float] = []
    for time in sorted(times_s):
        if not apart or time - apart[-1] > 0.04:
            apart.append(time)
    return apart


def in_force(changes: Sequence[list[Any]], quarter: float) -> list[Any] | None:
    """Return the last change at or before a position; the first, if all are later."""
    before = [change for change in changes if change[0] <= quarter + 1e-6]
    return before[-1] if before else (changes[0] if changes else None)


def constant(changes: Sequence[list[Any]], first: float, last: float) -> bool:
    """Whether nothing changes within a stretch."""
    now = in_force(changes, first)
    return all(
        now is not None and change[1:] == now[1:] for change in changes if first < change[0] < last
    )


def tasks(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each task, with its target."""
    polyphonic = [row for row in rows if COLLECTIONS[row["collection"]].polyphonic]
    monophonic = [row for row in rows if not COLLECTIONS[row["collection"]].polyphonic]
    keyed = [row for row in rows if row["key"]]
    metred = [row for row in rows if row["metre"] in METRES]
    return {
        "collection-polyphonic": aim(polyphonic, "collection"),
        "collection-monophonic": aim(monophonic, "collection"),
        "mode": aim(balanced(keyed, "mode", "collection"), "mode"),
        "key": aim(keyed, "key", metric="key_score"),
        "tonic": aim(keyed, "tonic"),
        "metre": aim(balanced(metred, "metre", "collection"), "metre"),
        "onset-rate": [
            row | {"target": round(math.log2(max(1, row["onsets"]) / CLIP_S), 4)} for row in rows
        ],
    }


def aim(rows: Sequence[dict[str, Any]], label: str, **more: str) -> list[dict[str, Any]]:
    """Rows with one of their labels as the target."""
    return [row | {"target": row[label]} | more for row in rows]
