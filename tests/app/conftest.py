"""A library of a few short files with tags, its table, and a client of the server."""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mutagen.flac
import numpy as np
import pytest
import soundfile
import uvicorn
from starlette.testclient import TestClient

from patchifier import jobs
from patchifier.app import Settings, make_app
from patchifier.library import embed_library

RATE = 22_050
ADDRESS = "http://127.0.0.1:8756"
MARKUP = "<img src=x onerror=alert(1)>"
SONGS = [  # title, artist, album, year, pitch in Hz
    ("Åse's Death", "Grieg", "Peer Gynt", 1875, 220),
    ("Morning Mood", "Grieg", "Peer Gynt", 1875, 225),
    ("Für Elise", "Beethoven", "Bagatelles", 1810, 330),
    (MARKUP, "Nobody", "Bagatelles", 1990, 440),
    ("Clair de lune", "Debussy", "Suite", 1905, 660),
    (None, None, None, None, 880),
]


def song(hz: float, seconds: float = 3.0) -> np.ndarray:
    """A tone that is struck twice a second: (S,)."""
    t = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * hz * h * t) / h for h in (1, 2, 3))
    return (0.1 * wave * (1 - 0.9 * ((2 * t) % 1))).astype(np.float32)


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six tagged files. Read it, never write to it."""
    folder = tmp_path_factory.mktemp("app") / "music"
    folder.mkdir()
    for number, (title, artist, album, year, hz) in enumerate(SONGS):
        path = folder / f"{number} song.flac"
        soundfile.write(path, song(hz), RATE)
        file = mutagen.flac.FLAC(path)
        tags = {"title": title, "artist": artist, "album": album, "date": year and str(year)}
        file.update({name: value for name, value in tags.items() if value})
        file.save()
    return folder


@pytest.fixture(scope="session")
def table(music: Path) -> Path:
    """The table of :func:`music`. Read it, never write to it."""
    out = music.parent / "library.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "process_pool", ThreadPoolExecutor)
        embed_library(music, out, workers=1)
    return out


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., TestClient]]:
    """Give a client of the server of a table or a folder; threads stand for its processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "process_pool", ThreadPoolExecutor)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        clients = list[TestClient]()

        def start(source: Path, settings: Settings | None = None, **options: Any) -> TestClient:
            app = make_app(source, settings)
            client = TestClient(app, ADDRESS, raise_server_exceptions=False, **options)
            client.__enter__()
            clients.append(client)
            return client

        yield start
        for client in clients:
            client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def client(serve: Callable[..., TestClient], table: Path) -> TestClient:
    """A client of the server of :func:`table`."""
    return serve(table)


@pytest.fixture(scope="module")
def ids(client: TestClient) -> list[str]:
    """Ids of the songs, in the order of their names."""
    found = client.get("/api/tracks", params={"sort": "path"}).json()["tracks"]
    return [track["id"] for track in found]


@contextlib.contextmanager
def answering(source: Path, settings: Settings | None = None) -> Iterator[str]:
    """Serve a table on a port of this machine, in a thread; give its address."""
    config = uvicorn.Config(make_app(source, settings), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server has ended"
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def own(table: Path, tmp_path: Path) -> Path:
    """A copy of the library, of which files may vanish: its table."""
    shutil.copytree(table.parent / "music", tmp_path / "music")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "process_pool", ThreadPoolExecutor)
        embed_library(tmp_path / "music", tmp_path / "own.parquet", workers=1)
    return tmp_path / "own.parquet"
