"""Playlists that players read: a line for each file, whatever its name is."""

import os
import sys
import urllib.parse
from pathlib import Path

import pytest

from patchifier.config import RequestError
from patchifier.library.playlist import Entry, m3u8_text, write_m3u8


def lines_of(*files: Entry, folder: str | None = "/music/lists") -> list[str]:
    head, *lines = m3u8_text(files, folder).splitlines()
    assert head == "#EXTM3U"
    return lines


def test_a_file_has_a_line_about_it_and_a_line_with_its_path() -> None:
    song = Entry("/music/a/song.mp3", "Söng", "日本", 200.4)
    assert lines_of(song) == ["#EXTINF:200,日本 - Söng", "../a/song.mp3"]


def test_what_is_unknown_is_left_out() -> None:
    assert lines_of(Entry("/music/a/song.mp3"))[0] == "#EXTINF:-1,song"
    assert lines_of(Entry("/music/a/song.mp3", artist="A"))[0] == "#EXTINF:-1,A - song"


def test_paths_with_nothing_but_the_root_in_common_stay_absolute() -> None:
    assert lines_of(Entry("/elsewhere/song.mp3"))[1] == "/elsewhere/song.mp3"
    assert lines_of(Entry("/music/song.mp3"), folder=None)[1] == "/music/song.mp3"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028"])
def test_no_name_and_no_tag_adds_a_line(end: str) -> None:
    name = f"/music/a{end}#EXTINF:1,x{end}http:/evil.mp3"
    lines = lines_of(Entry(name, f"x{end}/etc/passwd", f"{end}y"))
    assert len(lines) == 2
    assert lines[0].startswith("#EXTINF:-1,")
    assert urllib.parse.unquote(lines[1].removeprefix("file://")) == name


@pytest.mark.skipif(sys.platform == "win32", reason="names there are Unicode")
def test_a_name_that_is_not_unicode_is_kept() -> None:
    name = os.fsdecode(b"/music/\xff.mp3")
    line = lines_of(Entry(name))[1]
    assert urllib.parse.unquote_to_bytes(line.removeprefix("file://")) == b"/music/\xff.mp3"


@pytest.mark.parametrize("name", ["#1 hit.mp3", " x.mp3", "http:x.mp3"])
def test_a_name_like_a_comment_or_a_url_is_marked_as_a_path(name: str) -> None:
    assert lines_of(Entry(f"/music/lists/{name}"))[1] == f"./{name}"


def test_a_url_stays_and_cannot_add_a_line() -> None:
    assert lines_of(Entry("s3://bucket/a b\nc.mp3"))[1] == "s3://bucket/a%20b%0Ac.mp3"


def test_a_playlist_is_found_from_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "song.mp3").write_bytes(b"x")
    write_m3u8([Entry(str(tmp_path / "a" / "song.mp3"))], tmp_path / "new" / "list.m3u8")
    text = (tmp_path / "new" / "list.m3u8").read_text(encoding="utf-8")
    assert (tmp_path / "new" / text.splitlines()[-1]).read_bytes() == b"x"


def test_a_song_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        write_m3u8([], tmp_path / "song.mp3")
