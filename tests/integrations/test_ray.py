"""A library job on several machines; the slow tests kill nodes and drivers of a cluster."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import soundfile
from fsspec.implementations.memory import MemoryFileSystem

import patchifier
from patchifier import checkpoint, integrations
from patchifier.checkpoint import Checkpoint
from patchifier.cli.library import embedded_text
from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.integrations import object_store
from patchifier.integrations.object_store import Store
from patchifier.integrations.ray import PartTask, TableSpec, embed_on_ray, merge, read_parts
from patchifier.library import build
from patchifier.library.worker import Cut, embed_clips
from patchifier.nn.model import Patchifier
from tests import builders, small
from tests.library import require_same_table
from tests.servers import serving

RATE = 22_050
TINY = small.config({**small.WIDE, "max_patches": 25})


class Bucket(MemoryFileSystem):
    """An object store, as far as this process is concerned."""

    protocol = "bucket"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs: list = [""]  # noqa: RUF012


fsspec.register_implementation("bucket", Bucket, clobber=True)
INSTALL = "Install nowherefs to access Nowhere"
fsspec.register_implementation("nowhere", "no_such.Files", clobber=True, errtxt=INSTALL)


@pytest.fixture(scope="module")
def embedder():
    return builders.embedder(Patchifier(TINY, seed=0), TINY)


@pytest.fixture(scope="module")
def other():
    return builders.embedder(Patchifier(TINY, seed=1), TINY)


@pytest.fixture
def server():
    with serving() as found:
        yield found


@pytest.fixture(params=["folder", "bucket"])
def out(request, tmp_path):
    Bucket.store.clear()
    return str(tmp_path / "out") if request.param == "folder" else "bucket://library/out"


@pytest.fixture
def make_spec(embedder, monkeypatch):
    """Make what the parts of a job share; a file that cannot be fetched is tried again at once."""
    monkeypatch.setattr(object_store, "WAITS_S", (0.0, 0.0))

    def make(out, **cut):
        return TableSpec(embedder, Cut(**cut), out, build.facts_of(embedder, Cut(**cut)))

    return make


@pytest.fixture
def part_clips(monkeypatch):
    """Let each part of a job have so many clips."""
    return lambda count: monkeypatch.setattr(object_store, "PART_CLIPS", (count, count))


@pytest.fixture
def tracks(audio_folder):
    return sorted(audio_folder.rglob("*.wav"))


def run(spec, given):
    """A whole job in this process, without Ray."""
    clips, _ = object_store.find(given)
    store = Store(spec.out)
    claimed = object_store.claim(store, spec.facts, clips)
    tasks = integrations.ray.tasks_of(store, claimed, clips)
    return [integrations.ray.make_part(spec, task) for task in tasks]


def paths(found):
    return [clip.path for clip in found]


# --- parts ---


@pytest.mark.parametrize(("clips", "size"), [(0, 8), (1, 8), (8, 8), (9, 8), (100, 64)])
def test_parts_are_consecutive_clips_and_all_of_them(clips, size, tmp_path):
    listed = [Clip(str(number), str(number)) for number in range(clips)]
    facts = {"job": {"part_clips": size}}
    tasks = integrations.ray.tasks_of(Store(str(tmp_path)), facts, listed)
    assert [clip for task in tasks for clip in task.clips] == listed
    assert [task.number for task in tasks] == list(range(-(-clips // size)))
    assert all(len(task.clips) == size for task in tasks[:-1])


class Many(list):
    """A long list, as far as its length is looked at."""

    def __init__(self, count):
        super().__init__([Clip("a", "a")])
        self.count = count

    def __len__(self):
        return self.count


@pytest.mark.parametrize(("clips", "size"), [(1, 8), (2048, 8), (5120, 20), (10_000_000, 64)])
def test_a_part_has_8_to_64_clips_by_their_number_alone(clips, size, tmp_path):
    claimed = object_store.claim(Store(str(tmp_path / "out")), {}, Many(clips))
    assert claimed["job"]["part_clips"] == size


@pytest.mark.parametrize("cut", [{}, {"window_s": 0.5, "hop_s": 0.25}])
def test_merged_parts_are_the_single_machines_table_to_the_byte(
    cut, tracks, tmp_path, out, embedder, make_spec, part_clips, threads
):
    """Clips of one file that lie in two parts, too."""
    part_clips(2)
    spans = [
        (0, ","),
        (1, ","),
        (1, "0.25,1"),
        (1, "0.5,1.25"),
        (1, "0.5,"),
        (0, "0,0.5"),
        (0, "0.5,"),
    ]
    rows = [f"{number},{tracks[track]},{span}" for number, (track, span) in enumerate(spans)]
    listed, merged, single = (
        tmp_path / f"{name}" for name in ("clips.csv", "m.parquet", "s.parquet")
    )
    listed.write_text("\n".join(["id,path,start_s,end_s", *rows]) + "\n")
    run(make_spec(out, **cut), listed)
    merge(out, merged)
    build.embed_library(listed, single, embedder=embedder, workers=1, **cut)
    require_same_table(build.read(merged), build.read(single), 1e-5)
    require_same_table(read_parts(out), build.read(single), 1e-5)
    assert build.table.index(merged) == build.table.index(single)


def test_a_job_that_is_run_again_makes_what_is_missing_damaged_or_about_other_clips(
    audio_folder, tracks, out, make_spec, part_clips
):
    part_clips(1)
    spec, store = make_spec(out), Store(out)
    assert [part.kept for part in run(spec, audio_folder)] == [False] * 6
    assert [part.kept for part in run(spec, audio_folder)] == [True] * 6
    files = store.files
    parts = [store.path(object_store.part_name(number)) for number in range(6)]
    files.rm(parts[1])
    files.pipe_file(parts[2], files.cat_file(parts[2])[:-10])
    files.pipe_file(parts[4], files.cat_file(parts[3]))
    kept = [part.kept for part in run(spec, audio_folder)]
    assert kept == [True, False, False, True, False, True]
    assert [Path(path).name for path in read_parts(out).paths] == [path.name for path in tracks]


def test_parts_of_an_older_version_are_read_beside_new_ones(
    audio_folder, tmp_path, make_spec, part_clips
):
    part_clips(3)
    run(make_spec(str(tmp_path / "parts")), audio_folder)
    part = tmp_path / "parts" / "part-00000.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["track_id", "year"]), part)
    merge(tmp_path / "parts", tmp_path / "x.parquet")
    for found in (read_parts(tmp_path / "parts"), build.read(tmp_path / "x.parquet")):
        ids = found.rows["track_id"].to_pylist()
        assert [one is None for one in ids] == [True] * 3 + [False] * 3


def test_a_part_that_is_made_twice_is_there_once(audio_folder, out, make_spec, monkeypatch):
    """By a task that finds no part, as two at once do."""
    spec, store = make_spec(out), Store(out)
    run(spec, audio_folder)
    path = store.path(object_store.part_name(0))
    before = store.files.cat_file(path)
    with monkeypatch.context() as patch:
        patch.setattr(object_store, "read_part", lambda *_: None)
        run(spec, audio_folder)
    assert store.files.cat_file(path) == before
    assert store.names() == {"facts.json", "part-00000.parquet"}
    assert len(read_parts(out)) == 6


def test_what_killed_workers_and_an_earlier_version_left_is_removed(tmp_path):
    (tmp_path / "trying").mkdir()
    (tmp_path / "trying" / "00000").touch()
    (tmp_path / ".part-00000.parquet.new-0a").touch()
    (tmp_path / "..part-00001.parquet.new-0a.new.lock").touch()
    integrations.ray._finish(Store(str(tmp_path)), [])
    assert list(tmp_path.iterdir()) == []


def test_a_worker_with_another_version_makes_no_part(make_spec, tmp_path):
    spec = dataclasses.replace(make_spec(str(tmp_path)), version="0.0.1")
    with pytest.raises(RequestError, match=r"the job 0\.0\.1: install the same"):
        integrations.ray.make_part(spec, PartTask(0, []))


def test_what_is_not_finished_is_not_read(audio_folder, out, tmp_path, make_spec):
    with pytest.raises(RequestError, match=r"has no facts\.json"):
        read_parts(out)
    object_store.claim(Store(out), make_spec(out).facts, object_store.find(audio_folder)[0])
    with pytest.raises(RequestError, match=r"lacks 1 of 1 parts, the first part-00000\.parquet"):
        merge(out, tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


# --- refusals ---


def test_another_model_other_settings_and_other_clips_are_refused_with_what_differs(
    audio_folder, out, embedder, other
):
    clips = object_store.find(audio_folder)[0]
    place, facts = Store(out), build.facts_of(embedder, Cut())
    object_store.claim(place, facts, clips)
    assert object_store.claim(place, facts, clips) == object_store.read_facts(place)
    for changed, listed, said in (
        (
            build.facts_of(other, Cut()),
            clips,
            f"model is '{embedder.identity}', not '{other.identity}'",
        ),
        (build.facts_of(embedder, Cut(2.0, 2.0)), clips, r"window_s is None, not 2\.0"),
        (facts, clips[:-1], "another list of 6 clips, not these 5"),
        (facts, clips[::-1], "another list of 6 clips, not these 6"),
    ):
        with pytest.raises(RequestError, match=said):
            object_store.claim(place, changed, listed)


def test_a_folder_of_something_else_is_refused_and_left_alone(audio_folder, tmp_path, embedder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("one")
    for name in ("out", "file"):
        with pytest.raises(RequestError, match="is not a job"):
            embed_on_ray(audio_folder, tmp_path / name, embedder=embedder)
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]


def test_merge_refuses_a_table_of_another_model_and_other_kinds(
    audio_folder, out, tmp_path, other, make_spec, threads
):
    run(make_spec(out), audio_folder)
    build.embed_library(audio_folder, tmp_path / "x.parquet", embedder=other, workers=1)
    with pytest.raises(RequestError, match="made by another model"):
        merge(out, tmp_path / "x.parquet")
    with pytest.raises(RequestError, match=r"ends in \.parquet"):
        merge(out, tmp_path / "x.npy")


def test_ray_that_is_missing_is_named_with_what_to_install(
    audio_folder, tmp_path, embedder, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install 'patchifier\[cluster\]'"):
        embed_on_ray(audio_folder, tmp_path / "out", embedder=embedder)


def test_ray_that_does_not_start_is_said_in_a_line(audio_folder, tmp_path, embedder, monkeypatch):
    def never(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nMore lines.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", never)
    with pytest.raises(RequestError, match=r"^Ray did not start .The current node .*less busy"):
        embed_on_ray(audio_folder, tmp_path / "out", embedder=embedder)


def test_an_address_that_does_not_answer_is_given_up(audio_folder, tmp_path, embedder, monkeypatch):
    monkeypatch.setattr(integrations.ray, "ANSWER_S", 1.0)
    job = {"sources": audio_folder, "out": tmp_path / "out", "embedder": embedder}
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started_s = time.monotonic()
        said = f"no Ray cluster at {address} .no answer within 1 s"
        with pytest.raises(RequestError, match=said):
            embed_on_ray(**job, address=address)
        assert time.monotonic() - started_s < 15
    with pytest.raises(RequestError, match="'ray job submit'"):
        embed_on_ray(**job, address="ray://127.0.0.1:10001")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nowhere://library/a.mp3", INSTALL),
        ("gopher://library/a.mp3", "expected a scheme that fsspec knows"),
        ("memory://library/a.mp3", "seen by one process alone"),
    ],
)
def test_schemes_that_cannot_be_opened_are_refused_at_once(
    url, told, audio_folder, tmp_path, embedder
):
    for sources, out in (([audio_folder, url], tmp_path / "out"), (audio_folder, url)):
        with pytest.raises(RequestError, match=told):
            embed_on_ray(sources, out, embedder=embedder)
    assert not (tmp_path / "out").exists()


def test_no_workers_are_refused(audio_folder, tmp_path, embedder):
    with pytest.raises(RequestError, match="workers is 0"):
        embed_on_ray(audio_folder, tmp_path / "out", embedder=embedder, workers=0)


# --- sources ---


def test_a_manifest_holds_urls_as_they_are_given_and_paths(audio_folder, tmp_path):
    shutil.copytree(audio_folder, tmp_path / "music")
    urls = ["https://host/a//b.mp3?sign=x%2Fy", "http://host/Ünï.flac"]
    local = "music/album0/track0.wav"
    rows = ["path,start_s,end_s", *(f"{path},1,2" for path in [*urls, local])]
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    clips, lost = object_store.find(tmp_path / "clips.csv")
    assert paths(clips) == [*urls, os.path.realpath(tmp_path / local)]
    assert {(clip.start_s, clip.end_s) for clip in clips} == {(1.0, 2.0)}
    assert lost == []


def test_relative_paths_of_a_manifest_elsewhere_start_there(server):
    rows = [{"path": "a/b.wav"}, {"path": "http://other/c.wav"}, {"path": "/data/d.wav"}]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    clips, _ = object_store.find(server.add("/set/clips.jsonl", text))
    assert paths(clips) == [server.url("/set/a/b.wav"), "http://other/c.wav", "/data/d.wav"]
    fsspec.filesystem("memory").pipe_file("/set/clips.jsonl", text)
    with pytest.raises(RequestError, match=r"memory://set/a/b\.wav: what lies in memory"):
        object_store.find("memory://set/clips.jsonl")


def test_manifests_that_cannot_be_fetched_or_read_are_named(server):
    for url, said in (
        (server.url("/none.csv"), r"http://.*/none\.csv: cannot be fetched"),
        (server.add("/bad.csv", b"title\nx\n"), r"^http://.*/bad\.csv, row 1: has no path"),
        (
            server.add("/twice.csv", b"path,start_s\na.wav,0\na.wav,1\n"),
            r"two clips with the id 'a\.wav', expected unique ids",
        ),
    ):
        with pytest.raises(RequestError, match=said):
            object_store.find(url)


def test_urls_are_files_globs_and_folders(audio_folder, tracks):
    place, whole = f"file://{audio_folder}", [f"file://{path}" for path in tracks]
    assert paths(object_store.find(f"{place}/")[0]) == whole
    assert paths(object_store.find(f"{place}/album1/*.wav")[0]) == whole[2:4]
    both = object_store.find([whole[5], audio_folder, whole[5]])[0]
    assert len(both) == 7  # a path and a URL are two
    with pytest.raises(RequestError, match=r"there is no music: .*no audio there"):
        object_store.find(f"{place}/*.mp3")


@pytest.mark.parametrize("given", [[], "no/such/place", ["no/such/place"]])
def test_nothing_to_embed_is_said(given):
    with pytest.raises(RequestError, match="there is no music"):
        object_store.find(given)


def test_sources_without_audio_are_named_beside_those_with_some(audio_folder):
    clips, lost = object_store.find(["no/such/place", audio_folder])
    assert (len(clips), lost) == (6, [("no/such/place", "no/such/place: no such file or folder.")])


# --- a worker ---


def test_files_from_elsewhere_give_the_rows_of_files_that_are_here(
    tracks, server, embedder, make_spec, monkeypatch, tmp_path
):
    """In the order asked for, named by their URLs; nothing is left on this machine."""
    monkeypatch.setattr(object_store, "GROUP", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    urls = [server.add(f"/{path.name}", path.read_bytes()) for path in tracks]
    none, bad = server.url("/none.wav"), server.add("/bad.wav", b"RIFF")
    given = [urls[3], str(tracks[0]), urls[1], f"file://{tracks[4]}", none, bad, urls[5]]
    spec = make_spec("nowhere")
    found, again = integrations.ray.embed_anywhere(spec, [Clip(path, path) for path in given])
    for path, reason in ((bad, found.pop(5)), (none, found.pop(4))):
        assert reason.startswith(f"{path}: {'cannot be fetched' if path == none else ''}")
        assert str(tmp_path) not in reason
    here = [Clip("", str(tracks[number])) for number in (3, 0, 1, 4, 5)]
    for one, wanted in zip(found, embed_clips(embedder, Cut(), here), strict=True):
        np.testing.assert_allclose(one.vectors, wanted.vectors, atol=1e-5, rtol=0)
        assert one.file.size == wanted.file.size
        assert one.file.track_id == wanted.file.track_id
        for name in ("how", "spans_s"):
            assert getattr(one, name) == getattr(wanted, name)
    mtimes = [tracks[number].stat().st_mtime_ns for number in (0, 4)]
    near = pytest.approx(mtimes[1], abs=2000)
    assert [one.file.mtime_ns for one in found] == [0, mtimes[0], 0, near, 0]
    assert not again
    assert os.listdir(tmp_path) == []


def test_a_file_that_could_not_be_fetched_is_named_and_tried_again_by_the_next_job(
    audio_folder, tracks, server, tmp_path, make_spec
):
    url = server.add("/a.wav", tracks[0].read_bytes(), codes=[503] * 50)
    spec, given = make_spec(str(tmp_path / "out")), [audio_folder, url]
    (part,) = run(spec, given)
    assert (part.files, part.again) == (6, True)
    ((path, reason),) = part.skipped
    assert path == url
    assert "503" in reason
    asked = len(server.asked)
    part = integrations.ray.make_part(spec, PartTask(0, object_store.find(given)[0]))
    assert (part.kept, len(server.asked)) == (False, asked)  # made by this job, on a lost machine
    server.pages["/a.wav"].codes.clear()
    (part,) = run(spec, given)
    assert (part.kept, part.files, part.skipped, part.again) == (False, 7, [], False)


def test_a_server_that_is_better_at_the_second_try_costs_nothing(
    tracks, server, tmp_path, make_spec
):
    url = server.add("/a.wav", tracks[0].read_bytes(), break_after=[5000], codes=[503])
    make_spec(str(tmp_path))
    object_store.fetch(url, tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == tracks[0].read_bytes()


class Died(ray.exceptions.RayError):
    """What Ray raises for a task whose process or machine died."""


@dataclasses.dataclass
class Remote:
    """A remote function of Ray, which is called when its result is asked for."""

    work: Callable

    def remote(self, *arguments):
        return lambda: self.work(*arguments)


@pytest.fixture
def begun(monkeypatch):
    """Let tasks of Ray run in this process; the number and kind of each, and part 1's deaths."""
    tasks = []

    def make(shared, task, alone):
        tasks.append((task.number, alone))
        if task.number == 1 and len([one for one, _ in tasks if one == 1]) <= make.deaths:
            raise Died
        return integrations.ray.make_part(shared[0], task)

    monkeypatch.setattr(ray, "remote", lambda **_: lambda work: Remote(make))
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "wait", lambda running: (running[:1], running[1:]))
    monkeypatch.setattr(ray, "get", lambda call: call())
    monkeypatch.setattr(ray, "cancel", lambda call: None)
    monkeypatch.setattr(integrations.ray, "_ray", lambda *_: contextlib.nullcontext(2))
    monkeypatch.setattr(integrations.ray, "MOST_DEATHS", 3)
    return tasks, make


