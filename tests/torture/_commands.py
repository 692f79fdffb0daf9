"""The commands that are attacked, on a small library, each in a process group of its own.

A process is a fork of a server that has imported everything: it starts in milliseconds, and a command
takes as long as its work.
"""

import contextlib
import csv
import functools
import io
import itertools
import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import soundfile

from patchifier.cache import Cache
from tests.audio_files import music
from tests.builders import TINY
from tests.torture import Result

RATE = 22_050
N_SONGS = 30
LONGEST_S = 120.0  # of a command; a longer one hangs
STAGE = {"steps": 12, "batch_size": 4}
SETTINGS = {
    "model": TINY | {"max_patches": 2},
    "pretrain": {
        "n_patches": 2,
        "stage_one": STAGE,
        "stage_two": STAGE,
        "validate_every": 4,
        "validation_fraction": 0.2,
        "checkpoint_every_s": 0.05,
        "precision": "32",
    },
    "embed": {"hop_patches": 1},
    "finetune": {
        "training": {"steps": 12, "batch_size": 8},
        "validate_every": 4,
        "precision": "32",
    },
}
IMPORTED = [  # not lance, which no fork may have imported
    "attrs",
    "docstring_parser",
    "jsonargparse",
    "lance_namespace",
    "lightning_fabric",
    "sklearn.linear_model",
    "matplotlib.pyplot",
    "overrides",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
    "patchifier.cli",
    "patchifier.evaluate.compare",
    "patchifier.evaluate.report",
    "patchifier.library.predict",
    "patchifier.train.finetune",
    "patchifier.train.pretrain",
    "tests.torture.disks",
    "tests.torture.jobs",
    "tests.torture.kills",
]


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember the results of a function; threads wait for the one that is at it."""
    remembered = functools.cache(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with LOCK:
            return remembered(*arguments)

    return call


LOCK, HELD, NUMBERS = threading.RLock(), contextlib.ExitStack(), itertools.count()


# --- the commands ---


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes
    ----------
    line : str
        It writes below `out`; other words may be names of :data:`MADE`.
    resumes : bool
        Whether it needs `--resume` to go on.
    before : str
        A command line whose result is there already; empty for none.
    exact : bool
        Whether the result has the same bits each time.
    """

    line: str
    resumes: bool = False
    before: str = ""
    exact: bool = True

    def words(self, *, again: bool = False) -> list[str]:
        """Words of the command line, when it is run for the first time or again."""
        return [*shlex.split(self.line), *(["--resume"] if again and self.resumes else [])]


TABLE = "embed songs --out out/x.parquet --model run/model --workers 1"
COMMANDS = {
    "prepare": Command("prepare clips.csv --out out/cache --workers 1"),
    "pretrain": Command("pretrain cache --out out/run --config tiny.json", resumes=True),
    "finetune": Command(
        "finetune run/model cache --out out/tuned --config tiny.json", resumes=True
    ),
    "compare": Command("compare cache --encoders run/model,mel-stats --out out/compared"),
    "embed": Command(TABLE, exact=False),
    "embed npy": Command(TABLE.replace("x.parquet", "x.npy"), exact=False),
    "embed --changed": Command(
        f"{TABLE} --changed", before=TABLE.replace("songs", "songs/00.wav"), exact=False
    ),
    "embed on Ray": Command(f"{TABLE} --engine ray".replace("x.parquet", "x"), exact=False),
    "index": Command(
        "index x.parquet --out out/index", before="index one.parquet --out out/index", exact=False
    ),
    "predict": Command("predict tuned/full/model songs --out out/p.csv --workers 1", exact=False),
    "report": Command("report run tuned --out out/page"),
    "reconstruct": Command("reconstruct songs/01.wav --model run/model --out out/r.png --sound"),
    "export": Command("export run/model --onnx out/m.onnx"),
}
MADE = {  # what other commands need: the command that makes it
    "cache": COMMANDS["prepare"].line,
    "run": COMMANDS["pretrain"].line,
    "tuned": COMMANDS["finetune"].line,
    "x.parquet": TABLE,
    "one.parquet": TABLE.replace("songs", "songs/00.wav").replace("x.parquet", "one.parquet"),
}


