import html
import http.server
import itertools
import json
import re
import subprocess
import sys
import threading
import urllib.parse
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchifier.config import RequestError
from patchifier.library import search
from patchifier.library.search import Filter
from patchifier.library.stored import FACTS, TYPES

QUOTES = "O'Brien; DROP TABLE embeddings; -- \\' \"x\" %_"
UNICODE = "Sigur Rós 日本 🎵"


def write(path, vectors, paths, *, starts=None, identity="model-a", mtimes=None, **tags):
    vectors = np.asarray(vectors, np.float32)
    count, size = vectors.shape
    columns = {name: pa.nulls(count, kind) for name, kind in TYPES.items() if kind is not None}
    columns["path"] = pa.array([str(path) for path in paths], pa.string())
    columns["start_s"] = pa.array(np.zeros(count) if starts is None else starts, pa.float64())
    columns["end_s"] = pa.array(np.full(count, 2.0) if starts is None else np.add(starts, 2.0))
    columns["mtime_ns"] = pa.array([0] * count if mtimes is None else mtimes, pa.int64())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), size)
    columns |= {name: pa.array(values, pa.string()) for name, values in tags.items()}
    facts = {"format": 1, "model": identity, "size": size, "window_s": None, "patches": False}
    pq.write_table(pa.table(columns).replace_schema_metadata({FACTS: json.dumps(facts)}), path)
    return path


def random_vectors(count, size=16, *, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def on_circle(*degrees):
    return np.array([[np.cos(np.radians(angle)), np.sin(np.radians(angle))] for angle in degrees])


@pytest.fixture(params=["table", "index"])
def opened(request, tmp_path):
    """Open a Parquet file in both ways."""
    if request.param == "table":
        return search.Table.open
    return lambda path: search.Index.build(path, tmp_path / "an index")


def paths(found):
    return [row.path for row in found]


CIRCLE = (0, 10, 25, 45, 180)


@pytest.fixture
def circle(tmp_path):
    """Five files at known angles, of two artists."""
    artists = [UNICODE, QUOTES, UNICODE, QUOTES, None]
    return write(
        tmp_path / "circle.parquet",
        3 * on_circle(*CIRCLE),
        [f"/music/{a}.mp3" for a in CIRCLE],
        artist=artists,
        genre=["x"] * 5,
    )


def test_known_neighbours_in_order_with_their_cosines(opened, circle):
    found = opened(circle).similar("/music/10.mp3", 3)
    assert paths(found) == ["/music/0.mp3", "/music/25.mp3", "/music/45.mp3"]
    assert [row.score for row in found] == pytest.approx(np.cos(np.radians([10, 15, 35])), abs=1e-6)
    assert asdict(found[0]) == {
        "path": "/music/0.mp3",
        "start_s": 0.0,
        "end_s": 2.0,
        "score": found[0].score,
        "tags": {"artist": UNICODE, "genre": "x"},
    }


def test_a_vector_from_outside_finds_the_file_itself(opened, circle):
    found = opened(circle).similar(on_circle(44)[0].astype(np.float32), 1, identity="model-a")
    assert paths(found) == ["/music/45.mp3"]
    assert found[0].score == pytest.approx(np.cos(np.radians(1)), abs=1e-6)


def test_k_larger_than_the_table_gives_all_others(opened, circle):
    assert len(opened(circle).similar("/music/0.mp3", 1000)) == 4


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Filter(artist=QUOTES), {10, 45}),
        (Filter(artist=UNICODE), {0, 25}),
        (Filter(artist=UNICODE.lower()), set()),
        (Filter(path_prefix="/music/1"), {10, 180}),
        (Filter(path_prefix="/music/%"), set()),
        (Filter(path="/music/25.mp3"), {25}),
        (Filter(genre="x", without_artists=(QUOTES,)), {0, 25, 180}),
        (Filter(without_paths=("/music/0.mp3", "it's")), {10, 25, 45, 180}),
        (Filter(album=""), set()),
        (Filter(), set(CIRCLE)),
    ],
)
def test_filters(opened, circle, where, expected):
    searchable = opened(circle)
    assert set(paths(searchable.filter(where))) == {f"/music/{angle}.mp3" for angle in expected}
    assert set(paths(searchable.similar(on_circle(1)[0], 10, where=where))) == {
        f"/music/{angle}.mp3" for angle in expected
    }


def test_of_a_file_the_nearest_stretch_is_given(opened, tmp_path):
    # "long" has 30 stretches nearer than anything of "short": it must not crowd "short" out
    angles = [*np.linspace(1, 5, 30), 90]
    table = write(
        tmp_path / "t.parquet",
        on_circle(*angles),
        ["long"] * 30 + ["short"],
        starts=[*range(30), 0],
    )
    found = opened(table).similar(on_circle(0)[0], 2)
    assert [(row.path, row.start_s) for row in found] == [("long", 0.0), ("short", 0.0)]


