"""Features without a model: statistics over time of log-mels, MFCC and chroma.

MFCC and chroma are JukeMIR's (Castellon et al. 2021, arXiv 2107.05677): mono at 22,050 Hz,
normalised to a peak of 1, hop 512; mean and standard deviation of the sequence and of its first and
second differences between neighbouring frames.
"""

import importlib.metadata
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from patchifier import audio
from patchifier.cache import Cache
from patchifier.config import DESCRIPTORS_VERSION, Config, RequestError, digest
from patchifier.evaluate.encoders.interface import (
    Encode,
    Encoder,
    EncoderOptions,
    each_clip,
    each_waveform,
)
from patchifier.nn.descriptors import DESCRIPTORS
from patchifier.windows import windows_of

HOP = 512
SUMMARIES = ("harmony", "mode", "pulse", "rhythm")


def _mel_stats(data: Cache, index: int) -> np.ndarray:
    # (T, mel bands)
    log_mel = np.asarray(data.log_mel(index)[:, : data.spectrogram.n_mels], np.float32)
    return np.concatenate([log_mel.mean(0), log_mel.std(0)])


def mfcc_of(waveform: np.ndarray) -> np.ndarray:
    """MFCC statistics (120,) of a waveform (S,) at 22,050 Hz."""
    import librosa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # librosa's, on clips shorter than one frame
        wave, rate = peak_normalised(waveform), audio.SAMPLE_RATE
        found = librosa.feature.mfcc(y=wave, sr=rate, n_mfcc=20, n_fft=2048, hop_length=HOP)
    return sequence_statistics(found)


def chroma_of(waveform: np.ndarray) -> np.ndarray:
    """Chroma statistics (72,) of a waveform (S,) at 22,050 Hz.

    The first twelve are the mean of C, C sharp, ..., B.
    """
    import librosa

    with warnings.catch_warnings():
        # librosa's, on silence and on clips shorter than its longest filter
        warnings.simplefilter("ignore", UserWarning)
        wave, rate = peak_normalised(waveform), audio.SAMPLE_RATE
        found = librosa.feature.chroma_cqt(y=wave, sr=rate, hop_length=HOP)
    return sequence_statistics(found)


def peak_normalised(waveform: np.ndarray) -> np.ndarray:
    """Waveform turned up or down to a peak of 1; silence stays as it is."""
    peak = float(np.abs(waveform).max(initial=0.0))
    return waveform / peak if peak > 0 else waveform


def sequence_statistics(sequence: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of a sequence (F, T) and of its differences: (6 F,).

    First and second differences; 0 where T is too small for one.
    """
    parts = []
    for order in range(3):
        change = np.diff(sequence, n=order, axis=1)
        change = change if change.shape[1] else np.zeros_like(sequence)
        parts += [change.mean(axis=1), change.std(axis=1)]
    return np.concatenate(parts)


def _handcrafted(data: Cache, index: int) -> np.ndarray:
    clip = data.clips[index]
    waveform = audio.load(clip.path, start_s=clip.start_s, end_s=clip.end_s)
    return np.concatenate([mfcc_of(waveform), chroma_of(waveform), _mel_stats(data, index)])


def _summaries(data: Cache, index: int) -> np.ndarray:
    """Mean over windows of the descriptors :data:`SUMMARIES`: (272,)."""
    if not data.spectrogram.n_pitch_bands:
        raise RequestError(
            "summaries need pitch bands: prepare the cache with --config self-supervised."
        )
    config = Config(spectrogram=data.spectrogram)
    log_mel = data.array(index)  # (M, T)
    rows = []
    for _, patches, n_new_frames in windows_of(log_mel, config):
        # (1, N, M, W), (1, N)
        window = (
            torch.from_numpy(patches[None, :, 0]).double(),
            torch.from_numpy(n_new_frames)[None],
        )
        values = [DESCRIPTORS[name].values(*window, config)[0] for name in SUMMARIES]
        rows.append(torch.cat(values))
    return torch.stack(rows).mean(0).float().numpy()


# Mean and standard deviation over time of each mel band: (n, 2 M).
mel_stats = each_clip("mel-stats", _mel_stats)
# MFCC statistics as in JukeMIR, from the audio: (n, 120).
mfcc = each_waveform("mfcc", audio.SAMPLE_RATE, mfcc_of)
# Statistics of 12 constant-Q chroma as in JukeMIR, from the audio: (n, 72).
chroma = each_waveform("chroma", audio.SAMPLE_RATE, chroma_of)
# MFCC, chroma and mel statistics, concatenated: (n, 192 + 2 M).
handcrafted = each_clip("handcrafted", _handcrafted)
# Descriptors of windows, without learning; refused where log-mels have no pitch bands: (n, 272).
summaries = each_clip("summaries", _summaries)


def build(
    encode: Encode, *, packages: Sequence[str] = ()
) -> Callable[[str, str, EncoderOptions], list[Encoder]]:
    """Make the builder of a row that takes no argument.

    The versions of `packages` decide the features too.
    """

    def builder(name: str, argument: str, options: EncoderOptions) -> list[Encoder]:
        decides = [importlib.metadata.version(package) for package in packages]
        decides += [f"descriptors {DESCRIPTORS_VERSION}"] if name == "summaries" else []
        return [Encoder(name, encode, identity=digest(name, decides))]

    return builder
