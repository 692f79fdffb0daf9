"""Flags -> functions -> files. The only part that prints.

Exit codes: 0 done; 1 done, but inputs were skipped or what was checked is not sound; 2 the request makes no sense; 3 unexpected failure;
130 interrupted, work saved.
torch and everything heavy is imported when a command runs, not for ``--help``.
"""

import errno
import io
import logging
import re
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import jsonargparse

import patchifier
from patchifier.cli import judging, looking, training, vectors
from patchifier.cli.flags import Flags
from patchifier.config import RequestError
from patchifier.extras import EXTRAS, how_to_install

DENIED = {  # what the system may say of a place, and what can be done about it
    errno.EACCES: "change its rights",
    errno.EPERM: "change its rights",
    errno.EROFS: "mount it for writing",
    errno.ENOSPC: "make room, and run this again",
    errno.EDQUOT: "make room, and run this again",
}
REQUIRED = ("out", "onnx")  # options that must be given; what else must be is an argument
COMMANDS: dict[str, Callable[[Flags], int]] = (
    training.COMMANDS | vectors.COMMANDS | judging.COMMANDS | looking.COMMANDS
)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    flags = parser().parse_args(argv, defaults=False).as_dict()
    command = flags["subcommand"]
    try:
        return COMMANDS[command](flags.get(command) or {})
    except RequestError as error:
        print(f"patchifier {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            return _fault(command)
        how = how_to_install(package)
        print(
            f"patchifier {command}: this needs {package}, which is not installed: {how}.",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        if error.errno not in DENIED:
            return _fault(command)
        place = (
            f"{error.filename} cannot be read or written"
            if error.filename
            else "the output cannot be written"
        )
        print(
            f"patchifier {command}: {place} ({error.strerror}): choose another place, or {DENIED[error.errno]}.",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        if (
            type(error).__name__ == "Interrupted"
        ):  # of patchifier.train.run, which --help must not import
            print(f"\npatchifier {command}: {error}", file=sys.stderr)
            return 130
        return _fault(command)


def _fault(command: str) -> int:
    traceback.print_exc()
    print(
        f"patchifier {command}: this is a fault of patchifier, please report it with the lines above.",
        file=sys.stderr,
    )
    return 3


class Parser(jsonargparse.ArgumentParser):
    """Says in a line what is wrong with a command."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave with exit code 2."""
        missing = re.search(r"the following arguments are required: (\w+)\.(.+)", message)
        if missing:
            command, names = (
                missing[1],
                [name.rpartition(".")[2] for name in missing[2].split(", ")],
            )
            named = " and ".join(
                f"--{name}" if name in REQUIRED else name.upper() for name in names
            )
            self.exit(
                2, f"patchifier {command}: {named} is missing: see 'patchifier {command} --help'.\n"
            )
        super().error(message, ex)


def parser() -> jsonargparse.ArgumentParser:
    """Build the parser of all commands."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    root = Parser(
        prog="patchifier",
        description="Music as sequences of spectrogram patches.",
        version=patchifier.__version__,
        allow_abbrev=False,
    )
    commands = root.add_subcommands(required=True, metavar="COMMAND", title="commands")
    for part in (training, vectors, judging, looking):
        part.add(commands)
    return root


def script() -> None:
    """Entry point of the ``patchifier`` command. Names of files, in and out, may be any bytes."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # None, if it is closed
            stream.reconfigure(errors=errors)
    sys.exit(main())
