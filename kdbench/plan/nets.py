"""Students and teachers of a suite: by name, with options, a recipe of their own, weights to start from or to take as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from kdbench import parts
from kdbench.errors import PartError, closest, nearest, shown
from kdbench.manifest import Metric
from kdbench.plan.reading import FileReader
from kdbench.plan.schema import MAX_NAMES, Json, Net, Nets
from kdbench.plan.yaml import Where
from kdbench.recipes._base import Recipe
from kdbench.validation import given_path

_CONSTANT = asdict(Recipe(epochs=1, batch_size=1, lr=1.0, schedule="constant"))
AS_IS = {**{key: value for key, value in _CONSTANT.items() if key not in Recipe.added}, "epochs": 0, "milestones": []}
"""The recipe of what is not trained: no epoch. The rest is never read; it is the same for all, so that equal nets have equal ids."""

WITHIN = 0.005
"""How far a checkpoint may be from the metric that was declared for it."""

Fraction = Annotated[float, Field(ge=0)]
Channels = Annotated[list[float], Field(min_length=1)]


class WeightsFile(BaseModel, strict=True, extra="forbid"):
    """A checkpoint and which of its weights: the dotted keys that lead to them (empty: the file itself), and how their names begin. With
    `tag` they are those of timm of this tag, and see images as these do. `into: body`: a classifier's, for the body of a detector."""

    file: str
    key: str | None = None
    prefix: str | None = None
    tag: str | None = None
    into: Literal["body"] | None = None


class NetFields(BaseModel, strict=True, extra="forbid"):
    """The keys of a net that are not options of its model."""

    model: str | None = None
    recipe: Json | None = None
    weights: str | WeightsFile | None = None
    head: Literal["kept", "new"] = "kept"
    train: bool = True
    input_size: Annotated[int, Field(ge=1)] | None = None
    mean: Channels | None = None
    std: Channels | None = None
    within: Fraction = WITHIN


