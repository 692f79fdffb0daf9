"""What an interval says: twenty tests of one classifier, at four numbers of clips."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tools.figures.style import BLUE, GREY, RED, save

from patchifier.statistics import bootstrap

TRUE = 0.5  # accuracy over all music there is
SIZES = (28, 60, 112, 1000)
TESTS = 20


def make(out: Path) -> None:
    """Write intervals.svg."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, len(SIZES), sharey=True)
    for axes, (n, found) in zip(panels, tests().items(), strict=True):
        for place, (value, low, high) in enumerate(found):
            missed = not low <= TRUE <= high
            style = (
                {"color": RED, "linewidth": 2.5} if missed else {"color": BLUE, "linewidth": 1.5}
            )
            axes.plot([100 * low, 100 * high], [place, place], **style)
            axes.plot(
                100 * value, place, "D" if missed else "o", color=style["color"], markersize=4
            )
        axes.axvline(100 * TRUE, color=GREY, linestyle=":")
        axes.set(title=f"{n:,} clips", xlabel="accuracy, %", xlim=(20, 80), yticks=[])
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_ylabel("20 tests")
    save(figure, out / "intervals.svg")


def tests() -> dict[int, list[tuple[float, float, float]]]:
    """Accuracy and 95 % interval of each test, by number of clips."""
    chance = np.random.default_rng(0)
    return {n: [_test(chance.random(n) < TRUE) for _ in range(TESTS)] for n in SIZES}


def rows() -> list[str]:
    """Rows of the table in docs/concepts/intervals.md, which a test compares with these."""
    lines = []
    for n, found in tests().items():
        width = 100 * float(np.mean([high - low for _, low, high in found]))
        lowest, highest = (100 * pick([value for value, _, _ in found]) for pick in (min, max))
        n_missed = sum(not low <= TRUE <= high for _, low, high in found)
        lines.append(f"| {n:,} | {width:.1f} | {lowest:.1f} to {highest:.1f} | {n_missed} |")
    return lines


def _test(right: np.ndarray) -> tuple[float, float, float]:
    """Accuracy of one test, and its 95 % interval."""
    groups = list(map(str, range(len(right))))
    low, high = bootstrap(groups, lambda clips: right[clips].mean(), draws=300)
    return float(right.mean()), low, high
