"""Apply a fine-tuned model to files: a label with its probability, values, or a curve over time.

Each file's rows are appended to a file beside the result at once, as one line, so that a job that
is killed goes on.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from patchifier import jobs
from patchifier.config import RequestError, digest
from patchifier.datasets import Clip
from patchifier.embed import Embedder, Embedding, load
from patchifier.io import (
    Progress,
    parse_json,
    read_text,
    replaced_file,
    silent,
    write_rows,
    write_skipped,
    write_text,
)
from patchifier.library.sources import each, find
from patchifier.tasks import Task

SUFFIXES = (".csv", ".jsonl", ".parquet")
TAG_FROM = 0.5  # lowest probability of a tag in the column "label"


@dataclass(frozen=True)
class Predicted:
    """Numbers of rows, predicted files and files of an earlier call; skipped files with reasons.

    `unsure` counts the rows without a label because the head was not sure.

    Examples
    --------
    >>> done = predict(["music/one.ogg", "no.ogg"], "one.csv", model="drums", workers=1)
    >>> done.files, done.skipped
    (1, (('no.ogg', 'no.ogg: no such file or folder.'),))
    """

    rows: int
    files: int
    kept: int
    skipped: tuple[tuple[str, str], ...]
    unsure: int = 0


def predict(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    model: Embedder | str | Path,
    window_s: float | None = None,
    hop_s: float | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> Predicted:
    """Predict the labels or values of files with a fine-tuned model, and write them to a table.

    Parameters
    ----------
    sources : str, Path or sequence of these
        As for :func:`patchifier.library.build.embed_library`.
    out : str or Path
        NAME.csv, NAME.jsonl or NAME.parquet; NAME.skipped.csv names what could not be read. A
        finished result is made anew.
    model : Embedder, str or Path
        From 'patchifier finetune', such as RUN/full/model; a head of the package, such as
        "drums"; or the folder of a head. The column `sure` is that of a head that can doubt:
        where it is False, the label is empty.
    window_s, hop_s : float
        A row for each window of so many seconds; by default one for each file.
    workers : int
        Processes; one for each core by default.
    progress : callable
        Called with files done, files in all, and a note.

    Returns
    -------
    Predicted

    Raises
    ------
    RequestError
        If the model has no head, there is nothing to predict or nothing could be read.

    Examples
    --------
    >>> done = predict("music", "drums.csv", model="drums", workers=1)
    >>> done.rows, done.skipped
    (3, ())
    >>> Path("drums.csv").read_text(encoding="utf-8").splitlines()[0]
    'path,start_s,end_s,label,probability,sure,drums,no drums'
    """
    out, embedder = Path(out), model if isinstance(model, Embedder) else load(model)
    if out.suffix not in SUFFIXES:
        raise RequestError(f"--out is {out}, expected a name that ends in {', '.join(SUFFIXES)}.")
    embedder.require_task()
    clips, lost = find(sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    with jobs.file_lock(out, "predict"):
        return _predict_all(
            out,
            clips,
            dict(lost),
            embedder,
            (window_s, hop_s),
            workers or os.cpu_count() or 1,
            progress,
        )


def _predict_all(
    out: Path,
    clips: Sequence[Clip],
    skipped: dict[str, str],
    embedder: Embedder,
    window: tuple[float | None, float | None],
    workers: int,
    progress: Progress,
) -> Predicted:
    """Predict the clips that an interrupted job left, and write the result of all."""
    task = embedder.require_task()
    unfinished = out.with_name(f".{out.name}.unfinished.jsonl")
    head = [embedder.head.weights_hash] if embedder.head else []
    settings = digest(embedder.identity, task.kind, list(task.names), *window, *head)
    done = _begin(unfinished, settings)
    kept = sum(_key(clip) in done for clip in clips)
    todo = [clip for clip in clips if _key(clip) not in done]
    bad_before = sum("reason" in done.get(_key(clip), {}) for clip in clips)
    meter = jobs.Meter(progress, len(clips), done=kept, skipped=bad_before)
    meter.begin()
    shared = (_predict_clip, embedder, *window)
    predictions = jobs.run(each, [[clip] for clip in todo], workers=workers, shared=shared)
    with unfinished.open("a", encoding="utf-8") as stream, contextlib.closing(predictions):
        for clip, found in zip(todo, predictions, strict=True):
            bad = isinstance(found, str)
            line = {"key": _key(clip), ("reason" if bad else "rows"): found}
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
            done[_key(clip)] = line
            meter.add(skipped=int(bad))
    skipped |= {
        clip.path: done[_key(clip)]["reason"] for clip in clips if "reason" in done[_key(clip)]
    }
    rows = [row for clip in clips for row in done[_key(clip)].get("rows", [])]
    if not rows:
        raise RequestError(
            f"none of the {len(clips)} files could be read. The first: "
            f"{next(iter(skipped.values()))}"
        )
    _write(out, rows)
    listed = out.with_suffix(".skipped.csv")
    if skipped or listed.exists():
        write_skipped(listed, ("path", "reason"), list(skipped.items()))
    unfinished.unlink()
    files = sum("rows" in done[_key(clip)] for clip in clips)
    unsure = sum(row.get("sure") is False for row in rows)
    return Predicted(len(rows), files, kept, tuple(skipped.items()), unsure)


def _key(clip: Clip) -> str:
    return json.dumps([clip.path, clip.start_s, clip.end_s])


def _begin(path: Path, settings: str) -> dict[str, dict[str, Any]]:
    """Read the lines of an interrupted job with the same settings.

    Otherwise begin a new file with the settings.
    """
    lines = read_text(path, errors="replace").splitlines(keepends=True) if path.exists() else []
    try:
        whole = [parse_json(line) for line in lines if line.endswith("\n")]  # the last may be torn
        done = {line["key"]: line for line in whole[1:] if "rows" in line or line["reason"]}
        same = bool(whole) and whole[0].get("settings") == settings
    except (ValueError, KeyError, TypeError, AttributeError):
        same = False  # damaged: begun again
    kept = whole if same else [{"settings": settings}]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return done if same else {}


def _predict_clip(
    embedder: Embedder, window_s: float | None, hop_s: float | None, clip: Clip
) -> list[dict[str, Any]] | str:
    """Rows of a clip, or the reason why there are none. Runs in a worker process."""
    found = embedder.predict_windows(
        clip.path, window_s=window_s or 1e9, hop_s=hop_s, start_s=clip.start_s, end_s=clip.end_s
    )
    if not np.isfinite(found.vectors).all():
        return f"{clip.path}: the model gives numbers that are not finite for this file."
    return list(_rows(clip, embedder.require_task(), found))


def _rows(clip: Clip, task: Task, found: Embedding) -> Iterator[dict[str, Any]]:
    n_rows = len(found.vectors)
    answers = [True] * n_rows if found.sure is None else found.sure.tolist()
    for values, start_s, end_s, sure in zip(
        found.vectors.tolist(), found.start_s.tolist(), found.end_s.tolist(), answers, strict=True
    ):
        row = {
            "path": clip.path,
            "start_s": round(clip.start_s + start_s, 3),
            "end_s": round(clip.start_s + end_s, 3),
        }
        if task.kind == "one-of":
            row |= {
                "label": task.names[int(np.argmax(values))] if sure else "",
                "probability": round(max(values), 6),
            }
        if task.kind == "many-of":
            row |= {
                "label": "|".join(
                    name
                    for name, value in zip(task.names, values, strict=True)
                    if sure and value >= TAG_FROM
                )
            }
        if found.sure is not None:
            row["sure"] = sure
        yield row | {
            f"value_{name}" if name in row else name: round(value, 6)
            for name, value in zip(task.names, values, strict=True)
        }


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows in the format of the file's suffix."""
    if path.suffix == ".csv":
        write_rows(path, rows)
    elif path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        with replaced_file(path) as new:
            rows_table = pyarrow.Table.from_pylist(list(rows))
            parquet.write_table(rows_table, new, write_page_checksum=True)
