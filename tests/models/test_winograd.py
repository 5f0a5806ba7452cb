import pytest
import torch
from torch import nn
from torch.testing import assert_close

from volsam.models import winograd
from volsam.models.fused import pack
from volsam.models.winograd import Winograd, is_suited


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 4, 7), (1, 2, 3), (1, 1, 1)])
@pytest.mark.parametrize("tiles", [1, 5, 512])
def test_it_is_the_convolution(size: tuple[int, int, int], tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", tiles)
    torch.manual_seed(0)
    plain = nn.Conv3d(6, 10, 3, padding=1, bias=False)
    image = torch.randn(2, 6, *size)
    with torch.no_grad():
        assert_close(Winograd(plain)(image), plain(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(4, 4, 3, padding=1),
        nn.Conv3d(4, 4, 3, bias=False),
        nn.Conv3d(4, 4, 3, padding=1, stride=2, bias=False),
        nn.Conv3d(4, 4, 3, padding=2, dilation=2, bias=False),
        nn.Conv3d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1), bias=False),
        nn.Conv3d(4, 4, 3, padding=1, padding_mode="circular", bias=False),
        nn.Linear(4, 4),
    ],
)
def test_other_layers_are_left_alone(layer: nn.Module) -> None:
    assert not is_suited(layer)


def test_packing_a_network_takes_it() -> None:
    network = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1, bias=False), nn.Conv3d(4, 4, 3, padding=1))
    pack(network, rows=1)
    assert [type(layer) for layer in network] == [Winograd, nn.Conv3d]
