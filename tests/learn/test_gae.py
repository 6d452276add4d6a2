"""Advantages over the actions of one path, value targets, the critic's loss, and what reads its values."""

from __future__ import annotations

import random
from pathlib import Path as File

import pytest
import torch

from mull.errors import StopReason, UserError
from mull.learn.gae import explained_variance, gae, read_values, returns, state_batches, value_loss, whiten
from mull.learn.paths import Path, path_of
from mull.learn.samples import from_rollouts, from_tokens
from mull.models import hf
from mull.models.attention import causal
from mull.models.value import ValueModel
from mull.types import Question, Span, SpanKind, Trace
from tests.recipes.tiny import save_tiny

VALUES, REWARDS = [0.5, 0.25, 0.75], [0.0, 0.25, 1.0]


def test_worked_by_hand():
    """gamma 0.5, lambda 0.5: one-step errors, each plus a quarter of what follows."""
    errors = [0.0 + 0.5 * 0.25 - 0.5, 0.25 + 0.5 * 0.75 - 0.25, 1.0 - 0.75]
    assert errors == [-0.375, 0.375, 0.25]
    want = [-0.375 + (0.375 + 0.25 / 4) / 4, 0.375 + 0.25 / 4, 0.25]
    assert gae(REWARDS, VALUES, 0.5, 0.5) == pytest.approx(want)
    assert returns(REWARDS, VALUES, 0.5, 0.5) == pytest.approx([a + v for a, v in zip(want, VALUES, strict=True)])


def test_the_two_ends_of_lambda():
    assert gae(REWARDS, VALUES, 1.0, 1.0) == pytest.approx([1.25 - 0.5, 1.25 - 0.25, 1.0 - 0.75]), "return - V"
    assert gae(REWARDS, VALUES, 0.9, 1.0)[0] == pytest.approx(0.9 * 0.25 + 0.81 - 0.5)
    assert gae(REWARDS, VALUES, 0.9, 0.0) == pytest.approx([0.9 * 0.25 - 0.5, 0.25 + 0.9 * 0.75 - 0.25, 1.0 - 0.75]), (
        "the one-step error"
    )
    assert returns(REWARDS, VALUES, 1.0, 1.0) == pytest.approx([1.25, 1.25, 1.0]), "owes nothing to the values"
    assert returns(REWARDS, [9.0, -3.0, 5.0], 1.0, 1.0) == pytest.approx([1.25, 1.25, 1.0])


def test_the_sum_over_lambda_is_the_definition():
    rng = random.Random(0)
    r, v = [[rng.uniform(-1, 1) for _ in range(9)] for _ in range(2)]
    gamma, lam, last = 0.97, 0.8, 0.3
    after = [*v[1:], last]
    errors = [r[k] + gamma * after[k] - v[k] for k in range(9)]
    want = [sum((gamma * lam) ** i * errors[k + i] for i in range(9 - k)) for k in range(9)]
    assert gae(r, v, gamma, lam, last) == pytest.approx(want)
    with pytest.raises(ValueError, match="9 rewards and 8 values"):
        gae(r, v[:-1])
    assert gae([], []) == []


def test_a_chain_that_was_cut_ends_or_goes_on():
    """As a terminal, being cut is a disappointment of 0.75; bootstrapped, the limit is no news at all."""
    assert gae([0.0, 0.0], [0.75, 0.75]) == [-0.75, -0.75]
    assert gae([0.0, 0.0], [0.75, 0.75], bootstrap=0.75) == [0.0, 0.0]
    assert gae([0.0, 0.0], [0.75, 0.75], gamma=0.5, lam=0.0, bootstrap=0.5) == [-0.375, -0.5]


def test_whitening():
    lists = whiten([[1.0, 2.0], None, [3.0]])
    assert (
        lists[1] is None and lists[0] == pytest.approx([-1.0, 0.0], abs=1e-3) and lists[2] == pytest.approx([1], 1e-3)
    )
    assert whiten([[0.5], [0.5, 0.5], None]) == [[0.0], [0.0, 0.0], None], "no noise is blown up"
    assert whiten([[2.0]]) == [[0.0]] and whiten([]) == []


# ------------------------------------------------------------------------------------------------ the critic


