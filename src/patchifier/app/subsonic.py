"""OpenSubsonic's ``sonicSimilarity`` at ``/rest/NAME`` and ``/rest/NAME.view``, in JSON and XML.

The forms are those of https://opensubsonic.netlify.app: every answer is a ``subsonic-response``
with HTTP status 200, also an error. A client gives its password in the clear (p, or p=enc:HEX), as
md5(password + salt) (t and s), or as apiKey; the password and the key are the server's token.
Without a token, on this machine alone, every client passes.
"""

import functools
import hashlib
import hmac
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qsl
from xml.etree.ElementTree import Element, SubElement, tostring

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import patchifier
from patchifier.app import audio
from patchifier.app.parameters import RefusedError
from patchifier.app.security import Access
from patchifier.app.similar import MOST, store_of
from patchifier.app.state import Served
from patchifier.config import RequestError
from patchifier.library.search.ranking import album_of

VERSION = "1.16.1"  # of the Subsonic API
NAMESPACE = "http://subsonic.org/restapi"
EXTENSIONS = ("apiKeyAuthentication", "formPost", "sonicSimilarity")
MOST_FORM_B = 2**16
GENERIC, MISSING, WRONG, CONFLICT, WRONG_KEY, NOT_FOUND = 0, 10, 40, 43, 44, 70


class SubsonicError(Exception):
    """A request that fails with a code of the protocol."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Params:
    """Parameters of a request."""

    given: Mapping[str, str]

    def text(self, name: str) -> str:
        """A parameter that is needed."""
        if not self.given.get(name):
            raise SubsonicError(MISSING, f"Required parameter {name} is missing.")
        return self.given[name]

    def count(self, default: int) -> int:
        """Number of songs, from 1 to 500; the default where it is no number."""
        text = self.given.get("count", "")
        return min(MOST, max(1, int(text))) if text.isdecimal() and len(text) < 10 else default


# --- what is answered ---


def ping(served: Served, params: Params) -> dict[str, Any]:
    """Nothing: the server answers."""
    return {}


def extensions(served: Served, params: Params) -> dict[str, Any]:
    """Extensions of the protocol that are spoken here."""
    return {"openSubsonicExtensions": [{"name": name, "versions": [1]} for name in EXTENSIONS]}


def token_info(served: Served, params: Params) -> dict[str, Any]:
    """Whose key it is: there is one key, and no users."""
    return {"tokenInfo": {"username": params.given.get("u") or "patchifier"}}


def similar(served: Served, params: Params) -> dict[str, Any]:
    """Songs that sound like one, the most similar first."""
    place = _find(served, params.text("id"))
    return _matches(served, nearest(served, place, params.count(10)))


def path(served: Served, params: Params) -> dict[str, Any]:
    """A path of songs from one to another, both included; similarity is that to the first."""
    start, end = (_find(served, params.text(name)) for name in ("startSongId", "endSongId"))
    return _matches(served, walk(served, start, end, params.count(25)))


def song(served: Served, params: Params) -> dict[str, Any]:
    """One song."""
    return {"song": child(served, _find(served, params.text("id")))}


def stream(served: Served, params: Params) -> Response:
    """The file of a song, as it is."""
    place = _find(served, params.text("id"))
    return audio.sound(served, audio.SoundParams(served.collection.ids[place]))


METHODS: dict[str, Callable[[Served, Params], Any]] = {
    "ping": ping,
    "getOpenSubsonicExtensions": extensions,
    "tokenInfo": token_info,
    "getSonicSimilarTracks": similar,
    "findSonicPath": path,
    "getSong": song,
    "stream": stream,
}
PUBLIC = ("getOpenSubsonicExtensions",)  # the protocol wants it without a password


def _find(served: Served, one: str) -> int:
    try:
        return served.collection.find(one)
    except RefusedError as error:
        raise SubsonicError(NOT_FOUND, "The requested data was not found.") from error


def nearest(served: Served, place: int, count: int) -> list[tuple[int, float]]:
    """Places of the songs that sound most like one, each with its similarity from 0 to 1."""
    collection = served.collection
    found = store_of(collection).similar(collection.paths[place], count)
    return [(collection.by_path[row.path], _from_0_to_1(row.score or 0.0)) for row in found]


def walk(served: Served, start: int, end: int, count: int) -> list[tuple[int, float]]:
    """Places from a song to another, both included, each with its similarity to the first."""
    collection = served.collection
    if start == end:
        return [(start, 1.0)]
    paths = collection.paths
    found = store_of(collection).path(paths[start], paths[end], max(2, count))
    similarity = functools.partial(collection.cosine, collection.direction(start))
    places = [collection.by_path[row.path] for row in found]
    return [(at, _from_0_to_1(similarity(collection.direction(at)))) for at in places]


def _from_0_to_1(similarity: float) -> float:
    return round(min(1.0, max(0.0, similarity)), 6)


def _matches(served: Served, found: list[tuple[int, float]]) -> dict[str, Any]:
    """Songs with similarities, as the protocol has them."""
    matches = [{"entry": child(served, place), "similarity": score} for place, score in found]
    return {"sonicMatch": matches}


def child(served: Served, place: int) -> dict[str, Any]:
    """A song as the protocol's Child; what is not known is left out."""
    collection = served.collection
    tag = {name: collection.column(name)[place] for name in ("album", "artist", "track", "year")}
    owner = {"albumartist": collection.column("albumartist")[place]}
    path, seconds = collection.paths[place], collection.duration_s(place)
    suffix = PurePosixPath(path).suffix.lower()
    known = album_of(path, tag | owner)
    album = known and _id_of(*known)
    values = {
        "id": collection.ids[place],
        "parent": album or _id_of(str(PurePosixPath(path).parent)),
        "isDir": False,
        "title": collection.title(place),
        **tag,
        "genre": collection.column("genre")[place],
        "size": collection.column("size")[place],
        "contentType": audio.TYPES.get(suffix, "application/octet-stream"),
        "suffix": suffix.removeprefix("."),
        "duration": None if seconds is None else math.ceil(seconds),
        "path": collection.place.shown(path),
        "albumId": album,
        "artistId": tag["artist"] and _id_of(tag["artist"]),
        "type": "music",
        "isVideo": False,
    }
    return {name: value for name, value in values.items() if value not in (None, "")}


