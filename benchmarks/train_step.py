"""A training step of each stage, what each shortcut is worth, timed in turn in one run; and how far the last is from the floor.

    python benchmarks/train_step.py [--rounds 7]

Each row adds one shortcut to the row above it and computes the same function (but for the batch-norm statistics of patches that are
skipped). The first row is benchmarks/plain.py. Rates are clips of 25 patches a second at the paper's size and batch of 32: forward, backward,
optimiser. Of several rounds the quickest counts: what neighbours on the machine take is not the step's cost. The floor is that of benchmarks/floor.py in
the precision of the row.
"""

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from floor import STAGES, B, N, floor, measure_ceilings
from plain import Plain
from torch import nn

from patchifier import datasets
from patchifier.cache import Cache, prepare
from patchifier.config import Config
from patchifier.nn.fast import Convolution, FastDropout, UpConvolution, accelerate
from patchifier.nn.model import Head, Patchifier
from patchifier.seeding import random_masking
from patchifier.train.precision import processor_has_bf16
from patchifier.train.pretrain import Batches
from patchifier.train.run import machine

PATCHES = -0.4 + 0.2 * torch.randn(B, N, 1, 64, 32, generator=torch.Generator().manual_seed(0))
MASKED = torch.from_numpy(random_masking(np.random.default_rng(0), np.ones((B, N), bool), 0.75))
PRESENT = torch.ones(B, N, dtype=torch.bool)
LABELS = torch.arange(B) % 10
SKIPPING = {"+ decoder on masked patches", "+ extractor on visible patches"}


# --- ways to compute the same ---


def plain_loss(model, stage, skip):
    """Loss of benchmarks/plain.py; `skip` says which parts skip what stage II does not use."""
    if stage == "one":
        return model.stage_one_loss(PATCHES)
    if stage == "full":
        return nn.functional.cross_entropy(model.head(model.readout(PATCHES)).float(), LABELS)
    if skip == "decoder":
        vectors = model.extract(PATCHES.flatten(0, 1)).unflatten(0, (B, N))
        return nn.functional.mse_loss(
            model.decode(model.align(model.sequence(vectors, MASKED)[:, 1:][MASKED])),
            PATCHES[MASKED],
        )
    return model.stage_two_loss(PATCHES, MASKED, skip=skip == "both")


def own_loss(model, stage, _):
    """What training runs."""
    if stage == "one":
        return model.stage_one_loss(PATCHES, PATCHES, None)
    if stage == "two":
        return model.stage_two_loss(PATCHES, PATCHES, None, MASKED)
    sequence = model.bottleneck(model.extract(PATCHES, PRESENT), valid=PRESENT)[-1]
    return nn.functional.cross_entropy(model.head(sequence[:, 0]).float(), LABELS)


def with_head(model):
    torch.manual_seed(0)
    model.head = Head(256, 10)
    return model


