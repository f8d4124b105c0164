"""Numerics: set once per process, the same for every cell in it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn


def settle(numerics: Mapping[str, Any], device: torch.device) -> None:
    """Set threads, TF32 and determinism for this process."""
    torch.set_num_threads(numerics["threads"])
    torch.backends.cuda.matmul.allow_tf32 = numerics["tf32"]
    torch.backends.cudnn.allow_tf32 = numerics["tf32"]
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(numerics["name"] == "exact", warn_only=True)


def autocast(numerics: Mapping[str, Any], inputs: Any) -> AbstractContextManager[Any]:
    device = inputs.device.type if isinstance(inputs, torch.Tensor) else "cpu"
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
