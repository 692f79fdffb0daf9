"""The job that makes or updates one table: its state on disk, and the clips to embed."""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchifier import jobs
from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.embed import Embedder
from patchifier.excerpts import runs_of_one_file
from patchifier.io import (
    Progress,
    parse_json,
    put_in_place,
    read_skipped,
    read_text,
    write_skipped,
    write_text,
)
from patchifier.library import table
from patchifier.library.changes import (
    Waiting,
    is_current,
    shorter,
    state,
    unlisted,
    unlisted_text,
    waiting,
)
from patchifier.library.parts import write_part
from patchifier.library.reuse import Donors, Reused, read_reused, write_reused
from patchifier.library.sources import Key, each, key
from patchifier.library.worker import (
    ClipRows,
    Cut,
    FileFacts,
    embed_batch,
    file_facts,
)

PART_FILES, PART_BYTES = 64, 2**28  # limits of a part, which bound the work that a kill can cost
FIRST_FILES = 4  # of the first part: a page that shows finished parts has songs early
REUSED_FILES = 512  # of a part of rows that are used again, which cost a kill little
TASK_FILES, TASK_BYTES = 8, 2**22  # limits of a batch: about half a second of mp3
MOST_CLIPS = 64  # of a part or a batch: excerpts of one file count as one file
# names in the folder of parts
OWN = re.compile(
    r"\.lock|(\d+|merged|base)\.parquet|export\.(npy|csv|json)|facts\.json|\..+\.new(-\d+|\.lock)?"
)


