"""Tables of embeddings: rows, order, resumption, tags, refusals."""

import csv
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mutagen
import mutagen.id3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from patchifier import audio, checkpoint, jobs
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.datasets import Clip
from patchifier.embed import Embedder, load
from patchifier.library import build, job, sources, table, tags, worker
from patchifier.library.stored import EmbeddingTable
from patchifier.nn.model import Patchifier

RATE = 22_050
TINY = update(
    Config(),
    {
        "model": {
            "channels": [4, 4, 8, 8, 16],
            "embed_dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "mlp_dim": 64,
            "max_patches": 25,
        }
    },
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small model with fixed weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    checkpoint.save(folder, Checkpoint(Patchifier(TINY, seed=0), TINY))
    return folder


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    return load(model)


@pytest.fixture(scope="module")
def other() -> Embedder:
    return Embedder(Patchifier(TINY, seed=1), TINY)


@pytest.fixture
def music(audio_folder: Path, tmp_path: Path) -> Path:
    """Copy of the audio folder that a test may change."""
    return Path(shutil.copytree(audio_folder, tmp_path / "library"))


def names(read: EmbeddingTable) -> list[str]:
    return [Path(path).name for path in read.paths]


def require_same(first: EmbeddingTable, second: EmbeddingTable, tolerance: float = 0.0) -> None:
    assert first.paths == second.paths
    assert first.tags == second.tags
    assert first.metadata == second.metadata
    for name in ("start_s", "end_s", "size", "mtime_ns"):
        np.testing.assert_array_equal(first.rows[name], second.rows[name])
    np.testing.assert_allclose(first.vectors, second.vectors, atol=tolerance, rtol=0)


# --- rows ---


def test_every_file_has_a_row_with_the_vector_of_embed(
    audio_folder: Path, tmp_path: Path, embedder: Embedder
) -> None:
    """Decoded by real processes."""
    done = build.embed_library(audio_folder, tmp_path / "x.parquet", embedder=embedder, workers=2)
    read = build.read(tmp_path / "x.parquet")
    assert names(read) == [f"track{number}.wav" for number in range(6)]
    assert (
        done.rows,
        done.files,
        done.embedded,
        done.kept,
        done.skipped,
        done.gone,
        done.pending,
    ) == (6, 6, 6, 0, (), (), 0)
    assert done.audio_s == pytest.approx(sum(1 + number / 2 for number in range(6)))
    np.testing.assert_array_equal(read.start_s, 0)
    np.testing.assert_allclose(read.end_s, [1 + number / 2 for number in range(6)])
    for path, vector, size, mtime_ns in zip(
        read.paths,
        read.vectors,
        read.rows["size"].to_numpy(),
        read.rows["mtime_ns"].to_numpy(),
        strict=True,
    ):
        np.testing.assert_allclose(vector, embedder.embed(path), atol=1e-5)
        assert [size, mtime_ns] == [os.stat(path).st_size, os.stat(path).st_mtime_ns]
    assert not (tmp_path / "x.parquet.parts").exists()
    assert not (tmp_path / "x.skipped.csv").exists()


def test_columns_are_those_of_the_design(
    audio_folder: Path, tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    build.embed_library(audio_folder, tmp_path / "x.parquet", embedder=embedder)
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert schema.names == [
        "path",
        "start_s",
        "end_s",
        "embedding",
        "size",
        "mtime_ns",
        "artist",
        "title",
        "album",
        "genre",
    ]
    assert pa.types.is_fixed_size_list(schema.field("embedding").type)
    assert schema.field("embedding").type.list_size == embedder.size
    assert schema.field("embedding").type.value_type == pa.float32()
    facts = json.loads(schema.metadata[b"patchifier"])
    assert facts["model"] == embedder.identity
    assert (facts["pooling"], facts["window_s"], facts["hop_s"], facts["patches"]) == (
        embedder.config.embed.pooling,
        None,
        None,
        False,
    )
    assert facts["config"]


def test_a_model_folder_will_do(
    audio_folder: Path, tmp_path: Path, model: Path, embedder: Embedder, threads: None
) -> None:
    build.embed_library(
        str(audio_folder / "album0" / "track0.wav"), str(tmp_path / "x.parquet"), embedder=model
    )
    np.testing.assert_allclose(
        build.read(tmp_path / "x.parquet").vectors[0],
        embedder.embed(audio_folder / "album0" / "track0.wav"),
        atol=1e-5,
    )


def test_what_else_is_in_a_batch_or_part_does_not_matter(
    audio_folder: Path,
    tmp_path: Path,
    embedder: Embedder,
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build.embed_library(audio_folder, tmp_path / "one.parquet", embedder=embedder)
    monkeypatch.setattr(job, "PART_FILES", 1)
    build.embed_library(audio_folder, tmp_path / "many.parquet", embedder=embedder)
    require_same(build.read(tmp_path / "one.parquet"), build.read(tmp_path / "many.parquet"), 1e-5)


@pytest.mark.parametrize(("window_s", "hop_s"), [(1.0, None), (1.0, 0.5), (60.0, None)])
def test_windows_are_those_of_embed_windows(
    window_s: float,
    hop_s: float | None,
    audio_folder: Path,
    tmp_path: Path,
    embedder: Embedder,
    threads: None,
) -> None:
    done = build.embed_library(
        audio_folder, tmp_path / "x.parquet", embedder=embedder, window_s=window_s, hop_s=hop_s
    )
    read = build.read(tmp_path / "x.parquet")
    expected = [
        (path, embedder.embed_windows(path, window_s=window_s, hop_s=hop_s))
        for path in sorted(audio_folder.rglob("*.wav"))
    ]
    assert read.paths == tuple(
        str(path.resolve()) for path, found in expected for _ in found.start_s
    )
    np.testing.assert_allclose(
        read.start_s, np.concatenate([found.start_s for _, found in expected])
    )
    np.testing.assert_allclose(read.end_s, np.concatenate([found.end_s for _, found in expected]))
    np.testing.assert_allclose(
        read.vectors, np.concatenate([found.vectors for _, found in expected]), atol=1e-5
    )
    assert (done.rows, done.files) == (len(read), 6)
    assert read.metadata["hop_s"] == (hop_s or window_s)


def test_windows_of_a_known_length(
    tmp_path: Path, embedder: Embedder, noise: Callable, threads: None
) -> None:
    frame_s = 512 / RATE
    soundfile.write(tmp_path / "a.wav", noise(100.5 * frame_s), RATE)  # 101 frames
    build.embed_library(
        tmp_path / "a.wav",
        tmp_path / "x.parquet",
        embedder=embedder,
        window_s=40 * frame_s,
        hop_s=20 * frame_s,
    )
    read = build.read(tmp_path / "x.parquet")
    np.testing.assert_allclose(read.start_s / frame_s, [0, 20, 40, 60, 61])
    np.testing.assert_allclose(read.end_s / frame_s, [40, 60, 80, 100, 101])


def test_patches_are_those_of_embed_patches(
    audio_folder: Path, tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    build.embed_library(audio_folder, tmp_path / "x.parquet", embedder=embedder, patches=True)
    read = build.read(tmp_path / "x.parquet")
    found = [embedder.embed_patches(path) for path in sorted(audio_folder.rglob("*.wav"))]
    np.testing.assert_allclose(
        read.vectors, np.concatenate([one.vectors for one in found]), atol=1e-5
    )
    np.testing.assert_allclose(read.start_s, np.concatenate([one.start_s for one in found]))
    assert read.metadata["patches"] is True


@pytest.mark.parametrize("long_frames", [10, 60])
def test_long_files_that_are_embedded_as_they_arrive_give_the_same_table(
    long_frames: int,
    audio_folder: Path,
    tmp_path: Path,
    embedder: Embedder,
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rows, options in {
        "files": {},
        "windows": {"window_s": 1.0},
        "patches": {"patches": True},
    }.items():
        build.embed_library(
            audio_folder, tmp_path / f"{rows}.parquet", embedder=embedder, **options
        )
        with monkeypatch.context() as patch:
            patch.setattr(worker, "LONG_FRAMES", long_frames)
            patch.setattr(audio, "BLOCK_S", 0.3)
            build.embed_library(
                audio_folder, tmp_path / f"{rows}-long.parquet", embedder=embedder, **options
            )
        require_same(
            build.read(tmp_path / f"{rows}.parquet"),
            build.read(tmp_path / f"{rows}-long.parquet"),
            1e-5,
        )


def test_progress_names_rates_and_ends_with_all(
    audio_folder: Path, tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    said: list[tuple[int, int, str]] = []
    build.embed_library(
        audio_folder,
        tmp_path / "x.parquet",
        embedder=embedder,
        progress=lambda *what: said.append(what),
    )
    assert [done for done, _, _ in said] == [1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in said} == {6}
    assert all("files/s" in note and "x real time" in note for _, _, note in said)


def test_two_jobs_of_one_table_at_once_are_refused(
    audio_folder: Path, tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    out, refused = tmp_path / "x.parquet", list[RequestError]()

    def second(done: int, total: int, note: str) -> None:
        with pytest.raises(
            RequestError, match=r"x\.parquet\.parts: another embed is working"
        ) as told:
            build.embed_library(audio_folder, out, embedder=embedder)
        refused.append(told.value)

    assert (
        build.embed_library(audio_folder, out, embedder=embedder, progress=second).files
        == len(refused)
        == 6
    )
    assert build.embed_library(audio_folder, out, embedder=embedder, changed=True).kept == 6
    assert os.listdir(tmp_path) == ["x.parquet"]


# --- sources ---


def test_sources_keep_their_order_and_each_file_is_there_once(audio_folder: Path) -> None:
    given = [
        audio_folder / "album2",
        str(audio_folder / "album0" / "*.wav"),
        audio_folder / "album2" / "track4.wav",
        audio_folder,
    ]
    clips, lost = sources.find(given)
    assert [Path(clip.path).name for clip in clips] == [
        "track4.wav",
        "track5.wav",
        "track0.wav",
        "track1.wav",
        "track2.wav",
        "track3.wav",
    ]
    assert lost == []


def test_a_link_is_the_file_it_leads_to(audio_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.wav").symlink_to(audio_folder / "album0" / "track0.wav")
    clips, _ = sources.find([tmp_path / "link.wav", audio_folder / "album0" / "track0.wav"])
    assert [clip.path for clip in clips] == [
        str((audio_folder / "album0" / "track0.wav").resolve())
    ]


def test_a_glob_takes_folders_and_audio_files(music: Path) -> None:
    (music / "cover.jpg").write_bytes(b"no audio")
    (music / "empty").mkdir()
    clips, lost = sources.find(str(music / "*"))
    assert (len(clips), lost) == (6, [])
    assert len(sources.find(str(music / "**" / "track[12].wav"))[0]) == 2


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path, tone: Callable) -> None:
    soundfile.write(tmp_path / "a[1].wav", tone(), RATE)
    assert [Path(clip.path).name for clip in sources.find(tmp_path / "a[1].wav")[0]] == ["a[1].wav"]


def test_a_manifest_names_files_and_parts_of_them(
    music: Path, tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    lines = [
        "path,start_s,end_s,id",
        "album2/track5.wav,,,a",
        "album2/track5.wav,1,2.5,b",
        "album0/track0.wav,,,c",
        "album2/track5.wav,0.5,,d",
    ]
    (music / "list.csv").write_text("\n".join(lines))
    out = tmp_path / "x.parquet"
    build.embed_library(music / "list.csv", out, embedder=embedder)
    read = build.read(out)
    assert names(read) == ["track5.wav", "track5.wav", "track0.wav", "track5.wav"]
    np.testing.assert_allclose(read.start_s, [0, 1, 0, 0.5])
    np.testing.assert_allclose(read.end_s, [3.5, 2.5, 1, 3.5])
    part = embedder.embed(audio.load(music / "album2" / "track5.wav", start_s=1, end_s=2.5), RATE)
    np.testing.assert_allclose(read.vectors[1], part, atol=1e-5)
    lines[2] = "album2/track5.wav,1,3,b"
    (music / "list.csv").write_text("\n".join(lines))
    again = build.embed_library(music / "list.csv", out, embedder=embedder, changed=True)
    assert (again.rows, again.embedded, again.kept, again.gone) == (4, 1, 3, ())
    np.testing.assert_allclose(build.read(out).end_s, [3.5, 3, 1, 3.5])


def test_a_file_next_to_a_part_of_itself_is_told_apart(
    music: Path, tmp_path: Path, embedder: Embedder, decoded: list[str]
) -> None:
    (music / "list.jsonl").write_text(
        "".join(
            json.dumps({"path": "album2/track5.wav", "id": str(end_s), "end_s": end_s}) + "\n"
            for end_s in (1, None, 2)
        )
    )
    build.embed_library(music / "list.jsonl", tmp_path / "x.parquet", embedder=embedder)
    decoded.clear()
    again = build.embed_library(
        music / "list.jsonl", tmp_path / "x.parquet", embedder=embedder, changed=True
    )
    assert (again.rows, again.kept, decoded) == (3, 3, [])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no sources"),
        (["{}/nowhere"], "no such file or folder"),
        (["{}/*.mp3"], "matches no audio file"),
        (["{}"], "no audio files in this folder"),
        (["a\0b"], "zero byte"),
    ],
)
def test_nothing_to_embed_is_refused_with_a_reason(
    given: list[str], said: str, tmp_path: Path, embedder: Embedder
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=said):
        build.embed_library(
            [one.format(tmp_path / "empty") for one in given],
            tmp_path / "x.parquet",
            embedder=embedder,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_names_in_any_script_and_equal_names_in_two_folders(
    tmp_path: Path, embedder: Embedder, tone: Callable, threads: None
) -> None:
    for number, name in enumerate(
        ['Ä/01 日本語, "x".wav', 'b/01 日本語, "x".wav', "b/🎵\nnew line.wav"]
    ):
        (tmp_path / "music" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "music" / name, tone(220 * (number + 1)), RATE)
    for out in (tmp_path / "x.parquet", tmp_path / "x.npy"):
        build.embed_library(tmp_path / "music", out, embedder=embedder)
        read = build.read(out)
        assert read.paths == tuple(
            str(path.resolve()) for path in sorted((tmp_path / "music").rglob("*.wav"))
        )
        for path, vector in zip(read.paths, read.vectors, strict=True):
            np.testing.assert_allclose(vector, embedder.embed(path), atol=1e-5)
        assert len(np.unique(read.vectors, axis=0)) == 3


# --- bad files ---


def test_bad_files_are_skipped_and_named(
    music: Path, tmp_path: Path, embedder: Embedder, threads: None, silence: Callable
) -> None:
    (music / "album0" / "empty.wav").touch()
    (music / "album0" / "text.mp3").write_text("no audio" * 100)
    whole = (music / "album0" / "track1.wav").read_bytes()
    (music / "album0" / "cut.wav").write_bytes(whole[: len(whole) // 2])
    os.symlink(music / "nowhere.wav", music / "broken.wav")
    strange = os.path.join(os.fsencode(music), b"bad\xff.wav")
    shutil.copy(music / "album0" / "track1.wav", strange)
    soundfile.write(music / "album0" / "silent.wav", silence(1), RATE)
    soundfile.write(music / "album0" / "integers.wav", silence(1) + 32_767, RATE, subtype="FLOAT")
    given = [music, music / "broken.wav", music / "missing.wav"]
    done = build.embed_library(given, tmp_path / "x.parquet", embedder=embedder)
    assert (done.files, done.embedded) == (7, 7)
    with (tmp_path / "x.skipped.csv").open(
        newline="", encoding="utf-8", errors="surrogateescape"
    ) as stream:
        rows = {os.path.basename(row["path"]): row["reason"] for row in csv.DictReader(stream)}
    assert set(rows) == {
        "empty.wav",
        "text.mp3",
        "cut.wav",
        "integers.wav",
        "nowhere.wav",
        r"bad\xff.wav",
        "missing.wav",
    }
    assert "0 bytes" in rows["empty.wav"]
    assert "truncated" in rows["cut.wav"]
    assert "peak at 32767" in rows["integers.wav"]
    assert "No such file" in rows["nowhere.wav"]
    assert rows[r"bad\xff.wav"].endswith(r"bad\xff.wav: its name is not UTF-8: rename it.")
    assert len(done.skipped) == 7
    assert np.isfinite(build.read(tmp_path / "x.parquet").vectors).all()
    again = build.embed_library(given, tmp_path / "x.parquet", embedder=embedder)
    assert (again.embedded, again.kept, again.pending, sorted(again.skipped)) == (
        0,
        7,
        0,
        sorted(done.skipped),
    )


def test_nothing_readable_is_refused_with_the_first_reason(
    tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.wav").touch()
    with pytest.raises(
        RequestError, match=r"none of the 2 files could be read.*x.skipped.csv.*a.wav: is empty"
    ):
        build.embed_library(tmp_path, tmp_path / "x.parquet", embedder=embedder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav", "x.skipped.csv"]


def test_a_bad_file_that_was_mended_is_embedded_and_named_no_more(
    music: Path, tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    (music / "album0" / "empty.wav").touch()
    build.embed_library(music, tmp_path / "x.parquet", embedder=embedder)
    shutil.copy(music / "album0" / "track0.wav", music / "album0" / "empty.wav")
    done = build.embed_library(music, tmp_path / "x.parquet", embedder=embedder, changed=True)
    assert (done.files, done.embedded, done.skipped) == (7, 1, ())
    assert not (tmp_path / "x.skipped.csv").exists()


@dataclasses.dataclass(frozen=True)
class Deadly:
    """Path that kills the worker process which opens it, as a crash in a decoder's C code does."""

    name: str

    def __fspath__(self) -> str:
        if multiprocessing.parent_process() is not None:
            os._exit(139)
        return self.name

    def __str__(self) -> str:
        return self.name


def test_a_file_that_kills_its_decoder_is_named_and_the_others_survive_in_order(
    audio_folder: Path, embedder: Embedder
) -> None:
    good = sources.find(audio_folder)[0]
    clips = [good[0], Clip("deadly.wav", Deadly("deadly.wav")), good[1], good[2]]  # type: ignore[arg-type]
    answers = list(
        jobs.run(
            worker.embed_batch,
            [clips, good[3:]],
            workers=1,
            shared=(embedder, worker.Cut()),
            name=lambda clip: clip.path,
        )
    )
    assert answers[1] == "deadly.wav: the decoder crashed on this file."
    assert [
        answer.duration_s for answer in answers if isinstance(answer, worker.ClipRows)
    ] == pytest.approx([1, 1.5, 2, 2.5, 3, 3.5])


# --- tags ---


def test_tags_are_read_and_missing_ones_are_null(
    tmp_path: Path, embedder: Embedder, tone: Callable, threads: None
) -> None:
    music = tmp_path / "music"
    music.mkdir()
    for name in ("a.flac", "b.mp3", "c.ogg", "d.wav", "e.flac"):
        soundfile.write(music / name, tone(seconds=1.0, rate=44_100), 44_100)
    for name in ("a.flac", "b.mp3", "c.ogg"):
        file = mutagen.File(music / name, easy=True)
        if file.tags is None:
            file.add_tags()
        file["artist"], file["title"], file["genre"] = ["Björk", "Μουσική"], "日本語 🎵", "  "
        file.save()
    wav = mutagen.File(music / "d.wav")
    wav.add_tags()
    wav.tags.add(mutagen.id3.TPE1(encoding=3, text=["Wave"]))
    wav.tags.add(mutagen.id3.TALB(encoding=3, text=["Album"]))
    wav.save()
    for out in (tmp_path / "x.parquet", tmp_path / "x.npy"):
        build.embed_library(music, out, embedder=embedder)
        tags = build.read(out).tags
        assert tags["artist"] == ("Björk; Μουσική",) * 3 + ("Wave", None)
        assert tags["title"] == ("日本語 🎵",) * 3 + (None, None)
        assert tags["album"] == (None, None, None, "Album", None)
        assert tags["genre"] == (None,) * 5


def test_broken_tags_stop_nothing(tmp_path: Path, tone: Callable) -> None:
    soundfile.write(tmp_path / "a.mp3", tone(seconds=1.0, rate=44_100), 44_100)
    sound = (tmp_path / "a.mp3").read_bytes()
    for number in range(200):
        chance = random.Random(number)
        frame = bytes(chance.choice([0, 3, 65, 84, 255]) for _ in range(60))
        header = (
            b"ID3"
            + bytes([chance.choice([2, 3, 4]), 0, chance.choice([0, 64, 128])])
            + bytes([0, 0, 0, 60 + chance.choice([0, 40])])
        )
        (tmp_path / "b.mp3").write_bytes(
            header
            + chance.choice([b"TPE1\0\0\0\x20\0\0\x01", b"TIT2\0\0\xff\xff\0\0\x03", b""])
            + frame
            + sound
        )
        found = tags.read_tags(str(tmp_path / "b.mp3"))
        assert set(found) == {"artist", "title", "album", "genre"}
        for value in found.values():
            assert value is None or value.encode("utf-8")


def test_tags_of_what_is_not_there_or_no_audio_are_null(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    nothing = dict.fromkeys(("artist", "title", "album", "genre"))
    assert (
        tags.read_tags(str(tmp_path / "a.txt"))
        == tags.read_tags(str(tmp_path / "nowhere.mp3"))
        == nothing
    )


# --- a finished table ---


@pytest.fixture(params=["x.parquet", "x.npy"])
def finished(
    request: pytest.FixtureRequest,
    music: Path,
    tmp_path: Path,
    embedder: Embedder,
    decoded: list[str],
) -> Path:
    out = tmp_path / request.param
    build.embed_library(music, out, embedder=embedder)
    decoded.clear()
    return out


def test_again_does_nothing_but_count_what_waits(
    finished: Path, music: Path, embedder: Embedder, decoded: list[str]
) -> None:
    before = finished.read_bytes()
    again = build.embed_library(music, finished, embedder=embedder)
    assert (again.rows, again.files, again.embedded, again.kept, again.pending) == (6, 6, 0, 6, 0)
    shutil.copy(music / "album0" / "track0.wav", music / "album0" / "new.wav")
    os.utime(music / "album0" / "track1.wav", ns=(1, 1))
    (music / "album2" / "track5.wav").unlink()
    again = build.embed_library(music, finished, embedder=embedder)
    assert (again.rows, again.pending, decoded) == (6, 3, [])
    assert finished.read_bytes() == before


def test_changed_embeds_only_what_is_new_or_modified_and_drops_what_is_gone(
    finished: Path,
    music: Path,
    tmp_path: Path,
    embedder: Embedder,
    decoded: list[str],
    tone: Callable,
) -> None:
    soundfile.write(music / "album0" / "between.wav", tone(), RATE)
    soundfile.write(music / "album1" / "track2.wav", tone(999), RATE)
    (music / "album2" / "track5.wav").unlink()
    done = build.embed_library(music, finished, embedder=embedder, changed=True)
    assert sorted(decoded) == ["between.wav", "track2.wav"]
    assert (done.rows, done.files, done.embedded, done.kept, done.pending) == (6, 6, 2, 4, 0)
    assert [Path(path).name for path in done.gone] == ["track5.wav"]
    fresh = tmp_path / f"fresh{finished.suffix}"
    build.embed_library(music, fresh, embedder=embedder)
    require_same(build.read(finished), build.read(fresh), 1e-5)
    assert names(build.read(finished)) == [
        "between.wav",
        "track0.wav",
        "track1.wav",
        "track2.wav",
        "track3.wav",
        "track4.wav",
    ]
    assert not finished.with_name(f"{finished.name}.parts").exists()


def test_changed_without_changes_writes_nothing(
    finished: Path, music: Path, embedder: Embedder, decoded: list[str]
) -> None:
    before = finished.stat()
    done = build.embed_library(music, finished, embedder=embedder, changed=True)
    assert (done.embedded, done.kept, decoded) == (0, 6, [])
    assert (finished.stat().st_ino, finished.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )
    assert not finished.with_name(f"{finished.name}.parts").exists()


def test_changed_takes_a_new_order_of_sources(
    finished: Path, music: Path, embedder: Embedder, decoded: list[str]
) -> None:
    build.embed_library([music / "album2", music], finished, embedder=embedder, changed=True)
    read = build.read(finished)
    assert names(read) == [
        "track4.wav",
        "track5.wav",
        "track0.wav",
        "track1.wav",
        "track2.wav",
        "track3.wav",
    ]
    np.testing.assert_allclose(
        read.vectors[0], embedder.embed(music / "album2" / "track4.wav"), atol=1e-5
    )
    assert sorted(set(decoded)) == ["track4.wav"]  # by the line above


def test_rows_of_files_that_are_there_are_not_dropped(
    finished: Path, music: Path, embedder: Embedder
) -> None:
    before = build.read(finished)
    with pytest.raises(
        RequestError, match=r"has 4 files that exist but are not among the sources.*track2.wav"
    ):
        build.embed_library(music / "album0", finished, embedder=embedder, changed=True)
    require_same(build.read(finished), before)
    assert not finished.with_name(f"{finished.name}.parts").exists()


def test_rows_below_a_folder_that_cannot_be_listed_are_kept(
    finished: Path,
    music: Path,
    embedder: Embedder,
    decoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, listed, stat = build.read(finished), os.scandir, os.stat
    locked = str((music / "album1").resolve())
    (music / "album0" / "track1.wav").unlink()

    def denied(path, inside: bool):
        if str(path).startswith(locked + os.sep if inside else locked):
            raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: denied(path, False) or listed(path))
        patch.setattr(
            os, "stat", lambda path, **options: denied(path, True) or stat(path, **options)
        )
        waiting = build.embed_library(music, finished, embedder=embedder)
        done = build.embed_library(music, finished, embedder=embedder, changed=True)
        with pytest.raises(
            RequestError, match=r"has 2 files that exist but are not among the sources"
        ):
            build.embed_library(
                [music / "album0", music / "album2"], finished, embedder=embedder, changed=True
            )
    assert waiting.pending == 1
    assert (done.rows, done.kept, [Path(path).name for path in done.gone], decoded) == (
        5,
        5,
        ["track1.wav"],
        [],
    )
    assert [path for path, _ in done.skipped] == [path for path, _ in waiting.skipped] == [locked]
    assert "cannot be listed (Permission denied)" in done.skipped[0][1]
    assert names(build.read(finished)) == [name for name in names(before) if name != "track1.wav"]
    again = build.embed_library(music, finished, embedder=embedder, changed=True)
    assert (again.kept, again.skipped, decoded) == (5, (), [])


@pytest.mark.parametrize("linked", [False, True])
def test_rows_of_a_source_that_is_away_are_kept_until_it_is_named_no_more(
    linked: bool, music: Path, tmp_path: Path, embedder: Embedder, decoded: list[str]
) -> None:
    drive, out = tmp_path / "drive", tmp_path / "x.parquet"
    (music / "album1").rename(drive)
    if linked:
        (music / "link").symlink_to(drive)
    given = [music] if linked else [drive, music]
    build.embed_library(given, out, embedder=embedder)
    before = build.read(out)
    drive.rename(tmp_path / "away")
    decoded.clear()
    done = build.embed_library(given, out, embedder=embedder, changed=True)
    assert (done.rows, done.gone, decoded) == (6, (), [])
    assert [path for path, _ in done.skipped] == [
        str(music.resolve() / "link") if linked else str(drive)
    ]
    require_same(build.read(out), before)
    (music / "link").unlink(missing_ok=True)
    done = build.embed_library(music, out, embedder=embedder, changed=True)
    assert (done.rows, len(done.gone), done.skipped) == (4, 2, ())


def test_another_models_table_is_refused_with_what_differs(
    finished: Path, music: Path, embedder: Embedder, other: Embedder
) -> None:
    with pytest.raises(
        RequestError, match=f"model is '{embedder.identity}', not '{other.identity}'"
    ):
        build.embed_library(music, finished, embedder=other, changed=True)
    with pytest.raises(RequestError, match=r"window_s is None, not 2.0; hop_s is None, not 2.0"):
        build.embed_library(music, finished, embedder=embedder, window_s=2.0)
    with pytest.raises(RequestError, match="patches is False, not True"):
        build.embed_library(music, finished, embedder=embedder, patches=True)


def test_npy_is_a_matrix_with_its_rows_beside_it(
    music: Path, tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    build.embed_library(music, tmp_path / "x.npy", embedder=embedder)
    build.embed_library(music, tmp_path / "x.parquet", embedder=embedder)
    require_same(build.read(tmp_path / "x.npy"), build.read(tmp_path / "x.parquet"))
    matrix = np.load(tmp_path / "x.npy", allow_pickle=False)
    np.testing.assert_array_equal(matrix, build.read(tmp_path / "x.parquet").vectors)
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["path"]).name for row in rows] == [f"track{number}.wav" for number in range(6)]
    assert list(rows[0]) == [
        "path",
        "start_s",
        "end_s",
        "size",
        "mtime_ns",
        "artist",
        "title",
        "album",
        "genre",
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
def test_rows_without_sense_are_refused(
    options: dict, said: str, audio_folder: Path, tmp_path: Path, embedder: Embedder
) -> None:
    with pytest.raises(RequestError, match=said):
        build.embed_library(audio_folder, tmp_path / "x.parquet", embedder=embedder, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_kind_or_of_others_files_is_refused(
    music: Path, tmp_path: Path, embedder: Embedder
) -> None:
    with pytest.raises(RequestError, match=r"ends in .parquet or .npy"):
        build.embed_library(music, tmp_path / "x.csv", embedder=embedder)
    (tmp_path / "y.csv").write_text("path\n")
    with pytest.raises(RequestError, match=r"y.csv exists already"):
        build.embed_library(music, tmp_path / "y.npy", embedder=embedder)
    (tmp_path / "z.parquet.parts").mkdir()
    (tmp_path / "z.parquet.parts" / "mine.txt").touch()
    with pytest.raises(RequestError, match=r"z.parquet.parts exists and is not a job"):
        build.embed_library(music, tmp_path / "z.parquet", embedder=embedder)
    assert (tmp_path / "y.csv").read_text() == "path\n"
    assert (tmp_path / "z.parquet.parts" / "mine.txt").exists()


def test_tables_from_elsewhere_are_refused(music: Path, tmp_path: Path, embedder: Embedder) -> None:
    pq.write_table(pa.table({"path": ["a"], "embedding": [[1.0]]}), tmp_path / "theirs.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    np.save(tmp_path / "alone.npy", np.zeros((2, 2)))
    for name, said in {
        "theirs.parquet": "lacks the columns",
        "text.parquet": "not a Parquet file",
        "alone.npy": "cannot be read",
        "none.parquet": "no such file",
    }.items():
        with pytest.raises(RequestError, match=said):
            build.read(tmp_path / name)
    for name in ("theirs.parquet", "text.parquet", "alone.npy"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(RequestError, match=name):
            build.embed_library(music, tmp_path / name, embedder=embedder, changed=True)
        assert (tmp_path / name).read_bytes() == before


def test_a_table_of_a_newer_format_or_with_other_columns_is_refused(
    music: Path, tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    build.embed_library(music, tmp_path / "x.parquet", embedder=embedder)
    rows = pq.read_table(tmp_path / "x.parquet")
    facts = json.loads(rows.schema.metadata[b"patchifier"])
    pq.write_table(
        rows.replace_schema_metadata({"patchifier": json.dumps({**facts, "format": 99})}),
        tmp_path / "newer.parquet",
    )
    pq.write_table(rows.drop_columns(["end_s"]), tmp_path / "less.parquet")
    with pytest.raises(RequestError, match="format 99"):
        build.read(tmp_path / "newer.parquet")
    with pytest.raises(RequestError, match="lacks the columns end_s"):
        build.read(tmp_path / "less.parquet")


def test_npy_whose_companions_are_not_its_own_is_refused(
    music: Path, tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    build.embed_library(music, tmp_path / "x.npy", embedder=embedder)
    np.save(tmp_path / "x.npy", np.load(tmp_path / "x.npy")[::-1])
    with pytest.raises(RequestError, match=r"not those that x\.json describes"):
        build.read(tmp_path / "x.npy")


def test_a_truncated_table_is_refused(finished: Path) -> None:
    os.truncate(finished, finished.stat().st_size // 2)
    with pytest.raises(RequestError, match=finished.name):
        build.read(finished)


# --- kills ---


class Killed(BaseException):
    """What stops a job in the tests that need no process."""


@pytest.mark.parametrize("name", ["x.parquet", "x.npy"])
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_an_interrupted_job_goes_on_bit_for_bit(
    name: str,
    stop: int,
    music: Path,
    tmp_path: Path,
    embedder: Embedder,
    decoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (music / "album0" / "empty.wav").touch()
    monkeypatch.setattr(job, "PART_FILES", 2)
    out = tmp_path / name

    def stopping(done: int, _total: int, _note: str) -> None:
        if done == stop:
            raise Killed

    with pytest.raises(Killed):
        build.embed_library(music, out, embedder=embedder, workers=1, progress=stopping)
    assert not out.exists()
    parts = sorted(tmp_path.glob(f"{name}.parts/0*.parquet"))
    assert len(parts) == (stop - 1) // 2
    decoded.clear()
    said: list[int] = []
    done = build.embed_library(
        music, out, embedder=embedder, progress=lambda count, *_: said.append(count)
    )
    assert len(decoded) == 7 - 2 * len(parts)
    assert said == list(range(2 * len(parts) + 1, 8))
    assert done.embedded + done.kept == done.files == 6
    assert [Path(path).name for path, _ in done.skipped] == ["empty.wav"]
    whole = tmp_path / f"whole{out.suffix}"
    build.embed_library(music, whole, embedder=embedder)
    assert out.read_bytes() == whole.read_bytes()
    require_same(build.read(out), build.read(whole))


@pytest.mark.parametrize("name", ["x.parquet", "x.npy"])
def test_a_job_killed_while_it_puts_the_table_in_place_goes_on(
    name: str,
    music: Path,
    tmp_path: Path,
    embedder: Embedder,
    decoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / name
    build.embed_library(music, tmp_path / f"whole{out.suffix}", embedder=embedder)

    def die(*_: object) -> None:
        raise Killed

    for place in ("_put_in_place", "_clear"):
        with monkeypatch.context() as patch:
            patch.setattr(job.TableJob, place, die)
            with pytest.raises(Killed):
                build.embed_library(music, out, embedder=embedder)
        decoded.clear()
        build.embed_library(music, out, embedder=embedder)
        assert decoded == []
        require_same(build.read(out), build.read(tmp_path / f"whole{out.suffix}"))
        assert not (tmp_path / f"{name}.parts").exists()
        for path in tmp_path.glob("x.*"):
            path.unlink()


def test_npy_killed_between_its_three_files_is_mended(
    music: Path, tmp_path: Path, embedder: Embedder, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.npy"
    build.embed_library(music, out, embedder=embedder)
    shutil.copy(music / "album0" / "track0.wav", music / "album0" / "a.wav")
    synced = table._synced

    def die(path: Path) -> Path:
        if path.suffix == ".npy":
            raise Killed
        return synced(path)

    with monkeypatch.context() as patch:
        patch.setattr(table, "_synced", die)
        with pytest.raises(Killed):
            build.embed_library(music, out, embedder=embedder, changed=True)
    with pytest.raises(RequestError, match="not those that"):
        build.read(out)
    build.embed_library(music, out, embedder=embedder, changed=True)
    assert names(build.read(out))[:2] == ["a.wav", "track0.wav"]
    assert len(build.read(out)) == 7


@pytest.mark.parametrize("left", [[], [".facts.json.new-12"], ["base.parquet", "export.npy"]])
def test_a_job_killed_at_its_very_beginning_or_end_starts_anew(
    left: list[str], music: Path, tmp_path: Path, embedder: Embedder, threads: None
) -> None:
    folder = tmp_path / "x.parquet.parts"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("half")
    assert build.embed_library(music, tmp_path / "x.parquet", embedder=embedder).rows == 6
    assert not folder.exists()


def test_a_begun_job_of_another_model_is_refused(
    music: Path, tmp_path: Path, embedder: Embedder, other: Embedder, threads: None
) -> None:
    def stopping(*_: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        build.embed_library(music, tmp_path / "x.parquet", embedder=embedder, progress=stopping)
    with pytest.raises(RequestError, match=r"x.parquet.parts was made by another model.*model is"):
        build.embed_library(music, tmp_path / "x.parquet", embedder=other)


def test_a_damaged_part_is_embedded_again(
    music: Path,
    tmp_path: Path,
    embedder: Embedder,
    decoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "PART_FILES", 2)

    def stopping(done: int, *_: object) -> None:
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        build.embed_library(music, tmp_path / "x.parquet", embedder=embedder, progress=stopping)
    part = tmp_path / "x.parquet.parts" / "00000.parquet"
    os.truncate(part, part.stat().st_size - 100)
    decoded.clear()
    build.embed_library(music, tmp_path / "x.parquet", embedder=embedder)
    assert sorted(decoded) == ["track0.wav", "track1.wav", "track4.wav", "track5.wav"]
    assert names(build.read(tmp_path / "x.parquet")) == [
        f"track{number}.wav" for number in range(6)
    ]


def test_a_file_modified_between_a_kill_and_the_next_run_is_embedded_again(
    music: Path,
    tmp_path: Path,
    embedder: Embedder,
    tone: Callable,
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "PART_FILES", 2)

    def stopping(done: int, *_: object) -> None:
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        build.embed_library(music, tmp_path / "x.parquet", embedder=embedder, progress=stopping)
    soundfile.write(music / "album0" / "track1.wav", tone(999), RATE)
    (music / "album0" / "track0.wav").unlink()
    build.embed_library(music, tmp_path / "x.parquet", embedder=embedder)
    build.embed_library(music, tmp_path / "whole.parquet", embedder=embedder)
    require_same(build.read(tmp_path / "x.parquet"), build.read(tmp_path / "whole.parquet"), 1e-5)


def test_many_rows_are_merged_in_groups_and_in_order(tmp_path: Path) -> None:
    facts = {
        "format": 1,
        "size": 3,
        "stretches": [],
        **dict.fromkeys(name for name in table.SAME if name != "size"),
        "model": "a",
    }
    chance = np.random.default_rng(0)
    for number in range(3):
        rows = 10_000
        columns = {name: [None] * rows for name in ("artist", "title", "album", "genre")}
        columns |= {
            "path": [f"{number}/{row}" for row in range(rows)],
            "start_s": [0.0] * rows,
            "end_s": [1.0] * rows,
            "size": [1] * rows,
            "mtime_ns": [2] * rows,
        }
        vectors = np.stack([np.full(rows, number), np.arange(rows), np.ones(rows)], axis=1).astype(
            np.float32
        )
        table.write(
            tmp_path / f"{number:05d}.parquet",
            iter([table.rows_table(columns, vectors, facts)]),
            table.schema(facts, 3),
        )
    places = [
        (tmp_path / f"{number:05d}.parquet", line)
        for number in range(3)
        for line in table.index(tmp_path / f"{number:05d}.parquet")
    ]
    kept = sorted(chance.choice(len(places), 20_000, replace=False))
    table.write(
        tmp_path / "x.parquet",
        table._taken([places[index] for index in kept]),
        table.schema(facts, 3),
    )
    read = build.read(tmp_path / "x.parquet")
    assert read.paths == tuple(f"{index // 10_000}/{index % 10_000}" for index in kept)
    np.testing.assert_array_equal(read.vectors[:, 0] * 10_000 + read.vectors[:, 1], kept)
    assert [
        pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(group).num_rows
        for group in range(3)
    ] == [8192, 8192, 20_000 - 2 * 8192]


RUN = """
import sys, time
from patchifier.library import build
from patchifier.library import job

def slowly(done, total, note):
    print(done, flush=True)
    time.sleep(0.03)

if __name__ == "__main__":
    job.PART_FILES = 3
    build.embed_library(sys.argv[1], sys.argv[2], embedder=sys.argv[3], workers=2, changed=True, progress=slowly)
"""


@pytest.fixture
def start(
    tmp_path: Path, model: Path, child_environment: dict[str, str]
) -> Callable[[Path, Path], subprocess.Popen]:
    """Start a job in a process of its own, in parts of three files; it prints the number of files done."""
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def begin(source: Path, out: Path) -> subprocess.Popen:
        command = [sys.executable, str(script), str(source), str(out), str(model)]
        return subprocess.Popen(
            command,
            env=child_environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return begin


def kill_all(process: subprocess.Popen) -> None:
    """Kill a job and the processes that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, noise: Callable) -> Path:
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
    seed: int,
    many: Path,
    tmp_path: Path,
    start: Callable,
    embedder: Embedder,
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, chance = tmp_path / ("x.npy" if seed % 2 else "x.parquet"), random.Random(seed)
    for _ in range(3):
        process = start(many, out)
        for _ in range(chance.choice([0, 1, 5, 12, 30])):
            process.stdout.readline()
        time.sleep(chance.uniform(0, 0.3))
        kill_all(process)
    monkeypatch.setattr(job, "PART_FILES", 3)
    done = build.embed_library(many, out, embedder=embedder, changed=True)
    build.embed_library(many, tmp_path / f"whole{out.suffix}", embedder=embedder)
    assert (done.rows, len(done.skipped)) == (28, 2)
    require_same(build.read(out), build.read(tmp_path / f"whole{out.suffix}"))
    assert not (tmp_path / f"{out.name}.parts").exists()


@pytest.mark.slow
def test_processes_of_a_killed_job_end_too(many: Path, tmp_path: Path, start: Callable) -> None:
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
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_length(
    tmp_path: Path, model: Path, child_environment: dict[str, str]
) -> None:
    script = tmp_path / "memory.py"
    script.write_text(MEMORY)
    peaks = {}
    for minutes in (3, 180):
        with soundfile.SoundFile(tmp_path / f"{minutes}.wav", "w", RATE, 1) as file:
            for second in range(60 * minutes):
                file.write(
                    0.1 * np.random.default_rng(second).standard_normal(RATE, dtype=np.float32)
                )
        command = [
            sys.executable,
            str(script),
            str(tmp_path / f"{minutes}.wav"),
            str(tmp_path / f"{minutes}.parquet"),
            str(model),
        ]
        answer = subprocess.run(
            command, env=child_environment, capture_output=True, text=True, check=True
        )
        peaks[minutes] = [float(value) for value in answer.stdout.split()]
    assert peaks[180][0] < 1.2 * peaks[3][0], peaks  # the process that collects, MB
    assert peaks[180][1] < 1.2 * peaks[3][1], peaks  # the one that works
    assert build.read(tmp_path / "180.parquet").end_s[0] == 10_800


def test_a_place_where_no_folder_can_be_made_is_named(audio_folder, embedder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="its folder cannot be made"):
        build.embed_library(audio_folder, tmp_path / "file" / "x.parquet", embedder=embedder)
