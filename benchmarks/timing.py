"""What the benchmarks share: things timed in turn in one run, so that a busy neighbour slows all of them; what is printed; what is kept."""

import json
import time
from pathlib import Path

import numpy as np

from patchifier.train.run import machine

RESULTS = Path(__file__).parent / "results"


def timed(way, *arguments):
    started = time.perf_counter()
    answer = way(*arguments)
    return time.perf_counter() - started, answer


def in_turn(ways, rounds):
    """Seconds of each way, each round one of each: {name: (rounds,)}. A round before the first fills caches."""
    seconds = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            seconds[name].append(timed(way)[0])
    return {name: np.array(times[1:]) for name, times in seconds.items()}


def say(name, values, unit):
    low, middle, high = (float(value) for value in np.quantile(values, [0.1, 0.5, 0.9]))
    print(
        f"{name:<52}{middle:>10.2f} {unit:<4} (10th to 90th percentile: {low:.2f} to {high:.2f})",
        flush=True,
    )
    return {"median": middle, "low": low, "high": high}


def keep(name, facts):
    """Write results/NAME.json, with the machine."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({**facts, "machine": machine()}, indent=1) + "\n", encoding="utf-8"
    )
    print(f"on {machine()}")
