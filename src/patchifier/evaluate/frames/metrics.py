"""Metrics of frame-wise tasks: decoded rows against reference rows, by mir_eval.

==================  ================================================================================
beat_f, downbeat_f  F-measure within 70 ms; the first 5 s are left out, as in mir_eval's own
                    evaluation
.._all              the same from the start, as in MARBLE
wcsr                share of time with the right major or minor triad ("majmin"), out of the time
                    that has one (or N)
boundary_f_0.5, _3  F-measure of boundaries within 0.5 s and 3 s; start and end of a clip count, as
                    in mir_eval's default
.._inside           the same without start and end
==================  ================================================================================

Each is the mean over clips; WCSR is weighted by duration, which gives the share over the whole test
set. A clip without a reference (no beat after 5 s, no boundary inside) has no score and is left
out.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.evaluate.frames.targets import majmin
from patchifier.tasks import Task

TRIM_S = 5.0
Rows = Sequence[Sequence[Any]]
PerClip = dict[str, tuple[np.ndarray, np.ndarray]]


def scores(task: Task, targets: Sequence[Rows], decoded: Sequence[Rows]) -> dict[str, float]:
    """Scores of a whole test set.

    Parameters
    ----------
    task : Task
        Frame-wise; its metric decides which scores.
    targets, decoded : sequence of rows [start_s, end_s, label]
        Reference and estimate of each clip.

    Returns
    -------
    dict
        The main score first; NaN where no clip has a reference.
    """
    return {
        name: weighted_mean(values, weights)
        for name, (values, weights) in per_clip(task, targets, decoded).items()
    }


def per_clip(
    task: Task, targets: Sequence[Rows], decoded: Sequence[Rows], *, main_only: bool = False
) -> PerClip:
    """Scores of the clips and their weights in the mean, (n,) each, by metric; 0 if undefined.

    `main_only` for the main score.
    """
    if len(targets) != len(decoded):
        raise RequestError(
            f"{len(targets)} clips have labels and {len(decoded)} have estimates, expected as many."
        )
    measures: dict[str, Callable[[Rows, Rows], tuple[float, float]]] = (
        _beats(task) if task.metric == "beats" else {}
    )
    if task.metric == "chords":
        measures = {"wcsr": _wcsr}
    if task.metric == "boundaries":
        measures = {
            f"boundary_f_{window:g}{name}": _boundaries(window, inside=bool(name))
            for name in ("", "_inside")
            for window in (0.5, 3)
        }
    found: PerClip = {}
    for name, measure in list(measures.items())[: 1 if main_only else None]:
        pairs = np.array(
            [measure(target, estimate) for target, estimate in zip(targets, decoded, strict=True)],
            float,
        ).reshape(-1, 2)
        found[name] = pairs[:, 0], pairs[:, 1]
    return found


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean over clips that have a score; NaN if none has."""
    defined = weights > 0
    if not defined.any():
        return math.nan
    return float(np.average(values[defined], weights=weights[defined]))


UNDEFINED = (math.nan, 0.0)


def _beats(task: Task) -> dict[str, Callable[[Rows, Rows], tuple[float, float]]]:
    endings = (("", TRIM_S), ("_all", -math.inf))
    return {
        f"{name}_f{ending}": functools.partial(_beat_f, name=name, trim_s=trim_s)
        for ending, trim_s in endings
        for name in task.names
    }


def _times(rows: Rows, name: str, trim_s: float) -> np.ndarray:
    return np.array(
        [start for start, _, label in rows if start >= trim_s and (name == "beat" or label == "1")],
        float,
    )


def _beat_f(target: Rows, guessed: Rows, *, name: str, trim_s: float) -> tuple[float, float]:
    from mir_eval import beat

    reference, estimate = _times(target, name, trim_s), _times(guessed, name, trim_s)
    if not len(reference):
        return UNDEFINED
    return (float(beat.f_measure(reference, estimate)) if len(estimate) else 0.0), 1.0


def _wcsr(target: Rows, estimate: Rows) -> tuple[float, float]:
    from mir_eval import chord, util

    if not target:
        return UNDEFINED
    intervals, names = _filled(target, chord.X_CHORD)
    guessed, guesses = _filled(estimate, chord.NO_CHORD)
    guessed, guesses = util.adjust_intervals(
        guessed, guesses, intervals.min(), intervals.max(), chord.NO_CHORD, chord.NO_CHORD
    )
    intervals, names, guesses = util.merge_labeled_intervals(intervals, names, guessed, guesses)
    durations_s = util.intervals_to_durations(intervals)
    scored = np.array([majmin(name) is not None for name in names])
    right = np.array(
        [majmin(name) == majmin(guess) for name, guess in zip(names, guesses, strict=True)]
    )
    scored_s = float(durations_s[scored].sum())
    return (
        (float(durations_s[scored & right].sum()) / scored_s, scored_s) if scored_s else UNDEFINED
    )


def _filled(rows: Rows, between: str) -> tuple[np.ndarray, list[str]]:
    """Intervals (n, 2) and labels without gaps; mir_eval fills a gap with the chord before it."""
    filled: list[tuple[float, float, str]] = []
    for start, end, label in rows:
        if filled and start > filled[-1][1]:
            filled.append((filled[-1][1], start, between))
        filled.append((start, end, label))
    return np.array([row[:2] for row in filled], float), [row[2] for row in filled]


def _boundaries(window_s: float, *, inside: bool) -> Callable[[Rows, Rows], tuple[float, float]]:
    from mir_eval import segment, util

    def measure(target: Rows, estimate: Rows) -> tuple[float, float]:
        if len(target) < 1 + inside:
            return UNDEFINED
        reference, _ = util.adjust_intervals(
            np.array([row[:2] for row in target], float), t_min=0.0
        )
        guessed, _ = util.adjust_intervals(
            np.array([row[:2] for row in estimate], float), t_min=0.0, t_max=reference.max()
        )
        if inside and len(guessed) < 2:
            return 0.0, 1.0
        return float(segment.detection(reference, guessed, window=window_s, trim=inside)[2]), 1.0

    return measure
