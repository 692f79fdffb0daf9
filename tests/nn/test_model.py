"""The network: its shape, what padding and masks may not change, and the losses."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patchifier.config import Config, update
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Decoder, FeatureExtractor, Head, Patchifier
from patchifier.seeding import random_masking
from tests import ROOT
from tests.builders import close, tiny
from tests.builders import normal as noise


def music(B: int, N: int, *, seed: int = 0) -> torch.Tensor:
    """Patches (B, N, 1, 64, 32) with values such as log-mels have."""
    return noise(B, N, 1, 64, 32, seed=seed).mul(0.3).sub(0.5).clamp(-1, 0.4)


def lengths_to_valid(*counts: int) -> torch.Tensor:
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def masks(valid: torch.Tensor, ratio: float = 0.5, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(random_masking(np.random.default_rng(seed), valid.numpy(), ratio))


def paper_with(**model) -> Config:
    return update(Config(), {"model": model})


def layers_of(module: nn.Module, kind: type) -> list:
    return [each for each in module.modules() if isinstance(each, kind)]


def trained(config: Config) -> Patchifier:
    """A model whose batch-norm statistics are not those of a new one, in evaluation mode."""
    model = Patchifier(config, seed=0).eval()
    for number, norm in enumerate(layers_of(model, nn.BatchNorm2d)):
        norm.running_mean.copy_(0.2 * noise(len(norm.running_mean), seed=number))
        norm.running_var.copy_(0.5 + noise(len(norm.running_var), seed=100 + number).square())
    return model


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


def test_each_part_has_as_many_parameters_as_section_4_says(paper):
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    D, pairs = 256, list(itertools.pairwise([1, 16, 32, 64, 128, 256]))
    down = sum(9 * before * after + 9 * after**2 + 4 * after for before, after in pairs)
    assert count(paper.extractor) == down + 512 * D + D
    attention, mlp, norms = 4 * (D * D + D), D * 1024 + 1024 + 1024 * D + D, 2 * 2 * D
    tokens = 2 * D + 26 * D + 2 * D  # CLS and mask token, positions, norm
    assert count(paper.bottleneck) == 8 * (attention + mlp + norms) + tokens
    assert count(paper.align) == 2 * (D * D + D)
    for norm, each in [("none", 1), ("batch", 2)]:  # a bias, or a norm's weight and bias
        up = sum(9 * before * after + each * after for after, before in pairs[1:])
        assert count(Decoder(paper_with(decoder_norm=norm))) == D * 512 + 512 + up + 9 * 16 + 1
    assert count(Head(D, 10)) == D * D + D + 10 * D + 10
    assert count(paper.decoder) < count(paper.extractor) + count(paper.bottleneck)
    assert 8.2e6 < paper.parameter_count() == count(paper) < 8.4e6


@pytest.mark.parametrize("convolutions", [1, 2, 3])
def test_down_modules_cascade_3x3_convolutions_of_which_the_first_has_stride_2(convolutions):
    extractor = FeatureExtractor(paper_with(n_convolutions=convolutions))
    assert len(extractor.down) == 5
    for module, filters in zip(extractor.down, (16, 32, 64, 128, 256), strict=True):
        kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
        assert [type(layer) for layer in module] == convolutions * kinds
        for number, layer in enumerate(layers_of(module, nn.Conv2d)):
            assert layer.stride == ((2, 2) if number == 0 else (1, 1))
            assert (layer.kernel_size, layer.padding) == ((3, 3), (1, 1))
            assert (layer.out_channels, layer.bias) == (filters, None)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_decoder_has_five_upsampling_layers_and_ends_without_a_norm(norm):
    decoder, sizes = Decoder(paper_with(decoder_norm=norm)), []
    *inner, last = layers_of(decoder, nn.Conv2d)
    assert last is decoder.up[-1]
    assert last.bias is not None
    assert all((layer.bias is None) == (norm == "batch") for layer in inner)
    for layer in (*inner, last):
        layer.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[-2:])))
    assert decoder.eval()(torch.zeros(1, 256)).shape == (1, 1, 64, 32)
    assert sizes == [(4, 2), (8, 4), (16, 8), (32, 16), (64, 32)]
    assert len(layers_of(decoder, nn.BatchNorm2d)) == (4 if norm == "batch" else 0)


@torch.no_grad()
def test_a_sequence_may_have_any_number_of_patches():
    model, valid = trained(tiny()), lengths_to_valid(*range(1, 61))
    layers = model.forward_encoder(music(60, 60), valid=valid)
    assert [layer.shape for layer in layers] == [(60, 60, 16), (60, 61, 16), (60, 61, 16)]
    assert all(torch.isfinite(layer).all() for layer in layers)
    for N in range(1, 61):
        sequence = model.bottleneck(noise(2, N, 16), valid=lengths_to_valid(N, (N + 1) // 2))[-1]
        assert sequence.shape == (2, 1 + N, 16)
        assert torch.isfinite(sequence).all()


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "autograd"])
@pytest.mark.parametrize("masking", [False, True], ids=["whole", "masked"])
def test_a_clip_gets_the_same_vectors_alone_and_in_any_batch(masking, gradient):
    model, chance = trained(tiny()), np.random.default_rng(0)
    drawn = [chance.integers(1, 26, size=chance.integers(2, 7)).tolist() for _ in range(8)]
    for seed, counts in enumerate([*drawn, [60, 33, 5]]):  # 60: longer than any trained
        valid, patches = lengths_to_valid(*counts), music(len(counts), max(counts), seed=seed)
        mask = masks(valid, seed=seed) if masking else None
        with torch.set_grad_enabled(gradient):
            together = model.forward_encoder(patches, valid=valid, mask=mask)
            filled = model.reconstruct(patches, valid=valid, mask=mask)
            for b, n in enumerate(counts):
                one, own = patches[b : b + 1, :n], None if mask is None else mask[b : b + 1, :n]
                alone = model.forward_encoder(one, mask=own)
                close(together[0][b, :n], alone[0][0])
                for batched, single in zip(together[1:], alone[1:], strict=True):
                    close(batched[b, : 1 + n], single[0])
                close(filled[b, :n], model.reconstruct(one, mask=own)[0])


LOSSES = [{"loss_on": on, "extract": of} for on in ("masked", "all") for of in ("visible", "all")]


def stage_two(model, patches, target, valid, mask, *, loss_on, extract):
    every = torch.ones_like(mask) if valid is None else valid
    loss_mask = every if loss_on == "all" else mask
    return model.stage_two_loss(patches, target, valid, mask, extract=extract, loss_mask=loss_mask)


@pytest.mark.parametrize("content", [0.0, -1.0, 1e4, float("nan")])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_what_stands_in_padded_patches_changes_nothing(training, content):
    valid = lengths_to_valid(9, 4, 1)
    mask, patches, target = masks(valid), music(3, 9), music(3, 9, seed=1)

    def everything(content):
        model = trained(tiny(dropout=0.1)).train(training)
        given = [
            torch.where(valid[..., None, None, None], each, content) for each in (patches, target)
        ]
        torch.manual_seed(0)
        first, *layers = model.forward_encoder(given[0], valid=valid)
        losses = [model.stage_one_loss(*given, valid)]
        losses += [stage_two(model, *given, valid, mask, **each) for each in LOSSES]
        sequences = [layer[:, 1:][valid] for layer in layers]
        return [first[valid], *sequences, *losses, *model.buffers()]

    assert all(map(torch.equal, everything(0.5), everything(content)))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_masked_patches_do_not_reach_the_bottleneck(training):
    valid, patches = lengths_to_valid(12, 8), music(2, 12)
    mask = masks(valid, 0.6)

    def outcome(patches):
        model = trained(tiny(dropout=0.0)).train(training)
        return [*model.forward_encoder(patches, mask=mask, valid=valid)[1:], *model.buffers()]

    before = outcome(patches)
    hidden = torch.where(mask[..., None, None, None], torch.nan, patches)
    assert all(map(torch.equal, before, outcome(hidden)))
    patches[~mask] += 0.1
    assert not torch.allclose(before[1], outcome(patches)[1], atol=1e-5)


def test_extracting_masked_patches_too_changes_nothing_but_batch_statistics():
    valid, patches = lengths_to_valid(12, 8), music(2, 12)
    found, statistics = [], []
    for extract in ("visible", "all"):
        model, options = trained(tiny()), {"mask": masks(valid, 0.6), "valid": valid}
        layers = model.forward_encoder(patches, **options, extract=extract)[1:]
        found.append([part for layer in layers for part in (layer[:, 1:][valid], layer[:, 0])])
        model.train().forward_encoder(patches, **options, extract=extract)
        norms = layers_of(model.extractor, nn.BatchNorm2d)
        statistics.append(torch.cat([norm.running_mean for norm in norms]))
    close(*found)
    assert not torch.allclose(*statistics, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=17, max_size=17), min_size=1, max_size=5),
    ratio=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32),
)
def test_the_number_of_masked_patches_is_exact_and_none_is_padding(rows, ratio, seed):
    valid = np.array(rows)
    mask = random_masking(np.random.default_rng(seed), valid, ratio)
    assert mask.shape == valid.shape
    assert mask.dtype == bool
    assert not (mask & ~valid).any()
    for here, n in zip(mask.sum(1), valid.sum(1), strict=True):
        wanted = round(ratio * int(n))  # Python rounds halves to even, as numpy does
        assert here == (min(max(wanted, 1), n - 1) if n >= 2 else n)


def test_masks_are_uniform_over_positions_and_pairs_and_a_function_of_their_generator():
    rounds, N, count = 6000, 12, 9

    def draw(seed):
        return random_masking(np.random.default_rng(seed), np.ones((rounds, N), bool), 0.75)

    masked = draw(1)
    assert np.array_equal(masked, draw(1))
    assert not np.array_equal(masked, draw(2))
    pairs = (masked.astype(int).T @ masked)[~np.eye(N, dtype=bool)]
    pair_share = count * (count - 1) / (N * (N - 1))
    for found, share, deviations in [(masked.sum(0), count / N, 4), (pairs, pair_share, 5)]:
        spread = (rounds * share * (1 - share)) ** 0.5
        assert np.abs(found - rounds * share).max() < deviations * spread
    assert len({row.tobytes() for row in masked}) > 200  # of the 220 there are


@torch.no_grad()
def test_the_loss_of_stage_one_is_the_mean_square_over_valid_patches():
    model, patches, target = trained(tiny()), music(2, 5), music(2, 5, seed=1)
    squares = []
    for b, n in [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1)]:
        decoded = model.decoder(model.extractor(patches[b, n][None]))[0]
        squares.append((decoded - target[b, n]).square())
    loss = model.stage_one_loss(patches, target, lengths_to_valid(5, 2))
    close(loss, torch.stack(squares).mean(), atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_the_loss_of_stage_two_is_the_mean_square_over_masked_or_all_patches(loss_on):
    model, patches, target = trained(tiny()), music(2, 5), music(2, 5, seed=1)
    mask = torch.tensor([[True, False, True, True, False], [False, True, False, False, False]])
    squares = []
    for b, count in [(0, 5), (1, 3)]:
        vectors, own = model.extractor(patches[b, :count])[None], mask[b : b + 1, :count]
        sequence = model.bottleneck(vectors, mask=own)[-1][0]
        each = (model.decoder(model.align(sequence[1:])) - target[b, :count]).square()
        squares.append(each if loss_on == "all" else each[own[0]])
    valid = lengths_to_valid(5, 3)
    loss_mask = {"masked": None, "all": valid}[loss_on]
    loss = model.stage_two_loss(patches, target, valid, mask, loss_mask=loss_mask)
    close(loss, torch.cat(squares).mean(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", LOSSES)
def test_losses_without_padding_are_the_same_with_and_without_a_mask_of_it(options):
    pair = music(3, 8), music(3, 8, seed=1)
    present = torch.ones(3, 8, dtype=torch.bool)
    found = []
    for valid in (present, None):
        model = trained(tiny(dropout=0.0)).train()
        loss = model.stage_one_loss(*pair, valid)
        loss = loss + stage_two(model, *pair, valid, masks(present, 0.6), **options)
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in model.parameters())])
    close(*found, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def plain_network():
    spec = importlib.util.spec_from_file_location("plain", ROOT / "benchmarks" / "plain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Plain


@pytest.mark.parametrize("stage", ["one", "two", "two, masked patches skipped", "readout"])
def test_losses_and_gradients_are_those_of_the_plain_implementation(plain_network, stage):
    # statistics frozen: the fast way shows the extractor fewer patches
    model = accelerate(trained(paper_with(n_layers=2)).double())
    plain = plain_network(model.config).double().eval()
    plain.load_state_dict(model.state_dict())
    patches, valid = music(2, 25).double(), torch.ones(2, 25, dtype=torch.bool)
    mask = masks(valid, 0.75)
    for module in layers_of(model.extractor, nn.Conv2d):
        module.train()  # the matrices are for training
    if stage == "one":
        found = model.stage_one_loss(patches, patches, valid)
        wanted = plain.stage_one_loss(patches)
    elif stage == "readout":
        vectors = model.forward_encoder(patches)[-1][:, 0], plain.readout(patches)
        found, wanted = ((part * noise(2, 256)).mean() for part in vectors)
    else:
        found = model.stage_two_loss(patches, patches, valid, mask)
        wanted = plain.stage_two_loss(patches, mask, skip="skipped" in stage)
    close(found, wanted, atol=0, rtol=1e-10)
    found.backward()
    wanted.backward()
    gradients = [
        {
            name: parameter.grad
            for (name, _), parameter in zip(names, each.parameters(), strict=True)
        }
        for names in [list(model.named_parameters())]
        for each in (model, plain)
    ]
    ours, theirs = (
        {name: grad for name, grad in each.items() if grad is not None} for each in gradients
    )
    assert theirs
    close(ours, theirs, atol=1e-12, rtol=1e-8)


def test_stage_one_trains_extractor_and_decoder_and_stage_two_everything():
    patches, valid = music(2, 6), lengths_to_valid(6, 6)
    model = Patchifier(tiny())
    for loss, parts in [
        (model.stage_one_loss(patches, patches, valid), ("extractor", "decoder")),
        (model.stage_two_loss(patches, patches, valid, masks(valid)), ("",)),
    ]:
        model.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            touched = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert touched == name.startswith(parts), name


ALTERNATIVES = {
    "the paper's shape": {},
    "plain embedding": {"position_embedding": "plain"},
    "linear alignment": {"align": "linear"},
    "mean of the map": {"map_pooling": "mean", "channels": [4, 4, 4, 4, 16]},
    "no layer to the vector": {"channels": [4, 4, 4, 6, 8], "embed_dim": 16},
    "wide decoder": {"decoder_channels": [12, 8, 8, 4, 4]},
    "decoder with batch norm": {"decoder_norm": "batch"},
    "narrow decoder": {"decoder_channels": [2, 2, 2, 2, 2]},
    "one convolution": {"n_convolutions": 1},
    "three convolutions": {"n_convolutions": 3},
    "four modules": {"channels": [4, 4, 4, 8]},
    "other patches": {"n_mels": 32, "patch_frames": 64},
    "one layer": {"n_layers": 1},
    "no dropout": {"dropout": 0.0},
}


@pytest.mark.parametrize("changes", ALTERNATIVES.values(), ids=ALTERNATIVES)
@pytest.mark.parametrize("options", [None, *LOSSES[:3]], ids=["one", "two", "extract", "loss"])
def test_two_steps_lower_the_loss_of_every_alternative(changes, options):
    config = tiny(**changes)
    model = Patchifier(config).train()
    patches = noise(4, 6, 1, config.spectrogram.n_mels, config.model.patch_frames).mul(0.1).sub(0.6)
    valid = lengths_to_valid(6, 6, 5, 2)

    def loss():
        torch.manual_seed(0)
        if options is None:
            return model.stage_one_loss(patches, patches, valid)
        return stage_two(model, patches, patches, valid, masks(valid), **options)

    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = loss().item()
    for _ in range(2):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < before


def normalised(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, unbiased=False)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{}, {"vector_norm": "none"}, {"position_embedding": "plain"}],
    ids=["bert", "first", "plain"],
)
def test_cls_comes_first_and_patches_have_positions(changes):
    """BERT adds a position to CLS too, then normalises; the plain embedding does neither."""
    bottleneck = trained(tiny(**changes)).bottleneck
    vectors, positions = noise(2, 4, 16), bottleneck.positions
    scaled = vectors if "vector_norm" in changes else normalised(vectors)
    bert = "position_embedding" not in changes
    cls = (bottleneck.cls + positions[0] if bert else bottleneck.cls).expand(2, 1, 16)
    x = torch.cat([cls, scaled + positions[1:5]], dim=1)
    close(bottleneck.embed(vectors, None), normalised(x) if bert else x, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_masked_vectors_are_replaced_by_the_one_mask_token():
    bottleneck = trained(tiny(position_embedding="plain")).bottleneck
    x = bottleneck.embed(noise(1, 3, 16), torch.tensor([[True, False, True]]))[0, 1:]
    token, vectors = bottleneck.mask_token, normalised(noise(1, 3, 16))[0]
    wanted = torch.stack([token, vectors[1], token]) + bottleneck.positions[1:4]
    close(x, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_positions_that_were_trained_are_used_as_they_are_and_longer_sequences_interpolate_them():
    bottleneck = trained(tiny()).bottleneck
    places = bottleneck.positions[1:]
    for N in (1, 7, 25):
        assert torch.equal(bottleneck.positions_for(N), places[:N])
    longer = bottleneck.positions_for(49)[0]  # every other one is a trained one
    close(longer[0::2], places)
    close(longer[1::2], (places[:-1] + places[1:]) / 2)


@torch.no_grad()
def test_the_order_of_patches_matters():
    model, patches = trained(tiny()), music(1, 5)
    model.bottleneck.positions.mul_(20)
    one, two = model.forward_encoder(patches)[-1], model.forward_encoder(patches.flip(1))[-1]
    assert not torch.allclose(one[:, 1:], two[:, 1:].flip(1), atol=1e-4)


@torch.no_grad()
def test_the_vector_is_the_flattened_map_or_its_mean():
    """A last map of 128 channels has 256 numbers and needs no layer."""
    patches = music(1, 2)[0]
    flat = FeatureExtractor(paper_with(channels=(16, 32, 64, 96, 128))).eval()
    assert torch.equal(flat(patches), flat.down(patches).reshape(2, 256))
    mean = FeatureExtractor(paper_with(map_pooling="mean")).eval()
    close(mean(patches), mean.down(patches).reshape(2, 256, 2).mean(-1))
    assert not layers_of(mean, nn.Linear) + layers_of(flat, nn.Linear)
    assert isinstance(FeatureExtractor(Config()).to_vector, nn.Linear)


def test_the_decoder_mirrors_the_extractor_unless_told_its_widths():
    def widths(config):
        return [module.in_channels for module in layers_of(Decoder(config), nn.Conv2d)]

    assert widths(Config()) == [256, 128, 64, 32, 16]
    assert widths(paper_with(decoder_channels=(64, 32, 16, 8, 8))) == [64, 32, 16, 8, 8]


def test_the_alignment_is_two_layers_or_one_and_stage_one_does_not_use_it():
    assert isinstance(Patchifier(tiny(align="linear")).align, nn.Linear)
    model, patches = trained(tiny()), music(1, 3)
    assert [type(module) for module in model.align] == [nn.Linear, nn.GELU, nn.Linear]
    before = model.autoencode(patches)
    with torch.no_grad():
        for parameter in [*model.align.parameters(), *model.bottleneck.parameters()]:
            parameter.add_(1)
    assert torch.equal(model.autoencode(patches), before)


def test_weights_have_the_names_and_order_of_earlier_checkpoints(paper):
    state = paper.state_dict()
    decoder = [name for name in state if name.startswith("decoder")]
    wanted = ["from_vector", "up.1", "up.4", "up.7", "up.10", "up.12"]
    assert decoder == [f"decoder.{name}.{kind}" for name in wanted for kind in ("weight", "bias")]
    assert [tuple(state[name].shape) for name in decoder[2:4]] == [(128, 256, 3, 3), (128,)]


def test_the_seed_alone_decides_the_weights_and_the_global_generator_is_left_alone():
    made = []
    for general, seed in [(1, 3), (2, 3), (2, 4)]:
        torch.manual_seed(general)
        before = torch.get_rng_state()
        made.append(Patchifier(tiny(), seed=seed).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    one, two, other = made
    assert all(torch.equal(one[name], two[name]) for name in one)
    matrices = [name for name, tensor in one.items() if tensor.ndim > 1]
    assert matrices
    assert not any(torch.equal(one[name], other[name]) for name in matrices)


def test_the_bottleneck_starts_as_bert_does_and_vectors_and_positions_at_one_scale(paper):
    bottleneck = paper.bottleneck
    close(bottleneck.vector_norm(40 * noise(2, 25, 256)).std(), torch.tensor(1.0), atol=0.15)
    drawn = [(each, 1.0) for each in (bottleneck.positions, bottleneck.cls, bottleneck.mask_token)]
    for layer in bottleneck.encoder.layers:
        named = dict(layer.named_parameters())
        assert not any(named[name].any() for name in named if name.endswith("bias"))
        weights = [each for name, each in named.items() if "norm" not in name and each.ndim == 2]
        assert len(weights) == 4
        drawn += [(each, 0.02) for each in weights]
    for parameter, std in drawn:  # within four standard errors
        assert abs(parameter.std().item() - std) < 4 * std / (2 * parameter.numel()) ** 0.5
        assert abs(parameter.mean().item()) < 4 * std / parameter.numel() ** 0.5
    first, second = bottleneck.encoder.layers[:2]
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_convolutions_before_a_relu_start_as_he_proposed(paper):
    for module in layers_of(paper.extractor, nn.Conv2d):
        ratio = module.weight.std().item() / (2 / (9 * module.in_channels)) ** 0.5
        assert abs(ratio - 1) < 4 / (2 * module.weight.numel()) ** 0.5
