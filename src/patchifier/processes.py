"""Processes that decode audio: each with one thread, none left behind when the one that started them is gone."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from patchifier.config import RequestError


def require_start(pool: ProcessPoolExecutor) -> None:
    """Find out whether processes can start at all, so that no file is blamed for it."""
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        raise RequestError(
            "the decoding processes could not start. In a script, make the call below 'if __name__ == \"__main__\":'; "
            "code typed into standard input cannot start any: save it to a file, or use the patchifier command."
        ) from None


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that decode, a thread each; started afresh, since a fork of running torch threads can hang."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """Begin a worker: one thread, Ctrl-C left to its parent, and an end with that parent, which a kill would leave it waiting for."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
