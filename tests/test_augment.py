"""Augmentation: what is drawn, and that what is applied is what was drawn."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier import augment, filters, levels, spectrogram
from patchifier.config import AugmentConfig, Config, RequestError, SpectrogramConfig, update
from patchifier.evaluate.robustness import pink_noise
from patchifier.nn.descriptors import DESCRIPTORS
from tests.builders import close, uniform

SILENCE = -1.0
LAYOUTS = ("consecutive", "independent", "one", "whole")
PLAIN = augment.NO_AUGMENTATION


FIELDS = ("scale", "starts", "valid", "lengths", "keys")


def drawn_from(seed: int, frames: Sequence[int], **options: object) -> augment.AugmentParameters:
    config = options.pop("config", AugmentConfig())
    return augment.draw(np.random.default_rng(seed), np.array(frames), config=config, **options)


def scaled(scale: float) -> AugmentConfig:
    return AugmentConfig(time_stretch=(scale, scale), intensity=(1, 1))


def require_same(
    one: augment.AugmentParameters, other: augment.AugmentParameters, row: object = slice(None)
) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name)[row], getattr(other, name)[row])


def intensity(
    drawn: augment.AugmentParameters, config: AugmentConfig, bands: int = 4
) -> torch.Tensor:
    """Factors of random intensity on unpadded patches (B, N, 1, M, W)."""
    B, N = drawn.starts.shape
    lengths = np.full(B, 10**6)
    whole = replace(drawn, lengths=lengths, valid=np.ones((B, N), bool))
    crops = augment.Resampling.of(whole, first=np.zeros(B, int), frames=lengths)
    ones = torch.ones(B, N, 1, bands, 32)
    return augment.vary_intensity(ones, crops, config=config, silence=SILENCE)


def side_by_side(frames: Sequence[int]) -> torch.Tensor:
    """Random log-mels (B, T, M); what lies behind a clip's end is NaN, so that it cannot be looked at unnoticed."""
    batch = torch.full((len(frames), max(frames), 4), torch.nan)
    for row, count in zip(batch, frames, strict=True):
        row[:count] = uniform(count, 4, seed=count)
    return batch


