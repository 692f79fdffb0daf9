"""Commands about data: prepare, fetch, check."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from patchifier.cli.command import Outcome, Overrides, print_skipped
from patchifier.cli.progress import progress
from patchifier.config import Config, RequestError, SpectrogramConfig, read_changes, update

if TYPE_CHECKING:
    from patchifier.cache import Prepared
    from patchifier.datasets import Dataset
    from patchifier.tasks import Task

SHOWN = 5  # classes in a text


def prepare(
    source: str,
    *,
    out: str,
    root: str = "",
    partial: bool = False,
    model: str = "",
    workers: int = 0,
    changes: Annotated[Overrides, SpectrogramConfig],
) -> Outcome:
    """Decode audio once, into a cache of log-mels.

    Parameters
    ----------
    source : str
        A folder of audio, a CSV or JSONL manifest, 'demo', or a published data set such as gtzan
        or mtat:train.
    out : str
        Folder of the cache.
    root : str
        Folder of a published data set.
    partial : bool
        Accept a published data set of which files are missing.
    model : str
        Make the log-mels that this model reads, to fine-tune it; the paper's by default.
    workers : int
        Decoding processes; 0 is one for each core.
    changes : Overrides
        Any part of a config: a JSON file, such as a run's own config.json, or a recipe's name.
    """
    from patchifier import cache, datasets

    config = _spectrogram(model, changes)
    dataset = datasets.load(source, root=root or None, partial=partial)
    done = cache.prepare(
        dataset, out, config=config, workers=workers or None, progress=progress("log-mels")
    )
    for clip, note in done.notes:
        print(f"note about {clip.id}: {note}", file=sys.stderr)
    skipped = [(clip.path, reason) for clip, reason in done.skipped]
    skipped_text = print_skipped(skipped, Path(out) / "skipped.csv")
    results = {
        "clips": done.clips,
        "decoded": done.decoded,
        "skipped": len(done.skipped),
        "hours": done.audio_s / 3600,
        "cache": out,
        "task": asdict(dataset.task) | {"reason": dataset.reason} if dataset.task else None,
    }
    return Outcome(
        results, _prepared_text(done, out, dataset, skipped_text), 1 if done.skipped else 0
    )


def _spectrogram(model: str, changes: Overrides) -> SpectrogramConfig:
    from patchifier import weights

    file = changes.file
    if model and file:
        raise RequestError(
            "--model and --config both say what log-mels to make, expected one of them."
        )
    if model:
        file = str(weights.find(model) / "config.json")
    whole = read_changes(file) if file else {}
    config = SpectrogramConfig()
    for part in (whole, changes.sections):
        update(Config(), part)  # refuses a misspelt field of any section
        config = update(config, part.get("spectrogram", {}), where="spectrogram")
    return config


def _prepared_text(done: "Prepared", out: str, dataset: "Dataset", skipped: str) -> str:
    text = (
        f"{done.clips} clips, {done.audio_s / 3600:.2f} h, in {out} "
        f"({done.decoded} decoded now, the rest was there){skipped}"
    )
    columns = dict.fromkeys(name for clip in dataset.clips for name in clip.info)
    if dataset.task:
        return f"{text}\ntask: {_task_text(dataset.task, dataset)}"
    if columns:
        text += (
            f"; no targets: of the columns {', '.join(columns)} none is called 'target' or 'label'"
        )
    return text


def _task_text(task: "Task", dataset: "Dataset") -> str:
    """Say what the task is, why, and how many clips have no target."""
    from patchifier.tasks import KIND_NAMES

    word = next(word for word, kind in KIND_NAMES.items() if kind == task.kind)
    more = ", ..." if len(task.names) > SHOWN else ""
    text = (
        f"{word} ({len(task.names)}: {', '.join(task.names[:SHOWN])}{more}), metric {task.metric}"
    )
    if dataset.reason:
        text += f"; {dataset.reason}"
    missing = sum(clip.target is None for clip in dataset.clips)
    return text + (f"; {missing} of {len(dataset.clips)} clips without target" if missing else "")


def fetch(name: str, *, root: str) -> Outcome:
    """Download a published data set, as far as its addresses still answer.

    Parameters
    ----------
    name : str
        As for 'check'.
    root : str
        Folder for it.
    """
    from patchifier import datasets
    from patchifier.datasets import download

    sheet, _ = datasets.find_sheet(name)
    fetched = download.fetch(sheet, root, progress=progress(sheet.name))
    return Outcome(fetched.facts(), "\n".join(fetched.lines()), 0 if fetched.complete else 1)


def check(name: str, *, root: str, thorough: bool = False) -> Outcome:
    """Check whether a published data set is complete and sound.

    Parameters
    ----------
    name : str
        mtat, gtzan, emomusic, giantsteps-key, gtzan-beats, nsynth or mtg-jamendo; with ':VARIANT'
        for another split.
    root : str
        Folder of the data set.
    thorough : bool
        Decode every file to its end.
    """
    from patchifier.datasets import check

    report = check.check(name, root, thorough=thorough, progress=progress("files"))
    return Outcome(report.facts(), "\n".join(report.lines()), 0 if report.complete else 1)
