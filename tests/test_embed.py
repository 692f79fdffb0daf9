"""Embedder: the same vector by every way in, alone or in a list, and nothing wrong passes unnoticed."""

import importlib.util
import itertools
import re

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
from patchifier.embed import Embedder, load
from patchifier.nn.encode import WINDOWS
from patchifier.nn.model import Patchifier
from patchifier.nn.pooling import pool_layers
from patchifier.windows import (
    cut_windows,
    pad_windows,
    stream_cut,
    stream_stretches,
    stream_windows,
)
from tests import GOLDEN

RATE = audio.SAMPLE_RATE
TINY = {"channels": [4, 4, 4, 4, 8], "embed_dim": 16, "n_layers": 2, "n_heads": 2, "mlp_dim": 32}
POOLINGS = ("cls", "mean", "mean+max", "mean+std")


def embedder(*, seed: int = 0, model: dict | None = None, **embed) -> Embedder:
    config = update(Config(), {"model": TINY | (model or {}), "embed": embed})
    network = Patchifier(config, seed=seed)
    with torch.no_grad():
        network.bottleneck.positions.mul_(10)  # so that a wrong position shows
    return Embedder(network, config)


def sound(seconds: float, *, kind: str = "tone", seed: int = 0, rate: int = RATE) -> np.ndarray:
    """At least one sample of a gliding tone with some noise, of noise, or of silence."""
    time_s = np.arange(max(1, round(seconds * rate))) / rate
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, len(time_s))
    glide = 0.4 * np.sin(2 * np.pi * (200 + 40 * seed + 30 * time_s) * time_s) + 0.05 * noise
    return {"tone": glide, "noise": noise, "silence": np.zeros(len(time_s))}[kind].astype(
        np.float32
    )


def alone(model: Patchifier, patches: torch.Tensor) -> list[np.ndarray]:
    """Sequence after each layer for one window of patches (N, 1, M, W), CLS taken off: (N, D) each, and CLS of the last."""
    with torch.no_grad():
        vectors, *sequences = model.forward_encoder(patches[None])
    return [vectors[0].numpy(), *(sequence[0, 1:].numpy() for sequence in sequences)]


def pooled(part: np.ndarray, pooling: str) -> np.ndarray:
    """Pooled by hand: (N, D) -> (D,) or (2 D,)."""
    second = {"mean": [], "mean+max": [part.max(0)], "mean+std": [part.std(0)]}[pooling]
    return np.concatenate([part.mean(0), *second])


# --- ways in ---


@pytest.mark.parametrize("seconds", [0.3, 5.0, 23.0, 31.0])
def test_a_file_its_waveform_and_its_log_mel_give_the_same_vector(seconds, tmp_path):
    path, encoder = tmp_path / "song.wav", embedder()
    audio.save(path, sound(seconds))
    waveform = audio.load(path)
    by_file = encoder.embed(path)
    assert by_file.dtype == np.float32
    np.testing.assert_allclose(encoder.embed(str(path)), by_file, atol=0)
    np.testing.assert_allclose(encoder.embed(waveform, sample_rate=RATE), by_file, atol=1e-5)
    np.testing.assert_allclose(
        encoder.embed(np.stack([waveform, waveform]), sample_rate=RATE), by_file, atol=1e-5
    )
    np.testing.assert_allclose(
        encoder.embed(torch.from_numpy(waveform), sample_rate=RATE), by_file, atol=1e-5
    )
    np.testing.assert_allclose(
        encoder.embed_log_mels([spectrogram.log_mel(waveform)])[0], by_file, atol=1e-5
    )


def test_a_file_and_its_waveform_at_another_rate_give_the_same_vector(tmp_path):
    path, encoder = tmp_path / "song.wav", embedder()
    soundfile.write(path, sound(3, rate=44_100), 44_100, subtype="FLOAT")
    waveform, rate = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(
        encoder.embed(waveform, sample_rate=rate), encoder.embed(path), atol=1e-4
    )


