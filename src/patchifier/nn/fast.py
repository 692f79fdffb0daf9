"""The functions of :mod:`patchifier.nn.model` in less time: swapped in by :func:`accelerate`.

Weights and state-dict names stay. Values are the same but for rounding (``tests/nn/test_fast.py``).

Shapes: P patches, C channels in, O channels out, H x W cells of a map; B clips, L length of a
sequence, D embed_dim.
"""

import functools
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchifier.nn.model import Decoder
from patchifier.nn.transformer import TransformerLayer

FEW_CELLS = 8  # of a map on which a convolution is one matrix: 4 x 2
SMEARED = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))  # [tap of 4 x 4 kernel][tap of 3 x 3 kernel]
# [phase][small cell][tap of 3 x 3 kernel]
PHASES = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))
Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Replace modules by quicker ones with the same weights, in place, and return the model.

    Convolutions and dropout are quicker on a CPU in training. Encoder layers are one operation
    where no gradient is needed. Convolutions can be kept in float32 (:func:`keep_in_float32`).
    """
    for module in model.modules():
        if isinstance(module, Decoder):
            for layer in module.up:
                layer.__class__ = UP.get(type(layer), type(layer))
            module.__class__ = FastDecoder
    for module in model.modules():
        module.__class__ = FAST.get(type(module), type(module))
    # A CPU convolves in this order of memory 1.6 times as fast, forward and back.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class Convolution(nn.Conv2d):
    """A convolution that is one matrix on maps of few cells, and may be kept in float32.

    On such maps most taps of a 3 x 3 kernel lie beside the map, and the gradient of the kernel is
    slow: on 2 x 1 cells a matrix is four times as fast on a CPU, forward and back. In bf16 it is
    used without gradients too, since oneDNN 3.12 reads beside maps of 4 x 2 cells
    (docs/onednn_bf16_convolution.py).

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
        """Convolve with the present precision."""
        cells = maps.shape[-2:]
        few = cells.numel() <= FEW_CELLS and self.kernel_size == (3, 3)
        if few and (self.training or in_bf16(maps)):
            seen = (seen_cells(n, stride=self.stride[0], device=maps.device) for n in cells)
            return by_matrix(maps, self, *seen)
        return super().forward(maps)

    def kernels(self) -> list[tuple[int, ...]]:
        """Shapes of the weights that torch's convolution may get, for the self-test of bf16."""
        return [tuple(self.weight.shape)]


class UpConvolution(Convolution):
    """Nearest upsampling by two and a 3 x 3 convolution, without the upsampled map.

    An output cell sees 2 x 2 cells of the small map, so 4 products do the work of 9. The sum is one
    matrix for few cells. It is a transposed convolution with a 4 x 4 kernel, the 3 x 3 kernel
    summed over the 2 x 2 cells that upsampling makes of one. For a single output channel it is four
    2 x 2 kernels, one for each interleaved phase of the result.
    """

    def kernels(self) -> list[tuple[int, ...]]:
        """Shapes of the kernels by transposition and by phases."""
        return [
            (self.in_channels, self.out_channels, 4, 4),
            (4 * self.out_channels, self.in_channels, 2, 2),
        ]

    def convolve(self, maps: Tensor) -> Tensor:
        """Turn maps (P, C, H, W) into (P, O, 2 H, 2 W)."""
        cells = maps.shape[-2:]
        if cells.numel() <= FEW_CELLS // 4:
            return by_matrix(maps, self, *(seen_cells(n, up=2, device=maps.device) for n in cells))
        return self.by_phases(maps) if self.out_channels == 1 else self.by_transposition(maps)

    def by_transposition(self, maps: Tensor) -> Tensor:
        """Upsample and convolve by a transposed convolution with stride 2."""
        smeared = table(SMEARED, like=self.weight)
        kernel = torch.einsum("au,bv,oiuv->ioab", smeared, smeared, self.weight)  # (C, O, 4, 4)
        return functional.conv_transpose2d(maps, kernel, self.bias, stride=2, padding=1)

    def by_phases(self, maps: Tensor) -> Tensor:
        """Upsample and convolve by a 2 x 2 convolution for each of the four phases."""
        H, W = maps.shape[-2:]
        phases = table(PHASES, like=self.weight)
        kernels = torch.einsum("atu,bsv,oiuv->aboits", phases, phases, self.weight).flatten(0, 2)
        parts = functional.conv2d(maps, kernels, padding=1)  # (P, 4 O, H + 1, W + 1)
        parts = parts.unflatten(1, (2, 2, -1))
        # (P, O, H, W, 2)
        rows = [
            torch.stack([parts[:, a, b, :, a : a + H, b : b + W] for b in (0, 1)], dim=-1)
            for a in (0, 1)
        ]
        result = torch.stack(rows, dim=-3)  # (P, O, H, 2, W, 2)
        result = result.flatten(-4, -3).flatten(-2)  # (P, O, 2 H, 2 W)
        return result if self.bias is None else result + self.bias[:, None, None]


class FastDecoder(Decoder):
    """A decoder whose convolutions upsample."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Turn vectors (P, D) into patches (P, 1, M, T) of mel bands."""
        maps = self.from_vector(vectors).unflatten(-1, self.map)  # (P, C, M / 32, T / 32)
        return self.up(maps.contiguous(memory_format=torch.channels_last))


