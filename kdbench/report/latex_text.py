"""Text that pdflatex prints as it stands: the escaper, and the characters that it knows.

The output needs `\\usepackage[T1]{fontenc}`, and `amssymb` for the symbols of `AMS`; UTF-8 is LaTeX's own default since 2018.
"""

from __future__ import annotations

import re
import unicodedata

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "^": r"\textasciicircum{}",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\`{}",
    # A row that begins with one of these would be taken for an option of the \\ before it, and ] would end an option.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}

TEXT = {
    "\u00a0": "~",
    "\u2009": r"\,",
    "\u202f": r"\,",
    "\u00ad": r"\-",
    "‐": "-",
    "‑": r"\mbox{-}",
    "‒": r"\textendash{}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "„": r"\quotedblbase{}",
    "‚": r"\quotesinglbase{}",
    "«": r"\guillemotleft{}",
    "»": r"\guillemotright{}",
    "‹": r"\guilsinglleft{}",
    "›": r"\guilsinglright{}",
    "…": r"\ldots{}",
    "¡": r"\textexclamdown{}",
    "¿": r"\textquestiondown{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "©": r"\textcopyright{}",
    "®": r"\textregistered{}",
    "™": r"\texttrademark{}",
    "£": r"\pounds{}",
    "¥": r"\textyen{}",
    "€": r"\texteuro{}",
    "ª": r"\textsuperscript{a}",
    "º": r"\textsuperscript{o}",
    "ſ": "s",
    "ẞ": "SS",
    "Ș": r"\textcommabelow{S}",
    "ș": r"\textcommabelow{s}",
    "Ț": r"\textcommabelow{T}",
    "ț": r"\textcommabelow{t}",
}

MATH = {
    **{"±": r"\pm", "∓": r"\mp", "×": r"\times", "÷": r"\div", "·": r"\cdot", "⋅": r"\cdot", "−": "-", "¬": r"\neg", "°": r"^{\circ}"},
    **{"≤": r"\leq", "≥": r"\geq", "≠": r"\neq", "≈": r"\approx", "≡": r"\equiv", "∼": r"\sim", "∝": r"\propto", "≪": r"\ll", "≫": r"\gg"},
    **{"†": r"\dagger", "‡": r"\ddagger", "•": r"\bullet", "∗": r"\ast", "′": r"^{\prime}", "″": r"^{\prime\prime}", "‖": r"\|"},
    **{"→": r"\rightarrow", "←": r"\leftarrow", "↑": r"\uparrow", "↓": r"\downarrow", "↔": r"\leftrightarrow", "↦": r"\mapsto"},
    **{"⇒": r"\Rightarrow", "⇐": r"\Leftarrow", "⇔": r"\Leftrightarrow", "∞": r"\infty", "√": r"\surd", "∂": r"\partial", "∇": r"\nabla"},
    **{"∑": r"\sum", "∏": r"\prod", "∫": r"\int", "∈": r"\in", "∉": r"\notin", "⊂": r"\subset", "⊆": r"\subseteq", "∪": r"\cup"},
    **{"∩": r"\cap", "∅": r"\emptyset", "∀": r"\forall", "∃": r"\exists", "∧": r"\wedge", "∨": r"\vee", "⊕": r"\oplus", "⊗": r"\otimes"},
    **{"⊙": r"\odot", "∥": r"\|", "⟨": r"\langle", "⟩": r"\rangle", "ℓ": r"\ell", "∘": r"\circ", "○": r"\bigcirc", "●": r"\bullet"},
    **{"¹": "^{1}", "²": "^{2}", "³": "^{3}", "⁺": "^{+}", "⁻": "^{-}", "⁼": "^{=}", "⁽": "^{(}", "⁾": "^{)}", "ⁿ": "^{n}", "ᵀ": "^{T}"},
    **{"₊": "_{+}", "₋": "_{-}", "₌": "_{=}", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "µ": r"\mu"},
    **{mark: f"^{{{'0123456789'[place]}}}" for place, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{mark: f"_{{{place}}}" for place, mark in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{"α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon", "ϵ": r"\epsilon", "ζ": r"\zeta", "η": r"\eta"},
    **{"θ": r"\theta", "ϑ": r"\vartheta", "ι": r"\iota", "κ": r"\kappa", "λ": r"\lambda", "μ": r"\mu", "ν": r"\nu", "ξ": r"\xi", "ο": "o"},
    **{"π": r"\pi", "ρ": r"\rho", "σ": r"\sigma", "ς": r"\varsigma", "τ": r"\tau", "υ": r"\upsilon", "φ": r"\varphi", "ϕ": r"\phi"},
    **{"χ": r"\chi", "ψ": r"\psi", "ω": r"\omega", "Γ": r"\Gamma", "Δ": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda", "Ξ": r"\Xi"},
    **{"Π": r"\Pi", "Σ": r"\Sigma", "Υ": r"\Upsilon", "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega"},
    **{greek: rf"\mathrm{{{latin}}}" for greek, latin in zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True)},
}

AMS = {
    **{"▲": r"\blacktriangle", "△": r"\vartriangle", "▼": r"\blacktriangledown", "▽": r"\triangledown", "✓": r"\checkmark"},
    **{"★": r"\bigstar", "■": r"\blacksquare", "□": r"\square", "◆": r"\blacklozenge", "◇": r"\lozenge", "≲": r"\lesssim", "≳": r"\gtrsim"},
}
"""Symbols of the package amssymb."""

CHARACTERS = {**SPECIAL, **TEXT, **{mark: f"${command}$" for mark, command in {**MATH, **AMS}.items()}}

LETTERS = frozenset(map(chr, range(0xC0, 0x180))) - frozenset("×÷ĦħĸĿŀŉŦŧſ")
"""Letters that T1 has or composes, so that they may stand in the file as they are."""

ABOVE = {
    **{"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u0308": '"'},
    **{"\u030a": "r", "\u030b": "H", "\u030c": "v"},
}
BELOW = {"\u0323": "d", "\u0327": "c", "\u0328": "k", "\u0331": "b"}
MOST_ACCENTS = 2

LIGATURES = re.compile(r"([-',])(?=\1)|([!?])(?=\\`)")
"""`--` would be a dash, `''` and `,,` quotation marks, and ?` an inverted mark."""


