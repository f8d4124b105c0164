"""The contract of a recipe: how a model is optimised. A recipe is data; `kdbench.timm_adapter` makes the optimiser and schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from kdbench.errors import OptionsError

RAND_AUGMENT = r"rand(-(m\d+|n[1-9]|p(0|0\.\d+|1)|mstd\d+(\.\d+)?|mmax\d+|inc1|t(weights|3a)))*"
"""What every timm since 1.0.12 understands alike; it ignores much else in silence."""
RAND_AUGMENT_WORDS = (
    "'rand' and, each at most once after a hyphen, m (magnitude, 0 to mmax), n (number of operations, 1 to 9), p (probability of each), "
    "mstd (spread of the magnitude), mmax (10 if left out), inc1 (a larger magnitude always means a larger change), and one of tweights "
    "and t3a, for example rand-m6-mstd0.5-inc1"
)

OF_TASK = ("label_smoothing", "task_loss", "target_threshold")
"""The options that a task takes in its constructor."""
OF_DATA = ("rand_augment", "random_erasing")
"""The options that change the training images one by one."""
MIXING = ("mixup", "cutmix")
"""The options that mix the images of a batch."""
NO_WARMUP = "the training has no warm-up: give `warmup_epochs` or `warmup_steps` as well"
MOMENTUM = ("sgd", "nesterov")
"""The optimisers with momentum; the others have betas."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of every recipe (by default SGD with momentum and a stepped learning rate):

    `milestones` are in epochs (fractions allowed); each multiplies the learning rate by `decay_rate`. `weight_decay` applies to all
    parameters, as in the literature's recipes, unless `decay_norms_and_biases` is false. `drop_last` leaves out the small last batch.
    `class_uniform` draws batches with this many images of each class in them (0: any images), as the samplers of correlation congruence
    do; every image is still used once per epoch. `clip_grad` is the maximal global norm of the gradient. `evaluate_every` is in epochs; the
    last epoch is always evaluated.

    Images: `mixup` and `cutmix` are the parameters alpha of their beta distributions (0: off), `mix_probability` the share of batches that
    are mixed, `switch_probability` the share of CutMix among these where both are on. `rand_augment` is timm's text, for example
    `rand-m6-mstd0.5-inc1`; `random_erasing` is the probability that a part of an image becomes noise.
    Loss of the task: `label_smoothing` is the share of the target that is spread over all classes; `task_loss` chooses the loss, and
    `target_threshold` makes each target of `binary_cross_entropy` 1 if it is larger, else 0.
    `ema` is the decay of an exponential moving average of the weights after each update; the average is evaluated and kept instead of the
    weights. `accumulate` divides each batch into this many parts, one after the other, and updates once a batch: it needs less memory.
    `bn_groups` divides each batch into this many groups of nearly equal size, as a training on so many GPUs does without synchronised
    batch norm: statistics of batch norm, draws of dropout and mixing are each group's own, the running statistics are the mean over the
    groups, and losses that compare images still see the whole batch. The results do not depend on how many processes share the groups.

    `batch_norm: frozen` keeps the statistics, weights and biases of a net's batch norms as they are before training, and `frozen_stages`
    all of its first stages (the stem is the first), as detectors that start from pretrained weights are trained.

    Learning rate: it rises linearly from `warmup_lr` to `lr` in `warmup_epochs`, or in `warmup_steps` updates. A cosine then falls to
    `lr_min` at the end of training:
    from `lr` if `cosine_after_warmup` (a suite with a warm-up gets it), else it counts from the first epoch, as timm's does by default, and
    the rate drops where the warm-up ends. `betas` and `eps` are those of the optimiser (null: its defaults). `layer_decay` multiplies the
    rate once for each layer below the head, as timm divides the net; `loss_lr_scale` multiplies that of a loss's own parameters.
    """

    version: ClassVar[int] = 1
    shared: ClassVar[frozenset[str]] = frozenset(
        {"epochs", "batch_size", "drop_last", "evaluate_every", "class_uniform", "accumulate", "bn_groups"}
        | {"mixup", "cutmix", "mix_probability", "switch_probability", "rand_augment", "random_erasing"}
    )
    """Options that all students of a pair share, since they define the data stream. A student's own recipe cannot change these."""
    added: ClassVar[Mapping[str, Any]] = {
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "mix_probability": 1.0,
        "switch_probability": 0.5,
        "rand_augment": None,
        "random_erasing": 0.0,
        "ema": None,
        "accumulate": 1,
        "task_loss": "cross_entropy",
        "target_threshold": None,
        "warmup_lr": 0.0,
        "lr_min": 0.0,
        "cosine_after_warmup": False,
        "betas": None,
        "eps": None,
        "layer_decay": None,
        "loss_lr_scale": 1.0,
        "bn_groups": 1,
        "warmup_steps": 0,
        "batch_norm": "trained",
        "frozen_stages": 0,
    }
    """Options added after the first release (`Loss.added`)."""

    epochs: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "nesterov", "adam", "adamw", "lamb", "lion"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norms_and_biases: bool = True
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[float, ...] = field(default=())
    decay_rate: float = 0.1
    warmup_epochs: int = 0
    drop_last: bool = False
    clip_grad: float | None = None
    evaluate_every: int = 1
    class_uniform: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    switch_probability: float = 0.5
    rand_augment: str | None = None
    random_erasing: float = 0.0
    ema: float | None = None
    accumulate: int = 1
    task_loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    target_threshold: float | None = None
    warmup_lr: float = 0.0
    lr_min: float = 0.0
    cosine_after_warmup: bool = False
    betas: tuple[float, float] | None = None
    eps: float | None = None
    layer_decay: float | None = None
    loss_lr_scale: float = 1.0
    bn_groups: int = 1
    warmup_steps: int = 0
    batch_norm: Literal["trained", "frozen"] = "trained"
    frozen_stages: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every", "accumulate", "bn_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "decay_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("momentum", "weight_decay", "warmup_epochs", "warmup_steps", "frozen_stages", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, and is {getattr(self, name)}")
        if self.momentum >= 1:
            raise ValueError(f"momentum must be below 1, and is {self.momentum}")
        if self.class_uniform < 0 or (self.class_uniform and self.batch_size % self.class_uniform):
            raise ValueError(f"class_uniform must divide the batch of {self.batch_size} (or be 0), and is {self.class_uniform}")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise ValueError(f"clip_grad must be positive, not {self.clip_grad}")
        for name in MIXING:
            if 0 < getattr(self, name) < 1e-3:
                raise ValueError(f"{name} is the alpha of a beta distribution, 0 or at least 0.001, and is {getattr(self, name)}")
        for name in ("mix_probability", "switch_probability", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, between 0 and 1, and is {getattr(self, name)}")
        if self.mix_probability != 1 and not (self.mixup or self.cutmix):
            raise ValueError(f"mix_probability is only for mixup and cutmix, and is {self.mix_probability}: give one of these as well")
        if self.switch_probability != 0.5 and not (self.mixup and self.cutmix):
            raise ValueError(f"switch_probability chooses between mixup and cutmix, and is {self.switch_probability}: give both as well")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, and is {self.label_smoothing}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is the decay of the average, between 0 and 1 (as 0.9998), and is {self.ema}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide the batch of {self.batch_size}, and is {self.accumulate}")
        if self.bn_groups > self.batch_size:
            raise ValueError(f"bn_groups must be at most the batch of {self.batch_size}, and is {self.bn_groups}")
        if self.bn_groups > 1 and self.accumulate > 1:
            raise ValueError(f"bn_groups {self.bn_groups} already divides the batch: leave out accumulate, which is {self.accumulate}")
        if self.target_threshold is not None and (self.task_loss != "binary_cross_entropy" or not 0 <= self.target_threshold < 1):
            raise ValueError("target_threshold must be at least 0 and below 1, and is only for `task_loss: binary_cross_entropy`")
        if self.rand_augment is not None and not is_rand_augment(self.rand_augment):
            raise ValueError(f"rand_augment {self.rand_augment!r} is not understood: write {RAND_AUGMENT_WORDS}")
        self._check_schedule()
        self._check_optimizer()

    def _check_schedule(self) -> None:
        if any(later <= earlier for earlier, later in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones must increase, and are {list(self.milestones)}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be less than the {self.epochs} epochs of the training, and is {self.warmup_epochs}")
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} and warmup_steps {self.warmup_steps} both say how long the warm-up is")
        late = [f"{at:g}" for at in self.milestones if at >= self.epochs]
        early = [f"{at:g}" for at in self.milestones if at <= self.warmup_epochs]
        if self.schedule == "step" and late:
            problem = f"the training has {self.epochs} epochs, and does not reach its milestones at {', '.join(late)}"
            raise ValueError(f"{problem}: write lower `milestones`, or leave them out, and those of the recipe scale with `epochs`")
        if self.schedule == "step" and early:
            problem = f"milestones must come after the start and the warm-up of {self.warmup_epochs} epochs, unlike {', '.join(early)}"
            raise ValueError(f"{problem}: write higher `milestones`, or fewer `warmup_epochs`")
        for name, used in (("warmup_lr", bool(self.warmup_epochs or self.warmup_steps)), ("lr_min", self.schedule == "cosine")):
            if getattr(self, name) < 0 or (used and getattr(self, name) >= self.lr):
                raise ValueError(f"{name} must be at least 0 and below the learning rate {self.lr:g}, and is {getattr(self, name):g}")

    def _check_optimizer(self) -> None:
        for name in ("betas", "eps"):
            if getattr(self, name) is not None and self.optimizer in MOMENTUM:
                raise ValueError(f"{name} is not an option of the optimizer {self.optimizer}, which has `momentum`")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, and are {list(self.betas)}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, and is {self.layer_decay}")
        for name in ("eps", "loss_lr_scale"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    @classmethod
    def settled(cls, options: dict[str, Any], *given: Mapping[str, Any]) -> dict[str, Any]:
        """The options with what follows from those `given` (the suite's, then the net's own): milestones keep their place relative to the
        epochs that they were written for, and a cosine starts at the end of the warm-up."""
        epochs = own = getattr(cls, "epochs", None)
        for level in given:
            epochs = level.get("epochs", epochs)
            own = epochs if "milestones" in level else own
        if unused := cls._unused(options, given[-1] if given else {}):
            raise OptionsError(cls.__name__, unused)
        settled = dict(options)
        if options["schedule"] == "step" and own not in (None, epochs):
            settled["milestones"] = [at * epochs / own for at in options["milestones"]]
        stated = [*given, *(vars(one).get("__annotations__", {}) for one in cls.__mro__[: cls.__mro__.index(Recipe)])]
        warms_up = options["warmup_epochs"] or options.get("warmup_steps")
        if options["schedule"] == "cosine" and warms_up and not any("cosine_after_warmup" in level for level in stated):
            settled["cosine_after_warmup"] = True
        return settled

    @staticmethod
    def _unused(options: Mapping[str, Any], given: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
        """(key, text) of each option that was given and has no effect beside the others."""
        schedule, optimizer = (f"the {name} '{options[name]}' does not use it" for name in ("schedule", "optimizer"))
        reasons = {
            **({"momentum": f"{optimizer}, it has `betas`"} if options["optimizer"] not in MOMENTUM else {}),
            **({"eps": optimizer} if options["optimizer"] == "lion" else {}),
            **(dict.fromkeys(("milestones", "decay_rate"), schedule) if options["schedule"] != "step" else {}),
            **(dict.fromkeys(("lr_min", "cosine_after_warmup"), schedule) if options["schedule"] != "cosine" else {}),
            **({} if options["warmup_epochs"] or options.get("warmup_steps") else {"warmup_lr": NO_WARMUP}),
        }
        return [
            ((name,), f"{text}, or leave it out" if "give" in text else f"{text}: leave it out")
            for name, text in reasons.items()
            if given.get(name)
        ]

    @classmethod
    def complete(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of a cell's configuration with every option, including those of `added`."""
        return {**cls.added, **config}


def is_rand_augment(text: str) -> bool:
    sections = [one if one != "tweights" else "t" for one in re.findall(r"-([a-z]+)", text)]
    if not re.fullmatch(RAND_AUGMENT, text) or len(set(sections)) < len(sections):
        return False
    magnitude, largest = (re.search(rf"-{name}(\d+)", text) for name in ("m", "mmax"))
    return (largest is None or int(largest[1]) > 0) and (magnitude is None or int(magnitude[1]) <= int(largest[1] if largest else 10))


def steps_per_epoch(images: int, batch_size: int, drop_last: bool) -> int:
    return math.floor(images / batch_size) if drop_last else math.ceil(images / batch_size)


def fitting_ranks(bn_groups: int, numerics: str) -> str:
    """`1, 2 or 4`: how many ranks can share batches of so many groups."""
    fitting = [str(one) for one in range(1, bn_groups + 1) if _fits(one, bn_groups, numerics)]
    return f"{', '.join(fitting[:-1])} or {fitting[-1]}" if fitting[1:] else "1"


def _fits(ranks: int, bn_groups: int, numerics: str) -> bool:
    return not bn_groups % ranks and (numerics != "exact" or not ranks & (ranks - 1))


def why_not_shared(ranks: int, bn_groups: int, numerics: str) -> str:
    """Why so many ranks cannot train batches of so many groups; empty if they can."""
    if _fits(ranks, bn_groups, numerics):
        return ""
    if bn_groups == 1:
        return f"{ranks} ranks cannot share a batch of one group: set `bn_groups` in the recipe, to {ranks} or a multiple of it"
    why = "sums of another number have other bits" if not bn_groups % ranks else "each rank needs as many groups as the others"
    most = fitting_ranks(bn_groups, numerics)
    return f"{ranks} ranks cannot share the {bn_groups} groups of a batch (`bn_groups`), since {why}: use {most} ranks"