def test_the_same_sound_gives_the_same_vector_bit_for_bit(tmp_path):
    path = tmp_path / "song.wav"
    audio.save(path, sound(25))
    encoder = embedder()
    first = encoder.embed(path)
    torch.manual_seed(99)
    encoder.embed(sound(3, kind="noise"), sample_rate=RATE)
    assert np.array_equal(encoder.embed(path), first)
    assert np.array_equal(embedder().embed(path), first)


def test_other_sound_gives_another_vector():
    encoder = embedder()
    one, two = encoder.embed([sound(3, seed=1), sound(3, seed=2)], RATE)
    assert np.abs(one - two).max() > 1e-3


# --- alone or together ---


CLIPS = st.lists(
    st.tuples(
        st.one_of(st.floats(0.02, 3.0), st.floats(0.02, 60.0)),
        st.sampled_from(["tone", "noise", "silence"]),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=20, deadline=None)
@given(clips=CLIPS, pooling=st.sampled_from(POOLINGS))
def test_a_list_gives_the_vectors_of_its_items_alone(clips, pooling):
    encoder = embedder(pooling=pooling, layers=[1, -1] if pooling == "cls" else [0, 1, -1])
    waves = [sound(seconds, kind=kind, seed=seed) for seconds, kind, seed in clips]
    together = encoder.embed(waves, sample_rate=RATE)
    assert together.shape == (len(waves), encoder.size)
    assert np.isfinite(together).all()
    for row, wave in zip(together, waves, strict=True):
        np.testing.assert_allclose(row, encoder.embed(wave, sample_rate=RATE), atol=1e-5)


def test_a_list_gives_the_vectors_of_its_items_alone_in_one_pass_over_whole_clips_too():
    encoder = embedder(whole_clip=True)
    waves = [sound(60), sound(30, seed=1), sound(2, seed=2)]
    together = encoder.embed(waves, sample_rate=RATE)
    for row, wave in zip(together, waves, strict=True):
        np.testing.assert_allclose(row, encoder.embed(wave, sample_rate=RATE), atol=1e-5)


def test_order_does_not_matter():
    encoder = embedder()
    waves = [sound(1), sound(22, seed=1), sound(7, kind="noise")]
    there, back = encoder.embed(waves, RATE), encoder.embed(waves[::-1], RATE)
    np.testing.assert_allclose(there, back[::-1], atol=1e-5)


def test_more_windows_than_one_batch_holds_make_no_difference():
    encoder = embedder()
    waves = [sound(1.5, seed=seed) for seed in range(WINDOWS + 3)]
    together = encoder.embed(waves, RATE)
    for index in (0, WINDOWS - 1, WINDOWS, WINDOWS + 2):
        np.testing.assert_allclose(together[index], encoder.embed(waves[index], RATE), atol=1e-5)


def test_a_list_of_files_and_a_list_of_one(tmp_path):
    encoder, paths = embedder(), [tmp_path / "one.wav", tmp_path / "two.wav"]
    for seed, path in enumerate(paths):
        audio.save(path, sound(2 + seed, seed=seed))
    together = encoder.embed(paths)
    assert together.shape == (2, encoder.size)
    np.testing.assert_allclose(together[1], encoder.embed(paths[1]), atol=1e-5)
    assert encoder.embed([str(paths[0])]).shape == (1, encoder.size)
    np.testing.assert_allclose(encoder.embed(tuple(paths)), together, atol=0)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_a_single_sample_has_an_embedding(rate, tmp_path):
    encoder = embedder()
    vector = encoder.embed(np.array([0.5], np.float32), sample_rate=rate)
    assert vector.shape == (encoder.size,)
    assert np.isfinite(vector).all()
    soundfile.write(tmp_path / "click.wav", np.array([0.5], np.float32), rate, subtype="FLOAT")
    assert np.isfinite(encoder.embed(tmp_path / "click.wav")).all()


# --- windows ---


def test_windows_are_25_patches_every_20_and_the_last_is_anchored_to_the_end():
    config = update(Config(), {"model": TINY})
    log_mel = spectrogram.log_mel(sound(60))
    patches = spectrogram.cut(log_mel, tail="anchor")
    assert len(patches) == 81
    windows = cut_windows(log_mel, config)
    starts = [0, 20, 40, 56]
    assert [window.shape[0] for window in windows] == [25] * len(starts)
    for window, start in zip(windows, starts, strict=True):
        assert torch.equal(window, patches[start : start + 25])
    assert torch.equal(windows[-1][-1, 0], log_mel[:, -32:])


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
    assert [len(window) for window in cut_windows(torch.zeros(64, frames), Config())] == counts


def test_windows_are_never_longer_than_what_was_trained():
    config = update(Config(), {"pretrain": {"n_patches": 10}})
    assert {len(window) for window in cut_windows(torch.zeros(64, 1249), config)} == {10}
    whole = update(
        Config(), {"pretrain": {"stage_two_patches": "whole"}, "model": {"max_patches": 40}}
    )
    assert [len(window) for window in cut_windows(torch.zeros(64, 1249), whole)] == [40]


@pytest.mark.parametrize("pooling", ["mean", "mean+max", "mean+std"])
def test_a_long_clips_embedding_is_the_mean_of_its_windows(pooling):
    encoder, wave = embedder(pooling=pooling), sound(60)
    patches = spectrogram.cut(spectrogram.log_mel(wave), tail="anchor")
    parts = [
        pooled(alone(encoder.model, patches[start : start + 25])[-1], pooling)
        for start in (0, 20, 40, 56)
    ]
    np.testing.assert_allclose(encoder.embed(wave, RATE), np.mean(parts, axis=0), atol=1e-5)
    assert np.abs(parts[0] - parts[3]).max() > 1e-3


def test_the_hop_of_windows_can_be_chosen():
    encoder, wave = embedder(pooling="mean", hop_patches=25), sound(60)
    patches = spectrogram.cut(spectrogram.log_mel(wave), tail="anchor")
    parts = [
        alone(encoder.model, patches[start : start + 25])[-1].mean(0) for start in (0, 25, 50, 56)
    ]
    np.testing.assert_allclose(encoder.embed(wave, RATE), np.mean(parts, axis=0), atol=1e-5)


def test_one_pass_over_the_whole_clip_interpolates_positions():
    encoder, wave = embedder(pooling="mean", whole_clip=True), sound(60)
    patches = spectrogram.cut(spectrogram.log_mel(wave), tail="anchor")
    by_hand = alone(encoder.model, patches)[-1].mean(0)
    np.testing.assert_allclose(encoder.embed(wave, RATE), by_hand, atol=1e-5)
    with torch.no_grad():
        encoder.model.bottleneck.positions[25, ::2] += (
            1  # the last trained position reaches the last patches of a longer clip
        )
    assert np.abs(encoder.embed(wave, RATE) - by_hand).max() > 1e-3
    assert np.abs(embedder(pooling="mean").embed(wave, RATE) - by_hand).max() > 1e-3


# --- pooling ---


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
    patches = spectrogram.cut(spectrogram.log_mel(wave), tail="anchor")
    if pooling == "cls":
        with torch.no_grad():
            sequences = encoder.model.forward_encoder(patches[None])
        wanted = np.concatenate([sequences[layer][0, 0].numpy() for layer in layers])
    else:
        parts = alone(encoder.model, patches)
        wanted = np.concatenate([pooled(parts[layer], pooling) for layer in layers])
    vector = encoder.embed(wave, RATE)
    assert vector.shape == (encoder.size,)
    np.testing.assert_allclose(vector, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "layers", "size"),
    [("mean", [-1], 16), ("mean+std", [-1], 32), ("mean+max", [0, 2], 64), ("cls", [1, 2], 32)],
)
def test_the_size_is_known_beforehand(pooling, layers, size):
    encoder = embedder(pooling=pooling, layers=layers)
    assert encoder.size == size
    assert encoder.embed(sound(1), RATE).shape == (size,)


