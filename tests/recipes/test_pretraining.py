"""What the scripts that train from nothing share."""

from __future__ import annotations

import importlib
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def pretraining(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, found as the scripts find it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("pretraining")


def _a_copy(rank: int, port: int, folder: str) -> None:
    sys.path.insert(0, str(FOLDER))
    from pretraining import Copies

    copies = Copies(rank, 2, port)
    model = nn.Linear(2, 1)
    model.weight.grad = torch.full((1, 2), 1.0 + 2 * rank)  # the bias has none
    copies.share(model)
    agreed = copies.agree(0.25 + rank)
    torch.save([model.weight.grad, model.bias.grad, torch.tensor(agreed)], Path(folder) / f"{rank}.pt")
    copies.leave()


def test_two_copies_have_the_mean_of_their_gradients_and_the_progress_of_the_first(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_a_copy, (port, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        weight, bias, agreed = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert weight.tolist() == [[2.0, 2.0]]
        assert bias.tolist() == [0.0]
        assert float(agreed) == 0.25


def test_averaged_weights_follow_quickly_at_first(pretraining) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    mean = {"weight": torch.zeros(1, 1)}
    pretraining.follow(mean, model, 0, 0.99)
    assert mean["weight"].item() == pytest.approx(0.9)
    mean = {"weight": torch.zeros(1, 1)}
    pretraining.follow(mean, model, 10**6, 0.99)
    assert mean["weight"].item() == pytest.approx(0.01)
