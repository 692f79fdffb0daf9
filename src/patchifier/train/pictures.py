"""What a model fills in, kept for the report to draw."""

import json
from pathlib import Path

import numpy as np
import torch

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


@torch.no_grad()
def write_reconstructions(
    path: Path, model: Patchifier, data: Cache, clips: np.ndarray, config: Config
) -> None:
    """Write patches of one held-out clip with what the model fills in at several mask ratios, for the report."""
    if not len(clips):
        return
    index = int(clips[len(clips) // 2])
    clip = data.clips[index]
    log_mel = torch.from_numpy(np.array(data.log_mel(index), np.float32).T)
    patches = spectrogram.cut(
        log_mel, length=config.model.patch_frames, tail="anchor", silence=config.spectrogram.silence
    )[: config.pretrain.n_patches]
    model = model.cpu().eval()
    tensors = {"original": model.mel(patches)[:, 0].contiguous()}
    for ratio in PICTURE_RATIOS:
        masked = random_masking(
            generator(config.pretrain.seed, "mask", 2**40), np.ones((1, len(patches)), bool), ratio
        )
        filled = model.reconstruct(patches[None], mask=torch.from_numpy(masked))[0]
        tensors |= {
            f"masked_{ratio}": torch.from_numpy(masked[0].astype(np.uint8)),
            f"reconstructed_{ratio}": filled[:, 0].contiguous(),
        }
    with replaced_file(path) as new:
        write_tensors(new, tensors, metadata=picture_facts(clip.id, clip.info, config))


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
