"""The page: text and tables around the figures, in one file that needs no other and no network."""

import html
import json
import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.evaluate.report.comparison import comparison_headline, comparison_html
from patchifier.evaluate.report.figures import (
    convergence_figure,
    curves_figure,
    health_figure,
    predictors_in,
    reconstruction_figure,
    to_decibels,
)
from patchifier.evaluate.report.folders import (
    METHODS,
    Row,
    Run,
    get_part,
    read_columns,
    read_reconstructions,
    to_number,
)
from patchifier.evaluate.report.parts import body, figure_html, published_html, wide
from patchifier.evaluate.report.tables import (
    APART,
    ENCODERS,
    READOUTS,
    caution_text,
    escape,
    group_rows,
    interval_text,
    score_text,
    verdict,
)

TEMPLATE = Path(__file__).with_name("page.html")
_PEERS = {"random": "with random weights", "majority": "always the most frequent label"}


def page_text(
    runs: Sequence[Run],
    demos: Mapping[Path, Row],
    rows: Sequence[Row],
    problems: list[str],
    out: Path,
) -> str:
    """Draw the figures beside the page and write the page around them; what cannot be drawn is added to the problems."""
    pretrained = [run for run in runs if run.kind == "pretrain"]
    pictures = [_reconstruction_html(run, out, problems, len(pretrained) > 1) for run in pretrained]
    sections = [
        ("What the model fills in", "".join(pictures)),
        ("What it is worth", _table_html(rows, demos)),
        *[
            (
                f"Side by side: {escape(run.facts.get('dataset', run.label))}",
                comparison_html(run, problems, out),
            )
            for run in runs
            if run.kind == "compare"
        ],
        ("Published figures", published_html()),
        ("Four ways of fine-tuning", _convergence_html(runs, rows, out)),
        (
            "How it learnt",
            "".join(_curves_html(run, out, len(pretrained) > 1) for run in pretrained),
        ),
        ("How this was made", "".join(_made_html(run) for run in runs)),
    ]
    content = "".join(
        f"<section><h2>{title}</h2>{inside}</section>" for title, inside in sections if inside
    )
    missing = [
        f"<b>{escape(run.label)}</b>: {escape('; '.join(run.missing))}."
        for run in runs
        if run.missing
    ] + [escape(text) for text in problems]
    notice = (
        f"<aside><h2>What is missing</h2><ul>{''.join(f'<li>{text}</li>' for text in missing)}</ul></aside>"
        if missing
        else ""
    )
    named = ", ".join(escape(run.label) for run in runs)
    values = {
        "headline": _headline(runs, demos, rows),
        "notice": notice,
        "body": content,
        "runs": named,
    }
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def _headline(runs: Sequence[Run], demos: Mapping[Path, Row], rows: Sequence[Row]) -> str:
    """Tell the key numbers in two sentences."""
    first = next((run for run in runs if run.kind == "pretrain"), None)
    demo = next(
        (
            results
            for folder, results in demos.items()
            if first and first.path.is_relative_to(folder)
        ),
        {},
    )
    sentences = [*([_tell_pretraining(first, demo)] if first else []), *_tell_score(rows)]
    sentences += [
        comparison_headline(run) for run in runs if run.kind == "compare" and not sentences
    ]
    return " ".join(sentences) or "Nothing has been measured yet."


def _tell_pretraining(run: Run, demo: Row) -> str:
    last = {
        name: column[-1]
        for name, column in read_columns(run.path / "stage-two" / "validation.csv").items()
    }
    errors = {
        name: to_number(value) for name, value in {**last, **get_part(demo, "stage_two")}.items()
    }
    decibels = {
        name: f"{to_decibels(error, run):.1f} dB"
        for name, error in errors.items()
        if name.endswith("_mse") and error >= 0
    }
    size, seconds = to_number(run.facts.get("parameters")), to_number(run.facts.get("seconds"))
    sentence = f"A model of {size / 1e6:.1f} million parameters" if size > 0 else "The model"
    sentence += f", trained without labels on {escape(get_part(run.facts, 'clips').get('train', '?'))} clips"
    sentence += f" in {_duration(seconds)}" if seconds > 0 else ""
    if "masked_mse" not in decibels:
        return sentence + "."
    others = ", ".join(
        f"{words} {decibels[name]}" for name, (_, words) in predictors_in(decibels).items()
    )
    sentence += (
        f", fills in hidden music with an error of <strong>{decibels['masked_mse']}</strong>"
    )
    return f"{sentence} (for comparison, {others})." if others else f"{sentence}."


