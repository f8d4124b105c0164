"""README and docs: every suite in them is valid, every command line exists, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

import kdbench
from kdbench import parts
from kdbench.cli import main
from kdbench.losses._base import Pair
from kdbench.plan import matrix, probe
from kdbench.plan.suite import read

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHEAP = {"init", "plan", "list", "show", "published"}
"""Verbs whose lines are run; of `report` those whose table lies in the repository."""

BASE = {
    "name": "name: fragment",
    "dataset": "dataset: cifar100",
    "recipe": "recipe: short",
    "teachers": "teachers: {big: {model: cifar_resnet20}}",
    "students": "students: {small: {model: cifar_resnet8}}",
    "objectives": "objectives: [ce, kd]",
}
"""What a piece of a suite is completed with."""


def fenced(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    blocks = re.compile(rf"^```{language}\n(.*?)^```$", re.M | re.S)
    return [(page.name, text) for page in PAGES for text in blocks.findall(page.read_text())]


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every line of a shell block, and of every command in the text, that calls kdbench or make."""
    for page, text in fenced("bash"):
        yield from ((page, shlex.split(line, comments=True)) for line in text.splitlines() if line.startswith(("kdbench ", "make ")))
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        for line in re.findall(r"`((?:kdbench|make) [^`]+)`", prose):
            yield page.name, shlex.split(line)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the reader of the docs has it: the repository's files, and the files that the docs have the reader write."""
    for name in ("suites", "slurm"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "measured").symlink_to(ROOT / "results" / "measured")
    for _, text in fenced("python"):
        if name := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / name[1]).write_text(text)
    net = parts.load("model", "cifar_resnet").build({"depth": 110})
    net.build((3, 32, 32), 100)
    torch.save({"epoch": 240, "model": net.state_dict()}, tmp_path / "ckpt_epoch_240.pth")
    (tmp_path / "resnet50-0676ba61.pth").write_bytes(b"planning reads its bytes alone")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_suite_and_every_piece_of_one_is_planned(folder: Path) -> None:
    pieces = fenced("yaml")
    assert len(pieces) >= 4
    for page, text in pieces:
        keys = re.findall(r"^([\w+]+):", text, re.M)
        rest = [line for key, line in BASE.items() if key not in keys and "name" not in keys]
        path = folder / "mine.yaml"
        path.write_text("\n".join([*rest, text]))
        plan = matrix.expand(read(path))
        probe.probe(plan)
        assert len(plan.cells) > 5, page


def test_every_python_block_that_is_not_a_file_runs(folder: Path) -> None:
    blocks = [text for _, text in fenced("python") if not text.startswith("# ")]
    assert blocks
    for text in blocks:
        exec(compile(text, "docs", "exec"), {})


def test_every_loss_in_a_file_is_one_that_trains(folder: Path) -> None:
    made = [
        (name, line.split()[1].split("(")[0])
        for name in folder.glob("*.py")
        for line in name.read_text().splitlines()
        if line[:6] == "class "
    ]
    assert len(made) == 6
    for path, name in made:
        draw = torch.Generator().manual_seed(0)
        views = [
            kdbench.Taps(
                **{
                    key: torch.randn(16, *size, generator=draw).requires_grad_()
                    for key, size in (("logits", (3,)), ("pooled", (width,)), ("last", (width, 2, 2)))
                },
                levels=[torch.randn(16, 4, side, side, generator=draw).requires_grad_() for side in (8, 4, 2)[width - 5 :]],
                strides=(4, 8, 16)[width - 5 :],
            )
            for width in (5, 6, 5, 6)
        ]
        student, teacher = (replace(one, second_view=second) for one, second in zip(views[:2], views[2:], strict=True))
        loss = kdbench.make_loss(f"{path}:{name}")
        loss.prepare(Pair(student, teacher))
        loss(student, teacher, torch.arange(16) % 3).backward()
        grads = [one.grad for one in student.tensors() if one.grad is not None]
        assert grads and all(torch.isfinite(grad).all() and grad.abs().sum() > 0 for grad in grads)


