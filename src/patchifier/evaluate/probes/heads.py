"""Heads of the grid: hyperparameters, training data, random draws and validation scores.

Draws depend on (seed, step) alone, as in JukeMIR, which starts every run from seed 0: all runs
share batches and dropout, and a head takes the same steps in a stack or alone. A smaller batch is
the beginning of the larger one.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchifier import tasks
from patchifier.config import RequestError
from patchifier.datasets.splits import Splits
from patchifier.seeding import generator
from patchifier.tasks import Task

Weights = list[Tensor]  # matrix and bias of each layer, as torch.nn.Linear has them


@dataclass(frozen=True, order=True)
class Hyperparameters:
    """Hyperparameters of one run of the grid; of two, the simpler one sorts first.

    Attributes
    ----------
    standardise : bool
        Whether features are standardised.
    hidden : int
        Size of the hidden layer; 0 for none.
    batch : int
        Clips of a step.
    rate : float
        Learning rate.
    dropout : float
        Share of the input and of the hidden layer that is dropped in training, in steps of 1/256.
    decay : float
        L2 weight decay, added to the gradient.
    """

    standardise: bool
    hidden: int
    batch: int
    rate: float
    dropout: float
    decay: float


@dataclass(frozen=True)
class Schedule:
    """Validation interval and early stopping of all runs.

    Attributes
    ----------
    every_steps : int
        Steps between validations; the first is made after as many.
    patience : int
        Validations in a row without improvement after which a run stops.
    limit_steps : int
        Largest number of steps, which the protocol does not limit; a run that still improves then
        counts as unfinished.
    """

    every_steps: int = 8
    patience: int = 256
    limit_steps: int = 1_000_000

    def __post_init__(self) -> None:
        """Require at least one validation."""
        if self.every_steps < 1 or self.patience < 1 or self.limit_steps < self.every_steps:
            raise RequestError(
                f"{self} makes no sense, expected every_steps and patience of at least 1 and "
                "limit_steps of at least every_steps."
            )

    @property
    def steps(self) -> dict[str, int]:
        """Arguments of :func:`patchifier.train.loop.run_steps`."""
        return {
            "total": self.limit_steps // self.every_steps * self.every_steps,
            "validate_every": self.every_steps,
            "patience": self.patience * self.every_steps,
        }


@dataclass(frozen=True)
class TrainedHead:
    """A trained head of a probe: its hyperparameters, validation scores and best weights.

    Attributes
    ----------
    setting : Hyperparameters
        Of the run.
    score : float
        Best validation score.
    best_step : int
        Number of steps before it.
    curve : list of float
        All validation scores.
    finished : bool
        False if the run was stopped by the limit of steps.
    weights : list of Tensor
        The weights with the best score; empty if they were discarded.
    """

    setting: Hyperparameters
    score: float
    best_step: int
    curve: list[float]
    finished: bool
    weights: Weights


@dataclass(frozen=True)
class ProbeData:
    """Training and validation data of the heads; test clips are not part of it.

    Attributes
    ----------
    task : Task
    seed : int
        Of all draws.
    inputs : dict of bool to (Tensor, Tensor)
        Training and validation features (n, E); by whether they are standardised.
    targets : (Tensor, Tensor)
        Their targets (n, C): one-hot, zeros and ones, or standardised numbers.
    mean, scale : ndarray, shape (E,)
        Of training features.
    centre, spread : ndarray, shape (C,)
        Of training numbers; 0 and 1 for other kinds.
    """

    task: Task
    seed: int
    inputs: dict[bool, tuple[Tensor, Tensor]]
    targets: tuple[Tensor, Tensor]
    mean: np.ndarray
    scale: np.ndarray
    centre: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(
        cls, task: Task, features: np.ndarray, targets: np.ndarray, splits: Splits, seed: int
    ) -> "ProbeData":
        """Split features and targets; both standardisers are fitted on the training clips."""
        features = np.asarray(features, np.float64)
        mean, scale = moments(features[splits.train])
        clips = (splits.train, splits.valid)
        count = len(task.names)
        numbers = task.kind == "numbers"
        centre, spread = (
            moments(np.asarray(targets, np.float64)[splits.train])
            if numbers
            else (np.zeros(count), np.ones(count))
        )
        rows = [
            np.eye(count)[targets[indices]]
            if task.kind == "one-of"
            else (targets[indices] - centre) / spread
            for indices in clips
        ]
        targets_of = (_float(rows[0]), _float(rows[1]))
        data = cls(task, seed, {}, targets_of, mean, scale, centre, spread)
        for flag in (False, True):
            data.inputs[flag] = (
                data.scaled(features[splits.train], standardise=flag),
                data.scaled(features[splits.valid], standardise=flag),
            )
        return data

    def scaled(self, features: np.ndarray, *, standardise: bool) -> Tensor:
        """Return features (n, E) as a head sees them."""
        features = np.asarray(features, np.float64)
        return _float((features - self.mean) / self.scale if standardise else features)

    def finish(self, outputs: Tensor) -> np.ndarray:
        """Turn outputs (n, C) into probabilities, or values in the targets' units."""
        return tasks.activate(self.task, outputs.double()).numpy() * self.spread + self.centre

    def predict(self, trained: TrainedHead, features: np.ndarray) -> np.ndarray:
        """Probabilities or values of features (n, E)."""
        return self.finish(
            head_outputs(
                trained.weights, self.scaled(features, standardise=trained.setting.standardise)
            )
        )


