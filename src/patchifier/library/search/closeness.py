"""Whether what a search found is close to what was meant, and whether that has a beat."""

from collections.abc import Mapping, Sequence

import numpy as np

from patchifier.library.search.metric import direction_of
from patchifier.library.search.rows import Filter, SearchResult
from patchifier.library.search.store import EVERYTHING, Query, VectorStore, listed

# error rates of these numbers: docs/search.md, "When nothing is close"
LEAST_CLOSE = 0.2  # cosine: all of 250 tracks of two libraries have one that is nearer
NEAR = 0.8  # cosine: no noise was so near to music
NO_BEAT = 3.0  # length of the slice `texture`, in lengths of `pulse`
COMPARED = 5  # results of which one has to be close
BEATLESS = (
    "No clear beat was found, and the loudness or brightness is unusual for the music that the "
    "model learnt from. These similarities say less."
)


def not_close(
    store: VectorStore,
    query: Query | Sequence[Query],
    found: Sequence[SearchResult],
    *,
    weights: np.ndarray | None = None,
    where: Filter = EVERYTHING,
) -> str:
    """Say why none of some results is close to what was looked for, by the default weights.

    Empty if one of the first five is close. Close is what is as near as nine of ten files of the
    store have another one, and at least a cosine of 0.2. What has no clear beat and an unusual
    loudness or brightness, as noise, speech and some calm music, needs a cosine of 0.8.
    """
    if not found:
        return "No other file passes these filters."
    said = _said(store, query, found)
    if said and weights is not None:
        said = _said(store, query, store.similar(query, COMPARED, where=where))
    return said


def _said(store: VectorStore, query: Query | Sequence[Query], found: Sequence[SearchResult]) -> str:
    """Say why none of some results, of which there are some, is close."""
    likes = [store.vector_of(one) for one in listed(query)]
    metric = store.metric()
    direction = direction_of(likes, (), metric)
    others = np.stack([store.vector_of(row.path) for row in found[:COMPARED]])
    best = float((metric.unit(others) @ direction).max())
    least = max(LEAST_CLOSE, store.usual_nearness)
    if best < least:
        return (
            f"Nothing in this library is close: the nearest has a similarity of {best:.2f}, and "
            f"nine of ten files here have another one with {least:.2f} or more."
        )
    if best < NEAR and all(is_beatless(one, store.slices) for one in likes):
        return BEATLESS
    return ""


def is_beatless(vector: np.ndarray, slices: Mapping[str, int] | None) -> bool:
    """Whether a vector (E,) has little of a beat beside its loudness and brightness.

    Those of noise and speech have, and those of some calm music. Without the slices `texture` and
    `pulse` among the sizes nothing can be said, and the answer is no.
    """
    if not slices or not {"texture", "pulse"} <= slices.keys():
        return False
    ends = dict(zip(slices, np.cumsum([*slices.values()]).tolist(), strict=True))
    lengths = {
        name: float(np.linalg.norm(vector[ends[name] - slices[name] : ends[name]]))
        for name in ("texture", "pulse")
    }
    return lengths["texture"] > NO_BEAT * lengths["pulse"]
