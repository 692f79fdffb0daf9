"""Tables of chosen vectors, opened as a table and as an index."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchifier.library import search
from patchifier.library.stored import FACTS, TYPES


@pytest.fixture
def write(tmp_path):
    """Write a table of vectors, and give its path."""

    def run(
        vectors, paths, name="t.parquet", *, starts=None, identity="model-a", slices=None, **tags
    ):
        vectors = np.asarray(vectors, np.float32)
        count, size = vectors.shape
        columns = {name: pa.nulls(count, kind) for name, kind in TYPES.items() if kind is not None}
        columns["path"] = pa.array([str(path) for path in paths], pa.string())
        columns["start_s"] = pa.array(np.zeros(count) if starts is None else starts, pa.float64())
        columns["end_s"] = pa.array(np.full(count, 2.0) if starts is None else np.add(starts, 2.0))
        columns["mtime_ns"] = pa.array([0] * count, pa.int64())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), size)
        columns |= {name: pa.array(values, TYPES[name]) for name, values in tags.items()}
        facts = {"format": 1, "model": identity, "size": size, "window_s": None, "patches": False}
        facts |= {"slices": slices} if slices is not None else {}
        table = pa.table(columns).replace_schema_metadata({FACTS: json.dumps(facts)})
        pq.write_table(table, tmp_path / name)
        return tmp_path / name

    return run


@pytest.fixture
def place(tmp_path):
    return tmp_path / "an index"


@pytest.fixture
def build(place):
    """Make an index of a table."""
    return lambda table, **options: search.Index.build(table, place, **options)


@pytest.fixture(params=["table", "index"])
def opened(request, build):
    """Open a Parquet file in both ways."""
    return search.Table.open if request.param == "table" else build
