"""`list` and `show`: parts as a person reads them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from kdbench import parts
from kdbench.errors import DataError, KdbenchError, PartError, nearest
from kdbench.store import Store, cell_state

DEPARTS = "Differences from the source"
"""What readers see for the label `Departs` of a docstring."""

STUDENT, TEACHER = "cifar_resnet8x4", "cifar_resnet32x4"

WEIGHTS = """Keys beside the options, in a suite:
  weights: a checkpoint, {file: x.pth, key: state_dict_ema, prefix: student.} to choose among the weights in it, or pretrained (timm; of a
    detector its body); into: body: the file of a classifier, for the body of a detector
  head: kept, new; train: true, false; recipe, input_size, mean, std: of this net alone"""


def listed(kind: str | None) -> str:
    """All parts of a kind (singular or plural), or of every kind, with the first line of each. Imports none of them."""
    kinds = list(parts.KINDS)
    if kind is not None:
        singular = {**{one: one for one in kinds}, **{folder: one for one, folder in parts.KINDS.items()}}
        if kind not in singular:
            raise PartError(f"unknown kind of part '{kind}'{nearest(kind, singular)}")
        kinds = [singular[kind]]
    lines = []
    for one in kinds:
        lines.append(parts.KINDS[one])
        stands_for = parts.named(one)
        wide = max(map(len, [*parts.names(one), *stands_for]), default=0)
        for name in parts.names(one):
            lines.append(f"  {name:<{wide}}  {parts.summary(one, name)}")
            lines += [f"    {called:<{wide}} {_in_words(*meant)}" for called, meant in stands_for.items() if meant[0] == name]
    return "\n".join(lines) + "\n"


def losses() -> str:
    """A table of all losses: when and where they were published, what they compare, what they need, and how many parameters their default
    preset trains on a pair of CIFAR-100."""
    pair = _example_pair()
    rows = [("name", "year", "compares", "parameters", "needs", "source")]
    for name in parts.names("loss"):
        part = parts.load("loss", name)
        source = re.search(r"^Source:(.*?)(?=^\w+:|\Z)", inspect.cleandoc(part.make.__doc__ or ""), re.MULTILINE | re.DOTALL)
        said = " ".join(source[1].split()) if source else ""
        cited = re.match(r'(.+?), "(?:.+?)",? ?\(?([^;,.(]*(?:\.\d+)?)', said)
        authors, where = (cited[1], cited[2].strip()) if cited else ("", said)
        preprint = re.search(r"arXiv (\d\d)", where)
        year = re.search(r"(?:19|20)\d\d(?!\d|\.)", where) if not preprint else None
        loss = part.build(part.options(dict(next(iter(part.make.presets.values())).options)))
        cells = (year[0] if year else f"20{preprint[1]}" if preprint else "", part.make.compares, _parameters(loss, pair))
        rows.append((name, *cells, ", ".join(sorted(loss.needs)), f"{authors}, {where}" if authors else where))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:>{size}}" if place == 3 else f"{cell:<{size}}" for place, (cell, size) in enumerate(zip(row, wide, strict=True)))
        for row in rows
    ]
    notes = (
        f"parameters: what the default preset trains beside the student, for {STUDENT} and the teacher {TEACHER} on CIFAR-100;",
        "- where it refuses this pair. `kdbench show NAME` has the formula, the options and the presets.",
    )
    return "".join(f"{line.rstrip()}\n" for line in [*lines, "", *notes])


def _example_pair() -> Any:
    """The pair of the table on the meta device."""
    import torch

    from kdbench.losses._base import Pair
    from kdbench.plan.probe import probe_model

    dataset = parts.load("dataset", "cifar100").build({})
    probed = []
    for called in (STUDENT, TEACHER):
        name, options = parts.named("model")[called]
        part = parts.load("model", name)
        resolved = part.options(dict(options))
        config = {"name": name, "version": part.version_with(resolved), "options": resolved}
        probed.append(probe_model(config, dataset, dataset.n_classes, {}))
    student, teacher = probed
    labels = torch.empty(dataset.n_train, dtype=torch.int64, device="meta")
    assert teacher.taps.pooled is not None
    features = torch.empty(dataset.n_train, teacher.taps.pooled.shape[1], device="meta")
    return Pair(student.taps.with_second_view(), teacher.taps.with_second_view(), labels, teacher.model.head, teacher.model, features)


def _parameters(loss: Any, pair: Any) -> str:
    """How many parameters a loss trains with a pair; `-` where it refuses it."""
    import torch

    with torch.device("meta"):
        try:
            loss.prepare(pair)
        except KdbenchError:
            return "-"
        return f"{sum(weight.numel() for weight in loss.parameters() if weight.requires_grad):,}"


def _in_words(part: str, options: Mapping[str, Any]) -> str:
    return f"{part} with {', '.join(f'{key} {value}' for key, value in options.items())}"


def shown(name: str, results: Path) -> str:
    """Every part of this name (specification, options, presets), or the cell whose id begins so (configuration, state, metrics). Raises
    PartError: there is neither."""
    if ".py:" in name:
        return _shown("loss", name)
    key, _, preset = name.partition(":")
    meant = next((parts.named(kind)[key] for kind in parts.KINDS if key in parts.named(kind)), None)
    first, key = (f"{key} is {_in_words(*meant)}.\n\n", meant[0]) if meant else ("", key)
    found = [kind for kind in parts.KINDS if key in parts.names(kind)]
    if found:
        return first + "\n".join(_shown(kind, key, preset) for kind in found)
    if re.fullmatch("[0-9a-f]{4,12}", name) and Store(results).matching(f"cells/{name[:2]}/{name}*"):
        return _cell(Store(results), name)
    from kdbench.timm_adapter import factory_arguments, has_model

    if any(name == parts.load("task", task).make.alone for task in parts.names("task")):
        return f"{name} is the loss of the task alone, without a teacher. It has no options.\n"
    if has_model(name):
        own = f"{name} is a model of timm: `kdbench show timm` shows its options."
        return f"{own} Arguments that it also takes: {', '.join(sorted(factory_arguments(name)))}\n"
    everything = {*(one for kind in parts.KINDS for one in parts.names(kind)), *parts.named("model")}
    raise PartError(f"there is no part '{name}', and no cell id begins with it{nearest(name, everything)}")


def downloaded(name: str, data: Path) -> str:
    """Download a dataset: where it is, or that it needs no download. Raises DataError: it cannot be downloaded, and is not there."""
    dataset = parts.load("dataset", name).build({})
    try:
        return str(dataset.download(data))
    except DataError:
        with suppress(DataError):
            dataset.load(data)
            return f"{name} needs no download: it is part of an installed package, or in the data folder already"
        raise


def _cell(store: Store, start: str) -> str:
    cell_id = store.find(start)
    record, cell = store.record(cell_id), store.cell(cell_id)
    message = {"id": cell_id, "state": cell_state.of(store, cell_id).name, "config": cell.config}
    if record:
        message |= {"metrics": record.result["metrics"], "circumstance": record.circumstance}
    if failure := store.failure(cell_id):
        message["failure"] = failure.to_json()
    return json.dumps(message, indent=1) + "\n"


def _shown(kind: str, name: str, asked: str = "") -> str:
    """`asked`: the preset to show alone; empty for all."""
    part = parts.load(kind, name)
    described = re.sub("^Departs:", f"{DEPARTS}:", inspect.cleandoc(part.make.__doc__ or "(no description)"), flags=re.M)
    if is_dataclass(base := parts.contract(kind)) and base is not part.make:
        described += f"\n\n{inspect.cleandoc(base.__doc__ or '')}"  # the options that all parts of the kind share
    lines = [f"{kind} {name} (version {part.version})", "", described, ""]
    signature = inspect.signature(part.make)
    if signature.parameters:
        lines.append("Options:")
        hints = get_type_hints(part.make if is_dataclass(part.make) else part.make.__init__)
        for option in [signature.parameters[option] for option in part.known()]:
            default = "required" if option.default is option.empty else f"default {literal(option.default)}"
            # As it is written, but for what has its name in another module.
            choices = hints[option.name] if "." in str(option.annotation).replace("...", "") else option.annotation
            lines.append(f"  {option.name}: {values(choices)}; {default}")
        lines.append("")
    if kind == "model":
        lines += [WEIGHTS, ""]
    presets = getattr(part.make, "presets", {})
    if asked and asked not in presets:
        raise PartError(f"{kind} {name} has no preset '{asked}'{nearest(asked, presets)}")
    if presets:
        lines.append(f"The preset {asked} (of {', '.join(presets)}):" if asked else "Presets (the first is the default):")
    for key, preset in presets.items() if not asked else [(asked, presets[asked])]:
        chosen = _chosen(preset.options, "the defaults")
        given = "not published (the suite must give it)" if preset.weight is None else f"{preset.weight:g}"
        more = "".join(f", of {other} {value:g} ({_chosen(options)})" for other, value, options, *_ in preset.terms)
        lines.append(
            f"  {name}:{key}  loss weights: of the task {preset.task:g}, of {name} {given}{_schedule(preset)}{more}; options: {chosen}"
        )
        lines.append(f"      Source: {preset.source}")
        if kind == "loss":
            lines.append(f"      value on the reference batch: {_on_reference(part, dict(preset.options))}")
    if presets and kind == "loss":
        lines.append("The reference batch is fixed (kdbench/losses/_reference.py). Values are of the loss itself, without its weight.")
    return "\n".join(lines).rstrip() + "\n"


def _schedule(preset: Any) -> str:
    """How the weight of a preset's loss changes in training, whether DOT trains it, and in which stages."""
    length = f" of {preset.epochs} epochs" if preset.epochs else ""
    words = [f"warms up in {preset.warm_up:g}{length}"] if preset.warm_up else []
    words += ["falls to 0 from epoch {:g} to {:g}".format(*preset.decay) + length] if preset.decay else []
    words += [f"trained with DOT, delta {preset.dot:g}"] if preset.dot else []
    words += [f"two_stages: {json.dumps(dict(preset.two_stages))}"] if preset.two_stages else []
    return f" ({'; '.join(words)})" if words else ""


