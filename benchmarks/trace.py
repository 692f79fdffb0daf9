"""How many functions and files of the package a reader passes through: `Embedder.embed`, `pretrain`, `compare`.

    python benchmarks/trace.py

Counted from the first call to the return: functions entered, files entered, calls that go on in another file (each pair of caller and
callee once), and returns to another file (likewise). Comprehensions and lambdas belong to the function around them.
"""

import contextlib
import io
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import soundfile

import patchifier
from patchifier.cli import main

PACKAGE = str(Path(patchifier.__file__).parent)
SMALL = "--model.channels [4,4,4,4,8] --model.embed_dim 16 --model.n_layers 2 --model.n_heads 2 --model.mlp_dim 32"
SHORT = "--pretrain.n_patches 3 --pretrain.stage_one.steps 3 --pretrain.stage_two.steps 3 --pretrain.precision 32"


class Trace:
    """Collects calls between functions of the package in this process."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.calls: set[tuple[tuple[str, str], tuple[str, str]]] = set()
        self.returns: set[tuple[str, str]] = set()

    def __call__(self, frame, event, _argument) -> None:
        """Note one event of :func:`sys.setprofile`."""
        here = place(frame)
        if here is None or event not in ("call", "return"):
            return
        before = caller(frame)
        self.functions.add(here)
        if before and before[0] != here[0]:
            (self.calls if event == "call" else self.returns).add((before, here))

    def line(self, name: str) -> str:
        """One row of the table."""
        files = {file for file, _ in self.functions}
        return f"| {name} | {len(self.functions)} | {len(files)} | {len(self.calls)} | {len(self.returns)} |"


def place(frame) -> tuple[str, str] | None:
    """File and name of a function of the package."""
    code = frame.f_code
    own = code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<")
    return (code.co_filename, code.co_qualname) if own else None


def caller(frame) -> tuple[str, str] | None:
    """The nearest function of the package that called this one."""
    while (frame := frame.f_back) is not None:
        if found := place(frame):
            return found
    return None


@contextlib.contextmanager
def traced(name: str):
    """Trace what runs in the block and print its row."""
    trace = Trace()
    threading.setprofile(trace)
    sys.setprofile(trace)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    print(trace.line(name))


def run(line: str) -> None:
    """Run a command of the package in this process."""
    status = main(line.split())
    if status:
        raise RuntimeError(f"patchifier {line} ended with {status}.")


def music(folder: Path) -> Path:
    """Thirty sounds of three seconds with two classes; returns their manifest."""
    draws, rows = np.random.default_rng(0), ["path,target,group"]
    for number in range(30):
        soundfile.write(folder / f"{number}.wav", draws.uniform(-0.5, 0.5, 3 * 22_050), 22_050)
        rows.append(f"{number}.wav,{'ab'[number % 2]},{number // 2}")
    (folder / "music.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "music.csv"


def trace_all() -> None:
    """Print the table."""
    print("| call | functions | files | calls into another file | returns to another file |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = music(folder)
        model = patchifier.load("patchifier-paper")
        with traced("`Embedder.embed(file)`"):
            model.embed(folder / "0.wav")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run(f"prepare {manifest} --out {folder}/cache --workers 1")
        with traced("`patchifier pretrain`"):
            run(f"pretrain {folder}/cache --out {folder}/run --device cpu {SMALL} {SHORT}")
        with traced("`patchifier compare`"):
            run(f"compare {folder}/cache --encoders patchifier-paper,mfcc --out {folder}/compared")


if __name__ == "__main__":
    trace_all()
