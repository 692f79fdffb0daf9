"""How each run was made: command, hashes, versions, seeds, processor, precision, every setting."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchifier.evaluate.report.folders import METHODS, RunFolder, get_part, read_json, to_number

SPLIT_NAMES = {"train": "training", "valid": "validation"}


def duration(seconds: Any) -> str:
    """Write a time in the unit that reads best."""
    value = to_number(seconds)
    if not math.isfinite(value):
        return "unknown time"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def clip_counts(run: RunFolder) -> str:
    """Clips of each split, and hours of music where the run says them."""
    counts = get_part(run.facts, "clips").items()
    listed = ", ".join(f"{n:,} {SPLIT_NAMES.get(name, name)}" for name, n in counts)
    where = " in the first fold" if "in turn" in str(run.facts.get("split")) else ""
    return f"{listed} clips{where}" if listed else ""


def music_text(run: RunFolder) -> str:
    """Hours of music in the cache of a run; empty for runs of older versions."""
    hours = to_number(run.facts.get("hours"))
    if not math.isfinite(hours):
        return ""
    return f"{hours:.1f} hours of music" if hours >= 1 else f"{60 * hours:.0f} minutes of music"


def seeds_text(run: RunFolder) -> str:
    """Seed, or first and last seed."""
    settings = get_part(run.config, "finetune" if run.kind == "finetune" else "pretrain")
    seed, seeds = settings.get("seed", run.facts.get("seed", "?")), settings.get("n_seeds", 1)
    if run.kind != "finetune" or seeds == 1 or not isinstance(seed, int):
        return str(seed)
    return f"{seed} to {seed + int(seeds) - 1}"


def made(run: RunFolder) -> dict[str, Any]:
    """What the page says of how a run was made; lines without a value are left out."""
    facts = run.facts
    size = to_number(facts.get("parameters"))
    digest = hashlib.sha256(json.dumps(run.config, sort_keys=True).encode()).hexdigest()
    later = facts.get("resumed")
    later = [each for each in later if isinstance(each, dict)] if isinstance(later, list) else []
    lines = {
        "state": facts.get("state", "unknown"),
        "data set": run.dataset,
        "clips": clip_counts(run),
        "music": music_text(run),
        "task": run.test,
        "parameters": f"{size:,.0f}" if size == size else "",
        "seed": seeds_text(run),
        "started": facts.get("started", ""),
        "resumed": ", ".join(str(each.get("started", "")) for each in later),
        "time": duration(facts.get("seconds")),
        "processor": facts.get("machine", ""),
        "precision": _precision(run),
        "versions": ", ".join(f"{n} {v}" for n, v in get_part(facts, "versions").items()),
        "cache": facts.get("cache", ""),
        "hash of the audio": facts.get("music", ""),
        "hash of the model that was tuned": str(facts.get("model weights", ""))[:16],
        "hash of the settings": digest[:16] if run.config else "",
        "sha256 of the weights written": _weights(run),
        "folder": facts["folder"],
    }
    return {
        "label": run.label,
        "command": facts.get("command", "?"),
        "facts": [(name, text) for name, text in lines.items() if text != ""],
        "config": json.dumps(run.config, indent=2) if run.config else "",
    }


def _precision(run: RunFolder) -> str:
    """Arithmetic of training, and what its self-test found."""
    precision = str(run.facts.get("precision", ""))
    names = {"32": "float32", "bf16": "bf16, weights in float32"}
    test = get_part(run.facts, "precision test")
    if not test:
        return names.get(precision, precision)
    refused = len(test.get("refused") or [])
    return (
        f"{names.get(precision, precision)}; self-test of {test.get('operations', '?')} "
        f"operations, {refused} refused"
    )


def _weights(run: RunFolder) -> str:
    """First 16 digits of the sha256 of each model.safetensors that a run wrote."""
    places = {"model": run.path / "model"} | {name: run.path / name / "model" for name in METHODS}
    found = []
    for name, folder in places.items():
        path = folder / "model.safetensors"
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            found.append(f"{name} {digest}")
    return ", ".join(found)


def read_steps(roots: Sequence[Path], problems: list[str]) -> list[tuple[str, str, str]]:
    """Section, command and time of each step of 'patchifier paper', where a root has them."""
    found = []
    for path in sorted({root / "steps.json" for root in roots}):
        if path.is_file():
            for step in read_json(path, problems, kind=list):
                if isinstance(step, dict):
                    texts = (str(step.get("section")), str(step.get("command")))
                    found.append((*texts, duration(step.get("seconds"))))
    return found
