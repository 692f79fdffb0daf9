"""The frame of the page and its first view: search, sort, play, keys, and what is shown when something is wrong."""

import json

import pytest

from tests.app.page import music

pytestmark = pytest.mark.app
VIEWS = ("library", "similar", "map", "inside", "teach")


def titles(page):
    return page.locator(".rows-body .song-title").all_inner_texts()


def heard(page, seconds=0.5):
    """Wait until the audio element has data and has advanced."""
    page.wait_for_function(
        "least => { const a = document.querySelector('audio'); return a.readyState >= 2 && a.currentTime > least; }",
        arg=seconds,
    )


def test_search_narrows_the_list_as_one_types(go, library):
    page = go(library)
    page.wait_for_selector(".rows-body [data-id]")
    page.keyboard.press("/")
    page.keyboard.type("maxstack")
    page.locator(".library-top").get_by_text("6 songs found").wait_for()
    assert page.locator(".rows-body .cell.artist").all_inner_texts() == 6 * ["Maxstack"]
    page.keyboard.type(" nowhere")
    page.get_by_text("No song matches").wait_for()


def test_columns_sort_in_both_directions(go, library):
    page = go(library)
    page.get_by_role("button", name="Artist").click()
    page.get_by_role("button", name="Artist ↑").wait_for()
    page.wait_for_function(
        "() => document.querySelector('.row[data-index=\"0\"] .artist')?.textContent.startsWith('<i>')"
    )
    page.get_by_role("button", name="Artist ↑").click()
    page.wait_for_function(
        "() => document.querySelector('.row[data-index=\"0\"] .artist')?.textContent > 'V'"
    )


def test_a_song_plays_and_the_next_one_follows_by_keys(go, library):
    page = go(library, "#/library?search=warzone2100")
    page.wait_for_selector(".rows-body [data-id]")
    page.get_by_label("Search").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    second = titles(page)[1]
    heard(page)
    assert page.locator("#player .song-title").inner_text() == second
    page.locator("#player").get_by_role("button", name="Next song").click()
    heard(page)
    assert page.locator("#player .song-title").inner_text() == titles(page)[2]
    page.locator(".row.selected").focus()
    page.keyboard.press("Space")
    assert page.evaluate("document.querySelector('audio').paused")


def test_a_seek_is_heard_at_once(go, library):
    page = go(library, "#/library?search=medley")
    page.get_by_role("button", name="Play Medley").click()
    heard(page, 0.1)
    page.get_by_label("Position in the song").fill("750")
    heard(page, 59)


def test_a_format_that_the_browser_cannot_play_is_converted(go, library):
    page = go(library, "#/library?search=tape")
    page.get_by_role("button", name="Play a tape").click()
    heard(page, 0.2)
    page.get_by_label("Position in the song").fill("750")
    heard(page, 14)
    assert "as=" in page.evaluate("document.querySelector('audio').currentSrc")


def test_one_selected_song_is_shared_by_the_views(go, library):
    page = go(library, "#/library?search=apex")
    page.get_by_text("Apex Aleph").click()
    page.get_by_role("link", name="Similar").click()
    page.get_by_role("heading", name="Like Apex Aleph").wait_for()
    page.get_by_role("link", name="Inside").click()
    page.get_by_role("heading", name="Apex Aleph").wait_for()


def test_tags_with_markup_are_text(go, library, ids):
    page = go(library, "#/library?search=faults")
    page.get_by_role("button", name="Artist").wait_for()
    page.wait_for_selector(".rows-body [data-id]")
    assert music.MARKUP in titles(page)
    assert page.locator(".rows-body img, .rows-body b, .rows-body i").count() == 0
    page.goto(f"{library.address}#/similar?like={ids[music.MARKUP]}")
    page.get_by_role("heading", name=music.MARKUP).wait_for()
    assert page.title() != "run"


def test_a_file_that_vanished_is_said_in_place(go, library):
    page = go(library, "#/library?search=vanished", allow=(410,))
    page.get_by_text("The file is missing").wait_for()
    page.get_by_role("button", name=f"Play {music.VANISHED}").click()
    page.locator(".player-error").filter(has_text="vanished.ogg is not there").wait_for()


def test_skipped_files_are_named_with_their_reason(go, library):
    page = go(library)
    page.get_by_text("46 of 47 files embedded, 1 skipped").wait_for()
    page.get_by_text("1 file was skipped").click()
    assert "notes.mp3" in page.locator(".skipped li").inner_text()
    assert len(page.locator(".skipped li .soft").inner_text()) > 10


