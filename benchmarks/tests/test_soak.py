"""The verdict of the soak test: flat is flat, and each kind of leak is found."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))
import soak


def samples(*, leak_mb: float = 0.0, count: int = 720, handles: int = 0, threads: int = 0):
    """An hour of samples: memory with 1 % of noise, files that are open now and then."""
    chance, hours = np.random.default_rng(0), np.linspace(0, 1, count)
    mb = 400 + 60 * (hours > 0.2) + leak_mb * hours + 4 * chance.standard_normal(count)
    opened = 9 + chance.integers(0, 4, count) + np.int64(handles * hours)
    return np.stack([3600 * hours, mb, opened, 4 + np.int64(threads * hours)], axis=1)


def test_memory_that_rises_in_warm_up_alone_and_files_open_for_a_moment_are_flat():
    facts, grew = soak.judge(samples())
    assert grew == []
    assert abs(facts["rise_mb"]) < 2
    assert facts["handles"] == [9, 9]


@pytest.mark.parametrize(
    ("leak", "name"),
    [({"leak_mb": 20.0}, "memory"), ({"handles": 2}, "handles"), ({"threads": 2}, "threads")],
)
def test_a_leak_is_found(leak, name):
    assert soak.judge(samples(**leak))[1] == [name]


def test_a_process_that_was_hardly_seen_is_not_called_flat():
    assert soak.judge(samples(count=5))[1] == ["too few samples"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_open_files_and_memory_of_a_process_are_seen(tmp_path):
    mb, handles, threads = soak.sample("self")
    with (tmp_path / "open").open("w"):
        held = np.ones(2**24)
        after = soak.sample("self")
    assert after[0] > mb + 100, held.size
    assert after[1] == handles + 1
    assert after[2] == threads
