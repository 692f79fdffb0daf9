"""Run folders, seeds, and the one training loop, on Lightning Fabric.

Stage I, stage II and fine-tuning differ in a :class:`Job`: which module, which batch, which loss. What happens at step s depends on the
seed and on s alone: batches, augmentation and masks come from counter-based generators (:func:`generator`), dropout from a seed for
that step. So a run that is killed and resumed ends with the bits of one that was not.
"""

import csv
import dataclasses
import datetime
import hashlib
import json
import logging
import math
import os
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import lightning_fabric
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import patchifier
from patchifier.cache import Progress, silent
from patchifier.checkpoint import replaced_file
from patchifier.config import Config, RequestError, TrainingConfig, digest, to_dict

log = logging.getLogger(__name__)

Purpose = Literal["order", "augment", "mask", "window", "dropout"]
SAVE_WORDS = "state is saved, go on with --resume"


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The user or the system asked to stop; the work so far is saved. Exit code 130."""


# --- chance ---


def generator(seed: int, purpose: Purpose, step: int) -> np.random.Generator:
    """Counter-based generator: its numbers are a pure function of (seed, purpose, step) and the place in the array drawn."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key, counter=int(step) << 64))  # int: a numpy integer would overflow to 0


def seed_dropout(seed: int, step: int, rank: int = 0) -> None:
    """Set torch's generator, which dropout draws from, by (seed, step, rank)."""
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/dropout/{step}/{rank}".encode()).digest()[:8], "little") >> 1)


