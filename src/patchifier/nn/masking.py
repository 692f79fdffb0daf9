"""How patches are selected by masks over the patches of clips.

Shapes: B clips, N patches, V visible patches of a clip, P patches of all clips, D embed_dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def visible(mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """Patches (B, N) that are neither masked nor padding."""
    return ~mask if valid is None else valid & ~mask


def masked_select(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values (P, ...) of (B, N, ...) where a mask (B, N) is True; all of them without a mask."""
    flat = values.flatten(0, 1)  # (B N, ...)
    return flat if mask is None else flat[indices_of(mask)]


def masked_scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Zeros (B, N, D) with values (P, D) where a mask (B, N) is True."""
    zeros = values.new_zeros(mask.numel(), values.shape[-1])
    return zeros.index_copy(0, indices_of(mask), values).unflatten(0, mask.shape)


def indices_of(mask: Tensor) -> Tensor:
    """Indices (P,) of the True elements among all B * N of a mask (B, N)."""
    return mask.flatten().nonzero()[:, 0]


def pack(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (B, V) of the True elements of each row of a mask (B, N), and which are valid.

    V is the largest count of a row. Rows with fewer are filled up with indices that are not valid.
    """
    count = int(mask.sum(1).max())
    ids_keep = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :count]
    return ids_keep, mask.gather(1, ids_keep)


def gather(values: Tensor, ids_keep: Tensor) -> Tensor:
    """Values (B, V, D) at indices (B, V) of (B, N, D)."""
    return values.gather(1, ids_keep[..., None].expand(-1, -1, values.shape[-1]))


def scatter(values: Tensor, ids_keep: Tensor, valid_keep: Tensor, n_patches: int) -> Tensor:
    """Zeros (B, N, D) with values (B, V, D) at the valid indices (B, V); undoes :func:`gather`."""
    values = values * valid_keep[..., None]
    zeros = values.new_zeros(len(values), n_patches, values.shape[-1])
    return zeros.scatter(1, ids_keep[..., None].expand_as(values), values)


def pad_windows(windows: Sequence[Tensor], value: float) -> tuple[Tensor, Tensor]:
    """Stack windows (N_i, ...), padded with `value`: (B, N, ...) and which are valid (B, N)."""
    padded = nn.utils.rnn.pad_sequence(list(windows), batch_first=True, padding_value=value)
    counts = torch.tensor([len(window) for window in windows], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < counts[:, None]
