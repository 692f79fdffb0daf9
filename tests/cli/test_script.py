"""The command as a process: what is on its streams, and what ends it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests import ROOT

HEAD = """
import atexit, os, signal, subprocess, sys, time
from pathlib import Path
from patchifier import cli, jobs
from patchifier.cli.command import Outcome
from patchifier.io import write_text

def info() -> Outcome:
    '''Say nothing.'''
"""
TAIL = """
    return Outcome({"done": True}, "done")

cli.COMMANDS["info"] = info
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    cli.script()
"""


@pytest.fixture
def start(tmp_path: Path, child_environment: dict):
    """Start 'patchifier info' with another body, in an empty folder."""

    def start(body: str, *words: str, **options) -> subprocess.Popen:
        (tmp_path / "script.py").write_text(f"{HEAD}    {body}\n{TAIL}")
        command = [sys.executable, str(tmp_path / "script.py"), "info", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(
            command, cwd=tmp_path, env=child_environment, text=True, bufsize=1, **pipes
        )

    return start


def test_what_libraries_and_other_processes_print_is_not_in_the_json(start) -> None:
    body = "os.write(1, b'a decoder\\n'); subprocess.run(['echo', 'a worker'])"
    out, err = start(body, "--json").communicate()
    assert json.loads(out) == {"done": True}
    assert {"a decoder", "a worker"} <= set(err.splitlines())


@pytest.mark.parametrize("word", ["--json", "--help"])
def test_a_reader_that_has_left_is_no_error(start, word: str) -> None:
    process = start("sys.stdin.read()", word, stdin=subprocess.PIPE)
    process.stdout.close()
    process.stdin.close()
    assert (process.stderr.read(), process.wait()) == ("", 0)


def test_a_closed_standard_error_is_an_interruption(start) -> None:
    process = start("sys.stdin.read(); cli._complain('x'); print(file=sys.stderr)", stdin=-1)
    process.stderr.close()
    process.stdin.close()
    assert (process.stdout.read(), process.wait()) == ("done\n", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_saves_the_work_as_ctrl_c_does(start, number: int, tmp_path: Path) -> None:
    body = (
        "try: print('ready', file=sys.stderr); time.sleep(60)\n    "
        "finally: sys.stdin.readline(); Path('saved').touch()"
    )
    process = start(body, stdin=subprocess.PIPE)
    assert process.stderr.readline() == "ready\n"
    process.send_signal(number)
    assert [process.stderr.readline() for _ in range(2)] == ["\n", "stopping ...\n"]
    assert not (tmp_path / "saved").exists()
    process.stdin.close()
    assert process.stderr.read() == "\ninterrupted\n"
    assert process.wait() == 130
    assert (tmp_path / "saved").exists()


AT_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            signal.raise_signal(int(os.environ["INTERRUPT_BY"]))

sys.meta_path.insert(0, Interrupting())
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
"""


def entry_point() -> str:
    """Code that the installed command runs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["scripts"]["patchifier"].split(":")
    return f"from {module} import {name}; {name}()"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("program", [("-m", "patchifier"), ("-c", entry_point())])
@pytest.mark.parametrize(
    "module",
    [
        "patchifier.cli",
        "patchifier.config",
        "jsonargparse",
        "patchifier.cli.search",
        "numpy",
        "patchifier.library.search",
        "pyarrow",
    ],
)
def test_ctrl_c_during_imports_prints_no_traceback(
    module: str, program: tuple, number: int, tmp_path: Path, child_environment: dict
) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT)
    places = os.pathsep.join([str(tmp_path), child_environment["PYTHONPATH"]])
    found = subprocess.run(
        [sys.executable, *program, "similar", "none.parquet", "--to", "song.mp3"],
        env=child_environment
        | {"PYTHONPATH": places, "INTERRUPT_AT": module, "INTERRUPT_BY": str(int(number))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr.replace("stopping ...", "").split() == ["interrupted"]


def test_an_interruption_that_a_module_calls_something_else_is_one(start) -> None:
    body = (
        "try: signal.raise_signal(signal.SIGINT)\n    "
        "except KeyboardInterrupt: raise ImportError('numpy._core failed to import') from None"
    )
    process = start(body)
    _, err = process.communicate()
    assert (process.returncode, err.split()) == (130, ["stopping", "...", "interrupted"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_cuts_no_clean_up_short(start, number: int, tmp_path: Path) -> None:
    body = (
        "wait = lambda word: (print(word, file=sys.stderr, flush=True), sys.stdin.readline())\n    "
        "atexit.register(wait, 'leaving')\n    "
        "try: print('ready', file=sys.stderr); time.sleep(60)\n    "
        "finally: wait('cleaning'); Path('saved').touch()"
    )
    process = start(body, stdin=subprocess.PIPE)
    for word, answer in (("ready", ""), ("cleaning", "\n"), ("leaving", "\n")):
        read = iter(process.stderr.readline, f"{word}\n")
        shown = [line for line in read if line != "\n"]
        assert shown == {"cleaning": ["stopping ...\n"], "leaving": ["interrupted\n"]}.get(word, [])
        process.send_signal(number)
        process.stdin.write(answer)
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait() == 130
    assert (tmp_path / "saved").exists()


def test_a_second_ctrl_c_ends_processes_that_are_waited_for(start) -> None:
    work = "__import__('os').write(2, b'ready\\n') and __import__('time').sleep(300)"
    body = (
        "jobs.GRACE_S, end = 300, jobs._end\n    "
        "jobs._end = lambda pool: (print('ending', file=sys.stderr, flush=True), end(pool))\n    "
        f"list(jobs.run(eval, [{{}}], workers=1, shared={work!r}))"
    )
    process = start(body)
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert [process.stderr.readline() for _ in range(3)] == ["\n", "stopping ...\n", "ending\n"]
    started_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == "\ninterrupted\n"
    assert process.wait() == 130
    assert time.monotonic() - started_s < 60


def test_a_clean_up_that_does_not_end_is_ended_by_a_later_ctrl_c(start) -> None:
    body = (
        "cli.PATIENCE_S = 0\n    "
        "try: print('ready', file=sys.stderr); time.sleep(300)\n    "
        "finally: print('cleaning', file=sys.stderr, flush=True); time.sleep(300)"
    )
    process = start(body)
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert [process.stderr.readline() for _ in range(3)] == ["\n", "stopping ...\n", "cleaning\n"]
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == "\ninterrupted\n"
    assert process.wait() == 130


def test_a_file_above_the_limit_of_sizes_is_one_line(start) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    process = start("write_text(Path('x'), 'x' * 10_000)", preexec_fn=limit)
    _, err = process.communicate()
    assert process.returncode == 2
    assert len(err.splitlines()) == 1
    assert "raise the limit of file sizes (ulimit -f)" in err
    assert not os.path.exists("x")
