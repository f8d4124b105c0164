"""A figure's SVG made fit to stand inside a page, beside others."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from kdbench.errors import KdbenchError

FORBIDDEN = ("script", "foreignObject", "iframe", "image", "metadata")
LINKS = ("href", "src")
REFERENCE = re.compile(r"url\(\s*['\"]?#([^)'\"]+)['\"]?\s*\)")
ELSEWHERE = re.compile(r"@import|url\(\s*['\"]?(?!#)", re.IGNORECASE)
NUMBER = re.compile(r"[0-9.]+")


def inline(name: str, text: str, prefix: str, label: str) -> str:
    """The SVG as an element of HTML: its ids and style rules are its own, it loads and runs nothing, and it has a name.

    Args:
        prefix: begins every id; a letter, then letters, digits or hyphens.
        label: is read out in place of the drawing.

    Raises:
        KdbenchError: the text is no SVG.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise KdbenchError(f"the figure '{name}' is no SVG: {error}") from error
    if _local(root.tag) != "svg":
        raise KdbenchError(f"the figure '{name}' is no SVG: its root is <{_local(root.tag)}>")
    _clean(root, prefix)
    if "viewBox" not in root.attrib and {"width", "height"} <= set(root.attrib):
        sizes = [NUMBER.match(root.attrib[side]) for side in ("width", "height")]
        root.set("viewBox", " ".join(["0 0", *(size.group() for size in sizes if size)]))
    width = root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    if width and NUMBER.match(width):
        root.set("style", f"max-width: {width if width[-1].isalpha() else width + 'px'}")
    root.attrib.update({"id": prefix, "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _local(tag: object) -> str:
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _clean(node: ElementTree.Element, prefix: str) -> None:
    """Take away what loads, runs or is not drawn; give every id the prefix. HTML needs no namespaces."""
    node.tag = _local(node.tag)
    for child in list(node):
        if _local(child.tag) in FORBIDDEN or not isinstance(child.tag, str):
            node.remove(child)
        else:
            _clean(child, prefix)
    kept = {}
    for key, value in node.attrib.items():
        key = _local(key)
        if key.lower().startswith("on") or (key in LINKS and not value.startswith("#")) or ELSEWHERE.search(value):
            continue
        value = f"{prefix}-{value}" if key == "id" else _pointing(value, prefix)
        kept[key] = f"#{prefix}-{value[1:]}" if key in LINKS else value
    node.attrib.clear()
    node.attrib.update(kept)
    if node.tag == "style":
        node.text = _scoped(node.text or "", prefix)


def _scoped(rules: str, prefix: str) -> str:
    """Style rules that reach nothing outside their figure (matplotlib's begin with `*`)."""
    if ELSEWHERE.search(rules) or "@" in rules:
        return ""
    found = re.findall(r"([^{}]+)\{([^{}]*)\}", rules)
    scoped = [(", ".join(f"#{prefix} {_own(one.strip(), prefix)}" for one in selectors.split(",")), body) for selectors, body in found]
    return "".join(f"{selectors} {{{_pointing(body, prefix)}}}\n" for selectors, body in scoped)


def _own(selector: str, prefix: str) -> str:
    return re.sub(r"#(?=[A-Za-z_])", f"#{prefix}-", selector)


def _pointing(text: str, prefix: str) -> str:
    return REFERENCE.sub(rf"url(#{prefix}-\1)", text)
