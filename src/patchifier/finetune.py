"""Partial fine-tuning: the four methods of section 4.5 as a table of what learns.

Frozen parts stay in evaluation mode, so that their batch-norm statistics do not move, and what only frozen parts compute is computed
once. CLS and positions belong to the bottleneck and are frozen with it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import baselines, checkpoint, embed, probe, tasks
from patchifier.cache import Cache, Progress, silent
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, FinetuneConfig, RequestError
from patchifier.datasets import Clip, partition
from patchifier.model import Head, Patchifier
from patchifier.runs import Job, Run, batch_indices, fit, generator, write_json, write_rows
from patchifier.tasks import Task

METHODS: dict[str, frozenset[str]] = {
    "linear-probe": frozenset({"head"}),
    "freeze-extractor": frozenset({"bottleneck", "head"}),
    "freeze-bottleneck": frozenset({"extractor", "head"}),
    "full": frozenset({"extractor", "bottleneck", "head"}),
}
Input = Literal["patches", "vectors", "readout"]  # the first thing that a learning part sees


@dataclass(frozen=True)
class Tuned:
    """Result of one method.

    `test` holds the indices of the test clips; `predictions`, (n, C) each, one array for each seed; `row` goes into the results table.
    """

    method: str
    test: np.ndarray
    predictions: list[np.ndarray]
    row: dict[str, Any]


def finetune(
    model: str | Path | Checkpoint,
    cache: str | Path,
    out: str | Path,
    *,
    methods: Sequence[str] = ("full",),
    config: Config | None = None,
    encoder: str = "patchifier",
    resume: bool = False,
    device: str = "auto",
    progress: Callable[[str], Progress] = lambda title: silent,
) -> list[Tuned]:
    """Fine-tune a model on a cache whose clips have targets, and test it.

    Parameters
    ----------
    model : str, Path or Checkpoint
        What to start from.
    cache : str or Path
        From :func:`patchifier.cache.prepare`, with the model's spectrogram settings.
    out : str or Path
        Run folder; gets a folder for each method, with curves, predictions, results and the tuned model.
    methods : sequence of str
        Of :data:`METHODS`.
    config : Config
        The model's own by default; its finetune section counts.
    encoder : str
        What to call the model in tables.
    resume, device, progress
        As for pre-training.

    Returns
    -------
    list of Tuned

    Raises
    ------
    RequestError
        If the clips have no targets, a side of the split is empty, or model and cache do not fit together.
    """
    start = model if isinstance(model, Checkpoint) else checkpoint.load(model)
    config = config or start.config
    config = replace(config, model=start.config.model, spectrogram=start.config.spectrogram)
    data = Cache(cache)
    data.require(config.spectrogram)
    if data.task is None:
        raise RequestError(f"the clips of cache {data.path} have no targets: prepare it from a manifest with a target column.")
    folds = test_folds(data.clips, config.finetune)
    tunings = [Tuning(start, data, data.task, method, config, device=device, resume=resume) for method in methods]
    for fold in folds:
        require_sides(data, np.array(partition(data.clips, test_fold=fold)))
    facts = {
        "kind": "finetune",
        "encoder": encoder,
        "cache": str(data.path),
        "dataset": data.name,
        "task": {"kind": data.task.kind, "names": list(data.task.names)},
        "metric": data.task.metric,
        "split": describe_split(data.clips, folds),
        "parameters": start.model.parameter_count(),
        "seed": config.finetune.seed,
    }
    results = []
    with Run(out, config, resume=resume, facts=facts) as run:
        for tuning in tunings:
            shown = progress(f"{encoder}, {tuning.method}")
            results.append(tuning.over_folds(run.path / tuning.method, folds, encoder=encoder, progress=shown))
    return results


def controls(
    model: str | Path | Checkpoint,
    cache: str | Path,
    out: str | Path,
    *,
    config: Config | None = None,
    random: bool = True,
    resume: bool = False,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """What every table needs beside a model: the majority, the model's input without a model, and random weights.

    Parameters
    ----------
    model, cache, config, resume, device
        As for :func:`finetune`; the same clips are tested.
    out : str or Path
        The run folder; gets ``controls/``.
    random : bool
        Also train a linear probe on the same architecture with random, calibrated weights.

    Returns
    -------
    list of dict
        Rows of the results table. Majority and regression on mel statistics need no validation side and learn from it too.
    """
    start = model if isinstance(model, Checkpoint) else checkpoint.load(model)
    config = replace(config or start.config, model=start.config.model, spectrogram=start.config.spectrogram)
    data = Cache(cache)
    assert data.task is not None, "finetune() has refused a cache without targets"
    task, everything = data.task, range(len(data.clips))
    targets = tasks.encode_targets(task, [clip.target for clip in data.clips])
    features = baselines.mel_stats(data, everything)
    tests: list[np.ndarray] = []
    guesses: dict[tuple[str, str], list[np.ndarray]] = {("majority", "none"): [], ("mel-stats", probe.name(task)): []}
    folds = test_folds(data.clips, config.finetune)
    for fold in folds:
        sides = np.array(partition(data.clips, test_fold=fold))
        test, rest = np.flatnonzero(sides == "test"), np.flatnonzero(sides != "test")
        tests.append(test)
        guesses["majority", "none"].append(probe.majority(task, targets[rest], len(test)))
        guesses["mel-stats", probe.name(task)].append(probe.fit_predict(task, features[rest], targets[rest], features[test]))
    chosen = np.concatenate(tests)
    groups = [data.clips[index].group or data.clips[index].id for index in chosen]
    rows = [tasks.evaluate(task, targets[chosen], [np.concatenate(parts)], groups).row(*names) for names, parts in guesses.items()]
    if random:
        sides = np.array(partition(data.clips, test_fold=folds[0]))
        opponent = baselines.random_checkpoint(config, data, np.flatnonzero(sides == "train").tolist(), seed=config.finetune.seed)
        tuning = Tuning(opponent, data, task, "linear-probe", config, device=device, resume=resume)
        rows.append(tuning.over_folds(Path(out) / "controls" / "random", folds, encoder="random", progress=silent).row)
    write_json(Path(out) / "controls" / "results.json", {"rows": rows})
    return rows


def test_folds(clips: Sequence[Clip], config: FinetuneConfig) -> list[int | None]:
    """Return the folds that are tested in turn; [None] where the split is the data set's own or by hash."""
    present = sorted({clip.fold for clip in clips if clip.fold is not None})
    if any(clip.split for clip in clips) or len(present) < 3:
        return [None]
    last = present[-1] if config.test_fold is None else config.test_fold
    return [last, *(fold for fold in present if fold != last)] if config.folds == "all" else [last]


