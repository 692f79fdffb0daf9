"""What music may be given as: a path, the bytes of a file, an open file, samples, or a log-mel."""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from patchifier import audio, spectrogram, windows
from patchifier.config import Config, RequestError
from patchifier.io import expanded

# A path, bytes of an audio file, an open file, samples, or the log-mel (M, T) of one piece of music
# in parts.
Music = str | Path | bytes | BinaryIO | np.ndarray | Iterator[np.ndarray]
ENCODED = (bytes, bytearray, memoryview)


def log_mel(
    x: Any,
    sample_rate: int | None,
    config: Config,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[np.ndarray]:
    """Yield the log-mel of one piece of music in pieces (M, T').

    A path may begin with "~". An open file is read from where it stands. An iterator of pieces of a
    log-mel is checked and passed on. `sample_rate` is of an array, start and end are of a file.
    Anything else is refused.
    """
    settings = config.spectrogram
    a_file = isinstance(x, (str, Path, *ENCODED)) or hasattr(x, "read")
    if (start_s, end_s) != (0.0, None) and not a_file:
        raise RequestError(
            f"start_s and end_s are of files, but x is of type {type(x).__name__}: give the "
            "part that is meant."
        )
    if isinstance(x, Iterator) and not a_file:
        yield from (windows.require_log_mel(piece, config) for piece in x)
    elif a_file:
        with _path_of(x) as path:
            rate = settings.sample_rate
            how = audio.Decoding(mix_lfe=config.embed.mix_lfe)
            blocks = audio.blocks(path, sample_rate=rate, start_s=start_s, end_s=end_s, how=how)
            yield from spectrogram.stream_log_mel(blocks, settings)
    elif not (hasattr(x, "__array__") or isinstance(x, list | tuple)):
        raise RequestError(
            f"this is of type {type(x).__name__}, expected a path, bytes, an open file, an array "
            "of samples, or a list of these."
        )
    else:
        waveform = audio.as_waveform(x, sample_rate, target_rate=settings.sample_rate)
        yield spectrogram.log_mel(waveform, settings)


def split(x: Any) -> tuple[Iterable[Any], bool]:
    """Return the pieces of music in `x`, and whether there may be several.

    Several are a list, a tuple, an array of paths, or an iterator of anything but arrays: an
    iterator of arrays is the log-mel of one piece.
    """
    if isinstance(x, Iterator) and not hasattr(x, "read"):
        first = list(itertools.islice(x, 1))
        whole = itertools.chain(first, x)
        if not first or hasattr(first[0], "__array__"):
            return [whole], False
        return whole, True
    listed = _kind(x) in ("O", "U") and not isinstance(x, str)  # numpy.str_ is a path
    several = isinstance(x, list | tuple) or listed
    items = list(x) if several else [x]
    if several and items and isinstance(items[0], int | float):
        raise RequestError(
            f"this is a list of {len(items)} numbers, expected paths or arrays: use "
            "numpy.array(samples, 'float32')."
        )
    return items, several


def _kind(x: Any) -> str:
    """Kind of an array's numbers, as numpy says it; empty for anything else."""
    return str(getattr(getattr(x, "dtype", None), "kind", ""))


@contextlib.contextmanager
def _path_of(x: Any) -> Iterator[str | Path]:
    """Path of a file; bytes and open files are written to a temporary one."""
    if isinstance(x, str | Path):
        yield expanded(x)
        return
    name = _name_of(x)
    with tempfile.TemporaryDirectory(prefix="patchifier-") as folder:
        path = Path(folder) / "audio"
        with path.open("wb") as stream:
            if isinstance(x, ENCODED):
                stream.write(bytes(x))
            else:
                _copy(x, stream, name)
        try:
            yield path
        except RequestError as error:
            raise type(error)(str(error).replace(str(path), name)) from error


def _name_of(x: Any) -> str:
    if isinstance(x, ENCODED):
        return f"an audio file of {memoryview(x).nbytes} bytes"
    name = getattr(x, "name", "")
    return name if isinstance(name, str) and name else f"the open file ({type(x).__name__})"


def _copy(source: Any, target: BinaryIO, name: str) -> None:
    """Copy an open file from where it stands."""
    try:
        shutil.copyfileobj(source, target)
    except (TypeError, ValueError, OSError) as error:  # text, closed, open for writing
        raise RequestError(
            f"{name} cannot be read ({error}), expected a file that is open for binary reading: "
            'open(path, "rb").'
        ) from error
