"""Probes on frozen features: what scikit-learn gives by hand, and no look at what is tested."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from patchifier.config import RequestError
from patchifier.datasets.splits import Splits, inner_folds
from patchifier.evaluate.demo import cross_validate
from patchifier.evaluate.probes.heads import Schedule
from patchifier.evaluate.probes.linear import (
    LOGISTIC_C,
    RIDGE_ALPHAS,
    STRENGTHS,
    fit_predict,
    linear,
    majority,
)
from patchifier.evaluate.probes.pooler import BATCH, DECAY, RATES, paper
from patchifier.tasks import Task, scores
from patchifier.train import loop

GENRES = Task("one-of", ("blues", "jazz", "rock"))
TAGS = Task("many-of", ("calm", "fast", "vocal"))
MOOD = Task("numbers", ("arousal", "valence"))


def features(n, size=8, seed=0):
    """Features on scales that differ a hundredfold."""
    return np.random.default_rng(seed).normal(size=(n, size)) * np.logspace(-1, 1, size) + 3


def targets_for(task, x):
    """Targets that features tell linearly, without noise."""
    z = (x - 3) / np.logspace(-1, 1, x.shape[1])
    if task.kind == "one-of":
        return z[:, :3].argmax(1)
    if task.kind == "many-of":
        return (z[:, :3] > 0).astype(np.float32)
    return np.stack([5 + 2 * z[:, 0] - z[:, 1], 100 * z[:, 2]], axis=1)


def known(task, n=60):
    """Training features and their targets, and features of 20 test clips."""
    train = features(n)
    return train, targets_for(task, train), features(20, seed=1)


def logistic():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))


ALL = pytest.mark.parametrize("task", [GENRES, TAGS, MOOD], ids=lambda task: task.kind)


# --- fitting ---


@ALL
def test_what_features_tell_is_learned(task):
    train, test = features(300), features(100, seed=1)
    predictions = fit_predict(task, train, targets_for(task, train), test)
    assert predictions.shape == (100, len(task.names))
    assert scores(task, targets_for(task, test), predictions)[task.metric] > 0.93


@ALL
def test_noise_teaches_nothing(task):
    train, test = features(300), features(100, seed=1)
    shuffled = np.random.default_rng(2).permutation(targets_for(task, train))
    found = fit_predict(task, train, shuffled, test)
    value = scores(task, targets_for(task, test), found)[task.metric]
    assert value < {"one-of": 0.55, "many-of": 0.65, "numbers": 0.1}[task.kind]


def test_names_are_predicted_as_scikit_learns_own_pipeline_does():
    train, targets, test = known(GENRES)
    expected = logistic().fit(train, targets).predict_proba(test)
    assert np.array_equal(fit_predict(GENRES, train, targets, test), expected)


def test_tags_are_predicted_one_against_the_rest():
    train, targets, test = known(TAGS)
    fitted = [logistic().fit(train, targets[:, column]) for column in range(3)]
    expected = np.stack([model.predict_proba(test)[:, 1] for model in fitted], axis=1)
    assert np.array_equal(fit_predict(TAGS, train, targets, test), expected)


def test_numbers_are_predicted_by_ridge_in_their_own_units():
    train, targets, test = known(MOOD)
    pipeline = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))).fit(train, targets)
    predictions = fit_predict(MOOD, train, targets, test)
    assert np.array_equal(predictions, pipeline.predict(test))
    assert predictions[:, 1].std() > 50
    value = Task("numbers", ("value",))
    single = fit_predict(value, train, targets[:, :1], test)
    assert single.shape == (20, 1)
    assert scores(value, targets_for(MOOD, test)[:, :1], single)["r2"] > 0.95


def test_strengths_are_fixed_beforehand():
    assert LOGISTIC_C == 0.1
    np.testing.assert_allclose(RIDGE_ALPHAS[[0, -1]], [1e-2, 1e4])


@ALL
def test_the_standardiser_knows_training_clips_only(task):
    train, targets, test = known(task, 80)
    predictions = fit_predict(task, train, targets, test)
    # a standardiser fitted on test clips would take the shift away
    shifted = fit_predict(task, train, targets, test + 5 * train.std(0))
    assert np.abs(shifted - predictions).max() > 0.05
    alone = fit_predict(task, train, targets, test[:1])  # nor do other test clips matter
    np.testing.assert_allclose(alone, predictions[:1], rtol=1e-9)
    scaled = fit_predict(task, 10 * train - 7, targets, 10 * test - 7)
    np.testing.assert_allclose(scaled, predictions, rtol=1e-3, atol=1e-3)


def test_inputs_are_left_as_they_were():
    given = known(GENRES, 40)
    before = [array.copy() for array in given]
    fit_predict(GENRES, *given)
    assert all(np.array_equal(one, two) for one, two in zip(before, given, strict=True))


def test_a_class_without_training_clips_has_probability_nothing():
    train, test = features(40), features(10, seed=1)
    predictions = fit_predict(GENRES, train, np.arange(40) % 2 * 2, test)  # blues and rock only
    assert (predictions[:, 1] == 0).all()
    np.testing.assert_allclose(predictions.sum(1), 1)


def test_a_tag_that_is_always_or_never_there_is_predicted_so():
    train, test = features(40), features(10, seed=1)
    targets = targets_for(TAGS, train)
    targets[:, 0], targets[:, 2] = 1, 0
    predictions = fit_predict(TAGS, train, targets, test)
    assert (predictions[:, 0] == 1).all()
    assert (predictions[:, 2] == 0).all()
    assert 0 < predictions[:, 1].min() < predictions[:, 1].max() < 1


# --- the majority ---


def test_the_majority_is_the_share_of_each_class_or_tag_or_the_mean_number():
    np.testing.assert_allclose(majority(GENRES, np.array([0, 2, 2, 2]), 2), [[0.25, 0, 0.75]] * 2)
    tags = np.array([[1, 0, 1], [1, 0, 0]], np.float32)
    np.testing.assert_allclose(majority(TAGS, tags, 1), [[1, 0, 0.5]])
    moods = np.array([[1.0, 10.0], [3.0, 20.0]])
    np.testing.assert_allclose(majority(MOOD, moods, 3), [[2, 15]] * 3)


# --- cross-validation ---


def test_the_majority_of_folds_is_that_of_the_others():
    targets = np.array([0, 0, 1, 1, 2, 2])

    def predict(train, test):
        return majority(GENRES, targets[train], int(test.sum()))

    found = cross_validate([7, 7, 8, 8, 9, 9], predict)
    shares = [[0, 0.5, 0.5]] * 2 + [[0.5, 0, 0.5]] * 2 + [[0.5, 0.5, 0]] * 2
    np.testing.assert_allclose(found, shares)
    assert scores(GENRES, targets, found)["accuracy"] == 0


def folded(task, x, targets, folds):
    def predict(train, test):
        return fit_predict(task, x[train], targets[train], x[test])

    return cross_validate(folds.tolist(), predict)


@ALL
def test_each_fold_is_predicted_from_the_others(task):
    x = features(60)
    targets, folds = targets_for(task, x), np.arange(60) % 3
    found = folded(task, x, targets, folds)
    for fold in range(3):
        train, test = folds != fold, folds == fold
        assert np.array_equal(found[test], fit_predict(task, x[train], targets[train], x[test]))


@ALL
def test_a_folds_own_targets_never_reach_its_predictions(task):
    # more features than clips: any target can be learnt by heart
    x = np.random.default_rng(0).normal(size=(40, 60))
    targets, folds = targets_for(task, features(40)), np.arange(40) % 4
    mine = folds == 2
    before = folded(task, x, targets, folds)
    turned = targets.copy()
    turned[mine] = targets[mine][::-1] if task.kind == "one-of" else 1 - targets[mine]
    assert not np.array_equal(turned, targets)
    after = folded(task, x, turned, folds)
    assert np.array_equal(before[mine], after[mine])
    assert not np.array_equal(before[~mine], after[~mine])


def test_folds_may_have_any_numbers():
    x = features(30)
    targets, folds = targets_for(GENRES, x), np.arange(30) % 3
    one, other = (folded(GENRES, x, targets, numbers) for numbers in (folds, 10 * folds + 5))
    assert np.array_equal(one, other)


# --- linear: the strength is chosen by validation ---


def sided(task, *, noise=0.0, valid=True, size=8):
    """Features, targets with noise, and sides of 60, 30 and 60 clips, two clips a group."""
    x = features(150, size)
    targets = targets_for(task, x)
    dice = np.random.default_rng(9)
    if noise:
        other = targets[dice.permutation(150)]
        mask = dice.random(150) < noise
        targets = np.where(mask if targets.ndim == 1 else mask[:, None], other, targets)
    groups = np.array([f"track {index // 2}" for index in range(150)])
    parts = np.arange(60), np.arange(60, 90), np.arange(90, 150)
    if not valid:
        parts = np.arange(90), np.array([], int), parts[2]
    return x, targets, Splits(*parts, groups)


@ALL
@pytest.mark.parametrize("valid", [True, False])
def test_the_linear_probe_learns_with_and_without_a_validation_side(task, valid):
    x, targets, sides = sided(task, valid=valid)
    found = linear(task, x, targets, sides)
    assert found.predictions.shape == (60, len(task.names))
    assert scores(task, targets[sides.test], found.predictions)[task.metric] > 0.85
    assert set(found.chosen) == {"alpha" if task.kind == "numbers" else "C", f"valid_{task.metric}"}


@ALL
def test_the_strength_is_the_best_on_validation_and_then_all_known_clips_are_used(task):
    x, targets, sides = sided(task, noise=0.4)
    found = linear(task, x, targets, sides)
    by_hand = {}
    fitted = x[sides.train], targets[sides.train], x[sides.valid]
    for strength in STRENGTHS[task.kind]:
        predicted = fit_predict(task, *fitted, strength=strength)
        by_hand[strength] = scores(task, targets[sides.valid], predicted)[task.metric]
    chosen = found.chosen["alpha" if task.kind == "numbers" else "C"]
    assert by_hand[chosen] == max(by_hand.values())
    assert by_hand[chosen] == pytest.approx(found.chosen[f"valid_{task.metric}"])
    assert max(by_hand.values()) > min(by_hand.values())
    wanted = fit_predict(task, x[:90], targets[:90], x[90:], strength=chosen)
    np.testing.assert_allclose(found.predictions, wanted)


def test_noise_asks_for_strength_and_clean_targets_for_little():
    x, targets, sides = sided(MOOD)
    clean = linear(MOOD, x, targets, sides).chosen["alpha"]
    dice = np.random.default_rng(0)
    x = dice.normal(size=(150, 100))
    noisy = linear(MOOD, x, x[:, :2] + 5 * dice.normal(size=(150, 2)), sides).chosen["alpha"]
    assert clean < 1 < 50 < noisy


def test_of_equal_strengths_the_stronger_is_taken():
    x, targets, sides = sided(GENRES)
    x = np.eye(3)[targets] * 10
    predicted = {
        C: fit_predict(GENRES, x[:60], targets[:60], x[60:90], strength=C).argmax(1)
        for C in STRENGTHS["one-of"]
    }
    right = [C for C, names in predicted.items() if np.array_equal(names, targets[60:90])]
    assert len(right) > 2
    assert linear(GENRES, x, targets, sides).chosen["C"] == right[0]


def test_inner_folds_divide_groups_not_clips():
    """Clips of a group are copies: folds that cut groups would favour learning by heart."""
    dice, nobody = np.random.default_rng(0), np.array([], int)
    groups = np.repeat([f"g{index}" for index in range(20)], 4)
    names = np.append(groups, ["z"] * 4)
    sides = Splits(np.arange(80), nobody, np.arange(80, 84), names)
    folds = inner_folds(sides, count=5)
    assert len(folds) == 5
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(80))
    for fitted, held in folds:
        assert not set(groups[fitted]) & set(groups[held])
        assert len(held) == 16
    x = np.repeat(dice.normal(size=(21, 30)), 4, axis=0)
    targets = np.repeat(dice.normal(size=(21, 1)), 4, axis=0)
    apart = Splits(sides.train, nobody, sides.test, np.arange(84).astype(str))
    task = Task("numbers", ("a",))
    assert linear(task, x, targets, sides).chosen["alpha"] > 100
    assert linear(task, x, targets, apart).chosen["alpha"] < 1


def test_one_group_cannot_be_divided():
    x, targets, sides = sided(GENRES, valid=False)
    with pytest.raises(RequestError, match="of one group"):
        linear(GENRES, x, targets, Splits(sides.train, sides.valid, sides.test, np.full(150, "a")))


def test_a_training_side_of_one_class_predicts_it():
    x, targets, sides = sided(GENRES)
    targets[:90] = 1
    assert (linear(GENRES, x, targets, sides).predictions.argmax(1) == 1).all()


# --- the paper's head ---

QUICK = Schedule(every_steps=4, patience=8)


@ALL
@pytest.mark.parametrize("valid", [True, False])
def test_the_papers_head_learns(task, valid):
    x, targets, sides = sided(task, valid=valid)
    rows = [task, x, targets, sides]
    found = paper(*rows, schedule=QUICK, rates=(1e-3, 1e-2))
    assert found.predictions.shape == (60, len(task.names))
    assert scores(task, targets[sides.test], found.predictions)[task.metric] > 0.7
    assert found.chosen["rate"] in (1e-3, 1e-2)
    assert found.chosen["unfinished_runs"] == 0
    if not valid:  # where a validation side is drawn too
        again = paper(*rows, schedule=QUICK, rates=(1e-3, 1e-2))
        assert np.array_equal(found.predictions, again.predictions)


def test_progress_of_the_papers_head_counts_rates_and_names_rate_step_and_loss(monkeypatch):
    monkeypatch.setattr(loop, "PROGRESS_S", 0.0)
    reports = []
    how = {"schedule": QUICK, "rates": (1e-3, 1e-2)}
    paper(GENRES, *sided(GENRES), **how, progress=lambda *report: reports.append(report))
    done = [report[0] for report in reports]
    assert done == sorted(done)
    assert set(done) == {0, 1, 2}
    assert {report[1] for report in reports} == {2}
    assert reports[0][2].startswith("rate 0.001, step 1, loss ")
    assert next(note for done, _, note in reports if done == 1).startswith("rate 0.01, step 1, ")
    assert reports[-1][:2] == (2, 2)


def test_progress_of_a_head_counts_steps_at_intervals(monkeypatch):
    clock = itertools.count(step=0.2)
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    model, reports = torch.nn.Linear(1, 1), []
    loop.fit_head(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda step: model(torch.ones(1, 1)).square().sum(),
        lambda: 0.5,
        total=9,
        validate_every=3,
        patience=9,
        progress=lambda *report: reports.append(report),
    )
    assert [done for done, *_ in reports] == [1, 4, 7, 9]  # the clock is read twice for a report
    assert all(note.startswith(f"step {done}, loss ") for done, _, note in reports[:-1])
    assert reports[-1] == (9, 9, "best score 0.5 at step 3")


def test_the_papers_head_is_the_papers():
    assert RATES == (1e-5, 1e-4, 1e-3)
    assert (BATCH, DECAY) == (32, 0.01)
    short = Schedule(every_steps=4, patience=50, limit_steps=40)
    found = paper(GENRES, *sided(GENRES), schedule=short).chosen
    assert found["unfinished_runs"] == 3
    assert found["step"] <= 40


def test_the_papers_head_is_tested_with_its_best_weights():
    """Validation clips are tested again as test clips."""
    x, targets, sides = sided(GENRES, noise=0.5)
    groups = np.append(sides.groups, sides.groups[sides.valid])
    sides = Splits(sides.train, sides.valid, np.arange(150, 180), groups)
    x, targets = np.concatenate([x, x[60:90]]), np.concatenate([targets, targets[60:90]])
    found = paper(GENRES, x, targets, sides, schedule=QUICK, rates=(1e-2,))
    value = scores(GENRES, targets[sides.test], found.predictions)["accuracy"]
    assert value == pytest.approx(found.chosen["valid_accuracy"])


def test_the_papers_head_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    paper(GENRES, *sided(GENRES), schedule=QUICK, rates=(1e-2,))
    assert torch.equal(torch.rand(1), wanted)
