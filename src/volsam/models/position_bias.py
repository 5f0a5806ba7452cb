"""The relative position bias of a token grid's attention: one term an axis, from tables of all distances.

Terms stay apart until logits are made: what is summed over keys, or boxes of them, is then a sum along single axes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from volsam.models.shapes import Box, Shape

PositionBias: TypeAlias = Literal["aligned", "published"]
"""`aligned` pairs every axis with itself. `published` is for released weights of 3D models, see `MixedBias`."""

# Numbers at whose multiples rows of logits begin.
ALIGNED = 8


def of_length(table: Float[Tensor, "_ c"], length: int) -> Float[Tensor, "n c"]:
    """A table; one of another length is interpolated linearly, as SAM does."""
    if len(table) == length:
        return table
    return rearrange(F.interpolate(rearrange(table, "n c -> 1 c n"), size=length, mode="linear"), "1 c n -> n c")


def _scores(
    q: Float[Tensor, "b n d h w c"], tables: Mapping[str, Float[Tensor, "_ c"]]
) -> dict[str, Float[Tensor, "b n d h w r"]]:
    """Queries times all rows of the tables in one product, last row first."""
    if not tables:
        return {}
    axes = list(tables)[::-1]
    rows = torch.cat(list(tables.values())).flip(0)
    return dict(zip(axes, (q @ rows.T).split([len(tables[axis]) for axis in axes], dim=-1), strict=True))


def _by_key(scores: Float[Tensor, "b n d h w r"], axis: str) -> Float[Tensor, "b n d h w k"]:
    """Of the scores of all distances those of each query's keys: entry (p, k) is row p - k + size - 1, from the end.

    One step along the axis of the queries is one step back in the rows, so a strided view is all it takes: nothing is
    made on the host and nothing moves in memory.
    """
    size = (scores.shape[-1] + 1) // 2
    strides = list(scores.stride())
    strides[2 + "dhw".index(axis)] -= strides[-1]
    return scores.as_strided(
        (*scores.shape[:-1], size), tuple(strides), scores.storage_offset() + (size - 1) * strides[-1]
    )


Terms: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Three terms of a bias, each of which can be spread to (b n d h w z y x); the first two share what they are spread to.
"""


def bias_of(terms: Terms, fold: Float[Tensor, "b n q 1"] | None = None) -> Float[Tensor, "bn q k"]:
    """The bias of every query for the real keys, and for one more if there is a `fold`. With gradients so many keys
    follow that are never read (-inf) that rows of logits begin where memory is read fastest.
    """
    return _BiasOf.apply(fold, *terms) if torch.is_grad_enabled() else _written(fold, *terms)


