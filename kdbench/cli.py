"""The command line: no logic, and nothing heavy imported before a verb needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from kdbench.errors import KdbenchError, SuiteError

RESULTS = click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="the results folder")
DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=lambda: Path(os.environ.get("KDBENCH_DATA", "data")),
    help="the data folder  [default: $KDBENCH_DATA, else ./data]",
)
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
SUITE = click.argument("suite", type=click.Path(path_type=Path))


class _Group(click.Group):
    """Turns our errors into one readable message and exit status 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except SuiteError as error:
            count = len(error.mistakes)
            click.echo("\n".join(error.mistakes), err=True)
            click.echo(f"{count} mistake{'s' if count > 1 else ''}; nothing was run", err=True)
        except KdbenchError as error:
            click.echo(f"error: {error}", err=True)
        context.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="kdbench")
def main() -> None:
    """Compare knowledge-distillation losses honestly: a suite goes in, cells are trained, a table with tests comes out."""


@main.command()
@SUITE
@RESULTS
@click.option("--json", "as_json", is_flag=True, help="cells, bundles and teachers as JSON")
def plan(suite: Path, results: Path, as_json: bool) -> None:
    """What running SUITE would do: cells by state, bundles, teachers, work, and what its repeats can show."""
    from kdbench.plan import summary

    click.echo(summary.as_json(suite, results) if as_json else summary.as_text(suite, results))


@main.command()
@SUITE
@RESULTS
@DATA
@DEVICE
@click.option("--jobs", type=click.IntRange(1), default=None, help="processes at a time  [default: the cores; with CUDA, the GPUs]")
@click.option("--checkpoint-every", type=click.FloatRange(0), default=None, metavar="SECONDS", help="at most so often  [default: 30]")
@click.option("--profile/--no-profile", "costs", default=True, show_default=True, help="measure costs after training (not with --on)")
@click.option("--on", type=click.Path(path_type=Path), metavar="CLUSTER", help="submit to SLURM, as this file of slurm/ says, and return")
@click.option("--wait", is_flag=True, help="with --on: follow the jobs, try again what may be, and print the tables")
@click.option("--dry-run", "dry", is_flag=True, help="with --on: say what would be submitted")
@click.pass_context
def run(
    context: click.Context,
    suite: Path,
    results: Path,
    data: Path,
    device: str,
    jobs: int | None,
    checkpoint_every: float | None,
    costs: bool,
    on: Path | None,
    wait: bool,
    dry: bool,
) -> None:
    """Train what SUITE wants and is not there yet, then print its tables. Safe to repeat, to interrupt and to run twice."""
    if on is None:
        if wait or dry:
            raise click.UsageError("--wait and --dry-run go with --on")
        from kdbench.run import verb

        sys.exit(verb.run(suite, results, data, device, jobs, checkpoint_every, costs))
    said = [name for name in ("device", "jobs") if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    if said:
        raise click.UsageError(f"--{said[0]} is for this machine; with --on, the cluster file says what a job gets")
    from kdbench.slurm import verb as cluster_verb

    sys.exit(cluster_verb.run(suite, on, results, data, checkpoint_every, wait, dry))


@main.command()
@click.argument("suite")
@RESULTS
@click.option("--why", is_flag=True, help="only what is missing and why, on one page; exit status 1 if anything is")
def status(suite: str, results: Path, why: bool) -> None:
    """Each cell's state, what is running, where and how far it is, and why anything is missing. SUITE is a name or a file."""
    from kdbench.run import status as told

    if not why:
        click.echo(told.text(results, suite), nl=False)
        return
    page = told.why(results, suite)
    click.echo(page or "nothing is missing")
    sys.exit(1 if page else 0)


@main.command()
@click.argument("suite")
@click.argument("cell", required=False)
@RESULTS
def cancel(suite: str, cell: str | None, results: Path) -> None:
    """Cancel the SLURM jobs of SUITE, or of one CELL of it (the start of an id). What was saved stays."""
    from kdbench.slurm import verb as cluster_verb

    count = cluster_verb.cancel(results, suite, cell)
    click.echo(f"{count} job{'s' * (count != 1)} cancelled" if count else "there is no job of it to cancel")


@main.command()
@click.argument("suites", nargs=-1)
@RESULTS
@click.option(
    "--layout", type=click.Choice(["long", "paper"]), default="long", show_default=True, help="paper: a row a pair, a column a loss"
)
@click.option("--beside", metavar="PUBLISHED", help="a published table beside ours (`kdbench published` lists them)")
@click.option("--figures", is_flag=True, help="draw the figures (PDF and PNG), too")
@click.option("--html", "page", is_flag=True, help="write report.html, too: one file with tables, figures and every run")
@click.option("--histories", is_flag=True, help="write histories.csv (each epoch and term) and terms.csv, too")
@click.option("--images/--no-images", default=True, show_default=True, help="read the stored predictions")
@click.option(
    "--tensorboard", type=click.Path(path_type=Path), metavar="FOLDER", help="write TensorBoard events, too (extra `tensorboard`)"
)
@click.option(
    "--to", type=click.Path(path_type=Path), metavar="FOLDER", help="where the report of a frame file goes  [default: only printed]"
)
@click.option("--strict", is_flag=True, help="exit status 1 if the report carries a warning")
@click.option("--accept", multiple=True, metavar="CODE", help="with --strict: a warning that may stand")
def report(
    suites: tuple[str, ...],
    results: Path,
    layout: str,
    beside: str | None,
    figures: bool,
    page: bool,
    histories: bool,
    images: bool,
    tensorboard: Path | None,
    to: Path | None,
    strict: bool,
    accept: tuple[str, ...],
) -> None:
    """Tables of SUITES (names or files), or of every suite under the results folder; or of frame files (.csv, .parquet), or of
    published tables (published:NAME)."""
    from kdbench.plan.yaml import suite_name
    from kdbench.report import verb
    from kdbench.report.write import Asked

    asked = Asked(layout, beside, figures, page, histories, images, tensorboard)
    named = [suite_name(suite) for suite in suites if not verb.is_table(suite)]
    sys.exit(verb.run(results, suites, named, to, asked, strict, accept, sys.stdout))


@main.command()
@click.argument("table", required=False)
@click.option("--lint", is_flag=True, help="look for wrong deltas and for numbers copied from a neighbouring column")
def published(table: str | None, lint: bool) -> None:
    """The literature's numbers that kdbench carries: all tables, or one TABLE."""
    from kdbench.report import verb

    text, failed = verb.published_text(table, lint)
    click.echo(text, nl=False)
    sys.exit(int(failed))


@main.command()
@SUITE
@RESULTS
@DATA
@DEVICE
@click.option("--on", type=click.Path(path_type=Path), metavar="CLUSTER", help="in one SLURM job, as this file of slurm/ says")
def profile(suite: Path, results: Path, data: Path, device: str, on: Path | None) -> None:
    """Measure what each objective of SUITE costs on this machine, one after another. The suite must have been run."""
    if on is not None:
        from kdbench.slurm import verb as cluster_verb

        job = cluster_verb.profile(suite, on, results, data)
        click.echo(f"submitted {job}: costs are measured there; `kdbench report` prints them when it has ended")
        return
    from kdbench.run import verb

    sys.exit(verb.profile(suite, results, data, device))


@main.command()
@SUITE
@RESULTS
@DATA
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="what was found, as JSON")
def check(suite: Path, results: Path, data: Path, device: str, as_json: bool) -> None:
    """Every pair with every objective of SUITE takes two real training steps: finite, sensible, sparing the teacher, resumable."""
    from kdbench.run import verb

    sys.exit(verb.check(suite, results, data, device, as_json))


