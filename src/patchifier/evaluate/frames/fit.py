"""A linear probe of frames: one layer, trained on frames, stopped and scored on clips.

Shapes: K frames of a clip, N of all training clips, E features, C outputs.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import statistics
from patchifier.cache import Cache
from patchifier.config import RequestError
from patchifier.datasets import labels
from patchifier.datasets.splits import Splits, with_validation
from patchifier.evaluate.frames import metrics, targets
from patchifier.evaluate.frames.decode import SETTINGS, DecodingParameters, decode
from patchifier.evaluate.frames.vectors import Features
from patchifier.io import Progress, silent
from patchifier.tasks import Task
from patchifier.train.loop import fit_head

BATCH = 1024  # frames
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
VALIDATE_EVERY = 100  # steps
PATIENCE = 5  # validations without a better one
STEPS = 5000  # at most


@dataclass(frozen=True)
class FrameResult:
    """Scores of the test clips by a probe of frames.

    Attributes
    ----------
    per_clip : dict of str to (ndarray, ndarray), shape (n_test,) each
        For each score, the main one first: that of each test clip, in the order of ``splits.test``,
        NaN where it is not defined, and its weight in the mean.
    chosen : dict
        Chosen on validation clips: decoding parameters, steps of training, and the score there.
    """

    per_clip: metrics.PerClip
    chosen: dict[str, Any]

    @property
    def metric(self) -> str:
        """Name of the main score: "beat_f", "wcsr" or "boundary_f_0.5"."""
        return next(iter(self.per_clip))

    @property
    def scores(self) -> dict[str, float]:
        """Mean of each score over the test clips."""
        return {name: metrics.weighted_mean(*found) for name, found in self.per_clip.items()}


def over_folds(found: Sequence[Sequence[FrameResult]]) -> statistics.Statistic:
    """Score of clips of all folds as a statistic, mean over repeated runs."""
    runs = []
    for run in found:
        values, weights = zip(*[result.per_clip[result.metric] for result in run])
        runs.append((np.concatenate(values), np.concatenate(weights)))

    def statistic(indices: np.ndarray) -> float:
        scores = [metrics.weighted_mean(values[indices], part[indices]) for values, part in runs]
        return float(np.mean(scores))

    return statistic


def other_scores(found: Sequence[Sequence[FrameResult]]) -> dict[str, float]:
    """Scores besides the main one, mean over repeated runs and folds."""
    results = [result for run in found for result in run]
    names = [name for name in results[0].scores if name != results[0].metric]
    return {
        f"also_{name}": float(np.mean([result.scores[name] for result in results]))
        for name in names
    }


@dataclass(frozen=True)
class _Clip:
    features: np.ndarray  # (K, E)
    times_s: np.ndarray  # (K,)
    rows: list[list[Any]]
    duration_s: float


def probe_frames(
    task: Task,
    data: Cache,
    features: Features,
    splits: Splits,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> FrameResult:
    """Train a linear probe on vectors of frames and score it on the test clips.

    Logistic regression (cross-entropy) by AdamW; features standardised by training frames; stopped
    by the main figure on validation clips, on which the way of decoding is chosen too. Features of
    training clips are in memory twice for a moment, those of validation clips once, those of test
    clips one at a time: 22 KB for each second of audio at 256 features every 46 ms.

    Parameters
    ----------
    task : Task
        Per-frame.
    data : Cache
        The clips.
    features : callable
        Takes the index of a clip, gives features (K, E) and times (K,) in seconds:
        :func:`~patchifier.evaluate.frames.model_features`,
        :func:`~patchifier.evaluate.frames.mel_features`, or anything else.
    splits : Splits
        Training, validation (a tenth of the training clips, by group, if there are none) and test
        clips.
    seed : int
        Of the order of training frames.
    progress : callable
        Called with clips read, clips in all, and a note, after every clip, during training and
        during validation.

    Returns
    -------
    FrameResult

    Raises
    ------
    RequestError
        If a clip has no labels or features that are no numbers, or if there is nothing to learn, to
        validate or to test.
    """
    if task.kind != "per-frame":
        raise RequestError(
            f"the task is {task.kind}, expected per-frame: its clips have one target each."
        )
    if not len(splits.train) or not len(splits.test):
        raise RequestError(
            f"there are {len(splits.train)} training and {len(splits.test)} test clips, expected "
            "at least one of each."
        )
    splits = with_validation(splits, seed)
    known = len(splits.train) + len(splits.valid)
    clips = known + len(splits.test)
    features = _counted(features, clips, progress)
    show = functools.partial(progress, known, clips)
    learning = [_clip(data, features, index) for index in splits.train]
    probe = _Probe(task, learning)
    inputs, wanted = _training_frames(probe, learning)
    del learning
    holding = [probe.standardised(_clip(data, features, index)) for index in splits.valid]
    steps = _fit(probe, inputs, wanted, holding, seed, show)
    scored = [(_score(probe, holding, each, show), each) for each in SETTINGS[task.metric]]
    on_valid, setting = max(scored, key=lambda pair: pair[0])  # the first of equals
    target, decoded = [], []
    for index in splits.test:
        clip = _clip(data, features, index)
        target.append(clip.rows)
        decoded.append(probe.rows(probe.standardised(clip), setting))
    found = metrics.per_clip(task, target, decoded)
    result = FrameResult(found, {**setting, "steps": steps, "valid": on_valid})
    _require_defined(result.metric, result.scores[result.metric], "test")
    return result


def _counted(features: Features, clips: int, progress: Progress) -> Features:
    """Features that report how many clips have been read."""
    done = itertools.count(1)

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        found = features(index)
        progress(next(done), clips, "features of clips")
        return found

    return read


def _clip(data: Cache, features: Features, index: int) -> _Clip:
    """Features and labels of a clip; labels beyond the end of its audio are no part of it."""
    clip = data.clips[index]
    if clip.target is None:
        raise RequestError(
            f"clip {clip.id!r} has no labels, expected rows of [start_s, end_s, label] for each."
        )
    values, times_s = features(int(index))
    if values.ndim != 2 or len(values) != len(times_s) or not len(values):
        raise RequestError(
            f"features of clip {clip.id!r} have shape {values.shape} for {len(times_s)} times, "
            "expected (K, E) with K of at least 1."
        )
    if not np.isfinite(values).all():
        raise RequestError(f"features of clip {clip.id!r} hold values that are not numbers.")
    duration_s = float(data.frames[index]) * data.spectrogram.frame_s
    rows = labels.within(clip.target, 0.0, duration_s)
    return _Clip(np.asarray(values, np.float32), times_s, rows, duration_s)


class _Probe:
    """A standardiser and one linear layer that starts at zero; the problem is convex."""

    def __init__(self, task: Task, clips: Sequence[_Clip]) -> None:
        count = sum(len(clip.features) for clip in clips)
        self.task = task
        self.mean = sum(clip.features.sum(0, dtype=np.float64) for clip in clips) / count  # (E,)
        variance = sum(np.square(clip.features - self.mean).sum(0) for clip in clips) / count
        self.scale = np.sqrt(variance)
        self.scale[self.scale < 1e-8] = 1.0  # constant features
        self.layer = nn.Linear(clips[0].features.shape[1], len(task.names))
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def standardised(self, clip: _Clip) -> _Clip:
        """The same clip in the features that the layer sees."""
        return replace(clip, features=((clip.features - self.mean) / self.scale).astype(np.float32))

    @torch.no_grad()
    def rows(self, clip: _Clip, setting: DecodingParameters) -> list[list[Any]]:
        """Predicted rows of a standardised clip."""
        outputs = self.layer(torch.from_numpy(clip.features))  # (K, C)
        probabilities = outputs.softmax(1) if self.task.metric == "chords" else outputs.sigmoid()
        return decode(
            self.task, probabilities.double().numpy(), clip.times_s, clip.duration_s, setting
        )


def _fit(
    probe: _Probe,
    inputs: Tensor,
    wanted: Tensor,
    holding: Sequence[_Clip],
    seed: int,
    show: Callable[[str], None],
) -> int:
    """Train on frames (N, E) with targets (N, C), stopped on validation clips.

    Returns the step of the best score.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(
        probe.layer.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    cross_entropy = (
        nn.functional.cross_entropy
        if probe.task.metric == "chords"
        else nn.functional.binary_cross_entropy_with_logits
    )

    def loss(step: int) -> Tensor:
        frames = torch.randint(len(inputs), (min(BATCH, len(inputs)),), generator=generator)
        return cross_entropy(probe.layer(inputs[frames]), wanted[frames])

    state, _ = fit_head(
        probe.layer,
        optimiser,
        loss,
        lambda: _score(probe, holding, SETTINGS[probe.task.metric][0], show),
        total=STEPS,
        validate_every=VALIDATE_EVERY,
        patience=PATIENCE * VALIDATE_EVERY,
        progress=lambda done, total, note: show(note),
    )
    return state.best_step


def _training_frames(probe: _Probe, clips: Sequence[_Clip]) -> tuple[Tensor, Tensor]:
    """Features (N, E) and targets (N, C) of frames from which there is something to learn."""
    # (K, C) and (K,) each
    encoded = [targets.encode(probe.task, clip.rows, clip.times_s) for clip in clips]
    wanted = np.concatenate([wanted[known] for wanted, known in encoded])
    if not wanted.any():
        raise RequestError(
            f"the {len(clips)} training clips hold nothing to learn: not one "
            f"{' or '.join(probe.task.names[:2])} in them."
        )
    inputs, first = np.empty((len(wanted), len(probe.scale)), np.float32), 0
    for clip, (_, known) in zip(clips, encoded, strict=True):
        last = first + int(known.sum())
        inputs[first:last] = probe.standardised(clip).features[known]
        first = last
    return torch.from_numpy(inputs), torch.from_numpy(wanted)


def _score(
    probe: _Probe, clips: Sequence[_Clip], setting: DecodingParameters, show: Callable[[str], None]
) -> float:
    """The main figure of these clips."""
    predicted = []
    for number, clip in enumerate(clips, 1):
        predicted.append(probe.rows(clip, setting))
        show(f"validation clip {number} of {len(clips)}")
    found = metrics.per_clip(probe.task, [clip.rows for clip in clips], predicted, main_only=True)
    name, (values, weights) = next(iter(found.items()))
    return _require_defined(name, metrics.weighted_mean(values, weights), "validation")


def _require_defined(name: str, value: float, split: str) -> float:
    if math.isnan(value):
        raise RequestError(
            f"no {split} clip has anything that {name} needs (a beat after {metrics.TRIM_S:g} s, "
            "a major or minor chord, a boundary)."
        )
    return value
