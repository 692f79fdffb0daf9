"""Targets beside pixels: known answers of tones, clicks and gains, and what padding must not change."""

import numpy as np
import pytest
import scipy.fft
import torch

from patchifier import augment, spectrogram
from patchifier.config import AugmentConfig, Config, RequestError, update
from patchifier.nn.descriptors import DESCRIPTORS, LAGS, LAGS_S, autocorrelation
from patchifier.train.objectives import CONTRAST, PIXELS, require_targets
from tests.builders import close, uniform

RATE = 22_050
CONFIG = update(Config(), {"spectrogram": {"n_pitch_bands": 216}})
LAG_S = np.geomspace(*LAGS_S, LAGS)
SIZES = {
    "timbre": 60,
    "onsets": 128,
    "loudness": 4,
    "pitch": 216,
    "chroma": 36,
    "intervals": 40,
    "harmony": 72,
    "mode": 40,
    "colour": 128,
    "texture": 120,
    "pulse": 128,
    "rhythm": 32,
}


def patches_of(wave: np.ndarray) -> torch.Tensor:
    """All patches of a waveform: (1, N, M, W)."""
    patches = spectrogram.cut(spectrogram.log_mel(wave, CONFIG.spectrogram))
    return torch.from_numpy(patches)[None, :, 0]


