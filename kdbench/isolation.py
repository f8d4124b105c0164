"""Runs a part's code without side effects: its random draws start from their own seed, and torch's settings are restored afterwards.
Importing this module loads no torch; entering `isolated` does."""

from __future__ import annotations

import copy
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError

HERE = Path(__file__).parent
Setting = tuple[Callable[[], Any], Callable[[Any], Any]]

_in_use: list[Any] = []
_spare: list[Any] = []
"""NumPy generators, one for each level of nested `isolated`, and those that can be used again: to make one takes long."""


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Draws of torch, NumPy and Python start from `seed`; afterwards the generators go on from where they were. Calls may be nested."""
    import numpy as np
    import torch

    saved = [read() for read, _ in _settings()]
    numpy_before, python_before, torch_before = np.random.get_bit_generator(), random.getstate(), torch.default_generator.get_state()
    # Whatever draws on a device outside of any `isolated` seeds it first; an outer `isolated` goes on.
    nested_numpy = np.random.get_state(legacy=False) if _in_use else None  # with the second half of a pair of normal draws
    cuda_before = torch.cuda.get_rng_state_all() if _in_use and torch.cuda.is_initialized() else None
    # Another generator meanwhile: to save and restore the state of one takes a hundred times as long.
    _in_use.append(_spare.pop() if _spare else np.random.MT19937(0))
    np.random.set_bit_generator(_in_use[-1])
    np.random.seed(seed % 2**32)
    random.seed(seed)
    # As `torch.manual_seed`, which takes a hundred times as long since it also prepares devices that are not in use.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        _spare.append(_in_use.pop())
        np.random.set_bit_generator(numpy_before)
        if nested_numpy is not None and nested_numpy["has_gauss"]:  # all other state is in the generator itself
            np.random.set_state(nested_numpy)
        random.setstate(python_before)
        torch.default_generator.set_state(torch_before)
        if cuda_before is not None:
            torch.cuda.set_rng_state_all(cuda_before)
        for (read, write), value in zip(_settings(), saved, strict=True):
            if read() != value:
                write(value)


def explained(error: Exception) -> str:
    """An error of a part with its line: `ValueError: too few (helper.py:12)`. kdbench's own errors contain the place, and their
    message is enough."""
    text = str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    passing = ("site-packages", "<frozen", "local_imports.py")
    own = [frame for frame in frames if not any(word in frame.filename for word in passing)]
    own = [frame for frame in own if HERE not in Path(frame.filename).parents] or own  # the user's own line before kdbench's
    if isinstance(error, (KdbenchError, SyntaxError)) or not own:
        return text
    return f"{text} ({Path(own[-1].filename).name}:{own[-1].lineno})"


def private(value: Any) -> Any:
    """A copy of inputs or targets that may be changed: tensors with their own memory (in the same layout), in any nesting."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(private(one) for one in value)
    if type(value) is dict:
        return {key: private(one) for key, one in value.items()}
    return copy.deepcopy(value)


@cache
def _settings() -> tuple[Setting, ...]:
    """(read, write) of each process-wide setting of torch that changes numbers, or whether an operation raises."""
    import torch
    from torch.utils import _device

    def flag(owner: Any, name: str) -> Setting:
        return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)

    def autocast(device: str) -> Setting:
        def write(value: tuple[bool, torch.dtype]) -> None:
            torch.set_autocast_enabled(device, value[0])
            torch.set_autocast_dtype(device, value[1])

        return lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)), write

    return (
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        *(flag(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
        (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (lambda: float.fromhex("0x1p-1074") * 1.0 == 0.0, torch.set_flush_denormal),
        *(autocast(device) for device in ("cpu", "cuda")),
        # The default device if it was set, except by a context (`with torch.device(...)`); else None.
        (lambda: _device.CURRENT_DEVICE, torch.set_default_device),
    )
