"""What a data sheet says about a published data set: where its files are, what is known to be broken, how many clips each split has.

The reading of tables and folders that every sheet needs is here too.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from patchifier.config import RequestError

if TYPE_CHECKING:
    from patchifier.datasets import Dataset


@dataclass(frozen=True)
class Remote:
    """One file that is published.

    Parameters
    ----------
    name : str
        Of the file below the root.
    urls : tuple of str
        Where it is, the best place first; none if it can only be had by hand.
    sha256 : str
        In hexadecimal; empty if the publisher states none and nobody has reported one.
    size_b : int or None
        In bytes, where known.
    dead : str
        Why the address no longer answers, in words; empty if it does.
    """

    name: str
    urls: tuple[str, ...] = ()
    sha256: str = ""
    size_b: int | None = None
    dead: str = ""


@dataclass(frozen=True)
class Archive:
    """An archive to unpack: the parts, byte slices, are joined in order; its content goes `into` a folder below the root."""

    name: str
    parts: tuple[str, ...] = ()
    into: str = "."
    unpacked_b: int = (
        8 * 2**30
    )  # more than this is not unpacked: an archive that grows beyond is not what it says


@dataclass(frozen=True)
class Variant:
    """One way to read a data set: a split, a target.

    Parameters
    ----------
    what : str
        In words, for messages and ``--help``.
    counts : dict of str
        Published clips of each split ("train", "valid", "test"; "" where there is none), as far as known.
    """

    what: str
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheet:
    """A published data set as a row of data.

    Parameters
    ----------
    name : str
        As given on the command line.
    title, home, licence, citation : str
        For people.
    read : callable
        Takes the root and the name of a variant, gives every clip that should be there, whether its file is or not.
        Clips known to be unusable in every copy are left out.
    variants : dict
        The first is the default.
    remotes, archives : tuple
        For ``patchifier fetch``.
    known_bad : dict of str
        Relative path -> why: files that are broken in every copy, or in some; nobody is blamed for these.
    steps : str
        What a person has to do where no address answers.
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
        """Name of the variant that is meant when none is given."""
        return next(iter(self.variants))

    def excuse(self, path: str) -> str:
        """Why this file is known to be broken; empty if it is not. Another suffix (.au for .wav) is the same file."""
        stem = str(Path(path).with_suffix("").as_posix())
        return next(
            (
                why
                for known, why in self.known_bad.items()
                if f"/{stem}".endswith("/" + str(Path(known).with_suffix("").as_posix()))
            ),
            "",
        )


def packaged(name: str) -> list[dict[str, str]]:
    """Rows of a split or tag list that comes with the package."""
    return list(read_table(Path(__file__).parent / "published" / name, ()))


def read_table(
    path: Path, columns: Sequence[str], *, delimiter: str = ","
) -> Iterator[dict[str, str]]:
    """Rows of a published table, quoted or not, by the names in its header, without white space around anything.

    Raises
    ------
    RequestError
        If the file is not there, not UTF-8, empty, lacks one of these columns, or has a row of another length.
    """
    rows = read_rows(path, delimiter=delimiter)
    header = next(rows, [])
    absent = [name for name in columns if name not in header]
    if absent:
        raise RequestError(
            f"{path} has no column {absent[0]!r} (found: {', '.join(header)[:100]!r}), expected the table as published."
        )
    number = 1
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise RequestError(
                f"{path}, row {number}: has {len(row)} fields, expected {len(header)} as in the header."
            )
        yield dict(zip(header, row, strict=True))
    if number == 1:
        raise RequestError(f"{path} has no rows, expected the table as published.")


def read_rows(path: Path, *, delimiter: str) -> Iterator[list[str]]:
    """Rows of a published table, of any length, the header first; empty lines are passed over."""
    if not path.is_file():
        raise RequestError(
            f"{path} is not there, expected the table as published: 'patchifier check' says what is missing."
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            for row in csv.reader(stream, delimiter=delimiter):
                if row:
                    yield [value.strip() for value in row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            f"{path} cannot be read as a UTF-8 table ({error}), expected the table as published."
        ) from error


def fullest(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """The folder that holds most of these names; the first if none does."""
    return max(folders, key=lambda folder: sum((folder / name).exists() for name in names))


def first_file(candidates: Sequence[Path]) -> str:
    """The first of these files that is there; the first of all if none is."""
    return str(next((path for path in candidates if path.is_file()), candidates[0]))
