"""Layers with the names, weights and function of torch's own, faster in training; model.py says what they are for.

Shapes: P patches, C channels in, O channels out, H x W cells of a map.
"""

import contextlib
import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from patchifier.config import ModelConfig

LEAST_VARIANCE = (
    1e-3  # of a component, in those of a number: what varies less is noise, and stays small
)
FEW_CELLS = 8  # of a map on which a convolution is one matrix: 4 x 2


class SwitchableConv2d(nn.Conv2d):
    """torch's convolution, which may be kept in float32 inside bf16 training.

    Attributes
    ----------
    float32_only : bool
        Set by :func:`keep_in_float32` where this processor computes the kernel wrongly in bf16.
    """

    float32_only = False

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (P, C, H, W) into maps (P, O, H', W')."""
        if self.float32_only and in_bf16(maps):
            with torch.autocast(maps.device.type, enabled=False):
                return self.convolve(maps.float())
        return self.convolve(maps)

    def convolve(self, maps: Tensor) -> Tensor:
        """Convolve in the arithmetic that is set."""
        return super().forward(maps)

    def kernels(self) -> list[tuple[int, ...]]:
        """Shapes of the kernels that torch may be given."""
        return [tuple(self.weight.shape)]


def keep_in_float32(module: nn.Module, kernels: Iterable[tuple[int, ...]]) -> None:
    """Let the convolutions with kernels of these shapes compute in float32 inside bf16 training."""
    chosen = set(kernels)
    for part in module.modules():
        if isinstance(part, SwitchableConv2d) and tuple(part.weight.shape) in chosen:
            part.float32_only = True


def in_bf16(maps: Tensor) -> bool:
    """Whether a CPU computes products of these maps in bf16."""
    return maps.device.type == "cpu" and (
        maps.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    )


class Convolution(SwitchableConv2d):
    """A 3 x 3 convolution with padding of one.

    On a map of a few cells most taps fall beside the map, and the gradient of the kernel is slow; there, in training, one matrix takes
    all cells to all cells: on 2 x 1 cells forward and back is four times as fast on a CPU. In bf16 it does so without gradients too,
    since oneDNN 3.12 reads beside maps of 4 x 2 cells (docs/onednn_bf16_convolution.py).
    """

    def convolve(self, maps: Tensor) -> Tensor:
        """Turn maps (P, C, H, W) into (P, O, H / stride, W / stride)."""
        if maps.shape[-2:].numel() <= FEW_CELLS and (self.training or in_bf16(maps)):
            return by_matrix(
                maps,
                self,
                *(
                    sight(cells, stride=self.stride[0], device=maps.device)
                    for cells in maps.shape[-2:]
                ),
            )
        return super().convolve(maps)


class UpConvolution(SwitchableConv2d):
    """Nearest upsampling by two and a 3 x 3 convolution with padding of one, without ever making the upsampled map.

    An output cell sees only 2 x 2 cells of the small map, so 4 products do the work of 9. Where they are summed is a matter of speed:
    in one matrix if there are few cells; in a transposed convolution with a 4 x 4 kernel, the 3 x 3 one smeared over the 2 x 2 cells that
    upsampling makes of one; and for a single output channel in four 2 x 2 kernels, one for each interleaved phase of the result.
    """

    SMEARED = (
        (0, 0, 1),
        (0, 1, 1),
        (1, 1, 0),
        (1, 0, 0),
    )  # [tap of the 4 x 4 kernel][tap of the 3 x 3 one]
    PHASES = (
        ((1, 0, 0), (0, 1, 1)),
        ((1, 1, 0), (0, 0, 1)),
    )  # [phase][cell of the small map][tap of the 3 x 3 kernel]

    def __init__(self, before: int, after: int, *, bias: bool = True) -> None:
        super().__init__(before, after, 3, padding=1, bias=bias)
        self.register_buffer(
            "smeared", torch.tensor(self.SMEARED, dtype=torch.float32), persistent=False
        )
        self.register_buffer(
            "phases", torch.tensor(self.PHASES, dtype=torch.float32), persistent=False
        )

    def kernels(self) -> list[tuple[int, ...]]:
        """Shapes of the kernels that torch may be given: by transposition, and by phases."""
        return [
            (self.in_channels, self.out_channels, 4, 4),
            (4 * self.out_channels, self.in_channels, 2, 2),
        ]

    def convolve(self, maps: Tensor) -> Tensor:
        """Turn maps (P, C, H, W) into (P, O, 2 H, 2 W)."""
        if maps.shape[-2:].numel() <= FEW_CELLS // 4:
            return by_matrix(
                maps, self, *(sight(cells, up=2, device=maps.device) for cells in maps.shape[-2:])
            )
        return self.by_phases(maps) if self.out_channels == 1 else self.by_transposition(maps)

    def by_transposition(self, maps: Tensor) -> Tensor:
        """By a transposed convolution with stride 2."""
        kernel = torch.einsum(
            "au,bv,oiuv->ioab", self.smeared, self.smeared, self.weight
        )  # (C, O, 4, 4)
        return nn.functional.conv_transpose2d(maps, kernel, self.bias, stride=2, padding=1)

    def by_phases(self, maps: Tensor) -> Tensor:
        """By a 2 x 2 convolution for each of the four phases."""
        H, W = maps.shape[-2:]
        kernels = torch.einsum(
            "atu,bsv,oiuv->aboits", self.phases, self.phases, self.weight
        ).flatten(0, 2)  # (4 O, C, 2, 2)
        found = nn.functional.conv2d(maps, kernels, padding=1).unflatten(
            1, (2, 2, -1)
        )  # (P, 2, 2, O, H + 1, W + 1)
        rows = [
            torch.stack([found[:, a, b, :, a : a + H, b : b + W] for b in (0, 1)], dim=-1)
            for a in (0, 1)
        ]  # (P, O, H, W, 2)
        result = (
            torch.stack(rows, dim=-3).flatten(-4, -3).flatten(-2)
        )  # (P, O, H, 2, W, 2) -> (P, O, 2 H, 2 W)
        return result if self.bias is None else result + self.bias[:, None, None]


def by_matrix(maps: Tensor, convolution: nn.Conv2d, rows: Tensor, columns: Tensor) -> Tensor:
    """Convolve maps (P, C, H, W) by one matrix from all cells to all cells, given which row and column sees which."""
    weight = convolution.weight
    matrix = torch.einsum(
        "hyu,wxv,oiuv->yxohwi", rows.to(weight.dtype), columns.to(weight.dtype), weight
    )  # from H W C to H' W' O
    bias = (
        None if convolution.bias is None else convolution.bias.repeat(len(matrix) * matrix.shape[1])
    )
    flat = nn.functional.linear(
        maps.permute(0, 2, 3, 1).flatten(1), matrix.flatten(3).flatten(0, 2), bias
    )  # (P, H' W' O)
    return flat.unflatten(1, matrix.shape[:3]).permute(
        0, 3, 1, 2
    )  # (P, O, H', W'), channels last in memory


@functools.cache
def sight(cells: int, *, stride: int = 1, up: int = 1, device: torch.device) -> Tensor:
    """Which cell is seen from where: 1 at [cell, cell of the result, tap of three], (cells, cells * up / stride, 3)."""
    with torch.inference_mode(False):  # it is kept, and training may want it
        result = torch.arange(cells * up // stride, device=device)
        seen = result[:, None] * stride + torch.arange(
            -1, 2, device=device
        )  # (cells', 3), in the upsampled map
        seen = torch.where(
            (seen >= 0) & (seen < cells * up), seen // up, cells
        )  # beside the map: no cell
        return (torch.arange(cells, device=device)[:, None, None] == seen).float()


class Standard(nn.Module):
    """Numbers less their mean, over their deviation, both over training clips; as they are until somebody has measured.

    The first of them, what layers were pooled to, may be turned into fewer: their principal components, again over their deviations.

    Parameters
    ----------
    size : int
        How many numbers come in.
    components : (int, int)
        How many of the first become how many; (0, 0) leaves them.

    Attributes
    ----------
    of : tuple or None
        Which numbers these are, as ``config.embed.numbers`` says; None until somebody has measured or asked.
    """

    mean: Tensor
    scale: Tensor
    directions: Tensor

    def __init__(self, size: int, *, components: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.of: tuple[Any, ...] | None = None
        self.pooled, kept = components
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        if kept:
            self.register_buffer("directions", torch.eye(self.pooled, kept))

    def measure(self, examples: Tensor) -> None:
        """Take mean, deviation and components of examples (n, E); a number that never changes keeps its scale."""
        deviation = examples.std(0, correction=0)
        self.mean.copy_(examples.mean(0))
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
        if self.pooled:
            standard = ((examples - self.mean) / self.scale)[:, : self.pooled].double()
            variances, vectors = torch.linalg.eigh(standard.T @ standard / len(standard))  # rising
            size = self.directions.shape[1]
            chosen = vectors.flip(1)[:, :size] / (variances.flip(0)[:size] + LEAST_VARIANCE).sqrt()
            signs = chosen.gather(
                0, chosen.abs().argmax(0, keepdim=True)
            ).sign()  # that of the largest weight: eigenvectors have none of their own
            self.directions.copy_(chosen * signs)

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (..., E)."""
        standard = (x - self.mean) / self.scale
        if not self.pooled:
            return standard
        return torch.cat(
            [standard[..., : self.pooled] @ self.directions, standard[..., self.pooled :]], dim=-1
        )


