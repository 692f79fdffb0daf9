"""Commands about a library: embed, similar, duplicates, index, distance, predict."""

import contextlib
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from patchifier.cli.command import Outcome, counted, print_skipped
from patchifier.cli.progress import progress
from patchifier.config import RequestError

if TYPE_CHECKING:
    import numpy as np

    from patchifier.library.build import Embedded
    from patchifier.library.search import Filter, Index, Table


def embed(
    sources: list[str],
    *,
    out: str,
    model: str = "",
    engine: Literal["processes", "ray"] = "processes",
    address: str = "",
    changed: bool = False,
    window_s: float = 0.0,
    hop_s: float = 0.0,
    patches: bool = False,
    workers: int = 0,
) -> Outcome:
    """Embed a library into a table of vectors; the same command continues it.

    Parameters
    ----------
    sources : list of str
        Folders, files, globs, manifests; '-' reads paths from standard input.
    out : str
        NAME.parquet; NAME.csv, which is written from a NAME.parquet beside it; or NAME.npy. With
        Ray also a folder or a URL, for parts.
    model : str
        Model folder, hf://owner/name, or a bundled model's name; patchifier-base by default.
    engine : str
        This machine's processes, or a Ray cluster.
    address : str
        HOST:PORT of a Ray cluster, or 'auto' on one of its machines.
    changed : bool
        Bring a finished table up to date: new, modified and deleted files.
    window_s : float
        One row for each window of this many seconds, instead of one for each file.
    hop_s : float
        Seconds between the starts of windows; window_s by default.
    patches : bool
        One row for each patch.
    workers : int
        Processes; 0 is one for each core.
    """
    from patchifier.embed import load
    from patchifier.library import build

    options: dict[str, Any] = {
        "embedder": load(model or None),
        "window_s": window_s or None,
        "hop_s": hop_s or None,
        "patches": patches,
        "workers": workers or None,
        "progress": progress("files"),
    }
    done: Embedded
    listed: str | Path = Path(out).with_suffix(".skipped.csv")
    if engine == "ray":
        done = _embed_on_ray(sources, out, changed, address=address or None, **options)
        listed = f"{_parts_of(out)}/skipped.csv"
    elif address:
        raise RequestError("--address is of a Ray cluster: add --engine ray.")
    else:
        done = build.embed_library(_read_sources(sources), out, changed=changed, **options)
    text = embedded_text(done) + print_skipped(done.skipped, listed)
    return Outcome(asdict(done), text, 1 if done.skipped else 0)


def embedded_text(done: "Embedded") -> str:
    """Lay the result of an embedding job out for a terminal; the counts are last."""
    lines = [f"gone: {path}" for path in done.gone]
    lines += [f"note about {path}: {note}" for path, note in done.notes]
    if done.pending:
        lines.append(
            f"{counted(done.pending, 'file')} new, modified or gone since: "
            "--changed brings the table up to date."
        )
    table = f"{counted(done.rows, 'row')} about {counted(done.files, 'file')}"
    counts = f"{table}; {done.embedded} embedded now"
    if done.embedded:
        speed = done.audio_s / max(done.seconds, 1e-9)
        counts += f" in {done.seconds:.1f} s ({speed:.0f} times real time)"
    lines.append(f"{counts}, {done.kept} were there")
    return "\n".join(lines)


def _embed_on_ray(sources: list[str], out: str, changed: bool, **options: Any) -> "Embedded":
    """Write parts to a folder or behind a URL, and merge them if `out` is a table."""
    from patchifier.integrations import ray

    if changed:
        raise RequestError("--changed is for the table of one machine; on Ray, name another --out.")
    if out.endswith((".npy", ".csv")):
        raise RequestError(
            f"--out is {out}, expected with --engine ray NAME.parquet, a folder or a URL."
        )
    parts = _parts_of(out)
    done = ray.embed_on_ray(_read_sources(sources), parts, **options)
    if parts != out:
        ray.merge(parts, out)
    return done


