"""Many heads trained at once: their weights stacked, the steps of all made together.

Heads of one stack see the same input, so that the first layer of all R is one product of matrices, and what is drawn is drawn once. One
stack runs to its end before the next begins: that keeps memory small and its weights in the processor's cache. Gradients and Adam are
written out; tests hold them against torch's own.
"""

import math
import threading

import numpy as np
import torch
from torch import Tensor

from patchifier import tasks
from patchifier.evaluate.probes.heads import (
    Problem,
    Schedule,
    Setting,
    Trained,
    Weights,
    batch,
    first_weights,
    kept,
    scorer,
)
from patchifier.tasks import Task

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's own


# --- one step of a stack ---


def forward(
    weights: Weights, x: Tensor, hidden_kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs (R, B, C) and what the last layer sees, (R, B, H) or the input itself, of inputs (B, E)."""
    hidden = x.expand(len(weights[0]), *x.shape)
    z = torch.baddbmm(weights[1][:, None], hidden, weights[0].transpose(1, 2))
    if len(weights) == 2:
        return z, hidden
    z.relu_()
    if hidden_kept is not None:
        z.mul_(hidden_kept)
    return torch.baddbmm(weights[3][:, None], z, weights[2].transpose(1, 2)), z


def gradients(
    task: Task, weights: Weights, x: Tensor, y: Tensor, hidden_kept: Tensor | None, out: Weights
) -> None:
    """Write every head's own gradients into `out`; its loss is the mean over batch and, but for one-of, outputs."""
    outputs, hidden = forward(weights, x, hidden_kept)
    slope = tasks.activate(task, outputs).sub_(
        y
    )  # so for each of the three losses, up to a factor; (R, B, C)
    slope.mul_(
        {"one-of": 1.0, "many-of": 1 / y.shape[1], "numbers": 2 / y.shape[1]}[task.kind] / len(x)
    )
    torch.bmm(slope.transpose(1, 2), hidden, out=out[-2])
    torch.sum(slope, 1, out=out[-1])
    if len(weights) == 4:
        slope = torch.bmm(slope, weights[2]).mul_(hidden.sign_())
        if hidden_kept is not None:
            slope.mul_(hidden_kept)
        torch.bmm(slope.transpose(1, 2), x.expand(len(slope), *x.shape), out=out[0])
        torch.sum(slope, 1, out=out[1])


class Adam:
    """torch.optim.Adam for stacked weights, each head with its own rate and decay (R,); decay is added to the gradient."""

    def __init__(self, weights: Weights, rates: Tensor, decays: Tensor) -> None:
        self.rates, self.decays, self.steps = rates, decays, 0
        self.first = [torch.zeros_like(weight) for weight in weights]
        self.second = [torch.zeros_like(weight) for weight in weights]

    def step(self, weights: Weights, slopes: Weights) -> None:
        """Move the weights in place; the gradients are used up."""
        self.steps += 1
        step_size = self.rates / (1 - BETA_1**self.steps)
        for weight, slope, first, second in zip(
            weights, slopes, self.first, self.second, strict=True
        ):
            shape = (-1,) + (1,) * (weight.ndim - 1)
            slope.addcmul_(weight, self.decays.view(shape))
            first.lerp_(slope, 1 - BETA_1)
            second.mul_(BETA_2).addcmul_(slope, slope, value=1 - BETA_2)
            # The rate goes into the denominator: a head's own number, so that the last pass needs none.
            below = torch.sqrt(second, out=slope)
            below.mul_((1 / (step_size * math.sqrt(1 - BETA_2**self.steps))).view(shape)).add_(
                (EPSILON / step_size).view(shape)
            )
            weight.addcdiv_(first, below, value=-1)

    def keep(self, rows: Tensor) -> None:
        """Let go of the heads not in `rows`."""
        self.rates, self.decays = self.rates[rows], self.decays[rows]
        self.first, self.second = (
            [moment[rows] for moment in self.first],
            [moment[rows] for moment in self.second],
        )


# --- a stack from first to last step ---


def train_stack(
    problem: Problem,
    settings: list[Setting],
    schedule: Schedule,
    stop: threading.Event | None = None,
) -> list[Trained]:
    """Train heads that differ in rate and decay alone; one that has stopped leaves the stack.

    Parameters
    ----------
    problem : Problem
        Training and validation side.
    settings : list of Setting
        With the same `standardise`, `hidden`, `batch` and `dropout`.
    schedule : Schedule
        Of validation and stopping.
    stop : Event
        Once set, the stack is given up.

    Returns
    -------
    list of Trained
        In the order of `settings`; none if given up.
    """
    stack = _Stack(problem, settings, schedule)
    while len(stack.places):
        if stop and stop.is_set():
            return []
        for _ in range(schedule.every_steps):
            stack.train()
        stack.validate()
        stack.release()
    return [stack.done[place] for place in range(len(settings))]


class _Stack:
    """Heads in training. Row r of weights and moments is the head of setting `places[r]`; figures are by place."""

    def __init__(self, problem: Problem, settings: list[Setting], schedule: Schedule) -> None:
        self.problem, self.settings, self.schedule, self.alike = (
            problem,
            settings,
            schedule,
            settings[0],
        )
        self.weights = [
            torch.stack([weight] * len(settings)) for weight in first_weights(problem, self.alike)
        ]
        self.best, self.slopes = (
            [weight.clone() for weight in self.weights],
            [torch.empty_like(weight) for weight in self.weights],
        )
        rates, decays = (
            torch.tensor([getattr(setting, name) for setting in settings])
            for name in ("rate", "decay")
        )
        self.optimiser = Adam(self.weights, rates, decays)
        self.score, self.valid = (
            scorer(problem.task, problem.targets[1]),
            problem.inputs[self.alike.standardise][1],
        )
        self.step, self.places = 0, np.arange(len(settings))
        self.scores, self.best_steps = np.full(len(settings), -np.inf), np.zeros(len(settings), int)
        self.curves: list[list[float]] = [[] for _ in settings]
        self.done: dict[int, Trained] = {}

    def train(self) -> None:
        """Make one step of every head."""
        x, y = batch(self.problem, self.alike, self.step)
        x.mul_(kept(self.problem, self.alike, self.step, 0, (len(x), x.shape[1])))
        hidden_kept = (
            kept(self.problem, self.alike, self.step, 1, (len(x), self.alike.hidden))
            if self.alike.hidden
            else None
        )
        gradients(self.problem.task, self.weights, x, y, hidden_kept, self.slopes)
        self.optimiser.step(self.weights, self.slopes)
        self.step += 1

    def validate(self) -> None:
        """Score every head and keep the weights of those that are better than ever."""
        figures = self.score(forward(self.weights, self.valid)[0]).numpy()
        for place, figure in zip(self.places, figures, strict=True):
            self.curves[place].append(float(figure))
        improved = figures > self.scores[self.places]
        self.scores[self.places[improved]] = figures[improved]
        self.best_steps[self.places[improved]] = self.step
        rows = torch.from_numpy(np.flatnonzero(improved))
        for best, weight in zip(self.best, self.weights, strict=True):
            best[rows] = weight[rows]

    def release(self) -> None:
        """Let heads leave that have not improved for long, or all at the limit, and close the gaps."""
        stale = (
            self.step - self.best_steps[self.places]
            >= self.schedule.patience * self.schedule.every_steps
        )
        leaving = stale | (self.step + self.schedule.every_steps > self.schedule.limit_steps)
        if not leaving.any():
            return
        for row in np.flatnonzero(leaving):
            place = int(self.places[row])
            figures = float(self.scores[place]), int(self.best_steps[place]), self.curves[place]
            self.done[place] = Trained(
                self.settings[place],
                *figures,
                bool(stale[row]),
                [best[row].clone() for best in self.best],
            )
        staying = torch.from_numpy(np.flatnonzero(~leaving))
        self.places = self.places[~leaving]
        self.weights, self.best = (
            [weight[staying] for weight in self.weights],
            [best[staying] for best in self.best],
        )
        self.slopes = [torch.empty_like(weight) for weight in self.weights]
        self.optimiser.keep(staying)
