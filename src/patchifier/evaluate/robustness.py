"""Perturbations of test audio that should not change the predictions of a probe.

=============  =====================================================================================
name           change of the waveform
=============  =====================================================================================
mp3-32         encoded by LAME at a constant 32 kbit/s, mono, and decoded; encoder and decoder delay
               taken out, length kept
gain-20        every sample times 0.1: 20 dB quieter
pink-10        plus pink noise (power 1/f from 20 Hz up), its power over the clip 10 dB below the
               clip's own; silence stays silence
low-pass-4k    linear-phase Kaiser low-pass: flat to 3.5 kHz, -6 dB at 4 kHz, 80 dB down from 4.5
               kHz on; delay taken out
pitch+1        one semitone up at the same speed (phase vocoder of librosa, hop 512 of 2048)
stretch-1.1    1.1 times as fast at the same pitch, so 1 / 1.1 as long (same phase vocoder)
=============  =====================================================================================

Random numbers depend on the clip's id alone, so they are the same in every run and for every
encoder. Nothing is clipped or scaled: samples beyond full scale stay as they are.
"""

import functools
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from patchifier import audio, jobs
from patchifier.cache import Cache, prepare
from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset
from patchifier.io import Progress, replaced_file, silent

VERSION = 1  # of the definitions above: audio made by another one is made again
MP3_KBITS = 32
GAIN_DB = -20.0
SNR_DB, PINK_FROM_HZ = 10.0, 20.0
CUTOFF_HZ, TRANSITION_HZ, STOP_DB = 4000.0, 1000.0, 80.0
SEMITONES = 1.0
SPEED = 1.1
VOCODER_FFT = 2048
MP3_TAIL = 3 * 1152  # samples of silence behind a sound, so that its end comes out of the coder
# MPEG-1, 2 and 2.5 layer III: libsndfile turns a compression level of 0 to 1 into a rate between
# these, highest first.
MP3_RATES = {
    **dict.fromkeys((32_000, 44_100, 48_000), (320, 32)),
    **dict.fromkeys((16_000, 22_050, 24_000), (160, 8)),
    **dict.fromkeys((8_000, 11_025, 12_000), (64, 8)),
}


@dataclass(frozen=True)
class Perturbation:
    """One way to change a sound; `what` describes it in tables.

    `apply` takes a waveform (S,) float32, its sample rate in Hz and a numpy Generator, and returns
    a waveform of S / `speed` samples.
    """

    what: str
    apply: Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
    speed: float = 1.0


