"""Fit the whitening of embeddings to training clips."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint, embedder_of
from patchifier.config import Config
from patchifier.datasets.splits import evenly
from patchifier.nn.model import Patchifier
from patchifier.nn.pooling import require_whitening

WHITENING_CLIPS = 4096  # eight for each of 512 elements


def fit_whitening(
    model: Patchifier,
    config: Config,
    log_mels: Iterable[np.ndarray],
    head: torch.Tensor | None = None,
) -> None:
    """Fit a model's whitening, if it has one, to the embeddings of log-mels (M, T).

    `head` (K, D) are the weights of the target "distil", for ``embed.n_similarity``.
    """
    if model.readout is None:
        return
    require_whitening(config)
    whitening, model.readout = model.readout, None
    embedder = embedder_of(Checkpoint(model, config))
    embeddings = torch.from_numpy(embedder.embed_log_mels(log_mels))
    whitening.fit(embeddings.to(whitening.mean.device), head)
    model.readout = whitening


def examples_of(data: Cache, clips: np.ndarray) -> Iterator[np.ndarray]:
    """Yield log-mels (M, T) of at most 4,096 clips, evenly spread."""
    chosen = evenly(clips, WHITENING_CLIPS)
    return (data.array(int(index)) for index in chosen)
