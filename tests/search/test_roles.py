"""Generator, reasoner, evaluator: three models, one trace, one ledger; tokens where they agree, text where not."""

import json
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mull.chat import Chat
from mull.engine.scripted import ScriptedSampler
from mull.errors import SamplerLost, UserError
from mull.learn.samples import from_rollouts
from mull.ledger import Budget
from mull.models.nano import write_tokenizer
from mull.scorers.base import Score
from mull.search.roles import Role, roles, translated
from mull.search.tree import NO_ANSWER
from mull.types import Cost, SpanKind, Trace
from tests.search import hardships
from tests.search.tools import QUESTION, ScriptedScorer, canonical, chat, run, sampler_of, thought

PLANS = {"": {"add\n": 1.0, "count\n": 1.0}, "add\n": {"well\n": 1.0}, "count\n": {"so\n": 1.0}}
WORK = {
    "": {"hm</think>": 1.0},
    "hm</think>": {"0": 1.0},
    "add\n": {"2+2</think>": 1.0},
    "add\n2+2</think>": {"4": 1.0},
    "count\n": {"1 2 3</think>": 1.0},
    "count\n1 2 3</think>": {"3": 1.0},
    "add\nwell\n": {"so 4</think>": 1.0},
    "add\nwell\nso 4</think>": {"4": 1.0},
    "count\nso\n": {"so 3</think>": 1.0},
    "count\nso\nso 3</think>": {"3": 1.0},
}


@cache
def foreign(breaks: bool = True) -> Chat:
    """Bytes in the opposite order, other control tokens, and with `breaks` thoughts between line breaks."""
    with TemporaryDirectory() as folder:
        write_tokenizer(folder)
        path = Path(folder, "tokenizer.json")
        raw = json.loads(path.read_text())
        vocab = raw["model"]["vocab"]
        raw["model"]["vocab"] = {char: 255 - i for char, i in vocab.items()}
        for token in raw["added_tokens"]:
            token["id"] = 256 + (token["id"] - 256 + 5) % len(raw["added_tokens"])
        path.write_text(json.dumps(raw))
        config = Path(folder, "generation_config.json")
        end = next(token["id"] for token in raw["added_tokens"] if token["content"] == "<|end|>")
        config.write_text(json.dumps({"eos_token_id": end}))
        if breaks:
            template = Path(folder, "chat_template.jinja")
            template.write_text(template.read_text().replace("'<|assistant|><think>'", "'<|assistant|><think>\\n'"))
        return Chat.load(folder)


def after_prompt(of: Chat, tokens) -> str:
    return of.decode(tokens[len(of.prompt(QUESTION.text)) :])


def speaking(of: Chat, tree, **options) -> ScriptedSampler:
    return ScriptedSampler(lambda tokens: tree.get(after_prompt(of, tokens)), of, **options)


class Reader(ScriptedScorer):
    """Prefers 4; keeps what it read."""

    def __init__(self, of: Chat):
        super().__init__(lambda text: 0.5)
        self.of, self.read = of, []

    async def score(self, prefixes):
        self.read += [self.of.decode(p) for p in prefixes]
        return [Score(0.9 if "4<|end|>" in self.of.decode(p) else 0.2, Cost(scorer_tokens=len(p))) for p in prefixes]


def tried(samples, generator=None, reasoner=None, scorer=None, **options) -> tuple[Trace, ScriptedSampler]:
    own = generator or sampler_of(PLANS)
    sampler, budget = reasoner or sampler_of(WORK), Budget(samples=samples)
    scorer = scorer or Reader(chat())
    trace = run(
        roles,
        sampler,
        budget,
        generator=Role(own, own.chat),
        scorer=scorer,
        canonical=canonical,
        **options,
    )
    sound(trace, [own, sampler], budget)
    return trace, sampler


def sound(trace, samplers, budget):
    assert all(sampler.running == 0 for sampler in samplers)
    spent = sum(sampler.cost.sampled_tokens for sampler in samplers)
    assert trace.cost.sampled_tokens == spent == budget.spent.sampled_tokens
    assert trace.cost.flops >= sum(sampler.cost.flops for sampler in samplers)
    assert budget.tokens is None or spent <= budget.tokens
    assert sum(len(s.tokens) for s in trace.spans if s.kind is SpanKind.SAMPLED) == spent
    assert all(-1 <= span.parent < i for i, span in enumerate(trace.spans))
    assert len(trace.leaves) == len(trace.answers) and trace.answer


