"""What leaks do: the accuracy of one classifier, with and without the test's tracks in training."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tools.figures.style import BLUE, ORANGE, RATE, credit, save, sound

import patchifier
from patchifier import audio, datasets, spectrogram
from patchifier.fingerprint import fingerprint
from patchifier.matching import agreement

SHOWN_S = 6


def make(out: Path) -> None:
    """Write leaks.svg, and leaks.md: the figures, and a clip with its changed copy."""
    model = patchifier.load()
    clips = datasets.load("demo").clips
    halves = [audio.load(clip.path) for clip in clips]
    first, second = (
        _unit(np.stack([model.embed(wave[part], RATE) for wave in halves]))
        for part in (slice(None, 10 * RATE), slice(10 * RATE, None))
    )
    targets = np.array([clip.target for clip in clips])
    groups = np.array([clip.group for clip in clips])
    others = groups[:, None] != groups[None]  # the neighbour is of another track
    scores = second @ first.T
    leaky = 100 * float((targets[scores.argmax(1)] == targets).mean())
    clean = 100 * float((targets[np.where(others, scores, -2).argmax(1)] == targets).mean())
    save(_picture(clean, leaky), out / "leaks.svg")
    lines = [
        f"Without the track: {clean:.1f} %. With the other half of the track: {leaky:.1f} %.",
        "",
        *_copies(out, clips[0], halves[0]),
    ]
    (out / "leaks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _picture(clean: float, leaky: float) -> Figure:
    figure = Figure(figsize=(7.5, 1.9), layout="constrained")
    axes = figure.subplots()
    names = ["track only in the test", "other half of the track\nin the training data"]
    bars = axes.barh(names, [clean, leaky], color=[BLUE, ORANGE], height=0.6)
    bars[1].set_hatch("///")
    axes.bar_label(bars, fmt="%.1f %%", padding=4)
    axes.set(xlim=(0, 109), xlabel="accuracy of the nearest neighbour, seven soundtracks, %")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _copies(out: Path, clip: datasets.Clip, wave: np.ndarray) -> list[str]:
    """A clip and its changed copies, with the share of fingerprint bits that agree."""
    noise = np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32)
    copies = {
        "the clip": wave,
        "20 dB quieter": 0.1 * wave,
        "with noise, 10 dB below": wave + noise * np.sqrt(np.mean(wave**2) / 10),
        "played backwards": wave[::-1],
    }
    prints = [fingerprint(spectrogram.log_mel(copy).T) for copy in copies.values()]
    lines = ["| copy | reliable bits that agree | |", "|---|---:|---|"]
    for number, (name, copy) in enumerate(copies.items()):
        same = agreement(prints[number], prints[0], 0)
        heard = sound(out, f"leaks-{number}", copy[: SHOWN_S * RATE])
        lines.append(f"| {name} | {100 * same:.0f} % | {heard} |")
    return [*lines, "", f"The clip is by {credit(clip)}."]
