"""An hour of training beside 20,000 embeddings: memory, open files and threads stay flat (Linux).

    python benchmarks/soak.py [--minutes 60] [--embeddings 20000] [--figure docs/figures/soak.png]

Training: the recipe `self-supervised` on the bundled clips, with a validation every 50 steps and a checkpoint every 30 s, ended by SIGTERM.
Embeddings, by the bundled model: half by `Embedder.embed`, then half by a job with a worker process. Their inputs are up to
1,000 files made by code, of 0.2 to 15 s, eight formats and codecs, five sample rates, mono and stereo, each under several names.
Fewer minutes take as large a share of the embeddings.

Every process is sampled every few seconds: resident memory, open handles, threads. The first third of its samples is warm-up:
caches of kernels fill, buffers reach the size of the longest input. Over the rest, a line is fitted to memory. It may rise by
2 % of the median, or 10 MB if that is more: an allocator's noise is near 1 %, and a leak of 2 kB an embedding would be 13 MB.
A file is open while it is read, so the least number of handles counts: that of the second half of the rest must not be above
that of the first half, nor that of threads. The exit code is 1 otherwise, or if a process failed.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile
from timing import keep

import patchifier
from patchifier import cache, datasets, library
from patchifier.config import Config, read_changes, update
from patchifier.evaluate.report.drawing import new_figure, save_figure, tidy
from patchifier.train.pretrain import pretrain
from patchifier.train.run import Interrupted

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.audio_files import muxed

ROOT = Path(__file__).parents[1]
HOUR_MIN, PRINT_S = 60, 10
DISTINCT = 1000
RATES = (8_000, 16_000, 24_000, 44_100, 48_000)
FORMATS = (
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("AIFF", "PCM_24"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("MP4", "AAC"),
)
RISE, RISE_MB = 0.02, 10.0
ENOUGH = 12  # samples


# --- what is done ---


def settings():
    stage_two = {"steps": 10**7, "schedule": "constant"}  # ended by time
    sections = {"validate_every": 50, "checkpoint_every_s": 30.0, "stage_two": stage_two}
    return update(update(Config(), read_changes("self-supervised")), {"pretrain": sections})


def train(folder, minutes, done):
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    with contextlib.suppress(Interrupted):
        pretrain(
            folder / "cache", folder / "run", config=settings(), progress=lambda title: done.show
        )


def embed_files(folder, count, done):
    embedder, paths = patchifier.load(), sorted((folder / "files").iterdir())
    for number in range(count):
        assert np.isfinite(embedder.embed(paths[number % len(paths)])).all()
        done.show(number + 1, count, "")


def embed_job(folder, count, done):
    paths, names = sorted((folder / "files").iterdir()), folder / "names"
    names.mkdir()
    for number in range(count):
        path = paths[number % len(paths)]
        os.link(path, names / f"{number:05d}{path.suffix}")
    made = library.embed_library(names, folder / "t.parquet", workers=1, progress=done.show)
    assert not made.skipped, made.skipped


class Done:
    """A count that a process shows and its parent reads."""

    def __init__(self, context):
        self.count = context.Value("q", 0)

    def show(self, done, total, note):
        self.count.value = done


def make(folder, number):
    chance = np.random.default_rng(number)
    kind, codec = FORMATS[number % len(FORMATS)]
    seconds, rate = (
        float(np.exp(chance.uniform(np.log(0.2), np.log(15)))),
        int(chance.choice(RATES)),
    )
    path = folder / f"{number:04d}.{'m4a' if kind == 'MP4' else kind.lower()}"
    if kind == "MP4":
        return muxed(path, seconds, codec="aac", format="mp4")
    if (kind, rate) == ("OGG", 44_100):
        rate = 48_000  # Opus has no other
    shape = round(seconds * rate), int(chance.integers(1, 3))
    tone = np.sin(chance.uniform(0.01, 0.5) * np.arange(shape[0]))[:, None]
    sound = 0.3 * tone + 0.05 * chance.standard_normal(shape)
    soundfile.write(path, sound.astype(np.float32), rate, format=kind, subtype=codec)
    return path


# --- what is measured ---


def children(pid):
    """A process and those below it, without the tracker of `multiprocessing`."""
    found = [pid]
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                found += children(child)
    return found


def sample(pid):
    """Resident memory in MB, open handles, threads."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    handles = len(os.listdir(f"/proc/{pid}/fd"))
    return int(values["VmRSS"].split()[0]) / 1024, handles, int(values["Threads"])


