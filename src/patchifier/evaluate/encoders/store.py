"""Features on disk: those of an earlier comparison, and those of another program."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchifier.cache import Cache
from patchifier.config import RequestError, digest
from patchifier.datasets.features import FeatureFiles, read
from patchifier.evaluate.encoders.interface import Encoder, EncoderOptions, each_clip
from patchifier.io import Progress, require_file, save_array, silent

FORMAT = 1  # raised whenever an encoder of this package changes its numbers


def cached(
    encoder: Encoder,
    data: Cache,
    indices: Sequence[int],
    folder: str | Path | None = None,
    *,
    progress: Progress = silent,
) -> np.ndarray:
    """Features (n, E) float32 of clips, read from `folder` or computed and stored there.

    Parameters
    ----------
    encoder : Encoder
        One without an identity is computed each time.
    data : Cache
        Where the clips are.
    indices : sequence of int
        Which clips, in order.
    folder : str or Path
        ``features`` in the folder of the cache by default. One .npy file for each encoder and list
        of clips; its name changes with the encoder's weights and settings, with the clips, and when
        an audio file was prepared anew or has another size or date.
    progress : callable
        Called with clips done, clips in all, and a note.

    Raises
    ------
    RequestError
        As the encoder does, and if it gives something else than one row of numbers for each clip.
    """
    if encoder.identity is None:
        return _checked(encoder, data, indices, progress)
    name = re.sub(r"[^A-Za-z0-9.+-]+", "-", encoder.name).strip("-.")[-60:]
    key = digest(
        FORMAT, encoder.identity, encoder.seed, [_clip_key(data, int(index)) for index in indices]
    )
    path = (data.path / "features" if folder is None else Path(folder)) / f"{name}-{key}.npy"
    found = _read(path, len(indices))
    if found is not None:
        return found
    features = _checked(encoder, data, indices, progress)
    save_array(path, features)
    return features


def _clip_key(data: Cache, index: int) -> list[str | int]:
    """What a clip's features depend on.

    Its log-mel's key, and size and date of its file, which an encoder may read.
    """
    clip = data.clips[index]
    try:
        file = Path(clip.path).stat()
    except OSError:  # encoders of log-mels do without
        return [data.keys[index]]
    return [data.keys[index], file.st_size, file.st_mtime_ns]


def _read(path: Path, count: int) -> np.ndarray | None:
    """Stored features, or None if there are none or they are damaged."""
    try:
        require_file(path)
        with path.open("rb") as stream:
            features = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError, MemoryError):
        return None
    sound = features.dtype == np.float32 and features.ndim == 2 and len(features) == count
    return features if sound and np.isfinite(features).all() else None


def _checked(
    encoder: Encoder, data: Cache, indices: Sequence[int], progress: Progress
) -> np.ndarray:
    features = np.asarray(encoder.encode(data, indices, progress=progress), np.float32)
    if features.ndim != 2 or len(features) != len(indices) or not features.size:
        raise RequestError(
            f"{encoder.name}: the features have shape {features.shape}, expected ({len(indices)}, "
            "E)."
        )
    if not np.isfinite(features).all():
        raise RequestError(f"{encoder.name}: the features hold NaN or infinity, expected numbers.")
    return features


def folder(name: str, argument: str, options: EncoderOptions) -> list[Encoder]:
    """Row "features": DIR with an .npy or .npz file for each clip; see :class:`FeatureFiles`."""
    files = FeatureFiles(name, Path(argument))
    if options.data is not None:
        files.match(options.data.clips, range(len(options.data.clips)))

    def encode(data: Cache, indices: Sequence[int], *, progress: Progress = silent) -> np.ndarray:
        matched = files.match(data.clips, indices)
        by_clip = each_clip(name, lambda data, index: read(matched[index]))
        return by_clip(data, indices, progress=progress)

    return [
        Encoder(
            name,
            encode,
            parameters=None,
            note="computed elsewhere; mean over time where a file has a time axis",
            precomputed=True,
        )
    ]
