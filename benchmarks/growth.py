"""How times grow with the batch, the width, students, epochs, cells and repeats: slopes on logarithmic axes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import seaborn
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from benchmarks.losses import Call, Shape
from benchmarks.overhead import n_cells, planning
from benchmarks.timing import Arm, Budget, exponent, interleaved, quartiles
from benchmarks.training import Nets, Quiet, benches
from kdbench.report import report_command
from kdbench.report.figures.draw import applied, rendered
from kdbench.report.write import ReportOptions
from kdbench.train.loop import train

Point = tuple[str, str, float, Callable[[], Any]]
"""(quantity, what is timed, size, call)"""

LOSSES = ("sp", "cc", "rkd", "cka", "pkt")
SIZES = {
    "n": (32, 64, 128, 256),
    "d": (256, 512, 1024, 2048),
    "students": (1, 2, 4, 8),
    "epochs": (1, 2, 4, 8),
    "cells": (500, 1000, 2000, 5000, 10_000),
    "repeats": (4, 8, 16, 32, 64),
}
QUICK_SIZES = {"n": (8, 16), "d": (8, 16), "students": (1, 2), "epochs": (1, 2), "cells": (40, 80), "repeats": (3, 6)}
WIDTH, BATCH = 512, 128


def run(
    nets: Nets, device: torch.device, budget: Budget, quick: bool, quantities: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[bytes, bytes]]:
    """The measured points, the fitted exponents, and the figure."""
    sizes = QUICK_SIZES if quick else SIZES
    rows = []
    with TemporaryDirectory() as name:
        for quantity in quantities:
            for which, what, size, act in _points(quantity, sizes[quantity], nets, device, quick, Path(name)):
                seconds = interleaved([Arm("", act)], budget, device)["seconds"]
                rows.append({"quantity": which, "what": what, "size": size, **quartiles(seconds), "turns": len(seconds)})
    table = pd.DataFrame(rows)
    fits = [
        {"quantity": quantity, "what": what, "exponent": exponent(own["size"], own["median_ms"])}
        for (quantity, what), own in table.groupby(["quantity", "what"], sort=False)
    ]
    return table, pd.DataFrame(fits), figure(table, pd.DataFrame(fits))


def _points(quantity: str, sizes: Sequence[int], nets: Nets, device: torch.device, quick: bool, folder: Path) -> Iterator[Point]:
    if quantity in ("n", "d"):
        for loss in LOSSES[:2] if quick else LOSSES:
            for size in sizes:
                n, width = (size, sizes[0] if quick else WIDTH) if quantity == "n" else (sizes[0] if quick else BATCH, size)
                maps = ((width,) * 4, (1, 1, 1, 1)) if loss in ("sp", "cka") else None  # maps of one position: n x d
                call = Call(loss, Shape(n, 10, width, maps, 1000), device)
                yield quantity, loss, size, call.act
    elif quantity == "students":
        for size in sizes:
            with benches(nets, ["kd"], device, ["exact"]) as found:
                bench = found["exact"]
                members = [bench.members[0], *(bench.setup.member(bench.members[0].cell) for _ in range(size - 1))]
                yield quantity, "an epoch of a bundle", size, partial(bench.epoch, members, bench.teacher)
    elif quantity == "epochs":
        for size in sizes:
            with benches(Nets(nets.teacher, nets.student, nets.images, nets.batch_size, size), ["kd"], device, ["exact"]) as found:
                bench = found["exact"]
                yield quantity, "a training with its tests", size, partial(train, bench.members, bench.plan, bench.teacher, Quiet())
    elif quantity == "cells":
        for size in sizes:
            yield quantity, "kdbench plan", n_cells(size, folder), planning(size, folder)
    else:
        for size in sizes:
            yield quantity, "kdbench report", size, report_of(size, folder)


def figure(table: pd.DataFrame, fits: pd.DataFrame) -> tuple[bytes, bytes]:
    """A panel for each quantity on logarithmic axes, with the fitted line: PDF and PNG."""
    names = list(dict.fromkeys(table["quantity"]))
    with applied("growth"):
        drawn = Figure(figsize=(6.9, 2.2 * -(-len(names) // 3)), layout="constrained")
        panels = drawn.subplots(-(-len(names) // 3), 3, squeeze=False).flatten()
        for panel, name in zip(panels, names, strict=False):
            own = table[table["quantity"] == name]
            slopes = fits[fits["quantity"] == name].set_index("what")["exponent"]
            labelled = own.assign(what=[f"{what}: {slopes[what]:.2f}" for what in own["what"]])
            seaborn.lineplot(labelled, x="size", y="median_ms", hue="what", marker="o", palette="colorblind", ax=panel)
            logarithmic(panel, name, "ms")
            panel.legend(title="exponent")
        for panel in panels[len(names) :]:
            panel.remove()
        pdf, png, _ = rendered(drawn, "Growth of times")
    return pdf, png


def logarithmic(panel: Any, x: str, y: str) -> None:
    panel.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    for axis in (panel.xaxis, panel.yaxis):  # plain text: the figures of kdbench print no formulas
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))


def report_of(repeats: int, folder: Path) -> Callable[[], Any]:
    """What `kdbench report` does after its imports, of a table of runs: two students, five losses, so many repeats."""
    draws = torch.Generator().manual_seed(0)
    columns = "suite,role,dataset,teacher,student,objective,repeat,teacher_seed,state,top1_last"
    lines = [
        f"large,student,cifar100,big,{student},{loss},{repeat},0,finished,{0.7 + 0.01 * float(torch.randn((), generator=draws)):.4f}"
        for student in ("small", "other")
        for loss in ("ce", "kd", "sp", "rkd", "cka")
        for repeat in range(repeats)
    ]
    path = folder / f"runs{repeats}.csv"
    path.write_text("\n".join([columns, *lines]) + "\n")
    options = ReportOptions()
    return lambda: report_command.run(folder / "none", [str(path)], [], None, options, False, (), io.StringIO())
