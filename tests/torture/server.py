"""Hostile requests, uploads and readers: the server goes on, and gives nothing but its own."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import httpx
import numpy as np
import soundfile

import patchifier
from patchifier import jobs
from patchifier.library import embed_library
from tests import audio_files as made
from tests.torture import Attack, Result
from tests.torture._mutants import mutate

SECRET = b"this line is nobody's business"
TOKEN = "torture-torture"
WAIT_S = 60.0
CLEAR_S = 20.0  # in which what is left of a cancelled upload is removed
BURST = 20  # connections at one time
HOSTS = ("evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example", "[", "10.0.0.1")
ORIGINS = ("http://evil.example", "null", "file://", "http://127.0.0.1", "http://localhost:1")
CLIMBS = ("../", "..%2f", "%2e%2e/", "..\\", "....//", "%252e%252e%252f", "/", "//", "%00", "\\")
PLACES = ("/", "/api/tracks/", "/api/audio/", "/api/inside/", "/rest/", "/vendor/", "/api/")


@dataclass(frozen=True)
class Server:
    """A running server of a small library, beside which a secret lies."""

    port: int
    ids: tuple[str, ...]
    temporary: Path
    process: subprocess.Popen[str]

    def ask(self, raw: bytes, *, whole: bool) -> bytes:
        """What comes back for the bytes of a request; one that is not whole ends with its bytes."""
        found = b""
        with (
            socket.create_connection(("127.0.0.1", self.port), WAIT_S) as link,
            contextlib.suppress(ConnectionError),
        ):
            link.sendall(raw)
            if not whole:
                link.shutdown(socket.SHUT_WR)
            while part := link.recv(2**16):
                found += part
        return found

    def is_well(self) -> str:
        """What is wrong with the server; empty if it answers a healthy request."""
        if self.process.poll() is not None:
            return f"the server ended with {self.process.returncode}"
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/api/status", timeout=WAIT_S)
        except httpx.HTTPError as error:
            return f"a healthy request was not answered ({error!r})"
        return "" if answer.status_code == 200 else f"a healthy request got {answer.status_code}"

    def kept(self) -> set[str]:
        """Names of uploaded files that are on disk."""
        return {path.name for path in self.temporary.rglob("upload-*")}

    def left(self, before: set[str]) -> set[str]:
        """Further files that are on disk, after the time to remove them."""
        end_s = time.monotonic() + CLEAR_S
        while (new := self.kept() - before) and time.monotonic() < end_s:
            time.sleep(0.05)
        return new


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Start 'patchifier app' on a library of three songs."""
    (folder / "music").mkdir()
    (folder / "tmp").mkdir()
    (folder / "secret.txt").write_bytes(SECRET)
    (folder / "secret.flac").write_bytes(SECRET)
    for number in range(3):
        soundfile.write(folder / "music" / f"{number}.flac", made.music(1.5, seed=number), 44_100)
    with mock.patch.object(jobs, "process_pool", ThreadPoolExecutor):
        embed_library(folder / "music", folder / "t.parquet", workers=1)
    words = ["app", str(folder / "t.parquet"), "--port", "0", "--no_browser"]
    package = str(Path(patchifier.__file__).parents[1])
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": package}
    process = subprocess.Popen(
        [sys.executable, "-m", "patchifier", *words, "--music", str(folder / "music")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )
    try:
        assert process.stderr is not None
        found = re.search(r":(\d+)/", process.stderr.readline())
        assert found is not None
        tracks = httpx.get(f"http://127.0.0.1:{found[1]}/api/tracks", timeout=WAIT_S).json()
        ids = tuple(track["id"] for track in tracks["tracks"])
        yield Server(int(found[1]), ids, folder / "tmp", process)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.communicate()


def request(server: Server, draw: np.random.Generator) -> tuple[bytes, str]:
    """A hostile request, and what it tries: "host", "origin", "path", "body" or "bytes"."""
    kind = ("host", "origin", "path", "body", "bytes")[draw.integers(5)]
    host, origin = f"127.0.0.1:{server.port}", ""
    method, target, body = "GET", "/api/tracks", b""
    if kind == "host":
        host = HOSTS[draw.integers(len(HOSTS))]
    if kind == "origin":
        method, origin = "POST", ORIGINS[draw.integers(len(ORIGINS))]
        target, body = "/api/job/cancel", b"{}"
    if kind == "path":
        climb = CLIMBS[draw.integers(len(CLIMBS))] * int(draw.integers(1, 6))
        name = ("secret.txt", "secret.flac", "etc/passwd", "t.parquet")[draw.integers(4)]
        target = PLACES[draw.integers(len(PLACES))] + climb + name
    if kind == "body":
        method = "POST"
        address, healthy = BODIES(server)[draw.integers(len(BODIES(server)))]
        target, body = address, mutate(json.dumps(healthy).encode(), draw)
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += f"Origin: {origin}\r\n" if origin else ""
    if method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    raw = head.encode() + b"\r\n" + body
    return (mutate(raw, draw) if kind == "bytes" else raw), kind


def BODIES(server: Server) -> list[tuple[str, dict[str, object]]]:
    """Addresses that take a body, with a healthy one of each."""
    a, b, c = server.ids
    return [
        ("/api/similar", {"like": [a], "unlike": [b], "count": 2, "weights": {"rhythm": 2.0}}),
        ("/api/path", {"start": a, "end": b, "count": 3, "waypoints": [c]}),
        ("/api/mix", {"seeds": [a], "count": 3, "drift": 0.5}),
        ("/api/playlist", {"ids": [a, b], "name": "list"}),
        ("/api/navidrome/similar", {"song": {"name": "x", "artists": [{"name": "y"}]}, "count": 3}),
        (
            "/api/navidrome/path",
            {"startSong": {"name": "x"}, "endSong": {"name": "y", "mbid": "z"}},
        ),
        ("/api/teach", {"name": "x", "labels": {"a": [a], "b": [b, c]}}),
        ("/api/predict", {"id": a, "head": "x"}),
        ("/api/teach/save", {"head": "x", "what": "csv"}),
    ]


def fault(answer: bytes, kind: str) -> str:
    """What is wrong with an answer; empty if nothing is."""
    status = re.match(rb"HTTP/1\.1 (\d+)", answer)
    if SECRET in answer or b"root:x:0" in answer or answer.endswith(b"PAR1"):
        return "a file that is not of the library was sent"
    if status and status[1].startswith(b"5") and b" 503 " not in answer[:20]:
        return f"the answer was {status[1].decode()}"
    if kind in ("host", "origin") and status and status[1] == b"200":
        return "another site was answered"
    if status is None and kind != "bytes":
        return "there was no answer"
    if b"access-control-allow-origin" in answer.lower():
        return "the answer is shared with another site"
    return ""


def requests(folder: Path, count: int, draw: np.random.Generator) -> Result:
    """Send hostile requests, and look after each hundred whether the server is well."""
    result = Result(inputs=len(PLACES) + 7)
    with served(folder) as server:
        for number in range(count):
            raw, kind = request(server, draw)
            result.injected += 1
            if wrong := fault(server.ask(raw, whole=kind != "bytes"), kind):
                result.lost.append(f"{raw[:120]!r}: {wrong}")
            if number % 100 == 99 and (wrong := server.is_well()):
                result.lost.append(f"after {raw[:120]!r}: {wrong}")
        if wrong := server.is_well():
            result.lost.append(f"at the end: {wrong}")
    return result


def uploads(folder: Path, count: int, draw: np.random.Generator) -> Result:
    """Upload damaged music, and end uploads before their end."""
    result = Result(inputs=2)
    healthy = [
        made.mp3(folder / "a.mp3", 2.0).read_bytes(),
        made.vorbis(folder / "a.ogg", 2.0).read_bytes(),
    ]
    with served(folder) as server:
        for number in range(count):
            data = mutate(healthy[number % 2], draw)
            announced = len(data) + int(draw.integers(2)) * 1000  # some end before their end
            raw = (
                f"POST /api/upload?name=x.{('mp3', 'ogg')[number % 2]} HTTP/1.1\r\n"
                f"Host: 127.0.0.1:{server.port}\r\nConnection: close\r\n"
                f"Content-Length: {announced}\r\n\r\n"
            ).encode() + data
            before = server.kept()
            answer = server.ask(raw, whole=announced == len(data))
            result.injected += 1
            if wrong := fault(answer, "bytes") or server.is_well():
                result.lost.append(f"upload {number}: {wrong}")
            elif not re.match(rb"HTTP/1\.1 200", answer) and (new := server.left(before)):
                result.lost.append(f"upload {number}: {new} was left of a refused upload")
    return result


def readers(folder: Path, count: int, draw: np.random.Generator) -> Result:
    """Open connections that send or read little and stay, or end at once; others are answered."""
    result = Result(inputs=4)
    with served(folder) as server:
        for _ in range(max(1, count // BURST)):
            with contextlib.ExitStack() as stack:
                for _ in range(BURST):
                    link = socket.create_connection(("127.0.0.1", server.port), WAIT_S)
                    stack.enter_context(link)
                    link.sendall(_slow(server, draw))
                    result.injected += 1
                    if draw.integers(2):
                        link.close()
                if wrong := server.is_well():
                    result.lost.append(f"while {BURST} slow readers were there: {wrong}")
        if left := server.left(set()):
            result.lost.append(f"{left} were left of uploads that were cancelled")
    return result


def _slow(server: Server, draw: np.random.Generator) -> bytes:
    """The beginning of a request, or a whole one whose answer is not read."""
    host = f"Host: 127.0.0.1:{server.port}\r\n"
    return (
        b"",
        f"GET /api/audio/{server.ids[0]} HTTP/1.1\r\n{host}".encode(),
        f"GET /api/audio/{server.ids[0]} HTTP/1.1\r\n{host}\r\n".encode(),
        f"POST /api/upload?name=x.mp3 HTTP/1.1\r\n{host}Content-Length: 99999\r\n\r\nab".encode(),
        f"POST /api/similar HTTP/1.1\r\n{host}Content-Length: 99\r\n\r\n{{".encode(),
    )[draw.integers(5)]


ATTACKS = [
    Attack(11, "hostile requests to the server", requests, 4000, 60),
    Attack(11, "damaged and cancelled uploads", uploads, 60, 2),
    Attack(11, "slow readers and senders", readers, 400, 20),
]
