"""The plugin of Navidrome in the runtime of Extism, which Navidrome's is too: it asks a real server.

Navidrome itself is not here. Its requests are those that the structs of its plugins write as JSON.
"""

import json
import socket
import zipfile

import extism
import pytest

from patchifier import cli
from patchifier.app import Settings
from patchifier.app.security import Access
from patchifier.app.server import PORT
from patchifier.integrations import navidrome
from tests.app.conftest import SONGS, answering

TOKEN = 'a "token" of \\ letters'
SIMILAR, PATH, MIX = (
    "nd_get_sonic_similar_tracks",
    "nd_find_sonic_path",
    "nd_get_similar_songs_by_track",
)


def song_of_063(place):
    """A song as Navidrome 0.63 sends it."""
    title, artist, album, _, _ = SONGS[place]
    return {
        "id": "21TvRmwAZ8iGn7nDZjAk4S",
        "name": title,
        "artist": artist,
        "artists": [{"id": "6irmc4vTFN22mTd65uc20M", "name": artist, "role": "artist"}],
        "album": album,
        "duration": 3.02,
        "durationMs": 3019,
    }


def song_of_062(place):
    """A song as Navidrome 0.62 sends it."""
    title, artist, album, _, _ = SONGS[place]
    ids = {"id": "21TvRmwAZ8iGn7nDZjAk4S", "artistMbid": "b972f589", "albumMbid": "84d2e1a5"}
    return {"name": title, "artist": artist, "album": album, "duration": 3.0, **ids}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Manifest and module of the package that a user installs."""
    folder = tmp_path_factory.mktemp("plugins")
    assert cli.main(["navidrome", str(folder)]) == 0
    with zipfile.ZipFile(folder / "patchifier.ndp") as files:
        assert files.namelist() == ["manifest.json", "plugin.wasm"]
        return json.loads(files.read("manifest.json")), files.read("plugin.wasm")


@pytest.fixture
def call(package):
    """Call a function of the plugin as Navidrome does: its answer, or an extism.Error."""
    manifest, module = package

    def called(name, given, *, hosts=None, **settings):
        about = {
            "wasm": [{"data": module}],
            "config": settings,
            "allowed_hosts": manifest["permissions"]["http"]["requiredHosts"]
            if hosts is None
            else hosts,
            "timeout_ms": 30_000,
        }
        with extism.Plugin(about, wasi=True) as plugin:
            return json.loads(plugin.call(name, json.dumps(given).encode()))

    return called


@pytest.fixture(scope="module")
def logged():
    """Take what was logged since the last time: Navidrome's log has it."""
    lines = []
    log = extism.set_log_custom(lines.append, "warn")  # once in a process

    def take():
        log.drain()
        text = "".join(lines)
        lines.clear()
        return text

    return take


@pytest.fixture(scope="module")
def server(table):
    with answering(table, Settings(page=False)) as address:
        yield address


@pytest.fixture(scope="module")
def guarded(table):
    with answering(table, Settings(access=Access("127.0.0.1", TOKEN), page=False)) as address:
        yield address


def test_the_manifest_has_what_navidrome_wants(package):
    manifest, module = package
    assert {"name", "author", "version"} <= set(manifest)
    assert set(manifest) <= {
        *("name", "author", "version", "description", "website", "permissions", "config")
    }
    assert manifest["permissions"]["http"]["requiredHosts"] == ["*"]  # else no private address
    assert set(manifest["config"]) == {"schema", "uiSchema"}
    assert set(manifest["config"]["schema"]["properties"]) == {"url", "token"}
    assert len(module) < 10_000


def test_the_package_has_the_same_bytes_each_time(tmp_path):
    first = navidrome.write_plugin(tmp_path).read_bytes()
    assert navidrome.write_plugin(tmp_path).read_bytes() == first


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert cli.main(["navidrome", str(tmp_path / "none")]) == 2
    assert "expected Navidrome's folder of plugins" in capsys.readouterr().err


def test_navidromes_functions_are_exported(package):
    with extism.Plugin(package[1], wasi=True) as plugin:
        assert all(map(plugin.function_exists, (SIMILAR, PATH, MIX)))
        assert not plugin.function_exists("nd_on_init")


@pytest.mark.parametrize("song", [song_of_062, song_of_063])
@pytest.mark.parametrize("slashes", ["", "/", "///"])
def test_similar_songs_come_from_the_server(call, server, client, ids, song, slashes):
    answer = call(SIMILAR, {"song": song(0), "count": 3}, url=server + slashes)
    matches = client.get(
        "/rest/getSonicSimilarTracks", params={"id": ids[0], "count": 3, "f": "json"}
    ).json()["subsonic-response"]["sonicMatch"]
    assert [(match["song"]["name"], match["similarity"]) for match in answer["matches"]] == [
        (match["entry"]["title"], match["similarity"]) for match in matches
    ]
    assert len(matches) == 3


