"""Figures, tables and one self-contained page, from run folders alone: no model is loaded, PyTorch is never imported.

Read top-down: :func:`report` finds the runs, draws what is there and says what is missing. A run that is going on, was
interrupted or is damaged is drawn as far as it goes and named on the page; no run is dropped.

Longer than 400 lines: reading, drawing, tables and page share the formats of the run folders, and 60 lines are the page's own HTML and CSS.
"""

import base64
import csv
import html
import io
import json
import math
import os
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchifier.config import RequestError

Row = Mapping[str, Any]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Line style and marker tell the methods apart without colour; the colours are of different lightness for the same reason.
METHODS = {
    "linear-probe": (":", "o", "#b86200", "only a new last layer is trained, everything else stays as it was learnt without labels"),
    "freeze-extractor": ("-.", "s", "#2b7a5b", "the part that looks at single patches stays, the part that connects them is trained too"),
    "freeze-bottleneck": ("--", "^", "#2f5fa8", "the part that connects patches stays, the part that looks at single ones is trained too"),
    "full": ("-", "D", "#1c1433", "everything is trained"),
    "logistic": ("-", "o", "#555555", "logistic regression on fixed numbers for each clip"),
    "none": ("-", "o", "#555555", "nothing is trained"),
}
FOUR_METHODS = tuple(METHODS)[:4]
ENCODERS = {
    "patchifier": "the model of this report",
    "random": "the same network with random weights: what the architecture alone is worth",
    "mel-stats": "mean and spread of each frequency band over the clip",
    "mfcc": "classic hand-made timbre features",
    "chroma": "classic hand-made harmony features",
    "majority": "always the most frequent label of the training clips",
}
PREDICTORS = {  # column of stage-two/validation.csv, its line style and its name
    "mean_patch_mse": (":", "average patch"),
    "visible_mean_mse": ("--", "average of given patches"),
    "interpolation_mse": ("-.", "interpolation in time"),
}
# Table 1 of the paper, and what is known about its errors: the numbers in the other systems' own papers and in JukeMIR's table.
PUBLISHED = (
    ("Patchifier", "72.3", "48.6"),
    ("CLMR", "68.6", "blank <sup>b</sup>"),
    ("JukeMIR", "79.7", "69.9 <sup>a</sup>"),
    ("MuLaP", "–", "58.5"),
    ("S3T", "81.1", "–"),
)