def path_of(trace, leaf) -> list[tuple[SpanKind, str]]:
    return [(span.kind, chat().decode(span.tokens)) for span in trace.path(leaf)[1:]]


def test_each_role_does_its_part():
    trace, sampler = tried(8, seed=1)
    assert len(trace.leaves) == 8 and set(trace.answers) == {"3", "4"}
    assert trace.answer == "4" and trace.spans[trace.chosen].score == 0.9
    assert path_of(trace, trace.chosen) == [
        (SpanKind.FORCED, "add\n"),
        (SpanKind.SAMPLED, "2+2</think>"),
        (SpanKind.SAMPLED, "4<|end|>"),
    ]
    prompts = [i for i, span in enumerate(trace.spans) if span.parent == -1]
    openings = [s for s in trace.spans if s.parent == prompts[1]]
    assert len(prompts) == 2 and [s.kind for s in openings] == [SpanKind.SAMPLED] * 8
    assert trace.answers.count("4") == sum(s.tokens == tuple(b"add\n") for s in openings), "a chain for each opening"
    asked = [call for call in sampler.calls if not thought(call.prefix).endswith("</think>")]
    assert {(thought(call.prefix), call.n) for call in asked} == {
        ("add\n", trace.answers.count("4")),
        ("count\n", trace.answers.count("3")),
    }, "equal openings are asked for at once"
    assert trace.cost.scorer_tokens > 0 and trace.strategy == "roles"


def test_what_another_model_wrote_is_not_learnt_from():
    trace, _ = tried(3)
    for sample in from_rollouts([trace], [1.0] * 3):
        learnt = [token for token, m in zip(sample.tokens, sample.mask, strict=True) if m]
        assert chat().decode(learnt) in ("2+2</think>4<|end|>", "1 2 3</think>3<|end|>", "4<|end|>", "3<|end|>")


