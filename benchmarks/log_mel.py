"""Log-mel against librosa's, on one thread, timed in turn in one run.

    python benchmarks/log_mel.py

Prints the median of each and the median of the ratios, pair by pair.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import time

import librosa
import numpy as np
import torch

from patchifier.runs import machine
from patchifier.spectrogram import log_mel

ROUNDS = 31
SECONDS = 30


def librosa_log_mel(waveform):
    power = librosa.feature.melspectrogram(y=waveform, sr=22_050, n_fft=2048, hop_length=512, n_mels=64, pad_mode="constant")
    return librosa.power_to_db(power, ref=1, amin=1e-10, top_db=None) * 0.01


def main():
    torch.set_num_threads(1)
    waveform = 0.1 * np.random.default_rng(0).standard_normal(22_050 * SECONDS, dtype=np.float32)
    ways = {"librosa": librosa_log_mel, "patchifier": log_mel}
    seconds = {name: [] for name in ways}
    for _ in range(ROUNDS + 2):
        for name, way in ways.items():
            started = time.perf_counter()
            way(waveform)
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"{name:<12}{1000 * np.median(times[2:]):7.2f} ms for {SECONDS} s of audio, one thread")
    ratios = np.array(seconds["librosa"][2:]) / np.array(seconds["patchifier"][2:])
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    print(f"librosa / patchifier: {middle:.2f} (10th to 90th percentile of {ROUNDS} pairs: {low:.2f} to {high:.2f})")
    print(f"on {machine()}")


if __name__ == "__main__":
    main()
