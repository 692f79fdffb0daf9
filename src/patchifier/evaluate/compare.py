"""Compare encoders by the same probe on the same clips, with intervals and paired differences."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchifier.cache import Cache
from patchifier.config import RequestError
from patchifier.datasets.splits import (
    Splits,
    cross_validation,
    folds_of,
    ungrouped_note,
    untrained_note,
)
from patchifier.evaluate import robustness
from patchifier.evaluate.encoders import Encoder, holds
from patchifier.evaluate.evaluator import Evaluator
from patchifier.evaluate.leak_notes import leak_notes
from patchifier.io import ProgressOf, silent_of, write_json, write_rows
from patchifier.tasks import Task
from patchifier.train.run import Run, facts_of, refuse_other_files

log = logging.getLogger(__name__)


def compare(
    cache: str | Path | Cache,
    encoders: Sequence[Encoder],
    out: str | Path,
    *,
    protocol: str = "linear",
    robust: bool = False,
    seed: int = 0,
    progress: ProgressOf = silent_of,
) -> dict[str, Any]:
    """Evaluate encoders on one task.

    Parameters
    ----------
    cache : str, Path or Cache
        Clips with targets.
    encoders : sequence of Encoder
        The first is compared with each other one. Those of one name are repeated runs of one
        encoder.
    out : str or Path
        Run folder. It gets ``results.json``, ``table.csv``, ``differences.csv`` and the predictions
        of each encoder.
    protocol : str
        One of :data:`patchifier.evaluate.probes.PROTOCOLS`, or "few-shot".
    robust : bool
        Whether the same probes also predict the tested clips under each of
        :data:`patchifier.evaluate.robustness.PERTURBATIONS`.
    seed : int
        Seed of the probe.
    progress : callable
        Given a title, returns a function that shows progress.

    Returns
    -------
    dict
        ``rows``, ``differences`` and ``notes``, as in ``results.json``.

    Raises
    ------
    RequestError
        If the clips have no targets, the protocol does not fit the task, or `out` is no place for
        it: it holds other files, or a run of another command, cache or data set.

    Examples
    --------
    >>> from patchifier.evaluate.encoders import encoders
    >>> results = compare("demo-cache", encoders("mel-stats"), "comparison")
    >>> [row["encoder"] for row in results["rows"]]
    ['majority', 'mel-stats']
    """
    data = cache if isinstance(cache, Cache) else Cache(cache)
    task = require_fit(data, Path(out))
    splits = splits_of(data)
    tested = np.concatenate([split.test for split in splits])
    facts = {
        "kind": "compare", "cache": str(data.path), "dataset": data.name,
        "protocol": protocol, "seed": seed, "metric": task.metric,
        "hours": round(data.hours, 3),
        "clips": {name: len(getattr(splits[0], name)) for name in ("train", "valid", "test")},
        "task": {"kind": task.kind, "names": list(task.names)}, "split": describe(data),
        "encoders": list(dict.fromkeys(e.name for e in encoders)),
    }  # fmt: skip
    with Run(out, None, resume=True, facts=facts) as run:
        progress = run.timed(progress)
        if note := other_log_mels_note(encoders, data):
            log.warning(note)
        notes = leak_notes(encoders, data, tested.tolist(), run.path, progress=progress)
        perturbed = {}
        for name in robustness.PERTURBATIONS if robust else ():
            perturbed[name] = robustness.perturb(
                data, tested, name, run.path / "deformed" / name, progress=progress(name)
            )
        evaluator = Evaluator(data, task, protocol, splits, seed, perturbed, run.path, progress)
        results = evaluator.results(encoders)
        notes += ungrouped_note(data.clips) + untrained_note(task, data.clips, splits)
        results["notes"] = notes + results.get("notes", [])
        results |= {"dataset": data.name, "protocol": protocol, "split": facts["split"]}
        _write(run.path, results)
        for old in set((run.path / "predictions").glob("*.csv")) - evaluator.written:
            old.unlink()  # of an encoder of an earlier comparison
    return results


def require_fit(data: Cache, out: Path) -> Task:
    """Task of a cache; refuse one without targets, and a folder where this cannot be written."""
    task = data.require_task()
    before = facts_of(out)
    path = str(before.get("cache"))  # wherever the command was run
    same_path = path == str(data.path) or Path(path).resolve() == data.path.resolve()
    if not before:
        refuse_other_files(out)
    elif before.get("kind") != "compare":
        raise RequestError(f"{out} was made by another command: choose another --out.")
    elif not (same_path and before.get("dataset") == data.name):
        raise RequestError(
            f"{out} holds a run already, of cache {before.get('cache')} (data set "
            f"{before.get('dataset')}): choose another --out."
        )
    return task


def other_log_mels_note(encoders: Sequence[Encoder], data: Cache) -> str:
    """Name the models that read other log-mels than a cache holds; empty if there are none."""
    names = dict.fromkeys(
        encoder.name
        for encoder in encoders
        if encoder.embedder and not holds(data, encoder.embedder.config.spectrogram)
    )
    if not names:
        return ""
    model = next(iter(names)).removeprefix("random:").removeprefix("model:").partition("@")[0]
    return (
        f"{', '.join(names)}: the audio files are read again, since cache {data.path} holds other "
        f"log-mels; a cache made with 'patchifier prepare --model {model}' avoids it."
    )


def splits_of(data: Cache) -> list[Splits]:
    """Train, validation and test clips of a cache of log-mels, for each test fold.

    An empty split is refused.
    """
    found = (Splits.of(data.clips, names) for names in cross_validation(data.clips))
    return [splits.require_clips(f"cache {data.path}") for splits in found]


def describe(data: Cache) -> str:
    """Describe in words how clips are split."""
    if any(clip.split for clip in data.clips):
        return "the data set's own split"
    grouped = any(clip.group for clip in data.clips)
    made = f" (made here, {'by group' if grouped else 'each file alone'})"
    made *= not folds_of(data.clips)
    count = len(cross_validation(data.clips))
    return f"each of {count} folds{made} tested in turn" if count > 1 else "one fold tested"


def _write(folder: Path, results: dict[str, Any]) -> None:
    """Write ``results.json``, and its rows and differences as CSV."""
    write_json(folder / "results.json", results)
    columns = dict.fromkeys(key for row in results["rows"] for key in row if key != "chosen")
    rows = [{key: row.get(key, "") for key in columns} for row in results["rows"]]
    write_rows(folder / "table.csv", rows)
    if results["differences"]:
        write_rows(folder / "differences.csv", results["differences"])
    else:  # those of an earlier comparison
        (folder / "differences.csv").unlink(missing_ok=True)
