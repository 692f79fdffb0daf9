"""Measure how well a model predicts masked patches, beside references without a model: held-out clips, three quarters of the patches masked.

    python benchmarks/open/reconstruction.py ROOT --model patchifier-paper --out runs/reconstruction [--side valid] [--training-cache ROOT/cache-all]

Clips of the evaluated side that are long enough have one crop and four masks each, the same for all models with patches and sequences of one length
(`patchifier.train.references` defines what is measured). Squared errors of masked patches in (dB / 100)^2, over clips and
by family, also with the visible patches shuffled; the model minus each of them, paired, with intervals from a bootstrap over groups; shares of
the variance that the model draws within and between patches, and the F-measure of onsets. Kriging is fitted on the training clips of a cache; without
one it is left out. Pictures and sounds of the first clips of each family come from `patchifier reconstruct`.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from judge import BenchmarkSide
from measures import FAMILIES, QUESTIONS, draw_weights, interval
from outcome import lines

from patchifier import checkpoint, predictors, weights
from patchifier.augment import NO_AUGMENTATION
from patchifier.cache import Cache
from patchifier.cli import main as patchifier
from patchifier.config import Config, RequestError
from patchifier.io import replaced_file, write_json
from patchifier.nn.encode import model_hash
from patchifier.nn.model import Patchifier
from patchifier.seeding import generator, random_masking
from patchifier.train import references
from patchifier.train.batches import Batch, make_batch
from patchifier.train.pretrain import split
from patchifier.train.references import Kriging, OnsetCounts
from patchifier.train.validation import in_order, shuffled_visible, training_statistics

BATCH = 32
MASK_RATIO, N_MASKS, SEED = 0.75, 4, 0
LEAST = 8  # patches of a clip, of which two stay visible
PICTURES = 2  # of each family
MODEL, SHUFFLED = "the model", "visible shuffled"
DRAWN = (
    "within",
    "within drawn",
    "between",
    "between drawn",
    "onsets",
    "onsets drawn",
    "onsets matched",
)


@dataclass(frozen=True)
class Errors:
    """Measurements of each clip, (n,) each, with the clips' families and groups.

    Attributes
    ----------
    by : dict of str to ndarray
        Mean squared error over masked patches and masks, by each predictor.
    drawn : dict of str to ndarray
        Sums of squares of the original and of what the model draws, and numbers of onsets, under the names of ``DRAWN``.
    """

    by: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    families: np.ndarray
    groups: np.ndarray


def evaluated_clips(
    benchmark: BenchmarkSide, family: str, config: Config
) -> tuple[Cache, np.ndarray, list[str]]:
    """Return the log-mels of a family, the indices of evaluated clips that are long enough, and their groups."""
    group_of = {
        clip.id: clip.group or clip.id
        for question in QUESTIONS
        if question.family == family
        for clip in benchmark.evaluated(benchmark.load(question))
    }
    data = benchmark.cache(family, 2).require(config.spectrogram)
    least = LEAST * config.model.patch_frames
    places = [
        index
        for index, clip in enumerate(data.clips)
        if clip.id in group_of and data.frames[index] >= least
    ]
    return data, np.array(places, int), [group_of[data.clips[index].id] for index in places]


@torch.inference_mode()
def measured(
    model: Patchifier,
    data: Cache,
    places: np.ndarray,
    config: Config,
    kriging: Kriging | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Errors and sums of some clips at a time, (B,) each: means and sums over their four masks."""
    for start in range(0, len(places), BATCH):
        draws, masks = (generator(SEED, word, start) for word in ("window", "mask"))
        batch = make_batch(
            data,
            places[start : start + BATCH],
            config,
            draws=draws,
            masks=masks,
            augmentation=NO_AUGMENTATION,
            layout="consecutive",
        )
        rows = [
            of_mask(model, masked_anew(batch, start, number), config, kriging, number)
            for number in range(N_MASKS)
        ]
        yield {
            name: np.sum([row[name] for row in rows], axis=0) / (1 if name in DRAWN else len(rows))
            for name in rows[0]
        }


