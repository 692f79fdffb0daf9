"""Several targets and a teacher: errors whose size is known, weights that are learnt, and who sees what."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize, pad

from patchifier import checkpoint
from patchifier.cache import Cache
from patchifier.config import Config, RequestError, TrainingConfig, update
from patchifier.jobs import STATE_FILE
from patchifier.nn.descriptors import DESCRIPTORS
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Patchifier
from patchifier.nn.whitening import SIMILARITY_RATIO
from patchifier.seeding import random_masking
from patchifier.train import objectives
from patchifier.train.batches import Batch
from patchifier.train.note_labels import note_labels
from patchifier.train.objectives import (
    CONTRAST,
    PIXELS,
    Objectives,
    frozen_modules,
    require_targets,
)
from patchifier.train.pretrain import Batches, pretrain, split, stage_loss, stage_module
from patchifier.train.teacher import teacher_features
from patchifier.train.whitening import examples_of
from tests import builders
from tests.builders import TINY, close, uniform
from tests.log_mels import Clips

ALL = (PIXELS, *DESCRIPTORS, CONTRAST)
SMALL = {"channels": [4, 4, 4, 8, 8], "dropout": 0.0, "n_predictor_layers": 1}
CONFIG = update(
    Config(),
    {
        "spectrogram": {"n_pitch_bands": 216},
        "model": TINY | SMALL | {"norm_first": True},
        "augment": {"intensity_per": "spectrogram"},
        "pretrain": {"objectives": list(ALL), "mask_ratio": 0.5},
    },
)


def config_of(*targets: str, pretrain: dict | None = None, **model) -> Config:
    pretrain = {"objectives": list(targets or ALL)} | (pretrain or {})
    return update(CONFIG, {"pretrain": pretrain, "model": model})


def music(B: int, N: int, *, seed: int = 0) -> torch.Tensor:
    """Patches (B, N, 1, M, W) of which each clip and each band has a level of its own."""
    levels = uniform(B, N, 1, 280, 1, seed=seed) + uniform(B, 1, 1, 280, 1, seed=seed + 100)
    return 0.3 * levels + 0.1 * uniform(B, N, 1, 280, 32, seed=seed + 200) - 0.8


def learner_of(config: Config = CONFIG, *given) -> Objectives:
    return Objectives(Patchifier(config), config, [(music(8, 6), None)], *given)


def half(B: int, N: int) -> torch.Tensor:
    return torch.from_numpy(random_masking(np.random.default_rng(0), np.ones((B, N), bool), 0.5))


def batch_of(shown, mask, valid=None, clips=None) -> Batch:
    valid = torch.ones_like(mask) if valid is None else valid
    clips = torch.arange(len(mask)) if clips is None else clips
    zeros = np.zeros(len(mask))
    return Batch(shown, shown, valid, mask, mask, clips, zeros.astype(int), zeros + 1, zeros)


def masked(patches: torch.Tensor, mask: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Masked patches as they are, the others replaced."""
    return torch.where(mask[:, :, None, None, None], patches, other)


@torch.no_grad()
def test_an_error_is_one_for_the_mean_and_for_a_guess():
    shown, learner = music(8, 6), learner_of().eval()
    for parameter in learner.heads.parameters():
        parameter.zero_()
    last = learner.model.decoder.up[-1]
    last.weight.zero_()
    last.bias.fill_(learner.model.mel(shown).mean())
    errors = learner.errors(batch_of(shown, half(8, 6)))
    assert list(errors) == list(ALL)
    for name, error in errors.items():  # half of the patches stand for all
        within = 0.02 if name == CONTRAST else 0.15
        assert float(error) == pytest.approx(1, abs=within), name


@torch.no_grad()
def test_targets_are_standardised_by_training():
    shown, learner = music(8, 6), learner_of()
    for name in DESCRIPTORS:
        values = learner.standardised(name, shown[:, :, 0]).flatten(0, -2)
        assert values.mean(0).abs().max() < 1e-2, name
        assert 0.99 < values.std(0).max() < 1.01, name


