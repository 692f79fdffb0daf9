"""Figures from what a run folder holds; matplotlib is imported when the first one is drawn."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchifier.evaluate.report.drawing import new_figure, tidy, unit_of
from patchifier.evaluate.report.folders import (
    METHODS,
    Row,
    RunFolder,
    get_part,
    method_rows,
    read_columns,
    to_number,
)
from patchifier.evaluate.report.tables import group_rows, same_score, score_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Columns = Mapping[str, np.ndarray]
# Line style and marker tell the methods apart without colour; the colours are of different
# lightness for the same reason.
STYLES = {
    "linear-probe": (":", "o", "#b86200"),
    "freeze-extractor": ("-.", "s", "#2b7a5b"),
    "freeze-bottleneck": ("--", "^", "#2f5fa8"),
    "full": ("-", "D", "#1c1433"),
}
# Column of stage-two/validation.csv, its line style and its name.
PREDICTORS: dict[str, tuple[Any, str]] = {
    "mean_patch_mse": (":", "mean patch of training"),
    "visible_mean_mse": ("--", "visible mean"),
    "interpolation_mse": ("-.", "interpolation"),
    "shrunk_interpolation_mse": ((0, (6, 2, 1, 2, 1, 2)), "shrunk interpolation"),
    "kriging_mse": ((0, (8, 3)), "kriging"),
}


def predictors_in(columns: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Rows of :data:`PREDICTORS` that a table of validation has.

    Before it had kriging, its interpolation was the shrunk one.
    """
    columns = set(columns)
    found = {name: row for name, row in PREDICTORS.items() if name in columns}
    if "interpolation_mse" in found and "shrunk_interpolation_mse" not in found:
        found["interpolation_mse"] = PREDICTORS["shrunk_interpolation_mse"]
    return found


