"""Train and measure heads on vectors of patchifier-base: those that come with the package, and one that is not good enough.

    python benchmarks/open/train_heads.py ROOT [--random] [--speech FOLDER] [--out FOLDER]

ROOT is that of build.py; bands.py adds its clips. A second run continues where the first stopped, and gives the same bits. The training side trains, and
chooses by folds what is chosen: the regularisation, and when a head is not sure. The validation side measures; the test side is not read. --random
measures vectors of random weights beside (their encoder is calibrated on training clips). --speech is a folder of recorded speech. --out is by default
the package's folder of heads; each gets head.json, head.safetensors and a card. benchmarks/results/heads.json keeps the numbers.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import bands
import head_card
import numpy as np
import other_sounds
import packages
from build import Line
from head_clips import RECIPES, Clip, Recipe, matrix, recordings_of
from head_measures import chance, likelihood, measure, of_recordings, quality, refusals
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import keep

from patchifier import library, weights
from patchifier.cli.progress import progress
from patchifier.embed import Embedder, load
from patchifier.heads import Head, Known, unit, unstandardised
from patchifier.io import replaced_file

MODEL = weights.DEFAULT
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C of the logistic regression
FEWER = 4  # of them for twelve labels: larger ones take long, and were not better
KNOWN_SHARE = 0.99  # of training vectors are near enough to be answered
LEAST_RIGHT = 0.9  # of the answers that a one-of head is sure of, on held-out training clips
# of the median deviation: what is nearly constant in training must not decide
LEAST_DEVIATION = 0.5
MOST_RECORDINGS = 400
SOUNDS = 60  # of noise and the like, of each kind: half of them train, half measure
AGAINST = 0.01  # C of the direction from such sounds to music


# --- vectors ---


def vectors_of(root: Path, paths: Sequence[str], model: Embedder, name: str) -> np.ndarray:
    """Vectors (n, E) of clips below the root, kept in a table."""
    wanted = [os.path.realpath(root / path) for path in paths]
    out = root / "work" / "heads" / f"{name}.parquet"
    out.parent.mkdir(parents=True, exist_ok=True)
    done = library.embed_library(
        sorted(set(wanted)), out, embedder=model, changed=True, progress=progress(name)
    )
    assert not done.skipped, done.skipped
    table = library.read(out)
    place = {path: number for number, path in enumerate(table.paths)}
    return table.vectors[[place[path] for path in wanted]]


def random_model(root: Path, paths: Sequence[str]) -> Path:
    """Folder of the model's architecture with random weights, calibrated on training clips."""
    from patchifier import cache, checkpoint
    from patchifier.datasets import Clip as Sound
    from patchifier.datasets import Dataset
    from patchifier.evaluate.encoders import random_checkpoint

    folder = root / "work" / "heads" / "random-0"
    if not (folder / "graph.onnx").exists():
        config = checkpoint.load(MODEL).config
        clips = tuple(Sound(path, os.path.realpath(root / path)) for path in paths)
        place = root / "work" / "heads" / "cache"
        cache.prepare(Dataset("heads", clips, None), place, config=config.spectrogram)
        made = random_checkpoint(config, cache.Cache(place), range(len(clips)), seed=0)
        checkpoint.save(folder, made)
        checkpoint.add_graphs(folder)
    return folder


# --- training ---


def fit(recipe: Recipe, vectors: np.ndarray, answers: np.ndarray, strength: float) -> Head:
    """Train on vectors of length 1."""
    mean, scale = moments(vectors)
    examples = (vectors - mean) * scale
    if recipe.kind == "one-of":
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=5000)
        model.fit(examples, answers)
        weight, bias = model.coef_, model.intercept_
        if len(recipe.names) == 2:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.array([-bias[0], bias[0]]) / 2
    else:
        models = [
            LogisticRegression(C=strength, max_iter=5000).fit(examples, column)
            for column in answers.T
        ]
        weight = np.concatenate([model.coef_ for model in models])
        bias = np.concatenate([model.intercept_ for model in models])
    return Head(
        recipe.names, *unstandardised(weight, bias, mean, scale), "", MODEL, kind=recipe.kind
    )


def moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and reciprocal deviation."""
    deviation = vectors.std(0)
    return vectors.mean(0), 1 / np.maximum(deviation, LEAST_DEVIATION * np.median(deviation))


def held_out(
    recipe: Recipe, vectors: np.ndarray, answers: np.ndarray, folds: np.ndarray, strength: float
) -> np.ndarray:
    """Probabilities (n, C) of training clips, each by a head that was trained without its fold."""
    found = np.zeros((len(vectors), len(recipe.names)))
    for fold in sorted(set(folds.tolist())):
        here = folds == fold
        found[here] = fit(recipe, vectors[~here], answers[~here], strength).probabilities(
            vectors[here]
        )
    return found


def train(
    recipe: Recipe, clips: Sequence[Clip], vectors: np.ndarray
) -> tuple[Head, dict[str, Any], float]:
    """Train on clips of the training side; return also how it was chosen, and the least probability to be sure of."""
    vectors, answers = unit(vectors), matrix(recipe, clips)
    folds = np.array([clip.fold for clip in clips])
    strengths = STRENGTHS if recipe.kind == "one-of" else STRENGTHS[:FEWER]
    tried = {c: held_out(recipe, vectors, answers, folds, c) for c in strengths}
    scores = {c: quality(recipe, answers, found) for c, found in tried.items()}
    fits = {c: likelihood(recipe, answers, found) for c, found in tried.items()}
    strength = max(fits, key=lambda c: fits[c])
    facts = {"strength": strength, "held_out": {str(c): round(s, 4) for c, s in scores.items()}}
    facts["held_out_likelihood"] = {str(c): round(s, 4) for c, s in fits.items()}
    least = surest(answers, tried[strength]) if recipe.kind == "one-of" else 0.0
    return fit(recipe, vectors, answers, strength), facts, least


def doubting(head: Head, familiar: np.ndarray, others: np.ndarray, least: float) -> Head:
    """Give a head its limits: `familiar` are vectors of music that it knows, `others` of sound without music."""
    familiar = unit(familiar)
    mean, scale = moments(familiar)
    places = (mean, scale, direction(familiar, unit(others)))
    known = Known(*(each.astype(np.float32) for each in places), 0.0, 0.0, least)
    furthest = float(np.quantile(known.distance(familiar), KNOWN_SHARE))
    beyond = float(np.quantile(familiar @ known.music.astype(float), 1 - KNOWN_SHARE))
    return replace(head, known=replace(known, furthest=furthest, beyond=beyond))


def direction(familiar: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Direction (E,) in which vectors of music lie beyond those of sound without music."""
    together = np.concatenate([familiar, others])
    mean, scale = moments(together)
    model = LogisticRegression(C=AGAINST, class_weight="balanced", max_iter=5000)
    is_music = np.arange(len(together)) < len(familiar)
    model.fit((together - mean) * scale, is_music)
    return model.coef_[0] * scale


def surest(answers: np.ndarray, probabilities: np.ndarray) -> float:
    """Least probability such that enough of the labels at least as probable are right."""
    best, right = probabilities.max(1), probabilities.argmax(1) == answers
    for least in np.arange(0.0, 1.0, 0.05):
        if right[best >= least].mean() >= LEAST_RIGHT:
            return round(float(least), 2)
    return 0.95


