"""The one training loop.

Stage I, stage II and fine-tuning differ in a :class:`Job`: which module, which batch, which loss. What happens at step s is a pure
function of the seed and of s, so that a run which is killed and resumed ends with the bits of one that was not.

A GPU runs ahead of the loop: losses stay on it until there are enough of them to be worth fetching
(:class:`patchifier.train.metrics.Losses`).
"""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchifier.config import RequestError, TrainingConfig, digest
from patchifier.io import Progress, silent
from patchifier.seeding import dropout_seed
from patchifier.train import distributed as devices
from patchifier.train.checkpointer import Keeper, State
from patchifier.train.metrics import Losses, Table
from patchifier.train.run import Interrupted, is_first, was_restarted

__all__ = ["Job", "State", "Stepper", "fit", "make_optimiser", "rate_factor"]

SAVE_WORDS = "state is saved, go on with --resume"
STATE_FORMAT = 2  # of state.safetensors; one of another format is refused
AGREE_STEPS = 10  # several processes ask each other this often whether to save or to stop


@dataclass(frozen=True)
class Job:
    """What a training loop needs to know.

    Attributes
    ----------
    model : nn.Module
        Its parameters that require a gradient are trained. Its own ``train()`` decides what stays in evaluation mode.
    clips : int
        Training clips, for epochs.
    batch : callable
        step -> whatever `loss` takes, this process's share of it; a pure function of the step.
    loss : callable
        (model, batch) -> the loss, a scalar Tensor; the mean over processes is what is trained.
    validate : callable
        model (in evaluation mode, no gradients) -> figures by name.
    score : callable
        Figures -> a number, higher is better; the best weights are kept. None keeps the last.
    learning_rates : dict of float
        By prefix of a parameter's name, where it differs from the config's.
    describe : callable
        Step -> sentences that name what it was trained on, for the error message of one whose loss is not finite.
    """

    model: nn.Module
    clips: int
    batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    score: Callable[[Mapping[str, float]], float] | None = None
    learning_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    describe: Callable[[int], str] | None = None


def fit(  # noqa: C901 - the one training loop, read from top to bottom
    job: Job,
    folder: Path,
    *,
    config: TrainingConfig,
    seed: int,
    validate_every: int,
    fabric: Any = None,
    patience: int | None = None,
    checkpoint_every_s: float = 120.0,
    resume: bool = False,
    progress: Progress = silent,
) -> State:
    """Train a job's model in place.

    Parameters
    ----------
    job : Job
        What to train, on what.
    folder : Path
        Gets ``metrics.csv``, ``validation.csv`` and ``state.safetensors``.
    config : TrainingConfig
        Steps, learning rate and the rest.
    seed : int
        Of every draw.
    validate_every : int
        Steps between validations; one is made before the first step and one after the last.
    fabric : Fabric
        From :func:`patchifier.train.distributed.launch`; one device in float32 by default.
    patience : int
        Steps without a better score after which training stops.
    checkpoint_every_s : float
        Seconds between checkpoints; 0 saves after every step.
    resume : bool
        Go on from ``state.safetensors``, if it is there.
    progress : callable
        Called with steps done, steps in all, and a note.

    Returns
    -------
    State
        The model holds the best weights if the job has a score, else the last.

    Raises
    ------
    Interrupted
        After SIGINT or SIGTERM, when the state has been saved.
    RequestError
        If a loss or a gradient's norm is not finite, naming the step and, where the job describes it, what it was trained on.
    """
    fabric = fabric or devices.launch()
    model = job.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if fabric.world_size > 1:
        devices.join_batch_norm(model)
    model.to(fabric.device)
    optimiser = make_optimiser(model, config, job.learning_rates)
    wrapped, wrapped_optimiser = fabric.setup(model, optimiser)
    for method in ("stage_one_loss", "stage_two_loss"):
        if hasattr(model, method):
            wrapped.mark_forward_method(method)
    total = config.total_steps(job.clips)
    settings = [  # of any length; and as files of version 0.1 have it
        digest(STATE_FORMAT, one, seed, devices.precision_of(fabric), patience, validate_every)
        for one in (config.without_length, config)
    ]
    keeper = Keeper(folder, model, wrapped_optimiser, settings=settings)
    state = keeper.load() if resume or was_restarted() else State()
    set_length(state, total, config, folder)
    take_step = Stepper(job, wrapped, wrapped_optimiser, fabric, config, seed, total)
    with (
        Table(folder / "metrics.csv", state.step) as metrics,
        Table(folder / "validation.csv", state.step) as validation,
        _stop_signals() as stop,
    ):
        validation.last_step = fabric.broadcast(validation.last_step)
        losses, saved_s = (
            Losses(job.clips, config, fabric, metrics, progress, total, describe=job.describe),
            time.monotonic(),
        )
        while not state.finished:
            due = state.step % validate_every == 0 or state.step == total
            if job.validate and due and validation.last_step < state.step:
                losses.fetch()
                _validate(job, state, validation, keeper, fabric)
            spent = patience is not None and state.step - state.best_step >= patience
            state.finished = state.step >= total or (spent and job.score is not None)
            save, leave = (
                stop.is_set() or time.monotonic() - saved_s >= checkpoint_every_s,
                stop.is_set(),
            )
            if fabric.world_size > 1:
                save, leave = (
                    devices.agree(fabric, (save, leave))
                    if state.step % AGREE_STEPS == 0
                    else (False, False)
                )
            if state.finished or save:
                losses.fetch()
                keeper.save(state)
                saved_s = time.monotonic()
            if state.finished:
                break
            if leave:
                raise Interrupted(f"stopped at step {state.step} of {total}; {SAVE_WORDS}")
            losses.start()
            rate, result = take_step(state.step)
            state.step += 1
            losses.add(state.step, rate, result)
    if state.step < total:
        progress(
            total,
            total,
            f"no better score for {state.step - state.best_step} steps, stopped at step {state.step}",
        )
    if job.score and keeper.best:
        model.load_state_dict(keeper.best)
    model.eval()
    return state


