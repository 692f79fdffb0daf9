"""Models that come with the package: found by name from anywhere, refused by name, the default of every face, and what they are."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file

import patchifier
from patchifier import audio, checkpoint, datasets, weights
from patchifier.cache import Cache
from patchifier.config import RequestError
from patchifier.embed import Embedder
from patchifier.evaluate.encoders import encoders
from patchifier.integrations import hear, hf, onnx
from patchifier.integrations.marble import PatchifierEncoder
from patchifier.integrations.sklearn import PatchifierEmbedder
from patchifier.library import build, search
from patchifier.nn.descriptors import LAGS, LAGS_S
from tests import GOLDEN, builders, golden_maker

RATE = 22_050
RELEASED = pytest.mark.parametrize("name", weights.names())  # whatever models this copy has


@pytest.fixture
def wave(noise):
    return noise(2.0)


@pytest.fixture
def wanted(bundled, wave):
    """Vector of the default model, by the shortest way there is."""
    held = checkpoint.load(bundled / "patchifier-base")
    return builders.embedder(held.model, held.config).embed(wave, RATE)


def test_without_a_path_the_packages_model_is_loaded_and_nothing_is_asked_of_a_network(
    bundled, wanted, wave, monkeypatch
):
    monkeypatch.setattr(socket, "socket", None)
    found = patchifier.load().embed(wave, RATE)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    by_path = patchifier.load(bundled / "patchifier-base").embed(wave, RATE)
    np.testing.assert_array_equal(found, by_path)


def test_models_are_listed_with_the_default_first(bundled):
    (bundled / "aaa").mkdir()
    (bundled / "aaa" / "config.json").write_text("{}")
    (bundled / "__pycache__").mkdir()
    assert weights.names() == ("patchifier-base", "aaa", "patchifier-paper")


@pytest.mark.parametrize(
    ("model", "title"),
    [
        ("patchifier-base", "patchifier-base"),
        ("hf://owner/name@main", "hf://owner/name@main"),
        ("runs/mine/model", "mine"),
        (Path("runs/mine"), "mine"),
        ("./patchifier-base", "patchifier-base"),
        ("model/", "work"),
        ("/", "/"),
    ],
)
def test_a_model_is_called_by_its_name_or_its_folder(model, title, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert weights.title(model) == title


def test_a_name_means_the_same_in_every_working_directory(bundled, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    named = patchifier.load("patchifier-paper").identity
    assert named == patchifier.load(bundled / "patchifier-paper").identity
    assert named != patchifier.load().identity
    assert not caplog.records
    checkpoint.save("patchifier-paper", checkpoint.load("patchifier-base"))
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
    names = "patchifier-base, patchifier-paper, which come"
    for asked, message in {
        "patchifier-bass": rf"no model 'patchifier-bass', did you mean 'patchifier-base'.*{names}",
        "musicnn": r"no model 'musicnn'\. Expected",
        "runs/nowhere": "runs/nowhere is not a model folder: there is no such folder",
    }.items():
        with pytest.raises(RequestError, match=message):
            patchifier.load(asked)


def test_a_copy_without_models_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ROOT", tmp_path)
    for asked in (None, "patchifier-base", "patchifier-paper"):
        with pytest.raises(RequestError, match=f"{asked or 'patchifier-base'} is missing"):
            patchifier.load(asked)


@pytest.mark.parametrize("name", [None, "patchifier-paper"])
def test_every_face_takes_the_packages_model_or_one_by_its_name(name, bundled, wave):
    batch, model = torch.from_numpy(wave)[None], patchifier.load(name)
    given_ = [] if name is None else [name]
    found = [
        hear.get_scene_embeddings(batch, hear.load_model(*given_))[0],
        PatchifierEmbedder(*given_, sample_rate=22_050).fit_transform([wave])[0],
        hf.HubModel.from_pretrained(*given_).embed(wave, RATE),
    ]
    if name is None:
        found.append(hear.get_scene_embeddings(batch, hear.load_model(""))[0])
    for vector in found:
        np.testing.assert_allclose(vector, model.embed(wave, RATE), atol=1e-5)
    patches = model.embed_patches(wave, RATE).vectors[:, -16:]
    encoder = PatchifierEncoder(*given_)
    assert encoder.NUM_FEATURES == 16
    states = encoder(batch).last_hidden_state.mean(1)[0]
    np.testing.assert_allclose(states, patches.mean(0), atol=1e-5)


@pytest.mark.slow
def test_export_takes_the_packages_model_by_default(wanted, wave, tmp_path):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx.export(None, tmp_path / "model.onnx"))
    (found,) = session.run(["embedding"], {"waveform": wave[None]})
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)


def test_a_library_is_embedded_by_the_packages_model(bundled, audio_folder, tmp_path):
    build.embed_library(audio_folder, tmp_path / "x.parquet", workers=1)
    assert search.load(tmp_path / "x.parquet").identity == patchifier.load().identity


def test_encoders_are_named_as_models_are(bundled, small_cache):
    data, specs = Cache(small_cache), {"patchifier-base": 64, "model:patchifier-base@mean": 32}
    for spec, size in specs.items():
        (encoder,) = encoders(spec, data=data)
        assert encoder.encode(data, [0, 1]).shape == (2, size)
    five = encoders("random:patchifier-base", data=data, train=range(6))
    assert [each.encode(data, [0]).shape for each in five] == [(1, 64)] * 5
    with pytest.raises(RequestError, match="patchifier-base, patchifier-paper"):
        encoders("patchifier", data=data)


def test_transformers_classes_read_half_precision_into_float32(bundled, wave):
    folder, file = bundled / "patchifier-paper", bundled / "patchifier-paper" / "model.safetensors"
    with safetensors.safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    tensors = {
        name: each.half() if each.is_floating_point() else each
        for name, each in load_file(file).items()
    }
    save_file(tensors, file, metadata=metadata)  # which transformers would go by
    network = transformers.AutoModel.from_pretrained(folder)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    with torch.no_grad():
        found = network.eval()(torch.from_numpy(wave)[None]).pooler_output[0]
    wanted = patchifier.load("patchifier-paper").embed(wave, RATE)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_model_in_half_precision_is_copied_without_loss(bundled, tmp_path):
    hf.HubModel.from_pretrained("patchifier-base").save_pretrained(tmp_path / "copy")
    assert patchifier.load(tmp_path / "copy").identity == patchifier.load().identity


@pytest.fixture(scope="module")
def maker():
    return golden_maker()


@RELEASED
def test_a_released_model_gives_the_stored_vectors(name, maker):
    file = GOLDEN / f"{name}.npz"
    assert file.exists(), f"run python tests/golden/make.py {name}"
    with np.load(GOLDEN / "embedding.npz") as sound, np.load(file) as stored:
        found = maker.embed_released(name, sound["pcm"])
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


@RELEASED
def test_a_released_model_is_small_and_in_half_precision(name):
    file = weights.find(name) / "model.safetensors"
    assert file.stat().st_size <= 20_000_000
    assert checkpoint.load(name).model.parameter_count() <= 10_000_000
    with safetensors.safe_open(file, framework="pt") as stored:
        slices = [stored.get_slice(key) for key in stored.keys()]  # noqa: SIM118
        assert {each.get_dtype() for each in slices if len(each.get_shape()) > 1} == {"F16"}


@RELEASED
def test_a_released_models_card_and_facts_say_what_has_to_be_known(name):
    card = (weights.find(name) / "README.md").read_text(encoding="utf-8")
    for heading in (
        "Training data",
        "Compute",
        "Open benchmark",
        "Limits",
        "Fair and unfair tests",
        "How it was made",
    ):
        assert f"## {heading}" in card
    held = checkpoint.load(name)
    assert f'patchifier.load("{name}")' in card
    assert f"{held.model.parameter_count():,} parameters" in card
    assert held.facts["hours"] > 0
    assert len(held.facts["date"].split("-")) == 3


@RELEASED
@pytest.mark.parametrize("file", ["config.json", "README.md"])
def test_nothing_released_names_a_place_on_the_machine_that_made_it(name, file):
    words = (weights.find(name) / file).read_text(encoding="utf-8").replace('"', " ").split()
    assert not [word for word in words if word.startswith(("/", "~/", "file:"))]


@pytest.fixture(scope="module")
def base() -> Embedder:
    return patchifier.load("patchifier-base")


@pytest.fixture(scope="module")
def shares(base) -> Callable[[np.ndarray, str], np.ndarray]:
    """What an estimator said, from the standardised numbers that an embedding holds."""
    readout = checkpoint.load("patchifier-base").model.readout
    behind = len(readout.mean) - base.size  # the slices before are not as long as what they pool

    def found(vector: np.ndarray, name: str) -> np.ndarray:
        part = base.slices[name]
        place = slice(part.start + behind, part.stop + behind)
        return (vector[part] * readout.scale[place].numpy() + readout.mean[place].numpy()) ** 2

    return found


def cadence(semitones: int) -> np.ndarray:
    """I, IV, V, I on A3 and so many semitones above, three times, twelve seconds."""
    time_s = np.arange(22_050) / 22_050
    chords = []
    for root in (0, 5, 7, 0):
        notes = [220 * 2 ** ((semitones + root + third) / 12) for third in (0, 4, 7)]
        tones = [0.08 / k * np.sin(2 * np.pi * k * hz * time_s) for hz in notes for k in (1, 2, 3)]
        chords.append(sum(tones))
    return np.concatenate(chords * 3).astype(np.float32)


def test_a_transposed_cadence_has_its_tonic_as_much_higher_and_the_same_degrees(base, shares):
    first, *others = (base.embed(cadence(semitones), 22_050) for semitones in range(4))
    home = shares(first, "tonic").argmax()
    for semitones, vector in enumerate(others, 1):
        assert shares(vector, "tonic").argmax() == (home + 3 * semitones) % 36
        harmony, degrees = (
            np.linalg.norm(vector[base.slices[name]] - first[base.slices[name]])
            for name in ("harmony", "degrees")
        )
        assert degrees < 0.2 * harmony


def test_clicks_have_their_beat_at_one_ratio_whatever_the_tempo(base, shares):
    chance, ratios, lags = np.random.default_rng(0), [], np.geomspace(*LAGS_S, LAGS)
    for beat_s in (0.75, 0.6, 0.5):
        wave = np.zeros(22_050 * 20, np.float32)
        for start in (np.arange(0, 19.9, beat_s) * 22_050).astype(int):
            wave[start : start + 600] = chance.uniform(-0.5, 0.5, 600)
        found = shares(base.embed(wave, 22_050), "tempo").argmax()
        ratios.append(lags[found] / beat_s)
    assert max(ratios) / min(ratios) < 1.06, ratios  # lags lie 4 % apart


@torch.inference_mode()
def test_the_graph_of_the_packages_model_enlarges_rounding_no_more_than_it_says(base, noise):
    held, time_s = checkpoint.load("patchifier-base"), np.arange(3 * RATE) / RATE
    graph = onnx.Graph(held.model, held.config).eval()
    tone = 0.9 * np.sin(2 * np.pi * 440 * time_s)
    clip = datasets.load("demo").clips[0]
    sounds = {
        "music": (audio.load(clip.path, start_s=clip.start_s, end_s=clip.end_s), 1e-4),
        "noise": (noise(7.3), 1e-4),
        "silence": (0 * time_s, 1e-4),
        "square": (np.sign(tone), 1e-4),
        "constant": (0 * time_s + 1, 2e-3),
        "tone of 16 bits": (np.rint(tone * 32767) / 32768, 4e-2),
    }
    for name, (sound, most) in sounds.items():
        sound = np.asarray(sound, np.float32)
        found = graph(torch.from_numpy(sound)[None])[0].numpy()
        assert np.abs(found - base.embed(sound, RATE)).max() < most, name