@dataclass(frozen=True)
class Run:
    """One run folder, read as far as it goes."""

    path: Path
    label: str
    facts: dict[str, Any]
    config: dict[str, Any]
    missing: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What made the run; guessed from its folders where ``run.json`` does not say."""
        stages = any((self.path / stage).is_dir() for stage in ("stage-one", "stage-two"))
        return str(self.facts.get("kind") or ("pretrain" if stages else "finetune"))

    @property
    def metric(self) -> str:
        """The score of a fine-tuning run."""
        return str(self.facts.get("metric", "accuracy"))

    @property
    def task(self) -> str:
        """What a fine-tuning run was asked, in words."""
        task = _part(self.facts, "task")
        names = [str(name) for name in task.get("names", [])]
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return f"{task.get('kind', '')}: {listed}" if names else ""

    @property
    def test(self) -> str:
        """Task and split in words; only scores that agree in this and in the number of clips can be compared."""
        return "; ".join(part for part in (self.task, str(self.facts.get("split") or "")) if part)


def report(runs: Sequence[Path | str] | Path | str, out: Path | str) -> Path:
    """Draw every run found under some folders and write one page about them.

    Parameters
    ----------
    runs : list of path
        Searched with all folders below for run folders (``run.json``) and results of a demo (``results.json``).
    out : path
        Folder for ``index.html``, ``table.csv``, ``table.md`` and each figure as PNG and SVG; made if needed.

    Returns
    -------
    Path
        The page. It needs no other file and no network.

    Raises
    ------
    RequestError
        If nothing was found, ``out`` is a file, or matplotlib is not installed.
    """
    roots = [Path(runs)] if isinstance(runs, str | Path) else [Path(path) for path in runs]
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise RequestError(f"cannot write a report to {out}: it is a file, expected a folder. Name another folder with --out.")
    problems: list[str] = [f"Nothing to report on under {root}." for root in roots if not any(_folders(root))]
    folders = sorted({folder.resolve() for root in roots for folder in _folders(root)})
    if not folders:
        listed = ", ".join(map(str, roots)) or "no folder at all"
        raise RequestError(f"found no run folder under {listed}: expected a folder with run.json, as 'patchifier pretrain --out RUN' makes.")
    base = Path(os.path.commonpath([folder.parent for folder in folders]))
    found = [_read_run(path, base, problems) for path in folders if (path / "run.json").exists()]
    found = [replace(run, label=f"{run.label} ({run.path.relative_to(base)})") if sum(run.label == r.label for r in found) > 1 else run for run in found]
    demos = {path: _read_json(path / "results.json", problems) for path in folders if (path / "results.json").exists()}
    demos = {path: {**results, "source": str(path.relative_to(base))} for path, results in demos.items()}
    rows = _collect_rows(found, demos, problems)
    _write(out / "table.csv", _csv_table(rows))
    _write(out / "table.md", _markdown_table(rows))
    return _write(out / "index.html", _page(found, demos, rows, problems, out))


# --- Reading ---


def _folders(root: Path) -> Iterator[Path]:
    """Run folders and folders of a demo at or below a path; the results.json inside a run belongs to one of its methods."""
    for path in sorted(root.rglob("*.json")):
        belongs = (path.parent.parent / "run.json").exists() and path.parent != root
        if path.name == "run.json" or (path.name == "results.json" and not belongs):
            yield path.parent


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}.")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.parent.name}/{path.name} holds {type(value).__name__}, expected a JSON object.")
        return {}
    return value


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns of a CSV file by header name; the last row of a step counts, and a line still being written is left out."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    by_step = {row.get("step"): row for row in csv.DictReader(whole) if math.isfinite(_number(row.get("step")))}
    names = [name for name in next(iter(by_step.values()), {}) if name]
    return {name: np.array([_number(row.get(name)) for row in by_step.values()]) for name in names}


def _part(mapping: Row, name: str) -> dict[str, Any]:
    """Get a group of facts, empty where there is none."""
    value = mapping.get(name)
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _read_run(path: Path, base: Path, problems: list[str]) -> Run:
    facts = _read_json(path / "run.json", problems)
    config = _read_json(path / "config.json", problems)
    run = Run(path=path, label=str(facts.get("name") or path.name), facts=facts, config=config, missing=())
    missing = [*_missing_state(run), *(_missing_pretrain(run) if run.kind == "pretrain" else [])]
    missing += _missing_finetune(run) if run.kind == "finetune" else []
    return replace(run, missing=tuple(missing), facts={**facts, "folder": str(path.relative_to(base))})


def _missing_state(run: Run) -> list[str]:
    state = run.facts.get("state", "unknown")
    known = {"running": "it is still running, or was killed", "interrupted": "it was interrupted and can be resumed", "failed": "it failed"}
    return [] if state == "finished" else [known.get(state, f"its state is {state!r}")]


def _missing_pretrain(run: Run) -> list[str]:
    stages = _part(run.config, "pretrain").get("stages", "both")
    missing = []
    for stage in [f"stage-{name}" for name in ("one", "two") if stages in (name, "both")]:
        steps, checks = (_read_columns(run.path / stage / name) for name in ("metrics.csv", "validation.csv"))
        if not (steps and checks):
            missing.append(f"{stage}: no {'validation' if steps else 'step'} yet")
    if stages != "one" and not (run.path / "stage-two" / "reconstructions.safetensors").exists():
        missing.append("stage-two: no reconstructions yet")
    return missing


def _missing_finetune(run: Run) -> list[str]:
    present = [method for method in FOUR_METHODS if (run.path / method).is_dir()]
    missing = [f"{method}: no validation yet" for method in present if not _read_columns(run.path / method / "validation.csv")]
    missing += [f"{method}: no test score yet" for method in present if not (run.path / method / "results.json").exists()]
    absent = [method for method in FOUR_METHODS if method not in present and run.facts.get("state") != "finished"]
    return [*missing, *([f"without {', '.join(absent)} so far"] if absent else [])]


def read_reconstructions(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read ``reconstructions.safetensors``.

    Returns
    -------
    arrays : dict of ndarray
        ``original`` (N, M, W) float32, and for each ratio such as 0.75 ``masked_0.75`` (N,) uint8 and ``reconstructed_0.75`` (N, M, W).
    facts : dict of str
        ``clip``, ``title``, ``frame_s`` in seconds, ``scale`` (value / scale is dB), ``band_hz`` (JSON), ``silence``.

    Raises
    ------
    RequestError
        If the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise RequestError(f"cannot read reconstructions from {path}: {error}. Expected the file that stage II writes.") from error


# --- Figures ---


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a path to write to, which is renamed into place at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _write(path: Path, text: str) -> Path:
    with _beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return path


def save_figure(figure: "Figure", path: Path | str) -> None:
    """Write a figure beside and rename it into place; the same figure gives the same file.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What to write.
    path : path
        Ends in .png (150 dpi), .svg or .pdf.

    Raises
    ------
    RequestError
        For any other ending.
    """
    import matplotlib

    path = Path(path)
    metadata = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    if path.suffix not in metadata:
        raise RequestError(f"cannot write a figure to {path}: the name ends in {path.suffix!r}, expected .png, .svg or .pdf.")
    with _beside(path) as beside, matplotlib.rc_context({"svg.hashsalt": "patchifier"}):
        figure.savefig(beside, format=path.suffix[1:], dpi=150, metadata=metadata[path.suffix])


def _figure(height: float) -> "Figure":
    """Make an empty figure 10 inches wide: 10 points are then as large as the page's text."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError("drawing needs matplotlib, which is not installed: pip install 'patchifier[eval]'.") from error
    return Figure(figsize=(10.0, height), layout="constrained")