def require_sides(data: Cache, sides: np.ndarray) -> None:
    """Refuse a split of which a side is empty, before anything is trained."""
    empty = [side for side in ("train", "valid", "test") if not (sides == side).any()]
    if empty:
        raise RequestError(f"cache {data.path} has no {' and no '.join(empty)} clips after the split: {len(sides)} clips are too few.")


def describe_split(clips: Sequence[Clip], folds: Sequence[int | None]) -> str:
    """Say in words how clips are split."""
    if any(clip.split for clip in clips):
        return "the data set's own split"
    if folds == [None]:
        return "a tenth of the groups tested, a tenth validated, by a hash of their names"
    return f"fold {folds[0]} tested" if len(folds) == 1 else f"each of {len(folds)} folds tested in turn"


@dataclass(frozen=True)
class Tuning:
    """One method on one task."""

    start: Checkpoint
    data: Cache
    task: Task
    method: str
    config: Config
    device: str = "auto"
    resume: bool = False

    def __post_init__(self) -> None:
        """Check the method's name."""
        if self.method not in METHODS:
            raise RequestError(f"there is no fine-tuning method {self.method!r}, expected one of {', '.join(METHODS)}, or all.")

    def over_folds(self, folder: Path, folds: Sequence[int | None], *, encoder: str, progress: Progress) -> Tuned:
        """Train and test every fold with every seed; write predictions, results and the first fold's model."""
        seeds = range(self.config.finetune.seed, self.config.finetune.seed + self.config.finetune.seeds)
        tests: list[np.ndarray] = []
        runs: list[list[np.ndarray]] = [[] for _ in seeds]
        for fold in folds:
            sides = np.array(partition(self.data.clips, test_fold=fold))
            tests.append(np.flatnonzero(sides == "test"))
            for number, seed in enumerate(seeds):
                place = folder if fold == folds[0] and number == 0 else folder / f"fold-{fold}-seed-{seed}"
                runs[number].append(self.train_and_test(place, sides, seed, progress))
        test = np.concatenate(tests)
        predictions = [np.concatenate(run) for run in runs]
        targets = tasks.encode_targets(self.task, [self.data.clips[index].target for index in test])
        groups = [self.data.clips[index].group or self.data.clips[index].id for index in test]
        row = tasks.evaluate(self.task, targets, predictions, groups).row(encoder, self.method)
        self.write(folder, test, predictions, row, tasks.scores(self.task, targets, np.mean(predictions, axis=0)))
        return Tuned(self.method, test, predictions, row)

    def write(self, folder: Path, test: np.ndarray, predictions: list[np.ndarray], row: Mapping[str, Any], every: Mapping[str, float]) -> None:
        """Write predictions, averaged over seeds, and results."""
        mean = np.mean(predictions, axis=0)
        rows = []
        for index, outputs in zip(test, mean, strict=True):
            clip = self.data.clips[index]
            named = {name: f"{value:.6g}" for name, value in zip(self.task.names, outputs, strict=True)}
            target = clip.target if isinstance(clip.target, str) else str(clip.target)
            rows.append({"id": clip.id, "group": clip.group or clip.id, "target": target, **named})
        write_rows(folder / "predictions.csv", rows)
        write_json(folder / "results.json", {"rows": [dict(row)], "every_metric": dict(every), "seeds": len(predictions)})

    def train_and_test(self, folder: Path, sides: np.ndarray, seed: int, progress: Progress) -> np.ndarray:
        """Train on one split, keep the best weights on validation, predict the test side: (n, C)."""
        settings = self.config.finetune
        module = TunedModel(self.start, self.task, self.method, self.config, seed)
        inputs = Inputs(module, self.data, self.config)
        train, valid = np.flatnonzero(sides == "train"), np.flatnonzero(sides == "valid")
        encoded = {side: tasks.encode_targets(self.task, [self.data.clips[i].target for i in np.flatnonzero(sides == side)]) for side in ("train", "valid")}
        shift, stretch = _standardiser(self.task, encoded["train"])
        loss = tasks.loss(self.task)

        def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
            chosen = batch_indices(seed, step, clips=len(train), batch=settings.training.batch)
            windows = inputs.draw(train[chosen], generator(seed, "window", step))
            target = (encoded["train"][chosen] - shift) / stretch if self.task.kind == "numbers" else encoded["train"][chosen]
            return *windows, torch.from_numpy(target)

        def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            to = next(model.parameters()).device
            values, present, target = (part.to(to) for part in batch)
            return loss(model(values, present), target)

        def validate(model: nn.Module) -> dict[str, float]:
            outputs = predict(model, inputs, valid, activation=lambda outputs: outputs)
            predictions = tasks.activate(self.task, outputs) * torch.as_tensor(stretch) + torch.as_tensor(shift)
            target = torch.from_numpy((encoded["valid"] - shift) / stretch if self.task.kind == "numbers" else encoded["valid"])
            return {"loss": float(loss(outputs, target)), **tasks.scores(self.task, encoded["valid"], predictions.numpy())}

        rates = {"head": settings.head_learning_rate} if settings.head_learning_rate else {}
        job = Job(module, len(train), batch, batch_loss, validate, lambda figures: _score(self.task, figures), rates)
        fit(
            job,
            folder,
            config=settings.training,
            seed=seed,
            validate_every=settings.validate_every,
            patience=settings.patience,
            precision=settings.precision,
            device=self.device,
            resume=self.resume,
            progress=progress,
        )
        module.cpu()
        with torch.no_grad():  # outputs in the units of the targets from here on
            module.head.linear.weight.mul_(torch.as_tensor(stretch, dtype=torch.float32).reshape(-1, 1))
            module.head.linear.bias.mul_(torch.as_tensor(stretch, dtype=torch.float32)).add_(torch.as_tensor(shift, dtype=torch.float32))
            facts = {**self.start.facts, "fine-tuned by": self.method, "fine-tuned on": f"{self.data.name}, {len(train)} clips", "seed": seed}
            checkpoint.save(folder / "model", Checkpoint(module.model, self.config, module.head, self.task, facts))
            test = np.flatnonzero(sides == "test")
            return predict(module, inputs, test, activation=lambda outputs: tasks.activate(self.task, outputs)).numpy()


