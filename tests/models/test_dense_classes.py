"""volsam-s with a head for classes, and what it makes of places."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from volsam.data.preprocess import positions
from volsam.models.dense_classes import DenseClassNet
from volsam.models.dense_prompt import DensePromptNet


def a_network(*, placed: bool) -> DenseClassNet:
    torch.manual_seed(0)
    return DenseClassNet(DensePromptNet(), 3, placed=placed)


def test_places_say_nothing_before_they_are_learnt() -> None:
    image = torch.randn(1, 3, 32, 16, 16)
    places = torch.from_numpy(positions((40, 20, 20), (4, 0, 2), (32, 16, 16)))[None]
    with torch.no_grad():
        assert_close(a_network(placed=True)(torch.cat([image, places], dim=1)), a_network(placed=False)(image))


def test_what_looks_alike_is_told_apart_by_its_place() -> None:
    """Of an image that is the same everywhere, one half is one class."""
    network = a_network(placed=True)
    image = torch.zeros(1, 3, 16, 16, 16)
    places = torch.from_numpy(positions((16, 16, 16), (0, 0, 0), (16, 16, 16)))[None]
    label = (places[:, 0] > 0).long()
    optimiser = torch.optim.AdamW(network.place.parameters() if network.place is not None else [], lr=1e-2)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(network(torch.cat([image, places], dim=1)), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (network(torch.cat([image, places], dim=1)).argmax(dim=1) == label).float().mean() > 0.95


def test_faces_of_the_volume_are_at_one() -> None:
    told = positions((4, 5, 10), (-1, 0, 8), (6, 5, 3))
    assert_close(torch.from_numpy(told[0, :, 0, 0]), torch.tensor([-1.25, -0.75, -0.25, 0.25, 0.75, 1.25]))
    assert_close(torch.from_numpy(told[2, 0, 0]), torch.tensor([0.7, 0.9, 1.1]))
