"""Endpoints: songs with the same recording; vectors propose pairs, fingerprints confirm them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from patchifier.app.collection import Collection
from patchifier.app.job import Background
from patchifier.app.parameters import NoParams
from patchifier.app.similar import store_of
from patchifier.app.state import Served
from patchifier.library.search.duplicates import Duplicate, duplicates, not_checked

MOST_AT_ONCE = 10_000  # songs of which all pairs are compared while a browser waits


class Check(Background):
    """A check of a collection's pairs in a thread; its files are decoded in worker processes."""

    stopped = "missing"

    def __init__(self, collection: Collection) -> None:
        super().__init__("duplicates", "missing")
        self.collection = collection
        self.found: tuple[Duplicate, ...] = ()
        self._proposed: tuple[float, list[Duplicate]] | None = None

    def proposed(self, threshold: float) -> list[Duplicate]:
        """Pairs by their vectors alone; those of the last threshold are kept."""
        if self._proposed is None or self._proposed[0] != threshold:
            pairs = store_of(self.collection).near_duplicates(threshold)
            self._proposed = threshold, [not_checked(pair) for pair in pairs]
        return self._proposed[1]

    def work(self) -> None:
        """Decode and compare the files."""
        self.found = duplicates(store_of(self.collection), progress=self._show)

    def report(self) -> dict[str, Any]:
        """State of the check as JSON."""
        counts = {"done": self.done, "total": self.total}
        return {"state": self.state, **counts, "error": self.error or None}


@dataclass(frozen=True)
class DuplicatesParams:
    """The least cosine of a pair of songs; pairs that were confirmed are listed in any case."""

    threshold: float = 0.95


def listed(served: Served, params: DuplicatesParams) -> dict[str, Any]:
    """Pairs of songs that may be the same recording; before a check, by their vectors alone.

    `compared` is false before a check of a library that is too large to compare its vectors.
    """
    check = _check(served)
    collection, state = served.collection, check.report()  # it may end while pairs are listed
    compared = state["state"] == "done" or len(collection) <= MOST_AT_ONCE
    if state["state"] == "done":
        pairs: Iterable[Duplicate] = check.found
    elif not compared:
        pairs = ()
    else:
        with served.turn():
            pairs = check.proposed(params.threshold)
    found = [_pair(collection, pair) for pair in pairs]
    return {"pairs": found, "check": state, "compared": compared}


def start(served: Served, params: NoParams) -> dict[str, Any]:
    """Check pairs by the fingerprints of their files, in the background."""
    store_of(served.collection)
    check = _check(served, again=True)
    check.start()
    return check.report()


def _check(served: Served, *, again: bool = False) -> Check:
    """The check of what is served now; `again`, a new one after a failure."""
    with served.one_at_a_time("check"):
        check = served.check
        failed = again and check is not None and check.state == "failed"
        if check is None or check.collection is not served.collection or failed:
            if check:
                check.stop()
            served.check = Check(served.collection)
        assert served.check is not None
        return served.check


def _pair(collection: Collection, pair: Duplicate) -> dict[str, Any]:
    return {
        "first": collection.track(collection.by_path[pair.first.path]),
        "second": collection.track(collection.by_path[pair.second.path]),
        "similarity": round(pair.score, 4),
        "kind": pair.kind,
        "agreement": pair.agreement,
        "offset_s": pair.offset_s,
        "reason": pair.reason,
    }
