"""The cache: good and bad files, resuming, damage, reading.

Most tests decode in threads of this process, which start at once; those about processes start real ones.
"""

import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from patchifier import audio, cache, datasets, spectrogram
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.datasets import Clip, Dataset
from patchifier.tasks import Task

RATE = 22_050


@pytest.fixture
def library(audio_folder: Path, tmp_path: Path) -> Path:
    """Copy of the audio folder that a test may change."""
    return Path(shutil.copytree(audio_folder, tmp_path / "library"))


def skipped(out: Path) -> dict[str, tuple[str, str]]:
    with (out / "skipped.csv").open(newline="", encoding="utf-8") as stream:
        return {row["id"]: (row["path"], row["reason"]) for row in csv.DictReader(stream)}


def contents(out: Path) -> dict[str, np.ndarray]:
    found = cache.Cache(out)
    return {clip.id: np.array(found.log_mel(index)) for index, clip in enumerate(found.clips)}


def require_equal(first: Path, second: Path) -> None:
    one, other = contents(first), contents(second)
    assert list(one) == list(other)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


# --- good and bad files ---


@pytest.fixture(scope="module")
def mixed(
    tmp_path_factory: pytest.TempPathFactory, tone: Callable, noise: Callable, silence: Callable
) -> Path:
    """Folder of good and bad files, bad ones first, in the middle and last."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "a_empty.wav").touch()
    (root / "b_text.mp3").write_text("not a song, but a page of notes about one\n" * 200)
    soundfile.write(root / "c_tone.wav", tone(seconds=2), RATE)
    for suffix in ("mp3", "wav", "flac", "ogg"):
        half = root / f"d_half.{suffix}"
        soundfile.write(half, noise(20), RATE)
        os.truncate(half, half.stat().st_size // 2)
    soundfile.write(root / "e_short.wav", tone(seconds=0.1), RATE)
    soundfile.write(root / "f_silence.flac", silence(1.5), RATE)
    soundfile.write(
        root / "g_eight.wav", np.stack([noise(1, seed=seed) for seed in range(8)], axis=1), RATE
    )
    soundfile.write(root / "h_fast.wav", tone(1000, seconds=1, rate=192_000), 192_000)
    wrong = tone()
    wrong[99] = np.nan
    soundfile.write(root / "z_nan.wav", wrong, RATE, subtype="FLOAT")
    return root


@pytest.fixture(scope="module")
def mixed_cache(
    mixed: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, cache.Prepared]:
    out = tmp_path_factory.mktemp("mixed_cache") / "out"
    return out, cache.prepare(datasets.load(mixed), out, workers=2)


BAD = {
    "a_empty.wav": "is empty",
    "b_text.mp3": "not an audio file",
    "d_half.flac": "truncated",
    "d_half.mp3": "truncated",
    "d_half.ogg": "truncated",
    "d_half.wav": "truncated",
    "z_nan.wav": "not numbers",
}
GOOD = ["c_tone.wav", "e_short.wav", "f_silence.flac", "g_eight.wav", "h_fast.wav"]


def test_bad_files_are_named_with_a_reason_and_good_ones_are_all_there(
    mixed: Path, mixed_cache: tuple[Path, cache.Prepared]
) -> None:
    out, prepared = mixed_cache
    assert [clip.id for clip in cache.Cache(out).clips] == GOOD
    rows = skipped(out)
    assert list(rows) == list(BAD)
    for name, reason in BAD.items():
        path, why = rows[name]
        assert path == str(mixed / name)
        assert reason in why
        assert name in why
    assert {clip.id: why for clip, why in prepared.skipped} == {
        name: why for name, (_, why) in rows.items()
    }


def test_prepare_counts_what_it_did(mixed_cache: tuple[Path, cache.Prepared]) -> None:
    _, prepared = mixed_cache
    assert (prepared.clips, prepared.decoded, len(prepared.skipped)) == (5, 5, 7)
    assert prepared.audio_s == pytest.approx(2 + 0.1 + 1.5 + 1 + 1, abs=5 * 512 / RATE)


def test_values_are_the_log_mel_in_half_precision(
    mixed: Path, mixed_cache: tuple[Path, cache.Prepared]
) -> None:
    out, _ = mixed_cache
    for name, values in contents(out).items():
        expected = spectrogram.log_mel(audio.load(mixed / name)).T
        assert values.dtype == np.float16
        assert values.shape == expected.shape
        np.testing.assert_allclose(
            values, expected, atol=6e-4
        )  # half a step of float16 at 1 is 5e-4
    assert (contents(out)["f_silence.flac"] == -1).all()
    assert contents(out)["e_short.wav"].shape == (1 + 2205 // 512, 64)


def test_finished_cache_verifies(
    mixed_cache: tuple[Path, cache.Prepared], small_cache: Path
) -> None:
    assert cache.Cache(mixed_cache[0]).verify() == []
    assert cache.Cache(small_cache).verify() == []


def test_part_of_a_file_is_what_is_cached(
    audio_folder: Path, tmp_path: Path, threads: None
) -> None:
    path = str(audio_folder / "album2" / "track5.wav")
    cache.prepare(
        Dataset("parts", (Clip("first", path, 0, 1), Clip("second", path, 1, 3))), tmp_path / "out"
    )
    found = contents(tmp_path / "out")
    np.testing.assert_allclose(
        found["second"], spectrogram.log_mel(audio.load(path)[RATE : 3 * RATE]).T, atol=6e-4
    )
    assert len(found["first"]) == 1 + RATE // 512


def test_nothing_readable_is_refused_with_the_first_reason(tmp_path: Path, threads: None) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(
        RequestError, match=r"none of the 1 clips could be read.*skipped\.csv.*empty\.wav: is empty"
    ):
        cache.prepare(datasets.load(tmp_path), tmp_path / "out")
    assert list(skipped(tmp_path / "out")) == ["empty.wav"]
    with pytest.raises(RequestError, match="not finished"):
        cache.Cache(tmp_path / "out")


def test_file_whose_name_is_not_unicode_is_skipped_and_named(
    library: Path, tmp_path: Path, threads: None
) -> None:
    """File systems hold any bytes; Python stands them in for by lone surrogates."""
    good = datasets.load(library).clips
    clips = (*good, Clip("m\udcfasica.wav", str(library / "m\udcfasica.wav")))
    prepared = cache.prepare(Dataset("old", clips), tmp_path / "out")
    assert prepared.clips == 6
    assert "sica.wav" in (tmp_path / "out" / "skipped.csv").read_bytes().decode(
        "utf-8", "surrogateescape"
    )


def test_progress_ends_with_all_clips(library: Path, tmp_path: Path, threads: None) -> None:
    (library / "bad.wav").touch()
    calls: list[tuple[int, int, str]] = []
    cache.prepare(
        datasets.load(library), tmp_path / "out", progress=lambda *call: calls.append(call)
    )
    assert [call[0] for call in calls] == list(range(1, 8))
    assert {call[1] for call in calls} == {7}
    assert calls[-1][2].endswith("x real time, 1 skipped")


def test_two_at_once_in_one_folder_are_refused(
    library: Path, tmp_path: Path, threads: None
) -> None:
    def second(done: int, total: int, note: str) -> None:
        with pytest.raises(RequestError, match="another prepare is working"):
            cache.prepare(datasets.load(library), tmp_path / "out")

    assert cache.prepare(datasets.load(library), tmp_path / "out", progress=second).clips == 6
    assert cache.prepare(datasets.load(library), tmp_path / "out").decoded == 0


# --- again, more, and with other settings ---


def test_second_prepare_decodes_nothing_and_changes_nothing(
    library: Path, tmp_path: Path, decoded: list[str]
) -> None:
    first = cache.prepare(datasets.load(library), tmp_path / "out")
    assert first.decoded == len(decoded) == 6
    before = {
        path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()
    }
    second = cache.prepare(datasets.load(library), tmp_path / "out")
    assert (second.clips, second.decoded, second.audio_s) == (6, 0, first.audio_s)
    assert len(decoded) == 6
    assert before == {
        path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()
    }


def test_new_file_is_decoded_alone(
    library: Path, tmp_path: Path, decoded: list[str], noise: Callable
) -> None:
    cache.prepare(datasets.load(library), tmp_path / "out")
    decoded.clear()
    soundfile.write(library / "album0" / "new.wav", noise(), RATE)
    prepared = cache.prepare(datasets.load(library), tmp_path / "out")
    assert decoded == ["new.wav"]
    assert (prepared.clips, prepared.decoded) == (7, 1)
    assert [clip.id for clip in cache.Cache(tmp_path / "out").clips][:2] == [
        "album0/new.wav",
        "album0/track0.wav",
    ]
    assert cache.Cache(tmp_path / "out").verify() == []


def test_changed_file_is_decoded_again(
    library: Path, tmp_path: Path, decoded: list[str], noise: Callable
) -> None:
    cache.prepare(datasets.load(library), tmp_path / "out")
    decoded.clear()
    soundfile.write(library / "album1" / "track2.wav", noise(2), RATE)
    cache.prepare(datasets.load(library), tmp_path / "out")
    assert decoded == ["track2.wav"]
    np.testing.assert_allclose(
        contents(tmp_path / "out")["album1/track2.wav"], spectrogram.log_mel(noise(2)).T, atol=0.01
    )
    decoded.clear()
    cache.prepare(datasets.load(library), tmp_path / "out")
    assert decoded == []


def test_changed_part_is_decoded_again(
    audio_folder: Path, tmp_path: Path, decoded: list[str]
) -> None:
    path = str(audio_folder / "album2" / "track5.wav")
    for end_s, frames in ((1.0, 44), (2.0, 87)):
        cache.prepare(Dataset("part", (Clip("clip", path, 0, end_s),)), tmp_path / "out")
        assert cache.Cache(tmp_path / "out").frames.tolist() == [frames]
    assert len(decoded) == 2


def test_deleted_file_leaves_the_cache(library: Path, tmp_path: Path, decoded: list[str]) -> None:
    cache.prepare(datasets.load(library), tmp_path / "out")
    (library / "album0" / "track0.wav").unlink()
    assert cache.prepare(datasets.load(library), tmp_path / "out").clips == 5
    assert "album0/track0.wav" not in contents(tmp_path / "out")


def test_copies_of_one_file_are_not_decoded_a_second_time(
    library: Path, tmp_path: Path, decoded: list[str]
) -> None:
    shutil.copy(library / "album0" / "track0.wav", library / "album0" / "copy.wav")
    assert cache.prepare(datasets.load(library), tmp_path / "out").clips == 7
    decoded.clear()
    assert cache.prepare(datasets.load(library), tmp_path / "out").decoded == 0
    assert decoded == []
    found = contents(tmp_path / "out")
    np.testing.assert_array_equal(found["album0/copy.wav"], found["album0/track0.wav"])


def test_other_settings_are_refused_by_name(audio_folder: Path, small_cache: Path) -> None:
    before = (small_cache / "index.jsonl").read_bytes()
    with pytest.raises(
        RequestError, match=r"n_fft is 2048, not 1024; top_db is None, not 80\.0"
    ) as caught:
        cache.prepare(
            datasets.load(audio_folder),
            small_cache,
            config=SpectrogramConfig(n_fft=1024, top_db=80.0),
        )
    assert "hop" not in str(caught.value)
    assert (small_cache / "index.jsonl").read_bytes() == before
    cache.Cache(small_cache).require(SpectrogramConfig())
    with pytest.raises(RequestError, match="mel_scale is 'slaney', not 'htk'"):
        cache.Cache(small_cache).require(SpectrogramConfig(mel_scale="htk"))


def test_folder_that_is_no_cache_is_left_alone(audio_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="exists and is not a cache"):
        cache.prepare(datasets.load(audio_folder), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_cache_of_a_newer_format_is_refused(small_cache: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small_cache, tmp_path / "out"))
    facts = json.loads((out / "cache.json").read_text())
    (out / "cache.json").write_text(json.dumps({**facts, "format": cache.FORMAT + 1}))
    with pytest.raises(RequestError, match="format 2, this version reads up to 1"):
        cache.Cache(out)


# --- shards ---


def parts_of(frames: int, count: int) -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    return [chance.random((frames, 64)).astype(np.float16) for _ in range(count)]


def test_shard_is_the_file_that_numpy_would_write(tmp_path: Path) -> None:
    parts = [*parts_of(3, 1), *parts_of(5, 2)]
    writer = cache._ShardWriter(tmp_path)
    rows = [
        writer.add(Clip(str(number), ""), cache._Decoded("", part))
        for number, part in enumerate(parts)
    ]
    writer.close()
    np.save(tmp_path / "expected.npy", np.concatenate(parts))
    assert (tmp_path / "shards" / "00000.npy").read_bytes() == (
        tmp_path / "expected.npy"
    ).read_bytes()
    assert [row["first"] for row in rows] == [0, 3, 8]


def test_build_holds_a_shard_and_never_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_FRAMES", 20_000)  # 2.6 MB
    (part,) = parts_of(1000, 1)
    writer = cache._ShardWriter(tmp_path)
    tracemalloc.start()
    for number in range(100):
        writer.add(Clip(str(number), ""), cache._Decoded("", part.copy()))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list((tmp_path / "shards").glob("*.npy"))) == 5
    assert most < 1.5 * 20_000 * 64 * 2


# --- kills and damage ---


BUILD = """
import sys, time
from patchifier import cache, datasets

