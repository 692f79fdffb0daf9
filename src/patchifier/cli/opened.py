"""A table or an index that a command searches, and what the commands of search have in common."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchifier.cli.command import Outcome
from patchifier.config import RequestError

if TYPE_CHECKING:
    import numpy as np

    from patchifier.library.search import Filter, Index, SearchResult, Table, VectorStore


EXPECTED = "a file of {}, a part of its name, or a file outside"
LOOKED_AT = 10  # results that tell whether rows are about parts of files
MOST_MEANT = 3  # values of a tag that a message suggests


@dataclass(frozen=True)
class Conditions:
    """Which files take part; what is empty is no condition.

    Parameters
    ----------
    artist, title, album, genre, albumartist : str
        Only files whose tag is exactly this, ignoring case.
    year_from : int
        Only files of this year and later.
    year_to : int
        Only files of this year and earlier.
    below : str
        Only files below this folder, by its path or its name; or files whose path begins with this.
    """

    artist: str = ""
    title: str = ""
    album: str = ""
    genre: str = ""
    albumartist: str = ""
    year_from: int = 0
    year_to: int = 0
    below: str = ""

    def where(self, store: "VectorStore") -> "Filter":
        """As a filter of a search in a store."""
        from patchifier.library.search import Filter

        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value}
        if below := given.pop("below", None):
            given["path_prefix"] = prefix_of(store, below)
        return Filter(**given)

    def hints(self, store: "VectorStore") -> str:
        """Sentences about what was meant, where no file of a store fulfils the conditions."""
        from patchifier.library.search.rows import TEXTS

        tags = [tag_hint(store, name, getattr(self, name)) for name in TEXTS if getattr(self, name)]
        folders = [folder_hint(store, self.below)] if self.below else []
        return "".join(f" {hint}" for hint in [*tags, *folders] if hint)

    def __str__(self) -> str:
        return ", ".join(f"--{name} {value}" for name, value in vars(self).items() if value)


def prefix_of(store: "VectorStore", below: str) -> str:
    """How the paths begin that --below means: a folder here, a beginning, or a folder's name."""
    from patchifier.library.search.rows import folder_named

    paths = store.paths()
    whole = f"{Path(below).resolve()}/"
    starts = [whole, below] if Path(below).is_dir() else [below]
    for start in starts:
        if any(path.startswith(start) for path in paths):
            return start
    return folder_named(paths, below) or starts[0]


def tag_hint(store: "VectorStore", name: str, value: str) -> str:
    """Sentence about values of a tag that are near to one that no file has; else empty."""
    from patchifier.library.search import Filter

    if store.filter(Filter(**{name: value})):  # type: ignore[arg-type]
        return ""
    known = {str(row.tags[name]) for row in store.filter(Filter()) if name in row.tags}
    if near := near_values(value, known):
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"No file has the {name} {value!r}."


def near_values(value: str, known: set[str]) -> list[str]:
    """Values that contain another one, or are written nearly as it is; three at most.

    Examples
    --------
    >>> near_values("stuart", {"Stuart Marshall", "Bach"}), near_values("Bahc", {"Bach"})
    (['Stuart Marshall'], ['Bach'])
    """
    folded = {one.casefold(): one for one in sorted(known)}
    wanted = value.casefold()
    found = [one for one in folded if wanted in one]
    found = found or difflib.get_close_matches(wanted, folded, n=MOST_MEANT)
    return [folded[one] for one in found[:MOST_MEANT]]


def folder_hint(store: "VectorStore", below: str) -> str:
    """Sentence about how paths of a store begin, where none begins as was said; else empty."""
    paths = store.paths()
    start = prefix_of(store, below)
    if not paths or any(path.startswith(start) for path in paths):
        return ""
    return (
        f"No path of the table has the folder {below}: expected the name of a folder, or the "
        f"beginning of a path such as {paths[0]}."
    )


