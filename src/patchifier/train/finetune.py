"""Partial fine-tuning: the four methods of section 4.5 as a table of what learns.

Frozen parts stay in evaluation mode, so that their batch-norm statistics do not move, and what only
frozen parts compute is computed once. CLS and positions belong to the bottleneck and are frozen
with it.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from patchifier import checkpoint, statistics, tasks, weights
from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, FinetuneConfig, digest
from patchifier.datasets import Clip
from patchifier.datasets.splits import Splits, folds_of, groups_of, untrained_note
from patchifier.io import Progress, ProgressOf, silent, silent_of, write_json
from patchifier.nn.encode import model_hash
from patchifier.tasks import Task
from patchifier.train import precision
from patchifier.train.distributed import require_devices
from patchifier.train.run import Run
from patchifier.train.sameness import equal_predictions
from patchifier.train.tuned_model import METHODS, Inputs, TunedModel, predict
from patchifier.train.tuning import Tuned, Tuning

log = logging.getLogger(__name__)
__all__ = ["METHODS", "Inputs", "Tuned", "TunedModel", "Tuning", "finetune", "predict"]


def finetune(
    model: str | Path | Checkpoint,
    cache: str | Path,
    out: str | Path,
    *,
    methods: Sequence[str] = ("full",),
    config: Config | None = None,
    encoder: str = "",
    resume: bool = False,
    device: str = "auto",
    progress: ProgressOf = silent_of,
) -> list[Tuned]:
    """Fine-tune a model on a cache whose clips have targets, and test it.

    Parameters
    ----------
    model : str, Path or Checkpoint
        What to start from.
    cache : str or Path
        From :func:`patchifier.cache.prepare`, with the model's spectrogram settings.
    out : str or Path
        Run folder; gets a folder for each method, with curves, predictions, results and the tuned
        model.
    methods : sequence of str
        Of :data:`METHODS`.
    config : Config
        The model's own by default; its finetune section counts.
    encoder : str
        What to call the model in tables; by default its name or folder, or, for RUN/model, the
        run's name (:func:`patchifier.weights.title`). A checkpoint in memory is "patchifier".
    resume, device, progress
        As for pre-training.

    Returns
    -------
    list of Tuned

    Raises
    ------
    RequestError
        If the clips have no targets, a split is empty, model and cache do not fit together, or
        there is no such device.

    Examples
    --------
    >>> from patchifier.config import update
    >>> config = checkpoint.load("patchifier-paper").config
    >>> config = update(config, {"finetune": {"training": {"steps": 2}, "precision": "32"}})
    >>> how = {"methods": ["linear-probe"], "config": config, "device": "cpu"}
    >>> (tuned,) = finetune("patchifier-paper", "demo-cache", "runs/tuned", **how)
    >>> tuned.method, tuned.predictions[0].shape
    ('linear-probe', (2, 7))
    """
    start = model if isinstance(model, Checkpoint) else checkpoint.load(model)
    encoder = encoder or ("patchifier" if isinstance(model, Checkpoint) else weights.title(model))
    config = config or start.config
    config = replace(config, model=start.config.model, spectrogram=start.config.spectrogram)
    data = Cache(cache).require(config.spectrogram)
    task = data.require_task()
    folds = test_folds(data.clips, config.finetune)
    tunings = [
        Tuning(start, data, task, method, config, device=device, resume=resume)
        for method in methods
    ]
    splits = [Splits.partitioned(data.clips, test_fold=fold) for fold in folds]
    for split in splits:
        split.require_clips(f"cache {data.path}")
    for note in untrained_note(task, data.clips, splits):
        log.warning(note)
    require_devices(device)
    facts = {
        "kind": "finetune",
        "encoder": encoder,
        "cache": str(data.path.resolve()),
        "music": digest(list(data.keys)),
        "dataset": data.name,
        "task": {"kind": task.kind, "names": list(task.names)},
        "metric": task.metric,
        "methods": list(methods),
        "split": describe_split(data.clips, folds),
        "parameters": start.model.parameter_count(),
        "seed": config.finetune.seed,
        "hours": round(data.hours, 3),
        "clips": {name: len(getattr(splits[0], name)) for name in ("train", "valid", "test")},
        "model weights": model_hash(start.model),
    }
    results = []
    with Run(out, config, resume=resume, facts=facts) as run:
        arithmetic = precision.settle(
            run,
            config.finetune.precision,
            device,
            lambda: (tuning.trial(splits[0]) for tuning in tunings),
            flag="finetune.precision",
            progress=progress(precision.TITLE),
        )
        for tuning in tunings:
            tuning = replace(tuning, arithmetic=arithmetic, keep_time=run.keep_time)
            shown = progress(f"{encoder}, {tuning.method}")
            results.append(
                tuning.over_folds(run.path / tuning.method, folds, encoder=encoder, progress=shown)
            )
        if len(results) > 1:
            shown = progress("paired differences")
            pairs = itertools.combinations([(tuned.method, tuned) for tuned in results], 2)
            rows = paired_rows(data, task, list(pairs), progress=shown)
            write_json(run.path / "differences.json", rows)
    return results


def paired_rows(
    data: Cache,
    task: Task,
    pairs: Sequence[tuple[tuple[str, Tuned], tuple[str, Tuned]]],
    *,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Differences between results on the same test clips, each with its name.

    Rows of :func:`patchifier.statistics.paired_rows`, and whether the predictions are equal.
    """
    test = pairs[0][0][1].test
    same = (np.array_equal(tuned.test, test) for pair in pairs for _, tuned in pair)
    assert all(same), "a paired comparison needs the same clips"
    clips = [data.clips[index] for index in test]
    targets = tasks.encode_targets(task, [clip.target for clip in clips])

    def scored(name: str, tuned: Tuned) -> tuple[str, statistics.Statistic]:
        return name, tasks.mean_score(task, targets, tuned.predictions)

    scores = [(scored(*one), scored(*other)) for one, other in pairs]
    rows = statistics.paired_rows(task.metric, groups_of(clips), scores, progress=progress)
    for row, ((_, one), (_, other)) in zip(rows, pairs, strict=True):
        row["equal_predictions"] = equal_predictions(one.predictions, other.predictions)
    return rows


def test_folds(clips: Sequence[Clip], config: FinetuneConfig) -> list[int | None]:
    """Return the folds that are tested in turn.

    [None] where the split is the data set's own or by hash.
    """
    present = folds_of(clips)
    if not present:
        return [None]
    last = present[-1] if config.test_fold is None else config.test_fold
    return [last, *(fold for fold in present if fold != last)] if config.folds == "all" else [last]


def describe_split(clips: Sequence[Clip], folds: Sequence[int | None]) -> str:
    """Say in words how clips are split."""
    if any(clip.split for clip in clips):
        return "the data set's own split"
    if folds == [None]:
        return "a tenth of the groups tested, a tenth validated, by a hash of their names"
    return (
        f"fold {folds[0]} tested"
        if len(folds) == 1
        else f"each of {len(folds)} folds tested in turn"
    )
