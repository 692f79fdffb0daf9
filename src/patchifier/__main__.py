"""The ``patchifier`` command, also ``python -m patchifier``, which torchrun can start.

Worker processes import this module: the command line is imported when it runs.
"""


def main() -> None:
    """Run the command line."""
    from patchifier.cli import script

    script()


if __name__ == "__main__":
    main()