@pytest.mark.parametrize("deaths", [1, 2, 4])
def test_a_part_that_two_workers_died_on_is_done_clip_by_clip(
    deaths, audio_folder, out, make_spec, part_clips, begun
):
    """The other parts are made once and not alone; a part that keeps dying ends the job."""
    part_clips(2)
    tasks, make = begun
    make.deaths = deaths
    embedder = make_spec(out).embedder
    if deaths == 4:
        with pytest.raises(RequestError, match="the job stopped, what is done is kept"):
            embed_on_ray(audio_folder, out, embedder=embedder)
        return
    done = embed_on_ray(audio_folder, out, embedder=embedder)
    assert (done.files, done.embedded, done.kept, done.skipped) == (6, 6, 0, ())
    alone = [False] * min(deaths, 2) + [deaths == 2]
    assert [how for number, how in tasks if number == 1] == alone
    assert [how for number, how in tasks if number != 1] == [False, False]


class Deadly(str):
    """Path that kills the process which it is sent to, as a crash in a decoder's C code does."""

    def __reduce__(self):
        return _deadly, (str(self),)


def _deadly(name):
    if multiprocessing.parent_process() is not None:
        os._exit(139)
    return Deadly(name)


@pytest.mark.slow
def test_a_clip_that_kills_its_process_is_named_and_the_others_have_rows(
    audio_folder, embedder, make_spec
):
    good = object_store.find(audio_folder)[0][:2]
    clips = [good[0], Clip("deadly.wav", Deadly("deadly.wav")), good[1]]
    found, again = integrations.ray.embed_anywhere(make_spec("nowhere"), clips, alone=True)
    assert not again
    assert found.pop(1) == "deadly.wav: the decoder crashed on this file."
    for rows, clip in zip(found, good, strict=True):
        np.testing.assert_allclose(rows.vectors[0], embedder.embed(clip.path), atol=1e-5, rtol=0)


