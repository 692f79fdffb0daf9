"""Descriptors of music, computed from log-mels: of each patch, or of a clip.

Pre-training may predict them (:mod:`patchifier.train.objectives`), and an embedding may hold those
of a window (``embed.summaries``). They are sums and products, so that a graph of the model can hold
them. :data:`DESCRIPTORS` maps the names that configs and tables store to the functions.

Shapes: B clips or windows, N consecutive patches, M rows, T frames in a patch, L lags. ``valid``
(B, N) is False for padding; where the last patch is anchored to the end, it is the number of new
frames of each patch, which are the last ones: those that no patch before it holds.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from patchifier.config import PITCH_PER_OCTAVE, Config, RequestError
from patchifier.nn.pitch import group_frames
from patchifier.nn.shared_patches import Patches, by_patch

CEPSTRA = 20
ONSET_GROUPS = 4  # of mel bands
LOUDNESS_PARTS = 4  # of a patch
LAGS = 64  # of the tempogram, from 0.2 to 3 s: 300 to 20 beats a minute
LAGS_S = (0.2, 3.0)
TRIPLES = [(a, b, a + b) for a in range(1, 7) for b in range(a, 7) if a + b <= 9]  # bispectrum
BLOCK = 32  # frames that an autocorrelation multiplies at once
SMOOTH_S = 0.5  # of the local mean that is subtracted from an onset strength


@dataclass(frozen=True)
class Descriptor:
    """A descriptor.

    Attributes
    ----------
    of : "patch" or "clip"
        What has a descriptor.
    compute : callable
        (patches (B, N, M, T), config) -> (B, N, size); of a clip (patches, valid, config) -> (B,
        size).
    pitch : bool
        Whether it needs pitch bands.
    what : str
        Description in one line.
    """

    of: Literal["patch", "clip"]
    compute: Callable[..., Tensor]
    pitch: bool
    what: str

    def values(self, patches: Patches, valid: Tensor | None, config: Config) -> Tensor:
        """Descriptor (B, N, size) or (B, size) of patches (B, N, M, T)."""
        if self.of == "patch":
            return self.compute(patches, config)
        return self.compute(patches, ones_mask(patches) if valid is None else valid, config)


def require_descriptor(name: str, config: Config, *, what: str) -> None:
    """Check that log-mels of these settings have what a descriptor needs.

    Raises
    ------
    RequestError
        Naming the descriptor, as `what`: "the target", "the summary".
    """
    spectrogram, model = config.spectrogram, config.model
    least = 1 if name == "pitch" else PITCH_PER_OCTAVE
    if DESCRIPTORS[name].pitch and spectrogram.n_pitch_bands < least:
        raise RequestError(
            f"{what} {name!r} needs pitch bands: set spectrogram.n_pitch_bands to {least} or more "
            f"(it is {spectrogram.n_pitch_bands}), and prepare the cache with them."
        )
    if name in ("onsets", "pulse", "rhythm") and spectrogram.n_mels % ONSET_GROUPS:
        raise RequestError(
            f"{what} {name!r} needs mel bands in {ONSET_GROUPS} equal groups, but there are "
            f"{spectrogram.n_mels}: change spectrogram.n_mels."
        )
    if name == "loudness" and model.patch_frames % LOUDNESS_PARTS:
        raise RequestError(
            f"{what} {name!r} needs patches of {LOUDNESS_PARTS} equal parts, but "
            f"model.patch_frames is {model.patch_frames}."
        )


# --- of patches ---


def mfcc_patch_statistics(patches: Patches, config: Config) -> Tensor:
    """Mean, deviation and mean absolute change of cepstral coefficients, (B, N, 60)."""
    return by_patch(_mfcc_statistics, mel_rows, patches, config)


def _mfcc_statistics(mel: Tensor, config: Config) -> Tensor:
    """MFCC statistics (B, N, 60) of mel bands (B, N, n_mels, T)."""
    matrix = dct_matrix(config.spectrogram.n_mels, mel.device).to(mel.dtype)
    cepstra = mel.transpose(-1, -2) @ matrix  # (B, N, T, 20)
    return torch.cat(
        [cepstra.mean(2), cepstra.std(2), difference(cepstra, 2).abs().mean(2)], dim=-1
    )


def pitch_energy(patches: Patches, config: Config) -> Tensor:
    """Mean over time of each pitch band of patches (B, N, M, W): (B, N, n_pitch_bands)."""
    return by_patch(_mean_over_time, pitch_groups, patches, config)


def _mean_over_time(groups: Tensor, config: Config) -> Tensor:
    return groups.mean(-1)


def chroma(patches: Patches, config: Config) -> Tensor:
    """Salience of pitch bands, averaged over octaves: (B, N, 36)."""
    return by_patch(_chroma_of_groups, pitch_groups, patches, config)


def _chroma_of_groups(groups: Tensor, config: Config) -> Tensor:
    """Chroma (B, N, 36) of groups of frames (B, N, n_pitch_bands, T / 4)."""
    return _fold(salience(groups).mean(-1), config)


def invariant_chroma(patches: Patches, config: Config) -> Tensor:
    """Transposition-invariant chroma of each patch, (B, N, 40)."""
    return _transposition_invariants(chroma(patches, config))


def patch_onset_strength(patches: Patches, config: Config) -> Tensor:
    """Onset strength of groups of mel bands, frame by frame: (B, N, 4 T)."""
    N, T = patches.shape[1], patches.shape[3]
    return onset_strength(patches, config).unflatten(-1, (N, T)).transpose(1, 2).flatten(2)


def band_energy(patches: Patches, config: Config) -> Tensor:
    """Log-mel of each quarter of a patch's frames, averaged over frames and bands: (B, N, 4)."""
    return by_patch(_energy_of_quarters, mel_rows, patches, config)


