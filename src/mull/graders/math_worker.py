"""The process in which math-verify and sympy run: reads JSON lines, writes JSON lines. Started by `math.py` alone.

A request {"id", "gold", "answer", "seconds"} holds two LaTeX formulas; the reply is {"id", "equal": bool} or
{"id", "equal": false, "why": ...} for an answer that is no formula, or {"id", "unscorable": ...}.

math-verify says what may be equal; `confirmed` has the last word, because math-verify compares with 15 digits and
chops absolutely: it calls pi/10**20 and pi/10**21 the same, and any two equations without solutions.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from typing import Any

MEMORY_BYTES = 1 << 30
SAMPLES = 3  # points at which two expressions with symbols have to agree


def parse(latex: str) -> Any:
    """One sympy object for a whole formula, or None. math-verify's timeouts are off: they need the main thread's
    SIGALRM, which is ours here."""
    import math_verify
    from latex2sympy2_extended import NormalizationConfig

    plain = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    found = math_verify.parse(
        f"${latex}$",
        [math_verify.LatexExtractionConfig(boxed_match_priority=-1, normalization_config=plain)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",  # the whole formula or nothing: never a part of it
        parsing_timeout=None,  # type: ignore[arg-type]
    )
    return found[0] if found and not isinstance(found[0], str) else None


def compare(gold_latex: str, answer_latex: str) -> dict[str, Any]:
    import math_verify

    gold = parse(gold_latex)
    if gold is None:
        return {"unscorable": f"math-verify cannot read the reference answer {gold_latex!r}"}
    answer = parse(answer_latex)
    if answer is None:
        return {"equal": False, "why": "not a formula that math-verify can read"}
    gold, answer = imaginary(gold), imaginary(answer)
    equal = math_verify.verify(gold, answer, timeout_seconds=None) and confirmed(gold, answer)
    return {"equal": bool(equal)}


def imaginary(expr: Any) -> Any:
    """`i` is the imaginary unit. latex2sympy takes it for a variable."""
    import sympy

    if not isinstance(expr, sympy.Basic):
        return expr
    units = [s for s in expr.free_symbols if getattr(s, "name", "") == "i"]
    return expr.subs({s: sympy.I for s in units}) if units else expr


def confirmed(gold: Any, answer: Any) -> bool:
    """Two expressions agree to 30 digits, at sample points where they have symbols; two equations are proportional.

    What is neither (sets, inequalities, an equation beside an expression) stays with math-verify's word.
    """
    import sympy

    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        sides: list[Any] = [eq.lhs - eq.rhs for eq in (gold, answer)]  # type: ignore[operator]
        if not all(isinstance(side, sympy.Expr) for side in sides):
            return True
        pairs = list(sampled(*sides))
        return all(close(g * a0, a * g0) for (g, a), (g0, a0) in itertools.pairwise(pairs))
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return all(close(g, a) for g, a in sampled(gold, answer))
    return True


def sampled(gold: Any, answer: Any) -> Any:
    """Pairs of 40-digit values at the same rational points; points where either has no finite value are left out."""
    import sympy

    names = sorted({s.name for s in gold.free_symbols | answer.free_symbols if isinstance(s, sympy.Symbol)})
    for sample in range(SAMPLES if names else 1):
        point = {name: sympy.Rational(7 + 4 * i + 6 * sample, 5 + 2 * i + sample) for i, name in enumerate(names)}
        values = []
        for expr in (gold, answer):
            at = expr.subs({s: point[s.name] for s in expr.free_symbols if isinstance(s, sympy.Symbol)})
            values.append(at.doit().evalf(40))
        if all(value.is_number and value.is_finite for value in values):
            yield tuple(values)


def close(x: Any, y: Any) -> bool:
    size = max(abs(x), abs(y))
    return bool(size == 0 or abs(x - y) <= size * 10**-30)


def main() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # no such limit on this system; the deadline still holds
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    import logging

    logging.disable(logging.CRITICAL)
    compare(r"\frac{x}{2}+1", r"1+\frac{2x}{4}")  # loads the grammar, before the first deadline starts
    replies.write("ready\n")
    for line in sys.stdin:
        request = json.loads(line)
        # The default action of SIGALRM ends the process, in C code too: a runaway does not outlive a dead parent.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 1.0)
        try:
            reply = compare(request["gold"], request["answer"])
        except MemoryError:
            reply = {"unscorable": "the comparison ran out of memory"}
        except Exception as problem:  # RecursionError, or a bug in sympy: this one pair cannot be judged
            reply = {"unscorable": f"the comparison failed: {type(problem).__name__}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps({"id": request["id"], **reply}) + "\n")


if __name__ == "__main__":
    main()
