"""The table of the demo: the package's model stands in it, judged as the others are."""

import numpy as np
import pytest

from patchifier import audio, weights
from patchifier.cache import Cache, prepare
from patchifier.datasets import Clip, Dataset
from patchifier.evaluate import demo
from patchifier.evaluate.encoders import random_checkpoint
from patchifier.tasks import infer
from tests import small

pytestmark = pytest.mark.usefixtures("few_draws")
CONFIG = small.config(spectrogram={"n_fft": 1024})


@pytest.fixture(scope="module")
def data(tmp_path_factory, tone, noise):
    """Sixteen clips of two kinds in four folds, of log-mels that no bundled model reads."""
    root = tmp_path_factory.mktemp("demo")
    clips = []
    for number in range(16):
        path = root / f"{number}.wav"
        audio.save(path, tone(300 + 20 * number) if number % 2 else noise(seed=number))
        facts = {"fold": number // 4, "group": str(number)}
        target = "tone" if number % 2 else "noise"
        clips.append(Clip(str(number), str(path), target=target, **facts))
    dataset = Dataset("two", tuple(clips), infer([clip.target for clip in clips]))
    prepare(dataset, root / "cache", config=CONFIG.spectrogram, workers=1)
    return Cache(root / "cache")


def tables(data):
    """Tables with the rows of probes, and random weights for a trained model."""
    made = demo.Tables(data)
    models = {
        name: random_checkpoint(CONFIG, data, range(16), seed=seed)
        for seed, name in enumerate(demo.ENCODERS)
    }
    made.add_probes(models)
    return made


def test_the_packages_model_is_a_row_and_is_compared_with_the_others_by_the_same_probe(
    bundled, data, monkeypatch
):
    made = tables(data)
    made.add_released()
    row = next(row for row in made.rows if row["encoder"] == "patchifier-base")
    assert (row["method"], row["n"]) == ("logistic", 16)
    assert row["value"] > 0.8  # tones and noise: what any weights can tell
    monkeypatch.setattr(demo, "MOVING", ())
    for name in demo.ENCODERS:
        made.predictions[name, "linear-probe"] = made.predictions[name, "logistic"]
    ours = "patchifier-base, logistic"
    against = [row["second"] for row in made.differences() if row["first"] == ours]
    expected = ("patchifier", "random", "mel-stats", "mfcc")
    assert against == [f"{name}, logistic" for name in expected]


def test_a_copy_without_models_has_the_other_rows(data, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ROOT", tmp_path)
    made = tables(data)
    before = len(made.rows)
    made.add_released()
    assert len(made.rows) == before == 5
    assert all(np.isfinite(row["value"]) for row in made.rows)
