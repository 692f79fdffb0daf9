"""Data sheets of published data sets.

Addresses of their files, files known to be broken, number of clips in each split.

Functions that every sheet needs to read tables and folders are here too.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from patchifier.config import RequestError
from patchifier.io import require_file

if TYPE_CHECKING:
    from patchifier.datasets import Dataset


@dataclass(frozen=True)
class Remote:
    """One published file.

    Parameters
    ----------
    name : str
        Path below the root.
    urls : tuple of str
        Addresses, the best first; none if the file can only be obtained by hand.
    sha256 : str
        Checksum in hexadecimal; empty if none is known.
    size_b : int or None
        Size in bytes, if known.
    dead : str
        Why the addresses no longer answer; empty if they do.
    """

    name: str
    urls: tuple[str, ...] = ()
    sha256: str = ""
    size_b: int | None = None
    dead: str = ""


@dataclass(frozen=True)
class Archive:
    """An archive to unpack `into` a folder below the root.

    Its parts, if any, are byte ranges to join in order.
    """

    name: str
    parts: tuple[str, ...] = ()
    into: str = "."
    unpacked_b: int = 8 * 2**30  # an archive that unpacks to more is refused


@dataclass(frozen=True)
class Variant:
    """One way to read a data set: a split, a target.

    Parameters
    ----------
    what : str
        Description, for messages and ``--help``.
    counts : dict of str
        Published number of clips of each split ("train", "valid", "test"; "" where there is none),
        as far as known.
    """

    what: str
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheet:
    """A published data set as a row of data.

    Parameters
    ----------
    name : str
        Name on the command line.
    title, home, licence, citation : str
        Descriptions.
    read : callable
        Takes the root and the name of a variant; returns every clip of the tables, whether its file
        exists or not, except clips that are unusable in every copy.
    variants : dict
        The first is the default.
    remotes, archives : tuple
        Files for ``patchifier fetch``.
    known_bad : dict of str
        Relative path -> reason: files that are broken in every copy, or in some; they do not count
        as errors.
    steps : str
        Instructions for the user if no address answers.
    """

    name: str
    title: str
    home: str
    licence: str
    citation: str
    read: "Callable[[Path, str], Dataset]"
    variants: Mapping[str, Variant]
    remotes: tuple[Remote, ...] = ()
    archives: tuple[Archive, ...] = ()
    known_bad: Mapping[str, str] = field(default_factory=dict)
    steps: str = ""

    @property
    def default(self) -> str:
        """Name of the default variant."""
        return next(iter(self.variants))

    def how_to_get(self, root: str | Path) -> str:
        """Say how a person gets the files into a folder."""
        fetch = (
            f"'patchifier fetch {self.name} --root {root}' makes the folder, downloads what its "
            "addresses still give, and names the rest."
        )
        parts = (fetch if self.remotes or self.archives else "", self.steps)
        return " ".join(part for part in parts if part) or f"See {self.home}."

    def excuse(self, path: str) -> str:
        """Return why this file is known to be broken, empty if it is not.

        Another suffix (.au for .wav) is the same file.
        """
        stem = "/" + Path(path).with_suffix("").as_posix()
        for known, reason in self.known_bad.items():
            if stem.endswith("/" + Path(known).with_suffix("").as_posix()):
                return reason
        return ""


def packaged(name: str) -> list[dict[str, str]]:
    """Read the rows of a split or tag list in the package."""
    return list(read_table(Path(__file__).parent / "published" / name, ()))


def read_table(
    path: Path, columns: Sequence[str], *, delimiter: str = ","
) -> Iterator[dict[str, str]]:
    """Read the rows of a published table, quoted or not, by the names in its header.

    White space around values is removed. Refused: a file that is missing, not UTF-8 or empty, lacks
    one of these columns, or has a row of another length.
    """
    rows = read_rows(path, delimiter=delimiter)
    header = next(rows, [])
    absent = [name for name in columns if name not in header]
    if absent:
        raise RequestError(
            f"{path} has no column {absent[0]!r} (found: {', '.join(header)[:100]!r}), expected "
            "the table as published."
        )
    number = 1
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise RequestError(
                f"{path}, row {number}: has {len(row)} fields, expected {len(header)} as in the "
                "header."
            )
        yield dict(zip(header, row, strict=True))
    if number == 1:
        raise RequestError(f"{path} has no rows, expected the table as published.")


def read_rows(path: Path, *, delimiter: str) -> Iterator[list[str]]:
    """Read the rows of a published table, of any length, the header first.

    Empty lines are skipped.
    """
    if not path.is_file():
        raise RequestError(f"{path} is not there, expected the table as published.")
    try:
        require_file(path)
        with path.open(newline="", encoding="utf-8-sig") as stream:
            for row in csv.reader(stream, delimiter=delimiter):
                if row:
                    yield [value.strip() for value in row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            f"{path} cannot be read as a UTF-8 table ({error}), expected the table as published."
        ) from error


def fullest(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """Return the folder with most of these names; the first if none has any."""
    return max(folders, key=lambda folder: sum((folder / name).exists() for name in names))


def first_file(candidates: Sequence[Path]) -> str:
    """Return the first of these files that exists; the first of all if none does."""
    return str(next((path for path in candidates if path.is_file()), candidates[0]))
