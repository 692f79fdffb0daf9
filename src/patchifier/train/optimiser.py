"""AdamW and learning-rate schedules (paper 4.4)."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from patchifier.config import TrainingConfig


def make_optimiser(
    model: nn.Module, config: TrainingConfig, rates: Mapping[str, float]
) -> torch.optim.AdamW:
    """AdamW (4.4), weight decay on matrices and kernels only, learning rates by name's prefix."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next(
                (rate for prefix, rate in rates.items() if name.startswith(prefix)),
                config.learning_rate,
            )
            table = name.endswith(("positions", "places", "distances.numbers", "cls", "mask_token"))
            decay = 0.0 if parameter.ndim < 2 or table else config.weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    rows = [
        {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(rows, fused=True)


def rate_factor(step: int, total: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate at a step."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "trapezoid":
        return min(1.0, (total - step) / max(1, total - config.flat_steps(total)))
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))
