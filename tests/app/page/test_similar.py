"""Similar: seeds, weights, reasons, files that are sent, playlists, paths and mixes."""

import json
import re

import numpy as np
import pytest
import soundfile

pytestmark = pytest.mark.app
SEED, OTHER = "Awakened", "ambient1"


def names(page):
    page.wait_for_selector(".results .song")
    return page.locator(".results .song-title").all_inner_texts()


def set_slider(page, label, value):
    page.get_by_label(label, exact=True).fill(str(value))


def answered(page, path, act):
    """The JSON that the server answers to what `act` does."""
    with page.expect_response(lambda answer: path in answer.url) as waiting:
        act()
    return waiting.value.json()


def drop(page, file):
    """Drop a file on the page."""
    page.evaluate(
        """data => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(data)], "dropped.ogg", {type: "audio/ogg"}));
            for (const name of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(name, {dataTransfer: files, bubbles: true, cancelable: true}));
        }""",
        list(file.read_bytes()),
    )


def test_neighbours_are_listed_without_the_seed(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}")
    found = names(page)
    assert len(found) == 20
    assert SEED not in found
    meters = [float(text) for text in page.locator(".meter .number").all_inner_texts()]
    assert meters == sorted(meters, reverse=True)


def test_weights_rank_again_at_once(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}")
    before = names(page)
    answered(page, "api/similar", lambda: set_slider(page, "Weight of Timbre", 0))
    answer = answered(page, "api/similar", lambda: set_slider(page, "Weight of Rhythm", 4))
    page.wait_for_function(
        "first => document.querySelector('.results .song-title').textContent === first",
        arg=answer["results"][0]["track"]["title"],
    )
    assert names(page) != before
    answered(page, "api/similar", lambda: page.get_by_role("button", name="Reset").click())
    page.wait_for_function(
        "first => document.querySelector('.results .song-title').textContent === first",
        arg=before[0],
    )
    assert names(page) == before


def test_less_like_pushes_songs_away(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}")
    first = names(page)[0]
    answered(
        page,
        "api/similar",
        lambda: page.get_by_role("button", name=f"Less like {first}").first.click(),
    )
    page.locator(".chip.unlike").filter(has_text=first).wait_for()
    page.wait_for_function(
        "first => document.querySelector('.results .song-title').textContent !== first", arg=first
    )


def test_a_second_seed_is_found_by_name(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}")
    names(page)
    page.get_by_label("Add a song").fill("ambient")
    page.get_by_role("option").first.wait_for()
    answered(page, "api/similar", lambda: page.keyboard.press("Enter"))
    page.get_by_role("heading", name="Like 2 songs").wait_for()
    assert page.locator(".chip").count() == 2


def test_a_reason_has_slices_and_stretches_that_play_one_after_the_other(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}")
    second = names(page)[0]
    page.get_by_role("button", name=f"Why {second}").click()
    page.wait_for_selector(".stretch", timeout=60_000)
    assert page.locator(".agreement").count() >= 5
    page.locator(".stretch").first.click()
    page.wait_for_function(
        "name => document.querySelector('#player .song-title').textContent === name", arg=SEED
    )
    page.wait_for_function("() => document.querySelector('audio').currentTime > 0.2")
    page.evaluate("document.querySelector('audio').playbackRate = 8")
    page.wait_for_function(
        "name => document.querySelector('#player .song-title').textContent === name", arg=second
    )
    page.wait_for_function("() => !document.querySelector('audio').paused")


def reasons(page):
    """Texts of the rows of a reason: name, closer than, cosine, counts."""
    page.locator(".agreement.total").wait_for(timeout=60_000)
    rows = page.locator(".agreements .agreement:not(.soft)").all()
    return {
        row.locator("span").first.inner_text(): row.locator(".number").all_inner_texts()
        for row in rows
    }


