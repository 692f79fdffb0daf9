"""Mutated graph.onnx and reconstruct.onnx of a stranger's model folder, loaded and run."""

import shutil
from pathlib import Path

import numpy as np

import patchifier
from patchifier import checkpoint
from patchifier.config import RequestError
from patchifier.model_folder import GRAPH, RECONSTRUCT
from tests import test_checkpoint
from tests.torture import Attack, Result
from tests.torture._mutants import captured, mutate, splice, survive, unclear

RATE = 22_050


def _use(folder: Path) -> None:
    """Load a model, and run both graphs."""
    model = patchifier.load(folder)
    sound = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    vectors = model.embed([sound, sound[:RATE]], RATE)
    assert vectors.shape == (2, model.size), f"vectors have the shape {vectors.shape}"
    model.predict(sound, RATE)
    patches, drawn = model.reconstruct(model.log_mel(sound, RATE), np.array([True, False]))
    assert patches.shape == drawn.shape, f"patches {patches.shape}, drawn {drawn.shape}"


def _check(healthy: Path, number: int, folder: Path, draw: np.random.Generator) -> str:
    place = folder / "model"
    shutil.copytree(healthy, place)
    if number:
        names = (GRAPH, RECONSTRUCT)
        file, other = (place / names[draw.integers(2)] for _ in range(2))
        data = file.read_bytes()
        changed = (
            splice(data, other.read_bytes(), draw) if draw.integers(6) == 0 else mutate(data, draw)
        )
        file.write_bytes(changed)
    try:
        _use(place)
    except RequestError as error:
        return unclear(error, str(place)) if number else f"the healthy one is refused: {error}"
    outside = sorted(path.name for path in folder.iterdir())
    return "" if outside == ["model"] else f"writes {outside}"


def run(folder: Path, count: int, draw: np.random.Generator) -> Result:
    healthy = folder / "healthy"
    with captured(folder / "writers"):
        checkpoint.save(healthy, test_checkpoint.made(head=True))
    assert (healthy / GRAPH).is_file()
    result = survive(_check, healthy, folder, count, draw)
    result.inputs = 2
    return result


ATTACKS = [Attack(10, "mutated graphs of strangers' models", run, count=1_500, short=40)]
