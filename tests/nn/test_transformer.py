"""A part beyond the paper: a transformer over the columns of a patch."""

import pytest
import torch

from patchifier.config import Config, ModelConfig, RequestError, update
from patchifier.nn.transformer import PatchColumnTransformer
from tests.builders import TINY, close, tiny
from tests.builders import normal as noise

SIZES = TINY | {"channels": [4, 4, 4, 8, 8], "embed_dim": 32, "mlp_dim": 64, "max_patches": 6}


def test_a_vector_is_that_of_a_patch_alone_and_hears_the_order_of_its_columns():
    made = PatchColumnTransformer(tiny(**SIZES)).eval()
    with torch.no_grad():
        made.places.normal_()
    patches = noise(3, 1, 64, 32)
    vectors = made(patches)
    assert vectors.shape == (3, 32)
    close(made(patches[1:2]), vectors[1:2], rtol=1e-4)
    backwards = patches.unflatten(-1, (8, 4)).flip(-2).flatten(-2)
    assert (made(backwards) - vectors).abs().max() > 1e-2


def test_a_mean_over_columns_needs_no_layer_and_forgets_their_order_without_places():
    config = tiny(**SIZES, extractor="transformer", map_pooling="mean")
    made, patches = PatchColumnTransformer(config).eval(), noise(2, 1, 64, 32)
    backwards = patches.unflatten(-1, (8, 4)).flip(-2).flatten(-2)
    close(made(backwards), made(patches), rtol=1e-4)
    assert not [name for name, _ in made.named_parameters() if name.startswith("to_vector")]


def test_a_column_is_all_rows_of_four_frames():
    made = PatchColumnTransformer(tiny(**SIZES))
    patches = torch.zeros(1, 1, 64, 32)
    patches[..., 7, 4:8] = torch.arange(4.0)
    seen = []
    made.from_column.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    made(patches)
    assert seen[0].shape == (1, 8, 256)
    assert seen[0][0, 1, 28:32].tolist() == [0, 1, 2, 3]
    assert seen[0][0].count_nonzero() == 3


def test_frames_that_make_no_columns_are_refused():
    with pytest.raises(RequestError, match=r"model\.patch_frames is 6, expected a multiple of 4"):
        ModelConfig(extractor="transformer", patch_frames=6, channels=(4,))


def test_two_scales_are_refused():
    with pytest.raises(RequestError, match=r"model\.extractor.*'two-scale'"):
        update(Config(), {"model": {"extractor": "two-scale"}})
