"""Log-mels on disk, so that training never decodes audio.

A cache is a folder::

    cache.json          format and spectrogram settings
    shards/00000.npy    log-mels of many clips, concatenated: (frames, M) float16
    shards/00000.jsonl  these clips, each with a key (hash of audio and settings) and a checksum
    index.jsonl         name, task, then every clip in the data set's order, and its position
    skipped.csv         id, path and reason of each file that could not be read

Every file is written beside and renamed into place. A build that is killed loses at most the shard
it was filling; run again, it goes on. A clip whose audio and settings have not changed is not
decoded again.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shlex
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchifier import audio, jobs, spectrogram
from patchifier.config import (
    RequestError,
    SpectrogramConfig,
    digest,
    naming,
    read_changes,
    to_dict,
    update,
)
from patchifier.datasets import Clip, Dataset
from patchifier.excerpts import Source, read_each, runs_of_one_file
from patchifier.io import (
    Progress,
    has_others,
    parse_json,
    read_text,
    replaced_file,
    require_file,
    silent,
    write_json,
    write_skipped,
    write_text,
)
from patchifier.tasks import Task

FORMAT = 1
SHARD_FRAMES = 2**18  # 34 MB of float16 at 64 bands, 100 minutes
SHARD_S = 30.0  # a shard is closed at least this often, so that a kill costs little
AGAIN = "run the same 'patchifier prepare' again, or copy the cache again."


@dataclass(frozen=True)
class Prepared:
    """Result of :func:`prepare`.

    Counts of clips, the skipped ones with reasons, and what was wrong with decoded ones.

    Examples
    --------
    >>> from patchifier.datasets import Clip, Dataset
    >>> data = Dataset("mine", (Clip("one", "music/one.ogg"), Clip("no", "no.ogg")))
    >>> done = prepare(data, "mine-cache", workers=1)
    >>> done.clips, [clip.id for clip, reason in done.skipped]
    (1, ['no'])
    """

    clips: int
    decoded: int
    skipped: tuple[tuple[Clip, str], ...]
    audio_s: float
    notes: tuple[tuple[Clip, str], ...] = ()


def prepare(
    dataset: Dataset,
    out: str | Path,
    *,
    config: SpectrogramConfig | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Decode every clip and write its log-mel to a cache.

    Parameters
    ----------
    dataset : Dataset
        The clips.
    out : str or Path
        Folder of the cache. An existing cache with the same settings is continued.
    config : SpectrogramConfig
        The paper's setting by default.
    workers : int
        Processes; one for each core by default.
    progress : callable
        Called with clips done, clips in all, and a note.

    Returns
    -------
    Prepared

    Raises
    ------
    RequestError
        If the folder is a cache with other settings or holds other files, or if no clip could be
        read.

    Examples
    --------
    >>> import dataclasses
    >>> from patchifier import cache, datasets
    >>> demo = datasets.load("demo")
    >>> few = dataclasses.replace(demo, clips=demo.clips[::16])
    >>> cache.prepare(few, "cache").clips
    7
    """
    out, config = Path(out), config or SpectrogramConfig()
    _claim(out, config)
    with jobs.folder_lock(out, "prepare"):
        return _prepare(dataset, out, config, workers or os.cpu_count() or 1, progress)


def _prepare(
    dataset: Dataset, out: Path, config: SpectrogramConfig, workers: int, progress: Progress
) -> Prepared:
    for left in (out / "shards").glob(".*.new"):  # of killed jobs; no other one is in this folder
        left.unlink(missing_ok=True)
    on_disk = _shard_rows(out, config)
    known = {row["key"]: row for row in on_disk}
    # two clips may have the same audio, hence one key
    keys = {row["clip"]: row["key"] for row in on_disk}
    writer = _ShardWriter(out)
    rows: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    notes: list[tuple[Clip, str]] = []
    tasks = [(clip, keys.get(clip.id)) for clip in dataset.clips]
    batches = runs_of_one_file(tasks, lambda task: task[0].path)
    decoded = jobs.run(
        _decode, batches, workers=workers, shared=config, name=lambda task: task[0].path
    )
    meter = jobs.Meter(progress, len(dataset.clips))
    meter.begin()
    try:
        for clip, found in zip(dataset.clips, decoded, strict=True):
            if isinstance(found, str):
                skipped[clip.id] = found
                meter.add(skipped=1)
            elif found.log_mel is None:
                rows[clip.id] = known[found.key]
                meter.add(kept=1)
            else:
                rows[clip.id] = writer.add(clip, found)
                notes += [(clip, note) for note in found.notes]
                meter.add(audio_s=len(found.log_mel) * config.frame_s)
    finally:
        writer.close()  # an interruption keeps what was decoded
        decoded.close()
    unlisted = [(Clip(path, path), reason) for path, reason in dataset.lost]
    bad = (*((clip, skipped[clip.id]) for clip in dataset.clips if clip.id in skipped), *unlisted)
    named = [(clip.id, clip.path, reason) for clip, reason in bad]
    write_skipped(out / "skipped.csv", ("id", "path", "reason"), named)
    if not rows:
        raise RequestError(
            f"none of the {len(bad)} clips could be read; {out / 'skipped.csv'} says why. The "
            f"first: {bad[0][1]}"
        )
    good = [clip for clip in dataset.clips if clip.id in rows]
    _write_index(out, dataset, [(clip, rows[clip.id]) for clip in good])
    frames = sum(rows[clip.id]["frames"] for clip in good)
    return Prepared(len(good), writer.added, bad, frames * config.frame_s, tuple(notes))


