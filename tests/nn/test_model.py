"""The network: its shape, what padding and masks may not change, and the losses."""

import copy
import importlib.util
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patchifier.config import Config, ModelConfig, SpectrogramConfig
from patchifier.nn.fast import accelerate
from patchifier.nn.masking import random_masking
from patchifier.nn.model import Decoder, FeatureExtractor, Head, Patchifier
from tests import ROOT


def model_config(**fields) -> Config:
    """The paper's config with another model."""
    return Config(model=ModelConfig(**fields))


def tiny(*, n_mels: int = 64, **changes) -> Config:
    """A model of a few thousand numbers."""
    values = {
        "channels": (4, 4, 4, 4, 8),
        "embed_dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_dim": 32,
        "max_patches": 25,
    }
    model = ModelConfig(**(values | changes))
    return Config(spectrogram=SpectrogramConfig(n_mels=n_mels), model=model)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def music(B: int, N: int, *, seed: int = 0) -> torch.Tensor:
    """Patches (B, N, 1, 64, 32) with values such as log-mels have."""
    return noise(B, N, 1, 64, 32, seed=seed).mul(0.3).sub(0.5).clamp(-1, 0.4)


def lengths_to_present(*counts: int, to: int | None = None) -> torch.Tensor:
    return torch.arange(to or max(counts)) < torch.tensor(counts)[:, None]


