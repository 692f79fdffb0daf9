"""Random numbers as a function of (seed, purpose, step).

A run that is killed and resumed draws the same.

The purpose strings seed the draws: a changed string changes every result that depends on it.
"""

import functools
import hashlib

import numpy as np


def generator(seed: int, purpose: str, step: int, *, scope: str = "") -> np.random.Generator:
    """Return a counter-based generator whose numbers depend on its arguments alone.

    Parameters
    ----------
    seed : int
        Seed of the run.
    purpose : str
        What is drawn, each from a stream of its own: "order", "augment", "mask", "window", "pairs"
        and "shuffle" in training; "validation", "first weights", "batch", "dropout LAYER" and
        "few-shot K" in probes.
    step : int
        Training step, or the number of the draw.
    scope : str
        Prefix of the key: "probe/" for probes, "" for training.

    Examples
    --------
    >>> from patchifier.seeding import generator
    >>> float(generator(0, "mask", 7).random()) == float(generator(0, "mask", 7).random())
    True
    """
    digest = hashlib.sha256(f"{scope}{seed}/{purpose}".encode()).digest()
    counter = int(step) << 64  # int(): a NumPy integer would overflow to 0
    return np.random.Generator(
        np.random.Philox(key=int.from_bytes(digest[:16], "little"), counter=counter)
    )


def dropout_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of torch's generator, which dropout draws from, for a step of a rank."""
    digest = hashlib.sha256(f"{seed}/dropout/{step}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def batch_indices(seed: int, step: int, *, clips: int, batch: int, part: int = 0) -> np.ndarray:
    """Clips of a step: an endless stream of shuffled epochs, cut into batches.

    Each part of a divided data set has a stream of its own.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    return np.array(
        [_order(seed, int(place // clips), clips, part)[place % clips] for place in places]
    )


@functools.lru_cache(maxsize=32)
def _order(seed: int, epoch: int, clips: int, part: int) -> np.ndarray:
    """Shuffled clips of an epoch; kept, since thousands of steps share it."""
    return generator(seed, f"order {part}" if part else "order", epoch).permutation(clips)


def random_masking(
    generator: np.random.Generator, valid: np.ndarray, ratio: float, *, ends: float = 0.0
) -> np.ndarray:
    """Draw which patches are masked (4.2), (B, N): uniformly, or all but one run of patches.

    `valid` (B, N) is False for padding, which is never masked. `ratio` is the fraction of each
    clip's patches to mask, rounded; at least one patch is masked, and one stays visible where there
    are two. `ends` is the fraction of clips in which the visible patches are one run.

    Examples
    --------
    >>> mask = random_masking(np.random.default_rng(0), np.ones((2, 8), bool), 0.75)
    >>> mask.sum(1)
    array([6, 6])
    """
    lengths = valid.sum(1)  # (B,)
    count = np.rint(ratio * lengths).astype(int)
    count = np.minimum(np.maximum(count, 1), np.maximum(lengths - 1, 1))
    scores = generator.random(valid.shape)
    if ends:
        first = np.floor(generator.random(len(valid)) * (count + 1))[:, None]  # of the visible run
        index = np.arange(valid.shape[1])
        inside = (index >= first) & (index < first + (lengths - count)[:, None])
        scores = np.where(generator.random((len(valid), 1)) < ends, inside, scores)
    scores = np.where(valid, scores, 2.0)  # padding comes last
    ranks = scores.argsort(axis=1).argsort(axis=1)  # (B, N)
    return valid & (ranks < count[:, None])