def masked_anew(batch: Batch, start: int, number: int) -> Batch:
    """Return the same patches with another of the fixed masks."""
    masks = generator(SEED, "mask", start * N_MASKS + number)
    return replace(
        batch,
        mask=torch.from_numpy(random_masking(masks, batch.valid.numpy(), MASK_RATIO)),
    )


def of_mask(
    model: Patchifier, batch: Batch, config: Config, kriging: Kriging | None, number: int
) -> dict[str, np.ndarray]:
    """Errors and sums of the clips of a batch with its mask, (B,) each."""
    where = {"mask": batch.mask, "valid": batch.valid}
    order = shuffled_visible(batch, generator(SEED, "shuffle", number))
    drawn, shuffled = (
        model.reconstruct(patches, **where)[:, :, 0].numpy()
        for patches in (batch.patches, in_order(batch.patches, order))
    )
    original, masked = model.mel(batch.patches)[:, :, 0].numpy(), batch.mask.numpy()
    bands, visible = predictors.band_means(original), (batch.valid & ~batch.mask).numpy()
    guesses = {
        name.replace("_", " "): predict(bands, visible)
        for name, predict in predictors.UNTRAINED.items()
    }
    guesses |= {"kriging": kriging.predict(bands, visible)} if kriging else {}
    guesses |= {"band means": bands}
    every = {
        MODEL: drawn,
        SHUFFLED: shuffled,
        **{name: values[..., None] for name, values in guesses.items()},
    }
    errors = {
        name: (np.square(original - values).mean((2, 3)) * masked).sum(1) / masked.sum(1)
        for name, values in every.items()
    }
    return errors | sums_of(original, drawn, masked, config.spectrogram.db_scale)


def sums_of(
    original: np.ndarray, drawn: np.ndarray, masked: np.ndarray, scale: float
) -> dict[str, np.ndarray]:
    """Return the sums that ``DRAWN`` names, of patches (B, N, M, W) and a mask (B, N): (B,) each."""
    (within, between), (inside, across) = (
        references.sums_of_squares(patches, masked) for patches in (original, drawn)
    )
    onsets: list[OnsetCounts] = [
        references.count_onsets(*clip, scale=scale)
        for clip in zip(original, drawn, masked, strict=True)
    ]
    counts = [
        np.array([getattr(clip, name) for clip in onsets])
        for name in ("original", "drawn", "matched")
    ]
    return dict(zip(DRAWN, (within, inside, between, across, *counts), strict=True))


def measure(
    benchmark: BenchmarkSide, model: Patchifier, config: Config, kriging: Kriging | None = None
) -> Errors:
    """Measure all clips of all families."""
    parts: dict[str, list[np.ndarray]] = {}
    families: list[str] = []
    groups: list[str] = []
    for family in FAMILIES:
        data, places, owned = evaluated_clips(benchmark, family, config)
        for found in measured(model, data, places, config, kriging):
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
        families += [family] * len(places)
        groups += [f"{family}/{group}" for group in owned]
    if not groups:
        raise RequestError(f"no clip of the {benchmark.side} side has {LEAST} patches.")
    whole = {name: np.concatenate(each) for name, each in parts.items()}
    drawn = {name: whole.pop(name) for name in DRAWN}
    return Errors(whole, drawn, np.array(families), np.array(groups))


