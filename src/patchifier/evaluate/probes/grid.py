"""JukeMIR's probe: 216 heads, the best on validation tested once; the whole grid as a few stacks of heads trained at once.

Protocol: C. Castellon, C. Donahue, P. Liang, "Codified audio language modeling learns useful representations for music information
retrieval" (2021), and its code: a linear layer or one hidden layer, Adam, dropout on the input and after the hidden layer, batches drawn
without replacement at each step, validation every 8 steps, a run ended by 256 validations without a better score, its best weights
restored, no limit of epochs. Where the protocol leaves a choice: the first validation is after 8 steps; of settings with the same score
the plainer one is taken; fewer training clips than a batch are all taken; numbers are standardised by the training clips, which R2 does
not notice.
"""

import dataclasses
import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import tasks
from patchifier.config import RequestError
from patchifier.datasets.splits import Splits, with_validation
from patchifier.evaluate.probes.heads import (
    Problem,
    Schedule,
    Setting,
    Trained,
    batch,
    first_weights,
    kept,
    train_alone,
)
from patchifier.evaluate.probes.protocol import Probed, check
from patchifier.evaluate.probes.stack import train_stack
from patchifier.io import Progress, silent
from patchifier.tasks import Task

log = logging.getLogger(__name__)

SETTINGS = tuple(
    Setting(*values)
    for values in itertools.product(
        (False, True), (0, 512), (64, 256), (1e-5, 1e-4, 1e-3), (0.25, 0.5, 0.75), (0.0, 1e-4, 1e-3)
    )
)
STACK_BYTES = 1_000_000_000  # of one stack's weights, gradients, moments and activations


def jukemir(
    task: Task,
    features: np.ndarray,
    targets: np.ndarray,
    sides: Splits,
    *,
    seed: int = 0,
    settings: Sequence[Setting] = SETTINGS,
    schedule: Schedule | None = None,
    progress: Progress = silent,
) -> Probed:
    """Train the grid, choose on validation, predict test clips with that one model.

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
        Of batches, dropout and first weights; 0 in the protocol.
    settings : sequence of Setting
        The grid.
    schedule : Schedule
        Of validation and stopping; the protocol's by default.
    progress : callable
        Called with runs done, runs in all, and a note.

    Returns
    -------
    Probed
        `chosen` has the setting, its best step and validation score, and how many runs were cut at the limit of steps.

    Raises
    ------
    RequestError
        If features, targets or sides do not fit, or no run ever had a finite score.
    """
    check(task, features, targets, sides)
    sides = with_validation(sides, seed)
    problem = Problem.of(task, features, targets, sides, seed)
    runs = train_grid(problem, settings, schedule or Schedule(), progress=progress)
    best = select(runs)
    unfinished = sum(not run.finished for run in runs)
    facts = {
        f"valid_{task.metric}": best.score,
        "step": best.best_step,
        "runs": len(runs),
        "unfinished_runs": unfinished,
    }
    return Probed(
        problem.predict(best, features[sides.test]), dataclasses.asdict(best.setting) | facts
    )


