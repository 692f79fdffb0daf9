"""The transformer for scikit-learn: its own checks, pipelines, pickles without weights."""

import pickle
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from patchifier import checkpoint, embed
from patchifier.checkpoint import Checkpoint
from patchifier.config import RequestError
from patchifier.integrations.sklearn import PatchifierEmbedder, expected_failed_checks
from patchifier.nn.model import Patchifier
from tests import small

RATE = 22_050
CONFIG = small.config(small.WIDE)


def save(folder, seed):
    checkpoint.save(folder, Checkpoint(Patchifier(CONFIG, seed=seed).eval(), CONFIG))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sklearn") / "modèle"
    save(path, 0)
    return path


@pytest.fixture
def made(folder):
    """Transformer with the waveforms' rate."""
    return PatchifierEmbedder(folder, sample_rate=RATE)


@pytest.fixture(scope="module")
def clips(tone, noise):
    """Eight clips of different lengths: tones, then noise."""
    tones = [tone(200 * (1 + n), seconds=0.5 + n / 3) for n in range(4)]
    return tones + [noise(0.5 + n / 3, seed=n) for n in range(4)]


@pytest.fixture
def paths(clips, tmp_path):
    """Files of the first three clips."""
    found = [tmp_path / f"клип {number}.wav" for number in range(3)]
    for path, clip in zip(found, clips, strict=False):
        soundfile.write(path, clip, RATE, subtype="FLOAT")
    return found


def test_scikit_learns_own_checks_pass(made):
    names = {"passed": [], "failed": [], "skipped": []}
    for result in check_estimator(made, on_fail=None, on_skip=None):
        names[result["status"]].append(result["check_name"])
    assert not names["failed"]
    # it needs SCIPY_ARRAY_API in the environment
    assert set(names["skipped"]) <= {"check_array_api_input"}
    assert len(names["passed"]) >= 40


def test_without_a_rate_the_checks_of_waveforms_are_stated_and_all_others_pass():
    default = PatchifierEmbedder()
    stated = expected_failed_checks(default)
    results = check_estimator(default, expected_failed_checks=stated, on_fail="raise", on_skip=None)
    failed = {each["check_name"] for each in results if each["status"] == "xfail"}
    assert failed == set(stated)
    assert "never guessed" in stated["check_pipeline_consistency"]
    assert sum(each["status"] == "passed" for each in results) >= 15


def test_files_and_waveforms_give_the_embedders_matrix(folder, made, clips, paths):
    expected, texts = embed.load(folder).embed(clips[:3], RATE), [str(path) for path in paths]
    mixed = [paths[0], clips[1], paths[2]]
    for X in (clips[:3], paths, texts, np.array(texts), mixed, np.array(paths)):
        found = made.fit_transform(X)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


class Column(list):
    """What a data frame gives for a column, as far as it matters here."""

    dtype, ndim = np.dtype(object), 1

    def __array__(self, dtype=None, copy=None):
        return np.array(list(self), dtype=object)


def test_files_need_no_rate_and_waveforms_are_refused_without_one(folder, clips, paths):
    without = PatchifierEmbedder(folder)
    assert without.get_params()["sample_rate"] is None
    expected = embed.load(folder).embed(clips[:3], RATE)
    for X in (paths, Column(map(str, paths))):
        np.testing.assert_allclose(without.fit_transform(X), expected, atol=1e-5)
    said = r"rate is never guessed: give it, as in PatchifierEmbedder\(sample_rate=44100\)"
    for X in (clips[:2], [paths[0], clips[1]], np.stack([clips[0], clips[0]])):
        for act in (PatchifierEmbedder(folder).fit, without.transform):
            with pytest.raises(RequestError, match=said):
                act(X)


