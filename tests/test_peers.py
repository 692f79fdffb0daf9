"""Other people's encoders: folders of features, transformers, HEAR modules, CLMR's weights. All offline, with tiny models made here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import argparse
import builtins
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import soundfile
import soxr
import torch
import transformers
from torch.nn import functional

from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.evaluate.encoders import clmr, encoders
from patchifier.evaluate.encoders.peers import windows

OWN_RATE = 44_100  # of the files: neither this package's rate nor any model's


class Clips:
    """As much of a cache as encoders of audio look at."""

    def __init__(self, *clips):
        self.clips = clips


@pytest.fixture(scope="module")
def data(tmp_path_factory, noise, tone):
    """Clips of 2 s, 12.5 s, the middle of the second, and 200 samples."""
    folder = tmp_path_factory.mktemp("sounds")
    sounds = {"short": (2.0, 300.0), "long": (12.5, 500.0)}
    for name, (seconds, hz) in sounds.items():
        soundfile.write(
            folder / f"{name}.wav",
            noise(seconds, rate=OWN_RATE) + tone(hz, seconds=seconds, rate=OWN_RATE, level=0.3),
            OWN_RATE,
            subtype="FLOAT",
        )
    soundfile.write(
        folder / "click.wav", noise(200 / OWN_RATE, rate=OWN_RATE), OWN_RATE, subtype="FLOAT"
    )
    paths = {name: str(folder / f"{name}.wav") for name in ("short", "long", "click")}
    return Clips(
        Clip("short", paths["short"]),
        Clip("long", paths["long"]),
        Clip("part", paths["long"], start_s=3.0, end_s=5.0),
        Clip("click", paths["click"]),
    )


def heard(clip, rate):
    """Waveform of a clip at a model's rate, straight from the file."""
    sound, own = soundfile.read(clip.path, dtype="float32")
    end = None if clip.end_s is None else round(clip.end_s * own)
    return soxr.resample(sound[round(clip.start_s * own) : end], own, rate, quality="HQ")


# --- features computed elsewhere ---


def library(tmp_path, *ids):
    return Clips(
        *[Clip(name, str(tmp_path / "audio" / f"{name.rpartition('/')[2]}.mp3")) for name in ids]
    )


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(values))


def test_a_folder_of_features_is_matched_by_id_or_by_the_files_name(tmp_path):
    clips = Clips(
        Clip("album/one.wav", "/elsewhere/a.wav"),
        Clip("blues.00000", "/elsewhere/b.wav"),
        Clip("7", "/elsewhere/07 – é.mp3"),
        Clip("x/two", "/elsewhere/c.wav"),
    )
    root = tmp_path / "features"
    write(root / "album" / "one.npy", [1.0, 2.0])
    write(root / "deep" / "down" / "blues.00000.npy", [3, 4])
    write(root / "07 – é.npy", np.array([5, 6], np.float16))
    np.savez(root / "two.npz", np.array([7.0, 8.0]))
    write(root / ".hidden.npy", [0.0])
    (root / "notes.txt").write_text("not features")
    (encoder,) = encoders(f"features:{root}", data=clips)
    found = encoder.encode(clips, [0, 1, 2, 3, 0])
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [1, 2]]
    assert encoder.precomputed
    assert (encoder.parameters, encoder.identity) == (None, None)


def test_features_with_a_time_axis_are_averaged_over_it_and_the_encoder_says_so(tmp_path):
    clips = library(tmp_path, "a", "b")
    write(tmp_path / "f" / "a.npy", [[1, 10], [3, 20], [5, 60]])
    write(tmp_path / "f" / "b.npy", [1.5, 2.5])
    (encoder,) = encoders(f"features:{tmp_path / 'f'}", data=clips)
    assert encoder.encode(clips, [0, 1]).tolist() == [[3, 30], [1.5, 2.5]]
    assert "mean over time" in encoder.note


