"""The scores on the page: methods by tasks, and which differences hold up."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchifier.evaluate.report.folders import Row, RunFolder, read_json, to_number
from patchifier.evaluate.report.published import published
from patchifier.evaluate.report.tables import (
    ADVICE,
    APART,
    ENCODERS,
    METHOD_TEXTS,
    OURS,
    Column,
    caution_text,
    comparison_label,
    interval_text,
    none_above_majority,
    score_text,
    table_lines,
    with_unit,
)

Context = dict[str, Any]


def score_table(
    rows: Sequence[Row], demos: Mapping[Path, Row], groups: Mapping[Column, Sequence[Row]]
) -> Context:
    """The form of the paper's Table 1, with published figures and the notes of demos."""
    used = {str(row.get(key)) for row in rows for key in ("encoder", "method")}
    texts = {str(row.get("encoder")): ENCODERS[OURS] for row in rows if row.get("ours")}
    texts |= ENCODERS | METHOD_TEXTS
    columns = list(groups)
    lines = [_line(line, groups) for line in table_lines(groups)]
    for line, before in zip(lines, [{}, *lines], strict=False):
        same = (before.get("encoder"), before.get("model"))
        line["first"] = (line["encoder"], line["model"]) != same
    return {
        "columns": [(column, _scale_text(column, group)) for column, group in groups.items()],
        "splits": len({column.title for column in columns}) < len(columns),
        "lines": lines,
        "models": len({line["model"] for line in lines if line["model"]}) > 1,
        "rates": len({line["rate"] for line in lines if line["rate"]}) > 1,
        "cautions": [(c.title, text) for c, g in groups.items() if (text := caution_text(g))],
        "advice": _advice(rows, groups),
        "apart": APART if len(columns) > 1 else "",
        "published": published(columns),
        "names": [(name, text) for name, text in texts.items() if name in used],
        "notes": [note for results in demos.values() for note in results.get("notes", [])],
    }


def _advice(rows: Sequence[Row], groups: Mapping[Column, Sequence[Row]]) -> str:
    """What to try where models learnt nothing, or no more than the majority; else empty."""
    below = [column.title for column, group in groups.items() if none_above_majority(group)]
    where = [f"No fine-tuned row is above majority: {', '.join(below)}."] * bool(below)
    nothing = any(row.get("learnt_nothing") for row in rows)
    where += ["Some rows have learnt nothing."] * nothing
    return " ".join([*where, ADVICE]) if where else ""


def _line(line: Mapping[Column, Row], groups: Mapping[Column, Sequence[Row]]) -> Context:
    """One line of the table: names, and a cell or None for each column."""
    first = next(iter(line.values()))
    return {
        "encoder": first.get("encoder"),
        "ours": first.get("ours"),
        "method": first.get("method"),
        "model": str(first.get("model", ""))[:8],
        "rate": first.get("rate", ""),
        "cells": [
            {
                "value": with_unit(line[column]),
                "interval": interval_text(line[column], column.metric),
                "bar": _bar(line[column], group),
            }
            if column in line
            else None
            for column, group in groups.items()
        ],
    }


def _bar(row: Row, group: Sequence[Row]) -> tuple[float, float, float] | None:
    """Value, low and high on the scale of the group, from 0 or below to 1 or above; 6 to 154."""
    least, most = _ends(group)
    value, low, high = (to_number(row.get(key)) for key in ("value", "low", "high"))
    if not math.isfinite(value):
        return None
    scale = 148 / (most - least)
    low, high = np.fmin(low, value), np.fmax(high, value)
    return 6 + scale * (value - least), 6 + scale * (low - least), 6 + scale * (high - least)


def _ends(group: Sequence[Row]) -> tuple[float, float]:
    """Ends of the scale of a group: 0 or the lowest value, 1 or the highest."""
    ends = [to_number(row.get(key)) for row in group for key in ("value", "low", "high")]
    ends = [0.0, 1.0, *(end for end in ends if math.isfinite(end))]
    return min(ends), max(ends)


def _scale_text(column: Column, group: Sequence[Row]) -> str:
    """Say from where to where the lines of a column run."""
    percent = column.metric == "accuracy"
    least, most = (score_text(end, column.metric) for end in _ends(group))
    text = f"line: {least} to {most}{' %' if percent else ''}"
    return text.replace(".000", "").replace(".0 ", " ")


def all_differences(
    runs: Sequence[RunFolder], demos: Mapping[Path, Row], problems: list[str]
) -> list[Context]:
    """Paired differences of demos, and of each fine-tuning run.

    These are from random weights by the same method, and between methods.
    """
    lines = [each for results in demos.values() for each in _differences(results)]
    for run in runs:
        for path in (run.path / "controls" / "differences.json", run.path / "differences.json"):
            tuned = run.kind == "finetune" and run.facts.get("encoder") != "random"
            if tuned and path.is_file():
                read = read_json(path, problems, kind=list)
                rows = [row for row in read if isinstance(row, dict)]
                results = {"rows": [{"metric": run.metric}], "differences": rows}
                lines += _differences(results, run.dataset)
    return lines


def _differences(results: Row, dataset: str = "") -> list[Context]:
    metrics = {row.get("metric") for row in results.get("rows", [])}
    lines = []
    for item in results.get("differences", []):
        metric = item.get("metric", next(iter(metrics)) if len(metrics) == 1 else "")
        unit = {"accuracy": " points", "r2": " R²"}.get(str(metric), "")
        lines.append(
            {
                "dataset": dataset,
                "first": item.get("first"),
                "second": item.get("second"),
                "verdict": comparison_label(item),
                "value": score_text(item.get("value"), metric, signed=True) + unit,
                "interval": interval_text(item, metric, signed=True),
                "n": item.get("n", "?"),
            }
        )
    return lines