class FastDropout(nn.Dropout):
    """Dropout with one 64-bit draw of torch's generator for four elements.

    The probability is rounded to 1/65,536. The scale follows it, so the mean is kept, in float32
    exactly and in bf16 to 0.2 %.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zero some elements of a tensor and scale the others."""
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * (kept.to(x.dtype) * (2**16 / (2**16 - dropped)))


class FastTransformerLayer(TransformerLayer):
    """A layer that is one operation of torch without gradients; attention in float32 on a CPU.

    The bf16 kernel of a CPU takes eight times as long, backward, for sequences of odd lengths.
    """

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Turn a sequence (B, L, D) into (B, L, D)."""
        return self.fused(x, bias) if self.can_fuse(x, bias) else super().forward(x, bias)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of heads (B, H, L, D / H); on a CPU in the weights' dtype."""
        if query.device.type != "cpu":
            return super().attention(query, key, value, bias)
        with torch.autocast("cpu", enabled=False):
            dtype = self.self_attn.in_proj_weight.dtype
            return super().attention(query.to(dtype), key.to(dtype), value.to(dtype), bias)

    def can_fuse(self, x: Tensor, bias: Tensor | None) -> bool:
        """Whether the layer needs no gradient and the bias is padding alone: (B, 1, 1, L)."""
        if self.training or not torch.backends.mha.get_fastpath_enabled():
            return False
        if x.device.type not in ("cpu", "cuda", "xpu"):  # the others lack the operation
            return False
        if (bias is not None and bias.shape[2] > 1) or self.self_attn.num_heads % 2:
            return False
        if torch.is_autocast_enabled():  # of a GPU
            return False
        learnt = (x, *self.parameters())
        return not torch.is_grad_enabled() or not any(each.requires_grad for each in learnt)

    def fused(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Layer output (B, L, D) in evaluation mode, in one operation.

        `bias` masks padding by -inf.
        """
        attention = self.self_attn
        padding = None if bias is None else bias[:, 0, 0].isinf()
        return torch._transformer_encoder_layer_fwd(
            x,
            attention.embed_dim,
            attention.num_heads,
            attention.in_proj_weight,
            attention.in_proj_bias,
            attention.out_proj.weight,
            attention.out_proj.bias,
            True,  # GELU
            self.norm_first,
            self.norm1.eps,
            self.norm1.weight,
            self.norm1.bias,
            self.norm2.weight,
            self.norm2.bias,
            self.linear1.weight,
            self.linear1.bias,
            self.linear2.weight,
            self.linear2.bias,
            padding,
            None if padding is None else 1,  # a mask of keys
        )


FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Convolution,
    nn.Dropout: FastDropout,
    TransformerLayer: FastTransformerLayer,
}
UP: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: UpConvolution, nn.Upsample: nn.Identity}


def keep_in_float32(module: nn.Module, kernels: Iterable[tuple[int, ...]]) -> None:
    """Let the convolutions with kernels of these shapes compute in float32 in bf16 training."""
    chosen = set(kernels)
    for part in module.modules():
        if isinstance(part, Convolution) and tuple(part.weight.shape) in chosen:
            part.float32_only = True


def in_bf16(maps: Tensor) -> bool:
    """Whether a CPU computes products of these maps in bf16."""
    return maps.device.type == "cpu" and (
        maps.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    )


def by_matrix(maps: Tensor, convolution: nn.Conv2d, rows: Tensor, columns: Tensor) -> Tensor:
    """Convolve maps (P, C, H, W) by one matrix from all cells to all cells.

    Parameters
    ----------
    maps : Tensor, shape (P, C, H, W)
    convolution : nn.Conv2d
        Its weights.
    rows, columns : Tensor, shapes (H, H', 3) and (W, W', 3)
        Which cells an output cell sees, from :func:`seen_cells`.
    """
    weight, bias = convolution.weight, convolution.bias
    rows, columns = rows.to(weight.dtype), columns.to(weight.dtype)
    matrix = torch.einsum("hyu,wxv,oiuv->yxohwi", rows, columns, weight)  # H W C to H' W' O
    bias = None if bias is None else bias.repeat(len(matrix) * matrix.shape[1])
    cells = maps.permute(0, 2, 3, 1).flatten(1)  # (P, H W C)
    result = functional.linear(cells, matrix.flatten(3).flatten(0, 2), bias)  # (P, H' W' O)
    return result.unflatten(1, matrix.shape[:3]).permute(0, 3, 1, 2)  # (P, O, H', W')


@functools.cache
def seen_cells(cells: int, *, stride: int = 1, up: int = 1, device: torch.device) -> Tensor:
    """1 at [cell, output cell, tap] if the output cell sees the cell, else 0."""
    with torch.inference_mode(False):  # the cached tensor may be used in training
        output = torch.arange(cells * up // stride, device=device)
        seen = output[:, None] * stride + torch.arange(-1, 2, device=device)  # (cells', 3)
        inside = (seen >= 0) & (seen < cells * up)  # in the upsampled map
        seen = torch.where(inside, seen // up, cells)
        return (torch.arange(cells, device=device)[:, None, None] == seen).float()


def table(values: tuple[object, ...], *, like: Tensor) -> Tensor:
    """A constant as a tensor of the type and device of another one."""
    return _cached_table(values, like.dtype, like.device)


@functools.cache
def _cached_table(values: tuple[object, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cached tensor may be used in training
        return torch.tensor(values, dtype=dtype, device=device)
