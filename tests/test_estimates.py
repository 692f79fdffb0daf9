"""Tempo, key and chords of sounds whose answer is known: clicks, chords made of sines, noise, silence."""

import itertools

import numpy as np
import other_sounds
import pytest

import patchifier
from patchifier import estimates
from patchifier.config import RequestError

RATE = 22_050
CADENCE = (
    (0, 4, 7),
    (5, 9, 12),
    (7, 11, 14),
    (0, 4, 7),
    (9, 12, 16),
    (2, 5, 9),
    (7, 11, 14),
    (0, 4, 7),
)
CHORDS = ("C major", "F major", "G major", "C major", "A minor", "D minor", "G major", "C major")


@pytest.fixture(scope="module")
def model():
    return patchifier.load()


def tones(semitones, seconds):
    """A chord of decaying tones with overtones; 0 is middle C."""
    t = np.arange(round(seconds * RATE)) / RATE
    pitches = [261.63 * 2 ** (semitone / 12) for semitone in semitones]
    partials = [np.sin(2 * np.pi * f * h * t) / h for f in pitches for h in range(1, 6)]
    return 0.03 * np.exp(-3 * t) * np.sum(partials, axis=0)


def song(chords, *, bpm=100, up=0.0):
    beats = [tones(np.add(chord, up), 60 / bpm) for chord in chords for _ in range(4)]
    return np.concatenate(beats).astype(np.float32)


@pytest.mark.parametrize("bpm", [63, 90, 120, 174])
def test_tempo_of_chords_on_every_beat(model, bpm):
    found = model.tempo(song(CADENCE, bpm=bpm), RATE).bpm
    assert min(abs(found * factor / bpm - 1) for factor in (0.5, 1, 2)) < 0.02


@pytest.mark.parametrize("up", [-3, 0, 0.3, 4])
def test_key_follows_a_transposition_and_ignores_the_tuning(model, up):
    tonic = estimates.NAMES[(3 + round(up)) % 12]
    assert model.key(song(CADENCE, up=up), RATE).name == f"{tonic} major"


def test_key_of_minor_chords(model):
    minor = [(9, 12, 16), (14, 17, 21), (16, 20, 23), (9, 12, 16)] * 2
    assert model.key(song(minor), RATE).name == "A minor"


def test_chords_over_time(model):
    found = estimates.chords(
        estimates.features(model.pieces(song(CADENCE), RATE), model.config.spectrogram)
    )
    assert [chord.name for chord in found] == list(CHORDS)
    assert np.allclose([chord.start_s for chord in found], 2.4 * np.arange(8), atol=0.15)
    assert all(one.end_s == other.start_s for one, other in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("chord", "triad"),
    [((0, 4, 7, 11), "C major"), ((0, 4, 7, 10), "C major"), ((-12, 0, 3, 7, 10), "C minor")],
)
def test_a_chord_with_a_seventh_has_the_name_of_its_triad(model, chord, triad):
    pieces = model.pieces(song([chord] * 3), RATE)
    found = estimates.chords(estimates.features(pieces, model.config.spectrogram))
    assert [one.name for one in found] == [triad]


@pytest.mark.parametrize("kind", other_sounds.KINDS)
def test_noise_and_speech_rarely_have_a_tempo_a_key_or_chords(model, kind):
    answers, chord_s, all_s = {"tempo": 0, "key": 0}, 0.0, 0.0
    for seed in range(500, 508):
        sound = other_sounds.KINDS[kind](np.random.default_rng(seed), RATE)
        found = estimates.features(model.pieces(sound, RATE), model.config.spectrogram)
        answers["tempo"] += estimates.tempo(found).bpm is not None
        answers["key"] += estimates.key(found).name is not None
        chord_s += sum(one.end_s - one.start_s for one in estimates.chords(found) if one.name)
        all_s += len(found.onsets) * found.frame_s
    pitched = kind == "voice"  # it has vowels of a pitch
    assert answers["tempo"] <= 2
    assert answers["key"] <= 4 * pitched
    assert chord_s / all_s < (0.2 if pitched else 0.06)


@pytest.mark.parametrize("kind", ["noise", "silence", "glide", "short"])
def test_sounds_without_tempo_and_key_have_none(model, kind):
    t = np.arange(20 * RATE) / RATE
    sounds = {
        "noise": 0.1 * np.random.default_rng(0).standard_normal(len(t)),
        "silence": np.zeros(len(t)),
        "glide": 0.1 * np.sin(2 * np.pi * 100 * np.exp2(t / 5) * t / 3),
        "short": song(CADENCE)[: 2 * RATE],
    }
    sound = sounds[kind].astype(np.float32)
    assert model.tempo(sound, RATE).bpm is None
    if kind != "glide":
        assert model.key(sound, RATE).name is None


def test_features_do_not_depend_on_how_a_log_mel_arrives(model):
    log_mel, config = model.log_mel(song(CADENCE), RATE), model.config.spectrogram
    whole = estimates.features([log_mel], config)
    parts = estimates.features(np.array_split(log_mel, 7, axis=1), config)
    np.testing.assert_allclose(whole.onsets, parts.onsets, atol=1e-7)
    np.testing.assert_allclose(whole.chroma, parts.chroma, atol=1e-7)


def test_a_part_has_its_own_key(model):
    sound = np.concatenate([song(CADENCE), song(CADENCE, up=6)])
    found = estimates.features(model.pieces(sound, RATE), model.config.spectrogram)
    middle_s = len(sound) / RATE / 2
    keys = [
        estimates.key(found.part(*span)).name for span in ((0, middle_s), (middle_s, 2 * middle_s))
    ]
    assert keys == ["C major", "F# major"]


def test_a_model_without_pitch_bands_has_a_tempo_and_refuses_a_key():
    paper = patchifier.load("patchifier-paper")
    assert paper.tempo(song(CADENCE, bpm=120), RATE).bpm == pytest.approx(120, rel=0.02)
    with pytest.raises(RequestError, match="pitch bands"):
        paper.key(song(CADENCE), RATE)
