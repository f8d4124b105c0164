"""The results folder: the disk's one door."""

from kdbench.process import slurm_job
from kdbench.store.claims import HEARTBEAT_S, STALE_S
from kdbench.store.store import Store

__all__ = ["HEARTBEAT_S", "STALE_S", "Store", "slurm_job"]
