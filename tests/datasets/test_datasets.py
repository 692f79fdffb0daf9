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
from patchifier.tasks import Task

# Two rows in the schema of MARBLE's manifests.
MARBLE_GENRE = {
    "audio_path": "data/GTZAN/genres/blues/blues.00012.wav",
    "label": "blues",
    "duration": 30.01333,
    "sample_rate": 22050,
    "num_samples": 661794,
    "bit_depth": 16,
    "channels": 1,
}
MARBLE_EMOTION = {
    "audio_path": "data/EMO/emomusic/wav/0005.wav",
    "label": [-0.25690, 0.25995],
    "duration": 45.01,
    "sample_rate": 44100,
    "num_samples": 1984943,
    "bit_depth": 16,
    "channels": 1,
}


def manifest(path: Path, text: str) -> Dataset:
    path.write_text(text, encoding="utf-8")
    return datasets.load(path)


def jsonl(path: Path, *rows: object) -> Dataset:
    return manifest(path, "".join(json.dumps(row) + "\n" for row in rows))


# --- folders ---


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "library"
    audible = ["b.wav", "a/2.MP3", "a/1.flac", "a/deep/er/x.opus", "album.wav/3.ogg"]
    other = ["a/cover.jpg", "a/._1.flac", ".hidden/y.wav", "a/.z.ogg", ".DS_Store", "notes.txt"]
    for name in [*audible, *other]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_folder_is_searched_recursively_and_sorted(library: Path) -> None:
    found = datasets.load(library)
    assert [clip.id for clip in found.clips] == [
        "a/1.flac",
        "a/2.MP3",
        "a/deep/er/x.opus",
        "album.wav/3.ogg",
        "b.wav",
    ]
    assert found.name == "library"
    assert found.task is None
    assert all(Path(clip.path) == library.resolve() / clip.id for clip in found.clips)


def test_folder_passes_over_hidden_files_and_other_kinds_of_file(library: Path) -> None:
    ids = " ".join(clip.id for clip in datasets.load(library).clips)
    assert not any(name in ids for name in ("._1", ".z", ".hidden", "cover", "notes", "DS_Store"))


def test_folder_below_a_hidden_one_is_read(library: Path) -> None:
    assert [clip.id for clip in datasets.load(library / ".hidden").clips] == ["y.wav"]


def test_clips_of_a_sub_folder_are_a_group_and_loose_files_stand_alone(library: Path) -> None:
    groups = {clip.id: clip.group for clip in datasets.load(library).clips}
    assert groups["a/1.flac"] == groups["a/2.MP3"] == "a"
    assert groups["a/deep/er/x.opus"] == "a/deep/er"
    assert groups["b.wav"] == "b.wav"


def test_folder_without_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RequestError, match=r"no audio files .*\.flac.*\.mp3"):
        datasets.load(tmp_path)


def test_names_that_are_not_utf8_are_left_out_and_named(library: Path) -> None:
    Path(library / os.fsdecode(b"a\xff.wav")).touch()
    Path(library / os.fsdecode(b"B\xe9la")).mkdir()
    Path(library / os.fsdecode(b"B\xe9la") / "1.wav").touch()
    found = datasets.load(library)
    assert [clip.id for clip in found.clips] == [
        "a/1.flac",
        "a/2.MP3",
        "a/deep/er/x.opus",
        "album.wav/3.ogg",
        "b.wav",
    ]
    root = library.resolve()
    assert found.lost == (
        (
            rf"{root}/B\xe9la/1.wav",
            rf"{root}/B\xe9la/1.wav: the name of a folder above it is not UTF-8: rename that folder.",
        ),
        (rf"{root}/a\xff.wav", rf"{root}/a\xff.wav: its name is not UTF-8: rename it."),
    )
    with pytest.raises(
        RequestError, match=r"B\\xe9la/1.wav: the name of a folder above it is not UTF-8"
    ):
        datasets.load(library / os.fsdecode(b"B\xe9la"))


def test_names_of_a_manifest_that_are_not_utf8_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [{"path": "a.wav"}, {"path": "b\udcff.wav"}, {"path": "c.wav", "id": "\ud800"}]
    found = jsonl(tmp_path / "list.jsonl", *rows)
    assert [clip.id for clip in found.clips] == ["a.wav"]
    assert [path for path, _ in found.lost] == [rf"{tmp_path}/b\xff.wav", f"{tmp_path}/c.wav"]
    with pytest.raises(RequestError, match=r"b\\xff.wav: its name is not UTF-8: rename it"):
        jsonl(tmp_path / "list.jsonl", rows[1])


