"""Archives, none of which is trusted: zip, tar and tar.gz.

Every member is a plain file or a folder below the one that it is unpacked into, and sizes are
counted as they are written, not as they are declared. An archive with a link, a device or a name
that leads elsewhere is refused as a whole. (The standard library's own filter for tar came with
patch releases of 3.11, so it cannot be relied on.)
"""

import contextlib
import errno
import filecmp
import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import IO

from patchifier.datasets.transfer import CHUNK_B, set_aside, show
from patchifier.io import Progress

MOST_FILES = 1_000_000  # the largest set that is fetched as files, NSynth, has 305,979
MOST_FOLDERS = 64  # one inside the other
MOST_HEADER_B = 2**24  # of one header in a tar: it is read into memory
BAD_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)
BAD_CONTENT = (*BAD_ZIP, tarfile.TarError, EOFError, RuntimeError, ValueError)
BAD_NAME = {
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL
}  # fmt: skip

# Name, content (None: a folder), bytes of the archive read so far.
Member = tuple[str, IO[bytes] | None, int]


class RefusedArchiveError(Exception):
    """Not unpacked: unsafe, or larger than its sheet allows."""


class DamagedArchiveError(Exception):
    """Cannot be read to its end."""


def relative(name: str) -> Path:
    """Path of a member below the folder that it is unpacked into.

    One that leads elsewhere, on this system or another, is a RefusedArchiveError.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    leaves = any(not part.strip(". ") or re.match(r"[A-Za-z]:", part) for part in parts)
    if leaves or name.startswith(("/", "\\")):
        raise RefusedArchiveError(f"holds {name[:200]!r}, which leads out of its folder")
    if "\0" in name or len(parts) > MOST_FOLDERS:
        raise RefusedArchiveError(
            f"holds {name[:200]!r}, which is no sound name (a zero byte, or more than "
            f"{MOST_FOLDERS} folders)"
        )
    return Path(*parts)


def unpack(path: Path, into: Path, *, most_b: int, progress: Progress) -> int:
    """Write every member below an empty folder; return the number of files.

    After a RefusedArchiveError or DamagedArchiveError the folder holds a part of the archive.
    """
    name, left_b, files, total_b = "", most_b, 0, path.stat().st_size
    try:
        with contextlib.closing(_members(path, most_b)) as members:
            for count, (name, content, position_b) in enumerate(members, 1):
                if count > MOST_FILES:
                    raise RefusedArchiveError(f"holds more than {MOST_FILES:,} files")
                place = into / relative(name)
                if content is not None and place == into:
                    raise RefusedArchiveError(f"holds a file with the name {name!r}")
                left_b -= _write(content, place, left_b, most_b)
                files += content is not None
                show(progress, min(position_b, total_b - 1), total_b, f"unpacking {path.name}")
    except BAD_CONTENT as error:
        raise DamagedArchiveError(f"is damaged ({error or type(error).__name__})") from error
    except OSError as error:
        if error.errno is None:  # of gzip: bad content is an OSError without a number
            raise DamagedArchiveError(f"is damaged ({error})") from error
        if error.errno in BAD_NAME:
            raise RefusedArchiveError(
                f"holds {name[:200]!r}, a name that cannot be had here ({error.strerror})"
            ) from error
        raise
    if not files:
        raise DamagedArchiveError("holds no files")
    show(progress, total_b, total_b, f"unpacking {path.name}")
    return files


def _write(content: IO[bytes] | None, place: Path, left_b: int, most_b: int) -> int:
    """Write one member; return its real size.

    A later member of the same name replaces the earlier, as in tar.
    """
    if content is None:
        place.mkdir(parents=True, exist_ok=True)
        return 0
    place.parent.mkdir(parents=True, exist_ok=True)
    written_b = 0
    with content, place.open("wb") as out:
        while chunk := content.read(CHUNK_B):
            written_b += len(chunk)
            if written_b > left_b:
                raise RefusedArchiveError(
                    f"unpacks to more than the {most_b:,} bytes that its sheet allows"
                )
            out.write(chunk)
    return written_b


def _members(path: Path, most_b: int) -> Generator[Member, None, None]:
    with path.open("rb") as stream:
        start = stream.read(2)
    if start == b"PK":
        yield from _members_of_zip(path, most_b)
    else:
        yield from _members_of_tar(path, zipped=start == b"\x1f\x8b")


def _members_of_zip(path: Path, most_b: int) -> Generator[Member, None, None]:
    with zipfile.ZipFile(path) as archive:
        infos, position_b = archive.infolist(), 0
        declared_b = sum(info.file_size for info in infos)
        if declared_b > most_b:
            raise RefusedArchiveError(
                f"declares that it unpacks to {declared_b:,} bytes, more than the {most_b:,} that "
                "its sheet allows"
            )
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if it was not packed on Unix
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise RefusedArchiveError(f"holds {info.filename!r}, a link or a device")
            position_b += info.compress_size
            is_folder = info.filename.endswith("/")  # is_dir() fails for an empty name
            yield info.filename, None if is_folder else archive.open(info), position_b


def _members_of_tar(path: Path, *, zipped: bool) -> Generator[Member, None, None]:
    with path.open("rb") as raw, _decompressed(raw, zipped) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            before_b = -1
            while (member := archive.next()) is not None:
                if archive.offset <= before_b:  # a negative size would make an endless loop
                    raise DamagedArchiveError("is damaged (a member that ends before it begins)")
                if not (member.isreg() or member.isdir()):
                    raise RefusedArchiveError(f"holds {member.name!r}, a link or a device")
                before_b = archive.offset
                content = archive.extractfile(member) if member.isreg() else None
                yield member.name, content, raw.tell()
                archive.members.clear()  # type: ignore[attr-defined] # or a million of them pile up
            stream.seek(archive.offset)  # tarfile takes a broken header, or none, for the end
            end = stream.read(tarfile.BLOCKSIZE)
            if end.strip(b"\0") or (len(end) < tarfile.BLOCKSIZE and not zipped):
                raise DamagedArchiveError("is damaged (it breaks off, or a header is broken)")
        while zipped and stream.read(CHUNK_B):  # the checksum of a gzip stream is at its end
            pass


def _decompressed(raw: IO[bytes], zipped: bool) -> contextlib.AbstractContextManager[IO[bytes]]:
    if zipped:
        return _BoundedGzip(fileobj=raw, mode="rb")  # type: ignore[return-value]
    return contextlib.nullcontext(raw)


class _BoundedGzip(gzip.GzipFile):
    """A gzip stream that refuses to read more at once than memory bears.

    A header in a tar may declare any length.
    """

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes; refuse a size that is not given, or above 16 MiB."""
        if size is None or not 0 <= size <= MOST_HEADER_B:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def merge(work: Path, target: Path) -> list[Path]:
    """Move what a folder holds into another, whole folders where they are new.

    Return the files set aside since they were in the way and differed.
    """
    aside: list[Path] = []
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted(work.iterdir()):
        place = target / source.name
        if source.is_dir() and place.is_dir():
            aside += merge(source, place)
        elif source.is_file() and place.is_file() and filecmp.cmp(source, place, shallow=False):
            source.unlink()
        else:
            if os.path.lexists(place):
                aside.append(set_aside(place))
            source.replace(place)
    return aside