class NetReader:
    """Resolves the nets of one section; errors are noted in `reader`. `metric` is the task's primary one where the nets are teachers,
    `min_teacher_metric` the least value that the suite asks of each of them."""

    def __init__(self, reader: FileReader, recipe: Json | None, metric: Metric | None = None, min_teacher_metric: float | None = None):
        self.reader, self.recipe, self.metric, self.min_teacher_metric = reader, recipe, metric, min_teacher_metric
        self.keys = {"min": f"min_{metric.name}", "declared": f"declared_{metric.name}"} if metric else {}

    def read(self, section: str, given: Nets | None) -> dict[str, Net]:
        if given is None:
            return {}
        if not 0 < len(given) <= MAX_NAMES:
            self.reader.error((section,), f"expected 1 to {MAX_NAMES:,} names, not {len(given)}")
            return {}
        nets: dict[str, Net] = {}
        for place, name in enumerate(given):
            where: Where = (section, name if isinstance(given, dict) else place)
            if name in nets:
                self.reader.error(where, f"'{name}' is given twice")
            elif self.reader.is_name(where, name):
                net = self._net(where, name, (given[name] if isinstance(given, dict) else None) or {})
                if net:
                    nets[name] = net
        return nets

    def _net(self, where: Where, name: str, given: Json) -> Net | None:
        reserved = {*NetFields.model_fields, *self.keys.values()}
        fields = self.reader.checked(where, NetFields, {key: value for key, value in given.items() if key in NetFields.model_fields})
        options = {key: value for key, value in given.items() if key not in reserved}
        asked = given.get("model")  # also where another key is wrong
        model, options = self._named(where, asked if isinstance(asked, str) else name, options)
        part = self.reader.load(where, "model", model)
        if part and (both := sorted(set(part.known()) & reserved)):
            self.reader.error(where, f"the model '{model}' has options with the names of suite keys: rename {', '.join(both)}")
        known = model != "timm" or self._is_of_timm((*where, "model"), options.get("architecture"))
        resolved = self.reader.resolved(where, part, options, reserved) if part and known else None
        metrics = [(key, (*where, name), given[name]) for key, name in self.keys.items() if name in given]
        values = {key: metric_value(self.reader, at, self.metric, value) for key, at, value in metrics}
        if fields is None or part is None or resolved is None:
            return None
        recipe = self._recipe((*where, "recipe"), fields, student=where[0] == "students")
        config = {"name": part.name, "version": part.version_with(resolved), "options": resolved}
        started, made_for = self._start(where, fields, config, *part.make.of_timm)
        config |= started
        least, declared = values.get("min"), values.get("declared")
        least = self.min_teacher_metric if least is None else least
        if "within" in fields.model_fields_set and declared is None:
            self.reader.error((*where, "within"), "this is the tolerance of a declared metric, and no metric is declared")
        return Net(name, config, recipe, least, None if declared is None else (declared, fields.within), made_for)

    def _named(self, where: Where, model: str, options: Json) -> tuple[str, Json]:
        """(part, options) of the name of a model: a part, a net of the literature, or a model of timm."""
        if model in parts.named("model"):
            part, meant = parts.named("model")[model]
            for key in sorted(set(meant) & set(options)):
                self.reader.error((*where, key), f"'{model}' is {part} with {key} {meant[key]}: for another value write `model: {part}`")
            return part, {**options, **meant}
        if model not in parts.names("model") and ":" not in model:
            return "timm", {"architecture": model, **options}
        return model, options

    def _is_of_timm(self, where: Where, architecture: Any) -> bool:
        """Whether timm has the model; notes that it does not."""
        from kdbench.timm_adapter import has_model, model_names

        if not isinstance(architecture, str) or has_model(architecture):
            return True
        known = [*parts.names("model"), *parts.named("model")]
        near = nearest(architecture, [*known, *model_names()])
        near = near if "did you mean" in near else "; available: any model of timm, and: " + ", ".join(known)
        self.reader.error(where, f"neither kdbench nor timm has a model '{architecture}'{near}")
        return False

    def _recipe(self, where: Where, fields: NetFields, student: bool) -> Json:
        if not fields.train:
            if fields.recipe is not None:
                self.reader.error(where, "a net with `train: false` has no recipe")
            if student:
                self.reader.error((*where[:-1], "train"), "a student is always trained; only teachers can have `train: false`")
            return dict(AS_IS)
        if self.recipe is None:
            return {}
        given = self.reader.file.data["recipe"]
        base = {"name": given} if isinstance(given, str) else dict(given)
        part = self.reader.load(where, "recipe", base.pop("name"))
        if part is None:
            return {}
        changes = fields.recipe or {}
        shared = sorted(set(changes) & part.make.shared) if student else []
        for key in shared:
            problem = f"a student's own '{key}' would break the data stream that all students share; change the suite's recipe"
            self.reader.error((*where, key), problem)
        own = {key: value for key, value in changes.items() if key not in shared}
        return self.reader.resolved(where, part, own, base=base) or {}

    def _start(self, where: Where, fields: NetFields, config: Json, option: str, body: str) -> tuple[Json, Json]:
        """`weights` and `inputs` of a configuration, each only where it differs from the default, and timm's facts about the weights.
        `option` and `body` are the model's `of_timm`."""
        found: Json = {}
        facts: Json = {}
        if fields.weights is None and "head" in fields.model_fields_set:
            self.reader.error((*where, "head"), "this key needs `weights`")
        if not fields.train and fields.head == "new":
            self.reader.error((*where, "head"), "a new head that is not trained would teach at random: leave out `train: false`")
        weights = fields.weights
        into: Json = {}
        if isinstance(weights, str) and weights.partition(":")[0] == "pretrained":
            facts = self._facts((*where, "weights"), config, weights.partition(":")[2], option)
            if not facts:
                return {}, {}
            into = {"into": "body"} if body else {}
            found["weights"] = {"from": "timm", "tag": facts["tag"], "head": fields.head, **into}
            options = config["options"]  # the tag stands there, and need not stand in the name as well
            found["options"] = {**options, option: options[option].partition(".")[0]}
        elif weights is not None:
            given = weights if isinstance(weights, WeightsFile) else WeightsFile(file=weights)
            at = (*where, "weights", "file") if weights is given else (*where, "weights")
            into = {"into": "body"} if body and (given.into or given.tag is not None) else {}
            if given.into and not body:
                self.reader.error((*where, "weights", "into"), f"only a detector has a body of its own, not '{config['name']}'")
            if found_in := self._file(at, given, fields.head):
                found["weights"] = {**found_in["weights"], **into}
            facts = {} if given.tag is None else self._facts((*where, "weights", "tag"), config, given.tag, option)
        if into and not fields.train:
            self.reader.error((*where, "train"), "only the body has weights here, and the rest would teach at random: leave it out")
        if into and "head" in fields.model_fields_set:
            self.reader.error((*where, "head"), "these weights are the body's, and all else is drawn anew: leave it out")
        mean, std = fields.mean or facts.get("mean"), fields.std or facts.get("std")
        # What is taken as it is sees images of the size that it was made for; what is trained sees the dataset's.
        size = fields.input_size or (None if fields.train else facts.get("size"))
        if (mean is None) != (std is None):
            self.reader.error(where, "`mean` and `std` are given together: the normalisation that the weights were trained with")
        inputs = {key: value for key, value in (("mean", mean), ("std", std), ("size", size)) if value is not None}
        return found | ({"inputs": inputs} if inputs else {}), facts

    def _facts(self, where: Where, config: Json, tag: str, option: str) -> Json:
        """What timm knows of its weights of a tag (empty: those of the model's name); nothing where an error was noted."""
        from kdbench.timm_adapter import has_model, pretrained_facts

        architecture = config["options"].get(option)
        if not isinstance(architecture, str) or not has_model(architecture):
            instead = "leave out `tag`, and give `mean` and `std`" if where[-1] == "tag" else "give a file"
            self.reader.error(where, f"only models of timm have pretrained weights, not '{config['name']}': {instead}")
            return {}
        if config["options"].get("stem", "own") != "own":
            self.reader.error(where, "pretrained weights are for the model's own stem: write `stem: own`, or start from a file")
        try:
            return pretrained_facts(f"{architecture.partition('.')[0]}.{tag}" if tag else architecture)
        except PartError as error:
            self.reader.error(where, str(error))
            return {}

    def _file(self, where: Where, given: WeightsFile, head: str) -> Mapping[str, Any]:
        try:
            path = (self.reader.base / given_path(given.file)).resolve()
            if not path.is_file():
                close = closest(path.name, [one.name for one in path.parent.glob("*")]) if path.parent.is_dir() else None
                near = f"; did you mean '{close}'?" if close and close != path.name else ""
                what = f"{path} is a folder and no file" if path.is_dir() else f"there is no file {path}"
                self.reader.error(where, f"{what}{near} (for weights of timm write `pretrained`)")
                return {}
            digest = digest_of_file(path)
        except OSError as error:
            self.reader.error(where, f"{shown(given.file)} cannot be read: {error.strerror}")
            return {}
        except ValueError as error:
            self.reader.error(where, str(error))
            return {}
        # The identity knows what the file contains, not where it is.
        self.reader.sources[f"weights {digest}"] = str(path)
        chosen = {name: value for name in ("key", "prefix") if (value := getattr(given, name)) is not None}
        return {"weights": {"from": "file", "digest": digest, "head": head, **chosen}}


