"""Atomic writes, JSON and CSV, lists of skipped files, and progress."""

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, note: str) -> None:
    """Show no progress."""


class Steps:
    """Progress of a job of several steps, each counted in hundredths.

    Parameters
    ----------
    shown : callable
        Shows the progress of the whole job.
    count : int
        Number of steps.
    """

    def __init__(self, shown: Progress, count: int) -> None:
        self.shown, self.count, self.number = shown, count, -1

    def next(self, what: str) -> Progress:
        """Begin the next step; return a function that shows its progress."""
        self.number += 1
        before = 100 * self.number

        def show(done: int, total: int, note: str) -> None:
            counted = f"{done} of {total}" if total > 1 else ""
            words = ", ".join(word for word in (what, counted, note) if word)
            self.shown(before + 100 * done // max(1, total), 100 * self.count, words)

        show(0, 1, "")
        return show

    def finish(self) -> None:
        """Show that the job is done."""
        self.shown(100 * self.count, 100 * self.count, "")


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
    new = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        yield new
        with new.open("rb") as stream:
            os.fsync(stream.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill, then put it in place of `folder`; on an error nothing changes."""
    new = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    for left in (new, old):  # of a process with the same number that was killed
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> Path:
    """Write a text beside and rename; return its path."""
    with replaced_file(path) as new:
        new.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: object) -> None:
    """Write JSON beside and rename."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, beside and renamed."""
    rows = list(rows)
    with replaced_file(path) as new, new.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def skipped_line(path: str, reason: str) -> str:
    """Text about a skipped file; most reasons begin with its path."""
    return f"skipped {reason if reason.startswith(path) else f'{path}: {reason}'}"


def write_skipped(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write the list of skipped files as CSV; the last column is the reason."""
    with (
        replaced_file(path) as new,
        new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(columns)
        table.writerows(rows)