def _standardiser(task: Task, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift and stretch of numbers, from training targets; of anything else 0 and 1."""
    if task.kind != "numbers":
        return np.float32(0), np.float32(1)  # type: ignore[return-value]
    spread = targets.std(0)
    return targets.mean(0), np.where(spread > 0, spread, 1).astype(np.float32)


def _score(task: Task, figures: Mapping[str, float]) -> float:
    """Better is higher: the main metric, ties going to the lower loss; the loss alone where the metric is not defined."""
    metric = figures[task.metric]
    return metric - 1e-4 * figures["loss"] if math.isfinite(metric) else -figures["loss"]


class TunedModel(nn.Module):
    """A pre-trained model with a head, of which some parts learn."""

    def __init__(self, start: Checkpoint, task: Task, method: str, config: Config, seed: int) -> None:
        super().__init__()
        self.learns = METHODS[method]
        self.input: Input = "patches" if "extractor" in self.learns else "vectors" if "bottleneck" in self.learns else "readout"
        self.readout = config.finetune.readout
        self.model = Patchifier(config.model)
        self.model.load_state_dict(start.model.state_dict())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = Head(config.model.width, len(task.names))
        for name, part in self.model.named_children():
            part.requires_grad_(name in self.learns)
        self.train(False)

    def train(self, mode: bool = True) -> "TunedModel":
        """Set training mode, but for frozen parts: their dropout and batch norm behave as at test time."""
        super().train(mode)
        for name, part in self.model.named_children():
            part.train(mode and name in self.learns)
        return self

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """Outputs (B, C) of patches (B, N, 1, M, W), vectors (B, N, D) or readouts (B, D), whichever the first learning part sees."""
        return self.head(values if self.input == "readout" else self.read(values, present))

    def read(self, values: Tensor, present: Tensor) -> Tensor:
        """Read out (B, D) from patches or vectors."""
        vectors = self.model.extract(values, present) if values.ndim == 5 else values
        sequence = self.model.bottleneck(vectors, present=present)[-1]  # (B, 1 + N, D)
        if self.readout == "cls":
            return sequence[:, 0]
        weights = present[..., None].to(sequence.dtype)
        return (sequence[:, 1:] * weights).sum(1) / weights.sum(1)


class Inputs:
    """Windows of clips, computed once as far as frozen parts go and read from the cache each time where the extractor learns."""

    def __init__(self, module: TunedModel, data: Cache, config: Config) -> None:
        self.data, self.config, self.kind = data, config, module.input
        self.stored: dict[int, list[Tensor]] = {}
        if self.kind != "patches":
            for index in range(len(data.clips)):
                self.stored[index] = self._compute(module, self.windows(index))

    @torch.no_grad()
    def _compute(self, module: TunedModel, windows: list[Tensor]) -> list[Tensor]:
        patches, present = embed.pad_windows(windows, self.config.spectrogram.silence)
        vectors = module.model.extract(patches, present)  # (K, N, D)
        if self.kind == "readout":
            return list(module.read(vectors, present))
        return [row[: len(window)] for row, window in zip(vectors, windows, strict=True)]

    def windows(self, index: int) -> list[Tensor]:
        """Windows of a clip: patches (N, 1, M, W), vectors (N, D) or a readout (D,) each."""
        if index in self.stored:
            return self.stored[index]
        log_mel = torch.from_numpy(np.array(self.data.log_mel(index), np.float32).T)
        return embed.cut_windows(log_mel, self.config)

    def draw(self, indices: np.ndarray, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
        """One window of each clip, at random, and where it has patches (B, N)."""
        windows = [self.windows(int(index)) for index in indices]
        return self.stack([choices[int(place * len(choices))] for choices, place in zip(windows, chance.random(len(windows)), strict=True)])

    def stack(self, windows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Windows side by side, with padding where they differ in length."""
        if self.kind == "readout":
            return torch.stack(windows), torch.ones(len(windows), 1, dtype=torch.bool)
        return embed.pad_windows(windows, self.config.spectrogram.silence)


@torch.no_grad()
def predict(module: Any, inputs: Inputs, indices: np.ndarray, *, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Activated outputs (n, C) of clips: the mean over each clip's windows."""
    windows = [inputs.windows(int(index)) for index in indices]
    flat = [window for choices in windows for window in choices]
    device = next(module.parameters()).device
    outputs = []
    for start in range(0, len(flat), embed.BATCH):
        values, present = inputs.stack(flat[start : start + embed.BATCH])
        outputs.append(activation(module(values.to(device), present.to(device)).float().cpu()))
    return torch.stack([part.mean(0) for part in torch.cat(outputs).split([len(choices) for choices in windows])])
