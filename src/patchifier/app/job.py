"""The embedding of a folder while it is served: progress, cancelling, and what is done so far."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from patchifier.app.collection import Collection
from patchifier.embed import Embedder
from patchifier.jobs import BAD_ITEM, GRACE_S
from patchifier.library import sources
from patchifier.library.build import embed_library
from patchifier.library.stored import Stored, from_arrow
from patchifier.library.table import read_facts

LOOK_S = 1.0  # least time between two looks at the finished parts
LOOK_SHARE = 0.05  # most of the time that they take: all parts are read for each


class StoppedError(Exception):
    """Work in a thread was stopped."""


class Background:
    """Work in a thread, whose state the page shows; it stops where it shows its progress."""

    stopped = "cancelled"  # the state of stopped work

    def __init__(self, name: str, state: str) -> None:
        self.state, self.error, self.done, self.total = state, "", 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin, once."""
        if self._thread.ident is None:
            self.state = "running"
            self._thread.start()

    def stop(self, timeout_s: float = GRACE_S) -> None:
        """End after the file that is in work."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def work(self) -> None:
        """Do the work."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self.work()
            self.state = "done"
        except StoppedError:
            self.state = self.stopped
        except BAD_ITEM as error:
            self.state, self.error = "failed", str(error)
        except Exception as error:  # the page shows it; the thread must not end unseen
            self.state, self.error = "failed", f"{type(error).__name__}: {error}"
            raise

    def _show(self, done: int, total: int, note: str) -> None:
        if self._stop.is_set():
            raise StoppedError
        self.done, self.total = done, total


class Job(Background):
    """A job that embeds a folder in a thread, with worker processes; a table is brought up to date.

    `grown` is called with a :class:`Collection` of what is done so far, and at the end of all.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        embedder: Embedder,
        *,
        grown: Callable[[Collection], None],
        workers: int | None = None,
    ) -> None:
        super().__init__("embedding", "running")
        self.folder, self.out, self.embedder = folder, out, embedder
        self.grown, self.workers, self.current = grown, workers, ""
        self.skipped: list[tuple[str, str]] = []
        self._paths: list[str] = []
        self._parts = 0

    def report(self) -> dict[str, Any]:
        """State of the job as JSON."""
        return {
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "current": self.current,
            "n_skipped": len(self.skipped),
            "skipped": [list(one) for one in self.skipped[:1000]],
            "error": self.error,
        }

    def work(self) -> None:
        """Embed the folder; if it is stopped, finished parts stay, and a later job goes on."""
        try:
            self._embed()
        except BaseException:
            with contextlib.suppress(*BAD_ITEM):
                self._look()
            raise
        finally:
            self.current = ""

    def _embed(self) -> None:
        clips, lost = sources.find(self.folder)
        self.skipped, self.total = list(lost), len(clips)
        self._paths = [clip.path for clip in clips]
        with self._looking():
            done = embed_library(
                self.folder,
                self.out,
                embedder=self.embedder,
                changed=True,
                workers=self.workers,
                progress=self._show,
            )
        self.skipped = list(done.skipped)
        self.done = self.total
        self.grown(Collection.open(self.out, name=self.folder.name))

    def _show(self, done: int, total: int, note: str) -> None:
        super()._show(done, total, note)
        self.current = self._paths[done] if done < len(self._paths) else ""

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        """Look at the finished parts again and again in a thread, as long as this is open."""
        ended = threading.Event()

        def look() -> None:
            wait_s = LOOK_S
            while not ended.wait(wait_s):
                began_s = time.monotonic()
                with contextlib.suppress(*BAD_ITEM):  # a part that is being merged
                    self._look()
                wait_s = max(LOOK_S, (time.monotonic() - began_s) / LOOK_SHARE)

        thread = threading.Thread(target=look, name="finished parts", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self) -> None:
        """Show what is done so far, if there is more than at the last look."""
        parts = sorted(self.out.with_name(f"{self.out.name}.parts").glob("[0-9]*.parquet"))
        if len(parts) == self._parts:
            return
        # rows of a table that is brought up to date stay visible
        files = [self.out, *parts] if self.out.exists() else parts
        tables = [table for file in files for table in Stored(file).parts()]
        skipped = [(one[0], one[-1]) for part in parts for one in read_facts(part)["skipped"]]
        self.skipped = [*dict.fromkeys([*self.skipped, *skipped])]
        if tables:
            table = from_arrow(pa.concat_tables(tables), read_facts(files[0]))
            self.grown(Collection(table, name=self.folder.name, source=self.out))
        self._parts = len(parts)
