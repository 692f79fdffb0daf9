"""Fingerprints on the bundled clips: what is found, what is mistaken, and what it costs.

    python benchmarks/leaks.py

Of each of the 112 clips of 20 s (every one another track), 5 s from a random start are changed and looked for among all clips.
Prints a line for each change: excerpts called "same recording" as their own clip at the right offset; those called at least "similar";
pairs of different tracks that are called anything. Then the same for landmarks (pairs of spectral peaks, Wang 2003), the other common
fingerprint, and seconds per clip against an index of 290 clips of 29 s.
"""

import io
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import soundfile
import soxr
import torch

from patchifier import audio, datasets, matching, spectrogram
from patchifier.config import SpectrogramConfig
from patchifier.datasets import Clip
from patchifier.evaluate import leaks
from patchifier.evaluate.robustness import pink_noise, to_mp3
from patchifier.train.run import machine

RATE, SECONDS = 22_050, 5
CONFIG = SpectrogramConfig()


def through_mp3(sound, kbits=64):
    return soundfile.read(io.BytesIO(to_mp3(sound, RATE, kbits)), dtype="float32")[0]


def noisy(sound, generator, snr_db):
    return sound + pink_noise(len(sound), RATE, generator) * np.sqrt((sound**2).mean()) * 10 ** (
        -snr_db / 20
    )


def narrow(sound):
    return soxr.resample(soxr.resample(sound, RATE, 16_000), 16_000, RATE)


CHANGES = {
    "none, other start": lambda sound, generator: sound,
    "mp3 at 64 kbit/s": lambda sound, generator: through_mp3(sound),
    "gain -20 dB": lambda sound, generator: 0.1 * sound,
    "resampled to 16 kHz": lambda sound, generator: narrow(sound),
    "pink noise, 20 dB": lambda sound, generator: noisy(sound, generator, 20),
    "all four": lambda sound, generator: through_mp3(0.1 * narrow(noisy(sound, generator, 20))),
    "pink noise, 10 dB": lambda sound, generator: noisy(sound, generator, 10),
    "speed +1 %": lambda sound, generator: soxr.resample(sound, 1.01 * RATE, RATE),
    "speed +3 %": lambda sound, generator: soxr.resample(sound, 1.03 * RATE, RATE),
}


class LogMels:
    """What a cache offers, in memory."""

    def __init__(self, path, clips, log_mels):
        self.path, self.clips, self.log_mels, self.spectrogram = Path(path), clips, log_mels, CONFIG
        self.frames = np.array([len(log_mel) for log_mel in log_mels])

    def log_mel(self, index):
        """As of a cache."""
        return self.log_mels[index]

    def require(self, config):
        """As of a cache."""
        assert config == CONFIG


def log_mel(sound):
    return spectrogram.log_mel(np.asarray(sound, np.float32), CONFIG).T.astype(np.float16)


