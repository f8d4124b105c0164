"""Where and with what a training runs: the device and the libraries."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
from typing import Any

import torch

from kdbench.errors import KdbenchError
from kdbench.process import code_version, cpu_name, slurm_job
from kdbench.version import VERSION


def choose_device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        # An error, since on the CPU the job would take days and still occupy its GPU.
        raise KdbenchError(
            f"a GPU was requested, but torch {torch.__version__} finds none on {socket.gethostname()}. The machine has no GPU, or its "
            "driver is too old for this torch; `--device cpu` trains without a GPU"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def device_of(name: str, place: int) -> torch.device:
    """The device of a rank at this place among those on this machine: of several GPUs each has one."""
    chosen = torch.device(choose_device(name))
    if chosen.type != "cuda" or not place:
        return chosen
    if place >= (gpus := torch.cuda.device_count()):
        raise KdbenchError(f"each rank needs a GPU of its own, and {socket.gethostname()} shows {gpus}, too few for rank {place} there")
    return torch.device("cuda", place)


def circumstance(device: Any, beside: int, ranks: int = 1) -> dict[str, Any]:
    """Facts that may differ between two runs of the same cell, saved beside the result."""
    return {
        "device": device_name(device),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        # They decode, resize and crop images in files.
        **{name: installed(name) for name in ("timm", "torchvision", "pillow")},
        "kdbench": VERSION,
        "code": code_version(),
        "threads": torch.get_num_threads(),
        "side_by_side": beside,
        **({"ranks": ranks} if ranks > 1 else {}),
        "job": slurm_job(),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def installed(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
