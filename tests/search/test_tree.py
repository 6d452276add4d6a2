"""The tree that searches grow: steps, their seeds, the budget to the token, and what happens when something fails."""

import asyncio
import math

import pytest

from mull.chat.steps import separator_tokens
from mull.errors import SamplerLost, StopReason, UserError
from mull.ledger import Budget
from mull.search.best_of_n import best_of_n
from mull.search.choose import aggregate, majority_leaf, weighted_vote
from mull.search.node import Steps
from mull.search.sample import Decoding
from mull.search.tree import NO_ANSWER, Tree
from mull.types import SamplingParams, SpanKind
from tests.search.tools import QUESTION, ScriptedScorer, assert_sound, canonical, chat, run, sampler_of, texts, thought

FORK = {
    "": {"a\n": 1.0, "b\n": 1.0},
    "a\n": {"aa</think>": 1.0},
    "b\n": {"bb\n": 1.0},
    "b\nbb\n": {"</think>": 1.0},
    "a\naa</think>": {"1": 1.0},
    "b\nbb\n</think>": {"2": 1.0},
}


def grow(sampler, budget, **options) -> Tree:
    return Tree("test", QUESTION, sampler, chat(), budget, **options)


def test_a_step_ends_with_a_line_the_thought_or_the_answer():
    async def steps():
        tree = grow(sampler_of(FORK), Budget())
        node, seen = tree.root, []
        while node.open:
            [node] = await tree.extend(node)
            seen.append(thought(node.tokens))
        return tree, node, seen

    for seed in range(4):
        tree, node, seen = asyncio.run(steps())
        assert seen in (
            ["a\n", "a\naa</think>", "a\naa</think>1<|end|>"],
            ["b\n", "b\nbb\n", "b\nbb\n</think>", "b\nbb\n</think>2<|end|>"],
        ), seed
        assert node.answer in ("1", "2") and tree.leaves == [node] and node.path()[-1] is node


def test_a_chain_sampled_in_one_go_is_the_same_path_as_one_sampled_by_steps():
    async def both():
        tree = grow(sampler_of(FORK), Budget())
        whole = await tree.complete(tree.root, 8)
        return tree, whole

    tree, whole = asyncio.run(both())
    assert len(whole) == 8 and {leaf.answer for leaf in whole} == {"1", "2"}
    for leaf in whole:
        assert [thought(step.tokens) for step in leaf.path()] == (
            ["a\n", "a\naa</think>", "a\naa</think>1<|end|>"]
            if leaf.answer == "1"
            else ["b\n", "b\nbb\n", "b\nbb\n</think>", "b\nbb\n</think>2<|end|>"]
        )
        assert leaf.depth == len(leaf.path()) and leaf.sampled == sum(
            len(tree.trace.spans[s.span].tokens) for s in leaf.path()
        )
    trace = asyncio.run(tree.finish(whole[0]))
    assert_sound(trace, tree.sampler, tree.budget)
    assert trace.answer == whole[0].answer and trace.chosen == whole[0].span


def test_seeds_belong_to_places_in_the_tree_not_to_arrival():
    async def grown(yields: int):
        tree = grow(sampler_of(FORK, yields=yields), Budget(), seed=5)
        first = await tree.extend(tree.root, 4)
        order = first if yields == 1 else first[::-1]
        for node in order:
            await tree.extend(node, 3)
        return {node.order: node.tokens for node in tree.nodes}

    assert asyncio.run(grown(1)) == asyncio.run(grown(7))


def test_requests_that_run_at_once_from_one_node_have_places_of_their_own():
    """Places were once taken when answers arrived: nodes of different requests had one place, and then one seed."""

    async def go(yields: int):
        closed = {"a\n</think>": {"1": 1, "2": 1}, "b\n</think>": {"1": 1, "2": 1}}
        tree = grow(sampler_of(FORK | closed, yields=yields), Budget(), seed=3)
        await asyncio.gather(tree.extend(tree.root, 2), tree.extend(tree.root, 2), tree.complete(tree.root))
        await asyncio.gather(tree.force_answer(tree.nodes[1]), tree.force_answer(tree.nodes[1]))
        return tree

    tree = asyncio.run(go(1))
    assert len({node.order for node in tree.nodes}) == len(tree.nodes)
    assert {n.order: n.tokens for n in tree.nodes} == {n.order: n.tokens for n in asyncio.run(go(9)).nodes}


