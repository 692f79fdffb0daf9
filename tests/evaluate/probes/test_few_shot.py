"""Few examples of each class: what is drawn, from where, and what the figures are."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from patchifier.config import RequestError
from patchifier.datasets.splits import Splits
from patchifier.evaluate import probes
from patchifier.evaluate.probes.few_shot import draw_clips, few_shot
from patchifier.seeding import generator
from patchifier.tasks import Task

GENRES = Task("one-of", ("blues", "jazz", "rock"))


def data(*, n=240, noise=1.0, seed=0):
    """Three clouds of clips, and sides; clips of a class come in groups of four."""
    dice = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    features = 2 * np.eye(3, 8)[targets] + noise * dice.normal(size=(n, 8))
    groups = np.array([f"{index % 3}-{index // 12}" for index in range(n)])
    places = np.split(np.arange(n), [120, 144])
    return features * np.logspace(-2, 2, 8), targets, Splits(*places, groups)


def ask(*given, task=GENRES, **how):
    """Few-shot figures, by default of the three clouds."""
    return few_shot(task, *(given or data()), **how)


def test_rows_say_k_the_mean_and_where_the_draws_lie():
    rows = ask()
    assert [row["k"] for row in rows] == [1, 2, 5, 10]
    for row in rows:
        assert set(row) == {"k", "metric", "value", "low", "high", "draws"}
        assert row["metric"] == "accuracy"
        assert row["draws"] == 50
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert rows[0]["low"] < rows[0]["high"]


def test_more_examples_help():
    values = [row["value"] for row in ask()]
    assert values == sorted(values)
    assert 0.34 < values[0] < values[-1] - 0.1


def test_features_that_tell_all_and_nothing():
    features, targets, sides = data(noise=0)
    (row,) = ask(features, targets, sides, shots=(1,), draws=5)
    figures = dict.fromkeys(("value", "low", "high"), 1.0)
    assert row == {"k": 1, "metric": "accuracy", **figures, "draws": 5}
    noise = np.random.default_rng(1).normal(size=features.shape)
    (row,) = ask(noise, targets, sides, shots=(5,), draws=30)
    assert row["value"] == pytest.approx(1 / 3, abs=0.06)


def test_one_draw_by_hand():
    features, targets, sides = data()
    dice = generator(7, "few-shot 2", 0, scope="probe/")
    known = [sides.train[targets[sides.train] == index] for index in range(3)]
    chosen = np.concatenate([draw_clips(clips, sides.groups, 2, dice) for clips in known])
    scaled = (features - features[sides.train].mean(0)) / features[sides.train].std(0)
    model = LogisticRegression(C=0.1, max_iter=5000).fit(scaled[chosen], targets[chosen])
    wanted = (model.predict(scaled[sides.test]) == targets[sides.test]).mean()
    (row,) = ask(shots=(2,), draws=1, seed=7)
    assert row["value"] == pytest.approx(wanted)


def test_the_metric_is_the_tasks():
    keys = Task("one-of", ("C major", "G major", "A minor"), "key_score")
    (row,) = ask(task=keys, shots=(2,), draws=10)
    (plain,) = ask(shots=(2,), draws=10)
    assert row["metric"] == "key_score"
    assert row["value"] > plain["value"]  # near misses earn something


def test_clips_come_from_different_groups_first():
    groups = np.array(["a"] * 10 + ["b", "c"] + ["d"] * 3)
    for draw in range(20):
        dice = generator(0, "test", draw)
        four = draw_clips(np.arange(15), groups, 4, dice)
        assert sorted(groups[four]) == ["a", "b", "c", "d"]
        six = draw_clips(np.arange(15), groups, 6, generator(0, "test", draw))
        assert sorted(groups[six]) == ["a", "a", "b", "c", "d", "d"]
        assert len(set(six)) == 6
    assert sorted(draw_clips(np.arange(15), groups, 15, generator(0, "test", 0))) == list(range(15))


def test_every_clip_of_a_group_has_its_turn():
    groups = np.array(["a", "a", "a", "b"])
    drawn = [draw_clips(np.arange(4), groups, 2, generator(0, "test", draw)) for draw in range(60)]
    assert set(np.concatenate(drawn)) == {0, 1, 2, 3}


def test_validation_and_test_clips_are_never_drawn_from():
    features, targets, sides = data()
    before = ask(shots=(1, 5), draws=8)
    moved, turned = features.copy(), targets.copy()
    moved[sides.valid], turned[sides.valid] = 1e6, 0
    assert ask(moved, turned, sides, shots=(1, 5), draws=8) == before
    half = Splits(sides.train, sides.valid, sides.test[:30], sides.groups)
    moved = features.copy()
    moved[sides.test[30:]] = 1e6
    assert ask(moved, targets, half, draws=5) == ask(features, targets, half, draws=5)


def test_a_seed_makes_the_draws_whatever_other_shots_are_asked_for():
    one, same, other = (ask(shots=(1,), seed=seed)[0] for seed in (3, 3, 4))
    assert one == same != other
    assert ask(shots=(1, 5), draws=5)[1] == ask(shots=(5,), draws=5)[0]


def test_requests_that_make_no_sense_are_refused():
    features, targets, sides = data()
    swing = Task("one-of", (*GENRES.names, "swing"))
    for said, given, how in (
        (
            "takes one-of tasks: this one is numbers",
            (features, targets[:, None].astype(float), sides),
            {"task": Task("numbers", ("a",))},
        ),
        ("class 'blues' has 40 training clips, expected at least 41", (), {"shots": (1, 41)}),
        ("class 'swing' has 0 training clips", (), {"task": swing}),
        ("at least one", (), {"shots": ()}),
        ("at least one", (), {"shots": (0,)}),
        ("at least one", (), {"draws": 0}),
        ("at least two", (features, 0 * targets, sides), {"task": Task("one-of", ("blues",))}),
    ):
        with pytest.raises(RequestError, match=said):
            ask(*given, **how)


def test_progress_counts_draws():
    reports = []
    rows = ask(shots=(1, 5), draws=3, progress=lambda *report: reports.append(report))
    assert (
        rows
        == ask(shots=(1, 5), draws=3)
        == probes.few_shot(GENRES, *data(), shots=(1, 5), draws=3)
    )
    notes = ["1 clips of each class"] * 3 + ["5 clips of each class"] * 3
    assert reports == [(done, 6, note) for done, note in enumerate(notes, 1)]
