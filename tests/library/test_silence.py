"""Silence in a library: rows have a level, and a silent row is nobody's neighbour."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from patchifier.config import RequestError
from patchifier.library import embed_library, search
from patchifier.library.search.duplicates import duplicates
from tests.audio_files import music

RATE = 22_050


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pieces of music; silence; noise of -100 dB; and music followed by as much silence."""
    folder = tmp_path_factory.mktemp("silence")
    one, two = (music(8.0, rate=RATE, seed=seed) for seed in (1, 2))
    sounds = {
        "one": one,
        "two": two,
        "silent": np.zeros(8 * RATE),
        "hiss": 1e-5 * np.random.default_rng(3).standard_normal(8 * RATE),
        "half": np.concatenate([one, np.zeros(8 * RATE)]),
    }
    for name, sound in sounds.items():
        soundfile.write(folder / f"{name}.wav", sound, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def table(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("table") / "music.parquet"
    embed_library([folder], out, workers=1)
    return out


@pytest.fixture(scope="module")
def windows(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("windows") / "music.parquet"
    embed_library([folder], out, workers=1, window_s=4.0)
    return out


def names(rows: tuple[search.SearchResult, ...]) -> list[str]:
    return [Path(row.path).stem for row in rows]


def path_of(store: search.Table | search.Index, name: str) -> str:
    return next(row.path for row in store.filter(search.Filter()) if Path(row.path).stem == name)


def test_rows_have_the_level_of_their_loudest_band(table: Path, windows: Path) -> None:
    rows = search.read(table)
    level = dict(zip((Path(path).stem for path in rows.paths), rows.level_db, strict=True))
    assert level["silent"] == pytest.approx(-100.0)
    assert level["hiss"] < search.SILENCE_DB
    assert -40 < level["one"] < 60
    assert level["half"] == pytest.approx(level["one"], abs=0.1)
    parts = search.read(windows)
    half = [Path(path).stem == "half" for path in parts.paths]
    levels, starts = parts.level_db[half], parts.start_s[half]
    assert (levels[starts < 7] > -40).all()
    assert levels[starts > 8.2] == pytest.approx(-100.0)


def test_silence_is_nobodys_neighbour(table: Path, windows: Path) -> None:
    for path in (table, windows):
        store = search.load(path)
        found = store.similar(path_of(store, "one"), 10)
        assert set(names(found)) == {"half", "two"}
        route = store.path(path_of(store, "one"), path_of(store, "two"), 3)
        assert set(names(route)) == {"half", "one", "two"}
        assert {"silent", "hiss"} <= {Path(row.path).stem for row in store.filter(search.Filter())}


def test_a_higher_level_may_be_asked_for(table: Path) -> None:
    store = search.load(table)
    level = search.read(table).level_db.max()
    one = path_of(store, "one")
    assert store.similar(one, 10, where=search.Filter(above_db=level)) == ()
    assert len(store.similar(one, 10, where=search.Filter(above_db=-200.0))) == 2


@pytest.mark.parametrize("level", [True, "quiet", float("nan"), float("inf")])
def test_a_level_is_a_finite_number(level: object) -> None:
    with pytest.raises(RequestError, match="expected a level in dB, such as -70"):
        search.Filter(above_db=level)  # type: ignore[arg-type]


def test_silent_windows_do_not_count_in_the_vector_of_a_file(windows: Path) -> None:
    store = search.load(windows)
    rows = search.read(windows)
    half = np.array([Path(path).stem == "half" for path in rows.paths])
    loud = rows.vectors[half & (rows.level_db > search.SILENCE_DB)].astype(float)
    mean = (loud / np.linalg.norm(loud, axis=1, keepdims=True)).mean(0)
    assert 1 <= len(loud) < half.sum()
    found = store.vector_of(path_of(store, "half"))
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-6)


def test_nothing_is_similar_to_silence(table: Path) -> None:
    store = search.load(table)
    with pytest.raises(RequestError, match=r"silent\.wav is silent, so nothing is similar to it"):
        store.similar(path_of(store, "silent"), 3)


def test_silent_files_are_no_duplicates_of_each_other(table: Path) -> None:
    pairs = duplicates(search.load(table), 0.2, workers=1)
    both = {Path(row.path).stem for pair in pairs for row in (pair.first, pair.second)}
    assert not both & {"silent", "hiss"}
    assert {"one", "half"} <= both


def test_index_leaves_silence_out_too(table: Path, tmp_path: Path) -> None:
    index = search.Index.build(table, tmp_path / "index")
    assert set(names(index.similar(path_of(index, "one"), 10))) == {"half", "two"}
    with pytest.raises(RequestError, match="is silent"):
        index.similar(path_of(index, "silent"), 3)


def test_rows_of_unknown_level_take_part(table: Path, tmp_path: Path) -> None:
    rows = pq.read_table(table)
    old = tmp_path / "old.parquet"
    at, nothing = rows.column_names.index("level_db"), pa.nulls(len(rows), pa.float64())
    pq.write_table(rows.set_column(at, "level_db", nothing), old)
    store = search.load(old)
    assert np.isnan(search.read(old).level_db).all()
    assert "silent" in names(store.similar(path_of(store, "one"), 10))
