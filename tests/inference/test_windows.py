from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from volsam.data.preparation import Preparation, Prepared
from volsam.geometry import Grid
from volsam.inference.windows import WindowModel
from volsam.training.augment import Augment
from volsam.training.patches import cut
from volsam.volume import Volume

PATCH = (16, 24, 16)
PREPARATION = Preparation()


class Witness(nn.Module):
    """Keeps what it is shown, and says class 1 where it is brighter than the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []

    def forward(self, windows: Tensor) -> Tensor:
        """(b 2 d h w)."""
        self.shown.append(windows.clone())
        return torch.cat([-windows[:, :1], windows[:, :1]], dim=1)


def a_volume(shape: tuple[int, int, int], channels: int = 1) -> Volume:
    rng = np.random.default_rng(5)
    data = rng.normal(100, 20, (channels, *shape)).astype(np.float32)
    return Volume(data * np.arange(1, channels + 1).reshape(-1, 1, 1, 1), Grid.at(shape, 1.0), "small")


def a_model(network: nn.Module, channels: int = 1, *, by_region: bool = False) -> WindowModel:
    return WindowModel(
        network, "witness", ("background", "bright"), (0, 1), PREPARATION, PATCH, channels, by_region=by_region
    )


@pytest.mark.parametrize("channels", [1, 2])
def test_a_small_volume_is_shown_as_in_training(channels: int) -> None:
    """Beyond the volume is the lowest value of each channel, not the zero that is the mean of a scan."""
    volume, network = a_volume((9, 14, 10), channels), Witness()
    a_model(network, channels).segment(volume)
    (shown,) = network.shown
    image = PREPARATION.image(volume).astype(np.float16)
    case = Prepared("small", image, np.zeros(image.shape[1:], np.uint8), ())
    low = [-((edge - size) // 2) for edge, size in zip(PATCH, image.shape[1:], strict=True)]
    trained, _, known = cut(case, low, PATCH)
    assert not known.all()
    shown_in_training = Augment("none").values(trained, np.random.default_rng())
    np.testing.assert_allclose(shown[0].numpy(), shown_in_training, atol=2e-3)


@pytest.mark.parametrize("shape", [(9, 14, 10), (9, 40, 33), (33, 40, 37)])
def test_labels_stay_where_they_belong(shape: tuple[int, int, int]) -> None:
    volume = a_volume(shape)
    found = a_model(Witness()).segment(volume)
    np.testing.assert_array_equal(found.data[0], PREPARATION.image(volume)[0] > 0)


def test_a_region_beyond_the_volume_is_unknown() -> None:
    network = Witness()
    a_model(network, by_region=True).segment(a_volume((9, 14, 10)))
    (shown,) = network.shown
    assert shown.shape[1] == 3
    assert shown[0, 2].sum() == 9 * 14 * 10
    assert not shown[0, :, shown[0, 2] == 0].any()


class Halves(nn.Module):
    """Says class 1 in the half of the volume that lies beyond the middle of one axis, by the places it is told."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, windows: Tensor) -> Tensor:
        """(b 6 d h w)."""
        place = windows[:, 3 + self.axis, None][:, 0]
        return torch.stack([-place, place], dim=1)


@pytest.mark.parametrize("shape", [(10, 14, 10), (10, 40, 34), (34, 40, 38)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_places_are_those_in_the_volume_whatever_the_window(shape: tuple[int, int, int], axis: int) -> None:
    model = WindowModel(
        Halves(axis), "halves", ("background", "half"), (0, 1), PREPARATION, PATCH, by_region=True, placed=True
    )
    scores = model.scores(a_volume(shape))
    expected = np.linspace(1 / shape[axis] - 1, 1 - 1 / shape[axis], shape[axis])
    across = np.moveaxis(scores[1], axis, 0)
    np.testing.assert_allclose(across, np.broadcast_to(expected[:, None, None], across.shape), atol=1e-4)


def test_the_memory_it_asks_for_is_that_of_what_it_holds() -> None:
    class Three(nn.Module):
        def forward(self, windows: Tensor) -> Tensor:
            return windows[:, :1].expand(-1, 3, -1, -1, -1)

    volume = a_volume((9, 40, 33), channels=2)
    model = WindowModel(Three(), "three", ("background", "a", "b"), (0, 1, 2), PREPARATION, PATCH, 2)
    seen = (16, 40, 33)  # at least a window
    image, scores, weight = 2, len(model.scores(volume)), 1
    assert model.room(volume.grid) == 4 * (image + scores + weight) * np.prod(seen)
