import errno
import functools
import html
import http.server
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import unicodedata
import urllib.parse
import uuid
from dataclasses import asdict
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchifier.config import RequestError
from patchifier.jobs import file_lock
from patchifier.library import search
from patchifier.library.search import Filter
from patchifier.library.search.rows import folder_named, named
from patchifier.library.stored import ADDED, FACTS, TYPES
from tests.library.vectors import cosine, on_circle, paths, random_vectors

QUOTES = "O'Brien; DROP TABLE embeddings; -- \\' \"x\" %_"
UNICODE = "Sigur Rós 日本 🎵"
SIGMA = "\u03bf\u03b4\u03bf\u03c2"  # its last letter has two forms in lower case
CIRCLE = (0, 10, 25, 45, 180)


def song(angle):
    return f"/music/{angle}.mp3"


def pairs_of(found):
    return [(pair.first.path, pair.second.path) for pair in found]


@pytest.fixture
def circle(write):
    """Five files at known angles, of two artists."""
    artists = [UNICODE, QUOTES, UNICODE, QUOTES, None]
    tags = {"artist": artists, "genre": ["x"] * 5, "year": [1980, 1990, 2000, None, None]}
    tags["albumartist"] = ["STRASSE", None, "x", SIGMA, None]
    return write(3 * on_circle(*CIRCLE), map(song, CIRCLE), "circle.parquet", **tags)


def test_known_neighbours_in_order_with_their_cosines(opened, circle):
    found = opened(circle).similar(song(10), 3)
    assert paths(found) == [song(0), song(25), song(45)]
    assert [row.score for row in found] == cosine(10, 15, 35)
    first = {"path": song(0), "start_s": 0.0, "end_s": 2.0, "score": found[0].score}
    tags = {"artist": UNICODE, "genre": "x", "albumartist": "STRASSE", "year": 1980}
    one = asdict(found[0])
    one.pop("track_id")
    assert one == {**first, "tags": tags}


def test_a_vector_from_outside_finds_the_file_itself(opened, circle):
    found = opened(circle).similar(on_circle(44)[0].astype(np.float32), 1, identity="model-a")
    assert paths(found) == [song(45)]
    assert [found[0].score] == cosine(1)


def test_k_larger_than_the_table_gives_all_others(opened, circle):
    assert len(opened(circle).similar(song(0), 1000)) == 4


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Filter(artist=QUOTES), {10, 45}),
        (Filter(artist=UNICODE), {0, 25}),
        (Filter(artist=UNICODE.lower()), {0, 25}),
        (Filter(artist=unicodedata.normalize("NFD", UNICODE).upper()), {0, 25}),
        (Filter(artist=UNICODE[:-1]), set()),
        (Filter(albumartist=SIGMA.upper()), {45}),
        (Filter(albumartist="stra\xdfe"), {0}),
        (Filter(year_from=1990), {10, 25}),
        (Filter(year_to=1990), {0, 10}),
        (Filter(year_from=1990, year_to=1995, artist=QUOTES.upper()), {10}),
        (Filter(without_artists=(QUOTES.upper(),)), {0, 25, 180}),
        (Filter(path_prefix="/music/1"), {10, 180}),
        (Filter(path_prefix="/music/%"), set()),
        (Filter(path=song(25)), {25}),
        (Filter(genre="x", without_artists=(QUOTES,)), {0, 25, 180}),
        (Filter(without_paths=(song(0), "it's")), {10, 25, 45, 180}),
        (Filter(album=""), set()),
        (Filter(), set(CIRCLE)),
    ],
)
def test_filters(opened, circle, where, expected):
    store, expected = opened(circle), set(map(song, expected))
    assert set(paths(store.filter(where))) == expected
    assert set(paths(store.similar(on_circle(1)[0], 10, where=where))) == expected


def test_of_a_file_the_nearest_stretch_is_given(opened, write):
    # "long" has 30 stretches nearer than anything of "short": it must not crowd "short" out
    vectors = on_circle(*np.linspace(1, 5, 30), 90)
    table = write(vectors, ["long"] * 30 + ["short"], starts=[*range(30), 0])
    found = opened(table).similar(on_circle(0)[0], 2)
    assert [(row.path, row.start_s) for row in found] == [("long", 0.0), ("short", 0.0)]


def test_a_file_of_several_stretches_is_looked_for_by_their_mean_direction(opened, write):
    found = opened(write(on_circle(0, 40, 21, 39), "aabc", starts=[0, 1, 0, 0])).similar("a", 2)
    assert paths(found) == ["b", "c"]
    assert [found[0].score] == cosine(1)


