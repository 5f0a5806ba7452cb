"""Attention of a token grid to itself inside windows, with a relative position bias.

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
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from volsam.errors import BadInput
from volsam.models.fused import Linear
from volsam.models.position_bias import (
    AlignedBias,
    MixedBias,
    PositionBias,
    aligned_bias,
    bias_of,
    mixed_bias,
    of_length,
)
from volsam.models.shapes import Box, Shape, Tokens

# Logits that are made in one step on a CPU, 16 MB of them: those of all windows of a large grid, or of a whole slice of
# SAM, are gigabytes, which is slower, too, since memory must be had and filled anew for every sum.
LOGITS_AT_ONCE = 2**22


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
            biases = (None if bias is None else bias_of(bias.of_rows(some).terms(extent)) for some in rows)
            read = [_read(q[:, :, :, some], keys, values, made) for some, made in zip(rows, biases, strict=True)]
            together = read[0] if len(read) == 1 else torch.cat(read, dim=3)
        else:
            q0, k0, v0 = rearrange(filled, "(part n c) -> part n c", part=3, n=self.heads)
            bias = self._position_bias(q, q0, window)
            fold = torch.stack([bias.total(box) for box in _filled_boxes(extent, window)]).logsumexp(dim=0)
            logits = bias_of(bias.terms(extent), rearrange(fold, "b n d h w -> b n (d h w) 1"))
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
    ) -> AlignedBias | MixedBias:
        sizes = dict(zip("dhw", window, strict=True))
        tables = {axis: of_length(table, 2 * sizes[axis] - 1) for axis, table in self.tables.items()}
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
