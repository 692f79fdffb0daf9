"""Near-duplicates between two sets of clips, found from their caches alone: no audio is opened.

A model that was pre-trained on a recording it is tested on looks better than it is. For each pair
of clips this module asks whether they share a stretch of the same recording, whatever its offset,
level or encoding, by the audio fingerprint of Haitsma and Kalker (2002, "A highly robust audio
fingerprinting system"), taken from log-mels:

1. 33 bands from 200 to 5,000 Hz, smoothed over 0.2 s; for each frame and each two neighbouring
   bands the sign of (change of the upper band within 0.09 s) - (change of the lower one): 32 bits.
   A bit is *reliable* if that difference exceeds 1 dB.
2. Bits 0-19 and bits 12-31 are two codes, looked up in an index of the second set, also with their
   two weakest bits turned over. A frame with less than half its bits reliable (silence, steady
   tones) has no code. Hits vote for a pair of clips and an offset.
3. Each offset with 3 votes is tried, and two frames around it: the score is the share of reliable
   bits that agree in the best 4.5 s of the overlap. 0.5 is chance. From 0.75 on a pair is called
   "same recording", from 0.68 on "similar".

Measured on the 112 bundled clips (``python benchmarks/leaks.py``). Found: excerpts of 5 s at a
random start, of 112, that are called "same recording" as the clip they were cut from (or at least
"similar"), at the right offset. False: pairs of clips of different tracks that are called anything.

===================  ==============  ==========  =====
excerpt of 5 s       same recording  or similar  false
===================  ==============  ==========  =====
as it is                        112         112      0
mp3 at 64 kbit/s                112         112      0
20 dB quieter                   112         112      0
resampled to 16 kHz             112         112      0
pink noise at 20 dB             108         109      0
all four                        107         108      0
pink noise at 10 dB              80          80      0
1 % faster                      112         112      0
3 % faster                       98          99      0
===================  ==============  ==========  =====

Of the 6,216 pairs of whole clips none is called anything; the highest score of any pair that got
votes was 0.61. Landmarks (pairs of spectral peaks, Wang 2003) need twice the postings and find 109
of the undisturbed excerpts, 104 and 98 of the noisy ones, before the first false pair is among
them. On one thread a clip of 29 s costs 10 ms against an index of 290 such clips, so 25,860 of them
4 minutes. A set of 25,860 clips with itself is an index of eight blocks: by the same count, half an
hour.

What it cannot find: another performance, a cover, a remix or a transposed version (unless they
share the very same samples), a shared stretch below 3 s, a change of speed or pitch of more than
about 3 %. What it finds although it may be meant: loops, samples and drum machines that two pieces
share, and a chorus that is pasted twice. The score measures confidence; a person has to listen to
pairs below about 0.9.
"""

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from patchifier import fingerprint
from patchifier.cache import Cache
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.fingerprint import BITS, LAG_S, SMOOTH_S
from patchifier.io import Progress, replaced_file, silent, to_cell

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
BLOCK_FRAMES = 2**22  # of the second set are indexed at once: about 27 hours, 0.2 GB

Kind = Literal["same recording", "similar"]


@dataclass(frozen=True)
class Leak:
    """Two clips that share a stretch of sound.

    Parameters
    ----------
    first, second : str
        Ids of the clips, of the first and of the second set.
    kind : "same recording" or "similar"
        Class of `score`.
    score : float
        Share of reliable fingerprint bits that agree: 0.5 is chance, 1 the same sound.
    offset_s : float
        Time t of the first clip is time t + offset_s of the second, to about 0.02 s.
    overlap_s : float
        Duration of the overlap of the two clips at that offset.
    one_group : bool
        Whether both are of one group of one set, so that no split parts them.
    """

    first: str
    second: str
    kind: Kind
    score: float
    offset_s: float
    overlap_s: float
    one_group: bool = False


