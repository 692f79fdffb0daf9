"""Decoding of frames: probabilities to rows [start_s, end_s, label].

Each method has a parameter, which the probe chooses among :data:`SETTINGS` on validation clips.

Beats are peaks, or are tracked by dynamic programming (Ellis 2007): one tempo from the
autocorrelation, then the beats that have high probabilities and about the distance of that tempo. A
linear layer on single frames sees no rhythm, so its peaks miss soft beats and find others between;
tracking adds the regularity of music. Where the tempo changes, peaks are better.

Shapes: K frames, C outputs.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from patchifier.estimates import smooth_path
from patchifier.tasks import Task

DecodingParameters = Mapping[str, float]
PEAKS = tuple({"threshold": threshold} for threshold in (0.1, 0.05, 0.2, 0.3, 0.5))
SETTINGS: dict[str, tuple[DecodingParameters, ...]] = {  # the first is used in training
    "beats": ({"tightness": 100.0}, *PEAKS),  # Ellis's own tightness
    "chords": tuple({"change_cost": cost} for cost in (4.0, 0.0, 2.0, 8.0)),  # in nats
    "boundaries": PEAKS,
}
BEAT_GAP_S = 0.2  # 300 beats per minute
BOUNDARY_GAP_S = 3.0  # the wider tolerance of the score
TEMPO_BPM, TEMPO_OCTAVES = 120.0, 0.9  # Ellis's prior over tempo
BARS = (2, 3, 4)  # beats in a bar
TINY = 1e-6


def decode(
    task: Task,
    probabilities: np.ndarray,
    times_s: np.ndarray,
    duration_s: float,
    setting: DecodingParameters | None = None,
) -> list[list[Any]]:
    """Decode one clip.

    Parameters
    ----------
    task : Task
        Frame-wise; its metric decides the method.
    probabilities : ndarray, shape (K, C)
        Beats and boundaries: of each event independently; chords: of all classes, with a sum of 1.
    times_s : ndarray, shape (K,)
        Times of the frames, evenly spaced.
    duration_s : float
        End of the last interval.
    setting : dict
        One of :data:`SETTINGS`; the first by default.

    Returns
    -------
    list of [start_s, end_s, label]
    """
    setting = setting or SETTINGS[task.metric][0]
    hop_s = float(times_s[1] - times_s[0]) if len(times_s) > 1 else duration_s
    if task.metric == "chords":
        path = smooth_path(np.log(np.maximum(probabilities, TINY)), setting["change_cost"])
        return _intervals([task.names[number] for number in path], times_s - hop_s / 2, duration_s)
    if task.metric == "boundaries":
        curve = probabilities[:, 0]
        found = peaks(curve, threshold=setting["threshold"], gap=BOUNDARY_GAP_S / hop_s)
        inside = [_refine(curve, times_s, frame, hop_s) for frame in found]
        edges = [0.0, *inside, duration_s]
        return [[start, end, ""] for start, end in itertools.pairwise(edges) if end > start]
    return _beats(task, probabilities, times_s, hop_s, setting)


def _beats(
    task: Task,
    probabilities: np.ndarray,
    times_s: np.ndarray,
    hop_s: float,
    setting: DecodingParameters,
) -> list[list[Any]]:
    curve = probabilities[:, 0]
    if "threshold" in setting:
        found = peaks(curve, threshold=setting["threshold"], gap=BEAT_GAP_S / hop_s)
    else:
        found = steady_beats(curve, hop_s=hop_s, tightness=setting["tightness"])
    places = [""] * len(found)
    if "downbeat" in task.names:
        downbeats = probabilities[:, task.names.index("downbeat")]
        places = [str(place) for place in bar_positions(downbeats, found)]
    times = [max(0.0, _refine(curve, times_s, frame, hop_s)) for frame in found]
    return [[time, time, place] for time, place in zip(times, places, strict=True)]


def peaks(curve: np.ndarray, *, threshold: float, gap: float) -> list[int]:
    """Frames of local maxima at or above a threshold and at least `gap` frames apart.

    Of two that are closer, the higher one is kept.
    """
    padded = np.pad(curve, 1, constant_values=-np.inf)
    candidates = np.flatnonzero(
        (curve >= threshold) & (curve > padded[:-2]) & (curve >= padded[2:])
    )
    reach = max(0, math.ceil(gap) - 1)  # frames to each side that are too near
    chosen, taken = [], np.zeros(len(curve), bool)
    for frame in candidates[np.argsort(-curve[candidates], kind="stable")]:
        if not taken[frame]:
            chosen.append(int(frame))
            taken[max(0, frame - reach) : frame + reach + 1] = True
    return sorted(chosen)


def _refine(curve: np.ndarray, times_s: np.ndarray, frame: int, hop_s: float) -> float:
    """Time of a peak between frames: the top of the parabola through it and its neighbours."""
    if not 0 < frame < len(curve) - 1:
        return float(times_s[frame])
    before, here, after = curve[frame - 1 : frame + 2]
    bend = before - 2 * here + after
    shift = 0.5 * (before - after) / bend if bend < 0 and here >= max(before, after) else 0.0
    return float(times_s[frame] + shift * hop_s)


def period(curve: np.ndarray, *, hop_s: float) -> float:
    """Frames from beat to beat.

    The highest autocorrelation under a log-normal prior around 120 beats per minute; 0 if there is
    none.
    """
    # 30 to 300 beats per minute
    lags = np.arange(
        max(2, math.floor(BEAT_GAP_S / hop_s)), min(len(curve) - 1, math.ceil(2 / hop_s))
    )
    centred = curve - curve.mean()
    if not len(lags) or not centred.any():
        return 0.0
    strength = np.array([centred[lag:] @ centred[:-lag] / (len(curve) - lag) for lag in lags])
    prior = np.exp(-0.5 * (np.log2(lags * hop_s * TEMPO_BPM / 60) / TEMPO_OCTAVES) ** 2)
    weighted = strength * prior
    best = int(weighted.argmax())
    return _refine(weighted, lags.astype(float), best, 1.0)


def steady_beats(curve: np.ndarray, *, hop_s: float, tightness: float) -> list[int]:
    """Frames of the best sequence of beats of nearly constant tempo.

    Source: D. Ellis, "Beat tracking by dynamic programming" (2007).
    """
    step = period(curve, hop_s=hop_s)
    if not step:
        return []
    local = (curve - curve.mean()) / curve.std()
    gaps = np.arange(max(1, round(step / 2)), round(2 * step) + 1)
    costs = -tightness * np.log(gaps / step) ** 2
    total, before = local.astype(float), np.full(len(curve), -1)
    for frame in range(gaps[0], len(curve)):
        reach = gaps[gaps <= frame]
        options = total[frame - reach] + costs[: len(reach)]
        best = int(options.argmax())
        if options[best] > 0:  # else the sequence begins here
            total[frame] += options[best]
            before[frame] = frame - reach[best]
    beats = [int(total.argmax())]
    while before[beats[-1]] >= 0:
        beats.append(int(before[beats[-1]]))
    return beats[::-1]


def bar_positions(curve: np.ndarray, beats: list[int]) -> list[int]:
    """Position of each beat in its bar, from 1.

    The likeliest of bars of 2, 3 or 4 beats from any first beat.
    """
    if not beats:
        return []
    likely = np.array([curve[max(0, beat - 1) : beat + 2].max() for beat in beats]).clip(
        TINY, 1 - TINY
    )
    order = np.arange(len(beats))
    options = [(order - first) % length for length in BARS for first in range(length)]
    best = max(
        options,
        key=lambda places: float(np.where(places == 0, np.log(likely), np.log(1 - likely)).sum()),
    )
    return [int(place) + 1 for place in best]


def _intervals(names: list[str], starts_s: np.ndarray, duration_s: float) -> list[list[Any]]:
    """Runs of the same name as rows, from 0 to the end of the clip."""
    first = [index for index in range(len(names)) if index == 0 or names[index] != names[index - 1]]
    edges = [0.0, *(float(starts_s[index]) for index in first[1:]), duration_s]
    spans = [
        (start, min(end, duration_s), names[index])
        for index, (start, end) in zip(first, itertools.pairwise(edges), strict=True)
    ]
    return [[start, end, name] for start, end, name in spans if end > start]
