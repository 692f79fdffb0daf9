"""Parts of the network beyond the paper: an ear for pitch, a transformer instead of convolutions, two scales, distances instead of places.

Shapes: B clips, N patches, P patches of all clips, M rows, W frames in a patch, D width of a vector, L length of a sequence.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from patchifier.config import ModelConfig
from patchifier.nn.layers import SwitchableConv2d, transformer

COLUMN = 4  # frames in a column: what the long FFT of pitch bands does not tell apart


class PitchModules(nn.Module):
    """Down modules along the pitch axis: thirds of a tone to semitones, what octaves share, and to whole tones. Time is their channels.

    The long FFT tells no times apart that lie within four frames.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, times = config.pitch_channels, config.frames // 4
        self.semitones = SwitchableConv2d(
            times, C, (5, 1), stride=(3, 1), padding=(2, 0), bias=False
        )
        self.octaves = SwitchableConv2d(C, C, (3, 1), dilation=(12, 1), padding=(12, 0), bias=False)
        self.tones = SwitchableConv2d(C, C, (3, 1), stride=(2, 1), padding=(1, 0), bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(C) for _ in range(3))

    def forward(self, rows: Tensor) -> Tensor:
        """Turn pitch bands (P, M', W) into numbers (P, C * M' / 6)."""
        maps = (
            rows.unflatten(-1, (-1, 4)).mean(-1).transpose(1, 2).unsqueeze(-1)
        )  # (P, W / 4, M', 1)
        for convolution, norm in zip(
            (self.semitones, self.octaves, self.tones), self.norms, strict=True
        ):
            maps = torch.relu(
                norm(convolution(maps))
            )  # (P, C, M' / 3, 1), at last (P, C, M' / 6, 1)
        return maps.flatten(1)


class ColumnTransformer(nn.Module):
    """A transformer over the columns of a patch, four frames each, instead of down modules; pitch bands are rows like the others."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, columns = config.width, config.frames // COLUMN
        self.from_column = nn.Linear(config.bands * COLUMN, D)
        self.places = nn.Parameter(torch.zeros(columns, D))
        self.encoder = transformer(config, config.extractor_layers)
        self.norm = nn.LayerNorm(D, eps=1e-12)
        self.mean = config.vector == "mean"
        self.to_vector = nn.Identity() if self.mean else nn.Linear(columns * D, D)

    def forward(self, patches: Tensor) -> Tensor:
        """Turn patches (P, 1, M, W) into vectors (P, D)."""
        columns = (
            patches[:, 0].unflatten(-1, (-1, COLUMN)).transpose(1, 2).flatten(2)
        )  # (P, W / 4, M * 4)
        x = self.from_column(columns) + self.places
        for layer in self.encoder.layers:
            x = layer(x)
        x = self.norm(x)  # (P, W / 4, D)
        return self.to_vector(x.mean(1) if self.mean else x.flatten(1))


class TwoScales(nn.Module):
    """Down modules of a patch and, with fewer of them, of its quarters, whose vectors stand side by side: what happens, and when.

    Parameters
    ----------
    config : ModelConfig
    make : callable
        The extractor of one scale, from its config.
    """

    def __init__(self, config: ModelConfig, make: Callable[[ModelConfig], nn.Module]) -> None:
        super().__init__()
        D = config.width
        self.whole = make(config)
        part = dataclasses.replace(
            config,
            extractor="convolutions",
            frames=config.frames // 4,
            channels=config.channels[:3],
            decoder_channels=None,
        )
        self.quarter = make(dataclasses.replace(part, width=D // 4, heads=1, vector="flatten"))
        self.to_vector = nn.Linear(2 * D, D)

    def forward(self, patches: Tensor) -> Tensor:
        """Turn patches (P, 1, M, W) into vectors (P, D)."""
        quarters = patches.unflatten(-1, (4, -1)).movedim(3, 1).flatten(0, 1)  # (4 P, 1, M, W / 4)
        return self.to_vector(
            torch.cat(
                [self.whole(patches), self.quarter(quarters).unflatten(0, (-1, 4)).flatten(1)],
                dim=1,
            )
        )


class Distances(nn.Module):
    """A learnt number for each head and distance between two patches, added to their attention score (T5, Raffel et al. 2020).

    Parameters
    ----------
    encoder : nn.TransformerEncoder
        Whose scores are changed; it is told to compute them itself, since torch's fused layer knows no numbers to add.
    config : ModelConfig
        Distances beyond ``positions`` count as that; CLS has one number of its own.
    """

    def __init__(self, encoder: nn.TransformerEncoder, config: ModelConfig) -> None:
        super().__init__()
        self.most = config.positions
        self.numbers = nn.Parameter(torch.zeros(config.heads, 2 * self.most + 2))
        for layer in encoder.layers:
            layer.self_attn._qkv_same_embed_dim = (
                False  # what torch asks before it fuses; Attention does not
            )

    def forward(self, places: Tensor) -> Tensor:
        """Of places (N,) or (B, N) in a clip, with CLS before them: (1 or B, H, 1 + N, 1 + N)."""
        apart = (places[..., None, :] - places[..., :, None]).clamp(
            -self.most, self.most
        ) + self.most  # (..., N, N)
        apart = nn.functional.pad(apart, (1, 0, 1, 0), value=2 * self.most + 1)
        found = self.numbers[:, apart]  # (H, ..., 1 + N, 1 + N)
        return found[None] if places.ndim == 1 else found.transpose(0, 1)
