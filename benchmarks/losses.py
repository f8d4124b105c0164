"""Forward and backward of each loss against a peer, on random features."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from benchmarks.peers import Peer
from benchmarks.timing import Arm, Budget, best, exponent, interleaved, named, quartiles, ratio
from kdbench import parts
from kdbench.errors import KdbenchError, UsageError, nearest
from kdbench.isolation import isolated
from kdbench.losses._base import OF_SCENES, Batch, Loss, Pair, Regions, Taps
from kdbench.scenes import Objects
from kdbench.train.profile import peak_bytes

BATCHES = (64, 256, 1024)
WIDTHS = (512, 2048)
CLASSES = (100, 1000)
MAPS = (((32, 64, 128, 256), (32, 32, 16, 8)), ((64, 128, 256, 512), (32, 16, 8, 4)))
"""Channels and heights of the stages: of CIFAR's resnet8x4, and of ResNet-18 for images of 32 pixels."""
TINY_MAPS = ((4, 4, 8, 8), (16, 16, 8, 4))
FIELDS = 32
LARGE_MAPS = ((256, 256, 256, 256), (64, 64, 64, 64))
"""For losses of patches of 16 positions: as a feature pyramid has them, of a batch smaller by `FIELDS`, which has as many positions."""
TINY_LARGE_MAPS = ((4, 4, 4, 4), (32, 32, 32, 32))
PYRAMID = ((256, 256, 256, 256), ((40, 56), (20, 28), (10, 14), (5, 7)))
TINY_PYRAMID = ((4, 4, 4, 4), ((32, 32), (16, 16), (8, 8), (4, 4)))
"""Channels and sizes of the levels with strides of 8, 16, 32 and 64."""
REGIONS = 512
"""Of each image: as many as torchvision's second stage learns from."""
SAME = 1e-3
"""Values that differ by less, relative to the larger one, are the same: float32 on both sides."""
FIRST_CLASSES, FIRST_WIDTH = 100, 512


@dataclass(frozen=True)
class Shape:
    """The size of a batch and of its features: of logits `classes`, of features `width`, of maps the stages, of a detector
    the levels. `images` are those of the training set, for losses that remember them."""

    n: int
    classes: int = FIRST_CLASSES
    width: int = FIRST_WIDTH
    stages: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    images: int = 50_000
    levels: tuple[tuple[int, ...], tuple[tuple[int, int], ...]] | None = None

    def text(self, needs: frozenset[str]) -> str:
        if self.levels:
            channels, ((height, breadth), *_) = self.levels
            return f"{self.n} x {channels[0]} x {height} x {breadth}, {len(channels)} levels"
        if self.stages and needs & {"last", "stages", "preact"}:
            channels, heights = self.stages
            return f"{self.n} x {channels[-1]} x {heights[-1]} x {heights[-1]}" + (
                f", {len(channels)} stages" if needs & {"stages", "preact"} else ""
            )
        return f"{self.n} x {self.width if 'pooled' in needs else self.classes}"

    def size(self, needs: frozenset[str]) -> int:
        """What d is."""
        if self.levels:
            return self.levels[0][0]
        return (
            self.stages[0][-1]
            if self.stages and needs & {"last", "stages", "preact"}
            else self.width
            if "pooled" in needs
            else self.classes
        )


