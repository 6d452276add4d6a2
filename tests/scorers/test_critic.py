"""The critic on a scripted model: its verdicts, its probability of "ok", and who pays for them."""

import asyncio
import math
from functools import cache
from tempfile import TemporaryDirectory

import pytest

from mull.chat import Chat
from mull.engine.scripted import ScriptedSampler
from mull.errors import SamplerLost, UserError
from mull.learn.critique import MARKER
from mull.models.nano import write_tokenizer
from mull.scorers.critic import Critic
from mull.types import Completion, Cost


@cache
def chat() -> Chat:
    with TemporaryDirectory() as folder:
        write_tokenizer(folder)
        return Chat.load(folder)


def prefix(text: str) -> tuple[int, ...]:
    return (*chat().prompt("2+2?"), *chat().encode(text))


class Model(ScriptedSampler):
    """Critiques by what stands before the marker; a forced verdict has the log-probability of "ok" there."""

    def __init__(self, critiques: dict[str, dict[str, float]], **options):
        self.critiques = critiques
        super().__init__(self._written, chat(), **options)

    def _written(self, tokens):
        text = chat().decode(tokens)
        read, marker, written = text.rpartition(MARKER)
        assert marker, "the critic is asked behind its marker"
        return None if written else self.critiques[read.rpartition("<think>")[2]]

    def _complete(self, read, params):
        done = super()._complete(read, params)
        if not params.forced:
            return done
        weights = self._written(read)
        chance = weights.get("ok", 0.0) / sum(weights.values())
        first = math.log(chance) if chance else -math.inf
        return Completion(
            done.tokens, (first, *[0.0] * (len(done.tokens) - 1)), done.stop, 0, forced=done.forced, cost=done.cost
        )


CRITIQUES = {
    "": {"ok": 1.0},
    "2 and 2\n": {"ok": 3.0, "1 no": 1.0},
    "2 and 3\n": {"ok": 1.0, "1 there is no 3": 3.0},
    "hm\n": {"I do not know": 1.0},
}


def ask(method, *texts):
    return asyncio.run(method([prefix(text) for text in texts]))


def test_the_value_is_the_probability_of_ok_and_nothing_is_sampled_for_it():
    model = Model(CRITIQUES)
    scores = ask(Critic(model, chat()).score, "", "2 and 2\n", "2 and 3\n", "hm\n")
    assert [score.value for score in scores] == pytest.approx([1.0, 0.75, 0.25, 0.0])
    assert model.cost.sampled_tokens == 0 and all(call.params.max_tokens == 2 for call in model.calls)
    for score, call in zip(scores, model.calls, strict=True):
        [done] = call.completions
        assert score.cost.scorer_tokens == done.cost.prefill_tokens and score.cost.flops == done.cost.flops > 0


def test_a_child_never_pays_for_its_parent():
    model = Model({"": {"ok": 1}, "2 and 2\n": {"ok": 1}})
    critic = Critic(model, chat())
    [parent] = ask(critic.score, "")
    [child] = ask(critic.score, "2 and 2\n")
    assert parent.cost.scorer_tokens == len(prefix("")) + len(MARKER) + 2
    assert child.cost.scorer_tokens == len("2 and 2\n") + len(MARKER) + 2 and child.cost.cached_tokens == len(
        prefix("")
    )


def test_a_critique_is_greedy_and_says_where_and_why():
    model = Model(CRITIQUES)
    fine, wrong, unread = ask(Critic(model, chat()).critique, "2 and 2\n", "2 and 3\n", "hm\n")
    assert (fine.ok, fine.step, fine.why) == (pytest.approx(0.75), None, "")
    assert (wrong.ok, wrong.step, wrong.why) == (pytest.approx(0.25), 1, "there is no 3")
    assert math.isnan(unread.ok) and unread.step is None and unread.text == "I do not know"
    total = fine.cost + wrong.cost + unread.cost
    assert total.sampled_tokens == 0 and total.flops == model.cost.flops
    assert total.scorer_tokens == model.cost.prefill_tokens + model.cost.sampled_tokens > total.prefill_tokens
    assert len(model.calls) == 4, "only where the verdict was not ok is its probability asked for apart"


def test_a_cut_critique_still_points_at_its_step():
    [wrong] = ask(Critic(Model(CRITIQUES), chat(), max_tokens=9).critique, "2 and 3\n")
    assert (wrong.step, wrong.why) == (1, "there i")


def test_sampled_critiques_are_averaged_over_those_that_can_be_read():
    table = {"2 and 2\n": {"ok": 2.0, "1 no": 1.0, "hm": 1.0}, "hm\n": {"what": 1.0}}
    model = Model(table)
    [score, unread] = ask(Critic(model, chat(), samples=300, seed=4).score, "2 and 2\n", "hm\n")
    assert score.value == pytest.approx(2 / 3, abs=0.1) and math.isnan(unread.value)
    assert score.cost.scorer_tokens + unread.cost.scorer_tokens == model.cost.prefill_tokens + model.cost.sampled_tokens
    assert score.cost.sampled_tokens == 0 and all(call.n == 300 for call in model.calls)
    again = ask(Critic(Model(table), chat(), samples=300, seed=4).score, "2 and 2\n")
    assert again[0].value == score.value
    with pytest.raises(UserError, match="samples=-1"):
        Critic(model, chat(), samples=-1)


@pytest.mark.parametrize("logprobs", [(), (math.nan, 0.0), (-0.5,)])
def test_missing_log_probabilities_are_no_probability(logprobs):
    class Mute(Model):
        def _complete(self, read, params):
            done = super()._complete(read, params)
            return Completion(done.tokens, logprobs, done.stop, 0, forced=2, cost=done.cost)

    [score] = ask(Critic(Mute(CRITIQUES), chat()).score, "2 and 2\n")
    assert math.isnan(score.value) and score.cost.scorer_tokens > 0


def test_a_prefix_that_is_too_long_has_no_value_and_a_wrong_critic_is_the_users_mistake():
    model = Model({**CRITIQUES, "x" * 50: {"ok": 1}}, context=len(prefix("2 and 2\n")) + 8)
    scores = ask(Critic(model, chat()).score, "x" * 50, "2 and 2\n")
    assert math.isnan(scores[0].value) and scores[1].value == pytest.approx(0.75) and scores[0].cost == Cost()
    critic = Critic(Model({**CRITIQUES, "x" * 50: {"ok": 1}}, context=10), chat())
    for method in (critic.score, critic.critique):
        with pytest.raises(UserError, match="context is 10"):
            ask(method, "x" * 50, "2 and 2\n")


def test_a_lost_critic_says_so_and_leaves_nothing_running():
    model = Model(CRITIQUES, fail={1: SamplerLost("gone")}, yields=3)
    with pytest.raises(SamplerLost, match="gone"):
        ask(Critic(model, chat()).score, "", "2 and 2\n", "2 and 3\n")
    assert model.running == 0


def test_it_asks_for_all_at_once():
    model = Model(CRITIQUES, yields=5)
    ask(Critic(model, chat()).critique, "", "2 and 2\n", "hm\n")
    assert model.peak == 3
