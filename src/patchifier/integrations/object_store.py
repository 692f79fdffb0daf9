"""Files and folders that fsspec reaches, on this machine or on an object store.

Lists of clips, copies for decoding, the parts of a job.

The folder of a job::

    OUT/facts.json           model, settings, number and hash of the clips, clips in a part
    OUT/part-00042.parquet   rows of consecutive clips; its metadata names skipped clips
    OUT/skipped.csv          path and reason of each clip without rows, at the end
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from patchifier.audio import SUFFIXES
from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset, manifest
from patchifier.extras import need
from patchifier.io import write_json
from patchifier.library import sources, table
from patchifier.library.sources import key

Result = TypeVar("Result")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
WAITS_S = (1.0, 4.0)  # before the second and the third try
LASTING = (  # errors after which another try is useless
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError,
    NotImplementedError, RequestError,
)  # fmt: skip
GROUP, FETCHES = 8, 4  # files copied while as many are embedded, and copied at the same time
PART_CLIPS = (8, 64)  # smallest and largest number of clips in a part
PARTS = 256  # number of parts above which parts grow
OWN = re.compile(  # the last is what killed workers leave
    r"facts\.json|skipped\.csv|trying|part-\d+\.parquet|\..+\.new-[0-9a-f]+(\.new(\.lock)?)?"
)


# --- files ---


def is_url(name: str) -> bool:
    """Whether a name has a scheme, such as ``s3://``."""
    return URL.match(name) is not None


def filesystem(url: str, *, shared: bool = True) -> tuple[Any, str]:
    """File system of fsspec, and path in it; a `shared` one is seen by several processes."""
    fsspec = need("fsspec")
    if shared and url.lower().startswith("memory://"):
        raise RequestError(
            f"{url}: what lies in memory:// is seen by one process alone, not by its workers: use "
            "a folder or an object store."
        )
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        raise RequestError(
            f"{url}: cannot be opened ({error}). Install that package with pip, on every machine "
            "of the cluster."
        ) from error
    except ValueError as error:
        raise RequestError(
            f"{url}: cannot be opened ({error}), expected a scheme that fsspec knows, such as "
            "s3:// (pip install s3fs), gs:// (gcsfs), az:// (adlfs), http://."
        ) from error


def patiently(work: Callable[[], Result]) -> Result:
    """Do something over a network, and again after an error that may pass."""
    for wait_s in WAITS_S:
        try:
            return work()
        except Exception as error:  # each file system has its own
            if not is_passing(error):
                raise
            time.sleep(wait_s)
    return work()


def is_passing(error: Exception) -> bool:
    """Whether another try may succeed: not where the file is missing, or the server refuses."""
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return not refused and not isinstance(error, LASTING)


class Store:
    """A folder, here or on an object store, in which a file is whole or absent."""

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/") if is_url(place) else os.path.realpath(place)
        self.files, root = filesystem(self.place)
        self.root = root.rstrip("/")
        protocol = self.files.protocol
        self.local = "file" in ([protocol] if isinstance(protocol, str) else protocol)

    def path(self, name: str) -> str:
        """Path of a file in its file system."""
        return f"{self.root}/{name}"

    def names(self) -> set[str]:
        """Names of the files and folders in it; none if it does not exist."""
        self.files.invalidate_cache()
        try:
            found = patiently(lambda: self.files.ls(self.root, detail=False))
        except FileNotFoundError:
            return set()
        return {path.rstrip("/").rpartition("/")[2] for path in found} - {""}

    def write(self, name: str, fill: Callable[[Path], object]) -> None:
        """Write a file that `fill` makes: an object in one request, a file beside and renamed."""
        if self.local:
            os.makedirs(self.root, exist_ok=True)
            made = Path(self.path(f".{name}.new-{uuid.uuid4().hex}"))  # unique on all machines
            try:
                fill(made)
                made.replace(self.path(name))
            finally:
                made.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="patchifier-") as folder:
            made = Path(folder) / name
            fill(made)
            patiently(lambda: self.files.put_file(str(made), self.path(name)))

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.files.rm(self.path(name), recursive=True)

    @contextlib.contextmanager
    def local_files(self, names: Sequence[str]) -> Iterator[list[Path]]:
        """Give files of it as files of this machine."""
        if self.local:
            yield [Path(self.path(name)) for name in names]
            return
        with tempfile.TemporaryDirectory(prefix="patchifier-") as folder:
            paths = [Path(folder) / name for name in names]
            for path in paths:
                remote = self.path(path.name)
                patiently(functools.partial(self.files.get_file, remote, str(path)))
            yield paths


