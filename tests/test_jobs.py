"""The job engine: processes, crashes, reasons, progress, the lock of a folder."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, process
from pathlib import Path

import numpy as np
import pytest

from patchifier import jobs
from patchifier.config import RequestError


def double(shared: None, numbers: Sequence[int]) -> list[int]:
    return [2 * number for number in numbers]


def test_processes_start_side_by_side_and_not_one_after_the_other(monkeypatch):
    there, spawn = [], multiprocessing.get_context("spawn")

    class Watched(ProcessPoolExecutor):
        def submit(self, way, *arguments) -> Future:  # type: ignore[no-untyped-def, override]
            if way is jobs._do:
                there.append(len(self._processes))
            return super().submit(way, *arguments)

    def pool(workers: int, **options: object) -> Watched:
        return Watched(workers, spawn, **options)

    monkeypatch.setattr(jobs, "process_pool", pool)
    assert list(jobs.run(double, [[0], [1, 2]], workers=2)) == [0, 2, 4]
    assert there[0] == 2


def test_answers_do_not_pile_up_before_they_are_asked_for(threads):
    begun = []

    def note(shared: None, numbers: list[int]) -> list[int]:
        begun.extend(numbers)
        return numbers

    answers = jobs.run(note, [[number] for number in range(100)], workers=2)
    next(answers)
    time.sleep(0.2)
    assert len(begun) <= jobs.AHEAD * 2
    answers.close()


def length(shared: np.ndarray, numbers: Sequence[int]) -> list[int]:
    return [len(shared) + number for number in numbers]


def test_what_is_large_reaches_every_process():
    shared, found = np.zeros(1_000_000), [1_000_000, 1_000_001, 1_000_002]
    assert list(jobs.run(length, [[0], [1], [2]], workers=2, shared=shared)) == found


UNGUARDED = """
import numpy as np
from patchifier import jobs

print(list(jobs.run(len, [[1]], workers=1, shared=np.zeros(1_000_000))))
"""


def test_a_script_without_a_main_guard_is_told_even_where_much_is_shared(
    tmp_path, child_environment
):
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, str(tmp_path / "script.py")]
    options = {"env": child_environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode != 0
    assert "RequestError: the worker processes could not start" in done.stderr


@pytest.mark.parametrize("workers", [0, -3])
def test_no_processes_are_too_few(workers):
    with pytest.raises(RequestError, match=f"workers is {workers}, expected at least 1"):
        list(jobs.run(double, [[0], [1]], workers=workers))


def deadly(shared: None, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Kills its process on multiples of 5."""
    if any(number % 5 == 0 for number in numbers):
        os._exit(139)
    return [(number, len(numbers)) for number in numbers]


def test_an_item_that_kills_its_process_is_named_and_costs_its_batch_nothing_else():
    """Other batches stay whole; of a batch that died again, every item is done alone."""
    batches = [[1, 2], [3, 5, 6], [10], [7, 8]]
    found = list(jobs.run(deadly, batches, workers=2, name=lambda n: f"n{n}"))
    five, ten = (f"n{number}: the decoder crashed on this file." for number in (5, 10))
    assert found == [(1, 2), (2, 2), (3, 1), five, (6, 1), ten, (7, 2), (8, 2)]


def blocked(shared: None, numbers: Sequence[int]) -> list[bool]:
    return [signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()) for _ in numbers]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system has no masks")
def test_a_process_that_starts_leaves_ctrl_c_to_its_parent():
    assert list(jobs.run(blocked, [[0], [1]], workers=2)) == [True, True]
    assert blocked(None, [0]) == [False]


def test_an_interrupted_job_leaves_no_thread_that_closes_its_pipe_at_exit(monkeypatch):
    join = process._SafeQueue.join_thread

    def late(queue: process._SafeQueue) -> None:  # the pipe is closed next
        time.sleep(0.5)
        join(queue)

    monkeypatch.setattr(process._SafeQueue, "join_thread", late)
    results = jobs.run(double, [[number] for number in range(20)], workers=1)
    next(results)
    managers = list(process._threads_wakeups)
    results.close()
    assert managers
    assert not any(manager.is_alive() for manager in managers)


def once(folder: Path, numbers: Sequence[int]) -> list[int]:
    """Kills its process the first time."""
    mark = folder / "tried"
    if not mark.exists():
        mark.touch()
        os._exit(139)
    return list(numbers)


def test_a_batch_whose_process_died_is_tried_again(tmp_path):
    assert list(jobs.run(once, [[1, 2]], workers=1, shared=tmp_path)) == [1, 2]


HOLD = """
import sys, time
from pathlib import Path
from patchifier import jobs

with jobs.folder_lock(Path(sys.argv[1]), "test"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_refuses_a_second_job_and_is_released_by_a_kill(tmp_path, child_environment):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    first = subprocess.Popen(command, env=child_environment, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(RequestError, match="another test is working in this folder"),
            jobs.folder_lock(tmp_path, "test"),
        ):
            pass
    finally:
        first.kill()
        first.communicate()
    with jobs.folder_lock(tmp_path, "test"):
        assert os.listdir(tmp_path) == [jobs.LOCK]
    assert os.listdir(tmp_path) == []


def test_a_lock_of_a_folder_that_was_removed_leaves_the_next_ones_lock_alone(tmp_path):
    with jobs.folder_lock(tmp_path / "none", "test"):
        pass
    assert not (tmp_path / "none").exists()
    folder = tmp_path / "job"
    folder.mkdir()
    with jobs.folder_lock(folder, "test"):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / jobs.LOCK).write_text("of the next job")
    assert (folder / jobs.LOCK).read_text() == "of the next job"


def test_a_lock_needs_no_permission_to_write(tmp_path, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    with jobs.folder_lock(tmp_path, "test"):
        assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_stops_no_job_and_keeps_no_lock_file(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    for _ in range(2):  # the second one meets what a killed job left
        with jobs.folder_lock(tmp_path, "test"):
            pass
        (tmp_path / jobs.LOCK).write_text("pid 1 of another machine")


def test_an_output_file_is_locked_beside_it(tmp_path):
    with jobs.file_lock(tmp_path / "out.csv", "predict"):
        with (
            pytest.raises(RequestError, match=r"out\.csv: another predict is writing this file"),
            jobs.file_lock(tmp_path / "out.csv", "predict"),
        ):
            pass
        with jobs.file_lock(tmp_path / "other.csv", "predict"):
            pass
    assert os.listdir(tmp_path) == []


def test_a_meter_counts_what_was_done_before_and_rates_what_was_done_now(monkeypatch):
    shown = list[tuple[int, int, str]]()
    clock = iter([10.0, 12.0, 14.0, 20.0])
    monkeypatch.setattr(jobs.time, "monotonic", lambda: next(clock))
    meter = jobs.Meter(lambda *what: shown.append(what), 10, done=3, skipped=1)
    meter.begin()
    meter.add(audio_s=60.0)
    meter.add(skipped=1)
    meter.add(5, kept=1)
    meter.begin()  # all is done
    assert shown == [
        (3, 10, ""),
        (4, 10, "0.5 files/s, 30x real time, 1 skipped"),
        (5, 10, "0.2 files/s, 15x real time, 2 skipped"),
        (10, 10, "0.5 files/s, 6x real time, 2 skipped"),
    ]
