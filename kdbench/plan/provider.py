"""Where the outputs of a teacher come from while its students are trained: it is run at each step, or they are kept in a table, if that
saves enough of its forward passes and the disk has room. Importing this module loads no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.filesize import decimal

from kdbench import parts
from kdbench.cell import Cell
from kdbench.isolation import isolated
from kdbench.plan.bundle import Bundle, bundles, model_key
from kdbench.plan.matrix import Plan
from kdbench.plan.probe import Probes
from kdbench.plan.recipe_limits import Said, said_of, second_views_of
from kdbench.recipes._base import MIXING, OF_DATA, Recipe, steps_per_epoch
from kdbench.store import Store
from kdbench.store.rows import CHECK_BYTES, KEY_BYTES, padded

SERVED = frozenset({"logits", "pooled"})
"""The taps in a table: maps would take hundreds of times its space. What some losses compute of a batch of them is kept instead."""

LEAST_SAVED = 0.1
"""The least share of a teacher's forward passes that a table is made for: reading and checking it costs a few per cent of them."""

SHARE_OF_DISK = 0.5
"""The most of the free disk that tables may take: records and checkpoints, and other users, need the rest."""


def keeps_relation(needs: Collection[str], relation: str, couples: str, pairing: str) -> bool:
    """Whether a table keeps what a loss of these properties computes of the teacher's taps of a batch (`Loss.of_teacher`), instead of maps
    that no table holds: for kdbench's own losses, with the teacher's outputs for the images of the batch in their order."""
    own = relation.startswith("kdbench.losses.") and couples == "batch" and pairing == "matched"
    return own and "second_view" not in needs and bool(set(needs) - SERVED)


def why_no_table(recipe: Mapping[str, Any], n_views: int | None, taps: Collection[str]) -> str:
    """Why a table cannot serve students with this recipe, whose losses read these taps of images with so many views (None: no such
    number); empty if it can."""
    complete = Recipe.complete(recipe)
    if complete["bn_groups"] > 1:
        return "batches are divided into groups (`bn_groups`)"
    if any(complete[name] for name in MIXING):
        return "images are mixed"
    if any(complete[name] for name in OF_DATA):
        return "the views of an image are too many for a table"
    if not n_views:
        return "the views of an image are too many for a table, or the dataset does not state their number"
    return f"a loss needs {', '.join(sorted(set(taps) - SERVED))}, which no table holds" if set(taps) - SERVED else ""


@dataclass(frozen=True)
class Provided:
    """Where the outputs of one teacher come from, and `why` if it is run at each step. A table saves the share `saved` of its
    forward passes, which are the share `of_work` of the work of the trainings; it has `most_bytes` when it is full, and this plan fills
    `filled_bytes`."""

    teacher: str
    why: str = ""
    saved: float = 0.0
    of_work: float = 0.0
    most_bytes: int = 0
    filled_bytes: int = 0

    @property
    def provider(self) -> str:
        return "live" if self.why else "table"

    @property
    def text(self) -> str:
        if self.why:
            return f"is run at each step: {self.why}"
        size = f"{decimal(self.most_bytes)} at most"
        if self.filled_bytes < 0.95 * self.most_bytes:
            size += f", about {decimal(self.filled_bytes)} by this suite"
        saves = f"saves {100 * self.saved:.0f} % of its forward passes, which are {100 * self.of_work:.0f} % of the work"
        return f"its outputs are kept in a table ({size}; {saves}; `--teacher live` runs it at each step)"

    def to_json(self) -> dict[str, Any]:
        return {"provider": self.provider, **asdict(self)}


def provided(plan: Plan, probes: Probes, store: Store, on_gpu: bool) -> list[Provided]:
    """The choice of `--teacher auto` for each teacher that students of the plan learn from."""
    taught: dict[str, list[Bundle]] = {}
    for bundle in bundles(cell for cell in plan.cells.values() if cell.config["objective"]["terms"]):
        if bundle.teacher:
            taught.setdefault(bundle.teacher, []).append(bundle)
    room, found = int(SHARE_OF_DISK * store.room_bytes()), []
    for teacher, mine in taught.items():
        there = store.table_bytes(teacher)
        one = _provided(plan, probes, plan.cells[teacher], mine, room + there, on_gpu)
        room -= 0 if one.why else max(one.most_bytes - there, 0)
        found.append(one)
    return found


