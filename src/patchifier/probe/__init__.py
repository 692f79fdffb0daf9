"""Probes on frozen embeddings: what a simple model can read off them.

Every protocol takes features of all clips and the sides of a split, and gives predictions of the test side. The standardiser is
fitted on training clips only and applied to all.
"""

from patchifier.probe.linear import cross_validate, cross_validate_majority, fit_predict, majority, name
from patchifier.probe.sides import Probed, Sides

__all__ = ["Probed", "Sides", "cross_validate", "cross_validate_majority", "fit_predict", "majority", "name"]
