"""Predictions that are all the same are told from those that differ, for each kind of task."""

import numpy as np
import pytest

from patchifier.tasks import Task
from patchifier.train.sameness import constant_prediction, equal_predictions

PAIR, BPM, TAG = (
    Task("one-of", ("jazz", "rock")),
    Task("numbers", ("bpm",)),
    Task("many-of", ("calm",)),
)


@pytest.mark.parametrize(
    ("task", "targets", "runs", "said"),
    [
        (PAIR, [0, 1], [[[0.4, 0.6], [0.1, 0.9]]], "every clip is called rock"),
        (
            PAIR,
            [0, 1],
            [[[0.4, 0.6], [0.1, 0.9]], [[0.9, 0.1], [0.8, 0.2]]],
            "every clip is called rock or jazz",
        ),
        (PAIR, [0, 1], [[[0.4, 0.6], [0.1, 0.9]], [[0.9, 0.1], [0.2, 0.8]]], ""),
        (PAIR, [1, 1], [[[0.4, 0.6], [0.1, 0.9]]], ""),
        (BPM, [[100.0], [140.0]], [[[120.0], [120.1]]], "every clip is given about bpm 120"),
        (BPM, [[100.0], [140.0]], [[[120.0], [121.0]]], ""),
        (TAG, [[0.0], [1.0]], [[[0.3], [0.3]]], "every clip is given the same probabilities"),
        (TAG, [[0.0], [1.0]], [[[0.3], [0.301]]], ""),
    ],
)
def test_a_model_that_learnt_nothing_is_said_to_predict_the_same(task, targets, runs, said):
    predictions = [np.array(run) for run in runs]
    assert constant_prediction(task, [np.array(targets)] * len(runs), predictions) == said


def test_predictions_are_equal_if_their_classes_or_their_values_are():
    one, other = np.array([[0.4, 0.6]]), np.array([[0.1, 0.9]])
    assert equal_predictions(PAIR, [one], [other, one])
    assert not equal_predictions(PAIR, [one], [other, other[:, ::-1]])
    assert not equal_predictions(BPM, [one[:, :1]], [other[:, :1]])
    assert equal_predictions(BPM, [one[:, :1]], [one[:, :1]])
