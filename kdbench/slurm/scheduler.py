"""What SLURM says about jobs: squeue, then scontrol, then sacct. An answer that cannot be read counts as no answer."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from kdbench.errors import ClusterError
from kdbench.submitit_adapter import reason

ANSWER_S = 60.0
LIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}
LIVE |= {"RESV_DEL_HOLD", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
"""States that are not final."""

_MARK = "kdbench-row|"
_SQUEUE = f"{_MARK}%F|%K|%T|%N|%L|%r|%j|row-end"
_SQUEUE_ROW = re.compile(
    re.escape(_MARK) + r"(\d+)\|(\d+|N/A|)\|([A-Z_]+)\|([^|\n]*)\|([^|\n]*)\|([^|\n]*)\|((?:(?!kdbench-row\|).)*?)\|row-end$",
    re.DOTALL | re.MULTILINE | re.ASCII,
)
"""The name comes last, between marks: it may hold any character, also `|` and newlines."""
_SACCT_ROW = re.compile(r"(\d+)(?:_(\d+|\[[\d,:%-]+\]))?\|([A-Z_]+)(?: [^|]*)?\|([^|]*)\|(.*)\n", re.ASCII)
_AT_ONCE = 200


@dataclass(frozen=True)
class JobInfo:
    """A job, or one element of an array, as SLURM describes it. `left` is the time left, `reason` why it waits or ended."""

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
class QueueSnapshot:
    """One look at the queue. `answered`: the controller answered, so a job that is not in `jobs` is unknown to it."""

    answered: bool
    jobs: dict[str, JobInfo] = field(default_factory=dict)
    why: str = ""

    def named(self, name: str) -> list[JobInfo]:
        return [info for info in self.jobs.values() if info.name == name]


@dataclass(frozen=True)
class Limits:
    """What the cluster states: its name, the largest array, and how many jobs this user may have in the queue (None: not stated)."""

    cluster: str
    array: int
    jobs: int | None


class Scheduler:
    """SLURM by its own commands. Stateless."""

    def snapshot(self, wanted: Iterable[str] = (), users: Iterable[str] = ()) -> QueueSnapshot:
        """Every job of this user and of `users` (uids) that the controller remembers. `wanted` are numbers or names of jobs: those
        that squeue does not list are looked for with scontrol and sacct, since a list may be cut off without an error."""
        wanted, uids = list(wanted), sorted({str(os.getuid()), *users})
        listed, why = _squeue(uids)
        jobs, answered = listed or {}, listed is not None
        if missing := _missing(wanted, jobs) or not answered:
            shown, why_not = _scontrol(uids)
            jobs, answered, why = {**(shown or {}), **jobs}, shown is not None, why or why_not
        numbers = [one for one in _missing(wanted, jobs) if re.fullmatch(r"\d+(_\d+)?", one)] if missing else []
        bases = list(dict.fromkeys(one.split("_")[0] for one in numbers))
        for start in range(0, len(bases), _AT_ONCE):
            # A job that runs according to the accounting alone, while the controller does not know it, does not exist.
            recorded = _sacct(bases[start : start + _AT_ONCE])
            jobs = {**{job: info for job, info in recorded.items() if not (answered and info.is_live)}, **jobs}
        return QueueSnapshot(answered, jobs, why)

    def detail(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says about one job; empty when it says nothing."""
        text, _ = _ask("scontrol", "show", "job", "--oneliner", job) if job else (None, "")
        found = _fields(text or "")
        return found if "JobId" in found else {}

    def limits(self, account: str | None = None) -> Limits:
        """What holds for this user's jobs (of one `account`). Raises ClusterError when SLURM is not there or does not answer."""
        text, why = _ask("scontrol", "show", "config")
        config = dict(re.findall(r"^(\w+)\s+= (.*?)\s*$", text or "", re.MULTILINE))
        if "ClusterName" not in config:
            raise ClusterError(f"SLURM does not answer ({why or _unreadable('scontrol', text)}): nothing was submitted")
        stated = _numbers(config.get("MaxJobCount", ""))
        asked = ("show", "assoc", f"user={_user_name()}", "format=Cluster,Account,MaxSubmit,GrpSubmit")
        rows = [line.split("|") for line in (_ask("sacctmgr", "--noheader", "--parsable2", *asked)[0] or "").splitlines()]
        here = [row for row in rows if len(row) >= 4 and row[0] == config["ClusterName"] and account in (None, row[1])]
        mine = [_numbers(*row[2:4]) for row in here]
        if mine and all(mine):  # SLURM decides which association a job belongs to: the most generous one is assumed
            stated.append(max(min(numbers) for numbers in mine))
        tasks = re.findall(r"max_array_tasks=(\d+)", config.get("SchedulerParameters", ""), re.ASCII)
        arrays = _numbers(config.get("MaxArraySize", ""), *tasks) or [1001]
        return Limits(config["ClusterName"], max(min(arrays), 1), min(stated, default=None))

    def requeue(self, job: str) -> str:
        """Put a running job back into the queue. Returns SLURM's reason for refusing; empty when it did."""
        return "the number of this job is not known" if not job else _ask("scontrol", "requeue", job)[1]

    def cancel(self, jobs: Sequence[str]) -> str:
        """Returns SLURM's reason for refusing; empty when it did."""
        return _ask("scancel", *jobs)[1]


