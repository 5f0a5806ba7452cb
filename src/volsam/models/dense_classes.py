"""volsam-s without prompts: its encoder and decoder, and a head for the classes of a dataset.

The maps that prompts would add are left out; everything else begins with weights that have learnt to find borders in
thousands of scans. That is why a few labelled volumes are enough.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.dense_prompt import FINE_MAPS, GAIN, DensePromptNet, Pointwise, grow


class DenseClassNet(nn.Module):
    """Image (b 3 d h w), as volsam-s sees it, sides multiples of 16 -> logits (b classes d h w); class 0 is background.

    Args:
        base: the promptable network; it is taken over, not copied.
        classes: background included.
    """

    def __init__(self, base: DensePromptNet, classes: int) -> None:
        super().__init__()
        self.base = base
        half, full = base.coarse, base.fine[-1]
        assert isinstance(full, Pointwise)
        self.coarse = _for_classes(half, classes)
        self.last = _for_classes(full, classes)

    def forward(self, image: Float[Tensor, "b 3 d h w"]) -> Float[Tensor, "b k d h w"]:
        """Logits at the size of the image."""
        base = self.base
        f0, f1, f2, f3, *_ = base.encode(image).taps
        x3 = base.blocks[3](base.skips[3](f3) + self._nothing(3))
        x2 = base.blocks[2](grow(base.narrow[2](x3)) + base.skips[2](f2) + self._nothing(2))
        x1 = F.gelu(base.blocks[1](grow(base.narrow[1](x2)) + base.skips[1](f1) + self._nothing(1)))
        half = GAIN * self.coarse(x1)
        maps = F.pad(image[:, :2], (0, 0, 0, 0, 0, 0, FINE_MAPS - 2, 0))
        state = grow(base.narrow[0](x1)) + base.skips[0](f0) + base.prompts[0](maps)
        for layer in list(base.fine.children())[:-1]:
            state = layer(state)
        return grow(half) + GAIN * self.last(state)

    def _nothing(self, level: int) -> Float[Tensor, "c 1 1 1"]:
        """What the prompts of a level add where there are none: their maps are zero."""
        bias = self.base.prompts[level].bias
        assert isinstance(bias, Tensor)
        return bias[:, None, None, None]


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
