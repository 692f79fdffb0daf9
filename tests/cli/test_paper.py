"""The whole paper, rehearsed by one command on stand-ins with the exact real layout."""

import csv
import json
import os
import subprocess
import sys

import pytest

from tests import ROOT


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, tiny_settings):
    """What 'patchifier demo --paper' leaves behind, run small."""
    root = tmp_path_factory.mktemp("paper")
    (root / "tiny.json").write_text(json.dumps(tiny_settings))
    words = ["demo", "--paper", "--out", root / "out", "--config", root / "tiny.json"]
    done = subprocess.run(
        [sys.executable, "-m", "patchifier", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return root / "out"


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_table_of_the_paper_is_there(outcome):
    methods = ("linear-probe", "freeze-extractor", "freeze-bottleneck", "full")
    for task, metric, clips in (("gtzan", "accuracy", 290), ("emomusic", "r2", 125)):
        for method in methods:
            results = read(outcome / f"figure-2-{task}" / method / "results.json")
            (row,) = results["rows"]
            assert (row["method"], row["metric"], results["seeds"]) == (method, metric, 2)
            assert row["n"] == clips
            assert row["low"] <= row["value"] <= row["high"]
        pairs = read(outcome / f"figure-2-{task}" / "differences.json")
        assert len(pairs) == 6
    (row,) = read(outcome / "gtzan-folds" / "linear-probe" / "results.json")["rows"]
    assert row["n"] == 1000
    rates = read(outcome / "best-rate-gtzan" / "linear-probe" / "rates.json")
    assert set(rates["validation"]) == {"1e-05", "0.0001", "0.001"}


@pytest.mark.slow
def test_labels_by_chance_give_scores_of_chance(outcome):
    (row,) = read(outcome / "gtzan-folds" / "linear-probe" / "results.json")["rows"]
    assert abs(row["value"] - 0.1) < 0.04  # 1,000 clips: 0.0095 is one deviation
    (row,) = read(outcome / "figure-2-emomusic" / "linear-probe" / "results.json")["rows"]
    assert row["value"] < 0.1


@pytest.mark.slow
def test_the_comparison_has_baselines_and_the_artist_clean_part(outcome):
    results = read(outcome / "compare-emomusic" / "results.json")
    sizes = {row["encoder"].partition(":")[0]: row["parameters"] for row in results["rows"]}
    assert {"majority", "random", "mfcc", "mel-stats"} < set(sizes)
    (model,) = (size for name, size in sizes.items() if name.endswith("model"))
    assert sizes["random"] == model  # the same architecture
    assert any(row["subset"] == "artist-clean" for row in results["rows"])
    assert results["notes"]


@pytest.mark.slow
def test_tasks_have_no_recording_of_pre_training(outcome):
    for task in ("gtzan", "emomusic"):
        with (outcome / f"leaks-{task}.csv").open(newline="") as stream:
            assert list(csv.DictReader(stream)) == []


@pytest.mark.slow
def test_the_report_has_the_forms_of_the_paper_and_says_that_nothing_is_a_result(outcome):
    page = (outcome / "report" / "index.html").read_text()
    for words in (
        "no figure on this page is a result",
        "gtzan (stand-in): validation accuracy against step",
        "emomusic (stand-in): validation r2 against step",
        "No curve was cut short",
        "Vectors by the same probe",
        "patchifier pretrain ",
    ):
        assert words in page, words
    assert "never ranked with ours" not in page
    assert (outcome / "report" / "figure-2-figure-2-gtzan.svg").exists()
    commands = [step["command"] for step in read(outcome / "steps.json")]
    assert commands[-1].startswith("patchifier report ")