# --- a cluster ---

SLOW = """
import os, sys, time
try:
    from patchifier import audio
except ImportError:
    audio = None
if audio:
    blocks = audio.blocks
    def slow(path, **options):
        time.sleep(0.15)
        if "deadly" in str(path):
            os.kill(os.getpid(), 11)
        return blocks(path, **options)
    audio.blocks = slow
"""


@dataclasses.dataclass
class Machines:
    """A cluster of three nodes of a core each on this machine, whose decoders are slow."""

    cluster: object
    nodes: list
    environment: dict[str, str]


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch, integrations.ray._short_folder() as folder:
        hook = tmp_path_factory.mktemp("hook")
        (hook / "sitecustomize.py").write_text(SLOW)
        package = str(Path(patchifier.__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join([str(hook), package]))
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_health_check_period_ms", "500")  # a dead node is found out within seconds
        patch.setenv("RAY_health_check_failure_threshold", "4")
        core = {"num_cpus": 1, "object_store_memory": 10**8}
        nodes = Cluster(initialize_head=True, head_node_args={**core, "include_dashboard": False})
        try:
            yield Machines(nodes, [nodes.add_node(**core) for _ in range(2)], dict(os.environ))
        finally:
            nodes.shutdown()
            deadline = time.monotonic() + 20
            while (left := processes_of(folder)) and time.monotonic() < deadline:
                time.sleep(0.2)
    assert left == []
    assert not Path(folder).exists()


def processes_of(folder):
    """Processes that hold a file in a folder open, as Ray's workers do with their logs."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if link.parts[2] != str(os.getpid()) and os.readlink(link).startswith(folder):
                words = (link.parents[1] / "cmdline").read_bytes().replace(b"\0", b" ")
                found.add(words.decode("utf-8", "replace")[:200])
    return sorted(found)


@pytest.fixture(scope="module")
def library(tmp_path_factory, noise):
    """Sixty files of 1 to 3 s and one that is none."""
    folder = tmp_path_factory.mktemp("music")
    for number in range(60):
        sound = noise(1 + number % 3, seed=number)
        soundfile.write(folder / f"track{number:02d}.wav", sound, RATE)
    (folder / "track30b.mp3").write_text("not music")
    return folder


@pytest.fixture(scope="module")
def single(library, embedder, tmp_path_factory):
    """The library's table, made on one machine."""
    table = tmp_path_factory.mktemp("single") / "x.parquet"
    build.embed_library(library, table, embedder=embedder, workers=2)
    return table


def parts_in(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}


@pytest.mark.slow
def test_a_file_that_kills_its_worker_is_named_and_urls_are_read(
    machines, tracks, tmp_path, server, embedder, part_clips
):
    part_clips(3)
    deadly, none = str(tmp_path / "deadly.wav"), server.url("/none.wav")
    shutil.copy(tracks[0], deadly)
    urls = [server.add(f"/{path.name}", path.read_bytes()) for path in tracks]
    good = [urls[0], urls[1], f"file://{tracks[2]}", urls[3], str(tracks[4])]
    listed = [good[0], deadly, *good[1:4], none, good[4]]
    manifest = server.add("/clips.csv", "\n".join(["path", *listed, ""]).encode())
    out = tmp_path / "out"
    done = embed_on_ray(manifest, out, embedder=embedder, address=machines.cluster.address)
    assert (done.files, done.rows, done.kept, len(parts_in(out))) == (5, 5, 0, 3)
    assert done.skipped[0] == (deadly, f"{deadly}: the decoder crashed on this file.")
    assert done.skipped[1][0] == none
    found = read_parts(out)
    assert list(found.paths) == good
    expected = [embedder.embed(path) for path in tracks[:5]]
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5, rtol=0)


