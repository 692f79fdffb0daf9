"""Embedder: the same vector by every way in, alone or in a list, and nothing wrong passes unnoticed."""

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import patchifier
from patchifier import audio, checkpoint, spectrogram
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.datasets import demo
from patchifier.embed import Embedder, load
from patchifier.nn.masking import pad_windows
from patchifier.nn.model import Head, Patchifier
from patchifier.nn.pooling import pool_layers
from patchifier.tasks import Task
from patchifier.windows import (
    MOST_PATCHES,
    cut_windows,
    is_silent,
    stream_cut,
    stream_stretches,
    stream_windows,
    without_silence,
)
from tests import GOLDEN, builders, golden_maker
from tests.builders import TINY, normal

RATE = audio.SAMPLE_RATE
POOLINGS = ("cls", "mean", "mean+max", "mean+std")
FRAME_S = Config().spectrogram.frame_s


def near(found, wanted, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=0)


def embedder(*, seed: int = 0, model: dict | None = None, **embed) -> Embedder:
    config = update(Config(), {"model": TINY | (model or {}), "embed": embed})
    network = Patchifier(config, seed=seed)
    with torch.no_grad():
        network.bottleneck.positions.mul_(10)  # so that a wrong position shows
    return builders.embedder(network, config)


def sound(seconds: float, *, kind: str = "tone", seed: int = 0, rate: int = RATE) -> np.ndarray:
    """At least one sample of a gliding tone with some noise, of noise, or of silence."""
    time_s = np.arange(max(1, round(seconds * rate))) / rate
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, len(time_s))
    glide = 0.4 * np.sin(2 * np.pi * (200 + 40 * seed + 30 * time_s) * time_s) + 0.05 * noise
    return {"tone": glide, "noise": noise, "silence": np.zeros(len(time_s))}[kind].astype(
        np.float32
    )


def random_log_mel(frames: int, *, bands: int = 64) -> np.ndarray:
    return np.random.default_rng(frames).random((bands, frames), np.float32) - 1


