"""Train, validation and test splits.

The data set's own split, its folds, or splits by group made here.

Clips of one group are always in one split. Every choice follows from the seed and the names of the
groups, not from the order of the clips.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from patchifier.config import PretrainConfig, RequestError
from patchifier.datasets import SPLITS, Clip
from patchifier.io import listed
from patchifier.seeding import generator
from patchifier.tasks import Task

FOLDS = 5  # of a cross-validation made here
SHOWN = 5  # groups or classes in a message
VALIDATION_CLIPS = 256  # at most: a validation must stay cheap beside an epoch of 16,000 clips


@dataclass(frozen=True)
class Splits:
    """Indices of the training, validation and test clips.

    Parameters
    ----------
    train, valid, test : ndarray of int
        `valid` may be empty: a protocol that needs a validation split then takes it from `train`,
        by group.
    groups : ndarray of str, shape (n,)
        Group of every clip; clips of one group are in one split.
    slices : tuple of ndarray of int
        The training clips of each part of a divided cache; used in pre-training alone.

    Examples
    --------
    >>> from patchifier import datasets
    >>> splits = Splits.partitioned(datasets.load("demo").clips)
    >>> len(splits.train), len(splits.valid), len(splits.test)
    (56, 28, 28)

    No group is in two splits:

    >>> set(splits.groups[splits.train]) & set(splits.groups[splits.test])
    set()
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    groups: np.ndarray
    slices: tuple[np.ndarray, ...] = ()

    @classmethod
    def of(cls, clips: Sequence[Clip], names: Sequence[str]) -> "Splits":
        """Indices for the name of each clip's split.

        Examples
        --------
        >>> from patchifier import datasets
        >>> clips = datasets.load("demo").clips
        >>> splits = Splits.of(clips, partition(clips))
        >>> len(splits.train), len(splits.valid), len(splits.test)
        (56, 28, 28)
        """
        train, valid, test = (np.flatnonzero(np.array(names) == split) for split in SPLITS)
        return cls(train, valid, test, np.array(groups_of(clips)))

    @classmethod
    def partitioned(cls, clips: Sequence[Clip], *, test_fold: int | None = None) -> "Splits":
        """Splits by :func:`partition`."""
        return cls.of(clips, partition(clips, test_fold=test_fold))

    def require_clips(self, where: str) -> "Splits":
        """Return the splits themselves, or refuse an empty split.

        `where` names the clips in the message.
        """
        empty = [split for split in SPLITS if not len(getattr(self, split))]
        if not empty:
            return self
        names, n = list(dict.fromkeys(self.groups.tolist())), len(self.groups)
        listed = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        raise RequestError(
            f"{where} has no {' and no '.join(empty)} clips after the split: its {n} clips are of "
            f"{len(names)} groups ({listed}). Expected at least one group to train, one to "
            "validate and one to test: add clips or, in a manifest, a column 'split', 'fold' or "
            "'group'."
        )


def groups_of(clips: Sequence[Clip]) -> list[str]:
    """Group of each clip; a clip without a group is a group of its own.

    Examples
    --------
    >>> from patchifier.datasets import Clip
    >>> groups_of([Clip("a", "1.ogg", group="album"), Clip("b", "2.ogg")])
    ['album', 'b']
    """
    return [clip.group or clip.id for clip in clips]


def folds_of(clips: Sequence[Clip]) -> list[int]:
    """Fold numbers of a data set that is tested by its folds; empty for others.

    Such a data set has no split, and clips outside of each fold to train on.
    """
    found = {clip.fold for clip in clips}
    folds = sorted(fold for fold in found if fold is not None)
    return folds if len(found) > 1 and not any(clip.split for clip in clips) else []


def partition(clips: Sequence[Clip], *, test_fold: int | None = None, seed: int = 0) -> list[str]:
    """Return the split of each clip: "train", "valid" or "test".

    The data set's own split is used if it has one; if that has no validation split, a tenth of the
    training groups is taken for it. Else one of its folds is tested (the last one by default) and
    the fold before validates; of one or two folds, a tenth of the other groups does. Else a tenth
    of the groups is tested and a tenth validates, by a hash of their names.

    Raises
    ------
    RequestError
        If there is no fold `test_fold`.

    Examples
    --------
    >>> from patchifier import datasets
    >>> from patchifier.datasets.splits import partition
    >>> names = partition(datasets.load("demo").clips, test_fold=0)
    >>> names.count("train"), names.count("valid"), names.count("test")
    (56, 28, 28)
    """
    if any(clip.split for clip in clips):
        names = [clip.split or "train" for clip in clips]
        return names if "valid" in names else _take_validation(clips, names, seed=seed)
    folds = folds_of(clips)
    if folds:
        test = folds[-1] if test_fold is None else test_fold
        if test not in folds:
            raise RequestError(f"there is no fold {test}, expected one of {folds}.")
        valid = folds[folds.index(test) - 1] if len(folds) > 2 else test
        names = _name_folds([clip.fold for clip in clips], test, valid)
        return names if len(folds) > 2 else _take_validation(clips, names, seed=seed)
    out = hold_out(clips, fraction=0.1, seed=seed)
    return _take_validation(clips, ["test" if held else "train" for held in out], seed=seed + 1)


