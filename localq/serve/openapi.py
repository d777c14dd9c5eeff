"""The description of the server in OpenAPI's form, made from the requests that it checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localq.serve.protocols import Named, Protocol
from localq.version import __version__

_ERRORS = {
    "400": "The request is wrong; the message names the field.",
    "401": "The API key is missing or wrong.",
    "403": "Foreign Host or Origin.",
    "404": "No such model or path.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "Too many replies are wanted; try again.",
    "431": "The headers are too large.",
    "500": "The server failed.",
    "503": "No memory for this model now; try again.",
}

_CHOSEN = {"not": {"enum": [None, "none", "auto"]}, "properties": {"type": {"not": {"enum": ["none", "auto"]}}}}
_SOME = {"type": "array", "minItems": 1}
_GIVEN = {"not": {"type": "null"}}


def _implies(field: str, value: Mapping[str, Any], other: str, needed: Mapping[str, Any]) -> dict[str, Any]:
    """A rule: where a field has such a value, another field is needed."""
    said = {"properties": {field: value}, "required": [field]}
    return {"if": said, "then": {"properties": {other: needed}, "required": [other]}}


_RULES = [
    _implies("tool_choice", _CHOSEN, "tools", _SOME),
    _implies("stream_options", _GIVEN, "stream", {"const": True}),
    _implies("top_logprobs", _GIVEN, "logprobs", {"const": True}),
    _implies("include_timings", {"const": True}, "include_usage", {"const": True}),
]
"""What requests are checked for beyond their fields."""


def _with_rules(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with the rules that are about its properties."""
    names = schema.get("properties", {}).keys()

    def concerns(rule: Mapping[str, Any]) -> bool:
        return all(name in names for part in (rule["if"], rule["then"]) for name in part["properties"])

    rules = [rule for rule in _RULES if concerns(rule)]
    return {**schema, "allOf": rules} if rules else schema


def describe(
    protocols: Mapping[str, Protocol], counts: Mapping[str, type[Named]], model_ids: Sequence[str]
) -> dict[str, Any]:
    """The description; the names of models are those that there are now."""
    schemas: dict[str, Any] = {"Error": {"type": "object"}}
    paths: dict[str, Any] = {}
    requests = {path: protocol.request for path, protocol in protocols.items()} | dict(counts)
    for path, request in requests.items():
        prefix = path.strip("/").replace("/", "_")
        schema = request.model_json_schema(ref_template=f"#/components/schemas/{prefix}_{{model}}")
        schemas |= {f"{prefix}_{name}": _with_rules(part) for name, part in schema.pop("$defs", {}).items()}
        schema = _with_rules(schema)
        schema["properties"]["model"]["enum"] = list(model_ids)
        content = {"application/json": {"schema": schema}}
        answers = ["application/json"] if path in counts else ["application/json", "text/event-stream"]
        summary = (request.__doc__ or "").partition("\n")[0]
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": _responses(*answers),
            }
        }
    for path, kind in (
        ("/v1/models", "application/json"),
        ("/health", "application/json"),
        ("/metrics", "text/plain"),
        ("/openapi.json", "application/json"),
        ("/", "text/html"),
    ):
        paths[path] = {"get": {"responses": _responses(kind)}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": list(model_ids)}}
    paths["/v1/models/{name}"] = {"get": {"parameters": [name], "responses": _responses("application/json")}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "localq", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _responses(*kinds: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refused = {status: {"description": text, "content": error} for status, text in _ERRORS.items()}
    return {"200": {"description": "Done.", "content": {kind: {} for kind in kinds}}, **refused}
