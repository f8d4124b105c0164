"""`python -m benchmarks losses|step|matrix|overhead|growth`: how fast kdbench is, against plain formulas or the checkout of a peer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from kdbench.errors import KdbenchError

TINY = ("{model: small_mobile, widths: [8, 12]}", "{model: small_mobile, widths: [4, 6]}")
PATH = click.Path(path_type=Path)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Group(click.Group):
    """Turns our errors into one message and exit status 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KdbenchError as error:
            click.echo(f"error: {error}", err=True)
        context.exit(2)


def _options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    found = {
        "peer": click.option(
            "--peer",
            "peer_path",
            type=PATH,
            metavar="PATH",
            help="a checkout of RepDistiller, mdistiller, torchdistill or PCKA  [default: plain formulas]",
        ),
        "out": click.option(
            "--out", type=PATH, default=Path("results/measured/speed"), show_default=True, help="where the tables are written"
        ),
        "name": click.option("--name", metavar="NAME", help="of the written files  [default: the command, and the peer]"),
        "device": click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True),
        "quick": click.option("--quick", is_flag=True, help="small sizes and two rounds: to see that it works"),
        "seconds": click.option(
            "--seconds", type=click.FloatRange(0), default=5.0, show_default=True, help="of measuring for each row; at least 5 rounds"
        ),
        "losses": click.option("--loss", "chosen", multiple=True, metavar="LOSS", help="may be repeated; with a preset as in 'cc:crd'"),
        "teacher": click.option("--teacher", default="resnet34", show_default=True, metavar="MODEL"),
        "student": click.option("--student", default="cifar_resnet8x4", show_default=True, metavar="MODEL"),
        "batch": click.option("--batch", "batch_size", type=click.IntRange(2), default=64, show_default=True),
        "steps": click.option("--steps", type=click.IntRange(1), default=4, show_default=True, help="in each turn"),
    }

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            function = found[name](function)
        return function

    return decorate


NETS = ("teacher", "student", "batch", "steps")
COMMON = ("out", "name", "device", "quick", "seconds")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Measure the speed of kdbench. Tables are printed, and written as CSV and Markdown; a file that is there is replaced.

    A ratio is kdbench's time divided by the peer's, of the same run: below 1 kdbench is faster."""


class _Measurement:
    """What all commands share: device, budget, and writing with the facts of the machine."""

    def __init__(self, command: str, out: Path, name: str | None, device: str, quick: bool, seconds: float, peer_path: Path | None = None):
        import torch

        from benchmarks import output, peers, timing
        from kdbench.train.circumstance import choose_device

        self.peer = peers.peer_at(peer_path)
        self.device, self.quick, self.out = torch.device(choose_device(device)), quick, out
        self.budget = timing.QUICK if quick else timing.Budget(seconds)
        self.slow = timing.QUICK if quick else timing.Budget(seconds, 3, 10)
        self.name = name or (command if self.peer.name == peers.PLAIN else f"{command}_{self.peer.name.lower()}")
        self.beside = output.others_at_work()

    def write(self, table: Any, turns: Any, notes: tuple[str, ...], repetitions: str | None = None, suffix: str = "") -> None:
        from benchmarks import output

        said = repetitions or f"rounds of all arms in turns, {self.budget.least} to {self.budget.most}, each for {self.budget.seconds:g} s"
        text = output.write(self.out, self.name + suffix, table, output.header(self.device, said, self.beside), notes, turns)
        click.echo(text)

    def nets(self, teacher: str, student: str, batch_size: int, steps: int, epochs: int = 2) -> Any:
        from benchmarks.training import Nets

        if self.quick:
            return Nets(*TINY, 16, 4, epochs)
        return Nets(teacher, student, (steps + 2) * batch_size, batch_size, epochs)


@main.command()
@_options("peer", *COMMON, "losses")
@click.option("--threads", type=click.IntRange(1), help="of kdbench and the peer  [default: each is tried with 1 and with all cores]")
def losses(peer_path: Path | None, chosen: tuple[str, ...], threads: int | None, **how: Any) -> None:
    """Forward and backward of each loss: time, peak memory, and whether its value is the peer's."""
    from benchmarks import losses as measured

    own = _Measurement("losses", peer_path=peer_path, **how)
    counts = [threads] if threads else [1] if own.quick else sorted({1, CORES})
    table, turns = measured.run(own.peer, chosen, own.device, counts, own.budget, own.quick)
    memory = "Peaks are those of live tensors during a call, beyond what was there before it; on a GPU, those of its allocator."
    own.write(table, turns, (*own.peer.notes, "The times are of one forward and backward pass in float32.", memory))


