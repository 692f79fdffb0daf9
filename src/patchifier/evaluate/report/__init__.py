"""Figures, tables and one self-contained page from run folders; no model is loaded."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from patchifier.config import RequestError
from patchifier.evaluate.report.comparison import comparison_rows
from patchifier.evaluate.report.drawing import save_figure
from patchifier.evaluate.report.folders import (
    find_folders,
    read_reconstructions,
    read_results,
    read_run,
)
from patchifier.evaluate.report.page import model_names, page_text
from patchifier.evaluate.report.provenance import read_steps
from patchifier.evaluate.report.reconstruction import reconstruction_figure
from patchifier.evaluate.report.tables import collect_rows, csv_table, markdown_table
from patchifier.io import ProgressOf, silent_of, write_text
from patchifier.jobs import folder_lock

__all__ = [
    "nothing_under",
    "read_reconstructions",
    "reconstruction_figure",
    "report",
    "save_figure",
]


def report(
    runs: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    sounds: bool = True,
    progress: ProgressOf = silent_of,
) -> Path:
    """Draw every run found under some folders and write one page about them.

    Parameters
    ----------
    runs : list of path
        Searched with all folders below for run folders (``run.json``) and results of a demo
        (``results.json``).
    out : path
        Folder for ``index.html``, ``table.csv``, ``table.md`` and each figure as PNG and SVG; made
        if needed.
    sounds : bool
        Whether the page holds sounds: reconstructions, and excerpts of up to 6 s of test clips.
    progress : callable
        Given a title, returns a function that shows progress.

    Returns
    -------
    Path
        The page. It needs no other file and no network.

    Raises
    ------
    RequestError
        If nothing was found, ``out`` is a file, or matplotlib or jinja2 is not installed.

    Examples
    --------
    >>> from patchifier.evaluate import compare, encoders
    >>> _ = compare.compare("demo-cache", encoders.encoders("mel-stats"), "runs/mel-stats")
    >>> report("runs/mel-stats", "report").as_posix()
    'report/index.html'
    """
    roots = [Path(runs)] if isinstance(runs, str | Path) else [Path(path) for path in runs]
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise RequestError(
            f"cannot write a report to {out}: it is a file, expected a folder. Name another "
            "folder with --out."
        )
    problems = nothing_under(roots)
    folders = sorted({folder.resolve() for root in roots for folder in find_folders(root)})
    if not folders:
        places = ", ".join(map(str, roots)) or "no folder at all"
        raise RequestError(
            f"found no run folder under {places}: expected a folder with run.json, as 'patchifier "
            "pretrain --out RUN' makes."
        )
    base = Path(os.path.commonpath([folder.parent for folder in folders]))
    found = [read_run(path, base, problems) for path in folders if (path / "run.json").exists()]
    found = [
        replace(run, label=f"{run.label} ({run.path.relative_to(base)})")
        if sum(run.label == r.label for r in found) > 1
        else run
        for run in found
    ]
    compared = {run.path for run in found if run.kind == "compare"}
    demos = {
        path: read_results(path / "results.json", problems)
        for path in folders
        if (path / "results.json").exists() and path not in compared
    }
    demos = {
        path: {**results, "source": str(path.relative_to(base))} for path, results in demos.items()
    }
    rows = collect_rows(found, demos, problems)
    models = model_names(found)
    listed = [*rows, *(row for run in found for row in comparison_rows(run, models))]
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out, "report"):
        write_text(out / "table.csv", csv_table(listed))
        write_text(out / "table.md", markdown_table(listed))
        steps = read_steps(roots, problems)
        page = page_text(
            found, demos, rows, problems, out, steps=steps, sounds=sounds, progress=progress
        )
        return write_text(out / "index.html", page)


def nothing_under(roots: Sequence[Path | str]) -> list[str]:
    """One line for each folder that holds no run, or is not there."""
    empty = (root for root in map(Path, roots) if not any(find_folders(root)))
    return [f"Nothing to report on under {root}." for root in empty]
