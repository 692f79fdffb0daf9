"""Arithmetic of training: float32, or bf16 where the processor multiplies it and a self-test shows that it does so correctly.

On processors with AMX, torch 2.13 computes some bf16 convolutions from memory that is not theirs (docs/onednn_bf16_convolution.py). So bf16 is
used on a CPU only after a self-test on this machine (:mod:`patchifier.train.self_test`). A convolution that fails is kept in float32; if
anything else fails, the whole run is in float32. Validation, embedding and prediction are in float32 everywhere.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from patchifier.config import RequestError
from patchifier.io import Progress, silent
from patchifier.train.distributed import gathered_objects, use_float32
from patchifier.train.run import Run, processor
from patchifier.train.self_test import Kernel, Trial, Verdict, self_test


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


def best_precision(device: str, wanted: str = "auto") -> str:
    """Return "bf16" where the processor is faster with it, else "32"; `wanted`, if it is not "auto". No self-test is made here."""
    if wanted != "auto":
        return wanted
    if device in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    return "bf16" if device in ("auto", "cpu") and processor_has_bf16() else "32"


def processor_has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself (AVX-512 BF16 or AMX); without, bf16 is many times slower than float32."""
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
    """Choose a run's arithmetic once and for all, and write it into ``run.json``.

    Parameters
    ----------
    run : Run
        A run that is resumed keeps the arithmetic it began with; where the machine is another one, that is tested again.
    wanted : "auto", "32" or "bf16"
    device : str
        As for :func:`patchifier.train.distributed.launch`.
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


def decide(
    wanted: str,
    device: str,
    trials: Callable[[], Iterable[Trial]],
    *,
    flag: str = "precision",
    progress: Progress = silent,
) -> Arithmetic:
    """Choose the arithmetic for what `trials` compute; see :func:`settle`."""
    precision = best_precision(device, wanted)
    if precision != "bf16" or not _on_cpu(device):
        return Arithmetic(precision)
    started = time.monotonic()
    verdict = self_test(trials(), progress=progress)
    if verdict.failed and wanted == "bf16":
        raise RequestError(
            f"{flag} is 'bf16', which this processor computes wrongly: {verdict.refused[-1]}. Use --{flag} 32, or auto."
        )
    precision = "32" if verdict.failed else "bf16"
    progress(verdict.operations, verdict.operations, _in_words(precision, verdict))
    facts = {
        "precision": precision,
        "seconds": round(time.monotonic() - started, 1),
        "operations": verdict.operations,
    }
    facts |= {
        "refused": list(verdict.refused),
        "float32 kernels": [list(kernel) for kernel in verdict.kernels],
        **_machine(),
    }
    return Arithmetic(precision, () if verdict.failed else verdict.kernels, facts)


def _in_words(precision: str, verdict: Verdict) -> str:
    """Result of a self-test in one line."""
    if verdict.failed:
        return f"float32: this processor computes bf16 wrongly: {verdict.refused[-1]}"
    kept = (
        f", float32 for {len(verdict.kernels)} kernels that it computes wrongly: {verdict.refused[0]}"
        if verdict.kernels
        else ""
    )
    return f"{precision}{kept}"


def _resumed(
    begun: Arithmetic, device: str, trials: Callable[[], Iterable[Trial]], progress: Progress
) -> Arithmetic:
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
    return {
        "processor": processor(),
        "amx": amx,
        "ONEDNN_MAX_CPU_ISA": limit,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def agree(fabric: Any, run: Run, arithmetic: Arithmetic) -> Arithmetic:
    """Let all processes compute alike: in float32, or with a kernel in float32, if any process has to."""
    if fabric.world_size == 1:
        return arithmetic
    others: list[Arithmetic] = gathered_objects(arithmetic)
    if any(other.precision == "32" for other in others):
        use_float32(fabric)
        return record(run, Arithmetic("32", (), arithmetic.test))
    kernels = sorted({kernel for other in others for kernel in other.kernels})
    test = (
        arithmetic.test | {"float32 kernels": [list(kernel) for kernel in kernels]}
        if arithmetic.test
        else {}
    )
    return record(run, Arithmetic(arithmetic.precision, tuple(kernels), test))
