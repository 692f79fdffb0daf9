"""Batches: what they draw, how processes share them, losses over padding."""

import json
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from patchifier import augment
from patchifier.cache import Cache
from patchifier.config import Config, RequestError, TrainingConfig, read_changes, update
from patchifier.nn.model import Patchifier
from patchifier.seeding import generator, random_masking
from patchifier.train import loop
from patchifier.train.batches import Batch, require_groups
from patchifier.train.distributed import launch
from patchifier.train.optimiser import make_optimiser
from patchifier.train.pretrain import Batches, split, stage_loss
from patchifier.train.references import Kriging
from patchifier.train.validation import TrainingStatistics, masked_predictors
from tests import ROOT
from tests.builders import TINY, close
from tests.log_mels import Clips

LENGTHS = (900, 1249, 1000, 1249, 830, 1100, 1249, 950)
LONG, MIXED = Clips(*LENGTHS), Clips(900, 100, 1249, 20, 1000, 700, 40, 1249)
SHARES = (slice(0, 2), slice(2, 8))
CROP = (np.zeros(1, int), np.ones(1), np.zeros(1))
EVENS_AND_ODDS = [np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7])]


def config_of(**changes) -> Config:
    return update(Config(), {"model": TINY} | changes)


SMALL = config_of()


def batches(data, stage, *, batch=8, rank_slice=None, config=None, parts=None):
    parts = parts or [np.arange(len(data.frames))]
    training = TrainingConfig(batch_size=batch)
    return Batches(data, parts, config or config_of(), stage, training, rank_slice=rank_slice)


@pytest.mark.parametrize("stage", ["one", "two"])
@pytest.mark.parametrize("data", [LONG, MIXED], ids=["long", "mixed"])
def test_shares_make_up_the_batch(stage, data):
    whole = batches(data, stage)(3)
    for rank_slice in SHARES:
        own = batches(data, stage, rank_slice=rank_slice)(3)
        assert torch.equal(own.patches, whole.patches[rank_slice])
        assert torch.equal(own.mask, whole.mask[rank_slice])


LEVELS = {"gain_db": [-20, 6], "equaliser_db": 6, "low_pass_hz": [2000, 9000]}
LEVELS |= {"noise_db": [-40, -10]}


@pytest.mark.parametrize("target", ["augmented", "clean"])
def test_changes_of_levels_are_heard_by_the_model_and_not_in_a_clean_target(target):
    settings = {"pretrain": {"reconstruction_target": target}}
    off, on = (
        batches(MIXED, "two", config=config_of(**settings, augment={"intensity": [1, 1]} | levels))(
            3
        )
        for levels in ({}, LEVELS)
    )
    assert not torch.equal(on.patches, off.patches)
    assert torch.equal(on.mask, off.mask)
    assert torch.equal(on.target, on.patches if target == "augmented" else off.patches)
    assert (on.patches[~on.valid] == -1).all()


def test_shares_of_a_batch_with_changes_of_levels_make_it_up():
    config = config_of(augment=LEVELS)
    whole = batches(MIXED, "two", config=config)(3)
    for rank_slice in SHARES:
        own = batches(MIXED, "two", config=config, rank_slice=rank_slice)(3)
        assert torch.equal(own.patches, whole.patches[rank_slice])


@pytest.mark.parametrize("stage", ["one", "two"])
@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("loss_share", [1.0, 0.5])
def test_weighted_losses_of_shares_average_to_the_loss_of_the_batch(stage, loss_on, loss_share):
    """In evaluation mode, where clips do not see one another."""
    config = config_of(pretrain={"loss_patches": loss_on, "loss_share": loss_share})
    model = Patchifier(SMALL).eval()

    def loss(rank_slice):
        own = batches(MIXED, stage, config=config, rank_slice=rank_slice)
        with torch.no_grad():
            return float(stage_loss(stage, config.pretrain)(model, own(5)))

    whole, first, second = map(loss, (None, slice(0, 4), slice(4, 8)))
    assert (first + second) / 2 == pytest.approx(whole, abs=1e-7)
    assert first != pytest.approx(whole, abs=1e-4)