def _parts_of(out: str) -> str:
    """Return where a job on Ray writes its parts."""
    return f"{out.removesuffix('.parquet')}.parts-ray" if out.endswith(".parquet") else out


def _read_sources(sources: list[str]) -> list[str]:
    """Replace '-' by the lines of standard input."""
    lines: list[str] = []
    for source in sources:
        lines += sys.stdin.read().splitlines() if source == "-" else [source]
    return [line for line in lines if line.strip()]


def similar(
    table: str,
    *,
    to: str,
    model: str = "",
    count: int = 10,
    playlist: bool = False,
    exact: bool = False,
    artist: str = "",
    title: str = "",
    album: str = "",
    genre: str = "",
    below: str = "",
) -> Outcome:
    """List the rows most similar to a file, or chain nearest neighbours into a playlist.

    Parameters
    ----------
    table : str
        From 'patchifier embed', or 'patchifier index'.
    to : str
        A file, in the table or outside.
    model : str
        For a file outside: the model that made the table; patchifier-base by default.
    count : int
        Number of files to list.
    playlist : bool
        Walk from neighbour to neighbour instead.
    exact : bool
        Compare with every row, also where an approximate index exists.
    artist, title, album, genre : str
        Only rows with this tag, compared letter by letter.
    below : str
        Only files whose path begins with this.
    """
    from patchifier.library import search

    store = search.load(table)
    tags = {"artist": artist, "title": title, "album": album, "genre": genre}
    where = _filter(below, **tags)
    query = _query(store, table, to, model)
    if count < 1:
        raise RequestError(f"--count is {count}, expected at least 1.")
    walk = store.mix if playlist else store.similar
    found = walk(query, count, where=where, exact=exact)
    scores = [1.0 if row.score is None else row.score for row in found]
    text = "\n".join(
        f"{score:.4f}  {row.path}  {row.start_s:.1f}-{row.end_s:.1f} s"
        for score, row in zip(scores, found, strict=True)
    )
    conditions = (tags | {"below": below}).items()
    given = ", ".join(f"--{name} {value}" for name, value in conditions if value)
    nothing = f"no other file is in {table}."
    if given:
        nothing = f"no other file in {table} passes {given}: tags are compared letter by letter."
    return Outcome([asdict(row) for row in found], text or nothing)


def _filter(below: str, **tags: str) -> "Filter":
    from patchifier.library.search import Filter

    if below and Path(below).is_dir():
        below = f"{Path(below).resolve()}/"
    given: dict[str, Any] = {name: value for name, value in tags.items() if value}
    return Filter(path_prefix=below or None, **given)


def _query(store: "Table | Index", table: str, to: str, model: str) -> "str | np.ndarray":
    """Return the file's path as the table has it, or the vector of a file outside."""
    from patchifier import weights
    from patchifier.audio import name_fault, written_name
    from patchifier.embed import load
    from patchifier.library.search import Filter

    if fault := name_fault(to):
        raise RequestError(f"--to {written_name(to)}: {fault}")
    for path in (to, str(Path(to).resolve())):
        if store.filter(Filter(path=path)):
            return path
    embedder = load(model or None)
    if embedder.identity != store.identity:
        raise RequestError(
            f"{to} is not in {table}, and {model or weights.DEFAULT} is another model, or has "
            "other settings, than the one that made the table: name that one with --model. A "
            "table that an older patchifier made of the same model is embedded anew."
        )
    return embedder.embed(to)


