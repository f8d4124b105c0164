"""Where the time and the memory of a training step go, part by part: the table, the figure and the files of the verb `profile`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import pandas as pd
import seaborn
from matplotlib.axes import Axes

from kdbench.manifest import Manifest
from kdbench.report import document
from kdbench.report.figures.draw import applied, rendered
from kdbench.report.figures.figure_data import plain
from kdbench.report.figures.panels import GREY, PALE, legend_line, legend_patch, panel_figures
from kdbench.report.table import Column, Entry, Group, Table
from kdbench.report.text import markdown, terminal
from kdbench.stats.repeats import spread_over_blocks
from kdbench.store import Store
from kdbench.store.frame import block_frame, costs

PARTS = {
    "data_ms": "data",
    "teacher_ms": "teacher, forward",
    "forward_ms": "student, forward",
    "backward_ms": "student, backward",
    "loss_ms": "loss",
    "optimizer_ms": "optimiser",
    "rest_ms": "rest",
}
OTHERS = (("images_per_s", ",.0f", 1.0), ("peak_mem_gib", ",.1f", 1024.0), ("added_parameters", ",.0f", 1.0), ("added_flops", ",.2f", 1e-6))
COLUMNS = (
    Column("loss", numeric=False),
    *(Column(f"{name}, ms") for name in PARTS.values()),
    *(Column("step, ms"), Column("images /s"), Column("peak, MiB")),
    *(Column("added params", essential=False), Column("added MFLOPs", essential=False)),
)
CAPTION = (
    "Medians of single steps, one student alone with its teacher. loss: forward and backward of the distillation terms; rest: what a whole "
    "step takes beyond its parts.",
    "peak: the largest memory of a step beyond weights, optimiser state and data. added: trained parameters and FLOPs of the loss.",
)


def parts_frame(store: Store, manifest: Manifest) -> pd.DataFrame:
    """A row for each objective of each pair that was measured: the columns of `frame.costs`, and `forward_ms`, `backward_ms` and
    `rest_ms`, in the suite's order. An objective without teacher stands in every pair of its student."""
    table = costs(store, manifest).query("state == 'measured'").copy()
    profiles = [store.profile(name) for name in table["id"]]
    for part in ("forward_ms", "backward_ms"):
        table[part] = [profile.result.get(part, {}).get("median") if profile else None for profile in profiles]
    table = table.astype({"forward_ms": "float64", "backward_ms": "float64"})
    table["rest_ms"] = (table["step_ms"] - table[[name for name in PARTS if name != "rest_ms"]].sum(axis=1)).clip(lower=0)
    order = list(manifest.labels)
    return spread_over_blocks(table, block_frame(manifest)).sort_values(
        "objective", key=lambda names: names.map(order.index), kind="stable"
    )