def test_the_papers_embedding_has_512_numbers():
    assert Embedder(Patchifier(), Config()).size == 512


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(RequestError, match=f"layers holds {layer}, expected 0 to 2"):
        embedder(layers=[layer])


@pytest.mark.parametrize("pooling", ["mean", "mean+max", "mean+std"])
def test_padding_is_left_out_of_pooling(pooling):
    config = update(Config(), {"embed": {"pooling": pooling, "layers": [0, 1]}}).embed
    vectors, sequence = (
        torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)),
        torch.randn(2, 5, 3),
    )
    present = torch.tensor([[True, True, False, False], [True, True, True, True]])
    spoilt = [vectors.masked_fill(~present[..., None], 1e3), sequence.clone()]
    spoilt[1][0, 3:] = 1e3
    found = pool_layers(spoilt, present, config)
    wanted = np.concatenate(
        [pooled(vectors[0, :2].numpy(), pooling), pooled(sequence[0, 1:3].numpy(), pooling)]
    )
    np.testing.assert_allclose(found[0], wanted, atol=1e-4)


def test_patches_that_are_cut_already_give_the_vector_of_their_log_mel():
    encoder, log_mels = (
        embedder(),
        [torch.rand(64, frames) - 1 for frames in (20, 32 * 5 + 7, 32 * 60)],
    )
    sequences = [spectrogram.cut(log_mel, tail="anchor") for log_mel in log_mels]
    np.testing.assert_allclose(
        encoder.embed_sequences(sequences), encoder.embed_log_mels(log_mels), atol=1e-6
    )