def test_numpy_and_lancedb_give_the_same(write, build):
    names = [str(row // 3) for row in range(900)]
    table = write(random_vectors(900), names, starts=np.arange(900) % 3)
    exact, index = search.Table.open(table), build(table)
    for query in [*random_vectors(20, seed=1), "0", "7", "299"]:
        one, other = exact.similar(query, 15), index.similar(query, 15, exact=True)
        assert [(row.path, row.start_s) for row in one] == [
            (row.path, row.start_s) for row in other
        ]
        assert [row.score for row in one] == pytest.approx([row.score for row in other], abs=1e-6)
    one, other = (store.mix("5", 20, artist_gap=2) for store in (exact, index))
    assert paths(one) == paths(other)


def test_approximate_search_finds_nine_of_ten(write, build):
    chance = np.random.default_rng(3)
    mixing = chance.standard_normal((12, 64)) / np.arange(1, 13)[:, None]
    vectors = chance.standard_normal((5000, 12)) @ mixing
    vectors += 0.05 * chance.standard_normal((5000, 64))
    index = build(write(vectors, range(5000)), ann_rows=5000)
    assert index.approximate
    queries = vectors[::100] + 0.05 * chance.standard_normal((50, 64))
    found = [
        {*paths(index.similar(query, 10))} & {*paths(index.similar(query, 10, exact=True))}
        for query in queries
    ]
    assert np.mean([len(both) for both in found]) >= 9
    index.add(write([-vectors[0]], ["new"]))
    assert paths(index.similar(-vectors[0], 1)) == ["new"]
    assert paths(index.similar(vectors[0], 3, where=Filter(path="17"))) == ["17"]


def test_approximate_search_is_not_misled_by_duplicates(write, build):
    # a third of the library is one and the same vector, another third stands there twice
    vectors = random_vectors(3000, 32)
    vectors[1000:2000] = vectors[0]
    vectors[2000:2500] = vectors[2500:]
    index = build(write(vectors, range(3000)), ann_rows=1000)
    assert index.approximate
    for query in (vectors[0] + 0.1 * vectors[1], vectors[1], vectors[2200], "0", "2200", "7"):
        one, other = index.similar(query, 20), index.similar(query, 20, exact=True)
        assert [row.score for row in one] == pytest.approx([row.score for row in other], abs=1e-6)
    assert index.similar("2200", 1)[0].path == "2700"


def test_nothing_that_a_filter_leaves_is_missed_by_approximate_search(write, build, monkeypatch):
    monkeypatch.setattr("patchifier.library.search.index.PARTITION_ROWS", 50)
    monkeypatch.setattr("patchifier.library.search.index.PROBES", 1)
    vectors, where = random_vectors(2000), Filter(genre="rare")
    genre = ["rare" if row % 200 == 7 else "x" for row in range(2000)]
    table = write(vectors, range(2000), genre=genre)
    index, exact = build(table, ann_rows=1000), search.Table.open(table)
    one, other = (store.similar(vectors[3], 10, where=where) for store in (index, exact))
    assert paths(one) == paths(other)
    assert len(index.similar(vectors[3], 1999)) == 1999  # more than one part holds


def test_the_approximate_index_is_learned_anew_when_four_times_as_many_rows_have_come(
    write, build, monkeypatch
):
    made, create = [], lancedb.table.LanceTable.create_index

    def counted(self, column, **options):
        made.append(column)
        return create(self, column, **options)

    monkeypatch.setattr(lancedb.table.LanceTable, "create_index", counted)
    vectors = random_vectors(1100)
    index = build(write(vectors[:300], range(300)), ann_rows=256)
    assert made == ["path", "embedding"]
    index.add(write(vectors[300:900], range(300, 900)))
    assert made == ["path", "embedding"]
    index.update(write(vectors, range(1100)))
    assert made == ["path", "embedding", "embedding"]
    for row in (0, 500, 1099):
        assert paths(index.similar(vectors[row], 1)) == [str(row)]


def test_an_index_of_one_row(write, build):
    index = build(write(on_circle(7), ["only"]))
    assert paths(index.similar(on_circle(0)[0])) == ["only"]
    assert index.similar("only") == ()
    assert paths(index.mix("only", 5)) == ["only"]
    assert index.near_duplicates() == ()
    assert index.remove("only") == search.Changes(removed=1)
    assert index.similar(on_circle(0)[0]) == ()


def test_who_reads_while_another_updates_goes_on_with_what_was_opened(write, build, place, circle):
    index, reader = build(circle), search.Index.open(place)
    index.update(write(on_circle(*range(300)), range(300)))
    assert (len(index), len(reader)) == (300, 5)
    assert paths(reader.similar(song(10), 1)) == [song(0)]
    assert paths(search.Index.open(place).similar("200", 2)) == ["199", "201"]


KILLED = """
import os, signal, sys
from patchifier.library.search import index
index._tend = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
index.Index.build(sys.argv[1], sys.argv[2])
"""


def test_a_build_that_is_killed_leaves_the_index_that_was_there(
    write, build, place, circle, child_environment
):
    build(circle)
    one = write(on_circle(1), ["a"])
    command = [sys.executable, "-c", KILLED, one, place]
    assert subprocess.run(command, env=child_environment).returncode == -9
    assert len(search.Index.open(place)) == 5
    build(one)
    assert len(search.Index.open(place)) == 1


@pytest.mark.parametrize("change", ["build", "update"])
def test_no_room_for_an_index_is_an_error_of_the_system(change, build, circle, place, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("lance error: No space left on device (os error 28), writer.rs:258")

    build(circle)
    monkeypatch.setattr(search.index, "_create", full)
    monkeypatch.setattr(search.Index, "_update", full)
    index = search.Index.open(place)
    with pytest.raises(OSError) as caught:
        build(circle) if change == "build" else index.update(circle)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(place))
    assert len(search.Index.open(place)) == 5


def test_a_folder_of_parts_is_read_a_part_at_a_time_and_checked_to_the_last(
    tmp_path, write, build, place, monkeypatch
):
    monkeypatch.setattr("patchifier.library.stored.PART_ROWS", 7)
    vectors, folder = random_vectors(50), tmp_path / "parts"
    folder.mkdir()
    for first in range(0, 50, 10):
        rows = slice(first, first + 10)
        write(vectors[rows], range(50)[rows], f"parts/{first:02}.parquet")
    assert [len(part) for part in search.Stored(folder).parts()] == [7, 3] * 5
    index = build(folder)
    assert paths(index.filter(Filter())) == sorted(map(str, range(50)))
    assert np.array_equal(search.read(folder).vectors, vectors)
    vectors[49] = np.inf
    write(vectors[40:], range(40, 50), "parts/40.parquet")
    for call in (index.update, index.add, build):
        with pytest.raises(RequestError, match="the vector of 49 is not finite"):
            call(folder)
    assert len(search.Index.open(place)) == 50


def test_parts_of_two_models_are_refused(tmp_path, write, build):
    (tmp_path / "parts").mkdir()
    write(on_circle(1), ["a"], "parts/0.parquet")
    write(on_circle(2), ["b"], "parts/1.parquet", identity="model-b")
    for call in (search.read, search.load, build):
        with pytest.raises(RequestError, match="model model-a against model-b"):
            call(tmp_path / "parts")


def test_a_change_starts_from_the_index_as_it_is_now(build, place, circle):
    index = build(circle)
    search.Index.open(place).remove([song(0)])
    with pytest.raises(RequestError, match="nothing was removed"):
        index.remove([song(0)])
    assert index.update(circle) == search.Changes(added=1, kept=4)


def test_a_damaged_index_is_refused(build, place, circle):
    build(circle)
    for data in (path for path in place.rglob("*.lance") if path.is_file()):
        data.write_bytes(data.read_bytes()[:-40] + bytes(40))
    with pytest.raises(RequestError, match=r"an index cannot be .*build it again"):
        search.load(place).similar(song(10), 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_in_an_index_is_refused_and_not_waited_for(build, place, circle):
    build(circle)
    data = next(path for path in place.rglob("*.lance") if path.is_file())
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(RequestError, match="not a regular file"):
        search.load(place)


def test_a_second_change_of_an_index_at_once_is_refused(tmp_path, circle):
    index = search.Index.build(circle, tmp_path / "new" / "index")
    with file_lock(tmp_path / "new" / "index", "index job"):
        for change in (
            lambda: search.Index.build(circle, tmp_path / "new" / "index"),
            lambda: index.update(circle),
            lambda: index.remove("/music/0.mp3"),
            lambda: index.add(circle),
        ):
            with pytest.raises(RequestError, match="another index job"):
                change()
    assert index.update(circle).kept == len(CIRCLE)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"index"}


def test_few_rows_need_no_approximate_index(build, circle):
    with pytest.raises(RequestError, match="at least 256"):
        build(circle, ann_rows=5)
    assert not build(circle).approximate


def test_add_remove_and_open_again(write, build, place, circle):
    index, quoted = build(circle), "/music/it's \\ ö.mp3"
    new = write(on_circle(11, 90), [quoted, song(90)])
    assert index.add(new) == search.Changes(added=2, kept=5)
    again = search.Index.open(place)
    assert len(again) == 7
    assert paths(again.similar(song(10), 1)) == [quoted]
    assert again.remove([quoted]) == search.Changes(removed=1, kept=6)
    assert paths(again.similar(song(10), 1)) == [song(0)]
    with pytest.raises(RequestError, match=r"1 of the 2 files already.*90.mp3.*update"):
        again.add(new)
    with pytest.raises(RequestError, match="nothing was removed"):
        again.remove([song(0), "/nowhere.mp3"])
    assert len(again) == 6


def test_update_makes_the_index_as_the_table(write, build, circle):
    index = build(circle)
    assert index.update(circle) == search.Changes(kept=5)
    # 0 is gone, 10 moved to 170 degrees, 25 has another tag, 45 and 180 stay, 90 is new
    songs = [song(angle) for angle in (10, 25, 45, 180, 90)]
    tags = {"artist": [QUOTES, "someone else", QUOTES, None, None], "genre": ["x"] * 5}
    tags |= {"year": [1990, 2000, None, None, None], "albumartist": [None, "x", SIGMA, None, None]}
    changed = write(3 * on_circle(170, 25, 45, 180, 90), songs, **tags)
    assert index.update(changed) == search.Changes(added=1, replaced=2, removed=1, kept=2)
    assert paths(index.similar(song(180), 1)) == [song(10)]
    assert index.filter(Filter(path=song(25)))[0].tags["artist"] == "someone else"
    assert sorted(paths(index.filter(Filter()))) == sorted(songs)
    assert index.update(changed) == search.Changes(kept=5)
    assert index.update(write(np.zeros((0, 2)), [])) == search.Changes(removed=5)
    assert index.similar(on_circle(0)[0]) == ()


def test_an_empty_table_answers_with_nothing(opened, write):
    store = opened(write(np.zeros((0, 2)), []))
    assert len(store) == 0
    query = on_circle(0)[0]
    assert store.similar(query) == store.mix(query) == store.near_duplicates() == ()
    assert store.filter(Filter()) == ()
    with pytest.raises(RequestError, match="is not in"):
        store.similar("a.mp3")


def test_an_index_that_grows_gets_its_approximate_index(write, build):
    vectors = random_vectors(300, 20)  # 20 is no multiple of 8
    index = build(write(vectors[:200], range(200)), ann_rows=256)
    assert not index.approximate
    index.add(write(vectors[200:], range(200, 300)))
    assert index.approximate
    assert paths(index.similar(vectors[250], 1)) == ["250"]


def test_vectors_of_patches_and_of_windows_are_not_the_same(tmp_path, build, circle):
    facts = json.dumps({"format": 1, "model": "model-a", "patches": True})
    patches = pq.read_table(circle).replace_schema_metadata({FACTS: facts})
    pq.write_table(patches, tmp_path / "patches.parquet")
    with pytest.raises(RequestError, match="model model-a against model-a of patches"):
        build(circle).add(tmp_path / "patches.parquet")


def test_near_duplicates_are_found_once_across_blocks_of_rows(opened, write, monkeypatch):
    monkeypatch.setattr("patchifier.library.search.pairs.BLOCK", 7)
    vectors, names = random_vectors(100), [f"{row:03}" for row in range(100)]
    vectors[80] = 2 * vectors[3] + 1e-4  # another gain: the same direction
    vectors[41], names[41] = vectors[40], names[40]  # of the same file: no pair
    pairs = opened(write(vectors, names)).near_duplicates(0.999)
    assert pairs_of(pairs) == [("003", "080")]
    assert pairs[0].score == pairs[0].first.score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.8])
