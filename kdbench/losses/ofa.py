from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._projection import BatchNorm
from kdbench.losses._soft import one_hot, positive
from kdbench.losses._stagewise import check_place

HEADS = 4
GRID = 7
"""The most patches a side that the blocks of a branch see."""
OF_DEPTH = (1 / 6, 1 / 3, 5 / 6, 1)
"""Where the released code divides a net of equal blocks: after 2, 4, 10 and 12 of 12."""
SOURCE = "github.com/Hao840/OFAKD"


class OFA(Loss):
    """One for all: branches at the student's stages give logits of their own, which imitate the teacher's as the student's do. The branches
    are trained with the student, and are no part of what is evaluated and saved.

    `stages` * sum_k l(branch_k(stage k), eps_k) + `logits` * l(z_s, eps_last), with the mean over images of
    l(z, eps) = - sum_c ( (q_c + [c = y])^eps - [c = y] ) log p_c, p = softmax(z / T) and q = softmax(z_t / T); y is the class of the image
    (of a mixed image the class with the larger share). `eps` is one number for all, or one for each branch and one for the logits. With
    eps 1 it is the cross-entropy with the teacher's predictions.
    There is a branch at each of the K stages from `first_stage` on; d is the larger width of the last stages of student and teacher.
    convolutions: K - k times two depthwise separable 3x3 convolutions (the first one of stride 2), each with batch norm and ReLU. The width
        doubles each time and is d at the end; for the last stage it is a 1x1 convolution to d. Then the mean over positions, and a linear
        layer.
    blocks (for nets of patches): where there are more than 7 patches a side, 2x2 of them are merged into one (layer norm, a linear layer
        without bias, and GELU but for the last time) until there are not. Then max(K - k, 1) blocks of a transformer with 4 heads, all with
        the width of the student's last stage; the mean over patches, and a linear layer. Of a net of more than 4 stages those at 1/6, 1/3,
        5/6 and the end of its depth have a branch.

    Shapes: stages n x c x h x w, logits n x classes; the teacher's stages are read for their width alone.

    Source: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation", NeurIPS 2023,
        github.com/Hao840/OFAKD, distillers/ofa.py.
    Defaults: that code's: all weights 1 (also of the task), eps 1, T 1. Its README has eps 1.5 for ResNet18 from DeiT-T on ImageNet, and 1
        for ResNet18 from Swin-T on CIFAR-100; the eps of its other pairs are not published there.
    Departs: there is no factor T^2, as in the code. The released branches are for four stages of certain nets at 224 x 224; here K and the
        sizes are those of the student, and first_stage 1 leaves out the stem. In the released code a branch with blocks reads the class
        token of nets that have one, and the mean only of others; stages here hold patches alone. Its blocks have no bias for queries, keys
        and values. Widths are there those of the features before the classifiers. Where the student's stage has another width than the
        blocks and nothing is merged, a linear layer makes it equal; a width that 4 does not divide has 2 heads or one.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cnn": Preset(f"{SOURCE}, train.py and README: weights 1, eps 1, for a CNN as student", weight=1.0),
        "cnn_eps1.5": Preset(f"{SOURCE}, README: eps 1.5, ResNet18 from DeiT-T on ImageNet", weight=1.0, options={"eps": 1.5}),
        "vit": Preset(
            f"{SOURCE}, train.py: weights 1, eps 1, for a ViT or MLP as student",
            weight=1.0,
            options={"branches": "blocks", "first_stage": 0},
        ),
    }

    needs = frozenset({"stages", "logits", "target"})
    laws = frozenset({"permutation"})
    takes_mixed = True

    def __init__(
        self,
        *,
        branches: Literal["convolutions", "blocks"] = "convolutions",
        eps: float | list[float] = 1.0,
        temperature: float = 1.0,
        stages: float = 1.0,
        logits: float = 1.0,
        first_stage: int = 1,
    ):
        super().__init__()
        positive(temperature=temperature)
        check_place(first_stage)
        if not stages or not eps or min(eps if isinstance(eps, list) else [eps]) <= 0:
            raise ValueError("stages must have a weight, and eps one or more positive numbers")
        self.branches = branches
        self.eps = eps
        self.temperature = temperature
        self.stages = stages
        self.logits = logits
        self.first_stage = first_stage
        # Blocks have no norm over the batch.
        self.couples: Literal["sample", "batch"] = "batch" if branches == "convolutions" else "sample"

    @property
    def variant(self) -> str:
        return self.branches

    def refuses(self, pair: Pair) -> str | None:
        chosen = self._chosen(pair.student)
        if not chosen:
            there = len(pair.student.stages)
            return f"it needs a stage from `first_stage` {self.first_stage} on (counted from 0), and the student has {there}"
        if isinstance(self.eps, list) and len(self.eps) != len(chosen) + 1:
            return f"`eps` has {len(self.eps)} values: give one for all, or one for each of {len(chosen)} branches and one for the logits"
        odd = [one for one in chosen if any(side % 2 ** _merges(one) for side in one.shape[2:])]
        if self.branches == "blocks" and odd:
            sides = " x ".join(map(str, odd[0].shape[2:]))
            return f"its blocks merge 2 x 2 patches {_merges(odd[0])} times, which a map of {sides} does not allow"
        return None

    def bind(self, pair: Pair) -> None:
        chosen = self._chosen(pair.student)
        width, other = (side.stages[-1].shape[1] for side in (pair.student, pair.teacher))
        made = []
        for left, stage in zip(reversed(range(len(chosen))), chosen, strict=True):
            if self.branches == "convolutions":
                body, out = _convolutions(stage.shape[1], left, max(width, other)), max(width, other)
            else:
                body, out = _blocks(stage, left, width), width
            made.append(nn.Sequential(*body, _Mean(), nn.Linear(out, pair.n_classes)))
        self.heads = nn.ModuleList(made)
        for weight_of in self.heads.modules():
            for name, weight in weight_of.named_parameters(recurse=False):
                _initialise(weight_of, name, weight)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        assert student.logits is not None and teacher.logits is not None
        given = [head(stage) for head, stage in zip(self.heads, self._chosen(student), strict=True)]
        eps = self.eps if isinstance(self.eps, list) else [self.eps] * (len(given) + 1)
        label = batch.target.argmax(1) if batch.target.is_floating_point() else batch.target
        of_class = one_hot(label, teacher.logits.shape[1], teacher.logits)
        certain = functional.softmax(teacher.logits / self.temperature, 1)
        values = []
        for z, power in zip((*given, student.logits), eps, strict=True):
            wanted = (certain + of_class) ** power - of_class
            values.append(-(wanted * functional.log_softmax(z / self.temperature, 1)).sum(1).mean())
        return {"stages": self.stages * torch.stack(values[:-1]).sum(), "logits": self.logits * values[-1]}

    def _chosen(self, side: Taps) -> list[Float[Tensor, "n _ _ _"]]:
        """The stages that have a branch, the last one at the end."""
        found = list(side.stages[self.first_stage :])
        if self.branches == "convolutions" or len(found) <= len(OF_DEPTH):
            return found
        return [found[math.ceil(share * len(found) - 1e-9) - 1] for share in OF_DEPTH]


class _Mean(nn.Module):
    """Over positions, of maps or of patches."""

    def forward(self, x: Tensor) -> Float[Tensor, "n c"]:
        return x.mean((2, 3)) if x.dim() == 4 else x.mean(1)


class _Patches(nn.Module):
    """The patches of a map, row by row."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n patches c"]:
        return x.flatten(2).transpose(1, 2)