def tables_of(asked: str, plan: Plan, probes: Probes, store: Store, on_gpu: bool) -> frozenset[str]:
    """The teachers with a table, where `--teacher` is this."""
    teachers = frozenset(cell.depends["teacher"] for cell in plan.cells.values() if "teacher" in cell.depends)
    if asked != "auto":
        return teachers if asked == "table" else frozenset()
    return frozenset(one.teacher for one in provided(plan, probes, store, on_gpu) if not one.why)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _provided(plan: Plan, probes: Probes, teacher: Cell, taught: Sequence[Bundle], room: int, on_gpu: bool) -> Provided:
    first = taught[0].cells[0]
    dataset = parts.from_config("dataset", first.config["dataset"], first.sources)
    whys = [why_no_table(bundle.cells[0].config["recipe"], dataset.n_views, _taps(bundle.cells)) for bundle in taught]
    if all(whys) or dataset.n_train is None:
        return Provided(teacher.id, whys[0] if all(whys) else "the dataset does not state its number of training images")
    tables: dict[int, list[Bundle]] = {}  # one for each size of a batch
    for bundle, why in zip(taught, whys, strict=True):
        if not why:
            tables.setdefault(bundle.cells[0].config["recipe"]["batch_size"], []).append(bundle)
    costs = [_saved(some, dataset.n_train, dataset.n_views) for some in tables.values()]
    passes = sum(_passes(bundle, dataset.n_train) for bundle in taught) or 1  # none if `drop_last` leaves no batch of a trial
    work = sum(probes.work_tflop(plan, bundle) for bundle in taught) or 1
    full = dataset.n_train * dataset.n_views * _row_bytes(probes, teacher)
    relations = _relation_bytes([bundle for some in tables.values() for bundle in some], probes, teacher, dataset.n_train)
    one = Provided(
        teacher.id,
        saved=sum(saved for saved, _ in costs) / passes,
        of_work=sum(probes.teacher_tflop(plan, bundle) for bundle in taught) / work,
        most_bytes=len(costs) * full + relations,
        filled_bytes=sum(int(share * full) for _, share in costs) + relations,
    )
    return Provided(**{**asdict(one), "why": _why_not(one, room, on_gpu and first.config["numerics"]["name"] == "exact")})


def _why_not(table: Provided, room: int, promises_bits: bool) -> str:
    if promises_bits:
        return "on a GPU the outputs in a table may have other bits, which `numerics: exact` rules out"
    if table.saved < LEAST_SAVED:
        return f"a table would save {100 * max(table.saved, 0.0):.0f} % of its forward passes"
    if table.most_bytes > room:
        limit = f"{100 * SHARE_OF_DISK:.0f} % of what is free on the disk"
        return f"a table takes up to {decimal(table.most_bytes)}, and tables may take {decimal(max(room, 0))}, {limit}"
    return ""


def _taps(cells: Iterable[Cell]) -> set[str]:
    """The taps that the losses of some cells read, but of those of which a table keeps relations."""
    from kdbench.losses._base import TAPS

    return {name for loss, is_kept in _losses(cells) for name in (() if is_kept else loss.needs)} & set(TAPS)


def _relations(bundle: Bundle) -> frozenset[str]:
    return frozenset(loss.relation for loss, is_kept in _losses(bundle.cells) if is_kept)


def _losses(cells: Iterable[Cell]) -> Iterator[tuple[Said, bool]]:
    """What the losses of some cells declare, and whether a table keeps what they compute of the teacher."""
    for cell in cells:
        for term, loss in zip(terms := cell.config["objective"]["terms"], said_of(terms, cell.sources), strict=True):
            if loss:
                yield loss, keeps_relation(loss.needs, loss.relation, loss.couples, term["pairing"])


