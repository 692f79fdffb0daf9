"""Splits of clips by group and by class, and those of pre-training."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier.config import Config, RequestError, update
from patchifier.datasets import Clip
from patchifier.datasets.splits import (
    FOLDS,
    VALIDATION_CLIPS,
    Splits,
    cross_validation,
    grouped_folds,
    hold_out,
    partition,
    pretraining_splits,
    untrained_note,
)
from patchifier.tasks import Task


def clips(groups, **more):
    return [Clip(str(number), "x", group=group, **more) for number, group in enumerate(groups)]


def test_the_data_sets_own_split_is_one_fold():
    names = ["train", "valid", "test"]
    assert cross_validation([Clip(name, name, split=name) for name in names]) == [names]


def test_each_fold_is_tested_once_and_the_one_before_validates():
    made = [Clip(f"{n}", "x", fold=n % 4) for n in range(8)]
    rounds = cross_validation(made)
    assert len(rounds) == 4
    for tested, names in enumerate(rounds):
        by_fold = {clip.fold: split for clip, split in zip(made, names, strict=True)}
        assert {split: fold for fold, split in by_fold.items() if split != "train"} == {
            "test": tested,
            "valid": (tested - 1) % 4,
        }
        assert Counter(names) == {"train": 4, "valid": 2, "test": 2}


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
    rounds = cross_validation(made)
    assert len(rounds) == FOLDS
    assert [Counter(names[n] for names in rounds)["test"] for n in range(60)] == [1] * 60
    for names in rounds:
        where = {}
        for clip, split in zip(made, names, strict=True):
            assert where.setdefault(clip.group, split) == split


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
    ahead, back = (
        dict(zip([clip.group for clip in order], grouped_folds(order, count=5), strict=True))
        for order in (made, made[::-1])
    )
    assert ahead == back


# --- partition ---


def grouped(count, *, each=2, splits=None, folds=0):
    """Clips in groups; a group's split or fold follows from its number."""
    return [
        Clip(
            f"{group}-{number}",
            "x.wav",
            group=f"group {group}",
            split=(splits or {}).get(group),
            fold=group % folds if folds else None,
        )
        for group in range(count)
        for number in range(each)
    ]


def require_whole_groups(clips, names):
    found = {(clip.group, split) for clip, split in zip(clips, names, strict=True)}
    assert len({group for group, _ in found}) == len(found)


def test_own_split_is_kept():
    clips = grouped(6, splits=dict(enumerate(["train", "valid", "test", "train", "train", "test"])))
    assert partition(clips) == [clip.split for clip in clips]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), train=st.integers(2, 30), test=st.integers(1, 30))
def test_own_split_without_validation_takes_it_from_train_by_group(seed, train, test):
    own = ["train"] * train + ["test"] * test
    clips = grouped(train + test, splits=dict(enumerate(own)))
    names = partition(clips, seed=seed)
    assert [split == "test" for split in names] == [clip.split == "test" for clip in clips]
    require_whole_groups(clips, names)
    assert {"train", "valid"} <= set(names)


def test_folds_give_one_to_test_and_the_one_before_it_to_validation():
    clips = grouped(8, folds=4)
    for test_fold, valid_fold in ((None, 2), (3, 2), (1, 0), (0, 3)):
        names = partition(clips, test_fold=test_fold)
        by_fold = {clip.fold: split for clip, split in zip(clips, names, strict=True)}
        test = 3 if test_fold is None else test_fold
        assert by_fold == {
            fold: "test" if fold == test else "valid" if fold == valid_fold else "train"
            for fold in range(4)
        }


def test_fold_that_is_not_there_is_refused():
    with pytest.raises(RequestError, match=r"there is no fold 9, expected one of \[0, 1, 2, 3\]"):
        partition(grouped(8, folds=4), test_fold=9)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.integers(3, 40), each=st.integers(1, 3))
def test_hash_splits_by_group_and_leaves_no_split_empty(seed, groups, each):
    clips = grouped(groups, each=each)
    names = partition(clips, seed=seed)
    require_whole_groups(clips, names)
    assert set(names) == {"train", "valid", "test"}


def test_hash_gives_about_a_tenth_to_each_split():
    counts = Counter(partition(grouped(1000)))
    assert counts["test"] == 200
    assert 150 <= counts["valid"] <= 200


def test_clips_without_a_group_are_groups_of_one():
    held = hold_out([Clip(str(number), "x.wav") for number in range(100)], fraction=0.1)
    assert sum(held) == 10


@settings(max_examples=60, deadline=None)
@given(groups=st.integers(2, 50), fraction=st.floats(0.001, 0.99), seed=st.integers(0, 10**6))
def test_hold_out_takes_whole_groups_and_at_least_one(groups, fraction, seed):
    clips = grouped(groups)
    held = hold_out(clips, fraction=fraction, seed=seed)
    assert sum(held) == 2 * max(1, round(fraction * groups))
    by_group = {clip.group: out for clip, out in zip(clips, held, strict=True)}
    assert [by_group[clip.group] for clip in clips] == held


@pytest.mark.parametrize(("groups", "fraction"), [(1, 0.5), (10, 0.0)])
def test_nothing_is_held_out_of_one_group_or_at_a_share_of_zero(groups, fraction):
    assert not any(hold_out(grouped(groups), fraction=fraction))


def test_hold_out_follows_from_the_seed_and_the_names_and_not_the_order():
    clips = grouped(50)
    first, back = (
        dict(zip([clip.id for clip in order], hold_out(order, fraction=0.2), strict=True))
        for order in (clips, clips[::-1])
    )
    assert first == back
    assert list(first.values()) != hold_out(clips, fraction=0.2, seed=1)


