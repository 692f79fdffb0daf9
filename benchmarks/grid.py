"""JukeMIR's grid of 216 probes, all at once against one by one, on three synthetic data sets.

    python benchmarks/grid.py [--agree-patience 16] [--agree-limit 400] [--sample 3] [--threads 1] [--no-full]

First, agreement: all 216 settings both ways on data of a size at which one by one is bearable, with the patience cut from 256 validations
and every run cut after some hundred steps, so that it ends in minutes: which setting is chosen, and the test figure of the chosen one. Both
ways are timed in turn, one data set after the other.

Then the protocol itself, at the size of real data sets: all 216 at once, with nothing cut; one by one for a few settings drawn at random
from each kind (hidden layer x batch size), and the chosen one from start to end. Since both ways take the same steps, the time of one by
one is the steps of all 216 times the seconds a step measured on the drawn ones, and is marked as extrapolated.

One by one is torch's own layers, losses and Adam. Both ways have the same number of threads; on a machine that does other work too, compare
processor seconds.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import tasks
from patchifier.datasets.splits import Splits
from patchifier.evaluate.probes.grid import SETTINGS, select, train_grid
from patchifier.evaluate.probes.heads import (
    Hyperparameters,
    ProbeData,
    Schedule,
    TrainedHead,
    batch,
    dropout_mask,
    first_weights,
)
from patchifier.io import write_json
from patchifier.tasks import Task
from patchifier.train.loop import fit_head
from patchifier.train.run import machine

# Clips of each side, features, outputs, deviation of the noise. The clips are those of GTZAN and EmoMusic, and a thirtieth of MagnaTagATune's:
# with a tenth of them, 256 features and 50 tags, the first 9 of the 216 settings take 6 minutes of a processor.
FULL = {
    "one-of": ((443, 197, 290), 256, 10, 0.5),
    "numbers": ((504, 115, 125), 256, 2, 1.0),
    "many-of": ((600, 182, 533), 64, 20, 1.0),
}
SMALL = {
    "one-of": ((443, 197, 290), 32, 10, 0.5),
    "numbers": ((504, 115, 125), 32, 2, 1.0),
    "many-of": ((600, 182, 533), 32, 20, 1.0),
}


def synthesise(kind, sizes, width, outputs, noise, seed=0):
    """Features from a few common causes, on scales that differ; targets from the causes, bent a little, with noise."""
    dice = np.random.default_rng(seed)
    n, causes = sum(sizes), dice.normal(size=(sum(sizes), 16))
    features = (
        causes @ dice.normal(size=(16, width)) / 4 + dice.normal(size=(n, width)) / 2
    ) * dice.lognormal(0, 0.5, width)
    signal = (causes + 0.5 * (np.abs(causes) - 0.8)) @ dice.normal(
        size=(16, outputs)
    ) / 4 + noise * dice.normal(size=(n, outputs)) / 2
    names = tuple(f"n{index}" for index in range(outputs))
    if kind == "one-of":
        targets = signal.argmax(1)
    else:
        targets = (
            (signal > np.quantile(signal, 0.9, axis=0)).astype(np.float32)
            if kind == "many-of"
            else signal.astype(np.float32)
        )
    places = np.split(np.arange(n), np.cumsum(sizes)[:2])
    return Task(kind, names), features, targets, Splits(*places, np.arange(n).astype(str))


def prepare(kind, table):
    task, features, targets, sides = synthesise(kind, *table[kind])
    problem = ProbeData.of(task, features, targets, sides, 0)
    return problem, lambda run: tasks.main_score(
        task, targets[sides.test], problem.predict(run, features[sides.test])
    )


class Head(nn.Module):
    """A head of the grid by torch's own layers."""

    def __init__(self, data: ProbeData, setting: Hyperparameters) -> None:
        super().__init__()
        weights = first_weights(data, setting)
        pairs = list(zip(weights[::2], weights[1::2], strict=True))
        self.widths = [matrix.shape[1] for matrix, _ in pairs]
        self.layers = nn.ModuleList(
            [nn.Linear(matrix.shape[1], matrix.shape[0]) for matrix, _ in pairs]
        )
        for layer, (matrix, bias) in zip(self.layers, pairs, strict=True):
            layer.load_state_dict({"weight": matrix, "bias": bias})

    def forward(self, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x * masks[index] if masks else x)
            x = torch.relu(x) if index + 1 < len(self.layers) else x
        return x


