"""Patchifier: music as sequences of spectrogram patches."""

from patchifier.lazy import attach

__version__ = "0.4.0"

TYPE_CHECKING = False  # not from typing, which takes longer than this file
if TYPE_CHECKING:
    from patchifier.config import Config
    from patchifier.embed import Embedder, load

__all__ = ["Config", "Embedder", "__version__", "load"]
__getattr__, __dir__ = attach(  # importing the package does not import torch
    __name__,
    {
        "Config": "patchifier.config",
        "Embedder": "patchifier.embed",
        "load": "patchifier.embed",
        "model": "patchifier.nn.model",
        "search": "patchifier.library.search",
    },
)
