"""Fetching from a server that stalls, breaks off and lies; harmful archives; kills half-way."""

import errno
import gzip
import hashlib
import io
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

import pytest

from patchifier.cli.data import fetched_text
from patchifier.config import RequestError
from patchifier.datasets import transfer, unpack
from patchifier.datasets.download import fetch
from patchifier.datasets.sheet import Archive, Remote, Sheet, Variant
from patchifier.datasets.transfer import RetryPolicy
from patchifier.io import silent
from tests.servers import serving

CONTENT = random.Random(0).randbytes(200_000)
OTHER = random.Random(1).randbytes(200_000)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Whatever the machine's environment says."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server():
    with serving() as running:
        yield running


def sha(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def get(tmp_path):
    """Fetch files, by default into the test's folder."""

    def run(*remotes, archives=(), progress=silent, root=tmp_path, **retry):
        texts = ("toy", "Toy set", "http://home", "free", "nobody")
        variants, steps = {"": Variant("all")}, {"steps": "Ask the author."}
        sheet = Sheet(*texts, lambda root, name: None, variants, remotes, archives, **steps)
        policy = RetryPolicy(**{"timeout_s": 0.3, "attempts": 3, "backoff_s": 0.01, **retry})
        return fetch(sheet, root, progress=progress, retry=policy)

    return run


@pytest.fixture
def serve(server):
    """Serve a file, and give it as a sheet names it, with its checksum."""

    def add(name="a", content=CONTENT, **how):
        return Remote(name, (server.add(f"/{name}", content, **how),), sha(content))

    return add


def names(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def interrupt_at(word):
    def progress(done, total, note):
        if note.startswith(word):
            raise KeyboardInterrupt

    return progress


# --- downloads that work ---


def test_a_file_is_downloaded_checked_and_then_left_alone(server, get, tmp_path):
    name, root = "sub/folder/ä b.bin", tmp_path / "new" / "root"
    remote = Remote(name, (server.add("/a", CONTENT),), sha(CONTENT).upper(), len(CONTENT))
    first = get(remote, root=root)
    assert (first.downloaded, first.present) == ((name,), ())
    assert dict(first.missing) == dict(first.notes) == {}
    assert (root / name).read_bytes() == CONTENT
    assert names(tmp_path) == [f"new/root/{name}"]
    second = get(remote, root=root)
    assert (second.downloaded, second.present) == ((), (name,))
    assert len(server.asked) == 1


def test_progress_ends_at_its_total_once_a_file_and_step(serve, get):
    calls = []
    remote = serve("big", bytes(3_500_000))
    get(remote, progress=lambda *call: calls.append(call))
    assert calls.pop(0) == (0, 0, f"connecting to {remote.urls[0]}")
    assert [note for done, total, note in calls if done == total] == ["big", "checking big.part"]
    assert all(0 <= done <= total == 4 for done, total, _ in calls)


def test_each_try_says_what_it_connects_to_and_why_the_last_one_failed(get):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a"
    notes = []
    get(Remote("a", (url,)), attempts=2, progress=lambda done, total, note: notes.append(note))
    first, failed, second = notes
    assert first == second == f"connecting to {url}"
    assert failed.startswith(f"{url} cannot be reached")
    assert failed.endswith("next try in 0 s")


def test_a_file_without_a_checksum_is_said_to_be_unverified(server, get):
    url, said = server.add("/a", CONTENT), "not verified: no checksum published"
    assert get(Remote("a", (url,))).notes == {"a": said}
    sized = get(Remote("b", (url,), size_b=len(CONTENT)))
    assert sized.notes == {"b": f"{said} (its size fits)"}
    again = get(Remote("a", (url,)))
    assert (again.present, again.notes) == (("a",), {"a": said})


def test_what_is_published_by_a_server_that_does_not_say_how_long_it_is(serve, get, tmp_path):
    remote = serve(no_length=True)
    assert get(remote).complete
    short = get(Remote("b", remote.urls, size_b=len(CONTENT) - 1))
    assert "gave more than the 199,999 bytes" in short.missing["b"]
    assert names(tmp_path) == ["a"]


# --- breaks, stalls, resuming ---


@pytest.mark.parametrize("published", [{"sha256": sha(CONTENT)}, {"size_b": len(CONTENT)}, {}])
def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, get, tmp_path, published):
    url = server.add("/a", CONTENT, break_after=[70_000, 70_000])
    assert get(Remote("a", (url,), **published)).complete
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.ranges("/a") == ["", "bytes=70000-", "bytes=140000-"]
    assert server.marks == ["", '"v1"', '"v1"']


def test_a_stall_is_noticed_and_the_download_goes_on(server, serve, get):
    started = time.monotonic()
    assert get(serve(stall_after=[50_000])).downloaded == ("a",)
    assert time.monotonic() - started < 3
    assert server.ranges("/a") == ["", "bytes=50000-"]


def test_an_endless_stall_gives_up_and_keeps_what_there_is(server, serve, get, tmp_path):
    remote = serve(stall_after=[50_000, 0, 0, 0, 0])
    assert "stalled (tried 3 times without getting further)" in get(remote).missing["a"]
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:50_000]
    server.pages["/a"].stall_after.clear()
    assert get(remote).complete
    assert names(tmp_path) == ["a"]