def test_a_share_of_the_masked_patches_is_in_the_loss_and_all_are_in_turn():
    config = config_of(pretrain={"loss_share": 0.4})
    whole, made = batches(LONG, "two"), batches(LONG, "two", config=config)
    counts = torch.zeros_like(whole(0).mask, dtype=torch.int)
    for step in range(40):
        batch = made(step)
        assert torch.equal(batch.mask, whole(step).mask)
        assert torch.equal(batch.patches, whole(step).patches)
        assert not (batch.loss_mask & ~batch.mask).any()
        wanted = (0.4 * batch.mask.sum(1)).round().clamp(min=1)
        assert torch.equal(batch.loss_mask.sum(1), wanted.long())
        counts += batch.loss_mask
    assert counts.min() > 0
    assert torch.equal(batches(LONG, "one", config=config)(0).loss_mask, whole(0).valid)


def test_parts_fill_places_of_their_own_and_every_clip_is_heard_once_an_epoch():
    for part, rank_slice in zip(EVENS_AND_ODDS, (slice(0, 2), slice(2, 4)), strict=True):
        own = batches(LONG, "two", batch=4, parts=EVENS_AND_ODDS, rank_slice=rank_slice)
        seen = torch.cat([own(step).clips for step in range(4)]).tolist()
        assert sorted(seen[:4]) == sorted(seen[4:]) == part.tolist()


def test_each_seed_and_each_stage_takes_the_clips_in_an_order_of_its_own():
    orders = set()
    for stage in ("one", "two"):
        for seed in range(3):
            config = config_of(pretrain={"seed": seed})
            orders.add(tuple(batches(LONG, stage, config=config)(0).clips.tolist()))
    assert len(orders) == 6
    assert all(sorted(order) == list(range(8)) for order in orders)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"reconstruction_target": "augmented"}, True),
        ({"reconstruction_target": "clean"}, False),
    ],
)
def test_what_is_reconstructed_is_by_default_what_the_model_saw(changes, same):
    batch = batches(LONG, "two", config=config_of(pretrain=changes))(0)
    assert torch.equal(batch.patches, batch.target) == same


def test_masks_have_a_stream_of_their_own():
    """Not the one of augmentation, whatever is drawn from that."""
    own, others = (
        random_masking(generator(1, purpose, 3), np.ones((8, 25), bool), 0.75).tolist()
        for purpose in ("mask", "augment")
    )
    assert own != others
    for most in (0, 2):
        config = config_of(augment={"pitch_shift": [0, most]})
        assert batches(LONG, "two", config=config)(3).mask.tolist() == own


def in_groups(*groups):
    data = Clips(*LENGTHS)
    data.clips = [SimpleNamespace(id=str(n), group=group) for n, group in enumerate(groups)]
    return data


CONTRAST = {"contrast_positives": "group", "objectives": ["contrast"]}
PAIRS = config_of(pretrain=CONTRAST, augment={"pitch_shift": [-2, 2]})


def test_of_groups_two_crops_stand_side_by_side_at_one_speed_and_pitch(monkeypatch):
    data = in_groups("a", "b", "a", None, "b", "a", "c", "c")
    group = np.array([0, 1, 0, 3, 1, 0, 2, 2])
    own, heard, draw, drawn = batches(data, "two", config=PAIRS), [], augment.draw, []
    monkeypatch.setattr(
        augment, "draw", lambda *given, **named: drawn.append(draw(*given, **named)) or drawn[-1]
    )
    for step in range(12):
        one, other = own(step).clips.view(4, 2).numpy().T
        np.testing.assert_array_equal(group[one], group[other])
        # alone in its group, it is its own partner
        np.testing.assert_array_equal(one != other, group[one] != 3)
        assert (drawn[-1].scale[::2] == drawn[-1].scale[1::2]).all()
        assert (drawn[-1].pitch[::2] == drawn[-1].pitch[1::2]).all()
        assert (drawn[-1].starts[::2, 0] != drawn[-1].starts[1::2, 0]).any()
        heard += zip(one.tolist(), other.tolist(), strict=True)
    assert sorted(one for one, _ in heard[:8]) == list(range(8))  # all before any comes again
    assert {other for one, other in heard if one == 0} == {2, 5}
    assert torch.equal(own(5).clips, batches(data, "two", config=PAIRS)(5).clips)


