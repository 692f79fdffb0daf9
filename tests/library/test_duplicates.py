"""Files with the same recording: proposed by vectors, confirmed by fingerprints, told apart."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from patchifier import audio, datasets, jobs, spectrogram
from patchifier.config import RequestError
from patchifier.library import search
from patchifier.library.prints import CONFIG, fingerprints
from patchifier.library.search import duplicates
from patchifier.library.search.duplicates import EDITED, SAME, UNCHECKED, VERSION
from patchifier.library.search.pairs import nearest_pairs
from patchifier.matching import Print, print_of
from tests.library.vectors import on_circle, random_vectors

RATE = 22_050


@pytest.fixture(scope="module", autouse=True)
def in_threads():
    """Decode in threads: processes take seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "process_pool", ThreadPoolExecutor)
        yield


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Two tracks, and copies of the first: quieter, cut, and beside silence."""
    home = tmp_path_factory.mktemp("music")
    first, second = (clip.path for clip in datasets.load("demo").clips[::60])
    shutil.copy(first, home / "one.ogg")
    shutil.copy(second, home / "two.ogg")
    sound = audio.load(first)
    audio.save(home / "quiet.wav", 0.1 * sound)
    audio.save(home / "cut.wav", sound[5 * RATE : 15 * RATE])
    audio.save(home / "late.wav", np.concatenate([np.zeros(3 * RATE, np.float32), sound]))
    return home


@pytest.fixture
def kinds(write, music):
    """Classes of pairs of files whose vectors have these angles."""

    def run(angles, **options):
        names = [str(music / name) for name in angles]
        store = search.Table.open(write(on_circle(*angles.values()), names))
        found = duplicates.duplicates(store, workers=1, **options)
        return {
            frozenset(os.path.basename(row.path) for row in (pair.first, pair.second)): pair
            for pair in found
        }

    return run


def test_copies_are_told_from_edits_and_from_other_tracks(kinds):
    found = kinds({"one.ogg": 0, "quiet.wav": 5, "cut.wav": 40, "two.ogg": 20})
    assert found[frozenset(["one.ogg", "quiet.wav"])].kind == SAME
    assert found[frozenset(["one.ogg", "cut.wav"])].kind == EDITED
    assert found[frozenset(["one.ogg", "two.ogg"])].kind == VERSION  # by the vector alone
    assert found[frozenset(["quiet.wav", "cut.wav"])].kind == EDITED


def test_a_pair_with_vectors_farther_apart_and_no_common_sound_is_left_out(kinds):
    assert not kinds({"one.ogg": 0, "two.ogg": 40})


def test_where_one_lies_in_the_other_is_said(kinds):
    (pair,) = kinds({"late.wav": 0, "one.ogg": 10}).values()
    assert pair.kind == EDITED
    assert pair.offset_s == pytest.approx(-3, abs=0.05)
    assert pair.durations_s == pytest.approx((22.7, 19.7), abs=0.3)
    assert pair.agreement > 0.95


def test_what_the_vector_does_not_propose_is_not_compared(kinds):
    assert kinds({"one.ogg": 0, "quiet.wav": 10}, threshold=0.9)
    assert not kinds({"one.ogg": 0, "quiet.wav": 40}, threshold=0.9)


def test_a_file_that_is_missing_is_named_and_costs_its_pairs_alone(kinds):
    found = kinds({"one.ogg": 0, "quiet.wav": 5, "gone.wav": 10})
    missing = found[frozenset(["one.ogg", "gone.wav"])]
    assert (missing.kind, missing.agreement) == (UNCHECKED, None)
    assert "gone.wav" in missing.reason
    assert found[frozenset(["one.ogg", "quiet.wav"])].kind == SAME


@pytest.mark.parametrize("threshold", [0.0, 1.5, float("nan")])
def test_a_threshold_that_makes_no_sense_is_refused(kinds, threshold):
    with pytest.raises(RequestError):
        kinds({"one.ogg": 0}, threshold=threshold)


def test_a_fingerprint_of_a_file_that_is_read_in_blocks_is_that_of_the_whole(music):
    path = str(music / "one.ogg")
    whole = print_of(spectrogram.log_mel(audio.load(path), CONFIG).T, CONFIG)
    found = fingerprints([path], workers=1)[path]
    assert found.bits.shape == whole.bits.shape
    assert (found.bits == whole.bits).mean() > 0.999
    assert (found.weakest == whole.weakest).mean() > 0.999


def test_a_kept_fingerprint_is_used_until_the_file_changes(music, tmp_path):
    path, cache = tmp_path / "song.ogg", tmp_path / "x.prints"
    shutil.copy(music / "one.ogg", path)
    first = fingerprints([str(path)], cache=cache, workers=1)[str(path)]
    state = path.stat()
    path.write_bytes(bytes(state.st_size))  # it cannot be decoded any more
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    again = fingerprints([str(path)], cache=cache, workers=1)[str(path)]
    assert isinstance(again, Print)
    assert np.array_equal(again.bits, first.bits)
    assert np.array_equal(again.weakest, first.weakest)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    assert isinstance(fingerprints([str(path)], cache=cache, workers=1)[str(path)], str)


@pytest.mark.parametrize("damage", [b"", b"junk", b"\x93NUMPY"])
def test_a_damaged_kept_fingerprint_is_made_again(music, tmp_path, damage):
    path = str(music / "one.ogg")
    first = fingerprints([path], cache=tmp_path, workers=1)[path]
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(damage)
    again = fingerprints([path], cache=tmp_path, workers=1)[path]
    assert np.array_equal(again.bits, first.bits)
    assert kept.stat().st_size > 1000


@pytest.mark.parametrize("count", [1, 3, 200])
def test_pairs_to_compare_are_the_nearest_of_each_row(count, monkeypatch):
    monkeypatch.setattr("patchifier.library.search.pairs.QUERIES", 7)
    vectors, files = random_vectors(60, 5), np.arange(60) // 2
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = np.where(files[:, None] == files, -np.inf, units @ units.T)
    expected = {
        tuple(sorted((row, int(other))))
        for row in range(60)
        for other in np.argsort(-cosines[row])[:count]
        if cosines[row, other] >= 0.5
    }
    found = list(nearest_pairs(vectors, files, count, 0.5))
    assert {(first, second) for first, second, _ in found} == expected
    assert [score for *_, score in found] == pytest.approx(
        [cosines[first, second] for first, second, _ in found], abs=1e-6
    )
