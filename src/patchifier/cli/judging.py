"""The commands around published data and judgement: check, fetch, leaks, compare."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchifier.cli.flags import Flags, add_command, add_common, say
from patchifier.cli.progress import progress
from patchifier.config import RequestError

# The model, and what it has to beat: its architecture untrained, and what no learning is in.
ENCODERS = "patchifier-base,random:patchifier-base,mel-stats,mfcc"


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    command = add_command(
        commands, "check", "Say whether a published data set is complete and sound."
    )
    command.add_argument(
        "name",
        type=str,
        help="mtat, gtzan, emomusic, giantsteps-key, gtzan-beats, nsynth or mtg-jamendo; with ':VARIANT' for another split.",
    )
    command.add_argument("--root", type=str, required=True, help="Folder that it lies in.")
    command.add_argument("--thorough", action="store_true", help="Decode every file to its end.")
    add_common(command)

    command = add_command(
        commands, "fetch", "Download a published data set, as far as its addresses still answer."
    )
    command.add_argument("name", type=str, help="As for 'check'.")
    command.add_argument("--root", type=str, required=True, help="Folder for it.")
    add_common(command)

    command = add_command(
        commands,
        "leaks",
        "Name clips of one cache that are heard in another: what a model was trained on must not be in its test.",
    )
    command.add_argument(
        "first",
        type=str,
        help="Cache that was trained on. A bundled model comes without one: its card says what it heard.",
    )
    command.add_argument("second", type=str, help="Cache that is tested on.")
    command.add_argument("--out", type=str, default="", help="CSV file for the pairs.")
    add_common(command)

    command = add_command(
        commands, "compare", "Judge encoders side by side, by the same probe on the same clips."
    )
    command.add_argument("cache", type=str, help="From 'patchifier prepare', with targets.")
    command.add_argument(
        "--encoders",
        type=str,
        default=ENCODERS,
        help=f"Comma-separated: models, mel-stats, mfcc, chroma, handcrafted, random, ...; {ENCODERS}.",
    )
    command.add_argument("--out", type=str, required=True, help="Run folder.")
    command.add_argument(
        "--probe",
        choices=["linear", "jukemir", "paper", "few-shot"],
        default="linear",
        help="Protocol.",
    )
    command.add_argument(
        "--robustness", action="store_true", help="Also test under deformations of the audio."
    )
    command.add_argument("--seed", type=int, default=0, help="Of the probe.")
    add_common(command)


def run_check(flags: Flags) -> int:
    """``patchifier check``."""
    from patchifier.datasets import check

    report = check.check(
        flags["name"],
        flags["root"],
        thorough=flags.get("thorough", False),
        progress=progress("files"),
    )
    say(flags, report.facts(), "\n".join(report.lines()))
    return 0 if report.complete else 1


def run_fetch(flags: Flags) -> int:
    """``patchifier fetch``."""
    from patchifier import datasets
    from patchifier.datasets import download

    sheet, _ = datasets.find_sheet(flags["name"])
    fetched = download.fetch(sheet, flags["root"], progress=progress(sheet.name))
    say(flags, fetched.facts(), "\n".join(fetched.lines()))
    return 0 if fetched.complete else 1


def run_leaks(flags: Flags) -> int:
    """``patchifier leaks``."""
    from patchifier import cache
    from patchifier.evaluate import leaks

    for name in ("first", "second"):
        _require_no_model(flags[name])
    first, second = cache.Cache(flags["first"]), cache.Cache(flags["second"])
    found = leaks.leaks(first, second, progress=progress("clips"))
    if flags.get("out"):
        leaks.save(found, flags["out"])
    lines = [leak.line() for leak in found]
    lines.append(
        f"{len(found)} pairs between {len(first.clips)} clips of {first.name} and {len(second.clips)} of {second.name}."
    )
    say(
        flags,
        {"leaks": [leak.facts() for leak in found], "first": first.name, "second": second.name},
        "\n".join(lines),
    )
    return 0


def _require_no_model(path: str) -> None:
    """Say of a model, of which one would like to know what it heard, which cache is wanted."""
    from patchifier import weights

    if path in weights.names():
        raise RequestError(
            f"{path} comes without the music it was trained on, expected a cache of that: its card, {weights.find(path) / 'README.md'}, says what it heard. "
            "benchmarks/open/README.md says how the list is built anew; 'patchifier prepare' makes a cache of it."
        )
    if (Path(path) / "model.safetensors").exists():
        raise RequestError(
            f"{path} is a model, expected the cache it was trained on: run.json of its run names it as 'cache'."
        )


def run_compare(flags: Flags) -> int:
    """``patchifier compare``."""
    from patchifier import cache
    from patchifier.evaluate import compare, report
    from patchifier.evaluate import encoders as baselines

    data, out, seed = cache.Cache(flags["cache"]), Path(flags["out"]), flags.get("seed", 0)
    specs = [spec.strip() for spec in flags.get("encoders", ENCODERS).split(",") if spec.strip()]
    if not specs:
        raise RequestError(
            "--encoders names no encoder, expected some, such as 'runs/demo/model,random,mfcc'."
        )
    encoders = [
        encoder for spec in specs for encoder in baselines.encoders(spec, data=data, seed=seed)
    ]
    results = compare.compare(
        data, encoders, out, protocol=flags.get("probe", "linear"), robust=flags.get("robustness", False), seed=seed, progress=progress
    )  # fmt: skip
    page = report.report([out], out / "report")
    say(
        flags,
        results,
        "\n".join([*results["notes"], "", comparison_text(results), f"Report: {page}"]),
    )
    return 0


def comparison_text(results: dict[str, Any]) -> str:
    """Lay a comparison out for a terminal: scores, then differences from the first."""
    width = max([24, *(len(row["encoder"]) + 2 for row in results["rows"])])
    lines = [
        f"{results['dataset']}: {results['protocol']} probe, {results['split']}",
        f"{'encoder':<{width}}{'metric':<12}{'value':>7}   95 % interval     n",
    ]
    for row in results["rows"]:
        what = " ".join(part for part in (row["subset"], row["condition"]) if part)
        few = f"{row['method'].partition(', ')[2]}"
        note = ", ".join(part for part in (few, what) if part)
        lines.append(
            f"{row['encoder']:<{width}}{row['metric']:<12}{row['value']:>7.3f}   [{row['low']:.3f}, {row['high']:.3f}]  {row['n']:>4}  {note}".rstrip()
        )
    for row in results["differences"]:
        lines.append(
            f"{row['first']} - {row['second']}: {row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], p = {row['p_holm']:.3f} (Holm)"
        )
    return "\n".join(lines)


COMMANDS: dict[str, Callable[[Flags], int]] = {
    "check": run_check,
    "fetch": run_fetch,
    "leaks": run_leaks,
    "compare": run_compare,
}
