"""mull compare and mull calibrate on a tiny model: cells that resume, predictions before their run, a page, a plan."""

import json
from pathlib import Path

import pytest

from mull.errors import UserError
from mull.evals.fits import read_predictions
from mull.recipes import compare as recipe
from mull.recipes.calibrate import CalibrateConfig, calibrate
from mull.recipes.compare import CompareConfig, compare
from mull.search.allocate import load_calibration
from tests.evals import chromium
from tests.recipes.tiny import ENDS, save_tiny

GRID = {"tasks": ("any.py:Any",), "levels": (1,), "problems": 6, "think_tokens": 12, "answer_tokens": 6, "trees": 2}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny")
    (tmp_path / "any.py").write_text(ENDS)
    return tmp_path


def config(**changes) -> CompareConfig:
    settings = {
        "model": "tiny",
        "out": Path("cmp"),
        "strategies": ("vote", "best-of-n", "beam"),
        "budgets": (1, 2, 4, 8),
    }
    return CompareConfig(**{**settings, **GRID, "latency_problems": 1, **changes})


def test_a_comparison_from_nothing_to_a_page(home: Path, capsys):
    page = compare(config(seeds=2), mode="quiet")
    text = page.read_text()
    data = json.loads((home / "cmp" / "compare.json").read_text())
    assert [s["name"] for s in data["strategies"]] == ["vote", "best-of-n", "beam"]
    by = {(c["strategy"], c["task"]): c["points"] for c in data["curves"]}
    assert all(len(points) == 4 and points[0]["n"] == 6 and points[0]["seeds"] == 2 for points in by.values())
    assert all(p["flops"] > 0 and p["tokens"] > 0 for points in by.values() for p in points)
    assert by["vote", "any"][3]["flops"] > 3 * by["vote", "any"][0]["flops"]
    [reference] = data["references"]
    assert reference["greedy"]["n"] == 6 and [p["k"] for p in reference["oracle"]][:4] == [1, 2, 4, 8]
    assert data["scorers"][0]["scorer"] == "logprob" and data["latency"][0]["rows"]
    assert "best-of-n" in text and "window." not in json.dumps(data)
    assert data["exit"]["rows"][0]["questions"] == 6 * 2 * 4
    recipe.show(page)
    said = capsys.readouterr().out
    assert said.startswith("At N = 8 the most accurate is")
    assert ("lost, " in said) == bool(data["exit"]["lost"])


def test_predictions_are_published_before_the_held_out_cells_run(home: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    inside = recipe._cell

    async def watched(cfg, tools, one, n, *rest):
        if n == 8 and not seen:
            predictions = read_predictions(home / "cmp" / "predictions.json")
            seen.append([p.observed for p in predictions])
        return await inside(cfg, tools, one, n, *rest)

    monkeypatch.setattr(recipe, "_cell", watched)
    compare(config(), mode="quiet")
    assert seen and len(seen[0]) == 3 * 2 and not any(seen[0])  # three strategies, two laws
    after = read_predictions(home / "cmp" / "predictions.json")
    assert all(p.observed is not None and p.up_to == 4 and p.compute == 8 for p in after)


def test_a_stopped_comparison_goes_on_with_what_is_missing(home: Path, monkeypatch: pytest.MonkeyPatch):
    inside, ran = recipe.evaluate, []

    async def dying(*args, **options):
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(args)
        return await inside(*args, **options)

    monkeypatch.setattr(recipe, "evaluate", dying)
    with pytest.raises(KeyboardInterrupt):
        compare(config(), mode="quiet")
    done = {path.name: path.read_bytes() for path in (home / "cmp" / "cells").glob("*.json")}
    assert 0 < len(done) < 12
    with pytest.raises(UserError, match="already holds a run"):
        compare(config(), mode="quiet")
    monkeypatch.setattr(recipe, "evaluate", inside)
    compare(config(), resume=True, mode="quiet")
    cells = {path.name: path.read_bytes() for path in (home / "cmp" / "cells").glob("*.json")}
    assert len(cells) == 12 and all(cells[name] == content for name, content in done.items())
    fresh = json.loads((home / "cmp" / "compare.json").read_text())
    compare(config(out=Path("whole")), mode="quiet")
    whole = json.loads((home / "whole" / "compare.json").read_text())
    assert fresh["curves"] == whole["curves"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strategies": ("beam",)}, "must include vote"),
        ({"strategies": ("vote", "vote")}, "named twice"),
        ({"budgets": (0, 2)}, "from 1 upwards"),
        ({"budgets": ()}, "must not be empty"),
        ({"strategies": ("vote", "bean")}, "did you mean 'beam'?"),
        ({"strategies": ("vote", "auto")}, "mull calibrate makes one"),
        ({"scorer": "gone"}, "gone"),
    ],
)
def test_mistakes_are_one_sentence(home: Path, changes, sentence):
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        compare(config(**changes), mode="quiet")


def test_calibration_and_auto(home: Path):
    cfg = CalibrateConfig(
        model="tiny", out=Path("cal"), scorer="logprob", budgets=(4, 8), strategies=("beam",), probe=2, bins=2,
        efforts=(2, 4, 8), split="train", **{k: v for k, v in GRID.items() if k != "trees"},
    )  # fmt: skip
    path = calibrate(cfg, mode="quiet")
    found = load_calibration(str(path))
    assert found.probe == 2 and found.scorer == "logprob" and set(found.efforts) == {"low", "medium", "high"}
    assert [p.flops for p in found.points] == sorted(p.flops for p in found.points)
    assert all(len(p.plans) == len(found.edges) + 1 for p in found.points)
    assert found.points[found.efforts["low"]].flops <= found.points[found.efforts["high"]].flops
    candidates = {(c["strategy"], c["samples"]) for c in found.about["candidates"]}
    assert {("weighted-vote", 2), ("vote", 4), ("best-of-n", 8), ("beam", 4), ("beam", 8)} <= candidates
    calibrate(cfg, resume=True, mode="quiet")  # nothing is missing

    page = compare(config(strategies=("vote", "auto"), calibration=str(path)), mode="quiet")
    data = json.loads(page.with_name("compare.json").read_text())
    assert {c["strategy"] for c in data["curves"]} == {"vote", "auto"}


@chromium.needed
def test_the_page_of_a_real_run_opens_offline(home: Path, browser: chromium.Browser):
    page = compare(config(), mode="quiet")
    browser.open(page.absolute())
    assert browser.problems == [] and browser.run("document.documentElement.dataset.ready") == "yes"
    assert browser.run("document.querySelectorAll('svg path').length") >= 3  # a line for each strategy
    viewer = "document.getElementById('tree-canvas').viewer"
    browser.run("document.getElementById('tree-canvas').scrollIntoView({block: 'center'})")
    x, y = browser.run(f"{viewer}.place(1)")
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
    browser.wait(lambda: browser.run(f"{viewer}.state().chosen") == 1, 10)
    assert "the path up to here" in browser.run("document.body.innerText").lower()
    assert browser.problems == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"efforts": (8, 4, 2)}, "three ascending numbers"),
        ({"probe": 100}, "probe must be from 2"),
        ({"strategies": ("vote",)}, "always among the candidates"),
    ],
)
def test_calibration_mistakes(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        CalibrateConfig(**changes)
