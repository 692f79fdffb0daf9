"""Log-mel against librosa's, on one thread, timed in turn in one run.

    python benchmarks/log_mel.py

Prints the median of each and the median of the ratios, pair by pair: once call by call, so that each finds the other's data
in the processor's cache, and once in blocks of calls, as in a folder of songs. Then what the pitch bands of patchifier-base cost beside mel
bands alone, and what they would cost from every sample instead of every other. Then the power spectra alone, by products of matrices and by
the FFTs of scipy and numpy.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import time

import librosa
import numpy as np
import scipy.fft
from timing import in_turn, keep, say

from patchifier import filters, spectrogram
from patchifier.config import SpectrogramConfig
from patchifier.filters import analysis_window, at_half_rate
from patchifier.spectrogram import CHUNK, log_mel

ROUNDS = {1: 31, 10: 9}  # calls in a block: pairs of blocks
SECONDS = 30
PITCH_ROUNDS = 21
FLOAT32 = np.dtype(np.float32)
WIDE = SpectrogramConfig(n_mels=64, n_pitch_bands=216)


def librosa_log_mel(waveform):
    power = librosa.feature.melspectrogram(
        y=waveform, sr=22_050, n_fft=2048, hop_length=512, n_mels=64, pad_mode="constant"
    )
    return librosa.power_to_db(power, ref=1, amin=1e-10, top_db=None) * 0.01


def seconds_per_call(way, waveform, calls):
    started = time.perf_counter()
    for _ in range(calls):
        way(waveform)
    return (time.perf_counter() - started) / calls


def pitch_bands(waveform):
    """Milliseconds of mel bands alone, with pitch bands, and with those from every sample, timed in turn."""

    def log_mel_of_every_sample(waveform):
        filters.pitch_step, before = lambda config: 1, filters.pitch_step
        spectrogram.banks.cache_clear()
        log_mel(waveform[:1], WIDE)  # tables
        started = time.perf_counter()
        log_mel(waveform, WIDE)
        spent = time.perf_counter() - started
        filters.pitch_step = before
        spectrogram.banks.cache_clear()
        log_mel(waveform[:1], WIDE)
        return spent

    seconds = {"mel bands": [], "with pitch bands": [], "from every sample": []}
    for _ in range(PITCH_ROUNDS):
        seconds["mel bands"].append(seconds_per_call(log_mel, waveform, 1))
        seconds["with pitch bands"].append(
            seconds_per_call(lambda given: log_mel(given, WIDE), waveform, 1)
        )
        seconds["from every sample"].append(log_mel_of_every_sample(waveform))
    ms = {name: 1000 * float(np.median(times)) for name, times in seconds.items()}
    wide = np.array(seconds["with pitch bands"])
    ratios = {
        name: float(np.median(wide / np.array(seconds[name])))
        for name in ("mel bands", "from every sample")
    }
    print(", ".join(f"{name} {value:.1f} ms" for name, value in ms.items()), "for", SECONDS, "s")
    print(
        f"    with pitch bands: {ratios['mel bands']:.2f} times mel bands alone, {ratios['from every sample']:.2f} times those from every sample"
    )
    return {"ms": ms, "ratios": ratios}


def transforms(waveform):
    """Milliseconds of the power spectra of all frames of each bank, timed in turn: {bank: {way: times}}."""
    found = {}
    for name, bank in zip(
        ("mel bands", "pitch bands"), spectrogram.banks(WIDE, FLOAT32), strict=True
    ):
        samples = waveform if bank.step == 1 else at_half_rate(waveform)
        ways = transforms_of(bank.power, samples, WIDE.hop_length // bank.step)
        found[name] = {
            way: say(f"power spectra of {name}, {way}", 1000 * times, "ms")
            for way, times in in_turn(ways, PITCH_ROUNDS).items()
        }
    return found


def transforms_of(power, samples, hop):
    """Ways to the power spectra of frames: {way: function}. The FFTs give all frequencies, the products those that bands need."""
    window = analysis_window(SpectrogramConfig(n_fft=power.n)).astype(np.float32)
    rows = np.lib.stride_tricks.sliding_window_view(samples, power.n)[::hop]  # (T, n)
    starts = range(0, len(rows), CHUNK)

    def products():
        for first in starts:
            power(samples, start=first * hop, hop=hop, count=min(CHUNK, len(rows) - first))

    def by_fft(rfft):
        def spectra():
            for first in starts:
                np.square(rfft(rows[first : first + CHUNK] * window).view(np.float32))

        return spectra

    return {
        "products of matrices": products,
        "scipy": by_fft(scipy.fft.rfft),
        "numpy": by_fft(np.fft.rfft),
    }


def main():
    waveform = 0.1 * np.random.default_rng(0).standard_normal(22_050 * SECONDS, dtype=np.float32)
    ways = {"librosa": librosa_log_mel, "patchifier": log_mel}
    for way in ways.values():
        seconds_per_call(way, waveform, 2)  # imports, tables
    blocks = []
    for calls, rounds in ROUNDS.items():
        seconds = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(seconds_per_call(way, waveform, calls))
        ms = {name: 1000 * float(np.median(times)) for name, times in seconds.items()}
        low, middle, high = (
            float(value)
            for value in np.quantile(
                np.array(seconds["librosa"]) / np.array(seconds["patchifier"]), [0.1, 0.5, 0.9]
            )
        )
        medians = ", ".join(f"{name} {value:.2f} ms" for name, value in ms.items())
        print(
            f"in turn, {calls} call{'s' * (calls > 1)} each: {medians} for {SECONDS} s of audio on one thread"
        )
        print(
            f"    librosa / patchifier: {middle:.2f} (10th to 90th percentile of {rounds} pairs: {low:.2f} to {high:.2f})"
        )
        blocks.append(
            {
                "calls": calls,
                "pairs": rounds,
                "ms": ms,
                "ratio": {"median": middle, "low": low, "high": high},
            }
        )
    keep(
        "log_mel",
        {
            "blocks": blocks,
            "pitch": pitch_bands(waveform),
            "transforms": transforms(waveform),
            "seconds": SECONDS,
            "librosa": librosa.__version__,
        },
    )


if __name__ == "__main__":
    main()
