"""Encoders to compare, with one interface: clips of a cache in, features (n, E) out.

===================  =======  ====================================================================================
spec                 size     what
===================  =======  ====================================================================================
mel-stats            2 M      mean and deviation over time of each mel band: the model's own input, no model
mfcc                 120      mean and deviation of 20 MFCC and their first and second differences (JukeMIR)
chroma               72       the same of 12 constant-Q chroma (JukeMIR)
handcrafted          192+2M   the three above, concatenated
summaries            272      descriptors of windows, without learning
random               E        the same architecture with random weights, batch-norm statistics calibrated
MODEL                E        a model of this package: a folder, a bundled one's name, or hf://owner/name
features:DIR         any      files with one vector for each clip, from any other program
===================  =======  ====================================================================================
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchifier import hub, weights
from patchifier.cache import Cache
from patchifier.config import Config, RequestError
from patchifier.evaluate.encoders import features, handmade, models
from patchifier.evaluate.encoders.handmade import chroma, handcrafted, mel_stats, mfcc
from patchifier.evaluate.encoders.interface import (
    Encode,
    Encoder,
    EncoderOptions,
    each_clip,
    each_waveform,
)
from patchifier.evaluate.encoders.models import (
    CALIBRATION_CLIPS,
    as_encoder,
    calibrate,
    random_checkpoint,
)
from patchifier.evaluate.encoders.store import cached

__all__ = [
    "CALIBRATION_CLIPS",
    "ENCODERS",
    "ROWS",
    "Encode",
    "Encoder",
    "Row",
    "as_encoder",
    "cached",
    "calibrate",
    "chroma",
    "each_clip",
    "each_waveform",
    "encoders",
    "handcrafted",
    "mel_stats",
    "mfcc",
    "random_checkpoint",
    "specs",
]

ENCODERS: dict[str, Encode] = {
    "mel-stats": mel_stats,
    "mfcc": mfcc,
}  # those that the demo shows beside its model


@dataclass(frozen=True)
class Row:
    """One kind of encoder, by the word that its spec starts with.

    Parameters
    ----------
    takes : str
        Form of the argument after the colon, for messages; in brackets if it is optional, "" if there is none.
    what : str
        One line for help texts.
    build : callable
        Takes the whole spec (the encoder's name), the argument and the options; returns encoders.
    """

    takes: str
    what: str
    build: Callable[[str, str, EncoderOptions], list[Encoder]]


ROWS = {
    "mel-stats": Row("", "mean and deviation of each mel band", handmade.build(mel_stats)),
    "mfcc": Row("", "MFCC statistics (120)", handmade.build(mfcc, packages=["librosa"])),
    "chroma": Row("", "chroma statistics (72)", handmade.build(chroma, packages=["librosa"])),
    "handcrafted": Row(
        "", "MFCC, chroma and mel statistics", handmade.build(handcrafted, packages=["librosa"])
    ),
    "summaries": Row(
        "", "descriptors of windows, nothing learnt (272)", handmade.build(handmade.summaries)
    ),
    "random": Row(
        "[SEED or MODEL]",
        "random weights, calibrated: five seeds, or one; of the paper's architecture, or a model's",
        models.random,
    ),
    "model": Row(
        "MODEL[@POOLING]",
        "a model of this package; its folder or its name alone will do",
        models.trained,
    ),
    "features": Row("DIR", "a folder with one .npy or .npz file for each clip", features.folder),
}


def encoders(
    spec: str,
    *,
    data: Cache | None = None,
    train: Sequence[int] | None = None,
    config: Config | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> list[Encoder]:
    """Make the encoders of a spec: five of one name for "random", of which a comparison shows the mean, else one.

    Parameters
    ----------
    spec : str
        A word of :data:`ROWS`, with ``:`` and an argument where it takes one; or a model's folder or name. It is the encoder's name.
    data : Cache
        The clips that will be encoded. Needed by "random"; for the others, what does not fit is found before anything is computed.
    train : sequence of int
        Training clips for the calibration of random weights, without their labels; by default those of :func:`patchifier.datasets.splits.partition`.
    config : Config
        Architecture of random weights; the paper's for the log-mels of the cache by default.
    seed : int
        First of the five seeds.
    device : str
        Where models compute, for example "cpu" or "cuda".

    Returns
    -------
    list of Encoder

    Raises
    ------
    RequestError
        If there is no such kind of encoder, or what it names cannot be used.
    """
    word, colon, argument = spec.partition(":")
    if word not in ROWS:
        if not _is_path(spec):
            raise RequestError(
                f"{spec!r} is no encoder, expected a model folder, {', '.join(weights.names()) or 'a bundled model'}, or one of {', '.join(specs())}."
            )
        word, colon, argument = "model", ":", spec
    row = ROWS[word]
    if bool(argument) < (bool(row.takes) and not row.takes.startswith("[")) or bool(colon) > bool(
        argument and row.takes
    ):
        raise RequestError(f"{spec!r} is no encoder, expected {_spelled(word, row)} ({row.what}).")
    return row.build(spec, argument, EncoderOptions(data, train, config, seed, device))


def _is_path(spec: str) -> bool:
    return (
        spec.startswith(hub.PREFIX)
        or spec.partition("@")[0] in weights.names()
        or Path(spec).is_dir()
        or Path(spec.rpartition("@")[0] or ".").joinpath("config.json").is_file()
    )


def specs() -> list[str]:
    """How each kind of encoder is written: "mfcc", "features:DIR" and so on."""
    return [_spelled(word, row) for word, row in ROWS.items()]


def _spelled(word: str, row: Row) -> str:
    optional = row.takes.startswith("[")
    return (
        word if not row.takes else f"{word}[:{row.takes[1:]}" if optional else f"{word}:{row.takes}"
    )
