"""Model folders: what is written comes back bit for bit, and anything damaged is refused by name."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
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
from patchifier.model_folder import ModelFolder
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task
from tests.builders import TINY

TASK = Task("one-of", ("blues", "jazz", "rock"))


def made(*, seed: int = 0, head: bool = False, **changes) -> Checkpoint:
    """A small model whose every number, buffers included, is particular to its seed."""
    config = update(Config(), {"model": TINY, "embed": {"pooling": "mean"}, **changes})
    model = Patchifier(config, seed=seed)
    parts = [model, Head(16, 3)] if head else [model]
    chance = torch.Generator().manual_seed(seed)
    for part in parts:
        for tensor in part.state_dict().values():
            random = torch.randn(tensor.shape, generator=chance)
            tensor.copy_(random if tensor.is_floating_point() else torch.tensor(7 + seed))
    task = TASK if head else None
    facts = {"dataset": "demo", "seed": seed}
    return Checkpoint(model, config, parts[1] if head else None, task, facts)


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
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


FILES = ["README.md", "config.json", "graph.onnx", "model.safetensors", "reconstruct.onnx"]
WHOLE = [f"model/{name}" for name in FILES]


@pytest.mark.parametrize("head", [False, True], ids=["pre-trained", "fine-tuned"])
def test_a_model_comes_back_bit_for_bit_in_evaluation_mode(head, tmp_path):
    saved = made(seed=3, head=head)
    saved.model.train()
    parts = [saved.model, saved.head][: 1 + head]
    before = [{name: each.clone() for name, each in part.state_dict().items()} for part in parts]
    save(tmp_path / "model", saved)
    state = torch.get_rng_state()
    loaded = load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert (loaded.config, loaded.task, dict(loaded.facts)) == (
        saved.config,
        saved.task,
        saved.facts,
    )
    assert (loaded.head is not None) == head
    for part, tensors in zip(parts, before, strict=True):
        torch.testing.assert_close(dict(part.state_dict()), tensors, atol=0, rtol=0)
    for part, tensors in zip([loaded.model, loaded.head], before, strict=False):
        torch.testing.assert_close(dict(part.state_dict()), tensors, atol=0, rtol=0)
        assert not any(module.training for module in part.modules())


def test_a_folder_holds_its_files_and_none_is_a_pickle(tmp_path):
    save(tmp_path / "model", made(head=True))
    assert sorted(contents(tmp_path)) == WHOLE
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    assert {name.split(".")[0] for name in header} == {"__metadata__", "model", "head"}
    for content in contents(tmp_path).values():  # a pickle, or the zip in which torch keeps one
        assert not content.startswith((b"\x80", b"PK"))


def test_saving_the_same_model_gives_the_same_files_every_time(tmp_path):
    for number in range(8):
        save(tmp_path / str(number), made(seed=2, head=True))
    for name in FILES:
        assert len({path.read_bytes() for path in tmp_path.rglob(name)}) == 1, name


def test_an_existing_model_is_replaced_whole(tmp_path):
    folder = tmp_path / "model"
    save(folder, made(seed=1, head=True))
    (folder / "stray.txt").write_text("left over")
    save(folder, made(seed=2))
    loaded = load(folder)
    assert (loaded.facts["seed"], loaded.task) == (2, None)
    assert sorted(contents(tmp_path)) == WHOLE


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
    assert "self-supervised" in card(made())
    taught = card(made(pretrain={"note_labels": "labels", "objectives": ["notes"]}))
    assert "notes of rendered music" in taught
    assert "self-supervised" not in taught


def test_in_half_precision_matrices_take_half_the_room_and_come_back_in_float32(tmp_path):
    saved = made(head=True)
    for name, how in (("whole", {}), ("half", {"dtype": torch.float16})):
        save(tmp_path / name, saved, **how)
    stored = safetensors.torch.load_file(tmp_path / "half" / "model.safetensors")
    loaded = load(tmp_path / "half")
    for part in ("model", "head"):
        found = getattr(loaded, part).state_dict()
        for name, tensor in getattr(saved, part).state_dict().items():
            half = tensor.is_floating_point() and tensor.ndim > 1
            assert stored[f"{part}.{name}"].dtype == (torch.float16 if half else tensor.dtype), name
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor.half().float() if half else tensor), name
    sizes = [len(contents(tmp_path)[f"{name}/model.safetensors"]) for name in ("half", "whole")]
    assert sizes[0] < 0.75 * sizes[1]
    configs = [contents(tmp_path)[f"{name}/config.json"] for name in ("half", "whole")]
    assert configs[0] == configs[1]


@torch.no_grad()
def test_what_half_precision_cannot_hold_is_kept_in_statistics_and_refused_in_weights(tmp_path):
    saved = made()
    buffers = dict(saved.model.extractor.named_buffers())
    buffers[next(name for name in buffers if name.endswith("running_var"))].fill_(1e6)
    save(tmp_path / "model", saved, dtype=torch.float16)
    found = load(tmp_path / "model").model.extractor.buffers()
    assert max(float(buffer.max()) for buffer in found) == 1e6
    saved.model.bottleneck.encoder.layers[0].linear1.weight[0, 0] = 1e5
    with pytest.raises(RequestError, match=r"bottleneck.*linear1\.weight holds 1e\+05"):
        save(tmp_path / "other", saved, dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def refused(folder: Path, *said: str, by=(load, patchifier.load)) -> None:
    """With torch and without it."""
    for reader in by:
        with pytest.raises(RequestError) as caught:
            reader(folder)
        for part in (str(folder), *said):
            assert part in str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    save(tmp_path / "model", made(seed=1, head=True))
    return tmp_path / "model"


CLS = "model.bottleneck.cls"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(CLS), [f"lack ['{CLS}']"]),
        (lambda tensors: tensors.update({"model.extra": torch.zeros(1)}), ["have ['model.extra']"]),
        (
            lambda tensors: tensors.update({"head.linear.weight": torch.zeros(4, 16)}),
            ["head.linear.weight", "(4, 16)", "(3, 16)"],
        ),
        # it would only broadcast
        (lambda tensors: tensors.update({CLS: torch.zeros(1)}), [CLS, "(1,)", "(16,)"]),
        (
            lambda tensors: tensors.update({CLS: (100 * tensors[CLS]).to(torch.int8)}),
            [CLS, "expected torch.float32"],
        ),
        (lambda tensors: tensors.update({CLS: tensors[CLS] > 0}), [CLS, "expected torch.float32"]),
    ],
    ids=["missing", "surplus", "misshapen", "broadcast", "integers", "booleans"],
)
def test_tensors_of_another_model_are_named(change, said, folder):
    rewrite(folder, change)
    refused(folder, *said, by=[load])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_another_model_is_refused_and_a_missing_one_named(name, folder, tmp_path):
    save(tmp_path / "other", made(seed=2, head=True))
    shutil.copy(tmp_path / "other" / name, folder / name)
    refused(folder, "not saved with this config.json")
    (folder / name).unlink()
    refused(folder, name)


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


def test_something_else_than_a_folder_is_refused(folder):
    refused(folder.parent, "not a model folder")
    refused(folder.parent / "nowhere", "not a model folder")
    refused(folder / "config.json", "not a model folder")


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "7", "[]", "{}", "\xff", '["checkpoint"]']
    + [f'{{"checkpoint": {value}}}' for value in (7, "{}", "null")],
)
def test_a_config_that_is_not_a_models_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "not a model folder")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("there", [True, False])
def test_an_exception_leaves_what_was_and_no_debris(there, error, tmp_path):
    folder, file = tmp_path / "model", tmp_path / "table.csv"
    if there:
        save(folder, made(seed=1))
        file.write_text("old")
    before = contents(tmp_path)
    with pytest.raises(error), replaced_folder(folder) as new:  # noqa: PT012
        (new / "half").write_text("written")
        raise error
    with pytest.raises(error), replaced_file(file) as new:  # noqa: PT012
        new.write_text("half")
        raise error
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2 * there


def test_the_old_folder_survives_if_the_new_one_cannot_be_put_in_its_place(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    save(folder, made(seed=1))
    before, rename = contents(folder), Path.rename

    def broken(self, target):
        if self.name.endswith(".new"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="no"):
        save(folder, made(seed=2))
    assert contents(folder) == before


def test_what_a_killed_process_left_behind_does_not_matter(tmp_path):
    for kind in ("new", "old"):
        left = tmp_path / f".model.{kind}"
        left.mkdir()
        (left / "half").write_text("written")
    save(tmp_path / "model", made(seed=1))
    save(tmp_path / "model", made(seed=2))
    assert load(tmp_path / "model").facts["seed"] == 2
    assert sorted(contents(tmp_path)) == WHOLE


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
    model, file = Patchifier(Config()), tmp_path / "model" / "model.safetensors"
    save(tmp_path / "model", Checkpoint(model, Config()))
    assert file.stat().st_size < 4.01 * model.parameter_count() + 1e5
    assert load(tmp_path / "model").model.parameter_count() == model.parameter_count()


# --- models from elsewhere ---


def reconfigured(folder: Path, change) -> None:
    """Change the config of a saved model, and give the weights the checksum of the new one."""
    reconfigure(folder, change)
    text = (folder / "config.json").read_text(encoding="utf-8")
    path = folder / "model.safetensors"
    metadata = {"config": hashlib.sha256(text.encode()).hexdigest()}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata=metadata)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "n_layers", 10**9),
        ("model", "n_predictor_layers", 10**9),
        ("model", "n_convolutions", 10**9),
        ("model", "channels", [20_000, 20_000, 20_000, 20_000, 8]),
        ("model", "max_patches", 6 * 10**6),
        ("model", "mlp_dim", 60_000),
        ("spectrogram", "n_pitch_bands", 10**12),
        ("embed", "layers", [-1] * 10**6),
        ("spectrogram", "n_fft", 2**40),
        ("spectrogram", "hop_length", 1),
        ("spectrogram", "db_scale", 1e300),
        ("spectrogram", "db_scale", 0.0),
        ("spectrogram", "min_db", -1e300),
    ],
)
def test_a_config_is_refused_before_memory_is_taken_for_what_it_asks_for(
    section, field, value, folder, monkeypatch
):
    reconfigured(folder, lambda values: values[section].update({field: value}))
    built = []
    # it comes after the model was built
    monkeypatch.setattr(ModelFolder, "tensors", lambda folder: built.append(folder))
    with pytest.raises(RequestError) as caught:
        load(folder)
    assert not built
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_model_of_the_largest_sizes_costs_no_memory_until_its_weights_are_known(folder):
    reconfigured(
        folder,
        lambda values: values["model"].update(embed_dim=65_536, mlp_dim=65_536, n_layers=100),
    )
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, "1168 more", by=[load])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("text", ["[" * 100_000, '{"checkpoint":' * 100_000, "[1, 2]", ""])
def test_a_config_that_is_no_config_is_refused(text, folder):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_or_a_device_in_a_model_folder_is_refused(name, folder):
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        (folder / name).unlink()
        make(folder / name)
        refused(folder, "not a regular file")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_that_are_not_finite_are_refused_by_name(number, dtype, folder):
    def change(tensors):
        tensors["model.align.0.weight"][3, 4] = number
        tensors |= {
            name: tensor.to(dtype) for name, tensor in tensors.items() if tensor.is_floating_point()
        }

    rewrite(folder, change)
    refused(folder, "model.align.0.weight", "NaN or infinity")


# --- kills and full disks ---

KILLED = """
import os, signal, sys
from pathlib import Path
from patchifier.io import replaced_folder
rename, calls = Path.rename, []
def killing(self, target):
    calls.append(target)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = killing
