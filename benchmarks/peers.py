"""What kdbench is compared with: a checkout of another repository, which is never copied or installed, or plain formulas."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import plain
from benchmarks.plain import Formula
from kdbench.errors import UsageError
from kdbench.losses._base import Taps

Loop = Callable[[nn.Module, nn.Module, str, Dataset, int, int], Callable[[], None]]
"""(student, teacher, loss, images, batch size, workers) -> a call that trains the student for an epoch."""

LR, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
WEIGHTS = {"kd": 0.9, "dkd": 1.0, "sp": 3000.0, "rkd": 1.0, "pkt": 30000.0, "at": 1000.0, "nst": 50.0, "cka": 1.0, "cc": 100.0}
TASK = {"kd": 0.1}
"""The weight of the task's loss, where it is not 1."""
PLAIN = "plain formula"


@dataclass(frozen=True)
class Peer:
    """`losses` by kdbench's name (with a preset that is not the default one); `differs` says why a value is another one; `trains` are
    the losses that its loop can train with."""

    name: str
    losses: Mapping[str, Formula]
    loop: Loop
    trains: tuple[str, ...]
    differs: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def why_not(self, loss: str) -> str:
        """Why a loss is not compared."""
        if self.name == PLAIN:
            return f"no plain formula is written here for '{loss}'"
        return f"{self.name} has no loss '{loss}' that can be called with the same features and the same learnable parts"


def peer_at(path: Path | None) -> Peer:
    """The peer in a folder; plain formulas without one. Raises UsageError: the folder is none of the peers that are known here."""
    if path is None:
        return plain_peer()
    for name, (signs, make) in KNOWN.items():
        if all((path / sign).is_file() for sign in signs):
            try:
                return make(path)
            except (ImportError, AttributeError) as error:
                raise UsageError(f"{path} looks like {name}, but its code cannot be imported: {type(error).__name__}: {error}") from error
    looked = "; ".join(f"{name} has {' and '.join(signs)}" for name, (signs, _) in KNOWN.items())
    what = "is not a folder" if not path.is_dir() else "is a checkout of none of the repositories that can be compared"
    raise UsageError(f"{path} {what}. Files that were looked for: {looked}. Give the top folder of a checkout with --peer")


def plain_peer() -> Peer:
    trains = tuple(name for name in WEIGHTS if name in plain.FORMULAS)
    note = "No --peer was given: the baseline is a plain formula, and a plain loop with a DataLoader, both written for this benchmark."
    return Peer(PLAIN, plain.FORMULAS, plain_loop, trains, notes=(note,))


def plain_loop(student: nn.Module, teacher: nn.Module, loss: str, images: Dataset, batch_size: int, workers: int) -> Callable[[], None]:
    """What most released code does: a DataLoader, one teacher forward a step, and the values of loss and accuracy read at each step."""
    from kdbench import parts

    part = parts.load("loss", loss)
    options, formula = part.build(part.options({})), plain.FORMULAS[loss]
    optimizer, loader, device = _sgd(student), _loader(images, batch_size, workers), next(student.parameters()).device

    def epoch() -> None:
        student.train()
        for inputs, targets, _ in loader:
            inputs, targets = inputs.to(device), targets.to(device)
            with torch.no_grad():
                known = teacher(inputs)
            taps = student(inputs)
            total = TASK.get(loss, 1.0) * F.cross_entropy(taps.logits, targets) + WEIGHTS[loss] * formula(options, taps, known, targets)
            total.item(), (taps.logits.argmax(1) == targets).float().mean().item()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

    return epoch


