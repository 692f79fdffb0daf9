"""Model folders: what is written comes back bit for bit, and anything damaged is refused by name."""

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

import patchifier
from patchifier import checkpoint
from patchifier.checkpoint import Checkpoint, card, load, save
from patchifier.config import Config, RequestError, read_changes, update
from patchifier.io import replaced_file, replaced_folder
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task

TINY = {"channels": [4, 4, 4, 4, 8], "embed_dim": 16, "n_layers": 2, "n_heads": 2, "mlp_dim": 32}
TASK = Task("one-of", ("blues", "jazz", "rock"))


def made(*, seed: int = 0, head: bool = False, **changes) -> Checkpoint:
    """A small model whose every number, buffers included, is particular to its seed."""
    config = update(Config(), {"model": TINY, "embed": {"pooling": "mean"}, **changes})
    model = Patchifier(config, seed=seed)
    parts = [model, Head(16, 3)] if head else [model]
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (tensor for part in parts for tensor in part.state_dict().values()):
            tensor.copy_(
                torch.randn(tensor.shape, generator=chance)
                if tensor.is_floating_point()
                else torch.tensor(7 + seed)
            )
    return Checkpoint(
        model,
        config,
        parts[1] if head else None,
        TASK if head else None,
        {"dataset": "demo", "seed": seed},
    )


def rewrite(folder: Path, change) -> None:
    """Change the tensors of a saved model, leaving the file's metadata."""
    path = folder / "model.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def reconfigure(folder: Path, change) -> None:
    """Change the config of a saved model in place."""
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def contents(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden files too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- there and back ---


@pytest.mark.parametrize("head", [False, True], ids=["pre-trained", "fine-tuned"])
def test_a_model_comes_back_bit_for_bit(head, tmp_path):
    saved = made(seed=3, head=head)
    save(tmp_path / "model", saved)
    loaded = load(tmp_path / "model")
    assert loaded.config == saved.config
    assert loaded.task == saved.task
    assert dict(loaded.facts) == saved.facts
    assert (loaded.head is not None) == head
    for one, two in [(saved.model, loaded.model), (saved.head, loaded.head)][: 1 + head]:
        before, after = one.state_dict(), two.state_dict()
        assert before.keys() == after.keys()
        for name in before:
            assert before[name].dtype == after[name].dtype
            assert torch.equal(before[name], after[name]), name


def test_a_loaded_model_is_in_evaluation_mode(tmp_path):
    saved = made(head=True)
    saved.model.train()
    save(tmp_path / "model", saved)
    loaded = load(tmp_path / "model")
    assert not any(
        module.training for part in (loaded.model, loaded.head) for module in part.modules()
    )


def test_loading_leaves_the_global_generator_alone(tmp_path):
    save(tmp_path / "model", made(head=True))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_folder_holds_three_files_and_none_is_a_pickle(tmp_path):
    save(tmp_path / "model", made(head=True))
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "README.md",
        "config.json",
        "model",
        "model.safetensors",
    ]
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    assert {name.split(".")[0] for name in header} == {"__metadata__", "model", "head"}
    for content in contents(tmp_path).values():
        assert not content.startswith(
            (b"\x80", b"PK")
        )  # a pickle, or the zip in which torch keeps one


def test_saving_does_not_change_the_model(tmp_path):
    saved = made(head=True)
    before = {name: tensor.clone() for name, tensor in saved.model.state_dict().items()}
    save(tmp_path / "model", saved)
    assert all(
        torch.equal(before[name], tensor) for name, tensor in saved.model.state_dict().items()
    )


def test_saving_the_same_model_gives_the_same_weight_file_every_time(tmp_path):
    saved = []
    for number in range(8):
        save(tmp_path / str(number), made(seed=2, head=True))
        saved.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert len(set(saved)) == 1


def test_an_existing_model_is_replaced_whole(tmp_path):
    folder = tmp_path / "model"
    save(folder, made(seed=1, head=True))
    (folder / "stray.txt").write_text("left over")
    save(folder, made(seed=2))
    loaded = load(folder)
    assert (loaded.facts["seed"], loaded.task) == (2, None)
    assert sorted(contents(tmp_path)) == [
        "model/README.md",
        "model/config.json",
        "model/model.safetensors",
    ]


