"""Commands about data: prepare, fetch, check."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from patchifier.cli.command import (
    Outcome,
    Overrides,
    counted,
    print_alike,
    print_skipped,
    read_config,
    say,
)
from patchifier.cli.progress import progress
from patchifier.config import Config, RequestError, SpectrogramConfig, update

if TYPE_CHECKING:
    from patchifier.cache import Prepared
    from patchifier.datasets import Dataset
    from patchifier.datasets.check import Report, Split
    from patchifier.datasets.download import Fetched
    from patchifier.tasks import Task

SHOWN = 5  # classes in a text
N_NAMED = 10  # files of a kind that are named in the text; --json names all
STATES = {
    "ok": "sha256 as published",
    "differs": "DIFFERS from what is published",
    "unknown": "there; no sha256 is published",
    "absent": "not in the root",
}


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

    Numbers in brackets, such as (4.4), are sections of the paper.

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
        Number of decoding processes; 0 is one for each core.
    changes : Overrides
        Any part of a config: a JSON file, such as a run's own config.json, or a recipe's name.

    Examples
    --------
    A cache of all music in a folder, with the log-mels of the recipe self-supervised:
        $ patchifier prepare ~/Music --out cache --config self-supervised

    A labelled set, with the log-mels that a model reads:
        $ patchifier prepare genres.csv --out genres --model patchifier-base
    """
    from patchifier import cache, datasets

    config = _spectrogram(model, changes)
    dataset = datasets.load(source, root=root or None, partial=partial)
    done = cache.prepare(
        dataset, out, config=config, workers=workers or None, progress=progress("log-mels")
    )
    for clip, note in done.notes:
        say(f"note about {clip.id}: {note}")
    if dataset.task and dataset.task.kind in ("one-of", "many-of"):
        print_alike(dataset.task.names)
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
    from patchifier import model_folder

    file = changes.file
    if model and file:
        raise RequestError(
            "--model and --config both say what log-mels to make, expected one of them."
        )
    whole = read_config(file) if file else {}
    config = model_folder.read(model).config.spectrogram if model else SpectrogramConfig()
    for part in (whole, changes.sections):
        update(Config(), part)  # refuses a misspelt field of any section
        config = update(config, part.get("spectrogram", {}), where="spectrogram")
    return config


def _prepared_text(done: "Prepared", out: str, dataset: "Dataset", skipped: str) -> str:
    text = (
        f"{counted(done.clips, 'clip')}, {done.audio_s / 3600:.2f} h, in {out} "
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
    more = ", ..." if len(task.names) > SHOWN else ""
    names = f"{len(task.names)}: {', '.join(task.names[:SHOWN])}{more}"
    text = f"{task.kind_name} ({names}), metric {task.metric}"
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

    Examples
    --------
    The songs and labels of EmoMusic:
        $ patchifier fetch emomusic --root ~/data/emomusic

    GiantSteps' tracks and keys; addresses that no longer answer are named:
        $ patchifier fetch giantsteps-key --root ~/data/giantsteps
    """
    from patchifier import datasets
    from patchifier.datasets import download

    sheet, _ = datasets.find_sheet(name)
    fetched = download.fetch(sheet, root, progress=progress(sheet.name))
    facts = asdict(fetched) | {"complete": fetched.complete}
    return Outcome(facts, fetched_text(fetched), 0 if fetched.complete else 1)


def fetched_text(fetched: "Fetched") -> str:
    """Lay the result of a download out for a terminal; missing files are last."""
    done = {
        "downloaded": fetched.downloaded,
        "there already": fetched.present,
        "joined": fetched.joined,
        "unpacked": fetched.unpacked,
    }
    lines = [f"{what}: {', '.join(names)}" for what, names in done.items() if names]
    lines += [f"note: {name}: {text}" for name, text in fetched.notes.items()]
    lines += [f"MISSING: {name}: {text}" for name, text in fetched.missing.items()]
    return "\n".join(lines)


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

    Examples
    --------
    Count the files of GTZAN and name what is missing:
        $ patchifier check gtzan --root ~/data/gtzan

    Also decode every file to its end; this takes minutes:
        $ patchifier check mtat --root ~/data/mtat --thorough
    """
    from patchifier.datasets import check

    report = check.check(name, root, thorough=thorough, progress=progress("files"))
    facts = asdict(report) | {"complete": report.complete}
    return Outcome(facts, check_text(report), 0 if report.complete else 1)


def check_text(report: "Report") -> str:
    """Lay the result of a check out for a terminal."""
    lines = [
        f"{report.name} in {report.root}: {'complete' if report.complete else 'NOT complete'}; "
        f"{report.files} sound files, {report.size_b / 1e6:,.1f} MB."
    ]
    lines += [f"  the tables cannot be read: {report.unreadable}"] if report.unreadable else []
    lines += [f"  {_counts(split)}" for split in report.splits]
    cut = "  NOT as published: the tables are cut short, or of another edition."
    lines += [] if all(split.as_published for split in report.splits) else [cut]
    for file in report.downloads:
        size = f" ({file.size_b:,} bytes)" if file.size_b is not None else ""
        lines.append(f"  {file.name}: {STATES[file.state]}{size}")
    lines += _named("missing", report.missing) + _named("empty (0 bytes)", report.empty)
    lines += _named("broken", _with_reasons(report.corrupt))
    lines += _named("known to be bad, and so here", _with_reasons(report.excused))
    lines += _named("known to be bad in some or all copies", _with_reasons(report.known_bad))
    lines += [f"  to get what is missing: {report.how_to_get}"] if report.how_to_get else []
    return "\n".join(lines)


def _counts(split: "Split") -> str:
    published = "" if split.published is None else f", {split.published:,} published"
    named = [*split.lost[:N_NAMED], *(["..."] if len(split.lost) > N_NAMED else [])]
    lost = f"; lost: {', '.join(named)}" if named else ""
    note = "" if split.as_published else " (NOT as published)"
    name = f"{split.variant} {split.split or 'all'}"
    counts = f"{split.usable:,} usable of {split.listed:,} listed"
    return f"{name}: {counts}{published}{note}{lost}"


def _with_reasons(reasons: Mapping[str, str]) -> list[str]:
    return [f"{name} ({reason})" for name, reason in reasons.items()]


def _named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = [f"    ... and {len(names) - N_NAMED} more"] if len(names) > N_NAMED else []
    return [f"  {what}: {len(names)}", *(f"    {name}" for name in names[:N_NAMED]), *more]
