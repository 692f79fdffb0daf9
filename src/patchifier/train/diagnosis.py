"""What a training step that failed was trained on, in words."""

from collections.abc import Iterable, Sequence

import numpy as np

from patchifier.cache import Cache
from patchifier.config import RequestError

MOST_NAMED = 40  # clips of a batch that are listed
BLOCK = 100_000  # frames that are looked at together


def describe_batch(
    data: Cache, rows: Sequence[int] | np.ndarray, *, before: Iterable[int] = ()
) -> str:
    """Name the clips of a batch, and those whose log-mels are not finite, with a remedy.

    `rows` are indices in the cache; `before` are clips of other batches on which the step depends.
    """
    rows = list(dict.fromkeys(int(row) for row in rows))
    listed = ", ".join(_named(data, row) for row in rows[:MOST_NAMED]) + (
        f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    )
    words = f"Clips of this step, with their rows in {data.path}: {listed}."
    bad = [
        row
        for row in dict.fromkeys([*rows, *(int(row) for row in before)])
        if not is_finite(data, row)
    ]
    if not bad:
        return f"{words} Their log-mels are finite."
    files = ", ".join(str(path.with_suffix(".*")) for path in data.shard_files(np.array(bad)))
    return (
        f"{words} Log-mels with values that are not finite: "
        f"{', '.join(_named(data, row) for row in bad)}: delete {files} and run 'patchifier "
        "prepare' again, or leave these clips out."
    )


def _named(data: Cache, row: int) -> str:
    return f"{data.clips[row].id} (row {row})"


def is_finite(data: Cache, row: int) -> bool:
    """Whether all values of a clip's log-mel are finite.

    True of one in a shard that this machine does not have.
    """
    try:
        starts = range(0, int(data.frames[row]), BLOCK)
        return all(
            bool(np.isfinite(data.log_mel(row, start, start + BLOCK)).all()) for start in starts
        )
    except RequestError:
        return True
