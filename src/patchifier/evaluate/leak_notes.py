"""Notes on leaks: for each trained encoder, whether clips of its training data are tested."""

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from patchifier import weights
from patchifier.cache import Cache
from patchifier.config import RequestError, digest
from patchifier.datasets import demo
from patchifier.evaluate import leaks
from patchifier.evaluate.encoders import Encoder
from patchifier.io import ProgressOf, silent_of

MOST_NAMED = 5  # clips of a test
UNKNOWN = "so leaks into the test could not be looked for"


def leak_notes(
    encoders: Sequence[Encoder],
    data: Cache,
    tested: Sequence[int],
    folder: Path,
    *,
    progress: ProgressOf = silent_of,
) -> list[str]:
    """Name the tested clips that are part of an encoder's training data: a note for each encoder.

    One without ``trained_on`` gets none. A note says so where the training data is not available.
    `folder` gets ``leaks-NAME.csv`` for each training cache.
    """
    ids = {data.clips[index].id for index in tested}
    n_tested = len(ids)

    @functools.cache
    def search(training: Path) -> str:  # once for all encoders with the same training data
        shown = progress(f"leaks from {training.name}")
        try:
            found = leaks.leaks(Cache(training), data, progress=shown)
        except RequestError as error:
            reason = f"could not be searched for clips of this test: {error}"
            return f"its training data, {training}, {reason}"
        found = tuple(leak for leak in found if leak.second in ids)
        file = f"leaks-{training.name}.csv"
        leaks.save(found, folder / file)
        if not found:
            return f"no clip of its training data, {training}, is in this test."
        named = listed(sorted({leak.second for leak in found}), n_tested, file)
        return f"clips of its training data, {training}, are in this test: {named}."

    return [
        f"{encoder.name}: {_note(encoder.trained_on, data, search)}"
        for encoder in encoders
        if encoder.trained_on is not None
    ]


def listed(names: Sequence[str], n_tested: int, file: str) -> str:
    """Name some clips of a test, or say how many they are; `file` has them all.

    Examples
    --------
    >>> listed("abcdefg", 7, "leaks.csv"), listed("abcdefg", 9, "leaks.csv")
    ('all 7 test clips', 'a, b, c, d, e and 2 more of 9 test clips (leaks.csv)')
    >>> listed("ab", 2, "leaks.csv")
    'a, b'
    """
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    if len(names) == n_tested:
        return f"all {n_tested} test clips"
    rest = f"{len(names) - MOST_NAMED} more of {n_tested} test clips"
    return f"{', '.join(names[:MOST_NAMED])} and {rest} ({file})"


def _note(trained_on: Path, data: Cache, search: Callable[[Path], str]) -> str:
    if trained_on == weights.ROOT.resolve() and demo.are_bundled(data.clips):
        return demo.RELATED
    if trained_on == weights.ROOT.resolve():
        return f"comes without its training data, {UNKNOWN}; its card lists the data."
    places = [trained_on / "run.json", trained_on / "pretrain" / "run.json"]  # the latter: the demo
    facts: dict[str, Any] = next(
        (json.loads(place.read_text(encoding="utf-8")) for place in places if place.exists()), {}
    )
    training = None
    with contextlib.suppress(KeyError, RequestError):
        found = Cache(facts["cache"], partial=True)
        same = facts.get("music") in (None, digest(list(found.keys)))  # clips as then
        training = found if same else None
    if training is None:
        note = f"its training data is not available, {UNKNOWN} ('patchifier leaks')."
    elif training.path.resolve() == data.path.resolve():
        note = "pre-trained, without labels, on clips of this very cache."
    else:
        note = search(training.path)
    if "init" not in facts:
        return note
    return f"{note} Started from {facts['init']}: {_note(Path(facts['init']).parent, data, search)}"
