"""What pydantic finds wrong with a value, in plain words, with its keys and the nearest valid name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from kdbench.errors import closest, nearest, shown

Where = tuple[str | int, ...]
Text = str | None
CellId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
AtLeastZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Schema1 = Annotated[int, Field(ge=1, le=1)]

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "none_required": "nothing",
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "dataclass_type", "mapping_type"), "a mapping"),
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text of the form {pattern}",
}
"""Pydantic's kinds of error -> what the value should be."""

_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING_KEY = ("missing", "missing_argument", "missing_keyword_only_argument")


class Strict:
    """A base for dataclasses that `from_json` reads: no other field than theirs, and no number out of a text."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def from_json(kind: Any, data: Any) -> Any:
    """What a file of ours holds, as the dataclass `kind`: lists become tuples, no text becomes a number, and a `schema` is there. Raises
    ValueError: it holds something else; the message names the first field and its value."""
    if isinstance(data, dict) and "schema" in kind.__dataclass_fields__:
        data = {"schema": None, **data}
    try:
        return _adapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ValueError(_first(error, kind, data)) from None


def check(kind: Any, data: Any) -> None:
    """As `from_json`, without a copy: for types that JSON has."""
    try:
        _adapter(kind).validate_python(data, strict=True)
    except ValidationError as error:
        raise ValueError(_first(error, kind, data)) from None


def given_path(text: str) -> Path:
    """A path as a person writes it, with `~` for their home. Raises ValueError for a blank one, one in quotes, and an unknown home."""
    if not text.strip():
        raise ValueError("it is blank: write a path, or leave it out")
    if text[0] in "\"'" and text[-1] == text[0]:
        raise ValueError(f"the quotes are part of the path: write {text[1:-1]}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: the home of this user is not known: write the whole path") from error


def _first(error: ValidationError, kind: Any, data: Any) -> str:
    where, text = problems(error, kind, data)[0]
    older = " (another version of kdbench wrote it)" if where[-1:] == ("schema",) else ""
    return f"{'.'.join(map(str, where)) or 'the file'}: {text}{older}"


def problems(error: ValidationError, kind: Any, value: Any) -> list[tuple[Where, str]]:
    """(keys, text) of each value that is wrong. `kind` is the type that was asked for, `value` what was validated."""
    expected: dict[Where, list[str]] = {}
    found: dict[Where, str] = {}
    for one in error.errors(include_url=False):
        where = _where(one["loc"], value)
        if one["type"] in _UNKNOWN_KEY:
            found[where] = f"unknown key{nearest(str(where[-1]), _keys(kind))}"
        elif one["loc"][-1:] == ("[key]",):
            found[where] = "a key here is text: put it in quotes"
        elif one["type"] in _MISSING_KEY:
            found[where] = f"the key '{one['loc'][-1]}' is missing"
        else:
            text = _EXPECTED[one["type"]].format(**one.get("ctx", {})) if one["type"] in _EXPECTED else ""
            if text:
                expected.setdefault(where, []).append(text)
            else:
                found[where] = f"{_given(one['input'])}{one['msg'].removeprefix('Value error, ')}"
    for where, texts in expected.items():
        found.setdefault(where, _expected(_at(value, where), list(dict.fromkeys(texts))))
    # Of the members of a union, the one that fits best fails deepest.
    return [(where, text) for where, text in found.items() if not any(other[: len(where)] == where != other for other in found)]


def _expected(value: Any, texts: Sequence[str]) -> str:
    if isinstance(value, str) and "true or false" in texts and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return f"'{value}' is text in YAML 1.2: write true or false"
    names = [name for text in texts for name in re.findall(r"'([^']*)'", text)]
    close = closest(value, names) if isinstance(value, str) else None
    return f"{_given(value)}expected {' or '.join(texts)}" + (f"; did you mean '{close}'?" if close else "")


def _given(value: Any) -> str:
    return "" if isinstance(value, (dict, list)) else f"{shown(str(value)) if not isinstance(value, str) else repr(shown(value))}: "


def _where(loc: Sequence[Any], value: Any) -> Where:
    """The keys of an error that are in the file: pydantic's own names for members of unions are left out."""
    where: list[str | int] = []
    for key in loc:
        if isinstance(value, Mapping) and key in value or isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]  # type: ignore[index]
            where.append(key)
    return tuple(where)


def _at(value: Any, where: Where) -> Any:
    for key in where:
        value = value[key]
    return value


def _keys(kind: Any) -> set[str]:
    """The keys that a type allows at any depth."""
    known: dict[str, Any] = {}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        known = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    elif isinstance(kind, type) and is_dataclass(kind):
        known = get_type_hints(kind, include_extras=True)
        known = {one.name: known[one.name] for one in fields(kind)}
    return set(known).union(*(_keys(inner) for inner in (*known.values(), *get_args(kind))))