def test_a_reason_ranks_each_part_and_says_what_it_counts(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}")
    names(page)
    page.get_by_role("button", name="Why").first.click()
    found = reasons(page)
    closer, cosine, counts = found.pop("Similarity")
    assert closer == "100 %"  # the nearest of all
    assert (cosine, counts) == (page.locator(".meter .number").first.inner_text(), "")
    assert all(re.fullmatch(r"\d+ %", closer) for closer, _, _ in found.values())
    assert len({closer for closer, _, _ in found.values()}) > 3
    assert percent(found["how similar it sounds (learnt)"][2]) > 70


def test_a_slider_at_its_maximum_makes_its_part_count_most(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}")
    names(page)
    rhythm = ["regularity of the beat", "rhythmic pattern", "speed", "grouping of beats"]
    sound = "how similar it sounds (learnt)"
    for value, least, most in ((4, 60, 90), (2, 30, 70), (1, 0, 10)):
        answered(
            page, "api/similar", lambda value=value: set_slider(page, "Weight of Rhythm", value)
        )
        page.get_by_role("button", name="Why").first.click()
        found = reasons(page)
        assert least <= sum(percent(found[name][2]) for name in rhythm) <= most, value
        assert (percent(found[sound][2]) > 70) is (value == 1)
        assert page.get_by_label("Weight of Rhythm", exact=True).input_value() == str(value)


def percent(text):
    return 0 if text == "< 1 %" else int(text.removesuffix(" %"))


@pytest.mark.parametrize("mode", ["near", "path", "mix"])
def test_a_long_title_stays_in_its_panel(go, library, ids, mode):
    title = "Peer Gynt Suite No. 1, Op. 46 - I. Morning, played by an orchestra of many"
    page = go(library)
    song = json.loads(library.ask(f"api/tracks/{ids[SEED]}"))
    page.route(
        f"**/api/tracks/{ids[SEED]}", lambda route: route.fulfill(json=song | {"title": title})
    )
    page.set_viewport_size({"width": 1300, "height": 900})
    page.goto(f"{library.address}#/similar?like={ids[SEED]}&mode={mode}")
    page.reload()
    page.get_by_text(title).last.wait_for()
    box = page.locator("aside .panel").first.bounding_box()
    assert box["x"] + box["width"] < page.locator(".results").bounding_box()["x"]
    chip = page.locator(".chip").first.bounding_box()
    assert chip["x"] + chip["width"] <= box["x"] + box["width"]


def test_buttons_of_a_chip_say_what_they_do(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}")
    move = page.get_by_role("button", name=f"Move {SEED} to “Less like”")
    assert move.get_attribute("title") == f"Move {SEED} to “Less like”"
    page.get_by_role("button", name=f"Remove {SEED} from this search").click()
    page.get_by_role("heading", name="Start from a song").wait_for()


def test_a_path_offers_no_file_and_says_why_one_cannot_stand_in_it(go, library, songs):
    page = go(library, "#/similar")
    choose = page.get_by_role("button", name="Choose a file")
    page.get_by_label("Audio files").set_input_files(songs / "naev" / "naev_00.ogg")
    names(page)
    assert choose.is_visible()
    page.get_by_role("button", name="Path", exact=True).click()
    page.get_by_role("heading", name="Only songs of the library").wait_for()
    assert not choose.is_visible()
    assert page.get_by_role("button", name="Try again").count() == 0


def test_a_file_that_is_dropped_on_a_path_finds_music_like_it(go, library, ids, songs):
    page = go(library, f"#/similar?like={ids[SEED]},{ids[OTHER]}&mode=path")
    names(page)
    drop(page, songs / "naev" / "naev_01.ogg")
    page.get_by_role("heading", level=1, name="Like ").wait_for()
    page.get_by_label("Weight of Timbre", exact=True).wait_for()


def test_a_playlist_is_saved(go, library, ids, tmp_path):
    page = go(library, f"#/similar?like={ids[SEED]}")
    found = names(page)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save as M3U8").click()
    assert waiting.value.suggested_filename.endswith(".m3u8")
    waiting.value.save_as(tmp_path / "list.m3u8")
    text = (tmp_path / "list.m3u8").read_text()
    assert text.startswith("#EXTM3U")
    assert found[0] in text


