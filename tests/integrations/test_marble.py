"""An encoder for MARBLE: its shapes, constants and train modes; padding never changes a result."""

import importlib
import sys
import textwrap

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier import checkpoint
from patchifier.checkpoint import Checkpoint
from patchifier.config import RequestError, update
from patchifier.integrations import marble
from patchifier.integrations.marble import PatchifierEncoder
from patchifier.nn.model import Patchifier
from tests import builders, small

RATE = 22_050
CONFIG = small.config(small.WIDE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("marble") / "model"
    model = Patchifier(CONFIG, seed=0)
    with torch.no_grad():
        model.bottleneck.positions.mul_(10)  # so that a wrong position shows
    checkpoint.save(path, Checkpoint(model.eval(), CONFIG))
    return str(path)


@pytest.fixture(scope="module")
def encoder(folder):
    return PatchifierEncoder(folder)


def waves(*seconds, seed=0):
    generator = np.random.default_rng(seed)
    counts = [max(1, round(one * RATE)) for one in seconds]
    return [torch.from_numpy(generator.uniform(-1, 1, n).astype(np.float32)) for n in counts]


def test_an_import_path_is_enough_and_marble_is_not_imported(folder):
    """As MARBLE makes it of a configuration file: here of the one in the module's description."""
    written = textwrap.dedent(marble.__doc__.split("::\n\n")[1].split("\n\n")[0])
    asked = yaml.safe_load(written)["encoder"]
    module, _, name = asked["class_path"].rpartition(".")
    options = asked["init_args"] | {"model_folder": folder}
    made = getattr(importlib.import_module(module), name)(**options)
    assert isinstance(made, torch.nn.Module)
    found = made(torch.stack(waves(2, 2))[:, None])
    states = torch.stack(found.hidden_states, dim=1)  # what its choice of layers does
    assert states.shape == (2, 3, 3, 32)
    assert not [one for one in sys.modules if one == "marble" or one.startswith("marble.")]


def test_constants_are_those_of_the_paper_and_then_of_the_model(encoder):
    assert PatchifierEncoder.NAME == "Patchifier"
    assert pytest.approx(22050 / 512 / 32) == PatchifierEncoder.TOKEN_RATE
    for one, expected in ((PatchifierEncoder, (22050, 256, 8)), (encoder, (22050, 32, 2))):
        assert expected == (one.SAMPLING_RATE, one.NUM_FEATURES, one.N_TRANSFORMER_LAYERS)
    assert encoder.dtype == torch.float32


@pytest.mark.parametrize("seconds", [0.02, 1.0, 18.6, 30.0])
def test_both_shapes_give_one_tensor_for_each_layer(encoder, seconds):
    audio = torch.stack(waves(seconds, seconds))
    flat, with_channel = encoder(audio), encoder(audio[:, None])
    frames = 1 + audio.shape[1] // 512
    assert len(flat.hidden_states) == 3
    for one, other in zip(flat.hidden_states, with_channel.hidden_states, strict=True):
        assert one.shape == (2, max(1, -(-frames // 32)), 32)
        assert torch.equal(one, other)
        assert one.isfinite().all()
    assert torch.equal(flat.last_hidden_state, flat.hidden_states[-1])
    if seconds > 2:
        assert flat.hidden_states[0].shape[1] == pytest.approx(seconds * encoder.TOKEN_RATE, abs=1)


@pytest.mark.parametrize("seconds", [3.0, 31.0])
def test_hidden_states_are_the_patches_that_the_embedder_gives(folder, encoder, seconds):
    (wave,) = waves(seconds)
    config = update(CONFIG, {"embed": {"layers": [0, 1, 2], "pooling": "mean"}})
    embedder = builders.embedder(checkpoint.load(folder).model, config)
    expected = embedder.embed_patches(wave.numpy(), RATE).vectors
    found = torch.cat(encoder(wave[None]).hidden_states, dim=-1)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(
    seconds=st.lists(st.floats(0.0, 24.0), min_size=2, max_size=4),
    padding=st.floats(0, 3),
    seed=st.integers(0, 99),
)
def test_padding_never_changes_a_result(encoder, seconds, padding, seed):
    rows = waves(*seconds, seed=seed)
    longest = max(map(len, rows)) + round(padding * RATE)
    batch = torch.full((len(rows), longest), 0.7)  # padding that would be heard
    for place, row in zip(batch, rows, strict=True):
        place[: len(row)] = row
    together = encoder(batch, torch.tensor([len(row) for row in rows]))
    for number, row in enumerate(rows):
        alone = encoder(row[None])
        for layer, expected in zip(together.hidden_states, alone.hidden_states, strict=True):
            there = together.valid[number]
            near = {"atol": 2e-5, "rtol": 0}
            torch.testing.assert_close(layer[number, there], expected[0], **near)
            # MARBLE's mean over time has no mask
            torch.testing.assert_close(layer[number].mean(0), expected[0].mean(0), **near)


def test_frozen_weights_stay_in_evaluation_mode_and_get_no_gradient(folder):
    encoder, audio = PatchifierEncoder(folder, "freeze"), torch.stack(waves(2, 2))
    first = encoder(audio)
    encoder.train()
    second = encoder(audio)
    assert not any(part.training for part in encoder.modules())
    assert torch.equal(first.last_hidden_state, second.last_hidden_state)
    assert not second.last_hidden_state.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_full_training_reaches_every_parameter_of_pitch_bands_and_a_predictor(tmp_path):
    wide = {"n_pitch_bands": 216}
    model = {"n_predictor_layers": 1, "norm_first": True}
    config = update(CONFIG, {"spectrogram": wide, "model": model})
    checkpoint.save(tmp_path / "model", Checkpoint(Patchifier(config), config))
    encoder = PatchifierEncoder(str(tmp_path / "model"), "full")
    encoder(torch.stack(waves(3.0, 3.0))).last_hidden_state.square().sum().backward()
    asked = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert not [name for name in asked if encoder.get_parameter(name).grad is None]
    assert any("extractor.pitch" in name for name in asked)
    assert not any("predictor" in name for name in asked)


def test_full_training_reaches_every_parameter_that_it_asks_for(folder):
    encoder = PatchifierEncoder(folder, "full")
    assert encoder.model.training
    encoder(torch.stack(waves(20, 20))).last_hidden_state.square().mean().backward()
    asked = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    slopes = {name: weight.grad for name, weight in encoder.named_parameters()}
    reached = [name for name, slope in slopes.items() if slope is not None and slope.any()]
    assert {name.split(".")[1] for name in asked} == {"extractor", "bottleneck"}
    assert asked == {name for name, slope in slopes.items() if slope is not None}
    assert len(reached) > 0.9 * len(asked)  # a bias of keys has no effect on attention
    encoder.eval()
    assert not encoder.model.training


def test_half_precision_follows_the_weights(folder):
    encoder, audio = PatchifierEncoder(folder).to(torch.bfloat16), torch.stack(waves(2, 2))
    expected = PatchifierEncoder(folder)(audio).last_hidden_state
    found = encoder(audio.to(encoder.dtype)).last_hidden_state
    assert encoder.dtype == found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((RATE,), None, "mix to mono"),
        ((1, 2, RATE), None, "mix to mono"),
        ((0, RATE), None, "expected floats"),
        ((2, 0), None, "expected floats"),
        ((2, 100), [100], "expected 2 numbers"),
        ((2, 100), [100, 0], "from 1 to 100"),
        ((2, 100), [100, 101], "from 1 to 100"),
    ],
)
def test_wrong_shapes_and_lengths_are_refused(encoder, shape, lengths, message):
    with pytest.raises(RequestError, match=message):
        encoder(torch.zeros(shape), lengths)


def test_integers_are_refused(encoder):
    with pytest.raises(RequestError, match="int16"):
        encoder(torch.zeros(1, 100, dtype=torch.int16))


def test_a_train_mode_that_does_not_exist_and_a_missing_model_are_refused(folder):
    with pytest.raises(RequestError, match=r"'lora'.*freeze or full"):
        PatchifierEncoder(folder, "lora")
    with pytest.raises(RequestError, match="nowhere"):
        PatchifierEncoder("nowhere")
