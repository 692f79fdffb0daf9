"""Vectors of ONNX Runtime against those of torch, and on 1, 2 and 4 threads, over files of every format and length.

    python benchmarks/parity.py [--files 200] [--model patchifier-base]

Makes the files: silence, noise, tones, chirps, chords with drums, and bundled clips, from one sample to an hour, in the formats of libsndfile
and, where PyAV is installed, those of FFmpeg. Each is decoded once, and all networks get the same log-mel. Asked for: a largest difference of
at most 1e-4 of the vector's norm between the runtimes, and 1e-5 between numbers of threads.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import av
import numpy as np
import soundfile
import soxr
import torch
from music import RATE, music
from timing import keep

from patchifier import audio, checkpoint, embed, weights
from patchifier.datasets import demo

LONG_S = (3600, 600, 600, 600)  # of the first files
SECONDS = (1 / RATE, 0.01, 0.1, 0.3, 0.74, 0.75, 1, 2, 3, 5, 10, 15, 20, 29, 30, 31, 45)
THREADS = (1, 2, 4)
SNDFILE = {  # options of soundfile by suffix, and the rate
    "wav": ({"format": "WAV", "subtype": "PCM_16"}, 44_100),
    "float.wav": ({"format": "WAV", "subtype": "FLOAT"}, 22_050),
    "flac": ({"format": "FLAC"}, 96_000),
    "ogg": ({"format": "OGG", "subtype": "VORBIS"}, 44_100),
    "opus": ({"format": "OGG", "subtype": "OPUS"}, 48_000),
    "mp3": ({"format": "MP3"}, 44_100),
    "aiff": ({"format": "AIFF", "subtype": "PCM_24"}, 48_000),
    "au": ({"format": "AU", "subtype": "PCM_16"}, 8_000),
    "caf": ({"format": "CAF", "subtype": "PCM_16"}, 32_000),
    "w64": ({"format": "W64", "subtype": "PCM_U8"}, 11_025),
}
FFMPEG = {  # codec and container by suffix
    "m4a": ("aac", "ipod"),
    "wma": ("wmav2", "asf"),
    "tta": ("tta", "tta"),
    "wv": ("wavpack", "wv"),
    "mka": ("flac", "matroska"),
    "webm": ("libopus", "webm"),
}


def clip(seconds, seed):
    """Bundled music, repeated as often as it takes."""
    paths = sorted(Path(demo.ROOT, "clips").glob("*.ogg"))
    sound = soxr.resample(audio.load(paths[seed % len(paths)]), audio.SAMPLE_RATE, RATE)
    return np.resize(sound, round(seconds * RATE))


def tone(seconds, seed):
    return 0.5 * np.sin(2 * np.pi * 55 * 2 ** (seed % 6) / RATE * np.arange(round(seconds * RATE)))


def chirp(seconds, seed):
    hertz = np.geomspace(30, 12_000, round(seconds * RATE))
    return 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / RATE)


def noise(seconds, seed):
    level = 10.0 ** -(seed % 5)
    return level * np.random.default_rng(seed).uniform(-1, 1, round(seconds * RATE))


SOUNDS = {
    "clip": clip,
    "music": lambda seconds, seed: np.resize(
        music(min(seconds, 60), seed)[:, 0], round(seconds * RATE)
    ),
    "tone": tone,
    "silence": lambda seconds, seed: np.zeros(round(seconds * RATE)),
    "chirp": chirp,
    "noise": noise,
}


def write(path, suffix, sound):
    """Encode a sound of 44.1 kHz; one of a few samples stays at least one sample."""
    if suffix in SNDFILE:
        options, rate = SNDFILE[suffix]
        given = soxr.resample(sound, RATE, rate) if rate != RATE else sound
        given = given if len(given) else sound[:1]
        with soundfile.SoundFile(path, "w", rate, 1, **options) as file:
            for first in range(0, len(given), rate):
                file.write(given[first : first + rate])
        return
    codec, container = FFMPEG[suffix]
    rate = 48_000 if codec == "libopus" else RATE
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 96_000
        resampler = av.AudioResampler(stream.codec_context.format, "mono", rate)
        for first in range(0, len(sound), 1024):
            part = np.ascontiguousarray(sound[None, first : first + 1024], np.float32)
            frame = av.AudioFrame.from_ndarray(part, "flt", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, first, Fraction(1, RATE)
            for ready in resampler.resample(frame):
                out.mux(stream.encode(ready))
        out.mux(stream.encode(None))


def files(folder, count):
    """Write the files one by one: path, suffix, kind of sound, seconds."""
    suffixes, kinds = [*SNDFILE, *FFMPEG], list(SOUNDS)
    for number in range(count):
        suffix = suffixes[number % len(suffixes)]
        kind = kinds[number // len(suffixes) % len(kinds)]
        seconds = LONG_S[number] if number < len(LONG_S) else SECONDS[number % len(SECONDS)]
        if suffix in FFMPEG:
            seconds = max(seconds, 0.1)  # shorter than a frame of a codec is no file
        path = Path(folder, f"{number:03d}.{suffix}")
        sound = SOUNDS[kind](seconds, number).astype(np.float32)
        write(path, suffix, sound)
        yield path, suffix, kind, seconds
        path.unlink()


def with_threads(model, number, log_mel):
    """A model whose sessions have so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(number)
    found = embed.load(model)
    found.embed_log_mels([log_mel])  # makes the session
    os.environ["OMP_NUM_THREADS"] = "1"
    return found


def distance(one, other):
    return float(np.abs(one - other).max() / np.linalg.norm(other))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--model", default=weights.DEFAULT)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    by_torch = checkpoint.load_embedder(flags.model)
    start = np.full((by_torch.config.spectrogram.n_bands, 100), -0.5, np.float32)
    runtimes = {number: with_threads(flags.model, number, start) for number in THREADS}
    worst, threads, total_s = {}, {}, 0.0
    formats, kinds = Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        for path, suffix, kind, seconds in files(folder, flags.files):
            log_mel = by_torch.log_mel(path)
            wanted = by_torch.embed_log_mels([log_mel])[0]
            found = {number: each.embed_log_mels([log_mel])[0] for number, each in runtimes.items()}
            name = f"{kind}, {seconds:.3g} s, {suffix}"
            worst[name] = distance(found[1], wanted)
            threads[name] = max(distance(found[number], found[1]) for number in THREADS)
            total_s += seconds
            formats[suffix] += 1
            kinds[kind] += 1
    most, most_threads = max(worst, key=worst.get), max(threads, key=threads.get)
    print(
        f"{flags.files} files, {total_s / 3600:.1f} hours: ONNX Runtime and torch differ by at most {worst[most]:.1e} ({most})"
    )
    print(
        f"median {np.median(list(worst.values())):.1e}; threads {THREADS}: at most {threads[most_threads]:.1e} ({most_threads})"
    )
    facts = {
        "model": flags.model,
        "files": flags.files,
        "hours": round(total_s / 3600, 2),
        "formats": dict(formats),
        "sounds": dict(kinds),
    }
    keep(
        "parity",
        {
            **facts,
            "largest": {"file": most, "difference": worst[most]},
            "median": float(np.median(list(worst.values()))),
            "threads": {
                "numbers": THREADS,
                "file": most_threads,
                "difference": threads[most_threads],
            },
        },
    )
    if worst[most] > 1e-4 or threads[most_threads] > 1e-5:
        sys.exit("vectors differ by more than they may")


if __name__ == "__main__":
    main()
