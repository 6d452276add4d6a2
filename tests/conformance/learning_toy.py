"""A model of eight tokens and an honest sampler, small enough to put every learning trap to the test."""

import torch
from torch import nn

from mull.errors import StopReason
from mull.learn import losses
from mull.learn.logprobs import logprobs_from_logits
from mull.types import Batch, Question, Span, SpanKind, Trace, Verdict

V, EOS, PROMPT = 8, 0, (3, 5)  # the end token has the id of the padding, on purpose


class Toy(nn.Module):
    """A causal model: logits from the mean of the embeddings so far."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(V, 6)
        self.head = nn.Linear(6, V)
        nn.init.normal_(self.head.weight, std=1.5)

    def forward(self, tokens_BT):
        x_BTE = self.embed(tokens_BT).cumsum(1) / torch.arange(1, tokens_BT.shape[1] + 1)[:, None]
        return self.head(x_BTE)


def sample(model: Toy, seed: int, temperature=1.0, top_p=1.0, limit=12) -> Span:
    """One honest rollout after PROMPT, with log-probabilities of the distribution that was sampled from."""
    g = torch.Generator().manual_seed(seed)
    tokens, logprobs, kept = [], [], []
    while len(tokens) < limit and EOS not in tokens:
        p = torch.softmax(model(torch.tensor([[*PROMPT, *tokens]]))[0, -1].detach() / temperature, -1)
        order = p.argsort(descending=True)
        ids = order[(p[order].cumsum(0) - p[order]) < top_p]
        q = p[ids] / p[ids].sum()
        i = int(torch.multinomial(q, 1, generator=g))
        tokens.append(int(ids[i]))
        logprobs.append(float(q[i].log()))
        kept.append(ids.numpy())
    return Span(
        SpanKind.SAMPLED,
        tuple(tokens),
        0,
        tuple(logprobs),
        temperature=temperature,
        stop=StopReason.STOP if EOS in tokens else StopReason.LENGTH,
        kept=tuple(kept) if top_p < 1 else None,
    )


def group(spans: list[Span], correct: list) -> Trace:
    n = len(spans)
    verdicts = [Verdict(c) for c in correct]
    return Trace(
        Question("q", "toy", "?"),
        "vote",
        [Span(SpanKind.PROMPT, PROMPT), *spans],
        [*range(1, n + 1)],
        [""] * n,
        verdicts,
    )


def rollouts(n: int, **options) -> tuple[Toy, list[Span]]:
    model = Toy()
    return model, [sample(model, seed, **options) for seed in range(n)]


def new_logprobs(model: Toy, batch: Batch) -> torch.Tensor:
    return logprobs_from_logits(model(batch.tokens_BT), batch.targets_BT, batch.temperature_B, batch.kept_BTK)[0]


def gradient(model: Toy, batches: list[Batch], **options) -> torch.Tensor:
    """The gradient of one optimiser step, as one vector."""
    total = torch.stack([losses.loss(b, new_logprobs(model, b), **options)[0] for b in batches]).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])


def step_zero(model: Toy, batches: list[Batch]) -> dict[str, float]:
    with torch.no_grad():
        return losses.summarise([losses.loss(b, new_logprobs(model, b))[1] for b in batches])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).norm() <= 1e-5 * (a.norm() + b.norm() + 1e-12))


def alternating(n: int) -> list[float | None]:
    return [1.0 if i % 2 else -1.0 for i in range(n)]


def finished_and_cut() -> tuple[Toy, Span, Span]:
    model, spans = rollouts(30, limit=5)
    return (
        model,
        next(s for s in spans if s.stop is StopReason.STOP and len(s.tokens) > 1),
        next(s for s in spans if s.stop is StopReason.LENGTH),
    )
