"""A library job on many machines, with Ray.

The rows of :func:`patchifier.library.build.embed_library`, in parts.

Consecutive clips form parts by their order alone. A Ray task embeds the clips of a part and writes
it, whole or not at all. So a part that is made twice, because a machine was lost in between, exists
once, and a job that is run again makes the missing parts.
"""

import contextlib
import functools
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import patchifier
from patchifier import jobs
from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.embed import Embedder, load
from patchifier.extras import need
from patchifier.integrations import object_store
from patchifier.integrations.object_store import Part, Store, digest, part_name
from patchifier.io import Progress, silent, write_skipped
from patchifier.library import table
from patchifier.library.build import facts_of
from patchifier.library.job import Embedded
from patchifier.library.parts import write_part
from patchifier.library.stored import EmbeddingTable, from_arrow
from patchifier.library.worker import ClipRows, Cut, embed_batch

ANSWER_S = 30.0  # time for a cluster to answer; Ray itself waits for minutes, then ends the process
STORE_BYTES = 2**28  # object store of a Ray that is started here: the model, lists of clips, counts
SOCKETS = 30  # longest name of a folder below which the names of Ray's sockets are short enough
DEATHS, MOST_DEATHS = 2, 8  # after so many, the clips of a part are done alone, and the job stops


def embed_on_ray(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    embedder: Embedder | str | Path | None = None,
    address: str | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    patches: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
) -> Embedded:
    """Embed every file of a library on the machines of a Ray cluster.

    Parameters
    ----------
    sources : str, Path or sequence of these
        As of :func:`patchifier.library.build.embed_library`, seen by every machine; and URLs that
        fsspec reaches, also in manifests.
    out : str or Path
        Folder of the parts, which every machine sees, or a URL of an object store. A job that is
        run again goes on. skipped.csv in it names the files that could not be read.
    embedder : Embedder, str or Path
        The model, or its name on this machine for :func:`patchifier.load`; the bundled one by
        default. Workers compute on their CPUs.
    address : str
        HOST:PORT of a cluster, or "auto" on one of its machines. By default the one that
        RAY_ADDRESS names, or else a Ray of this machine that ends with the job. A Ray that this
        process is connected to is used as it is.
    window_s, hop_s, patches, progress
        As of :func:`patchifier.library.build.embed_library`.
    workers : int
        Tasks at the same time, a core each; by default the number of cores of the cluster.

    Returns
    -------
    Embedded

    Raises
    ------
    RequestError
        If Ray is missing or does not answer, there is nothing to embed, nothing could be read,
        `out` belongs to another model, other settings, other clips or something else, or a URL has
        a scheme that cannot be opened.

    Examples
    --------
    >>> done = embed_on_ray("/shared/music", "s3://bucket/parts", address="auto")
    """
    started_s = time.monotonic()
    need("ray")
    if workers is not None and workers < 1:
        raise RequestError(f"workers is {workers}, expected at least 1.")
    embedder = embedder if isinstance(embedder, Embedder) else load(embedder)
    cut = Cut.checked(embedder, window_s=window_s, hop_s=hop_s, patches=patches)
    clips, lost = object_store.find(sources)
    store, facts = Store(str(out)), facts_of(embedder, cut)
    spec = object_store.claim(store, facts, clips)
    network = embedder.network
    if hasattr(network, "cpu"):  # a network of torch, which may be on another device
        network = network.cpu()
    model = Embedder(network, embedder.config)
    with _ray(address, workers) as cores:
        meter = jobs.Meter(progress, len(clips))
        tasks = tasks_of(store, spec, clips)
        made = _run(TableSpec(model, cut, store.place, facts), tasks, workers or cores, meter)
    object_store.require_all(store, spec)
    skipped = (*lost, *(one for part in made for one in part.skipped))
    _finish(store, skipped)
    files = sum(part.files for part in made)
    kept = sum(part.files for part in made if part.kept)
    if not files:
        raise RequestError(
            f"none of the {len(skipped)} files could be read; {store.place}/skipped.csv says why. "
            f"The first: {skipped[0][1]}"
        )
    rows, seconds = sum(part.rows for part in made), time.monotonic() - started_s
    return Embedded(rows, files, files - kept, kept, skipped, (), 0, meter.audio_s, seconds)


