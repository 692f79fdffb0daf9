"""From an audio file to a waveform: decode, mix to mono, resample.

:mod:`patchifier.decode` decodes. Everything is read in blocks, so an hour-long file needs no more
memory than a short one.
"""

import io
import math
import os
import stat
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from patchifier import sandbox
from patchifier.config import RequestError
from patchifier.decode import AudioError, Decoding, mono_blocks, too_long
from patchifier.excerpts import Source
from patchifier.io import replaced_file

SAMPLE_RATE = 22_050  # paper 4.4
# middle and full scale of integers, as in wav files
FULL_SCALE = {"uint8": (128, 2**7), "int8": (0, 2**7), "int16": (0, 2**15), "int32": (0, 2**31)}
MOST_CHANNELS = 24
# 46 dB over full scale: no recording of floats gets there; integers that were not scaled do
LOUDEST = 200.0
SUFFIXES = frozenset({
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc",
    ".au", ".snd", ".caf", ".w64", ".rf64", ".m4a", ".mp4", ".aac", ".wma", ".webm", ".mka", ".ape",
    ".wv", ".tta",
})  # fmt: skip


def name_fault(path: str | Path) -> str:
    """Say what is wrong with the name of a file that is not UTF-8, or holds a zero byte.

    No decoder opens it and no list can hold it. Empty if it is.
    """
    if "\0" in str(path):
        return "its name holds a zero byte, which no file's name can."
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
    r"""Path of a file as text; bytes that are not UTF-8 become escapes such as ``\xff``."""
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
        If the file is missing, unreadable, empty, truncated, damaged, not audio, longer than the
        limit (:mod:`patchifier.sandbox`), or holds floats at the scale of integers, a peak above
        200.

    Examples
    --------
    >>> waveform = load("music/one.ogg", end_s=2.0)
    >>> waveform.shape, waveform.dtype
    ((44100,), dtype('float32'))
    """
    return np.concatenate(list(blocks(path, sample_rate=sample_rate, start_s=start_s, end_s=end_s)))


def blocks(
    path: str | Path,
    *,
    sample_rate: int = SAMPLE_RATE,
    start_s: float = 0.0,
    end_s: float | None = None,
    how: Decoding | None = None,
    source: Source | None = None,
) -> Iterator[np.ndarray]:
    """Read an audio file as consecutive blocks (S,) of one mono waveform, about ten seconds each.

    Arguments, errors and, joined, values are those of :func:`load`; memory is bounded. `how` is
    filled with the decoders that were used, the length that was decoded, and notes. `source` gives
    the blocks of this part, from :func:`patchifier.excerpts.read_each`.
    """
    if not is_number(sample_rate) or sample_rate <= 0:
        raise RequestError(
            f"sample_rate is {sample_rate!r}, expected a rate in Hz such as {SAMPLE_RATE}."
        )
    if not is_number(start_s) or start_s < 0 or not (end_s is None or is_number(end_s)):
        raise RequestError(
            f"start_s is {start_s!r} and end_s {end_s!r}, expected seconds from 0 on; None for an "
            "end_s that is the file's."
        )
    if end_s is not None and end_s <= start_s:
        raise AudioError(f"{path}: the clip ends at {end_s} s, before it starts at {start_s} s.")
    require_file(path)
    how = Decoding() if how is None else how
    most_s, decoded_s = 3600 * sandbox.limits().length_h, 0.0
    resampler = _Resampler(sample_rate)
    decoded = source(how) if source else mono_blocks(Path(path), start_s, end_s, how)
    for mono, rate in _with_words(decoded, how):
        how.peak = max(how.peak, _peak(mono, path))
        decoded_s += len(mono) / rate
        if decoded_s > most_s:
            raise too_long(path, decoded_s)
        sandbox.progressed()
        yield from resampler.add(mono, rate)
    if not decoded_s:
        raise AudioError(f"{path}: holds no audio" + (f" after {start_s} s." if start_s else "."))
    yield from resampler.end()
    how.length_s = resampler.made / sample_rate
    if how.level_note:
        how.notes.append(how.level_note)
    words = sandbox.output() or sandbox.one_line(how.said)
    if words and how.notes:  # decoders complain about healthy files too
        how.notes.append(f"its decoder says: {words}")


def _with_words(blocks: Iterator[tuple[np.ndarray, int]], how: Decoding) -> Iterator[Any]:
    """Blocks; an error about the file ends with what its decoder printed."""
    try:
        yield from blocks
    except AudioError as error:
        if not how.said:
            raise
        words = sandbox.one_line(how.said)
        raise AudioError(sandbox.with_words(str(error), words)) from error.__cause__


def _peak(mono: np.ndarray, path: str | Path) -> float:
    """Largest absolute sample; samples that are no recording's are refused."""
    peak = largest(mono)
    if not math.isfinite(peak):
        raise AudioError(f"{path}: holds samples that are not numbers (NaN or infinity).")
    if fault := scale_fault(peak):
        raise AudioError(f"{path}: its samples {fault}")
    return peak


