"""The traps between the sampler and the trainer, end to end: engine -> trace -> samples -> batch -> log-probabilities.

Each docstring names the trap. Where the bug can be written in miniature (`buggy` …) the test asserts that its check
tells the bug from ours, so that a check which cannot fail does not pass here.
"""

import asyncio
from dataclasses import replace

import pytest
import torch

from mull.engine.scripted import ScriptedSampler
from mull.errors import StopReason
from mull.learn import losses, optim
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack
from mull.learn.samples import from_rollouts, truncated
from mull.ledger import Budget
from mull.models.flops import causal_context, forward_flops
from mull.models.transformer import Transformer
from mull.search.sample import ON_POLICY, Decoding, sample, sample_forced
from mull.types import Batch, Completion, Question, SamplingParams, Span, SpanKind, Trace
from tests.engine import small
from tests.engine.small import CONFIG, FAMILIES, ask, chat, crowd, engine, full_logprobs, prompts, worst_gap

QUESTION = Question("q", "t", "a=3;b=a+4;b=?")
END = chat().turn_end


def model(config=CONFIG) -> Transformer:
    """Neither nearly certain nor nearly uniform."""
    return small.model(config, scale=4.0)


def rollout(made, decoding: Decoding = ON_POLICY, n: int = 12, tokens: int = 40, strategy=sample) -> Trace:
    budget = Budget(think_tokens=tokens - 8, answer_tokens=8, samples=n)
    return asyncio.run(strategy(QUESTION, made, chat(), budget, decoding))


def batches_of(trace: Trace) -> list[Batch]:
    weights = [1.0 if i % 2 else -1.0 for i in range(len(trace.leaves))]
    return pack(from_rollouts([trace], weights), max_tokens=256)


def step_zero(built: Transformer, batches: list[Batch]) -> tuple[float, float]:
    """(mean ratio, largest |log ratio|) of trainer to sampler before any update."""
    with torch.no_grad():
        new = [batch_logprobs(built, b)[0] for b in batches]
        ratio = losses.summarise([losses.loss(b, n)[1] for b, n in zip(batches, new, strict=True)])["ratio"]
        gap = max(float(losses.log_ratio(b, n).abs().max()) for b, n in zip(batches, new, strict=True))
    return ratio, gap


# ------------------------------------------------------------------------------- one distribution on both sides


@pytest.mark.parametrize("family", FAMILIES)
def test_trainer_and_sampler_agree(family):
    """Trap "Trainer≠sampler logprobs": on-policy, in float32, the ratio of every token is 1 within 1e-5."""
    built = model(FAMILIES[family])
    trace = rollout(engine(built))
    batches = batches_of(trace)
    ratio, gap = step_zero(built, batches)
    assert ratio == pytest.approx(1.0, abs=1e-5) and gap < 1e-5
    assert sum(int(b.mask_BT.sum()) for b in batches) == trace.cost.sampled_tokens
    rounded = model(FAMILIES[family])  # the sampler holds bf16 copies of the weights, as inference servers do
    with torch.no_grad():
        for p in rounded.parameters():
            p.copy_(p.bfloat16())
    buggy = step_zero(built, batches_of(rollout(engine(rounded))))
    assert buggy[1] > 1e-3


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_temperature_in_logprobs(temperature):
    """Trap "Temperature in logprobs": the engine reports them at the temperature that it sampled at, and the trainer
    scores them at the same."""
    built = model()
    trace = rollout(engine(built), Decoding(temperature=temperature))
    batches = batches_of(trace)
    assert step_zero(built, batches)[1] < 1e-5
    assert {s.temperature for s in trace.spans[1:]} == {temperature}
    buggy = [replace(b, temperature_B=torch.ones_like(b.temperature_B)) for b in batches]
    assert step_zero(built, buggy)[1] > 0.1


@pytest.mark.parametrize("decoding", [Decoding(top_p=0.8), Decoding(top_k=5), Decoding(0.7, 0.9, 20)])
def test_top_p_and_top_k_support(decoding):
    """Trap "top-p/top-k support": the ratio at step zero is 1 because the trainer renormalises over the kept set."""
    built = model()
    trace = rollout(engine(built), decoding)
    batches = batches_of(trace)
    assert all(b.kept_BTK is not None for b in batches)
    ratio, gap = step_zero(built, batches)
    assert ratio == pytest.approx(1.0, abs=1e-5) and gap < 1e-5
    buggy, _ = step_zero(built, [replace(b, kept_BTK=None) for b in batches])
    assert buggy < 0.95


