"""Initial weights of a net: timm's pretrained weights, or a checkpoint, found in its file and matched key by key; or those of the first of
two stages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench import parts
from kdbench.cell import Cell
from kdbench.errors import DataError, RefusedError, closest, nearest
from kdbench.isolation import isolated
from kdbench.models._base import Model
from kdbench.plan.nets import digest_of_file
from kdbench.plan.probe import inherited_why_not
from kdbench.timm_adapter import pretrained_weights
from kdbench.train.checkpoint_files import described, read_weights, weights_in
from kdbench.train.objective import Objective

COUNTERS = ("total_ops", "total_params")
"""What tools that count operations add to a net's state. Other counters are whole numbers, which no weight is."""
MOST_LISTED = 6
CLASSIFIED = (224, 224)
"""The images of a classifier that is built to read its weights: a convolutional net fits any."""


def start_from(model: Model, config: Mapping[str, Any], cell: Cell, channels: int) -> None:
    """Load the weights that a configuration names. Raises DataError: they cannot be loaded, changed since the plan, or do not fit."""
    spec = config.get("weights")
    if spec is None:
        return
    if "into" in spec:
        _fill_body(model, config, cell, channels)
        return
    if spec["from"] == "timm":
        architecture = config["options"]["architecture"]
        weights = pretrained_weights(architecture, spec["tag"], channels, getattr(model, "built_with", {}))
        fit(model, weights, f"timm's {architecture}.{spec['tag']}", new_head=spec["head"] == "new")
        return
    fit(model, *_file_of(spec, cell), spec["head"] == "new", spec.get("key"), spec.get("prefix"))


def _file_of(spec: Mapping[str, Any], cell: Cell) -> tuple[Any, str]:
    """What the file of a cell's weights holds, and its path."""
    path = Path(cell.sources[f"weights {spec['digest']}"])
    if not path.is_file() or digest_of_file(path) != spec["digest"]:
        raise DataError(f"{path} is {'missing' if not path.is_file() else 'not the file with which the suite was planned'}")
    return read_weights(path), str(path)


def _fill_body(model: Model, config: Mapping[str, Any], cell: Cell, channels: int) -> None:
    """Give the body of a detector the weights of timm's classifier of its name, which must fit that classifier but for its last layer. A
    body has the classifier's names, with `_` for some of the dots."""
    spec, (option, body) = config["weights"], model.of_timm
    architecture = config["options"][option]
    if spec["from"] == "timm":
        weights: Mapping[str, Tensor] = pretrained_weights(architecture, spec["tag"], channels)
    else:
        part = parts.load("model", "timm")
        with isolated(0):
            classifier = part.build(part.options({"architecture": architecture}))
            classifier.build((channels, *CLASSIFIED), 2)
        fit(classifier, *_file_of(spec, cell), True, spec.get("key"), spec.get("prefix"))
        weights = classifier.plain.state_dict()
    known = {name.replace(".", "_"): value for name, value in weights.items()}
    inner = model.plain.get_submodule(body)
    inner.load_state_dict({name: known[name.removeprefix("model.").replace(".", "_")] for name in inner.state_dict()})


def fit(model: Model, held: Any, whose: str, new_head: bool, key: str | None = None, prefix: str | None = None) -> None:
    """Load the weights in `held` (what a file holds) that have exactly the keys and shapes of the model. `key` and `prefix` choose among
    them. Raises DataError: none fits, several fit and differ, they are not numbers, or a new head is requested for a model without one."""
    asked = _Asked.of(model, new_head)
    if new_head and not asked.head:
        raise DataError(f"{whose}: `head: new` needs a model that defines its `head`, and {type(model).__name__} does not")
    found = weights_in(held)
    if key is not None and key not in found:
        raise DataError(f"{whose} has no tensors under the key '{key}'{nearest(key, found)}")
    chosen = {one: tensors for one, tensors in found.items() if key in (None, one)}
    prefixes = [start for tensors in chosen.values() for start in _prefixes(tensors)]
    if prefix is not None and prefix not in prefixes:
        raise DataError(f"{whose} has no tensors with the prefix '{prefix}'{nearest(prefix, filter(None, prefixes))}")
    fitting = [one for name, tensors in chosen.items() for one in asked.fitting(name, tensors) if prefix in (None, one.prefix)]
    if not fitting:
        raise DataError(f"{whose} does not fit the model: {_why(asked, chosen, prefix, held)}")
    if any(not _same(fitting[0].weights, one.weights) for one in fitting[1:]):
        lines = ", or ".join(f"`{one.line(whose, fitting)}`" for one in fitting[:MOST_LISTED])
        raise DataError(f"{whose} holds {len(fitting)} sets of weights that fit the model and differ: write {lines}")
    weights = fitting[0].weights
    if bad := [name for name, value in weights.items() if value.is_floating_point() and bool(value.float().isnan().any())]:
        raise DataError(f"{whose} holds values that are not numbers (NaN) in {_listed(bad)}: the training that saved it diverged")
    model.plain.load_state_dict(weights, strict=False)


