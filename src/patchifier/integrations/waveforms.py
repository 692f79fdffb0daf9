"""Waveforms through a model of torch, with a gradient: for Hugging Face and MARBLE."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from patchifier import spectrogram
from patchifier.config import Config, RequestError
from patchifier.nn.masking import pad_windows
from patchifier.nn.model import Patchifier
from patchifier.nn.pooling import window_embeddings
from patchifier.windows import windows_of

# Row of the waveform, first patch, patches (N, 1, M, W) and their new frames (N,)
Window = tuple[int, int, np.ndarray, np.ndarray]


def encode_waveforms(
    model: Patchifier, config: Config, waveforms: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Sequence (B, N, D) of each layer, embedding (B, E) and padding mask (B, N) of waveforms.

    Waveforms (S_i,) have any lengths, and each gives what it gives alone. Differentiable. Log-mel,
    pooling, descriptors and whitening are computed in float32 at least, the network in the model's
    own precision or in that of ``torch.autocast``. Layers are the extractor's vectors, then those
    after each bottleneck layer, without CLS; where windows overlap, their mean; 0 in padding. The
    embedding is the mean over windows, as of :class:`patchifier.embed.Embedder`. Whitening or
    estimators in less than float32 are refused.
    """
    _require_exact(model)
    # 1. windows of all waveforms in one batch
    log_mels = (
        spectrogram.log_mel(waveform.detach().float().cpu().numpy(), config.spectrogram)
        for waveform in waveforms
    )
    device = next(model.parameters()).device
    exact = torch.autocast(device.type, enabled=False)
    whole, without_silence = _windows(log_mels, config)
    cut = whole + without_silence
    patches, valid = pad_windows(
        [torch.from_numpy(window).to(device) for _, _, window, _ in cut],
        config.spectrogram.silence,
    )
    n_new_frames, _ = pad_windows([torch.from_numpy(frames).to(device) for *_, frames in cut], 0)
    # 2. the model
    layers = model.forward_encoder(patches.to(next(model.parameters()).dtype), valid=valid)
    with exact:
        sharp = [layer.to(torch.promote_types(layer.dtype, torch.float32)) for layer in layers]
        pooled = window_embeddings(model, config, sharp, n_new_frames, patches[:, :, 0])
    # 3. mean over windows: index of each patch of each window in its sequence
    owners, firsts = torch.tensor(
        [(row, first) for row, first, *_ in cut], device=patches.device
    ).unbind(1)
    counts = torch.tensor(
        [
            max(first + len(window) for owner, first, window, _ in whole if owner == row)
            for row in range(len(waveforms))
        ]
    )
    shape = (len(waveforms), int(counts.max()))
    order = torch.arange(shape[1], device=patches.device)
    places = (owners * shape[1] + firsts)[:, None] + order[: valid.shape[1]]  # (windows, N)
    used = valid[: len(whole)]
    sequences = [
        _mean_at(layer[: len(whole), -valid.shape[1] :][used], places[: len(whole)][used], shape)
        for layer in layers
    ]
    again = {row for row, *_ in without_silence}
    chosen = [
        number for number, (row, *_) in enumerate(cut) if number >= len(whole) or row not in again
    ]
    return (
        sequences,
        _mean_at(pooled[chosen], owners[chosen], (len(waveforms), 1))[:, 0],
        order < counts.to(patches.device)[:, None],
    )


def _windows(log_mels: Iterable[np.ndarray], config: Config) -> tuple[list[Window], list[Window]]:
    """Windows of log-mels (M, T), and those without silence of log-mels that hold some."""
    whole: list[Window] = []
    without_silence: list[Window] = []
    for row, log_mel in enumerate(log_mels):
        found = [(row, *window) for window in windows_of(log_mel, config)]
        sounding = [(row, *window) for window in windows_of(log_mel, config, silence=False)]
        whole += found
        if _patches(sounding[-1]) < _patches(found[-1]):
            without_silence += sounding
    return whole, without_silence


def _patches(last: Window) -> int:
    """Patches of a sequence, from its last window."""
    return last[1] + len(last[2])


def _require_exact(model: Patchifier) -> None:
    """Refuse whitening and estimators whose numbers were rounded to 16 bits."""
    for name in ("readout", "estimators"):
        part = getattr(model, name)
        for tensor in () if part is None else part.state_dict().values():
            if tensor.dtype.itemsize < torch.float32.itemsize:
                raise RequestError(
                    f"the model's {name} is in {tensor.dtype}, expected float32: load it with "
                    f"AutoModel.from_pretrained(..., dtype={tensor.dtype}), which keeps it, not "
                    "with .half() or .to()."
                )


def _mean_at(values: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """Mean of the values (P, D) at each index (P,) of rows and columns: (B, N, D), else 0."""
    total = values.new_zeros(shape[0] * shape[1], values.shape[-1]).index_add(0, places, values)
    count = values.new_zeros(len(total)).index_add(0, places, values.new_ones(len(values)))
    return (total / count.clamp(min=1)[:, None]).unflatten(0, shape)
