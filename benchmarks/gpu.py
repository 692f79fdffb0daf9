"""Training on one GPU: agreement with the processor, seconds a step, and the paper's schedule projected from a steady state.

    benchmarks/gpu.sh [--batches 32 256 1024] [--steps 300]

Log-mels of the paper's number and length (16,000 clips of 1,249 frames, float16) are in memory; they are random, but change slowly over
time, so that a masked patch can be predicted. Three tables:

1. Losses of 20 steps of each stage on the device and on the processor, float32, no dropout, the same draws.
2. Milliseconds a step for each stage and batch (in float32, in bf16, in bf16 with a compiled loss), timed in turn after warming up, over
   `--steps` steps without waiting in between; and the minutes that 1,000 epochs of 16,000 clips of that stage would take.
3. Loss after equal clips at each batch, the learning rate scaled by the square root of the batch over 32.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from patchifier.cache import Cache
from patchifier.config import Config, TrainingConfig, update
from patchifier.io import write_json
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Patchifier
from patchifier.train import loop
from patchifier.train.distributed import launch
from patchifier.train.optimiser import make_optimiser
from patchifier.train.pretrain import TRAINED, Batches, stage_loss
from patchifier.train.run import machine

CLIPS, FRAMES, EPOCHS = 16_000, 1249, 1000  # the paper's
WAYS = {
    "float32": ("32", False),
    "bf16": ("bf16", False),
    "bf16, compiled": ("bf16", True),
}


class Noise:
    """Log-mels that stand in for a cache: each band walks slowly around a level of its own."""

    def __init__(self, clips, device, seed=0):
        self.frames = np.full(clips, FRAMES)
        self.spectrogram = Config().spectrogram
        generator = torch.Generator(device).manual_seed(seed)
        self.table = np.empty((clips * FRAMES, 64), np.float16)
        for first in range(0, clips, 500):
            count = min(500, clips - first)
            slow = torch.randn(count, 64, FRAMES // 50 + 2, generator=generator, device=device)
            slow = torch.nn.functional.interpolate(slow, size=FRAMES, mode="linear").transpose(
                1, 2
            )  # (n, T, M)
            level = torch.randn(count, 1, 64, generator=generator, device=device)
            fast = torch.randn(slow.shape, generator=generator, device=device)
            rows = (-0.5 + 0.1 * level + 0.1 * slow + 0.03 * fast).clamp_(-1, 0.4)
            self.table[first * FRAMES : (first + count) * FRAMES] = rows.flatten(0, 1).half().cpu()

    def log_mel(self, index, first=0, last=FRAMES):
        return self.table[index * FRAMES + first : index * FRAMES + min(last, FRAMES)]

    read = Cache.read


def stepper(
    stage,
    data,
    batch,
    device,
    *,
    precision="32",
    compiled=False,
    dropout=0.1,
    total=10**9,
    learning_rate=1e-4,
):
    """Take steps of a stage, as training does."""
    config = update(Config(), {"model": {"dropout": dropout}})
    training = TrainingConfig(steps=total, batch_size=batch, learning_rate=learning_rate)
    fabric = launch(device, precision=precision)
    model = accelerate(Patchifier(config)).to(fabric.device)
    for name, part in model.named_children():
        part.requires_grad_(name in TRAINED[stage])
    batches = Batches(
        data, [np.arange(len(data.frames))], config, stage, training, device=fabric.device
    )
    loss = stage_loss(stage, config.pretrain)
    job = loop.TrainTask(
        model, len(data.frames), batches, torch.compile(loss) if compiled else loss
    )
    optimiser = make_optimiser(model, training, {})
    wrapped, optimiser = fabric.setup(model, optimiser)
    return lambda step: loop.step(
        job, step, wrapped, optimiser, fabric, training, seed=0, total=total
    )


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def agreement(data, device, batch, steps):
    """Largest relative difference of losses, device against processor."""
    rows = []
    for stage in ("one", "two"):
        losses = []
        for where in (device, "cpu"):
            take = stepper(stage, data, batch, where, dropout=0.0)
            losses.append([float(take(step)[1][0]) for step in range(steps)])
        here, there = map(np.array, losses)
        rows.append(
            {
                "stage": stage,
                "batch": batch,
                "steps": steps,
                "largest_relative_difference": float(np.abs(here / there - 1).max()),
                "last_loss": here[-1],
            }
        )
        print(
            f"stage {stage}: losses of {steps} steps on {device} and on the processor differ by at most {rows[-1]['largest_relative_difference']:.1e}"
        )
    return rows


def speed(data, device, batches, steps, rounds=3):  # noqa: C901 - variants timed in turn
    """Milliseconds a step, and minutes of 1,000 epochs."""
    rows = []
    for stage in ("one", "two"):
        for batch in batches:
            takes, next_step = {}, {}
            for way, (precision, compiled) in WAYS.items():
                if compiled and device != "cuda":
                    continue
                takes[way] = stepper(
                    stage, data, batch, device, precision=precision, compiled=compiled
                )
                for step in range(min(steps, 12)):
                    takes[way](step)
                next_step[way] = min(steps, 12)
            spent = {way: [] for way in takes}
            for _ in range(rounds):
                for way, take in takes.items():
                    wait(device)
                    started = time.perf_counter()
                    for step in range(next_step[way], next_step[way] + steps):
                        take(step)
                    wait(device)
                    spent[way].append((time.perf_counter() - started) / steps)
                    next_step[way] += steps
            for way, seconds in spent.items():
                step_s = float(np.median(seconds))
                minutes = step_s * math.ceil(EPOCHS * CLIPS / batch) / 60
                row = {
                    "stage": stage,
                    "batch": batch,
                    "way": way,
                    "step_ms": 1000 * step_s,
                    "clips_per_s": batch / step_s,
                    "schedule_minutes": minutes,
                }
                rows.append(row)
                print(
                    f"stage {stage}, batch {batch:>5}, {way:<22}{row['step_ms']:9.2f} ms {row['clips_per_s']:10.0f} clips/s {minutes:9.1f} min",
                    flush=True,
                )
    for batch in batches:
        for way in WAYS:
            both = [
                row["schedule_minutes"]
                for row in rows
                if row["batch"] == batch and row["way"] == way
            ]
            if len(both) == 2:
                print(
                    f"both stages, {EPOCHS} epochs of {CLIPS:,} clips, batch {batch}, {way}: {sum(both):.1f} min"
                )
    return rows


def equal_clips(data, device, batches, clips):
    """Loss over the last tenth, after the same number of clips."""
    rows = []
    for batch in batches:
        steps = clips // batch
        take = stepper(
            "two",
            data,
            batch,
            device,
            precision="bf16",
            total=steps,
            learning_rate=1e-4 * math.sqrt(batch / 32),
        )
        losses = torch.stack([take(step)[1][0] for step in range(steps)])
        rows.append(
            {
                "batch": batch,
                "clips": clips,
                "steps": steps,
                "loss": float(losses[-max(1, steps // 10) :].mean()),
            }
        )
        print(f"stage two, batch {batch}: loss {rows[-1]['loss']:.5f} after {clips:,} clips")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device",
        default="cuda",
        choices=["cuda", "cpu"],
        help="cpu tries the script out, on few clips.",
    )
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--steps", type=int, default=300, help="Timed steps of each way and round.")
    parser.add_argument("--agree", type=int, default=20, help="Steps of the first table.")
    parser.add_argument("--equal", type=int, default=262_144, help="Clips of the third table.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    flags = parser.parse_args()
    if flags.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "there is no GPU that torch can use here; --device cpu --clips 64 --batches 4 --agree 2 --steps 2 --equal 16 tries the script out"
        )
    data = Noise(flags.clips, flags.device)
    facts = {"machine": machine(), "clips": flags.clips}
    facts["agreement"] = agreement(data, flags.device, min(flags.batches[0], 32), flags.agree)
    facts["speed"] = speed(data, flags.device, flags.batches, flags.steps)
    facts["equal_clips"] = equal_clips(data, flags.device, flags.batches, flags.equal)
    write_json(flags.out, facts)
    print(facts["machine"])


if __name__ == "__main__":
    main()