def show(store: Store, manifest: Manifest, out: TextIO) -> Path | None:
    """Print the table, and write it with its figure into the suite's folder. Returns the folder; None where nothing was measured."""
    table = parts_frame(store, manifest)
    if not len(table):
        return None
    pairs = [
        (f"{plain(block.teacher)} → {plain(block.student)}" if block.teacher else f"{plain(block.student)} alone", mine)
        for block in manifest.blocks
        if len(mine := table[(table["student"] == block.student) & (table["teacher"].fillna("") == (block.teacher or ""))])
    ]
    facts = (f"Measured on {'; '.join(sorted(table['device'].unique()))}.",)
    groups = tuple(Group(title, tuple(_row(line) for line in mine.to_dict(orient="records")), facts) for title, mine in pairs)
    whole = document.Document(f"{manifest.suite}: a training step by its parts", (), (Table("Time and memory", COLUMNS, groups, CAPTION),))
    figures = [file for page in _figures(pairs) for file in page]
    terminal(whole, out)
    folder = store.suite_folder(manifest.suite) / "profile"
    store.write_text(folder / "profile.md", markdown(whole))
    profiles = [store.profile(name) for name in table["id"].unique()]
    for line in reading_lines(profile.result for profile in profiles if profile):
        print(line, file=out)
    columns = ["dataset", "teacher", "student", "objective", "device", *PARTS, "step_ms", *(name for name, _, _ in OTHERS)]
    store.write_text(folder / "profile.csv", table[columns].to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    for name, data in figures:
        store.write_bytes(folder / name, data)
    return folder


def reading_lines(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """From the results of profiles: how fast one process reads images from files (medians), and a warning if all processors together read
    fewer than a student trains on. Students that are trained side by side share what is read. Empty where the data lie in memory."""
    if not (found := [result for result in results if "decode_images_per_s" in result]):
        return []
    decode, transform = (median(result[f"{part}_images_per_s"] for result in found) for part in ("decode", "transform"))
    cores, both = found[0]["readers"], 1 / (1 / decode + 1 / transform)
    lines = [f"Reading, images/s of one core: {decode:,.0f} decoded, {transform:,.0f} transformed, {both:,.0f} both."]
    needed, most = max(result["images_per_s"] for result in found), both * cores
    if needed > most:
        lines.append(
            f"WARNING: {cores} cores read at most {most:,.0f} images/s, and the fastest objective trains on {needed:,.0f}: it waits for "
            f"images, unless bundles have {ceil(needed / most)} students or more, which share what is read. Images that `kdbench pack "
            "--resize` made smaller are read faster."
        )
    return lines


def _row(line: dict[Any, Any]) -> tuple[Entry, ...]:
    times = (Entry(line[name], format=".2f") for name in (*PARTS, "step_ms"))
    return Entry(line["label"]), *times, *(Entry(line[name], format=form, scale=scale) for name, form, scale in OTHERS)


def _figures(pairs: list[tuple[str, pd.DataFrame]]) -> list[list[tuple[str, bytes]]]:
    """For each page its files, by name: for each pair a panel of times, a bar an objective, and one of memory beside it."""
    labels = list(dict.fromkeys(itertools.chain.from_iterable(mine["label"] for _, mine in pairs)))
    colours = dict(zip(PARTS, [*seaborn.color_palette("colorblind")[:6], PALE], strict=True))
    pages = []
    with applied("profile"):
        panels = [
            panel
            for title, mine in pairs
            for panel in (
                (f"{title}: time of a step, ms", partial(_times, mine, labels, colours)),
                (f"{title}: peak memory of a step, MiB", partial(_memory, mine, labels)),
            )
        ]
        legend = [legend_patch(name, colours[part]) for part, name in PARTS.items()]
        legend.append(legend_line("whole step", GREY, marker="|", linestyle="", markersize=9))
        names = [plain(label) for label in labels]
        for number, page in enumerate(panel_figures(panels, 0.2, 2, ("", ""), legend, names, narrow=False), start=1):
            pdf, png, _ = rendered(page, "A training step by its parts")
            stem = "profile" + (f"-{number}" if number > 1 else "")
            pages.append([(f"{stem}.pdf", pdf), (f"{stem}.png", png)])
    return pages


def _times(table: pd.DataFrame, labels: list[str], colours: dict[str, Any], axes: Axes) -> None:
    places, left = table["label"].map(labels.index), 0.0 * table["step_ms"]
    for part, colour in colours.items():
        width = table[part].fillna(0.0)
        axes.barh(places, width, left=left, height=0.7, color=colour, linewidth=0, label=PARTS[part])
        left = left + width
    axes.plot(table["step_ms"], places, linestyle="", marker="|", markersize=9, color=GREY, label="step")


def _memory(table: pd.DataFrame, labels: list[str], axes: Axes) -> None:
    axes.barh(table["label"].map(labels.index), 1024 * table["peak_mem_gib"].fillna(0.0), height=0.7, color=GREY, linewidth=0)