@torch.no_grad()
def test_moments_over_many_batches_are_those_over_all_at_once_and_padding_is_left_out():
    shown, valid = music(8, 6), torch.arange(9).expand(8, 9) < 6
    padded, model = pad(shown, (0, 0) * 3 + (0, 3), value=-1.0), Patchifier(CONFIG)
    whole = Objectives(model, CONFIG, [(shown, None)])
    parts = Objectives(model, CONFIG, [(padded[:3], valid[:3]), (padded[3:], valid[3:])])
    close(dict(parts.named_buffers()), dict(whole.named_buffers()), atol=1e-4, rtol=1e-3)
    assert float(whole.pixels_variance) == pytest.approx(float(shown[..., :64, :].var()), rel=1e-4)


@torch.no_grad()
def test_errors_of_a_clip_do_not_depend_on_padding():
    learner, shown = learner_of().eval(), music(1, 5)
    mask, valid = torch.tensor([[True, False, False, True, True]]), torch.arange(9)[None] < 5
    padded = pad(shown, (0, 0) * 3 + (0, 4), value=-1.0)
    beside = learner.errors(batch_of(padded, pad(mask, (0, 4)), valid))
    close(beside, learner.errors(batch_of(shown, mask)), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_clip_that_is_one_patch_leaves_the_loss_a_number():
    """It is masked, and nothing of it is visible."""
    learner, shown = learner_of(), music(3, 4)
    valid, mask = torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
    valid[0, 1:], mask[0, 0], mask[1:, 1:3] = False, True, True
    for count in (3, 1):
        errors = learner.errors(batch_of(shown[:count], mask[:count], valid[:count]))
        assert all(error.isfinite() for error in errors.values())


FRAMES = (900, 300, 830, 1249, 1000, 700, 1100, 100)  # the second and last fill no sequence
CLIPS = Clips(*FRAMES, bands=280, spectrogram=CONFIG.spectrogram)


def batches_of(config: Config, rank_slice: slice | None = None, clips=range(8)) -> Batches:
    training = TrainingConfig(batch_size=4)
    return Batches(CLIPS, [np.array(clips)], config, "two", training, rank_slice=rank_slice)


@torch.no_grad()
def test_weighted_losses_of_shares_average_to_the_loss_of_the_batch():
    """As two processes have it, in evaluation mode; the contrast between clips apart, which is gathered."""
    config = config_of(*(name for name in ALL if name != "contrast"))
    learner = Objectives(Patchifier(config), config, batches_of(config).examples()).eval()
    loss, shares = stage_loss("two", config.pretrain), (None, slice(0, 2), slice(2, 4))
    own = [batches_of(config, rank_slice) for rank_slice in shares]
    whole, first, second = np.array([[float(loss(learner, b(n))) for n in range(4)] for b in own])
    np.testing.assert_allclose((first + second) / 2, whole, atol=1e-5)
    assert np.abs(first - whole).max() > 1e-3


@torch.no_grad()
def test_figures_are_errors_weighted_by_clips():
    learner = learner_of().eval()
    batches = [batch_of(music(B, 6, seed=B), half(B, 6)) for B in (4, 2)]
    four, two = map(learner.errors, batches)
    wanted = {f"{name}_error": float(4 * four[name] + 2 * two[name]) / 6 for name in ALL}
    figures = learner.figures(batches)
    assert list(figures) == list(wanted)
    assert figures == pytest.approx(wanted, rel=1e-5)


def test_weights_move_towards_the_logarithm_of_their_errors():
    learner, batch = learner_of().eval(), batch_of(music(8, 6, seed=1), half(8, 6))
    errors = {name: float(error.detach()) for name, error in learner.errors(batch).items()}
    for at_rest in (False, True):
        learner.zero_grad()
        learner.stage_two_loss(batch).backward()
        for name, parameter in learner.log_variances.items():
            wanted = 0 if at_rest else (1 - errors[name]) / len(ALL)
            assert float(parameter.grad) == pytest.approx(wanted, abs=1e-5), name
            parameter.data.fill_(math.log(errors[name]))


def test_training_lowers_every_error(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(objectives, "EMA_DECAY", 0.9)
    learner = learner_of().train()
    batch = batch_of(music(4, 6), half(4, 6))
    optimiser = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=5e-3)
    errors = []
    for _ in range(15):
        optimiser.zero_grad()
        learner.stage_two_loss(batch).backward()
        optimiser.step()
        with torch.no_grad():
            errors.append({name: float(e) for name, e in learner.errors(batch).items()})
    for name in ALL:
        assert errors[-1][name] < 0.95 * errors[0][name], name


def test_the_teacher_follows_by_its_decay_in_training_and_gets_no_gradient(monkeypatch):
    monkeypatch.setattr(objectives, "EMA_DECAY", 0.9)
    learner = learner_of()
    teacher, model, batch = learner.teacher, learner.model, batch_of(music(4, 6), half(4, 6))

    def followed():
        parts = (teacher.extractor, teacher.bottleneck, teacher.contrast)
        return [parameter for part in parts for parameter in part.parameters()]

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    before = [value.clone() for value in followed()]
    learner.eval().stage_two_loss(batch)
    assert all(map(torch.equal, followed(), before)), "it moved in evaluation"
    parts = (model.extractor, model.bottleneck, learner.heads["contrast"])
    sources = [parameter.detach() for part in parts for parameter in part.parameters()]
    wanted = [0.9 * old + 0.1 * new for old, new in zip(before, sources, strict=True)]
    learner.train().stage_two_loss(batch).backward()
    close([value.detach() for value in followed()], wanted, atol=1e-5, rtol=1e-6)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not any(part.training for part in teacher.modules() if part is not teacher.contrast)
    learner.stage_two_loss(batch)  # now with the statistics of the step before
    teacher.update(learner, 0.9)
    assert all(map(torch.equal, teacher.extractor.buffers(), model.extractor.buffers()))


@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_the_teacher_sees_masked_patches_alone(padded):
    learner, shown, elsewhere = learner_of(), music(3, 6), music(3, 6, seed=3)
    valid = torch.ones(3, 6, dtype=torch.bool) if padded else None
    mask = torch.tensor([[True, False, True, False, True, False]]).repeat(3, 1)
    if padded:
        valid[0, 4:], mask[0, 4] = False, False
    clips = learner.teacher(shown, valid, mask)
    assert torch.equal(clips, learner.teacher(masked(shown, mask, elsewhere), valid, mask))
    other = learner.teacher(masked(elsewhere, mask, shown), valid, mask)
    assert (clips - other).abs().max() > 1e-3
    assert clips.shape == (3, 128)
    close(clips.norm(dim=-1), torch.ones(3))


@torch.no_grad()
def test_the_teacher_says_of_a_clip_what_it_would_say_of_it_alone():
    learner, shown = learner_of(), music(3, 6)
    valid, mask = torch.ones(3, 6, dtype=torch.bool), half(3, 6)
    valid[1, 3:], mask[1] = False, torch.tensor([True, False, True, False, False, False])
    clips = learner.teacher(shown, valid, mask)
    for row, count in enumerate(valid.sum(1).tolist()):
        alone = learner.teacher(shown[row, None, :count], None, mask[row, None, :count])
        close(clips[row, None], alone, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_contrast_is_low_where_a_clip_is_its_own_teachers_and_high_where_it_is_anothers():
    learner, clips = learner_of().eval(), normalize(uniform(4, 128) - 0.5, dim=1)
    learner.heads["contrast"] = torch.nn.Identity()
    own, others = (
        float(Objectives.info_nce(learner, each, clips)) for each in (clips, clips.roll(1, 0))
    )
    assert own < 0.1 < 1 < others


@pytest.fixture(scope="module")
def contrasting() -> Objectives:
    learner = learner_of(config_of("contrast"))
    learner.heads["contrast"] = torch.nn.Identity()
    return learner


E10 = math.exp(10)  # a temperature of 0.1 makes a likeness of 10
PAIRS = {"clips": [0, 2, 1, 4, 3, 6], "groups": [7, 7, 5, 5, 9, 9]}
ALONE = {"clips": [0, 0, 1, 1], "groups": [7, 7, 8, 8]}
HELD_OUT = {"clips": [0, 1, 2, 3], "groups": [7, 7, 7, 8]}
MET_TWICE = {"clips": [0, 1, 2, 2, 3, 4], "groups": [7, 7, 7, 7, 8, 8]}
# The first two know the group's third clip, and each other not: one of two answers of five.
OF_FIRST = -(2 * math.log(E10 / (2 * E10 + 3)) + math.log(1 / (2 * E10 + 3))) / 3
OF_THIRD = -2 * math.log(1 / (2 * E10 + 2)) / 2  # it takes the strangers for its own
OF_STRANGERS = math.log((E10 + 4) / E10)


@pytest.mark.parametrize(
    ("asked", "heard", "who", "wanted"),
    [
        ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], PAIRS, math.log(1 + 4 / E10)),
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], PAIRS, math.log(5)),  # itself is no answer
        (
            [0, 0, 1, 1, 1, 1],
            [2, 3, 0, 0, 1, 1],
            MET_TWICE,
            (OF_FIRST + OF_THIRD + OF_STRANGERS) / 3,
        ),
        ([0, 1, 2, 3], [0, 1, 2, 3], ALONE, math.log(1 + 2 / E10)),
        ([0, 1, 2, 3], [1, 0, 3, 2], ALONE, math.log(3)),  # nor is its other crop
    ],
)
@torch.no_grad()
def test_contrast_of_groups_asks_for_the_others_of_the_group_or_for_a_clip_that_is_alone(
    asked, heard, who, wanted, contrasting
):
    assert contrast_of_groups(contrasting.train(), asked, heard, **who) == pytest.approx(
        wanted, rel=1e-5, abs=1e-5
    )