DRIVER = """
import sys
from patchifier.integrations import object_store, ray
object_store.PART_CLIPS = (3, 3)
if __name__ == "__main__":
    ray.embed_on_ray(sys.argv[1], sys.argv[2], embedder=sys.argv[3], address=sys.argv[4])
"""


@pytest.mark.slow
def test_a_job_whose_driver_is_killed_goes_on_where_it_was(
    machines, library, single, tmp_path, embedder, part_clips
):
    part_clips(3)
    out, model, address = tmp_path / "out", tmp_path / "model", machines.cluster.address
    checkpoint.save(model, Checkpoint(embedder.network.model, TINY))
    command = [sys.executable, "-c", DRIVER, library, out, model, address]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen(command, env=machines.environment, **quiet)
    deadline = time.monotonic() + 120
    while len(parts_in(out)) < 4 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    made = parts_in(out)
    assert 4 <= len(made) < 21
    done = embed_on_ray(library, out, embedder=model, address=address)
    assert (done.rows, done.files, len(parts_in(out))) == (60, 60, 21)
    assert 3 * len(made) - 1 <= done.kept < 60
    assert made.items() <= parts_in(out).items()
    merged = build.read(merge(out, tmp_path / "x.parquet"))
    require_same_table(merged, build.read(single), 1e-5)


