"""The copycat obeys every schema: pydantic, which wrote most of them, is the judge."""

from __future__ import annotations

import datetime
import json
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from qlangchain.runtimes.copycat import UnsatisfiableError
from qlangchain.runtimes.copycat.literals import Literals
from qlangchain.runtimes.copycat.sampler import Sampler
from qlangchain.runtimes.copycat.schema import fits


def sample(schema: Any, text: str = "", seed: str = "0") -> Any:
    return Sampler(schema, Literals(text), seed).sample()


class Address(BaseModel):
    street: str = Field(min_length=3, max_length=40)
    code: str = Field(pattern=r"^[A-Z]{2}-\d{4,6}$")


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    age: Annotated[int, Field(ge=0, lt=150)]
    height: float | None = None
    mood: Literal["sad", "happy"]
    born: datetime.date
    seen: datetime.datetime
    at: datetime.time
    id: UUID
    addresses: list[Address] = Field(min_length=1, max_length=3)
    tags: set[str] = Field(max_length=4)
    pair: tuple[int, str]
    scores: dict[str, Annotated[float, Field(gt=0, le=1)]]
    friend: Person | None = None
    answer: int | str | list[bool]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(multiple_of=3, gt=0)]


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


class Tree(BaseModel):
    value: Annotated[int, Field(ge=-3, le=3)]
    children: list[Tree]


class Plus(BaseModel):
    left: int | Plus
    right: int | Plus


TYPES = [
    Person,
    Tree,
    Plus,
    Annotated[Cat | Dog, Field(discriminator="kind")],
    list[Annotated[int, Field(ge=0, le=3)]],
    dict[str, Address],
    Annotated[set[Literal["a", "b", "c"]], Field(min_length=3)],
    bool | None,
    None,
    Any,
    datetime.timedelta,
    Annotated[str, Field(max_length=0)],
    Annotated[float, Field(gt=0, lt=0.001)],
    Annotated[int, Field(lt=-1000)],
]


@settings(deadline=None)
@given(st.sampled_from(TYPES), st.text(max_size=40), st.integers(0, 5))
def test_every_value_has_its_schema(kind: Any, text: str, seed: int) -> None:
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    value = sample(schema, text, str(seed))
    adapter.validate_json(json.dumps(value))
    assert fits(value, schema, schema)
    assert value == sample(schema, text, str(seed))


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[A-Z]{3}-\d{4}$",
        r"^(foo|bar)+$",
        r"\w+@\w+\.com",
        r"^[^a-z]{5,}$",
        r"^\+?\d{1,3}(?: \d{3}){2}$",
        r"^(\d)\1$",
        r"^[\w.-]{30,40}$",
        r"^$",
        r"^\S+\s\S+$",
        r"^[à-ü]{2}$",
        r"^[\D\W]x*?y$",
        r"(?i)^a.c$",
    ],
)
@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_patterns_are_matched(pattern: str, seed: str) -> None:
    schema = {"type": "string", "pattern": pattern, "maxLength": 60}
    assert fits(sample(schema, seed=seed), schema, schema)


@pytest.mark.parametrize(
    "schema",
    [
        False,
        3,
        {"type": "zork"},
        {"enum": []},
        {"anyOf": []},
        {"anyOf": [False, {"type": "integer", "minimum": 5, "maximum": 4}]},
        {"type": "string", "minLength": 5, "maxLength": 3},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "pattern": "^abc$", "minLength": 4},
        {"type": "array", "items": {"const": 1}, "minItems": 2, "uniqueItems": True},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$ref": "#"},
        {"$ref": "#/$defs/nothing"},
        {"$ref": "https://example.org/schema"},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"allOf": [{"const": 1}, {"const": 2}]},
        {"not": {}},
    ],
)
def test_a_schema_that_allows_nothing_is_an_error(schema: Any) -> None:
    with pytest.raises(UnsatisfiableError):
        sample(schema)


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        (3, {"type": "integer"}, True),
        (3.0, {"type": "integer"}, True),
        (True, {"type": "integer"}, False),
        (3, {"type": "number"}, True),
        (1, {"const": True}, False),
        (0.07, {"multipleOf": 0.01}, True),
        (5, {"exclusiveMaximum": 5}, False),
        ("2026-02-30", {"type": "string", "format": "date"}, False),
        ("x", {"type": ["string", "null"], "maxLength": 1}, True),
        (None, {"type": ["string", "null"]}, True),
        ([1, "a", 2], {"prefixItems": [{"type": "integer"}], "items": {"type": "string"}}, False),
        ([1, True], {"uniqueItems": True}, True),
        ({"a": 1, "b": 2}, {"properties": {"a": {}}, "additionalProperties": False}, False),
        ({"a": 1}, {"required": ["a", "b"]}, False),
        (4, {"oneOf": [{"minimum": 3}, {"maximum": 5}]}, False),
        (4, {"not": {"type": "integer"}}, False),
        (4, {"allOf": [{"minimum": 3}, {"maximum": 3.5}]}, False),
        ({"a": {"a": 1}}, {"properties": {"a": {"$ref": "#"}}, "type": "object"}, False),
    ],
)
def test_values_are_checked(value: Any, schema: Any, expected: bool) -> None:
    assert fits(value, schema, schema) is expected


def test_parts_are_joined_and_references_followed() -> None:
    schema = {
        "$defs": {"a/b": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}},
        "allOf": [{"$ref": "#/$defs/a~1b"}, {"properties": {"n": {"maximum": 3}, "m": {"const": "x"}}}],
        "required": ["m"],
    }
    assert sample(schema) == {"n": 3, "m": "x"}
