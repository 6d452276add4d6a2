"""More layers on top of a trained model that compute, at first, nothing."""

from __future__ import annotations

from dataclasses import replace

import torch

from mull.models import hf
from mull.models.transformer import Transformer


def deepen(model: Transformer, layers: int, seed: int = 0) -> Transformer:
    """The model with `layers` more layers, which add zero to the residual stream until they are trained.

    What a model knows about the token to come is only in its last layer's output, which no layer at a later position
    can look at. So a scorer of the same depth as its policy cannot see that a token surprised the policy, and has to
    learn anew to check it; one or two layers more can compare. Sizes and windows are those of the last layer.
    """
    c = model.config
    windows = c.sliding_window and (*c.sliding_window, *[c.sliding_window[-1]] * layers)
    deeper = hf.init(
        replace(c, num_layers=c.num_layers + layers, sliding_window=windows), seed, model.dtype, model.device
    )
    missing, unexpected = deeper.load_state_dict(model.state_dict(), strict=False)
    fresh = tuple(f"layers.{i}." for i in range(c.num_layers, c.num_layers + layers))
    assert not unexpected and all(name.startswith(fresh) for name in missing), (missing, unexpected)
    with torch.no_grad():
        for name, parameter in deeper.named_parameters():
            if name.startswith(fresh) and name.split(".", 2)[2].startswith(("out.", "down.")):
                parameter.zero_()
    return deeper
