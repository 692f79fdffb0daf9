"""Files that are moved, renamed or retagged keep their vectors, and copies keep apart."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mutagen
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from patchifier import checkpoint
from patchifier.checkpoint import Checkpoint
from patchifier.cli.library import embedded_text
from patchifier.embed import load
from patchifier.library import build, job, table
from patchifier.library.stored import track_ids
from patchifier.library.table import LATER
from patchifier.nn.model import Patchifier
from tests import small
from tests.library import require_same_table

RATE = 22_050
TINY = small.config({**small.WIDE, "max_patches": 25})
FILES = ("a/1.flac", "a/2.flac", "b/1.ogg", "b/2.mp3", "c/1.wav", "c/2.wav")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    checkpoint.save(folder, Checkpoint(Patchifier(TINY, seed=0), TINY))
    return folder


@pytest.fixture(scope="module")
def embedder(model):
    return load(model)


@pytest.fixture(scope="module")
def original(tmp_path_factory, noise):
    """Six files in five formats."""
    root = tmp_path_factory.mktemp("original") / "music"
    for number, name in enumerate(FILES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, noise(1 + number / 10, seed=number), RATE)
    return root


@pytest.fixture
def music(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "music"))


@pytest.fixture
def embed(tmp_path, embedder):
    def run(given, name="x.parquet", **options):
        return build.embed_library(given, tmp_path / name, **{"embedder": embedder, **options})

    return run


@pytest.fixture(params=["x.parquet", "x.npy"])
def finished(request, music, tmp_path, embed, decoded):
    """Path of a table of all files; nothing is decoded since."""
    embed(music, request.param)
    decoded.clear()
    return tmp_path / request.param


@pytest.fixture
def whole(finished, music, embed, decoded):
    """Require that a table is the one of a job from nothing."""

    def require(given=music):
        done = decoded.copy()
        fresh = finished.with_name(f"fresh{finished.suffix}")
        embed(given, fresh.name)
        require_same_table(build.read(finished), build.read(fresh), 1e-5)
        assert build.read(finished).track_ids == build.read(fresh).track_ids
        decoded[:] = done

    return require


def retag(path, **tags):
    file = mutagen.File(path, easy=True)
    if file.tags is None:
        file.add_tags()
    for name, value in tags.items():
        file[name] = value
    file.save()


def names(pairs):
    return [tuple("/".join(Path(path).parts[-2:]) for path in pair) for pair in pairs]


def test_moved_and_renamed_files_keep_their_vectors(finished, music, embed, decoded, whole):
    (music / "a" / "1.flac").rename(music / "a" / "new name.flac")
    (music / "b").rename(music / "z")
    done = embed(music, finished, changed=True)
    assert (decoded, done.embedded, done.kept, done.gone, done.retagged) == ([], 0, 6, (), 0)
    expected = {("a/1.flac", "a/new name.flac"), ("b/1.ogg", "z/1.ogg"), ("b/2.mp3", "z/2.mp3")}
    assert set(names(done.moved)) == expected
    assert "3 moved" in embedded_text(done)
    whole()
    again = embed(music, finished, changed=True)
    assert (again.kept, again.moved, decoded) == (6, (), [])


def test_a_library_in_a_new_place_keeps_its_vectors(finished, music, embed, decoded, whole):
    music.rename(music.with_name("elsewhere"))
    done = embed(music.with_name("elsewhere"), finished, changed=True)
    assert (decoded, len(done.moved), done.gone) == ([], 6, ())
    whole(music.with_name("elsewhere"))


def test_a_retagged_file_has_its_new_tags_and_keeps_its_vector(
    finished, music, embed, decoded, whole
):
    tags = {
        "artist": "Björk",
        "albumartist": "Various",
        "date": "1993-07-05",
        "tracknumber": "3/11",
    }
    for name in ("a/1.flac", "b/1.ogg", "b/2.mp3"):
        retag(music / name, **tags)
    (music / "b" / "1.ogg").rename(music / "b" / "0.ogg")
    done = embed(music, finished, changed=True)
    assert (decoded, done.retagged, names(done.moved)) == ([], 2, [("b/1.ogg", "b/0.ogg")])
    assert "2 retagged" in embedded_text(done)
    read = build.read(finished).tags
    assert read["artist"] == ("Björk", None, "Björk", "Björk", None, None)
    assert read["albumartist"] == ("Various", None, "Various", "Various", None, None)
    assert read["year"] == (1993, None, 1993, 1993, None, None)
    assert read["track"] == (3, None, 3, 3, None, None)
    whole()


def test_files_that_changed_names_with_each_other_are_told_apart(
    finished, music, embed, decoded, whole
):
    first, second, between = music / "a" / "1.flac", music / "a" / "2.flac", music / "x"
    first.rename(between)
    second.rename(first)
    between.rename(second)
    done = embed(music, finished, changed=True)
    assert (decoded, done.gone) == ([], ())
    assert set(names(done.moved)) == {("a/1.flac", "a/2.flac"), ("a/2.flac", "a/1.flac")}
    whole()


def test_other_audio_under_a_known_name_is_embedded(finished, music, embed, decoded, whole, noise):
    soundfile.write(music / "a" / "1.flac", noise(1, seed=99), RATE)
    (music / "c" / "1.wav").unlink()
    soundfile.write(music / "c" / "3.wav", noise(1, seed=98), RATE)
    done = embed(music, finished, changed=True)
    assert sorted(decoded) == ["1.flac", "3.wav"]
    assert (done.embedded, done.moved, done.retagged) == (2, (), 0)
    assert [Path(path).name for path in done.gone] == ["1.wav"]
    whole()


def test_copies_keep_rows_and_ids_of_their_own(finished, music, embed, decoded, whole):
    before = build.read(finished)
    shutil.copy(music / "a" / "1.flac", music / "b" / "copy.flac")
    embed(music, finished, changed=True)
    after = build.read(finished)
    audio = after.rows["track_id"].to_pylist()
    assert audio[0] == audio[4]
    assert len(set(after.track_ids)) == len(after) == 7
    assert set(before.track_ids) < set(after.track_ids)
    decoded.clear()
    (music / "b" / "copy.flac").rename(music / "copy.flac")
    done = embed(music, finished, changed=True)
    assert (decoded, names(done.moved)[0][0]) == ([], "b/copy.flac")
    whole()


def test_rows_of_files_that_are_not_listed_are_dropped_only_when_asked_for(
    finished, music, embed, decoded
):
    with pytest.raises(build.RequestError):
        embed([music / "a", music / "b"], finished, changed=True)
    done = embed([music / "a", music / "b"], finished, changed=True, drop_unlisted=True)
    assert (done.rows, [Path(path).name for path in done.gone], decoded) == (
        4,
        ["1.wav", "2.wav"],
        [],
    )


def test_windows_and_clips_of_a_manifest_move_with_their_file(music, tmp_path, embed, decoded):
    lines = "path,start_s,end_s\n{0},,\n{0},0.2,0.9\na/2.flac,0.1,\n"
    (music / "list.csv").write_text(lines.format("a/1.flac"))
    embed(music / "list.csv", window_s=0.4)
    before = build.read(tmp_path / "x.parquet")
    decoded.clear()
    (music / "a" / "1.flac").rename(music / "b" / "0.flac")
    (music / "list.csv").write_text(lines.format("b/0.flac"))
    done = embed(music / "list.csv", window_s=0.4, changed=True)
    after = build.read(tmp_path / "x.parquet")
    assert (decoded, names(done.moved)) == ([], [("a/1.flac", "b/0.flac")])
    np.testing.assert_array_equal(after.vectors, before.vectors)
    np.testing.assert_array_equal(after.start_s, before.start_s)
    (music / "list.csv").write_text(lines.format("b/0.flac").replace("0.9", "0.8"))
    assert embed(music / "list.csv", window_s=0.4, changed=True).embedded == 1


# --- tables of older versions ---


@pytest.fixture
def older(finished, tmp_path):
    """The table as an older version wrote it, without ids and later tags."""
    source = finished
    if finished.suffix == ".npy":
        source = tmp_path / "older.parquet"
        table.npy_to_parquet(finished, source)
    rows = pq.read_table(source).drop_columns(list(LATER["tracks"]))
    pq.write_table(rows, source)
    if finished.suffix == ".npy":
        table.export_npy(source, finished)
        source.unlink()
    return finished


def test_an_older_table_is_read_and_filled_without_embedding(older, music, embed, decoded, whole):
    read = build.read(older)
    assert set(read.tags["year"]) == set(read.rows["track_id"].to_pylist()) == {None}
    assert len(set(read.track_ids)) == 6
    done = embed(music, older, changed=True)
    assert (decoded, done.embedded, done.retagged) == ([], 0, 6)
    assert None not in build.read(older).rows["track_id"].to_pylist()
    whole()


def test_a_file_of_an_older_table_is_known_by_name_size_and_time(
    older, music, embed, decoded, whole
):
    (music / "b").rename(music / "z")
    done = embed(music, older, changed=True)
    assert (decoded, set(names(done.moved))) == (
        [],
        {("b/1.ogg", "z/1.ogg"), ("b/2.mp3", "z/2.mp3")},
    )
    whole()


def test_two_files_of_an_older_table_that_look_alike_are_embedded(older, music, embed, decoded):
    """Stems of one length that were unpacked within a second have one name, size and time."""
    (music / "z").mkdir()
    for folder in ("a", "z"):
        shutil.copy2(music / "c" / "1.wav", music / folder / "1.wav")
    (music / "c" / "1.wav").unlink()
    embed(music, older, changed=True)
    assert decoded == ["1.wav", "1.wav"]


@pytest.mark.parametrize("column", ["track_id", "year"])
def test_a_table_that_lacks_one_of_the_later_columns_is_damaged(
    column, music, tmp_path, embed, threads
):
    embed(music)
    rows = pq.read_table(tmp_path / "x.parquet").drop_columns([column])
    pq.write_table(rows, tmp_path / "x.parquet")
    with pytest.raises(build.RequestError, match=column):
        build.read(tmp_path / "x.parquet")


# --- ids ---


def test_ids_are_of_the_audio_then_of_audio_and_path_then_of_the_path():
    paths = ["/a", "/a", "/b", "/c", "/d"]
    audio = ["0" * 16, "0" * 16, "0" * 16, "1" * 16, None]
    ids = track_ids(pa.table({"path": paths, "track_id": audio}))
    assert ids[0] == ids[1] == "0" * 16
    assert ids[3] == "1" * 16
    assert len(set(ids)) == 4
    assert {len(one) for one in ids} == {16}
    without = track_ids(pa.table({"path": paths}))
    assert without[4] == ids[4]
    assert len(set(without)) == 4


# --- kills ---


class Killed(BaseException):
    """What stops a job in the tests that need no process."""


def die(*_, **__):
    raise Killed


def change(music):
    """Move one file, retag one, change one, add one, remove one."""
    (music / "a" / "1.flac").rename(music / "b" / "0.flac")
    (music / "c" / "1.wav").rename(music / "c" / "0.wav")
    retag(music / "b" / "1.ogg", artist="someone")
    retag(music / "b" / "2.mp3", artist="someone")
    shutil.copy(music / "a" / "2.flac", music / "a" / "3.flac")
    (music / "c" / "2.wav").unlink()


@pytest.mark.parametrize(
    "place", ["_reuse_part", "embed", "_write_part", "_put_in_place", "_clear"]
)
def test_a_killed_update_goes_on_and_reports_what_moved(
    place, finished, music, embed, decoded, whole, monkeypatch
):
    change(music)
    monkeypatch.setattr(job, "PART_FILES", 2)
    monkeypatch.setattr(job, "REUSED_FILES", 2)
    with monkeypatch.context() as patch:
        calls, call = [], getattr(job.TableJob, place)

        def second(self, *given):
            calls.append(place)
            return die() if len(calls) > (place == "_reuse_part") else call(self, *given)

        patch.setattr(job.TableJob, place, second)
        with pytest.raises(Killed):
            embed(music, finished, changed=True)
    decoded.clear()
    done = embed(music, finished, changed=True)
    assert decoded == ([] if place in ("_put_in_place", "_clear") else ["3.flac"])
    if place in ("_reuse_part", "embed", "_write_part"):
        expected = {("a/1.flac", "b/0.flac"), ("c/1.wav", "c/0.wav")}
        assert set(names(done.moved)) == expected
        assert (done.retagged, [Path(path).name for path in done.gone]) == (2, ["2.wav"])
    whole()
    assert not finished.with_name(f"{finished.name}.parts").exists()


def test_a_second_update_at_once_is_refused(finished, music, embed, decoded, whole):
    change(music)
    refused = []

    def second(done, total, note):
        with pytest.raises(build.RequestError) as told:
            embed(music, finished, changed=True)
        refused.append(told.value)

    done = embed(music, finished, changed=True, progress=second)
    assert (len(done.moved), done.retagged, done.embedded) == (2, 2, 1)
    assert len(refused) >= done.files - 1
    whole()


def test_the_same_changes_give_the_same_bytes(finished, music, tmp_path, embed, threads):
    other = tmp_path / f"y{finished.suffix}"
    for end in (".parquet", ".npy", ".csv", ".json"):
        if finished.with_suffix(end).exists():
            shutil.copy(finished.with_suffix(end), other.with_suffix(end))
    change(music)
    for path in (finished, other):
        embed(music, path, changed=True)
    assert finished.read_bytes() == other.read_bytes()


RUN = """
import sys, time
from patchifier.library import build, job

