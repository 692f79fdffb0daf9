"""Who may ask: names of the host, origins, the token, and headers of every answer.

A page of another site must not reach this server through the browser of its user. So the name of
the host must be one of this machine's (against a site whose name is bound to 127.0.0.1), nothing is
shared with other origins, and a request that changes something or has a body comes from this page
or from a program that is no browser.
"""

import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchifier.config import RequestError

COOKIE = "patchifier_token"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# regl compiles its drawing functions, regl-scatterplot works in a blob: worker, wavesurfer.js puts
# a <style> into its shadow root
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; worker-src 'self' blob:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether a host to bind is this machine alone."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


@dataclass(frozen=True)
class Access:
    """Where a server is bound, and what it asks of a request; other machines need a token."""

    host: str = "127.0.0.1"
    token: str = ""  # of everything but OpenSubsonic, which has its own form; empty for none

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise RequestError(
                f"--host is {self.host}, which other machines can reach, without a token: add "
                "--token TEXT or set PATCHIFIER_TOKEN, or bind 127.0.0.1."
            )
        if self.token and (len(self.token) < 8 or not self.token.isascii()):
            raise RequestError(
                "the token has fewer than 8 letters or others than ASCII: take a longer one, such "
                "as from 'openssl rand -hex 16'."
            )

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this machine.

        Beyond loopback any address passes, since a name is what another site can bind.
        """
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        if name in LOOPBACK or name == self.host.lower():
            return True
        if is_loopback(self.host):
            return False
        own = socket.gethostname().lower()
        return _address(name) is not None or name in (own, f"{own}.local")

    def has_token(self, given: str) -> bool:
        """Whether a text is the token."""
        return hmac.compare_digest(given.encode(), self.token.encode())


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


class Guard:
    """Middleware that refuses what :class:`Access` does, and adds headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        answer = self._refusal(scope) or self.app
        await answer(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self.access.knows_host(host):
            return _refused(
                421,
                f"this server is not known as {host[:80]!r}: open it under the address that it "
                "prints at its start.",
            )
        if not _same_origin(headers, host, scope):
            return _refused(403, "this request comes from another site's page: open this page.")
        if not self.access.token or scope["path"].startswith("/rest/"):
            return None
        return self._without_token(scope, headers)

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if self.access.has_token(query.get("token", "")) and scope["method"] == "GET":
            return _with_cookie(scope, query)
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.access.has_token(given.strip()):
            return None
        if self.access.has_token(_cookie(headers)):
            return None
        return _refused(
            401,
            "this server asks for a token: open its address with ?token=TOKEN, or send the header "
            "'Authorization: Bearer TOKEN'.",
            {"www-authenticate": "Bearer"},
        )


def _same_origin(headers: Headers, host: str, scope: Scope) -> bool:
    """Whether a request comes from this server's own page, from a typed address, or no browser."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return False
    opened = headers.get("sec-fetch-mode") == "navigate" and scope["path"] == "/"
    return site in ("none", "same-origin") or (opened and scope["method"] == "GET")


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _with_cookie(scope: Scope, query: dict[str, str]) -> Response:
    """Keep the token in a cookie, and lead to the same address without it."""
    rest = urlencode([(name, value) for name, value in query.items() if name != "token"])
    # one slash: two would name another host
    answer = RedirectResponse("/" + scope["path"].lstrip("/") + (f"?{rest}" if rest else ""), 303)
    answer.set_cookie(COOKIE, query["token"], httponly=True, samesite="strict", path="/")
    return answer


def _refused(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    """Sender that adds the security headers to each response."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sent