def test_clips_without_a_file_are_named(tmp_path):
    clips = library(tmp_path, *"abcdefgh")
    write(tmp_path / "f" / "b.npy", [1.0])
    with pytest.raises(RequestError, match="no file for the clips a, c, d, e, f and 2 more"):
        encoders(f"features:{tmp_path / 'f'}", data=clips)
    (encoder,) = encoders(f"features:{tmp_path / 'f'}")
    assert encoder.encode(clips, [1]).tolist() == [[1]]
    with pytest.raises(RequestError, match="no file for the clips h:"):
        encoder.encode(clips, [1, 7])


def test_a_clip_with_two_files_and_a_file_of_two_clips_are_refused(tmp_path):
    clips = library(tmp_path, "x/a", "x/b")
    write(tmp_path / "f" / "one" / "a.npy", [1.0])
    write(tmp_path / "f" / "two" / "a.npy", [2.0])
    write(tmp_path / "f" / "b.npy", [3.0])
    with pytest.raises(
        RequestError, match=r"clip 'x/a' has 2 files, such as .*one/a.npy and .*two/a.npy"
    ):
        encoders(f"features:{tmp_path / 'f'}", data=clips)
    write(tmp_path / "f" / "x" / "a.npy", [4.0])  # the path below the folder decides
    assert encoders(f"features:{tmp_path / 'f'}", data=clips)[0].encode(clips, [0, 1]).tolist() == [
        [4],
        [3],
    ]
    np.savez(tmp_path / "f" / "x" / "a.npz", [5.0])
    with pytest.raises(RequestError, match="has 2 files"):
        encoders(f"features:{tmp_path / 'f'}", data=clips)
    twins = library(tmp_path, "x/b", "y/b")
    with pytest.raises(RequestError, match=r"only file for the two clips 'x/b' and 'y/b'"):
        encoders(f"features:{tmp_path / 'f'}", data=twins)


def test_two_parts_of_one_file_do_not_share_its_features(tmp_path):
    parts = Clips(Clip("one", "/a/song.mp3", end_s=10.0), Clip("two", "/a/song.mp3", start_s=10.0))
    write(tmp_path / "song.npy", [1.0])
    with pytest.raises(RequestError, match="two clips 'one' and 'two'"):
        encoders(f"features:{tmp_path}", data=parts)


def test_files_that_are_not_one_array_of_numbers_are_refused_by_name(tmp_path):
    clips = library(tmp_path, "a")
    path = tmp_path / "f" / "a.npy"
    cases = [
        (np.zeros((1, 2, 3)), r"shape \(1, 2, 3\)"),
        (np.zeros((0, 3)), "shape"),
        (np.float32(3), "shape"),
        (np.array(["x"]), "expected numbers"),
        (np.array([1j]), "expected numbers"),
        (np.array([1.0, np.nan]), "NaN or infinity"),
        (np.array([1e300]), "NaN or infinity"),
    ]
    for values, message in cases:
        write(path, values)
        with pytest.raises(RequestError, match=message), np.errstate(over="ignore"):
            encoders(f"features:{tmp_path / 'f'}", data=clips)[0].encode(clips, [0])
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(RequestError, match=r"a\.npy: cannot be read"):
        encoders(f"features:{tmp_path / 'f'}")[0].encode(clips, [0])
    path.write_bytes(b"")
    with pytest.raises(RequestError, match=r"a\.npy: cannot be read"):
        encoders(f"features:{tmp_path / 'f'}")[0].encode(clips, [0])
    path.unlink()
    np.savez(tmp_path / "f" / "a.npz", x=[1.0], y=[2.0])
    with pytest.raises(RequestError, match="holds the arrays x, y, expected exactly one"):
        encoders(f"features:{tmp_path / 'f'}")[0].encode(clips, [0])


def test_features_of_different_sizes_and_empty_folders_are_refused(tmp_path):
    clips = library(tmp_path, "a", "b")
    write(tmp_path / "f" / "a.npy", [1.0, 2.0])
    write(tmp_path / "f" / "b.npy", [1.0])
    with pytest.raises(RequestError, match="clip 'b' have 1 numbers, those of the first clip 2"):
        encoders(f"features:{tmp_path / 'f'}")[0].encode(clips, [0, 1])
    for folder in ("empty", "not there"):
        with pytest.raises(RequestError, match=r"holds no \.npy or \.npz files"):
            encoders(f"features:{tmp_path / folder}")


