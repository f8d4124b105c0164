"""`report --html`: the document as one file that loads nothing and can be read without its script."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup, escape

from kdbench.report.document import Document
from kdbench.report.page.runs import CHOICES, RunDetails, runs_table
from kdbench.report.table import BEST, TIED, Entry
from kdbench.report.text import emphasized

SCRIPTS = ("tables.js", "curve.js", "dialog.js")
"""In the order in which they stand in the one script of the page."""
MOST_GROUPS = 9
"""In a table with more groups, all but the first are folded."""
HEARD = {BEST: "best", TIED: "not distinguishable from the best", "apart": "published elsewhere"}
TAGS = {kind: (f'<b class="{kind}">', f'</b><span class="heard"> ({words})</span>') for kind, words in HEARD.items()}
"""What stands around an entry in a type of its own, with words for screen readers."""
HYPHEN_MINUS = re.compile(r"(?<![^\s\[(])-(?=\.?\d)")


def page(document: Document, runs: Sequence[RunDetails], figures: Mapping[str, str]) -> str:
    """The report as HTML; the same input gives the same bytes.

    Args:
        runs: as `runs.run_details` makes them; an entry whose runs are among them opens them.
        figures: the SVG of each figure of the document, by its name. A figure without one is shown by its caption.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from pydantic_core import to_json

    loader = PackageLoader("kdbench.report", "page")
    found = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    style, *scripts = (loader.get_source(found, name)[0] for name in ("page.css", *SCRIPTS))
    script = f'(async () => {{\n"use strict";\n{"".join(scripts)}}})();\n'
    places = {run.id: place for place, run in enumerate(runs)}
    filters: dict[str, Callable[..., str]] = {
        "kind": lambda column: " ".join(filter(None, ("n" if column.numeric else "", "" if column.essential else "extra"))),
        "minus": _minus,
        "places": lambda entry: " ".join(str(places[one]) for one in dict.fromkeys(entry.runs) if one in places and entry.value != ""),
        "shown": _shown,
    }
    found.filters |= filters
    return found.get_template("page.html.j2").render(
        document=document,
        all_runs=runs_table(runs) if runs else None,
        choices={name: list(dict.fromkeys(run.choices[at] for run in runs if run.choices[at])) for at, name in enumerate(CHOICES)},
        images={name: base64.b64encode(svg.encode()).decode() for name, svg in figures.items()},
        style=style,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=base64.b64encode(zlib.compress(to_json([run.shown() for run in runs], inf_nan_mode="null"))).decode(),
        most_groups=MOST_GROUPS,
    )


def _minus(text: str) -> str:
    return HYPHEN_MINUS.sub("\u2212", text)


def _shown(entry: Entry) -> Markup:
    value, spread, interval = (escape(_minus(part)) for part in entry.parts)
    behind = f'<span class="interval">{interval}</span>' if interval else ""
    return Markup(emphasized(f"{value}{escape(''.join(entry.marks))}{spread}{behind}", entry, TAGS))
