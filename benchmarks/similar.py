"""Choices of the search, measured on the bundled clips: several seeds, negatives, hubs, paths.

    python benchmarks/similar.py

The 112 clips are of seven soundtracks, 16 each, in four folds. A result is right if it is of the seeds' soundtrack.

- seeds: three seeds of a fold, ten results, by rules that combine their cosines;
- unlike: two seeds and two negatives of another soundtrack, by how much of the negatives' direction is taken away;
- hubs: share of tracks in no list of five, largest number of lists of one track, right results, with and without the discount;
- paths: largest and mean step, in degrees, and share of steps forward, of paths of ten, beside the nearest unused file to each place, and random files.

Writes results/similar.json.
"""

import argparse
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

import patchifier
from patchifier import datasets
from patchifier.io import write_json
from patchifier.library import embed_library, search
from patchifier.train.run import machine

DRAWS, PATHS = 150, 100
UNLIKE = (0.0, 0.2, 0.3, 0.5, 0.7, 1.0)
FOLDS = range(4)


class Clips:
    """Directions (112, E) of the clips, soundtracks and folds, and the table."""

    def __init__(self, model, folder):
        clips = datasets.load("demo").clips
        table = folder / f"{model}.parquet"
        embed_library([str(clip.path) for clip in clips], table, embedder=patchifier.load(model), workers=1)  # fmt: skip
        self.store = search.load(table)
        rows = search.read(table)
        of = {str(Path(clip.path).resolve()): clip for clip in clips}
        self.paths = list(rows.paths)
        self.targets = np.array([of[path].target for path in self.paths])
        self.folds = np.array([of[path].fold for path in self.paths])
        self.units = self.store.metric().unit(rows.vectors)  # by the default weights of a search
        self.cosines = self.units @ self.units.T

    def per_fold(self, values, folds):
        """Mean, and that of each fold."""
        values, folds = np.asarray(values, float), np.asarray(folds)
        return {
            "mean": round(float(values.mean()), 4),
            "folds": [round(float(values[folds == fold].mean()), 4) for fold in FOLDS],
        }


def unit(vector):
    return vector / np.linalg.norm(vector)


def best(scores, without, count=10):
    scores = scores.copy()
    scores[without] = -np.inf
    return np.argsort(-scores, kind="stable")[:count]


def seeds(clips, generator):
    rules = {
        "mean direction": lambda chosen: clips.units @ unit(clips.units[chosen].mean(0)),
        "best of each": lambda chosen: clips.cosines[:, chosen].max(1),
        "worst of each": lambda chosen: clips.cosines[:, chosen].min(1),
        "mean rank": lambda chosen: -np.argsort(np.argsort(-clips.cosines[:, chosen], 0), 0).mean(1),
    }  # fmt: skip
    right, folds = {name: [] for name in rules}, []
    for fold in FOLDS:
        for _ in range(DRAWS):
            target = generator.choice(clips.targets)
            own = np.flatnonzero((clips.targets == target) & (clips.folds == fold))
            chosen = generator.choice(own, min(3, len(own)), replace=False)
            folds.append(fold)
            for name, rule in rules.items():
                right[name].append((clips.targets[best(rule(chosen), chosen)] == target).mean())
    return {name: clips.per_fold(values, folds) for name, values in right.items()}


def unlike(clips, generator):
    right, wrong, folds = ({share: [] for share in UNLIKE} for _ in range(3))
    names = sorted(set(clips.targets))
    for fold in FOLDS:
        for _ in range(2 * DRAWS):
            some = generator.choice(names, 2, replace=False)
            one, other = (
                generator.choice(np.flatnonzero((clips.targets == name) & (clips.folds == fold)), 2, replace=False)
                for name in some
            )  # fmt: skip
            like, dislike = (unit(clips.units[rows].mean(0)) for rows in (one, other))
            for share in UNLIKE:
                found = best(clips.units @ unit(like - share * dislike), [*one, *other])
                right[share].append((clips.targets[found] == some[0]).mean())
                wrong[share].append((clips.targets[found] == some[1]).mean())
                folds[share].append(fold)
    return {
        str(share): {"of the seeds": clips.per_fold(right[share], folds[share]), "of the negatives": clips.per_fold(wrong[share], folds[share])}
        for share in UNLIKE
    }  # fmt: skip


def hubs(clips):
    found = {}
    at = {path: row for row, path in enumerate(clips.paths)}
    equal = np.ones(clips.store.size)
    ways = {
        "without": {},
        "with the discount": {"discount_hubs": True},
        "plain cosine": {"weights": equal},
        "plain cosine, with the discount": {"weights": equal, "discount_hubs": True},
    }
    for name, options in ways.items():
        lists = [
            [at[row.path] for row in clips.store.similar(path, 5, **options)]
            for path in clips.paths
        ]
        counts = np.bincount(np.ravel(lists), minlength=len(at))
        right = [(clips.targets[rows] == clips.targets[row]).mean() for row, rows in enumerate(lists)]  # fmt: skip
        found[name] = {
            "in no list": round(float((counts == 0).mean()), 4), "most lists": int(counts.max()),
            "same soundtrack at 5": clips.per_fold(right, clips.folds),
        }  # fmt: skip
    return found


def greedy(clips, start, end, count):
    """The nearest unused file to each place on the arc, one after another."""
    angle = np.arccos(np.clip(clips.cosines[start, end], -1, 1))
    used = [start, end]
    chosen = []
    for share in np.arange(1, count - 1) / (count - 1):
        place = np.sin((1 - share) * angle) * clips.units[start] + np.sin(share * angle) * clips.units[end]  # fmt: skip
        chosen.append(int(best(clips.units @ place, used, 1)[0]))
        used.append(chosen[-1])
    return [start, *chosen, end]


def paths(clips, generator, count=10):
    at = {path: row for row, path in enumerate(clips.paths)}
    steps = {"path": [], "nearest unused": [], "random": []}
    for _ in range(PATHS):
        start, end, *others = generator.choice(len(at), count, replace=False).tolist()
        ways = {
            "path": [at[row.path] for row in clips.store.path(clips.paths[start], clips.paths[end], count)],
            "nearest unused": greedy(clips, start, end, count),
            "random": [start, *others, end],
        }  # fmt: skip
        for name, way in ways.items():
            angles = np.degrees(np.arccos(np.clip(clips.cosines[way[1:], way[:-1]], -1, 1)))
            progress = np.diff(clips.cosines[way, end] - clips.cosines[way, start])
            steps[name].append((angles.max(), angles.mean(), (progress > 0).mean()))
    return {
        name: dict(zip(("largest step", "mean step", "forward"), np.mean(values, 0).round(3).tolist()))
        for name, values in steps.items()
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["patchifier-base", "patchifier-paper"])
    parser.add_argument("--folder", type=Path, required=True, help="for the tables")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "similar.json"
    )
    flags = parser.parse_args()
    flags.folder.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(), "seed": flags.seed, "models": {}}
    for model in flags.models:
        clips, generator = Clips(model, flags.folder), np.random.default_rng(flags.seed)
        facts["models"][model] = {
            "seeds": seeds(clips, generator), "unlike": unlike(clips, generator),
            "hubs": hubs(clips), "paths": paths(clips, generator),
        }  # fmt: skip
        for part, values in facts["models"][model].items():
            for name, value in values.items():
                print(f"{model}  {part:7} {name:20} {value}", flush=True)
    write_json(flags.out, facts)


if __name__ == "__main__":
    main()