def test_tries_that_get_further_are_not_counted(serve, get):
    assert get(serve(break_after=[20_000] * 9), attempts=2).complete


@pytest.mark.parametrize("breaks", [1, 99])
def test_a_server_that_ignores_range_is_read_from_the_start(server, serve, get, tmp_path, breaks):
    result = get(serve(ranges=False, break_after=[70_000] * breaks))
    if breaks == 1:
        assert (tmp_path / "a").read_bytes() == CONTENT
        assert server.ranges("/a") == ["", "bytes=70000-"]
    else:
        assert "broke off after 70,000 of 200,000 bytes" in result.missing["a"]
        assert len(server.asked) <= 4


@pytest.mark.parametrize("published", [{"sha256": sha(OTHER)}, {"size_b": len(OTHER)}, {}])
@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changes_between_two_halves_is_not_spliced(
    server, get, tmp_path, published, if_range
):
    def swap(page):
        page.content, page.etag = OTHER, '"v2"'

    url = server.add("/a", CONTENT, break_after=[70_000], then=swap, if_range=if_range)
    assert get(Remote("a", (url,), **published)).complete
    assert (tmp_path / "a").read_bytes() == OTHER


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
@pytest.mark.parametrize(
    ("how", "digest", "ranges"),
    [
        ({}, "", ["", ""]),
        ({"if_range": False}, sha(OTHER), ["", "bytes=70000-", ""]),  # spliced, found out, anew
    ],
)
def test_without_any_mark_of_the_version_only_a_checksum_allows_resuming(
    server, get, tmp_path, etag, how, digest, ranges
):
    def change(page):
        page.content = OTHER

    url = server.add("/a", CONTENT, etag=etag, break_after=[70_000], then=change, **how)
    assert get(Remote("a", (url,), digest)).complete
    assert (tmp_path / "a").read_bytes() == OTHER
    assert server.ranges("/a") == ranges


def test_a_part_longer_than_the_file_is_thrown_away(server, serve, get, tmp_path):
    (tmp_path / "a.part").write_bytes(bytes(300_000))
    assert get(serve()).complete
    assert server.ranges("/a") == ["bytes=300000-", ""]


def test_a_part_that_is_whole_is_not_downloaded(server, get, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT)
    url = server.add("/a", CONTENT)
    assert get(Remote("a", (url,), sha(CONTENT), len(CONTENT))).complete
    assert server.asked == []


@pytest.mark.parametrize("record", ['{"url": "http://elsewhere/a", "mark": "\\"v1\\""}', "[broken"])
def test_a_part_from_elsewhere_is_not_used_without_a_checksum(server, get, tmp_path, record):
    (tmp_path / "a.part").write_bytes(bytes(1000))
    (tmp_path / "a.part.json").write_text(record)
    assert get(Remote("a", (server.add("/a", CONTENT),))).complete
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_an_interruption_keeps_the_part(server, serve, get, tmp_path):
    remote = serve("a", bytes(3_000_000), slow_s=0.001)

    def interrupt(done, total, note):
        if done >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(remote, progress=interrupt)
    assert 10**6 <= (tmp_path / "a.part").stat().st_size < 3_000_000
    assert get(remote).complete
    assert len(server.asked) == 2
    assert int(server.asked[1][1].removeprefix("bytes=").removesuffix("-")) >= 10**6


# --- servers that refuse, fail or lie ---


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_that_is_busy_is_asked_again(server, serve, get, code):
    assert get(serve(codes=[code, code], headers={"Retry-After": "0"})).complete
    assert len(server.asked) == 3


def test_a_server_may_ask_for_time(serve, get, monkeypatch):
    waits = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    assert get(serve("a", codes=[503], headers={"Retry-After": "7"}), attempts=5).complete
    get(serve("b", codes=[503] * 9, headers={"Retry-After": "86400"}), attempts=3)
    get(serve("c", codes=[500] * 9), attempts=4, backoff_s=1.0)
    assert waits == [7, 60, 60, 1, 2, 4]


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_file_that_is_gone_is_sought_at_the_next_address_at_once(server, serve, get, code):
    gone, there = serve("gone", codes=[code] * 9), serve("a")
    assert get(Remote("a", gone.urls + there.urls, sha(CONTENT))).downloaded == ("a",)
    assert [path for path, _ in server.asked] == ["/gone", "/a"]


