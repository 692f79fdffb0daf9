"""A vector for every moment of a clip.

From overlapping patches, or from the log-mel itself as the control.

Shapes: T frames of a log-mel, K moments (every `hop_frames` frames), W frames in a patch, D width
of a vector, E features.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import spectrogram
from patchifier.cache import Cache
from patchifier.config import Config, RequestError, SpectrogramConfig
from patchifier.embed import Embedder
from patchifier.nn.encode import TorchNetwork
from patchifier.nn.masking import pad_windows
from patchifier.nn.model import Patchifier
from patchifier.windows import window_patches

# 46 ms at the paper's settings: the largest error in time, 23 ms, is a third of the tolerance.
HOP_FRAMES = 2
PATCHES = 512  # at once: 150 MB of activations in the paper's setting
WINDOWS = 32  # sequences at once
CONTEXT_FRAMES = 7  # on each side: 15 frames of 64 bands, 0.35 s

Features = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Takes the index of a clip, gives features (K, E) and their times (K,) in seconds."""


@torch.inference_mode()
def frame_vectors(
    embedder: Embedder,
    log_mel: np.ndarray,
    *,
    hop_frames: int = HOP_FRAMES,
    layers: Sequence[int] | None = None,
    patches_at_once: int = PATCHES,
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of overlapping patches.

    Vector k belongs to frame c = k hop_frames; its patch covers frames c - W/2 to c + W/2 - 1,
    silence where the clip has none.

    Parameters
    ----------
    embedder : Embedder
        The model.
    log_mel : array_like, shape (M, T)
        Of any length from one frame.
    hop_frames : int
        Frames between vectors.
    layers : sequence of int
        Side by side, numbered as in ``embed.layers``, which is the default: 0 is the extractor,
        which sees a patch alone; from 1 on the patches at k, k + W / hop_frames, ..., which touch,
        go through the bottleneck together, in windows of trained length that overlap as those of an
        embedding do, with the mean where they overlap.
    patches_at_once : int
        Bounds memory; the result does not depend on it.

    Returns
    -------
    vectors : ndarray, shape (K, D * number of layers), float32, K = 1 + (T - 1) // hop_frames
    times_s : ndarray, shape (K,), float64
        k hop_frames hop / sample_rate.

    Raises
    ------
    RequestError
        If a layer does not exist, or patches cannot touch because hop_frames does not divide W.
    """
    config = embedder.config
    numbers = _layer_numbers(config, config.embed.layers if layers is None else layers, hop_frames)
    # (K, M, W), a view
    patches = _around(log_mel, hop_frames, config.model.patch_frames, config.spectrogram.silence)
    network = embedder.network
    assert isinstance(network, TorchNetwork)  # evaluation loads with torch
    model = network.model
    # (K', D) each
    parts = [
        model.extractor(part.unsqueeze(1).contiguous().to(network.device))
        for part in patches.split(patches_at_once)
    ]
    vectors = torch.cat(parts)  # (K, D)
    found = _through_bottleneck(
        model,
        config,
        vectors,
        config.model.patch_frames // hop_frames,
        [number for number in numbers if number],
    )
    chosen = [found[number] if number else vectors for number in numbers]
    return torch.cat(chosen, dim=1).float().cpu().numpy(), frame_times_s(
        len(vectors), hop_frames, config.spectrogram
    )


def _layer_numbers(config: Config, layers: Sequence[int], hop_frames: int) -> list[int]:
    """Layers counted from 0, the extractor."""
    deepest, W = config.model.n_layers, config.model.patch_frames
    wrong = [layer for layer in layers if not -1 - deepest <= layer <= deepest]
    if wrong or not layers:
        raise RequestError(
            f"there is no layer {wrong[0] if wrong else 'given'}, expected 0 to {deepest}, or -1 "
            "for the last."
        )
    numbers = [layer % (deepest + 1) for layer in layers]
    if any(numbers) and (hop_frames < 1 or W % hop_frames):
        raise RequestError(
            f"hop_frames is {hop_frames}, expected a divisor of the patch length ({W}): the "
            "bottleneck needs patches that touch. Layer 0 does not."
        )
    return numbers


def _through_bottleneck(
    model: Patchifier, config: Config, vectors: Tensor, stride: int, numbers: Sequence[int]
) -> dict[int, Tensor]:
    """Vectors (K, D) in the context of those `stride` apart, for each of these layers."""
    if not numbers:
        return {}
    windows = [
        torch.arange(offset, len(vectors), stride)[window]
        for offset in range(min(stride, len(vectors)))
        for window in _windows(config, len(range(offset, len(vectors), stride)))
    ]
    sums = {number: torch.zeros_like(vectors) for number in numbers}
    counts = torch.zeros(len(vectors), 1, device=vectors.device)
    for start in range(0, len(windows), WINDOWS):
        batch = windows[start : start + WINDOWS]
        # (B, N, D), (B, N)
        sequences, valid = pad_windows(
            [vectors[window.to(vectors.device)] for window in batch], 0.0
        )
        valid = valid.to(vectors.device)
        outputs = model.bottleneck(sequences, valid=valid)
        where = torch.cat(batch).to(vectors.device)
        counts.index_add_(0, where, torch.ones(len(where), 1, device=vectors.device))
        for number in sums:
            sums[number].index_add_(0, where, outputs[number - 1][:, 1:][valid])
    return {number: total / counts for number, total in sums.items()}


def _windows(config: Config, count: int) -> list[slice]:
    """Windows of trained length in a sequence of `count` patches.

    They are those of :func:`patchifier.windows.cut_windows`.
    """
    length, hop = window_patches(config)
    if config.embed.whole_clip or count <= length:
        return [slice(0, count)]
    starts = spectrogram.patch_starts(count, length=length, hop=hop, tail="anchor")
    return [slice(start, start + length) for start in starts]


def mel_frames(
    log_mel: np.ndarray,
    config: SpectrogramConfig | None = None,
    *,
    hop_frames: int = HOP_FRAMES,
    context_frames: int = CONTEXT_FRAMES,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel of each moment and of the frames around it: the model's own input, no model.

    Parameters
    ----------
    log_mel : array_like, shape (M, T)
        Of any length from one frame.
    config : SpectrogramConfig
        The one it was made with.
    hop_frames, context_frames : int
        Frames between moments, and to each side of one.

    Returns
    -------
    features : ndarray, shape (K, M (2 context_frames + 1)), float32
    times_s : ndarray, shape (K,), float64
    """
    config = config or SpectrogramConfig()
    # (K, M, 2 context + 1)
    windows = _around(log_mel, hop_frames, 2 * context_frames + 1, config.silence)
    return windows.flatten(1).float().numpy(), frame_times_s(len(windows), hop_frames, config)


def _around(log_mel: np.ndarray, hop_frames: int, width: int, silence: float) -> Tensor:
    """`width` frames around each frame of the hop: (K, M, width), a view of a padded (M, T)."""
    if log_mel.ndim != 2 or log_mel.shape[1] < 1 or hop_frames < 1:
        raise RequestError(
            f"log-mel has shape {tuple(log_mel.shape)}, hop_frames is {hop_frames}: expected (M, "
            "T) with a frame at least, and a hop of 1 or more."
        )
    padded = nn.functional.pad(torch.as_tensor(log_mel), (width // 2, width), value=silence)
    count = 1 + (log_mel.shape[1] - 1) // hop_frames
    return padded.unfold(1, width, hop_frames)[:, :count].movedim(1, 0)


def frame_times_s(count: int, hop_frames: int, config: SpectrogramConfig) -> np.ndarray:
    """Times of frames in seconds, (count,); multiplied before divided, so errors do not add up."""
    return np.arange(count) * (hop_frames * config.hop_length) / config.sample_rate


def model_features(
    embedder: Embedder, data: Cache, *, layers: Sequence[int] | None = None
) -> Features:
    """:func:`frame_vectors` of the clips of a cache; one made with other settings is refused."""
    data = data.require(embedder.config.spectrogram)
    return lambda index: frame_vectors(embedder, data.array(index), layers=layers)


def mel_features(data: Cache, *, context_frames: int = CONTEXT_FRAMES) -> Features:
    """:func:`mel_frames` of the clips of a cache."""
    data = data.require(data.spectrogram.without_pitch)
    return lambda index: mel_frames(
        data.array(index), data.spectrogram, context_frames=context_frames
    )
