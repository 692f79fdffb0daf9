"""Estimators of tonic and tempo: what shifts a clip shifts the answer, and what is counted from there stays."""

import math

import numpy as np
import pytest
import torch

from patchifier import checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.embed import Embedder
from patchifier.nn import equivariant
from patchifier.nn.descriptors import DESCRIPTORS, LAGS, LAGS_S, onset_strength, tempogram_of
from patchifier.nn.equivariant import (
    ESTIMATES,
    LAG_STEP,
    OCTAVE,
    STRETCHES,
    TempoEstimator,
    TonicEstimator,
    cross_entropy,
    shift_matrix,
    stretch,
    summarise,
)
from patchifier.nn.model import Patchifier
from patchifier.train.objectives import require_targets
from patchifier.train.pretrain import initial_model, pretrain
from tests import builders
from tests.builders import TINY, close
from tests.builders import uniform as noise

SIZES = {"tonic": 36, "degrees": 72, "tempo": 64, "metre": 128}
CONFIG = update(
    Config(),
    {
        "spectrogram": {"n_pitch_bands": 216},
        "model": TINY | {"n_layers": 1, "estimators": ["tonic", "tempo"]},
        "embed": {"summaries": ["tempo", "degrees", "harmony", "metre", "tonic"]},
    },
)
LAG_S = np.geomspace(*LAGS_S, LAGS)


