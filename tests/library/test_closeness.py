"""What is said when nothing is close: by the distances in the store, and where there is no beat."""

import numpy as np
import pytest

import patchifier
from patchifier import datasets
from patchifier.library import search
from patchifier.library.search.closeness import BEATLESS, is_beatless, not_close
from tests import ROOT
from tests.library.vectors import on_circle

RATE = 22_050
SLICES = {"layers": 2, "pulse": 1, "texture": 1}


def with_beat(degrees, pulse, texture):
    return np.concatenate([on_circle(degrees)[0], [pulse, texture]])


def test_what_is_as_near_as_others_are_to_each_other_is_close(opened, write):
    store = opened(write(on_circle(*range(0, 180, 30)), map(str, range(6))))
    for degrees, close in ((75, True), (175, True), (185, False), (250, False)):
        query = on_circle(degrees)[0]
        said = not_close(store, query, store.similar(query, 3))
        assert (said == "") is close, degrees
        nearest = np.cos(np.radians(max(0, degrees - 150)))
        assert close or f"{nearest:.2f}" in said
        assert close or f"{np.cos(np.radians(30)):.2f}" in said


def test_nothing_found_is_said(opened, write):
    assert "filters" in not_close(opened(write(on_circle(0, 9), "ab")), "a", [])


def test_weights_of_the_search_do_not_make_it_close(write):
    vectors = np.concatenate([on_circle(*range(0, 180, 30)), np.ones((6, 1))], axis=1)
    vectors[:, 2] = 0.2
    store = search.Table.open(write(vectors, range(6)))
    query = np.array([*on_circle(200)[0], 0.2])
    found = store.similar(query, 3, weights=np.array([0.0, 0.0, 1.0]))
    assert found[0].score == pytest.approx(1.0)
    assert "Nothing" in not_close(store, query, found)


def test_weights_that_list_others_do_not_make_what_is_close_far(opened, write):
    vectors = np.concatenate([on_circle(*range(0, 180, 30)), np.full((6, 1), 0.2)], axis=1)
    vectors[:3, 2] = 0.3  # nearest to the query by the last number alone
    store = opened(write(vectors, range(6)))
    query, weights = np.array([*on_circle(150)[0], 0.3]), np.array([0.0, 0.0, 1.0])
    found = store.similar(query, 1, weights=weights, exact=True)
    assert "Nothing" in not_close(store, query, found)
    assert not_close(store, query, found, weights=weights) == ""
    near = search.Filter(without_paths=("3", "4", "5"))
    assert "Nothing" in not_close(store, query, found, weights=weights, where=near)


def test_what_has_no_beat_has_to_be_nearer(write):
    vectors = [with_beat(degrees, 0.02, 0.02) for degrees in (0, 60, 120)]
    store = search.Table.open(write(vectors, range(3), slices=SLICES))
    for degrees, pulse, word in (
        (176, 0.02, ""),
        (176, 0.005, "No clear beat was found"),
        (150, 0.005, ""),
        (190, 0.005, "Nothing"),
    ):
        query = with_beat(degrees, pulse, 0.02)
        said = not_close(store, query, store.similar(query, 3))
        assert word in said
        assert bool(word) == bool(said), degrees


def test_what_has_no_beat_is_not_called_other_than_music(write):
    vectors = [with_beat(degrees, 0.02, 0.02) for degrees in (0, 60, 120)]
    store = search.Table.open(write(vectors, range(3), slices=SLICES))
    query = with_beat(176, 0.005, 0.02)
    said = not_close(store, query, store.similar(query, 3))
    assert said == BEATLESS
    assert not {"hardly", "noise", "speech"} & set(said.split())
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    assert said in page.replace("\n", " ")


def test_the_similarity_that_is_said_is_that_of_the_search(write):
    vectors = [with_beat(degrees, 0.5, 0.7) for degrees in (0, 60, 120)]
    store = search.Table.open(write(vectors, range(3), slices=SLICES))
    query = [with_beat(190, 2.0, -1.0), with_beat(200, 2.0, -1.0)]
    found = store.similar(query, 1)
    assert f"similarity of {found[0].score:.2f}" in not_close(store, query, found)


def test_noise_has_no_beat_and_music_has_one():
    model, draw = patchifier.load(), np.random.default_rng(0)
    slices = {name: part.stop - part.start for name, part in model.slices.items()}
    noise = 0.1 * draw.standard_normal(6 * RATE).astype(np.float32)
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(6 * RATE) / RATE).astype(np.float32)
    for wave in (noise, tone):
        assert is_beatless(model.embed(wave, sample_rate=RATE), slices)
    clips = [clip.path for clip in datasets.load("demo").clips[:40:10]]
    assert not any(is_beatless(model.embed(clip), slices) for clip in clips)


def test_nothing_is_said_about_the_beat_of_vectors_without_these_slices():
    for slices in (None, {"similarity": 3}, {"layers": 3}, {"layers": 2, "pulse": 1}):
        assert not is_beatless(np.array([0.0, 0.0, 1.0]), slices)
