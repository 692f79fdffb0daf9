"""What people can rely on: the same vectors alone or together, in any order, again, on any number of threads; and no wrong input passes."""

import contextlib
import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import patchifier
from patchifier import checkpoint, cli, jobs
from patchifier.audio import SAMPLE_RATE as RATE
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.embed import Embedder
from patchifier.library import build
from patchifier.nn.model import Patchifier
from tests import builders
from tests.builders import TINY

THREADS = (1, 2, 4)
# The fixture that hypothesis warns of sets the number of threads, which is the same for all examples.
QUICK = settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def held() -> Checkpoint:
    """Every layer that there is, and windows that overlap; positions that show."""
    config = update(
        Config(), {"model": TINY, "embed": {"pooling": "mean+std", "layers": [0, 1, -1]}}
    )
    network = Patchifier(config, seed=0)
    with torch.no_grad():
        network.bottleneck.positions.mul_(10)
    return Checkpoint(network.eval(), config)


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def encoder(request, held, tmp_path_factory) -> Embedder:
    """The same model by each runtime."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    checkpoint.save(folder, held)
    load = {"onnxruntime": patchifier.load, "torch": checkpoint.load_embedder}
    return load[request.param](folder)


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(count))  # of ONNX Runtime
        yield
    torch.set_num_threads(before)


@pytest.fixture(params=THREADS)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with on_threads(request.param):
        yield


def near(found: np.ndarray, wanted: np.ndarray, name: str = "") -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0, err_msg=name)


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
    return {
        "embed": encoder.embed(wave, RATE)[None],
        "windows": encoder.embed_windows(wave, RATE, window_s=4.0, hop_s=3.1).vectors,
        "patches": encoder.embed_patches(wave, RATE).vectors,
    }


@QUICK
@given(data=st.data())
def test_a_batch_of_any_composition_and_order_gives_what_each_alone_does(encoder, threads, data):
    waves = data.draw(st.lists(sounds(), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(waves))))
    together = encoder.embed([waves[place] for place in order], RATE)
    assert np.isfinite(together).all()
    for row, place in zip(together, order, strict=True):
        near(row, encoder.embed(waves[place], RATE))


@QUICK
@given(wave=sounds(), window_s=st.floats(0.05, 8.0), hop_s=st.floats(1.0, 9.0))
def test_a_stretch_is_embedded_as_if_it_were_alone(encoder, threads, wave, window_s, hop_s):
    found = encoder.embed_windows(wave, RATE, window_s=window_s, hop_s=hop_s)
    log_mel, frame_s = encoder.log_mel(wave, RATE), encoder.config.spectrogram.frame_s
    assert found.start_s[0] == 0
    assert found.end_s[-1] == pytest.approx(log_mel.shape[1] * frame_s)
    for start_s, end_s, vector in zip(found.start_s, found.end_s, found.vectors, strict=True):
        part = log_mel[:, round(start_s / frame_s) : round(end_s / frame_s)]
        near(vector, encoder.embed_log_mels([part])[0])


@QUICK
@given(wave=sounds())
def test_a_patch_does_not_depend_on_how_many_windows_share_a_batch(encoder, threads, wave):
    with pytest.MonkeyPatch.context() as patch:
        expected = encoder.embed_patches(wave, RATE)
        patch.setattr("patchifier.windows.MOST_PATCHES", 1)
        found = encoder.embed_patches(wave, RATE)
    near(found.vectors, expected.vectors)
    np.testing.assert_array_equal(found.start_s, expected.start_s)
    np.testing.assert_array_equal(found.end_s, expected.end_s)


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


def require_equal_on_threads(encoder: Embedder, wave: np.ndarray) -> None:
    found = []
    for count in THREADS:
        with on_threads(count):
            found.append(ways(copy.deepcopy(encoder), wave))  # a session keeps its threads
    for other in found[1:]:
        for name, vectors in other.items():
            near(vectors, found[0][name], name)


@settings(max_examples=6, deadline=None)
@given(wave=sounds())
def test_the_number_of_threads_makes_no_difference(encoder, wave):
    require_equal_on_threads(encoder, wave)


@pytest.mark.parametrize("kind", ["noise", "silence"])
def test_nor_does_it_in_the_papers_architecture(kind, request):
    """Its products are large enough to be shared among threads."""
    wave = request.getfixturevalue(kind)(seconds=21.0)
    require_equal_on_threads(builders.embedder(Patchifier(seed=0), Config()), wave)
    require_equal_on_threads(patchifier.load("patchifier-paper"), wave)


SILENCE = np.zeros(RATE, np.float32)
ASK = {
    "embed": lambda encoder, x, rate: encoder.embed(x, rate),
    "embed of a list": lambda encoder, x, rate: encoder.embed([SILENCE, x], rate),
    "embed_windows": lambda encoder, x, rate: encoder.embed_windows(x, rate, window_s=1.0),
    "embed_patches": lambda encoder, x, rate: encoder.embed_patches(x, rate),
    "log_mel": lambda encoder, x, rate: encoder.log_mel(x, rate),
}
WRONG = {
    "no rate": (SILENCE, None, "needs its sample rate"),
    "a rate in kHz": (SILENCE, 44.1, r"sample_rate is 44\.1, expected a rate in Hz"),
    "a rate that is not a number": (SILENCE, float("nan"), "sample_rate is nan"),
    "integers": (np.zeros(RATE, np.int64), RATE, "int64.*8, 16 or 32 bits"),
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
def home(held, tmp_path_factory):
    """Two songs, a table of theirs, the model and another one."""
    root = tmp_path_factory.mktemp("home")
    for name in ("empty", "songs", "alien"):
        (root / name).mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, RATE)
        soundfile.write(root / "songs" / f"{number}.wav", noise, RATE)
    soundfile.write(root / "alien" / "alien.wav", SILENCE, RATE)
    table = pa.table({"path": ["a"], "embedding": [[1.0, 2.0]]})
    parquet.write_table(table, root / "alien" / "alien.parquet")
    for name, model in (
        ("model", held.model),
        ("other", Patchifier(held.config, seed=1)),
    ):
        checkpoint.save(root / name, Checkpoint(model, held.config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "process_pool", ThreadPoolExecutor)
        build.embed_library(
            root / "songs", root / "songs.parquet", embedder=root / "model", workers=1
        )
    return root


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("embed empty --model model --out x.parquet", "no audio files in this folder"),
        ("similar songs.parquet --to alien/alien.wav --model other", "another model"),
        ("embed songs --model other --out songs.parquet", "model is"),
        ("similar alien/alien.parquet --to songs/0.wav", "alien.parquet"),
    ],
)
def test_commands_refuse_what_is_empty_or_of_another_model(
    arguments, said, home, monkeypatch, capsys
):
    monkeypatch.chdir(home)
    assert cli.main(arguments.split()) == 2
    assert said in capsys.readouterr().err
    assert not list(home.glob("x.*"))
