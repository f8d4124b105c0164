"""`list` and `show`: parts as a person reads them."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from kdbench import parts
from kdbench.errors import PartError, nearest
from kdbench.run import watch
from kdbench.store import Store


def listed(kind: str | None) -> str:
    """All parts of a kind (singular or plural), or of every kind, with the first line of each. Imports none of them."""
    kinds = list(parts.KINDS)
    if kind is not None:
        singular = {**{one: one for one in kinds}, **{folder: one for one, folder in parts.KINDS.items()}}
        if kind not in singular:
            raise PartError(f"there is no kind of part '{kind}'{nearest(kind, singular)}")
        kinds = [singular[kind]]
    lines = []
    for one in kinds:
        lines.append(parts.KINDS[one])
        stands_for = parts.named(one)
        wide = max(map(len, [*parts.names(one), *stands_for]), default=0)
        for name in parts.names(one):
            lines.append(f"  {name:<{wide}}  {parts.summary(one, name)}")
            lines += [
                f"    {called:<{wide}} {part} with {_said(options)}" for called, (part, options) in stands_for.items() if part == name
            ]
    return "\n".join(lines) + "\n"


def _said(options: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())


def shown(name: str, results: Path) -> str:
    """Every part of this name (specification, options, presets), or the cell whose id begins so (configuration, state, metrics).

    Raises:
        PartError: there is neither.
    """
    key = name.partition(":")[0] if ".py" not in name else name
    key = next((parts.named(kind)[key][0] for kind in parts.KINDS if key in parts.named(kind)), key)
    found = [kind for kind in parts.KINDS if key in parts.names(kind)]
    name = key if found else name
    if not found and ".py:" in name:
        return _shown("loss", name)
    if not found and re.fullmatch("[0-9a-f]{4,12}", name):
        return _cell(Store(results), name)
    if not found:
        everything = sorted({one for kind in parts.KINDS for one in parts.names(kind)})
        raise PartError(f"there is no part '{name}'{nearest(name, everything)}")
    return "\n".join(_shown(kind, name) for kind in found)


def _cell(store: Store, start: str) -> str:
    cell_id = store.find(start)
    record, cell = store.record(cell_id), store.cell(cell_id)
    told = {"id": cell_id, "state": watch.state(store, cell_id).name, "config": cell.config}
    if record:
        told |= {"metrics": record.result["metrics"], "circumstance": record.circumstance}
    if failure := store.failure(cell_id):
        told["failure"] = failure
    return json.dumps(told, indent=1) + "\n"


def _shown(kind: str, name: str) -> str:
    part = parts.load(kind, name)
    lines = [f"{kind} {name} (version {part.version})", "", inspect.cleandoc(part.make.__doc__ or "(no description)"), ""]
    signature = inspect.signature(part.make)
    if signature.parameters:
        lines.append("Options:")
        for option in signature.parameters.values():
            default = "needed" if option.default is option.empty else f"= {option.default!r}"
            lines.append(
                f"  {option.name}: {option.annotation if isinstance(option.annotation, str) else option.annotation.__name__} {default}"
            )
        lines.append("")
    presets = getattr(part.make, "presets", {})
    for place, (key, preset) in enumerate(presets.items()):
        if place == 0:
            lines.append("Presets (the first is the default):")
        weight = "no published weight: the suite must say it" if preset.weight is None else f"weight {preset.weight:g}"
        more = "".join(f", + {other} {value:g} {dict(options)}" for other, value, options in preset.terms)
        lines.append(f"  {name}:{key}  task {preset.task:g}, {weight}{more}, options {dict(preset.options)}")
        lines.append(f"      Source: {preset.source}")
        if kind == "loss":
            lines.append(f"      value on the reference batch: {_on_reference(part, dict(preset.options))}")
    if presets and kind == "loss":
        lines.append(
            "The reference batch: sines and cosines, kdbench/losses/_reference.py. Values are unweighted, the loss's own term alone."
        )
    return "\n".join(lines).rstrip() + "\n"


def _on_reference(part: parts.Part, options: dict[str, Any]) -> str:
    """To ten digits; or why there is none, for a loss of a user's own may fail in ways of its own and is shown all the same."""
    from kdbench.losses import _reference

    try:
        return f"{_reference.value(lambda: part.build(part.options(options))):.10g}"
    except Exception as error:
        return f"none ({error})"
