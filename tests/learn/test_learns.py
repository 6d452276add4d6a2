"""The pieces together: a toy policy learns what is rewarded, and learns nothing from random rewards."""

import random

import torch

from mull.learn import advantages, losses, optim
from mull.learn.logprobs import logprobs_from_logits
from mull.learn.pack import pack
from mull.learn.samples import from_rollouts
from tests.conformance.learning_toy import Toy, group, sample

WANTED, GROUP, STEPS = 6, 16, 8


def train(reward) -> list[float]:
    """Share of rollouts that use the wanted token, step by step."""
    model, shares = Toy(), []
    optimizer = optim.adamw(model, lr=0.0)
    for i in range(STEPS):
        spans = [sample(model, seed=i * GROUP + g, limit=4) for g in range(GROUP)]
        hits = [WANTED in s.tokens for s in spans]
        shares.append(sum(hits) / GROUP)
        found = []
        for b in pack(from_rollouts([group(spans, [])], advantages.mean_centred(reward(hits))), 64):
            lp, entropy = logprobs_from_logits(model(b.tokens_BT), b.targets_BT, b.temperature_B, b.kept_BTK)
            loss, d = losses.loss(b, lp, entropy_BT=entropy)
            loss.backward()
            found.append(d)
        summary = losses.summarise(found)
        assert abs(summary["ratio"] - 1) < 1e-5 and summary["clipped"] == 0 and summary["entropy"] > 0
        optim.step(model, optimizer, optim.constant(i, peak=0.1, warmup=2), max_norm=1.0)
    return shares


def test_rewarded_behaviour_rises_and_the_random_control_does_not():
    torch.manual_seed(0)
    rng = random.Random(0)
    real = train(lambda hits: [float(h) for h in hits])
    control = train(lambda hits: advantages.random_rewards(len(hits), rng))
    assert real[0] == control[0] < 0.3
    assert sum(real[-3:]) / 3 > 0.8
    assert sum(control[-3:]) / 3 < real[0] + 0.2
