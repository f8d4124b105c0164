"""Suites that were changed at random, through all that `kdbench plan` reads: each plans, or is refused with sentences, soon and in
little memory. The changes are drawn from seeds, so that a failure can be repeated."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from kdbench.errors import KdbenchError, SuiteError
from kdbench.plan import matrix, probe
from kdbench.plan.suite import read
from kdbench.slurm import cluster

REPOSITORY = Path(__file__).parents[1]
RICH = """
name: rich
description: many keys
task: classification
dataset: {name: digits, per_class: 4, validation: 0.25, split_seed: 1}
recipe: {name: short, epochs: 3, batch_size: 16, lr: 0.02, milestones: [2], warmup_epochs: 1, clip_grad: 2, drop_last: true}
teachers:
  big: {model: small_mobile, widths: [8, 12], min_top1: 0.0, recipe: {epochs: 4}}
  net: {model: cifar_resnet, depth: 8, widths: [4, 4, 8, 8]}
students: {small: {model: small_mobile, widths: [4, 6], input_size: 8, recipe: {lr: 0.1}}, cifar_resnet20: }
pairs: {small: [big, net], cifar_resnet20: net}
objectives:
  ce: {task: 2}
  kd: {temperature: 2, weight: {0: 0, 2: 1}}
  rkd:official_cls: {+kd: {weight: 2, temperature: 3}}
  cka: {weight: 1, weight_from: assumed, pairing: shuffled}
  both: {task: 0.5, terms: [{loss: kd, weight: 2}, {loss: sp, tap: pooled}], weight_from: tuned}
exclude: [{student: small, teacher: net, objective: [cka, both]}]
baselines: [ce, kd]
assumed: [something]
margin: 0.5
numerics: fast
repeats: 2
teacher_seeds: 2
seed: 7
min_top1: 0.1
"+kd": false
"""
CLUSTER = (REPOSITORY / "slurm" / "a100.yaml").read_text() + "retry: {killed: 2}\nslurm_additional_parameters: {requeue: true}\n"
JUNK = [
    *("0", "1", "-1", "2.5", "-0.0", "1e308", "1e-320", "9223372036854775807", "99999999999999999999", "1000000", "1_000", "012", "0x10"),
    *(".nan", ".inf", "true", "null", "~", "yes", "''", "' '", "text", "kd", "resnet18", "resnet18.a1_in1k", "small_mobile", "digits"),
    *("a.py:B", "os:system", "torch.nn:Linear", ":", "../x", "/", "pretrained", "cifar10", "cifar_resnet20", "2020-01-01", "10:30", "<<"),
    *("[]", "{}", "[[]]", "[null]", "[1, 2]", "{a: 1}", "{1: 2}", "{null: 1}", "{[a]: 1}", "[kd, kd]", "{name: kd}", "{model: 3}"),
    *(
        "!!omap [a: 1]",
        "!!set {a}",
        "!!binary aGk=",
        "!!timestamp 2020-01-01",
        "!x 3",
        "!!str 3",
        "!!int x",
        "!!float 1",
        "!!python/name:os",
    ),
    *("*a", "&b [*b]", "&c {x: *c}", "&d {<<: *d}", "{<<: *a}", "{<<: [*a, *a]}", "{<<: 3}", "&a {model: small_mobile}", "&a [1]"),
    *(
        '"\\0"',
        '"\\e[2J"',
        '"\\ud800"',
        '"a\\nb"',
        "'é'",
        "'e\u0301'",
        "'\u202e'",
        "'\U0001f600'",
        "[" * 50 + "]" * 50,
        "'" + "x" * 3000 + "'",
    ),
]
"""Values in YAML's own words."""


class Raw(str):
    """A text that is written without quotes."""


def flow(node: Any) -> str:
    """A tree as YAML: mappings are lists of pairs, so that a key can stand in them twice."""
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, tuple):
        return f"{{{', '.join(f'{flow(key)}: {flow(value)}' for key, value in node)}}}"
    if isinstance(node, list):
        return f"[{', '.join(map(flow, node))}]"
    return json.dumps(node, ensure_ascii=False)


def paired(node: Any) -> Any:
    if isinstance(node, dict):
        return tuple((key, paired(value)) for key, value in node.items())
    return [paired(one) for one in node] if isinstance(node, list) else node


