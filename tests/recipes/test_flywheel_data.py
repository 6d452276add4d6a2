"""The flywheel's data: the questions it asks, those that are held out, and which chains become which lessons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mull.chat import Chat
from mull.learn.samples import supervised
from mull.recipes import flywheel as recipe
from mull.recipes.flywheel import FlywheelConfig, flywheel
from mull.recipes.flywheel_data import Pool, counted, held_against, histogram, lessons_of, shared
from mull.store import Count, Made, Store
from mull.store.curriculum import Curriculum
from mull.store.decontaminate import contaminated
from mull.tasks.base import split_of
from mull.tasks.load import load_task
from mull.types import Sample
from tests.learn.test_dpo import tree
from tests.recipes.flywheel_tools import config, file, report, save_base
from tests.store.made import chain


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


# ---------------------------------------------------------------------------------------------------- questions


def test_the_curriculum_s_histogram():
    counts = {
        "a": Count(0, 0),
        "b": Count(0, 8),
        "c": Count(1, 4),
        "d": Count(3, 4),
        "e": Count(9, 9),
        "f": Count(7, 8),
    }
    found = histogram(counts, Curriculum())
    assert list(found["rates"].values()) == [1, 0, 1, 0, 2, 1]
    assert found["standing"] == {"open": 4, "solved": 1, "never": 1}


def test_verdicts_are_counted_by_question(tmp_path: Path):
    with Store.open(tmp_path) as store:
        store.add([chain("a", "x"), chain("a", "y", correct=False), chain("a", "z", correct=None), chain("b", "x")])
        rows = store.chains()
    assert counted(rows, ["a", "c"]) == {"a": Count(1, 2), "c": Count(0, 0)}
    assert counted([replace(row, again=True) for row in rows], ["a"]) == {"a": Count(0, 0)}


def test_a_pool_that_is_empty_gives_way_to_what_was_asked_before(base: Path, tmp_path: Path):
    task = load_task(f"{base.parent / 'any.py'}:Few")
    whole = Pool([task], (1,), 0)
    every = whole.take(1000)
    assert len(set(every)) == len(every) == sum(split_of(str(i)) == "train" for i in range(100))
    assert Pool([task], (1,), 0).take(7) == every[:7]
    few = len(every) - 3
    cfg = config(base, tmp_path / "run", "Few", problems=few, turns=2, again=0.0, samples=1)
    flywheel(cfg, mode="quiet")
    second = file(cfg, 2, "questions.json")
    assert second["new"] == every[few:] and len(second["again"]) == few - 3


# ------------------------------------------------------------------------------------------- held-out questions


def test_nothing_of_the_held_out_splits_reaches_training(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not even where others put right chains of test and valid questions into the store, and called them train."""
    text = {
        split: next(str(i) for i in range(10**6) if split_of(str(i)) == split) for split in ("test", "valid", "train")
    }
    task = load_task(f"{base.parent / 'any.py'}:Any")
    problems = {split: task.up_to(1, split, 5, 1)[0] for split in text}  # type: ignore[arg-type]
    other = Made("somebody's", split="train", run="elsewhere")
    with Store.open(tmp_path / "store") as store:
        store.add(
            chain(p.question.id, f"of {split}", task="any", text=p.question.text, made=other)
            for split, p in problems.items()
        )
    cfg = config(base, tmp_path / "run", turns=2, store=tmp_path / "store", share=True)
    learn, learnt = recipe.learn, set()

    def watched(lesson: Any, model: Any, reference: Any, chosen: Any) -> Any:
        chat = Chat.load(base)
        learnt.update(chat.decode(sample.tokens) for sample in chosen)
        return learn(lesson, model, reference, chosen)

    monkeypatch.setattr(recipe, "learn", watched)
    flywheel(cfg, mode="quiet")
    known = {question for n in (1, 2) for q in file(cfg, n, "questions.json").values() for question in q}
    assert len(learnt) > 10
    for document in learnt:
        digits = next(word for word in document.replace("<", " ").replace(">", " ").split() if word.isdigit())
        assert split_of(digits) == "train", document
    assert any("of train" in document for document in learnt), "what others may be learnt from was learnt"
    lessons = file(cfg, 2, "lessons.json")
    assert lessons["counts"]["contaminated"] == 2 and set(lessons["contaminated"]) == {
        problems[split].question.id for split in ("test", "valid")
    }
    assert all(split_of(load.problem.question.text) == "train" for load in Pool([task], (1,), 0).known.values())
    assert report(cfg)["turns"][2]["contaminated"] == lessons["contaminated"] and known


