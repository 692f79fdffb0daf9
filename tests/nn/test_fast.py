"""Every fast layer against the plain maths: values and gradients."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patchifier.nn.fast import FEW_CELLS, Convolution, FastDropout, UpConvolution, accelerate
from patchifier.nn.model import Decoder, Patchifier
from patchifier.nn.transformer import TransformerLayer
from tests.builders import close, tiny
from tests.builders import normal as noise


def plain_up(maps, weight, bias):
    larger = nn.functional.interpolate(maps, scale_factor=2, mode="nearest")
    return nn.functional.conv2d(larger, weight, bias, padding=1)


def plain_convolution(stride):
    def way(maps, weight, bias):
        return nn.functional.conv2d(maps, weight, bias, stride=stride, padding=1)

    return way


def assert_same(layer, plain, maps, seed=0):
    """Values and gradients of a layer are those of a function of (maps, weight, bias)."""
    inputs = [maps, *(parameter.detach() for parameter in layer.parameters())]
    ours, theirs = ([part.clone().requires_grad_() for part in inputs] for _ in range(2))
    named = dict(zip(("weight", "bias"), ours[1:], strict=False))
    result = torch.func.functional_call(layer, named, ours[0])
    wanted = plain(theirs[0], theirs[1], theirs[2] if len(theirs) > 2 else None)
    close(result, wanted, atol=1e-5, rtol=1e-5)
    weights = noise(*wanted.shape, seed=seed + 3)
    (result * weights).sum().backward()
    (wanted * weights).sum().backward()
    gradients = ([each.grad for each in way] for way in (ours, theirs))
    close(*gradients, atol=1e-4, rtol=1e-5)


SIZES = {name: st.integers(1, 5 if name == "C" else 3) for name in "PCO"}
SIZES |= {name: st.integers(1, 9) for name in "HW"}


@settings(max_examples=60, deadline=None)
@given(**SIZES, bias=st.booleans(), seed=st.integers(0, 99))
def test_up_convolution_is_upsampling_and_convolution(P, C, O, H, W, bias, seed):  # noqa: E741
    torch.manual_seed(seed)
    layer = UpConvolution(C, O, 3, padding=1, bias=bias)
    assert_same(layer, plain_up, noise(P, C, H, W, seed=seed), seed)


@pytest.mark.parametrize("way", ["by_transposition", "by_phases"])
def test_each_way_of_up_convolution_is_the_same_function(way):
    layer, maps = UpConvolution(5, 3, 3, padding=1), noise(2, 5, 4, 6)
    close(getattr(layer, way)(maps), plain_up(maps, layer.weight, layer.bias), rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    **SIZES,
    stride=st.sampled_from([1, 2]),
    bias=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_convolution_is_torchs_in_values_and_gradients(P, C, O, H, W, stride, bias, training, seed):  # noqa: E741
    torch.manual_seed(seed)
    layer = Convolution(C, O, 3, stride=stride, padding=1, bias=bias).train(training)
    maps = noise(P, C, stride * H, stride * W, seed=seed)  # halved without a rest
    assert_same(layer, plain_convolution(stride), maps, seed)


CELLS = [(2, 1), (4, 2), (8, 4), (16, 8), (32, 16)]


def test_the_papers_layers_are_the_same_function_at_their_own_size():
    up = [(256, 128), (128, 64), (64, 32), (32, 16), (16, 1)]
    for (before, after), cells in zip(up, CELLS, strict=True):
        maps = 0.1 * noise(8, before, *cells).contiguous(memory_format=torch.channels_last)
        assert_same(UpConvolution(before, after, 3, padding=1), plain_up, maps)
    for before, after, stride, cells in [(128, 256, 2, (4, 2)), (256, 256, 1, (2, 1))]:
        layer = Convolution(before, after, 3, stride=stride, padding=1, bias=False)
        assert layer.training
        assert cells[0] * cells[1] <= FEW_CELLS
        assert_same(layer, plain_convolution(stride), 0.1 * noise(8, before, *cells))


def test_a_table_made_in_inference_serves_training():
    layer = UpConvolution(2, 2, 3, padding=1)
    with torch.inference_mode():
        layer(noise(1, 2, 1, 2))
    layer(noise(1, 2, 1, 2)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_its_share_keeps_the_mean_and_passes_the_same_gradient(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, dtype=dtype, requires_grad=True)
    result = FastDropout(p).train()(x)
    result.sum().backward()
    assert torch.equal(x.grad, result)
    n, dropped = x.numel(), (result == 0).double()
    assert abs(dropped.mean() - p) < 4 * (p * (1 - p) / n) ** 0.5 + 1e-5
    kept = torch.tensor(1 / (1 - round(p * 65536) / 65536), dtype=dtype).item()
    assert set(result.unique().tolist()) == {0.0, kept}
    for axis in (0, 1):  # no row or column is favoured, nor a place among the four of a draw
        spread = (p * (1 - p) / x.shape[1 - axis]) ** 0.5
        assert (dropped.mean(1 - axis) - p).abs().max() < 5 * spread
    lanes = dropped.flatten()[: n // 4 * 4].view(-1, 4)
    assert (lanes.mean(0) - p).abs().max() < 5 * (p * (1 - p) / len(lanes)) ** 0.5
    assert (torch.corrcoef(lanes.T) - torch.eye(4)).abs().max() < 5 / len(lanes) ** 0.5


def test_dropout_follows_torchs_generator_and_rests_in_evaluation():
    layer, x = FastDropout(0.3).train(), noise(7, 11)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(layer(x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(FastDropout(0.0).train()(x), x)


def encoder_layer(norm_first=False, dropout=0.0):
    sizes = {"embed_dim": 32, "n_heads": 4, "mlp_dim": 64}
    return TransformerLayer(tiny(**sizes, dropout=dropout, norm_first=norm_first).model)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_layer_is_torchs_own_plain_and_fast(norm_first, padded, training):
    """The same outputs and gradients; in bf16 as close as bf16 is, and the same in both ways of a layer."""
    plain = encoder_layer(norm_first).train(training)
    options = {"batch_first": True, "norm_first": norm_first}
    torchs = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", 1e-12, **options).train(training)
    torchs.load_state_dict(plain.state_dict())
    x, padding = noise(3, 11, 32), torch.zeros(3, 11, dtype=torch.bool)
    padding[1, 7:] = padded
    bias = torch.zeros(3, 1, 1, 11).masked_fill(padding[:, None, None], -torch.inf)
    found = []
    for layer in (torchs, plain, accelerate(copy.deepcopy(plain))):
        others = (
            [None, padding if padded else None] if layer is torchs else [bias if padded else None]
        )
        seen = x.clone().requires_grad_()
        output = layer(seen, *others)[~padding]
        output.square().mean().backward()
        gradients = [seen.grad, *(weight.grad for weight in layer.parameters())]
        with torch.inference_mode():  # torch's fast path
            fast = layer(x, *others)[~padding]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            half = layer(x, *others)[~padding].float()
        close(half, output.detach(), atol=0.05, rtol=0.02)
        found.append([output.detach(), *gradients, fast])
    for other in found[1:]:
        close(other, found[0], atol=1e-6, rtol=1e-5)


def test_attention_drops_scores_in_training_alone():
    layer, x = accelerate(encoder_layer(dropout=0.5)), noise(2, 9, 32)
    for training in (False, True):
        layer.train(training)
        assert torch.equal(layer.attend(x, None), layer.attend(x, None)) != training


@pytest.mark.parametrize("decoder_norm", ["none", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_an_accelerated_model_is_the_plain_one_with_the_same_names(decoder_norm, training):
    sizes = {"dropout": 0.0, "n_predictor_layers": 1, "decoder_norm": decoder_norm}
    plain = Patchifier(tiny(**sizes)).double()
    fast = accelerate(copy.deepcopy(plain))
    assert type(fast.decoder) is not Decoder
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert all(map(torch.equal, fast.state_dict().values(), plain.state_dict().values()))
    patches = 0.3 * noise(2, 6, 1, 64, 32).double() - 0.5
    mask = torch.tensor([[True, False, True, False, False, True]] * 2)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 4:], mask[1, 5] = False, False
    found = []
    for model in (plain, fast):
        model.train(training)
        losses = [
            model.stage_one_loss(patches, patches, valid),
            model.stage_two_loss(patches, patches, valid, mask),
        ]
        sum(losses).backward()
        with torch.no_grad():
            vectors = model.eval().forward_encoder(patches, valid=valid)[-1]
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        found.append([*losses, vectors[0], vectors[1, :5], gradients])
    close(*found, atol=1e-9, rtol=1e-7)


def test_accelerating_twice_changes_nothing():
    model = accelerate(Patchifier(tiny()))
    types = [type(module) for module in model.modules()]
    assert [type(module) for module in accelerate(model).modules()] == types