def test_the_think_budget_closes_a_thought_by_force():
    endless = sampler_of({"": {"x\n": 1}, "x\n": {"x\n": 1}, "x\nx\n": {"x\n": 1}, "x\nx\n</think>": {"3": 1}})

    async def go():
        tree = grow(endless, Budget(think_tokens=4))
        [leaf] = await tree.complete(tree.root)
        return tree, leaf

    tree, leaf = asyncio.run(go())
    assert leaf.answer == "3" and [n.forced for n in tree.nodes] == [False, False, False, True, False]
    assert [s.kind for s in tree.trace.path(leaf.span)][-2:] == [SpanKind.FORCED, SpanKind.SAMPLED]
    assert len(leaf.path()) == 3  # two lines and the answer: the tag is no step of the model's


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 13, 21, 34, 55, 89])
def test_concurrent_requests_never_overspend_and_always_answer(tokens):
    tree_of = {"": {"a\n": 1, "bbbb\n": 1}}
    for x in ("a\n", "bbbb\n"):
        tree_of |= {x: {"c\n": 1}, x + "c\n": {"</think>": 1}, x + "c\n</think>": {"12": 1}}

    def follows(tokens):
        text = thought(tokens)
        return tree_of.get(text) or ({"7": 1.0} if text.endswith("</think>") else None)

    sampler = sampler_of(tree_of)
    sampler._follows = follows

    async def go():
        budget = Budget(tokens=tokens, answer_tokens=4)
        tree = grow(sampler, budget, steps=Steps(max_tokens=6))

        async def walk(node):
            for child in await tree.extend(node, 2):
                if child.open:
                    await walk(child)

        await asyncio.gather(*(walk(tree.root) for _ in range(3)))
        return await tree.finish(None), budget

    trace, budget = asyncio.run(go())
    assert_sound(trace, sampler, budget)
    assert trace.answer in ("12", "7", "1") or tokens < 2
    assert trace.exhausted == (tokens < 89) or trace.exhausted


def test_a_budget_for_nothing_still_says_so():
    sampler = sampler_of(FORK)
    budget = Budget(tokens=0)
    trace = run(best_of_n, sampler, budget, scorer=ScriptedScorer(lambda t: 1.0), canonical=canonical)
    assert trace.answer == NO_ANSWER and trace.exhausted and sampler.calls == []


def test_a_step_that_never_ends_is_cut_and_counted():
    sampler = sampler_of({"": {"y" * 200: 1}})

    async def go():
        tree = grow(sampler, Budget(think_tokens=100), steps=Steps(max_tokens=10))
        [node] = await tree.extend(tree.root)
        return tree, node

    tree, node = asyncio.run(go())
    assert node.open and len(node.tokens) == len(tree.root.tokens) + 10
    assert tree.trace.lost == ["a step did not end within 10 tokens and was cut there"]


def test_a_turn_that_ends_in_the_thought_is_dead():
    async def go():
        tree = grow(sampler_of({"": {"stop": 1}}), Budget())
        return await tree.complete(tree.root), tree

    [node], tree = asyncio.run(go())
    assert node.dead and not node.open and tree.leaves == []


def test_a_lost_sampler_ends_paths_not_the_search():
    sampler = sampler_of(FORK, fail={2: SamplerLost("the server at :1 closed the connection")})

    async def go():
        tree = grow(sampler, Budget())
        first = await tree.extend(tree.root, 2)
        for node in first:
            await tree.extend(node)
        return tree, first

    tree, first = asyncio.run(go())
    assert [n.dead for n in first] == [False, True] and tree.trace.lost == [
        "the sampler was lost: the server at :1 closed the connection"
    ]


def test_what_came_before_a_server_went_is_used_and_paid_for():
    whole = sampler_of(FORK)
    came = asyncio.run(whole.sample(chat().prompt(QUESTION.text), SamplingParams(2, stop_tokens=(10,)), 2))
    sampler = sampler_of(FORK, fail={0: SamplerLost("gone", came)})

    async def go():
        tree = grow(sampler, Budget())
        return await tree.extend(tree.root, 4), tree

    nodes, tree = asyncio.run(go())
    assert [thought(n.tokens) for n in nodes] == [thought((*tree.root.tokens, *c.tokens)) for c in came]
    assert tree.trace.cost.sampled_tokens == 4 and tree.root.dead and len(tree.trace.lost) == 1