def values(name: str, patches: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
    return DESCRIPTORS[name].values(patches, present, CONFIG)


def clicks(period_s: float, seconds: float = 19.0) -> np.ndarray:
    """Short bursts of noise, as regular as samples can be."""
    wave = np.zeros(round(seconds * RATE), np.float32)
    burst = np.random.default_rng(0).uniform(-0.5, 0.5, 400).astype(np.float32)
    for start in np.arange(0.1, seconds - 0.1, period_s):
        wave[round(start * RATE) : round(start * RATE) + 400] = burst
    return wave


def chord(*semitones: int, seconds: float = 3.0) -> np.ndarray:
    """Tones on A3 and so many semitones above, with two overtones each."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    roots = [220 * 2 ** (semitone / 12) for semitone in semitones]
    each = [0.1 / k * np.sin(2 * np.pi * k * hz * time_s) for hz in roots for k in (1, 2)]
    return np.sum(each, axis=0).astype(np.float32)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_a_row_has_its_size_for_patches_or_clips_and_is_finite_even_for_silence(
    name, noise, silence
):
    assert set(SIZES) == set(DESCRIPTORS)
    loud, still = (patches_of(wave) for wave in (noise(6), silence(6)))
    rows = (1, loud.shape[1]) if DESCRIPTORS[name].of == "patch" else (1,)
    for patches in (loud, still):
        found = values(name, patches)
        assert found.shape == (*rows, SIZES[name])
        assert found.isfinite().all()
    assert values(name, loud).std() > 0


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_a_clip_has_the_same_targets_alone_and_beside_a_longer_one(name, noise):
    """Padding has no part in them."""
    patches = patches_of(noise(5) * np.linspace(0, 1, 5 * RATE, dtype=np.float32))
    N = patches.shape[1]
    other = patches_of(noise(13, seed=1))[:, : N + 7]
    padded = torch.cat([torch.nn.functional.pad(patches, (0, 0) * 2 + (0, 7), value=-1.0), other])
    present = torch.arange(N + 7) < torch.tensor([[N], [N + 7]])
    found = values(name, padded, present)[:1]
    found = found[:, :N] if DESCRIPTORS[name].of == "patch" else found
    close(found, values(name, patches), atol=1e-4)


def test_a_row_needs_pitch_bands_if_it_says_so(noise):
    patches = patches_of(noise(3))
    other = patches.clone()
    other[:, :, 64:] += torch.rand(216, 32)
    for name, target in DESCRIPTORS.items():
        assert torch.equal(values(name, patches), values(name, other)) == (not target.pitch), name


@pytest.mark.parametrize("band", [40, 75, 110, 143])
def test_a_tone_lights_its_pitch_band_and_class_and_its_octave_the_same_class(band, tone):
    for place in (band, band + 36):
        patches = patches_of(tone(55 * 2 ** (place / 36), seconds=3))
        assert (values("pitch", patches)[0, 1:-1].argmax(-1) == place).all()
        assert (values("chroma", patches)[0, 1:-1].argmax(-1) == band % 36).all()
        assert values("harmony", patches)[0, :36].argmax() == band % 36


@pytest.mark.parametrize("bands", [1, 3, 21, -15])
def test_a_shift_of_pitch_bands_rolls_chroma_and_leaves_what_has_no_root(bands):
    patches = torch.full((1, 4, 280, 32), -1.0)
    patches[:, :, 64 + 72 : 64 + 144] += uniform(1, 4, 72, 32)  # the others are silent
    shifted = patches.clone()
    shifted[:, :, 64:] = patches[:, :, 64:].roll(bands, dims=2)
    close(values("chroma", shifted), values("chroma", patches).roll(bands, dims=-1))
    before, after = (values("harmony", each).view(2, 36) for each in (patches, shifted))
    close(after, before.roll(bands, dims=-1))
    for name in ("intervals", "mode"):
        close(values(name, shifted), values(name, patches), rtol=1e-4)


def test_intervals_tell_major_from_minor_and_not_their_roots():
    major, minor, fifth_up = (
        values("mode", patches_of(chord(*each)))[0] for each in ((0, 4, 7), (0, 3, 7), (5, 9, 12))
    )
    assert (major - fifth_up).norm() < 0.5 * (major - minor).norm()


def peak_s(patches: torch.Tensor, low_s: float = 0.35, high_s: float = 0.75) -> float:
    """Lag of the highest point of the pulse between two."""
    pulse = values("pulse", patches)[0, :LAGS].numpy()
    inside = slice(*np.searchsorted(LAG_S, [low_s, high_s]))
    return float(LAG_S[inside][pulse[inside].argmax()])


def test_clicks_at_120_bpm_peak_at_half_a_second():
    patches = patches_of(clicks(0.5))
    assert peak_s(patches) == pytest.approx(0.5, rel=0.03)
    pulse = values("pulse", patches)[0].view(2, LAGS)
    between = np.abs(LAG_S - 0.75).argmin()
    for envelope in pulse:  # all bands, and the lowest
        assert envelope[np.abs(LAG_S - 1.0).argmin()] > 0.3 > 0.1 > envelope[between]


@pytest.mark.parametrize("factor", [0.9, 1.2])
def test_time_that_is_stretched_moves_the_pulse_by_the_factor(factor):
    log_mel = torch.from_numpy(spectrogram.log_mel(clicks(0.5, 30.0), CONFIG.spectrogram)).T
    config, frames = AugmentConfig(time_stretch=(factor, factor)), np.array([len(log_mel)])
    drawn = augment.draw(np.random.default_rng(0), frames, config=config)
    crops = augment.Resampling.of(drawn, first=np.zeros(1, int), frames=frames)
    patches = augment.resample(crops, log_mel, silence=-1.0)[:, :, 0]
    assert peak_s(patches) == pytest.approx(0.5 * factor, rel=0.04)


def test_rhythm_hears_the_pattern_and_not_its_speed():
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 19 * RATE).astype(np.float32)
    waves = (clicks(0.6), clicks(0.5), noise)
    first, second, other = (values("rhythm", patches_of(wave))[0] for wave in waves)
    assert (first - second).norm() < 0.5 * (first - other).norm()


def test_onsets_are_where_the_clicks_are():
    """Frame by frame, in four groups of bands."""
    wave = np.zeros(3 * RATE, np.float32)
    # frame 50 is the 18th of the second patch; the transform sees it two frames before
    wave[50 * 512 : 50 * 512 + 300] = 0.5
    each = values("onsets", patches_of(wave))[0].view(-1, 4, 32)
    found = each.transpose(0, 1).flatten(1)  # (4, N W)
    assert ((found.argmax(-1) - 49).abs() <= 1).all()
    assert found[:, 53:].max() == 0  # what falls is no onset


@pytest.mark.parametrize("gain", [0.5, 0.1])
def test_loudness_follows_gain(gain, noise):
    wave = noise(4)
    loud, soft = (values("loudness", patches_of(wave * np.float32(each))) for each in (1, gain))
    close(soft - loud, torch.full_like(loud, 0.2 * np.log10(gain)), atol=1e-4)


def test_loudness_is_that_of_each_quarter_of_a_patch():
    patches = torch.full((1, 1, 280, 32), -0.5)
    patches[..., 8:16] = -0.2
    close(values("loudness", patches), torch.tensor([[[-0.5, -0.2, -0.5, -0.5]]]))


def test_timbre_is_that_of_scipys_cepstra(noise):
    patches = patches_of(noise(3))
    mel = patches[0, :, :64].double().numpy()
    cepstra = scipy.fft.dct(mel, type=2, norm="ortho", axis=1)[:, :20]  # (N, 20, W)
    changes = np.abs(np.diff(cepstra, axis=-1)).mean(-1)
    wanted = np.concatenate([cepstra.mean(-1), cepstra.std(-1, ddof=1), changes], axis=-1)
    np.testing.assert_allclose(values("timbre", patches)[0], wanted, atol=1e-5)


def test_texture_is_the_mean_and_deviation_of_timbre_and_louder_changes_one_number_of_it(noise):
    loud, soft = patches_of(noise(3)), patches_of(0.1 * noise(3))
    patches = torch.cat([loud, soft], dim=1)
    found, each = values("texture", patches)[0], values("timbre", patches)[0]
    close(found, torch.cat([each.mean(0), each.std(0)]), rtol=1e-4)
    differs = (values("texture", loud) - values("texture", soft))[0].abs() > 1e-3
    assert differs.nonzero().flatten().tolist() == [0]  # the mean of the first coefficient


def test_colour_and_harmony_are_means_and_deviations_over_the_clip(noise):
    patches = patches_of(noise(5) * np.linspace(0, 1, 5 * RATE, dtype=np.float32))
    mel = patches[0, :, :64].transpose(0, 1).flatten(1)
    chroma = values("chroma", patches)[0].T
    for name, each in {"colour": mel, "harmony": chroma}.items():
        wanted = torch.cat([each.mean(-1), each.std(-1)])
        close(values(name, patches)[0], wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"contrast_positives": "group"},
            r"contrast_positives 'group' needs the target 'contrast'",
        ),
        (
            {"objectives": ["pixels", "melody"]},
            "'melody', expected some of pixels, timbre, .*contrast",
        ),
        ({"objectives": []}, r"pretrain\.objectives is \(\), expected some of pixels"),
        ({"objectives": ["timbre", "timbre"]}, "each once"),
        ({"objectives": ["timbre"], "loss_patches": "all"}, r"pretrain\.loss_patches is 'all'"),
        (
            {"objectives": ["timbre"], "extracted_patches": "all"},
            r"pretrain\.extracted_patches is 'all'",
        ),
    ],
)
def test_targets_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        require_targets(update(CONFIG, {"pretrain": changes}))


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_targets_of_pitch_are_refused_without_pitch_bands(name):
    config = update(Config(), {"pretrain": {"objectives": ["pixels", name]}})
    if not DESCRIPTORS[name].pitch:
        require_targets(config)
        return
    with pytest.raises(RequestError, match=rf"'{name}' needs pitch bands"):
        require_targets(config)


FEW = {"spectrogram": {"n_pitch_bands": 24}}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("chroma", FEW, "'chroma' needs pitch bands.*36 or more"),
        (
            "loudness",
            {"model": {"patch_frames": 6, "channels": [4], "embed_dim": 4, "n_heads": 2}},
            "'loudness' needs patches of 4 equal parts, but model.patch_frames is 6",
        ),
        (
            "pulse",
            {"spectrogram": {"n_mels": 66}, "model": {"channels": [4]}},
            "'pulse' needs mel bands in 4",
        ),
    ],
)
def test_rows_that_would_end_in_nothing_are_refused(name, changes, message):
    config = update(Config(), changes | {"pretrain": {"objectives": ["pixels", name]}})
    with pytest.raises(RequestError, match=message):
        require_targets(config)


def test_every_row_is_described_in_one_line():
    for row in DESCRIPTORS.values():
        assert 3 < len(row.what) < 100
    assert not set(DESCRIPTORS) & {CONTRAST, PIXELS}


@pytest.mark.parametrize("name", ["pulse", "texture"])
def test_who_traces_a_graph_first_still_gets_numbers_afterwards(name):
    """What is kept between calls must not be a tensor of the tracer's, which holds none."""

    class Described(torch.nn.Module):
        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            return DESCRIPTORS[name].values(patches, None, unheard)

    # of which nothing is kept yet
    changes = {"spectrogram": {"hop_length": 500, "n_mels": 96}}
    unheard, patches = update(CONFIG, changes), uniform(1, 4, 312, 32) - 1
    traced = torch.export.export(Described(), (patches,)).module()(patches)
    found = DESCRIPTORS[name].values(patches, None, unheard)
    np.testing.assert_allclose(found.numpy(), traced.numpy(), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 5, 31, 32, 33, 131, 800])
@pytest.mark.parametrize("longest", [1, 32, 131])
def test_autocorrelation_by_blocks_is_the_sum_of_products(frames, longest):
    values = torch.randn(3, 2, frames, dtype=torch.float64, generator=torch.manual_seed(frames))
    padded = torch.nn.functional.pad(values, (0, longest))
    wanted = [(values * padded[..., lag : lag + frames]).sum(-1) for lag in range(longest + 1)]
    found = autocorrelation(values, longest)
    torch.testing.assert_close(found, torch.stack(wanted, -1), rtol=1e-12, atol=1e-12)