def cross_validation(clips: Sequence[Clip]) -> list[list[str]]:
    """Return the split of each clip, once for each test fold.

    The data set's own split counts as one fold. Else each fold of the data set is tested once and
    the fold before validates. Else the folds are made here, by group (:func:`grouped_folds`): five,
    or one for each group where there are fewer groups.

    Examples
    --------
    >>> from patchifier import datasets
    >>> len(cross_validation(datasets.load("demo").clips))
    4
    """
    if any(clip.split for clip in clips):
        return [partition(clips)]
    folds = folds_of(clips)
    if folds:
        return [partition(clips, test_fold=fold) for fold in folds]
    count = min(FOLDS, len(set(groups_of(clips))))
    made = grouped_folds(clips, count=count)
    return [_name_folds(made, test, (test - 1) % count) for test in range(count)]


def untrained_note(task: Task, clips: Sequence[Clip], splits: Sequence[Splits]) -> list[str]:
    """Name classes and tags of test clips that no training clip of the same fold has, in a note.

    Those whose clips are all of one group are named with what to do. No note if there are none.
    """
    if task.kind not in ("one-of", "many-of"):
        return []
    found, names = [], dict[str, None]()
    for number, split in enumerate(splits, 1):
        trained, tested = (
            Counter(name for index in part for name in _names_of(clips[index]))
            for part in (split.train, split.test)
        )
        fold = f" of fold {number}" if len(splits) > 1 else ""
        for name in sorted(tested.keys() - trained.keys()):
            names[name] = None
            found.append(f"{name} ({tested[name]} clip{'s' * (tested[name] > 1)}{fold})")
    if not found:
        return []
    note = "Tested, but in no training clip, so that nothing can predict them: "
    note += f"{listed(found, SHOWN)}."

    def groups_with(name: str) -> set[str]:
        return {clip.group for clip in clips if clip.group and name in _names_of(clip)}

    if alone := [name for name in names if len(groups_with(name)) == 1]:
        note += (
            f" All clips of a label are of one group ({listed(alone, SHOWN)}), and a group is "
            "never on both sides of a split: each of these clips counts as wrong, whatever the "
            "encoder. Add clips of a second group, or leave the label out."
        )
    return [note]


def ungrouped_note(clips: Sequence[Clip]) -> list[str]:
    """Say that clips without groups may have relatives on the other side of a split made here.

    No note where the data set has its own split or folds, or every clip has a group.
    """
    alone = sum(not clip.group for clip in clips)
    if not alone or any(clip.split for clip in clips) or folds_of(clips):
        return []
    which = "No clip has a group" if alone == len(clips) else f"{alone} clips have no group"
    return [
        f"{which}: each such file stands alone, and songs of one artist or album may be on both "
        "sides of a split, which makes scores too high. A column 'group' in the list of clips "
        "keeps them together."
    ]


def _names_of(clip: Clip) -> Sequence[str]:
    return [clip.target] if isinstance(clip.target, str) else clip.target or []


def _name_folds(folds: Sequence[int | None], test: int, valid: int) -> list[str]:
    names: dict[int | None, str] = {valid: "valid", test: "test"}
    return [names.get(fold, "train") for fold in folds]


def _take_validation(clips: Sequence[Clip], names: Sequence[str], *, seed: int) -> list[str]:
    """Move a tenth of the training groups, at least one of two, to the validation split."""
    train = [clip for clip, name in zip(clips, names, strict=True) if name == "train"]
    held = iter(hold_out(train, fraction=0.1, seed=seed))
    return ["valid" if name == "train" and next(held) else name for name in names]


def hold_out(clips: Sequence[Clip], *, fraction: float, seed: int = 0) -> list[bool]:
    """Choose a share of the groups by a hash of their names.

    At least one group, if the share is above 0 and there are two.
    """
    groups = groups_of(clips)
    ranked = sorted(
        set(groups), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()
    )
    count = max(1, round(fraction * len(ranked))) if fraction > 0 and len(ranked) > 1 else 0
    chosen = set(ranked[:count])
    return [name in chosen for name in groups]


