"""Vectors and what a search gives for them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchifier.library.stored import FACTS, TYPES


def random_vectors(count, size=16, *, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def on_circle(*degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def cosine(*degrees):
    return pytest.approx(np.cos(np.radians(degrees)), abs=1e-6)


def paths(found):
    return [row.path for row in found]


def write_table(
    folder,
    vectors,
    paths,
    name="t.parquet",
    *,
    starts=None,
    identity="model-a",
    slices=None,
    **tags,
):
    """Write a table of vectors, and give its path."""
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
    pq.write_table(table, folder / name)
    return folder / name
