"""What losses of the logits share: transforms, softened predictions, and the target apart from the other classes. Not a loss."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Pair, Regions, Taps

Transform = Literal["none", "zscore"]


def positive(**options: float | int) -> None:
    """Raises ValueError for an option that is not positive."""
    for name, value in options.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, not {value}")


def predictions(student: Taps, teacher: Taps, tap: str) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n classes"]]:
    """The logits of both models: of images, or (tap `regions`) of the student's regions."""
    values = [getattr(side, tap) for side in (student, teacher)]
    x, y = (one.logits if isinstance(one, Regions) else one for one in values)
    return x, y


def coupled(tap: str) -> Literal["sample", "batch"]:
    """A mean over regions, of which images have different numbers, is no mean over images."""
    return "batch" if tap == "regions" else "sample"


def named(tap: str, transform: Transform) -> str | None:
    """The variant of a loss with these options."""
    return ", ".join([*(["regions"] if tap == "regions" else []), *([transform] if transform != "none" else [])]) or None


def transformed(logits: Float[Tensor, "n classes"], transform: Transform) -> Float[Tensor, "n classes"]:
    """With `zscore`, each sample's logits less their mean, over their standard deviation (with classes - 1) plus 1e-7."""
    if transform == "none":
        return logits
    # A logit of the sample is subtracted first, so that equal logits become exactly zero.
    logits = logits - logits[:, :1].detach()
    logits = logits - logits.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(logits, dim=1, keepdim=True) / max(logits.shape[1] - 1, 1) ** 0.5
    return logits / (deviation + 1e-7)


def divergence(x: Float[Tensor, "n classes"], y: Float[Tensor, "n classes"], temperature: float | Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean over samples of KL( softmax(y / T) || softmax(x / T) )."""
    return _kl(*(functional.log_softmax(logits / temperature, 1) for logits in (x, y)))


def cross_entropy(x: Float[Tensor, "n classes"], y: Float[Tensor, "n classes"], temperature: float) -> Float[Tensor, " n"]:
    """Of each sample -sum_c softmax(y / T)_c log softmax(x / T)_c."""
    return -(functional.softmax(y / temperature, 1) * functional.log_softmax(x / temperature, 1)).sum(1)


def decoupled(
    x: Float[Tensor, "n classes"], y: Float[Tensor, "n classes"], target: Int[Tensor, " n"], temperature: float | Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean divergences of the teacher's predictions from the student's: of the target against all other classes together, and
    among the other classes."""
    (two_x, rest_x), (two_y, rest_y) = (divided(functional.log_softmax(z / temperature, 1), target) for z in (x, y))
    return _kl(two_x, two_y), _kl(rest_x, rest_y)


def divided(predicted: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n classes-1"]]:
    """Of log-probabilities: those of the target and of all other classes together, and those of each other class among these."""
    rest = others(predicted, target)
    return torch.cat([of_target(predicted, target), rest.logsumexp(1, keepdim=True)], 1), functional.log_softmax(rest, 1)


def _kl(x: Float[Tensor, "n m"], y: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """The mean over samples of KL( exp y || exp x )."""
    return functional.kl_div(x, y, reduction="batchmean", log_target=True)


def divergences(x: Float[Tensor, "n m"], y: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """Of each sample KL( exp y || exp x )."""
    return functional.kl_div(x, y, reduction="none", log_target=True).sum(1)


def of_target(values: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, "n 1"]:
    return values.gather(1, target.to(values.device)[:, None])


def others(values: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, "n classes-1"]:
    """The values of all classes but the target, in order."""
    columns = torch.arange(values.shape[1] - 1, device=values.device)
    return values.gather(1, columns + (columns >= target.to(values.device)[:, None]))


def one_hot(labels: Int[Tensor, " m"], classes: int, like: Tensor) -> Shaped[Tensor, "m classes"]:
    """1 at each label and 0 elsewhere, of the kind of `like`; also where labels have no values (the meta device)."""
    return (labels.to(like.device)[:, None] == torch.arange(classes, device=like.device)).to(like.dtype)


def one_class(pair: Pair) -> str | None:
    """Why there are no classes beside the target, if there are none."""
    return "it compares the classes other than the target, and there is only one class" if pair.n_classes < 2 else None