def slowly(done, total, note):
    print(done, flush=True)
    time.sleep(0.05)

if __name__ == "__main__":
    cache.SHARD_FRAMES = int(sys.argv[3])
    cache.prepare(datasets.load(sys.argv[1]), sys.argv[2], workers=1, progress=slowly)
"""


@pytest.fixture
def build(
    tmp_path: Path, child_environment: dict[str, str]
) -> Callable[[Path, Path], subprocess.Popen]:
    """Start a build in a process of its own, in shards of 100 frames; it prints the number of clips done."""
    script = tmp_path / "build.py"
    script.write_text(BUILD)

    def start(source: Path, out: Path) -> subprocess.Popen:
        command = [sys.executable, str(script), str(source), str(out), "100"]
        return subprocess.Popen(
            command,
            env=child_environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def kill_all(process: subprocess.Popen) -> None:
    """Kill a build and the processes that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_build_goes_on_and_ends_as_if_it_had_not_been(
    library: Path,
    tmp_path: Path,
    build: Callable,
    small_cache: Path,
    decoded: list[str],
) -> None:
    out = tmp_path / "out"
    process = build(library, out)
    for _ in range(4):
        process.stdout.readline()
    kill_all(process)
    finished = len(cache._shard_rows(out))
    assert 0 < finished < 6
    with pytest.raises(RequestError, match="not finished"):
        cache.Cache(out)
    prepared = cache.prepare(datasets.load(library), out)
    assert prepared.decoded == len(decoded) == 6 - finished
    assert cache.Cache(out).verify() == []
    require_equal(out, small_cache)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_build_killed_at_any_moment_goes_on(
    seed: int, library: Path, tmp_path: Path, build: Callable, small_cache: Path
) -> None:
    out, chance = tmp_path / "out", random.Random(seed)
    for _ in range(3):
        process = build(library, out)
        if chance.random() < 0.8:
            process.stdout.readline()  # the first clip is done
        time.sleep(chance.uniform(0, 0.4))
        kill_all(process)
    cache.prepare(datasets.load(library), out, workers=2)
    assert cache.Cache(out).verify() == []
    require_equal(out, small_cache)