def swapped(model, kind, make):
    """Copy a plain model with each layer of a kind replaced."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind:
                setattr(parent, name, make(child))
    return model


def without_upsampling(model):
    """Copy a model whose decoder upsamples inside its convolutions."""
    model = copy.deepcopy(model)
    layers = []
    for layer in model.decoder.up:
        if isinstance(layer, nn.Conv2d):
            convolution = UpConvolution(layer.in_channels, layer.out_channels, 3, padding=1)
            convolution.load_state_dict(layer.state_dict())
            layers.append(convolution)
        elif not isinstance(layer, nn.Upsample):
            layers.append(layer)
    model.decoder.up = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    return model


def convolution_of(layer):
    made = Convolution(
        layer.in_channels,
        layer.out_channels,
        3,
        stride=layer.stride,
        padding=1,
        bias=layer.bias is not None,
    )
    made.load_state_dict(layer.state_dict())
    return made.to(memory_format=torch.channels_last)


def ways(stage):
    """Rows: name -> model, loss, what is skipped, optimiser, precision."""
    own = with_head(accelerate(Patchifier()))
    plain = with_head(Plain())
    plain.load_state_dict(own.state_dict())
    skip = "both" if stage == "two" else "none"
    slow, fused = ({"fused": False, "foreach": False}, {"fused": True})
    rows = {"plain": (plain, plain_loss, "none", slow, "32")}
    if stage == "two":
        rows["+ decoder on masked patches"] = (plain, plain_loss, "decoder", slow, "32")
        rows["+ extractor on visible patches"] = (plain, plain_loss, "both", slow, "32")
    rows["+ optimiser in one pass"] = (copy.deepcopy(plain), plain_loss, skip, fused, "32")
    last = rows["+ channels last"] = (
        copy.deepcopy(plain).to(memory_format=torch.channels_last),
        plain_loss,
        skip,
        fused,
        "32",
    )
    if stage != "full":
        last = rows["+ upsampling inside convolutions"] = (
            without_upsampling(last[0]),
            plain_loss,
            skip,
            fused,
            "32",
        )
    last = rows["+ matrices on maps of few cells"] = (
        swapped(last[0], nn.Conv2d, convolution_of),
        plain_loss,
        skip,
        fused,
        "32",
    )
    if stage != "one":
        rows["+ dropout with fewer draws"] = (
            swapped(last[0], nn.Dropout, lambda layer: FastDropout(layer.p)),
            plain_loss,
            skip,
            fused,
            "32",
        )
    rows["the package's model, float32"] = (own, own_loss, skip, fused, "32")
    if processor_has_bf16():
        rows["+ bf16"] = (copy.deepcopy(own), own_loss, skip, fused, "bf16")
    return rows


def step(model, loss, optimiser, stage, skip, precision):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        value = loss(model, stage, skip)
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    optimiser.step()
    return float(value.detach())


# --- the tables ---


def time_stage(stage, rounds):
    """Seconds of the quickest step of each row, taken in turn."""
    rows, optimisers, seconds = ways(stage), {}, {}
    for name, (model, _, _, options, _) in rows.items():
        trained = [
            parameter
            for part, parameter in model.named_parameters()
            if stage != "one" or part.startswith(("extractor", "decoder"))
        ]
        optimisers[name] = torch.optim.AdamW(trained, lr=1e-6, **options)
        model.train()
    for number in range(rounds + 1):
        for name, (model, loss, skip, _, precision) in rows.items():
            started = time.perf_counter()
            step(model, loss, optimisers[name], stage, skip, precision)
            if number:
                seconds.setdefault(name, []).append(time.perf_counter() - started)
    return {name: min(times) for name, times in seconds.items()}


def table(stage, seconds, ceilings):
    """Print a stage's rows; returns them."""
    rows, names = [], list(seconds)
    print(f"\n{STAGES[stage]:<36}{'clips/s':>8}{'factor':>8}{'in all':>8}{'of the floor':>14}")
    for before, name in zip([None, *names], names, strict=False):
        precision = "bf16" if name == "+ bf16" else "32"
        least = floor(stage, ceilings, precision)["seconds"]
        row = {
            "name": name,
            "stage": stage,
            "precision": precision,
            "clips_per_s": B / seconds[name],
            "factor": seconds[before] / seconds[name] if before else 1.0,
        }
        row |= {"in_all": seconds["plain"] / seconds[name], "floor_fraction": least / seconds[name]}
        rows.append(row)
        print(
            f"{name:<36}{row['clips_per_s']:>8.1f}{row['factor']:>8.2f}{row['in_all']:>8.2f}{row['floor_fraction']:>13.0%}"
        )
    skipping = [name for name in names if name in SKIPPING][-1:] or ["plain"]
    against = seconds[skipping[0]] / seconds[names[-1]]
    print(
        f"against the plain way that also skips masked patches: {against:.2f}; floor: {B / least:.0f} clips/s in {precision}",
        flush=True,
    )
    return rows, against


def batch_seconds(rounds):
    """Seconds to read, augment, cut and mask a batch of the bundled clips, for each stage."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(datasets.load("demo"), folder)
        data, config = Cache(folder), Config()
        clips = np.arange(len(data.clips))
        found = {}
        for stage, training in (
            ("one", config.pretrain.stage_one),
            ("two", config.pretrain.stage_two),
        ):
            batches, times = Batches(data, [clips], config, stage, training), []
            for number in range(3 * rounds):
                started = time.perf_counter()
                batches(number)
                times.append(time.perf_counter() - started)
            found[stage] = min(times)
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    ceilings, rows, against = measure_ceilings(), [], {}
    for stage in STAGES:
        seconds = time_stage(stage, rounds)
        ceilings = {name: max(rate, ceilings[name]) for name, rate in measure_ceilings().items()}
        stage_rows, against[stage] = table(stage, seconds, ceilings)
        rows += stage_rows
    batch = batch_seconds(rounds)
    fastest = {
        stage: B / max(row["clips_per_s"] for row in rows if row["stage"] == stage)
        for stage in batch
    }
    shares = {stage: batch[stage] / fastest[stage] for stage in batch}
    print(
        "\nreading, augmenting and masking a batch: "
        + ", ".join(
            f"{STAGES[s]} {batch[s] * 1e3:.1f} ms, {shares[s]:.1%} of the quickest step"
            for s in batch
        )
    )
    print(f"quickest of {rounds} rounds, batch {B}, {N} patches, {machine()}")
    facts = {
        "rows": rows,
        "against_plain_that_skips": against,
        "ceilings": ceilings,
        "batch_seconds": batch,
        "batch_share": shares,
    }
    facts |= {"rounds": rounds, "batch": B, "machine": machine()}
    (Path(__file__).parent / "results" / "train_step.json").write_text(
        json.dumps(facts, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