@torch.no_grad()
def test_held_out_clips_are_told_from_other_groups(contrasting):
    contrasting.eval()
    found = contrast_of_groups(contrasting, [0, 0, 0, 1], [0, 0, 0, 1], **HELD_OUT)
    wanted = (3 * math.log(1 + 1 / E10) + math.log(1 + 3 / E10)) / 4
    assert found == pytest.approx(wanted, abs=1e-5)
    assert contrast_of_groups(contrasting, [1, 1, 1, 0], [0, 0, 0, 1], **HELD_OUT) > 9


def contrast_of_groups(learner, asked, heard, clips, groups) -> float:
    """The loss where vectors and what the teacher says are unit vectors along these axes."""
    axes, who = torch.eye(128), (torch.tensor(clips), torch.tensor(groups))
    return float(Objectives.info_nce(learner, axes[asked], axes[heard], *who)) * math.log(
        len(clips)
    )


def test_without_contrast_there_is_no_teacher():
    learner = learner_of(config_of(PIXELS, "timbre"))
    assert learner.teacher is None
    assert not [name for name in learner.state_dict() if name.startswith("teacher")]


@pytest.mark.parametrize("predictor", [0, 1])
@pytest.mark.parametrize(
    "targets",
    [ALL, (CONTRAST,), ("harmony",), ("timbre", CONTRAST), (PIXELS, "pulse")],
    ids="+".join,
)
def test_all_that_is_trained_gets_a_gradient(targets, predictor):
    """Several processes would miss a gradient that one of them lacks."""
    config = config_of(*targets, n_predictor_layers=predictor)
    own = batches_of(config, clips=(0, 2, 3, 4))
    learner = stage_module("two", accelerate(Patchifier(config)), own, config).train()
    stage_loss("two", config.pretrain)(learner, own(0)).backward()
    trained = {name: each for name, each in learner.named_parameters() if each.requires_grad}
    assert not [name for name, parameter in trained.items() if parameter.grad is None]
    assert any(name.startswith("model.extractor.pitch") for name in trained)
    parts = dict(learner.model.named_children()).items()
    frozen = {name for name, part in parts if not any(p.requires_grad for p in part.parameters())}
    assert frozen == set(frozen_modules(config)) - ({"predictor"} if not predictor else set())


