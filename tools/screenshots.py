"""Draw the views of the page with the bundled clips: docs/figures/app/*.png.

    python -m tools.screenshots [NAMES]     # needs chromium and the extra dev; two minutes

Each view in light and dark at 1,280 pixels, and in one of the two at 400.
"""

import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.app.page import music
from tests.app.page.serving import CHROMIUM, FLAGS, Server

OUT = Path(__file__).parents[1] / "docs" / "figures" / "app"
WIDE, NARROW = (1280, 800), (400, 800)
MOST_B = 150_000
PLAIN, FEW_COLOURS = ("similar",), 128  # views of one hue
SEED = "Awakened"
LABELS = {"calm": "unknown-horizons", "driving": "supertuxkart"}
TAUGHT = 4  # songs of each label


def library(page: Any, ids: dict[str, str]) -> None:
    """Songs, one of them playing."""
    page.goto(page.url.split("#")[0] + "#/library")
    page.get_by_role("button", name=f"Play {SEED}").click()
    page.wait_for_selector(".wave > div", timeout=60_000)
    page.wait_for_timeout(2500)
    page.locator("#player").get_by_role("button", name="Pause").click()
    page.evaluate("document.activeElement.blur()")


def duplicates(page: Any, ids: dict[str, str]) -> None:
    """Pairs that share a recording."""
    page.goto(page.url.split("#")[0] + "#/library?duplicates=1")
    page.get_by_role("heading", name="Duplicates", exact=True).wait_for()
    check = page.get_by_role("button", name="Check the files")
    page.wait_for_timeout(1000)
    if check.count():
        check.click()
    page.get_by_text("Confirmed by the sound").wait_for(timeout=120_000)
    page.wait_for_timeout(300)


def similar(page: Any, ids: dict[str, str]) -> None:
    """Neighbours, the second with its reason."""
    page.goto(page.url.split("#")[0] + f"#/similar?like={ids[SEED]}")
    page.get_by_role("button", name="Why").nth(1).click()
    page.wait_for_selector(".stretch", timeout=60_000)
    page.wait_for_timeout(300)


def points(page: Any, ids: dict[str, str]) -> None:
    """The map with a path."""
    page.goto(page.url.split("#")[0] + f"#/similar?like={ids[SEED]},{ids['ambient1']}&mode=path")
    page.get_by_role("button", name="Draw on the map").click()
    page.wait_for_selector("[data-ready=true]", timeout=60_000)
    page.get_by_label("Colour by").select_option("album")
    page.locator(".map-legend").get_by_text("naev").wait_for()
    page.wait_for_timeout(800)


def inside(page: Any, ids: dict[str, str]) -> None:
    """A song with masked patches."""
    page.goto(page.url.split("#")[0] + f"#/inside?song={ids['Medley']}")
    page.wait_for_selector(".errors", timeout=60_000)
    page.wait_for_selector(".lane:nth-child(2)", timeout=60_000)
    page.wait_for_timeout(300)


def form(page: Any, ids: dict[str, str]) -> None:
    """The lower half of Inside."""
    inside(page, ids)
    page.get_by_label("Self-similarity of the song").scroll_into_view_if_needed()
    page.wait_for_timeout(300)


def teach(page: Any, ids: dict[str, str]) -> None:
    """Two labels, and what was learnt."""
    lesson = {
        "name": "mood",
        "labels": [
            {"name": name, "ids": ids[album].split()[:TAUGHT]} for name, album in LABELS.items()
        ],
    }
    page.evaluate(
        "([key, text]) => localStorage.setItem(key, text)",
        ["patchifier.teach.Demo", json.dumps(lesson)],
    )
    page.goto(page.url.split("#")[0] + "#/teach")
    page.get_by_role("button", name="Train").click()
    page.locator(".confusion").wait_for()
    page.evaluate("document.querySelector('.confusion').parentElement.scrollIntoView()")
    page.mouse.wheel(0, -90)  # the bar of the page covers its top
    page.wait_for_timeout(300)


VIEWS: dict[str, Callable[[Any, dict[str, str]], None]] = {
    "library": library,
    "duplicates": duplicates,
    "similar": similar,
    "map": points,
    "inside": inside,
    "form": form,
    "teach": teach,
}


def main(names: list[str]) -> None:
    """Write the pictures of the named views; all by default."""
    from playwright.sync_api import sync_playwright

    names = names or list(VIEWS)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        songs = music.make(Path(folder) / "Demo")
        server = Server(songs, "--workers", "1", cache=Path(folder) / "cache")
        try:
            server.wait('"state":"done"')
            if "map" in names:
                server.ask("api/map", b"{}")
            ids = _ids(server)
            browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            if "map" in names:
                server.wait('"state":"done"', "api/map")
            for name in names:
                for scheme, size in (("light", WIDE), ("dark", WIDE), ("light", NARROW)):
                    _draw(browser, server, name, ids, scheme=scheme, size=size)
            browser.close()
        finally:
            server.stop()


def _ids(server: Server) -> dict[str, str]:
    """Id of each title, and ids of each album."""
    tracks = json.loads(server.ask("api/tracks?limit=1000"))["tracks"]
    found = {track["title"]: track["id"] for track in tracks}
    for track in tracks:
        if track["album"] != track["title"]:
            found[track["album"]] = f"{found.get(track['album'], '')} {track['id']}".strip()
    return found


def _draw(
    browser: Any,
    server: Server,
    name: str,
    ids: dict[str, str],
    *,
    scheme: str,
    size: tuple[int, int],
) -> None:
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.address)
    VIEWS[name](page, ids)
    kind = "narrow" if size == NARROW else scheme
    (OUT / f"{name}-{kind}.png").write_bytes(
        _small(page.screenshot(), FEW_COLOURS if name in PLAIN else 256)
    )
    context.close()


def _small(png: bytes, most: int) -> bytes:
    """The same picture with as many of some colours as make it small."""
    from PIL import Image

    for colours in (most, 128, 64, 32):
        made = io.BytesIO()
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            made, "PNG", optimize=True
        )
        if made.tell() <= MOST_B:
            break
    return made.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])
