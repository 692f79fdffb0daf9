"""Encoders to compare, with one interface: clips of a cache in, features (n, E) out.

===================  =======  ======================================================================
spec                 size     what
===================  =======  ======================================================================
mel-stats            2 M      mean and deviation over time of each mel band: the model's own input,
                              no model
mfcc                 120      mean and deviation of 20 MFCC and their first and second differences
                              (JukeMIR)
chroma               72       the same of 12 constant-Q chroma (JukeMIR)
handcrafted          192+2M   the three above, concatenated
summaries            272      descriptors of windows, without learning
random               E        the same architecture with random weights, batch-norm statistics
                              calibrated; with the descriptors of the model, if it has any
MODEL                E        a model of this package: a folder, a bundled one's name, or
                              hf://owner/name
features:DIR         any      files with one vector for each clip, from any other program
===================  =======  ======================================================================
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from patchifier import hub, weights
from patchifier.cache import Cache
from patchifier.config import Config, RequestError
from patchifier.evaluate.encoders import handmade, models, store
from patchifier.evaluate.encoders.handmade import chroma, handcrafted, mel_stats, mfcc
from patchifier.evaluate.encoders.interface import (
    Encode,
    Encoder,
    EncoderOptions,
    each_clip,
    each_waveform,
    note_of,
)
from patchifier.evaluate.encoders.models import (
    CALIBRATION_CLIPS,
    as_encoder,
    calibrate,
    holds,
    random_checkpoint,
)
from patchifier.evaluate.encoders.store import cached
from patchifier.io import Progress, ProgressOf, silent, silent_of
from patchifier.nn.descriptors import DESCRIPTORS

__all__ = [
    "BUILDERS",
    "CALIBRATION_CLIPS",
    "ENCODERS",
    "Encode",
    "Encoder",
    "as_encoder",
    "cached",
    "calibrate",
    "chroma",
    "each_clip",
    "each_waveform",
    "encoders",
    "encoders_of",
    "handcrafted",
    "holds",
    "mel_stats",
    "mfcc",
    "note_of",
    "random_checkpoint",
    "specs",
]

# those that the demo shows beside its model
ENCODERS: dict[str, Encode] = {"mel-stats": mel_stats, "mfcc": mfcc}


# each takes the spec (the encoder's name), its argument, and options
BUILDERS: dict[str, Callable[[str, str, EncoderOptions], list[Encoder]]] = {
    "mel-stats": handmade.build(mel_stats),
    "mfcc": handmade.build(mfcc, packages=["librosa"]),
    "chroma": handmade.build(chroma, packages=["librosa"]),
    "handcrafted": handmade.build(handcrafted, packages=["librosa"]),
    "summaries": handmade.build(handmade.summaries),
    "random": models.random,
    "model": models.trained,
    "features": store.folder,
}
ARGUMENTS = {"random": "[:SEED or MODEL]", "model": ":MODEL[@POOLING]", "features": ":DIR"}


def encoders(
    spec: str,
    *,
    data: Cache | None = None,
    train: Sequence[int] | None = None,
    config: Config | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Encoder]:
    """Make the encoders of a spec.

    Five of one name for "random", of which a comparison shows the mean, else one.

    Parameters
    ----------
    spec : str
        A word of :data:`BUILDERS`, with ``:`` and an argument where it takes one; or a model's
        folder or name. It is the encoder's name.
    data : Cache
        The clips that will be encoded. Needed by "random"; for the others, what does not fit is
        found before anything is computed.
    train : sequence of int
        Training clips for the calibration of random weights, without their labels; by default those
        of :func:`patchifier.datasets.splits.partition`.
    config : Config
        Architecture of random weights; the paper's for the log-mels of the cache by default.
    seed : int
        First of the five seeds.
    device : str
        Where models compute, for example "cpu" or "cuda".
    progress : callable
        Called with networks of random weights that are ready, their number, and a note.

    Returns
    -------
    list of Encoder

    Raises
    ------
    RequestError
        If there is no such kind of encoder, or what it names cannot be used.

    Examples
    --------
    >>> data = Cache("demo-cache")
    >>> (encoder,) = encoders("mel-stats", data=data)
    >>> encoder.encode(data, [0, 1]).shape
    (2, 128)
    """
    word, colon, argument = spec.partition(":")
    if word not in BUILDERS:
        if not _is_path(spec):
            raise RequestError(
                f"{spec!r} is no encoder, expected a model folder, "
                f"{', '.join(weights.names()) or 'a bundled model'}, or one of "
                f"{', '.join(specs())}."
            )
        word, colon, argument = "model", ":", spec
    form = ARGUMENTS.get(word, "")
    is_missing = form.startswith(":") and not argument
    if is_missing or (colon and not (argument and form)):
        raise RequestError(f"{spec!r} is no encoder, expected {word}{form}.")
    return BUILDERS[word](
        spec, argument, EncoderOptions(data, train, config, seed, device, progress)
    )


def encoders_of(
    specs: Sequence[str], *, data: Cache, seed: int = 0, progress: ProgressOf = silent_of
) -> list[Encoder]:
    """Make the encoders of several specs, in their order.

    Random weights have the architecture of the first model among them, else the paper's; their
    `note` says which, and whether the model's descriptors are in the vector too.

    Parameters
    ----------
    specs : sequence of str
        Each as for :func:`encoders`, which also names the errors.
    data : Cache
        The clips that will be encoded.
    seed : int
        First of the five seeds of random weights.
    progress : callable
        Given a title, returns a function that shows progress.

    Returns
    -------
    list of Encoder

    Examples
    --------
    >>> data = Cache("demo-cache")
    >>> [encoder.name for encoder in encoders_of(["mel-stats", "mfcc"], data=data)]
    ['mel-stats', 'mfcc']
    """
    found: dict[str, list[Encoder]] = {}
    config, source = None, "the paper"
    for spec in sorted(specs, key=_is_random):  # models first
        shown = progress(spec) if _is_random(spec) else silent
        made = encoders(spec, data=data, config=config, seed=seed, progress=shown)
        if _is_random(spec):
            argument = spec.partition(":")[2]
            model = argument if argument and not argument.isdecimal() else source
            embedder = made[0].embedder
            held = embedder.config.embed.summaries if embedder else ()
            described = not DESCRIPTORS.keys().isdisjoint(held)  # no weight decides these
            more = ", its descriptors (formulas) included" * described
            about = f"random weights in the architecture of {model}{more}"
            made = [replace(one, note=f"{about}, {one.note}") for one in made]
        elif config is None and made[0].embedder is not None:
            config, source = made[0].embedder.config, spec
        found[spec] = made
    return [encoder for spec in specs for encoder in found[spec]]


def _is_random(spec: str) -> bool:
    return spec.partition(":")[0] == "random"


def _is_path(spec: str) -> bool:
    return (
        spec.startswith(hub.PREFIX)
        or spec.partition("@")[0] in weights.names()
        or Path(spec).is_dir()
        or Path(spec.rpartition("@")[0] or ".").joinpath("config.json").is_file()
    )


def specs() -> list[str]:
    """How each kind of encoder is written: "mfcc", "features:DIR" and so on."""
    return [f"{word}{ARGUMENTS.get(word, '')}" for word in BUILDERS]
