"""Accompaniments that Debian's mma writes over our own chord progressions: style, tempo, metre, and frame-wise chords and beats.

Progression, key, tempo and instruments are drawn independently of the style; the drum pattern is the style. In the style task the test has other
progressions than training. In the tasks of tempo, metre, chords and beats it has other styles and other progressions.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from groups import deal, dice, write_manifest
from scores import NAMES
from sound import (
    DRUMS,
    PRE_ROLL_S,
    PROGRAMS,
    Note,
    Sound,
    draw_finish,
    render,
    render_all,
    soundfont_for,
)

from patchifier.config import RequestError

CLIP_S = 10.0
MMA = "mma/usr/share/mma"  # below ROOT/deb
BASSES = (32, 33, 34, 35, 36, 38, 39)
PROGRESSIONS = 300
TEMPO_BPM = (60.0, 180.0)
TEMPO_CLASSES = 22  # of 5 % each: the right class is within 4 %
STYLED = (  # of the style task; all in four, with drums
    "50srock", "beguine", "bluegrass", "bossanova", "calypso", "foxtrot", "mambo", "polka",
    "rhumba", "salsa", "samba", "ska", "swing", "tango", "trance", "zydeco",
)  # fmt: skip
CLIPS = {"train": 16, "valid": 6, "test": 8}  # of each style of the style task
PER_STYLE = {
    3: {"train": 16, "valid": 16, "test": 16},
    4: {"train": 5, "valid": 5, "test": 5},
}  # of each other style in three and in four
FRAMES = {"train": 160, "valid": 60, "test": 80}  # clips of the chord and beat tasks

# Degrees that may follow a degree, in a major and in a minor key; a number of semitones above the tonic and a quality.
MAJOR = {
    "I": ("IV", "V", "vi", "ii", "iii"),
    "ii": ("V", "IV"),
    "iii": ("vi", "IV"),
    "IV": ("I", "V", "ii"),
    "V": ("I", "vi"),
    "vi": ("IV", "ii", "V"),
}
MINOR = {
    "i": ("iv", "VI", "VII", "v"), "III": ("VI", "VII"), "iv": ("i", "V", "VII"), "v": ("i", "VI"), "V": ("i",), "VI": ("III", "VII", "iv"),
    "VII": ("III", "i"),
}  # fmt: skip
DEGREES = {
    "I": 0,
    "i": 0,
    "ii": 2,
    "III": 3,
    "iii": 4,
    "IV": 5,
    "iv": 5,
    "V": 7,
    "v": 7,
    "VI": 8,
    "vi": 9,
    "VII": 10,
}
SUFFIX = {"maj": "", "min": "m", "7": "7", "maj7": "M7", "min7": "m7"}  # Harte's name -> mma's


@dataclass(frozen=True)
class Groove:
    """An accompaniment before it is rendered; the clip begins at `offset_s`."""

    path: str
    soundfont: str
    style: str
    beats: int
    tempo_bpm: float
    bars: tuple[tuple[tuple[str, str], ...], ...]  # of (root, quality), one or two to a bar
    offset_s: float


def build(root: Path, workers: int, progress: Callable[[str], Any]) -> None:
    """Draw, render and list the clips of this family."""
    styles = find_styles(root / "deb" / MMA / "lib" / "stdlib")
    styled, others = draw_styled(styles), draw_others(styles)
    render_all(root, [groove for groove, _ in (*styled, *others)], workers, progress, accompany)
    named, rest = [row for _, row in styled], [row for _, row in others]
    lists = {
        "style": [row | {"target": row["style"]} for row in named],
        "tempo": [row | {"target": tempo_class(row["bpm"])} for row in rest],
        "metre": [row | {"target": f"{row['beats']} beats"} for row in metred(rest)],
    }
    moments = choose_framed(others)
    lists["chords"] = [
        row | {"target": chord_rows(groove), "metric": "chords"} for groove, row in moments
    ]
    lists["beats"] = [
        row | {"target": beat_rows(groove), "metric": "beats"} for groove, row in moments
    ]
    for task, rows in lists.items():
        write_manifest(root / "tasks" / f"grooves-{task}.jsonl", rows)


# --- draws ---


def find_styles(folder: Path) -> dict[str, tuple[str, int]]:
    """Files of mma's library with one metre, 3 or 4 beats to a bar: file -> (its first groove that is not an intro, beats)."""
    found = {}
    for path in sorted(folder.glob("*.mma")):
        text = path.read_text(encoding="utf-8", errors="replace")
        beats = set(re.findall(r"(?mi)^\s*time\s+(\d+)\b", text))
        grooves = [
            name
            for name in re.findall(r"(?mi)^\s*defgroove\s+(\S+)", text)
            if not re.search("(?i)intro|end|fill", name)
        ]
        metre = set(re.findall(r"(?mi)^\s*timesig\s+(\d+)", text))
        unsure = (
            path.stem.startswith(("metronome", "none"))
            or "128" in path.stem
            or (metre == {"4"}) > (beats == {"4"})
            or "6" in metre
        )
        if grooves and len(beats) == 1 and beats <= {"3", "4"} and not unsure:
            found[path.stem] = (grooves[0], int(beats.pop()))
    return found


