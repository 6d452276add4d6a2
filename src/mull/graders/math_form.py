"""The outer form of a mathematical answer: a list, a tuple, an interval, a union, a matrix, words or one value.

math-verify is generous about form ({1,2} passes for (1,2), "5 or 7" for 7), so the form is read here, exactly, and
only single values are ever sent to it. Also here: how large a number a formula may write down before it is refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mull.graders.numerals import normalise, parse_numeral, split_unit

MAX_CHARS = 400  # of a formula that goes to sympy
MAX_DEPTH = 20  # of nested brackets
MAX_LOG10 = 4000.0  # of any number that a formula writes down: Python prints no integer of more than 4300 digits

# ------------------------------------------------------------------------------------------------- form


@dataclass(frozen=True, slots=True)
class Form:
    """`kind` is "value", "words", "list" (unordered, also `{...}`), "union", "matrix", or the two brackets of a tuple
    or interval. `parts` holds one text for a value or words, the elements otherwise; a matrix adds its `rows`."""

    kind: str
    parts: tuple[str, ...]
    rows: int = 0


_MATRIX = re.compile(r"\\begin\{([pbvBV]?)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![A-Za-z])\s*(.*)", re.DOTALL)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_OR = re.compile(
    r"\\text\s*\{\s*,?\s*(?:or|and)\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])|\\lor(?![A-Za-z])|;", re.IGNORECASE
)
_WORDS = re.compile(r"\\text\s*\{([^{}\\$]*)\}|([A-Za-z]{2,}(?:[ -][A-Za-z]+)*)|\(?([A-Z])\)?")
_FUNCTIONS = frozenset(
    (
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "sqrt",
        "pi",
        "arcsin",
        "arccos",
        "arctan",
        "infinity",
    )
)


def read_form(text: str, merge_thousands: bool = True) -> Form:
    """The form of an answer. `merge_thousands`: a comma before three digits groups digits instead of separating."""
    text = normalise(text)
    if merge_thousands and parse_numeral(text) is not None:
        return Form("value", (text,))
    words = words_of(text)
    if words is not None:
        return Form("words", (words,))
    if match := _MEMBER.fullmatch(text):
        text = match[1].strip()
    if match := _MATRIX.fullmatch(text):
        rows = [row for row in re.split(r"\\\\", match[2]) if row.strip()]
        return Form(match[1] + "matrix", tuple(cell.strip() for row in rows for cell in row.split("&")), len(rows))
    pieces = split_top(text, r"\cup")
    if len(pieces) > 1:
        return Form("union", tuple(pieces))
    if text.startswith(r"\{") and closes_at(text, 1) == len(text) - 1:
        return Form("list", tuple(plus_minus(split_top(text[2:-2], ","))))
    if text[:1] in ("(", "[") and closes_at(text, 0) == len(text) - 1:
        inner = split_top(text[1:-1], ",")
        if len(inner) > 1:
            return Form(text[0] + text[-1], tuple(inner))
    if merge_thousands:
        text = _THOUSANDS.sub(lambda m: m.group().replace(",", ""), text)
    pieces = plus_minus([p for p in split_top(_OR.sub(",", text), ",") if p])
    return Form("list", tuple(pieces)) if len(pieces) > 1 else Form("value", (pieces[0] if pieces else "",))


def words_of(text: str) -> str | None:
    """`\\text{Evelyn}`, `Evelyn`, `(C)` in one spelling; None for what is not words. A lone letter that is not a
    capital is a variable."""
    match = _WORDS.fullmatch(text.strip())
    if not match:
        return None
    words = next(group for group in match.groups() if group is not None)
    words = re.sub(r"[^\w% -]", "", words).strip().lower()
    return None if not words or words in _FUNCTIONS or (match[2] and len(words) < 3) else " ".join(words.split())


def split_top(text: str, separator: str) -> list[str]:
    """`text` cut at each `separator` outside all brackets, pieces stripped."""
    cut = re.compile(re.escape(separator) + (r"(?![A-Za-z])" if separator[-1].isalpha() else ""))
    pieces, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if depth == 0 and (match := cut.match(text, i)):
            pieces.append(text[start:i].strip())
            i = start = match.end()
            continue
        if text[i] == "\\" and text[i + 1 : i + 2] not in ("{", "}"):
            i += 2
            continue
        depth += (text[i] in "({[") - (text[i] in ")}]")
        i += 1
    return [*pieces, text[start:].strip()]


def closes_at(text: str, opening: int) -> int:
    """Index of the bracket that closes the one at `opening` (any kind closes any: `[0,1)`), or -1."""
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] in "({[") - (text[i] in ")}]")
        if depth == 0:
            return i
    return -1


def plus_minus(pieces: list[str]) -> list[str]:
    """`a \\pm b` is the two values that it stands for. More than one sign in a piece is left alone: ambiguous."""
    out: list[str] = []
    for piece in pieces:
        if len(re.findall(r"\\pm(?![A-Za-z])", piece)) == 1 and r"\mp" not in piece:
            out += [
                re.sub(r"\\pm(?![A-Za-z])", sign, piece, count=1).strip().removeprefix("+").strip() for sign in "+-"
            ]
        else:
            out.append(piece)
    return out


_ASSIGNED = re.compile(r"((?:\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?|[A-Za-z]\([A-Za-z]\)))\s*=(?!=)\s*(.*)", re.DOTALL)
_RELATION = re.compile(
    r"(?<![<>!\\])=|<|>|\\leq?(?![A-Za-z])|\\geq?(?![A-Za-z])|\\neq?(?![A-Za-z])|\\lt|\\gt|\\equiv|\\approx|\\sim"
)


def split_name(text: str) -> tuple[str, str]:
    """(`x`, `5`) from `x = 5`; ("", text) from anything that is not one name set equal to one value."""
    match = _ASSIGNED.fullmatch(text.strip())
    if not match or _RELATION.search(match[2]) or not match[2]:
        return "", text.strip()
    return match[1].replace(" ", ""), match[2].strip()


def is_relation(text: str) -> bool:
    return _RELATION.search(text) is not None


# ------------------------------------------------------------------------- what goes to sympy, and what not

# What an answer may not leave to be worked out, unless the reference does. With `\gcd(24,36)` for 12, the question
# would be its own answer.
UNEVALUATED = re.compile(
    r"\\(gcd|lcm|sum|prod|int|iint|oint|lim|max|min|sup|inf|det|binom|choose|mod|bmod|pmod|lfloor|lceil|deg|arg|Re|Im"
    r"|operatorname|frac\s*\{?d|partial|sqrt\s*\{\s*\d+\s*\^|pm|mp)(?![A-Za-z])|!|\b(?:gcd|lcm|max|min|mod|floor|ceil)\b"
)
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")


def for_sympy(text: str) -> str:
    """A value as exact LaTeX: no unit, no decimals (`0.25` becomes `{\\frac{25}{100}}`: floats compare loosely)."""
    text = split_unit(text)[0].replace("°", "")
    return _DECIMAL.sub(lambda m: f"{{\\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}}}", text)


def too_large(text: str) -> str:
    """Why a formula may not go to sympy ("" when it may): its length, its depth, or the size of its numbers."""
    if len(text) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    tokens = re.findall(r"\d+|\\[A-Za-z]+|\\.|\S", text)
    size, rest = _size(tokens, 0, 0)
    if rest < len(tokens) or math.isnan(size):
        return "brackets do not match, or nest too deep"
    return "writes a number too large to work with" if size > MAX_LOG10 else ""


def _size(tokens: list[str], i: int, depth: int) -> tuple[float, int]:
    """(a bound on log10 of every number in this group, index after the group). NaN: malformed.

    A sum or product of a and b is bounded by log a + log b + 1; a power by log a times the exponent; a factorial and
    a binomial of arguments above 10^4 by infinity.
    """
    total = last = 0.0
    while i < len(tokens):
        token = tokens[i]
        if token in ")}]" or token == r"\}":
            break
        if token == "^":
            exponent, i = _exponent(tokens, i + 1, depth)
            power = _raised(max(last, 1.0), exponent)
            total, last = total - last + power, power
        elif token == r"\binom":
            above, i = _atom(tokens, i + 1, depth)
            below, i = _atom(tokens, i, depth)
            last = 10 ** max(above, below) if max(above, below) <= 4 else math.inf
            total += last
        elif token == "!":
            last = 4 * 10**last if last <= 3 else math.inf
            total += last
            i += 1
        else:
            last, i = _atom(tokens, i, depth)
            total += last
        if math.isnan(total):
            return math.nan, i
    return total, i


def _exponent(tokens: list[str], i: int, depth: int) -> tuple[float, int]:
    """The exponent at i; `a^b^c` is a^(b^c)."""
    while i < len(tokens) and tokens[i] in "+-":
        i += 1
    size, i = _atom(tokens, i, depth)
    if i < len(tokens) and tokens[i] == "^" and depth < MAX_DEPTH:
        above, i = _exponent(tokens, i + 1, depth + 1)
        size = _raised(size, above)
    return size, i


def _raised(log_base: float, log_exponent: float) -> float:
    return log_base * 10**log_exponent if log_exponent <= 300 else math.inf


def _atom(tokens: list[str], i: int, depth: int) -> tuple[float, int]:
    if i >= len(tokens):
        return math.nan, i
    token = tokens[i]
    if token in "({[" or token == r"\{":
        if depth >= MAX_DEPTH:
            return math.nan, i
        size, i = _size(tokens, i + 1, depth + 1)
        return (size, i + 1) if i < len(tokens) else (math.nan, i)
    if not token.isdecimal():
        return 0.0, i + 1
    return math.log10(max(2, int(token[:18]))) + max(0, len(token) - 18), i + 1
