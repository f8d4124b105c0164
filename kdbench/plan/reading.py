"""One pass over one suite file, gathering mistakes: what schema, objectives and the rest of a suite need in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kdbench import parts
from kdbench.errors import PartError, nearest
from kdbench.plan.schema import SECTIONS, Json
from kdbench.plan.yaml import Source, Where


class Reading:
    """A file being read. `mistakes` are texts with file and line; `sources` the folders of users' own parts."""

    def __init__(self, source: Source):
        self.source, self.mistakes, self.sources = source, [], {}  # type: ignore[var-annotated]
        self.base = source.path.parent

    def wrong(self, where: Where, what: str) -> None:
        self.mistakes.append(f"{self.source.at(where)}: {'.'.join(map(str, where)) + ': ' if where else ''}{what}")

    def section(self, key: str) -> Any:
        kind, default = SECTIONS[key]
        if key not in self.source.data:
            if default is ...:
                self.wrong((), f"a suite needs '{key}'")
                return None
            return default
        return self.checked((key,), kind, self.source.data[key])

    def checked(self, where: Where, kind: Any, value: Any) -> Any:
        """The value as `kind`, or None after its mistakes were noted."""
        try:
            return TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            for one in _told(error):
                self.wrong((*where, *one["loc"]), one["text"])
            return None

    # Parts by name

    def load(self, where: Where, kind: str, name: str) -> parts.Part | None:
        try:
            part = parts.load(kind, name, self.base)
        except PartError as error:
            self.wrong(where, str(error))
            return None
        if ".py:" in name:
            file, _, attribute = name.rpartition(":")
            path = (self.base / file).resolve()
            # In the identity stands what it is (file name, class, hash of the source), not where it lies.
            part = parts.Part(kind, f"{path.name}:{attribute}", part.make, part.version)
            if self.sources.setdefault(part.name, str(path.parent)) != str(path.parent):
                self.wrong(where, f"two files named {path.name} with a {attribute} each: rename one")
        return part

    def resolved(self, where: Where, part: parts.Part, options: Mapping[str, Any], beside: Iterable[str] = ()) -> Json | None:
        """The part's options with defaults; what its constructor refuses is told here. `beside`: keys that could have been meant."""
        known, wrong = part.known(), False
        for key in options:
            if key not in known:
                self.wrong((*where, key), f"the {part.kind} '{part.name}' has no option '{key}'{nearest(str(key), [*known, *beside])}")
                wrong = True
        try:
            resolved = part.options({key: value for key, value in options.items() if key in known})
            part.build(resolved)
        except PartError as error:
            self.wrong(where, str(error))
            return None
        return None if wrong else resolved

    def part_with_options(self, where: Where, kind: str, says: str | Json | None) -> Json | None:
        """`name` or `{name: ..., option: ...}` -> {name, version, options}."""
        if says is None:
            return None
        options = {} if isinstance(says, str) else {key: value for key, value in says.items() if key != "name"}
        name = says if isinstance(says, str) else says.get("name")
        if not isinstance(name, str):
            self.wrong(where, f"it needs a name: one of {', '.join(parts.names(kind))}")
            return None
        part = self.load(where, kind, name)
        resolved = part and self.resolved(where, part, options)
        return None if part is None or resolved is None else {"name": part.name, "version": part.version, "options": resolved}


def _told(error: ValidationError) -> list[dict[str, Any]]:
    """Pydantic's mistakes in our words: where (keys of the file only), and what instead."""
    told: dict[tuple, dict[str, Any]] = {}
    for one in error.errors():
        given = one["input"]
        text = f"{given!r}: {one['msg']}" if not isinstance(given, (dict, list)) else one["msg"]
        if one["type"] == "bool_type" and isinstance(given, str):
            text = f"'{given}' is text in YAML 1.2: write true or false"
        if one["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            text = "there is no such key here"
        # Members of a union stand in pydantic's place; only what is in the file helps.
        loc = tuple(
            key for key in one["loc"] if not (isinstance(key, str) and re.search(r"[\[\]()]|^(str|int|float|bool|constrained-.*)$", key))
        )
        if loc in told and "YAML" not in told[loc]["text"]:
            told[loc]["text"] += f", or {one['msg'][0].lower()}{one['msg'][1:]}"
        elif loc not in told:
            told[loc] = {"loc": loc, "text": text}
    return list(told.values())