# --- clips ---


def find(given: str | Path | Sequence[str | Path]) -> tuple[list[Clip], list[tuple[str, str]]]:
    """List clips as :func:`patchifier.library.sources.find` does, of URLs too.

    A manifest may hold URLs and lie at one. A URL may be an audio file, a glob, or a folder if it
    ends in ``/``. A URL whose scheme cannot be opened is refused.
    """
    clips, lost = sources.find(given, remote=_listing)
    schemes = {clip.path.partition("://")[0]: clip.path for clip in clips if is_url(clip.path)}
    for url in schemes.values():
        filesystem(url)  # one of each scheme, before any worker starts
    return clips, lost


def _listing(source: str) -> sources.Listing | None:
    """Clips of a URL or of a manifest; None for other sources."""
    in_list = source.lower().endswith(manifest.SUFFIXES)
    if in_list and (is_url(source) or os.path.isfile(source)):
        return Dataset(source, tuple(_manifest(source))).clips, []
    if not is_url(source):
        return None
    found = _audio_at(source)
    expected = f"expected names that end in {', '.join(sorted(SUFFIXES))}"
    return found, [] if found else [(source, f"{source}: no audio there, {expected}.")]


def _manifest(source: str) -> Iterator[Clip]:
    """Clips of a manifest. Relative paths start from its folder."""
    for entry in _entries(source):
        name = given = manifest.path_of(entry.row, entry.where)
        start_s, end_s = (
            manifest.number_of(entry.row, what, entry.where) for what in ("start_s", "end_s")
        )
        if is_url(source) and not is_url(name) and not os.path.isabs(name):
            name = f"{source.rpartition('/')[0]}/{name}"
        path = name if is_url(name) else os.path.realpath(entry.root / name)
        yield Clip(str(entry.row.get("id") or given), path, start_s or 0.0, end_s)


def _entries(source: str) -> list[manifest.Entry]:
    if not is_url(source):
        return manifest.list_entries(Path(source))
    files, path = filesystem(source, shared=False)  # this process alone reads it
    with tempfile.TemporaryDirectory(prefix="patchifier-") as folder:
        local = Path(folder) / source.rpartition("/")[2]
        try:
            files.get_file(path, str(local))
        except Exception as error:  # each file system has its own
            raise RequestError(f"{source}: cannot be fetched ({reason_of(error)}).") from error
        try:
            return manifest.list_entries(local)
        except RequestError as error:
            raise RequestError(str(error).replace(str(local), source)) from None


def _audio_at(url: str) -> list[Clip]:
    """Audio of a URL: itself, the matches of a glob, or all files below a folder."""
    if not url.endswith("/") and "*" not in url:
        return [Clip(url, url)]
    files, path = filesystem(url)
    try:
        found = sorted(files.glob(path) if "*" in url else files.find(path))
    except Exception as error:  # each file system has its own
        raise RequestError(f"{url}: cannot be listed ({reason_of(error)}).") from error
    urls = [files.unstrip_protocol(name) for name in found]
    return [Clip(url, url) for url in urls if os.path.splitext(url)[1].lower() in SUFFIXES]


def reason_of(error: Exception) -> str:
    """Text of an error, or its kind if it has none."""
    return str(error) or type(error).__name__


# --- copies of files for decoding ---


def local_copies(clips: Sequence[Clip]) -> Iterator[list[str | Exception]]:
    """Give groups of consecutive clips as paths on this machine, or as errors.

    The next group is fetched meanwhile; no copy stays.
    """
    if not any(is_url(clip.path) for clip in clips):
        yield [clip.path for clip in clips]
        return
    with (
        tempfile.TemporaryDirectory(prefix="patchifier-") as folder,
        ThreadPoolExecutor(FETCHES) as pool,
    ):
        coming: list[Future[str | Exception]] = []
        for first in range(0, len(clips) + GROUP, GROUP):
            group = [future.result() for future in coming]
            coming = [
                pool.submit(_copy, clip.path, Path(folder) / str(number))
                for number, clip in enumerate(clips[first : first + GROUP], first)
            ]
            if group:
                yield group
            for path in group:
                if isinstance(path, str) and path.startswith(folder):
                    os.unlink(path)


def _copy(name: str, place: Path) -> str | Exception:
    if not is_url(name):
        return name
    local = place.with_suffix(Path(urlsplit(name).path).suffix)
    try:
        fetch(name, local)
    except Exception as error:  # each file system has its own
        local.unlink(missing_ok=True)
        return error
    return str(local)


