"""AdamW (paper 4.4) and Muon, and learning-rate schedules."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from patchifier.config import PretrainConfig, TrainingConfig

MOMENTUM = 0.95
# Coefficients of five Newton-Schulz iterations (Jordan et al. 2024): they bring singular values
# from 0.01 up to about 1 quickly, and end between 0.7 and 1.2.
ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
ADAMW_RMS = 0.2  # root mean square of AdamW's updates in units of the learning rate


class Muon(torch.optim.AdamW):
    """Muon for groups with `matrices`, AdamW for the others.

    The update of a matrix is the orthogonal matrix nearest to its momentum (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/), at the root mean square of AdamW's updates (Liu et
    al. 2025, arXiv:2502.16982): learning rate and weight decay mean the same for both. A kernel is
    a matrix with a row for each output channel. A matrix with three times as many rows as columns
    is taken as those of query, key and value.

    Parameters
    ----------
    groups : list of dict
        Groups of parameters; `matrices` is True or False in each.
    dtype : torch.dtype
        Of the iterations.
    """

    def __init__(self, groups: list[dict[str, Any]], *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(groups, fused=True)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; `closure` is for other optimisers."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["matrices"]]
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"] and group["lr"] > 0:
                self._move(group)
        return loss

    def _move(self, group: dict[str, Any]) -> None:
        """Update the matrices and kernels of a group; those of one shape together."""
        moving = [parameter for parameter in group["params"] if parameter.grad is not None]
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter in moving:
            update = self._momentum(parameter)
            by_shape.setdefault(update.shape[1:], []).append((parameter, update))
        for (rows, columns), found in by_shape.items():
            updates = orthogonalise(torch.cat([update for _, update in found]))
            scale = ADAMW_RMS * math.sqrt(max(rows, columns))
            sizes = [len(update) for _, update in found]
            for (parameter, _), update in zip(found, updates.split(sizes), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Nesterov's momentum of a parameter as matrices (B, R, C)."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW expects it in a loaded state
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = gradient.lerp(momentum, MOMENTUM).flatten(1)  # (rows, columns)
        n_matrices = 3 if len(update) == 3 * update.shape[1] else 1  # query, key and value
        return update.unflatten(0, (n_matrices, -1)).to(self.dtype)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices (B, R, C) near 1, by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).contiguous()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def make_optimiser(
    model: nn.Module,
    config: TrainingConfig,
    rates: Mapping[str, float],
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.optim.AdamW:
    """Make the optimiser of the parameters that learn.

    Weight decay is on matrices and kernels only, learning rates are by name's prefix, `dtype` is
    that of Muon's iterations.
    """
    muon = config.optimiser == "muon"
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = (rate for prefix, rate in rates.items() if name.startswith(prefix))
            rate = next(own, config.learning_rate)
            table = name.endswith(("positions", "places", "cls", "mask_token"))
            matrix = parameter.ndim >= 2 and not table
            decay = config.weight_decay if matrix else 0.0
            groups.setdefault((rate, decay, muon and matrix), []).append(parameter)
    rows = [
        {
            "params": parameters,
            "lr": rate,
            "peak": rate,
            "weight_decay": decay,
            "matrices": matrices,
        }
        for (rate, decay, matrices), parameters in groups.items()
    ]
    return Muon(rows, dtype=dtype) if muon else torch.optim.AdamW(rows, fused=True)


def bf16_optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer | None:
    """Make the optimiser that multiplies matrices in bf16, for the self-test; None if none does."""
    if config.optimiser == "muon":
        return make_optimiser(model, config, {}, dtype=torch.bfloat16)
    return None


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


def extractor_rates(settings: PretrainConfig) -> dict[str, float]:
    """Learning rate of the extractor in stage II by prefix of its parameters' names."""
    rate = settings.extractor_lr_scale * settings.stage_two.learning_rate
    return {"extractor.": rate, "model.extractor.": rate}
