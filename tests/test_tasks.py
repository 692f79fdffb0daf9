"""Kinds of task: what targets mean, and figures against scikit-learn and by hand."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics

from patchifier.config import RequestError
from patchifier.statistics import paired
from patchifier.tasks import (
    Task,
    activate,
    encode_targets,
    evaluate,
    infer,
    loss,
    main_score,
    mean_score,
    scores,
    undefined_note,
)

GENRES = Task("one-of", ("blues", "jazz", "rock"))
TAGS = Task("many-of", ("calm", "fast", "vocal"))
MOOD = Task("numbers", ("arousal", "valence"))


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (["rock", "jazz", "rock"], Task("one-of", ("jazz", "rock"))),
        (["rock", None, "jazz"], Task("one-of", ("jazz", "rock"))),
        ([["slow", "calm"], [], ["calm"]], Task("many-of", ("calm", "slow"))),
        ([("b",), ("a",)], Task("many-of", ("a", "b"))),
        ([1.5, 2, None], Task("numbers", ("value",))),
        ([[1, 2.5], [3.0, 4]], Task("numbers", ("value_0", "value_1"))),
        ([None, None], None),
        ([], None),
    ],
)
def test_the_kind_of_task_follows_from_the_targets(targets, task):
    assert infer(targets) == task


@pytest.mark.parametrize(
    "targets",
    [
        ["rock", 1.0],
        ["rock", ["rock"]],
        [["rock"], [1.0]],
        [["rock", 1.0]],
        [[1.0, 2.0], [1.0]],
        [1.0, [1.0]],
        [{"genre": "rock"}],
        [["a"], "a"],
    ],
)
def test_a_mixture_of_targets_is_refused(targets):
    with pytest.raises(RequestError, match="mixture"):
        infer(targets)


def test_each_kind_has_a_main_metric_that_its_scores_begin_with():
    chance = np.random.default_rng(0)
    tags = np.array([[0, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 1]], np.float32)
    cases = [
        (GENRES, np.array([0, 1, 2, 0]), "accuracy"),
        (TAGS, tags, "roc_auc"),
        (MOOD, chance.normal(size=(4, 2)), "r2"),
    ]
    for task, targets, metric in cases:
        found = scores(task, targets, chance.random((4, len(task.names))))
        assert task.metric == next(iter(found)) == metric


@pytest.mark.parametrize(
    ("task", "targets", "dtype", "encoded"),
    [
        (GENRES, ["rock", "blues", "jazz"], np.int64, [2, 0, 1]),  # in the task's order
        (
            TAGS,
            [["vocal", "calm"], [], ("fast", "fast")],
            np.float32,
            [[1, 0, 1], [0, 0, 0], [0, 1, 0]],
        ),
        (MOOD, [[1, 2.5], (3, 4)], np.float32, [[1, 2.5], [3, 4]]),
        (Task("numbers", ("value",)), [1, 2.5], np.float32, [[1], [2.5]]),
    ],
)
def test_targets_become_indices_zeros_and_ones_or_rows_of_numbers(task, targets, dtype, encoded):
    found = encode_targets(task, targets)
    assert found.dtype == dtype
    assert found.tolist() == encoded


@pytest.mark.parametrize(
    ("task", "targets", "named"),
    [
        (GENRES, ["rock", "polka"], "polka"),
        (GENRES, ["rock", 7], "7"),
        (GENRES, ["rock", ["jazz"]], "jazz"),
        (TAGS, [["calm", "loud"]], "loud"),
        (TAGS, [["calm"], 7], "7"),
        (MOOD, [[1.0, 2.0], [1.0, 2.0, 3.5]], "3.5"),
        (MOOD, [[1.0, 2.0], ["sad", 2.0]], "sad"),
        (MOOD, [[1.0, 2.0], 4.25], "4.25"),
    ],
)
def test_a_target_that_the_task_does_not_know_is_refused_by_name(task, targets, named):
    with pytest.raises(RequestError, match=named):
        encode_targets(task, targets)


def test_clips_without_a_target_are_counted():
    with pytest.raises(RequestError, match="2 of 3 clips have no target"):
        encode_targets(GENRES, [None, "rock", None])


def test_losses_are_what_they_are_called():
    outputs = torch.tensor([[0.2, -1.0, 0.5], [1.5, 0.3, -0.7]], dtype=torch.float64)
    shares = outputs.exp() / outputs.exp().sum(1, keepdim=True)
    one_of = -(shares[0, 2].log() + shares[1, 0].log()) / 2
    torch.testing.assert_close(loss(GENRES)(outputs, torch.tensor([2, 0])), one_of)
    tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    probabilities = 1 / (1 + (-outputs).exp())
    cross = -(tags * probabilities.log() + (1 - tags) * (1 - probabilities).log()).mean()
    torch.testing.assert_close(loss(TAGS)(outputs, tags), cross)
    torch.testing.assert_close(loss(MOOD)(outputs, tags), (outputs - tags).square().mean())


def test_outputs_become_probabilities_but_numbers_stay():
    outputs = torch.tensor([[0.0, 0.0, math.log(2.0)]])
    torch.testing.assert_close(activate(GENRES, outputs), torch.tensor([[0.25, 0.25, 0.5]]))
    torch.testing.assert_close(activate(TAGS, outputs), torch.tensor([[0.5, 0.5, 2 / 3]]))
    assert activate(MOOD, outputs) is outputs


def test_accuracy_counts_the_largest_probability():
    predictions = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25], [0.0, 0.6, 0.4]])
    assert scores(GENRES, np.array([0, 2, 1, 1]), predictions) == {"accuracy": 0.75}


def test_metrics_of_tags_are_scikit_learns_macro_means():
    chance = np.random.default_rng(3)
    targets, predictions = (chance.random((60, 3)) < 0.3).astype(np.float32), chance.random((60, 3))
    ways = {"roc_auc": metrics.roc_auc_score, "average_precision": metrics.average_precision_score}
    wanted = {name: way(targets, predictions, average="macro") for name, way in ways.items()}
    assert scores(TAGS, targets, predictions) == pytest.approx(wanted)


def test_metrics_of_tags_by_hand():
    # Ranked 0.9 yes, 0.8 no, 0.7 yes, 0.1 no: of 4 pairs one is the wrong way round; precision 1 at the first yes, 2/3 at the second.
    targets, predictions = np.float32([[1], [0], [1], [0]]), np.array([[0.9], [0.8], [0.7], [0.1]])
    found = scores(Task("many-of", ("vocal",)), targets, predictions)
    assert found == pytest.approx({"roc_auc": 0.75, "average_precision": (1 + 2 / 3) / 2})


def test_tags_that_are_always_or_never_there_are_left_out():
    chance = np.random.default_rng(4)
    targets, predictions = (chance.random((40, 4)) < 0.5).astype(np.float32), chance.random((40, 4))
    targets[:, 1], targets[:, 3] = 1, 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(Task("many-of", ("a", "b", "c", "d")), targets, predictions)
        none = scores(Task("many-of", ("b", "d")), targets[:, [1, 3]], predictions[:, [1, 3]])
    assert found == scores(Task("many-of", ("a", "c")), targets[:, [0, 2]], predictions[:, [0, 2]])
    assert all(np.isnan(value) for value in none.values())
    assert list(none) == ["roc_auc", "average_precision"]


def test_r2_is_one_minus_the_share_of_variance_left_of_each_number_and_their_mean():
    targets = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 60.0]])
    predictions = np.array([[1.0, 30.0], [2.0, 30.0], [4.0, 30.0]])
    found = scores(MOOD, targets, predictions)
    assert found == pytest.approx({"r2": 0.25, "r2_arousal": 1 - 1 / 2, "r2_valence": 0.0})
    assert found["r2"] == pytest.approx(metrics.r2_score(targets, predictions))


def test_r2_of_the_whole_set_is_not_the_mean_of_batches():
    chance = np.random.default_rng(5)
    targets = chance.normal(size=(64, 2)) + np.repeat(np.arange(8), 8)[:, None]
    predictions = targets + chance.normal(size=(64, 2))
    whole = scores(MOOD, targets, predictions)["r2"]
    parts = [slice(start, start + 8) for start in range(0, 64, 8)]
    batches = np.mean([scores(MOOD, targets[part], predictions[part])["r2"] for part in parts])
    assert whole == pytest.approx(metrics.r2_score(targets, predictions))
    assert whole > 0.7
    assert batches < 0.3


def test_r2_of_a_constant_number_is_not_defined_and_left_out_of_the_mean():
    task = Task("numbers", ("varied", "constant"))
    targets = np.array([[0.0, 5], [2, 5]])
    predictions = np.array([[0.0, 5], [1, 5]])
    found = scores(task, targets, predictions)
    assert found["r2"] == found["r2_varied"] == 0.5
    assert math.isnan(found["r2_constant"])
    assert math.isnan(main_score(task, targets[:1], predictions[:1]))


def test_what_has_no_score_is_named():
    tags = Task("many-of", ("calm", "loud", "vocal"))
    note = undefined_note(tags, np.array([[1, 0, 0], [1, 1, 0]]))
    assert note.startswith("calm, vocal: the same for all 2 tested clips")
    assert undefined_note(tags, np.array([[1, 0, 0], [0, 1, 1]])) == ""
    assert undefined_note(Task("one-of", ("a", "b")), np.array([0, 0])) == ""


def test_r2_of_a_single_clip_is_not_a_number():
    found = scores(MOOD, np.ones((1, 2)), np.ones((1, 2)))
    assert list(found) == ["r2", "r2_arousal", "r2_valence"]
    assert all(np.isnan(value) for value in found.values())


def difference(targets, first, second, groups):
    """Paired difference of two encoders on the same clips."""
    one, two = (mean_score(GENRES, targets, [predictions]) for predictions in (first, second))
    return paired("accuracy", groups, one, two)


def test_evaluation_is_the_mean_over_runs_not_the_score_of_their_mean():
    targets = np.array([0, 1, 2, 0])
    right, half = np.eye(3)[targets], np.eye(3)[[0, 1, 0, 1]]
    result = evaluate(GENRES, targets, [right, half], ["a", "b", "c", "d"])
    assert (result.metric, result.value, result.n) == ("accuracy", 0.75, 4)
    assert result.low <= 0.75 <= result.high
    row = result.row("mfcc", "probe")
    assert list(row) == ["encoder", "method", "metric", "value", "low", "high", "n"]
    assert list(row.values()) == ["mfcc", "probe", "accuracy", 0.75, result.low, result.high, 4]


def test_the_interval_is_wider_where_clips_come_in_groups():
    targets = np.zeros(40, int)
    predictions = np.eye(3)[np.repeat(np.arange(10) % 2, 4)]  # whole groups are right or wrong
    alone, grouped = (
        evaluate(GENRES, targets, [predictions], [str(index // size) for index in range(40)])
        for size in (1, 4)
    )
    assert alone.value == grouped.value == 0.5
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


def test_identical_predictions_differ_by_exactly_nothing():
    predictions = np.random.default_rng(9).random((20, 3))
    groups = [str(index // 2) for index in range(20)]
    result = difference(np.arange(20) % 3, predictions, predictions.copy(), groups)
    assert (result.value, result.p, result.agree) == (0, 1, True)
    assert -result.low == result.high > 0  # on other clips they may differ


def test_a_comparison_on_the_same_clips_is_paired():
    chance = np.random.default_rng(10)
    targets = chance.integers(0, 3, 200)
    weak = np.eye(3)[np.where(chance.random(200) < 0.5, targets, (targets + 1) % 3)]
    right = chance.random(200) < 0.15
    better = np.where(right[:, None], np.eye(3)[targets], weak)  # never worse on any clip
    groups = [str(index) for index in range(200)]
    result = difference(targets, better, weak, groups)
    one, two = (evaluate(GENRES, targets, [each], groups) for each in (better, weak))
    assert result.value == pytest.approx(one.value - two.value)
    assert result.low > 0  # paired, the difference is sure
    assert one.low < two.high  # apart, the intervals overlap
    turned = difference(targets, weak, better, groups)
    wanted = (-result.value, -result.high, -result.low)
    assert (turned.value, turned.low, turned.high) == pytest.approx(wanted)


TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS)


@pytest.mark.parametrize(
    ("true", "estimate", "score"),
    [
        ("C major", "C major", 1.0),
        ("C major", "G major", 0.5),  # a fifth above
        ("C major", "F major", 0.0),  # a fifth below counts nothing
        ("C major", "A minor", 0.3),
        ("A minor", "C major", 0.3),
        ("C major", "C minor", 0.2),
        ("C major", "G minor", 0.0),
        ("Bb minor", "F minor", 0.5),
    ],
)
def test_key_score_of_known_pairs(true, estimate, score):
    task = Task("one-of", KEYS, "key_score")
    prediction = np.eye(24)[[KEYS.index(estimate)]]
    assert scores(task, np.array([KEYS.index(true)]), prediction) == {
        "key_score": pytest.approx(score),
        "accuracy": float(score == 1.0),
    }


def test_key_score_refuses_what_is_no_key():
    with pytest.raises(RequestError, match="Expected keys"):
        scores(Task("one-of", ("rock", "jazz"), "key_score"), np.array([0]), np.eye(2)[[0]])


def test_metric_must_fit_the_kind():
    with pytest.raises(RequestError, match="no metric 'key_score'"):
        Task("numbers", ("a",), "key_score")


def test_moments_within_a_clip_are_no_targets_of_clips():
    with pytest.raises(RequestError, match="compare"):
        encode_targets(Task("per-frame", ("beat",)), [[[0.0, 0.0, "1"]]])
