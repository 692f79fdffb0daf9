"""Beyond the paper's network: a bottleneck that sees visible patches alone, a predictor that fills in the others, and pitch modules."""

import numpy as np
import pytest
import torch
from torch import nn

from patchifier.config import Config, ModelConfig, RequestError, update
from patchifier.nn.masking import indices_of
from patchifier.nn.model import Patchifier
from patchifier.nn.pitch import PitchModules
from patchifier.seeding import random_masking
from tests.builders import TINY, close, tiny, uniform

SIZES = TINY | {"channels": [4, 4, 4, 8, 8], "n_layers": 3, "dropout": 0.0}
PITCH = {"n_pitch_bands": 216}


def made(**changes) -> Patchifier:
    """A model whose positions show and whose batch norms have seen something."""
    beyond = {"n_predictor_layers": 2, "norm_first": True, "max_patches": 10}
    model = Patchifier(tiny(**(SIZES | beyond | changes)))
    parts = [
        model.bottleneck,
        *([model.predictor] if model.config.model.n_predictor_layers else []),
    ]
    with torch.no_grad():
        for part in parts:
            part.positions.mul_(20)
            part.cls.mul_(20)
        model.train().extractor(patches(1, 32, bands=model.config.spectrogram.n_bands)[0])
    return model.eval()


def patches(B: int, N: int, *, bands: int = 64, seed: int = 0) -> torch.Tensor:
    return uniform(B, N, 1, bands, 32, seed=seed) - 0.9


def mask(*rows: str) -> torch.Tensor:
    """Where there is an x: (B, N) bool."""
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


def where(mask: torch.Tensor, one: torch.Tensor, other) -> torch.Tensor:
    """Patches of one where the mask is, of another elsewhere."""
    return torch.where(mask[:, :, None, None, None], one, other)


@torch.no_grad()
def test_visible_patches_are_known_as_by_the_bottleneck_on_a_shorter_sequence_with_their_positions():
    model, shown = made(), patches(1, 8)
    masked = mask("x.xx.x..")
    known, _ = model.predict_masked(shown, mask=masked)
    seen, bottleneck = indices_of(~masked), model.bottleneck  # 1, 4, 6, 7
    vectors = bottleneck.vector_norm(model.extractor(shown[0, seen]))
    x = torch.cat([bottleneck.cls[None], vectors])
    x += bottleneck.positions[torch.cat([torch.zeros(1, dtype=torch.int), 1 + seen])]
    x = bottleneck.norm(x[None])
    for layer in bottleneck.encoder.layers:
        x = layer(x)
    close(known[0, seen], bottleneck.last_norm(x)[0, 1:], rtol=1e-5)
    assert (known[0, indices_of(masked)] == 0).all()