def images_of_weights(net: Net, dataset: Json) -> str:
    """How the images that a net gets differ from those that its weights were made for; empty where they do not, or it is not known, or the
    net is trained here."""
    seen = {key: value for key, value in dataset["options"].items() if key in net.made_for and key in ("size", "crop_pct", "interpolation")}
    size = net.model.get("inputs", {}).get("size", seen.get("size"))
    if net.recipe["epochs"] or "size" not in seen or all(net.made_for[key] == value for key, value in {**seen, "size": size}.items()):
        return ""

    def told(one: Json) -> str:
        return ", ".join([f"{one['size']} pixels", *(f"{one[key]}" for key in ("crop_pct", "interpolation") if key in one)])

    resized = f", resized to {size}" if size != seen["size"] else ""
    made = told({key: net.made_for[key] for key in seen})
    made = f"the weights of {net.name} are published for images of {made} (size, crop, interpolation)"
    return f"{made}, and see images of {told(seen)}{resized} here: its metric in the tables is of these"


def metric_value(reader: FileReader, where: Where, metric: Metric | None, given: Any) -> float | None:
    """A value of a metric that a suite gives, as it is stored. Errors are noted."""
    value = reader.checked(where, Fraction, given)
    if value is not None and metric and metric.mistake(value):
        reader.error(where, f"{value:g}: it must be between 0 and 1; is it in per cent? Divide by 100")
    return value


def digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
