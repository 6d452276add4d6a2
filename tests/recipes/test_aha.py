"""The measurement of second thoughts: what the report holds, what every option does, and that nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals.evaluate import evaluate, held_out, thought_tokens
from mull.ledger import Budget
from mull.models import hf
from mull.recipes import aha as recipe
from mull.recipes.aha import AhaConfig, aha, tables
from mull.tasks.load import load_task
from tests.recipes.tiny import ENDS, save_tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aha")
    (folder / "any.py").write_text(ENDS)
    save_tiny(folder / "base")
    save_tiny(folder / "other", seed=5)
    return folder


@pytest.fixture(scope="module")
def words(home: Path) -> list[str]:
    """What the random model writes at the start of words, the most frequent first."""
    chat, task = Chat.load(home / "base"), load_task(f"{home / 'any.py'}:Any")
    held = held_out([task], (1,), 12, "test", 0)
    engine = LocalEngine(hf.load(home / "base"), chat)
    seen = asyncio.run(evaluate(held, engine, chat, Budget(think_tokens=16, answer_tokens=8, samples=8)))
    texts = [chat.split(thought_tokens(t, leaf))[0] for t in seen.traces for leaf in t.leaves]
    found = Counter(word for text in texts for word in re.findall(r"(?<![^\n ])[a-zA-Z]+\b", text, re.ASCII))
    assert len(found) > 1 and found.most_common(1)[0][1] > 2
    return [word for word, _ in found.most_common()]


def config(home: Path, seen: list[str], **changes: Any) -> AhaConfig:
    return replace(
        AhaConfig(
            models=(f"base={home / 'base'}",),
            tasks=(f"{home / 'any.py'}:Any",),
            levels=(1,),
            words=(seen[0],),
            problems=12,
            samples=24,
            each=2,
            resamples=3,
            think_tokens=16,
            answer_tokens=8,
            threads=1,
        ),
        **changes,
    )


made: dict[str, dict[str, Any]] = {}


def report_of(home: Path, seen: list[str], tmp_path: Path, **changes: Any) -> dict[str, Any]:
    key = repr(sorted(changes.items()))
    if key not in made:
        path = aha(config(home, seen, **{"out": tmp_path / f"run{len(made)}", **changes}), "mull aha …", mode="quiet")
        made[key] = json.loads(path.read_text())
    return made[key]


def without_clock(report: dict[str, Any]) -> Any:
    return {name: result["tasks"] for name, result in report["models"].items()}


def test_the_report(home: Path, words: list[str], tmp_path: Path):
    report = report_of(home, words, tmp_path)
    [task] = report["models"]["base"]["tasks"].values()
    word = words[0]
    assert task["written"][word] > 0
    assert task["banned"][word]["written"] == {word: 0.0}, "what is banned is not written"
    drop = task["accuracy"]["mean"] - task["banned"][word]["accuracy"]["mean"]
    assert task["banned"][word]["drop"]["mean"] == pytest.approx(drop)
    seen = task["around"][word]
    assert seen["chains"] > 0
    assert seen["gain"]["mean"] == pytest.approx(seen["checking"]["mean"] - seen["without"]["mean"])
    costs = report["models"]["base"]["cost"]
    assert set(costs) == {"free", f"without {word}", f"around {word}"}
    assert all(cost["sampled_tokens"] > 0 and cost["flops"] > 0 and cost["seconds"] > 0 for cost in costs.values())
    table = tables(report["models"])
    assert (tmp_path / "run0" / "report.md").read_text() == table
    assert f"lost by banning `{word}`" in table and "counterfactual benefit" in table


def test_a_word_that_is_never_written_is_its_own_control(home: Path, words: list[str], tmp_path: Path):
    task = next(iter(report_of(home, words, tmp_path, words=("qqzzq",))["models"]["base"]["tasks"].values()))
    assert task["written"]["qqzzq"] == 0 and task["around"]["qqzzq"]["chains"] == 0


CHANGES: list[tuple[str, Any]] = [
    *[("words", None), ("problems", 10), ("samples", 6), ("each", 1), ("resamples", 5), ("think_tokens", 10)],
    *[("answer_tokens", 3), ("seed", 1), ("models", "other"), ("tasks", "Picky"), ("levels", None)],
]


@pytest.mark.parametrize(("option", "value"), [c for c in CHANGES if c[0] != "levels"])
def test_every_option_changes_the_report(home: Path, words: list[str], tmp_path: Path, option: str, value: Any):
    if option == "words":
        value = tuple(words[:2])
    if option == "models":
        value = (f"base={home / value}",)
    if option == "tasks":
        value = (f"{home / 'any.py'}:{value}",)
    with_it = without_clock(report_of(home, words, tmp_path, **{option: value}))
    assert with_it != without_clock(report_of(home, words, tmp_path))


def test_levels_are_those_of_the_problems(home: Path, words: list[str], tmp_path: Path):
    small = {"tasks": ("chain",), "problems": 3, "samples": 1}
    one, two = (report_of(home, words, tmp_path / str(n), levels=(n,), **small)["models"]["base"] for n in (1, 2))
    read = [x["cost"]["free"]["prefill_tokens"] + x["cost"]["free"]["cached_tokens"] for x in (one, two)]
    assert read[0] < read[1], "the questions of level 2 are longer"


def test_no_option_is_left_untested():
    elsewhere = {"out", "threads", "max_sequences"}
    assert {name for name, _ in CHANGES} | elsewhere == {f.name for f in fields(AhaConfig)}


def test_several_models_and_an_interruption(home, words, tmp_path, monkeypatch: pytest.MonkeyPatch):
    models = (f"base={home / 'base'}", str(home / "other"))
    cfg = config(home, words, models=models, out=tmp_path / "run", problems=4)
    whole = json.loads(aha(replace(cfg, out=tmp_path / "whole"), mode="quiet").read_text())
    assert list(whole["models"]) == ["base", str(home / "other")]
    real = recipe.measured

    def dies(cfg: AhaConfig, folder: Path, *rest: Any) -> Any:
        if folder.name == "other":
            raise KeyboardInterrupt
        return real(cfg, folder, *rest)

    monkeypatch.setattr(recipe, "measured", dies)
    with pytest.raises(KeyboardInterrupt):
        aha(cfg, mode="quiet")

    def only_other(cfg: AhaConfig, folder: Path, *rest: Any) -> Any:
        assert folder.name == "other", "the first was measured already"
        return real(cfg, folder, *rest)

    monkeypatch.setattr(recipe, "measured", only_other)
    again = json.loads(aha(cfg, resume=True, mode="quiet").read_text())
    assert without_clock(again) == without_clock(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": ()}, "must each name at least one"),
        ({"words": ("two words",)}, "'two words' is not a word"),
        ({"each": 0}, "must be at least 1"),
        ({"models": ("a=nano", "a=nano")}, "two models have the same name"),
        ({"think_tokens": 300}, "do not fit into the context"),
        ({"levels": (9,)}, "has a level among"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(home, words, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        aha(config(home, words, out=tmp_path / "run", **changes), mode="quiet")
    assert not (tmp_path / "run").exists()
