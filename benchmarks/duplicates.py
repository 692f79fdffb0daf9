"""From which cosine on two files are the same music: copies of the bundled clips against clips of other tracks.

    python benchmarks/duplicates.py [--model patchifier-base]

Each of the 112 clips of 20 s (every one another track) is changed in several ways and embedded as 'patchifier embed' does. Prints, for each change and
threshold, how many copies reach it with their own original, and for each threshold how many of the 6,216 pairs of different tracks do.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from leaks import CHANGES, RATE

import patchifier
from patchifier import audio, datasets, jobs
from patchifier.datasets import Clip
from patchifier.train.run import machine

THRESHOLDS = (0.90, 0.95, 0.97, 0.98, 0.99)
CUT_S = 2.0  # from the beginning of a copy: another edit
COPIES = {
    **{"as it is" if name.startswith("none") else name: change for name, change in CHANGES.items()},
    "2 s missing": lambda sound, _: sound[int(CUT_S * RATE) :],
}


def vectors(task: tuple[str, Clip, int]) -> np.ndarray:
    """Embed one clip, then each of its copies: (1 + copies, E), of length 1."""
    jobs.use_one_thread()
    name, clip, seed = task
    model, sound = patchifier.load(name), audio.load(clip.path)
    copies = [
        sound,
        *(
            change(sound, np.random.default_rng([seed, number]))
            for number, change in enumerate(COPIES.values())
        ),
    ]
    made = np.stack(
        [model.embed(np.asarray(copy, np.float32), sample_rate=RATE) for copy in copies]
    ).astype(np.float64)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="patchifier-base")
    name = parser.parse_args().model
    clips = datasets.load("demo").clips
    with ProcessPoolExecutor() as pool:
        found = np.stack(
            list(
                pool.map(
                    vectors, [(name, clip, seed) for seed, clip in enumerate(clips)], chunksize=8
                )
            )
        )
    print(f"{machine()}; {name}, {len(clips)} clips")
    print(
        f"{'cosine of at least':24}",
        *(f"{threshold:>7.2f}" for threshold in THRESHOLDS),
        f"{'lowest':>8}",
    )
    for number, change in enumerate(COPIES, 1):
        own = (found[:, 0] * found[:, number]).sum(1)
        print(
            f"{change:24}",
            *(f"{(own >= threshold).sum():7d}" for threshold in THRESHOLDS),
            f"{own.min():8.3f}",
        )
    pairs = (found[:, 0] @ found[:, 0].T)[np.triu_indices(len(clips), 1)]
    print(
        f"{'other tracks':24}",
        *(f"{(pairs >= threshold).sum():7d}" for threshold in THRESHOLDS),
        f"{pairs.max():8.3f} highest of {len(pairs):,}",
    )


if __name__ == "__main__":
    main()