class _Resampler:
    """Blocks of one waveform at one rate, whatever the rates of its parts."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate, self.rate, self.made = sample_rate, sample_rate, 0
        self.stream: soxr.ResampleStream | None = None

    def add(self, mono: np.ndarray, rate: int) -> Iterator[np.ndarray]:
        """Yield what the next block gives."""
        if rate != self.rate:
            yield from self._flush()
            self.rate = rate
        if rate == self.sample_rate:
            yield self._counted(mono)
            return
        self.stream = self.stream or soxr.ResampleStream(
            rate, self.sample_rate, 1, dtype="float32", quality="HQ"
        )
        yield self._counted(self.stream.resample_chunk(mono, last=False))

    def end(self) -> Iterator[np.ndarray]:
        """Yield the rest: at least one sample, also where resampling leaves less than one."""
        yield from self._flush()
        if not self.made:
            yield self._counted(np.zeros(1, np.float32))

    def _flush(self) -> Iterator[np.ndarray]:
        if self.stream is not None:
            yield self._counted(self.stream.resample_chunk(np.zeros(0, np.float32), last=True))
            self.stream = None

    def _counted(self, block: np.ndarray) -> np.ndarray:
        self.made += len(block)
        return block


def require_file(path: str | Path) -> None:
    """Refuse what is no regular file with bytes in it, before anything opens it and waits.

    An AudioError says that it is missing, cannot be read, is empty, or is a folder, pipe or device.
    """
    if fault := name_fault(path):
        raise AudioError(f"{written_name(path)}: {fault}")
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise AudioError(f"{path}: is a pipe or a device, expected a regular file.")
        with open(path, "rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}).") from error
    if empty:
        raise AudioError(f"{path}: is empty (0 bytes).")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python or of numpy."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def largest(samples: np.ndarray) -> float:
    """Largest absolute value of samples; NaN or infinity if a sample is."""
    return max(float(samples.max()), -float(samples.min()))


def scale_fault(peak: float) -> str:
    """What is wrong with the scale of samples of this peak, to be said behind their name.

    Nothing for what may be a recording.
    """
    if peak <= LOUDEST:
        return ""
    return (
        f"peak at {peak:g}, expected floats within about -1 to 1: divide those of 16-bit integers "
        "by 32768."
    )


def _array(samples: Any) -> np.ndarray:
    """Samples as an array, also those of a tensor on a device or with a gradient."""
    if hasattr(samples, "detach"):
        samples = samples.detach().cpu()
        if str(samples.dtype) == "torch.bfloat16":  # which numpy does not have
            samples = samples.float()
    try:
        return np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths
        raise RequestError(
            f"samples are a {type(samples).__name__} that is no array ({error}), expected an "
            "array of floats in [-1, 1]."
        ) from error


def _floats(samples: np.ndarray) -> np.ndarray:
    """Samples as floats; integers are divided by their full scale."""
    if np.issubdtype(samples.dtype, np.floating):
        return samples
    if samples.dtype.name not in FULL_SCALE:
        raise RequestError(
            f"samples are {samples.dtype}, expected floats in [-1, 1] or integers of 8, 16 or 32 "
            "bits: another type does not say what full scale is."
        )
    middle, scale = FULL_SCALE[samples.dtype.name]
    kind = np.float64 if samples.dtype.itemsize == 4 else np.float32
    return ((samples - kind(middle)) / kind(scale)).astype(kind)


def as_waveform(
    samples: Any, sample_rate: int | None, *, target_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """Turn samples (S,) or (channels, S) in memory into a waveform (S,) as :func:`load` gives it.

    Floats are in [-1, 1]; overshoot passes, a peak above 200 does not. Integers of 8, 16 or 32 bits
    are divided by their full scale. There is no default for the rate: a wrong one must not pass
    unnoticed.

    Raises
    ------
    RequestError
        If the rate is missing or none, the samples are floats at the scale of integers, not
        numbers, empty, look like (S, channels), or have more than 24 channels.
    """
    if sample_rate is None:
        raise RequestError(
            "an array of samples needs its sample rate: embed(samples, sample_rate=44100)."
        )
    if not is_number(sample_rate) or not 1_000 <= sample_rate <= 768_000:
        raise RequestError(f"sample_rate is {sample_rate!r}, expected a rate in Hz such as 44100.")
    wave = _floats(_array(samples))
    if wave.ndim not in (1, 2) or wave.size == 0:
        raise RequestError(
            f"samples have shape {wave.shape}, expected (S,) or (channels, S) with S of at least 1."
        )
    if wave.ndim == 2 and wave.shape[0] > wave.shape[1]:
        raise RequestError(
            f"samples have shape {wave.shape}, expected (channels, S): transpose them."
        )
    if wave.ndim == 2 and wave.shape[0] > MOST_CHANNELS:
        raise RequestError(
            f"samples have shape {wave.shape}, expected at most {MOST_CHANNELS} channels. If this "
            "is a batch of pieces of music, give a list: embed(list(samples), sample_rate)."
        )
    peak = largest(wave)
    if not math.isfinite(peak):
        raise RequestError("samples hold NaN or infinity, expected floats in [-1, 1].")
    if fault := scale_fault(peak):
        raise RequestError(f"samples {fault}")
    wave = (wave if wave.ndim == 1 else wave.mean(axis=0)).astype(np.float32)
    if sample_rate != target_rate:
        wave = soxr.resample(wave, sample_rate, target_rate, quality="HQ")
    return wave if len(wave) else np.zeros(1, np.float32)  # a few samples at a high rate


def save(path: str | Path, waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write a waveform (S,) as a 16-bit wav file.

    Beyond full scale it is turned down, not clipped.

    Examples
    --------
    >>> save("silence.wav", np.zeros(22_050, np.float32))
    >>> load("silence.wav").shape
    (22050,)
    """
    with replaced_file(Path(path)) as new:  # on a full disk libsndfile says "System error"
        new.write_bytes(encoded(waveform, sample_rate, format="WAV", subtype="PCM_16"))


def to_mp3(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    """Encode a waveform (S,) as mp3, about 32 kbit/s at 22,050 Hz.

    Beyond full scale it is turned down, not clipped.
    """
    quality = {"compression_level": 0.9, "bitrate_mode": "VARIABLE"}
    return encoded(waveform, sample_rate, format="MP3", subtype="MPEG_LAYER_III", **quality)


def encoded(waveform: np.ndarray, sample_rate: int, **form: Any) -> bytes:
    """Encode a waveform (S,) by libsndfile; beyond full scale it is turned down, not clipped."""
    peak = float(np.abs(waveform).max(initial=0.0))
    content = io.BytesIO()
    soundfile.write(content, waveform / max(1.0, peak), sample_rate, **form)
    return content.getvalue()
