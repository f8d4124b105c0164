"""What a net starts from: pretrained weights of timm's, or a checkpoint of anybody's, matched key by key."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.cell import Cell
from kdbench.errors import DataError
from kdbench.models._base import Model
from kdbench.plan.nets import digest_of_file
from kdbench.through_timm import pretrained_weights

WRAPPED = ("model", "state_dict", "model_state_dict", "net", "state_dict_ema")
"""Where training scripts keep the weights within what they save."""


def start_from(model: Model, config: Mapping[str, Any], cell: Cell, channels: int) -> None:
    """Load the weights that a configuration names; nothing where it names none.

    Raises:
        DataError: they cannot be had, are not those of the plan, or do not fit the model.
    """
    spec = config.get("weights")
    if spec is None:
        return
    if spec["from"] == "timm":
        architecture = config["options"]["architecture"]
        weights = pretrained_weights(architecture, spec["tag"], channels)
        fit(model, weights, f"timm's {architecture}.{spec['tag']}", new_head=spec["head"] == "new")
        return
    path = Path(cell.sources[f"weights {spec['digest']}"])
    if not path.is_file() or digest_of_file(path) != spec["digest"]:
        raise DataError(f"{path} is {'not there any more' if not path.is_file() else 'another file than when the suite was planned'}")
    fit(model, read_weights(path), str(path), new_head=spec["head"] == "new")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors from a checkpoint: a bare state dictionary, one within what a script saved, or safetensors. Runs no code of it.

    Raises:
        DataError: it is damaged, or holds none.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            held: Any = load_file(path)
        else:
            # Scripts keep an accuracy beside the weights, as a scalar of NumPy's, and their options.
            with torch.serialization.safe_globals([*_numpy_scalars(), argparse.Namespace]):
                held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        if refused := re.search(r"GLOBAL (\S+) was not an allowed", str(error)):
            raise DataError(
                f"{path} holds a {refused[1]} beside its weights, and nothing is run that a checkpoint asks for: save its weights alone, "
                "`torch.save(torch.load(path, weights_only=False)['model'], other)`, if you trust it"
            ) from error
        raise DataError(f"{path} is damaged or no checkpoint ({type(error).__name__}: {str(error).partition(chr(10))[0]})") from error
    for key in WRAPPED:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise DataError(f"{path} holds no state dictionary (nor one under {', '.join(WRAPPED)})")
    return {re.sub("^(module\\.)+", "", name): value for name, value in held.items()}


def fit(model: Model, weights: Mapping[str, Tensor], whose: str, new_head: bool) -> None:
    """Load weights whose every key is one of the model's, and the other way round; published layouts are renamed first.

    Raises:
        DataError: with the keys and shapes that do not match; or a new head is asked of a model that has none.
    """
    net = model.plain
    own = net.state_dict()
    if not set(own) & set(weights) or set(weights) - set(own):
        weights = {_renamed(name, model.released_layout): value for name, value in weights.items()}
    dropped = _of_head(model) if new_head else set()
    if new_head and not dropped:
        raise DataError(f"{whose}: `head: new` was asked, and {type(model).__name__} does not say which of its layers is the head")
    # Checkpoints of before PyTorch 0.4.1 do not count batches.
    absent = sorted(name for name in set(own) - set(weights) - dropped if not name.endswith("num_batches_tracked"))
    unknown = sorted(set(weights) - set(own))
    other = sorted(name for name in set(own) & set(weights) - dropped if own[name].shape != weights[name].shape)
    if absent or unknown or other:
        told = [f"{len(absent)} missing ({_few(absent)})"] if absent else []
        told += [f"{len(unknown)} unknown ({_few(unknown)})"] if unknown else []
        shapes = [f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}" for name in other]
        told += [f"{len(other)} of another shape ({_few(shapes)})"] if other else []
        advice = "; `head: new` would draw the head anew" if other and not absent and set(other) <= _of_head(model) else ""
        raise DataError(f"{whose} does not fit the model: of its keys {', '.join(told)}{advice}")
    net.load_state_dict({name: value for name, value in weights.items() if name not in dropped}, strict=False)


def _renamed(name: str, layout: Mapping[str, str]) -> str:
    for pattern, called in layout.items():
        name = re.sub(pattern, called, name)
    return name


def _of_head(model: Model) -> set[str]:
    names = [name for name, module in model.plain.named_modules() if module is model.head]
    return {key for key in model.plain.state_dict() for name in names if key.startswith(f"{name}.")}


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _numpy_scalars() -> list[Any]:
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    renamed = (scalar, "numpy.core.multiarray.scalar")  # as NumPy 1 called it
    return [scalar, renamed, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
