"""The objectives of a suite: by preset, by loss with options, from several terms, with KD beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdbench import parts
from kdbench.errors import nearest, shown
from kdbench.plan import stages, tuning
from kdbench.plan.reading import FileReader
from kdbench.plan.schema import KD_BESIDE, MAX_NAMES, NOT_OF_A_TERM, Json, ObjectiveFields, ObjectiveSpec, Weight
from kdbench.plan.yaml import Where

RESERVED = {field.alias or key for key, field in ObjectiveFields.model_fields.items()}
"""The keys of an objective that are not options of its loss."""


NO_WEIGHT = ""
"""Whose the weight is where only tuning will tell it."""
CONTROLS = {
    "zero": "weight 0",
    "untrained": "untrained teacher",
    "shuffled": "shuffled in the batch",
    "shuffled_globally": "shuffled globally",
    "shuffled_in_class": "shuffled in each class",
}
"""What tables call each control."""
WORDS = tuple(RESERVED - {"terms", "label_smoothing"})
"""Those of an objective with one loss."""


class ObjectiveReader:
    """Resolves the objectives of one file; errors are noted in `reader`."""

    def __init__(self, reader: FileReader, tune: tuning.Tune | None = None):
        self.reader, self.tune = reader, tune

    def read(self, given: Any, beside_kd: bool | Json | None, task: parts.Part | None) -> dict[str, ObjectiveSpec]:
        """Every objective by name, each followed by the one with KD beside it."""
        if len(given or ()) > MAX_NAMES:
            self.reader.error(("objectives",), f"expected at most {MAX_NAMES:,} objectives, not {len(given)}")
            return {}
        listed: dict[str, tuple[Where, Json]] = {}
        for place, (name, options) in self._entries(given):
            where: Where = ("objectives", place)
            if name in listed:
                self.reader.error(where, f"the objective '{name}' is given twice")
            elif self.reader.is_name(where, name):
                listed[name] = (where, {} if options is None else options)
        found: dict[str, ObjectiveSpec] = {}
        alone = task.make.alone if task else "ce"
        for name, (where, options) in listed.items():
            tuned = options.get("tune") if isinstance(options, dict) else None
            objective, beside = self._objective(where, name, options, alone, searched=self.tune is not None and tuned is not False)
            if objective is None:
                continue
            weighted, terms = objective.weight_from != NO_WEIGHT, len(objective.config["terms"])
            objective = found[name] = self._tuned(objective, tuned, terms, weighted)
            asked = (options.get("controls") or ()) if isinstance(options, dict) else ()
            for control in self._controls(objective, asked):
                if control.name in listed:
                    self.reader.error(
                        where, f"`controls` adds an objective '{control.name}', and the suite has one of that name: rename it"
                    )
                found[control.name] = control
            if "task_options" in objective.config and task and "label_smoothing" not in task.known():
                self.reader.error((*where, "label_smoothing"), f"the task '{task.name}' has no label_smoothing")
            added = beside_kd if beside is None else beside
            if added and objective.needs_teacher and not any(term["loss"] == "kd" for term in objective.config["terms"]):
                both = self._with_kd(where, objective, added)
                if both and both.name in listed:
                    instead = f"rename '{both.name}', or write `+kd: false` for '{name}'"
                    self.reader.error(where, f"`+kd` adds an objective '{both.name}', and the suite has one of that name: {instead}")
                elif both:
                    found[both.name] = self._tuned(both, tuned, terms, weighted)
        self._add_inheriting(found, alone)
        for objective in [one for one in found.values() if one.control and one.control[1] == "zero"]:
            if any(self._has_second_view(term) for term in objective.config["terms"]):
                continue  # at weight 0 it still trains on both views
            config = {**_begun(objective.config), "terms": []}
            other = "-".join([f"task-{config['task']:g}", *(["inherits", *config["inherits"]] if "inherits" in config else [])])
            alike = next((one.name for one in found.values() if one.config == config and one.first is None), other)
            label = f"task's loss alone, weight {config['task']:g}{_inherits(config)}"
            found.setdefault(alike, ObjectiveSpec(alike, label, config, "published", objective.where, control=("", "task")))
            found[objective.name] = replace(objective, reference=alike)
        names: dict[str, str] = {}
        for name, objective in found.items():  # two rows of a table must not look alike
            other = names.setdefault(objective.label, name)
            if other != name:
                self.reader.error(objective.where, f"'{name}' and '{other}' have the same label in tables, '{objective.label}': rename one")
        return found

    def _add_inheriting(self, found: dict[str, ObjectiveSpec], alone: str) -> None:
        """Beside each objective that inherits parts of the teacher the task's loss alone (at its own weight, as `ce` has it) with the same
        parts, with which a report compares it: what they give is no merit of a loss."""
        for objective in [one for one in found.values() if "inherits" in one.config]:
            where = (*objective.where, "inherits")
            if objective.first:
                problem = "the first of `two_stages` already decides where the student begins: leave out one of the two"
                self.reader.error(where, problem)
                continue
            parted = {"task": 1.0, "inherits": objective.config["inherits"], "terms": []}
            alike = next((one.name for one in found.values() if one.config == parted), None)
            if alike is None:
                alike = "-".join([alone, "inherits", *parted["inherits"]])
                label = f"{alone}{_inherits(parted)}"
                if alike in found:
                    problem = f"`inherits` adds an objective '{alike}', and the suite has one of that name: rename it"
                    self.reader.error(where, problem)
                found[alike] = ObjectiveSpec(alike, label, parted, "published", objective.where, control=("", "task"))
            if objective.config["terms"] and not objective.control:
                found[objective.name] = replace(objective, reference=alike)

    def _has_second_view(self, term: Mapping[str, Any]) -> bool:
        try:
            return "second_view" in parts.from_config("loss", {**term, "name": term["loss"]}, self.reader.sources)._needs()
        except Exception:  # what is wrong with a loss is said where it is tried
            return False

    def _tuned(self, objective: ObjectiveSpec, given: Any, terms: int, weighted: bool) -> ObjectiveSpec:
        """The objective with its search, if it is tuned."""
        if not objective.needs_teacher:
            return objective
        found = tuning.search(self.reader, self.tune, objective, given, terms, weighted)
        return replace(objective, search=found, weight_from="tuned") if found else objective

    def _controls(self, objective: ObjectiveSpec, asked: Sequence[str]) -> Iterator[ObjectiveSpec]:
        """The objectives that show what of a loss's gain is not the teacher's knowledge."""
        for place, control in enumerate(asked):
            if control in asked[:place]:
                self.reader.error((*objective.where, "controls", place), f"'{control}' is given twice")
            if control == "zero" and objective.first:
                problem = "a first stage at weight 0 trains nothing, so this is no control of two stages: leave it out"
                self.reader.error((*objective.where, "controls", place), problem)
                continue
            if control == "untrained" and "inherits" in objective.config:
                problem = "the student would begin with parts of an untrained teacher, which no other row has: leave it out"
                self.reader.error((*objective.where, "controls", place), problem)
                continue
            config = {**objective.config, "terms": list(objective.config["terms"])}
            if control == "zero":  # without schedules and DOT, which would change the training of the task's loss
                kept = ("loss", "version", "options", "pairing")
                terms = [{**{name: term[name] for name in kept}, "weight": 0.0} for term in config["terms"]]
                config = {**_begun(config), "terms": terms}
            first = objective.first
            if control not in ("zero", "untrained"):
                config["terms"] = [{**term, "pairing": control} for term in config["terms"]]
                if first:
                    theirs = [{**term, "pairing": control} for term in first.config["terms"]]
                    first = replace(first, config={**first.config, "terms": theirs})
            yield replace(
                objective,
                name=f"{objective.name}-{control}",
                label=f"{objective.label}, {CONTROLS[control]}",
                config=config,
                first=first,
                control=(objective.name, control),
                search=None if control == "zero" else objective.search,
            )

    def _entries(self, given: Any) -> Iterator[tuple[str | int, tuple[str, Json | None]]]:
        """(key or place, (name, options)) of objectives that are listed or mapped."""
        if isinstance(given, dict):
            yield from ((name, (name, options)) for name, options in given.items())
            return
        for place, one in enumerate(given or ()):
            if isinstance(one, str):
                yield place, (one, None)
            elif len(one) == 1:
                yield place, next(iter(one.items()))
            else:
                keys = ", ".join(map(str, one)) or "nothing"
                problem = f"expected one name with its options, not {keys}: indent the options below the name"
                self.reader.error(("objectives", place), problem)

    def _objective(
        self, where: Where, name: str, given: Json, alone: str, searched: bool = False
    ) -> tuple[ObjectiveSpec | None, bool | Json | None]:
        """An objective, and what it says of KD beside it. `searched`: a weight that nobody published is found by tuning."""
        if not isinstance(given, dict):
            self.reader.error(where, f"expected a mapping of options, not {shown(str(given))}")
            return None, None
        fields = self.reader.checked(where, ObjectiveFields, {key: value for key, value in given.items() if key in RESERVED})
        options = {key: value for key, value in given.items() if key not in RESERVED}
        if fields is None:
            return None, None
        used, is_alone = set(WORDS), (fields.loss or name) == alone and fields.terms is None
        if is_alone:
            used = {"task", "+kd", "loss", "label_smoothing", "inherits"}
        elif fields.terms is not None:
            used = {"task", "+kd", "terms", "dot", "weight_from", "tune", "controls", "two_stages", "inherits"}
        for key in [key for key in given if key in RESERVED and key not in used]:
            what = "has no distillation term" if is_alone else "is made of `terms`: write it in one of them"
            what = "has distillation terms: the recipe has `label_smoothing` for all" if key == "label_smoothing" else what
            self.reader.error((*where, key), f"'{key}' has no effect here, since the objective {what}")
        if is_alone:
            for key in options:
                self.reader.error((*where, key), f"'{alone}' is the task loss, which has no options but `label_smoothing`")
            config: Json = {"task": 1.0 if fields.task is None else fields.task, "terms": []}
            if fields.label_smoothing is not None:
                config["task_options"] = {"label_smoothing": fields.label_smoothing}
            return _inheriting(ObjectiveSpec(name, name, config, "published", where), fields), False
        if fields.terms is not None:
            return _inheriting(self._combined(where, name, fields, options), fields), fields.beside_kd
        return _inheriting(self._single(where, name, fields, options, alone, searched), fields), fields.beside_kd

    def _single(self, where: Where, name: str, fields: ObjectiveFields, options: Json, alone: str, searched: bool) -> ObjectiveSpec | None:
        """One loss, by its preset: `rkd`, `rkd:official_cls`, or a name of one's own with `loss:`."""
        asked = fields.loss or name
        loss_name, preset_name = asked, fields.preset
        if ":" in asked and ".py:" not in asked and asked.partition(":")[0] in parts.names("loss"):
            loss_name, _, in_name = asked.partition(":")
            preset_name = preset_name or in_name
        if alone and loss_name in {parts.load("task", task).make.alone for task in parts.names("task")}:
            self.reader.error(where, f"the loss of the task alone is called '{alone}' for this dataset, not '{loss_name}'")
            return None
        part = self.reader.load((*where, "loss") if fields.loss else where, "loss", loss_name)
        if part is None:
            return None
        presets = part.make.presets
        if preset_name is not None and preset_name not in presets:
            self.reader.error(where, f"the loss '{loss_name}' has no preset '{preset_name}'{nearest(preset_name, presets)}")
            return None
        preset = presets[preset_name] if preset_name else next(iter(presets.values()), None)
        fitting = [other for other, one in presets.items() if "tap" in options and one.options.get("tap") == options["tap"]]
        if preset and fitting and not preset_name and preset not in map(presets.get, fitting) and fields.weight is None:
            its = ", ".join(f"{loss_name}:{other}" for other in fitting)
            problem = f"the weights of '{asked}' are for another tap: use a preset for this one ({its}), or give `weight:`"
            self.reader.error((*where, "tap"), problem)
            return None
        resolved = self.reader.resolved(where, part, {**(preset.options if preset else {}), **options}, RESERVED)
        weight = fields.weight if fields.weight is not None else preset.weight if preset else None
        unknown = weight is None and searched
        if searched:
            weight = 1.0 if weight is None else weight
        elif weight is None and preset is None:
            self.reader.error(where, f"the loss '{asked}' has no presets: give its `weight:`")
        elif weight is None or preset and preset.weight is None and fields.weight_from is None:
            self.reader.error(where, f"'{asked}' has no published weight: give `weight:` and `weight_from:` (released, tuned or assumed)")
        if resolved is None or weight is None:
            return None
        terms = [_term(part, resolved, weight, fields.pairing) | _schedule(fields, preset)]
        for other, other_weight, other_options, *schedule in preset.terms if preset else ():
            more = parts.load("loss", other)
            terms.append(_term(more, more.options(dict(other_options)), other_weight, fields.pairing) | dict(*schedule))
        task = fields.task if fields.task is not None else preset.task if preset else 1.0
        variant = part.build(resolved).variant
        label = name if variant is None or variant in name else f"{name} ({variant})"
        own = any(getattr(fields, word) is not None for word in ("weight", "task", "warm_up", "decay", "dot", "two_stages"))
        changed = own or resolved != part.options(dict(preset.options) if preset else {})
        default = "the suite" if changed else "published"
        dot = fields.dot if fields.dot is not None else preset.dot if preset else None
        config = {"task": float(task), "terms": terms} | ({} if dot is None else {"dot": dot})
        label = label if dot is None or "dot" in label.lower() else f"{label}, DOT"
        objective = ObjectiveSpec(name, label, config, NO_WEIGHT if unknown else fields.weight_from or default, where)
        return self._staged(objective, fields, (preset and preset.two_stages) or {})

    def _staged(self, objective: ObjectiveSpec, fields: ObjectiveFields, of_preset: Mapping[str, Any]) -> ObjectiveSpec | None:
        """The objective in the stages that the suite or else its preset says."""
        given, where = fields.two_stages, (*objective.where, "two_stages")
        words = {**of_preset, **(given or {})}
        if given is False or (given is None and not words):
            return objective
        unknown = objective.weight_from == NO_WEIGHT
        first = stages.first_stage(self.reader, where, objective.config["terms"], words, not unknown)
        label = objective.label if "two_stage" in objective.label else f"{objective.label}, two stages"
        objective = replace(objective, first=first, label=label)
        if "then" not in words:
            return objective if first else None
        then = self.reader.checked((*where, "then"), list[Json], words["then"])
        found = None if then is None else self._singles((*where, "then"), then, fields)
        if first is None or found is None:
            return None
        terms = [term for one in found for term in one.config["terms"]]
        if not terms and "dot" in objective.config:
            self.reader.error((*where, "then"), "`dot` needs a distillation term, and the second stage has none: leave out `dot`")
            return None
        whose = (fields.weight_from or "the suite") if unknown else objective.weight_from
        return replace(objective, config={**objective.config, "terms": terms}, weight_from=whose)

    def _combined(self, where: Where, name: str, fields: ObjectiveFields, options: Json) -> ObjectiveSpec | None:
        """Several terms: each `{loss: ..., weight: ..., option: ...}`."""
        for key in options:
            self.reader.error((*where, key), "give this option in its term, under `terms`")
        found = self._singles((*where, "terms"), fields.terms or [], fields)
        if found is None:
            return None
        variants = [one.label for one in found if one.label != one.name]
        # The objective's weights are as well founded as those of its weakest term.
        claims = {one.weight_from for one in found}
        weakest = next((claim for claim in ("assumed", "tuned", "the suite", "released") if claim in claims), "published")
        label = f"{name} ({', '.join(variants)})" if variants else name
        task = 1.0 if fields.task is None else float(fields.task)
        terms = [term for one in found for term in one.config["terms"]]
        config = {"task": task, "terms": terms} | ({} if fields.dot is None else {"dot": fields.dot})
        label = label if fields.dot is None or "dot" in label.lower() else f"{label}, DOT"
        return self._staged(ObjectiveSpec(name, label, config, fields.weight_from or weakest, where), fields, {})

    def _singles(self, where: Where, terms: list[Json], fields: ObjectiveFields) -> list[ObjectiveSpec] | None:
        """Each of several terms as an objective; None after an error was noted."""
        singles = []
        for place, given in enumerate(terms):
            at: Where = (*where, place)
            for key in sorted(NOT_OF_A_TERM & set(given)):
                self.reader.error((*at, key), f"'{key}' belongs to the objective, not to a term: write it next to `terms`")
            if not isinstance(given.get("loss"), str):
                self.reader.error(at, "the key 'loss' is missing")
                continue
            of_the_term = {key: value for key, value in given.items() if key not in NOT_OF_A_TERM}
            singles.append(self._objective(at, given["loss"], of_the_term, alone="")[0])
            self._check_preset(at, given, singles[-1], fields)
        found = [single for single in singles if single]
        return found if len(found) == len(terms) else None

    def _check_preset(self, at: Where, given: Json, single: ObjectiveSpec | None, fields: ObjectiveFields) -> None:
        """Note what a term's preset says of the whole objective and the objective does not repeat."""
        config = single.config if single else {}
        if "dot" in config and fields.dot is None:
            self.reader.error(
                at, f"this preset is trained with DOT: write `dot: {config['dot']:g}` next to `terms`, or take another preset"
            )
        if single and single.first:
            self.reader.error(at, "this preset has two stages: take another preset, and write `two_stages` next to `terms`")
        if "weight" not in given and config.get("task", 1.0) != 1.0 and fields.task is None:
            problem = f"this preset weights the loss of the task by {config['task']:g}"
            self.reader.error(at, f"{problem}: write `task: {config['task']:g}` next to `terms`, or give the term's `weight`")

    def _with_kd(self, where: Where, objective: ObjectiveSpec, given: bool | Json) -> ObjectiveSpec | None:
        kd = parts.load("loss", "kd")
        options = {**KD_BESIDE, **(given if isinstance(given, dict) else {})}
        weight = self.reader.checked((*where, "+kd", "weight"), Weight, options.pop("weight"))
        if weight is None:
            return None
        resolved = self.reader.resolved((*where, "+kd"), kd, options)
        if resolved is None:
            return None
        terms = [*objective.config["terms"], _term(kd, resolved, weight, "matched")]
        config = {**objective.config, "terms": terms}
        label = f"{objective.label.removesuffix(_inherits(config))}+kd{_inherits(config)}"
        return ObjectiveSpec(f"{objective.name}+kd", label, config, objective.weight_from, where, first=objective.first)