def test_processes_of_a_killed_build_end_too(
    library: Path, tmp_path: Path, build: Callable
) -> None:
    """They hold the other end of the pipe, which closes when the last of them is gone."""
    process = build(library, tmp_path / "out")
    process.stdout.readline()
    process.kill()
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        kill_all(process)
        pytest.fail(
            "decoding processes go on for ever after the build that started them was killed"
        )


def test_shard_without_its_list_is_ignored_and_built_anew(
    library: Path, tmp_path: Path, decoded: list[str], small_cache: Path
) -> None:
    out = tmp_path / "out"
    cache.prepare(datasets.load(library), out)
    decoded.clear()
    (out / "shards" / "00000.jsonl").unlink()
    (out / "index.jsonl").unlink()
    os.truncate(out / "shards" / "00000.npy", 1000)
    (out / "shards" / ".00001.npy.new-1").write_bytes(b"half a shard")
    assert cache.prepare(datasets.load(library), out).decoded == len(decoded) == 6
    assert cache.Cache(out).verify() == []
    require_equal(out, small_cache)


def test_flipped_byte_is_found_and_its_clip_named(small_cache: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small_cache, tmp_path / "out"))
    rows = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()[1:]]
    row = rows[3]
    with (out / "shards" / f"{row['shard']:05d}.npy").open("r+b") as stream:
        place = (
            np.load(out / "shards" / f"{row['shard']:05d}.npy", mmap_mode="r").offset
            + (row["first"] * 64 + 1000) * 2
        )
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))
    problems = cache.Cache(out).verify()
    assert len(problems) == 1
    assert problems[0].startswith(f"{row['clip']['id']}: checksum differs")