def duplicates(
    table: str,
    *,
    threshold: float = 0.95,
    artist: str = "",
    title: str = "",
    album: str = "",
    genre: str = "",
    below: str = "",
) -> Outcome:
    """List pairs of files that sound nearly the same.

    Parameters
    ----------
    table : str
        From 'patchifier embed', or 'patchifier index'.
    threshold : float
        Least cosine of a pair.
    artist, title, album, genre : str
        Only rows with this tag, compared letter by letter.
    below : str
        Only files whose path begins with this.
    """
    from patchifier.library import search

    store = search.load(table)
    where = _filter(below, artist=artist, title=title, album=album, genre=genre)
    pairs = store.near_duplicates(threshold, where=where)
    lines = [f"{pair.score:.4f}  {pair.first.path}  {pair.second.path}" for pair in pairs]
    text = "\n".join(lines) or f"no two files reach {threshold}.{_nearest(store, where)}"
    return Outcome([{"score": pair.score} | asdict(pair) for pair in pairs], text)


def _nearest(store: "Table | Index", where: "Filter") -> str:
    """Sentence about the nearest pair, and which threshold lists it."""
    if (pair := store.nearest_pair(where=where)) is None:
        return ""
    names = f"{pair.first.path} and {pair.second.path}"
    lists = f": --threshold {math.floor(100 * pair.score) / 100} lists them" * (pair.score >= 0.01)
    return f" The nearest are {names}, with a cosine of {pair.score:.4f}{lists}."


def index(table: str, *, out: str) -> Outcome:
    """Make or update an index of a table, for libraries of a million rows.

    A damaged index is made again.

    Parameters
    ----------
    table : str
        From 'patchifier embed'.
    out : str
        Folder of the index, or a place on an object store.
    """
    from patchifier.library import search

    changes: dict[str, Any] | None = None
    if search.is_index(out):
        with contextlib.suppress(search.UnreadableIndexError):
            changes = asdict(search.Index.open(out).update(table))
    if changes is None:
        search.Index.build(table, out)
        changes = {"built": True}
    listed = ", ".join(f"{name} {value}" for name, value in changes.items())
    return Outcome({"index": out, **changes}, f"index in {out}: {listed}")


def distance(first: str, second: str) -> Outcome:
    """Measure how far apart two sets of music are: Frechet and kernel audio distance.

    Parameters
    ----------
    first, second : str
        From 'patchifier embed', by the same model.
    """
    from patchifier.library.distance import distance

    found = distance(first, second)
    lines = [f"{name:<22}{value}" for name, value in found.to_dict().items() if value is not None]
    if found.frechet is None:
        lines.append(
            "no Frechet distance: it needs more rows than numbers in a vector. Embed more files, "
            "or shorter windows (--window_s)."
        )
    elif found.frechet.corrected is None:
        lines.append(
            "the Frechet distance is not corrected for the number of rows: that needs eight times "
            "as many rows as numbers in a vector."
        )
    return Outcome(found.to_dict(), "\n".join(lines))


def predict(
    model: str,
    sources: list[str],
    *,
    out: str,
    window_s: float = 0.0,
    hop_s: float = 0.0,
    workers: int = 0,
) -> Outcome:
    """Predict labels, values, or a curve over time by a fine-tuned model.

    Parameters
    ----------
    model : str
        From 'patchifier finetune', such as RUN/full/model.
    sources : list of str
        As for 'embed'.
    out : str
        NAME.csv, NAME.jsonl or NAME.parquet.
    window_s : float
        One row for each window of this many seconds, instead of one for each file.
    hop_s : float
        Seconds between the starts of windows; window_s by default.
    workers : int
        Processes; 0 is one for each core.
    """
    from patchifier.embed import load
    from patchifier.library.predict import predict

    done = predict(
        _read_sources(sources),
        out,
        model=load(model or None),
        window_s=window_s or None,
        hop_s=hop_s or None,
        workers=workers or None,
        progress=progress("files"),
    )
    n_skipped = len(done.skipped)
    counts = {"rows": done.rows, "files": done.files, "kept": done.kept, "skipped": n_skipped}
    text = f"{counted(done.rows, 'row')} about {counted(done.files, 'file')} in {out}"
    text += print_skipped(done.skipped, Path(out).with_suffix(".skipped.csv"))
    return Outcome(counts | {"out": out}, text, 1 if n_skipped else 0)
