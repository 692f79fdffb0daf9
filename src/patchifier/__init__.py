"""Patchifier: music as sequences of spectrogram patches."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from patchifier.config import Config
    from patchifier.embed import Embedder, load

__all__ = ["Config", "Embedder", "__version__", "load"]
_HOMES = {"load": "embed", "Embedder": "embed", "Config": "config"}
_PARTS = {
    "audio",
    "spectrogram",
    "model",
    "tasks",
    "augment",
    "checkpoint",
    "datasets",
    "cache",
    "embed",
    "config",
    "weights",
}


def __dir__() -> list[str]:
    """What there is, whether it has been used yet or not."""
    return sorted({*__all__, *_PARTS})


def __getattr__(name: str) -> Any:
    """Load public names when they are first used, so that importing the package does not import torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"patchifier.{_HOMES[name]}"), name)
    if name in _PARTS:
        return importlib.import_module(f"patchifier.{name}")
    raise AttributeError(f"module 'patchifier' has no attribute {name!r}")
