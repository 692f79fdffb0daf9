"""Equal short trainings on the bundled clips, in the precision that this machine chooses, and whether they end with equal bits.

    python benchmarks/equal_runs.py [--recipe paper,clip] [--runs 5] [--steps 20]

Each run is a process of its own, on one thread, of a few steps of each stage that the recipe has. Exits with 1 if weights of one recipe differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from patchifier import cache, checkpoint, datasets
from patchifier.config import Config, read_changes, to_dict, update
from patchifier.nn.encode import model_hash

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def short(recipe: str, steps: int) -> Config:
    """A recipe with a few steps of each stage, all at the full rate."""
    config = update(Config(), read_changes(RECIPES / f"{recipe}.json"))
    stage = {"steps": steps, "warmup_steps": 0, "schedule": "constant"}
    return update(
        config, {"pretrain": {"stage_one": stage, "stage_two": stage, "validate_every": steps}}
    )


def run(config: Config, source: Path, out: Path) -> dict[str, object]:
    """Train once; returns what run.json says, and the hash of the weights."""
    settings = out.with_suffix(".json")
    settings.write_text(json.dumps(to_dict(config)), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "patchifier",
        "pretrain",
        str(source),
        "--out",
        str(out),
        "--config",
        str(settings),
        "--device",
        "cpu",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((out / "run.json").read_text(encoding="utf-8")) | {
        "weights": model_hash(checkpoint.load(out / "model").model)
    }


def main() -> int:
    """Print a row for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recipe",
        default="paper,clip",
        help="with commas between them; clip and workers have a teacher",
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        print(
            "| recipe | precision | operations tested | refused | seconds of the test | seconds of a run | equal bits |\n|---|---|---|---|---|---|---|"
        )
        for recipe in asked.recipe.split(","):
            config, source = short(recipe, asked.steps), Path(folder) / f"cache-{recipe}"
            cache.prepare(datasets.load("demo"), source, config=config.spectrogram, workers=1)
            rows = [
                run(config, source, Path(folder) / f"{recipe}-{number}")
                for number in range(asked.runs)
            ]
            kinds = len({row["weights"] for row in rows})
            equal = equal and kinds == 1
            test = rows[0].get("precision test", {})
            precisions = "/".join(sorted({row["precision"] for row in rows}))
            tests = ", ".join(f"{row.get('precision test', {}).get('seconds', 0)}" for row in rows)
            seconds = ", ".join(f"{row['seconds']:.0f}" for row in rows)
            refused = "; ".join(test.get("refused", [])) or "none"
            found = "all" if kinds == 1 else f"no: {kinds} kinds of {len(rows)}"
            print(
                f"| {recipe} | {precisions} | {test.get('operations', 0)} | {refused} | {tests} | {seconds} | {found} |",
                flush=True,
            )
        facts = {
            name: test.get(name)
            for name in ("processor", "amx", "ONEDNN_MAX_CPU_ISA", "torch", "threads")
        }
        print(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
