"""Figure of a clip, and of what the model fills in at each mask ratio."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchifier import predictors
from patchifier.config import RequestError
from patchifier.evaluate.report.drawing import SCALES, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Fixed, so that pictures of two models, or of two clips, can be compared by eye.
LEVEL_DB = (-60.0, 30.0)
ERROR_DB = (0.0, 30.0)
# A sine at full scale has 19 to 38 dB: samples of a frame and then bins of a band are summed.
LEVEL_LABEL = "Level (dB); above 0 too, as power is summed over a band"
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "fontweight": "bold"}


def reconstruction_figure(
    reconstructions: Mapping[str, np.ndarray], facts: Mapping[str, str]
) -> "Figure":
    """Draw a clip; for each mask ratio what was given, what was predicted, and the error in dB.

    The arguments are those that :func:`read_reconstructions` returns.
    """
    ratios, scale, frame_s, band_hz = _check_reconstructions(reconstructions, facts)
    original = reconstructions["original"]
    errors = [np.abs(reconstructions[f"reconstructed_{ratio}"] - original) for ratio in ratios]
    masks = [reconstructions[f"masked_{ratio}"].astype(bool) for ratio in ratios]

    # 1. One strip for the original, three for each ratio, and a row with the two colour scales.
    figure = new_figure(1.9 + 2.5 * len(ratios))
    heights = [1.25, *(height for _ in ratios for height in (0.8, 0.8, 0.55))]
    grid = figure.add_gridspec(len(heights) + 1, 2, height_ratios=[*heights, 0.11])
    strips = [figure.add_subplot(grid[0, :])]
    strips += [figure.add_subplot(grid[row, :], sharex=strips[0]) for row in range(1, len(heights))]

    # 2. The pictures.
    N, M, W = original.shape
    level: dict[str, Any] = {"cmap": SCALES[0], "aspect": "auto", "origin": "lower"}
    level["extent"] = (0.0, N * W * frame_s, 0.0, float(M))
    level |= dict(zip(("vmin", "vmax"), LEVEL_DB))
    difference = level | {"cmap": SCALES[1]} | dict(zip(("vmin", "vmax"), ERROR_DB))
    levels = strips[0].imshow(_picture(original, scale), **level)
    name = str(facts.get("title") or facts.get("clip", "clip"))
    # A $ in a song's title is no formula.
    strips[0].set_title(f"Original: {name}", parse_math=False, **TITLE)
    strips[0].set_ylabel("original", fontsize=8)
    for index, (ratio, mask, error) in enumerate(zip(ratios, masks, errors, strict=True)):
        given, filled, missed = strips[1 + 3 * index : 4 + 3 * index]
        output = reconstructions[f"reconstructed_{ratio}"]
        given.imshow(_picture(original, scale), **level)
        _cover(given, mask, W * frame_s, M, facecolor="#d4d4d4", hatch="////", edgecolor="#9c9c9c")
        together = np.where(mask[:, None, None], output, original)
        filled.imshow(_picture(together, scale), **level)
        errors_shown = missed.imshow(_picture(error, scale), **difference)
        _cover(missed, ~mask, W * frame_s, M, facecolor="white")
        title = _ratio_title(ratio, mask, error, scale)
        found = predictors.untrained_mse(original, mask).items()
        if words := [f"{name} {math.sqrt(mse) / scale:.1f} dB" for name, mse in found]:
            title += f"\nWithout a model: {', '.join(words)}".replace("_", " ")
        given.set_title(f"\n{title}", **TITLE)
        for axes, label in ((given, "given"), (filled, "predicted"), (missed, "error")):
            axes.set_ylabel(label, fontsize=8)

    # 3. The axes.
    for axes in strips:
        _label_bands(axes, band_hz, (1000,) if axes.get_ylabel() == "error" else (200, 1000, 4000))
        axes.tick_params(labelbottom=axes is strips[-1], bottom=axes is strips[-1])
    strips[-1].set_xlabel("Time (s)\n")  # the empty line keeps the colour scales away
    figure.set_layout_engine("constrained", h_pad=0.012, hspace=0.0)
    figure.supylabel("Frequency (mel scale)", fontsize=10)
    bars = ((levels, LEVEL_LABEL), (errors_shown, "Absolute error (dB)"))
    for column, (image, label) in enumerate(bars):
        axes = figure.add_subplot(grid[-1, column])
        bar = figure.colorbar(image, cax=axes, orientation="horizontal", extend="both")
        bar.set_label(label)
    return figure


def _picture(patches: np.ndarray, scale: float) -> np.ndarray:
    """Patches (N, M, W), concatenated in time, in dB: (M, N W)."""
    return np.concatenate(list(patches), axis=1) / scale


def mask_ratios(reconstructions: Mapping[str, np.ndarray]) -> list[str]:
    """Mask ratios of reconstructions, as in the names of their arrays, the smallest first."""
    names = (name.partition("masked_") for name in reconstructions)
    return sorted((ratio for before, mark, ratio in names if mark and not before), key=float)


def _check_reconstructions(
    reconstructions: Mapping[str, np.ndarray], facts: Mapping[str, str]
) -> tuple[list[str], float, float, list[float]]:
    try:
        ratios = mask_ratios(reconstructions)
        N, M, W = reconstructions["original"].shape
        scale, frame_s = float(facts["scale"]), float(facts["frame_s"])
        band_hz = [float(hz) for hz in json.loads(facts["band_hz"])]
        shapes = [
            tuple(reconstructions[f"{kind}_{ratio}"].shape for kind in ("masked", "reconstructed"))
            for ratio in ratios
        ]
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise RequestError(
            f"reconstructions are incomplete ({error!r}): expected what read_reconstructions "
            "returns."
        ) from error
    if not ratios or len(band_hz) != M or any(shape != ((N,), (N, M, W)) for shape in shapes):
        raise RequestError(
            f"reconstructions do not fit: expected arrays ({N}, {M}, {W}) for each mask ratio, "
            f"and {M} values of band_hz."
        )
    return ratios, scale, frame_s, band_hz


def _ratio_title(ratio: str, mask: np.ndarray, error: np.ndarray, scale: float) -> str:
    title = f"{100 * float(ratio):g} % masked: {int(mask.sum())} of {len(mask)} patches"
    if not mask.any():
        return title
    mse = float(np.mean(np.square(error[mask], dtype=np.float64)))
    return f"{title}, predicted with an error of {math.sqrt(mse) / scale:.1f} dB RMSE"


def _cover(axes: "Axes", patches: np.ndarray, patch_s: float, bands: int, **style: Any) -> None:
    """Cover some patches of a picture, in runs of neighbours so that no seam shows."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], patches.astype(np.int8), [0]])))
    axes.broken_barh(
        [(start * patch_s, (end - start) * patch_s) for start, end in edges.reshape(-1, 2)],
        (0, bands),
        linewidth=0,
        **style,
    )


def _label_bands(axes: "Axes", band_hz: Sequence[float], marks: Iterable[int]) -> None:
    marks = [hz for hz in marks if band_hz[0] <= hz <= band_hz[-1]]
    names = [f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz" for hz in marks]
    axes.set_yticks(np.interp(marks, band_hz, np.arange(len(band_hz)) + 0.5), names, fontsize=8)
