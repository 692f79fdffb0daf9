"""SIGKILL of the page's job, which embeds a folder while it is served: `embed` then ends it as if nothing had been."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from patchifier.library import embed_library, read
from tests import audio_files as made
from tests.torture import Attack, Result
from tests.torture._commands import not_linux

N_SONGS, LONGEST_S = 40, 8.0  # a start takes a second or two, the job as long again
IN_A_ROW = 3  # kills of one job before it may end


def killed(songs: Path, out: Path, seconds: float) -> str:
    """Serve a folder for a while, then kill the server and its processes; what it said last."""
    command = [sys.executable, "-m", "patchifier", "app", str(songs), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--no_browser", "--port", "0", "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    time.sleep(seconds)
    ended = process.poll()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    words = process.communicate()[1].decode("utf-8", "replace")
    return "" if ended is None else f"the server ended with {ended}: {words[-300:]}"


def fault(songs: Path, out: Path, expected: Path) -> str:
    """What is wrong with a table after its job was ended."""
    done = embed_library(songs, out, workers=1)
    found, wanted = read(out), read(expected)
    if done.skipped or found.paths != wanted.paths:
        return f"{len(found)} rows of {len(wanted)}, skipped {done.skipped[:1]}"
    if np.abs(found.vectors - wanted.vectors).max() > 1e-4:
        return "other vectors"
    left = sorted(path.name for path in out.parent.iterdir() if path.name != out.name)
    return f"leaves {left}" if [name for name in left if "parts" in name or "new" in name] else ""


def run(folder: Path, count: int, draw: np.random.Generator) -> Result:
    songs = folder / "songs"
    songs.mkdir()
    for number in range(N_SONGS):
        made.write(songs / f"{number:02d}.wav", made.music(6.0, seed=number))
    expected, result = folder / "expected.parquet", Result(inputs=1)
    embed_library(songs, expected, workers=2)
    out = folder / "served" / "t.parquet"
    out.parent.mkdir()
    while result.injected < count:
        waited = [float(draw.uniform(0.5, LONGEST_S)) for _ in range(IN_A_ROW)]
        faults = [killed(songs, out, seconds) for seconds in waited]
        faults.append(fault(songs, out, expected))
        result.injected += IN_A_ROW
        result.lost += [f"killed after {waited}: {words}" for words in faults if words]
        for path in out.parent.iterdir():
            path.unlink()
    return result


ATTACKS = [Attack(9, "SIGKILL of the page's job", run, count=18, short=0, missing=not_linux)]
