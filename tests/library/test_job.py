"""Tables of embeddings: rows, order, resumption, tags, refusals."""

import csv
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
import mutagen.id3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from patchifier import audio, checkpoint, decode, jobs
from patchifier.checkpoint import Checkpoint
from patchifier.cli.library import embedded_text
from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.embed import load
from patchifier.library import build, job, sources, table, tags, worker
from patchifier.nn.model import Patchifier
from tests import audio_files as made
from tests import builders, small
from tests.deadly import Deadly
from tests.library import require_same_table

RATE = 22_050
TINY = small.config({**small.WIDE, "max_patches": 25})
TRACKS = [f"track{number}.wav" for number in range(6)]
TAGS = ("artist", "title", "album", "genre")
TRACK = ("albumartist", "year", "track", "mb_recording_id", "mb_album_id", "mb_artist_id")
COLUMNS = ["size", "mtime_ns", "decoder", "length_s", *TAGS, *TRACK, "track_id", "level_db"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a small model with fixed weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    checkpoint.save(folder, Checkpoint(Patchifier(TINY, seed=0), TINY))
    return folder


@pytest.fixture(scope="module")
def embedder(model):
    return load(model)


@pytest.fixture(scope="module")
def other():
    return builders.embedder(Patchifier(TINY, seed=1), TINY)


@pytest.fixture
def music(audio_folder, tmp_path):
    """Copy of the audio folder that a test may change."""
    return Path(shutil.copytree(audio_folder, tmp_path / "library"))


@pytest.fixture
def embed(tmp_path, embedder):
    """Embed sources into a table of this name."""

    def run(given, name="x.parquet", **options):
        return build.embed_library(given, tmp_path / name, **{"embedder": embedder, **options})

    return run


@pytest.fixture
def read(tmp_path):
    return lambda name="x.parquet": build.read(tmp_path / name)


def names(rows):
    return [Path(path).name for path in rows.paths]


def files(folder):
    return sorted(os.listdir(folder))


# --- rows ---


def test_every_file_has_a_row_with_the_vector_of_embed(
    audio_folder, tmp_path, embed, read, embedder
):
    """Decoded by real processes."""
    done, rows = embed(audio_folder, workers=2), read()
    assert names(rows) == TRACKS
    assert (done.rows, done.files, done.embedded, done.kept, done.pending) == (6, 6, 6, 0, 0)
    assert (done.skipped, done.gone) == ((), ())
    lengths_s = [1 + number / 2 for number in range(6)]
    assert done.audio_s == pytest.approx(sum(lengths_s))
    np.testing.assert_array_equal(rows.start_s, 0)
    np.testing.assert_allclose(rows.end_s, lengths_s)
    stats = [os.stat(path) for path in rows.paths]
    assert rows.rows["size"].to_pylist() == [stat.st_size for stat in stats]
    assert rows.rows["mtime_ns"].to_pylist() == [stat.st_mtime_ns for stat in stats]
    expected = [embedder.embed(path) for path in rows.paths]
    np.testing.assert_allclose(rows.vectors, expected, atol=1e-5)
    assert files(tmp_path) == ["x.parquet"]


def test_columns_are_those_of_the_design(audio_folder, tmp_path, embed, embedder, threads):
    embed(audio_folder)
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert schema.names == [
        "path",
        "start_s",
        "end_s",
        "embedding",
        *COLUMNS,
    ]
    vector = schema.field("embedding").type
    assert pa.types.is_fixed_size_list(vector)
    assert (vector.list_size, vector.value_type) == (embedder.size, pa.float32())
    facts = json.loads(schema.metadata[b"patchifier"])
    assert facts["model"] == embedder.identity
    assert facts["pooling"] == embedder.config.embed.pooling
    assert (facts["window_s"], facts["hop_s"], facts["patches"]) == (None, None, False)
    assert facts["config"]


def test_a_model_folder_and_strings_will_do(audio_folder, tmp_path, model, embedder, threads):
    track = audio_folder / "album0" / "track0.wav"
    build.embed_library(str(track), str(tmp_path / "x.parquet"), embedder=model)
    vector = build.read(tmp_path / "x.parquet").vectors[0]
    np.testing.assert_allclose(vector, embedder.embed(track), atol=1e-5)


def test_what_else_is_in_a_batch_or_part_does_not_matter(
    audio_folder, embed, read, threads, monkeypatch
):
    embed(audio_folder)
    monkeypatch.setattr(job, "PART_FILES", 1)
    embed(audio_folder, "many.parquet")
    require_same_table(read(), read("many.parquet"), 1e-5)


@pytest.mark.parametrize(
    "options",
    [{"window_s": 1.0}, {"window_s": 1.0, "hop_s": 0.5}, {"window_s": 60.0}, {"patches": True}],
)
def test_windows_and_patches_are_those_of_the_embedder(
    options, audio_folder, embed, read, embedder, threads
):
    done, rows = embed(audio_folder, **options), read()
    cut = embedder.embed_patches if "patches" in options else embedder.embed_windows
    kwargs = {} if "patches" in options else options
    paths = sorted(audio_folder.rglob("*.wav"))
    found = [cut(path, **kwargs) for path in paths]
    assert rows.paths == tuple(
        str(path.resolve()) for path, one in zip(paths, found, strict=True) for _ in one.start_s
    )
    for name in ("start_s", "end_s"):
        expected = np.concatenate([getattr(one, name) for one in found])
        np.testing.assert_allclose(getattr(rows, name), expected)
    vectors = np.concatenate([one.vectors for one in found])
    np.testing.assert_allclose(rows.vectors, vectors, atol=1e-5)
    assert (done.rows, done.files) == (len(rows), 6)
    assert rows.metadata["patches"] is ("patches" in options)
    assert rows.metadata["hop_s"] == options.get("hop_s", options.get("window_s"))


def test_windows_of_a_known_length(tmp_path, embed, read, noise, threads):
    frame_s = 512 / RATE
    soundfile.write(tmp_path / "a.wav", noise(100.5 * frame_s), RATE)  # 101 frames
    embed(tmp_path / "a.wav", window_s=40 * frame_s, hop_s=20 * frame_s)
    np.testing.assert_allclose(read().start_s / frame_s, [0, 20, 40, 60, 61])
    np.testing.assert_allclose(read().end_s / frame_s, [40, 60, 80, 100, 101])


@pytest.mark.parametrize("long_frames", [10, 60])
@pytest.mark.parametrize("options", [{}, {"window_s": 1.0}, {"patches": True}])
def test_long_files_that_are_embedded_as_they_arrive_give_the_same_table(
    options, long_frames, audio_folder, embed, read, threads, monkeypatch
):
    embed(audio_folder, **options)
    monkeypatch.setattr(worker, "LONG_FRAMES", long_frames)
    monkeypatch.setattr(decode, "BLOCK_S", 0.3)
    embed(audio_folder, "long.parquet", **options)
    require_same_table(read(), read("long.parquet"), 1e-5)


def test_progress_names_rates_and_ends_with_all(audio_folder, embed, threads):
    said = []
    embed(audio_folder, progress=lambda *what: said.append(what))
    assert [done for done, _, _ in said] == [0, 1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in said} == {6}
    assert said[0][2] == ""
    assert all("files/s" in note and "x real time" in note for _, _, note in said[1:])


def test_two_jobs_of_one_table_at_once_are_refused(audio_folder, tmp_path, embed, threads):
    refused = []

    def second(done, total, note):
        with pytest.raises(RequestError, match=r"x\.parquet\.parts: another embed") as told:
            embed(audio_folder)
        refused.append(told.value)

    assert embed(audio_folder, progress=second).files == len(refused) - 1 == 6
    assert embed(audio_folder, changed=True).kept == 6
    assert files(tmp_path) == ["x.parquet"]


# --- sources ---


def found(given):
    clips, lost = sources.find(given)
    assert lost == []
    return [Path(clip.path).name for clip in clips]


def test_sources_keep_their_order_and_each_file_is_there_once(audio_folder):
    album0, album2 = audio_folder / "album0", audio_folder / "album2"
    given = [album2, str(album0 / "*.wav"), album2 / "track4.wav", audio_folder]
    assert found(given) == [TRACKS[number] for number in (4, 5, 0, 1, 2, 3)]


def test_a_link_is_the_file_it_leads_to(audio_folder, tmp_path):
    track = audio_folder / "album0" / "track0.wav"
    (tmp_path / "link.wav").symlink_to(track)
    clips, _ = sources.find([tmp_path / "link.wav", track])
    assert [clip.path for clip in clips] == [str(track.resolve())]


def test_a_glob_takes_folders_and_audio_files(music):
    (music / "cover.jpg").write_bytes(b"no audio")
    (music / "empty").mkdir()
    assert found(str(music / "*")) == TRACKS
    assert found(str(music / "**" / "track[12].wav")) == TRACKS[1:3]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path, tone):
    soundfile.write(tmp_path / "a[1].wav", tone(), RATE)
    assert found(tmp_path / "a[1].wav") == ["a[1].wav"]


