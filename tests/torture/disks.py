"""Full and read-only disks: one line, exit code 2, what was there stays; then the same command goes on."""

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.torture import Attack, Result
from tests.torture._commands import (
    COMMANDS,
    MAKES,
    Command,
    Ended,
    at_change,
    fault_of_result,
    fault_so_far,
    limit,
    n_changes,
    new_folder,
    not_linux,
    run,
    side_by_side,
    small_parts,
    undisturbed,
)

NAMES = [name for name in COMMANDS if name != "embed on Ray"]
PAGE_B = 4096
ROOM = {"size": 64 * 2**20, "nr_inodes": 10_000}


# --- the faults: each runs a command that fails at a share of its way ---


def no_room_at_change(name: str, folder: Path, share: float) -> Ended:
    """From a change of a file on, there is no room for another one."""
    number = 1 + int(share * n_changes(name))
    return start(name, folder, functools.partial(at_change, refuse, number))


def refuse(event: str, path: str) -> None:
    """Raise what a full disk raises."""
    if event in MAKES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def limit_of_sizes(name: str, folder: Path, share: float) -> Ended:
    """No file may be larger than a share of the largest."""
    files = (undisturbed(COMMANDS[name].line)[0] / "out").rglob("*")
    size_b = int(share * max(file.stat().st_size for file in files))
    return start(name, folder, functools.partial(limit, "FSIZE", size_b))


def disk_of_size(option: str, name: str, folder: Path, share: float) -> Ended:
    """The disk has room for a share of what the command writes."""
    before, most = used(folder / "out")[option], needed(name)[option]
    unit = PAGE_B if option == "size" else 1
    remount(folder, **{option: unit * (before + 1 + int(share * max(1, most - before)))})
    try:
        return start(name, folder)
    finally:
        remount(folder, **ROOM)


def read_only(name: str, folder: Path, share: float) -> Ended:
    """The disk is mounted read-only."""
    remount(folder, "ro")
    try:
        return start(name, folder)
    finally:
        remount(folder, "rw")


def start(name: str, folder: Path, *setup: Callable[[], object]) -> Ended:
    command = COMMANDS[name]
    again = any((folder / "out").iterdir()) and not command.before
    return run(command.words(again=again), folder, small_parts, *setup)


# --- a disk of its own ---


@contextlib.contextmanager
def disk(folder: Path, command: Command) -> Iterator[None]:
    """Make a working folder whose `out` is a disk in memory."""
    new_folder(folder, command.line)
    mount(f"-o{options(**ROOM)}", "tmpfs", folder / "out")
    try:
        if command.before:
            old = undisturbed(command.before)[0] / "out"
            shutil.copytree(old, folder / "out", dirs_exist_ok=True)
        yield
    finally:
        unmount(folder / "out")


@contextlib.contextmanager
def plain(folder: Path, command: Command) -> Iterator[None]:
    """Make a working folder."""
    yield new_folder(folder, command.line, before=command.before)


def options(*words: str, **sizes: int) -> str:
    return ",".join([*words, *(f"{name}={size}" for name, size in sizes.items())])


def mount(*words: object) -> None:
    subprocess.run(["mount", "-ttmpfs", *map(str, words)], check=True, capture_output=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, *words: str, **sizes: int) -> None:
    mount(f"-oremount,{options(*words, **sizes)}", folder / "out")


def used(out: Path) -> dict[str, int]:
    """Pages and files on a disk."""
    state = os.statvfs(out)
    return {"size": state.f_blocks - state.f_bfree, "nr_inodes": state.f_files - state.f_ffree}


@functools.cache
def needed(name: str) -> dict[str, int]:
    """Pages and files of the result of a command."""
    files = list((undisturbed(COMMANDS[name].line)[0] / "out").rglob("*"))
    pages = sum(-(-file.stat().st_size // PAGE_B) for file in files if file.is_file())
    return {"size": pages, "nr_inodes": len(files)}


def no_disks() -> str:
    """Reason why no disk can be mounted; empty if one can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            mount("tmpfs", folder)
        except (OSError, subprocess.CalledProcessError):
            return "no small disk in memory can be mounted: it needs root on Linux"
        unmount(Path(folder))
    return ""


# --- what has to come ---


@dataclass(frozen=True)
class Fault:
    """A disk that fails.

    Attributes
    ----------
    run : callable
        `run(name, folder, share)` runs a command that fails at a share of its way.
    place : callable
        `place(folder, command)` makes the working folder.
    remedy : str
        What the message advises.
    """

    run: Callable[[str, Path, float], Ended]
    place: Callable[[Path, Command], contextlib.AbstractContextManager[object]]
    remedy: str


def attack(fault: Fault, folder: Path, count: int, draw: np.random.Generator) -> Result:
    """Run each command several times, `count` in all, on a disk that fails; then to its end."""
    names = NAMES[:count]
    shares = [sorted(part) for part in np.array_split(draw.random(count), len(names))]
    return side_by_side(
        lambda number: job(fault, names[number], folder / str(number), shares[number]), len(names)
    )


def job(fault: Fault, name: str, folder: Path, shares: list[float]) -> Result:
    """Run one command on a disk that fails, later each time, and at last to its end."""
    command, result = COMMANDS[name], Result(inputs=1)
    with fault.place(folder, command):
        for share in shares:
            ended = fault.run(name, folder, share)
            if ended.code != 0:  # or it needed no more of the disk
                result.injected += 1
                wrong = fault_of_message(ended, folder, fault.remedy)
                if wrong := wrong or fault_so_far(command, folder):
                    result.lost.append(f"{name} at {share:.2f}: {wrong}")
        ended = start(name, folder)
        if wrong := fault_of_result(command, folder) if ended.code == 0 else ended.err[-500:]:
            result.lost.append(f"{name}, then with room: {wrong}")
    return result


def fault_of_message(ended: Ended, folder: Path, remedy: str) -> str:
    """What is wrong with the end of a command on a disk that fails; empty if nothing is."""
    if ended.code != 2 or len(ended.said) != 1:
        return f"exit code {ended.code}, expected 2 and one line: {ended.err[-500:]}"
    if remedy not in ended.said[0] or "out" not in ended.said[0]:
        return f"expected the file and '{remedy}': {ended.said[0]}"
    return ""


FAULTS = {
    "no room at a random change of a file": (Fault(no_room_at_change, plain, "make room"), 72, 2),
    "a limit of file sizes": (Fault(limit_of_sizes, plain, "ulimit -f"), 36, 0),
    "a disk of few pages": (
        Fault(functools.partial(disk_of_size, "size"), disk, "make room"),
        60,
        0,
    ),
    "a disk of few files": (
        Fault(functools.partial(disk_of_size, "nr_inodes"), disk, "make room"),
        36,
        0,
    ),
    "a read-only disk": (Fault(read_only, disk, "choose another place"), len(NAMES), 0),
}
ATTACKS = [
    Attack(
        6,
        name,
        functools.partial(attack, fault),
        count,
        short,
        no_disks if fault.place is disk else not_linux,
    )
    for name, (fault, count, short) in FAULTS.items()
]
