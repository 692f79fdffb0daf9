"""From a file, a waveform or a log-mel to an embedding: enter where your data is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import audio, checkpoint, spectrogram
from patchifier.config import Config, EmbedConfig, RequestError
from patchifier.model import Head, Patchifier
from patchifier.tasks import Task

BATCH = 32  # windows at once: 150 MB of activations in the paper's setting


def load(path: str | Path | None = None, *, device: str = "cpu") -> "Embedder":
    """Load a model.

    Parameters
    ----------
    path : str or Path
        A model folder, as training writes it.
    device : str
        For example "cpu" or "cuda".

    Returns
    -------
    Embedder

    Raises
    ------
    RequestError
        If there is no such model.
    """
    if path is None:
        raise RequestError("no weights come with this version yet: train some with 'patchifier demo', then load('runs/demo/model').")
    loaded = checkpoint.load(path)
    return Embedder(loaded.model, loaded.config, head=loaded.head, task=loaded.task, device=device)


class Embedder:
    """A model together with the settings that turn music into its vectors.

    Parameters
    ----------
    model : Patchifier
        Put into evaluation mode.
    config : Config
        What it was made with; ``config.embed`` decides how a sequence becomes a vector.
    head, task : Head, Task
        Of a fine-tuned model.
    device : str
        Where to compute.

    Notes
    -----
    Sound longer than the trained sequence is cut into windows of trained length that start every ``hop_patches`` patches, the last
    one anchored to the end; each gives a vector, and their mean is the embedding. So no position is used that was never trained.
    Nothing depends on what else is in the batch: padding is masked everywhere.
    """

    def __init__(self, model: Patchifier, config: Config, *, head: Head | None = None, task: Task | None = None, device: str = "cpu") -> None:
        if config.embed.pooling == "cls" and any(layer in (0, -1 - config.model.layers) for layer in config.embed.layers):
            raise RequestError("embed.pooling 'cls' needs layers of the bottleneck: layer 0, the extractor, has no CLS.")
        deepest = config.model.layers
        for layer in config.embed.layers:
            if not -1 - deepest <= layer <= deepest:
                raise RequestError(f"embed.layers holds {layer}, expected 0 to {deepest}, or -1 for the last.")
        self.model, self.config, self.head, self.task = model.to(device).eval(), config, head, task
        self.device = torch.device(device)
        if head is not None:
            head.to(device).eval()

    @property
    def size(self) -> int:
        """Length E of an embedding."""
        return self.config.model.width * len(self.config.embed.layers) * (2 if "+" in self.config.embed.pooling else 1)

    def embed(self, x: Any, sample_rate: int | None = None) -> np.ndarray:
        """Embed music.

        Parameters
        ----------
        x : str, Path, array of float (S,) or (channels, S), or a list of these
            Audio files, or samples in [-1, 1] at `sample_rate`.
        sample_rate : int
            Of arrays, in Hz. Files know their own.

        Returns
        -------
        numpy.ndarray, shape (E,), or (n, E) for a list; float32

        Raises
        ------
        RequestError
            For a file that cannot be read, an array without a rate, integers, NaN, or channels last.
        """
        if isinstance(x, list | tuple):
            if not x or isinstance(x[0], int | float):
                raise RequestError(f"embed got a list of {len(x)} numbers, expected paths or arrays: use numpy.array(samples, 'float32').")
            return self.embed_log_mels([self.log_mel(item, sample_rate) for item in x])
        return self.embed_log_mels([self.log_mel(x, sample_rate)])[0]

    def log_mel(self, x: Any, sample_rate: int | None = None) -> Tensor:
        """Log-mel (M, T) of a file or of samples, with this model's settings."""
        config = self.config.spectrogram
        if isinstance(x, str | Path):
            return spectrogram.log_mel_of_blocks(audio.blocks(x, sample_rate=config.sample_rate), config)
        return spectrogram.log_mel(audio.as_waveform(x, sample_rate, target_rate=config.sample_rate), config)

    def embed_log_mels(self, log_mels: Sequence[Tensor]) -> np.ndarray:
        """Embed log-mels (M, T) of any lengths: (n, E) float32."""
        windows = [cut_windows(log_mel, self.config) for log_mel in log_mels]
        pooled = torch.from_numpy(self._run(windows))  # (windows of all, E)
        counts = [len(part) for part in windows]
        return torch.stack([part.mean(0) for part in pooled.split(counts)]).numpy()

    @torch.inference_mode()
    def _run(self, windows: Sequence[Sequence[Tensor]]) -> np.ndarray:
        flat = [window for part in windows for window in part]
        outputs = []
        for start in range(0, len(flat), BATCH):
            patches, present = pad_windows(flat[start : start + BATCH], self.config.spectrogram.silence)
            layers = self.model.encode(patches.to(self.device), present=present.to(self.device))
            outputs.append(pool(layers, present.to(self.device), self.config.embed).float().cpu())
        return torch.cat(outputs).numpy()

    @torch.inference_mode()
    def reconstruct(self, log_mel: Tensor, masked: np.ndarray) -> tuple[Tensor, Tensor]:
        """Fill in masked patches of one sequence.

        Parameters
        ----------
        log_mel : Tensor, shape (M, T)
            Only its whole patches are used, up to the trained length.
        masked : ndarray, shape (N,), bool
            Which to hide.

        Returns
        -------
        patches, reconstructed : Tensor, shape (N, M, W)
        """
        patches = cut_windows(log_mel, self.config)[0][: len(masked)]  # (N, 1, M, W)
        where = torch.from_numpy(masked)[None].to(self.device)
        filled = self.model.reconstruct(patches[None].to(self.device), masked=where)[0].cpu()
        return patches[:, 0], filled[:, 0]