def masks(present: torch.Tensor, ratio: float = 0.5, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(random_masking(np.random.default_rng(seed), present.numpy(), ratio))


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def trained(config: Config, seed: int = 0) -> Patchifier:
    """A model whose batch-norm statistics and biases are not those of a new one, in evaluation mode."""
    model = Patchifier(config, seed=seed).eval()
    for number, norm in enumerate(norms(model)):
        norm.running_mean.copy_(0.2 * noise(len(norm.running_mean), seed=number))
        norm.running_var.copy_(0.5 + noise(len(norm.running_var), seed=100 + number).square())
    return model


# --- the paper's setting: shapes and sizes ---


@pytest.fixture(scope="module")
def paper() -> Patchifier:
    return Patchifier().eval()


@torch.no_grad()
def test_shapes_are_the_papers(paper):
    patches = music(2, 3)
    assert paper.extractor(patches[0]).shape == (3, 256)
    assert paper.extractor.down(patches[0]).shape == (3, 256, 2, 1)
    assert paper.decoder(torch.zeros(5, 256)).shape == (5, 1, 64, 32)
    layers = paper.forward_encoder(patches)
    assert [layer.shape for layer in layers] == [(2, 3, 256)] + 8 * [(2, 4, 256)]
    assert paper.reconstruct(patches).shape == paper.autoencode(patches).shape == patches.shape
    assert Head(256, 10)(layers[-1][:, 0]).shape == (2, 10)


def test_the_papers_model_has_at_most_ten_million_parameters(paper):
    assert paper.parameter_count() == sum(parameter.numel() for parameter in paper.parameters())
    assert 8.2e6 < paper.parameter_count() < 8.4e6 < 10e6


def test_each_part_has_as_many_parameters_as_section_4_says(paper):
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    D, channels = 256, [1, 16, 32, 64, 128, 256]
    pairs = list(itertools.pairwise(channels))
    assert (
        count(paper.extractor)
        == sum(9 * before * after + 9 * after * after + 4 * after for before, after in pairs)
        + 512 * D
        + D
    )
    layer = (
        4 * (D * D + D) + (D * 1024 + 1024) + (1024 * D + D) + 2 * 2 * D
    )  # attention, feed-forward, two norms
    assert (
        count(paper.bottleneck) == 8 * layer + 2 * D + 26 * D + 2 * D
    )  # CLS and mask token, positions, norm
    assert count(paper.align) == 2 * (D * D + D)
    pairs = [(256, 128), (128, 64), (64, 32), (32, 16)]
    for norm, each in [("none", 1), ("batch", 2)]:  # a bias, or a norm's weight and bias
        up = sum(9 * before * after + each * after for before, after in pairs)
        assert count(Decoder(model_config(decoder_norm=norm))) == D * 512 + 512 + up + 9 * 16 + 1
    assert count(Head(D, 10)) == D * D + D + 10 * D + 10
    assert count(paper.decoder) < count(paper.extractor) + count(paper.bottleneck)


@pytest.mark.parametrize("convolutions", [1, 2, 3])
def test_down_modules_cascade_3x3_convolutions_of_which_the_first_has_stride_2(convolutions):
    extractor = FeatureExtractor(model_config(n_convolutions=convolutions))
    assert len(extractor.down) == 5
    for module, filters in zip(extractor.down, (16, 32, 64, 128, 256), strict=True):
        found = [layer for layer in module if isinstance(layer, nn.Conv2d)]
        assert [layer.stride for layer in found] == [(2, 2)] + (convolutions - 1) * [(1, 1)]
        assert all(
            layer.kernel_size == (3, 3)
            and layer.padding == (1, 1)
            and layer.out_channels == filters
            for layer in found
        )
        assert [type(layer) for layer in module] == convolutions * [
            nn.Conv2d,
            nn.BatchNorm2d,
            nn.ReLU,
        ]
    assert not any("Pool" in type(module).__name__ for module in extractor.modules())


def test_no_convolution_before_a_batch_norm_has_a_bias():
    for part in (FeatureExtractor(model_config()), Decoder(model_config(decoder_norm="batch"))):
        layers = [
            module for module in part.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
        ]
        before_norm = [
            one for one, two in itertools.pairwise(layers) if isinstance(two, nn.BatchNorm2d)
        ]
        assert before_norm
        assert all(convolution.bias is None for convolution in before_norm)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_decoder_has_five_upsampling_layers_and_ends_without_a_norm(norm):
    decoder = Decoder(model_config(decoder_norm=norm))
    layers = list(decoder.up)
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == 5
    assert isinstance(layers[-1], nn.Conv2d)
    sizes = []
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda module, given: (
                sizes.append(tuple(given[0].shape[-2:])) if isinstance(module, nn.Conv2d) else None
            )
        )
    assert decoder.eval()(torch.zeros(1, 256)).shape == (1, 1, 64, 32)
    assert sizes == [(4, 2), (8, 4), (16, 8), (32, 16), (64, 32)]
    assert all(
        (layer.bias is None) == (norm == "batch")
        for layer in layers[:-1]
        if isinstance(layer, nn.Conv2d)
    )
    assert layers[-1].bias is not None
    assert len(norms(decoder)) == (4 if norm == "batch" else 0)


# --- sequences of any length, padding ---


@torch.no_grad()
def test_a_sequence_may_have_any_number_of_patches():
    model, present = trained(tiny()), lengths_to_present(*range(1, 61))
    layers = model.forward_encoder(music(60, 60), valid=present)
    assert [layer.shape for layer in layers] == [(60, 60, 16), (60, 61, 16), (60, 61, 16)]
    assert all(torch.isfinite(layer).all() for layer in layers)
    for N in range(1, 61):
        sequence = model.bottleneck(noise(2, N, 16), valid=lengths_to_present(N, (N + 1) // 2))[-1]
        assert sequence.shape == (2, 1 + N, 16)
        assert torch.isfinite(sequence).all()


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "autograd"])
@pytest.mark.parametrize("masking", [False, True], ids=["whole", "masked"])
def test_a_clip_gets_the_same_vectors_alone_and_in_any_batch(masking, gradient):
    model, chance = trained(tiny()), np.random.default_rng(0)
    for round_ in range(8):
        counts = chance.integers(1, 26, size=chance.integers(2, 7)).tolist()
        present = lengths_to_present(*counts)
        masked = masks(present, seed=round_) if masking else None
        patches = music(len(counts), max(counts), seed=round_)
        with torch.set_grad_enabled(gradient):
            together = model.forward_encoder(patches, valid=present, mask=masked)
            filled = model.reconstruct(patches, valid=present, mask=masked)
            for b, n in enumerate(counts):
                one = None if masked is None else masked[b : b + 1, :n]
                alone = model.forward_encoder(patches[b : b + 1, :n], mask=one)
                torch.testing.assert_close(together[0][b, :n], alone[0][0], atol=1e-5, rtol=0)
                for batched, single in zip(together[1:], alone[1:], strict=True):
                    torch.testing.assert_close(batched[b, : 1 + n], single[0], atol=1e-5, rtol=0)
                torch.testing.assert_close(
                    filled[b, :n],
                    model.reconstruct(patches[b : b + 1, :n], mask=one)[0],
                    atol=1e-5,
                    rtol=0,
                )