def test_partners_lie_in_the_same_part_and_shares_make_up_the_batch():
    def clips(rank_slice):
        data = in_groups(*"aabbaabb")
        return batches(data, "two", config=PAIRS, parts=EVENS_AND_ODDS, rank_slice=rank_slice)(
            3
        ).clips

    whole = clips(None)
    assert torch.equal(whole[::2] % 4 // 2, whole[1::2] % 4 // 2)
    assert (whole % 2).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(torch.cat([clips(slice(0, 3)), clips(slice(3, 8))]), whole)


def test_a_long_clip_beside_a_short_one_is_still_stretched_until_it_fits():
    config, frames = Config().augment, np.array([400, 850] * 100)
    drawn = augment.draw(np.random.default_rng(0), frames, config=config, pairs=True)
    assert drawn.valid[1::2].all()
    assert (drawn.scale[::2] == drawn.scale[1::2]).all()
    assert drawn.scale.max() <= config.time_stretch[1]


def test_one_group_alone_is_refused():
    require_groups(in_groups(*"aaaaaaab"), np.arange(8))
    for groups, train in (("aaaaaaaa", np.arange(8)), ("aaaaaaab", np.arange(7))):
        with pytest.raises(RequestError, match="of one group"):
            require_groups(in_groups(*groups), train)


def test_stage_one_has_no_pairs():
    batch = batches(in_groups(*"aabbccdd"), "one", config=PAIRS)(0)
    assert sorted(batch.clips.tolist()) == list(range(8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (CONTRAST | {"stage_two": {"batch_size": 7}}, "contrast_positives"),
        (CONTRAST | {"stage_two": {"batch_size": 2}}, "contrast_positives"),
        (
            CONTRAST
            | {"stage_two": {"batch_size": 6}, "stage_one": {"batch_size": 6}, "n_cache_parts": 2},
            r"contrast_positives 'group' needs two pairs.* a batch of 6 in 2 parts",
        ),
        ({"n_cache_parts": 3}, r"pretrain\.n_cache_parts is 3.* batch of 32"),
    ],
)
def test_pairs_and_parts_that_do_not_fill_a_batch_are_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        update(Config(), {"pretrain": changes})


def test_a_part_without_training_clips_is_refused(small_cache):
    config = update(Config(), {"pretrain": {"n_cache_parts": 8, "validation_fraction": 0.0}})
    with pytest.raises(RequestError, match=r"shards.* 8 parts"):
        split(Cache(small_cache), config.pretrain)


def square(model, batch):
    return model(batch).square().mean()


def test_losses_of_many_steps_are_fetched_at_once_and_none_is_lost(tmp_path, monkeypatch):
    """Every few steps, before each validation and at the end; a row for each step."""
    fetched, fetch, start = [], loop.MetricBuffer.fetch, loop.MetricBuffer.__init__

    def counted(self):
        fetched.append(len(self.waiting))
        fetch(self)

    def ahead(self, *arguments, **options):
        start(self, *arguments, **options)
        self.limit = 4

    monkeypatch.setattr(loop.MetricBuffer, "__init__", ahead)
    monkeypatch.setattr(loop.MetricBuffer, "fetch", counted)

    def make_batch(step):
        return torch.full((2, 3), float(step))

    job = loop.TrainTask(torch.nn.Linear(3, 1), 10, make_batch, square, lambda _: {"figure": 1.0})
    loop.fit(job, tmp_path, config=TrainingConfig(steps=11, batch_size=2), seed=0, validate_every=6)
    assert [count for count in fetched if count] == [4, 2, 4, 1]
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(1, 12))


def test_the_first_step_of_a_warm_up_trains(tmp_path):
    model = torch.nn.Linear(3, 1)
    before = model.weight.detach().clone()
    job = loop.TrainTask(model, 10, lambda step: torch.ones(2, 3), square)
    config = TrainingConfig(
        steps=1, batch_size=2, learning_rate=1e-2, warmup_steps=4, weight_decay=0.0
    )
    loop.fit(job, tmp_path, config=config, seed=0, validate_every=9)
    # Adam's first step is as long as the rate
    close((model.weight.detach() - before).abs(), torch.full((1, 3), 1e-2 / 4))


