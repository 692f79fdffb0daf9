"""The parts of a job: which clips each is about, what is whole already, and one table of them all.

::

    OUT/facts.json           model, settings, number and hash of the clips, clips in a part
    OUT/part-00042.parquet   rows of some consecutive clips, a table like the final one; its facts name those that were skipped
    OUT/trying/              which parts are being made: a mark for each time one was begun
    OUT/skipped.csv          path and reason of each clip without rows, when all is done
"""

import contextlib
import csv
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.integrations.cluster.store import Store
from patchifier.library import table
from patchifier.library.sources import key
from patchifier.library.worker import Rows, to_table

PART_CLIPS = (8, 64)  # at least and at most: little is lost with a machine, few files are made
PARTS = 256  # as many are wanted before they grow: work for many machines
OWN = re.compile(r"facts\.json|skipped\.csv|trying|part-\d+\.parquet|\..+\.new-[0-9a-f]+")


@dataclass(frozen=True)
class Part:
    """What is known of a part that is whole.

    Attributes
    ----------
    rows, files : int
        Its rows, and the clips that they are about.
    skipped : list of (path, reason)
        Clips without rows.
    again : bool
        Whether some of these failed for a reason that may be gone another day.
    """

    rows: int
    files: int
    skipped: list[tuple[str, str]]
    again: bool


def name(number: int) -> str:
    """Name of a part's file."""
    return f"part-{number:05d}.parquet"


def cut(clips: Sequence[Clip], size: int) -> list[Sequence[Clip]]:
    """Consecutive clips, `size` of them for each part: by their order alone, whoever works on them."""
    return [clips[first : first + size] for first in range(0, len(clips), size)]


def digest(clips: Sequence[Clip]) -> str:
    """Hash of a list of clips and its order."""
    found = hashlib.sha256()
    for clip in clips:
        found.update(json.dumps(key(clip)).encode())
    return found.hexdigest()