@torch.no_grad()
def test_a_clip_gets_the_same_vectors_alone_and_in_a_batch_with_one_longer_than_any_trained():
    model, patches, counts = trained(tiny()), music(3, 60), (60, 33, 5)
    together = model.forward_encoder(patches, valid=lengths_to_present(*counts))[-1]
    for b, n in enumerate(counts):
        torch.testing.assert_close(
            together[b, : 1 + n],
            model.forward_encoder(patches[b : b + 1, :n])[-1][0],
            atol=1e-5,
            rtol=0,
        )


@torch.no_grad()
def test_a_clip_gets_the_same_vectors_alone_and_in_a_batch_of_the_papers_model(paper):
    present, patches = lengths_to_present(25, 7, 1), music(3, 25)
    together = paper.forward_encoder(patches, valid=present)[-1]
    for b, n in enumerate((25, 7, 1)):
        torch.testing.assert_close(
            together[b, : 1 + n],
            paper.forward_encoder(patches[b : b + 1, :n])[-1][0],
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize("content", [0.0, -1.0, 1e4, float("nan")])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_what_stands_in_padded_patches_changes_nothing(training, content):
    present = lengths_to_present(9, 4, 1)
    masked = masks(present)
    patches, target = music(3, 9), music(3, 9, seed=1)

    def everything(content):
        model = trained(tiny(dropout=0.1)).train(training)
        padded = torch.where(present[..., None, None, None], patches, content)
        padded_target = torch.where(present[..., None, None, None], target, content)
        torch.manual_seed(0)
        layers = model.forward_encoder(padded, valid=present)
        losses = [model.stage_one_loss(padded, padded_target, present)]
        for loss_mask, extract in itertools.product((masked, present), ("visible", "all")):
            losses.append(
                model.stage_two_loss(
                    padded, padded_target, present, masked, loss_mask=loss_mask, extract=extract
                )
            )
        return [
            layers[0][present],
            *(layer[:, 1:][present] for layer in layers[1:]),
            *losses,
            *model.buffers(),
        ]

    for one, two in zip(everything(0.5), everything(content), strict=True):
        assert torch.equal(one, two)


@torch.no_grad()
def test_how_much_padding_there_is_changes_nothing():
    model, patches = trained(tiny()), music(2, 30)
    short = model.forward_encoder(patches[:, :6], valid=lengths_to_present(6, 3))
    for N in (7, 20, 25):
        long = model.forward_encoder(patches[:, :N], valid=lengths_to_present(6, 3, to=N))
        for one, two in zip(short[1:], long[1:], strict=True):
            torch.testing.assert_close(one[0], two[0, :7], atol=1e-5, rtol=0)
            torch.testing.assert_close(one[1, :4], two[1, :4], atol=1e-5, rtol=0)


def test_present_patches_do_change_the_outcome():
    model, present = trained(tiny()), lengths_to_present(5, 3)
    other = music(2, 5)
    other[1, 2] += 0.1
    assert not torch.allclose(
        model.forward_encoder(music(2, 5), valid=present)[-1][1],
        model.forward_encoder(other, valid=present)[-1][1],
        atol=1e-5,
    )


# --- masks ---


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_masked_patches_do_not_reach_the_bottleneck(training):
    present = lengths_to_present(12, 8)
    masked = masks(present, 0.6)

    def outcome(patches):
        model = trained(tiny(dropout=0.0)).train(training)
        return [*model.forward_encoder(patches, mask=masked, valid=present)[1:], *model.buffers()]

    patches = music(2, 12)
    hidden = torch.where(masked[..., None, None, None], torch.nan, patches)
    for one, two in zip(outcome(patches), outcome(hidden), strict=True):
        assert torch.equal(one, two)
    shown = patches.clone()
    shown[~masked] += 0.1
    assert not torch.allclose(outcome(patches)[1], outcome(shown)[1], atol=1e-5)


def test_extracting_masked_patches_too_changes_nothing_but_batch_statistics():
    present, patches = lengths_to_present(12, 8), music(2, 12)
    masked = masks(present, 0.6)
    model = trained(tiny())
    visible, everything = (
        model.forward_encoder(patches, mask=masked, valid=present, extract=extract)
        for extract in ("visible", "all")
    )
    for one, two in zip(visible[1:], everything[1:], strict=True):
        torch.testing.assert_close(one[:, 1:][present], two[:, 1:][present], atol=1e-5, rtol=0)
        torch.testing.assert_close(one[:, 0], two[:, 0], atol=1e-5, rtol=0)
    statistics = []
    for extract in ("visible", "all"):
        training = trained(tiny()).train()
        training.forward_encoder(patches, mask=masked, valid=present, extract=extract)
        statistics.append(torch.cat([norm.running_mean for norm in norms(training.extractor)]))
    assert not torch.allclose(*statistics, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=17, max_size=17), min_size=1, max_size=5),
    ratio=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32),
)
def test_the_number_of_masked_patches_is_exact_and_none_is_padding(rows, ratio, seed):
    present = np.array(rows)
    masked = random_masking(np.random.default_rng(seed), present, ratio)
    assert masked.shape == present.shape
    assert masked.dtype == bool
    assert not (masked & ~present).any()
    for here, n in zip(masked.sum(1), present.sum(1), strict=True):
        wanted = round(ratio * int(n))  # Python rounds halves to even, as numpy does
        assert here == (min(max(wanted, 1), n - 1) if n >= 2 else n)


