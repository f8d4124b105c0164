"""`python -m kdbench.train.features RESULTS SUITE` measures trained networks' features: CKA of students and teachers, linear probes.

A file is written as soon as its measurement is done, and what is there is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbench import parts
from kdbench.cell import identify
from kdbench.datasets._base import Data, Dataset
from kdbench.errors import DamagedError, DataError, KdbenchError
from kdbench.failure import STOPPED
from kdbench.isolation import explained, isolated, private
from kdbench.losses._base import Taps
from kdbench.process_log import log
from kdbench.record import Features, same_images
from kdbench.store import Store
from kdbench.store.features import asked, path_of, stored, weights_of
from kdbench.train.build import Setup, make_model, point_of
from kdbench.train.circumstance import choose_device, circumstance, installed
from kdbench.train.linear_probe import linear_probe
from kdbench.train.numerics import autocast, laid_out, settle
from kdbench.train.seeds import seed_of
from kdbench.train.similarity import Grams, compared, grams
from kdbench.train.teacher import load_weights
from kdbench.train.worker import Stop

MOST_HELD_BYTES = 2**30
"""The Gram matrices of a teacher are held for its students up to this size; larger ones are computed again for each."""


def main(arguments: Sequence[str] | None = None) -> int:
    reader = argparse.ArgumentParser(prog="kdbench.train.features", description=__doc__)
    reader.add_argument("results", type=Path)
    reader.add_argument("suite")
    reader.add_argument("--data", type=Path, default=Path("data"))
    reader.add_argument("--device", default="auto")
    reader.add_argument("--readers", type=int, default=1, metavar="N", help="processes that read ahead, for data in files")
    reader.add_argument("--cka", action="store_true")
    reader.add_argument("--probe", action="append", default=[], type=json.loads, metavar="JSON", help="{dataset, sources, title}")
    reader.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th measurement from the I-th")
    told = reader.parse_args(arguments)
    store, stop = Store(told.results), Stop()
    probes = {identify(one["dataset"]): Probe(**one) for one in told.probe}
    work = Work(store, told.data, torch.device(choose_device(told.device)), told.readers, probes)
    settings = asked(store.manifest(told.suite), told.cka, [one.dataset for one in probes.values()])
    first, every = told.share
    status = 0
    for setting in settings[first::every]:
        if stop.asked:
            return STOPPED
        try:
            print(json.dumps({"made": work.measured(setting)}), flush=True)
        except Exception as error:  # a user's model or dataset may raise anything
            status = 1
            log(f"skipped: {setting['kind']} of {' and '.join(setting['cells'])}: {explained(error)}")
    return status


@dataclass(frozen=True)
class Probe:
    """A dataset to probe on: its configuration, the folders of users' parts, and its name in tables."""

    dataset: Mapping[str, Any]
    sources: Mapping[str, str]
    title: str


