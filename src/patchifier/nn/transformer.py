"""BERT's encoder layers, and a transformer over the columns of a patch.

Shapes: B clips, P patches, N patches of a clip, L length of a sequence, H heads, M rows of a patch,
T frames in a patch, D embed_dim.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchifier.config import Config, ModelConfig

EXTRACTOR_LAYERS = 2
COLUMN = 4  # frames in a column: what the long FFT of pitch bands does not resolve
EPSILON = 1e-12  # BERT's, in LayerNorm


class TransformerLayer(nn.TransformerEncoderLayer):
    """A layer of BERT with torch's parameters, whose attention takes a bias of any shape.

    Parameters
    ----------
    config : ModelConfig
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            config.embed_dim,
            config.n_heads,
            config.mlp_dim,
            config.dropout,
            activation="gelu",
            layer_norm_eps=EPSILON,
            batch_first=True,
            norm_first=config.norm_first,
        )

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Turn a sequence (B, L, D) into (B, L, D).

        A bias (B, 1, 1, L) is added to the attention scores; -inf excludes a key.
        """
        if self.norm_first:
            x = x + self.dropout1(self.attend(self.norm1(x), bias))
            return x + self.dropout2(self.feed_forward(self.norm2(x)))
        x = self.norm1(x + self.dropout1(self.attend(x, bias)))
        return self.norm2(x + self.dropout2(self.feed_forward(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Two linear layers with GELU between them."""
        return self.linear2(self.dropout(functional.gelu(self.linear1(x))))

    def attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Self-attention of a sequence (B, L, D)."""
        query, key, value = self.projected(x)
        attended = self.attention(query, key, value, bias)
        return self.self_attn.out_proj(attended.transpose(1, 2).flatten(2))

    def attention_weights(self, x: Tensor) -> Tensor:
        """Weights (B, H, L, L) with which each place of a sequence (B, L, D) attends to each."""
        query, key, _ = self.projected(self.norm1(x) if self.norm_first else x)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return scores.softmax(-1)

    def projected(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values (B, H, L, D / H) of a sequence (B, L, D)."""
        weights = self.self_attn
        parts = functional.linear(x, weights.in_proj_weight, weights.in_proj_bias).chunk(3, -1)
        return [part.unflatten(-1, (weights.num_heads, -1)).transpose(1, 2) for part in parts]

    def attention(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Scaled dot-product attention of heads (B, H, L, D / H), with dropout in training."""
        bias = None if bias is None else bias.to(query.dtype)
        dropout = self.self_attn.dropout if self.training else 0.0
        return functional.scaled_dot_product_attention(query, key, value, bias, dropout)


class TransformerEncoder(nn.Module):
    """Layers of BERT, one after another."""

    def __init__(self, config: ModelConfig, n_layers: int) -> None:
        super().__init__()
        layer = TransformerLayer(config)  # drawn once; initialise() draws the weights of each
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(n_layers))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> list[Tensor]:
        """Return the sequence (B, L, D) after each layer."""
        outputs = []
        for layer in self.layers:
            x = layer(x, bias)
            outputs.append(x)
        return outputs


class PatchColumnTransformer(nn.Module):
    """A feature extractor of transformer layers over columns of four frames of a patch.

    Pitch bands are rows of a column like mel bands.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        D, n_columns = config.model.embed_dim, config.model.patch_frames // COLUMN
        self.from_column = nn.Linear(config.spectrogram.n_bands * COLUMN, D)
        self.places = nn.Parameter(torch.zeros(n_columns, D))  # positions of the columns
        self.encoder = TransformerEncoder(config.model, EXTRACTOR_LAYERS)
        self.norm = nn.LayerNorm(D, eps=EPSILON)
        self.mean = config.model.map_pooling == "mean"
        self.to_vector = nn.Identity() if self.mean else nn.Linear(n_columns * D, D)

    def forward(self, patches: Tensor) -> Tensor:
        """Turn patches (P, 1, M, T) into vectors (P, D)."""
        columns = patches[:, 0].unflatten(-1, (-1, COLUMN)).transpose(1, 2)  # (P, T / 4, M, 4)
        x = self.from_column(columns.flatten(2)) + self.places
        x = self.norm(self.encoder(x)[-1])  # (P, T / 4, D)
        return self.to_vector(x.mean(1) if self.mean else x.flatten(1))
