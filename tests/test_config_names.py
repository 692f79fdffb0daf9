"""Config files of the first edition are read, and identities stay what they were."""

import dataclasses
import json

import pytest
import torch

from patchifier import cli
from patchifier.cli.command import parse
from patchifier.config import (
    ADDED,
    Config,
    ModelConfig,
    RequestError,
    SpectrogramConfig,
    TrainingConfig,
    current_form,
    digest,
    identity_form,
    read_changes,
    recipes,
    stored_form,
    to_dict,
    update,
)
from patchifier.config_names import FIXED, REMOVED, RENAMED, VALUES, new_name
from patchifier.nn import pitch, transformer
from patchifier.nn.model import Patchifier
from patchifier.train import objectives
from tests import GOLDEN, ROOT, builders

IDENTITIES = json.loads((GOLDEN / "identities.json").read_text())
# recipes that mean something else, or are later
REWRITTEN = {"base-paper", "synthetic"}
OLD_RUN = ROOT / "tests" / "fixtures" / "first_edition" / "run" / "config.json"
BASE = OLD_RUN.parents[1] / "base.json"  # config.json of patchifier-base of 0.1 and 0.2


def config_of(recipe: str) -> Config:
    return update(Config(), read_changes(recipes()[recipe]))


def fields(section: object, path: str) -> set[str]:
    return {f"{path}.{field.name}" for field in dataclasses.fields(section)}


def sections() -> dict[str, object]:
    config = Config()
    named = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return named | {"training": TrainingConfig()}


# --- identities: computed at commit 36a501d ---


def digest_then(config: Config) -> str:
    """Digest of the fields that there were."""
    values = stored_form(config)
    assert values["pretrain"].pop("loss_share") == 1.0
    for name, off in ADDED["augment"].items():
        assert values["augment"].pop(name) == off
    assert values["embed"].pop("silence_db") is None
    assert values["embed"].pop("mix_lfe")
    return digest(values)


@pytest.mark.parametrize("recipe", IDENTITIES["recipes"])
def test_digests_of_a_recipe_are_those_of_the_first_edition(recipe):
    config = Config() if recipe == "default" else config_of(recipe)
    config = update(config, {"embed": {"silence_db": None, "mix_lfe": True}})
    assert {
        "config": digest_then(config),
        "stored": digest(identity_form(config)),
        "spectrogram": digest(config.spectrogram),
    } == IDENTITIES["recipes"][recipe]


def test_every_recipe_has_a_known_digest():
    assert recipes().keys() - REWRITTEN | {"default"} == IDENTITIES["recipes"].keys()


def with_plain_weights(config: Config) -> Patchifier:
    """A model whose weights are eighths, so that every machine has the same bits."""
    model = Patchifier(config)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(((torch.arange(tensor.numel()) % 7 - 3) / 8).reshape(tensor.shape))
    return model


def test_identities_of_a_bundled_model_are_those_of_the_first_edition():
    config = update(Config(), read_changes(BASE))
    model, mean = with_plain_weights(config), update(config, {"embed": {"pooling": "mean"}})
    assert {
        "config": digest_then(config),
        "stored": digest(identity_form(config)),
        "spectrogram": digest(config.spectrogram),
        "identity": builders.embedder(model, config).identity,
        "mean": builders.embedder(model, mean).identity,
    } == IDENTITIES["models"]["patchifier-base"]


# --- the table ---


def test_old_names_are_no_fields_and_new_names_are():
    now = set().union(*(fields(section, path) for path, section in sections().items()))
    assert not now & (RENAMED.keys() | FIXED.keys() | REMOVED.keys())
    assert set(RENAMED.values()) <= now


