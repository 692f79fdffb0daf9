"""One archive of a data sheet: get it or its parts, join, unpack; once is enough.

``.NAME.unpacked`` says from what: {"sha256": of the archive, "sources": {name: sha256} of it and its parts, "into", "top": what then lay there}.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchifier.datasets.fetch.job import Job, obtain
from patchifier.datasets.fetch.place import (
    CHUNK_B,
    discard,
    fault,
    finish,
    part_of,
    set_aside,
    sha256,
    show,
    write_whole,
)
from patchifier.datasets.fetch.unpack import Damaged, Refused, merge, unpack

if TYPE_CHECKING:
    from patchifier.datasets.sheet import Archive, Remote


def obtain_archive(job: Job, archive: "Archive") -> None:
    """Have an archive's content in place."""
    if _was_unpacked(job, archive):
        return
    sources = _obtain_sources(job, archive)
    if not sources:
        return
    if archive.name not in sources and not _join(job, archive):
        return
    digests = {
        name: job.remote(name).sha256.lower() or sha256(job.path(name), job.progress)
        for name in dict.fromkeys([archive.name, *sources])
    }
    marker = _read_marker(job, archive)
    if not (marker.get("sha256") == digests[archive.name] and _holds(job, archive, marker)):
        _unpack(job, archive, digests)


def _was_unpacked(job: Job, archive: "Archive") -> bool:
    """Whether the content is there, from the very files that the sheet names; those may be gone by now."""
    marker = _read_marker(job, archive)
    if not _holds(job, archive, marker):
        return False
    here = [name for name in marker["sources"] if job.path(name).exists()]
    for name, digest in marker["sources"].items():
        if job.remote(name).sha256.lower() not in ("", digest) or (
            name in here and sha256(job.path(name), job.progress) != digest
        ):
            return False
    job.present += here
    for name in dict.fromkeys([*archive.parts, archive.name]):
        if not job.path(name).exists():
            job.note(name, f"not needed: {archive.name} was unpacked before")
    return True


def _obtain_sources(job: Job, archive: "Archive") -> list[str]:
    """Have the parts, or else the whole: names of what was had. What is on disk comes first, what is dead last."""
    whole, parts = _whole(job, archive), [job.remote(name) for name in archive.parts]
    there = job.path(archive.name).exists()
    ways = (
        [[whole]]
        if there or not parts or any(remote.name == archive.name for remote in job.sheet.remotes)
        else []
    )
    ways = sorted(
        [*ways, parts] if there else [parts, *ways],
        key=lambda way: any(remote.dead and not job.path(remote.name).exists() for remote in way),
    )
    ways = [way for way in ways if way]
    for way in ways:
        had = (obtain(job, remote) for remote in way)
        if all(
            [*had] if way is ways[-1] else had
        ):  # where there is another way, nothing is downloaded in vain
            for name in [
                remote.name
                for other in ways
                if other is not way
                for remote in other
                if remote.name in job.missing
            ]:
                job.note(name, f"not needed, and could not be had: {job.missing.pop(name)}")
            return [remote.name for remote in way]
    return []


def _whole(job: Job, archive: "Archive") -> "Remote":
    """What is known of the archive itself: as long as its parts together, if nobody says more."""
    remote, sizes_b = job.remote(archive.name), [job.remote(name).size_b for name in archive.parts]
    known_b = [size_b for size_b in sizes_b if size_b is not None]
    return (
        replace(remote, size_b=sum(known_b))
        if remote.size_b is None and sizes_b and len(known_b) == len(sizes_b)
        else remote
    )


def _join(job: Job, archive: "Archive") -> bool:
    """Write the parts one after the other, and check the whole."""
    path, digest, done_b = job.path(archive.name), hashlib.sha256(), 0
    part, paths = part_of(path), [job.path(name) for name in archive.parts]
    total_b = sum(source.stat().st_size for source in paths)
    part.parent.mkdir(parents=True, exist_ok=True)
    discard(part)
    with part.open("wb") as out:
        for source in paths:
            with source.open("rb") as stream:
                while chunk := stream.read(CHUNK_B):
                    out.write(chunk)
                    digest.update(chunk)
                    done_b += len(chunk)
                    show(job.progress, done_b, total_b, f"joining {path.name}")
    whole = _whole(job, archive)
    wrong = fault(part, replace(whole, sha256=""), job.progress)
    if whole.sha256 and digest.hexdigest() != whole.sha256.lower():
        wrong = f"has sha256 {digest.hexdigest()}, expected {whole.sha256.lower()}"
    if wrong:
        discard(part)
        job.missing[archive.name] = (
            f"joined from its parts, it {wrong}; thrown away. A part is not what it should be: {_blame(job, archive.parts)}"
        )
        return False
    finish(part, path)
    job.joined.append(archive.name)
    return True


def _blame(job: Job, names: Sequence[str]) -> str:
    """Set aside what carries no checksum, so that it is fetched anew; and say so."""
    aside = [
        set_aside(job.path(name)).name
        for name in names
        if not job.remote(name).sha256 and job.path(name).exists()
    ]
    if aside:
        return f"kept as {', '.join(aside)}; run this again to fetch it anew."
    return "but it is just what the sheet says is published. Report this: the sheet is wrong, or so is the publisher."


def _unpack(job: Job, archive: "Archive", digests: Mapping[str, str]) -> None:
    """Unpack beside, move into place, say that it is done; in this order, so that a kill in between costs nothing but time."""
    path, target = job.path(archive.name), job.path(archive.into)
    work = path.with_name(f".{path.name}.unpacking")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        unpack(path, work, most_b=archive.unpacked_b, progress=job.progress)
        top = sorted(os.listdir(work))
        aside = merge(work, target)
    except Refused as error:
        job.missing[archive.name] = (
            f"{error}: nothing of it was unpacked. If you trust {path}, unpack it yourself into {target}."
        )
        return
    except Damaged as error:
        proven = job.remote(archive.name).sha256 or all(
            job.remote(name).sha256 for name in digests if name != archive.name
        )
        job.missing[archive.name] = (
            f"{error}: nothing of it was unpacked; {_blame(job, [] if proven and len(digests) > 1 else list(digests))}"
        )
        return
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for place in aside:
        job.note(
            archive.name,
            f"a file that differed from the archive's was kept as {place.relative_to(job.root)}",
        )
    marker = {
        "sha256": digests[archive.name],
        "sources": dict(digests),
        "into": archive.into,
        "top": top,
    }
    write_whole(_marker(path), json.dumps(marker, indent=1) + "\n")
    job.unpacked.append(archive.name)


def _marker(path: Path) -> Path:
    return path.with_name(f".{path.name}.unpacked")


def _read_marker(job: Job, archive: "Archive") -> dict[str, Any]:
    """What was unpacked before; nothing, if what stands there is no such record."""
    try:
        marker = json.loads(_marker(job.path(archive.name)).read_text(encoding="utf-8"))
        sound = (
            isinstance(marker["sha256"], str)
            and isinstance(marker["sources"], dict)
            and isinstance(marker["top"], list)
            and "into" in marker
        )
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(marker) if sound else {}


def _holds(job: Job, archive: "Archive", marker: Mapping[str, Any]) -> bool:
    """Whether what was unpacked still lies there, by its topmost names; ``patchifier check`` looks at every file."""
    target = job.path(archive.into)
    return (
        bool(marker)
        and marker["into"] == archive.into
        and all(os.path.lexists(target / str(name)) for name in marker["top"])
    )
