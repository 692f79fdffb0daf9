"""What the page shows of a comparison: table, differences, conditions, figure.

The table as Markdown beside it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchifier.evaluate.report.drawing import new_figure, picture, stem_of, tidy, unit_of
from patchifier.evaluate.report.folders import Row, RunFolder, read_results, to_number
from patchifier.evaluate.report.tables import (
    interval_text,
    label,
    random_notes,
    score_text,
    with_unit,
)
from patchifier.io import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS = ["encoder", "score", "95 % interval", "first minus it", "p (Holm)"]
HEADS += ["ms per s of music", "parameters"]


def comparison_of(
    run: RunFolder, problems: list[str], out: Path, models: Mapping[str, str]
) -> dict[str, Any] | None:
    """Draw a comparison and return what its template needs; None without a result.

    `models` holds the names of models by their folder.
    """
    path = run.path / "results.json"
    results = read_results(path, problems) if path.exists() else {}
    results = _with_names(results, models) if results else {}
    rows = results.get("rows", [])
    plain = [row for row in rows if not row.get("subset") and not row.get("condition")]
    if not plain:
        return None
    differences = {row["second"]: row for row in results["differences"]}

    def is_sure(encoder: str) -> bool:
        found = differences.get(encoder, {})  # its interval leaves out 0
        return to_number(found.get("low")) * to_number(found.get("high")) > 0

    stem = stem_of("comparison", run)
    write_text(out / f"{stem}.md", _markdown(results, plain, differences))
    metric, protocol = plain[0].get("metric"), results.get("protocol")
    dataset = run.dataset or run.label
    alt = f"{dataset}: score of each encoder with its 95 % interval."
    about = [f"{protocol} probe".capitalize(), results.get("split")]
    about += [f"{plain[0].get('n')} test clips", metric]
    return {
        "label": run.label,
        "dataset": dataset,
        "metric": metric,
        "about": about,
        "notes": results["notes"],
        "random": random_notes(plain),
        "heads": HEADS,
        "lines": [
            {"cells": _cells(row, differences), "sure": is_sure(row["encoder"])} for row in plain
        ],
        "picture": picture(comparison_figure(plain, dataset), out / stem, alt),
        "few_shot": protocol == "few-shot",
        "subsets": [
            (
                row["encoder"],
                row["subset"],
                with_unit(row),
                interval_text(row, metric),
                row.get("n"),
            )
            for row in rows
            if row.get("subset")
        ],
        **_conditions(rows),
        **_headline(plain),
    }


def comparison_rows(run: RunFolder, models: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of a comparison for the tables of all scores; none without a result.

    A subset, or a perturbation, is named with the test: its scores are of other clips.
    """
    path = run.path / "results.json"
    results = read_results(path, []) if path.exists() else {}
    if not results:
        return []
    rows = []
    for row in _with_names(results, models)["rows"]:
        more = [f"{key}: {row[key]}" for key in ("subset", "condition") if row.get(key)]
        test = "; ".join([run.test, *more])
        rows.append({**row, "dataset": run.dataset, "test": test, "source": run.label})
    return rows


def _with_names(results: Row, models: Mapping[str, str]) -> dict[str, Any]:
    """Results with the names of models in place of their folders."""

    def named(row: Row) -> dict[str, Any]:
        keys = {"encoder", "first", "second"} & set(row)
        return {**row, **{key: _name(row[key], models) for key in keys}}

    renamed = {
        name: [named(row) for row in results.get(name, [])] for name in ("rows", "differences")
    }
    return {**results, **renamed}


def _name(spec: str, models: Mapping[str, str]) -> str:
    """Name of an encoder; random weights of a model are named after it."""
    path = spec.removeprefix("random:")
    name = models.get(str(Path(path).resolve()), "")
    if not name:
        return spec
    return name if path == spec else f"random:{name}"


def _headline(rows: Sequence[Row]) -> dict[str, Any]:
    """The first encoder, and the best of the others that were tested in the same way."""
    first = next((row for row in rows if row.get("encoder") != "majority"), rows[0])
    alike = [row for row in rows if row.get("method") == first.get("method")]
    others = [row for row in alike if row.get("encoder") not in (first.get("encoder"), "majority")]
    best = max(others, key=lambda row: to_number(row.get("value")), default=None)
    facts = [
        {
            "label": label(row),
            "n": row.get("n"),
            "score": with_unit(row),
            "interval": interval_text(row, row.get("metric")),
        }
        for row in (first, *([best] if best else []))
    ]
    return {"first": facts[0], "best": facts[1] if best else None}


def _cells(row: Row, differences: dict[str, Row]) -> list[str]:
    """Cells of an encoder's row, in the order of :data:`HEADS`."""
    metric, found = row.get("metric"), differences.get(str(row.get("encoder")))
    cost, size = to_number(row.get("seconds_per_second")), to_number(row.get("parameters"))
    score = with_unit(row)
    against, p = "–", "–"
    if found:
        value = score_text(found.get("value"), metric, signed=True)
        against = f"{value} ({interval_text(found, metric, signed=True)})"
        corrected = to_number(found.get("p_holm"))
        p = f"{corrected:.3f}" if math.isfinite(corrected) else "–"
    costs = [_milliseconds(cost) if cost == cost else "–", f"{size:,.0f}" if size == size else "–"]
    return [label(row), score, interval_text(row, metric), against, p, *costs]


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _conditions(rows: Sequence[Row]) -> dict[str, Any]:
    """Score under each perturbation, an encoder a row."""
    names = list(dict.fromkeys(str(row["condition"]) for row in rows if row.get("condition")))
    by = {(row["encoder"], row.get("condition", "")): row for row in rows if not row.get("subset")}
    encoders = [
        name
        for name in dict.fromkeys(row["encoder"] for row in rows)
        if names and (name, names[0]) in by
    ]
    lines = [
        [name, *(with_unit(by.get((name, each), {})) for each in ("", *names))] for name in encoders
    ]
    return {"condition_names": names, "conditions": lines}


def _markdown(results: Row, plain: Sequence[Row], differences: dict[str, Row]) -> str:
    """Lay the comparison out as Markdown."""
    lines = [
        f"{results.get('dataset')}: {results.get('protocol')} probe; {results.get('split')}.",
        "",
        *(f"{note}\n" for note in results["notes"]),
    ]
    lines += ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    for row in plain:
        cells = [cell.replace("|", "\\|") for cell in _cells(row, differences)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def comparison_figure(rows: Sequence[Row], title: str = "") -> "Figure":
    """Score of each encoder with its interval, the first on top."""
    figure = new_figure(0.9 + 0.36 * len(rows))
    axes = figure.subplots()
    first = next((n for n, row in enumerate(rows) if row.get("encoder") != "majority"), 0)
    factor, name = unit_of(str(rows[0].get("metric")))
    for place, row in enumerate(rows):
        value, low, high = (factor * to_number(row.get(key)) for key in ("value", "low", "high"))
        style: dict[str, Any] = {"color": "#1c1433" if place == first else "#8a8a8a"}
        axes.plot([low, high], [-place, -place], linewidth=2.2, **style)
        axes.plot([value], [-place], marker="o", markersize=7, **style)
        style |= {"textcoords": "offset points", "ha": "center", "fontsize": 8}
        text = score_text(row.get("value"), row.get("metric"))
        axes.annotate(text, (value, -place), (0, 7), **style)
    tidy(axes, title, x=f"Test {name}, with 95 % interval")
    axes.set_yticks([-place for place in range(len(rows))], [label(row) for row in rows])
    axes.set_ylim(0.7 - len(rows), 0.8)
    return figure
