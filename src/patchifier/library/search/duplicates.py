"""Files with the same recording: the vector proposes pairs, the fingerprint confirms them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from patchifier.io import Progress, Steps, silent
from patchifier.library.prints import CONFIG, fingerprints
from patchifier.library.search.index import is_uri
from patchifier.library.search.rows import Filter, SearchResult
from patchifier.library.search.store import EVERYTHING, Pair, VectorStore, require_threshold
from patchifier.matching import SIMILAR, Match, Print, PrintIndex, agreement

Kind = Literal[
    "same recording",
    "same recording edited or re-encoded",
    "probably another version",
    "not checked",
]
SAME: Kind = "same recording"
EDITED: Kind = "same recording edited or re-encoded"
VERSION: Kind = "probably another version"
UNCHECKED: Kind = "not checked"
# chosen on half of the tracks of benchmarks/duplicate_copies.py, which reports the other half
CANDIDATE = 0.4  # least cosine of a pair that is compared
NEIGHBOURS = 5  # pairs that each file proposes
VERSION_COSINE = 0.9  # from here on, a pair that the fingerprint does not confirm is listed
AGREEMENT = 0.9  # share of bits that agree from beginning to end of the same recording
OFFSET_S, LENGTHS_S = 0.1, 0.5  # of the same recording: encoders add a little silence


@dataclass(frozen=True)
class Duplicate:
    """Two files that may be the same music.

    Attributes
    ----------
    first, second : SearchResult
        Their nearest sections.
    score : float
        Cosine of these.
    kind : str
        "same recording": from beginning to end, perhaps at another level or through a good codec.
        "same recording edited or re-encoded": they share a stretch of at least 3 s of the same
        sound. "probably another version": they do not, but their vectors are nearly the same. "not
        checked": a file is missing or cannot be read.
    agreement : float or None
        Share of reliable bits of the fingerprint that agree in the best 4.5 s: 0.5 is chance, 1 the
        same sound. None if there was nothing to compare.
    offset_s : float or None
        Time t of the first is time t + offset_s of the second.
    durations_s : tuple of float or None
        Of both files.
    reason : str
        Why a pair was not checked.

    Examples
    --------
    >>> import shutil
    >>> from patchifier.library import embed_library, search
    >>> _ = shutil.copy("music/one.ogg", "copy.ogg")
    >>> _ = embed_library(["music/one.ogg", "copy.ogg"], "copies.parquet", workers=1)
    >>> (found,) = duplicates(search.load("copies.parquet"), workers=1)
    >>> found.kind, found.agreement, found.offset_s
    ('same recording', 1.0, 0.0)
    """

    first: SearchResult
    second: SearchResult
    score: float
    kind: Kind
    agreement: float | None = None
    offset_s: float | None = None
    durations_s: tuple[float, float] | None = None
    reason: str = ""


def duplicates(
    store: VectorStore,
    threshold: float = CANDIDATE,
    *,
    where: Filter = EVERYTHING,
    workers: int | None = None,
    progress: Progress = silent,
) -> tuple[Duplicate, ...]:
    """Find files with the same recording.

    Each file is compared with the five nearest to it, by the audio fingerprint of
    :mod:`patchifier.evaluate.leaks`. For that the files are decoded, each once: their fingerprints
    are kept beside the table, in NAME.prints.

    Parameters
    ----------
    store : VectorStore
        A table, or an index.
    threshold : float
        The least cosine of a pair that is compared, above 0 and at most 1. A higher one decodes
        fewer files and finds fewer changed copies.
    where : Filter
        Which rows take part.
    workers : int, optional
        Processes that decode; one for each core by default.
    progress : callable
        Called with how much is done, of how much, and a note.

    Returns
    -------
    tuple of Duplicate
        Same recordings first, then edited ones, other versions, and pairs that were not checked;
        the highest cosine first. Pairs that the fingerprint does not confirm are left out below a
        cosine of 0.9.

    Raises
    ------
    RequestError
        For a threshold out of range.

    Notes
    -----
    Rates on copies of the bundled clips are in docs/search.md. Two pieces that share a loop or a
    sample of 3 s and more are called edited. A change of speed of more than about 3 % is not found.

    Examples
    --------
    >>> from patchifier.library import search
    >>> duplicates(search.load("music.parquet"), workers=1)
    ()
    """
    require_threshold(threshold, CANDIDATE)
    steps = Steps(progress, 3)
    pairs = store.candidate_pairs(
        threshold, NEIGHBOURS, where=where, progress=steps.next("pairs of vectors")
    )
    paths = list(dict.fromkeys(row.path for pair in pairs for row in (pair.first, pair.second)))
    beside = not is_uri(store.name) and Path(store.name).exists()
    cache = Path(f"{store.name}.prints") if beside else None
    prints = fingerprints(paths, cache=cache, workers=workers, progress=steps.next("files"))
    found = classify(pairs, prints, progress=steps.next("comparisons"))
    steps.finish()
    order = {kind: number for number, kind in enumerate((SAME, EDITED, VERSION, UNCHECKED))}
    return tuple(
        sorted(
            found, key=lambda one: (order[one.kind], -one.score, one.first.path, one.second.path)
        )
    )


def not_checked(pair: Pair, reason: str = "") -> Duplicate:
    """A pair of files of which only the vectors were compared."""
    return _duplicate(pair, UNCHECKED, reason=reason)


def classify(
    pairs: Sequence[Pair], prints: Mapping[str, Print | str], *, progress: Progress = silent
) -> list[Duplicate]:
    """Class of each pair of files; those that are not the same are left out."""
    by_first = defaultdict[str, list[Pair]](list)
    found = list[Duplicate]()
    for pair in pairs:
        wrong = [one for one in _prints_of(pair, prints) if isinstance(one, str)]
        if wrong:
            found.append(not_checked(pair, wrong[0]))
        else:
            by_first[pair.first.path].append(pair)
    for number, some in enumerate(by_first.values(), 1):
        found += _compared(some, prints)
        progress(number, len(by_first), "")
    return found


def _prints_of(pair: Pair, prints: Mapping[str, Print | str]) -> list[Print | str]:
    return [prints[row.path] for row in (pair.first, pair.second)]


def _compared(pairs: Sequence[Pair], prints: Mapping[str, Print | str]) -> list[Duplicate]:
    """Compare one file with those that it is paired with."""
    query, *_ = _prints_of(pairs[0], prints)
    others = [_prints_of(pair, prints)[1] for pair in pairs]
    assert isinstance(query, Print)
    bits = [other.bits for other in others if isinstance(other, Print)]
    matches = PrintIndex(bits, CONFIG).best(query)
    found = []
    for number, pair in enumerate(pairs):
        match = matches.get(number)
        if match is not None and match.score >= SIMILAR:
            found.append(_confirmed(pair, match, query.bits, bits[number]))
        elif pair.score >= VERSION_COSINE:
            found.append(_duplicate(pair, VERSION, agreement=match.score if match else None))
    return found


def _confirmed(pair: Pair, match: Match, one: np.ndarray, two: np.ndarray) -> Duplicate:
    """Tell whole copies from edited ones."""
    frame_s = CONFIG.frame_s
    whole = (
        abs(match.offset) * frame_s <= OFFSET_S
        and abs(len(one) - len(two)) * frame_s <= LENGTHS_S
        and agreement(one, two, match.offset) >= AGREEMENT
    )
    return _duplicate(
        pair,
        SAME if whole else EDITED,
        agreement=round(match.score, 4),
        offset_s=round(match.offset * frame_s, 3),
        durations_s=(round(len(one) * frame_s, 2), round(len(two) * frame_s, 2)),
    )


def _duplicate(pair: Pair, kind: Kind, **facts: Any) -> Duplicate:
    return Duplicate(pair.first, pair.second, pair.score, kind, **facts)
