"""From mp3 files to vectors: how many times real time, where the time goes, and what others take for the same files. Timed in turn in one run.

    python benchmarks/embed.py [--files 240] [--seconds 30] [--rounds 3] [--workers 2] [--model patchifier-base] [--peers]

Makes its own mp3 files (44.1 kHz, stereo; chords, drums and noise) in a temporary folder. Stages are timed on one thread, one file after
the other, beside the rate at which this machine multiplies matrices, so that the model's time can be told as a multiple of what its
operations take at that rate. End to end is `embed_library` with its processes, their start left out by taking the difference to a library of
a quarter of the files; next to it, in turn, the same number of processes decodes and resamples alone. With --peers (librosa; openSMILE,
musicnn and bliss-audio, installed as benchmarks/outsiders/README.md says): one thread, one file after the other, each but bliss-audio with this
package's decoder.
Each model has a result of its own, and the default, which `patchifier.load()` gives, that of the peers too.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
import soxr
import torch
from music import RATE, make
from timing import keep, say, timed
from torch.utils.flop_counter import FlopCounterMode

from patchifier import audio, cache, checkpoint, datasets, embed, spectrogram, weights
from patchifier.containers import payload_digest
from patchifier.evaluate.encoders import encoders
from patchifier.library import build
from patchifier.library.tags import read_tags


def decoded(path):
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return (samples[:, 0] + samples[:, 1]) / 2


def stages(paths, embedder, by_torch, rounds):
    """Milliseconds for each file on one thread: {stage: (rounds,)}. The same model by torch has its operations counted."""
    config = embedder.config.spectrogram
    names = (
        "decode",
        "resample",
        "log-mel",
        "model",
        "model at this machine's matrix rate",
        "tags",
        "digest of the audio",
        "decode + resample",
        "log-mel + model",
    )
    spent = {name: [] for name in names}
    torch.set_num_threads(1)
    for _ in range(rounds + 1):
        total = dict.fromkeys(spent, 0.0)
        log_mels = []
        for path in paths:
            seconds, mono = timed(decoded, path)
            total["decode"] += seconds
            seconds, wave = timed(
                functools.partial(soxr.resample, quality="HQ"), mono, RATE, config.sample_rate
            )
            total["resample"] += seconds
            seconds, log_mel = timed(spectrogram.log_mel, wave, config)
            total["log-mel"] += seconds
            total["tags"] += timed(read_tags, str(path))[0]
            total["digest of the audio"] += timed(payload_digest, path)[0]
            log_mels.append(log_mel)
        for start in range(0, len(log_mels), 8):  # as many as a process embeds at once
            total["model"] += timed(embedder.embed_log_mels, log_mels[start : start + 8])[0]
        total["model at this machine's matrix rate"] = (
            sum(operations(by_torch, log_mel) for log_mel in log_mels) / matrix_rate()
        )
        total["decode + resample"] = total["decode"] + total["resample"]
        total["log-mel + model"] = total["log-mel"] + total["model"]
        for name, seconds in total.items():
            spent[name].append(1000 * seconds / len(paths))
    return {
        name: np.array(times[1:]) for name, times in spent.items()
    }  # the first round fills caches


def operations(embedder, log_mel):
    """Floating-point operations of the products and convolutions that an embedding takes."""
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # its one operation for a whole layer is not counted
    with FlopCounterMode(display=False) as counter:
        embedder.embed_log_mels([log_mel])
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


def matrix_rate(size=1024):
    """Floating-point operations a second in a product of matrices."""
    one, other = torch.randn(2, size, size)
    return max(2 * size**3 / timed(torch.mm, one, other)[0] for _ in range(10))


def beside(paths, embedder, rounds, folder):
    """Seconds of others for the same files, and of ours before each, pairs in turn: {name: (rounds, 2)}."""
    sys.path.insert(0, str(Path(__file__).parent / "outsiders"))
    import from_bliss
    import from_musicnn
    import from_opensmile

    cache.prepare(datasets.load(paths[0].parent), folder)
    data = cache.Cache(folder)
    numbers = [
        number
        for number, clip in enumerate(data.clips)
        if Path(clip.path) in {path.resolve() for path in paths}
    ]
    ways = [
        *encoders("mfcc"),
        *encoders("handcrafted"),
        from_opensmile.encoder(),
        from_opensmile.encoder("ComParE_2016"),
        from_musicnn.encoder(),
        from_bliss.encoder(),
    ]
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
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ProcessPoolExecutor(workers, context) as pool,
    ):
        decode_all(many, pool)
        for number in range(rounds + 1):
            spans = []
            for name, part in (("few", few), ("many", many)):
                out = Path(folder) / f"{name}{number}.parquet"
                spans.append(
                    timed(
                        functools.partial(
                            build.embed_library, part, out, embedder=embedder, workers=workers
                        )
                    )[0]
                )
            whole.append(spans[1] - spans[0])
            alone.append(timed(decode_all, many, pool)[0] - timed(decode_all, few, pool)[0])
    return np.array(whole[1:]), np.array(alone[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default=weights.DEFAULT)
    parser.add_argument("--peers", action="store_true")
    flags = parser.parse_args()
    embedder = embed.load(flags.model)
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder), flags.files, flags.seconds)
        spent = stages(paths[:16], embedder, checkpoint.load_embedder(flags.model), flags.rounds)
        whole, alone = end_to_end(paths, embedder, flags.rounds, flags.workers)
        others = (
            beside(paths[:4], embedder, min(flags.rounds, 3), Path(folder) / "cache")
            if flags.peers
            else {}
        )
        size_mb = sum(path.stat().st_size for path in paths) / 2**20
    audio_s = (flags.files - flags.files // 4) * flags.seconds
    print(
        f"{flags.files} mp3 files of {flags.seconds:g} s, 44.1 kHz, stereo, {8 * 1.048576 * 1000 * size_mb / flags.files / flags.seconds:.0f} kbit/s"
    )
    results = {
        name: say(f"{name}, one thread, one file", times, "ms") for name, times in spent.items()
    }
    results["share_of_rate"] = say(
        "model / the same at matrix rate",
        spent["model"] / spent["model at this machine's matrix rate"],
        "",
    )
    results["ratio_one_thread"] = say(
        "(log-mel + model) / (decode + resample)",
        spent["log-mel + model"] / spent["decode + resample"],
        "",
    )
    results["x_real_time"] = say(f"end to end, {flags.workers} processes", audio_s / whole, "x")
    results["x_real_time_decoding"] = say(
        f"decode + resample alone, {flags.workers} processes", audio_s / alone, "x"
    )
    results["ratio"] = say("end to end / decode + resample alone", whole / alone, "")
    facts = {
        name: getattr(flags, name) for name in ("model", "files", "seconds", "rounds", "workers")
    }
    keep(
        "embed"
        if flags.model == weights.DEFAULT
        else f"embed_{Path(flags.model).name.replace('-', '_')}",
        {**results, **facts},
    )
    if others:
        peers = {
            name: say(f"{name}, one thread", 4 * flags.seconds / times[:, 1], "x")
            for name, times in others.items()
        }
        faster = {
            name: say(f"ours is faster than {name} by", times[:, 1] / times[:, 0], "")
            for name, times in others.items()
        }
        keep("embed_peers", {"x_real_time": peers, "ours_faster": faster, **facts, "files": 4})
    print(f"median of {flags.rounds} rounds in turn")


if __name__ == "__main__":
    main()