def test_an_array_is_no_sequence_of_patches():
    with pytest.raises(
        RequestError, match=r"sequence 0 is of type ndarray, expected a tensor \(N, 1, 64, 32\)"
    ):
        embedder().embed_sequences([np.zeros((2, 1, 64, 32), np.float32)])


@pytest.mark.parametrize("shape", [(0, 1, 64, 32), (3, 64, 32), (3, 1, 32, 64), (64, 32)])
def test_what_is_no_sequence_of_patches_is_refused_with_its_shape(shape):
    with pytest.raises(
        RequestError,
        match=rf"sequence 1 has shape {re.escape(str(tuple(shape)))}, expected a tensor \(N, 1, 64, 32\)",
    ):
        embedder().embed_sequences([torch.zeros(2, 1, 64, 32), torch.zeros(shape)])


def test_no_log_mels_and_a_mask_that_is_too_long_are_refused():
    encoder = embedder()
    for asked in (encoder.embed_log_mels, encoder.embed_sequences):
        with pytest.raises(RequestError, match="there is no music here"):
            asked([])
    with pytest.raises(
        RequestError, match="the mask is of 3 patches, but the first window of this log-mel has 2"
    ):
        encoder.reconstruct(torch.zeros(64, 40), np.ones(3, bool))


@pytest.mark.parametrize(
    ("log_mels", "reason"),
    [
        (
            torch.zeros(64, 40),
            r"shape \(40,\) of torch.float32, expected a tensor of floats \(64, T\).*put it in a list",
        ),
        ([torch.zeros(80, 40)], r"shape \(80, 40\)"),
        ([torch.zeros(1, 64, 40)], r"shape \(1, 64, 40\)"),
        ([torch.zeros(64, 0)], r"shape \(64, 0\)"),
        ([torch.zeros(64, 40, dtype=torch.int16)], "torch.int16"),
        ([torch.full((64, 40), torch.nan)], "NaN"),
        ([np.zeros((64, 40), np.float32)], "of type ndarray"),
        (["song.mp3"], "of type str"),
    ],
    ids=[
        "one alone",
        "other bands",
        "three dimensions",
        "no frames",
        "integers",
        "NaN",
        "an array",
        "a path",
    ],
)
def test_what_is_no_log_mel_is_refused(log_mels, reason):
    with pytest.raises(RequestError, match=reason):
        embedder().embed_log_mels(log_mels)
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
    assert log_mel.dtype == torch.float64
    np.testing.assert_allclose(
        encoder.embed_log_mels([log_mel]), encoder.embed_log_mels([log_mel.float()]), atol=1e-6
    )


