"""What a learned encoder has to beat, as encoders of the same interface: clips of a cache in, features (n, E) out.

==========  =====  ====================================================================================
name        size   what
==========  =====  ====================================================================================
mel-stats   2 M    mean and deviation over time of each mel band: the model's own input, no model
mfcc        120    mean and deviation of 20 MFCC and their first and second differences (JukeMIR)
random      E      the same architecture with random weights, batch-norm statistics calibrated
==========  =====  ====================================================================================
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from patchifier import audio, spectrogram
from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config
from patchifier.model import Patchifier

CALIBRATION_CLIPS = 64  # 1,600 patches: batch statistics are then known to about 1 %


def mel_stats(data: Cache, indices: Sequence[int]) -> np.ndarray:
    """Mean and standard deviation over time of each mel band: (n, 2 M)."""
    log_mels = [np.asarray(data.log_mel(index), np.float32) for index in indices]
    return np.stack([np.concatenate([log_mel.mean(0), log_mel.std(0)]) for log_mel in log_mels])


def mfcc(data: Cache, indices: Sequence[int]) -> np.ndarray:
    """MFCC statistics as in JukeMIR, from the audio itself: (n, 120)."""
    import librosa

    def features(index: int) -> np.ndarray:
        clip = data.clips[index]
        waveform = audio.load(clip.path, start_s=clip.start_s, end_s=clip.end_s)
        coefficients = librosa.feature.mfcc(y=waveform, sr=audio.SAMPLE_RATE, n_mfcc=20, n_fft=2048, hop_length=512)
        frames = coefficients.shape[1]
        width = min(9, frames - 1 + frames % 2)  # librosa's own width, less where a clip is too short for it
        short = width < 3
        differences = [np.zeros_like(coefficients) if short else librosa.feature.delta(coefficients, order=order, width=width) for order in (1, 2)]
        return np.concatenate([statistic(part, axis=1) for part in (coefficients, *differences) for statistic in (np.mean, np.std)])

    return np.stack([features(index) for index in indices])


ENCODERS: dict[str, Callable[[Cache, Sequence[int]], np.ndarray]] = {"mel-stats": mel_stats, "mfcc": mfcc}


@dataclass(frozen=True)
class Encoder:
    """Anything that turns clips into features.

    Parameters
    ----------
    name : str
        In tables.
    encode : callable
        Takes a cache and indices of clips, gives features (n, E) float32.
    parameters : int or None
        Learned numbers; 0 for hand-made features, None if unknown.
    """

    name: str
    encode: Callable[[Cache, Sequence[int]], np.ndarray]
    parameters: int | None = 0


def random_checkpoint(config: Config, data: Cache, indices: Sequence[int], *, seed: int) -> Checkpoint:
    """Return the same architecture with random weights, calibrated on training clips: a fair opponent of a trained one.

    Parameters
    ----------
    config : Config
        The trained model's.
    data : Cache
        Where the clips are.
    indices : sequence of int
        Training clips, for the batch-norm statistics.
    seed : int
        Of the weights.
    """
    model = Patchifier(config.model, seed=seed)
    chosen = np.asarray(indices)[np.linspace(0, len(indices) - 1, min(len(indices), CALIBRATION_CLIPS)).astype(int)]
    log_mels = [torch.from_numpy(np.array(data.log_mel(int(index)), np.float32).T) for index in chosen]
    cut = [spectrogram.cut(log_mel, length=config.model.frames, tail="anchor", silence=config.spectrogram.silence) for log_mel in log_mels]
    calibrate(model, torch.cat(cut))
    return Checkpoint(model, replace(config), facts={"weights": "random, calibrated", "seed": seed})


@torch.no_grad()
def calibrate(model: Patchifier, patches: torch.Tensor) -> None:
    """Set the extractor's batch-norm statistics to those of these patches (P, 1, M, W), exactly: each layer sees all of them at once."""
    norms = [module for module in model.extractor.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # take the batch's statistics as they are
    model.extractor.train()
    model.extractor(patches)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
