"""The arguments that a factory of timm takes, from the class of the nets that it makes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

SET_HERE = {
    **dict.fromkeys(("num_classes", "in_chans"), "the dataset decides it"),
    **dict.fromkeys(("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"), "write `weights`"),
    **dict.fromkeys(("features_only", "out_indices", "feature_cls"), "kdbench trains whole nets, and reads their maps itself"),
    "patch_drop_rate": "it drops patches in training, and no map of the patches is left for a loss",
    **dict.fromkeys(("scriptable", "exportable", "no_jit", "device", "dtype"), "kdbench decides it"),
}
"""Arguments of timm's factories that a suite cannot give, and why."""


def arguments_of(net: type) -> dict[str, tuple[Any, Any]]:
    """The arguments that a suite can give for nets of this class: name -> (type, default)."""
    found: dict[str, tuple[Any, Any]] = {}
    for made in net.__mro__[: net.__mro__.index(nn.Module)]:
        if "__init__" not in vars(made):
            continue
        taken = _typed(made.__init__)
        found = {**taken, **found}
        parameters = inspect.signature(made.__init__).parameters
        config = _hints(made.__init__).get("cfg")
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            break
        # What such a class does not take by name, it takes for fields of its configuration.
        for kind in (config, *get_args(config)):
            if is_dataclass(kind):
                found = {**_typed(kind), **found}
    return {name: one for name, one in found.items() if name not in SET_HERE and name != "cfg" and one[0] is not None}


def _typed(make: Any) -> dict[str, tuple[Any, Any]]:
    """The parameters of a function or class by name: (type, default); the type is None where no value in a suite has it."""
    hints = _hints(make)
    parameters = [
        one
        for one in inspect.signature(make).parameters.values()
        if one.name != "self" and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    return {one.name: (_in_a_suite(hints[one.name]) if one.name in hints else _like(one.default), one.default) for one in parameters}


def _hints(make: Any) -> dict[str, Any]:
    try:
        return get_type_hints(make)
    except NameError:  # an annotation that its module does not import
        return {}


def _in_a_suite(kind: Any) -> Any:
    """The part of a type that values in a suite can have; None if there is none."""
    inner = [one for one in map(_in_a_suite, get_args(kind)) if one is not None]
    if get_origin(kind) in (Union, UnionType):
        return Union[tuple(inner)] if inner else None  # noqa: UP007
    if get_origin(kind) in (tuple, list, dict, Sequence):
        return kind if len(inner) == len(get_args(kind)) else None
    return kind if kind in (bool, int, float, str, tuple, list, dict, Any, ...) or get_origin(kind) is Literal else None


def _like(default: Any) -> Any:
    """The type of an argument without annotation, from its default."""
    if isinstance(default, (bool, str)):
        return type(default)
    if isinstance(default, (int, float)):
        return int | float | list[int | float]
    return list | int | float if isinstance(default, (tuple, list)) else Any
