"""Duplicates: pairs by class, both sides played, keys, and the state of the check."""

import shutil

import pytest
import soundfile

from patchifier.datasets import demo

pytestmark = pytest.mark.app
ADDRESS = "#/library?duplicates=1"


@pytest.fixture(scope="module")
def copies(serve, tmp_path_factory):
    """Three clips, one of them twice in another format, and one once more without its first 4 s."""
    folder = tmp_path_factory.mktemp("copies") / "Copies"
    folder.mkdir()
    for number in (0, 1, 2):
        shutil.copy(demo.ROOT / "clips" / f"naev_{number:02d}.ogg", folder / f"{number}.ogg")
    samples, rate = soundfile.read(folder / "0.ogg")
    soundfile.write(folder / "0 again.flac", samples, rate)
    samples, rate = soundfile.read(folder / "1.ogg")
    soundfile.write(folder / "1 cut.flac", samples[4 * rate :], rate)
    server = serve(folder, "--workers", "1")
    server.wait('"state":"done"')
    return server


def heard(page):
    page.wait_for_function("document.querySelector('audio').currentTime > 0.2")
    return page.locator("#player .song-title").get_attribute("title")


def test_a_check_sorts_pairs_into_classes_and_both_sides_play(go, copies):
    page = go(copies)
    page.get_by_role("link", name="Duplicates").click()
    page.get_by_role("heading", name="Duplicates", exact=True).wait_for()
    page.get_by_role("button", name="Check the files").click()
    same = page.get_by_role("region", name="Same recording", exact=True)
    same.wait_for(timeout=60_000)
    assert sorted(same.locator(".pair-path").all_inner_texts()) == ["0 again.flac", "0.ogg"]
    assert same.locator(".song").count() == 2
    edited = page.get_by_role("region", name="Same recording, edited or re-encoded")
    assert edited.locator(".song").count() == 2
    assert "4.0 s" in edited.inner_text()
    for side in (0, 1):
        row = edited.locator(".song").nth(side)
        row.get_by_role("button", name="Play").click()
        assert heard(page) == row.locator(".song-title").inner_text()
        row.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Check the files").count() == 0


def test_pairs_are_gone_through_by_keys(go, copies):
    copies.ask("api/duplicates", b"{}")
    copies.wait('"state":"done"', "api/duplicates")
    page = go(copies, ADDRESS)
    rows = page.locator(".pair .song")
    rows.first.focus()
    for row in (1, 2, 3, 3):
        page.keyboard.press("ArrowDown")
        assert rows.nth(row).evaluate("row => row === document.activeElement")
    page.keyboard.press("Enter")
    assert heard(page) == rows.nth(3).locator(".song-title").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_no_pair_is_wider_than_the_window(go, copies, width, scheme):
    copies.ask("api/duplicates", b"{}")
    copies.wait('"state":"done"', "api/duplicates")
    page = go(copies, ADDRESS, width=width, scheme=scheme)
    page.locator(".pair").first.wait_for()
    assert page.evaluate("document.querySelector('.page').scrollWidth") <= width


@pytest.mark.parametrize(
    ("compared", "said"), [(True, "No pairs with nearly equal vectors"), (False, "too many songs")]
)
def test_no_pairs_before_the_check_are_explained(go, copies, compared, said):
    page = go(copies)
    check = {"state": "missing", "done": 0, "total": 0, "error": None}
    answer = {"pairs": [], "check": check, "compared": compared}
    page.route("**/api/duplicates", lambda route: route.fulfill(json=answer))
    page.goto(copies.address + ADDRESS)
    page.get_by_text(said).wait_for()
    page.get_by_text("Press “Check the files” to find").wait_for()


def test_progress_is_shown_and_a_failure_with_its_reason(go, copies):
    page = go(copies)
    states = iter([("running", 120), ("failed", 150)])

    def answer(route):
        state, done = next(states, ("failed", 150))
        check = {"state": state, "done": done, "total": 300, "error": None}
        if state == "failed":
            check["error"] = "the disk is full: make room."
        route.fulfill(json={"pairs": [], "check": check, "compared": True})

    page.route("**/api/duplicates", answer)
    page.goto(copies.address + ADDRESS)
    page.get_by_role("progressbar").filter(has_text="40 %").wait_for()
    page.get_by_role("alert").filter(has_text="the disk is full").wait_for()
    assert page.get_by_role("button", name="Check the files").is_enabled()