def _energy_of_quarters(mel: Tensor, config: Config) -> Tensor:
    return mel.mean(2).unflatten(-1, (LOUDNESS_PARTS, -1)).mean(-1)


# --- of clips ---


def chroma_statistics(patches: Patches, valid: Tensor, config: Config) -> Tensor:
    """Mean and deviation of chroma over the clip, (B, 72)."""
    return _mean_and_deviation(chroma(patches, config), valid)


def invariant_mean_chroma(patches: Patches, valid: Tensor, config: Config) -> Tensor:
    """Transposition-invariant mean chroma of the clip, (B, 40)."""
    mean, _ = chroma_statistics(patches, valid, config).chunk(2, dim=-1)
    return _transposition_invariants(mean)


def mfcc_statistics(patches: Patches, valid: Tensor, config: Config) -> Tensor:
    """Mean and deviation over the clip of the MFCC statistics of patches, (B, 120)."""
    return _mean_and_deviation(mfcc_patch_statistics(patches, config), valid)


def invariant_tempogram(patches: Patches, valid: Tensor, config: Config) -> Tensor:
    """Tempo-invariant tempogram (B, 32): Fourier magnitudes of a tempogram over the log lag."""
    real, imaginary = _fourier(tempogram(patches, valid, config).unflatten(1, (2, LAGS)), 17)
    return torch.sqrt(real[..., 1:].square() + imaginary[..., 1:].square() + 1e-12).flatten(1)


def mel_statistics(patches: Patches, valid: Tensor, config: Config) -> Tensor:
    """Mean and deviation of each mel band's level over the clip: (B, 2 * mel bands)."""
    mel = (
        by_patch(_unchanged, mel_rows, patches, config).transpose(1, 2).flatten(2)
    )  # (B, mel bands, N T)
    frames, valid_frames = concat_frames(mel, valid, patches.shape[3])
    return _mean_and_deviation(frames.transpose(1, 2), valid_frames[:, 0])