@main.command()
@click.argument("cell")
@RESULTS
@click.option("--to", type=click.Path(path_type=Path), default=None, help="the folder to write into  [default: export/<id>]")
def export(cell: str, results: Path, to: Path | None) -> None:
    """The trained net of CELL (the start of an id) as plain weights and one file that makes it, for use without kdbench."""
    from kdbench.run.export import export as write
    from kdbench.store import Store

    store = Store(results)
    cell_id = store.find(cell)
    for path in write(store, cell_id, to or Path("export") / cell_id):
        click.echo(f"{path}")


@main.command()
@click.argument("dataset")
@DATA
def download(dataset: str, data: Path) -> None:
    """Bring DATASET into the data folder, where its makers offer it to everybody."""
    from kdbench import parts

    click.echo(f"{parts.load('dataset', dataset).build({}).download(data)}")


@main.command("list")
@click.argument("kind", required=False)
def list_(kind: str | None) -> None:
    """The parts there are: losses, datasets, models, recipes, tasks."""
    from kdbench import catalogue

    click.echo(catalogue.listed(kind), nl=False)


@main.command()
@click.argument("name")
@RESULTS
def show(name: str, results: Path) -> None:
    """What a part is: its specification, options with defaults, presets with sources. Or what a cell is, by (the start of) its id."""
    from kdbench import catalogue

    click.echo(catalogue.shown(name, results), nl=False)