PLAIN = re.compile(r"(?:[A-Za-z0-9.:;/()+= ]|,(?!,))*")
"""Text that is LaTeX as it stands."""


def escaped(text: str) -> str:
    """Text as LaTeX that prints it on one line: nothing in it is a command, an option, a ligature or the end of a cell.

    Any run of white space becomes one space. A character that pdflatex cannot print becomes its visible code, `[U+4E2D]`.
    """
    if PLAIN.fullmatch(text):
        return " ".join(text.split()) if "  " in text else text
    clusters = _clusters(unicodedata.normalize("NFC", text))
    printed = "".join(_cluster(cluster) for cluster in clusters)
    return re.sub(" +", " ", LIGATURES.sub(lambda found: f"{found[0]}{{}}", printed))


def comment(text: str) -> str:
    """Text for the rest of a line after `%`: whatever it holds, it ends neither the line nor the file's encoding."""
    if text.isprintable():
        return " ".join(text.split())
    return " ".join("".join(char if char.isprintable() else " " if char.isspace() else _code(char) for char in text).split())


def _clusters(text: str) -> list[str]:
    """Characters, each with the combining marks behind it."""
    found: list[str] = []
    for char in text:
        if found and unicodedata.combining(char):
            found[-1] += char
        else:
            found.append(char)
    return found


def _cluster(cluster: str) -> str:
    if len(cluster) == 1 and (known := _character(cluster)):
        return known
    apart = unicodedata.normalize("NFD", cluster)
    base, marks = apart[0], apart[1:]
    if base.isascii() and base.isalpha() and len(marks) <= MOST_ACCENTS and all(mark in ABOVE or mark in BELOW for mark in marks):
        return _accented(base, marks)
    return "".join(_character(char) or _code(char) for char in cluster)


def _character(char: str) -> str:
    """What prints one character, or nothing."""
    if char in CHARACTERS:
        return CHARACTERS[char]
    if char.isspace():
        return " "
    return char if (char.isascii() and char.isprintable()) or char in LETTERS else ""


def _accented(base: str, marks: str) -> str:
    above = [ABOVE[mark] for mark in marks if mark in ABOVE]
    printed = f"\\{base}" if above and base in "ij" else base
    # \accent wants a letter behind it, so the marks above come first and those below go around them.
    for accent in (*above, *(BELOW[mark] for mark in marks if mark in BELOW)):
        printed = f"\\{accent}{{{printed}}}"
    return printed


def _code(char: str) -> str:
    return f"{{[}}U+{ord(char):04X}{{]}}"
