"""The page: figures and tables of all runs, rendered by templates into one self-contained file."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.evaluate.report.comparison import comparison_of
from patchifier.evaluate.report.drawing import picture, stem_of
from patchifier.evaluate.report.figures import (
    convergence_figure,
    curves_figure,
    health_figure,
    predictors_in,
    to_decibels,
)
from patchifier.evaluate.report.folders import (
    METHODS,
    Row,
    RunFolder,
    get_part,
    read_columns,
    read_reconstructions,
    to_number,
)
from patchifier.evaluate.report.reconstruction import reconstruction_figure
from patchifier.evaluate.report.tables import (
    APART,
    ENCODERS,
    METHOD_TEXTS,
    caution_text,
    comparison_label,
    group_rows,
    interval_text,
    score_text,
)
from patchifier.extras import need

OTHERS = {"random": "with random weights", "majority": "always the most frequent label"}
Context = dict[str, Any]


def page_text(
    runs: Sequence[RunFolder],
    demos: Mapping[Path, Row],
    rows: Sequence[Row],
    problems: list[str],
    out: Path,
) -> str:
    """Draw the figures beside the page and render the page.

    What cannot be drawn is added to the problems.
    """
    pretrained = [run for run in runs if run.kind == "pretrain"]
    several = len(pretrained) > 1
    compared = [comparison_of(run, problems, out) for run in runs if run.kind == "compare"]
    context = {
        "labels": ", ".join(run.label for run in runs),
        "model": _model(pretrained[0], demos) if pretrained else None,
        "score": _score(rows),
        "reconstructions": [
            drawn for run in pretrained for drawn in _reconstructions(run, out, problems, several)
        ],
        "comparisons": [comparison for comparison in compared if comparison],
        "convergence": _convergence(runs, rows, out),
        "curves": [drawn for run in pretrained for drawn in _curves(run, out, several)],
        "made": [_made(run) for run in runs],
        **_table(rows, demos),
    }
    context["missing"] = [(run.label, f"{'; '.join(run.missing)}.") for run in runs if run.missing]
    context["missing"] += [("", problem) for problem in problems]
    return render("page.html", context)


def render(template: str, context: Context) -> str:
    """Render a template; every text is escaped and one line long, unless it is Markup."""
    jinja2 = need("jinja2")
    from markupsafe import Markup, escape  # which jinja2 needs

    def one_line(value: Any) -> Any:
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return " ".join(value.split()) if plain else value

    folder = Path(__file__).with_name("templates")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=one_line,
    )
    environment.filters["preformatted"] = escape
    return environment.get_template(template).render(context)


# --- headline ---


def _model(run: RunFolder, demos: Mapping[Path, Row]) -> Context:
    """What the first sentence says of a pre-trained model."""
    inside = [results for folder, results in demos.items() if run.path.is_relative_to(folder)]
    columns = read_columns(run.path / "stage-two" / "validation.csv")
    last = {name: column[-1] for name, column in columns.items()}
    last |= get_part(inside[0], "stage_two") if inside else {}
    errors = {name: to_number(value) for name, value in last.items() if name.endswith("_mse")}
    decibels = {
        name: f"{to_decibels(error, run):.1f} dB" for name, error in errors.items() if error >= 0
    }
    size, seconds = to_number(run.facts.get("parameters")), to_number(run.facts.get("seconds"))
    predictors = predictors_in(decibels).items()
    return {
        "size": f"A model of {size / 1e6:.1f} million parameters" if size > 0 else "",
        "clips": get_part(run.facts, "clips").get("train", "?"),
        "duration": _duration(seconds) if seconds > 0 else "",
        "error": decibels.get("masked_mse"),
        "others": [f"{words} {decibels[name]}" for name, (_, words) in predictors],
    }


def _score(rows: Sequence[Row]) -> Context | None:
    """What the next sentence says of the linear probe, which was not chosen on test clips."""
    ours = [row for row in rows if row.get("encoder") == "patchifier"]
    if not ours:
        return None
    row = next((row for row in ours if row.get("method") == "linear-probe"), ours[0])
    method = row.get("method")
    group = next(group for group in group_rows(rows) if row in group)
    others = [r for r in group if r is not row and r.get("method") in (method, "none")]
    names = [str(other.get("encoder")) for other in others]
    return _cells(row) | {
        "value": _with_unit(row),
        "others": [
            (OTHERS.get(name, name), _with_unit(other))
            for name, other in zip(names, others, strict=True)
        ],
    }


def _duration(seconds: Any) -> str:
    value = to_number(seconds)
    if not math.isfinite(value):
        return "unknown time"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


# --- figures ---


def _reconstructions(
    run: RunFolder, out: Path, problems: list[str], several: bool
) -> list[Context]:
    path = run.path / "stage-two" / "reconstructions.safetensors"
    if not path.exists():
        return []
    try:
        arrays, facts = read_reconstructions(path)
        figure = reconstruction_figure(arrays, facts)
    except RequestError as error:
        problems.append(f"{run.label}: {error}")
        return []
    return [
        picture(
            figure,
            out / stem_of("reconstruction", run, several=several),
            "Spectrogram of a clip; below it, for each mask ratio, the patches given, the patches "
            "filled in, and the error in decibels.",
            pixels=True,
            run=run,
            patch_s=arrays["original"].shape[2] * float(facts["frame_s"]),
            clip=facts.get("clip", "?"),
        )
    ]


def _convergence(runs: Sequence[RunFolder], rows: Sequence[Row], out: Path) -> list[Context]:
    """One figure for each model, with the random network of the same task behind it."""
    tuned = [run for run in runs if run.kind == "finetune"]
    main = [
        run
        for run in tuned
        if run.facts.get("encoder") != "random" or not any(_opposes(run, other) for other in tuned)
    ]
    main.sort(key=lambda run: -sum((run.path / method).is_dir() for method in METHODS))
    drawn = []
    for run in main:
        opponents = [other for other in tuned if _opposes(other, run)]
        if figure := convergence_figure(run, opponents, rows):
            path = out / stem_of("figure-2", run, several=len(main) > 1)
            alt = (
                f"Validation {run.metric} against step for each method of fine-tuning, "
                f"and test {run.metric} of each with its interval."
            )
            drawn.append(picture(figure, path, alt, run=run, random=opponents))
    return drawn


def _opposes(other: RunFolder, run: RunFolder) -> bool:
    """Whether a run is the random network beside another model on the same task."""
    alike = (other.path.parent, other.test, other.metric) == (run.path.parent, run.test, run.metric)
    return alike and other.facts.get("encoder") == "random" != run.facts.get("encoder")


def _curves(run: RunFolder, out: Path, several: bool) -> list[Context]:
    drawn = []
    if figure := curves_figure(run):
        alt = (
            "Training and validation error of stage I and stage II against step, "
            "with simple predictors as horizontal lines."
        )
        path = out / stem_of("losses", run, several=several)
        drawn.append(picture(figure, path, alt, run=run))
    if figure := health_figure(run):
        alt = (
            "Error with and without order, variance and onsets drawn, standard deviation "
            "and effective rank of the embeddings against step."
        )
        path = out / stem_of("health", run, several=several)
        width = get_part(run.config, "model").get("embed_dim", "?")
        drawn.append(picture(figure, path, alt, run=run, width=width))
    return drawn


# --- tables ---


def _table(rows: Sequence[Row], demos: Mapping[Path, Row]) -> Context:
    """The form of the paper's Table 1, then the paired differences and the notes of demos."""
    used = {str(row.get(key)) for row in rows for key in ("encoder", "method")} - {"none"}
    return {
        "groups": [_group(group) for group in group_rows(rows)],
        "several_sources": len({row["source"] for row in rows}) > 1,
        "scale": "0 to 100 %" if all(row.get("metric") == "accuracy" for row in rows) else "",
        "apart": APART,
        "names": [(name, text) for name, text in (ENCODERS | METHOD_TEXTS).items() if name in used],
        "differences": [each for results in demos.values() for each in _differences(results)],
        "notes": [note for results in demos.values() for note in results.get("notes", [])],
    }


