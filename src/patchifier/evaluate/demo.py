"""The demo on the bundled clips.

Cache, stage I, stage II, probes, four methods of fine-tuning, report.

The recipe (``recipes/demo.json``) is the paper's architecture with a budget of minutes. Folds 0 to
2 are the pre-training data, without labels. Probes are cross-validated over all four folds; methods
that update the model's weights are tested on fold 3 alone, to save time. The bundled model is
evaluated too: it was trained for longer on other music, without the tracks of these clips.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchifier import checkpoint, datasets, embed, statistics, tasks, weights
from patchifier.cache import Cache, prepare
from patchifier.checkpoint import Checkpoint, embedder_of
from patchifier.config import Config, read_changes, update
from patchifier.datasets.demo import RELATED
from patchifier.datasets.splits import groups_of
from patchifier.evaluate import encoders, probes
from patchifier.evaluate.controls import controls
from patchifier.evaluate.report import report
from patchifier.evaluate.report.folders import read_columns
from patchifier.io import ProgressOf, silent_of, write_json
from patchifier.train.finetune import METHODS, Tuned, finetune
from patchifier.train.pretrain import pretrain, split
from patchifier.train.sameness import equal_predictions

# On vectors computed once a step takes a millisecond, so the linear probe may take many, on every
# fold.
LINEAR_PROBE = {
    "finetune": {
        "folds": "all",
        "validate_every": 10,
        "patience": 300,
        "training": {"steps": 1500, "batch_size": 32},
    }
}
MOVING = tuple(method for method in METHODS if method != "linear-probe")
ENCODERS = ("patchifier", "random")
RELEASED = weights.DEFAULT


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo: the content of ``results.json`` and the report's page."""

    results: dict[str, Any]
    page: Path


def demo(
    out: str | Path = "runs/demo", *, config: Config | None = None, progress: ProgressOf = silent_of
) -> DemoResult:
    """Run the demo; an interrupted run is resumed.

    `out` gets ``model/``, ``results.json``, ``report/index.html`` and the runs they come from. The
    config is ``recipes/demo.json`` by default.
    """
    started, out = time.monotonic(), Path(out)
    # of a call that was interrupted
    before_s = sum(
        json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in out.glob("*/run.json")
    )
    config = config or update(Config(), read_changes("demo"))
    prepare(
        datasets.load("demo"),
        out / "cache",
        config=config.spectrogram,
        progress=progress("log-mels"),
    )
    data = Cache(out / "cache")
    pretrain(out / "cache", out / "pretrain", config=config, resume=True, progress=progress)
    shutil.copytree(out / "pretrain" / "model", out / "model", dirs_exist_ok=True)
    models = {
        "patchifier": checkpoint.load(out / "model"),
        "random": encoders.random_checkpoint(
            config, data, list(split(data, config.pretrain).train), seed=config.pretrain.seed
        ),
    }
    tables = Tables(data)
    tables.add_probes(models)
    tables.add_released()
    for encoder in ENCODERS:
        tables.add_tuned(encoder, tune(models[encoder], out, encoder, config, progress))
    results = {
        "seconds": round(before_s + time.monotonic() - started, 1),
        "parameters": models["patchifier"].model.parameter_count(),
        "rows": tables.rows,
        "stage_two": {
            name: float(column[-1])
            for name, column in read_columns(out / "pretrain/stage-two/validation.csv").items()
            if name.endswith("_mse")
        },
        "differences": tables.differences(),
        "notes": notes(data, config),
    }
    write_json(out / "results.json", results)
    return DemoResult(results, report([out], out / "report", progress=progress))


def tune(
    start: Checkpoint, out: Path, encoder: str, config: Config, progress: ProgressOf
) -> list[Tuned]:
    """Fine-tune: the linear probe over all folds, then all methods on fold 3."""
    probed = finetune(
        start, out / "cache", out / f"linear-probe-{encoder}",
        methods=("linear-probe",), config=update(config, LINEAR_PROBE),
        encoder=encoder, resume=True, progress=progress,
    )  # fmt: skip
    moved = finetune(
        start, out / "cache", out / f"finetune-{encoder}", methods=tuple(METHODS), config=config,
        encoder=encoder, resume=True, progress=progress,
    )  # fmt: skip
    if encoder == "patchifier":
        controls(start, out / "cache", out / f"finetune-{encoder}", config=config, random=False)
    return [*probed, *(tuned for tuned in moved if tuned.method in MOVING)]