def _written(
    fold: Tensor | None, first: Tensor, second: Tensor, third: Tensor, aligned: int = 1
) -> Float[Tensor, "bn q k"]:
    """Every sum is written where it is wanted, a copy less of the largest tensor."""
    queries, keys = _extents(first, second, third)
    count = math.prod(keys)
    length = count if fold is None else -(-(count + 1) // aligned) * aligned
    bias = first.new_empty(first.shape[0] * first.shape[1], math.prod(queries), length)
    real = bias[..., :count].unflatten(0, first.shape[:2])
    torch.add(first + second, third, out=real.unflatten(-1, keys).unflatten(2, queries))
    if fold is not None:
        bias[..., count : count + 1] = fold.flatten(0, 1)
        bias[..., count + 1 :] = -math.inf
    return bias


def _extents(*terms: Tensor) -> tuple[torch.Size, torch.Size]:
    """Those of queries and of keys."""
    shape = torch.broadcast_shapes(*(term.shape for term in terms))
    return shape[2:5], shape[5:]


class _BiasOf(torch.autograd.Function):
    """`_written` with gradients."""

    @staticmethod
    def forward(ctx: Any, fold: Tensor | None, *terms: Tensor) -> Tensor:
        """The same."""
        first, second, third = terms
        ctx.shapes = [term.shape for term in terms]
        ctx.extents = _extents(*terms)
        ctx.one_more = fold is not None
        return _written(fold, first, second, third, ALIGNED)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Each term's is the sum over what it was spread to."""
        queries, keys = ctx.extents
        first, second, third = ctx.shapes
        gradient, count = gradient.unflatten(0, first[:2]), math.prod(keys)
        real = gradient[..., :count].unflatten(-1, keys).unflatten(2, queries)
        both = real.sum_to_size(torch.broadcast_shapes(first, second))
        fold = gradient[..., count : count + 1] if ctx.one_more else None
        return fold, both.sum_to_size(first), both.sum_to_size(second), real.sum_to_size(third)


@dataclass(frozen=True)
class AlignedBias:
    """SAM's form: each axis gives the distance of query and key along it; keys run over the full window.

    bias(query, key (z, y, x)) = depth[query, z] + height[query, y] + width[query, x]
    """

    depth: Float[Tensor, "b n d h w z"]
    height: Float[Tensor, "b n d h w y"]
    width: Float[Tensor, "b n d h w x"]

    def of_rows(self, rows: slice) -> "AlignedBias":
        """That of some rows of queries."""
        return AlignedBias(self.depth[:, :, :, rows], self.height[:, :, :, rows], self.width[:, :, :, rows])

    def terms(self, extent: Shape) -> Terms:
        """For the real keys."""
        d, h, w = extent
        return (
            rearrange(self.depth[..., :d], "b n d h w z -> b n d h w z 1 1"),
            rearrange(self.height[..., :h], "b n d h w y -> b n d h w 1 y 1"),
            rearrange(self.width[..., :w], "b n d h w x -> b n d h w 1 1 x"),
        )

    def total(self, box: Box) -> Float[Tensor, "b n d h w"]:
        """log Σ exp bias over the keys of a box: a product of sums, one an axis."""
        terms = zip((self.depth, self.height, self.width), box, strict=True)
        d, h, w = (term[..., keys].logsumexp(dim=-1) for term, keys in terms)
        return d + h + w


def aligned_bias(
    q: Float[Tensor, "b n d h w c"], tables: Mapping[str, Float[Tensor, "_ c"]], window: Shape
) -> AlignedBias:
    """SAM's decomposed bias: unscaled query times the row of its distance to the key, summed over the axes."""
    scores = _scores(q, tables)
    terms = [
        _by_key(scores[axis], axis) if axis in scores else q.new_zeros(()).expand(*q.shape[:5], size)
        for axis, size in zip("dhw", window, strict=True)
    ]
    return AlignedBias(*terms)


@dataclass(frozen=True)
class MixedBias:
    """The bias as SAM-Med3D and FastSAM3D compute it, needed for their released weights and for nothing else.

    Their terms are broadcast one axis off. For a query at (d, h, w) and a key at (z, y, x):

        bias = q[d, h, w]·D[d - x] + q[d, h, z]·H[h - x] + q[d, h, y]·W[y - x]

    that is, all three tables are read with the *width* of the key, and the last two terms belong to the queries whose
    width is the depth, or the height, of the key. Axes of equal length hide it.
    """

    own: Float[Tensor, "b n d h w x"]
    by_depth: Float[Tensor, "b n d h z x"]
    by_height: Float[Tensor, "b n d h y x"]

    def of_rows(self, rows: slice) -> "MixedBias":
        """That of some rows of queries."""
        return MixedBias(self.own[:, :, :, rows], self.by_depth[:, :, :, rows], self.by_height[:, :, :, rows])

    def terms(self, extent: Shape) -> Terms:
        """For the real keys."""
        d, h, w = extent
        return (
            rearrange(self.by_depth[..., :d, :w], "b n d h z x -> b n d h 1 z 1 x"),
            rearrange(self.by_height[..., :h, :w], "b n d h y x -> b n d h 1 1 y x"),
            rearrange(self.own[..., :w], "b n d h w x -> b n d h w 1 1 x"),
        )

    def total(self, box: Box) -> Float[Tensor, "b n d h w"]:
        """log Σ exp bias over the keys of a box: depth and height apart for every width, then the widths together."""
        z, y, x = box
        of_row = self.by_depth[..., z, x].logsumexp(dim=-2) + self.by_height[..., y, x].logsumexp(dim=-2)
        return (rearrange(of_row, "b n d h x -> b n d h 1 x") + self.own[..., x]).logsumexp(dim=-1)


def mixed_bias(
    q: Float[Tensor, "b n d h w c"], q0: Float[Tensor, "n c"] | None, tables: Mapping[str, Float[Tensor, "_ c"]]
) -> MixedBias:
    """The published bias; `q0` is the query of a filled position, which stands at the end of rows that are not full."""
    b, _, d, h, w, _ = q.shape
    scores = _scores(q, tables)
    left = (len(tables["w"]) + 1) // 2 - w
    if q0 is not None and left:
        filled = _scores(rearrange(q0, "n c -> 1 n 1 1 1 c"), tables)
        for axis in "hw":
            rest = repeat(filled[axis], "1 n 1 1 1 r -> b n d h w r", b=b, d=d, h=h, w=left)
            scores[axis] = torch.cat([scores[axis], rest], dim=4)
    return MixedBias(
        own=_by_key(scores["d"], "d"), by_depth=_by_key(scores["h"], "h"), by_height=_by_key(scores["w"], "w")
    )
