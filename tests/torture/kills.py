"""SIGKILL of commands and their processes: the same command again ends as if nothing had been."""

import functools
import os
import shutil
import signal
from pathlib import Path

import numpy as np

from tests.torture import Attack, Result
from tests.torture._commands import (
    COMMANDS,
    Job,
    at_change,
    fault_of_result,
    fault_so_far,
    n_changes,
    new_folder,
    not_linux,
    run,
    side_by_side,
    small_parts,
    undisturbed,
)

IN_A_ROW = 3  # kills of one job before it may end
COUNTS = {  # guarantee, kills in the full form, in the short form
    "prepare": (6, 24, 0),
    "pretrain": (1, 36, 3),
    "finetune": (1, 24, 0),
    "compare": (6, 15, 0),
    "embed": (9, 18, 0),
    "embed npy": (9, 12, 0),
    "embed --changed": (9, 12, 0),
    "embed on Ray": (9, 9, 0),
    "index": (6, 18, 0),
    "predict": (9, 12, 0),
}


def kills(name: str, folder: Path, count: int, draw: np.random.Generator) -> Result:
    """Kill a command `count` times: at random instants, or before a random change of a file."""
    seeds, jobs = draw.spawn(count), -(-count // IN_A_ROW)
    return side_by_side(lambda number: job(name, folder / str(number), seeds[number::jobs]), jobs)


def job(name: str, folder: Path, draws: list[np.random.Generator]) -> Result:
    """Kill one job several times, then let it end."""
    command, done = COMMANDS[name], list[str]()
    new_folder(folder, command.line, before=command.before)
    while len(done) < len(draws):
        when, killed = attempt(name, folder, draws[len(done)], earlier=len(done))
        if killed:
            done.append(when)
            fault = fault_so_far(command, folder)
        else:  # it had ended before
            fault = fault_of_result(command, folder)
            shutil.rmtree(folder)
            new_folder(folder, command.line, before=command.before)
        if fault:
            return Result(1, len(done), [f"{name}: {', '.join([*done, when])}: {fault}"])
    ended = run(command.words(again=True), folder, small_parts)
    fault = fault_of_result(command, folder) if ended.code == 0 else ended.err[-500:]
    lost = [f"{name}: {', '.join(done)}: exit code {ended.code}, {fault}"] if fault else []
    return Result(1, len(done), lost)


def attempt(
    name: str, folder: Path, draw: np.random.Generator, *, earlier: int
) -> tuple[str, bool]:
    """Start a command, and kill it; when it was, and whether it had not ended before."""
    words, share = COMMANDS[name].words(again=earlier > 0), draw.random() / (1 + earlier)
    if draw.random() < 0.5:
        number = 1 + int(share * n_changes(name))
        kill = functools.partial(at_change, kill_all, number)
        ended, when = run(words, folder, small_parts, kill), f"killed before change {number}"
        return when, ended.code == -signal.SIGKILL
    started, wait_s = Job(words, folder, small_parts), share * undisturbed(COMMANDS[name].line)[1]
    started.process.join(wait_s)
    return f"killed after {wait_s:.2f} s", started.kill()


def kill_all(event: str, path: str) -> None:
    """Kill this process and those that it has started."""
    os.killpg(0, signal.SIGKILL)


ATTACKS = [
    Attack(guarantee, f"SIGKILL of {name}", functools.partial(kills, name), count, short, not_linux)
    for name, (guarantee, count, short) in COUNTS.items()
]
