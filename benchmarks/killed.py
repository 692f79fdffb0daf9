"""`patchifier embed` of many mp3 files, killed at random instants, against a run that nothing disturbs.

    python benchmarks/killed.py [--files 1000] [--kills 10] [--workers 2]

Makes short mp3 files from the bundled clips, each another stretch. The command and all its processes get SIGKILL, and the same command goes
on, until it has been killed so often and then ends. Asked for: every file has one row, no file has two, and vectors are those of the undisturbed
run (to 1e-5 of their norm, since a batch holds other files).
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from timing import keep

from patchifier import audio, library
from patchifier.datasets import demo

RATE, SECONDS = 22_050, 2.5
LONGEST_S = 3600


def make(folder, files):
    """Write mp3 files of stretches of the bundled clips."""
    clips = [audio.load(path) for path in sorted(Path(demo.ROOT, "clips").glob("*.ogg"))]
    draw, length = np.random.default_rng(0), round(SECONDS * RATE)
    for number in range(files):
        clip = clips[number % len(clips)]
        first = int(draw.integers(len(clip) - length))
        sound = clip[first : first + length]
        soundfile.write(folder / f"{number:04d}.mp3", sound, RATE, format="MP3")


def start(songs, out, workers):
    words = ["patchifier", "embed", str(songs), "--out", str(out), "--workers", str(workers)]
    silent = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-m", *words], stdout=silent, stderr=silent, start_new_session=True
    )


def undisturbed(songs, out, workers):
    """Seconds of a run to its end."""
    started = time.perf_counter()
    if start(songs, out, workers).wait(LONGEST_S):
        raise RuntimeError("the undisturbed run failed")
    return time.perf_counter() - started


def kill(process, wait_s):
    """Kill a run and its processes after so many seconds; whether it had not ended before."""
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    flags = parser.parse_args()
    draw, instants, early = np.random.default_rng(1), [], 0
    with tempfile.TemporaryDirectory() as folder:
        songs, out = Path(folder, "songs"), Path(folder, "out", "killed.parquet")
        songs.mkdir()
        out.parent.mkdir()
        make(songs, flags.files)
        whole_s = undisturbed(songs, Path(folder, "whole.parquet"), flags.workers)
        while len(instants) < flags.kills:
            wait_s = float(draw.uniform(0, 2 * whole_s / flags.kills))
            if kill(start(songs, out, flags.workers), wait_s):
                instants.append(round(wait_s, 2))
            else:  # it has ended: from the start once more
                early += 1
                out.unlink()
        undisturbed(songs, out, flags.workers)
        expected, found = (library.read(path) for path in (Path(folder, "whole.parquet"), out))
        names = [Path(path).name for path in found.paths]
    vectors = dict(zip((Path(path).name for path in expected.paths), expected.vectors, strict=True))
    lost = flags.files - len(set(names))
    twice = len(names) - len(set(names))
    norms = np.linalg.norm(expected.vectors, axis=1).min()
    worst = max(
        float(np.abs(vector - vectors[name]).max() / norms)
        for name, vector in zip(names, found.vectors, strict=True)
    )
    print(
        f"{flags.files} files, {len(instants)} kills: {lost} rows lost, {twice} twice, vectors differ by at most {worst:.1e} of the least norm"
    )
    facts = {
        "files": flags.files,
        "workers": flags.workers,
        "seconds_undisturbed": round(whole_s, 1),
        "killed_after_s": instants,
        "ended_before_the_kill": early,
    }
    keep("killed", {**facts, "rows_lost": lost, "rows_twice": twice, "difference": worst})
    if lost or twice or worst > 1e-5:
        sys.exit("a row is missing, is there twice, or differs")


if __name__ == "__main__":
    main()
