"""Accompaniments and lines whose instruments are known: what the heads of `heads.py` learn from, besides single notes and chords.

Presets, styles and progressions of the training side alone train, those of the validation side measure. The training side has three folds, and a clip
has presets, a kit of drums and a style of one fold alone: a head that is judged on a fold has heard neither. An accompaniment is rendered twice, with its drums and
without: nothing else tells the two apart.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grooves
import notes
from groups import deal, dice, share, write_manifest
from sound import DRUMS, PRE_ROLL_S, SEEN, Note, Sound, draw_finish, render, render_all

from patchifier.io import replaced_file

CLIP_S, LINE_S = 10.0, 5.0
FOLDS = 3
PER_STYLE = 6
KITS = {
    "train": ((0, 32), (8, 48), (16, 24)),
    "valid": ((25, 40),),
}  # presets of drums of each fold
DRUMS_LOUDNESS = (0.6, 1.15)  # of mma's velocities
LINES = {"train": 1500, "valid": 300}
BASS_BY_OTHERS = 0.25  # share of bass lines that another family plays
NAMES = ("bands", "lines")


@dataclass(frozen=True)
class Band:
    """An accompaniment, and the presets that may play it; `path` is the clip with drums."""

    path: str
    soundfont: str
    groove: grooves.Groove
    presets: dict[str, list[int]]
    kits: tuple[int, ...]


def build(root: Path, workers: int, progress: Callable[[str], Any]) -> None:
    """Draw, render and list the clips: ROOT/heads/bands.jsonl and lines.jsonl."""
    bands, lines = draw_bands(root), draw_lines()
    render_all(root, [sound for sound, _ in lines], workers, progress)
    render_all(root, [band for band, _ in bands], workers, progress, play)
    (root / "heads").mkdir(exist_ok=True)
    rows = [clip for band, row in bands for clip in _clips(root, band, row)]
    write_manifest(root / "heads" / "bands.jsonl", rows)
    write_manifest(root / "heads" / "lines.jsonl", [row for _, row in lines])


@functools.cache
def presets(side: str, fold: int) -> dict[str, list[int]]:
    """Presets of each family on a side; of the training side those of one fold."""
    found = notes.presets(side)
    if side == "train":
        found = {
            family: [each for each in programs if fold_of(family, each) == fold]
            for family, programs in found.items()
        }
    return found


@functools.cache
def fold_of(family: str, program: int) -> int:
    """Fold of a preset of the training side; each fold has one of every family at least."""
    ranked = sorted(
        notes.presets("train")[family], key=lambda each: share("heads/fold", family, each)
    )
    return ranked.index(program) % FOLDS


def styles_of(styles: dict[str, tuple[str, int]]) -> dict[str, list[str]]:
    """Styles of the training and of the validation side: those of the style task train."""
    found = {"train": list(grooves.STYLED), "valid": list[str]()}
    for beats in (3, 4):
        names = [
            name
            for name, (_, count) in styles.items()
            if count == beats and name not in grooves.STYLED
        ]
        for name, side in deal(names, f"grooves/{beats}").items():
            if side in found:
                found[side].append(name)
    return found


def draw_bands(root: Path) -> list[tuple[Band, dict[str, Any]]]:
    """Draw accompaniments; groups are styles."""
    styles = grooves.find_styles(root / "deb" / grooves.MMA / "lib" / "stdlib")
    pools, drawn = grooves.progressions(), []
    for side, names in styles_of(styles).items():
        ranked = sorted(names, key=lambda name: share("heads/style", name))
        for rank, style in enumerate(ranked):
            for number in range(PER_STYLE):
                path = f"clips/heads/bands/{style}/{side}-{number}.ogg"
                groove, _ = grooves.draw(path, side, styles[style], SEEN, pools[side], CLIP_S)
                fold = rank % FOLDS
                kits = KITS[side][fold % len(KITS[side])]
                band = Band(path, SEEN, groove, presets(side, fold), kits)
                drawn.append((band, {"split": side, "group": f"grooves/{style}", "fold": fold}))
    return drawn


def play(root: Path, band: Band) -> str:
    """Write the clip with drums and the one without, and beside them what sounds; return the path."""
    listed = _listed(root, band)
    if listed.exists():
        return band.path
    generator = dice("band", band.path)
    text = grooves.chart(band.groove, int(generator.integers(1, 2**20)))
    events = grooves.write_midi(root / "deb" / grooves.MMA, text)
    cast = {}
    for channel, program in sorted({event[0]: event[3] for event in events}.items()):
        if channel != DRUMS:
            low = 32 <= program < 40 and generator.random() >= BASS_BY_OTHERS
            others = [family for family in band.presets if family != "bass"]
            family = "bass" if low else str(generator.choice(others))
            cast[channel] = family, int(generator.choice(band.presets[family]))
    offset = band.groove.offset_s
    kit, loudness = int(generator.choice(band.kits)), float(generator.uniform(*DRUMS_LOUDNESS))
    played = [
        Note(start - offset, end - offset, pitch, _struck(velocity, channel, loudness), channel)
        for channel, start, end, _, pitch, velocity in events
        if end - offset > -PRE_ROLL_S and start - offset < CLIP_S
    ]
    programs = {channel: program for channel, (_, program) in cast.items()} | {DRUMS: kit}
    facts = {"families": sorted({cast[one][0] for one in cast if _sounds(played, one)})}
    facts["drums"] = _sounds(played, DRUMS)
    tuned = [note for note in played if note.channel != DRUMS]
    for path, sounding in ((band.path, played), (bare(band.path), tuned)):
        finish = draw_finish(generator)
        if facts["families"] and (facts["drums"] or path != band.path):
            render(root, Sound(path, band.soundfont, programs, sounding, CLIP_S, **finish))
    listed.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(listed) as new:
        new.write_text(json.dumps(facts), encoding="utf-8")
    return band.path


def _struck(velocity: int, channel: int, loudness: float) -> int:
    return min(127, max(1, round(velocity * loudness))) if channel == DRUMS else velocity


def bare(path: str) -> str:
    """Path of the clip without drums."""
    return path.removesuffix(".ogg") + "-bare.ogg"


def _listed(root: Path, band: Band) -> Path:
    return (root / band.path).with_suffix(".json")


def _sounds(played: Sequence[Note], channel: int) -> bool:
    return any(note.channel == channel and 0 <= note.start_s < CLIP_S - 0.5 for note in played)


def _clips(root: Path, band: Band, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the clips of an accompaniment: two, or one without drums where it has none."""
    facts = json.loads(_listed(root, band).read_text(encoding="utf-8"))
    if facts["families"]:
        if facts["drums"]:
            yield {"path": band.path, **row, **facts}
        yield {"path": bare(band.path), **row, **facts, "drums": False}


def draw_lines() -> list[tuple[Sound, dict[str, Any]]]:
    """Draw clips of one to four families, each with its own short line in a common key."""
    drawn = []
    for side, count in LINES.items():
        for number in range(count):
            path = f"clips/heads/lines/{side}-{number:04d}.ogg"
            generator, fold = dice("lines", path), number % FOLDS
            pool = presets(side, fold)
            size = int(generator.integers(1, 5))
            playing = sorted(generator.choice(sorted(pool), size, replace=False).tolist())
            programs, sounding = notes.draw_lines(playing, pool, generator)
            sound = Sound(path, SEEN, programs, sounding, LINE_S, **draw_finish(generator))
            row = {"split": side, "group": f"lines/{side}-{number:04d}", "fold": fold}
            drawn.append((sound, {"path": path, **row, "families": playing, "drums": False}))
    return drawn