def test_a_wrong_checksum_sends_to_the_next_address(serve, get, tmp_path):
    urls = serve("wrong", OTHER).urls + serve("right").urls
    assert get(Remote("a", urls, sha(CONTENT), len(CONTENT))).downloaded == ("a",)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_checksum_everywhere_is_said_with_both(server, serve, get, tmp_path):
    result = get(Remote("a", serve("x", OTHER).urls, sha(CONTENT)), serve("b"))
    assert sha(CONTENT) in result.missing["a"]
    assert sha(OTHER) in result.missing["a"]
    assert (result.downloaded, names(tmp_path), len(server.asked)) == (("b",), ["b"], 2)
    assert not result.complete


@pytest.mark.parametrize(
    ("page", "published", "said"),
    [
        ({}, {"size_b": 123}, "announces 200,000 bytes, expected 123"),
        ({"announce": 150_000}, {"sha256": sha(CONTENT)}, "has sha256"),
        ({"announce": 150_000}, {"size_b": 200_000}, "announces 150,000 bytes, expected 200,000"),
        ({"announce": 250_000}, {"size_b": 200_000}, "announces 250,000 bytes"),
        ({"content": b""}, {}, "is empty"),
        ({"content": b"<html>", "kind": "text/html; charset=utf-8"}, {}, "web page"),
        ({"headers": {"Content-Encoding": "gzip"}}, {}, "compressed"),
    ],
)
def test_what_a_server_lies_about_is_no_file(server, get, tmp_path, page, published, said):
    url = server.add("/a", **{"content": CONTENT, **page})
    assert said in get(Remote("a.csv", (url,), **published)).missing["a.csv"]
    assert names(tmp_path) == []


def test_a_length_announced_too_long_is_found_out(serve, get, tmp_path):
    remote = serve(announce=250_000)
    said = get(Remote("a", remote.urls)).missing["a"]
    assert "broke off" in said or "shorter file" in said
    assert not (tmp_path / "a").exists()
    assert get(remote).complete  # the checksum says that it is all there


def test_an_empty_file_a_web_page_and_a_compressed_file_may_be_what_is_published(server, get):
    assert get(Remote("b", (server.add("/a"),), size_b=0)).complete
    form = server.add("/b", b"<html>fill in this form", kind="text/html; charset=utf-8")
    assert get(Remote("index.html", (form,))).complete
    url = server.add("/c", gzip.compress(CONTENT), headers={"Content-Encoding": "gzip"})
    assert get(Remote("a.tar.gz", (url,))).complete  # how some servers say .gz


def test_redirects_are_followed_and_loops_are_not(server, serve, get):
    there = serve("there", break_after=[70_000]).urls[0]
    assert get(Remote("a", serve("here", redirect=there).urls, sha(CONTENT))).complete
    assert server.ranges("/there") == ["", "bytes=70000-"]
    assert "302" in get(serve("loop", redirect=server.url("/loop"))).missing["loop"]


WEB = "file:///etc/hostname ftp://host/a data:,abc a.zip  http:// http://host:port/a http://ä_b/"


@pytest.mark.parametrize("url", [url.replace("_", " ") for url in WEB.split(" ")])
def test_only_the_web_is_fetched(serve, get, url):
    assert list(get(Remote("a", (url,)), attempts=1).missing) == ["a"]
    assert get(Remote("b", (url, *serve("b").urls)), attempts=1).downloaded == ("b",)


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_a_redirect_out_of_the_web_is_refused(server, serve, get, tmp_path, to):
    assert list(get(serve(redirect=to)).missing) == ["a"]
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_a_redirect_from_an_encrypted_connection_to_an_open_one_is_refused():
    def redirect(url):
        request = urllib.request.Request("https://host/a")
        handler = transfer._Redirects()
        return handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, url)

    said = "redirects from https to http://host/a: refused"
    with pytest.raises(transfer.UnavailableError, match=said):
        redirect("http://host/a")
    assert redirect("https://other/a").full_url == "https://other/a"


def test_a_host_that_nobody_answers_for_is_given_up(get):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
        assert "cannot be reached" in get(Remote("a", (url,))).missing["a"]


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc"


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", CHUNKED, b"HTTP/1.1 204 No\r\n\r\n"])
def test_what_is_no_web_server_is_given_up(get, tmp_path, reply):
    def answer():
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(2)
        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a"
        result = get(Remote("a", (url,)), attempts=1)
        thread.join()
    assert list(result.missing) == ["a"]
    assert not (tmp_path / "a").exists()