def test_processes_drop_out_differently_in_a_step_and_alike_when_it_is_taken_again():
    model, real = torch.nn.Dropout(), launch("cpu")
    optimiser = SimpleNamespace(param_groups=[], zero_grad=lambda **_: None, step=lambda: None)

    def dropped(rank, step):
        fabric = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            device=real.device,
            autocast=real.autocast,
            backward=lambda loss: None,
        )
        seen = []

        def loss(model, batch):
            seen.append(model(batch))
            return torch.zeros(())

        job = loop.TrainTask(model, 10, lambda step: torch.ones(64), loss)
        loop.step(job, step, model, optimiser, fabric, TrainingConfig(), seed=0, total=10)
        return seen[0].tolist()

    assert dropped(1, 4) == dropped(1, 4)
    assert dropped(0, 4) != dropped(1, 4)
    assert dropped(1, 4) != dropped(1, 5)


def test_bf16_is_used_where_it_is_asked_for(tmp_path):
    """In stage II, whose loss is not the module's forward()."""
    model, seen = Patchifier(SMALL), []
    model.align[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    job = loop.TrainTask(
        model, 8, batches(LONG, "two", batch=2), stage_loss("two", Config().pretrain)
    )
    for precision in ("32", "bf16"):
        fabric, config = launch("cpu", precision=precision), TrainingConfig(steps=1, batch_size=2)
        folder = tmp_path / precision
        loop.fit(job, folder, config=config, seed=0, validate_every=9, fabric=fabric)
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.slow
def test_the_benchmark_for_gpus_runs_on_a_processor(tmp_path, child_environment):
    """So that it can be run the moment there is a GPU."""
    options = shlex.split("--device cpu --clips 8 --batches 2 --agree 2 --steps 1 --equal 4 --out")
    script, out = ROOT / "benchmarks" / "gpu.py", tmp_path / "gpu.json"
    command = [sys.executable, str(script), *options, str(out)]
    subprocess.run(command, env=child_environment, check=True, timeout=200)
    facts = json.loads(out.read_text())
    # the same device twice
    assert [row["largest_relative_difference"] for row in facts["agreement"]] == [0, 0]
    assert {(row["stage"], row["way"]) for row in facts["speed"]} == {
        (stage, way) for stage in ("one", "two") for way in ("float32", "bf16")
    }
    assert facts["equal_clips"][0]["steps"] == 2


def test_a_predictor_knows_no_more_than_the_mean_patch_of_a_clip_of_which_nothing_is_seen():
    patches, mean_patch = torch.full((1, 3, 1, 64, 32), -0.4), torch.full((1, 64, 32), -0.5)
    first = torch.tensor([[True, False, False]])
    known = TrainingStatistics(mean_patch, Kriging.fit([np.full((3, 64), -0.5)]))
    batch = Batch(patches, patches, first, first, first, torch.tensor([0]), *CROP)
    names = ("mean_patch", "visible_mean", "interpolation", "shrunk_interpolation", "kriging")
    wanted = {**{f"{name}_mse": 0.01 for name in names}, "band_means_mse": 0.0}
    assert masked_predictors([batch], known) == pytest.approx(wanted)


@pytest.mark.parametrize("recipe", ["transformer-extractor", "paper"])
def test_decay_is_on_matrices_and_kernels_alone(recipe):
    config = update(Config(), read_changes(recipe))
    model = Patchifier(config)
    groups = make_optimiser(model, config.pretrain.stage_two, {}).param_groups
    decayed = {id(each) for row in groups if row["weight_decay"] for each in row["params"]}
    tables = ("positions", "places", "cls", "mask_token")
    for name, value in model.named_parameters():
        assert (id(value) in decayed) == (value.ndim > 1 and not name.endswith(tables)), name
    assert not any(isinstance(module, torch.nn.Embedding) for module in model.modules())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16), ("64", torch.float64)]
)
def test_fabric_converts_a_batch_in_every_precision(precision, dtype):
    patches, marks = torch.zeros(1, 2, 1, 64, 32), torch.ones(1, 2, dtype=torch.bool)
    batch = Batch(patches, patches, marks, marks, marks, torch.tensor([0]), *CROP)
    arithmetic = launch("cpu", precision=precision)._strategy.precision
    ((converted,), _) = arithmetic.convert_input(((batch,), {}))
    assert (converted.patches.dtype, converted.mask.dtype) == (dtype, torch.bool)