def _ask(command: str, *arguments: str) -> tuple[str | None, str]:
    """(what a command printed, or None; why it gave no answer)."""
    if shutil.which(command) is None:
        return None, f"there is no {command} on the PATH"
    # A user's own formats and filters (SQUEUE_STATES, SLURM_TIME_FORMAT, ...) would change the answer.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    environment |= {"LC_ALL": "C", "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}
    try:
        done = subprocess.run([command, *arguments], capture_output=True, timeout=ANSWER_S, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return None, f"{command} did not answer within {ANSWER_S:g} s"
    except (OSError, ValueError) as error:
        return None, f"{command} cannot be run: {error}"
    text, errors = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    return (None, reason(errors) or reason(text) or f"{command} ended with {done.returncode}") if done.returncode else (text, "")


def _squeue(uids: Sequence[str]) -> tuple[dict[str, JobInfo] | None, str]:
    text, why = _ask("squeue", "--noheader", "--array", "--states=all", f"--user={','.join(uids)}", "-o", _SQUEUE)
    if text is None:
        return None, why
    rows = _SQUEUE_ROW.findall(text)
    last = text.rsplit("\n", 1)[-1]
    if len(rows) != text.count(_MARK) or (last and _MARK.startswith(last)):
        return None, _unreadable("squeue", text)
    jobs = [
        JobInfo(array if index in ("N/A", "") else f"{array}_{index}", name, state, node, left, reason)
        for array, index, state, node, left, reason, name in rows
    ]
    return {info.job: info for info in jobs}, ""


def _scontrol(uids: Collection[str]) -> tuple[dict[str, JobInfo] | None, str]:
    text, why = _ask("scontrol", "show", "job", "--oneliner")
    if text is None:
        return None, why
    _, *records = re.split(r"^(?=JobId=)", f"\n{text}", flags=re.MULTILINE)
    found: dict[str, JobInfo] = {}
    for record in records:
        name, fields = re.search(r" JobName=(.*?) UserId=\S*\((\d+)\) ", record, re.DOTALL), _fields(record)
        if name is None or not re.fullmatch(r"[A-Z_]+", fields.get("JobState", "")) or not record.endswith("\n"):
            return None, _unreadable("scontrol", record)
        if name[2] in uids:
            node = fields.get("NodeList", "").replace("(null)", "")
            for job in _elements(fields.get("ArrayJobId", fields["JobId"]), fields.get("ArrayTaskId", "")):
                found[job] = JobInfo(job, name[1], fields["JobState"], node, "", fields.get("Reason", ""))
    return (found, "") if records or "No jobs" in text else (None, _unreadable("scontrol", text))


def _sacct(bases: Sequence[str]) -> dict[str, JobInfo]:
    """What the accounting says; lines that cannot be read are left out, since these jobs are looked for as a last resort."""
    columns = "JobID,State,NodeList,JobName"
    text, _ = _ask("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(bases)}", "-o", columns)
    rows = [row.groups(default="") for line in (text or "").splitlines(keepends=True) if (row := _SACCT_ROW.fullmatch(line))]
    return {
        job: JobInfo(job, name, state, "" if node == "None assigned" else node)
        for base, index, state, node, name in rows
        for job in _elements(base, index)
    }


def _missing(wanted: Iterable[str], jobs: dict[str, JobInfo]) -> list[str]:
    known = {*jobs, *(info.name for info in jobs.values())}
    return [one for one in wanted if one not in known]


def _fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(?<!\S)([\w:/]+)=(\S*)", line))


def _numbers(*texts: str) -> list[int]:
    return [int(text) for text in texts if re.fullmatch(r"\d+", text, re.ASCII)]


def _unreadable(command: str, text: str | None) -> str:
    return f"the answer of {command} cannot be read: {(text or '').strip()[:60]!r}"


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # no entry in passwd, as in containers and where the directory service does not answer
        return str(os.getuid())


def _elements(base: str, indices: str) -> list[str]:
    """`12` and `[3-5,7%2]` -> 12_3, 12_4, 12_5, 12_7."""
    if not indices:
        return [base]
    ranges = re.findall(r"(\d+)(?:-(\d+)(?::(\d+))?)?", indices.partition("%")[0], re.ASCII)
    return [f"{base}_{index}" for first, last, step in ranges for index in range(int(first), int(last or first) + 1, int(step or 1) or 1)]
