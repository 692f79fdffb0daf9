"""Baseline rows of a fine-tuning table: majority, features without a model, random weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from patchifier import checkpoint, tasks
from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config
from patchifier.datasets.splits import Splits, groups_of, partition
from patchifier.evaluate import encoders, probes
from patchifier.io import ProgressOf, silent_of, write_json
from patchifier.tasks import Task
from patchifier.train import precision
from patchifier.train.finetune import paired_rows, test_folds
from patchifier.train.run import continued
from patchifier.train.tuning import Tuned, Tuning


def controls(
    model: str | Path | Checkpoint,
    cache: str | Path,
    out: str | Path,
    *,
    config: Config | None = None,
    random: bool = True,
    tuned: Sequence[Tuned] = (),
    resume: bool = False,
    device: str = "auto",
    progress: ProgressOf = silent_of,
) -> list[dict[str, Any]]:
    """Compute the baseline rows of a fine-tuning table, in ``controls/`` of the run folder.

    Arguments are those of :func:`patchifier.train.finetune.finetune`; the same clips are tested.
    Majority and regression on mel statistics need no validation clips and train on them too. If
    they fail, the state of the run is "failed".

    Parameters
    ----------
    random : bool
        Also train a linear probe on the same architecture with random, calibrated weights, which
        are drawn once.
    tuned : sequence of Tuned
        Results of the model, whose linear probe is compared with that of random weights.
    """
    start = model if isinstance(model, Checkpoint) else checkpoint.load(model)
    config = config or start.config
    config = replace(config, model=start.config.model, spectrogram=start.config.spectrogram)
    data = Cache(cache).require(config.spectrogram)
    task = data.require_task()
    folds = test_folds(data.clips, config.finetune)
    with continued(Path(out), "controls") as keep_time:
        rows = _untrained_rows(data, task, folds)
        if random:
            tuning = _random_weights(data, task, config, folds[0], device=device, resume=resume)
            first = Splits.partitioned(data.clips, test_fold=folds[0])
            arithmetic = precision.of_run(Path(out)) or precision.decide(
                config.finetune.precision, device, lambda: [tuning.trial(first)]
            )
            untrained = replace(tuning, arithmetic=arithmetic, keep_time=keep_time).over_folds(
                Path(out) / "controls" / "random",
                folds,
                encoder="random",
                progress=progress("random, linear-probe"),
            )
            rows.append(untrained.row)
            if pairs := [
                (_named(one), _named(untrained)) for one in tuned if one.method == untrained.method
            ]:
                shown = progress("model and random weights")
                differences = paired_rows(data, task, pairs, progress=shown)
                write_json(Path(out) / "controls" / "differences.json", differences)
        write_json(Path(out) / "controls" / "results.json", {"rows": rows})
    return rows


def _named(result: Tuned) -> tuple[str, Tuned]:
    return f"{result.row['encoder']}, {result.method}", result


def _untrained_rows(data: Cache, task: Task, folds: Sequence[int | None]) -> list[dict[str, Any]]:
    """Rows of the majority and of a regression on mel statistics, over all test folds."""
    targets = tasks.encode_targets(task, [clip.target for clip in data.clips])
    features = encoders.mel_stats(data, range(len(data.clips)))
    tests, majorities, regressions = [], [], []
    for fold in folds:
        split = np.array(partition(data.clips, test_fold=fold))
        test, rest = np.flatnonzero(split == "test"), np.flatnonzero(split != "test")
        tests.append(test)
        majorities.append(probes.majority(task, targets[rest], len(test)))
        regressions.append(probes.fit_predict(task, features[rest], targets[rest], features[test]))
    clips = np.concatenate(tests)
    groups = groups_of([data.clips[index] for index in clips])
    return [
        tasks.evaluate(task, targets[clips], [np.concatenate(predictions)], groups).row(*names)
        for names, predictions in (
            (("majority", "none"), majorities),
            (("mel-stats", probes.name(task)), regressions),
        )
    ]


def _random_weights(
    data: Cache, task: Task, config: Config, fold: int | None, *, device: str, resume: bool
) -> Tuning:
    """Return the linear probe of a model with random weights, calibrated on the training clips."""
    splits = Splits.partitioned(data.clips, test_fold=fold)
    start = encoders.random_checkpoint(
        config, data, splits.train.tolist(), seed=config.finetune.seed
    )
    return Tuning(start, data, task, "linear-probe", config, device=device, resume=resume)