def train_grid(
    problem: Problem,
    settings: Sequence[Setting],
    schedule: Schedule,
    *,
    stack_bytes: int = STACK_BYTES,
    progress: Progress = silent,
) -> list[Trained]:
    """Train all settings, stack after stack; only the best run keeps its weights.

    Returns
    -------
    list of Trained
        In the order of `settings`.
    """
    if not settings or len(set(settings)) < len(settings):
        raise RequestError(
            f"the grid has {len(settings)} settings, {len(set(settings))} of them different: expected at least one, and none twice."
        )
    runs: dict[Setting, Trained] = {}
    for trained in _in_threads(
        problem, stacks(problem, settings, stack_bytes // torch.get_num_threads()), schedule
    ):
        runs |= {run.setting: run for run in trained}
        best = min(runs.values(), key=_rank)
        runs = {
            setting: run if run is best else dataclasses.replace(run, weights=[])
            for setting, run in runs.items()
        }
        progress(len(runs), len(settings), f"validation {problem.task.metric} {best.score:.3f}")
    cut = [run.setting for run in runs.values() if not run.finished]
    if cut:
        log.warning(
            "%d of %d runs still improved when they were cut after %d steps, the first is %s",
            len(cut),
            len(runs),
            schedule.limit_steps,
            cut[0],
        )
    return [runs[setting] for setting in settings]


def _in_threads(
    problem: Problem, waiting: list[list[Setting]], schedule: Schedule
) -> Iterator[list[Trained]]:
    """Train stacks side by side, each on one thread: small products of matrices divide badly, and bits do not depend on the number of threads."""
    threads, stop = torch.get_num_threads(), threading.Event()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        torch.set_num_threads(1)
        waiting = sorted(
            waiting, key=lambda stack: -run_bytes(problem, stack[0])
        )  # the longest first
        for future in as_completed(
            [pool.submit(train_stack, problem, stack, schedule, stop) for stack in waiting]
        ):
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def select(runs: Sequence[Trained]) -> Trained:
    """Return the run with the best validation score, the plainest of equals."""
    best = min(runs, key=_rank)
    if best.score == -np.inf:
        raise RequestError(
            f"none of {len(runs)} runs ever gave finite outputs: features may be too large, look at their scale."
        )
    return best


def _rank(run: Trained) -> tuple[float, Setting]:
    return -run.score, run.setting


def stacks(problem: Problem, settings: Sequence[Setting], stack_bytes: int) -> list[list[Setting]]:
    """Group settings that see the same input, in their order, and cut groups that would need more than `stack_bytes`."""
    alike: dict[tuple, list[Setting]] = {}
    for setting in settings:
        alike.setdefault(
            (setting.standardise, setting.hidden, setting.batch, setting.dropout), []
        ).append(setting)
    cut = []
    for group in alike.values():
        size = max(1, stack_bytes // run_bytes(problem, group[0]))
        cut += [group[start : start + size] for start in range(0, len(group), size)]
    return cut


def run_bytes(problem: Problem, setting: Setting) -> int:
    """Bytes that a run takes in a stack: weights, best weights, two moments, gradient; activations of a batch or of validation."""
    (train, valid), count = problem.inputs[setting.standardise], len(problem.task.names)
    size = train.shape[1]
    weights = (
        (size + 1) * setting.hidden + (setting.hidden + 1) * count
        if setting.hidden
        else (size + 1) * count
    )
    # Backward holds outputs and hidden values thrice; a score is computed in float64, of ranks and their sums.
    activations = max(
        3 * min(setting.batch, len(train)) * (setting.hidden + count),
        len(valid) * (setting.hidden + 12 * count),
    )
    return 4 * (5 * weights + activations)


# --- one by one ---


class _Net(nn.Module):
    """The same head by torch's own layers."""

    def __init__(self, problem: Problem, setting: Setting) -> None:
        super().__init__()
        weights = first_weights(problem, setting)
        pairs = list(zip(weights[::2], weights[1::2], strict=True))
        self.widths = [matrix.shape[1] for matrix, _ in pairs]
        self.layers = nn.ModuleList(
            [nn.Linear(matrix.shape[1], matrix.shape[0]) for matrix, _ in pairs]
        )
        for layer, (matrix, bias) in zip(self.layers, pairs, strict=True):
            layer.load_state_dict({"weight": matrix, "bias": bias})

    def forward(self, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x * masks[index] if masks else x)
            x = torch.relu(x) if index + 1 < len(self.layers) else x
        return x


def run_one(problem: Problem, setting: Setting, schedule: Schedule) -> Trained:
    """Train one setting the plain way, by torch's layers, losses, Adam and the package's own metrics: what stacks are held against."""
    net, loss = _Net(problem, setting), tasks.loss(problem.task)
    valid, targets = problem.inputs[setting.standardise][1], problem.targets[1].numpy()
    known = targets.argmax(1) if problem.task.kind == "one-of" else targets

    def loss_at(step: int) -> Tensor:
        x, y = batch(problem, setting, step)
        return loss(
            net(
                x,
                [
                    kept(problem, setting, step, layer, (len(x), width))
                    for layer, width in enumerate(net.widths)
                ],
            ),
            y,
        )

    def score() -> float:
        outputs = net(valid).double().numpy()
        return (
            tasks.main_score(problem.task, known, outputs)
            if np.isfinite(outputs).all()
            else -np.inf
        )

    optimiser = torch.optim.Adam(net.parameters(), lr=setting.rate, weight_decay=setting.decay)
    return train_alone(setting, net, optimiser, loss_at, score, schedule)
