"""Self-test of bf16: whether this processor computes the operations of a training correctly.

Two training steps of each stage are computed. Each distinct convolution and matrix product in them,
forward and backward, is repeated and compared with float32 (docs/onednn_bf16_convolution.py shows
one that fails).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchifier.io import Progress, silent
from patchifier.nn.fast import Convolution, keep_in_float32

REPEATS = 3  # of each operation
# Relative root mean square error; rounding to bf16 alone gives 0.0017.
LARGEST_ERROR = 0.01
LEAST_NORM = 1e-30  # lower limit of the norm that an error is divided by
# Values for freed memory, so that a read outside the arguments changes the result.
FILLINGS = (float("nan"), 3e38, -3e38)
LAYER = "aten::_transformer_encoder_layer_fwd"  # a whole encoder layer, without gradients
# index of the kernel among the arguments
KERNEL_AT = {"aten::convolution": 1, "aten::convolution_backward": 2}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "_addmm_activation")
OPERATIONS = frozenset({*KERNEL_AT, LAYER, *(f"aten::{name}" for name in PRODUCTS)})

Kernel = tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """First steps of a training: a copy of the module, its loss (of module and batch), batches.

    An optimiser is given if it multiplies matrices in bf16.
    """

    module: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batches: Sequence[Any]
    optimiser: torch.optim.Optimizer | None = None


@dataclass(frozen=True)
class SelfTestResult:
    """Result of a self-test.

    Attributes
    ----------
    operations : int
        Number of distinct operations tested.
    refused : tuple of str
        Operations that failed, each with the reason.
    kernels : tuple of tuple of int
        Shapes of kernels whose convolutions failed and can be computed in float32.
    failed : bool
        Whether another operation failed, so the whole run must be in float32.
    """

    operations: int
    refused: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    failed: bool


def self_test(
    trials: Iterable[Trial], *, kernels: Iterable[Kernel] = (), progress: Progress = silent
) -> SelfTestResult:
    """Test every convolution and matrix product of some training steps in bf16.

    Modules of `trials` are changed: batch statistics are updated. `kernels` are in float32 from the
    start; those that fail are added.
    """
    found, test = set(kernels), SelfTest(progress)
    for trial in trials:
        module = trial.module.train()
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        keep_in_float32(module, found)
        while failed := test.run(trial):
            movable = {
                kernel for key in failed for kernel in _movable(module, test.kernel_of.get(key))
            }
            if not movable:
                return test.result(found, failed=True)
            found |= movable
            keep_in_float32(module, movable)
    return test.result(found, failed=False)


def _movable(module: nn.Module, kernel: Kernel | None) -> Iterator[Kernel]:
    """Weight shapes of the convolutions with this kernel that are not in float32 yet."""
    for part in module.modules():
        if isinstance(part, Convolution) and not part.float32_only and kernel in part.kernels():
            yield tuple(part.weight.shape)


class SelfTest(TorchDispatchMode):
    """Tests each distinct operation of :data:`OPERATIONS` at its first call, on its arguments.

    Operations are distinct if shapes, strides or types of their arguments differ, or if only one of
    them needs gradients.
    """

    def __init__(self, progress: Progress = silent) -> None:
        super().__init__()
        self.progress = progress
        self.reasons: dict[Any, str] = {}  # by operation; "" if passed
        self.kernel_of: dict[Any, Kernel] = {}
        self.met: dict[Any, None] = {}  # failed operations of this run, in order

    def run(self, trial: Trial) -> list[Any]:
        """Compute losses and gradients of a trial; returns the operations that failed."""
        self.met = {}
        with torch.random.fork_rng(devices=[]):
            for batch in trial.batches:
                torch.manual_seed(0)
                with self:
                    with torch.autocast("cpu", torch.bfloat16):
                        value = trial.loss(trial.module, batch)
                    value.backward()
                    if trial.optimiser is not None:
                        trial.optimiser.step()
                trial.module.zero_grad(set_to_none=True)
        return list(self.met)

    def result(self, kernels: set[Kernel], *, failed: bool) -> SelfTestResult:
        """Number of operations, and those that failed in their order."""
        refused = tuple(filter(None, self.reasons.values()))
        return SelfTestResult(len(self.reasons), refused, tuple(sorted(kernels)), failed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Test an operation, then compute it."""
        kwargs = kwargs or {}
        name = func.name().split(".")[0]

        def operation(*values: Any) -> Any:
            # autocast is off inside a dispatch mode
            with torch.autocast("cpu", torch.bfloat16, enabled=name == LAYER):
                return func(*values, **kwargs)

        in_bf16 = any(tensor.dtype == torch.bfloat16 for tensor in _tensors(args))
        if name == LAYER or (name in OPERATIONS and in_bf16):
            key = (name, torch.is_grad_enabled(), _signature((args, kwargs)))
            if key not in self.reasons:
                tested = len(self.reasons) + 1
                self.progress(tested, 0, f"{tested} operation{'s' if tested > 1 else ''}")
                reason = examine(operation, args, exact=lambda *values: func(*values, **kwargs))
                shapes = " and ".join(str(tuple(each.shape)) for each in [*_tensors(args)][:3])
                title = f"{name.removeprefix('aten::')} of {shapes}"
                self.reasons[key] = reason and f"{title}: {reason}"
                if name in KERNEL_AT:
                    self.kernel_of[key] = tuple(args[KERNEL_AT[name]].shape)
            if self.reasons[key]:
                self.met[key] = None
        return operation(*args)


