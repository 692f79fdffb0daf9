"""Heads of the grid: their settings, what they are trained on, what is drawn for them, and how they are scored on validation.

Draws depend on (seed, step) alone, never on a run's place: JukeMIR starts each of its runs from seed 0, so its runs share them too,
settings are compared on the same luck, and a head takes the same steps in a stack or alone. A smaller batch is the beginning of the larger.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import tasks
from patchifier.config import RequestError
from patchifier.datasets.splits import Splits
from patchifier.seeding import generator
from patchifier.tasks import Task

Weights = list[Tensor]  # matrix and bias of each layer, as torch.nn.Linear has them


@dataclass(frozen=True, order=True)
class Setting:
    """One run of the grid. The order of settings is the order of the fields: the plainer of two comes first.

    Attributes
    ----------
    standardise : bool
        Whether features are standardised.
    hidden : int
        Size of the hidden layer; 0 for none.
    batch : int
        Clips a step.
    rate : float
        Learning rate.
    dropout : float
        Share of the input, and of the hidden layer, that is dropped in training; counted in 256ths.
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
    """When runs are validated and when they stop.

    Attributes
    ----------
    every_steps : int
        Steps between validations; the first is made after as many.
    patience : int
        Validations in a row without improvement after which a run stops.
    limit_steps : int
        Not part of the protocol, which knows no limit: at 8 steps a validation, 125,000 of them. A run that still improves then is cut
        and counted as unfinished.
    """

    every_steps: int = 8
    patience: int = 256
    limit_steps: int = 1_000_000

    def __post_init__(self) -> None:
        """Check that at least one validation is made."""
        if self.every_steps < 1 or self.patience < 1 or self.limit_steps < self.every_steps:
            raise RequestError(
                f"{self} makes no sense, expected every_steps and patience of at least 1 and limit_steps of at least every_steps."
            )


@dataclass(frozen=True)
class Trained:
    """A run that has stopped.

    Attributes
    ----------
    setting : Setting
        Which.
    score : float
        The best validation score.
    best_step : int
        After how many steps.
    curve : list of float
        All validation scores.
    finished : bool
        False if it was cut.
    weights : list of Tensor
        The best, not the last; empty where they were let go.
    """

    setting: Setting
    score: float
    best_step: int
    curve: list[float]
    finished: bool
    weights: Weights


@dataclass(frozen=True)
class Problem:
    """What heads are trained and chosen on; test clips have no part in it.

    Attributes
    ----------
    inputs : dict of bool to (Tensor, Tensor)
        Training and validation features, as they are and standardised, (n, E).
    targets : (Tensor, Tensor)
        Their targets: (n, C) one-hot, zeros and ones, or standardised numbers.
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
        cls, task: Task, features: np.ndarray, targets: np.ndarray, sides: Splits, seed: int
    ) -> "Problem":
        """Cut features and targets; both standardisers know training clips only."""
        features = np.asarray(features, np.float64)
        mean, scale = moments(features[sides.train])
        known = (sides.train, sides.valid)
        count = len(task.names)
        numbers = task.kind == "numbers"
        centre, spread = (
            moments(np.asarray(targets, np.float64)[sides.train])
            if numbers
            else (np.zeros(count), np.ones(count))
        )
        rows = [
            np.eye(count)[targets[side]]
            if task.kind == "one-of"
            else (targets[side] - centre) / spread
            for side in known
        ]
        targets_of = (_float(rows[0]), _float(rows[1]))
        problem = cls(task, seed, {}, targets_of, mean, scale, centre, spread)
        for flag in (False, True):
            problem.inputs[flag] = (
                problem.scaled(features[sides.train], standardise=flag),
                problem.scaled(features[sides.valid], standardise=flag),
            )
        return problem

    def scaled(self, features: np.ndarray, *, standardise: bool) -> Tensor:
        """Features (n, E) as a head gets them."""
        features = np.asarray(features, np.float64)
        return _float((features - self.mean) / self.scale if standardise else features)

    def finish(self, outputs: Tensor) -> np.ndarray:
        """Turn outputs (n, C) into probabilities, or values in the targets' units."""
        return tasks.activate(self.task, outputs.double()).numpy() * self.spread + self.centre

    def predict(self, trained: Trained, features: np.ndarray) -> np.ndarray:
        """Probabilities or values of features (n, E)."""
        return self.finish(
            outputs_of(
                trained.weights, self.scaled(features, standardise=trained.setting.standardise)
            )
        )


