"""Single notes, chords and mixtures: pitch class, octave, instrument family, chord quality, and which families play together.

Presets are divided between training and validation; the test has another SoundFont. Pitch, tuning, loudness and level are drawn independently of
the preset, except that a bass in a mixture plays low. Presets that are out of tune or silent between C2 and B5 were measured and excluded.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from groups import deal, dice, write_manifest
from scores import NAMES
from sound import PROGRAMS, Note, Sound, draw_finish, render_all, soundfont_for

FAMILIES: dict[
    str, tuple[int, ...]
] = {  # General MIDI's, without presets of uncertain pitch or narrow range
    "piano": (0, 1, 2, 3, 4, 5, 6, 7),
    "mallets": (8, 9, 10, 11, 12, 13, 14, 15),
    "organ": (16, 17, 18, 19, 20, 21, 22, 23),
    "guitar": (24, 25, 26, 27, 29, 30),
    "bass": (32, 33, 34, 35, 36, 37, 38, 39),
    "strings": (40, 41, 42, 44, 45, 46),
    "ensemble": (48, 49, 50, 51, 53, 54),
    "brass": (56, 57, 59, 60, 61, 62, 63),
    "reed": (64, 65, 66, 68, 69, 70, 71),
    "pipe": (72, 73, 74, 75, 76, 77, 79),
    "lead": (80, 81, 82, 83, 84, 85),
    "pad": (88, 89, 90, 91, 92, 93, 94, 95),
}
MIXED = ("piano", "mallets", "organ", "guitar", "bass", "strings", "brass", "reed", "pipe")
QUALITIES = {
    "maj": (0, 4, 7), "min": (0, 3, 7), "dim": (0, 3, 6), "aug": (0, 4, 8), "sus4": (0, 5, 7),
    "maj7": (0, 4, 7, 11), "min7": (0, 3, 7, 10), "dom7": (0, 4, 7, 10),
}  # fmt: skip
LOWEST, HIGHEST = 36, 83  # C2 to B5
NOTE_S, MIXTURE_S = 3.0, 5.0
SINGLES = {"train": 12, "valid": 8, "test": 6}  # of each preset
CHORDS = {"train": 560, "valid": 160, "test": 320}
MIXTURES = {"train": 560, "valid": 160, "test": 320}


def build(root: Path, workers: int, progress: Callable[[str], Any]) -> None:
    """Draw, render and list the clips of this family."""
    singles, chords, mixtures = draw_singles(), draw_chords(), draw_mixtures()
    render_all(root, [sound for sound, _ in (*singles, *chords, *mixtures)], workers, progress)
    single, chord, mixture = ([row for _, row in drawn] for drawn in (singles, chords, mixtures))
    lists = {
        "pitch-class": [row | {"target": row["pitch_class"]} for row in single],
        "octave": [row | {"target": row["octave"]} for row in single],
        "family": [row | {"target": row["family"]} for row in single],
        "chord-quality": [row | {"target": row["quality"]} for row in chord],
        "instruments": [row | {"target": row["families"]} for row in mixture],
    }
    for task, rows in lists.items():
        write_manifest(root / "tasks" / f"notes-{task}.jsonl", rows)


def presets(side: str) -> dict[str, list[int]]:
    """Presets of each family on a side: validation has others than training, the test all of the other SoundFont."""
    if side == "test":
        return {family: list(programs) for family, programs in FAMILIES.items()}
    chosen = {}
    for family, programs in FAMILIES.items():
        sides = deal(
            map(str, programs), f"notes/{family}"
        )  # presets of the test side train: the test has its own SoundFont
        chosen[family] = [
            program for program in programs if (sides[str(program)] == "valid") == (side == "valid")
        ]
    return chosen


def draw_singles() -> list[tuple[Sound, dict[str, Any]]]:
    """Draw clips of one note."""
    drawn = []
    for side, count in SINGLES.items():
        for family, programs in presets(side).items():
            for program in programs:
                for number in range(count):
                    path = f"clips/notes/single/{side}-{program:03d}-{number:02d}.ogg"
                    generator = dice("single", path)
                    pitch = int(generator.integers(LOWEST, HIGHEST + 1))
                    sound = _sound(
                        path, side, {0: program}, _together([pitch], generator), NOTE_S, generator
                    )
                    labels = {
                        "pitch_class": NAMES[pitch % 12],
                        "octave": f"octave {pitch // 12 - 1}",
                        "family": family,
                    }
                    drawn.append((sound, _row(sound, side, _group(side, program)) | labels))
    return drawn


def draw_chords() -> list[tuple[Sound, dict[str, Any]]]:
    """Draw clips of one chord, in any inversion and spacing, by one preset that sustains."""
    drawn = []
    for side, count in CHORDS.items():
        programs = [
            program
            for family, each in presets(side).items()
            if family != "bass"
            for program in each
            if program in PROGRAMS
        ]
        for number in range(count):
            path = f"clips/notes/chord/{side}-{number:04d}.ogg"
            generator = dice("chord", path)
            quality = list(QUALITIES)[number % len(QUALITIES)]
            program = int(generator.choice(programs))
            sound = _sound(
                path,
                side,
                {0: program},
                _together(_voiced(quality, generator), generator),
                NOTE_S,
                generator,
            )
            drawn.append((sound, _row(sound, side, _group(side, program)) | {"quality": quality}))
    return drawn


def _voiced(quality: str, generator: np.random.Generator) -> list[int]:
    """Pitches of a chord: the degrees below a drawn one go up an octave, and so may one of the others."""
    root = int(generator.integers(48, 60))
    degrees = list(QUALITIES[quality])
    inversion = int(generator.integers(len(degrees)))
    pitches = [
        root + degree + (12 if index < inversion else 0) for index, degree in enumerate(degrees)
    ]
    if generator.random() < 0.5:
        pitches[int(generator.integers(len(pitches)))] += 12
    return sorted(set(pitches))


def draw_mixtures() -> list[tuple[Sound, dict[str, Any]]]:
    """Draw clips of one to four families at once, each with its own short line in a common key."""
    drawn = []
    for side, count in MIXTURES.items():
        pool = presets(side)
        for number in range(count):
            path = f"clips/notes/mixture/{side}-{number:04d}.ogg"
            generator = dice("mixture", path)
            playing = sorted(
                generator.choice(MIXED, int(generator.integers(1, 5)), replace=False).tolist()
            )
            programs, lines = draw_lines(playing, pool, generator)
            sound = _sound(path, side, programs, lines, MIXTURE_S, generator)
            drawn.append(
                (
                    sound,
                    _row(sound, side, f"notes/mixture/{side}-{number:04d}") | {"families": playing},
                )
            )
    return drawn


def draw_lines(
    families: Sequence[str], pool: Mapping[str, Sequence[int]], generator: np.random.Generator
) -> tuple[dict[int, int], list[Note]]:
    """Programs of channels, one for each family, and a line for each in a common key."""
    programs = {
        channel: int(generator.choice(pool[family])) for channel, family in enumerate(families)
    }
    tonic = int(generator.integers(12))
    lines = [
        note
        for channel, family in enumerate(families)
        for note in _line(channel, family, tonic, generator)
    ]
    return programs, lines


def _line(channel: int, family: str, tonic: int, generator: np.random.Generator) -> list[Note]:
    """Notes of a major scale, one after another, near a drawn register."""
    scale = np.array([0, 2, 4, 5, 7, 9, 11])
    centre = (
        int(generator.integers(2, 4) if family == "bass" else generator.integers(3, 6)) * 12 + tonic
    )
    time, notes, degree = float(generator.uniform(0, 0.5)), [], int(generator.integers(7))
    loudness = generator.uniform(75, 110)
    while time < MIXTURE_S:
        length = float(generator.choice([0.25, 0.375, 0.5, 0.75, 1.0]))
        degree = int(np.clip(degree + generator.integers(-2, 3), 0, 6))
        notes.append(
            Note(
                time,
                time + 0.95 * length,
                centre + int(scale[degree]),
                int(np.clip(loudness + generator.normal(0, 6), 20, 127)),
                channel,
            )
        )
        time += length
    return notes


def draw_phrase(channel: int, seconds: float, generator: np.random.Generator) -> list[Note]:
    """Draw consecutive notes and chords of any pitch, length and kind, with rests."""
    time, drawn = float(generator.uniform(0, 1)), list[Note]()
    while time < seconds:
        length = float(np.exp(generator.uniform(np.log(0.2), np.log(2.5))))
        chord = generator.random() < 0.5
        pitches = (
            _voiced(str(generator.choice(list(QUALITIES))), generator)
            if chord
            else [int(generator.integers(LOWEST, HIGHEST + 1))]
        )
        velocity = int(generator.integers(60, 115))
        drawn += [Note(time, time + length, pitch, velocity, channel) for pitch in pitches]
        time += length + float(generator.choice([0.0, 0.0, 0.5])) * float(generator.random())
    return drawn


def _together(pitches: Sequence[int], generator: np.random.Generator) -> list[Note]:
    start = float(generator.uniform(0.05, 0.5))
    end = start + float(generator.uniform(0.8, 2.0))
    velocity = int(generator.integers(60, 115))
    return [Note(start, end, pitch, velocity) for pitch in pitches]


def _sound(
    path: str,
    side: str,
    programs: dict[int, int],
    notes: Sequence[Note],
    seconds: float,
    generator: np.random.Generator,
) -> Sound:
    return Sound(path, soundfont_for(side), programs, notes, seconds, **draw_finish(generator))


def _row(sound: Sound, side: str, group: str) -> dict[str, Any]:
    return {
        "path": sound.path,
        "split": side,
        "group": group,
        "tuning_cents": round(sound.tuning_cents, 1),
    }


def _group(side: str, program: int) -> str:
    """A preset of a SoundFont."""
    return f"notes/{Path(soundfont_for(side)).stem}/{program}"