def test_constants_are_those_of_the_code():
    assert {
        "spectrogram.pitch_n_fft": SpectrogramConfig(n_pitch_bands=6).frame_samples,
        "spectrogram.pitch_per_octave": 36,
        "spectrogram.pitch_f_min_hz": SpectrogramConfig().pitch_f_max_hz,
        "model.pitch_channels": pitch.CHANNELS,
        "model.extractor_layers": transformer.EXTRACTOR_LAYERS,
        "pretrain.teacher_decay": objectives.EMA_DECAY,
    } == FIXED
    octave = SpectrogramConfig(n_pitch_bands=FIXED["spectrogram.pitch_per_octave"])
    assert octave.pitch_f_max_hz == 2 * FIXED["spectrogram.pitch_f_min_hz"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.width", "model.embed_dim"),
        ("pretrain.stage_one.batch", "pretrain.stage_one.batch_size"),
        ("finetune.training.clip_norm", "finetune.training.max_grad_norm"),
        ("model.readout", "embed.whiten"),
        ("model.pitch_channels", ""),
        ("embed.max_z_score", ""),
        ("model.embed_dim", None),
        ("stage_one.batch", None),
    ],
)
def test_a_name_is_looked_up_with_its_section(old, new):
    assert new_name(old) == new


# --- reading ---


@pytest.mark.parametrize("recipe", recipes())
def test_the_stored_form_of_a_recipe_is_read_as_the_recipe(recipe):
    config = config_of(recipe)
    stored = json.loads(json.dumps(stored_form(config)))
    assert update(Config(), current_form(stored)) == config


@pytest.mark.parametrize("recipe", recipes())
def test_what_is_written_today_is_read_as_it_is(recipe):
    values = to_dict(config_of(recipe))
    assert current_form(values) == values


def test_every_name_of_a_whole_config_of_the_first_edition_is_read():
    old, config = json.loads(OLD_RUN.read_text()), update(Config(), read_changes(OLD_RUN))
    assert (config.model.embed_dim, config.model.max_patches) == (16, 4)
    assert (config.pretrain.n_patches, config.pretrain.stage_two.warmup_steps) == (3, 3)
    assert (config.finetune.pooling, config.embed.whole_clip) == ("mean", False)
    assert (config.model.norm_first, config.spectrogram.n_mels) == (False, 64)
    del old["model"]["dropout"]  # stated or not, the rest of the file has its meaning
    partly = update(Config(), current_form(old, whole=True))
    assert partly == config


def test_the_numbers_of_a_bundled_model_are_computed_from_its_fields():
    config = update(Config(), read_changes(BASE))
    old = json.loads(BASE.read_text())
    assert config.spectrogram.n_bands == old["model"]["bands"] == 280
    assert config.spectrogram.n_mels == 64
    assert config.raw_size == old["model"]["readout"]
    assert [config.pooled_size, config.embed.n_components] == old["model"]["components"]


def test_a_whole_config_of_the_first_edition_keeps_its_meaning():
    config = update(Config(), read_changes(OLD_RUN))
    assert (config.model.vector_norm, config.pretrain.extractor_lr_scale) == ("none", 1.0)


def test_a_recipe_that_states_a_few_fields_gets_todays_defaults():
    values = current_form({"model": {"layers": 4}, "pretrain": {"mask_ratio": 0.6}})
    assert update(Config(), values).model == dataclasses.replace(ModelConfig(), n_layers=4)


def test_a_config_that_means_what_the_first_edition_did_has_its_identity():
    old = json.loads(OLD_RUN.read_text())
    assert identity_form(update(Config(), read_changes(OLD_RUN))) == old


def test_a_field_that_came_later_is_part_of_an_identity_only_if_it_is_used():
    """A config that was written before the field came is read as one of today without it."""
    config = update(Config(), {"embed": {"whiten": True, "n_components": 8}})
    values = to_dict(config)
    assert values["embed"].pop("n_similarity") == 0
    read = update(Config(), current_form(values, whole=True))
    assert read == config
    assert "n_similarity" not in identity_form(config)["embed"]
    used = update(config, {"embed": {"n_similarity": 4}})
    assert identity_form(used)["embed"].pop("n_similarity") == 4
    assert (
        digest(identity_form(used)) != digest(identity_form(config)) == digest(identity_form(read))
    )


