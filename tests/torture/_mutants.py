"""Mutations of bytes, and thousands of mutants read by worker processes as a job reads files."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from patchifier import jobs
from patchifier.sandbox import variable
from tests.torture import Result

Mutation = Callable[[bytes, np.random.Generator], bytes]
Check = Callable[[Any, int, Path, np.random.Generator], str]

EXTREMES = (0, 1, 2, 2**7, 2**15, 2**31, 2**63, -1, -2, 2**7 - 1, 2**15 - 1, 2**31 - 1, 2**63 - 1)
HEAD_B, TAIL_B = 256, 1024  # where most formats have their numbers
BATCH = 25  # mutants that a worker process gets at once
LIMITS = {"memory_mb": "512", "idle_s": "120"}  # of a worker process
SLOWEST_S = 30.0  # of the processor, for one mutant


# --- mutations ---


def place(data: bytes, draw: np.random.Generator) -> int:
    """Draw an offset: half of them lie in the head, a quarter in the tail."""
    where, size = draw.integers(4), max(1, len(data))
    first, last = 0, size
    if where < 2:
        last = min(size, HEAD_B)
    elif where == 2:
        first = max(0, size - TAIL_B)
    return int(draw.integers(first, last))


def _span(data: bytes, draw: np.random.Generator) -> tuple[int, int]:
    """Draw where a run of bytes begins and ends; most runs are short."""
    first = place(data, draw)
    return first, min(len(data), first + int(2 ** draw.uniform(0, 12)))


def flip_bits(data: bytes, draw: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.integers(1, 17)):
        changed[place(data, draw)] ^= 1 << int(draw.integers(8))
    return bytes(changed)


def overwrite(data: bytes, draw: np.random.Generator) -> bytes:
    """Replace a run by zeros, ones or random bytes."""
    first, end = _span(data, draw)
    fills = (bytes(end - first), b"\xff" * (end - first), draw.bytes(end - first))
    return data[:first] + fills[draw.integers(3)] + data[end:]


def cut(data: bytes, draw: np.random.Generator) -> bytes:
    return data[: place(data, draw)]


def insert(data: bytes, draw: np.random.Generator) -> bytes:
    at, end = _span(data, draw)
    return data[:at] + draw.bytes(end - at) + data[at:]


def remove(data: bytes, draw: np.random.Generator) -> bytes:
    first, end = _span(data, draw)
    return data[:first] + data[end:]


def repeat(data: bytes, draw: np.random.Generator) -> bytes:
    first, end = _span(data, draw)
    return data[:end] + data[first:end] * int(draw.integers(1, 9)) + data[end:]


def swap(data: bytes, draw: np.random.Generator) -> bytes:
    a, b, c = sorted(place(data, draw) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def exaggerate(data: bytes, draw: np.random.Generator) -> bytes:
    """Set a whole number of 1, 2, 4 or 8 bytes to an extreme value."""
    at, width = place(data, draw), int(2 ** draw.integers(4))
    value = EXTREMES[draw.integers(len(EXTREMES))] % 2 ** (8 * width)
    order = ("little", "big")[draw.integers(2)]
    return data[:at] + value.to_bytes(width, order) + data[at + width :]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, overwrite, cut, insert, remove, repeat, swap, exaggerate, exaggerate,
)  # fmt: skip


def mutate(data: bytes, draw: np.random.Generator) -> bytes:
    """One to three mutations."""
    for _ in range(draw.integers(1, 4)):
        data = MUTATIONS[draw.integers(len(MUTATIONS))](data or b"\0", draw)
    return data


def splice(one: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    """The beginning of a file, then the end of another."""
    return one[: place(one, draw)] + other[place(other, draw) :]


# --- many of them ---


def unclear(error: Exception, *names: str) -> str:
    """What is wrong with a message that refuses a file: it is one line and names the file."""
    text = str(error)
    named = any(name in text for name in names)
    return "" if named and len(text.splitlines()) == 1 else f"refused with {text!r}"


class _Sent(NamedTuple):
    """What each worker process gets."""

    check: Check
    shared: Any
    folder: Path
    seed: int


def survive(
    check: Check, shared: Any, folder: Path, count: int, draw: np.random.Generator
) -> Result:
    """Let worker processes check `count` mutants.

    `check(shared, number, folder, draw)` makes the mutant of a number in an empty folder and reads
    it. It returns what is wrong, or nothing. A process that dies, hangs, runs out of memory or
    writes to the outputs of the job is a fault, too.
    """
    sent = _Sent(check, shared, folder, int(draw.integers(2**32)))
    numbers = [str(number) for number in range(count)]
    batches = [numbers[at : at + BATCH] for at in range(0, count, BATCH)]
    limits = {variable(name): value for name, value in LIMITS.items()}
    with mock.patch.dict(os.environ, limits), captured(folder / "output") as output:
        found = list(jobs.run(_attempt_all, batches, workers=os.cpu_count() or 1, shared=sent))
    lost = [f"mutant {number}: {words[:300]}" for number, words in enumerate(found) if words]
    if words := output.read_text(errors="replace").strip():
        lost.append(f"on the outputs of the job: {words[:300]!r}")
    return Result(count, count, lost)


@contextlib.contextmanager
def captured(path: Path) -> Iterator[Path]:
    """Send what this process and its children write to their outputs to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with path.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield path
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, output in zip((1, 2), kept, strict=True):
            os.dup2(output, number)
            os.close(output)


def _attempt_all(sent: _Sent, names: Sequence[str]) -> list[str]:
    return [jobs.attempt(name, _one, sent, name) for name in names]


def _one(sent: _Sent, name: str) -> str:
    work, start_s = sent.folder / f"mutant-{name}", time.process_time()
    work.mkdir(exist_ok=True)  # a process that died left it
    try:
        draw = np.random.default_rng([sent.seed, int(name)])
        words = sent.check(sent.shared, int(name), work, draw)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(work)
    passed_s = time.process_time() - start_s
    return words or (f"takes {passed_s:.0f} s" if passed_s > SLOWEST_S else "")
