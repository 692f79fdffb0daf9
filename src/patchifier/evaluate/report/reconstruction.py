"""Figure of a clip, and of what the model fills in at each mask ratio."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchifier.config import RequestError
from patchifier.evaluate.report.drawing import SCALES, new_figure
from patchifier.train import references

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def reconstruction_figure(
    reconstructions: Mapping[str, np.ndarray], facts: Mapping[str, str]
) -> "Figure":
    """Draw one clip, and what the model fills in at each mask ratio.

    Parameters
    ----------
    reconstructions, facts
        As :func:`read_reconstructions` returns them.

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
    figure = new_figure(1.9 + 2.5 * len(ratios))
    heights = [1.25, *(height for _ in ratios for height in (0.8, 0.8, 0.55))]
    grid = figure.add_gridspec(len(heights) + 1, 2, height_ratios=[*heights, 0.11])
    strips = [figure.add_subplot(grid[0, :])]
    strips += [figure.add_subplot(grid[row, :], sharex=strips[0]) for row in range(1, len(heights))]
    extent = (0.0, N * W * frame_s, 0.0, float(M))

    # 2. Colour scales: levels are shared by all but the errors.
    def picture(patches: np.ndarray) -> np.ndarray:  # (N, M, W) side by side in time, in dB
        return patches.transpose(1, 0, 2).reshape(M, N * W) / scale

    level: dict[str, Any] = {
        "cmap": SCALES[0],
        "aspect": "auto",
        "origin": "lower",
        "extent": extent,
    }
    level |= dict(zip(("vmin", "vmax"), np.percentile(picture(original), (1.0, 99.9)), strict=True))
    errors = {
        ratio: np.abs(reconstructions[f"reconstructed_{ratio}"] - original) for ratio in ratios
    }
    hidden = {ratio: reconstructions[f"masked_{ratio}"].astype(bool) for ratio in ratios}
    seen = np.concatenate([errors[ratio][hidden[ratio]].ravel() for ratio in ratios])
    seen = seen[np.isfinite(seen)]
    worst = float(np.percentile(seen, 99.0)) / scale if seen.size else 1.0
    difference: dict[str, Any] = {**level, "cmap": SCALES[1], "vmin": 0.0, "vmax": max(worst, 1e-6)}

    # 3. The pictures.
    levels = strips[0].imshow(picture(original), **level)
    name = str(
        facts.get("title") or facts.get("clip", "clip")
    )  # a $ in a song's title is no formula
    strips[0].set_title(
        f"Original: {name}", loc="left", fontsize=11, fontweight="bold", parse_math=False
    )
    strips[0].set_ylabel("original")
    for index, ratio in enumerate(ratios):
        given, filled, missed = strips[1 + 3 * index : 4 + 3 * index]
        mask, output = hidden[ratio], reconstructions[f"reconstructed_{ratio}"]
        given.imshow(picture(original), **level)
        _cover(given, mask, W * frame_s, M, facecolor="#d4d4d4", hatch="////", edgecolor="#9c9c9c")
        filled.imshow(picture(np.where(mask[:, None, None], output, original)), **level)
        errors_shown = missed.imshow(picture(errors[ratio]), **difference)
        _cover(missed, ~mask, W * frame_s, M, facecolor="white")
        given.set_title(
            "\n"
            + _ratio_title(ratio, mask, errors[ratio], scale)
            + _reference_title(original, mask),
            loc="left",
            fontsize=11,
            fontweight="bold",
        )
        for axes, name in ((given, "given"), (filled, "filled in"), (missed, "error")):
            axes.set_ylabel(name)
    # 4. The axes.
    for axes in strips:
        _label_bands(axes, band_hz, (1000,) if axes.get_ylabel() == "error" else (200, 1000, 4000))
        axes.tick_params(labelbottom=axes is strips[-1], bottom=axes is strips[-1])
    strips[-1].set_xlabel("Time (s)\n")  # the empty line keeps the colour scales away
    figure.set_layout_engine("constrained", h_pad=0.012, hspace=0.0)
    figure.supylabel("Frequency (mel scale)", fontsize=10)
    for column, (image, label) in enumerate(
        ((levels, "Level (dB re full scale)"), (errors_shown, "Absolute error (dB)"))
    ):
        figure.colorbar(
            image, cax=figure.add_subplot(grid[-1, column]), orientation="horizontal", extend="both"
        ).set_label(label)
    return figure


def _check_reconstructions(
    reconstructions: Mapping[str, np.ndarray], facts: Mapping[str, str]
) -> tuple[list[str], float, float, list[float]]:
    ratios = [
        name.removeprefix("masked_") for name in reconstructions if name.startswith("masked_")
    ]
    try:
        N, M, W = reconstructions["original"].shape
        scale, frame_s, band_hz = (
            float(facts["scale"]),
            float(facts["frame_s"]),
            [float(hz) for hz in json.loads(facts["band_hz"])],
        )
        shapes = [
            (
                reconstructions[f"masked_{ratio}"].shape,
                reconstructions[f"reconstructed_{ratio}"].shape,
            )
            for ratio in ratios
        ]
        ratios.sort(key=float)
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise RequestError(
            f"reconstructions are incomplete ({error!r}): expected what read_reconstructions returns."
        ) from error
    if not ratios or len(band_hz) != M or any(shape != ((N,), (N, M, W)) for shape in shapes):
        raise RequestError(
            f"reconstructions do not fit: expected arrays ({N}, {M}, {W}) for each mask ratio, and {M} values of band_hz."
        )
    return ratios, scale, frame_s, band_hz


def _ratio_title(ratio: str, mask: np.ndarray, error: np.ndarray, scale: float) -> str:
    title = f"{100 * float(ratio):g} % masked: {int(mask.sum())} of {len(mask)} patches"
    if not mask.any():
        return title
    mse = float(np.mean(np.square(error[mask], dtype=np.float64)))
    return (
        f"{title}, filled in with an error of {math.sqrt(mse) / scale:.1f} dB RMSE (MSE {mse:.4f})"
    )


def _reference_title(original: np.ndarray, mask: np.ndarray) -> str:
    """Second line of a title: the MSE of predictors that need no model."""
    found = references.untrained_mse(original, mask)
    words = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items())
    return f"\nMSE without a model: {words}" if words else ""


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
