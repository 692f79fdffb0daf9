"""Places that fsspec knows: folders here and on object stores, into which files go whole or not at all, and files to fetch from anywhere."""

import contextlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.integrations import need

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
WAITS_S = (1.0, 4.0)  # before a second and a third try
LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    RequestError,
)  # another try is no use


def is_url(name: str) -> bool:
    """Whether a name has a scheme, such as ``s3://``."""
    return URL.match(name) is not None


def filesystem(url: str) -> tuple[Any, str]:
    """File system of fsspec, and the path in it, of a URL or a plain path.

    Raises
    ------
    RequestError
        If the scheme is unknown, needs a package that is not there, or cannot be shared between processes.
    """
    fsspec, scheme = (
        need("fsspec", "cluster"),
        url.partition("://")[0].lower() if is_url(url) else "file",
    )
    if scheme == "memory":
        raise RequestError(
            f"{url}: what lies in memory:// is seen by one process alone, not by its workers: use a folder or an object store."
        )
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        raise RequestError(
            f"{url}: cannot be opened ({error}). Install that package with pip, on every machine of the cluster."
        ) from error
    except ValueError as error:
        raise RequestError(
            f"{url}: cannot be opened ({error}), expected a scheme that fsspec knows, such as s3:// (pip install s3fs), gs:// (gcsfs), az:// (adlfs), http://."
        ) from error


def fetch(url: str, local: Path) -> int:
    """Copy a file to a local path; its time of change in nanoseconds, or 0 where that is not known.

    Raises
    ------
    Exception
        Whatever the file system raises in the end; :func:`is_passing` tells whether another day may be better.
    """
    files, path = filesystem(url)
    patiently(lambda: files.get_file(path, str(local)))
    with contextlib.suppress(Exception):  # some tell it, some do not, some raise
        return round(files.modified(path).timestamp() * 1e6) * 1000
    return 0


def patiently(work: Callable[[], Any]) -> Any:
    """Do something that a network can spoil, and do it again if it did."""
    for wait_s in WAITS_S:
        try:
            return work()
        except Exception as error:  # each file system has its own
            if not is_passing(error):
                raise
            time.sleep(wait_s)
    return work()


def is_passing(error: Exception) -> bool:
    """Whether an error may be gone at the next try: not where the file is missing, or the server refuses."""
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return not refused and not isinstance(error, LASTING)


class Store:
    """A folder, here or on an object store.

    Parameters
    ----------
    place : str
        Path or URL.
    """

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/") if is_url(place) else os.path.realpath(place)
        self.files, root = filesystem(self.place)
        self.root = root.rstrip("/")
        self.local = "file" in (
            [self.files.protocol] if isinstance(self.files.protocol, str) else self.files.protocol
        )

    def path(self, name: str) -> str:
        """Path of a file in its file system."""
        return f"{self.root}/{name}"

    def names(self) -> set[str]:
        """Names of the files and folders in it, none if it is not there yet."""
        self.files.invalidate_cache()
        try:
            found = patiently(lambda: self.files.ls(self.root, detail=False))
        except FileNotFoundError:
            return set()
        return {path.rstrip("/").rpartition("/")[2] for path in found} - {""}

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        self.files.invalidate_cache()
        return bool(patiently(lambda: self.files.exists(self.path(name))))

    def put(self, made: Path, name: str) -> None:
        """Put a local file there: an object in one request, a file beside and renamed."""
        if not self.local:
            patiently(lambda: self.files.put_file(str(made), self.path(name)))
            return
        place = Path(self.path(name))
        beside = place.with_name(
            f".{place.name}.new-{uuid.uuid4().hex}"
        )  # processes of two machines can have the same number
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with made.open("rb") as source, beside.open("wb") as stream:
                shutil.copyfileobj(source, stream)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(place)
        finally:
            beside.unlink(missing_ok=True)

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        with tempfile.TemporaryDirectory(prefix="patchifier-") as folder:
            made = Path(folder) / "text"
            made.write_text(text, encoding="utf-8", errors="surrogateescape")
            self.put(made, name)

    def read(self, name: str) -> str:
        """Read a text file."""
        text: bytes = patiently(lambda: self.files.cat_file(self.path(name)))
        return text.decode("utf-8", "surrogateescape")

    def get(self, name: str, local: Path) -> None:
        """Copy a file from there."""
        patiently(lambda: self.files.get_file(self.path(name), str(local)))

    def remove(self, name: str) -> None:
        """Take a file or folder away, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.files.rm(self.path(name), recursive=True)
