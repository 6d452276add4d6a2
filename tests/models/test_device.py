"""A device that is not there is one sentence, before anything is loaded or written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mull.errors import UserError
from mull.models import hf
from mull.models.device import device_of
from mull.models.nano import nano_config
from tests.recipes.tiny import save_tiny


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int, built: bool = True) -> None:
    """A machine with so many GPUs; `built`: whether torch could use them."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: built and gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("name", "gpus", "built", "sentence"),
    [
        ("gpu", 1, True, "no device 'gpu': give cpu, cuda, or cuda:1"),
        ("mps", 1, True, "no device 'mps'"),
        ("cpu:0", 1, True, "no device 'cpu:0'"),
        ("cuda:", 1, True, "no device 'cuda:'"),
        ("cuda:-1", 1, True, "no device 'cuda:-1'"),
        ("cuda:01", 1, True, "no device 'cuda:01'"),
        ("CUDA", 1, True, "no device 'CUDA'"),
        ("", 1, True, "no device ''"),
        ("cuda", 1, False, "the device cuda needs a torch that is built with CUDA"),
        ("cuda", 0, True, "torch sees no GPU here, which the device cuda needs"),
        ("cuda:1", 1, True, "no device cuda:1: torch sees one GPU, cuda:0"),
        ("cuda:7", 2, True, "no device cuda:7: torch sees 2 GPUs, cuda:0 to cuda:1"),
        ("cuda:9999999999", 2, True, "no device cuda:9999999999"),  # torch itself takes it for cuda:-1 or cuda:15
    ],
)
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name, gpus, built, sentence):
    save_tiny(tmp_path / "tiny")
    machine(monkeypatch, gpus, built)
    for ask in (
        lambda: device_of(name),
        lambda: hf.load(tmp_path / "tiny", device=name),
        lambda: hf.init(nano_config(), 0, device=name),
    ):
        with pytest.raises(UserError) as caught:
            ask()
        assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    machine(monkeypatch, 0, built=False)
    assert device_of("cpu") == device_of(torch.device("cpu")) == torch.device("cpu")
    assert hf.load(save_tiny(tmp_path / "tiny"), device=torch.device("cpu")).device.type == "cpu"
    machine(monkeypatch, 2)
    assert [device_of(name).index for name in ("cuda", "cuda:0", "cuda:1")] == [None, 0, 1]
