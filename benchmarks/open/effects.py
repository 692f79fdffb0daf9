"""What happens to sound on its way to a recording: drive, reverberation, equalisation, a dull channel, noise. All drawn, none moves a note."""

from dataclasses import dataclass

import numpy as np
from scipy import fft, signal

REVERB, DRIVE, LOW_PASS, NOISE = 0.7, 0.4, 0.25, 0.4  # shares of the clips
BAND_HZ = (60.0, 12_000.0)


@dataclass(frozen=True)
class Effects:
    """The effects of a clip; 0 and empty where there are none.

    Parameters
    ----------
    drive : float
        Factor in front of a tanh, relative to four times the root mean square.
    reverb_s, wet, delay_s, damping : float
        Time to fall by 60 dB, share, time before the first reflection, and coefficient of the low-pass of the reflections.
    bands : tuple of (Hz, dB, octaves)
        Bells of the equaliser.
    low_pass_hz : float
        The corner.
    noise, noise_db
        "white", "pink" or "hum", and its level below that of the music.
    """

    drive: float = 0.0
    reverb_s: float = 0.0
    wet: float = 0.0
    delay_s: float = 0.0
    damping: float = 0.0
    bands: tuple[tuple[float, float, float], ...] = ()
    low_pass_hz: float = 0.0
    noise: str = ""
    noise_db: float = 0.0


def draw(generator: np.random.Generator) -> Effects:
    """Draw the effects of a clip."""
    on = generator.random(4) < (DRIVE, REVERB, LOW_PASS, NOISE)
    bands = [
        (
            float(np.exp(generator.uniform(*np.log(BAND_HZ)))),
            float(generator.uniform(-6, 6)),
            float(generator.uniform(0.5, 2.0)),
        )
        for _ in range(int(generator.integers(2, 5)))
    ]
    return Effects(
        drive=float(on[0] * generator.uniform(0.5, 3.0)),
        reverb_s=float(on[1] * np.exp(generator.uniform(*np.log((0.2, 2.5))))),
        wet=float(on[1] * generator.uniform(0.05, 0.4)),
        delay_s=float(generator.uniform(0.0, 0.03)),
        damping=float(generator.uniform(0.0, 0.8)),
        bands=tuple(bands),
        low_pass_hz=float(on[2] * np.exp(generator.uniform(*np.log((3_000, 16_000))))),
        noise=str(generator.choice(["white", "pink", "hum"])) if on[3] else "",
        noise_db=float(generator.uniform(-65, -30)),
    )


def apply(
    waveform: np.ndarray, rate: int, effects: Effects, generator: np.random.Generator
) -> np.ndarray:
    """Waveform (S,) float32 with the effects; as long as before, no note moved."""
    if effects.drive:
        unit = 4 * float(np.sqrt(np.mean(waveform**2))) + 1e-9
        waveform = np.tanh(waveform * np.float32(effects.drive / unit))
    waveform = _filtered(waveform, rate, effects, generator)
    if effects.noise:
        level = float(np.sqrt(np.mean(waveform**2))) * 10 ** (effects.noise_db / 20)
        waveform = waveform + np.float32(level) * noise(
            effects.noise, len(waveform), rate, generator
        )
    return waveform.astype(np.float32)


def _filtered(
    waveform: np.ndarray, rate: int, effects: Effects, generator: np.random.Generator
) -> np.ndarray:
    """Reverberation, equaliser and low-pass in one product of spectra."""
    response = impulse(rate, effects, generator)
    size = fft.next_fast_len(len(waveform) + len(response), real=True)
    gains = spectrum_gains(np.arange(size // 2 + 1) * (rate / size), effects)
    product = fft.rfft(waveform, size) * gains
    if len(response) > 1:
        product *= fft.rfft(response, size)
    return fft.irfft(product, size)[: len(waveform)]


def impulse(rate: int, effects: Effects, generator: np.random.Generator) -> np.ndarray:
    """Response (K,) of a room: the sound itself, then noise that decays, duller than it."""
    if not effects.reverb_s:
        return np.ones(1, np.float32)
    time_s = np.arange(int(effects.reverb_s * rate), dtype=np.float32) / rate
    tail = generator.standard_normal(len(time_s), np.float32)
    tail *= np.exp(-6.9 * time_s / effects.reverb_s)
    tail = signal.lfilter([1 - effects.damping], [1, -effects.damping], tail)
    tail /= np.sqrt(np.sum(tail**2)) + 1e-9
    response = np.concatenate([np.zeros(int(effects.delay_s * rate)), effects.wet * tail])
    response[0] += 1 - effects.wet
    return response.astype(np.float32)


def spectrum_gains(frequencies_hz: np.ndarray, effects: Effects) -> np.ndarray:
    """Gain (F,) float32 at each frequency: bells, and a fall of 12 dB an octave above the corner."""
    coarse_hz = np.geomspace(20, 22_050, 256)
    level_db = np.zeros(len(coarse_hz))
    for centre_hz, gain_db, octaves in effects.bands:
        level_db += gain_db * np.exp(-0.5 * (np.log2(coarse_hz / centre_hz) / octaves) ** 2)
    if effects.low_pass_hz:
        level_db -= 10 * np.log10(1 + (coarse_hz / effects.low_pass_hz) ** 4)
    return np.interp(frequencies_hz, coarse_hz, 10 ** (level_db / 20)).astype(np.float32)


def noise(kind: str, samples: int, rate: int, generator: np.random.Generator) -> np.ndarray:
    """Noise (S,) float32 of root mean square 1."""
    if kind == "hum":
        base_hz = float(generator.choice([50.0, 60.0]))
        phase = np.arange(samples, dtype=np.float32) * np.float32(2 * np.pi * base_hz / rate)
        found = sum(np.sin(number * phase) / number for number in (1, 2, 3, 5))
    else:
        found = generator.standard_normal(samples, np.float32)
    if kind == "pink":  # three poles approximate it within 1 dB: P. Kellet's filter
        numerator = [0.049922035, -0.095993537, 0.050612699, -0.004408786]
        found = signal.lfilter(numerator, [1, -2.494956002, 2.017265875, -0.522189400], found)
    return (found / np.sqrt(np.mean(found**2))).astype(np.float32)
