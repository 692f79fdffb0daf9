"""Endpoint: which stretches of two songs sound alike, and which parts of their vectors agree."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from patchifier import audio, spectrogram
from patchifier.app.similar import agreement, weights_of
from patchifier.app.state import Served, Song
from patchifier.app.tracks import slices
from patchifier.config import RequestError
from patchifier.embed import Embedder, Embedding
from patchifier.library.search.alike import Stretches, matching_stretches
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
    """Cosine of two songs, what each part of their vectors adds to it, and similar stretches."""
    return weighted_why(served, WeightedWhyParams(params.first, params.second))


def weighted_why(served: Served, params: WeightedWhyParams) -> dict[str, Any]:
    """Cosine of two songs by some weights, what each part adds to it, and similar stretches."""
    first, second = served.song(params.first), served.song(params.second)
    served.require_embedder()
    store, weights = served.collection.store, weights_of(served, params.weights)
    metric = store.metric(weights) if store else Metric()
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda song: windows_of(served, song), (first, second))
    pairs = matching_stretches(one, other, metric=metric)
    products = metric.unit(first.vector) * metric.unit(second.vector)
    return {
        "similarity": round(float(products.sum()), 4),
        "slices": agreement(served, first.vector, [second.vector])[0],
        "shares": _of_parts(served, products, np.sum),
        "weights": _of_parts(served, _weights(metric, len(products)), np.mean),
        "stretches": [_pair(pair) for pair in pairs],
    }


def _of_parts(
    served: Served, numbers: np.ndarray, summed: Callable[[np.ndarray], Any]
) -> dict[str, float]:
    """One number for each part of a vector, of numbers (E,)."""
    return {name: round(float(summed(numbers[part])), 4) for name, part in slices(served).items()}


def _weights(metric: Metric, size: int) -> np.ndarray:
    return np.ones(size) if metric.weights is None else metric.weights


def _pair(found: Stretches) -> dict[str, float]:
    """Two stretches as JSON."""
    times = {name: round(value, 3) for name, value in asdict(found).items() if name != "score"}
    return times | {"similarity": round(found.score, 4)}


def windows_of(served: Served, song: Song) -> Embedding:
    """Vectors of windows of a song, embedded when they are first needed."""
    shared = [served.require_embedder()]
    found: Embedding = served.kept_from_worker(embed_windows, song.file(), shared=shared)
    return found


def embed_windows(embedder: Embedder, path: str) -> Embedding:
    """Embed windows of a file."""
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
