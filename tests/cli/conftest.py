"""Command lines as a user types them."""

import json
import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest

from patchifier import cli, jobs

PROCESS_POOL = jobs.process_pool


@pytest.fixture(scope="module")
def thread_pool():
    """Let threads stand for processes in a module, except in tests that ask for processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "process_pool", ThreadPoolExecutor)
        yield


@pytest.fixture
def processes(monkeypatch):
    """Work in real processes."""
    monkeypatch.setattr(jobs, "process_pool", PROCESS_POOL)


@pytest.fixture
def run(capsys):
    """Run a command line that ends with this exit code: what it prints (out) and says (err)."""

    def command(line, code=0):
        found = cli.main(shlex.split(line))
        shown = capsys.readouterr()
        assert found == code, shown.err
        return shown

    return command


@pytest.fixture
def told(run):
    """Run a command line with --json: what it prints, read."""
    return lambda line, code=0: json.loads(run(f"{line} --json", code).out)


@pytest.fixture(scope="session")
def tiny_settings():
    """Settings with which every step of the paper takes seconds: a small network, few steps."""
    sizes = {"channels": [4, 4, 8, 8, 16], "embed_dim": 32, "n_layers": 2, "n_heads": 2}
    stage = {"steps": 4, "batch_size": 4}
    return {
        "why": "Every step of the paper in minutes: a small network, few steps.",
        "model": {**sizes, "mlp_dim": 64, "max_patches": 2},
        "pretrain": {"n_patches": 2, "stage_one": stage, "stage_two": stage, "validate_every": 2},
        "embed": {"hop_patches": 1},
        "finetune": {"training": {"steps": 4, "batch_size": 16}, "validate_every": 2},
    }
