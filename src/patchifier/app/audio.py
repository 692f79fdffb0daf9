"""Endpoint: the sound of a track, whole or in ranges, as it is or as wav or Ogg."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from starlette.responses import FileResponse, Response

from patchifier import audio
from patchifier.app.parameters import RefusedError
from patchifier.app.state import Served

TYPES = {
    ".wav": "audio/wav", ".wave": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg",
    ".oga": "audio/ogg", ".opus": "audio/ogg", ".mp3": "audio/mpeg", ".mp2": "audio/mpeg",
    ".aif": "audio/aiff", ".aiff": "audio/aiff", ".aifc": "audio/aiff", ".au": "audio/basic",
    ".m4a": "audio/mp4", ".mp4": "audio/mp4", ".aac": "audio/aac", ".wma": "audio/x-ms-wma",
    ".webm": "audio/webm", ".mka": "audio/x-matroska", ".ape": "audio/x-ape",
    ".wv": "audio/x-wavpack", ".tta": "audio/x-tta", ".caf": "audio/x-caf",
}  # fmt: skip
RATE = 44_100
OPUS_RATE = 48_000  # Opus takes few rates
KEPT_B = 2**31  # transcoded files that are kept
FORMATS = {"wav": ("WAV", "PCM_16", RATE), "ogg": ("OGG", "OPUS", OPUS_RATE)}
LONGEST_S = 3 * 3600.0  # of a file that is transcoded: a gigabyte of wav


@dataclass(frozen=True)
class SoundParams:
    """A track, and the form in which it is sent: "wav" and "ogg" are transcoded, in mono."""

    id: str
    form: Literal["file", "wav", "ogg"] = field(default="file", metadata={"name": "as"})


def sound(served: Served, params: SoundParams) -> Response:
    """The file of a track or of an upload; ranges of bytes are answered."""
    song = served.song(params.id)
    path = song.file()
    if params.form != "file":
        return _answer(transcoded(served, path, params.form), TYPES[f".{params.form}"])
    suffix = os.path.splitext(song.name)[1].lower()
    if suffix not in audio.SUFFIXES:
        raise RefusedError(
            415,
            f"{song.name} does not have the name of an audio file, so it is not sent as it is: add "
            "?as=wav.",
        )
    return _answer(path, TYPES.get(suffix, "application/octet-stream"))


def _answer(path: str | Path, media_type: str) -> Response:
    """A file with ranges, of which the state is taken once."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise RefusedError(410, f"{path} cannot be read ({error.strerror}).") from error
    if not stat.S_ISREG(state.st_mode):
        raise RefusedError(410, f"{path} is no regular file any more.")
    return FileResponse(path, media_type=media_type, stat_result=state)


def transcoded(served: Served, path: str, form: str) -> Path:
    """A copy of a file in another form, made in a process that may die; kept for the next time."""
    state = os.stat(path)
    key = hashlib.blake2b(
        f"{path}\0{state.st_size}\0{state.st_mtime_ns}".encode(), digest_size=16
    ).hexdigest()
    copy = served.folder / f"{key}.{form}"
    with served.one_at_a_time(copy.name):
        if not copy.exists():
            served.in_worker(transcode, path, str(copy), form)
            _keep_few(served.folder, copy)
        os.utime(copy)
    return copy


def transcode(path: str, copy: str, form: str) -> None:
    """Write a file in another form to `copy`."""
    kind, subtype, rate = FORMATS[form]
    new = Path(f"{copy}.new")
    try:
        with soundfile.SoundFile(new, "w", rate, 1, format=kind, subtype=subtype) as file:
            for block in _limited(path, rate):
                # libsndfile's Ogg encoders need much stack for long blocks
                for start in range(0, len(block), rate):
                    file.write(np.clip(block[start : start + rate], -1, 1))
        new.replace(copy)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def _limited(path: str, rate: int) -> Iterator[np.ndarray]:
    samples = 0
    for block in audio.blocks(path, sample_rate=rate):
        samples += len(block)
        if samples > LONGEST_S * rate:
            raise audio.AudioError(
                f"{path}: is longer than {LONGEST_S / 3600:g} hours, too long to be transcoded: "
                "convert it with another program."
            )
        yield block


def _keep_few(folder: Path, newest: Path) -> None:
    """Remove the copies that were not asked for longest, beyond a number of bytes."""
    copies = [path for form in FORMATS for path in folder.glob(f"*.{form}") if path != newest]
    room = KEPT_B - newest.stat().st_size
    for path in sorted(copies, key=lambda path: -path.stat().st_mtime):
        room -= path.stat().st_size
        if room < 0:
            path.unlink()
