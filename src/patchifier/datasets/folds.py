"""Sides of clips for a judgement in which every clip counts that can: the data set's split, its folds, or folds made here."""

import hashlib
from collections.abc import Sequence

import numpy as np

from patchifier.datasets import Clip, partition

FOLDS = 5  # made here where a data set has neither a split nor folds


def sides_in_turn(clips: Sequence[Clip]) -> list[list[str]]:
    """Side of each clip ("train", "valid", "test"), once for each round of testing.

    One round with the data set's own split; else one for each of its folds, the fold before validating; else grouped five-fold
    cross-validation, every class spread over the folds as evenly as its groups allow.
    """
    if any(clip.split for clip in clips):
        return [partition(clips)]
    folds = sorted({clip.fold for clip in clips if clip.fold is not None})
    if len(folds) >= 3:
        return [partition(clips, test_fold=fold) for fold in folds]
    numbers = grouped_folds(clips, count=FOLDS)
    return [
        ["test" if number == fold else "valid" if number == (fold - 1) % FOLDS else "train" for number in numbers]
        for fold in sorted(set(numbers))
    ]  # fmt: skip


def grouped_folds(clips: Sequence[Clip], *, count: int) -> list[int]:
    """Deal groups to folds: those of a class in turn, in an order that hashes decide; a group is never divided."""
    members: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        members.setdefault(clip.group or clip.id, []).append(index)

    def order(group: str) -> tuple[str, bytes]:
        target = clips[members[group][0]].target
        return (target if isinstance(target, str) else "", hashlib.sha256(group.encode()).digest())

    sizes, folds = np.zeros(count, int), [0] * len(clips)
    for rank, group in enumerate(sorted(members, key=order)):
        lightest = min((sizes[fold], (fold - rank) % count, fold) for fold in range(count))[-1]
        sizes[lightest] += len(members[group])
        for index in members[group]:
            folds[index] = lightest
    return folds
