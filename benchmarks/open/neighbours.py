"""Whole recordings as a music library: how many of a track's five nearest are of its soundtrack, and of its artist.

    python benchmarks/open/neighbours.py ROOT [--bliss PYTHON] [--musicnn FOLDER] [--side train|valid|both]

Tracks of the training and the validation side that build.py has unpacked, whole; --side counts the queries of one alone. Never those of the test side, nor reserved packages. Variants of
a song are not among its own neighbours. Cosine of vectors, by the default weights of a search and plain; MFCC statistics and bliss-audio's 23 numbers are standardised over the tracks first;
bliss-audio by Euclidean distance, as players do. PYTHON is an interpreter with bliss-audio==0.2.0. musicnn's layers, means of 20 windows of 3 s evenly over a track, are standardised and compared by cosine too: FOLDER is where
'pip install --no-deps --target FOLDER musicnn==0.1.0' put its weights, which outsiders/from_musicnn.py reads. It was trained with labels. Intervals of 95 % by bootstrap over songs.
Labels are confounded with mastering and codec (README.md): the columns compare encoders, and say little about music alone.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import packages
from recordings import sides
from tracks import Track

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import keep, timed

from patchifier import audio, jobs, library
from patchifier.cli.progress import progress
from patchifier.embed import load
from patchifier.evaluate.encoders.handmade import mfcc_of
from patchifier.library.search import default_weights
from patchifier.statistics import estimate, paired

NEAREST, FEWEST = 5, 3  # FEWEST other songs with the same label
MFCC_S = 120.0
WINDOWS = 20  # of 3 s, evenly over a track, for musicnn
MUSICNN = {  # row: checkpoint, and its layers
    "musicnn MSD, penultimate": ("MSD_musicnn", ("penultimate",)),
    "musicnn MSD, pools": ("MSD_musicnn", ("mean_pool", "max_pool")),
}
LAYERS = {"penultimate": slice(0, 200), "mean_pool": slice(200, 953), "max_pool": slice(953, 1706)}
BLISS = """
import json, sys, bliss_audio
for path in sys.stdin.read().splitlines():
    print(json.dumps(list(bliss_audio.Song(path).analysis)), flush=True)
