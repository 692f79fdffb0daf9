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
    ModelConfig,
    PretrainConfig,
    RequestError,
    SpectrogramConfig,
    TrainingConfig,
    digest,
    read_changes,
    to_dict,
    update,
)


def in_new_process(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    source = str(Path(patchifier.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": source} | environment,
        capture_output=True,
        text=True,
    )
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


CHANGED = {
    "spectrogram": {
        "n_fft": 1024,
        "mel_scale": "htk",
        "f_max_hz": 8000.0,
        "reference": "max",
        "top_db": 80.0,
    },
    "model": {
        "channels": [16, 32, 64, 96, 128],
        "position_embedding": "plain",
        "align": "linear",
        "decoder_channels": [64, 32, 16, 8, 8],
    },
    "augment": {"time_stretch": [1.0, 1.1], "intensity_per": "band"},
    "pretrain": {
        "stages": "two",
        "mask_ratio": 0.9,
        "validation_fold": 3,
        "stage_one": {"epochs": 2.5, "batch_size": 8},
    },
    "finetune": {"head_learning_rate": 1e-3, "folds": "all", "training": {"schedule": "cosine"}},
    "embed": {"pooling": "cls", "layers": [1, -1]},
}


# --- in and out ---


@pytest.mark.parametrize("changes", [{}, CHANGED])
def test_a_config_comes_back_the_same_from_json(changes, tmp_path):
    config = update(Config(), changes)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    assert update(Config(), read_changes(path)) == config


def dotted(changes: dict, where: str = "") -> set[str]:
    """Dotted names of the fields that changes set."""
    parts = [
        dotted(value, f"{where}{name}.") if isinstance(value, dict) else {where + name}
        for name, value in changes.items()
    ]
    return set().union(*parts)


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
    assert (config.pretrain.mask_ratio, config.pretrain.seed, config.pretrain.stage_two.epochs) == (
        ratio,
        seed,
        epochs,
    )
    assert update(Config(), json.loads(json.dumps(to_dict(config)))) == config


def test_to_dict_holds_plain_values_only():
    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(part) for key, part in value.items())
        return (
            all(map(plain, value))
            if isinstance(value, list)
            else value is None or type(value) in (bool, int, float, str)
        )

    assert plain(to_dict(update(Config(), CHANGED)))


def test_the_paper_is_the_default():
    config = Config()
    assert (
        config.spectrogram.sample_rate,
        config.spectrogram.n_bands,
        config.spectrogram.hop_length,
        config.spectrogram.db_scale,
    ) == (
        22_050,
        64,
        512,
        0.01,
    )
    assert (
        config.spectrogram.n_bands,
        config.model.patch_frames,
        config.model.embed_dim,
        config.model.n_layers,
        config.model.n_heads,
    ) == (64, 32, 256, 8, 4)
    assert (len(config.model.channels), config.model.channels[0], config.pretrain.n_patches) == (
        5,
        16,
        25,
    )
    assert (config.augment.time_stretch, config.augment.intensity) == ((0.9, 1.2), (0.8, 1.2))
    for stage in (config.pretrain.stage_one, config.pretrain.stage_two):
        assert (stage.learning_rate, stage.batch_size, stage.epochs) == (1e-4, 32, 1000)
    assert config.finetune.training.learning_rate == 1e-5
    assert config.spectrogram.silence == -1.0


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "path", "suggestion"),
    [
        ({"modle": {}}, "'modle'", "'model'"),
        ({"model": {"chanels": [1]}}, "'model.chanels'", "'channels'"),
        ({"pretrain": {"mask_ration": 0.5}}, "'pretrain.mask_ration'", "'mask_ratio'"),
        (
            {"pretrain": {"stage_two": {"learning_rat": 1}}},
            "'pretrain.stage_two.learning_rat'",
            "'learning_rate'",
        ),
        ({"finetune": {"training": {"zzzz": 1}}}, "'finetune.training.zzzz'", "learning_rate"),
    ],
)
def test_an_unknown_key_is_refused_with_its_dotted_name_and_a_suggestion(changes, path, suggestion):
    with pytest.raises(RequestError) as caught:
        update(Config(), changes)
    assert path in str(caught.value)
    assert suggestion in str(caught.value).split(path, 1)[1]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spectrogram.hop_length", "512"),
        ("spectrogram.hop_length", 512.0),
        ("spectrogram.hop_length", None),
        ("spectrogram.window", "blackman"),
        ("spectrogram.top_db", "80"),
        ("spectrogram.db_scale", float("nan")),
        ("spectrogram.db_scale", [0.01]),
        ("model.channels", 16),
        ("model.channels", "16"),
        ("model.channels", [16, 32, 64, 128, 256.0]),
        ("model.decoder_channels", [16, "a", 16, 16, 16]),
        ("model.map_pooling", None),
        ("augment.time_stretch", [0.9]),
        ("augment.time_stretch", [0.9, 1.0, 1.2]),
        ("augment.time_stretch", ["a", "b"]),
        ("pretrain.stage_one.batch_size", 1.5),
        ("pretrain.stage_one.epochs", "many"),
        ("pretrain.stage_one", 5),
        ("pretrain.stages", "three"),
        ("pretrain.validation_fold", 0.5),
        ("pretrain.precision", 32),
        ("finetune.head_learning_rate", "1e-3"),
        ("embed.layers", -1),
        ("embed.layers", [0.5]),
        ("model", [1, 2]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_fields_name(path, value):
    with pytest.raises(RequestError, match=f"'{path}'"):
        update(Config(), nested(path, value))


@pytest.mark.parametrize(
    "path", [path for path, value in leaves(Config()) if type(value) in (int, float)]
)
def test_a_truth_value_is_not_a_number(path):
    with pytest.raises(RequestError, match=f"'{path}'"):
        update(Config(), nested(path, True))


@pytest.mark.parametrize(
    "path",
    [
        "pretrain.stage_one.epochs",
        "spectrogram.f_max_hz",
        "pretrain.stage_two.weight_decay",
        "finetune.head_learning_rate",
        "spectrogram.top_db",
    ],
)
def test_a_whole_number_is_taken_where_any_number_is_meant(path):
    value = dict(leaves(update(Config(), nested(path, 1))))[path]
    assert value == 1.0
    assert type(value) is float


def test_whole_numbers_are_taken_inside_a_range_of_numbers():
    assert update(Config(), {"augment": {"time_stretch": [1, 2]}}).augment.time_stretch == (
        1.0,
        2.0,
    )


def test_null_is_taken_where_a_field_may_be_empty():
    config = update(Config(), {"pretrain": {"validation_fold": 2}, "finetune": {"test_fold": 1}})
    again = update(config, {"pretrain": {"validation_fold": None}, "finetune": {"test_fold": None}})
    assert again == Config()


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("spectrogram.hop_length", 0, "hop_length"),
        ("spectrogram.hop_length", 4096, "n_fft"),
        ("spectrogram.n_mels", 0, "n_mels"),
        ("spectrogram.f_max_hz", 12_000, "f_max_hz"),
        ("spectrogram.f_min_hz", 11_025, "f_min_hz"),
        ("spectrogram.f_min_hz", -1, "f_min_hz"),
        ("spectrogram.reference", "max", "top_db"),
        ("model.patch_frames", 33, "patch_frames"),
        ("model.n_heads", 3, "n_heads"),
        ("model.channels", [16, 32, 64, 128, 256, 512, 512], "halved 7 times"),
        ("model.decoder_channels", [16, 16], "decoder_channels"),
        ("model.max_patches", 0, "max_patches"),
        ("model.n_convolutions", 0, "n_convolutions"),
        ("augment.time_stretch", [1.2, 0.9], "time_stretch"),
        ("augment.intensity", [0, 1], "intensity"),
        ("pretrain.mask_ratio", 0, "mask_ratio"),
        ("pretrain.mask_ratio", 1, "mask_ratio"),
        ("pretrain.n_patches", 1, "n_patches"),
        ("pretrain.validation_fraction", 1, "validation_fraction"),
        ("pretrain.validation_fraction", -0.1, "validation_fraction"),
        ("pretrain.stage_one.batch_size", 0, "batch_size"),
        ("pretrain.stage_two.epochs", 0, "epochs"),
        ("pretrain.stage_two.steps", -1, "steps"),
        ("pretrain.stage_two.learning_rate", 0, "learning_rate"),
        ("finetune.patience", 0, "patience"),
        ("finetune.validate_every", 0, "validate_every"),
        ("finetune.n_seeds", 0, "n_seeds"),
        ("embed.hop_patches", 0, "hop_patches"),
        ("embed.layers", [], "layers"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_fields_name(path, value, named):
    with pytest.raises(RequestError, match=named):
        update(Config(), nested(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.n_heads", 0),
        ("model.n_layers", 0),
        ("model.embed_dim", 0),
        ("model.patch_frames", 0),
        ("model.mlp_dim", 0),
        ("model.channels", []),
        ("model.channels", [16, 32, 0, 128, 256]),
        ("model.decoder_channels", [16, 16, 0, 16, 16]),
        ("model.dropout", 1.5),
        ("pretrain.stage_one.weight_decay", -1),
        ("pretrain.stage_one.warmup_steps", -1),
        ("pretrain.stage_one.max_grad_norm", -1),
        ("pretrain.validate_every", -1),
    ],
)
def test_numbers_that_no_model_or_loop_can_have_are_refused_with_the_fields_name(path, value):
    with pytest.raises(RequestError, match=path.rsplit(".", 1)[1]):
        update(Config(), nested(path, value))


def test_sections_that_do_not_fit_together_are_refused():
    with pytest.raises(
        RequestError, match=r"40 x 32 cannot be halved 5 times: spectrogram\.n_mels"
    ):
        update(Config(), {"spectrogram": {"n_mels": 40}})
    assert update(Config(), {"spectrogram": {"n_mels": 128}}).spectrogram.n_bands == 128
    with pytest.raises(
        RequestError, match=r"pretrain\.n_patches \(30\).*model\.max_patches \(25\)"
    ):
        update(Config(), {"pretrain": {"n_patches": 30}})
    assert (
        update(
            Config(), {"pretrain": {"n_patches": 30}, "model": {"max_patches": 30}}
        ).pretrain.n_patches
        == 30
    )
    with pytest.raises(RequestError, match="'mean' gives 128 numbers"):
        ModelConfig(channels=(16, 32, 64, 96, 128), map_pooling="mean")


def test_configs_are_frozen():
    for config, name in [
        (Config(), "model"),
        (Config().model, "embed_dim"),
        (Config().pretrain.stage_one, "batch_size"),
        (SpectrogramConfig(), "hop_length"),
    ]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, getattr(config, name))
    assert hash(Config()) == hash(Config())


def test_update_leaves_the_original_alone():
    config = Config()
    update(config, CHANGED)
    assert config == Config()


# --- files ---


def test_a_recipes_reason_and_a_models_header_are_not_settings(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(
        json.dumps(
            {"why": "a higher ratio", "checkpoint": {"format": 1}, "pretrain": {"mask_ratio": 0.9}}
        )
    )
    assert read_changes(path) == {"pretrain": {"mask_ratio": 0.9}}


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1]", "list"), ("3", "int"), ("{", "not JSON"), ("", "not JSON"), ("\xff", "not JSON")],
)
def test_a_file_that_is_no_json_object_is_refused_by_name(text, said, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RequestError, match=r"broken\.json") as caught:
        read_changes(path)
    assert said in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(RequestError, match=r"nowhere\.json"):
        read_changes(tmp_path / "nowhere.json")


# --- the digest, steps, and what importing costs ---


def test_the_digest_is_the_same_in_every_process():
    code = (
        "from patchifier.config import *; print(digest(Config(), {'b': 1, 'a': [2, None]}, 3, 'x'))"
    )
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
    assert (
        TrainingConfig(epochs=2, batch_size=8).total_steps(clips=17) == 5
    )  # 34 clips in batches of 8
    assert TrainingConfig(epochs=0.5, batch_size=8).total_steps(clips=16) == 1
    assert TrainingConfig(epochs=2, batch_size=8, steps=7).total_steps(clips=17) == 7
    assert PretrainConfig().stage_one.total_steps(clips=16_000) == 500_000


def test_importing_configs_imports_the_standard_library_alone():
    heavy = "torch numpy soundfile soxr safetensors sklearn librosa lightning_fabric matplotlib jsonargparse rich pyarrow"
    code = f"import sys, patchifier, patchifier.config; print([name for name in {heavy.split()!r} if name in sys.modules])"
    assert in_new_process(code) == "[]"
