"""Commands about a library: tag, embed, distance, teach, predict."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from patchifier.cli.command import Outcome, counted, print_alike, print_skipped, say
from patchifier.cli.progress import progress
from patchifier.config import RequestError
from patchifier.io import skipped_lines

if TYPE_CHECKING:
    from patchifier.app.teach_csv import TaughtByCsv
    from patchifier.library.build import Embedded
    from patchifier.library.tagging import Proposal

SKIPPED = ("path", "reason")  # columns of the list of rows that teach nothing


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
        Bring a finished table up to date: new, modified and deleted files. Files that were moved,
        renamed or retagged keep their vectors.
    window_s : float
        One row for each window of this many seconds, instead of one for each file.
    hop_s : float
        Seconds between the starts of windows; window_s by default.
    patches : bool
        One row for each patch.
    workers : int
        Number of processes; 0 is one for each core.

    Examples
    --------
    One vector for every file of a folder:
        $ patchifier embed ~/Music --out music.parquet

    Bring the table up to date after files were added or moved:
        $ patchifier embed ~/Music --out music.parquet --changed

    One vector for every ten seconds:
        $ patchifier embed ~/Music --out windows.parquet --window_s 10
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
    listed: str | Path
    if engine == "ray":
        done = _embed_on_ray(sources, out, changed, address=address or None, **options)
        listed = f"{_parts_of(out)}/skipped.csv"
    elif address:
        raise RequestError("--address is of a Ray cluster: add --engine ray.")
    else:
        done = build.embed_library(_read_sources(sources), out, changed=changed, **options)
        listed = Path(out).with_suffix(".skipped.csv")
    text = embedded_text(done) + print_skipped(done.skipped, listed)
    return Outcome(asdict(done), text, 1 if done.skipped else 0)


def embedded_text(done: "Embedded") -> str:
    """Lay the result of an embedding job out for a terminal; the counts are last."""
    from patchifier.library.changes import unlisted_text

    lines = [f"gone: {path}" for path in done.gone]
    lines += [f"note about {path}: {note}" for path, note in done.notes]
    lines += [
        f"shorter: {path}: was {was_s:.0f} s, is now {is_s:.0f} s"
        for path, was_s, is_s in done.shorter
    ]
    lines += [f"skipped now: {path}: its old row was removed" for path in done.removed]
    if done.unlisted:
        lines.append(f"the table {unlisted_text(done.unlisted)}")
    if done.pending:
        remedy = "" if done.unlisted else ": --changed brings the table up to date"
        lines.append(f"{done.waiting} since{remedy}.")
    table = f"{counted(done.rows, 'row')} about {counted(done.files, 'file')}"
    counts = f"{table}; {done.embedded} embedded now"
    if done.embedded:
        speed = done.audio_s / max(done.seconds, 1e-9)
        counts += f" in {done.seconds:.1f} s ({speed:.0f} times real time)"
    again = [
        f"{count} {what}"
        for count, what in ((len(done.moved), "moved"), (done.retagged, "retagged"))
        if count
    ]
    kept = f"{counts}, {done.kept} were there"
    lines.append(f"{kept}, {' and '.join(again)} among these" if again else kept)
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


def distance(first: str, second: str) -> Outcome:
    """Measure how far apart two sets of music are: Frechet and kernel audio distance.

    Parameters
    ----------
    first, second : str
        Tables of 'patchifier embed', by the same model.

    Examples
    --------
    How far is one folder of music from another?
        $ patchifier distance first.parquet second.parquet

    The same figures for a program:
        $ patchifier distance first.parquet second.parquet --json
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


