"""Every data set from the command line; GTZAN and the paper's own story are in test_paper.py."""

import json

import pytest

from patchifier.train.finetune import METHODS
from tests import published

pytestmark = pytest.mark.slow
SETS = {  # source on the command line -> builder of the tree, None for what the package brings
    "demo": None,
    "mtat:tags50": lambda root: published.mtat(root, seconds=3.0),
    "emomusic": lambda root: published.emomusic(root, seconds=3.0),
    "giantsteps-key": lambda root: published.giantsteps(root, seconds=3.0, each=6),
    "nsynth": lambda root: published.nsynth(root, seconds=3.0, notes=44),
    "mtg-jamendo:genre": lambda root: published.jamendo(root, seconds=3.0, tracks=30),
}


@pytest.fixture
def work(tmp_path, monkeypatch, tiny_settings):
    """Working folder with a small config."""
    (tmp_path / "tiny.json").write_text(json.dumps(tiny_settings))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("source", list(SETS))
def test_every_data_set_goes_through_every_command(source, work, run):
    root = SETS[source] and f"--root {SETS[source](work / 'root')}"
    run(f"prepare {source} --out cache {root or ''}")
    run("pretrain cache --out run --config tiny.json")
    run("finetune run/model cache --out tuned --method all --config tiny.json")
    for method in METHODS:
        (row,) = results(work / "tuned" / method)["rows"]
        assert row["low"] <= row["value"] <= row["high"]
    run("compare cache --encoders run/model,mel-stats --out compared")
    found = results(work / "compared")
    assert {row["encoder"] for row in found["rows"]} == {"majority", "run/model", "mel-stats"}
    assert "on clips of this very cache" in found["notes"][0]
    run("report . --out page")
    assert "Vectors by the same probe" in (work / "page" / "index.html").read_text()


def test_moments_within_clips_are_compared(work, run):
    root = published.gtzan_beats(work / "root", seconds=12.0, tracks=15)
    run(f"prepare gtzan-beats --root {root} --out cache")
    run("pretrain cache --out run --config tiny.json")
    run("compare cache --encoders run/model --out compared")
    rows = {row["encoder"]: row for row in results(work / "compared")["rows"]}
    assert {row["metric"] for row in rows.values()} == {"beat_f"}
    assert rows["log-mel"]["value"] > 0.7  # clicks in plain sight
    run("finetune run/model cache --out tuned", code=2)


def test_robustness_from_the_command_line(work, run):
    root = published.emomusic(work / "root", seconds=3.0)
    run(f"prepare emomusic --root {root} --out cache")
    run("compare cache --encoders mel-stats,mfcc --robustness --out compared")
    assert len({row["condition"] for row in results(work / "compared")["rows"]}) == 7
    page = (work / "compared" / "report" / "index.html").read_text()
    assert "When the test audio is perturbed" in page