class Attention(nn.MultiheadAttention):
    """Self-attention, of float32 numbers on a CPU, whose bf16 kernel takes eight times as long to go back through sequences of odd lengths."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        *_: Tensor,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **__: object,
    ) -> tuple[Tensor, None]:
        """Turn a sequence (B, L, D) into (B, L, D).

        Both masks are numbers to add to scores: `attn_mask` (1 or B, H, L, L) to those of two places, `key_padding_mask` (B, L) to those of a key.
        """
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, L, D / H)
            for part in nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(
                3, dim=-1
            )
        )
        on_cpu = x.device.type == "cpu"
        with torch.autocast(x.device.type, enabled=False) if on_cpu else contextlib.nullcontext():
            if on_cpu:
                query, key, value = (
                    part.to(self.in_proj_weight.dtype) for part in (query, key, value)
                )
            padding = (
                None if key_padding_mask is None else key_padding_mask[:, None, None]
            )  # (B, 1, 1, L)
            added = (
                padding
                if attn_mask is None
                else attn_mask
                if padding is None
                else attn_mask + padding
            )
            scores = None if added is None else added.to(query.dtype)
            dropped = self.dropout if self.training else 0.0
            found = nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=scores, dropout_p=dropped
            )
        return self.out_proj(found.transpose(1, 2).flatten(2)), None


class Dropout(nn.Dropout):
    """Dropout whose draws cost little on a CPU: four places from each 64-bit number of torch's generator.

    The probability is rounded to 1/65,536 and the scale follows it, so the mean is kept, in float32 exactly; in bf16 to 0.2 %.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zero some of a tensor's numbers, scale the others."""
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        draws = (
            torch.empty(-(-x.numel() // 4), dtype=torch.int64)
            .random_(-(2**63), None)
            .view(torch.int16)[: x.numel()]
        )
        kept = draws.view(x.shape) >= dropped - 2**15
        return x * (kept.to(x.dtype) * (2**16 / (2**16 - dropped)))


def transformer(config: ModelConfig, layers: int) -> nn.TransformerEncoder:
    """BERT's layers, as many as asked, with the attention and the dropout of this file."""
    layer = nn.TransformerEncoderLayer(
        config.width,
        config.heads,
        config.feed_forward,
        config.dropout,
        activation="gelu",
        layer_norm_eps=1e-12,
        batch_first=True,
        norm_first=config.norm == "before",
    )
    layer.self_attn.__class__ = Attention
    layer.dropout, layer.dropout1, layer.dropout2 = (Dropout(config.dropout) for _ in range(3))
    # Nested tensors change the outputs of padded sequences, so that a clip would depend on its batch.
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
