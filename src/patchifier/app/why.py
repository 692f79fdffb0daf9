"""Endpoint: which stretches of two songs sound alike, and which parts of their vectors agree."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from patchifier import audio, jobs, spectrogram
from patchifier.app.similar import agreement
from patchifier.app.state import Served, Song
from patchifier.config import RequestError
from patchifier.embed import Embedder, Embedding
from patchifier.library.search.alike import Stretches, matching_stretches

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


def why(served: Served, params: WhyParams) -> dict[str, Any]:
    """Cosine of two songs, of each part of their vectors, and their most similar stretches."""
    first, second = served.song(params.first), served.song(params.second)
    served.require_embedder()
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda song: windows_of(served, song), (first, second))
    pairs = matching_stretches(one, other, metric=served.collection.metric)
    return {
        "similarity": round(served.collection.cosine(first.vector, second.vector), 4),
        "slices": agreement(served, first.vector, [second.vector])[0],
        "stretches": [_pair(pair) for pair in pairs],
    }


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