def test_a_file_of_several_stretches_is_looked_for_by_their_mean_direction(opened, tmp_path):
    table = write(
        tmp_path / "t.parquet", on_circle(0, 40, 21, 39), ["a", "a", "b", "c"], starts=[0, 1, 0, 0]
    )
    found = opened(table).similar("a", 2)
    assert paths(found) == ["b", "c"]
    assert found[0].score == pytest.approx(np.cos(np.radians(1)), abs=1e-6)


def test_numpy_and_lancedb_give_the_same(tmp_path):
    table = write(
        tmp_path / "t.parquet",
        random_vectors(900),
        [f"{i // 3}" for i in range(900)],
        starts=np.arange(900) % 3,
    )
    exact, index = search.Table.open(table), search.Index.build(table, tmp_path / "i")
    for query in [*random_vectors(20, seed=1), "0", "7", "299"]:
        a, b = exact.similar(query, 15), index.similar(query, 15, exact=True)
        assert [(row.path, row.start_s) for row in a] == [(row.path, row.start_s) for row in b]
        assert [row.score for row in a] == pytest.approx([row.score for row in b], abs=1e-6)
    assert paths(exact.playlist("5", 20, artist_gap=2)) == paths(
        index.playlist("5", 20, artist_gap=2)
    )


def test_approximate_search_finds_nine_of_ten(tmp_path):
    generator = np.random.default_rng(3)
    mixing = generator.standard_normal((12, 64)) / np.arange(1, 13)[:, None]
    vectors = generator.standard_normal((5000, 12)) @ mixing + 0.05 * generator.standard_normal(
        (5000, 64)
    )
    table = write(tmp_path / "t.parquet", vectors, range(5000))
    index = search.Index.build(table, tmp_path / "i", ann_rows=5000)
    assert index.approximate
    queries = vectors[::100] + 0.05 * generator.standard_normal((50, 64))
    recall = np.mean(
        [
            len({*paths(index.similar(q, 10))} & {*paths(index.similar(q, 10, exact=True))}) / 10
            for q in queries
        ]
    )
    assert recall >= 0.9
    added = write(tmp_path / "new.parquet", [-vectors[0]], ["new"])
    index.add(added)
    assert paths(index.similar(-vectors[0], 1)) == ["new"]
    assert paths(index.similar(vectors[0], 3, where=Filter(path="17"))) == ["17"]


def test_approximate_search_is_not_misled_by_duplicates(tmp_path):
    # a third of the library is one and the same vector, another third stands there twice
    vectors = random_vectors(3000, 32)
    vectors[1000:2000] = vectors[0]
    vectors[2000:2500] = vectors[2500:]
    index = search.Index.build(
        write(tmp_path / "t.parquet", vectors, range(3000)), tmp_path / "i", ann_rows=1000
    )
    assert index.approximate
    for query in (vectors[0] + 0.1 * vectors[1], vectors[1], vectors[2200], "0", "2200", "7"):
        a, b = index.similar(query, 20), index.similar(query, 20, exact=True)
        assert [row.score for row in a] == pytest.approx([row.score for row in b], abs=1e-6)
    assert index.similar("2200", 1)[0].path == "2700"


def test_nothing_that_a_filter_leaves_is_missed_by_approximate_search(tmp_path, monkeypatch):
    monkeypatch.setattr("patchifier.library.search.index.PARTITION_ROWS", 50)
    monkeypatch.setattr("patchifier.library.search.index.PROBES", 1)
    vectors = random_vectors(2000, 16)
    table = write(
        tmp_path / "t.parquet",
        vectors,
        range(2000),
        genre=["rare" if row % 200 == 7 else "x" for row in range(2000)],
    )
    index = search.Index.build(table, tmp_path / "i", ann_rows=1000)
    assert paths(index.similar(vectors[3], 10, where=Filter(genre="rare"))) == paths(
        search.Table.open(table).similar(vectors[3], 10, where=Filter(genre="rare"))
    )
    assert len(index.similar(vectors[3], 1999)) == 1999  # more than one part holds


def test_the_approximate_index_is_learned_anew_when_four_times_as_many_rows_have_come(
    tmp_path, monkeypatch
):
    import lancedb

    made, create = [], lancedb.table.LanceTable.create_index
    monkeypatch.setattr(
        lancedb.table.LanceTable,
        "create_index",
        lambda self, column, **options: (made.append(column), create(self, column, **options))[1],
    )
    vectors = random_vectors(1100)
    index = search.Index.build(
        write(tmp_path / "a.parquet", vectors[:300], range(300)), tmp_path / "i", ann_rows=256
    )
    assert made == ["path", "embedding"]
    index.add(write(tmp_path / "b.parquet", vectors[300:900], range(300, 900)))
    assert made == ["path", "embedding"]
    index.update(write(tmp_path / "c.parquet", vectors, range(1100)))
    assert made == ["path", "embedding", "embedding"]
    assert [paths(index.similar(vectors[row], 1)) for row in (0, 500, 1099)] == [
        ["0"],
        ["500"],
        ["1099"],
    ]


