"""Fetching from a server that stalls, breaks off and lies; archives that mean harm; kills half-way. All against a server in this process."""

import errno
import gzip
import hashlib
import io
import json
import random
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from patchifier.cli.data import fetched_text
from patchifier.config import RequestError
from patchifier.datasets import transfer, unpack
from patchifier.datasets.download import Fetched, fetch
from patchifier.datasets.sheet import Archive, Remote, Sheet, Variant
from patchifier.datasets.transfer import RetryPolicy
from patchifier.io import Progress, silent
from tests.servers import Page, Server, serving

CONTENT = random.Random(0).randbytes(200_000)
OTHER = random.Random(1).randbytes(200_000)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's environment says."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sheet(
    *remotes: Remote, archives: tuple[Archive, ...] = (), steps: str = "Ask the author."
) -> Sheet:
    return Sheet(
        "toy",
        "Toy set",
        "http://home",
        "free",
        "nobody",
        lambda root, name: None,
        {"": Variant("all")},
        remotes,
        archives,
        steps=steps,
    )


def get(
    root: Path,
    *remotes: Remote,
    archives: tuple[Archive, ...] = (),
    progress: Progress = silent,
    **retry: float,
) -> Fetched:
    policy = RetryPolicy(**{"timeout_s": 0.3, "attempts": 3, "backoff_s": 0.01, **retry})
    return fetch(sheet(*remotes, archives=archives), root, progress=progress, retry=policy)


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


# --- downloads that work ---


def test_a_file_is_downloaded_checked_and_then_left_alone(server: Server, tmp_path: Path) -> None:
    remote = Remote(
        "sub/folder/ä b.bin", (server.add("/a", CONTENT),), sha(CONTENT).upper(), len(CONTENT)
    )
    first = get(tmp_path / "new" / "root", remote)
    assert (first.downloaded, first.present, dict(first.missing), dict(first.notes)) == (
        (remote.name,),
        (),
        {},
        {},
    )
    assert (tmp_path / "new/root" / remote.name).read_bytes() == CONTENT
    assert names(tmp_path) == ["new/root/sub/folder/ä b.bin"]
    second = get(tmp_path / "new" / "root", remote)
    assert (second.downloaded, second.present) == ((), (remote.name,))
    assert len(server.asked) == 1


def test_progress_ends_at_its_total_once_a_file_and_step(server: Server, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    big = bytes(3_500_000)
    get(
        tmp_path,
        Remote("big", (server.add("/a", big),), sha(big)),
        progress=lambda *call: calls.append(call),
    )
    assert [note for done, total, note in calls if done == total] == ["big", "checking big.part"]
    assert all(0 <= done <= total == 4 for done, total, _ in calls)


def test_a_file_without_a_checksum_is_said_to_be_unverified(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT)
    assert get(tmp_path, Remote("a", (url,))).notes == {"a": "not verified: no checksum published"}
    assert get(tmp_path, Remote("b", (url,), size_b=len(CONTENT))).notes == {
        "b": "not verified: no checksum published (its size fits)"
    }
    again = get(tmp_path, Remote("a", (url,)))
    assert again.present == ("a",)
    assert again.notes == {"a": "not verified: no checksum published"}


def test_what_is_published_by_a_server_that_does_not_say_how_long_it_is(
    server: Server, tmp_path: Path
) -> None:
    url = server.add("/a", CONTENT, no_length=True)
    assert get(tmp_path, Remote("a", (url,), sha(CONTENT))).complete
    short = get(tmp_path, Remote("b", (url,), size_b=len(CONTENT) - 1))
    assert "gave more than the 199,999 bytes" in short.missing["b"]
    assert names(tmp_path) == ["a"]


# --- breaks, stalls, resuming ---


@pytest.mark.parametrize("published", [{"sha256": sha(CONTENT)}, {"size_b": len(CONTENT)}, {}])
def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, published: dict
) -> None:
    url = server.add("/a", CONTENT, break_after=[70_000, 70_000])
    assert get(tmp_path, Remote("a", (url,), **published)).complete
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.ranges("/a") == ["", "bytes=70000-", "bytes=140000-"]
    assert server.marks == ["", '"v1"', '"v1"']


def test_a_stall_is_noticed_and_the_download_goes_on(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, stall_after=[50_000])
    started = time.monotonic()
    assert get(tmp_path, Remote("a", (url,), sha(CONTENT))).downloaded == ("a",)
    assert time.monotonic() - started < 3
    assert server.ranges("/a") == ["", "bytes=50000-"]


def test_an_endless_stall_gives_up_and_keeps_what_there_is(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, stall_after=[50_000, 0, 0, 0, 0])
    result = get(tmp_path, Remote("a", (url,), sha(CONTENT)))
    assert "stalled (tried 3 times without getting further)" in result.missing["a"]
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:50_000]
    server.pages["/a"].stall_after.clear()
    assert get(tmp_path, Remote("a", (url,), sha(CONTENT))).complete
    assert names(tmp_path) == ["a"]


def test_tries_that_get_further_are_not_counted(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, break_after=[20_000] * 9)
    assert get(tmp_path, Remote("a", (url,), sha(CONTENT)), attempts=2).complete


def test_a_server_that_ignores_range_is_read_from_the_start(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, ranges=False, break_after=[70_000])
    assert get(tmp_path, Remote("a", (url,), sha(CONTENT))).complete
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.ranges("/a") == ["", "bytes=70000-"]