def test_near_duplicates_are_all_pairs_that_comparing_each_with_each_gives(
    write, monkeypatch, threshold
):
    monkeypatch.setattr("patchifier.library.search.pairs.BLOCK", 8)
    monkeypatch.setattr("patchifier.library.search.pairs.WIDTH", 2)
    vectors, names = random_vectors(150, 6) + 1, [f"{row:03}" for row in range(150)]
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = np.triu(units @ units.T >= threshold, k=1)
    expected = {(names[one], names[other]) for one, other in np.argwhere(near)}
    pairs = search.Table.open(write(vectors, names)).near_duplicates(threshold)
    assert set(pairs_of(pairs)) == expected
    assert len(pairs) == len(expected) > 20


@pytest.mark.parametrize("block", [8, 1024])
def test_the_nearest_pair_is_that_of_comparing_each_with_each(opened, write, monkeypatch, block):
    monkeypatch.setattr("patchifier.library.search.pairs.BLOCK", block)
    monkeypatch.setattr("patchifier.library.search.pairs.WIDTH", 2)
    vectors, names = random_vectors(150, 6), [f"{row:03}" for row in range(150)]
    names[1] = names[0]
    vectors[1] = vectors[0]  # of the same file: no pair
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = np.triu(units @ units.T, k=1)
    cosines[0, 1] = 0
    first, second = np.unravel_index(cosines.argmax(), cosines.shape)
    found = opened(write(vectors, names)).nearest_pair()
    assert pairs_of([found]) == [(names[first], names[second])]
    assert found.score == pytest.approx(cosines.max(), abs=1e-6)


