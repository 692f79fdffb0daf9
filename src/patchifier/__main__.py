"""The ``patchifier`` command, and ``python -m patchifier``, which torchrun can start.

Worker processes import this module: the command line is imported when it runs.
"""

import os
import signal


def script() -> None:
    """Run the command. Until its modules are imported, an interruption ends it at once."""
    signal.signal(signal.SIGTERM, leave)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may ignore it
        signal.signal(signal.SIGINT, leave)
    from patchifier import cli

    cli.script()


def leave(number: int, frame: object) -> None:
    """End the process: nothing is begun yet that has to be cleaned up.

    An exception would not do: modules in C turn it into an ImportError.
    """
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


if __name__ == "__main__":
    script()
