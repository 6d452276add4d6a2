"""What the arithmetic tasks share: a small safe expression parser, and the slips that people make.

The parser reads integers, variable names, `+ - * /` and parentheses. It never evaluates text, refuses anything else
(powers, unary plus, decimals, digits outside ASCII, leading zeros) and bounds length and depth before it starts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 120
MAX_DEPTH = 12

_SPACES = " *"
_TOKEN = re.compile(_SPACES + r"((?:0|[1-9][0-9]{0,5})(?![0-9])|[a-z](?![a-z])|[-+*/()])")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")


@dataclass(frozen=True, slots=True)
class Op:
    """A binary operation; `sign` is one of + - * /."""

    sign: str
    left: Node
    right: Node


Node = int | str | Op  # a number, a variable's name, or an operation


class _Refused(Exception):
    pass


def integer(text: str) -> int | None:
    """The integer that `text` is, written plainly in ASCII (spaces around it allowed); None for anything else."""
    text = text.strip(" \n")
    return int(text) if _INTEGER.fullmatch(text) else None


def parse(text: str) -> Node | None:
    """The tree of an expression, or None. A minus sign in front of a number is read only where a value was
    substituted for a variable, at the start or after an operator (`-3+5`, `5*-3`); `-(3)` and `-a` are refused."""
    if len(text) > MAX_CHARS:
        return None
    tokens: list[str] = []
    at = 0
    text = text.strip(" \n")
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(match[1])
        at = match.end()
    try:
        node, end = _sum(tokens, 0, 0)
    except _Refused:
        return None
    return node if end == len(tokens) else None


def _sum(tokens: list[str], at: int, depth: int) -> tuple[Node, int]:
    left, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "+-":
        right, end = _product(tokens, at + 1, depth)
        left, at = Op(tokens[at], left, right), end
    return left, at


def _product(tokens: list[str], at: int, depth: int) -> tuple[Node, int]:
    left, at = _atom(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "*/":
        right, end = _atom(tokens, at + 1, depth)
        left, at = Op(tokens[at], left, right), end
    return left, at


def _atom(tokens: list[str], at: int, depth: int) -> tuple[Node, int]:
    if at >= len(tokens) or depth > MAX_DEPTH:
        raise _Refused
    token = tokens[at]
    if token == "(":
        node, at = _sum(tokens, at + 1, depth + 1)
        if at >= len(tokens) or tokens[at] != ")":
            raise _Refused
        return node, at + 1
    if token == "-" and at + 1 < len(tokens) and tokens[at + 1].isdigit() and tokens[at + 1] != "0":
        return -int(tokens[at + 1]), at + 2
    if token.isdigit():
        return int(token), at + 1
    if token.isalpha():
        return token, at + 1
    raise _Refused


def leaves(node: Node) -> list[int | str]:
    """The numbers and names of an expression, from left to right."""
    return leaves(node.left) + leaves(node.right) if isinstance(node, Op) else [node]


def apply(sign: str, left: Fraction, right: Fraction) -> Fraction | None:
    """Exact; None for a division by zero."""
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    if sign == "*":
        return left * right
    return left / right if right else None


def evaluate(node: Node, values: Mapping[str, int] | None = None) -> Fraction | None:
    """The exact value; None for a division by zero or an unknown name."""
    if isinstance(node, int):
        return Fraction(node)
    if isinstance(node, str):
        return Fraction(values[node]) if values and node in values else None
    left, right = evaluate(node.left, values), evaluate(node.right, values)
    return None if left is None or right is None else apply(node.sign, left, right)


def slip(sign: str, left: int, right: int, result: int, rng: random.Random) -> int:
    """A wrong result of `left sign right`, as people get it wrong: one off, a carry or borrow forgotten, a
    neighbouring entry of the times table, another operation. `result` is the right one, and is never returned."""
    one, ten = rng.choice((-1, 1)), rng.choice((-10, 10))
    kind = rng.random()
    if sign == "*":
        wrong = result + one * (left if rng.random() < 0.5 else right) if kind < 0.5 else result + ten
        if kind > 0.8:
            wrong = left + right
    elif sign == "/":
        wrong = result + one
    else:
        wrong = result + one if kind < 0.45 else result + ten
        if kind > 0.92:
            wrong = left - right if sign == "+" else left + right
    return wrong if wrong != result and (wrong >= 0 or result < 0) else result + 1
