"""Encode the windows of many pieces of music, in batches over pieces; each patch once.

Shapes: B windows, N patches, P patches of any windows, M rows, T frames in a patch, D embed_dim.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchifier.config import Config
from patchifier.nn.model import Patchifier
from patchifier.windows import in_batches, pad_windows, stream_windows

WINDOWS = 32  # in a batch: 4 MB in a feed-forward layer of the paper's setting, and so is
PATCHES = 128  # the extractor's first map of these patches

CutMusic = Iterable[tuple[Tensor, int]]  # patches (1, M, T) of a piece, with their new frames


@dataclass(frozen=True)
class EncodedPatch:
    """Vector (D,) of a patch, number of new frames, and the patch (M, T) if summaries need it."""

    vector: Tensor
    n_new_frames: int
    patch: Tensor | None


@dataclass(frozen=True)
class EncodedWindows:
    """A batch of windows.

    Attributes
    ----------
    pieces, first : list of int, length B
        Number of the piece that each window is from, and of its first patch in that piece.
    layers : list of Tensor
        The extractor's vectors (B, N, D), then the sequence (B, 1 + N, D) after each bottleneck
        layer.
    n_new_frames : Tensor, shape (B, N), int64
        Of each patch; 0 is padding.
    patches : Tensor, shape (B, N, M, T), or None
        Where summaries need them.
    """

    pieces: list[int]
    first: list[int]
    layers: list[Tensor]
    n_new_frames: Tensor
    patches: Tensor | None


def encode_windows(
    model: Patchifier, config: Config, music: Iterable[CutMusic]
) -> Iterator[EncodedWindows]:
    """Encode the windows of pieces of music, which arrive as patches."""
    patches = ((number, *cut) for number, piece in enumerate(music) for cut in piece)
    encoded = (
        owned
        for some in in_batches(patches, PATCHES)
        for owned in extract_patches(model, some, keep=bool(config.embed.summaries))
    )
    windows = (
        (number, first, window)
        for number, owned in itertools.groupby(encoded, key=lambda pair: pair[0])
        for first, window in stream_windows((patch for _, patch in owned), config)
    )
    for some in in_batches(windows, WINDOWS):
        pieces, first, sequences = zip(*some, strict=True)
        yield _encode(model, list(pieces), list(first), sequences)


@torch.inference_mode()
def extract_patches(
    model: Patchifier, patches: Sequence[tuple[int, Tensor, int]], *, keep: bool
) -> Iterator[tuple[int, EncodedPatch]]:
    """Extract patches, given as (piece, patch, new frames); `keep` the patches themselves too."""
    pieces, images, n_new_frames = zip(*patches, strict=True)
    stacked = torch.stack(images).to(next(model.parameters()))  # (P, 1, M, T)
    vectors = model.extractor(stacked)  # (P, D)
    kept = stacked[:, 0] if keep else itertools.repeat(None)
    encoded = map(EncodedPatch, vectors, n_new_frames, kept)
    return zip(pieces, encoded, strict=False)


@torch.inference_mode()
def _encode(
    model: Patchifier,
    pieces: list[int],
    first: list[int],
    windows: Sequence[Sequence[EncodedPatch]],
) -> EncodedWindows:
    # (B, N, D), (B, N)
    vectors, valid = pad_windows(
        [torch.stack([patch.vector for patch in window]) for window in windows], 0.0
    )
    counts = [torch.tensor([patch.n_new_frames for patch in window]) for window in windows]
    n_new_frames, _ = pad_windows(counts, 0)
    kept = [
        torch.stack([patch.patch for patch in window if patch.patch is not None])
        for window in windows
        if window[0].patch is not None
    ]
    return EncodedWindows(
        pieces,
        first,
        [vectors, *model.bottleneck(vectors, valid=valid)],
        n_new_frames.to(vectors.device),
        pad_windows(kept, 0.0)[0] if kept else None,
    )


class Means:
    """Means of vectors by the number of what they belong to, summed in float64.

    Attributes
    ----------
    sums : dict of int to Tensor, shape (E,)
    """

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.counts = Counter[int]()

    def add(self, numbers: Iterable[int], vectors: Tensor) -> None:
        """Add vectors (k, E), one to each number."""
        for number, vector in zip(numbers, vectors.cpu().double(), strict=True):
            self.sums[number] = self.sums.get(number, 0) + vector
            self.counts[number] += 1

    def result(self) -> np.ndarray:
        """Means (n, E), float32, in the order in which numbers came first."""
        counts = torch.tensor(list(self.counts.values()))
        return (torch.stack(list(self.sums.values())) / counts[:, None]).float().numpy()
