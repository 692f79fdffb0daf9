"""Targets of stage II from the notes of rendered music (`pretrain.note_labels`).

Rendered music knows its notes, so no person labels anything: this is synthetic supervision. Each
label file is JSON, ``<folder>/<clip id without suffix>.json``:

=========== ==========================================================================
key         value
=========== ==========================================================================
notes       rows [start_s, end_s, pitch, program]; program 128 is drums (General MIDI)
beats       rows [time_s, position in the bar from 1]
chords      rows [start_s, end_s, "C:maj"]
key         such as "C:maj" or "A:min"
bpm, metre  beats a minute, beats a bar
=========== ==========================================================================

All keys may be missing; what is not known gives no loss. Clips without a file, such as recordings,
have no loss from these targets. Where a crop is shifted to about half-way between two semitones,
its pitches, chords and key have no names, so they are not known.

Shapes: B clips, N patches, S size of a target.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from patchifier.nn.descriptors import LAGS, LAGS_S
from patchifier.nn.equivariant import LAG_STEP, OCTAVE

UNKNOWN = -1
LOWEST, HIGHEST = 21, 108  # A0 to C8, a piano's
PITCHES = HIGHEST - LOWEST + 1
DRUMS = 128  # program
FAMILIES = 17  # General MIDI's sixteen, and drums
QUARTERS, EIGHTHS = 4, 8  # columns of a patch in which notes sound, and in which they start
DRUM_KEYS = {
    "kick": (35, 36),
    "snare": (37, 38, 39, 40),
    "hat": (42, 44, 46),
    "tom": (41, 43, 45, 47, 48, 50),
    "cymbal": (49, 51, 52, 53, 55, 57, 59),
}  # all others are percussion
ROOTS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"#": 1, "b": -1, "-": -1}
QUALITIES = ("maj", "min", "dim", "aug", "sus4", "maj7", "min7", "7")
MODES = ("maj", "min")
METRES = (2, 3, 4, 6)
TEMPO_BPM, TEMPI = (40.0, 240.0), 36  # classes of 5 %
OFF_SEMITONES = 0.35  # largest distance of a shift from whole semitones at which pitches have names


@dataclass(frozen=True)
class Crop:
    """The part of a clip that a model sees.

    Attributes
    ----------
    start : float
        First frame, in stretched time.
    scale : float
        Factor by which time is stretched.
    semitones : float
        Shift of pitch.
    n_patches, patch_frames : int
        Length.
    frame_s : float
        Seconds between frames.
    """

    start: float
    scale: float
    semitones: float
    n_patches: int
    patch_frames: int
    frame_s: float

    @property
    def names_pitches(self) -> bool:
        """Whether the shift is near enough to whole semitones to tell which pitch a note has."""
        return abs(self.semitones - round(self.semitones)) <= OFF_SEMITONES

    def columns(self, times_s: np.ndarray, per_patch: int) -> np.ndarray:
        """Position of times of the clip, in columns from the start of the crop."""
        frames = (times_s / self.frame_s + 0.5) * self.scale - self.start
        return frames * per_patch / self.patch_frames


@dataclass(frozen=True)
class Score:
    """What is known of a rendered clip.

    Attributes
    ----------
    notes : ndarray, shape (n, 4)
        start_s, end_s, pitch, program.
    beats : ndarray, shape (n, 2), or None
        time_s, position in the bar.
    chords : ndarray, shape (n, 4), or None
        start_s, end_s, root, index of the quality.
    key, bpm, metre
        Pitch class and index of the mode; beats a minute; beats a bar. None if unknown.
    """

    notes: np.ndarray | None = None
    beats: np.ndarray | None = None
    chords: np.ndarray | None = None
    key: tuple[int, int] | None = None
    bpm: float | None = None
    metre: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Score":
        """Make one of the content of a label file."""
        chords = values.get("chords")
        if chords is not None:
            chords = [[start, end, *named(name, QUALITIES)] for start, end, name in chords]
        return cls(
            rows(values.get("notes"), 4),
            rows(values.get("beats"), 2),
            rows(chords, 4),
            named(values["key"], MODES) if values.get("key") else None,
            float(values["bpm"]) if values.get("bpm") else None,
            int(values["metre"]) if values.get("metre") else None,
        )

    @cached_property
    def pitched(self) -> np.ndarray | None:
        """Notes (n, 4) that are not drums."""
        return None if self.notes is None else self.notes[self.notes[:, 3] != DRUMS]


def rows(values: Sequence[Sequence[float]] | None, width: int) -> np.ndarray | None:
    """Rows (n, width), sorted by time; None stays None."""
    if values is None:
        return None
    found = np.asarray(values, np.float64).reshape(-1, width)
    if not np.isfinite(found).all():
        raise ValueError("a number is not finite")
    return found[np.argsort(found[:, 0], kind="stable")]


def named(name: str, kinds: Sequence[str]) -> tuple[int, int]:
    """Pitch class and index of the kind, of a name such as "F#:min".

    Examples
    --------
    >>> named("F#:min", MODES)
    (6, 1)
    """
    root, _, kind = name.partition(":")
    if not root or root[0] not in ROOTS or kind not in kinds or set(root[1:]) - set(ACCIDENTALS):
        raise ValueError(f"{name!r} is not a note with one of {', '.join(kinds)}")
    return (ROOTS[root[0]] + sum(ACCIDENTALS[sign] for sign in root[1:])) % 12, kinds.index(kind)


# --- targets: functions of a score and a crop; None where unknown ---


def sounding(score: Score, crop: Crop) -> np.ndarray | None:
    """Pitches that sound in each quarter of a patch: (N, 4 * 88)."""
    if score.pitched is None or not crop.names_pitches:
        return None
    found = spread(score.pitched, crop, QUARTERS, pitch_rows(score.pitched, crop), PITCHES)
    return found.reshape(crop.n_patches, -1)


def starting(score: Score, crop: Crop) -> np.ndarray | None:
    """Eighths of a patch in which a note starts, drums apart: (N, 8)."""
    if score.pitched is None:
        return None
    where = np.zeros(len(score.pitched), int)
    return hits(score.pitched[:, 0], crop, where, 1).reshape(crop.n_patches, -1)


def drum_hits(score: Score, crop: Crop) -> np.ndarray | None:
    """Eighths of a patch in which a drum of each kind is hit: (N, 8 * 6)."""
    if score.notes is None:
        return None
    drums = score.notes[score.notes[:, 3] == DRUMS]
    kinds = np.full(256, len(DRUM_KEYS))
    for index, keys in enumerate(DRUM_KEYS.values()):
        kinds[list(keys)] = index
    where = kinds[drums[:, 2].astype(int)]
    return hits(drums[:, 0], crop, where, len(DRUM_KEYS) + 1).reshape(crop.n_patches, -1)


def families(score: Score, crop: Crop) -> np.ndarray | None:
    """Families of General MIDI that sound in a patch, and drums: (N, 17)."""
    if score.notes is None:
        return None
    where = np.minimum(score.notes[:, 3].astype(int) // 8, FAMILIES - 1)
    return spread(score.notes, crop, 1, where, FAMILIES)


def beats(score: Score, crop: Crop) -> np.ndarray | None:
    """Eighths of a patch that have a beat, and those that have a first beat of a bar: (N, 16)."""
    if score.beats is None:
        return None
    times, first = score.beats[:, 0], score.beats[:, 1] == 1
    found = [hits(each, crop, np.zeros(len(each), int), 1) for each in (times, times[first])]
    return np.concatenate([each.reshape(crop.n_patches, -1) for each in found], axis=1)


def chord(score: Score, crop: Crop) -> np.ndarray | None:
    """Index of the chord in the middle of each patch, -1 where there is none: (N,)."""
    found = chords_within(score, crop) if crop.names_pitches else None
    if found is None:
        return None
    roots, qualities = found
    roots = (roots + round(crop.semitones)) % 12
    return np.where(qualities < 0, UNKNOWN, roots * len(QUALITIES) + qualities)


def chord_quality(score: Score, crop: Crop) -> np.ndarray | None:
    """Index of the quality of the chord in the middle of each patch, whatever its root: (N,)."""
    found = chords_within(score, crop)
    return None if found is None else found[1]


def chords_within(score: Score, crop: Crop) -> tuple[np.ndarray, np.ndarray] | None:
    """Root as written, and quality, of the chord in the middle of each patch: (N,) each.

    The quality is -1 where there is none.
    """
    if score.chords is None or not len(score.chords):
        return None
    middles = np.arange(crop.n_patches) + 0.5
    starts, ends = (crop.columns(score.chords[:, side], 1) for side in (0, 1))
    at = np.searchsorted(starts, middles, side="right") - 1
    inside = (at >= 0) & (middles < ends[at])
    return score.chords[at, 2], np.where(inside, score.chords[at, 3], UNKNOWN)


def key(score: Score, crop: Crop) -> np.ndarray | None:
    """Index of the key: ()."""
    if score.key is None or not crop.names_pitches:
        return None
    tonic, mode = score.key
    return np.array((tonic + round(crop.semitones)) % 12 * len(MODES) + mode)


def key_mode(score: Score, crop: Crop) -> np.ndarray | None:
    """Index of the mode, whatever the tonic: ()."""
    return None if score.key is None else np.array(score.key[1])


def bpm(score: Score, crop: Crop) -> np.ndarray | None:
    """Class of the tempo, as it is after stretching; unknown outside of the classes: ()."""
    if score.bpm is None:
        return None
    low, high = np.log(TEMPO_BPM)
    place = int(np.floor((np.log(score.bpm / crop.scale) - low) / (high - low) * TEMPI))
    return np.array(place) if 0 <= place < TEMPI else None


def tonic_bin(score: Score, crop: Crop) -> np.ndarray | None:
    """Third of a semitone of the key's tonic, from C: ()."""
    if score.key is None:
        return None
    per_semitone = OCTAVE // 12
    return np.array((score.key[0] * per_semitone + round(crop.semitones * per_semitone)) % OCTAVE)