def test_one_file_has_no_nearest_pair(opened, write):
    assert opened(write(on_circle(0, 10), "aa", starts=[0, 1])).nearest_pair() is None


def test_the_nearest_pair_may_be_opposite(opened, write):
    assert opened(write(on_circle(0, 180), "ab")).nearest_pair().score == pytest.approx(-1)


def test_equal_vectors_reach_a_threshold_of_one(opened, write):
    vector = random_vectors(1, 33)[0]
    pairs = opened(write([vector, vector, 3 * vector], "abc")).near_duplicates(1.0)
    assert ("a", "b") in pairs_of(pairs)
    assert all(pair.score > 1 - 1e-12 for pair in pairs)


def test_of_a_pair_of_files_the_nearest_stretches_are_given(opened, write):
    table = write(on_circle(0, 10, 11, 20), "aabb", starts=[0, 1, 0, 1])
    (pair,) = opened(table).near_duplicates(0.9)
    assert (pair.first.path, pair.first.start_s) == ("a", 1.0)
    assert (pair.second.path, pair.second.start_s) == ("b", 0.0)
    assert [pair.score] == cosine(1)


def test_too_many_pairs_are_refused(write):
    table = search.Table.open(write(np.ones((30, 2)), range(30)))
    assert len(table.near_duplicates(0.5)) == 30 * 29 // 2
    with pytest.raises(RequestError, match="raise the threshold"):
        table.near_duplicates(0.5, most=100)


