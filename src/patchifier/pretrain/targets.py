"""What may be predicted beside pixels, as rows: functions of the log-mel that a batch shows, for each patch or for each clip.

Multi-task self-supervision (Pascual et al. 2019, the paper's reference [3]): small heads are asked for what engineers have always computed
of music, so that an encoder has to know it. Whatever augmentation does to the log-mel, it does to these too: a pitch that is shifted rolls
the chroma, time that is stretched slows the pulse.

Shapes: B clips, N consecutive patches, M rows, W frames; values are log-mel's.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from patchifier.config import Config, RequestError

CEPSTRA = 20
ONSET_GROUPS = 4  # of mel bands
LOUDNESS_PARTS = 4  # of a patch
LAGS = 64  # of the pulse, from 0.2 to 3 s: 300 to 20 beats a minute
LAGS_S = (0.2, 3.0)
CLASSES = 36  # of chroma: thirds of a semitone, so that an unusual tuning stays visible
PIXELS = "pixels"  # the paper's target: masked patches themselves, by the decoder
TAUGHT = {
    "latent": "what a slow copy of the model, which sees masked patches alone, knows of them",
    "contrast": "which clip of the batch a slow copy hears in the masked patches",
}
TRIPLES = [(a, b) for a in range(1, 7) for b in range(a, 7) if a + b <= 9]  # coefficients of a chroma that are multiplied
SMOOTH_S = 0.5  # over which an onset strength is compared with its surroundings


@dataclass(frozen=True)
class Target:
    """A row.

    Parameters
    ----------
    of : "patch" or "clip"
        What it is predicted for: every patch, or a clip by the mean of its visible patches.
    compute : callable
        (patches (B, N, M, W), config) -> (B, N, size); of a clip (patches, there, config) -> (B, size), where `there` (B, N) says which
        patches are no padding.
    pitch : bool
        Whether it needs pitch bands.
    what : str
        One line for people.
    """

    of: Literal["patch", "clip"]
    compute: Callable[..., Tensor]
    pitch: bool
    what: str

    def values(self, patches: Tensor, present: Tensor | None, config: Config) -> Tensor:
        """What is to be predicted of patches (B, N, M, W): (B, N, size) or (B, size)."""
        if self.of == "patch":
            return self.compute(patches, config)
        there = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device) if present is None else present
        return self.compute(patches, there, config)


def require_targets(config: Config) -> None:
    """Refuse names that are no row, rows that need what the log-mel has not, and what is said of pixels alone.

    Raises
    ------
    RequestError
        Naming the target.
    """
    if config.pretrain.targets == (PIXELS,):
        return
    rows = (PIXELS, *TARGETS, *TAUGHT)
    if not config.pretrain.targets or len(set(config.pretrain.targets)) < len(config.pretrain.targets):
        raise RequestError(f"pretrain.targets is {config.pretrain.targets}, expected some of {', '.join(rows)}, each once.")
    for name, only in (("loss_on", "masked"), ("extract", "visible")):
        if getattr(config.pretrain, name) != only:
            raise RequestError(f"pretrain.{name} is {getattr(config.pretrain, name)!r}, expected {only!r} with targets beside pixels.")
    for name in config.pretrain.targets:
        if name not in rows:
            raise RequestError(f"pretrain.targets holds {name!r}, expected some of {', '.join(rows)}.")
        if name in TARGETS and TARGETS[name].pitch and not config.spectrogram.pitch_bands:
            raise RequestError(f"the target {name!r} needs pitch bands: set spectrogram.pitch_bands, and prepare the cache with them.")


# --- of patches ---


def timbre(patches: Tensor, config: Config) -> Tensor:
    """Mean, deviation and mean absolute change of cepstral coefficients, (B, N, 60)."""
    cepstra = _mel(patches, config).transpose(-1, -2) @ cosines(config.model.mel_bands, patches.device)  # (B, N, W, 20)
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
    strength = _strength(patches, config)  # (B, G, N W)
    return strength.unflatten(-1, (N, W)).transpose(1, 2).flatten(2)


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


def rhythm(patches: Tensor, there: Tensor, config: Config) -> Tensor:
    """Shape of the pulse, whatever its speed: magnitudes of its Fourier coefficients over the logarithm of the lag, (B, 32)."""
    return torch.fft.rfft(pulse(patches, there, config).unflatten(1, (2, LAGS))).abs()[..., 1:17].flatten(1)


def colour(patches: Tensor, there: Tensor, config: Config) -> Tensor:
    """Mean and deviation of each mel band's level over the clip, (B, 2 M)."""
    mel = _mel(patches, config).transpose(2, 3).flatten(1, 2)  # (B, N W, M)
    return _moments(mel, there.repeat_interleave(patches.shape[3], dim=1))