def test_an_index_of_one_row(tmp_path):
    index = search.Index.build(
        write(tmp_path / "t.parquet", on_circle(7), ["only"]), tmp_path / "i"
    )
    assert paths(index.similar(on_circle(0)[0])) == ["only"]
    assert index.similar("only") == ()
    assert paths(index.playlist("only", 5)) == ["only"]
    assert index.near_duplicates() == ()
    assert index.remove("only") == search.Changes(removed=1)
    assert index.similar(on_circle(0)[0]) == ()


def test_who_reads_while_another_updates_goes_on_with_what_was_opened(tmp_path, circle):
    index = search.Index.build(circle, tmp_path / "i")
    reader = search.Index.open(tmp_path / "i")
    changed = write(tmp_path / "t.parquet", on_circle(*range(300)), range(300))
    index.update(changed)
    assert (len(index), len(reader)) == (300, 5)
    assert paths(reader.similar("/music/10.mp3", 1)) == ["/music/0.mp3"]
    assert paths(search.Index.open(tmp_path / "i").similar("200", 2)) == ["199", "201"]


def test_a_build_that_is_killed_leaves_the_index_that_was_there(
    tmp_path, circle, child_environment
):
    search.Index.build(circle, tmp_path / "i")
    code = """
import os, signal, sys
from patchifier.library.search import index
index._tend = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
index.Index.build(sys.argv[1], sys.argv[2])
"""
    one = write(tmp_path / "one.parquet", on_circle(1), ["a"])
    assert (
        subprocess.run(
            [sys.executable, "-c", code, str(one), str(tmp_path / "i")], env=child_environment
        ).returncode
        == -9
    )
    assert len(search.Index.open(tmp_path / "i")) == 5
    search.Index.build(one, tmp_path / "i")
    assert len(search.Index.open(tmp_path / "i")) == 1


def test_a_folder_of_parts_is_read_a_part_at_a_time_and_checked_to_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr("patchifier.library.stored.Stored.parts.__kwdefaults__", {"rows": 7})
    vectors = random_vectors(50)
    (tmp_path / "parts").mkdir()
    for first in range(0, 50, 10):
        write(
            tmp_path / "parts" / f"{first:02}.parquet",
            vectors[first : first + 10],
            range(first, first + 10),
        )
    assert [len(part) for part in search.Stored(tmp_path / "parts").parts()] == [7, 3] * 5
    index = search.Index.build(tmp_path / "parts", tmp_path / "i")
    assert paths(index.filter(Filter())) == sorted(str(number) for number in range(50))
    assert np.array_equal(search.read(tmp_path / "parts").vectors, vectors)
    vectors[49] = np.inf
    write(tmp_path / "parts" / "40.parquet", vectors[40:], range(40, 50))
    for call in (index.update, index.add, lambda table: search.Index.build(table, tmp_path / "i")):
        with pytest.raises(RequestError, match="the vector of 49 is not finite"):
            call(tmp_path / "parts")
    assert len(search.Index.open(tmp_path / "i")) == 50


def test_parts_of_two_models_are_refused(tmp_path, circle):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "0.parquet", on_circle(1), ["a"])
    write(tmp_path / "parts" / "1.parquet", on_circle(2), ["b"], identity="model-b")
    for call in (search.read, search.load, lambda table: search.Index.build(table, tmp_path / "i")):
        with pytest.raises(RequestError, match="model model-a against model-b"):
            call(tmp_path / "parts")


def test_a_change_starts_from_the_index_as_it_is_now(tmp_path, circle):
    index = search.Index.build(circle, tmp_path / "i")
    search.Index.open(tmp_path / "i").remove(["/music/0.mp3"])
    with pytest.raises(RequestError, match="nothing was removed"):
        index.remove(["/music/0.mp3"])
    assert index.update(circle) == search.Changes(added=1, kept=4)


def test_few_rows_need_no_approximate_index(tmp_path, circle):
    with pytest.raises(RequestError, match="at least 256"):
        search.Index.build(circle, tmp_path / "i", ann_rows=5)
    assert not search.Index.build(circle, tmp_path / "i").approximate