def repdistiller(path: Path) -> Peer:
    zoo = {name: getattr(_module(path / "distiller_zoo", file), name) for file, name in _ZOO.items()}
    loops = _module(path / "helper", "loops")

    def of_stages(name: str, first: int = 1) -> Formula:
        return lambda loss, s, t, target: sum(zoo[name]()(list(s.stages[first:]), list(t.stages[first:])))

    def vid(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
        values = []
        for x, y, regressor, scale in zip(s.stages[1:], t.stages[1:], loss.regressors, loss.log_scales, strict=True):
            theirs = zoo["VIDLoss"](x.shape[1], y.shape[1], y.shape[1])
            theirs.regressor, theirs.log_scale = regressor, scale
            values.append(theirs(x, y))
        return sum(values)

    losses: dict[str, Formula] = {
        "kd": lambda loss, s, t, target: zoo["DistillKL"](loss.temperature)(s.logits, t.logits),
        "sp": lambda loss, s, t, target: zoo["Similarity"]()([s.last], [t.last])[0].sum(),
        "cc:crd": lambda loss, s, t, target: zoo["Correlation"]()(loss.student_embed(s.pooled), loss.teacher_embed(t.pooled)),
        "rkd": lambda loss, s, t, target: zoo["RKDLoss"]()(s.pooled, t.pooled),
        "pkt": lambda loss, s, t, target: zoo["PKT"]()(s.pooled, t.pooled),
        "at": of_stages("Attention"),
        "nst": of_stages("NSTLoss"),
        "kdsvd": of_stages("KDSVD"),
        "fsp": lambda loss, s, t, target: sum(
            zoo["FSP"]([one.shape for one in s.stages], [one.shape for one in t.stages]).forward(s.stages, t.stages)
        ),
        "fitnet": lambda loss, s, t, target: zoo["HintLoss"]()(F.relu(loss.bn(loss.conv(s.stages[loss.hint]))), t.stages[loss.hint]),
        "ft": lambda loss, s, t, target: zoo["FactorTransfer"]()(loss.translator(s.last), loss.paraphraser(t.last)),
        "vid": vid,
    }
    words = {"kd": "kd", "sp": "similarity", "rkd": "rkd", "pkt": "pkt", "at": "attention", "nst": "nst"}
    criteria = {"kd": "DistillKL", "sp": "Similarity", "rkd": "RKDLoss", "pkt": "PKT", "at": "Attention", "nst": "NSTLoss"}

    def loop(student: nn.Module, teacher: nn.Module, loss: str, images: Dataset, batch_size: int, workers: int) -> Callable[[], None]:
        modules = nn.ModuleList([_ListsFeatures(student), _ListsFeatures(teacher)])
        criterion = zoo["DistillKL"](4.0) if loss == "kd" else zoo[criteria[loss]]()
        losses = nn.ModuleList([nn.CrossEntropyLoss(), zoo["DistillKL"](4.0), criterion])
        kd = loss == "kd"  # as its scripts have it: -r 0.1 -a 0.9
        weights = {"gamma": TASK.get(loss, 1.0), "alpha": WEIGHTS[loss] if kd else 0.0, "beta": 0.0 if kd else WEIGHTS[loss]}
        given = SimpleNamespace(distill=words[loss], print_freq=100, **weights)
        optimizer, loader = _sgd(student), _loader(images, batch_size, workers)
        return _silent(lambda: loops.train_distill(1, loader, modules, losses, optimizer, given))

    differs = {"kdsvd": "the sign of a singular vector is not defined, and this code leaves it to the library"}
    note = "RepDistiller: its loss classes and helper/loops.py train_distill, with the nets and images of kdbench."
    return Peer("RepDistiller", losses, loop, tuple(words), differs, (note,))


_ZOO = {
    "KD": "DistillKL", "SP": "Similarity", "CC": "Correlation", "RKD": "RKDLoss", "PKT": "PKT", "AT": "Attention", "NST": "NSTLoss",
    "KDSVD": "KDSVD", "FSP": "FSP", "FitNet": "HintLoss", "FT": "FactorTransfer", "VID": "VIDLoss",
}  # fmt: skip


def mdistiller(path: Path) -> Peer:
    files = {name: _module(path / "mdistiller" / "distillers", name) for name in ("KD", "DKD", "SP", "RKD", "PKT", "AT", "NST", "KDSVD")}
    losses: dict[str, Formula] = {
        "kd": lambda loss, s, t, target: files["KD"].kd_loss(s.logits, t.logits, loss.temperature),
        "dkd": lambda loss, s, t, target: files["DKD"].dkd_loss(s.logits, t.logits, target, loss.alpha, loss.beta, loss.temperature),
        "sp": lambda loss, s, t, target: files["SP"].sp_loss([s.last], [t.last]).sum(),
        "rkd": lambda loss, s, t, target: files["RKD"].rkd_loss(s.pooled, t.pooled),
        "pkt": lambda loss, s, t, target: files["PKT"].pkt_loss(s.pooled, t.pooled),
        "at": lambda loss, s, t, target: files["AT"].at_loss(s.stages[1:], t.stages[1:], 2),
        "nst": lambda loss, s, t, target: files["NST"].nst_loss(s.stages[1:], t.stages[1:]),
        "kdsvd:mdistiller": lambda loss, s, t, target: files["KDSVD"].kdsvd_loss(s.stages[1:], t.stages[1:], loss.k),
    }
    both = {name: {"LOSS": SimpleNamespace(CE_WEIGHT=1.0, FEAT_WEIGHT=WEIGHTS[name.lower()])} for name in ("SP", "RKD", "PKT", "AT", "NST")}
    both["RKD"] |= {"DISTANCE_WEIGHT": 25, "ANGLE_WEIGHT": 50, "PDIST": SimpleNamespace(EPSILON=1e-12, SQUARED=False)}
    both["AT"] |= {"P": 2}
    both["KD"] = {"TEMPERATURE": 4, "LOSS": SimpleNamespace(CE_WEIGHT=0.1, KD_WEIGHT=0.9)}
    both["DKD"] = {"CE_WEIGHT": 1.0, "ALPHA": 1.0, "BETA": 8.0, "T": 4.0, "WARMUP": 20}
    config = SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in both.items()})

    def loop(student: nn.Module, teacher: nn.Module, loss: str, images: Dataset, batch_size: int, workers: int) -> Callable[[], None]:
        with _stub("tensorboardX", SummaryWriter=object):
            engine = _module(path / "mdistiller" / "engine", "trainer")
        trainer = object.__new__(engine.BaseTrainer)
        trainer.distiller = getattr(files[loss.upper()], loss.upper())(_NamesFeatures(student), _NamesFeatures(teacher), config)
        trainer.optimizer, loader = _sgd(student), _loader(images, batch_size, workers)

        def epoch() -> None:
            meters = {name: engine.AverageMeter() for name in ("training_time", "data_time", "losses", "top1", "top5")}
            trainer.distiller.train()
            with _cuda_optional():
                for data in loader:
                    trainer.train_iter(data, 1, meters)

        return epoch

    differs = {"kdsvd:mdistiller": "the sign of a singular vector is not defined, and this code leaves it to the library"}
    note = (
        "mdistiller: its loss functions, distillers and BaseTrainer.train_iter, with the nets and images of kdbench; without a GPU, "
        "its calls of .cuda() return the tensor itself."
    )
    return Peer("mdistiller", losses, loop, ("kd", "dkd", "sp", "rkd", "pkt", "at", "nst"), differs, (note,))


