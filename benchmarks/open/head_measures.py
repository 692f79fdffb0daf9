"""How right a head is: scores with intervals, what it is sure of, and what it doubts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from head_clips import Clip, Recipe, matrix
from sklearn.metrics import average_precision_score

from patchifier.heads import Head
from patchifier.library.predict import TAG_FROM
from patchifier.statistics import Score, estimate, wilson


def quality(recipe: Recipe, answers: np.ndarray, probabilities: np.ndarray) -> float:
    """Accuracy (mean over labels), or mean average precision."""
    if recipe.kind == "one-of":
        right = probabilities.argmax(1) == answers
        return float(np.mean([right[answers == label].mean() for label in set(answers.tolist())]))
    used = answers.sum(0) > 0
    return float(average_precision_score(answers[:, used], probabilities[:, used]))


def likelihood(recipe: Recipe, answers: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean logarithm of the probability of what is true: it chooses heads whose probabilities can be believed."""
    sure = np.clip(probabilities, 1e-6, 1 - 1e-6)
    if recipe.kind == "one-of":
        return float(np.log(sure[np.arange(len(answers)), answers]).mean())
    return float(np.where(answers > 0, np.log(sure), np.log(1 - sure)).mean())


def measure(
    head: Head, recipe: Recipe, clips: Sequence[Clip], vectors: np.ndarray
) -> dict[str, Any]:
    """Scores with intervals on validation clips: of "one-of" heads by kind of clip too."""
    found, answers = head.probabilities(vectors), matrix(recipe, clips)
    kinds = np.array([clip.kind for clip in clips])
    facts: dict[str, Any] = {}
    apart = dict.fromkeys(kinds.tolist()) if recipe.kind == "one-of" else ()
    for kind in (*apart, "all"):
        here = np.flatnonzero((kinds == kind) | (kind == "all"))
        groups = [clips[index].group for index in here]
        facts[kind] = interval(recipe, groups, answers[here], found[here])
        facts[kind]["clips"], facts[kind]["groups"] = len(here), len(set(groups))
    if head.known:
        facts["sure"] = measure_sure(head, recipe, answers, vectors)
    return facts


def interval(
    recipe: Recipe, groups: Sequence[str], answers: np.ndarray, found: np.ndarray
) -> dict[str, Any]:
    """Accuracy, or mean average precision, by bootstrap over groups."""
    if recipe.kind == "one-of":
        right = (found.argmax(1) == answers).astype(float)
        return facts_of(estimate("accuracy", groups, lambda rows: float(right[rows].mean())))

    def mean_precision(rows: np.ndarray) -> float:
        return quality(recipe, answers[rows], found[rows])

    return facts_of(estimate("mAP", groups, mean_precision))


def facts_of(score: Score) -> dict[str, Any]:
    values = {"value": score.value, "low": score.low, "high": score.high}
    return {"metric": score.metric} | {name: round(value, 4) for name, value in values.items()}


def measure_sure(
    head: Head, recipe: Recipe, answers: np.ndarray, vectors: np.ndarray
) -> dict[str, Any]:
    """Share that is answered, and how right those answers are."""
    sure, found = head.sure(vectors), head.probabilities(vectors)
    facts: dict[str, Any] = {"answered": round(float(sure.mean()), 4)}
    if recipe.kind == "one-of":
        right = found.argmax(1)[sure] == answers[sure]
        return facts | {"right": round(float(right.mean()), 4)}
    given = found[sure] >= TAG_FROM
    return facts | {"labels": by_label(recipe, answers[sure] > 0, given, found[sure])}


def by_label(
    recipe: Recipe, there: np.ndarray, given: np.ndarray, found: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Of each label: clips that have it, average precision, and precision and recall as given."""
    facts = {}
    for number, name in enumerate(recipe.names):
        has, says = there[:, number], given[:, number]
        hits, said, clips = int((has & says).sum()), int(says.sum()), int(has.sum())
        facts[name] = {
            "clips": clips,
            "average_precision": round(float(average_precision_score(has, found[:, number])), 4),
            "said": said,
            "precision": round(hits / said, 4) if said else None,
            "precision_interval": [round(x, 4) for x in wilson(hits, said)] if said else None,
            "recall": round(hits / clips, 4),
        }
    return facts


def refusals(head: Head, kinds: Sequence[str], vectors: np.ndarray) -> dict[str, Any]:
    """Share of sounds of each kind that a head is not sure about."""
    doubted, kinds = ~head.sure(vectors), np.array(kinds)
    return {
        kind: {"doubted": round(float(doubted[kinds == kind].mean()), 4), "n": int((kinds == kind).sum())}
        for kind in dict.fromkeys(kinds.tolist())
    }  # fmt: skip


def chance(recipe: Recipe, clips: Sequence[Clip]) -> dict[str, float]:
    """Score of the most frequent answer of the evaluated clips, or of the labels' shares."""
    answers = matrix(recipe, clips)
    if recipe.kind == "one-of":
        return {"value": round(float(np.bincount(answers).max() / len(answers)), 4)}
    return {"value": round(float(answers.mean(0).mean()), 4)}


def of_recordings(head: Head, vectors: np.ndarray) -> dict[str, Any]:
    """What a head says of recordings, whose answers nobody has written down."""
    sure, found = head.sure(vectors), head.probabilities(vectors)
    given = np.eye(len(head.names))[found.argmax(1)] if head.kind == "one-of" else found >= TAG_FROM
    shares = given[sure].mean(0) if sure.any() else np.zeros(len(head.names))
    said = {name: round(float(share), 3) for name, share in zip(head.names, shares)}
    return {"clips": len(vectors), "answered": round(float(sure.mean()), 4), "said": said}