def test_add_remove_and_open_again(tmp_path, circle):
    index = search.Index.build(circle, tmp_path / "i")
    quoted = "/music/it's \\ ö.mp3"
    new = write(tmp_path / "new.parquet", on_circle(11, 90), [quoted, "/music/90.mp3"])
    assert index.add(new) == search.Changes(added=2, kept=5)
    again = search.Index.open(tmp_path / "i")
    assert len(again) == 7
    assert paths(again.similar("/music/10.mp3", 1)) == [quoted]
    assert again.remove([quoted]) == search.Changes(removed=1, kept=6)
    assert paths(again.similar("/music/10.mp3", 1)) == ["/music/0.mp3"]
    with pytest.raises(RequestError, match=r"1 of the 2 files already.*90.mp3.*update"):
        again.add(new)
    with pytest.raises(RequestError, match="nothing was removed"):
        again.remove(["/music/0.mp3", "/nowhere.mp3"])
    assert len(again) == 6


def test_update_makes_the_index_as_the_table(tmp_path, circle):
    index = search.Index.build(circle, tmp_path / "i")
    assert index.update(circle) == search.Changes(kept=5)
    # 0 is gone, 10 moved to 170 degrees, 25 has another tag, 45 and 180 stay, 90 is new
    table = search.Table.open(circle)
    rows = {row.path: row for row in table.filter(Filter())}
    angles = {"10": 170, "25": 25, "45": 45, "180": 180, "90": 90}
    artists = {"10": QUOTES, "25": "someone else", "45": QUOTES, "180": None, "90": None}
    changed = write(
        tmp_path / "changed.parquet",
        3 * on_circle(*angles.values()),
        [f"/music/{name}.mp3" for name in angles],
        artist=list(artists.values()),
        genre=["x"] * 5,
    )
    assert index.update(changed) == search.Changes(added=1, replaced=2, removed=1, kept=2)
    assert paths(index.similar("/music/180.mp3", 1)) == ["/music/10.mp3"]
    assert rows["/music/25.mp3"].tags["artist"] == UNICODE
    assert index.filter(Filter(path="/music/25.mp3"))[0].tags["artist"] == "someone else"
    assert sorted(paths(index.filter(Filter()))) == sorted(f"/music/{name}.mp3" for name in angles)
    assert index.update(changed) == search.Changes(kept=5)


def test_update_by_an_empty_table_empties_the_index(tmp_path, circle):
    index = search.Index.build(circle, tmp_path / "i")
    empty = write(tmp_path / "empty.parquet", np.zeros((0, 2)), [])
    assert index.update(empty) == search.Changes(removed=5)
    assert index.similar(on_circle(0)[0]) == ()


def test_an_empty_table_answers_with_nothing(opened, tmp_path):
    searchable = opened(write(tmp_path / "empty.parquet", np.zeros((0, 2)), []))
    assert len(searchable) == 0
    assert searchable.similar(on_circle(0)[0]) == ()
    assert searchable.near_duplicates() == ()
    assert searchable.playlist(on_circle(0)[0]) == ()
    assert searchable.filter(Filter()) == ()
    with pytest.raises(RequestError, match="is not in"):
        searchable.similar("a.mp3")


def test_an_index_that_grows_gets_its_approximate_index(tmp_path):
    vectors = random_vectors(300, 20)  # 20 is no multiple of 8
    index = search.Index.build(
        write(tmp_path / "a.parquet", vectors[:200], range(200)), tmp_path / "i", ann_rows=256
    )
    assert not index.approximate
    index.add(write(tmp_path / "b.parquet", vectors[200:], range(200, 300)))
    assert index.approximate
    assert paths(index.similar(vectors[250], 1)) == ["250"]


def test_vectors_of_patches_and_of_windows_are_not_the_same(tmp_path, circle):
    facts = {"format": 1, "model": "model-a", "patches": True}
    pq.write_table(
        pq.read_table(circle).replace_schema_metadata({FACTS: json.dumps(facts)}),
        tmp_path / "patches.parquet",
    )
    with pytest.raises(RequestError, match="model model-a against model-a of patches"):
        search.Index.build(circle, tmp_path / "i").add(tmp_path / "patches.parquet")


def test_near_duplicates_are_found_once_across_blocks_of_rows(opened, tmp_path, monkeypatch):
    monkeypatch.setattr("patchifier.library.search.store.BLOCK", 7)
    vectors = random_vectors(100)
    vectors[80] = 2 * vectors[3] + 1e-4  # another gain: the same direction
    vectors[41] = vectors[40]  # of the same file: no pair
    names = [f"{i:03}" for i in range(100)]
    names[41] = names[40]
    pairs = opened(write(tmp_path / "t.parquet", vectors, names)).near_duplicates(0.999)
    assert [(pair.first.path, pair.second.path) for pair in pairs] == [("003", "080")]
    assert pairs[0].score == pairs[0].first.score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.8])
