"""A server of real music with the real model, and a browser that reports what goes wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.page import music
from tests.app.page.serving import CHROMIUM, FLAGS, Server


@pytest.fixture(scope="session")
def songs(tmp_path_factory) -> Path:
    folder = music.make(tmp_path_factory.mktemp("music") / "Demo")
    music.add_faults(folder)
    return folder


@pytest.fixture(scope="session")
def serve(tmp_path_factory) -> Iterator:
    """Start servers, and end them."""
    running: list[Server] = []

    def start(source: Path, *flags: str) -> Server:
        running.append(Server(source, *flags, cache=tmp_path_factory.mktemp("cache")))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def library(serve, songs) -> Server:
    """The library of real music; its map is drawn while other tests run."""
    server = serve(songs, "--workers", "1")
    server.wait('"state":"done"')
    (songs / "vanished.ogg").unlink()
    server.ask("api/map", b"{}")
    return server


@pytest.fixture(scope="session")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright  # missing, it is a failure and no skip

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def go(browser) -> Iterator:
    """Open a page of a server; at the end there was no error and no request to elsewhere.

    An answer of the server that a test wants to be an error is named in `allow`.
    """
    opened = []

    def visit(
        server: Server,
        address: str = "",
        *,
        width: int = 1280,
        height: int = 800,
        scheme: str = "light",
        allow: tuple[int, ...] = (),
    ):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        page = context.new_page()
        page.set_default_timeout(20_000)
        faults: list[str] = []
        statuses = {str(status) for status in allow}
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on(
            "console",
            lambda line: (
                faults.append(f"console: {line.text}")
                if line.type in ("error", "warning")
                and not any(f"status of {status}" in line.text for status in statuses)
                and "GL Driver Message (OpenGL, Performance" not in line.text  # not the page's
                else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((server.address, "blob:", "data:"))
                else faults.append(f"asked {request.url}")
            ),
        )
        page.goto(server.address + address)
        page.wait_for_selector("#tabs [aria-current=page]")
        opened.append((context, faults))
        return page

    yield visit
    for context, faults in opened:
        context.close()
        assert not faults


@pytest.fixture(scope="session")
def ids(library) -> dict[str, str]:
    """Id of each title."""
    return {
        track["title"]: track["id"]
        for track in json.loads(library.ask("api/tracks?limit=1000"))["tracks"]
    }
