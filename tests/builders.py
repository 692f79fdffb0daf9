"""Small models, random tensors with a seed, and comparison to a tolerance."""

from typing import Any

import torch

from patchifier.checkpoint import Checkpoint, embedder_of
from patchifier.config import Config, update
from patchifier.embed import Embedder
from patchifier.nn.model import Patchifier

TINY = {
    "channels": [4, 4, 4, 4, 8],
    "embed_dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "mlp_dim": 32,
}


def tiny(*, n_mels: int = 64, n_pitch_bands: int = 0, **model) -> Config:
    """The config of a model of a few thousand parameters."""
    sections = {
        "spectrogram": {"n_mels": n_mels, "n_pitch_bands": n_pitch_bands},
        "model": TINY | model,
        "pretrain": {"n_patches": min(25, model.get("max_patches", 25))},
    }
    return update(Config(), sections)


def embedder(model: Patchifier, config: Config, **parts: Any) -> Embedder:
    """An Embedder of a model in memory, by torch."""
    device = parts.pop("device", "cpu")
    return embedder_of(Checkpoint(model, config, **parts), device=device)


def close(found: Any, wanted: Any, atol: float = 1e-5, rtol: float = 0.0) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=rtol)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
