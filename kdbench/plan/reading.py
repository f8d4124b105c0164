"""One pass over one file that gathers its errors: what the readers of suites, of their sections and of cluster files have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kdbench import parts
from kdbench.errors import OptionsError, PartError, SuiteError, nearest
from kdbench.plan.schema import SECTIONS, Json
from kdbench.plan.yaml import Where, YamlFile, dotted, name_problem
from kdbench.validation import problems

MAX_ERRORS = 100


def given_part(kind: str, option: str, given: str, base: Path) -> tuple[Json, dict[str, str], str]:
    """{name, version, options} of a part that an option of the command line names, as `name` or `{name: ..., option: ...}`; the folders of
    users' parts; and the part in words, with the options that are not its defaults. `base` is the folder of the suite. Raises SuiteError
    with all errors."""
    reader = FileReader(YamlFile(Path(option), text=f"{kind}: {given}\n"))
    reader.base = base
    value = reader.checked((kind,), str | dict[str, Any], reader.file.data[kind])
    found = reader.part_with_options((kind,), kind, value)
    if reader.errors or found is None:
        raise SuiteError(reader.errors)
    usual: Mapping[str, Any] = {}
    with suppress(PartError):  # an option without a default
        usual = parts.load(kind, value if isinstance(value, str) else value["name"], base).options({})
    more = {name: one for name, one in found["options"].items() if name not in usual or usual[name] != one}
    text = json.dumps(_filled(more), ensure_ascii=False).replace('"', "") if more else ""
    return found, reader.sources, f"{found['name']} {text}".strip()


def _filled(value: Any) -> Any:
    """Mappings without their empty values."""
    return {key: _filled(one) for key, one in value.items() if one is not None} if isinstance(value, dict) else value


class FileReader:
    """A file being read. `errors` are texts with file and line; `sources` the folders of users' own parts."""

    def __init__(self, file: YamlFile):
        self.file = file
        self.errors: list[str] = []
        self.sources: dict[str, str] = {}
        self.base = file.path.parent

    def error(self, where: Where, text: str) -> None:
        """Note an error. Raises SuiteError when there are too many to read."""
        self.errors.append(f"{self.file.at(where)}: {dotted(where)}{text}")
        if len(self.errors) >= MAX_ERRORS:
            raise SuiteError([*self.errors, f"there may be more errors: only the first {MAX_ERRORS} are shown"])

    def section(self, key: str) -> Any:
        kind, default = SECTIONS[key]
        if key not in self.file.data:
            if default is ...:
                self.error((), f"the key '{key}' is missing")
                return None
            return default
        return self.checked((key,), kind, self.file.data[key])

    def checked(self, where: Where, kind: Any, value: Any) -> Any:
        """The value as `kind`, or None after its errors were noted."""
        try:
            return TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            for keys, text in problems(error, kind, value):
                self.error((*where, *keys), text)
            return None

    def is_name(self, where: Where, name: str) -> bool:
        """Whether a text of a list can be the name of a student, teacher or objective; notes why not."""
        if problem := name_problem(name):
            self.error(where, problem)
        return problem is None

    def load(self, where: Where, kind: str, name: str) -> parts.Part | None:
        try:
            part = parts.load(kind, name, self.base)
        except PartError as error:
            self.error(where, str(error))
            return None
        if ".py:" in name:
            file, _, attribute = name.rpartition(":")
            path = (self.base / file).resolve()
            # In the identity stands what it is (file name, class, hash of the source), not where it lies.
            part = parts.Part(kind, f"{path.name}:{attribute}", part.make, part.version)
            self.sources["suite"] = str(self.base.resolve())
            if self.sources.setdefault(part.name, str(path.parent)) != str(path.parent):
                self.error(where, f"two files named {path.name} with a {attribute} each: rename one")
        return part

    def resolved(
        self,
        where: Where,
        part: parts.Part,
        options: Mapping[str, Any],
        other_keys: Iterable[str] = (),
        base: Mapping[str, Any] = MappingProxyType({}),
    ) -> Json | None:
        """The part's options with defaults; notes what its constructor refuses. `other_keys` can have been meant by an unknown one. `base`
        are options that `options` change."""
        try:
            further = part.further(options)
        except PartError as error:
            wrong = self._note(where, part, error)
            if wrong:  # the others are checked without these
                self.resolved(where, part, {key: value for key, value in options.items() if key not in wrong}, other_keys, base)
            return None
        known = [*part.known(), *further]
        unknown = [key for key in options if key not in known]
        for key in unknown:
            near = nearest(str(key), [*known, *other_keys])
            also = f"; with these options it takes {', '.join(sorted(known))}" if further and "did you mean" in near else ""
            self.error((*where, key), f"the {part.kind} '{part.name}' has no option '{key}'{near}{also}")
        try:
            resolved = part.options({**base, **{key: value for key, value in options.items() if key in known}})
            if part.kind == "recipe":
                resolved = part.make.settled(resolved, base, options)
            part.build(resolved)
        except PartError as error:
            self._note(where, part, error)
            return None
        return None if unknown else resolved

    def _note(self, where: Where, part: parts.Part, error: PartError) -> set[str | int]:
        """Note what is wrong with a part or its options. Returns the keys of these options."""
        found = error.errors if isinstance(error, OptionsError) else [((), str(error))]
        for keys, text in found:
            known = f"the {part.kind} '{part.name}': " if isinstance(error, OptionsError) and not keys else ""
            self.error((*where, *keys), f"{known}{text}")
        return {keys[0] for keys, _ in found if keys}

    def part_with_options(self, where: Where, kind: str, given: str | Json | None) -> Json | None:
        """`name` or `{name: ..., option: ...}` -> {name, version, options}."""
        if given is None:
            return None
        options = {} if isinstance(given, str) else {key: value for key, value in given.items() if key != "name"}
        name = given if isinstance(given, str) else given.get("name")
        if not isinstance(name, str):
            self.error(where, f"the key 'name' is missing: one of {', '.join(parts.names(kind))}")
            return None
        part = self.load(where, kind, name)
        resolved = part and self.resolved(where, part, options)
        return None if part is None or resolved is None else {"name": part.name, "version": part.version, "options": resolved}
