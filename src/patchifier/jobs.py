"""The engine of every job over many items: processes, a lock for each folder, reasons for skips.

A job groups its items into batches. :func:`run` gives one result for each item, in order, and the
job writes them as parts, each beside and renamed (:mod:`patchifier.io`). A job that is killed and
run again keeps the finished parts and runs the remaining items.
"""

import contextlib
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import filelock

from patchifier import sandbox
from patchifier.config import RequestError
from patchifier.io import Progress, locked

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Any, Sequence[Item]], Sequence[Result]]
BAD_ITEM = (RequestError, OSError, MemoryError)  # errors that cost an item and not the job
AHEAD = 4  # batches in work or finished for each process: bounds the results in memory
GRACE_S = 5.0  # for the processes of an interrupted job, which may be inside a decoder
MOST_ON_WINDOWS = 61  # processes that it can wait for
LOCK = ".lock"  # name of the lock file in a folder
STATE_FILE = "state.safetensors"  # of a training loop


# --- processes ---


def run(
    work: Work[Item, Result],
    batches: Sequence[Sequence[Item]],
    *,
    workers: int,
    shared: Any = None,
    name: Callable[[Item], Any] = lambda item: getattr(item, "path", item),
) -> Generator[Result | str, None, None]:
    """Yield the result of each item, in order, from worker processes.

    A batch whose process dies is done again in a process of its own. If that one dies too, each of
    its items is done alone, and an item that kills its process again is skipped: its result is the
    reason. `work` calls :func:`attempt` for each file. If the caller stops early, the processes
    have :data:`GRACE_S` to end.

    Parameters
    ----------
    work : callable
        Called with `shared` and a batch; returns one result for each item. It must be a function of
        a module, so that another process finds it.
    shared : object
        Sent to each process once.
    name : callable
        Gives the name of an item for the reason why it is skipped; its `path` by default.

    Raises
    ------
    RequestError
        If `workers` is below 1 or no process can start; and whatever `work` raises.
    """
    if workers < 1:
        raise RequestError(f"workers is {workers}, expected at least 1.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        sent = _Shared(shared, Path(folder) / "shared")
        waiting, running = deque(batches), deque[tuple[Sequence[Item], Future[Sequence[Result]]]]()
        while waiting or running:
            count = min(workers, len(waiting))
            with _closing(process_pool(count, initializer=_begin, initargs=(sent,))) as pool:
                _require_start(pool, count)
                try:
                    while waiting or running:
                        while waiting and len(running) < AHEAD * workers:
                            running.append((waiting[0], _submit(pool, _do, work, waiting[0])))
                            waiting.popleft()
                        results = running[0][1].result()
                        running.popleft()
                        yield from results
                except BrokenProcessPool:
                    pass
            yield from _retry(running, work, sent, name)
            running.clear()


def _retry(
    running: Sequence[tuple[Sequence[Item], Future[Sequence[Result]]]],
    work: Work[Item, Result],
    sent: "_Shared",
    name: Callable[[Item], Any],
) -> Iterator[Result | str]:
    """Results of the batches of a broken pool; unfinished ones are done in single processes."""
    with contextlib.ExitStack() as stack:
        pools = list[ProcessPoolExecutor]()

        def attempt(batch: Sequence[Item]) -> Sequence[Result] | None:
            if not pools:
                new = process_pool(1, initializer=_begin, initargs=(sent,))
                pools.append(stack.enter_context(_closing(new)))
            try:
                return _submit(pools[0], _do, work, batch).result()
            except BrokenProcessPool:
                pools.clear()
                return None

        for batch, future in running:
            finished = future.done() and not future.cancelled() and not future.exception()
            results = future.result() if finished else attempt(batch)
            if results is not None:
                yield from results
                continue
            for item in batch:
                found = attempt([item]) if len(batch) > 1 else None
                if found is None:
                    words = sandbox.last_words(sent.path.parent, str(name(item)))
                    said = f" ({words})" if words else ""
                    yield f"{name(item)}: the decoder crashed on this file{said}."
                else:
                    yield from found


class _Shared:
    """An object that each process gets once, through a file, written when the first one starts.

    A process that cannot start reads no pipe, and its parent would wait for ever.
    """

    def __init__(self, value: Any, path: Path) -> None:
        self.value, self.path = value, path

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.path.exists():
            self.path.write_bytes(pickle.dumps(self.value))
        return _read_shared, (self.path,)


def _read_shared(path: Path) -> _Shared:
    return _Shared(pickle.loads(path.read_bytes()), path)


@contextlib.contextmanager
def _closing(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """Drop the tasks that a pool has not begun, and after an interruption end its processes."""
    try:
        yield pool
    except BaseException:
        _end(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool, and its thread.

    At the exit of Python, the module of pools writes to a pipe that this thread closes when it
    ends. The two at the same time are an error, which Python prints.
    """
    processes = list((getattr(pool, "_processes", None) or {}).values())  # threads in tests
    manager: threading.Thread | None = getattr(pool, "_executor_manager_thread", None)
    pool.shutdown(wait=not processes, cancel_futures=True)
    last_s = time.monotonic() + GRACE_S
    for process in processes:
        process.join(max(0.0, last_s - time.monotonic()))
        process.terminate()
    if manager is not None:
        manager.join(GRACE_S)


def _require_start(pool: ProcessPoolExecutor, workers: int) -> None:
    """Start all processes and check that they can start, so that no file is blamed for it."""
    # a pool starts a process for each task that finds none idle
    started = [_submit(pool, os.getpid) for _ in range(workers)]
    try:
        started[0].result()
    except BrokenProcessPool:
        raise RequestError(
            "the worker processes could not start. In a script, make the call below 'if __name__ "
            '== "__main__":\'; '
            "code typed into standard input cannot start any: save it to a file, or use the "
            "patchifier command."
        ) from None


def _submit(pool: ProcessPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Submit a task. A process that starts for it leaves Ctrl-C to its parent from the first on.

    It inherits which signals are blocked. Else it prints where its imports were interrupted.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return pool.submit(work, *arguments)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(work, *arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def process_pool(workers: int, **options: Any) -> ProcessPoolExecutor:
    """Make a pool of new processes, since a fork of running torch threads can hang."""
    if sys.platform == "win32":
        workers = min(workers, MOST_ON_WINDOWS)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), **options)


_shared: Any = None  # in a worker process: the shared object


def _begin(sent: _Shared) -> None:
    """Set a worker process up: one thread; Ctrl-C is left to its parent.

    It ends with its parent, even if that is killed.
    """
    global _shared
    _shared = sent.value
    parent = multiprocessing.parent_process()
    if parent is not None:  # none in tests, where threads replace processes
        use_one_thread()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sandbox.enter(sent.path.parent)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def use_one_thread() -> None:
    """Compute with one thread in this process: its neighbours use the other cores."""
    # read by patchifier.graph, and by torch if it is imported later
    os.environ["OMP_NUM_THREADS"] = "1"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _do(work: Work[Item, Result], batch: Sequence[Item]) -> Sequence[Result]:
    return work(_shared, batch)


# --- what every job reports ---


def attempt(path: str, work: Callable[..., Result], *arguments: Any) -> Result | str:
    """Do the work on one file within the limits of :mod:`patchifier.sandbox`.

    If it raises one of :data:`BAD_ITEM`, or ended a process because it made no progress, the result
    is the reason why the file is skipped, with the output of its decoder.
    """
    if sandbox.gave_up(path):
        return f"{path}: {sandbox.hung_reason()}"
    with sandbox.work_on(path):
        try:
            with memory_errors():
                return work(*arguments)
        except BAD_ITEM as error:
            reason = skip_reason(path, error)
    return sandbox.with_words(reason, sandbox.output())


# What torch, its libraries and Python say where memory, or a thread's stack, cannot be had.
NO_MEMORY = (
    "OutOfMemoryError|can't allocate memory|not enough memory|could not create a primitive"
    "|can't start new thread"
)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's error for want of memory, which is a RuntimeError, into a MemoryError."""
    try:
        yield
    except RuntimeError as error:
        words = f"{type(error).__name__} {error}"
        if re.search(NO_MEMORY, words):
            raise MemoryError from error
        raise


def skip_reason(path: str, error: BaseException) -> str:
    """Reason why a file is skipped, for an error of :data:`BAD_ITEM`."""
    if isinstance(error, RequestError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"{path}: {sandbox.memory_reason()}"
    return f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})."


class Meter:
    """Progress of a job with its rates. An earlier job finished `done` items, `skipped` of them."""

    def __init__(self, progress: Progress, total: int, *, done: int = 0, skipped: int = 0) -> None:
        self.progress, self.total, self.done, self.skipped = progress, total, done, skipped
        self.made, self.audio_s, self.started_s = 0, 0.0, time.monotonic()

    def begin(self) -> None:
        """Show where the job begins, for its first item may take long; nothing if all is done."""
        if self.done < self.total:
            self.progress(self.done, self.total, "")

    def add(self, items: int = 1, *, skipped: int = 0, kept: int = 0, audio_s: float = 0.0) -> None:
        """Count items, of which some were skipped or kept, and show the progress."""
        self.done, self.skipped = self.done + items, self.skipped + skipped
        self.made, self.audio_s = self.made + items - skipped - kept, self.audio_s + audio_s
        passed_s = max(time.monotonic() - self.started_s, 1e-9)
        notes = [f"{self.made / passed_s:.1f} files/s"]
        notes += [f"{self.audio_s / passed_s:,.0f}x real time"] if self.audio_s else []
        notes += [f"{self.skipped} skipped"] if self.skipped else []
        self.progress(self.done, self.total, ", ".join(notes))


# --- one job at a time ---


def folder_lock(folder: Path, job: str) -> contextlib.AbstractContextManager[None]:
    """Lock a folder, if it exists, against a second job; `job` names the kind in the message."""
    message = f"{folder}: another {job} is working in this folder."
    return _lock(folder / LOCK, message)


def file_lock(file: Path, job: str) -> contextlib.AbstractContextManager[None]:
    """Lock an output file against a second job, as :func:`folder_lock` locks a folder."""
    return _lock(
        file.parent / f".{file.name}{LOCK}", f"{file}: another {job} is writing this file."
    )


def has_state(folder: Path) -> bool:
    """Whether a training at or below a folder has saved a state, from which it can go on.

    Examples
    --------
    >>> has_state(Path("run"))
    False
    """
    return any(folder.rglob(STATE_FILE))


def is_worked_on(folder: Path) -> bool | None:
    """Whether a job holds the lock of a folder; None where its file system does not tell."""
    try:
        with locked(folder / LOCK):
            return False
    except filelock.Timeout:
        return True
    except OSError:
        return None


@contextlib.contextmanager
def _lock(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file; none where none can be written, as in a read-only folder."""
    with contextlib.ExitStack() as held:
        try:
            if path.parent.exists():
                held.enter_context(locked(path))
        except filelock.Timeout as error:
            raise RequestError(f"{message} Wait for it, or end it first.") from error
        except OSError:
            pass
        yield