def teach(table: str, labels: str, *, out: str, group: str = "", model: str = "") -> Outcome:
    """Teach labels by a CSV of 20 to 200 songs: a head for predict, tag and app.

    The network is not trained: a logistic regression learns from the vectors of the table. It is
    tested by cross-validation, on songs that it was not taught.

    Parameters
    ----------
    table : str
        From 'patchifier embed'.
    labels : str
        CSV with the columns path, and label or target; one label for each song, given by you.
        Paths are whole, or begin at the working folder, the folder of the CSV or that of the music.
        Songs with the same value in the column group, if there is one, are never on both sides of
        the test.
    out : str
        Folder of the head; a head that is there is replaced.
    group : str
        Group songs by a tag instead: artist, album or albumartist.
    model : str
        Model that made the table; those of the package are tried by default.

    Examples
    --------
    Teach moods, and predict them for a folder:
        $ patchifier teach music.parquet moods.csv --out heads/moods
        $ patchifier predict heads/moods ~/Music --out labels.csv

    Songs of one artist are held out together; the page shows the heads of a folder:
        $ patchifier teach music.parquet moods.csv --out heads/moods --group artist
        $ patchifier app music.parquet --heads heads
    """
    from patchifier.app.teach_csv import teach_csv
    from patchifier.io import write_skipped
    from patchifier.jobs import file_lock

    listed = Path(f"{Path(out)}.skipped.csv")
    _require_place(Path(out), listed, labels)
    with file_lock(Path(out), "teach"):
        found = teach_csv(table, labels, group=group, model=model)
        found.taught.head.save(out)
        if found.skipped or listed.exists():
            write_skipped(listed, SKIPPED, found.skipped)
    text = taught_text(found, out) + print_skipped(found.skipped, listed)
    print_alike([*found.songs, *found.too_few])
    for names in found.joined:
        say(f"note: groups that differ in case or spaces alone are one: {names}")
    for label in [*found.songs, *found.too_few]:
        if "|" in label:
            say(
                f"note: {label!r} is one label for 'teach', for a song has one: several labels of "
                "a song are taught by 'compare' and 'finetune'."
            )
    facts = ("songs", "grouped_by", "groups", "joined", "too_few")
    results = found.taught.to_dict() | {name: getattr(found, name) for name in facts}
    results |= {"skipped": len(found.skipped), "out": out}
    return Outcome(results, text, int(bool(found.skipped)))


def _require_place(out: Path, listed: Path, labels: str) -> None:
    """Refuse a place where no head, or no list of skipped rows, can be written."""
    from patchifier.heads import is_head

    above = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise RequestError(f"--out is {out}, but {above} is not a folder: choose another name.")
    if out.exists() and not (out.is_dir() and is_head(out)):
        raise RequestError(f"{out} exists and is not a head: choose another name.")
    if not os.path.lexists(listed):
        return
    if os.path.exists(labels) and os.path.exists(listed) and os.path.samefile(labels, listed):
        raise RequestError(
            f"--out is {out}, so {listed}, which you give as labels, would be replaced by the list "
            "of skipped rows: choose another name."
        )
    if not _is_list(listed):
        raise RequestError(
            f"--out is {out}, so the list of skipped rows would replace {listed}, which is no such "
            "list: choose another name, or move that file."
        )


def _is_list(path: Path) -> bool:
    """Whether a file is a list of skipped rows."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.readline().rstrip() == ",".join(SKIPPED).encode()


def taught_text(found: "TaughtByCsv", out: str) -> str:
    """Lay a head and its cross-validation out for a terminal; the accuracy is near the end."""
    taught, (likely, share) = found.taught, found.taught.majority
    low, high = taught.interval
    lines = _of_each_label(found)
    if found.too_few:
        lines.append(f"left out, with one song: {', '.join(found.too_few)}")
    if taught.note:
        lines.append(taught.note)
    lines += [
        *_about_groups(found),
        f"accuracy {100 * taught.accuracy:.1f} %, 95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f} %: {counted(taught.n, 'song')}, {taught.method}",
        f"always saying {likely!r} would give {100 * share:.1f} %",
    ]
    if low <= share:
        lines.append("The interval reaches down to that: the head may have learnt nothing.")
    lines.append(f"the head is in {out}: 'patchifier predict {out} MUSIC --out labels.csv' uses it")
    return "\n".join(lines)


def _of_each_label(found: "TaughtByCsv") -> list[str]:
    """Lines of a table: songs of each label, its groups if there are any, and right ones."""
    taught = found.taught
    width = max(24, *(len(name) + 2 for name in found.songs))
    grouped = bool(found.groups)
    lines = [f"{'label':<{width}}{'songs':>6}{'groups' * grouped:>{8 * grouped}}{'right':>7}"]
    for name, right in zip(taught.head.names, taught.confusion.diagonal(), strict=True):
        none = "  none is predicted right" * (name in taught.never_right)
        groups = f"{found.groups[name]:>8}" if grouped else ""
        lines.append(f"{name:<{width}}{found.songs[name]:>6}{groups}{right:>7}{none}")
    return lines


def _about_groups(found: "TaughtByCsv") -> list[str]:
    """What was held out together, and about which songs the accuracy speaks."""
    n, by = found.taught.n, found.grouped_by
    if found.ungrouped:
        return [
            f"Songs of one {by} are held out together. {found.ungrouped} of {n} have none: each is "
            f"alone. So for songs of a new {by} the accuracy may be lower."
        ]
    if by:
        return [
            f"Songs of one {by} are held out together. So the accuracy is that for songs of a new "
            f"{by}, of which you labelled nothing."
        ]
    but = ", except those with the same vector" * (found.taught.copies > 0)
    lines = [
        f"Each song stands alone{but}, for no groups are given. So the accuracy is that for other "
        "songs of the artists that you labelled; for new artists it may be lower."
    ]
    for tag, (count, value) in found.shared.items():
        lines.append(
            f"{count} of {n} songs share their {tag} with another labelled song (most: {value}). "
            f"Songs of one {tag} may be on both sides of the test, so the accuracy may be too "
            f"high. --group {tag} holds them out together."
        )
    return lines


def predict(
    model: str,
    sources: list[str],
    *,
    out: str,
    window_s: float = 0.0,
    hop_s: float = 0.0,
    workers: int = 0,
) -> Outcome:
    """Predict labels, values, or a curve over time by a fine-tuned model or a head.

    Parameters
    ----------
    model : str
        From 'patchifier finetune', such as RUN/full/model; a head of the package, as 'patchifier
        info' lists them; the folder of a head from 'patchifier teach'; or the zip file of one from
        the page.
    sources : list of str
        As for 'embed'.
    out : str
        NAME.csv, NAME.jsonl or NAME.parquet.
    window_s : float
        One row for each window of this many seconds, instead of one for each file.
    hop_s : float
        Seconds between the starts of windows; window_s by default.
    workers : int
        Number of processes; 0 is one for each core.

    Examples
    --------
    Labels of a fine-tuned model for every file:
        $ patchifier predict finetuned/full/model ~/Music --out labels.csv

    A curve over time: one row for every five seconds:
        $ patchifier predict finetuned/full/model ~/Music --window_s 5 --out curve.csv
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
    results = asdict(done) | {"skipped": len(done.skipped), "out": out}
    text = f"{counted(done.rows, 'row')} about {counted(done.files, 'file')} in {out}"
    if done.unsure:
        text += f"; the head is not sure about {done.unsure}: their label is empty"
    text += print_skipped(done.skipped, Path(out).with_suffix(".skipped.csv"))
    return Outcome(results, text, 1 if done.skipped else 0)