def test_longer_openings_and_more_chains():
    trace, _ = tried(4, opening=2, chains=3)
    assert len(trace.leaves) == 12
    assert {path_of(trace, leaf)[0][1] for leaf in trace.leaves} <= {"add\nwell\n", "count\nso\n"}
    for bad in ({"opening": 0}, {"chains": 0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            tried(4, **bad)


def test_the_pick():
    rare = {**PLANS, "": {"add\n": 1.0, "count\n": 4.0}}
    found = {pick: tried(12, sampler_of(rare), pick=pick, seed=1)[0] for pick in ("value", "weighted", "vote")}
    assert all("4" in trace.answers and trace.answers.count("3") > 6 for trace in found.values())
    assert found["value"].answer == "4" and found["vote"].answer == "3"
    assert found["vote"].cost.scorer_tokens == 0


@pytest.mark.parametrize(
    ("plans", "begun"),
    [
        ({"add\n": {"well\n": 1.0}, "add\nwell\n": {"</think>": 1.0}}, "add\nwell\n"),
        ({"add\n": {"2</think>": 1}}, "add\n2"),
    ],
)
def test_an_opening_that_ends_the_thought_is_gone_on_from_before_its_end(plans, begun):
    work = {**WORK, "add\n2": {"+2</think>": 1.0}}
    trace, _ = tried(2, sampler_of({"": {"add\n": 1.0}, **plans}), sampler_of(work), opening=3)
    assert trace.answers == ["4", "4"] and {path_of(trace, leaf)[0][1] for leaf in trace.leaves} == {begun}
    tags = [span for span in trace.spans if span.pruned]
    assert [chat().decode(tag.tokens) for tag in tags] == ["</think>"] * 2
    assert all(tag.kind is SpanKind.SAMPLED for tag in tags), "paid for, and shown"


def test_without_a_usable_opening_the_reasoner_begins_itself():
    for plans in ({"": {"stop": 1.0}}, {"": {"</think>": 1.0}}):
        assert tried(3, sampler_of(plans))[0].answers == ["0"] * 3
    gone = tried(3, sampler_of(PLANS, fail={0: SamplerLost("gone")}))[0]
    assert gone.answers == ["0"] * 3 and gone.lost == ["the sampler was lost: gone"]
    half = tried(40, sampler_of({"": {"add\n": 1.0, "stop": 1.0}}))[0]
    assert set(half.answers) == {"4", "0"} and len(half.answers) == 40


def test_models_of_the_same_tokens_pass_them_on_as_they_are():
    """Even where the same text could be spelled otherwise: the tokens are not made text in between."""
    odd = (0xFF, 10)  # a byte that is no UTF-8 by itself
    plans = ScriptedSampler(lambda tokens: odd if not after_prompt(chat(), tokens) else None, chat())
    reasoner = ScriptedSampler(lambda t: {"4": 1.0} if thought(t).endswith("</think>") else {"x</think>": 1.0}, chat())
    _, sampler = tried(1, plans, reasoner)
    assert sampler.calls[0].prefix == (*chat().prompt(QUESTION.text), *odd)


@pytest.mark.parametrize("breaks", [True, False])
def test_models_of_other_tokens_pass_on_text(breaks):
    other = foreign(breaks)
    trace, sampler = tried(8, speaking(other, PLANS), seed=1)
    assert set(trace.answers) == {"3", "4"} and trace.answer == "4"
    asked = {thought(call.prefix) for call in sampler.calls}
    assert {"add\n", "count\n"} <= asked
    reader = Reader(other)
    trace, _ = tried(8, scorer=reader, evaluator_chat=other, seed=1)
    gap = "\n" if breaks else ""
    assert set(reader.read) == {
        f"<|user|>2+2?<|end|><|assistant|><think>{gap}{said}{gap}</think>{gap}{gap}{answer}<|end|>"
        for said, answer in (("add\n2+2", "4"), ("count\n1 2 3", "3"))
    }
    assert trace.answer == "4"


@pytest.mark.parametrize("breaks", [True, False])
def test_translation_keeps_the_stage_of_a_path(breaks):
    other, gap = foreign(breaks), "\n" if breaks else ""
    for text, expected in [
        ("", ""),
        ("ab\n", "ab\n"),
        ("ab", "ab"),
        ("a\n\nb\n", "a\n\nb\n"),
        ("ab</think>", f"ab{gap}</think>{gap}{gap}"),
        ("ab</think>1", f"ab{gap}</think>{gap}{gap}1"),
        ("ab</think>1<|end|>", f"ab{gap}</think>{gap}{gap}1<|end|>"),
    ]:
        own = ScriptedSampler([], chat())
        body, end, _ = text.partition("<|end|>")
        tokens = (*own.encode(body), *([chat().turn_end] if end else []))
        there = translated(tokens, chat(), other)
        assert other.decode(there) == expected, "the prompt ends where the thought begins"
        back = translated(there, other, chat())
        assert chat().decode(back) == text, "and back"
        assert translated(tokens, chat(), chat()) == tokens


def test_chats_know_whether_they_speak_alike():
    assert chat().speaks_like(chat()) and not chat().speaks_like(foreign()) and not foreign().speaks_like(chat())
    with TemporaryDirectory() as folder:
        write_tokenizer(folder)
        path = Path(folder, "tokenizer.json")
        path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
        assert Chat.load(folder).speaks_like(chat()), "another spelling of the same file"


def make(options, sampler, scorer, budget, seed=0):
    generator = Role(sampler, chat())  # one model in both roles, so that a trial sees all that was sampled
    return roles(
        QUESTION,
        sampler,
        chat(),
        budget,
        seed=seed,
        generator=generator,
        scorer=scorer,
        canonical=canonical,
        **options,
    )


KINDS = {"one line": {}, "two lines, best": {"opening": 2, "pick": "value", "aggregate": "min"}, "vote": {"chains": 2}}


@pytest.mark.parametrize(
    "hardship",
    [
        "keeps_budgets_to_the_token",
        "bears_a_lost_sampler",
        "bears_a_lost_scorer",
        "leaves_nothing_running",
        "depends_on_the_seed_alone",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_hardships(kind, hardship):
    getattr(hardships, hardship)(hardships.strategy_of(partial(make, KINDS[kind])), 4)


def test_nothing_to_spend():
    budget = Budget(tokens=0, samples=2)
    own, sampler = sampler_of(PLANS), sampler_of(WORK)
    trace = run(
        roles, sampler, budget, generator=Role(own, chat()), scorer=ScriptedScorer(lambda t: 1.0), canonical=canonical
    )
    assert trace.answer == NO_ANSWER and trace.exhausted and own.calls == sampler.calls == []
