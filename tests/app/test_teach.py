"""A head that is taught with a few songs: its cross-validation, its doubts, what it refuses."""

import sys

import numpy as np
import pytest

from patchifier import heads
from patchifier.app.teach import _interval, teach
from patchifier.config import RequestError
from patchifier.statistics import bootstrap, wilson

NAMES = ("calm", "loud", "odd")


def library(apart, n=60, size=12):
    """Vectors of three kinds, in turn, on scales that differ a thousandfold."""
    rng = np.random.default_rng(0)
    centres = apart * rng.standard_normal((3, size))
    vectors = centres[np.arange(n) % 3] + rng.standard_normal((n, size))
    return (vectors * np.geomspace(1, 1000, size) + 5).astype(np.float32)


def taught(vectors, count, names=NAMES):
    labels = {name: [3 * k + number for k in range(count)] for number, name in enumerate(names)}
    return teach(vectors, labels, identity="x", model="patchifier-base")


def test_labels_that_can_be_told_apart_are_predicted_for_the_rest_of_the_library():
    found = taught(library(3.0), 8)
    kinds = np.arange(60) % 3
    assert (found.probabilities.argmax(1)[24:] == kinds[24:]).mean() > 0.95
    assert found.enough
    assert found.note == ""
    assert found.accuracy > 0.9
    assert found.confusion.sum() == found.n == 24


def test_labels_without_a_difference_are_predicted_by_chance():
    found = taught(library(0.0, n=150), 50)
    assert found.accuracy < 0.5
    low, high = found.interval
    assert low < found.accuracy < high
    assert low < 0.4


def test_few_songs_are_left_out_one_by_one_and_said_to_be_too_few():
    found = taught(library(3.0), 3)
    assert found.method == "leave one out"
    assert not found.enough
    assert "calm 3" in found.note
    assert found.interval[1] - found.interval[0] > 0.2


def test_doubtful_songs_have_no_label_and_lie_between_two():
    vectors = library(4.0)
    vectors[40] = (vectors[0] + vectors[1]) / 2
    found = taught(vectors, 8)
    assert found.doubtful[0] == 40
    assert not set(found.doubtful) & set(range(24))


def test_two_labels_and_the_saved_head_give_the_same_probabilities(tmp_path):
    found = taught(library(3.0), 8, NAMES[:2])
    head = heads.read(found.head.save(tmp_path / "head"))
    np.testing.assert_allclose(head.probabilities(library(3.0)), found.probabilities, rtol=1e-5)
    assert found.probabilities.shape == (60, 2)
    assert found.accuracy > 0.9


def test_the_level_of_guessing_and_labels_that_are_never_right_are_said():
    vectors = library(3.0)
    vectors[[2, 5]] = vectors[[0, 3]]  # two songs that lie among those of the first label
    labels = {"calm": range(0, 36, 3), "loud": range(1, 25, 3), "odd": [2, 5]}
    found = teach(vectors, labels, identity="x", model="patchifier-base")
    assert found.majority == ("calm", 12 / 22)
    assert found.never_right == ("odd",)
    facts = found.to_dict()
    assert facts["majority"] == {"label": "calm", "accuracy": 12 / 22}
    assert facts["never_right"] == ["odd"]
    assert found.head.facts["accuracy"]["interval"] == list(found.interval)