def test_a_server_that_ignores_range_and_always_breaks_is_left_at_last(
    server: Server, tmp_path: Path
) -> None:
    url = server.add("/a", CONTENT, ranges=False, break_after=[70_000] * 99)
    assert (
        "broke off after 70,000 of 200,000 bytes"
        in get(tmp_path, Remote("a", (url,), sha(CONTENT))).missing["a"]
    )
    assert len(server.asked) <= 4


def swap(page: Page) -> None:
    page.content, page.etag = OTHER, '"v2"'


@pytest.mark.parametrize("published", [{"sha256": sha(OTHER)}, {"size_b": len(OTHER)}, {}])
@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changes_between_two_halves_is_not_spliced(
    server: Server, tmp_path: Path, published: dict, if_range: bool
) -> None:
    url = server.add("/a", CONTENT, break_after=[70_000], then=swap, if_range=if_range)
    assert get(tmp_path, Remote("a", (url,), **published)).complete
    assert (tmp_path / "a").read_bytes() == OTHER


def test_without_any_mark_of_the_version_only_a_checksum_allows_resuming(
    server: Server, tmp_path: Path
) -> None:
    def change(page: Page) -> None:
        page.content = OTHER

    for etag in ("", 'W/"weak"'):
        plain = server.add("/plain", CONTENT, etag=etag, break_after=[70_000], then=change)
        assert get(tmp_path, Remote("plain", (plain,))).complete
        assert (tmp_path / "plain").read_bytes() == OTHER
        (tmp_path / "plain").unlink()
        summed = server.add(
            "/summed", CONTENT, etag=etag, if_range=False, break_after=[70_000], then=change
        )
        assert get(tmp_path, Remote("summed", (summed,), sha(OTHER))).complete
        assert (tmp_path / "summed").read_bytes() == OTHER
        (tmp_path / "summed").unlink()
    assert server.ranges("/plain") == ["", ""] * 2
    assert (
        server.ranges("/summed") == ["", "bytes=70000-", ""] * 2
    )  # spliced, found out, begun again


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(bytes(300_000))
    assert get(tmp_path, Remote("a", (server.add("/a", CONTENT),), sha(CONTENT))).complete
    assert server.ranges("/a") == ["bytes=300000-", ""]


def test_a_part_that_is_whole_is_not_downloaded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT)
    assert get(
        tmp_path, Remote("a", (server.add("/a", CONTENT),), sha(CONTENT), len(CONTENT))
    ).complete
    assert server.asked == []


def test_a_part_from_elsewhere_is_not_used_without_a_checksum(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "a.part").write_bytes(bytes(1000))
    (tmp_path / "a.part.json").write_text(json.dumps({"url": "http://elsewhere/a", "mark": '"v1"'}))
    assert get(tmp_path, Remote("a", (server.add("/a", CONTENT),))).complete
    assert (tmp_path / "a").read_bytes() == CONTENT
    (tmp_path / "b.part").write_bytes(bytes(1000))
    (tmp_path / "b.part.json").write_text("[broken")
    assert get(tmp_path, Remote("b", (server.url("/a"),))).complete
    assert (tmp_path / "b").read_bytes() == CONTENT


def test_an_interruption_keeps_the_part(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", bytes(3_000_000), slow_s=0.001)

    def interrupt(done: int, total: int, note: str) -> None:
        if done >= 1:
            raise KeyboardInterrupt

    remote = Remote("a", (url,), sha(bytes(3_000_000)))
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path, remote, progress=interrupt)
    assert 10**6 <= (tmp_path / "a.part").stat().st_size < 3_000_000
    assert get(tmp_path, remote).complete
    assert len(server.asked) == 2
    assert int(server.asked[1][1].removeprefix("bytes=").removesuffix("-")) >= 10**6


# --- servers that refuse, fail or lie ---


def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    for code in (500, 503, 429):
        url = server.add(f"/{code}", CONTENT, codes=[code, code], headers={"Retry-After": "0"})
        assert get(tmp_path, Remote(f"{code}", (url,), sha(CONTENT))).complete
    assert len(server.asked) == 9


def test_a_server_may_ask_for_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    url = server.add("/a", CONTENT, codes=[503], headers={"Retry-After": "7"})
    assert get(tmp_path, Remote("a", (url,), sha(CONTENT)), attempts=5).complete
    server.add("/b", CONTENT, codes=[503] * 9, headers={"Retry-After": "86400"})
    get(tmp_path, Remote("b", (server.url("/b"),)), attempts=3)
    server.add("/c", codes=[500] * 9)
    get(tmp_path, Remote("c", (server.url("/c"),)), attempts=4, backoff_s=1.0)
    assert waits == [7, 60, 60, 1, 2, 4]


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_file_that_is_gone_is_sought_at_the_next_address_at_once(
    server: Server, tmp_path: Path, code: int
) -> None:
    gone = server.add("/gone", codes=[code] * 9)
    result = get(tmp_path, Remote("a", (gone, server.add("/a", CONTENT)), sha(CONTENT)))
    assert result.downloaded == ("a",)
    assert [path for path, _ in server.asked] == ["/gone", "/a"]