def torchdistill(path: Path) -> Peer:
    _package("torchdistill", path / "torchdistill")
    zoo = importlib.import_module("torchdistill.losses.mid_level")
    place = {"student_module_path": "x", "student_module_io": "output", "teacher_module_path": "x", "teacher_module_io": "output"}
    output = {"student_output_path": "x", "teacher_output_path": "x"}

    def on(tap: str, make: Callable[[Any], nn.Module]) -> Formula:
        return lambda loss, s, t, target: make(loss)({"x": {"output": getattr(s, tap)}}, {"x": {"output": getattr(t, tap)}}, target)

    def cc(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
        kernel = {"type": "gaussian", "gamma": loss.gamma, "max_p": loss.order}
        theirs = zoo.CCKDLoss("x", "x", kernel, "batchmean")
        return theirs({"x": {"output": loss.student_embed(s.pooled)}}, {"x": {"output": loss.teacher_embed(t.pooled)}})

    def at(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
        sides = [{f"{place}": {"output": one} for place, one in enumerate(side.stages)} for side in (s, t)]
        pairs = {str(one): {side: {"io": "output", "path": str(one)} for side in ("student", "teacher")} for one in range(1, len(s.stages))}
        return zoo.ATLoss(pairs)(*sides)

    def softened(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
        theirs = zoo.KDLoss(**place, temperature=loss.temperature, alpha=0.0)
        return loss.temperature**2 * on("logits", lambda _: theirs)(loss, s, t, target)

    losses: dict[str, Formula] = {
        "kd": softened,
        "sp": on("last", lambda loss: zoo.SPKDLoss(**output, reduction="batchmean")),
        "rkd": on("pooled", lambda loss: zoo.RKDLoss(**output, dist_factor=loss.distance, angle_factor=loss.angle, reduction="mean")),
        "pkt": on("pooled", lambda loss: zoo.PKTLoss(**place)),
        "cc:torchdistill": cc,
        "at": at,
        "dist": on("logits", lambda loss: zoo.DISTLoss(**place, beta=loss.beta, gamma=loss.gamma, tau=loss.tau)),
    }
    terms = {
        "kd": ("KDLoss", {**{k: "logits" if v == "x" else v for k, v in place.items()}, "temperature": 4.0, "alpha": 0.1}),
        "sp": ("SPKDLoss", {**dict.fromkeys(output, "last"), "reduction": "batchmean"}),
        "rkd": ("RKDLoss", {**dict.fromkeys(output, "pooled"), "dist_factor": 25.0, "angle_factor": 50.0, "reduction": "mean"}),
        "pkt": ("PKTLoss", {k: "pooled" if v == "x" else v for k, v in place.items()}),
    }

    def loop(student: nn.Module, teacher: nn.Module, loss: str, images: Dataset, batch_size: int, workers: int) -> Callable[[], None]:
        example = _file(path / "examples" / "torchvision" / "image_classification.py")
        key, options = terms[loss]
        wanted = {
            "forward_proc": "forward_batch_only",
            "sequential": [],
            "forward_hook": {"input": [], "output": ["logits", "last", "pooled"]},
        }
        value = {"input": {"is_from_teacher": False, "module_path": ".", "io": "output"}, "target": {"uses_label": True}}
        hard = {"criterion": {"key": "CrossEntropyLoss", "kwargs": {}}, "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": value}}
        soft = {"criterion": {"key": key, "kwargs": options}, "weight": 1.0 if loss == "kd" else WEIGHTS[loss]}
        sub_terms = {"soft": soft} if loss == "kd" else {"ce": {**hard, "weight": 1.0}, "soft": soft}
        loader = {"dataset_id": "images", "kwargs": {"batch_size": batch_size, "num_workers": workers}}
        loader["sampler"] = {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}}
        config = {
            "num_epochs": 1,
            "train_data_loader": loader,
            "teacher": {**wanted, "requires_grad": False},
            "student": {**wanted, "requires_grad": True},
            "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}},
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": sub_terms}},
        }
        device = next(student.parameters()).device
        nets = _HookedFeatures(teacher.eval()), _HookedFeatures(student)
        box = example.get_distillation_box(*nets, {"images": _Unplaced(images)}, config, device, None, False, 1)

        def epoch() -> None:
            box.pre_epoch_process(epoch=0)
            box.teacher_model.eval()
            example.train_one_epoch(box, device, 0, 10**6)

        return _silent(epoch)

    note = "torchdistill: its loss classes, DistillationBox and the train_one_epoch of its example, with the nets and images of kdbench."
    differs = {"sp": "it divides each row by the sum of its absolute values: `normalize(matrix, 1)` means the 1-norm"}
    return Peer("torchdistill", losses, loop, tuple(terms), differs, (note,))


def of_pcka(path: Path) -> Peer:
    with _stub("mmrazor", __path__=[]), _stub("mmrazor.registry", MODELS=SimpleNamespace(register_module=lambda: lambda made: made)):
        released = _file(path / _PCKA).CenterKernelAlignmentRKD

    def unlike(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
        assert loss.inter in (0, loss.intra), "the released code gives both parts the weight of intra"
        maps = [(s.last, t.last)]
        if loss.tap == "levels":  # it fails on a single patch, which is worth nothing
            maps = [pair for pair in zip(s.levels, t.levels, strict=True) if max(pair[0].shape[2:]) > loss.patch]
        formula = released(intra_weight=loss.intra, inter_weight=loss.inter)
        return sum(loss.intra + loss.inter + formula(*pair) for pair in maps)

    note = "PCKA: CenterKernelAlignmentRKD of its mmrazor/models/losses/cka_loss.py, which gives -C: 1 is added, times the weights."
    cases = ("pcka", "pcka:faster_rcnn", "pcka:fpn", "pcka:fpn_faster_rcnn")
    return Peer("PCKA", dict.fromkeys(cases, unlike), plain_loop, (), notes=(note,))


_PCKA = "PCKA/mmrazor/mmrazor/models/losses/cka_loss.py"

KNOWN: Mapping[str, tuple[tuple[str, ...], Callable[[Path], Peer]]] = {
    "RepDistiller": (("distiller_zoo/RKD.py", "helper/loops.py"), repdistiller),
    "mdistiller": (("mdistiller/distillers/RKD.py", "mdistiller/engine/trainer.py"), mdistiller),
    "torchdistill": (("torchdistill/losses/mid_level.py", "torchdistill/core/distillation.py"), torchdistill),
    "PCKA": ((_PCKA,), of_pcka),
}


class _ListsFeatures(nn.Module):
    """A net as RepDistiller calls it."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor, is_feat: bool = False, preact: bool = False) -> Any:
        taps = self.net(inputs)
        return ([*taps.stages, taps.pooled], taps.logits) if is_feat else taps.logits


class _NamesFeatures(_ListsFeatures):
    """A net as mdistiller calls it."""

    def forward(self, inputs: Tensor, *_: Any) -> Any:
        taps = self.net(inputs)
        return taps.logits, {"feats": list(taps.stages), "pooled_feat": taps.pooled}


class _HookedFeatures(_ListsFeatures):
    """A net as torchdistill hooks it: modules whose outputs are the taps."""

    def __init__(self, net: nn.Module):
        super().__init__(net)
        self.last, self.pooled, self.logits = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, inputs: Tensor, *_: Any) -> Tensor:
        taps = self.net(inputs)
        self.last(taps.last), self.pooled(taps.pooled)
        return self.logits(taps.logits)


class _Unplaced(Dataset):
    """Images and targets, without the place of each."""

    def __init__(self, images: Dataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.images[place][:2]


def _sgd(student: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(student.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)


def _loader(images: Dataset, batch_size: int, workers: int) -> DataLoader:
    return DataLoader(images, batch_size=batch_size, shuffle=True, num_workers=workers)


def _package(name: str, folder: Path) -> None:
    """A package whose modules lie in a folder, without running its `__init__`."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    for old in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
        del sys.modules[old]  # of another checkout
    sys.modules[name] = package


def _module(folder: Path, name: str) -> Any:
    package = f"peer_{folder.name}"
    if getattr(sys.modules.get(package), "__path__", None) != [str(folder)]:
        _package(package, folder)
    return importlib.import_module(f"{package}.{name}")


def _file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _stub(name: str, **attributes: Any) -> Iterator[None]:
    """A module that is imported but not needed here, where it is not installed."""
    stub = types.ModuleType(name)
    vars(stub).update(attributes)
    absent = importlib.util.find_spec(name) is None
    if absent:
        sys.modules[name] = stub
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]


@contextlib.contextmanager
def _cuda_optional() -> Iterator[None]:
    own = Tensor.cuda
    if not torch.cuda.is_available():
        Tensor.cuda = lambda self, *_, **__: self
    try:
        yield
    finally:
        Tensor.cuda = own


def _silent(act: Callable[[], Any]) -> Callable[[], None]:
    def call() -> None:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            act()

    return call
