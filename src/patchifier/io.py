"""What every part that writes files shares: atomic writes, JSON and CSV, lists of skipped files, progress."""

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


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside and rename."""
    with replaced_file(path) as new:
        new.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, beside and renamed."""
    rows = list(rows)
    with replaced_file(path) as new, new.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)


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
        table.writerows(rows)