def test_a_model_is_saved_into_folders_that_do_not_exist_yet(tmp_path):
    save(tmp_path / "runs" / "one" / "model", made())
    assert load(tmp_path / "runs" / "one" / "model").facts["seed"] == 0


def test_a_models_config_is_valid_as_a_config_file(tmp_path):
    saved = made(head=True, pretrain={"mask_ratio": 0.6})
    save(tmp_path / "model", saved)
    assert update(Config(), read_changes(tmp_path / "model" / "config.json")) == saved.config


def test_the_card_says_how_large_the_model_is_how_it_was_made_and_under_which_licence(tmp_path):
    saved = made(head=True)
    save(tmp_path / "model", saved)
    text = (tmp_path / "model" / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert f"{saved.model.parameter_count():,} parameters" in text
    assert "Apache-2.0" in text
    assert "one-of of blues, jazz, rock" in text
    assert "| dataset | demo |" in text
    assert patchifier.__version__ in text
    assert "no labels used" in card(made())


# --- half precision ---


def test_in_half_precision_matrices_take_half_the_room_and_come_back_in_float32(tmp_path):
    saved = made(head=True)
    for name, how in (("whole", {}), ("half", {"dtype": torch.float16})):
        save(tmp_path / name, saved, **how)
    stored = safetensors.torch.load_file(tmp_path / "half" / "model.safetensors")
    loaded = load(tmp_path / "half")
    for part, was, found in (
        ("model", saved.model, loaded.model),
        ("head", saved.head, loaded.head),
    ):
        for name, tensor in was.state_dict().items():
            half = tensor.is_floating_point() and tensor.ndim > 1
            assert stored[f"{part}.{name}"].dtype == (torch.float16 if half else tensor.dtype), name
            assert found.state_dict()[name].dtype == tensor.dtype
            assert torch.equal(
                found.state_dict()[name], tensor.half().float() if half else tensor
            ), name
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.75 * (
        tmp_path / "whole" / "model.safetensors"
    ).stat().st_size
    assert (tmp_path / "half" / "config.json").read_text() == (
        tmp_path / "whole" / "config.json"
    ).read_text()


def test_statistics_that_half_precision_could_not_hold_are_kept(tmp_path):
    saved = made()
    with torch.no_grad():
        saved.model.extractor.get_buffer(
            next(
                name
                for name, _ in saved.model.extractor.named_buffers()
                if name.endswith("running_var")
            )
        ).fill_(1e6)
    save(tmp_path / "model", saved, dtype=torch.float16)
    assert (
        max(float(buffer.max()) for buffer in load(tmp_path / "model").model.extractor.buffers())
        == 1e6
    )


def test_weights_too_large_for_half_precision_are_refused(tmp_path):
    saved = made()
    with torch.no_grad():
        saved.model.bottleneck.encoder.layers[0].linear1.weight[0, 0] = 1e5
    with pytest.raises(
        RequestError,
        match=r"bottleneck.*linear1\.weight holds 1e\+05, more than torch\.float16 can",
    ):
        save(tmp_path / "model", saved, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


# --- what is refused ---


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(RequestError) as caught:
        load(folder)
    for part in (str(folder), *said):
        assert part in str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    save(tmp_path / "model", made(seed=1, head=True))
    return tmp_path / "model"


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.bottleneck.cls"))
    refused(folder, "lack ['model.bottleneck.cls']")


def test_a_surplus_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.extra": torch.zeros(1)}))
    refused(folder, "have ['model.extra']")


def test_a_misshapen_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"head.linear.weight": torch.zeros(4, 16)}))
    refused(folder, "head.linear.weight", "(4, 16)", "(3, 16)")


@pytest.mark.parametrize(
    "change", [lambda tensor: (100 * tensor).to(torch.int8), lambda tensor: tensor > 0]
)
def test_a_tensor_of_another_kind_is_refused(change, folder):
    rewrite(
        folder,
        lambda tensors: tensors.update(
            {"model.bottleneck.cls": change(tensors["model.bottleneck.cls"])}
        ),
    )
    refused(folder, "model.bottleneck.cls", "expected torch.float32")


def test_a_tensor_that_would_only_broadcast_is_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.bottleneck.cls": torch.zeros(1)}))
    refused(folder, "model.bottleneck.cls", "(1,)", "(16,)")