def test_links_to_missing_files_are_named_by_their_own_path(tmp_path: Path) -> None:
    (tmp_path / "there.wav").touch()
    (tmp_path / "dead.wav").symlink_to("nowhere.wav")
    (tmp_path / "list.csv").write_text("path\nthere.wav\ndead.wav\n")
    dead = tmp_path.resolve() / "dead.wav"
    reason = (
        f"{dead}: is a link to a missing file, {dead.with_name('nowhere.wav')}: mend or delete it."
    )
    for source in (tmp_path, tmp_path / "*.wav", tmp_path / "list.csv"):
        clips, lost = sources.find(source)
        assert [Path(clip.path).name for clip in clips] == ["there.wav"]
        assert lost == [(str(dead), reason)]
    _, lost = sources.find([tmp_path / "there.wav", dead])
    assert lost == [(str(dead), reason)]


def test_paths_of_a_manifest_that_no_file_can_have_are_named(tmp_path: Path) -> None:
    (tmp_path / "there.wav").touch()
    rows = [{"path": path} for path in ("there.wav", "a\ud800.wav", "b\0.wav")]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips, lost = sources.find(tmp_path / "list.jsonl")
    assert [Path(clip.path).name for clip in clips] == ["there.wav"]
    assert ["not UTF-8" in reason for _, reason in lost] == [True, False]
    assert "zero byte" in lost[1][1]
    assert [Path(path).name for path, _ in lost] == [r"a\ud800.wav", r"b\x00.wav"]


