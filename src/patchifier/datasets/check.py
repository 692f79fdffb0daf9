"""Check that a published data set is complete.

Counts, sizes, checksums, and the name of every file that is missing, empty or broken.

Nothing is changed and nothing is downloaded. The tables of the data set list its files; its sheet
has their number, and the files that are known to be bad in every copy, or in some: these are listed
separately and do not count as errors.
"""

import hashlib
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import soundfile

from patchifier import audio
from patchifier.config import RequestError
from patchifier.datasets import Clip, find_sheet
from patchifier.datasets.sheet import Remote, Sheet
from patchifier.io import Progress, silent

ABSENT = ("missing", "empty")


@dataclass(frozen=True)
class Split:
    """One split of one variant.

    Parameters
    ----------
    variant, split : str
        Names; the split is empty where a variant has none.
    published : int or None
        Number of clips according to the publishers, if known.
    listed : int
        Number of clips in the tables of the root.
    usable : int
        Number of listed clips whose file can be read.
    lost : tuple of str
        Ids of the other listed clips.
    """

    variant: str
    split: str
    published: int | None
    listed: int
    usable: int
    lost: tuple[str, ...] = ()

    @property
    def as_published(self) -> bool:
        """Whether the tables list as many clips as were published; True if that is unknown."""
        return self.published in (None, self.listed)


@dataclass(frozen=True)
class Download:
    """A file that a data set publishes for download, and whether it is there as published."""

    name: str
    size_b: int | None
    state: Literal["ok", "differs", "unknown", "absent"]  # unknown: no checksum is published


@dataclass(frozen=True)
class Report:
    """What :func:`check` found.

    Parameters
    ----------
    name, root : str
        Data set (or NAME:VARIANT) and folder.
    splits : tuple of Split
        Counts and lost clips of each split.
    files, size_b : int
        Number of audio files that exist, and their size in bytes.
    missing, empty : tuple of str
        Paths below the root, without the files known to be bad.
    corrupt, excused : dict of str
        Path -> reason: files that cannot be read; files known to be bad that are missing or cannot
        be read.
    known_bad : dict of str
        Path -> reason: all files that the sheet lists as bad.
    downloads : tuple of Download
        Published files.
    unreadable : str
        Why the tables could not be read; empty if they could.
    how_to_get : str
        How a person gets what is missing; empty if nothing is.
    """

    name: str
    root: str
    splits: tuple[Split, ...] = ()
    files: int = 0
    size_b: int = 0
    missing: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    corrupt: dict[str, str] = field(default_factory=dict)
    excused: dict[str, str] = field(default_factory=dict)
    known_bad: dict[str, str] = field(default_factory=dict)
    downloads: tuple[Download, ...] = ()
    unreadable: str = ""
    how_to_get: str = ""

    @property
    def complete(self) -> bool:
        """Whether every file exists and can be read, except files known to be bad."""
        wrong = self.unreadable or self.missing or self.empty or self.corrupt
        differs = any(file.state == "differs" for file in self.downloads)
        return not wrong and not differs and all(split.as_published for split in self.splits)


def check(
    name: str | Sheet,
    root: str | Path,
    *,
    thorough: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
) -> Report:
    """Compare a published data set with its tables and its sheet.

    Parameters
    ----------
    name : str or Sheet
        Data set; with ``:VARIANT``, the clips of that variant alone, else the clips of all
        variants.
    root : str or Path
        Folder of the data set.
    thorough : bool
        Decode every file to its end; by default only its header is read.
    workers : int
        Number of threads; one for each core by default.
    progress : callable
        Called with files done, files in all, and a note.

    Returns
    -------
    Report

    Raises
    ------
    RequestError
        If there is no such data set or variant, or the root is no folder. Faults of the data are in
        the report.
    """
    sheet, variant = find_sheet(name) if isinstance(name, str) else (name, "")
    root = Path(root)
    if not root.is_dir():
        raise RequestError(
            f"--root {root} is no folder, expected the folder of {sheet.title}. "
            f"{sheet.how_to_get(root)}"
        )
    report = Report(
        name=f"{sheet.name}:{variant}" if variant else sheet.name,
        root=str(root),
        known_bad=dict(sheet.known_bad),
        downloads=tuple(_download(root, remote) for remote in sheet.remotes),
    )
    try:
        clips = {
            known: sheet.read(root, known).clips
            for known in ([variant] if variant else sheet.variants)
        }
    except RequestError as error:
        return replace(report, unreadable=str(error), how_to_get=sheet.how_to_get(root))
    paths = list(dict.fromkeys(clip.path for members in clips.values() for clip in members))
    wrong = _examine(paths, thorough, workers or os.cpu_count() or 1, progress)
    found = _complete(report, sheet, clips, paths, wrong)
    return found if found.complete else replace(found, how_to_get=sheet.how_to_get(root))


