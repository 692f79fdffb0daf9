"""The network of the paper's section 4.1, and what goes beyond the paper."""

from patchifier.lazy import attach

__getattr__, __dir__ = attach(__name__)
