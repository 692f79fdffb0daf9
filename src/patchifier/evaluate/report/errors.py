"""What a model gets wrong: the confusion matrix, and the clips that it is most wrong about."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchifier.evaluate.report.drawing import new_figure, picture, stem_of, tidy
from patchifier.evaluate.report.folders import METHODS, RunFolder, get_part, to_number
from patchifier.evaluate.report.sound import Excerpts
from patchifier.io import Progress, from_cell, plain_stem, read_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTED = 8  # errors with a sound
MOST_CLASSES = 20  # in a matrix; of more, only the most frequent confusions are listed
MOST_CONFUSIONS = 12


@dataclass(frozen=True)
class Predictions:
    """Predictions of the test clips of a run by one method.

    Attributes
    ----------
    run : RunFolder
    method : str
    ids, targets : list of str
    names : list of str, length C
    outputs : ndarray, shape (n, C)
        Probabilities, or values.
    """

    run: RunFolder
    method: str
    ids: list[str]
    targets: list[str]
    names: list[str]
    outputs: np.ndarray


def read_predictions(run: RunFolder, method: str, path: Path) -> Predictions | None:
    """Read a table of predictions; None if it is not there or not one."""
    if not path.is_file():
        return None
    header, *rows = csv.reader(read_text(path, errors="replace").splitlines()) or [[]]
    if header[:1] != ["id"] or "target" not in header or not rows:
        return None
    first = header.index("target") + 1
    whole = [row for row in rows if len(row) == len(header)]
    outputs = np.array([[to_number(cell) for cell in row[first:]] for row in whole])
    if not len(whole) or not np.isfinite(outputs).all():
        return None
    ids, targets = ([from_cell(row[place]) for row in whole] for place in (0, first - 1))
    names = list(map(from_cell, header[first:]))
    return Predictions(run, method, ids, targets, names, outputs)


def predictions_of(runs: Sequence[RunFolder]) -> list[Predictions]:
    """One table of predictions for each data set: of the run with most test clips and methods.

    The linear probe comes first, as in the paper's Table 1. Random weights are left out.
    """
    best: dict[str, tuple[tuple[int, int], Predictions]] = {}
    for run in runs:
        if run.kind == "finetune" and run.facts.get("encoder") != "random":
            present = [name for name in METHODS if (run.path / name / "predictions.csv").exists()]
            place = [(name, run.path / name / "predictions.csv") for name in present[:1]]
        elif run.kind == "compare":
            first = str(next(iter(run.facts.get("encoders") or []), ""))
            present, path = [], run.path / "predictions" / f"{plain_stem(first)}.csv"
            place = [(first, path)]
        else:
            continue
        for method, path in place:
            found = read_predictions(run, method, path)
            worth = (len(found.ids), len(present)) if found else (0, 0)
            if found and worth > best.get(run.dataset, ((0, 0), found))[0]:
                best[run.dataset] = (worth, found)
    return [found for _, found in best.values()]


def errors_of(
    found: Predictions, out: Path, *, sounds: bool, several: bool, progress: Progress
) -> dict[str, Any] | None:
    """What the page shows of the errors of a method; None for a kind without such a view."""
    kind = get_part(found.run.facts, "task").get("kind")
    run = found.run
    shared: dict[str, Any] = {"dataset": run.dataset or run.label, "method": found.method}
    shared |= {"label": run.label, "n": f"{len(found.ids):,}"}
    shared["seeds"] = to_number(get_part(found.run.config, "finetune").get("n_seeds")) > 1
    excerpts = Excerpts.of(found.run) if sounds else Excerpts(None)
    if kind == "one-of" and set(found.targets) <= set(found.names):
        worst = _worst_classes(found)
        return {**shared, **_confusions(found), "errors": _with_excerpts(worst, excerpts, progress)}
    if kind == "numbers":
        path = out / stem_of("predicted", found.run, several=several)
        alt = "Predicted against true value of each test clip; the line is where both are equal."
        drawn = picture(scatter_figure(found), path, alt)
        worst = _worst_numbers(found)
        return {**shared, "picture": drawn, "errors": _with_excerpts(worst, excerpts, progress)}
    return None


def _with_excerpts(
    worst: Sequence[dict[str, Any]], excerpts: Excerpts, progress: Progress
) -> list[dict[str, Any]]:
    """Add the sound of its clip to each of the largest errors."""
    described = []
    for number, error in enumerate(worst):
        progress(number, len(worst), f"sound of clip {error['id']}")
        described.append({**error, **excerpts.describe(error["id"])})
    progress(len(worst), len(worst), "")
    return described


# --- classes ---


def _confusions(found: Predictions) -> dict[str, Any]:
    """Matrix of counts, true by predicted class; of many classes, the most frequent confusions."""
    predicted = [found.names[index] for index in found.outputs.argmax(1)]
    pairs = list(zip(found.targets, predicted, strict=True))
    right = sum(one == other for one, other in pairs)
    if len(found.names) > MOST_CLASSES:
        wrong = [pair for pair in pairs if pair[0] != pair[1]]
        return {"right": right, "confusions": Counter(wrong).most_common(MOST_CONFUSIONS)}
    lines = []
    for true in found.names:
        counts = [pairs.count((true, other)) for other in found.names]
        total = max(1, sum(counts))
        cells = [
            {"count": count, "share": round(count / total, 2), "right": true == other}
            for count, other in zip(counts, found.names, strict=True)
        ]
        recall = f"{100 * pairs.count((true, true)) / total:.0f} %" if sum(counts) else "–"
        lines.append({"name": true, "cells": cells, "total": sum(counts), "recall": recall})
    return {"right": right, "names": found.names, "lines": lines}


def _worst_classes(found: Predictions) -> list[dict[str, Any]]:
    """Wrong clips, those with the most probable wrong class first."""
    chosen = found.outputs.argmax(1)
    sure, rows = found.outputs.max(1), []
    for row in np.argsort(-sure, kind="stable"):
        true, predicted = found.targets[row], found.names[chosen[row]]
        certain = f"{100 * sure[row]:.0f} %"
        if predicted != true:
            about = {"true": true, "predicted": predicted, "certain": certain}
            rows.append({"id": found.ids[row], **about})
    return rows[:LISTED]


# --- numbers ---


def _truth(found: Predictions) -> np.ndarray:
    """True values (n, C) of a regression, NaN where they cannot be read."""
    texts = [target.strip("[]()").split(",") for target in found.targets]
    width = found.outputs.shape[1]
    rows = [[to_number(text) for text in row] for row in texts]
    return np.array([row if len(row) == width else [math.nan] * width for row in rows])


def _worst_numbers(found: Predictions) -> list[dict[str, Any]]:
    """Clips with the largest error, relative to the spread of each number."""
    truth = _truth(found)
    spread = np.nanstd(truth, axis=0)
    scaled = (found.outputs - truth) / np.where(spread > 0, spread, 1.0)
    error = np.sqrt(np.nanmean(np.square(scaled), axis=1))
    worst = np.argsort(-np.nan_to_num(error))[:LISTED]

    def values(row: np.ndarray) -> str:
        pairs = zip(found.names, row, strict=True)
        return ", ".join(f"{name} {value:+.2f}" for name, value in pairs).replace("-", "−")

    return [
        {
            "id": found.ids[index],
            "true": values(truth[index]),
            "predicted": values(found.outputs[index]),
            "certain": f"{error[index]:.1f}",
        }
        for index in worst
    ]


def scatter_figure(found: Predictions) -> "Figure":
    """Predicted against true values, one panel for each number, all on one scale."""
    truth, columns = _truth(found), min(3, len(found.names))
    rows = -(-len(found.names) // columns)
    figure = new_figure(0.6 + 3.4 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    both = np.concatenate([truth, found.outputs])
    margin = 0.04 * float(np.nanmax(both) - np.nanmin(both)) or 1.0
    ends = (float(np.nanmin(both)) - margin, float(np.nanmax(both)) + margin)
    for place, (axes, name) in enumerate(zip(panels, found.names)):
        axes.plot(ends, ends, color="#8a8a8a", linewidth=1.0)
        style: dict[str, Any] = {"marker": "o", "s": 16, "linewidths": 0.8}
        style |= {"facecolors": "none", "edgecolors": "#1c1433"}
        axes.scatter(truth[:, place], found.outputs[:, place], **style)
        tidy(axes, name, x="True value (as in the data set)", y="Predicted value")
        axes.set(xlim=ends, ylim=ends, aspect="equal")
    for axes in panels[len(found.names) :]:
        axes.set_axis_off()
    return figure