def grouped_folds(clips: Sequence[Clip], *, count: int) -> list[int]:
    """Return the fold of each clip.

    Folds of about the same size, in which every class is spread as evenly as its groups allow.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups_of(clips)):
        members.setdefault(group, []).append(index)

    def order(group: str) -> tuple[str, bytes]:
        target = clips[members[group][0]].target
        return (target if isinstance(target, str) else "", hashlib.sha256(group.encode()).digest())

    sizes, folds = [0] * count, [0] * len(clips)
    for rank, group in enumerate(sorted(members, key=order)):
        lightest = min(range(count), key=lambda fold: (sizes[fold], (fold - rank) % count))
        sizes[lightest] += len(members[group])
        for index in members[group]:
            folds[index] = lightest
    return folds


def inner_folds(splits: Splits, *, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide the training clips, in whole groups, into folds of about the same size.

    Returns for each fold the clips to fit on and those to score; at most one fold for each group.
    Training clips that are all of one group are refused.
    """
    groups = splits.groups[splits.train]
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < 2:
        raise RequestError(
            "the split has no validation clips and its training clips are of one group: expected "
            "at least two groups to choose a strength."
        )
    loads = np.zeros(min(count, len(names)), int)
    fold_of = {}
    for index in np.argsort(-sizes, kind="stable"):
        fold_of[names[index]] = int(loads.argmin())
        loads[loads.argmin()] += sizes[index]
    folds = np.array([fold_of[group] for group in groups])
    return [
        (splits.train[folds != fold], splits.train[folds == fold]) for fold in range(len(loads))
    ]


def with_validation(splits: Splits, seed: int) -> Splits:
    """Take a tenth of the training clips, in whole groups, for validation if there is none."""
    if len(splits.valid):
        return splits
    groups = splits.groups[splits.train]
    names = np.unique(groups)
    if len(names) < 2:
        raise RequestError(
            "the split has no validation clips and its training clips are of one group: expected "
            "at least two groups to take validation from."
        )
    order = generator(seed, "validation", 0, scope="probe/").permutation(names)
    sizes = np.array([(groups == name).sum() for name in order])
    count = min(int(np.searchsorted(sizes.cumsum(), len(groups) / 10)) + 1, len(names) - 1)
    held = np.isin(groups, order[:count])
    return replace(splits, train=splits.train[~held], valid=splits.train[held])


def pretraining_splits(
    clips: Sequence[Clip], config: PretrainConfig, *, parts: Sequence[np.ndarray], where: str
) -> Splits:
    """Choose the clips that train and validate in pre-training; clips of a test split do neither.

    `parts` holds the clips of each part of the cache. The first part alone validates, since the
    first process may have no other. `where` names the cache in messages.
    """
    held = _validates(clips, config, where)
    names = [
        "test" if clip.split == "test" else "valid" if out else "train"
        for clip, out in zip(clips, held, strict=True)
    ]
    splits = Splits.of(clips, names)
    if not len(splits.train):
        raise RequestError(
            f"{where} has no clip left to train on ({len(clips)} in all, {len(splits.valid)} held "
            "out)."
        )
    slices = tuple(np.intersect1d(splits.train, part) for part in parts)
    if not all(map(len, slices)):
        raise RequestError(
            f"pretrain.n_cache_parts is {config.n_cache_parts}, but a part of {where} has no clip "
            "to train on: choose a smaller number."
        )
    valid = evenly(np.intersect1d(splits.valid, parts[0]), VALIDATION_CLIPS)
    return replace(splits, valid=valid, slices=slices)


def _validates(clips: Sequence[Clip], config: PretrainConfig, where: str) -> list[bool]:
    if any(clip.split for clip in clips):
        return [clip.split == "valid" for clip in clips]
    if config.validation_fold is None:
        return hold_out(clips, fraction=config.validation_fraction, seed=config.seed)
    held = [clip.fold == config.validation_fold for clip in clips]
    if not any(held):
        raise RequestError(
            f"pretrain.validation_fold is {config.validation_fold}, but no clip of {where} is in "
            "that fold: "
            "with '--pretrain.validation_fold null' a share of the clips is held out instead."
        )
    return held


def evenly(indices: np.ndarray, count: int) -> np.ndarray:
    """Take at most `count` of the indices, evenly spread: the same ones every time."""
    return indices[np.linspace(0, len(indices) - 1, min(len(indices), count)).astype(int)]