# --- windows ---


@pytest.mark.parametrize(
    ("samples", "starts"),
    [(3, [0]), (4, [0]), (5, [0, 1]), (8, [0, 4]), (9, [0, 4, 5]), (11, [0, 4, 7])],
)
def test_windows_lie_side_by_side_and_the_last_ends_with_the_sound(samples, starts):
    found = windows(np.arange(samples), 4, shortest=2)
    assert [part.tolist() for part in found] == [
        list(range(start, min(start + 4, samples))) for start in starts
    ]


def test_what_is_too_short_is_padded_behind():
    assert windows(np.array([7.0]), 8, shortest=3)[0].tolist() == [7, 0, 0]


# --- transformers ---

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONVOLUTIONS = {
    "conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (10, 8), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2
}  # fmt: skip


def saved(folder, model, extractor):
    model.eval().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def wav2vec(tmp_path_factory):
    """Folder, model and extractor of a tiny wav2vec 2.0 that hears at 24 kHz."""
    torch.manual_seed(0)
    folder, extractor = (
        tmp_path_factory.mktemp("wav2vec") / "model",
        transformers.Wav2Vec2FeatureExtractor(sampling_rate=24_000),
    )
    return (
        folder,
        saved(
            folder,
            transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**SMALL, **CONVOLUTIONS)),
            extractor,
        ),
        extractor,
    )


@torch.no_grad()
def by_hand(model, extractor, waveform, layer=None):
    """Mean over time of what the model itself gives for a waveform at its own rate."""
    given = model(
        **extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt"),
        output_hidden_states=True,
    )
    return (
        (given.last_hidden_state if layer is None else given.hidden_states[layer])[0]
        .mean(0)
        .numpy()
    )


@pytest.mark.parametrize("layer", [None, 0, 1, 2, -1])
def test_a_folder_of_transformers_gives_what_the_model_gives_at_its_own_rate(layer, data, wav2vec):
    folder, model, extractor = wav2vec
    (encoder,) = encoders(f"hf:{folder}" if layer is None else f"hf:{folder}@{layer}", data=data)
    found = encoder.encode(data, [0, 2])
    for row, index in zip(found, (0, 2), strict=True):
        np.testing.assert_allclose(
            row, by_hand(model, extractor, heard(data.clips[index], 24_000), layer), atol=1e-5
        )
    assert encoder.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert "24,000 Hz" in encoder.note


def test_the_models_rate_is_not_this_packages(data, wav2vec):
    folder, model, extractor = wav2vec
    found = encoders(f"hf:{folder}")[0].encode(data, [0])[0]
    wrong = by_hand(model, extractor, heard(data.clips[0], 22_050))
    right = by_hand(model, extractor, heard(data.clips[0], 24_000))
    assert np.abs(found - wrong).max() > 20 * np.abs(found - right).max()


def test_a_long_clip_is_heard_in_windows_to_its_very_end(data, wav2vec):
    folder, model, extractor = wav2vec
    found = encoders(f"hf:{folder}")[0].encode(data, [1])[0]
    waveform = heard(data.clips[1], 24_000)
    wanted = [by_hand(model, extractor, part) for part in (waveform[:240_000], waveform[-240_000:])]
    np.testing.assert_allclose(found, np.mean(wanted, axis=0), atol=1e-5)


def test_clips_of_a_few_samples_have_features_and_neighbours_do_not_matter(data, wav2vec):
    (encoder,) = encoders(f"hf:{wav2vec[0]}")
    assert np.isfinite(encoder.encode(data, [3])).all()
    assert np.array_equal(encoder.encode(data, [3, 0])[1], encoder.encode(data, [0])[0])


