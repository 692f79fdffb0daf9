"""What the commands of search print about tables of chosen vectors, and what they refuse."""

import json

import pytest

from patchifier import cli
from tests.library.vectors import on_circle, write_table

ARTISTS = ["Stuart Marshall", "Stuart Marshall", "Bach", None]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Four songs in two folders, of which one has no tags; the working directory is empty."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    songs = ["/m/naev-data/one.ogg", "/m/naev-data/two.ogg", "/m/b/three.ogg", "/m/b/four.ogg"]
    titles = ["We Work in\nthe Vineyards", "Run", None, None]
    return write_table(tmp_path, on_circle(0, 20, 40, 60), songs, artist=ARTISTS, title=titles)


@pytest.fixture
def windows(tmp_path):
    songs = ["/m/a.ogg", "/m/a.ogg", "/m/b.ogg"]
    return write_table(tmp_path, on_circle(0, 20, 40), songs, "w.parquet", starts=[0, 2, 0])


def test_a_line_has_similarity_path_artist_and_title(table, run):
    lines = run(f"similar {table} --to four").out.splitlines()
    assert lines == [
        "0.9397  /m/b/three.ogg  Bach",
        "0.7660  /m/naev-data/two.ogg  Stuart Marshall - Run",
        "0.5000  /m/naev-data/one.ogg  Stuart Marshall - We Work in\\nthe Vineyards",
    ]


def test_the_stretch_is_printed_of_tables_of_windows_alone(windows, run):
    assert run(f"similar {windows} --to b").out == "0.9397  /m/a.ogg  2.0-4.0 s\n"


def test_json_has_all_facts_of_a_row(table, told):
    row = told(f"similar {table} --to four --count 1")[0]
    assert list(row) == ["path", "start_s", "end_s", "score", "tags", "track_id"]
    assert (row["end_s"], row["tags"]) == (2.0, {"artist": "Bach"})


def test_what_is_said_about_a_list_stands_behind_it(tmp_path, run):
    table = write_table(tmp_path, on_circle(0, 89), "ab")
    shown = run(f"similar {table} --to a --json")
    assert len(json.loads(shown.out)) == 1
    assert "Nothing in this library is close" in shown.err


def test_a_wide_step_of_a_path_or_a_mix_is_named(tmp_path, table, run):
    far = write_table(tmp_path, on_circle(0, 86.56, 100), "abc", "far.parquet")
    said = "the library has no smooth way of 3 files between these; the least similar neighbours"
    assert f"{said} have 0.06." in run(f"path {far} --from a --to c").err
    assert "no smooth way on from these" in run(f"mix {far} --seeds a").err
    assert not run(f"mix {far} --seeds a c").err  # the wide step is the user's
    assert not run(f"path {table} --from one --to four").err
    assert not run(f"mix {table} --seeds one").err


def test_that_there_is_no_other_file_is_said_only_if_more_were_wanted(tmp_path, run):
    table = write_table(tmp_path, on_circle(0, 20), "ab")
    assert "no other file" not in run(f"path {table} --from a --to b --count 2").out
    assert "no other file" not in run(f"mix {table} --seeds a --count 1").out
    assert "no other file is in" in run(f"path {table} --from a --to b --count 3").out


def test_a_tag_that_no_file_has_is_answered_with_near_ones(table, run):
    for given in ("Stuart", "'stuart marshal'"):
        shown = run(f"similar {table} --to four --artist {given}").out
        assert "Did you mean 'Stuart Marshall'?" in shown
    assert "No file has the genre 'Jazz'." in run(f"similar {table} --to four --genre Jazz").out
    assert "Did you" not in run(f"similar {table} --to three --artist bach").out


def test_a_folder_is_known_by_its_name(table, run, told):
    found = told(f"similar {table} --to four --below naev-data")
    assert [row["path"] for row in found] == ["/m/naev-data/two.ogg", "/m/naev-data/one.ogg"]
    assert told(f"similar {table} --to four --below /m/naev") == found
    shown = run(f"similar {table} --to four --below nowhere").out
    assert "expected the name of a folder, or the beginning of a path such as /m/" in shown
    (table.parent / "empty" / "naev-data").mkdir()
    assert told(f"similar {table} --to four --below naev-data") == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("similar {table} two", "did you mean --to two?"),
        ("path {table} one two", "a file is named by --from or --to."),
        ("mix {table} two", "did you mean --seeds two?"),
    ],
)
def test_a_file_without_its_flag_is_answered_with_the_flag(words, said, table, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.format(table=table).split())
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_an_empty_name_and_a_folder_are_refused_as_what_they_are(table, run):
    assert "--to is empty: expected a file of" in run(f"similar {table} --to ''", code=2).err
    said = run(f"similar {table} --to {table.parent}", code=2).err
    assert "is a folder, expected a file of" in said


def test_help_is_a_command_and_a_command_in_capitals_is_known(run, capsys):
    assert run("help").out == run("--help").out
    assert run("help search").out == run("search").out
    assert "did you mean 'info'?" in run("INFO", code=2).err
