"""The training loop: steps, validations, early stopping and checkpoints.

Pre-training, fine-tuning, probes and frame-wise heads share :func:`run_steps`. :func:`fit` adds
devices, files and resuming; :func:`fit_head` trains a small model in memory. What happens at a step
is a function of the seed and the step alone, so a run that is killed and resumed ends with the bits
of one that was not.
"""

import copy
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from patchifier.config import TrainingConfig, digest
from patchifier.io import Progress, silent
from patchifier.seeding import dropout_seed
from patchifier.train.checkpointer import Checkpointer, State, set_length
from patchifier.train.distributed import agree, join_batch_norm, launch, precision_of
from patchifier.train.metrics import CSVLogger, MetricBuffer
from patchifier.train.optimiser import make_optimiser, rate_factor
from patchifier.train.run import Interrupted, is_first, stop_signals, was_restarted

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SAVE_WORDS = "state is saved, go on with --resume"
STATE_FORMAT = 2  # of state.safetensors; one of another format is refused
PROGRESS_S = 0.5  # between reports of a head in training
KEEP_TIME_S = 10.0  # longest time of a run that a kill costs
AGREE_STEPS = 10  # several processes ask each other this often whether to save or to stop


def run_steps(
    state: State,
    take_step: Callable[[], None],
    validate: Callable[[], None],
    *,
    total: int,
    validate_every: int,
    patience: int | None = None,
    save: Callable[[], None] = lambda: None,
) -> State:
    """Take training steps until all are taken or the score has not improved for `patience` steps.

    `take_step` takes step ``state.step``. `validate` is called before the first step, every
    `validate_every` steps and after the last; it calls :meth:`State.improve`. `save` is called
    before every step and at the end. Returns `state`, which is updated in place.
    """
    while not state.finished:
        if state.step % validate_every == 0 or state.step == total:
            validate()
        stale = patience is not None and state.step - state.best_step >= patience
        state.finished = stale or state.step >= total
        save()
        if not state.finished:
            take_step()
            state.step += 1
    return state


def fit_head(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    score: Callable[[], float],
    *,
    total: int,
    validate_every: int,
    patience: int,
    progress: Progress = silent,
) -> tuple[State, list[float]]:
    """Train a small model in memory and leave it with its best weights.

    `loss` maps a step to the loss of a batch. `score` returns the validation score, higher is
    better; it is first called after `validate_every` steps. `progress` is called at most every 0.5
    s. Returns the state with best score and step, and all validation scores.
    """
    state, curve, best = State(), list[float](), copy.deepcopy(model.state_dict())
    shown_s = -math.inf

    def take_step() -> None:
        nonlocal shown_s
        optimiser.zero_grad()
        value = loss(state.step)
        value.backward()
        optimiser.step()
        if time.monotonic() - shown_s >= PROGRESS_S:
            shown_s, done = time.monotonic(), state.step + 1
            progress(done, total, f"step {done}, loss {value.item():.4g}")

    def validate() -> None:
        if state.step == 0:
            return
        with torch.no_grad():
            curve.append(score())
        if state.improve(curve[-1]):
            best.update(copy.deepcopy(model.state_dict()))

    run_steps(
        state, take_step, validate, total=total, validate_every=validate_every, patience=patience
    )
    model.load_state_dict(best)
    progress(total, total, f"best score {state.best_score:.4g} at step {state.best_step}")
    return state, curve


@dataclass(frozen=True)
class TrainTask:
    """What :func:`fit` trains, and on what.

    Attributes
    ----------
    model : nn.Module
        Its parameters that require a gradient are trained. Its own ``train()`` decides what stays
        in evaluation mode.
    clips : int
        Training clips, for epochs.
    batch : callable
        step -> whatever `loss` takes, this process's slice of it; a pure function of the step.
    loss : callable
        (model, batch) -> the loss, a scalar Tensor; the mean over processes is what is trained.
    validate : callable
        model (in evaluation mode, no gradients) -> figures by name.
    score : callable
        Figures -> a number, higher is better; the best weights are kept. None keeps the last.
    learning_rates : dict of float
        By prefix of a parameter's name, where it differs from the config's.
    describe : callable
        Step -> sentences that name its training clips, for the error message of one whose loss is
        not finite.
    """

    model: nn.Module
    clips: int
    batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    score: Callable[[Mapping[str, float]], float] | None = None
    learning_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    describe: Callable[[int], str] | None = None


