"""A server in a process of its own, and how the browser is started."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--autoplay-policy=no-user-gesture-required",
]
START_S = 120


class Server:
    """`patchifier app` in a process of its own."""

    def __init__(self, source: Path, *flags: str, cache: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        command = [
            sys.executable,
            "-m",
            "patchifier",
            "app",
            str(source),
            "--port",
            str(self.port),
            "--no_browser",
            *flags,
        ]
        self.process = subprocess.Popen(
            command, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, stdout=subprocess.DEVNULL
        )

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        request = urllib.request.Request(self.address + path, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def wait(self, text: str, path: str = "api/status") -> None:
        """Until an answer has a text."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if text.encode() in self.ask(path):
                    return
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.2)
        raise AssertionError(f"{path} never had {text}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
