"""Queries by similarity, for any store that gives its rows nearest to a vector."""

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from patchifier.config import RequestError
from patchifier.library.search.pairs import SLACK, nearest_of, pairs_above
from patchifier.library.search.rows import Filter, SearchResult, found, unit
from patchifier.library.stored import require_same_model, vectors_of

EVERYTHING = Filter()


@dataclass(frozen=True)
class Pair:
    """Two files that sound nearly the same: their two nearest sections and the cosine of these."""

    first: SearchResult
    second: SearchResult
    score: float


class VectorStore(abc.ABC):
    """A store of vectors that can be searched: a table in memory or an index.

    Attributes
    ----------
    name : str
        Its place, for messages.
    identity : str
        Of the model and the settings that made the vectors.
    size : int
        Length E of a vector.
    """

    name: str
    identity: str
    size: int

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abc.abstractmethod
    def _select(self, where: Filter, *, vectors: bool = True) -> pa.Table:
        """All rows where the conditions hold; without the vectors if `vectors` is false."""

    @abc.abstractmethod
    def _nearest(self, vector: np.ndarray, limit: int, *, where: Filter, exact: bool) -> pa.Table:
        """Up to `limit` rows nearest to a unit vector (E,), in any order.

        Fewer only if there are no more.
        """

    def filter(self, where: Filter) -> tuple[SearchResult, ...]:
        """Rows where the conditions hold, by path and time; their score is None."""
        table = self._select(where, vectors=False).sort_by(
            [("path", "ascending"), ("start_s", "ascending")]
        )
        return tuple(found(table, [None] * len(table)))

    def similar(
        self,
        query: str | Path | np.ndarray,
        k: int = 10,
        *,
        where: Filter = EVERYTHING,
        exact: bool = False,
        identity: str | None = None,
    ) -> tuple[SearchResult, ...]:
        """Files that sound like a query.

        Parameters
        ----------
        query : str, Path or ndarray (E,)
            The path of a file in here (never among its own results), or a vector: of a file
            outside, made by the same model. A file of several rows is looked for by the mean of
            their directions.
        k : int
            How many, at least 1. If fewer files take part, all of them are given.
        where : Filter
            Which rows take part.
        exact : bool
            Compare with every row, also where an approximate index exists.
        identity : str
            Of the model that made the vector, to be sure that it is the same.

        Returns
        -------
        tuple of SearchResult
            By score, the highest first; of each file its nearest section.

        Raises
        ------
        RequestError
            For a path that is not in here, or a vector of another size or model.

        Examples
        --------
        >>> from patchifier.library import search
        >>> store = search.load("music.parquet")
        >>> query = store.filter(search.Filter())[0].path
        >>> [row.path == query for row in store.similar(query, 2)]
        [False, False]
        """
        _require_count(k, "k")
        vector = self._query_vector(query, identity)
        if not isinstance(query, np.ndarray):
            where = dataclasses.replace(where, without_paths=(*where.without_paths, str(query)))
        return self._best_of_each_file(vector, k, where=where, exact=exact)

    def _best_of_each_file(
        self, vector: np.ndarray, k: int, *, where: Filter, exact: bool
    ) -> tuple[SearchResult, ...]:
        limit = 2 * k
        while True:
            table = self._nearest(vector, limit, where=where, exact=exact)
            scores = unit(vectors_of(table, self.size)) @ vector
            rows = sorted(found(table, scores.tolist()), key=_rank)
            # the last one written is the best
            files = list({row.path: row for row in reversed(rows)}.values())
            if len(files) >= k or len(table) < limit:
                return tuple(sorted(files, key=_rank)[:k])
            limit *= 4  # one file has so many near sections that other files are missing

    def _query_vector(self, query: str | Path | np.ndarray, identity: str | None) -> np.ndarray:
        """Unit vector (E,) of a query."""
        if isinstance(query, str | Path):
            return self._vector_of_file(str(query))
        if (
            not isinstance(query, np.ndarray)
            or query.ndim != 1
            or not np.issubdtype(query.dtype, np.floating)
        ):
            got = (
                f"shape {query.shape} of {query.dtype}"
                if isinstance(query, np.ndarray)
                else type(query).__name__
            )
            raise RequestError(
                f"the query is {got}, expected the path of a file in {self.name} or a vector "
                f"({self.size},) of floats."
            )
        identity = self.identity if identity is None else identity
        require_same_model(
            (self.identity, self.size), (identity, len(query)), names=(self.name, "the query")
        )
        if not np.isfinite(query).all() or not query.any():
            raise RequestError(
                "the query vector is all zeros or not finite: a cosine needs a direction. Embed "
                "the file again."
            )
        return unit(query)

    def _vector_of_file(self, path: str) -> np.ndarray:
        rows = self._select(Filter(path=path))
        if not len(rows):
            raise RequestError(
                f"{path} is not in {self.name}: write the path as it is stored, or embed the file "
                "and search with its vector."
            )
        mean = unit(vectors_of(rows, self.size)).mean(0)
        if np.linalg.norm(mean) < SLACK:
            raise RequestError(
                f"the vectors of {path} cancel out: their mean is zero. Search with the vector of "
                "one section."
            )
        return unit(mean)

    def near_duplicates(
        self, threshold: float = 0.95, *, where: Filter = EVERYTHING, most: int = 100_000
    ) -> tuple[Pair, ...]:
        """Pairs of files with sections that are nearly the same.

        Parameters
        ----------
        threshold : float
            The least cosine, above 0 and at most 1.
        where : Filter
            Which rows take part.
        most : int
            Largest number of pairs of sections; with more, the threshold is too low to be useful.

        Returns
        -------
        tuple of Pair
            By score, the highest first; each pair of files once.

        Raises
        ------
        RequestError
            For a threshold out of range, or too many pairs.

        Notes
        -----
        Always exact: every row with every other, so the time grows with the square of the rows, and
        all vectors are in memory three times.

        Examples
        --------
        >>> from patchifier.library import search
        >>> search.load("music.parquet").near_duplicates(0.9999)
        ()
        """
        if not 0 < threshold <= 1:
            raise RequestError(
                f"the threshold is {threshold}, expected a cosine above 0 and at most 1, such as "
                "0.95."
            )
        rows, vectors, files = self._by_file(where)
        best: dict[tuple[int, int], tuple[float, int, int]] = {}
        for count, (first, second, score) in enumerate(pairs_above(vectors, files, threshold)):
            if count == most:
                raise RequestError(
                    f"more than {most} pairs of sections reach {threshold}: raise the threshold, "
                    "or filter."
                )
            key = (files[first], files[second])
            best[key] = max(best.get(key, (-1.0, 0, 0)), (score, -first, -second))
        pairs = [
            Pair(
                dataclasses.replace(rows[-i], score=score),
                dataclasses.replace(rows[-j], score=score),
                score,
            )
            for score, i, j in best.values()
        ]
        return tuple(
            sorted(pairs, key=lambda pair: (-pair.score, pair.first.path, pair.second.path))
        )

    def nearest_pair(self, *, where: Filter = EVERYTHING) -> Pair | None:
        """Return the sections of two files that are nearest; None if there are no two files.

        Exact, in time and memory as :meth:`near_duplicates`.

        Examples
        --------
        >>> from patchifier.library import search
        >>> search.load("music.parquet").nearest_pair().score < 1
        True
        """
        rows, vectors, files = self._by_file(where)
        if (best := nearest_of(vectors, files)) is None:
            return None
        first, second, score = best
        one, other = (dataclasses.replace(rows[row], score=score) for row in (first, second))
        return Pair(one, other, score)

    def _by_file(self, where: Filter) -> tuple[Sequence[SearchResult], np.ndarray, np.ndarray]:
        """Rows by path and time, their vectors (n, E), and the number of each one's file (n,)."""
        table = self._select(where).sort_by([("path", "ascending"), ("start_s", "ascending")])
        rows = found(table, [None] * len(table))
        paths = np.array([row.path for row in rows], object)
        files = np.unique(paths, return_inverse=True)[1] if rows else np.zeros(0, int)
        return rows, vectors_of(table, self.size), files

    def playlist(
        self,
        start: str | Path | np.ndarray,
        length: int = 10,
        *,
        where: Filter = EVERYTHING,
        drift: float = 1.0,
        artist_gap: int = 0,
        exact: bool = False,
    ) -> tuple[SearchResult, ...]:
        """Walk from neighbour to neighbour, never to the same file twice.

        Parameters
        ----------
        start : str, Path or ndarray (E,)
            The first file, or a vector to begin near. A first file stays, even if `where` excludes
            it.
        length : int
            Number of files, the first included; fewer if no more take part.
        where : Filter
            Which rows take part.
        drift : float
            From 0, every file near the start, to 1, every file near the one before.
        artist_gap : int
            How many files lie at least between two of the same artist.
        exact : bool
            Compare with every row, also where an approximate index exists.

        Returns
        -------
        tuple of SearchResult
            In playing order; a score is the cosine with where the walk stood.

        Examples
        --------
        >>> from patchifier.library import search
        >>> store = search.load("music.parquet")
        >>> first = store.filter(search.Filter())[0].path
        >>> walk = store.playlist(first, 3)
        >>> len({row.path for row in walk}), walk[0].path == first
        (3, True)
        """
        _require_count(length, "length")
        if not 0 <= drift <= 1 or artist_gap < 0:
            raise RequestError(
                f"drift is {drift} and artist_gap {artist_gap}, expected 0 to 1 and at least 0."
            )
        origin = self._query_vector(start, None)
        songs = [] if isinstance(start, np.ndarray) else [self._first(str(start))]
        here = origin
        while len(songs) < length:
            artists = tuple(
                str(song.tags["artist"])
                for song in songs[max(0, len(songs) - artist_gap) :]
                if "artist" in song.tags
            )
            paths = (*where.without_paths, *(song.path for song in songs))
            narrowed = dataclasses.replace(
                where, without_paths=paths, without_artists=(*where.without_artists, *artists)
            )
            step = self._best_of_each_file(
                _between(origin, here, drift), 1, where=narrowed, exact=exact
            )
            if not step:
                break
            songs += step
            here = self._vector_of_file(step[0].path)
        return tuple(songs)

    def _first(self, path: str) -> SearchResult:
        return dataclasses.replace(self.filter(Filter(path=path))[0], score=1.0)


def _between(origin: np.ndarray, here: np.ndarray, drift: float) -> np.ndarray:
    mixed = (1 - drift) * origin + drift * here
    return unit(mixed) if np.linalg.norm(mixed) > SLACK else here


def _rank(row: SearchResult) -> tuple[float, str, float]:
    assert row.score is not None
    return -row.score, row.path, row.start_s


def _require_count(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"{name} is {value!r}, expected a whole number of at least 1.")
