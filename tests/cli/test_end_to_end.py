"""Every data set from the command line: prepare, pre-train, fine-tune by all methods, compare. GTZAN and the paper's own story: test_paper.py."""

import json

import pytest

from patchifier import cli
from patchifier.train.finetune import METHODS
from tests import published

TINY = {
    "model": {
        "channels": [4, 4, 8, 8, 16],
        "embed_dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_dim": 64,
        "max_patches": 2,
    },
    "pretrain": {
        "n_patches": 2,
        "stage_one": {"steps": 4, "batch_size": 4},
        "stage_two": {"steps": 4, "batch_size": 4},
        "validate_every": 2,
    },
    "embed": {"hop_patches": 1},
    "finetune": {"training": {"steps": 4, "batch_size": 16}, "validate_every": 2},
}
SETS = {  # source on the command line -> builder of the tree, None for what comes with the package
    "demo": None,
    "mtat:tags50": lambda root: published.mtat(root, seconds=3.0),
    "emomusic": lambda root: published.emomusic(root, seconds=3.0),
    "giantsteps-key": lambda root: published.giantsteps(root, seconds=3.0, each=6),
    "nsynth": lambda root: published.nsynth(root, seconds=3.0, notes=44),
    "mtg-jamendo:genre": lambda root: published.jamendo(root, seconds=3.0, tracks=30),
}


def run(*arguments, code=0) -> None:
    assert cli.main([str(argument) for argument in arguments]) == code


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return tmp_path / "tiny.json"


@pytest.mark.slow
@pytest.mark.parametrize("source", list(SETS))
def test_every_data_set_goes_through_every_command(source, tiny, tmp_path):
    build = SETS[source]
    root = ["--root", build(tmp_path / "root")] if build else []
    run("prepare", source, *root, "--out", tmp_path / "cache")
    run("pretrain", tmp_path / "cache", "--out", tmp_path / "run", "--config", tiny)
    model = tmp_path / "run" / "model"
    run(
        "finetune",
        model,
        tmp_path / "cache",
        "--out",
        tmp_path / "tuned",
        "--method",
        "all",
        "--config",
        tiny,
    )
    for method in METHODS:
        (row,) = json.loads((tmp_path / "tuned" / method / "results.json").read_text())["rows"]
        assert row["low"] <= row["value"] <= row["high"]
    run(
        "compare",
        tmp_path / "cache",
        "--encoders",
        f"{model},mel-stats",
        "--out",
        tmp_path / "compared",
    )
    results = json.loads((tmp_path / "compared" / "results.json").read_text())
    assert {row["encoder"] for row in results["rows"]} == {"majority", str(model), "mel-stats"}
    assert "on clips of this very cache" in results["notes"][0]
    run("report", tmp_path, "--out", tmp_path / "page")
    assert "Side by side" in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.slow
def test_moments_within_clips_are_compared(tiny, tmp_path):
    root = published.gtzan_beats(tmp_path / "root", seconds=12.0, tracks=15)
    run("prepare", "gtzan-beats", "--root", root, "--out", tmp_path / "cache")
    run("pretrain", tmp_path / "cache", "--out", tmp_path / "run", "--config", tiny)
    run(
        "compare",
        tmp_path / "cache",
        "--encoders",
        tmp_path / "run" / "model",
        "--out",
        tmp_path / "compared",
    )
    rows = {
        row["encoder"]: row
        for row in json.loads((tmp_path / "compared" / "results.json").read_text())["rows"]
    }
    assert {row["metric"] for row in rows.values()} == {"beat_f"}
    assert rows["log-mel"]["value"] > 0.7  # clicks in plain sight
    run(
        "finetune",
        tmp_path / "run" / "model",
        tmp_path / "cache",
        "--out",
        tmp_path / "tuned",
        code=2,
    )


@pytest.mark.slow
def test_robustness_from_the_command_line(tiny, tmp_path):
    root = published.emomusic(tmp_path / "root", seconds=3.0)
    run("prepare", "emomusic", "--root", root, "--out", tmp_path / "cache")
    run(
        "compare",
        tmp_path / "cache",
        "--encoders",
        "mel-stats,mfcc",
        "--robustness",
        "--out",
        tmp_path / "compared",
    )
    results = json.loads((tmp_path / "compared" / "results.json").read_text())
    assert len({row["condition"] for row in results["rows"]}) == 7
    assert (
        "When the test audio is perturbed"
        in (tmp_path / "compared" / "report" / "index.html").read_text()
    )
