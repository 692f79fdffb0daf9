"""One address -> one file, over a network that stalls, breaks off and lies.

A download that was cut short goes on where it stopped if the file is certain to be the same: the server confirms its version (``If-Range``),
or a checksum will tell. What it then turns out not to be is fetched once more from the start.
"""

import contextlib
import http.client
import json
import logging
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import patchifier
from patchifier.config import RequestError
from patchifier.datasets.fetch.place import (
    CHUNK_B,
    Progress,
    discard,
    fault,
    finish,
    origin_of,
    part_of,
    show,
    write_whole,
)

if TYPE_CHECKING:
    from patchifier.datasets.sheet import Remote

log = logging.getLogger(__name__)
LONGEST_WAIT_S = 60.0  # between two tries, whatever a server asks for
ASK_AGAIN = {408, 425, 429}  # and everything from 500 on


class Unavailable(Exception):  # noqa: N818 - a state of the world, not a mistake
    """An address does not give the file, and asking again will not help."""


class Broken(Exception):  # noqa: N818
    """It may work when asked again, after so many seconds at least."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Patience:
    """How long to wait for a sign of life, how many tries in a row may bring nothing new, and the first wait between two, doubled each time."""

    timeout_s: float = 30.0
    attempts: int = 5
    backoff_s: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value, least in (
            ("timeout_s", self.timeout_s, 0.001),
            ("attempts", self.attempts, 1),
            ("backoff_s", self.backoff_s, 0),
        ):
            if not value >= least:
                raise RequestError(f"{name} is {value}, expected at least {least}.")


def download(
    remote: "Remote", url: str, path: Path, *, patience: Patience, progress: Progress
) -> None:
    """Put the file at `path`, checked.

    Raises
    ------
    Unavailable
        With the reason. What there is of the file stays in ``NAME.part``, unless it is known to be wrong.
    """
    part, tries = part_of(path), 0
    part.parent.mkdir(parents=True, exist_ok=True)
    best_b, _ = _resumable(remote, url, part)
    while not _is_complete(part, remote, progress):
        try:
            resumed = _attempt(remote, url, part, timeout_s=patience.timeout_s, progress=progress)
            wrong = fault(part, remote, progress)
            if not wrong:
                break
            discard(part)
            if not resumed:
                raise Unavailable(f"gave a file that {wrong}; thrown away")
            stopped = Broken(f"changed the file between two halves: the whole {wrong}")
        except Broken as error:
            stopped = error
        tries = 1 if _size_b(part) > best_b else tries + 1
        best_b = max(best_b, _size_b(part))
        if tries >= patience.attempts and not _is_complete(part, remote, progress):
            raise Unavailable(
                f"{stopped} (tried {tries} times without getting further)"
                if tries > 1
                else str(stopped)
            ) from stopped
        wait_s = min(
            LONGEST_WAIT_S, max(patience.backoff_s * 2 ** min(tries - 1, 10), stopped.wait_s)
        )
        log.info("%s %s; asking again in %.0f s", url, stopped, wait_s)
        time.sleep(wait_s)
    finish(part, path)


def _size_b(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _is_complete(part: Path, remote: "Remote", progress: Progress) -> bool:
    """Whether it is there whole, for certain: a server may have announced more than there is, or a kill have come just before the renaming."""
    if not part.exists() or (
        not remote.sha256 and (remote.size_b is None or not origin_of(part).exists())
    ):
        return False
    return not fault(part, remote, progress)


def _attempt(
    remote: "Remote", url: str, part: Path, *, timeout_s: float, progress: Progress
) -> bool:
    """Ask once and write down what comes; whether it went on from what there was."""
    start_b, mark = _resumable(remote, url, part)
    headers = {"User-Agent": f"patchifier/{patchifier.__version__}", "Accept-Encoding": "identity"}
    if start_b:
        headers |= {"Range": f"bytes={start_b}-"} | ({"If-Range": mark} if mark else {})
    with contextlib.closing(_open(url, headers, timeout_s, part)) as answer:
        if start_b and not _continues(answer, start_b, mark):
            if (
                answer.status == 206
            ):  # another stretch, or of another version: nothing that is asked for
                discard(part)
                raise Broken("sent another part of the file than it was asked for")
            start_b = 0
        total_b = _total_b(answer, start_b)
        _check_answer(remote, answer, total_b)
        if not start_b:
            discard(part)
            write_whole(origin_of(part), json.dumps({"url": url, "mark": _mark(answer)}) + "\n")
        done_b = _write(answer, remote, part, start_b=start_b, total_b=total_b, progress=progress)
    if total_b is not None and done_b < total_b:
        raise Broken(f"broke off after {done_b:,} of {total_b:,} bytes")
    show(progress, done_b, done_b, part.name.removesuffix(".part"))
    return start_b > 0


def _write(
    answer: http.client.HTTPResponse,
    remote: "Remote",
    part: Path,
    *,
    start_b: int,
    total_b: int | None,
    progress: Progress,
) -> int:
    """Write what comes behind what there is; bytes there are then."""
    done_b = start_b
    with part.open("ab" if start_b else "wb") as stream:
        for chunk in _chunks(answer):
            done_b += len(chunk)
            if remote.size_b is not None and done_b > remote.size_b:
                discard(part)
                raise Unavailable(f"gave more than the {remote.size_b:,} bytes that were expected")
            stream.write(chunk)
            show(
                progress,
                done_b,
                max(total_b or remote.size_b or 0, done_b + 1),
                part.name.removesuffix(".part"),
            )
    return done_b


def _resumable(remote: "Remote", url: str, part: Path) -> tuple[int, str]:
    """How much of the file can be kept, and the server's mark of the version it is from."""
    try:
        origin = json.loads(origin_of(part).read_text(encoding="utf-8"))
        mark = str(origin["mark"]) if origin["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        mark = ""
    size_b = _size_b(part)
    if not (mark or remote.sha256) or (remote.size_b is not None and size_b >= remote.size_b):
        return 0, ""
    return size_b, mark


def _mark(answer: http.client.HTTPResponse) -> str:
    """A mark that tells versions apart byte by byte: a strong ETag, or a date. Weak ones may not stand in If-Range (RFC 9110, 13.1.5)."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def _continues(answer: http.client.HTTPResponse, start_b: int, mark: str) -> bool:
    """Whether the answer goes on where we stopped, in the same version: some servers heed Range and not If-Range."""
    stretch = re.fullmatch(
        r"bytes (\d+)-\d+/(?:\d+|\*)", answer.headers.get("Content-Range", "").strip()
    )
    same = not mark or _mark(answer) in ("", mark)
    return answer.status == 206 and stretch is not None and int(stretch[1]) == start_b and same


def _total_b(answer: http.client.HTTPResponse, start_b: int) -> int | None:
    """Length of the whole file, as the server announces it."""
    return None if answer.length is None else start_b + answer.length


def _check_answer(remote: "Remote", answer: http.client.HTTPResponse, total_b: int | None) -> None:
    """Refuse early what cannot be the file."""
    kind = answer.headers.get_content_type()
    if answer.status not in (200, 206) or (
        answer.status == 206 and "Content-Range" not in answer.headers
    ):
        raise Unavailable(f"answers {answer.status}, expected 200 and the file")
    if remote.size_b is not None and total_b is not None and total_b != remote.size_b:
        raise Unavailable(
            f"announces {total_b:,} bytes, expected {remote.size_b:,}"
            + (" (a web page)" if kind == "text/html" else "")
        )
    if (
        kind == "text/html"
        and not remote.sha256
        and not remote.name.lower().endswith((".html", ".htm"))
    ):
        raise Unavailable(
            "gives a web page, not the file: it asks for something first, or the file is gone"
        )
    if (
        answer.headers.get("Content-Encoding", "identity").lower() != "identity"
        and not remote.sha256
        and not remote.name.lower().endswith(("gz", ".zip"))
    ):
        raise Unavailable("sends the file compressed, though asked not to")


def _chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes, as it comes; only what is wrong with the network is wrong here."""
    while True:
        try:
            chunk = answer.read1(CHUNK_B)
        except TimeoutError as error:
            raise Broken("stalled") from error
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
        ) as error:  # ValueError: a chunk length that is no number
            raise Broken(f"broke off ({error or type(error).__name__})") from error
        if not chunk:
            return
        yield chunk


