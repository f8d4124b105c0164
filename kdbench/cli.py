"""The command line: no logic, and nothing heavy imported before a verb needs it."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from kdbench.errors import KdbenchError, SuiteError
from kdbench.version import VERSION
from kdbench.words import PROVIDERS


class _GivenPath(click.Path):
    """A path with `~`, which shells do not expand behind `=`, in quotes or in a variable from a file."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        from kdbench.validation import given_path

        try:
            return given_path(str(value))
        except ValueError as error:
            self.fail(str(error), param, context)


PATH = _GivenPath(path_type=Path)
RESULTS = click.option("--results", type=PATH, default=Path("results"), show_default=True, help="the results folder")
DATA = click.option(
    "--data", type=PATH, default=Path("data"), envvar="KDBENCH_DATA", help="the data folder  [default: $KDBENCH_DATA or ./data]"
)
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="where to train")
JOBS = click.option("--jobs", type=click.IntRange(1), help="parallel processes  [default: the number of cores; with CUDA, of GPUs]")
SUITE = click.argument("suite", type=PATH)


def _is_given(context: click.Context, option: str) -> bool:
    return context.get_parameter_source(option) is not click.core.ParameterSource.DEFAULT


class _Group(click.Group):
    """Turns our errors into one readable message and exit status 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except SuiteError as error:
            after = {"run": "; nothing was run", "init": "; nothing was written"}.get(context.invoked_subcommand or "", "")
            click.echo("".join(f"error: {text}\n" for text in error.errors), err=True, nl=False)
            click.echo(f"{len(error.errors)} error{'s' * (len(error.errors) > 1)}{after}", err=True)
        except KdbenchError as error:
            click.echo(f"error: {error}", err=True)
        context.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(VERSION, prog_name="kdbench")
def main() -> None:
    """Compare knowledge-distillation losses: train everything that a suite (a YAML file) lists, then print tables with statistical tests.

    The usual order is init, plan, check, run, report. A cell is one training."""


@main.command()
@click.argument("name")
@click.option("--student", "students", multiple=True, metavar="MODEL", help="may be repeated  [default: by the dataset]")
@click.option("--teacher", "teachers", multiple=True, metavar="MODEL", help="may be repeated  [default: by the dataset]")
@click.option("--dataset", default="digits", show_default=True, help="a dataset of kdbench")
@click.option("--objective", "objectives", multiple=True, metavar="LOSS", help="may be repeated  [default: by the dataset]")
@click.option("--from", "original", metavar="SHIPPED", help="copy a shipped suite or cluster file, such as cifar100_table1 or default")
@click.option("--small", is_flag=True, help="with --from a shipped suite or a suite here: few images and epochs, to try it from end to end")
@click.pass_context
def init(context: click.Context, name: str, original: str | None, small: bool, **chosen: Any) -> None:
    """Write a new suite with comments to NAME.yaml in the current folder. MODEL is a model of kdbench or timm."""
    from kdbench.plan import new_suite

    if small and original is None:
        raise click.UsageError("--small needs --from")
    if original is None:
        path, cells = new_suite.new_suite(name, **chosen)
        click.echo(f"wrote {path}: {cells} trainings (cells)\nnext: kdbench plan {shlex.quote(str(path))}")
        return
    if any(_is_given(context, one) for one in chosen):
        raise click.UsageError("--from copies a file as it is: edit the copy instead of giving other options")
    path, kind = new_suite.copy_small(name, original) if small else new_suite.copy_shipped(name, original)
    click.echo(f"wrote {path}\nnext: kdbench {'plan' if kind == 'suite' else 'run SUITE --on'} {shlex.quote(str(path))}")


@main.command()
@SUITE
@RESULTS
@DEVICE
@JOBS
@click.option(
    "--tflop-per-s",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="the speed that is assumed of a GPU where `check` has measured nothing",
)
@click.option("--json", "as_json", is_flag=True, help="print cells, bundles and teachers as JSON")
def plan(suite: Path, results: Path, device: str, jobs: int | None, tflop_per_s: float, as_json: bool) -> None:
    """Show what `run SUITE` will do: cells by state, bundles, teachers, work, disk space, how long it takes here (after `check`), and which
    differences its repeats can detect. SUITE is a YAML file."""
    from kdbench.plan import summary
    from kdbench.run.estimate import time_left

    how_long = partial(time_left, jobs=jobs, device=device, tflop_per_s=tflop_per_s)
    click.echo(summary.as_json(suite, results) if as_json else summary.as_text(suite, results, how_long))


@main.command()
@SUITE
@RESULTS
@DATA
@DEVICE
@JOBS
@click.option(
    "--checkpoint-every",
    "checkpoint_every_s",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="least time between two saves of progress  [default: 30]",
)
@click.option(
    "--teacher",
    "provider",
    type=click.Choice(PROVIDERS),
    default="auto",
    show_default=True,
    help="run teachers at each step, or keep their outputs in a table, where one can serve; `kdbench plan` shows what auto chooses",
)
@click.option(
    "--ranks",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="processes, or GPUs, that train each bundle together: the recipe's `bn_groups` are shared among them (not with --on)",
)
@click.option("--profile/--no-profile", "costs", default=True, show_default=True, help="measure costs after training (not with --on)")
@click.option("--on", type=PATH, metavar="CLUSTER", help="submit SLURM jobs as this cluster file describes, and return")
@click.option("--wait", is_flag=True, help="with --on: wait for the jobs, resubmit failed cells where allowed, then print the tables")
@click.option("--dry-run", "dry", is_flag=True, help="with --on: only show what would be submitted (needs SLURM's commands)")
@click.pass_context
def run(context: click.Context, suite: Path, on: Path | None, wait: bool, dry: bool, **how: Any) -> None:
    """Train the missing cells of SUITE, then print its tables. SUITE is a YAML file. You can interrupt this command, repeat it,
    and run it in two terminals at once."""
    if on is None:
        if wait or dry:
            raise click.UsageError("--wait and --dry-run need --on")
        from kdbench.run import verbs

        sys.exit(verbs.run(suite, **how))
    if refused := [name for name in ("device", "jobs", "ranks") if _is_given(context, name)]:
        raise click.UsageError(f"--{refused[0]} cannot be used with --on: the cluster file sets the resources of a job")
    from kdbench.slurm import cluster_verbs

    sys.exit(cluster_verbs.run(suite, on, how["results"], how["data"], how["checkpoint_every_s"], how["provider"], wait, dry))


@main.command()
@click.argument("suite")
@RESULTS
@click.option("--why", is_flag=True, help="show only what is missing and why; exit status 1 if anything is missing")
def status(suite: str, results: Path, why: bool) -> None:
    """Show the state of each cell, the progress of running cells, and why cells are missing. SUITE is a name or a file."""
    from kdbench.run import status as pages
    from kdbench.slurm.queue_status import queue_of

    queue = queue_of(results, suite)
    if not why:
        click.echo(pages.text(results, suite, queue), nl=False)
        return
    page = pages.why(results, suite, queue)
    click.echo(page or "nothing is missing")
    sys.exit(1 if page else 0)


@main.command()
@click.argument("suite")
@click.argument("cell", required=False)
@RESULTS
def cancel(suite: str, cell: str | None, results: Path) -> None:
    """Cancel the SLURM jobs of SUITE, or of one CELL (the start of its id). Saved progress is kept."""
    from kdbench.slurm import cluster_verbs

    count = cluster_verbs.cancel(results, suite, cell)
    click.echo(f"{count} job{'s' * (count != 1)} cancelled" if count else "there are no jobs to cancel")


@main.command()
@click.argument("suites", nargs=-1)
@RESULTS
@click.option(
    "--layout", type=click.Choice(["long", "paper"]), default="long", help="paper: also a table with one row per pair  [default: long]"
)
@click.option("--metric", metavar="NAME", help="compare this metric of the runs, such as balanced_accuracy  [default: the suite's]")
@click.option("--beside", metavar="PUBLISHED", help="show a published table beside ours (`kdbench published` lists them)")
@click.option("--figures", is_flag=True, help="also draw the figures (PDF and PNG)")
@click.option("--html", "page", is_flag=True, help="also write report.html: one file with tables, figures and every run")
@click.option("--histories", is_flag=True, help="also write histories.csv (each epoch and term) and terms.csv")
@click.option("--images/--no-images", default=True, show_default=True, help="add what follows from the stored predictions of each image")
@click.option("--tensorboard", type=PATH, metavar="FOLDER", help="also write TensorBoard events (needs `pip install kdbench[tensorboard]`)")
@click.option("--to", type=PATH, metavar="FOLDER", help="write the report of a table file here  [default: only print it]")
@click.option("--full", is_flag=True, help="print every table: pair by pair, across pairs, comparisons, costs")
@click.option("--strict", is_flag=True, help="exit status 1 if the report has a warning")
@click.option("--accept", multiple=True, metavar="CODE", help="with --strict: the code of a warning to ignore")
def report(suites: tuple[str, ...], results: Path, to: Path | None, strict: bool, accept: tuple[str, ...], **options: Any) -> None:
    """Report SUITES (names or YAML files; default: all suites of the results folder), files with one row for each run (.csv,
    .parquet), or published tables (published:NAME)."""
    from kdbench.plan.yaml import suite_name
    from kdbench.report import report_command
    from kdbench.report.write import ReportOptions

    named = [suite_name(suite) for suite in suites if not report_command.is_table(suite)]
    sys.exit(report_command.run(results, suites, named, to, ReportOptions(**options), strict, accept, sys.stdout))


@main.command()
@click.argument("table", required=False)
def published(table: str | None) -> None:
    """Show the published numbers that kdbench contains: all tables, or one TABLE."""
    from kdbench.report import report_command

    click.echo(report_command.published_text(table), nl=False)


@main.command()
@SUITE
@RESULTS
@DATA
@DEVICE
@click.option("--on", type=PATH, metavar="CLUSTER", help="measure in one SLURM job, as this cluster file describes")
def profile(suite: Path, results: Path, data: Path, device: str, on: Path | None) -> None:
    """Measure where the time and the memory of a training step go, for each objective of SUITE on this machine, one after another, as a
    table and a figure. Run the suite first: only objectives with a trained student are measured."""
    if on is not None:
        from kdbench.slurm import cluster_verbs

        job = cluster_verbs.profile(suite, on, results, data)
        click.echo(f"submitted job {job}, which measures the costs; `kdbench report` prints them after it has ended")
        return
    from kdbench.run import verbs

    sys.exit(verbs.profile(suite, results, data, device))


@main.command()
@SUITE
@RESULTS
@DATA
@DEVICE
@JOBS
@click.option("--cka/--no-cka", default=True, show_default=True, help="similarity of each student's layers to its teacher's")
@click.option("--probe", "probes", multiple=True, metavar="DATASET", help="a linear classifier of DATASET on the features; may be repeated")
def features(suite: Path, results: Path, data: Path, device: str, jobs: int | None, cka: bool, probes: tuple[str, ...]) -> None:
    """Measure the features of the trained networks of SUITE: how similar they are to the teacher's, layer by layer (CKA), and how well a
    linear classifier on them learns another dataset. DATASET is a name, or with options '{name: cifar100, subset: {classes: 20}}'. You can
    interrupt this command and repeat it."""
    from kdbench.run import verbs

    sys.exit(verbs.features(suite, results, data, device, jobs, cka, probes))


@main.command()
@SUITE
@RESULTS
@DATA
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
def check(suite: Path, results: Path, data: Path, device: str, as_json: bool) -> None:
    """Take real training steps of every objective in every pair of SUITE (a YAML file), and print what fails. Only the
    step times are written, which `plan` uses."""
    from kdbench.run import verbs

    sys.exit(verbs.check(suite, results, data, device, as_json))


@main.command()
@SUITE
@RESULTS
@DATA
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="how many test images are drawn")
@click.option("--score", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="draw objects with at least this score")
@click.option("--repeat", type=click.IntRange(0), default=0, show_default=True, help="of which repeat the students are")
@click.option("--without-images", is_flag=True, help="draw boxes on grey, for pages that must not show the images")
def pictures(suite: Path, results: Path, data: Path, images: int, score: float, repeat: int, without_images: bool) -> None:
    """Draw test images of SUITE with what is true, and what the teacher and each student say of them: a page (PNG) for each pair."""
    from kdbench.plan import matrix
    from kdbench.plan.suite import read
    from kdbench.store import Store
    from kdbench.train.pictures import Asked
    from kdbench.train.pictures import pictures as draw

    written = draw(matrix.expand(read(suite)), Store(results), data, Asked(images, score, repeat, not without_images))
    click.echo("\n".join(map(str, written)))


@main.command()
@click.argument("cell")
@RESULTS
@click.option("--to", type=PATH, help="the folder to write to  [default: export/<id>]")
def export(cell: str, results: Path, to: Path | None) -> None:
    """Write the trained network of CELL (the start of its id) as weights and a Python file that builds it, for use without kdbench."""
    from kdbench.store import Store
    from kdbench.train.export import export as write

    store = Store(results)
    cell_id = store.find(cell)
    click.echo("\n".join(map(str, write(store, cell_id, to or Path("export") / cell_id))))


@main.command()
@click.argument("dataset")
@DATA
def download(dataset: str, data: Path) -> None:
    """Download DATASET to the data folder, if it is public."""
    from kdbench import catalogue

    click.echo(catalogue.downloaded(dataset, data))


@main.command()
@click.argument("source", type=PATH, metavar="FOLDER")
@click.argument("out", type=PATH, required=False)
@click.option("--resize", type=click.IntRange(1), metavar="PIXELS", help="reduce the shorter sides of images to this: another dataset")
@click.option("--verify", is_flag=True, help="FOLDER is a file that was written so: compare each image in it with its checksum")
def pack(source: Path, out: Path | None, resize: int | None, verify: bool) -> None:
    """Write the images of FOLDER (TRAIN/CLASS/IMAGE and so on, as the datasets `folder` and `imagenet` read them) into one file OUT, which
    they read in its place: name it FOLDER.pack, with --resize 256 FOLDER-256.pack."""
    from rich.progress import Progress

    from kdbench.datasets import _pack

    if verify == (out is not None) or (verify and resize):
        raise click.UsageError("give FOLDER and OUT, or --verify and a file that `kdbench pack` wrote")
    with Progress(transient=True, disable=not sys.stdout.isatty()) as shown:
        task = shown.add_task(source.name, total=1.0)

        def done(share: float) -> None:
            shown.update(task, completed=share)

        said = _pack.packed(source, out, resize, done) if out else _pack.verified(source, done)
    click.echo(said)


@main.command("list")
@click.argument("kind", required=False)
def list_(kind: str | None) -> None:
    """List the losses, datasets, models, recipes and tasks, or those of one KIND; `losses` have year, needs, size and source, too."""
    from kdbench import catalogue

    click.echo(catalogue.listed(kind) + (f"\n{catalogue.losses()}" if kind in ("loss", "losses") else ""), nl=False)


@main.command()
@click.argument("name")
@RESULTS
def show(name: str, results: Path) -> None:
    """Show a loss, dataset, model, recipe or task: its specification, options with defaults, presets with sources. Or show a cell, by the
    start of its id."""
    from kdbench import catalogue

    click.echo(catalogue.shown(name, results), nl=False)
