"""JukeMIR's probe: a grid of 216 heads, of which the best on validation is tested.

The grid is trained as a few stacks of heads.

Protocol: C. Castellon, C. Donahue, P. Liang, "Codified audio language modeling learns useful
representations for music information retrieval" (2021), and its code: a linear layer or one hidden
layer, Adam, dropout on the input and after the hidden layer, batches drawn without replacement at
each step, validation every 8 steps, a run ended by 256 validations without a better score, its best
weights restored, no limit of epochs. Where the protocol leaves a choice: the first validation is
after 8 steps; of settings with the same score the simpler one is taken; if there are fewer training
clips than a batch, all are used; regression targets are standardised by the training clips, which
does not change R2.
"""

import dataclasses
import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import numpy as np
import torch

from patchifier.config import RequestError
from patchifier.datasets.splits import Splits, with_validation
from patchifier.evaluate.probes.heads import Hyperparameters, ProbeData, Schedule, TrainedHead
from patchifier.evaluate.probes.protocol import Probed, check
from patchifier.evaluate.probes.stack import train_stack
from patchifier.io import Progress, silent
from patchifier.tasks import Task

log = logging.getLogger(__name__)

SETTINGS = tuple(
    Hyperparameters(*values)
    for values in itertools.product(
        (False, True), (0, 512), (64, 256), (1e-5, 1e-4, 1e-3), (0.25, 0.5, 0.75), (0.0, 1e-4, 1e-3)
    )
)
STACK_BYTES = 1_000_000_000  # of all stacks' weights, gradients, moments and activations
PROGRESS_S = 0.5  # between calls of `progress`


def jukemir(
    task: Task,
    features: np.ndarray,
    targets: np.ndarray,
    splits: Splits,
    *,
    seed: int = 0,
    settings: Sequence[Hyperparameters] = SETTINGS,
    schedule: Schedule | None = None,
    progress: Progress = silent,
) -> Probed:
    """Train the grid, choose on validation, and predict the test clips with the chosen model.

    Parameters and errors are those of :func:`patchifier.evaluate.probes.probe`, and:

    Parameters
    ----------
    settings : sequence of Hyperparameters
        The grid.
    schedule : Schedule
        Of validation and stopping; the protocol's by default.

    Returns
    -------
    Probed
        `chosen` has the setting, its best step and validation score, and the number of runs that
        reached the limit of steps.
    """
    check(task, features, targets, splits)
    splits = with_validation(splits, seed)
    data = ProbeData.of(task, features, targets, splits, seed)
    runs = train_grid(data, settings, schedule or Schedule(), progress=progress)
    best = select(runs)
    unfinished = sum(not run.finished for run in runs)
    facts = {
        f"valid_{task.metric}": best.score,
        "step": best.best_step,
        "runs": len(runs),
        "unfinished_runs": unfinished,
    }
    return Probed(
        data.predict(best, features[splits.test]), dataclasses.asdict(best.setting) | facts
    )


def train_grid(
    data: ProbeData,
    settings: Sequence[Hyperparameters],
    schedule: Schedule,
    *,
    stack_bytes: int = STACK_BYTES,
    progress: Progress = silent,
) -> list[TrainedHead]:
    """Train all settings, stack after stack; results in their order, weights of the best alone."""
    if not settings or len(set(settings)) < len(settings):
        raise RequestError(
            f"the grid has {len(settings)} settings, {len(set(settings))} of them different: "
            "expected at least one, and none twice."
        )
    runs: dict[Hyperparameters, TrainedHead] = {}
    waiting = stacks(data, settings, stack_bytes // torch.get_num_threads())
    for trained, running in _in_threads(data, waiting, schedule):
        runs |= {run.setting: run for run in trained}
        best = min(runs.values(), key=_rank, default=None)
        runs = {
            setting: run if run is best else dataclasses.replace(run, weights=[])
            for setting, run in runs.items()
        }
        score = f"validation {data.task.metric} {best.score:.3f}; " if best else ""
        for one in running[:1]:  # of the stack in training, which all share these
            score += f"hidden {one.hidden}, batch {one.batch}, dropout {one.dropout:g}"
        progress(len(runs), len(settings), score.removesuffix("; "))
    if cut := [run.setting for run in runs.values() if not run.finished]:
        what = "%d of %d runs still improved when they were cut after %d steps, the first is %s"
        log.warning(what, len(cut), len(runs), schedule.limit_steps, cut[0])
    return [runs[setting] for setting in settings]


def _in_threads(
    data: ProbeData, waiting: list[list[Hyperparameters]], schedule: Schedule
) -> Iterator[tuple[list[TrainedHead], list[Hyperparameters]]]:
    """Train stacks in parallel, the longest first.

    Yields each one's runs, at least once a second, and a stack still in training.

    Each stack has one thread: small matrix products do not parallelise well, and the bits do not
    depend on the number of threads.
    """
    threads, stop = torch.get_num_threads(), threading.Event()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        torch.set_num_threads(1)
        waiting = sorted(waiting, key=lambda stack: -run_bytes(data, stack[0]))
        pending = {
            pool.submit(train_stack, data, stack, schedule, stop): stack for stack in waiting
        }
        while pending:
            for future in wait(pending, PROGRESS_S, FIRST_COMPLETED).done or [None]:
                if future:
                    del pending[future]
                yield future.result() if future else [], next(iter(pending.values()), [])
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def select(runs: Sequence[TrainedHead]) -> TrainedHead:
    """Return the run with the best validation score, the simplest of equals."""
    best = min(runs, key=_rank)
    if best.score == -np.inf:
        raise RequestError(
            f"none of {len(runs)} runs ever gave finite outputs: features may be too large, look "
            "at their scale."
        )
    return best


def _rank(run: TrainedHead) -> tuple[float, Hyperparameters]:
    return -run.score, run.setting


def stacks(
    data: ProbeData, settings: Sequence[Hyperparameters], stack_bytes: int
) -> list[list[Hyperparameters]]:
    """Group settings that share batches and masks, in their order.

    A group holds at most `stack_bytes`, or one run.
    """
    alike: dict[tuple, list[Hyperparameters]] = {}
    for each in settings:
        shared = (each.standardise, each.hidden, each.batch, each.dropout)
        alike.setdefault(shared, []).append(each)
    cut = []
    for group in alike.values():
        size = max(1, stack_bytes // run_bytes(data, group[0]))
        cut += [group[start : start + size] for start in range(0, len(group), size)]
    return cut


def run_bytes(data: ProbeData, setting: Hyperparameters) -> int:
    """Return the bytes of a run in a stack: weights, best weights, two moments, gradient.

    Activations of a batch or of validation.
    """
    (train, valid), count = data.inputs[setting.standardise], len(data.task.names)
    size = train.shape[1]
    weights = (
        (size + 1) * setting.hidden + (setting.hidden + 1) * count
        if setting.hidden
        else (size + 1) * count
    )
    # Backward holds outputs and hidden values thrice; a score is computed in float64, of ranks and
    # their sums.
    activations = max(
        3 * min(setting.batch, len(train)) * (setting.hidden + count),
        len(valid) * (setting.hidden + 12 * count),
    )
    return 4 * (5 * weights + activations)
