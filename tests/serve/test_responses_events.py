"""From a job's events to a response's: order, types, what is shown and what is not, and endings."""

from dataclasses import replace

import pytest

from mull.serve.errors import busy
from mull.serve.job import Delta, Progress, Result, Thought
from mull.serve.plan import SINGLE, VOTE, Plan
from mull.serve.responses_events import Telling, new_id
from mull.serve.summary import Section
from tests.serve.responses_tools import adapter, checked

ONE = Plan("low", SINGLE, 1, 200, 32, None)
MANY = Plan("high", VOTE, 8, 200, 32, None)
NONE = replace(ONE, level="none", think_tokens=0)
HEAD = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "nano", "parallel_tool_calls": True,
    "tool_choice": "auto", "tools": [], "incomplete_details": None,
}  # fmt: skip
RESULT = Result(ONE, "7 or so", "a=3\nb=7", "stop", 10, 4, 30, 5, [("7", 1)], 1.0, 0.1)
SINGLE_EVENTS = [
    Progress(1, 232, 0, 1, 0.1), Thought(" \na="), Thought("3\n"), Section("a is", "a=3"), Thought("b=7\n"),
    Section("b is", "b=7"), Delta("7"), Progress(3, 232, 1, 1, 0.2), Delta(" or so"), RESULT,
]  # fmt: skip
MANY_EVENTS = [
    Progress(1, 232, 0, 8, 0.1), Section("1 of 8", "1 of 1 agree"), Section("b is", "b=7"), Delta("7 or so"),
    replace(RESULT, plan=MANY),
]  # fmt: skip


def told(events, plan=ONE, **options):
    telling = Telling(HEAD, **options)
    made = list(telling.begin(plan))
    for event in events:
        made += telling.tell(event)
    return [*made, telling.last()], telling


def kinds(events):
    return {e["type"].removeprefix("response.") for e in events}


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("detail", ["", "titles", "all"])
@pytest.mark.parametrize("seal", [None, lambda thought, item: f"<{item} {len(thought)}>"])
@pytest.mark.parametrize(("plan", "events"), [(ONE, SINGLE_EVENTS), (MANY, MANY_EVENTS)], ids=["one", "many"])
def test_every_stream_is_as_documented(plan, events, shown, detail, seal):
    made, telling = told(events, plan, shown=shown, detail=detail, seal=seal)
    response = checked(made)
    reasoning, message = response["output"]
    assert response == telling.response and response["status"] == "completed"
    assert message["content"] == [{"type": "output_text", "text": "7 or so", "annotations": [], "logprobs": []}]
    assert message["status"] == "completed" and message["id"].startswith("msg_") and len(message["id"]) > 40
    assert telling.thought == "a=3\nb=7"
    assert reasoning.get("content") == ([{"type": "reasoning_text", "text": "a=3\nb=7"}] if shown else None)
    assert ("a=3" in str(made)) == (shown or (detail == "all" and plan is ONE))
    titles = ["**a is**", "**b is**"] if plan is ONE else ["**1 of 8**", "**b is**"]
    texts = [part["text"] for part in reasoning["summary"]]
    assert [text.split("\n")[0] for text in texts] == (titles if detail else [])
    assert any("\n\n" in text for text in texts) == (detail == "all")
    assert reasoning.get("encrypted_content") == (f"<{reasoning['id']} 7>" if seal else None)
    first = next(e for e in made if e["type"] == "response.output_item.added")
    assert "encrypted_content" not in first["item"]  # complete in .done alone
    assert response["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 30,
        "output_tokens_details": {"reasoning_tokens": 25},
        "total_tokens": 40,
    }


def test_without_a_thought_there_is_no_reasoning_item():
    made, _ = told([Delta("7"), replace(RESULT, content="7", thought="")], NONE, shown=True, detail="all")
    assert [item["type"] for item in checked(made)["output"]] == ["message"]


def test_an_empty_thought_is_an_empty_item():
    made, _ = told([Delta("7"), replace(RESULT, content="7", thought="")], shown=True, detail="all")
    reasoning = checked(made)["output"][0]
    assert reasoning["summary"] == [] and "content" not in reasoning


def test_text_comes_as_it_is_made():
    made, telling = [], Telling(HEAD, shown=True)
    made += telling.begin(ONE)
    for event, delta in ((SINGLE_EVENTS[1], "a="), (SINGLE_EVENTS[2], "3"), (SINGLE_EVENTS[4], "\nb=7")):
        new = list(telling.tell(event))
        assert new[-1]["type"] == "response.reasoning_text.delta" and new[-1]["delta"] == delta
    for event in SINGLE_EVENTS[6:9:2]:
        assert list(telling.tell(event))[-1]["delta"] == event.text


def test_what_was_begun_is_not_changed_by_what_follows():
    """Events are kept by whoever got them: the first ones must not grow."""
    made, _ = told(SINGLE_EVENTS, detail="all")
    added = next(e for e in made if e["type"] == "response.output_item.added")
    assert added["item"]["summary"] == [] and made[0]["response"]["output"] == []


def test_an_answer_that_was_cut_off_is_incomplete():
    made, _ = told([*SINGLE_EVENTS[:-1], replace(RESULT, finish="length")])
    response = checked(made)
    assert response["status"] == "incomplete" and response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["completed_at"] is None
    whole = checked(told(SINGLE_EVENTS)[0])
    assert whole["incomplete_details"] is None and whole["completed_at"] > 1


def test_an_answer_that_became_another_one_is_what_was_said():
    response = checked(told([Delta("7 or"), replace(RESULT, content="8")])[0])
    assert response["output"][1]["content"][0]["text"] == "7 or" and response["status"] == "incomplete"


def test_an_answer_that_was_never_streamed_is_said_at_the_end():
    response = checked(told([RESULT], shown=True)[0])
    assert response["output"][1]["content"][0]["text"] == "7 or so"
    assert response["output"][0]["content"][0]["text"] == "a=3\nb=7"


def test_what_comes_of_a_thought_after_the_answer_began_is_left_out():
    made, _ = told(
        [Thought("a"), Delta("7 or so"), Thought("b"), Section("late", "late"), RESULT], shown=True, detail="all"
    )
    reasoning = checked(made)["output"][0]
    assert reasoning["summary"] == [] and reasoning["content"][0]["text"] == "a"


@pytest.mark.parametrize("after", [None, 0, 3, 7])
def test_a_fault_is_an_event_with_the_next_number(after):
    telling, made = Telling(HEAD), []
    if after is not None:
        made += telling.begin(ONE)
        for event in SINGLE_EVENTS[:after]:
            made += telling.tell(event)
    fault = telling.failed(busy("full", 3))
    assert adapter().validate_python(fault).type == "error"
    assert fault == {
        "type": "error", "sequence_number": len(made), "code": "rate_limit_exceeded", "message": "full", "param": None,
    }  # fmt: skip


def test_ids_cannot_be_guessed():
    assert len({new_id("rs") for _ in range(100)}) == 100
    assert all(len(new_id(kind)) <= 64 for kind in ("rs", "msg"))
