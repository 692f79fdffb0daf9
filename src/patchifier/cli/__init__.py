"""Flags -> functions -> files. The only part that prints.

A command is a function in the file of its group. Exit codes: 0 done; 1 done, but inputs were
skipped or a check failed; 2 the request cannot be met; 3 unexpected failure; 130 interrupted, work
saved. torch and everything heavy is imported when a command runs, not for ``--help``.
"""

import _thread
import contextlib
import difflib
import errno
import io
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TextIO

import patchifier
from patchifier.cli import data, evaluate, library, listen, models, search, train
from patchifier.cli.command import Command, parse
from patchifier.cli.help import examples
from patchifier.config import RequestError
from patchifier.extras import EXTRAS, how_to_install

GROUPS: dict[str, tuple[Command, ...]] = {
    "data": (data.prepare, data.fetch, data.check),
    "train": (train.pretrain, train.finetune, train.watch),
    "evaluate": (
        evaluate.compare,
        evaluate.leaks,
        evaluate.report,
        evaluate.reconstruct,
        evaluate.demo,
        evaluate.paper,
    ),
    "library": (library.embed, library.distance, library.teach, library.predict, library.tag),
    "search": (search.similar, search.path, search.mix, search.duplicates, search.index),
    "listen": (listen.app, listen.serve, listen.navidrome),
    "models": (models.info, models.export),
}
PURPOSES = {
    "data": "audio to log-mels, and published data sets",
    "train": "a model from music alone, or on a task",
    "evaluate": "models on tasks",
    "library": "vectors, labels and tags of your music",
    "search": "neighbours, playlists and duplicates",
    "listen": "a page, and an API for programs",
    "models": "what a model, cache or table is; other formats",
}
FIRST_STEPS = (
    "embed ~/Music --out music.parquet",
    "similar music.parquet --to song.mp3",
    "app music.parquet",
)
EXIT_CODES = (
    "0 done; 1 done, but inputs were skipped or a check failed; 2 the request cannot be met;",
    "3 a fault of patchifier; 130 interrupted, work saved.",
)
COMMANDS = {command.__name__: command for group in GROUPS.values() for command in group}
RENAMED = {("similar", "--duplicates"): ("duplicates", "--threshold")}  # old flags, until 1.0
PATIENCE_S = 5.0  # with the clean-up of an interrupted command, before a signal ends it
RESUMED = ("prepare", "fetch", "embed", "predict", "paper")  # go on when they are run again
DENIED = {  # what the system may say of a place, and what can be done about it
    errno.EACCES: "change its rights",
    errno.EPERM: "change its rights",
    errno.EROFS: "mount it for writing",
    errno.ENOSPC: "make room, and run this again",
    errno.EDQUOT: "make room, and run this again",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), and run this again",
}