def batch_indices(seed: int, step: int, *, clips: int, batch: int) -> np.ndarray:
    """Clips of a step: an endless stream of shuffled epochs, cut into batches."""
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {epoch: generator(seed, "order", epoch).permutation(clips) for epoch in np.unique(places // clips)}
    return np.array([orders[place // clips][place % clips] for place in places])


# --- run folders ---


class Run:
    """A run folder: ``config.json`` (valid for --config), ``run.json`` (facts) and what training writes.

    Parameters
    ----------
    path : str or Path
        The folder.
    config : Config
        Everything the run depends on.
    resume : bool
        Go on with a run that is there already; without it, such a folder is refused.
    facts : dict
        What else belongs in ``run.json``.
    """

    def __init__(self, path: str | Path, config: Config, *, resume: bool = False, facts: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        old = self.path / "config.json"
        if old.exists():
            if not resume:
                raise RequestError(f"{self.path} holds a run already: go on with --resume, or choose another --out.")
            if json.loads(old.read_text(encoding="utf-8")) != to_dict(config):
                raise RequestError(f"{self.path} was started with other settings: resume with --config {old}, or choose another --out.")
        elif self.path.exists() and any(self.path.iterdir()):
            raise RequestError(f"{self.path} exists and is not a run: choose another --out.")
        write_json(old, to_dict(config))
        self.started_s = time.monotonic()
        self.facts: dict[str, Any] = {"name": self.path.name, "command": command(), "started": datetime.datetime.now().isoformat(timespec="seconds")}
        self.facts |= {"machine": machine(), "versions": versions(), **(facts or {})}
        before = json.loads((self.path / "run.json").read_text(encoding="utf-8")) if (self.path / "run.json").exists() else {}
        self.before_s = float(before.get("seconds", 0.0))

    def write_facts(self, state: str, **more: Any) -> None:
        """Write ``run.json``; seconds add up over resumed parts."""
        self.facts |= {"state": state, "seconds": round(self.before_s + time.monotonic() - self.started_s, 1), **more}
        write_json(self.path / "run.json", self.facts)

    def __enter__(self) -> "Run":
        """Say that the run is under way."""
        self.write_facts("running")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Say how it ended."""
        self.write_facts("finished" if kind is None else "interrupted" if kind in (Interrupted, KeyboardInterrupt) else "failed")


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside and rename."""
    with replaced_file(path) as new:
        new.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, beside and renamed."""
    rows = list(rows)
    with replaced_file(path) as new, new.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def command() -> str:
    """Return the command line of this process, the program by its name alone."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def machine() -> str:
    """Processor, cores and system in a few words."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}, {platform.system()}"


def versions() -> dict[str, str]:
    """Versions on which bits depend."""
    return {"patchifier": patchifier.__version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


# --- the loop ---


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
        step -> whatever `loss` takes; a pure function of the step.
    loss : callable
        (model, batch) -> the loss, a scalar Tensor.
    validate : callable
        model (in evaluation mode, no gradients) -> figures by name.
    score : callable
        Figures -> a number, higher is better; the best weights are kept. None keeps the last.
    learning_rates : dict of float
        By prefix of a parameter's name, where it differs from the config's.
    """

    model: nn.Module
    clips: int
    batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    score: Callable[[Mapping[str, float]], float] | None = None
    learning_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass
class State:
    """Where a loop stands, beside weights and optimiser."""

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    finished: bool = False


def fit(
    job: Job,
    folder: Path,
    *,
    config: TrainingConfig,
    seed: int,
    validate_every: int,
    patience: int | None = None,
    checkpoint_every_s: float = 120.0,
    precision: str = "32",
    device: str = "auto",
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
    patience : int
        Steps without a better score after which training stops.
    checkpoint_every_s : float
        Seconds between checkpoints; 0 saves after every step.
    precision : "32" or "bf16"
        Of forward and backward pass.
    device : str
        An accelerator's name, as Lightning Fabric knows it.
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
    """
    fabric = lightning_fabric.Fabric(accelerator=device, devices=1, precision="bf16-mixed" if precision == "bf16" else "32-true")
    fabric.launch()
    model = job.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = make_optimiser(model, config, job.learning_rates)
    wrapped, optimiser = fabric.setup(model, optimiser)
    for method in ("stage_one_loss", "stage_two_loss"):
        if hasattr(model, method):
            wrapped.mark_forward_method(method)
    total = config.total_steps(job.clips)
    keeper = _Keeper(folder, model, optimiser, settings=digest(config, seed, precision, patience, validate_every))
    state = keeper.load() if resume else State()
    with _Table(folder / "metrics.csv", state.step) as metrics, _Table(folder / "validation.csv", state.step) as validation, _stop_signals() as stop:
        saved_s = time.monotonic()
        while not state.finished:
            due = state.step % validate_every == 0 or state.step == total
            if job.validate and due and validation.last_step < state.step:
                _validate(job, wrapped, state, validation, keeper)
            spent = patience is not None and state.step - state.best_step >= patience
            state.finished = state.step >= total or (spent and job.score is not None)
            if state.finished or stop.is_set() or time.monotonic() - saved_s >= checkpoint_every_s:
                keeper.save(state)
                saved_s = time.monotonic()
            if state.finished:
                break
            if stop.is_set():
                raise Interrupted(f"stopped at step {state.step} of {total}; {SAVE_WORDS}")
            row = _step(job, wrapped, optimiser, fabric, config, seed, state.step, total)
            state.step += 1
            metrics.write(state.step, row)
            progress(state.step, total, f"loss {row['loss']:.4g}, {row['clips_per_s']:.1f} clips/s")
    if state.step < total:
        progress(total, total, f"no better score for {state.step - state.best_step} steps, stopped at step {state.step}")
    if job.score and keeper.best:
        model.load_state_dict(keeper.best)
    model.eval()
    return state


def _step(job: Job, model: Any, optimiser: Any, fabric: Any, config: TrainingConfig, seed: int, step: int, total: int) -> dict[str, float]:
    """One optimiser step; returns its row of metrics.csv."""
    started = time.monotonic()
    model.train()
    seed_dropout(seed, step)
    factor = rate_factor(step, total, config)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    loss = job.loss(model, job.batch(step))
    optimiser.zero_grad(set_to_none=True)
    fabric.backward(loss)
    norm = math.nan
    if config.clip_norm:
        norm = float(fabric.clip_gradients(model, optimiser, max_norm=config.clip_norm))
    optimiser.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise RequestError(f"the loss is {value} at step {step + 1}: lower the learning rate ({config.learning_rate:g}) or set clip_norm to 1.")
    return {
        "epoch": (step + 1) * config.batch / job.clips,
        "clips_per_s": config.batch / (time.monotonic() - started),
        "learning_rate": config.learning_rate * factor,
        "loss": value,
        "gradient_norm": norm,
    }


def _validate(job: Job, model: Any, state: State, table: "_Table", keeper: "_Keeper") -> None:
    """Write a row of validation.csv and keep the weights if they are the best yet."""
    assert job.validate is not None
    model.eval()
    with torch.no_grad():
        figures = job.validate(model)
    table.write(state.step, figures)
    if job.score and job.score(figures) > state.best_score:
        state.best_score, state.best_step = job.score(figures), state.step
        keeper.keep_best()


def make_optimiser(model: nn.Module, config: TrainingConfig, rates: Mapping[str, float]) -> torch.optim.AdamW:
    """AdamW (4.4) with decay on matrices and kernels only, and learning rates by prefix of a name."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((rate for prefix, rate in rates.items() if name.startswith(prefix)), config.learning_rate)
            table = name.endswith(("positions", "cls", "mask_token"))
            decay = 0.0 if parameter.ndim < 2 or table else config.weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    rows = [{"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]
    return torch.optim.AdamW(rows, foreach=True)


def rate_factor(step: int, total: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate at a step."""
    if step < config.warm_up_steps:
        return (step + 1) / config.warm_up_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warm_up_steps) / max(1, total - config.warm_up_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


class _Keeper:
    """Saves and loads a loop's whole state as one safetensors file, beside and renamed: a kill leaves the old one or the new one."""

    def __init__(self, folder: Path, model: nn.Module, optimiser: Any, *, settings: str) -> None:
        self.path, self.model, self.optimiser, self.settings = folder / "state.safetensors", model, optimiser, settings
        self.best: dict[str, Tensor] = {}

    def keep_best(self) -> None:
        self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def save(self, state: State) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"state": json.dumps(dataclasses.asdict(state)), "settings": self.settings}
        with replaced_file(self.path) as new:
            safetensors.torch.save_file(tensors, new, metadata=metadata)

    def load(self) -> State:
        if not self.path.exists():
            return State()
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                metadata = file.metadata()
            tensors = safetensors.torch.load_file(self.path)
        except safetensors.SafetensorError as error:
            raise RequestError(f"{self.path} is damaged ({error}): delete it to start this part again.") from error
        if metadata["settings"] != self.settings:
            raise RequestError(f"{self.path} belongs to other settings: resume with the run's own config.json.")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        self.best = parts["best"]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimiser"].items():
            index, kind = name.split(".")
            moments.setdefault(int(index), {})[kind] = tensor
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})
        return State(**json.loads(metadata["state"]))


class _Table:
    """A CSV that grows by rows with a step; rows after the step resumed from are dropped. TensorBoard gets them too if installed."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = []
        if step and path.exists():
            with path.open(newline="", encoding="utf-8") as stream:
                kept = [row for row in csv.DictReader(stream) if row["step"].isdigit() and int(row["step"]) <= step]
        self.last_step = int(kept[-1]["step"]) if kept else -1
        self.columns: list[str] = list(kept[0]) if kept else []
        path.parent.mkdir(parents=True, exist_ok=True)
        if kept:
            write_rows(path, kept)
        self.stream = path.open("a" if kept else "w", newline="", encoding="utf-8", buffering=1)
        self.board = _board(path.parent / "tensorboard", step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self.last_step = step
        table = csv.writer(self.stream)
        if not self.columns:
            self.columns = ["step", *figures]
            table.writerow(self.columns)
        table.writerow([step, *(f"{value:.6g}" for value in figures.values())])
        for name, value in figures.items():
            if self.board:
                self.board.add_scalar(f"{self.path.stem}/{name}", value, step)

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        if self.board:
            self.board.close()


def _board(folder: Path, step: int) -> Any:
    """Return a TensorBoard writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step)


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