def _group(group: Sequence[Row]) -> Context:
    lines = [_cells(row) | {"bar": _bar(row, group), "source": row["source"]} for row in group]
    first = group[0]
    return {
        "n": first.get("n", "?"),
        "test": first["test"],
        "caution": caution_text(group),
        "lines": lines,
    }


def _cells(row: Row) -> Context:
    metric = row.get("metric")
    return {
        "encoder": row.get("encoder"),
        "method": row.get("method"),
        "metric": metric,
        "value": _with_unit(row),
        "interval": interval_text(row, metric),
        "n": row.get("n", "?"),
    }


def _with_unit(row: Row) -> str:
    metric = row.get("metric")
    return score_text(row.get("value"), metric) + (" %" if metric == "accuracy" else "")


def _bar(row: Row, group: Sequence[Row]) -> tuple[float, float, float] | None:
    """Value, low and high on the scale of the group, from 0 or below to 1 or above; 6 to 154."""
    ends = [to_number(r.get(key)) for r in group for key in ("value", "low", "high")]
    ends = [0.0, 1.0, *(end for end in ends if math.isfinite(end))]
    value, low, high = (to_number(row.get(key)) for key in ("value", "low", "high"))
    if not math.isfinite(value):
        return None
    scale = 148 / (max(ends) - min(ends))
    low, high = np.fmin(low, value), np.fmax(high, value)
    least = min(ends)
    return 6 + scale * (value - least), 6 + scale * (low - least), 6 + scale * (high - least)


def _differences(results: Row) -> list[Context]:
    metrics = {row.get("metric") for row in results.get("rows", [])}
    lines = []
    for item in results.get("differences", []):
        metric = item.get("metric", next(iter(metrics)) if len(metrics) == 1 else "")
        unit = " points" if metric == "accuracy" else ""
        lines.append(
            {
                "first": item.get("first"),
                "second": item.get("second"),
                "verdict": comparison_label(item),
                "value": score_text(item.get("value"), metric, signed=True) + unit,
                "interval": interval_text(item, metric, signed=True),
                "n": item.get("n", "?"),
            }
        )
    return lines


# --- how it was made ---


def _made(run: RunFolder) -> Context:
    facts = run.facts
    settings = get_part(run.config, "finetune" if run.kind == "finetune" else "pretrain")
    seed, seeds = settings.get("seed", facts.get("seed", "?")), settings.get("n_seeds", 1)
    lines = {
        "state": facts.get("state", "unknown"),
        "clips": ", ".join(f"{n} {name}" for name, n in get_part(facts, "clips").items()) or "?",
        "seed": seed if seeds == 1 else f"{seed} and the next {seeds - 1}",
        "started": facts.get("started", "?"),
        "time": _duration(facts.get("seconds")),
        "machine": facts.get("machine", "?"),
        "versions": ", ".join(f"{n} {v}" for n, v in get_part(facts, "versions").items()) or "?",
        "task": run.test,
        "cache": facts.get("cache", ""),
        "parameters": f"{to_number(facts.get('parameters')):,.0f}",
        "folder": facts["folder"],
    }
    return {
        "label": run.label,
        "command": facts.get("command", "?"),
        "facts": [(name, text) for name, text in lines.items() if text != ""],
        "config": json.dumps(run.config, indent=2) if run.config else "",
    }