def continue_from(student: nn.Module, objective: Objective, left: Mapping[str, Tensor], terms: Sequence[Mapping[str, Any]]) -> None:
    """Begin the second of two stages with what the first, whose objective had these terms, `left` (`Member.kept`): the student, and of each
    loss that both stages have the parameters and buffers that both have. The first of two terms with one loss is the first in both stages.
    Raises DataError: one of these has another shape."""

    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in left.items() if name.startswith(prefix)}

    student.load_state_dict(below("student."))
    before = _numbered(terms)
    for term, loss in zip(_numbered(objective.terms), objective.losses, strict=True):
        own = loss.state_dict()
        theirs = below(f"objective.losses.{before.index(term)}.") if term in before else {}
        shared = {name: value for name, value in theirs.items() if name in own}
        if wrong := [f"{name} {_shape(value)} for {_shape(own[name])}" for name, value in shared.items() if not _alike(own[name], value)]:
            raise DataError(f"the loss '{term[0]}' has other shapes in its first stage: {_listed(wrong)}")
        loss.load_state_dict(shared, strict=False)


def inherit(student: Model, teacher: Model, names: Sequence[str]) -> None:
    """Give the student these parts of its teacher (`Model.parts_by_name`), with the teacher's weights. Raises RefusedError: one of them has
    no such part, or of other shapes."""
    if why := inherited_why_not(student, teacher, names):
        raise RefusedError(why)
    own, theirs = student.parts_by_name(), teacher.parts_by_name()
    for name in names:
        own[name].load_state_dict(theirs[name].state_dict())


