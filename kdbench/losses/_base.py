"""The contract of a distillation loss, and its inputs: a loss gets `Taps` of both models and a `Batch`, and returns one scalar (or
named scalars, whose sum is the loss)."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kdbench.errors import LossError, RefusedError, nearest

OF_SCENES = ("levels", "dense_logits", "regions")
"""The taps that detectors have; the others are of nets that give one answer for an image."""

TAPS = ("logits", "pooled", "last", "stages", "preact", "tokens", "class_token", "distillation_token", "registers", *OF_SCENES)
"""What a loss may need of both models; not every model has all of them."""

CONTEXT = ("second_view", "target", "index", "classifier", "labels", "teacher_head", "teacher_model", "teacher_features")
"""What else a loss may need: the taps of both models for a second view of the same images (second_view), of the batch (target, index), the
weights of both classifiers (classifier), or when it is bound (the rest)."""

NEEDS = frozenset({*TAPS, *CONTEXT})
WITH_CLASSIFIER = (*TAPS, "classifier")

LAWS = ("permutation", "translation", "scale", "sample_scale", "rotation")
"""Changes that may leave the value of a loss unchanged: another order of the samples (of both models and the batch), and, of the
student alone, one vector (over channels or classes) added to every sample, one positive factor, a positive factor for each sample, and
one orthogonal map of the channels or classes."""


class Restricted:
    """A record of which a loss gets only the fields in its `needs`; reading another one is an error."""

    def _with(self, values: Mapping[str, Any], loss: str, whose: str) -> Any:
        """A record with only these fields; `loss` and `whose` are for the message."""
        made = object.__new__(type(self))
        vars(made).update(values, _reader=(loss, whose))
        return made

    def __getattr__(self, name: str) -> Any:
        # Called only for absent fields: none has a default on the class.
        if name not in NEEDS or "_reader" not in vars(self):
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'{nearest(name, vars(self))}")
        loss, whose = vars(self)["_reader"]
        raise LossError(f"the loss '{loss}' reads the {whose}'s '{name}', which it does not list: add '{name}' to its `needs`")


def _none() -> None:
    return None


@dataclass(frozen=True)
class Regions:
    """The regions of n images that the second stage of a detector judges: in a training step those that were drawn for its own losses, and
    none where no targets are given. `boxes` are those of each image (m x 4, in pixels of the input). `logits` and `labels` are of all
    regions, image by image: class 0 is the background, and the label of a region without an object.
    """

    boxes: tuple[Float[Tensor, "_ 4"], ...]
    logits: Float[Tensor, "regions columns"]
    labels: Int[Tensor, " regions"]
    head: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] | None = None
    """The logits of this model for any regions, of levels and boxes. No loss sees it."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Regions:
        return replace(self, logits=change(self.logits))

    def rows(self, chosen: slice | Tensor) -> Regions:
        """Those of some images, in this order."""
        counts = [len(one) for one in self.boxes]
        order = torch.arange(len(counts))[chosen].tolist()
        logits, labels = (tensor.split(counts) for tensor in (self.logits, self.labels))
        logits, labels = (torch.cat([each[place] for place in order]) for each in (logits, labels))
        return replace(self, boxes=tuple(self.boxes[place] for place in order), logits=logits, labels=labels)


