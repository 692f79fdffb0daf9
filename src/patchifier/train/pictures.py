"""Reconstructions of masked patches, for the report to draw."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from patchifier import spectrogram
from patchifier.config import Config
from patchifier.filters import mel_edges_hz
from patchifier.io import replaced_file
from patchifier.predictors import band_means
from patchifier.seeding import generator, random_masking

if TYPE_CHECKING:
    from patchifier.cache import Cache
    from patchifier.nn.model import Patchifier
    from patchifier.train.references import Kriging

PICTURE_RATIOS = (0.25, 0.5, 0.75, 0.9)


def reconstructions(
    reconstruct: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], n_patches: int, seed: int
) -> dict[str, np.ndarray]:
    """Original patches of one clip and, for each mask ratio, the mask and what a model predicts.

    `reconstruct` takes a mask (N,), returns patches and reconstructed patches, (N, M, T) each.
    """
    arrays: dict[str, np.ndarray] = {}
    for ratio in PICTURE_RATIOS:
        draw = generator(seed, "mask", 2**40)
        masked = random_masking(draw, np.ones((1, n_patches), bool), ratio)[0]
        patches, predicted = reconstruct(masked)
        arrays["original"] = np.ascontiguousarray(patches)
        arrays[f"masked_{ratio}"] = masked.astype(np.uint8)
        arrays[f"reconstructed_{ratio}"] = np.ascontiguousarray(predicted)
    return arrays


def write_reconstructions(
    path: Path,
    model: "Patchifier",
    data: "Cache",
    clips: np.ndarray,
    config: Config,
    *,
    kriging: "Kriging | None" = None,
) -> None:
    """Write one held-out clip's log-mel patches and reconstructions as tensors, with metadata.

    With `kriging`, its MSE on the masked patches of each ratio is among the metadata.
    """
    import torch  # those who read pictures need none

    if not len(clips):
        return
    index = int(clips[len(clips) // 2])
    clip = data.clips[index]
    length, silence = config.model.patch_frames, config.spectrogram.silence
    cut = spectrogram.cut(data.array(index), length=length, tail="anchor", silence=silence)
    patches = torch.from_numpy(cut[: config.pretrain.n_patches])
    model = model.cpu().eval()

    def reconstruct(masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predicted = model.reconstruct(patches[None], mask=torch.from_numpy(masked)[None])
        return model.mel(patches)[:, 0].numpy(), predicted[0, :, 0].numpy()

    with torch.no_grad():
        arrays = reconstructions(reconstruct, len(patches), config.pretrain.seed)
    facts = picture_facts(clip.id, clip.info, config)
    if kriging is not None:
        facts["kriging_mse"] = json.dumps(kriging_errors(arrays, kriging))
    with replaced_file(path) as new:  # write_bytes: save_file hides what the disk says
        new.write_bytes(safetensors.numpy.save(arrays, metadata=facts))


def kriging_errors(arrays: dict[str, np.ndarray], kriging: "Kriging") -> dict[str, float]:
    """MSE of kriging on the masked patches of :func:`reconstructions`, by mask ratio."""
    original, errors = arrays["original"], {}
    bands = band_means(original)[None]  # (1, N, M)
    for ratio in map(str, PICTURE_RATIOS):
        masked = arrays[f"masked_{ratio}"].astype(bool)
        guess = kriging.predict(bands, ~masked[None])[0][..., None]
        errors[ratio] = float(np.square(original - guess)[masked].mean())
    return errors


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