def test_files_that_were_skipped_for_a_table_are_named(go, library):
    page = go(library)
    status = json.loads(library.ask("api/status"))
    rows = [[f"/music/{number}.mp3", "is empty (0 bytes)."] for number in range(3)]
    page.route(
        "**/api/status",
        lambda route: route.fulfill(json=status | {"job": None, "n_skipped": 3, "skipped": rows}),
    )
    page.reload()
    page.get_by_text("3 files were skipped").click()
    assert page.locator(".skipped li").all_inner_texts()[1] == "/music/1.mp3\nis empty (0 bytes)."
    assert page.locator(".job-line").count() == 0


def test_the_buttons_of_a_song_are_seen_without_a_pointer(go, library):
    page = go(library, "#/library?search=apex")
    page.wait_for_selector(".rows-body [data-id]")
    for name in ("Songs similar to Apex Aleph", "Look inside Apex Aleph"):
        opacity = "node => getComputedStyle(node.parentElement).opacity"
        assert page.get_by_role("button", name=name).evaluate(opacity) == "1"


def test_a_library_without_songs_says_what_to_do(go, library):
    page = go(library)
    page.route("**/api/tracks?**", lambda route: route.fulfill(json={"total": 0, "tracks": []}))
    page.reload()
    page.get_by_text("This library has no songs yet").wait_for()


def test_an_error_of_the_server_is_said_in_place(go, library):
    page = go(library, allow=(500,))
    page.wait_for_selector(".rows-body [data-id]")
    page.route(
        "**/api/tracks?**",
        lambda route: route.fulfill(
            status=500, json={"error": "the table cannot be read: make it again."}
        ),
    )
    page.get_by_label("Search").fill("x")
    page.get_by_role("alert").filter(has_text="The table cannot be read").wait_for()
    page.unroute("**/api/tracks?**")
    page.get_by_role("button", name="Try again").click()
    page.locator(".rows-body").wait_for()


def test_views_are_reached_by_tab_and_enter(go, library):
    page = go(library)
    page.wait_for_selector(".rows-body [data-id]")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(3):  # the brand, Library, Similar
        page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Find music by its sound").wait_for()
    assert outline == "solid"


def test_space_plays_the_selected_song_when_nothing_was_played(go, library):
    page = go(library, "#/library?search=apex")
    page.get_by_text("Apex Aleph").click()
    page.keyboard.press("Space")
    heard(page)
    assert page.locator("#player .song-title").inner_text() == "Apex Aleph"


def test_views_that_change_quickly_leave_no_error(go, library, ids):
    page = go(library)
    for turn in range(24):
        page.goto(
            f"{library.address}#/{VIEWS[(turn * 3) % 5]}?like={ids['Awakened']}&song={ids['Medley']}&turn={turn}"
        )
        page.wait_for_timeout(40 + 25 * (turn % 5))
    page.goto(library.address + "#/library")
    page.wait_for_selector(".rows-body [data-id]")
    assert page.get_by_role("alert").filter(visible=True).count() == 0


def test_a_busy_server_is_asked_again(go, library):
    page = go(library, allow=(429,))
    busy = iter([True, True])

    def answer(route):
        if next(busy, False):
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": "busy."})
        else:
            route.continue_()

    page.route("**/api/tracks?**", answer)
    page.reload()
    page.wait_for_selector(".rows-body [data-id]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_no_view_is_wider_than_the_window(go, library, ids, width, scheme):
    page = go(library, f"#/library?song={ids['Medley']}", width=width, scheme=scheme)
    for view in VIEWS:
        page.goto(f"{library.address}#/{view}?song={ids['Medley']}&like={ids['Medley']}")
        page.wait_for_timeout(900)
        sizes = page.evaluate(
            "[document.documentElement.scrollWidth, document.getElementById('view').scrollWidth, document.getElementById('player').scrollWidth]"
        )
        assert max(sizes) <= width, view


def test_the_theme_is_chosen_and_kept(go, library):
    page = go(library)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark colours").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.reload()
    assert before != dark == page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_fifty_thousand_songs_scroll_with_few_rows_drawn(go, library):
    song = json.loads(library.ask("api/tracks?limit=1"))["tracks"][0]

    def page_of(route):
        query = dict(part.split("=") for part in route.request.url.split("?")[1].split("&"))
        first = int(query["offset"])
        route.fulfill(
            json={
                "total": 50_000,
                "tracks": [
                    song | {"id": f"{first + index:016x}", "title": f"Song {first + index}"}
                    for index in range(100)
                ],
            }
        )

    page = go(library)
    page.route("**/api/tracks?**", page_of)
    page.reload()
    page.locator(".library-top").get_by_text("50,000 songs").wait_for()
    page.locator(".rows").evaluate("node => node.scrollTop = node.scrollHeight / 2")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.rows-body .song-title')].some(node => /^Song 2(4|5)\\d{3}$/.test(node.textContent))"
    )
    assert page.locator(".rows-body .row").count() < 60