@dataclass(frozen=True)
class Taps(Restricted):
    """One model's outputs for one batch of n images; None (or empty) if the model does not have them.

    `pooled` is what the classifier sees. `last` is the last map: its global average is `pooled` where nothing but that average comes
    before the classifier. `stages` are the outputs of the stages, first to last, after their activation; `preact` the same maps before it.
    `tokens` are the last features of a net that keeps channels last, one patch of the image after another, row by row; `last` is then the
    same values as a map. The tokens that belong to no patch are apart: `class_token`, `distillation_token`, `registers`.
    """

    logits: Float[Tensor, "n classes"] | None = field(default_factory=_none)
    pooled: Float[Tensor, "n width"] | None = field(default_factory=_none)
    last: Float[Tensor, "n channels height breadth"] | None = field(default_factory=_none)
    stages: Sequence[Float[Tensor, "n _ _ _"]] = field(default_factory=tuple)
    preact: Sequence[Float[Tensor, "n _ _ _"]] = field(default_factory=tuple)
    tokens: Float[Tensor, "n tokens embedding"] | None = field(default_factory=_none)
    class_token: Float[Tensor, "n embedding"] | None = field(default_factory=_none)
    distillation_token: Float[Tensor, "n embedding"] | None = field(default_factory=_none)
    registers: Float[Tensor, "n registers embedding"] | None = field(default_factory=_none)
    levels: Sequence[Float[Tensor, "n _ _ _"]] = field(default_factory=tuple)
    """The maps of a feature pyramid, finest first, as a detector's heads see them."""
    dense_logits: Sequence[Float[Tensor, "n _ _ _"]] = field(default_factory=tuple)
    """Of each level, the class logits of a detector at each position: n x (anchors * classes) x height x breadth, class by class within
    an anchor; empty for a detector without a dense head for classes."""
    regions: Regions | None = field(default_factory=_none)
    """The regions of a detector with two stages. A loss that needs them gets the teacher's logits for the student's regions."""
    strides: tuple[int, ...] = field(default_factory=tuple)
    """How many pixels of the input a position of each level is high and broad. A loss that needs `levels` or `dense_logits` may read it."""
    classifier: Sequence[Tensor] = field(default_factory=tuple)
    """Weight (classes x width) and bias of the linear layer that makes the logits from `pooled`; empty where there is no such layer."""
    second_view: Taps | None = field(default_factory=_none)
    """The taps of the same images in a second view, for a loss that needs it: those among these that the loss needs."""
    relations: dict[str, Sequence[Tensor]] = field(default_factory=dict)
    """By `Loss.relation`, what was computed of these taps already. No loss sees it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "preact", tuple(self.preact))
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "dense_logits", tuple(self.dense_logits))

    def map(self, change: Callable[[Tensor], Tensor]) -> Taps:
        """The same taps, those of a second view among them, with `change` applied to every tensor that has a row for each image, and to the
        logits of regions."""
        second = self.second_view.map(change) if self.has("second_view") else None
        changed = {name: _mapped(vars(self)[name], change) for name in TAPS if self.has(name)}
        kept = {name: vars(self).get(name, ()) for name in ("classifier", "strides")}
        return Taps(**changed, **kept, second_view=second)

    def rows(self, chosen: slice | Tensor) -> Taps:
        """The same taps of some of the images, in this order; a tensor that says which is on the CPU."""
        there = chosen.to(self.device, non_blocking=True) if isinstance(chosen, Tensor) else chosen
        second = self.second_view.rows(chosen) if self.second_view else None
        found = replace(self, regions=None, second_view=None).map(lambda tensor: tensor[there])
        return replace(found, regions=self.regions.rows(chosen) if self.regions else None, second_view=second)

    def judging(self, others: Regions) -> Taps:
        """The same taps with this model's logits, without gradient, for the regions of another one."""
        if self.regions is None or self.regions.head is None:
            return self
        logits = self.regions.logits[:0]
        if len(others.logits):  # none while planning, where the head could not be run
            with torch.no_grad():
                logits = self.regions.head(self.levels, others.boxes)
        return replace(self, regions=replace(others, logits=logits))

    def with_classifier(self, model: nn.Module) -> Taps:
        """The same taps with the weights of the model's classifier, if that is one linear layer with a bias."""
        head = getattr(model, "head", None)
        linear = isinstance(head, nn.Linear) and head.bias is not None
        return replace(self, classifier=(head.weight, head.bias)) if linear else self

    def has(self, name: str) -> bool:
        value = vars(self).get(name)
        return value is not None and not (isinstance(value, tuple) and not value)

    def with_second_view(self) -> Taps:
        """The same taps with those of a second view, of the same shapes."""
        return replace(self, second_view=self)

    def tensors(self) -> list[Tensor]:
        values = [vars(self)[name] for name in TAPS if self.has(name)]
        values += [tuple(self.second_view.tensors())] if self.has("second_view") else []
        return [one for value in values for one in _each(value)]

    @property
    def device(self) -> torch.device:
        return next(one for name in TAPS if self.has(name) for one in _each(vars(self)[name])).device

    def needed(self, needs: frozenset[str], loss: str, side: str, change: Callable[[Tensor], Tensor]) -> Taps:
        """The taps that a loss needs, with `change` applied."""
        given = {name: _mapped(vars(self)[name], change) for name in WITH_CLASSIFIER if name in needs}
        if needs & {"levels", "dense_logits"}:
            given["strides"] = self.strides
        if isinstance(regions := given.get("regions"), Regions):
            own = tuple(one.clone() for one in regions.boxes)
            given["regions"] = Regions(own, regions.logits, regions.labels.clone())
        if "second_view" in needs:
            given["second_view"] = self.second_view and self.second_view.needed(needs - {"second_view"}, loss, side, change)
        return self._with(given, loss, side)