def main(argv: Sequence[str] | None = None, *, handle_signals: bool = False) -> int:
    """Run a command and return its exit code; of a process of its own if it handles signals."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    sys.unraisablehook, threading.excepthook = _unraisable, _thread_failed
    try:
        if handle_signals:
            _handle_signals()
        return _run(words)
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, SIGTERM; nobody reads the progress
        return _interrupted(name)
    except Exception as error:
        return _failed(name, error)


def _interrupted(name: str) -> int:
    _ignore_signals()
    hint = ": run the same command again, and it goes on" if name in RESUMED else ""
    _complain(f"\ninterrupted{hint}")
    return 130


def _run(words: list[str]) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        _show(overview())
        return 0
    if words[0] == "--version":
        _show(f"patchifier {patchifier.__version__}")
        return 0
    if words[0] in GROUPS and words[1:] in ([], ["-h"], ["--help"]):
        _show(group_help(words[0]))
        return 0
    name, *rest = _renamed(words)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        _complain(
            f"patchifier: there is no command '{name}': {hint}'patchifier' lists all commands."
        )
        return 2
    flags, as_json = parse(COMMANDS[name], rest)
    from patchifier.jobs import memory_errors

    with memory_errors():
        outcome = COMMANDS[name](**flags)
    if outcome is None:  # of a training process that is not the first
        return 0
    _show(json.dumps(outcome.results, indent=1) if as_json else outcome.text)
    for note in outcome.notes:
        _complain(note)
    return outcome.code


def overview() -> str:
    """List all commands by group, one line each."""
    lines = ["usage: patchifier COMMAND ...", "", "Music as vectors. First steps:", ""]
    lines += [f"  $ patchifier {step}" for step in FIRST_STEPS]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *map(_summary, group)]
    lines += ["", "'patchifier COMMAND --help' lists the flags of a command, with examples;"]
    lines += ["'patchifier GROUP' the commands of a group.", "", "exit codes:", *EXIT_CODES]
    return "\n".join(lines)


def group_help(title: str) -> str:
    """List the commands of a group with their first example."""
    lines = [f"{title}: {PURPOSES[title]}"]
    for command in GROUPS[title]:
        example = next((line for line in examples(command).splitlines() if "$ " in line), "")
        lines += ["", _summary(command), f"{'':<15}{example.strip()}"]
    return "\n".join([*lines, "", "'patchifier COMMAND --help' lists the flags of a command."])


def _summary(command: Command) -> str:
    """Name of a command and the first line of its docstring."""
    return f"  {command.__name__:<13}{(command.__doc__ or '').partition(chr(10))[0]}"


CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}
"""Characters in names and tags that would steer a terminal, and how they are printed."""


def _show(text: str, *, end: str = "\n") -> None:
    """Print a result; a reader that has left, such as ``head``, does not need it."""
    try:
        print(text.translate(CONTROLS), end=end, flush=True)
    except BrokenPipeError:
        _mute(sys.stdout)


def _complain(text: str) -> None:
    try:
        print(text.translate(CONTROLS), file=sys.stderr, flush=True)
    except BrokenPipeError:
        _mute(sys.stderr)


def _mute(stream: TextIO) -> None:
    """Let a stream without a reader write to nowhere, so that closing it is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _renamed(words: list[str]) -> list[str]:
    """Replace an old flag, and print the new one."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if (words[0], flag) in RENAMED:
            name, new = RENAMED[words[0], flag]
            _complain(f"patchifier: '{words[0]} {flag}' is now '{name} {new}'.")
            return [name, *words[1:place], f"{new}{equals}{value}", *words[place + 1 :]]
    if words[0] == "similar" and "--playlist" in words:
        return _mix_of(words[1:])
    return words


def _mix_of(words: list[str]) -> list[str]:
    """Return the command that `similar --playlist` has become."""
    _complain("patchifier: 'similar --to FILE --playlist' is now 'mix --seeds FILE --drift 1'.")
    new, rest = ["mix", "--drift=1", "--count=10"], iter(words)
    for word in rest:
        if word == "--to":
            word = f"--to={next(rest, '')}"
        if word != "--playlist":
            new.append(re.sub("^--to=", "--seeds=", word))
    return new


def _failed(name: str, error: Exception) -> int:
    """Print why a command failed and return its exit code."""
    if type(error).__name__ == "Interrupted":  # of train.run, which --help must not import
        _ignore_signals()
        _complain(f"\npatchifier {name}: {error}")
        return 130
    if _stopped_s:  # modules in C make an ImportError of an interruption
        return _interrupted(name)
    if reason := _refusal(error):
        _complain(f"patchifier {name}: {reason}")
        return 2
    traceback.print_exc()
    _complain(
        f"patchifier {name}: this is a fault of patchifier, please report it with the lines above."
    )
    return 3


def _refusal(error: Exception) -> str:
    """Explain an error that the user can mend; empty for a fault of this package."""
    if isinstance(error, RequestError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            return ""
        return f"this needs {package}, which is not installed: {how_to_install(package)}."
    if isinstance(error, MemoryError):
        return "there is not enough memory: end other programs, or take smaller batches."
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "there are too few file handles: raise their limit (ulimit -n), and run this again."
    if isinstance(error, NotADirectoryError | FileExistsError) and error.filename:
        return (
            f"{error.filename} cannot be made a folder, for it, or what it lies in, is a file: "
            "choose another place."
        )
    if isinstance(error, IsADirectoryError) and error.filename:
        return f"{error.filename} is a folder, expected the name of a file: choose another name."
    if isinstance(error, OSError) and error.errno in DENIED:
        place = "the output cannot be written"
        if error.filename:
            place = f"{error.filename} cannot be read or written"
        remedy = DENIED[error.errno]
        return f"{place} ({error.strerror}): choose another place, or {remedy}."
    return ""


_stopped_s = 0.0  # when the last interruption began


def _keep_stdout() -> None:
    """Keep standard output for results.

    What libraries and worker processes write to descriptor 1 goes to standard error.
    """
    if sys.stdout is None or sys.stderr is None:
        return  # closed
    own = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding)


def _unraisable(ignored: "sys.UnraisableHookArgs") -> None:
    """Pass an interruption on that came inside a destructor, where Python ignores it."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(0.02, _thread.interrupt_main).start()  # when this call has ended
    else:
        sys.__unraisablehook__(ignored)


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Say in a line that a thread could not write, such as TensorBoard's on a full disk."""
    if isinstance(failed.exc_value, OSError):
        _complain(f"a log cannot be written ({failed.exc_value.strerror}): it is incomplete.")
    else:
        threading.__excepthook__(failed)


def _interrupt(number: int, frame: object) -> None:
    """Stop the command, and say so at once, for its processes may take seconds to end.

    A signal during the clean-up ends these processes, and after `PATIENCE_S` this one too.
    """
    global _stopped_s
    if not _is_stopping():
        _stopped_s = time.monotonic()
        _write(b"\nstopping ...\n")
        raise KeyboardInterrupt
    for process in multiprocessing.active_children():
        process.kill()
    if time.monotonic() - _stopped_s > PATIENCE_S:
        _write(b"\ninterrupted\n")
        os._exit(130)


def _is_stopping() -> bool:
    """Whether an interruption is being handled: its clean-up is at work."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _write(line: bytes) -> None:
    """Write to standard error from a handler, which may have interrupted a print."""
    with contextlib.suppress(OSError):
        os.write(2, line)


def _ignore_signals() -> None:
    """Let no further signal change how an interrupted command ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_IGN)


def _handle_signals() -> None:
    """Make SIGTERM and Ctrl-C interruptions."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):  # a shell may ignore it
        signal.signal(signal.SIGINT, _interrupt)


def script() -> None:
    """Run the ``patchifier`` command in a process of its own.

    Names of files, in and out, may be any bytes. SIGTERM is an interruption.
    """
    _keep_stdout()
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # None, if it is closed
            stream.reconfigure(errors=errors)
    try:
        sys.exit(main(handle_signals=True))
    finally:
        _show("", end="")  # what --help has printed
