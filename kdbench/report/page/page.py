"""`report --html`: the whole document as one file that loads nothing and can be read without its script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources

from kdbench.errors import KdbenchError
from kdbench.report.document import Document, Figure, Owed
from kdbench.report.page.payload import payload
from kdbench.report.page.runs import RunDetails
from kdbench.report.page.svg import inline
from kdbench.report.page.tables import Known, table_html

SCRIPTS = ("data.js", "build.js", "tables.js", "runs.js", "curve.js", "dialog.js", "start.js")
"""In the order in which they stand in the one script of the page."""


def page(document: Document, runs: Sequence[RunDetails], figures: Mapping[str, str]) -> str:
    """The report as HTML; the same input gives the same bytes.

    Args:
        runs: as `runs.run_details` makes them; an entry whose runs are among them opens them.
        figures: the SVG of each figure of the document, by its name. A figure without one is told in words.

    Raises:
        KdbenchError: an SVG that is none, or is of no figure of the document.
    """
    if strange := sorted(set(figures) - {figure.name for figure in document.figures}):
        raise KdbenchError(f"drawings of figures that the document does not have: {', '.join(strange)}")
    known = Known.of(runs)
    tables = [(f"table-{place}", table) for place, table in enumerate(document.tables, start=1)]
    drawn = [(f"figure-{place}", figure) for place, figure in enumerate(document.figures, start=1)]
    contents = [*((anchor, table.title) for anchor, table in tables), *([("figures", "Figures")] if drawn else [])]
    contents += [("runs", f"All runs ({len(runs)})")] if runs else []
    body = [
        '<a class="skip" href="#main">Skip to the report</a>\n',
        f"<header><h1>{escape(document.title)}</h1></header>\n",
        f'<nav aria-label="Contents"><ul>{_links(contents)}</ul></nav>\n<main id="main" tabindex="-1">\n',
        "".join(f'<p class="lead">{escape(fact)}</p>\n' for fact in document.facts),
        _warnings(document.warnings),
        *(table_html(table, anchor, known) for anchor, table in tables),
        _figures(drawn, figures),
        _all_runs(runs) if runs else "",
        "</main>\n",
        DIALOG,
    ]
    return _whole(document.title, "".join(body), payload(runs))


DIALOG = (
    '<dialog id="dialog" aria-labelledby="dialog-title"><div class="bar"><h2 id="dialog-title" tabindex="-1"></h2>'
    '<button type="button" id="dialog-close">Close</button></div><div id="dialog-body"></div></dialog>\n'
)


def _whole(title: str, body: str, data: str) -> str:
    style, script = _read("page.css"), '(() => {\n"use strict";\n' + "".join(map(_read, SCRIPTS)) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Style attributes are what figures are drawn with; they can load nothing.
    allowed = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    policy = f"{allowed}; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f'<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n{body}"
        f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


@cache
def _read(name: str) -> str:
    return resources.files("kdbench.report.page").joinpath(name).read_text(encoding="utf-8")


def _links(contents: Iterable[tuple[str, str]]) -> str:
    return "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in contents)


def _warnings(warnings: Sequence[Owed]) -> str:
    if not warnings:
        return ""
    lines = "".join(
        f"<li><code>{escape(one.code)}</code> {f'<b>{escape(one.where)}:</b> ' if one.where else ''}{escape(one.message)}</li>\n"
        for one in warnings
    )
    heading = f'<h2 id="warnings">Warnings ({len(warnings)})</h2>'
    return f'<section class="warnings" aria-labelledby="warnings">{heading}\n<ul>{lines}</ul></section>\n'


def _figures(drawn: Sequence[tuple[str, Figure]], figures: Mapping[str, str]) -> str:
    if not drawn:
        return ""
    shown = "".join(_figure(anchor, figure, figures.get(figure.name)) for anchor, figure in drawn)
    return f'<section aria-labelledby="figures"><h2 id="figures">Figures</h2>\n<div class="figures">{shown}</div></section>\n'


def _figure(anchor: str, figure: Figure, svg: str | None) -> str:
    drawing = '<p class="note">Not drawn.</p>' if svg is None else inline(figure.name, svg, anchor, f"{figure.title}. {figure.caption}")
    return f"<figure>{drawing}<figcaption><b>{escape(figure.title)}.</b> {escape(figure.caption)}</figcaption></figure>\n"


RUN_COLUMNS = ("id", "role", "dataset", "student", "teacher", "label", "repeat", "teacher_seed", "state")


def _all_runs(runs: Sequence[RunDetails]) -> str:
    """The list of runs: drawn by the script as far as it is looked at; in full where there is none."""
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    names = [*RUN_COLUMNS, *metrics, "why"]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(text)}' for text in _texts(run, metrics))}\n" for run in runs)
    table = f'<table aria-labelledby="runs"><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>'
    box = f'<div class="scroll" role="region" tabindex="0" aria-labelledby="runs">{table}</div>'
    return f'<section id="all-runs" aria-labelledby="runs"><h2 id="runs">All runs</h2>\n<noscript>{box}</noscript></section>\n'


def _texts(run: RunDetails, metrics: Sequence[str]) -> list[str]:
    words = [getattr(run, name) for name in RUN_COLUMNS]
    return [*("" if word is None else str(word) for word in words), *(_metric(run, name) for name in metrics), run.why]


def _metric(run: RunDetails, name: str) -> str:
    value = run.metrics.get(name)
    if value is None:
        return ""
    return f"{100 * value:.2f} %" if name in run.percent else f"{value:.5g}"
