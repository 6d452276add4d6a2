"""A record survives JSON in every field; a content's hash depends on what matters, and on nothing else."""

import dataclasses
import json

import numpy as np
import pytest

from mull.errors import StopReason, UserError
from mull.store.records import content_hash, from_line, record_of, to_line, weights_hash
from mull.tasks.chain import Chain
from mull.types import Cost, Span, SpanKind, Trace, Verdict
from tests.store.made import MADE, chat, rich, same


@pytest.mark.parametrize("seed", range(20))
def test_a_record_comes_back_equal_in_every_field(seed: int):
    record = rich(seed)
    line = to_line(record)
    assert line.count(b"\n") == 1 and line.isascii()
    assert same(from_line(line), record)
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_same_can_tell():
    """The comparison that the test above stands on sees each kind of difference."""
    record = rich(0)
    for spoil in (
        lambda r: r.trace.spans[1].kept[0].dtype.name and setattr(r.trace.spans[1], "kept", None),
        lambda r: setattr(r.trace.spans[3], "score", 0.0),
        lambda r: setattr(r.trace.spans[1], "tokens", list(r.trace.spans[1].tokens)),
        lambda r: setattr(r.trace, "cost", Cost()),
        lambda r: setattr(r.trace.spans[4], "kept", tuple(np.array([i], np.int32) for i in range(2))),
    ):
        other = rich(0)
        spoil(other)
        assert not same(other, record)


def test_every_field_is_used_by_the_rich_record():
    """A field that is added to the types and forgotten in the JSON is noticed: each has some value of its own."""
    record = rich(0)
    for kind, values in ((Span, record.trace.spans), (Trace, [record.trace])):
        blank = Span(SpanKind.PROMPT, ()) if kind is Span else Trace(record.trace.question, "")
        for f in dataclasses.fields(kind):
            assert any(not same(getattr(v, f.name), getattr(blank, f.name)) for v in values) or f.name == "question", f


def test_the_hash_is_of_the_content_alone():
    base = content_hash(rich(3).trace)
    trace = rich(3).trace
    trace.cost, trace.strategy, trace.spans[1].logprobs, trace.spans[1].score = Cost(), "vote", (), None
    trace.verdicts, trace.evidence = [Verdict(False), Verdict(False)], 2.0
    assert content_hash(trace) == base
    for change in (
        lambda t: setattr(t.spans[1], "tokens", (*t.spans[1].tokens, 0)),
        lambda t: setattr(t.spans[2], "kind", SpanKind.SAMPLED),
        lambda t: setattr(t.spans[2], "parent", 0),
        lambda t: setattr(t, "question", dataclasses.replace(t.question, id="q/1/other")),
        lambda t: t.spans.append(Span(SpanKind.TOOL, ())),
    ):
        trace = rich(3).trace
        change(trace)
        assert content_hash(trace) != base


def test_an_ungraded_trace_is_refused():
    record = rich(0)
    record.trace.verdicts = []
    with pytest.raises(ValueError, match="2 leaves and 0 verdicts"):
        to_line(record)


def test_an_unknown_format_is_refused():
    row = json.loads(to_line(rich(0)))
    row["format"] = 99
    with pytest.raises(ValueError, match="format is 99"):
        from_line(json.dumps(row).encode())


def test_record_of_spells_chains_out_and_judges_their_lines():
    task, speak = Chain(), chat()
    problem = next(task.stream(1, "train", 0))
    gold = task.solve(problem)
    prompt, reply = speak.prompt(problem.question.text), speak.reply(gold.thought, gold.answer)
    spans = [Span(SpanKind.PROMPT, tuple(prompt)), Span(SpanKind.SAMPLED, tuple(reply), 0, stop=StopReason.STOP)]
    trace = Trace(problem.question, "sample", spans, [1], [gold.answer], [Verdict(True, gold.answer)])
    record = record_of(trace, speak, MADE, task, problem)
    assert record.thoughts == [gold.thought]
    assert [step.text for step in record.steps[0] or ()] == gold.thought.split("\n")
    assert all(step.ok for step in record.steps[0] or ())
    assert record_of(trace, speak, MADE).steps == [None]

    class Broken(Chain):
        def check_steps(self, problem, thought):
            raise IndexError

    assert record_of(trace, speak, MADE, Broken(), problem).steps == [None]


def test_a_policy_is_named_by_its_weights(tmp_path):
    for name, data in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(data)
    a, b, c = (weights_hash(tmp_path / name) for name in "abc")
    assert a == b != c
    with pytest.raises(UserError, match="safetensors"):
        weights_hash(tmp_path)
