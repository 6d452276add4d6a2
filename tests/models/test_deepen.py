"""Layers that add nothing until they are trained, and do learn."""

from dataclasses import replace

import torch

from mull.models import hf
from mull.models.attention import causal
from mull.models.deepen import deepen
from mull.models.nano import nano_config
from tests.recipes.tiny import save_tiny


def hidden(model, tokens_BT):
    positions_BT = torch.arange(tokens_BT.shape[1]).expand(*tokens_BT.shape)
    return model(tokens_BT, positions_BT, causal(model.config.sliding_window))


def test_a_deeper_model_computes_the_same_and_learns_in_its_new_layers(tmp_path):
    model = hf.load(save_tiny(tmp_path / "tiny"))
    deeper = deepen(model, 2, seed=3)
    assert deeper.config.num_layers == model.config.num_layers + 2
    tokens_BT = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(hidden(deeper, tokens_BT), hidden(model, tokens_BT))
    hidden(deeper, tokens_BT).square().sum().backward()
    grads = {name: p.grad for name, p in deeper.named_parameters() if name.startswith("layers.3.")}
    assert any(g is not None and g.abs().sum() > 0 for g in grads.values())
    hf.save(deeper, tmp_path / "deeper", source=tmp_path / "tiny")
    assert torch.equal(hidden(hf.load(tmp_path / "deeper"), tokens_BT), hidden(model, tokens_BT))


def test_windows_grow_with_the_layers():
    windows = (None, 4, None, 4)
    model = hf.init(replace(nano_config(), num_layers=4, sliding_window=windows), 0)
    assert deepen(model, 2).config.sliding_window == (*windows, 4, 4)
