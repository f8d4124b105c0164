"""Losses, datasets, models, recipes and tasks: each part is a file, named by its key. Listing parts imports none of them.

A suite names a part by key (`rkd`), by file (`path/to/file.py:MyLoss`, relative to the suite) or by module (`package.module:MyLoss`);
a package can also offer parts through entry points of the group `kdbench.<folder>`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from kdbench import local_imports
from kdbench.errors import KdbenchError, OptionsError, PartError, nearest, shown
from kdbench.isolation import explained, isolated

KINDS = {"loss": "losses", "dataset": "datasets", "model": "models", "recipe": "recipes", "task": "tasks"}
"""Each kind of part and the folder that holds it."""

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """A loaded part: its name as asked for, its class, and its version, which is part of a cell's identity."""

    kind: str
    name: str
    make: Any
    version: int | str

    def options(self, given: dict[str, Any] | None = None) -> dict[str, Any]:
        """The part's options: `given`, and the defaults of the others. Options in `added` of its class are left out while they have the
        value there, so that cells planned before these options existed keep their ids. Raises OptionsError for options that the part does
        not have, without a value, or of the wrong type. Further options are in a mapping of their own, without defaults."""
        given = dict(given or {})
        further = {key: kind for key, kind in self.further(given).items() if key in given}
        own = {key: value for key, value in _parameters(self.make).items() if key != self._holder}
        known = {**own, **{key: (inspect.Parameter.empty, _check_of(kind)) for key, kind in further.items()}}
        errors: list[tuple[tuple[str | int, ...], str]] = [
            ((), f"it has no option '{key}'{nearest(str(key), known)}") for key in given if key not in known
        ]
        resolved = {}
        for key, (default, check) in known.items():
            if key not in given and default is inspect.Parameter.empty:
                errors.append(((), f"it needs a value for '{key}'"))
                continue
            resolved[key], problems = check(given.get(key, default))
            errors += [((key, *where), text) for where, text in problems]
        if errors:
            raise OptionsError(f"the {self.kind} '{self.name}'", errors)
        if self._holder:
            beside = {key: resolved.pop(key) for key in further}
            resolved |= {key: own[key][0] for key in further if key in own} | {self._holder: beside}
        # Compared as JSON, since 0 == False in Python.
        added = {key: json.dumps(_plain(value)) for key, value in self._added.items()}
        return {key: value for key, value in resolved.items() if json.dumps(value) != added.get(key)}

    @property
    def _added(self) -> Mapping[str, Any]:
        """Those of all classes from which it is derived, without options that it does not have."""
        found = {name: value for one in reversed(self.make.__mro__) for name, value in vars(one).get("added", {}).items()}
        return {name: value for name, value in found.items() if name in _parameters(self.make)}

    @property
    def _holder(self) -> str:
        return getattr(self.make, "holds_further", "")

    def version_with(self, options: Mapping[str, Any]) -> int | str:
        """The version of the part with these options: that of all, unless the class says otherwise (`Model.version_with`)."""
        of_class = getattr(self.make, "version_with", None)
        return self.version if of_class is None or isinstance(self.version, str) else of_class(options)

    def known(self) -> list[str]:
        """The names of the part's options, without further ones."""
        return [key for key in _parameters(self.make) if key != self._holder]

    def further(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Further options of a part with these ones: name -> type. Raises PartError."""
        try:
            return self.make.further_options(given) if self._holder else {}
        except KdbenchError:
            raise
        except Exception as error:
            raise PartError(f"the {self.kind} '{self.name}' cannot list its options: {explained(error)}") from error

    def build(self, options: dict[str, Any]) -> Any:
        """The part with these options, and those of `added`."""
        try:
            return self.make(**{**self._added, **options})
        except Exception as error:  # a user's constructor may raise anything
            raise PartError(f"the {self.kind} '{self.name}' cannot be built with these options: {error}") from error


def names(kind: str) -> list[str]:
    """The keys of all parts of a kind, without importing any."""
    own = [path.stem for path in (HERE / KINDS[kind]).glob("*.py") if not path.stem.startswith("_")]
    return sorted({*own, *(entry.name for entry in _entry_points(kind))})


def summary(kind: str, name: str) -> str:
    """The first paragraph of a part's docstring, read from the source without running it."""
    path = HERE / KINDS[kind] / f"{name}.py"
    if not path.exists():
        return "(from another package)"
    tree = ast.parse(path.read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    texts = [ast.get_docstring(node) for node in (*classes, tree)]  # type: ignore[arg-type]
    return next((" ".join(text.partition("\n\n")[0].split()) for text in texts if text), "")


@cache
def named(kind: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Names of the literature (`named` of a class): name -> (part, options). Imports none."""
    found = {}
    for path in sorted((HERE / KINDS[kind]).glob("[!_]*.py")):
        for line in ast.walk(ast.parse(path.read_text())):
            target = line.target if isinstance(line, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and target.id == "named" and line.value is not None:  # type: ignore[attr-defined]
                for name, options in ast.literal_eval(line.value).items():  # type: ignore[attr-defined]
                    found[name] = (path.stem, dict(options))
    return found


def load(kind: str, name: str, base: Path | None = None, suite: Path | None = None, anew: bool = False) -> Part:
    """Find and import a part. Relative files are relative to `base`; a file may import others from its own folder and from that of the
    suite (default: `base`). `anew` imports a file again, with its own module variables. Raises PartError: there is no such part, its file
    cannot be imported, or it holds no class of the kind."""
    if ".py:" in name:
        file, _, attribute = name.rpartition(":")
        path = (Path(base or ".") / file).resolve()
        roots = tuple(dict.fromkeys((path.parent, Path(suite or base or path.parent).resolve())))
        try:
            if not path.is_file():
                near = nearest(path.name, [one.name for one in path.parent.glob("*.py")]) if path.parent.is_dir() else ""
                raise PartError(f"there is no file {path}{near}")
            digest = local_imports.digest_of(path, roots)[:16]
        except OSError as error:
            raise PartError(f"{shown(str(path))} cannot be read: {error.strerror}") from error
        if anew:
            return _load_file.__wrapped__(kind, name, path, attribute, roots, digest, uuid.uuid4().hex)
        return _load_file(kind, name, path, attribute, roots, digest, "")
    return _load(kind, name)


@cache
def _load_file(kind: str, name: str, path: Path, attribute: str, roots: tuple[Path, ...], digest: str, copy: str) -> Part:
    """`digest` is an argument so that a file is imported again when it, or a file that it imports, was edited."""
    key = f"kdbench_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{digest}{copy}"
    try:
        with isolated(0):
            module = local_imports.load_file(path, roots, key)
    except Exception as error:
        raise PartError(f"importing {path} failed: {explained(error)}") from error
    return Part(kind, name, _attribute(kind, name, module, attribute), f"source {digest}")


@cache
def _load(kind: str, name: str) -> Part:
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        module = _import(kind, name, module_name)
        return Part(kind, name, _attribute(kind, name, module, attribute), _version_of(module))
    for entry in _entry_points(kind):
        if entry.name == name:
            try:
                with isolated(0):
                    make = entry.load()
            except Exception as error:
                raise PartError(f"{kind} '{name}': importing {entry.value} failed: {explained(error)}") from error
            return Part(kind, name, make, _version_of(sys.modules[make.__module__]))
    if name not in names(kind):
        raise PartError(f"there is no {kind} '{name}'{nearest(name, names(kind))}")
    make = _only_class(kind, name, _import(kind, name, f"kdbench.{KINDS[kind]}.{name}"))
    return Part(kind, name, make, getattr(make, "version", 1))


def _version_of(module: ModuleType) -> str:
    """A hash of a module's source and of the modules that it imports from the same package."""
    path = Path(inspect.getfile(module)).resolve()
    depth = len(module.__name__.split(".")) - (path.name != "__init__.py")
    package = path.parents[max(depth - 1, 0)]
    digest = local_imports.digest_of(path, (package.parent,), lambda file: depth > 0 and file.is_relative_to(package))
    return f"source {digest[:16]}"


def contract(kind: str) -> type:
    """The base class of all parts of the kind: the class of `_base.py` that is named after the kind."""
    module = importlib.import_module(f"kdbench.{KINDS[kind]}._base")
    return getattr(module, kind.capitalize())


def _entry_points(kind: str) -> list[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group=f"kdbench.{KINDS[kind]}"))


def _only_class(kind: str, name: str, module: ModuleType) -> type:
    base = contract(kind)
    own = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    if len(own) != 1:
        raise PartError(
            f"{module.__file__} must hold exactly one public class derived from {base.__module__}.{base.__name__}, and holds "
            f"{len(own) or 'none'}{': ' + ', '.join(one.__name__ for one in own) if own else ''}"
        )
    return own[0]


def _attribute(kind: str, name: str, module: ModuleType, attribute: str) -> type:
    make = getattr(module, attribute, None)
    if make is None:
        public = [key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__]
        raise PartError(f"{kind} '{name}': {module.__file__} has no '{attribute}'{nearest(attribute, public)}")
    base = contract(kind)
    if not (isinstance(make, type) and issubclass(make, base)):
        raise PartError(f"{kind} '{name}': '{attribute}' is not a class derived from kdbench.{base.__name__}")
    return make


def _import(kind: str, name: str, module: str) -> ModuleType:
    try:
        if module.startswith("kdbench."):
            return importlib.import_module(module)
        with isolated(0):
            return importlib.import_module(module)
    except Exception as error:
        head = name.partition(":")[0]
        unknown = isinstance(error, ModuleNotFoundError) and error.name == head.partition(".")[0]
        message = f"there is no {kind} and no module '{head}'{nearest(head, names(kind))}"
        raise PartError(message if unknown else f"{kind} '{name}': importing {module} failed: {explained(error)}") from error


@cache
def _parameters(make: type) -> dict[str, tuple[Any, Any]]:
    try:
        hints = get_type_hints(make if is_dataclass(make) else make.__init__)  # type: ignore[misc]
    except NameError as error:
        raise PartError(f"the annotations of {make.__name__} use a name that its file does not import: {error}") from error
    found = {}
    for key, parameter in inspect.signature(make).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise PartError(f"{make.__name__} takes *args or **kwargs: name every option instead, so that misspelt options are found")
        found[key] = (parameter.default, _check_of(hints.get(key, Any)))
    return found


def _check_of(kind: Any) -> Callable[[Any], tuple[Any, list[Any]]]:
    from pydantic import TypeAdapter, ValidationError

    from kdbench import validation

    adapter = TypeAdapter(kind)

    def check(value: Any) -> tuple[Any, list[Any]]:
        """The value in JSON types, and its errors."""
        plain = _plain(value)
        try:
            # In JSON mode a list is accepted as a tuple and an integer as a float, but not "3" as 3.
            return _plain(adapter.validate_json(json.dumps(plain, allow_nan=False), strict=True)), []
        except ValidationError as error:
            return None, validation.problems(error, kind, plain)

    return check


def _plain(value: Any) -> Any:
    """Tuples, mappings and dataclasses as JSON has them; fields in `added` of a dataclass are left out like options."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        added, held = getattr(value, "added", {}), {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
        return {key: one for key, one in held.items() if key not in added or json.dumps(one) != json.dumps(_plain(added[key]))}
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return value


def from_config(kind: str, config: Mapping[str, Any], sources: Mapping[str, str], anew: bool = False) -> Any:
    """Build the part of a cell's configuration (`name`, `version`, `options`); `anew` as in `load`. Raises PartError if the part does not
    exist any more, or has another version."""
    base, suite = (Path(sources[name]) if name in sources else None for name in (config["name"], "suite"))
    part = load(kind, config["name"], base, suite, anew)
    if (version := part.version_with(config["options"])) != config["version"]:
        versions = f"is now version {version}, and this cell was planned with version {config['version']}"
        raise PartError(f"the {kind} '{config['name']}' {versions}: plan and run the suite again (its cells get new ids)")
    return part.build(dict(config["options"]))


def sources_of(config: Mapping[str, Any]) -> dict[str, str]:
    """A digest of the source of each part of a cell, by `<kind> <name>`: it shows edits after which `version` was not raised. Imports
    nothing. Parts of other packages and users' files are left out, since their version is the hash of their source."""
    named = [(kind, config[key]["name"]) for kind, key in (("task", "task"), ("dataset", "dataset"), ("model", "student"))]
    named += [("loss", term["loss"]) for term in config["objective"]["terms"]]
    found = {f"{kind} {name}": source_digest(kind, name) for kind, name in named}
    return {name: digest for name, digest in found.items() if digest}


def source_digest(kind: str, name: str) -> str | None:
    """The first 12 digits of the SHA-256 of one of kdbench's parts: its file and the helpers that it imports from the same folder, other
    than `_base.py`. None if there is no such file."""
    path = HERE / KINDS[kind] / f"{name}.py"
    if ":" in name or not path.is_file():
        return None
    others = ("__init__.py", "_base.py")
    return local_imports.digest_of(path, (HERE.parent,), lambda file: file.parent == path.parent and file.name not in others)[:12]
