"""Copies of recordings at the low bit rates of mp3, so that training pairs each track with what a codec leaves of it.

    python benchmarks/open/coded.py ROOT --features ROOT/musicnn

ROOT was filled by build.py and synthetic.py. It gets pretraining/coded/NAME.mp3 for half of the recordings and pretraining-coded.jsonl: the list of
synthetic.py, then the copies, each in the group of its track. FEATURES are the vectors of another model (benchmarks/outsiders/from_musicnn.py). A copy
gets the vector of its original as its own.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pretraining
import synthetic
from groups import CODED, dice, read_manifest, share
from sound import render_all

from patchifier import audio
from patchifier.config import RequestError
from patchifier.evaluate.robustness import to_mp3
from patchifier.io import replaced_file

RATE = 22_050
KBITS = (24, 32, 48, 64)
SHARE = 0.5  # of the recordings; the card of a model says so
NAME = "pretraining-coded.jsonl"


@dataclass(frozen=True)
class Copy:
    """A copy to write, and the clip that it is made from."""

    path: str
    original: str


def build(root: Path, features: Path, workers: int, progress: Callable[[str], Any]) -> int:
    """Write the missing copies, their features and the list; return the number of copies."""
    originals = {
        copy_path(row["path"]): row
        for row in read_manifest(root / pretraining.NAMES[1])
        if share("coded", row["path"]) < SHARE
    }
    copies = [Copy(path, row["path"]) for path, row in originals.items()]
    render_all(root, copies, workers, lambda title: progress("coded"), encode)
    for copy in copies:
        share_features(features, copy)
    rows = [row | {"path": path, "kind": CODED} for path, row in originals.items()]
    pretraining.write(root, NAME, read_manifest(root / synthetic.NAMES[1]) + rows)
    pretraining.check(root, [NAME])
    return len(copies)


def copy_path(original: str) -> str:
    """Path of the copy of a recording."""
    name = original.removeprefix("pretraining/recordings/").removesuffix(".ogg")
    return f"pretraining/coded/{name}.mp3"


def encode(root: Path, copy: Copy) -> str:
    """Write a copy at a drawn bit rate; return its path."""
    waveform = audio.load(root / copy.original, sample_rate=RATE)
    kbits = int(dice("coded", copy.path).choice(KBITS))
    with replaced_file(root / copy.path) as new:
        new.write_bytes(to_mp3(waveform, RATE, kbits))
    return copy.path


def share_features(features: Path, copy: Copy) -> None:
    """Give the features of a recording to its copy; files may have the ending of the sound in their names, or not."""
    for ending in (".ogg", ""):
        original = features / f"{copy.original.removesuffix('.ogg')}{ending}.npy"
        if original.exists():
            target = features / f"{copy.path.removesuffix('.mp3')}{ending and '.mp3'}.npy"
            with replaced_file(target) as new:
                new.write_bytes(original.read_bytes())
            return
    raise RequestError(
        f"{features} has no features of {copy.original}: run benchmarks/outsiders/from_musicnn.py first."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    from build import Line

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder that build.py and synthetic.py filled")
    parser.add_argument("--features", type=Path, required=True, help="of the recordings")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args(arguments)
    try:
        made = build(given.root.resolve(), given.features, given.workers, Line)
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{made} coded copies, in {given.root / NAME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
