"""The page as text: what is in it, what cannot get in, and that it is a pure function of its data.

What a browser makes of it is in test_report_browser.py.
"""

import base64
import copy
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest

from mull.errors import UserError
from mull.evals import report_data
from mull.evals.curves import CurvePoint, LogFit
from mull.evals.report import render, write_report
from tests.evals.report_fixture import opinion, report

HOSTILE = '</script><img src=x onerror="window.owned=1"><!--{{js}} & \u2028'
ASSETS = files("mull.evals").joinpath("assets")
VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """Tags, the text of scripts, and every visible text; fails on tags that do not close."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)


def hostile() -> Any:
    """The fixture with every string replaced by an attack, but those that are keys of the page's own choices."""
    keys = {"role", "model", "method", "unit", "kind"}

    def poison(value, key=""):
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        return value + HOSTILE if isinstance(value, str) and key not in keys else value

    data: Any = poison(report())
    data["model"] += HOSTILE
    data["method"] += HOSTILE
    return data


# ------------------------------------------------------------------------------------------------ escaping


def test_hostile_text_stays_text():
    page = Page(render(hostile()))
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 4 and "img" not in names
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    data = json.loads(page.scripts[0])
    assert data["thoughts"][0]["after"]["lines"][0]["text"].endswith(HOSTILE)  # nothing is lost either
    assert "<" not in page.scripts[0] and "\u2028" not in page.scripts[0]
    assert any(HOSTILE in text for text in page.texts)


def test_controls_stand_beside_the_gain_with_what_is_paired():
    data: Any = report()
    data["pass_at_1"]["controls"].append({"name": "<Teacher>", "accuracy": {**nothing(), "mean": 0.5}, "gain": None})
    data["note"] = "of <second> attempts"
    html = render(data)
    assert "<dt>Random rewards</dt><dd>33.9%" in html and "<dt>After minus it</dt><dd>+28.5 points" in html
    assert "<dt>&lt;Teacher&gt;</dt><dd>50.0%" in html and html.count("After minus it") == 1
    assert '<p class="note">of &lt;second&gt; attempts</p>' in html
    del data["pass_at_1"]["controls"]
    with pytest.raises(UserError, match="another version"):
        render(data)


def nothing() -> dict[str, Any]:
    return {"mean": None, "low": 0.0, "high": 1.0, "n": 0}


def test_slots_inside_data_are_not_filled():
    data: Any = report()
    data["title"] = "{{js}}{{data}}"
    assert "<title>{{js}}{{data}}</title>" in render(data)


def test_security_policy_allows_the_three_scripts_by_hash_and_nothing_else():
    page = Page(render(report()))
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "Content-Security-Policy" in a.values()]
    assert policy
    allowed = policy.split("script-src ")[1]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts[1:]]
    assert allowed.split() == [f"'sha256-{h}'" for h in hashes]
    assert policy.startswith("default-src 'none'")


def test_nothing_is_fetched():
    page = Page(render(report()))
    for tag, attributes in page.tags:
        for key in ("src", "href", "action", "srcset"):
            assert not attributes.get(key) or attributes[key] == "data:,", (tag, attributes)
    css = ASSETS.joinpath("report.css").read_text()
    assert "url(" not in css and "@import" not in css


# -------------------------------------------------------------------------------------------- pure function


def test_render_is_pure_and_its_data_json_able():
    data: Any = report()
    before = copy.deepcopy(data)
    assert render(data) == render(json.loads(json.dumps(data)))
    assert data == before


def test_numbers_that_are_none_or_nan_and_text_that_is_no_unicode():
    data: Any = report()
    data["train"][0]["points"][2]["accuracy"] = None
    data["pass_at_1"]["controls"][0]["accuracy"] = {"mean": math.nan, "low": 0.0, "high": 1.0, "n": 0}
    data["metrics"][0]["values"][0] = math.inf
    data["thoughts"][0]["after"]["lines"][0]["text"] = "half a pair: \ud83d"
    page = Page(render(data))
    shown = json.loads(page.scripts[0])
    assert shown["metrics"][0]["values"][0] is None and shown["pass_at_1"]["controls"][0]["accuracy"]["mean"] is None
    assert not re.search(r"\b(nan|inf|none)\b", " ".join(page.texts), re.IGNORECASE)


def test_missing_data_are_named():
    data: Any = report()
    del data["ledger"], data["seed"]
    with pytest.raises(UserError, match="lack ledger, seed"):
        render(data)


def test_write_is_whole_or_not_at_all(tmp_path):
    path = write_report(report(), tmp_path / "deep" / "report.html")
    assert path.read_text(encoding="utf-8") == render(report())
    assert path.stat().st_size < 1_500_000
    data: Any = report()
    del data["train"]
    with pytest.raises(UserError):
        write_report(data, path)
    assert path.read_text(encoding="utf-8") == render(report())


# ------------------------------------------------------------------------------------------------ contents


