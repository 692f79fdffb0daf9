"""Music that the benchmarks make themselves: chords, drums and noise, as mp3 files of 44.1 kHz in stereo."""

import os

import numpy as np
import soundfile

RATE = 44_100


def music(seconds, seed):
    """Chords, drums and noise in stereo: (S, 2) float32."""
    chance = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE), dtype=np.float32) / RATE
    beat_s = 60 / chance.uniform(70, 160)
    sides = [0.01 * chance.standard_normal(len(t), dtype=np.float32) for _ in range(2)]
    for start_s in np.arange(0, seconds, 4 * beat_s):
        part = slice(round(start_s * RATE), round((start_s + 4 * beat_s) * RATE))
        root = 55 * 2 ** (chance.integers(24) / 12)
        for step in (0, 4, 7, 12, 19):
            for harmonic in range(1, 4):
                tone = (
                    0.08
                    / harmonic
                    * np.sin(
                        2 * np.pi * root * 2 ** (step / 12) * harmonic * t[part]
                        + chance.uniform(0, 6)
                    )
                )
                pan = chance.uniform(0.3, 0.7)
                sides[0][part] += (pan * tone).astype(np.float32)
                sides[1][part] += ((1 - pan) * tone).astype(np.float32)
    for number, start_s in enumerate(np.arange(0, seconds - 0.2, beat_s / 2)):
        first, length = round(start_s * RATE), round(0.15 * RATE)
        hit = np.exp(-30 * t[:length]) * (
            chance.standard_normal(length) if number % 2 else np.sin(2 * np.pi * 60 * t[:length])
        )
        for side in sides:
            side[first : first + length] += (0.3 * hit[: len(side) - first]).astype(np.float32)
    return np.clip(np.stack(sides, axis=1), -1, 1)


def make(folder, files, seconds):
    """Encode eight pieces, at 192 kbit/s or near, and give them as many names as are asked for."""
    for seed in range(min(files, 8)):
        with soundfile.SoundFile(
            folder / f"{seed:04d}.mp3",
            "w",
            RATE,
            2,
            format="MP3",
            bitrate_mode="CONSTANT",
            compression_level=0.4,
        ) as file:
            file.write(music(seconds, seed))
    for number in range(8, files):
        os.link(folder / f"{number % 8:04d}.mp3", folder / f"{number:04d}.mp3")
    return sorted(folder.glob("*.mp3"))
