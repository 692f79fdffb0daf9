"""Parts of a page: tables that scroll, figures inside the page, and what others have published."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from patchifier.evaluate.report.figures import SCALES, save_figure
from patchifier.evaluate.report.tables import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FILTERED = "443/197/290"
PUBLISHED = (  # system, trained on, supervision, pooling, GTZAN split, GTZAN, EmoMusic
    (
        "Patchifier",
        "MagnaTagATune, 16,000",
        "none; linear",
        "CLS",
        "not stated",
        "72.3 <sup>a</sup>",
        "48.6",
    ),
    (
        "CLMR",
        "MagnaTagATune",
        "none; JukeMIR’s",
        "mean of frames",
        _FILTERED,
        "68.6",
        "56.8 <sup>b</sup>",
    ),
    (
        "JukeMIR",
        "1.2 M songs",
        "none; JukeMIR’s",
        "mean over 25 s",
        _FILTERED,
        "79.7",
        "66.9 <sup>c</sup>",
    ),
    ("MuLaP", "audio with text", "text; not seen", "not seen", "–", "–", "58.5 <sup>d</sup>"),
    ("S3T", "not seen", "none; linear", "not seen", "not seen", "81.1", "–"),
    ("MusiCNN", "Million Song tags", "tags; JukeMIR’s", "mean and max", _FILTERED, "79.0", "58.5"),
    ("MFCC (120)", "nothing", "–; JukeMIR’s", "mean and deviation", _FILTERED, "44.8", "37.2"),
    ("Chroma (72)", "nothing", "–; JukeMIR’s", "mean and deviation", _FILTERED, "32.8", "17.6"),
)


def published_html() -> str:
    """Lay out what others have published, in a block of its own, with the errors of the paper's Table 1."""
    head = (
        "system",
        "trained on",
        "labels; probe",
        "pooling",
        "GTZAN split",
        "GTZAN (%)",
        "EmoMusic (R²)",
    )
    return f"""<p><b>Published figures, never ranked with ours.</b> Other data, other clips, other hands.
GTZAN’s split 443/197/290 is the fault-filtered one; EmoMusic is tested on JukeMIR’s 125 clips, R² times 100.</p>
{wide(head, f"<tbody class=text>{body(PUBLISHED)}</tbody>")}
<p class="small"><sup>a</sup> The paper does not state the split. No k of 290 clips gives 72.3 %: a mean of several runs, or another split.<br>
<sup>b</sup> The paper’s Table 1 leaves this cell blank; JukeMIR’s table has 56.8.<br>
<sup>c</sup> The paper’s Table 1 prints 69.9, which is JukeMIR’s four-task average; its EmoMusic R² is 66.9.<br>
<sup>d</sup> As the paper prints it; the same number as JukeMIR’s for MusiCNN, not verified.</p>"""


def wide(heads: Iterable[str], bodies: str) -> str:
    """Make a table that scrolls by itself where the page is narrower, by keyboard too."""
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    return f'<div class="wide" role="group" aria-label="Table" tabindex="0"><table><thead><tr>{head}</tr></thead>{bodies}</table></div>'


def body(rows: Iterable[Sequence[str]]) -> str:
    """Make rows of cells that are HTML already."""
    return "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)


def figure_html(
    figure: "Figure", stem: str, out: Path, *, alt: str, caption: str, pixels: bool = False
) -> str:
    """Save a figure as PNG and SVG, and put the SVG into the page; where it is mostly pixels, the PNG in 256 colours."""
    save_figure(figure, out / f"{stem}.png")
    figure.set_layout_engine(
        "none"
    )  # the layout has been found: finding it again would double the time
    for axes in (
        figure.axes
    ):  # its last bits differ from run to run, and the names inside an SVG are made from them
        axes.set_position(np.round(axes.get_position().bounds, 9).tolist())
    save_figure(figure, out / f"{stem}.svg")
    kind, content = (
        ("image/png", _few_colours(out / f"{stem}.png"))
        if pixels
        else ("image/svg+xml", (out / f"{stem}.svg").read_bytes())
    )
    data = base64.b64encode(content).decode()
    card = f'<div class="card" role="group" aria-label="Figure" tabindex="0"><img alt="{escape(alt)}" src="data:{kind};base64,{data}"></div>'
    return f"<figure>{card}<figcaption>{caption}</figcaption></figure>"


def _few_colours(path: Path) -> bytes:
    """Read a PNG and write it in 256 colours, those of the two colour scales and greys: a third of the size."""
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
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE).save(
            file, format="png"
        )
    return file.getvalue()
