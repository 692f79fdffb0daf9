"""The paper's head as a probe (4.4): BERT's pooler and a linear layer on a fixed vector."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from patchifier import tasks
from patchifier.config import RequestError
from patchifier.datasets.splits import Splits, with_validation
from patchifier.evaluate.probes.heads import Hyperparameters, ProbeData, Schedule, batch, scorer
from patchifier.evaluate.probes.protocol import Probed, check
from patchifier.io import Progress, silent
from patchifier.nn.model import Head
from patchifier.tasks import Task
from patchifier.train.loop import State, fit_head

# The paper's rate of fine-tuning, and two above it: the head starts from random weights.
RATES = (1e-5, 1e-4, 1e-3)
BATCH = 32  # the paper's
DECAY = 0.01  # AdamW's own, on matrices


def paper(
    task: Task,
    features: np.ndarray,
    targets: np.ndarray,
    splits: Splits,
    *,
    seed: int = 0,
    rates: Sequence[float] = RATES,
    schedule: Schedule | None = None,
    progress: Progress = silent,
) -> Probed:
    """Train the paper's head at three rates and predict the test clips by the best on validation.

    The paper gives the head, AdamW, the batch of 32 and a rate; it leaves open when to stop and
    what to standardise. Features are standardised by the training clips, since a pooler saturates
    on those of most encoders; validation and stopping are those of the grid (every 8 steps, ended
    by 256 validations without a better score).

    Parameters and errors are those of :func:`patchifier.evaluate.probes.probe`, and:

    Parameters
    ----------
    rates : sequence of float
        Learning rates to choose among.
    schedule : Schedule
        Of validation and stopping.

    Returns
    -------
    Probed
        `chosen` has the rate, its best step and validation score, and the number of runs that
        reached the limit of steps.
    """
    check(task, features, targets, splits)
    splits = with_validation(splits, seed)
    data, schedule = ProbeData.of(task, features, targets, splits, seed), schedule or Schedule()
    runs: dict[float, tuple[State, Head]] = {}
    for rate in sorted(rates):
        show = functools.partial(progress, len(runs), len(rates))
        runs[rate] = _train(data, rate, schedule, show)
    progress(len(rates), len(rates), "")
    rate = max(runs, key=lambda rate: runs[rate][0].best_score)  # the smallest of equals
    state, head = runs[rate]
    if state.best_score == -math.inf:
        raise RequestError(
            "the head never gave finite outputs: features may be too large, look at their scale."
        )
    patience = schedule.steps["patience"]
    with torch.no_grad():
        outputs = head(data.scaled(features[splits.test], standardise=True))
    return Probed(
        data.finish(outputs),
        {
            "rate": rate,
            f"valid_{task.metric}": state.best_score,
            "step": state.best_step,
            "unfinished_runs": sum(one.step - one.best_step < patience for one, _ in runs.values()),
        },
    )


def _train(
    data: ProbeData, rate: float, schedule: Schedule, show: Callable[[str], None]
) -> tuple[State, Head]:
    """Train at a rate; returns the state of training, and the head with its best weights."""
    setting = Hyperparameters(True, 0, BATCH, rate, 0.0, DECAY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.seed)
        head = Head(data.inputs[True][0].shape[1], len(data.task.names))
    loss, score = tasks.loss(data.task), scorer(data.task, data.targets[1])
    valid = data.inputs[True][1]
    matrices = [part for part in head.parameters() if part.ndim > 1]
    biases = [part for part in head.parameters() if part.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}],
        lr=rate,
    )

    def loss_at(step: int) -> Tensor:
        x, y = batch(data, setting, step)
        return loss(head(x), y)

    state, _ = fit_head(
        head,
        optimiser,
        loss_at,
        lambda: float(score(head(valid)[None])),
        progress=lambda done, total, note: show(f"rate {rate:g}, {note}"),
        **schedule.steps,
    )
    return state, head