def patches_of(wave: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(spectrogram.cut(spectrogram.log_mel(wave), tail="anchor"))


@torch.no_grad()
def alone(model: Patchifier, patches: torch.Tensor) -> list[np.ndarray]:
    """Each layer for one window of patches (N, 1, M, W), CLS taken off: (N, D)."""
    vectors, *sequences = model.forward_encoder(patches[None])
    return [vectors[0].numpy(), *(sequence[0, 1:].numpy() for sequence in sequences)]


def pooled(part: np.ndarray, pooling: str) -> np.ndarray:
    """Pooled by hand: (N, D) -> (D,) or (2 D,)."""
    second = {"mean": [], "mean+max": [part.max(0)], "mean+std": [part.std(0)]}[pooling]
    return np.concatenate([part.mean(0), *second])


@pytest.mark.parametrize("seconds", [0.3, 5.0, 23.0, 31.0])
def test_a_file_its_waveform_and_its_log_mel_give_the_same_vector(seconds, tmp_path):
    path, encoder = tmp_path / "song.wav", embedder()
    audio.save(path, sound(seconds))
    waveform, by_file = audio.load(path), encoder.embed(path)
    assert by_file.dtype == np.float32
    near(encoder.embed(str(path)), by_file, atol=0)
    for wave in (waveform, np.stack([waveform, waveform]), torch.from_numpy(waveform)):
        near(encoder.embed(wave, sample_rate=RATE), by_file)
    near(encoder.embed_log_mels([spectrogram.log_mel(waveform)])[0], by_file)


def test_a_file_and_its_waveform_at_another_rate_give_the_same_vector(tmp_path):
    path, encoder = tmp_path / "song.wav", embedder()
    soundfile.write(path, sound(3, rate=44_100), 44_100, subtype="FLOAT")
    waveform, rate = soundfile.read(path, dtype="float32")
    near(encoder.embed(waveform, sample_rate=rate), encoder.embed(path), atol=1e-4)


def test_a_file_gives_the_same_bits_again_and_other_sound_another_vector(tmp_path):
    paths, encoder = [tmp_path / f"{seed}.wav" for seed in (1, 2)], embedder()
    for seed, path in enumerate(paths):
        audio.save(path, sound(25, seed=seed))
    first = encoder.embed(paths[0])
    torch.manual_seed(99)
    assert np.abs(encoder.embed(paths[1]) - first).max() > 1e-3
    assert np.array_equal(encoder.embed(paths[0]), first)
    assert np.array_equal(embedder().embed(paths[0]), first)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("whole_clip", [False, True])
def test_a_list_gives_the_vectors_of_its_items_alone(pooling, whole_clip):
    layers = [1, -1] if pooling == "cls" else [0, 1, -1]
    encoder = embedder(pooling=pooling, layers=layers, whole_clip=whole_clip)
    kinds = [(60, "tone"), (22, "noise"), (0.02, "tone"), (2, "silence"), (30, "tone")]
    waves = [sound(seconds, kind=kind, seed=n) for n, (seconds, kind) in enumerate(kinds)]
    together = encoder.embed(waves, sample_rate=RATE)
    assert together.shape == (len(waves), encoder.size)
    assert np.isfinite(together).all()
    for row, wave in zip(together, waves, strict=True):
        near(row, encoder.embed(wave, sample_rate=RATE))


def test_more_windows_than_one_batch_holds_make_no_difference():
    encoder, batch = embedder(), MOST_PATCHES // 2  # sounds of two patches each
    waves = [sound(1.5, seed=seed) for seed in range(batch + 3)]
    together = encoder.embed(waves, RATE)
    for index in (0, batch - 1, batch, batch + 2):
        near(together[index], encoder.embed(waves[index], RATE))


def test_lists_arrays_and_iterators_of_files_are_embedded(tmp_path):
    encoder, paths = embedder(), [tmp_path / "one.wav", tmp_path / "two.wav"]
    for seed, path in enumerate(paths):
        audio.save(path, sound(2 + seed, seed=seed))
    together = encoder.embed(paths)
    assert together.shape == (2, encoder.size)
    near(together[1], encoder.embed(paths[1]))
    assert encoder.embed([str(paths[0])]).shape == (1, encoder.size)
    names = np.array([str(path) for path in paths])
    for given_ in (tuple(paths), names, np.array(paths, object)):
        near(encoder.embed(given_), together, atol=0)
    near(encoder.embed(path for path in paths), together, atol=0)
    near(encoder.embed(iter(paths[:1])), together[:1], atol=0)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_a_single_sample_has_an_embedding(rate, tmp_path):
    encoder, click = embedder(), np.array([0.5], np.float32)
    soundfile.write(tmp_path / "click.wav", click, rate, subtype="FLOAT")
    for vector in (encoder.embed(click, rate), encoder.embed(tmp_path / "click.wav")):
        assert vector.shape == (encoder.size,)
        assert np.isfinite(vector).all()


def test_windows_are_25_patches_every_20_and_the_last_is_anchored_to_the_end():
    log_mel = spectrogram.log_mel(sound(60))
    patches = spectrogram.cut(log_mel, tail="anchor")
    assert len(patches) == 81
    windows = cut_windows(log_mel, Config())
    for window, start in zip(windows, [0, 20, 40, 56], strict=True):
        assert np.array_equal(window, patches[start : start + 25])
    assert np.array_equal(windows[-1][-1, 0], log_mel[:, -32:])


@pytest.mark.parametrize(
    ("frames", "counts"),
    [
        (1, [1]),
        (32, [1]),
        (33, [2]),
        (800, [25]),
        (801, [25, 25]),
        (1249, [25, 25]),
        (45 * 32, [25, 25]),
        (45 * 32 + 1, [25, 25, 25]),
    ],
)
def test_windows_of_short_and_long_clips(frames, counts):
    assert [len(window) for window in cut_windows(np.zeros((64, frames)), Config())] == counts


def test_windows_are_never_longer_than_what_was_trained():
    whole = {"pretrain": {"stage_two_patches": "whole"}, "model": {"max_patches": 40}}
    for changes, counts in [({"pretrain": {"n_patches": 10}}, {10}), (whole, {40})]:
        windows = cut_windows(np.zeros((64, 1249)), update(Config(), changes))
        assert {len(window) for window in windows} == counts


@pytest.mark.parametrize(
    ("pooling", "hop", "starts"),
    [
        *[(name, 20, (0, 20, 40, 56)) for name in ("mean", "mean+max", "mean+std")],
        ("mean", 25, (0, 25, 50, 56)),
    ],
)
def test_a_long_clips_embedding_is_the_mean_of_its_windows(pooling, hop, starts):
    encoder, wave = embedder(pooling=pooling, hop_patches=hop), sound(60)
    windows = [patches_of(wave)[start : start + 25] for start in starts]
    parts = [pooled(alone(encoder.network.model, window)[-1], pooling) for window in windows]
    near(encoder.embed(wave, RATE), np.mean(parts, axis=0))
    assert np.abs(parts[0] - parts[3]).max() > 1e-3


@torch.no_grad()
def test_one_pass_over_the_whole_clip_interpolates_positions():
    encoder, wave = embedder(pooling="mean", whole_clip=True), sound(60)
    by_hand = alone(encoder.network.model, patches_of(wave))[-1].mean(0)
    near(encoder.embed(wave, RATE), by_hand)
    # the last trained position reaches the last patches of a longer clip
    encoder.network.model.bottleneck.positions[25, ::2] += 1
    for other in (encoder, embedder(pooling="mean")):
        assert np.abs(other.embed(wave, RATE) - by_hand).max() > 1e-3


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "layers", [[-1], [0], [1], [2], [0, 1, 2], [-2, -1], [-3], [2, 1]], ids=str
)
def test_every_pooling_of_every_layer_is_what_it_says(pooling, layers):
    if pooling == "cls" and {0, -3} & set(layers):
        with pytest.raises(RequestError, match=r"pooling 'cls'.*layer 0"):
            embedder(pooling=pooling, layers=layers)
        return
    encoder, wave = embedder(pooling=pooling, layers=layers), sound(4.2)
    if pooling == "cls":
        with torch.no_grad():
            sequences = encoder.network.model.forward_encoder(patches_of(wave)[None])
        parts = [sequences[layer][0, 0].numpy() for layer in layers]
    else:
        every = alone(encoder.network.model, patches_of(wave))
        parts = [pooled(every[layer], pooling) for layer in layers]
    vector = encoder.embed(wave, RATE)
    assert vector.shape == (encoder.size,) == (16 * len(layers) * (1 + ("+" in pooling)),)
    near(vector, np.concatenate(parts))


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(RequestError, match=f"layers holds {layer}, expected 0 to 2"):
        embedder(layers=[layer])