def tempogram(patches: Patches, valid: Tensor, config: Config) -> Tensor:
    """Autocorrelation (B, 2 L) of the onset strength of all and of the lowest bands."""
    frames = concat_frames(onset_strength(patches, config), valid, patches.shape[3])
    return tempogram_of(*frames, config)


def tempogram_of(strength: Tensor, valid_frames: Tensor, config: Config) -> Tensor:
    """Tempogram (B, 2 L) of an onset strength (B, groups, frames) where `valid_frames` is 1."""
    envelopes = torch.stack([strength.mean(1), strength[:, 0]], dim=1) * valid_frames
    width = 2 * round(SMOOTH_S / config.spectrogram.frame_s / 2) + 1
    total, count = moving_sum(envelopes, width), moving_sum(valid_frames, width)
    centred = torch.relu(envelopes - total / count.clamp(min=1)) * valid_frames
    mean = centred.sum(-1, keepdim=True) / valid_frames.sum(-1, keepdim=True)
    centred = (centred - mean) * valid_frames  # (B, 2, frames)
    lags = lags_frames(config.spectrogram.frame_s, strength.device)  # (L,)
    below = lags.long()
    longest = int(LAGS_S[1] / config.spectrogram.frame_s) + 2
    correlation = autocorrelation(centred, longest)  # (B, 2, longest + 1)
    correlation = correlation / correlation[..., :1].clamp(min=1e-9)
    part = (lags - below).to(correlation.dtype)
    return torch.lerp(correlation[..., below], correlation[..., below + 1], part).flatten(1)


# --- steps of several descriptors ---


def autocorrelation(values: Tensor, longest: int) -> Tensor:
    """Products of values (..., F) and those `lag` later, summed, for lags to `longest`: (..., L).

    Blocks of values are multiplied by the stretches that they meet, (BLOCK, stretch), and products
    of the same lag, a diagonal, are added.
    """
    later = 1 + -(-longest // BLOCK)  # blocks that a block meets
    F, stretch = values.shape[-1], later * BLOCK
    count = (F + BLOCK - 1) // BLOCK
    padded = nn.functional.pad(values, (0, (count + later) * BLOCK - F))
    blocks = padded.unflatten(-1, (-1, BLOCK))  # (..., count + later, BLOCK)
    met = [blocks.narrow(-2, first, count) for first in range(later)]
    products = met[0].transpose(-1, -2) @ torch.cat(met, dim=-1)  # (..., BLOCK, stretch)
    flat = nn.functional.pad(products.flatten(-2), (0, BLOCK))
    diagonals = flat.unflatten(-1, (BLOCK, stretch + 1))  # a row further, a lag to the left
    return diagonals[..., : longest + 1].sum(-2)


def ones_mask(patches: Patches) -> Tensor:
    """A mask (B, N) that is True for all patches (B, N, M, T)."""
    return torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)


