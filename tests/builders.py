"""Small models, random tensors with a seed, and comparison to a tolerance."""

from typing import Any

import torch

from patchifier.config import Config, ModelConfig, update

TINY = {"channels": [4, 4, 4, 4, 8], "width": 16, "layers": 2, "heads": 2, "feed_forward": 32}


def tiny(**changes) -> ModelConfig:
    """A model of a few thousand parameters."""
    return update(Config(), {"model": TINY | {"positions": 25} | changes}).model


def close(found: Any, wanted: Any, atol: float = 1e-5, rtol: float = 0.0) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=rtol)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