def head_outputs(weights: Weights, x: Tensor, hidden_mask: Tensor | None = None) -> Tensor:
    """Return the outputs (B, C) of one head for inputs (B, E).

    Dropout multiplies the hidden layer by a mask (B, H).
    """
    if len(weights) == 4:
        x = torch.relu(torch.nn.functional.linear(x, weights[0], weights[1]))
        x = x if hidden_mask is None else x * hidden_mask
    return torch.nn.functional.linear(x, weights[-2], weights[-1])


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of columns; a column that never changes has deviation 1."""
    mean, deviation = values.mean(0), values.std(0)
    constant = deviation <= 10 * np.finfo(np.float64).eps * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation)


# --- draws ---


def first_weights(data: ProbeData, setting: Hyperparameters) -> Weights:
    """Draw weights uniform within 1 / sqrt(inputs), as torch.nn.Linear.

    The same for all runs with this hidden layer.
    """
    size, count = data.inputs[False][0].shape[1], len(data.task.names)
    widths = [size, setting.hidden, count] if setting.hidden else [size, count]
    rng = generator(data.seed, "first weights", setting.hidden, scope="probe/")
    weights = []
    for inputs, outputs in itertools.pairwise(widths):
        bound = 1 / math.sqrt(inputs)
        weights += [
            _float(rng.uniform(-bound, bound, (outputs, inputs))),
            _float(rng.uniform(-bound, bound, outputs)),
        ]
    return weights


def batch(data: ProbeData, setting: Hyperparameters, step: int) -> tuple[Tensor, Tensor]:
    """Draw features (B, E) and targets (B, C) of a step without replacement.

    All training clips if they are fewer than a batch.
    """
    x, y = data.inputs[setting.standardise][0], data.targets[0]
    rows = torch.from_numpy(
        generator(data.seed, "batch", step, scope="probe/").permutation(len(x))[: setting.batch]
    )
    return x[rows], y[rows]


def dropout_mask(
    data: ProbeData, setting: Hyperparameters, step: int, layer: int, shape: tuple[int, int]
) -> Tensor:
    """Draw the factors of dropout for a layer (B, width): 0, or 1 over the share that is kept."""
    threshold = round(256 * setting.dropout)
    chance = np.frombuffer(
        generator(data.seed, f"dropout {layer}", step, scope="probe/").bytes(shape[0] * shape[1]),
        np.uint8,
    )
    return (
        torch.from_numpy((chance >= threshold).reshape(shape)).float().mul_(256 / (256 - threshold))
    )


# --- validation ---


def scorer(task: Task, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that computes the main metric of many heads at once.

    It maps outputs before activation (R, n, C) to scores (R,) float64, minus infinity for outputs
    that are not finite. R2 and ROC-AUC are averaged over outputs. `targets` (n, C) are those of
    :class:`ProbeData`; they are refused if no score is defined on them.
    """
    measure = {"one-of": _gain, "many-of": _roc_auc, "numbers": _r2}[task.kind](
        task, targets.double()
    )

    def score(outputs: Tensor) -> Tensor:
        finite = torch.isfinite(outputs).all(2).all(1)
        return torch.where(finite, measure(outputs.double()), -math.inf)

    return score


def _gain(task: Task, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Accuracy of the most probable class, or its mean key score."""
    table = (
        np.eye(len(task.names)) if task.metric == "accuracy" else tasks.key_score_matrix(task.names)
    )
    gains = targets @ torch.from_numpy(table)  # (n, C)
    return lambda outputs: gains.gather(1, outputs.argmax(2).T).mean(0)


def _roc_auc(task: Task, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """ROC-AUC as Mann and Whitney's U over the number of pairs, mean over tags.

    Tags in all clips or in none are left out.
    """
    mixed = (targets.amax(0) > 0) & (targets.amin(0) < 1)
    if not mixed.any():
        raise RequestError(
            "no tag is both present and absent among the validation clips, expected at least one: "
            "give a larger validation side."
        )
    truth = targets[:, mixed].T.contiguous()  # (C, n)
    positive, clips = truth.sum(1), len(targets)

    def measure(outputs: Tensor) -> Tensor:
        values = outputs[:, :, mixed].transpose(1, 2).contiguous()  # (R, C, n)
        ordered = values.sort(-1).values
        below = torch.searchsorted(ordered, values)
        # ties share their mean rank
        ranks = (below + torch.searchsorted(ordered, values, right=True) + 1) / 2.0
        areas = ((ranks * truth).sum(-1) - positive * (positive + 1) / 2) / (
            positive * (clips - positive)
        )
        return areas.mean(1)

    return measure


def _r2(task: Task, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """1 - SSE / SST, averaged over numbers; those that are the same for all clips are left out."""
    total = (targets - targets.mean(0)).square().sum(0)
    varied = total > 0
    if not varied.any():
        raise RequestError(
            f"all numbers ({', '.join(task.names)}) are the same for all {len(targets)} validation "
            "clips, so there is no R2: give a larger validation side."
        )
    squared = lambda outputs: (outputs - targets)[..., varied].square().sum(1)  # noqa: E731
    return lambda outputs: (1 - squared(outputs) / total[varied]).mean(1)