def concat_frames(values: Tensor, valid: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Frames of patches (B, C, N T) in the order of time, and which are valid (B, 1, N T), 1 or 0.

    The last patch, if it is anchored to the end, repeats frames of the one before. Its new frames
    move up to follow those, and as many frames at the end are not valid.
    """
    N = valid.shape[1]
    if valid.dtype == torch.bool:
        return values, valid.repeat_interleave(T, dim=1)[:, None].to(values.dtype)
    patches, frames = (valid > 0).sum(1, keepdim=True), valid.sum(1, keepdim=True)  # (B, 1)
    within, starts = (torch.arange(n, device=values.device) for n in (T, N))
    index = (starts[:, None] * T + within).flatten()
    source = index + (index >= (patches - 1) * T) * (patches * T - frames)  # (B, N T)
    moved = values.gather(-1, torch.minimum(source, index[-1])[:, None].expand_as(values))
    return moved, (index < frames)[:, None].to(values.dtype)


def _mean_and_deviation(values: Tensor, valid: Tensor) -> Tensor:
    """Mean and deviation (B, 2 C) of values (B, K, C) where `valid` (B, K) is above 0."""
    weights = (valid > 0)[..., None].to(values.dtype)
    count = weights.sum(1)  # (B, 1)
    mean = (values * weights).sum(1) / count
    squares = ((values - mean[:, None]).square() * weights).sum(1)
    return torch.cat([mean, (squares / (count - 1).clamp(min=1)).sqrt()], dim=-1)


def mel_rows(patches: Tensor, config: Config) -> Tensor:
    """Mel bands (..., n_mels, T) of patches (..., M, T)."""
    return patches[..., : config.spectrogram.n_mels, :]


def pitch_groups(patches: Tensor, config: Config) -> Tensor:
    """Pitch bands of patches (..., M, T), means of four frames: (..., n_pitch_bands, T / 4)."""
    return group_frames(patches, config.spectrogram.n_mels)


def _unchanged(mel: Tensor, config: Config) -> Tensor:
    return mel


def onset_strength(patches: Patches, config: Config) -> Tensor:
    """Increase of level from frame to frame, averaged over groups of mel bands: (B, groups, N T).

    The first frame of an anchored patch has no meaning.
    """
    within = by_patch(_rise_within, mel_rows, patches, config)  # (B, N, groups, T - 1)
    edges = by_patch(_edges, mel_rows, patches, config)  # (B, N, mel bands, 2)
    first, last = edges[:, 1:, :, 0], edges[:, :-1, :, 1]
    across = nn.functional.pad(_of_groups(torch.relu(first - last), 2), (0, 0, 1, 0))
    return torch.cat([across[..., None], within], dim=-1).transpose(1, 2).flatten(2)


def _rise_within(mel: Tensor, config: Config) -> Tensor:
    """Onset strength of each frame of a patch but the first: (B, N, groups, T - 1)."""
    return _of_groups(torch.relu(difference(mel, -1)), 2)


def _edges(mel: Tensor, config: Config) -> Tensor:
    """First and last frame of the mel bands of each patch: (B, N, mel bands, 2)."""
    return torch.stack([mel[..., 0], mel[..., -1]], dim=-1)


def _of_groups(values: Tensor, dim: int) -> Tensor:
    """Mean over each group of mel bands, which are a dimension."""
    return values.unflatten(dim, (ONSET_GROUPS, -1)).mean(dim + 1)


def salience(groups: Tensor) -> Tensor:
    """Pitch bands (B, N, bands, T / 4) less the mean of half an octave, at least 0."""
    B, N, _, T = groups.shape
    width = 2 * (PITCH_PER_OCTAVE // 4) + 1
    flat = groups.flatten(0, 1).transpose(1, 2).contiguous()  # (B N, T / 4, bands)
    mean = moving_sum(flat, width) * moving_sum(torch.ones_like(flat[0, 0]), width).reciprocal()
    return torch.relu(flat - mean).transpose(1, 2).reshape(B, N, -1, T)


def difference(values: Tensor, dim: int) -> Tensor:
    """Difference of each value and the one before along a dimension; torch.diff has no graph."""
    count = values.shape[dim] - 1
    return values.narrow(dim, 1, count) - values.narrow(dim, 0, count)


def moving_sum(values: Tensor, width: int) -> Tensor:
    """Sum of the `width` values (..., K) around each, zero-padded: (..., K)."""
    running = nn.functional.pad(values, (width // 2 + 1, width // 2)).cumsum(-1)
    return running[..., width:] - running[..., :-width]


def _fold(bands: Tensor, config: Config) -> Tensor:
    """Mean over octaves: (..., bands) -> (..., bands of an octave)."""
    octave = PITCH_PER_OCTAVE
    whole = bands.shape[-1] // octave * octave
    return bands[..., :whole].unflatten(-1, (-1, octave)).mean(-2)


def _transposition_invariants(chroma: Tensor) -> Tensor:
    """Values (..., 6 + 2 * 17) of a chroma (..., K) that do not change when it is rolled.

    They are magnitudes of its first six Fourier coefficients over the octave, which tell how
    chromatic, diatonic or whole-tone it is (Quinn 2006), and its bispectrum, which tells major from
    minor.
    """
    share = chroma / chroma.sum(-1, keepdim=True).clamp(min=1e-4)
    real, imaginary = _fourier(share, 10)  # the same low coefficients for any K
    a, b, c = ([triple[index] for triple in TRIPLES] for index in range(3))
    both_real = real[..., a] * real[..., b] - imaginary[..., a] * imaginary[..., b]
    both_imaginary = real[..., a] * imaginary[..., b] + imaginary[..., a] * real[..., b]
    # times the conjugate of the third
    product_real = both_real * real[..., c] + both_imaginary * imaginary[..., c]
    product_imaginary = both_imaginary * real[..., c] - both_real * imaginary[..., c]
    size = torch.sqrt(product_real.square() + product_imaginary.square()).clamp(min=1e-12)
    root = size.pow(-2 / 3)  # a product is then of the size of one coefficient
    magnitudes = torch.sqrt(real[..., 1:7].square() + imaginary[..., 1:7].square())
    return torch.cat([magnitudes, product_real * root, product_imaginary * root], dim=-1)


def _fourier(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of the first `count` Fourier coefficients of values (..., K)."""
    K, device = values.shape[-1], values.device
    orders = torch.outer(torch.arange(K, device=device), torch.arange(count, device=device))
    angles = 2 * math.pi / K * orders.to(values)
    return values @ torch.cos(angles), -values @ torch.sin(angles)


def _constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache a constant for each device, but not while a graph is traced."""
    cached = functools.cache(make)

    @functools.wraps(make)
    def once(*arguments: float | torch.device) -> Tensor:
        return make(*arguments) if torch.compiler.is_compiling() else cached(*arguments)

    return once


@_constant
def lags_frames(frame_s: float, device: torch.device) -> Tensor:
    """Lags of the tempogram in frames, (L,)."""
    shortest, longest = map(math.log10, LAGS_S)
    return torch.logspace(shortest, longest, LAGS, device=device) / frame_s


@_constant
def dct_matrix(bands: int, device: torch.device) -> Tensor:
    """Orthonormal DCT-II matrix (M, 20): bands to cepstral coefficients."""
    band, order = torch.arange(bands, device=device) + 0.5, torch.arange(CEPSTRA, device=device)
    matrix = torch.cos(math.pi / bands * band[:, None] * order) * math.sqrt(2 / bands)
    matrix[:, 0] /= math.sqrt(2)
    return matrix


DESCRIPTORS = {
    "timbre": Descriptor(
        "patch", mfcc_patch_statistics, False, "MFCC of a patch: mean, deviation, change"
    ),
    "onsets": Descriptor(
        "patch", patch_onset_strength, False, "onset strength of four groups of bands, by frame"
    ),
    "loudness": Descriptor("patch", band_energy, False, "level of the quarters of a patch"),
    "pitch": Descriptor("patch", pitch_energy, True, "pitch bands"),
    "chroma": Descriptor("patch", chroma, True, "salience of 36 pitch classes"),
    "intervals": Descriptor("patch", invariant_chroma, True, "transposition-invariant chroma"),
    "harmony": Descriptor("clip", chroma_statistics, True, "chroma: mean and deviation"),
    "mode": Descriptor("clip", invariant_mean_chroma, True, "transposition-invariant mean chroma"),
    "colour": Descriptor("clip", mel_statistics, False, "mel bands: mean and deviation"),
    "texture": Descriptor(
        "clip", mfcc_statistics, False, "MFCC statistics of patches: mean and deviation"
    ),
    "pulse": Descriptor("clip", tempogram, False, "tempogram: autocorrelation of onset strength"),
    "rhythm": Descriptor("clip", invariant_tempogram, False, "tempo-invariant tempogram"),
}
