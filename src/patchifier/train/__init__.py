"""Training: pre-training in two stages, fine-tuning, and the one loop behind both."""

from patchifier.lazy import attach

__getattr__, __dir__ = attach(__name__)
