"""The transformer for scikit-learn: its own checks, files and waveforms, pipelines, pickles without weights."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from patchifier import checkpoint, embed
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.integrations.sklearn import PatchifierEmbedder
from patchifier.nn.model import Patchifier

RATE = 22_050
CONFIG = update(
    Config(),
    {
        "model": {
            "channels": [4, 4, 8, 8, 16],
            "embed_dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "mlp_dim": 64,
        }
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sklearn") / "modèle"
    checkpoint.save(path, Checkpoint(Patchifier(CONFIG, seed=0).eval(), CONFIG))
    return path


@pytest.fixture(scope="module")
def clips(tone, noise):
    """Eight clips of different lengths: tones, then noise."""
    return [tone(200 * (1 + n), seconds=0.5 + n / 3) for n in range(4)] + [
        noise(0.5 + n / 3, seed=n) for n in range(4)
    ]


def test_scikit_learns_own_checks_pass(folder):
    results = check_estimator(
        PatchifierEmbedder(folder, sample_rate=RATE), on_fail=None, on_skip=None
    )
    failed = [
        (result["check_name"], result["exception"])
        for result in results
        if result["status"] == "failed"
    ]
    assert not failed
    # the one that is skipped needs SCIPY_ARRAY_API in the environment
    assert {result["check_name"] for result in results if result["status"] == "skipped"} <= {
        "check_array_api_input"
    }
    assert sum(result["status"] == "passed" for result in results) >= 40


def test_files_and_waveforms_give_the_embedders_matrix(folder, clips, tmp_path):
    paths = []
    for number, clip in enumerate(clips[:3]):
        paths.append(tmp_path / f"клип {number}.wav")
        soundfile.write(paths[-1], clip, RATE, subtype="FLOAT")
    expected = embed.load(folder).embed(clips[:3], RATE)
    transformer = PatchifierEmbedder(folder, sample_rate=RATE)
    for X in (
        clips[:3],
        paths,
        [str(path) for path in paths],
        np.array([str(path) for path in paths]),
        [paths[0], clips[1], paths[2]],
        np.array(paths),
    ):
        found = transformer.fit_transform(X)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_files_need_no_rate_and_waveforms_are_refused_without_one(folder, clips, tmp_path):
    soundfile.write(tmp_path / "a.wav", clips[0], RATE, subtype="FLOAT")
    assert PatchifierEmbedder(folder).get_params()["sample_rate"] is None
    transformer = PatchifierEmbedder(folder).fit([tmp_path / "a.wav"])
    np.testing.assert_allclose(
        transformer.transform([tmp_path / "a.wav"]),
        embed.load(folder).embed(clips[:1], RATE),
        atol=1e-5,
    )
    for X in (clips[:2], [tmp_path / "a.wav", clips[1]], np.stack([clips[0], clips[0]])):
        for act in (PatchifierEmbedder(folder).fit, transformer.transform):
            with pytest.raises(
                RequestError,
                match=r"rate is never guessed: give it, as in PatchifierEmbedder\(sample_rate=44100\)",
            ):
                act(X)


def test_a_column_of_paths_is_a_list_of_paths(folder, clips, tmp_path):
    class Column(list):
        """What a data frame gives for a column, as far as it matters here."""

        dtype, ndim = np.dtype(object), 1

        def __array__(self, dtype=None, copy=None):
            return np.array(list(self), dtype=object)

    paths = [tmp_path / f"{number}.wav" for number in range(2)]
    for path, clip in zip(paths, clips, strict=False):
        soundfile.write(path, clip, RATE)
    transformer = PatchifierEmbedder(folder)  # no rate is needed
    np.testing.assert_array_equal(
        transformer.fit_transform(Column(map(str, paths))), transformer.fit_transform(paths)
    )


def test_a_matrix_is_a_waveform_in_each_row(folder, noise):
    X = np.stack([noise(0.4, seed=n) for n in range(3)])
    transformer = PatchifierEmbedder(folder, sample_rate=RATE).fit(X)
    assert transformer.n_features_in_ == X.shape[1]
    np.testing.assert_allclose(
        transformer.transform(X), embed.load(folder).embed(list(X), RATE), atol=1e-6
    )


def test_another_rate_is_resampled(folder, tone):
    twice = PatchifierEmbedder(folder, sample_rate=44_100).fit_transform(
        [tone(300, rate=44_100, seconds=2)]
    )
    once = PatchifierEmbedder(folder, sample_rate=RATE).fit_transform(
        [tone(300, rate=RATE, seconds=2)]
    )
    ignored = PatchifierEmbedder(folder, sample_rate=RATE).fit_transform(
        [tone(300, rate=44_100, seconds=2)]
    )
    assert np.abs(twice - once).max() < 0.2 * np.abs(ignored - once).max()


def test_a_pipeline_of_three_lines_tells_tones_from_noise(folder, tone, noise):
    clips = [tone(440, seconds=1.5, level=0.3 + 0.1 * n) for n in range(7)] + [
        noise(1.5, seed=n) for n in range(7)
    ]
    y = ["tone"] * 7 + ["noise"] * 7
    pipeline = make_pipeline(
        PatchifierEmbedder(folder, sample_rate=RATE), StandardScaler(), LogisticRegression()
    )
    pipeline.fit(clips[::2], y[::2])  # every other level: those between are asked
    assert list(pipeline.predict(clips[1::2])) == y[1::2]


def test_a_search_over_poolings_runs(folder, clips):
    pipeline = make_pipeline(
        PatchifierEmbedder(folder, sample_rate=RATE), LogisticRegression(max_iter=1000)
    )
    search = GridSearchCV(
        pipeline,
        {
            "patchifierembedder__pooling": ["cls", "mean"],
            "patchifierembedder__layers": [[-1], [1, 2]],
        },
        cv=2,
        error_score="raise",
    )
    search.fit(clips, [0] * 4 + [1] * 4)
    assert len(search.cv_results_["params"]) == 4


def test_parameters_are_kept_as_given_and_clones_are_unfitted(folder, clips):
    layers = [0, -1]
    transformer = PatchifierEmbedder(folder, pooling="mean", layers=layers, sample_rate=RATE).fit(
        clips[:1]
    )
    assert transformer.get_params() == {
        "model": folder,
        "pooling": "mean",
        "layers": layers,
        "sample_rate": RATE,
        "device": "cpu",
    }
    copy = clone(transformer)
    assert copy.get_params() == transformer.get_params()
    with pytest.raises(NotFittedError):
        copy.transform(clips[:1])
    assert copy.set_params(pooling="cls", layers=[-1]).fit_transform(clips[:1]).shape == (1, 32)


def test_features_have_names(folder, clips):
    transformer = PatchifierEmbedder(folder, sample_rate=RATE).fit(clips[:1])
    names = transformer.get_feature_names_out()
    assert len(names) == len(set(names)) == transformer.transform(clips[:1]).shape[1] == 64
    assert names[0] == "patchifierembedder0"


def test_a_pickle_has_no_weights_and_reads_them_again(folder, clips):
    transformer = PatchifierEmbedder(folder, sample_rate=RATE).fit(clips[:1])
    data = pickle.dumps(transformer)
    assert len(data) < 2000 < (folder / "model.safetensors").stat().st_size
    np.testing.assert_array_equal(
        pickle.loads(data).transform(clips[:2]), transformer.transform(clips[:2])
    )


def test_other_weights_under_the_same_path_are_refused(clips, tmp_path):
    folder = tmp_path / "model"
    checkpoint.save(folder, Checkpoint(Patchifier(CONFIG, seed=0).eval(), CONFIG))
    data = pickle.dumps(PatchifierEmbedder(folder, sample_rate=RATE).fit(clips[:1]))
    checkpoint.save(folder, Checkpoint(Patchifier(CONFIG, seed=1).eval(), CONFIG))
    for _ in range(2):  # the second time as well
        stale = pickle.loads(data)
        for _ in range(2):
            with pytest.raises(RequestError, match="not the one that this was fitted with"):
                stale.transform(clips[:1])


def test_rows_do_not_depend_on_each_other(folder, clips):
    transformer = PatchifierEmbedder(folder, sample_rate=RATE).fit(clips)
    together = transformer.transform(clips)
    np.testing.assert_allclose(transformer.transform(clips[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([transformer.transform([clip]) for clip in clips]), together, atol=1e-5
    )


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([], "X is empty"),
        ("song.mp3", "expected a list"),
        (Path("song.mp3"), "expected a list"),
        (["nowhere.wav"], "nowhere.wav"),
        ([np.full(100, np.nan, np.float32)], "NaN"),
        ([np.zeros(100, np.int16)], "int16"),
        (np.full((2, 100), np.nan), "NaN"),
        (np.array(["nowhere.wav"], dtype=object), "nowhere.wav"),
    ],
    ids=[
        "nothing",
        "a path",
        "a Path",
        "a missing file",
        "NaN",
        "integers",
        "a matrix with NaN",
        "an array of missing files",
    ],
)
def test_what_cannot_be_embedded_is_named(folder, X, message):
    with pytest.raises(ValueError, match=message):
        PatchifierEmbedder(folder, sample_rate=RATE).fit_transform(X)


def test_a_wrong_setting_is_named_when_it_is_fitted(folder, clips):
    with pytest.raises(RequestError, match="median"):
        PatchifierEmbedder(folder, pooling="median", sample_rate=RATE).fit(clips[:1])
    with pytest.raises(RequestError, match="layers holds 9"):
        PatchifierEmbedder(folder, layers=[9], sample_rate=RATE).fit(clips[:1])


def test_without_scikit_learn_the_error_names_the_command(child_environment):
    import subprocess
    import sys

    code = "import sys; sys.modules['sklearn'] = None; import patchifier.integrations.sklearn"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "RequestError" in done.stderr
    assert "pip install 'patchifier[eval]'" in done.stderr
