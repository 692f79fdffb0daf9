"""The exported graph: the embedder's vectors for every length and batch, and no torch to run it."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier import checkpoint, embed
from patchifier.checkpoint import checkpoint_of
from patchifier.config import RequestError
from patchifier.integrations import onnx
from patchifier.integrations.onnx import Graph, export
from patchifier.nn.model import Patchifier
from tests import ROOT, builders, small

RATE = 22_050
EXAMPLE = ROOT / "examples" / "onnx_embed.py"
# Around one patch (32 frames), one window (25 patches, 800 frames), and the second and third:
# a hop of 13 patches is 416 frames.
FRAMES = (1, 2, 31, 32, 33, 64, 799, 800, 801, 833, 1216, 1217, 1249, 1632, 1633)


def embedder(model=None, **sections):
    config = small.config(small.WIDE | (model or {}), **sections)
    network = Patchifier(config, seed=0)
    with torch.no_grad():
        for name, part in network.bottleneck.named_parameters():
            if name == "positions":  # so that a wrong position shows
                part.normal_(generator=torch.Generator().manual_seed(0))
    return builders.embedder(network, config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model"
    made = embedder()
    checkpoint.save(path, checkpoint_of(made))
    return path


@pytest.fixture(scope="module")
def export_as(folder):
    """Write the model as a file of this name; all are of one capture, which takes seconds."""
    captured, capture = [], onnx._exported

    def once(graph, embedder):
        captured.extend([] if captured else [capture(graph, embedder)])
        return captured[0]

    def run(name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnx, "_exported", once)
            return export(folder, folder.parent / name)

    return run


@pytest.fixture(scope="module")
def exported(export_as):
    return export_as("graph.onnx")


def running(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def session(exported):
    return running(exported)


def require_same_vectors(made, sounds, rate=RATE):
    """The graph of an embedder, before it is exported, gives its vectors."""
    with torch.no_grad():
        found = Graph(made.network.model, made.config)(torch.from_numpy(sounds)).numpy()
    np.testing.assert_allclose(found, made.embed(list(sounds), rate), atol=1e-5)
    return found


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def difference(session, encoder, sounds):
    (found,) = session.run(["embedding"], {"waveform": sounds})
    expected = encoder.embed(list(sounds), RATE)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def test_one_file_says_what_it_takes_and_gives(exported, session):
    files = {path.name for path in exported.parent.iterdir() if path.is_file()}
    assert files - {"graph.pt2"} == {"graph.onnx"}
    assert session.get_modelmeta().custom_metadata_map["sample_rate"] == "22050"
    (taken,), (given_back,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type) == ("waveform", "tensor(float)")
    assert (given_back.name, given_back.shape[1]) == ("embedding", 64)
    assert all(isinstance(size, str) for size in taken.shape)  # names of free sizes


@pytest.mark.parametrize("frames", FRAMES)
def test_windows_of_every_length_are_the_embedders(session, folder, frames):
    sounds = noise(2, (frames - 1) * 512 + 1, seed=frames)
    assert difference(session, embed.load(folder), sounds) < 1e-5


@settings(max_examples=15, deadline=None)
@given(
    sounds=st.integers(1, 4),
    samples=st.one_of(st.integers(1, 3000), st.integers(1, 45 * RATE)),
    seed=st.integers(0, 99),
    level_db=st.integers(-90, 0),
)
def test_random_lengths_batches_and_levels_agree(session, folder, sounds, samples, seed, level_db):
    batch = noise(sounds, samples, seed=seed) * np.float32(10 ** (level_db / 20))
    assert difference(session, embed.load(folder), batch) < 1e-5


@pytest.mark.parametrize("kind", ["silence", "constant", "half silent", "square"])
def test_sounds_with_little_in_them_agree(session, folder, kind):
    time_s = np.arange(3 * RATE) / RATE
    tone = 0.9 * np.sin(2 * np.pi * 440 * time_s)
    sound = {
        "silence": 0 * time_s,
        "constant": 0 * time_s + 1,
        "half silent": noise(len(time_s)) * (time_s > 1.5),
        "square": np.sign(tone),
    }[kind]
    assert difference(session, embed.load(folder), sound[None].astype(np.float32)) < 1e-4


def test_silent_patches_are_left_out_row_by_row(session, folder):
    time_s = np.arange(20 * RATE) / RATE
    gaps = [time_s < 0, time_s > 3, (time_s > 2) & (time_s < 17), time_s < 19, time_s >= 0]
    sounds = np.stack([noise(len(time_s)) * ~gap for gap in gaps]).astype(np.float32)
    assert difference(session, embed.load(folder), sounds) < 1e-4


def tone_of_16_bits():
    """Three seconds, (1, S): all bands but a few hold rounding noise, 90 dB below the tone."""
    tone = 0.9 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)
    return (np.rint(tone * 32767) / 32768)[None].astype(np.float32)


@pytest.mark.slow  # it exports another graph
def test_a_tone_of_16_bits_agrees_where_patch_vectors_are_not_normalised(tmp_path):
    made = embedder({"vector_norm": "none"})
    checkpoint.save(tmp_path / "model", checkpoint_of(made))
    session = running(export(tmp_path / "model", tmp_path / "graph.onnx"))
    assert difference(session, embed.load(tmp_path / "model"), tone_of_16_bits()) < 1e-4


def test_a_tone_of_16_bits_agrees_as_far_as_log_mels_in_float32_do(session, folder):
    # 90 dB below a tone a float32 log-mel is 2e-3 off a float64 one;
    # patch vectors are normalised, so the embedding is as uncertain.
    assert difference(session, embed.load(folder), tone_of_16_bits()) < 2e-2


def test_rows_of_a_batch_do_not_depend_on_each_other(session):
    sounds = noise(3, 30_000)
    together = session.run(None, {"waveform": sounds})[0]
    alone = [session.run(None, {"waveform": sounds[row : row + 1]})[0][0] for row in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


NO_MODEL = "not a model that 'patchifier export --onnx' wrote ("
NOWHERE = "(No such file or directory)"
WRONG = {
    "nowhere.onnx mono.wav": [f"nowhere.onnx: {NO_MODEL}NoSuchFile("],
    "text.wav mono.wav": [f"text.wav: {NO_MODEL}"],
    "MODEL nowhere.wav text.wav .": [
        f"nowhere.wav: cannot be read {NOWHERE}",
        "text.wav: cannot be read (",
        ".: cannot be read (Is a",
    ],
    "MODEL mono.wav --out nowhere/x.npz": [f"nowhere/x.npz: cannot be written {NOWHERE}"],
}


@pytest.mark.parametrize(("given", "said"), WRONG.items())
def test_the_example_says_in_a_line_what_is_wrong(given, said, exported, tmp_path):
    soundfile.write(tmp_path / "mono.wav", noise(RATE) / 2, RATE)
    (tmp_path / "text.wav").write_text("no audio")
    words = [exported if word == "MODEL" else word for word in given.split()]
    command = [sys.executable, EXAMPLE, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    for line, start in zip(done.stderr.splitlines(), said, strict=True):
        assert line.startswith(start)


def test_the_example_names_a_package_that_is_missing():
    hide = "import sys, runpy; sys.modules['onnxruntime'] = None"
    code = f"{hide}; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "onnxruntime" in line
    assert line.endswith(": pip install numpy soundfile soxr onnxruntime")


WITHOUT_TORCH = """
import sys, runpy
sys.modules['torch'] = sys.modules['patchifier'] = None
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
finally:
    assert sys.modules['torch'] is None
    assert not [name for name in sys.modules if name.startswith(('torch.', 'patchifier.'))]