def test_dtype():
    """Trap "dtype": a bf16 model's log-probabilities are normalised in float32; in bf16 they would be multiples of
    1/128 and coarser. (How often bf16 changes a seeded sample: benchmarks/bf16_determinism.py.)"""
    built = model().bfloat16()
    trace = rollout(engine(built))
    logprobs = torch.tensor([x for s in trace.spans[1:] for x in s.logprobs])
    buggy = logprobs.bfloat16().float()
    assert (logprobs != buggy).float().mean() > 0.9
    full = torch.cat([full_logprobs(built, trace.spans[0].tokens, as_completion(s)) for s in trace.spans[1:]])
    assert (full - logprobs).abs().max() < 0.25 and (full - logprobs).abs().mean() < 0.02


def as_completion(span: Span) -> Completion:
    assert span.stop is not None
    return Completion(span.tokens, span.logprobs, span.stop, span.policy_version, span.temperature)


def test_batch_variant_kernels():
    """Trap "Batch-variant kernels": what shares a request's batch, its chunks and its pages must not change it beyond
    float32 rounding."""

    def gaps(built):
        work = [(p, SamplingParams(max_tokens=20, seed=i)) for i, p in enumerate(prompts(10, seed=5))]
        alone = [crowd(engine(built), [job])[0] for job in work]
        found = []
        variants: list[dict] = [{}, {"max_step_tokens": 3}, {"max_sequences": 3}, {"pages": 8}, {"torch_pages": True}]
        for options in variants:
            for a, b in zip(alone, crowd(engine(built, **options), work), strict=True):
                same = next((t for t, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), None)
                pairs = zip(a.logprobs[:same], b.logprobs[:same], strict=same is not None)
                found.append((a.tokens == b.tokens, max((abs(x - y) for x, y in pairs), default=0.0)))
        return found

    float32 = gaps(model())
    assert all(same for same, _ in float32) and max(gap for _, gap in float32) < 1e-5
    variant = model()
    forward = variant.forward
    variant.forward = lambda tokens, positions, attend: (  # a kernel that rounds otherwise for an odd number of rows
        forward(tokens, positions, attend) * (1 + len(tokens) % 2 / 256)
    )
    assert max(gap for _, gap in gaps(variant)) > 1e-3


# --------------------------------------------------------------------------------------------- weights and cache


def test_stale_prefix_cache_and_unsynced_weights():
    """Traps "Stale prefix cache after weight update" and "Weights silently not synced": after an optimiser step the
    engine samples from the new weights with nothing of the old in its cache, and says so by its policy version.

    torch's counter of in-place changes does not see a fused step, which is what our optimiser takes."""
    prefix = prompts(1, shortest=60, longest=61)[0]

    def trained(notice: bool):
        built = model()
        made = engine(built)
        if not notice:
            made._weights.changed = lambda thorough: False  # type: ignore[method-assign]
        trace = rollout(made)
        [before] = ask(made, prefix)
        optimizer = optim.adamw(built, 0.03)
        for batch in batches_of(trace):
            losses.loss(batch, batch_logprobs(built, batch)[0])[0].backward()
        optim.step(built, optimizer, 0.03)
        [after] = ask(made, prefix)
        assert before.policy_version == 0
        return worst_gap(built, prefix, after), after

    gap, after = trained(notice=True)
    assert gap < 1e-5 and after.policy_version == 1 and after.cost.cached_tokens == 0
    buggy, stale = trained(notice=False)
    assert buggy > 1e-3 and stale.cost.cached_tokens > 0


# ------------------------------------------------------------------------------------------------- tokens


def likely_to_end() -> Transformer:
    """A model that ends most chains, not all, within 40 tokens."""
    built = model()
    forward = built.logits
    shift = torch.zeros(CONFIG.vocab_size)
    shift[END] = 2.0
    built.logits = lambda hidden: forward(hidden) * 0.3 + shift  # type: ignore[method-assign]
    return built


def test_the_sampled_end_token_is_kept_and_trained():
    """Trap "EOS never trained": the end token that the engine sampled comes with its log-probability into the batch."""
    trace = rollout(engine(likely_to_end()))
    ended = [s for s in trace.spans[1:] if s.stop is StopReason.STOP]
    assert 2 < len(ended) < 12, len(ended)
    assert all(s.tokens[-1] == END and len(s.logprobs) == len(s.tokens) for s in ended)
    batches = batches_of(trace)
    trained = sum(int(((b.targets_BT == END) & b.mask_BT).sum()) for b in batches)
    assert trained == len(ended)
    logprobs = sorted(float(x) for b in batches for x in b.logprobs_BT[(b.targets_BT == END) & b.mask_BT])
    assert logprobs == pytest.approx(sorted(s.logprobs[-1] for s in ended))
    dropped = [
        replace(s, tokens=s.tokens[:-1], logprobs=s.logprobs[:-1]) if s.stop is StopReason.STOP else s
        for s in trace.spans
    ]
    buggy = batches_of(Trace(QUESTION, "sample", dropped, trace.leaves))
    assert not any(((b.targets_BT == END) & b.mask_BT).any() for b in buggy)


