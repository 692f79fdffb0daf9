"""The paper's experiments, section by section: which commands make them, and a runner.

:func:`steps` is their only definition. ``patchifier paper`` runs them on the paper's data, and
``patchifier demo --paper`` on stand-ins. Each step is a command of its own process, so it can be
repeated by hand, and run folders name it.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.io import write_json

SEEDS = 5
TASKS = ("gtzan", "emomusic")  # Table 1's
RATES = "[1e-5, 1e-4, 1e-3]"
WHOLE = "1000000000"  # patience in steps: the curves of Figure 2 are not cut short
BASELINES = ("mfcc", "mel-stats")


@dataclass(frozen=True)
class Step:
    """One command: section of the paper, and the command line without the program's name."""

    section: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command as a user types it."""
        return shlex.join(["patchifier", *self.words])


def steps(data: Path, out: Path, config: str, *, seeds: int = SEEDS) -> list[Step]:
    """List the commands in order.

    `data` holds mtat, gtzan and emomusic; `out` gets caches, runs and the report.
    """
    shared = ("--config", config)
    tuned = (*shared, "--finetune.n_seeds", str(seeds), "--resume")
    cache = {name: str(out / "cache" / name) for name in ("mtat", "gtzan", "gtzan-folds", TASKS[1])}
    model = str(out / "pretrain" / "model")
    found = [
        Step(
            "4.3 Data: log-mels",
            ("prepare", source, "--root", str(data / root), "--out", cache[name], *shared),
        )
        for source, root, name in (
            ("mtat:paper16k", "mtat", "mtat"),
            ("gtzan", "gtzan", "gtzan"),
            ("gtzan:folds", "gtzan", "gtzan-folds"),
            ("emomusic", "emomusic", "emomusic"),
        )
    ]
    found += [
        Step(
            "4.3 Data: recordings in both pre-training and a task",
            ("leaks", cache["mtat"], cache[task], "--out", str(out / f"leaks-{task}.csv")),
        )
        for task in TASKS
    ]
    found.append(
        Step(
            "4.4 Pre-training: stage I, stage II",
            ("pretrain", cache["mtat"], "--out", str(out / "pretrain"), *shared, "--resume"),
        )
    )

    def finetune(section: str, run: str, name: str, method: str, *more: str) -> Step:
        words = ("finetune", model, cache[name], "--out", str(out / run), "--method", method)
        return Step(section, (*words, *more, *tuned))

    whole = ("--finetune.patience", WHOLE)
    figure = "4.5 Table 1 and Figure 2: fine-tuning at the paper's rate"
    found += [finetune(figure, f"figure-2-{task}", task, "all", *whole) for task in TASKS]
    folds = (*whole, "--finetune.folds", "all")
    found.append(finetune(figure, "gtzan-folds", "gtzan-folds", "linear-probe", *folds))
    best = f"4.5 Beside it: linear probe, the best on validation of the rates {RATES[1:-1]}"
    rates = ("--finetune.learning_rates", RATES)
    found += [finetune(best, f"best-rate-{task}", task, "linear-probe", *rates) for task in TASKS]
    encoders = ",".join([model, f"random:{model}", *BASELINES])  # of the same architecture
    compared = ("--encoders", encoders, "--probe", "linear")
    found += [
        Step(
            "Beside the paper: embeddings against hand-made features and random weights",
            ("compare", cache[name], *compared, "--out", str(out / f"compare-{name}")),
        )
        for name in cache
        if name != "mtat"
    ]
    return [*found, Step("Report", ("report", str(out), "--out", str(out / "report")))]


def run(
    todo: Sequence[Step], out: Path, *, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Run steps one after another; ``steps.json`` gets section, command and seconds of each.

    Run again after an interruption, finished trainings are not repeated. A step that skipped some
    files is no failure; one that fails is a RequestError. `say` shows titles.
    """
    done: list[dict[str, Any]] = []
    for number, step in enumerate(todo, 1):
        if not done or step.section != done[-1]["section"]:
            say(f"\n== {step.section}")
        say(f"[{number} of {len(todo)}] {step.command}")
        started = time.monotonic()
        code = _run(step.words)
        if code == 130:
            raise KeyboardInterrupt
        if code not in (0, 1):  # 1: files were skipped, each named in a list
            raise RequestError(
                f"step {number} of {len(todo)} failed with exit code {code}: {step.command}. "
                "Its lines above say why; mend that and run the same command again, it goes on."
            )
        seconds = round(time.monotonic() - started, 1)
        done.append({"section": step.section, "command": step.command, "seconds": seconds})
        write_json(out / "steps.json", done)
    return done


def _run(words: Sequence[str]) -> int:
    """Run a command in a process of its own, which may save its work when it is interrupted."""
    with subprocess.Popen([sys.executable, "-m", "patchifier", *words]) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            if os.name != "nt":
                process.send_signal(signal.SIGTERM)
            process.wait()
            return 130
