"""Data sets: folders, manifests and the bundled clips."""

import csv
import errno
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from patchifier import datasets
from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset, demo
from patchifier.library.tags import read_tags
from patchifier.tasks import Task

# Two rows in the schema of MARBLE's manifests.
SOUND = {"duration": 30.01333, "sample_rate": 22050, "num_samples": 661794, "channels": 1}
MARBLE_GENRE = {
    "audio_path": "data/GTZAN/genres/blues/blues.00012.wav",
    "label": "blues",
    "bit_depth": 16,
    **SOUND,
}
MARBLE_EMOTION = {
    "audio_path": "data/EMO/emomusic/wav/0005.wav",
    "label": [-0.25690, 0.25995],
    **SOUND,
}
AUDIBLE = ["a/1.flac", "a/2.MP3", "a/deep/er/x.opus", "album.wav/3.ogg", "b.wav"]


def manifest(path, text):
    path.write_text(text, encoding="utf-8")
    return datasets.load(path)


def jsonl(path, *rows):
    return manifest(path, "".join(json.dumps(row) + "\n" for row in rows))


def ids(dataset):
    return [clip.id for clip in dataset.clips]


# --- folders ---


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "library"
    other = ["a/cover.jpg", "a/._1.flac", ".hidden/y.wav", "a/.z.ogg", ".DS_Store", "notes.txt"]
    for name in [*AUDIBLE, *other]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_folder_is_searched_recursively_and_sorted_without_hidden_and_other_files(library):
    found = datasets.load(library)
    assert ids(found) == AUDIBLE
    assert (found.name, found.task) == ("library", None)
    assert [Path(clip.path) for clip in found.clips] == [
        library.resolve() / name for name in AUDIBLE
    ]
    assert ids(datasets.load(library / ".hidden")) == ["y.wav"]  # where it is named itself


def test_clips_of_a_sub_folder_are_a_group_and_loose_files_stand_alone(library):
    groups = {clip.id: clip.group for clip in datasets.load(library).clips}
    assert groups["a/1.flac"] == groups["a/2.MP3"] == "a"
    assert groups["a/deep/er/x.opus"] == "a/deep/er"
    assert groups["b.wav"] == "b.wav"


def test_folder_without_audio_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RequestError, match=r"no audio files .*\.flac.*\.mp3"):
        datasets.load(tmp_path)


def test_names_that_are_not_utf8_are_left_out_and_named(library):
    folder = library / os.fsdecode(b"B\xe9la")
    folder.mkdir()
    (folder / "1.wav").touch()
    (library / os.fsdecode(b"a\xff.wav")).touch()
    found, root = datasets.load(library), library.resolve()
    assert ids(found) == AUDIBLE
    above = "the name of a folder above it is not UTF-8"
    below = rf"{root}/B\xe9la/1.wav"
    assert found.lost == (
        (below, f"{below}: {above}: rename that folder."),
        (rf"{root}/a\xff.wav", rf"{root}/a\xff.wav: its name is not UTF-8: rename it."),
    )
    with pytest.raises(RequestError, match=rf"B\\xe9la/1.wav: {above}"):
        datasets.load(folder)


def test_names_of_a_manifest_that_are_not_utf8_are_left_out_and_named(tmp_path):
    rows = [{"path": "a.wav"}, {"path": "b\udcff.wav"}, {"path": "c.wav", "id": "\ud800"}]
    found = jsonl(tmp_path / "list.jsonl", *rows)
    assert ids(found) == ["a.wav"]
    assert [path for path, _ in found.lost] == [rf"{tmp_path}/b\xff.wav", f"{tmp_path}/c.wav"]
    with pytest.raises(RequestError, match=r"b\\xff.wav: its name is not UTF-8: rename it"):
        jsonl(tmp_path / "list.jsonl", rows[1])


def test_folder_that_cannot_be_listed_is_named(library, monkeypatch):
    """As one is to all but root without the right to read it."""
    listed, locked = os.scandir, library.resolve() / "a"

    def scandir(path):
        if os.path.realpath(path) == str(locked):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = datasets.load(library)
    assert ids(found) == ["album.wav/3.ogg", "b.wav"]
    ((path, reason),) = found.lost
    assert path == str(locked)
    assert "cannot be listed (Permission denied)" in reason
    with pytest.raises(RequestError, match=r"cannot be listed \(Permission denied\)"):
        datasets.load(locked)