def leaks(
    first: Cache,
    second: Cache,
    *,
    same: float = SAME,
    similar: float = SIMILAR,
    progress: Progress = silent,
) -> tuple[Leak, ...]:
    """Find pairs of clips that share a stretch of the same recording.

    Parameters
    ----------
    first : Cache
        For example a model's pre-training data. The time needed grows with its length.
    second : Cache
        For example its test data. It is indexed a block at a time. The same cache as `first` finds
        duplicates inside a set, each pair once and no clip with itself; in two caches, clips of the
        same id are compared like any others.
    same, similar : float
        Lowest scores of the two kinds; the table above is for the defaults.
    progress : callable
        Called with clips done, clips in all, and a note.

    Returns
    -------
    tuple of Leak
        One for each pair, the highest score first; pairs of one group behind all others.

    Raises
    ------
    RequestError
        If the mel bands of the caches were made with different settings, or with settings too
        coarse to tell recordings apart.

    Examples
    --------
    >>> data = Cache("demo-cache")
    >>> leaks(data, data)  # a clip is not compared with itself
    ()
    """
    if not 0.5 < similar <= same <= 1:
        raise RequestError(
            f"similar is {similar} and same is {same}, expected 0.5 < similar <= same <= 1."
        )
    first = first.require(first.spectrogram.without_pitch)  # pitch bands are not used
    second = second.require(first.spectrogram)
    inside = first.path.resolve() == second.path.resolve()
    blocks = list(_blocks(second))
    found: list[Leak] = []
    for number, block in enumerate(blocks):
        index = _Index(second, block)
        for clip in range(len(first.clips)):
            if not inside or clip < block.stop - 1:  # of a set with itself, the upper triangle
                found += _compared(
                    first, second, index, clip, inside=inside, limits=(similar, same)
                )
            progress(
                number * len(first.clips) + clip + 1,
                len(blocks) * len(first.clips),
                f"{len(found)} found",
            )
    return tuple(
        sorted(found, key=lambda leak: (leak.one_group, -leak.score, leak.first, leak.second))
    )


