"""Labels of files in a CSV, and which file of a table each row means."""

import csv
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from patchifier.config import RequestError
from patchifier.io import from_cell, require_file

PATHS, LABELS = ("path", "audio_path", "file"), ("label", "target")
PREDICTED, OWN = "probability", "given"  # columns of a file of predictions


@dataclass(frozen=True)
class Row:
    """A row of a CSV of labels; `label` and `group` are empty where none is given."""

    path: str
    label: str
    group: str = ""


def read(path: str | Path, *, own: bool = False) -> list[Row]:
    r"""Read a CSV with the columns path and label.

    The columns may be separated by commas, semicolons or tabs. The column of the label may be
    called "target", and "group" is a column that may be missing. Their names may have any case.

    Parameters
    ----------
    path : str or Path
        The CSV.
    own : bool
        Whether the labels have to be a person's. Of a file with the columns probability and given,
        such as the page saves, the labels are then those of the column given.

    Raises
    ------
    RequestError
        If it cannot be read, a column is missing or there twice, a row has more fields than the
        header, or a field has a line break (but a path of predictions may have one); with `own`
        also if its labels are predictions.

    Examples
    --------
    >>> _ = Path("moods.csv").write_text("path,target\none.ogg,calm\n")
    >>> read("moods.csv")
    [Row(path='one.ogg', label='calm', group='')]
    """
    path = Path(path)
    try:
        require_file(path)
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return _rows(path, stream, own)
    except (OSError, UnicodeError, csv.Error) as error:
        reason: object = error
        if isinstance(error, UnicodeError):
            reason = "it is not UTF-8: save it as UTF-8, in Excel as CSV UTF-8"
        raise _unreadable(path, reason, own) from error


def _rows(path: Path, stream: TextIO, own: bool) -> list[Row]:
    """Rows of an open CSV; what does not fit its header is a csv.Error with its line."""
    head = stream.readline()
    stream.seek(0)
    delimiter = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
    lines = _lines(stream, delimiter)
    _, found = next(lines, (1, []))
    columns = _columns(path, [name for name in found if name], own)
    # a file of predictions has paths as the disk has them
    free = columns[0] if PREDICTED in {name.strip().lower() for name in found} else None
    rows = []
    for line, cells in lines:
        row = _fields(line, cells, found, free)
        if not row.keys() >= set(columns[:2]):
            raise csv.Error(f"line {line}: a row has fewer fields than the header")
        rows.append(Row(*_cells(row, columns)))
    return rows


def _fields(line: int, cells: list[str], header: list[str], free: str | None) -> dict[str, str]:
    """Fields of a row by their column; only the column `free` may have line breaks."""
    if len(cells) > len(header):
        raise csv.Error(
            f"line {line} has {len(cells)} fields, the header has {len(header)}: put a text with a "
            "comma into quotation marks"
        )
    row = dict(zip(header, cells))
    for name, cell in row.items():
        if name != free and ("\n" in cell or "\r" in cell):
            raise csv.Error(
                f"line {line}: the field {name.strip()} has a line break: close the quotation "
                "mark, or take the break out"
            )
    return row


def _lines(stream: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with the number of the line at which each begins."""
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"line {line}: {error}; does a quotation mark stay open?") from error


def _unreadable(path: Path, reason: object, own: bool) -> RequestError:
    other = "" if own else ", such as 'patchifier predict' writes for a model of labels"
    return RequestError(
        f"{path} cannot be read as labels ({reason}): give a CSV with the columns path and "
        f"label{other}."
    )


def _columns(path: Path, found: Sequence[str], own: bool) -> tuple[str, str, str]:
    """Names in the file of the columns of path, label and group; the last may be empty."""
    for name, count in Counter(name.strip() for name in found).items():
        if name and count > 1:
            raise _unreadable(path, f"{count} columns are called {name}: rename all but one", own)
    names = {name.strip().lower(): name for name in reversed(found)}
    names |= {name.strip(): name for name in reversed(found)}  # "label" goes before "Label"
    label: tuple[str, ...] = LABELS
    if own and PREDICTED in names:
        if OWN not in names:
            raise RequestError(
                f"{path} has a column {PREDICTED}: these are predictions of a classifier, whose "
                "accuracy would only say how well it repeats itself: put your own labels into a "
                "file of their own."
            )
        label = (OWN,)
    wanted = {
        kind: next((names[name] for name in kind if name in names), "") for kind in (PATHS, label)
    }
    if missing := [" or ".join(kind) for kind, name in wanted.items() if not name]:
        there = ", ".join(name.strip() for name in found) or "none"
        reason = f"there is no column {', and none '.join(missing)}; its columns: {there}"
        raise _unreadable(path, reason, own)
    return wanted[PATHS], wanted[label], names.get("group", "")


def _cells(row: Mapping[str, str], columns: tuple[str, str, str]) -> tuple[str, str, str]:
    """Path, label and group of a row."""
    path, label, group = columns
    return (
        from_cell(row[path]),
        from_cell(row[label]).strip(),
        from_cell(row.get(group) or "").strip(),
    )


class Finder:
    """Finds files of a table by paths as people write them.

    A path may be as in the table, whole, relative to the working folder, or relative to the folder
    of the CSV, in this order. Else it may be relative to the folder that all files of the table
    share, or to one above it, if that means one file alone. A name without a folder is enough where
    all files of the table have different names.

    Parameters
    ----------
    paths : collection of str
        Of the table.
    source : str or Path
        The CSV.

    Examples
    --------
    >>> finder = Finder([os.path.abspath("music/one.ogg")], "music/moods.csv")
    >>> finder.find("music/one.ogg") == finder.find("one.ogg") == os.path.abspath("music/one.ogg")
    True
    >>> finder.find("two.ogg") is None
    True
    """

    def __init__(self, paths: Collection[str], source: str | Path) -> None:
        self.folder = os.path.dirname(os.path.abspath(source))
        self.paths = {path: path for path in paths}
        self.real = {os.path.abspath(path): path for path in paths}
        self.names: dict[str, list[str]] = {}
        for path in self.real:
            self.names.setdefault(os.path.basename(path), []).append(path)
        self.shared = _shared(self.real)

    def find(self, path: str) -> str | None:
        """Path in the table; None if it has no such file, or several may be meant."""
        if path in self.paths:
            return path
        for place in (os.path.abspath(path), os.path.join(self.folder, path)):
            for name in (os.path.normpath(place), _real(place)):
                if name in self.real:
                    return self.real[name]
        if path != path.strip():
            return self.find(path.strip())
        meant = self._meant(path)
        return self.real[meant[0]] if len(meant) == 1 else None

    def why(self, path: str) -> str:
        """Reason for which a path was not found."""
        path = path.strip()
        if not os.path.dirname(path) and path in self.names:
            return (
                "it has no folder, and some files of the table have the same name: write the "
                "folder too."
            )
        if len(self._meant(path)) > 1:
            return "several files of the table may be meant: write the whole path."
        return "it is not in the table."

    def _meant(self, path: str) -> list[str]:
        """Files that a path may mean that starts at a folder which all files share."""
        if not os.path.dirname(path):
            alone = len(self.names) == len(self.real)
            return self.names.get(path, []) if alone else []
        places = (os.path.normpath(os.path.join(folder, path)) for folder in self.shared)
        return [place for place in dict.fromkeys(places) if place in self.real]


def _shared(paths: Collection[str]) -> list[str]:
    """Folders that hold all files, the deepest first."""
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # there are none, or they lie on several drives
        return []
    return [folder, *map(str, Path(folder).parents)]


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # no name of a file
        return path