def test_a_question_of_a_benchmark_is_dropped(base: Path, tmp_path: Path):
    """A train question that a data set of another name holds out, asked for by `against`."""
    pool = Pool([load_task(f"{base.parent / 'any.py'}:Any")], (1,), 0)
    first = pool.known[pool.take(10)[3]].problem.question
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"question": first.text, "answer": "7"}) + "\n")
    cfg = config(base, tmp_path / "run", against=(str(bench),))
    flywheel(cfg, mode="quiet")
    lessons = file(cfg, 1, "lessons.json")
    assert lessons["contaminated"] == {first.id: "equal to a held-out question of bench"}
    with Store.open(cfg.out / "store") as store:
        assert first.id not in {store.trace(trace).question.id for trace, _ in lessons["kept"]}


def test_a_data_set_s_own_held_out_lines_are_known(tmp_path: Path):
    """Its train lines may be copies of them but for a comma, which a procedural task's cannot be."""
    lines = [f"Add {i} and {j}{end}" for i in range(12) for j in range(12) for end in ("", "!")]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"question": line, "answer": "1"}) + "\n" for line in lines))
    task = load_task(f"{path}:hash")
    train = [p.question for p in task.up_to(0, "train", 0, 999)]
    found = contaminated(train, [task], held_against([task], [], []))
    twins = [q for q in train if split_of(q.text[:-1] if q.text.endswith("!") else q.text + "!") != "train"]
    assert set(found) == {q.id for q in twins} and 10 < len(twins) < len(train)


# ------------------------------------------------------------------------------------------------------ lessons


def test_chains_of_others_are_learnt_where_that_is_asked_for(base: Path, tmp_path: Path):
    first = config(base, tmp_path / "first", store=tmp_path / "store", seed=4)
    alone = config(base, tmp_path / "alone")
    sharing = config(base, tmp_path / "sharing", store=tmp_path / "store", share=True)
    for cfg in (first, alone, sharing):
        flywheel(cfg, mode="quiet")
    a, b = (report(cfg)["turns"][1] for cfg in (alone, sharing))
    assert a["learnt"]["borrowed"] == 0 < b["learnt"]["borrowed"] and b["learnt"]["lessons"] > a["learnt"]["lessons"]
    assert b["learnt"]["respelled"] == 0 and a["flops"]["sampling"] == b["flops"]["sampling"]
    assert b["flops"]["training"] > a["flops"]["training"]


def test_chains_in_another_policy_s_tokens_are_learnt_as_text(base: Path, tmp_path: Path):
    chat, cfg = Chat.load(base), config(base, tmp_path / "run")
    with Store.open(tmp_path / "store") as store:
        record = chain("any/1/x", "a\nb", "12", text="5 and 7")
        store.add([record])
        made, counts = lessons_of(cfg, store, chat, {"kept": [[record.hash, 0]], "pairs": []})
    expected = supervised(chat.prompt("5 and 7"), chat.reply("a\nb", "12"))
    assert counts == {"respelled": 1} and len(made) == 1 and isinstance(made[0], Sample)
    assert list(made[0].tokens) == list(expected.tokens) and made[0].ce == expected.ce


def test_what_chains_of_one_tree_share_is_learnt_once():
    trace, learnt = tree(), set()
    assert shared(trace, 0, learnt) == 0  # spans 1 and 5
    assert shared(trace, 1, learnt) == 1  # spans 1 and 6: the step a was learnt
    assert shared(trace, 2, learnt) == 0  # spans 4 and 7: a sampled anew


def exported_chains(cfg: FlywheelConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cfg.out / "export" / "chains.jsonl").open()]


def test_trees_of_a_search_are_learnt_from(base: Path, tmp_path: Path):
    cfg = config(base, tmp_path / "run", strategy="mcts:value=rollout,expand=2", each=4, near=None)
    flywheel(cfg, mode="quiet")
    lessons = file(cfg, 1, "lessons.json")
    with Store.open(cfg.out / "store") as store:
        made, _ = lessons_of(cfg, store, Chat.load(base), lessons)
        spans = {(t, i): s for t, _ in lessons["kept"] for i, s in enumerate(store.trace(t).spans)}
        learnt = set()
        for name, leaf in lessons["kept"]:
            trace = store.trace(name)
            at = trace.leaves[leaf]
            while at >= 0:
                learnt.add((name, at))
                at = trace.spans[at].parent
    tokens = sum(len(spans[name].tokens) for name in learnt if spans[name].kind == "sampled")
    assert sum(1 for sample in made if isinstance(sample, Sample) for w in sample.ce or () if w) == tokens
    assert all(store_trace.startswith("mcts") for store_trace in {row["strategy"] for row in exported_chains(cfg)})
