"""The final answer in what a model wrote.

Strict, so that nobody is paid for hedging: exactly one candidate is taken, always the last one of the strongest
convention that occurs, and nothing is searched for inside it. In order:

1. the last balanced `\\boxed{...}` (or `\\fbox{...}`); an escaped brace `\\{` does not count as a brace;
2. the last line that begins with `####` (the convention of GSM8K);
3. the last `Answer: x`, `final answer is x` or `the answer is x`, up to the end of its line (of the next line where
   the model broke it right after the colon);
4. the whole text, where it is one line of at most `MAX_LINE` characters.

Only what follows the last `</think>` counts, and a text whose thought was never closed has no answer: a draft in a
truncated thought is not one.
"""

from __future__ import annotations

import re

MAX_LINE = 120  # characters; a longer bare line is prose, not an answer

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASHES = re.compile(r"^[ \t]*####[ \t]*(.*)$", re.MULTILINE)
_PHRASE = re.compile(
    r"\b(?:(?:final|correct)[ \t]+answer[*_]*[ \t]*(?:is\b|:)|the[ \t]+answer[ \t]+is\b|answer[*_]*[ \t]*:)"
    r"[*_:]*[ \t]*(?:\r?\n[ \t]*)?([^\r\n]*)",
    re.IGNORECASE,
)


def extract_answer(text: str) -> str | None:
    """The final answer of `text` by the conventions above, or None. Never raises.

    >>> extract_answer(r"So \\boxed{3}. No: \\boxed{\\frac{1}{2}}")
    '\\\\frac{1}{2}'
    >>> extract_answer("We add.\\n#### 1,200")
    '1,200'
    >>> extract_answer("It is either 5\\nor 7")
    """
    said = _after_thought(text)
    if said is None:
        return None
    boxed = last_boxed(said)
    if boxed is not None:
        return _tidy(boxed)
    hashes = _HASHES.findall(said)
    if hashes:
        return _tidy(hashes[-1])
    phrases = _PHRASE.findall(said)
    if phrases:
        return _tidy(phrases[-1])
    line = said.strip()
    return _tidy(line) if len(line) <= MAX_LINE and len(line.splitlines()) == 1 else None


def last_boxed(text: str) -> str | None:
    """The content of the last balanced box (the innermost of nested ones), or None.

    One pass over the braces, so that a hostile text of thousands of open boxes costs linear time.
    """
    opens = {m.end() - 1 for m in _BOX.finditer(text)}
    if not opens:
        return None
    stack: list[int] = []
    best = best_start = -1
    i = min(opens)
    while i < len(text):
        char = text[i]
        if char == "\\":
            i += 2
            continue
        if char == "{":
            stack.append(i)
        elif char == "}" and stack:
            start = stack.pop()
            if start in opens and start > best_start:
                best_start, best = start, i
        i += 1
    return None if best_start < 0 else text[best_start + 1 : best]


def _after_thought(text: str) -> str | None:
    head, found, tail = text.rpartition("</think>")
    text = tail if found else head + tail
    return None if "<think>" in text else text


def _tidy(answer: str) -> str | None:
    """Strips spaces, Markdown emphasis and one full stop; an empty answer is none."""
    answer = answer.strip().strip("*_`").strip()
    if answer.endswith(".") and not answer.endswith(("..", "\\right.")):
        answer = answer[:-1].rstrip()
    return answer.rstrip("*_`").rstrip() or None