def _mp3(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    if sample_rate not in MP3_RATES:
        raise RequestError(
            f"mp3 knows no sample rate of {sample_rate} Hz, expected one of {sorted(MP3_RATES)}: "
            "prepare the cache with one of these."
        )
    # LAME clips at full scale: a sound that goes beyond is turned down before, and up again after.
    peak = np.float32(max(1.0, float(np.abs(waveform).max(initial=0.0))))
    decoded = _through_mp3(np.pad(waveform / peak, (0, MP3_TAIL)), sample_rate)
    return _fitted(decoded[_mp3_delay(sample_rate) :] * peak, len(waveform))


def _through_mp3(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Encode and decode: some frames longer or shorter than before, and late by the delay."""
    file = io.BytesIO(to_mp3(waveform, sample_rate, MP3_KBITS))
    return soundfile.read(file, dtype="float32")[0]


def to_mp3(waveform: np.ndarray, sample_rate: int, kbits: int) -> bytes:
    """Mono mp3 of a waveform (S,) at a constant bit rate, in kbit/s; at most at full scale."""
    highest, lowest = MP3_RATES[sample_rate]
    # libsndfile 1.2.2 refuses 1, its own lowest rate
    level = min(0.9999, (highest - kbits) / (highest - lowest))
    form = {"format": "MP3", "subtype": "MPEG_LAYER_III"}
    rate = {"bitrate_mode": "CONSTANT", "compression_level": level}
    return audio.encoded(waveform, sample_rate, **form, **rate)


@functools.lru_cache(maxsize=16)
def _mp3_delay(sample_rate: int) -> int:
    """Delay of the decoded sound in samples, measured; it depends on the sample rate."""
    burst = 0.1 * np.random.default_rng(0).standard_normal(2**14)
    decoded = _through_mp3(np.pad(burst, (0, MP3_TAIL)), sample_rate)
    size = 2**16  # more than both together
    likeness = np.fft.irfft(np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(burst, size)), size)
    return int(likeness[: size // 2].argmax())


def _gain(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    return waveform * np.float32(10 ** (GAIN_DB / 20))


def _pink(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    noise = pink_noise(len(waveform), sample_rate, generator)
    power = np.mean(waveform.astype(np.float64) ** 2)
    return (waveform + noise * np.sqrt(power) * 10 ** (-SNR_DB / 20)).astype(np.float32)


def pink_noise(samples: int, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Pink noise (S,) from 20 Hz up, float64, mean square 1: power falls by 3 dB an octave."""
    hertz = np.fft.rfftfreq(samples, 1 / sample_rate)
    kept = hertz >= min(PINK_FROM_HZ, hertz[-1])  # of a few samples, at least one frequency
    white = np.fft.rfft(generator.standard_normal(samples))
    spectrum = white * kept / np.sqrt(np.maximum(hertz, 1.0))
    noise = np.fft.irfft(spectrum, samples)
    return noise / np.sqrt(np.mean(noise**2))


def _low_pass(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    from scipy import signal

    if sample_rate / 2 <= CUTOFF_HZ + TRANSITION_HZ / 2:
        raise RequestError(
            f"at a sample rate of {sample_rate} Hz a low-pass at {CUTOFF_HZ:g} Hz leaves nothing "
            "out: leave low-pass-4k out."
        )
    taps, beta = signal.kaiserord(STOP_DB, TRANSITION_HZ / (sample_rate / 2))
    kernel = signal.firwin(taps | 1, CUTOFF_HZ, window=("kaiser", beta), fs=sample_rate)
    filtered = signal.oaconvolve(waveform.astype(np.float64), kernel, mode="full")
    delay = len(kernel) // 2
    return filtered[delay : delay + len(waveform)].astype(np.float32)


def _pitch(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    from librosa import effects

    how: dict[str, Any] = {"n_steps": SEMITONES, "res_type": "soxr_hq", "n_fft": VOCODER_FFT}
    shifted = effects.pitch_shift(_long_enough(waveform), sr=sample_rate, **how)
    return _fitted(shifted, len(waveform))


def _stretch(waveform: np.ndarray, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    from librosa import effects

    faster = effects.time_stretch(_long_enough(waveform), rate=SPEED, n_fft=VOCODER_FFT)
    return _fitted(faster, max(1, round(len(waveform) / SPEED)))


def _long_enough(waveform: np.ndarray) -> np.ndarray:
    """A waveform with silence behind it, if it is shorter than the vocoder needs."""
    return np.pad(waveform, (0, max(0, 2 * VOCODER_FFT - len(waveform))))


def _fitted(waveform: np.ndarray, samples: int) -> np.ndarray:
    """The first so many samples, with silence behind if there are fewer."""
    return np.pad(waveform[:samples], (0, max(0, samples - len(waveform)))).astype(np.float32)


PERTURBATIONS: dict[str, Perturbation] = {
    "mp3-32": Perturbation("mp3 at 32 kbit/s", _mp3),
    "gain-20": Perturbation("20 dB quieter", _gain),
    "pink-10": Perturbation("pink noise, 10 dB below", _pink),
    "low-pass-4k": Perturbation("low-pass at 4 kHz", _low_pass),
    "pitch+1": Perturbation("pitch 1 semitone up", _pitch),
    "stretch-1.1": Perturbation("1.1 times as fast", _stretch, speed=SPEED),
}


def generator_of(clip_id: str) -> np.random.Generator:
    """Random numbers of a clip: the same in every process, on every machine."""
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def retimed(rows: Sequence[Sequence[Any]], speed: float) -> list[list[Any]]:
    """Rows of [start_s, end_s, label] of a sound that is played `speed` times as fast."""
    return [[start_s / speed, end_s / speed, label] for start_s, end_s, label in rows]


# --- a whole set ---


def perturb(
    data: Cache,
    indices: Sequence[int] | np.ndarray,
    name: str,
    out: str | Path,
    *,
    workers: int | None = None,
    progress: Progress = silent,
) -> Cache:
    """Perturb some clips and prepare a cache of them.

    Parameters
    ----------
    data : Cache
        Its clips' files are decoded again, from each clip's own start to its own end, at the
        cache's sample rate.
    indices : sequence of int
        Which clips, such as the tested ones.
    name : str
        Of :data:`PERTURBATIONS`.
    out : str or Path
        Folder: the sounds go to ``audio/`` (24-bit FLAC; float wav where a peak is beyond full
        scale, so that nothing is clipped), the log-mels to ``cache/``. A second call goes on where
        the first was cut off; with all there it does nothing, even if ``audio/`` has been deleted.
    workers : int
        Processes; one for each core by default.
    progress : callable
        Called with clips done, clips in all, and a note.

    Returns
    -------
    Cache
        The same ids, order, splits and targets as `data` has them at `indices`; the times of
        per-frame targets follow the speed.

    Raises
    ------
    RequestError
        If there is no such perturbation or clip, or a file can no longer be read.

    Examples
    --------
    >>> data = Cache("demo-cache")
    >>> quiet = perturb(data, [0, 1], "gain-20", "quiet", workers=1)
    >>> difference = data.log_mel(0).astype(float) - quiet.log_mel(0)
    >>> f"{np.median(difference):.2f}"  # 20 dB, times 0.01
    '0.20'
    """
    if name not in PERTURBATIONS:
        raise RequestError(
            f"there is no perturbation {name!r}, expected one of {', '.join(PERTURBATIONS)}."
        )
    wanted = [int(index) for index in indices]
    if not wanted or len({*wanted} & {*range(len(data.clips))}) < len(wanted):
        raise RequestError(
            f"indices are {wanted}, expected at least one, none twice, each from 0 to "
            f"{len(data.clips) - 1}."
        )
    clips, out = [data.clips[index] for index in wanted], Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with jobs.folder_lock(out, "perturbation"):
        return _perturb(data, clips, name, out, workers or os.cpu_count() or 1, progress)


def _perturb(
    data: Cache, clips: Sequence[Clip], name: str, out: Path, workers: int, progress: Progress
) -> Cache:
    """Perturb clips into a folder that this job has locked."""
    rate = data.spectrogram.sample_rate
    stems = [_stem(clip, name, rate, out / "audio") for clip in clips]
    finished = _finished(data, clips, name, stems, out / "cache")
    if finished is not None:
        return finished
    _write_all(clips, stems, name, rate, workers, progress)
    made = _described(data, clips, name, [_written(stem) for stem in stems])
    prepared = prepare(
        made, out / "cache", config=data.spectrogram, workers=workers, progress=progress
    )
    if prepared.skipped:
        clip, reason = prepared.skipped[0]
        raise RequestError(
            f"{len(prepared.skipped)} perturbed clips cannot be read, the first is {clip.id!r}: "
            f"{reason} Delete {out} and try again."
        )
    return Cache(out / "cache")


def _stem(clip: Clip, name: str, sample_rate: int, folder: Path) -> Path:
    """File of a perturbed clip without suffix; it depends on source, part, rate and definition."""
    try:
        facts = Path(clip.path).stat()
    except OSError as error:
        raise RequestError(
            f"clip {clip.id!r}: {clip.path} cannot be read ({error.strerror}): perturbations need "
            "the audio, put it back."
        ) from error
    key = [clip.id, clip.start_s, clip.end_s, facts.st_size, facts.st_mtime_ns]
    key += [sample_rate, name, VERSION]
    return folder / hashlib.sha256(repr(key).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _written(stem: Path) -> Path | None:
    """The file with this stem, if it is there."""
    return next(
        (path for path in (stem.with_suffix(".flac"), stem.with_suffix(".wav")) if path.exists()),
        None,
    )


def _described(
    data: Cache, clips: Sequence[Clip], name: str, paths: Sequence[Path | None]
) -> Dataset:
    """Data set of the perturbed clips."""
    speed = PERTURBATIONS[name].speed
    per_frame = data.task is not None and data.task.kind == "per-frame"
    made = []
    for clip, path in zip(clips, paths, strict=True):
        target = clip.target
        if per_frame and target is not None:
            target = retimed(target, speed)
        made.append(replace(clip, path=str(path), start_s=0.0, end_s=None, target=target))
    return Dataset(f"{data.name}, {name}", tuple(made), data.task)


def _finished(
    data: Cache, clips: Sequence[Clip], name: str, stems: Sequence[Path], path: Path
) -> Cache | None:
    """The cache, if it was finished and holds just these clips."""
    if not (path / "index.jsonl").exists():
        return None
    there = Cache(path)
    there.require(data.spectrogram)
    paths = [Path(clip.path) for clip in there.clips]
    if [path.stem for path in paths] != [stem.name for stem in stems]:
        return None
    return there if there.clips == _described(data, clips, name, paths).clips else None


def _write_all(
    clips: Sequence[Clip],
    stems: Sequence[Path],
    name: str,
    sample_rate: int,
    workers: int,
    progress: Progress,
) -> None:
    """Perturb every clip without a file, in processes.

    The first error ends the job, and the finished files stay.
    """
    missing = [
        [(clip, stem)] for clip, stem in zip(clips, stems, strict=True) if _written(stem) is None
    ]
    results = jobs.run(
        _write, missing, workers=workers, shared=(name, sample_rate), name=lambda task: task[0].path
    )
    for done, crash in enumerate(results, len(clips) - len(missing) + 1):
        if crash is not None:
            raise RequestError(crash)
        progress(done, len(clips), PERTURBATIONS[name].what)


def _write(shared: tuple[str, int], tasks: Sequence[tuple[Clip, Path]]) -> list[None]:
    """Perturb clips. Runs in a worker process."""
    name, rate = shared
    for clip, stem in tasks:
        waveform = audio.load(clip.path, sample_rate=rate, start_s=clip.start_s, end_s=clip.end_s)
        perturbed = PERTURBATIONS[name].apply(waveform, rate, generator_of(clip.id))
        fits = float(np.abs(perturbed).max()) < 1
        form, subtype = ("FLAC", "PCM_24") if fits else ("WAV", "FLOAT")
        with replaced_file(stem.with_suffix(f".{form.lower()}")) as new:
            soundfile.write(new, perturbed, rate, format=form, subtype=subtype)
    return [None] * len(tasks)