def test_value_loss_by_hand_and_what_the_clip_stops():
    v, r, old = torch.tensor([0.5, 0.9, 0.1]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 0.5, 0.5])
    assert float(value_loss(v, r, old, 3.0, clip=0)) == pytest.approx((0.25 + 0.01 + 0.81) / 6)
    # 0.9 has moved 0.4 towards its target: its error counts as if it stood at 0.7. 0.1 has moved away: it counts fully.
    assert float(value_loss(v, r, old, 3.0, clip=0.2)) == pytest.approx((0.25 + 0.09 + 0.81) / 6)
    v.requires_grad_()
    value_loss(v, r, old, 3.0, clip=0.2).backward()
    assert v.grad is not None and v.grad.tolist() == pytest.approx([-0.5 / 3, 0.0, -0.9 / 3])
    assert float(value_loss(v.detach(), r, old, 6.0, clip=0.2)) == pytest.approx((0.25 + 0.09 + 0.81) / 12), (
        "of the whole step"
    )


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_value_loss_against_finite_differences(clip: float):
    torch.manual_seed(0)
    v, r, old = torch.randn(3, 40, dtype=torch.float64).unbind()
    assert torch.autograd.gradcheck(lambda x: value_loss(x, r, old, 40.0, clip), v.clone().requires_grad_())
    assert clip == 0 or float(value_loss(v, r, old, 40.0, clip)) > float(value_loss(v, r, old, 40.0, 0.0))


def test_explained_variance():
    targets = [0.0, 1.0, 1.0, 0.0]
    assert explained_variance(targets, targets) == 1.0
    assert explained_variance([0.3] * 4, targets) == pytest.approx(0.0)
    assert explained_variance([t + 5 for t in targets], targets) == pytest.approx(1.0), "a constant error is none here"
    assert (explained_variance([1.0, 0.0, 0.0, 1.0], targets) or 0) < 0
    assert explained_variance([0.1, 0.9], [1.0, 1.0]) is None


# ------------------------------------------------------------------------------------- paths and their states


def trace_of(spans: list[tuple[SpanKind, tuple[int, ...], int]], leaves: list[int], cut: bool = False) -> Trace:
    made = [
        Span(
            kind,
            tokens,
            parent,
            tuple(-0.1 * t for t in tokens) if kind is SpanKind.SAMPLED else (),
            stop=(StopReason.LENGTH if cut else StopReason.STOP) if kind is SpanKind.SAMPLED else None,
        )
        for kind, tokens, parent in spans
    ]
    return Trace(Question("q", "t", "?"), "test", made, leaves, [""] * len(leaves))


P, S, F, T = SpanKind.PROMPT, SpanKind.SAMPLED, SpanKind.FORCED, SpanKind.TOOL


def test_forced_tokens_have_no_step_of_their_own():
    """A value that jumps over forced tokens is the merit of nobody's action between them: it counts once."""
    trace = trace_of([(P, (1, 2), -1), (S, (3, 4), 0), (F, (5, 6), 1), (S, (7,), 2)], [3])
    path = path_of(trace, 3)
    assert path == Path((1, 2, 3, 4, 5, 6, 7), (2, 3, 6), 2, False)
    assert path.states == [2, 3, 6, 7], "the state before 7 includes the forced tokens"
    rewards = path.rewards(1.0)
    assert rewards == [0.0, 0.0, 1.0]
    advantages = gae(rewards, [0.5, 0.25, 0.75])
    assert advantages == [0.5, 0.75, 0.25]
    [sample] = from_tokens([trace], [path.spread(advantages)])
    assert sample.advantages == [0.0, 0.0, 0.5, 0.75, 0.0, 0.0, 0.25]
    [plain] = from_rollouts([trace], [1.0])
    assert (sample.mask, sample.logprobs, sample.tokens) == (plain.mask, plain.logprobs, plain.tokens)