@main.command()
@_options("peer", *COMMON, "losses", *NETS)
def step(peer_path: Path | None, chosen: tuple[str, ...], teacher: str, student: str, batch_size: int, steps: int, **how: Any) -> None:
    """One training step by each loop: bare, kdbench's (exact and fast, live teacher and filled table), and the peer's."""
    from benchmarks import training

    own = _Measurement("step", peer_path=peer_path, **how)
    ways = [(1, 0)] if own.quick else [(threads, workers) for threads in sorted({1, CORES}) for workers in sorted({0, CORES})]
    nets = own.nets(teacher, student, batch_size, steps)
    table, turns = training.step(nets, chosen or ("kd", "sp", "rkd"), own.peer, own.device, ways, own.slow)
    once = "What comes once an epoch (sizes of gradients, a recomputed batch of the table, the test) is not in these steps: see `overhead`."
    own.write(table, turns, (*own.peer.notes, once))


@main.command()
@_options("peer", *COMMON, "losses", *NETS)
@click.option("--epochs", type=click.IntRange(2), default=3, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=CORES, show_default="the cores", help="processes of kdbench")
@click.option("--suite", type=PATH, help="instead: one step of each bundle of this suite over its students alone, summed over its pairs")
@click.option("--pairs", type=click.IntRange(1), help="with --suite: only so many pairs")
def matrix(peer_path: Path | None, chosen: tuple[str, ...], teacher: str, student: str, batch_size: int, steps: int,
           epochs: int, rounds: int, jobs: int, suite: Path | None, pairs: int | None, **how: Any) -> None:  # fmt: skip
    """Several losses from start to end: `kdbench run` against the peer's loop once for each loss, at its best threads and workers."""
    own = _Measurement("matrix", peer_path=peer_path, **how)
    if suite is not None:
        from benchmarks import training

        table, turns = training.of_suite(suite, own.device, own.slow, 1 if own.quick else steps, pairs)
        note = "predicted: (T + kS) / (k (T + S)), with the measured forward of the teacher T and the mean rest S of a student's step."
        own.write(table, turns, (note, "The images are random and have the size of the suite's."), suffix="_suite")
        return
    from benchmarks import side_by_side

    tried = [side_by_side.Way(1, 1, 0)] if own.quick else side_by_side.ways(CORES)
    nets = own.nets(teacher, student, batch_size, steps, 2 if own.quick else epochs)
    names = chosen or ("kd", "sp", "rkd", "pkt")[: 2 if own.quick else 4]
    numerics = ("exact",) if own.quick else ("exact", "fast")
    rounds = 1 if own.quick else rounds
    table, turns = side_by_side.matrix(nets, names, own.peer, peer_path, own.device.type, jobs, tried, rounds, numerics)
    notes = (
        f"{nets.images} images, {nets.epochs} epochs, batches of {nets.batch_size}: wall is from the start to the end of all processes; "
        "epoch is training and test of all losses, without start.",
        "fill: what the first run with a table takes longer than one with a live teacher. break_even_runs: so many runs with the filled "
        "table save as much.",
        "There are rows with a table only if it holds what all of the losses need (logits, pooled features, and relations of maps).",
    )
    own.write(table, turns, (*own.peer.notes, *notes), f"{rounds} rounds of all arms in turns")


@main.command()
@_options("peer", "out", "name")
@click.option("--suite", type=PATH, default=Path(__file__).with_name("equivalence.yaml"), show_default="benchmarks/equivalence.yaml")
@click.option("--work", type=PATH, required=True, help="the folder of the trainings; what is there is not trained again")
@click.option("--data", type=PATH, default=Path("data"), show_default=True)
@click.option(
    "--margin", type=click.FloatRange(0, min_open=True), required=True, help="the largest difference that counts as none, in points"
)
@click.option("--jobs", type=click.IntRange(1), default=CORES, show_default="the cores")
def equivalence(peer_path: Path | None, out: Path, name: str | None, suite: Path, work: Path, data: Path, margin: float, jobs: int) -> None:
    """Whether `fast` trains as good students as `exact`, and kdbench as the peer's loop: two one-sided tests over repeats."""
    from benchmarks import equivalence as measured

    own = _Measurement("equivalence", out, name, "cpu", False, 0.0, peer_path)
    table, accuracies = measured.run(suite, work, data, own.peer, peer_path, jobs, margin)
    notes = (
        f"difference: of the test accuracy, in points, paired by repeat, with its {measured.CONFIDENCE:.0%} interval; p: of the larger of "
        "two one-sided t tests against the margin, which was given before.",
        "Students of one repeat start from the same weights. fast has the teachers that were trained with exact. The peer draws its own "
        "order and crops.",
    )
    own.write(table, accuracies, (*own.peer.notes, *notes), f"the repeats of {suite.name}")


