"""The third noun: a suite as it was planned. `plan` writes it; run, slurm and report read it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from kdbench.errors import UsageError, nearest
from kdbench.validation import AtLeastZero, CellId, Count, Finite, Schema1, Strict, check, from_json

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Metric(Strict):
    """`percent`: a fraction that tables show per cent, with differences in points; `per_image`: the column of `Task.per_image` from
    which this metric follows, as its mean over the images (`hits`: as AP; None: it does not). Its columns are `<name>_last` and so on."""

    name: str
    label: str
    percent: bool = True
    higher_is_better: bool = True
    per_image: str | None = None

    def mistake(self, value: float) -> str:
        """Why a stored value cannot be one of this metric; empty where it can."""
        return "a fraction between 0 and 1" if self.percent and not 0 <= value <= 1 else ""

    def printed(self, value: float) -> str:
        """A value as text with its unit."""
        return f"{100 * value:.2f} %" if self.percent else f"{value:.4g}"


COMMON_METRICS = {
    metric.name: metric
    for metric in (
        *(Metric(name, label) for name, label in (("top1", "top-1"), ("top5", "top-5"), ("acc", "accuracy"), ("accuracy", "accuracy"))),
        *(Metric("balanced_accuracy", "balanced accuracy"), Metric("macro_f1", "macro-F1"), Metric("nll", "NLL", False, False)),
        *(Metric(name, name, False) for name in ("ap", "AP", "map", "mAP", "iou", "miou", "mIoU", "f1", "auc", "auroc", "bleu")),
        *(Metric(name, name, False, False) for name in ("loss", "error", "ece", "brier", "perplexity", "ppl", "mae", "mse", "rmse")),
        *(Metric(name, name, False, False) for name in ("fid", "wer")),
    )
}
"""The metrics whose unit and direction are known by their name; a manifest describes all others."""

OVER_CLASSES = ("balanced_accuracy", "macro_f1")
"""Means over classes, which follow from the predictions of any classifier."""


@dataclass(frozen=True)
class ManifestObjective(Strict):
    """`label` is what tables print; `weight_from` says who chose the weights: published, released, suite, assumed or tuned. A control has
    the name of the objective that it is of, and its own (`untrained`); one at weight 0 has the objective that it must equal. An
    objective that inherits parts of the teacher has the task's loss alone with the same parts."""

    name: str
    label: str
    weight_from: str | None = None
    control_of: str | None = None
    control: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Block(Strict):
    """A student and a teacher on a dataset: where objectives are compared."""

    dataset: str
    teacher: str | None
    student: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Dataset, teacher (empty: none) and student."""
        return self.dataset, self.teacher or "", self.student

    @property
    def title(self) -> str:
        """`cifar100 · student resnet8 · teacher resnet20`."""
        return " · ".join([self.dataset, f"student {self.student}", *([f"teacher {self.teacher}"] if self.teacher else [])])


@dataclass(frozen=True)
class ManifestCell(Strict):
    """A cell under the names that the suite gives it. `depends` holds the ids of other cells, by role; a teacher has no objective. A trial
    of a search has its number in the search; its teacher, which does not see the images held out, is a trial without objective. The first
    of two stages has the role `first_stage`, and the trial 0 where it is that of trials."""

    id: str
    role: str
    dataset: str
    student: str
    teacher: str | None
    objective: str | None
    repeat: int | None
    teacher_seed: int | None
    depends: Mapping[str, str]
    trial: Count | None = None

    @property
    def trained_as(self) -> str:
        """`teacher` or `student`, also of trials and controls."""
        return "teacher" if self.role == "teacher" or self.objective is None else "student"

    @property
    def title(self) -> str:
        if self.trained_as == "teacher":
            kind = {"trial": "tuning ", "control": "untrained "}.get(self.role, "")
            return f"{kind}teacher {self.student}, seed {self.repeat}"
        if self.role == "trial":
            return f"{self.student} <- {self.teacher}, {self.objective}, trial {self.trial}, repeat {self.repeat}"
        if self.role == "first_stage":
            of = "" if self.trial is None else " of trials"
            return f"{self.student} <- {self.teacher}, {self.objective}, first stage{of}, repeat {self.repeat}"
        seed = f", teacher seed {self.teacher_seed}" if self.teacher_seed else ""
        beside = f" <- {self.teacher}" if self.teacher else ""
        return f"{self.student}{beside}, {self.objective}, repeat {self.repeat}{seed}"


class _PlannedCell(TypedDict):
    """What holds for a cell besides, where it is none of a frame."""

    id: CellId
    role: Literal["student", "teacher", "trial", "control", "first_stage"]
    repeat: Count | None
    teacher_seed: Count | None


@dataclass(frozen=True)
class TeacherRequirement(Strict):
    """What a suite requires of a teacher's metric at the last epoch: at least `min` (at most, where lower is better), and no further
    from `declared[0]` than `declared[1]`."""

    metric: str
    min: Finite | None
    declared: tuple[Finite, AtLeastZero] | None = None


@dataclass(frozen=True)
class Tuning(Strict):
    """The searches of a suite: each tuned objective is tried at `trials` points on `repeats` repeats, then at `further` more, and the best
    `again` once more on `more_repeats` others, with the share `validation` of the training images held out. `pair` (student, teacher):
    the one pair that is tuned for all; None: each for itself."""

    trials: Positive
    repeats: Positive
    further: Count
    again: Count
    more_repeats: Count
    validation: Finite
    pair: tuple[str, str] | None = None

    @property
    def trainings(self) -> int:
        """Of one search."""
        return (self.trials + self.further) * self.repeats + self.again * self.more_repeats


@dataclass(frozen=True)
class ClaimComparison(Strict):
    """`objective` has a metric that is better than that of `baseline`, not worse, or equal; or takes less time or memory for a training
    step."""

    relation: Literal["better", "not worse", "equal", "time", "memory"]
    objective: str
    baseline: str


@dataclass(frozen=True)
class PaperClaim(Strict):
    """A sentence that the suite checks, where it stands, and the comparisons that it is made of: it is true if each is. `margin`: the least
    difference of the metric that matters for it, as stored (None: nothing is equal)."""

    claim: str
    source: str
    comparisons: Annotated[tuple[ClaimComparison, ...], Field(min_length=1)]
    margin: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True)
class ProfileRef(Strict):
    """Which profile holds the cost of an objective."""

    dataset: str
    teacher: str | None
    student: str
    objective: str
    id: CellId


@dataclass(frozen=True)
class Manifest(Strict):
    """`metrics[0]` is the primary one; `margin` is its least difference that matters, as stored; `teacher_requirements` are by cell id;
    `averaged` holds the decay of each student whose evaluated weights are an exponential moving average (`ema` of its recipe);
    `tuning`: how weights are searched for; `claims`: what the suite checks; `derived`: made from the rows of a frame, so that ids have any
    form and nobody fixed the family of comparisons beforehand."""

    suite: str
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]
    baselines: tuple[str, ...]
    repeats: Positive
    teacher_seeds: Positive
    alpha: Annotated[float, Field(gt=0, lt=1)]
    objectives: tuple[ManifestObjective, ...]
    blocks: tuple[Block, ...]
    cells: tuple[ManifestCell, ...]
    description: str = ""
    assumed: tuple[str, ...] = ()
    margin: Annotated[float, Field(gt=0)] | None = None
    derived: bool = False
    teacher_requirements: Mapping[str, TeacherRequirement] = field(default_factory=dict)
    profiles: tuple[ProfileRef, ...] = ()
    averaged: Mapping[str, Finite] = field(default_factory=dict)
    tuning: Tuning | None = None
    claims: tuple[PaperClaim, ...] = ()
    schema: Schema1 = 1

    @property
    def primary(self) -> Metric:
        return self.metrics[0]

    def compared_by(self, name: str, predictions: bool = False) -> Manifest:
        """The same suite with another of its metrics (`top5`, or the column `top5_last`) as the primary one; this is noted in `assumed`.
        Means over classes follow from `predictions`, also where the manifest is older than they are. Raises UsageError if the suite has no
        such metric."""
        classes = predictions and any(metric.per_image == "correct" for metric in self.metrics)
        name, later = name.removesuffix("_last"), [COMMON_METRICS[one] for one in OVER_CLASSES if classes]
        known = {metric.name: metric for metric in (*later, *self.metrics)}
        if name not in known:
            raise UsageError(f"{self.suite} has no metric '{name}'{nearest(name, [*known])}")
        first, others = known[name], [metric for metric in self.metrics if metric.name != name]
        if first == self.primary:
            return self
        note = f"{first.label} was chosen as the metric for this report, in place of {self.primary.label}"
        alike = first.percent == self.primary.percent
        claims = self.claims if alike else tuple(replace(claim, margin=None) for claim in self.claims)
        margin = self.margin if alike else None
        return replace(self, metrics=(first, *others), margin=margin, claims=claims, assumed=(*self.assumed, note))

    @cached_property
    def labels(self) -> dict[str, str]:
        """The printed label of each objective, in the order of the suite."""
        return {objective.name: objective.label for objective in self.objectives}

    @property
    def compared(self) -> list[ManifestObjective]:
        """The objectives without the controls, which are compared with nothing but their own objective."""
        return [objective for objective in self.objectives if objective.control is None]

    @property
    def claimed(self) -> list[dict[str, Any]]:
        """A row for each comparison of each claim: the number of the claim, its sentence, source and margin, and the comparison."""
        return [
            {"claim": place, "sentence": claim.claim, "source": claim.source, "margin": claim.margin, **asdict(one)}
            for place, claim in enumerate(self.claims)
            for one in claim.comparisons
        ]

    @property
    def reported(self) -> list[ManifestCell]:
        """The cells of which a report has a row each: students and teachers, without trials, first stages and what controls need."""
        return [cell for cell in self.cells if cell.role in ("student", "teacher")]

    @cached_property
    def roles(self) -> dict[str, str]:
        return {cell.id: cell.role for cell in self.cells}

    @cached_property
    def compared_teachers(self) -> dict[str, tuple[str, ...]]:
        """The trained teachers that each student is compared with: its own or, where it has none (trained alone, or by an untrained
        teacher), those of its pairs."""
        trained: dict[tuple[str, str], list[str]] = defaultdict(list)
        for cell in self.cells:
            if cell.role == "teacher":
                trained[cell.dataset, cell.student].append(cell.id)
        pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
        for block in self.blocks:
            pairs[block.dataset, block.student] += [block.teacher] if block.teacher else []
        found = {}
        for cell in self.cells:
            if cell.role == "student":
                own = [other for other in cell.depends.values() if self.roles.get(other) == "teacher"]
                names = [cell.teacher] if cell.teacher else pairs[cell.dataset, cell.student]
                found[cell.id] = tuple(own or [one for name in names for one in trained[cell.dataset, name]])
        return found

    @cached_property
    def ids(self) -> frozenset[str]:
        return frozenset(cell.id for cell in self.cells)

    def shortfall(self, teacher_id: str, run: Mapping[str, Any]) -> str:
        """`top-1 15.00 %, below the required 20.00 %`; empty for a run that meets what is required of it. `run` holds the run's metrics by
        column (`top1_last`)."""
        asked = self.teacher_requirements.get(teacher_id)
        if asked is None:
            return ""
        metric = next(metric for metric in self.metrics if metric.name == asked.metric)
        value = run.get(f"{metric.name}_last")
        if value is None or value != value:
            return f"no {metric.label}" + ("" if asked.min is None else f", below the required {metric.printed(asked.min)}")
        if wrong := metric.mistake(value):
            return f"{metric.label} is {value}: {wrong}"
        if asked.min is not None and not (value >= asked.min if metric.higher_is_better else value <= asked.min):
            word = "below" if metric.higher_is_better else "above"
            return f"{metric.label} {metric.printed(value)}, {word} the required {metric.printed(asked.min)}"
        declared, within = asked.declared or (value, 0.0)
        if abs(value - declared) > within:
            promised = f"{metric.printed(declared)} was declared (tolerance {metric.printed(within)})"
            return f"{metric.label} {metric.printed(value)}, but {promised}"
        return ""

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Raises ValueError, naming field and value, where a field is missing, unknown, of another type or out of its range."""
        found: Manifest = from_json(cls, data)
        if mistake := next(_mistakes(found), ""):
            raise ValueError(mistake)
        return found


