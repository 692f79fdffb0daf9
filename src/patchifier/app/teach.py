"""Train a head on the stored vectors of a few songs of each label, and say how well it predicts."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.extras import need
from patchifier.heads import Head, require_names, unit, unstandardised
from patchifier.statistics import bootstrap, wilson

MOST_LABELS = 10
REGULARISATION_C = 0.1  # of the logistic regression, on standardised vectors
ENOUGH, FOLDS = 8, 5  # songs of each label that allow cross-validation, and its folds
SAME = 1e-6  # largest distance of two vectors of length 1 that are of one song
FEW_GROUPS = 10  # fewer are too few for a bootstrap over groups
N_DOUBTFUL = 12
GROUPING = ("artist", "album")  # tags whose songs resemble each other
EXTRA = "app"  # its packages bring scikit-learn, without torch
MEASURED = ("accuracy", "interval", "n", "method", "enough", "majority")  # what a head keeps


@dataclass(frozen=True)
class Taught:
    """A trained head and its cross-validation.

    Attributes
    ----------
    head : Head
        Trained on all labelled songs.
    accuracy : float
        Share of labelled songs whose label was predicted by a head that was trained without them.
    interval : tuple of float
        95 % interval of the accuracy: Wilson's; with groups at least as wide as the bootstrap over
        groups. Fewer than ten groups count as one song each, or fewer where their sizes differ
        (Kish's effective number), for so few groups say little.
    n : int
        Number of labelled songs.
    method : str
        "5-fold cross-validation" or "leave one out"; with groups "... by group" or "leave one group
        out".
    enough : bool
        Whether there are eight songs of every label, and songs of two groups.
    copies : int
        Number of labelled songs with the vector of another labelled song: such songs are one song,
        and held out together.
    note : str
        What to keep in mind; empty for nothing.
    confusion : ndarray, shape (C, C), int
        Songs by label (row) and prediction (column).
    probabilities : ndarray, shape (n of the library, C), float32
        Of every song of the library.
    doubtful : tuple of int
        Rows of the library without a label whose two most probable labels are nearest, first the
        most doubtful.
    """

    head: Head
    accuracy: float
    interval: tuple[float, float]
    n: int
    method: str
    enough: bool
    copies: int
    note: str
    confusion: np.ndarray
    probabilities: np.ndarray
    doubtful: tuple[int, ...]

    @property
    def majority(self) -> tuple[str, float]:
        """The label with most songs, and the accuracy of always saying it."""
        counts = self.confusion.sum(1)
        return self.head.names[int(counts.argmax())], float(counts.max() / self.n)

    @property
    def never_right(self) -> tuple[str, ...]:
        """Labels of which no song was predicted right."""
        return tuple(
            name for name, right in zip(self.head.names, self.confusion.diagonal()) if not right
        )

    def to_dict(self) -> dict[str, Any]:
        """What is known about the head, without what concerns single songs."""
        label, share = self.majority
        return {
            "names": list(self.head.names),
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "n": self.n,
            "method": self.method,
            "enough": self.enough,
            "copies": self.copies,
            "note": self.note,
            "majority": {"label": label, "accuracy": share},
            "never_right": list(self.never_right),
            "confusion": self.confusion.tolist(),
        }


def teach(
    vectors: np.ndarray,
    labels: Mapping[str, Sequence[int]],
    *,
    identity: str,
    model: str,
    groups: Sequence[str] | None = None,
    most: int = MOST_LABELS,
) -> Taught:
    """Train a head on labelled rows of a library.

    Parameters
    ----------
    vectors : ndarray, shape (n, E)
        One row for each song of the library. They are scaled to length 1, and their mean and
        deviation standardise them.
    labels : mapping of str to sequence of int
        Rows with each label; a song has one label.
    identity, model : str
        Of the model that made the vectors.
    groups : sequence of str, length n
        Artist, album or track of each song of the library. Songs of a group are held out together;
        a song whose group is empty is alone. By default every song is alone. Songs with the same
        vector are held out together, too.
    most : int
        Largest number of labels.

    Returns
    -------
    Taught

    Raises
    ------
    RequestError
        For fewer than two or more than `most` labels, a label with fewer than two songs, a song
        with two labels, or labelled songs of a single group or with a single vector.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> vectors = rng.normal(size=(40, 4)) + 3 * (np.arange(40) < 20)[:, None]
    >>> labels = {"high": range(10), "low": range(20, 30)}
    >>> taught = teach(vectors, labels, identity="x", model="patchifier-base")
    >>> taught.method, taught.accuracy > 0.8, taught.head.names
    ('5-fold cross-validation', True, ('high', 'low'))
    """
    names, rows, targets = _examples(labels, len(vectors), most)
    vectors = unit(vectors)
    clustering = need("sklearn.cluster", EXTRA).DBSCAN(SAME, min_samples=1)
    same = clustering.fit_predict(vectors[rows])  # number of the song of each labelled row
    copies = int((np.bincount(same)[same] > 1).sum())
    parts = None
    if groups is not None or copies:
        parts = _parts([groups[row] if groups else "" for row in rows], same)
    mean, deviation = vectors.mean(0), vectors.std(0)
    scale = 1 / np.maximum(deviation, 1e-6 * max(1e-12, float(deviation.max())))
    examples = (vectors[rows] - mean) * scale  # (labelled, E)
    predicted, method, enough = _trial(examples, targets, parts)
    right = predicted == targets
    weight, bias = _fit(examples, targets, len(names))
    head = Head(names, *unstandardised(weight, bias, mean, scale), identity, model)
    probabilities = head.probabilities(vectors)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (targets, predicted), 1)
    taught = Taught(
        head,
        float(right.mean()),
        _interval(right, parts),
        len(targets),
        method,
        enough,
        copies,
        _note(names, targets, parts, copies),
        confusion,
        probabilities,
        _doubtful(probabilities, rows),
    )
    known = taught.to_dict()
    measured = {name: known[name] for name in MEASURED}
    facts = {"songs": {name: len(labels[name]) for name in names}, "accuracy": measured}
    return replace(taught, head=replace(head, facts=facts))


def _examples(
    labels: Mapping[str, Sequence[int]], n_songs: int, most: int
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names of the labels, rows of the labelled songs, and the number of each one's label."""
    names = tuple(labels)
    if len(names) > 1:
        require_names(names)
    if not 2 <= len(names) <= most:
        raise RequestError(
            f"there are {len(names)} labels, expected 2 to {most}: add a label, or remove some."
        )
    for name in names:
        if len(labels[name]) < 2:
            raise RequestError(
                f"the label {name!r} has {len(labels[name])} songs, expected at least 2: add one."
            )
    rows = np.concatenate([np.asarray(list(labels[name]), int) for name in names])
    if len(np.unique(rows)) < len(rows):
        raise RequestError("a song has two labels, or one twice: keep one.")
    if rows.min() < 0 or rows.max() >= n_songs:
        raise RequestError("a labelled song is not in this library: remove it from its label.")
    return names, rows, np.repeat(np.arange(len(names)), [len(labels[name]) for name in names])


def _parts(groups: Sequence[str], same: np.ndarray) -> np.ndarray:
    """Number of what is held out with each labelled song: its group, and the same songs."""
    numbers: dict[object, int] = {}
    parts = np.array(
        [numbers.setdefault(one or row, len(numbers)) for row, one in enumerate(groups)]
    )
    for song in np.flatnonzero(np.bincount(same) > 1):
        joined = np.unique(parts[same == song])
        parts[np.isin(parts, joined)] = joined[0]
    if (parts != parts[0]).any():
        return parts
    what = f"are of the group {groups[0]!r}"
    if (same == same[0]).all():
        what = "have the same vector"
    elif len(set(groups)) > 1 or not groups[0]:
        what = "are of one group, for songs with the same vector join their groups"
    raise RequestError(
        f"all {len(groups)} labelled songs {what}, expected at least 2 groups: one is held out "
        "while the others teach."
    )


def _trial(
    examples: np.ndarray, targets: np.ndarray, parts: np.ndarray | None
) -> tuple[np.ndarray, str, bool]:
    """Cross-validate: in folds where there are enough songs and groups, else one by one.

    Predicted labels of the examples, each by a head that was trained without it; the method, and
    whether there are enough songs.
    """
    model_selection = need("sklearn.model_selection", EXTRA)
    enough = bool(np.bincount(targets).min() >= ENOUGH)
    options: dict[str, Any] = {"shuffle": True, "random_state": 0}
    splitter: Any
    if parts is None:
        name = f"{FOLDS}-fold cross-validation" if enough else "leave one out"
        splitter = model_selection.LeaveOneOut()
        if enough:
            splitter = model_selection.StratifiedKFold(FOLDS, **options)
    else:
        n_groups = int(_groups_of_each(targets, parts).min())
        in_folds = enough and n_groups >= FOLDS
        enough = enough and n_groups >= 2
        name = f"{FOLDS}-fold cross-validation by group" if in_folds else "leave one group out"
        splitter = model_selection.LeaveOneGroupOut()
        if in_folds:
            splitter = model_selection.StratifiedGroupKFold(FOLDS, **options)
    predicted = np.zeros_like(targets)
    for train, test in splitter.split(examples, targets, parts):
        known, numbers = np.unique(targets[train], return_inverse=True)  # a group may take a label
        best = np.zeros(len(test), int)
        if len(known) > 1:
            weight, bias = _fit(examples[train], numbers, len(known))
            best = (examples[test] @ weight.T + bias).argmax(1)
        predicted[test] = known[best]
    return predicted, name, enough


def _groups_of_each(targets: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Number of groups in which each label occurs: (C,)."""
    return np.array([len(np.unique(parts[targets == label])) for label in np.unique(targets)])


def _interval(right: np.ndarray, parts: np.ndarray | None) -> tuple[float, float]:
    """95 % interval of the share of songs whose label was predicted.

    Songs that stand alone are independent trials (Wilson). With groups, the interval holds both the
    one by bootstrap over groups and Wilson's, so that it is never empty. Wilson's takes the songs
    as trials. Where the bootstrap says too little, because there are few groups or because all
    songs (or none) are right, it takes Kish's effective number of groups: their number, or less
    where sizes differ.
    """
    share, n = float(right.mean()), float(len(right))
    if parts is None:
        return wilson(share * n, n)
    sizes = np.unique(parts, return_counts=True)[1]
    if len(sizes) < FEW_GROUPS or share in (0, 1):
        n = float(sizes.sum() ** 2 / np.square(sizes).sum())
    by_group = bootstrap(parts.astype(str).tolist(), lambda songs: float(right[songs].mean()))
    low, high = wilson(share * n, n)
    return min(low, by_group[0]), max(high, by_group[1])


def _fit(examples: np.ndarray, targets: np.ndarray, n_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, E) and bias (C,) of a multinomial logistic regression."""
    linear = need("sklearn.linear_model", EXTRA)
    # labels weigh alike, however many songs each has
    model = linear.LogisticRegression(C=REGULARISATION_C, class_weight="balanced", max_iter=1000)
    model.fit(examples, targets)
    if n_labels == 2:  # one row of weights: the logit of the second label
        half_weight, half_bias = model.coef_[0] / 2, model.intercept_[0] / 2
        return np.stack([-half_weight, half_weight]), np.array([-half_bias, half_bias])
    return model.coef_, model.intercept_


def _note(names: Sequence[str], targets: np.ndarray, parts: np.ndarray | None, copies: int) -> str:
    """What to keep in mind: labels of too few songs or of one group alone, and copies."""
    counts = np.bincount(targets, minlength=len(names))
    small = ", ".join(f"{name} {count}" for name, count in zip(names, counts) if count < ENOUGH)
    notes = []
    if small:
        notes.append(
            f"Too few songs to say how well this works ({small}): give at least {ENOUGH} of each "
            "label."
        )
    if parts is not None:
        n_groups = _groups_of_each(targets, parts)
        alone = ", ".join(name for name, count in zip(names, n_groups) if count == 1)
        if alone:
            notes.append(
                f"All songs of a label are of one group ({alone}): while it is held out nothing "
                "teaches that label, so its songs count as wrong. Add songs of a second group."
            )
    if copies:
        notes.append(
            f"{copies} songs have the same vector as another labelled song. Such songs count as "
            "one song in several files, and are held out together."
        )
    return " ".join(notes)


def shared(
    labels: Mapping[str, Sequence[int]], tags: Mapping[str, Sequence[Any]]
) -> dict[str, tuple[int, str]]:
    """Count labelled songs that share a tag with another labelled song.

    Where such songs are not one group, one is tested while the other teaches, and the accuracy may
    come out too high.

    Parameters
    ----------
    labels : mapping of str to sequence of int
        As of :func:`teach`.
    tags : mapping of str to sequence
        Such as "artist" and "album": the value of each song of the library; None for none.

    Returns
    -------
    dict of str to (int, str)
        Of each tag that is shared: the number of such songs, and the value that most have.

    Examples
    --------
    >>> shared({"calm": [0, 1], "loud": [2]}, {"artist": ["A", "B", "A"], "album": [None] * 3})
    {'artist': (2, 'A')}
    """
    rows = [row for some in labels.values() for row in some]
    found = {}
    for tag, values in tags.items():
        counts = Counter(values[row] for row in rows if values[row])
        if several := {value: count for value, count in counts.items() if count > 1}:
            found[tag] = sum(several.values()), str(max(several, key=several.__getitem__))
    return found


def _doubtful(probabilities: np.ndarray, labelled: np.ndarray) -> tuple[int, ...]:
    """Rows without a label, by the difference of their two largest probabilities."""
    two = np.sort(probabilities, axis=1)[:, -2:]
    margin = two[:, 1] - two[:, 0]
    margin[labelled] = math.inf
    order = np.argsort(margin, kind="stable")[:N_DOUBTFUL]
    return tuple(int(row) for row in order if math.isfinite(margin[row]))
