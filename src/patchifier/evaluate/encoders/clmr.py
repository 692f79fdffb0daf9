"""CLMR's SampleCNN (Spijkervet & Burgoyne 2021, arXiv 2103.09410; Lee et al. 2017, arXiv 1703.01789) for the weights that its authors released.

A frame is 59,049 = 3^10 samples at 22,050 Hz (2.7 s): a convolution with stride 3, then nine of convolution, batch norm, ReLU and max pooling by 3,
which leave one moment, and a last convolution to 512 numbers. Layer sizes and names of the tensors are those of the released checkpoints.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchifier.checkpoint import weights_hash
from patchifier.config import RequestError, digest
from patchifier.evaluate.encoders.interface import Asked, Encoder, count, each_waveform, first_line

SAMPLE_RATE = 22_050
FRAME = 59_049  # samples; JukeMIR's extractor has 59,409, which the network was not trained on
CHANNELS = (
    128,
    128,
    128,
    256,
    256,
    256,
    256,
    256,
    256,
    512,
)  # into each pooling block, and out of the last
PREFIXES = (
    "model.encoder.",
    "encoder.",
    "",
)  # as Lightning saved it, as the release has it, the encoder alone
HEADS = (
    "projector.",
    "model.projector.",
    "encoder.",
    "fc.",
)  # beside the wanted prefix: training's own parts, not used
BATCH = 16  # frames at once


class SampleCNN(nn.Module):
    """Frames (B, 1, 59049) to vectors (B, 512)."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [_block(nn.Conv1d(1, CHANNELS[0], 3, stride=3))]
        for into, out in itertools.pairwise(CHANNELS):
            blocks.append(_block(nn.Conv1d(into, out, 3, padding=1), nn.MaxPool1d(3)))
        blocks.append(_block(nn.Conv1d(CHANNELS[-1], CHANNELS[-1], 3, padding=1)))
        self.sequential = nn.Sequential(*blocks)

    def forward(self, frames: Tensor) -> Tensor:
        """Vectors (B, 512) of frames (B, 1, 59049)."""
        return self.sequential(frames).flatten(1)


def _block(convolution: nn.Conv1d, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm1d(convolution.out_channels), nn.ReLU(), *after)


def from_file(name: str, argument: str, asked: Asked) -> list[Encoder]:
    """Row "clmr": FILE with weights. The feature is the mean over frames side by side; what is left at the end is dropped, a short clip padded.

    Raises
    ------
    RequestError
        If the file cannot be read, or holds other tensors than a SampleCNN's.
    """
    model = SampleCNN()
    _fill(name, model, _wanted(name, read(name, Path(argument))))
    model = model.eval().to(asked.device)

    @torch.inference_mode()
    def vector(waveform: np.ndarray) -> np.ndarray:
        cut = torch.from_numpy(frames(waveform))[:, None].to(asked.device)  # (n, 1, 59049)
        return torch.cat([model(part) for part in cut.split(BATCH)]).mean(0).cpu().numpy()

    note = f"mean over frames of {FRAME:,} samples at {SAMPLE_RATE:,} Hz"
    return [
        Encoder(
            name,
            each_waveform(name, SAMPLE_RATE, vector),
            count(model),
            identity=digest("clmr", weights_hash(model)),
            note=note,
        )
    ]


def frames(waveform: np.ndarray) -> np.ndarray:
    """Frames (n, 59049) of a waveform (S,), side by side, without the rest; one, padded with silence, if it is too short."""
    whole = np.pad(waveform, (0, max(0, FRAME - len(waveform))))
    return whole[: len(whole) // FRAME * FRAME].reshape(-1, FRAME)


class Inert:
    """Stands for whatever else a checkpoint holds, such as the trainer's objects: made and filled without running any of their code."""

    def __init__(self, *values: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Forget."""


def read(name: str, path: Path) -> dict[str, Tensor]:
    """Tensors of a file that torch.save wrote, whose code is never run (``weights_only``)."""
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        with torch.serialization.safe_globals([(Inert, each) for each in foreign]):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RequestError(
            f"{name}: {path} cannot be read ({error.strerror}): expected a file of weights, such as clmr_checkpoint_10000.pt."
        ) from error
    except Exception as error:  # torch raises a dozen kinds on a damaged or foreign file
        raise RequestError(
            f"{name}: {path} cannot be read as weights ({first_line(error)})."
        ) from error
    held = (
        held["state_dict"]
        if isinstance(held, dict) and isinstance(held.get("state_dict"), dict)
        else held
    )
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise RequestError(
            f"{name}: {path} holds {type(held).__name__}, expected a dictionary of tensors."
        )
    return dict(held)


def _wanted(name: str, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the encoder, by their names in it; a tensor of neither encoder nor training's heads is refused."""
    prefix = next(
        (
            prefix
            for prefix in PREFIXES
            if any(key.startswith(f"{prefix}sequential.") for key in held)
        ),
        None,
    )
    if prefix is None:
        raise RequestError(
            f"{name}: no tensor is named encoder.sequential.0.0.weight or the like, but {', '.join(list(held)[:3]) or 'none'}: no SampleCNN."
        )
    own = {key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}
    others = [key for key in held if not key.startswith(prefix) and not key.startswith(HEADS)]
    if others:
        raise RequestError(
            f"{name}: unexpected tensors {', '.join(others[:3])}, expected those of a SampleCNN and its projector."
        )
    return {key: value for key, value in own.items() if not key.startswith(HEADS)}


def _fill(name: str, model: SampleCNN, tensors: Mapping[str, Tensor]) -> None:
    wanted = model.state_dict()
    missing, surplus = (
        sorted(wanted.keys() - tensors.keys()),
        sorted(tensors.keys() - wanted.keys()),
    )
    if missing or surplus:
        raise RequestError(
            f"{name}: the weights lack {missing[:3] or 'nothing'} and have {surplus[:3] or 'nothing'} besides, expected exactly a SampleCNN's."
        )
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            raise RequestError(
                f"{name}: tensor {key} has shape {tuple(tensor.shape)}, expected {tuple(wanted[key].shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise RequestError(f"{name}: tensor {key} holds NaN or infinity, expected numbers.")
    model.load_state_dict(dict(tensors))