def _tell_score(rows: Sequence[Row]) -> list[str]:
    """Tell the linear probe's score: the best of four methods would have been picked on the test clips."""
    ours = [row for row in rows if row.get("encoder") == "patchifier"]
    if not ours:
        return []
    row = next((row for row in ours if row.get("method") == "linear-probe"), ours[0])
    metric, method = row.get("metric"), row.get("method")
    unit = " %" if metric == "accuracy" else ""
    peers = [
        r
        for group in group_rows(rows)
        if row in group
        for r in group
        if r is not row and r.get("method") in (method, "none")
    ]
    against = "".join(
        f"; {escape(_PEERS.get(str(r.get('encoder')), r.get('encoder')))} {score_text(r.get('value'), metric)}{unit}"
        for r in peers
    )
    value = f"<strong>{score_text(row.get('value'), metric)}{unit}</strong> (95&nbsp;% interval {interval_text(row, metric)})"
    return [
        f"On {escape(row.get('n', '?'))} test clips ({escape(method)}) its {escape(metric)} is {value}{against}."
    ]


def _duration(seconds: Any) -> str:
    value = to_number(seconds)
    if not math.isfinite(value):
        return "unknown time"
    return (
        f"{value:.0f} s"
        if value < 120
        else f"{value / 60:.0f} min"
        if value < 7200
        else f"{value / 3600:.1f} h"
    )


def _stem(name: str, run: Run, several: bool) -> str:
    plain = "".join(
        letter if letter.isalnum() else "-"
        for letter in str(run.facts.get("folder", run.path.name))
    )
    return f"{name}-{plain}" if several else name


def _reconstruction_html(run: Run, out: Path, problems: list[str], several: bool) -> str:
    path = run.path / "stage-two" / "reconstructions.safetensors"
    if not path.exists():
        return ""
    try:
        arrays, facts = read_reconstructions(path)
        figure = reconstruction_figure(arrays, facts)
    except RequestError as error:
        problems.append(f"{run.label}: {error}")
        return ""
    seconds = arrays["original"].shape[2] * float(facts["frame_s"])
    caption = (
        f"A song as the model sees it: time runs to the right, pitch upwards, bright is loud. It is cut into patches of {seconds:.2f} s. "
        "Some are hidden (hatched), and the model fills them in from the others; patches that were given are left as they are. "
        f"The last strip of each block shows how far off it is. From <b>{escape(run.label)}</b>, clip <i>{escape(facts.get('clip', '?'))}</i>."
    )
    alt = "Spectrogram of a clip; below it, for each mask ratio, the patches given, the patches filled in, and the error in decibels."
    return figure_html(
        figure, _stem("reconstruction", run, several), out, alt=alt, caption=caption, pixels=True
    )


