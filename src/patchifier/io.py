"""Atomic writes, JSON and CSV, lists of skipped files, and progress."""

import contextlib
import csv
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# how text begins that a spreadsheet may compute, or that is guarded
FORMULA = re.compile(r"'*[=+\-@\t\r]")
Progress = Callable[[int, int, str], None]
"""Called with what is done, how much there is in all, and a note.

0 in all is unknown; :class:`Hundredths` in all are parts of a job, and no items.
"""
ProgressOf = Callable[[str], Progress]
"""Given a title, returns a function that shows progress."""
SAYS = " Its decoder says: "
"""What the output of a decoder follows, at the end of the reason for a skipped file."""
REMEDY = re.compile(r"(\.)?(?(1) (?:To|For) [^.:]*): (pip install .*?)\.?$")
"""What to install, at the end of the reason for a skipped file."""
RENAME_WAITS_S = (0.02, 0.1, 0.5, 1.0) if os.name == "nt" else ()
"""Waits between attempts to rename.

On Windows a virus scanner may hold a new file open for a moment.
"""
RESTORE_S = 10.0  # longest wait for a process that is about to put a folder in its place


def silent(done: int, total: int, note: str) -> None:
    """Show no progress."""


def silent_of(title: str) -> Progress:
    """Show no progress of anything."""
    return silent


class Hundredths(int):
    """How much there is in all where parts of a job are counted that take different times.

    They tell neither a number of items nor the time that is left.
    """


class Steps:
    """Progress of a job of several steps, each counted in hundredths; notes have the items.

    Parameters
    ----------
    shown : callable
        Shows the progress of the whole job.
    count : int
        Number of steps.
    """

    def __init__(self, shown: Progress, count: int) -> None:
        self.shown, self.count, self.number = shown, count, -1

    @property
    def total(self) -> Hundredths:
        """The whole job."""
        return Hundredths(100 * self.count)

    def next(self, what: str, unit: str = "") -> Progress:
        """Begin the next step, an equal share of the bar; return the function that shows it.

        `unit` is what the step counts, such as "clips".
        """
        self.number += 1
        before = 100 * self.number

        def show(done: int, total: int, note: str) -> None:
            counted = f"{done} of {total} {unit}".rstrip() if total > 1 else ""
            words = ", ".join(word for word in (what, counted, note) if word)
            self.shown(before + 100 * done // max(1, total), self.total, words)

        show(0, 1, "")
        return show

    def finish(self, note: str = "") -> None:
        """Show that the job is done, and what came out."""
        self.shown(100 * self.count, self.total, note)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, then put that file in place of `path`.

    On an error nothing changes.

    Examples
    --------
    >>> with replaced_file(Path("results.txt")) as new:
    ...     _ = new.write_text("done")
    >>> Path("results.txt").read_text()
    'done'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _reserved(path) as end:
        new = _beside(path, f"new{end}")
        new.unlink(missing_ok=True)  # of a killed process; or a link that leads elsewhere
        try:
            yield new
            put_in_place(new, path)
        except OSError as error:
            if error.filename in (None, str(new)):  # what the user asked for
                error.filename = str(path)
            raise
        finally:
            with contextlib.suppress(OSError):  # Windows, of a file that is still open
                new.unlink(missing_ok=True)


def save_array(path: Path, array: "np.ndarray") -> None:
    """Write an array as .npy by :func:`replaced_file`.

    numpy itself writes to a file by C, whose error on a full disk has no number and no reason.

    Examples
    --------
    >>> import numpy as np
    >>> save_array(Path("numbers.npy"), np.arange(3))
    >>> np.load("numbers.npy").tolist()
    [0, 1, 2]
    """
    import numpy as np

    held = BytesIO()
    np.save(held, array, allow_pickle=False)
    with replaced_file(path) as new:
        new.write_bytes(held.getbuffer())


def leftover(path: Path) -> Path | None:
    """New file that a killed :func:`replaced_file` left beside `path`; its lock is removed.

    It is an OSError if another process is writing the new file.

    Examples
    --------
    >>> leftover(Path("results.txt")) is None
    True
    """
    new, lock = _beside(path, "new"), _lock_of(path)
    if os.path.lexists(new) or os.path.lexists(lock):
        with locked(lock):
            return new if os.path.lexists(new) else None
    return None


def has_others(folder: Path, *names: str, lock: str = "") -> bool:
    """Whether a folder has files of others, beside what a kill leaves and a lock file.

    The folder lacks the files `names`, which :func:`replaced_file` writes first.

    Examples
    --------
    >>> _ = Path("begun").mkdir(), Path("begun", ".cache.json.new").touch()
    >>> has_others(Path("begun"), "cache.json")
    False
    """
    left = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.new(-\d+)?(\.lock)?")
    return folder.exists() and any(
        each.name != lock and not (left.fullmatch(each.name) and each.is_file())
        for each in folder.iterdir()
    )


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill, then put it in place of `folder`; on an error nothing changes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _reserved(folder) as end:
        new, old = _beside(folder, f"new{end}"), _beside(folder, f"old{end}")
        _put_back(old, folder)
        _remove(new, old)  # of a killed process
        new.mkdir()
        try:
            yield new
            for file in new.rglob("*"):
                if file.is_file():
                    sync(file)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                _put_back(old, folder)
                raise
        finally:
            _remove(new, old)


def restore_folder(folder: Path) -> None:
    """Put back a folder that a killed :func:`replaced_folder` moved aside and did not replace."""
    old = _beside(folder, "old")
    if not os.path.exists(folder) and os.path.isdir(old):  # also of a name that is too long
        with contextlib.suppress(OSError), locked(_lock_of(folder), timeout_s=RESTORE_S):
            _put_back(old, folder)


def _put_back(old: Path, folder: Path) -> None:
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def _remove(*paths: Path) -> None:
    """Remove folders; of a link, the link."""
    for path in paths:
        if path.is_symlink():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    named = path if path.name and path.name != ".." else Path(os.path.abspath(path))
    return named.parent / f".{named.name}.{what}"


def _lock_of(path: Path) -> Path:
    return _beside(path, "new.lock")


@contextlib.contextmanager
def _reserved(path: Path) -> Iterator[str]:
    """Give the end of the name to write to beside `path`.

    The same in every process, so that the next one replaces what a killed one left.

    A lock is held on it. While another process holds that, or where there are no locks, the end is
    this process's own.
    """
    with contextlib.ExitStack() as held:
        end = ""
        try:
            held.enter_context(locked(_lock_of(path)))
        except OSError:
            end = f"-{os.getpid()}"
        yield end


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float = 0) -> Iterator[None]:
    """Hold a lock file, which the system releases even after a kill.

    Raises
    ------
    filelock.Timeout
        If another process holds it for longer than `timeout_s`.
    OSError
        If it cannot be written, or the file system has no locks.
    """
    import filelock

    lock = filelock.FileLock(path, timeout=timeout_s, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # a file system without locks may leave it
        raise
    own = path.stat()
    try:
        yield
    finally:
        _remove_own(path, own)
        lock.release()
        _remove_own(path, own)  # Windows removes no open file


def _remove_own(path: Path, own: os.stat_result) -> None:
    """Remove a file if it is still the same one."""
    with contextlib.suppress(OSError):  # it is gone, perhaps with its folder; or Windows
        if os.path.samestat(own, path.stat()):
            path.unlink()


def sync(path: Path) -> None:
    """Bring a file to the disk; Windows does so only through a handle that may write."""
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())


