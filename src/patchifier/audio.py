"""From an audio file to a waveform: decode, mix to mono, resample.

libsndfile reads wav, flac, ogg, opus, mp3, aiff and more; PyAV, if the ``formats`` extra is there, reads the rest (m4a, wma, ...).
Everything is read in blocks, so an hour-long file needs no more memory than a short one.
"""

import math
import os
import re
import struct
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from patchifier.config import RequestError

SAMPLE_RATE = 22_050  # paper 4.4
LOUDEST = 200.0  # 46 dB over full scale: no recording of floats gets there, and integers that were not divided do
BLOCK_S = 10.0  # long enough for fast decoding, 3.5 MB of stereo float32 at 44.1 kHz
SUFFIXES = frozenset(
    [
        ".wav",
        ".wave",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".mp2",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".w64",
        ".rf64",
        ".m4a",
        ".mp4",
        ".aac",
        ".wma",
        ".webm",
        ".mka",
        ".ape",
        ".wv",
        ".tta",
    ]
)
EXACT_SEEK = frozenset(
    {"WAV", "WAVEX", "AIFF", "AU", "FLAC", "W64", "RF64"}
)  # elsewhere a seek may be off by a frame: decode, then slice


class AudioError(RequestError):
    """A file that cannot be read as audio; the message names the file and the reason."""


def name_fault(path: str | Path) -> str:
    """Say what is wrong with the name of a file that is not UTF-8: no decoder opens it and no list can hold it. Empty if it is."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        try:
            Path(path).name.encode()
        except UnicodeEncodeError:
            return "its name is not UTF-8: rename it."
        return "the name of a folder above it is not UTF-8: rename that folder."
    return ""


def written_name(path: str | Path) -> str:
    r"""Path of a file as text for people and lists, bytes that are not UTF-8 as escapes such as ``\xff``."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # from a list: no file can have such a name
        return str(path).encode("utf-8", "backslashreplace").decode()


