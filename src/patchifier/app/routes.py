"""Every endpoint of the API: its address, the function that answers, and its description."""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Literal

import patchifier
from patchifier.app import (
    audio,
    duplicates,
    inside_routes,
    map,
    navidrome,
    similar,
    subsonic,
    teach_routes,
    tracks,
    uploads,
)


@dataclass(frozen=True)
class Endpoint:
    """An endpoint; names in braces in its path are fields of its parameters.

    `answer` gives what becomes JSON, or a response; the first line of its docstring says what it
    does.
    """

    method: Literal["GET", "POST"]
    path: str
    answer: Callable[..., Any]
    raw: bool = False  # the answer is a coroutine that takes the request itself
    sends: str = "application/json"  # kind of the answer

    @property
    def params(self) -> type:
        """Dataclass of its parameters."""
        found: type = typing.get_type_hints(self.answer)["params"]
        return found


ENDPOINTS = (
    Endpoint("GET", "/api/status", tracks.status),
    Endpoint("POST", "/api/job/cancel", tracks.cancel),
    Endpoint("GET", "/api/tracks", tracks.listed),
    Endpoint("GET", "/api/tracks/{id}", tracks.one),
    Endpoint("GET", "/api/audio/{id}", audio.sound, sends="audio/*"),
    Endpoint("POST", "/api/similar", similar.similar),
    Endpoint("GET", "/api/why", similar.why),
    Endpoint("POST", "/api/why", similar.weighted_why),
    Endpoint("POST", "/api/path", similar.path),
    Endpoint("POST", "/api/mix", similar.mix),
    Endpoint("GET", "/api/duplicates", duplicates.listed),
    Endpoint("POST", "/api/duplicates", duplicates.start),
    Endpoint("POST", "/api/playlist", tracks.playlist, sends="application/vnd.apple.mpegurl"),
    Endpoint("POST", "/api/upload", uploads.receive, raw=True),
    Endpoint("GET", "/api/map", map.state),
    Endpoint("POST", "/api/map", map.start),
    Endpoint("GET", "/api/map/points", map.points, sends="application/octet-stream"),
    Endpoint("GET", "/api/map/ids", map.ids),
    Endpoint("GET", "/api/map/colours", map.colours),
    Endpoint("GET", "/api/inside/{id}", inside_routes.window),
    Endpoint("POST", "/api/inside/{id}/reconstruct", inside_routes.reconstruct),
    Endpoint("GET", "/api/inside/{id}/sound", inside_routes.hear, sends="audio/wav"),
    Endpoint("GET", "/api/inside/{id}/structure", inside_routes.structure),
    Endpoint("GET", "/api/inside/{id}/music", inside_routes.music),
    Endpoint("POST", "/api/navidrome/similar", navidrome.similar),
    Endpoint("POST", "/api/navidrome/path", navidrome.path),
    Endpoint("POST", "/api/navidrome/songs", navidrome.songs),
    Endpoint("GET", "/api/heads", teach_routes.listed),
    Endpoint("POST", "/api/predict", teach_routes.predict),
    Endpoint("POST", "/api/teach", teach_routes.taught),
    Endpoint("POST", "/api/teach/apply", teach_routes.applied),
    Endpoint("POST", "/api/teach/save", teach_routes.saved, sends="application/octet-stream"),
)


PLAIN = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
}
ERROR = {"$ref": "#/components/schemas/Error"}


def document() -> dict[str, Any]:
    """OpenAPI 3.1 document of every endpoint."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    for name, answer in subsonic.METHODS.items():
        paths[f"/rest/{name}"] = {"get": _subsonic(name, answer)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Patchifier",
            "version": patchifier.__version__,
            "description": "A music library by its sound. Errors are {'error': 'one sentence'}.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "security": [{}, {"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": {
                    "type": "object",
                    "properties": {"error": {"type": "string"}},
                    "required": ["error"],
                }
            },
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()}{endpoint.path}").strip("_"),
        "summary": (endpoint.answer.__doc__ or "").partition("\n")[0],
        "responses": {
            "200": {"description": "Done.", "content": {endpoint.sends: {}}},
            "default": {
                "description": "Refused.",
                "content": {"application/json": {"schema": ERROR}},
            },
        },
    }
    in_path = re.findall(r"{(\w+)}", endpoint.path)
    if endpoint.raw:
        found["parameters"] = [_parameter("name", "query", PLAIN[str])]
        found["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
        return found
    schema = schema_of(endpoint.params)
    given = schema["properties"]
    where = {name: "path" if name in in_path else "query" for name in given}
    if endpoint.method == "POST":
        where = dict.fromkeys(in_path, "path")
        body = {name: value for name, value in given.items() if name not in in_path}
        required = [name for name in schema.get("required", []) if name in body]
        content = {"type": "object", "properties": body} | (
            {"required": required} if required else {}
        )
        found["requestBody"] = {"content": {"application/json": {"schema": content}}}
    found["parameters"] = [
        _parameter(name, place, given[name], required=name in schema.get("required", []))
        for name, place in where.items()
    ]
    return found


def _parameter(
    name: str, place: str, schema: Mapping[str, Any], *, required: bool = False
) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _subsonic(name: str, answer: Any) -> dict[str, Any]:
    return {
        "operationId": f"rest_{name}",
        "summary": f"OpenSubsonic: {answer.__doc__.partition(chr(10))[0]}",
        "externalDocs": {"url": f"https://opensubsonic.netlify.app/docs/endpoints/{name.lower()}/"},
        "responses": {"200": {"description": "A subsonic-response, also for an error."}},
    }


def schema_of(kind: Any) -> dict[str, Any]:
    """JSON schema of an annotation: of a dataclass, or of one of its fields."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return schema_of(parts[0])
    if origin is list:
        return {"type": "array", "items": schema_of(parts[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(parts[1])}
    if origin is Literal:
        return {"enum": list(parts)}
    if kind in PLAIN:
        return dict(PLAIN[kind])
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    names = {field.name: field.metadata.get("name", field.name) for field in fields}
    required = [
        names[field.name] for field in fields if field.default is field.default_factory is MISSING
    ]
    properties = {
        names[field.name]: _with_default(schema_of(hints[field.name]), field) for field in fields
    }
    found = {"type": "object", "properties": properties}
    return found | ({"required": required} if required else {})


def _with_default(schema: dict[str, Any], field: Any) -> dict[str, Any]:
    known = field.default not in (MISSING, None)
    return schema | ({"default": field.default} if known else {})
