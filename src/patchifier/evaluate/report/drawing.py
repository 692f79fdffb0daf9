"""What every figure shares: new figures and axes, files, and pictures inside a page.

Matplotlib is imported by the first figure.
"""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchifier.config import RequestError
from patchifier.evaluate.report.folders import RunFolder
from patchifier.extras import need
from patchifier.io import plain_stem, replaced_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALES = ("magma", "cividis")  # of level and of error: even in lightness, safe for the colour-blind


def new_figure(height: float) -> "Figure":
    """Make an empty figure 10 inches wide: 10 points are then as large as the page's text."""
    return need("matplotlib.figure").Figure(figsize=(10.0, height), layout="constrained")


def tidy(axes: "Axes", title: str, *, x: str = "", y: str = "") -> None:
    """Set title and axis labels, hide the upper and right spines, and draw a pale grid."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def unit_of(metric: str) -> tuple[float, str]:
    """Factor and name with which a score is drawn."""
    names = {"r2": "R²", "roc_auc": "ROC AUC"}
    return (100.0, f"{metric} (%)") if metric == "accuracy" else (1.0, names.get(metric, metric))


def save_figure(figure: "Figure", path: Path | str) -> None:
    """Write a figure atomically as .png (150 dpi), .svg or .pdf; the same figure, the same file."""
    import matplotlib

    path = Path(path)
    metadata = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    if path.suffix not in metadata:
        raise RequestError(
            f"cannot write a figure to {path}: the name ends in {path.suffix!r}, expected .png, "
            ".svg or .pdf."
        )
    with replaced_file(path) as new, matplotlib.rc_context({"svg.hashsalt": "patchifier"}):
        figure.savefig(new, format=path.suffix[1:], dpi=150, metadata=metadata[path.suffix])


def stem_of(name: str, run: RunFolder, *, several: bool = True) -> str:
    """Name of a figure's files; with the run's folder where there are several."""
    folder = str(run.facts.get("folder", run.path.name))
    return f"{name}-{plain_stem(folder)}" if several else name


def picture(
    figure: "Figure", path: Path, alt: str, *, pixels: bool = False, **facts: Any
) -> dict[str, Any]:
    """Save a figure as PNG and SVG; return alt text, source (a data URI) and facts for the page.

    If the figure is mostly `pixels`, the page holds the PNG in 256 colours instead of the SVG.
    """
    png, svg = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")
    save_figure(figure, png)
    figure.set_layout_engine("none")  # found already: to find it again would double the time
    # The last bits of positions differ from run to run, and names inside an SVG are made from them.
    for axes in figure.axes:
        axes.set_position(np.round(axes.get_position().bounds, 9).tolist())
    save_figure(figure, svg)
    kind, content = ("png", _few_colours(png)) if pixels else ("svg+xml", svg.read_bytes())
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"alt": alt, "source": source, **facts}


def _few_colours(path: Path) -> bytes:
    """Read a PNG and write it in 256 colours, those of the two colour scales and greys.

    A third of the size.
    """
    from matplotlib import colormaps
    from PIL import Image  # matplotlib writes its PNGs with it

    counts = {SCALES[0]: 128, SCALES[1]: 96, "gray": 32}
    colours = np.concatenate(
        [
            colormaps[name](np.linspace(0.0, 1.0, count), bytes=True)[:, :3]
            for name, count in counts.items()
        ]
    )
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.tobytes())
    file = io.BytesIO()
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    few.save(file, format="png")
    return file.getvalue()