def test_a_manifest_names_files_and_parts_of_them(music, embed, read, embedder, decoded):
    lines = ["path,start_s,end_s,id", "album2/track5.wav,,,a", "album2/track5.wav,1,2.5,b"]
    lines += ["album0/track0.wav,,,c", "album2/track5.wav,0.5,,d"]
    (music / "list.csv").write_text("\n".join(lines))
    embed(music / "list.csv")
    assert names(read()) == ["track5.wav", "track5.wav", "track0.wav", "track5.wav"]
    np.testing.assert_allclose(read().start_s, [0, 1, 0, 0.5])
    np.testing.assert_allclose(read().end_s, [3.5, 2.5, 1, 3.5])
    part = embedder.embed(audio.load(music / "album2" / "track5.wav", start_s=1, end_s=2.5), RATE)
    np.testing.assert_allclose(read().vectors[1], part, atol=1e-5)
    decoded.clear()
    again = embed(music / "list.csv", changed=True)
    assert (again.rows, again.kept, decoded) == (4, 4, [])
    (music / "list.csv").write_text("\n".join(lines).replace("1,2.5,b", "1,3,b"))
    again = embed(music / "list.csv", changed=True)
    assert (again.rows, again.embedded, again.kept, again.gone) == (4, 1, 3, ())
    np.testing.assert_allclose(read().end_s, [3.5, 3, 1, 3.5])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no sources"),
        (["{}/nowhere"], "no such file or folder"),
        (["{}/*.mp3"], "matches no audio file"),
        (["{}"], "no audio files in this folder"),
        (["a\0b"], "zero byte"),
        (["{}/../x.parquet"], "is a table, not music: give the folder of the music"),
    ],
)
def test_nothing_to_embed_is_refused_with_a_reason(given, said, tmp_path, embed):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(RequestError, match=said):
        embed([one.format(tmp_path / "empty") for one in given])
    assert files(tmp_path) == ["empty", "x.parquet"]


