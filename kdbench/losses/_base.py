"""The contract of a distillation loss, and the values that it sees.

A loss is a `torch.nn.Module` that knows nothing of trainers, data or files: it gets `Taps` of both models and a `Batch`,
and returns one scalar (or named scalars, whose sum is the loss).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kdbench.errors import RefusedError

TAPS = ("logits", "pooled", "last", "stages", "preact")
"""What a loss may need of both models; absent from a model that lacks it."""

CONTEXT = ("target", "index", "labels", "teacher_head")
"""What else a loss may need: of the batch (target, index), or when it is bound (labels, teacher_head)."""

LAWS = ("permutation", "translation", "scale", "sample_scale", "rotation")
"""Changes that may leave a loss as it is: another order of the samples (of both models and the batch), and, of the student alone,
one vector (over channels or classes) added to every sample, one positive factor, a positive factor for each sample, and one
orthogonal map of the channels or classes."""


@dataclass(frozen=True)
class Taps:
    """One model's view of one batch of n images. What a model lacks is None (or empty).

    `last` is the map whose global average is `pooled`. `stages` are the outputs of the stages, after their activation, first to
    last; `preact` the same maps before it.
    """

    logits: Float[Tensor, "n classes"] | None = None
    pooled: Float[Tensor, "n width"] | None = None
    last: Float[Tensor, "n channels height breadth"] | None = None
    stages: Sequence[Float[Tensor, "n _ _ _"]] = ()
    preact: Sequence[Float[Tensor, "n _ _ _"]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "preact", tuple(self.preact))

    def map(self, change: Callable[[Tensor], Tensor]) -> Taps:
        """The same taps with `change` applied to every tensor."""
        changed: dict[str, Any] = {}
        for tap in fields(self):
            value = getattr(self, tap.name)
            if isinstance(value, tuple):
                changed[tap.name] = tuple(change(one) for one in value)
            elif value is not None:
                changed[tap.name] = change(value)
        return Taps(**changed)

    def has(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and not (isinstance(value, tuple) and not value)

    def tensors(self) -> list[Tensor]:
        seen: list[Tensor] = []
        self.map(lambda tensor: seen.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return seen


@dataclass(frozen=True)
class Batch:
    """What a loss may know of a batch of n images besides the taps.

    `index` are positions in the training set in its canonical order; `step` counts from 0 over the whole training, `epoch` from 0.
    """

    target: Any = None
    index: Int[Tensor, " n"] | None = None
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Pair:
    """What is known of a student and a teacher before training.

    `student` and `teacher` are taps of a probe batch: only their shapes and dtypes mean anything (they may be on the meta device).
    `labels` are the training targets in canonical order; `teacher_head` maps the teacher's `pooled` to its logits.
    `teacher_model` is there for statistics (batch-norm means), never to be trained.
    """

    student: Taps
    teacher: Taps
    labels: Tensor | None = None
    teacher_head: nn.Module | None = None
    teacher_model: nn.Module | None = None

    @property
    def n_train(self) -> int:
        if self.labels is None:
            raise RefusedError("the size of the training set is not known here")
        return len(self.labels)


@dataclass(frozen=True)
class Preset:
    """A named objective of a paper or repository around one loss.

    `weight` is that of the loss's own term, `task` that of the task's loss, `terms` are further terms (loss, weight, options).
    A weight of None means that none was published: the suite must say one.
    """

    source: str
    weight: float | None
    task: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    terms: tuple[tuple[str, float, Mapping[str, Any]], ...] = ()


class Loss(nn.Module):
    """A distillation loss. Hyper-parameters are keyword-only arguments of `__init__`, kept as attributes of the same name.

    A subclass states `version` (raised by any commit that changes what it computes), `presets` (the first is the default), its
    `needs` and `laws`, and writes `forward`. Where the field knows several losses by its name, `variant` says which one this is.
    Its docstring is the specification: formula, shapes, and lines that begin with `Source:`, `Defaults:` and `Departs:`.
    """

    version: ClassVar[int] = 1
    presets: ClassVar[Mapping[str, Preset]] = {}

    def __init__(self) -> None:
        # Stated, for that of nn.Module takes anything: a loss without options has none.
        super().__init__()

    @property
    def needs(self) -> frozenset[str]:
        """Names from `TAPS` (wanted of both models) and `CONTEXT`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it needs: define the property `needs`")

    @property
    def laws(self) -> frozenset[str]:
        """The names from `LAWS` that hold for every input with these options; those left out must be violated by some input."""
        raise NotImplementedError(f"{type(self).__name__} does not say what leaves it unchanged: define the property `laws`")

    @property
    def variant(self) -> str | None:
        """Which of the losses of this name it is, as tables print it: `cc (taylor)`. None where the name says it all."""
        return None

    def refuses(self, pair: Pair) -> str | None:
        """Why this loss cannot serve this pair; None if it can. Missing taps are checked for every loss already."""
        return None

    def bind(self, pair: Pair) -> None:
        """Build learnable parts and memories for this pair. Called once, before the optimiser is made; may be on the meta device.

        New parameters and buffers go to the default device, wherever the taps of `pair` are; `pair.labels` may be on the meta
        device too, so nothing here may depend on their values as Python numbers or decide a shape. The optimiser gets the
        parameters that ask for a gradient: of a module of the teacher keep a copy that does not.
        """

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not define forward(student, teacher, batch)")

    def deployed(self, student: nn.Module) -> nn.Module:
        """The model that is evaluated and kept (images -> Taps, as a student): the student, unless the method changes it.

        It shares its modules with the student and this loss: putting it into evaluation mode changes theirs as well, and whoever
        does so puts both back. At most one term of an objective may return something other than the student.
        """
        return student

    def missing(self, pair: Pair) -> str | None:
        """What this loss needs that the pair has not, or why it refuses it; None when it can be used."""
        for name in sorted(self.needs & set(TAPS)):
            lacking = [side for side in ("student", "teacher") if not getattr(pair, side).has(name)]
            if lacking:
                return f"it needs the tap '{name}', which the {' and the '.join(lacking)} does not have"
        for name in ("labels", "teacher_head"):
            if name in self.needs and getattr(pair, name) is None:
                return f"it needs '{name}', which is not known of this pair"
        return self.refuses(pair)

    def parts(self, student: Taps, teacher: Taps, batch: Batch | Tensor | None = None) -> dict[str, Tensor]:
        """The named parts of the loss (one, named '', if it has none); in float32 at least, whatever autocast says.

        Raises:
            RefusedError: a tap, or a part of the batch, that the loss needs is absent.
        """
        if not isinstance(batch, Batch):
            batch = Batch(target=batch)
        for side, taps in (("student", student), ("teacher", teacher)):
            for name in sorted(self.needs & set(TAPS)):
                if not taps.has(name):
                    raise RefusedError(f"{type(self).__name__} needs the {side}'s '{name}', and these taps have none")
        for name in ("index", "target"):
            if name in self.needs and getattr(batch, name) is None:
                raise RefusedError(f"{type(self).__name__} needs the batch's '{name}', and this batch has none")
        student, teacher = student.map(_at_least_float32), teacher.map(lambda tensor: _at_least_float32(tensor.detach()))
        device = student.tensors()[0].device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            value = super().__call__(student, teacher, batch)
        return dict(value) if isinstance(value, Mapping) else {"": value}

    def __call__(self, student: Taps, teacher: Taps, batch: Batch | Tensor | None = None) -> Tensor:
        """The loss: a scalar."""
        parts = list(self.parts(student, teacher, batch).values())
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
