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

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from patchifier.cache import Cache
from patchifier.config import RequestError
from patchifier.fingerprint import fingerprint
from patchifier.io import Progress, silent, write_table
from patchifier.matching import SAME, SIMILAR, PrintIndex, print_of

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

    Examples
    --------
    >>> import dataclasses
    >>> from patchifier import cache, datasets
    >>> clip = datasets.load("demo").clips[0]
    >>> twice = datasets.Dataset("twice", (clip, dataclasses.replace(clip, id="copy")))
    >>> _ = cache.prepare(twice, "twice-cache", workers=1)
    >>> (leak,) = leaks(Cache("twice-cache"), Cache("twice-cache"))
    >>> leak.kind, leak.score
    ('same recording', 1.0)
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
        parts = [fingerprint(second.log_mel(clip), second.spectrogram) for clip in block]
        index = PrintIndex(parts, second.spectrogram)
        for clip in range(len(first.clips)):
            if not inside or clip < block.stop - 1:  # of a set with itself, the upper triangle
                found += _compared(
                    first, second, index, block, clip, inside=inside, limits=(similar, same)
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
    write_table(Path(path), [field.name for field in fields(Leak)], map(astuple, found))


# --- comparing ---


def _blocks(cache: Cache) -> Iterator[range]:
    """Stretches of a cache's clips of about `BLOCK_FRAMES` frames."""
    numbers = np.cumsum(cache.frames) // BLOCK_FRAMES
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return (range(low, high) for low, high in itertools.pairwise(edges))


def _compared(
    first: Cache,
    second: Cache,
    index: PrintIndex,
    block: range,
    clip: int,
    *,
    inside: bool,
    limits: tuple[float, float],
) -> Iterator[Leak]:
    """Yield the leak between a clip and each clip of the index that is like it."""
    one, (similar, same) = first.clips[clip], limits
    query = print_of(first.log_mel(clip), first.spectrogram)
    after = clip - block.start if inside else -1
    for number, match in index.best(query, after=after).items():
        two, offset = second.clips[block.start + number], match.offset
        overlap = min(first.frames[clip], second.frames[block.start + number] - offset) - max(
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
