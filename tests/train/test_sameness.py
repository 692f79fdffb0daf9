"""Predictions that are all the same are told from those that differ, for each kind of task."""

import numpy as np
import pytest

from patchifier.tasks import Task
from patchifier.train.sameness import constant_prediction, equal_predictions

PAIR, BPM, NUMBERS, TAG = (
    Task("one-of", ("jazz", "rock")),
    Task("numbers", ("bpm",)),
    Task("numbers", ("bpm", "x")),
    Task("many-of", ("calm",)),
)


@pytest.mark.parametrize(
    ("task", "targets", "runs", "said"),
    [
        (PAIR, [0, 1], [[[0.4, 0.6], [0.401, 0.599]]], "every clip is called rock"),
        (
            PAIR,
            [0, 1],
            [[[0.4, 0.6], [0.401, 0.599]], [[0.9, 0.1], [0.9, 0.1]]],
            "every clip is called rock or jazz",
        ),
        (PAIR, [0, 1], [[[0.4, 0.6], [0.401, 0.599]], [[0.9, 0.1], [0.2, 0.8]]], ""),
        (PAIR, [0, 1], [[[0.4999, 0.5001], [0.5001, 0.4999]]], ""),
        (PAIR, [0, 1], [[[0.4, 0.6], [0.1, 0.9]]], "every clip is called rock"),
        (PAIR, [0, 1], [[[0.999, 0.001], [0.6, 0.4]]], "every clip is called jazz"),
        (PAIR, [1, 1], [[[0.4, 0.6], [0.4, 0.6]]], ""),
        (PAIR, [0, 1], [[[np.nan, np.nan]] * 2], ""),
        (PAIR, [], [np.zeros((0, 2))], ""),
        (PAIR, [0, 1], [], ""),
        (BPM, [[100.0], [140.0]], [[[np.nan]] * 2], ""),
        (BPM, [[100.0], [101.0], [102.0], [1e6]], [[[100.0], [101.0], [102.0], [103.0]]], ""),
        (
            NUMBERS,
            [[0.0, 1.0], [9.0, 1.0]],
            [[[4.0, 1.0], [4.0, 1.1]]],
            "every clip is given about bpm 4, x 1.05",
        ),
        (TAG, [[0.0], [1.0]], [[[1e-8], [3e-7]]], ""),
        (BPM, [[100.0], [140.0]], [[[120.0], [120.1]]], "every clip is given about bpm 120"),
        (BPM, [[100.0], [140.0]], [[[120.0], [121.0]]], ""),
        (TAG, [[0.0], [1.0]], [[[0.3], [0.3]]], "every clip is given the same probabilities"),
        (TAG, [[0.0], [1.0]], [[[0.3], [0.301]]], ""),
    ],
)
def test_a_model_that_learnt_nothing_is_said_to_predict_the_same(task, targets, runs, said):
    predictions = [np.array(run) for run in runs]
    assert constant_prediction(task, [np.array(targets)] * len(runs), predictions) == said


def test_predictions_are_equal_if_their_values_are():
    one = np.array([[0.4, 0.6], [0.3, 0.7]])
    same_classes = np.array([[0.1, 0.9], [0.3, 0.7]])
    assert equal_predictions([one], [one * (1 + 1e-7), one])
    assert not equal_predictions([one], [one, same_classes])
    assert equal_predictions([one, same_classes], [one, same_classes])
    assert not equal_predictions([one, same_classes], [same_classes, one])
    assert not equal_predictions([one[:, :1]], [same_classes[:, :1]])
    assert equal_predictions([one[:, :1]], [one[:, :1]])
    assert not equal_predictions([one], [one * np.nan])
    assert not equal_predictions([one * np.nan], [one * np.nan])


@pytest.mark.parametrize("n", [0, 1])
def test_no_clip_and_one_clip_are_not_enough_to_call_predictions_equal(n):
    one = np.full((n, 2), 0.5)
    assert not equal_predictions([one], [one])
