"""Adapters of slice encoders: one lets the slices of a stack see their neighbours, one looks around within a slice.

Both take token grids (b d h w c), d being slices.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.errors import BadInput
from volsam.models.encoder import MLP, Encoder
from volsam.models.shapes import Tokens


class SliceMixer(nn.Module):
    """MA-SAM's 3D adapter: fewer channels, a full convolution over each slice and its two neighbours, and back.

    Moves into `before_attention` and `before_mlp`. Chen et al. 2024, MA-SAM, section 3.2. Nothing in it is neutral at
    first, so features change from the first step on, as published.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.down = nn.Linear(width, channels, bias=False)
        self.mix = MixSlices(channels)
        self.up = nn.Linear(channels, width, bias=False)

    def forward(self, x: Tokens) -> Tokens:
        """The stream with what the neighbours add; same shape."""
        return x + self.up(F.gelu(self.mix(self.down(self.norm(x)))))


class MixSlices(nn.Conv3d):
    """A convolution of (3 1 1) over the slices of a stack, nothing beyond its ends; as matrix products.

    A convolution wants channels first, which costs two copies of the tokens. Here every slice is multiplied with the
    weight of each neighbour and added where it belongs: half the time on a CPU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tokens) -> Tokens:
        """Same shape."""
        before, own, after = rearrange(self.weight, "e c three 1 1 -> three c e").contiguous()
        mixed = F.linear(x, own.T, self.bias)
        _add_product(mixed[:, 1:], x[:, :-1], before)
        _add_product(mixed[:, :-1], x[:, 1:], after)
        return mixed


def _add_product(total: Tokens, x: Tokens, weight: Float[Tensor, "c e"]) -> None:
    """Add the product of x and a weight in place, in the precision of the total: mixed precision casts nothing here."""
    total.flatten(1, 3).baddbmm_(x.flatten(1, 3).to(total.dtype), weight.to(total.dtype).expand(len(x), -1, -1))


def add_slice_mixers(encoder: Encoder, channels: int = 384) -> None:
    """Give every block of a slice encoder both adapters of MA-SAM, in place."""
    for block in encoder.blocks:
        for place in ("before_attention", "before_mlp"):
            setattr(block, place, SliceMixer(encoder.config.width, channels))


class GatedSurround(nn.Module):
    """SAM-Med2D's adapter: weigh the channels by the slice's mean, look around at half the resolution, add, norm.

    Moves in `beside_mlp`, sees what the MLP sees. Cheng et al. 2023, SAM-Med2D, figure 3.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = MLP((width, width // 4, width))
        for layer in self.gate.layers:
            layer.register_parameter("bias", None)
        self.shrink = nn.Conv3d(width, width, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.grow = nn.ConvTranspose3d(width, width, (1, 4, 4), (1, 2, 2), (0, 1, 1), bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tokens) -> Tokens:
        """What is added to the MLP's output; same shape."""
        share = torch.sigmoid(self.gate(reduce(x, "b d h w c -> b d 1 1 c", "mean")))
        around = F.relu(self.grow(F.relu(self.shrink(_channels_first(share * x)))))
        return self.norm(x + rearrange(around, "b c d h w -> b d h w c"))


def _channels_first(x: Tokens) -> Float[Tensor, "b c d h w"]:
    return rearrange(x, "b d h w c -> b c d h w")


def add_gated_surround(encoder: Encoder) -> None:
    """Give every block of a slice encoder the adapter of SAM-Med2D, in place."""
    height, width = encoder.config.grid[1:]
    if height % 2 or width % 2:
        raise BadInput(
            f"SAM-Med2D's adapter halves the token grid, which must be even, got {height} × {width}: "
            "choose an image size of a multiple of 32"
        )
    for block in encoder.blocks:
        block.beside_mlp = GatedSurround(encoder.config.width)
