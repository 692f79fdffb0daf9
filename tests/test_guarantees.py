"""What people can rely on: the same vectors alone or together, in any order, again, on any number of threads; and no wrong input passes."""

from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchifier import checkpoint, cli
from patchifier.audio import SAMPLE_RATE as RATE
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.embed import Embedder
from patchifier.library import build
from patchifier.nn.model import Patchifier

TINY = {"channels": [4, 4, 4, 4, 8], "embed_dim": 16, "n_layers": 2, "n_heads": 2, "mlp_dim": 32}
THREADS = (1, 2, 4)
TOLERANCE = 1e-5
# The fixture that hypothesis warns of sets the number of threads, which is the same for all examples.
QUICK = settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def encoder() -> Embedder:
    """Every layer that there is, and windows that overlap; positions that show."""
    config = update(
        Config(), {"model": TINY, "embed": {"pooling": "mean+std", "layers": [0, 1, -1]}}
    )
    network = Patchifier(config, seed=0)
    with torch.no_grad():
        network.bottleneck.positions.mul_(10)
    return Embedder(network, config)


@pytest.fixture(scope="module")
def paper() -> Embedder:
    """The paper's architecture, whose products are large enough to be shared among threads."""
    return Embedder(Patchifier(seed=0), Config())


@pytest.fixture(params=THREADS)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@st.composite
def sounds(draw: st.DrawFn, longest_s: float = 24.0) -> np.ndarray:
    """From 20 ms on: noise, a tone, silence, full scale, nearly nothing, or silence with one click."""
    seconds = draw(st.one_of(st.floats(0.02, 1.5), st.floats(0.02, longest_s)))
    kind = draw(st.sampled_from(["noise", "tone", "silence", "square", "faint", "click", "half"]))
    count, chance = max(1, round(seconds * RATE)), np.random.default_rng(draw(st.integers(0, 99)))
    noise, time_s = chance.uniform(-0.3, 0.3, count), np.arange(count) / RATE
    tone = 0.5 * np.sin(2 * np.pi * (100 + 50 * draw(st.integers(0, 40))) * time_s)
    return {
        "noise": noise,
        "tone": tone + 0.01 * noise,
        "silence": 0 * noise,
        "square": np.sign(tone),
        "faint": 1e-4 * noise,
        "click": (np.arange(count) == count // 2).astype(float),
        "half": noise * (time_s > seconds / 2),
    }[kind].astype(np.float32)


def ways(encoder: Embedder, wave: np.ndarray) -> dict[str, np.ndarray]:
    """Everything that can be had of one sound."""
    windows = encoder.embed_windows(wave, RATE, window_s=4.0, hop_s=3.1)
    patches = encoder.embed_patches(wave, RATE)
    return {
        "embed": encoder.embed(wave, RATE)[None],
        "windows": windows.vectors,
        "patches": patches.vectors,
    }


# --- alone or together ---


@QUICK
@given(data=st.data())
def test_a_batch_of_any_composition_and_order_gives_what_each_alone_does(encoder, threads, data):
    waves = data.draw(st.lists(sounds(), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(waves))))
    together = encoder.embed([waves[place] for place in order], RATE)
    assert np.isfinite(together).all()
    for row, place in zip(together, order, strict=True):
        np.testing.assert_allclose(row, encoder.embed(waves[place], RATE), atol=TOLERANCE, rtol=0)


@QUICK
@given(wave=sounds(), window_s=st.floats(0.05, 8.0), hop_s=st.floats(1.0, 9.0))
def test_a_stretch_is_embedded_as_if_it_were_alone(encoder, threads, wave, window_s, hop_s):
    found, log_mel, frame_s = (
        encoder.embed_windows(wave, RATE, window_s=window_s, hop_s=hop_s),
        encoder.log_mel(wave, RATE),
        encoder.config.spectrogram.frame_s,
    )
    assert found.start_s[0] == 0
    assert found.end_s[-1] == pytest.approx(log_mel.shape[1] * frame_s)
    for start_s, end_s, vector in zip(found.start_s, found.end_s, found.vectors, strict=True):
        part = log_mel[:, round(start_s / frame_s) : round(end_s / frame_s)]
        np.testing.assert_allclose(
            vector, encoder.embed_log_mels([part])[0], atol=TOLERANCE, rtol=0
        )


@QUICK
@given(wave=sounds())
def test_a_patch_does_not_depend_on_how_many_windows_share_a_batch(encoder, threads, wave):
    with pytest.MonkeyPatch.context() as patch:
        expected = encoder.embed_patches(wave, RATE)
        patch.setattr("patchifier.nn.encode.WINDOWS", 1)
        found = encoder.embed_patches(wave, RATE)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=TOLERANCE, rtol=0)
    np.testing.assert_array_equal(found.start_s, expected.start_s)
    np.testing.assert_array_equal(found.end_s, expected.end_s)


# --- again ---


@QUICK
@given(wave=sounds(), between=sounds(1.0))
def test_the_same_sound_gives_the_same_bits_whatever_was_asked_in_between(
    encoder, threads, wave, between
):
    first = ways(encoder, wave)
    ways(encoder, between)
    torch.manual_seed(7)
    for name, vectors in ways(encoder, wave).items():
        assert np.array_equal(vectors, first[name]), name


