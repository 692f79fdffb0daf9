"""An embedding of pooled layers and summaries, standardised by training clips."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from patchifier import checkpoint
from patchifier.cache import Cache
from patchifier.config import Config, RequestError, summary_sizes, update
from patchifier.embed import Embedder
from patchifier.evaluate.encoders import encoders
from patchifier.nn.descriptors import DESCRIPTORS
from patchifier.nn.equivariant import ESTIMATES, ESTIMATORS
from patchifier.nn.model import Patchifier
from patchifier.nn.whitening import SIMILARITY_RATIO, Whitening
from patchifier.train.pretrain import initial_model, pretrain, split
from patchifier.train.whitening import examples_of, fit_whitening
from tests import builders
from tests.builders import TINY, normal, uniform

SIZES = TINY | {"n_layers": 1}
PRETRAIN = {
    "stages": "two",
    "stage_two": {"steps": 2, "batch_size": 4},
    "n_patches": 4,
    "validation_fraction": 0.2,
    "precision": "32",
}
SUMMARIES = {"pulse": slice(32, 160), "rhythm": slice(160, 192), "colour": slice(192, 320)}
SIZE = 320
WHOLE = {"whiten": True}
FEWER = WHOLE | {"n_components": 5}
SIMILAR = WHOLE | {"n_similarity": 4}
NARROW = {"spectrogram": {"n_pitch_bands": 24}}


def config_of(**embed) -> Config:
    sections = {"model": SIZES, "pretrain": PRETRAIN}
    return update(Config(), sections | {"embed": {"summaries": list(SUMMARIES)} | embed})


def embedder_of(config: Config) -> Embedder:
    return builders.embedder(Patchifier(config), config)


def log_mel_of(frames: int, seed: int = 0) -> torch.Tensor:
    return uniform(64, frames, seed=seed) - 1


def test_after_training_embeddings_of_training_clips_have_mean_0_and_deviation_1(
    small_cache, tmp_path
):
    folder = pretrain(small_cache, tmp_path / "run", config=config_of(**WHOLE), device="cpu")
    made, data = checkpoint.load(folder), Cache(small_cache)
    embedder = builders.embedder(made.model, made.config)
    vectors = embedder.embed_log_mels(
        examples_of(data, split(data, made.config.pretrain).slices[0])
    )
    assert vectors.shape[1] == embedder.size == SIZE
    np.testing.assert_allclose(vectors.mean(0), 0, atol=1e-4)
    varies = made.model.readout.scale.numpy() != 1
    assert varies.sum() > SIZE / 2
    np.testing.assert_allclose(vectors.std(0)[varies], 1, atol=1e-3)
    # put together otherwise: as it is
    plain = builders.embedder(made.model, dataclasses.replace(made.config, embed=Config().embed))
    assert plain.size == 32
    assert np.abs(plain.embed_log_mels(examples_of(data, np.arange(3))).mean(0)).max() > 0.01


def test_pooled_layers_become_components_that_vary_alike_and_apart(small_cache, tmp_path):
    data, vectors = Cache(small_cache), []
    for name, embed in {"fewer": FEWER, "whole": WHOLE}.items():
        config = config_of(**embed)
        made = checkpoint.load(pretrain(small_cache, tmp_path / name, config=config, device="cpu"))
        embedder = builders.embedder(made.model, made.config)
        clips = split(data, config.pretrain).slices[0]
        vectors.append(embedder.embed_log_mels(examples_of(data, clips)))
        assert vectors[-1].shape[1] == embedder.size == config.embedding_size
    vectors, before = vectors
    assert vectors.shape[1] == SIZE - 32 + 5
    # summaries are as they were
    np.testing.assert_allclose(vectors[:, 5:], before[:, 32:], atol=1e-5)
    variances = np.sort(np.linalg.eigvalsh(np.cov(before[:, :32].T, bias=True)))[::-1][:5]
    np.testing.assert_allclose(
        np.cov(vectors[:, :5].T, bias=True), np.diag(variances / (variances + 1e-3)), atol=1e-2
    )


def test_training_goes_on_from_a_model_whose_embeddings_were_put_together_otherwise(tmp_path):
    plain, config = config_of(), config_of(**FEWER)
    made = Patchifier(plain, seed=3)
    checkpoint.save(tmp_path / "other", checkpoint.Checkpoint(made, plain))
    found = initial_model(config, tmp_path / "other")
    assert found.config == config
    assert found.readout is not None
    shared, state = made.state_dict(), found.state_dict()
    assert len(shared) > 20
    for name in shared:
        assert torch.equal(state[name], shared[name]), name
    other = {"mel_scale": "htk", "n_fft": 1024}
    for changes, named in [
        ({"model": {"n_layers": 2}}, r"in model\.n_layers: give"),
        ({"spectrogram": other}, r"in spectrogram\.n_fft, spectrogram\.mel_scale: give"),
    ]:
        with pytest.raises(RequestError, match=f"differs from the config {named}"):
            initial_model(update(config, changes), tmp_path / "other")


def test_summaries_stand_behind_what_is_pooled_and_are_those_of_the_window():
    config, log_mel = config_of(), log_mel_of(6 * 32)
    vector = embedder_of(config).embed_log_mels([log_mel])[0]
    patches = log_mel.unflatten(1, (6, 32)).transpose(0, 1)[None].double()
    for name, place in SUMMARIES.items():
        values = [DESCRIPTORS[name].values(patches[:, n : n + 4], None, config) for n in (0, 2)]
        np.testing.assert_allclose(vector[place], sum(values)[0] / 2, atol=1e-6)


@pytest.mark.parametrize("frames", [3 * 32 + 1, 3 * 32 + 17, 4 * 32 - 1, 4 * 32])
def test_frames_that_an_anchored_patch_repeats_are_heard_once(frames):
    config, log_mel = config_of(), log_mel_of(frames)
    log_mel[:, ::16] = 0.0  # a beat
    vector = embedder_of(config).embed_log_mels([log_mel])[0]
    as_one = log_mel[None, None].double()  # one patch as long as the sound repeats nothing
    for name, place in SUMMARIES.items():
        wanted = DESCRIPTORS[name].values(as_one, None, config)[0]
        np.testing.assert_allclose(vector[place], wanted, atol=1e-5)


def test_the_version_of_summaries_is_part_of_the_identity_of_vectors_that_hold_some(monkeypatch):
    configs = config_of(), config_of(summaries=[])
    before = [embedder_of(each).identity for each in configs]
    monkeypatch.setattr("patchifier.embed.DESCRIPTORS_VERSION", 10_000)
    after = [embedder_of(each).identity for each in configs]
    assert (before[0] != after[0], before[1] == after[1]) == (True, True)


@pytest.mark.parametrize("kept", [FEWER, SIMILAR], ids=["fewer", "similar"])
@pytest.mark.parametrize("pooling", ["mean+max", "mean", "cls"])
def test_who_pools_otherwise_gets_no_statistics_of_other_numbers(tmp_path, pooling, kept):
    config = config_of(**kept)
    model = Patchifier(config)
    model.readout.fit(normal(64, SIZE) * 7 + 3)
    checkpoint.save(tmp_path / "model", checkpoint.Checkpoint(model, config))
    bare, log_mels = config_of(pooling=pooling), [log_mel_of(5 * 32, seed=1)]
    raw = builders.embedder(initial(bare, model), bare)
    (encoder,) = encoders(f"{tmp_path}/model@{pooling}")
    assert encoder.embedder.size == raw.size
    found = encoder.embedder.embed_log_mels(log_mels)
    np.testing.assert_allclose(found, raw.embed_log_mels(log_mels), atol=1e-6)
    travelled = pickle.loads(pickle.dumps(encoder.embedder))
    np.testing.assert_array_equal(travelled.embed_log_mels(log_mels), found)


@pytest.mark.parametrize(
    "changes",
    [{"pooling": "mean+max"}, {"layers": [0]}, {"summaries": ["rhythm", "pulse", "colour"]}],
)
def test_numbers_put_together_otherwise_are_not_standardised_though_they_are_as_many(
    tmp_path, changes
):
    config, log_mels = config_of(**FEWER), [log_mel_of(5 * 32, seed=1)]
    model = Patchifier(config)
    fit_whitening(model, config, [log_mel_of(5 * 32, seed=seed) for seed in range(8)])
    fitted = builders.embedder(model, config)
    otherwise = update(config, {"embed": changes})
    raw = update(otherwise, {"embed": {"whiten": False, "n_components": 0}})
    expected = builders.embedder(initial(raw, model), raw).embed_log_mels(log_mels)
    before = fitted.embed_log_mels(log_mels)
    for name, each in {"model": config, "otherwise": otherwise}.items():
        checkpoint.save(tmp_path / name, checkpoint.Checkpoint(model, each))
    for held in (model, checkpoint.load(tmp_path / "model").model):
        other = builders.embedder(held, otherwise)
        assert (other.size, other.identity == fitted.identity) == (SIZE, False)
        found = other.embed_log_mels(log_mels)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        travelled = pickle.loads(pickle.dumps(other))
        np.testing.assert_array_equal(travelled.embed_log_mels(log_mels), found)
    kept = checkpoint.load(tmp_path / "otherwise")
    assert (kept.model.readout, kept.config.embed.whiten) == (None, False)
    found = builders.embedder(kept.model, kept.config).embed_log_mels(log_mels)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert before.shape == (1, SIZE - 32 + 5)
    # the model is as it was
    np.testing.assert_array_equal(builders.embedder(model, config).embed_log_mels(log_mels), before)


def initial(config, model):
    """Another model of these weights, without statistics."""
    bare = Patchifier(config)
    state = model.state_dict()
    bare.load_state_dict({name: state[name] for name in state if not name.startswith("readout")})
    return bare


def test_a_vector_does_not_depend_on_what_is_in_the_batch():
    embedder, log_mels = (
        embedder_of(config_of()),
        [log_mel_of(n, seed=n) for n in (3, 32, 100, 400)],
    )
    together = embedder.embed_log_mels(log_mels)
    alone = np.concatenate([embedder.embed_log_mels([each]) for each in log_mels])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.isfinite(together).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed": {"summaries": ["timbre"]}}, "holds 'timbre', expected some of harmony"),
        ({"embed": {"summaries": ["harmony"]}}, "summary 'harmony' needs pitch bands"),
        ({"embed": {"summaries": ["mode"]}} | NARROW, r"'mode' needs .* 36 or more \(it is 24\)"),
        ({"embed": {"summaries": ["pulse", "pulse"]}}, "expected each once"),
        ({"embed": {"layers": [9]}}, r"embed\.layers holds 9, expected 0 to 8"),
        ({"embed": {"pooling": "cls", "layers": [0]}}, "layer 0, the extractor, has no CLS"),
    ],
)
def test_embeddings_that_cannot_be_are_refused_before_training_and_after(
    small_cache, tmp_path, changes, message
):
    config = update(Config(), changes)
    with pytest.raises(RequestError, match=message):
        builders.embedder(Patchifier(config), config)
    if "spectrogram" not in changes:
        with pytest.raises(RequestError, match=message):
            pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
        assert not (tmp_path / "run").exists()


def test_lengths_of_an_embedding_follow_from_its_fields():
    assert config_of().raw_size == config_of(**WHOLE).embedding_size == SIZE
    assert config_of(**FEWER).embedding_size == SIZE - 32 + 5


@pytest.mark.parametrize("n_mels", [64, 128])
def test_lengths_of_summaries_are_those_that_are_computed(n_mels):
    config = update(Config(), {"spectrogram": {"n_mels": n_mels, "n_pitch_bands": 216}})
    patches = torch.zeros(1, 2, config.spectrogram.n_bands, config.model.patch_frames)
    sizes = {name: row.values(patches, None, config).shape[-1] for name, row in DESCRIPTORS.items()}
    for name in summary_sizes(n_mels):
        if name in DESCRIPTORS:
            expected = sizes[name]
        else:
            estimator, aligned = ESTIMATORS[ESTIMATES[name].by], ESTIMATES[name].aligned
            expected = sizes[estimator.descriptor] if aligned else estimator.bins
        chosen = update(config, {"embed": {"summaries": [name]}})
        assert chosen.summary_sizes == {name: expected}
    of_clips = {name for name, row in DESCRIPTORS.items() if row.of == "clip"}
    assert summary_sizes(64).keys() == {*of_clips, *ESTIMATES}


def test_components_that_cannot_be_are_refused_before_training(small_cache, tmp_path):
    config = config_of(whiten=True, n_components=40)
    with pytest.raises(RequestError, match=r"n_components is 40, but layers are pooled to 32"):
        pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RequestError, match=r"n_components is 4, which needs embed\.whiten"):
        config_of(n_components=4)


# --- the slice of similar music ---


def whitened(config: Config, examples: torch.Tensor, *head: torch.Tensor) -> np.ndarray:
    """Examples (n, E) by a whitening that was fitted to them."""
    whitening = Whitening(config)
    whitening.fit(examples, *head)
    return whitening(examples).numpy()


def correlated(count: int = 200) -> torch.Tensor:
    """Embeddings (n, E) before whitening, whose numbers depend on each other."""
    return normal(count, SIZE) @ normal(SIZE, SIZE, seed=1) + 3


def components(predicted: np.ndarray, count: int) -> np.ndarray:
    """Principal components of rows (n, K), each over the root of its deviation; in all 1."""
    centred = predicted - predicted.mean(0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    deviations = lengths[:count] / np.sqrt(len(centred))
    rule = np.sqrt(deviations / deviations.mean())  # the fourth root of variances
    return left[:, :count] * np.sqrt(len(centred)) * rule


def lengthened(vectors: np.ndarray, count: int = 4) -> np.ndarray:
    """The first numbers of vectors, whose mean square is to be 1."""
    others = vectors.shape[1] - count
    return vectors[:, :count] / np.sqrt(SIMILARITY_RATIO * others / count)


def require_same_but_for_signs(found: np.ndarray, wanted: np.ndarray, atol: float = 1e-3) -> None:
    np.testing.assert_allclose(found * np.sign((found * wanted).sum(0)), wanted, atol=atol)


@pytest.mark.parametrize(("n_components", "kept"), [(0, 32), (5, 5)])
def test_similarity_comes_first_and_leaves_the_rest_as_it_is(n_components, kept):
    plain = config_of(**WHOLE, n_components=n_components)
    config = update(plain, {"embed": {"n_similarity": 4}})
    sizes = {"similarity": 4, "layers": kept, "pulse": 128, "rhythm": 32, "colour": 128}
    slices, start = config.embedding_slices, 0
    assert list(slices) == list(sizes)
    for name, size in sizes.items():
        assert slices[name] == slice(start, start + size)
        start += size
    assert (config.embedding_size, config.raw_size) == (start, SIZE)
    examples, head = correlated(), normal(7, 16, seed=2)
    found = whitened(config, examples, head)
    assert found.shape == (200, start)
    np.testing.assert_array_equal(found[:, 4:], whitened(plain, examples))


def test_similarity_is_what_a_head_predicts_in_components_that_differ_in_weight():
    config, examples, head = config_of(**SIMILAR), correlated(), normal(7, 16, seed=2)
    whole = whitened(config, examples, head)
    found = lengthened(whole)
    squares = (whole**2).mean(0)
    assert squares[:4].sum() == pytest.approx(SIMILARITY_RATIO * squares[4:].sum(), rel=1e-3)
    wanted = components((examples[:, :16] @ head.T).double().numpy(), 4)
    require_same_but_for_signs(found, wanted)
    covariance = np.cov(found.T, bias=True)
    variances = covariance.diagonal()
    np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-3)
    assert variances.mean() == pytest.approx(1, abs=1e-4)
    assert (np.diff(variances) < -0.05).all()


def test_similarity_does_not_depend_on_the_deviation_over_time_nor_on_summaries():
    config, examples, head = config_of(**SIMILAR), correlated(), normal(7, 16, seed=2)
    others = torch.cat([examples[:, :16], 9 * uniform(200, SIZE - 16, seed=3)], dim=1)
    one, other = (whitened(config, each, head) for each in (examples, others))
    np.testing.assert_allclose(lengthened(one), lengthened(other), atol=1e-5)
    assert np.abs(one[:, 4 + 16 :] - other[:, 4 + 16 :]).mean() > 0.1


def test_without_a_head_similarity_has_components_of_the_mean_itself():
    config, log_mels = config_of(**SIMILAR), [log_mel_of(5 * 32, seed=seed) for seed in range(20)]
    model = Patchifier(config)
    fit_whitening(model, config, log_mels)
    found = builders.embedder(model, config).embed_log_mels(log_mels)
    raw = config_of(pooling="mean", summaries=[])
    means = builders.embedder(initial(raw, model), raw).embed_log_mels(log_mels)
    require_same_but_for_signs(lengthened(found), components(means.astype(float), 4), atol=1e-2)


@pytest.mark.parametrize("count", [1, 3])
def test_similarity_of_examples_that_hardly_differ_is_finite(count):
    found = whitened(config_of(**SIMILAR), correlated(1).expand(count, -1), normal(7, 16, seed=2))
    assert np.abs(lengthened(found)).max() < 1e-2


def test_similarity_that_cannot_be_is_refused(small_cache, tmp_path):
    for message, changes in {
        r"n_similarity is 4, which needs embed\.whiten": {"n_similarity": 4},
        r"n_similarity is -1, expected 0 or more": SIMILAR | {"n_similarity": -1},
    }.items():
        with pytest.raises(RequestError, match=message):
            config_of(**changes)
    features = {"objectives": ["distil"], "teacher_features": str(tmp_path)}
    for message, changes in {
        r"n_similarity is 17, but model\.embed_dim is 16": {"n_similarity": 17},
        r"n_similarity is 4, which needs embed\.layers \[-1\]": {"layers": [0, -1]},
        r"layers \[-1\] and an embed\.pooling with the mean": {"pooling": "cls"},
    }.items():
        config = update(config_of(**SIMILAR | changes), {"pretrain": features})
        with pytest.raises(RequestError, match=message):
            pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
        assert not (tmp_path / "run").exists()


def test_an_embedding_may_leave_out_the_whitening_of_its_model():
    model, plain, log_mel = Patchifier(config_of(**FEWER)), config_of(), log_mel_of(5 * 32, seed=1)
    found, expected = (
        builders.embedder(model, plain),
        builders.embedder(initial(plain, model), plain),
    )
    assert (found.size, found.identity) == (expected.size, expected.identity)
    vectors = (each.embed_log_mels([log_mel]) for each in (found, expected))
    np.testing.assert_allclose(*vectors, atol=1e-6)
