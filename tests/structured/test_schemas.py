"""Replies under JSON schemas: what is valid is possible, what is not is not; `schemas.py` is the long part."""

from __future__ import annotations

from typing import Any

import pytest

from localq.structured.schemas import prepared
from tests.structured.schemas import Case, allows, examine, new_constraint

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"id": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["id", "next"],
            "additionalProperties": False,
        }
    },
}  # fmt: skip
# A schema, instances that follow it, and instances that do not.
KEPT: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    (TREE, [{"id": 1, "next": {"id": -2, "next": None}}], [{"id": 1}, {"id": 1, "next": {}}]),
    ({"const": {"a": [1, None]}}, [{"a": [1, None]}], [{"a": [1]}, {}]),
    ({"enum": ["a", 1, None, [2]]}, ["a", 1, None, [2]], ["b", 2, [], "1"]),
    (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        [[1, 2], [1, 2, 3]],
        [[], [1], [1, 2, 3, 4], [1, "a"]],
    ),
    (
        {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "string"}], "items": False, "minItems": 2},
        [[True, "a"]],
        [[True], ["a", True], [True, "a", 1]],
    ),
    ({"type": "integer", "minimum": -3, "exclusiveMaximum": 12}, [-3, 0, 11], [-4, 12, 1.5, 100]),
    ({"type": "number", "exclusiveMinimum": 0.5, "maximum": 2}, [0.51, 2, 1.25], [0.5, 2.01, -1]),
    ({"type": "integer", "multipleOf": 5}, [0, 15, -20], [3, 16]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "日本語", "🦙é"], ["a", "abcd", ""]),
    ({"type": "string", "pattern": "^[a-c]+\\d$"}, ["abc1"], ["d1", "abc", "a12"]),
    ({"type": "string", "pattern": "^\\S$"}, ["a"], [" ", "\u00a0", "\ufeff"]),
    ({"type": "string", "format": "date"}, ["2024-02-29", "2000-02-29"], ["2023-02-29", "1900-02-29", "2024-02-30"]),
    (
        {"type": "string", "format": "date-time"},
        ["2024-12-31T23:59:59Z", "1999-01-01T00:00:00.5+05:30"],
        ["2024-12-31 23:59:59Z", "2023-02-29T00:00:00Z", "2024-01-01T12:00:60Z", "2024-01-01T12:00:00"],
    ),
    ({"type": "string", "format": "time", "pattern": "^1"}, ["12:00:00Z"], ["02:00:00Z", "1"]),
    ({"type": "string", "format": "uuid"}, ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08", ""]),
    ({"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["256.1.1.1", "1.1.1"]),
    ({"type": "string", "format": "password"}, ["any", ""], [1]),
    ({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}},
     [{}, {"a": 1, "b": 2}], [{"a": "b"}]),
    (
        {"type": "object", "properties": {"properties": {"type": "object"}, "format": {"type": "string"}}},
        [{}, {"format": "x"}, {"properties": {}}],
        [{"additionalProperties": 1}, {"format": 1}],
    ),
    (
        {"anyOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, {"type": "null"}]},
        [{"a": "x"}, None],
        [{}, {"a": 1}, "x"],
    ),
    (
        {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": {"const": 1}}}]},
        [{"a": 2, "b": 1}],
        [{"b": 1}, {"a": 2, "b": 2}],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "possible", "impossible"), KEPT)
def test_replies_follow_their_schema(schema: dict[str, Any], possible: list[Any], impossible: list[Any]) -> None:
    instances = [*((one, True) for one in possible), *((one, False) for one in impossible)]
    result = examine(Case("", schema, instances), replies=4, seed=1)
    assert (result.refused, result.stuck, result.invalid, result.impossible) == ("", "", [], [])
    assert result.valid + result.cut == 4 and result.possible == len(possible)


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}},
        {"type": "array", "uniqueItems": True},
        {"type": "array", "contains": {"const": 1}},
        {"if": {"type": "string"}, "then": {"minLength": 1}},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "format": "json-pointer"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.org/schema.json"},
        {"oneOf": [{"type": "integer"}, {"minimum": 2}]},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "hiccup"},
        {"type": "object", "propertyNames": {"minLength": 2}},
        {"unevaluatedProperties": False},
        {"dependentRequired": {"a": ["b"]}},
    ],
)
def test_what_cannot_be_kept_is_refused(schema: dict[str, Any]) -> None:
    assert "can't be kept" in examine(Case("", schema), replies=1, seed=1).refused


def test_what_belongs_to_a_property_is_not_a_keyword() -> None:
    """A property may be called as a keyword is; a value may look like a schema."""
    schema = {
        "type": "object",
        "properties": {"properties": {"type": "string"}, "propertyNames": {"type": "string"}, "allOf": {}},
        "default": {"properties": {}},
    }  # fmt: skip
    assert prepared(schema) == {**schema, "additionalProperties": False}


def test_replies_have_no_blanks_that_nobody_needs() -> None:
    """Small models write nothing else where they may: an object of JSON would never end."""
    for schema in ({"type": "object"}, {"type": "array"}, {}):
        assert all(not allows(new_constraint(schema), text) for text in (" {}", "{ }", "{}\n", "[ ]", "[1, 2]", "\t1"))
    assert allows(new_constraint({"type": "object"}), '{"a":[1,{"b":"c d"}]}')
