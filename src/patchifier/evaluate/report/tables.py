"""Test scores as rows, grouped by test set, and written as CSV and Markdown."""

import csv
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchifier.evaluate.report.folders import METHODS, Row, RunFolder, method_rows, to_number
from patchifier.io import to_cell

ENCODERS = {  # in the order of the table
    "patchifier": "the model of this report",
    "patchifier-base": "the model that comes with the package, trained for longer on other music",
    "random": "the same network with random weights: what the architecture alone is worth",
    "mel-stats": "mean and spread of each frequency band over the clip",
    "mfcc": "classic hand-made timbre features",
    "chroma": "classic hand-made harmony features",
    "majority": "always the most frequent label of the training clips",
}
METHOD_TEXTS = {  # the same
    "linear-probe": "only a new last layer is trained, everything else stays as it was learnt "
    "without labels",
    "freeze-extractor": "the part that looks at single patches stays, the part that connects them "
    "is trained too",
    "freeze-bottleneck": "the part that connects patches stays, the part that looks at single "
    "ones is trained too",
    "full": "everything is trained",
    "logistic": "logistic regression on fixed numbers for each clip",
    "ridge": "ridge regression on fixed numbers for each clip",
    "none": "nothing is trained",
}
APART = "The rows below were tested on different clips and must not be ranked against those above."


def escape(value: object) -> str:
    """Make text safe for HTML and one line long."""
    return html.escape(" ".join(str(value).split()))


def collect_rows(
    runs: Sequence[RunFolder], demos: Mapping[Path, Row], problems: list[str]
) -> list[dict[str, Any]]:
    """Every test score once, in the order of the table, with its source and test set."""
    rows: list[dict[str, Any]] = []
    for folder, results in demos.items():
        inside = [run for run in runs if run.path.is_relative_to(folder) and run.task]
        # A row of the demo was tested on the clips of a run below it where their numbers agree.
        tests = {
            str(row.get("n")): run.test
            for run in inside
            for method in METHODS
            for row in method_rows(run, method, [])
        }
        other = inside[0].task if inside else ""
        rows += [
            {**row, "source": results["source"], "test": tests.get(str(row.get("n")), other)}
            for row in results.get("rows", [])
        ]
    for run in (run for run in runs if run.kind != "pretrain"):
        methods = sorted(path.parent.name for path in run.path.glob("*/results.json"))
        above = {
            results["source"]
            for folder, results in demos.items()
            if run.path.is_relative_to(folder)
        }
        shown = [row for row in rows if row["source"] in above]
        for row in (row for method in methods for row in method_rows(run, method, problems)):
            if not any(same_score(row, other) for other in shown):
                rows.append({**row, "source": run.label, "test": run.test})
    return sorted(rows, key=_table_order)


def same_score(row: Row, other: Row) -> bool:
    """Whether two rows tell the same score, to half of the last digit shown."""
    alike = all(row.get(key) == other.get(key) for key in ("encoder", "method", "metric", "n"))
    return alike and abs(to_number(row.get("value")) - to_number(other.get("value"))) < 5e-4


def _table_order(row: Row) -> tuple[Any, ...]:
    def place(name: Any, known: Iterable[str]) -> tuple[int, str]:
        return (list(known).index(name) if name in known else 99, str(name))

    test = (
        -to_number(row.get("n")) if math.isfinite(to_number(row.get("n"))) else 0.0,
        str(row["test"]),
        str(row.get("metric")),
    )
    return (
        *test,
        place(row.get("encoder"), ENCODERS),
        place(row.get("method"), METHOD_TEXTS),
        str(row["source"]),
    )


def group_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows tested on the same clips by the same metric; only these can be ranked."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row.get("n")), row["test"], row.get("metric")), []).append(row)
    return list(groups.values())


def score_text(value: object, metric: object, *, signed: bool = False) -> str:
    """Write a score: accuracies in percent, others as they are."""
    number = to_number(value)
    if not math.isfinite(number):
        return "–"
    number, digits = (100.0 * number, 1) if metric == "accuracy" else (number, 3)
    return (f"{number:+.{digits}f}" if signed else f"{number:.{digits}f}").replace("-", "−")


def interval_text(row: Row, metric: object, *, signed: bool = False) -> str:
    """Write an interval of scores."""
    low, high = (score_text(row.get(key), metric, signed=signed) for key in ("low", "high"))
    return "–" if low == high == "–" else f"{low} to {high}"


def caution_text(group: Sequence[Row]) -> str:
    """Say how wide the intervals of a group are."""
    widths = [(to_number(row.get("high")) - to_number(row.get("low"))) / 2 for row in group]
    widths = [width for width in widths if width > 0]
    if not widths:
        return ""
    metric, n = group[0].get("metric"), group[0].get("n", "?")
    points = (
        f"{100 * np.median(widths):.0f} points"
        if metric == "accuracy"
        else f"{np.median(widths):.2f}"
    )
    return (
        f"With {n} test clips the 95 % interval is about ± {points}: "
        "a smaller difference between two rows settles nothing."
    )


def csv_table(rows: Sequence[Row]) -> str:
    """Lay all rows out as CSV."""
    file = io.StringIO()
    names = ("encoder", "method", "metric", "value", "low", "high", "n", "test", "source")
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: to_cell(row.get(name, "")) for name in names} for row in rows)
    return file.getvalue()


def markdown_table(rows: Sequence[Row]) -> str:
    """Lay all rows out as Markdown, one table for each set of test clips."""
    parts = []
    for index, group in enumerate(group_rows(rows)):
        lines = [escape(APART), ""] if index else []
        lines += [
            "| encoder | method | metric | value | 95 % interval | n | source |",
            "|---|---|---|---:|---:|---:|---|",
        ]
        lines += [_markdown_row(row) for row in group]
        parts.append("\n".join([*lines, "", escape(caution_text(group))]).rstrip() + "\n")
    return "\n".join(parts) or "No test score yet.\n"


def _markdown_row(row: Row) -> str:
    metric = row.get("metric")
    cells = [row.get("encoder"), row.get("method"), metric, score_text(row.get("value"), metric)]
    cells += [interval_text(row, metric), row.get("n", "?"), row["source"]]
    return f"| {' | '.join(escape(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def comparison_label(difference: Row) -> str:
    """Verb between the names of two encoders.

    "beats", "is beaten by", ..., by the paired interval.
    """
    low, high = to_number(difference.get("low")), to_number(difference.get("high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "has no interval, so cannot be told apart from"
    return "beats" if low > 0 else "is beaten by" if high < 0 else "cannot be told apart from"


def label(row: Row) -> str:
    """Name of an encoder: the end of a long path, and the number of examples of few-shot."""
    name, method = str(row.get("encoder")), str(row.get("method", ""))
    name = name if len(name) <= 32 else f"…{name[-31:]}"
    return f"{name}, {method.partition(', ')[2]}" if method.startswith("few-shot, ") else name
