"""Where the tonic and the tempo of a clip lie, learnt without labels, and the clip as it is heard from there.

A chroma that is transposed is the same chroma rolled; a pulse that is slowed is the same pulse moved along the logarithm of its lag. A
network of convolutions along these axes says where something lies, and what it says moves with what it hears. All it is asked is to agree
with itself, between the halves of a clip and between tempi of which the ratio is known, and to be sure: as pitch is learnt by PESTO (Riou
et al. 2023), keys by STONE (Kong et al. 2024) and tempo by Quinton (2022). Which place it calls the tonic is its own choice, the same for
all music. What is counted from there, degrees of a scale and parts of a beat, no longer depends on key or speed.

Shapes: B clips or windows, N patches, M rows, W frames, K places, T frames of a clip.
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
    harmony,
    line,
    pulse_of,
    require_descriptor,
    size_of,
    strength,
)

OCTAVE = 36  # places of a tonic: thirds of a semitone, as pitch bands lie
CHANNELS = 32
STRETCHES = (0.74, 0.89, 1.16, 1.38)  # of time, whose tempi have to differ by as much
LAG_STEP = math.log(LAGS_S[1] / LAGS_S[0]) / (
    LAGS - 1
)  # between places of a tempo, in logarithms of seconds
LEAST_SHARE = 1e-4  # of a place: what was sure and wrong does not cost everything
LEAST_CHROMA = 1e-3  # below which nothing is heard
DOUBT = 0.1  # of a target, spread over all places: an estimator that is quite sure has nothing left to learn


Joined = Callable[[Tensor], Tensor]


def own(mean: Tensor) -> Tensor:
    """Of a process that is alone."""
    return mean


class Estimator(nn.Module):
    """Says where on an axis something lies, by a descriptor of a clip, and describes the clip as counted from there."""

    of: str  # the descriptor
    places: int  # K
    layers: nn.Sequential

    def counted(self, described: Tensor, shares: Tensor) -> Tensor:
        """Count the descriptor (B, size) from where the shares (B, K) are: (B, size), the mean over all places that it may be."""
        raise NotImplementedError

    def consistency_loss(
        self, patches: Tensor, there: Tensor, config: Config, joined: Joined = own
    ) -> Tensor:
        """How far it is from agreeing with itself on clips (B, N, M, W), in units of what a guess earns.

        `joined` makes of a mean over these clips that over the clips of all processes.
        """
        raise NotImplementedError


class TonicEstimator(Estimator):
    """Which of 36 places is the tonic: convolutions around the circle of pitch classes, for which all of them are alike."""

    of = "harmony"
    places = OCTAVE

    def __init__(self) -> None:
        super().__init__()
        first, second, last = (
            nn.Conv1d(before, after, OCTAVE - 1, padding=OCTAVE // 2 - 1, padding_mode="circular")
            for before, after in ((2, CHANNELS), (CHANNELS, CHANNELS), (CHANNELS, 1))
        )
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def forward(self, described: Tensor) -> Tensor:
        """Probability of each place, (B, 36), from mean and deviation of a chroma (B, 72)."""
        return self.layers(self.seen(described))[:, 0].softmax(-1)

    def seen(self, described: Tensor) -> Tensor:
        """The same (B, 2, 36) in units of the mean chroma's level, around what they are on average."""
        both = described.unflatten(-1, (2, OCTAVE))
        return (
            both / both[:, :1].mean(-1, keepdim=True).clamp(min=LEAST_CHROMA)
            - 1 / torch.arange(1, 3, device=both.device)[:, None]
        )  # around 1 and 1/2

    def counted(self, described: Tensor, shares: Tensor) -> Tensor:
        """Mean and deviation of chroma by degree, the tonic first: (B, 72), the mean over all that the tonic may be."""
        places = torch.arange(OCTAVE, device=shares.device)
        rolled = described.unflatten(-1, (2, OCTAVE))[
            ..., (places[:, None] + places) % OCTAVE
        ]  # (B, 2, 36 tonics, 36)
        return (shares[:, None, None] @ rolled).flatten(1)

    def consistency_loss(
        self, patches: Tensor, there: Tensor, config: Config, joined: Joined = own
    ) -> Tensor:
        """Cross entropy between what the halves of a clip say, in units of a guess's, and how unsure they are."""
        number, count = (
            there.cumsum(1),
            there.sum(1, keepdim=True),
        )  # halves of an odd number share a patch
        halves = there & (number <= (count + 1) // 2), there & (number > count // 2)
        one, other = (self(harmony(patches, half, config)) for half in halves)
        return cross_entropy(one, other)


class TempoEstimator(Estimator):
    """Which of 64 lags is the beat: convolutions along the logarithm of the lag."""

    of = "pulse"
    places = LAGS

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(2, CHANNELS, 15, padding=7),
            nn.ReLU(),
            nn.Conv1d(CHANNELS, CHANNELS, 1),
            nn.ReLU(),
            nn.Conv1d(CHANNELS, 1, 2 * LAGS - 1, padding=LAGS - 1),
        )

    def forward(self, described: Tensor) -> Tensor:
        """Probability of each lag, (B, 64), from a pulse (B, 128)."""
        return self.layers(described.unflatten(-1, (2, LAGS)))[:, 0].softmax(-1)

    def counted(self, described: Tensor, shares: Tensor) -> Tensor:
        """The pulse by parts and multiples of the beat, from a quarter to four: (B, 128), the mean over all that the beat may be."""
        lags = torch.arange(LAGS, device=shares.device)
        padded = nn.functional.pad(described.unflatten(-1, (2, LAGS)), (LAGS // 2, LAGS // 2))
        moved = padded[..., lags[:, None] + lags]  # (B, 2, 64 beats, 64): the beat in the middle
        return (shares[:, None, None] @ moved).flatten(1)

    def consistency_loss(
        self, patches: Tensor, there: Tensor, config: Config, joined: Joined = own
    ) -> Tensor:
        """Cross entropy between a clip's tempo and those of the clip stretched, and how few lags all clips share; each in units of a guess's."""
        rises, heard = line(strength(patches, config), there)  # (B, G, T), (B, 1, T)
        plain = self(pulse_of(rises, heard, config))  # (B, 64)
        stretched = [
            self(
                pulse_of(
                    stretch(rises, factor), (stretch(heard, factor) > 0.5).to(heard.dtype), config
                )
            )
            for factor in STRETCHES
        ]
        terms = []
        for factor, other in zip(STRETCHES, stretched, strict=True):
            moves = moved_by(math.log(factor) / LAG_STEP, like=plain)
            terms.append(
                cross_entropy(plain @ moves, other) + cross_entropy(plain, other @ moves.T)
            )
        used = joined(torch.stack([plain, *stretched]).mean((0, 1)))  # (64,)
        return (
            torch.stack(terms).mean() / 2
            + (1 + (used * (used + LEAST_SHARE).log()).sum() / math.log(LAGS)) / 2
        )


ESTIMATORS: dict[str, type[Estimator]] = {"tonic": TonicEstimator, "tempo": TempoEstimator}


@dataclass(frozen=True)
class Estimate:
    """What of an estimator stands in an embedding."""

    by: Literal["tonic", "tempo"]
    gives: Literal["shares", "counted"]
    what: str


ESTIMATES = {
    "tonic": Estimate(
        "tonic", "shares", "how likely each of 36 places is the tonic, as a square root"
    ),
    "degrees": Estimate("tonic", "counted", "chroma over the clip, counted from the tonic"),
    "tempo": Estimate(
        "tempo", "shares", "how likely each of 64 lags is the beat, as a square root"
    ),
    "metre": Estimate("tempo", "counted", "pulse, counted in beats"),
}


def summary_size(name: str, config: Config) -> int:
    """How many numbers a descriptor or an estimate has."""
    if name not in ESTIMATES:
        return size_of(name, config)
    estimator = ESTIMATORS[ESTIMATES[name].by]
    return estimator.places if ESTIMATES[name].gives == "shares" else size_of(estimator.of, config)


def require_estimators(names: Sequence[str], config: Config, *, field: str) -> None:
    """Refuse estimates of which the model has no estimator, and a tonic among other places than it knows.

    Raises
    ------
    RequestError
        Naming the field and the estimate.
    """
    for name in names:
        by = ESTIMATES[name].by if name in ESTIMATES else name if name in ESTIMATORS else None
        if by is not None and by not in config.model.estimators:
            raise RequestError(
                f"{field} holds {name!r}, but model.estimators is {list(config.model.estimators)}: add {by!r} there, and train it."
            )
        if by == "tonic" and (
            config.spectrogram.pitch_per_octave != OCTAVE or config.spectrogram.pitch_bands < OCTAVE
        ):
            raise RequestError(
                f"{field} holds {name!r}, which needs an octave of pitch bands or more, {OCTAVE} to each: see spectrogram.pitch_per_octave."
            )
        if by is not None:
            require_descriptor(ESTIMATORS[by].of, config, what=f"{name!r} in {field}, made from")


def estimator_of(estimators: nn.ModuleDict | None, name: str) -> Estimator:
    """One of a model's."""
    found = None if estimators is None else estimators[name]
    assert isinstance(found, Estimator)  # config was checked
    return found


def summarise(
    names: Sequence[str],
    estimators: nn.ModuleDict | None,
    patches: Tensor,
    there: Tensor,
    config: Config,
) -> list[Tensor]:
    """Descriptors and estimates of clips as a whole, (B, size) each, of patches (B, N, M, W) and what of them is there (B, N)."""
    exact = patches.double()

    @functools.cache
    def described(name: str) -> Tensor:
        return DESCRIPTORS[name].values(exact, there, config)

    @functools.cache
    def estimated(by: str) -> tuple[Estimator, Tensor, Tensor]:
        estimator = estimator_of(estimators, by)
        values = described(estimator.of).to(patches.dtype)
        return estimator, values, estimator(values)

    def summary(name: str) -> Tensor:
        if name not in ESTIMATES:
            return described(name)
        estimator, values, shares = estimated(ESTIMATES[name].by)
        return (
            shares.sqrt()
            if ESTIMATES[name].gives == "shares"
            else estimator.counted(values, shares)
        )

    return [summary(name) for name in names]


def cross_entropy(one: Tensor, other: Tensor) -> Tensor:
    """Mean of the cross entropies of two distributions (B, K), either way, over that of a guess."""
    K = one.shape[-1]

    def of(wanted: Tensor, said: Tensor) -> Tensor:
        return -(((1 - DOUBT) * wanted + DOUBT / K) * (said + LEAST_SHARE).log()).sum(-1).mean()

    return (of(one, other) + of(other, one)) / 2 / math.log(K)


def moved_by(places: float, *, like: Tensor) -> Tensor:
    """Matrix (K, K) that moves distributions (B, K) up by a number of places, between which it interpolates; what leaves is gone."""
    order = torch.arange(like.shape[-1], device=like.device)
    return (1 - (order - order[:, None] - places).abs()).clamp(min=0).to(like.dtype)


def stretch(values: Tensor, factor: float) -> Tensor:
    """Values (B, C, T) that last longer by a factor: (B, C, T'), interpolated."""
    T = values.shape[-1]
    places = (torch.arange(round(T * factor), device=values.device) / factor).clamp(max=T - 1)
    below = places.long()
    return torch.lerp(
        values[..., below],
        values[..., (below + 1).clamp(max=T - 1)],
        (places - below).to(values.dtype),
    )
