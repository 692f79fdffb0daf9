"""The least a training step can take on this machine: what it must compute and move, over what the machine can.

    python benchmarks/floor.py

Operations are those of the leanest form known here: taps beside a map are not counted, an upsampling convolution is counted as 2 x 2
products an output cell instead of 3 x 3, stage II extracts visible patches and decodes masked ones. A backward pass computes twice
the forward pass, but for the first layer, whose input needs no gradient. Bytes are those of weights, gradients and AdamW's moments
(read and written once), and of every layer's output: written, read backward, its gradient written and read. The floor is the larger of the two
times, as if computing and moving overlapped perfectly. Ceilings are measured in the same run: the fastest matrix product of several
sizes in each precision, and a copy of a large tensor.
"""

import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from patchifier.config import Config
from patchifier.nn.model import Patchifier
from patchifier.train.run import machine

B, N = 32, 25
STAGES = {"one": "stage I", "two": "stage II", "full": "fine-tuning, full"}


@dataclass(frozen=True)
class Work:
    """Multiply-adds and outputs of layers, of a forward pass; `first` are the products of a first layer."""

    products: float
    outputs: float
    first: float = 0.0

    def times(self, factor):
        """So many times as much."""
        return Work(self.products * factor, self.outputs * factor, self.first * factor)

    def __add__(self, other):
        return Work(
            self.products + other.products, self.outputs + other.outputs, self.first + other.first
        )

    @property
    def operations(self):
        """Of forward and backward: an addition and a multiplication for each product."""
        return 2 * (3 * self.products - self.first)


def taps(cells, stride):
    """Cells seen by all of a 3-tap convolution's outputs along one axis, padding left out."""
    return sum(
        0 <= out * stride + tap < cells for out in range(cells // stride) for tap in (-1, 0, 1)
    )


def extractor(config):
    """Work for one patch: convolutions, batch norms (their outputs are kept), the layer to the vector."""
    H, W, work = config.spectrogram.n_bands, config.model.patch_frames, Work(0, 0)
    for before, after in itertools.pairwise((1, *config.model.channels)):
        first = taps(H, 2) * taps(W, 2) * before * after
        H, W = H // 2, W // 2
        products = first + taps(H, 1) * taps(W, 1) * after * after
        work += Work(products, 4 * after * H * W, first if before == 1 else 0)
    return work + Work(
        config.model.channels[-1] * H * W * config.model.embed_dim, config.model.embed_dim
    )


def decoder(config):
    """Work for one patch: the layer from the vector, five upsampling convolutions by 2 x 2 products an output cell."""
    channels = (*config.model.channels[::-1], 1)
    H, W = (
        size // 2 ** len(config.model.channels)
        for size in (config.spectrogram.n_bands, config.model.patch_frames)
    )
    work = Work(config.model.embed_dim * channels[0] * H * W, channels[0] * H * W)
    for before, after in itertools.pairwise(channels):
        seen = (4 * H - 2) * (
            4 * W - 2
        )  # along an axis: two cells for each output, one for those at the ends
        H, W = 2 * H, 2 * W
        work += Work(seen * before * after, after * H * W)
    return work


def bottleneck(config):
    """Work for one sequence of 1 + N vectors."""
    S, D, F = 1 + N, config.model.embed_dim, config.model.mlp_dim
    layer = Work(
        S * (4 * D * D + 2 * D * F) + 2 * S * S * D,
        S * (3 * D + D + D + 2 * D + 2 * F + D) + 2 * config.model.n_heads * S * S,
    )
    return layer.times(config.model.n_layers)


def step_work(stage, config):
    """Work of a step of B clips, and how many weights it trains."""
    model = Patchifier(config)
    parts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in model.named_children()
    }
    masked = round(0.75 * N)
    align = Work(2 * config.model.embed_dim**2, 2 * config.model.embed_dim)
    if stage == "one":
        return (extractor(config) + decoder(config)).times(B * N), parts["extractor"] + parts[
            "decoder"
        ]
    if stage == "two":
        return extractor(config).times(B * (N - masked)) + bottleneck(config).times(B) + (
            align + decoder(config)
        ).times(B * masked), sum(parts.values())
    return extractor(config).times(B * N) + bottleneck(config).times(B), parts["extractor"] + parts[
        "bottleneck"
    ]


def floor(stage, ceilings, precision, config=None):
    """Operations, bytes and seconds of a step at least."""
    work, weights = step_work(stage, config or Config())
    width = 2 if precision == "bf16" else 4
    moved = 4 * work.outputs * width + weights * (9 * 4 + (2 * 4 if precision == "bf16" else 0))
    seconds = {
        "computing": work.operations / ceilings[f"{precision}_operations_per_s"],
        "moving": moved / ceilings["bytes_per_s"],
    }
    return {
        "operations": work.operations,
        "bytes": moved,
        "seconds": max(seconds.values()),
        **seconds,
    }


def quickest(run, rounds):
    """Seconds of the quickest of several runs."""
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def measure_ceilings(rounds=10):
    """Operations and bytes a second, at best."""
    found = {}
    for precision, dtype in (("32", torch.float32), ("bf16", torch.bfloat16)):
        rates = []
        for n, k, m in ((1024, 1024, 1024), (2048, 2048, 2048), (832, 256, 1024), (4096, 512, 512)):
            one, two = torch.randn(n, k).to(dtype), torch.randn(k, m).to(dtype)
            rates.append(2 * n * k * m / quickest(lambda one=one, two=two: one @ two, rounds))
        found[f"{precision}_operations_per_s"] = max(rates)
    source = torch.randn(2**26)  # 256 MiB, more than any cache
    target = torch.empty_like(source)
    found["bytes_per_s"] = 2 * source.numel() * 4 / quickest(lambda: target.copy_(source), rounds)
    return found


def main():
    ceilings = measure_ceilings()
    print(
        f"matrix products: {ceilings['32_operations_per_s'] / 1e9:.0f} thousand million operations a second in float32, "
        f"{ceilings['bf16_operations_per_s'] / 1e9:.0f} in bf16; memory: {ceilings['bytes_per_s'] / 1e9:.1f} GB/s"
    )
    rows = []
    print(
        f"{'':<20}{'precision':>10}{'1e9 operations':>16}{'MB':>8}{'computing':>11}{'moving':>9}{'clips/s':>9}"
    )
    for stage, precision in itertools.product(STAGES, ("32", "bf16")):
        least = floor(stage, ceilings, precision)
        rows.append(
            {"stage": stage, "precision": precision, **least, "clips_per_s": B / least["seconds"]}
        )
        print(
            f"{STAGES[stage]:<20}{precision:>10}{least['operations'] / 1e9:>16.1f}{least['bytes'] / 1e6:>8.0f}"
            f"{least['computing'] * 1e3:>8.0f} ms{least['moving'] * 1e3:>6.0f} ms{B / least['seconds']:>9.0f}"
        )
    print(f"batch {B}, {N} patches, {machine()}")
    results = Path(__file__).parent / "results"
    (results / "floor.json").write_text(
        json.dumps({"rows": rows, "ceilings": ceilings, "machine": machine()}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