def test_a_playlist_walks_to_the_nearest_that_was_not_played(opened, write):
    store = opened(write(on_circle(0, 10, 19, 27, -11), "abcde"))
    walk = store.mix("a", 4, drift=1.0)
    assert paths(walk) == [*"abcd"]
    assert [row.score for row in walk] == cosine(0, 10, 9, 8)
    assert paths(store.mix("a", 4, drift=0.0)) == [*"abec"]  # always near the start
    assert paths(store.mix("a", 99, drift=1.0)) == [*"abcde"]  # no repeats, then the end


def test_a_playlist_keeps_artists_apart(opened, circle):
    songs = opened(circle).mix(song(0), 4, artist_gap=1)
    artists = [row.tags.get("artist") for row in songs]
    assert len(songs) == 4
    assert all(one != other for one, other in itertools.pairwise(artists))


def test_a_long_playlist_has_no_repeats(opened, write):
    names = [f"{UNICODE} {QUOTES} {row // 2}" for row in range(120)]
    store = opened(write(random_vectors(120), names, starts=np.arange(120) % 2))
    songs = paths(store.mix(names[0], 60))
    assert len(set(songs)) == len(songs) == 60


def test_another_model_is_refused_and_the_difference_named(write, build, circle):
    index, names = build(circle), "model model-a against model-b"
    other = write(on_circle(3), ["new"], identity="model-b")
    for change in (index.add, index.update):
        with pytest.raises(RequestError, match=names):
            change(other)
    with pytest.raises(RequestError, match="vector size 2 against 3"):
        index.add(write(np.ones((1, 3)), ["new"]))
    assert len(index) == 5
    for store in (index, search.Table.open(circle)):
        with pytest.raises(RequestError, match="vector size 2 against 3"):
            store.similar(np.ones(3))
        with pytest.raises(RequestError, match=names):
            store.similar(np.ones(2), identity="model-b")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.zeros(2), "all zeros"),
        (np.array([np.nan, 1]), "not finite"),
        (np.ones((1, 2)), "shape"),
        (np.array([1, 0]), "int64"),
        ([1.0, 0.0], "float"),
        ([], "no file was given"),
        ("missing.mp3", "missing.mp3 is not in"),
    ],
)
def test_queries_that_make_no_sense(opened, circle, query, message):
    with pytest.raises(RequestError, match=message):
        opened(circle).similar(query)


@pytest.mark.parametrize(
    ("method", "arguments", "options"),
    [
        ("similar", (song(0), 0), {}),
        ("similar", (song(0), 2.5), {}),
        ("mix", (song(0), -1), {}),
        ("mix", (song(0), 2), {"drift": 2}),
        ("near_duplicates", (0,), {}),
        ("near_duplicates", (float("nan"),), {}),
    ],
)
def test_counts_and_thresholds_that_make_no_sense(circle, method, arguments, options):
    with pytest.raises(RequestError, match="expected"):
        getattr(search.Table.open(circle), method)(*arguments, **options)


def test_a_file_whose_stretches_cancel_out_has_no_direction(opened, write):
    with pytest.raises(RequestError, match="cancel out"):
        opened(write(on_circle(0, 180, 3), "aab")).similar("a")


def embeddings(*vectors):
    return "embedding", pa.array(vectors, pa.list_(pa.float32(), 2))


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("does not say which model", None),
        ("does not say which", "[]"),
        ("format 2, this version reads up to 1", '{"format": 2, "model": "a"}'),
        ("expected fixed-size lists of float32", ("embedding", pa.array([[1.0, 2.0]] * 5))),
        ("25.mp3 is all zeros", embeddings(*[[1, 2]] * 2, [0, 0], *[[1, 2]] * 2)),
        ("/music/0.mp3 is not finite", embeddings(*[[np.nan, 2]] * 5)),
        ("column path is empty in 5 rows", ("path", pa.nulls(5, pa.string()))),
    ],
)
def test_tables_that_are_refused(tmp_path, circle, message, change):
    table = pq.read_table(circle)
    if isinstance(change, tuple):
        table = table.set_column(table.column_names.index(change[0]), *change)
    else:
        table = table.replace_schema_metadata(change and {FACTS: change})
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(RequestError, match=message):
        search.read(tmp_path / "bad.parquet")


def test_columns_that_a_table_may_and_must_have(opened, tmp_path, circle):
    table, few = pq.read_table(circle), tmp_path / "few.parquet"
    pq.write_table(table.drop_columns(["embedding"]), few)
    with pytest.raises(RequestError, match="lacks the columns embedding"):
        search.read(few)
    pq.write_table(table.select(["embedding", "path", "start_s", "end_s"]), few)
    found = opened(few).similar(song(0), 1)
    assert (found[0].path, dict(found[0].tags)) == (song(10), {})


def test_files_that_are_no_tables_are_refused_with_what_to_give(tmp_path):
    (tmp_path / "text.parquet").write_text("no table")
    np.save(tmp_path / "matrix.npy", np.ones((2, 4), np.float32))
    for name, said in {
        "text.parquet": r"cannot be read as a table \(it is not a Parquet file\): give one",
        "missing.parquet": "cannot be read as a table",
        "matrix.npy": r"cannot be read as a table \(there is no such file\): give one",
    }.items():
        for call in (search.load, search.read):
            with pytest.raises(RequestError, match=f"{name} {said}"):
                call(tmp_path / name)