@pytest.mark.parametrize(
    ("N", "ratio", "count"),
    [
        (25, 0.75, 19),
        (25, 0.9, 22),
        (25, 0.15, 4),
        (39, 0.75, 29),
        (2, 0.9, 1),
        (2, 0.01, 1),
        (1, 0.75, 1),
    ],
)
def test_the_papers_ratios_mask_these_many_patches(N, ratio, count):
    assert (
        random_masking(np.random.default_rng(0), np.ones((50, N), bool), ratio).sum(1).tolist()
        == [count] * 50
    )


def test_masks_are_uniform_over_positions_and_pairs():
    rounds, N, count = 6000, 12, 9
    masked = random_masking(np.random.default_rng(1), np.ones((rounds, N), bool), 0.75)
    share = count / N
    spread = (rounds * share * (1 - share)) ** 0.5
    assert (
        np.abs(masked.sum(0) - rounds * share).max() < 4 * spread
    )  # each position, within four standard deviations
    pairs = masked.astype(int).T @ masked
    share = count * (count - 1) / (N * (N - 1))
    spread = (rounds * share * (1 - share)) ** 0.5
    assert np.abs(pairs[~np.eye(N, dtype=bool)] - rounds * share).max() < 5 * spread
    assert len({row.tobytes() for row in masked}) > 200  # of the 220 there are


