"""Queries by similarity, for any store that gives its rows nearest to a vector."""

import abc
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from patchifier.audio import name_fault
from patchifier.config import RequestError
from patchifier.heads import unit
from patchifier.io import Progress, silent
from patchifier.library.search.metric import SLACK, Metric, default_weights, direction_of
from patchifier.library.search.pairs import nearest_of, nearest_pairs, pairs_above
from patchifier.library.search.ranking import (
    HUB_ROWS,
    HUB_SAMPLE,
    POOL,
    POOL_FACTOR,
    Candidates,
    Caps,
    Ranked,
    Target,
    best_files,
    hub_discount,
)
from patchifier.library.search.route import (
    Nearest,
    Place,
    choose,
    drifted,
    in_order,
    places,
    without_artists,
)
from patchifier.library.search.rows import (
    SILENCE_DB,
    Filter,
    SearchResult,
    found,
    named,
    without,
)
from patchifier.library.stored import require_same_model, vectors_of

EVERYTHING = Filter()
DISCOUNT_HUBS = False
BY_TIME = [("path", "ascending"), ("start_s", "ascending")]
NEARNESS_OF, NEARNESS_AMONG, NEARNESS_PERCENT = 200, 5_000, 10  # of the usual nearness of rows
Query = str | Path | np.ndarray
Seeds = Query | Sequence[Query]


