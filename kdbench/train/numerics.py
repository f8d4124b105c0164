"""Numerics: set once per process, the same for every cell in it."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

import torch
from torch import nn

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Settings of glibc's `mallopt`."""


def settle(numerics: Mapping[str, Any], device: torch.device) -> None:
    """Set threads, TF32, determinism and what becomes of freed memory, for this process."""
    torch.set_num_threads(numerics["threads"])
    _keep_memory()
    torch.backends.cuda.matmul.allow_tf32 = numerics["tf32"]
    torch.backends.cudnn.allow_tf32 = numerics["tf32"]
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(numerics["name"] == "exact", warn_only=True)


def _keep_memory() -> None:
    """Memory that a step frees stays with the process for the next step. By default glibc gives large blocks back to the system, and to get
    them again page by page takes up to a third of the time of a step of a small net."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            change = ctypes.CDLL(None).mallopt
            change(M_TRIM_THRESHOLD, -1)
            change(M_MMAP_THRESHOLD, 2**25)  # the largest that it takes


def autocast(numerics: Mapping[str, Any], inputs: Any) -> AbstractContextManager[Any]:
    device = getattr(inputs, "device", torch.device("cpu")).type
    low = numerics["autocast"]
    return torch.autocast(device, dtype=getattr(torch, low) if low else None, enabled=low is not None)


def timed_s(device: torch.device, act: Callable[[], Any]) -> float:
    """The seconds that a call takes until its device has finished."""
    await_device = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    await_device()
    began_s = time.perf_counter()
    act()
    await_device()
    return time.perf_counter() - began_s


def laid_out(module: nn.Module, numerics: Mapping[str, Any], device: torch.device) -> nn.Module:
    """The module on its device, in the memory format that the numerics ask for."""
    module = module.to(device)
    return module.to(memory_format=torch.channels_last) if numerics["memory_format"] == "channels_last" else module
