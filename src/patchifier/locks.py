"""One job at a time in a folder: a second one would write over the first one's files."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from patchifier.config import RequestError


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder against a second job; the system lets go of it even after a kill. Nothing is held where there is no folder.

    Parameters
    ----------
    folder : Path
        That the job writes to.
    what : str
        What a job is, for the message: "fetch", "run".

    Raises
    ------
    RequestError
        If another job holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with contextlib.ExitStack() as stack:
        if folder.exists():
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RequestError(
                    f"{folder}: another {what} is working in this folder. Wait for it, or end it first."
                ) from error
            except OSError:  # a file system without locks
                pass
        yield
