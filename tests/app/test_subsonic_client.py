"""A real client of OpenSubsonic, py-opensonic, against a real server: its ways of signing in, and what it makes of the answers."""

import asyncio
import importlib

import pytest

from patchifier.app import Settings
from patchifier.app.security import Access
from tests.app.conftest import SONGS, answering

TOKEN = "sesame-sesame"
WAYS = {  # of signing in, and of asking
    "token and salt": {"username": "me", "password": TOKEN},
    "password": {"username": "me", "password": TOKEN, "legacy_auth": True},
    "key": {"api_key": TOKEN},
}
FORMS = {
    "form": {},
    "query": {"use_get": True},
    "without .view": {"use_views": False},
}


@pytest.fixture(scope="module")
def server(table):
    settings = Settings(access=Access("127.0.0.1", TOKEN), page=False)
    with answering(table, settings) as address:
        yield address


@pytest.fixture(scope="module")
def run(server):
    """Run a coroutine that takes a connection with some settings."""
    from libopensonic import AsyncConnection  # a second, of which other tests need nothing

    base, _, port = server.rpartition(":")

    def run(task, **settings):
        async def connected():
            connection = AsyncConnection(base, port=int(port), **settings)
            try:
                return await task(connection)
            finally:
                await connection.cleanup()

        return asyncio.run(connected())

    return run


def error_of(name):
    """An error of the client by its name."""
    return getattr(importlib.import_module("libopensonic.errors"), name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_the_client_signs_in_and_finds_songs(run, ids, way, form):
    async def task(connection):
        assert await connection.ping()
        found = await connection.get_open_subsonic_extensions()
        similar = await connection.get_sonic_similar_tracks(ids[0], 3)
        path = await connection.find_sonic_path(ids[0], ids[4], 4)
        return {one.name: one.versions for one in found}, similar, path

    extensions, similar, path = run(task, **WAYS[way], **FORMS[form])
    assert extensions["sonicSimilarity"] == [1]
    scores = [match.similarity for match in similar]
    assert (len(scores), scores) == (3, sorted(scores, reverse=True))
    assert all(0 <= score <= 1 for score in scores)
    assert (path[0].entry.id, path[-1].entry.id, len(path)) == (ids[0], ids[4], 4)
    assert path[0].similarity == 1.0
    first = path[0].entry
    assert (first.title, first.artist, first.album, first.year) == SONGS[0][:4]
    assert (first.duration, first.suffix, first.type) == (3, "flac", "music")


@pytest.mark.parametrize("form", FORMS)
def test_the_client_reads_whose_key_it_is(run, form):
    info = run(lambda connection: connection.token_info(), **WAYS["key"], **FORMS[form])
    assert info.username == "patchifier"


def test_the_client_reads_and_streams_a_song(run, ids):
    async def task(connection):
        song = await connection.get_song(ids[1])
        stream = await connection.stream(ids[1])
        return song, await stream.read()

    song, sound = run(task, **WAYS["token and salt"])
    assert (song.title, sound[:4]) == ("Morning Mood", b"fLaC")
    assert len(sound) == song.size


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"username": "me", "password": "wrong"}, "CredentialError"),
        ({"username": "me", "password": "wrong", "legacy_auth": True}, "CredentialError"),
        ({"api_key": "wrong"}, "SonicError"),
    ],
)
def test_a_wrong_password_is_the_clients_error(run, form, settings, error):
    with pytest.raises(error_of(error)):
        run(lambda connection: connection.get_song("x"), **settings, **FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_an_unknown_song_is_the_clients_error(run, form):
    with pytest.raises(error_of("DataNotFoundError")):
        run(
            lambda connection: connection.get_sonic_similar_tracks("x"),
            **WAYS["key"],
            **FORMS[form],
        )
