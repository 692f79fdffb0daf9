"""Folders and zip files of heads: where they are, and what is in them."""

import contextlib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from patchifier import weights
from patchifier.config import RequestError
from patchifier.io import expanded, restore_folder

JSON, WEIGHTS = "head.json", "head.safetensors"
MOST_TEXT = 2**24  # bytes of head.json
MOST_BYTES = 2**28  # of weights in a zip: 1,000 labels of 2**16 numbers
CHUNK = 2**20  # bytes that are unpacked at once
OWN = re.compile(  # names in a folder of a head; the last are left by a kill
    r"head\.(json|safetensors)|README\.md|\.head\.json\.new(-\d+)?(\.lock)?"
)


def is_head(path: str | Path | None) -> bool:
    """Whether a path is the folder of a head, or such a folder in a zip file."""
    if path is None:
        return False
    return os.path.isfile(Path(path) / JSON) or JSON in _members(Path(path))


def find(path: str | Path | None) -> Path | None:
    """Folder or zip file of a head: of the package by its name, or at a path; None if it is none.

    A folder that a killed process moved aside is put back.
    """
    if path is None or (isinstance(path, str) and path in weights.names()):
        return None
    if found := weights.find_head(path):
        return found
    place = Path(expanded(path))
    restore_folder(place)
    return place if is_head(place) else None


def find_in(folder: Path) -> list[Path]:
    """Heads in a folder, sorted: folders and zip files whose names begin with no point.

    Folders that a killed process moved aside are put back.
    """
    for aside in filter(is_head, folder.glob(".*.old")):
        restore_folder(folder / aside.name.removeprefix(".").removesuffix(".old"))
    shown = (each for each in folder.iterdir() if not each.name.startswith("."))
    return sorted(each for each in shown if is_head(each))


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The two files of a head in a zip file, by name; none in another file."""
    if path.suffix.lower() != ".zip" or not path.is_file():
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {one.filename: one for one in archive.infolist()}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
    for name in members:
        folder, slash, file = name.rpartition("/")
        if file == JSON and "/" not in folder:
            beside = {one: members.get(f"{folder}{slash}{one}") for one in (JSON, WEIGHTS)}
            return {one: member for one, member in beside.items() if member}
    return {}


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Folder of a head; that of a zip file is a temporary one."""
    members = _members(path)
    if not members:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        for name, member in members.items():
            _unpack(archive, member, Path(folder) / name)
        yield Path(folder)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Unpack a file of a head in parts, since the size that a zip file states may be wrong."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{path.name} is neither stored nor deflated")
    most = MOST_TEXT if path.name == JSON else MOST_BYTES
    if member.file_size > most:
        raise ValueError(f"{path.name} has {member.file_size} bytes")
    written = 0
    with archive.open(member) as packed, path.open("wb") as file:
        while part := packed.read(CHUNK):  # reading all at once ignores the size
            written += file.write(part)
            if written > most:
                raise ValueError(f"{path.name} has more than {most} bytes")


def require_replaceable(folder: Path) -> None:
    """Refuse a folder that holds more than a head, since saving a head removes what is there."""
    if not folder.exists():
        return
    if not (folder / JSON).is_file():
        raise RequestError(f"{folder} exists and is not a head: choose another name.")
    others = sorted(
        each.name for each in folder.iterdir() if each.is_dir() or not OWN.fullmatch(each.name)
    )
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise RequestError(
            f"{folder} holds {others[0]!r}{more} beside a head: move that elsewhere, or choose "
            "another name."
        )
