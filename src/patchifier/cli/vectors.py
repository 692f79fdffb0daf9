"""The commands around embeddings: embed, similar, index, distance, predict, export."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchifier.cli.flags import Flags, add_command, add_common, say
from patchifier.cli.progress import progress
from patchifier.config import RequestError

TAGS = ("artist", "title", "album", "genre")
ALONE = (
    "to",
    "model",
    "count",
    "playlist",
    "exact",
)  # of 'similar': about one file, not about pairs


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    command = add_command(
        commands, "embed", "Turn a library into a table of vectors; run it again and it goes on."
    )
    command.add_argument(
        "sources",
        type=str,
        nargs="+",
        help="Folders, files, globs, manifests; '-' reads paths from standard input.",
    )
    command.add_argument(
        "--out",
        type=str,
        required=True,
        help="NAME.parquet or NAME.npy; with Ray also a folder or a URL, for parts.",
    )
    command.add_argument(
        "--model",
        type=str,
        default="",
        help="Model folder, hf://owner/name, or a bundled model's name; patchifier-base by default.",
    )
    command.add_argument(
        "--engine",
        default="processes",
        choices=["processes", "ray"],
        help="This machine's processes, or a Ray cluster.",
    )
    command.add_argument(
        "--address",
        type=str,
        default="",
        help="HOST:PORT of a Ray cluster, or 'auto' on one of its machines.",
    )
    command.add_argument(
        "--changed",
        action="store_true",
        help="Bring a finished table up to date: new, modified and deleted files.",
    )
    command.add_argument(
        "--window_s",
        type=float,
        default=0.0,
        help="A row for each stretch of so many seconds, not for each file.",
    )
    command.add_argument(
        "--hop_s",
        type=float,
        default=0.0,
        help="Seconds between the starts of stretches; they touch by default.",
    )
    command.add_argument("--patches", action="store_true", help="A row for each patch.")
    command.add_argument(
        "--workers", type=int, default=0, help="Processes; 0 is one for each core."
    )
    add_common(command)

    command = add_command(
        commands, "similar", "Name what sounds like a file, in a table or an index of vectors."
    )
    command.add_argument("table", type=str, help="From 'patchifier embed', or 'patchifier index'.")
    command.add_argument("--to", type=str, default="", help="A file, in the table or outside.")
    command.add_argument(
        "--model",
        type=str,
        default="",
        help="For a file outside: the model that made the table; patchifier-base by default.",
    )
    command.add_argument("--count", type=int, default=10, help="How many.")
    command.add_argument(
        "--playlist", action="store_true", help="Walk from neighbour to neighbour instead."
    )
    command.add_argument(
        "--duplicates",
        type=float,
        default=0.0,
        help="Instead, name pairs of files whose cosine is at least this, such as 0.95.",
    )
    command.add_argument(
        "--exact",
        action="store_true",
        help="Compare with every row, also where an approximate index exists.",
    )
    for tag in TAGS:
        command.add_argument(f"--{tag}", type=str, default="", help=f"Only rows with this {tag}.")
    command.add_argument("--below", type=str, default="", help="Only files whose path begins so.")
    add_common(command)

    command = add_command(
        commands, "index", "Make or update an index of a table, for libraries of a million rows."
    )
    command.add_argument("table", type=str, help="From 'patchifier embed'.")
    command.add_argument(
        "--out", type=str, required=True, help="Folder of the index, or a place on an object store."
    )
    add_common(command)

    command = add_command(
        commands,
        "distance",
        "Say how far apart two sets of music are: Frechet and kernel audio distance.",
    )
    command.add_argument("first", type=str, help="From 'patchifier embed'.")
    command.add_argument("second", type=str, help="From 'patchifier embed', by the same model.")
    add_common(command)

    command = add_command(
        commands,
        "predict",
        "Ask a fine-tuned model about files: labels, values, or a curve over time.",
    )
    command.add_argument(
        "model", type=str, help="From 'patchifier finetune', such as RUN/full/model."
    )
    command.add_argument("sources", type=str, nargs="+", help="As for 'embed'.")
    command.add_argument(
        "--out", type=str, required=True, help="NAME.csv, NAME.jsonl or NAME.parquet."
    )
    command.add_argument(
        "--window_s",
        type=float,
        default=0.0,
        help="A row for each stretch of so many seconds, not for each file.",
    )
    command.add_argument(
        "--hop_s",
        type=float,
        default=0.0,
        help="Seconds between the starts of stretches; they touch by default.",
    )
    command.add_argument(
        "--workers", type=int, default=0, help="Processes; 0 is one for each core."
    )
    add_common(command)

    command = add_command(
        commands, "export", "Write a model as one ONNX file, from waveform to embedding."
    )
    command.add_argument(
        "model",
        type=str,
        nargs="?",
        default="",
        help="Model folder or bundled model; patchifier-base by default.",
    )
    command.add_argument("--onnx", type=str, required=True, help="File to write.")
    add_common(command)


def run_embed(flags: Flags) -> int:
    """``patchifier embed``."""
    rows = {
        "window_s": flags.get("window_s") or None,
        "hop_s": flags.get("hop_s") or None,
        "patches": flags.get("patches", False),
    }
    shared = {
        "embedder": _model(flags),
        "workers": flags.get("workers") or None,
        "progress": progress("files"),
    }
    done = (_on_ray if flags.get("engine") == "ray" else _in_processes)(flags, **rows, **shared)
    say(flags, done.facts(), "\n".join(done.lines()))
    return 1 if done.skipped else 0


def _in_processes(flags: Flags, **options: Any) -> Any:
    from patchifier.library import build as collection

    if flags.get("address"):
        raise RequestError("--address is of a Ray cluster: add --engine ray.")
    return collection.embed_library(
        _sources(flags), flags["out"], changed=flags.get("changed", False), **options
    )


def _on_ray(flags: Flags, **options: Any) -> Any:
    """Parts in a folder or behind a URL; and one table of them, if that was asked for."""
    from patchifier.integrations import ray

    out = flags["out"]
    if flags.get("changed"):
        raise RequestError("--changed is for the table of one machine; on Ray, name another --out.")
    if out.endswith(".npy"):
        raise RequestError(
            f"--out is {out}, expected with --engine ray NAME.parquet, a folder or a URL."
        )
    parts = f"{out.removesuffix('.parquet')}.parts-ray" if out.endswith(".parquet") else out
    done = ray.embed_on_ray(_sources(flags), parts, address=flags.get("address") or None, **options)
    if parts != out:
        ray.merge(parts, out)
    return done


def _sources(flags: Flags) -> list[str]:
    return [
        line
        for source in flags["sources"]
        for line in (sys.stdin.read().splitlines() if source == "-" else [source])
        if line.strip()
    ]


def _model(flags: Flags) -> Any:
    from patchifier import embed

    return embed.load(flags.get("model") or None)


def run_similar(flags: Flags) -> int:
    """``patchifier similar``."""
    from patchifier.library import search

    table = search.load(flags["table"])
    below = flags.get("below") or None
    if below and Path(below).is_dir():
        below = f"{Path(below).resolve()}/"
    where = search.Filter(**{tag: flags[tag] for tag in TAGS if flags.get(tag)}, path_prefix=below)
    if flags.get("duplicates") is not None:
        if unused := [f"--{name}" for name in ALONE if flags.get(name, False) is not False]:
            raise RequestError(
                f"--duplicates compares every file with every other and takes no {' and no '.join(unused)}: leave one or the other out."
            )
        pairs = table.near_duplicates(flags["duplicates"], where=where)
        text = "\n".join(
            f"{pair.score:.4f}  {pair.first.path}  {pair.second.path}" for pair in pairs
        )
        say(
            flags,
            [pair.facts() for pair in pairs],
            text or f"no two files reach {flags['duplicates']}.",
        )
        return 0
    if not flags.get("to"):
        raise RequestError("similar to what? Name a file with --to, or ask for --duplicates 0.95.")
    query, count = _query(flags, table), flags.get("count", 10)
    if count < 1:
        raise RequestError(f"--count is {count}, expected at least 1.")
    walk = table.playlist if flags.get("playlist") else table.similar
    found = walk(query, count, where=where, exact=flags.get("exact", False))
    lines = [
        f"{row.score if row.score is not None else 1.0:.4f}  {row.path}  {row.start_s:.1f}-{row.end_s:.1f} s"
        for row in found
    ]
    asked = ", ".join(f"--{name} {flags[name]}" for name in (*TAGS, "below") if flags.get(name))
    nothing = (
        f"no other file in {flags['table']} passes {asked}: tags are compared letter by letter."
        if asked
        else f"no other file is in {flags['table']}."
    )
    say(flags, [row.facts() for row in found], "\n".join(lines) or nothing)
    return 0


def _query(flags: Flags, table: Any) -> Any:
    """The file's path as it stands in the table, or the vector of a file outside."""
    from patchifier import weights
    from patchifier.audio import name_fault, written_name
    from patchifier.library.search import Filter

    if fault := name_fault(flags["to"]):
        raise RequestError(f"--to {written_name(flags['to'])}: {fault}")
    for path in (flags["to"], str(Path(flags["to"]).resolve())):
        if table.filter(Filter(path=path)):
            return path
    embedder = _model(flags)
    if embedder.identity != table.identity:
        raise RequestError(
            f"{flags['to']} is not in {flags['table']}, and {flags.get('model') or weights.DEFAULT} is another model, or has other settings, "
            "than the one that made the table: name that one with --model. A table that an older patchifier made of the same model is embedded anew."
        )
    return embedder.embed(flags["to"])