def run_one(data: ProbeData, setting: Hyperparameters, schedule: Schedule) -> TrainedHead:
    """Train one head by torch's layers, losses and Adam, and score it by the package's own metrics."""
    head, loss = Head(data, setting), tasks.loss(data.task)
    valid, targets = data.inputs[setting.standardise][1], data.targets[1].numpy()
    truth = targets.argmax(1) if data.task.kind == "one-of" else targets

    def loss_at(step: int) -> Tensor:
        x, y = batch(data, setting, step)
        masks = [
            dropout_mask(data, setting, step, layer, (len(x), width))
            for layer, width in enumerate(head.widths)
        ]
        return loss(head(x, masks), y)

    def score() -> float:
        outputs = head(valid).double().numpy()
        finite = np.isfinite(outputs).all()
        return tasks.main_score(data.task, truth, outputs) if finite else -np.inf

    optimiser = torch.optim.Adam(head.parameters(), lr=setting.rate, weight_decay=setting.decay)
    state, curve = fit_head(head, optimiser, loss_at, score, **schedule.steps)
    finished = state.step - state.best_step >= schedule.steps["patience"]
    weights = list(head.state_dict().values())
    return TrainedHead(setting, state.best_score, state.best_step, curve, finished, weights)


def timed(work):
    started, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - started, time.process_time() - processor


def steps_of(runs, schedule):
    return sum(len(run.curve) for run in runs) * schedule.every_steps


def agreement(kind, patience, limit_steps):
    """All 216 settings both ways."""
    problem, test = prepare(kind, SMALL)
    schedule = Schedule(patience=patience, limit_steps=limit_steps)
    together, together_s, together_cpu_s = timed(lambda: train_grid(problem, SETTINGS, schedule))
    alone, alone_s, alone_cpu_s = timed(
        lambda: [run_one(problem, setting, schedule) for setting in SETTINGS]
    )
    best, plain = select(together), select(alone)
    same_curves = sum(one.curve == other.curve for one, other in zip(together, alone, strict=True))
    return {
        "kind": kind, "clips": SMALL[kind][0], "width": SMALL[kind][1], "patience": patience, "limit_steps": limit_steps,
        "together_s": together_s, "one_by_one_s": alone_s, "together_cpu_s": together_cpu_s, "one_by_one_cpu_s": alone_cpu_s, "speed_up": alone_s / together_s,
        "speed_up_cpu": alone_cpu_s / together_cpu_s, "steps": steps_of(together, schedule), "chosen": str(best.setting),
        "same_setting": best.setting == plain.setting, "same_step": best.best_step == plain.best_step, "equal_curves": same_curves,
        "test_together": test(best), "test_one_by_one": test(plain), "points_apart": 100 * abs(test(best) - test(plain)),
    }  # fmt: skip