class _Merge(nn.Module):
    """2 x 2 patches of a map become one."""

    def __init__(self, inputs: int, outputs: int, activation: nn.Module):
        super().__init__()
        self.norm, self.reduction, self.activation = nn.LayerNorm(4 * inputs), nn.Linear(4 * inputs, outputs, bias=False), activation

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h/2 w/2"]:
        x = functional.pixel_unshuffle(x, 2).permute(0, 2, 3, 1)
        return self.activation(self.reduction(self.norm(x))).permute(0, 3, 1, 2)


def _convolutions(inputs: int, left: int, outputs: int) -> list[nn.Module]:
    """The body of a branch of a map with `left` stages after it."""
    if not left:
        return [nn.Conv2d(inputs, outputs, 1)]
    layers: list[nn.Module] = []
    for place in range(left):
        out = outputs if place == left - 1 else 2 * inputs
        for stride, made in ((2, inputs), (1, out)):
            layers.append(nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False))
            layers += [nn.Conv2d(inputs, made, 1, bias=False), BatchNorm(made), nn.ReLU()]
        inputs = out
    return layers


def _merges(stage: Tensor) -> int:
    return max(int(math.log2(min(stage.shape[2:]) / GRID)), 0)


def _blocks(stage: Float[Tensor, "n c h w"], left: int, width: int) -> list[nn.Module]:
    """The body of a branch of a map of patches with `left` stages after it."""
    inputs, count = stage.shape[1], _merges(stage)
    layers: list[nn.Module] = []
    for place in range(count):
        last = 0 < place == count - 1
        layers.append(_Merge(inputs if not place else width, width, nn.Identity() if last else nn.GELU()))
    layers += [_Patches(), *([nn.Linear(inputs, width)] if not count and inputs != width else [])]
    block = {"dropout": 0.0, "activation": functional.gelu, "batch_first": True, "norm_first": True}
    for _ in range(max(left, 1)):
        layers.append(nn.TransformerEncoderLayer(width, math.gcd(HEADS, width), 4 * width, **block))  # type: ignore[arg-type]
    return layers


def _initialise(layer: nn.Module, name: str, weight: Tensor) -> None:
    """As the released code: He's normal for convolutions, a normal of deviation 0.02 for linear layers, whose biases are 0."""
    if isinstance(layer, nn.Conv2d) and name == "weight":
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(layer, (nn.Linear, nn.MultiheadAttention)):
        nn.init.trunc_normal_(weight, std=0.02) if weight.dim() > 1 else nn.init.zeros_(weight)
