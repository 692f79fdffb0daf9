"""Arithmetic of training: float32, or bf16 where the processor multiplies it and a self-test shows that it does so correctly.

On processors with AMX, torch 2.13 computes some bf16 convolutions from memory that is not theirs (docs/onednn_bf16_convolution.py). So bf16 is
used on a CPU only after a self-test on this machine: two training steps of every stage are computed, and each distinct convolution and matrix
product in them, forward and backward, trained modules and teachers alike, is repeated and compared with float32. A convolution that fails is
kept in float32; if anything else fails, the whole run is in float32. Validation, embedding and prediction are in float32 everywhere.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchifier import devices
from patchifier.cache import Progress, silent
from patchifier.config import RequestError
from patchifier.layers import SwitchableConv2d
from patchifier.runs import Run, processor

REPEATS = 3  # of each operation
LARGEST_ERROR = 0.01  # relative, root mean square: rounding a result to bf16 costs 0.0017, so this refuses what is off by 2 %
LEAST_NORM = 1e-30  # of a float32 result, to which an error is related
FILLINGS = (float("nan"), 3e38, -3e38)  # of freed memory: a read outside an operation's own arguments shows
LAYER = "aten::_transformer_encoder_layer_fwd"  # all of an encoder layer in one operation, which torch takes without gradients
KERNEL_AT = {"aten::convolution": 1, "aten::convolution_backward": 2}  # place of the kernel among the arguments
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "_addmm_activation")
OPERATIONS = frozenset({*KERNEL_AT, LAYER, *(f"aten::{name}" for name in PRODUCTS)})

Kernel = tuple[int, ...]


@dataclass(frozen=True)
class Arithmetic:
    """What a run computes in.

    Attributes
    ----------
    precision : "32" or "bf16"
        Of forward and backward pass.
    kernels : tuple of tuple of int
        Shapes of the kernels whose convolutions are computed in float32 all the same.
    test : dict
        What the self-test found, for ``run.json``; empty where none was needed.
    """

    precision: str = "32"
    kernels: tuple[Kernel, ...] = ()
    test: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A part of a training, for the self-test: a copy of the module that is trained, and losses of it on some batches."""

    module: nn.Module
    losses: Sequence[Callable[[nn.Module], Tensor]]


@dataclass(frozen=True)
class Verdict:
    """Result of a self-test.

    Attributes
    ----------
    operations : int
        Distinct operations that were tested.
    refused : tuple of str
        Those that failed, each with the reason.
    kernels : tuple of tuple of int
        Kernels of convolutions that failed and can be kept in float32.
    failed : bool
        Whether another operation failed, so that the whole run has to be in float32.
    """

    operations: int
    refused: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    failed: bool


# --- which arithmetic ---


def best_precision(device: str, wanted: str = "auto") -> str:
    """Return "bf16" where the processor is faster with it, else "32"; `wanted`, if it is not "auto". No self-test is made here."""
    if wanted != "auto":
        return wanted
    if device in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    return "bf16" if device in ("auto", "cpu") and processor_has_bf16() else "32"


def processor_has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself (AVX-512 BF16 or AMX); without, bf16 is many times slower than float32."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def settle(run: Run, wanted: str, device: str, trials: Callable[[], Iterable[Trial]], *, flag: str, progress: Progress = silent) -> Arithmetic:
    """Choose a run's arithmetic once and for all, and write it into ``run.json``.

    Parameters
    ----------
    run : Run
        A run that is resumed keeps the arithmetic it began with; where the machine is another one, that is tested again.
    wanted : "auto", "32" or "bf16"
    device : str
        As for :func:`patchifier.devices.launch`.
    trials : callable
        Returns what the run computes.
    flag : str
        The option that sets `wanted`, for messages.
    progress : callable
        Called with operations tested, operations found, and a note.

    Raises
    ------
    RequestError
        If bf16 was asked for, or the run began with it, and this machine computes an operation of it wrongly.
    """
    begun = _of_facts(run.before)
    if begun:
        return record(run, _resumed(begun, device, trials, progress))
    return record(run, decide(wanted, device, trials, flag=flag, progress=progress))


def of_run(folder: Path) -> Arithmetic | None:
    """Arithmetic of the run in a folder; None if there is none, or it has not been chosen yet."""
    facts = folder / "run.json"
    return _of_facts(json.loads(facts.read_text(encoding="utf-8"))) if facts.exists() else None


def _of_facts(facts: dict[str, Any]) -> Arithmetic | None:
    """Read the arithmetic from what ``run.json`` holds."""
    if "precision" not in facts:
        return None
    test = facts.get("precision test") or {}
    kernels = tuple(tuple(kernel) for kernel in test.get("float32 kernels", ()))
    return Arithmetic(facts["precision"], kernels if facts["precision"] == "bf16" else (), test)


def record(run: Run, arithmetic: Arithmetic) -> Arithmetic:
    """Write a run's arithmetic into ``run.json``, and return it."""
    run.facts["precision"] = arithmetic.precision
    if arithmetic.test:
        run.facts["precision test"] = arithmetic.test
    run.write_facts("running")  # a run that is killed has settled it too
    return arithmetic


