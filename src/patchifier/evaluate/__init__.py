"""Evaluation: probes, comparison of encoders, robustness, leaks between data sets, reports."""