@pytest.mark.parametrize("pooling", ["mean", "mean+max", "mean+std"])
def test_padding_is_left_out_of_pooling(pooling):
    config = update(Config(), {"embed": {"pooling": pooling, "layers": [0, 1]}}).embed
    vectors, sequence = normal(2, 4, 3), normal(2, 5, 3, seed=1)
    valid = torch.tensor([[True, True, False, False], [True, True, True, True]])
    parts = vectors[0, :2].clone(), sequence[0, 1:3].clone()
    vectors[0, 2:], sequence[0, 3:] = 1e3, 1e3
    found = pool_layers([vectors, sequence], valid, config)
    wanted = np.concatenate([pooled(part.numpy(), pooling) for part in parts])
    near(found[0], wanted, atol=1e-4)


def test_patches_that_are_cut_already_give_the_vector_of_their_log_mel():
    encoder = embedder()
    log_mels = [random_log_mel(frames) for frames in (20, 32 * 5 + 7, 32 * 60)]
    sequences = [spectrogram.cut(log_mel, tail="anchor") for log_mel in log_mels]
    near(encoder.embed_sequences(sequences), encoder.embed_log_mels(log_mels), atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 1, 64, 32), (3, 64, 32), (3, 1, 32, 64), (64, 32)])
def test_what_is_no_sequence_of_patches_is_refused_with_its_shape(shape):
    with pytest.raises(RequestError, match=rf"sequence 1 has shape {re.escape(str(shape))}"):
        embedder().embed_sequences([np.zeros((2, 1, 64, 32)), np.zeros(shape)])
    with pytest.raises(RequestError, match="sequence 0 is of type list"):
        embedder().embed_sequences([[[0.0]]])


def test_no_log_mels_and_a_mask_that_is_too_long_are_refused():
    encoder = embedder()
    for asked in (encoder.embed_log_mels, encoder.embed_sequences):
        with pytest.raises(RequestError, match="there is no music here"):
            asked([])
    with pytest.raises(
        RequestError, match="the mask is of 3 patches, but the first window of this log-mel has 2"
    ):
        encoder.reconstruct(np.zeros((64, 40)), np.ones(3, bool))


