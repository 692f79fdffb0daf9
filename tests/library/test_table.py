"""Files of tables: damage is seen, and a full disk is an error."""

import contextlib
import json
import os
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from patchifier.config import RequestError
from patchifier.library import stored, table
from patchifier.library.tags import NUMBERS, TAGS

COUNT, SIZE = 40, 16
TEXTS = ("track_id", *(tag for tag in TAGS if tag not in NUMBERS))
FACTS = {
    "format": 1,
    "model": "0123456789abcdef",
    "config": "x",
    "pooling": "mean",
    "layers": [-1],
    "window_s": None,
    "hop_s": None,
    "patches": False,
    "size": SIZE,
    "stretches": [],
}


def write(path: Path) -> Path:
    numbers = range(COUNT)
    columns = {
        "path": [f"/music/{number}.mp3" for number in numbers],
        "start_s": [0.0] * COUNT,
        "end_s": [10.0 + number for number in numbers],
        "size": [1000 + number for number in numbers],
        "mtime_ns": [7] * COUNT,
        "decoder": ["libsndfile" if number % 5 else None for number in numbers],
        "length_s": [0.5 + number for number in numbers],
        **{tag: [f"{tag} {number}" if number % 3 else None for number in numbers] for tag in TEXTS},
        **{tag: [number if number % 3 else None for number in numbers] for tag in NUMBERS},
        "level_db": [-float(number) if number % 7 else None for number in numbers],
    }
    vectors = np.random.default_rng(0).normal(size=(COUNT, SIZE)).astype(np.float32)
    rows = table.rows_table(columns, vectors, FACTS)
    table.write(path, iter([rows]), rows.schema)
    return path


def values(read: stored.EmbeddingTable) -> list:
    return [read.metadata, read.rows.to_pydict()]


READERS = {
    "table": lambda path: values(stored.read(path)),
    "index of clips": lambda path: table.index(path),
}


@pytest.mark.parametrize("name", READERS)
def test_one_wrong_bit_is_seen_or_changes_nothing(name, tmp_path):
    read, path = READERS[name], write(tmp_path / "x.parquet")
    whole, expected, chance, seen = path.read_bytes(), read(path), random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read(path) == expected
        except RequestError:
            seen += 1
    assert seen > 50


def test_a_table_without_checksums_is_read(tmp_path):
    path = write(tmp_path / "x.parquet")
    expected = values(stored.read(path))
    rows = pq.read_table(path)
    pq.write_table(rows.replace_schema_metadata({"patchifier": json.dumps(FACTS)}), path)
    assert values(stored.read(path)) == expected


def test_facts_that_were_changed_are_refused(tmp_path):
    path = write(tmp_path / "x.parquet")
    rows = pq.read_table(path)
    facts = json.loads(rows.schema.metadata[b"patchifier"])
    changed = json.dumps({**facts, "model": "another"})
    pq.write_table(rows.replace_schema_metadata({"patchifier": changed}), path)
    with pytest.raises(RequestError):
        stored.read(path)


def write_equal(path: Path, rows: int, groups: int, *, file: str, size: int = 64) -> Path:
    """Write rows that are all the same, which take next to no room."""
    facts = FACTS | {"size": size}
    wanted = table.schema(facts, size)
    columns = {name: [None] * rows for name in wanted.names} | {"path": [file] * rows}
    columns |= {name: [0] * rows for name in ("start_s", "end_s", "size", "mtime_ns")}
    same = table.rows_table(columns, np.ones((rows, size), np.float32), facts)
    with pq.ParquetWriter(path, wanted, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(same)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("equal", [(50_000, 30, "a.mp3"), (600, 1, "x" * 10**6)])
def test_rows_that_take_far_more_memory_than_their_file_are_refused(equal, name, tmp_path):
    rows, groups, file = equal
    path = write_equal(tmp_path / "x.parquet", rows, groups, file=file)
    with pytest.raises(RequestError, match="bytes of memory, the file has"):
        READERS[name](path)


def test_every_wrong_bit_of_a_footer_is_seen_or_changes_no_row(tmp_path):
    path = write(tmp_path / "x.parquet")
    whole, expected = path.read_bytes(), stored.read(path).rows
    footer = int.from_bytes(whole[-8:-4], "little")
    for number in range(len(whole) - 8 - footer, len(whole), 3):
        damaged = bytearray(whole)
        damaged[number] ^= 1 << number % 8
        path.write_bytes(damaged)
        with contextlib.suppress(RequestError):
            assert stored.read(path).rows == expected


def test_a_matrix_is_written_as_numpy_writes_it(tmp_path):
    parquet, out = write(tmp_path / "x.parquet"), tmp_path / "y.npy"
    table.export_npy(parquet, out)
    np.save(tmp_path / "numpy.npy", stored.read(parquet).vectors)
    assert out.read_bytes() == (tmp_path / "numpy.npy").read_bytes()


@pytest.mark.parametrize("name", ["y.json", "y.npy"])
def test_a_matrix_whose_facts_or_header_were_changed_is_refused(name, tmp_path):
    out = tmp_path / "y.npy"
    table.export_npy(write(tmp_path / "x.parquet"), out)
    assert stored.read(out).metadata["model"] == FACTS["model"]
    content = (tmp_path / name).read_bytes()
    damaged = content.replace(b"0123456789abcdef", b"another").replace(b"'descr'", b"'descr(")
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(RequestError, match=r"y\.npy"):
        stored.read(out)


def test_an_export_that_finds_no_room_is_an_error_and_no_crash(tmp_path, small_files):
    parquet, out = write(tmp_path / "x.parquet"), tmp_path / "y.npy"
    small_files(1_000)
    with pytest.raises(OSError):
        table.export_npy(parquet, out)
    assert not out.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("name", ["y.npy", "y.csv", "y.json"])
def test_a_pipe_beside_a_matrix_is_refused_and_not_waited_for(name, tmp_path):
    table.export_npy(write(tmp_path / "x.parquet"), tmp_path / "y.npy")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(RequestError, match="not a regular file"):
        stored.read(tmp_path / "y.npy")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "x.parquet")
    for name in READERS:
        with pytest.raises(RequestError):
            READERS[name](tmp_path / "x.parquet")
