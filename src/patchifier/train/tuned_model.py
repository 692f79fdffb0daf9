"""A model in fine-tuning: which modules are trained.

Outputs of frozen modules are computed once.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config
from patchifier.io import Progress, silent
from patchifier.nn.fast import accelerate
from patchifier.nn.masking import pad_windows
from patchifier.nn.model import Head, Patchifier
from patchifier.nn.pooling import pool
from patchifier.tasks import Task
from patchifier.windows import cut_windows

WINDOWS = 32  # in a batch of predictions

METHODS: dict[str, frozenset[str]] = {
    "linear-probe": frozenset({"head"}),
    "freeze-extractor": frozenset({"bottleneck", "head"}),
    "freeze-bottleneck": frozenset({"extractor", "head"}),
    "full": frozenset({"extractor", "bottleneck", "head"}),
}
Input = Literal["patches", "vectors", "pooled"]  # input of the first trained module


class TunedModel(nn.Module):
    """A pre-trained model with a head, some modules of which are trained."""

    def __init__(
        self, start: Checkpoint, task: Task, method: str, config: Config, seed: int
    ) -> None:
        super().__init__()
        self.learns = METHODS[method]
        self.input: Input = "vectors" if "bottleneck" in self.learns else "pooled"
        if "extractor" in self.learns:
            self.input = "patches"
        self.pooling = config.finetune.pooling
        self.model = accelerate(Patchifier(start.config))
        self.model.load_state_dict(start.model.state_dict())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = Head(config.model.embed_dim, len(task.names))
        for name, part in self.model.named_children():
            part.requires_grad_(name in self.learns)
        self.train(False)

    def train(self, mode: bool = True) -> "TunedModel":
        """Set training mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for name, part in self.model.named_children():
            part.train(mode and name in self.learns)
        return self

    def forward(self, values: Tensor, valid: Tensor) -> Tensor:
        """Outputs (B, C) of patches (B, N, 1, M, W), vectors (B, N, D) or pooled vectors (B, D)."""
        return self.head(values if self.input == "pooled" else self.pooled(values, valid))

    def pooled(self, values: Tensor, valid: Tensor) -> Tensor:
        """Pooled vectors (B, D) of patches or vectors."""
        vectors = self.model.extract(values, valid) if values.ndim == 5 else values
        sequence = self.model.bottleneck(vectors, valid=valid)[-1]  # (B, 1 + N, D)
        return pool(sequence, valid, self.pooling)


class Inputs:
    """Windows of clips: outputs of the frozen modules, or patches where the extractor is trained.

    Outputs are computed once, when they are first needed, so the module must not be trained or
    moved.
    """

    def __init__(self, module: TunedModel, data: Cache, config: Config) -> None:
        self.module, self.data, self.config, self.kind = module, data, config, module.input
        self.stored: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def windows(self, index: int) -> list[Tensor]:
        """Windows of a clip: patches (N, 1, M, W), vectors (N, D) or a pooled vector (D,) each."""
        if index in self.stored:
            return self.stored[index]
        cut = cut_windows(self.data.array(index), self.config, silence=False)
        windows = [torch.from_numpy(window) for window in cut]
        if self.kind == "patches":
            return windows
        patches, valid = pad_windows(windows, self.config.spectrogram.silence)
        vectors = self.module.model.extract(patches, valid)  # (K, N, D)
        rows: Any = self.module.pooled(vectors, valid) if self.kind == "pooled" else vectors
        if self.kind == "vectors":
            rows = [row[: len(window)] for row, window in zip(rows, windows, strict=True)]
        self.stored[index] = list(rows)
        return self.stored[index]

    def draw(self, indices: np.ndarray, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw one window of each clip; returns windows and which patches are valid (B, N)."""
        windows = [self.windows(int(index)) for index in indices]
        pairs = zip(windows, chance.random(len(windows)), strict=True)
        return self.stack([choices[int(place * len(choices))] for choices, place in pairs])

    def stack(self, windows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Stack windows, with padding where they differ in length."""
        if self.kind == "pooled":
            return torch.stack(windows), torch.ones(len(windows), 1, dtype=torch.bool)
        return pad_windows(windows, self.config.spectrogram.silence)


@torch.no_grad()
def predict(
    module: nn.Module,
    inputs: Inputs,
    indices: np.ndarray,
    *,
    activation: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    progress: Progress = silent,
) -> Tensor:
    """Return activated outputs (n, C) of clips, each the mean over its windows.

    Shows clips read and clips in all.
    """
    windows = []
    for index in indices:
        windows.append(inputs.windows(int(index)))
        progress(len(windows), len(indices), "")
    flat = [window for choices in windows for window in choices]
    device = next(module.parameters()).device
    outputs = []
    for start in range(0, len(flat), WINDOWS):
        values, valid = inputs.stack(flat[start : start + WINDOWS])
        outputs.append(activation(module(values.to(device), valid.to(device)).float().cpu()))
    by_clip = torch.cat(outputs).split([len(choices) for choices in windows])
    return torch.stack([part.mean(0) for part in by_clip])
