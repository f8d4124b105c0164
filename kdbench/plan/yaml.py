"""YAML 1.2 as plain values, with the line of everything: `1e-3` is a number, `no` and `10:30` are text, `012` is twelve, a key
stands once."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError

from kdbench.errors import SuiteError

Where = tuple[str | int, ...]


class Source:
    """One YAML file: `data` in plain Python values, and the line of each."""

    def __init__(self, path: Path, wanted: str = "a suite is a mapping (name: ..., dataset: ..., ...)"):
        """Raises SuiteError when the file is missing, is no YAML, holds a key twice, or is not a mapping."""
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            near = sorted(str(one) for one in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
            raise SuiteError([f"there is no file {path}" + (f"; there is: {', '.join(near)}" if near else "")]) from None
        except (OSError, UnicodeDecodeError) as error:
            raise SuiteError([f"{path} cannot be read: {error}"]) from error
        try:
            self._tree = YAML(typ="rt").load(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = (error.problem or error.context or str(error)).splitlines()[0]
            raise SuiteError([f"{path}:{mark.line + 1 if mark else 1}: {problem}"]) from error
        if not isinstance(self._tree, CommentedMap):
            raise SuiteError([f"{path}:1: {wanted}, and this is {_kind(self._tree)}"])
        self.data: dict[str, Any] = _plain(self._tree)
        endless = [
            f"{self.at(where)}: {'.'.join(map(str, where))}: {value} is no number to compute with" for where, value in _endless(self.data)
        ]
        if endless:
            raise SuiteError(endless)

    def at(self, where: Where) -> str:
        """`file:line` of a value, or of the nearest thing above it that is in the file."""
        node, line = self._tree, 0
        for key in where:
            if isinstance(node, CommentedMap) and key in node:
                line = node.lc.key(key)[0]
            elif isinstance(node, CommentedSeq) and isinstance(key, int) and key < len(node):
                line = node.lc.item(key)[0]
            else:
                break
            node = node[key]
        return f"{self.path}:{line + 1}"


def suite_name(text: str) -> str:
    """A suite's name, from the name itself or from its file. Raises SuiteError when the file cannot be read."""
    if not text.endswith((".yaml", ".yml")):
        return text
    path = Path(text)
    return str(Source(path).data.get("name", path.stem))


def _endless(node: Any, where: Where = ()) -> Iterator[tuple[Where, float]]:
    """Numbers that are infinite or not numbers."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield from _endless(value, (*where, key))
    if isinstance(node, float) and not math.isfinite(node):
        yield where, node


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key if isinstance(key, (str, int)) else str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):  # ruamel's own number and string types remember their spelling; nothing here wants it
        if isinstance(node, kind):
            return kind(node)
    if isinstance(node, (datetime.date, datetime.datetime)):
        return node.isoformat()
    return node


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    return "a list" if isinstance(value, list) else "text" if isinstance(value, str) else f"a {type(value).__name__}"
