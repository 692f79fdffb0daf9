"""Encoders: hand-made features exactly as described, and a random network calibrated fairly."""

import copy
import dataclasses
import os

import librosa
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from patchifier import audio, cache, checkpoint, datasets, spectrogram
from patchifier.cache import Cache
from patchifier.config import Config, RequestError, update
from patchifier.datasets import Clip, Dataset
from patchifier.evaluate.encoders import (
    BUILDERS,
    CALIBRATION_CLIPS,
    ENCODERS,
    Encoder,
    cached,
    calibrate,
    chroma,
    each_clip,
    encoders,
    encoders_of,
    handcrafted,
    handmade,
    mel_stats,
    mfcc,
    random_checkpoint,
    specs,
)
from patchifier.evaluate.encoders.handmade import chroma_of, mfcc_of, sequence_statistics
from patchifier.nn.model import Patchifier
from tests import builders, small

RATE = audio.SAMPLE_RATE
CONFIG = small.config()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve clips of 1 to 3 s, then one of a single sample; the third is a part of a longer file."""
    folder = tmp_path_factory.mktemp("baselines")
    clips = []
    for number in range(12):
        time_s = np.arange(int((1 + 2 * number / 11) * RATE)) / RATE
        noise = np.random.default_rng(number).uniform(-1, 1, len(time_s))
        tone = 0.3 * np.sin(2 * np.pi * 200 * (1 + number) * time_s)
        audio.save(folder / f"{number}.wav", tone + 0.02 * (1 + number) * noise)
        part = {"start_s": 0.25, "end_s": 1.0} if number == 2 else {}
        clips.append(Clip(str(number), str(folder / f"{number}.wav"), **part))
    audio.save(folder / "click.wav", np.array([0.5], np.float32))
    clips.append(Clip("click", str(folder / "click.wav")))
    cache.prepare(Dataset("tones", tuple(clips)), folder / "cache", workers=1)
    return Cache(folder / "cache")


def log_mels_of(data, indices):
    return [data.array(index) for index in indices]


def patches_of(data, indices):
    """All patches of these clips (P, 1, M, W)."""
    cut = [spectrogram.cut(one, tail="anchor") for one in log_mels_of(data, indices)]
    return torch.from_numpy(np.concatenate(cut))


def norms_of(model):
    return [module for module in model.extractor.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.fixture(scope="module")
def part(data):
    """The sound of the third clip."""
    return audio.load(data.clips[2].path, start_s=0.25, end_s=1.0)


# --- features without a model ---


def test_mel_statistics_are_the_mean_and_deviation_of_each_band_over_time(data):
    indices = [5, 0, 12]
    found = mel_stats(data, indices)
    assert found.shape == (3, 128)
    for row, index in zip(found, indices, strict=True):
        log_mel = spectrogram.log_mel(audio.load(data.clips[index].path))
        log_mel = log_mel.astype(np.float16).astype(float)  # (M, T), rounded as the cache is
        np.testing.assert_allclose(row[:64], log_mel.mean(1), atol=1e-6)
        np.testing.assert_allclose(row[64:], log_mel.std(1), atol=1e-6)
    assert (found[2, 64:] < 1e-6).all()  # a single frame does not deviate


def test_mel_statistics_of_part_of_a_file_are_those_of_the_part(data, part):
    expected = spectrogram.log_mel(part).mean(1)
    np.testing.assert_allclose(mel_stats(data, [2])[0, :64], expected, atol=1e-3)


def peaked(waveform):
    return waveform / np.abs(waveform).max()


def moments_by_hand(sequence):
    """Mean and deviation of rows, of their changes, and of the changes of those."""
    change = sequence[:, 1:] - sequence[:, :-1]
    parts = [sequence, change, change[:, 1:] - change[:, :-1]]
    return np.concatenate([part for each in parts for part in (each.mean(1), each.std(1))])


def librosas(feature, waveform, **options):
    return moments_by_hand(feature(y=peaked(waveform), sr=RATE, **options))


def test_mfcc_are_librosas_means_and_deviations_with_first_and_second_differences(data, part):
    whole = [librosa.load(data.clips[index].path, sr=None)[0] for index in (3, 11)]
    expected = [librosas(librosa.feature.mfcc, sound, n_mfcc=20) for sound in (*whole, part)]
    np.testing.assert_allclose(mfcc(data, [3, 11, 2]), expected, rtol=1e-4, atol=1e-4)
    assert len(expected[0]) == 120


def test_chroma_are_librosas_moments(data, part):
    expected = librosas(librosa.feature.chroma_cqt, part, hop_length=512)
    np.testing.assert_allclose(chroma(data, [2])[0], expected, rtol=1e-4, atol=1e-4)


def test_moments_of_a_sequence_worked_out_by_hand():
    # changes 1, 3, 5; changes of those 2, 2
    found = sequence_statistics(np.array([[0.0, 1.0, 4.0, 9.0]]))
    np.testing.assert_allclose(found, [3.5, np.std([0, 1, 4, 9]), 3, np.std([1, 3, 5]), 2, 0])


def test_loudness_changes_neither_mfcc_nor_chroma(tone, noise):
    sound = tone(seconds=1.0, level=0.2) + noise(1.0, level=0.05)
    np.testing.assert_allclose(mfcc_of(0.25 * sound), mfcc_of(sound), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(chroma_of(0.25 * sound), chroma_of(sound), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("hz", "pitch_class"), [(261.626, 0), (440.0, 9), (880.0, 9), (739.989, 6)]
)
def test_chroma_of_a_tone_lights_its_pitch_class(hz, pitch_class, tone):
    found = chroma_of(tone(hz, seconds=2.0))
    assert found.shape == (72,)
    means = found[:12]
    assert means.argmax() == pitch_class
    assert means[pitch_class] > 0.95
    apart = np.delete(means, [(pitch_class + step) % 12 for step in (-1, 0, 1)])
    assert (apart < 0.2).all()


def test_chroma_change_where_the_tone_changes(tone):
    steady = chroma_of(tone(440.0, seconds=2.0))
    moving = chroma_of(np.concatenate([tone(440.0), tone(523.251)]))
    assert moving[12 + 9] > 10 * steady[12 + 9]  # deviation of the pitch class A
    assert moving[36 + 9] > 3 * steady[36 + 9]  # deviation of its first difference


def test_handcrafted_features_are_the_three_side_by_side(data):
    found = handcrafted(data, [3, 2])
    assert found.shape == (2, 120 + 72 + 128)
    parts = [encode(data, [3, 2]) for encode in (mfcc, chroma, mel_stats)]
    assert np.array_equal(found, np.concatenate(parts, axis=1))


def test_silence_has_hand_made_features_without_a_warning(silence, recwarn):
    found = np.concatenate([mfcc_of(silence()), chroma_of(silence()), chroma_of(silence(0.001))])
    assert np.isfinite(found).all()
    assert not recwarn


@pytest.mark.parametrize("seconds", [0.00005, 0.02, 0.03, 0.05, 0.1, 0.16, 0.2])
def test_hand_made_features_of_the_shortest_clips_are_numbers(seconds, tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, max(1, int(seconds * RATE)))
    audio.save(tmp_path / "short.wav", samples.astype(np.float32))

    class One:
        clips = (Clip("short", str(tmp_path / "short.wav")),)

    for encode, size in ((mfcc, 120), (chroma, 72)):
        found = encode(One(), [0])
        assert found.shape == (1, size)
        assert np.isfinite(found).all()


def test_encoders_take_clips_of_a_cache_in_any_order(data):
    assert set(ENCODERS) == {"mel-stats", "mfcc"}
    for encode in (*ENCODERS.values(), chroma, handcrafted):
        found = encode(data, [4, 1, 4])
        assert found.dtype == np.float32
        assert np.array_equal(found[0], found[2])
        assert not np.array_equal(found[0], found[1])
        assert np.array_equal(found[1], encode(data, [1])[0])


# --- the random network ---


def batch_statistics(model, patches):
    """Mean and variance of what each batch norm of the extractor is given, in training mode."""
    found, norms = [], norms_of(model)

    def record(_, given):
        found.append((given[0].mean((0, 2, 3)), given[0].var((0, 2, 3))))

    kept = copy.deepcopy(model.state_dict())
    hooks = [norm.register_forward_pre_hook(record) for norm in norms]
    with torch.no_grad():
        model.extractor.train()
        model.extractor(patches)
    model.eval()
    for hook in hooks:
        hook.remove()
    model.load_state_dict(kept)
    return found


def test_after_calibration_each_batch_norm_holds_the_statistics_of_what_it_is_given(data):
    indices = list(range(10))
    model = random_checkpoint(CONFIG, data, indices, seed=0).model
    norms, found = norms_of(model), batch_statistics(model, patches_of(data, indices))
    assert len(found) == len(norms) == 10
    for norm, (mean, variance) in zip(norms, found, strict=True):
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-3, atol=1e-6)
        assert not torch.equal(norm.running_var, torch.ones_like(variance))
        assert norm.momentum == 0.1


def test_calibrated_features_are_neither_dead_nor_exploding(data):
    model = random_checkpoint(CONFIG, data, range(10), seed=0).model
    outputs = []
    for norm in norms_of(model):
        norm.register_forward_hook(lambda _, __, output: outputs.append(output.clone()))
    with torch.no_grad():
        model.extractor(patches_of(data, range(10)))
    for output in outputs:
        mean, variance = output.mean((0, 2, 3)), output.var((0, 2, 3))
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=0.02, rtol=0)
        torch.testing.assert_close(variance, torch.ones_like(mean), atol=0.05, rtol=0)


def test_calibration_moves_the_extractors_statistics_and_nothing_else(data):
    model, before = Patchifier(CONFIG, seed=1), Patchifier(CONFIG, seed=1).state_dict()
    calibrate(model.train(), patches_of(data, range(4)))
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    buffers = {name for name, _ in model.named_buffers() if name.startswith("extractor")}
    assert changed == buffers
    assert not any(module.training for module in model.modules())


def test_the_random_network_is_a_function_of_its_seed(data):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = random_checkpoint(CONFIG, data, range(6), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two, other = (random_checkpoint(CONFIG, data, range(6), seed=seed) for seed in (5, 6))
    first, second = one.model.state_dict(), two.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(one.model.bottleneck.positions, other.model.bottleneck.positions)
    assert one.facts["seed"] == 5
    assert one.config == CONFIG
    for name, weight in Patchifier(CONFIG, seed=5).named_parameters():
        assert torch.equal(first[name], weight), name  # a new model's of that seed


def test_calibration_sees_the_given_clips_alone_and_at_most_so_many(data):
    one, two = (
        random_checkpoint(CONFIG, data, clips, seed=0).model.extractor.down[0][1].running_mean
        for clips in ([0, 1], [8, 9])
    )
    assert not torch.equal(one, two)
    seen = []

    class Spy:
        spectrogram = data.spectrogram
        array = Cache.array

        def require(self, config):
            return self

        def log_mel(self, index):
            seen.append(index)
            return data.log_mel(index % 10)

    random_checkpoint(CONFIG, Spy(), range(500, 1000), seed=0)
    assert len(seen) == len(set(seen)) == CALIBRATION_CLIPS
    assert (min(seen), max(seen)) == (500, 999)


def test_the_random_network_embeds_as_any_model_does(data):
    made = random_checkpoint(CONFIG, data, range(6), seed=0)
    vector = builders.embedder(made.model, made.config).embed(data.clips[0].path)
    assert vector.shape == (32,)
    assert np.isfinite(vector).all()


# --- specs ---


@pytest.fixture(scope="module")
def model_folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "run" / "model"
    checkpoint.save(folder, random_checkpoint(CONFIG, data, range(6), seed=3))
    return folder


@pytest.mark.parametrize(
    ("spec", "size"), [("mel-stats", 128), ("mfcc", 120), ("chroma", 72), ("handcrafted", 320)]
)
def test_a_word_is_an_encoder_of_that_name(spec, size, data):
    (encoder,) = encoders(spec, data=data)
    assert (encoder.name, encoder.parameters, encoder.seed) == (spec, 0, None)
    assert encoder.encode(data, [1, 0]).shape == (2, size)


def test_every_encoder_is_written_with_its_argument():
    assert all(form.startswith(word) for form, word in zip(specs(), BUILDERS, strict=True))
    assert {"mfcc", "features:DIR", "random[:SEED or MODEL]"} <= set(specs())


NO_SPEC = "nothing MFCC mfcc: mfcc:20 features features: hear:module hf:facebook/wav2vec2-base"
NO_SPEC += " random: :x no/folder no/folder@cls"


@pytest.mark.parametrize("spec", ["", " ", *NO_SPEC.split()])
def test_what_is_no_encoder_is_refused_with_what_would_be_one(spec, data):
    with pytest.raises(RequestError, match="is no encoder, expected"):
        encoders(spec, data=data)


def test_a_model_folder_is_an_encoder_with_the_embeddings_of_its_settings(data, model_folder):
    (encoder,) = encoders(str(model_folder), data=data)
    made = checkpoint.load(model_folder)
    found = encoder.encode(data, [3, 2, 12])
    expected = builders.embedder(made.model, made.config).embed_log_mels(
        log_mels_of(data, [3, 2, 12])
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert encoder.parameters == made.model.parameter_count()
    assert encoder.trained_on == model_folder.resolve().parent
    (same,) = encoders(f"model:{model_folder}")
    assert np.array_equal(same.encode(data, [3, 2, 12]), found)


def test_the_pooling_of_a_model_can_be_chosen(data, model_folder):
    both, mean, cls = (
        encoders(f"{model_folder}{pooling}", data=data)[0].encode(data, [3, 5])
        for pooling in ("", "@mean", "@cls")
    )
    assert (both.shape, mean.shape, cls.shape) == ((2, 32), (2, 16), (2, 16))
    np.testing.assert_allclose(both[:, :16], mean, atol=1e-6)
    assert np.abs(cls - mean).max() > 0.01
    with pytest.raises(RequestError, match="pooling"):
        encoders(f"{model_folder}@loudest", data=data)


def test_a_model_with_an_at_sign_in_its_path_is_found(data, model_folder, tmp_path):
    folder = tmp_path / "run@home" / "model@cls"
    checkpoint.save(folder, checkpoint.load(model_folder))
    assert encoders(str(folder), data=data)[0].encode(data, [0]).shape == (1, 32)
    assert encoders(f"{folder}@mean", data=data)[0].encode(data, [0]).shape == (1, 16)


def test_a_model_for_other_log_mels_hears_the_clips_themselves(data, part, tmp_path):
    other = update(CONFIG, {"spectrogram": {"n_fft": 1024}})
    assert other.spectrogram != data.spectrogram
    made = random_checkpoint(other, data, range(3), seed=0)
    checkpoint.save(tmp_path / "model", made)
    (encoder,) = encoders(str(tmp_path / "model"), data=data)
    embedder = builders.embedder(made.model, other)
    waves = [audio.load(data.clips[0].path), part]
    by_file = embedder.embed(waves, sample_rate=RATE)
    np.testing.assert_allclose(encoder.encode(data, [0, 2]), by_file, atol=1e-4)
    wrong = embedder.embed_log_mels(log_mels_of(data, [0, 2]))
    assert np.abs(wrong - by_file).max() > 1e-3
    five = encoders(f"random:{tmp_path / 'model'}", data=data, train=range(3))
    same = five[0].encode(data, [0, 2])  # calibrated on the same
    np.testing.assert_array_equal(same, encoder.encode(data, [0, 2]))


def test_many_clips_have_the_embeddings_of_few(data, model_folder, monkeypatch):
    (encoder,) = encoders(str(model_folder))
    at_once = encoder.encode(data, range(13))
    monkeypatch.setattr("patchifier.evaluate.encoders.models.CHUNK", 4)
    np.testing.assert_allclose(encoder.encode(data, range(13)), at_once, atol=1e-5)


def test_random_is_five_encoders_of_one_name_calibrated_on_the_training_side(data):
    found = encoders("random", data=data, train=range(6), config=CONFIG, seed=7)
    assert [encoder.name for encoder in found] == ["random"] * 5
    assert [encoder.seed for encoder in found] == [7, 8, 9, 10, 11]
    assert len({encoder.identity for encoder in found}) == 5
    made = random_checkpoint(CONFIG, data, range(6), seed=9)
    expected = builders.embedder(made.model, made.config).embed_log_mels(log_mels_of(data, [8]))
    np.testing.assert_allclose(found[2].encode(data, [8]), expected, atol=1e-6)


def test_random_takes_a_seed_or_the_architecture_of_a_model(data, model_folder):
    (one,) = encoders("random:3", data=data, train=range(6), config=CONFIG)
    assert (one.name, one.seed) == ("random:3", 3)
    (trained,) = encoders(str(model_folder))
    # the folder holds random weights of that seed
    assert np.array_equal(one.encode(data, [1]), trained.encode(data, [1]))
    five = encoders(f"random:{model_folder}", data=data, train=range(6))
    assert [encoder.parameters for encoder in five] == [trained.parameters] * 5
    assert np.array_equal(five[3].encode(data, [1]), one.encode(data, [1]))


def test_random_weights_need_clips(data):
    with pytest.raises(RequestError, match="calibrated on clips, expected a cache"):
        encoders("random", config=CONFIG)
    with pytest.raises(RequestError, match="no training clips"):
        encoders("random", data=data, config=CONFIG, train=[])


def test_the_paper_is_the_default_of_random_weights(data):
    (one,) = encoders("random:0", data=data, train=[0])
    assert one.parameters == Patchifier(Config()).parameter_count()


def test_random_weights_beside_a_model_have_its_architecture_and_say_so(data, model_folder):
    specs = ["random:3", str(model_folder), "mel-stats"]
    untrained, trained, _ = encoders_of(specs, data=data)
    assert untrained.parameters == trained.parameters
    assert untrained.note.startswith(f"random weights in the architecture of {model_folder}, ")
    shown = []
    alone, _ = encoders_of(
        ["random:3", "mel-stats"],
        data=data,
        progress=lambda title: lambda *done: shown.append((title, *done)),
    )
    assert shown == [("random:3", 0, 1, "calibration"), ("random:3", 1, 1, "calibration")]
    assert alone.parameters == Patchifier(Config()).parameter_count()
    assert alone.note.startswith("random weights in the architecture of the paper, ")
    assert not any("descriptors" in one.note for one in (untrained, alone))


def test_random_weights_say_that_the_descriptors_of_the_model_are_in_the_vector(data, tmp_path):
    config = update(CONFIG, {"embed": {"summaries": ["pulse", "rhythm"]}})
    checkpoint.save(tmp_path / "model", random_checkpoint(config, data, range(6), seed=3))
    untrained, trained = encoders_of(["random:3", str(tmp_path / "model")], data=data)
    about = f"random weights in the architecture of {tmp_path / 'model'}"
    assert untrained.note.startswith(f"{about}, its descriptors (formulas) included, ")
    both = [one.encode(data, [0])[0] for one in (untrained, trained)]
    size = Patchifier(CONFIG).config.embedding_size
    assert both[0].shape == both[1].shape
    assert len(both[0]) > size
    np.testing.assert_array_equal(both[0][size:], both[1][size:])
    assert not np.array_equal(both[0][:size], both[1][:size])


# --- what every encoder that goes clip by clip checks ---


@pytest.mark.parametrize(
    ("message", "first", "later"),
    [
        ("hold NaN", np.ones(2), np.array([1.0, np.nan])),
        ("have 5 numbers, those of the first clip 3", np.zeros(3), np.zeros(5)),
        ("shape \\(2, 2\\)", np.zeros(2), np.zeros((2, 2))),
    ],
)
def test_vectors_that_do_not_fit_are_refused_by_the_clips_name(message, first, later, data):
    with pytest.raises(RequestError, match=message) as caught:
        each_clip("odd", lambda data, index: later if index == 4 else first)(data, [1, 4])
    assert "clip '4'" in str(caught.value)


def test_no_clips_are_refused(data):
    with pytest.raises(RequestError, match="no clips to encode"):
        mfcc(data, [])


def test_an_error_names_the_clip_that_it_came_from(data):
    def vector(data, index):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        each_clip("broken", vector)(data, [4])
    assert caught.value.__notes__ == ["encoder broken, clip 4"]


# --- stored features ---


def counting(**more):
    """Return an encoder and the list of index lists that it was asked for."""
    asked = []

    def encode(data, indices, **more):
        asked.append(list(indices))
        return np.array([[index, len(data.clips[index].id)] for index in indices], np.float32)

    return Encoder("counting", encode, **{"identity": "one", **more}), asked


def test_features_are_computed_once_for_each_encoder_and_clips_in_their_order(data, tmp_path):
    encoder, asked = counting()
    for _ in range(2):
        for indices in ([3, 1], np.array([3, 1]), [1, 3], [3]):
            found = cached(encoder, data, indices, tmp_path / "features")
            assert found.dtype == np.float32
            assert found[:, 0].tolist() == list(indices)
    assert asked == [[3, 1], [1, 3], [3]]
    assert len(list((tmp_path / "features").iterdir())) == 3
    for more in ({"identity": "two"}, {"seed": 1}):
        other, asked_of_other = counting(**more)
        cached(other, data, [3, 1], tmp_path / "features")
        assert len(asked_of_other) == 1


def test_without_an_identity_nothing_is_stored(data, tmp_path):
    encoder, asked = counting(identity=None)
    for _ in range(2):
        cached(encoder, data, [0], tmp_path)
    assert len(asked) == 2
    assert not list(tmp_path.iterdir())


def test_damaged_features_are_computed_again(data, tmp_path):
    encoder, asked = counting()
    wanted = cached(encoder, data, [3, 1], tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damage in (b"", whole[:-3], whole[:20], b"text", whole.replace(b"(2, 2)", b"(4, 1)")):
        path.write_bytes(damage)
        assert np.array_equal(cached(encoder, data, [3, 1], tmp_path), wanted)
        assert path.read_bytes() == whole
    assert len(asked) == 6


def test_an_encoder_that_fails_leaves_nothing_behind(data, tmp_path):
    for features in (np.full((1, 2), np.inf), np.zeros(3), np.zeros((2, 3)), np.zeros((1, 0))):
        encode = lambda data, indices, features=features, **more: features  # noqa: E731
        with pytest.raises(RequestError, match=r"^bad: the features"):
            cached(Encoder("bad", encode, identity="bad"), data, [0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_features_are_computed_again_when_the_audio_changed(tmp_path, tone):
    path = tmp_path / "é a.wav"
    dataset = Dataset("one", (Clip("é a", str(path)),))
    encoder, asked = counting()
    place = tmp_path / "cache"
    for seconds in (1.0, 1.5):
        audio.save(path, tone(seconds=seconds))
        cache.prepare(dataset, place, workers=1)
        for _ in range(2):
            cached(encoder, Cache(place), [0])
    assert len(asked) == 2
    assert len(list((place / "features").glob("*.npy"))) == 2
    audio.save(path, tone(300.0, seconds=1.5))  # an encoder that reads the file hears another sound
    os.utime(path, ns=(0, 0))
    cached(encoder, Cache(place), [0])
    assert len(asked) == 3
    path.unlink()  # and one that reads log-mels alone needs no file
    assert cached(encoder, Cache(place), [0]).shape == (1, 2)


def test_models_with_other_weights_or_settings_have_another_identity(data, model_folder, tmp_path):
    made = checkpoint.load(model_folder)
    with torch.no_grad():
        next(made.model.parameters()).view(-1)[0] += 1e-3
    checkpoint.save(tmp_path / "model", made)
    held = checkpoint.load(model_folder)
    more = {"seed": held.config.pretrain.seed + 1, "mask_ratio": 0.5}
    trained_otherwise = update(held.config, {"pretrain": more})
    checkpoint.save(tmp_path / "same", dataclasses.replace(held, config=trained_otherwise))
    same, again, otherwise, pooled, other = (
        encoders(str(spec))[0].identity
        for spec in (
            model_folder,
            f"model:{model_folder}",
            tmp_path / "same",
            f"{model_folder}@mean",
            tmp_path / "model",
        )
    )
    assert same == again == otherwise  # by which vectors are kept
    assert len({same, pooled, other}) == 3


@pytest.mark.slow
def test_mfcc_on_the_demo_clips_agree_with_an_independent_script(tmp_path):
    """Logistic regression (C = 0.1) over the four grouped folds: 0.393 there; the margin is 0.03."""
    dataset = datasets.load("demo")
    cache.prepare(dataset, tmp_path / "cache")
    data = Cache(tmp_path / "cache")
    features = mfcc(data, range(len(data.clips)))
    names = np.array([clip.target for clip in data.clips])
    folds, right = np.array([clip.fold for clip in data.clips]), 0
    for fold in sorted(set(folds)):
        train, test = folds != fold, folds == fold
        scaler = StandardScaler().fit(features[train])
        fitted = LogisticRegression(C=0.1, max_iter=5000)
        fitted.fit(scaler.transform(features[train]), names[train])
        right += int((fitted.predict(scaler.transform(features[test])) == names[test]).sum())
    assert right / len(names) == pytest.approx(0.393, abs=0.03)


# --- summaries ---


def test_summaries_are_what_an_embedding_holds_behind_its_layers(data, tmp_path):
    embed = {"summaries": ["harmony", "mode", "pulse", "rhythm"]}
    sections = {"spectrogram": {"n_pitch_bands": 216}, "model": {"n_layers": 1}, "embed": embed}
    wide = update(Config(), sections)
    clips = Dataset("tones", data.clips[:4])
    cache.prepare(clips, tmp_path / "cache", config=wide.spectrogram, workers=1)
    there = Cache(tmp_path / "cache")
    embedder, log_mels = builders.embedder(Patchifier(wide), wide), log_mels_of(there, range(4))
    found = handmade.summaries(there, range(4))
    assert found.shape == (4, 272)
    np.testing.assert_allclose(found, embedder.embed_log_mels(log_mels)[:, 512:], atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_summaries_are_refused_without_pitch_bands(data):
    with pytest.raises(RequestError, match="summaries need pitch bands"):
        handmade.summaries(data, [0])