def watch(chains, every_s):
    """Run chains of processes side by side: {(name, pid): rows of (second, MB, handles, threads)}, and names of the failed."""
    series, failed, started_s, told_s = defaultdict(list), [], time.monotonic(), 0.0
    running = {}
    while any(chains) or running:
        for number, chain in enumerate(chains):
            if chain and number not in running:
                running[number] = chain.pop(0)
                running[number][1].start()
        time.sleep(every_s)
        now_s = time.monotonic() - started_s
        for name, process, _ in running.values():
            with contextlib.suppress(OSError, KeyError):  # it ended
                for depth, pid in enumerate(children(process.pid)):
                    series[name if not depth else f"{name}, worker", pid].append(
                        (now_s, *sample(pid))
                    )
        if now_s - told_s >= PRINT_S:
            told_s = now_s
            tell(now_s, running, series)
        for number, (name, process, _) in list(running.items()):
            if process.exitcode is not None:
                failed += [name] * (process.exitcode != 0)
                del running[number]
    return series, failed


def tell(now_s, running, series):
    names = {name: done.count.value for name, _, done in running.values()}
    latest = {name: rows[-1] for (name, _), rows in series.items()}
    parts = [
        f"{name} {names[name.split(',')[0]]:,}: {mb:.0f} MB, {handles} handles, {threads} threads"
        for name, (_, mb, handles, threads) in latest.items()
        if name.split(",")[0] in names
    ]
    print(f"{now_s / 60:5.1f} min  " + "; ".join(parts), flush=True)


def judge(rows):
    """Facts about one process, and in what it grew."""
    table = np.array(rows)
    rest = table[len(table) // 3 :]
    seconds, mb = rest[:, 0], rest[:, 1]
    rise = float(np.polyfit(seconds, mb, 1)[0] * np.ptp(seconds)) if len(table) >= ENOUGH else None
    bound = max(RISE * float(np.median(mb)), RISE_MB)
    facts = {"samples": len(table), "mb": float(np.median(mb)), "rise_mb": rise, "bound_mb": bound}
    grew = ["too few samples"] if rise is None else ["memory"] * (rise > bound)
    for column, name in ((2, "handles"), (3, "threads")):
        halves = [int(half[:, column].min()) for half in np.array_split(rest, 2) if len(half)]
        facts[name] = halves
        grew += [name] * (halves[-1] > halves[0])
    return facts, grew


def draw(series, path):
    figure = new_figure(8.0)
    axes = figure.subplots(3, sharex=True)
    titles = ("Resident memory (MB)", "Open handles", "Threads")
    for column, (one, title) in enumerate(zip(axes, titles, strict=True), start=1):
        tidy(one, title, x="minutes" if column == 3 else "")
        for (name, _), rows in series.items():
            table = np.array(rows)
            one.plot(table[:, 0] / 60, table[:, column], label=name, linewidth=1)
        one.set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def chains(folder, minutes, embeddings):
    """Chains of (name, process, count): training beside embeddings of both ways."""
    context = multiprocessing.get_context("spawn")

    def one(name, work, amount):
        done = Done(context)
        return name, context.Process(target=work, args=(folder, amount, done)), done

    half = embeddings // 2
    return [
        [one("training", train, minutes)],
        [one("Embedder.embed", embed_files, half), one("job", embed_job, embeddings - half)],
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=HOUR_MIN)
    parser.add_argument("--embeddings", type=int)
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "soak.png")
    flags = parser.parse_args()
    embeddings = flags.embeddings or round(20_000 * flags.minutes / HOUR_MIN)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        for number in range(min(DISTINCT, embeddings // 2)):
            make(folder / "files", number)
        cache.prepare(
            datasets.load("demo"), folder / "cache", config=settings().spectrogram, workers=1
        )
        series, failed = watch(chains(folder, flags.minutes, embeddings), min(5.0, flags.minutes))
    draw(series, flags.figure)
    processes, faults = {}, [f"{name}: failed" for name in failed]
    for (name, pid), rows in series.items():
        facts, grew = judge(rows)
        processes[f"{name} ({pid})"] = {**facts, "grew": grew}
        faults += [f"{name}: {what}" for what in grew]
        print(f"{name:<24}{facts}")
    keep(
        "soak",
        {
            "minutes": flags.minutes,
            "embeddings": embeddings,
            "processes": processes,
            "faults": faults,
        },
    )
    print("flat" if not faults else "not flat: " + "; ".join(faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
