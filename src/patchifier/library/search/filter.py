"""Conditions on the rows of a table of embeddings: as a mask of a table in memory, and as SQL."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchifier.config import RequestError
from patchifier.library.tags import TAGS


@dataclass(frozen=True)
class Filter:
    """Which rows take part; every condition that is given must hold. Strings are compared as they are, case included.

    Attributes
    ----------
    artist, title, album, genre, path : str or None
        The whole value.
    path_prefix : str or None
        How the path begins; end it with "/" to mean a folder.
    without_paths, without_artists : tuple of str
        Left out; a file without an artist is not left out by an artist.
    """

    artist: str | None = None
    title: str | None = None
    album: str | None = None
    genre: str | None = None
    path: str | None = None
    path_prefix: str | None = None
    without_paths: tuple[str, ...] = ()
    without_artists: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = [
            *(getattr(self, name) for name in (*TAGS, "path", "path_prefix")),
            *self.without_paths,
            *self.without_artists,
        ]
        wrong = [value for value in values if value is not None and not isinstance(value, str)]
        if wrong:
            raise RequestError(f"a condition compares with {wrong[0]!r}, expected a string.")

    def equal(self) -> dict[str, str]:
        """Columns whose value is prescribed."""
        return {
            name: value for name in (*TAGS, "path") if (value := getattr(self, name)) is not None
        }

    def sql(self) -> str:
        """As a condition of SQL; empty if everything takes part."""
        parts = [f"{name} = {quoted(value)}" for name, value in self.equal().items()]
        parts += (
            [f"starts_with(path, {quoted(self.path_prefix)})"]
            if self.path_prefix is not None
            else []
        )
        parts += [f"path NOT IN {quoted_list(self.without_paths)}"] if self.without_paths else []
        parts += (
            [f"(artist IS NULL OR artist NOT IN {quoted_list(self.without_artists)})"]
            if self.without_artists
            else []
        )
        return " AND ".join(parts)

    def mask(self, table: pa.Table) -> np.ndarray:
        """Rows of `table` that match: (n,) bool."""
        parts = [pc.equal(table[name], value) for name, value in self.equal().items()]
        parts += (
            [pc.starts_with(table["path"], self.path_prefix)]
            if self.path_prefix is not None
            else []
        )
        parts += (
            [pc.invert(pc.is_in(table["path"], pa.array(self.without_paths)))]
            if self.without_paths
            else []
        )
        parts += (
            [pc.invert(pc.is_in(table["artist"], pa.array(self.without_artists)))]
            if self.without_artists
            else []
        )
        arrays = [np.asarray(pc.fill_null(part, False)) for part in parts]
        return reduce(operator.and_, arrays, np.ones(len(table), bool))


def quoted(value: str) -> str:
    """`value` as a string of SQL."""
    return "'" + value.replace("'", "''") + "'"


def quoted_list(values: Sequence[str]) -> str:
    """`values` as a list of SQL."""
    return "(" + ", ".join(quoted(value) for value in values) + ")"
