"""Reconstructions of masked patches, for the report to draw."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchifier import spectrogram
from patchifier.cache import Cache
from patchifier.checkpoint import write_tensors
from patchifier.config import Config
from patchifier.filters import mel_edges_hz
from patchifier.io import replaced_file
from patchifier.nn.masking import random_masking
from patchifier.nn.model import Patchifier
from patchifier.seeding import generator

PICTURE_RATIOS = (0.25, 0.5, 0.75, 0.9)


def reconstructions(
    reconstruct: Callable[[np.ndarray], tuple[Any, Any]], n_patches: int, seed: int
) -> dict[str, Tensor]:
    """Original patches of one clip and, for each mask ratio, the mask and what a model predicts.

    Parameters
    ----------
    reconstruct : callable
        Takes a mask (N,), returns patches and reconstructed patches, (N, M, T) each.
    n_patches, seed : int
        Length N and seed of the masks.
    """
    tensors: dict[str, Tensor] = {}
    for ratio in PICTURE_RATIOS:
        draw = generator(seed, "mask", 2**40)
        masked = random_masking(draw, np.ones((1, n_patches), bool), ratio)[0]
        patches, predicted = reconstruct(masked)
        tensors["original"] = torch.as_tensor(patches).contiguous()
        tensors[f"masked_{ratio}"] = torch.from_numpy(masked.astype(np.uint8))
        tensors[f"reconstructed_{ratio}"] = torch.as_tensor(predicted).contiguous()
    return tensors


@torch.no_grad()
def write_reconstructions(
    path: Path, model: Patchifier, data: Cache, clips: np.ndarray, config: Config
) -> None:
    """Write one held-out clip's log-mel patches and reconstructions as tensors, with metadata."""
    if not len(clips):
        return
    index = int(clips[len(clips) // 2])
    clip = data.clips[index]
    log_mel = data.array(index)
    length, silence = config.model.patch_frames, config.spectrogram.silence
    cut = spectrogram.cut(log_mel, length=length, tail="anchor", silence=silence)
    patches = torch.from_numpy(cut[: config.pretrain.n_patches])
    model = model.cpu().eval()

    def reconstruct(masked: np.ndarray) -> tuple[Tensor, Tensor]:
        predicted = model.reconstruct(patches[None], mask=torch.from_numpy(masked)[None])
        return model.mel(patches)[:, 0], predicted[0, :, 0]

    tensors = reconstructions(reconstruct, len(patches), config.pretrain.seed)
    facts = picture_facts(clip.id, clip.info, config)
    with replaced_file(path) as new:
        write_tensors(new, tensors, metadata=facts)


def picture_facts(clip: str, info: dict[str, str], config: Config) -> dict[str, str]:
    """Collect what a reader of reconstructions needs to know to draw them."""
    centres = mel_edges_hz(config.spectrogram)[1:-1]
    return {
        "clip": clip,
        "title": " – ".join(info[key] for key in ("artist", "title") if key in info),
        "frame_s": str(config.spectrogram.frame_s),
        "scale": str(config.spectrogram.db_scale),
        "band_hz": json.dumps([round(float(hertz), 1) for hertz in centres]),
        "silence": str(config.spectrogram.silence),
    }