def tag(
    table: str,
    *,
    estimate: Literal["both", "bpm", "key", "none"] = "both",
    labels: str = "",
    overwrite: bool = False,
    write: bool = False,
    undo: bool = False,
    workers: int = 0,
) -> Outcome:
    """Show tempo, key and labels that files lack as tags; write them, or undo that.

    Parameters
    ----------
    table : str
        From 'patchifier embed'.
    estimate : str
        Which tags: tempo (bpm), key, both or none.
    labels : str
        CSV of 'patchifier predict', or of your own with the columns path and label or target: its
        labels become the tag PATCHIFIER.
    overwrite : bool
        Replace tags that files have.
    write : bool
        Write the tags into the files, after the changes are shown.
    undo : bool
        Give the files that were written every byte of before.
    workers : int
        Number of processes; 0 is one for each core.

    Examples
    --------
    Show which tempo and key tags are missing; nothing is written:
        $ patchifier tag music.parquet

    Write them, and take that back:
        $ patchifier tag music.parquet --write
        $ patchifier tag music.parquet --undo
    """
    from patchifier.library import tagging

    if removed := tagging.clean(table):
        say(f"removed {removed}, which a killed run left")
    if undo:
        if write or overwrite or labels:
            raise RequestError("--undo restores what was written: give it alone.")
        restored, left = tagging.undo(table)
        lines = [*skipped_lines(left), f"{counted(restored, 'file')} as before"]
        return Outcome({"restored": restored, "skipped": left}, "\n".join(lines), int(bool(left)))
    found = tagging.propose(
        table,
        {"both": tagging.ESTIMATES, "none": ()}.get(estimate, (estimate,)),
        labels=labels or None,
        overwrite=overwrite,
        workers=workers or None,
        progress=progress("files"),
    )
    shown = [
        f"{change.path}: {change.tag}: {change.before or 'none'} -> {change.after}"
        for change in found.changes
    ]
    return _write_tags(table, found, shown) if write else _proposed(found, shown)


def _proposed(found: "Proposal", shown: list[str]) -> Outcome:
    """Changes of tags that nobody has written."""
    count = counted(len(found.files), "file")
    end = (
        f"{count} would change: --write writes the tags." if found.files else f"{count} to change."
    )
    text = "\n".join([*shown, *skipped_lines(found.skipped), end])
    return Outcome(asdict(found), text, int(bool(found.skipped)))


def _write_tags(table: str, found: "Proposal", shown: list[str]) -> Outcome:
    """Show changes of tags, then write them."""
    from patchifier.library import tagging

    say("\n".join(shown))
    written, left = tagging.write(table, found.changes, progress=progress("files"))
    skipped = (*found.skipped, *left)
    text = f"tags written into {counted(written, 'file')}"
    text += ": --undo restores every byte, 'embed --changed' reads them." * bool(written)
    results = asdict(found) | {"written": written, "skipped": skipped}
    return Outcome(results, "\n".join([*skipped_lines(skipped), text]), int(bool(skipped)))
