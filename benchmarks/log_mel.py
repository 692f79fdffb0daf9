"""Log-mel against librosa's, on one thread, timed in turn in one run.

    python benchmarks/log_mel.py

Prints the median of each and the median of the ratios, pair by pair: once call by call, so that each finds the other's data
in the processor's cache, and once in blocks of calls, as in a folder of songs.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import time

import librosa
import numpy as np
import torch
from timing import keep

from patchifier.spectrogram import log_mel

ROUNDS = {1: 31, 10: 9}  # calls in a block: pairs of blocks
SECONDS = 30


def librosa_log_mel(waveform):
    power = librosa.feature.melspectrogram(y=waveform, sr=22_050, n_fft=2048, hop_length=512, n_mels=64, pad_mode="constant")
    return librosa.power_to_db(power, ref=1, amin=1e-10, top_db=None) * 0.01


def seconds_per_call(way, waveform, calls):
    started = time.perf_counter()
    for _ in range(calls):
        way(waveform)
    return (time.perf_counter() - started) / calls


def main():
    torch.set_num_threads(1)
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
        low, middle, high = (float(value) for value in np.quantile(np.array(seconds["librosa"]) / np.array(seconds["patchifier"]), [0.1, 0.5, 0.9]))
        medians = ", ".join(f"{name} {value:.2f} ms" for name, value in ms.items())
        print(f"in turn, {calls} call{'s' * (calls > 1)} each: {medians} for {SECONDS} s of audio on one thread")
        print(f"    librosa / patchifier: {middle:.2f} (10th to 90th percentile of {rounds} pairs: {low:.2f} to {high:.2f})")
        blocks.append({"calls": calls, "pairs": rounds, "ms": ms, "ratio": {"median": middle, "low": low, "high": high}})
    keep("log_mel", {"blocks": blocks, "seconds": SECONDS, "librosa": librosa.__version__})


if __name__ == "__main__":
    main()