@pytest.mark.parametrize(
    ("log_mels", "reason"),
    [
        (np.zeros((64, 40)), r"shape \(40,\).*put it in a list"),
        ([np.zeros((80, 40))], r"shape \(80, 40\)"),
        ([np.zeros((1, 64, 40))], r"shape \(1, 64, 40\)"),
        ([np.zeros((64, 0))], r"shape \(64, 0\)"),
        ([np.zeros((64, 40), np.int16)], "int16"),
        ([np.full((64, 40), np.nan)], "NaN"),
        ([[[0.0] * 40] * 64], "of type list"),
        (["song.mp3"], "of type str"),
    ],
)
def test_what_is_no_log_mel_is_refused(log_mels, reason):
    with pytest.raises(RequestError, match=reason):
        embedder().embed_log_mels(log_mels)
    if not isinstance(log_mels[0], np.ndarray):
        return  # an iterator of them is no log-mel
    for ask in (
        embedder().embed,
        tuned().predict,
        lambda pieces: embedder().embed_windows(pieces, window_s=1.0),
        lambda pieces: embedder().reconstruct(next(pieces), np.ones(1, bool)),
    ):
        with pytest.raises(RequestError, match=reason):
            ask(iter(log_mels))


def test_a_log_mel_of_another_precision_is_embedded():
    encoder, log_mel = embedder(), spectrogram.log_mel(sound(2.0).astype(np.float64))
    assert log_mel.dtype == np.float64
    np.testing.assert_allclose(
        encoder.embed_log_mels([log_mel]),
        encoder.embed_log_mels([log_mel.astype(np.float32)]),
        atol=1e-6,
    )


def test_windows_side_by_side_are_padded_with_silence():
    patches, present = pad_windows([torch.zeros(2, 1, 4, 4), torch.ones(3, 1, 4, 4)], value=-1.0)
    assert present.tolist() == [[True, True, False], [True, True, True]]
    assert (patches[0, 2] == -1).all()
    assert (patches[0, :2] == 0).all()
    assert (patches[1] == 1).all()


@pytest.mark.parametrize("before", [0.0, 30.0])
def test_silence_beside_a_piece_has_no_say_in_its_vector(before):
    music, silence = sound(30.0, kind="noise"), np.zeros(30 * RATE, np.float32)
    padded = np.concatenate([silence[: int(before * RATE)], music, silence])
    distances = {}
    for level_db in (-70.0, None):
        model = embedder(silence_db=level_db)
        distances[level_db] = np.linalg.norm(model.embed(padded, RATE) - model.embed(music, RATE))
    assert distances[-70.0] < 0.1 * distances[None]


def test_a_minute_of_silence_behind_a_minute_of_music_changes_the_vector_by_little():
    base = load()
    model = Embedder(base.network, update(base.config, {"embed": {"silence_db": -70.0}}))
    clip = np.concatenate([audio.load(path) for path in sorted(demo.ROOT.rglob("*.ogg"))[:2]])
    music = np.resize(clip, 60 * RATE)
    alone, padded = model.embed([music, np.pad(music, (0, 60 * RATE))], RATE)
    assert alone @ padded > 0.99 * np.linalg.norm(alone) * np.linalg.norm(padded)


@pytest.mark.parametrize("kind", ["noise", "silence"])
def test_a_piece_that_is_alike_throughout_has_the_vector_that_equal_windows_give(kind):
    wave = sound(40.0, kind=kind)
    near(*(embedder(silence_db=level_db).embed(wave, RATE) for level_db in (-70.0, None)))


def test_patches_without_a_sound_are_left_out_and_a_silent_piece_is_a_window_of_silence():
    config = Config()
    silent, loud = np.full((1, 64, 32), -0.8, np.float32), np.full((1, 64, 32), -0.5, np.float32)
    piece = [(silent, 32), (loud, 32), (silent, 32), (loud, 8), (silent, 32)]
    assert [new for _, new in without_silence(piece, config)] == [32, 8]
    assert len(list(without_silence([(silent, 32)] * 99, config))) == config.pretrain.n_patches
    equal = update(config, {"embed": {"silence_db": None}})
    assert list(without_silence(piece, equal)) == piece


def test_only_new_frames_of_the_last_patch_decide_whether_it_is_silent():
    patch = np.full((1, 64, 32), -1.0, np.float32)
    patch[..., :20] = 0.0
    assert is_silent(patch, 12, Config())
    assert not is_silent(patch, 13, Config())