def beat_lag(score: Score, crop: Crop) -> np.ndarray | None:
    """Bin of the time between beats, after stretching; unknown outside of the bins: ()."""
    if score.bpm is None:
        return None
    place = round(math.log(60 / score.bpm * crop.scale / LAGS_S[0]) / LAG_STEP)
    return np.array(place) if 0 <= place < LAGS else None


def metre(score: Score, crop: Crop) -> np.ndarray | None:
    """Index of the number of beats in a bar: ()."""
    return np.array(METRES.index(score.metre)) if score.metre in METRES else None


def pitch_rows(notes: np.ndarray, crop: Crop) -> np.ndarray:
    """Index of each note's pitch, -1 outside a piano's range."""
    found = np.rint(notes[:, 2] + crop.semitones).astype(int) - LOWEST
    return np.where((found >= 0) & (found < PITCHES), found, UNKNOWN)


def spread(
    notes: np.ndarray, crop: Crop, per_patch: int, where: np.ndarray, count: int
) -> np.ndarray:
    """Columns (N * per_patch, count) in which notes (n, 4) sound, each in its row of `where`."""
    length = crop.n_patches * per_patch
    first = np.floor(crop.columns(notes[:, 0], per_patch)).astype(int)
    last = np.ceil(crop.columns(notes[:, 1], per_patch)).astype(int)
    last = np.maximum(last, first + 1)
    kept = (where >= 0) & (last > 0) & (first < length)
    changes = np.zeros((length + 1, count), np.int32)
    np.add.at(changes, (first[kept].clip(0), where[kept]), 1)
    np.add.at(changes, (last[kept].clip(max=length), where[kept]), -1)
    return changes[:-1].cumsum(0) > 0