def objects(items):
    """Array of objects (n,), whatever they are."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def test_a_column_of_files_or_of_waveforms_of_any_length_is_embedded(folder, made, clips, paths):
    expected = embed.load(folder).embed(clips[:3], RATE)
    for items in (list(map(str, paths)), paths, clips[:3]):
        for X in (objects(items), objects(items)[:, None]):
            np.testing.assert_allclose(made.fit_transform(X), expected, atol=1e-5)
    assert made.n_features_in_ == 1
    with pytest.raises(ValueError, match="X has 2 columns, expected one"):
        made.transform(np.stack([objects(paths)] * 2, axis=1))


def test_a_column_transformer_embeds_a_column(folder, clips, paths):
    columns = ColumnTransformer(
        [("music", PatchifierEmbedder(folder), [1]), ("year", "passthrough", [0])]
    )
    X = np.stack([objects([1970, 1980, 1990]), objects(list(map(str, paths)))], axis=1)
    expected = embed.load(folder).embed(clips[:3], RATE)
    found = columns.fit_transform(X)
    np.testing.assert_allclose(found[:, :-1].astype(float), expected, atol=1e-5)
    assert columns.get_feature_names_out()[0] == "music__patchifierembedder0"


def test_a_column_transformer_embeds_a_column_of_a_data_frame(folder, clips, paths):
    X = pandas.DataFrame(
        {"year": [1970, 1980, 1990], "file": list(map(str, paths))}, index=[5, 7, 9]
    )
    columns = ColumnTransformer(
        [("music", PatchifierEmbedder(folder), ["file"]), ("rest", "passthrough", ["year"])]
    ).set_output(transform="pandas")
    found = columns.fit_transform(X)
    expected = embed.load(folder).embed(clips[:3], RATE)
    np.testing.assert_allclose(found.iloc[:, :-1], expected, atol=1e-5)
    assert list(found.columns[[0, 63, 64]]) == [
        "music__patchifierembedder0", "music__patchifierembedder63", "rest__year",
    ]  # fmt: skip
    assert list(found.index) == [5, 7, 9]
    assert list(columns.named_transformers_["music"].feature_names_in_) == ["file"]
    with pytest.raises(ValueError, match="feature names should match"):
        columns.named_transformers_["music"].transform(X[["file"]].rename(columns={"file": "x"}))


def test_a_file_that_cannot_be_embedded_is_a_row_of_nan_if_wanted(folder, made, clips, paths):
    bad = paths[0].with_name("bad.wav")
    bad.write_bytes(b"<html>")
    X = [paths[0], bad, clips[1], np.zeros(0, np.float32), paths[2]]
    with pytest.raises(RequestError, match=r"bad\.wav"):
        made.fit_transform(X)
    kind = made.set_params(on_error="nan")
    with pytest.warns(UserWarning, match=r"of X is NaN") as warned:
        found = kind.fit_transform(X)
    assert [str(each.message).split(":")[0] for each in warned] == [
        "row 1 of X is NaN", "row 3 of X is NaN",
    ]  # fmt: skip
    assert str(bad) in str(warned[0].message)
    assert np.isnan(found[[1, 3]]).all()
    expected = embed.load(folder).embed(clips[:3], RATE)
    np.testing.assert_allclose(found[[0, 2, 4]], expected, atol=1e-5)
    with pytest.warns(UserWarning, match=r"row 0 of X is NaN"):
        assert np.isnan(kind.transform([bad])).all()
    with pytest.raises(RequestError, match=r"on_error is 'skip', expected one of"):
        clone(made).set_params(on_error="skip").fit(X)


def test_a_matrix_is_a_waveform_in_each_row(folder, made, noise):
    X = np.stack([noise(0.4, seed=n) for n in range(3)])
    assert made.fit(X).n_features_in_ == X.shape[1]
    expected = embed.load(folder).embed(list(X), RATE)
    np.testing.assert_allclose(made.transform(X), expected, atol=1e-6)


def test_another_rate_is_resampled(folder, tone):
    twice, once, ignored = (
        PatchifierEmbedder(folder, sample_rate=said).fit_transform(
            [tone(300, rate=rate, seconds=2)]
        )
        for said, rate in ((44_100, 44_100), (RATE, RATE), (RATE, 44_100))
    )
    assert np.abs(twice - once).max() < 0.2 * np.abs(ignored - once).max()


def test_a_pipeline_of_three_lines_tells_tones_from_noise(made, tone, noise):
    clips = [tone(440, seconds=1.5, level=0.3 + 0.1 * n) for n in range(7)]
    clips += [noise(1.5, seed=n) for n in range(7)]
    y = ["tone"] * 7 + ["noise"] * 7
    pipeline = make_pipeline(made, StandardScaler(), LogisticRegression())
    pipeline.fit(clips[::2], y[::2])  # every other level: those between are asked
    assert list(pipeline.predict(clips[1::2])) == y[1::2]


def test_a_search_over_poolings_runs(made, clips):
    grid = {"pooling": ["cls", "mean"], "layers": [[-1], [1, 2]]}
    grid = {f"patchifierembedder__{name}": values for name, values in grid.items()}
    pipeline = make_pipeline(made, LogisticRegression(max_iter=1000))
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise")
    search.fit(clips, [0] * 4 + [1] * 4)
    assert len(search.cv_results_["params"]) == 4


def test_parameters_are_kept_as_given_and_clones_are_unfitted(folder, clips):
    given = {"model": folder, "pooling": "mean", "layers": [0, -1], "sample_rate": RATE}
    transformer = PatchifierEmbedder(**given).fit(clips[:1])
    assert transformer.get_params() == {**given, "device": "cpu", "on_error": "raise"}
    assert transformer.get_params()["layers"] is given["layers"]
    copy = clone(transformer)
    assert copy.get_params() == transformer.get_params()
    with pytest.raises(NotFittedError):
        copy.transform(clips[:1])
    assert copy.set_params(pooling="cls", layers=[-1]).fit_transform(clips[:1]).shape == (1, 32)


def test_features_have_names(made, clips):
    vectors, names = made.fit_transform(clips[:1]), made.get_feature_names_out()
    assert len(names) == len(set(names)) == vectors.shape[1] == 64
    assert names[0] == "patchifierembedder0"


def test_a_pickle_has_no_weights_and_reads_them_again(folder, made, clips):
    data = pickle.dumps(made.fit(clips[:1]))
    assert len(data) < 2000 < (folder / "model.safetensors").stat().st_size
    again = pickle.loads(data).transform(clips[:2])
    np.testing.assert_array_equal(again, made.transform(clips[:2]))


def test_other_weights_under_the_same_path_are_refused(clips, tmp_path):
    save(tmp_path / "model", 0)
    transformer = PatchifierEmbedder(tmp_path / "model", sample_rate=RATE).fit(clips[:1])
    data = pickle.dumps(transformer)
    save(tmp_path / "model", 1)
    first, again = pickle.loads(data), pickle.loads(data)
    for stale in (first, first, again):  # the second time as well
        with pytest.raises(RequestError, match="not the one that this was fitted with"):
            stale.transform(clips[:1])


def test_rows_do_not_depend_on_each_other(made, clips):
    together = made.fit(clips).transform(clips)
    alone = np.concatenate([made.transform([clip]) for clip in clips])
    np.testing.assert_allclose(made.transform(clips[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([], "X is empty"),
        ("song.mp3", "expected a list"),
        (Path("song.mp3"), "expected a list"),
        (["nowhere.wav"], "nowhere.wav"),
        ([np.full(100, np.nan, np.float32)], "NaN"),
        ([np.zeros(100, np.int64)], "int64"),
        (np.full((2, 100), np.nan), "NaN"),
        (np.array(["nowhere.wav"], dtype=object), "nowhere.wav"),
    ],
)
def test_what_cannot_be_embedded_is_named(made, X, message):
    with pytest.raises(ValueError, match=message):
        made.fit_transform(X)


def test_a_wrong_setting_is_named_when_it_is_fitted(folder, clips):
    with pytest.raises(RequestError, match="median"):
        PatchifierEmbedder(folder, pooling="median", sample_rate=RATE).fit(clips[:1])
    with pytest.raises(RequestError, match="layers holds 9"):
        PatchifierEmbedder(folder, layers=[9], sample_rate=RATE).fit(clips[:1])
