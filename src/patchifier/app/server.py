"""The server: its routes, how a request becomes a call, and how it is run."""

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from patchifier import weights
from patchifier.app import routes, subsonic
from patchifier.app.collection import Collection, Place, table_of
from patchifier.app.job import Job
from patchifier.app.parameters import RefusedError, checked
from patchifier.app.routes import Endpoint
from patchifier.app.security import Access, Guard
from patchifier.app.state import Served
from patchifier.app.teach_routes import read_heads
from patchifier.app.uploads import UploadLimits
from patchifier.config import RequestError
from patchifier.embed import Embedder, load
from patchifier.io import parse_json, read_skipped
from patchifier.library.build import facts_of
from patchifier.library.models import made_by
from patchifier.library.stored import from_arrow
from patchifier.library.table import schema
from patchifier.library.worker import Cut

PAGE = Path(__file__).parent / "page"
MOST_JSON_B = 4 * 2**20
PORT = 8756


@dataclass(frozen=True)
class Settings:
    """How a library is served.

    Attributes
    ----------
    access : Access
        Address that is bound, and the token.
    port : int
    music : Path or None
        Folder in which every file lies, and from which a table's relative paths count.
    model : str
        That made the table; the bundled models are tried by default.
    out : Path or None
        Table of a folder; in the user's cache by default.
    workers : int or None
        Processes that embed a folder; one for each core by default.
    heads : Path or None
        Folder of saved heads, a folder or zip file each.
    page : bool
        Whether the page is served, too.
    limits : UploadLimits
        Of uploads.

    Examples
    --------
    >>> settings = Settings(port=8080, page=False)
    >>> settings.access.host, settings.port
    ('127.0.0.1', 8080)
    """

    access: Access = field(default_factory=Access)
    port: int = PORT
    music: Path | None = None
    model: str = ""
    out: Path | None = None
    workers: int | None = None
    heads: Path | None = None
    page: bool = True
    limits: UploadLimits = field(default_factory=UploadLimits)


def make_app(source: str | Path, settings: Settings | None = None) -> Starlette:
    """Make the application that serves a table, or a folder of music, which it embeds.

    Parameters
    ----------
    source : str or Path
        A .parquet table of 'patchifier embed', or a folder.
    settings : Settings

    Returns
    -------
    starlette.applications.Starlette
        Its `state.served` holds what it serves.

    Raises
    ------
    RequestError
        If there is no such table or folder, or the model is not that of the table.

    Examples
    --------
    >>> app = make_app("music.parquet")
    >>> len(app.state.served.collection)
    3
    """
    settings = settings or Settings()
    served = serve(Path(source), settings)
    mounts: list[Any] = [_route(endpoint, served) for endpoint in routes.ENDPOINTS]
    mounts.append(Route("/api/openapi.json", _document, methods=["GET"]))
    rest = partial(subsonic.answer, served, settings.access)
    mounts.append(Route("/rest/{name}", _safely(rest), methods=["GET", "POST"]))
    if settings.page:
        mounts.append(Mount("/", _Page(directory=PAGE, html=True)))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if served.job:
            served.job.start()
        try:
            yield
        finally:
            await run_in_threadpool(served.close)

    app = Starlette(
        routes=mounts,
        middleware=[Middleware(Guard, access=settings.access)],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )
    app.state.served = served
    return app


def serve(source: Path, settings: Settings) -> Served:
    """Open a table, or prepare the job that embeds a folder."""
    place = Place(Path(os.path.realpath(settings.music)) if settings.music else None)
    if not source.is_dir():
        collection = Collection.open(source, place=place)
        served = Served(collection, limits=settings.limits)
        served.model, served.embedder = _model_of(collection.table.identity, settings.model)
        served.heads = read_heads(settings.heads, collection.table.identity)
        with contextlib.suppress(OSError, ValueError):  # a list alone: the table is served
            served.listed = read_skipped(source.with_suffix(".skipped.csv"))
        return served
    embedder = load(settings.model or None)
    out = settings.out or table_of(source)
    facts = facts_of(embedder, Cut())
    nothing = from_arrow(schema(facts, embedder.size).empty_table(), facts)
    served = Served(Collection(nothing, name=source.resolve().name), limits=settings.limits)
    served.model, served.embedder = settings.model or weights.DEFAULT, embedder
    served.heads = read_heads(settings.heads, embedder.identity)

    def grown(collection: Collection) -> None:
        served.collection = collection

    served.job = Job(source, out, embedder, grown=grown, workers=settings.workers)
    return served


