"""The interface of every encoder: clips of a cache in, features (n, E) out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from patchifier import audio
from patchifier.cache import Cache
from patchifier.config import Config, RequestError
from patchifier.datasets.features import require_vector
from patchifier.embed import Embedder
from patchifier.io import Progress, silent


class Encode(Protocol):
    """Function that encodes clips."""

    def __call__(
        self, data: Cache, indices: Sequence[int], *, progress: Progress = silent
    ) -> np.ndarray:
        """Features (n, E) float32 of clips of a cache; shows clips done and clips in all."""


@dataclass(frozen=True)
class Encoder:
    """A named function from cached clips to features (n, E), with facts about it for tables.

    Parameters
    ----------
    name : str
        In tables. Encoders of one name are repeated runs of one encoder, with other seeds.
    encode : callable
        Takes a cache, indices of clips and, as `progress`, a function that shows progress; returns
        features (n, E) float32.
    parameters : int or None
        Learned numbers; 0 for hand-made features, None if unknown.
    seed : int or None
        Of random weights.
    identity : str or None
        Hash of everything besides the clips that decides the features. Without it they are not
        stored.
    note : str
        A note for tables, such as the pooling.
    precomputed : bool
        The features are read from files, so they do not change with a clip's audio.
    trained_on : Path or None
        Run folder of a trained model of this package. Its ``run.json`` names the cache of its
        training data.
    embedder : Embedder or None
        Embedder of a model of this package, for vectors of frames.

    Examples
    --------
    A feature of your own is a function:

    >>> def level(data, indices, *, progress=None):
    ...     return np.array([[data.log_mel(index).mean()] for index in indices], np.float32)
    >>> encoder = Encoder("level", level)
    >>> encoder.encode(Cache("demo-cache"), [0, 1]).shape
    (2, 1)
    """

    name: str
    encode: Encode
    parameters: int | None = 0
    seed: int | None = None
    identity: str | None = None
    note: str = ""
    precomputed: bool = False
    trained_on: Path | None = None
    embedder: Embedder | None = None


def note_of(repeated: Sequence[Encoder]) -> str:
    """Note of a row: how many draws it is the mean of, if several, and the encoder's own note."""
    mean = f"mean of {len(repeated)} draws" if len(repeated) > 1 else ""
    return ", ".join(part for part in (mean, *(one.note for one in repeated[:1])) if part)


@dataclass(frozen=True)
class EncoderOptions:
    """Options of an encoder's builder.

    :func:`patchifier.evaluate.encoders.encoders` explains each.
    """

    data: Cache | None = None
    train: Sequence[int] | None = None
    config: Config | None = None
    seed: int = 0
    device: str = "cpu"
    progress: Progress = silent


def each_clip(name: str, vector: Callable[[Cache, int], np.ndarray]) -> Encode:
    """Encode clips one by one, so a clip's features do not depend on its batch.

    `vector` maps a cache and an index to (E,). Refused: no clips, vectors of several sizes or with
    values that are not numbers.
    """

    def encode(data: Cache, indices: Sequence[int], *, progress: Progress = silent) -> np.ndarray:
        rows: list[np.ndarray] = []
        for index in indices:
            try:
                row = np.asarray(vector(data, int(index)), np.float32)
            except Exception as error:
                error.add_note(f"encoder {name}, clip {data.clips[index].id}")
                raise
            require_vector(name, data.clips[index].id, row, rows[0] if rows else row)
            rows.append(row)
            progress(len(rows), len(indices), "")
        if not rows:
            raise RequestError(f"{name}: there are no clips to encode, expected at least one.")
        return np.stack(rows)

    encode.__doc__ = f"Features (n, E) of clips of a cache, by the encoder '{name}'."
    return encode


def each_waveform(
    name: str, sample_rate: int, vector: Callable[[np.ndarray], np.ndarray]
) -> Encode:
    """Encode clips one by one from their audio at `sample_rate` Hz; `vector` maps (S,) to (E,)."""

    def of_clip(data: Cache, index: int) -> np.ndarray:
        clip = data.clips[index]
        return vector(
            audio.load(clip.path, sample_rate=sample_rate, start_s=clip.start_s, end_s=clip.end_s)
        )

    return each_clip(name, of_clip)
