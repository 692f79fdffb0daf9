"""Embeddings of a whole library in one table: in parallel, resumable, kept up to date.

Each of several processes decodes and runs the model on a few files at a time; rows arrive in the
order of the sources. While it works, finished rows lie in parts beside the table::

    OUT.parts/facts.json       model and settings
    OUT.parts/00000.parquet    rows of consecutive files; its metadata names skipped files
    OUT.parts/merged.parquet   the final table, on its way to OUT

Each is written beside and renamed into place. A job that is killed loses at most the part it was
filling; run again, it goes on and ends with the same table: files are grouped into parts and
batches by their order alone.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchifier.config import RequestError, digest, identity_form
from patchifier.embed import Embedder, load
from patchifier.io import Progress, silent
from patchifier.jobs import folder_lock
from patchifier.library import table
from patchifier.library.export import require_csv, write_csv
from patchifier.library.job import Embedded, TableJob
from patchifier.library.search.metric import sizes_of
from patchifier.library.sources import find
from patchifier.library.stored import EmbeddingTable, read
from patchifier.library.worker import Cut

__all__ = ["Embedded", "EmbeddingTable", "embed_library", "read"]


def embed_library(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    embedder: Embedder | str | Path | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    patches: bool = False,
    changed: bool = False,
    drop_unlisted: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
) -> Embedded:
    """Embed every file of a library into one table.

    Parameters
    ----------
    sources : str, Path or sequence of these
        Folders, files, globs and manifests (CSV, TSV, JSONL).
    out : str or Path
        NAME.parquet; NAME.csv, with a column for each number, which is written from a NAME.parquet
        beside it; or NAME.npy, a matrix with NAME.csv (its rows) and NAME.json (facts) beside
        it. Files that could not be read are named in NAME.skipped.csv. A table that is finished
        stays as it is, one that is not is continued.
    embedder : Embedder, str or Path
        The model, or what names it for :func:`patchifier.load`; the bundled one by default.
    window_s, hop_s : float
        A row for each window of so many seconds, as in :meth:`Embedder.embed_windows`; by default
        one for each file.
    patches : bool
        A row for each patch, as in :meth:`Embedder.embed_patches`.
    changed : bool
        Bring a finished table up to date: embed new and modified files (by size and time of
        change), drop the rows of missing files. A file that was moved, renamed or retagged keeps
        its vector: it is known by the digest of its audio, and its tags are read again. Nothing is
        dropped below a folder that cannot be listed, or a source that is missing or empty, such as
        a drive that is not mounted.
    drop_unlisted : bool
        With `changed`: drop also the rows of files that exist and are not among the sources. By
        default such a request is refused, since most likely a source was forgotten.
    workers : int
        Processes; one for each core by default.
    progress : callable
        Called with clips done, clips in all, and a note.

    Returns
    -------
    Embedded

    Raises
    ------
    RequestError
        If there is nothing to embed, nothing could be read, `out` was made by another model or with
        other settings or is another file, or rows would be dropped whose files exist.

    Examples
    --------
    >>> done = embed_library("music", "table.parquet")
    >>> done.rows, done.files, done.skipped
    (3, 3, ())
    """
    embedder = embedder if isinstance(embedder, Embedder) else load(embedder)
    cut = Cut.checked(embedder, window_s=window_s, hop_s=hop_s, patches=patches)
    out = _target(out)
    whole = out.with_suffix(".parquet") if out.suffix == ".csv" else out
    if whole != out:
        require_csv(out, cut.size(embedder))
    clips, lost = find(sources)
    job = TableJob(whole, facts_of(embedder, cut), clips, lost, drop_unlisted=drop_unlisted)
    done = _run(job, embedder, cut, changed=changed, workers=workers, progress=progress)
    if whole == out:
        return done
    if not out.exists() or out.stat().st_mtime_ns < whole.stat().st_mtime_ns:
        write_csv(whole, out)
    return done


def _run(
    job: TableJob,
    embedder: Embedder,
    cut: Cut,
    *,
    changed: bool,
    workers: int | None,
    progress: Progress,
) -> Embedded:
    with folder_lock(job.folder, "embed"):
        job.finish_interrupted()
        if job.out.exists() and not changed:
            return job.report()
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"--out is {job.out}, but its folder cannot be made ({error.strerror}): choose another "
            "place, or make room."
        ) from error
    with folder_lock(job.folder, "embed"):
        job.begin()
        workers = workers or os.cpu_count() or 1
        job.reuse(workers, progress)
        job.embed(embedder, cut, workers, progress)
        return job.finish()


def _target(out: str | Path) -> Path:
    out = Path(out)
    if out.suffix not in (".parquet", ".csv", ".npy"):
        raise RequestError(f"--out is {out}, expected a name that ends in .parquet, .csv or .npy.")
    if out.is_dir():
        raise RequestError(f"--out is {out}, a folder, expected the name of a file.")
    return out


def facts_of(embedder: Embedder, cut: Cut) -> dict[str, Any]:
    """Metadata of a table: model, settings, what a row is about."""
    config = embedder.config
    slices = {} if cut.patches else {"slices": sizes_of(config)}
    return {
        "format": table.FORMAT,
        "model": embedder.identity,
        "config": digest(identity_form(config)),
        "pooling": "none" if cut.patches else config.embed.pooling,
        "layers": list(config.embed.layers),
        "window_s": cut.window_s,
        "hop_s": cut.hop_s,
        "patches": cut.patches,
        "size": cut.size(embedder),
        **slices,
        "stretches": [],
    }