@pytest.mark.parametrize(
    ("values", "n_mels", "n_pitch_bands"),
    [
        ({"spectrogram": {"bands": 128}, "model": {"bands": 128}}, 128, 0),
        ({"spectrogram": {"bands": 280, "pitch_bands": 216}}, 64, 216),
        ({"model": {"bands": 280, "pitch_bands": 216}}, 64, 216),
        ({"spectrogram": {"pitch_bands": 24}, "model": {"channels": [4, 4, 8]}}, 40, 24),
    ],
)
def test_pitch_bands_of_the_first_edition_were_counted_among_the_bands(
    values, n_mels, n_pitch_bands
):
    spectrogram = update(Config(), current_form(values)).spectrogram
    assert (spectrogram.n_mels, spectrogram.n_pitch_bands) == (n_mels, n_pitch_bands)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"width": 64, "embed_dim": 64}}, r"model\.embed_dim is given twice"),
        ({"model": {"pitch_channels": 4}}, r"model\.pitch_channels is 4, but is always 64 now"),
        ({"embed": {"max_z_score": 3.0}}, r"embed\.max_z_score is 3\.0, but is always 0\.0 now"),
        (
            {"model": {"position_embedding": "relative"}},
            r"'relative', expected one of 'bert', 'plain'",
        ),
        (
            {"spectrogram": {"bands": 64}, "model": {"bands": 128}},
            r"spectrogram\.bands and model\.bands must be the same",
        ),
        ({"spectrogram": {"bands": "64"}}, r"'spectrogram\.n_mels' is '64', expected int"),
        ({"model": {"norm": "sideways"}}, r"'model\.norm_first' is 'sideways', expected bool"),
        ({"model": {"components": [1, 2]}, "embed": 3}, "'embed' is 3, expected a group"),
    ],
)
def test_old_fields_that_have_no_meaning_are_refused_by_name(values, message):
    with pytest.raises(RequestError, match=message):
        update(Config(), current_form(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"width": 64}}, "It is 'model.embed_dim' now"),
        ({"pretrain": {"stage_one": {"batch": 8}}}, "It is 'pretrain.stage_one.batch_size' now"),
        ({"model": {"pitch_channels": 64}}, "It is a constant now"),
    ],
)
def test_an_old_name_in_code_is_refused_with_the_new_one(changes, message):
    with pytest.raises(RequestError, match=message):
        update(Config(), changes)


# --- flags ---


@pytest.mark.parametrize(
    ("words", "section", "expected", "new"),
    [
        (["--model.width", "64"], "model", {"embed_dim": 64}, "--model.embed_dim"),
        (["--model.norm=before"], "model", {"norm_first": True}, "--model.norm_first"),
        (
            ["--pretrain.stage_two.batch", "4"],
            "pretrain",
            {"stage_two": {"batch_size": 4}},
            "--pretrain.stage_two.batch_size",
        ),
        (
            ["--pretrain.targets", "[pixels, timbre]"],
            "pretrain",
            {"objectives": ("pixels", "timbre")},
            "--pretrain.objectives",
        ),
        (["--embed.time", "whole"], "embed", {"whole_clip": True}, "--embed.whole_clip"),
        (["--model.components", "[512, 128]"], "embed", {"n_components": 128}, "n_components"),
    ],
)
def test_a_flag_with_an_old_name_is_accepted_and_the_new_one_printed(
    words, section, expected, new, capsys
):
    flags, _ = parse(cli.COMMANDS["pretrain"], ["cache", "--out", "run", *words])
    assert flags["changes"].sections == {section: expected}
    assert (flags["cache"], flags["out"]) == ("cache", "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{words[0].partition('=')[0]} is an old name of --" in line
    assert new in line
    assert line.endswith("; it works until 1.0.")


def test_both_numbers_of_bands_by_their_old_names_are_read_together():
    words = ["music", "--out", "c", "--spectrogram.bands", "280", "--spectrogram.pitch_bands=216"]
    flags, _ = parse(cli.COMMANDS["prepare"], words)
    assert flags["changes"].sections == {"spectrogram": {"n_mels": 64, "n_pitch_bands": 216}}


def test_an_old_flag_whose_value_cannot_be_is_refused(capsys):
    with pytest.raises(SystemExit) as left:
        parse(cli.COMMANDS["pretrain"], ["cache", "--out", "r", "--model.pitch_channels", "4"])
    assert left.value.code == 2
    assert "model.pitch_channels is 4, but is always 64 now" in capsys.readouterr().err


def test_values_that_changed_are_of_fields_that_were_renamed():
    assert VALUES.keys() <= RENAMED.keys()
