"""Numbers as people and models write them, read exactly: no floats, no evaluation of expressions.

A numeral is an integer, a decimal, a fraction, a mixed number, a power of integers or a number in scientific notation,
with an optional unit. Everything here is decided with `Fraction`, in the caller's process, in microseconds. What is not
a numeral by this grammar (`2+3`, `\\gcd(24,36)`, `\\sqrt{4}`) is not read at all: see `math.py` for why that matters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 1000  # of one literal
MAX_EXPONENT = 1000  # of ten, and of powers

_UNICODE = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": "/",
    "π": r"\pi ",
    "∞": r"\infty ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∈": r"\in ",
    "≤": r"\leq ",
    "≥": r"\geq ",
    "²": "^{2}",
    "³": "^{3}",
    "º": "°",
    "\u00a0": " ",
    "\u202f": " ",
}
_REWRITES = [
    (re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle)(?![A-Za-z])\.?"), ""),
    (re.compile(r"(?<=\d)(?:\\,|\\ |\\;|~|\{,\}|,\\!\s*)(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|~|\\quad(?![A-Za-z])|\\qquad(?![A-Za-z])"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:mbox|textbf|textit|textrm|textup|mathrm|mathbf|mathit|bf|rm)\s*\{"), r"\\text{"),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z])|\^\{?°\}?"), "°"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\(?:ge|le)(?![A-Za-z])"), lambda m: m.group() + "q"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\s+"), " "),
]


def normalise(text: str) -> str:
    """One spelling for what LaTeX and Unicode spell in several ways; the value is untouched."""
    text = text.strip()
    for opening, closing in ((r"\boxed{", "}"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            if (closing == "}" and not _balanced(inner)) or "$" in inner.replace(r"\$", "") or inner.endswith("\\"):
                continue
            text = inner.strip()
    for symbol, spelling in _UNICODE.items():
        text = text.replace(symbol, spelling)
    for pattern, spelling in _REWRITES:
        text = pattern.sub(spelling, text)
    text = text.strip()
    return text[:-1].rstrip() if text.endswith(".") else text


def _balanced(text: str) -> bool:
    depth = 0
    for char in text.replace("\\{", "").replace("\\}", ""):
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    return depth == 0


# ------------------------------------------------------------------------------------------------ units

_UNIT_NAMES = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "inch": "inch inches in",
    "foot": "foot feet ft",
    "yard": "yard yd",
    "mile": "mile mi",
    "second": "second sec s",
    "minute": "minute min",
    "hour": "hour hr h",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "year",
    "mg": "mg",
    "g": "g gram",
    "kg": "kg kilogram",
    "pound": "pound lb",
    "ounce": "ounce oz",
    "ton": "ton",
    "ml": "ml mL milliliter",
    "l": "l L liter litre",
    "gallon": "gallon",
    "mph": "mph",
    "dollar": "dollar $",
    "cent": "cent ¢",
    "euro": "euro €",
    "yen": "yen ¥",
    "poundsterling": "£",
    "degree": "degree deg °",
    "radian": "radian rad",
    "%": "percent %",
    "unit": "unit",
}
UNITS = {alias: unit for unit, aliases in _UNIT_NAMES.items() for alias in aliases.split()}
# Words that change the number or hedge: never a unit.
_NOT_UNITS = re.compile(
    "(hundred|thousand|million|billion|trillion|dozen|half|third|quarter|score|or|and|not|plus|minus|times|over|mod|pi|e|"
    "about|approximately|roughly|nearly|almost|maybe|if|is|no|wrong|correct|exactly|infinity|squared|cubed|point)s?",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"(?P<body>.*?)\s*(?P<unit>\\text\s*\{(?P<text>[A-Za-z $%.]{1,32})\}"
    r"|(?<![A-Za-z\\{^_])(?P<word>[A-Za-z]+(?: [A-Za-z]+)?)|[°%€¥£¢$])\s*(?:\^\s*\{?(?P<power>[23])\}?)?",
    re.DOTALL,
)


def unit_of(words: str, known: bool) -> str | None:
    """The unit that `words` name, in one spelling; None when they name none. `known`: only the listed ones."""
    parts = words.replace(".", " ").split()
    power = ""
    if len(parts) == 2 and parts[0].lower() in ("square", "sq", "cubic", "cu"):
        power = "^2" if parts[0].lower().startswith("s") else "^3"
        parts = parts[1:]
    if not parts or len(parts) > 2 or any(_NOT_UNITS.fullmatch(part) for part in parts):
        return None
    if len(parts) == 1:
        for word in (parts[0], parts[0].lower(), parts[0].lower().removesuffix("s")):
            if word in UNITS:
                return UNITS[word] + power
    if known or any(len(p) < 2 or not p.isalpha() for p in parts):
        return None
    return " ".join(p.lower().removesuffix("s") for p in parts) + power


def split_unit(text: str) -> tuple[str, str]:
    """(text without its unit, the unit or ""). Bare words must be listed units; inside `\\text{}` any noun will do.

    >>> split_unit(r"864 \\text{ inches}^2"), split_unit("18 dollars"), split_unit("5 or 7")
    (('864', 'inch^2'), ('18', 'dollar'), ('5 or 7', ''))
    """
    text = text.strip()
    sign, unsigned = (text[0], text[1:].lstrip()) if text[:1] in ("-", "+") else ("", text)
    for mark in ("\\$", "$", "€", "¥", "£"):
        if unsigned.startswith(mark):
            return (sign + unsigned[len(mark) :].strip(), UNITS[mark.removeprefix("\\")])
    if text.endswith("\\$"):
        return text[:-2].strip(), "dollar"
    match = _UNIT.fullmatch(text)
    if not match or not match["body"].strip():
        return text, ""
    words = match["text"] or match["word"] or match["unit"]
    if match["word"] and not re.search(r"[\d})]$", match["body"].strip()):
        return text, ""
    if match["word"] and len(match["word"]) == 1 and not re.search(r"\d \s*$", text[: match.start("word")]):
        return text, ""  # `5m` is a product; `5 m` is a length
    unit = unit_of(words, known=match["text"] is None)
    if unit is None:
        return text, ""
    return match["body"].strip(), unit + (f"^{match['power']}" if match["power"] else "")


# ---------------------------------------------------------------------------------------------- numerals


@dataclass(frozen=True, slots=True)
class Numeral:
    """`value` is the face value (10 for `10%`, 52 for `52_8`); `unit` is "" or a unit; `base` is 10 unless written."""

    value: Fraction
    unit: str = ""
    base: int = 10


_INT = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DEC = rf"(?:{_INT}(?:\.\d*)?|\.\d+)"
_SIGN = r"[+-]?"
_EXP = r"(?:\{\s*([+-]?\d+)\s*\}|\(([+-]?\d+)\)|([+-]?\d+))"
_DECIMAL = re.compile(_DEC)
_E_NOTATION = re.compile(rf"({_DEC})[eE]({_SIGN}\d+)")
_TIMES_TEN = re.compile(rf"(?:({_DEC})\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*{_EXP}")
_POWER = re.compile(rf"({_INT})\s*\^\s*{_EXP}")
_FRAC = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_SLASH = re.compile(rf"({_DEC})\s*/\s*({_SIGN}{_DEC})")
_MIXED = re.compile(rf"({_INT})\s*(?:\\frac\s*(?:\{{(\d+)\}}|(\d))\s*(?:\{{(\d+)\}}|(\d))|(?<=\d) (\d+)\s*/\s*(\d+))")
_BASE = re.compile(r"([0-9]+)\s*_\s*(?:\{(\d{1,2})\}|(\d))")


def parse_numeral(text: str) -> Numeral | None:
    """The numeral that the whole of `text` (already normalised) writes, or None.

    >>> parse_numeral("1,200.50").value, parse_numeral("1e-3").value, parse_numeral(r"-\\\\frac{2}{4}").value
    (Fraction(2401, 2), Fraction(1, 1000), Fraction(-1, 2))
    """
    body, unit = split_unit(text)
    if len(body) > MAX_DIGITS:
        return None
    sign = 1
    if body[:1] in ("-", "+"):
        sign = -1 if body[0] == "-" else 1
        body = body[1:].lstrip()
    if match := _BASE.fullmatch(body):
        base = int(match[2] or match[3])
        if not 2 <= base <= 36 or any(int(d) >= base for d in match[1]):
            return None
        return Numeral(Fraction(sign * int(match[1])), unit, base)
    value = _unsigned(body)
    return None if value is None else Numeral(sign * value, unit)


def _unsigned(body: str) -> Fraction | None:
    if _DECIMAL.fullmatch(body):
        return _decimal(body)
    if match := _E_NOTATION.fullmatch(body):
        return _scaled(_decimal(match[1]), match[2])
    if match := _TIMES_TEN.fullmatch(body):
        return _scaled(_decimal(match[1]) if match[1] else Fraction(1), match[2] or match[3] or match[4])
    if match := _POWER.fullmatch(body):
        base, exponent = _decimal(match[1]), int(match[2] or match[3] or match[4])
        if abs(exponent) * len(match[1]) > 4 * MAX_EXPONENT or (base == 0 and exponent <= 0):
            return None  # 4000 digits: Python prints no integer of more than 4300
        return base**exponent
    if match := _MIXED.fullmatch(body):
        over, under = (
            int(next(g for g in pair if g)) for pair in ((match[2], match[3], match[6]), (match[4], match[5], match[7]))
        )
        return _decimal(match[1]) + Fraction(over, under) if 0 < over < under else None
    if match := _FRAC.fullmatch(body):
        return _ratio(match[1] or match[2] or "", match[3] or match[4] or "")
    if match := _SLASH.fullmatch(body):
        return _ratio(match[1], match[2])
    return None


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").removesuffix("."))


def _scaled(value: Fraction, exponent: str) -> Fraction | None:
    if len(exponent) > 6 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    return value * Fraction(10) ** int(exponent)


def _ratio(over: str, under: str) -> Fraction | None:
    parts: list[Fraction] = []
    for part in (over.strip(), under.strip()):
        sign = -1 if part.startswith("-") else 1
        part = part.removeprefix("-").removeprefix("+").strip()
        if not _DECIMAL.fullmatch(part):
            return None
        parts.append(sign * _decimal(part))
    return parts[0] / parts[1] if parts[1] else None