def test_the_embedding_of_stored_samples_is_the_stored_one():
    with np.load(GOLDEN / "embedding.npz", allow_pickle=False) as stored:
        pcm, embedding = stored["pcm"], stored["embedding"]
    assert pcm.dtype == np.int16
    assert embedding.shape == (96,)
    np.testing.assert_allclose(golden_maker().embed(pcm), embedding, atol=1e-4)


def test_the_generator_still_makes_the_stored_file(tmp_path):
    golden_maker().make(tmp_path / "again.npz")
    again, stored = (
        np.load(place / name)
        for place, name in [(tmp_path, "again.npz"), (GOLDEN, "embedding.npz")]
    )
    assert sorted(stored) == sorted(again) == ["embedding", "pcm"]
    # a sine may be rounded otherwise elsewhere
    near(again["pcm"].astype(int), stored["pcm"].astype(int), atol=1)
    near(again["embedding"], stored["embedding"], atol=1e-3)


def test_a_saved_model_embeds_as_the_one_that_was_saved(tmp_path):
    encoder = embedder(pooling="mean+max", layers=[1, -1])
    checkpoint.save(tmp_path / "model", Checkpoint(encoder.network.model, encoder.config))
    loaded = patchifier.load(tmp_path / "model")
    assert loaded.task is None
    assert loaded.identity == encoder.identity
    near(loaded.embed(sound(3), RATE), encoder.embed(sound(3), RATE))
    by_torch = checkpoint.load_embedder(tmp_path / "model")
    near(by_torch.embed(sound(3), RATE), encoder.embed(sound(3), RATE), atol=0)


def test_a_model_in_training_mode_is_put_into_evaluation_mode():
    config = update(Config(), {"model": TINY})
    model = Patchifier(config).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoder = builders.embedder(model, config)
    assert np.array_equal(encoder.embed(sound(2), RATE), encoder.embed(sound(2), RATE))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("x", "rate", "said"),
    [
        (sound(1), 10, "sample_rate is 10"),
        (np.zeros((2, 2, 9), np.float32), RATE, "shape"),
        (np.zeros(0, np.float32), RATE, "shape"),
        (np.float32(0.5), RATE, "shape"),
        (np.full(9, np.inf, np.float32), RATE, "infinity"),
        ([], RATE, "there is no music here"),
        ([0.1, 0.2], RATE, "numpy.array"),
        ([sound(1), sound(1).astype(np.int64)], RATE, "int64"),
        (None, RATE, "expected"),
        (b"song.mp3", RATE, "8 bytes: not an audio file"),
        (["nowhere.mp3"], None, "nowhere.mp3"),
    ],
    ids=lambda value: None if isinstance(value, (np.ndarray, list)) else str(value),
)
def test_wrong_input_is_refused_with_a_reason(x, rate, said):
    with pytest.raises(RequestError, match=said):
        embedder().embed(x, rate)


@pytest.mark.parametrize("content", [b"", b"this is a text, not a song" * 50])
def test_a_file_that_is_no_audio_is_refused_by_name(content, tmp_path):
    path = tmp_path / "song.wav"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"song\.wav"):
        embedder().embed(path)


def test_reconstruction_keeps_the_patches_and_fills_in_as_many():
    encoder, log_mel = embedder(), spectrogram.log_mel(sound(8))
    mask = np.array([False, True] * 5)
    patches, filled = encoder.reconstruct(log_mel, mask)
    assert patches.shape == filled.shape == (10, 64, 32)
    assert np.array_equal(patches, spectrogram.cut(log_mel, tail="anchor")[:10, 0])
    log_mel[:, 32:64] = -0.2  # the second patch, which is masked
    again, refilled = encoder.reconstruct(log_mel, mask)
    assert not np.array_equal(again, patches)
    assert np.array_equal(refilled, filled)