def test_a_model_is_in_evaluation_mode_and_the_same_twice(data, wav2vec):
    one, two = (encoders(f"hf:{wav2vec[0]}")[0] for _ in range(2))
    assert np.array_equal(one.encode(data, [0]), two.encode(data, [0]))
    assert one.identity == two.identity
    assert one.identity != encoders(f"hf:{wav2vec[0]}@1")[0].identity


def test_whisper_is_its_encoder_without_the_silence_that_fills_the_window(data, tmp_path):
    torch.manual_seed(0)
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    config = transformers.WhisperConfig(
        **sizes, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=51_000
    )
    model, extractor = transformers.WhisperModel(config), transformers.WhisperFeatureExtractor()
    saved(tmp_path / "model", model, extractor)
    found = encoders(f"hf:{tmp_path / 'model'}")[0].encode(data, [0])[0]
    inputs = extractor(heard(data.clips[0], 16_000), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        states = model.get_encoder()(**inputs).last_hidden_state[0]
    assert states.shape == (1500, 16)  # 30 s, of which 2 s are the clip
    np.testing.assert_allclose(found, states[:100].mean(0).numpy(), atol=1e-5)


def test_a_spectrogram_transformer_is_given_windows_that_it_does_not_cut_off(data, tmp_path):
    torch.manual_seed(0)
    model, extractor = (
        transformers.ASTModel(transformers.ASTConfig(**SMALL)),
        transformers.ASTFeatureExtractor(),
    )
    saved(tmp_path / "model", model, extractor)
    found = encoders(f"hf:{tmp_path / 'model'}")[0].encode(data, [1])[0]
    waveform = heard(data.clips[1], 16_000)
    wanted = np.mean(
        [by_hand(model, extractor, part) for part in (waveform[:160_000], waveform[-160_000:])],
        axis=0,
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_model_of_another_task_is_used_without_its_head_and_in_silence(
    tmp_path, data, wav2vec, capfd
):
    torch.manual_seed(0)
    model = saved(
        tmp_path / "ctc",
        transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**SMALL, **CONVOLUTIONS)),
        wav2vec[2],
    )
    capfd.readouterr()
    found = encoders(f"hf:{tmp_path / 'ctc'}")[0].encode(data, [0])[0]
    assert capfd.readouterr() == ("", "")
    np.testing.assert_allclose(
        found, by_hand(model.wav2vec2, wav2vec[2], heard(data.clips[0], 24_000)), atol=1e-5
    )


def test_missing_weights_are_refused_where_transformers_draws_them(tmp_path, wav2vec):
    shallow = transformers.Wav2Vec2Config(**{**SMALL, "num_hidden_layers": 1}, **CONVOLUTIONS)
    saved(tmp_path / "model", transformers.Wav2Vec2Model(shallow), wav2vec[2])
    transformers.Wav2Vec2Config(**SMALL, **CONVOLUTIONS).save_pretrained(tmp_path / "model")
    with pytest.raises(RequestError, match=r"lack \d+ tensors, such as encoder\.layers\.1"):
        encoders(f"hf:{tmp_path / 'model'}")


