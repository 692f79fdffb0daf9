"""A table or an index that a command searches, and what the commands of search have in common."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchifier.cli.command import Outcome
from patchifier.config import RequestError

if TYPE_CHECKING:
    import numpy as np

    from patchifier.library.search import Filter, Index, SearchResult, Table


@dataclass(frozen=True)
class Conditions:
    """Which files take part; what is empty is no condition.

    Parameters
    ----------
    artist, title, album, genre, albumartist : str
        Only files with this tag, ignoring case.
    year_from : int
        Only files of this year and later.
    year_to : int
        Only files of this year and earlier.
    below : str
        Only files whose path begins with this, such as a folder.
    """

    artist: str = ""
    title: str = ""
    album: str = ""
    genre: str = ""
    albumartist: str = ""
    year_from: int = 0
    year_to: int = 0
    below: str = ""

    def where(self) -> "Filter":
        """As a filter of the search; `below` may be a folder."""
        from patchifier.library.search import Filter

        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value}
        below = given.pop("below", None)
        if below and Path(below).is_dir():
            below = f"{Path(below).resolve()}/"
        return Filter(path_prefix=below, **given)

    def __str__(self) -> str:
        return ", ".join(f"--{name} {value}" for name, value in vars(self).items() if value)


@dataclass(frozen=True)
class Ranking:
    """How files are compared, and how many of an artist or an album are listed.

    Parameters
    ----------
    weights : list of str
        NAME=FACTOR for slices of the vectors, such as 'harmony=2', on top of the defaults.
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
        from patchifier.library.search import Filter
        from patchifier.library.search.rows import named

        if fault := name_fault(file):
            raise RequestError(f"{flag} {written_name(file)}: {fault}")
        for path in (file, str(Path(file).resolve())):
            if self.store.filter(Filter(path=path)):
                return path
        if not Path(file).exists():
            paths = (row.path for row in self.store.filter(Filter()))
            if path_of := named(paths, file):
                return path_of
            raise RequestError(
                f"{flag} {file} is neither in {self.table} nor a file: name a file of the table, a "
                "part of its name, or a file outside."
            )
        return self.embedder(f"{file} is not in {self.table}, and").embed(file)

    def embedder(self, why: str) -> Any:
        """Return the model that made the table; refuse another one."""
        from patchifier import weights
        from patchifier.embed import load

        embedder = load(self.model or None)
        if embedder.identity != self.store.identity:
            raise RequestError(
                f"{why} {self.model or weights.DEFAULT} is another model, or has other settings, "
                "than the one that made the table: name that one with --model. A table that an "
                "older patchifier made of the same model is embedded anew."
            )
        return embedder

    def options(self, ranking: Ranking, conditions: Conditions) -> dict[str, Any]:
        """Arguments that all searches take."""
        return vars(ranking) | {
            "weights": self.weights(ranking.weights or []),
            "where": conditions.where(),
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
        n_given: int = 0,
    ) -> Outcome:
        """Print files, and write them where that was asked for.

        The first `n_given` are those that were given; a line says so if there are no others.
        """
        from patchifier.library import export, playlist

        if outputs.m3u:
            playlist.write_m3u8(playlist.entries(self.store, found), outputs.m3u)
        if outputs.out:
            export.write_results(found, outputs.out)
        scores = [1.0 if row.score is None else row.score for row in found]
        text = "\n".join(
            f"{score:.4f}  {one_line(row.path)}  {row.start_s:.1f}-{row.end_s:.1f} s"
            for score, row in zip(scores, found, strict=True)
        )
        nothing = f"no other file is in {self.table}."
        if str(conditions):
            nothing = f"no other file in {self.table} passes {conditions}."
        if len(found) <= n_given:
            text = f"{text}\n{nothing}".strip()
        return Outcome([asdict(row) for row in found], text)


def one_line(path: str) -> str:
    """Path as text in one line."""
    return path.replace("\n", "\\n")


def require_outputs(m3u: str, out: str) -> None:
    """Refuse names of other kinds before anything is computed."""
    from patchifier.library import export, playlist

    if m3u:
        playlist.require_m3u8(m3u)
    if out:
        export.require_results(out)


def require_count(count: int) -> int:
    """Return a number of files; refuse less than one."""
    if count < 1:
        raise RequestError(f"--count is {count}, expected at least 1.")
    return count
