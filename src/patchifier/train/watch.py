"""Curves of a run, read from its files while it trains; torch is not imported."""

import csv
import io
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.io import parse_json, read_text, require_file
from patchifier.jobs import has_state, is_worked_on

FILES = ("metrics.csv", "validation.csv")
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 60
ENDED = ("finished", "interrupted", "failed", "stopped")
STOPPED = "stopped without an end: go on with --resume"
UNSAVED = "stopped without an end, no state saved yet: --resume starts again"


@dataclass
class Curves:
    """Columns of a CSV file that grows, read from where the last call ended.

    Attributes
    ----------
    path : Path
    columns : dict
        Values of each column, by name; "step" is one of them.
    """

    path: Path
    columns: dict[str, list[float]] = field(default_factory=dict)
    offset: int = 0

    def update(self) -> None:
        """Read new whole lines. A file that became shorter, as when a run resumes, is read anew."""
        require_file(self.path)
        if self.path.stat().st_size < self.offset:
            self.columns, self.offset = {}, 0
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        for row in csv.reader(io.StringIO(whole.decode("utf-8", "replace"))):
            if not self.columns:
                self.columns = {name: [] for name in row}
            elif len(row) == len(self.columns):
                for values, cell in zip(self.columns.values(), row, strict=True):
                    values.append(_number(cell))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


class Watched:
    """A run folder that is watched; one that is no run is refused.

    Examples
    --------
    >>> Watched("nowhere")
    Traceback (most recent call last):
    patchifier.config.RequestError: nowhere is not a run (no run.json): give what --out named.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise RequestError(f"{path} is not a run (no run.json): give what --out named.")
        self.curves: dict[Path, Curves] = {}

    def update(self) -> None:
        """Read what was written since the last call."""
        for name in FILES:
            for file in sorted(self.path.rglob(name)):
                self.curves.setdefault(file, Curves(file)).update()

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says; it may be replaced at any moment."""
        try:
            return dict(parse_json(read_text(self.path / "run.json")))
        except (OSError, ValueError, TypeError) as error:
            raise RequestError(f"{self.path / 'run.json'} cannot be read ({error}).") from error

    @property
    def state(self) -> str:
        """State by run.json; "stopped" for a run that was killed, which holds its lock no more."""
        state = str(self.facts.get("state", "unknown"))
        return "stopped" if state == "running" and is_worked_on(self.path) is False else state

    @property
    def ended(self) -> bool:
        """Whether the run is no longer under way."""
        return self.state in ENDED

    def seconds(self, state: str) -> float:
        """Seconds of a run in this state; of one that runs, to this moment."""
        written = float(self.facts.get("seconds", 0.0))
        if state != "running":
            return written
        return written + max(0.0, time.time() - (self.path / "run.json").stat().st_mtime)

    def latest(self) -> dict[str, dict[str, float]]:
        """Last row of each file, by its path below the run."""
        return {
            file.relative_to(self.path).as_posix(): {
                name: values[-1] for name, values in curves.columns.items() if values
            }
            for file, curves in self.curves.items()
        }

    def text(self, width: int = WIDTH) -> str:
        """Lay the curves out for a terminal: a line for each column, its last value behind it."""
        state = self.state
        stopped = STOPPED if has_state(self.path) else UNSAVED
        words = stopped if state == "stopped" else state
        lines = [f"{self.path}: {words}, {self.seconds(state):.0f} s"]
        for file, curves in self.curves.items():
            place, steps = file.relative_to(self.path).as_posix(), curves.columns.get("step", [])
            lines += ["", f"{place}, {_extent(steps)}"]
            lines += list(_rows(curves, width))
        return "\n".join(lines if self.curves else [*lines, "no step was written yet."])


def _extent(steps: Sequence[float]) -> str:
    """Say how many rows a file has, and to which step."""
    if not steps:
        return "no row yet"
    return f"{len(steps)} row{'' if len(steps) == 1 else 's'} to step {steps[-1]:.0f}"


def _rows(curves: Curves, width: int) -> Iterator[str]:
    for name, values in curves.columns.items():
        finite = [value for value in values if math.isfinite(value)]
        if name not in ("step", "epoch") and finite:
            span = f"{min(finite):.4g} to {max(finite):.4g}"
            yield f"  {name:<28}{sparkline(values, width):<{width}}  {values[-1]:.5g}  ({span})"


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Draw a curve in one line of blocks: means of at most `width` equal parts.

    Examples
    --------
    >>> sparkline([0, 1, 2, 3])
    '▁▃▆█'
    >>> sparkline([1, float("nan"), 2])
    '▁ █'
    """
    count = min(width, len(values))
    edges = [round(part * len(values) / count) for part in range(count + 1)] if count else [0]
    means = []
    for start, end in itertools.pairwise(edges):
        finite = [value for value in values[start:end] if math.isfinite(value)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    known = [mean for mean in means if math.isfinite(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        BLOCKS[round((mean - low) * scale)] if math.isfinite(mean) else " " for mean in means
    )
