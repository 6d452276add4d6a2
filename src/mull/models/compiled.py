"""Compiling a model's layers for training, where the machine can."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch

from mull.models.transformer import Layer, Transformer


def _when_training(eager: Callable[..., Any]) -> Callable[..., Any]:
    # Decoding steps are small: compiled, they would save nothing on CPU and cost a compilation of their own.
    compiled = torch.compile(eager, dynamic=True)
    return lambda *args: compiled(*args) if torch.is_grad_enabled() else eager(*args)


def compile_layers(model: Transformer) -> str:
    """Compiles the two halves of every layer in place (one compilation serves all layers); returns what was done.

    The attention between the halves stays outside, so the model keeps taking any pattern. On CPU this needs a C++
    compiler; without one the model runs eagerly, with the same results to float rounding.
    """
    if model.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "no C++ compiler was found (g++ or clang++): training runs eagerly, a third slower"
    for layer in model.layers:
        assert isinstance(layer, Layer)
        layer.before = _when_training(layer.before)
        layer.after = _when_training(layer.after)
    return "layers are compiled at the first step"
