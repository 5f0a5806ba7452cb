"""Attention: of a token grid to itself inside windows with a relative position bias, and of one token list to another.

SAM cuts its token grid into windows and fills the far ends with zeros (Kirillov et al. 2023, appendix A, after Li et
al. 2022, "Exploring plain vision transformer backbones for object detection"). The filling takes part in the softmax:
on the 8³ grid of SAM-Med3D a window of 14³ holds 512 real tokens and 2,232 filled ones, and three quarters of the
arithmetic go to them. Here only real tokens are computed, and the result is the same. Filling happens after the norm
and before `qkv`, so every filled position has one and the same key k₀ and value v₀; the logits of a query q at the
filled positions P differ in their position bias alone:

    Σ_{p∈P} exp(q·k₀/√c + bias(q, p)) = exp(q·k₀/√c + fold(q))   with   fold(q) = log Σ_{p∈P} exp bias(q, p)

One more key k₀ with value v₀ and bias `fold(q)` therefore stands for all of them. The bias is a sum of one term an axis
and P is a union of at most three boxes, so `fold` takes a few sums along single axes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from volsam.errors import BadInput
from volsam.models.fused import Linear, is_linear

Shape: TypeAlias = tuple[int, int, int]
"""Numbers along depth, height and width."""

Tokens: TypeAlias = Float[Tensor, "b d h w c"]
"""A grid of tokens, channels last."""

PositionBias: TypeAlias = Literal["aligned", "published"]
"""`aligned` pairs every axis with itself. `published` is for released weights of 3D models, see `MixedBias`."""

Box: TypeAlias = tuple[slice, slice, slice]

# Logits that are made in one step on a CPU, 16 MB of them: those of all windows of a large grid, or of a whole slice of
# SAM, are gigabytes, which is slower, too, since memory must be had and filled anew for every sum.
LOGITS_AT_ONCE = 2**22
# Numbers at whose multiples rows of logits begin.
ALIGNED = 8


class GridAttention(nn.Module):
    """Multi-head self-attention of a token grid inside windows.

    `window` counts tokens along each axis, 0 meaning the whole axis: (1 14 14) is a window of 2D SAM, (1 0 0) lets
    every slice attend to itself, (0 0 0) is attention over the whole volume. `grid` is the token grid of a full image
    and fixes the length of the tables along whole axes. `axes` names the axes that have a table, "" for no bias at all.

    `shift` moves the windows on by so many tokens (Liu et al. 2021, "Swin transformer", section 3.2). Nothing is filled
    then: the shorter windows left at both ends stand alone, which is what their cyclic shift comes to with its mask.

    `qkv` and `project` may be replaced by any layers that map tokens one by one, and `tables` by tables of any length.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: Shape,
        grid: Shape,
        axes: str = "dhw",
        bias: PositionBias = "aligned",
        shift: Shape = (0, 0, 0),
    ) -> None:
        super().__init__()
        extent = _window_on(grid, window)
        if bias == "published" and (axes != "dhw" or len(set(extent)) > 1):
            raise BadInput(
                f"the published position bias mixes three axes of equal length; got axes {axes!r} and windows of "
                f"{extent} tokens: use cubic windows, or the aligned bias"
            )
        if bias == "published" and any(shift):
            raise BadInput("the published position bias knows no shifted windows: use the aligned bias")
        self.heads = heads
        self.window = window
        self.shift = shift
        self.bias = bias
        self.qkv = Linear(width, 3 * width)
        self.project = Linear(width, width)
        self.tables = nn.ParameterDict(
            {
                axis: torch.zeros(2 * size - 1, width // heads)
                for axis, size in zip("dhw", extent, strict=True)
                if axis in axes
            }
        )

    def forward(self, x: Tokens) -> Tokens:
        """What each token collects from its window; same shape."""
        window = _window_on(x.shape[1:4], self.window)
        whole = any(self.shift) or all(size % step == 0 for size, step in zip(x.shape[1:4], window, strict=True))
        filled = None if whole else self.qkv(x.new_zeros(x.shape[-1]))
        tokens = _over_tiles(lambda tile: self._attend(tile, filled, window), self.qkv(x), window, self.shift)
        return self.project(tokens)

    def _attend(
        self, qkv: Float[Tensor, "b d h w qkv"], filled: Float[Tensor, " qkv"] | None, window: Shape
    ) -> Float[Tensor, "b d h w c"]:
        """Attention in a tile whose windows all hold the same extent of real tokens, the rest being `filled`."""
        d, h, w = extent = _smaller(qkv.shape[1:4], window)
        z, y, x = (size // step for size, step in zip(qkv.shape[1:4], extent, strict=True))
        parts = rearrange(
            qkv, "b (z d) (y h) (x w) (part n c) -> part (b z y x) n d h w c", part=3, n=self.heads, d=d, h=h, w=w
        )
        some = parts.split(self._windows_at_once(parts), dim=1)
        out = [self._within(q, k, v, filled, window) for q, k, v in some]
        together = out[0] if len(out) == 1 else torch.cat(out)
        return rearrange(together, "(b z y x) (d h w) c -> b (z d) (y h) (x w) c", z=z, y=y, x=x, d=d, h=h, w=w)

    def _windows_at_once(self, parts: Float[Tensor, "part b n d h w c"]) -> int:
        """On a CPU only so many windows that the logits of one step fit its cache; elsewhere all of them."""
        tokens = math.prod(parts.shape[3:6])
        return max(1, LOGITS_AT_ONCE // (self.heads * tokens**2) if parts.device.type == "cpu" else parts.shape[1])

    def _within(
        self,
        q: Float[Tensor, "b n d h w c"],
        k: Float[Tensor, "b n d h w c"],
        v: Float[Tensor, "b n d h w c"],
        filled: Float[Tensor, " qkv"] | None,
        window: Shape,
    ) -> Float[Tensor, "b l e"]:
        """Attention in windows of which q, k and v hold the real tokens."""
        extent: Shape = (q.shape[2], q.shape[3], q.shape[4])
        keys, values = (rearrange(part, "b n d h w c -> b n (d h w) c") for part in (k, v))
        if filled is None or extent == window:
            bias = self._position_bias(q, None, window) if self.tables else None
            step = self._rows_at_once(q)
            rows = [slice(start, start + step) for start in range(0, extent[1], step)]
            biases = (None if bias is None else _bias(bias.of_rows(some).terms(extent)) for some in rows)
            read = [_read(q[:, :, :, some], keys, values, made) for some, made in zip(rows, biases, strict=True)]
            together = read[0] if len(read) == 1 else torch.cat(read, dim=3)
        else:
            q0, k0, v0 = rearrange(filled, "(part n c) -> part n c", part=3, n=self.heads)
            bias = self._position_bias(q, q0, window)
            fold = torch.stack([bias.total(box) for box in _filled_boxes(extent, window)]).logsumexp(dim=0)
            logits = _bias(bias.terms(extent), rearrange(fold, "b n d h w -> b n (d h w) 1"))
            more = logits.shape[-1] - keys.shape[2]
            keys = torch.cat([keys, repeat(k0, "n c -> b n more c", b=k.shape[0], more=more)], dim=2)
            values = torch.cat([values, repeat(v0, "n c -> b n more c", b=v.shape[0], more=more)], dim=2)
            together = _read(q, keys, values, logits)
        return rearrange(together, "b n d h w c -> b (d h w) (n c)")

    def _rows_at_once(self, q: Float[Tensor, "b n d h w c"]) -> int:
        """Of a window whose logits alone are too many for one step on a CPU only so many rows of queries; else all."""
        _, n, d, h, w, _ = q.shape
        if q.device.type != "cpu" or torch.is_grad_enabled():
            return h
        return max(1, min(h, LOGITS_AT_ONCE // (n * d * w * d * h * w)))

    def _position_bias(
        self, q: Float[Tensor, "b n d h w c"], q0: Float[Tensor, "n c"] | None, window: Shape
    ) -> "AlignedBias | MixedBias":
        sizes = dict(zip("dhw", window, strict=True))
        tables = {axis: _of_length(table, 2 * sizes[axis] - 1) for axis, table in self.tables.items()}
        return aligned_bias(q, tables, window) if self.bias == "aligned" else mixed_bias(q, q0, tables)


def _read(
    q: Float[Tensor, "b n d h w c"],
    keys: Float[Tensor, "b n k c"],
    values: Float[Tensor, "b n k c"],
    bias: Float[Tensor, "bn q k"] | None,
) -> Float[Tensor, "b n d h w c"]:
    """What queries collect. The bias is used up."""
    queries = rearrange(q, "b n d h w c -> b n (d h w) c")
    # Under mixed precision the sums of exponentials run in float32, the logits must be what the queries are.
    mask = None if bias is None else bias.to(q.dtype)
    if mask is not None and mask.requires_grad and q.device.type == "cpu":
        # torch's way with the gradient of a bias looks for rows without any key, over all logits, and copies them.
        out = _Read.apply(*(part.flatten(0, 1) for part in (queries, keys, values)), mask).unflatten(0, q.shape[:2])
    else:
        mask = None if mask is None else mask.unflatten(0, q.shape[:2])
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return out.unflatten(2, q.shape[2:5])


class _Read(torch.autograd.Function):
    """Softmax of logits times values, with gradients: one tensor holds bias, logits and weights in turn."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """What queries (b q c) collect from keys and values (b k c); the bias (b q k) is written over."""
        logits = bias.baddbmm_(q, k.mT, alpha=q.shape[-1] ** -0.5)
        weights = torch.softmax(logits, dim=-1, out=logits)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all four."""
        q, k, v, weights = ctx.saved_tensors
        scale, nothing = q.shape[-1] ** -0.5, q.new_zeros(1, 1, 1)
        of_logits = gradient @ v.mT
        torch.ops.aten._softmax_backward_data.out(of_logits, weights, -1, weights.dtype, grad_input=of_logits)
        return (
            torch.baddbmm(nothing, of_logits, k, beta=0, alpha=scale),
            torch.baddbmm(nothing, of_logits.mT, q, beta=0, alpha=scale),
            weights.mT @ gradient,
            of_logits,
        )


# --- tiles: parts of the grid whose windows hold equally many real tokens ----------------------------------


def _window_on(grid: tuple[int, ...], window: Shape) -> Shape:
    """The window in tokens, whole axes (0) spelled out."""
    d, h, w = (step or size for step, size in zip(window, grid, strict=True))
    return d, h, w


def _smaller(grid: tuple[int, ...], window: Shape) -> Shape:
    d, h, w = map(min, grid, window)
    return d, h, w


def _over_tiles(
    attend: Callable[[Tokens], Tokens], x: Tokens, window: Shape, shift: Shape = (0, 0, 0), axis: int = 0
) -> Float[Tensor, "b d h w e"]:
    """Apply `attend` to each tile of a grid: along every axis the tokens before the first full window, the full
    windows, then what is left at the far end.

    At most two tiles an axis without a shift, so eight in all; 2D SAM's 64² grid in windows of 14 gives four.
    """
    if axis == 3:
        return attend(x)
    size = x.shape[axis + 1]
    before = min(shift[axis], size)
    left = (size - before) % window[axis]
    tiles = [tile for tile in x.split([before, size - before - left, left], dim=axis + 1) if tile.shape[axis + 1]]
    done = [_over_tiles(attend, tile, window, shift, axis + 1) for tile in tiles]
    return done[0] if len(done) == 1 else torch.cat(done, dim=axis + 1)


def _filled_boxes(extent: Shape, window: Shape) -> list[Box]:
    """The filled positions of a window as disjoint boxes: real along earlier axes, filled along one, any along later
    ones.
    """
    real = [slice(0, size) for size in extent]
    filled = [slice(size, None) for size in extent]
    box: list[Box] = [
        (filled[0], slice(None), slice(None)),
        (real[0], filled[1], slice(None)),
        (real[0], real[1], filled[2]),
    ]
    return [box[axis] for axis in range(3) if extent[axis] < window[axis]]


# --- the relative position bias ----------------------------------------------------------------------------


def _of_length(table: Float[Tensor, "_ c"], length: int) -> Float[Tensor, "n c"]:
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


def _bias(terms: Terms, fold: Float[Tensor, "b n q 1"] | None = None) -> Float[Tensor, "bn q k"]:
    """The bias of every query for the real keys, and for one more if there is a `fold`. So many keys follow that are
    never read (-inf) that rows of logits begin where memory is read fastest.
    """
    return _Bias.apply(fold, *terms) if torch.is_grad_enabled() else _written(fold, *terms)


def _written(fold: Tensor | None, first: Tensor, second: Tensor, third: Tensor) -> Float[Tensor, "bn q k"]:
    """Every sum is written where it is wanted, a copy less of the largest tensor."""
    queries, keys = _extents(first, second, third)
    count = math.prod(keys)
    length = count if fold is None else -(-(count + 1) // ALIGNED) * ALIGNED
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


class _Bias(torch.autograd.Function):
    """`_written` with gradients."""

    @staticmethod
    def forward(ctx: Any, fold: Tensor | None, *terms: Tensor) -> Tensor:
        """The same."""
        first, second, third = terms
        ctx.shapes = [term.shape for term in terms]
        ctx.extents = _extents(*terms)
        ctx.one_more = fold is not None
        return _written(fold, first, second, third)

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


# --- attention between token lists -------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention of one list of tokens to another, at an inner width that may be smaller than the tokens'.

    On a CPU, where arithmetic counts, a long list (the image) is not projected to meet a short one (the prompts): the
    short one is carried to it instead. The logits of a head are q·(W x + b) = (Wᵀq)·x + q·b, so a key projection can be
    moved to the queries, and what does not depend on the key leaves the softmax alone; a weighted sum of values
    W x + b is W applied to the weighted sum of the x. The function is the same.
    """

    def __init__(self, width: int, heads: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or width
        self.heads = heads
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.project = nn.Linear(inner, width)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        key: Float[Tensor, "b k c"],
        value: Float[Tensor, "b k c"],
        absent: Bool[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b q c"]:
        """What each query token collects from the values; those that are `absent` are not read."""
        if absent is None and self._is_cheaper(few=query, many=key):
            return self._few_read_many(query, key, value)
        if self._is_cheaper(few=key, many=query):
            return self._many_read_few(query, key, value, absent)
        q, k, v = (
            rearrange(part, "b l (n c) -> b n l c", n=self.heads)
            for part in (self.query(query), self.key(key), self.value(value))
        )
        mask = None if absent is None else rearrange(~absent, "b k -> b 1 1 k")
        return self.project(rearrange(F.scaled_dot_product_attention(q, k, v, mask), "b n l c -> b l (n c)"))

    def _is_cheaper(self, few: Float[Tensor, "b q c"], many: Float[Tensor, "b k c"]) -> bool:
        """Whether to carry `few` to `many`. Elsewhere than on a CPU fewer, larger steps are faster; layers that an
        adapter has changed have no one matrix.
        """
        layers = (self.query, self.key, self.value, self.project)
        if many.device.type != "cpu" or any(not is_linear(layer) for layer in layers):
            return False
        inner, rows = self.query.out_features, self.heads * few.shape[1]
        return few.shape[1] * inner + many.shape[1] * rows < many.shape[1] * inner

    def _few_read_many(
        self, query: Float[Tensor, "b q c"], key: Float[Tensor, "b k c"], value: Float[Tensor, "b k c"]
    ) -> Float[Tensor, "b q c"]:
        b = query.shape[0]
        carried = self._carried(self.query(query), rearrange(self.key.weight, "(n e) c -> n e c", n=self.heads))
        weights = (carried @ key.transpose(-2, -1)).softmax(dim=-1)
        read = rearrange(weights @ value, "b (n q) c -> n (b q) c", n=self.heads)
        read = read @ rearrange(self.value.weight, "(n e) c -> n c e", n=self.heads)
        return self.project(rearrange(read, "n (b q) e -> b q (n e)", b=b) + self.value.bias)

    def _many_read_few(
        self,
        query: Float[Tensor, "b q c"],
        key: Float[Tensor, "b k c"],
        value: Float[Tensor, "b k c"],
        absent: Bool[Tensor, "b k"] | None,
    ) -> Float[Tensor, "b q c"]:
        """The softmax runs over the few keys, with the many queries last: the order in which memory is read fastest."""
        keys = self.key(key)
        carried = self._carried(keys, rearrange(self.query.weight, "(n e) c -> n e c", n=self.heads))
        shift = self._carried(keys, rearrange(self.query.bias, "(n e) -> n e 1", n=self.heads))
        logits = rearrange(torch.baddbmm(shift, carried, query.transpose(-2, -1)), "b (n k) q -> b n k q", n=self.heads)
        if absent is not None:
            logits = logits.masked_fill(rearrange(absent, "b k -> b 1 k 1"), -torch.inf)
        weights = logits.softmax(dim=2)
        carried = self._carried(
            self.value(value), rearrange(self.project.weight, "c (n e) -> n e c", n=self.heads), scale=1.0
        )
        return torch.baddbmm(self.project.bias, rearrange(weights, "b n k q -> b q (n k)"), carried)

    def _carried(
        self, projected: Float[Tensor, "b l ne"], weight: Float[Tensor, "n e c"], scale: float | None = None
    ) -> Float[Tensor, "b nl c"]:
        """Each head's share of projected tokens through that head's matrix; scaled as attention scales its logits."""
        scale = weight.shape[1] ** -0.5 if scale is None else scale
        heads = rearrange(projected * scale, "b l (n e) -> n (b l) e", n=self.heads)
        return rearrange(heads @ weight, "n (b l) c -> b (n l) c", b=projected.shape[0])