def test_every_point_of_both_curves_is_in_the_tables():
    data: Any = report()
    text = render(data)
    rows = text.count("<tr>")
    lines = [*data["train"], *data["test"]]
    points = sum(len(c["points"]) for c in lines)
    assert text.count('<tr class="heading">') == len(lines)
    heads = 5
    assert rows == points + heads + 2 + len(data["behaviours"]) + len(data["ledger"]) + 1
    assert '<th scope="row">64 votes</th>' in text and "trained, majority vote" in text


def test_the_ledger_adds_up():
    text = render(report())
    foot = re.search(r"<tfoot>(.*?)</tfoot>", text)
    assert (
        foot and "16,420,513" in foot[1] and "12,150,442" in foot[1] and "1.62 × 10¹⁴" in foot[1] and "564.5" in foot[1]
    )


def test_provenance_is_there():
    texts = Page(render(report())).texts
    for fact in ("mull demo --seed 0 -o rl.steps=240", "AMD EPYC, 2 cores", "9ccaef8d1e22", "9 min 48 s"):
        assert fact in texts
    assert any("torch 2.13.0" in t for t in texts)


def test_a_scorers_opinion_is_there_where_there_is_one_and_nowhere_else():
    data: Any = report()
    assert 'id="opinion"' not in render(data) and "please the scorer" not in render(data)
    data["opinion"] = opinion()
    words = " ".join(Page(render(data)).texts)
    assert "The scorer: 32.0% at first, 88.0% at last (means of 5 steps). The truth: 24.0%, then 4.5%." in words


def test_a_report_of_nothing_still_renders():
    data: Any = report()
    nothing = {"mean": None, "low": 0.0, "high": 1.0, "n": 0}
    data["pass_at_1"] = {"base": nothing, "trained": nothing, "gain": None, "controls": []}
    for key in ("train", "test", "thoughts", "behaviours", "metrics", "ledger"):
        data[key] = []
    data["lengths"] = {"before": [], "after": []}
    texts = Page(render(data)).texts
    assert "not measured" in texts


def test_headline_claims_a_change_only_where_there_is_one():
    data: Any = report()
    assert report_data.headline(data) == (
        "In a run of 9 min 48 s, reinforcement learning on addition, chain, countdown, maze and matrix took nano-base "
        "(1.6 M parameters) from 34% to 62% of held-out problems right at the first try."
    )
    data["pass_at_1"]["gain"] = {"mean": 0.02, "low": -0.01, "high": 0.05, "n": 100}
    assert "left nano-base (1.6 M parameters) about where it was" in report_data.headline(data)
    data["pass_at_1"]["gain"] = None  # the intervals are apart
    assert "took" in report_data.headline(data)
    data["pass_at_1"]["trained"] = data["pass_at_1"]["base"]
    assert "about where it was" in report_data.headline(data)


def test_results_become_report_data():
    (p,) = report_data.points([CurvePoint(1.0, 2.0, math.nan, 0.0, 1.0, "x")])
    assert p["accuracy"] is None and set(p) == set(report_data.Point.__annotations__)
    assert report_data.fit(LogFit(0.1, 0.2, 0.1, 0.3, 5.0, 9)) == {"b": 0.2, "low": 0.1, "high": 0.3, "doublings": 5.0}


def test_fixture_has_the_shape_that_is_documented():
    """So that the browser tests run on what a recipe must hand over, and not on something kinder."""
    data: Any = report()
    assert set(data) == set(report_data.ReportData.__required_keys__)
    assert set(report_data.ReportData.__annotations__) - set(data) == {"opinion", "note"}
    assert set(opinion()) == set(report_data.Opinion.__annotations__)
    shapes = {
        "train": report_data.TrainCurve,
        "thoughts": report_data.Pair,
        "behaviours": report_data.BehaviourRow,
        "metrics": report_data.Metric,
        "ledger": report_data.Phase,
    }
    for key, shape in shapes.items():
        for item in data[key]:
            assert set(item) == set(shape.__annotations__), key


# ------------------------------------------------------------------------------------------------- assets


def test_vendored_scripts_are_the_ones_recorded():
    table = ASSETS.joinpath("README.md").read_text()
    for name in ("d3.min.js", "plot.umd.min.js"):
        content = ASSETS.joinpath(name).read_bytes()
        assert hashlib.sha256(content).hexdigest() in table
        assert b"</script" not in content and b"<!--" not in content  # either would end or change an inline script
        assert content.decode().count("\r") == 0
    for name in ("d3.LICENSE", "plot.LICENSE"):
        assert "Permission to use, copy, modify" in ASSETS.joinpath(name).read_text()


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_has_contrast(mode):
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for lines of a chart."""
    css = ASSETS.joinpath("report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\n *\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[0]))
    if mode == "dark":
        dark = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[1]))
        assert set(dark) == set(colours)
        colours = dark

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(colours[a]), luminance(colours[b])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for name in ("ink", "muted", "base", "trained", "good", "bad", "check", "backtrack"):
        for ground in ("bg", "panel", "soft"):
            assert contrast(name, ground) >= 4.5, (name, ground, contrast(name, ground))
    assert contrast("bad", "bad-soft") >= 4.5 and contrast("ink", "bad-soft") >= 4.5
    for name in [c for c in colours if c.startswith("task-")] + ["control"]:
        assert contrast(name, "panel") >= 3, (name, contrast(name, "panel"))
