"""Evaluation: probes, comparison of encoders, robustness, leaks between data sets, reports."""

from patchifier.lazy import attach

__getattr__, __dir__ = attach(__name__)