@dataclass(frozen=True)
class Pair:
    """Two files that sound nearly the same: their two nearest sections and the cosine of these.

    Examples
    --------
    >>> from patchifier.library import search
    >>> pair = search.load("music.parquet").nearest_pair()
    >>> pair.first.path != pair.second.path, pair.score < 1
    (True, True)
    """

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
    slices : dict of str to int, or None
        Sizes of the slices of a vector, in their order; None if the store does not state them.

    Examples
    --------
    >>> from patchifier.library import search
    >>> store = search.load("music.parquet")
    >>> one, two, three = (row.path for row in store.filter(search.Filter()))
    >>> len(store.similar(one, 1)), len(store.mix(one, 3)), len(store.path(one, two, 3))
    (1, 3, 3)
    """

    name: str
    identity: str
    size: int
    slices: dict[str, int] | None = None

    def metric(self, weights: np.ndarray | None = None) -> Metric:
        """Metric of a search: that of the weights, or of :func:`default_weights`."""
        chosen = default_weights(self.slices) if weights is None else weights
        return Metric.of(chosen, self.size)

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abc.abstractmethod
    def _select(self, where: Filter, *, vectors: bool = True) -> pa.Table:
        """All rows where the conditions hold; without the vectors if `vectors` is false."""

    @abc.abstractmethod
    def _candidates(
        self, targets: Sequence[Target], first: int, *, where: Filter, exact: bool
    ) -> list[Iterator[Candidates]]:
        """For each of some targets of one metric, the rows nearest to it.

        At least `first` if there are so many, then more each time.
        """

    @abc.abstractmethod
    def _sample(self, count: int) -> np.ndarray:
        """Vectors of up to `count` rows, evenly spread over the store: (m, E)."""

    def audible(self, where: Filter) -> Filter:
        """The same conditions, and silence left out: it is nobody's neighbour."""
        least_db = SILENCE_DB if where.above_db is None else max(SILENCE_DB, where.above_db)
        return dataclasses.replace(where, above_db=least_db)

    def filter(self, where: Filter) -> tuple[SearchResult, ...]:
        """Rows where the conditions hold, by path and time; their score is None."""
        table = self._select(where, vectors=False).sort_by(BY_TIME)
        return tuple(found(table, [None] * len(table)))

    def similar(
        self,
        query: Seeds,
        count: int = 10,
        *,
        unlike: Seeds = (),
        where: Filter = EVERYTHING,
        weights: np.ndarray | None = None,
        max_per_artist: int = 0,
        max_per_album: int = 0,
        discount_hubs: bool = DISCOUNT_HUBS,
        exact: bool = False,
        identity: str | None = None,
    ) -> tuple[SearchResult, ...]:
        """Files that sound like a query.

        Parameters
        ----------
        query : str, Path, ndarray (E,), or a sequence of these
            A file in here (never among its own results), by its path, its name or a part of it,
            or a vector: of a file outside, made by the same model. A file of several rows is
            looked for by the mean of their directions, and so are several files.
        count : int
            How many, at least 1. If fewer files take part, all of them are given.
        unlike : str, Path, ndarray (E,), or a sequence of these
            What the files should not sound like; it is not among the results. The query is then
            the mean direction of `query` minus half of that of `unlike`.
        where : Filter
            Which rows take part.
        weights : ndarray (E,)
            Factors of the squared contribution of each number, at least 0, as
            :func:`~patchifier.library.search.slice_weights` makes them. An index looks for
            candidates by the lengths that rows have without them.
        max_per_artist, max_per_album : int
            Most results of one artist and of one album; 0 is no limit. A file without the tag is
            not limited.
        discount_hubs : bool
            Rank files that are near to everything lower, in a store of at least 100 rows (see
            docs/search.md).
        exact : bool
            Compare with every row, also where an approximate index exists.
        identity : str
            Of the model that made the vectors, to be sure that it is the same.

        Returns
        -------
        tuple of SearchResult
            The best first; of each file its nearest section. A score is the cosine with the mean
            direction of `query`, with weights if there are some. The order is that of the scores
            unless `unlike` or `discount_hubs` is used.

        Raises
        ------
        RequestError
            For a path that is not in here, a vector of another size or model, no query, or weights
            that are none.

        Examples
        --------
        >>> from patchifier.library import search
        >>> store = search.load("music.parquet")
        >>> query = store.filter(search.Filter())[0].path
        >>> [row.path == query for row in store.similar(query, 2)]
        [False, False]
        >>> other = store.similar(query, 2)[1].path
        >>> len(store.similar([query], unlike=[other]))
        1
        """
        require_count(count, "count")
        target, named = self._target(query, unlike, weights=weights, identity=identity)
        caps = _caps(max_per_artist, max_per_album)
        options = {"exact": exact, "discount_hubs": discount_hubs}
        found = self._best(target, count, where=without(where, named), caps=caps, **options)
        return tuple(file.row for file in found)

    def paths(self) -> list[str]:
        """Path of each file in here, once.

        Examples
        --------
        >>> from patchifier.library import search
        >>> len(search.load("music.parquet").paths())
        3
        """
        return list(dict.fromkeys(self._select(EVERYTHING, vectors=False)["path"].to_pylist()))

    def path_of(self, name: str | Path) -> str | None:
        """Path in here that a name means.

        Parameters
        ----------
        name : str or Path
            A path as it is stored, a path from the working directory, the name of a file, or a part
            of it.

        Returns
        -------
        str or None
            None if no file in here is meant, and for a file that exists and is not in here.

        Raises
        ------
        RequestError
            If several files in here fit equally well.

        Examples
        --------
        >>> from patchifier.library import search
        >>> store = search.load("music.parquet")
        >>> path = store.path_of("thr")
        >>> path.endswith("three.ogg"), store.path_of("nowhere")
        (True, None)
        """
        given = str(name)
        if self._has(given):
            return given
        if name_fault(given):
            return None
        whole = os.path.realpath(given)
        if self._has(whole):
            return whole
        return None if os.path.exists(given) else named(self.paths(), given)

    def _has(self, path: str) -> bool:
        """Whether there are rows of a file."""
        return len(self._select(Filter(path=path), vectors=False)) > 0

    def _known(self, query: Query) -> Query:
        """Return a vector as it is, and of a file its path in here."""
        if not isinstance(query, str | Path):
            return query
        path = self.path_of(query)
        if path is None:
            raise RequestError(
                f"{query} is not in {self.name}: name a file of it, or embed the file and search "
                "with its vector."
            )
        return path

    def _best(
        self,
        target: Target,
        count: int,
        *,
        where: Filter,
        exact: bool,
        caps: Caps,
        discount_hubs: bool = False,
    ) -> list[Ranked]:
        """Return the best files for a target."""
        adjust, first = None, 2 * count
        if discount_hubs and len(self) >= HUB_ROWS:
            first = POOL + POOL_FACTOR * count
            sample = target.metric.unit(self._hub_sample)
            adjust = hub_discount(sample, target.direction)
        (parts,) = self._candidates([target], first, where=self.audible(where), exact=exact)
        return best_files(parts, target, count, caps=caps, adjust=adjust)

    @functools.cached_property
    def usual_nearness(self) -> float:
        """Cosine that nine of ten rows reach with another one, from a sample; -1 without others."""
        units = self.metric().unit(self._sample(NEARNESS_AMONG)).astype(np.float32)
        rows = np.unique(np.linspace(0, len(units) - 1, NEARNESS_OF).astype(int))[: len(units)]
        cosines = units[rows] @ units.T  # (m, n)
        cosines[np.arange(len(rows)), rows] = -1.0
        return float(np.percentile(cosines.max(axis=1), NEARNESS_PERCENT))

    @functools.cached_property
    def _hub_sample(self) -> np.ndarray:
        return self._sample(HUB_SAMPLE)

    def _target(
        self,
        query: Seeds,
        unlike: Seeds = (),
        *,
        weights: np.ndarray | None = None,
        identity: str | None = None,
    ) -> tuple[Target, tuple[str, ...]]:
        """Return what to look for, and the paths of files in here that it was made of."""
        seeds, others = ([self._known(one) for one in listed(some)] for some in (query, unlike))
        metric = self.metric(weights)
        if not seeds:
            raise RequestError("no file was given to search with: expected at least one.")
        likes, dislikes = (
            [self.vector_of(one, identity=identity) for one in some] for some in (seeds, others)
        )
        for one, vector in zip(others, dislikes, strict=True):
            if any(np.array_equal(vector, like) for like in likes):
                name = "a vector" if isinstance(one, np.ndarray) else str(one)
                raise RequestError(
                    f"{name} is among what the files should sound like and among what they should "
                    "not: give it as one of the two."
                )
        shown = direction_of(likes, (), metric)
        ranked = direction_of(likes, dislikes, metric)
        return Target(metric, ranked, shown), paths_of([*seeds, *others])

    def vector_of(self, query: Query, *, identity: str | None = None) -> np.ndarray:
        """Vector (E,) of length 1 of a file in here, or of a vector; refused as by `similar`."""
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

    def _vectors_of_path(self, path: str) -> np.ndarray:
        """Vectors (k, E) of the rows of a file, without silence; none if it is not in here."""
        return vectors_of(self._select(self.audible(Filter(path=path))), self.size)

    def _vector_of_file(self, path: str) -> np.ndarray:
        vectors = self._vectors_of_path(path)
        if not len(vectors):
            path = str(self._known(path))
            vectors = self._vectors_of_path(path)
        if not len(vectors):
            raise RequestError(
                f"{path} is silent, so nothing is similar to it: choose another file."
            )
        mean = unit(vectors).mean(0)
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
        require_threshold(threshold, 0.95)
        rows, vectors, files = self._by_file(where)
        pairs = pairs_above(vectors, files, threshold)
        return _best_pairs(rows, files, _at_most(pairs, most, threshold))

    def candidate_pairs(
        self,
        threshold: float,
        count: int,
        *,
        where: Filter = EVERYTHING,
        progress: Progress = silent,
    ) -> tuple[Pair, ...]:
        """Pairs of files, each with those of its `count` nearest that reach a cosine.

        Exact, in time as :meth:`near_duplicates`, but the number of pairs grows with the number of
        rows alone. Which of these are the same music, :func:`~patchifier.library.search.duplicates`
        finds out.
        """
        rows, vectors, files = self._by_file(where)
        pairs = nearest_pairs(vectors, files, count, threshold, progress=progress)
        return _best_pairs(rows, files, pairs)

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
        table = self._select(self.audible(where)).sort_by(BY_TIME)
        rows = found(table, [None] * len(table))
        paths = np.array([row.path for row in rows], object)
        files = np.unique(paths, return_inverse=True)[1] if rows else np.zeros(0, int)
        return rows, vectors_of(table, self.size), files

    def mix(
        self,
        seeds: Seeds,
        count: int = 25,
        *,
        unlike: Seeds = (),
        where: Filter = EVERYTHING,
        weights: np.ndarray | None = None,
        drift: float = 0.5,
        artist_gap: int = 0,
        max_per_artist: int = 0,
        max_per_album: int = 0,
        discount_hubs: bool = DISCOUNT_HUBS,
        exact: bool = False,
    ) -> tuple[SearchResult, ...]:
        """Walk from neighbour to neighbour, never to the same file twice.

        Parameters
        ----------
        seeds : str, Path, ndarray (E,), or a sequence of these
            The first files, in their order, also if `where` excludes them; or vectors to begin
            near.
        count : int
            Number of files, the seeds included; fewer if no more take part.
        unlike : str, Path, ndarray (E,), or a sequence of these
            As for :meth:`similar`.
        where : Filter
            Which rows take part.
        weights : ndarray (E,)
            As for :meth:`similar`.
        drift : float
            From 0, every file near the seeds, to 1, every file near the one before.
        artist_gap : int
            How many files lie at least between two of the same artist.
        max_per_artist, max_per_album : int
            As for :meth:`similar`; the seeds count.
        discount_hubs, exact : bool
            As for :meth:`similar`.

        Returns
        -------
        tuple of SearchResult
            In playing order. A score is the cosine with the file before, that of the first is 1; if
            no seed is in here, it is the cosine with the seeds.

        Examples
        --------
        >>> from patchifier.library import search
        >>> store = search.load("music.parquet")
        >>> first = store.filter(search.Filter())[0].path
        >>> walk = store.mix(first, 3)
        >>> len({row.path for row in walk}), walk[0].path == first
        (3, True)
        """
        require_count(count, "count")
        if not 0 <= drift <= 1 or artist_gap < 0:
            raise RequestError(
                f"drift is {drift} and artist_gap {artist_gap}, expected 0 to 1 and at least 0."
            )
        seeds = [self._known(seed) for seed in listed(seeds)]
        target, named = self._target(seeds, unlike, weights=weights)
        first = [self._file(path, target.metric) for path in dict.fromkeys(paths_of(seeds))]
        walk, options = first[:count], {"exact": exact, "discount_hubs": discount_hubs}
        caps = _caps(max_per_artist, max_per_album)
        for file in walk:
            caps.add(file.row)
        while len(walk) < count:
            left = without_artists(where, walk[max(0, len(walk) - artist_gap) :])
            left = without(left, [*named, *(file.row.path for file in walk)])
            step = self._best(drifted(target, walk, drift), 1, where=left, caps=caps, **options)
            if not step:
                break
            caps.add(step[0].row)
            walk += step
        return tuple(in_order(walk, None if first else target.shown))

    def path(
        self,
        start: Query,
        end: Query,
        count: int = 10,
        *,
        waypoints: Sequence[Query] = (),
        where: Filter = EVERYTHING,
        weights: np.ndarray | None = None,
        max_per_artist: int = 0,
        max_per_album: int = 0,
        exact: bool = False,
    ) -> tuple[SearchResult, ...]:
        """Go from one file to another in small steps, never to the same file twice.

        Parameters
        ----------
        start, end : str, Path or ndarray (E,)
            The first file and the last, also if `where` excludes them. For a vector it is the file
            nearest to it of those that take part.
        count : int
            Number of files, `start`, `end` and `waypoints` included, at least as many as these;
            fewer if no more take part.
        waypoints : sequence of str, Path or ndarray (E,)
            Files between, in their order.
        where : Filter
            Which rows take part.
        weights : ndarray (E,)
            As for :meth:`similar`.
        max_per_artist, max_per_album : int
            As for :meth:`similar`; the files given count, and stay.
        exact : bool
            Compare with every row, also where an approximate index exists.

        Returns
        -------
        tuple of SearchResult
            In playing order. A score is the cosine with the file before; that of the first is 1.

        Raises
        ------
        RequestError
            As :meth:`similar`; if a file is given twice, or `count` is too small.

        Notes
        -----
        Places for the files lie evenly on the arc between the directions of the files given. Of the
        30 files nearest to each place one is chosen, so that the sum of squares of (1 - cosine)
        over all steps is the least.

        Examples
        --------
        >>> from patchifier.library import search
        >>> store = search.load("music.parquet")
        >>> one, two, three = (row.path for row in store.filter(search.Filter()))
        >>> [row.path == three for row in store.path(one, two, 3)]
        [False, True, False]
        """
        stops = [self._known(stop) for stop in (start, *waypoints, end)]
        require_count(count, "count")
        _require_different(stops)
        if count < len(stops):
            raise RequestError(
                f"count is {count} for a path through {len(stops)} files, expected at least "
                f"{len(stops)}."
            )
        metric, count = self.metric(weights), min(count, max(len(self), len(stops)))

        def nearest(
            directions: Sequence[np.ndarray], many: int, caps: Caps, taken: Set[str]
        ) -> list[list[Ranked]]:
            targets = [Target(metric, direction, direction) for direction in directions]
            left = without(self.audible(where), taken)
            parts = self._candidates(targets, 2 * many, where=left, exact=exact)
            return [
                best_files(of_one, target, many, caps=caps)
                for target, of_one in zip(targets, parts, strict=True)
            ]

        line = places(self._places(stops, metric, nearest), count)
        chosen = choose(line, nearest, _caps(max_per_artist, max_per_album))
        return tuple(in_order(chosen))

    def _places(self, stops: Sequence[Query], metric: Metric, nearest: Nearest) -> list[Place]:
        """Places of a path that files and vectors prescribe; no file stands for two of them."""
        taken = set(paths_of(stops))
        line = []
        for stop in stops:
            if isinstance(stop, np.ndarray):
                direction = direction_of([self.vector_of(stop)], (), metric)
                file = next(iter(nearest([direction], 1, Caps(0, 0), taken)[0]), None)
            else:
                file = self._file(str(stop), metric)
                direction = file.direction
            if file is not None:
                taken.add(file.row.path)
                direction = file.direction
            line.append(Place(direction, file))
        return line

    def _file(self, path: str, metric: Metric) -> Ranked:
        """A file in here as it begins, with its direction."""
        vector = self._vector_of_file(path)
        row = dataclasses.replace(self.filter(Filter(path=path))[0], score=1.0)
        return Ranked(row, 1.0, direction_of([vector], (), metric))


