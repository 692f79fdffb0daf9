"""Sides of groups, reserved material, random draws and manifests.

Everything is split by group (track, piece, SoundFont preset, progression) before a clip is drawn. A draw is a pure function of words.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.io import replaced_file

SEED = "open-1"  # changing it makes another benchmark
SIDES = ("train", "valid", "test")
SHARES = {"test": 0.3, "valid": 0.2}  # of the groups of a class; the others train

CODED = "coded recordings"  # kind of the copies of recordings that coded.py makes

# Kept for a final evaluation by others: never downloaded, trained on, tuned on or reported.
RESERVED_PACKAGES = (
    "wesnoth-1.14-music", "wesnoth-1.16-music", "wesnoth-1.18-music", "wesnoth-music", "supertux-data", "hedgewars-data", "nexuiz-music",
    "colobot-common-sounds", "drascula-music", "timgm6mb-soundfont", "opl3-soundfont",
)  # fmt: skip
RESERVED_FILES = (
    "timgm6mb",
    "opl3-soundfont",
    "opl3_gm",
)  # SoundFonts, by any name that other packages give their copies


def dice(*words: object) -> np.random.Generator:
    """Return a generator that depends on these words alone."""
    return np.random.default_rng(int.from_bytes(_hash(words)[:8], "little"))


def share(*words: object) -> float:
    """Return a number in [0, 1) that depends on these words alone."""
    return int.from_bytes(_hash(words)[:6], "little") / 2**48


def _hash(words: Sequence[object]) -> bytes:
    return hashlib.sha256("|".join(map(str, (SEED, *words))).encode()).digest()


def deal(groups: Iterable[str], purpose: str) -> dict[str, str]:
    """Give each group of one class a side by its hash: 30 % test, 20 % valid, at least one each of three groups."""
    ranked = sorted(set(groups), key=lambda group: share(purpose, "deal", group))
    tested = max(1, round(SHARES["test"] * len(ranked))) if len(ranked) > 2 else 0
    valid = max(1, round(SHARES["valid"] * len(ranked))) if len(ranked) > 2 else 0
    return {
        group: "test" if rank < tested else "valid" if rank < tested + valid else "train"
        for rank, group in enumerate(ranked)
    }


# --- reserved material ---


def reserved_piece(group: str) -> bool:
    """Whether a group of score pieces is reserved for a final evaluation: a fifth, by this hash."""
    return int(hashlib.sha1(group.encode()).hexdigest(), 16) % 5 == 0


def require_free(name: str) -> None:
    """Refuse a Debian package or a file that is reserved for a final evaluation.

    Raises
    ------
    RequestError
        With the name.
    """
    low = Path(name).name.lower()
    package = low.split("_")[0]
    music = package.startswith("wesnoth-") and package.endswith("-music")
    if package in RESERVED_PACKAGES or music or any(mark in low for mark in RESERVED_FILES):
        raise RequestError(
            f"{name} is reserved for a final evaluation, expected development material only: leave it out."
        )


# --- manifests ---


def write_manifest(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSONL, as 'patchifier prepare' reads them; groups on two sides are refused.

    Raises
    ------
    RequestError
        If a group is on two sides, or there are no rows.
    """
    require_split(rows, path.name)
    with replaced_file(path) as new:
        new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSONL manifest."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def require_split(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Refuse rows whose groups are divided between sides, or that name a clip twice.

    Raises
    ------
    RequestError
        With the group and its sides, or with the number of clips named twice.
    """
    if not rows:
        raise RequestError(f"{name} has no rows, expected clips of every side.")
    paths = [row["path"] for row in rows]
    if len(set(paths)) < len(paths):
        raise RequestError(
            f"{name}: {len(paths) - len(set(paths))} rows name a clip that another names too, expected one row for each clip."
        )
    sides: dict[str, str] = {}
    for row in rows:
        if sides.setdefault(row["group"], row["split"]) != row["split"]:
            raise RequestError(
                f"{name}: group {row['group']!r} is on the sides {sides[row['group']]} and {row['split']}, expected one side."
            )


def require_disjoint(
    pretraining: Sequence[dict[str, Any]], tested: Sequence[dict[str, Any]]
) -> None:
    """Refuse training data that shares a group or a source with validation or test clips.

    Raises
    ------
    RequestError
        With the first shared name.
    """
    kept = {
        str(row[key])
        for row in tested
        if row["split"] != "train"
        for key in ("group", "source")
        if row.get(key)
    }
    for row in pretraining:
        shared = kept & {str(row[key]) for key in ("group", "source") if row.get(key)}
        if shared:
            raise RequestError(
                f"pre-training row {row['path']} shares {sorted(shared)[0]!r} with validation or test clips, expected none: build again."
            )


# --- balance ---


def balanced(
    rows: Sequence[dict[str, Any]], label: str, within: str, *, fewest: int = 5
) -> list[dict[str, Any]]:
    """Select rows with equally many of each label in every (within, split), so that `within` does not predict the label.

    A label with fewer than `fewest` rows in a stratum is left out there, and so is a stratum with a single label.
    """
    strata: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        strata.setdefault((row[within], row["split"]), {}).setdefault(row[label], []).append(row)
    kept = []
    for (place, _), by_label in sorted(strata.items()):
        usable = {name: members for name, members in by_label.items() if len(members) >= fewest}
        if len(usable) < 2:
            continue
        count = min(map(len, usable.values()))
        for name in sorted(usable):
            ranked = sorted(
                usable[name], key=lambda row: share("balanced", label, place, row["path"])
            )
            kept += ranked[:count]
    return kept
