"""Objectives as a suite says them: by preset, by loss with options, from several terms, with KD beside."""

from __future__ import annotations

from typing import Any

from kdbench import parts
from kdbench.errors import nearest
from kdbench.plan.reading import Reading
from kdbench.plan.schema import KD_BESIDE, NOT_A_TERMS, Json, Objective, ObjectiveFields, Weight
from kdbench.plan.yaml import Where

RESERVED = {field.alias or key for key, field in ObjectiveFields.model_fields.items()}
"""The keys of an objective that are not options of its loss."""


class ObjectiveReader:
    """Resolves the objectives of one file; its mistakes go where the reading's go."""

    def __init__(self, reading: Reading):
        self.reading = reading

    def read(self, says: Any, beside_kd: bool | Json | None, task: parts.Part | None) -> dict[str, Objective]:
        """Every objective by name, those with KD beside after theirs."""
        listed: dict[str, tuple[Where, Json]] = {}
        for place, (name, options) in enumerate(self._entries(says)):
            where: Where = ("objectives", name) if isinstance(says, dict) else ("objectives", place)
            if name in listed:
                self.reading.wrong(where, f"the objective '{name}' stands twice")
            listed[name] = (where, options or {})
        found: dict[str, Objective] = {}
        alone = task.make.alone if task else "ce"
        for name, (where, options) in listed.items():
            objective, beside = self._objective(where, name, options, alone)
            if objective is None:
                continue
            found[name] = objective
            added = beside_kd if beside is None else beside
            if added and objective.needs_teacher and not any(term["loss"] == "kd" for term in objective.config["terms"]):
                both = self._with_kd(where, objective, added)
                if both:
                    found[both.name] = both
        return found

    def _entries(self, says: Any) -> list[tuple[str, Json | None]]:
        """(name, options) of objectives that are listed or mapped."""
        if isinstance(says, dict):
            return list(says.items())
        entries: list[tuple[str, Json | None]] = []
        for place, one in enumerate(says or []):
            if isinstance(one, str):
                entries.append((one, None))
            elif len(one) == 1:
                entries.append(next(iter(one.items())))
            else:
                keys = ", ".join(map(str, one)) or "nothing"
                self.reading.wrong(
                    ("objectives", place), f"one name with its options stands here, not {keys}: are the options indented below the name?"
                )
        return entries

    def _objective(self, where: Where, name: str, says: Json, alone: str) -> tuple[Objective | None, bool | Json | None]:
        if not isinstance(says, dict):
            self.reading.wrong(where, f"options are a mapping, and this is {says!r}")
            return None, None
        fields = self.reading.checked(where, ObjectiveFields, {key: value for key, value in says.items() if key in RESERVED})
        options = {key: value for key, value in says.items() if key not in RESERVED}
        if fields is None:
            return None, None
        if name == alone and fields.loss is None and fields.terms is None:
            for key in options:
                self.reading.wrong((*where, key), f"'{alone}' is the task's loss alone: it has no options")
            return Objective(name, name, {"task": 1.0 if fields.task is None else fields.task, "terms": []}, "published", where), False
        if fields.terms is not None:
            return self._combined(where, name, fields, options), fields.beside_kd
        return self._single(where, name, fields, options), fields.beside_kd

    def _single(self, where: Where, name: str, fields: ObjectiveFields, options: Json) -> Objective | None:
        """One loss, by its preset: `rkd`, `rkd:official_cls`, or a name of one's own with `loss:`."""
        asked = fields.loss or name
        loss_name, preset_name = asked, fields.preset
        if ":" in asked and ".py:" not in asked and asked.partition(":")[0] in parts.names("loss"):
            loss_name, _, in_name = asked.partition(":")
            preset_name = preset_name or in_name
        part = self.reading.load((*where, "loss") if fields.loss else where, "loss", loss_name)
        if part is None:
            return None
        presets = part.make.presets
        if preset_name is not None and preset_name not in presets:
            self.reading.wrong(where, f"the loss '{loss_name}' has no preset '{preset_name}'{nearest(preset_name, presets)}")
            return None
        preset = presets[preset_name] if preset_name else next(iter(presets.values()), None)
        resolved = self.reading.resolved(where, part, {**(preset.options if preset else {}), **options}, RESERVED)
        weight = fields.weight if fields.weight is not None else preset.weight if preset else None
        if weight is None and preset is None:
            self.reading.wrong(where, f"'{asked}' has no presets, so the suite must say its weight: `weight: ...`")
        elif weight is None:
            self.reading.wrong(
                where, f"no weight was ever published for '{asked}': say `weight:`, and `weight_from:` released, tuned or assumed"
            )
        elif preset is not None and preset.weight is None and fields.weight_from is None:
            self.reading.wrong(
                where,
                f"no weight was ever published for '{asked}': say where this one is from, `weight_from:` released, tuned or assumed",
            )
        if resolved is None or weight is None:
            return None
        terms = [_term(part, resolved, weight, fields.pairing)]
        for other, other_weight, other_options in preset.terms if preset else ():
            more = parts.load("loss", other)
            terms.append(_term(more, more.options(dict(other_options)), other_weight, fields.pairing))
        task = fields.task if fields.task is not None else preset.task if preset else 1.0
        variant = part.build(resolved).variant
        label = name if variant is None or variant in name else f"{name} ({variant})"
        default = "published" if fields.weight is None else "the suite"
        return Objective(name, label, {"task": float(task), "terms": terms}, fields.weight_from or default, where)

    def _combined(self, where: Where, name: str, fields: ObjectiveFields, options: Json) -> Objective | None:
        """Several terms: each `{loss: ..., weight: ..., option: ...}`."""
        for key in options:
            self.reading.wrong((*where, key), "options stand with their term, under `terms`")
        singles = []
        for place, says in enumerate(fields.terms or []):
            at: Where = (*where, "terms", place)
            for key in sorted(NOT_A_TERMS & set(says)):
                self.reading.wrong((*at, key), f"'{key}' is the objective's, not a term's: it stands beside `terms`")
            if not isinstance(says.get("loss"), str):
                self.reading.wrong(at, "a term needs its `loss`")
                continue
            said = {key: value for key, value in says.items() if key not in NOT_A_TERMS}
            singles.append(self._objective(at, says["loss"], said, alone="")[0])
        found = [single for single in singles if single]
        if len(found) < len(fields.terms or []):
            return None
        variants = [one.label for one in found if one.label != one.name]
        # The weakest claim of any term is the objective's.
        claims = {one.weight_from for one in found}
        weakest = next((claim for claim in ("assumed", "tuned", "the suite", "released") if claim in claims), "published")
        return Objective(
            name=name,
            label=f"{name} ({', '.join(variants)})" if variants else name,
            config={
                "task": 1.0 if fields.task is None else float(fields.task),
                "terms": [term for one in found for term in one.config["terms"]],
            },
            weight_from=fields.weight_from or weakest,
            where=where,
        )

    def _with_kd(self, where: Where, objective: Objective, says: bool | Json) -> Objective | None:
        kd = parts.load("loss", "kd")
        options = {**KD_BESIDE, **(says if isinstance(says, dict) else {})}
        weight = self.reading.checked((*where, "+kd", "weight"), Weight, options.pop("weight"))
        if weight is None:
            return None
        resolved = self.reading.resolved((*where, "+kd"), kd, options)
        if resolved is None:
            return None
        terms = [*objective.config["terms"], _term(kd, resolved, weight, "matched")]
        config = {**objective.config, "terms": terms}
        return Objective(f"{objective.name}+kd", f"{objective.label}+kd", config, objective.weight_from, where)


def _term(part: parts.Part, options: Json, weight: Any, pairing: str) -> Json:
    scheduled = [[epoch, float(value)] for epoch, value in weight.items()] if isinstance(weight, dict) else float(weight)
    return {"loss": part.name, "version": part.version, "options": options, "weight": scheduled, "pairing": pairing}