def examine(
    operation: Callable[..., Any], args: Sequence[Any], *, exact: Callable[..., Any] | None = None
) -> str:
    """Test an operation with bf16 arguments; returns the reason of a failure, else "".

    It is repeated, with freed memory filled with :data:`FILLINGS`. All results must be finite,
    equal bit for bit, and within rounding error of `exact`, by default `operation` in float32.
    Arguments that are not finite are replaced by normal numbers.
    """
    args = _changed(args, _finite)
    floats = _changed(args, lambda each: each.float() if each.dtype == torch.bfloat16 else each)
    wanted = list(_tensors((exact or operation)(*floats)))
    first: list[Tensor] = []
    for repeat in range(REPEATS):
        _fill_free_memory([*_tensors(args), *first], FILLINGS[repeat % len(FILLINGS)])
        results = list(_tensors(operation(*args)))
        same = bool(first) and all(
            torch.equal(one, other) for one, other in zip(first, results, strict=True)
        )
        if not same and not all(_is_finite(result) for result in results):
            return "values that are not finite"
        if first and not same:
            return "other bits when it is repeated"
        first = first or results
    errors = [  # root mean square, relative to that of the exact values
        float((result.float() - expected).norm() / expected.norm().clamp(min=LEAST_NORM))
        for result, expected in zip(first, wanted, strict=True)
    ]
    right = all(error <= LARGEST_ERROR for error in errors)
    return "" if right else f"{max(errors):.1%} off float32"


def _fill_free_memory(like: Iterable[Tensor], value: float) -> None:
    """Allocate blocks of memory of the size of these tensors, fill them, and free them."""
    blocks = [torch.full_like(tensor, value) for tensor in like if tensor.is_floating_point()]
    blocks.clear()


def _is_finite(tensor: Tensor) -> bool:
    """Whether the sum of all values is finite, which takes a tenth of the time of isfinite."""
    return bool(tensor.sum(dtype=torch.float32).isfinite())


def _finite(tensor: Tensor) -> Tensor:
    """Return the tensor, or normal random numbers in its place if it is not finite."""
    if not tensor.is_floating_point() or _is_finite(tensor):
        return tensor
    return torch.empty_like(tensor).copy_(
        torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    )


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change the tensors in nested sequences."""
    if isinstance(value, Tensor):
        return change(value)
    return [_changed(each, change) for each in value] if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _signature(value: Any) -> Any:
    """Shapes, strides and types of tensors, and the values of other arguments."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, dict):
        return tuple((name, _signature(each)) for name, each in value.items())
    return tuple(_signature(each) for each in value) if isinstance(value, (list, tuple)) else value
