"""A library of real music with tags: six of each soundtrack of the bundled clips, and a longer piece made of three."""

import csv
import shutil
from pathlib import Path

import mutagen
import numpy as np
import soundfile

from patchifier.datasets import demo

MEDLEY = "Medley.flac"
MEDLEY_PARTS = (0, 40, 0, 80)  # the first part comes again


def make(folder: Path, *, each: int = 6) -> Path:
    """Write the files; 42 clips of 20 s and one of 80 s by default."""
    folder.mkdir(parents=True, exist_ok=True)
    with (demo.ROOT / "clips.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    taken: dict[str, int] = {}
    for row in rows:
        taken[row["soundtrack"]] = taken.get(row["soundtrack"], 0) + 1
        if taken[row["soundtrack"]] <= each:
            _copy(row, folder)
    _medley(rows, folder / MEDLEY)
    return folder


def _copy(row: dict[str, str], folder: Path) -> None:
    target = folder / row["soundtrack"] / row["file"]
    target.parent.mkdir(exist_ok=True)
    shutil.copy(demo.ROOT / "clips" / row["file"], target)
    _tag(target, title=row["title"], artist=row["artist"], album=row["soundtrack"])


def _medley(rows: list[dict[str, str]], target: Path) -> None:
    read = [soundfile.read(demo.ROOT / "clips" / rows[index]["file"]) for index in MEDLEY_PARTS]
    soundfile.write(target, np.concatenate([samples for samples, _ in read]), read[0][1])
    _tag(target, title="Medley", artist="Various", album="Medley")


def _tag(path: Path, **tags: str) -> None:
    file = mutagen.File(path)
    file.update({key: [value] for key, value in tags.items()})
    file.save()


MARKUP = '<img src="x" onerror="document.title=\'run\'"> & <b>bold</b>'
VANISHED = "Here and gone"


def add_faults(folder: Path) -> None:
    """Add a song whose tags have markup, one that is to vanish, and a text with a name of music."""
    for title, clip in ((MARKUP, "naev_12.ogg"), (VANISHED, "naev_13.ogg")):
        target = folder / f"{'markup' if title == MARKUP else 'vanished'}.ogg"
        shutil.copy(demo.ROOT / "clips" / clip, target)
        _tag(target, title=title, artist="<i>Nobody</i>", album="Faults")
    (folder / "notes.mp3").write_text("This is a text.\n" * 200)
