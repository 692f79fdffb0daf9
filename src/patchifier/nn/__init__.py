"""The network: the paper's section 4.1 (`model`), its quick twins, and what goes beyond the paper."""

from patchifier.lazy import attach

__getattr__, __dir__ = attach(__name__)