"""


def tracks_of_all(root):
    listed = [Track(**row) for row in json.loads((root / "work" / "tracks.json").read_text())]
    assert {track.package for track in listed} <= set(packages.MUSIC)
    return listed


def tracks_of(root):
    """Tracks of both sides, all of which are searched."""
    listed = tracks_of_all(root)
    side = sides(listed)
    return [track for track in listed if side[track.group] != "test"]


def by_patchifier(model, root, tracks, work):
    paths = [os.path.realpath(root / track.path) for track in tracks]
    out = work / f"{model}.parquet"
    done = library.embed_library(paths, out, embedder=load(model), progress=progress(model))
    assert not done.skipped, done.skipped
    table = library.read(out)
    row = {path: number for number, path in enumerate(table.paths)}
    return table.vectors[[row[path] for path in paths]]


def by_mfcc(root, tracks, work):
    file = work / "mfcc.npy"
    if not file.exists():
        np.save(file, np.array(of_each(_mfcc, None, root, tracks, "mfcc"), np.float32))
    return standardised(np.load(file))


def _mfcc(shared, paths):
    return [jobs.attempt(path, _mfcc_of_file, path) for path in paths]


def _mfcc_of_file(path):
    return mfcc_of(audio.load(path, end_s=MFCC_S))


def by_bliss(python, root, tracks, work):
    file = work / "bliss.json"
    if not file.exists():
        names = "\n".join(os.path.realpath(root / track.path) for track in tracks)
        bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        made = subprocess.run(
            [python, "-c", BLISS], input=names, capture_output=True, text=True, check=True, env=bare
        )
        file.write_text(json.dumps([json.loads(line) for line in made.stdout.splitlines()]))
    return np.array(json.loads(file.read_text()), np.float32)


def by_musicnn(folder, name, root, tracks, work):
    model, layers = MUSICNN[name]
    file = work / f"{model}.npy"
    if not file.exists():
        vectors = of_each(_musicnn, (folder, model), root, tracks, model)
        np.save(file, np.array(vectors, np.float32))
    vectors = np.load(file)
    return standardised(np.concatenate([vectors[:, LAYERS[each]] for each in layers], axis=1))


def _musicnn(shared, paths):
    folder, model = shared
    places = [str(Path(__file__).parents[1] / "outsiders"), folder]
    sys.path += [place for place in places if place not in sys.path]
    import from_musicnn

    network = from_musicnn.network_of(model)
    return [jobs.attempt(path, _musicnn_of_file, from_musicnn, network, path) for path in paths]


def _musicnn_of_file(module, network, path):
    waveform = audio.load(path, sample_rate=module.SAMPLE_RATE)
    return module.vector_of(network, tuple(LAYERS), waveform, WINDOWS)


def of_each(work, shared, root, tracks, title):
    """What `work` finds for each track, in processes."""
    batches, found = [[str(root / track.path)] for track in tracks], []
    shown = progress(title)
    for one in jobs.run(work, batches, workers=os.cpu_count() or 1, shared=shared, name=str):
        assert not isinstance(one, str), one
        found.append(one)
        shown(len(found), len(tracks), "")
    return found


def standardised(vectors):
    return (vectors - vectors.mean(0)) / np.maximum(vectors.std(0), 1e-9)


def cosines(vectors):
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units @ units.T


def nearness(vectors):
    """Minus the Euclidean distance."""
    return -np.linalg.norm(vectors[:, None] - vectors, axis=2)


def shares(scores, labels, groups):
    """Share of each track's five nearest with its label; NaN where fewer than three other songs have it."""
    labels, groups = np.array(labels), np.array(groups)
    found = np.full(len(labels), np.nan)
    for query, label in enumerate(labels):
        others = groups != groups[query]
        if not label or len(set(groups[others & (labels == label)])) < FEWEST:
            continue
        order = np.argsort(-np.where(others, scores[query], -np.inf), kind="stable")[:NEAREST]
        found[query] = (labels[order] == label).mean()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--bliss", default="")
    parser.add_argument("--musicnn", default="")
    parser.add_argument("--side", choices=("train", "valid", "both"), default="both")
    flags = parser.parse_args()
    tracks = tracks_of(flags.root)
    work = flags.root / "work" / "neighbours"
    work.mkdir(parents=True, exist_ok=True)

    def weighted(name, *, plain=False):
        vectors, slices = by_patchifier(name, flags.root, tracks, work), load(name).slices
        weights = default_weights({part: each.stop - each.start for part, each in slices.items()})
        return cosines(vectors if plain or weights is None else vectors * np.sqrt(weights))

    def musicnn(name):
        return cosines(by_musicnn(flags.musicnn, name, flags.root, tracks, work))

    ways = {
        "patchifier-base": lambda: weighted("patchifier-base"),
        "base, plain cosine": lambda: weighted("patchifier-base", plain=True),
        "patchifier-paper": lambda: weighted("patchifier-paper"),
    }
    ways["mfcc"] = lambda: cosines(by_mfcc(flags.root, tracks, work))
    if flags.bliss:
        ways["bliss-audio"] = lambda: nearness(
            standardised(by_bliss(flags.bliss, flags.root, tracks, work))
        )
    for name in MUSICNN if flags.musicnn else ():
        ways[name] = functools.partial(musicnn, name)
    groups = [track.group for track in tracks]
    labels = {"soundtrack": [track.package for track in tracks]}
    labels["artist"] = [track.artist for track in tracks]
    scores = {}
    for name, way in ways.items():
        seconds, found = timed(way)
        scores[name] = found
        print(f"{name}: {seconds:.0f} s", flush=True)
    side = sides(tracks_of_all(flags.root))
    counted = np.array([flags.side in ("both", side[group]) for group in groups])
    facts = {
        "side": flags.side,
        "tracks": len(tracks),
        "hours": round(sum(t.seconds for t in tracks) / 3600, 2),
    }
    for kind, names in labels.items():
        facts[kind] = table(
            kind,
            {
                name: np.where(counted, shares(found, names, groups), np.nan)
                for name, found in scores.items()
            },
            groups,
        )
    keep("neighbours" if flags.side == "both" else f"neighbours_{flags.side}", facts)


def table(kind, found, groups):
    """Mean share of each encoder with its interval, and the paired difference to the first."""
    first = next(iter(found.values()))
    counted = np.flatnonzero(np.isfinite(first))
    kept = [groups[index] for index in counted]
    rows = {}
    for name, values in found.items():
        own = values[counted]
        score = estimate(kind, kept, lambda indices, own=own: float(own[indices].mean()))
        line = f"{kind}@{NEAREST:<3}{name:<26}{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
        rows[name] = {"value": score.value, "low": score.low, "high": score.high, "n": score.n}
        if values is not first:
            base = first[counted]
            gap = paired(
                kind,
                kept,
                lambda indices, base=base: float(base[indices].mean()),
                lambda indices, own=own: float(own[indices].mean()),
            )
            line += f"   base minus this {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
            rows[name]["base_minus_this"] = [gap.value, gap.low, gap.high]
        print(f"{line}  n = {score.n}", flush=True)
    return rows


if __name__ == "__main__":
    main()
