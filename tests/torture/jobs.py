"""Jobs in a hostile world: closed pipes, changing files, clocks, limits, a second job, signals."""

import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import numpy as np

from tests.torture import Attack, Result
from tests.torture._commands import (
    COMMANDS,
    LONGEST_S,
    Command,
    Ended,
    Job,
    at_change,
    contents,
    fault_of_result,
    home,
    limit,
    n_changes,
    new_folder,
    not_linux,
    run,
    same,
    side_by_side,
    small_parts,
    undisturbed,
)

LOCAL = [name for name in COMMANDS if name != "embed on Ray"]
READERS = [
    "--help",
    "prepare --help",
    "info run/model",
    "similar x.parquet --to songs/01.wav --count 30",
    "duplicates x.parquet --unchecked --threshold 0.5",
    "distance x.parquet x.parquet",
    "leaks cache cache",
]
ENDS_S = 10.0  # within which a signal ends a command


# --- what all attacks share ---


def spread(
    names: list[str], case: Callable[[str, Path, np.random.Generator], str]
) -> Callable[[Path, int, np.random.Generator], Result]:
    """Make an attack of a case that injects one fault into a command and says what was lost."""

    def attack(folder: Path, count: int, draw: np.random.Generator) -> Result:
        draws = draw.spawn(count)

        def one(number: int) -> Result:
            name = names[number % len(names)]
            lost = case(name, folder / str(number), draws[number])
            return Result(1, 1, [f"{name}: {lost}"] if lost else [])

        return side_by_side(one, count)

    return attack


def place(name: str, folder: Path) -> list[str]:
    """Make the working folder of a command; its words."""
    command = COMMANDS[name]
    new_folder(folder, command.line, before=command.before)
    return command.words()


def finished(name: str, folder: Path, ended: Ended) -> str:
    """What is wrong with a command that had to succeed."""
    if ended.code != 0:
        return f"exit code {ended.code}, expected 0: {ended.err[-500:]}"
    return fault_of_result(COMMANDS[name], folder)


def goes_on(name: str, folder: Path) -> str:
    """Run the command again without a fault; what is wrong with its end."""
    return finished(name, folder, run(COMMANDS[name].words(again=True), folder, small_parts))


def refused(ended: Ended) -> str:
    """What is wrong with a command that had to be refused in one line."""
    if ended.code == 2 and len(ended.said) == 1:
        return ""
    return f"exit code {ended.code}, expected 2 and one line: {ended.err[-500:]}"


# --- closed pipes ---