@torch.no_grad()
def test_the_predictor_says_what_it_does_from_known_vectors_and_its_mask_token_alone():
    model, masked = made(), mask("x.xx.x..")
    known, filled = model.predict_masked(patches(1, 8), mask=masked)
    predictor = model.predictor
    vectors = torch.where(masked[..., None], predictor.mask_token, predictor.vector_norm(known))
    x = torch.cat([predictor.cls.expand(1, 1, -1), vectors], dim=1) + predictor.positions[:9]
    wanted = predictor.forward_layers(predictor.norm(x))[-1][:, 1:]
    close(filled, wanted, rtol=1e-5)
    assert "mask_token" not in dict(model.bottleneck.named_parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pitch", [{}, PITCH])
@torch.no_grad()
def test_masked_patches_change_nothing(training, pitch):
    model = made(**pitch).train(training)
    shown, other = (
        patches(3, 6, bands=model.config.spectrogram.n_bands, seed=seed) for seed in (0, 1)
    )
    masked = mask("x.xx..", "..x.xx", "xx.x..")

    def found(patches):
        return model.predict_masked(patches, mask=masked)

    assert all(map(torch.equal, found(shown), found(where(masked, other, shown))))
    visible = where(masked, shown, other)
    assert not torch.allclose(found(visible)[1], found(shown)[1], atol=1e-4)


@torch.no_grad()
def test_clips_with_other_numbers_of_masked_patches_and_of_padding_give_what_each_alone_does():
    model, shown = made(), patches(4, 9)
    masked = mask("xx.x.xx..", ".x.xxxx..", "xxxxx.xx.", ".x.......")
    present = mask("xxxxxxxxx", "xxxxxxx..", "xxxxxxxx.", "xx.......")
    known, filled = model.predict_masked(shown, mask=masked & present, valid=present)
    for row, count in enumerate(present.sum(1).tolist()):
        alone = model.predict_masked(shown[row, None, :count], mask=masked[row, None, :count])
        close((known[row, None, :count], filled[row, None, :count]), alone, rtol=1e-4)
    without_padding = model.predict_masked(shown, mask=masked)
    close(without_padding[1][:1], filled[:1], rtol=1e-4)
    assert (known[~(present & ~masked)] == 0).all()


@torch.no_grad()
def test_what_stands_in_padding_changes_nothing():
    model, shown, present = made(), patches(2, 7), mask("xxxxx..", "xxxxxxx")
    masked = mask("x.x....", "xx..x..")
    before, after = (
        [part[present] for part in model.predict_masked(each, mask=masked, valid=present)]
        for each in (shown, where(present, shown, torch.inf))
    )
    close(before, after)


@torch.no_grad()
def test_in_a_sequence_longer_than_trained_visible_patches_have_the_positions_of_the_whole():
    model, shown, masked = made(max_patches=4), patches(1, 9), mask("x.xx.xx.x")
    bottleneck, visible, seen = model.bottleneck, indices_of(~masked), []
    hook = bottleneck.encoder.layers[0].register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    known, _ = model.predict_masked(shown, mask=masked)
    hook.remove()
    vectors = bottleneck.vector_norm(model.extractor(shown[0, visible]))
    wanted = bottleneck.norm(vectors + bottleneck.positions_for(9)[0, visible])
    close(seen[0][0, 1:], wanted, rtol=1e-5)
    beside = torch.cat([shown, patches(1, 3, seed=2)], dim=1).expand(2, -1, -1, -1, -1)
    present, longer = mask("xxxxxxxxx...", "xxxxxxxxxxxx"), mask("x.xx.xx.x...", "x.x.x.x.x.x.")
    padded, _ = model.predict_masked(beside, mask=longer, valid=present)
    close(padded[0, :9], known[0], rtol=1e-4)
    assert known.shape == (1, 9, 16)


@torch.no_grad()
def test_without_a_mask_or_a_predictor_known_and_filled_are_the_sequence():
    for model, masked in ((made(), None), (made(n_predictor_layers=0), mask("x.x..."))):
        known, filled = model.predict_masked(patches(1, 6), mask=masked)
        assert torch.equal(known, filled)
        close(known, model.forward_encoder(patches(1, 6), mask=masked)[-1][:, 1:])


def test_both_losses_reach_every_part_but_stage_one_the_bottleneck():
    model, shown, masked = made().train(), patches(2, 6), mask("x.xx..", "..x.xx")
    model.stage_two_loss(shown, shown, None, masked).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@torch.no_grad()
def test_norm_before_ends_with_a_norm_and_after_has_none_of_its_own():
    before, after = made(), made(norm_first=False)
    last = before.forward_encoder(patches(2, 5))[-1]
    close(last.mean(-1), torch.zeros(2, 6))
    close(last.var(-1, correction=0), torch.ones(2, 6), atol=1e-3)
    assert isinstance(after.bottleneck.last_norm, nn.Identity)
    firsts = [model.bottleneck.encoder.layers[0].norm_first for model in (before, after)]
    assert firsts == [True, False]


def test_a_predictor_and_an_extractor_of_masked_patches_are_refused_together():
    both = {"model": {"n_predictor_layers": 2}, "pretrain": {"extracted_patches": "all"}}
    with pytest.raises(
        RequestError, match=r"pretrain\.extracted_patches .*model\.n_predictor_layers"
    ):
        update(Config(), both)
    with pytest.raises(RequestError, match=r"model\.n_predictor_layers is -1"):
        ModelConfig(n_predictor_layers=-1)


def pitch_features():
    """Pitch modules as a function of pitch bands alone; the mel bands before them have no effect."""
    config = tiny(**SIZES, **PITCH)
    modules = PitchModules(config).eval()
    return lambda bands: modules(
        torch.cat([uniform(len(bands), config.spectrogram.n_mels, bands.shape[-1]), bands], dim=1)
    )


@torch.no_grad()
def test_a_whole_tone_up_moves_what_pitch_modules_find_by_one_place():
    """Strides of three thirds and of two semitones; away from the ends, which see zeros beyond."""
    found_in = pitch_features()
    rows = uniform(2, 216, 32)

    def found(shift):
        return found_in(rows.roll(shift, dims=1)).view(2, 64, 36)

    assert found(0).std() > 0
    close(found(6)[..., 9:-8], found(0)[..., 8:-9], rtol=1e-6)
    assert not torch.allclose(found(5)[..., 9:-8], found(0)[..., 8:-9], atol=1e-3)


@torch.no_grad()
def test_pitch_modules_hear_an_octave_and_four_frames_as_one():
    modules = pitch_features()
    tone, music = torch.zeros(1, 216, 32), uniform(1, 216, 32)
    tone[:, 108] = 1
    difference = (modules(tone) - modules(0 * tone)).view(64, 36).abs().amax(0)
    # an octave below hears it
    assert set(difference.nonzero()[:, 0].tolist()) & {11, 12, 13}
    swapped = music.view(1, 216, 8, 4).flip(-1).reshape(1, 216, 32)
    close(modules(music), modules(swapped), rtol=1e-6)
    assert not torch.allclose(modules(music), modules(music.flip(-1)), atol=1e-3)


@torch.no_grad()
def test_mel_and_pitch_bands_each_have_a_part_in_a_vector_and_the_decoder_makes_mel_bands():
    model = made(**PITCH, channels=[4, 4, 4, 8, 256])
    shown = patches(1, 4, bands=280)
    before = model.extract(shown)
    for rows in (slice(0, 64), slice(64, 280)):
        other = shown.clone()
        other[..., rows, :] = patches(1, 4, bands=280, seed=1)[..., rows, :]
        assert (model.extract(other) - before).abs().max() > 1e-3
    for drawn in (model.reconstruct(shown, mask=mask("x..x")), model.autoencode(shown)):
        assert drawn.shape == (1, 4, 1, 64, 32)


def test_pitch_modules_do_not_grow_with_the_mel_part():
    """Weights of mel bands are those of a model without pitch bands, but for the layer to the vector."""
    wide, plain = (Patchifier(tiny(**SIZES | changes)).extractor for changes in (PITCH, {}))
    assert wide.down.state_dict().keys() == plain.down.state_dict().keys()
    assert isinstance(plain.to_vector, nn.Identity)
    assert wide.to_vector.in_features == 16 + 64 * 36


def test_around_a_stretch_all_is_masked_and_the_count_stays():
    present = np.ones((40, 25), bool)
    present[3, 20:], present[4, 2:], present[5, 1:] = False, False, False
    plain, masked = (
        random_masking(np.random.default_rng(0), present, 0.6, ends=ends) for ends in (0.0, 1.0)
    )
    assert (masked.sum(1) == plain.sum(1)).all()
    assert not (masked & ~present).any()
    firsts = set()
    for row, there in zip(masked, present, strict=True):
        visible = np.flatnonzero(there & ~row)
        assert len(visible) == 0 or (np.diff(visible) == 1).all()
        firsts.add(int(visible[0]) if len(visible) else -1)
    assert len(firsts) > 8  # it starts anywhere


def test_a_share_of_clips_is_masked_around_a_stretch_and_without_any_nothing_changes():
    present = np.ones((400, 25), bool)
    share = random_masking(np.random.default_rng(1), present, 0.6, ends=0.25)
    stretches = sum(bool((np.diff(np.flatnonzero(~row)) == 1).all()) for row in share)
    assert 70 <= stretches <= 130
    used, plain = np.random.default_rng(2), np.random.default_rng(2)
    random_masking(used, present, 0.6)
    plain.random(present.shape)
    assert used.random() == plain.random()  # no draw was made for stretches that nobody asked for
