"""Figures from what a run folder holds; matplotlib is imported when the first one is drawn."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchifier.evaluate.report.drawing import new_figure, tidy, unit_of
from patchifier.evaluate.report.folders import (
    METHODS,
    Row,
    Run,
    get_part,
    method_rows,
    read_columns,
    to_number,
)
from patchifier.evaluate.report.tables import group_rows, same_score, score_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Line style and marker tell the methods apart without colour; the colours are of different lightness for the same reason.
STYLES = {
    "linear-probe": (":", "o", "#b86200"),
    "freeze-extractor": ("-.", "s", "#2b7a5b"),
    "freeze-bottleneck": ("--", "^", "#2f5fa8"),
    "full": ("-", "D", "#1c1433"),
}
PREDICTORS: dict[
    str, tuple[Any, str]
] = {  # column of stage-two/validation.csv, its line style and its name
    "mean_patch_mse": (":", "average patch"),
    "visible_mean_mse": ("--", "average of given patches"),
    "interpolation_mse": ("-.", "interpolation in time"),
    "shrunk_interpolation_mse": ((0, (6, 2, 1, 2, 1, 2)), "shrunk interpolation"),
    "kriging_mse": ((0, (8, 3)), "kriging (best linear)"),
}


def predictors_in(columns: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Rows of :data:`PREDICTORS` that a table of validation has; before it had kriging, its interpolation was the shrunk one."""
    columns = set(columns)
    found = {name: row for name, row in PREDICTORS.items() if name in columns}
    if "interpolation_mse" in found and "shrunk_interpolation_mse" not in found:
        found["interpolation_mse"] = PREDICTORS["shrunk_interpolation_mse"]
    return found