def test_a_folder_of_other_things_is_never_replaced(circle, build, place):
    place.mkdir()
    (place / "song.mp3").write_bytes(b"x")
    with pytest.raises(RequestError, match="holds something that is not an index"):
        build(circle)
    with pytest.raises(RequestError, match="is not an index"):
        search.Index.open(place)
    assert [file.name for file in place.iterdir()] == ["song.mp3"]


def test_building_again_replaces_an_index_and_a_refused_table_does_not(
    tmp_path, write, build, place, circle
):
    build(circle)
    with pytest.raises(RequestError):
        build(tmp_path / "missing.parquet")
    assert len(search.Index.open(place)) == 5
    assert len(build(write(on_circle(1), ["a"]))) == 1


def test_load_tells_a_table_from_an_index_and_takes_a_uri(tmp_path, circle, build, place):
    build(circle)
    assert isinstance(search.load(place), search.Index)
    assert isinstance(search.load(circle), search.Table)
    uri = f"file://{tmp_path}/by uri"
    search.Index.build(circle, uri)
    assert isinstance(search.load(uri), search.Index)
    assert paths(search.load(uri).similar(song(0), 1)) == [song(10)]


def test_an_index_in_memory_serves_its_process(circle):
    index = search.Index.build(circle, "memory://there")
    assert paths(index.similar(song(0), 1)) == [song(10)]