def test_a_wrong_checksum_sends_to_the_next_address(server: Server, tmp_path: Path) -> None:
    wrong, right = server.add("/wrong", OTHER), server.add("/right", CONTENT)
    assert get(tmp_path, Remote("a", (wrong, right), sha(CONTENT), len(CONTENT))).downloaded == (
        "a",
    )
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_checksum_everywhere_is_said_with_both(server: Server, tmp_path: Path) -> None:
    result = get(
        tmp_path,
        Remote("a", (server.add("/a", OTHER),), sha(CONTENT)),
        Remote("b", (server.add("/b", CONTENT),), sha(CONTENT)),
    )
    assert sha(CONTENT) in result.missing["a"]
    assert sha(OTHER) in result.missing["a"]
    assert (result.downloaded, names(tmp_path), len(server.asked)) == (("b",), ["b"], 2)
    assert not result.complete


def test_a_wrong_size_is_refused_before_it_is_downloaded(server: Server, tmp_path: Path) -> None:
    result = get(tmp_path, Remote("a", (server.add("/a", CONTENT),), size_b=123))
    assert "announces 200,000 bytes, expected 123" in result.missing["a"]
    assert names(tmp_path) == []


def test_a_length_announced_too_short_is_found_out(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, announce=150_000)
    assert "has sha256" in get(tmp_path, Remote("a", (url,), sha(CONTENT))).missing["a"]
    assert (
        "announces 150,000 bytes, expected 200,000"
        in get(tmp_path, Remote("a", (url,), size_b=200_000)).missing["a"]
    )
    assert names(tmp_path) == []


def test_a_length_announced_too_long_is_found_out(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, announce=250_000)
    unknown = get(tmp_path, Remote("a", (url,)))
    assert "broke off" in unknown.missing["a"] or "shorter file" in unknown.missing["a"]
    assert not (tmp_path / "a").exists()
    assert (
        "announces 250,000 bytes" in get(tmp_path, Remote("b", (url,), size_b=200_000)).missing["b"]
    )
    assert get(
        tmp_path, Remote("c", (url,), sha(CONTENT))
    ).complete  # the checksum says that it is all there


def test_an_empty_answer_is_no_file(server: Server, tmp_path: Path) -> None:
    assert "is empty" in get(tmp_path, Remote("a", (server.add("/a"),))).missing["a"]
    assert get(tmp_path, Remote("b", (server.add("/a"),), size_b=0)).complete


def test_a_web_page_is_not_taken_for_a_file(server: Server, tmp_path: Path) -> None:
    form = server.add("/a", b"<html>fill in this form", kind="text/html; charset=utf-8")
    assert "web page" in get(tmp_path, Remote("a.zip", (form,))).missing["a.zip"]
    assert get(tmp_path, Remote("index.html", (form,))).complete


def test_a_body_that_is_compressed_unasked_is_not_taken_for_a_file(
    server: Server, tmp_path: Path
) -> None:
    url = server.add("/a", gzip.compress(CONTENT), headers={"Content-Encoding": "gzip"})
    assert "compressed" in get(tmp_path, Remote("a.csv", (url,))).missing["a.csv"]
    assert get(tmp_path, Remote("a.tar.gz", (url,))).complete  # how some servers say .gz


def test_redirects_are_followed_and_loops_are_not(server: Server, tmp_path: Path) -> None:
    there = server.add("/there", CONTENT, break_after=[70_000])
    assert get(tmp_path, Remote("a", (server.add("/here", redirect=there),), sha(CONTENT))).complete
    assert server.ranges("/there") == ["", "bytes=70000-"]
    assert (
        "302"
        in get(tmp_path, Remote("b", (server.add("/loop", redirect=server.url("/loop")),))).missing[
            "b"
        ]
    )


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/hostname",
        "ftp://host/a",
        "data:,abc",
        "a.zip",
        "",
        "http://",
        "http://host:port/a",
        "http://ä b/",
    ],
)
def test_only_the_web_is_fetched(server: Server, tmp_path: Path, url: str) -> None:
    assert list(get(tmp_path, Remote("a", (url,)), attempts=1).missing) == ["a"]
    assert get(tmp_path, Remote("b", (url, server.add("/b", CONTENT))), attempts=1).downloaded == (
        "b",
    )


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_a_redirect_out_of_the_web_is_refused(server: Server, tmp_path: Path, to: str) -> None:
    assert list(get(tmp_path, Remote("a", (server.add("/a", redirect=to),))).missing) == ["a"]
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_a_redirect_from_an_encrypted_connection_to_an_open_one_is_refused() -> None:
    request = urllib.request.Request("https://host/a")
    with pytest.raises(
        transfer.UnavailableError, match="redirects from https to http://host/a: refused"
    ):
        transfer._Redirects().redirect_request(
            request, io.BytesIO(), 302, "Found", {}, "http://host/a"
        )
    assert (
        transfer._Redirects()
        .redirect_request(request, io.BytesIO(), 302, "Found", {}, "https://other/a")
        .full_url
        == "https://other/a"
    )