def test_folder_that_cannot_be_entered_is_named(library, monkeypatch):
    access, locked = os.access, str(library.resolve() / "a")
    entered = lambda path, mode: str(path) != locked and access(path, mode)  # noqa: E731
    monkeypatch.setattr(os, "access", entered)
    found = datasets.load(library)
    assert ids(found) == ["album.wav/3.ogg", "b.wav"]
    assert [path for path, _ in found.lost] == [locked]


def test_links_to_folders_are_followed_and_each_file_is_there_once(library, tmp_path):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "o.wav").touch()
    (outside / "deep" / "d.wav").touch()
    (outside / "back").symlink_to(library)
    for link, target in {
        "0 again": "a",  # sorted before what it leads to
        "0 file.wav": "b.wav",
        "a/loop": "..",
        "a/up": "../..",
        "a/self": "self",
        ".secret": outside,
        "x": outside,
        "y": outside,
        "z": outside / "deep",
    }.items():
        (library / link).symlink_to(target)
    found = datasets.load(library)
    assert ids(found) == [*AUDIBLE, "x/deep/d.wav", "x/o.wav"]
    assert found.clips[-1].path == str((outside / "o.wav").resolve())
    assert found.clips[-1].group == "x"
    assert [path for path, _ in found.lost] == [str(library.resolve() / "a" / "self")]
    assert "is a link to a missing file" in found.lost[0][1]


@pytest.mark.parametrize("source", ["nonsense", "missing.csv", "/no/such/folder", "song.wav"])
def test_what_is_no_data_set_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "song.wav").touch()
    with pytest.raises(
        RequestError, match="is no data set: expected 'demo', a folder of audio, or"
    ):
        datasets.load(source)


# --- manifests ---


@pytest.mark.parametrize(
    ("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t"), (".csv", "\t")]
)
def test_table_is_read_with_all_its_columns(suffix, delimiter, tmp_path):
    rows = [
        ["path", "id", "start_s", "end_s", "split", "fold", "group", "target", "artist"],
        ["a.wav", "one", "1.5", "4", "train", "2", "g", "rock", "Éric"],
        ["/abs/b.wav", "", "", "", "val", "", "", "pop", ""],
    ]
    text = "\n".join(delimiter.join(row) for row in rows) + "\n"
    found = manifest(tmp_path / f"table{suffix}", text)
    place = (str(tmp_path.resolve() / "a.wav"), 1.5, 4.0, "train", 2, "g", "rock")
    bare = Clip("/abs/b.wav", "/abs/b.wav", split="valid", target="pop")
    assert found.clips == (Clip("one", *place, {"artist": "Éric"}), bare)
    assert found.task == Task("one-of", ("pop", "rock"))
    assert found.name == "table"


def test_table_of_a_spreadsheet_with_byte_order_mark_and_quotes_is_read(tmp_path):
    (tmp_path / "table.csv").write_bytes('path,label\r\n"a, b.wav","rock"\r\n'.encode("utf-8-sig"))
    (clip,) = datasets.load(tmp_path / "table.csv").clips
    assert (clip.id, clip.target) == ("a, b.wav", "rock")


def test_marbles_rows_are_read(tmp_path):
    found = jsonl(tmp_path / "GTZANGenre.train.jsonl", MARBLE_GENRE)
    (clip,) = found.clips
    assert clip.path == str(tmp_path.resolve() / MARBLE_GENRE["audio_path"])
    assert (clip.target, clip.split, clip.info["num_samples"]) == ("blues", "train", "661794")
    assert found.task == Task("one-of", ("blues",))
    found = jsonl(tmp_path / "EMO.test.jsonl", MARBLE_EMOTION)
    assert found.clips[0].target == [-0.25690, 0.25995]
    assert found.task == Task("numbers", ("value_0", "value_1"))


def test_paths_start_at_the_nearest_folder_above_where_the_first_file_is(tmp_path):
    sound = tmp_path / MARBLE_GENRE["audio_path"]
    sound.parent.mkdir(parents=True)
    sound.touch()
    found = jsonl(tmp_path / "data/GTZAN/GTZANGenre.test.jsonl", MARBLE_GENRE)
    assert Path(found.clips[0].path).samefile(sound)


