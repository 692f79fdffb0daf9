"""Run folders and signals that stop a run."""

import contextlib
import datetime
import os
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

import patchifier
from patchifier.config import Config, RequestError, current_form, to_dict, update
from patchifier.io import Progress, ProgressOf, has_others, parse_json, read_text, write_json
from patchifier.jobs import LOCK, folder_lock


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The user or the system asked to stop; the work so far is saved. Exit code 130."""


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event that the loop reads; a second SIGINT stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- run folders ---


def is_first() -> bool:
    """Whether this process is rank 0, which writes and prints.

    Known before the process group exists.
    """
    return all(
        int(os.environ.get(name) or 0) == 0
        for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    )


def was_restarted() -> bool:
    """Whether torchrun or SLURM has started this job again after a failure."""
    return any(
        int(os.environ.get(name) or 0) > 0
        for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )


SETTLED = ("precision", "precision test", "init", "init weights")  # facts that a resumed run keeps


class Run:
    """A run folder: ``config.json`` (valid for --config), ``run.json`` (metadata) and results.

    Of several processes only rank 0 writes; on other ranks writing does nothing. Without a config,
    all settings are in `facts`, which belong in ``run.json``. Without `resume`, an existing run is
    refused.
    """

    def __init__(
        self,
        path: str | Path,
        config: Config | None,
        *,
        resume: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.writes, self.held = Path(path), is_first(), contextlib.ExitStack()
        if self.writes:
            self._claim(config, resume or was_restarted())
        self.started_s = time.monotonic()
        self.facts: dict[str, Any] = {
            "name": self.path.name,
            "command": command(),
            "started": datetime.datetime.now().isoformat(timespec="seconds"),
        }
        self.facts |= {"machine": machine(), "versions": versions(), **(facts or {})}
        self.before = facts_of(self.path)
        self.before_s = float(self.before.get("seconds", 0.0))
        if config is not None and self.before:  # resumed, so what began it counts
            start = {name: self.facts[name] for name in ("command", "started")}
            self.facts |= {name: self.before[name] for name in start if name in self.before}
            self.facts["resumed"] = [*self.before.get("resumed", []), start]
        if config is None and self.before:
            self._require_same("kind", "by another command: name another folder")
        if "music" in self.before:  # runs of older versions lack it
            self._require_same(
                "music", f"on other clips: resume with the cache {self.before.get('cache')}"
            )
            self._require_same(
                "groups", "on clips in other groups: resume with the cache as it was"
            )
            self._require_same(
                "init weights",
                f"from {self.before.get('init', 'fresh weights')}: resume without --init",
            )

    def _require_same(self, name: str, what: str) -> None:
        if name in self.facts and self.facts[name] != self.before.get(name):
            raise RequestError(f"{self.path} was started {what}, or choose another --out.")

    def _claim(self, config: Config | None, resume: bool) -> None:
        """Make the folder a run with this config, or check that it is one."""
        old = self.path / ("run.json" if config is None else "config.json")
        if old.exists():
            if not resume:
                raise RequestError(
                    f"{self.path} holds a run already: go on with --resume, or choose another "
                    "--out."
                )
            if config is not None:
                before = update(Config(), current_form(_read(old))).without_length
                differ = _differences(to_dict(before), to_dict(config.without_length))
                if differ:
                    raise RequestError(
                        f"{self.path} was started with other settings: {'; '.join(differ)}. "
                        f"Resume with --config {old}, or choose another --out."
                    )
        else:
            refuse_other_files(self.path)
        if config is None:
            self.path.mkdir(parents=True, exist_ok=True)
        else:
            write_json(old, to_dict(config))

    def write_facts(self, state: str, **more: Any) -> None:
        """Write ``run.json``; seconds add up over resumed parts."""
        seconds = round(self.before_s + time.monotonic() - self.started_s, 1)
        self.facts |= {"state": state, "seconds": seconds, **more}
        if self.writes:
            write_json(self.path / "run.json", self.facts)

    def keep_time(self) -> None:
        """Write the seconds so far, so that a kill loses no more than those since the last call."""
        self.write_facts("running")

    def timed(self, progress: ProgressOf) -> ProgressOf:
        """Show progress, and write the seconds so far when a part begins."""

        def show(title: str) -> Progress:
            self.keep_time()
            return progress(title)

        return show

    def __enter__(self) -> "Run":
        """Record that the run is under way.

        Settled facts of an earlier start are kept, even if this one is killed at once.
        """
        if self.writes:
            self.held.enter_context(folder_lock(self.path, "run"))
        kept = {name: self.before[name] for name in SETTLED if name in self.before}
        self.facts = kept | self.facts
        self.write_facts("running")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record how it ended."""
        with self.held:
            state, more = _ending(kind, error)
            self.write_facts(state, **more)


