"""The card of a head: what it says, what it was trained on, how right it is, what it is bad at."""

from pathlib import Path
from typing import Any

from patchifier.heads import LIMITS, Head
from patchifier.io import replaced_file

SAYS = {
    "chord-quality": "The quality of one chord that sounds alone: "
    "major, minor, diminished, augmented, suspended fourth, major, minor and dominant seventh.",
    "drums": "Whether there are drums.",
}
FROM = {
    "chord-quality": "Chords of 3 s by one instrument, in any inversion and spacing "
    "(`notes-chord-quality` of the open benchmark).",
    "drums": "Accompaniments by mma, each once with its drums and once without, by six kits (`bands.py`).",
}
BAD_AT = {
    "chord-quality": (
        "Songs: nearly all windows of songs are doubted, since several instruments play at once. For chords of songs use `patchifier.estimates.chords`.",
        "A single note, or an interval, is no chord, but gets one: it does not say so.",
        "No recording of a chord was in its training. How it does on recordings is not known.",
    ),
    "drums": (
        "Recordings: it was trained on rendered kits alone, and nobody has written down which of the recordings at hand have drums. How right it is on them is not known.",
        "Hand percussion, beat boxing and sampled loops: none was in its training.",
        "Drums alone, without any other instrument: none was in its training.",
        "A song is one vector: drums in a small part of it may be missed. `--window_s 10` says where they play.",
    ),
}
KINDS = {
    "chords": "chords",
    "bands": "accompaniments",
    "all": "all",
}


def facts(found: dict[str, Any]) -> dict[str, Any]:
    """What head.json keeps of the measures."""
    score = found["valid"]["all"]
    return {
        "measured": {name: score[name] for name in ("metric", "value", "low", "high", "clips")},
        "chance": found["chance"]["value"],
        "on": "clips of the open benchmark's validation side, rendered",
        "command": "benchmarks/open/train_heads.py",
        "licence": "Apache-2.0",
    }


def limits(head: Head) -> dict[str, float]:
    """Limits of what a head knows."""
    assert head.known is not None
    return {name: round(getattr(head.known, name), 4) for name in LIMITS}


def write(head: Head, folder: Path, found: dict[str, Any]) -> Path:
    """Write README.md into the folder of a head."""
    name, path = folder.name, folder / "README.md"
    parts = [
        f"# {name}\n",
        f"{SAYS[name]} A linear head on vectors of {head.model}: {len(head.names)} labels, "
        f"{head.weight.size + head.bias.size:,} numbers.\n",
        f"```console\n$ patchifier predict {name} music --out {name}.csv\n```\n",
        "Apache-2.0. Made by `benchmarks/open/train_heads.py`.\n",
        "## Trained on\n",
        f"{FROM[name]} {found['clips']['train']:,} clips of the training side, rendered by FluidR3. Folds of instruments chose the regularisation "
        f"(C = {found['strength']:g}).\n",
        "## How right it is\n",
        _scores(found),
        _sure(found),
        "## When it is not sure\n",
        _doubts(head, found),
        "## What it is bad at\n",
        "".join(f"- {line}\n" for line in BAD_AT[name]),
    ]
    with replaced_file(path) as new:
        new.write_text("\n".join(parts), encoding="utf-8")
    return path


def _scores(found: dict[str, Any]) -> str:
    """Table of scores by kind of clip, beside chance and other vectors."""
    valid = found["valid"]
    kinds = [kind for kind in KINDS if kind in valid]
    if len(kinds) == 2:  # one kind, and all of it
        kinds = ["all"]
    rivals = [name for name in ("random",) if name in found]
    head = ["clips of the validation side", "clips", "groups", valid["all"]["metric"]]
    head += ["the same head on vectors of random weights"] * len(rivals)
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for kind in kinds:
        row = [KINDS[kind], str(valid[kind]["clips"]), str(valid[kind]["groups"])]
        row += [_value(valid[kind]), *(_value(found[name][kind]) for name in rivals)]
        lines.append(f"| {' | '.join(row)} |")
    chance = found["chance"]["value"]
    most = "the most frequent answer" if valid["all"]["metric"] == "accuracy" else "chance"
    lines.append(f"\n95 % intervals by bootstrap over groups. Score of {most}: {chance:.3f}. ")
    best = found["held_out"][str(found["strength"])]
    lines.append(f"On the training side, on instruments that were left out: {best:.3f}.\n")
    return "\n".join(lines)


def _value(score: dict[str, Any]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _sure(found: dict[str, Any]) -> str:
    """What the answers are like that a head is sure of."""
    sure = found["valid"]["sure"]
    return f"It answers for {sure['answered']:.1%} of these clips. Of these answers {sure['right']:.1%} are right.\n"


def _doubts(head: Head, found: dict[str, Any]) -> str:
    assert head.known is not None
    limits = [
        f"vectors further than {head.known.furthest:.2f} deviations from those of its training",
        "vectors on the side of noise and speech-like sound",
    ]
    if head.known.least:
        limits.append(f"labels below a probability of {head.known.least:g}")
    lines = [
        f"It doubts {', '.join(limits)}. The limits were chosen on the training side. Other sounds of the same kinds, "
        "and recorded speech, none of which was in its training:\n"
    ]
    lines += ["| sound without music | sounds | doubted |", "|---|---:|---:|"]
    for kind, row in found["no music"].items():
        lines.append(f"| {kind} | {row['n']} | {row['doubted']:.0%} |")
    others = found["recordings"]
    lines.append(
        f"\nOf {others['clips']} clips of recordings (10 s, validation side) it answers for {others['answered']:.1%}. Nobody knows how many of these answers are right.\n"
    )
    return "\n".join(lines)
