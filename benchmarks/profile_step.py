"""Where the time of a training step goes, by kind of operation: docs/figures/step.svg.

    python benchmarks/profile_step.py [--steps 5]

Shares of processor time as torch's profiler sees it, plain way (float32) and fast way (best precision of this processor), batch of 32, in turn.
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from floor import STAGES
from matplotlib import pyplot as plt
from torch.profiler import ProfilerActivity, profile
from train_step import machine, step, ways

KINDS = {  # a kind of operation -> beginnings of the names of what it consists of
    "convolution, forward": (
        "aten::mkldnn_convolution",
        "aten::_convolution",
        "aten::thnn_conv2d",
        "aten::_slow_conv",
        "aten::slow_conv",
    ),
    "convolution, backward": ("aten::convolution_backward",),
    "matrix product": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "batch and layer norm, ReLU, GELU": (
        "aten::native_batch_norm",
        "aten::native_layer_norm",
        "aten::threshold",
        "aten::gelu",
        "aten::clamp_min",
        "aten::relu",
    ),
    "upsampling": ("aten::upsample",),
    "dropout": (
        "aten::bernoulli",
        "aten::random_",
        "aten::ge",
        "aten::dropout",
        "aten::native_dropout",
    ),
    "optimiser": (
        "aten::_fused_adamw",
        "aten::addcdiv",
        "aten::addcmul",
        "aten::lerp",
        "aten::sqrt",
    ),
    "copies, sums and the rest": ("",),
}
COLOURS = ["#1b4f72", "#5499c7", "#117a65", "#b7950b", "#cb4335", "#7d3c98", "#626567", "#bfc9ca"]


def kind_of(name):
    return next(kind for kind, beginnings in KINDS.items() if name.startswith(beginnings))


def shares(stage, row, steps):
    """Milliseconds a step of each kind."""
    model, loss, skip, options, precision = row
    trained = [
        parameter
        for name, parameter in model.named_parameters()
        if stage != "one" or name.startswith(("extractor", "decoder"))
    ]
    optimiser = torch.optim.AdamW(trained, lr=1e-6, **options)
    model.train()
    step(model, loss, optimiser, stage, skip, precision)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step(model, loss, optimiser, stage, skip, precision)
    found = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1e3 / steps
    return found


def draw(bars, path):
    mpl.rcParams["svg.hashsalt"] = "step"  # the same numbers give the same file
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(bars) + 1.6), layout="constrained")
    left = np.zeros(len(bars))
    for kind, colour in zip(KINDS, COLOURS, strict=True):
        values = np.array([found[kind] for found in bars.values()])
        axes.barh(list(bars), values, left=left, color=colour, label=kind, height=0.7)
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a step of 32 clips")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps
    bars = {}
    for stage in STAGES:
        rows = ways(stage)
        for label, name in (("plain", "plain"), ("fast", list(rows)[-1])):
            bars[f"{STAGES[stage]}, {label}"] = found = shares(stage, rows[name], steps)
            total = sum(found.values())
            print(
                f"{STAGES[stage]}, {label}: {total:.0f} ms; "
                + ", ".join(f"{kind} {value / total:.0%}" for kind, value in found.items()),
                flush=True,
            )
    print(machine())
    root = Path(__file__).parent
    draw(bars, root.parent / "docs" / "figures" / "step.svg")
    (root / "results" / "profile_step.json").write_text(
        json.dumps({"milliseconds": bars, "machine": machine()}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