def _at_most(
    pairs: Iterable[tuple[int, int, float]], most: int, threshold: float
) -> Iterator[tuple[int, int, float]]:
    for count, pair in enumerate(pairs):
        if count == most:
            raise RequestError(
                f"more than {most} pairs of sections reach {threshold}: raise the threshold, or "
                "filter."
            )
        yield pair


def _best_pairs(
    rows: Sequence[SearchResult], files: np.ndarray, pairs: Iterable[tuple[int, int, float]]
) -> tuple[Pair, ...]:
    """The nearest sections of each pair of files, the highest cosine first."""
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for first, second, score in pairs:
        key = (files[first], files[second])
        best[key] = max(best.get(key, (-1.0, 0, 0)), (score, -first, -second))
    found = [
        Pair(
            dataclasses.replace(rows[-one], score=score),
            dataclasses.replace(rows[-other], score=score),
            score,
        )
        for score, one, other in best.values()
    ]
    return tuple(sorted(found, key=lambda pair: (-pair.score, pair.first.path, pair.second.path)))


def listed(given: Seeds) -> list[Query]:
    """What was given to search with, as a list."""
    return [given] if isinstance(given, str | Path | np.ndarray) else list(given)


def paths_of(given: Seeds) -> tuple[str, ...]:
    """Paths among what was given to search with."""
    return tuple(str(one) for one in listed(given) if not isinstance(one, np.ndarray))


def _require_different(stops: Sequence[Query]) -> None:
    """Refuse a path that is to come to a file twice."""
    keys = [one.tobytes() if isinstance(one, np.ndarray) else str(one) for one in stops]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        name = twice if isinstance(twice, str) else "a vector"
        raise RequestError(
            f"{name} was given twice for a path, which comes to no file twice: give different "
            "files."
        )


def require_count(value: int, name: str) -> None:
    """Refuse a number of files that is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"{name} is {value!r}, expected a whole number of at least 1.")


def require_threshold(value: float, example: float) -> None:
    """Refuse what is no cosine of two files that may be the same."""
    if not 0 < value <= 1:
        raise RequestError(
            f"the threshold is {value}, expected a cosine above 0 and at most 1, such as {example}."
        )


def _caps(max_per_artist: int, max_per_album: int) -> Caps:
    if max_per_artist < 0 or max_per_album < 0:
        raise RequestError(
            f"max_per_artist is {max_per_artist} and max_per_album {max_per_album}, expected at "
            "least 0."
        )
    return Caps(max_per_artist, max_per_album)
