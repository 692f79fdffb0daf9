"""The paper's head as a probe (4.4): BERT's pooler and a linear layer on a fixed vector, CLS where the encoder pools so."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchifier import tasks
from patchifier.config import RequestError
from patchifier.datasets.splits import Splits, with_validation
from patchifier.evaluate.probes.heads import (
    Problem,
    Schedule,
    Setting,
    Trained,
    batch,
    scorer,
    train_alone,
)
from patchifier.evaluate.probes.protocol import Probed, check
from patchifier.nn.model import Head
from patchifier.tasks import Task

RATES = (
    1e-5,
    1e-4,
    1e-3,
)  # the paper's for fine-tuning, and the two above it: a head alone starts from nothing
BATCH = 32  # the paper's
DECAY = 0.01  # AdamW's own, on matrices


def paper(
    task: Task,
    features: np.ndarray,
    targets: np.ndarray,
    sides: Splits,
    *,
    seed: int = 0,
    rates: Sequence[float] = RATES,
    schedule: Schedule | None = None,
) -> Probed:
    """Train the paper's head at three rates, choose on validation, predict test clips with the best weights.

    The paper gives the head, AdamW, the batch of 32 and a rate; when to stop and what to standardise it leaves open. Features are
    standardised by the training clips, since a pooler saturates on those of most encoders; validation and stopping are those of the
    grid (every 8 steps, ended by 256 validations without a better score).

    Parameters
    ----------
    task : Task
        One-of, many-of or numbers.
    features : ndarray, shape (n, E)
        Of all clips.
    targets : ndarray, shape (n, ...)
        As :func:`patchifier.tasks.encode_targets` gives them; those of test clips are not read.
    sides : Splits
        Without a validation side, a tenth of the training clips, by group, becomes one.
    seed : int
        Of batches and first weights.
    rates : sequence of float
        Learning rates to choose among.
    schedule : Schedule
        Of validation and stopping.

    Returns
    -------
    Probed
        `chosen` has the rate, its best step and validation score, and how many runs were cut at the limit of steps.

    Raises
    ------
    RequestError
        If features, targets or sides do not fit, or no run ever had a finite score.
    """
    check(task, features, targets, sides)
    sides = with_validation(sides, seed)
    problem = Problem.of(task, features, targets, sides, seed)
    runs = {rate: _train(problem, rate, schedule or Schedule()) for rate in sorted(rates)}
    rate = max(runs, key=lambda rate: runs[rate][0].score)  # the smallest of equals
    run, head = runs[rate]
    if run.score == -math.inf:
        raise RequestError(
            "the head never gave finite outputs: features may be too large, look at their scale."
        )
    unfinished = sum(not other.finished for other, _ in runs.values())
    with torch.no_grad():
        predictions = problem.finish(head(problem.scaled(features[sides.test], standardise=True)))
    return Probed(
        predictions,
        {
            "rate": rate,
            f"valid_{task.metric}": run.score,
            "step": run.best_step,
            "unfinished_runs": unfinished,
        },
    )


def _train(problem: Problem, rate: float, schedule: Schedule) -> tuple[Trained, Head]:
    """Train at a rate; returns the figures, and the head with its best weights."""
    setting = Setting(True, 0, BATCH, rate, 0.0, DECAY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        head = Head(problem.inputs[True][0].shape[1], len(problem.task.names))
    loss, score, valid = (
        tasks.loss(problem.task),
        scorer(problem.task, problem.targets[1]),
        problem.inputs[True][1],
    )
    matrices, biases = (
        [part for part in head.parameters() if part.ndim > 1],
        [part for part in head.parameters() if part.ndim == 1],
    )
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}],
        lr=rate,
    )

    def loss_at(step: int) -> Tensor:
        x, y = batch(problem, setting, step)
        return loss(head(x), y)

    return train_alone(
        setting, head, optimiser, loss_at, lambda: float(score(head(valid)[None])), schedule
    ), head