def to_decibels(mse: Any, run: Run) -> Any:
    """RMSE in dB of a mean squared error of log-mel values."""
    return np.sqrt(mse) / float(get_part(run.config, "spectrogram").get("scale", 0.01))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Average over a fortieth of the curve: enough to see the trend, too little to move it."""
    kernel = np.ones(max(1, len(values) // 40))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _every(values: np.ndarray, marks: int) -> tuple[int, int]:
    """Where to put markers: about that many, and one on the last value."""
    step = max(1, len(values) // marks)
    return (len(values) - 1) % step, step


def curves_figure(run: Run) -> "Figure | None":
    """Loss of both stages against step, above their learning rates."""
    from matplotlib.ticker import LogLocator, NullLocator

    stages = {
        "stage-one": "Stage I: copy single patches",
        "stage-two": "Stage II: fill in masked patches",
    }
    present = {
        folder: title
        for folder, title in stages.items()
        if read_columns(run.path / folder / "metrics.csv")
    }
    if not present:
        return None
    figure = new_figure(4.6)
    grid = figure.subplots(
        2,
        len(present),
        sharex="col",
        sharey="row",
        squeeze=False,
        gridspec_kw={"height_ratios": [5, 1]},
    )
    levels: list[dict[str, tuple[str, float]]] = []
    for (folder, title), loss, rate in zip(present.items(), *grid, strict=True):
        steps = read_columns(run.path / folder / "metrics.csv")
        checks = read_columns(run.path / folder / "validation.csv")
        nothing = np.full_like(steps["step"], math.nan)
        trained = to_decibels(steps.get("loss", nothing), run)
        thin = slice(
            None, None, max(1, len(trained) // 2000)
        )  # more points than pixels would only make the file large
        loss.plot(steps["step"][thin], trained[thin], color="#8a8a8a", linewidth=0.6, alpha=0.6)
        loss.plot(
            steps["step"][thin],
            _smooth(trained)[thin],
            color="#1c1433",
            linewidth=1.6,
            label="training (smoothed)",
        )
        score = next((checks[name] for name in ("masked_mse", "mse") if name in checks), None)
        if score is not None:
            style: dict[str, Any] = {
                "marker": "o",
                "markersize": 5,
                "markerfacecolor": "white",
                "markevery": _every(score, 12),
            }
            loss.plot(
                checks["step"],
                to_decibels(score, run),
                color="#cc7a00",
                linewidth=1.4,
                label="validation",
                **style,
            )
        tidy(loss, title, y="" if loss is not grid[0][0] else "Error, RMSE (dB)")
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_locator(NullLocator())
        loss.legend(loc="upper right", fontsize=9, framealpha=0.9)
        rate.plot(
            steps["step"][thin],
            steps.get("learning_rate", nothing)[thin],
            color="#1c1433",
            linewidth=1.2,
        )
        tidy(rate, "", x="Step", y="" if rate is not grid[1][0] else "Learning\nrate")
        rate.set_ylim(bottom=0.0)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        marks = {
            words: (dash, to_decibels(checks[name][-1], run))
            for name, (dash, words) in predictors_in(checks).items()
        }
        levels.append({words: mark for words, mark in marks.items() if mark[1] > 0})
        for dash, value in levels[-1].values():
            loss.axhline(value, color="#444444", linewidth=1.1, linestyle=dash)
    for loss, named in zip(
        grid[0], levels, strict=True
    ):  # last, when the axes that both stages share reach down to every line
        _name_levels(loss, named)
    return figure


def _name_levels(axes: "Axes", levels: Mapping[str, tuple[str, float]]) -> None:
    """Name horizontal lines: on the line, or pushed apart in the right margin where there are several."""
    axes.set_ylim(axes.get_ylim())
    named = sorted((value, f"{words}: {value:.1f} dB") for words, (_, value) in levels.items())
    if len(named) == 1:
        place: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "ha": "right",
        }
        axes.annotate(named[0][1], (1.0, named[0][0]), (0, 4), fontsize=9, **place)
        return
    heights = [
        float((axes.transScale + axes.transLimits).transform((0.0, value))[1]) for value, _ in named
    ]
    spread = [
        max([height, *(heights[lower] + 0.075 * (index - lower) for lower in range(index))])
        for index, height in enumerate(heights)
    ]
    shift = float(np.mean(spread) - np.mean(heights)) if named else 0.0
    for (value, text), height in zip(named, spread, strict=True):
        arrow = {
            "arrowstyle": "-",
            "linewidth": 0.6,
            "relpos": (0.0, 0.5),
            "shrinkA": 1.0,
            "shrinkB": 0.0,
        }
        place = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "axes fraction",
            "va": "center",
            "arrowprops": arrow,
        }
        axes.annotate(text, (1.0, value), (1.06, height - shift), fontsize=9, **place)


HEALTH: list[
    tuple[str, str, dict[str, str]]
] = [  # title, unit and curves of each panel: column of validation.csv and its name
    (
        "Use of order",
        "Error, RMSE (dB)",
        {
            "masked_mse": "as it is",
            "shuffled_mse": "visible patches shuffled",
            "equal_positions_mse": "equal positions",
        },
    ),
    (
        "Variance drawn",
        "Share of the original's",
        {"between_variance": "between patches", "within_variance": "inside patches"},
    ),
    ("Onsets drawn", "F-measure", {"onset_f": ""}),
    ("Spread of the embeddings", "Standard deviation", {"embedding_std": ""}),
    ("Dimensions in use", "Effective rank", {"effective_rank": ""}),
]


def health_figure(run: Run) -> "Figure | None":
    """What order is worth, what is drawn, spread and dimension of the embeddings, against step: a collapse would show here first."""
    checks = read_columns(run.path / "stage-two" / "validation.csv")
    panels = [
        (title, unit, {name: words for name, words in curves.items() if _is_drawn(checks, name)})
        for title, unit, curves in HEALTH
    ]
    panels = [
        panel for panel in panels if panel[2] and list(panel[2]) != ["masked_mse"]
    ]  # which stands among the losses already
    if not panels:
        return None
    rows = -(-len(panels) // 3)
    figure = new_figure(2.8 * rows)
    grid = figure.subplots(rows, -(-len(panels) // rows), squeeze=False).ravel()
    for axes, (title, unit, curves) in zip(grid, panels, strict=False):
        values = {
            name: to_decibels(checks[name], run) if name.endswith("_mse") else checks[name]
            for name in curves
        }
        for (name, words), dash in zip(curves.items(), ("-", "--", ":"), strict=False):
            axes.plot(
                checks["step"],
                values[name],
                dash,
                color="#1c1433",
                marker="o",
                markersize=4,
                markevery=_every(checks["step"], 12),
                label=words,
            )
        tidy(axes, title, x="Step of stage II", y=unit)
        if len(curves) > 1:
            axes.legend(fontsize=8)
        if unit != HEALTH[0][1]:
            axes.set_ylim(
                0.0, 1.15 * max(float(np.nanmax(each)) for each in values.values()) or 1.0
            )
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def _is_drawn(checks: Mapping[str, np.ndarray], name: str) -> bool:
    return name in checks and bool(np.isfinite(checks[name]).any())


_FAINT: dict[str, Any] = {
    "color": "#9a9a9a",
    "linewidth": 0.9,
    "markersize": 4,
    "markerfacecolor": "white",
}


def convergence_figure(run: Run, opponents: Sequence[Run], table: Sequence[Row]) -> "Figure | None":
    """Form of the paper's Figure 2: validation score against step, and the test score of each method with its interval."""
    curves = [
        (r, m, read_columns(r.path / m / "validation.csv"))
        for r in (*opponents, run)
        for m in METHODS
    ]
    curves = [(r, method, columns) for r, method, columns in curves if run.metric in columns]
    rows = [
        (r, m, row) for r in (*opponents, run) for m in METHODS for row in method_rows(r, m, [])
    ]
    rows = [(r, method, row) for r, method, row in rows if row.get("metric") == run.metric]
    if not curves and not rows:
        return None
    figure = new_figure(4.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1.0])
    _draw_convergence(left, run, curves)
    _draw_scores(right, run, rows)
    _draw_majority(right, run, rows, table)
    for axes, there, words in (
        (left, curves, "no validation yet"),
        (right, rows, "no test score yet"),
    ):
        if not there:
            axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center")
    if curves:
        figure.legend(
            loc="outside lower center", ncols=5, frameon=False, fontsize=9.5, handlelength=3.2
        )
    return figure


