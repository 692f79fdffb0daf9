"""A file on its way to its place: beside it, checked, renamed, set aside."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from patchifier.config import RequestError

if TYPE_CHECKING:  # the package that holds it imports torch
    from patchifier.datasets.sheet import Remote

Progress = Callable[[int, int, str], None]
CHUNK_B = 2**20


def part_of(path: Path) -> Path:
    """What there is of a file that is not finished."""
    return path.with_name(f"{path.name}.part")


def origin_of(part: Path) -> Path:
    """Where those bytes came from."""
    return part.with_name(f"{part.name}.json")


def discard(part: Path) -> None:
    """Forget what there is of a file."""
    part.unlink(missing_ok=True)
    origin_of(part).unlink(missing_ok=True)


def finish(part: Path, path: Path) -> None:
    """Put a whole file in its place."""
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(path)
    discard(part)


def write_whole(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def set_aside(path: Path) -> Path:
    """Rename a file to one that ends in .damaged (.damaged-2 ...), never over another."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    path.replace(aside)
    return aside


def sha256(path: Path, progress: Progress) -> str:
    """Checksum of a file, in hexadecimal."""
    digest, total_b, done_b = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_B):
            digest.update(chunk)
            done_b += len(chunk)
            show(progress, done_b, total_b, f"checking {path.name}")
    return digest.hexdigest()


def fault(path: Path, remote: "Remote", progress: Progress) -> str:
    """In which way a file is not the one that is published; empty if it is, as far as anybody knows."""
    if not path.is_file():
        raise RequestError(
            f"{path} is no regular file, expected the published file of this name: move it away."
        )
    size_b, wanted = path.stat().st_size, remote.sha256.lower()
    if remote.size_b is not None and size_b != remote.size_b:
        return f"is {size_b:,} bytes long, expected {remote.size_b:,}"
    if not size_b and remote.size_b is None:
        return "is empty"
    found = sha256(path, progress) if wanted else ""
    return f"has sha256 {found}, expected {wanted}" if found != wanted else ""


def show(progress: Progress, done_b: int, total_b: int, note: str) -> None:
    """Report megabytes; done equals total at the very end alone."""
    total = max(1, -(-total_b // 10**6))
    progress(total if done_b >= total_b else min(done_b // 10**6, total - 1), total, note)
