"""One table of embeddings in memory, as tracks: ids, tags, search by words, order, files."""

import functools
import hashlib
import math
import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchifier.app.parameters import RefusedError
from patchifier.config import RequestError
from patchifier.library.search import Table
from patchifier.library.search.metric import Metric
from patchifier.library.stored import EmbeddingTable, read

SAMPLE = 5_000  # tracks with which two are compared: a share of them is right to about 1 %
TAGS = ("title", "artist", "album", "albumartist", "genre", "year", "track")


@dataclass(frozen=True)
class Place:
    """Where the files of a table are: all in the folder `music`, or anywhere."""

    music: Path | None = None

    def find(self, path: str) -> str:
        """Real path of a file of a table; empty if it is missing or lies outside."""
        base = os.path.realpath(self.music) if self.music else os.getcwd()
        if "\0" in path:
            return ""
        real = os.path.realpath(os.path.join(base, path))
        if self.music and not real.startswith(os.path.join(base, "")):
            return ""
        try:
            return real if stat.S_ISREG(os.stat(real).st_mode) else ""
        except (OSError, ValueError):
            return ""

    def shown(self, path: str) -> str:
        """Path of a file from the music's folder; whole where there is none."""
        if self.music and path.startswith(os.path.join(self.music, "")):
            return os.path.relpath(path, self.music)
        return path


