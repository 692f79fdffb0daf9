"""A folder of audio, searched recursively.

Clips are named by their path below the folder, and grouped by the sub-folder they lie in: an album is not split.
Hidden files and folders (among them the ``._`` files that macOS leaves in archives) are passed over.
"""

from pathlib import Path

from patchifier.audio import SUFFIXES
from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset


def load(root: Path) -> Dataset:
    """List every audio file below a folder, in sorted order.

    Raises
    ------
    RequestError
        If there is none.
    """
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and not is_hidden(path.relative_to(root)) and path.is_file())
    if not files:
        raise RequestError(f"{root}: no audio files in this folder or below it, expected names that end in {', '.join(sorted(SUFFIXES))}.")
    names = [path.relative_to(root) for path in files]
    clips = [
        Clip(id=name.as_posix(), path=str(path.resolve()), group=name.parent.as_posix() if name.parent.parts else name.as_posix())
        for name, path in zip(names, files, strict=True)
    ]
    return Dataset(root.resolve().name, tuple(clips))


def is_hidden(name: Path) -> bool:
    """Whether any part of a relative path starts with a dot."""
    return any(part.startswith(".") for part in name.parts)