def test_windows_side_by_side_are_padded_with_silence():
    patches, present = pad_windows([torch.zeros(2, 1, 4, 4), torch.ones(3, 1, 4, 4)], value=-1.0)
    assert present.tolist() == [[True, True, False], [True, True, True]]
    assert (patches[0, 2] == -1).all()
    assert (patches[0, :2] == 0).all()
    assert (patches[1] == 1).all()


# --- stored numbers ---


def golden_maker():
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_embedding_of_stored_samples_is_the_stored_one():
    with np.load(GOLDEN / "embedding.npz", allow_pickle=False) as stored:
        pcm, embedding = stored["pcm"], stored["embedding"]
    assert pcm.dtype == np.int16
    assert embedding.shape == (96,)
    np.testing.assert_allclose(golden_maker().embed(pcm), embedding, atol=1e-4)


def test_the_stored_embedding_depends_on_the_sound():
    maker = golden_maker()
    pcm = maker.make_pcm()
    quieter = (pcm * 0.9).astype(np.int16)
    assert np.abs(maker.embed(quieter) - maker.embed(pcm)).max() > 1e-3


def test_the_generator_still_makes_the_stored_file(tmp_path):
    maker = golden_maker()
    maker.make(tmp_path / "again.npz")
    with (
        np.load(GOLDEN / "embedding.npz", allow_pickle=False) as stored,
        np.load(tmp_path / "again.npz", allow_pickle=False) as again,
    ):
        assert sorted(stored) == sorted(again) == ["embedding", "pcm"]
        np.testing.assert_allclose(
            again["pcm"].astype(int), stored["pcm"].astype(int), atol=1
        )  # a sine may be rounded otherwise elsewhere
        np.testing.assert_allclose(again["embedding"], stored["embedding"], atol=1e-3)


# --- loading, and what is refused ---


def test_a_saved_model_embeds_as_the_one_that_was_saved(tmp_path):
    encoder = embedder(pooling="mean+max", layers=[1, -1])
    checkpoint.save(tmp_path / "model", Checkpoint(encoder.model, encoder.config))
    loaded = patchifier.load(tmp_path / "model")
    assert (loaded.head, loaded.task) == (None, None)
    assert np.array_equal(loaded.embed(sound(3), RATE), encoder.embed(sound(3), RATE))


