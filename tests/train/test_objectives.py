"""Several targets and a teacher: errors whose size is known, weights that are learnt, and who sees what."""

import math
import re

import numpy as np
import pytest
import torch

from patchifier.cache import Cache
from patchifier.config import Config, RequestError, TrainingConfig, update
from patchifier.nn.descriptors import DESCRIPTORS
from patchifier.nn.fast import accelerate
from patchifier.nn.masking import random_masking
from patchifier.nn.model import Patchifier
from patchifier.train import objectives
from patchifier.train.batches import Batch
from patchifier.train.objectives import (
    EMA_TARGETS,
    PIXELS,
    Objectives,
    frozen_modules,
    require_targets,
)
from patchifier.train.pretrain import Batches, pretrain, stage_loss, stage_module

ALL = (PIXELS, *DESCRIPTORS, *EMA_TARGETS)
MODEL = {
    "channels": [4, 4, 4, 8, 8],
    "embed_dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "mlp_dim": 32,
    "dropout": 0.0,
    "n_predictor_layers": 1,
}
CONFIG = update(
    Config(),
    {
        "spectrogram": {"n_mels": 64, "n_pitch_bands": 216},
        "model": MODEL | {"norm_first": True},
        "augment": {"intensity_per": "spectrogram"},
        "pretrain": {"objectives": list(ALL), "mask_ratio": 0.5},
    },
)


def config_of(*targets: str, **model) -> Config:
    return update(CONFIG, {"pretrain": {"objectives": list(targets)}, "model": model})


def music(B: int, N: int, *, seed: int = 0) -> torch.Tensor:
    """Patches (B, N, 1, M, W) of which each clip and each band has a level of its own."""
    chance = torch.Generator().manual_seed(seed)
    levels = torch.rand(B, N, 1, 280, 1, generator=chance) + torch.rand(
        B, 1, 1, 280, 1, generator=chance
    )
    return 0.3 * levels + 0.1 * torch.rand(B, N, 1, 280, 32, generator=chance) - 0.8


def learner_of(config: Config = CONFIG, shown: torch.Tensor | None = None) -> Objectives:
    return Objectives(Patchifier(config), config, [(music(8, 6) if shown is None else shown, None)])


def half(B: int, N: int) -> torch.Tensor:
    return torch.from_numpy(random_masking(np.random.default_rng(0), np.ones((B, N), bool), 0.5))


def batch_of(
    shown: torch.Tensor,
    mask: torch.Tensor,
    valid: torch.Tensor | None = None,
    clips: torch.Tensor | None = None,
) -> Batch:
    valid = torch.ones_like(mask) if valid is None else valid
    return Batch(
        shown, shown, valid, mask, mask, torch.arange(len(mask)) if clips is None else clips
    )


