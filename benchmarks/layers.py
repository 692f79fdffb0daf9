"""Each layer of patchifier.nn.fast beside the plain one and the ways that were not taken, alone: milliseconds forward and back.

    python benchmarks/layers.py [--rounds 9]

608 patches in the decoder (masked ones of 32 clips), 800 in the extractor; the quickest of several rounds. What a layer costs within a step
depends on what lies in the caches: benchmarks/train_step.py decides.
"""

import argparse
import json
from pathlib import Path

import torch
from floor import quickest
from torch import nn

from patchifier.nn.fast import Convolution, FastDropout, UpConvolution, by_matrix, seen_cells
from patchifier.train.precision import processor_has_bf16
from patchifier.train.run import machine

DECODER = {
    "1": (256, 128, (2, 1)),
    "2": (128, 64, (4, 2)),
    "3": (64, 32, (8, 4)),
    "4": (32, 16, (16, 8)),
    "5": (16, 1, (32, 16)),
}
EXTRACTOR = {"9": (128, 256, 2, (4, 2)), "10": (256, 256, 1, (2, 1))}
NINE = torch.tensor(
    [[[1.0, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]]
)  # [phase][cell of three][tap of the kernel]


def upsampled(layer, maps):
    return nn.functional.conv2d(
        nn.functional.interpolate(maps, scale_factor=2), layer.weight, layer.bias, padding=1
    )


def shuffled(layer, maps):
    """A 3 x 3 convolution into four phases."""
    kernels = torch.einsum("asu,btv,oiuv->oabist", NINE, NINE, layer.weight).flatten(0, 2)
    return (
        nn.functional.pixel_shuffle(nn.functional.conv2d(maps, kernels, padding=1), 2)
        + layer.bias[:, None, None]
    )


def matrix_up(layer, maps):
    return by_matrix(
        maps, layer, *(seen_cells(cells, up=2, device=maps.device) for cells in maps.shape[-2:])
    )


def both_ways(function, maps, precision, rounds):
    """Seconds forward and back."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        gradient = torch.randn_like(function(maps))

    def run():
        maps.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            result = function(maps)
        result.backward(gradient)

    return quickest(run, rounds)


def inputs(P, channels, cells):
    return (
        torch.randn(P, channels, *cells)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    precisions = ("32", "bf16") if processor_has_bf16() else ("32",)
    rows = []

    def show(layer, ways, maps):
        for precision in precisions:
            found = {
                name: both_ways(function, maps, precision, rounds)
                for name, function in ways.items()
            }
            rows.append({"layer": layer, "precision": precision, "seconds": found})
            print(
                f"{layer:<15}{precision:>5}: "
                + ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in found.items()),
                flush=True,
            )

    for number, (before, after, cells) in DECODER.items():
        layer = UpConvolution(before, after, 3, padding=1).to(memory_format=torch.channels_last)
        ways = {
            "upsampled": upsampled,
            "transposed": UpConvolution.by_transposition,
            "phases": UpConvolution.by_phases,
            "shuffled": shuffled,
        }
        if cells[0] <= 4:
            ways["matrix"] = matrix_up
        show(
            f"decoder {number}",
            {
                name: lambda maps, way=way, layer=layer: way(layer, maps)
                for name, way in ways.items()
            },
            inputs(608, before, cells),
        )
    for number, (before, after, stride, cells) in EXTRACTOR.items():
        layer = Convolution(before, after, 3, stride=stride, padding=1, bias=False).to(
            memory_format=torch.channels_last
        )
        plain = lambda maps, layer=layer: nn.Conv2d.forward(layer, maps)  # noqa: E731
        show(f"extractor {number}", {"plain": plain, "matrix": layer}, inputs(800, before, cells))
    hidden = torch.randn(32, 26, 1024).requires_grad_()
    show("dropout", {"torch": nn.Dropout(0.1), "fewer draws": FastDropout(0.1)}, hidden)
    for before, after in ((256, 768), (256, 1024), (1024, 256)):
        layer = nn.Linear(before, after)
        rate = 3 * 2 * 832 * before * after / 1e9
        for precision in precisions:
            seconds = both_ways(layer, torch.randn(832, before).requires_grad_(), precision, rounds)
            rows.append(
                {
                    "layer": f"linear {before} to {after}",
                    "precision": precision,
                    "seconds": {"plain": seconds},
                }
            )
            print(
                f"linear {before} to {after}, {precision}: {seconds * 1e3:.1f}, {rate / seconds:.0f} thousand million operations a second"
            )
    print(f"milliseconds forward and back, quickest of {rounds} rounds, {machine()}")
    (Path(__file__).parent / "results" / "layers.json").write_text(
        json.dumps({"rows": rows, "rounds": rounds, "machine": machine()}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
