"""Muon: what a step does to matrices, kernels and the rest."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from patchifier.config import TrainingConfig
from patchifier.train.checkpointer import Checkpointer, State
from patchifier.train.optimiser import (
    ADAMW_RMS,
    Muon,
    bf16_optimiser,
    make_optimiser,
    orthogonalise,
)
from patchifier.train.self_test import SelfTest, Trial

RATE = 0.01


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_proj_weight = nn.Parameter(torch.randn(24, 8))  # query, key and value
        self.convolution = nn.Conv2d(4, 6, 3)
        self.positions = nn.Parameter(torch.randn(5, 8))


def optimiser_of(model: nn.Module, name: str = "muon", decay: float = 0.0) -> torch.optim.AdamW:
    config = TrainingConfig(optimiser=name, learning_rate=RATE, weight_decay=decay)
    return make_optimiser(model, config, {})


def set_gradients(model: nn.Module, seed: int = 1) -> None:
    draws = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draws)


@pytest.mark.parametrize("shape", [(2, 16, 40), (1, 40, 16), (3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_are_brought_near_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonalise(matrices.to(dtype)).float()
    values = torch.linalg.svdvals(found)
    assert found.shape == shape
    assert values.max() < 1.3
    assert values.median() > 0.6
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    nearest = left @ right
    cosine = (found * nearest).sum() / found.norm() / nearest.norm()
    assert cosine > 0.95


def test_first_update_is_orthogonal_at_adamws_size() -> None:
    model = Small()
    before = model.in_proj_weight.detach().clone()
    optimiser = optimiser_of(model)
    set_gradients(model)
    optimiser.step()
    moved = (model.in_proj_weight.detach() - before).view(3, 8, 8)
    assert model.in_proj_weight.grad is not None
    wanted = (
        -RATE * ADAMW_RMS * math.sqrt(8) * orthogonalise(model.in_proj_weight.grad.view(3, 8, 8))
    )
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-6)
    rms = moved.square().mean().sqrt() / RATE
    assert 0.7 * ADAMW_RMS < rms < 1.2 * ADAMW_RMS


def test_kernel_is_a_matrix_with_a_row_for_each_output_channel() -> None:
    model = Small()
    before = model.convolution.weight.detach().clone()
    optimiser = optimiser_of(model)
    set_gradients(model)
    optimiser.step()
    moved = (model.convolution.weight.detach() - before).flatten(1)  # (6, 36)
    values = torch.linalg.svdvals(moved) / (RATE * ADAMW_RMS * 6)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_vectors_and_positions_move_as_with_adamw() -> None:
    with_muon, with_adamw = Small(), Small()
    for model, name in ((with_muon, "muon"), (with_adamw, "adamw")):
        optimiser = optimiser_of(model, name, decay=0.1)
        for seed in range(3):
            set_gradients(model, seed)
            optimiser.step()
    for name in ("positions", "convolution.bias"):
        assert torch.equal(with_muon.get_parameter(name), with_adamw.get_parameter(name))
    assert not torch.equal(with_muon.in_proj_weight, with_adamw.in_proj_weight)


def test_matrices_decay_and_rate_zero_leaves_them() -> None:
    decayed, plain = Small(), Small()
    for model, decay in ((decayed, 0.5), (plain, 0.0)):
        optimiser = optimiser_of(model, decay=decay)
        set_gradients(model)
        optimiser.step()
    start = Small().in_proj_weight
    torch.testing.assert_close(
        plain.in_proj_weight - decayed.in_proj_weight, RATE * 0.5 * start, rtol=1e-4, atol=1e-6
    )
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    before = plain.in_proj_weight.detach().clone()
    optimiser.step()
    assert torch.equal(plain.in_proj_weight, before)


def test_resumed_run_takes_the_same_steps(tmp_path: Path) -> None:
    whole, stopped, resumed = Small(), Small(), Small()
    one, two, three = optimiser_of(whole), optimiser_of(stopped), optimiser_of(resumed)
    for seed in range(4):
        set_gradients(whole, seed)
        one.step()
        if seed < 2:
            set_gradients(stopped, seed)
            two.step()
    Checkpointer(tmp_path, stopped, two, settings=["settings"]).save(State(step=2))
    assert Checkpointer(tmp_path, resumed, three, settings=["settings"]).load().step == 2
    for seed in (2, 3):
        set_gradients(resumed, seed)
        three.step()
    assert isinstance(three, Muon)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_self_test_examines_the_products_of_muon_alone() -> None:
    def products(name: str) -> int:
        model, test = Small(), SelfTest()
        config = TrainingConfig(optimiser=name, learning_rate=RATE)
        optimiser = bf16_optimiser(model, config)
        loss = lambda model, _: sum(each.square().sum() for each in model.parameters())  # noqa: E731
        assert test.run(Trial(model, loss, [0], optimiser)) == []
        return len(test.reasons)

    assert products("adamw") == 0
    assert products("muon") >= 3
