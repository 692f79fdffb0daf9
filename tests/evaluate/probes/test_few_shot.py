"""Few examples of each class: what is drawn, from where, and what the figures are."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from patchifier import tasks
from patchifier.config import RequestError
from patchifier.datasets.splits import Splits
from patchifier.evaluate import probes
from patchifier.evaluate.probes.few_shot import draw_clips, few_shot
from patchifier.seeding import generator
from patchifier.tasks import Task

GENRES = Task("one-of", ("blues", "jazz", "rock"))


def data(*, n: int = 240, noise: float = 1.0, seed: int = 0):
    """Three clouds of clips, and sides; clips of a class come in groups of four."""
    dice = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    features = 2 * np.eye(3, 8)[targets] + noise * dice.normal(size=(n, 8))
    groups = np.array([f"{index % 3}-{index // 12}" for index in range(n)])
    places = np.arange(n)
    return (
        features * np.logspace(-2, 2, 8),
        targets,
        Splits(places[:120], places[120:144], places[144:], groups),
    )


def test_rows_say_k_the_mean_and_where_the_draws_lie():
    features, targets, sides = data()
    rows = few_shot(GENRES, features, targets, sides)
    assert [row["k"] for row in rows] == [1, 2, 5, 10]
    for row in rows:
        assert set(row) == {"k", "metric", "value", "low", "high", "draws"}
        assert row["metric"] == "accuracy"
        assert row["draws"] == 50
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert rows[0]["low"] < rows[0]["high"]


def test_more_examples_help():
    features, targets, sides = data()
    values = [row["value"] for row in few_shot(GENRES, features, targets, sides)]
    assert values == sorted(values)
    assert 0.34 < values[0] < values[-1] - 0.1


def test_features_that_tell_all_and_nothing():
    features, targets, sides = data(noise=0)
    assert few_shot(GENRES, features, targets, sides, shots=(1,), draws=5)[0] == {
        "k": 1, "metric": "accuracy", "value": 1.0, "low": 1.0, "high": 1.0, "draws": 5,
    }  # fmt: skip
    noise = np.random.default_rng(1).normal(size=features.shape)
    assert few_shot(GENRES, noise, targets, sides, shots=(5,), draws=30)[0][
        "value"
    ] == pytest.approx(1 / 3, abs=0.06)


def test_one_draw_by_hand():
    features, targets, sides = data()
    dice = generator(7, "few-shot 2", 0, scope="probe/")
    train = [
        draw_clips(sides.train[targets[sides.train] == index], sides.groups, 2, dice)
        for index in range(3)
    ]
    chosen = np.concatenate(train)
    scaled = (features - features[sides.train].mean(0)) / features[sides.train].std(0)
    model = LogisticRegression(C=0.1, max_iter=5000).fit(scaled[chosen], targets[chosen])
    wanted = (model.predict(scaled[sides.test]) == targets[sides.test]).mean()
    assert few_shot(GENRES, features, targets, sides, shots=(2,), draws=1, seed=7)[0][
        "value"
    ] == pytest.approx(wanted)


def test_the_metric_is_the_tasks():
    keys = Task("one-of", ("C major", "G major", "A minor"), "key_score")
    features, targets, sides = data()
    (row,) = few_shot(keys, features, targets, sides, shots=(2,), draws=10)
    (plain,) = few_shot(GENRES, features, targets, sides, shots=(2,), draws=10)
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
    seen = {
        int(clip)
        for draw in range(60)
        for clip in draw_clips(np.arange(4), groups, 2, generator(0, "test", draw))
    }
    assert seen == {0, 1, 2, 3}


def test_validation_and_test_clips_are_never_drawn_from():
    features, targets, sides = data()
    before = few_shot(GENRES, features, targets, sides, shots=(1, 5), draws=8)
    moved, turned = features.copy(), targets.copy()
    moved[sides.valid], turned[sides.valid] = 1e6, 0
    assert few_shot(GENRES, moved, turned, sides, shots=(1, 5), draws=8) == before
    half = Splits(sides.train, sides.valid, sides.test[:30], sides.groups)
    moved = features.copy()
    moved[sides.test[30:]] = 1e6
    assert few_shot(GENRES, moved, targets, half, draws=5) == few_shot(
        GENRES, features, targets, half, draws=5
    )


def test_a_seed_makes_the_draws():
    features, targets, sides = data()
    one, same, other = (
        few_shot(GENRES, features, targets, sides, shots=(1,), seed=seed)[0] for seed in (3, 3, 4)
    )
    assert one == same != other


def test_a_shot_does_not_depend_on_the_others_asked_for():
    features, targets, sides = data()
    assert (
        few_shot(GENRES, features, targets, sides, shots=(1, 5), draws=5)[1]
        == few_shot(GENRES, features, targets, sides, shots=(5,), draws=5)[0]
    )


def test_requests_that_make_no_sense_are_refused():
    features, targets, sides = data()
    with pytest.raises(RequestError, match="takes one-of tasks: this one is numbers"):
        few_shot(Task("numbers", ("a",)), features, targets[:, None].astype(float), sides)
    with pytest.raises(
        RequestError, match="class 'blues' has 40 training clips, expected at least 41"
    ):
        few_shot(GENRES, features, targets, sides, shots=(1, 41))
    with pytest.raises(RequestError, match="class 'swing' has 0 training clips"):
        few_shot(Task("one-of", (*GENRES.names, "swing")), features, targets, sides)
    for broken in ({"shots": ()}, {"shots": (0,)}, {"draws": 0}):
        with pytest.raises(RequestError, match="at least one"):
            few_shot(GENRES, features, targets, sides, **broken)
    with pytest.raises(RequestError, match="at least two"):
        few_shot(Task("one-of", ("blues",)), features, np.zeros(240, int), sides)


def test_progress_counts_draws():
    features, targets, splits = data()
    reports = []
    rows = few_shot(
        GENRES, features, targets, splits, shots=(1, 5), draws=3,
        progress=lambda *report: reports.append(report),
    )  # fmt: skip
    assert rows == few_shot(GENRES, features, targets, splits, shots=(1, 5), draws=3)
    notes = ["1 clips of each class"] * 3 + ["5 clips of each class"] * 3
    assert reports == [(done, 6, note) for done, note in enumerate(notes, 1)]


def test_the_package_offers_it():
    features, targets, sides = data()
    assert probes.few_shot(GENRES, features, targets, sides, shots=(1,), draws=2)[0]["draws"] == 2
    assert tasks.main_score(GENRES, targets[:3], np.eye(3)) == 1
