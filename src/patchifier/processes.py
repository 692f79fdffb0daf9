"""Processes that work on audio: each with one thread, none left behind when the one that started them is gone."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch

from patchifier.config import RequestError

Task = TypeVar("Task")
Answer = TypeVar("Answer")
AHEAD = 4  # tasks done or in work for each process: bounded, so that answers do not pile up


def in_processes(
    work: Callable[[Any, Task], Answer], tasks: Sequence[Task], *, workers: int, shared: Any = None
) -> Generator[Answer | None, None, None]:
    """Do tasks side by side, in processes of their own.

    Parameters
    ----------
    work : callable
        Called with `shared` and a task. A function of a module, so that another process finds it.
    tasks : sequence
        What to do.
    workers : int
        Processes at most.
    shared : object
        Sent to each process once.

    Yields
    ------
    object or None
        The answer to each task, in their order. None for a task that killed the process it was done in; the others go on.

    Raises
    ------
    RequestError
        If there are to be none, or no process can start; and whatever `work` raises.
    """
    if workers < 1:
        raise RequestError(f"workers is {workers}, expected at least 1.")
    with tempfile.TemporaryDirectory() as folder:
        sent = Sent(shared, Path(folder) / "shared")
        waiting, running = deque(tasks), deque[tuple[Task, Future[Answer]]]()
        while waiting or running:
            count = min(workers, len(waiting))
            with _ended(process_pool(count, initializer=_begin, initargs=(sent,))) as pool:
                _require_start(pool, count)
                try:
                    while waiting or running:
                        while waiting and len(running) < AHEAD * workers:
                            running.append((waiting[0], pool.submit(_do, work, waiting[0])))
                            waiting.popleft()
                        answer = running[0][1].result()
                        running.popleft()
                        yield answer
                except BrokenProcessPool:
                    pass
            yield from _one_by_one(running, work, sent)
            running.clear()


class Sent:
    """What every process is sent once, by way of a file: a process that cannot start reads nothing, and its parent would wait for it to.

    Parameters
    ----------
    value : object
    path : Path
        Where the file may lie; it is written when the first process asks.
    """

    def __init__(self, value: Any, path: Path) -> None:
        self.value, self.path = value, path

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.path.exists():
            self.path.write_bytes(pickle.dumps(self.value))
        return _received, (self.path,)


def _received(path: Path) -> Sent:
    return Sent(pickle.loads(path.read_bytes()), path)


def _one_by_one(
    running: Sequence[tuple[Task, Future[Answer]]], work: Callable[[Any, Task], Answer], sent: Sent
) -> Iterator[Answer | None]:
    """Answers of a pool that broke: those that it gave, and the others from a process that is replaced whenever it dies."""
    with contextlib.ExitStack() as stack:
        alone = None
        for task, future in running:
            if future.done() and not future.cancelled() and not future.exception():
                yield future.result()
                continue
            alone = alone or stack.enter_context(
                _ended(process_pool(1, initializer=_begin, initargs=(sent,)))
            )
            try:
                yield alone.submit(_do, work, task).result()
            except BrokenProcessPool:
                alone = None
                yield None


@contextlib.contextmanager
def _ended(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """A pool that forgets what it has not begun when it is left: an interruption need not wait for it."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _require_start(pool: ProcessPoolExecutor, workers: int) -> None:
    """Start all processes side by side; find out whether they can start at all, so that no file is blamed for it."""
    started = [
        pool.submit(os.getpid) for _ in range(workers)
    ]  # a pool starts a process for each task that finds none at rest
    try:
        started[0].result()
    except BrokenProcessPool:
        raise RequestError(
            "the worker processes could not start. In a script, make the call below 'if __name__ == \"__main__\":'; "
            "code typed into standard input cannot start any: save it to a file, or use the patchifier command."
        ) from None


def process_pool(workers: int, **options: Any) -> ProcessPoolExecutor:
    """Processes started afresh, since a fork of running torch threads can hang."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), **options)


# --- in a process ---

_shared: Any = None


def _begin(sent: Sent) -> None:
    """Begin a process: keep what is shared; one thread, Ctrl-C left to its parent, an end with that parent, whose kill would leave it waiting."""
    global _shared
    _shared = sent.value
    parent = multiprocessing.parent_process()
    if parent is not None:  # none, where threads stand for processes
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _do(work: Callable[[Any, Task], Answer], task: Task) -> Answer:
    return work(_shared, task)