def test_a_model_in_training_mode_is_put_into_evaluation_mode():
    config = update(Config(), {"model": TINY})
    model = Patchifier(config).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoder = Embedder(model, config)
    assert np.array_equal(encoder.embed(sound(2), RATE), encoder.embed(sound(2), RATE))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_loading_from_nowhere_names_the_folder(tmp_path):
    with pytest.raises(RequestError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("x", "rate", "said"),
    [
        (sound(1), None, "sample rate"),
        (sound(1), 10, "sample_rate is 10"),
        ((32767 * sound(1)).astype(np.int16), RATE, "int16"),
        (np.zeros((RATE, 2), np.float32), RATE, "transpose"),
        (np.zeros((2, 2, 9), np.float32), RATE, "shape"),
        (np.zeros(0, np.float32), RATE, "shape"),
        (np.float32(0.5), RATE, "shape"),
        (np.full(9, np.nan, np.float32), RATE, "NaN"),
        (np.full(9, np.inf, np.float32), RATE, "infinity"),
        ([], RATE, "there is no music here"),
        ([0.1, 0.2], RATE, "numpy.array"),
        ([sound(1), sound(1).astype(np.int32)], RATE, "int32"),
        (None, RATE, "expected"),
        (b"song.mp3", RATE, "expected"),
        ("nowhere.mp3", None, "nowhere.mp3"),
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


# --- reconstruction ---


def test_reconstruction_keeps_the_patches_and_fills_in_as_many():
    encoder, log_mel = embedder(), spectrogram.log_mel(sound(8))
    masked = np.array([False, True] * 5)
    patches, filled = encoder.reconstruct(log_mel, masked)
    assert patches.shape == filled.shape == (10, 64, 32)
    assert torch.equal(patches, spectrogram.cut(log_mel, tail="anchor")[:10, 0])
    hidden = log_mel.clone()
    hidden[:, 32:64] = -0.2  # the second patch, which is masked
    again, refilled = encoder.reconstruct(hidden, masked)
    assert not torch.equal(again, patches)
    assert torch.equal(refilled, filled)


# --- music of any length, as it arrives ---


def pieces_of(log_mel: torch.Tensor, cuts: list[int]):
    """The log-mel in pieces, cut at these frames."""
    places = sorted({0, log_mel.shape[1], *(cut % (log_mel.shape[1] + 1) for cut in cuts)})
    return [log_mel[:, first:last] for first, last in itertools.pairwise(places)]


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 3000), st.lists(st.integers(0, 3000), max_size=6), st.integers(1, 30))
def test_windows_of_pieces_are_those_of_the_whole_and_lie_where_patch_starts_says(
    frames, cuts, hop
):
    config = update(Config(), {"embed": {"hop_patches": hop}})
    log_mel = torch.rand(64, frames)
    patches = spectrogram.cut(log_mel, tail="anchor")
    expected = spectrogram.patch_starts(len(patches), length=25, hop=min(hop, 25), tail="anchor")
    cut = list(stream_cut(pieces_of(log_mel, cuts), config))
    assert sum(new for _, new in cut) == max(frames, 32)
    found = list(stream_windows((patch for patch, _ in cut), config))
    assert [first for first, _ in found] == expected
    for first, window in found:
        assert torch.equal(torch.stack(window), patches[first : first + 25])


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 900),
    st.lists(st.integers(0, 900), max_size=6),
    st.integers(1, 200),
    st.integers(1, 250),
)
def test_stretches_of_pieces_are_those_of_the_whole(frames, cuts, length, hop):
    log_mel = torch.rand(4, frames)
    starts = spectrogram.patch_starts(frames, length=length, hop=hop, tail="anchor")
    found = list(stream_stretches(pieces_of(log_mel, cuts), length=length, hop=hop))
    assert [first for first, _ in found] == starts
    for first, stretch in found:
        assert torch.equal(stretch, log_mel[:, first : first + length])


def test_stretches_of_music_are_embedded_each_by_itself():
    encoder, wave = embedder(), sound(31.0, kind="noise")
    found = encoder.embed_windows(wave, RATE, window_s=5.0)
    frame_s, length = (
        encoder.config.spectrogram.frame_s,
        round(5.0 / encoder.config.spectrogram.frame_s),
    )
    log_mel = encoder.log_mel(wave, RATE)
    starts = np.round(found.start_s / frame_s).astype(int)
    assert starts.tolist() == [0, *(length * np.arange(1, 6)), log_mel.shape[1] - length]
    np.testing.assert_allclose(found.end_s - found.start_s, length * frame_s)
    for first, vector in zip(starts, found.vectors, strict=True):
        np.testing.assert_allclose(
            vector, encoder.embed_log_mels([log_mel[:, first : first + length]])[0], atol=1e-5
        )


def test_stretches_of_a_round_length_are_those_of_the_page():
    """Twenty seconds in stretches of five: docs/embeddings.md says why there are five of them."""
    found, frame_s = embedder().embed_windows(sound(20.0), RATE, window_s=5.0), 512 / RATE
    np.testing.assert_allclose(found.start_s / frame_s, [0, 215, 430, 645, 647])
    np.testing.assert_allclose(found.end_s / frame_s, [215, 430, 645, 860, 862])
    assert found.start_s[-1] == pytest.approx(15.02, abs=0.005)


def test_one_stretch_that_holds_all_is_the_embedding():
    encoder, wave = embedder(), sound(8.0)
    found = encoder.embed_windows(wave, RATE, window_s=3600)
    assert found.vectors.shape == (1, encoder.size)
    np.testing.assert_allclose(found.vectors[0], encoder.embed(wave, RATE), atol=1e-6)
    assert found.start_s[0] == 0
    assert found.end_s[0] == pytest.approx(8.0, abs=0.05)