def _claim(out: Path, config: SpectrogramConfig) -> None:
    """Make the folder a cache with these settings, or check that it is one."""
    facts = out / "cache.json"
    if facts.exists():
        _require_same(_settings(out), config, out)
        return
    if has_others(out, "cache.json"):
        raise RequestError(f"{out} exists and is not a cache: choose another --out.")
    write_json(facts, {"format": FORMAT, "spectrogram": to_dict(config)})


def _settings(path: Path) -> SpectrogramConfig:
    facts = read_changes(path / "cache.json")
    form = facts.get("format")
    if not isinstance(form, int) or form > FORMAT:
        raise RequestError(
            f"{path} has format {form}, this version reads up to {FORMAT}: pip install -U "
            "patchifier."
        )
    settings = facts.get("spectrogram")
    if not isinstance(settings, dict):
        raise RequestError(f"{path / 'cache.json'} has no settings of a spectrogram: {AGAIN}")
    with naming(path / "cache.json"):
        return update(SpectrogramConfig(), settings, where="spectrogram")


def _require_same(found: SpectrogramConfig, wanted: SpectrogramConfig, path: Path) -> None:
    have, want = to_dict(found), to_dict(wanted)
    differ = [
        f"{name} is {have[name]!r}, not {want[name]!r}" for name in have if have[name] != want[name]
    ]
    if differ:
        raise RequestError(
            f"cache {path} was made with other settings: {'; '.join(differ)}. Prepare another "
            "cache, or drop these settings; "
            "'patchifier prepare --model MODEL' makes what a model reads."
        )


# --- decoding, in processes ---


@dataclass(frozen=True)
class _Decoded:
    key: str
    log_mel: np.ndarray | None  # (T, M) float16; None if the cache has it
    notes: tuple[str, ...] = ()


def _decode(
    config: SpectrogramConfig, tasks: Sequence[tuple[Clip, str | None]]
) -> list[_Decoded | str]:
    """Log-mel of each clip, or the reason why there is none.

    A clip comes with its key in the cache. Runs in a worker process.
    """

    def decode(number: int, source: Source | None) -> _Decoded | str:
        clip, known = tasks[number]
        return jobs.attempt(clip.path, _decode_clip, config, clip, known, source)

    return read_each([(clip.path, clip.start_s, clip.end_s) for clip, _ in tasks], decode)


def _decode_clip(
    config: SpectrogramConfig, clip: Clip, known: str | None, source: Source | None
) -> _Decoded:
    audio.require_file(clip.path)
    key = _key(clip, config)
    if key == known:
        return _Decoded(key, None)
    how = audio.Decoding()
    blocks = audio.blocks(
        clip.path,
        sample_rate=config.sample_rate,
        start_s=clip.start_s,
        end_s=clip.end_s,
        how=how,
        source=source,
    )
    pieces = [  # (T', M)
        piece.T.astype(np.float16, order="C")
        for piece in spectrogram.stream_log_mel(blocks, config)
    ]
    return _Decoded(key, np.concatenate(pieces), tuple(how.notes))


def _key(clip: Clip, config: SpectrogramConfig) -> str:
    """Hash of the audio file's bytes, the limits of the clip, and the settings."""
    require_file(Path(clip.path))
    state = os.stat(clip.path)
    content = _content_hash(clip.path, state.st_size, state.st_mtime_ns)
    return hashlib.sha256(
        f"{content} {clip.start_s!r} {clip.end_s!r} {digest(config)}".encode()
    ).hexdigest()[:32]