def test_near_duplicates_are_all_pairs_that_comparing_each_with_each_gives(
    tmp_path, monkeypatch, threshold
):
    monkeypatch.setattr("patchifier.library.search.store.BLOCK", 8)
    monkeypatch.setattr("patchifier.library.search.store.WIDTH", 2)
    vectors = random_vectors(150, 6) + 1
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = {
        (i, j) for i, j in itertools.combinations(range(150), 2) if units[i] @ units[j] >= threshold
    }
    pairs = search.Table.open(
        write(tmp_path / "t.parquet", vectors, [f"{i:03}" for i in range(150)])
    ).near_duplicates(threshold)
    assert {(int(pair.first.path), int(pair.second.path)) for pair in pairs} == expected
    assert len(pairs) == len(expected) > 20


def test_equal_vectors_reach_a_threshold_of_one(opened, tmp_path):
    vector = random_vectors(1, 33)[0]
    pairs = opened(
        write(tmp_path / "t.parquet", [vector, vector, 3 * vector], ["a", "b", "c"])
    ).near_duplicates(1.0)
    assert {(pair.first.path, pair.second.path) for pair in pairs} >= {("a", "b")}
    assert all(pair.score == 1.0 or pair.score > 1 - 1e-12 for pair in pairs)


def test_of_a_pair_of_files_the_nearest_stretches_are_given(opened, tmp_path):
    table = write(
        tmp_path / "t.parquet", on_circle(0, 10, 11, 20), ["a", "a", "b", "b"], starts=[0, 1, 0, 1]
    )
    pairs = opened(table).near_duplicates(0.9)
    assert [
        (pair.first.path, pair.first.start_s, pair.second.path, pair.second.start_s)
        for pair in pairs
    ] == [("a", 1.0, "b", 0.0)]
    assert pairs[0].score == pytest.approx(np.cos(np.radians(1)), abs=1e-6)


def test_too_many_pairs_are_refused(tmp_path):
    table = search.Table.open(write(tmp_path / "t.parquet", np.ones((30, 2)), range(30)))
    assert len(table.near_duplicates(0.5)) == 30 * 29 // 2
    with pytest.raises(RequestError, match="raise the threshold"):
        table.near_duplicates(0.5, most=100)


def test_a_playlist_walks_to_the_nearest_that_was_not_played(opened, tmp_path):
    table = write(tmp_path / "t.parquet", on_circle(0, 10, 19, 27, -11), list("abcde"))
    searchable = opened(table)
    assert paths(searchable.playlist("a", 4)) == ["a", "b", "c", "d"]
    assert [row.score for row in searchable.playlist("a", 3)] == pytest.approx(
        [1, np.cos(np.radians(10)), np.cos(np.radians(9))], abs=1e-6
    )
    assert paths(searchable.playlist("a", 4, drift=0.0)) == [
        "a",
        "b",
        "e",
        "c",
    ]  # always near the start
    assert paths(searchable.playlist("a", 99)) == [
        "a",
        "b",
        "c",
        "d",
        "e",
    ]  # no repeats, then the end


def test_a_playlist_keeps_artists_apart(opened, circle):
    songs = opened(circle).playlist("/music/0.mp3", 4, artist_gap=1)
    artists = [song.tags.get("artist") for song in songs]
    assert len(songs) == 4
    assert all(a != b for a, b in itertools.pairwise(artists))


def test_a_long_playlist_has_no_repeats(opened, tmp_path):
    names = [f"{UNICODE} {QUOTES} {i // 2}" for i in range(120)]
    songs = opened(
        write(tmp_path / "t.parquet", random_vectors(120), names, starts=np.arange(120) % 2)
    ).playlist(names[0], 60)
    assert len(set(paths(songs))) == len(songs) == 60


def test_another_model_is_refused_and_the_difference_named(tmp_path, circle):
    index = search.Index.build(circle, tmp_path / "i")
    other = write(tmp_path / "other.parquet", on_circle(3), ["new"], identity="model-b")
    for change in (index.add, index.update):
        with pytest.raises(RequestError, match="model model-a against model-b"):
            change(other)
    wide = write(tmp_path / "wide.parquet", np.ones((1, 3)), ["new"])
    with pytest.raises(RequestError, match="vector size 2 against 3"):
        index.add(wide)
    assert len(index) == 5
    for searchable in (index, search.Table.open(circle)):
        with pytest.raises(RequestError, match="vector size 2 against 3"):
            searchable.similar(np.ones(3))
        with pytest.raises(RequestError, match="model model-a against model-b"):
            searchable.similar(np.ones(2), identity="model-b")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.zeros(2), "all zeros"),
        (np.array([np.nan, 1]), "not finite"),
        (np.ones((1, 2)), "shape"),
        (np.array([1, 0]), "int64"),
        ([1.0, 0.0], "list"),
        ("missing.mp3", "missing.mp3 is not in"),
    ],
)
def test_queries_that_make_no_sense(opened, circle, query, message):
    with pytest.raises(RequestError, match=message):
        opened(circle).similar(query)


