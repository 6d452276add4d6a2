"""Random states, packed so that a checkpoint can hold them: a resumed run draws what the interrupted one would have."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, cast


def pack_random_state(*generators: Any) -> dict[str, Any]:
    """The global states of `random`, numpy and torch (CUDA's too, if it was used), and those of `generators`.

    A generator is a random.Random, a numpy Generator, or a torch.Generator. The result holds numbers, text, tuples and
    tensors only, as `torch.load(weights_only=True)` wants.
    """
    import numpy as np
    import torch

    kind, keys, position, has_gauss, gauss = cast(tuple, np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.tensor(keys.astype("int64")), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "generators": [_pack(g) for g in generators],
    }


def restore_random_state(state: Mapping[str, Any], *generators: Any) -> None:
    """Undoes `pack_random_state`; `generators` are those that were packed, in the same order."""
    import numpy as np
    import torch

    random.setstate(_tuples(state["python"]))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    for generator, packed in zip(generators, state["generators"], strict=True):
        _restore(generator, packed)


def _pack(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "get_state"):  # torch.Generator
        return generator.get_state()
    # numpy's bit generators: a nested dict, whose integers of up to 128 bits may come with arrays
    return _without_arrays(generator.bit_generator.state)


def _restore(generator: Any, packed: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(_tuples(packed))
    elif hasattr(generator, "set_state"):
        generator.set_state(packed)
    else:
        generator.bit_generator.state = _with_arrays(packed)


def _without_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_arrays(v) for k, v in value.items()}
    return {"array": [int(x) for x in value], "dtype": str(value.dtype)} if hasattr(value, "dtype") else value


def _with_arrays(value: Any) -> Any:
    import numpy as np

    if not isinstance(value, dict):
        return value
    if set(value) == {"array", "dtype"}:
        return np.array(value["array"], dtype=value["dtype"])
    return {k: _with_arrays(v) for k, v in value.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