def _table_html(rows: Sequence[Row], demos: Mapping[Path, Row]) -> str:
    """Lay out the form of the paper's Table 1, one body for each set of test clips, then the paired differences."""
    sources = len({row["source"] for row in rows}) > 1
    scale = "0 to 100 %" if all(row.get("metric") == "accuracy" for row in rows) else ""
    head = [
        "encoder",
        "method",
        "metric",
        "value",
        "95 % interval",
        scale,
        "clips",
        *(["run"] if sources else []),
    ]
    parts = []
    for index, group in enumerate(group_rows(rows)):
        span = f"<th colspan={len(head)} scope=rowgroup>"
        about = f"<tr class=apart>{span}{APART}</th></tr>" if index else ""
        about += f"<tr>{span}{escape(group[0].get('n', '?'))} test clips; {escape(group[0]['test'] or 'task not stated')}</th></tr>"
        caution = (
            f"<tr class=caution><td colspan={len(head)}>{escape(caution_text(group))}</td></tr>"
            if caution_text(group)
            else ""
        )
        parts.append(
            f"<tbody>{about}{''.join(_row_html(row, group, sources) for row in group)}{caution}</tbody>"
        )
    table = wide(head, "".join(parts)) if rows else ""
    words = {
        name: text
        for name, text in (ENCODERS | READOUTS).items()
        if any(name in (row.get("encoder"), row.get("method")) for row in rows)
    }
    terms = "".join(
        f"<dt>{name}</dt><dd>{text}</dd>" for name, text in words.items() if name != "none"
    )
    key = (
        f"<details><summary>What the names mean</summary><dl>{terms}</dl></details>" if rows else ""
    )
    notes = "".join(
        f"<p>{escape(note)}</p>"
        for results in demos.values()
        for note in results.get("notes") or []
    )
    return table + key + "".join(_differences_html(results) for results in demos.values()) + notes


def _row_html(row: Row, group: Sequence[Row], sources: bool) -> str:
    metric = row.get("metric")
    unit = " %" if metric == "accuracy" else ""
    cells = [
        row.get("encoder"),
        row.get("method"),
        metric,
        score_text(row.get("value"), metric) + unit,
        interval_text(row, metric),
    ]
    after = "".join(
        f"<td>{escape(cell)}</td>"
        for cell in [row.get("n", "?"), *([row["source"]] if sources else [])]
    )
    kind = ' class="ours"' if row.get("encoder") == "patchifier" else ""
    return f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}<td>{_bar(row, group)}</td>{after}</tr>"


def _bar(row: Row, group: Sequence[Row]) -> str:
    """Value and interval as a picture on the scale of the group, from 0 or below to 1 or above; the numbers stand beside it."""
    ends = [to_number(r.get(key)) for r in group for key in ("value", "low", "high")]
    ends = [0.0, 1.0, *(end for end in ends if math.isfinite(end))]
    value, low, high = (to_number(row.get(key)) for key in ("value", "low", "high"))
    if not math.isfinite(value):
        return ""
    scale = 148 / (max(ends) - min(ends))
    x = [
        6 + scale * (end - min(ends)) for end in (value, np.fmin(low, value), np.fmax(high, value))
    ]
    return (
        '<svg class="bar" viewBox="0 0 160 14" width="160" height="14" aria-hidden="true"><path class="axis" d="M6 7H154"/>'
        f'<path class="whisker" d="M{x[1]:.1f} 7H{x[2]:.1f}M{x[1]:.1f} 3V11M{x[2]:.1f} 3V11"/><circle cx="{x[0]:.1f}" cy="7" r="4"/></svg>'
    )


def _differences_html(results: Row) -> str:
    metrics = {row.get("metric") for row in results.get("rows", []) if isinstance(row, dict)}
    lines = []
    for item in (item for item in results.get("differences") or [] if isinstance(item, dict)):
        metric = item.get("metric", next(iter(metrics)) if len(metrics) == 1 else "")
        unit = " points" if metric == "accuracy" else ""
        sentence = (
            f"{escape(item.get('first'))} <b>{verdict(item)}</b> {escape(item.get('second'))}"
        )
        value, interval = (
            score_text(item.get("value"), metric, signed=True) + unit,
            interval_text(item, metric, signed=True),
        )
        lines.append((sentence, value, interval, escape(item.get("n", "?"))))
    if not lines:
        return ""
    table = wide(
        ("on the same clips", "difference", "95 % interval", "clips"),
        f"<tbody class=text>{body(lines)}</tbody>",
    )
    return f"<h3>Which differences hold up</h3><p>“Beats” is said only when the paired 95 % interval leaves out 0.</p>{table}"


