"""What files were before their tags were written, so that every byte can be restored.

A folder beside a table, with two files for each file that was changed::

    00000.json     path, size, time of change and SHA-256 before, SHA-256 after, and the pieces
    00000.bytes    bytes that the changed file has no more

A piece is a run of bytes of the old file: either the same bytes in the new one, found at the same
place or as far away as the file grew, or bytes of ``00000.bytes``. An entry is whole before its
file is replaced, so a kill at any instant leaves a file that is as it was, or can be restored.
``writing.json`` names the file that is being replaced: what a kill leaves beside it is removed.
"""

import contextlib
import itertools
import operator
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from patchifier.audio import SUFFIXES
from patchifier.config import RequestError
from patchifier.containers import payload_digest
from patchifier.io import leftover, parse_json, read_text, replaced_file, sync, write_json
from patchifier.library.table import sha256
from patchifier.library.tags import write_tags

WRITING = "writing.json"  # names the file that is being replaced
BLOCK = 256  # bytes that are compared at once: a page of Ogg that is counted anew differs in 8
PIECE = 2**20  # bytes that are read at once; a multiple of BLOCK
# how far away the bytes lie in the new file, None if they do not; and their number
Run = tuple[int | None, int]


@dataclass(frozen=True)
class Entry:
    """A file as it was before its tags were written."""

    path: str
    size: int
    mtime_ns: int
    sha256: str  # of the file before, as size and mtime_ns
    written_sha256: str  # of the file after
    runs: tuple[Run, ...]  # where the old bytes are, in order


class Journal:
    """Entries of the files whose tags were written, in a folder that the first one makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: str | Path, values: dict[str, str]) -> None:
        """Write tags into a file, in place of it, and keep what restores it.

        Refused, with the file as it is, if its tags cannot be written, or its audio would change.
        """
        path = Path(path)
        state = path.stat()
        if not state.st_mode & stat.S_IWUSR:
            raise RequestError(f"{path}: is read-only: change its rights, or leave it out.")
        with self._replaced(path) as new:
            shutil.copy2(path, new)
            _own(new, state)
            write_tags(new, values, like=path)
            if payload_digest(new) != payload_digest(path):
                raise RequestError(
                    f"{path}: its audio would change with its tags: nothing is written."
                )
            self._add(path, new, state)

    @contextlib.contextmanager
    def _replaced(self, path: Path) -> Iterator[Path]:
        """As :func:`patchifier.io.replaced_file`; the file is named in here meanwhile."""
        self.clean()
        if other := leftover(path):
            raise RequestError(
                f"{path}: {other.name} lies beside it and is none of this command's: move it away."
            )
        note = self.folder / WRITING
        write_json(note, str(path))
        try:
            with replaced_file(path) as new:
                yield new
        finally:
            note.unlink()
            with contextlib.suppress(OSError):  # it has entries
                self.folder.rmdir()

    def clean(self) -> str:
        """Remove what a killed process left beside the file that it was about to replace.

        Returns what was removed; empty if there was nothing.
        """
        note = self.folder / WRITING
        if not note.exists():
            return ""
        removed = ""
        with contextlib.suppress(ValueError):  # damaged: it names nothing
            path = Path(str(parse_json(read_text(note))))
            if path.suffix.lower() in SUFFIXES and (new := leftover(path)):
                new.unlink()
                removed = str(new)
        note.unlink()
        return removed

    def _add(self, path: Path, new: Path, state: os.stat_result) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f"{1 + max(self._numbers(), default=-1):05d}.json"
        with (
            path.open("rb") as old,
            new.open("rb") as written,
            place.with_suffix(".bytes").open("wb") as kept,
        ):
            runs = tuple(shared_runs(old, written, kept, grown=new.stat().st_size - state.st_size))
        sync(place.with_suffix(".bytes"))
        sums = sha256(path), sha256(new)
        entry = Entry(str(path), state.st_size, state.st_mtime_ns, *sums, runs)
        write_json(place, asdict(entry))

    def _numbers(self) -> list[int]:
        """Numbers of the entries, the oldest first."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        found = (re.fullmatch(r"(\d+)\.json", name) for name in names)
        return sorted(int(match[1]) for match in found if match)

    def __len__(self) -> int:
        return len(self._numbers())

    def restore(self) -> Iterator[tuple[str, str]]:
        """Give every file its old bytes and its old time of change, the last one written first.

        Yields path and reason; the reason is empty if it is as before. Else its entry stays.
        """
        for number in reversed(self._numbers()):
            place = self.folder / f"{number:05d}.json"
            path, reason = self._restore(place)
            if not reason:
                place.unlink()
                place.with_suffix(".bytes").unlink(missing_ok=True)
            yield path, reason

    def _restore(self, place: Path) -> tuple[str, str]:
        try:
            entry = _read(place)
        except RequestError as error:
            return str(place), str(error)
        path = Path(entry.path)
        try:
            found = sha256(path)
            if found == entry.sha256:
                return entry.path, ""  # a kill came before the new file was in place
            if found != entry.written_sha256:
                return entry.path, f"{path}: was changed since its tags were written: it is left."
            with self._replaced(path) as old:
                _rebuild(path, old, entry, place.with_suffix(".bytes"))
        except OSError as error:
            return entry.path, f"{path}: cannot be restored ({error.strerror or error})."
        except RequestError as error:
            return entry.path, str(error)
        return entry.path, ""


