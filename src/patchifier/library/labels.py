"""Labels of files in a CSV, and which file of a table each row means."""

import csv
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from patchifier.config import RequestError
from patchifier.io import from_cell, require_file

PATHS, LABELS = ("path", "audio_path", "file"), ("label", "target")


@dataclass(frozen=True)
class Row:
    """A row of a CSV of labels; `label` and `group` are empty where none is given."""

    path: str
    label: str
    group: str = ""


def read(path: str | Path) -> list[Row]:
    r"""Read a CSV with the columns path and label.

    The columns may be separated by commas, semicolons or tabs. The column of the label may be
    called "target", and "group" is a column that may be missing.

    Raises
    ------
    RequestError
        If it cannot be read, or a column is missing.

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
            head = stream.readline()
            stream.seek(0)
            delimiter = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
            table = csv.DictReader(stream, delimiter=delimiter)
            names = {name.strip(): name for name in table.fieldnames or () if name}
            file, label = _column(names, PATHS), _column(names, LABELS)
            group = names.get("group", "")
            return [
                Row(
                    from_cell(row[file]),
                    from_cell(row[label]).strip(),
                    from_cell(row.get(group) or "").strip(),
                )
                for row in table
            ]
    except (OSError, UnicodeError, csv.Error, KeyError, TypeError, AttributeError) as error:
        reason = f"there is no column {error}" if isinstance(error, KeyError) else error
        if isinstance(error, TypeError | AttributeError):
            reason = "a row has fewer fields than the header"
        raise RequestError(
            f"{path} cannot be read as labels ({reason}): give a CSV with the columns path and "
            "label, such as 'patchifier predict' writes for a model of labels."
        ) from error


def _column(names: Mapping[str, str], wanted: Collection[str]) -> str:
    """Name in the file of the first of the wanted columns."""
    for name in wanted:
        if name in names:
            return names[name]
    raise KeyError(" or ".join(wanted))


class Finder:
    """Finds files of a table by paths as people write them.

    A path may be as in the table, whole, relative to the working folder, or relative to the folder
    of the CSV, in this order.

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

    def find(self, path: str) -> str | None:
        """Path in the table; None if it has no such file."""
        if path in self.paths:
            return path
        for place in (os.path.abspath(path), os.path.join(self.folder, path)):
            for name in (os.path.normpath(place), _real(place)):
                if name in self.real:
                    return self.real[name]
        return self.find(path.strip()) if path != path.strip() else None


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # no name of a file
        return path
