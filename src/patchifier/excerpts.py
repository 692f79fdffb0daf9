"""Several excerpts of one file, decoded in one pass.

Of mp3, Ogg, m4a and the like, a decoder cannot jump to a sample: it decodes from the start.
Excerpts of one file that are read in the order of time share one decoder, so that each second of
the file is decoded once. Their samples are those of :func:`patchifier.decode.mono_blocks`.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile

from patchifier import containers, sandbox
from patchifier.containers import Stream
from patchifier.decode import EXACT_SEEK, AudioError, Decoding, mono_blocks

MOST_ITEMS = 32  # of a run: what a process that dies has to do again
MOST_OVERLAP_S = 600.0  # of two excerpts: so much audio is kept in memory
Excerpt = tuple[str, float, float | None]  # path, start and end in seconds
Blocks = Iterator[tuple[np.ndarray, int]]  # samples and their rate
Source = Callable[[Decoding], Blocks]
Item = TypeVar("Item")
Result = TypeVar("Result")


def runs_of_one_file(items: Sequence[Item], path: Callable[[Item], str]) -> list[list[Item]]:
    """Split items into runs of at most MOST_ITEMS of one file.

    Examples
    --------
    >>> runs_of_one_file(["a", "a", "b", "a"], lambda item: item)
    [['a', 'a'], ['b'], ['a']]
    """
    runs = (list(run) for _, run in itertools.groupby(items, path))
    return [
        run[start : start + MOST_ITEMS] for run in runs for start in range(0, len(run), MOST_ITEMS)
    ]


def read_each(
    excerpts: Sequence[Excerpt],
    read: Callable[[int, Source | None], Result],
    *,
    mix_lfe: bool = False,
) -> list[Result]:
    """Call `read` for each excerpt, and decode a file with several of them once.

    It is called with the number of an excerpt and what gives its blocks; None, if it is decoded
    alone. Calls are in the order of time within each file, results in that of the excerpts (path,
    start_s, end_s). `mix_lfe` is as for :class:`patchifier.decode.Decoding`.
    """
    by_file: dict[str, list[int]] = {}
    for number, (path, _, _) in enumerate(excerpts):
        by_file.setdefault(path, []).append(number)
    results: dict[int, Result] = {}
    for path, numbers in by_file.items():
        numbers.sort(key=lambda number: (excerpts[number][1], number))
        spans = [excerpts[number][1:] for number in numbers]
        shared = _Pass(Path(path), spans, mix_lfe) if _is_shared(path, spans) else None
        for turn, number in enumerate(numbers):
            source = shared.source(turn) if shared else None
            results[number] = read(number, source)
    return [results[number] for number in range(len(excerpts))]


def _is_shared(path: str, spans: Sequence[tuple[float, float | None]]) -> bool:
    """Whether excerpts, in the order of time, are read in one pass."""
    if len(spans) < 2 or not all(_is_sound(*span) for span in spans):
        return False
    try:
        streams = containers.examine(Path(path)) or (Stream(0, 0),)
        if len(streams) > 1:  # links of an Ogg file: each has a decoder of its own
            return False
        ends = [streams[0].length_s or math.inf if end_s is None else end_s for _, end_s in spans]
        overlaps = [end - start for end, (start, _) in zip(np.maximum.accumulate(ends), spans[1:])]
        longest_s = 3600 * sandbox.limits().length_h
        if max(overlaps) > MOST_OVERLAP_S or max(ends) - spans[0][0] > longest_s:
            return False
        with soundfile.SoundFile(path) as file:
            return file.format not in EXACT_SEEK
    except (OSError, AudioError):
        return False
    except soundfile.LibsndfileError:  # PyAV's
        return True


def _is_sound(start_s: float, end_s: float | None) -> bool:
    """Whether an excerpt begins in the file and ends behind its start."""
    if not (math.isfinite(start_s) and start_s >= 0):
        return False
    return end_s is None or (math.isfinite(end_s) and end_s > start_s)


class _Pass:
    """One decoding of a file for excerpts in the order of time."""

    def __init__(
        self, path: Path, spans: Sequence[tuple[float, float | None]], mix_lfe: bool
    ) -> None:
        self.spans, self.how = spans, Decoding(mix_lfe=mix_lfe)
        ends = [end_s for _, end_s in spans]
        end_s = None if None in ends else max(end for end in ends if end is not None)
        self.decoded = mono_blocks(path, spans[0][0], end_s, self.how)
        self.kept: deque[tuple[int, np.ndarray, int]] = deque()  # first sample, samples, rate
        self.samples: int | None = None  # where the next block begins
        self.error: Exception | None = None

    def source(self, turn: int) -> Source:
        """Blocks of an excerpt, by its place in the order."""

        def blocks(how: Decoding) -> Blocks:
            try:
                yield from self._blocks(turn)
            finally:
                how.decoder, how.notes, how.said = (
                    self.how.decoder,
                    [*self.how.notes],
                    [*self.how.said],
                )

        return blocks

    def _blocks(self, turn: int) -> Blocks:
        start_s, end_s = self.spans[turn]
        # what no later excerpt needs is not kept
        needed_s = self.spans[turn + 1][0] if turn + 1 < len(self.spans) else math.inf
        for begin, samples, rate in self._from_the_kept_on(needed_s):
            first = round(start_s * rate) - begin
            last = len(samples) if end_s is None else round(end_s * rate) - begin
            if last <= 0:
                return
            part = samples[max(0, first) : last]
            if len(part):
                yield part, rate
            if end_s is not None and last <= len(samples):
                return

    def _from_the_kept_on(self, needed_s: float) -> Iterator[tuple[int, np.ndarray, int]]:
        """Yield kept blocks, then new ones; keep those that end after `needed_s`."""
        before, self.kept = list(self.kept), deque[tuple[int, np.ndarray, int]]()
        for block in before:
            self._keep(block, needed_s)
        yield from before
        while (new := self._decode()) is not None:
            self._keep(new, needed_s)
            yield new

    def _keep(self, block: tuple[int, np.ndarray, int], needed_s: float) -> None:
        begin, samples, rate = block
        if (begin + len(samples)) / rate > needed_s:
            self.kept.append(block)

    def _decode(self) -> tuple[int, np.ndarray, int] | None:
        """Return the next block; None at the end. An error is raised again for later excerpts."""
        if self.error:
            raise self.error
        try:
            samples, rate = next(self.decoded)
        except StopIteration:
            return None
        except Exception as error:
            self.error = error
            raise
        begin = round(self.spans[0][0] * rate) if self.samples is None else self.samples
        self.samples = begin + len(samples)
        return begin, samples, rate