def pulse(patches: Tensor, there: Tensor, config: Config) -> Tensor:
    """Autocorrelation of onset strength, of all bands and of the lowest, at lags of equal ratios: (B, 128)."""
    strength = _strength(patches, config)  # (B, G, T)
    heard = there.repeat_interleave(patches.shape[3], dim=1)[:, None].to(strength.dtype)  # (B, 1, T)
    envelopes = torch.stack([strength.mean(1), strength[:, 0]], dim=1) * heard  # (B, 2, T)
    width = 2 * round(SMOOTH_S / config.spectrogram.frame_s / 2) + 1
    total, count = (nn.functional.avg_pool1d(values, width, stride=1, padding=width // 2) for values in (envelopes, heard))
    centred = torch.relu(envelopes - total / count.clamp(min=1 / width)) * heard
    centred = (centred - centred.sum(-1, keepdim=True) / heard.sum(-1, keepdim=True)) * heard
    T = centred.shape[-1]
    spectrum = torch.fft.rfft(centred, n=2 * T)
    correlation = torch.fft.irfft(spectrum.abs().square(), n=2 * T)[..., :T]
    correlation = correlation / correlation[..., :1].clamp(min=1e-9)
    lags = torch.logspace(math.log10(LAGS_S[0]), math.log10(LAGS_S[1]), LAGS, device=patches.device) / config.spectrogram.frame_s  # (L,) frames
    below = lags.long().clamp(max=T - 2)
    return torch.lerp(correlation[..., below], correlation[..., below + 1], (lags - below).clamp(0, 1)).flatten(1)


# --- what they are made of ---


def _moments(values: Tensor, there: Tensor) -> Tensor:
    """Mean and deviation of values (B, K, C) over those that are there (B, K): (B, 2 C)."""
    weights = there[..., None].to(values.dtype)
    count = weights.sum(1)  # (B, 1)
    mean = (values * weights).sum(1) / count
    squares = ((values - mean[:, None]).square() * weights).sum(1)
    return torch.cat([mean, (squares / (count - 1).clamp(min=1)).sqrt()], dim=-1)


def _mel(patches: Tensor, config: Config) -> Tensor:
    return patches[:, :, : config.model.mel_bands]


def _strength(patches: Tensor, config: Config) -> Tensor:
    """Rise of level from frame to frame, averaged over groups of mel bands: (B, G, N W)."""
    mel = _mel(patches, config).transpose(1, 2).flatten(2)  # (B, M, N W)
    rise = nn.functional.pad(torch.relu(mel.diff(dim=-1)), (1, 0))
    return rise.unflatten(1, (ONSET_GROUPS, -1)).mean(2)


def salience(patches: Tensor, config: Config) -> Tensor:
    """How far each pitch band stands out of the half octave around it, four frames at a time: (B, N, P, W / 4), not below 0."""
    rows = patches[:, :, config.model.mel_bands :].unflatten(-1, (-1, 4)).mean(-1)  # (B, N, P, W / 4)
    width = 2 * (config.spectrogram.pitch_per_octave // 4) + 1
    flat = rows.flatten(0, 1).transpose(1, 2).contiguous()  # (B N, W / 4, P)
    around = nn.functional.avg_pool1d(flat, width, stride=1, padding=width // 2, count_include_pad=False)
    return torch.relu(flat - around).transpose(1, 2).unflatten(0, rows.shape[:2])


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
    spectrum = torch.fft.fft(share)[..., :13]  # of twelve semitones or finer steps: the same low coefficients
    products = torch.stack([spectrum[..., a] * spectrum[..., b] * spectrum[..., a + b].conj() for a, b in TRIPLES], dim=-1)
    size = products.abs().clamp(min=1e-12)
    products = products / size * size.pow(1 / 3)
    return torch.cat([spectrum[..., 1:7].abs(), products.real, products.imag], dim=-1)


@functools.cache
def cosines(bands: int, device: torch.device) -> Tensor:
    """Orthonormal DCT-II matrix (M, 20): bands to cepstral coefficients."""
    place, order = torch.arange(bands, device=device) + 0.5, torch.arange(CEPSTRA, device=device)
    matrix = torch.cos(math.pi / bands * place[:, None] * order) * math.sqrt(2 / bands)
    matrix[:, 0] /= math.sqrt(2)
    return matrix


TARGETS = {
    "timbre": Target("patch", timbre, False, "mel-frequency cepstra: mean, deviation, change"),
    "onsets": Target("patch", onsets, False, "onset strength of four groups of bands, frame by frame"),
    "loudness": Target("patch", loudness, False, "level of the parts of a patch"),
    "pitch": Target("patch", pitch, True, "pitch bands"),
    "chroma": Target("patch", chroma, True, "salience of 36 pitch classes"),
    "intervals": Target("patch", intervals, True, "chroma, whatever its root"),
    "harmony": Target("clip", harmony, True, "chroma over the clip, mean and deviation"),
    "mode": Target("clip", mode, True, "chroma over the clip, whatever its tonic"),
    "colour": Target("clip", colour, False, "level of each mel band over the clip, mean and deviation"),
    "pulse": Target("clip", pulse, False, "autocorrelation of onset strength"),
    "rhythm": Target("clip", rhythm, False, "pulse, whatever its speed"),
}