def without_reader(number: int) -> None:
    """Let standard output (1) or error (2) be a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, number)


def closed_pipe(line: str, folder: Path, draw: np.random.Generator) -> str:
    """Close the output of a command, then run it again."""
    command = COMMANDS.get(line, Command(line))
    new_folder(folder, command.line, before=command.before)
    number, words = int(draw.integers(1, 3)), command.words()
    words += ["--json"] if draw.random() < 0.5 and "--help" not in words else []
    ended = run(words, folder, functools.partial(without_reader, number))
    if ended.code not in ((0,) if number == 1 else (0, 130)) or ended.said:
        return f"output {number} of {' '.join(words)}: exit code {ended.code}: {ended.err[-500:]}"
    return goes_on(line, folder) if line in COMMANDS else ""


# --- files that change between listing and decoding ---


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(path.read_bytes())


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def become(make: Callable[[Path], object], path: Path) -> None:
    path.unlink()
    make(path)


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "vanishes": Path.unlink,
    "grows": grow,
    "shrinks": shrink,
    "is emptied": lambda path: path.write_bytes(b""),
    "becomes text": lambda path: path.write_text("<html>no sound</html>"),
    "becomes a folder": functools.partial(become, Path.mkdir),
    "becomes a pipe": functools.partial(become, os.mkfifo),
    "becomes a link to nowhere": functools.partial(become, lambda path: path.symlink_to("nowhere")),
    "becomes /dev/zero": functools.partial(become, lambda path: path.symlink_to("/dev/zero")),
}
NAMED = set(TAMPERINGS) - {"grows", "shrinks"}  # in the list of skipped files


def tamper(changes: dict[str, str]) -> None:
    """Change files when a job has listed them and has not begun to decode."""
    from patchifier import jobs

    work = jobs.run

    def tampered(*arguments: object, **options: object) -> Iterator[object]:
        for name, what in changes.items():
            TAMPERINGS[what](Path("songs") / name)
        return work(*arguments, **options)

    jobs.run = tampered


def changing(name: str, folder: Path, draw: np.random.Generator) -> str:
    """Let some files change while a command works, mend them, and run it again."""
    words = place(name, folder)
    for link in ("songs", "clips.csv"):
        (folder / link).unlink()
    shutil.copy(home() / "clips.csv", folder)
    shutil.copytree(home() / "songs", folder / "songs")
    kinds = draw.permutation(sorted(TAMPERINGS))[:3]
    changes = {f"{int(n):02d}.wav": str(kind) for n, kind in zip(draw.permutation(30)[:3], kinds)}
    ended = run(words, folder, small_parts, functools.partial(tamper, changes))
    skipped = {song for song, kind in changes.items() if kind in NAMED}
    if (ended.code != int(bool(skipped)) and ended.code != 1) or ended.said:
        return f"{changes}: exit code {ended.code}: {ended.err[-500:]}"
    listed = "".join(path.read_text() for path in (folder / "out").rglob("*skipped.csv"))
    if missing := [song for song in skipped if song not in listed]:
        return f"{changes}: {missing} are not named among the skipped files"
    return mended(name, folder, changes)


def mended(name: str, folder: Path, changes: dict[str, str]) -> str:
    """Put the files back and run the command again; what is wrong with its result."""
    for song in changes:
        path = folder / "songs" / song
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.copy(home() / "songs" / song, path)
    words = COMMANDS[name].words(again=True) + (["--changed"] if name == "embed" else [])
    ended = run(words, folder, small_parts)
    if ended.code != 0:
        return f"{changes}, mended: exit code {ended.code}: {ended.err[-500:]}"
    found, wanted = (
        numbers(each / "out") for each in (folder, undisturbed(COMMANDS[name].line)[0])
    )
    return "" if same(found, wanted, exact=False) else f"{changes}, mended: other content"


def numbers(out: Path) -> list[object]:
    """Log-mels, vectors or predictions, without the paths of their files."""
    found = contents(out)
    if "x.parquet" in found:
        return [found["x.parquet"]["vectors"]]
    if "p.csv" in found:
        return [[cell for name, cell in row.items() if name != "path"] for row in found["p.csv"]]
    return [value[1] for value in found.values() if isinstance(value, tuple)]


# --- clocks ---


def jumping_clock(seed: int) -> None:
    """Let the time of day jump by up to a year at each call."""
    chance, now = random.Random(seed), time.time
    time.time = lambda: now() + chance.uniform(-3e7, 3e7)
    time.time_ns = lambda: int(1e9 * time.time())


def clock(name: str, folder: Path, draw: np.random.Generator) -> str:
    """Run a command while the clock jumps, on files of the past and of the future."""
    words = place(name, folder)
    for path in [*(folder / "out").rglob("*"), folder / "out"]:
        os.utime(path, (draw.uniform(0, 4e9),) * 2)
    jumps = functools.partial(jumping_clock, int(draw.integers(2**32)))
    return finished(name, folder, run(words, folder, small_parts, jumps)) or goes_on(name, folder)


# --- small limits ---


def few_handles(name: str, folder: Path, draw: np.random.Generator) -> str:
    """Let a command open few files; it ends well or says so, and goes on."""
    words, most = place(name, folder), int(draw.integers(12, 65))
    ended = run(words, folder, functools.partial(limit, "NOFILE", most))
    wrong = "" if ended.code == 0 else refused(ended)
    return f"{most} handles: {wrong}" if wrong else goes_on(name, folder)


def little_memory(name: str, folder: Path, draw: np.random.Generator) -> str:
    """Give a command little memory; it ends well or says so, or dies in a library, and goes on."""
    words, most_mb = place(name, folder), int(draw.integers(5, 500))
    ended = run(words, folder, functools.partial(more_memory, most_mb))
    died = ended.code in (-signal.SIGSEGV, -signal.SIGABRT) or "OpenBLAS error" in ended.err
    wrong = "" if ended.code == 0 or died else refused(ended)
    return f"{most_mb} MB: {wrong}" if wrong else goes_on(name, folder)


def more_memory(most_mb: int) -> None:
    """Limit memory to what this process holds, and so much more."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held_kb = next(int(line.split()[1]) for line in lines if line.startswith("VmData"))
    limit("DATA", 1024 * held_kb + most_mb * 2**20)


