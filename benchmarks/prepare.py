"""`cache.prepare` against decoding and resampling alone, and what a file costs and how much memory is held at 100, 1,000 and 10,000 files.

    python benchmarks/prepare.py [--files 96] [--rounds 3] [--sizes 100,1000,10000] [--workers 2]

Makes its own mp3 files (music.py) in a temporary folder. The ratio: files of 30 s, both ways in turn in one run with as many processes, their
start left out by taking the difference to a quarter of the files; by the clock, and by what all processes together took of the processor, which
neighbours on the machine disturb less. The sizes: files of 5 s, each size built in a fresh process; a further file is what the difference to
the size before comes to for each file. Memory is the most that the parent, and any one of its workers, ever held (VmHWM of Linux).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from music import make
from timing import keep, say, timed

from patchifier import audio, cache, jobs
from patchifier.datasets import Clip, Dataset

LONG_S, SHORT_S = 30, 5
BUILD = """
import json, multiprocessing, os, re, sys, time
from pathlib import Path
from patchifier import cache, datasets

def most_mb(process):
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1024

def look(done, total, note):
    if done == total:  # the workers are still there
        found["worker_mb"] = max(most_mb(process.pid) for process in multiprocessing.active_children())

if __name__ == "__main__":
    found, data = {}, datasets.load(sys.argv[1])
    started = time.perf_counter()
    found["clips"] = cache.prepare(data, sys.argv[2], workers=int(sys.argv[3]), progress=look).clips
    print(json.dumps({**found, "seconds": time.perf_counter() - started, "processor_s": sum(os.times()[:4]), "parent_mb": most_mb("self")}))
"""


def against_decoding(folder, files, rounds, workers):
    """Seconds of both ways beyond what a quarter of the files takes, by the clock and of the processor: {way: (rounds, 2)}."""
    paths = [str(path) for path in make(folder, files, LONG_S)]
    out = folder / "cache"

    def prepare(part):
        cache.prepare(
            Dataset("music", tuple(Clip(path, path) for path in part)), out, workers=workers
        )
        shutil.rmtree(out)

    def decode(part):
        with jobs.process_pool(workers, initializer=jobs.use_one_thread) as pool:
            return sum(pool.map(decode_alone, part))

    ways = {"decode": decode, "prepare": prepare}
    found = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            few = spent(way, paths[: files // 4])
            found[name].append(spent(way, paths) - few)
    return {
        name: np.array(rows[1:]) for name, rows in found.items()
    }  # the first round fills caches


def spent(way, part):
    """Seconds by the clock, and of the processor in this process and those that it started and that ended."""
    before_s = sum(os.times()[:4])
    seconds, _ = timed(way, part)
    return np.array([seconds, sum(os.times()[:4]) - before_s])


def decode_alone(path):
    return sum(len(block) for block in audio.blocks(path))


def build(folder, files, workers):
    """Seconds and megabytes of a build in a process of its own."""
    script, out = folder / "build.py", folder / "cache"
    script.write_text(BUILD)
    command = [sys.executable, str(script), str(folder), str(out), str(workers)]
    found = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    )
    assert found["clips"] == files, found
    shutil.rmtree(out)
    return found


def sizes(counts, workers):
    """A row for each number of files."""
    rows = []
    print(
        f"{'':8}{'':9}{'a further file, ms':>24}{'at most, MB':>16}\n{'files':>8}{'s':>9}{'clock':>12}{'processor':>12}{'parent':>8}{'worker':>8}"
    )
    for files in counts:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), files, SHORT_S)
            row = {"files": files, **build(Path(folder), files, workers)}
        before = (
            rows[-1] if rows else {"files": 0, "seconds": 0, "processor_s": 0}
        )  # the first size bears the start
        row["ms_a_further_file"], row["processor_ms_a_further_file"] = (
            1000 * (row[name] - before[name]) / (files - before["files"])
            for name in ("seconds", "processor_s")
        )
        rows.append(row)
        print(
            f"{files:>8,}{row['seconds']:>9.1f}{row['ms_a_further_file']:>12.2f}{row['processor_ms_a_further_file']:>12.2f}"
            f"{row['parent_mb']:>8.0f}{row['worker_mb']:>8.0f}",
            flush=True,
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[100, 1000, 10_000],
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = against_decoding(Path(folder), flags.files, flags.rounds, flags.workers)
    ratios = (found["prepare"] / found["decode"]).T
    audio_s = LONG_S * (flags.files - flags.files // 4)
    results = {
        "x_real_time": say(
            f"prepare, {flags.workers} processes", audio_s / found["prepare"][:, 0], "x"
        ),
        "x_real_time_decoding": say(
            f"decode + resample alone, {flags.workers} processes",
            audio_s / found["decode"][:, 0],
            "x",
        ),
        "ratio": say("prepare / decode + resample alone", ratios[0], ""),
        "ratio_processor": say("  of the processor", ratios[1], ""),
    }
    settings = {
        "files": flags.files,
        "rounds": flags.rounds,
        "workers": flags.workers,
        "long_s": LONG_S,
        "short_s": SHORT_S,
    }
    keep("prepare", {**results, "sizes": sizes(flags.sizes, flags.workers), **settings})


if __name__ == "__main__":
    main()
