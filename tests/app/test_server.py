"""The commands, the port, and the description of the API."""

import re
import socket

import httpx
import pytest

from patchifier import cli
from patchifier.app import Settings, make_app, server
from patchifier.app.collection import table_of
from patchifier.app.routes import document
from patchifier.config import RequestError


def test_every_route_is_in_the_description(client):
    found = client.get("/api/openapi.json").json()
    described = {
        (method.upper(), path) for path, methods in found["paths"].items() for method in methods
    }
    served = {
        (method, route.path)
        for route in client.app.routes
        if hasattr(route, "methods") and route.path.startswith("/api/")
        for method in route.methods - {"HEAD"}
    }
    assert served - described == {("GET", "/api/openapi.json")}
    assert {path for _, path in described if path.startswith("/rest/")} >= {
        "/rest/getSonicSimilarTracks",
        "/rest/findSonicPath",
    }


def test_the_description_says_what_each_endpoint_takes():
    paths = document()["paths"]
    listed = {one["name"]: one for one in paths["/api/tracks"]["get"]["parameters"]}
    assert listed["limit"]["schema"] == {"type": "integer", "default": 100}
    body = paths["/api/similar"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["like"]
    assert body["properties"]["filters"]["properties"]["year_from"] == {"type": "integer"}
    one = paths["/api/audio/{id}"]["get"]["parameters"]
    assert {(part["name"], part["in"], part["required"]) for part in one} == {
        ("id", "path", True),
        ("as", "query", False),
    }
    names = [
        operation["operationId"] for methods in paths.values() for operation in methods.values()
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"\w+", name) for name in names)
    assert all(
        operation["summary"].endswith(".")
        for methods in paths.values()
        for operation in methods.values()
    )


def test_a_table_of_patches_and_one_of_another_model_are_refused(music, table, tmp_path, threads):
    from patchifier.library import embed_library

    embed_library(music, tmp_path / "patches.parquet", patches=True, workers=1)
    with pytest.raises(RequestError, match="--patches"):
        make_app(tmp_path / "patches.parquet")
    with pytest.raises(RequestError, match="--model"):
        make_app(table, Settings(model="patchifier-paper"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "{music}"], "folder"),
        (["serve", "{table}", "--host", "0.0.0.0"], "--token"),
        (["serve", "{table}", "--port", "70000"], "--port"),
        (["serve", "{table}", "--music", "/nothing/here"], "--music"),
        (["serve", "{table}", "--heads", "/nothing/here"], "--heads"),
        (["app", "/nothing/here"], "/nothing/here"),
        (["app", "{table}", "--port", "{taken}"], "--port"),
    ],
)
def test_a_command_that_cannot_serve_ends_with_a_sentence(words, said, music, table, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"{music}": music, "{table}": table, "{taken}": taken.getsockname()[1]}
        code = cli.main([str(values.get(word, word)) for word in words])
    assert code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("out", ["", "own.parquet"])
def test_the_command_prints_where_the_table_of_a_folder_is(out, music, monkeypatch, capsys):
    monkeypatch.setattr(server, "run", lambda *_, started: started("http://127.0.0.1:1/"))
    words = ["app", str(music), "--no_browser", *(["--out", out] if out else [])]
    assert cli.main(words) == 0
    assert f"the table of this folder is {out or table_of(music)}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["app", "serve"])
def test_the_command_serves_until_it_is_interrupted(command, table, child_environment):
    import signal
    import subprocess
    import sys

    words = [sys.executable, "-m", "patchifier", command, str(table), "--port", "0"]
    words += ["--no_browser"] * (command == "app")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=child_environment)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stderr.readline())[0]
        assert httpx.get(f"{address}api/status").json()["n_tracks"] == 6
        assert httpx.get(address).status_code == (200 if command == "app" else 404)
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(20)
    assert code == 0
    assert "Traceback" not in process.stderr.read()