def test_a_path_comes_from_the_server(call, server):
    given = {"startSong": song_of_063(0), "endSong": song_of_063(4), "count": 4}
    songs = [match["song"] for match in call(PATH, given, url=server)["matches"]]
    assert len(songs) == 4
    for song, place in ((songs[0], 0), (songs[-1], 4)):
        assert (song["name"], song["artist"], song["album"]) == SONGS[place][:3]
    assert songs[0]["durationMs"] == 3000


def test_songs_of_a_mix_come_from_the_server(call, server):
    title, artist, *_ = SONGS[2]
    given = {"id": "21TvRmwAZ8iGn7nDZjAk4S", "name": title, "artist": artist, "count": 2}
    assert len(call(MIX, given, url=server)["songs"]) == 2


def test_the_token_is_sent(call, guarded):
    answer = call(SIMILAR, {"song": song_of_063(1), "count": 1}, url=guarded, token=TOKEN)
    assert len(answer["matches"]) == 1


@pytest.mark.parametrize("settings", [{}, {"token": ""}, {"token": "wrong-token"}])
def test_a_wrong_token_is_an_error_that_says_so(call, guarded, settings):
    with pytest.raises(extism.Error, match=r"status 401: .*asks for a token"):
        call(SIMILAR, {"song": song_of_063(1), "count": 1}, url=guarded, **settings)


def test_an_unknown_song_has_nothing_similar_and_is_no_error(call, server, logged):
    unknown = song_of_063(1) | {"name": "Nowhere", "mbid": "8f6b0f2a"}
    logged()
    assert call(SIMILAR, {"song": unknown, "count": 5}, url=server) == {"matches": []}
    assert "no song of this table is 'Nowhere' by 'Grieg'" in logged()
    given = {"startSong": song_of_063(1), "endSong": unknown, "count": 5}
    assert call(PATH, given, url=server) == {"matches": []}
    given = {"id": "x", "name": "Nowhere", "artist": "Nobody", "count": 5}
    assert call(MIX, given, url=server) == {"songs": []}


def test_a_server_that_is_down_is_an_error(call, logged):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logged()
    with pytest.raises(extism.Error):
        call(SIMILAR, {"song": song_of_063(0), "count": 5}, url=f"http://127.0.0.1:{port}")
    assert "refused" in logged()


@pytest.mark.parametrize("settings", [{}, {"url": ""}, {"url": "/"}])
def test_without_an_address_the_servers_default_is_asked(call, settings, logged):
    logged()
    with pytest.raises(extism.Error):
        call(SIMILAR, {"song": song_of_063(0), "count": 5}, hosts=["nowhere"], **settings)
    assert f"request to http://127.0.0.1:{PORT}/api/navidrome/similar is not" in logged()


@pytest.mark.parametrize(
    ("url", "reason"),
    [("nonsense", "Invalid URL"), ('http://"/x', "invalid uri"), ("ftp://x", "unknown scheme")],
)
def test_an_address_that_is_none_is_an_error(call, url, reason, logged):
    logged()
    with pytest.raises(extism.Error):
        call(SIMILAR, {"song": song_of_063(0), "count": 5}, url=url)
    assert reason in logged()


@pytest.mark.parametrize("setting", ["url", "token"])
def test_a_setting_that_is_too_long_is_named(call, setting):
    with pytest.raises(extism.Error, match="'url' and 'token' are too long"):
        call(SIMILAR, {"song": song_of_063(0), "count": 5}, **{setting: "x" * 9000})


def test_another_server_is_an_error_that_quotes_it(call, server):
    with pytest.raises(extism.Error, match=r"status 404: .*nothing at this address"):
        call(SIMILAR, {"song": song_of_063(0), "count": 5}, url=f"{server}/elsewhere")


def test_a_long_answer_is_cut_between_letters(call):
    from tests import servers

    class Page(servers.Handler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(500)
            body = ("ä" * 100_000).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with servers.serving() as other:
        other.RequestHandlerClass = Page
        with pytest.raises(extism.Error, match=r"status 500: ä{2000}$"):
            call(SIMILAR, {"song": song_of_063(0), "count": 5}, url=other.url(""))


def test_long_tags_pass_whole(call, server):
    song = song_of_063(0) | {"mbid": "x" * 100_000}
    assert len(call(SIMILAR, {"song": song, "count": 2}, url=server)["matches"]) == 2


def test_one_instance_answers_many_calls(package, server):
    about = {"wasm": [{"data": package[1]}], "config": {"url": server}, "allowed_hosts": ["*"]}
    given = json.dumps({"song": song_of_063(0), "count": 2}).encode()
    with extism.Plugin(about, wasi=True) as plugin:
        answers = {bytes(plugin.call(SIMILAR, given)) for _ in range(50)}
    assert len(answers) == 1


@pytest.mark.app
def test_the_module_is_that_of_its_source(package):
    from tools import navidrome_plugin

    assert navidrome_plugin.build() == package[1]
