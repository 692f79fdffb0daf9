"""Get the files of a published data set, on request: download, check, join, unpack.

Below the root, beside what a data sheet names:

========================  ==========================================================================
``NAME.part``             a download or a joined file that is not finished; a download is resumed
``NAME.part.json``        the address that those bytes came from, and the server's mark of their
                          version
``NAME.damaged``          a file that was there and was not the published one: kept, never
                          overwritten
``.NAME.unpacking/``      an archive that is being unpacked; after a kill it is deleted and begun
                          again
``.NAME.unpacked``        which archive was unpacked, by checksum: it may be deleted, and is not
                          unpacked again
========================  ==========================================================================

The record ``.NAME.unpacked`` is {"sha256": of the archive, "sources": {name: sha256} of it and its
parts, "into", "top": names that lay there}. Nothing is trusted: neither lengths that a server
states nor names and sizes in an archive.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.datasets import transfer, unpack
from patchifier.datasets.sheet import Archive, Remote, Sheet
from patchifier.datasets.transfer import RetryPolicy, fault, part_of, set_aside, sha256
from patchifier.datasets.unpack import DamagedArchiveError, RefusedArchiveError
from patchifier.io import Progress, silent, write_json
from patchifier.jobs import folder_lock

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Fetched:
    """Result of :func:`fetch`: names of a data set's files, by what was done with each.

    Attributes
    ----------
    downloaded, present : tuple of str
        Files that were downloaded, and files that were there already and fit.
    joined, unpacked : tuple of str
        Archives that were joined from parts, and that were unpacked, this time.
    missing : dict of str
        Files that could not be had -> why, and what a person can do. Empty if all is well.
    notes : dict of str
        Files that were not verified, were set aside or were not needed -> why.
    """

    downloaded: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    unpacked: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


def fetch(
    sheet: Sheet,
    root: str | Path,
    *,
    progress: Progress = silent,
    retry: RetryPolicy = transfer.DEFAULT_RETRY,
) -> Fetched:
    """Download what a data sheet lists into a folder, check it, join parts and unpack archives.

    Files that are there already are checked and kept. A file that cannot be had stops nothing else:
    it is listed in `missing`. `progress` counts megabytes, file by file; with 0 in all, the note is
    what it connects to. `retry` decides when a connection has stalled.

    Raises
    ------
    RequestError
        If the root cannot be written to, the disk is full, another fetch works in this root, or the
        sheet lists no files.
    """
    if not sheet.remotes and not sheet.archives:
        raise RequestError(
            f"data set {sheet.name!r} cannot be fetched: its sheet lists no files. "
            f"{sheet.steps or f'See {sheet.home}.'}"
        )
    job = _Job(sheet, Path(root), progress, retry)
    of_archives = {name for archive in sheet.archives for name in (archive.name, *archive.parts)}
    try:
        job.root.mkdir(parents=True, exist_ok=True)
        with folder_lock(job.root, "fetch"):
            for name in dict.fromkeys(remote.name for remote in sheet.remotes):
                if name not in of_archives:
                    _obtain(job, job.remote(name))
            for archive in sheet.archives:
                _obtain_archive(job, archive)
    except OSError as error:
        raise RequestError(_explain(error, job.root)) from error
    done = {kind: tuple(dict.fromkeys(names)) for kind, names in job.done.items()}
    return Fetched(**done, missing=job.missing, notes=job.notes)


def _explain(error: OSError, root: Path) -> str:
    where = error.filename or root
    if error.errno in FULL:
        return (
            f"{where}: the disk is full ({error.strerror}). Free some space, or choose another "
            "--root; run it again and it goes on where it stopped."
        )
    reason = error.strerror or error
    return f"{where}: cannot be written or read ({reason}). Choose a --root that can be written to."


@dataclass
class _Job:
    """One call of fetch and its outcome so far."""

    sheet: Sheet
    root: Path
    progress: Progress
    retry: RetryPolicy
    done: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Path of a name of the sheet; one that is not below the root is a fault of the sheet."""
        try:
            return self.root / unpack.relative(name)
        except RefusedArchiveError as error:
            raise RequestError(
                f"data sheet {self.sheet.name!r} {error}: expected a path below the root."
            ) from error

    def add(self, kind: str, *names: str) -> None:
        """Record what was done with files."""
        self.done.setdefault(kind, []).extend(names)

    def note(self, name: str, text: str) -> None:
        """Add to the notes about a file."""
        if text not in self.notes.get(name, ""):
            self.notes[name] = f"{self.notes[name]}; {text}" if name in self.notes else text

    def remote(self, name: str) -> Remote:
        """Row of the sheet about a file, or one that has the name alone."""
        known = (remote for remote in self.sheet.remotes if remote.name == name)
        return next(known, Remote(name))


