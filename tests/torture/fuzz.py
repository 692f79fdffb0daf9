"""Coverage-guided fuzzing of the decoders and of our parsers of containers, by Atheris."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.torture import Attack, Result
from tests.torture._mutants import captured
from tests.torture.audio import seeds

ROOT = Path(__file__).parents[2]
TARGETS = ("parse", "decode")  # of _target.py; they run beside each other
SEED_B, MOST_B = 4_096, 16_384  # of a file of the corpus, of a mutant
GRACE_S = 120  # to start, and to end
OPTIONS = ("-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=1", f"-max_len={MOST_B}")


def missing() -> str:
    """Why there can be no fuzzing here."""
    if importlib.util.find_spec("atheris"):
        return ""
    return "atheris is not installed: pip install atheris (it has wheels for Linux)"


def _corpus(folder: Path, draw: np.random.Generator) -> int:
    """Write the beginning of a file of every container and codec; return how many."""
    (folder / "corpus").mkdir()
    with captured(folder / "decoders"):
        found = list(seeds(folder, draw))
    for seed in found:
        (folder / "corpus" / seed.name).write_bytes(seed.content[:SEED_B])
    return len(found)


def _start(folder: Path, target: str, seconds: int, number: int) -> "subprocess.Popen[bytes]":
    """Fuzz a target in a process that ends by itself; what it says goes to a file."""
    (folder / target).mkdir()
    words = [sys.executable, "-m", "tests.torture._target", target, str(folder / target)]
    words += [str(folder / "corpus"), f"-max_total_time={seconds}", f"-seed={number}", *OPTIONS]
    words += [f"-artifact_prefix={folder}/{target}-"]
    with (folder / f"{target}.log").open("wb") as log:
        path = os.pathsep.join([*sys.path, str(ROOT)])
        env = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)}
        return subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=log)


def _read(log: str, code: int) -> tuple[int, str]:
    """Executions of a fuzzer, and what it found."""
    counts = re.findall(r"stat::number_of_executed_units: *(\d+)|^#(\d+)\t", log, re.MULTILINE)
    done = max((int(one or other) for one, other in counts), default=0)
    found = re.search(r"(Uncaught Python exception.*|ERROR: libFuzzer.*)", log, re.DOTALL)
    words = " ".join(found[1].split())[:300] if found else log[-300:]
    return done, words if code or not done else ""


def run(folder: Path, count: int, draw: np.random.Generator) -> Result:
    """Fuzz every target for `count` seconds; a fault is one execution."""
    result = Result(_corpus(folder, draw))
    number = int(draw.integers(1, 2**31))
    fuzzers = {target: _start(folder, target, count, number) for target in TARGETS}
    for target, fuzzer in fuzzers.items():
        try:
            code = fuzzer.wait(count + GRACE_S)
        finally:
            fuzzer.kill()
        log = (folder / f"{target}.log").read_text(errors="replace")
        done, words = _read(log, code)
        result.injected += done
        result.lost += [f"{target}: {words}"] if words else []
    return result


ATTACKS = [Attack(5, "fuzzed parsers and decoders (count: seconds)", run, 600, 0, missing)]
