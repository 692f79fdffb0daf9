"""Search the training data, by fingerprint, for validation and test recordings under another name.

    python benchmarks/open/check_leaks.py ROOT

Compares ROOT/cache-all with the bundled clips and with all recordings of the validation and test sides. Rendered clips are new performances and
need no search. Stops with the first pair that shares a stretch of sound.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from patchifier import cache, datasets
from patchifier.cache import Cache
from patchifier.cli.evaluate import leak_line
from patchifier.config import RequestError
from patchifier.datasets import Dataset
from patchifier.evaluate import leaks


def evaluated(root: Path) -> Iterator[Dataset]:
    """Yield the data sets that must share no recording with the training data."""
    yield datasets.load("demo")
    found = [datasets.load(path) for path in sorted((root / "tasks").glob("recordings-*.jsonl"))]
    clips = {
        clip.id: replace(clip, target=None)
        for dataset in found
        for clip in dataset.clips
        if clip.split != "train"
    }
    yield Dataset("judged-recordings", tuple(clips.values()))


def require_no_leaks(root: Path, workers: int) -> int:
    """Compare and return the number of clips that were searched.

    Raises
    ------
    RequestError
        If one is in the training data.
    """
    training, searched = Cache(root / "cache-all"), 0
    for dataset in evaluated(root):
        cache.prepare(
            dataset, root / "caches" / dataset.name, config=training.spectrogram, workers=workers
        )
        found = leaks.leaks(training, Cache(root / "caches" / dataset.name))
        if found:
            more = f" and {len(found) - 1} more pairs" if len(found) > 1 else ""
            raise RequestError(
                f"{leak_line(found[0])}{more}: expected no validation or test recording in {training.path}. Name both tracks in COPIES of recordings.py."
            )
        searched += len(dataset.clips)
    return searched


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "root",
        type=Path,
        help="folder that build.py filled, with cache-all as recipes/release.sh prepares it",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that decode"
    )
    arguments = parser.parse_args()
    try:
        print(
            f"none of {require_no_leaks(arguments.root.resolve(), arguments.workers):,} validation and test clips is in {arguments.root / 'cache-all'}."
        )
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
