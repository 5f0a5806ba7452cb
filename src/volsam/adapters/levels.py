"""Adapters for the convolutional pyramid of volsam-s: one behind each level of its encoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.dense_prompt import Convolution, DensePromptNet, Pointwise


class LevelAdapter(nn.Module):
    """Fewer channels, a depthwise convolution over the 3³ voxels around each, and back; nothing at first."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.down = Pointwise(width, channels)
        self.mix = Convolution(channels, channels, 3, padding=1, groups=channels)
        self.up = Pointwise(channels, width)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(b c d h w) -> the same shape."""
        return x + self.up(F.gelu(self.mix(self.down(x))))


def add_level_adapters(network: DensePromptNet, share: float = 0.5) -> None:
    """An adapter behind each of the four levels, with `share` of the level's channels inside, in place."""
    for level in (network.down1, network.down2, network.down3, network.down4):
        first = level[0]
        assert isinstance(first, Convolution)
        width = first.out_channels
        level.append(LevelAdapter(width, max(8, int(width * share))))