@pytest.mark.parametrize(
    ("part", "split"),
    [("train", "train"), ("val", "valid"), ("valid", "valid"), ("test", "test"), ("v2", None)],
)
def test_split_is_read_from_the_name_of_the_file(part, split, tmp_path):
    assert jsonl(tmp_path / f"GTZANGenre.{part}.jsonl", MARBLE_GENRE).clips[0].split == split


@pytest.mark.parametrize(
    ("written", "split"),
    [("Train", "train"), ("validation", "valid"), ("TESTING", "test"), ("", None)],
)
def test_split_is_read_under_each_of_its_names(written, split, tmp_path):
    assert manifest(tmp_path / "t.csv", f"path,split\na.wav,{written}\n").clips[0].split == split


def test_rows_own_split_comes_before_that_of_the_file_name(tmp_path):
    found = jsonl(tmp_path / "x.train.jsonl", {"path": "a.wav", "split": "test"})
    assert found.clips[0].split == "test"


@pytest.mark.parametrize(
    ("column", "targets", "task"),
    [
        (["rock", "pop"], ["rock", "pop"], Task("one-of", ("pop", "rock"))),
        (
            ["rock|loud", "pop | loud"],
            [["rock", "loud"], ["pop", "loud"]],
            Task("many-of", ("loud", "pop", "rock")),
        ),
        (
            ['"[""rock"", ""loud""]"', '"[""pop""]"'],
            [["rock", "loud"], ["pop"]],
            Task("many-of", ("loud", "pop", "rock")),
        ),
        (["0.5|-1", "2|3"], [[0.5, -1.0], [2.0, 3.0]], Task("numbers", ("value_0", "value_1"))),
        (["0.5", "-1"], [0.5, -1.0], Task("numbers", ("value",))),
        (["rock", ""], ["rock", None], Task("one-of", ("rock",))),
        (["", ""], [None, None], None),
    ],
)
@pytest.mark.parametrize("name", ["label", "target"])
def test_target_column_says_what_kind_of_task_it_is(name, column, targets, task, tmp_path):
    rows = "".join(f"{number}.wav,{value}\n" for number, value in enumerate(column))
    found = manifest(tmp_path / "t.csv", f"path,{name}\n{rows}")
    assert [clip.target for clip in found.clips] == targets
    assert found.task == task


def test_clip_with_a_single_tag_among_clips_with_several_is_many_of(tmp_path):
    found = manifest(tmp_path / "t.csv", "path,label\na.wav,rock|loud\nb.wav,pop\n")
    assert found.task == Task("many-of", ("loud", "pop", "rock"))
    assert found.clips[1].target == ["pop"]


def test_name_that_starts_with_a_bracket_is_a_name_or_is_refused_with_its_row(tmp_path):
    reason, targets = "", []
    try:
        found = manifest(tmp_path / "t.csv", "path,label\na.wav,[Remix] disco\n")
        targets = [clip.target for clip in found.clips]
    except RequestError as error:
        reason = str(error)
    assert "row 1" in reason or targets == ["[Remix] disco"]


def test_id_of_zero_is_an_id(tmp_path):
    rows = [{"path": "a.wav", "id": 0}, {"path": "b.wav", "id": 1}]
    assert ids(jsonl(tmp_path / "t.jsonl", *rows)) == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.csv", "path,label\na.wav,x\nb.wav\n", "row 2: has another number of fields"),
        ("t.csv", "path,label\na.wav,x\nb.wav,y,z\n", "row 2: has another number of fields"),
        ("t.csv", "name,label\na.wav,x\n", "row 1: has no path.*'name', 'label'"),
        ("t.csv", "path,label\na.wav,x\n,y\n", "row 2: has no path"),
        (
            "t.csv",
            "path,start_s\na.wav,0\nb.wav,soon\n",
            "row 2: start_s is 'soon', expected a num",
        ),
        ("t.csv", "path,end_s\na.wav,late\n", "row 1: end_s is 'late'"),
        ("t.csv", "path,fold\na.wav,0\nb.wav,1.5\n", "row 2: fold is '1.5', expected a whole num"),
        ("t.csv", "path,fold\na.wav,nan\n", "row 1: fold is 'nan'"),
        (
            "t.csv",
            "path,split\na.wav,train\nb.wav,dev\n",
            "row 2: split is 'dev', expected train, v",
        ),
        ("t.csv", "path,label\n", "no rows"),
        ("t.csv", "", "no rows"),
        ("t.csv", "path,label\na.wav,rock\nb.wav,3\n", "mixture"),
        ("t.csv", "path,label\na.wav,1|2\nb.wav,1|2|3\n", "mixture"),
        ("t.csv", "path\na.wav\na.wav\n", "two clips with the id 'a.wav'"),
        ("t.jsonl", '{"path": "a.wav"}\n{"path": \n', "line 2: is not JSON"),
        ("t.jsonl", '{"path": "a.wav"}\n["b.wav"]\n', "line 2: holds list, expected a JSON object"),
        ("t.jsonl", '{"path": "a.wav", "split": 1}\n', "row 1: split is 1"),
        ("t.jsonl", '{"label": "x"}\n', "row 1: has no path"),
        ("t.jsonl", "\n\n", "no rows"),
    ],
)
def test_bad_manifest_is_refused_with_the_row(name, text, reason, tmp_path):
    with pytest.raises(RequestError, match=reason):
        manifest(tmp_path / name, text)


