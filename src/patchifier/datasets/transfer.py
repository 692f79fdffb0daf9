"""One file from one address, over a network that stalls, breaks off or sends something else.

A download that was cut short is resumed if the file is certain to be the same: the server confirms
its version (``If-Range``), or a checksum will tell. A file that turns out to be another one is
downloaded once more from the start.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import patchifier
from patchifier.config import RequestError
from patchifier.datasets.sheet import Remote
from patchifier.io import Progress, put_in_place, write_json

CHUNK_B = 2**20
LONGEST_WAIT_S = 60.0  # between two tries, whatever a server demands
RETRY_CODES = {408, 425, 429}  # and everything from 500 on


class UnavailableError(Exception):
    """An address does not give the file, and another try will not help."""


class InterruptedDownloadError(Exception):
    """Another try may help, after `wait_s` seconds at least."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class RetryPolicy:
    """Timeout without data, number of tries without progress, and first wait, doubled each time."""

    timeout_s: float = 30.0
    attempts: int = 5
    backoff_s: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("timeout_s", 0.001), ("attempts", 1), ("backoff_s", 0)):
            if not getattr(self, name) >= least:
                raise RequestError(f"{name} is {getattr(self, name)}, expected at least {least}.")

    def wait_s(self, tries: int, least_s: float) -> float:
        """Seconds to wait after so many tries without progress."""
        return min(LONGEST_WAIT_S, max(self.backoff_s * 2 ** min(tries - 1, 10), least_s))


DEFAULT_RETRY = RetryPolicy()


