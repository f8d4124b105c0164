"""Text as LaTeX that prints it: pylatexenc's table, and what it lacks.

The output needs `amssymb` and, for some Latin letters, `\\usepackage[T1]{fontenc}`; letters of other scripts stand in `\\otherletters{}`,
which the templates define: letters where the compiler has them (XeLaTeX, LuaLaTeX), `?` with pdfLaTeX.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING
from unicodedata import normalize

from kdbench.report.text import shortened

if TYPE_CHECKING:
    from pylatexenc.latexencode import UnicodeToLatexEncoder

REPLACED = {
    **{"▲": r"\ensuremath{\blacktriangle}", "△": r"\ensuremath{\vartriangle}", "▼": r"\ensuremath{\blacktriangledown}"},
    **{"▽": r"\ensuremath{\triangledown}", "★": r"\ensuremath{\bigstar}", "✓": r"\ensuremath{\checkmark}", "·": r"\ensuremath{\cdot}"},
    **{"\ufffd": "?", "\u2011": "-"},
    # A row that begins with one of these would be an option of the \\ before it, and ] would end an option.
    **{"[": "{[}", "]": "{]}", "*": "{*}"},
}
UNKNOWN = "ŉℋℐℒℛℬℰℱℳ⅓-⅞↜↝⇅⇵∟∬∭∯∰∱∻∾≆≋≌≙≛≸≹⊧⊨⊫⊶⊷⊹⊾⋘⋙⋨⋰⌆⌕♩♭♮♯⨏⨖"
"""Characters whose commands in pylatexenc's table need other packages."""
OTHER = re.compile(f"[^\x00-\u017f\u0391-\u03c9\u2010-\u2bff\ufffd]+|[{UNKNOWN}]+")


@cache
def _encoder() -> UnicodeToLatexEncoder:
    from pylatexenc.latexencode import RULE_DICT, RULE_REGEX, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

    # `--` would be a dash, `''` and `,,` quotation marks.
    patterns = [(re.compile(r"([-',])(?=\1)"), r"\1{\\kern0pt}"), (OTHER, r"\\otherletters{\g<0>}")]
    replaced = {ord(char): command for char, command in REPLACED.items()}
    rules = [UnicodeToLatexConversionRule(RULE_REGEX, patterns), UnicodeToLatexConversionRule(RULE_DICT, replaced), "defaults"]
    unknown = {"unknown_char_policy": lambda char: rf"\otherletters{{{char}}}", "unknown_char_warning": False}
    return UnicodeToLatexEncoder(conversion_rules=rules, **unknown)


@lru_cache(1 << 16)
def escaped(text: str) -> str:
    """Text as LaTeX that prints it on one line: nothing in it is a command, an option, a ligature or the end of a cell."""
    return _encoder().unicode_to_latex(normalize("NFC", shortened(text)))


def number(text: str) -> str:
    """A formatted number, or several, with true minus signs and no break inside."""
    return escaped(text.replace("-", "−")).replace(" ", "~")
