"""What engineers have always computed of music, from a log-mel, as rows: of each patch, or of a stretch of patches as a whole.

Pre-training may predict them (:mod:`patchifier.train.objectives`), and an embedding may hold those of a whole window beside what was learnt
(``embed.summaries``). Plain products and sums, so that they can be exported with a model.

Shapes: B clips or windows, N consecutive patches, M rows, W frames; values are log-mel's. What of it is there is said by `there` (B, N): which
patches are no padding, or, where a last one is anchored to the end, how many frames at the end of each no patch before it holds.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from patchifier.config import Config, RequestError

VERSION = 2  # raised when the same log-mel gives other numbers: vectors stored before are no longer taken for those of now
CEPSTRA = 20
ONSET_GROUPS = 4  # of mel bands
LOUDNESS_PARTS = 4  # of a patch
LAGS = 64  # of the pulse, from 0.2 to 3 s: 300 to 20 beats a minute
LAGS_S = (0.2, 3.0)
TRIPLES = [
    (a, b, a + b) for a in range(1, 7) for b in range(a, 7) if a + b <= 9
]  # coefficients of a chroma that are multiplied
SMOOTH_S = 0.5  # over which an onset strength is compared with its surroundings


@dataclass(frozen=True)
class Descriptor:
    """A row.

    Parameters
    ----------
    of : "patch" or "clip"
        Whether every patch has one, or the clip.
    compute : callable
        (patches (B, N, M, W), config) -> (B, N, size); of a clip (patches, there, config) -> (B, size).
    pitch : bool
        Whether it needs pitch bands.
    what : str
        One line for people.
    """

    of: Literal["patch", "clip"]
    compute: Callable[..., Tensor]
    pitch: bool
    what: str

    def values(self, patches: Tensor, there: Tensor | None, config: Config) -> Tensor:
        """Of patches (B, N, M, W), and what of them is there (B, N), everything by default: (B, N, size) or (B, size)."""
        if self.of == "patch":
            return self.compute(patches, config)
        return self.compute(patches, everything(patches) if there is None else there, config)


def require_descriptor(name: str, config: Config, *, what: str) -> None:
    """Refuse a row that these log-mels cannot give.

    Raises
    ------
    RequestError
        Naming the row, as `what`: "the target", "the summary".
    """
    spectrogram, model = config.spectrogram, config.model
    least = 1 if name == "pitch" else spectrogram.pitch_per_octave
    if DESCRIPTORS[name].pitch and spectrogram.pitch_bands < least:
        raise RequestError(
            f"{what} {name!r} needs pitch bands: set spectrogram.pitch_bands to {least} or more (it is {spectrogram.pitch_bands}), "
            "and prepare the cache with them."
        )
    if name in ("onsets", "pulse", "rhythm") and model.mel_bands % ONSET_GROUPS:
        raise RequestError(
            f"{what} {name!r} needs mel bands in {ONSET_GROUPS} equal groups, but there are {model.mel_bands}: change model.bands."
        )
    if name == "loudness" and model.frames % LOUDNESS_PARTS:
        raise RequestError(
            f"{what} {name!r} needs patches of {LOUDNESS_PARTS} equal parts, but model.frames is {model.frames}."
        )


def size_of(name: str, config: Config) -> int:
    """How many numbers a descriptor has."""
    return (
        DESCRIPTORS[name]
        .values(torch.zeros(1, 2, config.model.bands, config.model.frames), None, config)
        .shape[-1]
    )


# --- of patches ---


def timbre(patches: Tensor, config: Config) -> Tensor:
    """Mean, deviation and mean absolute change of cepstral coefficients, (B, N, 60)."""
    cepstra = _mel(patches, config).transpose(-1, -2) @ cosines(
        config.model.mel_bands, patches.device
    ).to(patches.dtype)  # (B, N, W, 20)
    return torch.cat([cepstra.mean(2), cepstra.std(2), cepstra.diff(dim=2).abs().mean(2)], dim=-1)


def pitch(patches: Tensor, config: Config) -> Tensor:
    """Pitch bands, averaged over time: (B, N, P)."""
    return patches[:, :, config.model.mel_bands :].mean(-1)


def chroma(patches: Tensor, config: Config) -> Tensor:
    """What stands out of the pitch bands, folded into one octave: (B, N, 36)."""
    return _fold(salience(patches, config).mean(-1), config)


def intervals(patches: Tensor, config: Config) -> Tensor:
    """What a chroma is made of, whatever its root: (B, N, 40)."""
    return _quality(chroma(patches, config))


def onsets(patches: Tensor, config: Config) -> Tensor:
    """Onset strength of groups of mel bands, frame by frame: (B, N, 4 W)."""
    N, W = patches.shape[1], patches.shape[3]
    return strength(patches, config).unflatten(-1, (N, W)).transpose(1, 2).flatten(2)


def loudness(patches: Tensor, config: Config) -> Tensor:
    """Level of the parts of a patch, (B, N, 4): the mean over mel bands."""
    return _mel(patches, config).mean(2).unflatten(-1, (LOUDNESS_PARTS, -1)).mean(-1)


# --- of clips ---


def harmony(patches: Tensor, there: Tensor, config: Config) -> Tensor:
    """Mean and deviation of chroma over the clip, (B, 72)."""
    return _moments(chroma(patches, config), there)


def mode(patches: Tensor, there: Tensor, config: Config) -> Tensor:
    """What the chroma of the whole clip is made of, whatever its tonic: (B, 40)."""
    mean, _ = harmony(patches, there, config).chunk(2, dim=-1)
    return _quality(mean)


def texture(patches: Tensor, there: Tensor, config: Config) -> Tensor:
    """Mean and deviation of timbre over the clip, (B, 120)."""
    return _moments(timbre(patches, config), there)


def rhythm(patches: Tensor, there: Tensor, config: Config) -> Tensor:
    """Shape of the pulse, whatever its speed: magnitudes of its Fourier coefficients over the logarithm of the lag, (B, 32)."""
    real, imaginary = _fourier(pulse(patches, there, config).unflatten(1, (2, LAGS)), 17)
    return torch.sqrt(real[..., 1:].square() + imaginary[..., 1:].square() + 1e-12).flatten(1)


def colour(patches: Tensor, there: Tensor, config: Config) -> Tensor:
    """Mean and deviation of each mel band's level over the clip: (B, twice the mel bands)."""
    mel = _mel(patches, config).transpose(1, 2).flatten(2)  # (B, mel bands, N W)
    frames, heard = line(mel, there)
    return _moments(frames.transpose(1, 2), heard[:, 0])


