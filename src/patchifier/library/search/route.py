"""Lists in playing order: a path between files in small steps, and a walk to what is near."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from patchifier.heads import unit
from patchifier.library.search.metric import SLACK
from patchifier.library.search.ranking import Caps, Ranked, Target, keys
from patchifier.library.search.rows import Filter, SearchResult

CHOICES = 30  # files that are tried for each place of a path
NEARLY_PARALLEL = 1e-6

Nearest = Callable[[Sequence[np.ndarray], int, Caps, Set[str]], list[list[Ranked]]]
"""Files nearest to each of some directions: how many, within which limits, without which paths."""


@dataclass(frozen=True, eq=False)
class Place:
    """A place of a path: its direction (E,), and the file that has it, if one is prescribed."""

    direction: np.ndarray
    file: Ranked | None = None


def places(stops: Sequence[Place], count: int) -> list[Place]:
    """Places of a path of `count` files through all stops, at equal angles as near as can be."""
    angles = [
        float(np.arccos(np.clip(one.direction @ two.direction, -1, 1)))
        for one, two in itertools.pairwise(stops)
    ]
    between = _shares(angles, count - len(stops))
    line: list[Place] = [stops[0]]
    for one, two, number in zip(stops, stops[1:], between):
        for step in range(1, number + 1):
            line.append(Place(_between(one.direction, two.direction, step / (number + 1))))
        line.append(two)
    return line


def _shares(angles: Sequence[float], count: int) -> list[int]:
    """Divide `count` places among stretches, the next one always to that of the widest steps."""
    shares = [0] * len(angles)
    for _ in range(count):
        widest = max(range(len(angles)), key=lambda leg: angles[leg] / (shares[leg] + 1))
        shares[widest] += 1
    return shares


def _between(one: np.ndarray, two: np.ndarray, share: float) -> np.ndarray:
    """Direction (E,) on the great circle from one to the other."""
    angle = np.arccos(np.clip(one @ two, -1, 1))
    if np.sin(angle) < NEARLY_PARALLEL:  # the same, or opposite: no one circle leads there
        return one if share < 0.5 else two
    return (np.sin((1 - share) * angle) * one + np.sin(share * angle) * two) / np.sin(angle)


def choose(line: Sequence[Place], nearest: Nearest, caps: Caps) -> list[Ranked]:
    """Choose a file for each place so that the steps are small; fewer where few files take part.

    A file is a candidate for one place alone, that which it is nearest to: so none comes twice, and
    the path does not turn back. The squares of (1 - cosine) of all steps are added up, and the
    least sum is found by dynamic programming. Where an artist or an album then has more files than
    the limit, those nearest to their places keep these, and a path is chosen again around them.
    """
    line = list(line)
    for place in line:
        if place.file is not None:
            caps.add(place.file.row)
    while True:
        layers = _layers(line, nearest, caps)
        path = _least([layer for layer in layers if layer])
        numbers = [number for number, layer in enumerate(layers) if layer]
        new = {
            number: file
            for number, file in zip(numbers, path, strict=True)
            if line[number].file is None
        }
        pinned = _pinned(new, caps)
        if not pinned:
            return path
        for number, file in pinned.items():
            line[number] = Place(line[number].direction, file)
            caps.add(file.row)


def _pinned(new: Mapping[int, Ranked], caps: Caps) -> dict[int, Ranked]:
    """Files that fill an artist or an album of which a path has too many; none if all is well."""
    counted, allowed, surplus = caps.copy(), dict[int, Ranked](), list[Ranked]()
    for number, file in sorted(new.items(), key=lambda item: -item[1].rank):
        if counted.full(file.row):
            surplus.append(file)
        else:
            counted.add(file.row)
            allowed[number] = file
    crowded = {key for file in surplus for key in keys(file.row)}
    return {number: file for number, file in allowed.items() if crowded & set(keys(file.row))}


def _layers(line: Sequence[Place], nearest: Nearest, caps: Caps) -> list[list[Ranked]]:
    """Candidates for each place, none for two of them; none where no file is left."""
    free = [number for number, place in enumerate(line) if place.file is None]
    if not free:
        return [[place.file] for place in line if place.file is not None]
    fixed = {place.file.row.path for place in line if place.file is not None}
    own: dict[str, tuple[int, Ranked]] = {}
    around = nearest([line[number].direction for number in free], CHOICES, caps, fixed)
    for number, files in zip(free, around, strict=True):
        for file in files:
            before = own.get(file.row.path)
            if before is None or file.rank > before[1].rank:
                own[file.row.path] = (number, file)
    layers = [[] if place.file is None else [place.file] for place in line]
    for number, file in own.values():
        layers[number].append(file)
    taken = fixed | set(own)
    for number in free:
        if not layers[number]:
            (others,) = nearest([line[number].direction], 1, caps, taken)
            _fill(layers, number, line[number].direction, others)
            taken |= {file.row.path for file in layers[number]}
    return layers


def _fill(
    layers: list[list[Ranked]], number: int, direction: np.ndarray, others: list[Ranked]
) -> None:
    """Give a place without candidates the nearest of some files and of places with several."""
    spare = [file for layer in layers if len(layer) > 1 for file in layer]
    best = max([*others, *spare], key=lambda file: float(file.direction @ direction), default=None)
    if best is not None:
        for layer in layers:
            layer[:] = [file for file in layer if file is not best]
        layers[number] = [best]


def _least(layers: Sequence[Sequence[Ranked]]) -> list[Ranked]:
    """One file of each layer, with the least sum of squares of (1 - cosine) between neighbours."""
    if not layers:
        return []
    costs, back = np.zeros(len(layers[0])), list[np.ndarray]()
    for one, two in itertools.pairwise(layers):
        first, second = (np.stack([file.direction for file in layer]) for layer in (one, two))
        sums = costs[:, None] + (1 - first @ second.T) ** 2
        back.append(sums.argmin(axis=0))
        costs = sums.min(axis=0)
    at = int(costs.argmin())
    path = [layers[-1][at]]
    for number in range(len(layers) - 1, 0, -1):
        at = int(back[number - 1][at])
        path.append(layers[number - 1][at])
    return path[::-1]


def drifted(target: Target, walk: Sequence[Ranked], drift: float) -> Target:
    """What comes next in a walk: between its target and its last file."""
    here = walk[-1].direction if walk else target.direction
    mixed = (1 - drift) * target.direction + drift * here
    direction = unit(mixed) if np.linalg.norm(mixed) > SLACK else here
    return Target(target.metric, direction, direction)


def without_artists(where: Filter, files: Sequence[Ranked]) -> Filter:
    """Conditions without the artists of some files."""
    artists = [str(file.row.tags["artist"]) for file in files if "artist" in file.row.tags]
    return dataclasses.replace(where, without_artists=(*where.without_artists, *artists))


def in_order(files: Sequence[Ranked], before: np.ndarray | None = None) -> list[SearchResult]:
    """Rows whose score is the cosine with the file before.

    That of the first is the cosine with `before` (E,), or 1.
    """
    rows = []
    for file in files:
        score = 1.0 if before is None else min(1.0, float(before @ file.direction))
        rows.append(dataclasses.replace(file.row, score=score))
        before = file.direction
    return rows
