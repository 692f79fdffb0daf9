"""The paper's Figure 1, drawn from the model: every shape is that of a real forward pass."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle
from tools.figures.style import BLUE, GREEN, GREY, RED, SKY, save

from patchifier import audio, checkpoint, datasets, spectrogram
from patchifier.nn.model import Head
from patchifier.seeding import generator, random_masking

CLIP = "warzone2100_00"
SHOWN = 10  # of the 25 patches
PALE = {"extractor": "#e3eef6", "bottleneck": "#fdf1dc", "decoder": "#e0f2ec"}
MASKED = "#bfe5d7"


@dataclass(frozen=True)
class Pass:
    """What goes through the model: pictures and the shape after each module.

    Parameters
    ----------
    log_mel : ndarray, shape (M, N * W)
    filled : ndarray, shape (M, N * W)
        The same, masked patches predicted.
    mask : ndarray, shape (N,), bool
    down, up : list of tuple of int
        Shapes of the feature maps of one patch.
    facts : dict of str
        Short texts about bottleneck, alignment and head.
    """

    log_mel: np.ndarray
    filled: np.ndarray
    mask: np.ndarray
    down: list[tuple[int, ...]]
    up: list[tuple[int, ...]]
    facts: dict[str, str]


def run() -> Pass:
    """Send a bundled clip through patchifier-paper and record the shapes."""
    loaded = checkpoint.load("patchifier-paper")
    model, config = loaded.model.eval(), loaded.config
    (clip,) = [clip for clip in datasets.load("demo").clips if clip.id == CLIP]
    log_mel = spectrogram.log_mel(audio.load(clip.path), config.spectrogram)
    patches = spectrogram.cut(log_mel)[: config.pretrain.n_patches]
    mask = random_masking(generator(0, "mask", 0), np.ones((1, len(patches)), bool), 0.5)
    down: list[tuple[int, ...]] = []
    up: list[tuple[int, ...]] = []
    for module in model.extractor.down:
        module.register_forward_hook(lambda _, given, made: down.append(tuple(made.shape[1:])))
    for module in model.decoder.up:
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, given, made: up.append(tuple(made.shape[1:])))
    given = torch.from_numpy(patches[None])
    with torch.no_grad():
        made = model.reconstruct(given, mask=torch.from_numpy(mask))[0].numpy()
    filled = np.where(mask[0][:, None, None, None], made, patches)
    model_config = config.model
    head = Head(model_config.embed_dim, 10)
    facts = {
        "bottleneck": f"{model_config.n_layers} transformer layers\n{model_config.n_heads} heads, "
        f"width {model_config.embed_dim}",
        "head": f"pooler {head.pooler.in_features} → {head.pooler.out_features}, tanh,\n"
        "linear layer",
        "vector": str(model_config.embed_dim),
        "patch": " × ".join(map(str, patches.shape[2:])),
        "n": str(len(patches)),
        "parts": f"{len(model.extractor.down)} down modules",
        "up": f"{len(up)} × (upsample, convolution)",
    }
    return Pass(_row(patches), _row(filled), mask[0], down, up, facts)


def _row(patches: np.ndarray) -> np.ndarray:
    return np.concatenate(list(patches[:SHOWN, 0]), axis=1)


def make(out: Path) -> None:
    """Write architecture.svg."""
    found = run()
    figure = Figure(figsize=(12.6, 6.25))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 129), ylim=(-1, 63.5))
    axes.axis("off")
    shown = f"{found.facts['patch']} ({SHOWN} of {found.facts['n']} are shown)"
    _strip(axes, found.log_mel, 2, f"log-mel, cut into patches of {shown}", None)
    _strip(axes, found.filled, 88, "the same, with masked patches predicted", found.mask[:SHOWN])
    _cascade(axes, 5, found.down, "extractor", "Feature extractor", found.facts["parts"])
    _cascade(axes, 96, found.up, "decoder", "Decoder", found.facts["up"])
    _vectors(axes, 47, 27, ~found.mask[:SHOWN])
    _box(axes, 47, 36, 40, 9, "bottleneck", f"Bottleneck: {found.facts['bottleneck']}")
    _vectors(axes, 47, 50, np.ones(SHOWN, bool))
    _box(axes, 91.5, 48.2, 11, 6.4, "decoder", "Align\n(MLP)")
    _box(axes, 38, 57, 22, 6, "bottleneck", f"Task head: {found.facts['head']}")
    _arrows(axes)
    _legend(axes)
    save(figure, out / "architecture.svg")


def _strip(axes: Axes, picture: np.ndarray, x: float, title: str, mask: np.ndarray | None) -> None:
    """A spectrogram with lines between its patches; masked ones are framed."""
    width, y, height = 40, 2, 9
    low, high = np.percentile(picture, (1.0, 99.9))
    axes.imshow(
        picture, extent=(x, x + width, y, y + height), origin="lower", aspect="auto",
        cmap="magma", vmin=low, vmax=high, zorder=1,
    )  # fmt: skip
    for index in range(SHOWN):
        left = x + width * index / SHOWN
        framed = mask is not None and mask[index]
        style = (
            {"edgecolor": GREEN, "linewidth": 2.2, "zorder": 4}
            if framed
            else {"edgecolor": "white", "zorder": 3}
        )
        axes.add_patch(Rectangle((left, y), width / SHOWN, height, fill=False, **style))
    axes.text(x + width / 2, y - 1.4, title, ha="center", va="center", fontsize=10)


def _cascade(
    axes: Axes, x: float, shapes: list[tuple[int, ...]], part: str, title: str, note: str
) -> None:
    """Feature maps as blocks: height and width of a block follow the map's."""
    axes.add_patch(_rounded(x - 3, 15, 34, 22, PALE[part]))
    axes.text(x + 14, 34.6, title, ha="center", fontsize=12, fontweight="bold")
    axes.text(x + 14, 32.4, note, ha="center", fontsize=9)
    step = 30 / len(shapes)
    for index, (channels, rows, columns) in enumerate(shapes):
        left, height, depth = (
            x - 1 + index * step,
            1 + 1.6 * np.log2(rows),
            0.35 * np.log2(channels + 1),
        )
        bottom, width = 24.5 - height / 2, 0.9 + 0.45 * np.log2(columns)
        corners = [
            (left, bottom),
            (left, bottom + height),
            (left + depth, bottom + height + depth / 2),
        ]
        corners += [
            (left + depth + width, bottom + height + depth / 2),
            (left + depth + width, bottom + depth / 2),
            (left + width, bottom),
        ]
        axes.add_patch(
            Polygon(
                corners,
                facecolor="#9db8cc" if part == "extractor" else "#8fc7b2",
                edgecolor="white",
            )
        )
        axes.add_patch(
            Rectangle(
                (left, bottom),
                width,
                height,
                facecolor=BLUE if part == "extractor" else GREEN,
                edgecolor="white",
            )
        )
        axes.text(
            left + step / 2 - 0.6,
            17.2,
            f"{channels}\n{rows}×{columns}",
            ha="center",
            va="center",
            fontsize=7.5,
        )


