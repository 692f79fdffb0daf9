"""What every part that writes files shares: atomic writes, JSON and CSV, lists of skipped files, progress."""

import contextlib
import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FORMULA = re.compile(
    r"'*[=+\-@\t\r]"
)  # how text begins that a spreadsheet may compute, or that is guarded
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
    """Give a path to write to, then put that file in place of `path`; on an error nothing changes."""
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


def write_json(path: Path, value: Any) -> None:
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


def from_cell(cell: str) -> str:
    """Return the text of a cell that :func:`to_cell` made."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, beside and renamed."""
    rows = list(rows)
    names = list(rows[0])
    with replaced_file(path) as new, new.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(map(to_cell, names))
        table.writerows([to_cell(row[name]) for name in names] for row in rows)


def skipped_lines(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """Text about skipped files: one line for each, then each ``pip install`` that would help, once.

    Parameters
    ----------
    skipped : iterable of (path, reason)
        Most reasons begin with the path.
    """
    lines, remedies = list[str](), dict[str, int]()
    for path, reason in skipped:
        text, remedy = " ".join(reason.split()), ""
        if ": pip install " in text:
            text, _, remedy = text.rpartition(": ")
            remedies[remedy] = remedies.get(remedy, 0) + 1
        lines.append(f"skipped {text if text.startswith(path) else f'{path}: {text}'}")
    return lines + [f"to read {count} of them: {remedy}" for remedy, count in remedies.items()]


def write_skipped(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write the list of skipped files as CSV; without rows, the header alone.

    Parameters
    ----------
    path : Path
        The CSV file.
    columns : sequence of str
        Names of the columns; the last one is the reason.
    rows : sequence of sequence of str
        One row for each skipped file.
    """
    with (
        replaced_file(path) as new,
        new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(columns)
        table.writerows(map(to_cell, row) for row in rows)
