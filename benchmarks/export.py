"""The exported ONNX graph, waveform to vector, against the runtime, timed in turn in one run, on one thread.

    python benchmarks/export.py [--seconds 30] [--rounds 11]

Asked for is a ratio of at most 1.5. The difference is the largest of any number, over the norm of the vector.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import threadpoolctl
from timing import in_turn, keep, say

import patchifier
from patchifier.integrations import onnx

MODELS = ("patchifier-base", "patchifier-paper")


def compare(name, seconds, rounds, folder):
    model, path = patchifier.load(name), onnx.export(name, folder / f"{name}.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rate = model.config.spectrogram.sample_rate
    sound = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate)).astype(np.float32)
    ways = {
        "runtime": lambda: model.embed(sound, rate),
        "graph": lambda: session.run(None, {"waveform": sound[None]})[0][0],
    }
    times = in_turn(ways, rounds)
    found = {way: say(f"{name}, {way}", 1000 * each, "ms") for way, each in times.items()}
    found["ratio"] = say(f"{name}, graph / runtime", times["graph"] / times["runtime"], "")
    expected = ways["runtime"]()
    error = np.abs(ways["graph"]() - expected).max() / np.linalg.norm(expected)
    print(f"{name}, largest difference over the norm: {error:.1e}")
    return {**found, "difference": float(error)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=11)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, threadpoolctl.threadpool_limits(1):
        found = {name: compare(name, flags.seconds, flags.rounds, Path(folder)) for name in MODELS}
    keep("export", {**found, "seconds": flags.seconds, "rounds": flags.rounds})


if __name__ == "__main__":
    main()