def hits(times_s: np.ndarray, crop: Crop, where: np.ndarray, count: int) -> np.ndarray:
    """Eighths (N * 8, count) in which something happens, each in its row of `where`."""
    found = np.zeros((crop.n_patches * EIGHTHS, count), bool)
    at = np.floor(crop.columns(times_s, EIGHTHS)).astype(int)
    kept = (at >= 0) & (at < len(found))
    found[at[kept], where[kept]] = True
    return found


@dataclass(frozen=True)
class NoteTarget:
    """One target.

    Attributes
    ----------
    values : callable
        Of a score and a crop: see `of` and `kind` for shapes; None if unknown.
    size : int
        Elements, or classes.
    of : "patch" or "clip"
        Whether there is one for each patch.
    kind : "multilabel" or "multiclass"
        Elements (S,) that are 0 or 1, or the index of a class.
    estimator : str or None
        Estimator of the model that predicts it; a linear head of the network if None.
    """

    values: Callable[[Score, Crop], np.ndarray | None]
    size: int
    of: Literal["patch", "clip"] = "patch"
    kind: Literal["multilabel", "multiclass"] = "multilabel"
    estimator: str | None = None

    def shape(self, n_patches: int) -> tuple[int, ...]:
        """Shape of the values of one clip."""
        patches = (n_patches,) if self.of == "patch" else ()
        return (*patches, self.size) if self.kind == "multilabel" else patches


NOTE_TARGETS = {
    "notes": NoteTarget(sounding, QUARTERS * PITCHES),
    "note_starts": NoteTarget(starting, EIGHTHS),
    "drum_hits": NoteTarget(drum_hits, EIGHTHS * (len(DRUM_KEYS) + 1)),
    "instruments": NoteTarget(families, FAMILIES),
    "beats": NoteTarget(beats, 2 * EIGHTHS),
    "chord": NoteTarget(chord, 12 * len(QUALITIES), kind="multiclass"),
    "chord_quality": NoteTarget(chord_quality, len(QUALITIES), kind="multiclass"),
    "key": NoteTarget(key, 12 * len(MODES), "clip", "multiclass"),
    "key_mode": NoteTarget(key_mode, len(MODES), "clip", "multiclass"),
    "bpm": NoteTarget(bpm, TEMPI, "clip", "multiclass"),
    "beats_per_bar": NoteTarget(metre, len(METRES), "clip", "multiclass"),
    "known_tonic": NoteTarget(tonic_bin, OCTAVE, "clip", "multiclass", "tonic"),
    "known_tempo": NoteTarget(beat_lag, LAGS, "clip", "multiclass", "tempo"),
}
