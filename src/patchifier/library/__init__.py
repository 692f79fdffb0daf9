"""A music library: one table of embeddings, search in it, predictions and distances."""

from typing import TYPE_CHECKING

from patchifier.lazy import attach

if TYPE_CHECKING:
    from patchifier.library.build import Embedded, embed_library
    from patchifier.library.stored import read

__all__ = ["Embedded", "embed_library", "read"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Embedded": "patchifier.library.build",
        "embed_library": "patchifier.library.build",
        "read": "patchifier.library.stored",
    },
)