def protocol(kind, sample):
    """The full schedule at full size; one by one is timed on a few settings of each kind, on as many steps as they take, up to 400."""
    problem, test = prepare(kind, FULL)
    together, together_s, together_cpu_s = timed(lambda: train_grid(problem, SETTINGS, Schedule()))
    best = select(together)
    cells, dice = defaultdict(list), np.random.default_rng(0)
    for run in together:
        cells[run.setting.hidden, run.setting.batch].append(run)
    alone_s, alone_cpu_s = 0.0, 0.0
    for runs in cells.values():
        drawn = [runs[place] for place in dice.choice(len(runs), sample, replace=False)]
        spent = [
            timed(lambda run=run: run_one(problem, run.setting, Schedule(limit_steps=400)))
            for run in drawn
        ]
        steps = sum(steps_of([run], Schedule()) for run, _, _ in spent)
        alone_s += steps_of(runs, Schedule()) * sum(seconds for _, seconds, _ in spent) / steps
        alone_cpu_s += steps_of(runs, Schedule()) * sum(seconds for _, _, seconds in spent) / steps
    plain = run_one(problem, best.setting, Schedule())
    return {
        "kind": kind, "clips": FULL[kind][0], "width": FULL[kind][1], "together_s": together_s, "one_by_one_s_extrapolated": alone_s,
        "together_cpu_s": together_cpu_s, "one_by_one_cpu_s_extrapolated": alone_cpu_s, "speed_up_extrapolated": alone_s / together_s,
        "speed_up_cpu_extrapolated": alone_cpu_s / together_cpu_s, "drawn_of_each_kind": sample, "steps": steps_of(together, Schedule()),
        "longest_run_steps": max(len(run.curve) for run in together) * 8, "chosen": str(best.setting), "valid": best.score, "test": test(best),
        "chosen_one_by_one": {"same_step": plain.best_step == best.best_step, "test": test(plain), "points_apart": 100 * abs(test(best) - test(plain))},
        "unfinished": sum(not run.finished for run in together),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--agree-patience",
        type=int,
        default=16,
        help="Validations without improvement, in the comparison of all 216 both ways.",
    )
    parser.add_argument(
        "--agree-limit", type=int, default=400, help="Steps after which a run is cut there."
    )
    parser.add_argument(
        "--sample", type=int, default=3, help="Settings of each kind timed one by one at full size."
    )
    parser.add_argument("--kinds", nargs="+", default=list(FULL), choices=list(FULL))
    parser.add_argument(
        "--no-full", action="store_true", help="Leave out the protocol at full size."
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="Of both ways."
    )
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    path = Path(__file__).parent / "results" / "grid.json"
    facts = {"machine": machine(), "agreement": [], "protocol": []}
    for kind in flags.kinds:
        row = agreement(kind, flags.agree_patience, flags.agree_limit)
        facts["agreement"].append(row)
        print(
            f"{kind:<9}216 settings, patience {row['patience']}, at most {row['limit_steps']} steps: "
            f"at once {row['together_s']:.0f} s ({row['together_cpu_s']:.0f} of processor), "
            f"one by one {row['one_by_one_s']:.0f} s ({row['one_by_one_cpu_s']:.0f}), {row['speed_up']:.1f} times ({row['speed_up_cpu']:.1f}); "
            f"same setting {'yes' if row['same_setting'] else 'NO'}, {row['equal_curves']} of 216 curves equal to the bit, "
            f"test figures {row['points_apart']:.3f} points apart",
            flush=True,
        )
        write_json(path, facts)
    for kind in [] if flags.no_full else flags.kinds:
        row = protocol(kind, flags.sample)
        facts["protocol"].append(row)
        print(
            f"{kind:<9}{row['clips']} x {row['width']}, the full protocol: at once {row['together_s'] / 60:.1f} min, one by one "
            f"{row['one_by_one_s_extrapolated'] / 60:.0f} min (extrapolated from {flags.sample} settings of each of 4 kinds), "
            f"{row['speed_up_extrapolated']:.1f} times ({row['speed_up_cpu_extrapolated']:.1f} in processor seconds); "
            f"{row['steps']:,} steps, test {row['test']:.3f}, "
            f"{row['chosen_one_by_one']['points_apart']:.3f} points from the chosen setting trained alone",
            flush=True,
        )
        write_json(path, facts)
    print(f"{torch.get_num_threads()} threads, {facts['machine']}")


if __name__ == "__main__":
    main()