def test_counts_and_thresholds_that_make_no_sense(circle):
    table = search.Table.open(circle)
    for call in (
        lambda: table.similar("/music/0.mp3", 0),
        lambda: table.similar("/music/0.mp3", 2.5),
        lambda: table.playlist("/music/0.mp3", -1),
        lambda: table.playlist("/music/0.mp3", 2, drift=2),
        lambda: table.near_duplicates(0),
        lambda: table.near_duplicates(float("nan")),
    ):
        with pytest.raises(RequestError, match="expected"):
            call()


def test_a_file_whose_stretches_cancel_out_has_no_direction(opened, tmp_path):
    table = write(tmp_path / "t.parquet", on_circle(0, 180, 3), ["a", "a", "b"])
    with pytest.raises(RequestError, match="cancel out"):
        opened(table).similar("a")


def test_tables_that_are_refused(tmp_path, circle):
    whole = pq.read_table(circle)

    def replaced(name, values):
        return whole.set_column(whole.column_names.index(name), name, values)

    two = pa.list_(pa.float32(), 2)
    cases = {
        "lacks the columns embedding": whole.drop_columns(["embedding"]),
        "does not say which model": whole.replace_schema_metadata(None),
        "does not say which": whole.replace_schema_metadata({FACTS: "[]"}),
        "format 2, this version reads up to 1": whole.replace_schema_metadata(
            {FACTS: '{"format": 2, "model": "a"}'}
        ),
        "expected fixed-size lists of float32": replaced("embedding", pa.array([[1.0, 2.0]] * 5)),
        "/music/25.mp3 is all zeros": replaced(
            "embedding", pa.array([[1.0, 2]] * 2 + [[0.0, 0]] + [[1.0, 2]] * 2, two)
        ),
        "/music/0.mp3 is not finite": replaced("embedding", pa.array([[np.nan, 2]] * 5, two)),
        "column path is empty in 5 rows": replaced("path", pa.nulls(5, pa.string())),
    }
    for message, table in cases.items():
        pq.write_table(table, tmp_path / "bad.parquet")
        with pytest.raises(RequestError, match=message):
            search.read(tmp_path / "bad.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(
        RequestError,
        match=r"text.parquet cannot be read as a table \(it is not a Parquet file\): give one",
    ):
        search.load(tmp_path / "text.parquet")
    np.save(tmp_path / "matrix.npy", np.ones((2, 4), np.float32))
    with pytest.raises(
        RequestError,
        match=r"matrix.npy cannot be read as a table \(there is no such file\): give one",
    ):
        search.load(tmp_path / "matrix.npy")
    for path in (tmp_path / "text.parquet", tmp_path / "missing.parquet"):
        with pytest.raises(RequestError, match="cannot be read as a table"):
            search.read(path)


def test_a_table_without_sizes_and_tags_will_do(opened, tmp_path, circle):
    few = pq.read_table(circle).select(["embedding", "path", "start_s", "end_s"])
    pq.write_table(few, tmp_path / "few.parquet")
    found = opened(tmp_path / "few.parquet").similar("/music/0.mp3", 1)
    assert (found[0].path, dict(found[0].tags)) == ("/music/10.mp3", {})


def test_a_folder_of_other_things_is_never_replaced(tmp_path, circle):
    music = tmp_path / "music"
    music.mkdir()
    (music / "song.mp3").write_bytes(b"x")
    with pytest.raises(RequestError, match="holds something that is not an index"):
        search.Index.build(circle, music)
    with pytest.raises(RequestError, match="is not an index"):
        search.Index.open(music)
    assert [file.name for file in music.iterdir()] == ["song.mp3"]


def test_building_again_replaces_an_index_and_a_refused_table_does_not(tmp_path, circle):
    search.Index.build(circle, tmp_path / "i")
    with pytest.raises(RequestError):
        search.Index.build(tmp_path / "missing.parquet", tmp_path / "i")
    assert len(search.Index.open(tmp_path / "i")) == 5
    assert (
        len(
            search.Index.build(write(tmp_path / "one.parquet", on_circle(1), ["a"]), tmp_path / "i")
        )
        == 1
    )


def test_a_uri_is_passed_on(tmp_path, circle):
    uri = f"file://{tmp_path}/by uri"
    search.Index.build(circle, uri)
    assert isinstance(search.load(uri), search.Index)
    assert paths(search.load(uri).similar("/music/0.mp3", 1)) == ["/music/10.mp3"]


