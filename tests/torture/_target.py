"""What a fuzzer runs in a process of its own.

    python -m tests.torture._target decode CORPUS -max_total_time=60

Behind the target and a folder of files come options of libFuzzer.
"""

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["patchifier"]):
    from patchifier import audio, containers
    from patchifier.config import RequestError


def parse(path: Path) -> None:
    """Our parsers count a length that can be, and bytes that are there."""
    size = path.stat().st_size
    for stream in containers.examine(path):
        assert 0 <= stream.first <= stream.end <= size, stream
        length_s = stream.length_s or 0.0
        assert math.isfinite(length_s), stream
        assert length_s >= 0, stream
    assert len(containers.payload_digest(path)) == 16


def decode(path: Path) -> None:
    """A file gives finite float32 or is refused by name."""
    refused = str(path)
    try:
        for block in audio.blocks(path):
            assert block.dtype == np.float32
            assert np.isfinite(block).all()
    except RequestError as error:
        refused = str(error)
    assert str(path) in refused, refused
    assert len(refused.splitlines()) == 1, refused


TARGETS: dict[str, Callable[[Path], None]] = {"parse": parse, "decode": decode}


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.ogg"

        def one(data: bytes) -> None:
            path.write_bytes(data)
            target(path)

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
