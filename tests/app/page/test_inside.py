"""Inside: waveform, patches to mask, what the model draws and its error, form, tempo and chords."""

import pytest

pytestmark = pytest.mark.app
SONG = "Medley"


@pytest.fixture
def page(go, library, ids):
    page = go(library, f"#/inside?song={ids[SONG]}")
    page.wait_for_selector(".errors", timeout=60_000)
    return page


def masked(page):
    return page.locator(".patches.masked [aria-checked=true]").count()


def masks(*patches):
    """Whether a response is of these patches."""
    return lambda answer: "reconstruct" in answer.url and answer.json()["masked"] == [*patches]


def drawn(page, which):
    """A spectrogram's picture."""
    return page.evaluate(
        "index => document.querySelectorAll('canvas.mel')[index].toDataURL()", which
    )


def test_what_the_masks_are_for_is_said_in_plain_words(page):
    lead = page.locator("#mask-title + .lead").inner_text()
    assert lead.startswith("What has the model learnt about music?")
    assert not {"log-mel", "patch", "patches"} & set(lead.split())
    page.get_by_role("heading", name="How far the guesses are off").wait_for()


def test_a_ratio_is_masked_and_drawn_with_its_error_beside_two_baselines(page):
    assert masked(page) == 19  # three quarters of 25
    assert page.locator(".error-row").count() == 3
    errors = [float(text) for text in page.locator(".error-row .number").all_inner_texts()]
    assert all(0 < error < 1 for error in errors)
    before = drawn(page, 2)
    with page.expect_response(lambda answer: "reconstruct" in answer.url):
        page.get_by_label("Share of patches to mask").fill("0.2")
    page.wait_for_function(
        "() => document.querySelectorAll('.patches.masked [aria-checked=true]').length === 5"
    )
    assert drawn(page, 2) != before


def test_patches_are_chosen_by_pointer_and_by_keys(page):
    page.get_by_role("button", name="None").click()
    page.get_by_text("Nothing is hidden").wait_for()
    boxes = page.locator(".patches.original .patch")
    first, third = boxes.nth(3).bounding_box(), boxes.nth(6).bounding_box()
    page.mouse.move(first["x"] + 4, first["y"] + 20)
    page.mouse.down()
    page.mouse.move(third["x"] + 4, third["y"] + 20, steps=12)
    with page.expect_response(masks(3, 4, 5, 6)):
        page.mouse.up()
    page.locator(".patches.masked .patch").first.focus()
    page.keyboard.press("ArrowRight")
    with page.expect_response(masks(1, 3, 4, 5, 6)):
        page.keyboard.press("Space")
    assert masked(page) == 5


def test_another_window_is_looked_at(page):
    slider = page.get_by_label("Start of the window, in seconds")
    before = drawn(page, 0)
    with page.expect_response(lambda answer: "start_s=45" in answer.url):
        slider.fill("45")
    page.wait_for_function(
        "() => document.querySelector('.overview + .lanes + span').textContent.startsWith('Window 0:45')"
    )
    page.wait_for_selector(".errors")
    assert drawn(page, 0) != before


def test_the_rough_inversion_is_heard(page):
    with page.expect_response(
        lambda answer: "/sound?" in answer.url and "kind=reconstructed" in answer.url,
        timeout=60_000,
    ) as waiting:
        page.get_by_role("button", name="Hear the reconstructed").click()
    assert waiting.value.status in (200, 206)
    page.get_by_text("Playing a rough inversion").wait_for()


def test_sections_that_come_again_have_one_letter_and_play(page):
    page.wait_for_selector(".section-list .stretch", timeout=60_000)
    letters = page.locator(".section-list .section-label").all_inner_texts()
    assert len(letters) > len(set(letters)) > 1
    page.locator(".section-list .stretch").nth(1).click()
    page.wait_for_function("() => document.querySelector('audio').currentTime > 15")
    assert page.locator(".matrix").evaluate("node => node.width") > 20


def test_tempo_key_and_chords_are_shown(page):
    page.wait_for_selector(".lane[aria-label=Chords] button", timeout=60_000)
    facts = page.locator(".fact").all_inner_texts()
    assert "BPM" in facts[0]
    assert any(mode in facts[1] for mode in ("major", "minor"))


def test_a_model_that_cannot_draw_says_so_in_place(go, library, ids):
    page = go(library, "#/library", allow=(422,))
    page.route(
        "**/reconstruct",
        lambda route: route.fulfill(status=422, json={"error": "patchifier-base cannot draw."}),
    )
    page.goto(f"{library.address}#/inside?song={ids[SONG]}")
    page.get_by_role("alert").filter(has_text="cannot draw").wait_for(timeout=60_000)
    assert page.locator(".mel-stage").count() == 4
