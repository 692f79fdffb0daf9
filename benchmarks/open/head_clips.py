"""What each head learns from: clips with their answers, sides and folds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bands
import numpy as np
from groups import read_manifest, share


@dataclass(frozen=True)
class Clip:
    """A clip with its answer; `kind` is what it is drawn from."""

    path: str
    side: str
    group: str
    fold: int
    target: Any
    kind: str


@dataclass(frozen=True)
class Recipe:
    """What a head learns: kind, labels, clips, whether recordings are music that it knows, and whether it is in the package."""

    kind: str
    names: tuple[str, ...]
    clips: Callable[[Path], list[Clip]]
    recordings: bool
    shipped: bool = True


# --- clips ---


def chord_clips(root: Path) -> list[Clip]:
    rows = read_manifest(root / "tasks" / "notes-chord-quality.jsonl")
    return [
        Clip(row["path"], row["split"], row["group"], _fold(row["group"]), row["quality"], "chords")
        for row in rows
        if row["split"] != "test"
    ]


def _fold(group: str) -> int:
    return int(share("heads/preset", group) * bands.FOLDS)


def drum_clips(root: Path) -> list[Clip]:
    """Accompaniments with drums, and the same without: nothing else tells the two apart."""
    pairs = (clip for clip in played(root) if clip.kind == "bands")
    return [replace(clip, target="drums" if clip.target[1] else "no drums") for clip in pairs]


def instrument_clips(root: Path) -> list[Clip]:
    singles = read_manifest(root / "tasks" / "notes-family.jsonl")
    found = [replace(clip, target=clip.target[0]) for clip in played(root)]
    for row in singles:
        if row["split"] != "test":
            program = int(row["group"].rpartition("/")[2])
            fold = bands.fold_of(row["family"], program) if row["split"] == "train" else 0
            found.append(
                Clip(row["path"], row["split"], row["group"], fold, [row["family"]], "notes")
            )
    return found


def played(root: Path) -> list[Clip]:
    """Clips of bands.py, whose answers are families and whether there are drums."""
    return [
        Clip(row["path"], row["split"], row["group"], row["fold"], (row["families"], row["drums"]), kind)
        for kind in bands.NAMES
        for row in read_manifest(root / "heads" / f"{kind}.jsonl")
    ]  # fmt: skip


RECIPES = {
    "chord-quality": Recipe("one-of", tuple(bands.notes.QUALITIES), chord_clips, False),
    "drums": Recipe("one-of", ("drums", "no drums"), drum_clips, True),
    "instruments": Recipe(
        "many-of", tuple(bands.notes.FAMILIES), instrument_clips, True, False
    ),  # but for bass, mostly wrong
}


def recordings_of(root: Path) -> list[Clip]:
    """Clips of real recordings, without an answer."""
    file = root / "tasks" / "recordings-retrieval.jsonl"
    return [
        Clip(row["path"], row["split"], row["group"], 0, None, "recordings")
        for row in read_manifest(file)
        if row["split"] != "test"
    ]


def matrix(recipe: Recipe, clips: Sequence[Clip]) -> np.ndarray:
    """Answers: numbers of labels (n,), or zeros and ones (n, C)."""
    if recipe.kind == "one-of":
        return np.array([recipe.names.index(clip.target) for clip in clips])
    return np.array([[float(name in clip.target) for name in recipe.names] for clip in clips])