def test_truncated_shard_is_refused_by_name(small_cache: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small_cache, tmp_path / "out"))
    shard = out / "shards" / "00000.npy"
    os.truncate(shard, shard.stat().st_size - 100)
    with pytest.raises(RequestError, match=r"00000\.npy cannot be read"):
        cache.Cache(out)


def test_truncated_index_is_refused(small_cache: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small_cache, tmp_path / "out"))
    lines = (out / "index.jsonl").read_text().splitlines(keepends=True)
    (out / "index.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(RequestError, match="holds 5 clips, expected 6"):
        cache.Cache(out)


def test_what_is_no_cache_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"is not a cache.*patchifier prepare"):
        cache.Cache(tmp_path)


@dataclasses.dataclass(frozen=True)
class Deadly:
    """Path that kills the process which opens it, as a crash in a decoder's C code does."""

    name: str

    def __fspath__(self) -> str:
        os._exit(139)

    def __str__(self) -> str:
        return self.name


def test_file_that_kills_its_decoder_is_named_and_the_others_survive(
    audio_folder: Path, tmp_path: Path, small_cache: Path
) -> None:
    good = datasets.load(audio_folder).clips[:2]
    clips = (good[0], Clip("deadly.wav", Deadly("deadly.wav")), good[1])  # type: ignore[arg-type]
    prepared = cache.prepare(Dataset("crash", clips), tmp_path / "out", workers=1)
    assert {clip.id: reason for clip, reason in prepared.skipped} == {
        "deadly.wav": "deadly.wav: the decoder crashed on this file."
    }
    assert skipped(tmp_path / "out")["deadly.wav"][0] == "deadly.wav"
    found, expected = contents(tmp_path / "out"), contents(small_cache)
    assert list(found) == [clip.id for clip in good]
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


