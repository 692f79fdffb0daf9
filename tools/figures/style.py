"""What all figures of the site share: colours for the colour-blind, text sizes, sounds."""

import html
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
from matplotlib.figure import Figure

from patchifier.datasets import Clip

# Okabe and Ito's colours: told apart by the colour-blind, and in black and white by darkness.
BLUE, ORANGE, GREEN, RED, SKY, GREY = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#56b4e9",
    "#7f7f7f",
)
RATE = 22_050


def save(figure: Figure, path: Path) -> None:
    """Write an SVG or PNG, the same bytes for the same figure."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "patchifier"}):
        figure.savefig(path, metadata=metadata, facecolor="white", dpi=110)


def sound(out: Path, name: str, samples: np.ndarray, rate: int = RATE) -> str:
    """Write a sound, and return the HTML that plays it on a page one folder below the root."""
    quiet = samples / max(1.0, np.abs(samples).max())
    soundfile.write(out / "root" / "sounds" / f"{name}.ogg", quiet, rate)
    return f'<audio controls preload="none" src="../sounds/{name}.ogg"></audio>'


def credit(clip: Clip) -> str:
    """Who made a bundled clip, and its licence."""
    facts = [clip.info.get(key, "") for key in ("artist", "title", "licence")]
    artist, title, licence = map(html.escape, facts)
    return f"{artist}, “{title}” ({licence})"
