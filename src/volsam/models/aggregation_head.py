"""A mask head that puts several levels of features side by side (Gong et al. 2024, 3DSAM-adapter, section 3.4).

Every level passes two convolutions and is enlarged twice; the levels and the raw image together pass two more. The
convolution over the enlarged levels has by far the most to do, and most of that twice: an enlarged image has no more
in it than the small one. Here the small image is multiplied by the kernel, and what comes of each of its 27 places is
enlarged and moved to where it belongs, one axis after the other: the same sum in another order, with a sixth of the
arithmetic, and without the enlarged levels, which would be the largest tensors of the network.

All levels but the deepest, and the raw image, do not depend on prompts: what they give is the `context`, made once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.encoder import Image
from volsam.models.shapes import Shape

# Channels that are enlarged at a time: few, so that what lies between two steps stays in the cache.
TOGETHER = 4


class AggregationHead(nn.Module):
    """Levels of features (b c d h w), all of one size, and the raw image at twice that size, to logits of classes."""

    def __init__(self, width: int, channels: int, classes: int, levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(LevelHead(width, channels) for _ in range(levels))
        self.mix = nn.Conv3d(levels * channels + 1, channels, 3, padding=1, bias=False)
        self.last = nn.Conv3d(channels, classes, 3, padding=1, bias=False)

    def context(self, levels: Sequence[Image], raw: Float[Tensor, "b 1 D H W"]) -> Float[Tensor, "b e D H W"]:
        """What the levels before the deepest, shallowest first, and the raw image add to `mix`."""
        heads = torch.cat([head(level) for head, level in zip(self.levels, levels, strict=False)], dim=1)
        of_levels, of_raw = self.mix.weight[:, : heads.shape[1]], self.mix.weight[:, -1:]
        return convolved_enlarged(heads, of_levels) + F.conv3d(raw, of_raw, padding=1)

    def forward(
        self, context: Float[Tensor, "#b e D H W"], deepest: Float[Tensor, "#b c d h w"]
    ) -> Float[Tensor, "b classes D H W"]:
        """Logits at twice the size of the deepest level; `enlarged_to_corners` brings them to that of the image."""
        head = self.levels[-1](deepest)
        start = self.mix.weight.shape[1] - 1 - head.shape[1]
        both = context + convolved_enlarged(head, self.mix.weight[:, start:-1])
        return convolved_to_few(F.relu_(F.instance_norm(both)), self.last.weight)


class LevelHead(nn.Module):
    """Two convolutions, after each a norm over the volume for every channel by itself."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, channels, 3, padding=1, bias=False)
        self.second = nn.Conv3d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b e d h w"]:
        """Same size."""
        x = F.relu_(F.instance_norm(self.first(x)))
        return F.relu_(F.instance_norm(self.second(x)))


def convolved_enlarged(x: Float[Tensor, "b c d h w"], kernel: Float[Tensor, "e c 3 3 3"]) -> Float[Tensor, "b e D H W"]:
    """`x` enlarged twice (corners aligned) and convolved, with zeros around: the same numbers, in another order."""
    d, h, w = x.shape[2:]
    of_depth, of_height, of_width = (enlarged_and_moved(size, x) for size in (d, h, w))
    image = rearrange(x, "b c d h w -> b c (d h w)")
    done = []
    for part in kernel.split(TOGETHER):
        y = rearrange(part, "e c p q r -> (p e q r) c") @ image
        y = of_depth @ rearrange(y, "b (p e q r) (d h w) -> b (p d) (e q r h w)", p=3, q=3, r=3, d=d, h=h)
        y = of_height @ rearrange(y, "b D (e q r h w) -> b (q h) (e D r w)", q=3, r=3, h=h, w=w)
        y = rearrange(y, "b H (e D r w) -> b e D H (r w)", D=2 * d, r=3, w=w) @ of_width.T
        done.append(y)
    return torch.cat(done, dim=1)


def enlarged_and_moved(size: int, like: Tensor) -> Float[Tensor, "D pd"]:
    """Three matrices side by side, one for each place p of a kernel along an axis: enlarge twice (corners aligned),
    then move by p - 1 voxels; zeros come in at the ends.
    """
    twice = F.pad(corner_interpolation(size, 2 * size, like), (0, 0, 1, 1))
    return rearrange(twice.unfold(0, 2 * size, 1), "p d D -> D (p d)")


def convolved_to_few(x: Float[Tensor, "b c d h w"], kernel: Float[Tensor, "e c 3 3 3"]) -> Float[Tensor, "b e d h w"]:
    """A convolution to few channels, with zeros around: one matrix product, then a sum of 27 moved images.

    Convolutions are made for many channels; this takes less than half their time.
    """
    d, h, _ = x.shape[2:]
    y = rearrange(kernel, "e c p q r -> (e p q r) c") @ rearrange(x, "b c d h w -> b c (d h w)")
    y = rearrange(y, "b (e p q r) (d h w) -> b e p q r d h w", p=3, q=3, r=3, d=d, h=h)
    places = [(p, q, r) for p in range(3) for q in range(3) for r in range(3)]
    out = y[:, :, 1, 1, 1].clone()
    for p, q, r in places:
        if (p, q, r) != (1, 1, 1):
            to, of = zip(*(_moved(step - 1) for step in (p, q, r)), strict=True)
            out[(slice(None), slice(None), *to)] += y[(slice(None), slice(None), p, q, r, *of)]
    return out


def _moved(step: int) -> tuple[slice, slice]:
    """Where voxels come to lie, and where they came from, if each takes the one `step` further on."""
    ends = {-1: (slice(1, None), slice(None, -1)), 0: (slice(None), slice(None)), 1: (slice(None, -1), slice(1, None))}
    return ends[step]


def enlarged_to_corners(x: Float[Tensor, "b c d h w"], size: Shape) -> Float[Tensor, "b c D H W"]:
    """Linear interpolation to a size, corners aligned, one axis after the other."""
    d, h, w = (corner_interpolation(now, then, x) for now, then in zip(x.shape[2:], size, strict=True))
    x = x @ w.T
    x = h @ x
    return torch.einsum("bcdhw,Dd->bcDhw", x, d)


def corner_interpolation(size: int, then: int, like: Tensor) -> Float[Tensor, "then size"]:
    """Linear interpolation from one length to another as a matrix; first and last voxels keep their places.

    The matrix is on the device of `like` and of its type.
    """
    return F.interpolate(
        torch.eye(size, device=like.device, dtype=like.dtype)[None], size=then, mode="linear", align_corners=True
    )[0].T