@once
def home() -> Path:
    """Folder of the small library; it lives as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="torture-home")
    HELD.enter_context(folder)
    root = Path(folder.name)
    (root / "songs").mkdir()
    names = [f"songs/{number:02d}.wav" for number in range(N_SONGS)]
    for number, name in enumerate(names):
        sound = music(1.0 + number % 2 / 2, rate=RATE, seed=number) * (0.2 + number / N_SONGS)
        soundfile.write(root / name, sound, RATE)
    rows = [f"{name},{'abc'[number % 3]}" for number, name in enumerate(names)]
    (root / "clips.csv").write_text("\n".join(["path,label", *rows, ""]))
    (root / "tiny.json").write_text(json.dumps(SETTINGS))
    run(["--version"], root)  # starts the server, whose time is no command's
    return root


@once
def undisturbed(line: str) -> tuple[Path, float]:
    """Folder in which a command has run without a fault, and the seconds that it took."""
    folder = new_folder(home() / f"run-{next(NUMBERS)}", line)
    start_s = time.monotonic()
    ended = run(shlex.split(line), folder, small_parts, count_changes)
    if ended.code:
        raise RuntimeError(f"{line}: exit code {ended.code}, expected 0: {ended.err}")
    return folder, time.monotonic() - start_s


def new_folder(folder: Path, line: str, *, before: str = "") -> Path:
    """Make a working folder with all that a command line needs, as links, and an empty `out`."""
    (folder / "out").mkdir(parents=True)
    for name in ("songs", "clips.csv", "tiny.json"):
        (folder / name).symlink_to(home() / name)
    for name, maker in MADE.items():
        if any(word.partition("/")[0] == name for word in shlex.split(line)):
            (folder / name).symlink_to(undisturbed(maker)[0] / "out" / name)
    if before:
        shutil.copytree(undisturbed(before)[0] / "out", folder / "out", dirs_exist_ok=True)
    return folder


# --- processes ---


@dataclass(frozen=True)
class Ended:
    """Exit code of a command (None if it hung), and what it printed."""

    code: int | None
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """Lines that say why it failed."""
        starts = ("patchifier ", "patchifier:", "Traceback")
        return [line for line in self.err.splitlines() if line.startswith(starts)]


@once
def context() -> Any:
    """The context of processes that are forks of a server."""
    os.environ["OMP_NUM_THREADS"] = "1"  # a fork of a process with threads can hang
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(IMPORTED)
    return found


Setup = Callable[[], object]


class Job:
    """A running command.

    Parameters
    ----------
    words : list of str
    folder : Path
        Working folder.
    setup : callable
        Called in the process before the command; it can be pickled.
    """

    def __init__(self, words: list[str], folder: Path, *setup: Setup) -> None:
        pipes = [context().Pipe(duplex=False) for _ in ("out", "err")]
        ends = [write for _, write in pipes]
        self.process = context().Process(target=_main, args=(words, str(folder), ends, setup))
        self.process.start()
        for end in ends:
            end.close()
        self.readers = ThreadPoolExecutor(2)
        self.printed = [self.readers.submit(_read, read) for read, _ in pipes]

    def signal(self, number: int) -> None:
        """Send a signal to the command alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> bool:
        """Kill the command and its processes; whether it had not ended before."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join(LONGEST_S)
        until_s = time.monotonic() + LONGEST_S
        while self.living() and time.monotonic() < until_s:  # they hold the lock of the folder
            time.sleep(0.01)
        return self.process.exitcode == -signal.SIGKILL

    def end(self, longest_s: float = LONGEST_S) -> Ended:
        """Wait for its end; one that hangs is killed."""
        self.process.join(longest_s)
        code = self.process.exitcode
        self.kill()
        return Ended(code, *(text.result() for text in self.printed))

    def living(self) -> list[int]:
        """Processes of its group that have not ended."""
        return [pid for pid, group, state in _processes() if group == self.process.pid and state]


def _processes() -> Iterator[tuple[int, int, bool]]:
    """Number, group and whether it lives of each process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            yield int(path.parent.name), int(group), state != "Z"