def _convergence_html(runs: Sequence[Run], rows: Sequence[Row], out: Path) -> str:
    """One figure for each model, with the random network of the same task behind it."""
    tuned = [run for run in runs if run.kind == "finetune"]
    main = [
        run
        for run in tuned
        if run.facts.get("encoder") != "random" or not any(_opposes(run, other) for other in tuned)
    ]
    main.sort(key=lambda run: -sum((run.path / method).is_dir() for method in METHODS))
    parts = []
    for run in main:
        opponents = [other for other in tuned if _opposes(other, run)]
        figure = convergence_figure(run, opponents, rows)
        if figure is None:
            continue
        grey = (
            f" Thin and grey: {', '.join(escape(other.label) for other in opponents)}, weights at random."
            if opponents
            else ""
        )
        caption = f"The form of the paper’s Figure 2, for <b>{escape(run.label)}</b>. Left: validation clips, "
        caption += f"of the first fold and seed where there are several. Right: test clips.{grey}"
        alt = f"Validation {run.metric} against step for each method of fine-tuning, and test {run.metric} of each with its interval."
        parts.append(
            figure_html(
                figure, _stem("figure-2", run, len(main) > 1), out, alt=alt, caption=caption
            )
        )
    return "".join(parts)


def _opposes(other: Run, run: Run) -> bool:
    """Whether a run is the random network beside another model on the same task."""
    alike = (other.path.parent, other.test, other.metric) == (run.path.parent, run.test, run.metric)
    return alike and other.facts.get("encoder") == "random" != run.facts.get("encoder")


def _curves_html(run: Run, out: Path, several: bool) -> str:
    parts = []
    if figure := curves_figure(run):
        caption = (
            f"Error of <b>{escape(run.label)}</b> against step, on a logarithmic scale: RMSE in decibels is the root of the mean squared error "
            "of the log-mel. Horizontal lines, where drawn: what predictors without a network get on the same patches."
        )
        alt = "Training and validation error of stage I and stage II against step, with simple predictors as horizontal lines."
        parts.append(
            figure_html(figure, _stem("losses", run, several), out, alt=alt, caption=caption)
        )
    if figure := health_figure(run):
        width = get_part(run.config, "model").get("width", "?")
        caption = f"Health of <b>{escape(run.label)}</b>. A model that uses order has a larger error when the visible patches are shuffled or all positions "
        caption += f"are equal. If all music had the same {escape(width)}-dimensional embedding, its spread would be 0 and its effective rank 1."
        alt = "Error with and without order, variance and onsets drawn, standard deviation and effective rank of the embeddings against step."
        parts.append(
            figure_html(figure, _stem("health", run, several), out, alt=alt, caption=caption)
        )
    return "".join(parts)


def _made_html(run: Run) -> str:
    facts, settings = (
        run.facts,
        get_part(run.config, "finetune" if run.kind == "finetune" else "pretrain"),
    )
    seed, seeds = settings.get("seed", "?"), settings.get("seeds", 1)
    clips = ", ".join(f"{count} {name}" for name, count in get_part(facts, "clips").items())
    versions = ", ".join(
        f"{name} {version}" for name, version in get_part(facts, "versions").items()
    )
    lines = {
        "command": f"<code>{escape(facts.get('command', '?'))}</code>", "state": escape(facts.get("state", "unknown")), "clips": escape(clips or "?"),
        "seed": escape(seed if seeds == 1 else f"{seed} and the next {seeds - 1}"), "started": escape(facts.get("started", "?")),
        "time": _duration(facts.get("seconds")), "machine": escape(facts.get("machine", "?")), "versions": escape(versions or "?"),
        "task": escape(run.test), "cache": escape(facts.get("cache", "")), "parameters": f"{to_number(facts.get('parameters')):,.0f}",
        "folder": escape(facts["folder"]),
    }  # fmt: skip
    terms = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in lines.items() if text)
    config = html.escape(json.dumps(run.config, indent=2))
    return f"<h3>{escape(run.label)}</h3><dl>{terms}</dl><details><summary>Every setting</summary><pre>{config}</pre></details>"