def _open(
    url: str, headers: dict[str, str], timeout_s: float, part: Path
) -> http.client.HTTPResponse:
    """Send a request; the answer's header has arrived."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise Unavailable("is no address of the web: only http and https are fetched")
    try:
        answer: http.client.HTTPResponse = _opener().open(
            urllib.request.Request(url, headers=headers), timeout=timeout_s
        )
        return answer
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what we have is as long as the file, or longer: not the start of it
            discard(part)
            raise Broken("has a shorter file than the part that was there; begun again") from error
        if error.code in ASK_AGAIN or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            raise Broken(
                f"answers {error.code} ({error.reason})", float(after) if after.isdecimal() else 0.0
            ) from error
        raise Unavailable(f"answers {error.code} ({error.reason})") from error
    except (http.client.InvalidURL, UnicodeError) as error:
        raise Unavailable(f"is no valid address ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise Unavailable(f"cannot prove who it is ({reason.verify_message})") from error
        raise Broken(
            "stalled"
            if isinstance(reason, TimeoutError)
            else f"cannot be reached ({reason or type(reason).__name__})"
        ) from error


def _opener() -> urllib.request.OpenerDirector:
    """Web addresses, a proxy of the environment, careful redirects, and nothing else: urllib's own would read local files too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to the web, and never from an encrypted connection to an open one."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            fp.close()
            raise Unavailable(f"redirects from {old} to {newurl}: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