def test_a_proxy_of_the_environment_is_used(server, get, monkeypatch):
    server.add("http://nowhere.invalid/a", CONTENT)
    monkeypatch.setenv("http_proxy", server.url(""))
    assert get(Remote("a", ("http://nowhere.invalid/a",), sha(CONTENT))).complete
    assert server.asked == [("http://nowhere.invalid/a", "")]


# --- the folder ---


def test_a_damaged_file_is_kept_under_another_name(serve, get, tmp_path):
    remote = serve()
    for mine, aside in [(b"mine", "a.damaged"), (b"mine too", "a.damaged-2")]:
        (tmp_path / "a").write_bytes(mine)
        result = get(remote)
        assert result.downloaded == ("a",)
        assert aside in result.notes["a"]
        assert sha(mine) in result.notes["a"]
        assert (tmp_path / aside).read_bytes() == mine
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["../a", "/etc/a", "C:\\a", "x/../../a"])
def test_a_sheet_that_leads_out_of_the_root_is_refused(server, get, tmp_path, name):
    with pytest.raises(RequestError, match="leads out of its folder"):
        get(Remote(name, (server.add("/a", CONTENT),)), root=tmp_path / "root")
    assert names(tmp_path) == []


def test_a_root_that_cannot_be_written_to_is_said(serve, get, tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file" / "root", tmp_path / "file"):
        with pytest.raises(RequestError, match=r"file.*Choose a --root"):
            get(serve(), root=root)
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match="no regular file"):
        get(Remote("folder", serve().urls))


def test_two_at_once_in_one_folder_are_refused(serve, get):
    remote = serve()

    def second(done, total, note):
        with pytest.raises(RequestError, match="another fetch"):
            get(remote)

    assert get(remote, progress=second).complete
    assert get(remote).complete


@pytest.mark.parametrize(
    "how", [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"attempts": 0}, {"backoff_s": -1}]
)
def test_patience_that_makes_no_sense_is_refused(get, how):
    with pytest.raises(RequestError, match=f"{next(iter(how))} is"):
        get(Remote("a"), **how)


def test_a_sheet_without_files_is_refused_with_what_to_do(get):
    with pytest.raises(RequestError, match=r"lists no files\. Ask the author"):
        get()


# --- dead addresses ---


def test_a_dead_address_is_tried_once_and_said_with_what_to_do(server, get, tmp_path):
    url, dead = server.add("/a", codes=[503] * 9), "the host is gone since 2022"
    remote = Remote("a.zip", (url,), sha(CONTENT), dead=dead)
    said = get(remote).missing["a.zip"]
    for text in (f"no longer published: {dead}", url, "Ask the author."):
        assert text in said
    assert f"Put the file at {tmp_path / 'a.zip'}" in said
    (tmp_path / "a.zip").write_bytes(CONTENT)
    assert get(remote).present == ("a.zip",)
    assert len(server.asked) == 1


def test_a_file_without_any_address_is_said_with_what_to_do(get):
    result = get(Remote("a.zip"))
    assert "no address is known" in result.missing["a.zip"]
    assert "Ask the author." in result.missing["a.zip"]
    assert fetched_text(result).splitlines()[-1].startswith("MISSING: a.zip")
    assert not result.complete


# --- archives ---


def zipped(files, mode=0):
    """Make a zip; the mode says what kind of file each of its members is."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name or "x")
            info.filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            if mode:
                info.external_attr = mode << 16
            archive.writestr(info, content)
    return out.getvalue()


def tarred(files, *extra, mode="w:gz"):
    """Make a tar of files and of further (name, type, target of the link)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, kind, link in extra:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            archive.addfile(info)
    return out.getvalue()


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


FILES = {
    "top/a.txt": b"alpha" * 1000,
    "top/b/c.bin": CONTENT,
    "d é.txt": b"delta",
    "top/empty": b"",
}
LONG = {"y" * 150 + "/" + "z" * 200: b"long"}
ZIP, TAR, TGZ = zipped(FILES), tarred(FILES, mode="w"), tarred(FILES)
PACKED = {"x.zip": ZIP, "x.tar": TAR, "x.tar.gz": TGZ, "pax.tgz": tarred(LONG)}


def unpacked(root):
    return {path: (root / path).read_bytes() for path in FILES}


