"""What one server holds: the collection, the job that makes it, uploads, and bounded work."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from patchifier import jobs
from patchifier.app.collection import TAGS, Collection
from patchifier.app.job import Job
from patchifier.app.parameters import RefusedError
from patchifier.embed import Embedder

if TYPE_CHECKING:
    from patchifier.app.duplicates import Check
    from patchifier.app.map import Map
    from patchifier.heads import Head

AT_ONCE = 2  # decodings in worker processes at one time
WAIT_S = 20.0  # for one of them
RETRY_S = 5
KEPT = 100  # results of looking into songs: 30 MB


@dataclass(frozen=True)
class UploadLimits:
    """Limits of an upload."""

    bytes_mb: float = 200.0
    length_s: float = 1200.0
    receive_s: float = 120.0  # longest time in which it arrives
    embed_s: float = 120.0  # longest time in which it is embedded


@dataclass(frozen=True)
class InTable:
    """A track of a table; its `query` is what a search takes."""

    collection: Collection
    place: int

    @property
    def name(self) -> str:
        """Path of the file as the table has it."""
        return self.collection.paths[self.place]

    query = name

    @property
    def vector(self) -> np.ndarray:
        """Unit vector (E,) float32."""
        return self.collection.direction(self.place)

    def track(self) -> dict[str, Any]:
        """As JSON."""
        return self.collection.track(self.place)

    def file(self) -> str:
        """Real path; refused with 410 if it is missing."""
        return self.collection.file(self.place)


@dataclass(frozen=True)
class Upload:
    """A file that was uploaded, kept while the server runs."""

    id: str
    path: Path
    name: str
    vector: np.ndarray  # (E,) float32, of length 1
    length_s: float
    tags: Mapping[str, Any]

    @property
    def query(self) -> np.ndarray:
        """The vector."""
        return self.vector

    def track(self) -> dict[str, Any]:
        """As JSON."""
        tags = {name: self.tags.get(name) for name in TAGS}
        return {
            "id": self.id,
            "path": self.name,
            **tags,
            "title": tags["title"] or Path(self.name).stem,
            "duration_s": self.length_s,
            "start_s": 0.0,
            "missing": False,
        }

    def file(self) -> str:
        """Path of the kept copy."""
        return str(self.path)


Song = InTable | Upload


class Kept:
    """Results of slow work by key, the last `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._found: dict[Any, Any] = {}
        self._lock, self._locks = threading.Lock(), dict[Any, threading.Lock]()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for a key; the same is not made twice at one time."""
        with self._lock:
            own = self._locks.setdefault(key, threading.Lock())
        with own:
            with self._lock:
                found = self._found.get(key)
            if found is None:
                found = make()
                self._keep(key, found)
        return found

    def _keep(self, key: Any, found: Any) -> None:
        with self._lock:
            self._found[key] = found
            for old in list(self._found)[: -self.most]:
                del self._found[old]
                self._locks.pop(old, None)


class Served:
    """Everything that the endpoints of one server share."""

    def __init__(self, collection: Collection, *, limits: UploadLimits | None = None) -> None:
        self.collection, self.limits = collection, limits or UploadLimits()
        self.embedder: Embedder | None = None  # made the table; unknown, nothing can be embedded
        self.model, self.arriving = "", 0  # its name; uploads that arrive now
        self.job: Job | None = None
        self._temporary = TemporaryDirectory(prefix="patchifier-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._locks: dict[str, threading.Lock] = {}
        self.uploads: dict[str, Upload] = {}
        self.map: Map | None = None
        self.check: Check | None = None
        self.heads: dict[str, Head] = {}  # taught here or read from disk, by name
        self.given: dict[str, dict[str, str]] = {}  # label of each id, by a head that it taught
        self.listed: Sequence[tuple[str, str]] = ()  # files that were skipped, and why
        self.kept = Kept(KEPT)

    def close(self) -> None:
        """End the job and remove temporary files."""
        for running in (self.job, self.map, self.check):
            if running:
                running.stop()
        self._temporary.cleanup()

    @property
    def message(self) -> str:
        """Why there is nothing to listen to; empty if there is, or may soon be."""
        if len(self.collection) or (self.job and self.job.state == "running"):
            return ""
        return (self.job and self.job.error) or "this library is empty: embed some music."

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """Paths and reasons of the files that are not in the library."""
        return self.job.skipped if self.job else self.listed

    def require_embedder(self) -> Embedder:
        """Return the model that made the table, or say that it is not known."""
        if self.embedder is None:
            raise RefusedError(
                409,
                "the model that made this table is not loaded, so no sound can be embedded: start "
                "the server with --model MODEL, the one that made the table.",
            )
        return self.embedder

    def song(self, one: str) -> Song:
        """The track or the upload of an id; refused with 404 if there is none."""
        if one in self.uploads:
            return self.uploads[one]
        if one.startswith("upload-"):
            raise RefusedError(404, "this upload is not kept any more: upload the file again.")
        return InTable(self.collection, self.collection.find(one))

    def one_at_a_time(self, what: str) -> threading.Lock:
        """Lock of a thing that is made once and then kept."""
        return self._locks.setdefault(what, threading.Lock())

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one of few places for heavy work; refused with 429 if none becomes free."""
        if not self._places.acquire(timeout=WAIT_S):
            raise RefusedError(
                429,
                "the server is busy with other files: try again in a few seconds.",
                retry_s=RETRY_S,
            )
        try:
            yield
        finally:
            self._places.release()

    def in_worker(
        self, work: Callable[..., Any], path: str, *arguments: Any, shared: Sequence[Any] = ()
    ) -> Any:
        """Result of `work(*shared, path, *arguments)` from a process that may die.

        It works within the limits of a file; refused with 422 if the file cannot be read.
        """
        task = _Task(work, path, arguments)
        with self.turn():
            (found,) = jobs.run(_do, [[task]], workers=1, shared=shared)
        if isinstance(found, str):
            raise RefusedError(422, found)
        return found

    def kept_from_worker(
        self, work: Callable[..., Any], path: str, *arguments: Any, shared: Sequence[Any] = ()
    ) -> Any:
        """As :meth:`in_worker`; the last results are kept."""
        key = (work.__name__, path, *arguments)
        return self.kept.get(key, lambda: self.in_worker(work, path, *arguments, shared=shared))


@dataclass(frozen=True)
class _Task:
    work: Callable[..., Any]
    path: str
    arguments: tuple[Any, ...]


def _do(shared: Sequence[Any], tasks: Sequence[_Task]) -> list[Any]:
    """Do tasks of :func:`patchifier.jobs.run`; the reason why not, where one cannot be done."""
    return [
        jobs.attempt(task.path, task.work, *shared, task.path, *task.arguments) for task in tasks
    ]