def table(errors: Errors) -> list[dict[str, str]]:
    """Return a row for all clips and one for each family: errors, the model minus each reference with its interval, and shares."""
    others = [name for name in errors.by if name != MODEL]
    rows = []
    for family in ("all", *dict.fromkeys(errors.families)):
        chosen = np.flatnonzero((errors.families == family) | (family == "all"))
        drawn = draw_weights([list(errors.groups[chosen])])[0]  # (draws + 1, n)
        means = {name: drawn @ values[chosen] / drawn.sum(1) for name, values in errors.by.items()}
        changes = [interval(means[MODEL] - means[name]) for name in others]
        rows.append(
            {"clips": str(family), "number": str(len(chosen))}
            | {name: f"{each[0]:.5f}" for name, each in means.items()}
            | {
                f"model - {name}": f"{value:+.5f} [{low:+.5f}, {high:+.5f}]"
                for name, (value, low, high) in zip(others, changes, strict=True)
            }
            | shares({name: float(values[chosen].sum()) for name, values in errors.drawn.items()})
        )
    return rows


def shares(sums: dict[str, float]) -> dict[str, str]:
    """Return the shares of the variance that the model draws within and between patches, and the F-measure of onsets."""
    found = {
        f"variance {kind}": f"{sums[f'{kind} drawn'] / max(sums[kind], 1e-12):.3f}"
        for kind in ("within", "between")
    }
    onsets = OnsetCounts(*(round(sums[name]) for name in DRAWN[4:]))
    return found | {
        "onset F": f"{onsets.f:.3f}",
        "onsets": str(onsets.original),
        "onsets drawn": str(onsets.drawn),
    }


def kriging_of(cache: Path, config: Config) -> Kriging:
    """Fit kriging on training clips of a cache, without those that validated under this config."""
    data = Cache(cache).require(config.spectrogram)
    return training_statistics(data, split(data, config.pretrain).train, config).kriging


def draw(benchmark: BenchmarkSide, model: str, config: Config, out: Path) -> None:
    """Write pictures and sounds of the first clips of each family."""
    for family in FAMILIES:
        data, places, _ = evaluated_clips(benchmark, family, config)
        for place in places[:PICTURES]:
            clip = data.clips[place]
            name = clip.id.replace("/", "-")
            if patchifier(
                [
                    "reconstruct",
                    clip.path,
                    "--model",
                    model,
                    "--out",
                    str(out / f"{family}-{name}.png"),
                    "--sound",
                ]
            ):
                raise RequestError(
                    f"no picture could be drawn of {clip.path}: the message above says why."
                )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="that build.py filled")
    parser.add_argument("--model", default="patchifier-paper")
    parser.add_argument("--side", choices=("valid", "test"), default="valid")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--training-cache", type=Path, help="from which kriging learns; ROOT/cache-all if it exists"
    )
    arguments = parser.parse_args()
    try:
        reconstruct(
            arguments.root.resolve(),
            arguments.model,
            arguments.side,
            arguments.out,
            arguments.training_cache,
        )
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def reconstruct(
    root: Path, model: str, side: str, out: Path, training_cache: Path | None = None
) -> None:
    """Measure one model on one side, then draw."""
    loaded = checkpoint.load(weights.find(model))
    config = replace(
        loaded.config,
        pretrain=replace(
            loaded.config.pretrain,
            mask_ratio=MASK_RATIO,
            visible_span_ratio=0.0,
            reconstruction_target="augmented",
        ),
    )
    benchmark = BenchmarkSide(root, side)
    cache = training_cache or root / "cache-all"
    kriging = kriging_of(cache, config) if training_cache or cache.exists() else None
    if kriging is None:
        print(
            f"kriging is left out: there is no {cache} to learn from, and --training-cache names no other.",
            file=sys.stderr,
        )
    rows = table(measure(benchmark, loaded.model.eval(), config, kriging))
    found = lines(rows, list(rows[0]))
    with replaced_file(out / "table.md") as new:
        new.write_text("\n".join(found) + "\n", encoding="utf-8")
    write_json(
        out / "reconstruction.json",
        {"weights": model_hash(loaded.model), "side": side, "rows": rows},
    )
    print("\n".join(found))
    draw(benchmark, model, config, out)


if __name__ == "__main__":
    sys.exit(main())
