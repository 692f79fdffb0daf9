import numpy as np
import pytest
import torch

from patchifier.config import Config, RequestError, update
from patchifier.nn.attention import attention
from patchifier.nn.model import Patchifier

WAYS = ({}, {"norm_first": True})


def log_mel(n_patches: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 0, (64, 32 * n_patches)).astype(np.float32)


@torch.inference_mode()
def torch_weights(layer: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    layer.self_attn.train()  # else torch takes a path that gives no weights of its own
    layer.self_attn.dropout = 0.0
    return layer.self_attn(x, x, x, average_attn_weights=False)[1][0].numpy()


@pytest.mark.parametrize("changes", WAYS)
def test_weights_are_those_of_torch_own_attention(changes):
    model = Patchifier(update(Config(), {"model": {"n_layers": 2, **changes}})).eval()
    inputs = []
    for layer in model.bottleneck.encoder.layers:
        layer.register_forward_pre_hook(lambda layer, given: inputs.append((layer, *given)))
    found = attention(model, log_mel(6))
    assert found.shape == (2, 4, 7, 7)
    assert len(inputs) == 2
    for weights, (layer, x) in zip(found, inputs, strict=True):
        with torch.inference_mode():
            seen = layer.norm1(x) if layer.norm_first else x
        np.testing.assert_allclose(weights, torch_weights(layer, seen), atol=1e-6)


def test_the_layers_see_what_the_model_computes():
    model = Patchifier(update(Config(), {"model": {"n_layers": 2}})).eval()
    seen = []
    last = model.bottleneck.encoder.layers[-1]
    last.register_forward_hook(lambda layer, given, made: seen.append(made))
    attention(model, log_mel(5))
    patches = torch.from_numpy(log_mel(5).reshape(64, 5, 32).transpose(1, 0, 2)[None, :, None])
    with torch.no_grad():
        wanted = model.forward_encoder(patches)[-1]
    torch.testing.assert_close(seen[0], wanted, rtol=0, atol=1e-5)


def test_a_log_mel_of_other_bands_is_refused():
    with pytest.raises(RequestError, match="64"):
        attention(Patchifier().eval(), np.zeros((40, 96), np.float32))
