"""YAML 1.2 as plain values, with the line of each: `1e-3` is a number, `no` and `10:30` are text, `012` is twelve, a key is given once.
Limits keep any file from taking long to read or filling the memory."""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from kdbench.errors import SuiteError, nearest, shown
from kdbench.plan.shipped import FOLDERS, shipped

Where = tuple[str | int, ...]

MAX_BYTES = 100_000
MAX_DEPTH = 30
MAX_VALUES = 20_000
MAX_TEXT = 10_000
MAX_NAME = 200
_TAG = "tag:yaml.org,2002:"
_AS_TEXT = ("str", "timestamp", "merge", "value")
"""What stays text, however YAML calls it: a date, `<<` and `=` as values."""
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
"""Characters that no name and no description needs, and that move the cursor of a terminal or turn its text around."""


class YamlFile:
    """One YAML file: `data` in plain Python values, and the line of each."""

    def __init__(self, path: Path, expected: str = "a suite is a mapping (name: ..., dataset: ..., ...)", text: str | None = None):
        """Raises SuiteError when the file cannot be read, is not YAML, repeats a key, exceeds a limit, or is not a mapping. `text` is read
        instead of a file; `path` is then what errors call it."""
        path = self.path = yaml_file(path) if text is None else path
        yaml = YAML(typ="safe", pure=True)
        text = _text(path) if text is None else text
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ReusedAnchorWarning)
                root = yaml.compose(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = ", ".join(text.splitlines()[0] for text in (error.context, error.problem) if text)
            raise SuiteError([f"{path}:{mark.line + 1 if mark else 1}: the file is not YAML: {shown(problem)}"]) from error
        except YAMLError as error:
            raise SuiteError([f"{path}: {shown(str(error).splitlines()[0])}"]) from error
        except RecursionError:
            raise SuiteError([f"{path}: {_TOO_DEEP}"]) from None
        if not isinstance(root, MappingNode) or _kind(root) != "map":
            raise SuiteError([f"{path}:1: {expected}, not {_article(root)}"])
        reader = _NodeReader(path, yaml.constructor)
        self.data: dict[str, Any] = reader.value(root, (), ())
        self._lines = reader.lines
        if reader.errors:
            raise SuiteError(reader.errors)

    def at(self, where: Where) -> str:
        """`file:line` of a value, or of the nearest value above it that is in the file."""
        while where and where not in self._lines:
            where = where[:-1]
        return f"{self.path}:{self._lines.get(where, 1)}"


_TOO_DEEP = f"lists and mappings are nested more than {MAX_DEPTH} deep"


class _NodeReader:
    """Plain values from the nodes of one file. `lines` and `errors` fill up on the way; a limit that is exceeded raises."""

    def __init__(self, path: Path, constructor: Any):
        self.path, self.constructor = path, constructor
        self.lines: dict[Where, int] = {}
        self.errors: list[str] = []
        self.count = 0

    def value(self, node: Node, where: Where, parents: tuple[Node, ...]) -> Any:
        """The value of a node with aliases and merges expanded. `parents` are the nodes that contain it."""
        self._enter(node, parents)
        kind = _kind(node)
        if isinstance(node, MappingNode) and kind == "map":
            pairs = self._pairs(node, where, (*parents, node))
            self.lines |= {(*where, key): key_node.start_mark.line + 1 for key, (key_node, _) in pairs.items()}
            return {key: self.value(value, (*where, key), (*parents, node)) for key, (_, value) in pairs.items()}
        if isinstance(node, SequenceNode) and kind == "seq":
            self.lines |= {(*where, place): one.start_mark.line + 1 for place, one in enumerate(node.value)}
            return [self.value(one, (*where, place), (*parents, node)) for place, one in enumerate(node.value)]
        if isinstance(node, ScalarNode) and kind in (*_AS_TEXT, "int", "float", "bool", "null"):
            return self._scalar(node, kind, where)
        tag = kind if kind.startswith("!") else f"!!{kind}"
        self._error(node, where, f"the tag {shown(tag)} is not supported: write text, a number, a list or a mapping without a tag")
        return None

    def _enter(self, node: Node, parents: tuple[Node, ...]) -> None:
        self.count += 1
        if any(node is parent for parent in parents):
            raise SuiteError([f"{self.path}:{node.start_mark.line + 1}: the anchor &{node.anchor} contains itself"])
        if len(parents) > MAX_DEPTH:
            raise SuiteError([f"{self.path}:{node.start_mark.line + 1}: {_TOO_DEEP}"])
        if self.count > MAX_VALUES:
            raise SuiteError([f"{self.path}: the file has more than {MAX_VALUES:,} values, with its aliases expanded"])

    def _pairs(self, node: MappingNode, where: Where, parents: tuple[Node, ...]) -> dict[str | int, tuple[Node, Node]]:
        """Key -> nodes of key and value: those of the mapping itself, then those that `<<` merges into it."""
        own: dict[str | int, tuple[Node, Node]] = {}
        merged: list[Node] = []
        for key_node, value in node.value:
            if _kind(key_node) == "merge":
                merged += value.value if isinstance(value, SequenceNode) else [value]
                continue
            key = self._key(key_node, where)
            if key in own:
                first = own[key][0].start_mark.line + 1
                self._error(key_node, (*where, key), f"the key '{key}' is given twice, first in line {first}")
            elif key is not None:
                own[key] = key_node, value
        for one in merged:
            self._enter(one, parents)
            if not isinstance(one, MappingNode):
                self._error(one, where, "`<<` merges a mapping, or a list of mappings")
                continue
            own = {**self._pairs(one, where, (*parents, one)), **own}
        return own

    def _key(self, node: Node, where: Where) -> str | int | None:
        kind = _kind(node)
        if not isinstance(node, ScalarNode) or kind not in ("int", *_AS_TEXT):
            message = f"'{shown(node.value)}'" if isinstance(node, ScalarNode) and node.value else _article(node)
            self._error(node, where, f"a key is text or a whole number, not {message}: put it in quotes if it is a name")
            return None
        key = self._scalar(node, kind, where)
        if isinstance(key, str) and (problem := name_problem(key)):
            self._error(node, where, problem)
            return None
        return key

    def _scalar(self, node: ScalarNode, kind: str, where: Where) -> Any:
        if kind in _AS_TEXT:
            if found := _FORBIDDEN.search(node.value):
                self._error(node, where, f"the character U+{ord(found[0]):04X} is not allowed")
            elif len(node.value) > MAX_TEXT:
                self._error(node, where, f"a text has at most {MAX_TEXT:,} characters, not {len(node.value):,}")
            else:
                return str(node.value)
            return None
        try:
            value = getattr(self.constructor, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError, IndexError, YAMLError):
            self._error(node, where, f"'{shown(node.value)}' cannot be read as a number or truth value: put it in quotes if it is text")
            return None
        if isinstance(value, float) and not math.isfinite(value) or isinstance(value, int) and not -(2**63) <= value < 2**63:
            self._error(node, where, f"{shown(node.value)} is not a finite number of 64 bits")
        return float(value) if kind == "float" else value

    def _error(self, node: Node, where: Where, problem: str) -> None:
        self.errors.append(f"{self.path}:{node.start_mark.line + 1}: {dotted(where)}{problem}")


def dotted(where: Where) -> str:
    """`students.small.widths: `, or nothing for the whole file."""
    return f"{'.'.join(shown(str(key)) for key in where)}: " if where else ""


def name_problem(name: str) -> str | None:
    """Why a text cannot be a key or the name of a student, teacher or objective; None if it can."""
    if not name.strip() or name != name.strip():
        return f"the name '{shown(name)}' is empty or has spaces at its ends"
    if "\n" in name or "\t" in name:
        return f"the name '{shown(name)}' has a line break or a tab"
    if len(name) > MAX_NAME:
        return f"the name '{shown(name)}' has {len(name)} characters, and the limit is {MAX_NAME}"
    if not unicodedata.is_normalized("NFC", name):
        return f"the name '{shown(name)}' is in decomposed Unicode, which looks like another name: write it in composed form (NFC)"
    return None


def checked_suite_name(value: str) -> str:
    """The name of a suite. Raises ValueError when it cannot be the name of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", value) or value.endswith((".yaml", ".yml")):
        raise ValueError("a suite's name has at most 100 letters, digits, '_', '.' and '-', and does not end with .yaml")
    return value


def suite_name(text: str) -> str:
    """A suite's name, from the name itself or from its file. Raises SuiteError when it cannot be one, or the file cannot be read."""
    path = yaml_file(Path(text))
    if not text.endswith((".yaml", ".yml")):
        if "/" not in text and not Path(text).is_file():
            return text
        if path.parent.name == "suites" and (path / "manifest.json").is_file():
            return path.name
        if not path.is_file() or path.suffix not in ("", ".yaml"):
            hint = f"; did you mean {shown(str(Path(text, 'frame.csv')))}?" if Path(text, "frame.csv").is_file() else ""
            raise SuiteError([f"{shown(text)} is neither the name of a suite nor its YAML file{hint}"])
    file = YamlFile(path)
    try:
        return checked_suite_name(str(file.data.get("name", file.path.stem)))
    except ValueError as error:
        raise SuiteError([f"{file.at(('name',))}: name: {error}"]) from None


def yaml_file(path: Path) -> Path:
    """The file that a path names: `./mine` is `./mine.yaml` where only that is a file."""
    whole = path.with_name(f"{path.name}.yaml") if path.name else path
    try:
        return whole if not path.is_file() and whole.is_file() else path
    except OSError:  # such as a name that is too long: told when it is read
        return path


def _text(path: Path) -> str:
    """The text of a regular file of UTF-8 within the limit of size. Raises SuiteError."""
    try:
        if not path.is_file():
            raise SuiteError([_not_a_file(path)])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SuiteError([f"{shown(str(path))} cannot be read: {error.strerror}"]) from error
    if len(data) > MAX_BYTES:
        raise SuiteError([f"{path} is larger than {MAX_BYTES // 1000} kB, which is the limit"])
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SuiteError([f"{path}:{line}: the file is not UTF-8: save it as UTF-8 (byte {data[error.start]:#04x})"]) from None
    if found := _FORBIDDEN.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise SuiteError([f"{path}:{line}: the character U+{ord(found[0]):04X} is not allowed"])
    return text


def _not_a_file(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder, not a file{nearest('', [one.name for one in path.glob('*.yaml')])}"
    if path.exists():
        return f"{path} is not a regular file"
    near = [one.name for one in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    for kind in FOLDERS:
        if path.stem in shipped(kind):
            return f"there is no file {path}; `kdbench init NAME --from {path.stem}` writes a copy of the shipped {kind}"
    return f"there is no file {shown(str(path))}{nearest(path.name, near)}"


def _kind(node: Node) -> str:
    """The tag of a node: `int` for YAML's own, `!mine` for others."""
    return str(node.tag).removeprefix(_TAG)


def _article(node: Node | None) -> str:
    if node is None or _kind(node) == "null":
        return "empty"
    return {MappingNode: "a mapping", SequenceNode: "a list", ScalarNode: "text"}[type(node)]
