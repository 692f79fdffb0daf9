"""Hugging Face: folders without a network, the hub's mixin, transformers' three Auto classes."""

import importlib
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

# read when huggingface_hub is imported: no test may reach for a network
os.environ["HF_HUB_OFFLINE"] = "1"

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers

import patchifier
from patchifier import audio, checkpoint, datasets, embed, weights
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.integrations import hf
from patchifier.nn.encode import model_hash
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task
from tests import builders, small

RATE = 22_050
CONFIG = small.config(small.WIDE, embed={"hop_patches": 12})
FILES = {"config.json", "model.safetensors", "README.md", "preprocessor_config.json"}
FILES |= {"modeling_patchifier.py"}
GRAPHS = {"graph.onnx", "reconstruct.onnx"}  # transformers writes none
FILES |= GRAPHS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "model"
    network = Patchifier(CONFIG, seed=0).eval()
    checkpoint.save(path, Checkpoint(network, CONFIG, facts={"steps": 7}))
    return path


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    """A folder as transformers writes it."""
    path = tmp_path_factory.mktemp("hf") / "transformers"
    hf.register()
    hf.PatchifierModel.from_pretrained(folder).save_pretrained(path)
    hf.PatchifierFeatureExtractor(sampling_rate=RATE).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sounds():
    generator = np.random.default_rng(0)
    samples = [round(seconds * RATE) for seconds in (0.02, 1.3, 25.0)]
    return [generator.uniform(-1, 1, count).astype(np.float32) for count in samples]


@pytest.fixture
def batch(sounds):
    return hf.PatchifierFeatureExtractor()(sounds, sampling_rate=RATE, return_tensors="pt")


# --- the hub's mixin ---


def test_a_saved_folder_is_a_model_folder(folder, sounds, tmp_path):
    model = hf.HubModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "new")
    expected = embed.load(folder).embed(sounds, RATE)
    np.testing.assert_array_equal(patchifier.load(tmp_path / "new").embed(sounds, RATE), expected)
    again = hf.HubModel.from_pretrained(str(tmp_path / "new"))
    np.testing.assert_array_equal(again.embed(sounds, RATE), model.embed(sounds, RATE))
    np.testing.assert_allclose(again.embed(sounds, RATE), expected, atol=1e-5)  # two runtimes
    assert again.facts == {"steps": 7}
    assert "| steps | 7 |" in (tmp_path / "new" / "README.md").read_text(encoding="utf-8")