# --- one file ---


def _obtain(job: _Job, remote: Remote) -> bool:
    """Have a file in place and checked, from disk or from the first address that gives it.

    A dead address is tried once: it may be back.
    """
    path = job.path(remote.name)
    if _is_present(job, remote, path):
        return True
    reasons = [f"no longer published: {remote.dead}"] if remote.dead else []
    retry = replace(job.retry, attempts=1) if remote.dead else job.retry
    for url in remote.urls:
        try:
            transfer.download(remote, url, path, retry=retry, progress=job.progress)
        except transfer.UnavailableError as error:
            reasons.append(f"{url} {error}")
        else:
            job.add("downloaded", remote.name)
            _note_unverified(job, remote)
            return True
    if not remote.urls:
        reasons.append("no address is known to download it from")
    job.missing[remote.name] = f"{'; '.join(reasons)}. {_by_hand(job, remote)}"
    return False


def _is_present(job: _Job, remote: Remote, path: Path) -> bool:
    """Whether the published file is there already; another file of its name is set aside."""
    if not path.exists():
        return False
    wrong = fault(path, remote, job.progress)
    if wrong:
        job.note(remote.name, f"the file that was there {wrong}: kept as {set_aside(path).name}")
        return False
    job.add("present", remote.name)
    transfer.discard(part_of(path))
    _note_unverified(job, remote)
    return True


def _note_unverified(job: _Job, remote: Remote) -> None:
    if not remote.sha256:
        size = " (its size fits)" if remote.size_b is not None else ""
        job.note(remote.name, f"not verified: no checksum published{size}")


def _by_hand(job: _Job, remote: Remote) -> str:
    """What a person can do about a file that no address gives."""
    mirrors = f"Addresses that had it: {', '.join(remote.urls)}."
    put = f"Put the file at {job.path(remote.name)} and run this again: it is checked and used."
    texts = (mirrors if remote.dead and remote.urls else "", job.sheet.steps, put)
    return " ".join(text for text in texts if text)


# --- one archive ---


def _obtain_archive(job: _Job, archive: Archive) -> None:
    """Have the content of an archive in place."""
    record = _read_record(job, archive)
    if record and _is_current(job, archive, record["sources"]):
        return
    sources = _obtain_sources(job, archive)
    if not sources or (archive.name not in sources and not _join(job, archive)):
        return
    digests = {
        name: job.remote(name).sha256.lower() or sha256(job.path(name), job.progress)
        for name in dict.fromkeys([archive.name, *sources])
    }
    if record.get("sha256") != digests[archive.name]:
        _unpack(job, archive, digests)


def _record_path(job: _Job, archive: Archive) -> Path:
    path = job.path(archive.name)
    return path.with_name(f".{path.name}.unpacked")


def _read_record(job: _Job, archive: Archive) -> dict[str, Any]:
    """Record of an unpacked archive if its topmost files exist, else nothing."""
    target = job.path(archive.into)
    try:
        record = json.loads(_record_path(job, archive).read_text(encoding="utf-8"))
        sound = isinstance(record["sha256"], str) and isinstance(record["sources"], dict)
        there = all(os.path.lexists(target / str(name)) for name in record["top"])
        return dict(record) if sound and there and record["into"] == archive.into else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_current(job: _Job, archive: Archive, sources: Mapping[str, str]) -> bool:
    """Whether the content is from the very files that the sheet names.

    Those may be deleted by now.
    """
    here = [name for name in sources if job.path(name).exists()]
    for name, digest in sources.items():
        if job.remote(name).sha256.lower() not in ("", digest):
            return False
        if name in here and sha256(job.path(name), job.progress) != digest:
            return False
    job.add("present", *here)
    for name in dict.fromkeys([*archive.parts, archive.name]):
        if not job.path(name).exists():
            job.note(name, f"not needed: {archive.name} was unpacked before")
    return True


