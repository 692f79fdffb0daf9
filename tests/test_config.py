"""Configs: JSON in and out, and every nonsensical value refused with the name of its field."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import patchifier
from patchifier.config import (
    Config,
    PretrainConfig,
    RequestError,
    TrainingConfig,
    digest,
    read_changes,
    to_dict,
    update,
)


def in_new_process(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    source = str(Path(patchifier.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source} | environment
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def leaves(config, where=""):
    """Dotted name and value of every plain field."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{where}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def nested(path: str, value) -> dict:
    """Changes that set one field, given by its dotted name."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def each(table: dict[str, list]) -> list[tuple]:
    """Rows (path, value) of a table of values by path."""
    return [(path, value) for path, values in table.items() for value in values]


CHANGED = {
    "spectrogram": {"n_fft": 1024, "mel_scale": "htk", "f_max_hz": 8000.0}
    | {"reference": "max", "top_db": 80.0},
    "model": {"channels": [16, 32, 64, 96, 128], "decoder_channels": [64, 32, 16, 8, 8]}
    | {"position_embedding": "plain", "align": "linear"},
    "augment": {"time_stretch": [1.0, 1.1], "intensity_per": "band"},
    "pretrain": {"stages": "two", "mask_ratio": 0.9, "validation_fold": 3}
    | {"stage_one": {"epochs": 2.5, "batch_size": 8}},
    "finetune": {"head_learning_rate": 1e-3, "folds": "all", "training": {"schedule": "cosine"}},
    "embed": {"pooling": "cls", "layers": [1, -1]},
}


@pytest.mark.parametrize("changes", [{}, CHANGED])
def test_a_config_comes_back_the_same_from_json(changes, tmp_path):
    config = update(Config(), changes)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    assert update(Config(), read_changes(path)) == config


def dotted(changes: dict, where: str = "") -> set[str]:
    """Dotted names of the fields that changes set."""
    names = set()
    for name, value in changes.items():
        nests = isinstance(value, dict)
        names |= dotted(value, f"{where}{name}.") if nests else {where + name}
    return names


def test_changes_arrive_and_all_else_keeps_its_default():
    before, after = dict(leaves(Config())), dict(leaves(update(Config(), CHANGED)))
    assert {path for path in before if before[path] != after[path]} == dotted(CHANGED)
    assert after["model.channels"] == (16, 32, 64, 96, 128)
    assert (after["pretrain.stage_one.epochs"], after["pretrain.stage_two.epochs"]) == (2.5, 1000.0)
    assert after["spectrogram.top_db"] == 80.0


@given(
    ratio=st.floats(0.01, 0.99),
    epochs=st.floats(0.01, 1e4),
    seed=st.integers(0, 2**62),
    layers=st.lists(st.integers(-9, 8), min_size=1, max_size=4),
)
def test_any_numbers_survive_json_bit_for_bit(ratio, epochs, seed, layers):
    changes = {
        "pretrain": {"mask_ratio": ratio, "seed": seed, "stage_two": {"epochs": epochs}},
        "embed": {"layers": layers},
    }
    config = update(Config(), changes)
    pretrain = config.pretrain
    assert (pretrain.mask_ratio, pretrain.seed, pretrain.stage_two.epochs) == (ratio, seed, epochs)
    assert update(Config(), json.loads(json.dumps(to_dict(config)))) == config


def test_to_dict_holds_plain_values_only():
    def plain(value):
        if isinstance(value, dict):
            return all(type(key) is str and plain(part) for key, part in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (bool, int, float, str)

    assert plain(to_dict(update(Config(), CHANGED)))


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("modle", "'model'"),
        ("model.chanels", "'channels'"),
        ("pretrain.mask_ration", "'mask_ratio'"),
        ("pretrain.stage_two.learning_rat", "'learning_rate'"),
        ("finetune.training.zzzz", "learning_rate"),
    ],
)
def test_an_unknown_key_is_refused_with_its_dotted_name_and_a_suggestion(path, suggestion):
    with pytest.raises(RequestError) as caught:
        update(Config(), nested(path, {}))
    assert f"'{path}'" in str(caught.value)
    assert suggestion in str(caught.value).split(path, 1)[1]


OF_ANOTHER_TYPE = {
    "spectrogram.hop_length": ["512", 512.0, None],
    "spectrogram.window": ["blackman"],
    "spectrogram.top_db": ["80"],
    "spectrogram.db_scale": [float("nan"), [0.01]],
    "model": [[1, 2]],
    "model.channels": [16, "16", [16, 32, 64, 128, 256.0]],
    "model.decoder_channels": [[16, "a", 16, 16, 16]],
    "model.map_pooling": [None],
    "augment.time_stretch": [[0.9], [0.9, 1.0, 1.2], ["a", "b"]],
    "pretrain.stage_one": [5],
    "pretrain.stage_one.batch_size": [1.5],
    "pretrain.stage_one.epochs": ["many"],
    "pretrain.stages": ["three"],
    "pretrain.validation_fold": [0.5],
    "pretrain.precision": [32],
    "finetune.head_learning_rate": ["1e-3"],
    "embed.layers": [-1, [0.5]],
}
NUMBERS = [path for path, value in leaves(Config()) if type(value) in (int, float)]


@pytest.mark.parametrize(
    ("path", "value"), [*each(OF_ANOTHER_TYPE), *((path, True) for path in NUMBERS)]
)
def test_a_value_of_the_wrong_type_is_refused_with_the_fields_name(path, value):
    """A truth value is not a number."""
    with pytest.raises(RequestError, match=f"'{path}'"):
        update(Config(), nested(path, value))


@pytest.mark.parametrize(
    "path",
    [
        "pretrain.stage_one.epochs",
        "pretrain.stage_two.weight_decay",
        "spectrogram.f_max_hz",
        "spectrogram.top_db",
        "finetune.head_learning_rate",
    ],
)
def test_a_whole_number_is_taken_where_any_number_is_meant(path):
    value = dict(leaves(update(Config(), nested(path, 1))))[path]
    assert value == 1.0
    assert type(value) is float
    assert update(Config(), {"augment": {"time_stretch": [1, 2]}}).augment.time_stretch == (1, 2)


def test_null_is_taken_where_a_field_may_be_empty():
    config = update(Config(), {"pretrain": {"validation_fold": 2}, "finetune": {"test_fold": 1}})
    again = update(config, {"pretrain": {"validation_fold": None}, "finetune": {"test_fold": None}})
    assert again == Config()


OUT_OF_RANGE = {
    "spectrogram.hop_length": [0],
    "spectrogram.n_mels": [0],
    "spectrogram.f_max_hz": [12_000],
    "spectrogram.f_min_hz": [11_025, -1],
    "model.patch_frames": [33, 0],
    "model.n_heads": [3, 0],
    "model.n_layers": [0],
    "model.embed_dim": [0],
    "model.mlp_dim": [0],
    "model.channels": [[], [16, 32, 0, 128, 256]],
    "model.decoder_channels": [[16, 16], [16, 16, 0, 16, 16]],
    "model.max_patches": [0],
    "model.n_convolutions": [0],
    "model.dropout": [1.5],
    "augment.time_stretch": [[1.2, 0.9]],
    "augment.intensity": [[0, 1]],
    "pretrain.mask_ratio": [0, 1],
    "pretrain.n_patches": [1],
    "pretrain.validation_fraction": [1, -0.1],
    "pretrain.validate_every": [-1],
    "pretrain.stage_one.batch_size": [0],
    "pretrain.stage_one.weight_decay": [-1],
    "pretrain.stage_one.warmup_steps": [-1],
    "pretrain.stage_one.max_grad_norm": [-1],
    "pretrain.stage_two.epochs": [0],
    "pretrain.stage_two.steps": [-1],
    "pretrain.stage_two.learning_rate": [0],
    "finetune.patience": [0],
    "finetune.validate_every": [0],
    "finetune.n_seeds": [0],
    "embed.hop_patches": [0],
    "embed.layers": [[]],
}


@pytest.mark.parametrize(("path", "value"), each(OUT_OF_RANGE))
def test_a_value_out_of_range_is_refused_with_the_fields_name(path, value):
    with pytest.raises(RequestError, match=path.rsplit(".", 1)[1]):
        update(Config(), nested(path, value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spectrogram": {"hop_length": 4096}}, "n_fft"),
        ({"spectrogram": {"reference": "max"}}, "top_db"),
        ({"spectrogram": {"n_mels": 40}}, r"40 x 32 .* halved 5 times: spectrogram\.n_mels"),
        ({"model": {"channels": [16, 32, 64, 128, 256, 512, 512]}}, "halved 7 times"),
        ({"pretrain": {"n_patches": 30}}, r"n_patches \(30\).*model\.max_patches \(25\)"),
        (
            {"model": {"channels": [16, 32, 64, 96, 128], "map_pooling": "mean"}},
            "'mean' gives 128 numbers",
        ),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        update(Config(), changes)


def test_fields_that_fit_together_are_taken():
    assert update(Config(), {"spectrogram": {"n_mels": 128}}).spectrogram.n_bands == 128
    longer = update(Config(), {"pretrain": {"n_patches": 30}, "model": {"max_patches": 30}})
    assert longer.pretrain.n_patches == 30


def test_configs_are_frozen_and_update_leaves_the_original_alone():
    config = Config()
    for part, name in [
        (config, "model"),
        (config.model, "embed_dim"),
        (config.pretrain.stage_one, "batch_size"),
        (config.spectrogram, "hop_length"),
    ]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, getattr(part, name))
    update(config, CHANGED)
    assert config == Config()
    assert hash(config) == hash(Config())


def test_a_recipes_reason_and_a_models_header_are_not_settings(tmp_path):
    path = tmp_path / "recipe.json"
    changes = {"pretrain": {"mask_ratio": 0.9}}
    path.write_text(json.dumps(changes | {"why": "a higher ratio", "checkpoint": {"format": 1}}))
    assert read_changes(path) == changes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "list"),
        ("3", "int"),
        *((text, "not JSON") for text in ("{", "", "\xff")),
        (None, ""),
    ],
)
def test_a_file_that_is_missing_or_no_json_object_is_refused_by_name(text, said, tmp_path):
    path = tmp_path / "broken.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RequestError, match=r"broken\.json") as caught:
        read_changes(path)
    assert said in str(caught.value)


def test_the_digest_is_the_same_in_every_process():
    arguments = "Config(), {'b': 1, 'a': [2, None]}, 3, 'x'"
    code = f"from patchifier.config import *; print(digest({arguments}))"
    here = digest(Config(), {"a": [2, None], "b": 1}, 3, "x")
    assert [in_new_process(code, PYTHONHASHSEED=seed) for seed in ("1", "2")] == [here, here]


def test_the_digest_tells_any_two_configs_apart():
    alternatives = [
        {},
        {"model": {"n_layers": 7}},
        {"pretrain": {"seed": 1}},
        {"pretrain": {"mask_ratio": 0.7500000000000001}},
        CHANGED,
    ]
    assert len({digest(update(Config(), changes)) for changes in alternatives}) == len(alternatives)


def test_steps_follow_from_epochs_unless_given():
    # 34 clips in batches of 8
    assert TrainingConfig(epochs=2, batch_size=8).total_steps(clips=17) == 5
    assert TrainingConfig(epochs=0.5, batch_size=8).total_steps(clips=16) == 1
    assert TrainingConfig(epochs=2, batch_size=8, steps=7).total_steps(clips=17) == 7
    assert PretrainConfig().stage_one.total_steps(clips=16_000) == 500_000


def test_importing_configs_imports_the_standard_library_alone():
    heavy = "torch numpy soundfile soxr safetensors sklearn librosa lightning_fabric matplotlib jsonargparse tqdm pyarrow"
    code = f"import sys, patchifier, patchifier.config; print([name for name in {heavy.split()!r} if name in sys.modules])"
    assert in_new_process(code) == "[]"