def test_a_host_that_nobody_answers_for_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
        assert "cannot be reached" in get(tmp_path, Remote("a", (url,))).missing["a"]


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"HTTP/1.1 204 No\r\n\r\n",
    ],
)
def test_what_is_no_web_server_is_given_up(tmp_path: Path, reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(2)
        job = answering(listening, reply)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a"
        result = get(tmp_path, Remote("a", (url,)), attempts=1)
        job.join()
    assert list(result.missing) == ["a"]
    assert not (tmp_path / "a").exists()


def answering(listening: socket.socket, reply: bytes) -> threading.Thread:
    """Give one raw reply to one request."""

    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(reply)

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


def test_a_proxy_of_the_environment_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("http://nowhere.invalid/a", CONTENT)
    monkeypatch.setenv("http_proxy", server.url(""))
    assert get(tmp_path, Remote("a", ("http://nowhere.invalid/a",), sha(CONTENT))).complete
    assert server.asked == [("http://nowhere.invalid/a", "")]


# --- the folder ---


def test_a_damaged_file_is_kept_under_another_name(server: Server, tmp_path: Path) -> None:
    remote = Remote("a", (server.add("/a", CONTENT),), sha(CONTENT))
    for number, mine in enumerate([b"mine", b"mine too"], 1):
        (tmp_path / "a").write_bytes(mine)
        result = get(tmp_path, remote)
        assert result.downloaded == ("a",)
        aside = tmp_path / ("a.damaged" if number == 1 else "a.damaged-2")
        assert aside.name in result.notes["a"]
        assert sha(mine) in result.notes["a"]
        assert aside.read_bytes() == mine
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["../a", "/etc/a", "C:\\a", "x/../../a"])
def test_a_sheet_that_leads_out_of_the_root_is_refused(
    server: Server, tmp_path: Path, name: str
) -> None:
    with pytest.raises(RequestError, match="leads out of its folder"):
        get(tmp_path / "root", Remote(name, (server.add("/a", CONTENT),)))
    assert names(tmp_path) == []


def test_a_root_that_cannot_be_written_to_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"file.*Choose a --root"):
        get(tmp_path / "file" / "root", Remote("a", (server.add("/a", CONTENT),)))
    with pytest.raises(RequestError, match=r"file.*Choose a --root"):
        get(tmp_path / "file", Remote("a", (server.add("/a", CONTENT),)))
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match="no regular file"):
        get(tmp_path, Remote("folder", (server.url("/a"),)))


def test_a_full_disk_is_said_and_what_there_is_stays(
    server: Server, tmp_path: Path, child_environment: dict[str, str]
) -> None:
    url = server.add("/a", CONTENT)
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    with child(tmp_path, child_environment, url, before=code) as done:
        assert "the disk is full" in done.communicate(timeout=20)[1]
    assert done.returncode == 1
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:100_000]
    assert get(tmp_path, Remote("a", (url,), sha(CONTENT))).complete
    assert server.ranges("/a") == ["", "bytes=100000-"]


def test_two_at_once_in_one_folder_are_refused(server: Server, tmp_path: Path) -> None:
    remote = Remote("a", (server.add("/a", CONTENT),), sha(CONTENT))

    def second(done: int, total: int, note: str) -> None:
        with pytest.raises(RequestError, match="another fetch"):
            get(tmp_path, remote)

    assert get(tmp_path, remote, progress=second).complete
    assert get(tmp_path, remote).complete


@pytest.mark.parametrize(
    "how", [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"attempts": 0}, {"backoff_s": -1}]
)
def test_patience_that_makes_no_sense_is_refused(tmp_path: Path, how: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(how))} is"):
        get(tmp_path, Remote("a"), **how)


def test_a_sheet_without_files_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"lists no files\. Ask the author"):
        get(tmp_path)


# --- dead addresses ---


def test_a_dead_address_is_tried_once_and_said_with_what_to_do(
    server: Server, tmp_path: Path
) -> None:
    url = server.add("/a", codes=[503] * 9)
    remote = Remote("a.zip", (url,), sha(CONTENT), dead="the host is gone since 2022")
    result = get(tmp_path, remote)
    assert len(server.asked) == 1
    for text in (
        "no longer published: the host is gone since 2022",
        url,
        "Ask the author.",
        f"Put the file at {tmp_path / 'a.zip'}",
    ):
        assert text in result.missing["a.zip"]
    (tmp_path / "a.zip").write_bytes(CONTENT)
    assert get(tmp_path, remote).present == ("a.zip",)
    assert len(server.asked) == 1


def test_a_file_without_any_address_is_said_with_what_to_do(tmp_path: Path) -> None:
    result = get(tmp_path, Remote("a.zip"))
    assert "no address is known" in result.missing["a.zip"]
    assert "Ask the author." in result.missing["a.zip"]
    assert fetched_text(result).splitlines()[-1].startswith("MISSING: a.zip")
    assert not result.complete


# --- archives ---


def zipped(
    files: dict[str, bytes], *, change: Callable[[zipfile.ZipInfo], None] = lambda info: None
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, content)
    return out.getvalue()


