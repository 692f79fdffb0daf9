"""Bootstrap over groups, paired differences and Holm's correction, against textbooks and by hand."""

import math

import numpy as np
import pytest

from patchifier import statistics
from patchifier.statistics import bootstrap, estimate, holm, paired, two_sided_p, wilson


def test_clips_of_a_group_are_drawn_together():
    drawn = []

    def draw(chosen):
        drawn.append(np.bincount(chosen, minlength=6))
        return 0.0

    bootstrap(["a", "b", "a", "c", "b", "a"], draw, draws=200)
    counts = np.array(drawn)
    assert len(counts) == 200
    a, b, c = counts[:, [0, 2, 5]], counts[:, [1, 4]], counts[:, 3]
    assert (a == a[:, :1]).all()
    assert (b == b[:, :1]).all()
    assert (a[:, 0] + b[:, 0] + c == 3).all()  # as many groups as there are, with replacement
    assert {0, 1, 2, 3} == set(c.tolist())


def test_the_bootstrap_is_deterministic_and_has_a_seed():
    values = np.random.default_rng(6).normal(size=30)
    groups = [str(index // 2) for index in range(30)]

    def interval(seed):
        return bootstrap(groups, lambda chosen: float(values[chosen].mean()), draws=300, seed=seed)

    assert interval(0) == interval(0)
    assert interval(0) != interval(1)


def test_a_slow_bootstrap_shows_how_many_draws_are_done(monkeypatch):
    monkeypatch.setattr(statistics, "SHOWN_S", 0.0)
    shown = []
    note = lambda *report: shown.append(report[:2])  # noqa: E731
    bootstrap(["a", "b"], lambda chosen: 0.0, draws=5, progress=note)
    assert shown == [(done, 5) for done in range(5)]


def test_the_interval_of_a_mean_is_the_textbooks():
    values, groups = np.random.default_rng(7).normal(size=400), list(map(str, range(400)))
    (low, high), (low90, high90) = (
        bootstrap(groups, lambda chosen: float(values[chosen].mean()), level=level)
        for level in (0.95, 0.9)
    )
    half, mean = 1.96 * values.std() / 20, values.mean()
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.15 * half)
    assert (high90 - low90) / (high - low) == pytest.approx(1.645 / 1.96, abs=0.03)


def test_about_95_of_100_intervals_hold_the_truth_if_groups_are_respected():
    chance, held = np.random.default_rng(8), [0, 0]
    rounds, groups, size = 150, 30, 4
    together, alone = np.repeat(np.arange(groups), size), np.arange(groups * size)
    for _ in range(rounds):  # clips of a group are alike; the truth is 0
        levels, noise = chance.normal(size=(groups, 1)), chance.normal(size=(groups, size))
        values = (levels + 0.3 * noise).ravel()

        def mean(chosen, values=values):
            return float(values[chosen].mean())

        for kind, labels in enumerate((together, alone)):
            low, high = bootstrap(list(labels.astype(str)), mean, draws=150)
            held[kind] += low <= 0 <= high
    assert 0.87 <= held[0] / rounds <= 0.99
    assert held[1] / rounds < 0.8


@pytest.mark.parametrize(
    ("deviations", "p"), [(0.0, 1.0), (1.0, 0.317), (-1.0, 0.317), (1.96, 0.05)]
)
def test_the_p_value_of_a_mean_difference_is_the_textbooks_for_both_sides(deviations, p):
    values = np.linspace(-1, 1, 100)
    values = values / values.std() + deviations / 10  # so many standard errors above 0
    groups = [str(index) for index in range(100)]
    found = paired(
        "accuracy", groups, lambda chosen: float(values[chosen].mean()), lambda chosen: 0.0
    )
    assert found.p == pytest.approx(p, rel=0.25)


def test_a_p_value_is_above_0_at_most_1_and_counts_draws_on_the_rarer_side():
    assert two_sided_p(np.ones(99)) == pytest.approx(2 / 100)
    assert two_sided_p(np.repeat([-1.0, 0.0, 1.0], [90, 5, 4])) == pytest.approx(2 * 10 / 100)
    assert two_sided_p(np.zeros(99)) == 1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_comparison_without_a_score_has_no_p_value():
    score = paired("roc_auc", ["a", "b"], lambda clips: math.nan, lambda clips: 0.5)
    assert all(math.isnan(each) for each in (score.value, score.low, score.high))
    assert score.p is None


def test_draws_without_a_score_do_not_lower_the_p_value():
    draws = np.tile([1.0, -1.0], 50)
    mixed = np.concatenate([draws, np.full(900, math.nan)])
    assert two_sided_p(mixed) == two_sided_p(draws) == 1.0


# --- where all groups agree ---


def test_where_all_clips_are_right_or_wrong_the_interval_is_wilsons_of_the_groups():
    groups = [str(clip // 2) for clip in range(96)]
    for value, wanted in ((1.0, wilson(48, 48)), (0.0, wilson(0, 48))):
        score = estimate("accuracy", groups, lambda clips, value=value: value)
        assert (score.low, score.high) == pytest.approx(wanted)
        assert score.agree


def test_where_groups_differ_the_interval_is_by_bootstrap():
    right = np.array([1.0] * 9 + [0.0])
    groups = [str(clip) for clip in range(10)]
    statistic = lambda clips: float(right[clips].mean())  # noqa: E731
    score = estimate("accuracy", groups, statistic)
    assert (score.low, score.high) == bootstrap(groups, statistic)
    assert not score.agree


def test_a_metric_that_is_no_share_keeps_its_bootstrap():
    score = estimate("r2", ["a", "b"], lambda clips: -3.0)
    assert (score.low, score.high, score.agree) == (-3.0, -3.0, False)


def test_intervals_hold_a_truth_near_1_as_often_as_they_say():
    chance, rounds, n = np.random.default_rng(0), 400, 48
    groups, held = [str(clip) for clip in range(n)], 0
    for _ in range(rounds):
        right = (chance.random(n) < 0.98).astype(float)
        if right.all():  # where the bootstrap is a point; elsewhere it is left as it was
            score = estimate("accuracy", groups, lambda clips, right=right: right[clips].mean())
            held += score.low <= 0.98 <= score.high
        else:
            held += 1
    assert held == rounds


def test_one_group_says_little():
    score = estimate("accuracy", ["a"] * 20, lambda clips: 0.5)
    assert score.low < 0.2
    assert score.high > 0.8
    score = paired("accuracy", ["a"] * 20, lambda clips: 1.0, lambda clips: 0.0)
    assert score.low < 0
    assert score.p == 1


def test_a_difference_of_0_in_every_group_has_an_interval_and_its_p_value_is_1():
    groups = [str(clip) for clip in range(48)]
    score = paired("accuracy", groups, lambda clips: 1.0, lambda clips: 1.0)
    assert (score.value, score.p, score.agree) == (0.0, 1.0, True)
    assert -score.low == score.high == pytest.approx(wilson(0, 48)[1])


def test_a_difference_that_is_the_same_in_every_group_is_sure_with_enough_groups_alone():
    found = {}
    for n in (3, 48):
        groups = [str(clip) for clip in range(n)]
        found[n] = paired("accuracy", groups, lambda clips: 1.0, lambda clips: 0.0)
        assert found[n].high == 1.0
    assert found[3].p == 0.25  # of the sign test
    assert found[3].low < 0 < found[48].low
    assert found[48].p < 0.01
