"""Look, by fingerprint, whether anything that is judged is heard in pre-training under another name.

    python benchmarks/open/unheard.py ROOT

Compares ROOT/cache-all with the bundled clips and with all recordings that validate or test; rendered clips are new performances by other draws.
Stops with the first pair that shares a stretch of sound.
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
from patchifier.config import RequestError
from patchifier.datasets import Dataset
from patchifier.evaluate import leaks


def judged(root: Path) -> Iterator[Dataset]:
    """What must not be heard."""
    yield datasets.load("demo")
    asked = [datasets.load(path) for path in sorted((root / "tasks").glob("recordings-*.jsonl"))]
    clips = {
        clip.id: replace(clip, target=None)
        for dataset in asked
        for clip in dataset.clips
        if clip.split != "train"
    }
    yield Dataset("judged-recordings", tuple(clips.values()))


def require_unheard(root: Path, workers: int) -> int:
    """Compare; the number of clips that were looked for.

    Raises
    ------
    RequestError
        If one is heard.
    """
    heard, looked_for = Cache(root / "cache-all"), 0
    for dataset in judged(root):
        cache.prepare(
            dataset, root / "caches" / dataset.name, config=heard.spectrogram, workers=workers
        )
        found = leaks.leaks(heard, Cache(root / "caches" / dataset.name))
        if found:
            more = f" and {len(found) - 1} more pairs" if len(found) > 1 else ""
            raise RequestError(
                f"{found[0].line()}{more}: expected nothing that is judged in {heard.path}. Name both tracks in COPIES of recordings.py."
            )
        looked_for += len(dataset.clips)
    return looked_for


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
    asked = parser.parse_args()
    try:
        print(
            f"none of {require_unheard(asked.root.resolve(), asked.workers):,} clips that are judged is heard in {asked.root / 'cache-all'}."
        )
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
