"""The cache: good and bad files, resuming, damage, reading.

Most tests decode in threads of this process, which start at once; those about processes start real ones.
"""

import csv
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

from patchifier import audio, cache, datasets, spectrogram
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.datasets import Clip, Dataset
from patchifier.tasks import Task
from tests import audio_files as made
from tests.deadly import Deadly

RATE = 22_050


@pytest.fixture
def library(audio_folder: Path, tmp_path: Path) -> Path:
    """Copy of the audio folder that a test may change."""
    return Path(shutil.copytree(audio_folder, tmp_path / "library"))


@pytest.fixture
def copy(small_cache: Path, tmp_path: Path) -> Path:
    """Copy of the small cache that a test may damage."""
    return Path(shutil.copytree(small_cache, tmp_path / "copy"))


@pytest.fixture
def prepare(library: Path, tmp_path: Path, decoded: list[str]) -> Callable[[], cache.Prepared]:
    """Prepare the library, or another data set, in a folder; forget what was decoded before."""

    def run(data: Dataset | None = None, **options) -> cache.Prepared:
        decoded.clear()
        return cache.prepare(data or datasets.load(library), tmp_path / "out", **options)

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


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
    eight = np.stack([noise(1, seed=seed) for seed in range(8)], axis=1)
    soundfile.write(root / "g_eight.wav", eight, RATE)
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_skipped_and_a_repaired_header_is_a_note(tmp_path: Path, threads: None) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    made.wav(tmp_path / "cut.wav", 2.0, stated=0)
    clips = tuple(Clip(name, str(tmp_path / f"{name}.wav")) for name in ("pipe", "cut"))
    prepared = cache.prepare(Dataset("files", clips), tmp_path / "out")
    assert [clip.id for clip, _ in prepared.skipped] == ["pipe"]
    ((clip, note),) = prepared.notes
    assert clip.id == "cut"
    assert "states 0 bytes" in note
    assert prepared.audio_s == pytest.approx(2.0, abs=0.03)


def test_bad_files_are_named_with_a_reason_and_good_ones_are_all_there(mixed, mixed_cache):
    out, prepared = mixed_cache
    assert [clip.id for clip in cache.Cache(out).clips] == GOOD
    rows = skipped(out)
    assert list(rows) == list(BAD)
    for name, (path, why) in rows.items():
        assert path == str(mixed / name)
        assert BAD[name] in why
        assert name not in why
    assert [(clip.id, why) for clip, why in prepared.skipped] == [
        (name, f"{path}: {why}") for name, (path, why) in rows.items()
    ]
    assert (prepared.clips, prepared.decoded, len(prepared.skipped)) == (5, 5, 7)
    assert prepared.audio_s == pytest.approx(2 + 0.1 + 1.5 + 1 + 1, abs=5 * 512 / RATE)


