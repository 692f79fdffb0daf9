"""Limits of what decoding a file may take: length, memory, time. And the output of decoders.

Each limit is an environment variable, so that it holds for every command and reaches worker
processes. Memory, time and output are watched in worker processes alone, which may end; a length is
limited everywhere.
"""

import contextlib
import ctypes
import faulthandler
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from patchifier.config import RequestError
from patchifier.io import SAYS

SAID = 300  # characters of a decoder's output that are kept


@dataclass(frozen=True)
class Limits:
    """Limits of a file.

    Attributes
    ----------
    length_h : float
        Longest audio that is decoded of a file, in hours: PATCHIFIER_MAX_LENGTH_H.
    memory_mb : float
        Memory that a worker process may take beyond what it holds when it begins, in MB (Linux):
        PATCHIFIER_MAX_MEMORY_MB.
    idle_s : float
        Seconds without a decoded block after which a worker process gives a file up:
        PATCHIFIER_MAX_IDLE_S.
    """

    length_h: float = 12.0
    memory_mb: float = 1024.0
    idle_s: float = 600.0


def variable(name: str) -> str:
    """Name of the environment variable of a limit."""
    return f"PATCHIFIER_MAX_{name.upper()}"


def limits() -> Limits:
    """Limits of the environment; a variable that holds no positive number is refused.

    Examples
    --------
    >>> limits().length_h
    12.0
    """
    names = [field.name for field in fields(Limits)]
    return Limits(**{name: _number(name, getattr(Limits, name)) for name in names})


def _number(name: str, default: float) -> float:
    text = os.environ.get(variable(name), "")
    try:
        value = float(text or default)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise RequestError(f"{variable(name)} is {text!r}, expected a number above 0.")
    return value


def memory_reason() -> str:
    """Reason for a file that needed too much memory."""
    if not _bench:
        return "needs more memory than there is."
    return (
        f"needs more memory than {limits().memory_mb:g} MB, the limit of a worker process: "
        f"set {variable('memory_mb')}, or cut the file."
    )


def hung_reason() -> str:
    """Reason for a file whose decoder made no progress."""
    return (
        f"no progress for {limits().idle_s:g} s, given up: set {variable('idle_s')} to wait longer."
    )


# --- in a worker process ---


class _Bench:
    """Files of a process about what it works on, from which its parent reads why it ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.item, self.said, self.hung = (
            (folder / f"{os.getpid()}.{name}").open("w+b", buffering=0)
            for name in ("item", "said", "hung")
        )
        self.idle_s = limits().idle_s

    @contextlib.contextmanager
    def work_on(self, path: str) -> Iterator[None]:
        for file, text in ((self.item, os.fsencode(path)), (self.said, b"")):
            file.seek(0)
            file.truncate()
            file.write(text)
        outputs = [os.dup(number) for number in (1, 2)]
        _flush()
        for number in (1, 2):
            os.dup2(self.said.fileno(), number)
        self.progressed()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            _flush()
            for number, output in zip((1, 2), outputs):
                os.dup2(output, number)
                os.close(output)

    def progressed(self) -> None:
        faulthandler.dump_traceback_later(self.idle_s, exit=True, file=self.hung)


_bench: _Bench | None = None


def _flush() -> None:
    """Write what Python and C hold back of the outputs."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows
        ctypes.CDLL(None).fflush(None)


def enter(folder: Path) -> None:
    """Watch this process from now on, and limit its memory where the system can (Linux).

    In the folder, the processes of a job say what they work on.
    """
    global _bench
    _bench = _Bench(folder)
    try:
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
    except (ImportError, OSError):
        return
    held = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(1024 * int(held[1] if held else 0) + 2**20 * limits().memory_mb)
    if held and (hard == resource.RLIM_INFINITY or most < hard):
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def work_on(path: str) -> contextlib.AbstractContextManager[None]:
    """Watch the work on a file, and keep its output.

    The process ends if it makes no progress, even inside a decoder.
    """
    return _bench.work_on(path) if _bench else contextlib.nullcontext()


def progressed() -> None:
    """Begin the time without progress anew."""
    if _bench:
        _bench.progressed()


def output() -> str:
    """Output of decoders since the work on the file began, on one line."""
    if not _bench:
        return ""
    _flush()
    return _last_words(Path(_bench.said.name))


@contextlib.contextmanager
def listen(said: list[str]) -> Iterator[None]:
    """Keep what C code prints on standard error in the meantime; Python's own output passes.

    In the main thread alone, where no other file is decoded at the same time. In a worker process
    :func:`work_on` keeps all output.
    """
    if _bench or threading.current_thread() is not threading.main_thread():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            terminal = os.dup(2)
        except OSError:  # there is none
            yield
            return
        stack.callback(os.close, terminal)
        kept = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        stack.enter_context(_python_writes_to(terminal))
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            kept.seek(0)
            said += kept.read().decode("utf-8", "replace").splitlines()


@contextlib.contextmanager
def _python_writes_to(terminal: int) -> Iterator[None]:
    """Let sys.stderr write to another descriptor if it writes to that of the process."""
    own = sys.stderr
    try:
        direct = own is not None and own.fileno() == 2
    except (OSError, ValueError, AttributeError):  # as in a notebook
        direct = False
    if not direct:
        yield
        return
    own.flush()
    with os.fdopen(terminal, "w", encoding=own.encoding, errors=own.errors, closefd=False) as new:
        sys.stderr = new
        try:
            yield
        finally:
            sys.stderr = own


def one_line(lines: Sequence[str]) -> str:
    """Lines of output on one line, each once, the last :data:`SAID` characters."""
    return " ".join(" ".join(dict.fromkeys(lines)).split())[-SAID:]


def with_words(reason: str, words: str) -> str:
    """Reason for a file, and behind it the output of its decoder."""
    return f"{reason}{SAYS}{words}" if words else reason


# --- what processes left ---


def gave_up(path: str) -> bool:
    """Whether an earlier process of the job ended because it made no progress on this file."""
    return _bench is not None and any(
        mark.with_suffix(".hung").stat().st_size for mark in _marks(_bench.folder, path)
    )


def last_words(folder: Path, path: str) -> str:
    """Output of a process that ended while it worked on a file, on one line."""
    return " ".join(_last_words(mark.with_suffix(".said")) for mark in _marks(folder, path)).strip()


def _marks(folder: Path, path: str) -> list[Path]:
    name = os.fsencode(path)
    return [mark for mark in folder.glob("*.item") if mark.read_bytes() == name]


def _last_words(path: Path) -> str:
    return one_line(path.read_bytes().decode("utf-8", "replace").split("\n"))
