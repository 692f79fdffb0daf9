"""Synthetic sound, and a small cache of it: quick to make, with known answers.

What is large is imported in the fixtures: xdist's first process runs no test.
"""

import errno
import gc
import os
import shutil

# Tiny models are quickest on one thread, and bits depend on the number: child processes inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
# Threads that wait for each other in loops take a core from the other workers, for seconds.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

import patchifier
from patchifier import audio, datasets, jobs, statistics, weights
from patchifier.config import Config, update

RATE = 22_050


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Leave what imports made out of all garbage collections: there are millions of objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def _tone(
    hz: float = 440.0, *, seconds: float = 1.0, rate: int = RATE, level: float = 0.5
) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(
        np.float32
    )


def _noise(
    seconds: float = 1.0, *, rate: int = RATE, level: float = 0.1, seed: int = 0
) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * rate), dtype=np.float32)
    return np.clip(level * samples, -1, 1)


def _silence(seconds: float = 1.0, *, rate: int = RATE) -> np.ndarray:
    return np.zeros(round(seconds * rate), np.float32)


def _stereo(seconds: float = 1.0, *, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return np.stack(
        [_noise(seconds, rate=rate, seed=seed), _noise(seconds, rate=rate, seed=seed + 1)], axis=1
    )


@pytest.fixture(scope="session")
def tone() -> Callable[..., np.ndarray]:
    """Make a sine: (S,) float32."""
    return _tone


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray]:
    """Make white noise: (S,) float32."""
    return _noise


@pytest.fixture(scope="session")
def silence() -> Callable[..., np.ndarray]:
    """Make digital silence: (S,) float32."""
    return _silence


@pytest.fixture(scope="session")
def stereo() -> Callable[..., np.ndarray]:
    """Make noise that differs between two channels: (S, 2) float32, as soundfile writes it."""
    return _stereo


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """Environment in which a child process finds the package that is tested here."""
    package = str(Path(patchifier.__file__).parents[1])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]),
    }


@pytest.fixture(scope="session")
def audio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six wav files of 1 to 3.5 s, two in each of three sub-folders."""
    root = tmp_path_factory.mktemp("audio") / "library"
    for number in range(6):
        folder = root / f"album{number // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        seconds = 1 + number / 2
        sound = _tone(220 * (number + 1), seconds=seconds) + _noise(
            seconds, level=0.01, seed=number
        )
        soundfile.write(folder / f"track{number}.wav", sound, RATE)
    return root


@pytest.fixture(scope="session")
def small_cache(audio_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of :func:`audio_folder`, decoded by real processes. Read it, never write to it."""
    from patchifier import cache

    out = tmp_path_factory.mktemp("cache") / "small"
    cache.prepare(datasets.load(audio_folder), out, workers=2)
    return out


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Set the size in bytes above which the system lets nobody write a file on: whoever does meets an OSError, as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size_b: resource.setrlimit(resource.RLIMIT_FSIZE, (size_b, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse what Windows refuses: to bring a file to the disk through a handle that only reads, to move or remove an open
    file or a folder with one, and to rename over what exists."""
    fcntl = pytest.importorskip("fcntl", reason="this is Windows")
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc to see what is open")

    def is_open(path: str | os.PathLike[str]) -> bool:
        real = os.path.realpath(path)
        handles = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        held = {os.readlink(handle) for handle in handles if os.path.lexists(handle)}
        maps = Path("/proc/self/maps").read_text().splitlines()
        held |= {line.split(maxsplit=5)[5] for line in maps if line.count("/")}
        return any(name == real or name.startswith(f"{real}/") for name in held)

    def refusing(name: str, *, moves: bool = False, replaces: bool = True) -> None:
        call = getattr(os, name)

        def refuse(*paths: str, **options: object) -> None:
            if not options and any(map(is_open, paths)):
                raise PermissionError(
                    errno.EACCES, "it is being used by another process", *paths[:1]
                )
            if moves and not replaces and os.path.lexists(paths[1]):
                raise FileExistsError(errno.EEXIST, "it exists already", paths[1])
            call(*paths, **options)

        monkeypatch.setattr(os, name, refuse)

    refusing("unlink")
    refusing("remove")
    refusing("replace", moves=True)
    refusing("rename", moves=True, replaces=False)
    sync = os.fsync

    def fsync(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture(scope="module")
def few_draws() -> Iterator[None]:
    """Let bootstraps draw 40 times: for tests that only need intervals to be there."""
    resample = statistics.resample

    def few(*arguments: object, draws: int = 0, **options: object) -> np.ndarray:
        return resample(*arguments, draws=40, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "resample", few)
        yield


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads stand for processes."""
    monkeypatch.setattr(jobs, "process_pool", ThreadPoolExecutor)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, threads: None) -> list[str]:
    """Names of the files that are decoded from now on."""
    names: list[str] = []
    blocks = audio.blocks

    def counted(path: str, **options: object) -> object:
        names.append(Path(path).name)
        return blocks(path, **options)

    monkeypatch.setattr(audio, "blocks", counted)
    return names


@pytest.fixture(scope="session")
def bundled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two small models, patchifier-base and patchifier-paper. Read it, never write to it."""
    import torch

    from patchifier import checkpoint
    from patchifier.checkpoint import Checkpoint
    from patchifier.nn.model import Patchifier

    home = tmp_path_factory.mktemp("bundled") / "weights"
    for seed, (name, layers) in enumerate({weights.DEFAULT: [0, -1], weights.PAPER: [-1]}.items()):
        config = update(
            Config(),
            {
                "model": {
                    "channels": [4, 4, 4, 4, 8],
                    "embed_dim": 16,
                    "n_layers": 2,
                    "n_heads": 2,
                    "mlp_dim": 32,
                },
                "embed": {"layers": layers},
            },
        )
        facts = {"hours": 1.5 + seed, "date": "2026-01-02"}
        checkpoint.save(
            home / name,
            Checkpoint(Patchifier(config, seed=seed), config, facts=facts),
            dtype=torch.float16,
        )
    return home


@pytest.fixture
def bundled(
    bundled_once: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Home of two small bundled models in place of those that the package has or has not."""
    home = Path(shutil.copytree(bundled_once, tmp_path_factory.mktemp("bundled") / "weights"))
    monkeypatch.setattr(weights, "ROOT", home)
    return home