@pytest.mark.parametrize(
    ("window_s", "hop_s"),
    [
        (0.0, None),
        (5.0, 0.0),
        (-1.0, None),
        (float("nan"), None),
        (float("inf"), None),
        ("5", None),
        (5.0, "1"),
    ],
)
def test_a_stretch_of_nothing_is_refused(window_s, hop_s):
    with pytest.raises(RequestError, match="at least one frame"):
        embedder().embed_windows(sound(2.0), RATE, window_s=window_s, hop_s=hop_s)


def test_patches_of_one_window_have_their_own_vectors():
    encoder, wave = embedder(layers=[0, -1]), sound(6.2, kind="noise")
    found = encoder.embed_patches(wave, RATE)
    patches = spectrogram.cut(encoder.log_mel(wave, RATE), tail="anchor")
    layers = alone(encoder.model, patches)
    np.testing.assert_allclose(
        found.vectors, np.concatenate([layers[0], layers[2]], axis=1), atol=1e-5
    )
    assert found.vectors.shape == (9, 32)
    frame_s = encoder.config.spectrogram.frame_s
    np.testing.assert_allclose(found.start_s[:-1], np.arange(8) * 32 * frame_s)
    assert found.start_s[-1] > found.start_s[-2]
    np.testing.assert_allclose(found.end_s - found.start_s, 32 * frame_s)


def test_a_patch_in_several_windows_has_their_mean():
    encoder, wave = embedder(), sound(31.0, kind="noise")  # 42 patches: windows at 0 and 17
    patches = spectrogram.cut(encoder.log_mel(wave, RATE), tail="anchor")
    windows = {first: alone(encoder.model, patches[first : first + 25])[2] for first in (0, 17)}
    found = encoder.embed_patches(wave, RATE)
    assert len(found.vectors) == len(patches) == 42
    np.testing.assert_allclose(found.vectors[5], windows[0][5], atol=1e-5)
    np.testing.assert_allclose(
        found.vectors[20], np.mean([windows[0][20], windows[17][3]], axis=0), atol=1e-5
    )
    np.testing.assert_allclose(found.vectors[41], windows[17][24], atol=1e-5)


def test_a_sound_shorter_than_a_patch_is_one_patch():
    found = embedder().embed_patches(sound(0.02), RATE)
    assert found.vectors.shape == (1, 16)
    assert found.end_s[0] < 0.1