def estimator(kind: type, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().eval()


@pytest.mark.parametrize("places", [1, 3, 17, 35])
@torch.no_grad()
def test_a_transposed_chroma_has_its_tonic_as_much_higher_and_the_same_degrees(places):
    tonic, chroma = estimator(TonicEstimator), noise(4, 2, OCTAVE)
    higher = chroma.roll(places, -1)
    shares, moved = tonic(chroma.flatten(1)), tonic(higher.flatten(1))
    close(moved, shares.roll(places, -1), rtol=1e-6)
    close(tonic.align(higher.flatten(1), moved), tonic.align(chroma.flatten(1), shares), rtol=1e-6)
    assert (shares - shares.mean()).abs().max() > 1e-4  # it does say something


@torch.no_grad()
def test_a_tonic_does_not_depend_on_the_level_and_silence_has_none():
    tonic, chroma = estimator(TonicEstimator), noise(3, 2 * OCTAVE)
    close(tonic(chroma * 0.2), tonic(chroma), rtol=1e-6)
    close(tonic(0 * chroma), torch.full((3, OCTAVE), 1 / OCTAVE), rtol=1e-6)


@torch.no_grad()
def test_degrees_begin_with_the_tonic_and_metre_has_the_beat_in_the_middle():
    chroma, pulse = noise(1, 2 * OCTAVE), noise(1, 2 * LAGS)
    degrees = estimator(TonicEstimator).align(chroma, torch.eye(OCTAVE)[None, 7]).view(2, OCTAVE)
    close(degrees, chroma.view(2, OCTAVE).roll(-7, -1))
    metre = estimator(TempoEstimator).align(pulse, torch.eye(LAGS)[None, 40]).view(2, LAGS)
    both = pulse.view(2, LAGS)
    assert torch.equal(metre[..., LAGS // 2], both[..., 40])
    close(metre[..., :55], both[..., 8:63])
    assert not metre[..., 56:].any()  # beyond the longest lag nothing is known


@torch.no_grad()
def test_a_pulse_that_moves_within_its_axis_moves_the_tempo():
    tempo, pulse = estimator(TempoEstimator), torch.zeros(1, 2, LAGS)
    pulse[..., 24:40] = noise(2, 16)

    def logits(pulse):
        return tempo.layers[4](tempo.layers[:4](pulse))[0, 0]

    edge = logits(torch.zeros(1, 2, LAGS))  # of an empty pulse, which differs near the ends
    moved = logits(pulse.roll(5, -1))
    close((moved - edge)[5:], (logits(pulse) - edge)[:-5])


def test_stretched_clicks_have_their_pulse_at_lags_as_much_longer():
    rises = onset_strength(clicks(20), CONFIG)
    lags = LAG_S / CONFIG.spectrogram.frame_s
    for factor in STRETCHES:
        longer = stretch(rises, factor)
        assert longer.shape[-1] == round(960 * factor)
        found = tempogram_of(longer, torch.ones_like(longer[:, :1]), CONFIG)[0, :LAGS].numpy()
        near = np.abs(np.log(lags / (20 * factor))) < 0.4
        assert lags[near][found[near].argmax()] == pytest.approx(20 * factor, rel=0.06)


def test_distributions_are_moved_as_far_as_lags_get_longer():
    one = torch.eye(LAGS)[None, 20]
    assert torch.equal(one @ shift_matrix(3.0, like=one), torch.eye(LAGS)[None, 23])
    half = one @ shift_matrix(-2.25, like=one)
    torch.testing.assert_close(half[0, 17:19], torch.tensor([0.25, 0.75]))
    assert float((one @ shift_matrix(50.0, like=one)).sum()) == 0
    assert math.log(2) / LAG_STEP == pytest.approx(63 * math.log(2) / math.log(15))


def test_who_is_sure_and_agrees_errs_least():
    guess, one, other = torch.full((1, 36), 1 / 36), torch.eye(36)[None, 3], torch.eye(36)[None, 4]
    assert float(cross_entropy(guess, guess)) == pytest.approx(1, abs=2e-3)
    assert 0 < float(cross_entropy(one, one)) < 0.3 < 1 < float(cross_entropy(one, other))
    assert float(cross_entropy(one, other)) == float(cross_entropy(other, one))


@pytest.mark.parametrize("kind", [TonicEstimator, TempoEstimator])
def test_padding_has_no_part_and_a_clip_of_one_patch_is_no_trouble(kind):
    asked, patches = estimator(kind), noise(3, 12, 280, 32) - 1
    there = torch.arange(12) < torch.tensor([[12], [7], [1]])
    patches[~there] = -1.0
    found = asked.consistency_loss(patches, there, CONFIG)
    longer = torch.nn.functional.pad(patches, (0, 0, 0, 0, 0, 5), value=-1.0)
    more = torch.nn.functional.pad(there, (0, 5))
    close(asked.consistency_loss(longer, more, CONFIG), found, rtol=1e-6)
    found.backward()
    assert all(parameter.grad.isfinite().all() for parameter in asked.parameters())


def test_training_makes_an_estimator_agree_with_itself_on_chords_it_never_heard():
    """Clips of two halves with different notes of one scale each, in any key: after training they name one tonic, which moves with the key."""
    tonic, generator = estimator(TonicEstimator), torch.Generator().manual_seed(0)
    scale = torch.tensor([0, 2, 4, 5, 7, 9, 11]) * 3

    def halves(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        keys = torch.randint(12, (count,), generator=generator) * 3
        places, found = (torch.arange(OCTAVE) - keys[:, None]) % OCTAVE, []
        for _ in range(2):
            weights = 0.2 + torch.rand(count, 7, generator=generator)
            mean = torch.zeros(count, OCTAVE).index_copy(1, scale, weights).gather(1, places)
            found.append(torch.cat([mean, mean / 2], dim=1))
        return *found, keys

    optimiser = torch.optim.AdamW(tonic.parameters(), lr=2e-3)
    for _ in range(120):
        one, other, _ = halves(16)
        loss = cross_entropy(tonic(one), tonic(other))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    one, other, keys = halves(200)
    with torch.no_grad():
        said, again = tonic(one).argmax(1), tonic(other).argmax(1)
    assert (said == again).float().mean() > 0.9
    places = (said - keys) % OCTAVE
    # its own choice, the same in every key
    assert (places == places.mode().values).float().mean() > 0.9


class Peak(torch.nn.Module):
    """What a perfect estimator says of a pulse (B, 2, K): its highest lag between 0.4 and 1.2 s, (B, 1, K) logits."""

    def forward(self, pulse: torch.Tensor) -> torch.Tensor:
        inside = torch.from_numpy((LAG_S > 0.4) & (LAG_S < 1.2))
        return 30 * pulse[:, :1].masked_fill(~inside, -1.0)


def clicks(period: int, frames: int = 960) -> torch.Tensor:
    """Patches (1, N, M, W) with an onset every so many frames."""
    log_mel = torch.full((1, 280, frames), -0.9)
    log_mel[:, :, ::period] = -0.1
    return log_mel.unflatten(-1, (-1, 32)).movedim(2, 1)


@torch.no_grad()
def test_a_perfect_tempo_disagrees_least_where_stretches_and_other_music_are_what_they_are(
    monkeypatch,
):
    tempo, there = estimator(TempoEstimator), torch.ones(1, 30, dtype=torch.bool)
    tempo.layers, plain = Peak(), equivariant.shift_matrix

    def error(*mean):
        return float(tempo.consistency_loss(clicks(32), there, CONFIG, *mean))

    alone = error()  # one tempo for all music
    assert error(lambda mean: torch.full_like(mean, 1 / LAGS)) < alone - 0.1
    monkeypatch.setattr(equivariant, "shift_matrix", lambda bins, *, like: plain(-bins, like=like))
    assert alone < error() - 0.3


class Loudest(torch.nn.Module):
    """What says of a chroma as it is seen (B, 2, 36) that its highest place is the tonic, (B, 1, 36) logits."""

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return 10 * seen[:, :1]


@torch.no_grad()
def test_a_tonic_is_asked_of_either_half_by_itself():
    tonic, there = estimator(TonicEstimator), torch.ones(1, 8, dtype=torch.bool)
    tonic.layers = Loudest()
    low = torch.full((1, 4, 280, 32), -0.9)
    low[:, :, 64 + 36 : 64 + 36 + 3] = -0.1
    high = low.roll(15, 2)
    alike, other = (
        float(tonic.consistency_loss(torch.cat([low, half], dim=1), there, CONFIG))
        for half in (low, high)
    )
    said = tonic(DESCRIPTORS["harmony"].values(low, there[:, :4], CONFIG))
    assert alike == pytest.approx(float(cross_entropy(said, said)), abs=1e-5)
    assert other > alike + 0.5


def test_estimates_stand_in_an_embedding_in_the_order_asked():
    model = Patchifier(CONFIG, seed=1).eval()
    patches, there = noise(2, 6, 280, 32) - 1, torch.ones(2, 6, dtype=torch.bool)
    names = CONFIG.embed.summaries

    @torch.no_grad()
    def summaries(patches):
        given_ = (model.estimators, patches, there[: len(patches)], CONFIG)
        return dict(zip(names, summarise(names, *given_), strict=True))

    found, sizes = summaries(patches), [64, 72, 72, 128, 36]
    assert {name: found[name].shape[1] for name in ESTIMATES} == SIZES
    assert [found[name].shape[1] for name in names] == sizes
    harmony = DESCRIPTORS["harmony"].values(patches.double(), there, CONFIG)
    close(found["harmony"], harmony)
    close(found["tonic"].square().sum(1), torch.ones(2))
    aligned = model.estimators["tonic"].align(harmony.float(), found["tonic"].square())
    close(found["degrees"], aligned, rtol=1e-6)
    embedder, log_mel = builders.embedder(model, CONFIG), noise(280, 6 * 32) - 1
    vector = embedder.embed_log_mels([log_mel])[0]
    assert len(vector) == embedder.size == 32 + sum(sizes)
    slices = embedder.slices
    assert list(slices) == ["layers", *names]
    assert [part.stop - part.start for part in slices.values()] == [32, *sizes]
    assert slices["tonic"].stop == embedder.size
    window = log_mel.unflatten(1, (6, 32)).transpose(0, 1)[None]
    np.testing.assert_allclose(vector[slices["tonic"]], summaries(window)["tonic"][0], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"estimators": ["tempo"]}},
            r"'degrees', but model\.estimators is \['tempo'\]: add 'tonic'",
        ),
        (
            {"spectrogram": {"n_pitch_bands": 24}, "embed": {"summaries": ["degrees"]}},
            "'degrees', which needs .* 24, not 36",
        ),
        ({"model": {"estimators": ["key"]}}, r"model\.estimators.*'key'"),
        ({"model": {"estimators": ["tempo", "tonic", "tempo"]}}, "each once"),
        ({"spectrogram": {"n_pitch_bands": 0}}, "'tonic', which needs pitch bands"),
        (
            {
                "model": {"channels": [8], "estimators": ["tempo"]},
                "spectrogram": {"n_mels": 66},
                "embed": {"summaries": ["metre"]},
            },
            "'metre' .* made from 'pulse' needs mel bands in 4 equal groups, but there are 66",
        ),
    ],
)
def test_estimates_that_cannot_be_are_refused(changes, message):

    def made() -> Embedder:
        config = update(CONFIG, changes)
        return builders.embedder(Patchifier(config), config)

    with pytest.raises(RequestError, match=message):
        made()