class Tables:
    """Rows of the results table, and paired differences between rows tested on the same clips."""

    def __init__(self, data: Cache) -> None:
        self.data, self.task = data, data.require_task()
        self.targets = tasks.encode_targets(self.task, [clip.target for clip in data.clips])
        self.groups = groups_of(data.clips)
        self.folds = [clip.fold or 0 for clip in data.clips]
        self.rows: list[dict[str, Any]] = []
        self.predictions: dict[tuple[str, str], tuple[np.ndarray, list[np.ndarray]]] = {}

    def add(self, encoder: str, method: str, predictions: np.ndarray) -> None:
        """Add a row for cross-validated predictions of every clip."""
        self.rows.append(
            tasks.evaluate(self.task, self.targets, [predictions], self.groups).row(encoder, method)
        )
        self.predictions[encoder, method] = np.arange(len(self.targets)), [predictions]

    def add_probes(self, models: dict[str, Checkpoint]) -> None:
        """Add rows: majority class, and logistic regression on `ENCODERS` and on `models`."""
        everything = range(len(self.data.clips))
        majority = cross_validate(
            self.folds,
            lambda train, test: probes.majority(self.task, self.targets[train], int(test.sum())),
        )
        self.add("majority", "none", majority)
        features = {
            name: encode(self.data, everything) for name, encode in encoders.ENCODERS.items()
        }
        for name, start in models.items():
            features[name] = embedder_of(start).embed_log_mels(map(self.data.array, everything))
        for name, values in features.items():
            self.add_features(name, values)

    def add_features(self, name: str, features: np.ndarray) -> None:
        """Add a row for features (n, E), by logistic regression."""
        predictions = cross_validate(
            self.folds,
            lambda train, test: probes.fit_predict(
                self.task, features[train], self.targets[train], features[test]
            ),
        )
        self.add(name, "logistic", predictions)

    def add_released(self) -> None:
        """Add a row of the bundled model, if there is one, by the same logistic regression."""
        if RELEASED in weights.names():
            # From files: its log-mels may be others than the cache's.
            files = [clip.path for clip in self.data.clips]
            self.add_features(RELEASED, embed.load(RELEASED).embed(files))

    def add_tuned(self, encoder: str, results: list[Tuned]) -> None:
        """Add rows of fine-tuned models."""
        for tuned in results:
            self.rows.append(tuned.row)
            order = np.argsort(tuned.test)
            self.predictions[encoder, tuned.method] = (
                tuned.test[order],
                [run[order] for run in tuned.predictions],
            )

    def differences(self) -> list[dict[str, Any]]:
        """Differences of both models from random weights and from other features."""
        pairs = [
            (("patchifier", method), ("random", method))
            for method in ("linear-probe", "logistic", *MOVING)
        ]
        pairs += [(("patchifier", "logistic"), (name, "logistic")) for name in encoders.ENCODERS]
        if (RELEASED, "logistic") in self.predictions:
            pairs += [
                ((RELEASED, "logistic"), (name, "logistic"))
                for name in (*ENCODERS, *encoders.ENCODERS)
            ]
        rows = []
        for first, second in pairs:
            (test, one), (same, two) = self.predictions[first], self.predictions[second]
            assert (test == same).all(), "a paired comparison needs the same clips"
            found = statistics.paired(
                self.task.metric,
                [self.groups[index] for index in test],
                tasks.mean_score(self.task, self.targets[test], one),
                tasks.mean_score(self.task, self.targets[test], two),
            )
            names = {"first": ", ".join(first), "second": ", ".join(second)}
            figures = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
            figures["agree"] = found.agree
            figures["equal_predictions"] = equal_predictions(one, two)
            rows.append(names | figures)
        return rows


def cross_validate(
    folds: Sequence[int], predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Predict each fold from the others: (n, C).

    `predict` takes two masks (n,), of training and of test clips; returns predictions of the
    latter.
    """
    numbers = np.asarray(folds)
    found = [
        (numbers == fold, predict(numbers != fold, numbers == fold)) for fold in sorted(set(folds))
    ]
    predictions = np.zeros((len(numbers), found[0][1].shape[1]))
    for test, rows in found:
        predictions[test] = rows
    return predictions


def notes(data: Cache, config: Config) -> list[str]:
    """Notes for the page, below the table."""
    held = config.pretrain.validation_fold
    return [
        f"Linear probe and logistic regression are cross-validated over all {len(data.clips)} "
        "clips; "
        f"every fold but {held} was pre-training data, without labels, of the model of this demo.",
        f"{RELEASED} comes with the package: {RELATED}",
        "Methods that update weights are trained on two folds, validated on one and tested on "
        f"fold {held}, which is in no training data.",
        "The task, telling seven soundtracks apart, is confounded with mastering; with so few "
        "clips it cannot tell apart what lies closer than about 10 points.",
    ]
