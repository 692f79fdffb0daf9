"""Endpoints: the library in two dimensions, made once in a process of its own, and its colours."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from starlette.responses import Response

from patchifier import jobs
from patchifier.app.collection import Collection, cache_folder
from patchifier.app.layout import Layout, first_layout, lay_out
from patchifier.app.parameters import NoParams, RefusedError
from patchifier.app.state import Served
from patchifier.app.teach_routes import labels_of
from patchifier.config import RequestError
from patchifier.io import save_array

POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("cluster", "<u2")])
VERSION = 1  # of the layout; another one is made anew


class Map:
    """The map of one collection: where it is on disk, and the process that makes it."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.points: np.ndarray | None = None
        self.first = False  # the points are those that are shown until UMAP is done
        self.error, self.method, self.started_s = "", "", 0.0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def state(self) -> str:
        """One of "missing", "running" and "done"; there may be first points while it runs."""
        if self.points is not None and not self.first:
            return "done"
        return "running" if self._thread and self._thread.is_alive() else "missing"

    def files(self) -> list[Path]:
        """Where the map may lie: beside the table, and in the user's cache."""
        name = f"map-{self.collection.content}-{VERSION}.npy"
        source = self.collection.source
        beside = [source.with_name(f"{source.stem}.{name}")] if source else []
        return [*beside, cache_folder() / name]

    def read(self) -> bool:
        """Take a map from disk; return whether there was one."""
        for file in self.files():
            with contextlib.suppress(OSError, ValueError):
                points = np.load(file, allow_pickle=False)
                if points.dtype == POINT and points.shape == (len(self.collection),):
                    self.points = points
                    return True
        return False

    def start(self) -> None:
        """Make the map in the background, if it is not made or being made."""
        if self.state == "missing":
            self.error, self.started_s = "", time.monotonic()
            self._thread = threading.Thread(target=self._make, name="map", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the process that makes the map."""
        self._stop.set()
        if self._thread:
            self._thread.join(jobs.GRACE_S)

    def report(self) -> dict[str, Any]:
        """State of the map as JSON."""
        running = self.state == "running"
        return {
            "state": self.state,
            "first": self.first,
            "progress": None,
            "seconds": round(time.monotonic() - self.started_s, 1) if running else 0.0,
            "error": self.error or None,
        }

    def _make(self) -> None:
        if self.read():
            return
        try:
            directions = self.collection.metric.unit(self.collection.directions)
            directions = directions.astype(np.float32)
            self.points, self.first = _points(first_layout(directions)), True
            found = self._in_process(directions)
        except (RequestError, OSError, MemoryError, BrokenProcessPool) as error:
            self.error = f"the map could not be made ({error or type(error).__name__})."
            return
        if found is None:
            return
        points = _points(found)
        self._write(points)
        self.points, self.first = points, False

    def _in_process(self, vectors: np.ndarray) -> Layout | None:
        """Lay out in a new process: numba compiles for long, and holds much memory."""
        with jobs.process_pool(1) as pool:
            future: Future[Layout] = pool.submit(lay_out, vectors)
            while not future.done():
                if self._stop.wait(0.2):
                    for process in list((getattr(pool, "_processes", None) or {}).values()):
                        process.terminate()
                    return None
            return future.result()

    def _write(self, points: np.ndarray) -> None:
        """Keep the map beside the table, or in the user's cache where that cannot be written."""
        for file in self.files():
            with contextlib.suppress(OSError):
                save_array(file, points)
                return


def _points(layout: Layout) -> np.ndarray:
    points = np.zeros(len(layout.places), POINT)
    points["x"], points["y"] = layout.places.T
    points["cluster"] = layout.clusters
    return points


@dataclass(frozen=True)
class ColoursParams:
    """What the points are coloured by: cluster, artist, album, genre, year or label:NAME."""

    by: str = "cluster"


def _map(served: Served) -> Map:
    """The map of what is served now; another collection has another one."""
    with served.one_at_a_time("map"):
        if served.map is None or served.map.collection is not served.collection:
            if served.map:
                served.map.stop()
            served.map = Map(served.collection)
            served.map.read()
        return served.map


def state(served: Served, params: NoParams) -> dict[str, Any]:
    """Whether the map is made."""
    return _map(served).report()


def start(served: Served, params: NoParams) -> dict[str, Any]:
    """Make the map in the background, if there is none."""
    if not len(served.collection):
        raise RefusedError(409, "this library is empty, so there is no map: embed some music.")
    if served.job and served.job.state == "running":
        raise RefusedError(409, "the library still grows: the map can be made when it is embedded.")
    found = _map(served)
    found.start()
    return found.report()


def _made(served: Served) -> np.ndarray:
    points = _map(served).points
    if points is None:
        raise RefusedError(409, "the map is not made yet: start it with POST /api/map.")
    return points


def points(served: Served, params: NoParams) -> Response:
    """The points: their number (uint32), then x, y (float32) and cluster (uint16) of each."""
    found = _made(served)
    body = np.uint32(len(found)).astype("<u4").tobytes() + found.tobytes()
    return Response(body, media_type="application/octet-stream")


def ids(served: Served, params: NoParams) -> list[str]:
    """Ids of the points, in their order."""
    return served.collection.ids


def colours(served: Served, params: ColoursParams) -> dict[str, Any]:
    """A value for each point to be coloured by."""
    if params.by == "cluster":
        clusters = _made(served)["cluster"].tolist()
        names = [f"group {number + 1}" for number in range(max(clusters, default=-1) + 1)]
        if _map(served).first:
            names = ["no groups yet"]
        return {"kind": "category", "values": clusters, "names": names}
    if params.by == "year":
        return {"kind": "number", "values": served.collection.column("year"), "names": []}
    if params.by in ("artist", "album", "genre"):
        return _categories(served.collection.column(params.by))
    if params.by.startswith("label:"):
        return _categories([label for label, _ in labels_of(served, params.by[len("label:") :])])
    raise RequestError(
        f"by is {params.by[:40]!r}, expected cluster, artist, album, genre, year or label:NAME."
    )


def _categories(values: Sequence[str | None]) -> dict[str, Any]:
    """Categories by their number of points, the largest first."""
    counts = Counter(value for value in values if value is not None)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    number = {name: place for place, name in enumerate(names)}
    return {
        "kind": "category",
        "values": [None if value is None else number[value] for value in values],
        "names": names,
    }
