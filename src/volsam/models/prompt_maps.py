"""Prompts as dense maps: what clicks, boxes and the previous mask say about every voxel.

A network that takes prompts late, as maps at several scales, learns to follow clicks in minutes on a CPU. Besides where
the clicks are, the maps say what the image has in common with them: how similar the features are, how far the intensity
is from theirs, and whether one can walk to them without crossing an edge (path cost).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

# Absent clicks sit here: far from every voxel, so that every map they enter is zero.
NOWHERE = -1e4
# Differences are in units of the normalised image; beyond this they say nothing more.
FAR = 6.0


@dataclass(frozen=True)
class Prompts:
    """Prompts of one object in each item of a batch, in voxels of the input.

    points: (b n 3) indices along (d h w), fractions allowed; labels: (b n), 1 object, 0 background, -1 absent;
    box: (b 1 d h w), 1 inside the box, 0 outside, all 0 where there is none;
    previous: (b 1 d/2 h/2 w/2), logits of the last mask, or None at the first prompt.
    """

    points: Tensor
    labels: Tensor
    box: Tensor | None = None
    previous: Tensor | None = None


def nearness(points: Tensor, labels: Tensor, sign: int, size: tuple[int, int, int], step: int, width: float) -> Tensor:
    """(b 1 d h w): a Gaussian around the clicks of one sign, on a grid coarser than the input by `step`.

    `width` is the standard deviation in voxels of the coarse grid. Where there are several clicks the nearest counts.
    """
    where = torch.where((labels == sign)[..., None], (points + 0.5) / step - 0.5, NOWHERE)
    squares = []
    for axis, length in enumerate(size):
        line = torch.arange(length, device=points.device, dtype=points.dtype)
        squares.append((line - where[..., axis, None]).square() / (2 * width * width))  # (b n length)
    distance = squares[0][..., :, None, None] + squares[1][..., None, :, None] + squares[2][..., None, None, :]
    return torch.exp(-distance.amin(dim=1, keepdim=True))


def at_points(maps: Tensor, points: Tensor, step: int) -> Tensor:
    """(b n c): values of `maps` (b c d h w), coarser than the input by `step`, at the voxels nearest to `points`."""
    d, h, w = maps.shape[-3:]
    index = ((points + 0.5) / step - 0.5).round().long()
    z, y, x = (index[..., axis].clamp(0, length - 1) for axis, length in enumerate((d, h, w)))
    flat = rearrange(maps, "b c d h w -> b (d h w) c")
    place = ((z * h + y) * w + x)[..., None].expand(-1, -1, maps.shape[1])
    return flat.gather(1, place)


def likeness(keys: Tensor, points: Tensor, labels: Tensor, sign: int, step: int) -> Tensor:
    """(b 1 d h w): highest cosine similarity of unit-length `keys` (b c d h w) to those at the clicks of one sign."""
    queries = at_points(keys, points, step)
    cosine = torch.einsum("bnc,bcdhw->bndhw", queries, keys)
    cosine = torch.where((labels == sign)[..., None, None, None], cosine, -1.0)
    return cosine.amax(dim=1, keepdim=True).add(1).div(2)


def mask_likeness(keys: Tensor, mask: Tensor) -> Tensor:
    """(b 2 d h w): cosine similarity of `keys` to their mean inside and outside `mask` (b 1 d h w, probabilities)."""
    weights = torch.cat([mask, 1 - mask], dim=1)
    sums = torch.einsum("bmdhw,bcdhw->bmc", weights, keys)
    means = F.normalize(sums, dim=-1)
    return torch.einsum("bmc,bcdhw->bmdhw", means, keys).add(1).div(2)


def difference(image: Tensor, source: Tensor, points: Tensor, labels: Tensor, sign: int, step: int) -> Tensor:
    """(b 1 d h w): smallest difference of `image` (b c d h w), summed over channels, to the clicks of one sign.

    The clicks' own values are means over 3³ voxels of `source`, the image coarser than the input by `step`: one noisy
    voxel must not decide.
    """
    values = at_points(F.avg_pool3d(source, 3, 1, 1, count_include_pad=False), points, step)
    gap = (image[:, None] - values[..., None, None, None]).abs().sum(dim=2)
    gap = torch.where((labels == sign)[..., None, None, None], gap, FAR)
    return gap.amin(dim=1, keepdim=True).clamp(max=FAR)


def path_cost(gap: Tensor, seeds: Tensor, sweeps: int = 10, coarse_sweeps: int = 20) -> Tensor:
    """(b 1 d h w): the lowest possible maximum of `gap` on a path from each voxel to a seed.

    Thresholding it at t gives what region growing with tolerance t gives, for all t at once. A coarse pass carries the
    cost across the volume (it takes the worst voxel of each block, so it can only be too high); a few fine sweeps then
    lower it along thin passages.
    """
    far = torch.full_like(gap, FAR)
    start = torch.where(seeds > 0.5, gap, far)
    coarse_gap = F.max_pool3d(gap, 2)
    coarse = torch.where(F.max_pool3d(seeds, 2) > 0.5, coarse_gap, FAR)
    for _ in range(coarse_sweeps):
        coarse = torch.maximum(coarse_gap, _lowest_neighbour(coarse))
    cost = torch.minimum(start, torch.maximum(gap, F.interpolate(coarse, size=gap.shape[-3:], mode="nearest")))
    for _ in range(sweeps):
        cost = torch.maximum(gap, _lowest_neighbour(torch.minimum(cost, start)))
    return cost


def _lowest_neighbour(x: Tensor) -> Tensor:
    """The minimum over each voxel's 3³ neighbourhood, one axis after the other.

    Minima of shifted views: a tenth of the time of max-pooling the negative, which also looks for places.
    """
    for axis in (-3, -2, -1):
        if x.shape[axis] > 1:
            ahead, behind = x.narrow(axis, 1, x.shape[axis] - 1), x.narrow(axis, 0, x.shape[axis] - 1)
            lower = torch.minimum(ahead, behind)
            # Of voxel i: the lower of (i, i + 1), and that of (i - 1, i); the ends have one of them.
            ends = lower.narrow(axis, 0, 1), lower.narrow(axis, lower.shape[axis] - 1, 1)
            x = torch.minimum(torch.cat([lower, ends[1]], axis), torch.cat([ends[0], lower], axis))
    return x
