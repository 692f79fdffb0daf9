"""Log-mel against librosa and against known answers; patches and back; sound and back."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import librosa
import numpy as np
import pytest
import threadpoolctl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier import audio, filters, spectrogram
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.datasets import demo
from tests.builders import close

RATE = 22_050
SETTINGS = {
    "paper": SpectrogramConfig(),
    "n_fft 1024": SpectrogramConfig(n_fft=1024),
    "htk": SpectrogramConfig(mel_scale="htk"),
    "f_max 8000": SpectrogramConfig(f_max_hz=8000.0),
    "hamming": SpectrogramConfig(window="hamming"),
}
CLIPS = ("warzone2100_00.ogg", "hyperrogue_00.ogg")
SOUNDS = ("tone", "noise", "chirp", *CLIPS)
MAXIMUM = SpectrogramConfig(reference="max", top_db=80.0)


@pytest.fixture(scope="module")
def sounds(tone: Callable, noise: Callable) -> dict[str, np.ndarray]:
    chirp = np.sin(2 * np.pi * np.cumsum(np.geomspace(30, 7_000, 3 * RATE)) / RATE)
    clips = {name: audio.load(Path(demo.ROOT, "clips", name), start_s=3, end_s=8) for name in CLIPS}
    made = {"tone": tone(440, seconds=2), "noise": noise(2), "chirp": chirp.astype(np.float32)}
    return made | clips


def librosa_power(wave: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Mel power in double precision, (M, T)."""
    return librosa.feature.melspectrogram(
        y=wave.astype(np.float64),
        sr=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        window=config.window,
        center=True,
        pad_mode="constant",
        power=2.0,
        n_mels=config.n_bands,
        fmin=config.f_min_hz,
        fmax=config.f_max_hz,
        htk=config.mel_scale == "htk",
        norm="slaney",
    )


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("sound", SOUNDS)
def test_log_mel_agrees_with_librosa_to_a_hundredth_of_a_decibel(setting, sound, sounds):
    config, wave = SETTINGS[setting], sounds[sound]
    expected = librosa.power_to_db(librosa_power(wave, config), ref=1.0, amin=1e-10, top_db=None)
    found = spectrogram.log_mel(wave, config) / config.db_scale
    assert found.shape == expected.shape
    audible = expected > expected.max(axis=0) - 80  # below, float32 is at its end
    assert audible.any(axis=0).all()
    assert np.abs(found - expected)[audible].max() < 0.01


@pytest.mark.parametrize("sound", SOUNDS)
def test_reference_max_is_librosas_ref_max(sound, sounds):
    power = librosa_power(sounds[sound], MAXIMUM)
    expected = librosa.power_to_db(power, ref=np.max, amin=1e-10, top_db=80.0)
    found = spectrogram.log_mel(sounds[sound], MAXIMUM) / MAXIMUM.db_scale
    assert np.abs(found - expected).max() < 0.01
    assert found.max() == 0
    assert found.min() >= -80 - 1e-4


def test_top_db_lifts_what_lies_further_below_the_loudest(sounds):
    found = spectrogram.log_mel(sounds["tone"], SpectrogramConfig(top_db=40.0))
    plain = spectrogram.log_mel(sounds["tone"])
    close(found, np.maximum(plain, plain.max() - 0.4))


@pytest.mark.parametrize("seconds", [0.01, 1.0, 5.3])
def test_silence_is_exactly_the_padding_value(seconds, silence):
    assert (spectrogram.log_mel(silence(seconds)) == -1).all()
    found = spectrogram.log_mel(silence(seconds), MAXIMUM)
    close(found, np.full_like(found, -0.8), atol=1e-6)
    assert (SpectrogramConfig().silence, MAXIMUM.silence) == (-1, -0.8)