def test_the_question_itself_may_be_refused_but_not_a_deep_path():
    refusing = sampler_of(FORK, fail={0: UserError("too long")})
    tree = grow(refusing, Budget())
    with pytest.raises(UserError):
        asyncio.run(tree.extend(tree.root))

    async def go():
        tree = grow(sampler_of(FORK, fail={1: UserError("too long"), 2: MemoryError()}), Budget())
        first = await tree.extend(tree.root, 2)
        assert await tree.extend(first[0]) == [] and await tree.extend(first[1]) == []
        return tree, first

    tree, first = asyncio.run(go())
    assert all(n.dead for n in first) and len(tree.trace.lost) == 2


def test_a_bug_in_the_sampler_is_not_swallowed():
    sampler = sampler_of(FORK, fail={0: RuntimeError("a bug")})
    with pytest.raises(RuntimeError, match="a bug"):
        run(best_of_n, sampler, Budget(), scorer=ScriptedScorer(lambda t: 1.0), canonical=canonical)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_scorer_without_a_number_counts_as_the_lowest(bad):
    scorer = ScriptedScorer(lambda t: bad if "b" in t else 0.1)
    budget = Budget(samples=8)
    sampler = sampler_of(FORK)
    trace = run(best_of_n, sampler, budget, scorer=scorer, canonical=canonical)
    assert trace.answer == "1" and trace.lost and set(trace.answers) == {"1", "2"}
    assert_sound(trace, sampler, budget)


def test_a_lost_scorer_leaves_an_answer():
    scorer = ScriptedScorer(lambda t: 1.0, fail={0: SamplerLost("gone")})
    trace = run(best_of_n, sampler_of(FORK), Budget(samples=4), scorer=scorer, canonical=canonical)
    assert trace.answer in "12" and trace.lost == ["the scorer was lost: gone"]


def test_scores_are_asked_once_and_charged():
    scorer = ScriptedScorer(lambda t: 0.5)
    budget = Budget(samples=4)
    trace = run(best_of_n, sampler_of(FORK), budget, scorer=scorer, canonical=canonical, aggregate="product")
    assert len(scorer.calls) == 1 and trace.cost.scorer_tokens == budget.spent.scorer_tokens > 0
    assert all(span.score == 0.5 for span in trace.spans if span.kind is SpanKind.SAMPLED)


def test_equal_paths_are_read_once_and_share_their_score():
    scorer = ScriptedScorer(lambda t: 0.25)

    async def go():
        tree = grow(sampler_of({"": {"a\n": 1}}), Budget(), scorer=scorer)
        nodes = await tree.extend(tree.root, 3)
        await tree.score(nodes)
        tree.rate(nodes[0], 0.5)
        return tree, nodes

    tree, nodes = asyncio.run(go())
    assert scorer.calls == [["a\n"]] and [node.score for node in nodes] == [0.5, 0.25, 0.25]
    assert [span.score for span in tree.trace.spans] == [None, 0.5, 0.25, 0.25]


def test_the_node_limit_holds():
    async def go():
        tree = grow(sampler_of(FORK), Budget(), max_nodes=5)
        grown = await tree.extend(tree.root, 4)
        return grown, await tree.extend(grown[0], 2), tree

    grown, more, tree = asyncio.run(go())
    assert len(grown) == 4 and more == [] and tree.trace.exhausted and "limit of 5 nodes" in tree.trace.lost[0]