class _Norms(nn.Module):
    """A teacher's modules, for losses that read its batch norms."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(into, out, 1), nn.BatchNorm2d(out)) for into, out in zip((3, *channels), channels, strict=False)
        )

    def forward(self, images: Tensor) -> Taps:
        preact: list[Tensor] = []
        for block in self.blocks:
            preact.append(block(preact[-1].relu() if preact else images))
        return Taps(stages=[one.relu() for one in preact], preact=preact)


def taps(shape: Shape, needs: frozenset[str], device: torch.device) -> Taps:
    """Random taps: only those that the loss needs, and small ones of the others."""
    channels, heights = shape.stages or ((8, 8, 8, 8), (4, 4, 4, 4))
    width = channels[-1] if shape.stages else shape.width
    preact = [torch.randn(shape.n, c, h, h, device=device) for c, h in zip(channels, heights, strict=True)]
    stages = [one.relu() for one in preact]
    pooled = torch.randn(shape.n, width, device=device).relu()
    classifier = (torch.randn(shape.classes, width, device=device), torch.zeros(shape.classes, device=device))
    logits = 2 * torch.randn(shape.n, shape.classes, device=device)
    levels = [torch.randn(shape.n, c, *size, device=device) for c, size in zip(*shape.levels or ((), ()), strict=True)]
    dense = [torch.randn(shape.n, 9 * shape.classes, *one.shape[2:], device=device) for one in levels] if "dense_logits" in needs else []
    boxes = (torch.zeros(REGIONS, 4, device=device),) * shape.n
    labels = torch.arange(shape.n * REGIONS, device=device) % (shape.classes + 1)
    regions = Regions(boxes, 2 * torch.randn(len(labels), shape.classes + 1, device=device), labels) if "regions" in needs else None
    strides = tuple(2**place for place in range(3, 3 + len(levels)))
    of_scenes = Taps(levels=levels, dense_logits=dense, regions=regions, strides=strides)
    found = replace(of_scenes, logits=logits, pooled=pooled, last=stages[-1].clone(), stages=stages, preact=preact, classifier=classifier)
    return found.with_second_view() if "second_view" in needs else found


def shapes(needs: frozenset[str], quick: bool) -> list[Shape]:
    """The shapes at which a loss with these needs is measured."""
    if needs & set(OF_SCENES):
        return [Shape(2, 10, images=100, levels=TINY_PYRAMID) if quick else Shape(2, 80, levels=PYRAMID)]
    if needs & {"last", "stages", "preact"}:
        return [Shape(16, 10, stages=TINY_MAPS, images=100)] if quick else [Shape(n, stages=one) for n in BATCHES for one in MAPS]
    if "pooled" in needs:
        return [Shape(16, 10, 32, images=100)] if quick else [Shape(n, width=one) for n in BATCHES for one in WIDTHS]
    return [Shape(16, 10, images=100)] if quick else [Shape(n, classes=one) for n in BATCHES for one in CLASSES]


def built(case: str) -> Loss:
    """A loss by its name and preset, as a suite writes them. Raises UsageError."""
    name, _, preset = case.partition(":")
    if name not in parts.names("loss"):
        raise UsageError(f"there is no loss '{name}'{nearest(name, parts.names('loss'))}")
    part = parts.load("loss", name)
    presets = part.make.presets
    if preset and preset not in presets:
        raise UsageError(f"the loss '{name}' has no preset '{preset}'{nearest(preset, presets)}")
    options = presets[preset].options if preset else next(iter(presets.values())).options if presets else {}
    return part.build(part.options(dict(options)))


class Call:
    """A loss bound to random taps: forward and backward of it, and of a formula for the same taps."""

    def __init__(self, case: str, shape: Shape, device: torch.device):
        """Raises KdbenchError: the loss refuses these taps."""
        with isolated(0):
            self.loss = built(case)
            needs = self.loss._needs()
            self.shape = shape
            student, self.teacher = taps(shape, needs, device), taps(shape, needs, device)
            labels, width = torch.arange(shape.images) % shape.classes, (shape.stages or ((shape.width,),))[0][-1]
            head, net = nn.Linear(width, shape.classes), _Norms(shape.stages[0] if shape.stages else (8, 8, 8, 8))
            pair = Pair(student, self.teacher, labels, head, net, lambda: torch.randn(shape.images, width).relu())
            self.loss.prepare(pair)
            self.loss.to(device).train()
            self.student = student.map(lambda tensor: tensor.detach().requires_grad_(True))
            index = torch.randperm(shape.images)[: shape.n]
            target: Any = labels[index].to(device)
            if shape.levels:
                high, broad = (8 * side for side in shape.levels[1][0])
                shares = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0.3, 0.1, 0.8, 0.5]])
                boxes = shares * torch.tensor([broad, high, broad, high])
                target = Objects((boxes.to(device),) * shape.n, (labels[:2].to(device),) * shape.n, ((high, broad),) * shape.n)
            self.batch = Batch(target=target, index=index.to(device))

    def value(self, formula: Any = None) -> Tensor:
        if formula is None:
            return self.loss(self.student, self.teacher, self.batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old code
            return formula(self.loss, self.student, self.teacher, self.batch.target)

    def act(self, formula: Any = None) -> Tensor:
        for tensor in (*self.student.tensors(), *self.loss.parameters()):
            tensor.grad = None
        value = self.value(formula)
        value.backward()
        return value.detach()

    def gradient(self) -> Tensor:
        found = [torch.zeros_like(one) if one.grad is None else one.grad for one in self.student.tensors()]
        return torch.cat([one.flatten() for one in found]).double()


def same_value(call: Call, peer: Peer, case: str) -> str:
    """`yes`, or `no` with the difference and its reason; with the difference of the gradients. It is asked before anything is timed."""
    with isolated(1):
        own, own_gradient = float(call.act()), call.gradient()
    with isolated(1):
        other, other_gradient = float(call.act(peer.losses[case])), call.gradient()
    difference = abs(own - other) / max(abs(own), abs(other), 1e-12)
    of_gradients = float((own_gradient - other_gradient).norm() / own_gradient.norm().clamp_min(1e-300))
    text = f"value differs by {difference:.1e}, gradient by {of_gradients:.1e}"
    if difference <= SAME:
        return f"yes ({text})"
    return f"no ({text}: {peer.differs.get(case, 'no reason is known, so the times are of different things')})"


def too_large(case: str, shape: Shape, peer: Peer | None, device: torch.device) -> str:
    """Why a call is not made: it would need more than half of the free memory, as the peaks at an eighth and a quarter of the batch tell.
    Empty if it would not."""
    if shape.n < 64:
        return ""
    sizes = [shape.n // 8, shape.n // 4]
    peaks = []
    for n in sizes:
        call = Call(case, replace(shape, n=n), device)
        peaks.append(peak_bytes(device, partial(call.act, peer.losses[case] if peer else None)) or 1)
    expected = 2 * peaks[1] * 4 ** max(exponent(sizes, peaks), 1.0)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return f"it would need about {expected / 2**30:.0f} GiB" if expected > free / 2 else ""


def measured(
    case: str, shape: Shape, peer: Peer, device: torch.device, threads: Sequence[int], budget: Budget, memory: bool = True
) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """The row of a loss at a shape, and its turns. Both are tried with each number of `threads`, and have the faster one. `memory`: with
    the peaks, which take seconds on the CPU."""
    loss = built(case)
    needs = loss._needs()
    row = {"loss": case, "shape": shape.text(needs), "n": shape.n, "d": shape.size(needs)}
    row |= {"device": device.type, "dtype": "float32"}
    try:
        if why := too_large(case, shape, None, device):
            return {**row, "peer": "", "note": f"not measured: {why}"}, None
        call = Call(case, shape, device)
        why = "" if case in peer.losses else peer.why_not(case)
        why = why or (f"{peer.name} not measured: {more}" if (more := too_large(case, shape, peer, device)) else "")
        same = ""
        try:
            same = "" if why else same_value(call, peer, case)
        except Exception as error:  # of the peer's code, which may raise anything
            why = f"{peer.name} raises {type(error).__name__}: {error}"
        row |= {"peer": "" if why else peer.name}
        acts = {"kdbench": call.act} | ({} if why else {peer.name: partial(call.act, peer.losses[case])})
        arms = [Arm(name, act, count) for name, act in acts.items() for count in threads]
        turns = interleaved(arms, budget, device)
        own = best(turns, "kdbench")
        row |= {
            "threads": int(own["threads"].iloc[0]),
            **quartiles(own["seconds"]),
            **({"peak_mib": _peak_mib(device, call.act)} if memory else {}),
        }
        if not why:
            other = best(turns, peer.name)
            row |= {f"peer_{name}": value for name, value in quartiles(other["seconds"]).items()}
            row |= {"peer_threads": int(other["threads"].iloc[0]), **ratio(own, other), "same_value": same}
            row |= {"peer_peak_mib": _peak_mib(device, partial(call.act, peer.losses[case]))} if memory else {}
        row |= {"rounds": int(turns["round"].max()) + 1, "note": why}
        return row, named(turns, loss=case, shape=row["shape"])
    except KdbenchError as error:
        return {**row, "peer": "", "note": f"not measured: {error}"}, None


def _peak_mib(device: torch.device, act: Callable[[], Any]) -> float:
    peak = peak_bytes(device, act)
    return math.nan if peak is None else peak / 2**20


COLUMNS = (
    *("loss", "shape", "n", "d", "device", "threads", "dtype", "median_ms", "iqr_ms", "peak_mib", "peer", "peer_threads"),
    *("peer_median_ms", "peer_iqr_ms", "peer_peak_mib", "ratio", "ratio_q1", "ratio_q3", "same_value", "rounds", "note"),
)


def run(
    peer: Peer, cases: Sequence[str], device: torch.device, threads: Sequence[int], budget: Budget, quick: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of the losses, and the turns of all."""
    rows, turns = [], []
    for case in cases or every_case(peer):
        needs = built(case)._needs()
        for shape in _served(case, shapes(needs, quick)):
            print(f"{case}, {shape.text(needs)}", file=sys.stderr, flush=True)
            row, own = measured(case, shape, peer, device, threads, budget, not quick)
            rows.append(row)
            turns += [] if own is None else [own]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)), pd.concat(turns) if turns else pd.DataFrame()


def every_case(peer: Peer) -> list[str]:
    """Every loss of kdbench with its default preset, and with the presets that the peer has."""
    return sorted({*parts.names("loss"), *peer.losses})


def _served(case: str, asked: list[Shape]) -> Iterator[Shape]:
    """The shapes, or larger maps where the loss refuses them."""
    refused: Mapping[Any, bool] = {}
    for shape in asked:
        if shape.stages not in refused:
            refused = {**refused, shape.stages: _refuses(case, replace(shape, n=4))}
        if not refused[shape.stages]:
            yield shape
        elif shape.stages == TINY_MAPS:
            yield replace(shape, stages=TINY_LARGE_MAPS)
        elif shape.stages in (None, MAPS[0]):  # once for each batch size
            yield replace(shape, n=shape.n // FIELDS, stages=LARGE_MAPS) if shape.stages else shape


def _refuses(case: str, shape: Shape) -> bool:
    try:
        Call(case, shape, torch.device("cpu"))
        return False
    except KdbenchError:
        return True
