"""A library job on several machines: parts, resumption, refusals; and, slow, a cluster whose nodes and drivers are killed."""

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
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import ray
import soundfile
from fsspec.implementations.memory import MemoryFileSystem

import patchifier
from patchifier import checkpoint, integrations
from patchifier.checkpoint import Checkpoint
from patchifier.cli.library import embedded_text
from patchifier.config import Config, RequestError, update
from patchifier.datasets import Clip
from patchifier.embed import Embedder
from patchifier.integrations import object_store
from patchifier.integrations.object_store import Part, Store
from patchifier.library import build
from patchifier.library.stored import EmbeddingTable
from patchifier.library.worker import Cut, embed_clips
from patchifier.nn.model import Patchifier
from tests.servers import Server, serving

RATE = 22_050
WHOLE = Cut()
TINY = update(
    Config(),
    {
        "model": {
            "channels": [4, 4, 8, 8, 16],
            "embed_dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "mlp_dim": 64,
            "max_patches": 25,
        }
    },
)


class Bucket(MemoryFileSystem):
    """An object store, as far as this process is concerned."""

    protocol = "bucket"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs: list = [""]  # noqa: RUF012


fsspec.register_implementation("bucket", Bucket, clobber=True)
fsspec.register_implementation(
    "nowhere", "no_such_package.Files", clobber=True, errtxt="Install nowherefs to access Nowhere"
)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(Patchifier(TINY, seed=0), TINY)


