"""What the page shows of a song: waveform, patches, masks and reconstructions, structure, music."""

import numpy as np
import pytest
import soundfile

import patchifier
from patchifier import predictors
from patchifier.app import inside
from patchifier.config import RequestError

RATE = 22_050


@pytest.fixture(scope="module")
def base():
    return patchifier.load()


@pytest.fixture(scope="module")
def paper():
    return patchifier.load("patchifier-paper")


def chords(roots, seconds):
    t = np.arange(round(seconds * RATE)) / RATE
    waves = [
        np.sin(2 * np.pi * 220 * 2 ** (root / 12) * h * t) / h for root in roots for h in (1, 2, 3)
    ]
    return 0.05 * np.sum(waves, axis=0) * (1 - 0.9 * ((2 * t) % 1))


def noise(seconds, seed):
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    """Chords, noise, chords: 20 s each."""
    path = tmp_path_factory.mktemp("inside") / "song.wav"
    parts = [chords((0, 4, 7), 20), noise(20, 0), chords((0, 4, 7), 20)]
    soundfile.write(path, np.concatenate(parts).astype(np.float32), RATE)
    return path


def test_envelope_holds_the_largest_samples_where_they_are(tmp_path):
    sound = np.zeros(40 * RATE, np.float32)
    sound[30 * RATE] = 0.9
    soundfile.write(tmp_path / "x.wav", sound, RATE, subtype="FLOAT")
    duration_s, drawn = inside.envelope(tmp_path / "x.wav", 400)
    assert duration_s == pytest.approx(40, abs=0.01)
    assert abs(int(drawn[:, 1].argmax()) - 300) <= 1
    assert drawn[:290].max() < 0.01
    assert drawn.shape == (400, 2)


def test_envelope_of_less_than_a_column_has_every_column(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.full(100, 0.5, np.float32), RATE)
    assert np.isfinite(inside.envelope(tmp_path / "x.wav", 50)[1]).all()


def test_an_excerpt_is_the_log_mel_of_that_place_in_whole_patches(paper, song):
    whole = paper.log_mel(song)
    shown = inside.excerpt(paper, song, 10.0)
    first = round(10.0 / shown.frame_s)
    assert shown.n_patches == 25
    assert shown.log_mel.shape == (64, 800)
    # the first frames hear nothing before the excerpt
    near = whole[:, first + 4 : first + 790]
    assert np.median(np.abs(shown.log_mel[:, 4:790] - near)) < 0.02
    assert inside.excerpt(paper, song, 50.0).n_patches == 13
    with pytest.raises(RequestError, match="patch"):
        inside.excerpt(paper, song, 59.9)


def test_a_mask_has_the_share_asked_for_and_is_the_same_twice():
    assert len(inside.random_mask(25, 0.75)) == 19
    assert inside.random_mask(25, 0.75, 1) != inside.random_mask(25, 0.75, 0)
    assert len(inside.random_mask(2, 0.01)) == 1
    assert len(inside.random_mask(2, 0.99)) == 1
    for ratio, count in ((0.0, 25), (1.0, 25), (0.5, 1)):
        with pytest.raises(RequestError):
            inside.random_mask(count, ratio)


def test_a_reconstruction_changes_masked_patches_alone_and_its_errors_are_of_them(paper, song):
    shown = inside.excerpt(paper, song)
    drawn = inside.reconstruct(paper, shown, [3, 4, 20])
    by_patch = np.abs(drawn.log_mel - shown.log_mel).reshape(64, 25, 32).max((0, 2))
    assert np.flatnonzero(by_patch > 0).tolist() == [3, 4, 20]
    squares = np.square(drawn.log_mel - shown.log_mel).reshape(64, 25, 32)[:, [3, 4, 20]]
    assert drawn.mse["model"] == pytest.approx(squares.mean(), rel=1e-4)
    assert set(drawn.mse) == {"model", *predictors.UNTRAINED}


@pytest.mark.parametrize("masked", [[], list(range(25)), [25], [-1]])
def test_masks_that_leave_nothing_to_do_are_refused(paper, song, masked):
    with pytest.raises(RequestError):
        inside.reconstruct(paper, inside.excerpt(paper, song), masked)


def test_a_model_that_does_not_reconstruct_says_so(base, song):
    with pytest.raises(RequestError):
        inside.reconstruct(base, inside.excerpt(base, song), [1])


def test_sound_has_the_length_of_its_log_mel(paper, song):
    shown = inside.excerpt(paper, song)
    samples, rate = inside.sound(paper, shown.log_mel[:, :64])
    assert rate == RATE
    assert len(samples) == 63 * 512
    assert np.abs(samples).max() > 0.01


def test_structure_finds_sections_that_return(base, song):
    found = inside.structure(base, song)
    assert [section.label for section in found.sections] == ["A", "B", "A"]
    edges = [section.start_s for section in found.sections]
    np.testing.assert_allclose(edges, [0, 20, 40], atol=1.5)
    assert found.sections[-1].end_s == pytest.approx(60, abs=0.1)
    n = len(found.novelty)
    assert found.similarity.shape == (n, n)
    assert found.hop_s * n == pytest.approx(60, abs=0.1)
    np.testing.assert_allclose(np.diag(found.similarity), 1, atol=1e-5)


def test_structure_of_a_short_sound_is_one_section(base, tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(1.0, 1), RATE)
    found = inside.structure(base, tmp_path / "x.wav")
    assert [(section.start_s, section.label) for section in found.sections] == [(0.0, "A")]


def test_music_of_each_span(base, song):
    found = inside.music(base, song)
    assert found.key.name == "A major"
    # 2 decays a second
    assert min(abs(found.tempo.bpm * factor - 120) for factor in (0.5, 1, 2)) < 2
    middle = [key.name for start_s, _, _, key in found.spans if start_s == 20.0]
    assert middle == [None]
    assert found.chords[0].name == "A major"
    assert found.chords[0].end_s == pytest.approx(20, abs=0.3)
