"""HEAR's common API: every check of its validator, and what the validator does not see."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier import checkpoint, embed
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.integrations import hear
from patchifier.nn.model import Patchifier

RATE = 22_050
TINY = {"channels": [4, 4, 8, 8, 16], "embed_dim": 32, "n_layers": 2, "n_heads": 2, "mlp_dim": 64}


def network(**sections) -> tuple[Patchifier, Config]:
    config = update(Config(), {"model": TINY, **sections})
    model = Patchifier(config, seed=0)
    with torch.no_grad():
        model.bottleneck.positions.mul_(10)  # so that a wrong position shows
    return model.eval(), config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hear") / "model"
    checkpoint.save(path, Checkpoint(*network()))
    return str(path)


@pytest.fixture(scope="module")
def model(folder):
    return hear.load_model(folder)


def noise(sounds: int, seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).uniform(-1, 1, (sounds, int(seconds * RATE))).astype(np.float32)
    )


# --- what hear-validator 2021.0.6 checks; its warnings are errors here ---


def test_the_model_is_a_module_that_says_what_it_takes_and_gives(model):
    assert isinstance(model, torch.nn.Module)
    assert type(model.sample_rate) is int
    assert model.sample_rate in (16000, 22050, 32000, 44100, 48000)
    assert type(model.scene_embedding_size) is int
    assert type(model.timestamp_embedding_size) is int


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0, 0.02, 0.3, 20.5, 1 / RATE])
def test_timestamp_embeddings_are_regular_and_reach_from_start_to_end(model, seconds):
    embeddings, timestamps = hear.get_timestamp_embeddings(
        noise(2, max(seconds, 1.5 / RATE)), model
    )
    assert embeddings.dtype == torch.float32
    assert embeddings.ndim == 3
    assert timestamps.shape == embeddings.shape[:2]
    assert embeddings.shape[0] == 2
    assert embeddings.shape[2] == model.timestamp_embedding_size
    times = timestamps.numpy()
    assert times[:, 0].max() <= 1000 * 1024 / RATE
    assert (times >= 0).all()
    assert (times <= 1000 * seconds).all()
    assert (times[:, -1] > 1000 * seconds - 1000 * 1025 / RATE).all()
    gaps = np.diff(times)
    assert (gaps > 0).all()
    assert (gaps <= 50).all()
    np.testing.assert_allclose(gaps, 1000 * 1024 / RATE, atol=1e-6)


def test_scene_embeddings_have_the_size_that_is_promised(model):
    embeddings = hear.get_scene_embeddings(noise(4, 2.74), model)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (4, model.scene_embedding_size)


@pytest.mark.parametrize("pooling", ["cls", "mean", "mean+max", "mean+std"])
def test_sizes_are_true_for_every_pooling_and_choice_of_layers(folder, pooling):
    model = hear.load_model(folder, pooling=pooling, layers=[1, -1])
    assert (
        hear.get_scene_embeddings(noise(1, 1), model).shape[1]
        == model.scene_embedding_size
        == 64 * (2 if "+" in pooling else 1)
    )
    assert (
        hear.get_timestamp_embeddings(noise(1, 1), model)[0].shape[2]
        == model.timestamp_embedding_size
        == 64
    )


# --- what it does not see ---


@pytest.mark.parametrize("kind", ["noise", "silence", "constant"])
def test_embeddings_are_numbers_and_not_all_the_same(model, kind):
    audio = {
        "noise": noise(1, 2),
        "silence": torch.zeros(1, 2 * RATE),
        "constant": torch.ones(1, 2 * RATE),
    }[kind]
    scene, (moments, timestamps) = (
        hear.get_scene_embeddings(audio, model),
        hear.get_timestamp_embeddings(audio, model),
    )
    for found in (scene, moments, timestamps):
        assert found.isfinite().all()
    assert scene.std() > 0.01
    assert moments.std() > 0.01


def test_different_sounds_have_different_embeddings(model):
    audio = torch.stack([noise(1, 2)[0], torch.zeros(2 * RATE)])
    assert (hear.get_scene_embeddings(audio, model).diff(dim=0).abs().max()) > 0.01
    assert (
        hear.get_timestamp_embeddings(audio, model)[0].diff(dim=0).abs().amax((0, 2)) > 0.001
    ).all()


def test_the_same_call_gives_the_same_bits(model):
    audio = noise(3, 2)
    assert torch.equal(
        hear.get_scene_embeddings(audio, model), hear.get_scene_embeddings(audio, model)
    )
    first, second = (
        hear.get_timestamp_embeddings(audio, model),
        hear.get_timestamp_embeddings(audio, model),
    )
    assert torch.equal(first[0], second[0])


@settings(max_examples=8, deadline=None)
@given(sounds=st.integers(2, 5), seconds=st.floats(0.02, 3), seed=st.integers(0, 99))
def test_no_row_depends_on_the_others(model, sounds, seconds, seed):
    audio = noise(sounds, seconds, seed)
    scenes, (moments, _) = (
        hear.get_scene_embeddings(audio, model),
        hear.get_timestamp_embeddings(audio, model),
    )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(sounds))
    torch.testing.assert_close(
        hear.get_scene_embeddings(audio[order], model), scenes[order], atol=1e-5, rtol=0
    )
    row = slice(sounds - 1, sounds)
    torch.testing.assert_close(
        hear.get_scene_embeddings(audio[row], model), scenes[row], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        hear.get_timestamp_embeddings(audio[row], model)[0], moments[row], atol=1e-5, rtol=0
    )


def test_training_mode_that_a_caller_sets_has_no_effect(folder):
    model, audio = hear.load_model(folder), noise(2, 1.5)
    assert not any(part.training for part in model.model.modules())
    scenes, (moments, _) = (
        hear.get_scene_embeddings(audio, model),
        hear.get_timestamp_embeddings(audio, model),
    )
    means = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    model.train()
    assert torch.equal(hear.get_scene_embeddings(audio, model), scenes)
    model.train()
    assert torch.equal(hear.get_timestamp_embeddings(audio, model)[0], moments)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in means.items())


def test_timestamps_are_fractions_of_a_millisecond(model):
    _, timestamps = hear.get_timestamp_embeddings(noise(1, 2), model)
    assert timestamps.is_floating_point()
    assert (timestamps[0, 1:] % 1 != 0).any()
    assert timestamps.shape[1] == 1 + int(2 * RATE) // 1024


def test_timestamps_do_not_drift(folder):
    """A hop that is rounded to 46.4 ms would be 100 ms off after two minutes."""
    _, timestamps = hear.get_timestamp_embeddings(
        torch.zeros(1, 120 * RATE), hear.load_model(folder, layers=[0])
    )
    last = 120 * RATE // 1024
    assert timestamps.shape == (1, last + 1)
    assert math.isclose(float(timestamps[0, -1]), last * 1024 * 1000 / RATE, abs_tol=1e-6)


@pytest.mark.parametrize("at_ms", [500.0, 1000.0, 1234.5])
def test_a_timestamp_is_the_middle_of_what_its_embedding_hears(folder, at_ms):
    """A click changes the extractor's vectors of the moments around it, as far before as after: half a patch and half an FFT window."""
    model = hear.load_model(folder, layers=[0])
    still = torch.zeros(1, 2 * RATE)
    click = still.clone()
    click[0, round(at_ms / 1000 * RATE)] = 1.0
    (before, times), (after, _) = (
        hear.get_timestamp_embeddings(still, model),
        hear.get_timestamp_embeddings(click, model),
    )
    changed = times[0][(after - before)[0].abs().amax(1) > 1e-7]
    hop_ms = 1000 * 1024 / RATE
    # A frame hears a click within 1,023 samples of its middle (a Hann window is 0 at its edge), a patch's outer frames lie 15.5 hops out.
    reach_ms = 1000 * (15.5 * 512 + 1023) / RATE
    inside = times[0][(times[0] - at_ms).abs() <= reach_ms]
    assert abs(len(changed) - len(inside)) <= 2
    assert abs(float(changed[0] + changed[-1]) / 2 - at_ms) <= hop_ms / 2 + 1