def applied(
    drawn: augment.AugmentParameters,
    log_mels: torch.Tensor,
    frames: Sequence[int],
    width: int = 32,
    *,
    config: AugmentConfig | None = None,
    offsets: object = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches with and without random intensity, of log-mels (B, T, M) side by side that start `offsets` frames into their clips."""
    first = np.arange(len(frames)) * log_mels.shape[1] - offsets
    crops = augment.Resampling.of(drawn, first=first, frames=np.array(frames), width=width)
    clean = augment.resample(crops, log_mels.flatten(0, 1), silence=SILENCE, width=width)
    config = config or AugmentConfig()
    return augment.vary_intensity(clean, crops, config=config, silence=SILENCE), clean


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_generator_gives_the_same_draw_whatever_the_global_state(layout):
    found = []
    for seed in (3, 3, 4):
        np.random.seed(len(found))  # noqa: NPY002
        torch.manual_seed(len(found))
        drawn = drawn_from(seed, [900, 1249, 40], layout=layout)
        found.append((drawn, intensity(drawn, AugmentConfig())))
    (first, factors), (second, same_factors), (other, _) = found
    require_same(first, second)
    assert torch.equal(factors, same_factors)
    assert (first.scale != other.scale).all()
    assert (first.keys != other.keys).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_draws_lie_in_their_ranges_and_fill_them(layout):
    config = AugmentConfig(intensity_per="spectrogram")
    frames = np.full(2000, 1249)
    drawn = drawn_from(0, frames, layout=layout, config=config)
    factors = intensity(replace(drawn, starts=drawn.starts[:, :1]), config)[:, 0, 0, 0, 0].numpy()
    for values, (low, high) in ((drawn.scale, config.time_stretch), (factors, config.intensity)):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high + 1e-6
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.01)
    np.testing.assert_array_equal(drawn.lengths, np.rint(frames * drawn.scale))
    assert drawn.starts[drawn.valid].min() >= 0
    ends = np.where(drawn.valid, drawn.starts + 32, 0).max(axis=1)
    assert (ends <= drawn.lengths).all()


@pytest.mark.parametrize("layout", ["consecutive", "independent", "one"])
def test_crops_reach_both_ends_of_the_clip(layout):
    firsts = drawn_from(0, np.full(4000, 830), layout=layout, config=PLAIN).starts[:, 0]
    spare = 830 - (25 * 32 if layout == "consecutive" else 32)
    assert (firsts.min(), firsts.max()) == (0, spare)
    assert firsts.mean() == pytest.approx(spare / 2, rel=0.05)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("consecutive", (2, 25)), ("independent", (2, 25)), ("one", (2, 1)), ("whole", (2, 39))],
)
def test_layout_has_its_shape(layout, shape):
    frames = [900, 1249]
    drawn = drawn_from(0, frames, layout=layout, config=AugmentConfig(time_stretch=(1, 1)))
    assert drawn.starts.shape == drawn.valid.shape == shape
    augmented, clean = applied(drawn, side_by_side(frames), frames)
    assert augmented.shape == clean.shape == (*shape, 1, 4, 32)
    assert augmented.isfinite().all()


def test_consecutive_patches_touch_and_independent_ones_are_independent():
    assert (np.diff(drawn_from(0, [1249, 900], layout="consecutive").starts, axis=1) == 32).all()
    starts = drawn_from(0, [1249], layout="independent", patches=500).starts[0]
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 0.15
    assert len(set(starts % 32)) == 32


def test_whole_takes_every_whole_patch_and_most_limits_them():
    for options, counts in (({}, [39, 3]), ({"most": 25}, [25, 3])):
        present = drawn_from(0, [1249, 100], layout="whole", config=PLAIN, **options).valid
        assert present.shape == (2, counts[0])
        assert present.sum(axis=1).tolist() == counts


def test_twenty_second_clip_always_fills_25_patches():
    drawn = drawn_from(0, np.full(5000, 862), config=AugmentConfig(intensity_per="spectrogram"))
    assert drawn.valid.all()
    assert (drawn.starts[:, -1] + 32 <= drawn.lengths).all()
    assert drawn.lengths.min() == 800  # 0.9 would have left 776
    assert drawn.scale.max() <= 1.2
    assert (drawn.scale > 0.93).mean() > 0.85  # only those that had to be were raised


def test_scale_is_not_raised_beyond_its_range():
    drawn = drawn_from(0, np.full(100, 600))  # 800 would need 1.33
    assert drawn.scale.max() <= 1.2
    assert not drawn.valid.all(axis=1).any()
    np.testing.assert_array_equal(drawn.valid.sum(axis=1), drawn.lengths // 32)


def test_short_clip_is_padded_with_silence_and_its_patches_are_absent():
    frames = [100, 20]
    drawn = drawn_from(0, frames, config=PLAIN)
    assert drawn.valid.sum(axis=1).tolist() == [3, 1]
    assert drawn.valid[0, :3].all()
    augmented, clean = applied(drawn, side_by_side(frames), frames)
    for patches in (augmented, clean):
        assert (patches[0, 3:] == SILENCE).all()
        assert (patches[1, 0, :, :, 20:] == SILENCE).all()
        assert (patches[1, 1:] == SILENCE).all()
    close(clean[1, 0, 0, :, :20], side_by_side(frames)[1, :20].T)


@pytest.mark.parametrize("layout", ["consecutive", "independent", "one"])
def test_draw_of_a_clip_does_not_depend_on_other_clips(layout):
    others = ([900, 1249, 40], [300, 1249, 5000])
    require_same(*(drawn_from(5, frames, layout=layout) for frames in others), row=1)


@pytest.mark.parametrize(
    ("per", "count"), [("element", 2 * 25 * 4 * 32), ("band", 2 * 4), ("spectrogram", 2)]
)
def test_intensity_has_its_structure(per, count):
    config = AugmentConfig(intensity_per=per)
    factors = intensity(drawn_from(0, [900, 1000], config=config), config)
    assert factors.dtype == torch.float32
    assert factors.min() > 0.8
    assert factors.max() < 1.2
    assert 0.6 * min(count, 2**16) < len(factors.unique()) <= count


def test_intensity_is_that_of_wellons_hash_of_key_and_place():
    keys = np.array([[3, -5], [2**31 - 1, -(2**31)]], np.int32)
    places = np.arange(1000, dtype=np.uint32)
    values = augment.uniform(torch.from_numpy(keys), 2000, -1.0, 1.0).numpy()
    for key, found in zip(keys.view(np.uint32), values, strict=True):
        x = places * (key[0] | np.uint32(1)) + key[1]
        x ^= x >> 16
        x *= np.uint32(0x7FEB352D)
        x ^= x >> 15
        x *= np.uint32(0x846CA68B)
        x ^= x >> 16
        np.testing.assert_allclose(found, (x.view(np.int16) + 0.5) / 2**15, atol=1e-6)


def test_uniform_numbers_are_uniform_and_independent():
    keys = np.random.default_rng(0).integers(-(2**31), 2**31, (40, 2), dtype=np.int32)
    values = augment.uniform(torch.from_numpy(keys), 50_001, 0.0, 1.0).numpy()
    assert values.shape == (40, 50_001)
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    assert abs(counts / counts.mean() - 1).max() < 0.04
    assert values.std() == pytest.approx(12**-0.5, rel=2e-3)
    for lag in (1, 2, 3, 32, 64, 2048):
        assert abs(np.corrcoef(values[:, :-lag].ravel(), values[:, lag:].ravel())[0, 1]) < 4e-3
    between = np.corrcoef(values) - np.eye(40)
    assert abs(between).max() < 0.025


def test_without_scaling_and_intensity_it_is_exactly_the_crop():
    frames = [900, 1249]
    log_mels = side_by_side(frames)
    drawn = drawn_from(0, frames, config=PLAIN)
    augmented, clean = applied(drawn, log_mels, frames, config=PLAIN)
    assert torch.equal(augmented, clean)
    for clip in range(2):
        for patch, start in enumerate(drawn.starts[clip]):
            assert torch.equal(clean[clip, patch, 0], log_mels[clip, start : start + 32].T)


@settings(max_examples=60, deadline=None)
@given(frame=st.integers(2, 297), scale=st.floats(0.9, 1.2))
def test_click_lands_where_its_time_was_stretched_to(frame, scale):
    log_mels = torch.zeros(1, 300, 1)
    log_mels[0, frame] = 1
    drawn = drawn_from(0, [300], layout="whole", config=scaled(scale))
    _, clean = applied(drawn, log_mels, [300])
    # patches touch, so this is stretched time from the first start on
    line = clean[0, :, 0, 0].flatten().clamp(min=0)
    expected = (frame + 0.5) * scale - 0.5 - drawn.starts[0, 0]
    if 1 <= expected <= len(line) - 2:
        assert line.max() > 0.4
        assert abs(float((line * torch.arange(len(line))).sum() / line.sum()) - expected) < 1


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.1, 1.2])
def test_ramp_is_stretched_to_a_ramp(scale):
    drawn = drawn_from(0, [400], patches=10, config=scaled(scale))
    _, clean = applied(drawn, torch.arange(400.0)[None, :, None], [400])
    stretched = drawn.starts[0, 0] + np.arange(320)
    expected = np.clip((stretched + 0.5) / scale - 0.5, 0, 399)
    np.testing.assert_allclose(clean[0, :, 0, 0].flatten(), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("per", "constant_axes"), [("band", (1, 4)), ("spectrogram", (1, 3, 4)), ("element", ())]
)
def test_intensity_multiplies_what_it_should(per, constant_axes):
    frames, config = [900, 900], AugmentConfig(time_stretch=(1, 1), intensity_per=per)
    drawn = drawn_from(0, frames, config=config)
    augmented, clean = applied(drawn, torch.full((2, 900, 4), -0.5), frames, config=config)
    factor = augmented / clean
    assert (clean == -0.5).all()
    close(factor, intensity(drawn, config))
    for axis in range(5):
        varies = bool((factor.amax(dim=axis) - factor.amin(dim=axis)).max() > 1e-3)
        assert varies == (axis not in constant_axes and axis != 2)


@pytest.mark.parametrize("per", ["element", "band", "spectrogram"])
def test_padding_is_exactly_silence_under_any_intensity(per):
    frames, config = [100, 900, 20], AugmentConfig(intensity_per=per)
    drawn = drawn_from(0, frames, config=config)
    ended = drawn.starts[:, :, None] + np.arange(32) >= drawn.lengths[:, None, None]
    padding = torch.from_numpy(ended | ~drawn.valid[:, :, None])
    assert padding[0].any()
    assert not padding[1].any()
    for patches in applied(drawn, side_by_side(frames), frames, config=config):
        assert (patches.squeeze(2).transpose(-1, -2)[padding] == SILENCE).all()
        assert patches.isfinite().all()


@settings(max_examples=120, deadline=None)
@given(
    frames=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 10**6),
    patches=st.integers(1, 6),
    low=st.floats(0.5, 1.0),
    high=st.floats(1.0, 1.6),
)
def test_span_covers_what_is_looked_at(frames, layout, seed, patches, low, high):
    config = AugmentConfig(time_stretch=(low, high), intensity_per="spectrogram")
    drawn = drawn_from(seed, frames, config=config, layout=layout, patches=patches, width=8, most=9)
    whole = side_by_side(frames).nan_to_num(7.0)
    spans = augment.source_span(drawn, np.array(frames), width=8)
    assert (spans[:, 0] >= 0).all()
    assert (spans[:, 0] < spans[:, 1]).all()
    assert (spans[:, 1] <= frames).all()
    # as a cache reads them, but for the padding
    parts = torch.full((len(frames), int(np.diff(spans).max()), 4), 99.0)
    for part, clip, (first, last) in zip(parts, whole, spans, strict=True):
        part[: last - first] = clip[first:last]
    found = applied(drawn, parts, frames, width=8, offsets=spans[:, 0])
    close(found, applied(drawn, whole, frames, width=8), atol=1e-4)


def test_span_reads_no_more_than_the_crop_needs():
    drawn = drawn_from(0, np.full(200, 5000), patches=4)
    spans = augment.source_span(drawn, np.full(200, 5000))
    needed = 4 * 32 / drawn.scale
    assert (np.diff(spans)[:, 0] <= needed + 4).all()


def test_half_precision_comes_out_as_float32():
    drawn = drawn_from(0, [900])
    augmented, clean = applied(drawn, side_by_side([900]).half(), [900])
    assert augmented.dtype == clean.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_of_a_draw_gives_the_part_of_what_is_applied(layout):
    frames = [900, 1249, 40, 700]
    drawn, log_mels = drawn_from(0, frames, layout=layout), side_by_side(frames)
    whole, _ = applied(drawn, log_mels, frames)
    for part in (slice(0, 2), slice(2, 4)):
        own, _ = applied(drawn[part], log_mels[part], frames[part])
        assert torch.equal(own, whole[part])


@pytest.mark.parametrize(("frames", "padded"), [([900, 1249], False), ([900, 100], True)])
def test_a_batch_without_padding_has_no_mask_of_it(frames, padded):
    drawn = drawn_from(0, frames)
    crops = augment.Resampling.of(drawn, first=np.zeros(2, int), frames=np.array(frames))
    assert (crops.valid is not None) == padded


WIDE = SpectrogramConfig(n_mels=64, n_pitch_bands=216)


def log_mel_of(wave: np.ndarray, config: SpectrogramConfig = WIDE) -> torch.Tensor:
    return torch.from_numpy(spectrogram.log_mel(wave, config))


def shifted(
    log_mel: torch.Tensor, semitones: float, config: SpectrogramConfig = WIDE
) -> torch.Tensor:
    """Log-mel (M, T) as patches show it, (M, N W), if its pitch is shifted and nothing else happens."""
    frames, pitch = [log_mel.shape[1]], (semitones, semitones + 1e-9)
    drawn = drawn_from(0, frames, layout="whole", config=replace(PLAIN, pitch_shift=pitch))
    crops = augment.Resampling.of(
        drawn, first=np.zeros(1, int), frames=np.array(frames), config=config
    )
    patches = augment.resample(crops, log_mel.T.contiguous(), silence=SILENCE)
    return patches[0, :, 0].transpose(0, 1).flatten(1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shift_is_drawn_last_and_not_at_all_without_a_range(layout):
    frames, found, states = np.array([900, 1249, 40]), [], []
    for pitch in [(0, 0), (-3, 3), (-3, 3)]:
        generator, config = np.random.default_rng(3), AugmentConfig(pitch_shift=pitch)
        found.append(augment.draw(generator, frames, config=config, layout=layout))
        states.append(generator.random())
    plain, moved, again = found
    require_same(plain, moved)
    assert plain.pitch is None
    assert states[0] == pytest.approx(moved.pitch[0] / 6 + 0.5)  # the next number, from -3 to 3
    np.testing.assert_array_equal(again.pitch, moved.pitch)
    assert len(set(moved.pitch)) == 3
    np.testing.assert_array_equal(moved[1:].pitch, moved.pitch[1:])


def test_what_was_drawn_without_a_range_is_what_was_always_drawn():
    """Numbers of the version before there was a shift."""
    drawn = drawn_from(0, [900, 1249])
    np.testing.assert_allclose(drawn.scale, [1.0910885061964364, 0.9809360141291611], rtol=1e-15)
    assert drawn.keys.tolist() == [[-1394716357, 1345485432], [641735758, 1772771705]]
    crops = augment.Resampling.of(drawn, first=np.zeros(2, int), frames=np.array([900, 1249]))
    assert crops.rows is None


def test_shifts_fill_their_range():
    drawn = drawn_from(0, np.full(2000, 1249), config=AugmentConfig(pitch_shift=(-3, 1)))
    assert drawn.pitch.min() < -2.98 < 0.98 < drawn.pitch.max() < 1
    assert drawn.pitch.mean() == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("semitones", [2, -3, 7])
def test_a_tone_that_is_shifted_lights_the_bands_it_should(semitones, tone):
    bands = (111, 111 + 3 * semitones)
    low, high = (log_mel_of(tone(55 * 2 ** (n / 36), seconds=3)) for n in bands)
    found = shifted(low, semitones)[:, 20:-20]
    wanted = high[:, 20 : found.shape[1] + 20]
    assert (found[64:].argmax(0) == bands[1]).all()
    assert ((found[:64].argmax(0) - wanted[:64].argmax(0)).abs() <= 1).all()
    loud = wanted[64:].mean(1) > float(wanted[64:].max()) - 0.3
    assert (found[64:].mean(1) - wanted[64:].mean(1))[loud].abs().max() < 0.05


def test_chroma_rolls_with_the_shift(tone):
    config = update(Config(), {"spectrogram": {"n_pitch_bands": 216}})
    log_mel = log_mel_of(tone(330, seconds=3) + tone(415, seconds=3))
    cut = [spectrogram.cut(each)[None, 1:3, 0] for each in (log_mel, shifted(log_mel, 2))]
    chroma = DESCRIPTORS["chroma"]
    expected, found = (chroma.values(torch.from_numpy(each), None, config) for each in cut)
    close(found, expected.roll(6, dims=-1), atol=1e-4, rtol=1e-3)


def test_rows_move_by_thirds_of_a_semitone_and_the_outermost_stay():
    log_mel = uniform(280, 32) - 0.9
    expected = log_mel[64:].roll(1, dims=0)
    expected[0] = log_mel[64]
    close(shifted(log_mel, 1 / 3)[64:], expected, atol=1e-4)
    close(shifted(log_mel, 1 / 6)[65:], (log_mel[64:-1] + log_mel[65:]) / 2, atol=1e-4)
    centres = filters.mel_edges_hz(WIDE)[1:-1]
    up, down = shifted(log_mel, 12), shifted(log_mel, -12)
    for band in range(0, 64, 9):  # an octave up, a band shows what lay at half its frequency
        place = np.interp(centres[band] / 2, centres, np.arange(64))
        low = int(place)
        wanted = torch.lerp(log_mel[low], log_mel[min(low + 1, 63)], place - low)
        close(up[band], wanted, atol=1e-4)
    beyond = centres * 2 > centres[-1]
    assert beyond.any()
    close(down[:64][beyond], log_mel[63].expand(int(beyond.sum()), -1), atol=1e-4)


def test_mel_and_pitch_bands_do_not_run_into_each_other_and_padding_stays():
    log_mel = torch.full((280, 20), -1.0)
    log_mel[:64] = 0.5
    found = shifted(log_mel, 5)
    assert (found[:64, :20] == 0.5).all()
    assert (found[64:] == SILENCE).all()
    assert (found[:, 20:] == SILENCE).all()


@pytest.mark.parametrize("semitones", [4.0, -4.0])
def test_mel_bands_alone_can_be_shifted_in_half_precision(semitones, tone):
    config = SpectrogramConfig()
    found = shifted(log_mel_of(tone(2000, seconds=2), config).half(), semitones, config)[:, 10:-10]
    assert found.dtype == torch.float32
    wanted = log_mel_of(tone(2000 * 2 ** (semitones / 12), seconds=2), config).mean(1).argmax()
    assert ((found.argmax(0) - wanted).abs() <= 1).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pitch_shift", (1, -1), "is [1, -1], expected low <= high"),
        ("gain_db", (3, -3), "is [3, -3], expected low <= high"),
        ("noise_db", (-10, -40), "is [-10, -40], expected low <= high"),
        ("low_pass_hz", (9000, 2000), "is [9000, 2000], expected low <= high"),
        ("low_pass_hz", (0, 2000), "is [0, 2000], expected frequencies above 0"),
        ("equaliser_db", -1.0, "is -1.0, expected 0 or more"),
    ],
)
def test_a_range_that_is_none_is_refused(field, value, message):
    with pytest.raises(RequestError, match=re.escape(f"augment.{field} {message}")):
        AugmentConfig(**{field: value})


# --- levels ---

LEVELS = {
    "gain_db": (-20.0, 6.0),
    "equaliser_db": 6.0,
    "low_pass_hz": (2000.0, 9000.0),
    "noise_db": (-40.0, -10.0),
}
LOUD = AugmentConfig(time_stretch=(1, 1), intensity=(1, 1), **LEVELS)


def changes(
    clips: int = 1, *, gain=0.0, curve=(0.0,) * 4, cutoff=np.inf, noise=-np.inf, pink=False
) -> levels.LevelChanges:
    each = (np.full(clips, value) for value in (gain, cutoff, noise, pink))
    gain_db, cutoff_hz, noise_db, is_pink = each
    return levels.LevelChanges(gain_db, np.tile(curve, (clips, 1)), cutoff_hz, noise_db, is_pink)


def with_levels(
    log_mels: torch.Tensor,
    levels: levels.LevelChanges,
    config: SpectrogramConfig = WIDE,
    frames: Sequence[int] | None = None,
) -> torch.Tensor:
    """Log-mels (B, M, T) with changed levels, all their frames, and silence behind: (B, M, N W)."""
    B, _, T = log_mels.shape
    counts = np.array(frames or [T] * B)
    drawn = augment.draw(np.random.default_rng(0), counts, config=PLAIN, layout="whole")
    whole = replace(drawn, starts=0 * drawn.starts[:, :1] + np.arange(0, T, 32), levels=levels)
    whole = replace(whole, valid=whole.starts < counts[:, None])
    crops = augment.Resampling.of(whole, first=np.arange(B) * T, frames=counts, config=config)
    table = log_mels.transpose(1, 2).reshape(B * T, -1).contiguous()
    clean = augment.resample(crops, table, silence=SILENCE)
    before = clean.clone()
    found = augment.change_levels(clean, crops, config=config)
    assert torch.equal(clean.nan_to_num(), before.nan_to_num())  # it stays the target
    return found[:, :, 0].permute(0, 2, 1, 3).flatten(2)


def test_a_gain_is_added_to_all_rows_and_clamped_at_the_floor():
    log_mels = torch.full((2, 280, 64), -0.3)
    log_mels[1, :10] = -0.9
    found = with_levels(log_mels, replace(changes(2), gain_db=np.array([6.0, -12.0])))
    close(found[0], torch.full((280, 64), -0.24), atol=1e-6)
    assert (found[1, :10] == SILENCE).all()
    close(found[1, 10:], torch.full((270, 64), -0.42), atol=1e-6)


def test_a_value_at_the_floor_stays_there_and_padding_is_silence():
    log_mels = torch.full((2, 280, 64), -0.5)
    log_mels[0, 100:] = SILENCE
    loud = changes(2, gain=20.0, curve=(6.0,) * 4)
    found = with_levels(log_mels, loud, frames=[64, 40])
    assert (found[0, 100:] == SILENCE).all()
    close(found[0, :100], torch.full((100, 64), -0.24), atol=1e-6)
    assert (found[1, :, 40:] == SILENCE).all()
    noisy = with_levels(log_mels, changes(2, gain=20.0, noise=0.0), frames=[64, 40])
    assert (noisy[1, :, 40:] == SILENCE).all()


def test_a_floor_that_a_cache_rounded_is_a_floor():
    config = SpectrogramConfig(min_db=-83.7)
    stored = torch.full((1, 64, 32), config.silence).half().float()
    assert not (stored == config.silence).any()
    found = with_levels(stored, changes(gain=20.0), config)
    assert (found == config.silence).all()


def test_an_equaliser_passes_through_its_points_and_is_smooth_between():
    config, heights = SpectrogramConfig(n_mels=64, n_pitch_bands=216), (6.0, -3.0, 2.0, 5.0)
    hertz = filters.centres_hz(config)
    found = changes(curve=heights).offsets_db(config)[0]
    points = 40 * (11_000 / 40) ** (np.arange(4) / 3)
    for point, height in zip(points[1:], heights[1:], strict=True):
        assert found[np.abs(np.log(hertz / point)).argmin()] == pytest.approx(height, abs=0.15)
    middle = np.abs(np.log(hertz / np.sqrt(points[1] * points[2]))).argmin()
    assert found[middle] == pytest.approx(-0.5, abs=0.2)
    pitch = found[64:]
    assert np.abs(np.diff(pitch)).max() < 0.2
    assert np.abs(np.diff(pitch, n=2)).max() < 0.02
    low = filters.centres_hz(replace(config, n_mels=128, n_pitch_bands=0))[0]  # below 40 Hz
    assert low < 40
    narrow = replace(config, n_mels=128, n_pitch_bands=0)
    assert changes(curve=heights).offsets_db(narrow)[0, 0] == 6.0
    np.testing.assert_allclose(changes(curve=(4.0,) * 4).offsets_db(config), 4.0)
    assert hertz[:64] == pytest.approx(filters.mel_edges_hz(config)[1:-1])
    assert hertz[64 + 36] == pytest.approx(110)


def test_rows_above_a_low_pass_fall_by_24_db_an_octave():
    log_mels = torch.full((1, 280, 32), -0.2)
    fall = -100 * (with_levels(log_mels, changes(cutoff=1000.0))[0, :, 0] + 0.2).numpy()
    hertz = filters.centres_hz(WIDE)
    wanted = np.minimum(24 * np.log2(np.maximum(hertz / 1000, 1)), 80)  # the floor, at 10.1 kHz
    np.testing.assert_allclose(fall, wanted, atol=1e-3)
    assert (wanted == 0).sum() > 100 < (wanted > 0).sum()
    assert (wanted == 80).any()
    both = with_levels(log_mels, changes(cutoff=1000.0, gain=-6.0, curve=(2.0,) * 4))
    lowest = float(both[0, 100, 0])
    assert lowest == pytest.approx(-0.2 - 0.06 + 0.02)


@pytest.mark.parametrize("pink", [False, True])
def test_noise_is_that_of_a_waveform_with_noise(pink):
    """An independent implementation: noise added to samples at a signal-to-noise ratio of 15 dB."""
    generator = np.random.default_rng(0)
    seconds, rate = 20, 22_050
    sound = np.cumsum(generator.standard_normal(seconds * rate))  # falls by 6 dB an octave
    sound -= np.convolve(sound, np.ones(400) / 400, "same")
    sound *= 0.1 / sound.std()
    own = pink_noise(len(sound), rate, generator) if pink else generator.standard_normal(len(sound))
    noisy = sound + own * 0.1 * 10 ** (-15 / 20)
    clean, wanted = (log_mel_of(wave.astype(np.float32)) for wave in (sound, noisy))
    found = with_levels(clean[None], changes(noise=-15.0, pink=pink))[0, :, : clean.shape[1]]
    mean_db = [10 * (10 ** (10 * each[:, 20:-20])).mean(1).log10() for each in (found, wanted)]
    assert (mean_db[0] - mean_db[1]).abs().max() < 0.7
    assert (mean_db[0] - mean_db[1]).mean().abs() < 0.15
    raised = 10 * (10 ** (10 * clean[:, 20:-20])).mean(1).log10()
    assert (mean_db[0] - raised).max() > (2 if pink else 5)  # where the sound is soft


def test_noise_fills_what_was_silent_but_not_a_silent_clip():
    log_mels = torch.full((2, 280, 64), SILENCE)
    log_mels[0, :, :32] = -0.2
    found = with_levels(log_mels, changes(2, noise=-20.0))
    assert (found[1] == SILENCE).all()
    # white: half of the frames are silent, so the mean is 3 dB below -20 dB
    close(found[0, :64, 32:], torch.full((64, 32), -0.43), atol=2e-3)
    power = 10**-2 + 10**-4.3
    close(found[0, :64, :32], torch.full((64, 32), 0.1 * np.log10(power)), atol=1e-4)


def test_the_level_of_noise_does_not_count_padding():
    log_mels = torch.full((2, 280, 320), -0.2)
    found = with_levels(log_mels, changes(2, noise=-10.0), frames=[320, 40])
    close(found[1, :, :40], found[0, :, :40], atol=1e-5)


def test_frames_that_are_not_finite_are_not_hidden():
    log_mels = torch.full((1, 280, 64), -0.2)
    log_mels[0, 3, 5] = torch.nan
    found = with_levels(log_mels, changes(gain=3.0))
    assert found[0, 3, 5].isnan()
    assert found.isnan().any(dim=2).sum() == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_levels_are_drawn_last_and_not_at_all_without_a_range(layout):
    frames, states = np.array([900, 1249, 40]), []
    found = []
    for more in ({}, LEVELS, LEVELS):
        generator, config = np.random.default_rng(3), AugmentConfig(pitch_shift=(-3, 3), **more)
        found.append(augment.draw(generator, frames, config=config, layout=layout))
        states.append(generator.random())
    plain, changed, again = found
    require_same(plain, changed)
    np.testing.assert_array_equal(plain.pitch, changed.pitch)
    assert plain.levels is None
    assert states[0] != states[1] == states[2]
    for name, values in vars(changed.levels).items():
        np.testing.assert_array_equal(values, getattr(again.levels, name))
        np.testing.assert_array_equal(values[1:], getattr(changed[1:].levels, name))
    crops = augment.Resampling.of(plain, first=np.zeros(3, int), frames=frames)
    patches = uniform(3, plain.starts.shape[1], 1, 64, 32)
    assert augment.change_levels(patches, crops, config=SpectrogramConfig()) is patches


@pytest.mark.parametrize("field", LEVELS)
def test_each_change_is_drawn_alike_whether_others_are_or_not(field):
    config = replace(LOUD, **{field: getattr(AugmentConfig(), field)})
    one, other = (drawn_from(0, [900] * 50, config=each).levels for each in (LOUD, config))
    names = dict(zip(LEVELS, ("gain_db", "curve_db", "cutoff_hz", "noise_db"), strict=True))
    neutral = {"gain_db": 0, "curve_db": 0, "cutoff_hz": np.inf, "noise_db": -np.inf}
    for other_field, name in names.items():
        expected = neutral[name] if other_field == field else getattr(one, name)
        assert (getattr(other, name) == expected).all()
        assert not (getattr(one, name) == neutral[name]).all()


def test_levels_fill_their_ranges_and_a_quarter_of_clips_is_filtered_or_noisy():
    levels = drawn_from(0, np.full(4000, 900), config=LOUD).levels
    cutoff = levels.cutoff_hz[np.isfinite(levels.cutoff_hz)]
    noise = levels.noise_db[np.isfinite(levels.noise_db)]
    for values, low, high in (
        (levels.gain_db, -20, 6),
        (levels.curve_db, -6, 6),
        (np.log(cutoff), np.log(2000), np.log(9000)),
        (noise, -40, -10),
    ):
        share = (values - low) / (high - low)
        assert 0 <= share.min() < 0.01
        assert 0.99 < share.max() <= 1
        assert share.mean() == pytest.approx(0.5, abs=0.03)
    for chosen, share in ((cutoff, 0.25), (noise, 0.25)):
        assert len(chosen) / 4000 == pytest.approx(share, abs=0.02)
    noisy = np.isfinite(levels.noise_db)
    assert (noisy & np.isfinite(levels.cutoff_hz)).mean() == pytest.approx(1 / 16, abs=0.012)
    assert levels.pink[noisy].mean() == pytest.approx(0.5, abs=0.05)
    assert abs(np.corrcoef(levels.curve_db.T) - np.eye(4)).max() < 0.05


def test_levels_of_two_clips_of_a_pair_are_their_own():
    drawn = drawn_from(0, [900] * 40, config=replace(LOUD, pitch_shift=(-2, 2)), pairs=True)
    assert (drawn.pitch[::2] == drawn.pitch[1::2]).all()
    assert (drawn.levels.gain_db[::2] != drawn.levels.gain_db[1::2]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_levels_of_a_clip_do_not_depend_on_other_clips_or_on_the_slice(layout):
    frames, bands = [900, 1249, 40, 700, 400, 1000], 64
    log_mels = uniform(6, 1249, bands) - 0.9
    drawn = drawn_from(2, frames, layout=layout, config=LOUD)
    assert 0 < np.isfinite(drawn.levels.noise_db).sum() < 6

    def heard(part: slice, table: torch.Tensor) -> torch.Tensor:
        own = drawn[part]
        first = np.arange(len(own.scale)) * 1249
        crops = augment.Resampling.of(own, first=first, frames=np.array(frames)[part])
        clean = augment.resample(crops, table[part].flatten(0, 1), silence=SILENCE)
        return augment.change_levels(clean, crops, config=SpectrogramConfig())

    whole = heard(slice(0, 6), log_mels)
    others = log_mels.clone()
    others[:2], others[4:] = -0.1, -0.7
    assert torch.equal(heard(slice(0, 6), others)[2:4], whole[2:4])
    for part in (slice(0, 2), slice(2, 3), slice(3, 6)):
        assert torch.equal(heard(part, log_mels), whole[part])