with replaced_folder(Path(sys.argv[1])) as new:
    (new / "config.json").write_text("{}")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_while_a_folder_is_replaced_costs_nothing_and_leaves_nothing(
    renames, folder, child_environment
):
    before = contents(folder)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(renames)], env=child_environment
    )
    assert killed.returncode == -signal.SIGKILL
    assert folder.exists() == (renames == 1)
    assert load(folder).facts["seed"] == 1
    assert contents(folder) == before
    save(folder, made(seed=5))
    assert load(folder).facts["seed"] == 5
    assert os.listdir(folder.parent) == [folder.name]


def test_a_failed_replacement_after_a_kill_keeps_the_old_folder(folder):
    before = contents(folder)
    folder.rename(folder.with_name(f".{folder.name}.old"))  # killed between the two renames

    def fail():
        with replaced_folder(folder):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert contents(folder) == before


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replaced_file(path) as first, replaced_file(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_at_the_place_to_write_to_leads_nowhere(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    with replaced_file(tmp_path / "file") as new:
        new.write_text("ours")
    new.symlink_to(elsewhere)
    with replaced_file(tmp_path / "file") as new:
        new.write_text("theirs")
    assert elsewhere.read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()


def test_a_model_that_finds_no_room_raises_the_error_of_a_full_disk(folder, small_files):
    before = contents(folder)
    small_files(4_000)
    with pytest.raises(OSError) as caught:
        save(folder, made(seed=4))
    small_files(-1)
    assert caught.value.errno == errno.EFBIG
    assert contents(folder) == before
    assert os.listdir(folder.parent) == [folder.name]


def test_tensors_are_written_as_safetensors_writes_them(tmp_path):
    tensors, metadata = (
        {"a": torch.arange(6.0), "b": torch.ones(2, 3, dtype=torch.half)},
        {"k": "v"},
    )
    checkpoint.write_tensors(tmp_path / "ours", tensors, metadata=metadata)
    safetensors.torch.save_file(tensors, tmp_path / "theirs", metadata=metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_other_types_than_half_and_single_precision_are_not_written(tmp_path):
    config = update(Config(), {"model": TINY})
    model = Checkpoint(Patchifier(config), config)
    with pytest.raises(RequestError, match=r"dtype is torch\.bfloat16, expected torch\.float16"):
        save(tmp_path / "model", model, dtype=torch.bfloat16)
    assert not (tmp_path / "model").exists()