def no_music(
    root: Path, model: Embedder, speech: Path | None
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Vectors of sounds without music that train; kinds and vectors of others, and of recorded speech, that measure."""
    file = root / "work" / "heads" / f"no-music-{model.identity[:16]}.npz"
    if not file.exists():
        made = {
            kind: np.stack([_sound(model, make, seed) for seed in range(SOUNDS)])
            for kind, make in other_sounds.KINDS.items()
        }
        with replaced_file(file) as new, new.open("wb") as stream:
            np.savez(stream, **made)
    kept = np.load(file)
    heard = np.concatenate([kept[kind][: SOUNDS // 2] for kind in other_sounds.KINDS])
    found = {kind: kept[kind][SOUNDS // 2 :] for kind in other_sounds.KINDS}
    if speech:
        found["recorded speech"] = _speech(root, model, speech)
    kinds = [kind for kind, vectors in found.items() for _ in vectors]
    return heard, kinds, np.concatenate(list(found.values()))


def _speech(root: Path, model: Embedder, folder: Path) -> np.ndarray:
    files = [str(path) for path in other_sounds.recorded(folder)]
    out = root / "work" / "heads" / "speech.parquet"
    library.embed_library(files, out, embedder=model, progress=progress("speech"))
    return library.read(out).vectors


def _sound(model: Embedder, make: Callable[..., np.ndarray], seed: int) -> np.ndarray:
    rate = model.config.spectrogram.sample_rate
    return model.embed(make(np.random.default_rng(seed), rate), rate)


# --- all of it ---


def make_all(root: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Train, measure and write every head; return what is known of them."""
    model = load(MODEL)
    clips = {name: recipe.clips(root) for name, recipe in RECIPES.items()}
    recordings = recordings_of(root)
    every = list(dict.fromkeys(c.path for group in (*clips.values(), recordings) for c in group))
    place = {path: number for number, path in enumerate(every)}
    vectors = {MODEL: vectors_of(root, every, model, MODEL)}
    if flags.random:
        folder = random_model(
            root, [c.path for c in clips["instruments"] if c.side == "train"][::8]
        )
        vectors["random"] = vectors_of(root, every, load(folder), "random")
    heard, kinds, others = no_music(root, model, flags.speech)
    facts = {}
    for name, recipe in RECIPES.items():
        print(name, flush=True)
        facts[name] = make(recipe, (clips[name], recordings, place, vectors), heard)
        head = facts[name].pop("head")
        facts[name]["no music"] = refusals(head, kinds, others)
        if not recipe.shipped:
            continue
        head = replace(head, identity=model.identity, facts=head_card.facts(facts[name]))
        head_card.write(head, head.save(flags.out / name), facts[name])
    return facts


def make(recipe: Recipe, data: tuple[Any, ...], others: np.ndarray) -> dict[str, Any]:
    """Train and measure one head, and its rivals on other vectors."""
    clips, recordings, place, vectors = data
    train_on, judged = ([c for c in clips if c.side == side] for side in ("train", "valid"))
    facts: dict[str, Any] = {"clips": {"train": len(train_on), "valid": len(judged)}}
    for kind, table in vectors.items():

        def of(chosen: Sequence[Clip], table: np.ndarray = table) -> np.ndarray:
            return table[[place[clip.path] for clip in chosen]]

        head, made, least = train(recipe, train_on, of(train_on))
        if kind == MODEL:
            more = [c for c in recordings if c.side == "train"] if recipe.recordings else []
            step = max(1, len(more) // MOST_RECORDINGS)
            head = doubting(head, of([*train_on, *more[::step]]), others, least)
            facts |= made | {"head": head, "known": head_card.limits(head)}
            seen = [c for c in recordings if c.side == "valid"]
            facts["recordings"] = of_recordings(head, of(seen))
        found = measure(head, recipe, judged, of(judged))
        facts["valid" if kind == MODEL else kind] = found
        print(f"  {kind}: {found['all']}, C = {made['strength']}", flush=True)
    return facts | {"chance": chance(recipe, judged)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--speech", type=Path)
    parser.add_argument("--out", type=Path, default=weights.ROOT / "heads")
    flags = parser.parse_args()
    root = flags.root.resolve()
    packages.install_python(root / "python")
    bands.build(root, os.cpu_count() or 1, lambda title: Line("bands"))
    facts = make_all(root, flags)
    keep("heads", facts)


if __name__ == "__main__":
    main()
