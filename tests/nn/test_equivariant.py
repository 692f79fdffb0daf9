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

TINY = {
    "spectrogram": {"n_pitch_bands": 216},
    "model": {
        "channels": [4, 4, 4, 4, 8],
        "embed_dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "mlp_dim": 32,
        "estimators": ["tonic", "tempo"],
    },
    "embed": {"summaries": ["tempo", "degrees", "harmony", "metre", "tonic"]},
}
CONFIG = update(Config(), TINY)
SIZES = {"tonic": 36, "degrees": 72, "tempo": 64, "metre": 128}
TEMPO = {
    "model": {"estimators": ["tempo"]},
    "pretrain": {
        "stages": "two",
        "objectives": ["tempo"],
        "n_patches": 8,
        "precision": "32",
        "validation_fraction": 0.2,
    },
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def estimator(kind: type, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().eval()


# --- what moves with a shift, and what stays ---


@pytest.mark.parametrize("places", [1, 3, 17, 35])
@torch.no_grad()
def test_a_transposed_chroma_has_its_tonic_as_much_higher_and_the_same_degrees(places):
    tonic, chroma = estimator(TonicEstimator), noise(4, 2, OCTAVE)
    higher = chroma.roll(places, -1)
    shares, moved = tonic(chroma.flatten(1)), tonic(higher.flatten(1))
    torch.testing.assert_close(moved, shares.roll(places, -1))
    torch.testing.assert_close(
        tonic.align(higher.flatten(1), moved), tonic.align(chroma.flatten(1), shares)
    )
    assert (shares - shares.mean()).abs().max() > 1e-4  # it does say something


@torch.no_grad()
def test_a_tonic_does_not_depend_on_the_level_and_silence_has_none():
    tonic, chroma = estimator(TonicEstimator), noise(3, 2 * OCTAVE)
    torch.testing.assert_close(tonic(chroma * 0.2), tonic(chroma))
    torch.testing.assert_close(
        tonic(torch.zeros(1, 2 * OCTAVE)), torch.full((1, OCTAVE), 1 / OCTAVE)
    )


@torch.no_grad()
def test_degrees_begin_with_the_tonic_and_metre_has_the_beat_in_the_middle():
    chroma, pulse = noise(1, 2 * OCTAVE), noise(1, 2 * LAGS)
    degrees = estimator(TonicEstimator).align(chroma, torch.eye(OCTAVE)[None, 7])
    torch.testing.assert_close(
        degrees.unflatten(1, (2, OCTAVE)), chroma.unflatten(1, (2, OCTAVE)).roll(-7, -1)
    )
    metre = (
        estimator(TempoEstimator).align(pulse, torch.eye(LAGS)[None, 40]).unflatten(1, (2, LAGS))
    )
    both = pulse.unflatten(1, (2, LAGS))
    assert torch.equal(metre[..., LAGS // 2], both[..., 40])
    torch.testing.assert_close(metre[..., :55], both[..., 8:63])
    assert not metre[..., 56:].any()  # beyond the longest lag nothing is known


@torch.no_grad()
def test_a_pulse_that_moves_within_its_axis_moves_the_tempo():
    tempo, pulse = estimator(TempoEstimator), torch.zeros(1, 2, LAGS)
    pulse[..., 24:40] = noise(2, 16)
    first = tempo.layers[4](tempo.layers[:4](pulse))[0, 0]
    moved = tempo.layers[4](tempo.layers[:4](pulse.roll(5, -1)))[0, 0]
    edge = tempo.layers[4](tempo.layers[:4](torch.zeros(1, 2, LAGS)))[
        0, 0
    ]  # what an empty pulse earns, which differs near the ends
    torch.testing.assert_close((moved - edge)[5:], (first - edge)[:-5], atol=1e-5, rtol=0)


# --- what an estimator is asked ---


def test_stretched_clicks_have_their_pulse_at_lags_as_much_longer():
    patches = torch.full((1, 30, 280, 32), -0.9)
    frames = patches.transpose(1, 2).flatten(2)  # (1, M, T)
    frames[:, :, ::20] = -0.1
    rises = onset_strength(frames.unflatten(-1, (30, 32)).transpose(1, 2), CONFIG)
    lags = np.geomspace(*LAGS_S, LAGS) / CONFIG.spectrogram.frame_s
    for factor in STRETCHES:
        longer = stretch(rises, factor)
        assert longer.shape[-1] == round(960 * factor)
        found = tempogram_of(longer, torch.ones_like(longer[:, :1]), CONFIG)[0, :LAGS]
        near = np.abs(np.log(lags / (20 * factor))) < 0.4
        best = lags[near][found[torch.from_numpy(near)].argmax()]
        assert best == pytest.approx(20 * factor, rel=0.06)


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
    there = torch.ones(3, 12, dtype=torch.bool)
    there[1, 7:], there[2, 1:] = False, False
    other = torch.where(there[..., None, None], patches, -torch.ones(()))
    found = asked.consistency_loss(other, there, CONFIG)
    longer = torch.nn.functional.pad(other, (0, 0, 0, 0, 0, 5), value=-1.0)
    torch.testing.assert_close(
        asked.consistency_loss(longer, torch.nn.functional.pad(there, (0, 5)), CONFIG), found
    )
    found.backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in asked.parameters()
    )


def test_training_makes_an_estimator_agree_with_itself_on_chords_it_never_heard():
    """Clips of two halves with different notes of one scale each, in any key: after training they name one tonic, which moves with the key."""
    tonic, generator = estimator(TonicEstimator), torch.Generator().manual_seed(0)
    scale = torch.tensor([0, 2, 4, 5, 7, 9, 11]) * 3

    def halves(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        keys = torch.randint(12, (count,), generator=generator) * 3
        found = []
        for _ in range(2):
            weights = 0.2 + torch.rand(count, 7, generator=generator)
            plain = torch.zeros(count, OCTAVE).index_copy(1, scale, weights)
            places = (torch.arange(OCTAVE) - keys[:, None]) % OCTAVE
            mean = plain.gather(1, places)
            found.append(torch.cat([mean, mean / 2], dim=1))
        return found[0], found[1], keys

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
    assert (
        places == places.mode().values
    ).float().mean() > 0.9  # its own choice, the same in every key


class Peak(torch.nn.Module):
    """What a perfect estimator says of a pulse (B, 2, K): its highest lag between 0.4 and 1.2 s, (B, 1, K) logits."""

    def forward(self, pulse: torch.Tensor) -> torch.Tensor:
        lags = np.geomspace(*LAGS_S, LAGS)
        inside = torch.from_numpy((lags > 0.4) & (lags < 1.2))
        return 30 * pulse[:, :1].masked_fill(~inside, -1.0)


def clicks(period: int, frames: int = 960) -> torch.Tensor:
    """Patches (1, N, M, W) with an onset every so many frames."""
    log_mel = torch.full((1, 280, frames), -0.9)
    log_mel[:, :, ::period] = -0.1
    return log_mel.unflatten(-1, (-1, 32)).movedim(2, 1)


@torch.no_grad()
def test_a_perfect_tempo_disagrees_least_where_stretches_are_what_they_are(monkeypatch):
    tempo, patches = estimator(TempoEstimator), clicks(32)
    tempo.layers = Peak()
    there = torch.ones(1, 30, dtype=torch.bool)
    right = float(tempo.consistency_loss(patches, there, CONFIG))
    plain = equivariant.shift_matrix
    monkeypatch.setattr(equivariant, "shift_matrix", lambda bins, *, like: plain(-bins, like=like))
    assert right < float(tempo.consistency_loss(patches, there, CONFIG)) - 0.3


@torch.no_grad()
def test_a_tempo_that_is_the_same_for_all_music_disagrees_more_than_one_that_differs():
    tempo, there = estimator(TempoEstimator), torch.ones(1, 30, dtype=torch.bool)
    tempo.layers = Peak()
    alone = float(tempo.consistency_loss(clicks(32), there, CONFIG))
    elsewhere_differs = float(
        tempo.consistency_loss(
            clicks(32), there, CONFIG, lambda mean: torch.full_like(mean, 1 / LAGS)
        )
    )
    assert elsewhere_differs < alone - 0.1


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
        float(tonic.consistency_loss(torch.cat([low, second], dim=1), there, CONFIG))
        for second in (low, high)
    )
    said = tonic(DESCRIPTORS["harmony"].values(low, there[:, :4], CONFIG))
    assert alike == pytest.approx(float(cross_entropy(said, said)), abs=1e-5)
    assert other > alike + 0.5


# --- in an embedding ---


def test_estimates_stand_in_an_embedding_in_the_order_asked():
    model = Patchifier(CONFIG, seed=1).eval()
    patches, there = noise(2, 6, 280, 32) - 1, torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad():
        found = dict(
            zip(
                CONFIG.embed.summaries,
                summarise(CONFIG.embed.summaries, model.estimators, patches, there, CONFIG),
                strict=True,
            )
        )
    assert {name: found[name].shape[1] for name in ESTIMATES} == SIZES
    harmony = DESCRIPTORS["harmony"].values(patches.double(), there, CONFIG)
    torch.testing.assert_close(found["harmony"], harmony)
    torch.testing.assert_close(found["tonic"].square().sum(1), torch.ones(2))
    tonic = model.estimators["tonic"]
    torch.testing.assert_close(
        found["degrees"], tonic.align(harmony.float(), found["tonic"].square())
    )
    embedder = Embedder(model, CONFIG)
    vector = embedder.embed_log_mels([noise(280, 6 * 32) - 1])[0]
    assert len(vector) == embedder.size == 32 + 64 + 72 + 72 + 128 + 36
    assert list(embedder.slices) == ["layers", *CONFIG.embed.summaries]
    assert [part.stop - part.start for part in embedder.slices.values()] == [
        32,
        64,
        72,
        72,
        128,
        36,
    ]
    assert embedder.slices["tonic"].stop == embedder.size
    window = (noise(280, 6 * 32) - 1).unflatten(1, (6, 32)).transpose(0, 1)[None]
    with torch.no_grad():
        (tonic_shares,) = summarise(["tonic"], model.estimators, window, there[:1], CONFIG)
    np.testing.assert_allclose(vector[embedder.slices["tonic"]], tonic_shares[0], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"estimators": ["tempo"]}},
            r"embed\.summaries holds 'degrees', but model\.estimators is \['tempo'\]: add 'tonic'",
        ),
        (
            {"spectrogram": {"n_pitch_bands": 24}, "embed": {"summaries": ["degrees"]}},
            r"embed\.summaries holds 'degrees', which needs an octave of pitch bands or more.* 24, not 36",
        ),
        (
            {"model": {"estimators": ["key"]}},
            r"model\.estimators\[0\] is 'key'|model\.estimators.*'key'",
        ),
        (
            {"model": {"estimators": ["tempo", "tonic", "tempo"]}},
            r"model\.estimators is \['tempo', 'tonic', 'tempo'\], expected some .* each once",
        ),
        (
            {
                "spectrogram": {"n_pitch_bands": 0},
            },
            "'tonic', which needs pitch bands",
        ),
        (
            {
                "model": {"channels": [8], "estimators": ["tempo"]},
                "spectrogram": {"n_mels": 66},
                "embed": {"summaries": ["metre"]},
            },
            r"'metre' in embed\.summaries, made from 'pulse' needs mel bands in 4 equal groups, but there are 66",
        ),
    ],
)
def test_estimates_that_cannot_be_are_refused(changes, message):

    def made() -> Embedder:
        config = update(CONFIG, changes)
        return Embedder(Patchifier(config), config)

    with pytest.raises(RequestError, match=message):
        made()


