"""Rows of a table that are used again for files that were moved, renamed or retagged.

The audio of a file decides (:func:`patchifier.containers.payload_digest`): a file with the digest
of a row gets its vector, wherever it lies now and whatever its tags are. A row of an older table
has no digest. It is used again for the one new file with the same name, size and time of change.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from patchifier.datasets import Clip
from patchifier.library import table
from patchifier.library.changes import state
from patchifier.library.sources import Key, key
from patchifier.library.worker import FileFacts

Span = tuple[float, float | None]  # start and end of a clip
Name = tuple[str, int, int]  # of a file: its name without folders, size, time of change


@dataclass(frozen=True)
class Reused:
    """A clip that gets the rows of another place, and what its file is now."""

    clip: Clip
    lines: table.RowRange
    file: FileFacts


class Donors:
    """Rows whose file is no longer where it was, or no longer what it was.

    Of the rows `base` of a table, those of the clips in `kept` are still theirs; the job is about
    the clips in `listed`.
    """

    def __init__(self, base: Sequence[table.RowRange], kept: Set[Key], *, listed: Set[Key]) -> None:
        self._own = {line.clip: line for line in base}
        self._unfilled = {
            line.clip
            for line in base
            if line.track_id is None and line.clip in kept and line.clip in listed
        }
        free = [line for line in base if line.clip not in kept]
        self._audio: dict[tuple[str, Span], table.RowRange] = {}
        for line in free:
            if line.track_id is not None:
                self._audio.setdefault((line.track_id, line.clip[1:]), line)
        self._new_names = set[tuple[Name, Span]]()
        self._spans = {span for _, span in self._audio}
        named = [(_name(line), line) for line in free if line.track_id is None]
        once = _only_once(name for name, _ in named)
        self._names = {name: line for name, line in named if name in once}

    def candidates(self, clips: Sequence[Clip], known: Set[Key]) -> list[Clip]:
        """Clips whose files may be those of a row, or whose row does not say what it should."""
        new = [clip for clip in clips if key(clip) not in known]
        if self._names:
            self._new_names = _only_once(map(_name_of, new))
        may_be = {
            key(clip)
            for clip in new
            if key(clip)[1:] in self._spans or self._by_name(clip) is not None
        }
        wanted = may_be | (self._unfilled & known)
        return [clip for clip in clips if key(clip) in wanted]

    def find(self, clip: Clip, file: FileFacts) -> table.RowRange | None:
        """Rows with the audio of a clip; its own ones first."""
        own = self._own.get(key(clip))
        if own and (key(clip) in self._unfilled or own.track_id == file.track_id):
            return own
        return self._audio.get((file.track_id, key(clip)[1:])) or self._by_name(clip)

    def _by_name(self, clip: Clip) -> table.RowRange | None:
        if not self._new_names:
            return None
        name = _name_of(clip)
        return self._names.get(name) if name in self._new_names else None


def _name(line: table.RowRange) -> tuple[Name, Span]:
    path, *_ = line.clip
    return (os.path.basename(path), line.size, line.mtime_ns), line.clip[1:]


def _name_of(clip: Clip) -> tuple[Name, Span]:
    size, mtime_ns = state(clip.path)
    return (os.path.basename(clip.path), size, mtime_ns), key(clip)[1:]


def _only_once(names: Iterable[Any]) -> set[Any]:
    return {name for name, count in Counter(names).items() if count == 1}


# --- rows ---


def write_reused(
    part: Path, base: Path, found: Sequence[Reused], *, facts: Mapping[str, Any]
) -> None:
    """Write rows of the table `base` with the paths, tags and states that their files have now.

    The facts of the new table say of each clip where its rows come from.
    """
    stretches = table.stretches_of([(key(one.clip), one.lines.count) for one in found])
    reused = [[*key(one.clip), one.lines.clip[0]] for one in found]
    about = {**facts, "stretches": stretches, "skipped": [], "reused": reused}
    wanted = table.schema(about, about["size"])
    table.write(part, _rows(base, found, wanted), wanted)


def read_reused(facts: Mapping[str, Any]) -> dict[Key, str]:
    """Where the rows of a part come from: a path for each clip that :func:`write_reused` wrote."""
    return {
        (path, start_s, end_s): before for path, start_s, end_s, before in facts.get("reused", [])
    }


def _rows(base: Path, found: Sequence[Reused], wanted: pa.Schema) -> Iterator[pa.Table]:
    with contextlib.closing(table.Origin(base)) as origin:
        for one in found:
            values = {"path": one.clip.path, **one.file.columns()}
            for rows in origin.take(one.lines.first, one.lines.count):
                yield _with_values(table.completed(rows, wanted), values, wanted)


def _with_values(rows: pa.Table, values: Mapping[str, Any], wanted: pa.Schema) -> pa.Table:
    for name, value in values.items():
        field = wanted.field(name)
        column = pa.array([value] * len(rows), field.type)
        rows = rows.set_column(wanted.get_field_index(name), field, column)
    return rows
