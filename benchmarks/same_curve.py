"""No quality lost: the plain way and the fast way trained on the same draws, several seeds, equal steps.

    python benchmarks/same_curve.py [--steps 80 100] [--batch 4] [--seeds 3]

The bundled clips, fold 3 held out. Per seed both ways start from the same weights and get the same batches and masks; the plain way is
benchmarks/plain.py (every patch extracted and decoded, float32, torch's dropout and optimiser as they come), the fast way is what training
runs, in the best precision of this processor. A reduced bottleneck keeps it to minutes. What is compared is the loss on held-out clips after
equal steps: the difference of the two ways seed by seed, beside the spread over seeds, which is what chance alone does.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from plain import Plain

from patchifier import datasets
from patchifier.cache import Cache, prepare
from patchifier.config import Config, ModelConfig
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Patchifier
from patchifier.seeding import dropout_seed
from patchifier.train.optimiser import rate_factor
from patchifier.train.precision import processor_has_bf16
from patchifier.train.pretrain import Batches, split, stage_loss
from patchifier.train.run import machine
from patchifier.train.validation import validation_batches

PRECISION = "bf16" if processor_has_bf16() else "32"


def loss_of(model, batch, stage, config, *, plain):
    """Training loss of a step."""
    if plain:
        return (
            model.stage_one_loss(batch.patches)
            if stage == "one"
            else model.stage_two_loss(batch.patches, batch.mask)
        )
    with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16"):
        return stage_loss(stage, config.pretrain)(model, batch)


@torch.no_grad()
def validation_loss(model, batches, stage, config):
    """Loss on held-out clips, computed one way for both: the package's model in float32 with these weights."""
    judge = Patchifier(config)
    names = {
        name.replace("decoder.up.13.", "decoder.up.12."): tensor
        for name, tensor in model.state_dict().items()
    }
    judge.load_state_dict(names)
    judge.eval()
    losses = [
        judge.stage_one_loss(batch.patches, batch.target, batch.valid)
        if stage == "one"
        else judge.stage_two_loss(batch.patches, batch.target, batch.valid, batch.mask)
        for batch in batches
    ]
    return float(torch.stack(losses).mean())


def train(seed, data, config, steps, *, plain):
    """Both stages of one seed; returns the held-out losses after each, and the seconds spent."""
    settings = config.pretrain
    splits = split(data, settings)
    held_out = validation_batches(
        data, splits.valid, replace(config, pretrain=replace(settings, seed=0))
    )  # the same for every seed
    model = accelerate(Patchifier(config, seed=seed))
    if plain:
        start, model = model.state_dict(), Plain(config.model)
        model.load_state_dict(start)
    found, spent = {}, 0.0
    for stage, training in (("one", settings.stage_one), ("two", settings.stage_two)):
        batches = Batches(data, splits.slices, config, stage, training)
        trained = [
            parameter
            for name, parameter in model.named_parameters()
            if stage == "two" or name.startswith(("extractor", "decoder"))
        ]
        optimiser = torch.optim.AdamW(
            trained,
            lr=training.learning_rate,
            weight_decay=0.0,
            **({} if plain else {"fused": True}),
        )
        model.train()
        for step in range(steps[stage]):
            batch = batches(step)
            torch.manual_seed(dropout_seed(seed, step))
            optimiser.param_groups[0]["lr"] = training.learning_rate * rate_factor(
                step, steps[stage], training
            )
            started = time.perf_counter()
            loss = loss_of(model, batch, stage, config, plain=plain)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            spent += time.perf_counter() - started
        found[stage] = validation_loss(model, held_out, stage, config)
    return found, spent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs=2, default=(80, 100), metavar=("ONE", "TWO"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    steps = dict(zip(("one", "two"), options.steps, strict=True))
    base = Config(model=ModelConfig(n_layers=2, mlp_dim=512))
    one = replace(
        base.pretrain.stage_one, batch_size=options.batch, learning_rate=1e-3, schedule="cosine"
    )
    two = replace(
        base.pretrain.stage_two, batch_size=options.batch, learning_rate=2e-4, schedule="cosine"
    )
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(datasets.load("demo"), folder)
        data = Cache(folder)
        for seed in range(options.seeds):
            config = replace(
                base,
                pretrain=replace(
                    base.pretrain, stage_one=one, stage_two=two, seed=seed, validation_fold=3
                ),
            )
            for way in ("plain", "fast"):
                found, spent = train(seed, data, config, steps, plain=way == "plain")
                runs.append(
                    {
                        "seed": seed,
                        "way": way,
                        "stage_one": found["one"],
                        "stage_two": found["two"],
                        "seconds": spent,
                    }
                )
                print(
                    f"seed {seed}, {way:<5}: held-out loss after stage I {found['one']:.5f}, after stage II {found['two']:.5f}; {spent:.0f} s",
                    flush=True,
                )
    rows = []
    for stage in ("stage_one", "stage_two"):
        plain, fast = (
            np.array([run[stage] for run in runs if run["way"] == way]) for way in ("plain", "fast")
        )
        row = {
            "stage": stage,
            "plain": float(plain.mean()),
            "fast": float(fast.mean()),
            "difference": float((fast - plain).mean()),
        }
        row |= {"differences": (fast - plain).tolist(), "spread_of_seeds": float(plain.std(ddof=1))}
        rows.append(row)
        print(
            f"{stage.replace('_', ' ')}: plain {row['plain']:.5f}, fast {row['fast']:.5f}, difference {row['difference']:+.5f} "
            f"({', '.join(f'{value:+.5f}' for value in row['differences'])}); standard deviation over seeds, plain way: {row['spread_of_seeds']:.5f}"
        )
    print(f"steps {steps}, batch {options.batch}, fast way in {PRECISION}, {machine()}")
    facts = {
        "rows": rows,
        "runs": runs,
        "steps": steps,
        "batch": options.batch,
        "precision": PRECISION,
        "machine": machine(),
    }
    (Path(__file__).parent / "results" / "same_curve.json").write_text(
        json.dumps(facts, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
