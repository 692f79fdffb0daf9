"""Make every figure of the site, or those that are named."""

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.figures import architecture, commands, intervals, leaks, masking, vectors

OUT = Path(__file__).parents[2] / "docs" / "made"
FIGURES: dict[str, Callable[[Path], None]] = {
    "architecture": architecture.make,
    "masking": masking.make,
    "vectors": vectors.make,
    "intervals": intervals.make,
    "leaks": leaks.make,
    "commands": commands.make,
}


def main(names: list[str], out: Path = OUT) -> None:
    """Write the figures into a folder.

    `names` chooses some; "--missing" makes those that are not there, or whose script changed.
    """
    (out / "root" / "sounds").mkdir(parents=True, exist_ok=True)
    missing = "--missing" in names
    for name in [name for name in names if name != "--missing"] or FIGURES:
        stamp, digest = out / f".{name}", _digest(name)
        if missing and name != "commands" and stamp.exists() and stamp.read_text() == digest:
            continue
        start = time.monotonic()
        FIGURES[name](out)
        stamp.write_text(digest)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


def _digest(name: str) -> str:
    """Hash of the script of a figure: with another one it is made again."""
    scripts = [Path(__file__).with_name(f"{part}.py") for part in (name, "style")]
    return hashlib.sha256(b"".join(script.read_bytes() for script in scripts)).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
