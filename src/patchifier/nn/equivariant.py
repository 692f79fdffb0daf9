"""Estimators of tonic and tempo, learnt without labels, and descriptors aligned to them.

A transposed chroma is a rolled chroma. A tempogram of slower music is shifted along the log lag.
Convolutions along these axes are equivariant: their output moves with their input. An estimator is
trained to be consistent, between the halves of a clip and between tempi of known ratio, and
confident, as PESTO (Riou et al. 2023) learns pitch, STONE (Kong et al. 2024) keys and Quinton
(2022) tempo. Its origin is arbitrary, and the same for all music. Descriptors aligned to it depend
no longer on key or tempo.

Shapes: B clips or windows, N patches, M rows, T frames in a patch, K bins of an axis, F frames of a
clip.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from patchifier.config import Config, RequestError
from patchifier.nn.descriptors import (
    DESCRIPTORS,
    LAGS,
    LAGS_S,
    chroma_statistics,
    concat_frames,
    onset_strength,
    require_descriptor,
    tempogram_of,
)
from patchifier.nn.shared_patches import Patches

OCTAVE = 36  # bins of a tonic: thirds of a semitone, as pitch bands
CHANNELS = 32
STRETCHES = (0.74, 0.89, 1.16, 1.38)  # factors of time, by which tempi have to differ
LAG_STEP = math.log(LAGS_S[1] / LAGS_S[0]) / (LAGS - 1)  # log seconds between bins of a tempo
LEAST_PROBABILITY = 1e-4  # in logarithms, so that a confident error has a finite cost
LEAST_CHROMA = 1e-3  # of the mean chroma, which is a divisor
SMOOTHING = 0.1  # of targets, by the uniform distribution: a confident estimator keeps its gradient


OverProcesses = Callable[[Tensor], Tensor]


def identity(mean: Tensor) -> Tensor:
    """Mean over processes where there is one process."""
    return mean


# An estimator gives probabilities (B, K) of a position on an axis from a descriptor (B, size);
# `align` shifts the descriptor to it, the mean over probabilities. `consistency_loss` of clips
# (B, N, M, T) is in units of that of a uniform guess; `over_processes` turns a mean over these
# clips into one over those of all processes.


class TonicEstimator(nn.Module):
    """Probabilities of 36 tonics, by circular convolutions over pitch classes."""

    descriptor = "harmony"
    bins = OCTAVE

    def __init__(self) -> None:
        super().__init__()
        first, second, last = (
            nn.Conv1d(before, after, OCTAVE - 1, padding=OCTAVE // 2 - 1, padding_mode="circular")
            for before, after in ((2, CHANNELS), (CHANNELS, CHANNELS), (CHANNELS, 1))
        )
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def forward(self, values: Tensor) -> Tensor:
        """Probabilities (B, 36) from mean and deviation of a chroma (B, 72)."""
        return self.layers(self.normalised(values))[:, 0].softmax(-1)

    def normalised(self, values: Tensor) -> Tensor:
        """Mean and deviation (B, 2, 36) over the mean chroma, less their averages, 1 and 1/2."""
        both = values.unflatten(-1, (2, OCTAVE))
        level = both[:, :1].mean(-1, keepdim=True).clamp(min=LEAST_CHROMA)
        return both / level - 1 / torch.arange(1, 3, device=both.device)[:, None]

    def align(self, values: Tensor, probabilities: Tensor) -> Tensor:
        """Mean and deviation of chroma (B, 72), tonic first."""
        rolled = shifted(values.unflatten(-1, (2, OCTAVE)), OCTAVE)  # (B, 2, 36 tonics, 36)
        return (probabilities[:, None, None] @ rolled).flatten(1)

    def consistency_loss(
        self,
        patches: Tensor,
        valid: Tensor,
        config: Config,
        over_processes: OverProcesses = identity,
    ) -> Tensor:
        """Cross entropy between the halves of each clip; odd numbers of patches overlap by one."""
        number, count = valid.cumsum(1), valid.sum(1, keepdim=True)
        halves = valid & (number <= (count + 1) // 2), valid & (number > count // 2)
        one, other = (self(chroma_statistics(patches, half, config)) for half in halves)
        return cross_entropy(one, other)


class TempoEstimator(nn.Module):
    """Probabilities of 64 beat lags, by convolutions over the log lag."""

    descriptor = "pulse"
    bins = LAGS

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(2, CHANNELS, 15, padding=7),
            nn.ReLU(),
            nn.Conv1d(CHANNELS, CHANNELS, 1),
            nn.ReLU(),
            nn.Conv1d(CHANNELS, 1, 2 * LAGS - 1, padding=LAGS - 1),
        )

    def forward(self, values: Tensor) -> Tensor:
        """Probabilities (B, 64) from a tempogram (B, 128)."""
        return self.layers(values.unflatten(-1, (2, LAGS)))[:, 0].softmax(-1)

    def align(self, values: Tensor, probabilities: Tensor) -> Tensor:
        """Tempogram (B, 128) at fractions and multiples of the beat, from a quarter to four."""
        padded = nn.functional.pad(values.unflatten(-1, (2, LAGS)), (LAGS // 2, LAGS // 2))
        moved = shifted(padded, LAGS)  # (B, 2, 64 beats, 64): the beat in the middle
        return (probabilities[:, None, None] @ moved).flatten(1)

    def consistency_loss(
        self,
        patches: Tensor,
        valid: Tensor,
        config: Config,
        over_processes: OverProcesses = identity,
    ) -> Tensor:
        """Cross entropy with the clip stretched in time, plus the negative entropy over clips."""
        strength = onset_strength(patches, config)
        strength, valid_frames = concat_frames(strength, valid, patches.shape[3])
        plain = self(tempogram_of(strength, valid_frames, config))  # (B, 64)
        stretched = []
        for factor in STRETCHES:
            inside = (stretch(valid_frames, factor) > 0.5).to(valid_frames.dtype)
            stretched.append(self(tempogram_of(stretch(strength, factor), inside, config)))
        terms = []
        for factor, other in zip(STRETCHES, stretched, strict=True):
            shift = shift_matrix(math.log(factor) / LAG_STEP, like=plain)
            terms.append(
                cross_entropy(plain @ shift, other) + cross_entropy(plain, other @ shift.T)
            )
        used = over_processes(torch.stack([plain, *stretched]).mean((0, 1)))  # (64,)
        entropy = -(used * (used + LEAST_PROBABILITY).log()).sum() / math.log(LAGS)
        return torch.stack(terms).mean() / 2 + (1 - entropy) / 2


Estimator = TonicEstimator | TempoEstimator
ESTIMATORS: dict[str, type[Estimator]] = {"tonic": TonicEstimator, "tempo": TempoEstimator}


@dataclass(frozen=True)
class Estimate:
    """What an embedding holds of an estimator: its probabilities, or the aligned descriptor."""

    by: Literal["tonic", "tempo"]
    aligned: bool
    what: str


ESTIMATES = {  # by the names that configs and tables store
    "tonic": Estimate("tonic", False, "square root of the probabilities of 36 tonics"),
    "degrees": Estimate("tonic", True, "key-aligned chroma of the clip"),
    "tempo": Estimate("tempo", False, "square root of the probabilities of 64 beat lags"),
    "metre": Estimate("tempo", True, "beat-aligned tempogram"),
}


def require_estimators(names: Sequence[str], config: Config, *, field: str) -> None:
    """Check that the model has the estimators of these names, and the bands that they need."""
    for name in names:
        by = ESTIMATES[name].by if name in ESTIMATES else name if name in ESTIMATORS else None
        if by is not None and by not in config.model.estimators:
            raise RequestError(
                f"{field} holds {name!r}, but model.estimators is "
                f"{list(config.model.estimators)}: add {by!r} there, and train it."
            )
        if by == "tonic" and config.spectrogram.n_pitch_bands < OCTAVE:
            raise RequestError(
                f"{field} holds {name!r}, which needs an octave of pitch bands or more: "
                f"spectrogram.n_pitch_bands is {config.spectrogram.n_pitch_bands}, not {OCTAVE}."
            )
        if by is not None:
            what = f"{name!r} in {field}, made from"
            require_descriptor(ESTIMATORS[by].descriptor, config, what=what)


def estimator_of(estimators: nn.ModuleDict | None, name: str) -> Estimator:
    """Return an estimator of a model."""
    found = None if estimators is None else estimators[name]
    assert isinstance(found, Estimator)  # config was checked
    return found


def summarise(
    names: Sequence[str],
    estimators: nn.ModuleDict | None,
    patches: Patches,
    valid: Tensor,
    config: Config,
) -> list[Tensor]:
    """Descriptors and estimates (B, size) of clips (B, N, M, T), in the order of their names.

    `valid` is as in :mod:`patchifier.nn.descriptors`.
    """
    exact = patches.double()

    @functools.cache
    def described(name: str) -> Tensor:
        return DESCRIPTORS[name].values(exact, valid, config)

    @functools.cache
    def estimated(by: str) -> tuple[Estimator, Tensor, Tensor]:
        estimator = estimator_of(estimators, by)
        values = described(estimator.descriptor).to(patches.dtype)
        return estimator, values, estimator(values)

    def summary(name: str) -> Tensor:
        if name not in ESTIMATES:
            return described(name)
        estimator, values, probabilities = estimated(ESTIMATES[name].by)
        if ESTIMATES[name].aligned:
            return estimator.align(values, probabilities)
        return probabilities.sqrt()

    return [summary(name) for name in names]


def shifted(values: Tensor, count: int) -> Tensor:
    """First `count` of values (..., K) rolled by 0, 1, ..., a row each: (..., count, count).

    Values are repeated and cut into rows that are longer by one: ONNX Runtime is slow at gathering
    single numbers.
    """
    K = values.shape[-1]
    repeated = values.repeat(*[1] * (values.dim() - 1), count + 1)  # (..., K (count + 1))
    rows = repeated[..., : count * (K + 1)].unflatten(-1, (count, K + 1))
    return rows[..., :count]


def cross_entropy(one: Tensor, other: Tensor) -> Tensor:
    """Mean cross entropy of two distributions (B, K), both ways, relative to that of a guess."""
    K = one.shape[-1]

    def of(target: Tensor, probabilities: Tensor) -> Tensor:
        smooth = (1 - SMOOTHING) * target + SMOOTHING / K
        return -(smooth * (probabilities + LEAST_PROBABILITY).log()).sum(-1).mean()

    return (of(one, other) + of(other, one)) / 2 / math.log(K)


def shift_matrix(bins: float, *, like: Tensor) -> Tensor:
    """Matrix (K, K) that shifts distributions (B, K) up by `bins`, with linear interpolation.

    What is shifted beyond the ends is lost.
    """
    order = torch.arange(like.shape[-1], device=like.device)
    return (1 - (order - order[:, None] - bins).abs()).clamp(min=0).to(like.dtype)


def stretch(values: Tensor, factor: float) -> Tensor:
    """Stretch values (B, C, F) in time by a factor, with linear interpolation."""
    F = values.shape[-1]
    position = (torch.arange(round(F * factor), device=values.device) / factor).clamp(max=F - 1)
    below = position.long()
    above, weight = (below + 1).clamp(max=F - 1), (position - below).to(values.dtype)
    return torch.lerp(values[..., below], values[..., above], weight)