"""


def test_the_example_embeds_files_without_torch(exported, folder, tmp_path):
    soundfile.write(tmp_path / "mono.wav", noise(5 * RATE) / 2, RATE)
    soundfile.write(tmp_path / "stéréo.flac", noise(44_100 * 3, 2, seed=1) / 2, 44_100)
    (tmp_path / "broken.mp3").write_bytes(b"no audio")
    names = [str(tmp_path / name) for name in ("mono.wav", "stéréo.flac", "broken.mp3")]
    command = [sys.executable, "-c", WITHOUT_TORCH, EXAMPLE, exported, *names]
    out = tmp_path / "vectors.npz"
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # one could not be read
    assert "broken.mp3" in done.stderr
    assert "Traceback" not in done.stderr
    with np.load(out) as found:
        assert list(found["paths"]) == names[:2]
        np.testing.assert_allclose(found["vectors"], embed.load(folder).embed(names[:2]), atol=1e-4)


WITHOUT_US = """
import sys, numpy, torch
sys.modules['patchifier'] = None
extra = {'metadata.json': ''}
model = torch.export.load(sys.argv[1], extra_files=extra).module()
with numpy.load(sys.argv[2]) as given:
    found = [model(torch.from_numpy(given[name])).detach().numpy() for name in given]
numpy.savez(sys.argv[3], *found)
print(extra['metadata.json'])
"""


@pytest.mark.slow
def test_a_program_of_torch_gives_the_same_without_this_package(export_as, folder, tmp_path):
    shapes = ((1, 1), (3, 700), (1, 30_000), (2, 31 * RATE))
    sounds = [noise(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    given, out = tmp_path / "sounds.npz", tmp_path / "vectors.npz"
    np.savez(given, *sounds)
    command = [sys.executable, "-c", WITHOUT_US, export_as("graph.pt2"), given, out]
    shown = subprocess.check_output(command, text=True)
    assert json.loads(shown)["sample_rate"] == "22050"
    encoder = embed.load(folder)
    with np.load(out) as found:
        for name, batch in zip(found, sounds, strict=True):
            np.testing.assert_allclose(found[name], encoder.embed(list(batch), RATE), atol=1e-5)


def test_the_example_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60


# --- the graph itself, before it is exported ---


@pytest.mark.parametrize("pooling", ["cls", "mean", "mean+max", "mean+std"])
@pytest.mark.parametrize("frames", [5, 800, 1300])
def test_every_pooling_and_layer_is_in_the_graph(pooling, frames):
    made = embedder(embed={"pooling": pooling, "layers": [1, -1], "hop_patches": 7})
    require_same_vectors(made, noise(2, frames * 512, seed=frames))


def test_other_spectrograms_and_windows_are_in_the_graph():
    spectrogram = {"n_fft": 1024, "hop_length": 400, "window": "hamming", "mel_scale": "htk"}
    spectrogram |= {"sample_rate": 16_000, "f_max_hz": 8000.0, "min_db": -80.0}
    made = embedder(
        {"max_patches": 30, "patch_frames": 64, "position_embedding": "plain"},
        spectrogram=spectrogram,
        pretrain={"stage_two_patches": "whole"},
    )
    require_same_vectors(made, noise(1, 40 * 64 * 400), 16_000)


@pytest.mark.parametrize(("pitch_hop", "n_similarity"), [(1, 0), (4, 0), (4, 6)])
@pytest.mark.parametrize("frames", [5, 1300])
def test_estimates_and_summaries_are_in_the_graph(frames, pitch_hop, n_similarity):
    model = {"estimators": ["tonic", "tempo"]}
    summaries = ["tonic", "degrees", "tempo", "metre", "texture"]
    embed = {"summaries": summaries, "whiten": True, "n_components": 9}
    embed["n_similarity"] = n_similarity
    made = embedder(model, spectrogram={"n_pitch_bands": 216, "pitch_hop": pitch_hop}, embed=embed)
    found = require_same_vectors(made, noise(2, frames * 512, seed=frames))
    assert found.shape == (2, n_similarity + 429)


@pytest.mark.parametrize(
    "model",
    [
        {"extractor": "transformer"},
        {"norm_first": True, "n_predictor_layers": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("frames", [5, 1300])
def test_parts_beyond_the_paper_are_in_the_graph(model, frames):
    require_same_vectors(embedder(model), noise(2, frames * 512, seed=frames))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"embed": {"whole_clip": True}}, "whole_clip is true"),
        ({"spectrogram": {"reference": "max", "top_db": 80.0}}, "reference"),
        ({"spectrogram": {"top_db": 80.0}}, "top_db"),
    ],
)
def test_what_has_no_place_in_a_graph_is_refused_and_nothing_is_written(
    sections, message, tmp_path
):
    with pytest.raises(RequestError, match=message):
        export(embedder(**sections), tmp_path / "graph.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(RequestError, match=r"pip install 'patchifier\[onnx\]'"):
        export(embedder(), tmp_path / "graph.onnx")


def test_a_missing_model_and_a_name_that_is_neither_onnx_nor_pt2_are_refused(tmp_path):
    with pytest.raises(RequestError, match="nowhere"):
        export(tmp_path / "nowhere", tmp_path / "graph.onnx")
    with pytest.raises(RequestError, match=r"expected a name that ends in \.onnx or \.pt2"):
        export(None, tmp_path / "model.foo")
    assert not list(tmp_path.iterdir())
