"""A part is a file: its name is its key. Listing parts imports none of them.

A part is asked for by key (`rkd`), by file (`path/to/file.py:MyLoss`, relative to the suite) or by module
(`package.module:MyLoss`); a package can also offer parts through entry points of the group `kdbench.<folder>`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from kdbench.errors import PartError, nearest

KINDS = {"loss": "losses", "dataset": "datasets", "model": "models", "recipe": "recipes", "task": "tasks"}
"""Each kind of part and the folder that holds it."""

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """One part, loaded: `name` is what was asked, `make` its class, `version` what enters a cell's identity."""

    kind: str
    name: str
    make: Any
    version: int | str

    def options(self, given: dict[str, Any] | None = None) -> dict[str, Any]:
        """Every option of the part with its default written out, `given` taking precedence.

        Raises:
            PartError: an option that the part does not have, one without a value, or a value of the wrong type.
        """
        given = dict(given or {})
        known = _parameters(self.make)
        for key in given:
            if key not in known:
                raise PartError(f"the {self.kind} '{self.name}' has no option '{key}'{nearest(key, known)}")
        resolved = {}
        for key, (default, check) in known.items():
            if key not in given and default is inspect.Parameter.empty:
                raise PartError(f"the {self.kind} '{self.name}' needs a value for '{key}'")
            resolved[key] = check(self, key, given.get(key, default))
        return resolved

    def known(self) -> list[str]:
        """The names of the part's options."""
        return list(_parameters(self.make))

    def build(self, options: dict[str, Any]) -> Any:
        """The part itself, with exactly these options."""
        try:
            return self.make(**options)
        except (TypeError, ValueError) as error:
            raise PartError(f"the {self.kind} '{self.name}' cannot be built with {options}: {error}") from error


def names(kind: str) -> list[str]:
    """The keys of all parts of a kind, without importing any."""
    own = [path.stem for path in (HERE / KINDS[kind]).glob("*.py") if not path.stem.startswith("_")]
    return sorted({*own, *(entry.name for entry in _entry_points(kind))})


