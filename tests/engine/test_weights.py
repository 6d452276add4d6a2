"""Weights that change under the local engine: noticed whoever changed them, and never mixed with older ones."""

import asyncio

import pytest
import torch

from mull.learn import optim
from mull.types import SamplingParams
from tests.engine.small import ask, engine, idle, model, prompts, started, worst_gap


def test_new_weights_raise_the_version_and_leave_no_stale_prefix():
    [prefix] = prompts(1, shortest=45, longest=46)

    def through_data(built):
        built.layers[0].qkv.weight.data.mul_(1.5)

    def in_place(built):
        with torch.no_grad():
            built.layers[0].qkv.weight.mul_(1.5)

    def loaded(built):
        built.load_state_dict(model(seed=1).state_dict())

    def stepped(optimizer):
        def change(built):
            built.logits(built.embedding(torch.tensor([1]))).square().sum().backward()
            optim.step(built, optimizer(built), 0.01)

        return change

    def muon(built):
        return optim.muon(built, 0.01)

    def adamw(built):
        return optim.adamw(built, 0.01)

    for change in (through_data, in_place, loaded, stepped(adamw), stepped(muon)):
        built = model()
        made = engine(built, policy_version=3)
        assert ask(made, prefix)[0].policy_version == 3
        assert ask(made, prefix)[0].cost.cached_tokens == 44
        change(built)
        [c] = ask(made, prefix)
        assert c.policy_version == made.policy_version == 4 and c.cost.cached_tokens == 0
        assert worst_gap(built, prefix, c) < 1e-5
        assert ask(made, prefix)[0].policy_version == 4, "and only once"
        made.restore_version(9)
        [c] = ask(made, prefix)
        assert (c.policy_version, c.cost.cached_tokens) == (9, 0)


@pytest.mark.parametrize("fused", [True, False])
def test_weights_that_change_under_a_running_request_are_an_error(fused):
    built = model()
    made = engine(built)
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.1, fused=fused)

    async def run():
        task = asyncio.create_task(made.sample([1, 2, 3], SamplingParams(max_tokens=50)))
        await started(made, steps=3)
        with pytest.raises(RuntimeError, match="requests were running"):
            made.restore_version(5)
        for p in built.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        with pytest.raises(RuntimeError, match="weights changed"):
            await task
        return await made.sample([1, 2, 3], SamplingParams(max_tokens=5))

    [c] = asyncio.run(run())
    assert c.policy_version == 1 and idle(made)
    assert worst_gap(built, [1, 2, 3], c) < 1e-5