@pytest.mark.parametrize("samples", [1, 2, 511, 512, 513, 1023, 1024, 2205, 29 * RATE])
def test_frames_are_one_and_a_frame_for_each_whole_hop(samples, noise):
    """Twenty-nine seconds are 1,249 frames."""
    found = spectrogram.log_mel(noise(samples / RATE))
    assert found.shape == (64, 1249 if samples == 29 * RATE else 1 + samples // 512)
    assert np.isfinite(found).all()
    assert found.min() >= -1


@pytest.mark.parametrize("shape", [(0,), (2, 0), ()])
def test_no_sample_is_refused(shape):
    with pytest.raises(RequestError, match="at least 1"):
        spectrogram.log_mel(np.zeros(shape, np.float32))


@pytest.mark.parametrize("config", [SpectrogramConfig(), MAXIMUM], ids=["full scale", "maximum"])
def test_batch_equals_single(config, sounds):
    levels = (1, 0.01, 0.1, 1, 1)
    waves = [
        np.float32(level) * sounds[name][: 2 * RATE]
        for level, name in zip(levels, SOUNDS, strict=True)
    ]
    batch = np.stack(waves)
    for one, row in zip(waves, spectrogram.log_mel(batch, config), strict=True):
        close(spectrogram.log_mel(one, config), row, atol=1e-6)


def test_same_waveform_gives_the_same_bits_and_is_left_as_it_was(noise):
    wave = noise()
    assert np.array_equal(spectrogram.log_mel(wave), spectrogram.log_mel(wave))
    assert np.array_equal(wave, noise())


def test_a_tensor_gives_what_its_array_does(noise):
    wave = noise()
    found = spectrogram.log_mel(torch.from_numpy(wave))
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, spectrogram.log_mel(wave))
    patches = spectrogram.cut(torch.from_numpy(found))
    assert np.array_equal(patches, spectrogram.cut(found))
    assert np.array_equal(spectrogram.join(torch.from_numpy(patches), 32), found[:, :32])


def test_single_precision_agrees_with_double_to_a_hundredth_of_a_decibel(sounds):
    for name, wave in sounds.items():
        exact = spectrogram.log_mel(wave.astype(np.float64))
        assert exact.dtype == np.float64
        audible = exact > exact.max(axis=0) - 0.8
        assert np.abs(spectrogram.log_mel(wave) - exact)[audible].max() < 1e-4, name


PITCH = SpectrogramConfig(n_pitch_bands=216)
GROUPED = SpectrogramConfig(n_pitch_bands=216, pitch_hop=4)


