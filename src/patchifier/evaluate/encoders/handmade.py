"""Features without a model: statistics over time of what can be computed from the sound directly.

MFCC and chroma are JukeMIR's (Castellon et al. 2021, arXiv 2107.05677): mono at 22,050 Hz, turned up to a peak of 1, hop 512; mean and deviation
of the sequence and of its first and second differences. The differences are plain ones between neighbouring frames.
"""

import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from patchifier import audio
from patchifier.cache import Cache
from patchifier.config import Config, ModelConfig, RequestError, digest
from patchifier.evaluate.encoders.interface import (
    Encode,
    Encoder,
    EncoderOptions,
    each_clip,
    each_waveform,
)
from patchifier.nn.descriptors import DESCRIPTORS, VERSION
from patchifier.windows import windows_of

HOP = 512
SUMMARIES = ("harmony", "mode", "pulse", "rhythm")


def mel_stats(data: Cache, indices: Sequence[int]) -> np.ndarray:
    """Mean and standard deviation over time of each mel band: (n, 2 M)."""
    return each_clip("mel-stats", _mel_stats)(data, indices)


def mfcc(data: Cache, indices: Sequence[int]) -> np.ndarray:
    """MFCC statistics as in JukeMIR, from the audio itself: (n, 120)."""
    return each_waveform("mfcc", audio.SAMPLE_RATE, mfcc_of)(data, indices)


def chroma(data: Cache, indices: Sequence[int]) -> np.ndarray:
    """Statistics of 12 constant-Q chroma as in JukeMIR, from the audio itself: (n, 72)."""
    return each_waveform("chroma", audio.SAMPLE_RATE, chroma_of)(data, indices)


def handcrafted(data: Cache, indices: Sequence[int]) -> np.ndarray:
    """MFCC, chroma and mel statistics side by side: (n, 192 + 2 M)."""

    def vector(data: Cache, index: int) -> np.ndarray:
        clip = data.clips[index]
        waveform = audio.load(clip.path, start_s=clip.start_s, end_s=clip.end_s)
        return np.concatenate([mfcc_of(waveform), chroma_of(waveform), _mel_stats(data, index)])

    return each_clip("handcrafted", vector)(data, indices)


def summaries(data: Cache, indices: Sequence[int]) -> np.ndarray:
    """What an embedding may hold beside what was learnt, with nothing learnt: descriptors of windows, averaged, (n, 272).

    Raises
    ------
    RequestError
        If the log-mels have no pitch bands.
    """
    if not data.spectrogram.pitch_bands:
        raise RequestError("summaries need pitch bands: prepare the cache with --config base.")
    model = replace(
        ModelConfig(), bands=data.spectrogram.bands, pitch_bands=data.spectrogram.pitch_bands
    )
    config = Config(spectrogram=data.spectrogram, model=model)

    def vector(data: Cache, index: int) -> np.ndarray:
        log_mel = torch.from_numpy(np.array(data.log_mel(index), np.float32).T)  # (M, T)
        windows = [
            (patches[None, :, 0].double(), new[None])
            for _, patches, new in windows_of(log_mel, config)
        ]  # (1, N, M, W), (1, N) each
        rows = [
            torch.cat([DESCRIPTORS[name].values(patches, new, config)[0] for name in SUMMARIES])
            for patches, new in windows
        ]
        return torch.stack(rows).mean(0).float().numpy()

    return each_clip("summaries", vector)(data, indices)


def _mel_stats(data: Cache, index: int) -> np.ndarray:
    log_mel = np.asarray(
        data.log_mel(index)[:, : data.spectrogram.mel_bands], np.float32
    )  # (T, mel bands)
    return np.concatenate([log_mel.mean(0), log_mel.std(0)])


def mfcc_of(waveform: np.ndarray) -> np.ndarray:
    """MFCC statistics (120,) of a waveform (S,) at 22,050 Hz."""
    import librosa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # librosa's, on clips shorter than one frame
        return moments(
            librosa.feature.mfcc(
                y=peak_normalised(waveform),
                sr=audio.SAMPLE_RATE,
                n_mfcc=20,
                n_fft=2048,
                hop_length=HOP,
            )
        )


def chroma_of(waveform: np.ndarray) -> np.ndarray:
    """Chroma statistics (72,) of a waveform (S,) at 22,050 Hz; the first twelve are the mean of C, C sharp, ..., B."""
    import librosa

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # librosa's, on silence and on clips shorter than its longest filter
        return moments(
            librosa.feature.chroma_cqt(
                y=peak_normalised(waveform), sr=audio.SAMPLE_RATE, hop_length=HOP
            )
        )


def peak_normalised(waveform: np.ndarray) -> np.ndarray:
    """Waveform turned up or down to a peak of 1; silence stays as it is."""
    peak = float(np.abs(waveform).max(initial=0.0))
    return waveform / peak if peak > 0 else waveform


def moments(sequence: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of a sequence (F, T) and of its first and second differences: (6 F,); 0 where T is too small for a difference."""
    parts = []
    for order in range(3):
        change = np.diff(sequence, n=order, axis=1)
        change = change if change.shape[1] else np.zeros_like(sequence)
        parts += [change.mean(axis=1), change.std(axis=1)]
    return np.concatenate(parts)


def build(
    encode: Encode, *, packages: Sequence[str] = ()
) -> Callable[[str, str, EncoderOptions], list[Encoder]]:
    """Make the builder of a row that takes no argument; the versions of `packages` decide the features too."""

    def builder(name: str, argument: str, options: EncoderOptions) -> list[Encoder]:
        decides = [importlib.metadata.version(package) for package in packages]
        return [
            Encoder(
                name,
                encode,
                identity=digest(
                    name, decides + ([f"descriptors {VERSION}"] if name == "summaries" else [])
                ),
            )
        ]

    return builder
