"""A head that is taught with a few songs: its cross-validation, its doubts, what it refuses."""

import numpy as np
import pytest

from patchifier import heads
from patchifier.app.teach import teach
from patchifier.config import RequestError

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