def test_cancelling_frees_everything():
    async def go():
        sampler = sampler_of(FORK, yields=50)
        task = asyncio.create_task(
            best_of_n(
                QUESTION, sampler, chat(), Budget(samples=4), scorer=ScriptedScorer(lambda t: 1.0), canonical=canonical
            )
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return sampler

    sampler = asyncio.run(go())
    assert sampler.running == 0 and sampler.calls[0].cancelled


def test_aggregates():
    scores = [0.5, 0.25, 1.0]
    assert [aggregate(scores, how) for how in ("min", "product", "mean", "last")] == [0.25, 0.125, 1.75 / 3, 1.0]
    assert aggregate([], "mean") == 0.0


def test_votes_weigh_scores():
    class Leaf:
        def __init__(self, answer, score):
            self.answer, self.score = answer, score

    leaves = [Leaf("1", 0.4), Leaf("2", 0.5), Leaf("1", 0.3), Leaf("x", 5.0)]
    value = lambda leaf: leaf.score  # noqa: E731
    assert weighted_vote(QUESTION, leaves, value, canonical).score == 0.4
    assert majority_leaf(QUESTION, leaves[1:], canonical).answer == "2"
    assert weighted_vote(QUESTION, [Leaf("1", 0.0), Leaf("2", 0.0)], value, canonical).answer == "1"
    assert weighted_vote(QUESTION, [Leaf("x", 0.1), Leaf("y", 0.2)], value, canonical).answer == "y"
    assert weighted_vote(QUESTION, [], value, canonical) is None


def test_the_best_chain_wins_and_votes_outweigh_it():
    scorer = ScriptedScorer(lambda t: 0.9 if t.endswith("2<|end|>") else 0.6)
    one = run(best_of_n, sampler_of(FORK), Budget(samples=12), scorer=scorer, canonical=canonical, seed=1)
    assert one.answer == "2" and one.strategy == "best_of_n"
    rare = {**FORK, "": {"a\n": 9.0, "b\n": 1.0}}
    most = run(best_of_n, sampler_of(rare), Budget(samples=24), scorer=scorer, canonical=canonical, vote=True)
    assert most.answer == "1" and {"1", "2"} == set(most.answers) and most.strategy == "weighted_vote"


def test_separators():
    assert separator_tokens(chat(), "\n") == (10,)
    assert separator_tokens(chat(), "\n\n") is None


def test_a_separator_of_several_characters():
    tree_of = {"": {"a\n\nb</think>": 1}, "a\n\n": {"b</think>": 1}, "a\n\nb</think>": {"1": 1}}

    async def go(whole: bool):
        tree = grow(sampler_of(tree_of), Budget(), steps=Steps("\n\n"))
        if whole:
            [node] = await tree.complete(tree.root)
        else:
            node = tree.root
            while node.open:
                [node] = await tree.extend(node)
        return [thought(step.tokens) for step in node.path()]

    assert asyncio.run(go(True)) == asyncio.run(go(False)) == ["a\n\n", "a\n\nb</think>", "a\n\nb</think>1<|end|>"]


def test_texts_helper_sees_every_step():
    trace = run(
        best_of_n, sampler_of(FORK), Budget(samples=2), scorer=ScriptedScorer(lambda t: 1.0), canonical=canonical
    )
    assert set(texts(trace)) <= {"a\n", "aa</think>", "b\n", "bb\n", "</think>", "1<|end|>", "2<|end|>"}
    assert all(span.stop is StopReason.STOP for span in trace.spans if span.kind is SpanKind.SAMPLED)


def test_log_probabilities_of_sampled_steps_are_taken_as_they_are():
    """Nothing is read for them; a forced step is not the model's, and other temperatures are not its distribution."""

    class Counting(ScriptedScorer):
        def of_sampled(self, logprob: float, tokens: int) -> float:
            return math.exp(logprob / tokens)

    async def scored(decoding):
        scorer = Counting(lambda t: 0.25)
        tree = grow(sampler_of(FORK), Budget(), scorer=scorer, decoding=decoding)
        [node] = await tree.extend(tree.root)
        forced = tree.insert(tree.root, chat().encode("a\n"))
        [behind] = await tree.extend(forced)
        await tree.score([node, behind])
        return node.score, behind.score, tree.trace.cost.scorer_tokens, scorer.calls

    free, read, tokens, calls = asyncio.run(scored(Decoding()))
    assert free == pytest.approx(math.exp(math.log(0.5) / 2)) and read == 0.25 and calls == [["a\naa</think>"]]
    assert tokens > 0
    free, read, tokens, calls = asyncio.run(scored(Decoding(temperature=0.7)))
    assert (free, read) == (0.25, 0.25) and len(calls[0]) == 2