def _finish(store: Store, skipped: Sequence[tuple[str, str]]) -> None:
    """Write or remove the list of skipped clips, and remove what killed workers left."""
    if skipped:
        store.write("skipped.csv", lambda new: write_skipped(new, ("path", "reason"), skipped))
    else:
        store.remove("skipped.csv")
    for left in {name for name in store.names() if name == "trying" or name[0] == "."}:
        store.remove(left)  # "trying" is of an earlier version


# --- making parts ---


@dataclass(frozen=True)
class TableSpec:
    """What the parts of one table share."""

    embedder: Embedder
    cut: Cut
    out: str
    facts: dict[str, Any]
    version: str = patchifier.__version__


@dataclass(frozen=True)
class PartTask:
    """A part to be made; `kept` if it existed when the job began."""

    number: int
    clips: Sequence[Clip]
    kept: bool = False


def tasks_of(store: Store, spec: dict[str, Any], clips: Sequence[Clip]) -> list[PartTask]:
    """Cut the clips of a job into parts, by their order alone."""
    names, size = store.names(), spec["job"]["part_clips"]
    return [
        PartTask(number, clips[first : first + size], part_name(number) in names)
        for number, first in enumerate(range(0, len(clips), size))
    ]


def _run(spec: TableSpec, tasks: Sequence[PartTask], workers: int, meter: jobs.Meter) -> list[Part]:
    """Make the parts on the cluster.

    A part whose process or machine died is given to another one.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    make: Any = ray.remote(num_cpus=1, max_retries=0)(
        lambda shared, *task: make_part(_get(shared[0]), *task)
    )
    shared = [ray.put(spec)]  # in a list, Ray passes the reference and not the model
    made, deaths = dict[int, Part](), Counter[int]()
    waiting, running = deque(tasks), dict[Any, PartTask]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                task = waiting.popleft()
                running[make.remote(shared, task, deaths[task.number] >= DEATHS)] = task
            (done,), _ = ray.wait(list(running))
            task = running.pop(done)
            try:
                part = made[task.number] = ray.get(done)
            except RayError as error:
                deaths[task.number] += 1
                if isinstance(error, RayTaskError) or deaths[task.number] > MOST_DEATHS:
                    cause = str(getattr(error, "cause", error)).rstrip(".")
                    raise RequestError(
                        f"the job stopped, what is done is kept: {cause}. When that is mended, "
                        "run it again."
                    ) from error
                waiting.appendleft(task)
            else:
                counts = {"skipped": len(part.skipped), "kept": part.files * part.kept}
                meter.add(len(task.clips), **counts, audio_s=part.audio_s)
    finally:
        for left in running:
            ray.cancel(left)
    return [made[task.number] for task in tasks]


@functools.lru_cache(maxsize=1)
def _get(reference: Any) -> TableSpec:  # the model is read once in each process
    return need("ray").get(reference)


def make_part(spec: TableSpec, task: PartTask, alone: bool = False) -> Part:
    """Embed the clips of a part and write it, unless it is whole. Runs in a process of the cluster.

    A part with a clip that an earlier job could not fetch is made again.
    """
    if spec.version != patchifier.__version__:
        raise RequestError(
            f"a worker has patchifier {patchifier.__version__}, the job {spec.version}: install "
            "the same on every machine."
        )
    jobs.use_one_thread()
    store = Store(spec.out)
    part = object_store.read_part(store, task.number, task.clips)
    if part is not None and not (task.kept and part.again):
        return replace(part, kept=task.kept)
    found, again = embed_anywhere(spec, task.clips, alone=alone)
    good = [rows for rows in found if isinstance(rows, ClipRows)]
    pairs = list(zip(task.clips, found, strict=True))
    skipped = [(clip.path, reason) for clip, reason in pairs if isinstance(reason, str)]
    summary = {"clips": digest(task.clips), "files": len(good), "skipped": skipped, "again": again}
    facts = {**spec.facts, "stretches": [], "part": summary}
    store.write(part_name(task.number), lambda new: write_part(new, pairs, facts))
    rows, audio_s = sum(len(one.spans_s) for one in good), sum(one.how.length_s for one in good)
    return Part(rows, len(good), skipped, again, audio_s=audio_s)


def embed_anywhere(
    spec: TableSpec, clips: Sequence[Clip], *, alone: bool = False
) -> tuple[list[ClipRows | str], bool]:
    """Embed clips of paths and URLs, each `alone` in a process or not.

    Also returns whether a file may be fetched another day.
    """
    found, again, shared = list[ClipRows | str](), False, (spec.embedder, spec.cut)
    for paths in object_store.local_copies(clips):
        pairs = list(zip(clips[len(found) :], paths))
        here = [replace(clip, path=path) for clip, path in pairs if not isinstance(path, Exception)]
        singly = jobs.run(embed_batch, [[one] for one in here], workers=1, shared=shared)
        rows = iter(list(singly) if alone else embed_batch(shared, here))
        for clip, path in pairs:
            if isinstance(path, Exception):
                found.append(f"{clip.path}: cannot be fetched ({object_store.reason_of(path)}).")
                again = again or object_store.is_passing(path)
            else:
                one = next(rows)
                found.append(one.replace(path, clip.path) if isinstance(one, str) else one)
    return found, again


# --- all parts as one ---


def read_parts(out: str | Path) -> EmbeddingTable:
    """Read the rows of a finished job, in the order of its sources, from a folder or URL."""
    with _parts(out) as (paths, facts):
        read = [
            pq.read_table(path, page_checksum_verification=True).replace_schema_metadata(None)
            for path in paths
        ]
        # a part that an older version made lacks columns
        return from_arrow(pa.concat_tables(read, promote_options="default"), facts)


def merge(out: str | Path, table_path: str | Path) -> Path:
    """Write the table NAME.parquet of a finished job, as on one machine, and return its path.

    The parts stay. A table of the same model is replaced, one of another is refused.
    """
    path = Path(table_path)
    if path.suffix != ".parquet":
        raise RequestError(f"the table is {path}, expected a name that ends in .parquet.")
    with _parts(out) as (paths, facts):
        if path.exists():
            table.require_same(table.read_facts(path), facts, path)
        places = [(part, lines) for part in paths for lines in table.index(part)]
        if not places:
            raise RequestError(f"{out} has no rows: no clip could be read, see skipped.csv there.")
        table.merge(path, places, facts)
    return path


@contextlib.contextmanager
def _parts(out: str | Path) -> Iterator[tuple[list[Path], dict[str, Any]]]:
    """Give the parts of a finished job as files of this machine, and the facts of their table."""
    store = Store(str(out))
    spec = object_store.read_facts(store)
    with store.local_files(object_store.require_all(store, spec)) as paths:
        yield paths, {name: value for name, value in spec.items() if name != "job"}


# --- Ray ---


@contextlib.contextmanager
def _ray(address: str | None, workers: int | None) -> Iterator[int]:
    """Connect to Ray, or start it, and give its number of cores."""
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            if address:
                if address != "local":
                    _require_answer(address)
                options |= {"address": address}
            else:
                options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
                options |= {"num_cpus": workers or os.cpu_count()}
                options |= {"_temp_dir": stack.enter_context(_short_folder())}
            stack.callback(ray.shutdown)
            _start(ray.init, options)
        cores = int(ray.cluster_resources().get("CPU", 0))
        if not cores:
            raise RequestError(
                "the Ray cluster has no cores, expected at least one machine with some: start a "
                "worker node, or give --workers."
            )
        yield cores


def _start(init: Callable[..., object], options: dict[str, Any]) -> None:
    """Start Ray or connect to it; where it does not start in its 30 s, say so."""
    try:
        init(**options)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise RequestError(
            f"Ray did not start ({reason}): run the command again when this machine is less busy, "
            "or without --engine ray."
        ) from error


def _short_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a temporary folder for Ray: the name of a socket has 107 letters at most."""
    usual = tempfile.gettempdir()
    short = "/tmp" if len(usual) > SOCKETS and os.path.isdir("/tmp") else usual
    return tempfile.TemporaryDirectory(prefix="ray-", dir=short, ignore_cleanup_errors=True)


def _require_answer(address: str) -> None:
    """Check in another process whether a cluster answers."""
    if address.startswith("ray://"):
        raise RequestError(
            f"{address} is for Ray's client: run this on a machine of the cluster, or with 'ray "
            "job submit', with HOST:6379 or auto."
        )
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    command = [sys.executable, "-c", code, address]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
        reason = "".join(tried.stderr.strip().splitlines()[-1:]) if tried.returncode else None
    except subprocess.TimeoutExpired:
        reason = f"no answer within {ANSWER_S:.0f} s"
    if reason is not None:
        raise RequestError(
            f"no Ray cluster at {address} ({reason}), expected HOST:PORT of a head node, 6379 by "
            "default, or auto on one of its machines."
        )
