"""Build the open benchmark: download, unpack, render, cut, list, check. A second run continues where the first stopped.

    python benchmarks/open/build.py ROOT

ROOT gets tasks/*.jsonl and clips/ (the tasks), pretraining.jsonl and pretraining-recordings.jsonl (training data that shares nothing with the
tests), each for 'patchifier prepare', and built.json (sizes). README.md describes them.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import grooves
import notes
import packages
import pretraining
import recordings
import score_sources
import scores
from groups import SEED, read_manifest
from tracks import Track, list_tracks

from patchifier import jobs
from patchifier.config import RequestError
from patchifier.io import replaced_file


def build(root: Path, workers: int) -> dict[str, Any]:
    """Run every step in order; return the facts of the build."""
    seconds: dict[str, float] = {}

    def step(name: str, work: Callable[[Callable[[str], Any]], Any]) -> Any:
        started = time.monotonic()
        result = work(lambda title: Line(f"{name} {title}".strip()))
        seconds[name] = round(time.monotonic() - started, 1)
        print(f"{name}: {seconds[name]:.0f} s", flush=True)
        return result

    step("download", lambda progress: packages.fetch(root, progress))
    tracks, more = step(
        "tracks",
        lambda progress: (
            find_tracks(root, packages.MUSIC, "tracks"),
            find_tracks(root, packages.MORE_MUSIC, "more-tracks"),
        ),
    )
    step("recordings", lambda progress: cut_recordings(root, tracks, more, workers, progress))
    step("notes", lambda progress: notes.build(root, workers, progress))
    step("parse", lambda progress: parse_scores(root, workers, progress))
    step("scores", lambda progress: scores.build(root, workers, progress))
    step("grooves", lambda progress: grooves.build(root, workers, progress))
    hours = step(
        "pre-training, rendered",
        lambda progress: pretraining.build_rendered(root, workers, progress),
    )
    return {
        "seed": SEED,
        "seconds": seconds,
        "workers": workers,
        "pretraining_hours": hours,
        "tasks": sizes(root),
    }


def parse_scores(root: Path, workers: int, progress: Callable[[str], Any]) -> None:
    """Parse every collection; those in several parts, which take longest, come first."""
    names = sorted(
        score_sources.COLLECTIONS, key=lambda name: not score_sources.COLLECTIONS[name].polyphonic
    )
    shown = progress("")
    batches = [[name] for name in names]
    for number, pieces in enumerate(
        jobs.run(_parse, batches, workers=workers, shared=root / "work" / "scores"), 1
    ):
        if not pieces or isinstance(pieces, str):
            raise RequestError(
                f"the collection {names[number - 1]} could not be parsed, expected pieces: run the same command again."
            )
        shown(number, len(names), names[number - 1])


def _parse(out: Path, names: Sequence[str]) -> list[int]:
    return [score_sources.parse(name, out) for name in names]


def find_tracks(root: Path, names: Sequence[str], file: str) -> list[Track]:
    """List tracks of packages once: reading every file's header takes a while."""
    path = root / "work" / f"{file}.json"
    if not path.exists():
        found = list_tracks(root, names)
        with replaced_file(path) as new:
            new.write_text(
                json.dumps([asdict(track) for track in found], indent=0), encoding="utf-8"
            )
    return [Track(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def cut_recordings(
    root: Path,
    tracks: Sequence[Track],
    more: Sequence[Track],
    workers: int,
    progress: Callable[[str], Any],
) -> None:
    """Cut the clips of the tasks and of the training data; each track is decoded once."""
    of_tasks, of_training = recordings.draw(tracks), pretraining.draw_recordings(tracks, more)
    recordings.cut_all(root, [cut for cut, _ in (*of_tasks, *of_training)], workers, progress)
    recordings.write_tasks(root, tracks)
    pretraining.write_recordings(root, tracks, more)


def sizes(root: Path) -> dict[str, dict[str, int]]:
    """Count the clips of each side of each task."""
    return {
        path.stem: dict(Counter(row["split"] for row in read_manifest(path)))
        for path in sorted((root / "tasks").glob("*.jsonl"))
    }


class Line:
    """Show progress as one line every ten seconds."""

    def __init__(self, title: str) -> None:
        self.title, self.shown_s = title, time.monotonic()

    def __call__(self, done: int, total: int, note: str) -> None:
        """Print the state, if ten seconds have passed."""
        if time.monotonic() - self.shown_s > 10:
            self.shown_s = time.monotonic()
            print(f"{self.title}: {done} of {total} ({note})", flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder; 7 GB, none of it to be committed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    arguments.root.mkdir(parents=True, exist_ok=True)
    try:
        facts = build(arguments.root.resolve(), arguments.workers)
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    with replaced_file(arguments.root / "built.json") as new:
        new.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts["tasks"], indent=1), json.dumps(facts["pretraining_hours"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
