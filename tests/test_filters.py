"""Pitch bands behind the mel bands: known answers, a cache of which mel bands are a view, and every way to a vector."""

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier import cache, checkpoint, datasets, filters, spectrogram
from patchifier.checkpoint import Checkpoint
from patchifier.config import PITCH_N_FFT, Config, RequestError, SpectrogramConfig, update
from patchifier.embed import Embedder
from patchifier.evaluate.encoders import encoders
from patchifier.integrations.onnx import Graph, export
from patchifier.nn.model import Patchifier
from tests import builders
from tests.builders import TINY, close

RATE = 22_050
WIDE = SpectrogramConfig(n_mels=64, n_pitch_bands=216)
MODEL = TINY | {"embed_dim": 32, "mlp_dim": 64, "norm_first": True, "n_predictor_layers": 1}
CONFIG = update(Config(), {"spectrogram": {"n_pitch_bands": 216}, "model": MODEL})


def pitch_hz(band: int) -> float:
    """Centre of a pitch band."""
    return 55 * 2 ** (band / 36)


@pytest.mark.parametrize("band", [36, 37, 71, 100, 144, 180, 215])
def test_tone_lights_its_pitch_band(band, tone):
    frames = spectrogram.log_mel(tone(pitch_hz(band), seconds=2), WIDE)[64:, 10:-10]
    assert (frames.argmax(axis=0) == band).all()
    far = np.ones(216, bool)
    far[max(0, band - 8) : band + 9] = False
    assert (frames[band] - frames[far].max(axis=0)).min() > 0.4  # 40 dB


@pytest.mark.parametrize("hz", [110.0, 195.0, 390.0])
def test_semitones_that_share_a_mel_band_have_pitch_bands_of_their_own(hz, tone):
    low, high = (
        spectrogram.log_mel(tone(each, seconds=2), WIDE)[:, 20:-20].mean(axis=1)
        for each in (hz, hz * 2 ** (1 / 12))
    )
    assert int(high[64:].argmax() - low[64:].argmax()) == 3
    assert low[:64].argmax() == high[:64].argmax()


@pytest.mark.parametrize("bin_of", [300, 700, 1200])
def test_full_scale_tone_has_its_known_level(bin_of, tone):
    """As in the mel bands: Hann's main lobe is (n_fft / 4)^2, of the shorter transform, and bands have unit area."""
    hz = bin_of * RATE / PITCH_N_FFT
    lobe = (WIDE.n_fft / 4) ** 2 * np.array([0.25, 1, 0.25])
    power = filters.pitch_filters(WIDE)[:, bin_of - 1 : bin_of + 2] @ lobe
    found = spectrogram.log_mel(tone(hz, level=1.0), WIDE)[64:, 20]
    assert float(found.max()) == pytest.approx(0.1 * np.log10(power.max()), abs=1e-4)


def test_pitch_filters_have_unit_area_and_none_is_narrower_than_the_transform_can_tell():
    made, bin_hz = filters.pitch_filters(WIDE), RATE / PITCH_N_FFT
    assert made.shape == (216, 4097)
    # triangles as narrow as the transform are sampled roughly
    np.testing.assert_allclose(made.sum(axis=1) * bin_hz, 1, atol=0.1)
    assert (made > 0).any(axis=1).all()
    centres = (made * np.arange(4097) * bin_hz).sum(axis=1) / made.sum(axis=1)
    np.testing.assert_allclose(centres, [pitch_hz(band) for band in range(216)], atol=bin_hz / 2)


@pytest.mark.parametrize("changes", [{}, {"reference": "max", "top_db": 80.0}, {"top_db": 40.0}])
def test_mel_bands_are_what_they_are_without_pitch_bands(changes, tone, noise):
    config = update(WIDE, changes)
    wave = tone(pitch_hz(60), seconds=2) + noise(2, level=0.01)
    found, plain = (spectrogram.log_mel(wave, each) for each in (config, config.without_pitch))
    assert found.shape == (280, plain.shape[1])
    assert (spectrogram.log_mel(0 * wave, WIDE) == -1).all()
    close(found[:64], plain, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 30_000), cuts=st.lists(st.integers(0, 30_000), max_size=6))
