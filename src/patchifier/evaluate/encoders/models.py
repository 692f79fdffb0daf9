"""Patchifiers as encoders: trained ones from a folder, and random ones that are a fair opponent."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import torch
from torch import nn

from patchifier import audio, checkpoint, hub, spectrogram, weights
from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, EmbedConfig, RequestError, SpectrogramConfig, update
from patchifier.datasets.splits import Splits, evenly
from patchifier.evaluate.encoders.interface import Encoder, EncoderOptions
from patchifier.io import Progress, silent
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Patchifier
from patchifier.train.whitening import WHITENING_CLIPS, fit_whitening

POOLINGS = get_args(get_type_hints(EmbedConfig)["pooling"])
CALIBRATION_CLIPS = 64  # 1,600 patches: batch statistics are then known to about 1 %
SEEDS = 5
CHUNK = 64  # clips in memory at once: 20 MB of log-mels of 29 s


def random_checkpoint(
    config: Config, data: Cache, indices: Sequence[int], *, seed: int
) -> Checkpoint:
    """Return the same architecture with random weights, calibrated on training clips.

    A fair opponent of a trained one.

    Parameters
    ----------
    config : Config
        The trained model's.
    data : Cache
        Where the clips are.
    indices : sequence of int
        Training clips, for the batch-norm statistics.
    seed : int
        Of the weights.

    Examples
    --------
    >>> data = Cache("demo-cache")
    >>> config = update(Config(), {"model": {"n_layers": 1}})
    >>> made = random_checkpoint(config, data, [0, 1, 2], seed=0)
    >>> as_encoder("random", made).encode(data, [0]).shape
    (1, 512)
    """
    model = accelerate(Patchifier(config, seed=seed))
    length, silence = config.model.patch_frames, config.spectrogram.silence
    chosen = evenly(np.asarray(indices), CALIBRATION_CLIPS)
    cut = [
        spectrogram.cut(log_mel, length=length, tail="anchor", silence=silence)
        for log_mel in log_mels(data, config.spectrogram, chosen)
    ]
    calibrate(model, torch.from_numpy(np.concatenate(cut)))
    examples = evenly(np.asarray(indices), WHITENING_CLIPS)
    fit_whitening(model, config, log_mels(data, config.spectrogram, examples))
    return Checkpoint(model, replace(config), facts={"weights": "random, calibrated", "seed": seed})


def holds(data: Cache, config: SpectrogramConfig) -> bool:
    """Whether a cache has the log-mels that a model of these settings reads."""
    return config in (data.spectrogram, data.spectrogram.without_pitch)


def log_mels(
    data: Cache, config: SpectrogramConfig, indices: Sequence[int] | np.ndarray
) -> Iterator[np.ndarray]:
    """Log-mels (M, T) of clips for a model of these settings.

    The cache's, or, where it holds others, made anew from the clips' audio.
    """
    if holds(data, config):
        held = data.require(config)
        return (held.array(int(index)) for index in indices)
    clips = [data.clips[int(index)] for index in indices]
    waves = (
        audio.load(
            clip.path, sample_rate=config.sample_rate, start_s=clip.start_s, end_s=clip.end_s
        )
        for clip in clips
    )
    return (spectrogram.log_mel(wave, config) for wave in waves)


@torch.no_grad()
def calibrate(model: Patchifier, patches: torch.Tensor) -> None:
    """Set the extractor's batch-norm statistics to those of these patches (P, 1, M, W), exactly.

    Each layer sees all of them at once.
    """
    norms = [module for module in model.extractor.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # take the batch's statistics as they are
    model.extractor.train()
    model.extractor(patches)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def as_encoder(
    name: str, made: Checkpoint, *, seed: int | None = None, device: str = "cpu"
) -> Encoder:
    """Encoder of a model, on log-mels (:func:`log_mels`), with the settings of its config.

    Examples
    --------
    >>> encoder = as_encoder("paper", checkpoint.load("patchifier-paper"))
    >>> encoder.encode(Cache("demo-cache"), [0, 1]).shape, encoder.note
    ((2, 512), 'mean+std of layers -1')
    """
    embedder = checkpoint.embedder_of(made, device=device)

    def encode(data: Cache, indices: Sequence[int], *, progress: Progress = silent) -> np.ndarray:
        if not len(indices):
            raise RequestError(f"{name}: there are no clips to encode, expected at least one.")

        def read(first: int) -> Iterator[np.ndarray]:
            chunk = log_mels(data, made.config.spectrogram, indices[first : first + CHUNK])
            for number, log_mel in enumerate(chunk, first):
                yield log_mel
                progress(number + 1, len(indices), "")

        parts = [embedder.embed_log_mels(read(first)) for first in range(0, len(indices), CHUNK)]
        return np.concatenate(parts)

    pooling = made.config.embed.pooling
    note = f"{pooling} of layers {', '.join(map(str, made.config.embed.layers))}"
    size, identity = made.model.parameter_count(), embedder.identity
    return Encoder(name, encode, size, seed, identity, note=note, embedder=embedder)


def trained(name: str, argument: str, options: EncoderOptions) -> list[Encoder]:
    """Row "model": a model's folder or name, MODEL or MODEL@pooling."""
    model, _, pooling = argument.rpartition("@")
    # An @ also separates the revision of a hub's model.
    is_revision = hub.is_name(argument) and pooling not in POOLINGS
    if not model or Path(argument).is_dir() or is_revision:
        model, pooling = argument, ""
    folder = weights.find(model)
    made = checkpoint.load(folder)
    if pooling:
        made = replace(made, config=update(made.config, {"embed": {"pooling": pooling}}))
    return [
        replace(as_encoder(name, made, device=options.device), trained_on=folder.resolve().parent)
    ]


def random(name: str, argument: str, options: EncoderOptions) -> list[Encoder]:
    """Row "random": five seeds; one, if the argument is a seed.

    The architecture of a model, if it is a folder.
    """
    if options.data is None:
        raise RequestError(f"{name}: random weights are calibrated on clips, expected a cache.")
    one = argument.isdecimal()
    paper = Config(spectrogram=options.data.spectrogram.without_pitch)
    config = checkpoint.load(argument).config if argument and not one else options.config or paper
    seeds = [int(argument)] if one else range(options.seed, options.seed + SEEDS)
    train = options.train
    if train is None:
        train = Splits.partitioned(options.data.clips).train.tolist()
    if not len(train):
        raise RequestError(
            "random: no training clips to calibrate on, expected at least one with the split "
            "'train'."
        )
    made = []
    for number, seed in enumerate(seeds):
        options.progress(number, len(seeds), "calibration")
        made.append(random_checkpoint(config, options.data, train, seed=seed))
    options.progress(len(seeds), len(seeds), "calibration")
    return [
        as_encoder(name, each, seed=seed, device=options.device)
        for each, seed in zip(made, seeds, strict=True)
    ]