def artists(n=60, of_each=4):
    """Vectors that tell 15 artists apart and nothing else, and the artists."""
    names = [f"artist {row // of_each}" for row in range(n)]
    centres = np.random.default_rng(1).standard_normal((n // of_each, 40))
    noise = np.random.default_rng(2).standard_normal((n, 40))
    return 10 * centres[np.arange(n) // of_each] + noise, names


def test_what_is_learnt_of_artists_is_no_accuracy_when_they_are_held_out():
    vectors, names = artists()
    labels = {"even": [r for r in range(60) if r // 4 % 2 == 0]}
    labels["odd"] = [r for r in range(60) if r // 4 % 2]
    options = {"identity": "x", "model": "patchifier-base"}
    alone = teach(vectors, labels, **options)
    together = teach(vectors, labels, groups=names, **options)
    assert alone.accuracy == 1
    assert together.accuracy < 0.8
    assert together.method == "5-fold cross-validation by group"
    assert together.interval[1] - together.interval[0] > 0.25
    np.testing.assert_array_equal(alone.probabilities, together.probabilities)


def test_few_groups_are_left_out_one_by_one_and_a_song_without_one_is_alone():
    vectors = library(3.0)
    labels = {"calm": range(0, 30, 3), "loud": range(1, 31, 3)}
    groups = ["A" if row < 12 else "B" if row < 24 else "" for row in range(60)]
    found = teach(vectors, labels, groups=groups, identity="x", model="patchifier-base")
    assert found.method == "leave one group out"
    assert found.enough
    assert found.note == ""


def test_a_label_of_one_group_alone_counts_as_wrong_and_is_named():
    vectors = library(3.0)
    labels = {"calm": range(0, 30, 3), "loud": range(1, 31, 3)}
    groups = ["A" if row % 3 == 0 else f"B{row % 2}" for row in range(60)]
    found = teach(vectors, labels, groups=groups, identity="x", model="patchifier-base")
    assert found.never_right == ("calm",)
    assert not found.enough
    assert "one group (calm)" in found.note
    both = ["A" if row % 3 == 0 else "B" for row in range(60)]
    none = teach(vectors, labels, groups=both, identity="x", model="patchifier-base")
    assert none.accuracy == 0
    assert none.interval[1] > 0.5  # two groups say little
    with pytest.raises(RequestError):
        teach(vectors, labels, groups=["A"] * 60, identity="x", model="patchifier-base")


def test_the_interval_of_few_groups_is_wide_even_if_all_groups_are_right_as_often():
    right = np.array([True, False] * 10)
    for parts in (np.arange(20) // 10, np.arange(20) // 4):
        n_groups = len(np.unique(parts))
        assert bootstrap(parts.astype(str).tolist(), lambda songs: right[songs].mean()) == (
            0.5,
            0.5,
        )
        np.testing.assert_allclose(_interval(right, parts), wilson(n_groups / 2, n_groups))
    low, high = _interval(right, np.arange(20) // 2)  # ten groups, all alike
    assert high - low > 0.3


def test_the_interval_is_no_narrower_than_the_bootstrap_and_counts_uneven_groups_as_fewer():
    right = np.random.default_rng(0).random(60) < 0.7
    for n_groups in (2, 5, 9, 10, 30):
        parts = np.arange(60) % n_groups
        low, high = bootstrap(parts.astype(str).tolist(), lambda songs: right[songs].mean())
        found = _interval(right, parts)
        assert found[0] <= low
        assert high <= found[1]
    even, uneven = np.arange(60) % 4, np.minimum(np.arange(60) // 15 * (np.arange(60) > 56), 3)
    assert np.ptp(_interval(right, even)) < np.ptp(_interval(right, uneven))
    everything = np.ones(60, bool)
    np.testing.assert_allclose(_interval(everything, even), wilson(4, 4))


def test_songs_with_the_same_vector_are_one_song():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 30))
    vectors[20:] = 2 * vectors[:20] + 1e-8 * rng.standard_normal((20, 30))  # labels say nothing
    labels = {"calm": [*range(10), *range(20, 30)], "loud": [*range(10, 20), *range(30, 40)]}
    found = teach(vectors, labels, identity="x", model="patchifier-base")
    assert found.copies == 40
    assert found.accuracy < 0.8  # 1 if one copy teaches the other
    assert "40 songs have the same vector as another labelled song" in found.note
    assert found.to_dict()["copies"] == 40
    assert taught(library(0.0), 8).copies == 0


def test_songs_with_the_same_vector_join_their_groups():
    vectors = library(3.0)
    vectors[3] = vectors[0]
    labels = {"calm": [0, 3, 6], "loud": [1, 4, 7]}
    options = {"identity": "x", "model": "patchifier-base"}
    groups = ["A", "A", "", "B", "B", "", "B", "B", *[""] * 52]
    with pytest.raises(RequestError, match="songs with the same vector join their groups"):
        teach(vectors, labels, groups=groups, **options)
    vectors[[1, 4, 6, 7]] = vectors[0]
    with pytest.raises(RequestError, match="all 6 labelled songs have the same vector"):
        teach(vectors, labels, **options)


def test_without_scikit_learn_the_extra_of_the_page_is_named(monkeypatch):
    for name in ("sklearn", "sklearn.model_selection", "sklearn.linear_model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RequestError, match=r"this needs sklearn .+ in a clone '\.\[app\]'"):
        taught(library(3.0), 8)


REFUSED = {
    "one label": {"a": [0, 1]},
    "eleven labels": {str(n): [2 * n, 2 * n + 1] for n in range(11)},
    "one song": {"a": [0, 1], "b": [2]},
    "a song with two labels": {"a": [0, 1], "b": [1, 2]},
    "a song twice": {"a": [0, 0], "b": [1, 2]},
    "an empty label": {"": [0, 1], "b": [2, 3]},
    "half a character": {"\ud800": [0, 1], "b": [2, 3]},
    "a label of two lines": {"a\nb": [0, 1], "b": [2, 3]},
    "a label of a thousand letters": {"a" * 1000: [0, 1], "b": [2, 3]},
    "a row that is not there": {"a": [0, 1], "b": [2, 60]},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_cannot_be_taught_are_refused(kind):
    with pytest.raises(RequestError):
        teach(library(3.0), REFUSED[kind], identity="x", model="patchifier-base")
