"""A playlist in a real player: Music Player Daemon reads it, lists it, and plays it."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mutagen
import pytest
import soundfile

from patchifier.library.playlist import Entry, m3u8_text, write_m3u8

pytestmark = [
    pytest.mark.app,
    pytest.mark.skipif(
        not (shutil.which("mpd") and shutil.which("mpc")), reason="mpd and mpc are not installed"
    ),
]

NAMES = ("a/one.ogg", "b/Zwei \xe4\xf6.flac", "b/#3: three.mp3", "b/4 \U0001f3b5.wav")
CONFIG = """
music_directory "{root}/music"
playlist_directory "{root}/lists"
db_file "{root}/database"
state_file "{root}/state"
bind_to_address "{root}/socket"
zeroconf_enabled "no"
filesystem_charset "UTF-8"
audio_output {{
    type "null"
    name "nowhere"
}}
"""


@pytest.fixture
def music(tmp_path: Path, noise: Callable) -> Path:
    """Four songs with titles; their names have what a playlist may stumble over."""
    root = tmp_path / "music"
    for number, name in enumerate(NAMES):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(20, seed=number), 22_050)
        tagged = mutagen.File(path, easy=True)
        if path.suffix != ".wav":
            tagged["title"], tagged["artist"] = f"Title {number}", "Somebody"
            tagged.save()
    return root


@pytest.fixture
def mpc(tmp_path: Path, music: Path) -> Iterator[Callable[..., str]]:
    """Start mpd over the music, with an output to nowhere; give the function that calls mpc."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "mpd.conf").write_text(CONFIG.format(root=tmp_path))
    player = subprocess.Popen(["mpd", "--no-daemon", "--stderr", str(tmp_path / "mpd.conf")])

    def call(*words: str) -> str:
        command = ["mpc", "--host", str(tmp_path / "socket"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        wait_for(lambda: (tmp_path / "socket").exists())
        call("update", "--wait")
        yield call
    finally:
        player.terminate()
        player.wait(10)


def wait_for(condition: Callable[[], bool]) -> None:
    last_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < last_s
        time.sleep(0.02)


def entries(music: Path) -> list[Entry]:
    return [Entry(str(music / name), f"Title {number}") for number, name in enumerate(NAMES)]


@pytest.mark.parametrize("folder", ["", "lists/of mine"])
def test_a_playlist_with_relative_paths_loads_and_plays(
    folder: str, mpc: Callable[..., str], music: Path
) -> None:
    place = music / folder / "mine.m3u8"
    write_m3u8(entries(music), place)
    assert all(not line.startswith("/") for line in place.read_text().splitlines())
    mpc("update", "--wait")
    mpc("load", str(place.relative_to(music)))
    assert mpc("playlist", "--format", "%file%").splitlines() == list(NAMES)
    assert mpc("playlist", "--format", "%title%").splitlines()[0] == "Title 0"
    for number in range(1, len(NAMES) + 1):
        mpc("play", str(number))
        wait_for(lambda: "[playing]" in mpc("status"))
        wait_for(lambda: mpc("status", "%currenttime%").strip() != "0:00")
        assert mpc("status", "%songpos%/%length%").strip() == f"{number}/{len(NAMES)}"
        assert mpc("current", "--format", "%file%").strip() == NAMES[number - 1]
    assert "ERROR" not in mpc("status")


def test_absolute_paths_load_from_the_folder_where_mpd_keeps_playlists(
    mpc: Callable[..., str], music: Path, tmp_path: Path
) -> None:
    """It takes relative ones there for paths below the folder of music."""
    (tmp_path / "lists" / "mine.m3u").write_text(m3u8_text(entries(music)), encoding="utf-8")
    mpc("load", "mine")
    assert mpc("playlist", "--format", "%file%").splitlines() == list(NAMES)
