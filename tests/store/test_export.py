"""What other trainers read, exactly as they read it."""

import asyncio
import json

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import MissingExtra, UserError
from mull.ledger import Budget
from mull.search.sample import sample
from mull.store import Store, record_of
from mull.store.curate import curate
from mull.store.export import chain_rows, chat_rows, outcome_pairs, preference_rows, spoken, write
from mull.tasks.chain import Chain
from mull.types import StepVerdict
from tests.store.made import MADE, chain, chat


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store") as store:
        yield store


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_chains_as_flat_rows(store, tmp_path):
    store.add([chain("q/1", "a=1\u2028", "5", steps=True, text="What is it?"), chain("q/2", "ü", correct=None)])
    assert write(tmp_path / "out.jsonl", chain_rows(store, store.chains()), "chains") == 2
    first, second = lines(tmp_path / "out.jsonl")
    assert {
        k: first[k] for k in ("question_id", "question", "thought", "answer", "correct", "steps", "task", "leaf")
    } == {
        "question_id": "q/1",
        "question": "What is it?",
        "thought": "a=1\u2028",
        "answer": "5",
        "correct": True,
        "steps": True,
        "task": "q",
        "leaf": 0,
    }
    assert (second["thought"], second["correct"], second["steps"]) == ("ü", None, None)
    assert "ü" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_chat_form(store, tmp_path):
    store.add([chain("q/1", "a=1", "5", text="What is it?")])
    rows = store.chains()
    assert list(chat_rows(store, rows)) == [
        {
            "messages": [
                {"role": "user", "content": "What is it?"},
                {"role": "assistant", "content": "<think>a=1</think>5"},
            ]
        }
    ]
    [row] = chat_rows(store, rows, system="Think.", breaks=True)
    assert row["messages"][0] == {"role": "system", "content": "Think."}
    assert row["messages"][2]["content"] == "<think>\na=1\n</think>\n\n5"


def test_a_chain_that_spells_a_tag_is_left_out(store):
    store.add([chain("q", "a</think>b", "5"), chain("q", "c", "<think>5"), chain("q", "d", "5")])
    assert [row["messages"][1]["content"] for row in chat_rows(store, store.chains())] == ["<think>d</think>5"]
    right, *_ = store.chains("tokens = 3")
    spelt = store.chains("tokens > 3")
    assert list(preference_rows(store, [(right, spelt[0]), (spelt[1], right)])) == []


def test_preference_form_pairs_right_over_wrong(store):
    store.add([chain("a", f"r{i}") for i in range(3)] + [chain("a", f"w{i}", correct=False) for i in range(2)])
    store.add([chain("b", "r"), chain("c", "w", correct=False), chain("d", "x"), chain("d", " x ", correct=False)])
    right, wrong = store.chains("correct"), store.chains("correct = 0")
    pairs = outcome_pairs(right, wrong, each=5)
    assert len(pairs) == 2  # of a, the wrong ones are the fewer; b, c have one side, and d's two are the same text
    assert len({row.trace for pair in pairs for row in pair}) == 4
    rows = list(preference_rows(store, pairs))
    for row in rows:
        assert row["prompt"] == [{"role": "user", "content": "a"}]
        assert row["chosen"][0]["content"].startswith("<think>r") and row["rejected"][0]["content"].startswith(
            "<think>w"
        )
    assert len(outcome_pairs(right, wrong, each=1)) == 1
    assert len({outcome_pairs(right, wrong, each=1, seed=s)[0] for s in range(30)}) == 6
    with pytest.raises(ValueError, match="two questions"):
        list(preference_rows(store, [(store.chains("question = 'b'")[0], wrong[0])]))


def test_a_file_is_whole_or_absent(store, tmp_path):
    def failing():
        yield {"a": 1}
        raise RuntimeError("in the middle")

    write(tmp_path / "deep" / "out.jsonl", [{"a": 0}], "chains")
    with pytest.raises(RuntimeError):
        write(tmp_path / "deep" / "out.jsonl", failing(), "chains")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out.jsonl"]
    assert lines(tmp_path / "deep" / "out.jsonl") == [{"a": 0}]
    with pytest.raises(UserError, match=r"neither .jsonl nor .parquet"):
        write(tmp_path / "out.csv", [], "chains")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another file"):
        write(tmp_path / "file" / "out.jsonl", [], "chains")


def test_parquet_says_the_same_as_jsonl(store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: Parquet is not tested")
    store.add([chain("a", f"r{i}", correct=None) for i in range(4100)])  # more than one batch, first without a verdict
    store.add([chain("a", "r\ud800"), chain("a", "w", correct=False, steps=False)])
    rows = store.chains()
    pairs = outcome_pairs(store.chains("correct"), store.chains("correct = 0"))
    forms = {
        "chains": lambda: chain_rows(store, rows),
        "chat": lambda: chat_rows(store, rows),
        "preference": lambda: preference_rows(store, pairs),
    }
    for form, made in forms.items():
        n = write(tmp_path / f"{form}.jsonl", made(), form)  # type: ignore[arg-type]
        assert write(tmp_path / f"{form}.parquet", made(), form) == n > 0  # type: ignore[arg-type]
        assert parquet.read_table(tmp_path / f"{form}.parquet").to_pylist() == lines(tmp_path / f"{form}.jsonl")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"mull\[parquet\]"):
        write(tmp_path / "out.parquet", [], "chains")
    assert list(tmp_path.iterdir()) == []


def test_from_sampling_to_what_a_trainer_reads(store):
    """A strategy's traces, graded and stored; what comes out speaks as the model did, token for token."""
    task, speak = Chain(), chat()
    problem = next(task.stream(1, "train", 8))
    gold = task.solve(problem)
    wrong = str(int(gold.answer) + 1)
    prompt = tuple(speak.prompt(problem.question.text))
    replies = {tuple(speak.reply(gold.thought, a))[:-1]: p for a, p in ((gold.answer, 0.6), (wrong, 0.4))}
    sampler = ScriptedSampler(lambda prefix: replies if prefix == prompt else None, speak)
    trace = asyncio.run(sample(problem.question, sampler, speak, Budget(samples=8), seed=1))
    trace.verdicts = [task.check(problem, answer) for answer in trace.answers]
    store.add([record_of(trace, speak, MADE, task, problem)])
    out = curate(store, store.chains(), no_false_step=True)
    assert len(out.kept) == 1 and out.kept[0].steps is True and {"wrong answer", "equal chain"} == set(out.why.values())
    [row] = chat_rows(store, out.kept)
    assert row["messages"][1]["content"] == f"<think>{gold.thought}</think>{gold.answer}"
    [worked] = store.worked(out.kept)
    leaf = trace.leaves[out.kept[0].leaf]
    assert tuple(speak.reply(worked.thought, worked.answer)) == trace.spans[leaf].tokens
    assert all(isinstance(step, StepVerdict) for steps in store.record(out.kept[0].trace).steps for step in steps or ())


def test_spoken_is_what_chat_splits_again():
    thought, answer, closed = chat().split(chat().reply("a=1\nb=2", "3"))
    assert (thought, answer, closed) == ("a=1\nb=2", "3", True) and spoken(
        thought, answer
    ) == "<think>a=1\nb=2</think>3"
    assert spoken(thought, answer, breaks=True) == "<think>\na=1\nb=2\n</think>\n\n3"
