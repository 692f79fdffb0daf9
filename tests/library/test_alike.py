import numpy as np
import pytest

from patchifier.embed import Embedding
from patchifier.library.search import agreement, closer_than, matching_stretches
from patchifier.library.search.metric import Metric


def embedding(vectors: list[list[float]], seconds: float = 5.0) -> Embedding:
    starts = np.arange(len(vectors)) * seconds
    return Embedding(np.array(vectors, np.float32), starts, starts + seconds)


def test_each_slice_has_its_own_cosine_and_an_empty_one_has_0():
    slices = {"same": slice(0, 2), "other": slice(2, 4), "none": slice(4, 5)}
    first, second = np.array([1.0, 1, 1, 0, 0]), np.array([2.0, 2, -1, 1, 3])
    found = agreement(first, second, slices)
    assert list(found) == list(slices)
    assert found["same"] == pytest.approx(1)
    assert found["other"] == pytest.approx(-(0.5**0.5))
    assert found["none"] == 0


def test_closer_than_counts_those_of_a_lower_cosine_slice_by_slice():
    slices = {"angle": slice(0, 2), "sign": slice(2, 3)}
    first = np.array([2.0, 0, 3])
    second = np.array([1.0, 1, -1])  # at 45 degrees, and opposite
    others = np.array([[1.0, 0, 5], [-1, 0, -2], [1, 2, 0], [3, 3, 1]])  # 0, 180, 63, 45 degrees
    assert closer_than(first, second, others, slices) == {"angle": 0.5, "sign": 0.0}
    assert closer_than(first, first, others, slices) == {"angle": 0.75, "sign": 0.5}


def test_stretches_are_paired_once_the_most_alike_first():
    first = embedding([[1, 0, 0], [0, 1, 0.1]])
    second = embedding([[0, 0, 1], [0, 1, 0], [1, 0.5, 0]])
    found = matching_stretches(first, second)
    times = [(pair.first_start_s, pair.second_start_s) for pair in found]
    assert times == [(5, 5), (0, 10)]
    assert found[0].score == pytest.approx(1 / 1.01**0.5)
    assert (found[0].first_end_s, found[0].second_end_s) == (10, 10)
    assert len(matching_stretches(first, second, 1)) == 1


def test_a_metric_decides_which_stretches_match():
    first, second = embedding([[1, 1]]), embedding([[1, 0], [0, 1]])
    for weights, start_s in (([9.0, 1.0], 0), ([1.0, 9.0], 5)):
        (found,) = matching_stretches(first, second, metric=Metric(np.array(weights)))
        assert found.second_start_s == start_s
