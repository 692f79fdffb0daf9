"""Processes that work on audio: each with one thread, none left behind when the one that started them is gone."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from patchifier.config import RequestError

Task = TypeVar("Task")
Answer = TypeVar("Answer")
AHEAD = 4  # tasks done or in work for each process: bounded, so that answers do not pile up


def in_processes(work: Callable[[Any, Task], Answer], tasks: Sequence[Task], *, workers: int, shared: Any = None) -> Generator[Answer | None, None, None]:
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
        If no process can start; and whatever `work` raises.
    """
    waiting, running = deque(tasks), deque[tuple[Task, Future[Answer]]]()
    while waiting or running:
        count = min(workers, len(waiting))
        with _ended(process_pool(count, initializer=_begin, initargs=(shared,))) as pool:
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
        yield from _one_by_one(running, work, shared)
        running.clear()


def _one_by_one(running: Sequence[tuple[Task, Future[Answer]]], work: Callable[[Any, Task], Answer], shared: Any) -> Iterator[Answer | None]:
    """Answers of a pool that broke: those that it gave, and the others from a process that is replaced whenever it dies."""
    with contextlib.ExitStack() as stack:
        alone = None
        for task, future in running:
            if future.done() and not future.cancelled() and not future.exception():
                yield future.result()
                continue
            alone = alone or stack.enter_context(_ended(process_pool(1, initializer=_begin, initargs=(shared,))))
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
    started = [pool.submit(os.getpid) for _ in range(workers)]  # a pool starts a process for each task that finds none at rest
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


def _begin(shared: Any) -> None:
    """Begin a process: keep what is shared; one thread, Ctrl-C left to its parent, an end with that parent, whose kill would leave it waiting."""
    global _shared
    _shared = shared
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