def run_index(flags: Flags) -> int:
    """``patchifier index``."""
    from patchifier.library import search

    out = flags["out"]
    if search.is_index(out):
        changes = search.Index.open(out).update(flags["table"]).facts()
    else:
        search.Index.build(flags["table"], out)
        changes = {"built": True}
    say(
        flags,
        {"index": out, **changes},
        f"index in {out}: " + ", ".join(f"{name} {value}" for name, value in changes.items()),
    )
    return 0


def run_distance(flags: Flags) -> int:
    """``patchifier distance``."""
    from patchifier.library import distance

    found = distance.distance(flags["first"], flags["second"])
    lines = [f"{name:<22}{value}" for name, value in found.facts().items() if value is not None]
    if found.frechet is None:
        lines.append(
            "no Frechet distance: it needs more rows than numbers in a vector. Embed more files, or shorter stretches (--window_s)."
        )
    elif found.frechet.corrected is None:
        lines.append(
            "the Frechet distance is not corrected for the number of rows: that needs eight times as many rows as numbers in a vector."
        )
    say(flags, found.facts(), "\n".join(lines))
    return 0


def run_predict(flags: Flags) -> int:
    """``patchifier predict``."""
    from patchifier.library import predict

    done = predict.predict(
        _sources(flags), flags["out"], model=_model(flags), window_s=flags.get("window_s") or None, hop_s=flags.get("hop_s") or None,
        workers=flags.get("workers") or None, progress=progress("files"),
    )  # fmt: skip
    for path, reason in done.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    facts = {
        "rows": done.rows,
        "files": done.files,
        "kept": done.kept,
        "skipped": len(done.skipped),
        "out": flags["out"],
    }
    say(
        flags,
        facts,
        f"{done.rows} rows about {done.files} files in {flags['out']}"
        + (f"; {len(done.skipped)} skipped" if done.skipped else ""),
    )
    return 1 if done.skipped else 0


def run_export(flags: Flags) -> int:
    """``patchifier export``."""
    from patchifier.integrations import onnx

    path = onnx.export(flags.get("model") or None, flags["onnx"])
    say(
        flags,
        {"onnx": str(path), "bytes": path.stat().st_size},
        f"{path}, {path.stat().st_size / 1e6:.1f} MB",
    )
    return 0


COMMANDS: dict[str, Callable[[Flags], int]] = {
    "embed": run_embed,
    "similar": run_similar,
    "index": run_index,
    "distance": run_distance,
    "predict": run_predict,
    "export": run_export,
}