class Store(http.server.BaseHTTPRequestHandler):
    """What LanceDB speaks of an object store's protocol (S3); credentials are not looked at."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def parse_request(self):
        if not super().parse_request():
            return False
        address = urllib.parse.urlsplit(self.path)
        self.key = urllib.parse.unquote(address.path)
        self.asked = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return True

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        dated = {"ETag": '"e"', "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        for name, value in ({"Content_Length": len(body)} | dated | headers).items():
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
        root, upload = "InitiateMultipartUploadResult", self.asked.get("uploadId")
        if "uploads" in self.asked:
            number = f"<UploadId>{uuid.uuid4()}</UploadId>"
            return self.answer(200, f"<{root}>{number}</{root}>".encode())
        if upload:
            parts = sorted(part for part in self.server.parts if part[0] == upload)
            self.server.objects[self.key] = b"".join(self.server.parts[part] for part in parts)
            root = b"CompleteMultipartUploadResult"
            return self.answer(200, b"<%s><ETag>e</ETag></%s>" % (root, root))
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
            part = f"bytes {first}-{end - 1}/{len(whole)}"
            return self.answer(206, whole[first:end], Content_Range=part)
        return self.answer(200, whole)

    def listing(self):
        root, objects = self.key.rstrip("/") + "/", self.server.objects
        prefix, delimiter = self.asked.get("prefix", ""), self.asked.get("delimiter", "\0")
        keys = sorted(key[len(root) :] for key in objects if key.startswith(root + prefix))
        parts = ""
        for key in keys:
            if delimiter not in key[len(prefix) :]:
                parts += f"<Contents><Key>{html.escape(key)}</Key><ETag>e</ETag>"
                parts += "<LastModified>2024-01-01T00:00:00.000Z</LastModified>"
                parts += f"<Size>{len(objects[root + key])}</Size></Contents>"
        for key in sorted(
            {
                prefix + key[len(prefix) :].partition(delimiter)[0]
                for key in keys
                if delimiter in key[len(prefix) :]
            }
        ):
            parts += (
                f"<CommonPrefixes><Prefix>{html.escape(key + delimiter)}</Prefix></CommonPrefixes>"
            )
        result = f"<IsTruncated>false</IsTruncated>{parts}"
        return f"<ListBucketResult>{result}</ListBucketResult>"


@pytest.fixture
def store(monkeypatch):
    """An object store on this machine that the environment leads to."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.daemon_threads, server.objects, server.parts = True, {}, {}
    for name, value in {
        "ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "ALLOW_HTTP": "true",
        "REGION": "us-east-1",
        "ACCESS_KEY_ID": "someone",
        "SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def uri(store):
    return f"s3://bucket-{uuid.uuid4()}/an index"


def test_an_index_on_an_object_store_is_built_changed_and_asked(
    store, uri, tmp_path, write, circle
):
    with pytest.raises(RequestError, match=r"cannot be opened as an index.*AWS_ENDPOINT_URL"):
        search.load(uri)
    index = search.Index.build(circle, uri)
    assert any("/an index/embeddings.lance/data/" in key for key in store.objects)
    assert paths(search.load(uri).similar(song(10), 2)) == [song(0), song(25)]
    assert paths(index.filter(Filter(artist=QUOTES))) == [song(10), song(45)]
    new = f"{UNICODE} {QUOTES}.mp3"
    assert index.add(write(on_circle(11), [new])) == search.Changes(added=1, kept=5)
    assert paths(search.load(uri).similar(song(10), 1)) == [new]
    assert index.remove([song(0)]) == search.Changes(removed=1, kept=5)
    assert search.load(uri).update(circle) == search.Changes(added=1, removed=1, kept=4)
    assert sorted(paths(search.load(uri).filter(Filter()))) == sorted(map(song, CIRCLE))
    assert not list(tmp_path.glob("s3*"))  # nor a folder of that name here


def test_an_approximate_index_on_an_object_store_is_replaced_by_building_again(
    uri, tmp_path, write, circle
):
    vectors = random_vectors(600, 512)
    assert search.Index.build(write(vectors, range(600)), uri, ann_rows=500).approximate
    assert paths(search.load(uri).similar(vectors[17], 1)) == ["17"]
    assert paths(search.load(uri).similar(vectors[17], 1, where=Filter(path="18"))) == ["18"]
    with pytest.raises(RequestError):
        search.Index.build(tmp_path / "missing.parquet", uri)
    assert len(search.load(uri)) == 600
    search.Index.build(circle, uri)
    assert len(search.load(uri)) == 5
    assert not search.load(uri).approximate


def test_a_lancedb_table_of_other_things_is_never_opened_or_replaced_at_a_uri(tmp_path, circle):
    uri = f"file://{tmp_path}/others"
    lancedb.connect(uri).create_table("embeddings", data=pa.table({"x": [1]}))
    with pytest.raises(RequestError, match="not an index of embeddings"):
        search.Index.open(tmp_path / "others")
    with pytest.raises(RequestError, match="not an index of embeddings"):
        search.Index.build(circle, uri)
    assert lancedb.connect(uri).open_table("embeddings").count_rows() == 1


def test_a_lancedb_table_of_other_things_is_never_replaced_in_a_folder(tmp_path, circle):
    lancedb.connect(tmp_path / "others").create_table("embeddings", data=pa.table({"x": [1]}))
    with pytest.raises(RequestError, match="not an index of embeddings"):
        search.Index.build(circle, tmp_path / "others")
    assert lancedb.connect(tmp_path / "others").open_table("embeddings").count_rows() == 1


def test_a_uri_that_lost_a_slash_is_refused(tmp_path, circle, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (Path("s3://bucket/i"), "s3:/bucket/i"):
        for call in (search.load, search.is_index, lambda place: search.Index.build(circle, place)):
            with pytest.raises(RequestError, match="two slashes, s3://bucket/i"):
                call(place)
    assert [file.name for file in tmp_path.iterdir()] == ["circle.parquet"]


def test_a_uri_that_leads_nowhere_is_refused(circle):
    for call in (search.load, lambda place: search.Index.build(circle, place)):
        with pytest.raises(RequestError, match=r"nowhere://a/b cannot be|written to nowhere://a/b"):
            call("nowhere://a/b")


def test_a_build_that_fails_half_way_leaves_the_index_that_was_there(
    tmp_path, write, build, place, circle, monkeypatch
):
    build(circle)

    def broken(table, ann_rows, before):
        raise OSError("disk full")

    monkeypatch.setattr("patchifier.library.search.index._tend", broken)
    with pytest.raises(OSError, match="disk full"):
        build(write(on_circle(1), ["a"]))
    assert len(search.Index.open(place)) == 5
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == [place.name, "circle.parquet", "t.parquet"]


def test_an_update_cut_off_half_way_loses_no_file_and_is_mended_by_the_next(
    write, build, place, circle, monkeypatch
):
    index = build(circle)
    moved = write(on_circle(*[angle + 5 for angle in CIRCLE]), map(song, CIRCLE))

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    for step in ("_append", "_delete"):
        with monkeypatch.context() as patched:
            patched.setattr(search.Index, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                index.update(moved)
        assert len(search.Index.open(place)) == 5
        assert len(search.Index.open(place).similar(on_circle(0)[0], 10)) == 5
    index = search.Index.open(place)
    assert index.update(moved) == search.Changes(replaced=5)
    assert len(index) == 5
    assert index.update(moved) == search.Changes(kept=5)


@pytest.mark.parametrize(
    "conditions",
    [
        {"artist": 5},
        {"without_artists": ("a", 5)},
        {"year_from": "1990"},
        {"year_to": True},
        {"year_from": 2000, "year_to": 1990},
    ],
)
def test_conditions_without_sense_are_refused(conditions):
    with pytest.raises(RequestError):
        Filter(**conditions)


def test_an_index_of_an_older_version_works_but_for_what_it_lacks(
    build, circle, write, monkeypatch
):
    first = {name: kind for name, kind in TYPES.items() if name not in ADDED}
    with monkeypatch.context() as patch:
        patch.setattr(search.index, "Stored", functools.partial(search.Stored, columns=first))
        index = build(circle)
    assert index.update(circle) == search.Changes(kept=5)
    found = index.similar(song(10), 1, where=Filter(genre="X"))
    assert (paths(found), found[0].track_id) == ([song(0)], None)
    assert len(index.filter(Filter(artist=QUOTES.upper()))) == 2
    new = write(on_circle(90), ["/music/90.mp3"], artist=["New"], albumartist=["New"])
    assert index.add(new).added == 1
    assert len(index.filter(Filter(artist="new"))) == 1
    with pytest.raises(RequestError, match="albumartist"):
        index.filter(Filter(albumartist="new"))
    with pytest.raises(RequestError, match="year"):
        index.similar(song(10), where=Filter(year_from=1))


def test_rows_of_a_table_have_ids_of_their_own(write, build):
    same, names = ["0" * 16] * 3, ["/a", "/b", "/b"]
    path = write(on_circle(0, 10, 20), names, starts=[0.0, 0.0, 2.0], track_id=same)
    ids = [row.track_id for row in search.Table.open(path).filter(Filter())]
    assert ids[0] == "0" * 16
    assert ids[1] == ids[2] != ids[0]
    assert {row.track_id for row in build(path).filter(Filter())} == {"0" * 16}


# --- names ---

LISTED = (
    "/m/a/01 Gigue.mp3",
    "/m/b/01 Gigue.mp3",
    "/m/b/Air.flac",
    "/m/b/air 2.mp3",
    "/m/\xc9t\xe9.ogg",
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Air.flac", "/m/b/Air.flac"),
        ("AIR", "/m/b/Air.flac"),
        ("air 2", "/m/b/air 2.mp3"),
        ("ir 2", "/m/b/air 2.mp3"),
        ("a/01 gigue.mp3", "/m/a/01 Gigue.mp3"),
        ("./b/01 gigue", "/m/b/01 Gigue.mp3"),
        ("e\u0301TE\u0301", "/m/\xc9t\xe9.ogg"),
        ("nothing", None),
        ("", None),
        ("/", None),
    ],
)
def test_a_name_means_the_one_file_that_has_it(name, expected):
    assert named(LISTED, name) == expected


@pytest.mark.parametrize("name", ["01 Gigue.mp3", "01 gigue", "gigu"])
def test_a_name_of_several_files_is_refused_with_all_of_them(name):
    with pytest.raises(RequestError, match=re.escape(", ".join(LISTED[:2]))):
        named(LISTED, name)


def test_a_store_knows_its_files_by_a_part_of_their_names(opened, write, tmp_path, monkeypatch):
    songs = [tmp_path / name for name in ("Gigue.mp3", "Air.mp3", "more.mp3")]
    store = opened(write(on_circle(0, 10, 40), songs))
    monkeypatch.chdir(tmp_path)
    for name in ("air", Path("Air.mp3"), str(songs[1])):
        assert paths(store.similar(name, 2)) == [str(songs[0]), str(songs[2])]
    assert (
        paths(store.mix("gig", 2)) == paths(store.path("gig", "air", 2)) == [*map(str, songs[:2])]
    )
    for call in (lambda: store.path("gig", "Gigue"), lambda: store.similar("air", unlike="Air")):
        with pytest.raises(RequestError, match=r"Gigue\.mp3 was given twice|Air\.mp3 is among"):
            call()


def test_a_file_that_exists_outside_is_not_taken_for_one_inside(write, tmp_path, monkeypatch):
    store = search.Table.open(write(on_circle(0, 10), ["/music/new song.mp3", "/music/b.mp3"]))
    monkeypatch.chdir(tmp_path)
    assert store.path_of("new") == "/music/new song.mp3"
    Path("new").touch()
    with pytest.raises(RequestError, match=r"new is not in .*embed the file"):
        store.similar("new")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("naev-data", "/m/Naev-Data/"),
        ("/m/naev-data/", "/m/Naev-Data/"),
        ("Naev-Data/snd", "/m/Naev-Data/snd/"),
        ("data", None),
        ("song.ogg", None),
        ("/", None),
    ],
)
def test_a_name_means_the_one_folder_that_has_it(name, expected):
    songs = ["/m/Naev-Data/snd/song.ogg", "/m/b/x/song.ogg", "/m/c/x/song.ogg"]
    assert folder_named(songs, name) == expected


