"""Fine-tuning by one method on one task, over folds, seeds and learning rates."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import checkpoint, tasks
from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError
from patchifier.datasets import Clip
from patchifier.datasets.splits import Splits, groups_of
from patchifier.io import Progress, replaced_file, silent, write_json, write_rows
from patchifier.nn.fast import keep_in_float32
from patchifier.seeding import batch_indices, generator
from patchifier.tasks import Task
from patchifier.train.batches import describe_batch
from patchifier.train.distributed import launch
from patchifier.train.loop import TrainTask, fit
from patchifier.train.optimiser import bf16_optimiser
from patchifier.train.precision import Arithmetic
from patchifier.train.sameness import constant_prediction
from patchifier.train.self_test import Trial
from patchifier.train.tuned_model import METHODS, Inputs, TunedModel, predict

TRIAL_STEPS = 2  # steps in the self-test of bf16


class FitProgress:
    """Progress of one training, with the clips that are encoded between its steps.

    `title` is the prefix of every note.
    """

    def __init__(self, progress: Progress, title: str = "") -> None:
        self.progress, self.title = progress, title
        self.done, self.total = 0, 1

    def __call__(self, done: int, total: int, note: str) -> None:
        """Show steps done; the bar is complete after the test clips."""
        self.done, self.total = done, total
        self.progress(min(done, total - 1), total, f"{self.title}{note}")

    def finish(self) -> None:
        """Show that everything is done."""
        self.progress(self.total, self.total, f"{self.title}done")

    def of_clips(self, title: str) -> Progress:
        """Return a function that shows clips done beside the bar of steps; `title` names them."""

        def show(done: int, total: int, note: str) -> None:
            steps = min(self.done, self.total - 1)  # a full bar is closed
            self.progress(steps, self.total, f"{self.title}{title}, clip {done} of {total}")

        return show


@dataclass(frozen=True)
class Tuned:
    """Result of one method.

    Attributes
    ----------
    method : str
    test : ndarray of int, shape (n,)
        Indices of the test clips.
    predictions : list of ndarray, shape (n, C)
        One for each seed.
    row : dict
        Row of the results table.

    Examples
    --------
    >>> row = {"metric": "accuracy", "value": 1.0}
    >>> tuned = Tuned("full", np.array([4, 5]), [np.eye(2)], row)
    >>> tuned.predictions[0].argmax(axis=1).tolist(), tuned.row["value"]
    ([0, 1], 1.0)
    """

    method: str
    test: np.ndarray
    predictions: list[np.ndarray]
    row: dict[str, Any]


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
    arithmetic: Arithmetic = field(default_factory=Arithmetic)  # chosen when the run began
    keep_time: Callable[[], None] = lambda: None  # called at each checkpoint, and between

    def __post_init__(self) -> None:
        """Check the method's name."""
        if self.method not in METHODS:
            raise RequestError(
                f"there is no fine-tuning method {self.method!r}, "
                f"expected one of {', '.join(METHODS)}, or all."
            )

    def over_folds(
        self, folder: Path, folds: Sequence[int | None], *, encoder: str, progress: Progress
    ) -> Tuned:
        """Train and test every fold with every seed.

        Write predictions, results and the first fold's model.
        """
        first = self.config.finetune.seed
        seeds = range(first, first + self.config.finetune.n_seeds)
        tests: list[np.ndarray] = []
        runs: list[list[np.ndarray]] = [[] for _ in seeds]
        for fold in folds:
            splits = Splits.partitioned(self.data.clips, test_fold=fold)
            tests.append(splits.test)
            for number, seed in enumerate(seeds):
                is_first = fold == folds[0] and number == 0
                place = folder if is_first else folder / f"fold-{fold}-seed-{seed}"
                title = f"seed {seed}: " if fold is None else f"fold {fold}, seed {seed}: "
                shown = FitProgress(progress, title)
                runs[number].append(self.at_best_rate(place, splits, seed, shown))
        test = np.concatenate(tests)
        predictions = [np.concatenate(run) for run in runs]
        targets = self.encoded(test)
        tested = [self.data.clips[index] for index in test]
        score = tasks.evaluate(self.task, targets, predictions, groups_of(tested))
        row = score.row(encoder, self.method)
        true = [self.encoded(clips) for _ in runs for clips in tests]
        if constant := constant_prediction(self.task, true, [each for run in runs for each in run]):
            row["learnt_nothing"] = constant
        scores = tasks.scores(self.task, targets, np.mean(predictions, axis=0))
        rows = prediction_rows(self.task, tested, np.mean(predictions, axis=0))
        write_rows(folder / "predictions.csv", rows)
        results = {"rows": [row], "every_metric": scores, "seeds": len(predictions)}
        write_json(folder / "results.json", results)
        return Tuned(self.method, test, predictions, row)

    def at_best_rate(
        self, folder: Path, splits: Splits, seed: int, progress: FitProgress
    ) -> np.ndarray:
        """Predict the test clips at the learning rate with the best validation score.

        The files of that rate are copied to `folder`.
        """
        settings = self.config.finetune
        if not settings.learning_rates:
            return self.train_and_test(folder, splits, seed, progress)[1]
        tried = {
            rate: self.train_and_test(folder / f"rate-{rate:g}", splits, seed, progress, rate=rate)
            for rate in settings.learning_rates
        }
        best = max(tried, key=lambda rate: tried[rate][0])
        validation = {f"{rate:g}": score for rate, (score, _) in tried.items()}
        write_json(folder / "rates.json", {"chosen": best, "validation": validation})
        for name in ("metrics.csv", "validation.csv"):
            with replaced_file(folder / name) as new:
                new.write_bytes((folder / f"rate-{best:g}" / name).read_bytes())
        checkpoint.save(folder / "model", checkpoint.load(folder / f"rate-{best:g}" / "model"))
        return tried[best][1]

    @functools.cached_property
    def fabric(self) -> Any:
        """Device of all runs of this method."""
        return launch(self.device, precision=self.arithmetic.precision)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """Inputs of the trained modules, computed once for all folds, seeds and rates."""
        return Inputs(self.module(self.config.finetune.seed), self.data, self.config)

    def module(self, seed: int) -> TunedModel:
        """Make the model with a new head."""
        return TunedModel(self.start, self.task, self.method, self.config, seed)

    def encoded(self, clips: np.ndarray) -> np.ndarray:
        """Return the targets of clips as the task's loss takes them."""
        return tasks.encode_targets(self.task, [self.data.clips[clip].target for clip in clips])

    def scaling(self, splits: Splits) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training targets of a regression.

        0 and 1 otherwise.
        """
        if self.task.kind != "numbers":
            return np.zeros(1, np.float32), np.ones(1, np.float32)
        targets = self.encoded(splits.train)
        deviation = targets.std(0)
        return targets.mean(0), np.where(deviation > 0, deviation, 1).astype(np.float32)

    def train_task(
        self,
        module: TunedModel,
        splits: Splits,
        seed: int,
        scaling: tuple[np.ndarray, np.ndarray],
        progress: Progress = silent,
    ) -> TrainTask:
        """Return batches, loss and validation of one split; `progress` shows validation clips."""
        settings, inputs = self.config.finetune, self.inputs
        train, valid = splits.train, splits.valid
        encoded = {"train": self.encoded(train), "valid": self.encoded(valid)}
        shift, stretch = scaling
        loss = tasks.loss(self.task)

        def scaled(targets: np.ndarray) -> Tensor:
            is_regression = self.task.kind == "numbers"
            return torch.from_numpy((targets - shift) / stretch if is_regression else targets)

        def chosen(step: int) -> np.ndarray:
            return batch_indices(seed, step, clips=len(train), batch=settings.training.batch_size)

        def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
            windows = inputs.draw(train[chosen(step)], generator(seed, "window", step))
            target = encoded["train"][chosen(step)]
            return *windows, scaled(target)

        def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            to = next(model.parameters()).device
            values, valid, target = (part.to(to) for part in batch)
            return loss(model(values, valid), target)

        def validate(model: nn.Module) -> dict[str, float]:
            outputs = predict(model, inputs, valid, progress=progress)
            predictions = tasks.activate(self.task, outputs)
            predictions = predictions * torch.as_tensor(stretch) + torch.as_tensor(shift)
            target = scaled(encoded["valid"])
            scores = tasks.scores(self.task, encoded["valid"], predictions.numpy())
            return {"loss": float(loss(outputs, target)), **scores}

        def describe(step: int) -> str:
            return describe_batch(self.data, train[chosen(step)])

        rates = {"head": settings.head_learning_rate} if settings.head_learning_rate else {}
        score = functools.partial(_score, self.task, settings.select_by)
        return TrainTask(module, len(train), batch, batch_loss, validate, score, rates, describe)

    def trial(self, splits: Splits) -> Trial:
        """First steps on a split, for the self-test of bf16."""
        seed = self.config.finetune.seed
        module = self.module(seed)
        task = self.train_task(module, splits, seed, self.scaling(splits))
        batches = [task.batch(step) for step in range(TRIAL_STEPS)]
        optimiser = bf16_optimiser(module, self.config.finetune.training)
        return Trial(module, task.loss, batches, optimiser)

    def train_and_test(
        self,
        folder: Path,
        splits: Splits,
        seed: int,
        progress: FitProgress,
        *,
        rate: float | None = None,
    ) -> tuple[float, np.ndarray]:
        """Train on one split; returns the best validation score and test predictions (n, C)."""
        settings, module, train = self.config.finetune, self.module(seed), splits.train
        keep_in_float32(module, self.arithmetic.kernels)
        training = replace(settings.training, learning_rate=rate or settings.training.learning_rate)
        scaling = self.scaling(splits)
        task = self.train_task(module, splits, seed, scaling, progress.of_clips("validation"))
        progress.done, progress.total = 0, training.total_steps(len(train))
        state = fit(
            task,
            folder,
            config=training,
            seed=seed,
            validate_every=settings.validate_every,
            patience=settings.patience,
            fabric=self.fabric,
            resume=self.resume,
            progress=progress,
            keep_time=self.keep_time,
        )
        module.cpu()
        with torch.no_grad():  # from here on outputs are in the units of the targets
            linear = module.head.linear
            add, scale = (torch.as_tensor(each, dtype=torch.float32) for each in scaling)
            linear.weight.mul_(scale.reshape(-1, 1))
            linear.bias.mul_(scale).add_(add)
            facts = {**self.start.facts, "fine-tuned by": self.method}
            facts |= {"fine-tuned on": f"{self.data.name}, {len(train)} clips", "seed": seed}
            tuned = Checkpoint(module.model, self.config, module.head, self.task, facts)
            checkpoint.save(folder / "model", tuned)
            predictions = predict(
                module,
                self.inputs,
                splits.test,
                activation=functools.partial(tasks.activate, self.task),
                progress=progress.of_clips("test"),
            )
        progress.finish()
        return state.best_score, predictions.numpy()


def prediction_rows(task: Task, clips: Sequence[Clip], outputs: np.ndarray) -> list[dict[str, str]]:
    """Rows of a table of predictions (n, C).

    Id, group and target of each clip, then its outputs.
    """
    rows = []
    for clip, values in zip(clips, outputs, strict=True):
        row = {"id": clip.id, "group": clip.group or clip.id, "target": str(clip.target)}
        named = zip(task.names, values, strict=True)
        rows.append(row | {name: f"{value:.6g}" for name, value in named})
    return rows


def _score(task: Task, select: str, figures: Mapping[str, float]) -> float:
    """Validation score, higher is better: the main metric, then the loss; the loss if undefined."""
    metric = figures[task.metric]
    by_metric = select == "metric" and math.isfinite(metric)
    return metric - 1e-4 * figures["loss"] if by_metric else -figures["loss"]