@dataclass(frozen=True)
class Ranking:
    """How files are compared, and how many of an artist or an album are listed.

    Parameters
    ----------
    weights : list of str
        NAME=FACTOR for slices of the vectors: 0 leaves a slice out, 1 is the default, and with 2,
        as 'harmony=2', it counts about as much as the slice that counts most by default.
    max_per_artist : int
        Largest number of files of one artist; 0 is no limit.
    max_per_album : int
        Largest number of files of one album; 0 is no limit.
    exact : bool
        Compare with every row, also where an approximate index exists.
    """

    weights: list[str] | None = None
    max_per_artist: int = 0
    max_per_album: int = 0
    exact: bool = False


@dataclass(frozen=True)
class Outputs:
    """Where results are written, besides to the terminal.

    Parameters
    ----------
    m3u : str
        NAME.m3u8: write them as a playlist. Its paths are relative to where it lies: for MPD, below
        the folder of the music.
    out : str
        NAME.csv or NAME.jsonl: write them as a table.
    """

    m3u: str = ""
    out: str = ""

    def __post_init__(self) -> None:
        require_outputs(self.m3u, self.out)


@dataclass(frozen=True)
class OpenedTable:
    """A table or an index, with its name and that of the model for files outside."""

    store: "Table | Index"
    table: str
    model: str

    @classmethod
    def of(cls, table: str, model: str) -> "OpenedTable":
        """Open a table or an index."""
        from patchifier import weights
        from patchifier.library import search

        if model:
            weights.find(model)  # which names a model that does not exist
        return cls(search.load(table), table, model)

    def queries(self, files: Sequence[str], flag: str) -> "list[str | Path | np.ndarray]":
        """Return what to search with for each file."""
        return [self.query(file, flag) for file in files]

    def query(self, file: str, flag: str) -> "str | np.ndarray":
        """Return the file's path as the table has it, or the vector of a file outside."""
        from patchifier.audio import name_fault, written_name

        if not file.strip():
            raise RequestError(f"{flag} is empty: expected {EXPECTED.format(self.table)}.")
        if fault := name_fault(file):
            raise RequestError(f"{flag} {written_name(file)}: {fault}")
        if path := self.store.path_of(file):
            return path
        if Path(file).is_dir():
            raise RequestError(
                f"{flag} {file} is a folder, expected {EXPECTED.format(self.table)}."
            )
        if not Path(file).exists():
            raise RequestError(
                f"{flag} {file} is neither in {self.table} nor a file: expected "
                f"{EXPECTED.format(self.table)}."
            )
        return self.embedder(f"{file} is not in {self.table}, and").embed(file)

    def embedder(self, why: str) -> Any:
        """Return the model that made the table; refuse another one."""
        from patchifier import weights
        from patchifier.embed import load
        from patchifier.library import models

        if self.store.identity.endswith(models.OF_PATCHES):
            raise RequestError(
                f"{why} {self.table} has a row for each patch, whose vectors are not those of "
                "files: search with a file of the table, without --weights."
            )
        embedder = load(self.model or None)
        if embedder.identity != self.store.identity:
            raise RequestError(
                f"{why} {self.model or weights.DEFAULT} is another model, or has other settings, "
                f"than the one that made the table. "
                f"{models.how_to_match(self.store.identity, self.table)}"
            )
        return embedder

    def options(self, ranking: Ranking, conditions: Conditions) -> dict[str, Any]:
        """Arguments that all searches take."""
        return vars(ranking) | {
            "weights": self.weights(ranking.weights or []),
            "where": conditions.where(self.store),
        }

    def weights(self, given: Sequence[str]) -> "np.ndarray | None":
        """Read 'NAME=FACTOR' for slices of the vectors."""
        from patchifier.library.search import slice_weights

        if not given:
            return None
        factors = {}
        for word in given:
            name, _, factor = word.partition("=")
            try:
                factors[name] = float(factor)
            except ValueError as error:
                raise RequestError(
                    f"--weights has {word!r}, expected NAME=FACTOR, such as harmony=2."
                ) from error
        return slice_weights(
            self.embedder("--weights needs the slices of the model:").config, factors
        )

    def outcome(
        self,
        found: "Sequence[SearchResult]",
        conditions: Conditions,
        outputs: Outputs,
        *,
        count: int,
        n_given: int = 0,
        notes: Iterable[str] = (),
    ) -> Outcome:
        """Print files, and write them where that was asked for.

        Of `count` files the first `n_given` are those that were given; a line says so if there are
        no others. Notes are printed behind the list.
        """
        from patchifier.library import export, playlist

        if outputs.m3u:
            playlist.write_m3u8(playlist.entries(self.store, found), outputs.m3u)
        if outputs.out:
            export.write_results(found, outputs.out)
        parted = self._parted(found)
        lines = [result_line(row, with_stretch=parted) for row in found]
        if len(found) <= n_given and len(found) < count:
            lines.append(self._nothing(conditions))
        shown = tuple(note for note in notes if note)
        return Outcome([asdict(row) for row in found], "\n".join(lines), notes=shown)

    def _nothing(self, conditions: Conditions) -> str:
        """Sentence about a search that found nothing."""
        if not str(conditions):
            return f"no other file is in {self.table}."
        hints = conditions.hints(self.store)
        return f"no other file in {self.table} passes {conditions}.{hints}"

    def _parted(self, found: "Sequence[SearchResult]") -> bool:
        """Whether rows are about parts of files, as far as the first results tell."""
        from patchifier.library.search import Filter

        some = found[:LOOKED_AT]
        return any(
            row.start_s > 0 or len(self.store.filter(Filter(path=row.path))) > 1 for row in some
        )

    def stand_in(
        self,
        file: str,
        query: "str | Path | np.ndarray",
        rows: "Sequence[SearchResult]",
        does: str,
        weights: "np.ndarray | None",
    ) -> str:
        """Sentence about the row of a path that stands for a file outside; empty for one inside."""
        from patchifier.library.search import Filter

        if isinstance(query, str | Path):
            return ""
        found = [
            near
            for row in rows
            for near in self.store.similar(
                query, 1, where=Filter(path=row.path), weights=weights, exact=True
            )
        ]
        best = max(found, key=lambda row: row.score or 0.0, default=None)
        if best is None:
            return ""
        return (
            f"{one_line(file)} is not in the table: the path {does} {one_line(best.path)} "
            f"({best.score:.2f})"
        )