def test_what_is_no_audio_model_is_refused_with_the_reason(tmp_path, wav2vec):
    with pytest.raises(RequestError, match=r"no hidden state 9, expected 0 to 2"):
        encoders(f"hf:{wav2vec[0]}@9")
    with pytest.raises(RequestError, match="cannot load 'somebody/nothing'"):
        encoders("hf:somebody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="cannot load"):
        encoders(f"hf:{tmp_path / 'empty'}")
    saved(tmp_path / "text", transformers.BertModel(transformers.BertConfig(**SMALL)), wav2vec[2])
    with pytest.raises(RequestError, match="fails on a second of silence"):
        encoders(f"hf:{tmp_path / 'text'}")


def test_code_that_comes_with_a_model_is_run_only_on_request(tmp_path, wav2vec, monkeypatch):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = tmp_path / "foreign"
    saved(folder, wav2vec[1], wav2vec[2])
    config = (
        (folder / "config.json").read_text(encoding="utf-8").replace('"wav2vec2"', '"homemade"')
    )
    (folder / "config.json").write_text(
        config.replace("{", '{"auto_map": {"AutoConfig": "made.C", "AutoModel": "made.M"},', 1),
        encoding="utf-8",
    )
    (folder / "made.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nraise ValueError('code ran')\n", encoding="utf-8"
    )
    with pytest.raises(
        RequestError, match="if the model brings its own code and you trust it, write hf-code:"
    ):
        encoders(f"hf:{folder}")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(RequestError, match="code ran"):
        encoders(f"hf-code:{folder}")
    assert (tmp_path / "ran").exists()


def test_without_transformers_the_message_says_how_to_install_it(monkeypatch):
    original = builtins.__import__

    def without(name, *more):
        if name.partition(".")[0] == "transformers":
            raise ImportError(name)
        return original(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RequestError, match=re.escape("pip install 'patchifier[peers]'")):
        encoders("hf:any/model")


def test_heavy_packages_are_not_loaded_with_the_module(child_environment):
    code = "import sys, patchifier.evaluate.encoders; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "torch" in loaded
    assert not set(loaded) & {"transformers", "librosa", "sklearn"}


# --- HEAR ---

HEAR = """
    import torch

    class Model(torch.nn.Module):
        sample_rate = {rate}
        scene_embedding_size = {size}

        def __init__(self, gain):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(gain))

    def load_model(model_file_path=""):
        return Model(float(open(model_file_path).read()) if model_file_path else 1.0)

    def get_scene_embeddings(audio, model):
        assert audio.ndim == 2 and audio.dtype == torch.float32 and not model.training
        return model.gain * torch.stack([torch.full((len(audio),), float(audio.shape[1])), audio.square().mean(1)], 1)
"""


@pytest.fixture
def hear_module(tmp_path, monkeypatch):
    """Write a HEAR module of a given text and give its import path."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write_module(text=HEAR, **values):
        made.append(f"hear_{tmp_path.name.replace('-', '_')}_{len(made)}")
        (tmp_path / f"{made[-1]}.py").write_text(
            textwrap.dedent(text).format(**{"rate": 16_000, "size": 2} | values), encoding="utf-8"
        )
        return made[-1]

    yield write_module
    for name in made:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("rate", [16_000, 22_050, 32_000, 44_100, 48_000])
def test_a_hear_module_hears_every_clip_at_its_own_rate(rate, data, hear_module):
    (encoder,) = encoders(f"hear:{hear_module(rate=rate)}", data=data)
    found = encoder.encode(data, [0, 2])
    assert found[:, 0].tolist() == pytest.approx([2 * rate, 2 * rate], abs=1)
    for row, index in zip(found, (0, 2), strict=True):
        assert row[1] == pytest.approx(np.square(heard(data.clips[index], rate)).mean(), rel=1e-4)
    assert encoder.parameters == 1
    assert f"{rate:,} Hz" in encoder.note


def test_a_hear_module_is_given_its_weights(data, hear_module, tmp_path):
    (tmp_path / "gain @ 3.txt").write_text("3.0")
    name = hear_module()
    (plain,), (loud,) = (
        encoders(f"hear:{name}"),
        encoders(f"hear:{name}@{tmp_path / 'gain @ 3.txt'}"),
    )
    np.testing.assert_allclose(loud.encode(data, [0]), 3 * plain.encode(data, [0]), rtol=1e-6)
    assert plain.identity != loud.identity
    assert plain.identity != encoders(f"hear:{hear_module(HEAR + '    # changed')}")[0].identity


def test_modules_without_the_hear_api_are_refused(hear_module):
    whole = textwrap.dedent(HEAR)
    cases = [
        ("x = 1", {}, "has no load_model and no get_scene_embeddings"),
        (
            whole.replace("def get_scene_embeddings", "def other"),
            {},
            "has no get_scene_embeddings,",
        ),
        (whole.replace("torch.nn.Module", "object"), {}, "gives Model, expected a torch.nn.Module"),
        (whole, {"rate": None}, "sample_rate is None"),
        (whole, {"rate": 44.1}, "sample_rate is 44.1"),
        (whole, {"size": 3}, r"gives \(1, 2\) for one sound, expected \(1, 3\)"),
        (
            whole.replace("assert audio.ndim == 2", "assert audio.ndim == 3"),
            {},
            "fails on a second of silence",
        ),
        ("import nothing_of_that_name", {}, "cannot import"),
    ]
    for text, values, message in cases:
        with pytest.raises(RequestError, match=message):
            encoders(f"hear:{hear_module(text, **values)}")
    with pytest.raises(RequestError, match=r"load_model fails \(FileNotFoundError"):
        encoders(f"hear:{hear_module()}@no/such/weights")
    with pytest.raises(RequestError, match="add the folder that holds it to PYTHONPATH"):
        encoders("hear:no_such_module_anywhere")


# --- CLMR ---

LAYERS = [
    (1, 128),
    (128, 128),
    (128, 128),
    (128, 256),
    (256, 256),
    (256, 256),
    (256, 256),
    (256, 256),
    (256, 256),
    (256, 512),
    (512, 512),
]


@pytest.fixture(scope="module")
def released():
    """Tensors of a SampleCNN with the names that CLMR's release gives them, its projector beside."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for number, (into, out) in enumerate(LAYERS):
        at = f"encoder.sequential.{number}"
        state[f"{at}.0.weight"] = (
            torch.randn(out, into, 3, generator=generator) * (2 / (3 * into)) ** 0.5
        )
        state[f"{at}.0.bias"] = 0.1 * torch.randn(out, generator=generator)
        state[f"{at}.1.weight"] = 1 + 0.1 * torch.randn(out, generator=generator)
        state[f"{at}.1.bias"] = 0.1 * torch.randn(out, generator=generator)
        state[f"{at}.1.running_mean"] = 0.1 * torch.randn(out, generator=generator)
        state[f"{at}.1.running_var"] = 1 + 0.1 * torch.rand(out, generator=generator)
        state[f"{at}.1.num_batches_tracked"] = torch.tensor(10_000)
    return state | {
        "projector.0.weight": torch.zeros(512, 512),
        "projector.2.weight": torch.zeros(128, 512),
    }


def sample_cnn_by_hand(state, frame):
    """One frame (59049,) through the published layers, written out: (512,)."""
    x = torch.from_numpy(frame)[None, None]
    for number in range(11):
        weight, bias = (
            state[f"encoder.sequential.{number}.0.{name}"] for name in ("weight", "bias")
        )
        x = functional.conv1d(
            x, weight, bias, stride=3 if number == 0 else 1, padding=0 if number == 0 else 1
        )
        scale, shift, mean, variance = (
            state[f"encoder.sequential.{number}.1.{name}"][:, None]
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        x = ((x - mean) / torch.sqrt(variance + 1e-5) * scale + shift).clamp(min=0)
        if 1 <= number <= 9:
            x = functional.max_pool1d(x, 3)
    assert x.shape == (1, 512, 1)
    return x[0, :, 0].numpy()


@pytest.fixture(scope="module")
def checkpoint_file(released, tmp_path_factory):
    path = tmp_path_factory.mktemp("clmr") / "clmr_checkpoint_10000.pt"
    torch.save(released, path)
    return path


def test_clmrs_weights_give_the_mean_over_whole_frames(data, released, checkpoint_file):
    (encoder,) = encoders(f"clmr:{checkpoint_file}", data=data)
    found = encoder.encode(data, [1, 0])
    assert found.shape == (2, 512)
    long, short = heard(data.clips[1], 22_050), heard(data.clips[0], 22_050)
    assert len(long) == 4 * 59_049 + 39_429
    frames = [long[start : start + 59_049] for start in range(0, 4 * 59_049, 59_049)]
    np.testing.assert_allclose(
        found[0],
        np.mean([sample_cnn_by_hand(released, frame) for frame in frames], axis=0),
        rtol=1e-3,
        atol=1e-4,
    )
    np.testing.assert_allclose(
        found[1],
        sample_cnn_by_hand(released, np.pad(short, (0, 59_049 - len(short)))),
        rtol=1e-3,
        atol=1e-4,
    )
    assert encoder.parameters == sum(
        tensor.numel()
        for name, tensor in released.items()
        if name.startswith("encoder") and "running" not in name and "num_" not in name
    )


def test_frames_of_exactly_one_and_two_lengths():
    assert [
        len(clmr.frames(np.zeros(count, np.float32)))
        for count in (1, 59_048, 59_049, 59_050, 118_097, 118_098)
    ] == [1, 1, 1, 1, 1, 2]


def test_every_form_of_the_checkpoint_gives_the_same(data, released, checkpoint_file, tmp_path):
    wanted = encoders(f"clmr:{checkpoint_file}")[0].encode(data, [0])
    alone = {
        name.removeprefix("encoder."): tensor
        for name, tensor in released.items()
        if name.startswith("encoder.")
    }
    lightning = {f"model.{name}": tensor for name, tensor in released.items()} | {
        name: tensor for name, tensor in released.items() if name.startswith("encoder.")
    }
    forms = {
        "alone.pt": alone | {"fc.weight": torch.zeros(50, 512), "fc.bias": torch.zeros(50)},
        "lightning.ckpt": {
            "state_dict": lightning, "pytorch-lightning_version": "1.0.2", "hyper_parameters": argparse.Namespace(lr=0.1), "callbacks": {str: {"best": 1}}
        },
    }  # fmt: skip
    for name, state in forms.items():
        torch.save(state, tmp_path / name)
        assert np.array_equal(encoders(f"clmr:{tmp_path / name}")[0].encode(data, [0]), wanted), (
            name
        )


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_loading_weights_runs_none_of_their_code(released, tmp_path):
    torch.save(
        {"state_dict": released, "extra": Bomb(str(tmp_path / "ran"))}, tmp_path / "bomb.ckpt"
    )
    (encoder,) = encoders(f"clmr:{tmp_path / 'bomb.ckpt'}")
    assert encoder.parameters > 2_000_000
    assert not (tmp_path / "ran").exists()


def test_weights_of_something_else_are_refused_by_name(released, tmp_path):
    first = "encoder.sequential.0.0.weight"
    cases = [
        (
            {**released, "encoder.sequential.11.0.weight": torch.zeros(1)},
            r"have \['sequential.11.0.weight'\] besides",
        ),
        ({**released, "decoder.weight": torch.zeros(1)}, "unexpected tensors decoder.weight"),
        (
            {name: tensor for name, tensor in released.items() if name != first},
            r"lack \['sequential.0.0.weight'\]",
        ),
        (
            {**released, first: torch.zeros(128, 1, 5)},
            r"shape \(128, 1, 5\), expected \(128, 1, 3\)",
        ),
        ({**released, first: torch.full((128, 1, 3), torch.nan)}, "NaN"),
        ({"conv.weight": torch.zeros(1)}, "but conv.weight: no SampleCNN"),
        ({}, "but none: no SampleCNN"),
        ([1, 2], "holds list, expected a dictionary of tensors"),
        ({"epoch": 3}, "expected a dictionary of tensors"),
    ]
    for state, message in cases:
        torch.save(state, tmp_path / "weights.pt")
        with pytest.raises(RequestError, match=message):
            encoders(f"clmr:{tmp_path / 'weights.pt'}")


def test_files_that_are_no_weights_are_refused(checkpoint_file, tmp_path):
    with pytest.raises(RequestError, match=r"nothing\.pt cannot be read"):
        encoders(f"clmr:{tmp_path / 'nothing.pt'}")
    whole = checkpoint_file.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(RequestError, match=r"bad\.pt cannot be read as weights"):
            encoders(f"clmr:{tmp_path / 'bad.pt'}")
    with pytest.raises(RequestError, match="cannot be read"):
        encoders(f"clmr:{tmp_path}")