def _vectors(axes: Axes, x: float, y: float, known: np.ndarray) -> None:
    """CLS, then a square for each patch: pale where the mask token stands."""
    for index in range(len(known) + 1):
        colour = SKY if index == 0 else GREEN if known[index - 1] else MASKED
        axes.add_patch(
            Rectangle((x + 3.64 * index, y), 2.8, 2.8, facecolor=colour, edgecolor="white")
        )


def _box(axes: Axes, x: float, y: float, width: float, height: float, part: str, text: str) -> None:
    axes.add_patch(_rounded(x, y, width, height, PALE[part]))
    title, _, rest = text.partition(": ")
    axes.text(
        x + width / 2, y + height * (0.72 if rest else 0.5), title, ha="center", va="center",
        fontsize=11, fontweight="bold",
    )  # fmt: skip
    axes.text(x + width / 2, y + height * 0.33, rest, ha="center", va="center", fontsize=9)


def _rounded(x: float, y: float, width: float, height: float, colour: str) -> FancyBboxPatch:
    return FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=1.2", facecolor=colour,
        edgecolor=GREY, linewidth=0.8,
    )  # fmt: skip


PATHS = {  # corners of each path; the last has the arrow
    "I": [[(17, 11.2), (17, 15)], [(36, 21), (93, 21)], [(111, 15), (111, 11.2)]],
    "II": [
        [(22, 11.2), (22, 15)],
        [(36, 28.4), (46.4, 28.4)],
        [(67, 30.2), (67, 36)],
        [(67, 45), (67, 49.6)],
        [(87.6, 51.4), (91.5, 51.4)],
        [(102.5, 51.4), (111, 51.4), (111, 37)],
        [(115, 15), (115, 11.2)],
    ],
    "task": [[(48.4, 53.2), (48.4, 57)]],
}
STYLES = {"I": (RED, "--"), "II": ("black", "-"), "task": (GREEN, ":")}


def _arrows(axes: Axes) -> None:
    for name, paths in PATHS.items():
        colour, line = STYLES[name]
        for path in paths:
            xs, ys = zip(*path, strict=True)
            axes.plot(xs[:-1], ys[:-1], color=colour, linestyle=line, linewidth=2.2, zorder=5)
            style = {"arrowstyle": "-|>", "color": colour, "linestyle": line, "linewidth": 2.2}
            axes.annotate(
                "",
                xy=path[-1],
                xytext=path[-2],
                arrowprops=style | {"shrinkA": 0, "shrinkB": 0},
                zorder=5,
            )


def _legend(axes: Axes) -> None:
    words = {
        "I": "stage I: autoencode single patches",
        "II": "stage II: predict masked patches",
        "task": "tasks: CLS goes to a head",
    }
    for row, (name, text) in enumerate(words.items()):
        colour, line = STYLES[name]
        axes.plot([2, 8], [52 - 2.6 * row] * 2, color=colour, linestyle=line, linewidth=2.2)
        axes.text(9, 52 - 2.6 * row, text, va="center", fontsize=9)
    squares = {SKY: "CLS token", GREEN: "vector of a patch", MASKED: "mask token"}
    for row, (colour, text) in enumerate(squares.items()):
        axes.add_patch(Rectangle((2, 43.2 - 2.6 * row), 1.8, 1.8, facecolor=colour))
        axes.text(5, 44.1 - 2.6 * row, text, va="center", fontsize=9)