def result_line(row: "SearchResult", *, with_stretch: bool) -> str:
    """Similarity, path, the stretch if rows are about parts of files, artist and title."""
    words = [f"{1.0 if row.score is None else row.score:.4f}", one_line(row.path)]
    if with_stretch:
        words.append(f"{row.start_s:.1f}-{row.end_s:.1f} s")
    tags = [str(row.tags[name]) for name in ("artist", "title") if row.tags.get(name)]
    words += [one_line(" - ".join(tags))] if tags else []
    return "  ".join(words)


def wide_step(rows: "Sequence[SearchResult]", what: str) -> str:
    """Sentence about the widest step of a list in playing order; empty if all are small."""
    from patchifier.library.search.closeness import LEAST_CLOSE

    least = min((row.score for row in rows if row.score is not None), default=1.0)
    if least >= LEAST_CLOSE:
        return ""
    return f"the library has no smooth way {what}; the least similar neighbours have {least:.2f}."


def one_line(path: str) -> str:
    """Path or tags as text in one line."""
    return path.replace("\n", "\\n")


def require_outputs(m3u: str, out: str) -> None:
    """Refuse names of other kinds before anything is computed."""
    from patchifier.library import export, playlist

    if m3u:
        playlist.require_m3u8(m3u)
    if out:
        export.require_results(out)
