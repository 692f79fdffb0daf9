"""The API's description: an OpenAPI document made of the endpoints and what they ask."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import patchifier
from patchifier.app import routes, subsonic
from patchifier.app.routes import Endpoint

PLAIN = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
}
ERROR = {"$ref": "#/components/schemas/Error"}


def document() -> dict[str, Any]:
    """OpenAPI 3.1 document of every endpoint.

    Examples
    --------
    >>> sorted(document()["paths"])[0]
    '/api/audio/{id}'
    """
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in routes.ENDPOINTS:
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
    """JSON schema of an annotation: of a dataclass, or of one of its fields.

    Examples
    --------
    >>> schema_of(list[int] | None)
    {'type': 'array', 'items': {'type': 'integer'}}
    """
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
    required = [names[field.name] for field in fields if _is_needed(field)]
    properties = {
        names[field.name]: _with_default(schema_of(hints[field.name]), field) for field in fields
    }
    found = {"type": "object", "properties": properties}
    return found | ({"required": required} if required else {})


def _is_needed(field: Any) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _with_default(schema: dict[str, Any], field: Any) -> dict[str, Any]:
    known = field.default not in (dataclasses.MISSING, None)
    return schema | ({"default": field.default} if known else {})