@pytest.mark.parametrize("name", ["x.parquet", "x.npy"])
def test_names_in_any_script_and_equal_names_in_two_folders(
    name, tmp_path, embed, read, embedder, tone, threads
):
    music = tmp_path / "music"
    given = ['Ä/01 日本語, "x".wav', 'b/01 日本語, "x".wav', "b/🎵\nnew line.wav"]
    for number, path in enumerate(given):
        (music / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(music / path, tone(220 * (number + 1)), RATE)
    embed(music, name)
    assert read(name).paths == tuple(str(path.resolve()) for path in sorted(music.rglob("*.wav")))
    expected = [embedder.embed(path) for path in read(name).paths]
    np.testing.assert_allclose(read(name).vectors, expected, atol=1e-5)
    assert len(np.unique(read(name).vectors, axis=0)) == 3


# --- bad files ---


def test_bad_files_are_skipped_and_named(music, tmp_path, embed, read, threads, silence):
    album = music / "album0"
    (album / "empty.wav").touch()
    (album / "text.mp3").write_text("no audio" * 100)
    whole = (album / "track1.wav").read_bytes()
    (album / "cut.wav").write_bytes(whole[: len(whole) // 2])
    os.symlink(music / "nowhere.wav", music / "broken.wav")
    shutil.copy(album / "track1.wav", os.path.join(os.fsencode(music), b"bad\xff.wav"))
    soundfile.write(album / "silent.wav", silence(1), RATE)
    soundfile.write(album / "integers.wav", silence(1) + 32_767, RATE, subtype="FLOAT")
    given = [music, music / "broken.wav", music / "missing.wav"]
    done = embed(given)
    assert (done.files, done.embedded, len(done.skipped)) == (7, 7, 7)
    text = (tmp_path / "x.skipped.csv").read_text(encoding="utf-8", errors="surrogateescape")
    rows = csv.DictReader(text.splitlines())
    reasons = {os.path.basename(row["path"]): row["reason"] for row in rows}
    assert not any(name in reason for name, reason in reasons.items())
    for name, reason in {
        "empty.wav": "0 bytes",
        "text.mp3": "",
        "cut.wav": "truncated",
        "integers.wav": "peak at 32767",
        "broken.wav": "is a link to a missing file",
        r"bad\xff.wav": "its name is not UTF-8: rename it.",
        "missing.wav": "",
    }.items():
        assert reason in reasons.pop(name)
    assert not reasons
    assert np.isfinite(read().vectors).all()
    again = embed(given)
    assert (again.embedded, again.kept, again.pending) == (0, 7, 0)
    assert sorted(again.skipped) == sorted(done.skipped)


def test_nothing_readable_is_refused_with_the_first_reason(tmp_path, embed, threads):
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.wav").touch()
    reason = r"none of the 2 files could be read.*x.skipped.csv.*a.wav: is empty"
    with pytest.raises(RequestError, match=reason):
        embed(tmp_path)
    assert files(tmp_path) == ["a.wav", "b.wav", "x.skipped.csv"]


def test_a_bad_file_that_was_mended_is_embedded_and_named_no_more(music, tmp_path, embed, threads):
    (music / "album0" / "empty.wav").touch()
    embed(music)
    shutil.copy(music / "album0" / "track0.wav", music / "album0" / "empty.wav")
    done = embed(music, changed=True)
    assert (done.files, done.embedded, done.skipped) == (7, 1, ())
    assert not (tmp_path / "x.skipped.csv").exists()


def test_a_file_that_kills_its_decoder_is_named_and_the_others_survive(audio_folder, embedder):
    good = sources.find(audio_folder)[0]
    batches = [[good[0], Clip("deadly.wav", Deadly("deadly.wav")), *good[1:3]], good[3:]]
    options = {"shared": (embedder, worker.Cut()), "name": lambda clip: clip.path}
    answers = list(jobs.run(worker.embed_batch, batches, workers=1, **options))
    assert answers.pop(1) == "deadly.wav: the decoder crashed on this file."
    assert [rows.how.length_s for rows in answers] == pytest.approx([1, 1.5, 2, 2.5, 3, 3.5])


# --- tags ---


@pytest.mark.parametrize("name", ["x.parquet", "x.npy"])
def test_tags_are_read_and_missing_ones_are_null(name, tmp_path, embed, read, tone, threads):
    music = tmp_path / "music"
    music.mkdir()
    for file in ("a.flac", "b.mp3", "c.ogg", "d.wav", "e.flac"):
        soundfile.write(music / file, tone(rate=44_100), 44_100)
    for file in ("a.flac", "b.mp3", "c.ogg"):
        tagged = mutagen.File(music / file, easy=True)
        if tagged.tags is None:
            tagged.add_tags()
        tagged["artist"], tagged["title"], tagged["genre"] = ["Björk", "Μουσική"], "日本語 🎵", "  "
        tagged.save()
    wav = mutagen.File(music / "d.wav")
    wav.add_tags()
    wav.tags.add(mutagen.id3.TPE1(encoding=3, text=["=Wave()"]))
    wav.tags.add(mutagen.id3.TALB(encoding=3, text=["+Album"]))
    wav.save()
    embed(music, name)
    assert {name: values for name, values in read(name).tags.items() if name in TAGS} == {
        "artist": ("Björk; Μουσική",) * 3 + ("=Wave()", None),
        "title": ("日本語 🎵",) * 3 + (None, None),
        "album": (None, None, None, "+Album", None),
        "genre": (None,) * 5,
    }


def test_broken_tags_stop_nothing(tmp_path, tone):
    path = tmp_path / "b.mp3"
    soundfile.write(path, tone(rate=44_100), 44_100)
    sound = path.read_bytes()
    frames = [b"TPE1\0\0\0\x20\0\0\x01", b"TIT2\0\0\xff\xff\0\0\x03", b""]
    for number in range(200):
        chance = random.Random(number)
        noise = bytes(chance.choice([0, 3, 65, 84, 255]) for _ in range(60))
        version, flags = chance.choice([2, 3, 4]), chance.choice([0, 64, 128])
        header = b"ID3" + bytes([version, 0, flags, 0, 0, 0, 60 + chance.choice([0, 40])])
        path.write_bytes(header + chance.choice(frames) + noise + sound)
        read = tags.read_tags(str(path))
        assert set(read) == {*TAGS, *TRACK}
        assert all(value is None or str(value).encode("utf-8") for value in read.values())


def test_tags_of_what_is_not_there_or_no_audio_are_null(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    for name in ("a.txt", "nowhere.mp3"):
        assert tags.read_tags(str(tmp_path / name)) == dict.fromkeys((*TAGS, *TRACK))


# --- a finished table ---


@pytest.fixture(params=["x.parquet", "x.npy"])
def finished(request, music, tmp_path, embed, decoded):
    """Path of a table of all tracks; nothing is decoded since."""
    embed(music, request.param)
    decoded.clear()
    return tmp_path / request.param


def test_again_does_nothing_but_count_what_waits(finished, music, embed, decoded):
    before = finished.read_bytes()
    again = embed(music, finished)
    assert (again.rows, again.files, again.embedded, again.kept, again.pending) == (6, 6, 0, 6, 0)
    shutil.copy(music / "album0" / "track0.wav", music / "album0" / "new.wav")
    os.utime(music / "album0" / "track1.wav", ns=(1, 1))
    (music / "album2" / "track5.wav").unlink()
    (music / "album2" / "track4.wav").rename(music / "album0" / "elsewhere.wav")
    again = embed(music, finished)
    assert (again.rows, again.pending, decoded) == (6, 4, [])
    assert finished.read_bytes() == before
    line, *_ = embedded_text(again).splitlines()
    assert line == (
        "1 new, 1 changed, 1 moved, 1 gone since: --changed brings the table up to date."
    )


def test_again_with_a_source_forgotten_says_so_and_does_not_offer_changed(
    finished, music, embed, decoded
):
    os.utime(music / "album0" / "track1.wav", ns=(1, 1))
    again = embed(music / "album0", finished)
    assert (again.pending, len(again.unlisted), decoded) == (1, 4, [])
    first, second, _ = embedded_text(again).splitlines()
    assert first.startswith("the table has 4 files that exist but are not among the sources, the")
    assert first.endswith("name every source that it was made from, or choose another --out.")
    assert second == "1 changed since."


def test_changed_names_what_is_much_shorter_and_what_lost_its_row(
    finished, music, embed, decoded, tone
):
    names = [str((music / name).resolve()) for name in ("album0/track1.wav", "album1/track2.wav")]
    sound, rate = soundfile.read(names[0])
    soundfile.write(names[0], sound[: len(sound) // 2], rate)
    Path(names[1]).write_bytes(b"")
    whole = music / "album1" / "track3.wav"
    sound, rate = soundfile.read(whole)
    soundfile.write(whole, sound[: round(0.95 * len(sound))], rate)
    done = embed(music, finished, changed=True)
    assert {"track1.wav", "track3.wav"} <= set(decoded)
    ((path, was_s, is_s),) = done.shorter
    assert (path, was_s, is_s) == (names[0], pytest.approx(1.5), pytest.approx(0.75, abs=0.01))
    assert done.removed == (names[1],)
    lines = embedded_text(done).splitlines()
    assert f"shorter: {names[0]}: was 2 s, is now 1 s" in lines
    assert f"skipped now: {names[1]}: its old row was removed" in lines


def test_changed_embeds_only_what_is_new_or_modified_and_drops_what_is_gone(
    finished, music, embed, read, decoded, tone
):
    soundfile.write(music / "album0" / "between.wav", tone(), RATE)
    soundfile.write(music / "album1" / "track2.wav", tone(999), RATE)
    (music / "album2" / "track5.wav").unlink()
    done = embed(music, finished, changed=True)
    assert sorted(decoded) == ["between.wav", "track2.wav"]
    assert (done.rows, done.files, done.embedded, done.kept, done.pending) == (6, 6, 2, 4, 0)
    assert [Path(path).name for path in done.gone] == ["track5.wav"]
    embed(music, f"fresh{finished.suffix}")
    require_same_table(read(finished), read(f"fresh{finished.suffix}"), 1e-5)
    assert names(read(finished)) == ["between.wav", *TRACKS[:5]]
    assert not finished.with_name(f"{finished.name}.parts").exists()


def test_changed_without_changes_writes_nothing(finished, music, embed, decoded):
    before = finished.stat()
    done = embed(music, finished, changed=True)
    assert (done.embedded, done.kept, decoded) == (0, 6, [])
    after = finished.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not finished.with_name(f"{finished.name}.parts").exists()


def test_changed_takes_a_new_order_of_sources(finished, music, embed, read, embedder, decoded):
    embed([music / "album2", music], finished, changed=True)
    assert decoded == []
    rows = read(finished)
    assert names(rows) == [TRACKS[number] for number in (4, 5, 0, 1, 2, 3)]
    expected = embedder.embed(music / "album2" / "track4.wav")
    np.testing.assert_allclose(rows.vectors[0], expected, atol=1e-5)


def test_rows_of_files_that_are_there_are_not_dropped(finished, music, embed, read):
    before = read(finished)
    reason = r"has 4 files that exist but are not among the sources.*track2.wav"
    with pytest.raises(RequestError, match=reason):
        embed(music / "album0", finished, changed=True)
    require_same_table(read(finished), before)
    assert not finished.with_name(f"{finished.name}.parts").exists()


def test_rows_below_a_folder_that_cannot_be_listed_are_kept(
    finished, music, embed, read, decoded, monkeypatch
):
    listed, stat = os.scandir, os.stat
    locked = str((music / "album1").resolve())
    (music / "album0" / "track1.wav").unlink()

    def denied(path, prefix):
        if str(path).startswith(prefix):
            raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: denied(path, locked) or listed(path))
        patch.setattr(
            os, "stat", lambda path, **how: denied(path, locked + os.sep) or stat(path, **how)
        )
        waiting = embed(music, finished)
        done = embed(music, finished, changed=True)
        with pytest.raises(RequestError, match="has 2 files that exist but are not among"):
            embed([music / "album0", music / "album2"], finished, changed=True)
    assert waiting.pending == 1
    assert (done.rows, done.kept, decoded) == (5, 5, [])
    assert [Path(path).name for path in done.gone] == ["track1.wav"]
    assert [path for path, _ in done.skipped] == [path for path, _ in waiting.skipped] == [locked]
    assert "cannot be listed (Permission denied)" in done.skipped[0][1]
    assert names(read(finished)) == [name for name in TRACKS if name != "track1.wav"]
    again = embed(music, finished, changed=True)
    assert (again.kept, again.skipped, decoded) == (5, (), [])


@pytest.mark.parametrize("linked", [False, True])
def test_rows_of_a_source_that_is_away_are_kept_until_it_is_named_no_more(
    linked, music, tmp_path, embed, read, decoded
):
    drive, link = tmp_path / "drive", music / "link"
    (music / "album1").rename(drive)
    if linked:
        link.symlink_to(drive)
    given = [music] if linked else [drive, music]
    embed(given)
    before = read()
    drive.rename(tmp_path / "away")
    decoded.clear()
    done = embed(given, changed=True)
    assert (done.rows, done.gone, decoded) == (6, (), [])
    away = str(music.resolve() / "link") if linked else str(drive)
    assert [path for path, _ in done.skipped] == [away]
    require_same_table(read(), before)
    link.unlink(missing_ok=True)
    done = embed(music, changed=True)
    assert (done.rows, len(done.gone), done.skipped) == (4, 2, ())


def test_another_models_table_is_refused_with_what_differs(finished, music, embed, embedder, other):
    identities = f"model is '{embedder.identity}', not '{other.identity}'"
    with pytest.raises(RequestError, match=identities):
        embed(music, finished, embedder=other, changed=True)
    with pytest.raises(RequestError, match=r"window_s is None, not 2.0; hop_s is None, not 2.0"):
        embed(music, finished, window_s=2.0)
    with pytest.raises(RequestError, match="patches is False, not True"):
        embed(music, finished, patches=True)


def test_npy_is_a_matrix_with_its_rows_beside_it(music, tmp_path, embed, read, threads):
    embed(music, "x.npy")
    embed(music)
    require_same_table(read("x.npy"), read())
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), read().vectors)
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()))
    assert [Path(row["path"]).name for row in rows] == TRACKS
    assert list(rows[0]) == [
        "path",
        "start_s",
        "end_s",
        *COLUMNS,
    ]


# --- requests without sense, tables from elsewhere ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hop_s": 1.0}, "without a window"),
        ({"window_s": 0.0}, "window_s is 0.0, expected at least one frame"),
        ({"window_s": 1.0, "hop_s": -1.0}, "hop_s is -1.0"),
        ({"window_s": float("nan")}, "window_s is nan"),
        ({"window_s": 1.0, "patches": True}, "expected one of them"),
    ],
)
def test_rows_without_sense_are_refused(options, said, audio_folder, tmp_path, embed):
    with pytest.raises(RequestError, match=said):
        embed(audio_folder, **options)
    assert files(tmp_path) == []