def _numbered(terms: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Each term as its loss and its number among those of this loss."""
    names = [term["loss"] for term in terms]
    return [(name, names[:place].count(name)) for place, name in enumerate(names)]


@dataclass(frozen=True)
class _Found:
    """Weights in a file: under which key and prefix, by their names without it, those that the model has, and what is wrong."""

    key: str
    prefix: str
    named: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    absent: list[str]
    unknown: list[str]
    other: list[str]

    def line(self, whose: str, among: list[_Found]) -> str:
        """What a suite writes to choose these weights."""
        prefix = {"prefix": self.prefix} if self.prefix or sum(one.key == self.key for one in among) > 1 else {}
        return f"weights: {{{', '.join(f'{name}: {_yaml(text)}' for name, text in {'file': whose, 'key': self.key, **prefix}.items())}}}"


@dataclass(frozen=True)
class _Asked:
    """What a model asks of weights: its own state, and the names of its head where that is drawn anew."""

    own: Mapping[str, Tensor]
    head: frozenset[str]
    heads: tuple[str, ...]
    new_head: bool
    model: Model

    @classmethod
    def of(cls, model: Model, new_head: bool) -> _Asked:
        own = model.plain.state_dict()
        drawn = list(model.head_modules)
        heads = tuple(f"{name}." for name, module in model.plain.named_modules() if any(module is one for one in drawn))
        return cls(own, frozenset(key for key in own if key.startswith(heads)), heads, new_head, model)

    def fitting(self, key: str, tensors: Mapping[str, Tensor]) -> list[_Found]:
        """What fits under each prefix, longest first: what lies under a longer prefix that fits is not unknown to a shorter one."""
        found: list[_Found] = []
        for start in _prefixes(tensors):
            inner = tuple(other.prefix.removeprefix(start) for other in found if other.prefix.startswith(start))
            if sum(name.startswith(start) for name in tensors) >= len(self.needed):
                tried = (one for one in self.views(key, tensors, start) if not one.absent and not one.other)
                found += [one for one in tried if all(inner and name.startswith(inner) for name in one.unknown)][:1]
        return found

    @cached_property
    def needed(self) -> set[str]:
        """Checkpoints from before PyTorch 0.4.1 have no num_batches_tracked."""
        return {name for name in self.own if not name.endswith("num_batches_tracked") and not self.is_dropped(name)}

    def is_dropped(self, name: str) -> bool:
        return self.new_head and name.startswith(self.heads)

    def views(self, key: str, tensors: Mapping[str, Tensor], prefix: str) -> Iterator[_Found]:
        """The tensors under a prefix, under their own names, and as a published layout renames them."""
        named = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        yield self.compared(key, prefix, named)
        if self.model.released_layout:
            yield self.compared(key, prefix, self.model.released(named))

    def compared(self, key: str, prefix: str, named: Mapping[str, Tensor]) -> _Found:
        kept = {name: value for name, value in named.items() if name in self.own and not self.is_dropped(name)}
        strange = {name: value for name, value in named.items() if name not in self.own and not self.is_dropped(name)}
        other = [name for name, value in kept.items() if not _alike(self.own[name], value)]
        # Whole numbers and masks are counters and indices; a net has them, or computes them.
        unknown = [name for name, value in strange.items() if value.is_floating_point() and name.rpartition(".")[2] not in COUNTERS]
        return _Found(key, prefix, named, kept, sorted(self.needed - set(kept)), sorted(unknown), sorted(other))


def _why(asked: _Asked, chosen: Mapping[str, Mapping[str, Tensor]], prefix: str | None, held: Any) -> str:
    """Of all weights in a file, what is wrong with those that are nearest to the model's, and what else there is."""
    tried = (
        one
        for key, tensors in chosen.items()
        for start in (_prefixes(tensors) if prefix is None else [prefix])
        for one in asked.views(key, tensors, start)
    )
    best = max(tried, key=lambda one: (len(one.weights) - len(one.other), len(one.weights), -len(one.unknown)))
    own, unknown = asked.own, {name: _shape(best.named[name]) for name in best.unknown}
    shapes = [f"{name} {_shape(best.weights[name])} for {_shape(own[name])}" for name in best.other]
    wrong = [("missing", best.absent), ("unknown", best.unknown), ("of another shape", shapes)]
    place = " and ".join(f"the {name} '{text}'" for name, text in (("key", best.key), ("prefix", best.prefix)) if text)
    told = f"of its keys{f' (under {place})' if place else ''} "
    told += ", ".join(f"{len(keys)} {what} ({_listed(keys)})" for what, keys in wrong if keys)
    for name in best.absent[:2]:
        alike = [one for one in best.unknown if unknown[one] == _shape(own[name])]
        if close := closest(name, alike) or closest(name, unknown) or next(iter(alike), None):
            told += f"; the nearest to {name} {_shape(own[name])} is {close} {unknown[close]}"
    if len(chosen) > 1:
        sizes = {f"'{key}'" if key else "the file itself": len(tensors) for key, tensors in chosen.items()}
        most = sorted(sizes, key=lambda key: -sizes[key])[:MOST_LISTED]
        told += f"; it holds tensors under {', '.join(f'{key} ({sizes[key]})' for key in most)}"
    elif not best.weights:
        told += described(held)
    of_head = {*best.other, *best.absent} <= asked.head and not best.unknown
    return told + ("; `head: new` would draw the head anew" if of_head and not asked.new_head else "")


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Every beginning of a name that ends with a dot, and none; longest first."""
    found = {name[: dot.end()] for name in tensors for dot in re.finditer(r"\.", name)}
    return sorted(found | {""}, key=lambda one: (-len(one), one))


def _alike(own: Tensor, given: Tensor) -> bool:
    return own.shape == given.shape and (given.is_floating_point() or not own.is_floating_point())


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    same = one.keys() == other.keys() and all(value.dtype == other[name].dtype for name, value in one.items())
    return same and all(torch.equal(value, other[name]) for name, value in one.items())


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else f' of {tensor.dtype}'}"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:4])}{', ...' * (len(names) > 4)}"


def _yaml(text: str) -> str:
    return text if re.fullmatch(r"(?!(true|false|null)$)[A-Za-z_/][\w./+-]*", text) else json.dumps(text, ensure_ascii=False)