def _examine(paths: list[str], thorough: bool, workers: int, progress: Progress) -> dict[str, str]:
    """Return path -> fault, for the files that have one."""
    wrong = {}
    with ThreadPoolExecutor(workers) as pool:  # decoding lets other threads run
        reasons = pool.map(lambda path: examine(path, thorough=thorough), paths)
        for done, (path, reason) in enumerate(zip(paths, reasons, strict=True), 1):
            if reason:
                wrong[path] = reason
            progress(done, len(paths), f"{len(wrong)} bad" if wrong else "")
    return wrong


def examine(path: str, *, thorough: bool = False) -> str:
    """Return the fault of an audio file: "missing", "empty", a reason, or an empty text."""
    if fault := audio.name_fault(path):
        return fault
    try:
        state = os.stat(path)
        if stat.S_ISREG(state.st_mode) and state.st_size == 0:
            return "empty"
        audio.require_file(path)
        with soundfile.SoundFile(path) as sound:
            frames, rate = sound.frames, sound.samplerate
        if thorough:
            for _block in audio.blocks(path, sample_rate=rate):  # at its own rate: not resampled
                pass
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except soundfile.LibsndfileError as error:
        return error.error_string.strip() or "not an audio file"
    except (OSError, audio.AudioError) as error:
        return str(error).removeprefix(f"{path}: ")
    return "" if frames > 0 else "holds no audio"


def _complete(
    report: Report,
    sheet: Sheet,
    clips: dict[str, tuple[Clip, ...]],
    paths: list[str],
    wrong: dict[str, str],
) -> Report:
    """Add the counts and every bad file to the report."""
    blamed = {path: reason for path, reason in wrong.items() if not sheet.excuse(path)}
    below = {path: Path(os.path.relpath(path, report.root)).as_posix() for path in wrong}
    there = [path for path in paths if wrong.get(path) not in ABSENT]

    def of(reason: str) -> tuple[str, ...]:
        return tuple(below[path] for path in blamed if blamed[path] == reason)

    return replace(
        report,
        splits=tuple(
            split
            for variant, members in clips.items()
            for split in _splits(sheet, variant, members, wrong)
        ),
        files=len(there),
        size_b=sum(os.stat(path).st_size for path in there),
        missing=of("missing"),
        empty=of("empty"),
        corrupt={below[path]: blamed[path] for path in blamed if blamed[path] not in ABSENT},
        excused={below[path]: reason for path, reason in wrong.items() if path not in blamed},
    )


def _splits(
    sheet: Sheet, variant: str, clips: Iterable[Clip], wrong: dict[str, str]
) -> list[Split]:
    published = sheet.variants[variant].counts
    members: dict[str, list[Clip]] = {name: [] for name in published}
    for clip in clips:
        members.setdefault(clip.split or "", []).append(clip)
    counted = []
    for name, listed in members.items():
        lost = tuple(clip.id for clip in listed if clip.path in wrong)
        count = published.get(name, 0 if published else None)
        counted.append(Split(variant, name, count, len(listed), len(listed) - len(lost), lost))
    return counted


def _download(root: Path, remote: Remote) -> Download:
    path = root / remote.name
    if not path.is_file():
        return Download(remote.name, None, "absent")
    size_b = path.stat().st_size
    if remote.size_b not in (None, size_b):
        return Download(remote.name, size_b, "differs")
    if not remote.sha256:
        return Download(remote.name, size_b, "unknown")
    with path.open("rb") as stream:
        same = hashlib.file_digest(stream, "sha256").hexdigest() == remote.sha256
    return Download(remote.name, size_b, "ok" if same else "differs")
