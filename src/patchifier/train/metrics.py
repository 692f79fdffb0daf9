"""Loggers of metrics.csv and validation.csv: one row for each step."""

import contextlib
import csv
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchifier.config import RequestError, TrainingConfig
from patchifier.io import Progress, write_rows
from patchifier.train.distributed import precision_of
from patchifier.train.run import is_first

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FETCH_STEPS = 50  # between fetches of the losses from a GPU


class CSVLogger:
    """Appends rows to a CSV file, and to TensorBoard if it is installed.

    Drops rows after the step that a run resumes from.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path if is_first() else Path(os.devnull)
        kept = []
        if step and path.exists() and is_first():
            with path.open(newline="", encoding="utf-8") as stream:
                rows = [row for row in csv.DictReader(stream) if row["step"].isdigit()]
            kept = [row for row in rows if int(row["step"]) <= step]
        self.last_step = int(kept[-1]["step"]) if kept else -1
        self.columns: list[str] = list(kept[0]) if kept else []
        path.parent.mkdir(parents=True, exist_ok=True)
        if kept:
            write_rows(path, kept)
        self.stream = self.path.open(
            "a" if kept else "w", newline="", encoding="utf-8", buffering=1
        )
        self.board: Any = None
        if is_first():
            with contextlib.suppress(ImportError):  # it is not installed
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Append a row to the CSV and TensorBoard; columns of an existing CSV stay as they are."""
        self.last_step = step
        writer = csv.writer(self.stream)
        if not self.columns:
            self.columns = ["step", *figures]
            writer.writerow(self.columns)
        writer.writerow(
            [step, *(f"{figures.get(name, math.nan):.6g}" for name in self.columns[1:])]
        )
        for name, value in figures.items():
            if self.board:
                self.board.add_scalar(f"{self.path.stem}/{name}", value, step)

    def __enter__(self) -> "CSVLogger":
        """Return the logger."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.stream.close()
        if self.board:
            self.board.close()


class MetricBuffer:
    """Buffers losses on the device and writes them to metrics.csv: every 50 steps on a GPU."""

    def __init__(
        self,
        clips: int,
        config: TrainingConfig,
        fabric: "Fabric",
        logger: CSVLogger,
        progress: Progress,
        total: int,
        *,
        describe: Callable[[int], str] | None = None,
    ) -> None:
        self.clips, self.config, self.fabric = clips, config, fabric
        self.logger, self.progress, self.total = logger, progress, total
        self.describe = describe
        self.waiting: list[tuple[int, float, Tensor]] = []
        self.limit = 1 if fabric.device.type == "cpu" else FETCH_STEPS
        self.since_s = 0.0

    def start(self) -> None:
        """Start the clock of the first buffered step.

        Time between steps, such as validation, is not counted.
        """
        if not self.waiting:
            self.since_s = time.monotonic()

    def add(self, step: int, rate: float, result: Tensor) -> None:
        """Add the learning rate of a step and, on the device, its loss and gradient norm (2,)."""
        self.waiting.append((step, rate, result))
        if len(self.waiting) >= self.limit:
            self.fetch()

    def fetch(self) -> None:
        """Wait for the device and write a row for each buffered step."""
        if not self.waiting:
            return
        results = torch.stack([result for _, _, result in self.waiting])  # (n, 2)
        mean = self.fabric.all_reduce(results, reduce_op="mean")
        assert isinstance(mean, Tensor)
        values = mean.tolist()
        clips_per_s = len(self.waiting) * self.config.batch_size / (time.monotonic() - self.since_s)
        for (step, rate, _), (loss, norm) in zip(self.waiting, values, strict=True):
            self._require_finite(step, loss, norm)
            epoch = step * self.config.batch_size / self.clips
            speed = {"epoch": epoch, "clips_per_s": clips_per_s, "learning_rate": rate}
            self.logger.write(step, {**speed, "loss": loss, "gradient_norm": norm})
        self.progress(step, self.total, f"loss {loss:.4g}, {clips_per_s:.1f} clips/s")
        self.waiting = []

    def _require_finite(self, step: int, loss: float, norm: float) -> None:
        """Refuse a loss or gradient norm that is not finite.

        Without clipping the norm is NaN and not checked.
        """
        if math.isfinite(loss) and (math.isfinite(norm) or not self.config.max_grad_norm):
            return
        what = f"the norm of the gradient is {norm}"
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        precision = {"32-true": "float32", "bf16-mixed": "bf16", "64-true": "float64"}.get(
            precision_of(self.fabric), "another precision"
        )
        advice = ["precision 32"] if precision == "bf16" else []
        advice += [f"a lower learning_rate ({self.config.learning_rate:g})"]
        advice += [] if self.config.max_grad_norm else ["max_grad_norm 1"]
        described = f"{self.describe(step - 1)} Otherwise" if self.describe else "What to"
        raise RequestError(
            f"{what} at step {step}, in {precision}. {described} try: {', '.join(advice)}."
        )