@pytest.mark.parametrize("name", PACKED)
def test_an_archive_is_unpacked_once(server, serve, get, tmp_path, name):
    remote, archives = serve(name, PACKED[name]), (Archive(name, into="data/in"),)
    first = get(remote, archives=archives)
    assert (first.downloaded, first.unpacked, dict(first.missing)) == ((name,), (name,), {})
    files = LONG if name == "pax.tgz" else FILES
    for path, content in files.items():
        assert (tmp_path / "data/in" / path).read_bytes() == content
    inside = [f"data/in/{path}" for path in files]
    assert names(tmp_path) == sorted([name, f".{name}.unpacked", *inside])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = get(remote, archives=archives)
    assert (second.downloaded, second.unpacked, second.present) == ((), (), (name,))
    assert second.complete
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert len(server.asked) == 1


def test_an_archive_may_be_deleted_once_it_is_unpacked(server, serve, get, tmp_path):
    remote, archives = serve("x.zip", ZIP), (Archive("x.zip"),)
    get(remote, archives=archives)
    (tmp_path / "x.zip").unlink()
    again = get(remote, archives=archives)
    assert again.complete
    assert "unpacked before" in again.notes["x.zip"]
    assert len(server.asked) == 1
    (tmp_path / "d é.txt").unlink()  # what was unpacked is gone
    assert get(remote, archives=archives).unpacked == ("x.zip",)
    assert unpacked(tmp_path) == FILES
    newer = serve("x.zip", zipped({"new.txt": b"new"}))  # the sheet changed
    assert get(newer, archives=archives).unpacked == ("x.zip",)
    assert (tmp_path / "new.txt").read_bytes() == b"new"


@pytest.mark.parametrize(
    "marker", ["", "[]", '{"sha256": 1}', '{"sha256": "a", "sources": {}, "top": 3, "into": "."}']
)
def test_a_record_that_is_none_is_passed_over(serve, get, tmp_path, marker):
    (tmp_path / ".x.zip.unpacked").write_text(marker)
    assert get(serve("x.zip", ZIP), archives=(Archive("x.zip"),)).unpacked == ("x.zip",)


def test_files_in_the_way_are_kept_under_another_name(serve, get, tmp_path):
    (tmp_path / "top").mkdir()
    (tmp_path / "d é.txt").write_bytes(b"delta")
    in_the_way = {"top/a.txt": b"mine", "top/b": b"a file where a folder goes"}
    for name, content in in_the_way.items():
        (tmp_path / name).write_bytes(content)
    result = get(serve("x.zip", ZIP), archives=(Archive("x.zip"),))
    assert unpacked(tmp_path) == FILES
    for name, content in in_the_way.items():
        assert (tmp_path / f"{name}.damaged").read_bytes() == content
        assert f"{name}.damaged" in result.notes["x.zip"]
    assert not (tmp_path / "d é.txt.damaged").exists()


