"""Features computed by another program, one file for each clip.

JukeMIR publishes Jukebox's in this form.
"""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np

from patchifier.audio import SUFFIXES
from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.io import listed, require_file

NAMED = 5  # clips or files in a message


def load_features(
    root: str | Path, clips: Sequence[Clip], *, name: str, optional: Container[int] = ()
) -> np.ndarray:
    """Read the stored vector of every clip (:class:`FeatureFiles`): (n, E) float32.

    Rows of `optional` clips without a file are NaN. Refused if another clip has no file, a clip has
    several, or vectors differ in size or are not finite.
    """
    needed = [index for index in range(len(clips)) if index not in optional]
    matched = FeatureFiles(name, Path(root)).match(clips, needed)
    rows: dict[int, np.ndarray] = {}
    for index, path in matched.items():
        rows[index] = read(path)
        require_vector(name, clips[index].id, rows[index], next(iter(rows.values())))
    if not rows:
        raise RequestError(f"{name}: {root} has no file for any clip, expected <clip id>.npy.")
    features = np.full((len(clips), *next(iter(rows.values())).shape), np.nan, np.float32)
    features[list(rows)] = list(rows.values())
    return features


def require_vector(name: str, clip: str, row: np.ndarray, first: np.ndarray) -> None:
    """Refuse features of a clip that are not one finite vector of the first clip's size."""
    if row.ndim != 1 or not row.size:
        raise RequestError(
            f"{name}: the features of clip {clip!r} have shape {row.shape}, expected one vector "
            "(E,)."
        )
    if row.shape != first.shape:
        raise RequestError(
            f"{name}: the features of clip {clip!r} have {len(row)} numbers, those of the first "
            f"clip {len(first)}: expected one size for all."
        )
    if not np.isfinite(row).all():
        raise RequestError(
            f"{name}: the features of clip {clip!r} hold NaN or infinity, expected numbers."
        )


class FeatureFiles:
    """Files .npy and .npz of a folder by their path below it and by their name, without the suffix.

    A file belongs to a clip if its path below the folder, or else its name, is the clip's id (with
    or without the audio file's suffix) or the name of the clip's audio file. `name` is that of the
    features in messages. A folder without such a file is refused.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        files = sorted(
            path
            for path in root.rglob("*")
            if path.suffix in (".npy", ".npz") and path.is_file() and not path.name.startswith(".")
        )
        if not files:
            raise RequestError(
                f"{name}: {root} holds no .npy or .npz files, expected one for each clip."
            )
        self.by_path: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        for path in files:
            self.by_path.setdefault(path.relative_to(root).with_suffix("").as_posix(), []).append(
                path
            )
            self.by_stem.setdefault(path.stem, []).append(path)

    def match(self, clips: Sequence[Clip], indices: Sequence[int]) -> dict[int, Path]:
        """Return the file of each clip that has one.

        Refused: one of `indices` without a file, a clip with several, a file that belongs to two
        clips.
        """
        found = {index: self.file(clip) for index, clip in enumerate(clips)}
        missing = [clips[index].id for index in dict.fromkeys(indices) if found[index] is None]
        if missing:
            raise RequestError(
                f"{self.name}: {self.root} has no file for the clips "
                f"{listed(missing, NAMED)}: expected <clip id>.npy or .npz."
            )
        taken: dict[Path, str] = {}
        for index, path in found.items():
            if path is not None and taken.setdefault(path, clips[index].id) != clips[index].id:
                raise RequestError(
                    f"{self.name}: {path} is the only file for the two clips {taken[path]!r} and "
                    f"{clips[index].id!r}: name files by the clip's id."
                )
        return {index: path for index, path in found.items() if path is not None}

    def file(self, clip: Clip) -> Path | None:
        """Return the file of a clip, by the first rule that matches any."""
        for files in self.candidates(clip):
            if len(files) > 1:
                raise RequestError(
                    f"{self.name}: clip {clip.id!r} has {len(files)} files, such as {files[0]} "
                    f"and {files[1]}: expected one, named by the clip's id."
                )
            if files:
                return files[0]
        return None

    def candidates(self, clip: Clip) -> Iterator[list[Path]]:
        """Yield the files that each rule matches, the strictest rule first."""
        names = [clip.id, _without_ending(clip.id)]
        yield from (self.by_path.get(name, []) for name in names)
        yield from (
            self.by_stem.get(name.rpartition("/")[2], []) for name in [*names, Path(clip.path).stem]
        )


def _without_ending(name: str) -> str:
    """Return an id without an audio file's suffix.

    Other dots are part of a name, as in GTZAN's blues.00000.
    """
    stem, dot, ending = name.rpartition(".")
    return stem if dot and f".{ending.lower()}" in SUFFIXES else name


def read(path: Path) -> np.ndarray:
    """Read one array (E,), or the mean over time of one (T, E); refuse anything else."""
    values = _array(path)
    if not np.issubdtype(values.dtype, np.number) or np.issubdtype(
        values.dtype, np.complexfloating
    ):
        raise RequestError(f"{path}: holds {values.dtype}, expected numbers.")
    if values.ndim not in (1, 2) or not values.size:
        raise RequestError(
            f"{path}: holds an array of shape {values.shape}, expected (E,) or (T, E)."
        )
    return (
        values.astype(np.float32)
        if values.ndim == 1
        else values.mean(axis=0, dtype=np.float64).astype(np.float32)
    )


def _array(path: Path) -> np.ndarray:
    try:
        require_file(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) != 1:
                raise RequestError(
                    f"{path}: holds the arrays {', '.join(loaded.files) or 'none'}, expected "
                    "exactly one."
                )
            return loaded[loaded.files[0]]
    except RequestError:
        raise
    except Exception as error:  # numpy raises a dozen kinds on a damaged file
        raise RequestError(f"{path}: cannot be read as an .npy or .npz file ({error}).") from error