def test_the_config_of_another_model_is_refused(folder, tmp_path):
    save(tmp_path / "other", made(seed=2, head=True))
    shutil.copy(tmp_path / "other" / "config.json", folder / "config.json")
    refused(folder, "not saved with this config.json")


def test_the_weights_of_another_model_are_refused(folder, tmp_path):
    save(tmp_path / "other", made(seed=2, head=True))
    shutil.copy(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
    refused(folder, "not saved with this config.json")


def test_an_edited_config_is_refused(folder):
    reconfigure(folder, lambda values: values["model"].update(n_heads=4))
    refused(folder, "not saved with this config.json")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_weights_are_refused(folder, kept):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(folder, "model.safetensors", "cannot be read as weights")


def test_a_newer_format_says_how_to_update(folder):
    reconfigure(folder, lambda values: values["checkpoint"].update(format=checkpoint.FORMAT + 1))
    reconfigure(folder, lambda values: values.update(unheard_of={"field": 1}))
    refused(folder, f"format {checkpoint.FORMAT + 1}", "pip install -U patchifier")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, name)


def test_something_else_than_a_folder_is_refused(folder):
    refused(folder.parent, "not a model folder")
    refused(folder.parent / "nowhere", "not a model folder")
    refused(folder / "config.json", "not a model folder")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "7",
        "[]",
        '["checkpoint"]',
        "{}",
        '{"checkpoint": 7}',
        '{"checkpoint": {}}',
        '{"checkpoint": null}',
        "\xff",
    ],
)
def test_a_config_that_is_not_a_models_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "not a model folder")


# --- whole or not at all ---


def test_an_exception_leaves_the_old_folder_and_no_debris(tmp_path):
    save(tmp_path / "model", made(seed=1))
    before = contents(tmp_path)

    def fail():
        with replaced_folder(tmp_path / "model") as new:
            (new / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_exception_leaves_the_old_file_and_no_debris(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail():
        with replaced_file(path) as new:
            new.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert contents(tmp_path) == {"table.csv": b"old"}


def test_an_exception_where_nothing_was_leaves_nothing(tmp_path):
    def fail(replaced):
        with replaced(tmp_path / "thing"):
            raise RuntimeError

    for replaced in (replaced_file, replaced_folder):
        with pytest.raises(RuntimeError):
            fail(replaced)
        assert list(tmp_path.iterdir()) == []


def test_the_old_folder_survives_if_the_new_one_cannot_be_put_in_its_place(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    save(folder, made(seed=1))
    before, rename = contents(folder), Path.rename

    def broken(self, target):
        if ".new-" in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="no"):
        save(folder, made(seed=2))
    assert contents(folder) == before


def test_what_a_killed_process_of_the_same_number_left_behind_does_not_matter(tmp_path):
    # Process numbers come again, in a container even the same one at every start.
    for kind in ("new", "old"):
        left = tmp_path / f".model.{kind}-{os.getpid()}"
        left.mkdir()
        (left / "half").write_text("written")
    save(tmp_path / "model", made(seed=1))
    save(tmp_path / "model", made(seed=2))
    assert load(tmp_path / "model").facts["seed"] == 2
    assert sorted(contents(tmp_path)) == [
        "model/README.md",
        "model/config.json",
        "model/model.safetensors",
    ]


def test_readers_see_the_old_folder_or_file_until_the_new_one_is_whole(tmp_path):
    folder, path = tmp_path / "model", tmp_path / "deep" / "table.csv"
    with replaced_folder(folder) as new:
        (new / "part").write_text("1")
        assert not folder.exists()
    with replaced_folder(folder) as new:
        (new / "part").write_text("2")
        assert (folder / "part").read_text() == "1"
    assert (folder / "part").read_text() == "2"
    with replaced_file(path) as new:
        new.write_text("1")
        assert not path.exists()
    assert path.read_text() == "1"


def test_a_model_of_the_papers_shape_fits_its_folder(tmp_path):
    config = Config()
    model = Patchifier()
    save(tmp_path / "model", Checkpoint(model, config))
    assert (
        tmp_path / "model" / "model.safetensors"
    ).stat().st_size < 4.01 * model.parameter_count() + 1e5
    assert load(tmp_path / "model").model.parameter_count() == model.parameter_count()
