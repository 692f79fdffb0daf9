"""A web server for tests that can do what servers do wrong. Asked as a proxy, it finds pages by their whole address."""

import contextlib
import http.server
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Page:
    """What one address gives, and how."""

    content: bytes = b""
    ranges: bool = True  # heeds Range
    if_range: bool = True  # heeds If-Range
    etag: str = '"v1"'
    kind: str = "application/octet-stream"
    codes: list[int] = field(default_factory=list)  # answered first, one a request
    headers: dict[str, str] = field(default_factory=dict)  # with those codes, or with the content
    redirect: str = ""
    announce: int | None = None  # a lie about the length
    no_length: bool = False
    break_after: list[int] = field(
        default_factory=list
    )  # bytes of the body after which the connection is cut, one a request
    stall_after: list[int] = field(default_factory=list)  # the same, but it just stays silent
    slow_s: float = 0.0  # pause after each 16 kB
    then: Callable[["Page"], None] | None = None  # called after each request


class Server(http.server.ThreadingHTTPServer):
    """Pages by path, and every request that came: (path, Range or "")."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str]] = []
        self.marks: list[str] = []  # If-Range of each
        self.release = threading.Event()

    def handle_error(self, request, client_address):
        """Say nothing: clients that go away are what is tested."""

    def url(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def add(self, path, content=b"", **how):
        self.pages[path] = Page(content, **how)
        return self.url(path)

    def ranges(self, path):
        return [span for asked, span in self.asked if asked == path]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        page, span = self.server.pages.get(self.path), self.headers.get("Range", "")
        self.server.asked.append((self.path, span))
        self.server.marks.append(self.headers.get("If-Range", ""))
        if page is None:
            self.send_error(404)
            return
        try:
            self._answer(page, span)
        finally:
            self.close_connection = True
            if page.then:
                page.then(page)

    def _answer(self, page, span):
        if page.redirect or page.codes:
            self.send_response(302 if page.redirect else page.codes.pop(0))
            for name, value in (
                {"Location": page.redirect} if page.redirect else page.headers
            ).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span and page.ranges else 0
        if page.if_range and self.headers.get("If-Range", page.etag) != page.etag:
            start = 0
        if start and start >= len(page.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(page.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = page.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(page.content) - 1}/{len(page.content)}"
            )
        self.send_header("Content-Type", page.kind)
        if page.etag:
            self.send_header("ETag", page.etag)
        for name, value in page.headers.items():
            self.send_header(name, value)
        if not page.no_length:
            self.send_header(
                "Content-Length", str(len(body) if page.announce is None else page.announce)
            )
        self.end_headers()
        self._send(page, body)

    def _send(self, page, body):
        cut = page.break_after.pop(0) if page.break_after else None
        stall = page.stall_after.pop(0) if page.stall_after else None
        body = body[: min(value for value in (cut, stall, len(body)) if value is not None)]
        for first in range(0, len(body), 2**14):
            self.wfile.write(body[first : first + 2**14])
            if page.slow_s:
                time.sleep(page.slow_s)
        self.wfile.flush()
        if stall is not None:
            self.server.release.wait(20)


@contextlib.contextmanager
def serving():
    """Run a server in a thread."""
    server = Server()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