class Stepper:
    """Takes optimiser steps, one after the other."""

    def __init__(
        self,
        job: Job,
        model: Any,
        optimiser: Any,
        fabric: Any,
        config: TrainingConfig,
        seed: int,
        total: int,
    ) -> None:
        self.job, self.model, self.optimiser, self.fabric = job, model, optimiser, fabric
        self.config, self.seed, self.total = config, seed, total

    def __call__(self, step: int) -> tuple[float, Tensor]:
        """Take a step; returns the learning rate and, on the device, loss and gradient norm (2,)."""
        self.model.train()
        torch.manual_seed(dropout_seed(self.seed, step, self.fabric.global_rank))
        factor = rate_factor(step, self.total, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimiser.zero_grad(set_to_none=True)
        return self.config.learning_rate * factor, self.take(self.job.batch(step))

    def take(self, batch: Any) -> Tensor:
        """Forward, backward, optimiser; gradients were None before."""
        with self.fabric.autocast():  # Fabric's own wrapper does so for forward() alone
            loss = self.job.loss(self.model, batch)
        self.fabric.backward(loss)
        norm = torch.full_like(loss, math.nan, requires_grad=False)
        if self.config.clip_norm:
            norm = self.fabric.clip_gradients(
                self.model, self.optimiser, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        self.optimiser.step()
        return torch.stack([loss.detach(), norm.to(loss)])


def _validate(job: Job, state: State, table: Table, keeper: Keeper, fabric: Any) -> None:
    """Write a row of validation.csv and keep the weights if they are the best yet; the first process measures for all, in float32."""
    assert job.validate is not None
    job.model.eval()
    with torch.no_grad():
        figures = fabric.broadcast(job.validate(job.model) if is_first() else {})
    table.write(state.step, figures)
    if job.score and job.score(figures) > state.best_score:
        state.best_score, state.best_step = job.score(figures), state.step
        keeper.keep_best()


def make_optimiser(
    model: nn.Module, config: TrainingConfig, rates: Mapping[str, float]
) -> torch.optim.AdamW:
    """AdamW (4.4) with decay on matrices and kernels only, and learning rates by prefix of a name."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next(
                (rate for prefix, rate in rates.items() if name.startswith(prefix)),
                config.learning_rate,
            )
            table = name.endswith(("positions", "places", "distances.numbers", "cls", "mask_token"))
            decay = 0.0 if parameter.ndim < 2 or table else config.weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    rows = [
        {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(rows, fused=True)


def set_length(state: State, total: int, config: TrainingConfig, folder: Path) -> None:
    """Let a training end after `total` steps, which may be another number than when it was started.

    Raises
    ------
    RequestError
        If the learning rate of steps already taken would have been another one.
    """
    if state.total not in (0, total):
        flat = min(config.flat_steps(state.total), config.flat_steps(total))
        if state.step > flat:
            raise RequestError(
                f"{folder} is at step {state.step} of {state.total}, expected at most {flat} for a change to {total} steps: "
                "after it the learning rate falls. Resume with the run's own config.json."
            )
        state.finished = False
    state.total = total


def rate_factor(step: int, total: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate at a step."""
    if step < config.warm_up_steps:
        return (step + 1) / config.warm_up_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "trapezoid":
        return min(1.0, (total - step) / max(1, total - config.flat_steps(total)))
    done = (step - config.warm_up_steps) / max(1, total - config.warm_up_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event that the loop looks at; a second SIGINT stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