def slowly(done, total, note):
    print(done, flush=True)
    time.sleep(0.02)

if __name__ == "__main__":
    job.PART_FILES = job.REUSED_FILES = 3
    source, out, model = sys.argv[1:]
    build.embed_library(source, out, embedder=model, workers=2, changed=True, progress=slowly)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_an_update_killed_at_any_moment_loses_no_row(
    seed, original, tmp_path, model, embed, threads, child_environment, monkeypatch
):
    suffix, chance = ".npy" if seed % 2 else ".parquet", random.Random(seed)
    music, out = tmp_path / "music", tmp_path / f"x{suffix}"
    for copy in range(4):
        shutil.copytree(original, music / str(copy))
    embed(music, out)
    for copy in range(4):
        change(music / str(copy))
    (music / "3").rename(music / "moved")
    (tmp_path / "run.py").write_text(RUN)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, tmp_path / "run.py", music, out, model],
            env=child_environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for _ in range(chance.choice([0, 1, 4, 9, 15])):
            process.stdout.readline()
        time.sleep(chance.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    monkeypatch.setattr(job, "PART_FILES", 3)
    embed(music, out, changed=True)
    embed(music, f"whole{suffix}")
    require_same_table(build.read(out), build.read(tmp_path / f"whole{suffix}"), 1e-5)
    facts = json.dumps(build.read(out).metadata)
    assert "reused" not in facts
    assert not out.with_name(f"{out.name}.parts").exists()
