"""The first screen: the question, the answer in one or two sentences, and the setting."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from patchifier.evaluate.report.figures import predictors_in, to_decibels
from patchifier.evaluate.report.folders import (
    Row,
    RunFolder,
    get_part,
    read_columns,
    started_from,
    to_number,
)
from patchifier.evaluate.report.provenance import clip_counts, duration, music_text, seeds_text
from patchifier.evaluate.report.tables import Column, interval_text, tuning_text, with_unit

OTHERS = {
    "random": "the same network with random weights",
    "majority": "without looking at the clip",
    "mel-stats": "mel statistics",
}
METHODS = {"logistic": "logistic regression", "ridge": "ridge regression"}
KINDS = {
    "one-of": "one of {n} classes",
    "many-of": "tags, {n} in all",
    "numbers": "regression of {n} numbers",
    "per-frame": "a label for each moment, {n} in all",
}
STAGES = {"stage_one": "stage I", "stage_two": "stage II"}


def question(runs: Sequence[RunFolder]) -> str:
    """The question that these runs answer."""
    trained = _names(run for run in runs if run.kind == "pretrain")
    tasks = _names(run for run in runs if run.kind != "pretrain")
    model, named = described_model(runs)
    if model and named and not any(started_from(run, model) for run in tuned_runs(runs)):
        return f"What are the vectors of a model worth on {tasks or 'this task'}?"
    if trained and tasks and trained == tasks:
        return f"What does pre-training without labels on {trained} learn, and does it help there?"
    if trained and tasks:
        return f"Does pre-training without labels on {trained} help on {tasks}?"
    if trained:
        return f"How well does a model predict masked patches of {trained}?"
    if any(run.kind == "finetune" for run in runs):
        return f"What are the vectors of a model worth on {tasks or 'this task'}?"
    return f"Which vectors are worth most on {tasks or 'this task'}?"


def _names(runs: Iterable[RunFolder]) -> str:
    names = list(dict.fromkeys(run.dataset for run in runs if run.dataset))
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def tuned_runs(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Runs that fine-tuned a trained model."""
    return [run for run in runs if run.kind == "finetune" and run.facts.get("encoder") != "random"]


def described_model(runs: Sequence[RunFolder]) -> tuple[RunFolder | None, bool]:
    """Run of the pre-trained model to describe, and whether another model was fine-tuned, too.

    It is one whose model was fine-tuned, if there is one.
    """
    pretrained, tuned = [run for run in runs if run.kind == "pretrain"], tuned_runs(runs)
    if not pretrained:
        return None, False
    used = [run for run in pretrained if any(started_from(each, run) for each in tuned)]
    model = [*used, *pretrained][0]
    return model, not all(started_from(each, model) for each in tuned)


def model_sentence(run: RunFolder, demos: Mapping[Path, Row]) -> dict[str, Any]:
    """What the first sentence says of a pre-trained model."""
    errors = {name: f"{error:.1f} dB" for name, error in held_out_errors(run, demos).items()}
    size, seconds = to_number(run.facts.get("parameters")), to_number(run.facts.get("seconds"))
    predictors = predictors_in(errors).items()
    return {
        "name": run.label,
        "size": f"A model of {_count(size)} parameters" if size > 0 else "",
        "clips": get_part(run.facts, "clips").get("train", "?"),
        "duration": duration(seconds) if seconds > 0 else "",
        "error": errors.get("masked_mse"),
        "others": [f"{words} {errors[name]}" for name, (_, words) in predictors],
    }


def _count(size: float) -> str:
    return f"{size / 1e6:.1f} million" if size >= 1e5 else f"{size:,.0f}"


def held_out_errors(run: RunFolder, demos: Mapping[Path, Row]) -> dict[str, float]:
    """Last errors on the held-out clips as RMSE in dB, by column of the validation of stage II."""
    inside = [results for folder, results in demos.items() if run.path.is_relative_to(folder)]
    columns = read_columns(run.path / "stage-two" / "validation.csv")
    last = {name: column[-1] for name, column in columns.items()}
    last |= get_part(inside[0], "stage_two") if inside else {}
    errors = {name: to_number(value) for name, value in last.items() if name.endswith("_mse")}
    return {name: to_decibels(error, run) for name, error in errors.items() if error >= 0}


