"""This process: where it runs, so that others can tell whether it is alive, its SLURM job and its code."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import uuid
from functools import lru_cache
from pathlib import Path

import psutil
from typing_extensions import TypedDict

SNAPSHOT_OF = "snapshot_of"
"""In the folder of a copied code: the file that says of which version it is."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN = f"unknown {uuid.uuid4().hex}"


def place() -> dict[str, str]:
    """Host, boot of its kernel and namespace of its process numbers: only where all three are the same does a process number mean the
    same process. Two containers may share the host's name and the boot."""
    return {"host": socket.gethostname(), "boot": boot(), "namespace": namespace()}


@lru_cache(maxsize=1)
def boot() -> str:
    """The kernel's own name for this boot; elsewhere than on Linux the time of the boot."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def namespace() -> str:
    """The namespace of process numbers; empty where the system has none. Where `/proc` shows another namespace than this process's,
    no number can be looked up: the name is then one that no other process has."""
    if not Path("/proc/self/ns").exists():
        return ""
    try:
        if os.readlink("/proc/self") == str(os.getpid()):
            return os.readlink("/proc/self/ns/pid")
    except OSError:
        pass
    return UNKNOWN


def started(pid: int) -> float | None:
    """When a process of this namespace was started; None when there is no such process."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def started_at(pid: int) -> float | None:
    """When a process was started; None if there is none, or it cannot be seen."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def lives(pid: int, since: float | None) -> bool:
    """Whether the process that was started at `since` is alive, and not another one with the same number (or a zombie)."""
    try:
        process = psutil.Process(pid)
        same = since is None or abs(process.create_time() - since) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OverflowError, ValueError):
        return False


class SlurmJob(TypedDict):
    id: str
    restart: int


def slurm_job() -> SlurmJob | None:
    """The SLURM job (`12`, or an array's element, `12_3`) that this process is part of, and how often SLURM has started it again;
    None outside one."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{index}" if array and index else os.environ["SLURM_JOB_ID"]
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return {"id": name, "restart": int(restart) if restart.isdecimal() else 0}


def code_version() -> str:
    """The commit of this code, with a mark when the tree has changed since; 'installed' outside a checkout."""
    here = Path(__file__).parents[1]
    if (here / SNAPSHOT_OF).exists():  # a copy that was made for a SLURM job
        return (here / SNAPSHOT_OF).read_text().strip()
    if not (here / ".git").exists():
        return "installed"
    try:
        described, new = (
            subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True).stdout.strip()
            for words in (
                ("describe", "--always", "--dirty", "--abbrev=12"),
                ("ls-files", "--others", "--exclude-standard", "--", "kdbench"),
            )
        )
    except OSError:  # a node without git
        return "unknown"
    version = described or "unknown"
    return f"{version}-dirty" if new and not version.endswith("-dirty") else version


def cpu_name() -> str:
    """The processor's model where the system tells it: times on two of them cannot be compared."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu {models[0] if models else platform.processor() or platform.machine()}"