def decide(wanted: str, device: str, trials: Callable[[], Iterable[Trial]], *, flag: str = "precision", progress: Progress = silent) -> Arithmetic:
    """Choose the arithmetic for what `trials` compute; see :func:`settle`."""
    precision = best_precision(device, wanted)
    if precision != "bf16" or not _on_cpu(device):
        return Arithmetic(precision)
    started = time.monotonic()
    verdict = self_test(trials(), progress=progress)
    if verdict.failed and wanted == "bf16":
        raise RequestError(f"{flag} is 'bf16', which this processor computes wrongly: {verdict.refused[-1]}. Use --{flag} 32, or auto.")
    precision = "32" if verdict.failed else "bf16"
    progress(verdict.operations, verdict.operations, _in_words(precision, verdict))
    facts = {"precision": precision, "seconds": round(time.monotonic() - started, 1), "operations": verdict.operations}
    facts |= {"refused": list(verdict.refused), "float32 kernels": [list(kernel) for kernel in verdict.kernels], **_machine()}
    return Arithmetic(precision, () if verdict.failed else verdict.kernels, facts)


def _in_words(precision: str, verdict: Verdict) -> str:
    """Result of a self-test in one line."""
    if verdict.failed:
        return f"float32: this processor computes bf16 wrongly: {verdict.refused[-1]}"
    kept = f", float32 for {len(verdict.kernels)} kernels that it computes wrongly: {verdict.refused[0]}" if verdict.kernels else ""
    return f"{precision}{kept}"


def _resumed(begun: Arithmetic, device: str, trials: Callable[[], Iterable[Trial]], progress: Progress) -> Arithmetic:
    """Return the arithmetic that a run began with; on another machine, after a self-test."""
    if begun.precision != "bf16" or not _on_cpu(device) or _machine().items() <= begun.test.items():
        return begun
    verdict = self_test(trials(), kernels=begun.kernels, progress=progress)
    if verdict.failed or set(verdict.kernels) != set(begun.kernels):
        raise RequestError(
            f"this run began in bf16, which this machine computes wrongly: {verdict.refused[-1]}. "
            "Resume it on a machine like the one that it began on, or start another in float32."
        )
    progress(verdict.operations, verdict.operations, "bf16")
    return begun


