"""The compare page as text: what is in it, what cannot get in; and how a trace becomes a tree of it.

What a browser makes of it is in test_compare_browser.py.
"""

import copy
import json
import math
import re
from typing import Any

import pytest

from mull.errors import StopReason, UserError
from mull.evals.compare_data import CompareData, tree_data
from mull.evals.compare_page import render_compare, write_compare
from mull.types import Cost, Question, Span, SpanKind, StepVerdict, Trace, Verdict
from tests.evals.compare_fixture import example_data
from tests.evals.test_report import ASSETS, HOSTILE, Page

# what the page's scripts compare with, and so cannot be poisoned without being other data
KEPT = {"unit", "law", "kind", "name", "task", "id"}


def hostile() -> CompareData:
    """The example with a nasty string at the end of every text in it."""

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        return value + HOSTILE if isinstance(value, str) and key not in KEPT else value

    data = poison(example_data())
    for row in data["strategies"]:
        row["name"] += HOSTILE
    return data


# ------------------------------------------------------------------------------------------------ the page


def test_hostile_text_stays_text():
    page = Page(render_compare(hostile()))
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 4 and "img" not in names
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    data = json.loads(page.scripts[0])
    assert data["trees"][0]["nodes"][3]["text"].endswith(HOSTILE)
    assert "<" not in page.scripts[0] and "\u2028" not in page.scripts[0]
    for place in ("summary", "command"):
        assert any(HOSTILE in text for text in page.texts), place


def test_nothing_is_fetched():
    page = Page(render_compare(example_data()))
    for tag, attributes in page.tags:
        for key in ("src", "href", "action", "srcset"):
            assert not attributes.get(key) or attributes[key] == "data:,", (tag, attributes)
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "Content-Security-Policy" in a.values()]
    assert policy and policy.startswith("default-src 'none'") and policy.count("sha256-") == 3
    css = ASSETS.joinpath("compare.css").read_text()
    assert "url(" not in css and "@import" not in css


def test_render_is_pure_and_needs_every_field(tmp_path):
    data: Any = example_data()
    before = copy.deepcopy(data)
    assert render_compare(data) == render_compare(json.loads(json.dumps(data)))
    assert data == before
    assert write_compare(data, tmp_path / "deep" / "compare.html").read_text() == render_compare(data)
    del data["latency"]
    with pytest.raises(UserError, match="latency"):
        render_compare(data)


def test_words_and_tables():
    data = example_data()
    texts = Page(render_compare(data)).texts
    everything = " ".join(texts)
    assert data["summary"][0] in texts and data["summary"][1] in texts and data["command"] in texts
    assert "200 of each task, held out" in texts and "0, 1, 2" in texts
    assert "All points (252)" in texts and "Fits (25)" in texts
    assert "inside" in texts and "not yet run" in texts
    inside = sum(p["inside"] is True for p in data["predictions"])
    assert f"{inside} of 2 observations fell inside the predicted 95% interval." in texts
    assert "the scorer gave NaN for a prefix: it counts as the lowest score" in texts
    assert "The other 10 strategies lost nothing." in texts
    assert "1 − accuracy = a · (C/C₀)^−b" in everything and "log pass@k = a · k^b" in everything
    assert "4.6 to 15.5%, n=140" not in everything and "3.8 to 12.5%, n=140" in everything
    assert "{{" not in everything


def test_numbers_that_are_none_or_nan():
    data: Any = example_data()
    data["curves"][0]["points"][2].update(accuracy=math.nan, seconds=None)
    data["latency"][0]["rows"][0]["seconds"]["mean"] = math.nan
    data["predictions"][0]["observed"]["mean"] = math.nan
    data["fits"][0]["params"][0]["value"] = math.inf
    data["wrong_reasoning"]["rows"][0]["share"]["mean"] = None
    data["trees"][0]["nodes"][2]["score"] = math.nan
    page = Page(render_compare(data))
    assert json.loads(page.scripts[0])["trees"][0]["nodes"][2]["score"] is None
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(page.texts))


def test_a_run_that_lost_nothing_and_made_nothing():
    data: Any = example_data()
    for key in ("curves", "references", "predictions", "scorers", "difficulty", "latency", "fits", "trees"):
        data[key] = []
    data["wrong_reasoning"] = {"rows": [], "traces": []}
    data["exit"] = {"rows": [{"strategy": "majority", "questions": 40, "exhausted": 0, "lost": 0}], "lost": []}
    data["summary"] = []
    texts = Page(render_compare(data)).texts
    assert "nano-demo on chain and countdown" in texts
    assert "Nothing: all 40 questions were answered within their budgets." in texts
    for sentence in ("No times were taken.", "Nothing was fitted.", "No prediction was published for this run."):
        assert sentence in texts