def pulse(patches: Tensor, there: Tensor, config: Config) -> Tensor:
    """Autocorrelation of onset strength, of all bands and of the lowest, at lags of equal ratios: (B, 128)."""
    return pulse_of(*line(strength(patches, config), there), config)


def pulse_of(rises: Tensor, heard: Tensor, config: Config) -> Tensor:
    """Pulse (B, 128) of onset strength (B, G, T), where there is sound and no padding (B, 1, T)."""
    envelopes = torch.stack([rises.mean(1), rises[:, 0]], dim=1) * heard  # (B, 2, T)
    width = 2 * round(SMOOTH_S / config.spectrogram.frame_s / 2) + 1
    total, count = around(envelopes, width), around(heard, width)
    centred = torch.relu(envelopes - total / count.clamp(min=1)) * heard
    centred = (centred - centred.sum(-1, keepdim=True) / heard.sum(-1, keepdim=True)) * heard
    lags = lags_frames(config.spectrogram.frame_s, rises.device)  # (L,)
    below = lags.long()
    longest = int(LAGS_S[1] / config.spectrogram.frame_s) + 2
    later = nn.functional.pad(centred, (0, longest)).unfold(
        -1, longest + 1, 1
    )  # (B, 2, T, longest + 1)
    correlation = (centred[..., None, :] @ later)[..., 0, :]  # (B, 2, longest + 1)
    correlation = correlation / correlation[..., :1].clamp(min=1e-9)
    return torch.lerp(
        correlation[..., below], correlation[..., below + 1], (lags - below).to(correlation.dtype)
    ).flatten(1)


