"""The losses as Markdown: one section per loss, from its docstring, its options and its presets."""

from __future__ import annotations

import inspect
import re

from kdbench import catalogue, parts

MARKER = "<!-- losses -->"
"""Stands in losses.md where the sections go."""

LABELS = ("Shapes", "Source", "Defaults", "Departs")
"""The labelled paragraphs of a loss's docstring; what stands before them is its definition."""


def sections() -> str:
    return "\n".join(section(name) for name in parts.names("loss"))


def section(name: str) -> str:
    part = parts.load("loss", name)
    first, _, rest = inspect.cleandoc(part.make.__doc__ or "").partition("\n")
    definition, *labelled = re.split(rf"^(?=(?:{'|'.join(LABELS)}):)", rest.strip(), flags=re.M)
    lines = [f"## `{name}`", "", _escaped(first), "", "```text", definition.strip(), "```", ""]
    for paragraph in labelled:
        label, _, text = paragraph.partition(":")
        words = catalogue.DEPARTS if label == "Departs" else label
        lines += [f"**{words}:** {_escaped(' '.join(text.split()))}", ""]
    options = inspect.signature(part.make).parameters.values()
    if options:
        lines += ["| option | values | default |", "|:---|:---|:---|"]
        lines += [
            f"| `{one.name}` | {_code(catalogue.values(one.annotation))} | {_code(catalogue.literal(one.default))} |" for one in options
        ]
        lines.append("")
    lines += ["| preset | loss weights | options | source |", "|:---|:---|:---|:---|"]
    for key, preset in part.make.presets.items():
        weights = [f"task {preset.task:g}", "none published" if preset.weight is None else f"{name} {preset.weight:g}"]
        weights += [f"{other} {weight:g}" for other, weight, *_ in preset.terms]
        weights += [f"first stage of {preset.two_stages['epochs']} epochs"] if preset.two_stages else []
        chosen = ", ".join(f"{option}: {catalogue.literal(value)}" for option, value in preset.options.items())
        lines.append(f"| `{name}:{key}` | {', '.join(weights)} | {_code(chosen) if chosen else ''} | {_escaped(preset.source)} |")
    return "\n".join([*lines, ""])


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _escaped(text: str) -> str:
    """Plain text as Markdown; what stands in backticks stays code."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"([\\*_<>|\[\]#$^{}])", r"\\\1", piece) for piece in pieces)