def mutated(node: Any, draw: random.Random, others: list[Any], chance: float = 1.0) -> Any:
    """The tree with one change somewhere in it; `chance` that the change is further inside."""
    if isinstance(node, (tuple, list)) and node and draw.random() < chance:
        place = draw.randrange(len(node))
        inner = list(node)
        one = inner[place]
        if isinstance(node, list):
            inner[place : place + 1] = draw.choice([[], [one, one], [mutated(one, draw, others, 0.8)], [mutated(one, draw, others, 0.8)]])
            return inner
        key, value = one
        renamed = draw.choice(
            [key, str(key)[1:], f"{key}s", str(key).swapcase(), Raw(draw.choice(JUNK)), draw.choice(["model", "loss", "name", "<<"])]
        )
        deeper = (key, mutated(value, draw, others, 0.8))
        inner[place : place + 1] = draw.choice([[], [one, one], [(renamed, value)], [one, (renamed, value)], *([[deeper]] * 12)])
        return tuple(inner)
    if isinstance(node, (int, float)) and draw.random() < 0.5:
        return draw.choice([-node, node * 1000, node / 3, 10**18, 0, str(node)])
    wrapped: list[Any] = [[node], (("model", node),), [node] * 300, ((1, node), (2, node))]
    return draw.choice([Raw(draw.choice(JUNK))] * 4 + [draw.choice(others)] + wrapped)


def noisy(text: str, draw: random.Random) -> str:
    """The text with one change that knows no YAML."""
    place, length = draw.randrange(len(text)), draw.randrange(1, 30)
    lines = text.splitlines()
    line = draw.randrange(len(lines))
    return draw.choice(
        [
            text[:place] + text[place + length :],
            text[:place] + draw.choice([*":,{}[]&*!|>'\"%@`#-?\t\0\r\x1b\ufeff~ \n", "<<: ", "\n---\n", "é", *JUNK]) + text[place:],
            text[:place] + text[place : place + length] * draw.choice([2, 50]) + text[place + length :],
            "\n".join([*lines[:line], *lines[line + 1 :]]),
            "\n".join([*lines[:line], lines[line], *lines[line:]]),
            "\n".join([*lines[:line], " " * draw.randrange(1, 5) + lines[line], *lines[line + 1 :]]),
            text[:place],
        ]
    )


def fuzzed(seed: int, texts: list[str]) -> str:
    draw = random.Random(seed)
    text = draw.choice(texts)
    if draw.random() < 0.3:
        for _ in range(draw.randrange(1, 4)):
            text = noisy(text, draw) or "x"
        return text
    tree = paired(YAML(typ="safe", pure=True).load(text))
    others = [value for _, value in tree]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        tree = mutated(tree, draw, others)
    return "\n".join(f"{flow(key)}: {flow(value)}" for key, value in tree) if isinstance(tree, tuple) else flow(tree)


def plan(path: Path, with_probes: bool) -> None:
    found = matrix.expand(read(path))
    json.dumps(found.manifest().to_json())
    if with_probes:
        probe.probe(found)


def check(seeds: range, texts: list[str], path: Path, through: Callable[[Path, bool], Any]) -> tuple[int, int]:
    """How many suites were accepted and refused. Each is refused with sentences alone, within 5 s; memory grows by less than 300 MB."""
    process = psutil.Process()
    accepted = refused = 0
    before = process.memory_info().rss
    for seed in seeds:
        path.write_bytes(fuzzed(seed, texts).encode("utf-8", "surrogatepass"))
        start = time.process_time()
        try:
            through(path, seed % 10 == 0)
            accepted += 1
        except SuiteError as error:
            refused += 1
            leaks = [one for one in ("Value error", "Input should", "TaggedScalar", "Error(", "Traceback", "\x1b") if one in str(error)]
            assert error.errors and not leaks and len(str(error)) < 100_000, f"seed {seed}: {leaks}: {error}"
        except KdbenchError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed} raises {type(error).__name__}") from error
        assert time.process_time() - start < 5, f"seed {seed} takes {time.process_time() - start:.1f} s"
        assert process.memory_info().rss - before < 300e6, f"seed {seed}: memory grew"
    return accepted, refused


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    path = tmp_path / "suite.yaml"
    path.write_text(RICH)
    plan(path, with_probes=True)  # imports and caches are no growth of a suite's
    return [RICH, RICH, *(one.read_text() for one in sorted((REPOSITORY / "suites").glob("*.yaml")))]


def test_two_hundred_suites_changed_at_random_plan_or_are_refused_with_sentences(tmp_path: Path, texts: list[str]) -> None:
    accepted, refused = check(range(200), texts, tmp_path / "suite.yaml", plan)

    assert accepted > 10 and refused > 100


@pytest.mark.slow
def test_two_thousand_suites_changed_at_random_plan_or_are_refused_with_sentences(tmp_path: Path, texts: list[str]) -> None:
    accepted, refused = check(range(200, 2000), texts, tmp_path / "suite.yaml", plan)

    assert accepted > 100 and refused > 1000


def test_cluster_files_changed_at_random_are_read_or_refused_with_sentences(tmp_path: Path) -> None:
    accepted, refused = check(range(300), [CLUSTER], tmp_path / "cluster.yaml", lambda path, _: cluster.read(path))

    assert accepted > 10 and refused > 150
