"""The inside of a song over the API: forms of the answers and errors."""

import base64
import io

import numpy as np
import pytest
import soundfile

from patchifier import predictors


def octets(text):
    return np.frombuffer(base64.b64decode(text), np.uint8)


@pytest.fixture(scope="module")
def inside(client, ids):
    answer = client.get(f"/api/inside/{ids[0]}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_window_has_whole_patches_and_the_waveform_of_the_song(inside):
    assert inside["n_frames"] == inside["n_patches"] * inside["patch_frames"]
    assert len(octets(inside["log_mel"])) == inside["n_mels"] * inside["n_frames"]
    drawn = octets(inside["waveform"]).view(np.int8).reshape(-1, 2)
    assert drawn.shape == (1200, 2)
    assert (drawn[:, 0] <= drawn[:, 1]).all()
    assert drawn.max() > 10
    assert inside["duration_s"] == pytest.approx(3.0, abs=0.01)


def test_masked_patches_are_reconstructed_and_the_others_are_as_they_were(client, ids, inside):
    answer = client.post(f"/api/inside/{ids[0]}/reconstruct", json={"masked": [1, 3]}).json()
    assert answer["masked"] == [1, 3]
    shape = inside["n_mels"], inside["n_patches"], inside["patch_frames"]
    before, after, error = (
        octets(text).reshape(shape)
        for text in (inside["log_mel"], answer["reconstructed"], answer["error"])
    )
    assert (before[:, [0, 2]] == after[:, [0, 2]]).all()
    assert not error[:, [0, 2]].any()
    assert error[:, [1, 3]].any()
    assert set(answer["mse"]) == {"model", *predictors.UNTRAINED}
    assert answer["model_name"] == "patchifier-paper"


def test_a_ratio_and_a_seed_give_the_same_mask_again(client, ids):
    params = {"ratio": 0.5, "seed": 3}
    first, second = (
        client.post(f"/api/inside/{ids[0]}/reconstruct", json=params).json() for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"masked": [0], "ratio": 0.5},
        {"masked": [99]},
        {"masked": [0, 1, 2, 3]},
        {"ratio": 2.0},
        {"masked": ["a"]},
    ],
)
def test_a_mask_that_is_none_is_refused(client, ids, params):
    answer = client.post(f"/api/inside/{ids[0]}/reconstruct", json=params)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_window_beyond_the_end_is_refused(client, ids):
    answer = client.get(f"/api/inside/{ids[0]}", params={"start_s": 500})
    assert answer.status_code == 422
    assert client.get(f"/api/inside/{ids[0]}", params={"start_s": -1}).status_code == 400


@pytest.mark.parametrize("params", [{}, {"kind": "reconstructed", "masked": "1,3"}])
def test_a_window_can_be_heard(client, ids, params):
    answer = client.get(f"/api/inside/{ids[0]}/sound", params=params)
    sound, rate = soundfile.read(io.BytesIO(answer.content))
    assert answer.headers["content-type"] == "audio/wav"
    assert len(sound) / rate == pytest.approx(3.0, abs=0.2)
    assert np.abs(sound).max() > 0.01


def test_what_is_to_be_heard_is_checked(client, ids):
    for params in ({"kind": "loud"}, {"masked": "a"}, {"kind": "reconstructed"}):
        assert client.get(f"/api/inside/{ids[0]}/sound", params=params).status_code == 400


def test_structure_is_a_symmetric_matrix_with_sections(client, ids):
    answer = client.get(f"/api/inside/{ids[0]}/structure").json()
    cells = octets(answer["similarity"]).reshape(answer["n"], answer["n"])
    assert (cells == cells.T).all()
    assert len(answer["novelty"]) == answer["n"]
    assert answer["sections"][0]["start_s"] == 0.0


def test_music_has_a_key_and_spans(client, ids):
    answer = client.get(f"/api/inside/{ids[0]}/music").json()
    assert set(answer) == {"tempo", "key", "spans", "chords"}
    assert answer["spans"][0]["start_s"] == 0.0
