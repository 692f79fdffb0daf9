"""A folder of features that somebody else computed, one file for each clip: JukeMIR publishes Jukebox's in this form."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from patchifier.audio import SUFFIXES
from patchifier.cache import Cache
from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.evaluate.encoders.interface import Encoder, EncoderOptions, each_clip

NAMED = 5  # clips or files in a message


def folder(name: str, argument: str, options: EncoderOptions) -> list[Encoder]:
    """Row "features": DIR with an .npy or .npz file for each clip, in sub-folders or not.

    A file belongs to a clip if its path below DIR, or else its name, is the clip's id (with or without the audio file's ending) or the name of
    the clip's audio file. It holds one array: (E,), or (T, E), of which the mean over time is taken.

    Raises
    ------
    RequestError
        For a clip without a file or with several, a file for several clips, and what is not such an array; each names the clips.
    """
    root = Path(argument)
    files = sorted(
        path
        for path in root.rglob("*")
        if path.suffix in (".npy", ".npz") and path.is_file() and not path.name.startswith(".")
    )
    if not files:
        raise RequestError(
            f"{name}: {root} holds no .npy or .npz files, expected one for each clip."
        )
    table = _Table(name, root, files)
    if options.data is not None:
        table.match(options.data, range(len(options.data.clips)))

    def encode(data: Cache, indices: Sequence[int]) -> np.ndarray:
        matched = table.match(data, indices)
        return each_clip(name, lambda data, index: read(matched[index]))(data, indices)

    return [
        Encoder(
            name,
            encode,
            parameters=None,
            note="computed elsewhere; mean over time where a file has a time axis",
            precomputed=True,
        )
    ]


class _Table:
    """Files of a folder by their path below it and by their name, both without the ending."""

    def __init__(self, name: str, root: Path, files: Sequence[Path]) -> None:
        self.name, self.root = name, root
        self.by_path: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        for path in files:
            self.by_path.setdefault(path.relative_to(root).with_suffix("").as_posix(), []).append(
                path
            )
            self.by_stem.setdefault(path.stem, []).append(path)

    def match(self, data: Cache, indices: Sequence[int]) -> dict[int, Path]:
        """File of each clip; every clip of the cache that has one is looked at, so that none is taken twice."""
        found = {index: self.file(clip) for index, clip in enumerate(data.clips)}
        missing = [data.clips[index].id for index in dict.fromkeys(indices) if found[index] is None]
        if missing:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise RequestError(
                f"{self.name}: {self.root} has no file for the clips {', '.join(missing[:NAMED])}{more}: expected <clip id>.npy or .npz."
            )
        taken: dict[Path, str] = {}
        for index, path in found.items():
            if (
                path is not None
                and taken.setdefault(path, data.clips[index].id) != data.clips[index].id
            ):
                raise RequestError(
                    f"{self.name}: {path} is the only file for the two clips {taken[path]!r} and {data.clips[index].id!r}: name files by the clip's id."
                )
        return {index: path for index, path in found.items() if path is not None}

    def file(self, clip: Clip) -> Path | None:
        """File of one clip, by the first rule that finds any."""
        for files in self.candidates(clip):
            if len(files) > 1:
                raise RequestError(
                    f"{self.name}: clip {clip.id!r} has {len(files)} files, such as {files[0]} and {files[1]}: expected one, named by the clip's id."
                )
            if files:
                return files[0]
        return None

    def candidates(self, clip: Clip) -> Iterator[list[Path]]:
        """Files that each rule finds, the strictest first."""
        names = [clip.id, _without_ending(clip.id)]
        yield from (self.by_path.get(name, []) for name in names)
        yield from (
            self.by_stem.get(name.rpartition("/")[2], []) for name in [*names, Path(clip.path).stem]
        )


def _without_ending(name: str) -> str:
    """Id without an audio file's ending; other dots are part of a name, as in GTZAN's blues.00000."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and f".{ending.lower()}" in SUFFIXES else name


def read(path: Path) -> np.ndarray:
    """Read one array (E,), or (T, E) of which the mean over time is given."""
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
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) != 1:
                raise RequestError(
                    f"{path}: holds the arrays {', '.join(loaded.files) or 'none'}, expected exactly one."
                )
            return loaded[loaded.files[0]]
    except RequestError:
        raise
    except Exception as error:  # numpy raises a dozen kinds on a damaged file
        raise RequestError(f"{path}: cannot be read as an .npy or .npz file ({error}).") from error
