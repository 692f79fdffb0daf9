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
from patchifier.nn import pooling
from patchifier.nn.descriptors import DESCRIPTORS, size_of
from patchifier.nn.equivariant import ESTIMATES, ESTIMATORS
from patchifier.nn.model import Patchifier
from patchifier.train.pretrain import initial_model, pretrain, split
from patchifier.train.whitening import examples_of, fit_whitening

STAGE = {"steps": 2, "batch_size": 4}
TINY = {
    "model": {
        "channels": [4, 4, 4, 4, 8],
        "embed_dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "mlp_dim": 32,
    },
    "pretrain": {
        "stages": "two",
        "stage_two": STAGE,
        "n_patches": 4,
        "validation_fraction": 0.2,
        "precision": "32",
    },
    "embed": {"summaries": ["pulse", "rhythm", "colour"]},
}
SIZE = 2 * 16 + 128 + 32 + 128
WHITENED = TINY | {"embed": TINY["embed"] | {"whiten": True}}
COMPONENTS = TINY | {"embed": TINY["embed"] | {"whiten": True, "n_components": 5}}
NARROW = {"spectrogram": {"n_pitch_bands": 24}}


def test_after_training_embeddings_of_training_clips_have_mean_0_and_deviation_1(
    small_cache, tmp_path
):
    config = update(Config(), WHITENED)
    folder = pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
    made, data = checkpoint.load(folder), Cache(small_cache)
    embedder = Embedder(made.model, made.config)
    vectors = embedder.embed_log_mels(examples_of(data, split(data, config.pretrain).slices[0]))
    assert vectors.shape[1] == embedder.size == SIZE
    np.testing.assert_allclose(vectors.mean(0), 0, atol=1e-4)
    varies = made.model.readout.scale.numpy() != 1
    assert varies.sum() > SIZE / 2
    np.testing.assert_allclose(vectors.std(0)[varies], 1, atol=1e-3)
    plain = Embedder(
        made.model, dataclasses.replace(made.config, embed=Config().embed)
    )  # put together otherwise: as it is
    assert plain.size == 32
    assert np.abs(plain.embed_log_mels(examples_of(data, np.arange(3))).mean(0)).max() > 0.01


def test_pooled_layers_become_components_that_vary_alike_and_apart(small_cache, tmp_path):
    plain = WHITENED
    config = update(Config(), COMPONENTS)
    data = Cache(small_cache)
    clips = split(data, config.pretrain).slices[0]
    made, other = (
        checkpoint.load(pretrain(small_cache, tmp_path / str(n), config=each, device="cpu"))
        for n, each in enumerate((config, update(Config(), plain)))
    )
    vectors, before = (
        Embedder(each.model, each.config).embed_log_mels(examples_of(data, clips))
        for each in (made, other)
    )
    assert (
        vectors.shape[1]
        == Embedder(made.model, made.config).size
        == config.embedding_size
        == SIZE - 32 + 5
    )
    np.testing.assert_allclose(
        vectors[:, 5:], before[:, 32:], atol=1e-5
    )  # summaries are as they were
    variances = np.sort(np.linalg.eigvalsh(np.cov(before[:, :32].T, bias=True)))[::-1][:5]
    np.testing.assert_allclose(
        np.cov(vectors[:, :5].T, bias=True), np.diag(variances / (variances + 1e-3)), atol=1e-2
    )


def test_training_goes_on_from_a_model_whose_embeddings_were_put_together_otherwise(tmp_path):
    plain = update(Config(), TINY)
    made = Patchifier(plain, seed=3)
    checkpoint.save(tmp_path / "other", checkpoint.Checkpoint(made, plain))
    config = update(Config(), COMPONENTS)
    found = initial_model(config, tmp_path / "other")
    assert found.config == config
    assert found.readout is not None
    shared = made.state_dict()
    assert len(shared) > 20
    assert all(
        torch.equal(value, shared[name])
        for name, value in found.state_dict().items()
        if not name.startswith("readout")
    )
    deeper = update(config, {"model": {"n_layers": 2}})
    with pytest.raises(RequestError, match=r"differs from the config in model\.n_layers: give"):
        initial_model(deeper, tmp_path / "other")
    with pytest.raises(
        RequestError,
        match=r"differs from the config in spectrogram\.n_fft, spectrogram\.mel_scale: give",
    ):
        initial_model(
            update(config, {"spectrogram": {"mel_scale": "htk", "n_fft": 1024}}), tmp_path / "other"
        )


