"""A CSV of labels as people and programs write it, and which file of a table each row means."""

import os

import pytest

from patchifier.config import RequestError
from patchifier.library.labels import Finder, Row, read

PAGE = "path,label,probability,given\none.ogg,calm,0.9,tense\ntwo.ogg,calm,0.8,\n"
ALL_PREDICTED = "path,start_s,end_s,label,probability\none.ogg,0,9,calm,0.9\n"


@pytest.fixture
def written(tmp_path):
    def write(text, encoding="utf-8"):
        (tmp_path / "moods.csv").write_bytes(text.encode(encoding))
        return tmp_path / "moods.csv"

    return write


def refusal(path, **options):
    with pytest.raises(RequestError) as refused:
        read(path, **options)
    return str(refused.value)


@pytest.mark.parametrize("head", ["path,label,group", "Path;Label;Group", "PATH,Target, Group "])
def test_columns_may_have_any_case(head, written):
    row = ";".join(["one.ogg", "calm", "A"]) if ";" in head else "one.ogg,calm,A"
    assert read(written(f"{head}\n{row}\n")) == [Row("one.ogg", "calm", "A")]


def test_a_column_in_lower_case_goes_before_another(written):
    path = written("Path,Label,label\none.ogg,Decca,calm\n")
    assert read(path) == [Row("one.ogg", "calm")]


def test_of_the_pages_file_a_persons_own_labels_teach(written):
    path = written(PAGE)
    assert [row.label for row in read(path, own=True)] == ["tense", ""]
    assert [row.label for row in read(path)] == ["calm", "calm"]


def test_predictions_do_not_teach(written):
    path = written(ALL_PREDICTED)
    assert "these are predictions of a classifier" in refusal(path, own=True)
    assert read(path)[0].label == "calm"


def test_all_columns_that_are_missing_are_named_with_those_that_are_there(written):
    said = refusal(written("file name,mood\none.ogg,calm\n"), own=True)
    assert "no column path or audio_path or file, and none label or target" in said
    assert "its columns: file name, mood" in said
    assert "patchifier predict" not in said
    assert "patchifier predict" in refusal(written("mood\ncalm\n"))
    assert "its columns: none" in refusal(written(""))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_what_is_not_utf8_is_said_how_to_save(encoding, written):
    assert "save it as UTF-8, in Excel as CSV UTF-8" in refusal(
        written("path,label\nÅse.ogg,calm\n", encoding)
    )


SONGS = ["one.ogg,calm,Grieg", "two.ogg,loud,Verdi", "three.ogg,calm,Bach"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('two.ogg,loud,"Verdi', "line 3: unexpected end of data; does a quotation mark stay open?"),
        ('two.ogg,"loud,Verdi', "line 3: unexpected end of data"),
        ('"two".ogg,loud,Verdi', "line 3: ',' expected after"),
        ('two.ogg,loud,"Verdi\nfour.ogg,loud,Orff"', "line 3: the field group has a line break"),
        ("two.ogg,loud, slow,Verdi", "line 3 has 4 fields, the header has 3"),
        ("two.ogg", "line 3: a row has fewer fields than the header"),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_a_row_that_may_have_swallowed_others_is_refused_with_its_line(row, said, own, written):
    rows = ["path,label,group", SONGS[0], row, SONGS[2]]
    assert said in refusal(written("\n".join(rows)), own=own)


def test_a_text_in_quotation_marks_and_empty_lines_are_read(written):
    path = written('path,label,group\n\n"one, two.ogg","a ""calm"" one",\n\ntwo.ogg,loud\n')
    assert read(path) == [Row("one, two.ogg", 'a "calm" one'), Row("two.ogg", "loud")]


def test_a_path_of_predictions_may_have_a_line_break(written):
    assert read(written('path,label,probability\n"o\nne.ogg",calm,0.9\n'))[0].path == "o\nne.ogg"


def test_two_columns_of_one_name_are_refused(written):
    said = refusal(written("path,label, label ,group\none.ogg,calm,x,Grieg\n"), own=True)
    assert "2 columns are called label" in said


# --- which file ---


@pytest.fixture
def finder(tmp_path, monkeypatch):
    """Make a finder for files below a folder, from another folder with the CSV."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def make(*names):
        return Finder([str(tmp_path / "Music" / name) for name in names], "moods.csv")

    return make


def found(finder, path, tmp_path):
    place = finder.find(path)
    return place and os.path.relpath(place, tmp_path / "Music")


def test_paths_may_begin_at_the_folder_of_the_music_or_above_it(finder, tmp_path):
    of_two = finder("Grieg/Mood.ogg", "Verdi/Mood.ogg")
    for path in ("Grieg/Mood.ogg", "Music/Grieg/Mood.ogg", " ./Grieg/Mood.ogg "):
        assert found(of_two, path, tmp_path) == "Grieg/Mood.ogg"
    assert of_two.find("Bach/Mood.ogg") is None
    of_one = finder("Grieg/Mood.ogg", "Grieg/Hall.ogg")  # the shared folder is the artist's
    assert found(of_one, "Grieg/Mood.ogg", tmp_path) == "Grieg/Mood.ogg"


def test_a_path_that_may_mean_two_files_is_not_guessed(finder):
    two = finder("Music/a.ogg", "a.ogg")
    assert two.find("Music/a.ogg") is None
    assert "several files" in two.why("Music/a.ogg")


def test_a_name_alone_is_enough_where_all_names_differ(finder, tmp_path):
    differ = finder("Grieg/Mood.ogg", "Verdi/Dies.ogg")
    assert found(differ, "Dies.ogg", tmp_path) == "Verdi/Dies.ogg"
    assert differ.why("no.ogg") == "it is not in the table."
    same = finder("Grieg/Mood.ogg", "Verdi/Mood.ogg", "Verdi/Dies.ogg")
    for name in ("Mood.ogg", "Dies.ogg"):
        assert same.find(name) is None
        assert "write the folder too" in same.why(name)
    assert finder().find("Mood.ogg") is None