# --- pre-training ---


def pretraining(clips, parts=1, **changes):
    config = update(Config(), {"pretrain": {"n_cache_parts": parts, **changes}}).pretrain
    every = [np.arange(part, len(clips), parts) for part in range(parts)]
    return pretraining_splits(clips, config, parts=every, where="cache x")


def test_test_clips_neither_train_nor_validate_in_pretraining():
    found = pretraining(grouped(3, splits={0: "train", 1: "valid", 2: "test"}))
    parts = [part.tolist() for part in (found.train, found.valid, found.test)]
    assert parts == [[0, 1], [2, 3], [4, 5]]


def test_at_most_256_evenly_spread_clips_of_the_first_part_validate():
    found = pretraining(grouped(2000, folds=2), parts=2, validation_fold=1)
    assert len(found.valid) == VALIDATION_CLIPS
    # fold 1 is in clips 2 and 3 of four, the first part in even clips
    assert set(found.valid % 4) == {2}
    assert np.ptp(np.diff(found.valid)) <= 4
    assert [len(part) for part in found.slices] == [1000, 1000]


HELD = grouped(2, splits={0: "valid", 1: "test"})


@pytest.mark.parametrize(
    ("clips", "changes", "reason"),
    [
        (
            grouped(4, folds=2),
            {"validation_fold": 7},
            "validation_fold is 7, but no clip of cache x",
        ),
        (HELD, {}, r"no clip left to train on \(4 in all, 2 held out"),
        (grouped(1)[:1], {"parts": 2}, "pretrain.n_cache_parts is 2, but a part"),
    ],
)
def test_a_cache_without_clips_to_train_on_is_refused(clips, changes, reason):
    with pytest.raises(RequestError, match=reason):
        pretraining(clips, **changes)


def test_an_empty_split_is_refused_by_name():
    clips = grouped(2)
    splits = Splits.of(clips, ["train", "train", "test", "test"])
    with pytest.raises(
        RequestError, match=r"x has no valid clips .* 4 clips are of 2 groups \(group 0, group 1\)"
    ):
        splits.require_clips("cache x")
    assert splits.groups.tolist() == [clip.group for clip in clips]


def test_three_groups_are_three_folds_each_tested_once() -> None:
    made = clips([f"g{n % 3}" for n in range(30)])
    rounds = cross_validation(made)
    assert len(rounds) == 3
    tested = [name for names in rounds for clip, name in zip(made, names) if name == "test"]
    assert len(tested) == 30
    for names in rounds:
        splits = Splits.of(made, names).require_clips("x")
        of_split = [
            set(splits.groups[split]) for split in (splits.train, splits.valid, splits.test)
        ]
        assert [len(found) for found in of_split] == [1, 1, 1]


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_groups_are_named(count: int) -> None:
    made = clips([f"album {n % count}" for n in range(30)])
    for names in (cross_validation(made)[0], partition(made)):
        with pytest.raises(RequestError, match=rf"30 clips are of {count} groups \(album 0"):
            Splits.of(made, names).require_clips("cache x")


def test_two_folds_of_the_data_set_are_kept_and_validation_is_taken_from_the_other() -> None:
    made = [Clip(f"{n}", f"{n}.wav", group=f"g{n // 2}", fold=n // 20) for n in range(40)]
    rounds = cross_validation(made)
    assert len(rounds) == 2
    for test, names in enumerate(rounds):
        assert [clip.fold for clip, name in zip(made, names) if name == "test"] == [test] * 20
        valid = {clip.group for clip, name in zip(made, names) if name == "valid"}
        assert len(valid) == 1  # a tenth of ten groups
        assert valid.isdisjoint(clip.group for clip, name in zip(made, names) if name == "train")
    assert partition(made) == rounds[1]


def test_one_fold_is_tested_where_other_clips_have_none() -> None:
    made = [Clip(f"{n}", f"{n}.wav", fold=0 if n < 5 else None) for n in range(30)]
    (names,) = cross_validation(made)
    assert [n for n, name in enumerate(names) if name == "test"] == [0, 1, 2, 3, 4]
    assert set(names) == {"train", "valid", "test"}


def test_one_fold_of_all_clips_leaves_none_to_train_on_and_folds_are_made() -> None:
    assert len(cross_validation(clips([f"g{n}" for n in range(30)], fold=0))) == FOLDS


def test_a_class_of_test_clips_alone_is_named_with_its_clips() -> None:
    targets, names = ["a", "b", "b", "c", "c"], ["train", "valid", "test", "test", "test"]
    made = [Clip(f"{n}", "x", target=target) for n, target in enumerate(targets)]
    task = Task("one-of", ("a", "b", "c"))
    (note,) = untrained_note(task, made, [Splits.of(made, names)])
    assert "b (1 clip), c (2 clips)" in note
    assert not untrained_note(task, made, [Splits.of(made, ["train"] * 4 + ["test"])])


def test_a_tag_of_test_clips_alone_is_named_with_its_fold() -> None:
    made = [Clip(f"{n}", "x", target=["a", "b"] if n == 3 else ["a"]) for n in range(4)]
    rounds = [["test", "test", "valid", "train"], ["train", "valid", "test", "test"]]
    splits = [Splits.of(made, names) for names in rounds]
    (note,) = untrained_note(Task("many-of", ("a", "b")), made, splits)
    assert "b (1 clip of fold 2)" in note
    assert not untrained_note(Task("numbers", ("value",)), made, splits)
