"""A training step of stage II, and what each of its shortcuts is worth, timed in turn in one run.

    python benchmarks/train_step.py [--rounds 7]

The plain way runs the extractor and the decoder on every patch, takes the loss where it is masked, upsamples before it convolves, and
leaves memory as torch lays it out; float32 all along. Each factor is added to the ones before it. All rows compute the same loss but for
the batch-norm statistics (which patches they see). Rates are clips of 25 patches a second at the paper's size and batch of 32, forward,
backward and optimiser.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from patchifier.config import ModelConfig
from patchifier.model import Patchifier, UpConvolution, draw_mask
from patchifier.runs import machine

B, N = 32, 25


class PlainUp(nn.Sequential):
    """Upsampling, then the same convolution."""

    def __init__(self, convolution):
        plain = nn.Conv2d(convolution.in_channels, convolution.out_channels, 3, padding=1)
        plain.load_state_dict(convolution.state_dict())
        super().__init__(nn.Upsample(scale_factor=2), plain)


def plain_loss(model, patches, masked):
    """Stage II written the shortest way."""
    vectors = model.extractor(patches.flatten(0, 1)).unflatten(0, (B, N))
    sequence = model.bottleneck(vectors, masked=masked)[-1]
    reconstructed = model.decoder(model.align(sequence[:, 1:]).flatten(0, 1)).unflatten(0, (B, N))
    return (reconstructed - patches)[masked].square().mean()


def plain_loss_on_masked(model, patches, masked):
    """The same, but the decoder runs on masked patches only."""
    vectors = model.extractor(patches.flatten(0, 1)).unflatten(0, (B, N))
    sequence = model.bottleneck(vectors, masked=masked)[-1]
    return nn.functional.mse_loss(model.decoder(model.align(sequence[:, 1:][masked])), patches[masked])


def plain_loss_on_visible(model, patches, masked):
    """The same, and the extractor runs on visible patches only: the plain way that also skips what is masked."""
    vectors = patches.new_zeros(B, N, model.config.width)
    vectors[~masked] = model.extractor(patches[~masked])
    sequence = model.bottleneck(vectors, masked=masked)[-1]
    return nn.functional.mse_loss(model.decoder(model.align(sequence[:, 1:][masked])), patches[masked])


def own_loss(model, patches, masked):
    """What training runs."""
    present = torch.ones(B, N, dtype=torch.bool)
    return model.stage_two_loss(patches, patches, present, masked)


def make(*, plain_up, channels_last):
    model = Patchifier(ModelConfig())
    if plain_up:
        last = model.decoder.up[-1]
        assert isinstance(last, UpConvolution)
        model.decoder.up[-1] = PlainUp(last)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def ways():
    plain, fused, packed = make(plain_up=True, channels_last=False), make(plain_up=False, channels_last=False), make(plain_up=False, channels_last=True)
    # The decoder asks for channels_last itself; the plain one must not.
    plain.decoder.forward = lambda vectors: plain.decoder.up(plain.decoder.from_vector(vectors).unflatten(-1, plain.decoder.map))
    rows = {
        "plain": (plain, plain_loss, "float32"),
        "+ decoder on masked patches": (plain, plain_loss_on_masked, "float32"),
        "+ extractor on visible patches": (plain, plain_loss_on_visible, "float32"),
        "+ last layer without upsampling": (fused, own_loss, "float32"),
        "+ channels last": (packed, own_loss, "float32"),
    }
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        rows["+ bf16"] = (make(plain_up=False, channels_last=True), own_loss, "bf16")
    return rows


def step(model, loss, optimiser, patches, masked, precision):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        value = loss(model, patches, masked)
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    optimiser.step()
    return float(value.detach())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    generator = torch.Generator().manual_seed(0)
    patches = -0.4 + 0.2 * torch.randn(B, N, 1, 64, 32, generator=generator)
    masked = torch.from_numpy(draw_mask(np.random.default_rng(0), np.ones((B, N), bool), 0.75))
    rows = ways()
    optimisers = {name: torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=True) for name, (model, _, _) in rows.items()}
    seconds = {name: [] for name in rows}
    for _ in range(rounds + 1):
        for name, (model, loss, precision) in rows.items():
            started = time.perf_counter()
            step(model, loss, optimisers[name], patches, masked, precision)
            seconds[name].append(time.perf_counter() - started)
    table = []
    print(f"{'':<34}{'clips/s':>8}{'factor':>9}{'in all':>9}")
    before = None
    for name, times in seconds.items():
        spent = np.array(times[1:])
        factor = float(np.median(np.array(seconds[before][1:]) / spent)) if before else 1.0
        total = float(np.median(np.array(seconds["plain"][1:]) / spent))
        table.append({"name": name, "clips_per_s": B / float(np.median(spent)), "factor": factor, "in_all": total})
        print(f"{name:<34}{table[-1]['clips_per_s']:>8.1f}{factor:>9.2f}{total:>9.2f}")
        before = name
    skipping = "+ extractor on visible patches"
    last = float(np.median(np.array(seconds[skipping][1:]) / np.array(seconds[before][1:])))
    print(f"against the plain way that also skips masked patches: {last:.2f}")
    print(f"median of {rounds} rounds, batch {B}, {N} patches, {machine()}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    facts = {"rows": table, "against_plain_that_skips": last, "rounds": rounds, "batch": B, "machine": machine()}
    (results / "train_step.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