def test_the_cells_of_every_suite_that_ships_are_as_stated() -> None:
    counts = {path.stem: len(matrix.expand(read(path)).cells) for path in (ROOT / "suites").glob("*.yaml")}
    text = (ROOT / "docs" / "suites.md").read_text()
    assert {name: int(count) for name, count in re.findall(r"^\| \[(\w+)\]\(.*\| (\d+) \|$", text, re.M)} == counts


def test_every_command_line_exists_and_cheap_ones_run(folder: Path) -> None:
    lines = list(command_lines())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    mine = next(text for _, text in fenced("yaml") if text.startswith("name: mine"))
    ran = set()
    for page, (program, verb, *words) in lines:
        message = f"{page}: {program} {verb} {' '.join(words)}"
        if program == "make":
            assert verb in targets and not words, message
            continue
        if verb == "--help":
            continue
        command = main.commands.get(verb)
        assert command is not None, message
        if not words:  # a verb that the text mentions
            continue
        words = [re.sub(r"^\[(.*)\]$", r"\1", word) for word in words]
        try:
            command.make_context(verb, list(words))
        except click.UsageError as error:
            pytest.fail(f"{message}: {error.format_message()}")
        placeholder = any(word.isupper() for word in words)
        cheap = verb in CHEAP or (verb == "report" and (words[0].startswith("published:") or "results/measured" in words[0]))
        if cheap and not placeholder:
            (folder / "mine.yaml").unlink(missing_ok=True)
            if verb != "init":
                (folder / "mine.yaml").write_text(mine)
            done = CliRunner().invoke(main, [verb, *words])
            assert done.exit_code == 0, f"{message}: {done.output}"
            ran.add(verb)
    assert {*CHEAP, "report"} == ran and len(lines) > 40


def test_every_link_to_a_file_leads_to_one_and_names_of_files_in_the_text_exist() -> None:
    for page in PAGES:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^```\{literalinclude\} (\S+)", text, re.M):
            path, _, _ = link.partition("#")
            if path and "://" not in path:
                assert (page.parent / path).exists(), f"{page.name}: {link}"
        for path in re.findall(r"`((?:suites|slurm|docs|tests|benchmarks|kdbench|results/measured)/[\w./-]+)`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_page_is_in_the_table_of_contents_and_readme_is_one_screen() -> None:
    contents = re.search(r"```\{toctree\}(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.S)
    assert contents
    assert {"index", *contents[1].split("\n\n")[1].split()} == {page.stem for page in PAGES} - {"README"}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_the_page_of_losses_has_every_option_and_preset_of_every_loss() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import loss_pages
    finally:
        sys.path.remove(str(ROOT / "docs"))
    assert loss_pages.MARKER in (ROOT / "docs" / "losses.md").read_text()
    text = loss_pages.sections()
    for name in parts.names("loss"):
        made = parts.load("loss", name).make
        section = text.split(f"## `{name}`\n")[1].split("\n## ")[0]
        for word in (*loss_pages.LABELS[:3], *(f"`{name}:{key}`" for key in made.presets)):
            assert word in section, (name, word)


def test_every_warning_of_a_report_is_explained() -> None:
    from kdbench.report import warnings

    text = (ROOT / "docs" / "report_and_statistics.md").read_text()
    table = text[text.index("| code | meaning") :].split("\n\n")[0]
    explained = set(re.findall(r"`([a-z-]+)`", "\n".join(line.split("|")[1] for line in table.splitlines())))
    retired = {"best-of-many", "pairing", "shared-blocks", "survivors", "unequal-repeats"}
    assert set(warnings.CODES) - retired <= explained and not explained & retired


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "losses.html").read_text()
    assert "CKASP.py" in page and "<!-- losses -->" not in page
