"""The flywheel's turns: what three of them ask, charge and leave, alone and beside other runs, and how they end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.errors import UserError
from mull.models import hf
from mull.recipes import flywheel as recipe
from mull.recipes.flywheel import FlywheelConfig, flywheel
from mull.store import Store
from mull.store.export import plain_tags
from mull.tasks.base import split_of
from mull.types import Verdict
from tests.recipes.flywheel_tools import asked, config, file, report, same_result, save_base, weights, without
from tests.recipes.test_resume import equal, start


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


# -------------------------------------------------------------------------------------------------- three turns


@pytest.fixture(scope="module")
def three(base: Path, tmp_path_factory: pytest.TempPathFactory) -> FlywheelConfig:
    cfg = config(base, tmp_path_factory.mktemp("three") / "run", turns=3)
    flywheel(cfg, mode="quiet")
    return cfg


def test_every_turn_asks_new_and_old_questions_and_learns_from_all_turns(three: FlywheelConfig):
    rows = report(three)["turns"]
    assert [row["turn"] for row in rows] == [0, 1, 2, 3]
    assert [(row["asked"]["new"], row["asked"]["again"]) for row in rows[1:]] == [(10, 0), (5, 5), (5, 5)]
    files = [file(three, n, "questions.json") for n in (1, 2, 3)]
    new = [question for f in files for question in f["new"]]
    assert len(set(new)) == 20 and set(files[1]["again"]) <= set(files[0]["new"])
    kept = [{tuple(name) for name in file(three, n, "lessons.json")["kept"]} for n in (1, 2, 3)]
    own = [{row["trace"] for row in asked(three, n)} for n in (1, 2, 3)]
    assert {trace for trace, _ in kept[2]} & own[0] and {trace for trace, _ in kept[2]} & own[2]
    for row, names in zip(rows[1:], kept, strict=True):
        assert row["curated"]["kept"] == row["learnt"]["lessons"] == len(names) > 0
    chains = sum(row["asked"]["chains"] for row in rows[1:])
    assert sum(rows[3]["curated"].values()) == chains, "every chain of every turn is kept, or there is a reason"


def test_the_store_knows_who_made_what(three: FlywheelConfig):
    from mull.store import weights_hash

    with Store.open(three.out / "store") as store:
        made = {store.record(row["trace"]).made.version: store.record(row["trace"]).made for row in asked(three, 1)}
        made |= {store.record(row["trace"]).made.version: store.record(row["trace"]).made for row in asked(three, 3)}
        assert len(store) == 30
    assert made[0].weights == weights_hash(three.model) and made[0].split == "train"
    assert made[0].decoding == {"temperature": 1.0} and made[0].run == str(three.out)
    last = torch.load(sorted(three.out.glob("checkpoints/*"))[-1] / "state.pt", weights_only=True)
    assert last["done"] == 3 and made[2].weights not in ("", made[0].weights)


def test_everything_is_charged_by_phase_and_turn(three: FlywheelConfig):
    found = report(three)
    assert set(found["ledger"]) == {"turn 0 evaluation"} | {
        f"turn {n} {what}" for n in (1, 2, 3) for what in ("sampling", "training", "evaluation")
    }
    spent = 0.0
    with Store.open(three.out / "store") as store:
        for n in (1, 2, 3):
            row, traces = found["turns"][n], [store.trace(r["trace"]) for r in asked(three, n)]
            assert row["tokens"]["sampled"] == sum(t.cost.sampled_tokens for t in traces) > 0
            assert row["flops"]["sampling"] == pytest.approx(sum(t.cost.flops for t in traces))
            assert row["tokens"]["trained"] > 0 and row["flops"]["training"] > 0
            assert all(seconds > 0 for seconds in row["seconds"].values())
            spent += row["flops"]["sampling"] + row["flops"]["training"]
            assert row["spent_flops"] == pytest.approx(spent), "measuring is not counted"
    flops = [row["spent_flops"] for row in found["turns"]]
    since = {0: 0.0} | {n: 1 + math.log2(flops[n] / flops[1]) for n in (1, 2, 3)}
    last = found["turns"][3]
    assert last["doublings"] == pytest.approx(since[3] - since[last["over_best"]["turn"]])


def test_the_model_is_the_best_by_valid_and_the_table_says_so(three: FlywheelConfig, capsys: pytest.CaptureFixture):
    found = report(three)
    accuracy = [row["valid"]["mean"] for row in found["turns"]]
    assert found["final"]["turn"] == accuracy.index(max(accuracy))
    assert found["final"]["test"] == found["turns"][found["final"]["turn"]]["test"]
    best = [p for p in three.out.glob("checkpoints/step_*") if json.loads((p / "meta.json").read_text())["score"]]
    states = {torch.load(p / "state.pt", weights_only=True)["done"]: p for p in best}
    held = hf.load(states[found["final"]["turn"]] / "model" / "hf").state_dict()
    assert all(torch.equal(value, held[name]) for name, value in hf.load(three.out / "model").state_dict().items())
    recipe.show(three.out / "model")
    table = capsys.readouterr().out
    assert table.startswith("# A flywheel on") and f"The model is that of turn {found['final']['turn']}" in table
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 2 + 4


def test_the_export_is_what_was_kept(three: FlywheelConfig):
    read = {
        name: [json.loads(line) for line in (three.out / "export" / f"{name}.jsonl").open()]
        for name in ("chains", "chat", "pairs")
    }
    lessons = file(three, 3, "lessons.json")
    assert [[row["trace"], row["leaf"]] for row in read["chains"]] == lessons["kept"]
    with Store.open(three.out / "store") as store:
        rows = {(row.trace, row.leaf): row for row in store.chains()}
        sides = [[rows[a, i], rows[b, j]] for a, i, b, j in lessons["pairs"]]
        sayable = [all(plain_tags(worked) for worked in store.worked(pair)) for pair in sides]
    assert len(read["pairs"]) == sum(sayable) > 0
    assert all(row["correct"] for row in read["chains"])
    spoken = {row["messages"][1]["content"] for row in read["chat"]}
    assert {pair["chosen"][0]["content"] for pair in read["pairs"]} <= spoken


def test_a_run_does_not_notice_who_else_uses_its_store(base: Path, tmp_path: Path, three: FlywheelConfig):
    """Two runs of one seed at once, which sample the same traces, and a third one of another seed."""
    store = tmp_path / "store"
    cfgs = [
        config(base, tmp_path / name, turns=3, store=store, seed=seed) for name, seed in [("a", 0), ("b", 0), ("c", 4)]
    ]
    processes = [start(flywheel, cfg) for cfg in cfgs]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    same_result(three, cfgs[0])
    same_result(three, cfgs[1])
    with Store.open(store) as found:
        assert found.check().sound
        traces = {row["trace"] for cfg in cfgs for n in (1, 2, 3) for row in asked(cfg, n)}
        assert len(found) == len(traces) and 30 < len(traces) <= 60


def test_more_turns_may_be_asked_for_afterwards(base: Path, tmp_path: Path, three: FlywheelConfig):
    cfg = config(base, tmp_path / "run", turns=1)
    flywheel(cfg, mode="quiet")
    assert report(cfg)["final"]["stopped"] == "all turns done" and len(report(cfg)["turns"]) == 2
    flywheel(replace(cfg, turns=3), resume=True, mode="quiet")
    same_result(three, cfg)
    with pytest.raises(UserError, match="differs in each"):
        flywheel(replace(cfg, turns=3, each=3), resume=True, mode="quiet")


# ------------------------------------------------------------------------------------------------- how it stops


def test_what_nothing_improves_stops_by_the_rule(base: Path, tmp_path: Path):
    cfg = config(base, tmp_path / "run", "Sure", turns=9, threshold=0.01, patience=2)
    flywheel(cfg, mode="quiet")
    final = report(cfg)["final"]
    assert final["stopped"] == "stopped paying" and "2 turns in a row did not pay" in final["reason"]
    assert final["turn"] == 0 and len(report(cfg)["turns"]) == 3
    assert [row["paid"] for row in report(cfg)["turns"][1:]] == [False, False]
    start = torch.cat([p.flatten() for p in hf.load(base).parameters()])
    assert torch.equal(weights(cfg), start), "no turn was better than the base, so the base it is"
    assert final["reason"] in (cfg.out / "report.md").read_text()


def test_a_task_that_is_never_right_leaves_nothing_to_learn(base: Path, tmp_path: Path):
    cfg = config(base, tmp_path / "run", "Same", turns=3)
    flywheel(cfg, mode="quiet")
    found = report(cfg)
    assert found["final"]["stopped"] == "nothing to learn" and "wrong answer" in found["final"]["reason"]
    assert [row["turn"] for row in found["turns"]] == [0, 1] and "valid" not in found["turns"][1]
    assert found["turns"][1]["flops"]["sampling"] > 0 == found["turns"][1]["flops"]["training"], "it is paid for"
    before = (cfg.out / "report.json").read_text()
    flywheel(cfg, resume=True, mode="quiet")
    equal(json.loads(before), found)


def test_a_turn_that_finds_what_the_one_before_learnt_ends_it(base: Path, tmp_path: Path):
    cfg = config(base, tmp_path / "run", "Fading", turns=9, again=0.0)
    flywheel(cfg, mode="quiet")
    found = report(cfg)
    lessons = file(cfg, 1, "lessons.json")["kept"]
    assert found["final"]["stopped"] == "nothing to learn" and lessons == file(cfg, 2, "lessons.json")["kept"] != []
    assert f"turn 2 found the same {len(lessons)} lessons as the turn before it" in found["final"]["reason"]
    assert len(found["turns"]) == 3 and found["turns"][2]["asked"]["right"] == 0


def test_test_results_enter_no_decision(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With every verdict on a test problem turned round, everything but the test figures is the same."""
    honest, turned = (config(base, tmp_path / name, turns=3, threshold=0.0, patience=1) for name in ("a", "b"))
    flywheel(honest, mode="quiet")
    evaluate = recipe.evaluate

    async def inverted(held: Any, *parts: Any, **options: Any) -> Any:
        found = await evaluate(held, *parts, **options)
        if held and split_of(held[0].problem.question.text) == "test":
            for trace in found.traces:
                trace.verdicts = [Verdict(not v.correct, v.answer) for v in trace.verdicts]
        return found

    monkeypatch.setattr(recipe, "evaluate", inverted)
    flywheel(turned, mode="quiet")
    a, b = report(honest), report(turned)
    assert torch.equal(weights(honest), weights(turned))
    assert a["final"]["reason"] == b["final"]["reason"] and a["final"]["turn"] == b["final"]["turn"]
    assert len(a["turns"]) == len(b["turns"])
    for x, y in zip(a["turns"], b["turns"], strict=True):
        assert x["test"]["mean"] == pytest.approx(1 - y["test"]["mean"])
        equal(*without((x, y), "test", "seconds"))
