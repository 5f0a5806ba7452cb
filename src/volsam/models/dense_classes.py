"""volsam-s without prompts: its encoder and decoder, and a head for the classes of a dataset.

The maps that prompts would add are left out; everything else begins with weights that have learnt to find borders in
thousands of scans. That is why a few labelled volumes are enough. Where a voxel lies in the volume can be told beside
the image: things that look alike, such as the chambers of a heart, are then told apart by their places.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.dense_prompt import FINE_MAPS, GAIN, DensePromptNet, Pointwise, grow

# Levels of the decoder that are told of places, and the periods of their waves, in volumes.
PLACED = (1, 2, 3)
PERIODS = (2.0, 1.0, 0.5)
_HIDDEN = 32


class DenseClassNet(nn.Module):
    """Image (b 3 d h w), as volsam-s sees it, sides multiples of 16 -> logits (b classes d h w); class 0 is background.

    Args:
        base: the promptable network; it is taken over, not copied.
        classes: background included.
        placed: whether three more channels tell where every voxel lies in its volume, see `data.preprocess.positions`.
    """

    def __init__(self, base: DensePromptNet, classes: int, *, placed: bool = False) -> None:
        super().__init__()
        self.base = base
        half, full = base.coarse, base.fine[-1]
        assert isinstance(full, Pointwise)
        self.coarse = _for_classes(half, classes)
        self.last = _for_classes(full, classes)
        self.place = nn.ModuleList(_of_places(base, level) for level in PLACED) if placed else None

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        """Logits at the size of the image; its channels are three, or six with places."""
        base = self.base
        image, places = image[:, :3], image[:, 3:]
        f0, f1, f2, f3, *_ = base.encode(image).taps
        x3 = base.blocks[3](base.skips[3](f3) + self._beside(3, places))
        x2 = base.blocks[2](grow(base.narrow[2](x3)) + base.skips[2](f2) + self._beside(2, places))
        x1 = F.gelu(base.blocks[1](grow(base.narrow[1](x2)) + base.skips[1](f1) + self._beside(1, places)))
        half = GAIN * self.coarse(x1)
        maps = F.pad(image[:, :2], (0, 0, 0, 0, 0, 0, FINE_MAPS - 2, 0))
        state = grow(base.narrow[0](x1)) + base.skips[0](f0) + base.prompts[0](maps)
        for layer in list(base.fine.children())[:-1]:
            state = layer(state)
        return grow(half) + GAIN * self.last(state)

    def _beside(self, level: int, places: Float[Tensor, "b n d h w"]) -> Tensor:
        """What is added to the image at a level: what prompts add where there are none, their maps being zero, and what
        places tell.
        """
        bias = self.base.prompts[level].bias
        assert isinstance(bias, Tensor)
        nothing = bias[:, None, None, None]
        if self.place is None:
            return nothing
        coarse = F.avg_pool3d(places, 2**level)
        # A volume is two long.
        waves = torch.cat([coarse * (math.pi / period) for period in PERIODS], dim=1)
        found: Tensor = self.place[PLACED.index(level)](torch.cat([coarse, waves.sin(), waves.cos()], dim=1))
        return nothing + found


def _of_places(base: DensePromptNet, level: int) -> nn.Sequential:
    """From a place and its waves to what a level adds, which is nothing at first."""
    bias = base.prompts[level].bias
    assert isinstance(bias, Tensor)
    last = Pointwise(_HIDDEN, len(bias))
    nn.init.zeros_(last.weight)
    return nn.Sequential(Pointwise(3 + 6 * len(PERIODS), _HIDDEN), nn.GELU(), last)


def _for_classes(layer: Pointwise, classes: int) -> Pointwise:
    """The layer that made one mask, once for each class; background begins undecided."""
    width = layer.weight.shape[1]
    made = Pointwise(width, classes)
    with torch.no_grad():
        made.weight.copy_(layer.weight.expand(classes, -1) + 0.02 * torch.randn(classes, width))
        made.weight[0] = 0.02 * torch.randn(width)
        made.bias.copy_(layer.bias.expand(classes))
        made.bias[0] = 0.0
    return made