# --- what they are made of ---


def everything(patches: Tensor) -> Tensor:
    """That all patches (B, N, M, W) are there: (B, N)."""
    return torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)


def line(values: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """What patches say frame by frame (B, G, N W), as it sounds, and in which frames there is sound (B, 1, N W), 0 or 1.

    An anchored last patch repeats frames of the one before it: its new ones move up to those, and as many behind them are gone.
    """
    N, T = there.shape[1], values.shape[-1]
    W = T // N
    if there.dtype == torch.bool:
        return values, there.repeat_interleave(W, dim=1)[:, None].to(values.dtype)
    patches, frames = (there > 0).sum(1, keepdim=True), there.sum(1, keepdim=True)  # (B, 1)
    place = torch.arange(T, device=values.device)
    source = place + (place >= (patches - 1) * W) * (patches * W - frames)  # (B, T)
    moved = values.gather(-1, source.clamp(max=T - 1)[:, None].expand_as(values))
    return moved, (place < frames)[:, None].to(values.dtype)


def _moments(values: Tensor, there: Tensor) -> Tensor:
    """Mean and deviation of values (B, K, C) over those of which anything is there (B, K): (B, 2 C)."""
    weights = (there > 0)[..., None].to(values.dtype)
    count = weights.sum(1)  # (B, 1)
    mean = (values * weights).sum(1) / count
    squares = ((values - mean[:, None]).square() * weights).sum(1)
    return torch.cat([mean, (squares / (count - 1).clamp(min=1)).sqrt()], dim=-1)


def _mel(patches: Tensor, config: Config) -> Tensor:
    return patches[:, :, : config.model.mel_bands]


def strength(patches: Tensor, config: Config) -> Tensor:
    """Rise of level from frame to frame, averaged over groups of mel bands: (B, G, N W); of no meaning where an anchored patch begins."""
    mel = _mel(patches, config).transpose(1, 2).flatten(2)  # (B, mel bands, N W)
    rise = nn.functional.pad(torch.relu(mel.diff(dim=-1)), (1, 0))
    return rise.unflatten(1, (ONSET_GROUPS, -1)).mean(2)


def salience(patches: Tensor, config: Config) -> Tensor:
    """How far each pitch band stands out of the half octave around it, four frames at a time: (B, N, P, W / 4), not below 0."""
    rows = (
        patches[:, :, config.model.mel_bands :].unflatten(-1, (-1, 4)).mean(-1)
    )  # (B, N, P, W / 4)
    width = 2 * (config.spectrogram.pitch_per_octave // 4) + 1
    flat = rows.flatten(0, 1).transpose(1, 2).contiguous()  # (B N, W / 4, P)
    mean = around(flat, width) / around(torch.ones_like(flat[0, 0]), width)
    return torch.relu(flat - mean).transpose(1, 2).unflatten(0, rows.shape[:2])


def around(values: Tensor, width: int) -> Tensor:
    """Sum of the `width` values (..., T) around each: (..., T), of nothing beyond the ends."""
    running = nn.functional.pad(values, (width // 2 + 1, width // 2)).cumsum(-1)
    return running[..., width:] - running[..., :-width]


def _fold(bands: Tensor, config: Config) -> Tensor:
    """Mean over octaves: (..., P) -> (..., bands of an octave)."""
    octave = config.spectrogram.pitch_per_octave
    whole = bands.shape[-1] // octave * octave
    return bands[..., :whole].unflatten(-1, (-1, octave)).mean(-2)


def _quality(chroma: Tensor) -> Tensor:
    """Numbers of a chroma (..., K) that a transposition leaves alone: (..., 6 + 2 * 17).

    Magnitudes of its first six Fourier coefficients over the twelve semitones, which tell how chromatic, diatonic or whole-toned it is
    (Quinn 2006), and products of three whose phases cancel, which tell major from minor as their mirror images.
    """
    share = chroma / chroma.sum(-1, keepdim=True).clamp(min=1e-4)
    real, imaginary = _fourier(
        share, 10
    )  # of twelve semitones or finer steps: the same low coefficients
    a, b, c = ([triple[place] for triple in TRIPLES] for place in range(3))
    both_real = real[..., a] * real[..., b] - imaginary[..., a] * imaginary[..., b]
    both_imaginary = real[..., a] * imaginary[..., b] + imaginary[..., a] * real[..., b]
    product_real = (
        both_real * real[..., c] + both_imaginary * imaginary[..., c]
    )  # times the conjugate of the third
    product_imaginary = both_imaginary * real[..., c] - both_real * imaginary[..., c]
    size = torch.sqrt(product_real.square() + product_imaginary.square()).clamp(min=1e-12)
    root = size.pow(-2 / 3)  # the cube root of the product's size is a size of one coefficient
    magnitudes = torch.sqrt(real[..., 1:7].square() + imaginary[..., 1:7].square())
    return torch.cat([magnitudes, product_real * root, product_imaginary * root], dim=-1)


def _fourier(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of the first Fourier coefficients of values (..., K): (..., count) each."""
    places, numbers = (
        torch.arange(values.shape[-1], device=values.device),
        torch.arange(count, device=values.device),
    )
    angles = 2 * math.pi / values.shape[-1] * torch.outer(places, numbers).to(values)
    return values @ torch.cos(angles), -values @ torch.sin(angles)


def _constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Made once for each device; anew while a graph is traced, whose tensors hold no numbers."""
    kept = functools.cache(make)

    @functools.wraps(make)
    def once(*arguments: float | torch.device) -> Tensor:
        return make(*arguments) if torch.compiler.is_compiling() else kept(*arguments)

    return once


@_constant
def lags_frames(frame_s: float, device: torch.device) -> Tensor:
    """Lags of the pulse in frames, (L,)."""
    return (
        torch.logspace(math.log10(LAGS_S[0]), math.log10(LAGS_S[1]), LAGS, device=device) / frame_s
    )


@_constant
def cosines(bands: int, device: torch.device) -> Tensor:
    """Orthonormal DCT-II matrix (M, 20): bands to cepstral coefficients."""
    place, order = torch.arange(bands, device=device) + 0.5, torch.arange(CEPSTRA, device=device)
    matrix = torch.cos(math.pi / bands * place[:, None] * order) * math.sqrt(2 / bands)
    matrix[:, 0] /= math.sqrt(2)
    return matrix


DESCRIPTORS = {
    "timbre": Descriptor("patch", timbre, False, "mel-frequency cepstra: mean, deviation, change"),
    "onsets": Descriptor(
        "patch", onsets, False, "onset strength of four groups of bands, frame by frame"
    ),
    "loudness": Descriptor("patch", loudness, False, "level of the parts of a patch"),
    "pitch": Descriptor("patch", pitch, True, "pitch bands"),
    "chroma": Descriptor("patch", chroma, True, "salience of 36 pitch classes"),
    "intervals": Descriptor("patch", intervals, True, "chroma, whatever its root"),
    "harmony": Descriptor("clip", harmony, True, "chroma over the clip, mean and deviation"),
    "mode": Descriptor("clip", mode, True, "chroma over the clip, whatever its tonic"),
    "colour": Descriptor(
        "clip", colour, False, "level of each mel band over the clip, mean and deviation"
    ),
    "texture": Descriptor(
        "clip",
        texture,
        False,
        "cepstra over the clip, mean and deviation of their mean, deviation and change",
    ),
    "pulse": Descriptor("clip", pulse, False, "autocorrelation of onset strength"),
    "rhythm": Descriptor("clip", rhythm, False, "pulse, whatever its speed"),
}