def to_decibels(mse: Any, run: RunFolder) -> Any:
    """RMSE in dB of a mean squared error of log-mel values."""
    return np.sqrt(mse) / float(get_part(run.config, "spectrogram").get("db_scale", 0.01))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Average over a fortieth of the curve: enough to see the trend, too little to move it."""
    kernel = np.ones(max(1, len(values) // 40))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _every(values: np.ndarray, marks: int) -> tuple[int, int]:
    """Where to put markers: about that many, and one on the last value."""
    step = max(1, len(values) // marks)
    return (len(values) - 1) % step, step


STAGES = {
    "stage-one": "Stage I: copy single patches",
    "stage-two": "Stage II: fill in masked patches",
}


def curves_figure(run: RunFolder) -> "Figure | None":
    """Loss of both stages against step, above their learning rates."""
    tables = {stage: read_columns(run.path / stage / "metrics.csv") for stage in STAGES}
    tables = {stage: steps for stage, steps in tables.items() if steps}
    if not tables:
        return None
    figure = new_figure(4.6)
    shape: dict[str, Any] = {"sharex": "col", "sharey": "row", "squeeze": False}
    shape["height_ratios"] = [5, 1]
    losses, rates = figure.subplots(2, len(tables), **shape)
    levels = []
    for (stage, steps), loss, rate in zip(tables.items(), losses, rates, strict=True):
        checks = read_columns(run.path / stage / "validation.csv")
        _draw_losses(loss, run, steps, checks)
        tidy(loss, STAGES[stage], y="" if loss is not losses[0] else "Error, RMSE (dB)")
        _draw_rate(rate, steps)
        tidy(rate, "", x="Step", y="" if rate is not rates[0] else "Learning\nrate")
        levels.append(_draw_predictors(loss, run, checks))
    # Last, when the axes that both stages share include every line.
    for loss, named in zip(losses, levels, strict=True):
        _name_levels(loss, named)
    return figure


def _thin(values: np.ndarray) -> slice:
    """At most about 2,000 points: more than pixels only make the file large."""
    return slice(None, None, max(1, len(values) // 2000))


def _draw_losses(axes: "Axes", run: RunFolder, steps: Columns, checks: Columns) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    trained = to_decibels(steps.get("loss", np.full_like(steps["step"], math.nan)), run)
    thin = _thin(trained)
    axes.plot(steps["step"][thin], trained[thin], color="#8a8a8a", linewidth=0.6, alpha=0.6)
    style: dict[str, Any] = {"color": "#1c1433", "linewidth": 1.6, "label": "training (smoothed)"}
    axes.plot(steps["step"][thin], _smooth(trained)[thin], **style)
    score = next((checks[name] for name in ("masked_mse", "mse") if name in checks), None)
    if score is not None:
        style = {"color": "#cc7a00", "linewidth": 1.4, "label": "validation"}
        style |= {"marker": "o", "markersize": 5, "markerfacecolor": "white"}
        values = to_decibels(score, run)
        axes.plot(checks["step"], values, markevery=_every(score, 12), **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(loc="upper right", fontsize=9, framealpha=0.9)


def _draw_rate(axes: "Axes", steps: Columns) -> None:
    rate = steps.get("learning_rate", np.full_like(steps["step"], math.nan))
    thin = _thin(rate)
    axes.plot(steps["step"][thin], rate[thin], color="#1c1433", linewidth=1.2)
    axes.set_ylim(bottom=0.0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _draw_predictors(axes: "Axes", run: RunFolder, checks: Columns) -> dict[str, float]:
    """Draw horizontal lines at the errors of predictors without a model.

    Return the errors in dB by name.
    """
    levels = {}
    for name, (dash, words) in predictors_in(checks).items():
        value = to_decibels(checks[name][-1], run)
        if value > 0:
            levels[words] = value
            axes.axhline(value, color="#444444", linewidth=1.1, linestyle=dash)
    return levels


def _name_levels(axes: "Axes", levels: Mapping[str, float]) -> None:
    """Name horizontal lines: on the line, or apart in the right margin where there are several."""
    axes.set_ylim(axes.get_ylim())
    named = sorted((value, f"{words}: {value:.1f} dB") for words, value in levels.items())
    style: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "fontsize": 9}
    if len(named) == 1:
        ((value, text),) = named
        axes.annotate(text, (1.0, value), (0, 4), textcoords="offset points", ha="right", **style)
        return
    transform = axes.transScale + axes.transLimits
    heights = [float(transform.transform((0.0, value))[1]) for value, _ in named]
    spread = [
        max([height, *(heights[lower] + 0.075 * (index - lower) for lower in range(index))])
        for index, height in enumerate(heights)
    ]
    shift = float(np.mean(spread) - np.mean(heights)) if named else 0.0
    arrow: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.6, "relpos": (0.0, 0.5)}
    style |= {"textcoords": "axes fraction", "va": "center"}
    style["arrowprops"] = arrow | {"shrinkA": 1.0, "shrinkB": 0.0}
    for (value, text), height in zip(named, spread, strict=True):
        axes.annotate(text, (1.0, value), (1.06, height - shift), **style)


# Title, unit and curves of each panel: column of validation.csv and its name.
HEALTH: list[tuple[str, str, dict[str, str]]] = [
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


def health_figure(run: RunFolder) -> "Figure | None":
    """Plot checks of stage II by step: order, variance, onsets, spread and rank of embeddings."""
    checks = read_columns(run.path / "stage-two" / "validation.csv")
    drawn = {name for name, values in checks.items() if np.isfinite(values).any()}
    panels = [
        (title, unit, {name: words for name, words in curves.items() if name in drawn})
        for title, unit, curves in HEALTH
    ]
    # The masked error alone is among the losses already.
    panels = [panel for panel in panels if panel[2] and list(panel[2]) != ["masked_mse"]]
    if not panels:
        return None
    rows = -(-len(panels) // 3)
    figure = new_figure(2.8 * rows)
    grid = figure.subplots(rows, -(-len(panels) // rows), squeeze=False).ravel()
    for axes, (title, unit, curves) in zip(grid, panels, strict=False):
        _draw_panel(axes, run, checks, curves)
        tidy(axes, title, x="Step of stage II", y=unit)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def _draw_panel(axes: "Axes", run: RunFolder, checks: Columns, curves: Mapping[str, str]) -> None:
    """Draw the curves of one panel, errors in dB, everything else from 0 up."""
    style: dict[str, Any] = {"color": "#1c1433", "marker": "o", "markersize": 4}
    style["markevery"] = _every(checks["step"], 12)
    largest = 0.0
    for (name, words), dash in zip(curves.items(), ("-", "--", ":"), strict=False):
        values = to_decibels(checks[name], run) if name.endswith("_mse") else checks[name]
        largest = max(largest, float(np.nanmax(values)))
        axes.plot(checks["step"], values, dash, label=words, **style)
    if len(curves) > 1:
        axes.legend(fontsize=8)
    if not any(name.endswith("_mse") for name in curves):
        axes.set_ylim(0.0, 1.15 * largest or 1.0)


_FAINT: dict[str, Any] = {"color": "#9a9a9a", "linewidth": 0.9}
_FAINT |= {"markersize": 4, "markerfacecolor": "white"}


def convergence_figure(
    run: RunFolder, opponents: Sequence[RunFolder], table: Sequence[Row]
) -> "Figure | None":
    """Form of the paper's Figure 2.

    Validation score against step, and the test score of each method with its interval.
    """
    pairs = [(r, method) for r in (*opponents, run) for method in METHODS]
    curves = [(r, method, read_columns(r.path / method / "validation.csv")) for r, method in pairs]
    curves = [(r, method, columns) for r, method, columns in curves if run.metric in columns]
    rows = [(r, method, row) for r, method in pairs for row in method_rows(r, method, [])]
    rows = [(r, method, row) for r, method, row in rows if row.get("metric") == run.metric]
    if not curves and not rows:
        return None
    figure = new_figure(4.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1.0])
    _draw_repeats(left, run)
    _draw_convergence(left, run, curves)
    _draw_scores(right, run, rows)
    _draw_majority(right, run, rows, table)
    if not curves:
        left.text(0.5, 0.5, "no validation yet", transform=left.transAxes, ha="center")
    if not rows:
        right.text(0.5, 0.5, "no test score yet", transform=right.transAxes, ha="center")
    if curves:
        style: dict[str, Any] = {"ncols": 5, "frameon": False, "fontsize": 9.5}
        figure.legend(loc="outside lower center", handlelength=3.2, **style)
    return figure


def _draw_convergence(
    axes: "Axes", run: RunFolder, curves: Sequence[tuple[RunFolder, str, Mapping[str, np.ndarray]]]
) -> None:
    unit, name = unit_of(run.metric)
    for r, method, columns in curves:
        dash, marker, colour = STYLES[method]
        style: dict[str, Any] = {
            "color": colour,
            "linewidth": 1.8,
            "markersize": 5,
            "label": method,
        }
        style = style if r is run else _FAINT
        marks: dict[str, Any] = {"marker": marker, "markevery": _every(columns["step"], 8)}
        axes.plot(columns["step"], unit * columns[run.metric], dash, **marks, **style)
    for r in {r.label: r for r, _, _ in curves if r is not run}.values():
        axes.plot([], [], "-", label=f"{r.facts.get('encoder', 'other')} (same style)", **_FAINT)
    title = f"{run.dataset}: while training" if run.dataset else "While training"
    tidy(axes, title, x="Step", y=f"Validation {name}")


def _draw_repeats(axes: "Axes", run: RunFolder) -> None:
    """Draw the curves of further seeds and folds, thin, in the style of their method."""
    unit, _ = unit_of(run.metric)
    for method in METHODS:
        dash, _, colour = STYLES[method]
        for path in sorted((run.path / method).glob("fold-*-seed-*/validation.csv")):
            columns = read_columns(path)
            if run.metric in columns:
                style: dict[str, Any] = {"color": colour, "linewidth": 0.7, "alpha": 0.55}
                axes.plot(columns["step"], unit * columns[run.metric], dash, **style)


def _draw_scores(axes: "Axes", run: RunFolder, rows: Sequence[tuple[RunFolder, str, Row]]) -> None:
    unit, name = unit_of(run.metric)
    methods = [method for method in METHODS if any(method == tested for _, tested, _ in rows)]
    for r, method, row in rows:
        _, marker, colour = STYLES[method]
        value, low, high = (unit * to_number(row.get(key)) for key in ("value", "low", "high"))
        y, above, size = (0.0, 7, 9) if r is run else (0.28, -14, 8)
        y = -methods.index(method) - y
        style: dict[str, Any] = {"color": colour, "markersize": 8, "linewidth": 2.2}
        style = style if r is run else {**_FAINT, "markersize": 6}
        axes.plot([low, high], [y, y], color=style["color"], linewidth=style["linewidth"])
        axes.plot([value], [y], marker=marker, **style)
        words: dict[str, Any] = {"fontsize": size, "color": colour if r is run else "#666666"}
        text = score_text(row.get("value"), run.metric)
        axes.annotate(
            text, (value, y), (0, above), textcoords="offset points", ha="center", **words
        )
    counts = " or ".join(sorted({str(row.get("n", "?")) for _, _, row in rows})) or "?"
    title = f"{run.dataset}: when tested" if run.dataset else "When tested"
    tidy(axes, title, x=f"Test {name}, {counts} clips, with 95 % interval")
    axes.set_yticks([-place for place in range(len(methods))], methods)
    axes.set_ylim(0.3 - max(1, len(methods)), 0.6)


def _draw_majority(
    axes: "Axes", run: RunFolder, rows: Sequence[tuple[RunFolder, str, Row]], table: Sequence[Row]
) -> None:
    """Draw a line at the score of the most frequent label, if it was tested on the same clips."""
    values = []
    for group in group_rows(table).values():
        if any(same_score(row, other) for _, _, row in rows for other in group):
            values += [row.get("value") for row in group if row.get("encoder") == "majority"]
    value = to_number(values[0]) if values else math.nan
    if math.isfinite(value):
        x = unit_of(run.metric)[0] * value
        axes.axvline(x, color="#444444", linestyle=":", linewidth=1.2)
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "va": "top"}
        words = "most frequent label" if run.metric == "accuracy" else "without the clip"
        axes.annotate(words, (x, 0.6), (3, -3), **style)