def refuse_other_files(path: Path) -> None:
    """Refuse a place for a new run that is a file, is below one, or holds files of others."""
    place = next(each for each in (path, *path.parents) if each.exists())
    if not place.is_dir():
        raise RequestError(f"{place} is a file, expected a folder: choose another --out.")
    if has_others(path, "config.json", "run.json", lock=LOCK):
        raise RequestError(f"{path} exists and is not a run: choose another --out.")


def facts_of(path: Path) -> dict[str, Any]:
    """What ``run.json`` of a run folder says; empty if there is none."""
    return _read(path / "run.json") if (path / "run.json").exists() else {}


def _ending(
    kind: type[BaseException] | None, error: BaseException | None
) -> tuple[str, dict[str, str]]:
    """State of a run that ends with this error, and further facts for its run.json."""
    if kind is None:
        return "finished", {}
    if kind in (Interrupted, KeyboardInterrupt):
        return "interrupted", {}
    return "failed", {"error": f"{kind.__name__}: {error}"}


@contextlib.contextmanager
def continued(path: Path, part: str) -> Iterator[Callable[[], None]]:
    """Go on with a run that has just ended; its state is then how this part of it ends.

    The folder is locked meanwhile, and may lack ``run.json``. An error names the part. Yields a
    function that writes the seconds so far.
    """
    file = path / "run.json"
    with folder_lock(path, "run"):
        before = _read(file) if file.exists() else {}
        started_s = time.monotonic()

        def write(state: str, more: Mapping[str, Any]) -> None:
            if before and is_first():
                seconds = float(before.get("seconds", 0.0)) + time.monotonic() - started_s
                write_json(file, before | {"state": state, "seconds": round(seconds, 1), **more})

        write("running", {})
        try:
            yield lambda: write("running", {})
        except BaseException as error:
            state, more = _ending(type(error), error)
            write(state, more and {"error": f"{part}: {more['error']}"})
            raise
        write("finished", {})


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Name each field that differs between two nested dictionaries, with both values."""
    if not isinstance(before, dict):
        return [f"{name} was {before!r}, now {now!r}"] if before != now else []
    found = []
    for key in before:
        found += _differences(before[key], now[key], f"{name}.{key}" if name else key)
    return found


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run folder."""
    try:
        return dict(parse_json(read_text(path)))
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(
            f"{path} cannot be read ({error}): copy the run again, or choose another --out."
        ) from error


def command() -> str:
    """Return the command line of this process, the program by its name alone."""
    program = Path(sys.argv[0]).name
    return shlex.join([program.replace("__main__.py", "patchifier"), *sys.argv[1:]])


def processor() -> str:
    """Return the processor's name."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        name = next(named, name)
    return name


def machine() -> str:
    """Processor, cores and system in a few words."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{processor()}, {threads}{gpu}, {platform.system()}"


def versions() -> dict[str, str]:
    """Versions on which bits depend."""
    ours = {"patchifier": patchifier.__version__, "python": platform.python_version()}
    return {**ours, "torch": torch.__version__, "numpy": np.__version__}