def test_saving_leaves_other_files_of_a_folder_alone_and_nothing_behind(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model = hf.HubModel.from_pretrained(folder)
    for _ in range(2):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", *FILES}


def test_what_is_pushed_is_a_model_folder(folder, monkeypatch):
    pushed = {}

    def upload_folder(self, *, repo_id, folder_path, **others):
        pushed[repo_id] = {path.name for path in folder_path.iterdir()}
        pushed["model"] = embed.load(folder_path).identity
        return "url"

    def create_repo(self, repo_id, **others):
        return SimpleNamespace(repo_id=repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    hf.HubModel.from_pretrained(folder).push_to_hub("somebody/something")
    assert pushed["somebody/something"] == FILES
    assert pushed["model"] == embed.load(folder).identity


# --- transformers ---


@pytest.mark.slow
def test_importing_the_module_is_enough_for_the_auto_classes(child_environment):
    made = "type(transformers.AutoConfig.for_model('patchifier')).__name__"
    program = f"import patchifier.integrations.hf, transformers; print({made})"
    command = [sys.executable, "-c", program]
    shown = subprocess.check_output(command, env=child_environment, text=True)
    assert shown.split() == ["PatchifierConfig"]


OPEN = """
import sys, numpy, torch, transformers
folder = sys.argv[1]
model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
batch = extractor(numpy.load(sys.argv[2]), sampling_rate=22_050, return_tensors="pt")
with torch.no_grad():
    numpy.save(sys.argv[3], model(**batch).pooler_output[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", ["the mixin", "transformers", "transformers again"])
def test_a_saved_folder_opens_without_importing_the_package(
    by, folder, saved, sounds, tmp_path, child_environment
):
    path = saved
    if by == "the mixin":
        path = tmp_path / "saved"
        hf.HubModel.from_pretrained(folder).save_pretrained(path)
    if by == "transformers again":
        path = tmp_path / "again"
        for auto in (transformers.AutoModel, transformers.AutoFeatureExtractor):
            auto.from_pretrained(saved, trust_remote_code=True).save_pretrained(path)
    wanted = FILES if by == "the mixin" else FILES - GRAPHS - {"README.md"}
    assert wanted <= {each.name for each in path.iterdir()}
    np.save(tmp_path / "sound.npy", sounds[1])
    command = [sys.executable, "-c", OPEN, path, tmp_path / "sound.npy", tmp_path / "found.npy"]
    environment = {**child_environment, "HF_HOME": str(tmp_path / "home")}
    subprocess.run(list(map(str, command)), env=environment, check=True)
    expected = embed.load(folder).embed(sounds[1], RATE)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)


WITHOUT = """
import sys, transformers

class Absent:
    def find_spec(self, name, *others):
        if name.partition(".")[0] == "patchifier":
            raise ModuleNotFoundError("No module named 'patchifier'")

sys.meta_path.insert(0, Absent())
transformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


@pytest.mark.slow
def test_without_the_package_a_saved_folder_says_what_to_install(
    saved, child_environment, tmp_path
):
    command = [sys.executable, "-c", WITHOUT, str(saved)]
    environment = {**child_environment, "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "pip install patchifier" in done.stderr.splitlines()[-1]


def test_the_feature_extractor_of_a_saved_model_has_its_rate(tmp_path):
    config = update(CONFIG, {"spectrogram": {"sample_rate": 16_000, "f_max_hz": 8000.0}})
    hf.HubModel(builders.embedder(Patchifier(config), config)).save_pretrained(tmp_path)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(extractor) is hf.PatchifierFeatureExtractor
    assert extractor.sampling_rate == 16_000
    assert patchifier.load(tmp_path).config == config


def test_a_fine_tuned_model_is_read_without_its_head(folder, tmp_path):
    task, model = Task("one-of", ("a", "b")), checkpoint.load(folder).model
    checkpoint.save(tmp_path / "tuned", Checkpoint(model, CONFIG, Head(32, 2), task))
    found, told = hf.PatchifierModel.from_pretrained(tmp_path / "tuned", output_loading_info=True)
    assert not told["unexpected_keys"]
    assert not told["missing_keys"]
    assert model_hash(found.model) == model_hash(model)
    assert hf.HubModel.from_pretrained(tmp_path / "tuned").embedder.require_task() == task


def test_the_three_auto_classes_read_a_saved_folder(folder, saved, sounds):
    assert type(transformers.AutoConfig.from_pretrained(saved)) is hf.PatchifierConfig
    model = transformers.AutoModel.from_pretrained(saved)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(saved)
    assert type(model) is hf.PatchifierModel
    assert type(extractor) is hf.PatchifierFeatureExtractor
    with torch.no_grad():
        output = model(**extractor(sounds, sampling_rate=RATE, return_tensors="pt"))
    expected = embed.load(folder).embed(sounds, RATE)
    np.testing.assert_allclose(output.pooler_output.numpy(), expected, atol=1e-5)


def test_the_auto_classes_read_what_training_writes(folder, sounds):
    model = transformers.AutoModel.from_pretrained(folder)
    assert type(model) is hf.PatchifierModel
    assert type(transformers.AutoConfig.from_pretrained(folder)) is hf.PatchifierConfig
    with torch.no_grad():
        found = model(torch.from_numpy(sounds[1])[None]).pooler_output[0]
    np.testing.assert_allclose(found.numpy(), embed.load(folder).embed(sounds[1], RATE), atol=1e-5)


def test_every_setting_survives(folder, saved):
    config = transformers.AutoConfig.from_pretrained(saved)
    assert config.settings == CONFIG
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "sampling_rate")
    assert [getattr(config, name) for name in names] == [32, 2, 2, RATE]
    # a model folder's config.json as well
    assert hf.PatchifierConfig.from_pretrained(folder).settings == CONFIG
    assert hf.PatchifierConfig().settings == Config()
    with pytest.raises(RequestError, match=r"model\.wdith"):
        hf.PatchifierConfig(model={"wdith": 3})


def test_a_model_folder_and_transformers_go_back_and_forth(folder, saved, tmp_path):
    hf.PatchifierModel.from_pretrained(saved).save_folder(tmp_path / "back")
    assert embed.load(tmp_path / "back").identity == embed.load(folder).identity


def test_outputs_are_at_the_rate_of_patches(saved, sounds, batch):
    model = hf.PatchifierModel.from_pretrained(saved)
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    counts = [-(-(1 + len(sound) // 512) // 32) for sound in sounds]
    assert output.attention_mask.sum(1).tolist() == counts == [1, 2, 34]
    assert output.last_hidden_state.shape == (3, 34, 32)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert not output.last_hidden_state[0, 1:].any()
    assert output.frame_rate_hz == pytest.approx(22050 / 512 / 32)
    frame_s = 512 / 22050
    # 25 s are 1,077 frames: patches at 0, 32, ..., 1,024, the last one at 1,045
    middles = [15.5 * frame_s, 47.5 * frame_s, 1060.5 * frame_s]
    assert output.timestamps[2, [0, 1, 33]].tolist() == pytest.approx(middles)
    # 1.3 s are 56: at 0 and 24; 0.02 s are one
    assert output.timestamps[1, :3].tolist() == pytest.approx([15.5 * frame_s, 39.5 * frame_s, 0])
    assert output.timestamps[0, 0] == 0
    plain = model(torch.from_numpy(sounds[1])[None])
    assert plain.hidden_states is None
    assert isinstance(model(torch.from_numpy(sounds[1])[None], return_dict=False), tuple)


def test_a_batch_gives_what_each_alone_does_whatever_the_padding(saved, sounds, batch):
    model = hf.PatchifierModel.from_pretrained(saved)
    batch["input_values"] = torch.where(batch["attention_mask"].bool(), batch["input_values"], 0.9)
    near = {"atol": 1e-5, "rtol": 0}
    with torch.no_grad():
        together = model(**batch)
        for number, sound in enumerate(sounds):
            alone = model(torch.from_numpy(sound)[None])
            states = together.last_hidden_state[number, together.attention_mask[number].bool()]
            torch.testing.assert_close(states, alone.last_hidden_state[0], **near)
            pooled = together.pooler_output[number]
            torch.testing.assert_close(pooled, alone.pooler_output[0], **near)


LOW = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def music():
    """Ten seconds of seven bundled clips."""
    clips = [audio.load(clip.path)[: 10 * RATE] for clip in datasets.load("demo").clips[::16]]
    return torch.from_numpy(np.stack(clips))


@pytest.fixture(scope="module", params=[weights.DEFAULT, weights.PAPER])
def in_float32(request, music):
    """Folder of a bundled model, the model, five seconds of music, and its vectors of them."""
    folder = weights.find(request.param)
    model, short = transformers.AutoModel.from_pretrained(folder), music[:, : 5 * RATE]
    with torch.no_grad():
        return folder, model, short, model(short).pooler_output


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_models_of_16_bits_and_autocast_give_float32s_vectors(in_float32, dtype):
    folder, model, music, expected = in_float32
    low = transformers.AutoModel.from_pretrained(folder, dtype=dtype)
    assert low.model.bottleneck.cls.dtype == dtype
    with torch.no_grad():
        with torch.autocast("cpu", dtype=dtype):
            cast = model(music).pooler_output
        for found in (low(music).pooler_output, cast):
            assert found.dtype == torch.float32
            # 0.99994 to 0.9999998 on whole clips
            assert torch.cosine_similarity(found, expected).min() > 0.9999


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_what_16_bits_cannot_hold_is_refused(music, dtype):
    model = transformers.AutoModel.from_pretrained(weights.find(weights.DEFAULT))
    with pytest.raises(RequestError, match=f"input_values is of {dtype}.*expected float32"):
        model(music.to(dtype))
    with pytest.raises(RequestError, match=f"readout is in {dtype}, expected float32: load it"):
        model.to(dtype)(music)


def test_it_can_be_trained(saved, sounds):
    model = hf.PatchifierModel.from_pretrained(saved).train()
    model(torch.from_numpy(sounds[1])[None]).pooler_output.sum().backward()
    assert model.model.extractor.down[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("rate", [None, 16_000, 44_100])
def test_the_feature_extractor_checks_the_rate(rate, sounds):
    with pytest.raises(RequestError, match=f"sampling_rate is {rate}, expected 22050"):
        hf.PatchifierFeatureExtractor()(sounds[0], sampling_rate=rate)


def test_one_sound_is_a_batch_of_one_and_no_sound_is_refused(sounds):
    extractor = hf.PatchifierFeatureExtractor()
    batch = extractor(sounds[1], sampling_rate=RATE, return_tensors="pt")
    assert batch["input_values"].shape == (1, len(sounds[1]))
    for wrong in ([], [np.array([np.nan], np.float32)], np.zeros(5, np.int64)):
        with pytest.raises(RequestError):
            extractor(wrong, sampling_rate=RATE)


MASKS = [[[1.0] * 50], [[0.0] * 100], [[0.0] + [1.0] * 99], [[1.0, 0.0] * 50]]


@pytest.mark.parametrize("mask", MASKS)
def test_masks_that_are_not_padding_at_the_end_are_refused(saved, mask):
    model = hf.PatchifierModel.from_pretrained(saved)
    with pytest.raises(RequestError, match="attention_mask"):
        model(torch.zeros(1, 100), attention_mask=torch.tensor(mask))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(100),
        torch.zeros(1, 1, 100),
        torch.zeros(1, 100, dtype=torch.long),
        torch.zeros(1, 0),
    ],
)
def test_other_inputs_are_refused(saved, wrong):
    with pytest.raises(RequestError, match=r"expected floats \(B, S\)"):
        hf.PatchifierModel.from_pretrained(saved)(wrong)


def test_the_classes_can_be_pickled_and_registering_twice_is_harmless(saved):
    hf.register()
    hf.register()
    assert pickle.loads(pickle.dumps(hf.PatchifierConfig())).settings == Config()
    with pytest.raises(AttributeError, match="PatchifierTokenizer"):
        hf.PatchifierTokenizer  # noqa: B018


@pytest.mark.parametrize("missing", ["huggingface_hub", "transformers"])
def test_a_missing_package_is_named_with_its_command(missing, monkeypatch):
    monkeypatch.setattr(patchifier.integrations, "hf", hf)  # restored, as the next two are
    monkeypatch.delitem(sys.modules, hf.__name__)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RequestError, match=r"pip install 'patchifier\[hf\]'"):
        importlib.import_module(hf.__name__).register()


def test_a_folder_of_save_pretrained_is_refused_with_what_makes_a_model_folder_of_it(
    saved, folder, tmp_path
):
    with pytest.raises(RequestError, match="transformers wrote it") as refused:
        patchifier.load(saved)
    line = str(refused.value).partition("of it: ")[2].removesuffix(".")
    exec(line, {"NEW": tmp_path / "new"})
    assert patchifier.load(tmp_path / "new").identity == patchifier.load(folder).identity