def test_decoder_that_dies_while_its_answers_are_written_stops_nothing(
    audio_folder: Path, tmp_path: Path, small_cache: Path
) -> None:
    """The pool breaks between two looks at it, so that the next clip cannot be submitted."""
    good = datasets.load(audio_folder).clips
    clips = (*good[:1], Clip("deadly.wav", Deadly("deadly.wav")), *good[1:])  # type: ignore[arg-type]
    prepared = cache.prepare(
        Dataset("crash", clips), tmp_path / "out", workers=1, progress=lambda *_: time.sleep(0.5)
    )
    assert [clip.id for clip, _ in prepared.skipped] == ["deadly.wav"]
    require_equal(tmp_path / "out", small_cache)


def test_prepare_in_a_script_without_a_main_guard_says_so(
    audio_folder: Path, tmp_path: Path, child_environment: dict[str, str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom patchifier import cache, datasets\ncache.prepare(datasets.load(sys.argv[1]), sys.argv[2])\n"
    )
    command = [sys.executable, str(script), str(audio_folder), str(tmp_path / "out")]
    done = subprocess.run(
        command, env=child_environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "RequestError: the worker processes could not start" in done.stderr


# --- reading ---


def test_index_carries_each_clip_whole_and_the_task(
    audio_folder: Path, tmp_path: Path, threads: None
) -> None:
    paths = [clip.path for clip in datasets.load(audio_folder).clips]
    clips = (
        Clip(
            "z",
            paths[0],
            0.1,
            0.9,
            "train",
            3,
            "group",
            ["loud", "rock"],
            {"artist": "Éric", "licence": "CC-BY-4.0"},
        ),
        Clip("a", paths[1], target=["rock"]),
    )
    task = Task("many-of", ("loud", "rock"))
    cache.prepare(Dataset("named", clips, task), tmp_path / "out")
    found = cache.Cache(tmp_path / "out")
    assert found.clips == clips
    assert found.task == task
    assert found.name == "named"
    assert found.spectrogram == SpectrogramConfig()


def test_cache_without_targets_has_no_task(small_cache: Path, audio_folder: Path) -> None:
    found = cache.Cache(small_cache)
    assert found.task is None
    assert found.clips == datasets.load(audio_folder).clips
    assert found.frames.tolist() == [1 + int((1 + number / 2) * RATE) // 512 for number in range(6)]


def test_settings_of_the_cache_are_those_it_was_made_with(
    audio_folder: Path, tmp_path: Path, threads: None
) -> None:
    config = SpectrogramConfig(
        sample_rate=16_000, n_mels=32, f_max_hz=8000.0, reference="max", top_db=80.0
    )
    cache.prepare(datasets.load(audio_folder), tmp_path / "out", config=config)
    found = cache.Cache(tmp_path / "out")
    assert found.spectrogram == config
    assert found.log_mel(0).shape == (1 + 16_000 // 512, 32)
    assert found.read([0, 1])[0, -1].tolist() == [float(np.float16(-0.8))] * 32


def test_read_pads_with_silence(small_cache: Path) -> None:
    found = cache.Cache(small_cache)
    batch = found.read([4, 0, 4])
    assert batch.shape == (3, found.frames[4], 64)
    assert batch.dtype == torch.float16
    short = found.frames[0]
    np.testing.assert_array_equal(batch[1, :short], found.log_mel(0))
    assert (batch[1, short:] == -1).all()
    assert torch.equal(batch[0], batch[2])


def test_read_gives_the_spans_that_are_asked_for(small_cache: Path) -> None:
    found = cache.Cache(small_cache)
    spans = np.array([[10, 30], [0, 7], [40, 44]])
    batch = found.read(np.array([2, 0, 0]), spans)
    assert batch.shape == (3, 20, 64)
    for row, index, (first, last) in zip(batch, (2, 0, 0), spans, strict=True):
        np.testing.assert_array_equal(row[: last - first], found.log_mel(index)[first:last])
        assert (row[last - first :] == -1).all()


def test_clip_is_read_as_a_view_of_the_file_and_ends_where_it_ends(small_cache: Path) -> None:
    found = cache.Cache(small_cache)
    assert isinstance(found.log_mel(0), np.memmap)
    assert len(found.log_mel(0, 0, 10**6)) == found.frames[0]
    assert not found.log_mel(0).flags.writeable