def test_an_estimator_that_is_not_there_cannot_be_trained():
    config = update(Config(), {"pretrain": {"objectives": ["pixels", "tempo"]}})
    with pytest.raises(RequestError, match=r"model\.estimators is \[\]: add 'tempo'"):
        require_targets(config)


def test_an_estimator_that_nothing_trains_is_refused_before_training(tmp_path):
    def config_of(*targets, **changes):
        return update(CONFIG, {"pretrain": {"objectives": ["pixels", *targets]} | changes})

    config = config_of("tempo", "tonic")
    for refused, message in {
        config_of("tempo"): "",
        config_of(
            "tempo", "tonic", stages="one"
        ): ": add it or known_tonic to pretrain.objectives of stage II",
    }.items():
        with pytest.raises(RequestError, match=f"'tonic', which nothing trains{message}"):
            initial_model(refused, None)
    trained = initial_model(config, None)
    with torch.no_grad():
        for value in trained.estimators.parameters():
            value += 1
    checkpoint.save(tmp_path / "model", checkpoint.Checkpoint(trained, config))
    # they were trained elsewhere, and come along
    found = initial_model(CONFIG, tmp_path / "model").estimators.state_dict()
    assert all(map(torch.equal, found.values(), trained.estimators.state_dict().values()))


def test_estimators_alone_are_trained_and_the_rest_keeps_its_bits(small_cache, tmp_path):
    plain = update(Config(), {"model": TINY | {"n_layers": 1}})
    start = checkpoint.Checkpoint(Patchifier(plain, seed=3), plain)
    checkpoint.save(tmp_path / "plain", start)
    pretraining = {
        "stages": "two",
        "stage_two": {"steps": 3, "batch_size": 4},
        "objectives": ["tempo"],
        "n_patches": 8,
        "precision": "32",
        "validation_fraction": 0.2,
    }
    config = update(plain, {"model": {"estimators": ["tempo"]}, "pretrain": pretraining})
    folder, out = tmp_path / "plain", tmp_path / "run"
    begun = initial_model(config, folder).state_dict()
    run = pretrain(small_cache, out, config=config, init=folder, device="cpu")
    made = checkpoint.load(run).model.state_dict()
    assert set(made) == set(begun)
    for name, value in made.items():
        assert torch.equal(value, begun[name]) != name.startswith("estimators."), name
    assert "tempo_error" in (out / "stage-two" / "validation.csv").read_text().splitlines()[0]
    with pytest.raises(RequestError, match=r"differs from the config in model\.estimators"):
        initial_model(plain, tmp_path / "run" / "model")
