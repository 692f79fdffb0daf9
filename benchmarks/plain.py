"""The same network and losses in torch's layers, written the shortest way: what the fast ones are compared with.

It takes the weights of a :class:`patchifier.nn.model.Patchifier`. Nothing is skipped:
the extractor and the decoder run on every patch, upsampling makes its map, memory lies as torch lays it out, dropout is torch's. `skip=True`
skips what is masked and is otherwise as plain: the fair opponent in stage II, where most of the gain is not a matter of skill.
"""

import itertools

import torch
from torch import nn

from patchifier.config import Config


class Plain(nn.Module):
    """Extractor, bottleneck, alignment and decoder of section 4.1."""

    def __init__(self, config=None):
        super().__init__()
        config = (config or Config()).model
        channels, D = config.channels, config.embed_dim
        self.extractor = nn.Module()
        self.extractor.down = nn.Sequential(
            *(down(before, after) for before, after in itertools.pairwise((1, *channels)))
        )
        self.extractor.to_vector = nn.Linear(channels[-1] * 2, D)
        self.bottleneck = nn.Module()
        self.bottleneck.cls, self.bottleneck.mask_token = (
            nn.Parameter(torch.zeros(D)),
            nn.Parameter(torch.zeros(D)),
        )
        self.bottleneck.positions = nn.Parameter(torch.zeros(1 + config.max_patches, D))
        self.vector_norm = config.vector_norm
        self.bottleneck.norm, self.dropout = nn.LayerNorm(D, eps=1e-12), nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            D,
            config.n_heads,
            config.mlp_dim,
            config.dropout,
            "gelu",
            layer_norm_eps=1e-12,
            batch_first=True,
        )
        self.bottleneck.encoder = nn.TransformerEncoder(
            layer, config.n_layers, enable_nested_tensor=False
        )
        self.align = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
        self.decoder = nn.Module()
        self.decoder.from_vector = nn.Linear(D, channels[-1] * 2)
        layers = [
            layer
            for before, after in itertools.pairwise((*channels[::-1], 1))
            for layer in up(before, after)
        ]
        layers.pop()  # no ReLU at the end
        self.decoder.up = nn.Sequential(*layers)

    def load_state_dict(self, state, strict=True):
        """Take the weights of a Patchifier, whose last layer has no place for upsampling before it."""
        return super().load_state_dict(
            {
                name.replace("decoder.up.12.", "decoder.up.13."): tensor
                for name, tensor in state.items()
            },
            strict,
        )

    def extract(self, patches):
        """Vectors (P, D) of patches (P, 1, M, W)."""
        return self.extractor.to_vector(self.extractor.down(patches).flatten(1))

    def sequence(self, vectors, masked=None):
        """Sequence (B, 1 + N, D) after the last layer."""
        own = self.bottleneck
        if self.vector_norm == "layer":
            vectors = nn.functional.layer_norm(vectors, vectors.shape[-1:])
        if masked is not None:
            vectors = torch.where(masked[..., None], own.mask_token, vectors)
        x = (
            torch.cat([own.cls.expand(len(vectors), 1, -1), vectors], dim=1)
            + own.positions[: 1 + vectors.shape[1]]
        )
        return own.encoder(self.dropout(own.norm(x)))

    def decode(self, vectors):
        """Patches (P, 1, M, W) of vectors (P, D)."""
        return self.decoder.up(self.decoder.from_vector(vectors).view(len(vectors), -1, 2, 1))

    def stage_one_loss(self, patches):
        """MSE of every patch (B, N, 1, M, W) autoencoded."""
        patches = patches.flatten(0, 1)
        return nn.functional.mse_loss(self.decode(self.extract(patches)), patches)

    def stage_two_loss(self, patches, masked, *, skip=False):
        """MSE of masked patches filled in."""
        B, N = masked.shape
        if skip:
            vectors = patches.new_zeros(B, N, self.align[0].in_features)
            vectors[~masked] = self.extract(patches[~masked])
            return nn.functional.mse_loss(
                self.decode(self.align(self.sequence(vectors, masked)[:, 1:][masked])),
                patches[masked],
            )
        vectors = self.extract(patches.flatten(0, 1)).unflatten(0, (B, N))
        decoded = self.decode(
            self.align(self.sequence(vectors, masked)[:, 1:].flatten(0, 1))
        ).unflatten(0, (B, N))
        return (decoded - patches)[masked].square().mean()

    def readout(self, patches):
        """CLS (B, D) of patches, for fine-tuning."""
        return self.sequence(self.extract(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]))[
            :, 0
        ]


def down(before, after):
    """Two 3 x 3 convolutions, the first with stride 2."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def up(before, after):
    """Upsampling and a 3 x 3 convolution."""
    return nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1), nn.ReLU()
