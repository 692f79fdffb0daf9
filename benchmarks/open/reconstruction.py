"""How well a model fills in what it cannot see, beside guesses that need no model: held-out clips, three quarters of the patches hidden.

    python benchmarks/open/reconstruction.py ROOT --model patchifier-paper --out runs/reconstruction [--side valid]

Clips of the judged side that are long enough for it, one crop and one mask each, the same for all models with patches and sequences of one
length. Squared errors of masked patches in (dB / 100)^2, over clips and by family; the model minus each guess, paired, with intervals from a
bootstrap over groups. Pictures and sounds of the first clips of each family are `patchifier reconstruct`'s, beside the table.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from judge import Judgement
from measures import FAMILIES, QUESTIONS, draw_weights, interval
from outcome import lines
from torch import Tensor

from patchifier import checkpoint, weights
from patchifier.augment import NO_AUGMENTATION
from patchifier.cache import Cache
from patchifier.checkpoint import replaced_file
from patchifier.cli import main as patchifier
from patchifier.config import Config, RequestError
from patchifier.model import Patchifier
from patchifier.pretrain.batches import make_batch
from patchifier.pretrain.validation import guesses
from patchifier.runs import generator

RATIO = 0.75
BATCH = 32
LEAST = 8  # patches of a clip, of which two stay visible
PICTURES = 2  # of each family
MODEL = "the model"


@dataclass(frozen=True)
class Errors:
    """Mean squared error of each clip by each way of filling in, (n,) each, with the clips' families and groups."""

    by: dict[str, np.ndarray]
    families: np.ndarray
    groups: np.ndarray


def judged(judgement: Judgement, family: str, config: Config) -> tuple[Cache, np.ndarray, list[str]]:
    """A family's log-mels, the places of clips that are asked and long enough, and their groups."""
    asked = {clip.id: clip.group or clip.id for question in QUESTIONS if question.family == family for clip in judgement.asked(judgement.load(question))}
    data = judgement.cache(family, 2).require(config.spectrogram)
    least = LEAST * config.model.frames
    places = [index for index, clip in enumerate(data.clips) if clip.id in asked and data.frames[index] >= least]
    return data, np.array(places, int), [asked[data.clips[index].id] for index in places]


@torch.inference_mode()
def errors_of(model: Patchifier, data: Cache, places: np.ndarray, config: Config) -> Iterator[dict[str, Tensor]]:
    """Errors of some clips at a time, (B,) each."""
    for start in range(0, len(places), BATCH):
        draws, masks = (generator(0, word, start) for word in ("window", "mask"))
        batch = make_batch(data, places[start : start + BATCH], config, draws=draws, masks=masks, augmentation=NO_AUGMENTATION, layout="consecutive")
        filled = model.reconstruct(batch.patches, masked=batch.masked, present=batch.present)
        mel = replace(batch, patches=model.mel(batch.patches))
        hidden = batch.masked.sum(1)
        yield {
            name: ((guess - mel.patches).square().mean((2, 3, 4)) * batch.masked).sum(1) / hidden
            for name, guess in {MODEL: filled, **{name.replace("_", " "): each for name, each in guesses(mel).items()}}.items()
        }


def measure(judgement: Judgement, model: Patchifier, config: Config) -> Errors:
    """Errors of all clips of all families."""
    parts: dict[str, list[Tensor]] = {}
    families: list[str] = []
    groups: list[str] = []
    for family in FAMILIES:
        data, places, owned = judged(judgement, family, config)
        for found in errors_of(model, data, places, config):
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
        families += [family] * len(places)
        groups += [f"{family}/{group}" for group in owned]
    if not groups:
        raise RequestError(f"no clip of the {judgement.side} side has {LEAST} patches.")
    return Errors({name: torch.cat(each).numpy() for name, each in parts.items()}, np.array(families), np.array(groups))


def table(errors: Errors) -> list[dict[str, str]]:
    """A row for all clips and one for each family: errors, and the model minus each guess with its interval."""
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
            | {f"model - {name}": f"{value:+.5f} [{low:+.5f}, {high:+.5f}]" for name, (value, low, high) in zip(others, changes, strict=True)}
        )
    return rows


def draw(judgement: Judgement, model: str, config: Config, out: Path) -> None:
    """Pictures and sounds of the first clips of each family."""
    for family in FAMILIES:
        data, places, _ = judged(judgement, family, config)
        for place in places[:PICTURES]:
            clip = data.clips[place]
            name = clip.id.replace("/", "-")
            if patchifier(["reconstruct", clip.path, "--model", model, "--out", str(out / f"{family}-{name}.png"), "--sound"]):
                raise RequestError(f"no picture could be drawn of {clip.path}: what was said above tells why.")


def main() -> int:
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="that build.py filled")
    parser.add_argument("--model", default="patchifier-paper")
    parser.add_argument("--side", choices=("valid", "test"), default="valid")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    try:
        reconstruct(asked.root.resolve(), asked.model, asked.side, asked.out)
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def reconstruct(root: Path, model: str, side: str, out: Path) -> None:
    """Measure one model on one side, then draw."""
    loaded = checkpoint.load(weights.find(model))
    config = replace(loaded.config, pretrain=replace(loaded.config.pretrain, mask_ratio=RATIO, mask_ends=0.0, target="augmented"))
    judgement = Judgement(root, side)
    rows = table(measure(judgement, loaded.model.eval(), config))
    found = lines(rows, list(rows[0]))
    with replaced_file(out / "table.md") as new:
        new.write_text("\n".join(found) + "\n", encoding="utf-8")
    print("\n".join(found))
    draw(judgement, model, config, out)


if __name__ == "__main__":
    sys.exit(main())
