"""How the progress of a run is shown: a bar a bundle in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdbench.plan.bundle import Bundle


class ProgressBar:
    """Use as a context. `titles` names cells; `total` is how many are wanted."""

    def __init__(self, console: Console, titles: Mapping[str, str], total: int):
        self.console, self.titles, self.total, self.done = console, titles, total, 0
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} epochs"))
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal)
        self.tasks: dict[tuple[str, ...], Any] = {}

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def began(self, bundle: Bundle) -> None:
        self.tasks[tuple(bundle.ids)] = self.bar.add_task(self.name(bundle), total=bundle.cells[0].config["recipe"]["epochs"])

    def at(self, bundle: Bundle, epochs: int) -> None:
        self.bar.update(self.tasks[tuple(bundle.ids)], completed=epochs)

    def ended(self, bundle: Bundle, done: int, seconds: float) -> None:
        self.bar.remove_task(self.tasks.pop(tuple(bundle.ids)))
        self.done += done
        failed = len(bundle.cells) - done
        lost = f", {failed} without a result" if failed else ""
        line = f"[{self.done}/{self.total}] {self.name(bundle)}: {done} trained in {seconds:.0f} s{lost}"
        self.console.print(line, markup=False, highlight=False)

    def name(self, bundle: Bundle) -> str:
        first = self.titles[bundle.ids[0]]
        return first if len(bundle.cells) == 1 else f"{first} and {len(bundle.cells) - 1} more"