def fit(
    task: TrainTask,
    folder: Path,
    *,
    config: TrainingConfig,
    seed: int,
    validate_every: int,
    fabric: "Fabric | None" = None,
    patience: int | None = None,
    checkpoint_every_s: float = 120.0,
    resume: bool = False,
    progress: Progress = silent,
    keep_time: Callable[[], None] = lambda: None,
) -> State:
    """Train a task's model in place.

    The model then holds the best weights if the task has a score, else the last. The folder gets
    ``metrics.csv``, ``validation.csv`` and ``state.safetensors``, from which `resume` goes on. One
    validation is made before the first step and one after the last. Training stops after `patience`
    steps without a better score. The state is saved every `checkpoint_every_s` seconds; 0 saves
    after every step. `keep_time` is called after each checkpoint, and between them every 10 s: it
    writes the time so far. `fabric` is one device in float32 by default.

    Raises
    ------
    Interrupted
        After SIGINT or SIGTERM, when the state has been saved.
    RequestError
        If a loss or a gradient's norm is not finite, naming the step and, where the task describes
        it, its training clips.
    """
    fabric = fabric or launch()
    model, optimiser = _set_up(task, config, fabric)
    total = config.total_steps(task.clips)
    settings = [  # of any length; and as files of version 0.1 have it
        digest(STATE_FORMAT, one, seed, precision_of(fabric), patience, validate_every)
        for one in (config.without_length, config)
    ]
    checkpointer = Checkpointer(folder, task.model, optimiser, settings=settings)
    state = checkpointer.load() if resume or was_restarted() else State()
    set_length(state, total, config, folder)
    with (
        CSVLogger(folder / "metrics.csv", state.step) as metrics,
        CSVLogger(folder / "validation.csv", state.step) as validation,
        stop_signals() as stop,
    ):
        validation.last_step = fabric.broadcast(validation.last_step)
        buffer = MetricBuffer(
            task.clips, config, fabric, metrics, progress, total, describe=task.describe
        )

        def take_step() -> None:
            buffer.start()
            result = step(
                task, state.step, model, optimiser, fabric, config, seed=seed, total=total
            )
            buffer.add(state.step + 1, *result)

        saver = _saver(state, checkpointer, buffer, stop, checkpoint_every_s, keep_time)
        run_steps(
            state,
            take_step,
            lambda: _validate(task, state, validation, checkpointer, buffer),
            total=total,
            validate_every=validate_every,
            patience=patience if task.score else None,
            save=saver,
        )
    if state.step < total:
        waited = state.step - state.best_step
        progress(total, total, f"no better score for {waited} steps, stopped at step {state.step}")
    if task.score and checkpointer.best:
        task.model.load_state_dict(checkpointer.best)
    task.model.eval()
    return state


def _set_up(task: TrainTask, config: TrainingConfig, fabric: "Fabric") -> tuple[Any, Any]:
    """Place model and optimiser on the device; returns both as Fabric wraps them."""
    model = task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if fabric.world_size > 1:
        join_batch_norm(model)
    model.to(fabric.device)
    dtype = torch.bfloat16 if precision_of(fabric).startswith("bf16") else torch.float32
    optimiser = make_optimiser(model, config, task.learning_rates, dtype=dtype)
    wrapped, optimiser = fabric.setup(model, optimiser)
    for method in ("stage_one_loss", "stage_two_loss"):
        if hasattr(model, method):
            wrapped.mark_forward_method(method)
    return wrapped, optimiser


def step(
    task: TrainTask,
    number: int,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    fabric: "Fabric",
    config: TrainingConfig,
    *,
    seed: int,
    total: int,
) -> tuple[float, Tensor]:
    """Take optimiser step `number`, counted from 0; `model` and `optimiser` are Fabric's wrappers.

    `seed` is that of dropout. Returns the learning rate, and loss and gradient norm (2,) on the
    device; the norm is NaN without clipping.
    """
    model.train()
    torch.manual_seed(dropout_seed(seed, number, fabric.global_rank))
    factor = rate_factor(number, total, config)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    optimiser.zero_grad(set_to_none=True)
    batch = task.batch(number)
    with fabric.autocast():  # Fabric's own wrapper does so for forward() alone
        loss = task.loss(model, batch)
    fabric.backward(loss)
    norm = torch.full_like(loss, math.nan, requires_grad=False)
    if config.max_grad_norm:
        found = fabric.clip_gradients(
            model, optimiser, max_norm=config.max_grad_norm, error_if_nonfinite=False
        )
        norm = norm if found is None else found
    optimiser.step()
    return config.learning_rate * factor, torch.stack([loss.detach(), norm.to(loss)])


def _validate(
    task: TrainTask,
    state: State,
    logger: CSVLogger,
    checkpointer: Checkpointer,
    buffer: MetricBuffer,
) -> None:
    """Write a row of validation.csv and keep the best weights.

    The first process computes for all, in float32.
    """
    if task.validate is None or logger.last_step >= state.step:
        return
    buffer.fetch()
    task.model.eval()
    with torch.no_grad():
        figures = buffer.fabric.broadcast(task.validate(task.model) if is_first() else {})
    logger.write(state.step, figures)
    if task.score and state.improve(task.score(figures)):
        checkpointer.keep_best()


def _saver(
    state: State,
    checkpointer: Checkpointer,
    buffer: MetricBuffer,
    stop: threading.Event,
    every_s: float,
    keep_time: Callable[[], None],
) -> Callable[[], None]:
    """Make the function that saves the state when due, at the end, and at an interruption."""
    fabric = buffer.fabric
    saved_s = kept_s = time.monotonic()

    def save() -> None:
        nonlocal saved_s, kept_s
        leave = stop.is_set()
        due = leave or time.monotonic() - saved_s >= every_s
        if fabric.world_size > 1:
            agreed = state.step % AGREE_STEPS == 0
            due, leave = agree(fabric, (due, leave)) if agreed else (False, False)
        saves = due or state.finished
        if saves:
            buffer.fetch()
            checkpointer.save(state)
            saved_s = time.monotonic()
        if saves or time.monotonic() - kept_s >= KEEP_TIME_S:
            keep_time()
            kept_s = time.monotonic()
        if leave and not state.finished:
            raise Interrupted(f"stopped at step {state.step} of {state.total}; {SAVE_WORDS}")

    return save