class Store(http.server.BaseHTTPRequestHandler):
    """As much of an object store's protocol (S3) as LanceDB speaks; credentials are not looked at."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def parse_request(self):
        if not super().parse_request():
            return False
        address = urllib.parse.urlsplit(self.path)
        self.key, self.asked = (
            urllib.parse.unquote(address.path),
            dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True)),
        )
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append(self.command)
        return True

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in (
            {
                "Content_Length": len(body),
                "ETag": '"e"',
                "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
            }
            | headers
        ).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def do_PUT(self):
        if "partNumber" in self.asked:
            self.server.parts[self.asked["uploadId"], int(self.asked["partNumber"])] = self.body
        elif self.headers.get("If-None-Match") == "*" and self.key in self.server.objects:
            return self.answer(412)  # what keeps two writers from the same version
        else:
            self.server.objects[self.key] = self.body
        return self.answer(200)

    def do_POST(self):
        if "uploads" in self.asked:
            return self.answer(
                200,
                f"<InitiateMultipartUploadResult><UploadId>{uuid.uuid4()}</UploadId></InitiateMultipartUploadResult>".encode(),
            )
        if "uploadId" in self.asked:
            parts = self.server.parts
            self.server.objects[self.key] = b"".join(
                parts[part] for part in sorted(parts) if part[0] == self.asked["uploadId"]
            )
            return self.answer(
                200,
                b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>",
            )
        for key in re.findall("<Key>(.+?)</Key>", self.body.decode()):
            self.server.objects.pop(f"{self.key.rstrip('/')}/{html.unescape(key)}", None)
        return self.answer(200, b"<DeleteResult></DeleteResult>")

    def do_DELETE(self):
        self.server.objects.pop(self.key, None)
        self.answer(204)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if "list-type" in self.asked:
            return self.answer(200, self.listing().encode())
        if self.key not in self.server.objects:
            return self.answer(404)
        whole = self.server.objects[self.key]
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(span[1]) if span[1] else len(whole) - int(span[2])
            end = min(int(span[2]) + 1, len(whole)) if span[1] and span[2] else len(whole)
            return self.answer(
                206, whole[first:end], Content_Range=f"bytes {first}-{end - 1}/{len(whole)}"
            )
        return self.answer(200, whole, Content_Length=len(whole))

    def listing(self):
        root, prefix, delimiter = (
            self.key.rstrip("/") + "/",
            self.asked.get("prefix", ""),
            self.asked.get("delimiter"),
        )
        keys = sorted(
            key[len(root) :] for key in self.server.objects if key.startswith(root + prefix)
        )
        below = {
            prefix + key[len(prefix) :].split(delimiter)[0] + delimiter
            for key in keys
            if delimiter and delimiter in key[len(prefix) :]
        }
        files = [key for key in keys if not delimiter or delimiter not in key[len(prefix) :]]
        contents = [
            f"<Contents><Key>{html.escape(key)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>e</ETag>"
            f"<Size>{len(self.server.objects[root + key])}</Size></Contents>"
            for key in files
        ]
        folders = [
            f"<CommonPrefixes><Prefix>{html.escape(key)}</Prefix></CommonPrefixes>"
            for key in sorted(below)
        ]
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(contents + folders)}</ListBucketResult>"


@pytest.fixture
def store(monkeypatch):
    """An object store on this machine that the environment leads to."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.daemon_threads, server.objects, server.parts, server.seen = True, {}, {}, []
    environment = {
        "ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "ALLOW_HTTP": "true",
        "REGION": "us-east-1",
    }
    for name, value in (
        environment | {"ACCESS_KEY_ID": "someone", "SECRET_ACCESS_KEY": "secret"}
    ).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_index_on_an_object_store_is_built_changed_and_asked(store, tmp_path, circle):
    uri = f"s3://bucket-{uuid.uuid4()}/an index"
    with pytest.raises(RequestError, match=r"cannot be opened as an index.*AWS_ENDPOINT_URL"):
        search.load(uri)
    index = search.Index.build(circle, uri)
    assert any("/an index/embeddings.lance/data/" in key for key in store.objects)
    assert paths(search.load(uri).similar("/music/10.mp3", 2)) == ["/music/0.mp3", "/music/25.mp3"]
    assert paths(index.filter(Filter(artist=QUOTES))) == ["/music/10.mp3", "/music/45.mp3"]
    new = write(tmp_path / "new.parquet", on_circle(11), [f"{UNICODE} {QUOTES}.mp3"])
    assert index.add(new) == search.Changes(added=1, kept=5)
    assert paths(search.load(uri).similar("/music/10.mp3", 1)) == [f"{UNICODE} {QUOTES}.mp3"]
    assert index.remove(["/music/0.mp3"]) == search.Changes(removed=1, kept=5)
    assert search.load(uri).update(circle) == search.Changes(added=1, removed=1, kept=4)
    assert sorted(paths(search.load(uri).filter(Filter()))) == sorted(
        f"/music/{angle}.mp3" for angle in CIRCLE
    )
    assert not list(tmp_path.glob("s3*"))  # nor a folder of that name here


