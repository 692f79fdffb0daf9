"""A peer's training step beside ours on the same machine, timed in turn in one run: clips and seconds of music a second.

    python benchmarks/peers_training.py [--pairs 16] [--rounds 3]

The peer is SimCLR on a SampleCNN of CLMR's size (59,049 samples at 22,050 Hz), our re-implementation: two views of each clip, a projector of two
layers (512 and 128 numbers), NT-Xent at temperature 0.5 over the batch, Adam; convolutions over a map of height 1 in channels-last order, which
takes 0.7 times as long on a CPU as the same in one dimension. Ours are stages I and II at the paper's size, 32 clips of 25 patches. Forward,
backward and optimiser, each in float32 and, where the processor has it, under bf16 autocast; noise instead of music, and nobody's
augmentation. CLMR's own batch is 48 pairs, which take three times as long as 16, and 6 GB.
"""

import argparse

import numpy as np
import torch
from timing import in_turn, keep
from torch import nn

from patchifier.config import ModelConfig, PretrainConfig, SpectrogramConfig, TrainingConfig
from patchifier.evaluate.encoders.clmr import CHANNELS, FRAME, SAMPLE_RATE, SampleCNN
from patchifier.nn.fast import accelerate
from patchifier.nn.masking import random_masking
from patchifier.nn.model import Patchifier
from patchifier.train.loop import make_optimiser

B, N = 32, 25
PEER = "SimCLR, SampleCNN (re-implementation)"


class SimCLR(nn.Module):
    """An encoder and a projector; the loss that pulls two views of a clip together and all others apart."""

    def __init__(self, encoder, width):
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))

    def loss(self, views, temperature=0.5):
        """NT-Xent of views (2 P, 1, S): those of a pair stand P apart."""
        vectors = nn.functional.normalize(self.projector(self.encoder(views)), dim=1)
        similarity = vectors @ vectors.T / temperature
        similarity.fill_diagonal_(-torch.inf)
        partners = torch.arange(len(views)).roll(len(views) // 2)
        return nn.functional.cross_entropy(similarity.float(), partners)


def fast_sample_cnn():
    """The SampleCNN with maps of height 1 in channels-last order."""
    plain = SampleCNN()
    flat = [copied(layer) for block in plain.sequential for layer in block]
    fast = nn.Sequential(nn.Unflatten(1, (1, 1)), *flat, nn.Flatten()).to(
        memory_format=torch.channels_last
    )  # (P, 1, S) -> (P, 1, 1, S)
    noise = torch.randn(2, 1, FRAME)
    assert torch.allclose(fast.eval()(noise), plain.eval()(noise), atol=1e-4)
    return fast.train()


def copied(layer):
    """The layer of one dimension as one of two, the first of size 1."""
    if isinstance(layer, nn.Conv1d):
        (stride,), (padding,) = layer.stride, layer.padding
        twin = nn.Conv2d(layer.in_channels, layer.out_channels, (1, 3), (1, stride), (0, padding))
        twin.load_state_dict({"weight": layer.weight[:, :, None], "bias": layer.bias})
        return twin
    if isinstance(layer, nn.BatchNorm1d):
        return nn.BatchNorm2d(layer.num_features)
    return (
        nn.MaxPool2d((1, layer.kernel_size))
        if isinstance(layer, nn.MaxPool1d)
        else nn.ReLU(inplace=True)
    )


def simclr(pairs, generator):
    """The peer: its network, optimiser and loss."""
    model = SimCLR(fast_sample_cnn(), CHANNELS[-1])
    views = torch.randn(2 * pairs, 1, FRAME, generator=generator)
    return (
        model,
        torch.optim.Adam(model.parameters(), lr=3e-4, foreach=True),
        lambda: model.loss(views),
    )


def stage(number, generator):
    """Ours: network, optimiser and loss of stage 1 or 2."""
    model, settings = accelerate(Patchifier(ModelConfig())), PretrainConfig()
    patches = -0.4 + 0.2 * torch.randn(B, N, 1, 64, 32, generator=generator)
    present = torch.ones(B, N, dtype=torch.bool)
    masked = torch.from_numpy(
        random_masking(np.random.default_rng(0), present.numpy(), settings.mask_ratio)
    )
    losses = {
        1: lambda: model.stage_one_loss(patches, patches, present),
        2: lambda: model.stage_two_loss(patches, patches, present, masked),
    }
    return model, make_optimiser(model, TrainingConfig(), {}), losses[number]


def step(model, optimiser, loss, precision):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        value = loss()
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    optimiser.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    who = {
        PEER: simclr(flags.pairs, generator),
        "stage I": stage(1, generator),
        "stage II": stage(2, generator),
    }
    spectrogram = SpectrogramConfig()
    heard_s = {PEER: 2 * FRAME / SAMPLE_RATE}  # of a clip, in a step
    precisions = (
        ["float32", "bf16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["float32"]
    )
    ways = {
        (name, precision): lambda parts=parts, precision=precision: step(*parts, precision)
        for precision in precisions
        for name, parts in who.items()
    }
    seconds = in_turn(ways, flags.rounds)
    rows = []
    print(
        f"{'':<40}{'precision':<11}{'parameters':>11}{'clips/s':>9}{'music, s/s':>12}{'of the peer':>13}"
    )
    for (name, precision), times in seconds.items():
        clips, parameters = (
            flags.pairs if name == PEER else B,
            sum(parameter.numel() for parameter in who[name][0].parameters()),
        )
        music_s = clips * heard_s.get(name, N * 32 * spectrogram.frame_s)
        peer_s = flags.pairs * heard_s[PEER]
        ratio = float(np.median(music_s / times / (peer_s / seconds[PEER, precision])))
        row = {
            "name": name,
            "precision": precision,
            "parameters": parameters,
            "clips_per_s": float(np.median(clips / times)),
        }
        rows.append(
            {**row, "music_s_per_s": float(np.median(music_s / times)), "times_the_peer": ratio}
        )
        print(
            f"{name:<40}{precision:<11}{parameters:>11,}{rows[-1]['clips_per_s']:>9.1f}{rows[-1]['music_s_per_s']:>12.0f}{ratio:>13.2f}"
        )
    keep(
        "peers_training",
        {"rows": rows, "pairs": flags.pairs, "batch": B, "patches": N, "rounds": flags.rounds},
    )


if __name__ == "__main__":
    main()