def prepared(number):
    """Start in seconds, log-mel of the whole clip, and one of each changed excerpt."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(number)
    sound = audio.load(datasets.load("demo").clips[number].path)
    start = int(generator.integers(0, len(sound) - SECONDS * RATE))
    part = sound[start : start + SECONDS * RATE]
    return (
        start / RATE,
        log_mel(sound),
        {name: log_mel(change(part, generator)) for name, change in CHANGES.items()},
    )


# --- landmarks, for comparison ---


def landmarks(spectrum, fan=12, reach=64):
    """Hashes of pairs of peaks and their frames."""
    from scipy.ndimage import maximum_filter

    spectrum = spectrum.astype(np.float32)
    peaks = (
        (spectrum == maximum_filter(spectrum, (15, 9)))
        & (spectrum > np.median(spectrum, axis=0) + 0.03)
        & (spectrum > -0.95)
    )
    frames, bands = np.nonzero(peaks)
    hashes = []
    for step in range(1, min(fan, len(frames) - 1) + 1):
        apart = frames[step:] - frames[:-step]
        near = apart < reach
        hashes.append(
            np.stack(
                [(bands[:-step] << 12 | bands[step:] << 6 | apart)[near], frames[:-step][near]]
            )
        )
    return np.concatenate(hashes, axis=1) if hashes else np.zeros((2, 0), int)


def landmark_votes(library, query):
    """Most votes at one offset, and that offset, for every clip of the library."""
    codes, frames = landmarks(query)
    best = []
    for number, (others, heard) in enumerate(library):
        at, end = np.searchsorted(others, codes, "left"), np.searchsorted(others, codes, "right")
        hits = end - at
        offsets = heard[
            np.repeat(at - np.cumsum(hits) + hits, hits) + np.arange(hits.sum())
        ] - np.repeat(frames, hits)
        cells, votes = np.unique(offsets, return_counts=True)
        total = matching.with_neighbours(cells, votes)
        best.append(
            (int(total.max(initial=0)), int(cells[total.argmax()]) if len(cells) else 0, number)
        )
    return best


# --- figures ---


def measure(data, clips):
    library = LogMels("library", clips, [whole for _, whole, _ in data])
    own = {clip.id: start for clip, (start, _, _) in zip(clips, data, strict=True)}
    print(
        f"{'change':22} {'same':>6} {'similar':>8} {'false':>6}   of {len(clips)} excerpts, {len(clips) * (len(clips) - 1):,} false pairs"
    )
    for name in CHANGES:
        found = leaks.leaks(
            library, LogMels("excerpts", clips, [parts[name] for _, _, parts in data])
        )
        right = [
            leak
            for leak in found
            if leak.first == leak.second and abs(leak.offset_s + own[leak.first]) < 0.1
        ]
        false = [leak for leak in found if leak.first != leak.second]
        print(
            f"{name:22} {sum(leak.kind == 'same recording' for leak in right):6} {len(right):8} {len(false):6}"
        )
    print(
        f"whole clips with one another: {len(leaks.leaks(library, library))} pairs called anything, of {len(clips) * (len(clips) - 1) // 2:,}"
    )


def measure_landmarks(data):
    library = []
    for _, whole, _ in data:
        hashes = landmarks(whole)
        library.append(hashes[:, np.argsort(hashes[0], kind="stable")])
    print(
        f"landmarks: {np.mean([hashes.shape[1] for hashes in library]):.0f} postings a clip; votes needed so that no pair is false, and what is then found"
    )
    for name in CHANGES:
        votes = [landmark_votes(library, parts[name]) for _, _, parts in data]
        false = max(row[0] for own, rows in enumerate(votes) for row in rows if row[2] != own)
        starts = [start * RATE / 512 for start, _, _ in data]
        right = sum(
            rows[own][0] > false and abs(rows[own][1] - starts[own]) < 4
            for own, rows in enumerate(votes)
        )
        print(f"{name:22} {false + 1:6} votes {right:6} found")


def measure_time(data):
    """Two sets of clips of 29 s, made from the bundled ones: each two clips in a row, moved up by some bands so that each is another."""

    def made(name, count, first):
        log_mels = []
        for number in range(count):
            one, two, up = number % 112, (3 * number + 1) % 112, first + number // 112
            log_mels.append(
                np.roll(np.concatenate([data[one][1], data[two][1]])[:1249], up, axis=1)
            )
        return LogMels(name, [Clip(f"{name} {number}", "") for number in range(count)], log_mels)

    small, large = made("test", 290, 0), made("training", 300, 7)
    seconds = []
    for library in (LogMels("none", large.clips[:1], large.log_mels[:1]), large):
        started = time.process_time()  # of one thread, whoever else is at work
        leaks.leaks(library, small)
        seconds.append(time.process_time() - started)
    each = (seconds[1] - seconds[0]) / (len(large.clips) - 1)
    print(
        f"index of 290 clips of 29 s: {seconds[0]:.1f} s; each clip of the other set: {1000 * each:.1f} ms; 25,860 of them: {each * 25_860 / 60:.1f} min"
    )
    print(f"one thread of {machine()}")


def main():
    clips = datasets.load("demo").clips
    with ProcessPoolExecutor() as pool:
        data = list(pool.map(prepared, range(len(clips))))
    measure(data, clips)
    measure_landmarks(data)
    measure_time(data)


if __name__ == "__main__":
    main()