def test_making_a_learner_leaves_the_global_generator_alone_and_heads_follow_the_seed():
    before = torch.get_rng_state()
    first, second = learner_of(), learner_of()
    assert torch.equal(torch.get_rng_state(), before)
    other = learner_of(config_of(pretrain={"seed": 1}))
    states = first.heads.state_dict(), second.heads.state_dict()
    assert all(map(torch.equal, *(state.values() for state in states)))
    assert not torch.equal(first.heads["pulse"].weight, other.heads["pulse"].weight)


def test_targets_are_refused_before_stage_one(small_cache, tmp_path):
    config = update(Config(), {"pretrain": {"objectives": ["pixels", "chroma"]}})
    with pytest.raises(RequestError, match="'chroma' needs pitch bands"):
        pretrain(small_cache, tmp_path / "run", config=config)
    assert not (tmp_path / "run").exists()


@torch.no_grad()
def test_what_another_model_says_is_asked_of_the_clip_whose_it_is():
    config = config_of("harmony", "distil", pretrain={"teacher_features": "somewhere"})
    said = uniform(20, 7) - 0.5
    learner = learner_of(config, said).eval()
    head, shown, mask = learner.heads["distil"], music(3, 6), half(3, 6)
    clips = torch.tensor([4, 19, 0])

    def error(count):
        batch = batch_of(shown[:count], mask[:count], clips=clips[:count])
        return float(learner.errors(batch)["distil"])

    head.weight.zero_()
    head.bias.copy_(said[4])
    assert error(1) == 0
    head.bias.zero_()
    assert error(3) == pytest.approx(float(said[clips].square().mean()), rel=1e-5)
    learner.teacher_features[19] = torch.nan  # a rendered clip without features
    assert error(3) == pytest.approx(float(said[clips[[0, 2]]].square().mean()), rel=1e-5)
    assert learner.figures([batch_of(shown, mask, clips=clips)])["distil_error"] == error(3)
    # it lies in its own files
    assert not any(name.startswith("teacher_features") for name in learner.state_dict())