@QUICK
@given(waves=st.lists(sounds(5.0), min_size=1, max_size=4))
def test_the_same_list_gives_the_same_bits(encoder, threads, waves):
    assert np.array_equal(encoder.embed(waves, RATE), encoder.embed(waves, RATE))


# --- on any number of threads ---


def by_threads(encoder: Embedder, wave: np.ndarray) -> list[dict[str, np.ndarray]]:
    before, found = torch.get_num_threads(), []
    try:
        for count in THREADS:
            torch.set_num_threads(count)
            found.append(ways(encoder, wave))
    finally:
        torch.set_num_threads(before)
    return found


@settings(max_examples=6, deadline=None)
@given(wave=sounds())
def test_the_number_of_threads_makes_no_difference(encoder, wave):
    alone, *others = by_threads(encoder, wave)
    for other in others:
        for name, vectors in other.items():
            np.testing.assert_allclose(vectors, alone[name], atol=TOLERANCE, rtol=0, err_msg=name)


@pytest.mark.parametrize("kind", ["noise", "silence", "tone"])
def test_nor_does_it_in_the_papers_architecture(paper, kind, noise, silence, tone):
    wave = {"noise": noise, "silence": silence, "tone": lambda seconds: tone(seconds=seconds)}[
        kind
    ](21.0)
    alone, *others = by_threads(paper, wave)
    for other in others:
        for name, vectors in other.items():
            np.testing.assert_allclose(vectors, alone[name], atol=TOLERANCE, rtol=0, err_msg=name)


def test_the_number_of_threads_is_left_as_it_was(encoder, noise):
    before = torch.get_num_threads()
    by_threads(encoder, noise(1.0))
    assert torch.get_num_threads() == before


# --- what is wrong is refused, whatever is asked for ---

ASK = {
    "embed": lambda encoder, x, rate: encoder.embed(x, rate),
    "embed of a list": lambda encoder, x, rate: encoder.embed(
        [np.zeros(RATE, np.float32), x], rate
    ),
    "embed_windows": lambda encoder, x, rate: encoder.embed_windows(x, rate, window_s=1.0),
    "embed_patches": lambda encoder, x, rate: encoder.embed_patches(x, rate),
    "log_mel": lambda encoder, x, rate: encoder.log_mel(x, rate),
}
WRONG = {
    "no rate": (np.zeros(RATE, np.float32), None, "needs its sample rate"),
    "a rate in kHz": (
        np.zeros(RATE, np.float32),
        44.1,
        r"sample_rate is 44\.1, expected a rate in Hz",
    ),
    "a rate that is not a number": (np.zeros(RATE, np.float32), float("nan"), "sample_rate is nan"),
    "integers": (np.zeros(RATE, np.int16), RATE, "int16.*divide by 32768"),
    "NaN": (np.full(RATE, np.nan, np.float32), RATE, "NaN"),
    "channels last": (np.zeros((RATE, 2), np.float32), RATE, "transpose"),
    "a folder": (".", RATE, "cannot be read"),
    "no file": ("nowhere.mp3", RATE, "nowhere.mp3"),
}


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_refused_by_every_way_to_a_vector(encoder, ask, wrong):
    x, rate, said = WRONG[wrong]
    with pytest.raises(RequestError, match=said):
        ASK[ask](encoder, x, rate)


@pytest.fixture(scope="module")
def home(encoder, tmp_path_factory):
    """Two songs, a table of theirs, the model and another one."""
    root = tmp_path_factory.mktemp("home")
    (root / "empty").mkdir()
    (root / "songs").mkdir()
    for number in range(2):
        soundfile.write(
            root / "songs" / f"{number}.wav",
            np.random.default_rng(number).uniform(-0.3, 0.3, RATE),
            RATE,
        )
    checkpoint.save(root / "model", Checkpoint(encoder.model, encoder.config))
    checkpoint.save(root / "other", Checkpoint(Patchifier(encoder.config, seed=1), encoder.config))
    build.embed_library(root / "songs", root / "songs.parquet", embedder=encoder, workers=1)
    return root


def said(capsys, *arguments) -> str:
    """What a command says that is refused."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_an_empty_folder_is_refused_and_nothing_is_written(home, capsys):
    assert "no audio files in this folder" in said(
        capsys, "embed", home / "empty", "--model", home / "model", "--out", home / "x.parquet"
    )
    assert not list(home.glob("x.*"))


def test_a_table_of_another_model_is_refused_by_similar_and_by_embed(home, capsys):
    alien = home / "empty" / "alien.wav"
    soundfile.write(alien, np.zeros(RATE), RATE)
    told = said(capsys, "similar", home / "songs.parquet", "--to", alien, "--model", home / "other")
    alien.unlink()
    assert "another model" in told
    assert "model is" in said(
        capsys, "embed", home / "songs", "--model", home / "other", "--out", home / "songs.parquet"
    )


def test_a_parquet_of_something_else_is_refused_by_similar(home, capsys):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"path": ["a"], "embedding": [[1.0, 2.0]]}), home / "alien.parquet"
    )
    assert "alien.parquet" in said(
        capsys, "similar", home / "alien.parquet", "--to", home / "songs" / "0.wav"
    )