@dataclass(frozen=True)
class Batch(Restricted):
    """A batch of n images without the taps. `index`: positions in the training set in its canonical order; `step` counts from 0 over the
    whole training, `epoch` from 0.

    `target` is the task's: in classification the class of each image (n), in detection its `Objects` (kdbench/scenes.py), in pixels of the
    input. Where the recipe mixes images (mixup, CutMix) it is the share of
    each class in each image (n x classes), and `index` is that of the image whose share is mixed into its own place, which may be the
    smaller one: a loss that needs either is refused there unless it declares `takes_mixed`.
    """

    target: Any = field(default_factory=_none)
    index: Int[Tensor, " n"] | None = field(default_factory=_none)
    epoch: int = 0
    step: int = 0
    others: Mapping[str, Taps] | None = field(default_factory=_none)
    """The teacher's taps of other images, row by row, for the objectives that ask for them (`pairing`); no loss sees them."""
    second_views: Mapping[tuple[str, str], tuple[Any, Taps]] = field(default_factory=dict)
    """By pairing and augmentation, the images in a second view (of pairing `matched` those of the batch) and the teacher's taps of it, for
    the objectives that ask for them; no loss sees them."""

    def needed(self, needs: frozenset[str], loss: str) -> Batch:
        """Copies of what a loss needs of this batch, with `epoch` and `step`."""
        given = {name: _copied(vars(self)[name]) for name in ("target", "index") if name in needs}
        return self._with({**given, "epoch": self.epoch, "step": self.step}, loss, "batch")


@dataclass(frozen=True)
class Pair(Restricted):
    """A student and a teacher before training.

    `student` and `teacher` are taps of a probe batch: only their shapes and dtypes are meaningful (they may be on the meta device).
    `labels` are the training targets in canonical order, and `teacher_features` the teacher's `pooled` of these images without augmentation
    (n_train x width; or a function that computes it). `teacher_head` maps the teacher's `pooled` to its logits; `teacher_model` is for
    statistics (batch-norm means). A loss gets copies, which it may keep and change.
    """

    student: Taps
    teacher: Taps
    labels: Tensor | None = field(default_factory=_none)
    teacher_head: nn.Module | None = field(default_factory=_none)
    teacher_model: nn.Module | None = field(default_factory=_none)
    teacher_features: Tensor | Callable[[], Tensor] | None = field(default_factory=_none)

    @property
    def n_train(self) -> int:
        """The number of training images, for a loss that needs `labels`."""
        if self.labels is None:
            raise RefusedError("the size of the training set is not known here")
        return len(self.labels)

    @property
    def n_classes(self) -> int:
        """The number of classes, which every loss may know."""
        if (classes := vars(self).get("_classes")) is None:
            logits = vars(self.student).get("logits")
            if logits is None:
                raise RefusedError("it needs the number of classes of a classifier, and these models have no logits of an image")
            classes = logits.shape[1]
        return int(classes)

    def needed(self, needs: frozenset[str], loss: str) -> Pair:
        """Copies of what a loss needs of this pair. The taps keep their dtype."""
        sides = {side: getattr(self, side).needed(needs, loss, side, _copied) for side in ("student", "teacher")}
        given = {name: _copied(vars(self)[name]) for name in ("labels", "teacher_head", "teacher_model") if name in needs}
        if "teacher_features" in needs:
            features = self.teacher_features
            given["teacher_features"] = _copied(features() if callable(features) else features)
        logits = vars(self.student).get("logits")
        return self._with({**sides, **given, "_classes": None if logits is None else logits.shape[1]}, loss, "pair")


