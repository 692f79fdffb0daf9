"""Masked patches of a bundled clip and what two models predict: a picture, a table, sounds."""

from pathlib import Path

import numpy as np
from tools.figures.style import credit, save, sound

import patchifier
from patchifier import audio, datasets, predictors, spectrogram
from patchifier.evaluate.report import reconstruction_figure
from patchifier.train import pictures

CLIP = "warzone2100_00"
RATIOS = ("0.5", "0.75")


def make(out: Path) -> None:
    """Write masking.png and masking.md: errors beside those without a model, and sounds."""
    model = patchifier.load("patchifier-paper")
    (clip,) = [clip for clip in datasets.load("demo").clips if clip.id == CLIP]
    log_mel = model.log_mel(audio.load(clip.path), 22_050)
    n_patches = min(25, log_mel.shape[1] // 32)
    arrays = pictures.reconstructions(lambda mask: model.reconstruct(log_mel, mask), n_patches, 0)
    kept = {
        name: array for name, array in arrays.items() if name.partition("_")[2] in ("", *RATIOS)
    }
    facts = pictures.picture_facts(clip.id, {"title": clip.info["title"]}, model.config)
    save(reconstruction_figure(kept, facts), out / "masking.png")
    lines = ["| masked patches | patchifier-paper | mean of visible patches | interpolation |"]
    lines += ["|---:|---:|---:|---:|"]
    for ratio in RATIOS:
        mask = arrays[f"masked_{ratio}"].astype(bool)
        error = np.square(arrays["original"] - arrays[f"reconstructed_{ratio}"])[mask].mean()
        others = predictors.untrained_mse(arrays["original"], mask)
        cells = [error, others["visible_mean"], others["interpolation"]]
        figures = " | ".join(f"{value:.4f}" for value in cells)
        lines.append(f"| {int(mask.sum())} of {n_patches} | {figures} |")
    for name, words in (("original", "The clip"), ("reconstructed_0.5", "Half of it predicted")):
        patches = arrays[name]
        if name != "original":
            patches = np.where(arrays["masked_0.5"][:, None, None], patches, arrays["original"])
        joined = spectrogram.join(patches[:, None], n_patches * 32, tail="anchor")
        samples = spectrogram.to_waveform(joined, model.config.spectrogram)
        lines += ["", f"{words}: {sound(out, f'masking-{name}', samples)}"]
    lines += ["", f"The clip is by {credit(clip)}."]
    (out / "masking.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
