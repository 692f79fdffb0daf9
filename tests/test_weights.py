"""Models that come with the package: found by name from anywhere, refused by name, the default of every face, and what they are."""

import importlib.util
import logging
import socket
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file

import patchifier
from patchifier import audio, checkpoint, datasets, embed, weights
from patchifier.cache import Cache
from patchifier.config import RequestError
from patchifier.embed import Embedder
from patchifier.evaluate.encoders import encoders
from patchifier.integrations import hear, hf, onnx
from patchifier.integrations.marble import PatchifierEncoder
from patchifier.integrations.sklearn import PatchifierEmbedder
from patchifier.library import build, search
from patchifier.nn.descriptors import LAGS, LAGS_S
from tests import GOLDEN

RATE = 22_050
RELEASED = pytest.mark.parametrize("name", weights.names())  # whatever models this copy has


@pytest.fixture
def wave(noise):
    return noise(2.0)


@pytest.fixture
def wanted(bundled, wave):
    """Vector of the default model, by the shortest way there is."""
    held = checkpoint.load(bundled / "patchifier-base")
    return embed.Embedder(held.model, held.config).embed(wave, RATE)


# --- names ---


def test_without_a_path_the_packages_model_is_loaded_and_nothing_is_asked_of_a_network(
    wanted, wave, monkeypatch
):
    monkeypatch.setattr(socket, "socket", None)
    np.testing.assert_array_equal(patchifier.load().embed(wave, RATE), wanted)


def test_models_are_listed_with_the_default_first(bundled):
    (bundled / "aaa").mkdir()
    (bundled / "aaa" / "config.json").write_text("{}")
    (bundled / "__pycache__").mkdir()
    assert weights.names() == ("patchifier-base", "aaa", "patchifier-paper")