def test_a_sound_played_backwards_changes_the_same_moments_mirrored(folder):
    """Half a frame of error in the stamps would show as a shift between the two directions."""
    model, samples = (
        hear.load_model(folder, layers=[0]),
        40 * 1024,
    )  # whole hops: time stamps lie on both mirrors
    still, click = torch.zeros(1, samples + 1), torch.zeros(1, samples + 1)
    click[0, 20 * 1024 + 100] = 1.0
    quiet = hear.get_timestamp_embeddings(still, model)[0]
    forwards = (hear.get_timestamp_embeddings(click, model)[0] - quiet)[0].abs().amax(1) > 1e-7
    backwards = (hear.get_timestamp_embeddings(click.flip(1), model)[0] - quiet)[0].abs().amax(
        1
    ) > 1e-7
    assert forwards.any()
    assert not forwards.all()
    assert torch.equal(forwards, backwards.flip(0))


def test_a_scene_is_the_embedding_that_everybody_gets(model, folder):
    audio = noise(2, 3.3)
    expected = embed.load(folder).embed(list(audio.numpy()), RATE)
    np.testing.assert_allclose(hear.get_scene_embeddings(audio, model).numpy(), expected, atol=1e-6)


def test_half_precision_and_gradients_are_accepted(model):
    audio = noise(1, 1)
    scene = hear.get_scene_embeddings(audio.clone().requires_grad_(), model)
    torch.testing.assert_close(
        scene, hear.get_scene_embeddings(audio.double(), model), atol=1e-6, rtol=0
    )
    assert not scene.requires_grad