def put_in_place(new: Path, path: Path) -> None:
    """Bring a file to the disk and rename it to `path`, in place of what is there."""
    sync(new)
    for wait_s in RENAME_WAITS_S:
        with contextlib.suppress(PermissionError):
            new.replace(path)
            return
        time.sleep(wait_s)
    new.replace(path)


def expanded(path: str | Path) -> str | Path:
    """Replace "~" at the start of a path by the user's folder, unless there is such a file."""
    if not str(path).startswith("~") or os.path.lexists(path):
        return path
    return os.path.expanduser(path)


def require_file(path: Path) -> None:
    """Refuse what exists and is no file, with an OSError.

    The reader of a pipe waits for ever, and a device never ends.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_text(path: Path, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Read a text, as :meth:`pathlib.Path.read_text`, from a regular file alone."""
    require_file(path)
    return path.read_text(encoding=encoding, errors=errors)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; that which is nested too deep is a ValueError, too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def write_text(path: Path, text: str) -> Path:
    """Write a text beside and rename; return its path."""
    with replaced_file(path) as new:
        new.write_text(text, encoding="utf-8", newline="\n")
    return path


def write_json(path: Path, value: object) -> None:
    """Write JSON beside and rename."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def to_cell(value: Any) -> Any:
    """Return a value as a CSV cell that no spreadsheet takes for a formula.

    Text such as ``=1+1`` gets an apostrophe in front.

    Examples
    --------
    >>> to_cell("=1+1"), to_cell("-0.5"), from_cell("'=1+1")
    ("'=1+1", '-0.5', '=1+1')
    """
    if not isinstance(value, str) or not FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def plain_stem(name: str) -> str:
    """Name with letters and digits alone, for a file; others become "-"."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def from_cell(cell: str) -> str:
    """Return the text of a cell that :func:`to_cell` made."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV table, beside and renamed."""
    with (
        replaced_file(path) as new,
        new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        csv.writer(stream).writerows([to_cell(cell) for cell in row] for row in (columns, *rows))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, beside and renamed."""
    rows = list(rows)
    write_table(path, list(rows[0]), ([row[name] for name in rows[0]] for row in rows))


def listed(names: Sequence[str], most: int) -> str:
    """Join names by commas, but for those beyond so many, which are counted.

    Examples
    --------
    >>> listed(["one", "two", "three"], 2)
    'one, two and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def skipped_lines(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """Text about skipped files: one line for each, then each ``pip install`` that would help, once.

    What decoders printed is left out; the list of skipped files has it. Most reasons begin with the
    path.
    """
    lines, remedies = list[str](), dict[str, int]()
    for path, reason in skipped:
        text = " ".join(reason.split()).partition(SAYS)[0]
        if found := REMEDY.search(text):
            text = text[: found.start()] + (found[1] or "")
            remedies[found[2]] = remedies.get(found[2], 0) + 1
        lines.append(f"skipped {text if text.startswith(path) else f'{path}: {text}'}")
    return lines + [f"to read {count} of them: {remedy}" for remedy, count in remedies.items()]


def write_skipped(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write the list of skipped files as CSV.

    The last two columns are a path and the reason, which the path is taken out of.
    """
    write_table(
        path,
        columns,
        ((*others, named, why.removeprefix(f"{named}: ")) for *others, named, why in rows),
    )


def read_skipped(path: Path) -> tuple[tuple[str, str], ...]:
    """Paths and reasons of a list that :func:`write_skipped` wrote; none where there is no list.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is no such list.
    """
    if not path.exists():
        return ()
    require_file(path)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            next(rows)  # the names of the columns
            return tuple((from_cell(row[-2]), from_cell(row[-1])) for row in rows)
        except (csv.Error, IndexError, StopIteration) as error:
            raise ValueError(f"{path} is no list of skipped files") from error