def _chosen(options: Mapping[str, Any], otherwise: str = "none") -> str:
    return ", ".join(f"{key} {literal(value)}" for key, value in options.items()) or otherwise


def values(annotation: object) -> str:
    """The values that an option may have, in the words of a suite file: `none, both, teacher`; `integer, null`."""
    text = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"\1", annotation.__name__ if isinstance(annotation, type) else str(annotation))
    text = re.sub("['\"]", "", text)
    for code, words in (
        ("int", "integer"),
        ("float", "number"),
        ("bool", "true, false"),
        ("str", "text"),
        ("None", "null"),
        ("Subset", "mapping"),
        ("tuple(?!\\[)", "list of numbers"),
    ):
        text = re.sub(rf"\b{code}\b", words, text)
    text = re.sub(r"dict\[.*?\]", "mapping", text)
    return re.sub(r"(?:tuple|list)\[(\w+).*?\]", r"list of \1s", text).replace(" | ", ", ")


def literal(value: object) -> str:
    """A value as a suite file holds it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _on_reference(part: parts.Part, options: dict[str, Any]) -> str:
    """To ten digits; or why there is none, for a loss of a user's own may fail in ways of its own and is shown all the same."""
    from kdbench.losses import _reference

    try:
        return f"{_reference.value(lambda: part.build(part.options(options))):.10g}"
    except Exception as error:
        return f"none ({error})"
