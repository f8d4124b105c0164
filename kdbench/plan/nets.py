"""Students and teachers as a suite says them: by name, with options, a recipe of their own, weights to start from or take as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kdbench import parts
from kdbench.errors import PartError, nearest
from kdbench.plan.reading import Reading
from kdbench.plan.schema import Json, Named, Net
from kdbench.plan.yaml import Where
from kdbench.recipes._base import Recipe

AS_IS = {**asdict(Recipe(epochs=1, batch_size=1, lr=1.0, schedule="constant")), "epochs": 0, "milestones": []}
"""The recipe of what is not trained: no epoch. The rest is never read, and the same for all, so that it makes no two cells of one."""

WITHIN = 0.005
"""How far a checkpoint may be from the metric that was declared for it."""

Fraction = Annotated[float, Field(ge=0)]
Channels = Annotated[list[float], Field(min_length=1)]


class NetFields(BaseModel):
    """The keys of a net that are not options of its model."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    recipe: Json | None = None
    weights: str | None = None
    head: Annotated[str, Field(pattern="^(kept|new)$")] = "kept"
    train: bool = True
    input_size: Annotated[int, Field(ge=1)] | None = None
    mean: Channels | None = None
    std: Channels | None = None
    within: Fraction = WITHIN


class NetReader:
    """Resolves the nets of one section; its mistakes go where the reading's go. `metric` is the task's primary one where the nets
    are teachers, `gate` what the suite asks of each of them."""

    def __init__(self, reading: Reading, recipe: Json | None, metric: str | None = None, gate: float | None = None):
        self.reading, self.recipe, self.gate = reading, recipe, gate
        self.keys = {"min": f"min_{metric}", "declared": f"declared_{metric}"} if metric else {}

    def read(self, section: str, says: Named | None) -> dict[str, Net]:
        listed = {name: None for name in says} if isinstance(says, list) else says or {}
        if not listed and says is not None:
            self.reading.wrong((section,), "it names none")
        nets = {}
        for name, options in listed.items():
            where: Where = (section, name if isinstance(says, dict) else list(listed).index(name))
            net = self._net(where, name, options or {})
            if net:
                nets[name] = net
        return nets

    def _net(self, where: Where, name: str, says: Json) -> Net | None:
        reserved = {*NetFields.model_fields, *self.keys.values()}
        fields = self.reading.checked(where, NetFields, {key: value for key, value in says.items() if key in NetFields.model_fields})
        options = {key: value for key, value in says.items() if key not in reserved}
        model, options = self._named(where, fields.model if fields and fields.model else name, options)
        part = self.reading.load(where, "model", model)
        if part and (both := sorted(set(part.known()) & reserved)):
            self.reading.wrong(where, f"the model '{model}' has options that mean something else in a suite: rename {', '.join(both)}")
        resolved = part and self.reading.resolved(where, part, options, reserved)
        if resolved and model == "timm":
            self._timm_name((*where, "model"), resolved["architecture"])
        asked = {key: self._fraction(where, says, key) for key in self.keys}
        if fields is None or part is None or resolved is None:
            return None
        recipe = self._recipe((*where, "recipe"), fields, student=where[0] == "students")
        config = {"name": part.name, "version": part.version, "options": resolved}
        config |= self._start(where, fields, config)
        least = asked.get("min")
        declared = asked.get("declared")
        if "within" in fields.model_fields_set and declared is None:
            self.reading.wrong((*where, "within"), "it says how far the declared metric may be off, and none is declared")
        return Net(name, config, recipe, self.gate if least is None else least, None if declared is None else (declared, fields.within))

    def _named(self, where: Where, model: str, options: Json) -> tuple[str, Json]:
        """(part, options) of what a suite calls a model: a part, a net of the literature, or a name of timm's."""
        if model in parts.named("model"):
            part, meant = parts.named("model")[model]
            for key in sorted(set(meant) & set(options)):
                self.reading.wrong((*where, key), f"'{model}' is the {part} with {key} {meant[key]}: for another say `model: {part}`")
            return part, {**options, **meant}
        if model not in parts.names("model") and ":" not in model:
            return "timm", {"architecture": model, **options}
        return model, options

    def _fraction(self, where: Where, says: Json, key: str) -> float | None:
        name = self.keys[key]
        return None if name not in says else self.reading.checked((*where, name), Fraction, says[name])

    def _timm_name(self, where: Where, architecture: str) -> None:
        from kdbench.through_timm import has_model, model_names

        if not has_model(architecture):
            known = [*parts.names("model"), *parts.named("model")]
            near = nearest(architecture, [*known, *model_names()])
            near = near if "mean" in near else "; there is any model of timm, and: " + ", ".join(known)
            self.reading.wrong(where, f"neither kdbench nor timm has a model '{architecture}'{near}")

    # How it is trained

    def _recipe(self, where: Where, fields: NetFields, student: bool) -> Json:
        if not fields.train:
            if fields.recipe is not None:
                self.reading.wrong(where, "it is not trained (`train: false`), so it has no recipe")
            if student:
                self.reading.wrong((*where[:-1], "train"), "a student is trained; only a teacher can be taken as it is")
            return dict(AS_IS)
        if self.recipe is None:
            return {}
        says = self.reading.source.data["recipe"]
        part = self.reading.load(where, "recipe", says if isinstance(says, str) else says["name"])
        if part is None:
            return {}
        changes = fields.recipe or {}
        shared = sorted(set(changes) & part.make.shared) if student else []
        for key in shared:
            self.reading.wrong(
                (*where, key),
                f"a student's own '{key}' would break the data stream that all students share; change the suite's recipe",
            )
        own = {key: value for key, value in changes.items() if key not in shared}
        return self.reading.resolved(where, part, {**self.recipe, **own}) or {}

    # What it starts from, and how it sees its inputs

    def _start(self, where: Where, fields: NetFields, config: Json) -> Json:
        """`weights` and `inputs` of a configuration, each only when there is something to say."""
        found: Json = {}
        size, mean, std = fields.input_size, fields.mean, fields.std
        if fields.weights is None and "head" in fields.model_fields_set:
            self.reading.wrong((*where, "head"), "it says what becomes of the head of `weights`, and there are none")
        if fields.weights is not None and fields.weights.partition(":")[0] == "pretrained":
            facts = self._pretrained((*where, "weights"), fields, config)
            if facts is None:
                return {}
            found["weights"] = {"from": "timm", "tag": facts["tag"], "head": fields.head}
            options = config["options"]  # the tag stands there, and need not stand in the name as well
            found["options"] = {**options, "architecture": options["architecture"].partition(".")[0]}
            mean, std = mean or facts["mean"], std or facts["std"]
            # What is taken as it is sees images of the size that it was made for; what is trained sees the dataset's.
            size = size or (None if fields.train else facts["size"])
        elif fields.weights is not None:
            found |= self._file((*where, "weights"), fields)
        if (mean is None) != (std is None):
            self.reading.wrong(where, "`mean` and `std` are said together: the normalisation that the weights were made with")
        inputs = {key: value for key, value in (("mean", mean), ("std", std), ("size", size)) if value is not None}
        if inputs:
            found["inputs"] = inputs
        return found

    def _pretrained(self, where: Where, fields: NetFields, config: Json) -> Json | None:
        from kdbench.through_timm import has_model, pretrained_facts

        if config["name"] != "timm" or not has_model(config["options"]["architecture"]):
            self.reading.wrong(where, f"only timm's models have pretrained weights, not '{config['name']}'; name a file")
            return None
        if config["options"]["stem"] != "own":
            self.reading.wrong(where, "pretrained weights are for the model's own stem: say `stem: own`, or start from a file")
        _, _, tag = str(fields.weights).partition(":")
        name = config["options"]["architecture"].partition(".")[0]
        try:
            return pretrained_facts(f"{name}.{tag}" if tag else config["options"]["architecture"])
        except PartError as error:
            self.reading.wrong(where, str(error))
            return None

    def _file(self, where: Where, fields: NetFields) -> Mapping[str, Any]:
        path = (self.reading.base / str(fields.weights)).resolve()
        if not path.is_file():
            near = nearest(path.name, [one.name for one in path.parent.glob("*")]) if path.parent.is_dir() else ""
            self.reading.wrong(where, f"there is no file {path}{near}; or is it `pretrained` (timm's weights)?")
            return {}
        digest = digest_of_file(path)
        # In the identity stands what is in the file, not where it lies.
        self.reading.sources[f"weights {digest}"] = str(path)
        return {"weights": {"from": "file", "digest": digest, "head": fields.head}}


def digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