def pieces_of(log_mel: np.ndarray, cuts: list[int]):
    """The log-mel in pieces, cut at these frames."""
    places = sorted({0, log_mel.shape[1], *(cut % (log_mel.shape[1] + 1) for cut in cuts)})
    return [log_mel[:, first:last] for first, last in itertools.pairwise(places)]


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 3000), st.lists(st.integers(0, 3000), max_size=6), st.integers(1, 30))
def test_windows_of_pieces_are_those_of_the_whole_and_lie_where_patch_starts_says(
    frames, cuts, hop
):
    config = update(Config(), {"embed": {"hop_patches": hop}})
    log_mel = random_log_mel(frames)
    patches = spectrogram.cut(log_mel, tail="anchor")
    expected = spectrogram.patch_starts(len(patches), length=25, hop=min(hop, 25), tail="anchor")
    cut = list(stream_cut(pieces_of(log_mel, cuts), config))
    assert sum(new for _, new in cut) == max(frames, 32)
    found = list(stream_windows((patch for patch, _ in cut), config))
    assert [first for first, _ in found] == expected
    for first, window in found:
        assert np.array_equal(np.stack(window), patches[first : first + 25])


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 900),
    st.lists(st.integers(0, 900), max_size=6),
    st.integers(1, 200),
    st.integers(1, 250),
)
def test_stretches_of_pieces_are_those_of_the_whole(frames, cuts, length, hop):
    log_mel = random_log_mel(frames, bands=4)
    starts = spectrogram.patch_starts(frames, length=length, hop=hop, tail="anchor")
    found = list(stream_stretches(pieces_of(log_mel, cuts), length=length, hop=hop))
    assert [first for first, _ in found] == starts
    for first, stretch in found:
        assert np.array_equal(stretch, log_mel[:, first : first + length])


def test_stretches_of_music_are_embedded_each_by_itself():
    encoder, wave = embedder(), sound(31.0, kind="noise")
    found, log_mel = encoder.embed_windows(wave, RATE, window_s=5.0), encoder.log_mel(wave, RATE)
    starts, length = np.round(found.start_s / FRAME_S).astype(int), round(5.0 / FRAME_S)
    assert starts.tolist() == [0, *(length * np.arange(1, 6)), log_mel.shape[1] - length]
    np.testing.assert_allclose(found.end_s - found.start_s, length * FRAME_S)
    for first, vector in zip(starts, found.vectors, strict=True):
        near(vector, encoder.embed_log_mels([log_mel[:, first : first + length]])[0])


def test_stretches_of_a_round_length_are_those_of_the_page():
    """Twenty seconds in stretches of five: docs/embeddings.md says why there are five of them."""
    found = embedder().embed_windows(sound(20.0), RATE, window_s=5.0)
    np.testing.assert_allclose(found.start_s / FRAME_S, [0, 215, 430, 645, 647])
    np.testing.assert_allclose(found.end_s / FRAME_S, [215, 430, 645, 860, 862])
    assert found.start_s[-1] == pytest.approx(15.02, abs=0.005)


def test_one_stretch_that_holds_all_is_the_embedding():
    encoder, wave = embedder(), sound(8.0)
    found = encoder.embed_windows(wave, RATE, window_s=3600)
    near(found.vectors, encoder.embed(wave, RATE)[None], atol=1e-6)
    assert found.start_s.tolist() == [0]
    assert found.end_s[0] == pytest.approx(8.0, abs=0.05)


@pytest.mark.parametrize(
    ("window_s", "hop_s"),
    [
        *[(each, None) for each in (0.0, -1.0, float("nan"), float("inf"), "5")],
        (5.0, 0.0),
        (5.0, "1"),
    ],
)
def test_a_stretch_of_nothing_is_refused(window_s, hop_s):
    with pytest.raises(RequestError, match="at least one frame"):
        embedder().embed_windows(sound(2.0), RATE, window_s=window_s, hop_s=hop_s)


def test_patches_of_one_window_have_their_own_vectors():
    encoder, wave = embedder(layers=[0, -1]), sound(6.2, kind="noise")
    found, layers = (
        encoder.embed_patches(wave, RATE),
        alone(encoder.network.model, patches_of(wave)),
    )
    assert found.vectors.shape == (9, 32)
    near(found.vectors, np.concatenate([layers[0], layers[2]], axis=1))
    np.testing.assert_allclose(found.start_s[:-1], np.arange(8) * 32 * FRAME_S)
    assert found.start_s[-1] > found.start_s[-2]
    np.testing.assert_allclose(found.end_s - found.start_s, 32 * FRAME_S)


def test_a_patch_in_several_windows_has_their_mean():
    encoder, wave = embedder(), sound(31.0, kind="noise")  # 42 patches: windows at 0 and 17
    patches, found = patches_of(wave), encoder.embed_patches(wave, RATE)
    early, late = (
        alone(encoder.network.model, patches[first : first + 25])[2] for first in (0, 17)
    )
    assert len(found.vectors) == len(patches) == 42
    near(found.vectors[:17], early[:17])
    near(found.vectors[17:25], (early[17:] + late[:8]) / 2)
    near(found.vectors[25:], late[8:])