def _inheriting(objective: ObjectiveSpec | None, fields: ObjectiveFields) -> ObjectiveSpec | None:
    """The objective, of which the student begins with parts of its teacher if the suite says so."""
    if objective is None or fields.inherits is None:
        return objective
    names = sorted(set(fields.inherits))
    config = {**objective.config, "inherits": names}
    return replace(objective, label=f"{objective.label}{_inherits(config)}", config=config)


def _inherits(config: Json) -> str:
    """What a label says of the parts that the student inherits."""
    return f", inherits {' and '.join(config['inherits'])}" if "inherits" in config else ""


def _begun(config: Json) -> Json:
    """What of an objective is left without its terms: the weight of the task's loss, and how the student begins."""
    return {name: config[name] for name in ("task", "inherits") if name in config}


def _schedule(fields: ObjectiveFields, preset: Any) -> Json:
    """How a term's weight changes: as the suite says, in epochs, else as the preset, which scales with the training. What the suite says,
    by one of the words or by a weight for each epoch, is instead of all that the preset says."""
    own = {"warm_up": fields.warm_up, "decay": fields.decay}
    if all(value is None for value in own.values()) and not isinstance(fields.weight, dict):
        found = {"warm_up": preset.warm_up, "decay": preset.decay and list(preset.decay)} if preset else {}
        scaled = {"of_epochs": preset.epochs} if any(found.values()) and preset.epochs else {}
        return {key: value for key, value in found.items() if value} | scaled
    return {key: value for key, value in own.items() if value}


def _term(part: parts.Part, options: Json, weight: Any, pairing: str) -> Json:
    scheduled = [[epoch, float(value)] for epoch, value in weight.items()] if isinstance(weight, dict) else float(weight)
    return {"loss": part.name, "version": part.version, "options": options, "weight": scheduled, "pairing": pairing}
