"""The whole paper, from the script that anyone with the data would run, on stand-ins with the exact real layout."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT, published

TINY = {
    "why": "Every step of the paper in minutes: a small network, few steps.",
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


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Path:
    """What recipes/paper.sh leaves behind."""
    root = tmp_path_factory.mktemp("paper")
    published.mtat(root / "data" / "mtat", seconds=3.0)
    published.gtzan(root / "data" / "gtzan", seconds=1.6, broken_jazz=True)
    published.emomusic(root / "data" / "emomusic", seconds=3.0)
    (root / "tiny.json").write_text(json.dumps(TINY))
    (root / "bin").mkdir()
    command = root / "bin" / "patchifier"  # the command of this very checkout
    command.write_text(
        f"#!{sys.executable}\nimport sys\nfrom patchifier.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
    }
    script = [
        "bash",
        str(ROOT / "recipes" / "paper.sh"),
        str(root / "data"),
        str(root / "out"),
        str(root / "tiny.json"),
    ]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return root / "out"


@pytest.mark.slow
def test_every_table_of_the_paper_is_there(outcome):
    methods = ("linear-probe", "freeze-extractor", "freeze-bottleneck", "full")
    for task, metric, clips in (("gtzan", "accuracy", 290), ("emomusic", "r2", None)):
        for method in methods:
            results = json.loads(
                (outcome / f"figure-2-{task}" / method / "results.json").read_text()
            )
            (row,) = results["rows"]
            assert (row["method"], row["metric"], results["seeds"]) == (method, metric, 5)
            assert clips in (None, row["n"])
            assert row["low"] <= row["value"] <= row["high"]
    (row,) = json.loads(
        (outcome / "figure-2-gtzan-folds" / "linear-probe" / "results.json").read_text()
    )["rows"]
    assert row["n"] == 999  # all but the broken jazz.00054
    rates = json.loads((outcome / "best-rate-gtzan" / "linear-probe" / "rates.json").read_text())
    assert set(rates["validation"]) == {"1e-05", "0.0001", "0.001"}


@pytest.mark.slow
def test_the_comparison_has_baselines_and_the_artist_clean_part(outcome):
    results = json.loads((outcome / "compare-emomusic" / "results.json").read_text())
    assert {"majority", "random", "mfcc", "mel-stats"} < {row["encoder"] for row in results["rows"]}
    assert any(row["subset"] == "artist-clean" for row in results["rows"])
    assert results["notes"]


@pytest.mark.slow
def test_what_was_skipped_is_named(outcome):
    with (outcome / "cache" / "gtzan" / "skipped.csv").open(newline="") as stream:
        assert [row["id"] for row in csv.DictReader(stream)] == ["jazz.00054"]
    assert (outcome / "leaks-gtzan.csv").exists()


@pytest.mark.slow
def test_the_report_shows_figure_2_of_both_tasks(outcome):
    page = (outcome / "report" / "index.html").read_text()
    for words in ("figure-2-gtzan", "figure-2-emomusic", "Side by side", "Published figures"):
        assert words in page
