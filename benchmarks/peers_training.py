"""A peer's training step beside ours on the same machine, timed in turn in one run: clips and seconds of music a second.

    python benchmarks/peers_training.py [--pairs 16] [--rounds 3]

The peer is SimCLR on a SampleCNN of CLMR's size (59,049 samples at 22,050 Hz), our re-implementation: two views of each clip, a projector of two
layers (512 and 128 numbers), NT-Xent at temperature 0.5 over the batch, Adam; convolutions over a map of height 1 in channels-last order, which
takes 0.7 times as long on a CPU as the same in one dimension. Ours are stages I and II at the paper's size, 32 clips of 25 patches. Forward,
backward and optimiser, each in float32 and, where the processor has it, under bf16 autocast; noise instead of music, and nobody's
augmentation. CLMR's own batch is 48 pairs, which take three times as long as 16, and 6 GB.
"""

import argparse
import itertools

import numpy as np
import torch
from timing import in_turn, keep
from torch import nn

from patchifier.config import PretrainConfig, SpectrogramConfig, TrainingConfig
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Patchifier
from patchifier.seeding import random_masking
from patchifier.train.optimiser import make_optimiser

B, N = 32, 25
SAMPLE_RATE, FRAME = 22_050, 59_049  # 3^10 samples: nine poolings by 3 leave one
CHANNELS = (128, 128, 128, 256, 256, 256, 256, 256, 256, 512)
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


def block(into, out, stride=1, pool=False):
    """Convolution over a map of height 1, batch norm, ReLU and, except at both ends, max pooling by 3."""
    convolution = nn.Conv2d(into, out, (1, 3), (1, stride), (0, int(stride == 1)))
    layers = [convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *([nn.MaxPool2d((1, 3))] if pool else []))


def sample_cnn():
    """Frames (P, 1, 59049) to vectors (P, 512), in channels-last order."""
    pairs = itertools.pairwise(CHANNELS)
    blocks = [block(1, CHANNELS[0], stride=3), *(block(*pair, pool=True) for pair in pairs)]
    blocks.append(block(CHANNELS[-1], CHANNELS[-1]))
    network = nn.Sequential(nn.Unflatten(1, (1, 1)), *blocks, nn.Flatten())
    return network.to(memory_format=torch.channels_last)


def simclr(pairs, generator):
    """The peer: its network, optimiser and loss."""
    model = SimCLR(sample_cnn(), CHANNELS[-1])
    views = torch.randn(2 * pairs, 1, FRAME, generator=generator)
    return (
        model,
        torch.optim.Adam(model.parameters(), lr=3e-4, foreach=True),
        lambda: model.loss(views),
    )


def stage(number, generator):
    """Ours: network, optimiser and loss of stage 1 or 2."""
    model, settings = accelerate(Patchifier()), PretrainConfig()
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
