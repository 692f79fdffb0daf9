"""What docs/embeddings.md shows works: its Python runs, and its errors and tests exist."""

import os
import re
from pathlib import Path

from tests import ROOT, builders

# read when huggingface_hub is imported: no test may reach for a network
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import soundfile
import torch

import patchifier
from patchifier import checkpoint, cli, weights
from patchifier.checkpoint import Checkpoint
from patchifier.cli.command import parse
from patchifier.config import Config, RequestError, update
from patchifier.library import embed_library, search
from patchifier.nn.model import Patchifier

PAGE = (ROOT / "docs" / "embeddings.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
SHAPE = re.compile(r"(\w+) = .*# \(((?:\d+|E)(?:, (?:\d+|E))*),?\)")  # E is the length of a vector
BASE = checkpoint.load("patchifier-base").config.model  # of the model that the page speaks of
LAYERS = BASE.n_layers
SMALL = {"channels": [4, 4, 8, 8, 16], "mlp_dim": 64}


@pytest.fixture
def home(tmp_path, tmp_path_factory, monkeypatch):
    """A folder with what the page speaks of, and a home for models that are small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "ROOT", tmp_path_factory.mktemp("weights"))
    chance = np.random.default_rng(0)
    Path("music").mkdir()
    for name in ("song.mp3", "another.flac", "music/one.wav", "music/two.wav"):
        soundfile.write(name, 0.1 * chance.standard_normal(22_050 * 12), 22_050)
    return chance


def save(**model):
    sizes = {**SMALL, "n_layers": LAYERS, "estimators": ["tempo"], **model}
    config = update(Config(), {"model": sizes, "embed": {"summaries": ["tempo"]}})
    made = Checkpoint(Patchifier(config, seed=0), config)
    checkpoint.save(weights.ROOT / "patchifier-base", made, dtype=torch.float16)


def names(chance):
    """What the page takes for granted."""
    wave = (0.1 * chance.standard_normal((2, 44_100))).astype("float32")
    files = ["song.mp3", "another.flac"]
    return {
        "samples": wave,
        "waveform": wave[0],
        "batch": torch.from_numpy(wave),
        "train_files": files,
        "train_labels": ["a", "b"],
        "test_files": files[:1],
    }


def run(block, known):
    """Run a block line by line; how many shapes in its comments were checked."""
    checked = 0
    for line in block.splitlines():
        exec(line, known)
        if match := SHAPE.match(line):
            sizes = match[2].replace("E", str(getattr(known.get("model"), "size", ""))).split(", ")
            assert known[match[1]].shape == tuple(map(int, sizes)), line
            checked += 1
    return checked


def test_python_of_the_page_runs_and_its_shapes_are_true(home):
    save()
    known = names(home)
    assert sum(run(block, known) for block in BLOCKS if "onnx" not in block) >= 4
    assert len(known["table"].paths) == 2
    assert known["done"].skipped == ()
    assert known["stretches"].vectors.shape == (12, 576)  # the last one is anchored to the end
    assert known["moments"].vectors.shape[1] == 256
    assert len(known["states"]) == 1 + LAYERS
    assert known["states"][0].shape[::2] == (2, 256)
    assert known["vectors"].shape[::2] == (2, 256)
    assert known["milliseconds"][0, 1] == pytest.approx(46.4, abs=0.1)
    assert known["other"].identity != known["model"].identity
    assert set(known["labels"]) <= {"a", "b"}
    output = known["output"].pooler_output[0].detach().numpy()
    expected = known["model"].embed(known["waveform"], 22_050)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_a_vector_from_patches_is_the_vector(home):
    save()
    known = names(home)
    for block in BLOCKS[:6]:
        if "embed_library" not in block:
            run(block, known)
    whole = known["log_mel"][:, : 32 * len(known["patches"])]
    expected = known["model"].embed_log_mels([whole])[0]
    np.testing.assert_allclose(known["vectors"][0], expected, atol=1e-5)


@pytest.mark.slow
def test_the_onnx_block_runs(home):
    save(n_layers=1, embed_dim=32, n_heads=2)
    known = names(home)
    (block,) = [block for block in BLOCKS if "onnx" in block]
    run(block, known)
    expected = patchifier.load().embed(list(known["samples"]), 22_050)
    np.testing.assert_allclose(known["vectors"], expected, atol=1e-5)


def test_tests_that_the_page_names_exist():
    found = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(found) >= 12
    for path, name in found:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not name or f"\ndef {name}(" in text, f"{path}::{name}"


def test_commands_of_the_page_parse():
    (command,) = re.findall(r"`patchifier (embed [^`]+)`", PAGE)
    parse(cli.COMMANDS["embed"], command.split()[1:])


def of_another_model(model):
    embed_library("music", "x.parquet", embedder=model, workers=1)
    search.load("x.parquet").similar(np.ones(model.size, np.float32), identity="another")


def with_embed(**embed):
    held = checkpoint.load()
    return builders.embedder(held.model, update(held.config, {"embed": embed}))


def floats(*shape, value=0.0):
    return np.full(shape, value, np.float32)


ERRORS = {
    "an array without its rate": lambda model: model.embed(floats(9)),
    "a rate such as 44.1": lambda model: model.embed(floats(9), 44.1),
    "a rate that is no number": lambda model: model.embed(floats(9), "44100"),
    "64-bit integers": lambda model: model.embed(np.zeros(9, np.int64), 22_050),
    "more than 24 channels": lambda model: model.embed(floats(25, 99), 22_050),
    "16-bit integers as floats": lambda model: model.embed(floats(9, value=32_767), 22_050),
    "NaN or infinity": lambda model: model.embed(floats(9, value=np.nan), 22_050),
    "`(samples, channels)`": lambda model: model.embed(floats(9, 2), 22_050),
    "a list of numbers": lambda model: model.embed([0.1, 0.2], 22_050),
    "one log-mel where a list is expected": lambda model: model.embed_log_mels(
        model.log_mel("song.mp3")
    ),
    "a file that is none, or no audio": lambda model: model.embed("nowhere.mp3"),
    "a folder without music": lambda model: embed_library("empty", "x.parquet", embedder=model),
    "a folder that is no model": lambda model: patchifier.load("music"),
    "the name of no model": lambda model: patchifier.load("patchifier-bass"),
    "a pooling that does not exist": lambda model: with_embed(pooling="median"),
    "a layer that does not exist": lambda model: with_embed(layers=[9]),
    "a query of another model": of_another_model,
    "the name of no model on a hub": lambda model: patchifier.load("hf://somewhere"),
}


def test_errors_of_the_page_say_what_it_says(home):
    save()
    Path("empty").mkdir()
    model = patchifier.load()
    table = PAGE.split("| you gave | it says |\n|---|---|\n")[1]
    told = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE))
    assert set(told) == set(ERRORS)
    for what, act in ERRORS.items():
        with pytest.raises(RequestError) as caught:
            act(model)
        assert told[what] in str(caught.value), what