def _obtain_sources(job: _Job, archive: Archive) -> list[str]:
    """Have the parts, or else the whole; return the names.

    Files on disk come first, dead addresses last.
    """
    ways = [[job.remote(name) for name in archive.parts]] if archive.parts else []
    there = job.path(archive.name).exists()
    if there or not ways or any(remote.name == archive.name for remote in job.sheet.remotes):
        ways.insert(0 if there else len(ways), [_whole(job, archive)])
    ways.sort(key=lambda way: any(each.dead and not job.path(each.name).exists() for each in way))
    for way in ways:
        had = (_obtain(job, remote) for remote in way)
        # Of the last way every file is downloaded; where there is another way, nothing is
        # downloaded that is not needed.
        if all(list(had) if way is ways[-1] else had):
            names = [remote.name for remote in way]
            others = {remote.name for other in ways for remote in other} - set(names)
            for name in [name for name in job.missing if name in others]:
                job.note(name, f"not needed, and could not be had: {job.missing.pop(name)}")
            return names
    return []


def _whole(job: _Job, archive: Archive) -> Remote:
    """Row of the sheet about the archive itself.

    Its size is that of its parts together, if the sheet has none.
    """
    remote, sizes_b = job.remote(archive.name), [job.remote(name).size_b for name in archive.parts]
    known_b = [size_b for size_b in sizes_b if size_b is not None]
    if remote.size_b is None and sizes_b and len(known_b) == len(sizes_b):
        return replace(remote, size_b=sum(known_b))
    return remote


def _join(job: _Job, archive: Archive) -> bool:
    """Write the parts one after the other, and check the whole."""
    path, digest, done_b = job.path(archive.name), hashlib.sha256(), 0
    part, paths = part_of(path), [job.path(name) for name in archive.parts]
    total_b = sum(source.stat().st_size for source in paths)
    part.parent.mkdir(parents=True, exist_ok=True)
    transfer.discard(part)
    with part.open("wb") as out:
        for source in paths:
            with source.open("rb") as stream:
                while chunk := stream.read(transfer.CHUNK_B):
                    out.write(chunk)
                    digest.update(chunk)
                    done_b += len(chunk)
                    transfer.show(job.progress, done_b, total_b, f"joining {path.name}")
    wrong = fault(part, _whole(job, archive), job.progress, found=digest.hexdigest())
    if wrong:
        transfer.discard(part)
        job.missing[archive.name] = (
            f"joined from its parts, it {wrong}; thrown away. A part is not the published one: "
            f"{_set_aside_unproven(job, archive.parts)}"
        )
        return False
    transfer.finish(part, path)
    job.add("joined", archive.name)
    return True


def _set_aside_unproven(job: _Job, names: Sequence[str]) -> str:
    """Set aside the files without a checksum, so that they are fetched anew.

    Return what was done, in words.
    """
    unproven = [name for name in names if not job.remote(name).sha256 and job.path(name).exists()]
    aside = [set_aside(job.path(name)).name for name in unproven]
    if aside:
        return f"kept as {', '.join(aside)}; run this again to fetch it anew."
    return (
        "but it has the published checksum. Report this: "
        "the sheet is wrong, or the published file is damaged."
    )


def _unpack(job: _Job, archive: Archive, digests: Mapping[str, str]) -> None:
    """Unpack beside, move into place, write the record.

    In this order, so that a kill in between costs nothing but time.
    """
    path, target = job.path(archive.name), job.path(archive.into)
    work = path.with_name(f".{path.name}.unpacking")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        unpack.unpack(path, work, most_b=archive.unpacked_b, progress=job.progress)
        top = sorted(os.listdir(work))
        aside = unpack.merge(work, target)
    except RefusedArchiveError as error:
        job.missing[archive.name] = (
            f"{error}: nothing of it was unpacked. If you trust {path}, unpack it yourself into "
            f"{target}."
        )
        return
    except DamagedArchiveError as error:
        parts = [name for name in digests if name != archive.name]
        proven = job.remote(archive.name).sha256 or all(job.remote(name).sha256 for name in parts)
        what = _set_aside_unproven(job, [] if proven and parts else list(digests))
        job.missing[archive.name] = f"{error}: nothing of it was unpacked; {what}"
        return
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for place in aside:
        kept = place.relative_to(job.root)
        job.note(archive.name, f"a file that differed from the archive's was kept as {kept}")
    record = {"sha256": digests[archive.name], "sources": dict(digests)}
    record |= {"into": archive.into, "top": top}
    write_json(_record_path(job, archive), record)
    job.add("unpacked", archive.name)
