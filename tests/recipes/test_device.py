"""Which device a word stands for; what graphics cards there are is told to torch."""

import pytest
import torch

from volsam.errors import BadInput
from volsam.recipes.recipe import choose_device


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_is_the_best_that_is_there(no_card):
    assert choose_device("auto") == "cpu"


def test_auto_is_a_card(two_cards):
    assert choose_device("auto") == "cuda"
    assert choose_device("cuda:1") == "cuda:1"


def test_each_of_several_processes_has_a_card_of_its_own(two_cards, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == choose_device("cuda") == "cuda:1"
    with pytest.raises(BadInput, match="say --device cuda"):
        choose_device("cuda:0")


def test_more_processes_than_cards_are_refused(two_cards, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BadInput, match="this machine has 2"):
        choose_device("cuda")


@pytest.mark.parametrize("wanted", ["cuda:2", "cuda:x", "cuda:-1", "gpu", ""])
def test_what_is_not_there_is_refused(two_cards, wanted):
    with pytest.raises(BadInput, match=r"this machine has 2|--device is auto, cpu"):
        choose_device(wanted)


def test_a_card_where_there_is_none_is_refused(no_card):
    with pytest.raises(BadInput, match="this machine has: cpu; use --device auto"):
        choose_device("cuda")


@pytest.mark.parametrize(("device", "devices"), [("cuda", 1), ("cuda:1", [1]), ("cpu", 1)])
def test_a_training_uses_the_card_that_was_chosen(device, devices, monkeypatch):
    from volsam.training import loop
    from volsam.training.config import TrainConfig

    asked = {}

    class Recorder:
        def __init__(self, **words):
            asked.update(words)

        def launch(self):
            pass

    monkeypatch.setattr("lightning.fabric.Fabric", Recorder)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    loop._fabric(TrainConfig(), device)
    assert asked["accelerator"] == device.split(":")[0]
    assert asked["devices"] == devices