def _read(place: Path) -> Entry:
    try:
        values = parse_json(read_text(place))
        runs = tuple(
            (None if shift is None else int(shift), int(count))
            for shift, count in values.pop("runs")
        )
        return Entry(**values, runs=runs)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(
            f"{place}: is damaged ({error}): its file cannot be restored. Delete it, and keep the "
            "tags as they are."
        ) from error


def _rebuild(path: Path, old: Path, entry: Entry, kept: Path) -> None:
    """Write what a file was to `old`."""
    with path.open("rb") as new, kept.open("rb") as bytes_, old.open("wb") as out:
        at = 0
        for shift, count in entry.runs:
            if shift is not None:
                new.seek(at + shift)
            _copy(bytes_ if shift is None else new, out, count)
            at += count
    # the digest of the audio: an entry that a stranger made cannot put other audio in place
    if sha256(old) != entry.sha256 or payload_digest(old) != payload_digest(path):
        raise RequestError(f"{path}: its entry in {kept.parent} is damaged: it is left.")
    shutil.copystat(path, old)
    _own(old, path.stat())
    os.utime(old, ns=(entry.mtime_ns, entry.mtime_ns))


def _own(new: Path, state: os.stat_result) -> None:
    """Give a new file the owner of an old one, as far as the system lets this user."""
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(new, state.st_uid, state.st_gid)


def _copy(source: BinaryIO, out: BinaryIO, count: int) -> None:
    while count > 0 and (piece := source.read(min(PIECE, count))):
        out.write(piece)
        count -= len(piece)


# --- what two files share ---


def shared_runs(old: BinaryIO, new: BinaryIO, kept: BinaryIO, *, grown: int) -> Iterator[Run]:
    """Yield runs of an old file that the new one has too, and of what it does not have.

    The latter is written to `kept`; the new file is `grown` bytes longer than the old one.
    """
    for shift, run in itertools.groupby(_blocks(old, new, grown), operator.itemgetter(0)):
        count = 0
        for _, piece in run:
            if shift is None:
                kept.write(piece)
            count += len(piece)
        yield shift, count


def _blocks(old: BinaryIO, new: BinaryIO, grown: int) -> Iterator[tuple[int | None, bytes]]:
    """Bytes of an old file, blocks of one kind together, each with its shift in the new one."""
    at = 0
    while piece := old.read(PIECE):
        kinds = np.full(-(-len(piece) // BLOCK), 2)
        for kind, shift in enumerate((0, grown)):
            same = _equal_blocks(piece, new, at + shift)
            kinds[same & (kinds == 2)] = kind
        ends = [*np.flatnonzero(np.diff(kinds)) + 1, len(kinds)]
        first = 0
        for end in ends:
            yield (0, grown, None)[kinds[first]], piece[first * BLOCK : end * BLOCK]
            first = int(end)
        at += len(piece)


def _equal_blocks(piece: bytes, file: BinaryIO, offset: int) -> np.ndarray:
    """Which blocks of a piece are those of a file from an offset on: (n,) bool."""
    count, before = -(-len(piece) // BLOCK), max(0, -offset)
    different = np.ones(count * BLOCK, bool)
    different[len(piece) :] = False
    file.seek(max(0, offset))
    other = np.frombuffer(file.read(max(0, len(piece) - before)), np.uint8)
    shared = slice(before, before + len(other))
    different[shared] = np.frombuffer(piece, np.uint8)[shared] != other
    return np.logical_not(different.reshape(count, BLOCK).max(axis=1))
