"""A library job on many machines, with Ray Data: the table of :func:`patchifier.library.build.embed_library`, in parts.

Consecutive clips are cut into parts by their order alone. A worker, an actor with the model, embeds a part and puts it in its place by itself,
whole or not at all; it says nothing but counts. So a part that is made twice, because a machine vanished in between, is there once, and a job
that is run again makes what is missing (:mod:`~patchifier.integrations.cluster.parts`). Files may be anywhere that fsspec reaches.
"""

import contextlib
import copy
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.embed import Embedder, load
from patchifier.integrations import need
from patchifier.integrations.cluster import parts
from patchifier.integrations.cluster.parts import merge, read_parts
from patchifier.integrations.cluster.sources import find
from patchifier.integrations.cluster.store import Store
from patchifier.integrations.cluster.worker import Order, Worker, task
from patchifier.io import Progress, silent
from patchifier.library.build import facts_of
from patchifier.library.worker import Cut

__all__ = ["Clustered", "embed_on_ray", "merge", "read_parts"]

ANSWER_S = (
    30.0  # within which a cluster answers; Ray itself waits for minutes, then ends the process
)
BLOCKS = 4096  # of Ray Data at most: each holds consecutive parts, one for jobs below 262,144 clips
STORE_BYTES = 2**28  # of a Ray started here: the model, lists of clips, counts
SOCKETS = 30  # letters of a folder below which Ray's sockets have names that the system takes


@dataclass(frozen=True)
class Clustered:
    """Result of :func:`embed_on_ray`.

    Attributes
    ----------
    rows, files : int
        In the parts: rows, and clips that they are about.
    kept : int
        Clips that were there already.
    skipped : tuple of (path, reason)
        Files that could not be read.
    parts : int
        Files of rows.
    seconds : float
        What it took, Ray's start included.
    """

    rows: int
    files: int
    kept: int
    skipped: tuple[tuple[str, str], ...]
    parts: int
    seconds: float

    def facts(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Tell a person what was done; every skipped file by name."""
        told = [f"skipped {path}: {reason}" for path, reason in self.skipped]
        embedded = self.files - self.kept
        speed = (
            f" in {self.seconds:.1f} s ({embedded / max(self.seconds, 1e-9):.1f} files/s)"
            if embedded
            else ""
        )
        return [
            *told,
            f"{self.rows} rows about {self.files} files in {self.parts} parts; {embedded} embedded now{speed}, {self.kept} were there",
        ]


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
) -> Clustered:
    """Embed every file of a library, on the machines of a Ray cluster.

    Parameters
    ----------
    sources : str, Path or sequence of these
        Folders, files, globs and manifests (CSV, TSV, JSONL), which every machine must see; and URLs that fsspec reaches, by themselves or in
        manifests: s3://, gs://, https:// ...
    out : str or Path
        Folder of the parts, which every machine must see, or a URL of an object store. A job that is run again goes on. Files that could not
        be read are named in skipped.csv there.
    embedder : Embedder, str or Path
        The model, or what names it on this machine for :func:`patchifier.load`; the bundled one by default. Workers get it from here and compute on their CPUs.
    address : str
        HOST:PORT of a cluster, or "auto" on one of its machines; by default what RAY_ADDRESS names, or else a Ray of this machine's
        own, that ends with the job. A Ray that this process is connected to already is used as it is.
    window_s, hop_s, patches
        As of :func:`patchifier.library.build.embed_library`.
    workers : int
        Actors, a core each; by default as many as the cluster has cores.
    progress : callable
        Called with clips done, clips in all, and a note.

    Returns
    -------
    Clustered

    Raises
    ------
    RequestError
        If Ray is missing or does not answer, there is nothing to embed, nothing could be read, `out` belongs to another model, other settings,
        other clips or something else altogether, or a URL has a scheme that cannot be opened.
    """
    started_s = time.monotonic()
    need("ray.data", "cluster")
    if workers is not None and workers < 1:
        raise RequestError(f"workers is {workers}, expected at least 1.")
    embedder = embedder if isinstance(embedder, Embedder) else load(embedder)
    rows = Cut.checked(embedder, window_s=window_s, hop_s=hop_s, patches=patches)
    clips, lost = find(sources)
    store, facts = Store(str(out)), facts_of(embedder, rows)
    claimed = parts.claim(store, facts, clips)
    store.remove("trying")  # marks of a job that was killed, not of clips that kill
    with _ray(address, workers) as cores:
        told = _run(
            embedder,
            Order(rows, store.place, facts),
            _tasks(store, claimed, clips),
            workers or cores,
            _Shown(progress, len(clips)),
        )
    return _finished(store, claimed, lost, [told[number] for number in sorted(told)], started_s)


def _tasks(store: Store, claimed: dict[str, Any], clips: Sequence[Clip]) -> list[dict[str, Any]]:
    there = store.names()
    return [
        task(number, some, parts.name(number) in there)
        for number, some in enumerate(parts.cut(clips, claimed["job"]["part_clips"]))
    ]


def _finished(
    store: Store,
    claimed: dict[str, Any],
    lost: Sequence[tuple[str, str]],
    told: Sequence[dict[str, Any]],
    started_s: float,
) -> Clustered:
    parts.require_all(store, claimed)
    skipped = (*lost, *((path, reason) for part in told for path, reason in part["skipped"]))
    parts.write_skipped(store, skipped)
    for left in store.names():
        if left == "trying" or left.startswith("."):
            store.remove(left)
    files = sum(part["files"] for part in told)
    if not files:
        raise RequestError(
            f"none of the {len(skipped)} files could be read; {store.place}/skipped.csv says why. The first: {skipped[0][1]}"
        )
    kept = sum(part["files"] for part in told if not part["made"])
    return Clustered(
        sum(part["rows"] for part in told),
        files,
        kept,
        skipped,
        len(told),
        time.monotonic() - started_s,
    )


class _Shown:
    """Progress of a job: clips done, and how fast."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done, self.made, self.skipped, self.started_s = (
            progress,
            total,
            0,
            0,
            0,
            time.monotonic(),
        )

    def add(self, part: dict[str, Any]) -> None:
        """Show that a part is there."""
        self.done, self.skipped = self.done + part["clips"], self.skipped + len(part["skipped"])
        self.made += part["clips"] if part["made"] else 0
        rate = f"{self.made / max(time.monotonic() - self.started_s, 1e-9):.1f} files/s"
        self.progress(
            self.done, self.total, rate + (f", {self.skipped} skipped" if self.skipped else "")
        )