def _tidy(axes: "Axes", title: str, *, x: str = "", y: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def reconstruction_figure(reconstructions: Mapping[str, np.ndarray], facts: Mapping[str, str], *, everywhere: bool = False) -> "Figure":
    """Draw one clip, and what the model fills in at each mask ratio.

    Parameters
    ----------
    reconstructions, facts
        As :func:`read_reconstructions` returns them.
    everywhere : bool
        Draw the model's output for the given patches too, instead of the patches themselves; the same for the error.

    Returns
    -------
    matplotlib.figure.Figure
        The original; then for each ratio what was given, what was filled in, and the absolute error in dB.

    Raises
    ------
    RequestError
        If arrays or facts are missing or do not fit together.
    """
    ratios, scale, frame_s, band_hz = _check_reconstructions(reconstructions, facts)
    original = reconstructions["original"]
    N, M, W = original.shape

    # 1. One strip for the original, three for each ratio, and a row with the two colour scales.
    figure = _figure(1.9 + 2.3 * len(ratios))
    heights = [1.25, *(height for _ in ratios for height in (0.8, 0.8, 0.55))]
    grid = figure.add_gridspec(len(heights) + 1, 2, height_ratios=[*heights, 0.11])
    strips = [figure.add_subplot(grid[0, :])]
    strips += [figure.add_subplot(grid[row, :], sharex=strips[0]) for row in range(1, len(heights))]
    extent = (0.0, N * W * frame_s, 0.0, float(M))

    # 2. Colour scales: levels are shared by all but the errors.
    def picture(patches: np.ndarray) -> np.ndarray:  # (N, M, W) side by side in time, in dB
        return patches.transpose(1, 0, 2).reshape(M, N * W) / scale

    level: dict[str, Any] = {"cmap": "magma", "aspect": "auto", "origin": "lower", "extent": extent}
    level |= dict(zip(("vmin", "vmax"), np.percentile(picture(original), (1.0, 99.9)), strict=True))
    errors = {ratio: np.abs(reconstructions[f"reconstructed_{ratio}"] - original) for ratio in ratios}
    hidden = {ratio: reconstructions[f"masked_{ratio}"].astype(bool) for ratio in ratios}
    seen = np.concatenate([errors[ratio][hidden[ratio]].ravel() for ratio in ratios])
    seen = seen[np.isfinite(seen)]
    worst = float(np.percentile(seen, 99.0)) / scale if seen.size else 1.0
    difference: dict[str, Any] = {**level, "cmap": "cividis", "vmin": 0.0, "vmax": max(worst, 1e-6)}

    # 3. The pictures.
    levels = strips[0].imshow(picture(original), **level)
    name = str(facts.get("title") or facts.get("clip", "clip"))  # a $ in a song's title is no formula
    strips[0].set_title(f"Original: {name}", loc="left", fontsize=11, fontweight="bold", parse_math=False)
    strips[0].set_ylabel("original")
    for index, ratio in enumerate(ratios):
        given, filled, missed = strips[1 + 3 * index : 4 + 3 * index]
        mask, output = hidden[ratio], reconstructions[f"reconstructed_{ratio}"]
        shown = np.ones(N, bool) if everywhere else mask
        given.imshow(picture(original), **level)
        _cover(given, mask, W * frame_s, M, facecolor="#d4d4d4", hatch="////", edgecolor="#9c9c9c")
        filled.imshow(picture(np.where(shown[:, None, None], output, original)), **level)
        errors_shown = missed.imshow(picture(errors[ratio]), **difference)
        _cover(missed, ~shown, W * frame_s, M, facecolor="white")
        given.set_title("\n" + _ratio_title(ratio, mask, errors[ratio], scale), loc="left", fontsize=11, fontweight="bold")
        for axes, name in ((given, "given"), (filled, "filled in"), (missed, "error")):
            axes.set_ylabel(name)
    # 4. The axes.
    for axes in strips:
        _label_bands(axes, band_hz, (1000,) if axes.get_ylabel() == "error" else (200, 1000, 4000))
        axes.tick_params(labelbottom=axes is strips[-1], bottom=axes is strips[-1])
    strips[-1].set_xlabel("Time (s)\n")  # the empty line keeps the colour scales away
    figure.set_layout_engine("constrained", h_pad=0.012, hspace=0.0)
    figure.supylabel("Frequency (mel scale)", fontsize=10)
    for column, (image, label) in enumerate(((levels, "Level (dB re full scale)"), (errors_shown, "Absolute error (dB)"))):
        figure.colorbar(image, cax=figure.add_subplot(grid[-1, column]), orientation="horizontal", extend="both").set_label(label)
    return figure


def _check_reconstructions(reconstructions: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> tuple[list[str], float, float, list[float]]:
    ratios = [name.removeprefix("masked_") for name in reconstructions if name.startswith("masked_")]
    try:
        N, M, W = reconstructions["original"].shape
        scale, frame_s, band_hz = float(facts["scale"]), float(facts["frame_s"]), [float(hz) for hz in json.loads(facts["band_hz"])]
        shapes = [(reconstructions[f"masked_{ratio}"].shape, reconstructions[f"reconstructed_{ratio}"].shape) for ratio in ratios]
        ratios.sort(key=float)
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise RequestError(f"reconstructions are incomplete ({error!r}): expected what read_reconstructions returns.") from error
    if not ratios or len(band_hz) != M or any(shape != ((N,), (N, M, W)) for shape in shapes):
        raise RequestError(f"reconstructions do not fit: expected arrays ({N}, {M}, {W}) for each mask ratio, and {M} values of band_hz.")
    return ratios, scale, frame_s, band_hz


def _ratio_title(ratio: str, mask: np.ndarray, error: np.ndarray, scale: float) -> str:
    title = f"{100 * float(ratio):g} % masked: {int(mask.sum())} of {len(mask)} patches"
    if not mask.any():
        return title
    mse = float(np.mean(np.square(error[mask], dtype=np.float64)))
    return f"{title}, filled in with an error of {math.sqrt(mse) / scale:.1f} dB RMSE (MSE {mse:.4f})"


def _cover(axes: "Axes", patches: np.ndarray, patch_s: float, bands: int, **style: Any) -> None:
    """Cover some patches of a picture, in runs of neighbours so that no seam shows."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], patches.astype(np.int8), [0]])))
    axes.broken_barh([(start * patch_s, (end - start) * patch_s) for start, end in edges.reshape(-1, 2)], (0, bands), linewidth=0, **style)


def _label_bands(axes: "Axes", band_hz: Sequence[float], marks: Iterable[int]) -> None:
    marks = [hz for hz in marks if band_hz[0] <= hz <= band_hz[-1]]
    names = [f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz" for hz in marks]
    axes.set_yticks(np.interp(marks, band_hz, np.arange(len(band_hz)) + 0.5), names, fontsize=8)


def _decibels(mse: Any, run: Run) -> Any:
    """RMSE in dB of a mean squared error of log-mel values."""
    return np.sqrt(mse) / float(_part(run.config, "spectrogram").get("scale", 0.01))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Average over a fortieth of the curve: enough to see the trend, too little to move it."""
    kernel = np.ones(max(1, len(values) // 40))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _every(values: np.ndarray, marks: int) -> tuple[int, int]:
    """Where to put markers: about that many, and one on the last value."""
    step = max(1, len(values) // marks)
    return (len(values) - 1) % step, step


def _curves_figure(run: Run) -> "Figure | None":
    """Loss of both stages against step, above their learning rates."""
    from matplotlib.ticker import LogLocator, NullLocator

    stages = {"stage-one": "Stage I: copy single patches", "stage-two": "Stage II: fill in masked patches"}
    present = {folder: title for folder, title in stages.items() if _read_columns(run.path / folder / "metrics.csv")}
    if not present:
        return None
    figure = _figure(4.6)
    grid = figure.subplots(2, len(present), sharex="col", sharey="row", squeeze=False, gridspec_kw={"height_ratios": [5, 1]})
    for (folder, title), loss, rate in zip(present.items(), *grid, strict=True):
        steps = _read_columns(run.path / folder / "metrics.csv")
        checks = _read_columns(run.path / folder / "validation.csv")
        nothing = np.full_like(steps["step"], math.nan)
        trained = _decibels(steps.get("loss", nothing), run)
        thin = slice(None, None, max(1, len(trained) // 2000))  # more points than pixels would only make the file large
        loss.plot(steps["step"][thin], trained[thin], color="#8a8a8a", linewidth=0.6, alpha=0.6)
        loss.plot(steps["step"][thin], _smooth(trained)[thin], color="#1c1433", linewidth=1.6, label="training (smoothed)")
        score = next((checks[name] for name in ("masked_mse", "mse") if name in checks), None)
        if score is not None:
            style: dict[str, Any] = {"marker": "o", "markersize": 5, "markerfacecolor": "white", "markevery": _every(score, 12)}
            loss.plot(checks["step"], _decibels(score, run), color="#cc7a00", linewidth=1.4, label="validation", **style)
        _tidy(loss, title, y="" if loss is not grid[0][0] else "Error, RMSE (dB)")
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_locator(NullLocator())
        loss.legend(loc="upper right", fontsize=9, framealpha=0.9)
        rate.plot(steps["step"][thin], steps.get("learning_rate", nothing)[thin], color="#1c1433", linewidth=1.2)
        _tidy(rate, "", x="Step", y="" if rate is not grid[1][0] else "Learning\nrate")
        rate.set_ylim(bottom=0.0)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        marks = {words: (dash, _decibels(checks[name][-1], run)) for name, (dash, words) in PREDICTORS.items() if name in checks}
        _mark_levels(loss, {words: mark for words, mark in marks.items() if mark[1] > 0})
    return figure


def _mark_levels(axes: "Axes", levels: Mapping[str, tuple[str, float]]) -> None:
    """Horizontal lines with their names: on the line, or pushed apart in the right margin where there are several."""
    for dash, value in levels.values():
        axes.axhline(value, color="#444444", linewidth=1.1, linestyle=dash)
    axes.set_ylim(axes.get_ylim())
    named = sorted((value, f"{words}: {value:.1f} dB") for words, (_, value) in levels.items())
    if len(named) == 1:
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
        axes.annotate(named[0][1], (1.0, named[0][0]), (0, 4), fontsize=9, **place)
        return
    heights = [float((axes.transScale + axes.transLimits).transform((0.0, value))[1]) for value, _ in named]
    spread = [max([height, *(heights[lower] + 0.075 * (index - lower) for lower in range(index))]) for index, height in enumerate(heights)]
    shift = float(np.mean(spread) - np.mean(heights)) if named else 0.0
    for (value, text), height in zip(named, spread, strict=True):
        arrow = {"arrowstyle": "-", "linewidth": 0.6, "relpos": (0.0, 0.5), "shrinkA": 1.0, "shrinkB": 0.0}
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "axes fraction", "va": "center", "arrowprops": arrow}
        axes.annotate(text, (1.0, value), (1.06, height - shift), fontsize=9, **place)


def _health_figure(run: Run) -> "Figure | None":
    """Spread and dimension of the embeddings against step: a collapse would show here first."""
    checks = _read_columns(run.path / "stage-two" / "validation.csv")
    panels = {
        "embedding_std": ("Spread of the embeddings", "Standard deviation"),
        "effective_rank": ("Dimensions in use", "Effective rank"),
    }
    present = {name: words for name, words in panels.items() if name in checks and np.isfinite(checks[name]).any()}
    if not present:
        return None
    figure = _figure(2.8)
    for axes, (name, (title, label)) in zip(figure.subplots(1, len(present), squeeze=False)[0], present.items(), strict=True):
        axes.plot(checks["step"], checks[name], color="#1c1433", marker="o", markersize=4, markevery=_every(checks["step"], 12))
        _tidy(axes, title, x="Step of stage II", y=label)
        axes.set_ylim(0.0, 1.15 * float(np.nanmax(checks[name])) or 1.0)
    return figure


_FAINT: dict[str, Any] = {"color": "#9a9a9a", "linewidth": 0.9, "markersize": 4, "markerfacecolor": "white"}


def _convergence_figure(run: Run, opponents: Sequence[Run], table: Sequence[Row]) -> "Figure | None":
    """Form of the paper's Figure 2: validation score against step, and the test score of each method with its interval."""
    curves = [(r, m, _read_columns(r.path / m / "validation.csv")) for r in (*opponents, run) for m in FOUR_METHODS]
    curves = [(r, method, columns) for r, method, columns in curves if run.metric in columns]
    rows = [(r, m, row) for r in (*opponents, run) for m in FOUR_METHODS for row in _method_rows(r, m, [])]
    rows = [(r, method, row) for r, method, row in rows if row.get("metric") == run.metric]
    if not curves and not rows:
        return None
    figure = _figure(4.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1.0])
    _draw_convergence(left, run, curves)
    _draw_scores(right, run, rows)
    _draw_majority(right, run, rows, table)
    for axes, there, words in ((left, curves, "no validation yet"), (right, rows, "no test score yet")):
        if not there:
            axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center")
    if curves:
        figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9.5, handlelength=3.2)
    return figure


def _unit(metric: str) -> tuple[float, str]:
    """Factor and name with which a score is drawn."""
    return (100.0, f"{metric} (%)") if metric == "accuracy" else (1.0, metric)


def _draw_convergence(axes: "Axes", run: Run, curves: Sequence[tuple[Run, str, Mapping[str, np.ndarray]]]) -> None:
    unit, name = _unit(run.metric)
    for r, method, columns in curves:
        dash, marker, colour, _ = METHODS[method]
        style: dict[str, Any] = {"color": colour, "linewidth": 1.8, "markersize": 5, "label": method} if r is run else _FAINT
        axes.plot(columns["step"], unit * columns[run.metric], dash, marker=marker, markevery=_every(columns["step"], 8), **style)
    for r in {r.label: r for r, _, _ in curves if r is not run}.values():
        axes.plot([], [], "-", label=f"{r.facts.get('encoder', 'other')} (same style)", **_FAINT)
    _tidy(axes, "While training", x="Step", y=f"Validation {name}")


def _draw_scores(axes: "Axes", run: Run, rows: Sequence[tuple[Run, str, Row]]) -> None:
    unit, name = _unit(run.metric)
    methods = [method for method in FOUR_METHODS if any(method == tested for _, tested, _ in rows)]
    for r, method, row in rows:
        _, marker, colour, _ = METHODS[method]
        value, low, high = (unit * _number(row.get(key)) for key in ("value", "low", "high"))
        y, above, size = (0.0, 7, 9) if r is run else (0.28, -14, 8)
        y = -methods.index(method) - y
        style: dict[str, Any] = {"color": colour, "markersize": 8, "linewidth": 2.2} if r is run else {**_FAINT, "markersize": 6}
        axes.plot([low, high], [y, y], color=style["color"], linewidth=style["linewidth"])
        axes.plot([value], [y], marker=marker, **style)
        words: dict[str, Any] = {"ha": "center", "fontsize": size, "color": colour if r is run else "#666666"}
        axes.annotate(_score(row.get("value"), run.metric), (value, y), (0, above), textcoords="offset points", **words)
    counts = " or ".join(sorted({str(row.get("n", "?")) for _, _, row in rows})) or "?"
    _tidy(axes, "When tested, with 95 % interval", x=f"Test {name}, {counts} clips")
    axes.set_yticks([-place for place in range(len(methods))], methods)
    axes.set_ylim(0.3 - max(1, len(methods)), 0.6)


def _draw_majority(axes: "Axes", run: Run, rows: Sequence[tuple[Run, str, Row]], table: Sequence[Row]) -> None:
    """Draw a line at the score of the most frequent label, if it was tested on the same clips."""
    same = [group for group in _groups(table) if any(_same(row, other) for _, _, row in rows for other in group)]
    values = [_number(row.get("value")) for group in same for row in group if row.get("encoder") == "majority"]
    if values and math.isfinite(values[0]):
        x = _unit(run.metric)[0] * values[0]
        axes.axvline(x, color="#444444", linestyle=":", linewidth=1.2)
        axes.annotate("most frequent label", (x, 0.6), (3, -3), textcoords="offset points", fontsize=8, va="top")


# --- Tables ---


def _method_rows(run: Run, method: str, problems: list[str]) -> list[dict[str, Any]]:
    path = run.path / method / "results.json"
    rows = _read_json(path, problems).get("rows", []) if path.exists() else []
    return [row for row in rows if isinstance(row, dict)]


def _collect_rows(runs: Sequence[Run], demos: Mapping[Path, Row], problems: list[str]) -> list[dict[str, Any]]:
    """Every test score once, with its source and what it was tested on, in the order of the table."""
    rows: list[dict[str, Any]] = []
    for folder, results in demos.items():
        inside = [run for run in runs if run.path.is_relative_to(folder) and run.task]
        told = [row for row in results.get("rows", []) if isinstance(row, dict)]
        # A row of the demo was tested on the clips of a run below it where their numbers agree.
        tests = {str(row.get("n")): run.test for run in inside for method in FOUR_METHODS for row in _method_rows(run, method, [])}
        other = inside[0].task if inside else ""
        rows += [{**row, "source": results["source"], "test": tests.get(str(row.get("n")), other)} for row in told]
    for run in (run for run in runs if run.kind != "pretrain"):
        methods = sorted(path.parent.name for path in run.path.glob("*/results.json"))
        above = {results["source"] for folder, results in demos.items() if run.path.is_relative_to(folder)}
        told = [row for row in rows if row["source"] in above]
        for row in (row for method in methods for row in _method_rows(run, method, problems)):
            if not any(_same(row, other) for other in told):
                rows.append({**row, "source": run.label, "test": run.test})
    return sorted(rows, key=_table_order)


def _same(row: Row, other: Row) -> bool:
    alike = all(row.get(key) == other.get(key) for key in ("encoder", "method", "metric", "n"))
    return alike and abs(_number(row.get("value")) - _number(other.get("value"))) < 5e-4  # half of the last digit shown


def _table_order(row: Row) -> tuple[Any, ...]:
    def place(name: Any, known: Iterable[str]) -> tuple[int, str]:
        return (list(known).index(name) if name in known else 99, str(name))

    test = (-_number(row.get("n")) if math.isfinite(_number(row.get("n"))) else 0.0, str(row["test"]), str(row.get("metric")))
    return (*test, place(row.get("encoder"), ENCODERS), place(row.get("method"), METHODS), str(row["source"]))


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows tested on the same clips by the same metric, which are the only ones that can be ranked."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row.get("n")), row["test"], row.get("metric")), []).append(row)
    return list(groups.values())


def _score(value: Any, metric: Any, *, signed: bool = False) -> str:
    number = _number(value)
    if not math.isfinite(number):
        return "–"
    number, digits = (100.0 * number, 1) if metric == "accuracy" else (number, 3)
    return (f"{number:+.{digits}f}" if signed else f"{number:.{digits}f}").replace("-", "−")


def _interval(row: Row, metric: Any, *, signed: bool = False) -> str:
    low, high = (_score(row.get(key), metric, signed=signed) for key in ("low", "high"))
    return "–" if low == high == "–" else f"{low} to {high}"


_APART = "The rows below were tested on different clips and must not be ranked against those above."


def _caution(group: Sequence[Row]) -> str:
    widths = [(_number(row.get("high")) - _number(row.get("low"))) / 2 for row in group]
    widths = [width for width in widths if width > 0]
    if not widths:
        return ""
    metric, n = group[0].get("metric"), group[0].get("n", "?")
    points = f"{100 * np.median(widths):.0f} points" if metric == "accuracy" else f"{np.median(widths):.2f}"
    return f"With {n} test clips the 95 % interval is about ± {points}: a smaller difference between two rows settles nothing."


def _csv_table(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    names = ("encoder", "method", "metric", "value", "low", "high", "n", "test", "source")
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _markdown_table(rows: Sequence[Row]) -> str:
    parts = []
    for index, group in enumerate(_groups(rows)):
        lines = [_e(_APART), ""] if index else []
        lines += ["| encoder | method | metric | value | 95 % interval | n | source |", "|---|---|---|---:|---:|---:|---|"]
        for row in group:
            metric = row.get("metric")
            cells = [row.get("encoder"), row.get("method"), metric, _score(row.get("value"), metric), _interval(row, metric)]
            lines.append("| " + " | ".join(_e(cell).replace("|", "\\|") for cell in [*cells, row.get("n", "?"), row["source"]]) + " |")
        parts.append("\n".join([*lines, "", _e(_caution(group))]).rstrip() + "\n")
    return "\n".join(parts) or "No test score yet.\n"


def _verdict(difference: Row) -> str:
    """Say who is ahead, if the paired 95 % interval leaves out 0."""
    low, high = _number(difference.get("low")), _number(difference.get("high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "has no interval, so cannot be told apart from"
    return "beats" if low > 0 else "is beaten by" if high < 0 else "cannot be told apart from"


# --- The page ---


def _e(value: Any) -> str:
    return html.escape(" ".join(str(value).split()))


def _page(runs: Sequence[Run], demos: Mapping[Path, Row], rows: Sequence[Row], problems: list[str], out: Path) -> str:
    pretrained = [run for run in runs if run.kind == "pretrain"]
    pictures = [_reconstruction_html(run, out, problems, len(pretrained) > 1) for run in pretrained]
    sections = [
        ("What the model fills in", "".join(pictures)),
        ("What it is worth", _table_html(rows, demos)),
        ("Published figures", _PUBLISHED_HTML),
        ("Four ways of fine-tuning", _convergence_html(runs, rows, out)),
        ("How it learnt", "".join(_curves_html(run, out, len(pretrained) > 1) for run in pretrained)),
        ("How this was made", "".join(_made_html(run) for run in runs)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content)
    missing = [f"<b>{_e(run.label)}</b>: {_e('; '.join(run.missing))}." for run in runs if run.missing] + [_e(text) for text in problems]
    notice = f"<aside><h2>What is missing</h2><ul>{''.join(f'<li>{text}</li>' for text in missing)}</ul></aside>" if missing else ""
    named = ", ".join(_e(run.label) for run in runs)
    values = {"headline": _headline(runs, demos, rows), "notice": notice, "body": body, "runs": named}
    return string.Template(_PAGE).substitute(values)


def _wide(heads: Iterable[str], bodies: str) -> str:
    """Make a table that scrolls by itself where the page is narrower, by keyboard too."""
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    return f'<div class="wide" role="group" aria-label="Table" tabindex="0"><table><thead><tr>{head}</tr></thead>{bodies}</table></div>'


def _body(rows: Iterable[Sequence[str]]) -> str:
    return "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)


_PEERS = {"random": "with random weights", "majority": "always the most frequent label"}


def _headline(runs: Sequence[Run], demos: Mapping[Path, Row], rows: Sequence[Row]) -> str:
    """Tell the key numbers in two sentences."""
    first = next((run for run in runs if run.kind == "pretrain"), None)
    demo = next((results for folder, results in demos.items() if first and first.path.is_relative_to(folder)), {})
    sentences = [*([_tell_pretraining(first, demo)] if first else []), *_tell_score(rows)]
    return " ".join(sentences) or "Nothing has been measured yet."


def _tell_pretraining(run: Run, demo: Row) -> str:
    last = {name: column[-1] for name, column in _read_columns(run.path / "stage-two" / "validation.csv").items()}
    errors = {name: _number(value) for name, value in {**last, **_part(demo, "stage_two")}.items()}
    decibels = {name: f"{_decibels(error, run):.1f} dB" for name, error in errors.items() if name.endswith("_mse") and error >= 0}
    size, seconds = _number(run.facts.get("parameters")), _number(run.facts.get("seconds"))
    sentence = f"A model of {size / 1e6:.1f} million parameters" if size > 0 else "The model"
    sentence += f", trained without labels on {_e(_part(run.facts, 'clips').get('train', '?'))} clips"
    sentence += f" in {_duration(seconds)}" if seconds > 0 else ""
    if "masked_mse" not in decibels:
        return sentence + "."
    others = ", ".join(f"{words} {decibels[name]}" for name, (_, words) in PREDICTORS.items() if name in decibels)
    sentence += f", fills in hidden music with an error of <strong>{decibels['masked_mse']}</strong>"
    return f"{sentence} (for comparison, {others})." if others else f"{sentence}."


def _tell_score(rows: Sequence[Row]) -> list[str]:
    """Tell the linear probe's score: the best of four methods would have been picked on the test clips."""
    ours = [row for row in rows if row.get("encoder") == "patchifier"]
    if not ours:
        return []
    row = next((row for row in ours if row.get("method") == "linear-probe"), ours[0])
    metric, method = row.get("metric"), row.get("method")
    unit = " %" if metric == "accuracy" else ""
    peers = [r for group in _groups(rows) if row in group for r in group if r is not row and r.get("method") in (method, "none")]
    against = "".join(f"; {_e(_PEERS.get(str(r.get('encoder')), r.get('encoder')))} {_score(r.get('value'), metric)}{unit}" for r in peers)
    value = f"<strong>{_score(row.get('value'), metric)}{unit}</strong> (95&nbsp;% interval {_interval(row, metric)})"
    return [f"On {_e(row.get('n', '?'))} test clips ({_e(method)}) its {_e(metric)} is {value}{against}."]


def _duration(seconds: Any) -> str:
    value = _number(seconds)
    if not math.isfinite(value):
        return "unknown time"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _figure_html(figure: "Figure", stem: str, out: Path, *, alt: str, caption: str, ending: str = "svg") -> str:
    """Save a figure as PNG and SVG, and put one of them into the page."""
    save_figure(figure, out / f"{stem}.png")
    figure.set_layout_engine("none")  # the layout has been found: finding it again would double the time
    save_figure(figure, out / f"{stem}.svg")
    data = base64.b64encode((out / f"{stem}.{ending}").read_bytes()).decode()
    kind = "image/png" if ending == "png" else "image/svg+xml"
    card = f'<div class="card" role="group" aria-label="Figure" tabindex="0"><img alt="{_e(alt)}" src="data:{kind};base64,{data}"></div>'
    return f"<figure>{card}<figcaption>{caption}</figcaption></figure>"


def _stem(name: str, run: Run, several: bool) -> str:
    plain = "".join(letter if letter.isalnum() else "-" for letter in str(run.facts.get("folder", run.path.name)))
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
        f"The last strip of each block shows how far off it is. From <b>{_e(run.label)}</b>, clip <i>{_e(facts.get('clip', '?'))}</i>."
    )
    alt = "Spectrogram of a clip; below it, for each mask ratio, the patches given, the patches filled in, and the error in decibels."
    return _figure_html(figure, _stem("reconstruction", run, several), out, alt=alt, caption=caption, ending="png")


def _table_html(rows: Sequence[Row], demos: Mapping[Path, Row]) -> str:
    """Lay out the form of the paper's Table 1, one body for each set of test clips, then the paired differences."""
    sources = len({row["source"] for row in rows}) > 1
    scale = "0 to 100 %" if all(row.get("metric") == "accuracy" for row in rows) else ""
    head = ["encoder", "method", "metric", "value", "95 % interval", scale, "clips", *(["run"] if sources else [])]
    parts = []
    for index, group in enumerate(_groups(rows)):
        span = f"<th colspan={len(head)} scope=rowgroup>"
        about = f"<tr class=apart>{span}{_APART}</th></tr>" if index else ""
        about += f"<tr>{span}{_e(group[0].get('n', '?'))} test clips; {_e(group[0]['test'] or 'task not stated')}</th></tr>"
        caution = f"<tr class=caution><td colspan={len(head)}>{_e(_caution(group))}</td></tr>" if _caution(group) else ""
        parts.append(f"<tbody>{about}{''.join(_row_html(row, group, sources) for row in group)}{caution}</tbody>")
    table = _wide(head, "".join(parts)) if rows else ""
    told = {**ENCODERS, **{name: words[-1] for name, words in METHODS.items()}}
    words = {name: text for name, text in told.items() if any(name in (row.get("encoder"), row.get("method")) for row in rows)}
    terms = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in words.items() if name != "none")
    key = f"<details><summary>What the names mean</summary><dl>{terms}</dl></details>" if rows else ""
    notes = "".join(f"<p>{_e(note)}</p>" for results in demos.values() for note in results.get("notes") or [])
    return table + key + "".join(_differences_html(results) for results in demos.values()) + notes


def _row_html(row: Row, group: Sequence[Row], sources: bool) -> str:
    metric = row.get("metric")
    unit = " %" if metric == "accuracy" else ""
    cells = [row.get("encoder"), row.get("method"), metric, _score(row.get("value"), metric) + unit, _interval(row, metric)]
    after = "".join(f"<td>{_e(cell)}</td>" for cell in [row.get("n", "?"), *([row["source"]] if sources else [])])
    kind = ' class="ours"' if row.get("encoder") == "patchifier" else ""
    return f"<tr{kind}>{''.join(f'<td>{_e(cell)}</td>' for cell in cells)}<td>{_bar(row, group)}</td>{after}</tr>"


def _bar(row: Row, group: Sequence[Row]) -> str:
    """Value and interval as a picture on the scale of the group, from 0 or below to 1 or above; the numbers stand beside it."""
    ends = [_number(r.get(key)) for r in group for key in ("value", "low", "high")]
    ends = [0.0, 1.0, *(end for end in ends if math.isfinite(end))]
    value, low, high = (_number(row.get(key)) for key in ("value", "low", "high"))
    if not math.isfinite(value):
        return ""
    scale = 148 / (max(ends) - min(ends))
    x = [6 + scale * (end - min(ends)) for end in (value, np.fmin(low, value), np.fmax(high, value))]
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
        sentence = f"{_e(item.get('first'))} <b>{_verdict(item)}</b> {_e(item.get('second'))}"
        value, interval = _score(item.get("value"), metric, signed=True) + unit, _interval(item, metric, signed=True)
        lines.append((sentence, value, interval, _e(item.get("n", "?"))))
    if not lines:
        return ""
    table = _wide(("on the same clips", "difference", "95 % interval", "clips"), f"<tbody class=text>{_body(lines)}</tbody>")
    return f"<h3>Which differences hold up</h3><p>“Beats” is said only when the paired 95 % interval leaves out 0.</p>{table}"


def _convergence_html(runs: Sequence[Run], rows: Sequence[Row], out: Path) -> str:
    """One figure for each model, with the random network of the same task behind it."""
    tuned = [run for run in runs if run.kind == "finetune"]
    main = [run for run in tuned if run.facts.get("encoder") != "random" or not any(_opposes(run, other) for other in tuned)]
    main.sort(key=lambda run: -sum((run.path / method).is_dir() for method in FOUR_METHODS))
    parts = []
    for run in main:
        opponents = [other for other in tuned if _opposes(other, run)]
        figure = _convergence_figure(run, opponents, rows)
        if figure is None:
            continue
        grey = f" Thin and grey: {', '.join(_e(other.label) for other in opponents)}, weights at random." if opponents else ""
        caption = f"The form of the paper’s Figure 2, for <b>{_e(run.label)}</b>. Left: validation clips, "
        caption += f"of the first fold and seed where there are several. Right: test clips.{grey}"
        alt = f"Validation {run.metric} against step for each method of fine-tuning, and test {run.metric} of each with its interval."
        parts.append(_figure_html(figure, _stem("figure-2", run, len(main) > 1), out, alt=alt, caption=caption))
    return "".join(parts)


def _opposes(other: Run, run: Run) -> bool:
    """Whether a run is the random network beside another model on the same task."""
    alike = (other.path.parent, other.test, other.metric) == (run.path.parent, run.test, run.metric)
    return alike and other.facts.get("encoder") == "random" != run.facts.get("encoder")


def _curves_html(run: Run, out: Path, several: bool) -> str:
    parts = []
    if figure := _curves_figure(run):
        caption = (
            f"Error of <b>{_e(run.label)}</b> against step, on a logarithmic scale: RMSE in decibels is the root of the mean squared error "
            "of the log-mel. Horizontal lines, where drawn: what predictors that learn nothing get on the same patches."
        )
        alt = "Training and validation error of stage I and stage II against step, with three simple predictors as horizontal lines."
        parts.append(_figure_html(figure, _stem("losses", run, several), out, alt=alt, caption=caption))
    if figure := _health_figure(run):
        width = _part(run.config, "model").get("width", "?")
        caption = f"Health of the {_e(width)}-dimensional embeddings of <b>{_e(run.label)}</b>: a model that answers the same to all music "
        caption += "would fall towards 0 on the left and 1 on the right."
        alt = "Standard deviation and effective rank of the embeddings against step."
        parts.append(_figure_html(figure, _stem("health", run, several), out, alt=alt, caption=caption))
    return "".join(parts)


def _made_html(run: Run) -> str:
    facts, settings = run.facts, _part(run.config, "finetune" if run.kind == "finetune" else "pretrain")
    seed, seeds = settings.get("seed", "?"), settings.get("seeds", 1)
    clips = ", ".join(f"{count} {name}" for name, count in _part(facts, "clips").items())
    versions = ", ".join(f"{name} {version}" for name, version in _part(facts, "versions").items())
    lines = {
        "command": f"<code>{_e(facts.get('command', '?'))}</code>", "state": _e(facts.get("state", "unknown")), "clips": _e(clips or "?"),
        "seed": _e(seed if seeds == 1 else f"{seed} and the next {seeds - 1}"), "started": _e(facts.get("started", "?")),
        "time": _duration(facts.get("seconds")), "machine": _e(facts.get("machine", "?")), "versions": _e(versions or "?"),
        "task": _e(run.test), "cache": _e(facts.get("cache", "")), "parameters": f"{_number(facts.get('parameters')):,.0f}",
        "folder": _e(facts["folder"]),
    }  # fmt: skip
    terms = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in lines.items() if text)
    config = html.escape(json.dumps(run.config, indent=2))
    return f"<h3>{_e(run.label)}</h3><dl>{terms}</dl><details><summary>Every setting</summary><pre>{config}</pre></details>"


_PUBLISHED_HTML = f"""<p><b>Published figures (the paper’s Table 1), never ranked with ours.</b> Other data, other clips, other hands:
supervision is a linear probe according to the paper; the paper does not state the split.</p>
{_wide(("system", "GTZAN, accuracy (%)", "EmoMusic, R² × 100"), f"<tbody>{_body(PUBLISHED)}</tbody>")}
<p class="small"><sup>a</sup> The 69.9 printed for JukeMIR on EmoMusic is its four-task average; its EmoMusic R² is 66.9.<br>
<sup>b</sup> CLMR’s EmoMusic, left blank, is 56.8.</p>"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Patchifier: report on $runs</title><style>
:root { --ink: #1f1d24; --soft: #625e6b; --paper: #fbfaf8; --line: #e3dfd8; --tint: #f3efe7; --accent: #8a4b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e6ef; --soft: #a9a4b3; --paper: #17151c; --line: #35313d; --tint: #221f2a; --accent: #f0b45c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; }
header p { font-size: 1.35rem; line-height: 1.5; margin: .6rem 0 0; text-wrap: pretty; }
h1 { font-size: 1rem; letter-spacing: .08em; text-transform: uppercase; color: var(--soft); margin: 0; font-weight: 600; }
h2 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; letter-spacing: -.01em; }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
section { margin-top: 4rem; }
strong { color: var(--accent); white-space: nowrap; }
figure { margin: 0 0 2rem; }
figcaption, .small, .caution td { color: var(--soft); font-size: .92rem; max-width: 46rem; }
figcaption { margin-top: .7rem; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: .8rem; overflow-x: auto; }
.card img { display: block; width: 100%; min-width: 640px; height: auto; }
aside { margin-top: 2.5rem; padding: 1rem 1.25rem; background: var(--tint); border-left: 4px solid var(--accent); border-radius: 6px; }
aside h2 { font-size: 1.05rem; margin: 0 0 .3rem; } aside ul { margin: 0; padding-left: 1.1rem; }
.wide { overflow-x: auto; } :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem .4rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: middle; }
td { white-space: nowrap; } .text td:first-child, .caution td { white-space: normal; }
thead th { color: var(--soft); font-weight: 600; } tbody th { padding-top: 1.2rem; font-weight: 600; }
.apart th { padding-top: 2rem; color: var(--accent); } .ours td { font-weight: 600; background: var(--tint); }
.bar { display: block; }
.bar path { fill: none; stroke: currentColor; stroke-width: 1.6; } .bar .axis { stroke: var(--soft); stroke-width: .5; }
.bar circle { fill: currentColor; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .5rem 0 1rem; font-size: .95rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--soft); }
pre { background: var(--tint); padding: 1rem; border-radius: 6px; overflow-x: auto; font-size: .82rem; line-height: 1.45; }
code { font-size: .9em; } sup { line-height: 0; }
@media (max-width: 600px) { header p { font-size: 1.15rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --tint: #f4f4f4; --accent: #000; }
  body { font-size: 11pt; } main { padding: 0; max-width: none; } section { margin-top: 2rem; } .card { border: 0; padding: 0; }
  .card img { min-width: 0; } figure, tr, aside { break-inside: avoid; } h2, h3 { break-after: avoid; } }
</style></head><body><main>
<header><h1>Patchifier report</h1><p>$headline</p></header>$notice
$body
</main></body></html>
"""