def test_identity_changes_with_weights_and_with_what_decides_an_embedding():
    same, again = embedder().identity, embedder().identity
    others = [
        embedder(seed=1).identity,
        embedder(pooling="mean").identity,
        embedder(hop_patches=5).identity,
    ]
    assert same == again
    assert len({same, *others}) == 4


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path):
    """Peak memory of a fresh process for three hours against three minutes."""
    import subprocess
    import sys

    code = """
import resource, sys
import torch
torch.set_num_threads(1)
from patchifier.config import Config, update
from patchifier.embed import Embedder
from patchifier.nn.model import Patchifier
config = update(Config(), {"model": {"channels": [4, 4, 4, 4, 8], "embed_dim": 16, "n_layers": 2, "n_heads": 2, "mlp_dim": 32}})
assert Embedder(Patchifier(config), config).embed(sys.argv[1]).shape == (32,)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for minutes in (3, 180):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as stream:
            for part in range(minutes):
                stream.write(sound(60.0, kind="noise", seed=part))
        peaks.append(
            int(
                subprocess.run(
                    [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
                ).stdout
            )
        )
    assert peaks[1] < 1.2 * peaks[0]


# --- asking a fine-tuned model ---


def tuned(kind: str = "one-of", readout: str = "cls") -> Embedder:
    """A model with a head whose answers differ from window to window."""
    from patchifier.nn.model import Head
    from patchifier.tasks import Task

    made = embedder()
    torch.manual_seed(0)
    head = Head(16, 3)
    torch.nn.init.normal_(head.linear.weight, std=3.0)
    config = update(made.config, {"finetune": {"pooling": readout}})
    return Embedder(made.model, config, head=head, task=Task(kind, ("a", "b", "c")))


@pytest.mark.parametrize("readout", ["cls", "mean"])
@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("one-of", torch.nn.Softmax(-1)),
        ("many-of", torch.nn.Sigmoid()),
        ("numbers", torch.nn.Identity()),
    ],
)
def test_prediction_is_the_mean_answer_over_windows(kind, activation, readout):
    asked, wave = tuned(kind, readout), sound(31.0, kind="noise")
    patches = spectrogram.cut(asked.log_mel(wave, RATE), tail="anchor")
    answers = []
    with torch.no_grad():
        for first in (0, 17):
            sequence = asked.model.forward_encoder(patches[None, first : first + 25])[-1]
            answers.append(
                activation(
                    asked.head(sequence[:, 0] if readout == "cls" else sequence[:, 1:].mean(1))
                )[0].numpy()
            )
    np.testing.assert_allclose(asked.predict(wave, RATE), np.mean(answers, axis=0), atol=1e-5)
    assert asked.predict([wave, wave], RATE).shape == (2, 3)


def test_answers_over_time_are_those_of_the_stretches():
    asked, wave = tuned(), sound(12.0, kind="noise")
    found = asked.predict_windows(wave, RATE, window_s=4.0, hop_s=2.0)
    assert found.vectors.shape == (len(found.start_s), 3)
    length = round(4.0 / asked.config.spectrogram.frame_s)
    first = round(found.start_s[1] / asked.config.spectrogram.frame_s)
    np.testing.assert_allclose(
        found.vectors[1],
        asked.predict(iter([asked.log_mel(wave, RATE)[:, first : first + length]])),
        atol=1e-5,
    )
    np.testing.assert_allclose(found.vectors.sum(1), 1.0, atol=1e-5)


def test_a_model_without_a_head_cannot_be_asked():
    for ask in (
        lambda e: e.predict(sound(1.0), RATE),
        lambda e: e.predict_windows(sound(1.0), RATE, window_s=1.0),
    ):
        with pytest.raises(RequestError, match="patchifier finetune"):
            ask(embedder())


# --- what people try first ---


def test_an_array_or_a_list_of_paths_is_embedded_and_an_iterator_of_them_is_refused_with_what_to_do(
    tmp_path, tone
):
    paths = [tmp_path / f"{number}.wav" for number in range(2)]
    for number, path in enumerate(paths):
        audio.save(path, tone(200 * (1 + number), seconds=2))
    model = Embedder(Patchifier(Config()), Config())
    expected = model.embed(paths)
    np.testing.assert_array_equal(model.embed(np.array([str(path) for path in paths])), expected)
    np.testing.assert_array_equal(model.embed(np.array(paths, object)), expected)
    with pytest.raises(RequestError, match=r"embed\(list\(paths\)\)"):
        model.embed(tmp_path.glob("*.wav"))


def test_nothing_is_no_music():
    model = Embedder(Patchifier(Config()), Config())
    with pytest.raises(RequestError, match="there is no music here"):
        model.embed([])
    with pytest.raises(RequestError, match="without a frame"):
        model.embed([iter([torch.zeros(64, 40)]), iter([])])
    with pytest.raises(RequestError, match="start_s and end_s are of files"):
        list(model.pieces(np.zeros(22_050, np.float32), 22_050, start_s=0.5))


def test_a_device_that_is_not_there_is_refused_and_the_best_one_is_found():
    with pytest.raises(RequestError, match="device is 'gpu', expected one that torch has here"):
        load("patchifier-base", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="device is 'cuda'"):
            load("patchifier-base", device="cuda")
        assert str(load("patchifier-base", device="auto").device) in ("cpu", "mps")


def test_the_package_and_a_model_show_what_they_are():
    assert {"load", "Embedder", "Config", "datasets"} <= set(dir(patchifier))
    assert (
        repr(Embedder(Patchifier(Config()), Config()))
        == "<Embedder: vectors of 512 numbers, 8,291,793 parameters, on cpu>"
    )
