"""Batches: what they draw, how processes share them, losses over padding."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from patchifier import augment
from patchifier.cache import Cache
from patchifier.config import (
    Config,
    ModelConfig,
    RequestError,
    TrainingConfig,
    read_changes,
    update,
)
from patchifier.nn.masking import random_masking
from patchifier.nn.model import Patchifier
from patchifier.seeding import generator
from patchifier.train import loop
from patchifier.train.batches import Batch, require_groups
from patchifier.train.distributed import launch
from patchifier.train.optimiser import make_optimiser
from patchifier.train.pretrain import Batches, split, stage_loss
from patchifier.train.references import Kriging
from patchifier.train.validation import TrainingStatistics, masked_predictors
from tests import ROOT

SMALL = ModelConfig(channels=(4, 4, 4, 8, 8), embed_dim=32, n_layers=2, n_heads=2, mlp_dim=64)


class Clips:
    """Log-mels of noise that stand in for a cache."""

    def __init__(self, *frames):
        generator = torch.Generator().manual_seed(0)
        self.frames = np.array(frames)
        self.clips = frames
        self.log_mels = [
            torch.rand(count, 64, generator=generator).half().numpy() - 0.9 for count in frames
        ]
        self.spectrogram = Config().spectrogram

    def log_mel(self, index, first=0, last=None):
        return self.log_mels[index][first:last]

    read = Cache.read


LONG = Clips(900, 1249, 1000, 1249, 830, 1100, 1249, 950)
MIXED = Clips(900, 100, 1249, 20, 1000, 700, 40, 1249)


def batches(data, stage, *, batch=8, rank_slice=None, config=None, parts=None):
    config = config or Config(model=SMALL)
    return Batches(
        data,
        parts or [np.arange(len(data.frames))],
        config,
        stage,
        TrainingConfig(batch_size=batch),
        rank_slice=rank_slice,
    )


@pytest.mark.parametrize("stage", ["one", "two"])
@pytest.mark.parametrize("data", [LONG, MIXED], ids=["long", "mixed"])
def test_shares_make_up_the_batch(stage, data):
    whole = batches(data, stage)
    batch = whole(3)
    for rank_slice in (slice(0, 2), slice(2, 8)):
        own = batches(data, stage, rank_slice=rank_slice)
        part = own(3)
        assert torch.equal(part.patches, batch.patches[rank_slice])
        assert torch.equal(part.mask, batch.mask[rank_slice])


@pytest.mark.parametrize("stage", ["one", "two"])
@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("loss_share", [1.0, 0.5])
def test_weighted_losses_of_shares_average_to_the_loss_of_the_batch(stage, loss_on, loss_share):
    """In evaluation mode, where clips do not see one another."""
    changes = {"loss_patches": loss_on, "loss_share": loss_share}
    config = update(Config(model=SMALL), {"pretrain": changes})
    model = Patchifier(Config(model=SMALL)).eval()

    def loss(rank_slice):
        own = batches(MIXED, stage, config=config, rank_slice=rank_slice)
        with torch.no_grad():
            return float(stage_loss(stage, config.pretrain)(model, own(5)))

    whole = loss(None)
    assert np.mean([loss(slice(0, 4)), loss(slice(4, 8))]) == pytest.approx(whole, abs=1e-7)
    assert loss(slice(0, 4)) != pytest.approx(whole, abs=1e-4)


def test_a_share_of_the_masked_patches_is_in_the_loss_and_all_are_in_turn():
    config = update(Config(model=SMALL), {"pretrain": {"loss_share": 0.4}})
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
    parts = [np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7])]
    seen = []
    for step in range(4):
        shares = [
            batches(LONG, "two", batch=4, parts=parts, rank_slice=rank_slice)(step)
            for rank_slice in (slice(0, 2), slice(2, 4))
        ]
        seen.append([LONG.frames[batch.clips].tolist() for batch in shares])
    for number, part in enumerate(parts):
        own = [frames for step in seen for frames in step[number]]
        assert sorted(own[:4]) == sorted(own[4:]) == sorted(LONG.frames[part])


@pytest.mark.parametrize("stage", ["one", "two"])
def test_another_seed_takes_the_clips_in_another_order(stage):
    orders = [
        batches(LONG, stage, config=update(Config(model=SMALL), {"pretrain": {"seed": seed}}))(
            0
        ).clips.tolist()
        for seed in range(3)
    ]
    assert len(set(map(tuple, orders))) == 3
    assert all(sorted(order) == list(range(8)) for order in orders)


def test_the_stages_take_the_clips_in_orders_of_their_own():
    one, two = (batches(LONG, stage)(0).clips.tolist() for stage in ("one", "two"))
    assert one != two


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"reconstruction_target": "augmented"}, True),
        ({"reconstruction_target": "clean"}, False),
    ],
)
def test_what_is_reconstructed_is_by_default_what_the_model_saw(changes, same):
    own = batches(LONG, "two", config=update(Config(model=SMALL), {"pretrain": changes}))
    patches, target = own(0).patches, own(0).target
    assert torch.equal(patches, target) == same


def test_masks_have_a_stream_of_their_own():
    """Not the one of augmentation, whatever is drawn from that."""
    plain, shifted = (
        batches(
            LONG, "two", config=update(Config(model=SMALL), {"augment": {"pitch_shift": [0, most]}})
        )(3)
        for most in (0, 2)
    )
    own, others = (
        random_masking(generator(1, purpose, 3), np.ones((8, 25), bool), 0.75)
        for purpose in ("mask", "augment")
    )
    assert plain.mask.numpy().tolist() == shifted.mask.numpy().tolist() == own.tolist()
    assert own.tolist() != others.tolist()


def in_groups(*groups):
    data = Clips(900, 1249, 1000, 1249, 830, 1100, 1249, 950)
    data.clips = [
        SimpleNamespace(id=str(number), group=group) for number, group in enumerate(groups)
    ]
    return data


PAIRS = update(
    Config(model=SMALL),
    {
        "pretrain": {"contrast_positives": "group", "objectives": ["contrast"]},
        "augment": {"pitch_shift": [-2, 2]},
    },
)


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
        assert all(
            (first != second) == (group[first] != 3)
            for first, second in zip(one, other, strict=True)
        )  # alone in its group, it is its own partner
        assert (drawn[-1].scale[::2] == drawn[-1].scale[1::2]).all()
        assert (drawn[-1].pitch[::2] == drawn[-1].pitch[1::2]).all()
        assert (drawn[-1].starts[::2, 0] != drawn[-1].starts[1::2, 0]).any()
        heard += zip(one.tolist(), other.tolist(), strict=True)
    assert sorted(one for one, _ in heard[:8]) == list(
        range(8)
    )  # every clip once before any comes again
    assert {other for one, other in heard if one == 0} == {2, 5}
    assert torch.equal(own(5).clips, batches(data, "two", config=PAIRS)(5).clips)


def test_partners_lie_in_the_same_part_and_shares_make_up_the_batch():
    data, parts = in_groups(*"aabbaabb"), [np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7])]
    whole = batches(data, "two", config=PAIRS, parts=parts)(3).clips
    assert torch.equal(whole[::2] % 4 // 2, whole[1::2] % 4 // 2)
    assert (whole[:4] % 2 == 0).all()
    assert (whole[4:] % 2 == 1).all()
    shares = [
        batches(data, "two", config=PAIRS, parts=parts, rank_slice=rank_slice)(3).clips
        for rank_slice in (slice(0, 3), slice(3, 8))
    ]
    assert torch.equal(torch.cat(shares), whole)


def test_a_long_clip_beside_a_short_one_is_still_stretched_until_it_fits():
    config = Config().augment
    drawn = augment.draw(
        np.random.default_rng(0), np.array([400, 850] * 100), config=config, pairs=True
    )
    assert drawn.valid[1::2].all()
    assert (drawn.scale[::2] == drawn.scale[1::2]).all()
    assert drawn.scale.max() <= config.time_stretch[1]


def test_one_group_alone_is_refused():
    require_groups(in_groups(*"aaaaaaab"), np.arange(8))
    for groups, train in (("aaaaaaaa", np.arange(8)), ("aaaaaaab", np.arange(7))):
        with pytest.raises(
            RequestError,
            match=r"all clips that train are of one group.*name groups in a manifest, sort files into more folders, or hold out less",
        ):
            require_groups(in_groups(*groups), train)


def test_stage_one_has_no_pairs():
    batch = batches(in_groups(*"aabbccdd"), "one", config=PAIRS)(0)
    assert sorted(batch.clips.tolist()) == list(range(8))


@pytest.mark.parametrize(
    "changes",
    [
        {"stage_two": {"batch_size": 7}},
        {"stage_two": {"batch_size": 2}},
        {"stage_two": {"batch_size": 6}, "stage_one": {"batch_size": 6}, "n_cache_parts": 2},
    ],
)
def test_pairs_that_do_not_fill_a_batch_are_refused(changes):
    with pytest.raises(
        RequestError,
        match=r"contrast_positives 'group' needs two pairs .*: a batch of \d in [12] parts has none",
    ):
        update(
            Config(),
            {"pretrain": {"contrast_positives": "group", "objectives": ["contrast"]} | changes},
        )


def test_parts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(
        RequestError,
        match=r"pretrain\.n_cache_parts is 3, expected a number by which the batch of 32 can be divided",
    ):
        update(Config(), {"pretrain": {"n_cache_parts": 3}})


def test_a_part_without_training_clips_is_refused(small_cache):
    data = Cache(small_cache)
    config = update(Config(), {"pretrain": {"n_cache_parts": 2, "validation_fraction": 0.0}})
    with pytest.raises(RequestError, match=r"1 shards, which cannot be dealt out to 2 parts"):
        split(data, config.pretrain)


# --- the loop, as a device that runs ahead sees it ---


def test_losses_of_many_steps_are_fetched_at_once_and_none_is_lost(tmp_path, monkeypatch):
    """A device that runs ahead is asked every few steps, before each validation and at the end; metrics.csv has a row for each step."""
    fetched = []
    fetch = loop.MetricBuffer.fetch

    def counted(self):
        fetched.append(len(self.waiting))
        fetch(self)

    def ahead(self, *arguments, **options):
        start(self, *arguments, **options)
        self.limit = 4

    start = loop.MetricBuffer.__init__
    monkeypatch.setattr(loop.MetricBuffer, "__init__", ahead)
    monkeypatch.setattr(loop.MetricBuffer, "fetch", counted)
    model = torch.nn.Linear(3, 1)
    job = loop.TrainTask(
        model,
        10,
        lambda step: torch.full((2, 3), float(step)),
        lambda model, batch: model(batch).square().mean(),
        lambda model: {"figure": 1.0},
    )
    loop.fit(job, tmp_path, config=TrainingConfig(steps=11, batch_size=2), seed=0, validate_every=6)
    assert [count for count in fetched if count] == [4, 2, 4, 1]
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(1, 12))


def test_the_first_step_of_a_warm_up_trains(tmp_path):
    model = torch.nn.Linear(3, 1)
    before = model.weight.detach().clone()
    job = loop.TrainTask(
        model, 10, lambda step: torch.ones(2, 3), lambda model, batch: model(batch).square().mean()
    )
    loop.fit(
        job,
        tmp_path,
        config=TrainingConfig(
            steps=1, batch_size=2, learning_rate=1e-2, warmup_steps=4, weight_decay=0.0
        ),
        seed=0,
        validate_every=9,
    )
    torch.testing.assert_close(
        (model.weight - before).abs(), torch.full((1, 3), 1e-2 / 4)
    )  # Adam's first step is as long as the rate


def test_processes_drop_out_differently_in_a_step_and_alike_when_it_is_taken_again():
    model = torch.nn.Dropout()

    def dropped(rank, step):
        fabric = launch("cpu")
        fabric = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            device=fabric.device,
            autocast=fabric.autocast,
            backward=lambda loss: None,
        )
        seen = []
        job = loop.TrainTask(
            model,
            10,
            lambda step: torch.ones(64),
            lambda model, batch: seen.append(model(batch)) or torch.zeros(()),
        )
        optimiser = SimpleNamespace(param_groups=[], zero_grad=lambda **_: None, step=lambda: None)
        loop.step(job, step, model, optimiser, fabric, TrainingConfig(), seed=0, total=10)
        return seen[0].tolist()

    assert dropped(1, 4) == dropped(1, 4)
    assert dropped(0, 4) != dropped(1, 4)
    assert dropped(1, 4) != dropped(1, 5)


def test_bf16_is_used_where_it_is_asked_for(tmp_path):
    """In stage II, whose loss is not the module's forward()."""
    model, seen = Patchifier(Config(model=SMALL)), []
    model.align[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    own = batches(LONG, "two", batch=2)
    for precision in ("32", "bf16"):
        job = loop.TrainTask(model, 8, own, stage_loss("two", Config().pretrain))
        loop.fit(
            job,
            tmp_path / precision,
            config=TrainingConfig(steps=1, batch_size=2),
            seed=0,
            validate_every=9,
            fabric=launch("cpu", precision=precision),
        )
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.slow
def test_the_benchmark_for_gpus_runs_on_a_processor(tmp_path, child_environment):
    """So that it can be run the moment there is a GPU."""
    script = ROOT / "benchmarks" / "gpu.py"
    options = [
        "--device",
        "cpu",
        "--clips",
        "8",
        "--batches",
        "2",
        "--agree",
        "2",
        "--steps",
        "1",
        "--equal",
        "4",
    ]
    subprocess.run(
        [sys.executable, str(script), *options, "--out", str(tmp_path / "gpu.json")],
        env=child_environment,
        check=True,
        timeout=200,
    )
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["largest_relative_difference"] for row in facts["agreement"]] == [
        0,
        0,
    ]  # the same device twice
    assert {(row["stage"], row["way"]) for row in facts["speed"]} == {
        (stage, way) for stage in ("one", "two") for way in ("float32", "bf16")
    }
    assert facts["equal_clips"][0]["steps"] == 2