def progression(name: str) -> list[tuple[int, str]]:
    """Eight bars of (semitones above the tonic, quality), from the name alone."""
    generator = dice("progression", name)
    table = MAJOR if generator.random() < 0.6 else MINOR
    degree = next(iter(table))
    chords = []
    for _ in range(8):
        plain = "maj" if degree.isupper() else "min"
        seventh = "7" if degree == "V" else "maj7" if plain == "maj" else "min7"
        chords.append((DEGREES[degree], seventh if generator.random() < 0.3 else plain))
        degree = str(generator.choice(table[degree]))
    return chords


def progressions() -> dict[str, list[str]]:
    """Names of the progressions of each side."""
    sides = deal((f"progression-{number:03d}" for number in range(PROGRESSIONS)), "progressions")
    return {
        side: sorted(name for name, where in sides.items() if where == side)
        for side in ("train", "valid", "test")
    }


def draw(
    path: str,
    side: str,
    style: tuple[str, int],
    soundfont: str,
    pool: Sequence[str],
    seconds: float,
) -> tuple[Groove, str]:
    """Draw everything of a clip except its style, from its path alone; return the groove and its progression's name."""
    generator = dice("groove", path)
    name = str(generator.choice(pool))
    tonic = int(generator.integers(12))
    tempo = float(round(np.exp(generator.uniform(*np.log(TEMPO_BPM)))))  # mma drops decimals
    bar_s = style[1] * 60 / tempo
    offset = PRE_ROLL_S + float(generator.uniform(0, bar_s))
    chords = progression(name)
    bars: list[tuple[tuple[str, str], ...]] = []
    at = int(generator.integers(len(chords)))
    while len(bars) * bar_s < offset + seconds + 0.5:
        halves = 2 if style[1] == 4 and generator.random() < 0.25 else 1
        chosen = [chords[(at + half) % len(chords)] for half in range(halves)]
        bars.append(
            tuple((NAMES[(tonic + semitones) % 12], quality) for semitones, quality in chosen)
        )
        at += halves
    return Groove(path, soundfont, style[0], style[1], tempo, tuple(bars), offset), name


def draw_styled(styles: dict[str, tuple[str, int]]) -> list[tuple[Groove, dict[str, Any]]]:
    """Draw the clips of the style task; groups are progressions."""
    pools, drawn = progressions(), []
    for style in STYLED:
        for side, count in CLIPS.items():
            for number in range(count):
                path = f"clips/grooves/{style}/{side}-{number:02d}.ogg"
                groove, name = draw(
                    path, side, styles[style], soundfont_for(side), pools[side], CLIP_S
                )
                drawn.append((groove, _row(groove, side, f"grooves/{name}", style, name)))
    return drawn


def draw_others(styles: dict[str, tuple[str, int]]) -> list[tuple[Groove, dict[str, Any]]]:
    """Draw the clips of all other styles; groups are styles, and each progression has one side too."""
    pools, drawn = progressions(), []
    for beats in (3, 4):
        names = [
            name for name, (_, count) in styles.items() if count == beats and name not in STYLED
        ]
        for style, side in deal(names, f"grooves/{beats}").items():
            for number in range(PER_STYLE[beats][side]):
                path = f"clips/grooves/{style}/{side}-{number:02d}.ogg"
                groove, name = draw(
                    path, side, styles[style], soundfont_for(side), pools[side], CLIP_S
                )
                drawn.append((groove, _row(groove, side, f"grooves/{style}", style, name)))
    return drawn


def _row(groove: Groove, side: str, group: str, style: str, name: str) -> dict[str, Any]:
    return {
        "path": groove.path, "split": side, "group": group, "style": style, "progression": name, "beats": groove.beats, "bpm": groove.tempo_bpm,
    }  # fmt: skip


# --- labels ---


def tempo_edges() -> np.ndarray:
    """Edges of the tempo classes, in beats per minute."""
    return np.geomspace(*TEMPO_BPM, TEMPO_CLASSES + 1)


def tempo_class(bpm: float) -> str:
    """Return the name of a tempo's class: its middle."""
    edges = tempo_edges()
    index = int(np.clip(np.searchsorted(edges, bpm, side="right") - 1, 0, TEMPO_CLASSES - 1))
    return f"{np.sqrt(edges[index] * edges[index + 1]):06.2f} bpm"


