"""musicnn (Pons & Serra 2019, arXiv 1909.06654): a supervised tagger, trained on MagnaTagATune or the Million Song Dataset.

    python benchmarks/outsiders/from_musicnn.py CACHE --out features/musicnn --model MSD_musicnn --layers mean_pool+max_pool

Needs musicnn==0.1.0 (ISC), installed without its dependencies, since only the weights in its package are used: the TensorFlow checkpoint is read
with numpy, and the network is written in torch from the paper. So neither TensorFlow nor the numpy 1 of its own pins is needed.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import features
import librosa
import numpy as np
import torch
from tensor_bundle import read_tensors
from torch import Tensor
from torch.nn import functional

from patchifier.config import RequestError
from patchifier.evaluate.encoders import Encoder, each_waveform

SAMPLE_RATE, HOP, N_FFT, BANDS = 16_000, 256, 512, 96
FRAMES = 187  # 3 s
BATCH = 16  # windows at once: 150 MB
NORM_EPSILON = 1e-3  # TensorFlow's default
TEMPORAL = {2: 128, 3: 64, 4: 32}  # number of each temporal convolution: frames that it sees
LAYERS = {"penultimate": 200, "mean_pool": 753, "max_pool": 753, "tags": 50}


class MusiCNN:
    """Log-mels (B, T, 96) to the named layers, each (B, E)."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = {name: torch.from_numpy(values) for name, values in tensors.items()}

    def part(self, kind: str, number: int, name: str) -> Tensor:
        """Tensor of the layer that TensorFlow counted so, from 0."""
        return self.tensors[f"{kind}_{number}/{name}" if number else f"{kind}/{name}"]

    def norm(self, x: Tensor, number: int) -> Tensor:
        """Batch norm over the second axis."""
        scale, shift, mean, variance = (
            self.part("batch_normalization", number, name)
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return functional.batch_norm(x, mean, variance, scale, shift, eps=NORM_EPSILON)

    def convolve(self, x: Tensor, number: int, before: int, after: int) -> Tensor:
        """Convolution (padded in time), ReLU, batch norm."""
        kernel = self.part("conv2d", number, "kernel").permute(
            3, 2, 0, 1
        )  # height, width, in, out -> out, in, height, width
        padded = functional.pad(x, (0, 0, before, after))
        return self.norm(
            functional.relu(functional.conv2d(padded, kernel, self.part("conv2d", number, "bias"))),
            number + 1,
        )

    @torch.inference_mode()
    def layers(self, log_mel: Tensor) -> dict[str, Tensor]:
        """All layers that can be asked for."""
        x = self.norm(log_mel[:, None], 0)  # (B, 1, T, 96)
        timbral = [self.convolve(x, number, 3, 3).amax(3) for number in (0, 1)]
        temporal = [
            self.convolve(x, number, (seen - 1) // 2, seen // 2).amax(3)
            for number, seen in TEMPORAL.items()
        ]
        found = [torch.cat([*timbral, *temporal], 1)]  # (B, 561, T)
        for number in (5, 6, 7):  # dense connections in time, the last two residual
            new = self.convolve(found[-1].transpose(1, 2)[:, None], number, 3, 3)[
                ..., 0
            ]  # (B, 64, T)
            found.append(new if number == 5 else new + found[-1])
        all_of_it = torch.cat(found, 1)  # (B, 753, T)
        largest, mean = all_of_it.amax(2), all_of_it.mean(2)
        flat = self.norm(torch.stack([largest, mean], 2).flatten(1), 9)
        penultimate = self.norm(
            functional.relu(flat @ self.part("dense", 0, "kernel") + self.part("dense", 0, "bias")),
            10,
        )
        tags = torch.sigmoid(
            penultimate @ self.part("dense", 1, "kernel") + self.part("dense", 1, "bias")
        )
        return {"penultimate": penultimate, "mean_pool": mean, "max_pool": largest, "tags": tags}


def log_mels(waveform: np.ndarray) -> Tensor:
    """Windows (n, 187, 96) side by side; a clip below 3 s is repeated. The mel is rounded to half precision, as in training, before the logarithm alone."""
    mel = librosa.feature.melspectrogram(
        y=waveform, sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP, n_mels=BANDS
    ).T
    values = np.log10(
        10_000 * mel.astype(np.float16).astype(np.float32) + 1
    )  # in half precision the product overflows
    values = np.resize(values, (FRAMES, BANDS)) if len(values) < FRAMES else values
    return torch.from_numpy(
        values[: len(values) // FRAMES * FRAMES].reshape(-1, FRAMES, BANDS).astype(np.float32)
    )


def network_of(model: str) -> MusiCNN:
    """The network of one of the checkpoints in the package."""
    package = importlib.util.find_spec("musicnn")  # found, not run
    if package is None or not package.submodule_search_locations:
        raise RequestError("musicnn is not installed: pip install --no-deps musicnn==0.1.0.")
    return MusiCNN(read_tensors(Path(package.submodule_search_locations[0]) / model))


def vector_of(
    network: MusiCNN, layers: Sequence[str], waveform: np.ndarray, most: int = 0
) -> np.ndarray:
    """Mean over windows of 3 s of the layers, one behind the other; over `most` of them, evenly, if there are more."""
    windows = log_mels(waveform)
    if 0 < most < len(windows):
        windows = windows[torch.linspace(0, len(windows) - 1, most).round().long()]
    parts = [network.layers(batch) for batch in windows.split(BATCH)]
    return torch.cat([torch.cat([part[name] for part in parts]).mean(0) for name in layers]).numpy()


def encoder(model: str = "MTT_musicnn", layers: str = "penultimate", most: int = 0) -> Encoder:
    """Mean over windows, at most `most` of them, of one or several layers, joined by +."""
    network, wanted = network_of(model), layers.split("+")
    name = f"{model}-{layers}"
    return Encoder(
        name,
        each_waveform(
            name, SAMPLE_RATE, lambda waveform: vector_of(network, wanted, waveform, most)
        ),
        sum(values.numel() for values in network.tensors.values()),
    )


if __name__ == "__main__":
    arguments = features.parser(__doc__)
    arguments.add_argument("--model", choices=["MTT_musicnn", "MSD_musicnn"], default="MTT_musicnn")
    arguments.add_argument(
        "--layers", default="penultimate", help=f"of {', '.join(LAYERS)}, joined by +"
    )
    arguments.add_argument(
        "--windows", type=int, default=0, help="most windows of 3 s of a clip; all by default"
    )
    given = arguments.parse_args()
    made = encoder(given.model, given.layers, given.windows)
    sys.exit(features.write(made, given.cache, given.out))