@dataclass(frozen=True)
class Preset:
    """A named objective of a paper or repository: the weight of the loss (None: not published, the suite must set it), the weight of the
    `task` loss, the options of the loss, and further `terms` (loss, weight, options; a fourth entry may hold `warm_up`, `decay` and
    `of_epochs`).

    `warm_up` and `decay` change the weight of the loss with the epoch e, counted from 1: it is multiplied by min(e / warm_up, 1), and by
    a cosine from 1 at the first epoch of `decay` to 0 at the second. They are of a training of `epochs` epochs, and scale with its length.
    `dot` is the difference of momentum between distillation terms and task, in distillation-oriented training (kdbench/train/dot.py).
    `two_stages` is what a suite writes under this word: options of the first stage's recipe, the `weight` of the terms in it, and `then`,
    the terms of the second stage (a list as in a suite; without it, the same terms).
    """

    source: str
    weight: float | None
    task: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    terms: tuple[tuple[str, float, Mapping[str, Any]] | tuple[str, float, Mapping[str, Any], Mapping[str, Any]], ...] = ()
    warm_up: float = 0
    decay: tuple[float, float] | None = None
    epochs: int | None = None
    dot: float | None = None
    two_stages: Mapping[str, Any] | None = None


class Loss(nn.Module):
    """A distillation loss. Hyper-parameters are keyword-only arguments of `__init__`, kept as attributes of the same name.

    A subclass defines `version` (raised by every commit that changes what it computes), `presets` (the first is the default), `needs`,
    `laws` and `forward`. Its docstring is the specification: formula, shapes, and lines that begin with `Source:`, `Defaults:` and
    `Departs:`.
    """

    version: ClassVar[int] = 1
    presets: ClassVar[Mapping[str, Preset]] = {}
    added: ClassVar[Mapping[str, Any]] = {}
    """Options added after the first release, each with the value that gives the earlier behaviour. An option with that value is not part
    of a cell's id, so that earlier cells keep their ids."""
    compares: ClassVar[Literal["logits", "features", "relations", ""]] = ""
    """What it makes alike, for lists of losses: predictions, features of an image, or relations between images, channels or stages."""
    couples: Literal["sample", "batch"] = "batch"
    """`sample`: the value for a batch is the mean of its values for the images alone. Only such losses can be used with `accumulate`."""
    first_stage_options: ClassVar[Mapping[str, Any]] = {}
    """Options that this loss has in the first of two stages, whatever those of the objective are. The second stage starts from the student
    of the first and from all parameters and buffers of the loss that both stages have, by name, after `bind`. What is not to be trained in
    the second stage is frozen in `bind` (`requires_grad_(False)`), by an option that differs between the stages."""
    trains_student: bool = True
    """Whether the value depends on the student, with these options. In a first stage where no term does, the parameters of the losses are
    trained alone: the student stays as it is drawn, in evaluation mode."""
    takes_mixed: bool = False
    """Whether a loss that needs `target` or `index` is right for mixed images, as `Batch` describes them."""
    augmentation: str = "fixmatch"
    """How the second view of an image is augmented, for a loss that needs `second_view`: `fixmatch` (kdbench/datasets/_fixmatch.py) or a
    text as `rand_augment` of a recipe has it. Crop and flip are drawn anew; `rand_augment` and `random_erasing` of the recipe are those of
    the first view alone, and both views are mixed alike. The student makes a forward pass of each view, one after the other, both in
    training mode: batch norm has statistics of each view, and its running averages are updated by both."""
    task_of_both_views: bool = False
    """Whether the task's loss of the second view is added to that of the first, with the same weight."""

    def __init__(self) -> None:
        # nn.Module.__init__ accepts any argument; a loss without options accepts none.
        super().__init__()

    @property
    def needs(self) -> frozenset[str]:
        """Names from `TAPS` (of both models) and `CONTEXT`. The loss gets nothing else."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it needs: define the property `needs`")

    @property
    def laws(self) -> frozenset[str]:
        """The names from `LAWS` that hold for every input with these options; each other one fails for some input."""
        raise NotImplementedError(f"{type(self).__name__} does not say what leaves it unchanged: define the property `laws`")

    @property
    def variant(self) -> str | None:
        """Which of several losses that share a name this is, as tables print it: `cc (taylor)`. None if there is only one."""
        return None

    def refuses(self, pair: Pair) -> str | None:
        """Why this loss cannot be used with this pair; None if it can. Missing taps are checked elsewhere."""
        return None

    def notes(self, pair: Pair) -> list[str]:
        """What a user should know before training of this loss with this pair, which it does not refuse: what it leaves out, in sentences
        without a subject."""
        return []

    def bind(self, pair: Pair) -> None:
        """Build learnable parts and buffers for this pair. Called once (by `prepare`), before the optimiser is made.

        New parameters and buffers go to the default device. `pair`, with its labels, may be on the meta device: neither a shape nor a
        Python number may depend on values. The optimiser gets the parameters that require a gradient: set `requires_grad_(False)` on
        modules of the teacher that are not trained.
        """

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """One scalar, or named scalars. The tensors are copies that the loss may change; those of the student carry a gradient, each its
        own (no tap is computed from another one)."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(student, teacher, batch)")

    def deployed(self, student: nn.Module) -> nn.Module:
        """The model that is evaluated and saved (images -> Taps, like a student): the student, unless the method changes it.

        It shares its modules, and their training or evaluation mode, with the student and this loss. At most one term of an objective
        may return something other than the student. With `ema` in the recipe a deep copy of it holds the average: its `forward` must reach
        all weights through its own submodules.
        """
        return student

    def of_teacher(self, teacher: Taps) -> Sequence[Tensor]:
        """What `forward` needs of the teacher, for a loss that compares relations, such as the similarities of the samples: tensors smaller
        than the taps, from the options alone (not from draws, parameters or buffers). It is computed once a step for all students with
        this loss and these options, and a table of the teacher's outputs may keep it. `forward` then gets it as `teacher.known`, and no
        tap of the teacher. A loss without this method gets the taps."""
        raise NotImplementedError(f"{type(self).__name__} does not define of_teacher(teacher)")

    @cached_property
    def relation(self) -> str:
        """What `of_teacher` gives, as a name that is equal for losses of this class with these options; empty without that method."""
        make = type(self)
        if make.of_teacher is Loss.of_teacher:
            return ""
        given = {name: getattr(self, name) for name in inspect.signature(make).parameters}
        own = "" if make.__module__.startswith("kdbench.losses.") else f" {id(make)}"  # a user's class is loaded anew for each term
        return f"{make.__module__}.{make.__qualname__}{own} {make.version} {json.dumps(given, sort_keys=True, default=str)}"

    def known(self, teacher: Taps) -> Sequence[Tensor]:
        """What `of_teacher` gives for these taps of a teacher, which keep it for the next loss."""
        there: dict[str, Sequence[Tensor]] = vars(teacher).setdefault("relations", {})
        if self.relation not in there:
            with torch.no_grad():
                own = teacher.needed(self._needs(), type(self).__name__, "teacher", _frozen_copy)
                there[self.relation] = tuple(self.of_teacher(own))
        return there[self.relation]

    def missing(self, pair: Pair) -> str | None:
        """What this loss needs and the pair does not have, or why it refuses the pair; None if it can be used."""
        needs = self._needs()
        for name in sorted(needs & set(TAPS)):
            lacking = [side for side in ("student", "teacher") if not getattr(pair, side).has(name)]
            if lacking:
                why = f"it needs the tap '{name}', which the {' and the '.join(lacking)} {'do' if len(lacking) > 1 else 'does'} not have"
                if not any(getattr(pair, side).has("levels") for side in lacking):
                    return why
                if name == "regions":
                    return f"{why}: only a detector with two stages, as faster_rcnn, gives the class logits of regions"
                if name in OF_SCENES:
                    return f"{why}: a detector has it if its head gives class logits at each position of its levels, as fcos and retinanet"
                known = get_args(get_type_hints(type(self).__init__).get("tap"))
                taps = [one for one in OF_SCENES if one in known and pair.student.has(one) and pair.teacher.has(one)]
                presets = [f"{type(self).__name__.lower()}:{name}" for name, one in self.presets.items() if one.options.get("tap") in taps]
                advice = f"; use {' or '.join(presets)}" if presets else f"; set `tap: {taps[0]}`" if taps else ""
                return f"{why}: a detector has the maps of a pyramid (`levels`), and neither one vector nor one map of an image{advice}"
        if "second_view" in needs and not (pair.student.second_view and pair.teacher.second_view):
            return "it needs 'second_view', a second view of each image, and images of this dataset have none"
        if "teacher_head" in needs and pair.teacher_head is None:
            return "it needs 'teacher_head', and no module of the teacher makes its logits from 'pooled' alone"
        if "classifier" in needs:
            for side in ("student", "teacher"):
                if not getattr(pair, side).classifier:
                    return f"it needs the weights of the {side}'s classifier, which is not one linear layer with a bias"
        for name in ("labels", "teacher_model", "teacher_features"):
            if name in needs and getattr(pair, name) is None:
                return f"it needs '{name}', which is not known of this pair"
        return self.refuses(pair.needed(needs, type(self).__name__))

    def prepare(self, pair: Pair) -> None:
        """Bind the loss to copies of what it needs of the pair. Raises RefusedError, with the reason, if it cannot be used with it."""
        why = self.missing(pair)
        if why is not None:
            raise RefusedError(why)
        self.bind(pair.needed(self._needs(), type(self).__name__))

    def noted(self, pair: Pair) -> list[str]:
        """The `notes` of this loss on what it needs of the pair, after its name."""
        return [f"the loss '{type(self).__name__.lower()}' {text}" for text in self.notes(pair.needed(self._needs(), type(self).__name__))]

    def parts(self, student: Taps, teacher: Taps, batch: Batch | Tensor | None = None) -> dict[str, Tensor]:
        """The named parts of the loss (one, named '', if it has none), computed without autocast and at least in float32.

        Raises:
            RefusedError: a tap, or a part of the batch, that the loss needs is absent.
            LossError: the loss reads what is not in `needs`, or returns something other than scalars.
        """
        if not isinstance(batch, Batch):
            batch = Batch(target=batch)
        needs, name = self._needs(), type(self).__name__
        is_known = bool(self.relation) and self.relation in vars(teacher).get("relations", ())
        for side, given in (("student", student), *([] if is_known else [("teacher", teacher)])):
            for tap in WITH_CLASSIFIER:
                if tap in needs and not given.has(tap):
                    raise RefusedError(f"{name} needs the {side}'s '{tap}', and these taps have none")
            if "second_view" in needs:
                if not given.has("second_view"):
                    raise RefusedError(f"{name} needs the {side}'s 'second_view', and these taps have none")
                for tap in TAPS:
                    if tap in needs and not vars(given)["second_view"].has(tap):
                        raise RefusedError(f"{name} needs the {side}'s '{tap}' of the second view, and these taps have none")
        for field_name in ("index", "target"):
            if field_name in needs and getattr(batch, field_name) is None:
                raise RefusedError(f"{name} needs the batch's '{field_name}', and this batch has none")
        device = student.device
        # Copies: a loss may write to them, and other losses and students use the same tensors.
        own = student.needed(needs, name, "student", _float32_copy)
        kind = "cpu" if device.type == "meta" else device.type
        regions = student.regions if "regions" in needs else None
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            if self.relation:
                frozen = teacher._with({"known": tuple(_lazy_copy(one) for one in self.known(teacher))}, name, "teacher")
            else:
                judged = teacher if regions is None else teacher.judging(regions)
                frozen = judged.needed(needs, name, "teacher", _frozen_copy)
            value = super().__call__(own, frozen, batch.needed(needs, name))
        parts = dict(value) if isinstance(value, Mapping) else {"": value}
        if (wrong := _wrong_return(parts, device)) is not None:
            raise LossError(f"the loss '{name}' returns {wrong}")
        return parts

    def __call__(self, student: Taps, teacher: Taps, batch: Batch | Tensor | None = None) -> Tensor:
        """The loss: a scalar."""
        parts = list(self.parts(student, teacher, batch).values())
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    def _needs(self) -> frozenset[str]:
        said = self.needs
        needs = frozenset([said] if isinstance(said, str) else said)
        if not needs <= NEEDS:
            unknown = min(needs - NEEDS)
            raise LossError(f"the loss '{type(self).__name__}' needs '{unknown}', which nothing provides{nearest(unknown, NEEDS)}")
        return needs


