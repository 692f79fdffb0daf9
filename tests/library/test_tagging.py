"""Tempo, key and labels in files: nothing is written unasked, and every byte comes back."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mutagen
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import patchifier
from patchifier import cli
from patchifier.config import RequestError
from patchifier.containers import payload_digest
from patchifier.library import journal, tagging
from patchifier.library.journal import Journal
from patchifier.library.tags import read_written, write_tags
from tests.test_payload import KINDS, file_of

RATE = 22_050
VALUES = {"bpm": "121", "key": "F#m", "label": "calm; \u65e5\u672c"}


@pytest.fixture(scope="module")
def embedder():
    return patchifier.load()


def clicks(seconds=6, bpm=120):
    wave = np.zeros(seconds * RATE, np.float32)
    wave[:: round(60 * RATE / bpm)] = 0.9
    return wave


@pytest.fixture(scope="module")
def original(tmp_path_factory, embedder, noise):
    """Two files with a beat, one of noise that has none, and their table."""
    root = tmp_path_factory.mktemp("original")
    (root / "music").mkdir()
    soundfile.write(root / "music" / "a.flac", clicks(), RATE)
    soundfile.write(root / "music" / "b.mp3", clicks(bpm=90), RATE)
    soundfile.write(root / "music" / "c.ogg", noise(4), RATE)
    tagged = mutagen.File(root / "music" / "b.mp3", easy=True)
    tagged.add_tags()
    tagged["bpm"], tagged["title"] = "180", "B"
    tagged.save()
    return root


@pytest.fixture
def table(original, tmp_path, embedder, threads):
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "x.parquet"
    patchifier.library.embed_library(tmp_path / "music", out, embedder=embedder, workers=1)
    return out


def contents(table):
    return {path.name: path.read_bytes() for path in (table.parent / "music").iterdir()}


def propose(table, tags=("bpm",), **options):
    found = tagging.propose(table, tags, workers=1, **options)
    return [(Path(one.path).name, one.tag, one.before, one.after) for one in found.changes], found


# --- one file ---


@pytest.mark.parametrize("name", KINDS)
def test_tags_are_written_beside_others_and_every_byte_comes_back(name, tmp_path):
    path = file_of(tmp_path / name)
    first = Path(shutil.copy2(path, tmp_path / f"first{path.suffix}"))
    folder = tmp_path / "journal"
    for round_ in ("without tags", "with tags"):
        before, time_ns = path.read_bytes(), path.stat().st_mtime_ns
        if round_ == "with tags":
            write_tags(path, {"label": "x" * 5000}, like=first)
            before, time_ns = path.read_bytes(), path.stat().st_mtime_ns
        Journal(folder).write(path, VALUES)
        assert read_written(path) == VALUES
        assert payload_digest(path) == payload_digest(first)
        assert list(Journal(folder).restore()) == [(str(path), "")]
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, time_ns)
        assert len(Journal(folder)) == 0


@pytest.mark.parametrize("name", ["a.mp3", "a.flac", "a.ogg", "a.wav", "a.m4a"])
def test_a_journal_takes_little_room(name, tmp_path):
    path = file_of(tmp_path / name)
    Journal(tmp_path / "journal").write(path, VALUES)
    kept = sum(file.stat().st_size for file in (tmp_path / "journal").iterdir())
    assert kept < 0.25 * path.stat().st_size + 2000


def test_files_written_twice_come_back_to_the_first(tmp_path):
    path = file_of(tmp_path / "a.flac")
    before, written = path.read_bytes(), Journal(tmp_path / "journal")
    for bpm in ("1", "22", "3" * 9000):
        written.write(path, {"bpm": bpm})
    assert [reason for _, reason in written.restore()] == ["", "", ""]
    assert path.read_bytes() == before


def test_a_file_that_was_changed_since_is_left(tmp_path):
    path, written = file_of(tmp_path / "a.flac"), Journal(tmp_path / "journal")
    written.write(path, VALUES)
    write_tags(path, {"bpm": "99"}, like=path)
    changed = path.read_bytes()
    ((named, reason),) = written.restore()
    assert (named, bool(reason), path.read_bytes(), len(written)) == (str(path), True, changed, 1)
    path.unlink()
    ((_, reason),) = written.restore()
    assert reason
    assert len(written) == 1


def test_an_entry_with_other_audio_is_refused(tmp_path):
    """A journal that a stranger made cannot put something else in place of a file."""
    path, other = file_of(tmp_path / "a.flac"), file_of(tmp_path / "b.flac", seed=1)
    written = Journal(tmp_path / "journal")
    written.write(path, VALUES)
    entry = json.loads((tmp_path / "journal" / "00000.json").read_text())
    shutil.copy(other, tmp_path / "journal" / "00000.bytes")
    entry |= {
        "runs": [[None, other.stat().st_size]],
        "sha256": hashlib.sha256(other.read_bytes()).hexdigest(),
    }
    (tmp_path / "journal" / "00000.json").write_text(json.dumps(entry))
    content = path.read_bytes()
    ((_, reason),) = written.restore()
    assert reason
    assert path.read_bytes() == content


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": 1}', "[" * 100_000])
def test_a_damaged_entry_is_named_and_others_are_restored(text, tmp_path):
    paths, written = [file_of(tmp_path / name) for name in ("a.flac", "b.flac")], None
    before = paths[0].read_bytes()
    written = Journal(tmp_path / "journal")
    for path in paths:
        written.write(path, VALUES)
    (tmp_path / "journal" / "00001.json").write_text(text)
    assert [bool(reason) for _, reason in written.restore()] == [True, False]
    assert paths[0].read_bytes() == before


@pytest.mark.parametrize("content", [b"no audio", b"", b"fLaC", b"ID3\4\0\0\0\0\0\0"])
def test_what_has_no_tags_is_refused_and_stays(content, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(RequestError):
        Journal(tmp_path / "journal").write(path, VALUES)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_keeps_its_rights_and_its_owner(tmp_path):
    path, written = file_of(tmp_path / "a.flac"), Journal(tmp_path / "journal")
    os.chmod(path, 0o640)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    before = path.stat()
    for change in (lambda: written.write(path, VALUES), lambda: list(written.restore())):
        change()
        after = path.stat()
        assert after.st_mode == before.st_mode
        assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def test_a_read_only_file_is_refused(tmp_path):
    path = file_of(tmp_path / "a.flac")
    os.chmod(path, 0o444)
    before = path.read_bytes()
    with pytest.raises(RequestError):
        Journal(tmp_path / "journal").write(path, VALUES)
    assert path.read_bytes() == before


def test_a_file_whose_audio_would_change_stays(tmp_path, monkeypatch):
    path = file_of(tmp_path / "a.flac")
    before = path.read_bytes()
    monkeypatch.setattr(
        journal, "write_tags", lambda new, *_, **__: new.write_bytes(before[:-1] + b"x")
    )
    with pytest.raises(RequestError):
        Journal(tmp_path / "journal").write(path, VALUES)
    assert path.read_bytes() == before
    assert len(Journal(tmp_path / "journal")) == 0


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["write_tags", "shared_runs", "write_json"])
@pytest.mark.parametrize("done", [False, True])
def test_a_kill_leaves_a_file_that_is_as_before(place, done, tmp_path, monkeypatch):
    path, written = file_of(tmp_path / "a.flac"), Journal(tmp_path / "journal")
    before, call = path.read_bytes(), getattr(journal, place)

    def die(*given, **options):
        if done:
            call(*given, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(journal, place, die)
        with pytest.raises(Killed):
            written.write(path, VALUES)
    assert path.read_bytes() == before
    assert {reason for _, reason in written.restore()} <= {""}
    assert path.read_bytes() == before
    written.write(path, VALUES)
    assert [reason for _, reason in written.restore()] == [""]
    assert path.read_bytes() == before


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=600), st.integers(0, 3000), st.integers(0, 900))
def test_runs_rebuild_any_file(old, put, at, cut):
    new = old[:at] + put + old[at + cut :]
    stream = io.BytesIO()
    runs = list(
        journal.shared_runs(io.BytesIO(old), io.BytesIO(new), stream, grown=len(new) - len(old))
    )
    kept, rebuilt, place = stream.getvalue(), b"", 0
    for shift, count in runs:
        if shift is None:
            rebuilt, kept = rebuilt + kept[:count], kept[count:]
        else:
            rebuilt += new[place + shift : place + shift + count]
        place += count
    assert (rebuilt, kept) == (old, b"")


# --- a table ---


def test_estimates_of_what_files_lack_are_proposed_and_nothing_is_written(table):
    before = contents(table)
    assert propose(table)[0] == [("a.flac", "bpm", None, "120")]
    every, found = propose(table, overwrite=True)
    assert every == [("a.flac", "bpm", None, "120"), ("b.mp3", "bpm", "180", "90")]
    assert found.files == tuple(str(table.parent / "music" / name) for name in ("a.flac", "b.mp3"))
    assert contents(table) == before


def test_labels_of_predictions_are_proposed_where_half_of_the_rows_have_them(table):
    music = table.parent / "music"
    rows = [("a.flac", "calm|'=loud"), ("a.flac", "calm"), ("a.flac", "fast"), ("b.mp3", "")]
    lines = [f"{music / name},{label}" for name, label in rows]
    (table.parent / "p.csv").write_text("\n".join(["path,label", *lines]))
    found, _ = propose(table, (), labels=table.parent / "p.csv")
    assert found == [("a.flac", "label", None, "calm")]


def test_written_tags_are_read_by_an_update_without_embedding_and_undone(table, embedder, decoded):
    before = contents(table)
    _, found = propose(table, overwrite=True)
    decoded.clear()
    assert tagging.write(table, found.changes) == (2, ())
    assert read_written(table.parent / "music" / "b.mp3")["bpm"] == "90"
    assert mutagen.File(table.parent / "music" / "b.mp3", easy=True)["title"] == ["B"]
    assert contents(table)["c.ogg"] == before["c.ogg"]
    music = table.parent / "music"
    done = patchifier.library.embed_library(music, table, embedder=embedder, changed=True)
    assert (done.retagged, decoded) == (2, [])
    assert tagging.undo(table) == (2, ())
    assert contents(table) == before
    assert not tagging.journal_folder(table).exists()
    with pytest.raises(RequestError):
        tagging.undo(table)


def test_a_file_that_cannot_be_read_or_written_is_named_and_others_are_written(table):
    (table.parent / "music" / "b.mp3").unlink()
    _, found = propose(table)
    assert [Path(path).name for path, _ in found.skipped] == ["b.mp3"]
    gone = tagging.TagChange(str(table.parent / "music" / "b.mp3"), "bpm", None, "1")
    written, skipped = tagging.write(table, [gone, *found.changes])
    assert (written, [path for path, _ in skipped]) == (1, [gone.path])


@pytest.mark.parametrize(
    ("tags", "labels"),
    [
        (("mood",), None),
        ((), "none.csv"),
        ((), "text.csv"),
        ((), "columns.csv"),
        ((), "elsewhere.csv"),
    ],
)
def test_requests_without_sense_are_refused(tags, labels, table):
    (table.parent / "text.csv").write_bytes(b"\xff\xfe\0path")
    (table.parent / "columns.csv").write_text("path,value\na,1\n")
    (table.parent / "elsewhere.csv").write_text("path,label\nelsewhere/a.flac,calm\n")
    with pytest.raises(RequestError):
        propose(table, tags, labels=table.parent / labels if labels else None)


def test_labels_of_relative_paths_are_of_the_files_of_the_table(table, monkeypatch):
    monkeypatch.chdir(table.parent)
    Path("labels.csv").write_text("path,label\nmusic/a.flac,calm\n")
    _, found = propose(table, (), labels="labels.csv")
    assert [(Path(change.path).name, change.after) for change in found.changes] == [
        ("a.flac", "calm")
    ]


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("path,target\na.flac,calm\n", "music"),
        ("\ufefffile;label\na.flac; calm\n", "music"),
        ("path,label,target\nmusic/a.flac,calm,0.9\n", "."),
    ],
)
def test_labels_of_a_csv_of_ones_own_are_found_from_its_folder(text, folder, table):
    source = table.parent / folder / "labels.csv"
    source.write_text(text, encoding="utf-8")
    _, found = propose(table, (), labels=source)
    assert [(Path(change.path).name, change.after) for change in found.changes] == [
        ("a.flac", "calm")
    ]


def test_a_table_that_is_none_is_refused(tmp_path):
    for name in ("none.parquet", "text.parquet"):
        (tmp_path / "text.parquet").write_text("no table")
        with pytest.raises(RequestError):
            propose(tmp_path / name)


def test_the_command_shows_writes_and_undoes(table, capsys):
    before = contents(table)
    command = ["tag", str(table), "--estimate", "bpm", "--workers", "1"]
    assert cli.main(command) == 0
    shown = capsys.readouterr()
    assert "a.flac: bpm: none -> 120" in shown.out
    assert shown.err.startswith("files: 0 of 3\n")
    assert contents(table) == before
    assert cli.main([*command, "--write"]) == 0
    shown = capsys.readouterr().err
    assert "a.flac: bpm: none -> 120" in shown
    assert "files: 0 of 1\n" in shown
    assert contents(table) != before
    assert cli.main(["tag", str(table), "--undo"]) == 0
    assert contents(table) == before
    assert cli.main(["tag", str(table), "--undo"]) == 2
    assert cli.main(["tag", str(table), "--undo", "--write"]) == 2


KILLED = """
import os, sys
from patchifier.library import journal, tagging