# --- a second job ---


def second_job(name: str, folder: Path, draw: np.random.Generator) -> str:
    """Start a command twice; the second one meets the first at a random change of a file."""
    new_folder(folder, COMMANDS[name].line)
    words, number = COMMANDS[name].words(), int(draw.integers(2, n_changes(name)))
    first = Job(words, folder, small_parts, functools.partial(at_change, pause, number))
    while first.process.is_alive() and not (folder / "paused").exists():
        time.sleep(0.01)
    works = any(map(is_held, folder.rglob(".lock")))  # else both may do the whole work
    before = written(folder / "out")
    ended = run(COMMANDS[name].words(again=True), folder, small_parts)
    nothing_to_do = ended.code == 0 and written(folder / "out") == before
    wrong = refused(ended) if ended.code or (works and not nothing_to_do) else ""
    (folder / "go").touch()
    return wrong or finished(name, folder, first.end())


def written(out: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file."""
    states = {str(path): path.stat() for path in out.rglob("*") if path.is_file()}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


def is_held(lock: Path) -> bool:
    """Whether another process holds a lock; its file stays after it was released."""
    try:
        with filelock.FileLock(lock, timeout=0):
            return False
    except filelock.Timeout:
        return True


def pause(event: str, path: str) -> None:
    """Wait until the file `go` is there."""
    os.close(os.open("paused", os.O_CREAT | os.O_WRONLY))
    last_s = time.monotonic() + LONGEST_S
    while not os.path.exists("go") and time.monotonic() < last_s:
        time.sleep(0.01)


# --- signals ---


def when_ready() -> None:
    """Hold signals back until the command is there to handle them."""
    from patchifier import cli

    both, work = {signal.SIGINT, signal.SIGTERM}, cli.main
    signal.pthread_sigmask(signal.SIG_BLOCK, both)
    Path("ready").touch()

    def main(**how: bool) -> int:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        except KeyboardInterrupt:
            return 130  # it came before the command
        return work(**how)

    cli.main = main


def interrupted(name: str, folder: Path, draw: np.random.Generator) -> str:
    """Send a signal at a random instant: exit code 130, soon, and no process stays; then go on."""
    words, number = place(name, folder), int(draw.choice([signal.SIGINT, signal.SIGTERM]))
    job = Job(words, folder, when_ready, small_parts)
    while job.process.is_alive() and not (folder / "ready").exists():
        time.sleep(0.001)
    wait_s = draw.uniform(0, 0.8 * undisturbed(COMMANDS[name].line)[1])
    job.process.join(wait_s)
    job.signal(number)
    job.process.join(ENDS_S)
    late, left = job.process.is_alive(), job.living()
    ended, what = job.end(), f"signal {number} after {wait_s:.2f} s"
    if late or left:
        return f"{what}: {len(left)} processes are left after {ENDS_S:g} s: {ended.err[-500:]}"
    if ended.code not in (0, 130) or "Traceback" in ended.err:
        return f"{what}: exit code {ended.code}, expected 130: {ended.err[-500:]}"
    return goes_on(name, folder)


DECODE = ["embed", "prepare", "predict"]
FAULTS = {  # guarantee, case, commands, faults in the full form, in the short form
    "a pipe that nobody reads": (6, closed_pipe, [*READERS, *LOCAL], 57, 3),
    "files that change while a job decodes": (5, changing, DECODE, 36, 1),
    "a clock that jumps": (6, clock, LOCAL, 24, 1),
    "few file handles": (6, few_handles, LOCAL, 24, 0),
    "little memory": (6, little_memory, LOCAL, 24, 0),
    "a second job in the same place": (6, second_job, LOCAL, 24, 1),
    "SIGINT and SIGTERM at a random instant": (6, interrupted, LOCAL, 48, 2),
}
ATTACKS = [
    Attack(guarantee, name, spread(names, case), count, short, not_linux)
    for name, (guarantee, case, names, count, short) in FAULTS.items()
]
