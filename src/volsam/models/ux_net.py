"""3D UX-Net (Lee et al. 2023): a ConvNeXt for volumes with large depthwise kernels, under the decoder of UNETR.

Written on MONAI's blocks, since no package index has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.nn import functional as F


class _Norm(nn.LayerNorm):
    """A layer norm over channels that come first."""

    def forward(self, x: Tensor) -> Tensor:
        """(b c d h w) -> the same shape."""
        return rearrange(super().forward(rearrange(x, "b c d h w -> b d h w c")), "b d h w c -> b c d h w")


class _Block(nn.Module):
    """A depthwise convolution of 7³, a norm, and two pointwise layers that keep channels apart (section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(width, width, 7, padding=3, groups=width)
        self.norm = _Norm(width, eps=1e-6)
        self.widen = nn.Conv3d(width, 4 * width, 1, groups=width)
        self.narrow = nn.Conv3d(4 * width, width, 1, groups=width)
        self.scale = nn.Parameter(torch.full((width, 1, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """(b c d h w) -> the same shape."""
        return x + self.scale * self.narrow(F.gelu(self.widen(self.norm(self.mix(x)))))


class UXNet(nn.Module):
    """Image (b c d h w), sides multiples of 16 -> logits (b k d h w).

    Args:
        channels: of the image.
        classes: of the answer.
        widths: channels of the four levels; 48, 96, 192, 384 in the paper.
        depths: blocks of each level.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Conv3d(channels, widths[0], 7, stride=2, padding=3)])
        for above, below in pairwise(widths):
            self.steps.append(nn.Sequential(_Norm(above, eps=1e-6), nn.Conv3d(above, below, 2, stride=2)))
        self.levels = nn.ModuleList(
            nn.Sequential(*(_Block(width) for _ in range(depth))) for width, depth in zip(widths, depths, strict=True)
        )
        self.norms = nn.ModuleList(_Norm(width, eps=1e-6) for width in widths)
        given = (channels, *widths)
        taken = (*widths, 2 * widths[-1])
        self.skips = nn.ModuleList(
            UnetrBasicBlock(3, before, after, 3, 1, "instance", True)
            for before, after in zip(given, taken, strict=True)
        )
        self.ups = nn.ModuleList(
            UnetrUpBlock(3, below, above, 3, 2, "instance", True) for above, below in pairwise(taken)
        )
        self.finish = UnetrBasicBlock(3, widths[0], widths[0], 3, 1, "instance", True)
        self.classify = UnetOutBlock(3, widths[0], classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the size of the image."""
        kept, x = [self.skips[0](image)], image
        for step, level, norm, skip in zip(self.steps, self.levels, self.norms, self.skips[1:], strict=True):
            x = level(step(x))
            kept.append(skip(norm(x)))
        x = kept.pop()
        for up in reversed(self.ups):
            x = up(x, kept.pop())
        return self.classify(self.finish(x))