def test_an_approximate_index_on_an_object_store_is_replaced_by_building_again(
    store, tmp_path, circle
):
    uri = f"s3://bucket-{uuid.uuid4()}/i"
    vectors = random_vectors(600, 512)
    index = search.Index.build(
        write(tmp_path / "t.parquet", vectors, range(600)), uri, ann_rows=500
    )
    assert index.approximate
    assert paths(search.load(uri).similar(vectors[17], 1)) == ["17"]
    assert paths(search.load(uri).similar(vectors[17], 1, where=Filter(path="18"))) == ["18"]
    with pytest.raises(RequestError):
        search.Index.build(tmp_path / "missing.parquet", uri)
    assert len(search.load(uri)) == 600
    search.Index.build(circle, uri)
    assert len(search.load(uri)) == 5
    assert not search.load(uri).approximate


def test_a_table_of_others_at_a_uri_is_never_replaced(tmp_path, circle):
    import lancedb

    uri = f"file://{tmp_path}/others"
    lancedb.connect(uri).create_table("embeddings", data=pa.table({"x": [1]}))
    with pytest.raises(RequestError, match="not an index of embeddings"):
        search.Index.build(circle, uri)
    assert lancedb.connect(uri).open_table("embeddings").count_rows() == 1


def test_a_uri_that_lost_a_slash_is_refused(tmp_path, circle, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (Path("s3://bucket/i"), "s3:/bucket/i"):
        for call in (search.load, search.is_index, lambda place: search.Index.build(circle, place)):
            with pytest.raises(RequestError, match="two slashes, s3://bucket/i"):
                call(place)
    assert [file.name for file in tmp_path.iterdir()] == ["circle.parquet"]


def test_an_index_in_memory_serves_its_process(circle):
    assert paths(search.Index.build(circle, "memory://there").similar("/music/0.mp3", 1)) == [
        "/music/10.mp3"
    ]


def test_a_uri_that_leads_nowhere_is_refused(circle):
    for call in (
        lambda: search.Index.build(circle, "nowhere://a/b"),
        lambda: search.load("nowhere://a/b"),
    ):
        with pytest.raises(
            RequestError, match=r"nowhere://a/b cannot be|cannot be written to nowhere://a/b"
        ):
            call()


def test_a_build_that_fails_half_way_leaves_the_index_that_was_there(tmp_path, circle, monkeypatch):
    search.Index.build(circle, tmp_path / "i")

    def broken(table, ann_rows, before):
        raise OSError("disk full")

    monkeypatch.setattr("patchifier.library.search.index._tend", broken)
    with pytest.raises(OSError, match="disk full"):
        search.Index.build(write(tmp_path / "one.parquet", on_circle(1), ["a"]), tmp_path / "i")
    assert len(search.Index.open(tmp_path / "i")) == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "circle.parquet",
        "i",
        "one.parquet",
    ]


def test_an_update_cut_off_half_way_loses_no_file_and_is_mended_by_the_next(
    tmp_path, circle, monkeypatch
):
    index = search.Index.build(circle, tmp_path / "i")
    moved = write(
        tmp_path / "moved.parquet",
        on_circle(*[angle + 5 for angle in CIRCLE]),
        [f"/music/{angle}.mp3" for angle in CIRCLE],
    )
    for step in ("_append", "_delete"):
        with monkeypatch.context() as patched:
            patched.setattr(
                index, step, lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            with pytest.raises(KeyboardInterrupt):
                index.update(moved)
        assert len(search.Index.open(tmp_path / "i").similar(on_circle(0)[0], 10)) == 5
    index = search.Index.open(tmp_path / "i")
    assert len(index) == 10  # old rows and new
    assert index.update(moved) == search.Changes(replaced=5)
    assert len(index) == 5
    assert index.update(moved) == search.Changes(kept=5)


def test_conditions_are_strings():
    with pytest.raises(RequestError, match="compares with 5, expected a string"):
        Filter(artist=5)


def test_load_tells_a_table_from_an_index(tmp_path, circle):
    search.Index.build(circle, tmp_path / "i")
    assert isinstance(search.load(tmp_path / "i"), search.Index)
    assert isinstance(search.load(circle), search.Table)


def test_a_lancedb_table_of_other_things_is_refused(tmp_path):
    import lancedb

    lancedb.connect(str(tmp_path / "i")).create_table("embeddings", data=pa.table({"x": [1]}))
    with pytest.raises(RequestError, match="not an index of embeddings"):
        search.Index.open(tmp_path / "i")


def test_a_parquet_table_is_searched_without_lancedb(circle, tmp_path, child_environment):
    code = f"""
import sys
sys.modules["lancedb"] = None
from patchifier.library import search
from patchifier.config import RequestError
print(search.load({str(circle)!r}).similar("/music/0.mp3", 1)[0].path, "torch" in sys.modules)
try:
    search.Index.build({str(circle)!r}, {str(tmp_path / "i")!r})
except RequestError as error:
    print(error)
"""
    lines = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment,
    ).stdout.splitlines()
    assert lines[0] == "/music/10.mp3 False"
    assert "pip install 'patchifier[search]'" in lines[1]