@pytest.fixture(scope="module")
def other() -> Embedder:
    return Embedder(Patchifier(TINY, seed=1), TINY)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture(params=["folder", "bucket"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    Bucket.store.clear()
    return str(tmp_path / "out") if request.param == "folder" else "bucket://library/out"


@pytest.fixture
def make_spec(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., integrations.ray.TableSpec]:
    """Make what the parts of a job share; a file that cannot be fetched is tried again at once."""
    monkeypatch.setattr(object_store, "WAITS_S", (0.0, 0.0))
    return lambda out, cut=WHOLE: integrations.ray.TableSpec(
        embedder, cut, out, build.facts_of(embedder, cut)
    )


def require_same(first: EmbeddingTable, second: EmbeddingTable, tolerance: float = 1e-5) -> None:
    assert (first.paths, first.tags, first.metadata) == (second.paths, second.tags, second.metadata)
    for name in ("start_s", "end_s", "size", "mtime_ns"):
        np.testing.assert_array_equal(first.rows[name], second.rows[name])
    np.testing.assert_allclose(first.vectors, second.vectors, atol=tolerance, rtol=0)


def run(spec: integrations.ray.TableSpec, given: object) -> list[Part]:
    """A whole job in this process, without Ray."""
    clips, _ = object_store.find(given)
    store = Store(spec.out)
    claimed = object_store.claim(store, spec.facts, clips)
    return [
        integrations.ray.make_part(spec, task)
        for task in integrations.ray.tasks_of(store, claimed, clips)
    ]


# --- parts ---


@pytest.mark.parametrize(("clips", "size"), [(0, 8), (1, 8), (8, 8), (9, 8), (100, 64)])
def test_parts_are_consecutive_clips_and_all_of_them(clips: int, size: int, tmp_path: Path) -> None:
    listed = [Clip(str(number), str(number)) for number in range(clips)]
    tasks = integrations.ray.tasks_of(Store(str(tmp_path)), {"job": {"part_clips": size}}, listed)
    assert [clip.path for task in tasks for clip in task.clips] == [
        str(number) for number in range(clips)
    ]
    assert [task.number for task in tasks] == list(range(-(-clips // size)))
    assert all(len(task.clips) == size for task in tasks[:-1])


@pytest.mark.parametrize(("clips", "size"), [(1, 8), (2048, 8), (5120, 20), (10_000_000, 64)])
def test_a_part_has_8_to_64_clips_by_their_number_alone(
    clips: int, size: int, tmp_path: Path
) -> None:
    listed = [Clip("a", "a")] * min(clips, 6000)
    if clips > len(listed):
        assert (
            min(
                max(clips // object_store.PARTS, object_store.PART_CLIPS[0]),
                object_store.PART_CLIPS[1],
            )
            == size
        )
    else:
        assert (
            object_store.claim(Store(str(tmp_path / "out")), {}, listed)["job"]["part_clips"]
            == size
        )


def test_merged_parts_are_the_single_machines_table_to_the_byte(
    audio_folder: Path,
    tmp_path: Path,
    out: str,
    embedder: Embedder,
    make_spec: Callable,
    monkeypatch: pytest.MonkeyPatch,
    threads: None,
) -> None:
    """Clips of one file that lie in two parts, too."""
    monkeypatch.setattr(object_store, "PART_CLIPS", (2, 2))
    first, second = sorted(audio_folder.rglob("*.wav"))[:2]
    listed = tmp_path / "clips.csv"
    rows = [
        f"{first},,",
        f"{second},,",
        f"{second},0.25,1",
        f"{second},0.5,1.25",
        f"{second},0.5,",
        f"{first},0,0.5",
        f"{first},0.5,",
    ]
    listed.write_text(
        "id,path,start_s,end_s\n" + "".join(f"{number},{row}\n" for number, row in enumerate(rows))
    )
    for name, cut in (("whole", Cut()), ("windows", Cut(0.5, 0.25))):
        place = f"{out}-{name}"
        run(make_spec(place, cut), listed)
        integrations.ray.merge(place, tmp_path / "merged.parquet")
        build.embed_library(
            listed,
            tmp_path / f"{name}.parquet",
            embedder=embedder,
            window_s=cut.window_s,
            hop_s=cut.hop_s,
            workers=1,
        )
        require_same(
            build.read(tmp_path / "merged.parquet"),
            build.read(tmp_path / f"{name}.parquet"),
        )
        require_same(integrations.ray.read_parts(place), build.read(tmp_path / f"{name}.parquet"))
        merged, single = (
            build.table.index(tmp_path / f"{one}.parquet") for one in ("merged", name)
        )
        assert merged == single
        (tmp_path / "merged.parquet").unlink()


def test_a_job_that_is_run_again_makes_what_is_missing_damaged_or_about_other_clips(
    audio_folder: Path,
    out: str,
    embedder: Embedder,
    make_spec: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_store, "PART_CLIPS", (1, 1))
    spec, store = make_spec(out), Store(out)
    assert [part.kept for part in run(spec, audio_folder)] == [False] * 6
    assert [part.kept for part in run(spec, audio_folder)] == [True] * 6
    files, paths = store.files, [store.path(object_store.part_name(number)) for number in range(6)]
    files.rm(paths[1])
    files.pipe_file(paths[2], files.cat_file(paths[2])[:-10])
    files.pipe_file(paths[4], files.cat_file(paths[3]))
    assert [part.kept for part in run(spec, audio_folder)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert [Path(path).name for path in integrations.ray.read_parts(out).paths] == [
        f"track{number}.wav" for number in range(6)
    ]


def test_a_part_that_is_made_twice_is_there_once(
    audio_folder: Path, out: str, make_spec: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert len(integrations.ray.read_parts(out)) == 6


def test_what_killed_workers_and_an_earlier_version_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "trying").mkdir()
    (tmp_path / "trying" / "00000").touch()
    (tmp_path / ".part-00000.parquet.new-0a").touch()
    integrations.ray._finish(Store(str(tmp_path)), [])
    assert list(tmp_path.iterdir()) == []


def test_a_worker_with_another_version_makes_no_part(make_spec: Callable, tmp_path: Path) -> None:
    spec = dataclasses.replace(make_spec(str(tmp_path)), version="0.0.1")
    with pytest.raises(RequestError, match=r"the job 0\.0\.1: install the same"):
        integrations.ray.make_part(spec, integrations.ray.PartTask(0, []))


def test_what_is_not_finished_is_not_read(
    audio_folder: Path, out: str, tmp_path: Path, embedder: Embedder, make_spec: Callable
) -> None:
    with pytest.raises(RequestError, match=r"has no facts\.json"):
        integrations.ray.read_parts(out)
    object_store.claim(Store(out), make_spec(out).facts, object_store.find(audio_folder)[0])
    with pytest.raises(RequestError, match=r"lacks 1 of 1 parts, the first part-00000\.parquet"):
        integrations.ray.merge(out, tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


# --- refusals ---


def test_another_model_other_settings_and_other_clips_are_refused_with_what_differs(
    audio_folder: Path, out: str, embedder: Embedder, other: Embedder
) -> None:
    clips = object_store.find(audio_folder)[0]
    place, facts = Store(out), build.facts_of(embedder, Cut())
    object_store.claim(place, facts, clips)
    assert object_store.claim(place, facts, clips) == object_store.read_facts(place)
    with pytest.raises(
        RequestError, match=f"model is '{embedder.identity}', not '{other.identity}'"
    ):
        object_store.claim(place, build.facts_of(other, Cut()), clips)
    with pytest.raises(RequestError, match=r"window_s is None, not 2\.0"):
        object_store.claim(place, build.facts_of(embedder, Cut(2.0, 2.0)), clips)
    for listed in (clips[:-1], clips[::-1]):
        with pytest.raises(RequestError, match=f"another list of 6 clips, not these {len(listed)}"):
            object_store.claim(place, facts, listed)


def test_a_folder_of_something_else_is_refused_and_left_alone(
    audio_folder: Path, tmp_path: Path, embedder: Embedder
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("one")
    for name in ("out", "file"):
        with pytest.raises(RequestError, match="is not a job"):
            integrations.ray.embed_on_ray(audio_folder, tmp_path / name, embedder=embedder)
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]


def test_merge_refuses_a_table_of_another_model_and_other_kinds(
    audio_folder: Path,
    out: str,
    tmp_path: Path,
    embedder: Embedder,
    other: Embedder,
    make_spec: Callable,
    threads: None,
) -> None:
    run(make_spec(out), audio_folder)
    build.embed_library(audio_folder, tmp_path / "x.parquet", embedder=other, workers=1)
    with pytest.raises(RequestError, match="made by another model"):
        integrations.ray.merge(out, tmp_path / "x.parquet")
    with pytest.raises(RequestError, match=r"ends in \.parquet"):
        integrations.ray.merge(out, tmp_path / "x.npy")


def test_ray_that_is_missing_is_named_with_what_to_install(
    audio_folder: Path, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install 'patchifier\[cluster\]'"):
        integrations.ray.embed_on_ray(audio_folder, tmp_path / "out", embedder=embedder)


def test_an_address_that_does_not_answer_is_given_up(
    audio_folder: Path, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrations.ray, "ANSWER_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started_s = time.monotonic()
        with pytest.raises(
            RequestError, match=f"no Ray cluster at {address} .no answer within 1 s"
        ):
            integrations.ray.embed_on_ray(
                audio_folder, tmp_path / "out", embedder=embedder, address=address
            )
        assert time.monotonic() - started_s < 15
    with pytest.raises(RequestError, match="'ray job submit'"):
        integrations.ray.embed_on_ray(
            audio_folder, tmp_path / "out", embedder=embedder, address="ray://127.0.0.1:10001"
        )


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nowhere://library/a.mp3", "Install nowherefs to access Nowhere"),
        ("gopher://library/a.mp3", "expected a scheme that fsspec knows"),
        ("memory://library/a.mp3", "seen by one process alone"),
    ],
)
def test_schemes_that_cannot_be_opened_are_refused_at_once(
    url: str, told: str, audio_folder: Path, tmp_path: Path, embedder: Embedder
) -> None:
    with pytest.raises(RequestError, match=told):
        integrations.ray.embed_on_ray([audio_folder, url], tmp_path / "out", embedder=embedder)
    with pytest.raises(RequestError, match=told):
        integrations.ray.embed_on_ray(audio_folder, url, embedder=embedder)
    assert not (tmp_path / "out").exists()


def test_no_workers_are_refused(audio_folder: Path, tmp_path: Path, embedder: Embedder) -> None:
    with pytest.raises(RequestError, match="workers is 0"):
        integrations.ray.embed_on_ray(audio_folder, tmp_path / "out", embedder=embedder, workers=0)


# --- sources ---


def test_a_manifest_holds_urls_as_they_are_given_and_paths(
    audio_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(audio_folder, tmp_path / "music")
    urls = ["https://host/a//b.mp3?sign=x%2Fy", "http://host/Ünï.flac"]
    (tmp_path / "clips.csv").write_text(
        "path,start_s,end_s\n"
        + "".join(f"{path},1,2\n" for path in [*urls, "music/album0/track0.wav"]),
        encoding="utf-8",
    )
    clips, lost = object_store.find(tmp_path / "clips.csv")
    assert [(clip.path, clip.start_s, clip.end_s) for clip in clips] == [
        *((url, 1.0, 2.0) for url in urls),
        (os.path.realpath(tmp_path / "music/album0/track0.wav"), 1.0, 2.0),
    ]
    assert lost == []


def test_relative_paths_of_a_manifest_elsewhere_start_there(server: Server) -> None:
    rows = [{"path": "a/b.wav"}, {"path": "http://other/c.wav"}, {"path": "/data/d.wav"}]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    url = server.add("/set/clips.jsonl", text)
    fsspec.filesystem("memory").pipe_file("/set/clips.jsonl", text)
    for source, first in ((url, server.url("/set/a/b.wav")), ("memory://set/clips.jsonl", "")):
        if first:
            assert [clip.path for clip in object_store.find(source)[0]] == [
                first,
                "http://other/c.wav",
                "/data/d.wav",
            ]
        else:
            with pytest.raises(RequestError, match=r"memory://set/a/b\.wav: what lies in memory"):
                object_store.find(source)


def test_manifests_that_cannot_be_fetched_or_read_are_named(server: Server) -> None:
    with pytest.raises(RequestError, match=r"http://.*/none\.csv: cannot be fetched"):
        object_store.find(server.url("/none.csv"))
    with pytest.raises(RequestError, match=r"^http://.*/bad\.csv, row 1: has no path"):
        object_store.find(server.add("/bad.csv", b"title\nx\n"))
    with pytest.raises(RequestError, match=r"two clips with the id 'a\.wav', expected unique ids"):
        object_store.find(server.add("/twice.csv", b"path,start_s\na.wav,0\na.wav,1\n"))


def test_urls_are_files_globs_and_folders(audio_folder: Path) -> None:
    place = f"file://{audio_folder}"
    whole = [f"file://{path}" for path in sorted(audio_folder.rglob("*.wav"))]
    assert [clip.path for clip in object_store.find(f"{place}/")[0]] == whole
    assert [clip.path for clip in object_store.find(f"{place}/album1/*.wav")[0]] == whole[2:4]
    assert (
        len(object_store.find([whole[5], audio_folder, whole[5]])[0]) == 7
    )  # a path and a URL are two
    with pytest.raises(RequestError, match=r"nothing to embed: .*no audio there"):
        object_store.find(f"{place}/*.mp3")


@pytest.mark.parametrize("given", [[], "no/such/place", ["no/such/place"]])
def test_nothing_to_embed_is_said(given: object) -> None:
    with pytest.raises(RequestError, match="nothing to embed"):
        object_store.find(given)


def test_sources_without_audio_are_named_beside_those_with_some(audio_folder: Path) -> None:
    clips, lost = object_store.find(["no/such/place", audio_folder])
    assert (len(clips), lost) == (6, [("no/such/place", "no/such/place: no such file or folder.")])


# --- a worker ---


def test_files_from_elsewhere_give_the_rows_of_files_that_are_here(
    audio_folder: Path,
    server: Server,
    embedder: Embedder,
    make_spec: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """In the order asked for, named by their URLs; nothing is left on this machine."""
    monkeypatch.setattr(object_store, "GROUP", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = sorted(audio_folder.rglob("*.wav"))
    urls = [server.add(f"/{path.name}", path.read_bytes()) for path in files]
    given = [
        urls[3],
        str(files[0]),
        urls[1],
        f"file://{files[4]}",
        server.url("/none.wav"),
        server.add("/bad.wav", b"RIFF"),
        urls[5],
    ]
    found, again = integrations.ray.embed_anywhere(
        make_spec("nowhere"), [Clip(path, path) for path in given]
    )
    expected = embed_clips(
        embedder, Cut(), [Clip(str(files[at]), str(files[at])) for at in (3, 0, 1, 4, 5)]
    )
    rows = [found[at] for at in (0, 1, 2, 3, 6)]
    for one, wanted in zip(rows, expected, strict=True):
        np.testing.assert_allclose(one.vectors, wanted.vectors, atol=1e-5, rtol=0)
        assert (one.size, one.duration_s, one.spans_s) == (
            wanted.size,
            wanted.duration_s,
            wanted.spans_s,
        )
    assert [one.mtime_ns for one in rows] == [
        0,
        files[0].stat().st_mtime_ns,
        0,
        pytest.approx(files[4].stat().st_mtime_ns, abs=2000),
        0,
    ]
    assert found[4].startswith(f"{server.url('/none.wav')}: cannot be fetched")
    assert found[5].startswith(f"{server.url('/bad.wav')}: ")
    assert str(tmp_path) not in found[5]
    assert not again
    assert os.listdir(tmp_path) == []


def test_a_file_that_could_not_be_fetched_is_named_and_tried_again_by_the_next_job(
    audio_folder: Path, server: Server, tmp_path: Path, embedder: Embedder, make_spec: Callable
) -> None:
    url = server.add(
        "/a.wav", (audio_folder / "album0" / "track0.wav").read_bytes(), codes=[503] * 50
    )
    spec, given = make_spec(str(tmp_path / "out")), [audio_folder, url]
    (part,) = run(spec, given)
    assert (part.files, part.again) == (6, True)
    ((path, reason),) = part.skipped
    assert path == url
    assert "503" in reason
    clips = object_store.find(given)[0]
    asked = len(server.asked)
    part = integrations.ray.make_part(spec, integrations.ray.PartTask(0, clips))
    assert (part.kept, len(server.asked)) == (False, asked)  # made by this job, on a lost machine
    server.pages["/a.wav"].codes.clear()
    (part,) = run(spec, given)
    assert (part.kept, part.files, part.skipped, part.again) == (False, 7, [], False)


def test_a_server_that_is_better_at_the_second_try_costs_nothing(
    audio_folder: Path, server: Server, tmp_path: Path, make_spec: Callable
) -> None:
    content = (audio_folder / "album0" / "track0.wav").read_bytes()
    url = server.add("/a.wav", content, break_after=[5000], codes=[503])
    make_spec(str(tmp_path))
    object_store.fetch(url, tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == content


class Died(ray.exceptions.RayError):
    """What Ray raises for a task whose process or machine died."""


@pytest.mark.parametrize("deaths", [1, 2, 4])
def test_a_part_that_two_workers_died_on_is_done_clip_by_clip(
    deaths: int,
    audio_folder: Path,
    out: str,
    make_spec: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other parts are made once and not alone; a part that keeps dying ends the job."""
    monkeypatch.setattr(object_store, "PART_CLIPS", (2, 2))
    monkeypatch.setattr(integrations.ray, "MOST_DEATHS", 3)
    begun = list[tuple[int, bool]]()

    def make(
        shared: list[integrations.ray.TableSpec], task: integrations.ray.PartTask, alone: bool
    ) -> Part:
        begun.append((task.number, alone))
        if task.number == 1 and begun.count((1, False)) + begun.count((1, True)) <= deaths:
            raise Died
        return integrations.ray.make_part(shared[0], task)

    monkeypatch.setattr(ray, "remote", lambda **_: lambda work: Remote(make))
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "wait", lambda running: (running[:1], running[1:]))
    monkeypatch.setattr(ray, "get", lambda call: call())
    monkeypatch.setattr(ray, "cancel", lambda call: None)
    monkeypatch.setattr(integrations.ray, "_ray", lambda *_: contextlib.nullcontext(2))
    spec = make_spec(out)
    if deaths == 4:
        with pytest.raises(RequestError, match="the job stopped, what is done is kept"):
            integrations.ray.embed_on_ray(audio_folder, out, embedder=spec.embedder)
        return
    done = integrations.ray.embed_on_ray(audio_folder, out, embedder=spec.embedder)
    assert (done.files, done.embedded, done.kept, done.skipped) == (6, 6, 0, ())
    alone = [False] * min(deaths, 2) + [deaths == 2]
    assert [how for number, how in begun if number == 1] == alone
    assert [how for number, how in begun if number != 1] == [False, False]


@dataclasses.dataclass
class Remote:
    """A remote function of Ray, which is called when its result is asked for."""

    work: Callable

    def remote(self, *arguments: object) -> Callable:
        return lambda: self.work(*arguments)


class Deadly(str):
    """Path that kills the process which it is sent to, as a crash in a decoder's C code does."""

    def __reduce__(self) -> tuple:
        return _deadly, (str(self),)


def _deadly(name: str) -> Deadly:
    if multiprocessing.parent_process() is not None:
        os._exit(139)
    return Deadly(name)


@pytest.mark.slow
def test_a_clip_that_kills_its_process_is_named_and_the_others_have_rows(
    audio_folder: Path, embedder: Embedder, make_spec: Callable
) -> None:
    good = object_store.find(audio_folder)[0]
    clips = [good[0], Clip("deadly.wav", Deadly("deadly.wav")), good[1]]
    found, again = integrations.ray.embed_anywhere(make_spec("nowhere"), clips, alone=True)
    assert not again
    assert found[1] == "deadly.wav: the decoder crashed on this file."
    for rows, clip in ((found[0], good[0]), (found[2], good[1])):
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
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
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
        small = {"num_cpus": 1, "object_store_memory": 10**8}
        nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        try:
            yield Machines(nodes, [nodes.add_node(**small) for _ in range(2)], dict(os.environ))
        finally:
            nodes.shutdown()
            deadline = time.monotonic() + 20
            while (left := processes_of(folder)) and time.monotonic() < deadline:
                time.sleep(0.2)
    assert left == []
    assert not Path(folder).exists()


def processes_of(folder: str) -> list[str]:
    """Processes that hold a file in a folder open: Ray's workers do so with their logs, whatever they call themselves."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if link.parts[2] != str(os.getpid()) and os.readlink(link).startswith(folder):
                found.add(
                    (link.parents[1] / "cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode("utf-8", "replace")[:200]
                )
    return sorted(found)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty files of 1 to 3 s and one that is none."""
    folder = tmp_path_factory.mktemp("music")
    for number in range(60):
        samples = 0.1 * np.random.default_rng(number).standard_normal(
            RATE * (1 + number % 3), dtype=np.float32
        )
        soundfile.write(folder / f"track{number:02d}.wav", samples, RATE)
    (folder / "track30b.mp3").write_text("not music")
    return folder


@pytest.fixture(scope="module")
def single(library: Path, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's table, made on one machine."""
    table = tmp_path_factory.mktemp("single") / "x.parquet"
    build.embed_library(library, table, embedder=embedder, workers=2)
    return table


def parts_in(out: Path) -> int:
    return len(list(out.glob("part-*.parquet")))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "PART_CLIPS", (3, 3))


@pytest.mark.slow
def test_a_file_that_kills_its_worker_is_named_and_urls_are_read(
    machines: Machines,
    audio_folder: Path,
    tmp_path: Path,
    server: Server,
    embedder: Embedder,
    small_parts: None,
) -> None:
    files = sorted(audio_folder.rglob("*.wav"))
    shutil.copy(files[0], tmp_path / "deadly.wav")
    urls = [server.add(f"/{path.name}", path.read_bytes()) for path in files]
    listed = [
        urls[0],
        str(tmp_path / "deadly.wav"),
        urls[1],
        f"file://{files[2]}",
        urls[3],
        server.url("/none.wav"),
        str(files[4]),
    ]
    manifest = server.add("/clips.csv", ("path\n" + "\n".join(listed) + "\n").encode())
    done = integrations.ray.embed_on_ray(
        manifest, tmp_path / "out", embedder=embedder, address=machines.cluster.address
    )
    assert (done.files, done.rows, done.kept, parts_in(tmp_path / "out")) == (5, 5, 0, 3)
    assert done.skipped[0] == (listed[1], f"{listed[1]}: the decoder crashed on this file.")
    assert done.skipped[1][0] == listed[5]
    found = integrations.ray.read_parts(tmp_path / "out")
    assert list(found.paths) == [path for path in listed if path not in (listed[1], listed[5])]
    np.testing.assert_allclose(
        found.vectors,
        [embedder.embed(files[number]) for number in (0, 1, 2, 3, 4)],
        atol=1e-5,
        rtol=0,
    )


DRIVER = """
import sys
from patchifier.integrations import object_store, ray
object_store.PART_CLIPS = (3, 3)
if __name__ == "__main__":
    ray.embed_on_ray(sys.argv[1], sys.argv[2], embedder=sys.argv[3], address=sys.argv[4])
"""


@pytest.mark.slow
def test_a_job_whose_driver_is_killed_goes_on_where_it_was(
    machines: Machines,
    library: Path,
    single: Path,
    tmp_path: Path,
    embedder: Embedder,
    small_parts: None,
) -> None:
    checkpoint.save(tmp_path / "model", Checkpoint(embedder.model, TINY))
    (tmp_path / "driver.py").write_text(DRIVER)
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(tmp_path / "driver.py"),
        str(library),
        str(out),
        str(tmp_path / "model"),
        machines.cluster.address,
    ]
    driver = subprocess.Popen(
        command, env=machines.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while (
        len(list(out.glob("part-*.parquet"))) < 4
        and driver.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 4 <= len(made) < 21
    done = integrations.ray.embed_on_ray(
        library, out, embedder=tmp_path / "model", address=machines.cluster.address
    )
    assert (done.rows, done.files, parts_in(out)) == (60, 60, 21)
    assert 3 * len(made) - 1 <= done.kept < 60
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in made.items())
    require_same(
        build.read(integrations.ray.merge(out, tmp_path / "x.parquet")), build.read(single)
    )


@pytest.mark.slow
def test_a_node_that_is_killed_costs_no_row_and_doubles_none(
    machines: Machines,
    library: Path,
    single: Path,
    tmp_path: Path,
    embedder: Embedder,
    other: Embedder,
    small_parts: None,
) -> None:
    """Last of these: the cluster is smaller afterwards."""
    killed = list[int]()
    shown = list[int]()

    def progress(done: int, total: int, note: str) -> None:
        shown.append(done)
        if done >= 9 and not killed:
            killed.append(total - done)
            machines.cluster.remove_node(machines.nodes[0], allow_graceful=False)

    out = tmp_path / "out"
    done = integrations.ray.embed_on_ray(
        library, out, embedder=embedder, address=machines.cluster.address, progress=progress
    )
    assert killed[0] >= 30
    assert (done.rows, done.files, done.kept, parts_in(out)) == (60, 60, 0, 21)
    assert [Path(path).name for path, _ in done.skipped] == ["track30b.mp3"]
    assert (shown, len(shown)) == (sorted(set(shown)), 21)
    assert sorted(os.listdir(out)) == [
        "facts.json",
        *(object_store.part_name(number) for number in range(21)),
        "skipped.csv",
    ]
    merged = build.read(integrations.ray.merge(out, tmp_path / "x.parquet"))
    require_same(merged, build.read(single))
    assert (tmp_path / "x.parquet").read_bytes() == single.read_bytes() or np.abs(
        merged.vectors - build.read(single).vectors
    ).max() > 0
    with pytest.raises(RequestError, match="made by another model"):
        integrations.ray.embed_on_ray(
            library, out, embedder=other, address=machines.cluster.address
        )


@pytest.mark.slow
def test_a_ray_of_its_own_begins_and_ends_with_the_job(
    audio_folder: Path,
    tmp_path: Path,
    embedder: Embedder,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    """And says nothing on standard output. Files of which none can be read are an error, and named."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "a.wav").write_text("none")
    with pytest.raises(
        RequestError, match=r"none of the 1 files could be read; .*skipped\.csv says why"
    ):
        integrations.ray.embed_on_ray(
            tmp_path / "music", tmp_path / "none", embedder=embedder, workers=1
        )
    assert "a.wav" in (tmp_path / "none" / "skipped.csv").read_text()
    with pytest.raises(RequestError, match="has no rows"):
        integrations.ray.merge(tmp_path / "none", tmp_path / "x.parquet")
    done = integrations.ray.embed_on_ray(
        [audio_folder], tmp_path / "out", embedder=embedder, workers=2, window_s=0.5
    )
    assert not ray.is_initialized()
    assert (done.files, done.kept, done.skipped) == (6, 0, ())
    assert (
        embedded_text(done)
        .splitlines()[-1]
        .startswith(f"{done.rows} rows about 6 files; 6 embedded now in ")
    )
    build.embed_library(audio_folder, tmp_path / "single.parquet", embedder=embedder, window_s=0.5)
    require_same(
        integrations.ray.read_parts(tmp_path / "out"), build.read(tmp_path / "single.parquet")
    )
    assert capfd.readouterr().out == ""