def outputs_of(weights: Weights, x: Tensor) -> Tensor:
    """Outputs (n, C) of one head."""
    hidden = (
        x
        if len(weights) == 2
        else torch.relu(torch.nn.functional.linear(x, weights[0], weights[1]))
    )
    return torch.nn.functional.linear(hidden, weights[-2], weights[-1])


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of columns; a column that never changes has deviation 1."""
    mean, deviation = values.mean(0), values.std(0)
    constant = deviation <= 10 * np.finfo(np.float64).eps * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation)


# --- draws ---


def first_weights(problem: Problem, setting: Setting) -> Weights:
    """Uniform within 1 / sqrt(inputs), as torch.nn.Linear begins; the same for all runs with such a hidden layer."""
    size, count = problem.inputs[False][0].shape[1], len(problem.task.names)
    widths = [size, setting.hidden, count] if setting.hidden else [size, count]
    dice = generator(problem.seed, "first weights", setting.hidden, scope="probe/")
    weights = []
    for inputs, outputs in itertools.pairwise(widths):
        bound = 1 / math.sqrt(inputs)
        weights += [
            _float(dice.uniform(-bound, bound, (outputs, inputs))),
            _float(dice.uniform(-bound, bound, outputs)),
        ]
    return weights


def batch(problem: Problem, setting: Setting, step: int) -> tuple[Tensor, Tensor]:
    """Features (B, E) and targets (B, C) of a step, drawn without replacement; all training clips where they are fewer than a batch."""
    x, y = problem.inputs[setting.standardise][0], problem.targets[0]
    rows = torch.from_numpy(
        generator(problem.seed, "batch", step, scope="probe/").permutation(len(x))[: setting.batch]
    )
    return x[rows], y[rows]


def kept(
    problem: Problem, setting: Setting, step: int, layer: int, shape: tuple[int, int]
) -> Tensor:
    """What dropout multiplies a layer (B, width) by: 0, or 1 over the share that is kept."""
    threshold = round(256 * setting.dropout)
    chance = np.frombuffer(
        generator(problem.seed, f"dropout {layer}", step, scope="probe/").bytes(
            shape[0] * shape[1]
        ),
        np.uint8,
    )
    return (
        torch.from_numpy((chance >= threshold).reshape(shape)).float().mul_(256 / (256 - threshold))
    )


# --- one head alone ---


def train_alone(
    setting: Setting,
    head: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss_at: Callable[[int], Tensor],
    score: Callable[[], float],
    schedule: Schedule,
) -> Trained:
    """Train a head the plain way and leave it with its best weights, not its last.

    Parameters
    ----------
    setting : Setting
        What to call it.
    head : nn.Module
        Trained in place.
    optimiser : Optimizer
        Of its parameters.
    loss_at : callable
        Step -> loss of a batch.
    score : callable
        Its validation score now; better than all before it, the weights are kept.
    schedule : Schedule
        Of validation and stopping.
    """
    best, best_step, curve, step, finished = -math.inf, 0, [], 0, False
    weights = {name: weight.clone() for name, weight in head.state_dict().items()}
    while not finished and step + schedule.every_steps <= schedule.limit_steps:
        for _ in range(schedule.every_steps):
            optimiser.zero_grad()
            loss_at(step).backward()
            optimiser.step()
            step += 1
        with torch.no_grad():
            curve.append(score())
        if curve[-1] > best:
            best, best_step, weights = (
                curve[-1],
                step,
                {name: weight.clone() for name, weight in head.state_dict().items()},
            )
        finished = step - best_step >= schedule.patience * schedule.every_steps
    head.load_state_dict(weights)
    return Trained(setting, best, best_step, curve, finished, list(weights.values()))


# --- validation ---


def scorer(task: Task, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Make the main metric of many runs at once.

    Parameters
    ----------
    task : Task
        Decides the metric; R2 and ROC-AUC are averaged over outputs.
    targets : Tensor, shape (n, C)
        As a :class:`Problem` holds them.

    Returns
    -------
    callable
        Outputs before activation, (R, n, C), -> scores (R,) float64; minus infinity for a run whose outputs are not finite.

    Raises
    ------
    RequestError
        If no score is defined on these clips.
    """
    measure = {"one-of": _gain, "many-of": _roc_auc, "numbers": _r2}[task.kind](
        task, targets.double()
    )

    def score(outputs: Tensor) -> Tensor:
        sound = torch.isfinite(outputs).all(2).all(1)
        return torch.where(sound, measure(outputs.double()), -math.inf)

    return score


def _gain(task: Task, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean of what the likeliest class earns: 1 if it is the true one, or by the table of the key score."""
    table = (
        np.eye(len(task.names)) if task.metric == "accuracy" else tasks.key_score_matrix(task.names)
    )
    gains = targets @ torch.from_numpy(table)  # (n, C)
    return lambda outputs: gains.gather(1, outputs.argmax(2).T).mean(0)


def _roc_auc(task: Task, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Mann and Whitney's U over the number of pairs, averaged over tags that are there sometimes, but not always."""
    mixed = (targets.amax(0) > 0) & (targets.amin(0) < 1)
    if not mixed.any():
        raise RequestError(
            "no tag is both present and absent among the validation clips, expected at least one: give a larger validation side."
        )
    present = targets[:, mixed].T.contiguous()  # (C, n)
    positive, clips = present.sum(1), len(targets)

    def measure(outputs: Tensor) -> Tensor:
        values = outputs[:, :, mixed].transpose(1, 2).contiguous()  # (R, C, n)
        ordered = values.sort(-1).values
        below = torch.searchsorted(ordered, values)
        ranks = (
            below + torch.searchsorted(ordered, values, right=True) + 1
        ) / 2.0  # ties share their mean rank
        areas = ((ranks * present).sum(-1) - positive * (positive + 1) / 2) / (
            positive * (clips - positive)
        )
        return areas.mean(1)

    return measure


def _r2(task: Task, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """1 - SSE / SST, averaged over numbers."""
    around = (targets - targets.mean(0)).square().sum(0)
    if not (around > 0).all():
        name = task.names[int((around <= 0).nonzero()[0, 0])]
        raise RequestError(
            f"number {name!r} is the same for all {len(targets)} validation clips, so it has no R2: give a larger validation side."
        )
    return lambda outputs: (1 - (outputs - targets).square().sum(1) / around).mean(1)
