"""Conditions on the rows of a table of embeddings, results of a search, and digests of rows."""

import dataclasses
import hashlib
import math
import operator
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchifier.config import RequestError
from patchifier.library.stored import vectors_of
from patchifier.library.tags import FIRST_TAGS, TAGS

TEXTS = (*FIRST_TAGS, "albumartist")  # tags that a condition may compare
MOST_NAMED = 10  # files that a message lists
SILENCE_DB = -70.0  # a row is silent if no mel band is above it, in dB of the log-mel


@dataclass(frozen=True)
class Filter:
    """Which rows take part; every condition that is given must hold.

    Tags are compared without regard to case and to how Unicode composes letters; paths are
    compared as they are.

    Attributes
    ----------
    artist, title, album, genre : str or None
        The whole value of the tag.
    path : str or None
        The whole path.
    path_prefix : str or None
        How the path begins; end it with "/" to mean a folder.
    without_paths, without_artists : tuple of str
        Left out; a file without an artist is not left out by an artist.
    albumartist : str or None
        The whole value of the tag.
    year_from, year_to : int or None
        First and last year; a file without a year does not take part.
    above_db : float or None
        Silence is left out: rows whose loudest mel band is not above this level. A row of unknown
        level takes part.

    Raises
    ------
    RequestError
        For a value of another type, or years in the wrong order.

    Examples
    --------
    >>> Filter(artist="Bach", path_prefix="/music/").sql()
    "lower(artist) IN ('bach') AND starts_with(path, '/music/')"
    >>> Filter(year_from=1990, year_to=1999).sql()
    'year >= 1990 AND year <= 1999'
    """

    artist: str | None = None
    title: str | None = None
    album: str | None = None
    genre: str | None = None
    path: str | None = None
    path_prefix: str | None = None
    without_paths: tuple[str, ...] = ()
    without_artists: tuple[str, ...] = ()
    albumartist: str | None = None
    year_from: int | None = None
    year_to: int | None = None
    above_db: float | None = None

    def __post_init__(self) -> None:
        texts = [
            *(getattr(self, name) for name in (*TEXTS, "path", "path_prefix")),
            *self.without_paths,
            *self.without_artists,
        ]
        wrong = [value for value in texts if value is not None and not isinstance(value, str)]
        if wrong:
            raise RequestError(f"a condition compares with {wrong[0]!r}, expected a string.")
        level = 0.0 if self.above_db is None else self.above_db
        if isinstance(level, bool) or not (isinstance(level, int | float) and math.isfinite(level)):
            raise RequestError(f"above_db is {level!r}, expected a level in dB, such as -70.")
        for name in ("year_from", "year_to"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise RequestError(f"{name} is {value!r}, expected a year, such as 1990.")
        if (
            self.year_from is not None
            and self.year_to is not None
            and self.year_from > self.year_to
        ):
            raise RequestError(
                f"year_from is {self.year_from} and year_to {self.year_to}, expected the earlier "
                "year first."
            )

    def tags(self) -> dict[str, list[str]]:
        """Tags whose value is prescribed, and what their text in lower case may be."""
        return {
            name: folded([value]) for name in TEXTS if (value := getattr(self, name)) is not None
        }

    def columns(self) -> set[str]:
        """Columns that the conditions are about."""
        paths = {"path"} if self.path or self.path_prefix or self.without_paths else set()
        artist = {"artist"} if self.without_artists else set()
        year = {"year"} if self.year_from is not None or self.year_to is not None else set()
        level = set() if self.above_db is None else {"level_db"}
        return {*self.tags(), *paths, *artist, *year, *level}

    def sql(self) -> str:
        """As a condition of SQL; empty if everything takes part."""
        parts = [f"lower({name}) IN {quoted_list(texts)}" for name, texts in self.tags().items()]
        if self.path is not None:
            parts.append(f"path = {quoted(self.path)}")
        if self.path_prefix is not None:
            parts.append(f"starts_with(path, {quoted(self.path_prefix)})")
        if self.without_paths:
            parts.append(f"path NOT IN {quoted_list(self.without_paths)}")
        if self.without_artists:
            artists = quoted_list(folded(self.without_artists))
            parts.append(f"(artist IS NULL OR lower(artist) NOT IN {artists})")
        if self.year_from is not None:
            parts.append(f"year >= {self.year_from}")
        if self.year_to is not None:
            parts.append(f"year <= {self.year_to}")
        if self.above_db is not None:
            parts.append(f"(level_db IS NULL OR level_db > {self.above_db})")
        return " AND ".join(parts)

    def mask(self, table: pa.Table) -> np.ndarray:
        """Rows of `table` that match: (n,) bool."""
        parts = [
            pc.is_in(pc.utf8_lower(table[name]), pa.array(texts))
            for name, texts in self.tags().items()
        ]
        if self.path is not None:
            parts.append(pc.equal(table["path"], self.path))
        if self.path_prefix is not None:
            parts.append(pc.starts_with(table["path"], self.path_prefix))
        if self.without_paths:
            parts.append(pc.invert(pc.is_in(table["path"], pa.array(self.without_paths))))
        if self.without_artists:
            artists = pa.array(folded(self.without_artists))
            parts.append(pc.invert(pc.is_in(pc.utf8_lower(table["artist"]), artists)))
        if self.year_from is not None:
            parts.append(pc.greater_equal(table["year"], self.year_from))
        if self.year_to is not None:
            parts.append(pc.less_equal(table["year"], self.year_to))
        if self.above_db is not None:
            level = pc.fill_null(table["level_db"], np.inf)
            parts.append(pc.greater(level, self.above_db))
        arrays = [np.asarray(pc.fill_null(part, False)) for part in parts]
        return reduce(operator.and_, arrays, np.ones(len(table), bool))


def folded(values: Sequence[str]) -> list[str]:
    """What `values`, in any case and any composition of letters, may be in lower case.

    A column is compared in lower case, as Arrow and LanceDB make it. They differ from Python in a
    few letters, such as the Greek sigma at the end of a word, so each form is listed.

    Examples
    --------
    >>> folded(["Bach"])
    ['bach']
    >>> len(folded(["É"]))  # one letter, or an e and an accent
    2
    """
    forms = [
        unicodedata.normalize(form, cased)
        for value in values
        for form in ("NFC", "NFD")
        for cased in (value, value.upper())
    ]
    lower = [text for one in forms for text in (one.lower(), "".join(map(str.lower, one)))]
    return sorted(set(lower))


def named(paths: Iterable[str], name: str) -> str | None:
    """Find the file that a name means: a name of a file or a part of it, or the end of its path.

    The one path that ends with the name; else the one that has it without its suffix; else the one
    whose file name contains it; None if there is none, refused if several fit equally well. Case
    and the composition of letters do not matter.
    """
    wanted = _plain(name).removeprefix("./")
    plain = {path: _plain(path) for path in dict.fromkeys(paths)}
    if not wanted.strip("/"):
        return None
    for fits in (
        lambda path: f"/{path}".endswith(f"/{wanted}"),
        lambda path: f"/{os.path.splitext(path)[0]}".endswith(f"/{wanted}"),
        lambda path: wanted in path.rpartition("/")[2],
    ):
        found = [path for path, text in plain.items() if fits(text)]
        if len(found) == 1:
            return found[0]
        if found:
            raise _ambiguous(name, found, "files")
    return None


def folder_named(paths: Iterable[str], name: str) -> str | None:
    """Find the folder above some files that a name, or the end of a path, means.

    Its path has a slash at its end; None if there is none, refused if several fit. Case and the
    composition of letters do not matter.
    """
    wanted = _plain(name).removeprefix("./").strip("/")
    direct = {path[: max(path.rfind("/"), path.rfind("\\")) + 1] for path in paths}
    folders = {
        folder[: slash.end()] for folder in direct for slash in re.finditer(r"[/\\]", folder)
    }
    found = sorted(one for one in folders if f"/{_plain(one)}".endswith(f"/{wanted}/"))
    if not wanted or not found:
        return None
    if len(found) == 1:
        return found[0]
    raise _ambiguous(name, found, "folders")


def _ambiguous(name: str, found: Sequence[str], what: str) -> RequestError:
    """Make the error about a name that fits several files or folders."""
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return RequestError(
        f"{name} may mean {len(found)} {what}: {', '.join(found[:MOST_NAMED])}{more}. Name one of "
        "them by more of its path."
    )


def _plain(text: str) -> str:
    """Text by which names are compared: composed, in lower case, with slashes."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).replace(
        "\\", "/"
    )


def without(where: Filter, paths: Iterable[str]) -> Filter:
    """The same conditions, some files left out."""
    return dataclasses.replace(where, without_paths=(*where.without_paths, *paths))


def quoted(value: str) -> str:
    """`value` as a string of SQL."""
    return "'" + value.replace("'", "''") + "'"


def quoted_list(values: Sequence[str]) -> str:
    """`values` as a list of SQL."""
    return "(" + ", ".join(quoted(value) for value in values) + ")"


@dataclass(frozen=True)
class SearchResult:
    """A section of a file that a search returns.

    Attributes
    ----------
    path : str
        The file.
    start_s, end_s : float
        The section, in seconds.
    score : float or None
        Cosine with the query, from -1 to 1; None where nothing was compared.
    tags : mapping
        Those of :data:`patchifier.library.tags.TAGS` that the file has.
    track_id : str or None
        Of the file, as :func:`patchifier.library.stored.track_ids` in a table in memory. An index
        has the digest of the audio, which copies share; None if it was made from an older table.

    Examples
    --------
    >>> from patchifier.library import search
    >>> store = search.load("music.parquet")
    >>> first, second = store.similar(patchifier.load().embed("music/one.ogg"), 2)
    >>> first.path.endswith("one.ogg"), round(first.score, 3), second.score < 1
    (True, 1.0, True)
    """

    path: str
    start_s: float
    end_s: float
    score: float | None
    tags: Mapping[str, str | int]
    track_id: str | None = None


@dataclass(frozen=True)
class Changes:
    """Numbers of files that were added, replaced, removed and not changed in an index.

    Examples
    --------
    >>> from patchifier.library import search
    >>> index = search.Index.build("music.parquet", "changes.lance")
    >>> index.update("music.parquet")
    Changes(added=0, replaced=0, removed=0, kept=3)
    """

    added: int = 0
    replaced: int = 0
    removed: int = 0
    kept: int = 0


def found(table: pa.Table, scores: Sequence[float | None]) -> list[SearchResult]:
    """Rows with their scores, as results."""
    rows = table.select(["path", "start_s", "end_s", *TAGS, "track_id"]).to_pylist()
    return [
        SearchResult(
            row["path"],
            row["start_s"],
            row["end_s"],
            score,
            {tag: row[tag] for tag in TAGS if row[tag] is not None},
            row["track_id"],
        )
        for row, score in zip(rows, scores)
    ]


def digests(table: pa.Table) -> list[str]:
    """Hash of each row of a table of embeddings: its vector and all other columns."""
    rest = table.drop_columns(["embedding"]).to_pylist()
    vectors = vectors_of(table, table.schema.field("embedding").type.list_size)
    return [
        hashlib.blake2b(
            repr(list(row.values())).encode() + vector.tobytes(), digest_size=16
        ).hexdigest()
        for row, vector in zip(rest, vectors)
    ]
