"""The training of heads, on vectors made here: nothing is rendered."""

import bands
import head_measures
import notes
import numpy as np
import pytest
import train_heads
from head_clips import Clip, Recipe


def test_presets_and_kits_of_folds_and_sides_are_apart():
    folds = [bands.presets("train", fold) for fold in range(bands.FOLDS)]
    valid = bands.presets("valid", 0)
    for family, programs in notes.presets("train").items():
        parts = [fold[family] for fold in folds]
        assert all(parts), family
        assert sorted(program for part in parts for program in part) == sorted(programs)
        assert not set(valid[family]) & set(programs)
    kits = [kit for side in bands.KITS.values() for fold in side for kit in fold]
    assert len(kits) == len(set(kits))
    assert len(bands.KITS["train"]) == bands.FOLDS


def test_lines_have_presets_of_one_fold_and_one_to_four_families():
    for sound, row in bands.draw_lines()[::97]:
        pool = bands.presets(row["split"], row["fold"])
        allowed = {program for family in row["families"] for program in pool[family]}
        assert set(sound.programs.values()) <= allowed
        assert 1 <= len(row["families"]) <= 4


def made(kind, n=240):
    """Clips whose answer is in two numbers of their vector."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((n, 12))
    high, loud = vectors[:, 0] > 0, vectors[:, 1] > 0.5
    if kind == "one-of":
        targets = ["high" if each else "low" for each in high]
        recipe = Recipe("one-of", ("high", "low"), None, False)
    else:
        targets = [["high"] * int(a) + ["loud"] * int(b) for a, b in zip(high, loud)]
        recipe = Recipe("many-of", ("high", "loud"), None, False)
    clips = [
        Clip(str(i), "train", str(i), i % 3, target, "made") for i, target in enumerate(targets)
    ]
    return recipe, clips, vectors


@pytest.mark.parametrize("kind", ["one-of", "many-of"])
def test_a_head_learns_doubts_what_is_far_and_has_the_same_bits_twice(kind):
    recipe, clips, vectors = made(kind)
    others = np.random.default_rng(1).standard_normal((40, 12)) * 0.3 - 2.0
    heads = []
    for _ in range(2):
        head, facts, least = train_heads.train(recipe, clips, vectors)
        heads.append(train_heads.doubting(head, vectors, others, least))
    head, again = heads
    assert head.weight.tobytes() == again.weight.tobytes()
    assert head.bias.tobytes() == again.bias.tobytes()
    assert head.known.music.tobytes() == again.known.music.tobytes()
    assert head.known.mean.tobytes() == again.known.mean.tobytes()
    assert max(facts["held_out"].values()) > 0.9
    found = head_measures.measure(head, recipe, clips, vectors)
    assert found["all"]["low"] > head_measures.chance(recipe, clips)["value"]
    assert not head.sure(others).any()
    assert 0.95 < head.known.near(vectors).mean() < 1


def test_the_least_probability_is_the_first_at_which_enough_is_right():
    answers = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    best = np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.55, 0.55])
    probabilities = np.stack([best, 1 - best], axis=1)  # the two at 0.55 are wrong
    assert train_heads.surest(answers, probabilities) == 0.6


def test_likelihood_is_of_what_is_true():
    recipe = Recipe("one-of", ("a", "b"), None, False)
    sure = np.array([[0.9, 0.1], [0.2, 0.8]])
    expected = (np.log(0.9) + np.log(0.8)) / 2
    found = head_measures.likelihood(recipe, np.array([0, 1]), sure)
    assert found == pytest.approx(expected)
    many = Recipe("many-of", ("a", "b"), None, False)
    answers = np.array([[1.0, 0.0], [0.0, 1.0]])
    expected = np.mean(np.log([0.9, 0.9, 0.8, 0.8]))
    assert head_measures.likelihood(many, answers, sure) == pytest.approx(expected)