def cut_windows(log_mel: Tensor, config: Config) -> list[Tensor]:
    """Patches (N, 1, M, W) of each window of a log-mel (M, T); one window if it is short or ``embed.time`` is "whole"."""
    patches = spectrogram.cut(log_mel, length=config.model.frames, tail="anchor", silence=config.spectrogram.silence)  # (N, 1, M, W)
    length = config.pretrain.patches if config.pretrain.stage_two_patches == "consecutive" else config.model.positions
    if config.embed.time == "whole" or len(patches) <= length:
        return [patches]
    starts = spectrogram.patch_starts(len(patches), length=length, hop=config.embed.hop_patches, tail="anchor")
    return [patches[start : start + length] for start in starts]


def pad_windows(windows: Sequence[Tensor], silence: float) -> tuple[Tensor, Tensor]:
    """Windows (N_i, 1, M, W) side by side: patches (B, N, 1, M, W) and where there is one (B, N)."""
    patches = nn.utils.rnn.pad_sequence(list(windows), batch_first=True, padding_value=silence)
    counts = torch.tensor([len(window) for window in windows])
    return patches, torch.arange(patches.shape[1]) < counts[:, None]


def pool(layers: Sequence[Tensor], present: Tensor, config: EmbedConfig) -> Tensor:
    """Pool sequences over time.

    Parameters
    ----------
    layers : sequence of Tensor
        The extractor's vectors (B, N, D), then (B, 1 + N, D) of each bottleneck layer.
    present : Tensor, shape (B, N), bool
        Where there is a patch.
    config : EmbedConfig
        Which layers, and how.

    Returns
    -------
    Tensor, shape (B, E)
    """
    return torch.cat([_pool_one(layers[layer], present, config.pooling) for layer in config.layers], dim=-1)


def _pool_one(sequence: Tensor, present: Tensor, pooling: str) -> Tensor:
    if pooling == "cls":
        return sequence[:, 0]
    patches = sequence[:, -present.shape[1] :]  # (B, N, D), without CLS
    weights = present[..., None].to(patches.dtype)  # (B, N, 1)
    count = weights.sum(1)  # (B, 1)
    mean = (patches * weights).sum(1) / count  # (B, D)
    if pooling == "mean":
        return mean
    if pooling == "mean+max":
        return torch.cat([mean, patches.masked_fill(~present[..., None], -torch.inf).amax(1)], dim=-1)
    variance = ((patches - mean[:, None]).square() * weights).sum(1) / count
    return torch.cat([mean, variance.sqrt()], dim=-1)
