"""Compare the recipes of docs/objectives.md at one small size: the same processor time for each, then one evaluation.

    python benchmarks/open/screen.py ROOT --out runs/screen [--minutes 2.5] [--seeds 0,1,2] [--recipes paper,self-supervised,...] [--cache cache-synthetic]

The common setting: width 192, 4 pre-norm layers, sequences of 10 s, stage II alone, no dropout, one schedule of the learning rate, one thread; the
recipe decides everything else. base-paper keeps both stages and its own rate. The number of steps in the given time is measured before each run.
Vectors are mean and deviation of the last layer alone, evaluated on the validation side. Run it again after an interruption: finished runs are kept.
Differences below four points of the endpoint say nothing with one seed.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from patchifier.cache import Cache
from patchifier.config import Config, RequestError, read_changes, update
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Patchifier
from patchifier.train.precision import best_precision
from patchifier.train.pretrain import (
    Batches,
    initial_model,
    pretrain,
    split,
    stage_loss,
    stage_module,
)

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parents[1] / "recipes"
AS_IT_IS = "base-paper"
CACHE = "cache-all"
ROWS = ["base-paper", "paper", "transformer-extractor", "whole-length", "self-supervised"]
WIDTH, LAYERS, SECONDS = 192, 4, 10.0
TIMED_STEPS = 5
SCHEDULE = {
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "warmup_steps": 50,
    "max_grad_norm": 1.0,
    "weight_decay": 0.05,
}


def unit(recipe: str, seed: int, root: Path) -> Config:
    """Return the config of a recipe in the common setting; notes are those of :mod:`synthetic`."""
    config = update(Config(), read_changes(RECIPES / f"{recipe}.json"))
    patch_s = config.model.patch_frames * config.spectrogram.frame_s
    patches = round(SECONDS / patch_s)
    whole = config.pretrain.stage_two_patches == "whole"
    changes = {
        "model": {
            "embed_dim": WIDTH,
            "n_layers": LAYERS,
            "max_patches": config.model.max_patches if whole else patches,
        },
        "pretrain": {"n_patches": patches, "seed": seed},
        "embed": {
            "pooling": "mean+std",
            "layers": [-1],
            "summaries": [],
            "whiten": False,
            "n_components": 0,
            "n_similarity": 0,
        },
    }
    if config.pretrain.note_labels:
        changes["pretrain"]["note_labels"] = str(root / "labels")
    if recipe != AS_IT_IS:
        changes["model"] |= {"norm_first": True, "dropout": 0.0}
        changes["pretrain"] |= {"stages": "two", "stage_two": SCHEDULE}
    return update(config, changes)


def seconds_per_step(stage: str, data: Cache, config: Config) -> float:
    """Processor time of a step, measured on a temporary model."""
    settings = config.pretrain
    training = settings.stage_one if stage == "one" else settings.stage_two
    batches = Batches(data, split(data, settings).slices, config, stage, training)
    module = stage_module(stage, accelerate(Patchifier(config)), batches, config).train()
    loss, optimiser = (
        stage_loss(stage, settings),
        torch.optim.AdamW(module.parameters(), fused=True),
    )
    started = 0.0
    for step in range(1 + TIMED_STEPS):
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=best_precision("cpu", settings.precision) == "bf16"
        ):
            value = loss(module, batches(step))
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        started = started or time.process_time()  # the first step makes tables
    return (time.process_time() - started) / TIMED_STEPS


def with_steps(config: Config, data: Cache, seconds: float) -> Config:
    """Set the number of steps that fits into the time; of two stages each gets half."""
    stages = ("one", "two") if config.pretrain.stages == "both" else (config.pretrain.stages,)
    changes = {}
    for stage in stages:
        steps = max(20, round(seconds / len(stages) / seconds_per_step(stage, data, config)))
        warm_up = min(getattr(config.pretrain, f"stage_{stage}").warmup_steps, steps // 20)
        changes[f"stage_{stage}"] = {"steps": steps, "warmup_steps": warm_up}
    most = max(each["steps"] for each in changes.values())
    return update(config, {"pretrain": {**changes, "validate_every": most}})


def train(
    recipe: str, root: Path, out: Path, seconds: float, seed: int, *, cache: str = CACHE
) -> Path:
    """Train a recipe in the common setting, or resume; return its model folder."""
    folder = out / f"{recipe}-{seed}"
    if (folder / "model").exists():
        return folder / "model"
    config = unit(recipe, seed, root)
    data = Cache(root / cache).require(config.spectrogram)
    begun = folder / "config.json"
    config = (
        update(config, read_changes(begun)) if begun.exists() else with_steps(config, data, seconds)
    )
    started = time.process_time()
    model = pretrain(root / cache, folder, config=config, device="cpu", resume=begun.exists())
    steps = {
        stage: getattr(config.pretrain, f"stage_{stage}").steps
        for stage in ("one", "two")
        if (folder / f"stage-{stage}").exists()
    }
    print(
        f"{recipe}: steps {steps}, {initial_model(config, None).parameter_count():,} parameters, {time.process_time() - started:.0f} s of the processor",
        flush=True,
    )
    return model


def require_budget(out: Path, minutes: float) -> None:
    """Refuse runs of another budget in the same folder."""
    held = out / "minutes.txt"
    if held.exists() and float(held.read_text()) != minutes:
        raise RequestError(
            f"{out} holds runs of {held.read_text().strip()} minutes, expected {minutes:g}: give another --out, or the same --minutes."
        )
    out.mkdir(parents=True, exist_ok=True)
    held.write_text(f"{minutes:g}\n")


def main() -> int:
    """Train the missing runs, then evaluate all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "root",
        type=Path,
        help="that build.py filled, with cache-all as recipes/release.sh prepares it",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.5, help="of the processor, for each row")
    parser.add_argument(
        "--seeds",
        default="0",
        help="with commas between them; a row of the table is the mean of all",
    )
    parser.add_argument("--recipes", default=",".join(ROWS))
    parser.add_argument(
        "--cache",
        default=CACHE,
        help="folder below ROOT of training data; cache-synthetic where notes are targets",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipes, seeds = (
        arguments.recipes.split(","),
        [int(seed) for seed in arguments.seeds.split(",")],
    )
    try:
        require_budget(arguments.out, arguments.minutes)
        models = {
            recipe: [
                str(
                    train(
                        recipe,
                        arguments.root,
                        arguments.out,
                        60 * arguments.minutes,
                        seed,
                        cache=arguments.cache,
                    )
                )
                for seed in seeds
            ]
            for recipe in recipes
        }
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    rows = [f"{recipe}={'+'.join(runs)}" for recipe, runs in models.items()]
    rows += [
        f"random weights of {recipe}=random:{models[recipe][0]}"
        for recipe in dict.fromkeys((recipes[-1], recipes[0]))
    ]
    encoders = ",".join([*rows, "mel-stats"])
    evaluation = subprocess.run(
        [
            sys.executable,
            str(HERE / "judge.py"),
            str(arguments.root),
            "--encoders",
            encoders,
            "--out",
            str(arguments.out / "judged"),
        ],
        check=False,
    )
    return evaluation.returncode


if __name__ == "__main__":
    sys.exit(main())