def test_summaries_stand_behind_what_is_pooled_and_are_those_of_the_window():
    config = update(Config(), TINY)
    embedder = Embedder(Patchifier(config), config)
    log_mel = torch.rand(64, 6 * 32, generator=torch.Generator().manual_seed(0)) - 1
    vector = embedder.embed_log_mels([log_mel])[0]
    windows = [
        log_mel[:, 32 * first : 32 * (first + 4)]
        .unflatten(1, (4, 32))
        .transpose(0, 1)[None]
        .double()
        for first in (0, 2)
    ]
    for name, place in (
        ("pulse", slice(32, 160)),
        ("rhythm", slice(160, 192)),
        ("colour", slice(192, 320)),
    ):
        expected = torch.stack(
            [DESCRIPTORS[name].values(window, None, config)[0] for window in windows]
        ).mean(0)
        np.testing.assert_allclose(vector[place], expected, atol=1e-6)


@pytest.mark.parametrize("frames", [3 * 32 + 1, 3 * 32 + 17, 4 * 32 - 1, 4 * 32])
def test_frames_that_an_anchored_patch_repeats_are_heard_once(frames):
    config = update(Config(), TINY)
    log_mel = torch.rand(64, frames, generator=torch.Generator().manual_seed(0)) - 1
    log_mel[:, ::16] = 0.0  # a beat
    vector = Embedder(Patchifier(config), config).embed_log_mels([log_mel])[0]
    as_one = log_mel[
        None, None
    ].double()  # a single patch as long as the sound, of which nothing is repeated
    for name, place in (
        ("pulse", slice(32, 160)),
        ("rhythm", slice(160, 192)),
        ("colour", slice(192, 320)),
    ):
        np.testing.assert_allclose(
            vector[place], DESCRIPTORS[name].values(as_one, None, config)[0], atol=1e-5
        )


def test_the_version_of_summaries_is_part_of_the_identity_of_vectors_that_hold_some(monkeypatch):
    config = update(Config(), TINY)
    plain = update(config, {"embed": {"summaries": []}})
    before = [Embedder(Patchifier(each), each).identity for each in (config, plain)]
    monkeypatch.setattr(pooling, "VERSION", 10_000)
    after = [Embedder(Patchifier(each), each).identity for each in (config, plain)]
    assert (before[0] != after[0], before[1] == after[1]) == (True, True)


@pytest.mark.parametrize("pooling", ["mean+max", "mean", "cls"])
def test_who_pools_otherwise_gets_no_statistics_of_other_numbers(tmp_path, pooling):
    config = update(Config(), COMPONENTS)
    model = Patchifier(config)
    model.readout.fit(torch.randn(64, SIZE, generator=torch.Generator().manual_seed(0)) * 7 + 3)
    checkpoint.save(tmp_path / "model", checkpoint.Checkpoint(model, config))
    bare = update(Config(), TINY | {"embed": TINY["embed"] | {"pooling": pooling}})
    raw = initial(bare, model)
    log_mels = [torch.rand(64, 5 * 32, generator=torch.Generator().manual_seed(1)) - 1]
    (encoder,) = encoders(f"{tmp_path}/model@{pooling}")
    assert encoder.embedder.size == Embedder(raw, bare).size
    np.testing.assert_allclose(
        encoder.embedder.embed_log_mels(log_mels),
        Embedder(raw, bare).embed_log_mels(log_mels),
        atol=1e-6,
    )
    travelled = pickle.loads(pickle.dumps(encoder.embedder))
    np.testing.assert_array_equal(
        travelled.embed_log_mels(log_mels), encoder.embedder.embed_log_mels(log_mels)
    )


@pytest.mark.parametrize(
    "changes",
    [{"pooling": "mean+max"}, {"layers": [0]}, {"summaries": ["rhythm", "pulse", "colour"]}],
)
def test_numbers_put_together_otherwise_are_not_standardised_though_they_are_as_many(
    tmp_path, changes
):
    config = update(Config(), COMPONENTS)
    model = Patchifier(config)
    log_mels = [torch.rand(64, 5 * 32, generator=torch.Generator().manual_seed(1)) - 1]
    fit_whitening(
        model,
        config,
        [
            torch.rand(64, 5 * 32, generator=torch.Generator().manual_seed(seed)) - 1
            for seed in range(8)
        ],
    )
    raw = update(config, {"embed": {"whiten": False, "n_components": 0} | changes})
    expected = Embedder(initial(raw, model), raw).embed_log_mels(log_mels)
    checkpoint.save(tmp_path / "model", checkpoint.Checkpoint(model, config))
    before = Embedder(model, config).embed_log_mels(log_mels)
    for held in (model, checkpoint.load(tmp_path / "model").model):
        other = Embedder(held, update(config, {"embed": changes}))
        assert (other.size, other.identity == Embedder(model, config).identity) == (SIZE, False)
        np.testing.assert_allclose(other.embed_log_mels(log_mels), expected, atol=1e-6)
        travelled = pickle.loads(pickle.dumps(other))
        np.testing.assert_array_equal(
            travelled.embed_log_mels(log_mels), other.embed_log_mels(log_mels)
        )
    checkpoint.save(
        tmp_path / "otherwise", checkpoint.Checkpoint(model, update(config, {"embed": changes}))
    )
    kept = checkpoint.load(tmp_path / "otherwise")
    assert (kept.model.readout, kept.config.embed.whiten) == (None, False)
    np.testing.assert_allclose(
        Embedder(kept.model, kept.config).embed_log_mels(log_mels), expected, atol=1e-6
    )
    assert before.shape == (1, SIZE - 32 + 5)
    np.testing.assert_array_equal(
        Embedder(model, config).embed_log_mels(log_mels), before
    )  # the model is as it was


