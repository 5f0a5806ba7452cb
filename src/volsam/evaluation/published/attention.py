"""Self-attention inside padded windows, with the scores and their position bias written out (Li et al. 2022).

Tokens are grids with channels last: (b h w c) for slices, (b d h w c) for volumes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Attention of every token of a grid to every other one; a table of relative positions for each axis.

    extent: tokens along each axis, from which the tables have their length 2n - 1. Two axes give SAM's bias, three the
    one that SAM-Med3D and FastSAM3D were released with.
    """

    def __init__(self, width: int, heads: int, extent: Sequence[int]) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv: nn.Module = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.axes = "dhw"[3 - len(extent) :]
        for axis, size in zip(self.axes, extent, strict=True):
            self.register_parameter(f"rel_pos_{axis}", nn.Parameter(torch.zeros(2 * size - 1, width // heads)))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        batch, grid = x.shape[0], x.shape[1:-1]
        q, k, v = split_heads(self.qkv(x.flatten(1, -2)), self.heads)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        tables = [
            relative_rows(getattr(self, f"rel_pos_{axis}"), size) for axis, size in zip(self.axes, grid, strict=True)
        ]
        scores = (biased_2d if len(grid) == 2 else biased_3d)(scores, q, tables)
        return self.proj(join_heads(scores.softmax(dim=-1) @ v, batch, grid))


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(b l 3·c) to query, key and value, each ((b n) l c/n)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
    return q, k, v


def join_heads(x: Tensor, batch: int, grid: Sequence[int]) -> Tensor:
    """((b n) l c/n) to (b *grid c)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2).unflatten(1, tuple(grid))


def relative_rows(table: Tensor, size: int) -> Tensor:
    """The row of every pair of query and key, (size size c); a table of another length is interpolated.

    The index is made where tensors are made by default, which is not where the table is: on a GPU it is uploaded in
    every block, as in the releases.
    """
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    return table[torch.arange(size)[:, None] - torch.arange(size)[None, :] + size - 1]


def biased_2d(scores: Tensor, q: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Scores (b l l) plus, for each axis, the product of the query with the row of its distance."""
    h, w = (len(table) for table in tables)
    q = q.unflatten(1, (h, w))
    by_height = torch.einsum("bhwc,hkc->bhwk", q, tables[0])
    by_width = torch.einsum("bhwc,wkc->bhwk", q, tables[1])
    scores = scores.unflatten(2, (h, w)).unflatten(1, (h, w))
    scores = scores + by_height[..., :, None] + by_width[..., None, :]
    return scores.flatten(3).flatten(1, 2)


def biased_3d(scores: Tensor, q: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """The same in 3D as released: every term is inserted one axis off, which axes of equal length hide."""
    grid = tuple(len(table) for table in tables)
    q = q.unflatten(1, grid)
    by_depth = torch.einsum("bdhwc,dkc->bdhwk", q, tables[0])
    by_height = torch.einsum("bdhwc,hkc->bdhwk", q, tables[1])
    by_width = torch.einsum("bdhwc,wkc->bdhwk", q, tables[2])
    scores = scores.unflatten(2, grid).unflatten(1, grid)
    scores = scores + by_depth[:, :, :, :, None, None] + by_height[:, :, :, None, :, None]
    return (scores + by_width[:, :, :, None, None, :]).flatten(4).flatten(1, 3)


# --- windows -------------------------------------------------------------------------------------------------------


def in_windows(attention: nn.Module, x: Tensor, size: int) -> Tensor:
    """Attention inside windows of `size` tokens along every axis; the grid is padded with zeros, which take part."""
    grid = x.shape[1:-1]
    windows, padded = partition(x, size)
    x = unpartition(attention(windows), size, padded)
    for axis, length in enumerate(grid, start=1):
        x = x.narrow(axis, 0, length)
    return x.contiguous() if padded != tuple(grid) else x


def partition(x: Tensor, size: int) -> tuple[Tensor, tuple[int, ...]]:
    """Windows ((b windows) *size c) of a grid padded at its far ends, and how large it was then."""
    rank, padding = x.ndim - 2, [0, 0]
    for length in reversed(x.shape[1:-1]):
        padding += [0, -length % size]
    if any(padding):
        x = F.pad(x, padding)
    padded = tuple(x.shape[1:-1])
    for axis in range(rank):
        x = x.unflatten(1 + 2 * axis, (-1, size))
    order = [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1]
    return x.permute(order).flatten(0, rank), padded


def unpartition(windows: Tensor, size: int, padded: tuple[int, ...]) -> Tensor:
    """Windows back to the padded grid."""
    rank = len(padded)
    x = windows.unflatten(0, (-1, *(length // size for length in padded)))
    order = [0]
    for axis in range(rank):
        order += [1 + axis, 1 + rank + axis]
    return x.permute(*order, 2 * rank + 1).reshape(-1, *padded, x.shape[-1])