def denied(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder refuse to be listed, as it does to all but root without the right to read it."""
    listed = os.scandir

    def scandir(path):
        if os.path.realpath(path) == str(place.resolve()):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_folder_that_cannot_be_listed_is_named(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied(library / "a", monkeypatch)
    found = datasets.load(library)
    assert [clip.id for clip in found.clips] == ["album.wav/3.ogg", "b.wav"]
    ((path, reason),) = found.lost
    assert path == str(library.resolve() / "a")
    assert "cannot be listed (Permission denied)" in reason
    with pytest.raises(RequestError, match=r"cannot be listed \(Permission denied\)"):
        datasets.load(library / "a")


def test_folder_that_cannot_be_entered_is_named(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).endswith("/a") and access(path, mode)
    )
    found = datasets.load(library)
    assert [clip.id for clip in found.clips] == ["album.wav/3.ogg", "b.wav"]
    assert [path for path, _ in found.lost] == [str(library.resolve() / "a")]


def test_links_to_folders_are_followed_and_each_file_is_there_once(
    library: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "o.wav").touch()
    (outside / "deep" / "d.wav").touch()
    (outside / "back").symlink_to(library)
    (library / "0 again").symlink_to("a")  # sorted before what it leads to
    (library / "0 file.wav").symlink_to("b.wav")
    (library / "a" / "loop").symlink_to("..")
    (library / "a" / "up").symlink_to("../..")
    (library / "a" / "self").symlink_to("self")
    (library / ".secret").symlink_to(outside)
    (library / "x").symlink_to(outside)
    (library / "y").symlink_to(outside)
    (library / "z").symlink_to(outside / "deep")
    found = datasets.load(library)
    assert [clip.id for clip in found.clips] == [
        "a/1.flac",
        "a/2.MP3",
        "a/deep/er/x.opus",
        "album.wav/3.ogg",
        "b.wav",
        "x/deep/d.wav",
        "x/o.wav",
    ]
    assert found.clips[-1].path == str((outside / "o.wav").resolve())
    assert found.clips[-1].group == "x"
    assert [path for path, _ in found.lost] == [str(library.resolve() / "a" / "self")]
    assert "is a link to a missing file" in found.lost[0][1]


@pytest.mark.parametrize("source", ["nonsense", "missing.csv", "/no/such/folder", "song.wav"])
def test_what_is_no_data_set_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "song.wav").touch()
    with pytest.raises(
        RequestError, match="is no data set: expected 'demo', a folder of audio, or a manifest"
    ):
        datasets.load(source)


# --- manifests ---


@pytest.mark.parametrize(
    ("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t"), (".csv", "\t")]
)
def test_table_is_read_with_all_its_columns(suffix: str, delimiter: str, tmp_path: Path) -> None:
    rows = [
        ["path", "id", "start_s", "end_s", "split", "fold", "group", "target", "artist"],
        ["a.wav", "one", "1.5", "4", "train", "2", "g", "rock", "Éric"],
        ["/abs/b.wav", "", "", "", "val", "", "", "pop", ""],
    ]
    text = "\n".join(delimiter.join(row) for row in rows) + "\n"
    found = manifest(tmp_path / f"table{suffix}", text)
    assert found.clips == (
        Clip(
            "one",
            str(tmp_path.resolve() / "a.wav"),
            1.5,
            4.0,
            "train",
            2,
            "g",
            "rock",
            {"artist": "Éric"},
        ),
        Clip("/abs/b.wav", "/abs/b.wav", split="valid", target="pop"),
    )
    assert found.task == Task("one-of", ("pop", "rock"))
    assert found.name == "table"


def test_table_of_a_spreadsheet_with_byte_order_mark_and_quotes_is_read(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes('path,label\r\n"a, b.wav","rock"\r\n'.encode("utf-8-sig"))
    (clip,) = datasets.load(tmp_path / "table.csv").clips
    assert (clip.id, clip.target) == ("a, b.wav", "rock")


def test_marbles_rows_are_read(tmp_path: Path) -> None:
    found = jsonl(tmp_path / "GTZANGenre.train.jsonl", MARBLE_GENRE)
    (clip,) = found.clips
    assert clip.path == str(tmp_path.resolve() / "data/GTZAN/genres/blues/blues.00012.wav")
    assert clip.target == "blues"
    assert clip.split == "train"
    assert clip.info["num_samples"] == "661794"
    assert found.task == Task("one-of", ("blues",))


def test_marbles_two_numbers_are_a_task_of_numbers(tmp_path: Path) -> None:
    found = jsonl(tmp_path / "EMO.test.jsonl", MARBLE_EMOTION)
    assert found.clips[0].target == [-0.25690, 0.25995]
    assert found.task == Task("numbers", ("value_0", "value_1"))


def test_paths_start_at_the_nearest_folder_above_where_the_first_file_is(tmp_path: Path) -> None:
    sound = tmp_path / MARBLE_GENRE["audio_path"]
    sound.parent.mkdir(parents=True)
    sound.touch()
    found = jsonl(tmp_path / "data/GTZAN/GTZANGenre.test.jsonl", MARBLE_GENRE)
    assert Path(found.clips[0].path).samefile(sound)


@pytest.mark.parametrize(
    ("part", "split"),
    [("train", "train"), ("val", "valid"), ("valid", "valid"), ("test", "test"), ("v2", None)],
)
def test_split_is_read_from_the_name_of_the_file(
    part: str, split: str | None, tmp_path: Path
) -> None:
    assert jsonl(tmp_path / f"GTZANGenre.{part}.jsonl", MARBLE_GENRE).clips[0].split == split


@pytest.mark.parametrize(
    ("written", "split"),
    [("Train", "train"), ("validation", "valid"), ("TESTING", "test"), ("", None)],
)
def test_split_is_read_under_each_of_its_names(
    written: str, split: str | None, tmp_path: Path
) -> None:
    assert manifest(tmp_path / "t.csv", f"path,split\na.wav,{written}\n").clips[0].split == split


def test_rows_own_split_comes_before_that_of_the_file_name(tmp_path: Path) -> None:
    assert (
        jsonl(tmp_path / "x.train.jsonl", {"path": "a.wav", "split": "test"}).clips[0].split
        == "test"
    )


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
def test_target_column_says_what_kind_of_task_it_is(
    name: str, column: list[str], targets: list, task: Task | None, tmp_path: Path
) -> None:
    rows = "".join(f"{number}.wav,{value}\n" for number, value in enumerate(column))
    found = manifest(tmp_path / "t.csv", f"path,{name}\n{rows}")
    assert [clip.target for clip in found.clips] == targets
    assert found.task == task


def test_clip_with_a_single_tag_among_clips_with_several_is_many_of(tmp_path: Path) -> None:
    found = manifest(tmp_path / "t.csv", "path,label\na.wav,rock|loud\nb.wav,pop\n")
    assert found.task == Task("many-of", ("loud", "pop", "rock"))
    assert found.clips[1].target == ["pop"]


def test_name_that_starts_with_a_bracket_is_a_name_or_is_refused_with_its_row(
    tmp_path: Path,
) -> None:
    reason, targets = "", []
    try:
        targets = [
            clip.target
            for clip in manifest(tmp_path / "t.csv", "path,label\na.wav,[Remix] disco\n").clips
        ]
    except RequestError as error:
        reason = str(error)
    assert "row 1" in reason or targets == ["[Remix] disco"]


def test_id_of_zero_is_an_id(tmp_path: Path) -> None:
    assert [
        clip.id
        for clip in jsonl(
            tmp_path / "t.jsonl", {"path": "a.wav", "id": 0}, {"path": "b.wav", "id": 1}
        ).clips
    ] == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.csv", "path,label\na.wav,x\nb.wav\n", "row 2: has another number of fields"),
        ("t.csv", "path,label\na.wav,x\nb.wav,y,z\n", "row 2: has another number of fields"),
        ("t.csv", "name,label\na.wav,x\n", "row 1: has no path.*name, label"),
        ("t.csv", "path,label\na.wav,x\n,y\n", "row 2: has no path"),
        (
            "t.csv",
            "path,start_s\na.wav,0\nb.wav,soon\n",
            "row 2: start_s is 'soon', expected a number",
        ),
        ("t.csv", "path,end_s\na.wav,late\n", "row 1: end_s is 'late'"),
        (
            "t.csv",
            "path,fold\na.wav,0\nb.wav,1.5\n",
            "row 2: fold is '1.5', expected a whole number",
        ),
        ("t.csv", "path,fold\na.wav,nan\n", "row 1: fold is 'nan'"),
        (
            "t.csv",
            "path,split\na.wav,train\nb.wav,dev\n",
            "row 2: split is 'dev', expected train, valid or test",
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
def test_bad_manifest_is_refused_with_the_row(
    name: str, text: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=reason):
        manifest(tmp_path / name, text)


def test_manifest_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_bytes("path,label\nmúsica.wav,x\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"old\.csv.*UTF-8"):
        datasets.load(tmp_path / "old.csv")


def test_data_set_without_clips_is_refused() -> None:
    with pytest.raises(RequestError, match="no clips"):
        Dataset("nothing", ())


def test_two_clips_with_one_id_are_refused() -> None:
    with pytest.raises(RequestError, match="two clips with the id 'x'"):
        Dataset("twice", (Clip("x", "a.wav"), Clip("x", "b.wav")))


def test_unknown_split_is_refused() -> None:
    with pytest.raises(RequestError, match="clip 'x' has the split 'dev'"):
        Dataset("odd", (Clip("x", "a.wav", split="dev"),))


# --- the bundled clips ---


def test_bundled_clips_are_112_of_seven_soundtracks_in_four_folds() -> None:
    found = datasets.load("demo")
    assert len(found.clips) == 112
    assert len(Counter(clip.target for clip in found.clips)) == 7
    assert set(Counter(clip.target for clip in found.clips).values()) == {16}
    assert Counter(clip.fold for clip in found.clips) == {0: 28, 1: 28, 2: 28, 3: 28}
    assert found.task is not None
    assert found.task.kind == "one-of"
    assert len(found.task.names) == 7


def test_bundled_clips_have_no_track_in_two_folds() -> None:
    folds: dict[str | None, set[int | None]] = {}
    for clip in datasets.load("demo").clips:
        folds.setdefault(clip.group, set()).add(clip.fold)
    assert None not in folds
    assert all(len(of_group) == 1 for of_group in folds.values())


def test_every_fold_of_the_bundled_clips_holds_every_soundtrack() -> None:
    counts = Counter((clip.fold, clip.target) for clip in datasets.load("demo").clips)
    assert len(counts) == 28
    assert set(counts.values()) == {4}


@pytest.mark.parametrize("fact", ["artist", "title"])
def test_every_bundled_clip_says_whose_it_is(fact: str) -> None:
    """Attribution is what the licences ask for."""
    assert [
        clip.id for clip in datasets.load("demo").clips if not clip.info.get(fact, "").strip()
    ] == []


def test_notice_names_every_source_and_licence_and_points_to_the_list_of_files() -> None:
    notice = (demo.ROOT / "NOTICE.md").read_text(encoding="utf-8")
    assert "clips.csv" in notice
    for clip in datasets.load("demo").clips:
        assert clip.info["source"].removeprefix("Debian package ") in notice
        assert clip.info["licence"].split(" ")[0].removesuffix("+") in notice


def test_every_bundled_clip_exists_under_a_free_licence() -> None:
    for clip in datasets.load("demo").clips:
        assert Path(clip.path).stat().st_size > 10_000
        assert clip.info["source"].strip(), clip.id
        assert "CC-BY" in clip.info["licence"]
        assert "NC" not in clip.info["licence"]
        assert "ND" not in clip.info["licence"]


def test_every_bundled_file_is_listed() -> None:
    listed = {Path(clip.path).name for clip in datasets.load("demo").clips}
    assert listed == {path.name for path in (demo.ROOT / "clips").iterdir()}
    with (demo.ROOT / "clips.csv").open(encoding="utf-8", newline="") as stream:
        assert len(list(csv.reader(stream))) == 113


def test_folder_named_demo_comes_before_the_bundled_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.wav").touch()
    monkeypatch.chdir(tmp_path)
    assert [clip.id for clip in datasets.load("demo").clips] == ["mine.wav"]
