"""Work in processes: started side by side, bounded in what is held."""

import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from patchifier import processes


def double(shared: None, number: int) -> int:
    return 2 * number


def test_processes_start_side_by_side_and_not_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    there = []

    class Watched(ProcessPoolExecutor):
        def submit(self, way, *arguments) -> Future:  # type: ignore[no-untyped-def, override]
            if way is processes._do:
                there.append(len(self._processes))
            return super().submit(way, *arguments)

    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(processes, "process_pool", lambda workers, **options: Watched(workers, spawn, **options))
    assert list(processes.in_processes(double, range(3), workers=2)) == [0, 2, 4]
    assert there[0] == 2


def test_answers_do_not_pile_up_before_they_are_asked_for(threads: None) -> None:
    begun = []
    answers = processes.in_processes(lambda shared, number: begun.append(number), range(100), workers=2)
    next(answers)
    time.sleep(0.2)
    assert len(begun) <= processes.AHEAD * 2
    answers.close()