@main.command()
@_options(*COMMON, *NETS)
@click.option("--cells", type=click.IntRange(40), default=10_000, show_default=True, help="of the suite that is planned")
def overhead(teacher: str, student: str, batch_size: int, steps: int, cells: int, **how: Any) -> None:
    """The loop against a bare one, checkpoints, `plan` of a large suite, `--help`, and imports."""
    from benchmarks import overhead as measured

    own = _Measurement("overhead", **how)
    nets, starts = own.nets(teacher, student, batch_size, steps), 1 if own.quick else 10
    table, turns = measured.run(nets, "kd", 40 if own.quick else cells, own.device, own.budget, own.slow, starts)
    own.write(table, turns, (f"The loop is to cost at most {measured.LIMIT:.0%} beside the arithmetic.",))


@main.command()
@_options(*COMMON, *NETS)
@click.option(
    "--of", "quantities", multiple=True, type=click.Choice(["n", "d", "students", "epochs", "cells", "repeats"]), help="[default: all]"
)
def growth(teacher: str, student: str, batch_size: int, steps: int, quantities: tuple[str, ...], **how: Any) -> None:
    """How times grow with batch, width, students, epochs, cells and repeats: a figure on logarithmic axes with fitted exponents."""
    from benchmarks import growth as measured
    from kdbench.store.files import Files

    own = _Measurement("growth", **how)
    nets = own.nets(teacher, student, batch_size, steps)
    table, fits, (pdf, png) = measured.run(nets, own.device, own.slow, own.quick, quantities or tuple(measured.SIZES))
    for ending, drawn in (("pdf", pdf), ("png", png)):
        Files(own.out).write_bytes(own.out / f"{own.name}.{ending}", drawn)
    turns = f"{own.slow.least} to {own.slow.most} turns for each point"
    own.write(table, None, (), turns)
    own.write(fits, None, ("exponent: the slope of the times on logarithmic axes, by least squares.",), turns, "_exponents")


@main.command()
@_options("out", "name")
@click.option("--work", type=PATH, required=True, help="the folder of the simulated results; what is there is not measured again")
@click.option("--cells", "sizes", type=click.IntRange(40), multiple=True, help="may be repeated  [default: 1,000 to 100,000]")
@click.option("--by", "ways", type=click.Choice(["pairs", "repeats"]), multiple=True, help="what grows with the cells  [default: both]")
@click.option("--of", "verbs", multiple=True, metavar="VERB", help="what is measured  [default: all, `run` last]")
def scale(out: Path, name: str | None, work: Path, sizes: tuple[int, ...], ways: tuple[str, ...], verbs: tuple[str, ...]) -> None:
    """`plan`, `status`, `run` and `report` of simulated results of up to 100,000 cells: time, memory, calls of the file system, growth."""
    from benchmarks import scale as measured
    from kdbench.store.files import Files

    own = _Measurement("scale", out, name, "cpu", False, 0.0)
    chosen = sorted(sizes or measured.SIZES), ways or measured.WAYS, verbs or measured.VERBS
    table, fits = measured.run(work.resolve(), *chosen, partial(click.echo, err=True))
    for ending, drawn in zip(("pdf", "png"), measured.figure(table), strict=True):
        Files(out).write_bytes(out / f"{own.name}.{ending}", drawn)
    own.write(table, None, measured.NOTES, "1")
    own.write(fits, None, ("The slopes of the numbers on logarithmic axes, by least squares.",), "1", "_exponents")


@main.command("scale-verb", hidden=True)
@click.argument("given")
def scale_verb(given: str) -> None:
    """One verb, for `scale`: prints what it costs."""
    from benchmarks import scale_verb as measured

    click.echo(json.dumps(measured.measured(json.loads(given))))


@main.command("peer-run", hidden=True)
@click.argument("given")
def peer_run(given: str) -> None:
    """One training by the loop of a peer, for `matrix`: prints the seconds of its epochs."""
    from benchmarks import peers, side_by_side

    options = json.loads(given)
    seconds = side_by_side.peer_run(peers.peer_at(options["path"] and Path(options["path"])), options)
    click.echo(json.dumps({"epochs_s": seconds}))


if __name__ == "__main__":
    if not any(word in given for given in sys.argv for word in ("cuda", "auto", "peer-run")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # released code takes a GPU wherever there is one
    main(prog_name="python -m benchmarks")