def test_a_name_of_several_folders_is_refused_with_all_of_them():
    with pytest.raises(RequestError, match=r"x may mean 2 folders: /m/b/x/, /m/c/x/. Name one"):
        folder_named(["/m/b/x/song.ogg", "/m/c/x/song.ogg"], "x")


def test_a_table_whose_embed_was_interrupted_is_told_from_one_that_never_was(tmp_path):
    (tmp_path / "cc.parquet.parts").mkdir()
    for call in (search.load, search.read):
        with pytest.raises(RequestError, match=r"cc.parquet is not finished.*Run that command"):
            call(tmp_path / "cc.parquet")


def test_a_message_about_a_name_lists_ten_files():
    with pytest.raises(RequestError) as told:
        named([f"/{number}/a.mp3" for number in range(100)], "a")
    assert str(told.value).count("a.mp3") == 10
    assert "90 more" in str(told.value)


WITHOUT_LANCEDB = """
import sys
sys.modules["lancedb"] = None
from patchifier.library import search
from patchifier.config import RequestError
print(search.load(sys.argv[1]).similar("/music/0.mp3", 1)[0].path, "torch" in sys.modules)
try:
    search.Index.build(*sys.argv[1:])
except RequestError as error:
    print(error)
"""


def test_a_parquet_table_is_searched_without_lancedb(circle, place, child_environment):
    command = [sys.executable, "-c", WITHOUT_LANCEDB, circle, place]
    lines = subprocess.check_output(command, text=True, env=child_environment).splitlines()
    assert lines[0] == "/music/10.mp3 False"
    assert "pip install 'patchifier[search]'" in lines[1]