def _wrong_return(parts: Mapping[str, Any], device: torch.device) -> str | None:
    """What is wrong with the value of a loss, and what to return instead; None if nothing is."""
    if not parts:
        return "an empty mapping; return one scalar, or at least one named scalar"
    for name, value in parts.items():
        part = f" as its part '{name}'" if name else ""
        if value is None:
            return f"None{part}; return one scalar (is a `return` missing?)"
        if not isinstance(value, Tensor):
            return f"a {type(value).__name__}{part}; return a tensor with one element that depends on the student's taps"
        if value.shape != ():
            return f"a tensor of shape {list(value.shape)}{part}; return one scalar, for example with .mean()"
        if not value.is_floating_point():
            return f"a tensor of {value.dtype}{part}; return a floating-point scalar"
        if value.device != device:
            return f"a tensor on the device {value.device}{part}, and the taps are on {device}; make new tensors on the device of a tap"
    return None


def _each(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value.logits,) if isinstance(value, Regions) else (value,)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Regions):
        return value.map(change)
    return tuple(change(one) for one in value) if isinstance(value, tuple) else None if value is None else change(value)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _float32_copy(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else _lazy_copy(tensor)


def _frozen_copy(tensor: Tensor) -> Tensor:
    return _float32_copy(tensor.detach())


def _lazy_copy(tensor: Tensor) -> Tensor:
    """A copy whose memory is shared until either of them is written to, by whatever way: PyTorch then copies it first (copy on write).

    Only for memory that is all the tensor's, so that a write never copies more than the tensor, and the place in memory is that of a copy.
    """
    if tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() == tensor.nbytes:
        try:
            return torch._lazy_clone(tensor)
        except (AttributeError, RuntimeError):  # a future version of PyTorch; memory of NumPy or of several processes
            pass
    return tensor.clone()