def claim(store: Store, facts: dict[str, Any], clips: Sequence[Clip]) -> dict[str, Any]:
    """Make a folder this job's own, or find that it is.

    Returns
    -------
    dict
        What facts.json says: `facts`, and under "job" the number of clips, their hash, and how many there are in a part.

    Raises
    ------
    RequestError
        If it holds something else, or a job of another model, other settings or other clips.
    """
    there, job = (
        store.names(),
        {
            "clips": len(clips),
            "sha256": digest(clips),
            "part_clips": min(max(len(clips) // PARTS, PART_CLIPS[0]), PART_CLIPS[1]),
        },
    )
    if "facts.json" in there:
        found = read_facts(store)
        table.require_same(found, facts, Path(store.place))
        if (found["job"]["clips"], found["job"]["sha256"]) != (job["clips"], job["sha256"]):
            raise RequestError(
                f"{store.place} is about another list of {found['job']['clips']} clips, not these {job['clips']} in this order: "
                "name the same sources, or choose another --out."
            )
        return found
    if any(not OWN.fullmatch(one) for one in there) or (store.local and Path(store.root).is_file()):
        raise RequestError(
            f"{store.place} exists and is not a job of 'patchifier embed --engine ray': choose another --out."
        )
    try:
        store.write("facts.json", json.dumps({**facts, "job": job}, indent=1) + "\n")
    except (OSError, NotImplementedError) as error:
        raise RequestError(
            f"{store.place}: cannot be written to ({error or type(error).__name__}), expected a folder or an object store."
        ) from error
    return {**facts, "job": job}


def read_facts(store: Store) -> dict[str, Any]:
    """What claims a folder, or a RequestError if nothing of ours does."""
    try:
        found: dict[str, Any] = json.loads(store.read("facts.json"))
        _ = (
            [found[wanted] for wanted in table.SAME],
            [found["job"][wanted] for wanted in ("clips", "sha256", "part_clips")],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{store.place} has no facts.json that can be read ({error}), expected a folder from 'patchifier embed --engine ray'."
        ) from error
    if found["format"] > table.FORMAT:
        raise RequestError(
            f"{store.place} has format {found['format']}, this version reads up to {table.FORMAT}: pip install -U patchifier."
        )
    return found


def count(facts: dict[str, Any]) -> int:
    """How many parts there are to be."""
    return -(-facts["job"]["clips"] // facts["job"]["part_clips"])


def whole(store: Store, number: int, clips: Sequence[Clip]) -> Part | None:
    """Look at a part; None if it is not there, damaged, or about other clips."""
    try:
        with store.files.open(store.path(name(number)), "rb") as stream:
            file = pq.ParquetFile(stream)
            told = json.loads(file.schema_arrow.metadata[b"patchifier"])["part"]
            rows = file.metadata.num_rows
        if told["clips"] != digest(clips):
            return None
        return Part(
            rows, told["files"], [(path, reason) for path, reason in told["skipped"]], told["again"]
        )
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None


def write(
    store: Store,
    number: int,
    clips: Sequence[Clip],
    answers: Sequence[Rows | str],
    *,
    facts: dict[str, Any],
    again: bool,
) -> Part:
    """Put a part in its place."""
    found = [
        (clip, answer)
        for clip, answer in zip(clips, answers, strict=True)
        if isinstance(answer, Rows)
    ]
    skipped = [
        (clip.path, answer)
        for clip, answer in zip(clips, answers, strict=True)
        if isinstance(answer, str)
    ]
    told = {"clips": digest(clips), "files": len(found), "skipped": skipped, "again": again}
    facts = {
        **facts,
        "stretches": table.stretches_of([(key(clip), len(rows.spans_s)) for clip, rows in found]),
        "part": told,
    }
    rows = to_table(found, facts)
    with tempfile.TemporaryDirectory(prefix="patchifier-") as folder:
        made = Path(folder) / "part.parquet"
        table.write(made, iter([rows]), table.schema(facts, facts["size"]))
        store.put(made, name(number))
    return Part(len(rows), len(found), skipped, again)


def write_skipped(store: Store, skipped: Sequence[tuple[str, str]]) -> None:
    """Name what has no rows; nothing is left of an earlier list."""
    if not skipped:
        store.remove("skipped.csv")
        return
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(["path", "reason"])
    lines.writerows(skipped)
    store.write("skipped.csv", text.getvalue())


def require_all(store: Store, facts: dict[str, Any]) -> list[str]:
    """Names of all parts in order; an error if one is missing."""
    wanted = [name(number) for number in range(count(facts))]
    there = store.names()
    missing = [one for one in wanted if one not in there]
    if missing:
        raise RequestError(
            f"{store.place} lacks {len(missing)} of {len(wanted)} parts, the first {missing[0]}: run the job again. "
            "If it says that it made them, --out is a folder that not every machine shares: use an object store."
        )
    return wanted


# --- all of them as one ---


def read_parts(out: str | Path) -> table.Table:
    """Read the rows of a finished job, in the order of its sources.

    Parameters
    ----------
    out : str or Path
        Folder of its parts; a URL may be given.

    Raises
    ------
    RequestError
        If it is not finished, or none of ours.
    """
    store = Store(str(out))
    facts = read_facts(store)
    with _local(store, require_all(store, facts)) as paths:
        rows = pa.concat_tables(
            [pq.read_table(path).replace_schema_metadata(None) for path in paths]
        )
    return table.from_arrow(rows, _plain(facts))


def merge(out: str | Path, table_path: str | Path) -> Path:
    """Make one table of a finished job, as :func:`patchifier.library.build.embed_library` makes it on one machine.

    Parameters
    ----------
    out : str or Path
        Folder of its parts; a URL may be given. They are left as they are.
    table_path : str or Path
        NAME.parquet, written whole or not at all; one by the same model is replaced.

    Returns
    -------
    Path
        The table.

    Raises
    ------
    RequestError
        If the job is not finished or has no rows, or there is a table by another model.
    """
    store, path = Store(str(out)), Path(table_path)
    facts = read_facts(store)
    if path.suffix != ".parquet":
        raise RequestError(f"the table is to be {path}, expected a name that ends in .parquet.")
    if path.exists():
        table.require_same(table.read_facts(path), facts, path)
    with _local(store, require_all(store, facts)) as paths:
        whole_facts = {**_plain(facts), "stretches": _stretches(paths)}
        if not any(pq.read_metadata(part).num_rows for part in paths):
            raise RequestError(
                f"{store.place} has no rows: none of its {facts['job']['clips']} clips could be read, see skipped.csv there."
            )
        table.write(
            path,
            (rows for part in paths for rows in _rows(part)),
            table.schema(whole_facts, facts["size"]),
        )
    return path


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return {what: value for what, value in facts.items() if what != "job"}


def _rows(part: Path) -> Iterator[pa.Table]:
    origin = table.Origin(part)
    yield from origin.take(0, int(origin.starts[-1]))


def _stretches(paths: Sequence[Path]) -> list[list[Any]]:
    """As :func:`table.stretches_of` lists them for all clips together: a file's clips may lie in two parts."""
    listed, row, before = [], 0, ""
    for path in paths:
        lines = table.index(path)
        for first, start_s, end_s in table.stretches_of(
            [((before, 0.0, None), 0), *((line.clip, line.count) for line in lines)]
        ):
            listed.append([row + first, start_s, end_s])
        row, before = (
            row + sum(line.count for line in lines),
            lines[-1].clip[0] if lines else before,
        )
    return listed


@contextlib.contextmanager
def _local(store: Store, names: Sequence[str]) -> Iterator[list[Path]]:
    """Parts as files of this machine."""
    if store.local:
        yield [Path(store.path(one)) for one in names]
        return
    with tempfile.TemporaryDirectory(prefix="patchifier-") as folder:
        for one in names:
            store.get(one, Path(folder) / one)
        yield [Path(folder) / one for one in names]