def save(found: Sequence[Leak], path: str | Path) -> None:
    """Write leaks as a CSV file, a row each, in their order; with none, the header alone."""
    with (
        replaced_file(Path(path)) as new,
        new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(field.name for field in fields(Leak))
        table.writerows(map(to_cell, astuple(leak)) for leak in found)


# --- the index ---


class _Index:
    """Codes of consecutive clips of a cache, and the frames of each."""

    def __init__(self, cache: Cache, block: range) -> None:
        parts = [fingerprint.fingerprint(cache.log_mel(clip), cache.spectrogram) for clip in block]
        self.first = block.start
        self.prints = np.concatenate(parts)  # (F, 2)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        self.owners = np.repeat(np.arange(len(parts), dtype=np.int32), np.diff(self.starts))
        codes, frames = _codes(self.prints)
        self.frames = frames[np.argsort(codes, kind="stable")]  # postings, code by code
        # of each code's
        self.firsts = np.concatenate(
            [[0], np.cumsum(np.bincount(codes, minlength=len(CODE_SHIFTS) << CODE_BITS))]
        )

    def clip(self, number: int) -> np.ndarray:
        """Fingerprint of a clip, counted within the block."""
        return self.prints[self.starts[number] : self.starts[number + 1]]

    def votes(
        self, codes: np.ndarray, frames: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Clips, offsets in frames and votes of whatever these codes hit, each at its frame."""
        at = self.firsts[codes]
        hits = self.firsts[codes + np.uint32(1)] - at
        hits[hits > COMMON] = 0
        postings = np.repeat(at - np.cumsum(hits) + hits, hits) + np.arange(hits.sum())
        hit = self.frames[postings].astype(np.int64)
        owners = self.owners[hit].astype(np.int64)
        offsets = hit - self.starts[owners] - np.repeat(frames, hits)
        cells, votes = np.unique((owners << 32) + offsets + 2**31, return_counts=True)
        return cells >> 32, (cells & (2**32 - 1)) - 2**31, _with_neighbours(cells, votes)


def _with_neighbours(cells: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Votes of each cell and of the two beside it: an offset is seldom a whole number of frames."""
    beside = np.diff(cells) == 1
    total = votes.copy()
    total[:-1] += votes[1:] * beside
    total[1:] += votes[:-1] * beside
    return total


def _codes(prints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a fingerprint (T', 2), the two kinds marked by their highest bit, and their frames.

    None where little is reliable.
    """
    codes, frames = [], []
    for kind, shift in enumerate(CODE_SHIFTS):
        sign, reliable = ((prints >> np.uint32(shift)) & np.uint32(2**CODE_BITS - 1)).T
        kept = np.flatnonzero(np.bitwise_count(reliable) >= CODE_BITS // 2)
        codes.append(sign[kept] | np.uint32(kind << CODE_BITS))
        frames.append(kept)
    return np.concatenate(codes), np.concatenate(frames).astype(np.uint32)


def _codes_with_flips(differences: np.ndarray, prints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes as :func:`_codes` gives them, with every way to turn over the weakest bits of each."""
    codes, frames = _codes(prints)
    ways = []
    for kind, shift in enumerate(CODE_SHIFTS):
        kept = frames[codes >> np.uint32(CODE_BITS) == kind]
        # (C, 2)
        weakest = np.argpartition(
            np.abs(differences[kept, shift : shift + CODE_BITS]), FLIPS, axis=1
        )[:, :FLIPS]
        ways.append(np.uint32(1) << weakest.astype(np.uint32))
    bits = np.concatenate(ways)
    turned = [
        codes ^ (bits * np.array(on, np.uint32)).sum(axis=1, dtype=np.uint32)
        for on in itertools.product((0, 1), repeat=FLIPS)
    ]
    return np.concatenate(turned), np.tile(frames.astype(np.int64), len(turned))


def _blocks(cache: Cache) -> Iterator[range]:
    """Stretches of a cache's clips of about `BLOCK_FRAMES` frames."""
    numbers = np.cumsum(cache.frames) // BLOCK_FRAMES
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return (range(low, high) for low, high in itertools.pairwise(edges))


# --- comparing ---


def _compared(
    first: Cache,
    second: Cache,
    index: _Index,
    clip: int,
    *,
    inside: bool,
    limits: tuple[float, float],
) -> Iterator[Leak]:
    """Yield the leak between a clip and each clip of the index that is like it."""
    one, (similar, same) = first.clips[clip], limits
    for number, match in _best(
        index, first.log_mel(clip), first.spectrogram, after=clip - index.first if inside else -1
    ).items():
        two, offset = second.clips[index.first + number], match.offset
        overlap = min(first.frames[clip], second.frames[index.first + number] - offset) - max(
            0, -offset
        )
        if match.score >= similar:
            yield Leak(
                first=one.id,
                second=two.id,
                kind="same recording" if match.score >= same else "similar",
                score=round(match.score, 4),
                offset_s=round(offset * first.spectrogram.frame_s, 3),
                overlap_s=round(float(overlap) * first.spectrogram.frame_s, 3),
                one_group=inside and one.group is not None and one.group == two.group,
            )


class _Match(NamedTuple):
    """How well two clips fit at an offset.

    Signs come first, as reliable bits often agree without exception a frame or two beside the best
    place.
    """

    signs: float
    score: float
    offset: int


def _best(
    index: _Index, log_mel: np.ndarray, config: SpectrogramConfig, *, after: int
) -> dict[int, _Match]:
    """Best match for each clip of the index, behind the clip `after`, that gets enough votes."""
    differences = fingerprint.differences(log_mel, config)
    prints = fingerprint.pack(differences)
    clips, offsets, votes = index.votes(*_codes_with_flips(differences, prints))
    enough = np.flatnonzero((votes >= VOTES) & (clips > after))
    best: dict[int, _Match] = {}
    for cell in enough[np.argsort(-votes[enough], kind="stable")][:TRIED].tolist():
        number, offset = int(clips[cell]), int(offsets[cell])
        match = _match(prints, index.clip(number), offset, config)
        if match.score > PROMISING:
            match = max(
                _match(prints, index.clip(number), offset + step, config)
                for step in (-2, -1, 0, 1, 2)
            )
        best[number] = max(best.get(number, match), match)
    return best


def _match(one: np.ndarray, two: np.ndarray, offset: int, config: SpectrogramConfig) -> _Match:
    """Compare two fingerprints in the best window, frame t of `one` lying on t + offset of `two`.

    All 0 if the overlap is too short.
    """
    start, end = max(0, -offset), min(len(one), len(two) - offset)
    window = min(round(WINDOW_S / config.frame_s), end - start)
    if window * config.frame_s < SHORTEST_S - SMOOTH_S - LAG_S:
        return _Match(0.0, 0.0, offset)
    one, two = one[start:end], two[start + offset : end + offset]
    alike, both = ~(one[:, 0] ^ two[:, 0]), one[:, 1] & two[:, 1]
    signs, reliable, agreeing = (
        _window_sums(np.bitwise_count(bits), window) for bits in (alike, both, both & alike)
    )
    shares = np.where(reliable >= SHARE * BITS * window, agreeing / np.maximum(reliable, 1), 0.0)
    at = int(shares.argmax())
    return _Match(float(signs[at]) / (BITS * window), float(shares[at]), offset)


def _window_sums(values: np.ndarray, window: int) -> np.ndarray:
    """Sums of each `window` consecutive values: (F,) -> (F - window + 1,)."""
    sums = np.cumsum(values, dtype=np.int64)
    sums[window:] -= sums[:-window].copy()
    return sums[window - 1 :]