@dataclass
class Work:
    """What measurements share. `probes` are by the hash of the configuration of their datasets."""

    store: Store
    data_folder: Path
    device: torch.device
    readers: int = 1
    probes: Mapping[str, Probe] = field(default_factory=dict)
    _data: dict[str, Data] = field(default_factory=dict)
    _held: tuple[str, list[Grams]] = ("", [])

    def measured(self, setting: Mapping[str, Any]) -> bool:
        """Measure what is asked, unless it is there. Returns whether it was measured. Raises KdbenchError: a cell has no result."""
        weights, path = weights_of(self.store, setting), path_of(self.store, setting)
        try:
            there = stored(self.store, path)
        except DamagedError as error:
            log(f"{error}; it is set aside as {self.store.set_aside(path).name} and made again")
            there = None
        data = self._probe_data(setting) if setting["kind"] == "probe" else None
        fingerprint = data.fingerprint if data else None
        if there and there.weights == weights and there.result.get("data_fingerprint") == fingerprint:
            return False
        result = self._probe(setting, data) if data else self._cka(setting)
        facts = {**circumstance(self.device, 1), **{name: installed(name) for name in ("scikit-learn", "scipy", "numpy")}}
        self.store.write_json(path, Features(setting, weights, result, facts).to_json())
        return True

    def _cka(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        student, teacher = setting["cells"]
        split, data = setting["split"], self._setup(student).data
        batches = shuffled(data.size(split), setting["batch_size"])
        sums = compared(self._teacher_grams(teacher, data, split, batches), grams(self._taps(student, data, split, batches)), batches)
        names = {"teacher_layers": sums.names[0], "student_layers": sums.names[1]}
        return {**names, "cka": sums.cka(), "n_images": sums.n_images, "n_skipped": sums.skipped}

    def _teacher_grams(self, teacher: str, data: Data, split: str, batches: list[np.ndarray]) -> Iterable[Grams]:
        if self._held[0] == teacher:
            return self._held[1]
        every = grams(self._taps(teacher, data, split, batches))
        first = next(every)
        if sum(one.nbytes for one in first.values()) * len(batches) > MOST_HELD_BYTES:
            return itertools.chain([first], every)
        self._held = (teacher, [first, *every])
        return self._held[1]

    def _probe(self, setting: Mapping[str, Any], data: Data) -> dict[str, Any]:
        (cell_id,) = setting["cells"]
        features, labels = {}, {}
        for split in ("train", "test"):
            batches = [index for index, _ in data.in_order(data.size(split))]
            pooled = [taps.pooled.double().cpu() for taps in self._taps(cell_id, data, split, batches) if taps.pooled is not None]
            if not pooled:
                raise KdbenchError("the network has no pooled features")
            features[split], labels[split] = torch.cat(pooled).numpy(), data.targets(split).cpu().numpy()
            if not np.isfinite(features[split]).all():
                raise KdbenchError("its features are not finite")
        found = linear_probe(features["train"], labels["train"], features["test"], labels["test"])
        numbers = {"n_train": len(labels["train"]), "n_test": len(labels["test"]), "n_classes": data.n_classes}
        known = {"title": self.probes[identify(setting["dataset"])].title, "data_fingerprint": data.fingerprint}
        return {**asdict(found), **numbers, "width": features["train"].shape[1], **known}

    def _probe_data(self, setting: Mapping[str, Any]) -> Data:
        """The dataset of a probe, read once; apart from the networks' own, of which `build` holds one."""
        key = identify(setting["dataset"])
        if key not in self._data:
            with isolated(0):
                dataset: Dataset = parts.from_config("dataset", setting["dataset"], self.probes[key].sources)
                self._data[key] = dataset.load(self.data_folder).to(self.device)
            self._data[key].read_with(self.readers)
        return self._data[key]

    def _taps(self, cell_id: str, data: Data, split: str, batches: Sequence[np.ndarray]) -> Iterator[Taps]:
        """The taps of a trained network for each batch, without augmentation, with its own numerics."""
        net, numerics = self._network(cell_id), self.store.cell(cell_id).config["numerics"]
        for inputs, _ in data.batches(split, [(batch, None) for batch in batches]):
            with isolated(0), torch.no_grad(), autocast(numerics, inputs):
                taps: Taps = net(private(inputs))
            yield taps

    def _network(self, cell_id: str) -> nn.Module:
        """What was evaluated of a cell, with its final weights, in evaluation mode."""
        cell, record = self.store.cell(cell_id), self.store.record(cell_id)
        assert record is not None
        settle(cell.config["numerics"], self.device)
        setup = self._setup(cell_id)
        there = record.result["data_fingerprint"]
        if not same_images(there, setup.data.fingerprint):
            raise DataError(f"cell {cell_id} was trained on other images ({there}) than these ({setup.data.fingerprint})")
        weights = load_weights(self.store, record)
        with isolated(0):
            net: nn.Module = make_model(cell, setup.dataset, setup.task)
        try:
            net.load_state_dict(weights)
        except RuntimeError:  # its loss deploys more than the student
            net = setup.with_teacher(self.store, cell).member(cell, point_of(self.store, cell)).deployed
            net.load_state_dict(weights)
        return laid_out(net, cell.config["numerics"], self.device).eval().requires_grad_(False)

    def _setup(self, cell_id: str) -> Setup:
        setup = Setup.of(self.store.cell(cell_id), self.data_folder, self.device)
        setup.data.read_with(self.readers)
        return setup


def shuffled(images: int, size: int) -> list[np.ndarray]:
    """The images in batches, in an order that depends on nothing but their number: folders are ordered by class."""
    # Sorting raw draws gives a permutation that no release of NumPy can change.
    order = np.argsort(np.random.Philox(seed_of("CKA")).random_raw(images), kind="stable")
    return [order[start : start + size] for start in range(0, images, size)]


if __name__ == "__main__":
    sys.exit(main())