def _on_cpu(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def _machine() -> dict[str, Any]:
    """What the result of a self-test depends on."""
    amx = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return {"processor": processor(), "amx": amx, "ONEDNN_MAX_CPU_ISA": limit, "threads": torch.get_num_threads(), "torch": torch.__version__}


def agree(fabric: Any, run: Run, arithmetic: Arithmetic) -> Arithmetic:
    """Let all processes compute alike: in float32, or with a kernel in float32, if any process has to."""
    if fabric.world_size == 1:
        return arithmetic
    others: list[Arithmetic] = devices.gathered_objects(arithmetic)
    if any(other.precision == "32" for other in others):
        devices.use_float32(fabric)
        return record(run, Arithmetic("32", (), arithmetic.test))
    kernels = sorted({kernel for other in others for kernel in other.kernels})
    test = arithmetic.test | {"float32 kernels": [list(kernel) for kernel in kernels]} if arithmetic.test else {}
    return record(run, Arithmetic(arithmetic.precision, tuple(kernels), test))


def keep_in_float32(module: nn.Module, kernels: Iterable[Kernel]) -> None:
    """Let the convolutions with kernels of these shapes compute in float32 inside bf16 training."""
    chosen = set(kernels)
    for part in module.modules():
        if isinstance(part, SwitchableConv2d) and tuple(part.weight.shape) in chosen:
            part.float32_only = True


# --- the self-test ---


def self_test(trials: Iterable[Trial], *, kernels: Iterable[Kernel] = (), progress: Progress = silent) -> Verdict:
    """Test every convolution and matrix product that some trials compute in bf16.

    Parameters
    ----------
    trials : iterable of Trial
        Their modules are changed: statistics move, gradients are left.
    kernels : iterable of tuple of int
        Kernels that are kept in float32 from the start; those that fail are added.
    progress : callable
        Called with operations tested, one more, and the name of one.
    """
    found, test = set(kernels), SelfTest(progress)
    for trial in trials:
        module = trial.module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        keep_in_float32(module, found)
        while failed := test.run(trial):
            movable = {kernel for key in failed for kernel in _movable(module, test.kernel_of.get(key))}
            if not movable:
                return Verdict(len(test.reasons), test.refused(), tuple(sorted(found)), failed=True)
            found |= movable
            keep_in_float32(module, movable)
    return Verdict(len(test.reasons), test.refused(), tuple(sorted(found)), failed=False)


def _movable(module: nn.Module, kernel: Kernel | None) -> Iterator[Kernel]:
    """Weight shapes of the convolutions that use a kernel and are not in float32 yet."""
    for part in module.modules():
        if isinstance(part, SwitchableConv2d) and not part.float32_only and kernel in part.kernels():
            yield tuple(part.weight.shape)


class SelfTest(TorchDispatchMode):
    """Examines each distinct operation of :data:`OPERATIONS` in bf16 when it is first computed, on its real arguments.

    Distinct are operations that differ in shapes, strides and types of their arguments, or in whether gradients are asked for.
    """

    def __init__(self, progress: Progress = silent) -> None:
        super().__init__()
        self.progress = progress
        self.reasons: dict[Any, str] = {}  # by operation; "" if it passed
        self.kernel_of: dict[Any, Kernel] = {}
        self.met: dict[Any, None] = {}  # refused operations of this run, in order

    def run(self, trial: Trial) -> list[Any]:
        """Compute a trial's losses and their gradients; returns the refused operations among them."""
        self.met = {}
        with torch.random.fork_rng(devices=[]):
            for loss in trial.losses:
                torch.manual_seed(0)
                with self:
                    with torch.autocast("cpu", torch.bfloat16):
                        value = loss(trial.module)
                    value.backward()
                trial.module.zero_grad(set_to_none=True)
        return list(self.met)

    def refused(self) -> tuple[str, ...]:
        """All refused operations with reasons, in order."""
        return tuple(reason for reason in self.reasons.values() if reason)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Examine an operation, then compute it."""
        kwargs = kwargs or {}
        name = func.name().split(".")[0]

        def operation(*values: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=name == LAYER):  # a dispatch mode is called with autocast switched off
                return func(*values, **kwargs)

        if name == LAYER or (name in OPERATIONS and _has_bf16(args)):
            key = (name, torch.is_grad_enabled(), _signature((args, kwargs)))
            if key not in self.reasons:
                self.progress(len(self.reasons), len(self.reasons) + 1, name.removeprefix("aten::"))
                reason = examine(operation, args, exact=lambda *values: func(*values, **kwargs))
                self.reasons[key] = reason and f"{_title(name, args)}: {reason}"
                if name in KERNEL_AT:
                    self.kernel_of[key] = tuple(args[KERNEL_AT[name]].shape)
            if self.reasons[key]:
                self.met[key] = None
        return operation(*args)


def examine(operation: Callable[..., Any], args: Sequence[Any], *, exact: Callable[..., Any] | None = None) -> str:
    """Say why an operation is not to be trusted with bf16 numbers; "" if it is.

    It is repeated, with free memory filled with values that show. All results have to be finite, the same bit for bit, and as close
    to those of the same numbers in float32 as rounding allows.

    Parameters
    ----------
    operation : callable
        Returns a tensor or several.
    args : sequence
        Its arguments; bf16 tensors among them. Where one holds values that are not finite, normal numbers take its place.
    exact : callable
        The operation in float32; by default itself, of float32 tensors.
    """
    args = _changed(args, _finite)
    wanted = list(_tensors((exact or operation)(*_changed(args, _to_float32))))
    first: list[Tensor] = []
    for repeat in range(REPEATS):
        _fill_free_memory([*_tensors(args), *first], FILLINGS[repeat % len(FILLINGS)])
        results = list(_tensors(operation(*args)))
        same = bool(first) and all(torch.equal(one, other) for one, other in zip(first, results, strict=True))  # NaN is equal to nothing
        if not same and not all(_is_finite(result) for result in results):
            return "values that are not finite"
        if first and not same:
            return "other bits when it is repeated"
        first = first or results
    errors = [_relative_error(result, expected) for result, expected in zip(first, wanted, strict=True)]
    return "" if all(error <= LARGEST_ERROR for error in errors) else f"{max(errors):.1%} off float32"


def _relative_error(result: Tensor, exact: Tensor) -> float:
    """Root mean square of the error over that of the exact values."""
    return float((result.float() - exact).norm() / exact.norm().clamp(min=LEAST_NORM))


def _fill_free_memory(like: Iterable[Tensor], value: float) -> None:
    """Take blocks of memory as large as these tensors, fill them, and free them."""
    blocks = [torch.full_like(tensor, value) for tensor in like if tensor.is_floating_point()]
    blocks.clear()


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, and far from the largest: a sum takes a tenth of the time of looking at each."""
    return bool(tensor.sum(dtype=torch.float32).isfinite())


def _finite(tensor: Tensor) -> Tensor:
    """Return the tensor, or normal numbers of its shape and strides if it holds values that are not finite."""
    if not tensor.is_floating_point() or _is_finite(tensor):
        return tensor
    return torch.empty_like(tensor).copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


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


def _has_bf16(args: Any) -> bool:
    return any(tensor.dtype == torch.bfloat16 for tensor in _tensors(args))


def _signature(value: Any) -> Any:
    """All of some arguments but the numbers in tensors."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, dict):
        return tuple((name, _signature(each)) for name, each in value.items())
    return tuple(_signature(each) for each in value) if isinstance(value, (list, tuple)) else value


def _title(name: str, args: Any) -> str:
    """Name and shapes of an operation: "convolution of (480, 128, 4, 2) and (256, 128, 3, 3)"."""
    shapes = [str(tuple(tensor.shape)) for tensor in _tensors(args)]
    return f"{name.removeprefix('aten::')} of {' and '.join(shapes[:3])}"