def taught(data: Cache, folder, said, **stage) -> Config:
    """A small config of distillation, and a file in `folder` of what is said of each log-mel."""
    for index, clip in enumerate(data.clips):
        file = folder / f"{clip.id}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.array(said(data.log_mel(index)), np.float32))
    pretraining = {
        "stages": "two",
        "objectives": ["distil"],
        "teacher_features": str(folder),
        "stage_two": {"batch_size": 8, "learning_rate": 3e-3, "schedule": "cosine"} | stage,
        "n_patches": 6,
        "validation_fraction": 0.2,
        "precision": "32",
        "validate_every": 30,
    }
    return update(Config(), {"model": TINY | SMALL, "pretrain": pretraining})


def test_a_run_learns_what_another_model_says_and_names_clips_of_which_nothing_is_said(
    small_cache, tmp_path
):
    data = Cache(small_cache)
    config = taught(data, tmp_path, lambda log_mel: [np.mean(log_mel), 0.3], steps=60)
    pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
    names, *rows = (tmp_path / "run" / "stage-two" / "validation.csv").read_text().splitlines()
    column = names.split(",").index("distil_error")
    errors = [float(row.split(",")[column]) for row in rows]
    # a level is easily heard; the number that never changes is no trouble
    assert errors[-1] < 0.5 * errors[0], errors
    (tmp_path / f"{data.clips[3].id}.npy").unlink()
    with pytest.raises(RequestError, match=data.clips[3].id):
        pretrain(small_cache, tmp_path / "other", config=config, device="cpu")


