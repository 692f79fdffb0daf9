"""Sound that is no music, made from a generator: what a head must doubt, and what has neither tempo nor key."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

LENGTH_S = (3.0, 12.0)
LEVEL = 0.3  # peak
MOST_RECORDED = 100
VOWELS_HZ = ((280, 800), (900, 2300), (2300, 3200))  # ranges of three formants
FORMANT_WIDTHS_HZ = (80, 100, 150)


def white(generator: np.random.Generator, rate: int) -> np.ndarray:
    """White noise."""
    return _levelled(_noise(generator, rate))


def pink(generator: np.random.Generator, rate: int) -> np.ndarray:
    """Noise with equal energy in every octave."""
    return _levelled(_coloured(_noise(generator, rate), 0.5))


def brown(generator: np.random.Generator, rate: int) -> np.ndarray:
    """Noise that falls by 6 dB an octave, as wind does."""
    return _levelled(_coloured(_noise(generator, rate), 1.0))


def syllables(generator: np.random.Generator, rate: int) -> np.ndarray:
    """White noise in syllables of irregular length."""
    noise = _noise(generator, rate)
    edges = np.cumsum(generator.uniform(0.08, 0.5, 200))
    loud = np.searchsorted(edges, np.arange(len(noise)) / rate) % 2
    return _levelled(noise * np.convolve(loud, np.hanning(600) / 300, "same"))


def voice(generator: np.random.Generator, rate: int) -> np.ndarray:
    """Speech-like: pulses of gliding pitch through three formants, in syllables with pauses."""
    from scipy.signal import lfilter

    count = len(_noise(generator, rate))
    glide = np.interp(np.arange(count) / rate, np.arange(0, 20, 0.3), generator.standard_normal(67))
    pitch_hz = generator.uniform(90, 220) * np.exp(0.25 * glide)
    pulses = np.diff(np.floor(np.cumsum(pitch_hz) / rate), prepend=0)
    pulses = pulses + 0.02 * generator.standard_normal(count)
    spoken, at = np.zeros(count), 0
    while at < count:
        part = pulses[at : at + int(generator.uniform(0.08, 0.3) * rate)]
        for (low, high), width in zip(VOWELS_HZ, FORMANT_WIDTHS_HZ):
            radius = np.exp(-np.pi * width / rate)
            angle = 2 * np.pi * generator.uniform(low, high) / rate
            part = lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], part)
        spoken[at : at + len(part)] = part * np.hanning(len(part))
        pause_s = generator.uniform(0.05, 0.4) if generator.random() < 0.3 else 0.0
        at += len(part) + int(pause_s * rate)
    return _levelled(spoken)


def silence(generator: np.random.Generator, rate: int) -> np.ndarray:
    """Digital silence, or noise of -120 to -70 dB."""
    noise = _noise(generator, rate).astype(np.float32)
    return noise * (10 ** (generator.uniform(-120, -70) / 20) if generator.random() < 0.5 else 0)


KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    each.__name__: each for each in (white, pink, brown, syllables, voice, silence)
}


def recorded(folder: Path) -> list[Path]:
    """At most about 100 wav files of a folder of recorded speech, evenly of their names."""
    files = sorted(folder.rglob("*.wav"))
    return files[:: max(1, len(files) // MOST_RECORDED)]


def _noise(generator: np.random.Generator, rate: int) -> np.ndarray:
    return generator.standard_normal(int(generator.uniform(*LENGTH_S) * rate))


def _coloured(noise: np.ndarray, power: float) -> np.ndarray:
    spectrum = np.fft.rfft(noise)
    return np.fft.irfft(spectrum / np.maximum(1, np.arange(len(spectrum))) ** power, len(noise))


def _levelled(sound: np.ndarray) -> np.ndarray:
    return (LEVEL * sound / np.abs(sound).max()).astype(np.float32)