def test_a_name_means_the_same_in_every_working_directory(bundled, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    named = patchifier.load("patchifier-paper").identity
    assert (
        named
        == patchifier.load(bundled / "patchifier-paper").identity
        != patchifier.load().identity
    )
    assert not caplog.records
    held = checkpoint.load("patchifier-base")
    checkpoint.save("patchifier-paper", held)
    with caplog.at_level(logging.WARNING):
        assert patchifier.load("patchifier-paper").identity == named
    assert "./patchifier-paper" in caplog.text
    for here in ("./patchifier-paper", Path("patchifier-paper"), tmp_path / "patchifier-paper"):
        assert patchifier.load(here).identity == patchifier.load("patchifier-base").identity


def test_a_folder_in_the_working_directory_is_a_model_by_its_name(bundled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("mine", checkpoint.load())
    assert patchifier.load("mine").identity == patchifier.load().identity


def test_an_unknown_name_is_refused_with_those_there_are(bundled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RequestError,
        match=r"no model 'patchifier-bass', did you mean 'patchifier-base'\?.*patchifier-base, patchifier-paper, which come",
    ):
        patchifier.load("patchifier-bass")
    with pytest.raises(RequestError, match=r"no model 'musicnn'\. Expected"):
        patchifier.load("musicnn")
    with pytest.raises(RequestError, match="runs/nowhere is not a model folder"):
        patchifier.load("runs/nowhere")


def test_a_copy_without_models_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ROOT", tmp_path)
    for asked in (None, "patchifier-base", "patchifier-paper"):
        with pytest.raises(
            RequestError,
            match=f"{asked or 'patchifier-base'} is missing from this copy of patchifier",
        ):
            patchifier.load(asked)


# --- the default of every face ---


def test_every_face_takes_the_packages_model_by_default(wanted, wave, tmp_path):
    batch = torch.from_numpy(wave)[None]
    np.testing.assert_allclose(
        hear.get_scene_embeddings(batch, hear.load_model())[0], wanted, atol=1e-5
    )
    np.testing.assert_allclose(
        hear.get_scene_embeddings(batch, hear.load_model(""))[0], wanted, atol=1e-5
    )
    np.testing.assert_allclose(
        PatchifierEmbedder(sample_rate=22_050).fit_transform([wave])[0], wanted, atol=1e-5
    )
    np.testing.assert_allclose(hf.HubModel.from_pretrained().embed(wave, RATE), wanted, atol=1e-5)
    np.testing.assert_allclose(
        PatchifierEncoder()(batch).last_hidden_state.mean(1)[0],
        patchifier.load().embed_patches(wave, RATE).vectors[:, -16:].mean(0),
        atol=1e-5,
    )


def test_every_face_takes_a_model_by_its_name(bundled, wave):
    paper = patchifier.load("patchifier-paper").embed(wave, RATE)
    batch = torch.from_numpy(wave)[None]
    np.testing.assert_allclose(
        hear.get_scene_embeddings(batch, hear.load_model("patchifier-paper"))[0], paper, atol=1e-5
    )
    np.testing.assert_allclose(
        PatchifierEmbedder("patchifier-paper", sample_rate=22_050).fit_transform([wave])[0],
        paper,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        hf.HubModel.from_pretrained("patchifier-paper").embed(wave, RATE), paper, atol=1e-5
    )
    assert PatchifierEncoder("patchifier-paper").NUM_FEATURES == 16


@pytest.mark.slow
def test_export_takes_the_packages_model_by_default(wanted, wave, tmp_path):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx.export(None, tmp_path / "model.onnx"))
    np.testing.assert_allclose(
        session.run(["embedding"], {"waveform": wave[None]})[0][0], wanted, atol=1e-5
    )


def test_a_library_is_embedded_by_the_packages_model(bundled, audio_folder, tmp_path):
    build.embed_library(audio_folder, tmp_path / "x.parquet", workers=1)
    assert search.load(tmp_path / "x.parquet").identity == patchifier.load().identity


def test_encoders_are_named_as_models_are(bundled, small_cache):
    data = Cache(small_cache)
    base, pooled = (
        encoders(spec, data=data)[0] for spec in ("patchifier-base", "model:patchifier-base@mean")
    )
    assert base.encode(data, [0, 1]).shape == (2, 64)
    assert pooled.encode(data, [0, 1]).shape == (2, 32)
    five = encoders("random:patchifier-base", data=data, train=range(6))
    assert [each.encode(data, [0]).shape for each in five] == [(1, 64)] * 5
    with pytest.raises(
        RequestError, match="patchifier-base, patchifier-paper, or one of mel-stats"
    ):
        encoders("patchifier", data=data)


# --- half precision everywhere ---


def test_transformers_classes_read_half_precision_into_float32(bundled, wave):
    folder, file = bundled / "patchifier-paper", bundled / "patchifier-paper" / "model.safetensors"
    with safetensors.safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(halves, file, metadata=metadata)  # every number of it, which transformers would go by
    network = transformers.AutoModel.from_pretrained(folder)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    with torch.no_grad():
        found = network.eval()(torch.from_numpy(wave)[None]).pooler_output[0]
    np.testing.assert_allclose(
        found, patchifier.load("patchifier-paper").embed(wave, RATE), atol=1e-5
    )


def test_a_model_in_half_precision_is_copied_without_loss(bundled, tmp_path):
    hf.HubModel.from_pretrained("patchifier-base").save_pretrained(tmp_path / "copy")
    assert patchifier.load(tmp_path / "copy").identity == patchifier.load().identity


# --- stored vectors ---


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored_pcm() -> np.ndarray:
    with np.load(GOLDEN / "embedding.npz", allow_pickle=False) as stored:
        return stored["pcm"]


@RELEASED
def test_a_released_model_gives_the_stored_vectors(name, maker):
    file = GOLDEN / f"{name}.npz"
    assert file.exists(), f"run python tests/golden/make.py {name}"
    found = maker.embed_released(name, stored_pcm())
    with np.load(file, allow_pickle=False) as stored:
        assert set(stored) == set(found)
        for length, vector in found.items():
            np.testing.assert_allclose(vector, stored[length], atol=1e-4, err_msg=length)


def test_stored_vectors_depend_on_every_weight_that_matters(bundled, maker, tmp_path):
    maker.make_released("patchifier-base", tmp_path)
    with np.load(tmp_path / "patchifier-base.npz", allow_pickle=False) as stored:
        before = dict(stored)
    assert np.abs(before["short"] - before["long"]).max() > 1e-3
    held = checkpoint.load("patchifier-base")
    with torch.no_grad():
        held.model.bottleneck.encoder.layers[-1].norm2.bias.add_(1e-3)
    checkpoint.save(bundled / "patchifier-base", held, dtype=torch.float16)
    after = maker.embed_released("patchifier-base", maker.make_pcm())
    assert all(np.abs(before[length] - after[length]).max() > 1e-4 for length in before)


# --- what is in this copy ---


@RELEASED
def test_a_released_model_is_small_and_in_half_precision(name):
    file = weights.find(name) / "model.safetensors"
    assert file.stat().st_size <= 20_000_000
    assert checkpoint.load(name).model.parameter_count() <= 10_000_000
    with safetensors.safe_open(file, framework="pt") as stored:
        kinds = {
            stored.get_slice(key).get_dtype()
            for key in stored.keys()  # noqa: SIM118
            if len(stored.get_slice(key).get_shape()) > 1
        }
    assert kinds == {"F16"}


@RELEASED
def test_a_released_models_card_says_what_has_to_be_known(name):
    card = (weights.find(name) / "README.md").read_text(encoding="utf-8")
    for heading in (
        "## What it heard",
        "## Compute",
        "## Open benchmark",
        "## What it is bad at",
        "## Fair and unfair tests",
        "## How it was made",
    ):
        assert heading in card, heading
    assert f'patchifier.load("{name}")' in card
    assert f"{checkpoint.load(name).model.parameter_count():,} parameters" in card


@RELEASED
def test_a_released_models_facts_are_what_info_lists(name):
    facts = checkpoint.load(name).facts
    assert facts["hours"] > 0
    assert len(facts["date"].split("-")) == 3


@RELEASED
def test_nothing_released_names_a_place_on_the_machine_that_made_it(name):
    for file in ("config.json", "README.md"):
        text = (weights.find(name) / file).read_text(encoding="utf-8")
        assert not [
            word for word in text.replace('"', " ").split() if word.startswith(("/", "~/", "file:"))
        ], file


# --- what the package's model finds without labels ---


@pytest.fixture(scope="module")
def base() -> Embedder:
    return patchifier.load("patchifier-base")


def shares(model: Embedder, vector: np.ndarray, name: str) -> np.ndarray:
    """What an estimator said, from the standardised numbers that an embedding holds."""
    part, readout = model.slices[name], model.model.readout
    behind = len(readout.mean) - model.size  # components are fewer than what they are made of
    place = slice(part.start + behind, part.stop + behind)
    return (vector[part] * readout.scale[place].numpy() + readout.mean[place].numpy()) ** 2


def cadence(semitones: int) -> np.ndarray:
    """I, IV, V, I on A3 and so many semitones above, three times, twelve seconds."""
    time_s = np.arange(22_050) / 22_050
    chords = [[root + third for third in (0, 4, 7)] for root in (0, 5, 7, 0)] * 3
    heard = [
        sum(
            0.08 / k * np.sin(2 * np.pi * 220 * 2 ** ((semitones + note) / 12) * k * time_s)
            for note in chord
            for k in (1, 2, 3)
        )
        for chord in chords
    ]
    return np.concatenate(heard).astype(np.float32)


def test_a_transposed_cadence_has_its_tonic_as_much_higher_and_the_same_degrees(base):
    first, *others = (base.embed(cadence(semitones), 22_050) for semitones in range(4))
    home = shares(base, first, "tonic").argmax()
    for semitones, vector in enumerate(others, 1):
        assert shares(base, vector, "tonic").argmax() == (home + 3 * semitones) % 36
        moved = {
            name: np.linalg.norm(vector[base.slices[name]] - first[base.slices[name]])
            for name in ("harmony", "degrees")
        }
        assert moved["degrees"] < 0.2 * moved["harmony"]


def test_clicks_have_their_beat_at_one_ratio_whatever_the_tempo(base):
    chance, ratios = np.random.default_rng(0), []
    for beat_s in (0.75, 0.6, 0.5):
        wave = np.zeros(22_050 * 20, np.float32)
        for start in (np.arange(0, 19.9, beat_s) * 22_050).astype(int):
            wave[start : start + 600] = chance.uniform(-0.5, 0.5, 600)
        ratios.append(
            np.geomspace(*LAGS_S, LAGS)[shares(base, base.embed(wave, 22_050), "tempo").argmax()]
            / beat_s
        )
    assert max(ratios) / min(ratios) < 1.06, ratios  # lags lie 4 % apart


@torch.inference_mode()
def test_the_graph_of_the_packages_model_enlarges_rounding_no_more_than_it_says(base, noise):
    graph, time_s = onnx.Graph(base.model, base.config).eval(), np.arange(3 * RATE) / RATE
    tone = 0.9 * np.sin(2 * np.pi * 440 * time_s)
    clip = datasets.load("demo").clips[0]
    sounds = {
        "music": (audio.load(clip.path, start_s=clip.start_s, end_s=clip.end_s), 1e-4),
        "noise": (noise(7.3), 1e-4),
        "silence": (0 * time_s, 1e-4),
        "square": (np.sign(tone), 1e-4),
        "constant": (0 * time_s + 1, 1e-3),
        "tone of 16 bits": (np.rint(tone * 32767) / 32768, 1e-2),
    }
    for name, (sound, most) in sounds.items():
        sound = np.asarray(sound, np.float32)
        difference = np.abs(
            graph(torch.from_numpy(sound)[None])[0].numpy() - base.embed(sound, RATE)
        ).max()
        assert difference < most, name


FIRST_EDITION = {
    "patchifier-base": "c647fa920bdb7019",
    "patchifier-paper": "ed9130f9869c647e",
}  # identities as of that edition


@pytest.mark.parametrize("name", FIRST_EDITION)
def test_models_of_the_first_edition_load_as_they_were_and_keep_their_identity(name):
    embedder = patchifier.load(name)
    assert embedder.config.model.vector_norm == "none"
    assert embedder.identity == FIRST_EDITION[name]
