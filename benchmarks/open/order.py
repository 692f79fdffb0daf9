"""Experiment: which changes of the config make stage II use the order of patches.

    python benchmarks/open/order.py CACHE --out runs/order [--arms one-scale,first-edition] [--seeds 0,1,2] [--steps 1600]

Every arm has the same setting: the recordings of the list for pre-training, stage I of 500 steps once for each seed and kind of extractor, then stage II
of `--steps` steps of 32 clips, peak 3e-4 with a cosine to 0, one thread. The table is the validation at the end of each run: MSE of masked patches
beside the references, the same with visible patches shuffled, shares of variance, onsets. 19 of 25 patches are masked in every arm. Finished runs are
kept: run it again after an interruption.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from patchifier import checkpoint
from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.nn.model import Patchifier
from patchifier.train.pretrain import pretrain, split
from patchifier.train.validation import validator

STAGE_ONE = {
    "steps": 500,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "warmup_steps": 20,
    "max_grad_norm": 1.0,
}
STAGE_TWO = {"learning_rate": 3e-4, "schedule": "cosine", "warmup_steps": 50, "max_grad_norm": 1.0}
ARMS: dict[str, dict[str, Any]] = {
    "first-edition": {"model": {"vector_norm": "none"}},
    "one-scale": {},
    "slow-extractor": {"pretrain": {"extractor_lr_scale": 0.1}},
    "frozen-extractor": {"pretrain": {"extractor_lr_scale": 0.0}},
    "pre-norm": {"model": {"norm_first": True}},
    "pre-norm-1e-3": {
        "model": {"norm_first": True},
        "pretrain": {"stage_two": {"learning_rate": 1e-3}},
    },
    "rate-1e-4": {"pretrain": {"stage_two": {"learning_rate": 1e-4}}},
    "rate-6e-4": {"pretrain": {"stage_two": {"learning_rate": 6e-4, "warmup_steps": 200}}},
    "mask-50": {"pretrain": {"mask_ratio": 0.5}},
    "mask-90": {"pretrain": {"mask_ratio": 0.9}},
    "mask-block": {"pretrain": {"visible_span_ratio": 0.5}},
    "loss-all": {"pretrain": {"loss_patches": "all"}},
    "no-dropout": {"model": {"dropout": 0.0}},
    "predictor": {"model": {"n_predictor_layers": 2}},
    "patches-16": {
        "model": {"patch_frames": 16, "max_patches": 50, "channels": [16, 32, 64, 128]},
        "pretrain": {"n_patches": 50},
    },
    "patches-8": {
        "model": {"patch_frames": 8, "max_patches": 100, "channels": [32, 64, 128]},
        "pretrain": {"n_patches": 100},
    },
}
KEPT_FROM_STAGE_ONE = ("extractor", "decoder")


def config_of(arms: str, steps: int, seed: int, every: int) -> Config:
    """Return the common config with the changes of some arms, joined by "+"."""
    config = update(
        Config(),
        {
            "pretrain": {
                "seed": seed,
                "validate_every": every,
                "stage_one": STAGE_ONE,
                "stage_two": {**STAGE_TWO, "steps": steps},
            }
        },
    )
    for arm in arms.split("+"):
        if arm not in ARMS:
            raise RequestError(
                f"there is no arm {arm!r}, expected some of {', '.join(ARMS)}, joined by '+'."
            )
        config = update(config, ARMS[arm])
    return config


def stage_one(cache: Path, out: Path, config: Config) -> Path:
    """Train extractor and decoder once for all arms that share them, or find them; return the model folder."""
    model = config.model
    folder = out / f"stage-one-{model.patch_frames}-{config.pretrain.seed}"
    changes = {"pretrain": {"stages": "one", "stage_two": {"steps": 1}}}
    return trained(cache, folder, update(config, changes))


def trained(cache: Path, folder: Path, config: Config, init: Path | None = None) -> Path:
    """Pre-train, resume, or find a finished run; return the model folder."""
    if not (folder / "model").exists():
        begun = folder / "config.json"
        pretrain(cache, folder, config=config, init=init, device="cpu", resume=begun.exists())
    return folder / "model"


def start_of(source: Path, folder: Path, config: Config) -> Path:
    """Write a model folder: the network of the arm with extractor and decoder of stage I."""
    if not folder.exists():
        model, held = (
            Patchifier(config, seed=config.pretrain.seed),
            checkpoint.load(source).model,
        )
        for name in KEPT_FROM_STAGE_ONE:
            model.get_submodule(name).load_state_dict(held.get_submodule(name).state_dict())
        checkpoint.save(folder, Checkpoint(model, config))
    return folder


def run(arms: str, cache: Path, out: Path, *, steps: int, seed: int, every: int) -> dict[str, str]:
    """Train one run of some arms; return the last row of its validation."""
    config = config_of(arms, steps, seed, every)
    start = start_of(stage_one(cache, out, config), out / f"start-{arms}-{seed}", config)
    folder = out / f"{arms}-{steps}-{seed}"
    model = trained(cache, folder, update(config, {"pretrain": {"stages": "two"}}), start)
    minutes = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"] / 60
    return {"arm": arms, "seed": str(seed), "minutes": f"{minutes:.1f}"} | figures(cache, model)


def figures(cache: Path, model: Path) -> dict[str, str]:
    """Return the validation figures of stage II, at the paper's mask ratio in every arm."""
    held = checkpoint.load(model)
    config = update(held.config, {"pretrain": {"mask_ratio": 0.75, "visible_span_ratio": 0.0}})
    data = Cache(cache).require(config.spectrogram)
    with torch.no_grad():
        found = validator("two", data, split(data, config.pretrain), config)(held.model)
    return {name: f"{value:.5g}" for name, value in found.items()}


def main() -> int:
    """Train the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "cache", type=Path, help="log-mels of recordings, from 'patchifier prepare'"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--arms",
        default=",".join(ARMS),
        help="with commas between them; arms joined by '+' are one run",
    )
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=1600, help="of stage II")
    parser.add_argument("--validate-every", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = {"steps": arguments.steps, "every": arguments.validate_every}
    try:
        for seed in (int(seed) for seed in arguments.seeds.split(",")):
            for arms in arguments.arms.split(","):
                print(
                    json.dumps(run(arms, arguments.cache, arguments.out, seed=seed, **options)),
                    flush=True,
                )
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
