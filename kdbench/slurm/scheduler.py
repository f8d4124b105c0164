"""What SLURM says of its jobs: squeue, then scontrol, then sacct, whichever answers. Nothing here decides anything."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kdbench.errors import ClusterError

ANSWER_S = 60.0
LIVE = frozenset(
    ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT", "RESV_DEL_HOLD")
    + ("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
)
"""States that a job leaves again."""

_SQUEUE = "%F|%K|%j|%T|%N|%L|%r"
_AT_ONCE = 200


@dataclass(frozen=True)
class Seen:
    """A job, or one element of an array, as SLURM tells of it. `left` is the time left, `reason` why it waits or ended."""

    job: str
    name: str
    state: str
    node: str = ""
    left: str = ""
    reason: str = ""

    @property
    def is_live(self) -> bool:
        return self.state in LIVE


@dataclass(frozen=True)
class Sight:
    """One look at the queue. `answered`: the controller did, so that a job which it does not name is none of its jobs."""

    answered: bool
    jobs: dict[str, Seen] = field(default_factory=dict)
    why: str = ""

    def named(self, name: str) -> list[Seen]:
        return [seen for seen in self.jobs.values() if seen.name == name]


@dataclass(frozen=True)
class Limits:
    """What the cluster states: its name, the largest array, and how many jobs this user may have in the queue (None: not said)."""

    cluster: str
    array: int
    jobs: int | None


class Scheduler:
    """SLURM by its own commands. Stateless."""

    def look(self, wanted: Iterable[str] = (), users: Iterable[str] = ()) -> Sight:
        """Every job of this user (and of `users`) that the controller remembers, and those of `wanted` that only the accounting does."""
        jobs: dict[str, Seen] = {}
        whose = sorted({getpass.getuser(), *users})
        told, why = _ask("squeue", "--noheader", "--array", "--states=all", f"--user={','.join(whose)}", "-o", _SQUEUE)
        answered = told is not None
        for line in (told or "").splitlines():
            array, index, name, state, node, left, reason = line.split("|", 6)
            job = array if index in ("N/A", "") else f"{array}_{index}"
            jobs[job] = Seen(job, name, state, node, left, reason)
        if not answered:  # it reads the same memory of the controller's, by another way
            told, said = _ask("scontrol", "show", "job", "--oneliner")
            answered, why = told is not None, why or said
            jobs = _of_scontrol(told or "", whose)
        missing = list(dict.fromkeys(job.split("_")[0] for job in wanted if job not in jobs))
        for start in range(0, len(missing), _AT_ONCE):
            ids = ",".join(missing[start : start + _AT_ONCE])
            told, _ = _ask("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={ids}", "-o", "JobID,JobName,State,NodeList")
            # A job that runs in the books alone, and of which the controller does not know, is none.
            books = {job: seen for job, seen in _of_sacct(told or "").items() if not (answered and seen.is_live)}
            jobs = {**books, **jobs}
        return Sight(answered, jobs, why)

    def detail(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of one job; empty when it says nothing."""
        told, _ = _ask("scontrol", "show", "job", "--oneliner", job)
        return _fields((told or "").splitlines()[0]) if told else {}

    def limits(self, account: str | None = None) -> Limits:
        """What holds for this user's jobs (of one `account`). Raises ClusterError when SLURM is not there or does not answer."""
        told, why = _ask("scontrol", "show", "config")
        if told is None:
            raise ClusterError(f"SLURM does not answer ({why}): nothing was submitted")
        says = dict(re.findall(r"^(\w+)\s+= (.*?)\s*$", told, re.MULTILINE))
        cluster = says.get("ClusterName", "")
        stated = [int(says["MaxJobCount"])] if says.get("MaxJobCount", "").isdigit() else []
        asked = ("show", "assoc", f"user={getpass.getuser()}", "format=Cluster,Account,MaxSubmit,GrpSubmit")
        rows = [line.split("|") for line in (_ask("sacctmgr", "--noheader", "--parsable2", *asked)[0] or "").splitlines()]
        mine = [[int(number) for number in row[2:4] if number.isdigit()] for row in rows if row[0] == cluster and account in (None, row[1])]
        if mine and all(mine):  # of several associations the most generous: which one a job falls to, SLURM decides
            stated.append(max(min(numbers) for numbers in mine))
        arrays = [int(says.get("MaxArraySize", 1001)), *map(int, re.findall(r"max_array_tasks=(\d+)", says.get("SchedulerParameters", "")))]
        return Limits(cluster, max(min(arrays), 1), min(stated, default=None))

    def requeue(self, job: str) -> str:
        """Put a running job back into the queue. Returns why SLURM would not; empty when it did."""
        told, why = _ask("scontrol", "requeue", job)
        return "" if told is not None else why

    def cancel(self, jobs: Sequence[str]) -> str:
        """Returns why SLURM would not; empty when it did."""
        told, why = _ask("scancel", *jobs)
        return "" if told is not None else why


def _ask(command: str, *arguments: str) -> tuple[str | None, str]:
    """(what a command printed, or None; why it did not)."""
    if shutil.which(command) is None:
        return None, f"there is no {command} on the PATH"
    try:
        told = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        return None, f"{command} did not answer within {ANSWER_S:g} s"
    if told.returncode:
        return None, (told.stderr.strip() or told.stdout.strip() or f"{command} ended with {told.returncode}").splitlines()[-1]
    return told.stdout, ""


def _fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\S+?)=(\S*)", line))


def _of_scontrol(told: str, users: Sequence[str]) -> dict[str, Seen]:
    found = {}
    for line in told.splitlines():
        says = _fields(line)
        if "JobId" not in says or says.get("UserId", "").split("(")[0] not in users:
            continue
        node = says.get("NodeList", "").replace("(null)", "")
        for job in _elements(says.get("ArrayJobId", says["JobId"]), says.get("ArrayTaskId", "")):
            found[job] = Seen(job, says.get("JobName", ""), says.get("JobState", ""), node, "", says.get("Reason", ""))
    return found


def _of_sacct(told: str) -> dict[str, Seen]:
    found = {}
    for line in told.splitlines():
        job, name, state, node = line.split("|", 3)
        base, _, index = job.partition("_")
        node = "" if node == "None assigned" else node
        for one in _elements(base, index):
            # "CANCELLED by 1000"
            found[one] = Seen(one, name, state.split(" ")[0], node)
    return found


def _elements(base: str, indices: str) -> list[str]:
    """`12` and `[3-5,7%2]` -> 12_3, 12_4, 12_5, 12_7."""
    if not indices:
        return [base]
    found = []
    for part in indices.strip("[]").split("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += [f"{base}_{index}" for index in range(int(first), int((last or first).split(":")[0]) + 1)]
    return found