def test_an_estimator_that_is_not_there_cannot_be_trained():
    with pytest.raises(
        RequestError,
        match=r"pretrain\.objectives holds 'tempo', but model\.estimators is \[\]: add 'tempo'",
    ):
        require_targets(update(Config(), {"pretrain": {"objectives": ["pixels", "tempo"]}}))


def test_an_estimator_that_nothing_trains_is_refused_before_training(tmp_path):
    with pytest.raises(
        RequestError, match=r"model\.estimators holds 'tonic', which nothing trains"
    ):
        initial_model(update(CONFIG, {"pretrain": {"objectives": ["pixels", "tempo"]}}), None)
    config = update(CONFIG, {"pretrain": {"objectives": ["pixels", "tempo", "tonic"]}})
    trained = initial_model(config, None)
    with torch.no_grad():
        for value in trained.estimators.parameters():
            value += 1
    checkpoint.save(tmp_path / "model", checkpoint.Checkpoint(trained, config))
    found = initial_model(CONFIG, tmp_path / "model")  # they were trained elsewhere, and come along
    assert all(
        torch.equal(value, trained.estimators.state_dict()[name])
        for name, value in found.estimators.state_dict().items()
    )
    alone = update(config, {"pretrain": {"stages": "one"}})
    with pytest.raises(
        RequestError,
        match=r"model\.estimators holds 'tonic', which nothing trains: add it to pretrain\.objectives of stage II",
    ):
        initial_model(alone, None)


# --- training beside a model that is there ---


def test_estimators_alone_are_trained_and_the_rest_keeps_its_bits(small_cache, tmp_path):
    plain = update(Config(), {"model": TINY["model"] | {"estimators": []}})
    checkpoint.save(tmp_path / "plain", checkpoint.Checkpoint(Patchifier(plain, seed=3), plain))
    config = update(
        plain,
        TEMPO | {"pretrain": TEMPO["pretrain"] | {"stage_two": {"steps": 3, "batch_size": 4}}},
    )
    begun = initial_model(config, tmp_path / "plain").state_dict()
    made = checkpoint.load(
        pretrain(
            small_cache, tmp_path / "run", config=config, init=tmp_path / "plain", device="cpu"
        )
    ).model.state_dict()
    assert set(made) == set(begun)
    for name, value in made.items():
        assert torch.equal(value, begun[name]) != name.startswith("estimators."), name
    assert (
        "tempo_error"
        in (tmp_path / "run" / "stage-two" / "validation.csv").read_text().splitlines()[0]
    )
    with pytest.raises(RequestError, match=r"differs from the config in model\.estimators"):
        initial_model(plain, tmp_path / "run" / "model")