def _mistakes(manifest: Manifest) -> Iterator[str]:
    """What is given twice, and what names something that does not exist."""
    labels, names = manifest.labels, [metric.name for metric in manifest.metrics]
    listed: dict[str, Iterable[Any]] = {"metrics": names, "objectives": [one.name for one in manifest.objectives]}
    listed |= {"baselines": manifest.baselines, "blocks": manifest.blocks, "cells": [cell.id for cell in manifest.cells]}
    for where, values in listed.items():
        yield from (f"{where}: {value!r:.60} is given {count} times" for value, count in Counter(values).items() if count > 1)
    named = [(f"baselines.{place}", name) for place, name in enumerate(manifest.baselines)]
    named += [(f"cells.{place}.objective", str(cell.objective)) for place, cell in enumerate(manifest.cells) if cell.role == "student"]
    named += [(f"profiles.{place}.objective", profile.objective) for place, profile in enumerate(manifest.profiles)]
    compared = [(place, side) for place, claim in enumerate(manifest.claims) for side in claim.comparisons]
    named += [(f"claims.{place}.comparisons", name) for place, one in compared for name in (one.objective, one.baseline)]
    yield from (f"{where}: {name!r} is no objective of the suite ({', '.join(labels)})" for where, name in named if name not in labels)
    depended = ((place, role, other) for place, cell in enumerate(manifest.cells) for role, other in cell.depends.items())
    referred = [(f"cells.{place}.depends.{role}", other) for place, role, other in depended]
    referred += [("teacher_requirements", cell_id) for cell_id in manifest.teacher_requirements]
    yield from (f"{where}: '{cell_id}' is no cell of the suite" for where, cell_id in referred if cell_id not in manifest.ids)
    for cell_id, asked in manifest.teacher_requirements.items():
        if asked.metric not in names:
            yield f"teacher_requirements.{cell_id}.metric: '{asked.metric}' is no metric of the suite ({', '.join(names)})"
    for place, cell in enumerate(() if manifest.derived else manifest.cells):
        try:
            check(_PlannedCell, {name: getattr(cell, name) for name in _PlannedCell.__annotations__})
        except ValueError as error:
            yield f"cells.{place}.{error}"