def test_no_end_token_is_fabricated():
    """Trap "EOS fabricated": a chain that was cut off has none, in the engine or the batch, and counts as truncated."""
    trace = rollout(engine(likely_to_end()))
    cut = [s.stop is StopReason.LENGTH for s in trace.spans[1:]]
    assert any(cut) and not all(cut) and truncated([trace]) == cut
    for span, was_cut in zip(trace.spans[1:], cut, strict=True):
        assert span.tokens.count(END) == (0 if was_cut else 1)
        assert not was_cut or len(span.tokens) == 40
    prompt = trace.spans[0].tokens
    for one, was_cut in zip(from_rollouts([trace], [1.0] * 12), cut, strict=True):
        assert END not in one.tokens[len(prompt) :] or not was_cut
        assert sum(one.mask) == len(one.tokens) - len(prompt)


def test_tokens_are_never_retokenised():
    """Trap "Retokenization": what the trainer gets are the engine's ids, also where their text encodes differently."""
    built = model()
    trace = rollout(engine(built))
    prompt = trace.spans[0].tokens
    different = 0
    for one, span in zip(from_rollouts([trace], [1.0] * 12), trace.spans[1:], strict=True):
        assert tuple(one.tokens) == (*prompt, *span.tokens)
        assert tuple(one.logprobs[len(prompt) :]) == span.logprobs
        buggy = chat().encode(chat().decode(span.tokens))
        different += tuple(buggy) != span.tokens
    assert different > 6, "bytes that are no UTF-8, and control tokens: text does not bring them back"
    [follow_up] = ask(engine(built), [*prompt, *trace.spans[1].tokens, 5], max_tokens=2)
    assert worst_gap(built, [*prompt, *trace.spans[1].tokens, 5], follow_up) < 1e-5


def test_thought_tags_that_the_model_wrote_are_trained():
    """Trap "`<think>` masked as prompt": a tag is context where the template or the strategy wrote it, and a decision
    where the model did."""
    [opened], [closed] = chat().think_open, chat().think_close
    prompt = chat().prompt(QUESTION.text)
    assert prompt[-1] == opened
    sampler = ScriptedSampler([(opened, ord("x"), closed, ord("4"), END)], chat())
    [one] = from_rollouts([rollout(sampler, n=1)], [1.0])
    assert one.mask == [False] * len(prompt) + [True] * 5, "the second opening tag is the model's own"
    buggy = [i >= len(prompt) and token not in (opened, closed) for i, token in enumerate(one.tokens)]
    assert buggy != one.mask, "a mask by token id takes the decision away"

    def script(prefix):
        if closed in prefix:
            return ord("4"), END
        return "xx" if prefix[-1] == opened else "y"

    forced = rollout(ScriptedSampler(script, chat()), n=1, tokens=12, strategy=sample_forced)
    [one] = from_rollouts([forced], [1.0])
    at = list(one.tokens).index(closed)
    assert not one.mask[at] and one.advantages[at] == 0.0
    assert all(one.mask[len(prompt) : at]) and all(one.mask[at + 1 :])
    assert [s.kind for s in forced.path(forced.leaves[0])].count(SpanKind.FORCED) == 1


# --------------------------------------------------------------------------------------------------- cost


def test_a_shared_prefix_is_counted_once():
    """Trap "Shared prefix counted twice", in the ledger: the costs of n samples of one prompt add up to the tokens that
    went through the model, and the rest is reported as cached."""
    made = engine()
    prefix = prompts(1, shortest=70, longest=71)[0]
    made._end[:] = False
    found = ask(made, prefix, n=8, max_tokens=10)
    costs = [c.cost for c in found]
    assert sum(c.prefill_tokens + c.sampled_tokens - 1 for c in costs) == made.step_rows
    assert sum(c.cached_tokens for c in costs) == 7 * 69
    assert all(c.prefill_tokens + c.cached_tokens == 70 for c in costs)
    rest = causal_context(69, 79)
    expected = forward_flops(CONFIG, 79, causal_context(0, 79), 10) + 7 * forward_flops(CONFIG, 10, rest, 10)
    assert sum(c.flops for c in costs) == expected == made.spent.flops
    buggy = 8 * forward_flops(CONFIG, 79, causal_context(0, 79), 10)
    assert buggy > 2 * expected
