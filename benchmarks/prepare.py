"""`cache.prepare` against decoding and resampling alone, and what a file costs and how much memory is held at 100, 1,000 and 10,000 files.

    python benchmarks/prepare.py [--files 160] [--rounds 3] [--sizes 100,1000,10000] [--workers 2]

Makes its own mp3 files (music.py) in a temporary folder: of 30 s for the ratio, timed in turn in one run with as many processes both
ways, their start left out by taking the difference to a quarter of the files; of 5 s for the sizes, each built in a fresh process, by
`prepare --out` as the command does it. Memory is the largest of the parent and of any of its children, as the system counts it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from music import make
from timing import in_turn, keep, say

from patchifier import audio, cache
from patchifier.datasets import Clip, Dataset
from patchifier.processes import process_pool

SHORT_S, LONG_S = 5, 30
BUILD = """
import json, resource, sys, time
from patchifier import cache, datasets
from patchifier.processes import in_processes
if __name__ == "__main__":
    folder, out, workers = sys.argv[1:]
    data = datasets.load(folder)
    started = time.perf_counter()
    prepared = cache.prepare(data, out, workers=int(workers))
    took_s = time.perf_counter() - started
    most = {name: resource.getrusage(whose).ru_maxrss / 1024 for name, whose in (("parent", resource.RUSAGE_SELF), ("worker", resource.RUSAGE_CHILDREN))}
    print(json.dumps({"clips": prepared.clips, "seconds": took_s, **{f"{name}_mb": value for name, value in most.items()}}))
"""


def decode_alone(path):
    return sum(len(block) for block in audio.blocks(path))


def against_decoding(folder, files, rounds, workers):
    """Seconds of both ways beyond what a quarter of the files takes: two arrays (rounds,)."""
    paths = [str(path) for path in make(folder, files, LONG_S)]
    parts = {"few": paths[: files // 4], "many": paths}
    out = folder / "cache"

    def prepare(part):
        shutil.rmtree(out, ignore_errors=True)
        cache.prepare(Dataset("music", tuple(Clip(path, path) for path in part)), out, workers=workers)

    with process_pool(workers, initializer=one_thread) as pool:
        ways = {f"decoding {name}": lambda part=part: sum(pool.map(decode_alone, part)) for name, part in parts.items()}
        ways |= {f"prepare {name}": lambda part=part: prepare(part) for name, part in parts.items()}
        seconds = in_turn(ways, rounds)
    return [seconds[f"{way} many"] - seconds[f"{way} few"] for way in ("prepare", "decoding")]


def one_thread():
    import torch

    torch.set_num_threads(1)


def build(folder, files, workers):
    """Seconds and megabytes of a build in a process of its own."""
    folder.mkdir()
    make(folder, files, SHORT_S)
    script = folder.with_suffix(".py")
    script.write_text(BUILD)
    command = [sys.executable, str(script), str(folder), f"{folder}-cache", str(workers)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    shutil.rmtree(f"{folder}-cache")
    assert found["clips"] == files
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=lambda text: [int(part) for part in text.split(",")], default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "long"
        folder.mkdir()
        whole, alone = against_decoding(folder, flags.files, flags.rounds, flags.workers)
        audio_s = LONG_S * (flags.files - flags.files // 4)
        results = {
            "x_real_time": say(f"prepare, {flags.workers} processes", audio_s / whole, "x"),
            "x_real_time_decoding": say(f"decode + resample alone, {flags.workers} processes", audio_s / alone, "x"),
            "ratio": say("prepare / decode + resample alone", whole / alone, ""),
        }
        builds = []
        print(f"{'files of 5 s':>12}{'s':>9}{'ms a file':>11}{'beyond the first':>18}{'parent MB':>11}{'worker MB':>11}")
        for files in flags.sizes:
            found = build(Path(root) / str(files), files, flags.workers)
            each_ms = 1000 * found["seconds"] / files
            # What the processes take to start is in every build.
            beyond_ms = 1000 * (found["seconds"] - builds[0]["seconds"]) / (files - builds[0]["clips"]) if builds else None
            builds.append({**found, "ms_a_file": each_ms, "ms_a_file_beyond_the_first_build": beyond_ms})
            beyond = f"{beyond_ms:.2f}" if builds[1:] else "-"
            print(f"{files:>12,}{found['seconds']:>9.1f}{each_ms:>11.2f}{beyond:>18}{found['parent_mb']:>11.0f}{found['worker_mb']:>11.0f}", flush=True)
    keep("prepare", {**results, "builds": builds, **{name: getattr(flags, name) for name in ("files", "rounds", "workers")}})


if __name__ == "__main__":
    main()