def summary(kind: str, name: str) -> str:
    """The first line of a part's docstring, read from the source without running it."""
    path = HERE / KINDS[kind] / f"{name}.py"
    if not path.exists():
        return "(from another package)"
    tree = ast.parse(path.read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for node in (*classes, tree):
        text = ast.get_docstring(node)  # type: ignore[arg-type]
        if text:
            return text.splitlines()[0]
    return ""


@cache
def named(kind: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Names of the literature that stand for a part with options (`named` of its class): name -> (part, options). Imports none."""
    found = {}
    for path in sorted((HERE / KINDS[kind]).glob("[!_]*.py")):
        for line in ast.walk(ast.parse(path.read_text())):
            target = line.target if isinstance(line, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and target.id == "named" and line.value is not None:  # type: ignore[attr-defined]
                for name, options in ast.literal_eval(line.value).items():  # type: ignore[attr-defined]
                    found[name] = (path.stem, dict(options))
    return found


def load(kind: str, name: str, base: Path | None = None) -> Part:
    """Find and import a part. `base` is the folder that a relative file is sought in (the suite's).

    Raises:
        PartError: there is no such part, its file cannot be imported, or it holds no class of the kind.
    """
    if ".py:" in name:
        file, _, attribute = name.rpartition(":")
        path = (Path(base or ".") / file).resolve()
        if not path.is_file():
            near = nearest(path.name, [one.name for one in path.parent.glob("*.py")]) if path.parent.is_dir() else ""
            raise PartError(f"there is no file {path}{near}")
        return _load_file(kind, name, path, attribute, hashlib.sha256(path.read_bytes()).hexdigest()[:16])
    return _load(kind, name)


@cache
def _load_file(kind: str, name: str, path: Path, attribute: str, digest: str) -> Part:
    """`digest` stands among the arguments so that an edited file is read again."""
    return Part(kind, name, _attribute(kind, name, _import_file(path, digest), attribute), f"source {digest}")


@cache
def _load(kind: str, name: str) -> Part:
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        module = _import(kind, name, module_name)
        source = inspect.getsource(module).encode()
        return Part(kind, name, _attribute(kind, name, module, attribute), "source " + hashlib.sha256(source).hexdigest()[:16])
    for entry in _entry_points(kind):
        if entry.name == name:
            make = entry.load()
            source = inspect.getsource(sys.modules[make.__module__]).encode()
            return Part(kind, name, make, "source " + hashlib.sha256(source).hexdigest()[:16])
    if name not in names(kind):
        raise PartError(f"there is no {kind} '{name}'{nearest(name, names(kind))}")
    make = _only_class(kind, name, _import(kind, name, f"kdbench.{KINDS[kind]}.{name}"))
    return Part(kind, name, make, getattr(make, "version", 1))


def contract(kind: str) -> type:
    """The class that every part of the kind derives from: the one public class of `_base.py` that is named after the kind."""
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
        raise PartError(f"{kind} '{name}': '{attribute}' is not a class derived from {base.__module__}.{base.__name__}")
    return make


def _import(kind: str, name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:
        head = name.partition(":")[0]
        unknown = isinstance(error, ModuleNotFoundError) and error.name == head.partition(".")[0]
        told = f"there is neither a {kind} '{head}' nor a module of that name{nearest(head, names(kind))}"
        raise PartError(told if unknown else f"{kind} '{name}': importing {module} failed: {type(error).__name__}: {error}") from error


def _import_file(path: Path, digest: str) -> ModuleType:
    key = f"kdbench_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{digest}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise PartError(f"importing {path} failed: {type(error).__name__}: {error}") from error
    return module


@cache
def _parameters(make: type) -> dict[str, tuple[Any, Any]]:
    from pydantic import TypeAdapter, ValidationError

    try:
        hints = get_type_hints(make if is_dataclass(make) else make.__init__)  # type: ignore[misc]
    except NameError as error:
        raise PartError(f"the annotations of {make.__name__} name what its file does not import: {error}") from error
    found = {}
    for key, parameter in inspect.signature(make).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise PartError(f"{make.__name__} takes *args or **kwargs: a part names every option, so that a typing error is caught")
        adapter = TypeAdapter(hints.get(key, Any))

        def check(part: Part, key: str, value: Any, adapter: Any = adapter) -> Any:
            try:
                # JSON mode: a list serves for a tuple, an integer for a float, and "3" does not serve for 3.
                return _plain(adapter.validate_json(json.dumps(_plain(value), allow_nan=False), strict=True))
            except ValidationError as error:
                what = error.errors()[0]["msg"]
                raise PartError(f"the {part.kind} '{part.name}' takes no {value!r} for '{key}': {what}") from error

        found[key] = (parameter.default, check)
    return found


def _plain(value: Any) -> Any:
    """Tuples, mappings and dataclasses as JSON has them."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return value


def from_config(kind: str, config: Mapping[str, Any], sources: Mapping[str, str]) -> Any:
    """Build the part that a cell's configuration describes (`name`, `version`, `options`).

    Raises:
        PartError: there is no such part any more, or it is not the version that the configuration was made with.
    """
    part = load(kind, config["name"], Path(sources[config["name"]]) if config["name"] in sources else None)
    if part.version != config["version"]:
        raise PartError(
            f"the {kind} '{config['name']}' is now version {part.version}, and this cell was planned with version {config['version']}: "
            "plan and run the suite again (its cells get new ids)"
        )
    return part.build(dict(config["options"]))


def sources_of(config: Mapping[str, Any]) -> dict[str, str]:
    """A digest of the source of each part of a cell, by `<kind> <name>`: what its `version` does not tell when somebody edits a part
    and forgets to raise it. Imports nothing. Parts of other packages and users' own files are left out: their version is the hash of
    their source."""
    named = [(kind, config[key]["name"]) for kind, key in (("task", "task"), ("dataset", "dataset"), ("model", "student"))]
    named += [("loss", term["loss"]) for term in config["objective"]["terms"]]
    found = {f"{kind} {name}": source_digest(kind, name) for kind, name in named}
    return {name: digest for name, digest in found.items() if digest}


def source_digest(kind: str, name: str) -> str | None:
    """The first 12 digits of the SHA-256 of the file of one of our own parts as it is now; None where there is no such file."""
    path = HERE / KINDS[kind] / f"{name}.py"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if ":" not in name and path.is_file() else None