def _model_of(identity: str, model: str) -> tuple[str, Embedder | None]:
    """Name of the model that made a table, and the model; none if it is not at hand."""
    if found := made_by(identity, model):
        return found
    if model:
        raise RequestError(
            f"--model {model} did not make this table, or has other settings: name the one that "
            "made it, or leave --model out."
        )
    return "", None


class _Page(StaticFiles):
    """Files of the page; a browser asks again each time, so that a new version is seen."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        answer = super().file_response(*args, **options)
        answer.headers["cache-control"] = "no-cache"
        return answer


# --- from a request to a call ---


async def _document(request: Request) -> Response:
    return JSONResponse(routes.document())


def _route(endpoint: Endpoint, served: Served) -> Route:
    handler = partial(endpoint.answer, served) if endpoint.raw else _handler(endpoint, served)
    return Route(endpoint.path, _safely(handler), methods=[endpoint.method])


Handler = Callable[[Request], Any]


def _handler(endpoint: Endpoint, served: Served) -> Handler:
    async def handle(request: Request) -> Any:
        given: dict[str, Any] = dict(request.path_params)
        if endpoint.method == "POST":
            given |= await _json(request)
        query = {name: value for name, value in request.query_params.items() if name != "token"}
        params = checked(endpoint.params, given | query, texts=endpoint.method == "GET")
        return await run_in_threadpool(endpoint.answer, served, params)

    return handle


async def _json(request: Request) -> dict[str, Any]:
    """Object of a request's body; none is an empty one."""
    body = b""
    async for block in request.stream():
        body += block
        if len(body) > MOST_JSON_B:
            raise RefusedError(
                413, f"the request has more than {MOST_JSON_B:,} bytes: ask for less."
            )
    if not body:
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RefusedError(
            415, "the body is not announced as JSON: send Content-Type: application/json."
        )
    try:
        found = parse_json(body)
    except ValueError as error:
        raise RefusedError(400, f"the body is not JSON ({error}): send an object.") from error
    if not isinstance(found, dict):
        raise RefusedError(400, "the body is no object of JSON, expected one such as {}.")
    return found


def _safely(handler: Handler) -> Handler:
    """Answer with what a handler returns, or with the sentence of its error."""

    async def answered(request: Request) -> Response:
        try:
            found = await handler(request)
        except RefusedError as error:
            headers = {"retry-after": str(error.retry_s)} if error.retry_s else None
            return JSONResponse({"error": str(error)}, error.status, headers)
        except RequestError as error:
            return JSONResponse({"error": str(error)}, 400)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            sentence = (
                f"this is a fault of patchifier ({type(error).__name__}): the terminal of the "
                "server shows where. Please report it."
            )
            return JSONResponse({"error": sentence}, 500)
        return found if isinstance(found, Response) else JSONResponse(found)

    return answered


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing at this address", 405: "this address takes another method"}
    sentence = words.get(error.status_code, str(error.detail))
    return JSONResponse({"error": f"{sentence}."}, error.status_code, error.headers)


# --- running ---


def run(source: str | Path, settings: Settings, *, started: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Parameters
    ----------
    source, settings
        As for :func:`make_app`.
    started : callable
        Called with the address when it answers.

    Examples
    --------
    >>> run("music.parquet", Settings(port=8080), started=print)
    """
    import uvicorn

    os.environ.setdefault("PATCHIFIER_MAX_IDLE_S", "60")  # nobody waits longer before a page
    listening = _bound(settings)
    app = make_app(source, settings)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        limit_concurrency=256,
        timeout_keep_alive=10,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started(address(listening))

    Server(config).run(sockets=[listening])


def _bound(settings: Settings) -> socket.socket:
    """A socket on the address, before anything takes time."""
    host, port = settings.access.host, settings.port
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # with the protocol named, asyncio sends small answers at once (TCP_NODELAY)
        listening = socket.socket(family, kind, socket.IPPROTO_TCP)
        if os.name != "nt":  # there it would let two programs share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(128)
        return listening
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"{host}, port {port} cannot be bound ({reason}): choose another --port, or end the "
            "program that has it."
        ) from error


def address(listening: socket.socket) -> str:
    """Address of a bound socket for a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