def _draw_convergence(
    axes: "Axes", run: Run, curves: Sequence[tuple[Run, str, Mapping[str, np.ndarray]]]
) -> None:
    unit, name = unit_of(run.metric)
    for r, method, columns in curves:
        dash, marker, colour = STYLES[method]
        style: dict[str, Any] = (
            {"color": colour, "linewidth": 1.8, "markersize": 5, "label": method}
            if r is run
            else _FAINT
        )
        axes.plot(
            columns["step"],
            unit * columns[run.metric],
            dash,
            marker=marker,
            markevery=_every(columns["step"], 8),
            **style,
        )
    for r in {r.label: r for r, _, _ in curves if r is not run}.values():
        axes.plot([], [], "-", label=f"{r.facts.get('encoder', 'other')} (same style)", **_FAINT)
    tidy(axes, "While training", x="Step", y=f"Validation {name}")


def _draw_scores(axes: "Axes", run: Run, rows: Sequence[tuple[Run, str, Row]]) -> None:
    unit, name = unit_of(run.metric)
    methods = [method for method in METHODS if any(method == tested for _, tested, _ in rows)]
    for r, method, row in rows:
        _, marker, colour = STYLES[method]
        value, low, high = (unit * to_number(row.get(key)) for key in ("value", "low", "high"))
        y, above, size = (0.0, 7, 9) if r is run else (0.28, -14, 8)
        y = -methods.index(method) - y
        style: dict[str, Any] = (
            {"color": colour, "markersize": 8, "linewidth": 2.2}
            if r is run
            else {**_FAINT, "markersize": 6}
        )
        axes.plot([low, high], [y, y], color=style["color"], linewidth=style["linewidth"])
        axes.plot([value], [y], marker=marker, **style)
        words: dict[str, Any] = {
            "ha": "center",
            "fontsize": size,
            "color": colour if r is run else "#666666",
        }
        axes.annotate(
            score_text(row.get("value"), run.metric),
            (value, y),
            (0, above),
            textcoords="offset points",
            **words,
        )
    counts = " or ".join(sorted({str(row.get("n", "?")) for _, _, row in rows})) or "?"
    tidy(axes, "When tested, with 95 % interval", x=f"Test {name}, {counts} clips")
    axes.set_yticks([-place for place in range(len(methods))], methods)
    axes.set_ylim(0.3 - max(1, len(methods)), 0.6)


def _draw_majority(
    axes: "Axes", run: Run, rows: Sequence[tuple[Run, str, Row]], table: Sequence[Row]
) -> None:
    """Draw a line at the score of the most frequent label, if it was tested on the same clips."""
    same = [
        group
        for group in group_rows(table)
        if any(same_score(row, other) for _, _, row in rows for other in group)
    ]
    values = [
        to_number(row.get("value"))
        for group in same
        for row in group
        if row.get("encoder") == "majority"
    ]
    if values and math.isfinite(values[0]):
        x = unit_of(run.metric)[0] * values[0]
        axes.axvline(x, color="#444444", linestyle=":", linewidth=1.2)
        axes.annotate(
            "most frequent label",
            (x, 0.6),
            (3, -3),
            textcoords="offset points",
            fontsize=8,
            va="top",
        )
