"""Work in processes: started side by side, bounded in what is held."""

import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from patchifier import processes
from patchifier.config import RequestError


def double(shared: None, number: int) -> int:
    return 2 * number


def test_processes_start_side_by_side_and_not_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = []

    class Watched(ProcessPoolExecutor):
        def submit(self, way, *arguments) -> Future:  # type: ignore[no-untyped-def, override]
            if way is processes._do:
                there.append(len(self._processes))
            return super().submit(way, *arguments)

    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(
        processes, "process_pool", lambda workers, **options: Watched(workers, spawn, **options)
    )
    assert list(processes.in_processes(double, range(3), workers=2)) == [0, 2, 4]
    assert there[0] == 2


def test_answers_do_not_pile_up_before_they_are_asked_for(threads: None) -> None:
    begun = []
    answers = processes.in_processes(
        lambda shared, number: begun.append(number), range(100), workers=2
    )
    next(answers)
    time.sleep(0.2)
    assert len(begun) <= processes.AHEAD * 2
    answers.close()


def length(shared: np.ndarray, number: int) -> int:
    return len(shared) + number


def test_what_is_large_reaches_every_process() -> None:
    assert list(
        processes.in_processes(length, range(3), workers=2, shared=np.zeros(1_000_000))
    ) == [1_000_000, 1_000_001, 1_000_002]


UNGUARDED = """
import numpy as np
from patchifier import processes

print(list(processes.in_processes(len, [1], workers=1, shared=np.zeros(1_000_000))))
"""


def test_a_script_without_a_main_guard_is_told_even_where_much_is_shared(
    tmp_path: Path, child_environment: dict[str, str]
) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "RequestError: the worker processes could not start" in done.stderr


@pytest.mark.parametrize("workers", [0, -3])
def test_no_processes_are_too_few(workers: int) -> None:
    with pytest.raises(RequestError, match=f"workers is {workers}, expected at least 1"):
        list(processes.in_processes(double, range(3), workers=workers))