def test_manifest_that_is_not_utf8_is_refused_by_name(tmp_path):
    (tmp_path / "old.csv").write_bytes("path,label\nmúsica.wav,x\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"old\.csv.*UTF-8"):
        datasets.load(tmp_path / "old.csv")


@pytest.mark.parametrize(
    ("clips", "reason"),
    [
        ((), "no clips"),
        ((Clip("x", "a.wav"), Clip("x", "b.wav")), "two clips with the id 'x'"),
        ((Clip("x", "a.wav", split="dev"),), "clip 'x' has the split 'dev'"),
    ],
)
def test_data_set_that_makes_no_sense_is_refused(clips, reason):
    with pytest.raises(RequestError, match=reason):
        Dataset("odd", clips)


# --- the bundled clips ---


@pytest.fixture(scope="module")
def bundled_clips():
    return datasets.load("demo").clips


def test_bundled_clips_are_112_of_seven_soundtracks_in_four_folds(bundled_clips):
    counts = Counter((clip.fold, clip.target) for clip in bundled_clips)
    names = datasets.load("demo").task.names
    assert counts == {(fold, name): 4 for fold in range(4) for name in names}
    assert len(names) == 7
    assert datasets.load("demo").task.kind == "one-of"
    folds = {(clip.group, clip.fold) for clip in bundled_clips}
    assert len({group for group, _ in folds}) == len(folds)  # no track is in two folds


def test_notice_names_every_source_and_licence_and_points_to_the_list_of_files(bundled_clips):
    notice = (demo.ROOT / "NOTICE.md").read_text(encoding="utf-8")
    assert "clips.csv" in notice
    for clip in bundled_clips:
        assert clip.info["source"].removeprefix("Debian package ") in notice
        assert clip.info["licence"].split(" ")[0].removesuffix("+") in notice


def test_every_bundled_clip_is_there_under_a_free_licence_and_says_whose_it_is(bundled_clips):
    """Attribution is what the licences ask for."""
    for clip in bundled_clips:
        assert Path(clip.path).stat().st_size > 10_000
        assert all(clip.info[name].strip() for name in ("artist", "title", "source")), clip.id
        assert "CC-BY" in clip.info["licence"]
        assert "NC" not in clip.info["licence"]
        assert "ND" not in clip.info["licence"]
    listed = {Path(clip.path).name for clip in bundled_clips}
    assert listed == {path.name for path in (demo.ROOT / "clips").iterdir()}
    with (demo.ROOT / "clips.csv").open(encoding="utf-8", newline="") as stream:
        assert len(list(csv.reader(stream))) == 113


def test_folder_named_demo_comes_before_the_bundled_clips(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.wav").touch()
    monkeypatch.chdir(tmp_path)
    assert ids(datasets.load("demo")) == ["mine.wav"]


def test_the_bundled_clips_are_written_as_a_library_with_tags_and_again(tmp_path):
    for _ in range(2):
        assert demo.write_library(tmp_path / "library") == tmp_path / "library"
    clips = demo.load().clips
    files = sorted((tmp_path / "library").rglob("*.ogg"))
    assert len(files) == len(clips)
    for clip in clips:
        tags = read_tags(str(tmp_path / "library" / clip.target / Path(clip.path).name))
        wanted = {name: clip.info.get(name) for name in ("artist", "title")}
        assert {name: tags[name] for name in wanted} == wanted
        assert tags["album"] == clip.target
