"""Heads trained together.

Weights stacked along a first axis R, gradients of every head by torch.func.

Heads of one stack share the batch and the dropout masks. One stack is trained to its end before the
next, so memory stays small.
"""

import math
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from patchifier import tasks
from patchifier.evaluate.probes.heads import (
    Hyperparameters,
    ProbeData,
    Schedule,
    TrainedHead,
    Weights,
    batch,
    dropout_mask,
    first_weights,
    head_outputs,
    scorer,
)
from patchifier.tasks import Task
from patchifier.train.loop import State, run_steps
from patchifier.train.run import Interrupted

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's own


def stack_gradients(task: Task) -> Callable[..., Weights]:
    """Return a function (weights, x (B, E), y (B, C), dropout mask) -> gradients of each head."""
    loss = tasks.loss(task)

    def head_loss(weights: Weights, x: Tensor, y: Tensor, hidden_mask: Tensor | None) -> Tensor:
        return loss(head_outputs(weights, x, hidden_mask), y)

    return torch.func.vmap(torch.func.grad(head_loss), in_dims=(0, None, None, None))


class Adam:
    """torch.optim.Adam for stacked weights; each head has its own rate and L2 decay (R,)."""

    def __init__(self, weights: Weights, rates: Tensor, decays: Tensor) -> None:
        self.rates, self.decays, self.steps = rates, decays, 0
        self.first = [torch.zeros_like(weight) for weight in weights]
        self.second = [torch.zeros_like(weight) for weight in weights]

    def step(self, weights: Weights, gradients: Weights) -> None:
        """Update the weights in place; the gradients are overwritten."""
        self.steps += 1
        step_size = self.rates / (1 - BETA_1**self.steps)
        for weight, gradient, first, second in zip(
            weights, gradients, self.first, self.second, strict=True
        ):
            shape = (-1,) + (1,) * (weight.ndim - 1)
            gradient.addcmul_(weight, self.decays.view(shape))
            first.lerp_(gradient, 1 - BETA_1)
            second.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
            # Dividing the denominator by each head's step size saves a pass over the weights.
            denominator = torch.sqrt(second, out=gradient)
            denominator.mul_((1 / (step_size * math.sqrt(1 - BETA_2**self.steps))).view(shape))
            denominator.add_((EPSILON / step_size).view(shape))
            weight.addcdiv_(first, denominator, value=-1)

    def keep(self, rows: Tensor) -> None:
        """Discard the heads not in `rows`."""
        self.rates, self.decays = self.rates[rows], self.decays[rows]
        self.first = [moment[rows] for moment in self.first]
        self.second = [moment[rows] for moment in self.second]


def train_stack(
    data: ProbeData,
    settings: list[Hyperparameters],
    schedule: Schedule,
    stop: threading.Event | None = None,
) -> list[TrainedHead]:
    """Train heads that differ in rate and decay alone; a head that has stopped leaves the stack.

    Returns results in the order of `settings`. Raises Interrupted once `stop` is set.
    """
    stack = _Stack(data, settings, schedule)

    def check() -> None:
        if stop and stop.is_set():
            raise Interrupted("the grid was interrupted")

    run_steps(stack.state, stack.take_step, stack.validate, **schedule.steps, save=check)
    return [stack.done[index] for index in range(len(settings))]


class _Stack:
    """Heads in training; row r of weights and moments is the head of ``settings[indices[r]]``."""

    def __init__(
        self, data: ProbeData, settings: list[Hyperparameters], schedule: Schedule
    ) -> None:
        self.data, self.settings, self.schedule, self.shared = data, settings, schedule, settings[0]
        first = first_weights(data, self.shared)
        self.weights = [torch.stack([weight] * len(settings)) for weight in first]
        self.best = [weight.clone() for weight in self.weights]
        rates = torch.tensor([setting.rate for setting in settings])
        decays = torch.tensor([setting.decay for setting in settings])
        self.optimiser, self.gradients = (
            Adam(self.weights, rates, decays),
            stack_gradients(data.task),
        )
        self.score = scorer(data.task, data.targets[1])
        self.outputs = torch.func.vmap(head_outputs, in_dims=(0, None))
        self.state, self.indices = State(), np.arange(len(settings))
        self.scores = np.full(len(settings), -np.inf)
        self.best_steps = np.zeros(len(settings), int)
        self.curves: list[list[float]] = [[] for _ in settings]
        self.done: dict[int, TrainedHead] = {}

    def take_step(self) -> None:
        """Take one step of every head."""
        step, hidden = self.state.step, self.shared.hidden
        x, y = batch(self.data, self.shared, step)
        x.mul_(dropout_mask(self.data, self.shared, step, 0, (len(x), x.shape[1])))
        mask = dropout_mask(self.data, self.shared, step, 1, (len(x), hidden)) if hidden else None
        self.optimiser.step(self.weights, self.gradients(self.weights, x, y, mask))

    def validate(self) -> None:
        """Score every head, keep its best weights, and remove heads that have stopped."""
        step = self.state.step
        if step == 0:
            return
        valid = self.data.inputs[self.shared.standardise][1]
        scores = self.score(self.outputs(self.weights, valid)).numpy()  # (R,)
        for index, score in zip(self.indices, scores, strict=True):
            self.curves[index].append(float(score))
        improved = scores > self.scores[self.indices]
        self.scores[self.indices[improved]] = scores[improved]
        self.best_steps[self.indices[improved]] = step
        rows = torch.from_numpy(np.flatnonzero(improved))
        for best, weight in zip(self.best, self.weights, strict=True):
            best[rows] = weight[rows]
        if improved.any():  # the loop ends when no head has improved for as long as one may wait
            self.state.improve(step)
        self._remove_stopped(step)

    def _remove_stopped(self, step: int) -> None:
        """Remove heads that have not improved for long, or all heads at the limit of steps."""
        stale = step - self.best_steps[self.indices] >= self.schedule.steps["patience"]
        stopped = stale | (step == self.schedule.steps["total"])
        if not stopped.any():
            return
        for row in np.flatnonzero(stopped):
            index = int(self.indices[row])
            self.done[index] = TrainedHead(
                self.settings[index],
                float(self.scores[index]),
                int(self.best_steps[index]),
                self.curves[index],
                bool(stale[row]),
                [best[row].clone() for best in self.best],
            )
        rows = torch.from_numpy(np.flatnonzero(~stopped))
        self.indices = self.indices[~stopped]
        self.weights = [weight[rows] for weight in self.weights]
        self.best = [best[rows] for best in self.best]
        self.optimiser.keep(rows)
