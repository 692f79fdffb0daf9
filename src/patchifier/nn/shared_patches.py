"""Patches that overlapping windows share, so that each is described once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from patchifier.config import Config


@dataclass(frozen=True)
class SharedPatches:
    """Patches (B, N, M, T) of windows that share them, so that each is described once.

    Attributes
    ----------
    patches : Tensor, shape (P, M, T)
    index : Tensor, shape (B, N)
        Patch at each place of a window.
    dtype : torch.dtype
        Precision in which they are described.
    """

    patches: Tensor
    index: Tensor
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, N, M, T."""
        (B, N), (_, M, T) = self.index.shape, self.patches.shape
        return B, N, M, T

    @property
    def device(self) -> torch.device:
        """Where the patches are."""
        return self.patches.device

    def double(self) -> "SharedPatches":
        """Describe them in float64; only the rows that a descriptor needs are converted."""
        return SharedPatches(self.patches, self.index, torch.float64)


Patches = Tensor | SharedPatches


Rows = Callable[[Tensor, Config], Tensor]  # what is taken of patches (..., M, T)


def by_patch(
    compute: Callable[[Tensor, Config], Tensor], rows: Rows, patches: Patches, config: Config
) -> Tensor:
    """Function of some rows of each patch alone, (B, N, ...) -> (B, N, ...)."""
    if isinstance(patches, Tensor):
        return compute(rows(patches, config), config)
    taken = rows(patches.patches, config).to(patches.dtype)  # (P, ...)
    return compute(taken[None], config)[0][patches.index]