journal.write_tags = lambda *_, **__: os._exit(9)  # no clean-up, as of a kill
tagging.write(sys.argv[1], [tagging.TagChange(sys.argv[2], "bpm", None, "120")])
"""


@pytest.mark.parametrize("flags", [["--estimate", "none"], ["--estimate", "bpm", "--write"]])
def test_what_a_killed_run_left_beside_a_file_is_removed_and_named(
    flags, table, capsys, child_environment
):
    before, music = contents(table), table.parent / "music"
    words = [sys.executable, "-c", KILLED, table, music / "a.flac"]
    assert subprocess.run(words, env=child_environment, check=False).returncode == 9
    assert {*contents(table)} - {*before} == {".a.flac.new", ".a.flac.new.lock"}
    assert cli.main(["tag", str(table), "--workers", "1", *flags]) == 0
    assert f"removed {music / '.a.flac.new'}" in capsys.readouterr().err
    assert {*contents(table)} == {*before}
    if "--write" not in flags:
        assert contents(table) == before
        assert not tagging.journal_folder(table).exists()


def test_a_file_of_such_a_name_that_no_run_left_is_never_touched(table, capsys):
    own = table.parent / "music" / ".a.flac.new"
    own.write_bytes(b"mine")
    before = contents(table)
    for flags in (["--estimate", "none"], ["--estimate", "bpm", "--write"]):
        cli.main(["tag", str(table), "--workers", "1", *flags])
        assert contents(table) == before
    assert ".a.flac.new lies beside it" in capsys.readouterr().out
    with pytest.raises(RequestError):
        tagging.undo(table)
    assert own.read_bytes() == b"mine"