@dataclass(frozen=True)
class Embedded:
    """Result of :func:`embed_library`.

    Attributes
    ----------
    rows, files : int
        In the table: rows, and clips that they are about.
    embedded, kept : int
        Clips embedded now, and clips that had rows before.
    skipped : tuple of (path, reason)
        Files that could not be read, and folders that could not be listed: rows below these are
        kept.
    gone : tuple of str
        Files that were in the table and exist no more, without those that were moved. With
        `drop_unlisted` also files that exist and were not among the sources.
    pending : int
        Clips that are new, modified, moved or missing, and were ignored without `changed`.
    audio_s, seconds : float
        Length of what was embedded now, and the time that took.
    notes : tuple of (path, note)
        What was wrong with files that were embedded now.
    moved : tuple of (old path, new path)
        Files that lie in another place than before, and kept their rows.
    retagged : int
        Files whose tags were read again and which kept their vectors: their audio is as it was.
    waiting : Waiting
        What `pending` counts, by kind.
    unlisted : tuple of str
        Files that are in the table, exist, and are not among the sources. `changed` refuses to drop
        their rows.
    shorter : tuple of (path, seconds before, seconds now)
        Files that were embedded again and lost more than a tenth of their length.
    removed : tuple of str
        Files that are skipped now and whose old rows were removed.

    Examples
    --------
    >>> from patchifier.library import embed_library
    >>> done = embed_library(["music/one.ogg", "no.ogg"], "two.parquet", workers=1)
    >>> done.files, done.embedded, done.skipped
    (1, 1, (('no.ogg', 'no.ogg: no such file or folder.'),))
    """

    rows: int
    files: int
    embedded: int
    kept: int
    skipped: tuple[tuple[str, str], ...]
    gone: tuple[str, ...]
    pending: int
    audio_s: float
    seconds: float
    notes: tuple[tuple[str, str], ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    retagged: int = 0
    waiting: Waiting = field(default_factory=Waiting)
    unlisted: tuple[str, ...] = ()
    shorter: tuple[tuple[str, float, float], ...] = ()
    removed: tuple[str, ...] = ()


class TableJob:
    """The job of one table: which clips have rows already, and in which file."""

    def __init__(
        self,
        out: Path,
        facts: dict[str, Any],
        clips: Sequence[Clip],
        lost: Sequence[tuple[str, str]] = (),
        *,
        drop_unlisted: bool = False,
    ) -> None:
        self.out, self.facts, self.clips, self.lost = out, facts, clips, lost
        self.drop_unlisted = drop_unlisted
        self.folder = out.with_name(f"{out.name}.parts")
        self.merged = self.folder / "merged.parquet"
        self.known: dict[
            Key, tuple[Path, table.RowRange] | str
        ] = {}  # rows, or the reason for none
        self.base: list[table.RowRange] = []
        self.reused: dict[Key, str] = {}  # of each clip whose rows are another one's, the old path
        self.embedded, self.audio_s, self.started_s = 0, 0.0, time.monotonic()
        self.notes: list[tuple[str, str]] = []

    # --- state on disk ---

    def finish_interrupted(self) -> None:
        """Refuse files of others; put a table in place that was whole when its job was killed."""
        if (self.folder / "facts.json").exists():
            table.require_same(self._begun_facts(), self.facts, self.folder)
            if self.merged.exists():
                self._put_in_place()
        elif self.folder.exists():
            if any(not OWN.fullmatch(path.name) for path in self.folder.iterdir()):
                raise RequestError(
                    f"{self.folder} exists and is not a job of 'patchifier embed': choose another "
                    "--out."
                )
            self._clear()  # killed before it began, or after it ended
        if self.out.exists():
            table.require_same(table.read_facts(self.out), self.facts, self.out)
        elif self.out.suffix == ".npy" and not self.folder.exists():
            for beside in (self.out.with_suffix(".csv"), self.out.with_suffix(".json")):
                if beside.exists():
                    raise RequestError(
                        f"{beside} exists already, and {self.out.name} would write it: choose "
                        "another --out."
                    )

    def _begun_facts(self) -> dict[str, Any]:
        """Facts of the job that began the folder of parts."""
        try:
            facts = parse_json(read_text(self.folder / "facts.json"))
            return {name: facts[name] for name in table.SAME}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"{self.folder} has no facts.json that can be read ({error}): delete this folder "
                "and embed again."
            ) from error

    def report(self) -> Embedded:
        """Report on a finished table without changing it."""
        lines = table.index(self.out)
        self._clear_if_merged(lines)
        before = _skipped_before(_skipped_file(self.out))
        named = {path for path, _ in before}
        skipped = (*before, *(one for one in self.lost if one[0] not in named))
        in_table, current = {line.clip: line for line in lines}, {key(clip) for clip in self.clips}
        kept = self._out_of_sight(lines)
        left = () if self.drop_unlisted else unlisted(lines, current | kept)
        kept |= {which for which in in_table if which[0] in left}
        waits = waiting(self.clips, in_table, passed={path for path, _ in skipped}, kept=kept)
        rows = sum(line.count for line in lines)
        return Embedded(
            rows,
            len(lines),
            0,
            len(lines),
            skipped,
            (),
            waits.count,
            0.0,
            self._passed_s(),
            waiting=waits,
            unlisted=left,
        )

    def _clear_if_merged(self, lines: Sequence[table.RowRange]) -> None:
        """Remove parts whose rows are all in the table: their job was killed at its end."""
        with contextlib.suppress(RequestError):  # the next job deals with a damaged part
            made = (line for part in self._parts() for line in table.index(part))
            if {_file_of(line) for line in made} <= {_file_of(line) for line in lines}:
                self._clear()

    def begin(self) -> None:
        """Write facts.json into the folder of parts, and read which clips need no new embedding."""
        write_text(self.folder / "facts.json", json.dumps(self.facts) + "\n")
        current = {key(clip): clip for clip in self.clips}
        if self.out.exists():
            self._read_base(current)
        for part in self._parts():
            try:
                self._read_part(part, current)
            except RequestError:
                part.unlink()  # damaged: embedded again

    def _read_base(self, current: Mapping[Key, Clip]) -> None:
        """Keep rows of the table, of files that are as they were and of those out of sight."""
        base = self._base_file()
        self.base = table.index(base)
        kept = self._out_of_sight(self.base) - current.keys()
        if not self.drop_unlisted:
            self._require_no_loss(current.keys() | kept)
        for line in self.base:
            if line.clip in kept or is_current(current.get(line.clip), line):
                self.known[line.clip] = base, line
        self.clips = _with_kept(self.clips, [line.clip for line in self.base], kept)

    def _read_part(self, part: Path, current: Mapping[Key, Clip]) -> None:
        """Keep rows of a part, and reasons for none, of files that are as they were."""
        facts, lines = table.read_facts(part), table.index(part)
        reused = read_reused(facts)
        for line in lines:
            if is_current(current.get(line.clip), line):
                self.known[line.clip] = part, line
                if line.clip in reused:
                    self.reused[line.clip] = reused[line.clip]
        for path, start_s, end_s, *was, reason in facts["skipped"]:
            which = path, start_s, end_s
            if which in current and was == state(path):
                self.known[which] = reason

    def _base_file(self) -> Path:
        if self.out.suffix != ".npy":
            return self.out
        base = self.folder / "base.parquet"
        if not base.exists():
            table.npy_to_parquet(self.out, base)
        return base

    def _out_of_sight(self, lines: Sequence[table.RowRange]) -> set[Key]:
        """Clips below a source that is missing, empty or unreadable: their files may exist."""
        places = tuple(
            os.path.join(os.path.realpath(path), "") for path, _ in self.lost if "\0" not in path
        )
        return {line.clip for line in lines if line.clip[0].startswith(places)}

    def _require_no_loss(self, current: Set[Key]) -> None:
        """Refuse to drop rows whose files exist: most likely a source was forgotten."""
        left = unlisted(self.base, current)
        if left:
            if not self._parts():
                self._clear()
            raise RequestError(f"{self.out} {unlisted_text(left)}")

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.parquet"))

    # --- rows that are used again ---

    def reuse(self, workers: int, progress: Progress) -> None:
        """Keep the vectors of files that were moved or retagged, and read their tags."""
        if not self.base:
            return
        donors = Donors(self.base, self._kept(), listed={key(clip) for clip in self.clips})
        todo = donors.candidates(self.clips, self.known.keys())
        left = {key(clip) for clip in todo}
        done = sum(key(clip) in self.known and key(clip) not in left for clip in self.clips)
        meter = jobs.Meter(progress, len(self.clips), done=done)
        parts = [todo[first : first + REUSED_FILES] for first in range(0, len(todo), REUSED_FILES)]
        batches = [batch for part in parts for batch in _grouped(part, TASK_FILES, TASK_BYTES)]
        facts = jobs.run(each, batches, workers=workers, shared=(file_facts,))
        with contextlib.closing(facts):
            for clips in parts:
                read = [(clip, next(facts)) for clip in clips]
                self._reuse_part([self._found(donors, *one, meter) for one in read])

    def _kept(self) -> set[Key]:
        """Clips whose rows in the table are still theirs."""
        base = self._base_file()
        return {
            which
            for which, where in self.known.items()
            if not isinstance(where, str) and where[0] == base
        }

    def _found(
        self, donors: Donors, clip: Clip, file: FileFacts | str, meter: jobs.Meter
    ) -> Reused | None:
        lines = None if isinstance(file, str) else donors.find(clip, file)
        meter.add(int(lines is not None), kept=int(lines is not None))
        return None if lines is None or isinstance(file, str) else Reused(clip, lines, file)

    def _reuse_part(self, found: Sequence[Reused | None]) -> None:
        """Write rows that are used again as a part."""
        good = [one for one in found if one is not None]
        if not good:
            return
        part = self._next_part()
        write_reused(part, self._base_file(), good, facts=self.facts)
        self.known.update({line.clip: (part, line) for line in table.index(part)})
        self.reused.update({key(one.clip): one.lines.clip[0] for one in good})

    def _next_part(self) -> Path:
        number = 1 + max((int(part.stem) for part in self._parts()), default=-1)
        return self.folder / f"{number:05d}.parquet"

    # --- embedding ---

    def embed(self, embedder: Embedder, cut: Cut, workers: int, progress: Progress) -> None:
        """Embed the clips without rows, a part at a time."""
        todo = [clip for clip in self.clips if key(clip) not in self.known]
        meter = jobs.Meter(
            progress,
            len(self.clips),
            done=len(self.clips) - len(todo),
            skipped=sum(isinstance(rows, str) for rows in self.known.values()),
        )
        meter.begin()
        parts = list(_growing(todo, len(self.clips) - len(todo)))
        batches = [batch for part in parts for batch in _grouped(part, TASK_FILES, TASK_BYTES)]
        embedded = jobs.run(embed_batch, batches, workers=workers, shared=(embedder, cut))
        with contextlib.closing(embedded):
            for clips in parts:
                states = {key(clip): state(clip.path) for clip in clips}
                found = [(clip, _counted(next(embedded), meter)) for clip in clips]
                self._write_part(self._next_part(), found, states)
        self.audio_s = meter.audio_s

    def _write_part(
        self, part: Path, found: Sequence[tuple[Clip, ClipRows | str]], states: dict[Key, list[int]]
    ) -> None:
        skipped = [(key(clip), reason) for clip, reason in found if isinstance(reason, str)]
        listed = [[*which, *states[which], reason] for which, reason in skipped]
        write_part(part, found, {**self.facts, "skipped": listed})
        self.known.update({line.clip: (part, line) for line in table.index(part)})
        self.known.update(skipped)
        good = [(clip.path, rows) for clip, rows in found if isinstance(rows, ClipRows)]
        self.notes += [(path, note) for path, rows in good for note in rows.how.notes]
        self.embedded += len(found) - len(skipped)

    # --- the end ---

    def finish(self) -> Embedded:
        """Merge the parts and the kept rows into the table."""
        found = [(key(clip), self.known[key(clip)]) for clip in self.clips]
        good = [(which, where) for which, where in found if not isinstance(where, str)]
        skipped = (
            *self.lost,
            *((which[0], where) for which, where in found if isinstance(where, str)),
        )
        if skipped:
            write_skipped(_skipped_file(self.out), ("path", "reason"), skipped)
        else:
            _skipped_file(self.out).unlink(missing_ok=True)
        if not good:
            self._clear()
            raise RequestError(
                f"none of the {len(skipped)} files could be read; {_skipped_file(self.out)} says "
                f"why. The first: {skipped[0][1]}"
            )
        less = shorter((self._base_file(), self.base), dict(good)) if self.base else ()
        if [lines for _, (_, lines) in good] != self.base or any(
            path.parent == self.folder and path.stem.isdigit() for _, (path, _) in good
        ):
            table.merge(self.merged, [where for _, where in good], self.facts)
            self._put_in_place()
        self._clear()
        moved = {old: new for (new, *_), old in self.reused.items() if new != old}
        present = moved.keys() | {clip.path for clip in self.clips}
        gone = tuple(
            dict.fromkeys(line.clip[0] for line in self.base if line.clip[0] not in present)
        )
        retagged = len({new for (new, *_), old in self.reused.items() if new == old})
        rows, kept = sum(lines.count for _, (_, lines) in good), len(good) - self.embedded
        counts = (rows, len(good), self.embedded, kept, skipped, gone, 0)
        return Embedded(
            *counts,
            self.audio_s,
            self._passed_s(),
            tuple(self.notes),
            tuple(moved.items()),
            retagged,
            shorter=less,
            removed=self._removed(found),
        )

    def _removed(self, found: Sequence[tuple[Key, object]]) -> tuple[str, ...]:
        """Files that had rows and are skipped now."""
        had = {line.clip for line in self.base}
        without = (which for which, where in found if isinstance(where, str))
        return tuple(dict.fromkeys(which[0] for which in without if which in had))

    def _passed_s(self) -> float:
        return time.monotonic() - self.started_s

    def _put_in_place(self) -> None:
        if self.out.suffix == ".npy":
            table.export_npy(self.merged, self.out)
        else:
            put_in_place(self.merged, self.out)
        self._clear()

    def _clear(self) -> None:
        """Remove the parts, and last the facts that claim the folder."""
        self.merged.unlink(missing_ok=True)
        for part in self._parts():
            part.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def _growing(clips: Sequence[Clip], done: int) -> Iterator[list[Clip]]:
    """Parts of a job of which `done` clips are done: each is as large as all before, up to a limit.

    So a job that goes on has the parts of one that was not killed.
    """
    while clips and done < PART_FILES:
        part = next(_grouped(clips, min(PART_FILES, max(FIRST_FILES, done)), PART_BYTES))
        yield part
        clips, done = clips[len(part) :], done + len(part)
    yield from _grouped(clips, PART_FILES, PART_BYTES)


