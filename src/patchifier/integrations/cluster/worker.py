"""What one worker of a cluster does: a part at a time, on one thread, with a model that it loads once.

A part that two processes died on is done by a third in another way: each clip in a process of its own, so that the one that kills its
decoder is found out and named. How often a part was tried stands beside the parts, where every machine sees it.
"""

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

import patchifier
from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.embed import Embedder
from patchifier.integrations.cluster import parts
from patchifier.integrations.cluster.store import Store, fetch, is_passing, is_url
from patchifier.library.worker import Cut, Rows, embed_clips
from patchifier.processes import in_processes

DEATHS = 2  # after so many, one by one
GROUP, FETCHES = 8, 4  # files fetched while as many are embedded, and so many at once
Work = Callable[[Sequence[Clip]], Sequence[Rows | str]]


@dataclass(frozen=True)
class Order:
    """What every worker of a job is told."""

    cut: Cut
    out: str
    facts: dict[str, Any]
    version: str = patchifier.__version__


class Worker:
    """An actor of Ray Data.

    Parameters
    ----------
    embedder : ObjectRef of Embedder
        The model, on the CPU.
    order : Order
        What to make of it.
    """

    def __init__(self, embedder: Any, order: Order) -> None:
        import ray

        if order.version != patchifier.__version__:
            raise RequestError(
                f"a worker has patchifier {patchifier.__version__}, the job {order.version}: install the same on every machine."
            )
        torch.set_num_threads(1)
        self.embedder, self.order, self.store = ray.get(embedder), order, Store(order.out)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make some parts; a row about each."""
        told = [
            self._part(int(number), read_clips(clips), bool(kept))
            for number, clips, kept in zip(*(batch[name] for name in TASK), strict=True)
        ]
        return {"told": np.array([json.dumps(one) for one in told], dtype=object)}

    def _part(self, number: int, clips: Sequence[Clip], kept: bool) -> dict[str, Any]:
        """Counts of a part, here or before; a file that could not be fetched by an earlier job is tried again.

        A part that is whole though it was not there when the job began was made by this job, on a machine that vanished before it could say so.
        """
        part = parts.whole(self.store, number, clips)
        if part is None or (kept and part.again):
            part, kept = self._make(number, clips), False
        return {"number": number, **vars(part), "clips": len(clips), "made": not kept}

    def _make(self, number: int, clips: Sequence[Clip]) -> parts.Part:
        tried = Tried(self.store, number)
        died = tried.begin()
        work = functools.partial(
            one_by_one if died >= DEATHS else embed_clips, self.embedder, self.order.cut
        )
        answers, again = answer(work, clips)
        part = parts.write(self.store, number, clips, answers, facts=self.order.facts, again=again)
        tried.end()
        return part


TASK = ("number", "clips", "kept")  # columns of Ray Data's table of what is to be done


def task(number: int, clips: Sequence[Clip], kept: bool) -> dict[str, Any]:
    """One row of that table; `kept` for a part that was there when the job began."""
    return {
        "number": number,
        "clips": json.dumps([[clip.path, clip.start_s, clip.end_s] for clip in clips]),
        "kept": kept,
    }


def read_clips(text: str) -> list[Clip]:
    """Clips as :func:`task` has written them."""
    return [Clip(path, path, start_s, end_s) for path, start_s, end_s in json.loads(text)]


class Tried:
    """How often a part was begun: a mark for each time, taken away when the part is whole."""

    def __init__(self, store: Store, number: int) -> None:
        self.store, self.name, self.times = store, f"trying/part-{number:05d}", 0

    def begin(self) -> int:
        """Leave a mark; how many were there."""
        while self.store.has(f"{self.name}.{self.times}"):
            self.times += 1
        self.store.write(f"{self.name}.{self.times}", "")
        return self.times

    def end(self) -> None:
        """Take the marks away."""
        for time in range(self.times + 1):
            self.store.remove(f"{self.name}.{time}")


def one_by_one(embedder: Embedder, cut: Cut, clips: Sequence[Clip]) -> list[Rows | str]:
    """Embed each clip in a process that may die of it."""
    answers = in_processes(_embed_one, clips, workers=1, shared=(embedder, cut))
    return [
        answer or f"{clip.path}: the decoder crashed on this file."
        for clip, answer in zip(clips, answers, strict=True)
    ]


def _embed_one(shared: tuple[Embedder, Cut], clip: Clip) -> Rows | str:
    return embed_clips(*shared, [clip])[0]


# --- files from elsewhere ---


@dataclass(frozen=True)
class _Here:
    """A clip whose file is on this machine, and since when it is as it is; or why it is not here, and whether that may pass."""

    clip: Clip
    mtime_ns: int | None = None
    reason: str = ""
    passing: bool = False


def answer(work: Work, clips: Sequence[Clip]) -> tuple[list[Rows | str], bool]:
    """Embed clips, files that are elsewhere too: some are fetched while others are embedded, and none is left here.

    Returns
    -------
    answers : list of Rows or str
        For each clip.
    again : bool
        Whether a file could not be fetched for a reason that may pass.
    """
    if not any(is_url(clip.path) for clip in clips):
        return list(work(clips)), False
    answers, again = list[Rows | str](), False
    with tempfile.TemporaryDirectory(prefix="patchifier-") as folder:
        for group, here in _fetched(parts.cut(clips, GROUP), folder):
            answers += _put_back(group, here, work([one.clip for one in here if not one.reason]))
            again = again or any(one.passing for one in here)
    return answers, again


def _fetched(
    groups: Sequence[Sequence[Clip]], folder: str
) -> Iterator[tuple[Sequence[Clip], list[_Here]]]:
    """Yield clips and where they are now; the next ones come meanwhile."""
    with ThreadPoolExecutor(FETCHES) as pool:
        coming: list[Future[_Here]] = []
        for number in range(len(groups) + 1):
            here = [future.result() for future in coming]
            if number < len(groups):
                coming = [
                    pool.submit(_fetch, clip, Path(folder) / f"{number}-{place}")
                    for place, clip in enumerate(groups[number])
                ]
            if here:
                yield groups[number - 1], here
                for one in here:
                    if one.mtime_ns is not None:
                        os.unlink(one.clip.path)


def _fetch(clip: Clip, place: Path) -> _Here:
    if not is_url(clip.path):
        return _Here(clip)
    local = place.with_suffix(Path(urlsplit(clip.path).path).suffix)
    try:
        return _Here(replace(clip, path=str(local)), fetch(clip.path, local))
    except Exception as error:  # each file system has its own
        local.unlink(missing_ok=True)
        return _Here(
            clip,
            reason=f"{clip.path}: cannot be fetched ({str(error) or type(error).__name__}).",
            passing=is_passing(error),
        )


def _put_back(
    clips: Sequence[Clip], here: Sequence[_Here], found: Sequence[Rows | str]
) -> Iterator[Rows | str]:
    """Answers about clips, as if their files had been read where they are."""
    rest = iter(found)
    for clip, one in zip(clips, here, strict=True):
        if one.reason:
            yield one.reason
            continue
        rows = next(rest)
        if one.mtime_ns is None:
            yield rows
        else:
            yield (
                rows.replace(one.clip.path, clip.path)
                if isinstance(rows, str)
                else replace(rows, mtime_ns=one.mtime_ns)
            )