# ------------------------------------------------------------------------------------------------ the trees


class Letters:
    """A chat whose tokens are characters."""

    def decode(self, tokens):
        return "".join(map(chr, tokens))


def span(text: str, parent: int, kind: SpanKind = SpanKind.SAMPLED, **fields: Any) -> Span:
    logprobs = tuple([-0.5] * len(text)) if kind is SpanKind.SAMPLED else ()
    return Span(kind, tuple(map(ord, text)), parent, logprobs, **fields)


def trace() -> Trace:
    """    prompt ─ "b=3\\nc" ┬ "=6\\n" (ok) ─ "</think>6"
                          └ "=7\\nd=" (false, then cut)
    """  # fmt: skip
    spans = [
        span("a=1;<think>", -1, SpanKind.PROMPT),
        span("b=3\nc", 0, score=0.5, visits=3),
        span("=6\n", 1, score=0.9, visits=2, stop=StopReason.STOP),
        span("=7\nd=", 1, score=math.nan, visits=1, pruned=True),
        span("</think>6", 2, SpanKind.FORCED),
    ]
    return Trace(
        Question("chain/2/x", "chain", "a=1;b=a+2;c=b*2;c=?", 2),
        "beam",
        spans,
        leaves=[4, 3],
        answers=["6", ""],
        verdicts=[Verdict(True, "6"), Verdict(False)],
        answer="6",
        verdict=Verdict(True, "6"),
        lost=["one scorer call failed"],
        cost=Cost(sampled_tokens=17, flops=99.0),
    )


def check(thought: str) -> list[StepVerdict]:
    """Lines are true but for `c=7`; `b…` makes no claim."""
    return [StepVerdict(s, None if s[0] == "b" else s != "c=7") for s in thought.split("\n") if s.strip()]


def test_a_trace_as_a_tree():
    tree = tree_data(trace(), Letters(), id="t1", expected="6", budget="3 beams", check=check)
    assert json.loads(json.dumps(tree)) == tree
    assert (tree["winner"], tree["correct"], tree["strategy"], tree["level"]) == (4, True, "beam", 2)
    assert (tree["tokens"], tree["flops"], tree["lost"]) == (17, 99.0, ["one scorer call failed"])
    assert [n["parent"] for n in tree["nodes"]] == [-1, 0, 1, 1, 2]
    assert [n["kind"] for n in tree["nodes"]] == ["prompt", "sampled", "sampled", "sampled", "forced"]
    assert tree["nodes"][2] == {
        "parent": 1,
        "text": "=6\n",
        "kind": "sampled",
        "score": 0.9,
        "visits": 2,
        "pruned": False,
        "tokens": 3,
        "logprob": -1.5,
        "stop": "stop",
        "ok": True,
    }
    assert tree["nodes"][3]["score"] is None and tree["nodes"][3]["pruned"] is True  # NaN is no score
    assert tree["nodes"][0]["logprob"] is None and tree["nodes"][4]["logprob"] is None
    assert tree["leaves"] == [{"node": 4, "answer": "6", "correct": True}, {"node": 3, "answer": "", "correct": False}]


def test_a_line_is_charged_to_the_span_that_ends_it():
    """`c=6` and `c=7` share their first character's span; the line `d=` was cut and is charged to nobody."""
    seen: list[str] = []

    def watch(thought: str) -> list[StepVerdict]:
        seen.append(thought)
        return check(thought)

    tree = tree_data(trace(), Letters(), id="t", check=watch)
    assert [n["ok"] for n in tree["nodes"]] == [None, None, True, False, None]
    assert sorted(seen) == ["b=3\nc=6", "b=3\nc=7\nd="]  # once for every path to an end
    assert [n["ok"] for n in tree_data(trace(), Letters(), id="t")["nodes"]] == [None] * 5


def test_the_winner_says_the_answer_and_scores_best():
    t = trace()
    t.answers, t.verdicts = ["6.0", "6"], [Verdict(True, "6"), Verdict(True, "6")]
    assert tree_data(t, Letters(), id="t")["winner"] == 3  # the same in other words; no scores, so the more visited
    t.spans[4].score = 0.2
    assert tree_data(t, Letters(), id="t")["winner"] == 4
    t.spans[3].score = 0.1
    assert tree_data(t, Letters(), id="t")["winner"] == 4
    t.verdict, t.verdicts = None, []
    assert tree_data(t, Letters(), id="t")["winner"] == 3  # ungraded: by the text alone
    t.answer = ""
    assert tree_data(t, Letters(), id="t")["winner"] == -1
    assert [leaf["correct"] for leaf in tree_data(t, Letters(), id="t")["leaves"]] == [None, None]
