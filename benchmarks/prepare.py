"""`cache.prepare` against decoding and resampling alone, and what a file costs and how much memory is held at 100, 1,000 and 10,000 files.

    python benchmarks/prepare.py [--files 96] [--rounds 3] [--sizes 100,1000,10000] [--workers 2]

Makes its own mp3 files (music.py) in a temporary folder. The ratio: files of 30 s, both ways in turn in one run with as many processes, their
start left out by taking the difference to a quarter of the files. The sizes: files of 5 s, each size built in a fresh process, three times but
for more than 1,000 files, medians; a further file is what the difference to the size before comes to for each file. Memory is the most that the
parent, and any one of its workers, ever held (VmHWM of Linux).
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
import torch
from music import make
from timing import in_turn, keep, say

from patchifier import audio, cache
from patchifier.datasets import Clip, Dataset
from patchifier.processes import process_pool

LONG_S, SHORT_S = 30, 5
BUILD = """
import json, multiprocessing, re, sys, time
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
    print(json.dumps({**found, "seconds": time.perf_counter() - started, "parent_mb": most_mb("self")}))
"""


def against_decoding(folder, files, rounds, workers):
    """Seconds of both ways beyond what a quarter of the files takes: two arrays (rounds,)."""
    paths = [str(path) for path in make(folder, files, LONG_S)]
    parts = {"few": paths[: files // 4], "many": paths}
    out = folder / "cache"

    def prepare(part):
        shutil.rmtree(out, ignore_errors=True)
        cache.prepare(Dataset("music", tuple(Clip(path, path) for path in part)), out, workers=workers)

    with process_pool(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        ways = {f"decoding {name}": lambda part=part: sum(pool.map(decode_alone, part)) for name, part in parts.items()}
        ways |= {f"prepare {name}": lambda part=part: prepare(part) for name, part in parts.items()}
        seconds = in_turn(ways, rounds)
    return [seconds[f"{way} many"] - seconds[f"{way} few"] for way in ("prepare", "decoding")]


def decode_alone(path):
    return sum(len(block) for block in audio.blocks(path))


def build(folder, files, workers):
    """Seconds and megabytes of a build in a process of its own."""
    script, out = folder / "build.py", folder / "cache"
    script.write_text(BUILD)
    command = [sys.executable, str(script), str(folder), str(out), str(workers)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert found["clips"] == files, found
    shutil.rmtree(out)
    return found


def sizes(counts, workers):
    """A row of medians for each number of files."""
    rows = []
    print(f"{'files':>8}{'s':>9}{'ms a file':>11}{'a further file, ms':>20}{'parent MB':>11}{'worker MB':>11}")
    for files in counts:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), files, SHORT_S)
            builds = [build(Path(folder), files, workers) for _ in range(3 if files <= 1000 else 1)]
        row = {name: float(np.median([found[name] for found in builds])) for name in ("seconds", "parent_mb", "worker_mb")}
        further = (row["seconds"] - rows[-1]["seconds"]) / (files - rows[-1]["files"]) if rows else float("nan")
        rows.append({"files": files, "builds": len(builds), **row, "ms_a_file": 1000 * row["seconds"] / files, "ms_a_further_file": 1000 * further})
        print(f"{files:>8,}{row['seconds']:>9.1f}{rows[-1]['ms_a_file']:>11.2f}{1000 * further:>20.2f}{row['parent_mb']:>11.0f}{row['worker_mb']:>11.0f}")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=lambda text: [int(part) for part in text.split(",")], default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, alone = against_decoding(Path(folder), flags.files, flags.rounds, flags.workers)
    audio_s = LONG_S * (flags.files - flags.files // 4)
    results = {
        "x_real_time": say(f"prepare, {flags.workers} processes", audio_s / whole, "x"),
        "x_real_time_decoding": say(f"decode + resample alone, {flags.workers} processes", audio_s / alone, "x"),
        "ratio": say("prepare / decode + resample alone", whole / alone, ""),
    }
    rows = sizes(flags.sizes, flags.workers)
    keep("prepare", {**results, "sizes": [{name: value for name, value in row.items() if value == value} for row in rows], **facts(flags)})


def facts(flags):
    return {"files": flags.files, "rounds": flags.rounds, "workers": flags.workers, "long_s": LONG_S, "short_s": SHORT_S}


if __name__ == "__main__":
    main()
