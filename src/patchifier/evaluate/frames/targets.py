"""Targets of frames: rows [start_s, end_s, label] to numbers.

Shapes: K frames, C outputs (``task.names``).
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from patchifier.tasks import Task

# Target of the frames beside a beat: 46 ms away, which is within the tolerance of 70 ms.
NEIGHBOUR = 0.5
BOUNDARY_S = 0.5  # half width of a boundary, the narrower tolerance of its score


def encode(
    task: Task, rows: Sequence[Sequence[Any]], times_s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Targets of frames.

    Parameters
    ----------
    task : Task
        Frame-wise; its metric decides the kind of target.
    rows : sequence of [start_s, end_s, label]
        Rows of one clip.
    times_s : ndarray, shape (K,)
        Times of the frames, in rising order.

    Returns
    -------
    targets : ndarray, shape (K, C), float32
        Beats: 1 in the nearest frame, 0.5 beside it. Chords: 1 for the major or minor triad that
        mir_eval's "majmin" reduces the label to. Boundaries: from 1 at one to 0.5 half a second
        away, nothing at the clip's own start and end.
    known : ndarray, shape (K,), bool
        Frames with a target: False for chords that are neither major nor minor (sus, dim, ...) and
        without a label.
    """
    if task.metric == "chords":
        return _chords(rows, times_s, len(task.names))
    known = np.ones(len(times_s), bool)
    if task.metric == "boundaries":
        edges = np.unique(np.round([time for row in rows for time in row[:2]], 5))[1:-1]
        return _near(edges, times_s)[:, None], known
    columns = [
        _events([row[0] for row in rows if name == "beat" or row[2] == "1"], times_s)
        for name in task.names
    ]
    return np.stack(columns, axis=1), known


def _events(events_s: Sequence[float], times_s: np.ndarray) -> np.ndarray:
    """1 in the frame nearest to an event, less beside it.

    An event beyond the last frame has none.
    """
    curve = np.zeros(len(times_s), np.float32)
    hop_s = times_s[1] - times_s[0] if len(times_s) > 1 else np.inf
    centres = [
        int(np.abs(times_s - event).argmin()) for event in events_s if event <= times_s[-1] + hop_s
    ]
    for frame in centres:
        curve[max(0, frame - 1) : frame + 2] = np.maximum(
            curve[max(0, frame - 1) : frame + 2], NEIGHBOUR
        )
    curve[centres] = 1
    return curve


def _near(events_s: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    if not len(events_s):
        return np.zeros(len(times_s), np.float32)
    distance = np.abs(times_s[:, None] - events_s).min(1)  # (K,)
    return np.where(distance <= BOUNDARY_S, 1 - NEIGHBOUR * distance / BOUNDARY_S, 0).astype(
        np.float32
    )


def _chords(
    rows: Sequence[Sequence[Any]], times_s: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    targets = np.zeros((len(times_s), count), np.float32)
    for start, end, label in rows:
        number = majmin(label)
        if number is not None:
            targets[(times_s >= start) & (times_s < end), number] = 1
    return targets, targets.sum(1) > 0


@functools.lru_cache(maxsize=4096)
def majmin(label: str) -> int | None:
    """Number of the triad in :data:`patchifier.datasets.labels.CHORDS`, by mir_eval's rule.

    None if it is neither major, minor nor N.
    """
    from mir_eval import chord

    try:
        root, semitones, _ = chord.encode(label)
    except chord.InvalidChordException:  # valid syntax without a definition, such as 'aug7'
        return None
    if label == chord.NO_CHORD:
        return 0
    for first, quality in ((1, "maj"), (13, "min")):
        if np.array_equal(semitones[:8], chord.QUALITIES[quality][:8]):
            return first + int(root)
    return None
