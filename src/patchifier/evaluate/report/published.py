"""Figures that others published about a data set, shown beside our rows of the same task alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from patchifier.evaluate.report.tables import Column, with_unit

TASKS = {"gtzan": "accuracy", "emomusic": "r2"}  # data set, whatever its split -> metric
TITLES = {"gtzan": "GTZAN", "emomusic": "EmoMusic"}


@dataclass(frozen=True)
class Published:
    """One system of the paper's Table 1 or of JukeMIR's table.

    `how` is training data; labels; probe; pooling. `scores` has accuracy or R2 (0 to 1) of each
    data set, and the letter of a note or "".
    """

    system: str
    how: str
    scores: dict[str, tuple[float, str]]


FILTERED = "JukeMIR’s probe"
SYSTEMS = (
    Published(
        "Patchifier (the paper)",
        "16,000 clips of MagnaTagATune, no labels; linear probe on CLS",
        {"gtzan": (0.723, "a"), "emomusic": (0.486, "")},
    ),
    Published(
        "CLMR",
        f"MagnaTagATune, no labels; {FILTERED}, mean of frames",
        {"gtzan": (0.686, ""), "emomusic": (0.568, "b")},
    ),
    Published(
        "JukeMIR",
        f"1.2 million songs, no labels; {FILTERED}, mean over 25 s",
        {"gtzan": (0.797, ""), "emomusic": (0.669, "c")},
    ),
    Published("MuLaP", "audio with text; probe not known", {"emomusic": (0.585, "d")}),
    Published("S3T", "no labels; linear probe, split not known", {"gtzan": (0.811, "")}),
    Published(
        "MusiCNN",
        f"tags of the Million Song Dataset; {FILTERED}, mean and maximum",
        {"gtzan": (0.790, ""), "emomusic": (0.585, "")},
    ),
    Published(
        "MFCC, 120 numbers",
        f"no training; {FILTERED}, mean and deviation",
        {"gtzan": (0.448, ""), "emomusic": (0.372, "")},
    ),
    Published(
        "Chroma, 72 numbers",
        f"no training; {FILTERED}, mean and deviation",
        {"gtzan": (0.328, ""), "emomusic": (0.176, "")},
    ),
)
NOTES = {
    "a": "The paper does not state its split of GTZAN. No number of right clips of 290 gives "
    "72.3 %: it is a mean of several runs, or of another split.",
    "b": "Blank in the paper’s Table 1; the figure is from JukeMIR’s table.",
    "c": "The paper prints 0.699, which is JukeMIR’s mean over four tasks; its R² on EmoMusic is "
    "0.669.",
    "d": "As the paper prints it. It equals JukeMIR’s figure for MusiCNN and was not verified.",
}
SPLITS = {
    "gtzan": "CLMR, JukeMIR, MusiCNN, MFCC and Chroma: fault-filtered split of 443 / 197 / 290 "
    "clips of GTZAN.",
    "emomusic": "EmoMusic: JukeMIR’s 125 test clips; R² is the mean of arousal and valence.",
}


def published(columns: Sequence[Column]) -> dict[str, Any] | None:
    """Rows and notes that belong below these columns; None if no published task is among them."""
    names = [_task(column) for column in columns]
    shown = {name for name in names if name}
    if not shown:
        return None
    rows = [
        {
            "system": system.system,
            "how": system.how,
            "cells": [_cell(system, column, name) for column, name in zip(columns, names)],
        }
        for system in SYSTEMS
        if shown & set(system.scores)
    ]
    letters = sorted({cell[1] for row in rows for cell in row["cells"] if cell and cell[1]})
    notes = [(letter, NOTES[letter]) for letter in letters]
    return {
        "rows": rows,
        "notes": notes,
        "splits": [SPLITS[name] for name in TASKS if name in shown],
    }


def _task(column: Column) -> str:
    """Published data set of a column; empty for another one, or for a stand-in."""
    name, _, variant = column.dataset.partition(":")
    known = TASKS.get(name) == column.metric
    return name if known and "stand-in" not in variant else ""


def _cell(system: Published, column: Column, name: str) -> tuple[str, str] | None:
    if name not in system.scores:
        return None
    value, letter = system.scores[name]
    return with_unit({"value": value, "metric": column.metric}), letter