def score_sentence(column: Column, group: Sequence[Row]) -> dict[str, Any] | None:
    """What the next sentence says of the linear probe, which was not chosen on test clips."""
    ours = [row for row in group if row.get("ours")]
    if not ours:
        return None
    row = next((row for row in ours if row.get("method") == "linear-probe"), ours[0])
    alike = {(row.get("method"), row.get("rate", "")), ("none", "")}
    compared = [row for row in group if not row.get("ours")]
    others = [row for row in compared if (row.get("method"), row.get("rate", "")) in alike]
    method = str(row.get("method"))
    return {
        "encoder": row.get("encoder"),
        "n": column.clips,
        "dataset": column.dataset,
        "method": METHODS.get(method, f"the {method.replace('-', ' ')}"),
        "metric": column.measure.partition(" (")[0],
        "value": with_unit(row),
        "interval": interval_text(row, column.metric),
        "learnt_nothing": bool(row.get("learnt_nothing")),
        "others": [
            (OTHERS.get(name := str(other.get("encoder")), name), with_unit(other))
            for other in others
        ],
    }


def setting(runs: Sequence[RunFolder]) -> list[tuple[str, str]]:
    """Terms and texts: data, network and steps of pre-training, then each task."""
    lines = []
    for run in runs:
        if run.kind == "pretrain":
            data = _joined(run.dataset, clip_counts(run), music_text(run))
            lines += [("pre-training data", data), ("network", _network(run))]
            lines += [("pre-training", _steps(run))]
    tasks: dict[str, tuple[str, str]] = {}
    for run in sorted(runs, key=lambda run: run.kind != "finetune"):
        if run.kind != "pretrain":
            term = f"task: {run.dataset}" if run.dataset else "task"
            tasks.setdefault(f"{term} {run.test}", (term, _task(run)))
    lines += [*tasks.values(), *_tunings(runs)]
    precision = {str(run.facts["precision"]) for run in runs if run.facts.get("precision")}
    machines = {str(run.facts["machine"]) for run in runs if run.facts.get("machine")}
    lines += [("processor", "; ".join(sorted(machines)))]
    lines += [("precision", ", ".join(sorted(precision)))]
    return [(term, text) for term, text in dict.fromkeys(lines) if text]


def _tunings(runs: Sequence[RunFolder]) -> list[tuple[str, str]]:
    """How each test was fine-tuned.

    The term names its data set, the labels of one of several tasks of this data set, and the runs
    if not all of this test have the same settings.
    """
    tests: dict[tuple[str, str], dict[str, list[str]]] = {}  # runs by their settings
    for run in runs:
        if run.kind == "finetune" and (settings := get_part(run.config, "finetune")):
            texts = tests.setdefault((run.dataset, run.task.partition(": ")[2]), {})
            texts.setdefault(tuning_text(settings), []).append(run.label)
    tasks = Counter(dataset for dataset, _ in tests)
    lines = []
    for (dataset, names), texts in tests.items():
        for text, labels in texts.items():
            named = names if tasks[dataset] > 1 else ""
            about = _joined(dataset, named, ", ".join(labels) if len(texts) > 1 else "")
            lines.append((f"fine-tuning: {about}" if about else "fine-tuning", text))
    return lines


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _network(run: RunFolder) -> str:
    model, mel = get_part(run.config, "model"), get_part(run.config, "spectrogram")
    size = to_number(run.facts.get("parameters"))
    rate, hop = to_number(mel.get("sample_rate")), to_number(mel.get("hop_length"))
    frames = to_number(model.get("patch_frames"))
    patch_s = frames * hop / rate if rate else frames
    parts = [f"{size:,.0f} parameters" if size == size else ""]
    if patch_s == patch_s:
        parts.append(f"patches of {mel.get('n_mels', '?')} mel bands by {patch_s:.2f} s")
    if "embed_dim" in model:
        parts.append(f"{model.get('n_layers')} layers, {model['embed_dim']} dimensions")
    return _joined(*parts)


def _steps(run: RunFolder) -> str:
    settings, parts = get_part(run.config, "pretrain"), []
    for name, title in STAGES.items():
        stage = get_part(settings, name)
        steps = read_columns(run.path / name.replace("_", "-") / "metrics.csv").get("step")
        if steps is not None and len(steps):
            batch, rate = stage.get("batch_size", "?"), to_number(stage.get("learning_rate"))
            parts.append(f"{title}: {int(steps[-1]):,} steps of {batch} clips at {rate:g}")
    masked = to_number(settings.get("mask_ratio"))
    parts.append(f"{100 * masked:g} % of the patches masked" if masked == masked else "")
    return _joined(*parts, f"seed {seeds_text(run)}")


def _task(run: RunFolder) -> str:
    task = get_part(run.facts, "task")
    names = task.get("names", [])
    kind = KINDS.get(str(task.get("kind")), "").format(n=len(names))
    listed = run.task.partition(": ")[2]
    seeds = seeds_text(run) if run.kind == "finetune" else ""
    seeds = f"seed{'s' if ' to ' in seeds else ''} {seeds}" if seeds else ""
    split, named = str(run.facts.get("split") or ""), f"{kind} ({listed})" if listed else kind
    return _joined(named, split, clip_counts(run), music_text(run), seeds)