@functools.lru_cache(maxsize=1)  # excerpts of one file follow each other
def _content_hash(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- writing ---


class _ShardWriter:
    """Collects log-mels and writes them out, a shard at a time."""

    def __init__(self, out: Path) -> None:
        shards = (path.stem for path in (out / "shards").glob("*.npy"))
        last = max((int(stem) for stem in shards if stem.isdecimal()), default=-1)
        self.out, self.added = out, 0
        self._open(last + 1)

    def _open(self, number: int) -> None:
        self.number, self.frames, self.opened_s = number, 0, time.monotonic()
        self.parts, self.rows = list[np.ndarray](), list[dict[str, Any]]()

    def add(self, clip: Clip, found: _Decoded) -> dict[str, Any]:
        part = found.log_mel
        assert part is not None
        row = {"clip": clip.id, "key": found.key, "shard": self.number, "first": self.frames}
        row |= {"frames": len(part), "crc32": zlib.crc32(part.data)}
        self.parts.append(part)
        self.frames += len(part)
        self.rows.append(row)
        self.added += 1
        if self.frames >= SHARD_FRAMES or time.monotonic() - self.opened_s > SHARD_S:
            self.close()
        return row

    def close(self) -> None:
        if self.parts:
            with replaced_file(_shard(self.out, self.number)) as new, new.open("wb") as stream:
                like = np.lib.format.header_data_from_array_1_0(self.parts[0])
                np.lib.format.write_array_header_1_0(
                    stream, {**like, "shape": (self.frames, *self.parts[0].shape[1:])}
                )
                # one array, which is never in memory twice
                stream.writelines(part.data for part in self.parts)
            lines = "".join(json.dumps(row) + "\n" for row in self.rows)
            write_text(_shard(self.out, self.number).with_suffix(".jsonl"), lines)
        self._open(self.number + 1)


def _shard(path: Path, number: int) -> Path:
    return path / "shards" / f"{number:05d}.npy"


def _shard_rows(path: Path, config: SpectrogramConfig) -> list[dict[str, Any]]:
    """Rows of all clips that are on disk.

    Those of a damaged shard are left out, so that its clips are decoded again.
    """
    rows = list[dict[str, Any]]()
    for file in sorted((path / "shards").glob("*.jsonl")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # RequestError too
            listed = [_checked_row(parse_json(line)) for line in read_text(file).splitlines()]
            shard = _open_shard(path, int(file.stem), config)
            whole = all(_fits(row, shard) and row["shard"] == int(file.stem) for row in listed)
            rows += listed if whole and all(isinstance(row["clip"], str) for row in listed) else []
    return rows


def _write_index(out: Path, dataset: Dataset, rows: Sequence[tuple[Clip, dict[str, Any]]]) -> None:
    """Write the index of a cache: a line about the data set, and a line for each clip."""
    header = {
        "name": dataset.name,
        "task": dataclasses.asdict(dataset.task) if dataset.task else None,
        "clips": len(rows),
    }

    def lines() -> Iterator[str]:
        return (json.dumps({**row, "clip": dataclasses.asdict(clip)}) for clip, row in rows)

    first = json.dumps({**header, "crc32": _index_checksum(out, header, lines())})
    with replaced_file(out / "index.jsonl") as new, new.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in itertools.chain([first], lines()))


def _index_checksum(path: Path, header: dict[str, Any], lines: Iterable[str]) -> int:
    """Checksum of the settings and the lines of an index."""
    found = zlib.crc32((path / "cache.json").read_bytes())
    for line in itertools.chain([json.dumps(header)], lines):
        found = zlib.crc32(line.encode(), found)
    return found


# --- reading ---


def _read_index(path: Path) -> tuple[str, Task | None, tuple[Clip, ...], list[dict[str, Any]]]:
    """Name, task, clips and their rows of a cache."""
    index = path / "index.jsonl"
    try:
        header, *rows = [parse_json(line) for line in read_text(index).splitlines()]
        if len(rows) != header["clips"]:
            raise ValueError(f"it holds {len(rows)} clips, expected {header['clips']}")
        task, clips = header["task"], tuple(_clip(row["clip"]) for row in rows)
        task = Task(**{**task, "names": tuple(map(str, task["names"]))}) if task else None
        return str(header["name"]), task, clips, [_checked_row(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{index} cannot be read ({error}): {AGAIN}") from error


def _clip(values: dict[str, Any]) -> Clip:
    """Clip of a row; a TypeError for values of the wrong type."""
    clip = Clip(**{**values, "subsets": tuple(values.get("subsets", ()))})
    known = [(clip.id, str), (clip.path, str), (clip.start_s, int | float), (clip.info, dict)]
    optional = [(clip.end_s, int | float), (clip.split, str), (clip.fold, int), (clip.group, str)]
    known += [(value, kind) for value, kind in optional if value is not None]
    for value, kind in known:
        if not isinstance(value, kind):
            raise TypeError(f"{value!r} of a clip is not of the type {kind}")
    return clip


def _checked_row(row: dict[str, Any]) -> dict[str, Any]:
    """Check where a clip lies; a TypeError or a ValueError for what cannot be."""
    for name in ("shard", "first", "frames", "crc32"):
        if type(row[name]) is not int:
            raise TypeError(f"{name} is {row[name]!r}, expected a whole number")
    if min(row["shard"], row["first"], row["frames"] - 1) < 0:
        raise ValueError(f"a clip has {row['frames']} frames from {row['first']} on")
    if not isinstance(row["key"], str):
        raise TypeError(f"key is {row['key']!r}, expected a hash")
    return row


def _open_shard(path: Path, number: int, config: SpectrogramConfig) -> np.ndarray:
    """Map a shard (frames, M) float16 into memory."""
    file = _shard(path, number)
    try:
        require_file(file)
        shard = np.lib.format.open_memmap(file, mode="r")
        if shard.dtype != np.float16 or shard.shape[1:] != (config.n_bands,):
            raise ValueError(
                f"it holds {shard.dtype} of shape {shard.shape}, expected float16 of shape "
                f"(frames, {config.n_bands})"
            )
    except Exception as error:  # numpy raises a dozen kinds on a damaged header
        raise RequestError(f"{file} cannot be read ({error}): {AGAIN}") from error
    return shard


def _fits(row: dict[str, Any], shard: np.ndarray) -> bool:
    return bool(row["first"] + row["frames"] <= len(shard))


class Cache:
    """A finished cache, memory-mapped.

    Parameters
    ----------
    path : str or Path
        The folder.
    partial : bool
        Whether shards may be missing, as on a machine that trains on a part of the cache; clips in
        them cannot be read.

    Attributes
    ----------
    name : str
        Of the data set.
    clips : tuple of Clip
        In the data set's order.
    task : Task or None
        Of the data set.
    spectrogram : SpectrogramConfig
        Settings of the log-mels.
    frames, keys : ndarray of int and tuple of str, of length n
        Frames of each clip; hash of its audio and of the settings.

    Raises
    ------
    RequestError
        If the folder is no cache, or its build was not finished.

    Examples
    --------
    >>> data = Cache("demo-cache")
    >>> len(data.clips), data.log_mel(0).shape  # frames first
    (14, (862, 64))
    """

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        self.path = Path(path)
        if self.path.is_file():
            raise RequestError(
                f"{self.path} is a file, expected the folder of a cache: if it lists clips, make "
                f"one with 'patchifier prepare {shlex.quote(str(self.path))} --out CACHE'."
            )
        if not (self.path / "cache.json").exists():
            raise RequestError(
                f"{self.path} is not a cache (no cache.json): make one with 'patchifier prepare "
                f"SOURCE --out {self.path}'."
            )
        self.spectrogram = _settings(self.path)
        if not (self.path / "index.jsonl").exists():
            raise RequestError(
                f"cache {self.path} is not finished: run the same 'patchifier prepare' again and "
                "it goes on."
            )
        self.name, self.task, self.clips, self._rows = _read_index(self.path)
        self.frames = np.array([row["frames"] for row in self._rows])
        self.keys = tuple(row["key"] for row in self._rows)
        numbers = sorted({row["shard"] for row in self._rows})
        self._shards = {
            number: _open_shard(self.path, number, self.spectrogram)
            for number in numbers
            if not partial or _shard(self.path, number).exists()
        }
        for clip, row in zip(self.clips, self._rows, strict=True):
            if row["shard"] in self._shards and not _fits(row, self._shards[row["shard"]]):
                raise RequestError(
                    f"{_shard(self.path, row['shard'])} does not hold frames {row['first']} to "
                    f"{row['first'] + row['frames']}, "
                    f"which clip {clip.id} needs: {AGAIN}"
                )

    def require_task(self) -> Task:
        """Task of the clips; a cache without targets is refused."""
        if self.task is None:
            raise RequestError(
                f"the clips of cache {self.path} have no targets: prepare it from a manifest with "
                "a target column."
            )
        return self.task

    @property
    def hours(self) -> float:
        """Hours of music in all clips."""
        return float(self.frames.sum()) * self.spectrogram.frame_s / 3600

    def require(self, config: SpectrogramConfig) -> "Cache":
        """Give this cache as log-mels of these settings.

        A view of its mel bands where only its pitch bands are too many.

        Raises
        ------
        RequestError
            If it was made with other settings, naming each that differs.
        """
        view = copy.copy(self)
        view.spectrogram = config if config == self.spectrogram.without_pitch else self.spectrogram
        _require_same(view.spectrogram, config, self.path)
        return view

    def log_mel(self, index: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """Frames `first` to `last` of a clip: (T, M) float16, frames first, a view of the file."""
        row = self._rows[index]
        last = row["frames"] if last is None else min(last, row["frames"])
        if row["shard"] not in self._shards:
            raise RequestError(
                f"{_shard(self.path, row['shard'])} is missing, and clip {self.clips[index].id} "
                "lies in it: copy this shard here too."
            )
        return self._shards[row["shard"]][
            row["first"] + first : row["first"] + last, : self.spectrogram.n_bands
        ]

    def array(self, index: int) -> np.ndarray:
        """Log-mel (M, T) of a clip, float32."""
        return np.array(self.log_mel(index), np.float32).T

    def parts(self, count: int) -> list[np.ndarray]:
        """Deal the shards out to `count` parts of about as many frames each.

        Returns the clips of each part, by index.
        """
        shards = np.array([row["shard"] for row in self._rows])
        numbers, where = np.unique(shards, return_inverse=True)
        if count > len(numbers):
            raise RequestError(
                f"cache {self.path} has {len(numbers)} shards, which cannot be dealt out to "
                f"{count} parts: choose a smaller number."
            )
        frames = np.bincount(where, weights=self.frames)
        loads, part_of = np.zeros(count), np.zeros(len(numbers), int)
        for shard in np.argsort(
            -frames, kind="stable"
        ):  # the largest first, each to the part that has least
            part_of[shard] = loads.argmin()
            loads[part_of[shard]] += frames[shard]
        return [np.flatnonzero(part_of[where] == part) for part in range(count)]

    def shard_files(self, clips: np.ndarray) -> list[Path]:
        """Return the files in which these clips lie."""
        return [
            _shard(self.path, number)
            for number in sorted({self._rows[index]["shard"] for index in clips})
        ]

    def read(
        self, indices: Sequence[int] | np.ndarray, spans: np.ndarray | None = None
    ) -> np.ndarray:
        """Read the log-mels of a batch.

        Parameters
        ----------
        indices : sequence of int, length B
            Clips.
        spans : ndarray, shape (B, 2), int
            First and last + 1 frame of each; whole clips by default.

        Returns
        -------
        numpy.ndarray, shape (B, T, M), float16
            Padded with silence after the end of a clip.
        """
        if spans is None:
            spans = np.stack([np.zeros(len(indices), int), self.frames[indices]], axis=1)
        longest = int((spans[:, 1] - spans[:, 0]).max())
        batch = np.full(
            (len(indices), longest, self.spectrogram.n_bands), self.spectrogram.silence, np.float16
        )
        for row, index, (first, last) in zip(batch, indices, spans, strict=True):
            row[: last - first] = self.log_mel(int(index), int(first), int(last))
        return batch

    def verify(self) -> list[str]:
        """Check every clip against its checksum, and the index against its own.

        Returns a line for each damaged clip, and for an index that was changed.
        """
        first, *lines = read_text(self.path / "index.jsonl").splitlines()
        header = parse_json(first)
        stated = header.pop("crc32", None)  # indexes of older versions do not state it
        changed = stated not in (None, _index_checksum(self.path, header, lines))
        changed = changed or header.keys() != {"name", "task", "clips"}
        problems = ["index.jsonl or cache.json: not as 'patchifier prepare' wrote it"] * changed
        for index, (clip, row) in enumerate(zip(self.clips, self._rows, strict=True)):
            values = np.ascontiguousarray(self.log_mel(index))
            if len(values) != row["frames"]:
                problems.append(
                    f"{clip.id}: {len(values)} frames in shard {row['shard']:05d}, expected "
                    f"{row['frames']}"
                )
            elif zlib.crc32(values.tobytes()) != row["crc32"]:
                problems.append(f"{clip.id}: checksum differs in shard {row['shard']:05d}")
            elif not np.isfinite(values).all():
                problems.append(
                    f"{clip.id}: values that are not numbers in shard {row['shard']:05d}"
                )
        return problems
