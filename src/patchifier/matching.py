"""Where two pieces of music share a stretch of sound, by their fingerprints.

The method and its rates are described in :mod:`patchifier.evaluate.leaks`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from patchifier.config import SpectrogramConfig
from patchifier.fingerprint import BITS, LAG_S, SMOOTH_S, differences, pack

CODE_BITS = 20
# two codes per frame: noise seldom spoils both ends of the spectrum
CODE_SHIFTS = (0, BITS - CODE_BITS)
FLIPS = 2
VOTES = 3  # at one offset, give or take a frame
COMMON = 2000  # a code with more postings than this is not distinctive, and costs most of the time
TRIED = 128  # offsets tried for each clip and block, those with the most votes
WINDOW_S, SHORTEST_S = 4.5, 3.0
SHARE = 0.15  # of the bits in a window have to be reliable, else the window is ignored
SAME, SIMILAR = 0.75, 0.68
PROMISING = 0.58  # a score worth a look at the offsets beside it


@dataclass(frozen=True, eq=False)
class Print:
    """Fingerprint of a piece of music.

    Attributes
    ----------
    bits : ndarray (T', 2), uint32
        Signs of each frame, and which of these are reliable, as
        :func:`patchifier.fingerprint.fingerprint` gives them.
    weakest : ndarray (T', codes, flips), uint8
        Positions of the weakest bits of each code of a frame.
    """

    bits: np.ndarray
    weakest: np.ndarray

    def __len__(self) -> int:
        return len(self.bits)


def print_of(log_mel: np.ndarray, config: SpectrogramConfig) -> Print:
    """Fingerprint of a log-mel (T, M), frames first, made with `config`.

    Examples
    --------
    >>> log_mel = np.random.default_rng(0).normal(size=(100, 64))
    >>> found = print_of(log_mel, SpectrogramConfig())
    >>> found.bits.shape, found.weakest.shape
    ((88, 2), (88, 2, 2))
    """
    changes = differences(log_mel, config)
    weakest = [
        np.argpartition(np.abs(changes[:, shift : shift + CODE_BITS]), FLIPS, axis=1)[:, :FLIPS]
        for shift in CODE_SHIFTS
    ]
    return Print(pack(changes), np.stack(weakest, axis=1).astype(np.uint8))


class Match(NamedTuple):
    """How well two pieces of music fit at an offset.

    Signs come first, as reliable bits often agree without exception a frame or two beside the best
    place.
    """

    signs: float
    score: float  # share of reliable bits that agree: 0.5 is chance, 1 the same sound
    offset: int  # frame t of the one is frame t + offset of the other


class PrintIndex:
    """Codes of some pieces of music, from the bits (T', 2) of each, and the frames of each code."""

    def __init__(self, parts: Sequence[np.ndarray], config: SpectrogramConfig) -> None:
        self.config = config
        self.bits = np.concatenate(parts)  # (F, 2)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        self.owners = np.repeat(np.arange(len(parts), dtype=np.int32), np.diff(self.starts))
        codes, frames = _codes(self.bits)
        self.frames = frames[np.argsort(codes, kind="stable")]  # postings, code by code
        # of each code's
        self.firsts = np.concatenate(
            [[0], np.cumsum(np.bincount(codes, minlength=len(CODE_SHIFTS) << CODE_BITS))]
        )

    def part(self, number: int) -> np.ndarray:
        """Bits of a piece of music."""
        return self.bits[self.starts[number] : self.starts[number + 1]]

    def best(self, query: Print, *, after: int = -1) -> dict[int, Match]:
        """Best match with each piece of music behind the number `after` that gets enough votes."""
        parts, offsets, votes = self.votes(*_codes_with_flips(query))
        enough = np.flatnonzero((votes >= VOTES) & (parts > after))
        best: dict[int, Match] = {}
        for cell in enough[np.argsort(-votes[enough], kind="stable")][:TRIED].tolist():
            number, offset = int(parts[cell]), int(offsets[cell])
            match = compare(query.bits, self.part(number), offset, self.config)
            if match.score > PROMISING:
                match = max(
                    compare(query.bits, self.part(number), offset + step, self.config)
                    for step in (-2, -1, 0, 1, 2)
                )
            best[number] = max(best.get(number, match), match)
        return best

    def votes(
        self, codes: np.ndarray, frames: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers, offsets in frames and votes of whatever these codes hit, each at its frame."""
        at = self.firsts[codes]
        hits = self.firsts[codes + np.uint32(1)] - at
        hits[hits > COMMON] = 0
        postings = np.repeat(at - np.cumsum(hits) + hits, hits) + np.arange(hits.sum())
        hit = self.frames[postings].astype(np.int64)
        owners = self.owners[hit].astype(np.int64)
        offsets = hit - self.starts[owners] - np.repeat(frames, hits)
        cells, votes = np.unique((owners << 32) + offsets + 2**31, return_counts=True)
        return cells >> 32, (cells & (2**32 - 1)) - 2**31, with_neighbours(cells, votes)


def with_neighbours(cells: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Votes of each cell and of the two beside it: an offset is seldom a whole number of frames."""
    beside = np.diff(cells) == 1
    total = votes.copy()
    total[:-1] += votes[1:] * beside
    total[1:] += votes[:-1] * beside
    return total


def _codes(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a fingerprint (T', 2), the two kinds marked by their highest bit, and their frames.

    None where little is reliable.
    """
    codes, frames = [], []
    for kind, shift in enumerate(CODE_SHIFTS):
        sign, reliable = ((bits >> np.uint32(shift)) & np.uint32(2**CODE_BITS - 1)).T
        kept = np.flatnonzero(np.bitwise_count(reliable) >= CODE_BITS // 2)
        codes.append(sign[kept] | np.uint32(kind << CODE_BITS))
        frames.append(kept)
    return np.concatenate(codes), np.concatenate(frames).astype(np.uint32)


def _codes_with_flips(query: Print) -> tuple[np.ndarray, np.ndarray]:
    """Codes as :func:`_codes` gives them, with every way to turn over the weakest bits of each."""
    codes, frames = _codes(query.bits)
    kinds = codes >> np.uint32(CODE_BITS)
    flips = np.uint32(1) << query.weakest[frames, kinds].astype(np.uint32)  # (C, FLIPS)
    turned = [
        codes ^ (flips * np.array(on, np.uint32)).sum(axis=1, dtype=np.uint32)
        for on in itertools.product((0, 1), repeat=FLIPS)
    ]
    return np.concatenate(turned), np.tile(frames.astype(np.int64), len(turned))


def compare(one: np.ndarray, two: np.ndarray, offset: int, config: SpectrogramConfig) -> Match:
    """Compare two fingerprints in the best window, frame t of `one` lying on t + offset of `two`.

    All 0 if the overlap is too short.
    """
    start, end = max(0, -offset), min(len(one), len(two) - offset)
    window = min(round(WINDOW_S / config.frame_s), end - start)
    if window * config.frame_s < SHORTEST_S - SMOOTH_S - LAG_S:
        return Match(0.0, 0.0, offset)
    one, two = one[start:end], two[start + offset : end + offset]
    alike, both = ~(one[:, 0] ^ two[:, 0]), one[:, 1] & two[:, 1]
    signs, reliable, agreeing = (
        _window_sums(np.bitwise_count(bits), window) for bits in (alike, both, both & alike)
    )
    shares = np.where(reliable >= SHARE * BITS * window, agreeing / np.maximum(reliable, 1), 0.0)
    at = int(shares.argmax())
    return Match(float(signs[at]) / (BITS * window), float(shares[at]), offset)


def agreement(one: np.ndarray, two: np.ndarray, offset: int) -> float:
    """Share of reliable bits that agree in the whole overlap; 0 without any."""
    start, end = max(0, -offset), min(len(one), len(two) - offset)
    if start >= end:
        return 0.0
    one, two = one[start:end], two[start + offset : end + offset]
    both = one[:, 1] & two[:, 1]
    agreeing = np.bitwise_count(both & ~(one[:, 0] ^ two[:, 0])).sum(dtype=int)
    return float(agreeing / max(1, np.bitwise_count(both).sum(dtype=int)))


def _window_sums(values: np.ndarray, window: int) -> np.ndarray:
    """Sums of each `window` consecutive values: (F,) -> (F - window + 1,)."""
    sums = np.cumsum(values, dtype=np.int64)
    sums[window:] -= sums[:-window].copy()
    return sums[window - 1 :]