def test_log_mel_of_blocks_is_that_of_the_whole(samples, cuts, noise):
    wave = noise(samples / RATE)
    blocks = np.split(wave, sorted(min(place, samples) for place in cuts))
    expected = spectrogram.log_mel(wave, WIDE)
    assert expected.shape == (280, 1 + samples // 512)
    close(spectrogram.log_mel_of_blocks(iter(blocks), WIDE), expected, atol=2e-5)
    streamed = np.concatenate(list(spectrogram.stream_log_mel(iter(blocks), WIDE)), axis=-1)
    close(streamed, expected, atol=2e-5)


def test_blocks_give_what_the_whole_gives_under_a_window_that_does_not_end_in_zeros(tone, noise):
    config = update(WIDE, {"window": "hamming"})
    # noise in every band: beside a tone alone, those far from it hold rounding, which AVX2 has more of
    wave = tone(5_600, seconds=20) + 0.2 * noise(20)
    pieces = spectrogram.stream_log_mel(iter(np.split(wave, 20)), config)
    close(np.concatenate(list(pieces), axis=-1), spectrogram.log_mel(wave, config), atol=2e-5)


@pytest.mark.parametrize("samples", [1, 2, 4095, 40_001])
def test_at_half_rate_low_sounds_are_as_they_are_and_high_ones_gone(samples, tone):
    seconds = samples / RATE
    low, high = (tone(hz, seconds=seconds).astype(np.float64) for hz in (3500, 7600))
    middle = slice(24, max(24, samples // 2 - 24))  # as far from the ends as the filter sees
    for wave, expected in ((low, low), (high, np.zeros_like(low))):
        found = filters.at_half_rate(wave)
        assert len(found) == -(-len(wave) // 2)
        close(found[middle], expected[::2][middle], atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 4095, 4096])
def test_the_margin_of_half_the_rate_is_all_that_is_beyond_the_ends(samples, noise):
    wave, margin = noise(1)[:samples].astype(np.float64), filters.MARGIN
    around = filters.at_half_rate(np.pad(wave, 200), margin=margin)
    found = filters.at_half_rate(wave, margin=margin)
    close(found, around[100:][: len(found)], atol=1e-12)
    assert not around[:100].any()
    assert not around[100 + len(found) :].any()
    close(filters.at_half_rate(wave), found[margin : len(found) - margin], atol=1e-12)


@pytest.mark.parametrize("samples", [1, 9000, 60_000])
def test_pitch_bands_are_those_of_every_sample(samples, monkeypatch, noise, tone):
    wave = (noise(3) + tone(440, seconds=3))[:samples].astype(np.float64)
    assert filters.pitch_step(WIDE) == 2
    found = spectrogram.log_mel(wave, WIDE)
    spectrogram.banks.cache_clear()
    monkeypatch.setattr(filters, "pitch_step", lambda config: 1)
    close(spectrogram.log_mel(wave, WIDE), found, atol=1e-4)
    spectrogram.banks.cache_clear()


@pytest.mark.parametrize("changes", [{"n_pitch_bands": 218}, {"hop_length": 441}], ids=str)
def test_half_rate_is_not_taken_where_it_would_not_do(changes):
    assert filters.pitch_step(dataclasses.replace(WIDE, **changes)) == 1


def test_sound_of_a_log_mel_is_that_of_its_mel_bands(tone):
    log_mel = spectrogram.log_mel(tone(), WIDE)
    plain = spectrogram.to_waveform(log_mel[:64], WIDE.without_pitch, iterations=1)
    close(spectrogram.to_waveform(log_mel, WIDE, iterations=1), plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_pitch_bands": -6}, "n_pitch_bands is -6, expected 0 or more"),
        ({"n_pitch_bands": 276}, "reach .* Hz, expected at most half the sample rate"),
        ({"sample_rate": 6000, "f_max_hz": 3000}, "reach .* Hz"),
        ({"n_fft": 16_384}, "n_fft is 16384, expected at most 8192"),
    ],
)
def test_bands_that_cannot_be_are_refused_by_name(changes, named):
    with pytest.raises(RequestError, match=named):
        update(WIDE, changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"spectrogram": {"n_pitch_bands": 220}}, r"\(220\) must be a multiple of 6"),
        ({"model": {"patch_frames": 2, "channels": [4]}}, r"patch_frames \(2\) then one of 4"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_name(changes, named):
    with pytest.raises(RequestError, match=named):
        update(CONFIG, changes)


@pytest.fixture(scope="module")
def wide_cache(audio_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wide") / "cache"
    cache.prepare(datasets.load(audio_folder), out, config=WIDE, workers=1)
    return out


def test_view_of_a_wide_cache_is_the_cache_made_without_pitch_bands(wide_cache, small_cache):
    wide, narrow = cache.Cache(wide_cache), cache.Cache(small_cache)
    view = wide.require(SpectrogramConfig())
    assert view.spectrogram == narrow.spectrogram
    for index in range(len(narrow.clips)):
        found = view.log_mel(index)
        np.testing.assert_allclose(found, narrow.log_mel(index), atol=1e-3)  # a step of float16
        np.testing.assert_array_equal(found, wide.log_mel(index)[:, :64])
    spans = np.array([[0, 20], [5, 40]])
    assert np.array_equal(view.read([0, 1], spans), wide.read([0, 1], spans)[..., :64])
    assert wide.log_mel(0).shape[1] == 280
    assert wide.verify() == []
    assert wide.require(WIDE).spectrogram == WIDE


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (SpectrogramConfig(n_fft=1024), "n_fft is 2048, not 1024"),
        (SpectrogramConfig(n_mels=32), "n_mels is 64, not 32"),
        (update(WIDE, {"n_pitch_bands": 144}), "n_pitch_bands is 216, not 144"),
    ],
)
def test_other_differences_are_refused_by_name(wide_cache, small_cache, wanted, named):
    with pytest.raises(RequestError, match=named):
        cache.Cache(wide_cache).require(wanted)
    with pytest.raises(RequestError, match="n_pitch_bands is 0, not 216"):
        cache.Cache(small_cache).require(WIDE)


@pytest.mark.parametrize("spec", ["mel-stats", "random:3", "MODEL"])
def test_encoders_of_mel_bands_give_the_same_vectors_on_a_wide_cache(
    spec, wide_cache, small_cache, tmp_path
):
    narrow, folder = update(Config(), {"model": MODEL}), tmp_path / "model"
    checkpoint.save(folder, Checkpoint(Patchifier(narrow), narrow))
    found = []
    for path in (small_cache, wide_cache):
        data, train = cache.Cache(path), range(6)
        (encoder,) = encoders(spec.replace("MODEL", str(folder)), data=data, train=train)
        found.append(encoder.encode(data, train))
    assert found[0].shape == found[1].shape
    np.testing.assert_allclose(*found, atol=2e-3)  # log-mels in half precision


def test_a_model_of_pitch_bands_hears_the_clips_of_a_cache_without(
    wide_cache, small_cache, tmp_path
):
    checkpoint.save(tmp_path / "model", Checkpoint(Patchifier(CONFIG), CONFIG))
    found = []
    for path in (wide_cache, small_cache):
        (encoder,) = encoders(str(tmp_path / "model"), data=cache.Cache(path))
        found.append(encoder.encode(cache.Cache(path), [0, 3]))
    np.testing.assert_allclose(*found, atol=2e-3)  # log-mels in half precision


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    """Layers of all depths of a model whose positions and batch norms have seen something."""
    config = update(CONFIG, {"embed": {"layers": [0, 1, 2]}})
    network = Patchifier(config, seed=0)
    with torch.no_grad():
        network.bottleneck.positions.mul_(10)
        network.train().extractor(torch.rand(64, 1, 280, 32) - 0.9)
    return builders.embedder(network, config)


def test_pitch_bands_have_a_part_in_the_vector(embedder, noise):
    log_mel = embedder.log_mel(noise(3), RATE)
    other = log_mel.copy()
    other[100] += 0.3
    first, second = embedder.embed_log_mels([log_mel, other])
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("seconds", [(0.02, 0.7, 3.0), (19.0, 1.0, 26.3)])
def test_a_batch_gives_what_each_alone_does(seconds, embedder, noise, tone):
    waves = [
        noise(length, seed=number) + tone(200 + 300 * number, seconds=length)
        for number, length in enumerate(seconds)
    ]
    together = embedder.embed(waves, RATE)
    for row, wave in zip(together, waves, strict=True):
        np.testing.assert_allclose(row, embedder.embed(wave, RATE), atol=1e-5, rtol=0)
        assert np.array_equal(embedder.embed(wave, RATE), embedder.embed(wave, RATE))


def test_a_file_gives_what_its_samples_do(embedder, audio_folder):
    """It is read block by block."""
    path = audio_folder / "album1" / "track3.wav"
    wave, rate = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(embedder.embed(path), embedder.embed(wave, rate), atol=1e-5, rtol=0)


def test_reconstructions_are_of_mel_bands(embedder, noise):
    masked = np.array([True, False, True, False])
    patches, filled = embedder.reconstruct(embedder.log_mel(noise(3), RATE), masked)
    assert patches.shape == filled.shape == (4, 64, 32)


def sounds(frames: int) -> np.ndarray:
    chance = np.random.default_rng(frames)
    return chance.uniform(-1, 1, (2, frames * 512)).astype(np.float32)


@pytest.mark.parametrize("frames", [1, 33, 800, 1250])
@torch.no_grad()
def test_the_graph_gives_the_embedders_vectors(frames, embedder):
    waves = sounds(frames)
    found = Graph(embedder.network.model, embedder.config)(torch.from_numpy(waves)).numpy()
    np.testing.assert_allclose(found, embedder.embed(list(waves), RATE), atol=2e-5)


@pytest.mark.slow
def test_the_exported_graph_gives_the_embedders_vectors(embedder, tmp_path):
    graph = export(embedder, tmp_path / "graph.onnx")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for frames in (5, 100, 1217):
        (found,) = session.run(["embedding"], {"waveform": sounds(frames)})
        wanted = embedder.embed(list(sounds(frames)), RATE)
        np.testing.assert_allclose(found, wanted, atol=2e-5)