def test_the_slice_of_similar_music_has_components_of_what_the_head_predicts(small_cache, tmp_path):
    data, run = Cache(small_cache), tmp_path / "run"
    levels = taught(data, tmp_path / "said", lambda log_mel: log_mel.mean(1)[:5], steps=4)
    config = update(levels, {"embed": {"whiten": True, "n_similarity": 2}})
    pretrain(small_cache, run, config=config, device="cpu")
    made = checkpoint.load(run / "model")
    log_mels = list(examples_of(data, split(data, config.pretrain).slices[0]))
    found = builders.embedder(made.model, config).embed_log_mels(log_mels)
    plain = update(levels, {"embed": {"pooling": "mean"}})
    means = builders.embedder(made.model, plain).embed_log_mels(log_mels).astype(float)
    head = load_file(run / "stage-two" / STATE_FILE)["model.heads.distil.weight"].double().numpy()
    assert head.shape == (5, 16)
    predicted = (means - means.mean(0)) @ head.T
    variances, vectors = np.linalg.eigh(predicted.T @ predicted / len(predicted))
    deviations = np.sqrt(variances[::-1][:2])
    wanted = predicted @ vectors[:, ::-1][:, :2] / np.sqrt(deviations * deviations.mean())
    wanted *= np.sqrt(SIMILARITY_RATIO * 32 / 2) * np.sign((wanted * found[:, :2]).sum(0))
    np.testing.assert_allclose(found[:, :2], wanted, atol=1e-2)
    # what is done again after the end has the same bits
    shutil.rmtree(run / "model")
    pretrain(small_cache, run, config=config, device="cpu", resume=True)
    again = checkpoint.load(run / "model").model.readout.state_dict()
    assert set(again) == {"mean", "scale", "similarity"}
    for name, tensor in made.model.readout.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_the_slice_of_similar_music_needs_distillation_and_no_more_numbers_than_that(
    small_cache, tmp_path
):
    alone = update(Config(), {"embed": {"whiten": True, "n_similarity": 4}})
    with pytest.raises(RequestError, match=r"embed\.n_similarity 4 needs the target 'distil'"):
        require_targets(alone)
    config = taught(Cache(small_cache), tmp_path, lambda log_mel: log_mel.mean(1)[:3], steps=1)
    config = update(config, {"embed": {"whiten": True, "n_similarity": 4}})
    with pytest.raises(RequestError, match=r"n_similarity is 4, but the vectors in .* 3 numbers"):
        pretrain(small_cache, tmp_path / "run", config=config, device="cpu")


def test_rendered_clips_with_notes_need_no_features_of_another_model(small_cache, tmp_path):
    data = Cache(small_cache)
    clips = np.arange(len(data.clips))
    for index, clip in enumerate(data.clips):
        file = tmp_path / f"{clip.id}.npy"
        file.parent.mkdir(exist_ok=True)
        if index % 2:
            np.save(file, np.array([index, 1.0], np.float32))
        else:
            notes = {"notes": [[0, 40, 60, 0]], "bpm": 90}
            (tmp_path / clip.id).with_suffix(".json").write_text(json.dumps(notes))
    targets = {"teacher_features": str(tmp_path), "note_labels": str(tmp_path)}
    config = config_of("distil", "notes", pretrain=targets)
    labels = note_labels(data, [clips], config)
    features = teacher_features(data, [clips], config, labels)
    assert features[::2].isnan().all()
    z_scores = (clips[1::2] - clips[1::2].mean()) / clips[1::2].std()
    np.testing.assert_allclose(features[1::2, 0], z_scores, atol=1e-6)
    (tmp_path / data.clips[0].id).with_suffix(".json").unlink()  # now nothing is known about it
    labels = note_labels(data, [clips], config)
    with pytest.raises(RequestError, match=data.clips[0].id):
        teacher_features(data, [clips], config, labels)


@pytest.mark.parametrize(
    "changes", [{"objectives": ["pixels", "distil"]}, {"teacher_features": "somewhere"}]
)
def test_distillation_needs_both_the_target_and_the_folder(changes):
    with pytest.raises(RequestError, match="need each other"):
        require_targets(update(Config(), {"pretrain": changes}))
