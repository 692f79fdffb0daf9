"""Run the attacks, print the table, write docs/guarantees.md.

Exit code 1 if a fault was not survived or an attack could not run.
"""

import argparse
import datetime
import importlib
import json
import pkgutil
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from patchifier.train.run import processor
from tests import torture
from tests.torture import Attack, Result
from tests.torture._page import page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
RECORD = ROOT / "benchmarks" / "results" / "torture.json"


def attacks() -> list[Attack]:
    """All attacks, by guarantee."""
    names = [module.name for module in pkgutil.iter_modules(torture.__path__)]
    modules = [importlib.import_module(f"tests.torture.{name}") for name in names if name[0] != "_"]
    found = [attack for module in modules for attack in getattr(module, "ATTACKS", [])]
    return sorted(found, key=lambda attack: attack.guarantee)


def run(attack: Attack, count: int, seed: int) -> Result:
    """The result of `count` faults of one attack."""
    draw = np.random.default_rng([seed, zlib.crc32(attack.name.encode())])
    with tempfile.TemporaryDirectory(prefix="torture") as folder:
        return attack.run(Path(folder), count, draw)


def row(attack: Attack, count: int, seed: int) -> dict[str, object]:
    """Run one attack; its row of the table."""
    start = time.monotonic()
    known = {
        "guarantee": attack.guarantee,
        "attack": attack.name,
        "seed": seed,
        "date": str(datetime.date.today()),
        "machine": processor(),
    }
    if reason := attack.missing():
        return known | {"not_run": reason}
    try:
        result = run(attack, count, seed)
    except RuntimeError as error:  # a command that fails without a fault
        return known | {"not_run": str(error)}
    numbers = {"inputs": result.inputs, "injected": result.injected, "survived": result.survived}
    seconds = round(time.monotonic() - start, 1)
    return known | numbers | {"lost": result.lost, "seconds": seconds}


def line(row: dict) -> str:
    """A row of the table as text."""
    name = f"{row['guarantee']:>2}  {row['attack']:<48.48}"
    if "not_run" in row:
        return f"{name}  NOT RUN: {row['not_run']}"
    numbers = [row["inputs"], row["injected"], row["survived"], len(row["lost"])]
    return name + "".join(f"{number:>10,}" for number in numbers) + f"{row['seconds']:>9.0f} s"


def record(rows: list[dict]) -> None:
    """Keep the rows in place of earlier ones of the same attacks, and write the page of all."""
    before = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else []
    names = [attack.name for attack in attacks()]
    latest = {row["attack"]: row for row in [*before, *rows]}
    kept = [latest[name] for name in names if name in latest]
    RECORD.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")


HEAD = f"    {'attack':<48}" + "".join(
    f"{n:>10}" for n in ("inputs", "injected", "survived", "lost")
)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--short", action="store_true", help="two minutes")
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    chosen = [attack for attack in attacks() if options.only in attack.name]
    counts = [attack.short if options.short else attack.count for attack in chosen]
    print(HEAD, flush=True)
    rows = []
    for attack, count in zip(chosen, counts, strict=True):
        if count:
            rows.append(row(attack, count, options.seed))
            if not options.short:
                record(rows)
            print(line(rows[-1]), flush=True)
            print("".join(f"    lost: {text}\n" for text in rows[-1].get("lost", [])), end="")
    bad = [row for row in rows if row.get("lost") or "not_run" in row]
    total = sum(row.get("injected", 0) for row in rows)
    print(f"{total:,} faults injected, {sum(len(row.get('lost', [])) for row in rows)} lost.")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