def test_a_file_that_is_chosen_becomes_a_seed(go, library, songs):
    page = go(library, "#/similar")
    sent = songs / "naev" / "naev_00.ogg"
    page.get_by_label("Audio files").set_input_files(sent)
    assert names(page)
    page.get_by_role("heading", level=1, name="Like ").wait_for()
    page.get_by_role("link", name="Inside").click()
    page.wait_for_selector(".overview canvas", timeout=60_000)


def test_a_text_with_a_name_of_music_is_refused_with_the_reason(go, library, tmp_path):
    page = go(library, "#/similar", allow=(422,))
    (tmp_path / "song.mp3").write_text("This is a text.\n" * 100)
    page.get_by_label("Audio files").set_input_files(tmp_path / "song.mp3")
    alert = page.get_by_role("alert").filter(has_text="song.mp3")
    alert.wait_for()
    assert len(alert.inner_text()) > 20


def test_a_file_of_two_hours_is_refused_with_the_reason(go, library, tmp_path):
    page = go(library, "#/similar", allow=(413, 422))
    soundfile.write(tmp_path / "long.flac", np.zeros(2 * 3600 * 4000, np.int16), 4000)
    page.get_by_label("Audio files").set_input_files(tmp_path / "long.flac")
    alert = page.get_by_role("alert").filter(has_text="long.flac")
    alert.wait_for(timeout=60_000)
    assert "minutes" in alert.inner_text()


def test_a_file_is_dropped_anywhere(go, library, songs):
    page = go(library)
    page.wait_for_selector(".rows-body [data-id]")
    drop(page, songs / "naev" / "naev_01.ogg")
    assert names(page)


def test_what_contradicts_itself_is_said_in_place(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}&unlike={ids[SEED]}", allow=(400,))
    page.get_by_role("alert").filter(has_text="should not").wait_for()
    assert page.get_by_role("button", name="Try again").count() == 0
    page.get_by_role("button", name=f"Remove {SEED}").first.click()
    page.get_by_role("heading", name="A song to be like").wait_for()


def test_filters_and_caps_hold(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}")
    names(page)
    page.get_by_text("Only some songs").click()
    answer = answered(
        page, "api/similar", lambda: page.get_by_label("Album", exact=True).fill("naev")
    )
    assert {one["track"]["album"] for one in answer["results"]} == {"naev"}
    answered(page, "api/similar", lambda: page.get_by_label("Album", exact=True).fill(""))
    answer = answered(page, "api/similar", lambda: page.get_by_label("Most per artist").fill("1"))
    artists = [one["track"]["artist"] for one in answer["results"]]
    assert len(artists) == len(set(artists)) > 3
    page.get_by_label("Album", exact=True).fill("nothing of this name")
    page.get_by_text("No song is left").wait_for()


def test_a_path_has_its_ends_and_no_repeats(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]},{ids[OTHER]}&mode=path")
    rows = page.locator(".results .song")
    rows.first.wait_for()
    found = [row.get_attribute("data-id") for row in rows.all()]
    assert (found[0], found[-1]) == (ids[SEED], ids[OTHER])
    assert len(set(found)) == len(found) == 10


def test_a_mix_follows_its_drift(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}&mode=mix")
    names(page)
    params = []
    page.on(
        "request",
        lambda request: (
            params.append(json.loads(request.post_data)) if "api/mix" in request.url else None
        ),
    )
    answer = answered(page, "api/mix", lambda: set_slider(page, "Drift", 0.9))
    assert params[-1]["drift"] == 0.9
    assert len(answer["results"]) == 25


def test_the_honest_line_is_shown_when_nothing_is_close(go, library, ids):
    page = go(library, f"#/similar?like={ids[SEED]}")
    names(page)
    note = "Nothing in this library is close."
    results = answered(page, "api/similar", page.reload)["results"]
    page.route(
        "**/api/similar",
        lambda route: route.fulfill(json={"results": results, "close": False, "note": note}),
    )
    page.reload()
    page.get_by_role("note").filter(has_text=note).wait_for()
