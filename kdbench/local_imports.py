"""Files that a part imports from its own folder: found without running them, and imported separately from files of the same name that
belong to other parts."""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

Import = tuple[int, str]
"""An import statement: how many dots it begins with, and the dotted name after them."""


def digest_of(path: Path, roots: Sequence[Path], within: Callable[[Path], bool] | None = None) -> str:
    """The SHA-256 of a file together with the local files that it imports, directly or through others."""
    digest = hashlib.sha256(path.read_bytes())
    for text in sorted(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in imported_files(path, roots, within)):
        digest.update(text.encode())
    return digest.hexdigest()


def imported_files(path: Path, roots: Sequence[Path], within: Callable[[Path], bool] | None = None) -> set[Path]:
    """The files below `roots` that a file imports, directly or through others, at any place in it. `within` selects files; by default all
    except kdbench's own, which are beside a suite in a clone."""
    found: set[Path] = set()
    open_files = [path]
    while open_files:
        file = open_files.pop()
        for dots, name in _imports(file.read_bytes()):
            top = name.partition(".")[0]
            folder = file.parents[dots - 1] if dots else None if top == "kdbench" and within is None else _root_of(top, roots)
            new = {one for one in (_files(folder, name) if folder else ()) if one != path and (within is None or within(one))} - found
            found |= new
            open_files += new
    return found


@cache
def _imports(source: bytes) -> tuple[Import, ...]:
    """Every import in a source, including `importlib.import_module("name")`; none if it is not valid Python (importing it fails)."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return ()
    found: list[Import] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(0, one.name) for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            # What is imported from a package may be a module of it.
            found += [(node.level, ".".join(filter(None, (node.module, one.name)))) for one in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            found += [(0, one.value) for one in node.args[:1] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return tuple(dict.fromkeys(found))


def _files(folder: Path, name: str) -> Iterator[Path]:
    """The files that importing a dotted name from a folder runs."""
    for part in name.split("."):
        package, module = folder / part / "__init__.py", folder / f"{part}.py"
        if package.is_file() or module.is_file():
            yield package if package.is_file() else module
        folder = folder / part


def _root_of(top: str, roots: Sequence[Path]) -> Path | None:
    """The folder that a top-level name is imported from; None if it is not local. The order is that of Python for a script: its own
    library, local files, installed packages, local folders without `__init__.py`."""
    if not top or top in sys.stdlib_module_names:
        return None
    for root in roots:
        if (root / f"{top}.py").is_file() or (root / top / "__init__.py").is_file():
            return root
    for root in roots:
        if any((root / top).glob("*.py")):
            installed = PathFinder.find_spec(top)
            return root if installed is None or installed.origin is None else None
    return None


def load_file(path: Path, roots: Sequence[Path], key: str) -> ModuleType:
    """Import a file under the name `key`, with its own copy of local modules from `roots`."""
    if key in sys.modules:
        return sys.modules[key]
    scope = _Scope(path, roots)
    spec = importlib.util.spec_from_file_location(key, path, loader=_Loader(scope, key, str(path)))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        with scope.active():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module


class _Scope:
    """The local modules of one part. They are in `sys.modules` only while one of them is being imported."""

    def __init__(self, path: Path, roots: Sequence[Path]):
        self.path, self.roots = path, roots
        self.local: dict[str, bool] = {}  # of each top-level name that was asked for
        self.modules: dict[str, ModuleType] = {}
        self.hidden: dict[str, ModuleType] = {}
        self.is_active = False

    def import_module(
        self, name: str, globals: Mapping[str, Any] | None = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> Any:
        """Replaces `__import__` in the part's file and in its local modules."""
        package = (globals or {}).get("__package__")
        if level and not package:
            if not name:  # from . import helper
                return SimpleNamespace(**{one: self.import_module(one, globals, None, ("*",)) for one in fromlist or ()})
            level = 0  # from .helper import f
        elif not level and name in self.modules and all(hasattr(self.modules[name], one) for one in fromlist or ()):
            return self.modules[name if fromlist else name.partition(".")[0]]
        if not self._is_local((package if level else name).partition(".")[0]):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        with self.active():
            return builtins.__import__(name, globals, locals, fromlist or (), level)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Local imports work, and modules of other parts with the same names are hidden."""
        if self.is_active:
            yield
            return
        self.hidden = self._taken_out()
        sys.modules.update(self.modules)
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]
        self.is_active = True
        try:
            yield
        finally:
            self.is_active = False
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            self.modules = self._taken_out()
            sys.modules.update(self.hidden)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        top = name.partition(".")[0]
        if not self._is_local(top):
            return None
        for folder in [_root_of(top, self.roots)] if path is None else path:
            spec = FileFinder(str(folder), (partial(_Loader, self), SOURCE_SUFFIXES)).find_spec(name)
            if spec is not None:
                return spec
        return None

    def _is_local(self, top: str) -> bool:
        if top not in self.local:
            root = None if top == "kdbench" else _root_of(top, self.roots)
            # A file `timm.py` that imports timm means the library.
            self.local[top] = root is not None and root / f"{top}.py" != self.path
            if self.local[top] and self.is_active:
                self.hidden |= {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == top}
        return self.local[top]

    def _taken_out(self) -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if self.local.get(name.partition(".")[0])}


class _Loader(SourceFileLoader):
    def __init__(self, scope: _Scope, name: str, path: str):
        super().__init__(name, path)
        self.scope = scope

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self.scope.import_module}
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType:
        # Not from the cache, which does not see an edit within the same second.
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)
