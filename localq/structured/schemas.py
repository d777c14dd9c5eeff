"""JSON schemas as llguidance gets them: without what it reads otherwise than the standard, or refuses without need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_COMBINING = {"allOf", "anyOf", "oneOf", "$ref"}
_VALUES = {"enum", "const", "default", "examples"}
_BY_NAME = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_OTHER_PROPERTIES = {"additionalProperties", "patternProperties", "unevaluatedProperties"}

_YEAR = r"(?:000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_FOURTH = r"(?:0[48]|[2468][048]|[13579][26])"
_MONTHS = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_DATE = rf"(?:{_YEAR}-{_MONTHS}|(?:\d\d{_FOURTH}|{_FOURTH}00)-02-29)"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d"
_TIME = rf"{_CLOCK}:[0-5]\d(?:\.\d{{1,9}})?(?:Z|[+-]{_CLOCK})"
_OWN_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
"""RFC 3339, without leap seconds: llguidance takes any year's 29th of February, and any minute's 60th second."""
_KNOWN_FORMATS = frozenset(
    {"duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uuid", "regex"}
    | {"uri", "uri-reference", "uri-template", "iri", "iri-reference", "json-pointer", "relative-json-pointer"}
)
"""The others of the standard: llguidance has them, or refuses them."""
_NO_SPACE = r"[^\s\x{FEFF}]"
r"""What `\S` means in ECMA's expressions, which `pattern` has."""


def prepared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema such that whatever follows this one follows the given one too.

    Objects have no other properties than the schema names, where it does not speak of others: small models would invent
    properties without end. Parts that are combined (`allOf`, `oneOf`) speak about the same object: then it stays open.
    """
    made: dict[str, Any] = _prepared(schema, close=not _combines(schema))
    return made


def _inner(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas within a schema."""
    for name, part in schema.items():
        if name in _BY_NAME and isinstance(part, Mapping):
            yield from part.values()
        elif name not in _VALUES:
            yield from part if isinstance(part, list) else [part]


def _combines(schema: object) -> bool:
    if not isinstance(schema, Mapping):
        return False
    names = schema.keys()
    several = "properties" in names and not names.isdisjoint(_COMBINING)
    overlaps = "oneOf" in names and "discriminator" not in names
    return several or overlaps or "allOf" in names or any(map(_combines, _inner(schema)))


def _prepared(schema: Any, close: bool) -> Any:
    if isinstance(schema, list):
        return [_prepared(part, close) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for name, part in schema.items():
        if name in _BY_NAME and isinstance(part, Mapping):
            made[name] = {key: _prepared(inner, close) for key, inner in part.items()}
        else:
            made[name] = part if name in _VALUES else _prepared(part, close)
    _correct(made)
    if close:
        _close(made)
    return made


def _correct(made: dict[str, Any]) -> None:
    """What can be said otherwise, and what allows anything."""
    pattern, form = made.get("pattern"), made.get("format")
    if isinstance(pattern, str):
        made["pattern"] = re.sub(r"\\(.)", lambda found: _NO_SPACE if found[1] == "S" else found[0], pattern)
    if isinstance(form, str) and form not in _KNOWN_FORMATS:
        del made["format"]  # unknown ones say nothing, by the standard
        if (own := _OWN_FORMATS.get(form)) is not None:
            both = {"allOf": [*made.get("allOf", ()), {"pattern": own}]} if "pattern" in made else {"pattern": own}
            made.update(both)
    if made.get("propertyNames") in (True, {}, {"type": "string"}):
        del made["propertyNames"]


def _close(made: dict[str, Any]) -> None:
    if "discriminator" in made and "oneOf" in made:  # as pydantic writes unions: no two of them fit the same object
        made["anyOf"] = made.pop("oneOf")
    named, needed = made.get("properties"), made.get("required", [])
    are_all_named = isinstance(named, Mapping) and isinstance(needed, list) and all(one in named for one in needed)
    if are_all_named and made.keys().isdisjoint(_OTHER_PROPERTIES):
        made["additionalProperties"] = False
