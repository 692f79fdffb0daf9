"""From mp3 files to vectors: how many times real time, where the time goes, and what others take for the same files. Timed in turn in one run.

    python benchmarks/embed.py [--files 240] [--seconds 30] [--rounds 3] [--workers 2] [--model DIR] [--peers]

Makes its own mp3 files (44.1 kHz, stereo; chords, drums and noise) in a temporary folder. Stages are timed on one thread, one file after
the other, beside the rate at which this machine multiplies matrices, so that the model's time can be told as a multiple of what its
operations take at that rate. End to end is `embed_library` with its processes, their start left out by taking the difference to a library of
a quarter of the files; next to it, in turn, the same number of processes decodes and resamples alone. With --peers (librosa; openSMILE and
musicnn, installed as benchmarks/outsiders/README.md says): one thread, one file after the other, each with this package's decoder.
Without --model, the paper's architecture with random weights: they take as long as any.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
import soxr
import torch
from torch.utils.flop_counter import FlopCounterMode

from patchifier import audio, cache, collection, datasets, embed, spectrogram
from patchifier.baselines import encoders
from patchifier.collection.tags import read_tags
from patchifier.config import Config
from patchifier.model import Patchifier
from patchifier.runs import machine

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
                tone = 0.08 / harmonic * np.sin(2 * np.pi * root * 2 ** (step / 12) * harmonic * t[part] + chance.uniform(0, 6))
                pan = chance.uniform(0.3, 0.7)
                sides[0][part] += (pan * tone).astype(np.float32)
                sides[1][part] += ((1 - pan) * tone).astype(np.float32)
    for number, start_s in enumerate(np.arange(0, seconds - 0.2, beat_s / 2)):
        first, length = round(start_s * RATE), round(0.15 * RATE)
        hit = np.exp(-30 * t[:length]) * (chance.standard_normal(length) if number % 2 else np.sin(2 * np.pi * 60 * t[:length]))
        for side in sides:
            side[first : first + length] += (0.3 * hit[: len(side) - first]).astype(np.float32)
    return np.clip(np.stack(sides, axis=1), -1, 1)


def make(folder, files, seconds):
    """Encode eight pieces, at 192 kbit/s or near, and copy them under as many names as are asked for."""
    for seed in range(min(files, 8)):
        with soundfile.SoundFile(folder / f"{seed:04d}.mp3", "w", RATE, 2, format="MP3", bitrate_mode="CONSTANT", compression_level=0.4) as file:
            file.write(music(seconds, seed))
    for number in range(8, files):
        shutil.copy(folder / f"{number % 8:04d}.mp3", folder / f"{number:04d}.mp3")
    return sorted(folder.glob("*.mp3"))


def decoded(path):
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return (samples[:, 0] + samples[:, 1]) / 2


def timed(way, *arguments):
    started = time.perf_counter()
    answer = way(*arguments)
    return time.perf_counter() - started, answer


def stages(paths, embedder, rounds):
    """Milliseconds for each file on one thread: {stage: (rounds,)}."""
    config = embedder.config.spectrogram
    names = ("decode", "resample", "log-mel", "model", "model at this machine's matrix rate", "tags", "decode + resample", "log-mel + model")
    spent = {name: [] for name in names}
    torch.set_num_threads(1)
    for _ in range(rounds + 1):
        total = dict.fromkeys(spent, 0.0)
        log_mels = []
        for path in paths:
            seconds, mono = timed(decoded, path)
            total["decode"] += seconds
            seconds, wave = timed(functools.partial(soxr.resample, quality="HQ"), mono, RATE, config.sample_rate)
            total["resample"] += seconds
            seconds, log_mel = timed(spectrogram.log_mel, wave, config)
            total["log-mel"] += seconds
            total["tags"] += timed(read_tags, str(path))[0]
            log_mels.append(log_mel)
        for start in range(0, len(log_mels), 8):  # as many as a process embeds at once
            total["model"] += timed(embedder.embed_log_mels, log_mels[start : start + 8])[0]
        total["model at this machine's matrix rate"] = sum(operations(embedder, log_mel) for log_mel in log_mels) / matrix_rate()
        total["decode + resample"] = total["decode"] + total["resample"]
        total["log-mel + model"] = total["log-mel"] + total["model"]
        for name, seconds in total.items():
            spent[name].append(1000 * seconds / len(paths))
    return {name: np.array(times[1:]) for name, times in spent.items()}  # the first round fills caches


def operations(embedder, log_mel):
    """Floating-point operations of the products and convolutions that an embedding takes."""
    torch.backends.mha.set_fastpath_enabled(False)  # its one operation for a whole layer is not counted
    with FlopCounterMode(display=False) as counter:
        embedder.embed_log_mels([log_mel])
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


def matrix_rate(size=1024):
    """Floating-point operations a second in a product of matrices."""
    one, other = torch.randn(2, size, size)
    return max(2 * size**3 / timed(torch.mm, one, other)[0] for _ in range(10))


def peers(paths, embedder, rounds, folder):
    """Seconds of others for the same files, and of ours before each, pairs in turn: {name: (rounds, 2)}."""
    sys.path.insert(0, str(Path(__file__).parent / "outsiders"))
    import from_musicnn
    import from_opensmile

    cache.prepare(datasets.load(paths[0].parent), folder)
    data = cache.Cache(folder)
    numbers = [number for number, clip in enumerate(data.clips) if Path(clip.path) in {path.resolve() for path in paths}]
    ways = [*encoders("mfcc"), *encoders("handcrafted"), from_opensmile.encoder(), from_opensmile.encoder("ComParE_2016"), from_musicnn.encoder()]
    spent = {way.name: [] for way in ways}
    torch.set_num_threads(1)
    for _ in range(rounds + 1):
        for way in ways:
            ours = timed(lambda: [embedder.embed(data.clips[number].path) for number in numbers])[0]
            spent[way.name].append((ours, timed(way.encode, data, numbers)[0]))
    return {name: np.array(times[1:]) for name, times in spent.items()}


def decode_alone(path):
    return sum(len(block) for block in audio.blocks(path))


def decode_all(paths, pool):
    """Decode and resample in processes, nothing else."""
    return sum(pool.map(decode_alone, paths))


def end_to_end(paths, embedder, rounds, workers):
    """Seconds of the whole library and of decoding it, pairs in turn, each beyond what a quarter of it takes."""
    few, many = [str(path) for path in paths[: len(paths) // 4]], [str(path) for path in paths]
    whole, alone = [], []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        decode_all(many, pool)
        for number in range(rounds + 1):
            spans = []
            for name, part in (("few", few), ("many", many)):
                out = Path(folder) / f"{name}{number}.parquet"
                spans.append(timed(functools.partial(collection.embed_library, part, out, embedder=embedder, workers=workers))[0])
            whole.append(spans[1] - spans[0])
            alone.append(timed(decode_all, many, pool)[0] - timed(decode_all, few, pool)[0])
    return np.array(whole[1:]), np.array(alone[1:])


def say(name, values, unit):
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    print(f"{name:<52}{middle:>10.2f} {unit:<4} (10th to 90th percentile: {low:.2f} to {high:.2f})")
    return {"median": middle, "low": low, "high": high}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="")
    parser.add_argument("--peers", action="store_true")
    flags = parser.parse_args()
    embedder = embed.load(flags.model) if flags.model else embed.Embedder(Patchifier(Config().model, seed=0), Config())
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder), flags.files, flags.seconds)
        spent = stages(paths[:16], embedder, flags.rounds)
        whole, alone = end_to_end(paths, embedder, flags.rounds, flags.workers)
        others = peers(paths[:4], embedder, min(flags.rounds, 3), Path(folder) / "cache") if flags.peers else {}
        size_mb = sum(path.stat().st_size for path in paths) / 2**20
    audio_s = (flags.files - flags.files // 4) * flags.seconds
    print(f"{flags.files} mp3 files of {flags.seconds:g} s, 44.1 kHz, stereo, {8 * 1.048576 * 1000 * size_mb / flags.files / flags.seconds:.0f} kbit/s")
    results = {name: say(f"{name}, one thread, one file", times, "ms") for name, times in spent.items()}
    results["share_of_rate"] = say("model / the same at matrix rate", spent["model"] / spent["model at this machine's matrix rate"], "")
    results["ratio_one_thread"] = say("(log-mel + model) / (decode + resample)", spent["log-mel + model"] / spent["decode + resample"], "")
    results["x_real_time"] = say(f"end to end, {flags.workers} processes", audio_s / whole, "x")
    results["x_real_time_decoding"] = say(f"decode + resample alone, {flags.workers} processes", audio_s / alone, "x")
    results["ratio"] = say("end to end / decode + resample alone", whole / alone, "")
    for name, times in others.items():
        results[f"peer {name}"] = say(f"{name}, one thread", 4 * flags.seconds / times[:, 1], "x")
        results[f"peer {name}, ours faster"] = say("  ours is faster by", times[:, 1] / times[:, 0], "")
    print(f"median of {flags.rounds} rounds in turn on {machine()}")
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    facts = {**results, **{name: value for name, value in vars(flags).items() if name != "model"}, "machine": machine()}
    (folder / "embed.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
