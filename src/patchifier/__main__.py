"""``python -m patchifier``, which torchrun can start."""

from patchifier.cli import script

script()
