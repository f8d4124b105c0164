"""The second noun: what a finished cell leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from kdbench.cell import canonical
from kdbench.validation import AtLeastZero, CellId, Count, Finite, Schema1, Text, check

SCHEMA = 1

SETTING = ("task", "dataset", "student", "objective", "recipe", "numerics")
"""What of a cell's configuration decides what a training step costs; the teacher's net comes besides."""
TIMES = ("step_ms", "data_ms", "teacher_ms", "student_ms", "loss_ms", "optimizer_ms")
COSTS = ("images_per_s", "peak_mem_gib", "added_parameters", "added_flops")

Numbers = dict[str, Finite | None]
Costs = dict[str, AtLeastZero | None]


class _Result(TypedDict):
    metrics: Numbers
    history: list[Any]  # checked by `Record.epochs`
    n_train: Count
    n_test: Count
    diverged_at_step: NotRequired[Count | None]
    diverged_in: NotRequired[str]
    data_fingerprint: NotRequired[Text]
    weights_digest: NotRequired[Text]
    predictions_digest: NotRequired[Text]
    tuned: NotRequired[dict[str, Finite]]


class _Job(TypedDict, total=False):
    id: Text
    restart: int


class _Circumstance(TypedDict, total=False):
    train_s: AtLeastZero | None
    others_at_work: AtLeastZero | None
    device: Text
    host: Text
    python: Text
    torch: Text
    timm: Text
    torchvision: Text
    pillow: Text
    kdbench: Text
    code: Text
    job: _Job | None
    sources: dict[str, Text] | None


class _RecordForm(TypedDict):
    schema: Schema1
    id: CellId
    config: dict[str, Any]
    outcome: Literal["finished", "diverged"]
    result: _Result
    circumstance: _Circumstance


class _Epoch(TypedDict):
    epoch: int
    terms: dict[str, Numbers]
    lr: NotRequired[Finite | None]
    loss: NotRequired[Finite | None]
    val: NotRequired[Numbers]
    test: NotRequired[Numbers]


class _ProfileForm(TypedDict):
    schema: Schema1
    setting: dict[str, Any]
    device: Text
    result: dict[str, Costs | AtLeastZero | None]
    circumstance: _Circumstance


class _FeaturesForm(TypedDict):
    schema: Schema1
    setting: dict[str, Any]
    weights: dict[CellId, Text]
    result: dict[str, Any]
    circumstance: _Circumstance
    digest: Text


class _Stored:
    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}  # type: ignore[call-overload]


def same_images(one: str, other: str) -> bool:
    """Whether two data fingerprints can be of the same images. A fingerprint of files is a hash of their names and sizes and, for smaller
    sets read since version 0.3, after a hyphen one of their content: where one fingerprint has only the first, the first decides."""
    return all(mine == theirs for mine, theirs in zip(one.split("-"), other.split("-"), strict=False))


@dataclass(frozen=True)
class Record(_Stored):
    """`result` is the same for any two honest runs of the cell; `circumstance` may differ between them (times, host, restarts). `result`
    holds: `metrics` (`<metric>_last`, `<primary>_best_val`, `<primary>_best_test`), `history` (one entry an epoch), `n_train`, `n_test`,
    `data_fingerprint`, `weights_digest`, `predictions_digest`, `diverged_at_step` (with `diverged_in` where it was the first stage of the
    cell), and `tuned` (the point of its search, `kdbench/choice.py`). With `ema` in the recipe, metrics, weights and predictions are those
    of the average."""

    id: str
    config: Mapping[str, Any]
    outcome: str
    result: Mapping[str, Any]
    circumstance: Mapping[str, Any]

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """Raises ValueError, naming field and value, where a field is missing, of another type or out of its range. The entries of the
        history are checked by `epochs`, since most readers of ten thousand records need none of them."""
        check(_RecordForm, data)
        return cls(**{name: data[name] for name in ("id", "config", "outcome", "result", "circumstance")})

    def epochs(self) -> list[dict[str, Any]]:
        """The entries of the history, checked. Raises ValueError, naming field and value."""
        try:
            check(list[_Epoch], self.result["history"])
        except ValueError as error:
            raise ValueError(f"result.history.{error}") from None
        return self.result["history"]

    @property
    def divergence(self) -> str:
        """`step 7`, `step 7 of its first stage`: where a training diverged; empty without one."""
        step = self.result.get("diverged_at_step")
        stage = self.result.get("diverged_in")
        return "" if step is None else f"step {step}{f' of its {stage}' if stage else ''}"


@dataclass(frozen=True)
class Profile(_Stored):
    """The measured cost of a setting (`setting_of`) on a device. `result` holds median, q1 and q3 of each of `TIMES` that the setting has,
    of `forward_ms` and `backward_ms` (which make `student_ms`, and are absent before version 0.3), and `COSTS`; `circumstance` is as a
    record's, with `others_at_work`: the share of the processors that other processes kept busy."""

    setting: Mapping[str, Any]
    device: str
    result: Mapping[str, Any]
    circumstance: Mapping[str, Any]

    @classmethod
    def from_json(cls, data: Any) -> Profile:
        """Raises ValueError, naming field and value, where a field is missing, of another type or out of its range."""
        check(_ProfileForm, data)
        if not isinstance(data["result"].get("step_ms"), dict):
            raise ValueError("result: the key 'step_ms' is missing")
        return cls(**{name: data[name] for name in ("setting", "device", "result", "circumstance")})


@dataclass(frozen=True)
class Features(_Stored):
    """What was measured of trained networks' features. `setting` is the question (`store.features`), `weights` the digest of the weights of
    each cell that it is about, `result` the answer; `circumstance` is as a record's."""

    setting: Mapping[str, Any]
    weights: Mapping[str, str]
    result: Mapping[str, Any]
    circumstance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "digest": self._digest()}

    def _digest(self) -> str:
        return hashlib.sha256(canonical([self.setting, self.weights, self.result]).encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, data: Any) -> Features:
        """Raises ValueError where a field is missing or of another type, or the digest is not that of the content."""
        check(_FeaturesForm, data)
        found = cls(**{name: data[name] for name in ("setting", "weights", "result", "circumstance")})
        if found._digest() != data["digest"]:
            raise ValueError("digest: the content was changed after it was written")
        return found


def setting_of(config: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a profile is of, as JSON holds it: `config` of the student's cell, and the teacher's net (`config["student"]` of its cell)."""
    return json.loads(json.dumps({**{name: config[name] for name in SETTING}, "teacher": teacher}))