def load(
    path: str | Path,
    *,
    sample_rate: int = SAMPLE_RATE,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> np.ndarray:
    """Read an audio file as one mono waveform.

    Parameters
    ----------
    path : str or Path
        Any file that libsndfile reads, or PyAV if it is installed.
    sample_rate : int
        Rate of the result, in Hz.
    start_s, end_s : float
        Part of the file to read, in seconds; all of it by default.

    Returns
    -------
    numpy.ndarray, shape (S,), float32
        Mean of the channels, resampled by soxr (HQ); in [-1, 1] but for overshoot.

    Raises
    ------
    AudioError
        If the file is missing, unreadable, empty, truncated, not audio, or holds floats at the scale of integers, a peak above 200.
    """
    return np.concatenate(list(blocks(path, sample_rate=sample_rate, start_s=start_s, end_s=end_s)))


def blocks(
    path: str | Path,
    *,
    sample_rate: int = SAMPLE_RATE,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[np.ndarray]:
    """Read an audio file as consecutive blocks of one mono waveform, in bounded memory.

    The arguments, the errors and, joined, the values are those of :func:`load`.

    Yields
    ------
    numpy.ndarray, shape (S,), float32
        About ten seconds each.
    """
    if not is_number(sample_rate) or sample_rate <= 0:
        raise RequestError(
            f"sample_rate is {sample_rate!r}, expected a rate in Hz such as {SAMPLE_RATE}."
        )
    if not is_number(start_s) or start_s < 0 or not (end_s is None or is_number(end_s)):
        raise RequestError(
            f"start_s is {start_s!r} and end_s {end_s!r}, expected seconds from 0 on; None for an end_s that is the file's."
        )
    if end_s is not None and end_s <= start_s:
        raise AudioError(f"{path}: the clip ends at {end_s} s, before it starts at {start_s} s.")
    resampler, heard, made = None, 0, 0
    for mono, rate in _mono_blocks(Path(path), start_s, end_s):
        if not np.isfinite(mono).all():
            raise AudioError(f"{path}: holds samples that are not numbers (NaN or infinity).")
        if fault := scale_fault(mono):
            raise AudioError(f"{path}: its samples {fault}")
        heard += len(mono)
        if rate == sample_rate:
            yield mono
            continue
        resampler = resampler or soxr.ResampleStream(
            rate, sample_rate, 1, dtype="float32", quality="HQ"
        )
        part = resampler.resample_chunk(mono, last=False)
        made += len(part)
        yield part
    if not heard:
        raise AudioError(f"{path}: holds no audio" + (f" after {start_s} s." if start_s else "."))
    if resampler:
        rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        yield (
            rest if made + len(rest) else np.zeros(1, np.float32)
        )  # a few samples at a high rate: less than one here


def _mono_blocks(
    path: Path, start_s: float, end_s: float | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the mean of the channels and the file's own sample rate, a block at a time."""
    if fault := name_fault(path):
        raise AudioError(f"{written_name(path)}: {fault}")
    try:
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}).") from error
    if empty:
        raise AudioError(f"{path}: is empty (0 bytes).")
    try:
        sound = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        yield from _mono_blocks_av(path, start_s, end_s, reason=error.error_string)
        return
    with sound:
        yield from _mono_blocks_sndfile(sound, path, start_s, end_s)


def _mono_blocks_sndfile(
    sound: Any, path: Path, start_s: float, end_s: float | None
) -> Iterator[tuple[np.ndarray, int]]:
    rate = sound.samplerate
    _require_rate(rate, path)
    first = round(start_s * rate)
    last = None if end_s is None else round(end_s * rate)
    at = 0
    if sound.format in EXACT_SEEK and 0 < first < sound.frames:
        at = sound.seek(first)
    while last is None or at < last:
        try:
            block = sound.read(int(BLOCK_S * rate), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{path}: truncated or damaged after {at / rate:.1f} s ({error.error_string.strip()})"
            ) from error
        if not len(block):
            break
        kept = block[max(0, first - at) : None if last is None else last - at]
        at += len(block)
        if len(kept):
            yield _mono(kept), rate
    if last is None or at < last:
        _check_whole(sound, path, at)


def _mono(block: np.ndarray) -> np.ndarray:
    """Mean of the channels of (S, channels): (S,). Added one by one, since numpy's mean over a few columns takes seven times as long."""
    total = block[:, 0].copy()
    for channel in block.T[1:]:
        total += channel
    return total / np.float32(block.shape[1])


def _require_rate(rate: int, path: Path) -> None:
    """Refuse a damaged header: at 1 Hz, a short file would be resampled to gigabytes."""
    if not 1_000 <= rate <= 768_000:
        raise AudioError(
            f"{path}: its header says {rate} Hz, expected a sample rate from 1,000 to 768,000 Hz."
        )


def _check_whole(sound: Any, path: Path, decoded: int) -> None:
    """Refuse a file that ends before its own header says it does."""
    promised = sound.frames
    # A header without an exact count may be a few frames off (a VBR mp3's estimate): 1 % and 0.5 s are let pass.
    cut_short = promised - decoded > max(0.5 * sound.samplerate, 0.01 * promised)
    cut_short |= _data_cut_short(sound.extra_info)
    cut_short |= sound.format == "OGG" and _ends_inside_ogg_page(path)
    if cut_short:
        says = (
            f"its header says {promised / sound.samplerate:.1f} s"
            if promised > decoded
            else "its last block is incomplete"
        )
        raise AudioError(
            f"{path}: truncated, ends after {decoded / sound.samplerate:.1f} s ({says})."
        )


def _data_cut_short(log: str) -> bool:
    """Whether libsndfile's log says that the data (wav, aiff, au, caf) or the file (w64, rf64) is shorter than its header promises."""
    chunk = re.search(
        r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", log, re.MULTILINE
    )
    if not chunk:
        return False
    promised, present = int(chunk[1]), int(chunk[2])
    streamed = (
        promised >= 2**31 - 2**16
    )  # a pipe could not know its length and wrote the largest number
    return not streamed and promised - present > 0.01 * promised


def _ends_inside_ogg_page(path: Path) -> bool:
    """Whether the last page of an Ogg file (RFC 3533, section 6) runs past the end of the file."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 2**17))  # a page has at most 65,307 bytes
        tail = stream.read()
    page = tail.rfind(b"OggS")
    if page < 0:
        return True
    header = tail[page : page + 27]
    if len(header) < 27:
        return True
    lacing = tail[page + 27 : page + 27 + header[26]]
    return len(lacing) < header[26] or page + 27 + header[26] + sum(
        struct.unpack(f"{len(lacing)}B", lacing)
    ) > len(tail)


def _mono_blocks_av(
    path: Path, start_s: float, end_s: float | None, *, reason: str
) -> Iterator[tuple[np.ndarray, int]]:
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{path}: not an audio file that libsndfile knows ({reason.strip()}) For m4a, wma and other formats: pip install 'patchifier[formats]'"
        ) from None
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: holds no audio stream.")
            at = 0
            for frame in container.decode(audio=0):
                rate = frame.sample_rate
                _require_rate(rate, path)
                samples = _planar_float(frame)
                first = max(0, round(start_s * rate) - at)
                last = None if end_s is None else round(end_s * rate) - at
                if last is not None and last <= 0:
                    return
                at += samples.shape[1]
                kept = samples[:, first:last]
                if kept.size:
                    yield np.ascontiguousarray(kept.mean(axis=0, dtype=np.float32)), rate
            stream = container.streams.audio[0]
            counted = (
                stream.frames if stream.codec_context.name.startswith("pcm_") else 0
            )  # a frame of PCM is a sample (CAF's header)
            promised_s = max((container.duration or 0) / av.time_base, counted / stream.rate)
            decoded_s = at / stream.rate
            if promised_s - decoded_s > max(0.5, 0.01 * promised_s):
                raise AudioError(
                    f"{path}: truncated, ends after {decoded_s:.1f} s (its header says {promised_s:.1f} s)."
                )
    except av.error.FFmpegError as error:
        raise AudioError(
            f"{path}: not an audio file that libsndfile or FFmpeg can decode ({error.strerror})."
        ) from error


def _planar_float(frame: Any) -> np.ndarray:
    """Samples of a PyAV frame as (channels, S), in [-1, 1]."""
    samples = frame.to_ndarray()
    channels = frame.layout.nb_channels
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python or of numpy."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def scale_fault(samples: np.ndarray) -> str:
    """What is wrong with the scale of samples, to be said behind their name; nothing for what may be a recording."""
    peak = max(float(samples.max()), -float(samples.min()))
    return (
        f"peak at {peak:g}, expected floats within about -1 to 1: divide those of 16-bit integers by 32768."
        if peak > LOUDEST
        else ""
    )


def as_waveform(
    samples: Any, sample_rate: int | None, *, target_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """Turn samples that are already in memory into a waveform as :func:`load` would give it.

    Parameters
    ----------
    samples : array_like, shape (S,) or (channels, S), float
        In [-1, 1]; overshoot passes, a peak above 200 does not.
    sample_rate : int
        Their rate in Hz. There is no default: a wrong rate must not pass unnoticed.
    target_rate : int
        Rate of the result, in Hz.

    Returns
    -------
    numpy.ndarray, shape (S,), float32

    Raises
    ------
    RequestError
        If the rate is missing or none, the samples are integers or at their scale, not numbers, empty, or look like (S, channels).
    """
    if sample_rate is None:
        raise RequestError(
            "an array of samples needs its sample rate: embed(samples, sample_rate=44100)."
        )
    if not is_number(sample_rate) or not 1_000 <= sample_rate <= 768_000:
        raise RequestError(f"sample_rate is {sample_rate!r}, expected a rate in Hz such as 44100.")
    try:
        wave = np.asarray(samples)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # rows of several lengths, or a tensor that is on a device or has a gradient
        raise RequestError(
            f"samples are a {type(samples).__name__} that is no array ({error}), expected an array of floats in [-1, 1]."
        ) from error
    if not np.issubdtype(wave.dtype, np.floating):
        raise RequestError(
            f"samples are {wave.dtype}, expected floats in [-1, 1]: for 16-bit integers divide by 32768."
        )
    if wave.ndim not in (1, 2) or wave.size == 0:
        raise RequestError(
            f"samples have shape {wave.shape}, expected (S,) or (channels, S) with S of at least 1."
        )
    if wave.ndim == 2 and wave.shape[0] > wave.shape[1]:
        raise RequestError(
            f"samples have shape {wave.shape}, expected (channels, S): transpose them."
        )
    if not np.isfinite(wave).all():
        raise RequestError("samples hold NaN or infinity, expected floats in [-1, 1].")
    if fault := scale_fault(wave):
        raise RequestError(f"samples {fault}")
    wave = (wave if wave.ndim == 1 else wave.mean(axis=0)).astype(np.float32)
    resampled = (
        wave
        if sample_rate == target_rate
        else soxr.resample(wave, sample_rate, target_rate, quality="HQ")
    )
    return (
        resampled if len(resampled) else np.zeros(1, np.float32)
    )  # a few samples at a high rate: less than one here


def save(path: str | Path, waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write a waveform (S,) as a 16-bit wav file; beyond full scale it is turned down, not clipped."""
    peak = float(np.abs(waveform).max(initial=0.0))
    soundfile.write(str(path), waveform / max(1.0, peak), sample_rate, subtype="PCM_16")
