"""Parts of a table that a job writes; worker processes do without this module and pyarrow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from patchifier.datasets import Clip
from patchifier.library import table
from patchifier.library.sources import key
from patchifier.library.worker import ClipRows


def write_part(
    path: Path, found: Sequence[tuple[Clip, ClipRows | str]], facts: dict[str, Any]
) -> None:
    """Write the rows of some clips as a table with these facts."""
    good = [(clip, rows) for clip, rows in found if isinstance(rows, ClipRows)]
    stretches = table.stretches_of([(key(clip), len(rows.spans_s)) for clip, rows in good])
    facts = {**facts, "stretches": stretches}
    table.write(path, iter([_to_table(good, facts)]), table.schema(facts, facts["size"]))


def _to_table(found: Sequence[tuple[Clip, ClipRows]], facts: dict[str, Any]) -> pa.Table:
    """Rows of clips, in their order."""
    columns: dict[str, list[Any]] = {
        name: [] for name in table.schema(facts, facts["size"]).names if name != "embedding"
    }
    for clip, rows in found:
        decoding = {"decoder": rows.how.decoder, "length_s": rows.how.length_s}
        same = {"path": clip.path, **decoding, **rows.file.columns()}
        for (start_s, end_s), level_db in zip(rows.spans_s, rows.levels_db, strict=True):
            spans = {"start_s": clip.start_s + start_s, "end_s": clip.start_s + end_s}
            for name, value in (same | spans | {"level_db": level_db}).items():
                columns[name].append(value)
    vectors = [rows.vectors for _, rows in found] or [np.zeros((0, facts["size"]), np.float32)]
    return table.rows_table(columns, np.concatenate(vectors), facts)