def _grouped(clips: Sequence[Clip], files: int, bytes_b: int) -> Iterator[list[Clip]]:
    """Groups of consecutive clips, up to a number of files and of bytes.

    Excerpts of one file stay together, as far as :func:`runs_of_one_file` allows.
    """
    group, held, held_b = list[Clip](), 0, 0
    for run in runs_of_one_file(clips, lambda clip: clip.path):
        size_b = state(run[0].path)[0]
        full = held >= files or held_b + size_b > bytes_b or len(group) + len(run) > MOST_CLIPS
        if group and full:
            yield group
            group, held, held_b = [], 0, 0
        group += run
        held, held_b = held + 1, held_b + size_b
    if group:
        yield group


def _file_of(line: table.RowRange) -> tuple[Key, int, int]:
    return line.clip, line.size, line.mtime_ns


def _counted(found: ClipRows | str, meter: jobs.Meter) -> ClipRows | str:
    """Show the progress after one clip."""
    if isinstance(found, str):
        meter.add(skipped=1)
    else:
        meter.add(audio_s=found.how.length_s)
    return found


def _with_kept(clips: Sequence[Clip], base: Sequence[Key], kept: Set[Key]) -> list[Clip]:
    """Clips, and each kept one after the clip that it followed in the table."""
    listed, last = {key(clip) for clip in clips}, None
    after: dict[Key | None, list[Clip]] = {}
    for which in base:
        if which in listed:
            last = which
        elif which in kept:
            path, start_s, end_s = which
            after.setdefault(last, []).append(Clip(path, path, start_s, end_s))
    return [
        *after.get(None, []),
        *(one for clip in clips for one in (clip, *after.get(key(clip), []))),
    ]


def _skipped_file(out: Path) -> Path:
    return out.with_suffix(".skipped.csv")


def _skipped_before(path: Path) -> tuple[tuple[str, str], ...]:
    """Files that an earlier call skipped, with their reasons."""
    try:
        found = read_skipped(path)
    except ValueError as error:
        raise RequestError(f"{error}: delete it, and run the same command again.") from error
    # a reason begins with the path, which the file does not say twice
    return tuple(
        (name, reason if reason.startswith(name) else f"{name}: {reason}") for name, reason in found
    )