def test_a_sound_shorter_than_a_patch_is_one_patch():
    found = embedder().embed_patches(sound(0.02), RATE)
    assert found.vectors.shape == (1, 16)
    assert found.end_s[0] < 0.1


def test_identity_changes_with_weights_and_with_what_decides_an_embedding():
    changes = [{}, {}, {"seed": 1}, {"pooling": "mean"}, {"hop_patches": 5}]
    same, *others = (embedder(**each).identity for each in changes)
    assert same == others[0]
    assert len({same, *others}) == 4


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path):
    """Peak memory of a fresh process for three hours against three minutes."""
    saved = embedder()
    checkpoint.save(tmp_path / "model", checkpoint.checkpoint_of(saved))
    code = """
import resource, sys
import patchifier
assert patchifier.load(sys.argv[1]).embed(sys.argv[2]).shape == (32,)
assert "torch" not in sys.modules
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for minutes in (3, 180):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as stream:
            for part in range(minutes):
                stream.write(sound(60.0, kind="noise", seed=part))
        command = [sys.executable, "-c", code, tmp_path / "model", path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.2 * peaks[0]


def tuned(kind: str = "one-of", readout: str = "cls") -> Embedder:
    """A model with a head whose answers differ from window to window."""
    made = embedder()
    torch.manual_seed(0)
    head = Head(16, 3)
    torch.nn.init.normal_(head.linear.weight, std=3.0)
    config = update(made.config, {"finetune": {"pooling": readout}})
    return builders.embedder(
        made.network.model, config, head=head, task=Task(kind, ("a", "b", "c"))
    )


@pytest.mark.parametrize("readout", ["cls", "mean"])
@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("one-of", torch.nn.Softmax(-1)),
        ("many-of", torch.nn.Sigmoid()),
        ("numbers", torch.nn.Identity()),
    ],
)
@torch.no_grad()
def test_prediction_is_the_mean_answer_over_windows(kind, activation, readout):
    asked, wave = tuned(kind, readout), sound(31.0, kind="noise")
    answers = []
    for first in (0, 17):
        window = patches_of(wave)[None, first : first + 25]
        sequence = asked.network.model.forward_encoder(window)[-1]
        vector = sequence[:, 0] if readout == "cls" else sequence[:, 1:].mean(1)
        answers.append(activation(asked.network.head(vector))[0].numpy())
    near(asked.predict(wave, RATE), np.mean(answers, axis=0))
    assert asked.predict([wave, wave], RATE).shape == (2, 3)


def test_answers_over_time_are_those_of_the_stretches():
    asked, wave = tuned(), sound(12.0, kind="noise")
    found = asked.predict_windows(wave, RATE, window_s=4.0, hop_s=2.0)
    assert found.vectors.shape == (len(found.start_s), 3)
    first, length = round(found.start_s[1] / FRAME_S), round(4.0 / FRAME_S)
    stretch = asked.log_mel(wave, RATE)[:, first : first + length]
    near(found.vectors[1], asked.predict(iter([stretch])))
    near(found.vectors.sum(1), np.ones(len(found.vectors)))


def test_a_model_without_a_head_cannot_be_asked():
    for ask in (
        lambda e: e.predict(sound(1.0), RATE),
        lambda e: e.predict_windows(sound(1.0), RATE, window_s=1.0),
    ):
        with pytest.raises(RequestError, match="patchifier finetune"):
            ask(embedder())


def test_nothing_is_no_music():
    model = embedder()
    with pytest.raises(RequestError, match="without a frame"):
        model.embed([iter([np.zeros((64, 40))]), iter([])])
    with pytest.raises(RequestError, match="start_s and end_s are of files"):
        list(model.pieces(np.zeros(22_050, np.float32), 22_050, start_s=0.5))


def test_a_device_that_is_not_there_is_refused_and_the_best_one_is_found():
    with pytest.raises(RequestError, match="device is 'gpu', expected one that torch has here"):
        load("patchifier-base", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="device is 'cuda'"):
            load("patchifier-base", device="cuda")
        assert str(load("patchifier-base", device="auto").network.device) in ("cpu", "mps")


def test_the_package_and_a_model_show_what_they_are():
    assert {"load", "Embedder", "Config", "datasets"} <= set(dir(patchifier))
    assert (
        repr(builders.embedder(Patchifier(Config()), Config()))
        == "<Embedder: vectors of 512 numbers, 8,291,793 parameters>"
    )
