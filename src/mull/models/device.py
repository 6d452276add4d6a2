"""Where a model computes and in which numbers: what may be asked for, and what of it this machine has."""

from __future__ import annotations

import re
from typing import Literal

import torch

from mull.errors import UserError

DType = Literal["float32", "bfloat16"]  # of weights
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device_of(name: torch.device | str) -> torch.device:
    """The device of that name: cpu, cuda, or cuda:N for GPU number N, from 0.

    UserError, one sentence, where there is no such device on this machine. Torch's other kinds (mps, xpu …) are
    refused: the engine asks CUDA how much memory there is, and adds up probabilities in float64, which mps has not.
    """
    name = str(name)
    if name == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:(0|[1-9][0-9]*))?", name, re.ASCII):
        raise UserError(f"mull computes on no device {name!r}: give cpu, cuda, or cuda:1 for the second GPU")
    if not torch.backends.cuda.is_built():
        raise UserError(
            f"the device {name} needs a torch that is built with CUDA, and this one ({torch.__version__}) is not:"
            " install such a build, or give cpu"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(
            f"torch sees no GPU here, which the device {name} needs: see what nvidia-smi and CUDA_VISIBLE_DEVICES say,"
            " or give cpu"
        )
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        there = "one GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        raise UserError(f"there is no device {name}: torch sees {there} on this machine")
    return torch.device(name)