def initial(config, model):
    """Another model of these weights, without statistics."""
    bare = Patchifier(config)
    bare.load_state_dict(
        {
            name: value
            for name, value in model.state_dict().items()
            if not name.startswith("readout")
        }
    )
    return bare


def test_a_vector_does_not_depend_on_what_is_in_the_batch():
    config = update(Config(), TINY)
    embedder = Embedder(Patchifier(config), config)
    log_mels = [
        torch.rand(64, frames, generator=torch.Generator().manual_seed(frames)) - 1
        for frames in (3, 32, 100, 400)
    ]
    together = embedder.embed_log_mels(log_mels)
    np.testing.assert_allclose(
        together, np.concatenate([embedder.embed_log_mels([each]) for each in log_mels]), atol=1e-5
    )
    assert np.isfinite(together).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"embed": {"summaries": ["timbre"]}},
            r"embed\.summaries holds 'timbre', expected some of harmony",
        ),
        ({"embed": {"summaries": ["harmony"]}}, "summary 'harmony' needs pitch bands"),
        (
            {"embed": {"summaries": ["mode"]}} | NARROW,
            r"'mode' needs pitch bands: set spectrogram.n_pitch_bands to 36 or more \(it is 24\)",
        ),
        (
            {"embed": {"summaries": ["pulse", "pulse"]}},
            r"embed\.summaries is \['pulse', 'pulse'\], expected each once",
        ),
        ({"embed": {"layers": [9]}}, r"embed\.layers holds 9, expected 0 to 8"),
        ({"embed": {"pooling": "cls", "layers": [0]}}, "layer 0, the extractor, has no CLS"),
    ],
)
def test_embeddings_that_cannot_be_are_refused_before_training_and_after(
    small_cache, tmp_path, changes, message
):
    config = update(Config(), changes)
    with pytest.raises(RequestError, match=message):
        Embedder(Patchifier(config), config)
    if "spectrogram" not in changes:
        with pytest.raises(RequestError, match=message):
            pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
        assert not (tmp_path / "run").exists()


def test_lengths_of_an_embedding_follow_from_its_fields():
    assert update(Config(), TINY).raw_size == update(Config(), WHITENED).embedding_size == SIZE
    assert update(Config(), COMPONENTS).embedding_size == SIZE - 32 + 5


def test_lengths_of_summaries_are_those_that_are_computed():
    for n_mels in (64, 128):
        config = update(Config(), {"spectrogram": {"n_mels": n_mels, "n_pitch_bands": 216}})
        for name in summary_sizes(n_mels):
            if name in DESCRIPTORS:
                expected = size_of(name, config)
            else:
                estimator = ESTIMATORS[ESTIMATES[name].by]
                aligned = ESTIMATES[name].aligned
                expected = size_of(estimator.descriptor, config) if aligned else estimator.bins
            chosen = update(config, {"embed": {"summaries": [name]}})
            assert chosen.summary_sizes == {name: expected}, name
    assert summary_sizes(64).keys() == {*clip_descriptors(), *ESTIMATES}


def clip_descriptors() -> list[str]:
    return [name for name, row in DESCRIPTORS.items() if row.of == "clip"]


def test_more_components_than_numbers_are_refused_before_training(small_cache, tmp_path):
    config = update(
        Config(), {**TINY, "embed": TINY["embed"] | {"whiten": True, "n_components": 40}}
    )
    with pytest.raises(
        RequestError, match=r"embed\.n_components is 40, but layers are pooled to 32"
    ):
        pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
    assert not (tmp_path / "run").exists()


def test_components_without_whitening_are_refused():
    with pytest.raises(RequestError, match=r"n_components is 4, which needs embed\.whiten"):
        update(Config(), {"embed": {"n_components": 4}})


def test_an_embedding_may_leave_out_the_whitening_of_its_model(tmp_path):
    config = update(Config(), COMPONENTS)
    log_mel = torch.rand(64, 5 * 32, generator=torch.Generator().manual_seed(1)) - 1
    model = Patchifier(config)
    plain = update(config, {"embed": {"whiten": False, "n_components": 0}})
    found, expected = Embedder(model, plain), Embedder(initial(plain, model), plain)
    assert (found.size, found.identity) == (expected.size, expected.identity)
    np.testing.assert_allclose(
        found.embed_log_mels([log_mel]), expected.embed_log_mels([log_mel]), atol=1e-6
    )
