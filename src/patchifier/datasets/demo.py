"""The bundled clips: enough real music to run every part of the package offline.

112 clips of 20 s (mono Ogg) from seven free soundtracks, 16 each, in four folds grouped by track;
the task is to tell the soundtrack. Licences are Creative Commons, clip by clip in
``demo_clips/clips.csv`` and ``demo_clips/NOTICE.md``.

The soundtrack is confounded with mastering and codec, and with 28 clips in a fold only differences
of about ten points are visible: the demo shows that the package works, not how well.
"""

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path

import mutagen

from patchifier.datasets import Clip, Dataset
from patchifier.tasks import infer

ROOT = Path(__file__).parent / "demo_clips"
RELATED = (
    "its training data holds other tracks of most of these soundtracks and none that these clips "
    "are cut from: its card lists them."
)
INFO = ("artist", "title", "licence", "source", "source_file")


def load() -> Dataset:
    """List the bundled clips."""
    with (ROOT / "clips.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    clips = [
        Clip(
            id=row["file"].removesuffix(".ogg"),
            path=str(ROOT / "clips" / row["file"]),
            fold=int(row["fold"]),
            group=f"{row['soundtrack']}/{row['track']}",
            target=row["soundtrack"],
            info={key: row[key] for key in INFO if row[key]},
        )
        for row in rows
    ]
    return Dataset("demo", tuple(clips), infer([clip.target for clip in clips]))


def are_bundled(clips: Iterable[Clip]) -> bool:
    """Whether any of these clips comes with the package."""
    return any(Path(clip.path).resolve().is_relative_to(ROOT.resolve()) for clip in clips)


def write_library(folder: str | Path) -> Path:
    """Copy the bundled clips into a folder, as a music library.

    Parameters
    ----------
    folder : str or Path
        Gets SOUNDTRACK/FILE.ogg, with the tags artist, title and album (the soundtrack). Files of
        these names are replaced.

    Returns
    -------
    Path
        The folder.

    Examples
    --------
    >>> library = write_library("library")
    >>> len(list(library.glob("*/*.ogg")))
    112
    """
    for clip in load().clips:
        target = Path(folder) / str(clip.target) / Path(clip.path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip.path, target)
        file = mutagen.File(target)
        tags = {"artist": clip.info.get("artist"), "title": clip.info.get("title")}
        known = {name: text for name, text in tags.items() if text}
        file.update({name: [text] for name, text in (known | {"album": clip.target}).items()})
        file.save()
    return Path(folder)