def test_a_model_at_another_rate_says_so_and_has_hops_below_50_ms():
    spectrogram = {"sample_rate": 44_100, "hop_length": 1024, "n_fft": 4096}
    model = hear.Model(*network(spectrogram=spectrogram))
    assert model.sample_rate == 44_100
    _, timestamps = hear.get_timestamp_embeddings(torch.zeros(1, 44_100), model)
    assert float(timestamps.diff().max()) <= 50
    with pytest.raises(RequestError, match=r"24000 Hz.*22050"):
        hear.Model(*network(spectrogram={"sample_rate": 24_000}))


def test_a_missing_model_is_named():
    with pytest.raises(RequestError, match="nowhere"):
        hear.load_model("nowhere")


def test_an_option_that_does_not_exist_is_refused(folder):
    with pytest.raises(RequestError, match=r"embed\.poling.*pooling"):
        hear.load_model(folder, poling="cls")


@pytest.mark.parametrize(
    "audio",
    [
        torch.zeros(RATE),
        torch.zeros(1, 1, RATE),
        torch.zeros(0, RATE),
        torch.zeros(2, 0),
        torch.zeros(1, RATE, dtype=torch.int16),
        np.zeros((1, RATE)),
    ],
    ids=["one sound", "channels", "no sounds", "no samples", "integers", "an array"],
)
def test_what_is_no_batch_of_sounds_is_refused(model, audio):
    for function in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(RequestError, match=r"expected a tensor of floats \(sounds, samples\)"):
            function(audio, model)


def test_nan_is_refused(model):
    audio = noise(2, 1)
    audio[1, 7] = math.nan
    for function in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(RequestError, match="NaN"):
            function(audio, model)
        with pytest.raises(RequestError, match=r"peak at \d+.*divide"):
            function(noise(2, 1) * 32_768, model)


def test_nothing_warns(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hear.get_timestamp_embeddings(noise(2, 1.07), model)
        hear.get_scene_embeddings(noise(2, 1.07), model)