def tarred(
    files: dict[str, bytes], *, mode: str = "w:gz", extra: tuple[tarfile.TarInfo, ...] = ()
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return out.getvalue()


def entry(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


FILES = {
    "top/a.txt": b"alpha" * 1000,
    "top/b/c.bin": CONTENT,
    "d é.txt": b"delta",
    "top/empty": b"",
}
PACKED = {
    "x.zip": zipped(FILES),
    "x.tar": tarred(FILES, mode="w"),
    "x.tar.gz": tarred(FILES),
    "pax.tgz": tarred({"y" * 150 + "/" + "z" * 200: b"long"}),
}


@pytest.mark.parametrize("name", PACKED)
def test_an_archive_is_unpacked_once(server: Server, tmp_path: Path, name: str) -> None:
    packed = PACKED[name]
    remote, archive = (
        Remote(name, (server.add("/a", packed),), sha(packed)),
        Archive(name, into="data/in"),
    )
    first = get(tmp_path, remote, archives=(archive,))
    assert (first.downloaded, first.unpacked, dict(first.missing)) == ((name,), (name,), {})
    expected = FILES if name != "pax.tgz" else {"y" * 150 + "/" + "z" * 200: b"long"}
    assert {path: (tmp_path / "data/in" / path).read_bytes() for path in expected} == expected
    assert names(tmp_path) == sorted(
        [name, f".{name}.unpacked", *(f"data/in/{path}" for path in expected)]
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = get(tmp_path, remote, archives=(archive,))
    assert (second.downloaded, second.unpacked, second.present, dict(second.missing)) == (
        (),
        (),
        (name,),
        {},
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert len(server.asked) == 1


def test_an_archive_may_be_deleted_once_it_is_unpacked(server: Server, tmp_path: Path) -> None:
    packed = PACKED["x.zip"]
    remote, archive = Remote("x.zip", (server.add("/a", packed),), sha(packed)), Archive("x.zip")
    get(tmp_path, remote, archives=(archive,))
    (tmp_path / "x.zip").unlink()
    again = get(tmp_path, remote, archives=(archive,))
    assert again.complete
    assert "unpacked before" in again.notes["x.zip"]
    assert len(server.asked) == 1
    (tmp_path / "d é.txt").unlink()  # what was unpacked is gone
    assert get(tmp_path, remote, archives=(archive,)).unpacked == ("x.zip",)
    assert (tmp_path / "d é.txt").read_bytes() == b"delta"
    newer = zipped({"new.txt": b"new"})
    server.add("/a", newer)
    assert get(
        tmp_path, Remote("x.zip", (server.url("/a"),), sha(newer)), archives=(archive,)
    ).unpacked == ("x.zip",)  # the sheet changed
    assert (tmp_path / "new.txt").read_bytes() == b"new"


@pytest.mark.parametrize(
    "marker", ["", "[]", '{"sha256": 1}', '{"sha256": "a", "sources": {}, "top": 3, "into": "."}']
)
def test_a_record_that_is_none_is_passed_over(server: Server, tmp_path: Path, marker: str) -> None:
    (tmp_path / ".x.zip.unpacked").write_text(marker)
    remote = Remote("x.zip", (server.add("/a", PACKED["x.zip"]),), sha(PACKED["x.zip"]))
    assert get(tmp_path, remote, archives=(Archive("x.zip"),)).unpacked == ("x.zip",)


def test_files_in_the_way_are_kept_under_another_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "a.txt").write_bytes(b"mine")
    (tmp_path / "top" / "b").write_bytes(b"a file where a folder goes")
    (tmp_path / "d é.txt").write_bytes(b"delta")
    remote = Remote("x.zip", (server.add("/a", PACKED["x.zip"]),), sha(PACKED["x.zip"]))
    result = get(tmp_path, remote, archives=(Archive("x.zip"),))
    assert {path: (tmp_path / path).read_bytes() for path in FILES} == FILES
    assert (tmp_path / "top/a.txt.damaged").read_bytes() == b"mine"
    assert (tmp_path / "top/b.damaged").read_bytes() == b"a file where a folder goes"
    assert not (tmp_path / "d é.txt.damaged").exists()
    assert "top/a.txt.damaged" in result.notes["x.zip"]
    assert "top/b.damaged" in result.notes["x.zip"]


SYMLINK = entry("link", tarfile.SYMTYPE, "/etc")
HARMFUL = {
    "zip slip": zipped({"good": b"1", "../evil": b"x"}),
    "zip slip below": zipped({"a/b/../../../evil": b"x"}),
    "zip backslashes": zipped({"..\\evil": b"x"}),
    "zip absolute": zipped({"/evil": b"x"}),
    "zip drive": zipped({"C:/evil": b"x"}),
    "zip drive relative": zipped({"x/C:evil": b"x"}),
    "zip share": zipped({"\\\\host\\share\\evil": b"x"}),
    "zip dots and blanks": zipped({".. /evil": b"x"}),
    "zip symlink": zipped(
        {"link": b"/etc"},
        change=lambda info: setattr(info, "external_attr", (stat.S_IFLNK | 0o777) << 16),
    ),
    "zip device": zipped(
        {"dev": b""},
        change=lambda info: setattr(info, "external_attr", (stat.S_IFCHR | 0o777) << 16),
    ),
    "tar slip": tarred({"good": b"1", "../evil": b"x"}),
    "tar absolute": tarred({"/evil": b"x"}),
    "tar symlink": tarred({}, extra=(SYMLINK,)),
    "tar symlink escape": tarred(
        {}, extra=(entry("link", tarfile.SYMTYPE, ".."), entry("link/evil", tarfile.REGTYPE))
    ),
    "tar hard link": tarred({"good": b"1"}, extra=(entry("hard", tarfile.LNKTYPE, "../../evil"),)),
    "tar hard link inside": tarred({"good": b"1"}, extra=(entry("hard", tarfile.LNKTYPE, "good"),)),
    "tar device": tarred({}, extra=(entry("dev", tarfile.CHRTYPE),)),
    "tar pipe": tarred({}, extra=(entry("pipe", tarfile.FIFOTYPE),)),
    "tar unknown": tarred({}, extra=(entry("what", b"Q"),)),
    "tar folder slip": tarred({}, extra=(entry("../evil", tarfile.DIRTYPE),)),
    "long name": zipped({"n" * 300: b"x"}),
    "long path": tarred({"/".join(["p" * 200] * 40): b"x"}),
    "deep": tarred({"d/" * 65 + "x": b"x"}),
    "file and folder": tarred({"a": b"x", "a/b": b"x"}),
    "file for a folder": tarred({"a/b": b"x", "a": b"x"}),
    "bomb": zipped({str(number): bytes(1_000_000) for number in range(3)}),
    "tar bomb": tarred({str(number): bytes(1_000_000) for number in range(3)}),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_harmful_archive_is_refused_whole(server: Server, tmp_path: Path, harm: str) -> None:
    packed, root = HARMFUL[harm], tmp_path / "deep" / "root"
    remote = Remote("x.bin", (server.add("/a", packed),), sha(packed))
    result = get(root, remote, archives=(Archive("x.bin", into="in", unpacked_b=2_000_000),))
    assert "nothing of it was unpacked. If you trust" in result.missing["x.bin"]
    assert result.unpacked == ()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [root / "x.bin"]
    assert not list(root.glob(".x.bin*"))


def sparse_bomb(real_b: int) -> bytes:
    """A tar that holds one byte, and a map that says it is the last of many."""
    header = tarfile.TarInfo("hole").tobuf(tarfile.GNU_FORMAT)
    fields = bytearray(header)
    fields[124:136] = b"%011o\0" % 1
    fields[156:157] = tarfile.GNUTYPE_SPARSE
    fields[257:265] = b"ustar  \0"
    fields[386:410] = b"%011o\0%011o\0" % (real_b - 1, 1)
    fields[483:495] = b"%011o\0" % real_b
    fields[148:156] = b" " * 8
    fields[148:156] = b"%06o\0 " % sum(fields)
    return bytes(fields) + b"x".ljust(512, b"\0") + bytes(1024)


def test_what_is_declared_small_and_is_large_is_stopped_while_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(sparse_bomb(50_000_000))
    (tmp_path / "into").mkdir()
    with pytest.raises(unpack.RefusedArchiveError, match="more than the 3,000,000 bytes"):
        unpack.unpack(
            tmp_path / "x.tar", tmp_path / "into", most_b=3_000_000, progress=lambda *call: None
        )
    assert (tmp_path / "into" / "hole").stat().st_size <= 3_000_000
    assert (
        unpack.unpack(
            tmp_path / "x.tar", tmp_path / "into", most_b=50_000_000, progress=lambda *call: None
        )
        == 1
    )


def test_a_zip_that_lies_about_a_size_is_found_out(tmp_path: Path) -> None:
    packed = zipped({"a": bytes(5_000_000)})
    lying = packed.replace((5_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != packed
    (tmp_path / "x.zip").write_bytes(lying)
    (tmp_path / "into").mkdir()
    with pytest.raises(unpack.DamagedArchiveError):
        unpack.unpack(
            tmp_path / "x.zip", tmp_path / "into", most_b=1_000_000, progress=lambda *call: None
        )
    assert sum(path.stat().st_size for path in (tmp_path / "into").rglob("*")) <= 100


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MOST_FILES", 3)
    (tmp_path / "x.tar").write_bytes(tarred({str(number): b"" for number in range(4)}))
    (tmp_path / "into").mkdir()
    with pytest.raises(unpack.RefusedArchiveError, match="more than 3 files"):
        unpack.unpack(
            tmp_path / "x.tar", tmp_path / "into", most_b=100, progress=lambda *call: None
        )


def test_a_tar_header_of_any_length_does_not_fill_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 10**10
    (tmp_path / "x.tgz").write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(2**25)))
    (tmp_path / "into").mkdir()
    with pytest.raises(unpack.DamagedArchiveError, match=r"a header of 10000000\d+ bytes"):
        unpack.unpack(
            tmp_path / "x.tgz", tmp_path / "into", most_b=100, progress=lambda *call: None
        )


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


TAR = PACKED["x.tar"]
DAMAGED = {
    "nothing of the kind": CONTENT,
    "short": b"P",
    "zip truncated": PACKED["x.zip"][:-50],
    "zip flipped": flipped(PACKED["x.zip"], 100_000),
    "zip empty": zipped({}),
    "gz truncated": PACKED["x.tar.gz"][:-5000],
    "gz without its checksum": PACKED["x.tar.gz"][:-8],
    "gz flipped": flipped(PACKED["x.tar.gz"], 100_000),
    "gz wrong checksum": flipped(PACKED["x.tar.gz"], len(PACKED["x.tar.gz"]) - 6),
    "tar truncated": TAR[:100_000],
    "tar truncated at a member": TAR[: TAR.index(b"top/b/c.bin")],
    "tar header flipped": flipped(TAR, TAR.index(b"top/b/c.bin")),
    "tar empty": tarred({}, mode="w"),
    "encrypted": zipped({"a": b"x"}).replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_archive_is_set_aside_and_fetched_anew(
    server: Server, tmp_path: Path, damage: str
) -> None:
    url = server.add("/a", DAMAGED[damage])
    result = get(tmp_path, Remote("x", (url,)), archives=(Archive("x"),))
    assert "nothing of it was unpacked; kept as x.damaged; run this again" in result.missing["x"]
    assert names(tmp_path) == ["x.damaged"]
    server.pages["/a"].content = PACKED["x.zip"]
    assert get(tmp_path, Remote("x", (url,)), archives=(Archive("x"),)).unpacked == ("x",)


def test_a_damaged_archive_that_is_just_what_is_published_is_kept(
    server: Server, tmp_path: Path
) -> None:
    broken = DAMAGED["zip flipped"]
    result = get(
        tmp_path, Remote("x", (server.add("/a", broken),), sha(broken)), archives=(Archive("x"),)
    )
    assert "the sheet is wrong, or the published file is damaged" in result.missing["x"]
    assert names(tmp_path) == ["x"]


# --- parts ---


def parts(
    server: Server, packed: bytes, *, checksums: bool = True, gone: tuple[int, ...] = ()
) -> tuple[list[Remote], Archive]:
    third = len(packed) // 3
    slices = [packed[:third], packed[third : 2 * third], packed[2 * third :]]
    remotes = []
    for number, piece in enumerate(slices, 1):
        url = (
            server.url(f"/gone{number}")
            if number in gone
            else server.add(f"/x.zip.00{number}", piece)
        )
        remotes.append(
            Remote(f"x.zip.00{number}", (url,), sha(piece) if checksums else "", len(piece))
        )
    return remotes, Archive("x.zip", parts=tuple(remote.name for remote in remotes))


def test_parts_are_joined_in_order_and_unpacked_once(server: Server, tmp_path: Path) -> None:
    remotes, archive = parts(server, PACKED["x.zip"])
    first = get(tmp_path, *remotes, archives=(archive,))
    assert (first.downloaded, first.joined, first.unpacked) == (
        archive.parts,
        ("x.zip",),
        ("x.zip",),
    )
    assert (tmp_path / "x.zip").read_bytes() == PACKED["x.zip"]
    assert (tmp_path / "top/b/c.bin").read_bytes() == CONTENT
    second = get(tmp_path, *remotes, archives=(archive,))
    assert (second.downloaded, second.joined, second.unpacked, second.complete) == (
        (),
        (),
        (),
        True,
    )
    for name in (*archive.parts, "x.zip"):
        (tmp_path / name).unlink()
    third = get(tmp_path, *remotes, archives=(archive,))
    assert third.complete
    assert set(third.notes) == {*archive.parts, "x.zip"}
    assert len(server.asked) == 3


def test_a_whole_file_that_is_there_makes_parts_needless(server: Server, tmp_path: Path) -> None:
    remotes, archive = parts(server, PACKED["x.zip"])
    (tmp_path / "x.zip").write_bytes(PACKED["x.zip"])
    assert get(tmp_path, *remotes, archives=(archive,)).unpacked == ("x.zip",)
    assert server.asked == []


def test_a_joined_file_that_was_changed_since_is_found_out_and_joined_anew(
    server: Server, tmp_path: Path
) -> None:
    remotes, archive = parts(server, PACKED["x.zip"])
    get(tmp_path, *remotes, archives=(archive,))
    (tmp_path / "x.zip").write_bytes(DAMAGED["zip flipped"])
    result = get(tmp_path, *remotes, archives=(archive,))
    assert "kept as x.zip.damaged; run this again" in result.missing["x.zip"]
    again = get(tmp_path, *remotes, archives=(archive,))
    assert again.complete
    assert (tmp_path / "top/b/c.bin").read_bytes() == CONTENT


def test_a_whole_file_of_the_wrong_size_is_joined_anew(server: Server, tmp_path: Path) -> None:
    remotes, archive = parts(server, PACKED["x.zip"])
    (tmp_path / "x.zip").write_bytes(PACKED["x.zip"][:-1])
    result = get(tmp_path, *remotes, archives=(archive,))
    assert result.joined == ("x.zip",)
    assert result.complete
    assert (tmp_path / "x.zip.damaged").stat().st_size == len(PACKED["x.zip"]) - 1


def test_a_missing_part_is_named_and_the_others_are_kept(server: Server, tmp_path: Path) -> None:
    remotes, archive = parts(server, PACKED["x.zip"], gone=(2,))
    result = get(tmp_path, *remotes, archives=(archive,))
    assert list(result.missing) == ["x.zip.002"]
    assert (result.downloaded, result.joined, result.unpacked) == (
        ("x.zip.001", "x.zip.003"),
        (),
        (),
    )


def test_a_missing_part_is_made_up_for_by_the_whole(server: Server, tmp_path: Path) -> None:
    remotes, archive = parts(server, PACKED["x.zip"], gone=(2,))
    whole = Remote("x.zip", (server.add("/whole", PACKED["x.zip"]),), sha(PACKED["x.zip"]))
    result = get(tmp_path, *remotes, whole, archives=(archive,))
    assert result.complete
    assert (result.joined, result.unpacked) == ((), ("x.zip",))
    assert "could not be had" in result.notes["x.zip.002"]


def test_dead_parts_come_after_the_whole(server: Server, tmp_path: Path) -> None:
    remotes, archive = parts(server, PACKED["x.zip"])
    dead = [Remote(remote.name, remote.urls, remote.sha256, dead="gone") for remote in remotes]
    whole = Remote("x.zip", (server.add("/whole", PACKED["x.zip"]),), sha(PACKED["x.zip"]))
    assert get(tmp_path, *dead, whole, archives=(archive,)).unpacked == ("x.zip",)
    assert [path for path, _ in server.asked] == ["/whole"]


def test_a_joined_file_is_checked(server: Server, tmp_path: Path) -> None:
    remotes, archive = parts(server, PACKED["x.zip"], checksums=False)
    result = get(tmp_path, *remotes, Remote("x.zip", (), sha(OTHER)), archives=(archive,))
    assert sha(OTHER) in result.missing["x.zip"]
    assert sha(PACKED["x.zip"]) in result.missing["x.zip"]
    assert names(tmp_path) == [f"x.zip.00{number}.damaged" for number in (1, 2, 3)]


def test_parts_without_checksums_that_do_not_fit_are_fetched_anew(
    server: Server, tmp_path: Path
) -> None:
    remotes, archive = parts(server, DAMAGED["zip flipped"], checksums=False)
    assert not get(tmp_path, *remotes, archives=(archive,)).complete
    assert names(tmp_path) == [
        "x.zip.001.damaged",
        "x.zip.002.damaged",
        "x.zip.003.damaged",
        "x.zip.damaged",
    ]
    remotes, archive = parts(server, PACKED["x.zip"], checksums=False)
    assert get(tmp_path, *remotes, archives=(archive,)).unpacked == ("x.zip",)


def test_parts_put_there_by_hand_are_used(tmp_path: Path) -> None:
    packed = PACKED["x.zip"]
    (tmp_path / "x.001").write_bytes(packed[:1000])
    (tmp_path / "x.002").write_bytes(packed[1000:])
    result = get(tmp_path, archives=(Archive("x", parts=("x.001", "x.002")),))
    assert (result.joined, result.unpacked, result.present) == (("x",), ("x",), ("x.001", "x.002"))


# --- kills ---

CHILD = """
import pathlib, time
{before}
from patchifier.datasets import download, sheet, transfer, unpack
root, flag = pathlib.Path({root!r}), pathlib.Path({root!r}) / "flag"

def hang():
    flag.write_text("")
    time.sleep(60)

{during}
toy = sheet.Sheet("toy", "", "", "", "", None, {{}}, (sheet.Remote("a", ({url!r},), {sha!r}),), {archives})
result = download.fetch(toy, root, retry=transfer.RetryPolicy(timeout_s=5, attempts=1), progress=globals().get("progress", download.silent))
assert result.complete, result
"""


def child(
    root: Path,
    environment: dict[str, str],
    url: str,
    *,
    before: str = "",
    during: str = "",
    archives: str = "()",
    digest: str = sha(CONTENT),
):
    """Fetch in another process."""
    code = CHILD.format(
        root=str(root),
        url=url,
        sha=digest,
        before=before,
        during=during,
        archives=archives,
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
    )


def kill_when(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


def test_a_download_that_was_killed_goes_on(
    server: Server, tmp_path: Path, child_environment: dict[str, str]
) -> None:
    url = server.add("/a", CONTENT, slow_s=0.2)
    part = tmp_path / "a.part"
    kill_when(
        child(tmp_path, child_environment, url),
        lambda: part.exists() and part.stat().st_size > 30_000,
    )
    kept = part.stat().st_size
    server.pages["/a"].slow_s = 0
    assert get(tmp_path, Remote("a", (url,), sha(CONTENT))).complete
    assert server.ranges("/a") == ["", f"bytes={kept}-"]
    assert (tmp_path / "a").read_bytes() == CONTENT


UNPACKING = """
def progress(done, total, note):
    if note.startswith("unpacking") and len(list(root.rglob("*.bin"))):
        hang()
"""
MERGING = """
def merge(work, target):
    (work / "top").replace(target / "top")
    hang()
unpack.merge = merge
"""


@pytest.mark.parametrize("during", [UNPACKING, MERGING])
def test_unpacking_that_was_killed_is_finished_by_the_next_run(
    server: Server, tmp_path: Path, child_environment: dict[str, str], during: str
) -> None:
    packed = PACKED["x.tar.gz"]
    url = server.add("/a", packed)
    kill_when(
        child(
            tmp_path,
            child_environment,
            url,
            during=during,
            archives='(sheet.Archive("a"),)',
            digest=sha(packed),
        ),
        (tmp_path / "flag").exists,
    )
    assert (tmp_path / ".a.unpacking").is_dir()
    assert not (tmp_path / ".a.unpacked").exists()
    assert (tmp_path / "top").exists() == (during == MERGING)  # nothing half-made in sight
    (tmp_path / "flag").unlink()
    result = get(tmp_path, Remote("a", (url,), sha(packed)), archives=(Archive("a"),))
    assert (result.unpacked, dict(result.notes)) == (("a",), {})
    assert names(tmp_path) == sorted(["a", ".a.unpacked", *FILES])
    assert {path: (tmp_path / path).read_bytes() for path in FILES} == FILES
    assert len(server.asked) == 1


def test_joining_that_was_interrupted_is_begun_again(server: Server, tmp_path: Path) -> None:
    remotes, archive = parts(server, PACKED["x.zip"])

    def interrupt(done: int, total: int, note: str) -> None:
        if note.startswith("joining"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(tmp_path, *remotes, archives=(archive,), progress=interrupt)
    assert not (tmp_path / "x.zip").exists()
    assert get(tmp_path, *remotes, archives=(archive,)).unpacked == ("x.zip",)
    assert len(server.asked) == 3


def test_an_interruption_while_unpacking_leaves_nothing_behind(
    server: Server, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int, note: str) -> None:
        if note.startswith("unpacking"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(
            tmp_path,
            Remote("a", (server.add("/a", PACKED["x.zip"]),)),
            archives=(Archive("a"),),
            progress=interrupt,
        )
    assert names(tmp_path) == ["a"]
    assert not (tmp_path / ".a.unpacking").exists()


def test_a_disk_that_is_full_while_unpacking_is_said(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr(unpack, "_write", full)
    with pytest.raises(RequestError, match="disk is full"):
        get(tmp_path, Remote("a", (server.add("/a", PACKED["x.zip"]),)), archives=(Archive("a"),))
    assert names(tmp_path) == ["a"]
    monkeypatch.undo()
    assert get(tmp_path, Remote("a", (server.url("/a"),)), archives=(Archive("a"),)).unpacked == (
        "a",
    )