def metred(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select as many clips in four as in three, on every side."""
    kept = []
    for side in ("train", "valid", "test"):
        threes, fours = (
            [row for row in rows if row["split"] == side and row["beats"] == beats]
            for beats in (3, 4)
        )
        count = min(len(threes), len(fours))
        order = dice("metred", side).permutation(len(fours))
        kept += threes[:count] + [fours[number] for number in order[:count]]
    return kept


def choose_framed(
    drawn: Sequence[tuple[Groove, dict[str, Any]]],
) -> list[tuple[Groove, dict[str, Any]]]:
    """Select the clips of the chord and beat tasks: a share of every side, styles in turn."""
    kept: list[tuple[Groove, dict[str, Any]]] = []
    for side, count in FRAMES.items():
        members = [pair for pair in drawn if pair[1]["split"] == side]
        kept += [
            members[number] for number in dice("framed", side).permutation(len(members))[:count]
        ]
    return kept


def chord_rows(groove: Groove, seconds: float = CLIP_S) -> list[list[Any]]:
    """Return rows [start_s, end_s, chord] of the clip; neighbours of one name are joined."""
    rows: list[list[Any]] = []
    beat_s = 60 / groove.tempo_bpm
    for number, bar in enumerate(groove.bars):
        for half, (root, quality) in enumerate(bar):
            start = (number + half / len(bar)) * groove.beats * beat_s - groove.offset_s
            end = start + groove.beats * beat_s / len(bar)
            first, last, name = max(0.0, start), min(seconds, end), f"{root}:{quality}"
            if last - first < 1e-3:
                continue
            if rows and rows[-1][2] == name:
                rows[-1][1] = round(last, 4)
            else:
                rows.append([round(first, 4), round(last, 4), name])
    return rows


def beat_rows(groove: Groove, seconds: float = CLIP_S) -> list[list[Any]]:
    """Return rows [time_s, position in the bar] of the clip."""
    beat_s = 60 / groove.tempo_bpm
    times = [
        (number * beat_s - groove.offset_s, number % groove.beats + 1)
        for number in range(len(groove.bars) * groove.beats)
    ]
    return [[round(time, 4), place] for time, place in times if 0 <= time < seconds]


# --- sound ---


def chart(groove: Groove, seed: int) -> str:
    """Write the accompaniment in mma's language."""
    lines = [f"RndSeed {seed}", f"Tempo {groove.tempo_bpm:.0f}", f"Groove {groove.style}"]
    for number, bar in enumerate(groove.bars, 1):
        names = [root + SUFFIX[quality] for root, quality in bar]
        lines.append(
            f"{number} {names[0]}" if len(names) == 1 else f"{number} {names[0]} / {names[1]} /"
        )
    return "\n".join(lines) + "\n"


def accompany(root: Path, groove: Groove, seconds: float = CLIP_S) -> str:
    """Run mma, draw the instruments, render and write the clip, unless it exists; return its path."""
    if (root / groove.path).exists():
        return groove.path
    generator = dice("instruments", groove.path)
    events = write_midi(root / "deb" / MMA, chart(groove, int(generator.integers(1, 2**20))))
    originals = {event[0]: event[3] for event in events}
    programs = {
        channel: int(generator.choice(BASSES if 32 <= program < 40 else PROGRAMS))
        for channel, program in sorted(originals.items())
        if channel != DRUMS
    }
    notes = [
        Note(start - groove.offset_s, end - groove.offset_s, pitch, velocity, channel)
        for channel, start, end, _, pitch, velocity in events
    ]
    sounding = [note for note in notes if note.end_s > -PRE_ROLL_S and note.start_s < seconds]
    return render(
        root,
        Sound(groove.path, groove.soundfont, programs, sounding, seconds, **draw_finish(generator)),
    )


def write_midi(folder: Path, text: str) -> list[tuple[int, float, float, int, int, int]]:
    """Notes (channel, start_s, end_s, the groove's own program, pitch, velocity) of a chart."""
    from tinysoundfont import midi

    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "chart.mma", Path(place) / "chart.mid"
        source.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(folder / "mma.py"), "-f", str(target), str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not target.exists():
            raise RequestError(
                f"mma cannot write this accompaniment ({done.stdout.strip()[-300:]}):\n{text}"
            )
        events = midi.load(str(target))
    return pair_notes(events)


def pair_notes(events: Sequence[Any]) -> list[tuple[int, float, float, int, int, int]]:
    """Join the start of every note with its end; a note without an end lasts two seconds."""
    program: dict[int, int] = {}
    sounding: dict[tuple[int, int], tuple[float, int, int]] = {}
    notes = []
    for event in events:
        kind, action = type(event.action).__name__, event.action
        if kind == "ProgramChange":
            program.setdefault(event.channel, action.program)
        if kind not in ("NoteOn", "NoteOff"):
            continue
        place = (event.channel, action.key)
        if place in sounding:
            start, own, velocity = sounding.pop(place)
            notes.append((event.channel, start, float(event.t), own, action.key, velocity))
        if kind == "NoteOn" and action.velocity > 0:
            sounding[place] = (float(event.t), program.get(event.channel, 0), action.velocity)
    notes += [
        (channel, start, start + 2.0, own, key, velocity)
        for (channel, key), (start, own, velocity) in sounding.items()
    ]
    return sorted(notes, key=lambda note: note[1])