def test_a_predictor_knows_no_more_than_the_mean_patch_of_a_clip_of_which_nothing_is_seen():
    patches, mean_patch = torch.full((1, 3, 1, 64, 32), -0.4), torch.full((1, 64, 32), -0.5)
    valid, everything = torch.tensor([[True, False, False]]), torch.tensor([[True, False, False]])
    known = TrainingStatistics(mean_patch, Kriging.fit([np.full((3, 64), -0.5)]))
    found = masked_predictors(
        [Batch(patches, patches, valid, everything, everything, torch.tensor([0]))], known
    )
    names = ("mean_patch", "visible_mean", "interpolation", "shrunk_interpolation", "kriging")
    assert found == pytest.approx(
        {**{f"{name}_mse": 0.01 for name in names}, "band_means_mse": 0.0}
    )


def test_decay_is_on_matrices_and_kernels_alone():
    for recipe in ("relative", "transformer-extractor", "paper"):
        config = update(Config(), read_changes(recipe))
        model = Patchifier(config)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        rows = make_optimiser(model, config.pretrain.stage_two, {}).param_groups
        decayed = {
            names[id(parameter)]
            for row in rows
            if row["weight_decay"]
            for parameter in row["params"]
        }
        tables = ("positions", "places", "distances.numbers", "cls", "mask_token")
        assert decayed == {
            name
            for name, value in model.named_parameters()
            if value.ndim > 1 and not name.endswith(tables)
        }
        assert not any(isinstance(module, torch.nn.Embedding) for module in model.modules())


@pytest.mark.parametrize("precision", ["32", "bf16", "64"])
def test_fabric_converts_a_batch_in_every_precision(precision):
    patches, marks = torch.zeros(1, 2, 1, 64, 32), torch.ones(1, 2, dtype=torch.bool)
    batch = Batch(patches, patches, marks, marks, marks, torch.tensor([0]))
    arithmetic = launch("cpu", precision=precision)._strategy.precision
    ((converted,), _) = arithmetic.convert_input(((batch,), {}))
    expected = {"32": torch.float32, "bf16": torch.bfloat16, "64": torch.float64}[precision]
    assert converted.patches.dtype == expected
    assert converted.mask.dtype == torch.bool