def _id_of(*names: str) -> str:
    return hashlib.blake2b("\0".join(names).encode(), digest_size=8).hexdigest()


# --- who asks ---


def require_password(access: Access, given: Mapping[str, str]) -> None:
    """Refuse a request without the right password, token or key."""
    if "apiKey" in given:
        if {"u", "p", "t", "s"} & set(given):
            raise SubsonicError(
                CONFLICT, "Multiple conflicting authentication mechanisms provided."
            )
        if access.token and not access.has_token(given["apiKey"]):
            raise SubsonicError(WRONG_KEY, "Invalid API key.")
        return
    if not access.token:
        return
    Params(given).text("u")
    if not _is_password(access, given):
        raise SubsonicError(WRONG, "Wrong username or password.")


def _is_password(access: Access, given: Mapping[str, str]) -> bool:
    if "t" in given or "s" in given:
        token, salt = Params(given).text("t"), Params(given).text("s")
        right = hashlib.md5((access.token + salt).encode(), usedforsecurity=False).hexdigest()
        return hmac.compare_digest(right.encode(), token.lower().encode())
    password = Params(given).text("p")
    if password.startswith("enc:"):
        try:
            password = bytes.fromhex(password[len("enc:") :]).decode()
        except ValueError:
            return False
    return access.has_token(password)


# --- from a request to an answer ---


async def answer(served: Served, access: Access, request: Request) -> Response:
    """Answer a request in the form that it asks for."""
    given: dict[str, str] = dict(request.query_params)
    name = request.path_params["name"].removesuffix(".view")
    try:
        if request.method == "POST":
            given |= await _form(request)
        if name not in PUBLIC:
            require_password(access, given)
        if name not in METHODS:
            raise SubsonicError(GENERIC, f"This server has no {name[:40]}.")
        found = await run_in_threadpool(METHODS[name], served, Params(given))
    except SubsonicError as error:
        return _written(given, {"error": {"code": error.code, "message": str(error)}}, ok=False)
    except RequestError as error:
        return _written(given, {"error": {"code": GENERIC, "message": str(error)}}, ok=False)
    return found if isinstance(found, Response) else _written(given, found)


async def _form(request: Request) -> dict[str, str]:
    """Parameters of a form's body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    body = b""
    async for block in request.stream():
        body += block
        if len(body) > MOST_FORM_B:
            raise SubsonicError(GENERIC, "The form is too long.")
    if body and kind != "application/x-www-form-urlencoded":
        raise SubsonicError(GENERIC, "The body is no application/x-www-form-urlencoded form.")
    return dict(parse_qsl(body.decode("utf-8", "replace")))


def _written(given: Mapping[str, str], values: Mapping[str, Any], *, ok: bool = True) -> Response:
    facts = {
        "status": "ok" if ok else "failed",
        "version": VERSION,
        "type": "patchifier",
        "serverVersion": patchifier.__version__,
        "openSubsonic": True,
    }
    if given.get("f") in ("json", "jsonp"):
        return JSONResponse({"subsonic-response": facts | dict(values)})
    root = Element("subsonic-response", {"xmlns": NAMESPACE} | _attributes(facts))
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            _add(root, name, one)
    return Response(
        tostring(root, encoding="utf-8", xml_declaration=True), media_type="application/xml"
    )


def _add(parent: Element, name: str, value: Mapping[str, Any]) -> None:
    """An element: plain values are attributes, objects and lists are elements in it.

    The similarity of a match is an element, as Navidrome writes it.
    """
    inner = {key: one for key, one in value.items() if isinstance(one, dict | list)}
    if "entry" in value:
        inner = dict(value)
    plain = {key: one for key, one in value.items() if key not in inner}
    element = SubElement(parent, name, _attributes(plain))
    for key, one in inner.items():
        for part in one if isinstance(one, list) else [one]:
            if isinstance(part, dict):
                _add(element, key, part)
            else:
                SubElement(element, key).text = _text(part)


def _attributes(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    """A value in XML, without the control characters that XML cannot hold."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "".join(one if one >= " " and one not in "\ufffe\uffff" else " " for one in text)
