"""Parts beyond the paper: relative positions, and a transformer over the columns of a patch."""

import pytest
import torch

from patchifier import spectrogram
from patchifier.config import Config, ModelConfig, RequestError, update
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Patchifier
from patchifier.nn.transformer import PatchColumnTransformer, RelativePositionBias
from tests import builders
from tests.builders import TINY, close, tiny
from tests.builders import normal as noise

SIZES = TINY | {"channels": [4, 4, 4, 8, 8], "embed_dim": 32, "mlp_dim": 64, "max_patches": 6}


@pytest.fixture(params=[True, False])
def relative(request):
    """Numbers of distances as large as scores, so that a wrong one shows."""
    made = accelerate(
        Patchifier(tiny(**SIZES, position_embedding="relative", norm_first=request.param))
    )
    made.eval()
    with torch.no_grad():
        for layer in made.bottleneck.encoder.layers:  # scores of BERT's small weights are all alike
            layer.self_attn.in_proj_weight.mul_(20)
        made.bottleneck.distances.numbers.copy_(3 * noise(2, 14))
    return made


def test_a_distance_has_a_number_for_each_head_far_ones_the_last_and_cls_its_own():
    made = RelativePositionBias(ModelConfig(n_heads=2, max_patches=2))
    with torch.no_grad():
        made.numbers.copy_(torch.tensor([[-2.0, -1, 0, 1, 2, 9], [10, 11, 12, 13, 14, 19]]))
    found = made(torch.tensor([0, 1, 5]))
    assert found.shape == (1, 2, 4, 4)
    assert found[0, 0].tolist() == [[9, 9, 9, 9], [9, 0, 1, 2], [9, -1, 0, 2], [9, -2, -2, 0]]
    assert torch.equal(found[0, 1, 1:, 1:], found[0, 0, 1:, 1:] + 12)
    assert torch.equal(made(torch.tensor([[0, 1, 5], [2, 3, 4]]))[0], found[0])


def test_where_in_a_clip_a_stretch_lies_changes_nothing_and_how_far_apart_patches_are_does(
    relative,
):
    vectors, bottleneck = noise(1, 20, 32), relative.bottleneck
    alone = bottleneck(vectors[:, 4:7])[-1]
    close(bottleneck(vectors, ids_keep=torch.tensor([[4, 5, 6]]))[-1], alone, rtol=1e-6)
    apart = bottleneck(vectors[:, [4, 5, 5, 6]], ids_keep=torch.tensor([[0, 1, 3]]))[-1]
    assert (apart - alone).abs().max() > 1e-2


def test_a_clip_gets_the_same_vectors_alone_and_in_a_batch_with_and_without_gradients(relative):
    """Torch's fused layer would take numbers to add for a mask of True and False."""
    beside, valid = noise(2, 14, 1, 64, 32), torch.arange(14) < torch.tensor([[5], [14]])
    alone = relative.forward_encoder(beside[:1, :5])[-1].detach()
    with torch.inference_mode():
        fast = relative.forward_encoder(beside[:1, :5])[-1]
        batch = relative.forward_encoder(beside, valid=valid)[-1][:1, :6]
    close(fast, alone, rtol=1e-4)
    close(batch, alone, rtol=1e-4)


def test_without_places_the_order_of_patches_counts_by_distances_alone(relative):
    vectors, order = noise(1, 4, 32), [2, 0, 3, 1]

    @torch.no_grad()
    def difference():
        there, shuffled = (
            relative.bottleneck(each)[-1][:, 1:] for each in (vectors, vectors[:, order])
        )
        return float((shuffled - there[:, order]).abs().max())

    assert difference() > 1e-2
    relative.bottleneck.distances.numbers.data.zero_()
    assert difference() < 1e-5


def test_music_of_any_length_is_embedded_in_one_pass(relative):
    changes = {
        "model": SIZES
        | {"position_embedding": "relative", "norm_first": relative.config.model.norm_first}
    }
    changes |= {"pretrain": {"n_patches": 6}, "embed": {"whole_clip": True}}
    log_mels = [noise(64, frames, seed=frames) / 10 - 0.5 for frames in (40, 1000)]
    vectors = builders.embedder(relative, update(Config(), changes)).embed_log_mels(log_mels)
    patches = torch.from_numpy(spectrogram.cut(log_mels[1], tail="anchor"))
    sequence = relative.forward_encoder(patches[None])[-1][0, 1:].detach()
    close(torch.from_numpy(vectors[1, :32]), sequence.mean(0), atol=1e-4, rtol=1e-3)


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