def errors_of(
    learner: Objectives, shown: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    return learner.errors(batch_of(shown, mask, valid))


# --- errors ---


@torch.no_grad()
def test_an_error_is_one_for_the_mean_and_for_a_guess():
    shown = music(8, 6)
    learner = learner_of(shown=shown).eval()
    for head in learner.heads.values():
        for parameter in head.parameters():
            parameter.zero_()
    last = learner.model.decoder.up[-1]
    last.weight.zero_()
    last.bias.fill_(learner.model.mel(shown).mean())
    errors = errors_of(learner, shown, half(8, 6))
    assert list(errors) == list(ALL)
    for name, error in errors.items():
        within = (
            0.02 if name in ("latent", "contrast") else 0.15
        )  # half of the patches stand for all
        assert float(error) == pytest.approx(1, abs=within), name


@torch.no_grad()
def test_targets_are_standardised_by_training():
    shown = music(8, 6)
    learner = learner_of(shown=shown)
    for name in DESCRIPTORS:
        values = learner.standardised(name, shown[:, :, 0]).flatten(0, -2)
        assert values.mean(0).abs().max() < 1e-2, name
        deviation = values.std(0)
        assert deviation.max() < 1.01, name
        assert deviation.max() > 0.99, name


@torch.no_grad()
def test_moments_over_many_batches_are_those_over_all_at_once_and_padding_is_left_out():
    shown = music(8, 6)
    present = torch.ones(8, 9, dtype=torch.bool)
    present[:, 6:] = False
    padded = torch.cat([shown, torch.full((8, 3, 1, 280, 32), -1.0)], dim=1)
    model = Patchifier(CONFIG)
    whole = Objectives(model, CONFIG, [(shown, None)])
    parts = Objectives(model, CONFIG, [(padded[:3], present[:3]), (padded[3:], present[3:])])
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(parts.get_buffer(name), buffer, atol=1e-4, rtol=1e-3)
    assert float(whole.pixels_variance) == pytest.approx(float(shown[..., :64, :].var()), rel=1e-4)


@torch.no_grad()
def test_errors_of_a_clip_do_not_depend_on_padding():
    learner, shown = learner_of().eval(), music(1, 5)
    masked = torch.tensor([[True, False, False, True, True]])
    alone = errors_of(learner, shown, masked)
    padded = torch.cat([shown, torch.full((1, 4, 1, 280, 32), -1.0)], dim=1)
    present = torch.arange(9)[None] < 5
    beside = errors_of(learner, padded, torch.nn.functional.pad(masked, (0, 4)), present)
    for name, error in alone.items():
        torch.testing.assert_close(
            beside[name], error, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


@torch.no_grad()
def test_a_clip_that_is_one_patch_leaves_the_loss_a_number():
    """It is masked, and nothing of it is visible."""
    learner, shown = learner_of(), music(3, 4)
    present, masked = torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
    present[0, 1:], masked[0, 0], masked[1:, 1:3] = False, True, True
    errors = errors_of(learner, shown, masked, present)
    assert all(error.isfinite() for error in errors.values())
    alone = errors_of(learner, shown[:1], masked[:1], present[:1])
    assert all(error.isfinite() for error in alone.values())


class Clips:
    """Log-mels that stand in for a cache; the second and the last cannot fill a sequence."""

    def __init__(self):
        chance = np.random.default_rng(0)
        self.frames = np.array([900, 300, 830, 1249, 1000, 700, 1100, 100])
        self.clips, self.spectrogram = self.frames, CONFIG.spectrogram
        self.log_mels = [
            (chance.random((280,)) + 0.3 * chance.random((count, 280)) - 1.2).astype(np.float16)
            for count in self.frames
        ]

    def log_mel(self, index, first=0, last=None):
        return self.log_mels[index][first:last]

    def read(self, indices, spans):
        longest = int(np.diff(spans).max())
        batch = np.full((len(indices), longest, 280), -1.0, np.float16)
        for row, index, (first, last) in zip(batch, indices, spans, strict=True):
            row[: last - first] = self.log_mels[index][first:last]
        return torch.from_numpy(batch)


def batches_of(
    config: Config, rank_slice: slice | None = None, clips: np.ndarray | None = None
) -> Batches:
    return Batches(
        Clips(),
        [np.arange(8) if clips is None else clips],
        config,
        "two",
        TrainingConfig(batch_size=4),
        rank_slice=rank_slice,
    )


@torch.no_grad()
def test_weighted_losses_of_shares_average_to_the_loss_of_the_batch():
    """As two processes have it, in evaluation mode; the contrast between clips apart, which is gathered."""
    config = config_of(*(name for name in ALL if name != "contrast"))
    learner = Objectives(Patchifier(config), config, batches_of(config).examples()).eval()
    losses = []
    for rank_slice in (None, slice(0, 2), slice(2, 4)):
        own = batches_of(config, rank_slice)
        losses.append(
            [float(stage_loss("two", config.pretrain)(learner, own(step))) for step in range(4)]
        )
    whole, first, second = np.array(losses)
    np.testing.assert_allclose((first + second) / 2, whole, atol=1e-5)
    assert np.abs(first - whole).max() > 1e-3


@torch.no_grad()
def test_figures_are_errors_weighted_by_clips():
    learner = learner_of().eval()
    shown = [music(4, 6, seed=1), music(2, 6, seed=2)]
    batches = [batch_of(each, half(*each.shape[:2])) for each in shown]
    figures = learner.figures(batches)
    assert list(figures) == [f"{name}_error" for name in ALL]
    errors = [errors_of(learner, batch.patches, batch.mask, batch.valid) for batch in batches]
    for name in ALL:
        assert figures[f"{name}_error"] == pytest.approx(
            (4 * float(errors[0][name]) + 2 * float(errors[1][name])) / 6, rel=1e-5
        )


# --- weights ---


def test_weights_move_towards_the_logarithm_of_their_errors():
    learner, shown, masked = learner_of().eval(), music(8, 6, seed=1), half(8, 6)
    errors = {
        name: float(error.detach()) for name, error in errors_of(learner, shown, masked).items()
    }
    learner.stage_two_loss(batch_of(shown, masked)).backward()
    for name, parameter in learner.log_variances.items():
        assert float(parameter.grad) == pytest.approx((1 - errors[name]) / len(ALL), abs=1e-5), name
    with torch.no_grad():
        for name, parameter in learner.log_variances.items():
            parameter.fill_(math.log(errors[name]))
    learner.zero_grad()
    learner.stage_two_loss(batch_of(shown, masked)).backward()
    for name, parameter in learner.log_variances.items():
        assert float(parameter.grad) == pytest.approx(0, abs=1e-5), name


def test_training_lowers_every_error(monkeypatch):
    monkeypatch.setattr(objectives, "EMA_DECAY", 0.9)
    torch.manual_seed(0)
    learner, shown, masked = learner_of().train(), music(4, 6), half(4, 6)
    optimiser = torch.optim.AdamW(
        [parameter for parameter in learner.parameters() if parameter.requires_grad], lr=5e-3
    )
    errors = []
    for _ in range(40):
        optimiser.zero_grad()
        learner.stage_two_loss(batch_of(shown, masked)).backward()
        optimiser.step()
        with torch.no_grad():
            errors.append(
                {
                    name: float(error)
                    for name, error in errors_of(learner.train(), shown, masked).items()
                }
            )
    for name in ALL:
        assert errors[-1][name] < 0.95 * errors[0][name], name


# --- the teacher ---


def test_the_teacher_follows_by_its_decay_in_training_and_gets_no_gradient(monkeypatch):
    monkeypatch.setattr(objectives, "EMA_DECAY", 0.9)
    learner, shown, masked = learner_of(), music(4, 6), half(4, 6)
    pairs = [
        ("extractor", learner.model.extractor),
        ("bottleneck", learner.model.bottleneck),
        ("contrast", learner.heads["contrast"]),
    ]
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    before = {
        name: [value.clone() for value in getattr(learner.teacher, name).parameters()]
        for name, _ in pairs
    }
    learner.eval().stage_two_loss(batch_of(shown, masked))
    for name, _ in pairs:
        assert all(
            torch.equal(*both)
            for both in zip(getattr(learner.teacher, name).parameters(), before[name], strict=True)
        ), "it moved in evaluation"
    expected = {
        name: [
            0.9 * old + 0.1 * new.detach()
            for old, new in zip(before[name], part.parameters(), strict=True)
        ]
        for name, part in pairs
    }
    learner.train().stage_two_loss(batch_of(shown, masked)).backward()
    for name, _ in pairs:
        torch.testing.assert_close(
            list(getattr(learner.teacher, name).parameters()), expected[name]
        )
    assert not any(
        parameter.requires_grad or parameter.grad is not None
        for parameter in learner.teacher.parameters()
    )
    assert not any(
        part.training for part in learner.teacher.modules() if part is not learner.teacher.contrast
    )
    learner.stage_two_loss(batch_of(shown, masked))  # now with the statistics of the step before
    learner.teacher.update(learner, 0.9)
    for own, source in zip(
        learner.teacher.extractor.buffers(), learner.model.extractor.buffers(), strict=True
    ):
        assert torch.equal(own, source)


@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_the_teacher_sees_masked_patches_alone(padded):
    learner, shown = learner_of(), music(3, 6)
    present = torch.ones(3, 6, dtype=torch.bool) if padded else None
    masked = torch.tensor([[True, False, True, False, True, False]]).repeat(3, 1)
    if padded:
        present[0, 4:], masked[0, 4] = False, False
    before = learner.teacher(shown, present, masked)
    other = torch.where(masked[:, :, None, None, None], shown, music(3, 6, seed=3))
    for one, two in zip(before, learner.teacher(other, present, masked), strict=True):
        assert torch.equal(one, two)
    other = torch.where(masked[:, :, None, None, None], music(3, 6, seed=3), shown)
    for one, two in zip(before, learner.teacher(other, present, masked), strict=True):
        assert (one - two).abs().max() > 1e-3
    vectors, clips = before
    assert vectors.shape == (int(masked.sum()), 16)
    torch.testing.assert_close(vectors.mean(-1), torch.zeros(len(vectors)), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        vectors.var(-1, correction=0), torch.ones(len(vectors)), atol=1e-2, rtol=0
    )
    assert clips.shape == (3, 128)
    torch.testing.assert_close(clips.norm(dim=-1), torch.ones(3))


@torch.no_grad()
def test_the_teacher_says_of_a_clip_what_it_would_say_of_it_alone():
    learner, shown = learner_of(), music(3, 6)
    present, masked = torch.ones(3, 6, dtype=torch.bool), half(3, 6)
    present[1, 3:], masked[1] = False, torch.tensor([True, False, True, False, False, False])
    vectors, clips = learner.teacher(shown, present, masked)
    counts = masked.sum(1).tolist()
    for row, part in enumerate(vectors.split(counts)):
        count = int(present[row].sum())
        own, clip = learner.teacher(
            shown[row : row + 1, :count],
            None,
            masked[row : row + 1, :count],
        )
        torch.testing.assert_close(part, own, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(clips[row], clip[0], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_contrast_is_low_where_a_clip_is_its_own_teachers_and_high_where_it_is_anothers():
    learner = learner_of().eval()
    clips = torch.nn.functional.normalize(
        torch.rand(4, 128, generator=torch.Generator().manual_seed(0)) - 0.5, dim=1
    )
    learner.heads["contrast"] = torch.nn.Identity()
    own, others = (
        float(Objectives.info_nce(learner, each, clips)) for each in (clips, clips.roll(1, 0))
    )
    assert own < 0.1 < 1 < others


def contrast_of_groups(
    learner: Objectives, asked: list[int], heard: list[int], clips: list[int], groups: list[int]
) -> float:
    """Vectors and what the teacher hears are unit vectors along these axes; a temperature of 0.1 makes a likeness of 10."""
    axes = torch.eye(128)
    learner.heads["contrast"] = torch.nn.Identity()
    with torch.no_grad():
        return float(
            Objectives.info_nce(
                learner, axes[asked], axes[heard], torch.tensor(clips), torch.tensor(groups)
            )
        ) * math.log(len(clips))


def test_contrast_of_groups_asks_for_the_others_of_the_group_and_not_for_the_clip():
    learner, pairs = (
        learner_of(config_of("contrast")),
        {"clips": [0, 2, 1, 4, 3, 6], "groups": [7, 7, 5, 5, 9, 9]},
    )
    one_of_five = math.log(1 + 4 * math.exp(-10))
    assert contrast_of_groups(
        learner, [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], **pairs
    ) == pytest.approx(one_of_five, abs=1e-5)
    assert contrast_of_groups(
        learner, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], **pairs
    ) == pytest.approx(math.log(5), rel=1e-5)  # itself is no answer


def test_contrast_of_groups_takes_all_of_a_group_that_a_batch_meets_twice():
    """The first two know the group's third clip, and each other not: one of two answers, of five that are asked about."""
    found = contrast_of_groups(
        learner_of(config_of("contrast")),
        [0, 0, 1, 1, 1, 1],
        [2, 3, 0, 0, 1, 1],
        clips=[0, 1, 2, 2, 3, 4],
        groups=[7, 7, 7, 7, 8, 8],
    )
    known, unknown = 2 * math.exp(10) + 3, 2 * math.exp(10) + 2
    of_first = -(2 * math.log(math.exp(10) / known) + math.log(1 / known)) / 3
    of_third = -2 * math.log(1 / unknown) / 2  # it takes the strangers for its own
    of_strangers = math.log((math.exp(10) + 4) / math.exp(10))
    assert found == pytest.approx((2 * of_first + 2 * of_third + 2 * of_strangers) / 6, rel=1e-5)


def test_a_clip_alone_in_its_group_is_asked_for_itself_and_its_other_crop_is_no_answer():
    learner, who = (
        learner_of(config_of("contrast")),
        {"clips": [0, 0, 1, 1], "groups": [7, 7, 8, 8]},
    )
    assert contrast_of_groups(learner, [0, 1, 2, 3], [0, 1, 2, 3], **who) == pytest.approx(
        math.log(1 + 2 * math.exp(-10)), abs=1e-5
    )
    assert contrast_of_groups(learner, [0, 1, 2, 3], [1, 0, 3, 2], **who) == pytest.approx(
        math.log(3), rel=1e-5
    )


def test_held_out_clips_are_told_from_other_groups():
    learner, who = (
        learner_of(config_of("contrast")).eval(),
        {"clips": [0, 1, 2, 3], "groups": [7, 7, 7, 8]},
    )
    assert contrast_of_groups(learner, [0, 0, 0, 1], [0, 0, 0, 1], **who) == pytest.approx(
        (3 * math.log(1 + math.exp(-10)) + math.log(1 + 3 * math.exp(-10))) / 4, abs=1e-5
    )
    assert contrast_of_groups(learner, [1, 1, 1, 0], [0, 0, 0, 1], **who) > 9


def test_without_latent_or_contrast_there_is_no_teacher():
    learner = learner_of(config_of(PIXELS, "timbre"))
    assert learner.teacher is None
    assert not [name for name in learner.state_dict() if name.startswith("teacher")]


# --- what is trained ---


@pytest.mark.parametrize("predictor", [0, 1])
@pytest.mark.parametrize(
    "targets",
    [ALL, ("latent",), ("contrast",), ("harmony",), ("timbre", "latent"), (PIXELS, "pulse")],
    ids="+".join,
)
def test_all_that_is_trained_gets_a_gradient(targets, predictor):
    """Several processes would miss a gradient that one of them lacks."""
    config = config_of(*targets, n_predictor_layers=predictor)
    own = batches_of(config, clips=np.array([0, 2, 3, 4]))
    learner = stage_module("two", accelerate(Patchifier(config)), own, config).train()
    stage_loss("two", config.pretrain)(learner, own(0)).backward()
    trained = [name for name, parameter in learner.named_parameters() if parameter.requires_grad]
    missing = [name for name in trained if learner.get_parameter(name).grad is None]
    assert not missing
    assert any(name.startswith("model.extractor.pitch") for name in trained)
    frozen = [
        name
        for name, part in learner.model.named_children()
        if not any(parameter.requires_grad for parameter in part.parameters())
    ]
    assert set(frozen) == set(frozen_modules(config)) - ({"predictor"} if not predictor else set())


def test_making_a_learner_leaves_the_global_generator_alone_and_heads_follow_the_seed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = learner_of()
    assert torch.equal(torch.rand(3), expected)
    second, other = learner_of(), learner_of(update(CONFIG, {"pretrain": {"seed": 1}}))
    for name, value in first.heads.state_dict().items():
        assert torch.equal(value, second.heads.state_dict()[name])
    assert not torch.equal(first.heads["pulse"].weight, other.heads["pulse"].weight)


def test_targets_are_refused_before_stage_one(small_cache, tmp_path):
    config = update(Config(), {"pretrain": {"objectives": ["pixels", "chroma"]}})
    with pytest.raises(RequestError, match="'chroma' needs pitch bands"):
        pretrain(small_cache, tmp_path / "run", config=config)
    assert not (tmp_path / "run").exists()


# --- teacher features ---


@torch.no_grad()
def test_what_another_model_says_is_asked_of_the_clip_whose_it_is():
    config = update(config_of("harmony", "distil"), {"pretrain": {"teacher_features": "somewhere"}})
    said = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    learner = Objectives(Patchifier(config), config, [(music(8, 6), None)], said).eval()
    learner.heads["distil"].weight.zero_()
    shown, masked, clips = music(3, 6), half(3, 6), torch.tensor([4, 19, 0])
    learner.heads["distil"].bias.copy_(said[4])
    errors = learner.errors(batch_of(shown[:1], masked[:1], clips=clips[:1]))
    assert float(errors["distil"]) == 0
    learner.heads["distil"].bias.zero_()
    errors = learner.errors(batch_of(shown, masked, clips=clips))
    assert float(errors["distil"]) == pytest.approx(float(said[clips].square().mean()), rel=1e-5)
    assert not any(
        name.startswith("teacher_features") for name in learner.state_dict()
    )  # it lies in its own files


def test_a_run_learns_what_another_model_says_and_names_clips_of_which_nothing_is_said(
    small_cache, tmp_path
):
    data = Cache(small_cache)
    levels = [float(np.mean(data.log_mel(index))) for index in range(len(data.clips))]
    for clip, level in zip(data.clips, levels, strict=True):
        file = tmp_path / f"{clip.id}.npy"
        file.parent.mkdir(exist_ok=True)
        np.save(file, np.array([level, 0.3], np.float32))
    stage = {"steps": 60, "batch_size": 8, "learning_rate": 3e-3}
    changes = {
        "model": MODEL,
        "pretrain": {
            "stages": "two",
            "objectives": ["distil"],
            "teacher_features": str(tmp_path),
            "stage_two": stage,
            "n_patches": 6,
        },
    }
    changes["pretrain"] |= {"validation_fraction": 0.2, "precision": "32", "validate_every": 30}
    pretrain(small_cache, tmp_path / "run", config=update(Config(), changes), device="cpu")
    rows = (tmp_path / "run" / "stage-two" / "validation.csv").read_text().splitlines()
    column = rows[0].split(",").index("distil_error")
    errors = [float(row.split(",")[column]) for row in rows[1:]]
    assert errors[-1] < 0.5 * errors[0], (
        errors
    )  # a level is easily heard; the number that never changes is no trouble
    (tmp_path / f"{data.clips[3].id}.npy").unlink()
    with pytest.raises(
        RequestError, match="has no file for the clips " + re.escape(data.clips[3].id)
    ):
        pretrain(small_cache, tmp_path / "other", config=update(Config(), changes), device="cpu")


@pytest.mark.parametrize(
    "pretraining", [{"objectives": ["pixels", "distil"]}, {"teacher_features": "somewhere"}]
)
def test_distillation_needs_both_the_target_and_the_folder(pretraining):
    with pytest.raises(RequestError, match="need each other"):
        require_targets(update(Config(), {"pretrain": pretraining}))
