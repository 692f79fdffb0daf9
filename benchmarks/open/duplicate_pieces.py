"""Find the same piece under two names: editions, copies and near-equal settings, by their notes.

A piece is the set of its figures. A figure is seven consecutive steps of one part: intervals, and lengths relative to the note before, so neither key
nor note values matter. Two settings of one hymn that share a melody alone are two pieces.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from groups import SIDES

STEPS = 7  # in a figure
FEWEST = 12  # shared figures: many pieces share scales and repeated notes
SHARE = 0.5  # of the figures of the one that has fewer


def figures(notes: Sequence[Sequence[Any]]) -> frozenset[tuple[Any, ...]]:
    """Return the figures of all parts of rows [start, length, pitch, part]."""
    parts: dict[int, list[Sequence[Any]]] = defaultdict(list)
    for note in notes:
        parts[note[3]].append(note)
    found: set[tuple[Any, ...]] = set()
    for part in parts.values():
        steps = [
            (b[2] - a[2], round((b[0] - a[0]) / max(0.01, a[1]), 1))
            for a, b in itertools.pairwise(part)
        ]
        found.update(tuple(steps[start : start + STEPS]) for start in range(len(steps) - STEPS + 1))
    return frozenset(found)


def duplicates(pieces: Sequence[dict[str, Any]]) -> Iterator[tuple[int, int]]:
    """Yield pairs of indices of pieces that are the same music, the smaller first; movements of one group do not count."""
    found = [figures(piece["notes"]) for piece in pieces]
    where: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, each in enumerate(found):
        for figure in each:
            where[figure].append(number)
    shared: Counter[tuple[int, int]] = Counter()
    for numbers in where.values():
        shared.update(
            (one, other) for place, other in enumerate(numbers) for one in numbers[:place]
        )
    for (one, other), count in sorted(shared.items()):
        enough = max(FEWEST, SHARE * min(len(found[one]), len(found[other])))
        if count >= enough and pieces[one]["group"] != pieces[other]["group"]:
            yield one, other


def without_duplicates(
    dealt: Sequence[tuple[dict[str, Any], str]],
) -> list[tuple[dict[str, Any], str]]:
    """Return pieces and sides without validation and test pieces that are used under another name: in training, or in another test."""
    ranked = sorted(dealt, key=lambda pair: SIDES.index(pair[1]))
    left_out: set[int] = set()
    for one, other in duplicates([piece for piece, _ in ranked]):
        if ranked[other][1] != "train" and one not in left_out:
            left_out.add(other)
    gone = {ranked[number][0]["id"] for number in left_out}
    return [pair for pair in dealt if pair[0]["id"] not in gone]
