"""Devices on which ONNX Runtime runs a model, by the names that torch has for them.

Only the CPU has been run by the authors. Of the others a test with a stand-in shows which provider
is asked for, and what follows where it is missing.
"""

import os
from typing import Any

from patchifier.config import RequestError

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"  # read when ONNX Runtime is first used in a process


class DeviceError(RequestError):
    """ONNX Runtime cannot use a device."""


# Providers of ONNX Runtime by device. Products are of float32, as on a CPU, not of 19 bits.
ACCELERATORS = {
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
}


def onnx_runtime() -> Any:
    """Import ONNX Runtime without its telemetry.

    Wheels of it (1.32) write a device id below the home folder and send events to their maker,
    unless this variable is set before. Worker processes inherit it.
    """
    os.environ[NO_TELEMETRY] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # for a process that had imported it before
    return onnxruntime


def serves(device: str) -> bool:
    """Whether the ONNX Runtime that is installed is one for a device, such as "cuda:1"."""
    kind = device.partition(":")[0]
    if kind not in ACCELERATORS:
        return device == "cpu"
    return ACCELERATORS[kind][0] in onnx_runtime().get_available_providers()


def provider_of(device: str) -> tuple[str, dict[str, str]]:
    """Name and settings of the provider for a device."""
    kind, _, number = device.partition(":")
    if kind not in ACCELERATORS:
        return "CPUExecutionProvider", {}
    name, settings = ACCELERATORS[kind]
    return name, {**settings, "device_id": number or "0"}


def device_error(device: str, why: str) -> DeviceError:
    """Error about a device, with what to do."""
    reason = (why.splitlines() or ["no reason given"])[0]
    return DeviceError(
        f"device is {device!r}, which ONNX Runtime cannot use ({reason}): take another device, or "
        "see its page on the CUDA and cuDNN that it needs."
    )