def test_rewards_go_to_the_action_that_earned_them():
    path = Path((1, 2, 3, 4, 5, 6, 7, 8), (2, 3, 6), 2, True)  # ends in a forced token
    assert path.rewards(1.0, [(3, 0.25), (5, 0.5), (7, 0.125)]) == [0.25, 0.5, 1.125]
    assert path.rewards(0.5, [(2, 9.0), (4, 0.1), (4, 0.2)]) == pytest.approx([0.0, 0.3, 0.5])
    assert path_of(trace_of([(P, (1,), -1), (S, (2,), 0), (F, (3,), 1)], [2]), 2).cut
    assert path_of(trace_of([(P, (1,), -1), (S, (2,), 0)], [1], cut=True), 1).cut
    with pytest.raises(ValueError):
        path.spread([1.0, 2.0])


def test_advantages_by_token_in_a_tree():
    """A shared span gets, token by token, the mean of the chains below it, and is trained on once."""
    trace = trace_of([(P, (1,), -1), (S, (2, 3), 0), (S, (4,), 1), (S, (5, 6), 1)], [2, 3])
    one, two = from_tokens([trace], [[0.0, 1.0, 2.0, 3.0], [0.0, 3.0, 6.0, 7.0, 8.0]])
    assert one.advantages == [0.0, 2.0, 4.0, 3.0] and one.mask == [False, True, True, True]
    assert two.advantages == [0.0, 0.0, 0.0, 7.0, 8.0] and two.mask == [False, False, False, True, True]
    [only] = from_tokens([trace], [None, [0.0, 3.0, 6.0, 7.0, 8.0]])
    assert only.advantages == [0.0, 3.0, 6.0, 7.0, 8.0], "a chain that is left out is in no mean"
    for values, message in [
        ([[0.0, 1.0, 2.0], None], "3 advantages for a path of 4"),
        ([[1.0, 1.0, 2.0, 3.0], None], "an advantage on a prompt token"),
        ([[0.0, float("nan"), 2.0, 3.0], None], "not finite"),
        ([None], "2 leaves and 1 lists"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_tokens([trace], values)


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> ValueModel:
    folder: File = tmp_path_factory.mktemp("critic")
    return ValueModel(hf.load(save_tiny(folder / "base")), seed=1)


def test_values_are_those_of_the_states_whatever_shares_the_batch(critic: ValueModel):
    rng = random.Random(1)

    def path(n: int) -> Path:
        tokens = (1, 2, 3, *(rng.randrange(5, 8) for _ in range(n)))  # few tokens: chains that begin alike
        return Path(tokens, tuple(i for i in range(3, len(tokens)) if rng.random() < 0.8), 3, False)

    paths = [path(n) for n in (7, 12, 3, 9)] + [Path((1, 2, 3, 4), (), 3, True)]
    together, read, keys = read_values(critic, paths, 512)
    apart, most, most_keys = read_values(critic, paths, 24)
    [shared] = state_batches(paths, 512)
    assert shared.batch.sees_BTT is not None
    assert keys == int(shared.batch.sees_BTT[0, :read].sum()), "a token sees itself and its ancestors, no other branch"
    assert keys < most_keys and most_keys <= sum(n * (n + 1) // 2 for n in map(len, (p.tokens for p in paths)))
    assert read < most, "what chains share is read once where they fit into one batch"
    assert [len(v) for v in together] == [len(p.states) if p.actions else 0 for p in paths]
    for p, values, again in zip(paths, together, apart, strict=True):
        tokens = torch.tensor([p.tokens])
        positions = torch.arange(len(p.tokens))[None]
        with torch.no_grad():
            all_T = critic.logits(critic.body(tokens, positions, causal(critic.body.config.sliding_window)))[0]
        want = [float(all_T[n - 1]) for n in p.states] if p.actions else []
        assert values == pytest.approx(want, abs=1e-5) and again == pytest.approx(want, abs=1e-5)
    assert len({round(v, 4) for values in together for v in values}) > 10, "one value for all would pass, too"


def test_states_are_split_where_they_do_not_fit(critic: ValueModel):
    paths = [Path((1, 2, *[3 + i] * 20), tuple(range(2, 22)), 2, False) for i in range(5)]
    parts = state_batches(paths, 64)
    assert [i for part in parts for i in part.paths] == [0, 1, 2, 3, 4] and len(parts) > 1
    assert all(part.batch.tokens_BT.numel() <= 64 for part in parts)
    assert all(len(part.batch.at_N) == 21 * len(part.paths) for part in parts)
    with pytest.raises(UserError, match="raise the tokens per micro-batch"):
        state_batches(paths, 16)