def _passes(bundle: Bundle, n_train: int) -> int:
    """The batches that the teacher of a bundle is run on: at each step those of the images, of other images (`pairing`) and of second
    views."""
    recipe = Recipe.complete(bundle.cells[0].config["recipe"])
    seconds = set().union(*(second_views_of(cell.config["objective"]["terms"], cell.sources) for cell in bundle.cells))
    steps = steps_per_epoch(n_train, recipe["batch_size"], recipe["drop_last"])
    return recipe["epochs"] * steps * _pairings(bundle) * (1 + len(seconds))


def _pairings(bundle: Bundle) -> int:
    """How many orders of the images the teacher sees."""
    return len({term["pairing"] for cell in bundle.cells for term in cell.config["objective"]["terms"]} - {"shuffled"} | {"matched"})


def _saved(some: Iterable[Bundle], n_train: int, n_views: int) -> tuple[float, float]:
    """(the batches that a table saves of some bundles, the share of its rows that they fill).

    In an epoch each image is seen in one of its views at random, and bundles of one repeat see the same batches (common random numbers).
    Whatever is seen is computed once, but by a bundle with relations that none of its repeat had before: it needs the teacher's maps.
    Only whole batches are kept, and one of them is computed again in each epoch."""
    seen: dict[str, int] = {}
    related: dict[str, int] = {}
    relations: set[tuple[str, str]] = set()
    asked = checked = live = whole = 0
    for bundle in some:
        config, stream = bundle.cells[0].config, _stream(bundle)
        epochs, whole = config["recipe"]["epochs"], n_train // config["recipe"]["batch_size"]
        seen[stream] = max(seen.get(stream, 0), epochs)
        mine = {(stream, relation) for relation in _relations(bundle)}
        if mine - relations:
            related[stream], live = max(related.get(stream, 0), epochs), live + epochs * whole
        relations |= mine
        asked, checked = asked + epochs * whole * _pairings(bundle), checked + epochs
    share, of_related = (1 - (1 - 1 / n_views) ** sum(one.values()) for one in (seen, related))
    computed = live + n_views * (share - of_related) * whole
    return asked - computed - min(checked, asked), share


def _stream(bundle: Bundle) -> str:
    """What decides the batches that a bundle sees, of one suite."""
    return json.dumps([bundle.cells[0].config[name] for name in ("role", "seed", "repeat")])


def _relation_bytes(some: Iterable[Bundle], probes: Probes, teacher: Cell, n_train: int) -> int:
    """What the relations of some bundles take."""
    steps: dict[tuple[str, str], int] = {}
    sizes: dict[str, int] = {}
    taps = probes.models[model_key(teacher.config["student"])].taps
    for bundle in some:
        recipe = bundle.cells[0].config["recipe"]
        for relation in _relations(bundle):
            key = _stream(bundle), relation
            steps[key] = max(steps.get(key, 0), recipe["epochs"] * (n_train // recipe["batch_size"]))
            if relation not in sizes:
                sizes[relation] = _kept_bytes(bundle, relation, taps, recipe["batch_size"])
    return sum(count * sizes[relation] for (_, relation), count in steps.items())


def _kept_bytes(bundle: Bundle, relation: str, taps: Any, n: int) -> int:
    """What a table keeps of a relation for a batch of n images."""
    terms = ((term, cell.sources) for cell in bundle.cells for term in cell.config["objective"]["terms"])
    term, sources = next(one for one in terms if (said := said_of([one[0]], one[1])[0]) and said.relation == relation)
    with isolated(0):
        loss = parts.from_config("loss", {**term, "name": term["loss"]}, sources)
        known = loss.known(taps.map(lambda tensor: tensor.new_empty((n, *tensor.shape[1:]))))
    return CHECK_BYTES + KEY_BYTES + sum(padded(tensor.numel() * tensor.itemsize) for tensor in known)


def _row_bytes(probes: Probes, teacher: Cell) -> int:
    """At most: pooled features are float32 in some models where others have the type of the numerics."""
    taps = probes.models[model_key(teacher.config["student"])].taps
    low = 2 if teacher.config["numerics"]["autocast"] else 4
    return CHECK_BYTES + sum(
        padded(tensor.shape[1] * size) for tensor, size in ((taps.logits, low), (taps.pooled, 4)) if tensor is not None
    )
