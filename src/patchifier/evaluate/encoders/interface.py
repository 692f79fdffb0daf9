"""The one interface of everything that turns clips into features, and what its rows share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from patchifier import audio
from patchifier.cache import Cache
from patchifier.config import Config, RequestError
from patchifier.datasets.features import require_vector
from patchifier.embed import Embedder

Encode = Callable[[Cache, Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Encoder:
    """Anything that turns clips into features.

    Parameters
    ----------
    name : str
        In tables. Encoders of one name are repeated runs of one encoder, with other seeds.
    encode : callable
        Takes a cache and indices of clips, gives features (n, E) float32.
    parameters : int or None
        Learned numbers; 0 for hand-made features, None if unknown.
    seed : int or None
        Of random weights.
    identity : str or None
        Hash of all that decides the features besides the clips; without one they are never stored.
    note : str
        What a reader of the table has to know, such as the pooling.
    precomputed : bool
        The features were computed elsewhere, so they do not follow when a clip's audio is changed.
    trained_on : Path or None
        Run folder of a trained model of this package, whose ``run.json`` names the cache that it heard.
    embedder : Embedder or None
        Of a model of this package: what gives vectors of moments within a clip.
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


@dataclass(frozen=True)
class Asked:
    """What the builder of an encoder is told besides its argument; :func:`patchifier.evaluate.encoders.encoders` explains each."""

    data: Cache | None = None
    train: Sequence[int] | None = None
    config: Config | None = None
    seed: int = 0
    device: str = "cpu"


def each_clip(name: str, vector: Callable[[Cache, int], np.ndarray]) -> Encode:
    """Encode clips one by one: whatever else is in the batch, a clip's features are the same.

    Parameters
    ----------
    name : str
        For messages.
    vector : callable
        Takes a cache and an index, gives (E,).

    Returns
    -------
    callable
        As :attr:`Encoder.encode`. Raises RequestError for no clips, for vectors of several sizes or with values that are not numbers.
    """

    def encode(data: Cache, indices: Sequence[int]) -> np.ndarray:
        rows: list[np.ndarray] = []
        for index in indices:
            try:
                row = np.asarray(vector(data, int(index)), np.float32)
            except Exception as error:
                error.add_note(f"encoder {name}, clip {data.clips[index].id}")
                raise
            require_vector(name, data.clips[index].id, row, rows[0] if rows else row)
            rows.append(row)
        if not rows:
            raise RequestError(f"{name}: there are no clips to encode, expected at least one.")
        return np.stack(rows)

    return encode


def each_waveform(
    name: str, sample_rate: int, vector: Callable[[np.ndarray], np.ndarray]
) -> Encode:
    """Encode clips one by one from their audio, resampled from the file's own rate to `sample_rate` (Hz); `vector` takes (S,), gives (E,)."""

    def of_clip(data: Cache, index: int) -> np.ndarray:
        clip = data.clips[index]
        return vector(
            audio.load(clip.path, sample_rate=sample_rate, start_s=clip.start_s, end_s=clip.end_s)
        )

    return each_clip(name, of_clip)


def require_answer(name: str, vector: Callable[[np.ndarray], np.ndarray], sample_rate: int) -> None:
    """Refuse somebody else's model that fails on a second of silence, before hours of clips are heard."""
    try:
        found = vector(np.zeros(sample_rate, np.float32))
    except RequestError:
        raise
    except Exception as error:  # other people's code may raise anything
        raise RequestError(
            f"{name}: the model fails on a second of silence ({type(error).__name__}: {first_line(error)}), expected one for audio."
        ) from error
    if found.ndim != 1:
        raise RequestError(f"{name}: the model gives {found.shape} for one sound, expected (E,).")


def first_line(error: BaseException) -> str:
    """First line of another library's message."""
    return str(error).strip().partition("\n")[0]


def at_end(argument: str) -> tuple[str, str]:
    """Split "what@how" at the last @: (what, how), with "" for how if there is none."""
    what, _, how = argument.rpartition("@")
    return (what, how) if what else (how, "")


def count(module: nn.Module) -> int:
    """Learned numbers of a network."""
    return sum(parameter.numel() for parameter in module.parameters())
