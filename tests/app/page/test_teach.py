"""Teach: labels by click and by search, training, what is said of few songs, doubtful songs, apply, save."""

import json
import re

import pytest

pytestmark = pytest.mark.app
ALBUMS = {"calm": "unknown-horizons", "driving": "supertuxkart"}


@pytest.fixture
def of_album(library):
    tracks = json.loads(library.ask("api/tracks?limit=1000"))["tracks"]
    return {
        label: [track["id"] for track in tracks if track["album"] == album]
        for label, album in ALBUMS.items()
    }


@pytest.fixture
def page(go, library, of_album):
    """A page on which two labels have five songs each."""
    page = go(library)
    lesson = {
        "name": "mood",
        "labels": [{"name": name, "ids": ids[:5]} for name, ids in of_album.items()],
    }
    page.evaluate("text => localStorage.setItem('patchifier.teach.Demo', text)", json.dumps(lesson))
    page.goto(library.address + "#/teach")
    page.wait_for_selector(".card-songs li")
    return page


def train(page):
    page.get_by_role("button", name="Train").click()
    page.wait_for_selector(".confusion", timeout=60_000)


def test_labels_are_given_by_click_and_by_search(go, library, ids):
    page = go(library, f"#/inside?song={ids['Apex Aleph']}")
    page.get_by_role("heading", name="Apex Aleph").wait_for()
    page.get_by_role("link", name="Teach").click()
    page.get_by_label("Name of label 1").fill("slow")
    page.get_by_label("Name of label 2").fill("fast")
    page.get_by_role("button", name="Add “Apex Aleph”").first.click()
    assert page.get_by_role("button", name="Train").is_disabled()
    for label, songs in (("slow", ("ambient1",)), ("fast", ("Awakened", "Rainout"))):
        card = page.get_by_label(label, exact=True)
        for song in songs:
            card.get_by_label("Add a song").fill(song)
            page.get_by_role("option").first.wait_for()
            page.keyboard.press("Enter")
            card.locator("li").filter(has_text=song).wait_for()
    assert page.get_by_role("button", name="Train").is_enabled()
    page.reload()
    page.locator(".card-songs li").filter(has_text="Rainout").wait_for()


def test_few_songs_are_called_too_few(page):
    train(page)
    page.get_by_text("Too few to say", exact=True).wait_for()
    assert page.locator(".big").inner_text().count("%") == 4  # accuracy, its interval, and 95 %
    cells = [int(text) for text in page.locator(".confusion td:not(:empty)").all_inner_texts()]
    assert len(cells) == 4
    assert sum(cells) == 10


def test_the_level_of_guessing_and_shared_albums_are_said(page):
    train(page)
    page.get_by_text("Always saying “calm” would give 50 %.").wait_for()
    shared = page.locator(".shared").all_inner_texts()
    assert any("10 of 10 songs share their album" in text for text in shared)


def test_a_label_of_which_no_song_is_right_is_named(page):
    def changed(route):
        route.fulfill(json=route.fetch().json() | {"never_right": ["driving"]})

    page.route("**/api/teach", changed)
    train(page)
    page.get_by_text("No song was named right of: driving.").wait_for()


def test_a_doubtful_song_is_labelled_with_one_click(page):
    train(page)
    row = page.locator(".teach-results .song").first
    title = row.locator(".song-title").inner_text()
    row.get_by_role("button", name="calm").click()
    page.get_by_label("calm", exact=True).first.locator("li").filter(
        has_text=title
    ).first.wait_for()


def test_labels_of_the_library_are_applied_saved_and_shown_on_the_map(page, tmp_path):
    train(page)
    page.get_by_role("button", name="Label the whole library").click()
    page.get_by_text("songs labelled").first.wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save predictions (CSV)").click()
    assert waiting.value.suggested_filename == "mood-predicted.csv"
    waiting.value.save_as(tmp_path / "labels.csv")
    rows = (tmp_path / "labels.csv").read_text().splitlines()
    assert len(rows) > 40
    assert sum(row.endswith((",calm", ",driving")) for row in rows) == 10  # the user's own
    page.get_by_text("has the labels that are yours").wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save the classifier").click()
    assert waiting.value.suggested_filename == "mood.zip"
    page.get_by_text("patchifier predict mood.zip").wait_for()
    page.get_by_role("button", name="See them on the map").click()
    page.locator(".map-legend").get_by_text("driving").wait_for(timeout=90_000)
    measured = page.locator(".map-measured").inner_text()
    assert re.fullmatch(
        r"Accuracy \d+ % \(95 % interval: \d+ % to \d+ %\)", measured.replace("\xa0", " ")
    )
    page.locator(".map-stage canvas").focus()
    page.keyboard.press("ArrowRight")
    page.locator(".map-side .map-label").get_by_text("mood: ").wait_for()
    page.get_by_label("Colour by").select_option("album")
    page.locator(".map-label").wait_for(state="detached")
    assert page.locator(".map-measured").count() == 0


def test_fewer_than_two_labels_cannot_be_trained(go, library):
    page = go(library, "#/teach")
    assert page.get_by_role("button", name="Train").is_disabled()