def test_a_name_of_another_kind_or_of_others_files_is_refused(music, tmp_path, embed):
    with pytest.raises(RequestError, match=r"ends in .parquet, .csv or .npy"):
        embed(music, "x.txt")
    (tmp_path / "y.csv").write_text("path\n")
    with pytest.raises(RequestError, match=r"y.csv exists already"):
        embed(music, "y.npy")
    mine = tmp_path / "z.parquet.parts" / "mine.txt"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(RequestError, match=r"z.parquet.parts exists and is not a job"):
        embed(music, "z.parquet")
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="its folder cannot be made"):
        embed(music, "file/x.parquet")
    assert (tmp_path / "y.csv").read_text() == "path\n"
    assert mine.exists()


def test_tables_from_elsewhere_are_refused(music, tmp_path, embed, read):
    pq.write_table(pa.table({"path": ["a"], "embedding": [[1.0]]}), tmp_path / "theirs.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    np.save(tmp_path / "alone.npy", np.zeros((2, 2)))
    for name, said in {
        "theirs.parquet": "lacks the columns",
        "text.parquet": "not a Parquet file",
        "alone.npy": "cannot be read",
    }.items():
        before = (tmp_path / name).read_bytes()
        with pytest.raises(RequestError, match=said):
            read(name)
        with pytest.raises(RequestError, match=name):
            embed(music, name, changed=True)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(RequestError, match="no such file"):
        read("none.parquet")


def test_a_table_of_a_newer_format_or_with_other_columns_is_refused(
    music, tmp_path, embed, read, threads
):
    embed(music)
    rows = pq.read_table(tmp_path / "x.parquet")
    facts = json.dumps({**json.loads(rows.schema.metadata[b"patchifier"]), "format": 99})
    newer = rows.replace_schema_metadata({"patchifier": facts})
    pq.write_table(newer, tmp_path / "newer.parquet")
    pq.write_table(rows.drop_columns(["artist"]), tmp_path / "less.parquet")
    with pytest.raises(RequestError, match="format 99"):
        read("newer.parquet")
    with pytest.raises(RequestError, match="lacks the columns artist"):
        read("less.parquet")


def test_npy_whose_companions_are_not_its_own_is_refused(music, tmp_path, embed, read, threads):
    embed(music, "x.npy")
    np.save(tmp_path / "x.npy", np.load(tmp_path / "x.npy")[::-1])
    with pytest.raises(RequestError, match=r"not those that x\.json describes"):
        read("x.npy")


def test_a_truncated_table_is_refused(finished, read):
    os.truncate(finished, finished.stat().st_size // 2)
    with pytest.raises(RequestError, match=finished.name):
        read(finished)


# --- kills ---


class Killed(BaseException):
    """What stops a job in the tests that need no process."""


def die(*_):
    raise Killed


@pytest.fixture
def kill(embed, monkeypatch):
    """Embed in parts of two files, and kill the job when so many files are done."""

    def begin(given, name="x.parquet", *, stop):
        monkeypatch.setattr(job, "PART_FILES", 2)
        with pytest.raises(Killed):
            embed(given, name, workers=1, progress=lambda done, *_: done == stop and die())

    return begin


@pytest.mark.parametrize("name", ["x.parquet", "x.npy"])
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_an_interrupted_job_goes_on_bit_for_bit(
    name, stop, music, tmp_path, kill, embed, read, decoded
):
    (music / "album0" / "empty.wav").touch()
    kill(music, name, stop=stop)
    assert not (tmp_path / name).exists()
    parts = len(list(tmp_path.glob(f"{name}.parts/0*.parquet")))
    assert parts == (stop - 1) // 2
    decoded.clear()
    said = []
    done = embed(music, name, progress=lambda count, *_: said.append(count))
    assert len(decoded) == 7 - 2 * parts
    assert said == list(range(2 * parts, 8))
    assert done.embedded + done.kept == done.files == 6
    assert [Path(path).name for path, _ in done.skipped] == ["empty.wav"]
    whole = f"whole{Path(name).suffix}"
    embed(music, whole)
    assert (tmp_path / name).read_bytes() == (tmp_path / whole).read_bytes()
    require_same_table(read(name), read(whole))


@pytest.mark.parametrize("stop", range(1, 8))
def test_parts_grow_alike_in_a_job_that_was_interrupted(
    stop, music, tmp_path, embed, read, threads, monkeypatch
):
    (music / "album0" / "empty.wav").touch()
    monkeypatch.setattr(job, "FIRST_FILES", 1)
    monkeypatch.setattr(job, "PART_FILES", 2)
    ends = [1, 2, 4, 6, 7]  # of the parts, in files
    with pytest.raises(Killed):
        embed(music, workers=1, progress=lambda done, *_: done == stop and die())
    parts = list((tmp_path / "x.parquet.parts").glob("0*.parquet"))
    assert len(parts) == sum(end < stop for end in ends)
    said = []
    embed(music, progress=lambda done, *_: said.append(done))
    assert said[0] == max([0, *(end for end in ends if end < stop)])
    embed(music, "whole.parquet")
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.parametrize("name", ["x.parquet", "x.npy"])
@pytest.mark.parametrize("place", ["_put_in_place", "_clear"])
def test_a_job_killed_while_it_puts_the_table_in_place_goes_on(
    name, place, music, tmp_path, embed, read, decoded, monkeypatch
):
    whole = f"whole{Path(name).suffix}"
    embed(music, whole)
    with monkeypatch.context() as patch:
        patch.setattr(job.TableJob, place, die)
        with pytest.raises(Killed):
            embed(music, name)
    decoded.clear()
    embed(music, name)
    assert decoded == []
    require_same_table(read(name), read(whole))
    assert not (tmp_path / f"{name}.parts").exists()


def test_npy_killed_between_its_three_files_is_mended(music, embed, read, threads, monkeypatch):
    embed(music, "x.npy")
    shutil.copy(music / "album0" / "track0.wav", music / "album0" / "a.wav")
    place = table.put_in_place

    def stop_at_vectors(made, path):
        if path.suffix == ".npy":
            raise Killed
        place(made, path)

    with monkeypatch.context() as patch:
        patch.setattr(table, "put_in_place", stop_at_vectors)
        with pytest.raises(Killed):
            embed(music, "x.npy", changed=True)
    with pytest.raises(RequestError, match="not those that"):
        read("x.npy")
    embed(music, "x.npy", changed=True)
    assert names(read("x.npy")) == ["a.wav", *TRACKS]


@pytest.mark.parametrize("left", [[], [".facts.json.new-12"], ["base.parquet", "export.npy"]])
def test_a_job_killed_at_its_very_beginning_or_end_starts_anew(
    left, music, tmp_path, embed, threads
):
    folder = tmp_path / "x.parquet.parts"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("half")
    assert embed(music).rows == 6
    assert not folder.exists()


def test_a_begun_job_of_another_model_is_refused(music, kill, embed, other, threads):
    kill(music, stop=1)
    with pytest.raises(RequestError, match=r"x.parquet.parts was made by another model.*model is"):
        embed(music, embedder=other)


def test_a_damaged_part_is_embedded_again(music, tmp_path, kill, embed, read, decoded):
    kill(music, stop=5)
    part = tmp_path / "x.parquet.parts" / "00000.parquet"
    os.truncate(part, part.stat().st_size - 100)
    decoded.clear()
    embed(music)
    assert sorted(decoded) == ["track0.wav", "track1.wav", "track4.wav", "track5.wav"]
    assert names(read()) == TRACKS


def test_a_file_modified_between_a_kill_and_the_next_run_is_embedded_again(
    music, kill, embed, read, tone, threads
):
    kill(music, stop=5)
    soundfile.write(music / "album0" / "track1.wav", tone(999), RATE)
    (music / "album0" / "track0.wav").unlink()
    embed(music)
    embed(music, "whole.parquet")
    require_same_table(read(), read("whole.parquet"), 1e-5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_skipped_and_a_repaired_header_is_a_note(tmp_path, embed, read, threads):
    os.mkfifo(tmp_path / "pipe.wav")
    made.wav(tmp_path / "cut.wav", 2.0, stated=0)
    done = embed([tmp_path / name for name in ("pipe.wav", "cut.wav")])
    ((path, reason),) = done.skipped
    assert path.endswith("pipe.wav")
    assert "a pipe or a device" in reason
    ((path, note),) = done.notes
    assert path.endswith("cut.wav")
    assert f"note about {path}: {note}" in embedded_text(done)
    assert read().decoder == ("libsndfile",)
    assert read().length_s == pytest.approx([2.0])


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_table_without_decoder_and_length_is_read_and_continued(
    suffix, music, tmp_path, embed, read, tone, threads
):
    """As an older version wrote it."""
    older, out = tmp_path / "older.parquet", f"x{suffix}"
    embed(music, older.name)
    rows = pq.read_table(older).drop_columns(["decoder", "length_s"])
    facts = json.loads(rows.schema.metadata[table.FACTS])
    del facts["crc32"]
    pq.write_table(rows.replace_schema_metadata({table.FACTS: json.dumps(facts)}), older)
    old = read(older.name)
    assert old.decoder == (None,) * len(old)
    assert np.isnan(old.length_s).all()
    if suffix == ".npy":
        table.export_npy(older, tmp_path / out)
    else:
        older.rename(tmp_path / out)
    soundfile.write(music / "album0" / "new.wav", tone(999), RATE)
    embed(music, out, changed=True)
    new = read(out)
    rows = {name: row for row, name in enumerate(names(new))}
    assert len(new) == len(old) + 1
    assert new.decoder[rows["new.wav"]] == "libsndfile"
    assert new.length_s[rows["new.wav"]] == 1.0
    assert new.decoder[rows["track0.wav"]] is None


def test_many_rows_are_merged_in_groups_and_in_order(tmp_path, read):
    facts = {**dict.fromkeys(table.SAME), "format": 1, "model": "a", "size": 3, "stretches": []}
    rows, places = 10_000, []
    for number in range(3):
        part = tmp_path / f"{number:05d}.parquet"
        columns = {name: [None] * rows for name in COLUMNS}
        columns |= {"path": [f"{number}/{row}" for row in range(rows)], "start_s": [0.0] * rows}
        columns |= {"end_s": [1.0] * rows, "size": [1] * rows, "mtime_ns": [2] * rows}
        vectors = np.stack([np.full(rows, number), np.arange(rows), np.ones(rows)], axis=1)
        piece = table.rows_table(columns, vectors.astype(np.float32), facts)
        table.write(part, iter([piece]), table.schema(facts, 3))
        places += [(part, line) for line in table.index(part)]
    kept = sorted(np.random.default_rng(0).choice(len(places), 20_000, replace=False))
    merged = table._taken([places[index] for index in kept])
    table.write(tmp_path / "x.parquet", merged, table.schema(facts, 3))
    assert read().paths == tuple(f"{index // rows}/{index % rows}" for index in kept)
    np.testing.assert_array_equal(read().vectors[:, 0] * rows + read().vectors[:, 1], kept)
    groups = pq.ParquetFile(tmp_path / "x.parquet").metadata
    lengths = [groups.row_group(group).num_rows for group in range(3)]
    assert lengths == [8192, 8192, 20_000 - 2 * 8192]


RUN = """
import sys, time
from patchifier.library import build, job

def slowly(done, total, note):
    print(done, flush=True)
    time.sleep(0.03)

if __name__ == "__main__":
    job.PART_FILES = 3
    source, out, model = sys.argv[1:]
    build.embed_library(source, out, embedder=model, workers=2, changed=True, progress=slowly)
"""


@pytest.fixture
def start(tmp_path, model, child_environment):
    """Start a job in a process of its own, in parts of three files; it prints the files done."""
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def begin(source, out):
        command = [sys.executable, script, source, out, model]
        pipes = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        return subprocess.Popen(command, env=child_environment, **pipes)

    return begin


def kill_all(process):
    """Kill a job and the processes that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory, noise):
    """Thirty short files, two of them bad."""
    root = tmp_path_factory.mktemp("many")
    for number in range(30):
        soundfile.write(root / f"{number:02d}.flac", noise(1 + number % 3, seed=number), RATE)
    (root / "07.flac").write_bytes(b"")
    (root / "20.flac").write_bytes(b"fLaC no more")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_job_killed_at_any_moment_loses_no_row_and_has_none_twice(
    seed, many, tmp_path, start, embed, read, threads, monkeypatch
):
    suffix, chance = ".npy" if seed % 2 else ".parquet", random.Random(seed)
    for _ in range(3):
        process = start(many, tmp_path / f"x{suffix}")
        for _ in range(chance.choice([0, 1, 5, 12, 30])):
            process.stdout.readline()
        time.sleep(chance.uniform(0, 0.3))
        kill_all(process)
    monkeypatch.setattr(job, "PART_FILES", 3)
    done = embed(many, f"x{suffix}", changed=True)
    embed(many, f"whole{suffix}")
    assert (done.rows, len(done.skipped)) == (28, 2)
    require_same_table(read(f"x{suffix}"), read(f"whole{suffix}"))
    assert not (tmp_path / f"x{suffix}.parts").exists()


@pytest.mark.slow
def test_processes_of_a_killed_job_end_too(many, tmp_path, start):
    """They hold the other end of the pipe, which closes when the last of them is gone."""
    process = start(many, tmp_path / "x.parquet")
    process.stdout.readline()
    process.kill()
    try:
        process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        kill_all(process)
        pytest.fail("decoding processes go on for ever after the job that started them was killed")


MEMORY = """
import resource, sys
from patchifier.library import build

if __name__ == "__main__":
    build.embed_library(sys.argv[1], sys.argv[2], embedder=sys.argv[3], workers=1)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print(resource.getrusage(who).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path, model, child_environment):
    (tmp_path / "memory.py").write_text(MEMORY)
    peaks = {}
    for minutes in (3, 180):
        source, out = tmp_path / f"{minutes}.wav", tmp_path / f"{minutes}.parquet"
        with soundfile.SoundFile(source, "w", RATE, 1) as file:
            for second in range(60 * minutes):
                chance = np.random.default_rng(second)
                file.write(0.1 * chance.standard_normal(RATE, dtype=np.float32))
        command = [sys.executable, tmp_path / "memory.py", source, out, model]
        pipes = {"capture_output": True, "text": True, "check": True}
        answer = subprocess.run(command, env=child_environment, **pipes)
        peaks[minutes] = [float(value) for value in answer.stdout.split()]
    assert peaks[180][0] < 1.2 * peaks[3][0], peaks  # the process that collects, MB
    assert peaks[180][1] < 1.2 * peaks[3][1], peaks  # the one that works
    assert build.read(tmp_path / "180.parquet").end_s[0] == 10_800


# --- what a model or the machine cannot do ---


def without_memory(monkeypatch, *, most):
    """Let more clips than `most` at once, or the clip of the third file, take too much memory."""
    embed_short = worker._embed_short

    def embedded(embedder, cut, log_mels):
        lengths = [log_mel.shape[-1] for log_mel in log_mels]
        if len(lengths) > most or lengths == [87]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return embed_short(embedder, cut, log_mels)

    monkeypatch.setattr(worker, "_embed_short", embedded)


def test_files_that_take_too_much_memory_together_are_embedded_one_by_one(
    music, embed, read, threads, monkeypatch
):
    embed(music, workers=1)
    without_memory(monkeypatch, most=1)
    ((path, reason),) = embed(music, "y.parquet", workers=1).skipped
    assert path.endswith("track2.wav")  # 2 s: 87 frames
    assert "memory" in reason
    expected = np.delete(read().vectors, 2, axis=0)
    np.testing.assert_allclose(read("y.parquet").vectors, expected, atol=1e-5)


def test_vectors_that_are_not_finite_are_not_written(music, tmp_path, embed, threads):
    overflowing = Patchifier(TINY)
    for parameter in overflowing.bottleneck.parameters():
        parameter.data.fill_(3e38)
    with pytest.raises(RequestError, match="not finite"):
        embed(music, embedder=builders.embedder(overflowing, TINY), workers=1)
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"model": 1}', "[" * 100_000])
def test_damaged_facts_of_parts_are_refused(music, tmp_path, embed, text):
    folder = tmp_path / "x.parquet.parts"
    folder.mkdir()
    (folder / "facts.json").write_text(text)
    with pytest.raises(RequestError, match=r"facts\.json"):
        embed(music, workers=1)
