"""Sides in turn: every clip is tested once, no group stands on two sides, classes are spread."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier.datasets import Clip
from patchifier.datasets.folds import FOLDS, grouped_folds, sides_in_turn


def clips(groups, **more):
    return [
        Clip(f"{number}", f"{number}.wav", group=group, **more)
        for number, group in enumerate(groups)
    ]


def test_the_data_sets_own_split_is_one_round():
    made = [
        Clip("a", "a", split="train"),
        Clip("b", "b", split="valid"),
        Clip("c", "c", split="test"),
    ]
    assert sides_in_turn(made) == [["train", "valid", "test"]]


def test_each_fold_is_tested_once_and_the_one_before_validates():
    made = [Clip(f"{n}", "x", fold=n % 4) for n in range(8)]
    rounds = sides_in_turn(made)
    assert len(rounds) == 4
    for tested, sides in enumerate(rounds):
        assert [clip.fold for clip, side in zip(made, sides, strict=True) if side == "test"] == [
            tested
        ] * 2
        assert {clip.fold for clip, side in zip(made, sides, strict=True) if side == "valid"} == {
            (tested - 1) % 4
        }


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=120))
def test_a_group_is_never_divided(numbers):
    folds = grouped_folds(clips([f"g{n}" for n in numbers]), count=5)
    of = {}
    for number, fold in zip(numbers, folds, strict=True):
        assert of.setdefault(number, fold) == fold
    assert all(0 <= fold < 5 for fold in folds)


def test_without_folds_every_clip_is_tested_once_by_group():
    made = [Clip(f"{n}", "x", group=f"g{n // 3}", target="ab"[n // 30]) for n in range(60)]
    rounds = sides_in_turn(made)
    assert len(rounds) == FOLDS
    assert [Counter(sides[n] for sides in rounds)["test"] for n in range(60)] == [1] * 60
    for sides in rounds:
        where = {}
        for clip, side in zip(made, sides, strict=True):
            assert where.setdefault(clip.group, side) == side


@pytest.mark.parametrize("count", [2, 5])
def test_classes_are_spread_evenly(count):
    made = [Clip(f"{n}", "x", group=f"g{n}", target=f"class {n % 4}") for n in range(40 * count)]
    folds = grouped_folds(made, count=count)
    table = Counter((fold, clip.target) for fold, clip in zip(folds, made, strict=True))
    assert set(table.values()) == {10}


def test_folds_are_even_where_groups_differ_in_size():
    made = clips([f"g{n}" for n in range(40) for _ in range(1 + n % 7)])
    sizes = Counter(grouped_folds(made, count=5)).values()
    assert max(sizes) - min(sizes) <= 7


def test_folds_do_not_depend_on_the_order_of_clips():
    made = [Clip(f"{n}", "x", group=f"g{n // 2}", target="ab"[n // 2 % 2]) for n in range(40)]
    ahead = dict(zip([c.group for c in made], grouped_folds(made, count=5), strict=True))
    back = dict(
        zip([c.group for c in reversed(made)], grouped_folds(made[::-1], count=5), strict=True)
    )
    assert ahead == back
