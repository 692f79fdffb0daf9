"""Which numbers of a vector change when the music changes: a picture, a table and sounds."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tools.figures.style import RATE, credit, save, sound

import patchifier
from patchifier import audio, datasets

SECONDS = 8.0
SHOWN_S = 6  # of a sound on the page


def _higher(samples: np.ndarray) -> np.ndarray:
    import librosa

    return librosa.effects.pitch_shift(samples, sr=RATE, n_steps=3)


def _faster(samples: np.ndarray) -> np.ndarray:
    import librosa

    return librosa.effects.time_stretch(samples, rate=1.2)


def _dull(samples: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / RATE) > 2000] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "3 semitones higher": _higher,
    "1.2 times as fast": _faster,
    "nothing above 2 kHz": _dull,
    "20 dB quieter": lambda samples: 0.1 * samples,
}


def make(out: Path) -> None:
    """Write vectors.svg, and vectors.md with the sounds of the first clip."""
    model = patchifier.load()
    clips = datasets.load("demo").clips[::16]  # one of each soundtrack
    waves = [audio.load(clip.path, end_s=SECONDS) for clip in clips]
    before = np.stack([model.embed(wave, RATE) for wave in waves])
    after = {"another piece": np.roll(before, 1, axis=0)}
    for name, change in CHANGES.items():
        after[name] = np.stack([model.embed(change(wave), RATE) for wave in waves])
    table = np.array(
        [[_cosine(before, new, part) for new in after.values()] for part in model.slices.values()]
    )
    save(_picture(table, list(model.slices), list(after)), out / "vectors.svg")
    lines = ["| sound | |", "|---|---|"]
    first = waves[0][: SHOWN_S * RATE]
    lines.append(f"| the clip | {sound(out, 'vectors-0', first)} |")
    for number, (name, change) in enumerate(CHANGES.items(), 1):
        lines.append(f"| {name} | {sound(out, f'vectors-{number}', change(first))} |")
    lines += ["", f"The clip is by {credit(clips[0])}."]
    (out / "vectors.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cosine(before: np.ndarray, after: np.ndarray, part: slice) -> float:
    """Mean over clips of the cosine of one slice, before and after."""
    one, two = before[:, part], after[:, part]
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return float(((one * two).sum(1) / lengths).mean())


def _picture(table: np.ndarray, slices: list[str], changes: list[str]) -> Figure:
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(changes)), ["\n".join(textwrap.wrap(name, 12)) for name in changes])
    axes.set_yticks(range(len(slices)), slices)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            colour = "black" if value > 0.45 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    figure.colorbar(image, ax=axes, label="cosine with the vector before")
    return figure