class Collection:
    """Tracks of a table of embeddings, one for each file; `source` is the table's file.

    `paths` and `ids` are those of each track, in the order of the table; `number` has the place of
    each id.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        *,
        name: str = "",
        source: Path | None = None,
        place: Place | None = None,
    ) -> None:
        self.name, self.source, self.place = name, source, place or Place()
        self.table, self.store = table, Table(table, name=str(source))
        paths = table.paths
        firsts = {path: row for row, path in reversed(list(enumerate(paths)))}
        self.first = np.array(sorted(firsts.values()), int)  # row of each track's first section
        self.paths = [paths[row] for row in self.first]
        self.by_path = {path: place for place, path in enumerate(self.paths)}
        self.ids = [self.store.track_ids[row] for row in self.first]
        self.number = {one: place for place, one in enumerate(self.ids)}
        self._columns: dict[str, list[Any]] = {}  # those that were used
        self._ranks: dict[str, list[float]] = {}

    @classmethod
    def open(cls, path: Path, *, name: str = "", place: Place | None = None) -> "Collection":
        """Read a table's file, whose name is that of the library by default."""
        table = read(path)
        if table.metadata.get("patches"):
            raise RequestError(
                f"{path} has a row for each patch, expected one for each file or window: embed "
                "without --patches."
            )
        return cls(table, name=name or path.stem, source=path, place=place)

    def __len__(self) -> int:
        return len(self.paths)

    # --- tracks ---

    def column(self, name: str) -> list[Any]:
        """Values of a tag or another column for each track; None where there is none."""
        if name not in self._columns:
            values = self.table.rows[name].to_pylist()
            whole = len(values) == len(self)
            self._columns[name] = values if whole else [values[row] for row in self.first]
        return self._columns[name]

    def find(self, one: str) -> int:
        """Place of the track of an id; refused with 404 if there is none."""
        if one not in self.number:
            raise RefusedError(
                404, f"there is no song {one[:40]!r} in this library: reload the list of songs."
            )
        return self.number[one]

    def title(self, place: int) -> str:
        """Title of a track; the file's name if it has none."""
        return self.column("title")[place] or Path(self.paths[place]).stem

    def duration_s(self, place: int) -> float | None:
        """Seconds of a track; its last section's end where the table does not say."""
        length = self.column("length_s")[place]
        return self.column("end_s")[place] if length is None or length != length else length

    def track(self, place: int) -> dict[str, Any]:
        """A track as JSON."""
        tags = {name: self.column(name)[place] for name in TAGS}
        return {
            "id": self.ids[place],
            "path": self.paths[place],
            **tags,
            "title": self.title(place),
            "duration_s": self.duration_s(place),
            "start_s": self.column("start_s")[place],
            "missing": not self.place.find(self.paths[place]),
        }

    def file(self, place: int) -> str:
        """Real path of a track's file; refused with 410 if it is missing or lies outside."""
        if real := self.place.find(self.paths[place]):
            return real
        where = f" in {self.place.music}" if self.place.music else ""
        raise RefusedError(
            410,
            f"{self.paths[place]} is not there{where} any more: put it back, or bring the table up "
            "to date with 'patchifier embed --changed'.",
        )

    # --- search by words, and order ---

    @functools.cached_property
    def _words(self) -> list[str]:
        """Text of each track in which words are searched."""
        titles = [self.title(place) for place in range(len(self))]
        columns = [titles, *(self.column(name) for name in ("artist", "album", "year"))]
        return [
            folded(" ".join(str(value) for value in values if value is not None))
            for values in zip(*columns, self.paths)
        ]

    def matching(self, words: str) -> list[int]:
        """Places of the tracks with every word, in the order of the table."""
        wanted = folded(words).split()
        return [
            place for place, text in enumerate(self._words) if all(word in text for word in wanted)
        ]

    def rank(self, sort: str) -> list[float]:
        """Rank of each track by a column; infinite where it has no value."""
        if sort not in self._ranks:
            values = self._sorted_by(sort)
            some = [place for place in range(len(self)) if values[place] is not None]
            rank = [math.inf] * len(self)
            for position, place in enumerate(sorted(some, key=values.__getitem__)):
                rank[place] = position
            self._ranks[sort] = rank
        return self._ranks[sort]

    def _sorted_by(self, sort: str) -> list[Any]:
        if sort == "path":
            return self.paths
        if sort == "title":
            return [folded(self.title(place)) for place in range(len(self))]
        if sort == "duration":
            return [self.duration_s(place) for place in range(len(self))]
        values = self.column(sort)
        return [folded(value) if isinstance(value, str) else value for value in values]

    def ordered(self, words: str, sort: str, *, descending: bool) -> list[int]:
        """Places of the tracks with every word, by a column; those without a value are last."""
        found = self.matching(words) if words.strip() else range(len(self))
        rank = self.rank(sort)
        if not descending:
            return sorted(found, key=rank.__getitem__)
        return sorted(found, key=lambda place: (rank[place] == math.inf, -rank[place]))

    # --- vectors ---

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """Unit vectors (n, E) float32: of each track, the mean direction of its sections."""
        vectors = self.table.vectors
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        if len(units) == len(self):
            return units
        sums = np.zeros((len(self), units.shape[1]), np.float32)
        np.add.at(sums, [self.by_path[path] for path in self.table.paths], units)
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)

    @functools.cached_property
    def metric(self) -> Metric:
        """How vectors are compared: as the store does."""
        return self.store.metric()

    def cosine(self, first: np.ndarray, second: np.ndarray) -> float:
        """Similarity of two vectors (E,)."""
        return float(self.metric.unit(first) @ self.metric.unit(second))

    def direction(self, place: int) -> np.ndarray:
        """Unit vector (E,) float32 of one track."""
        if len(self.table) == len(self):
            # not by the table's vectors, which would copy all of them
            vector = self.table.rows["embedding"][int(self.first[place])].values.to_numpy()
            return np.asarray(vector / np.linalg.norm(vector))
        return np.asarray(self.directions[place])

    @functools.cached_property
    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Places (m,) of at most 5,000 tracks, evenly spread, and their unit vectors (m, E)."""
        places = np.linspace(0, len(self) - 1, min(SAMPLE, len(self))).astype(int)
        return places, np.array([self.direction(int(place)) for place in places])

    @functools.cached_property
    def content(self) -> str:
        """Digest of paths and vectors: what a map of them depends on."""
        digest = hashlib.blake2b("\0".join(self.paths).encode(), digest_size=16)
        for chunk in self.table.rows["embedding"].chunks:  # where they lie, not copied
            digest.update(np.ascontiguousarray(chunk.flatten().to_numpy()).data)
        return digest.hexdigest()


def folded(text: str) -> str:
    """Text in lower case without accents."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(part for part in parts if not unicodedata.combining(part))


def cache_folder() -> Path:
    """Folder of this user's caches: XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "patchifier"


def table_of(folder: str | Path) -> Path:
    """Table of a folder in the user's cache; two folders of one name have two."""
    real = os.path.realpath(folder)
    digest = hashlib.blake2b(os.fsencode(real), digest_size=6).hexdigest()
    return cache_folder() / f"{os.path.basename(real) or 'music'}-{digest}.parquet"