HARMFUL = {
    "zip slip": zipped({"good": b"1", "../evil": b"x"}),
    "zip slip below": zipped({"a/b/../../../evil": b"x"}),
    "zip backslashes": zipped({"..\\evil": b"x"}),
    "zip absolute": zipped({"/evil": b"x"}),
    "zip drive": zipped({"C:/evil": b"x"}),
    "zip drive relative": zipped({"x/C:evil": b"x"}),
    "zip share": zipped({"\\\\host\\share\\evil": b"x"}),
    "zip dots and blanks": zipped({".. /evil": b"x"}),
    "zip symlink": zipped({"link": b"/etc"}, stat.S_IFLNK | 0o777),
    "zip device": zipped({"dev": b""}, stat.S_IFCHR | 0o777),
    "tar slip": tarred({"good": b"1", "../evil": b"x"}),
    "tar absolute": tarred({"/evil": b"x"}),
    "tar symlink": tarred({}, ("link", tarfile.SYMTYPE, "/etc")),
    "tar symlink escape": tarred(
        {}, ("link", tarfile.SYMTYPE, ".."), ("link/evil", tarfile.REGTYPE, "")
    ),
    "tar hard link": tarred({"good": b"1"}, ("hard", tarfile.LNKTYPE, "../../evil")),
    "tar hard link inside": tarred({"good": b"1"}, ("hard", tarfile.LNKTYPE, "good")),
    "tar device": tarred({}, ("dev", tarfile.CHRTYPE, "")),
    "tar pipe": tarred({}, ("pipe", tarfile.FIFOTYPE, "")),
    "tar unknown": tarred({}, ("what", b"Q", "")),
    "tar folder slip": tarred({}, ("../evil", tarfile.DIRTYPE, "")),
    "zip without a name": zipped({"good": b"1", "": b"x"}),
    "zip name of a point": zipped({"good": b"1", "./.": b"x"}),
    "tar without a name": tarred({"good": b"1", "": b"x"}),
    "long name": zipped({"n" * 300: b"x"}),
    "long path": tarred({"/".join(["p" * 200] * 40): b"x"}),
    "deep": tarred({"d/" * 65 + "x": b"x"}),
    "file and folder": tarred({"a": b"x", "a/b": b"x"}),
    "file for a folder": tarred({"a/b": b"x", "a": b"x"}),
    "bomb": zipped({str(number): bytes(1_000_000) for number in range(3)}),
    "tar bomb": tarred({str(number): bytes(1_000_000) for number in range(3)}),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_harmful_archive_is_refused_whole(serve, get, tmp_path, harm):
    root, archive = tmp_path / "deep" / "root", Archive("x.bin", into="in", unpacked_b=2_000_000)
    result = get(serve("x.bin", HARMFUL[harm]), archives=(archive,), root=root)
    assert "nothing of it was unpacked. If you trust" in result.missing["x.bin"]
    assert result.unpacked == ()
    assert names(tmp_path) == ["deep/root/x.bin"]
    assert not list(root.glob(".x.bin*"))


@pytest.fixture
def unpack_here(tmp_path):
    """Unpack the bytes of an archive into a new folder, and give how many files came of it."""

    def run(packed, most_b):
        (tmp_path / "x").write_bytes(packed)
        (tmp_path / "into").mkdir(exist_ok=True)
        paths = tmp_path / "x", tmp_path / "into"
        return unpack.unpack(*paths, most_b=most_b, progress=silent)

    return run


def sparse_bomb(real_b):
    """A tar that holds one byte, and a map that says it is the last of many."""
    fields = bytearray(tarfile.TarInfo("hole").tobuf(tarfile.GNU_FORMAT))
    fields[124:136] = b"%011o\0" % 1
    fields[156:157] = tarfile.GNUTYPE_SPARSE
    fields[257:265] = b"ustar  \0"
    fields[386:410] = b"%011o\0%011o\0" % (real_b - 1, 1)
    fields[483:495] = b"%011o\0" % real_b
    fields[148:156] = b" " * 8
    fields[148:156] = b"%06o\0 " % sum(fields)
    return bytes(fields) + b"x".ljust(512, b"\0") + bytes(1024)


def test_what_is_declared_small_and_is_large_is_stopped_while_it_is_written(unpack_here, tmp_path):
    with pytest.raises(unpack.RefusedArchiveError, match="more than the 3,000,000 bytes"):
        unpack_here(sparse_bomb(50_000_000), 3_000_000)
    assert (tmp_path / "into" / "hole").stat().st_size <= 3_000_000
    assert unpack_here(sparse_bomb(50_000_000), 50_000_000) == 1


def test_a_zip_that_lies_about_a_size_is_found_out(unpack_here, tmp_path):
    packed = zipped({"a": bytes(5_000_000)})
    lying = packed.replace((5_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != packed
    with pytest.raises(unpack.DamagedArchiveError):
        unpack_here(lying, 1_000_000)
    assert sum(path.stat().st_size for path in (tmp_path / "into").rglob("*")) <= 100


def test_too_many_files_are_refused(unpack_here, monkeypatch):
    monkeypatch.setattr(unpack, "MOST_FILES", 3)
    with pytest.raises(unpack.RefusedArchiveError, match="more than 3 files"):
        unpack_here(tarred(dict.fromkeys("abcd", b"")), 100)


def test_a_tar_header_of_any_length_does_not_fill_memory(unpack_here):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 10**10
    with pytest.raises(unpack.DamagedArchiveError, match=r"a header of 10000000\d+ bytes"):
        unpack_here(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(2**25)), 100)


CENTRAL = b"PK\x01\x02\x14\x03\x14\x00\x00"
DAMAGED = {
    "nothing of the kind": CONTENT,
    "short": b"P",
    "zip truncated": ZIP[:-50],
    "zip flipped": flipped(ZIP, 100_000),
    "zip empty": zipped({}),
    "gz truncated": TGZ[:-5000],
    "gz without its checksum": TGZ[:-8],
    "gz flipped": flipped(TGZ, 100_000),
    "gz wrong checksum": flipped(TGZ, len(TGZ) - 6),
    "tar truncated": TAR[:100_000],
    "tar truncated at a member": TAR[: TAR.index(b"top/b/c.bin")],
    "tar header flipped": flipped(TAR, TAR.index(b"top/b/c.bin")),
    "tar empty": tarred({}, mode="w"),
    "encrypted": zipped({"a": b"x"}).replace(CENTRAL, CENTRAL[:-1] + b"\x01"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_archive_is_set_aside_and_fetched_anew(server, get, tmp_path, damage):
    remote = Remote("x", (server.add("/a", DAMAGED[damage]),))
    said = get(remote, archives=(Archive("x"),)).missing["x"]
    assert "nothing of it was unpacked; kept as x.damaged; run this again" in said
    assert names(tmp_path) == ["x.damaged"]
    server.pages["/a"].content = ZIP
    assert get(remote, archives=(Archive("x"),)).unpacked == ("x",)


def test_a_damaged_archive_that_is_just_what_is_published_is_kept(serve, get, tmp_path):
    result = get(serve("x", DAMAGED["zip flipped"]), archives=(Archive("x"),))
    assert "the sheet is wrong, or the published file is damaged" in result.missing["x"]
    assert names(tmp_path) == ["x"]


# --- parts ---

PARTS = ("x.zip.001", "x.zip.002", "x.zip.003")
JOINED = (Archive("x.zip", parts=PARTS),)


@pytest.fixture
def parts(server, serve):
    """Serve an archive in three parts, without those that are gone."""

    def add(packed=ZIP, *, gone=()):
        third = len(packed) // 3
        slices = (packed[:third], packed[third : 2 * third], packed[2 * third :])
        remotes = [serve(*part) for part in zip(PARTS, slices, strict=True)]
        for name in gone:
            del server.pages[f"/{name}"]
        return remotes

    return add


def unchecked(remotes):
    return [Remote(remote.name, remote.urls) for remote in remotes]


def test_parts_are_joined_in_order_and_unpacked_once(server, parts, get, tmp_path):
    remotes = parts()
    first = get(*remotes, archives=JOINED)
    assert (first.downloaded, first.joined, first.unpacked) == (PARTS, ("x.zip",), ("x.zip",))
    assert (tmp_path / "x.zip").read_bytes() == ZIP
    assert unpacked(tmp_path) == FILES
    second = get(*remotes, archives=JOINED)
    assert (second.downloaded, second.joined, second.unpacked) == ((), (), ())
    assert second.complete
    for name in (*PARTS, "x.zip"):
        (tmp_path / name).unlink()
    third = get(*remotes, archives=JOINED)
    assert third.complete
    assert set(third.notes) == {*PARTS, "x.zip"}
    assert len(server.asked) == 3


def test_a_whole_file_that_is_there_makes_parts_needless(server, parts, get, tmp_path):
    (tmp_path / "x.zip").write_bytes(ZIP)
    assert get(*parts(), archives=JOINED).unpacked == ("x.zip",)
    assert server.asked == []


def test_a_joined_file_that_was_changed_since_is_found_out_and_joined_anew(parts, get, tmp_path):
    remotes = parts()
    get(*remotes, archives=JOINED)
    (tmp_path / "x.zip").write_bytes(DAMAGED["zip flipped"])
    said = get(*remotes, archives=JOINED).missing["x.zip"]
    assert "kept as x.zip.damaged; run this again" in said
    assert get(*remotes, archives=JOINED).complete
    assert unpacked(tmp_path) == FILES


def test_a_whole_file_of_the_wrong_size_is_joined_anew(server, parts, get, tmp_path):
    sizes = [len(ZIP) // 3] * 2 + [len(ZIP) - 2 * (len(ZIP) // 3)]
    sized = [
        Remote(remote.name, remote.urls, remote.sha256, size_b)
        for remote, size_b in zip(parts(), sizes, strict=True)
    ]
    (tmp_path / "x.zip").write_bytes(ZIP[:-1])
    result = get(*sized, archives=JOINED)
    assert result.joined == ("x.zip",)
    assert result.complete
    assert (tmp_path / "x.zip.damaged").stat().st_size == len(ZIP) - 1


def test_a_missing_part_is_named_and_the_others_are_kept(parts, get):
    result = get(*parts(gone=["x.zip.002"]), archives=JOINED)
    assert list(result.missing) == ["x.zip.002"]
    assert (result.downloaded, result.joined, result.unpacked) == (PARTS[::2], (), ())


def test_a_missing_part_is_made_up_for_by_the_whole(serve, parts, get):
    result = get(*parts(gone=["x.zip.002"]), serve("x.zip", ZIP), archives=JOINED)
    assert result.complete
    assert (result.joined, result.unpacked) == ((), ("x.zip",))
    assert "could not be had" in result.notes["x.zip.002"]


def test_dead_parts_come_after_the_whole(server, serve, parts, get):
    dead = [Remote(part.name, part.urls, part.sha256, dead="gone") for part in parts()]
    assert get(*dead, serve("x.zip", ZIP), archives=JOINED).unpacked == ("x.zip",)
    assert [path for path, _ in server.asked] == ["/x.zip"]


def test_a_joined_file_is_checked(parts, get, tmp_path):
    result = get(*unchecked(parts()), Remote("x.zip", (), sha(OTHER)), archives=JOINED)
    assert sha(OTHER) in result.missing["x.zip"]
    assert sha(ZIP) in result.missing["x.zip"]
    assert names(tmp_path) == [f"{name}.damaged" for name in PARTS]


def test_parts_without_checksums_that_do_not_fit_are_fetched_anew(parts, get, tmp_path):
    assert not get(*unchecked(parts(DAMAGED["zip flipped"])), archives=JOINED).complete
    assert names(tmp_path) == [f"{name}.damaged" for name in (*PARTS, "x.zip")]
    assert get(*unchecked(parts()), archives=JOINED).unpacked == ("x.zip",)


def test_parts_put_there_by_hand_are_used(get, tmp_path):
    (tmp_path / "x.001").write_bytes(ZIP[:1000])
    (tmp_path / "x.002").write_bytes(ZIP[1000:])
    result = get(archives=(Archive("x", parts=("x.001", "x.002")),))
    assert (result.joined, result.unpacked, result.present) == (("x",), ("x",), ("x.001", "x.002"))


# --- kills ---

CHILD = """
import pathlib, time
{before}
from patchifier.datasets import download, sheet, transfer, unpack
root, flag = pathlib.Path({root!r}), pathlib.Path({root!r}) / "flag"
progress = download.silent

def hang():
    flag.write_text("")
    time.sleep(60)

{during}
remotes = (sheet.Remote("a", ({url!r},), {sha!r}),)
toy = sheet.Sheet("toy", "", "", "", "", None, {{}}, remotes, {archives})
retry = transfer.RetryPolicy(timeout_s=5, attempts=1)
result = download.fetch(toy, root, retry=retry, progress=progress)
assert result.complete, result
"""


@pytest.fixture
def child(tmp_path, child_environment):
    """Fetch in another process."""

    def start(remote, *, before="", during="", archives="()"):
        known = {"root": str(tmp_path), "url": remote.urls[0], "sha": remote.sha256}
        code = CHILD.format(**known, before=before, during=during, archives=archives)
        command = [sys.executable, "-c", code]
        return subprocess.Popen(command, env=child_environment, stderr=subprocess.PIPE, text=True)

    return start


def kill_when(process, condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


def test_a_full_disk_is_said_and_what_there_is_stays(server, serve, get, tmp_path, child):
    remote = serve()
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    with child(remote, before=code) as done:
        assert "the disk is full" in done.communicate(timeout=20)[1]
    assert done.returncode == 1
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:100_000]
    assert get(remote).complete
    assert server.ranges("/a") == ["", "bytes=100000-"]


def test_a_download_that_was_killed_goes_on(server, serve, get, tmp_path, child):
    remote, part = serve(slow_s=0.2), tmp_path / "a.part"
    kill_when(child(remote), lambda: part.exists() and part.stat().st_size > 30_000)
    kept = part.stat().st_size
    server.pages["/a"].slow_s = 0
    assert get(remote).complete
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
    server, serve, get, tmp_path, child, during
):
    remote = serve("a", TGZ)
    process = child(remote, during=during, archives='(sheet.Archive("a"),)')
    kill_when(process, (tmp_path / "flag").exists)
    assert (tmp_path / ".a.unpacking").is_dir()
    assert not (tmp_path / ".a.unpacked").exists()
    assert (tmp_path / "top").exists() == (during == MERGING)  # nothing half-made in sight
    (tmp_path / "flag").unlink()
    result = get(remote, archives=(Archive("a"),))
    assert (result.unpacked, dict(result.notes)) == (("a",), {})
    assert names(tmp_path) == sorted(["a", ".a.unpacked", *FILES])
    assert unpacked(tmp_path) == FILES
    assert len(server.asked) == 1


def test_joining_that_was_interrupted_is_begun_again(server, parts, get, tmp_path):
    remotes = parts()
    with pytest.raises(KeyboardInterrupt):
        get(*remotes, archives=JOINED, progress=interrupt_at("joining"))
    assert not (tmp_path / "x.zip").exists()
    assert get(*remotes, archives=JOINED).unpacked == ("x.zip",)
    assert len(server.asked) == 3


def test_an_interruption_while_unpacking_leaves_nothing_behind(serve, get, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        get(serve("a", ZIP), archives=(Archive("a"),), progress=interrupt_at("unpacking"))
    assert names(tmp_path) == ["a"]
    assert not (tmp_path / ".a.unpacking").exists()


def test_a_disk_that_is_full_while_unpacking_is_said(serve, get, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    remote = serve("a", ZIP)
    with monkeypatch.context() as patched:
        patched.setattr(unpack, "_write", full)
        with pytest.raises(RequestError, match="disk is full"):
            get(remote, archives=(Archive("a"),))
    assert names(tmp_path) == ["a"]
    assert get(remote, archives=(Archive("a"),)).unpacked == ("a",)
