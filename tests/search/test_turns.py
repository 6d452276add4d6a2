"""Two turns of one conversation: what stands between them, and that both attempts are the sampler's own tokens."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import StopReason, UserError
from mull.ledger import Budget
from mull.models import hf
from mull.search.turns import attempts, bridge, converse, two_turns
from mull.types import Cost, Question, SpanKind
from tests.recipes.tiny import save_tiny
from tests.test_chat import QWEN_ADDED, QWEN_LIKE, byte_level, write

QUESTION = Question("q", "any", "12+30")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("turns") / "base")


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return Chat.load(folder)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder = write(tmp_path_factory.mktemp("qwen"), byte_level(QWEN_ADDED), QWEN_LIKE, eos_token="<|endoftext|>")
    return Chat.load(folder)


@pytest.mark.parametrize("which", ["chat", "qwen"])
@pytest.mark.parametrize("instruction", ["Try again.", "0", "1<|end|>", "<|im_end|>"])
def test_a_conversation_is_prompt_answer_bridge_by_the_template_itself(which, instruction, request):
    """What a server would be sent for the same conversation, where the template keeps an answer as it is."""
    chat: Chat = request.getfixturevalue(which)
    answer = [*chat.encode("42"), chat.turn_end]
    turns = [{"role": "user", "content": "6*7"}, {"role": "assistant", "content": "42"}]
    whole = chat.prompt([*turns, {"role": "user", "content": instruction}])
    put = bridge(chat, instruction)
    assert whole[len(whole) - len(put) - len(answer) :] == answer + put
    assert chat.turn_end in put and instruction in chat.decode(put)


def test_a_template_without_end_tokens_is_refused(tmp_path: Path):
    template = "{% for m in messages %}{{ m.content }};{% endfor %}<think>"
    chat = Chat.load(write(tmp_path, byte_level(("<u>", "<e>", "<think>", "</think>")), template, eos_token="<e>"))
    with pytest.raises(UserError, match="no end token behind an answer"):
        bridge(chat, "again")


def go(folder: Path, chat: Chat, seed: int = 0, **budget):
    engine = LocalEngine(hf.load(folder), chat)
    spend = Budget(**{"think_tokens": 14, "answer_tokens": 6, "samples": 8, **budget})
    return asyncio.run(two_turns(QUESTION, engine, chat, spend, seed=seed, instruction="again")), spend, engine


def test_the_tree_of_two_turns(folder: Path, chat: Chat):
    trace, budget, engine = go(folder, chat)
    assert len(trace.leaves) == len(trace.answers) == 16 and len(trace.spans) == 1 + 3 * 8
    first, second = attempts(trace.leaves)
    for a, b in zip(first, second, strict=True):
        prompt, one, put, two = trace.path(b)
        assert trace.path(a) == [prompt, one] and put.kind is SpanKind.FORCED and not put.logprobs
        assert list(prompt.tokens) == chat.prompt(QUESTION.text)
        for leaf, span in ((a, one), (b, two)):
            thought, answer, closed = chat.split(span.tokens)
            whole = closed and span.stop is StopReason.STOP
            assert trace.answers[trace.leaves.index(leaf)] == (answer if whole else "")
            assert len(span.logprobs) == len(span.tokens) <= 20 and thought is not None
    ends = {trace.spans[leaf].stop for leaf in trace.leaves}
    assert ends == {StopReason.STOP, StopReason.LENGTH}
    assert len({trace.spans[leaf].tokens for leaf in second}) > 1
    assert trace.answer == trace.answers[1] and trace.chosen == trace.leaves[1]
    sampled = sum(len(trace.spans[leaf].tokens) for leaf in trace.leaves)
    assert trace.cost.sampled_tokens == budget.spent.sampled_tokens == engine.spent.sampled_tokens == sampled
    assert trace.cost.cached_tokens > 0, "the first attempt is read from the cache, not again"


def test_the_same_seed_says_the_same_and_another_does_not(folder: Path, chat: Chat):
    tokens = [[s.tokens for s in go(folder, chat, seed)[0].spans] for seed in (0, 0, 1)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_a_budget_of_tokens_is_kept(folder: Path, chat: Chat):
    trace, budget, _ = go(folder, chat, tokens=100)  # 100 / 16 attempts: 6 each, of 20 wanted
    assert budget.spent.sampled_tokens <= 100 and trace.exhausted
    trace, budget, _ = go(folder, chat, tokens=15)
    assert trace.exhausted and not trace.leaves and budget.spent == Cost()


def test_a_question_in_a_conversation(folder: Path, chat: Chat):
    engine = LocalEngine(hf.load(folder), chat)
    messages = [
        {"role": "user", "content": "12+30"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "and 12+31?"},
    ]
    budget = Budget(think_tokens=14, answer_tokens=6, samples=3)
    trace = asyncio.run(converse(QUESTION, messages, engine, chat, budget, seed=1))
    assert chat.decode(trace.spans[0].tokens) == (
        "<|user|>12+30<|end|><|assistant|>42<|end|><|user|>and 12+31?<|end|><|assistant|><think>"
    )
    assert len(trace.leaves) == 3 and trace.chosen == trace.leaves[0] and not trace.exhausted
    assert budget.spent == trace.cost and trace.cost.sampled_tokens == sum(len(s.tokens) for s in trace.spans[1:])
    small = asyncio.run(converse(QUESTION, messages, engine, chat, replace(budget, tokens=6, spent=Cost()), seed=1))
    assert small.exhausted and small.cost.sampled_tokens <= 6
