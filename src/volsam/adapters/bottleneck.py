"""Adapters that squeeze the stream, do something between, and add the result: Houlsby's, Pro-tuning, ST-Adapter.

They differ in what stands between, in where they move in, and in how they begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from volsam.adapters.spatial import Depthwise
from volsam.models.encoder import Encoder
from volsam.models.shapes import Tokens


class Bottleneck(nn.Module):
    """Fewer channels, something `between`, and back; added to what came in."""

    def __init__(self, width: int, channels: int, between: nn.Module) -> None:
        super().__init__()
        self.down = nn.Linear(width, channels)
        self.between = between
        self.up = nn.Linear(channels, width)

    def forward(self, x: Tokens) -> Tokens:
        """Same shape."""
        return x + self.up(self.between(self.down(x)))


def add_houlsby(encoder: Encoder, channels: int, spread: float = 1e-3) -> None:
    """The adapter of Houlsby et al. 2019, after every attention and every MLP, in place; each token for itself.

    What goes up is drawn from a normal distribution of `spread`: near zero, so the encoder is nearly what it was, and
    not zero, so that what goes down learns from the first step on.
    """
    for block in encoder.blocks:
        for place in ("after_attention", "after_mlp"):
            if place == "after_attention" and block.attention is None:
                continue
            adapter = Bottleneck(encoder.config.width, channels, nn.GELU())
            nn.init.normal_(adapter.up.weight, std=spread)
            nn.init.zeros_(adapter.up.bias)
            setattr(block, place, adapter)


def add_pro_tuning(encoder: Encoder, channels: int) -> None:
    """The prompt block of Nie et al. 2022, Pro-tuning, after every block, in place; looks around within a slice.

    A kernel of 3 × 3, which gives the number of weights that 3DSAM-adapter's table states. Not neutral at first.
    """
    for block in encoder.blocks:
        look = nn.Sequential(nn.GELU(), Depthwise(channels, (1, 3, 3)), nn.GELU())
        block.after_block = Bottleneck(encoder.config.width, channels, look)


def add_st_adapter(
    encoder: Encoder,
    channels: int,
    places: Sequence[Literal["before_attention", "before_mlp"]] = ("before_attention",),
) -> None:
    """The adapter of Pan et al. 2022, ST-Adapter, before attention or the MLP of every block, in place.

    Linear: a token meets the ones below and above it, and nothing else. The convolution begins at zero, so at first
    nothing changes.
    """
    for block in encoder.blocks:
        for place in places:
            mix = Depthwise(channels, (3, 1, 1))
            adapter = Bottleneck(encoder.config.width, channels, mix)
            for weights in (*mix.parameters(), adapter.down.bias, adapter.up.bias):
                nn.init.zeros_(weights)
            setattr(block, place, adapter)
