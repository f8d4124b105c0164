"""The verb `init`: a new suite with comments, which plans without an error, or a copy of a shipped file."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kdbench import parts
from kdbench.errors import KdbenchError, PartError, SuiteError, nearest
from kdbench.plan import matrix, probe, small_suite, suite
from kdbench.plan.shipped import FOLDERS, shipped
from kdbench.plan.yaml import checked_suite_name
from kdbench.version import VERSION

SMALL_IMAGE = 64
"""Up to so many pixels a net for ImageNet needs a stem for small images, where it has one."""


def new_suite(name: str, students: Sequence[str], teachers: Sequence[str], dataset: str, objectives: Sequence[str]) -> tuple[Path, int]:
    """Write a suite here: (path, number of cells). Raises KdbenchError, and writes nothing: the file exists, or the suite is wrong."""
    path = _target(name)
    _write(path, _text(path.stem, students, teachers, dataset, objectives))
    try:
        plan = matrix.expand(suite.read(path))
        probe.probe(plan)
    except BaseException as error:
        path.unlink()
        if not isinstance(error, SuiteError):
            raise
        raise SuiteError(re.sub(rf"^{re.escape(str(path))}:\d+: ", "", text) for text in error.errors) from error
    return path, len(plan.cells)


def copy_shipped(name: str, original: str) -> tuple[Path, str]:
    """Copy a shipped suite or cluster file here: (path, which of the two). Raises KdbenchError: the file exists, or `original` does not."""
    path = _target(name)
    for kind in FOLDERS:
        if original in shipped(kind):
            text = shipped(kind)[original].read_text(encoding="utf-8")
            text = re.sub(r"^name: .*$", f"name: {path.stem}", text, count=1, flags=re.M)
            _write(path, f"# A copy of the {kind} {original} of kdbench {VERSION}.\n{text}")
            return path, kind
    raise KdbenchError(f"kdbench ships no file '{original}'{nearest(original, [name for kind in FOLDERS for name in shipped(kind)])}")


def copy_small(name: str, original: str) -> tuple[Path, str]:
    """Write a small copy of a shipped suite, or of one in the current folder, here: (path, `suite`). Raises KdbenchError as `copy_shipped`,
    and SuiteError: the suite is wrong."""
    path, own = _target(name), Path(f"{original.removesuffix('.yaml')}.yaml")
    known = shipped("suite")
    if own.parent != Path() or not (own.is_file() or own.stem in known):
        raise KdbenchError(f"there is no suite '{original}' in the current folder, and kdbench ships none{nearest(original, known)}")
    with resources.as_file(known[own.stem]) if not own.is_file() else nullcontext(own) as found:
        data = small_suite.small(found)
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 130
    yaml.dump({**data, "name": path.stem}, text)
    _write(path, f"# A small copy of the suite {own.stem} (kdbench {VERSION}).\n{text.getvalue()}")
    return path, "suite"


def _target(name: str) -> Path:
    try:
        return Path(f"{checked_suite_name(name.removesuffix('.yaml'))}.yaml")
    except ValueError as error:
        raise KdbenchError(f"'{name}': {error}; it is written into the current folder") from None


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise KdbenchError(f"{path} exists, and is not overwritten: choose another name") from None
    except OSError as error:
        raise KdbenchError(f"{path} cannot be written: {error.strerror}") from error


def _text(name: str, students: Sequence[str], teachers: Sequence[str], dataset: str, objectives: Sequence[str]) -> str:
    task, side = _task_and_side(dataset)
    usual = next(one for one in task.usual if one.side is None or side <= one.side)
    nets = [
        {one: _options(one, side) for one in given} or {chosen[0]: f" {chosen[1]}".rstrip()}
        for given, chosen in ((students, usual.student), (teachers, usual.teacher))
    ]
    alone, metric = task.alone, task.primary()
    chosen = list(dict.fromkeys([alone, *(objectives or task.usual_objectives)]))
    assumed = [one for one in chosen if _needs_weight(one)]
    weight = " {weight: 1, weight_from: assumed}    # no weight was published for it: choose one"
    template = (resources.files("kdbench") / "plan/new_suite.txt").read_text(encoding="utf-8")
    beside_kd = "# +kd: false               # true: for each objective, add one with the KD loss, such as sp+kd\n"
    return template.format(
        name=name,
        dataset=_quoted(dataset),
        in_shell=shlex.quote(dataset),
        recipe=usual.recipe,
        students="\n".join(f"  {_quoted(one)}:{options}" for one, options in nets[0].items()),
        teachers="\n".join(f"  {_quoted(one)}:{options}" for one, options in nets[1].items()),
        student=_quoted(next(iter(nets[0]))),
        teacher=_quoted(next(iter(nets[1]))),
        metric=metric.name,
        alone=alone,
        objectives="\n".join(f"  {_quoted(one)}:{weight if one in assumed else ''}" for one in chosen),
        beside_kd=beside_kd if "kd" in task.usual_objectives else "",
        baselines=f"[{', '.join(one for one in (alone, 'kd') if one in chosen)}]",
        assumed="".join(f"\n  - {_quoted(f'the weight of {one}, for which no value was published')}" for one in assumed) or "[]",
    )


def _task_and_side(dataset: str) -> tuple[Any, int]:
    """The task of a dataset, and the pixels of the longer side of its images; what is wrong with the dataset is reported when the suite is
    planned. Raises KdbenchError: the task names no usual nets."""
    name, side = "classification", SMALL_IMAGE
    try:
        part = parts.load("dataset", dataset, Path())
        name, side = part.make.task, max(map(int, part.build(part.options({})).input_shape[-2:]))
    except PartError:
        pass
    task = parts.load("task", name).make
    if not task.usual:
        raise KdbenchError(f"the task '{name}' of the dataset '{dataset}' names no usual nets and objectives: copy a suite with --from")
    return task, side


def _options(name: str, side: int) -> str:
    return " {stem: small}" if side <= SMALL_IMAGE and _has_small_stem(name) else ""


def _has_small_stem(name: str) -> bool:
    """Whether a name is a model of timm that can be given a stem for small images."""
    if name in (*parts.names("model"), *parts.named("model")) or ":" in name:
        return False
    import torch

    try:
        part = parts.load("model", "timm")
        with torch.device("meta"):
            part.build(part.options({"architecture": name, "stem": "small"})).build((3, 32, 32), 10)
    except KdbenchError:
        return False
    return True


def _needs_weight(objective: str) -> bool:
    """Whether a suite must give the weight of a loss: no source does."""
    name, _, preset = objective.partition(":") if ".py:" not in objective else (objective, "", "")
    try:
        presets = parts.load("loss", name if name in parts.names("loss") else objective, Path()).make.presets
    except PartError:
        return False
    chosen = presets.get(preset) or next(iter(presets.values()), None)
    return chosen is None or chosen.weight is None


def _quoted(text: str) -> str:
    """A text as YAML has it: in quotes where it could be taken for something else."""
    plain = re.fullmatch(r"[A-Za-z_][\w./+ ,-]*(:[\w.]+)*", text) and text.lower() not in ("null", "true", "false")
    return text if plain else json.dumps(text, ensure_ascii=False)