def test_a_mask_is_a_function_of_its_generator():
    present = np.ones((3, 25), bool)
    one, two, other = (
        random_masking(np.random.default_rng(seed), present, 0.5) for seed in (7, 7, 8)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


@torch.no_grad()
def test_masked_vectors_are_replaced_by_the_one_mask_token():
    bottleneck = trained(tiny(position_embedding="plain")).bottleneck
    masked = torch.tensor([[True, False, True]])
    vectors = nn.functional.layer_norm(noise(1, 3, 16), (16,))
    x = bottleneck.embed(vectors, masked)[0, 1:] - bottleneck.positions[1:4]
    torch.testing.assert_close(x[0], bottleneck.mask_token)
    torch.testing.assert_close(x[2], bottleneck.mask_token)
    torch.testing.assert_close(x[1], vectors[0, 1], atol=1e-4, rtol=1e-4)


# --- losses ---


@torch.no_grad()
def test_the_loss_of_stage_one_is_the_mean_square_over_present_patches():
    model, patches, target = trained(tiny()), music(2, 5), music(2, 5, seed=1)
    present = lengths_to_present(5, 2)
    squares = []
    for b, n in [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1)]:
        decoded = model.decoder(model.extractor(patches[b, n][None]))[0]
        squares.append((decoded - target[b, n]).square())
    loss = model.stage_one_loss(patches, target, present)
    torch.testing.assert_close(loss, torch.stack(squares).mean(), atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_the_loss_of_stage_two_is_the_mean_square_over_masked_or_all_patches(loss_on):
    model, patches, target = trained(tiny()), music(2, 5), music(2, 5, seed=1)
    present = lengths_to_present(5, 3)
    masked = torch.tensor([[True, False, True, True, False], [False, True, False, False, False]])
    counted = {
        "masked": [(0, 0), (0, 2), (0, 3), (1, 1)],
        "all": [(0, n) for n in range(5)] + [(1, n) for n in range(3)],
    }[loss_on]
    squares = []
    for b, count in [(0, 5), (1, 3)]:
        vectors = model.extractor(patches[b, :count])[None]
        sequence = model.bottleneck(vectors, mask=masked[b : b + 1, :count])[-1][0]
        decoded = model.decoder(model.align(sequence[1:]))
        squares += [(decoded[n] - target[b, n]).square() for n in range(count) if (b, n) in counted]
    loss_mask = {"masked": None, "all": present}[loss_on]
    loss = model.stage_two_loss(patches, target, present, masked, loss_mask=loss_mask)
    torch.testing.assert_close(loss, torch.stack(squares).mean(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("extract", ["visible", "all"])
def test_losses_without_padding_are_the_same_with_and_without_a_mask_of_it(extract, loss_on):
    patches, target = music(3, 8), music(3, 8, seed=1)
    present = torch.ones(3, 8, dtype=torch.bool)
    masked = masks(present, 0.6)
    losses = []
    for valid in (present, None):
        model = trained(tiny(dropout=0.0)).train()
        loss = model.stage_one_loss(patches, target, valid) + model.stage_two_loss(
            patches,
            target,
            valid,
            masked,
            extract=extract,
            loss_mask=present if loss_on == "all" else masked,
        )
        loss.backward()
        losses.append([loss, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def plain_network():
    path = ROOT / "benchmarks" / "plain.py"
    spec = importlib.util.spec_from_file_location("plain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Plain


@pytest.mark.parametrize("stage", ["one", "two", "two, masked patches skipped", "readout"])
def test_losses_and_gradients_are_those_of_the_plain_implementation(plain_network, stage):
    # statistics frozen: the fast way shows the extractor fewer patches
    model = accelerate(trained(model_config(n_layers=2)).double())
    plain = plain_network(model.config).double().eval()
    plain.load_state_dict(model.state_dict())
    patches = music(2, 25).double()
    present = torch.ones(2, 25, dtype=torch.bool)
    masked = masks(present, 0.75)
    for module in model.extractor.modules():
        if isinstance(module, nn.Conv2d):
            module.train()  # the matrices are for training
    if stage == "one":
        found, wanted = (
            model.stage_one_loss(patches, patches, present),
            plain.stage_one_loss(patches),
        )
    elif stage == "readout":
        found, wanted = (
            (part * noise(2, 256)).mean()
            for part in (model.forward_encoder(patches)[-1][:, 0], plain.readout(patches))
        )
    else:
        found = model.stage_two_loss(patches, patches, present, masked)
        wanted = plain.stage_two_loss(patches, masked, skip="skipped" in stage)
    torch.testing.assert_close(found, wanted, atol=0, rtol=1e-10)
    found.backward()
    wanted.backward()
    theirs = [parameter.grad for parameter in plain.parameters()]
    assert any(gradient is not None for gradient in theirs)
    for (name, parameter), gradient in zip(model.named_parameters(), theirs, strict=True):
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(
                parameter.grad,
                gradient,
                atol=1e-12,
                rtol=1e-8,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def test_stage_one_trains_extractor_and_decoder_and_stage_two_everything():
    patches, present = music(2, 6), lengths_to_present(6, 6)

    def touched(loss):
        model = Patchifier(tiny())
        loss(model).backward()
        return {
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }, model

    one, model = touched(lambda model: model.stage_one_loss(patches, patches, present))
    assert one == {
        name for name, _ in model.named_parameters() if name.startswith(("extractor", "decoder"))
    }
    two, model = touched(
        lambda model: model.stage_two_loss(patches, patches, present, masks(present))
    )
    assert two == {name for name, _ in model.named_parameters()}


ALTERNATIVES = {
    "the paper's shape": {},
    "plain embedding": {"position_embedding": "plain"},
    "linear alignment": {"align": "linear"},
    "mean of the map": {"map_pooling": "mean", "channels": (4, 4, 4, 4, 16)},
    "no layer to the vector": {"channels": (4, 4, 4, 6, 8), "embed_dim": 16},
    "wide decoder": {"decoder_channels": (12, 8, 8, 4, 4)},
    "decoder with batch norm": {"decoder_norm": "batch"},
    "narrow decoder": {"decoder_channels": (2, 2, 2, 2, 2)},
    "one convolution": {"n_convolutions": 1},
    "three convolutions": {"n_convolutions": 3},
    "four modules": {"channels": (4, 4, 4, 8)},
    "other patches": {"n_mels": 32, "patch_frames": 64},
    "one layer": {"n_layers": 1},
    "no dropout": {"dropout": 0.0},
}


@pytest.mark.parametrize("changes", ALTERNATIVES.values(), ids=ALTERNATIVES)
@pytest.mark.parametrize("stage", ["one", "two", "two, loss on all", "two, extracting all"])
def test_two_steps_lower_the_loss_of_every_alternative(changes, stage):
    config = tiny(**changes)
    model = Patchifier(config).train()
    patches = noise(4, 6, 1, config.spectrogram.n_mels, config.model.patch_frames).mul(0.1).sub(0.6)
    present = lengths_to_present(6, 6, 5, 2)
    masked = masks(present)
    options = {
        "loss_mask": present if "loss" in stage else masked,
        "extract": "all" if "extracting" in stage else "visible",
    }

    def loss():
        torch.manual_seed(0)
        if stage == "one":
            return model.stage_one_loss(patches, patches, present)
        return model.stage_two_loss(patches, patches, present, masked, **options)

    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = loss().item()
    for _ in range(2):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < before


# --- the embedding of the sequence ---


@torch.no_grad()
def test_cls_comes_first():
    bottleneck = trained(tiny()).bottleneck
    vectors = noise(2, 4, 16)
    one = bottleneck.embed(vectors, None)
    assert one.shape == (2, 5, 16)
    assert torch.equal(one[0, 0], one[1, 0])
    bottleneck.cls += noise(16, seed=1)
    two = bottleneck.embed(vectors, None)
    assert not torch.allclose(one[:, 0], two[:, 0], atol=1e-2)
    assert torch.equal(one[:, 1:], two[:, 1:])


@torch.no_grad()
def test_bert_embedding_puts_a_position_on_cls_then_normalises():
    bottleneck = trained(tiny()).bottleneck
    vectors, positions = noise(1, 4, 16), bottleneck.positions
    normalised = (vectors[0] - vectors[0].mean(-1, keepdim=True)) / vectors[0].std(
        -1, keepdim=True, unbiased=False
    )
    x = torch.cat([(bottleneck.cls + positions[0])[None], normalised + positions[1:5]])
    wanted = (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True, unbiased=False).add(
        1e-12
    ).sqrt()
    torch.testing.assert_close(bottleneck.embed(vectors, None)[0], wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_without_vector_norm_the_embedding_is_that_of_the_first_edition():
    bottleneck = trained(tiny(vector_norm="none")).bottleneck
    vectors, positions = noise(1, 4, 16), bottleneck.positions
    x = torch.cat([(bottleneck.cls + positions[0])[None], vectors[0] + positions[1:5]])
    torch.testing.assert_close(bottleneck.embed(vectors, None)[0], bottleneck.norm(x))


@torch.no_grad()
def test_patch_vectors_and_positions_start_at_one_scale(paper):
    vectors = paper.bottleneck.vector_norm(40 * noise(2, 25, 256))
    for scaled in (vectors, paper.bottleneck.positions, paper.bottleneck.mask_token):
        assert abs(scaled.std().item() - 1) < 0.15


@torch.no_grad()
def test_plain_embedding_adds_positions_to_patches_and_nothing_else():
    bottleneck = trained(tiny(position_embedding="plain")).train().bottleneck
    vectors = noise(1, 4, 16)
    wanted = torch.cat(
        [
            bottleneck.cls[None],
            nn.functional.layer_norm(vectors[0], (16,)) + bottleneck.positions[1:5],
        ]
    )
    torch.testing.assert_close(bottleneck.embed(vectors, None)[0], wanted)


@torch.no_grad()
def test_positions_that_were_trained_are_used_as_they_are_and_longer_sequences_interpolate_them():
    bottleneck = trained(tiny()).bottleneck
    for N in (1, 7, 25):
        assert torch.equal(bottleneck.positions_for(N), bottleneck.positions[1 : 1 + N])
    longer = bottleneck.positions_for(49)[0]  # every other one is a trained one
    torch.testing.assert_close(longer[0::2], bottleneck.positions[1:])
    torch.testing.assert_close(
        longer[1::2], (bottleneck.positions[1:-1] + bottleneck.positions[2:]) / 2
    )


@torch.no_grad()
def test_the_order_of_patches_matters():
    model, patches = trained(tiny()), music(1, 5)
    with torch.no_grad():
        model.bottleneck.positions.mul_(20)
    one, two = model.forward_encoder(patches)[-1], model.forward_encoder(patches.flip(1))[-1]
    assert not torch.allclose(one[:, 1:], two[:, 1:].flip(1), atol=1e-4)


# --- alternatives ---


def test_channels_that_end_in_128_need_no_layer_to_the_vector():
    extractor = FeatureExtractor(model_config(channels=(16, 32, 64, 96, 128)))
    assert not any(isinstance(module, nn.Linear) for module in extractor.modules())
    assert extractor(music(1, 2)[0]).shape == (2, 256)
    assert isinstance(FeatureExtractor(model_config()).to_vector, nn.Linear)


@torch.no_grad()
def test_the_vector_is_the_flattened_map_or_its_mean():
    flat = FeatureExtractor(model_config(channels=(16, 32, 64, 96, 128))).eval()
    patches = music(1, 2)[0]
    assert torch.equal(flat(patches), flat.down(patches).reshape(2, 256))
    mean = FeatureExtractor(model_config(map_pooling="mean")).eval()
    assert not any(isinstance(module, nn.Linear) for module in mean.modules())
    torch.testing.assert_close(mean(patches), mean.down(patches).reshape(2, 256, 2).mean(-1))


def test_the_decoder_mirrors_the_extractor_unless_told_its_widths():
    def widths(config):
        return [
            module.in_channels
            for module in Decoder(config).modules()
            if isinstance(module, nn.Conv2d)
        ]

    assert widths(model_config()) == [256, 128, 64, 32, 16]
    assert widths(model_config(decoder_channels=(64, 32, 16, 8, 8))) == [64, 32, 16, 8, 8]


def test_the_alignment_is_two_layers_or_one():
    assert [type(module) for module in Patchifier(tiny()).align] == [nn.Linear, nn.GELU, nn.Linear]
    assert isinstance(Patchifier(tiny(align="linear")).align, nn.Linear)


def test_stage_one_does_not_use_the_alignment():
    model, patches = trained(tiny()), music(1, 3)
    before = model.autoencode(patches)
    with torch.no_grad():
        for parameter in [*model.align.parameters(), *model.bottleneck.parameters()]:
            parameter.add_(1)
    assert torch.equal(model.autoencode(patches), before)


# --- weights ---


def test_weights_have_the_names_and_order_of_earlier_checkpoints(paper):
    decoder = [name for name in paper.state_dict() if name.startswith("decoder")]
    wanted = ["from_vector", "up.1", "up.4", "up.7", "up.10", "up.12"]
    assert decoder == [f"decoder.{name}.{kind}" for name in wanted for kind in ("weight", "bias")]
    assert [tuple(paper.state_dict()[name].shape) for name in decoder[2:4]] == [
        (128, 256, 3, 3),
        (128,),
    ]


def test_making_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    Patchifier(tiny(), seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    one = Patchifier(tiny(), seed=3).state_dict()
    torch.manual_seed(2)
    two, other = Patchifier(tiny(), seed=3).state_dict(), Patchifier(tiny(), seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    matrices = [name for name, tensor in one.items() if tensor.ndim > 1]
    assert matrices
    assert not any(torch.equal(one[name], other[name]) for name in matrices)


def test_the_bottleneck_starts_as_bert_does(paper):
    bottleneck = paper.bottleneck
    tokens = [bottleneck.positions, bottleneck.cls, bottleneck.mask_token]
    drawn = []
    for layer in bottleneck.encoder.layers:
        attention = layer.self_attn
        drawn += [
            attention.in_proj_weight,
            attention.out_proj.weight,
            layer.linear1.weight,
            layer.linear2.weight,
        ]
        for bias in (
            attention.in_proj_bias,
            attention.out_proj.bias,
            layer.linear1.bias,
            layer.linear2.bias,
        ):
            assert not bias.any()
    for parameter, std in [*((each, 0.02) for each in drawn), *((each, 1.0) for each in tokens)]:
        tolerance = (
            4 * std / (2 * parameter.numel()) ** 0.5
        )  # four standard errors of a standard deviation
        assert abs(parameter.std().item() - std) < tolerance
        assert abs(parameter.mean().item()) < 4 * std / parameter.numel() ** 0.5
    first, second = bottleneck.encoder.layers[0], bottleneck.encoder.layers[1]
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_convolutions_before_a_relu_start_as_he_proposed(paper):
    for module in paper.extractor.modules():
        if isinstance(module, nn.Conv2d):
            wanted = (2 / (9 * module.in_channels)) ** 0.5
            assert (
                abs(module.weight.std().item() / wanted - 1)
                < 4 / (2 * module.weight.numel()) ** 0.5
            )


def test_a_copied_model_gives_the_same_answers():
    model, patches = trained(tiny()), music(1, 3)
    assert torch.equal(
        copy.deepcopy(model).forward_encoder(patches)[-1], model.forward_encoder(patches)[-1]
    )