def _read(pipe: Any) -> str:
    """Read a pipe to its end."""
    with pipe, open(pipe.fileno(), "rb", closefd=False) as stream:
        return stream.read().decode(errors="replace")


def _main(words: list[str], folder: str, outputs: list[Any], setup: tuple[Setup, ...]) -> None:
    """In a new process: become `python -m patchifier`."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    os.chdir(folder)
    for number, output in enumerate(outputs, 1):
        os.dup2(output.fileno(), number)
        output.close()
    for prepare in setup:
        prepare()
    sys.argv = ["patchifier", *words]
    runpy.run_module("patchifier", run_name="__main__", alter_sys=True)


def run(words: list[str], folder: Path, *setup: Setup) -> Ended:
    """Run a command to its end."""
    return Job(words, folder, *setup).end()


def small_parts() -> None:
    """Let a job write its results in many small parts."""
    from patchifier import cache
    from patchifier.integrations import object_store
    from patchifier.library import job

    cache.SHARD_FRAMES = 300
    job.PART_FILES = 4
    object_store.PART_CLIPS = (4, 4)


def limit(name: str, most: int) -> None:
    """Limit a resource of this process, such as NOFILE."""
    import resource  # Windows has none

    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def not_linux() -> str:
    """Reason why commands cannot be attacked here; empty if they can."""
    return "" if sys.platform == "linux" else "it needs forks and /proc: Linux"


# --- faults at the n-th change of a file ---

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MAKES = {"open", "os.mkdir", "os.rename"}
CHANGES = MAKES | {"os.remove", "os.rmdir", "os.truncate"}


def at_change(act: Callable[[str, str], object], number: int = 1) -> None:
    """Call `act` with event and path before each change of a file below `out`, from the n-th on."""
    out, seen = os.path.abspath("out"), itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not arguments[2] & WRITING:
            return
        path = os.path.abspath(os.fspath(arguments[0]))
        if path.startswith(out) and next(seen) >= number:
            act(event, path)

    sys.addaudithook(hook)


def count_changes() -> None:
    """Write a byte to the file `changes` for each change."""
    handle = os.open("changes", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    at_change(lambda event, path: os.write(handle, b"."))


def n_changes(name: str) -> int:
    """How often a command changes a file below `out`."""
    return (undisturbed(COMMANDS[name].line)[0] / "changes").stat().st_size


# --- results ---

VOLATILE = {"clips_per_s", "command", "seconds", "seconds_per_second", "started"}
UNLISTED = {".lance", "shards", "tensorboard"}  # read as a whole, or not
UNREAD = {".png", ".html", ".md", ".onnx", ".jsonl"}


def contents(out: Path, *, hidden: bool = True) -> dict[str, Any]:
    """What a command has written: arrays, texts and values by name.

    Parameters
    ----------
    out : Path
    hidden : bool
        Also hidden files, except locks.

    Raises
    ------
    Exception
        If a file is not whole.
    """
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        stray = any(part.startswith(".") for part in path.relative_to(out).parts)
        if stray and (path.suffix == ".lock" or not hidden):
            continue
        if path.name == "embeddings.lance":
            found[name] = _answers(path.parent)
        elif (path / "cache.json").exists() and (path / "index.jsonl").exists():
            found |= _log_mels(path)
        elif path.is_file() and (stray or not UNLISTED & _suffixes(path)):
            found[name] = _content(path)
    return found


def _suffixes(path: Path) -> set[str]:
    return {Path(part).suffix or part for part in path.parts}


def _content(path: Path) -> Any:
    unread = path.name.startswith(".") or path.name in ("state.safetensors", "run.json")
    if unread or path.suffix in UNREAD:
        return path.stat().st_size > 0
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    if path.suffix == ".json":
        return _steady(json.loads(path.read_text()))
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(path.read_text(), newline=""))
        return [{name: row[name] for name in row if name not in VOLATILE} for row in rows]
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".parquet":
        return _rows(path)
    return path.read_bytes()


def _steady(value: Any) -> Any:
    """JSON without what differs between two runs."""
    if isinstance(value, dict):
        return {name: _steady(part) for name, part in value.items() if name not in VOLATILE}
    return [_steady(part) for part in value] if isinstance(value, list) else value


def _rows(path: Path) -> dict[str, Any]:
    from patchifier import library

    found = library.read(path)
    return {"paths": found.paths, "vectors": found.vectors}


def _answers(folder: Path) -> list[Any]:
    """What an index answers about two songs."""
    from patchifier.library import search

    index = search.Index.open(folder)
    songs = [str(home() / "songs" / f"{number:02d}.wav") for number in (0, 17)]
    return [
        [(row.path, row.score) for row in index.similar(song, 5)]
        for song in songs
        if index.filter(search.Filter(path=song))
    ]


def _log_mels(folder: Path) -> dict[str, Any]:
    found = Cache(folder)
    clips = enumerate(found.clips)
    return {f"{folder.name}/{clip.id}": (clip, found.log_mel(place)) for place, clip in clips}


def same(found: Any, wanted: Any, *, exact: bool) -> bool:
    """Whether two contents are the same; numbers to 1e-5 unless exact."""
    if isinstance(wanted, dict):
        keys = isinstance(found, dict) and found.keys() == wanted.keys()
        return keys and all(same(found[key], wanted[key], exact=exact) for key in wanted)
    if isinstance(wanted, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(wanted):
            return False
        return all(same(one, other, exact=exact) for one, other in zip(found, wanted, strict=True))
    try:
        one, other = np.asarray(found, float), np.asarray(wanted, float)
        return np.allclose(one, other, rtol=0, atol=0 if exact else 1e-5, equal_nan=True)
    except (TypeError, ValueError):
        return found == wanted


def fault_so_far(command: Command, folder: Path) -> str:
    """What is wrong with what an unfinished command left: torn files, an old result that is gone."""
    try:
        found = contents(folder / "out", hidden=False)
    except Exception as error:  # whatever a torn file raises
        return f"a torn file ({type(error).__name__}: {error})"
    if not command.before:
        return ""
    whole = [contents(undisturbed(line)[0] / "out") for line in (command.before, command.line)]
    kept = [{name: found.get(name) for name in each} for each in whole]
    if any(same(one, other, exact=False) for one, other in zip(kept, whole, strict=True)):
        return ""
    return "neither the old result nor the new one is there"


def fault_of_result(command: Command, folder: Path) -> str:
    """What is wrong with the result of a command; empty if nothing is."""
    wanted = contents(undisturbed(command.line)[0] / "out")
    try:
        found = contents(folder / "out")
    except Exception as error:  # whatever a torn file raises
        return f"the result cannot be read ({type(error).__name__}: {error})"
    if found.keys() != wanted.keys():
        return f"files {sorted(found.keys() ^ wanted.keys())} are left or missing"
    differ = [name for name in wanted if not same(found[name], wanted[name], exact=command.exact)]
    return f"{', '.join(differ)}: other content" if differ else ""


# --- many at once ---


def side_by_side(case: Callable[[int], Result], count: int) -> Result:
    """Run cases two at a time and add up what came of them."""
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(case, range(count)))
    total = Result()
    for each in results:
        total.inputs += each.inputs
        total.injected += each.injected
        total.lost += each.lost
    return total
