"""Endpoint: which stretches of two songs sound alike, and which parts of their vectors agree."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from patchifier import audio, jobs, spectrogram
from patchifier.app.similar import agreement, weights_of
from patchifier.app.state import Served, Song
from patchifier.app.tracks import slices
from patchifier.config import RequestError
from patchifier.embed import Embedder, Embedding
from patchifier.library.search.alike import Stretches, closer_than, matching_stretches
from patchifier.library.search.metric import Metric

WINDOW_S = 10.0
LONGEST_S = 1200.0  # what lies behind it is not compared


@dataclass(frozen=True)
class WhyParams:
    """Two songs."""

    first: str
    second: str

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise RequestError("first and second are the same song, expected two songs.")


@dataclass(frozen=True)
class WeightedWhyParams(WhyParams):
    """Two songs, and the weights of the parts of the vector, 0 to 4, as of a search."""

    weights: dict[str, float] = field(default_factory=dict)


def why(served: Served, params: WhyParams) -> dict[str, Any]:
    """Cosine of two songs, how near each part of their vectors is, and similar stretches."""
    return weighted_why(served, WeightedWhyParams(params.first, params.second))


def weighted_why(served: Served, params: WeightedWhyParams) -> dict[str, Any]:
    """Cosine of two songs by some weights, how near each part is, and similar stretches."""
    first, second = served.song(params.first), served.song(params.second)
    served.require_embedder()
    store, weights = served.collection.store, weights_of(served, params.weights)
    metric = store.metric(weights) if store else Metric()
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda song: windows_of(served, song), (first, second))
    pairs = matching_stretches(one, other, metric=metric)
    units = metric.unit(np.stack([first.vector, second.vector]))  # (2, E)
    products = units[0] * units[1]
    return {
        "similarity": round(float(products.sum()), 4),
        "slices": agreement(served, first.vector, [second.vector])[0],
        "shares": _of_parts(served, products, np.sum),
        "counts": _of_parts(served, units, _length),
        "weights": _of_parts(served, _weights(metric, len(products)), np.mean),
        **_standing(served, params, metric),
        "stretches": [_pair(pair) for pair in pairs],
    }


def _standing(served: Served, params: WhyParams, metric: Metric) -> dict[str, Any]:
    """Share of the other songs that are less like the first song than the second is.

    By the metric, and by each part; None and nothing where there is no other song.
    """
    first, second = (served.song(one).vector for one in (params.first, params.second))
    places, vectors = served.collection.sample
    pair = [served.collection.number.get(one, -1) for one in (params.first, params.second)]
    others = vectors[~np.isin(places, pair)]
    if not len(others):
        return {"closer_than": None, "slices_closer_than": {}}
    parts = closer_than(first, second, others, slices(served))
    first, second, others = metric.unit(first), metric.unit(second), metric.unit(others)
    whole = closer_than(first, second, others, {"": slice(None)})
    return {
        "closer_than": round(whole[""], 4),
        "slices_closer_than": {name: round(share, 4) for name, share in parts.items()},
    }


def _length(pair: np.ndarray) -> float:
    """Product of the lengths of two vectors (2, k): what their cosine counts by."""
    return float(np.linalg.norm(pair, axis=1).prod())


def _of_parts(
    served: Served, numbers: np.ndarray, summed: Callable[[np.ndarray], Any]
) -> dict[str, float]:
    """One number for each part of a vector, of numbers (..., E)."""
    found = {name: summed(numbers[..., part]) for name, part in slices(served).items()}
    return {name: round(float(value), 4) for name, value in found.items()}


def _weights(metric: Metric, size: int) -> np.ndarray:
    return np.ones(size) if metric.weights is None else metric.weights


def _pair(found: Stretches) -> dict[str, float]:
    """Two stretches as JSON."""
    times = {name: round(value, 3) for name, value in asdict(found).items() if name != "score"}
    return times | {"similarity": round(found.score, 4)}


def windows_of(served: Served, song: Song) -> Embedding:
    """Vectors of windows of a song, embedded when they are first needed."""
    path, embedder = song.file(), served.require_embedder()
    found: Embedding = served.kept.get(
        ("windows", path), lambda: served.in_worker(embed_windows, path, shared=embedder)
    )
    return found


def embed_windows(embedder: Embedder, paths: Sequence[str]) -> list[Embedding | str]:
    """Embed windows of files of :func:`patchifier.jobs.run`, or give the reason why not."""
    return [jobs.attempt(path, _embed, embedder, path) for path in paths]


def _embed(embedder: Embedder, path: str) -> Embedding:
    config = embedder.config.spectrogram
    pieces = spectrogram.stream_log_mel(_beginning(path, config.sample_rate), config)
    return embedder.embed_windows(pieces, window_s=WINDOW_S)


def _beginning(path: str, rate: int) -> Iterator[np.ndarray]:
    left = int(LONGEST_S * rate)
    for block in audio.blocks(path, sample_rate=rate):
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return