def download(
    remote: Remote, url: str, path: Path, *, retry: RetryPolicy, progress: Progress
) -> None:
    """Download a file, check it and put it at `path`; UnavailableError has the reason.

    The unfinished file stays in ``NAME.part``, unless it is known to be wrong.
    """
    transfer = _Transfer(remote, url, part_of(path), retry.timeout_s, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    best_b, tries = transfer.resumable()[0], 0
    while not transfer.is_complete():
        progress(0, 0, f"connecting to {url}")
        failure = transfer.attempt()
        if failure is None:
            break
        tries = 1 if transfer.size_b() > best_b else tries + 1
        best_b = max(best_b, transfer.size_b())
        if tries >= retry.attempts and not transfer.is_complete():
            counted = f" (tried {tries} times without getting further)" if tries > 1 else ""
            raise UnavailableError(f"{failure}{counted}") from failure
        wait_s = retry.wait_s(tries, failure.wait_s)
        progress(0, 0, f"{url} {failure}; next try in {wait_s:.0f} s")
        time.sleep(wait_s)
    finish(transfer.part, path)


@dataclass(frozen=True)
class _Transfer:
    """A file that is being downloaded to ``NAME.part``."""

    remote: Remote
    url: str
    part: Path
    timeout_s: float
    progress: Progress

    def size_b(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def is_complete(self) -> bool:
        """Whether the part is certainly the whole file.

        A server may have announced too much, or a kill have come before the renaming.
        """
        known = self.remote.sha256 or (
            self.remote.size_b is not None and _origin_of(self.part).exists()
        )
        return bool(self.part.exists() and known) and not self.fault()

    def fault(self) -> str:
        return fault(self.part, self.remote, self.progress)

    def resumable(self) -> tuple[int, str]:
        """How many bytes can be kept, and the server's mark of the version that they are from."""
        try:
            origin = json.loads(_origin_of(self.part).read_text(encoding="utf-8"))
            mark = str(origin["mark"]) if origin["url"] == self.url else ""
        except (OSError, ValueError, KeyError, TypeError):
            mark = ""
        size_b, whole_b = self.size_b(), self.remote.size_b
        if not (mark or self.remote.sha256) or (whole_b is not None and size_b >= whole_b):
            return 0, ""
        return size_b, mark

    def attempt(self) -> InterruptedDownloadError | None:
        """Send one request and write what comes; what went wrong, if another try may help."""
        try:
            resumed = self.receive()
        except InterruptedDownloadError as error:
            return error
        wrong = self.fault()
        if not wrong:
            return None
        discard(self.part)
        if not resumed:
            raise UnavailableError(f"gave a file that {wrong}; thrown away")
        return InterruptedDownloadError(f"changed the file between two halves: the whole {wrong}")

    def receive(self) -> bool:
        """Send one request and write what comes; whether the download was resumed."""
        start_b, mark = self.resumable()
        with contextlib.closing(self.open(start_b, mark)) as response:
            if start_b and not _continues(response, start_b, mark):
                if response.status == 206:  # another stretch, or of another version
                    discard(self.part)
                    raise InterruptedDownloadError("sent another part of the file than requested")
                start_b = 0
            total_b = None if response.length is None else start_b + response.length
            _refuse_other_files(self.remote, response, total_b)
            if not start_b:
                discard(self.part)
                write_json(_origin_of(self.part), {"url": self.url, "mark": _mark(response)})
            done_b = self.write(response, start_b, total_b)
        if total_b is not None and done_b < total_b:
            raise InterruptedDownloadError(f"broke off after {done_b:,} of {total_b:,} bytes")
        show(self.progress, done_b, done_b, self.part.stem)
        return start_b > 0

    def write(self, response: http.client.HTTPResponse, done_b: int, total_b: int | None) -> int:
        """Write what comes behind the bytes that are kept; how many bytes there are then."""
        most_b = self.remote.size_b
        with self.part.open("ab" if done_b else "wb") as stream:
            for chunk in _chunks(response):
                done_b += len(chunk)
                if most_b is not None and done_b > most_b:
                    discard(self.part)
                    raise UnavailableError(
                        f"gave more than the {most_b:,} bytes that were expected"
                    )
                stream.write(chunk)
                expected_b = max(total_b or most_b or 0, done_b + 1)
                show(self.progress, done_b, expected_b, self.part.stem)
        return done_b

    def open(self, start_b: int, mark: str) -> http.client.HTTPResponse:
        """Send a request, for the rest of the file if there is a start.

        Returns when the header of the response has arrived.
        """
        if urllib.parse.urlsplit(self.url).scheme not in ("http", "https"):
            raise UnavailableError("is no web address: only http and https are downloaded")
        agent = f"patchifier/{patchifier.__version__}"
        headers = {"User-Agent": agent, "Accept-Encoding": "identity"}
        if start_b:
            headers |= {"Range": f"bytes={start_b}-"} | ({"If-Range": mark} if mark else {})
        try:
            request = urllib.request.Request(self.url, headers=headers)
            opener = urllib.request.build_opener(_Redirects())
            response: http.client.HTTPResponse = opener.open(request, timeout=self.timeout_s)
            return response
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the part is as long as the file, or longer: not the start of it
                discard(self.part)
            raise _explain_code(error) from error
        except (http.client.InvalidURL, UnicodeError) as error:
            raise UnavailableError(f"is no valid address ({error})") from error
        except (OSError, http.client.HTTPException) as error:
            raise _explain_connection(error) from error


def _explain_code(error: urllib.error.HTTPError) -> Exception:
    reason = f"answers {error.code} ({error.reason})"
    if error.code == 416:
        return InterruptedDownloadError("has a shorter file than the unfinished one; begun again")
    if error.code in RETRY_CODES or error.code >= 500:
        after = error.headers.get("Retry-After", "")
        return InterruptedDownloadError(reason, float(after) if after.isdecimal() else 0.0)
    return UnavailableError(reason)


def _explain_connection(error: Exception) -> Exception:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UnavailableError(f"has no valid certificate ({reason.verify_message})")
    if isinstance(reason, TimeoutError):
        return InterruptedDownloadError("stalled")
    return InterruptedDownloadError(f"cannot be reached ({reason or type(reason).__name__})")


def _mark(response: http.client.HTTPResponse) -> str:
    """A strong ETag, or a date. A weak ETag is not allowed in If-Range (RFC 9110, 13.1.5)."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _continues(response: http.client.HTTPResponse, start_b: int, mark: str) -> bool:
    """Whether the response is the rest of the same version.

    Some servers heed Range and not If-Range.
    """
    span = response.headers.get("Content-Range", "").strip()
    stretch = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", span)
    same = not mark or _mark(response) in ("", mark)
    return response.status == 206 and stretch is not None and int(stretch[1]) == start_b and same


def _refuse_other_files(
    remote: Remote, response: http.client.HTTPResponse, total_b: int | None
) -> None:
    """Refuse early a response that cannot be the file."""
    page = response.headers.get_content_type() == "text/html"
    packed = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    name = "" if remote.sha256 else remote.name.lower()  # a checksum will tell
    if response.status != 200 and not (
        response.status == 206 and "Content-Range" in response.headers
    ):
        raise UnavailableError(f"answers {response.status}, expected 200 and the file")
    if None not in (remote.size_b, total_b) and total_b != remote.size_b:
        kind = " (a web page)" if page else ""
        raise UnavailableError(f"announces {total_b:,} bytes, expected {remote.size_b:,}{kind}")
    if page and name and not name.endswith((".html", ".htm")):
        raise UnavailableError("gives a web page: it wants a form filled in, or the file is gone")
    if packed and name and not name.endswith(("gz", ".zip")):
        raise UnavailableError("sends the file compressed, contrary to the request")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Chunks of the body as they arrive; only errors of the network are caught here."""
    while True:
        try:
            chunk = response.read1(CHUNK_B)
        except TimeoutError as error:
            raise InterruptedDownloadError("stalled") from error
        # ValueError: the length of a chunk is not a number.
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error or type(error).__name__
            raise InterruptedDownloadError(f"broke off ({reason})") from error
        if not chunk:
            return
        yield chunk


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to http or https, and never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        old, new = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            fp.close()
            raise UnavailableError(f"redirects from {old} to {newurl}: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


# --- files that are not finished, or not the published ones ---


def part_of(path: Path) -> Path:
    """Where the unfinished file is."""
    return path.with_name(f"{path.name}.part")


def _origin_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def discard(part: Path) -> None:
    """Delete an unfinished file."""
    part.unlink(missing_ok=True)
    _origin_of(part).unlink(missing_ok=True)


def finish(part: Path, path: Path) -> None:
    """Put a whole file in its place."""
    put_in_place(part, path)
    discard(part)


def set_aside(path: Path) -> Path:
    """Rename a file to one that ends in .damaged (.damaged-2 ...), never over another."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    path.replace(aside)
    return aside


def sha256(path: Path, progress: Progress) -> str:
    """Checksum of a file, in hexadecimal."""
    digest, total_b, done_b = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_B):
            digest.update(chunk)
            done_b += len(chunk)
            show(progress, done_b, total_b, f"checking {path.name}")
    return digest.hexdigest()


def fault(path: Path, remote: Remote, progress: Progress, *, found: str = "") -> str:
    """How a file differs from the published one, as far as that is known; empty if it does not.

    `found` is its checksum, if known.
    """
    if not path.is_file():
        raise RequestError(
            f"{path} is no regular file, expected the published file of this name: move it away."
        )
    size_b, wanted = path.stat().st_size, remote.sha256.lower()
    if remote.size_b is not None and size_b != remote.size_b:
        return f"is {size_b:,} bytes long, expected {remote.size_b:,}"
    if not size_b and remote.size_b is None:
        return "is empty"
    found = wanted and (found or sha256(path, progress))
    return f"has sha256 {found}, expected {wanted}" if found != wanted else ""


def show(progress: Progress, done_b: int, total_b: int, note: str) -> None:
    """Report megabytes; done equals total at the very end alone."""
    total = max(1, -(-total_b // 10**6))
    progress(total if done_b >= total_b else min(done_b // 10**6, total - 1), total, note)