def test_one_transform_of_pitch_bands_stands_for_four_frames(sounds):
    hop, wave = GROUPED.hop_length, sounds[CLIPS[0]]
    found, every = spectrogram.log_mel(wave, GROUPED), spectrogram.log_mel(wave, PITCH)
    assert found.shape == every.shape
    assert np.array_equal(found[:64], every[:64])
    pitch = found[64:]
    for frame in range(pitch.shape[1]):
        assert np.array_equal(pitch[:, frame], pitch[:, frame // 4 * 4])
    middle = spectrogram.log_mel(wave[3 * hop // 2 :], PITCH)[64:]  # its frames lie 1.5 later
    inside = slice(16, middle.shape[1] - 16, 4)  # without the beginning that was cut off
    close(pitch[:, inside], middle[:, inside], atol=1e-5)


def test_the_middle_of_a_group_of_frames_is_a_sample():
    with pytest.raises(RequestError, match="pitch_hop"):
        SpectrogramConfig(n_pitch_bands=216, pitch_hop=4, hop_length=510)


BLOCKS = {"paper": SpectrogramConfig(), "max": MAXIMUM, "grouped": GROUPED} | {
    str(n_fft): SpectrogramConfig(n_fft=n_fft) for n_fft in (512, 768, 1024)
}


@settings(max_examples=50, deadline=None)
@given(
    samples=st.one_of(st.integers(1, 6000), st.sampled_from([1, 255, 256, 511, 512])),
    cuts=st.lists(st.integers(0, 6000), max_size=8),
    setting=st.sampled_from(list(BLOCKS)),
)
def test_log_mel_of_blocks_is_that_of_the_whole(samples, cuts, setting, noise):
    config, wave = BLOCKS[setting], noise(samples / RATE)
    blocks = np.split(wave, sorted(min(place, samples) for place in cuts))
    found = spectrogram.log_mel_of_blocks(iter(blocks), config)
    close(found, spectrogram.log_mel(wave, config), atol=1e-6)


def test_odd_fft_size_is_refused():
    """Frames could not be centred, and T would not be 1 + S // hop."""
    with pytest.raises(RequestError, match="n_fft"):
        SpectrogramConfig(n_fft=1023)


def test_blocks_without_samples_are_refused():
    with pytest.raises(RequestError, match="empty"):
        spectrogram.log_mel_of_blocks([np.zeros(0, np.float32)])


def counting(frames: int, bands: int = 2) -> np.ndarray:
    """Log-mel whose values say where they stand: (M, T)."""
    return np.arange(bands * frames, dtype=np.float64).reshape(bands, frames)


@pytest.mark.parametrize(
    ("frames", "hop", "drop", "pad", "anchor"),
    [
        (1249, None, 39, 40, 40),
        (862, None, 26, 27, 27),
        (800, None, 25, 25, 25),
        (801, None, 25, 26, 26),
        (832, None, 26, 26, 26),
        (64, 16, 3, 3, 3),
        (65, 16, 3, 4, 4),
        (33, None, 1, 2, 2),
        (32, None, 1, 1, 1),
    ],
)
def test_tail_rules_give_their_counts(frames, hop, drop, pad, anchor):
    for tail, count in {"drop": drop, "pad": pad, "anchor": anchor}.items():
        assert len(spectrogram.patch_starts(frames, hop=hop, tail=tail)) == count
        assert spectrogram.cut(counting(frames), hop=hop, tail=tail).shape == (count, 1, 2, 32)


def test_patches_show_their_frames_and_an_anchored_one_ends_with_the_last():
    patches, log_mel = spectrogram.cut(counting(70), tail="anchor"), counting(70)
    assert spectrogram.patch_starts(70, tail="anchor") == [0, 32, 38]
    assert np.array_equal(patches[1, 0], log_mel[:, 32:64])
    assert np.array_equal(patches[-1, 0], log_mel[:, -32:])


@pytest.mark.parametrize("silence", [-1.0, -0.8])
def test_padding_is_silence_and_not_zero(silence):
    patches = spectrogram.cut(counting(40), tail="pad", silence=silence)
    assert np.array_equal(patches[1, 0, :, :8], counting(40)[:, 32:])
    assert (patches[1, 0, :, 8:] == silence).all()


@pytest.mark.parametrize("tail", ["pad", "anchor"])
@pytest.mark.parametrize("frames", [1, 31])
def test_below_one_patch_it_is_padded_to_one(frames, tail):
    patches = spectrogram.cut(counting(frames), tail=tail)
    assert patches.shape == (1, 1, 2, 32)
    assert np.array_equal(patches[0, 0, :, :frames], counting(frames))
    assert (patches[0, 0, :, frames:] == -1).all()


def test_below_one_patch_dropping_leaves_nothing_and_is_refused():
    assert spectrogram.patch_starts(31) == []
    with pytest.raises(RequestError, match="31 frames are less than one patch of 32"):
        spectrogram.cut(counting(31))


@pytest.mark.parametrize(
    ("length", "hop"), [(0, 1), (32, -1), (32, 0), (32.0, None), ("32", None), (32, 16.0)]
)
def test_patch_length_and_hop_below_one_are_refused(length, hop):
    with pytest.raises(RequestError, match="at least 1"):
        spectrogram.patch_starts(100, length=length, hop=hop)


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda: spectrogram.cut(counting(64), tail="foo"), "tail is 'foo', expected one of"),
        (lambda: spectrogram.join(np.zeros((2, 1, 4, 32)), 64, tail="foo"), "tail is 'foo'"),
        (lambda: spectrogram.cut(np.zeros(64)), r"log_mel has shape \(64,\)"),
        (lambda: spectrogram.cut([[0.0] * 40]), "log_mel is of type list"),
        (lambda: spectrogram.join(np.zeros((4, 32)), 32), r"patches has shape \(4, 32\)"),
        (lambda: spectrogram.to_waveform(np.zeros((2, 64, 40))), r"shape \(2, 64, 40\)"),
        (lambda: spectrogram.to_waveform(np.zeros((32, 40))), r"log_mel has shape \(32, 40\)"),
        (lambda: spectrogram.to_waveform(np.zeros((64, 1))), "T of at least 2"),
        (lambda: spectrogram.log_mel(np.zeros(4000, np.int16)), "int16, .* divide by 32768"),
    ],
)
def test_arguments_that_make_no_sense_are_named(ask, reason):
    with pytest.raises(RequestError, match=reason):
        ask()


@settings(max_examples=80, deadline=None)
@given(data=st.data(), tail=st.sampled_from(["drop", "pad", "anchor"]), length=st.integers(1, 12))
def test_join_is_the_inverse_of_cut(data, tail, length):
    hop = data.draw(st.integers(1, length), "hop")
    frames = data.draw(st.integers(length if tail == "drop" else 1, 60), "frames")
    log_mel = counting(2 * frames).reshape(2, 2, frames)  # leading axes are kept
    patches = spectrogram.cut(log_mel, length=length, hop=hop, tail=tail)
    starts = spectrogram.patch_starts(frames, length=length, hop=hop, tail=tail)
    reach = starts[-1] + length if tail == "drop" else frames
    joined = spectrogram.join(patches, frames, hop=hop, tail=tail)
    close(joined, log_mel[..., :reach], atol=1e-9)


@settings(max_examples=80, deadline=None)
@given(frames=st.integers(1, 200), length=st.integers(1, 40), data=st.data())
@pytest.mark.parametrize("tail", ["pad", "anchor"])
def test_no_frame_is_lost_but_with_drop(frames, length, data, tail):
    hop = data.draw(st.integers(1, length))
    starts = spectrogram.patch_starts(frames, length=length, hop=hop, tail=tail)
    seen = {frame for start in starts for frame in range(start, start + length)}
    assert set(range(frames)) <= seen
    assert starts == sorted(set(starts))
    assert tail == "pad" or frames < length or starts[-1] + length == frames


def test_join_takes_the_mean_where_patches_overlap():
    patches = np.stack([np.zeros((1, 1, 4)), np.ones((1, 1, 4))])
    assert spectrogram.join(patches, 6, hop=2).tolist() == [[0, 0, 0.5, 0.5, 1, 1]]


@pytest.mark.parametrize("band", [6, 26, 50])
def test_sound_of_a_tones_log_mel_is_that_tone(band, tone):
    log_mel = spectrogram.log_mel(tone(filters.mel_edges_hz(SpectrogramConfig())[1 + band]))
    wave = spectrogram.to_waveform(log_mel, iterations=8)
    assert wave.shape == ((log_mel.shape[1] - 1) * 512,)
    again = spectrogram.log_mel(wave)[:, 4:-4]
    expected = log_mel[:, 4:-4]
    assert (again.argmax(axis=0) == band).all()
    assert np.abs(again.max(axis=0) - expected.max(axis=0)).max() < 0.03  # 3 dB


def test_sound_of_silence_is_silence(silence):
    assert not spectrogram.to_waveform(spectrogram.log_mel(silence()), iterations=2).any()


def test_sound_follows_from_the_seed(tone):
    log_mel = spectrogram.log_mel(tone(seconds=0.5))
    first, second, other = (
        spectrogram.to_waveform(log_mel, iterations=2, seed=seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_products_of_other_threads_keep_their_own_number_of_threads(noise):
    def threads() -> list[int]:
        found = threadpoolctl.threadpool_info()
        return [one["num_threads"] for one in found if one["user_api"] == "blas"]

    before, wave = threads(), noise(2)
    expected = spectrogram.log_mel(wave)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(spectrogram.log_mel, [wave] * 20):
            np.testing.assert_array_equal(found, expected)
    assert threads() == before