@pytest.mark.slow
def test_a_node_that_is_killed_costs_no_row_and_doubles_none(
    machines, library, single, tmp_path, embedder, other, part_clips
):
    """Last of these: the cluster is smaller afterwards."""
    part_clips(3)
    killed, shown = [], []

    def progress(done, total, note):
        shown.append(done)
        if done >= 9 and not killed:
            killed.append(total - done)
            machines.cluster.remove_node(machines.nodes[0], allow_graceful=False)

    out, address = tmp_path / "out", {"address": machines.cluster.address}
    done = embed_on_ray(library, out, embedder=embedder, progress=progress, **address)
    assert killed[0] >= 30
    assert (done.rows, done.files, done.kept) == (60, 60, 0)
    assert [Path(path).name for path, _ in done.skipped] == ["track30b.mp3"]
    assert (shown, len(shown)) == (sorted(set(shown)), 21)
    parts = [object_store.part_name(number) for number in range(21)]
    assert sorted(os.listdir(out)) == ["facts.json", *parts, "skipped.csv"]
    require_same_table(build.read(merge(out, tmp_path / "x.parquet")), build.read(single), 1e-5)
    with pytest.raises(RequestError, match="made by another model"):
        embed_on_ray(library, out, embedder=other, **address)


@pytest.mark.slow
def test_a_ray_of_its_own_begins_and_ends_with_the_job(
    audio_folder, tmp_path, embedder, monkeypatch, capfd
):
    """And says nothing on standard output. Where no file can be read, that is an error."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    music, none, out = tmp_path / "music", tmp_path / "none", tmp_path / "out"
    music.mkdir()
    (music / "a.wav").write_text("none")
    said = r"none of the 1 files could be read; .*skipped\.csv says why"
    with pytest.raises(RequestError, match=said):
        embed_on_ray(music, none, embedder=embedder, workers=1)
    assert "a.wav" in (none / "skipped.csv").read_text()
    with pytest.raises(RequestError, match="has no rows"):
        merge(none, tmp_path / "x.parquet")
    done = embed_on_ray([audio_folder], out, embedder=embedder, workers=2, window_s=0.5)
    assert not ray.is_initialized()
    assert (done.files, done.kept, done.skipped) == (6, 0, ())
    last = embedded_text(done).splitlines()[-1]
    assert last.startswith(f"{done.rows} rows about 6 files; 6 embedded now in ")
    build.embed_library(audio_folder, tmp_path / "s.parquet", embedder=embedder, window_s=0.5)
    require_same_table(read_parts(out), build.read(tmp_path / "s.parquet"), 1e-5)
    assert capfd.readouterr().out == ""