def test_values_are_the_log_mel_in_half_precision(mixed, mixed_cache):
    found = contents(mixed_cache[0])
    for name, values in found.items():
        expected = spectrogram.log_mel(audio.load(mixed / name)).T
        assert (values.dtype, values.shape) == (np.float16, expected.shape)
        np.testing.assert_allclose(values, expected, atol=6e-4)  # half a float16 step at 1: 5e-4
    assert (found["f_silence.flac"] == -1).all()
    assert found["e_short.wav"].shape == (1 + 2205 // 512, 64)


def test_part_of_a_file_is_what_is_cached(audio_folder, prepare, out):
    path = str(audio_folder / "album2" / "track5.wav")
    prepare(Dataset("parts", (Clip("first", path, 0, 1), Clip("second", path, 1, 3))))
    found, expected = contents(out), spectrogram.log_mel(audio.load(path)[RATE : 3 * RATE]).T
    np.testing.assert_allclose(found["second"], expected, atol=6e-4)
    assert len(found["first"]) == 1 + RATE // 512


def test_nothing_readable_is_refused_with_the_first_reason(tmp_path, threads):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(RequestError, match=r"none of the 1 clips.*empty\.wav: is empty"):
        cache.prepare(datasets.load(tmp_path), tmp_path / "out")
    assert list(skipped(tmp_path / "out")) == ["empty.wav"]
    with pytest.raises(RequestError, match="not finished"):
        cache.Cache(tmp_path / "out")


def test_file_whose_name_is_not_unicode_is_skipped_and_named(library, prepare, out):
    """File systems hold any bytes; Python stands them in for by lone surrogates."""
    wrong = Clip("m\udcfasica.wav", str(library / "m\udcfasica.wav"))
    assert prepare(Dataset("old", (*datasets.load(library).clips, wrong))).clips == 6
    assert b"sica.wav" in (out / "skipped.csv").read_bytes()


def test_progress_begins_at_once_and_ends_with_all_clips(library, prepare):
    (library / "bad.wav").touch()
    calls: list[tuple[int, int, str]] = []
    prepare(progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 7, "")
    assert [call[:2] for call in calls[1:]] == [(done, 7) for done in range(1, 8)]
    assert calls[-1][2].endswith("x real time, 1 skipped")


def test_two_at_once_in_one_folder_are_refused(prepare):
    def second(done: int, total: int, note: str) -> None:
        with pytest.raises(RequestError, match="another prepare is working"):
            prepare()

    assert prepare(progress=second).clips == 6
    assert prepare().decoded == 0


def test_second_prepare_decodes_nothing_and_changes_nothing(prepare, out, decoded):
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    first = prepare()
    assert first.decoded == len(decoded) == 6
    before, second = files(), prepare()
    assert (second.clips, second.decoded, second.audio_s) == (6, 0, first.audio_s)
    assert decoded == []
    assert files() == before


def test_new_and_changed_files_are_decoded_alone_and_deleted_ones_leave(
    library, prepare, out, decoded, noise
):
    prepare()
    soundfile.write(library / "album0" / "new.wav", noise(), RATE)
    soundfile.write(library / "album1" / "track2.wav", noise(2), RATE)
    (library / "album2" / "track5.wav").unlink()
    prepared = prepare()
    assert sorted(decoded) == ["new.wav", "track2.wav"]
    assert (prepared.clips, prepared.decoded) == (6, 2)
    assert cache.Cache(out).verify() == []
    found = contents(out)
    assert list(found)[:2] == ["album0/new.wav", "album0/track0.wav"]
    assert "album2/track5.wav" not in found
    changed = spectrogram.log_mel(noise(2)).T
    np.testing.assert_allclose(found["album1/track2.wav"], changed, atol=0.01)
    assert prepare().decoded == len(decoded) == 0


def test_changed_part_is_decoded_again(audio_folder, prepare, out):
    path = str(audio_folder / "album2" / "track5.wav")
    for end_s, frames in ((1.0, 44), (2.0, 87)):
        assert prepare(Dataset("part", (Clip("clip", path, 0, end_s),))).decoded == 1
        assert cache.Cache(out).frames.tolist() == [frames]


def test_copies_of_one_file_are_not_decoded_a_second_time(library, prepare, out, decoded):
    shutil.copy(library / "album0" / "track0.wav", library / "album0" / "copy.wav")
    assert prepare().clips == 7
    assert prepare().decoded == len(decoded) == 0
    found = contents(out)
    np.testing.assert_array_equal(found["album0/copy.wav"], found["album0/track0.wav"])


def test_other_settings_are_refused_by_name(audio_folder, small_cache):
    before = (small_cache / "index.jsonl").read_bytes()
    other, message = SpectrogramConfig(n_fft=1024, top_db=80.0), r"n_fft is .*1024; top_db is .*80"
    with pytest.raises(RequestError, match=message) as caught:
        cache.prepare(datasets.load(audio_folder), small_cache, config=other)
    assert "hop_length" not in str(caught.value)
    assert (small_cache / "index.jsonl").read_bytes() == before
    cache.Cache(small_cache).require(SpectrogramConfig())
    with pytest.raises(RequestError, match="mel_scale is 'slaney', not 'htk'"):
        cache.Cache(small_cache).require(SpectrogramConfig(mel_scale="htk"))


def test_folder_that_is_no_cache_is_left_alone(audio_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="exists and is not a cache"):
        cache.prepare(datasets.load(audio_folder), tmp_path)
    with pytest.raises(RequestError, match=r"is not a cache.*patchifier prepare"):
        cache.Cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_cache_whose_first_file_was_never_written_begins(audio_folder, tmp_path):
    for name in (".cache.json.new", ".cache.json.new.lock"):  # what a kill leaves
        (tmp_path / name).touch()
    assert cache.prepare(datasets.load(audio_folder), tmp_path).clips > 0


@pytest.mark.parametrize("name", [".cache.json.newest thoughts.txt", ".cache.json.new.txt"])
def test_a_file_of_the_user_is_not_what_a_kill_leaves(name, audio_folder, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(RequestError, match="exists and is not a cache"):
        cache.prepare(datasets.load(audio_folder), tmp_path)


def parts_of(frames: int, count: int) -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    return [chance.random((frames, 64)).astype(np.float16) for _ in range(count)]


def test_shard_is_the_file_that_numpy_would_write(tmp_path):
    parts, writer = [*parts_of(3, 1), *parts_of(5, 2)], cache._ShardWriter(tmp_path)
    rows = [writer.add(Clip(str(n), ""), cache._Decoded("", part)) for n, part in enumerate(parts)]
    writer.close()
    np.save(tmp_path / "expected.npy", np.concatenate(parts))
    written, expected = tmp_path / "shards" / "00000.npy", tmp_path / "expected.npy"
    assert written.read_bytes() == expected.read_bytes()
    assert [row["first"] for row in rows] == [0, 3, 8]


def test_build_holds_a_shard_and_never_two(tmp_path, monkeypatch):
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
        options = {"env": child_environment, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, str(script), str(source), str(out), "100"]
        return subprocess.Popen(command, start_new_session=True, **options)

    return start


def kill_all(process: subprocess.Popen) -> None:
    """Kill a build and the processes that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_build_goes_on_and_ends_as_if_it_had_not_been(
    library, out, build, small_cache, prepare
):
    process = build(library, out)
    for _ in range(4):
        process.stdout.readline()
    kill_all(process)
    finished = len(cache._shard_rows(out, SpectrogramConfig()))
    assert 0 < finished < 6
    with pytest.raises(RequestError, match="not finished"):
        cache.Cache(out)
    assert prepare().decoded == 6 - finished
    assert cache.Cache(out).verify() == []
    require_equal(out, small_cache)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_build_killed_at_any_moment_goes_on(seed, library, out, build, small_cache):
    chance = random.Random(seed)
    for _ in range(3):
        process = build(library, out)
        if chance.random() < 0.8:
            process.stdout.readline()  # the first clip is done
        time.sleep(chance.uniform(0, 0.4))
        kill_all(process)
    cache.prepare(datasets.load(library), out, workers=2)
    assert cache.Cache(out).verify() == []
    require_equal(out, small_cache)


def test_processes_of_a_killed_build_end_too(library, out, build):
    """They hold the other end of the pipe, which closes when the last of them is gone."""
    process = build(library, out)
    process.stdout.readline()
    process.kill()
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        kill_all(process)
        pytest.fail("decoding processes go on after the build that started them was killed")


def test_shard_without_its_list_is_ignored_and_built_anew(prepare, out, small_cache):
    prepare()
    (out / "shards" / "00000.jsonl").unlink()
    (out / "index.jsonl").unlink()
    os.truncate(out / "shards" / "00000.npy", 1000)
    (out / "shards" / ".00001.npy.new-1").write_bytes(b"half a shard")
    assert prepare().decoded == 6
    assert cache.Cache(out).verify() == []
    require_equal(out, small_cache)


def test_flipped_byte_is_found_and_its_clip_named(copy):
    row = json.loads((copy / "index.jsonl").read_text().splitlines()[4])
    shard = np.load(copy / "shards" / f"{row['shard']:05d}.npy", mmap_mode="r+")
    shard.view(np.uint8)[row["first"] + 15, 80] ^= 1
    shard.flush()
    (problem,) = cache.Cache(copy).verify()
    assert problem.startswith(f"{row['clip']['id']}: checksum differs")


@pytest.mark.parametrize("name", ["index.jsonl", "cache.json"])
def test_an_index_that_was_changed_is_told(name, copy):
    text = (copy / name).read_text()
    changed = {"index.jsonl": ("track1", "track9"), "cache.json": ("hann", "hamming")}[name]
    assert cache.Cache(copy).verify() == []
    (copy / name).write_text(text.replace(*changed))
    (problem,) = cache.Cache(copy).verify()
    assert "not as 'patchifier prepare' wrote it" in problem


def test_damaged_and_newer_caches_are_refused_by_name(copy):
    index, facts, shard = (
        copy / name for name in ("index.jsonl", "cache.json", "shards/00000.npy")
    )
    for path, content, message in [
        (index, b"".join(index.read_bytes().splitlines(True)[:-1]), "holds 5 clips, expected 6"),
        (shard, shard.read_bytes()[:-100], r"00000\.npy cannot be read"),
        (
            facts,
            json.dumps(json.loads(facts.read_text()) | {"format": cache.FORMAT + 1}).encode(),
            "format 2, this version reads up to 1",
        ),
    ]:
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(RequestError, match=message):
            cache.Cache(copy)
        path.write_bytes(before)
    assert len(cache.Cache(copy).clips) == 6


def with_deadly(library: Path) -> Dataset:
    first, *others = datasets.load(library).clips
    deadly = Clip("deadly.wav", Deadly("deadly.wav"))  # type: ignore[arg-type]
    return Dataset("crash", (first, deadly, *others))


@pytest.mark.parametrize("pause_s", [0, 0.5], ids=["at once", "slowly"])
def test_file_that_kills_its_decoder_is_named_and_the_others_survive(
    pause_s, audio_folder, out, small_cache
):
    """Where answers are written slowly, the pool breaks between two looks at it: nothing can be submitted."""
    prepared = cache.prepare(
        with_deadly(audio_folder), out, workers=1, progress=lambda *_: time.sleep(pause_s)
    )
    reasons = {clip.id: reason for clip, reason in prepared.skipped}
    assert reasons == {"deadly.wav": "deadly.wav: the decoder crashed on this file."}
    assert skipped(out)["deadly.wav"][0] == "deadly.wav"
    require_equal(out, small_cache)


def test_index_carries_each_clip_whole_and_the_task(audio_folder, prepare, out):
    one, other = (clip.path for clip in datasets.load(audio_folder).clips[:2])
    info = {"artist": "Éric", "licence": "CC-BY-4.0"}
    whole = Clip("z", one, 0.1, 0.9, "train", 3, "group", ["loud", "rock"], info)
    data = Dataset(
        "named", (whole, Clip("a", other, target=["rock"])), Task("many-of", ("loud", "rock"))
    )
    prepare(data)
    found = cache.Cache(out)
    assert (found.name, found.clips, found.task) == (data.name, data.clips, data.task)
    assert found.spectrogram == SpectrogramConfig()


def test_cache_without_targets_has_no_task(small_cache, audio_folder):
    found = cache.Cache(small_cache)
    assert found.task is None
    assert found.clips == datasets.load(audio_folder).clips
    assert found.frames.tolist() == [1 + int((1 + number / 2) * RATE) // 512 for number in range(6)]


def test_settings_of_the_cache_are_those_it_was_made_with(prepare, out):
    config = SpectrogramConfig(
        sample_rate=16_000, n_mels=32, f_max_hz=8000.0, reference="max", top_db=80.0
    )
    prepare(config=config)
    found = cache.Cache(out)
    assert found.spectrogram == config
    assert found.log_mel(0).shape == (1 + 16_000 // 512, 32)
    assert found.read([0, 1])[0, -1].tolist() == [float(np.float16(-0.8))] * 32


def test_read_pads_with_silence(small_cache):
    found = cache.Cache(small_cache)
    batch = found.read([4, 0, 4])
    assert batch.shape == (3, found.frames[4], 64)
    assert batch.dtype == np.float16
    short = found.frames[0]
    np.testing.assert_array_equal(batch[1, :short], found.log_mel(0))
    assert (batch[1, short:] == -1).all()
    assert np.array_equal(batch[0], batch[2])


def test_read_gives_the_spans_that_are_asked_for(small_cache):
    found = cache.Cache(small_cache)
    spans = np.array([[10, 30], [0, 7], [40, 44]])
    batch = found.read(np.array([2, 0, 0]), spans)
    assert batch.shape == (3, 20, 64)
    for row, index, (first, last) in zip(batch, (2, 0, 0), spans, strict=True):
        np.testing.assert_array_equal(row[: last - first], found.log_mel(index)[first:last])
        assert (row[last - first :] == -1).all()


def test_clip_is_read_as_a_view_of_the_file_and_ends_where_it_ends(small_cache):
    found = cache.Cache(small_cache)
    assert isinstance(found.log_mel(0), np.memmap)
    assert len(found.log_mel(0, 0, 10**6)) == found.frames[0]
    assert not found.log_mel(0).flags.writeable


# --- caches from elsewhere, and damaged ones ---


@pytest.fixture
def copied(small_cache: Path, tmp_path: Path) -> Path:
    """Copy of the small cache that a test may damage."""
    return Path(shutil.copytree(small_cache, tmp_path / "copied"))


def change_rows(out: Path, change: Callable[[list], object]) -> None:
    """Change the lines of an index, parsed: the header and a row for each clip."""
    index = out / "index.jsonl"
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    change(lines)
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))


def shard_of(out: Path) -> Path:
    return out / "shards" / "00000.npy"


def clips_of_shard(out: Path) -> int:
    return len(shard_of(out).with_suffix(".jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[2].update(first=7000),
        lambda lines: lines[2].update(first=-1),
        lambda lines: lines[2].update(first=1.0),
        lambda lines: lines[2].update(frames=0),
        lambda lines: lines[2].update(frames=-5),
        lambda lines: lines[2].update(frames=10**15),
        lambda lines: lines[2].update(frames="12"),
        lambda lines: lines[2].update(shard="0"),
        lambda lines: lines[2].update(key=None),
        lambda lines: lines[2].pop("frames"),
        lambda lines: lines[2]["clip"].pop("id"),
        lambda lines: lines[2]["clip"].update(id=5),
        lambda lines: lines[2]["clip"].update(start_s="0"),
        lambda lines: lines[2]["clip"].update(fold="one"),
        lambda lines: lines[2]["clip"].update(surplus=1),
        lambda lines: lines.insert(2, []),
        lambda lines: lines[0].pop("name"),
        lambda lines: lines[0].update(task={"kind": "unknown", "names": []}),
        lambda lines: lines[0].update(task=[]) or lines[0].update(task=["kind"]),
        lambda lines: lines.clear(),
    ],
)
def test_an_index_with_wrong_values_is_refused_when_it_is_opened(change, copied):
    change_rows(copied, change)
    with pytest.raises(RequestError, match="prepare"):
        cache.Cache(copied)


@pytest.mark.parametrize("text", ["torn", "[" * 100_000 + "\n", '{"clips": 6'])
def test_a_torn_index_is_refused(text, copied):
    (copied / "index.jsonl").write_text(text)
    with pytest.raises(RequestError, match="index"):
        cache.Cache(copied)


SHARDS = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: os.truncate(path, 1000),
    "integers": lambda path: np.save(path, np.load(path).astype(np.int16)),
    "doubles": lambda path: np.save(path, np.load(path).astype(np.float64)),
    "other byte order": lambda path: np.save(path, np.load(path).astype(">f2")),
    "fewer bands": lambda path: np.save(path, np.load(path)[:, :-1]),
    "fewer frames": lambda path: np.save(path, np.load(path)[:-1]),
    "one dimension": lambda path: np.save(path, np.load(path).ravel()),
    "archive": lambda path: path.write_bytes(b"PK\x03\x04"),
    "missing": lambda path: path.unlink(),
    "unfinished header": lambda path: path.write_bytes(b"\x93NUMPY\x01\0\x08\0{'a': (\n"),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_the_wrong_form_is_refused_and_prepared_again(
    name, copied, audio_folder, small_cache, threads
):
    count = clips_of_shard(copied)
    SHARDS[name](shard_of(copied))
    with pytest.raises(RequestError, match=r"00000\.npy"):
        cache.Cache(copied)
    assert cache.prepare(datasets.load(audio_folder), copied, workers=1).decoded == count
    require_equal(copied, small_cache)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("name", ["cache.json", "index.jsonl", "shards/00000.npy"])
def test_a_pipe_or_a_device_in_a_cache_is_refused(name, copied):
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        (copied / name).unlink()
        make(copied / name)
        with pytest.raises(RequestError, match="not a regular file"):
            cache.Cache(copied)


@pytest.mark.parametrize("settings", [None, [], {"n_mels": 2**40}, {"n_fft": 2**30}])
def test_settings_that_no_cache_has_are_refused(settings, copied):
    (copied / "cache.json").write_text(json.dumps({"format": 1, "spectrogram": settings}))
    with pytest.raises(RequestError, match="spectrogram"):
        cache.Cache(copied)


@pytest.mark.parametrize(
    "lines", ["torn", "[]\n", '{"clip": "x"}\n', "[" * 100_000 + "\n"], ids=range(4)
)
def test_a_damaged_list_of_a_shard_costs_that_shard_alone(
    lines, copied, audio_folder, small_cache, threads
):
    count = clips_of_shard(copied)
    shard_of(copied).with_suffix(".jsonl").write_text(lines)
    assert cache.prepare(datasets.load(audio_folder), copied, workers=1).decoded == count
    require_equal(copied, small_cache)


def test_a_file_that_takes_more_memory_than_there_is_is_named(
    library, tmp_path, threads, monkeypatch
):
    compute = spectrogram.stream_log_mel
    errors = iter([MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])

    def computed(blocks, config):
        if error := next(errors, None):
            raise error
        return compute(blocks, config)

    monkeypatch.setattr(spectrogram, "stream_log_mel", computed)
    done = cache.prepare(datasets.load(library), tmp_path / "out", workers=1)
    assert done.clips == 4
    assert [("memory" in reason) for _, reason in done.skipped] == [True, True]