# --- Ray ---


def _run(
    embedder: Embedder, order: Order, tasks: Sequence[dict[str, Any]], workers: int, shown: _Shown
) -> dict[int, dict[str, Any]]:
    """Let workers make the parts; what they tell about each, by its number."""
    import ray
    import ray.data
    from ray.exceptions import RayError

    model = ray.put(Embedder(copy.deepcopy(embedder.model).cpu(), embedder.config))
    told: dict[int, dict[str, Any]] = {}
    with _without_bars(ray.data.DataContext.get_current()):
        made = ray.data.from_items(
            list(tasks), override_num_blocks=min(len(tasks), BLOCKS)
        ).map_batches(
            Worker,
            fn_constructor_args=(model, order),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(tasks))),
            num_cpus=1,
        )
        try:
            for row in made.iter_rows():
                part = json.loads(row["told"])
                if part["number"] not in told:
                    told[part["number"]] = part
                    shown.add(part)
        except RayError as error:
            raise RequestError(
                f"the job stopped, what is done is kept: {_cause(error)}. When that is mended, run it again."
            ) from error
    return told


@contextlib.contextmanager
def _without_bars(context: Any) -> Iterator[None]:
    """Keep Ray Data from drawing and telling; :class:`_Shown` does."""
    bars, log = context.enable_progress_bars, logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        log.setLevel(level)


def _cause(error: BaseException | None) -> str:
    """Say what went wrong in a worker: of the frames that Ray sends as text, the first error that is not Ray's own."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__module__}.{type(error).__name__}: {error}")
        error = getattr(error, "cause", None) or error.__cause__
    found = re.findall(
        r"^(?!ray\.)([\w.]+(?:Error|Exception): .+)$", "\n".join(texts), re.MULTILINE
    )
    return (
        str(found[0]).removeprefix("patchifier.config.RequestError: ").rstrip(".")
        if found
        else texts[0].strip()
    )


@contextlib.contextmanager
def _ray(address: str | None, workers: int | None) -> Iterator[int]:
    """Be connected to Ray; its cores."""
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        yield _cores(ray)
        return
    with contextlib.ExitStack() as stack:
        if address:
            _require_answer(address)
            ray.init(address=address, **quiet)
        else:
            folder = stack.enter_context(_short_folder())
            ray.init(
                num_cpus=workers or os.cpu_count(),
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                _temp_dir=folder,
                **quiet,
            )
        stack.callback(ray.shutdown)
        yield _cores(ray)


def _cores(ray: Any) -> int:
    cores = int(ray.cluster_resources().get("CPU", 0))
    if not cores:
        raise RequestError(
            "the Ray cluster has no cores, expected at least one machine with some: start a worker node, or give --workers."
        )
    return cores


@contextlib.contextmanager
def _short_folder() -> Iterator[str]:
    """A temporary folder for Ray: the name of a socket has 107 letters at most."""
    usual = tempfile.gettempdir()
    folder = tempfile.mkdtemp(
        prefix="ray-", dir="/tmp" if len(usual) > SOCKETS and os.path.isdir("/tmp") else usual
    )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_answer(address: str) -> None:
    """Find out in another process whether a cluster is there."""
    if address.startswith("ray://"):
        raise RequestError(
            f"{address} is for Ray's client: run this on a machine of the cluster, or with 'ray job submit', with HOST:6379 or auto."
        )
    if address == "local":
        return
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=ANSWER_S
        )
        reason = tried.stderr.strip().splitlines()[-1:] if tried.returncode else None
    except subprocess.TimeoutExpired:
        reason = [f"no answer within {ANSWER_S:.0f} s"]
    if reason is not None:
        raise RequestError(
            f"no Ray cluster at {address} ({''.join(reason)}), expected HOST:PORT of a head node, 6379 by default, or auto on one of its machines."
        )
