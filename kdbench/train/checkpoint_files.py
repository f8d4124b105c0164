"""Files of weights in the forms in which people save them: torch (also its old format, and whole modules), safetensors, NumPy, pickle.

No code of a file is run: torch reads with `weights_only`, and every class or function that a pickle names beside tensors is replaced by a
stand-in, so that nothing of theirs is imported or called.
"""

from __future__ import annotations

import builtins
import io
import pickle
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.errors import DataError, shown

DEEPEST = 5
"""Levels of mappings and lists in a file that are searched for weights."""
TRUST = "Save only its weights, `torch.save(torch.load(path, weights_only=False)['model'], other)`, if you trust it"

RUN_CODE = ("commands", "ctypes", "importlib", "nt", "os", "posix", "pty", "runpy", "shutil", "socket", "subprocess", "sys")
ZIP = b"PK\x03\x04"
BEGINNINGS = (
    (rb"version https://git-lfs", "is a pointer of Git LFS and not the file itself: run `git lfs pull`"),
    (rb"\s*<", "is a web page and not a checkpoint: the download failed"),
    (rb"\s*[{\[]", "is a JSON file: name the file that holds the weights"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|.{257}ustar", "is a packed archive: unpack it"),
    (rb"\x89HDF", "is an HDF5 file: save its weights with `numpy.savez(path, **weights)`"),
    (rb"\x93NUMPY", "is one NumPy array: save all weights under their names with `numpy.savez(path, **weights)`"),
)
"""How files begin that are mistaken for checkpoints, and what to say."""


class Sealed(type):
    """A class of which a pickle can change nothing."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it changes the attribute '{name}' of a class")


class Function:
    """A function of torch, of which a pickle can change nothing."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]):
        object.__setattr__(self, "call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it changes the attribute '{name}' of a function")


class Unknown(metaclass=Sealed):
    """The stand-in for every class and function: calling it gives an empty Counter, the one type to which torch's unpickler adds items as
    well as attributes."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return Counter()


class Items(metaclass=Sealed):
    """The stand-in for lists of another type."""

    def __new__(cls, *_: Any) -> Any:
        return []


class Array(metaclass=Sealed):
    """The stand-in for NumPy's arrays and their types, decoded here (NumPy reads nothing of a pickle), and for objects with another state
    than a mapping."""

    arguments: tuple[Any, ...] = ()
    state: Any = ()

    def __new__(cls, *arguments: Any) -> Array:
        found = super().__new__(cls)
        found.arguments = arguments
        return found

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> Tensor | None:
        """Its numbers; None if it does not hold numbers."""
        data, kind, shape, order = self.arguments if len(self.arguments) == 4 else (None, None, (), "C")
        if self.state:
            _, shape, kind, fortran, data = self.state
            order = "F" if fortran else "C"
        name = kind.arguments[0] if isinstance(kind, Array) else ""
        if not re.fullmatch("[fiub][1248]", str(name)):
            return None
        dtype = np.dtype(name).newbyteorder(kind.state[1] if kind.state else "=")
        return torch.from_numpy(np.frombuffer(data, dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="), copy=True))


NUMPY = [f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray._reconstruct", "numeric._frombuffer")]
STAND_INS: dict[str, type] = {"collections.deque": Items, **dict.fromkeys(["numpy.dtype", "functools.partial", *NUMPY], Array)}


def read_weights(path: Path) -> Any:
    """What a file holds: mappings and lists with tensors in them. Raises DataError: it is damaged, no checkpoint, wants to run code, or
    holds no named tensors."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise DataError(f"{path} is damaged or not a checkpoint (it is empty)")
    if problem := not _is_safetensors(start) and next((text for begins, text in BEGINNINGS if re.match(begins, start, re.DOTALL)), ""):
        raise DataError(f"{path} {problem}")
    if start.startswith(ZIP) and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is damaged: its end is missing (it was not copied or downloaded completely)")
    try:
        held = _reader(path, start)(path)
        named = weights_in(held)
    except DataError:
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = re.sub(r".*WeightsUnpickler error:\s*|\s*Check the documentation of torch.load.*", "", str(error), flags=re.DOTALL)
        reason = shown(reason.strip().partition("\n")[0])
        if "Unsupported operand" in reason:
            reason = "its pickle protocol is not the one of torch: save it again with `torch.save(weights, path)`"
        raise DataError(f"{path} is damaged or not a checkpoint ({type(error).__name__}: {reason})") from error
    if not named:
        raise DataError(f"{path} holds no state dictionary, which is a mapping from names to tensors{described(held)}")
    return held


def weights_in(held: Any) -> dict[str, dict[str, Tensor]]:
    """Every set of named tensors in what a file holds, by the dotted keys that lead to it (empty: the file itself)."""
    seen: set[int] = set()

    def search(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if len(keys) > DEEPEST:
            return
        again = id(value) in seen  # under another key: its own tensors, without what lies below them
        seen.add(id(value))
        if _is_module(value):
            yield ".".join(keys), dict(_of_module(value))
            return
        inside = dict(enumerate(value)) if isinstance(value, (list, tuple)) else {**value, **_attributes(value)}
        named = {key: one for key, one in inside.items() if isinstance(key, str)}
        tensors = {key: one for key, one in named.items() if _is_dense(one)}
        # Beside tensors, arrays are no weights.
        if tensors := tensors or {key: one for key, array in named.items() if (one := _tensor(array)) is not None}:
            yield ".".join(keys), tensors
        for key, one in () if again else (named if isinstance(value, Mapping) else inside).items():
            if isinstance(one, (Mapping, list, tuple)):
                yield from search(one, (*keys, str(key)))

    return {key: tensors for key, tensors in search(held, ()) if tensors} if isinstance(held, (Mapping, list, tuple)) else {}


def described(held: Any) -> str:
    """`; it holds epoch (int), log (list)`: what is at the top of a file."""
    named = {**held, **_attributes(held)} if isinstance(held, Mapping) else {}
    kinds = ", ".join(f"{shown(str(key))} ({type(value).__name__})" for key, value in list(named.items())[:8])
    return f"; it holds {kinds}{', ...' * (len(named) > 8)}" if kinds else f" ({type(held).__name__})"


def _reader(path: Path, start: bytes) -> Callable[[Path], Any]:
    """How to read a file, by its content: people save every format under every name."""
    if start.startswith(ZIP):
        names = zipfile.ZipFile(path).namelist()
        if any(name.endswith(".npy") for name in names):
            return _npz
        if any(name.endswith("/constants.pkl") for name in names):
            raise DataError(f"{path} is a TorchScript program: save its weights, `torch.save(torch.jit.load(path).state_dict(), other)`")
        return _torch
    if _is_safetensors(start):
        return _safetensors
    return _torch if b"l\xfc\x9cF\xf9 j\xa8P\x19" in start[:64] else _plain_pickle  # torch's old magic number


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a header, and a header."""
    return start[4:9] == b"\0\0\0\0{"


def _npz(path: Path) -> Any:
    found = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            with suppress(TypeError, ValueError):  # a text or an object beside the weights
                array = arrays[name]
                found[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    return found


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _torch(path: Path) -> Any:
    try:
        return _torch_with(path, Unknown)
    except (TypeError, ValueError):  # an object whose state is no mapping
        return _torch_with(path, Array)


def _torch_with(path: Path, unknown: type) -> Any:
    """torch's reader names one class at a time that it does not know."""
    allowed = dict(STAND_INS)
    while True:
        try:
            with torch.serialization.safe_globals([(one, name) for name, one in allowed.items()]), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # what torch cannot read is an error
                with open(path, "rb") as file:  # torch would read a path by its suffix
                    return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL (\S+) (was not an allowed|whose module \S+ is blocked)", str(error))
            name = asked[1] if asked and "." in asked[1] else f"builtins.{asked[1]}" if asked else ""
            if not asked or name in allowed:
                raise
            allowed[name] = _stand_in(path, name, unknown)


def _plain_pickle(path: Path) -> Any:
    real: dict[str, Any] = {"collections.OrderedDict": OrderedDict, "_codecs.encode": lambda text, _: text.encode("latin1")}
    real |= {f"torch._utils.{name}": Function(getattr(torch._utils, name)) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")}
    real["torch.storage._load_from_bytes"] = lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            return real.get(full) or STAND_INS.get(full) or _stand_in(path, full)

    with open(path, "rb") as file:
        return Unpickler(file).load()


def _stand_in(path: Path, name: str, unknown: type = Unknown) -> type:
    """Raises DataError for a name with which a file would run code. Its stand-in would not, but such a file is not to be trusted."""
    module, _, function = name.partition(".")
    # An enumeration's member is looked up with `getattr`.
    builtin = module == "builtins" and function != "getattr" and not isinstance(getattr(builtins, function, None), type)
    if builtin or module in RUN_CODE:
        raise DataError(f"{path} holds a {name} beside its weights, and kdbench runs no code of a checkpoint. {TRUST}")
    return unknown


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized and not value.is_meta


def _attributes(value: Any) -> Mapping[str, Any]:
    return vars(value) if type(value) is Counter else {}


def _is_module(value: Any) -> bool:
    return {"_modules", "_parameters", "_buffers"} <= _attributes(value).keys()


def _of_module(module: Any) -> Iterator[tuple[str, Tensor]]:
    """The state of a whole module that was pickled."""
    inside = vars(module)
    for name, tensor in {**inside["_parameters"], **inside["_buffers"]}.items():
        if _is_dense(tensor) and name not in inside.get("_non_persistent_buffers_set", ()):
            yield name, tensor
    for name, child in inside["_modules"].items():
        yield from ((f"{name}.{key}", tensor) for key, tensor in (_of_module(child) if _is_module(child) else ()))


def _tensor(value: Any) -> Tensor | None:
    found = None
    with suppress(TypeError, ValueError):  # a damaged array is no weight
        found = value.tensor() if isinstance(value, Array) else None
    return found