def fetch(url: str, local: Path) -> None:
    """Copy a file to a local path, with its time of change, or 0 if that is unknown."""
    files, path = filesystem(url)
    patiently(lambda: files.get_file(path, str(local)))
    mtime_ns = 0
    with contextlib.suppress(Exception):  # some tell it, some do not, some raise
        mtime_ns = round(files.modified(path).timestamp() * 1e6) * 1000
    os.utime(local, ns=(mtime_ns, mtime_ns))


# --- the folder of parts ---


@dataclass(frozen=True)
class Part:
    """Summary of a finished part: rows, clips with rows, and skipped clips with reasons.

    `again`: a skipped clip may be fetched another day. `kept`: the part existed before this job.
    """

    rows: int
    files: int
    skipped: list[tuple[str, str]]
    again: bool
    kept: bool = False
    audio_s: float = 0.0


def part_name(number: int) -> str:
    """Name of the file of a part."""
    return f"part-{number:05d}.parquet"


def digest(clips: Sequence[Clip]) -> str:
    """Hash of a list of clips and its order."""
    return hashlib.sha256("".join(json.dumps(key(clip)) for clip in clips).encode()).hexdigest()


def claim(store: Store, facts: dict[str, Any], clips: Sequence[Clip]) -> dict[str, Any]:
    """Make a folder this job's own and return facts.json; refused if it is another job's."""
    names, size = store.names(), min(max(len(clips) // PARTS, PART_CLIPS[0]), PART_CLIPS[1])
    if "facts.json" in names:
        found = read_facts(store)
        table.require_same(found, facts, Path(store.place))
        count, same = found["job"]["clips"], found["job"]["sha256"] == digest(clips)
        if count != len(clips) or not same:
            raise RequestError(
                f"{store.place} is about another list of {count} clips, not these {len(clips)} in "
                "this order: name the same sources, or choose another --out."
            )
        return found
    strange = any(not OWN.fullmatch(name) for name in names)
    if strange or (store.local and Path(store.root).is_file()):
        raise RequestError(
            f"{store.place} exists and is not a job of 'patchifier embed --engine ray': choose "
            "another --out."
        )
    spec = {**facts, "job": {"clips": len(clips), "sha256": digest(clips), "part_clips": size}}
    try:
        store.write("facts.json", lambda new: write_json(new, spec))
    except (OSError, NotImplementedError) as error:
        raise RequestError(
            f"{store.place}: cannot be written to ({error or type(error).__name__}), expected a "
            "folder or an object store."
        ) from error
    return spec


def read_facts(store: Store) -> dict[str, Any]:
    """Read facts.json; a RequestError if the folder is not one of a job."""
    try:
        text = patiently(lambda: store.files.cat_file(store.path("facts.json")))
        found: dict[str, Any] = json.loads(text)
        missing = {*table.SAME, "format"} - found.keys()
        missing |= {"clips", "sha256", "part_clips"} - found["job"].keys()
        if missing:
            raise KeyError(*missing)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{store.place} has no facts.json that can be read ({error}), expected a folder from "
            "'patchifier embed --engine ray'."
        ) from error
    if found["format"] > table.FORMAT:
        raise RequestError(
            f"{store.place} has format {found['format']}, this version reads up to "
            f"{table.FORMAT}: pip install -U patchifier."
        )
    return found


def read_part(store: Store, number: int, clips: Sequence[Clip]) -> Part | None:
    """Read the metadata of a part; None if it is missing, damaged, or about other clips."""
    try:
        with store.files.open(store.path(part_name(number)), "rb") as stream:
            file = pq.ParquetFile(stream)
            summary = json.loads(file.schema_arrow.metadata[b"patchifier"])["part"]
            skipped = [(path, reason) for path, reason in summary["skipped"]]
            part = Part(file.metadata.num_rows, summary["files"], skipped, summary["again"])
        return part if summary["clips"] == digest(clips) else None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None


def require_all(store: Store, spec: dict[str, Any]) -> list[str]:
    """Names of all parts in order; a RequestError if one is missing."""
    wanted = list(map(part_name, range(-(-spec["job"]["clips"] // spec["job"]["part_clips"]))))
    names = store.names()
    missing = [name for name in wanted if name not in names]
    if missing:
        raise RequestError(
            f"{store.place} lacks {len(missing)} of {len(wanted)} parts, the first {missing[0]}: "
            "run the job again. If it says that it made them, --out is a folder that not every "
            "machine shares: use an object store."
        )
    return wanted
