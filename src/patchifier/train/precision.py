"""Precision of training: float32, or bf16 on processors that compute it fast and correctly.

On processors with AMX, torch 2.13 reads beyond the arguments of some bf16 convolutions
(docs/onednn_bf16_convolution.py). So bf16 is used on a CPU only after a self-test on this machine
(:mod:`patchifier.train.self_test`). A convolution that fails is computed in float32; if another
operation fails, the whole run is in float32. Validation, embedding and prediction always use
float32.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from patchifier.config import RequestError
from patchifier.io import Progress, silent
from patchifier.train.distributed import gathered_objects, use_float32
from patchifier.train.run import Run, processor
from patchifier.train.self_test import Kernel, SelfTestResult, Trial, self_test

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TITLE = "testing bf16 arithmetic"
ANNOUNCEMENT = "whether this processor computes it correctly, once a run"


@dataclass(frozen=True)
class Arithmetic:
    """Precision of a run.

    Attributes
    ----------
    precision : "32" or "bf16"
        Precision of forward and backward pass.
    kernels : tuple of tuple of int
        Shapes of the kernels whose convolutions are computed in float32.
    test : dict
        Result of the self-test, for ``run.json``; empty without a self-test.
    """

    precision: str = "32"
    kernels: tuple[Kernel, ...] = ()
    test: dict[str, Any] = field(default_factory=dict)


def best_precision(device: str, wanted: str = "auto") -> str:
    """Return "bf16" if it is faster on this device, else "32"; `wanted` if that is not "auto"."""
    if wanted != "auto":
        return wanted
    if device in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    return "bf16" if device in ("auto", "cpu") and processor_has_bf16() else "32"


def processor_has_bf16() -> bool:
    """Whether this processor has bf16 instructions (AVX-512 BF16 or AMX).

    Without them, bf16 is many times slower than float32.
    """
    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def settle(
    run: Run,
    wanted: str,
    device: str,
    trials: Callable[[], Iterable[Trial]],
    *,
    flag: str,
    progress: Progress = silent,
) -> Arithmetic:
    """Choose the precision of a run and write it into ``run.json``.

    A resumed run keeps its precision; on another machine the self-test is repeated. `trials`
    returns the first steps of the run, `flag` names the option of `wanted`. Refused if `wanted` is
    "bf16", or the run began in bf16, and the self-test fails on this machine.
    """
    begun = _of_facts(run.before)
    if begun:
        return record(run, _resumed(begun, device, trials, progress))
    return record(run, decide(wanted, device, trials, flag=flag, progress=progress))


def of_run(folder: Path) -> Arithmetic | None:
    """Precision of the run in a folder; None if there is no run or it has not been chosen."""
    facts = folder / "run.json"
    return _of_facts(json.loads(facts.read_text(encoding="utf-8"))) if facts.exists() else None


def _of_facts(facts: dict[str, Any]) -> Arithmetic | None:
    """Read the precision from the content of ``run.json``."""
    if "precision" not in facts:
        return None
    test = facts.get("precision test") or {}
    kernels = tuple(tuple(kernel) for kernel in test.get("float32 kernels", ()))
    return Arithmetic(facts["precision"], kernels if facts["precision"] == "bf16" else (), test)


def record(run: Run, arithmetic: Arithmetic) -> Arithmetic:
    """Write the precision of a run into ``run.json`` and return it."""
    run.facts["precision"] = arithmetic.precision
    if arithmetic.test:
        run.facts["precision test"] = arithmetic.test
    run.write_facts("running")  # kept if the run is killed now
    return arithmetic


def decide(
    wanted: str,
    device: str,
    trials: Callable[[], Iterable[Trial]],
    *,
    flag: str = "precision",
    progress: Progress = silent,
) -> Arithmetic:
    """Choose the precision for the steps in `trials`; see :func:`settle`."""
    precision = best_precision(device, wanted)
    if precision != "bf16" or not _on_cpu(device):
        return Arithmetic(precision)
    started = time.monotonic()
    progress(0, 0, f"{ANNOUNCEMENT}; if it takes long, --{flag} 32 goes without it")
    result = self_test(trials(), progress=progress)
    if result.failed and wanted == "bf16":
        raise RequestError(
            f"{flag} is 'bf16', which this processor computes wrongly: {result.refused[-1]}. "
            f"Use --{flag} 32, or auto."
        )
    precision = "32" if result.failed else "bf16"
    progress(result.operations, result.operations, _in_words(precision, result))
    seconds = round(time.monotonic() - started, 1)
    facts = {"precision": precision, "seconds": seconds, "operations": result.operations}
    facts |= {"refused": list(result.refused)}
    facts |= {"float32 kernels": [list(kernel) for kernel in result.kernels], **_machine()}
    return Arithmetic(precision, () if result.failed else result.kernels, facts)


def _in_words(precision: str, result: SelfTestResult) -> str:
    """Result of a self-test in one line."""
    if result.failed:
        return f"float32: this processor computes bf16 wrongly: {result.refused[-1]}"
    if not result.kernels:
        return precision
    return (
        f"{precision}, float32 for {len(result.kernels)} kernels "
        f"that it computes wrongly: {result.refused[0]}"
    )


def _resumed(
    begun: Arithmetic, device: str, trials: Callable[[], Iterable[Trial]], progress: Progress
) -> Arithmetic:
    """Return the precision of a resumed run; on another machine, after a self-test."""
    if begun.precision != "bf16" or not _on_cpu(device) or _machine().items() <= begun.test.items():
        return begun
    progress(0, 0, ANNOUNCEMENT)
    result = self_test(trials(), kernels=begun.kernels, progress=progress)
    if result.failed or set(result.kernels) != set(begun.kernels):
        raise RequestError(
            f"this run began in bf16, which this machine computes wrongly: {result.refused[-1]}. "
            "Resume it on a machine like the one that it began on, or start another in float32."
        )
    progress(result.operations, result.operations, "bf16")
    return begun


def _on_cpu(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def _machine() -> dict[str, Any]:
    """Properties of this machine on which the result of a self-test depends."""
    amx = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    facts = {"processor": processor(), "amx": amx, "ONEDNN_MAX_CPU_ISA": limit}
    return {**facts, "threads": torch.get_num_threads(), "torch": torch.__version__}


def agree(fabric: "Fabric", run: Run, arithmetic: Arithmetic) -> Arithmetic:
    """Use the same precision in all processes: float32 where one of them needs it."""
    if fabric.world_size == 1:
        return arithmetic
    others: list[Arithmetic] = gathered_objects(arithmetic)
    if any(other.precision == "32" for other in others):
        use_float32(fabric)
        return record(run, Arithmetic("32", (), arithmetic.test))
    kernels = sorted({kernel for other in others for kernel in other.kernels})
    test = arithmetic.test
    if test:
        test = test | {"float32 kernels": [list(kernel) for kernel in kernels]}
    return record(run, Arithmetic(arithmetic.precision, tuple(kernels), test))
