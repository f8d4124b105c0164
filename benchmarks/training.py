"""Training steps of kdbench's loop, in one process: against a bare loop that does the same arithmetic, against the loop of a peer, and of
several students side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms

from benchmarks.peers import WEIGHTS, Peer
from benchmarks.timing import Arm, Budget, best, interleaved, named, quartiles, ratio
from kdbench import parts
from kdbench.cell import Cell
from kdbench.errors import StoppedError, UsageError, nearest
from kdbench.isolation import isolated
from kdbench.losses._base import Batch
from kdbench.plan import matrix
from kdbench.plan.matrix import Plan
from kdbench.plan.provider import SERVED
from kdbench.plan.suite import read
from kdbench.store import Store
from kdbench.train.build import Setup, make_model
from kdbench.train.loop import Position, train
from kdbench.train.member import Member
from kdbench.train.numerics import laid_out, settle
from kdbench.train.stream import BatchPlan, Place
from kdbench.train.teacher import LiveTeacher
from kdbench.train.teacher_table import TabledTeacher

NOISE = f"{Path(__file__).with_name('noise.py')}:Noise"


@dataclass(frozen=True)
class Nets:
    """Teacher and student as a suite writes them: a name, or `{model: ..., ...}`."""

    teacher: str
    student: str
    images: int
    batch_size: int
    epochs: int = 2

    def suite(self, losses: Sequence[str], numerics: str) -> str:
        for name in losses:
            if name.partition(":")[0] not in parts.names("loss"):
                raise UsageError(f"there is no loss '{name}'{nearest(name, parts.names('loss'))}")
        objectives = [f"  {name}: {{weight: {WEIGHTS.get(name, 1.0)}, weight_from: assumed}}" for name in losses]
        lines = [
            "name: speed",
            f"dataset: {{name: '{NOISE}', images: {self.images}}}",
            f"recipe: {{name: short, epochs: {self.epochs}, batch_size: {self.batch_size}, lr: 0.01, milestones: []}}",
            f"numerics: {numerics}",
            f"teachers: {{teacher: {_net(self.teacher, ', min_top1: 0.0, recipe: {epochs: 1}')}}}",
            f"students: {{student: {_net(self.student, '')}}}",
            "objectives:",
            *objectives,
            f"repeats: 1\nbaselines: [{losses[0]}]",
        ]
        return "\n".join(lines) + "\n"

    def plan(self, folder: Path, losses: Sequence[str], numerics: str) -> Plan:
        path = folder / f"{numerics}.yaml"
        path.write_text(self.suite(losses, numerics))
        return matrix.expand(read(path))


def _net(text: str, more: str) -> str:
    if text.startswith("{"):
        return text.rstrip().removesuffix("}") + more + "}"
    stem = "" if any(text.startswith(name) for name in parts.names("model")) else ", stem: small"
    return f"{{model: {text}{stem}{more}}}"


class Quiet:
    """A recorder that writes nothing. An error of a student ends the measurement."""

    def began(self, member: Member, position: Position) -> None: ...
    def save(self, member: Member, position: Position, must: bool = False) -> None: ...
    def finished(self, member: Member) -> None: ...
    def diverged(self, member: Member, step: int) -> None: ...
    def failed(self, member: Member, error: Exception) -> None:
        raise error


class _After:
    def __init__(self, steps: int):
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


class _Filled(TabledTeacher):
    """Recomputes no batch once it has been found right: that is one of an epoch, too large a share of few steps."""

    def begin_epoch(self, places: Sequence[Place], step: int) -> None:
        was = self.is_checked
        super().begin_epoch(places, step)
        self.is_checked = was


@dataclass(frozen=True)
class Bench:
    """Students of one pair in this process, with a teacher that is not trained: its weights do not change the times."""

    setup: Setup
    teacher: LiveTeacher
    plan: BatchPlan
    members: tuple[Member, ...]
    numerics: Mapping[str, Any]

    @classmethod
    def of(cls, cells: Sequence[Cell], teacher: Cell, device: torch.device, folder: Path) -> Bench:
        numerics = cells[0].config["numerics"]
        settle(numerics, device)
        setup = Setup.of(cells[0], folder, device)
        with isolated(0):
            model = laid_out(make_model(teacher, setup.dataset, setup.task), numerics, device)
        live = LiveTeacher(model, teacher, numerics)
        setup = replace(setup, teacher=live)
        return cls(setup, live, BatchPlan.of(cells[0].config, setup.data), tuple(setup.member(cell) for cell in cells), numerics)

    @property
    def steps(self) -> int:
        """The steps that a call of `epoch` takes."""
        return self.plan.steps - 2

    def tabled(self, store: Store) -> TabledTeacher:
        """The teacher with a table, which is filled."""
        table = _Filled(self.teacher, store, {"numerics": self.numerics["name"]}, self.plan, self.members[0].objective.kept, 1)
        for _ in range(2):
            self.epoch(self.members[:1], table)
        return table

    def epoch(self, members: Sequence[Member], teacher: LiveTeacher | None) -> None:
        """The steps of an epoch by kdbench's loop, without the first, in which the sizes of gradients are measured, and without what comes
        once an epoch."""
        settle(self.numerics, self.setup.device)
        try:
            train(members, self.plan, teacher, Quiet(), (0, 1), _After(self.steps))
        except StoppedError:
            return
        raise AssertionError("the epoch has fewer steps than were to be measured")

    def bare(self, member: Member) -> None:
        """The same steps by the shortest loop that does the same arithmetic."""
        settle(self.numerics, self.setup.device)
        term = member.objective.terms[0]
        loss, weight, task = member.objective.losses[0], term["weight"], member.objective.task_weight
        student, teacher, optimizer = member.student, self.teacher.model, member.optimizer
        member.trained.train()
        for index, views in list(self.plan.epoch(0))[1:-1]:
            inputs, targets = self.plan.data.batch("train", index, views)
            with torch.no_grad():
                known = teacher(inputs)
            taps = student(inputs)
            value = loss(taps, known, Batch(targets, torch.as_tensor(index, device=inputs.device)))
            optimizer.zero_grad(set_to_none=True)
            (task * F.cross_entropy(taps.logits, targets) + weight * value).backward()
            optimizer.step()


class Pictures(Dataset):
    """The same images as Pillow pictures with the transforms of public code, for the loops of others."""

    def __init__(self, data: Any, split: str = "train", count: int | None = None):
        images = getattr(data, split)
        self.pixels, self.labels = images.pixels[:count].permute(0, 2, 3, 1).numpy(), images.labels[:count].tolist()
        flips = [transforms.RandomHorizontalFlip()] if data.flip else []
        crops = [transforms.RandomCrop(data.input_shape[1], padding=data.padding), *flips] if split == "train" else []
        self.transform = transforms.Compose([*crops, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int, int]:
        pixels = self.pixels[place]
        return self.transform(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)), self.labels[place], place


def nets_of(bench: Bench) -> tuple[Any, Any]:
    """(student, teacher) for the loop of a peer, with weights of their own."""
    with isolated(0):
        student = bench.setup.student(bench.members[0].cell)
        teacher = make_model(bench.teacher.cell, bench.setup.dataset, bench.setup.task).to(bench.setup.device)
    return student, teacher.eval().requires_grad_(False)


@contextmanager
def benches(nets: Nets, losses: Sequence[str], device: torch.device, numerics: Sequence[str]) -> Iterator[dict[str, Bench]]:
    """By the name of the numerics, students with these losses."""
    with TemporaryDirectory() as name:
        folder, found = Path(name), {}
        for one in numerics:
            plan = nets.plan(folder, losses, one)
            cells = [row.cell for row in plan.rows if row.role == "student"]
            found[one] = Bench.of(cells, plan.teachers[0].cell, device, folder)
        yield found


def for_peers(peer: Peer, bench: Bench, loss: str, workers: int) -> Callable[[], None]:
    """An epoch of a peer's loop over as many steps as `Bench.epoch` takes."""
    images = Pictures(bench.setup.data, count=bench.steps * bench.plan.batch_size)

    def act() -> None:
        if bench.setup.device.type == "cuda":
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.benchmark = True
        epoch()

    epoch = peer.loop(*nets_of(bench), loss, images, bench.plan.batch_size, workers)
    return act


