"""The first embedding of a fresh process against `import torch` alone, timed in turn in one run.

    python benchmarks/start_up.py [--rounds 11]

Each way is a process of its own, from its start to its end. The file is an mp3 of 30 s, made here, and the model the package's. A round before
the first fills the disk's cache. Asked for is a ratio of at most 1.5.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from music import make
from timing import in_turn, keep, say

ALONE = "import torch"


def processes(folder):
    """Python code of each process: {name: code}."""
    (song,) = make(folder, files=1, seconds=30)
    return {
        ALONE: "import torch",
        "first embedding": f"import patchifier; patchifier.load().embed({str(song)!r})",
        "import patchifier": "import patchifier",
        "patchifier --help": "from patchifier import cli; cli.main(['--help'])",
    }


def run(code):
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        codes = processes(Path(folder))
        seconds = in_turn(
            {name: lambda code=code: run(code) for name, code in codes.items()}, rounds
        )
    results = {name: say(name, times, "s") for name, times in seconds.items()}
    for name in ("first embedding", "patchifier --help"):
        results[f"{name} / {ALONE}"] = say(f"{name} / {ALONE}", seconds[name] / seconds[ALONE], "")
    keep("start_up", {**results, "rounds": rounds})


if __name__ == "__main__":
    main()