def step(
    nets: Nets, losses: Sequence[str], peer: Peer, device: torch.device, peer_ways: Sequence[tuple[int, int]], budget: Budget
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Steps of one student by each loop. `peer_ways`: (threads, workers) with which the peer is tried."""
    rows, turns = [], []
    for loss in losses:
        with benches(nets, [loss], device, ("exact", "fast")) as found, TemporaryDirectory() as name:
            arms = [Arm("bare loop", partial(found["exact"].bare, found["exact"].members[0]))]
            for numerics, bench in found.items():
                teachers = {"live teacher": bench.teacher}
                if (
                    not (unserved := sorted(bench.members[0].objective.taps_needed - SERVED))
                    and not (tabled := bench.tabled(Store(name))).is_off
                ):
                    teachers["filled table"] = tabled
                arms += [Arm(f"kdbench, {numerics}, {which}", partial(bench.epoch, bench.members, one)) for which, one in teachers.items()]
            steps, count = found["exact"].steps, nets.batch_size
            of_peer = f"loop of {peer.name}" if loss in peer.trains else ""
            for threads, workers in peer_ways if of_peer else ():
                arms.append(Arm(f"{of_peer}, {workers} workers", for_peers(peer, found["exact"], loss, workers), threads))
            times = interleaved(arms, budget, device)
        times["seconds"] /= steps
        notes = [] if of_peer else [f"{peer.name} has no loop for '{loss}'"]
        notes += [f"no table holds the {' and '.join(unserved)} that '{loss}' needs"] if unserved else []
        named_arms = list(dict.fromkeys(times["arm"]))
        ways = {arm: best(times, arm) for arm in named_arms if of_peer and arm.startswith(of_peer)}
        fastest = min(ways, key=lambda arm: ways[arm]["seconds"].median(), default=None)
        for arm in named_arms:
            own = best(times, arm)
            row = {"loss": loss, "teacher": nets.teacher, "student": nets.student, "batch": count, "device": device.type, "loop": arm}
            row |= {"threads": int(own["threads"].iloc[0]), **quartiles(own["seconds"])}
            row |= {"images_per_s": count / float(own["seconds"].median())}
            row |= {"to_bare_loop": ratio(own, best(times, "bare loop"))["ratio"]}
            if fastest:
                row |= {"peer": fastest, **ratio(own, ways[fastest])}
            rows.append({**row, "rounds": int(times["round"].max()) + 1, "note": "; ".join(notes)})
        turns.append(named(times, loss=loss))
    return pd.DataFrame(rows), pd.concat(turns)


def of_suite(
    suite: Path, device: torch.device, budget: Budget, steps: int, most_pairs: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """For each pair of a suite, a step of all its losses in one bundle over the sum of their steps alone, on random images of its size,
    beside (T + kS) / (k (T + S)) with T the teacher's forward and S the rest of a step; last the sums over all pairs."""
    plan, rows, turns = matrix.expand(read(suite)), [], []
    pairs: dict[tuple[str, str], list[Cell]] = {}
    for row in plan.rows:
        config = row.cell.config
        if (
            row.role == "student"
            and row.teacher
            and config["repeat"] == 0
            and config["objective"]["terms"]
            and "tuned" not in config["objective"]
        ):
            pairs.setdefault((row.teacher, row.student), []).append(row.cell)
    if not pairs:
        raise UsageError(f"{suite} has no pair whose losses can be timed: each is tuned, or has no term")
    with TemporaryDirectory() as name:
        for (teacher, student), cells in list(pairs.items())[:most_pairs]:
            dataset = parts.from_config("dataset", cells[0].config["dataset"], cells[0].sources)
            own = [_on_noise(cell, dataset, steps) for cell in cells]
            bench = Bench.of(own, plan.cells[cells[0].depends["teacher"]], device, Path(name))
            (inputs, _), _ = bench.plan.data.batch("train", *next(bench.plan.epoch(0))), None
            forwards = [partial(bench.teacher.taps, inputs) for _ in range(bench.steps)]
            arms = [Arm("bundled", partial(bench.epoch, bench.members, bench.teacher))]
            arms += [Arm(f"alone {place}", partial(bench.epoch, [member], bench.teacher)) for place, member in enumerate(bench.members)]
            arms.append(Arm("teacher", lambda forwards=forwards: [act() for act in forwards]))
            times = interleaved(arms, budget, device)
            times["seconds"] /= bench.steps
            median = times.groupby("arm")["seconds"].median()
            separate, k = float(sum(median[arm.name] for arm in arms if arm.name.startswith("alone"))), len(own)
            rows.append(_of_pair(teacher, student, k, float(median["bundled"]), separate, float(median["teacher"])))
            turns.append(named(times, teacher=teacher, student=student))
    table = pd.DataFrame(rows)
    total = table[["k", "bundled_s", "separate_s", "predicted_s"]].sum()
    ends = {"ratio": total["bundled_s"] / total["separate_s"], "predicted_ratio": total["predicted_s"] / total["separate_s"]}
    last = {"teacher": "sum over all pairs", "student": "", **total, **ends}
    return pd.concat([table, pd.DataFrame([last])], ignore_index=True), pd.concat(turns)


def _of_pair(teacher: str, student: str, k: int, bundled_s: float, separate_s: float, teacher_s: float) -> dict[str, Any]:
    rest_s = separate_s / k - teacher_s
    predicted_s = teacher_s + k * rest_s
    row = {
        "teacher": teacher,
        "student": student,
        "k": k,
        "T_s": teacher_s,
        "S_s": rest_s,
        "bundled_s": bundled_s,
        "separate_s": separate_s,
    }
    return row | {"predicted_s": predicted_s, "ratio": bundled_s / separate_s, "predicted_ratio": predicted_s / separate_s}


def _on_noise(cell: Cell, dataset: Any, steps: int) -> Cell:
    channels, side = dataset.input_shape[:2]
    part = parts.load("dataset", NOISE)
    given = {"images": (steps + 2) * cell.config["recipe"]["batch_size"], "classes": dataset.n_classes, "channels": channels, "side": side}
    noise = {"name": NOISE, "version": part.version_with(given), "options": part.options({**given, "padding": 4 if side > 8 else 1})}
    return replace(cell, config={**cell.config, "dataset": noise})
