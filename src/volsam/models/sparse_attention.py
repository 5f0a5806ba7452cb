"""Attention of a token grid to a part of itself: columns as in FastSAM3D's release, and dilated as its paper says.

FastSAM3D (Shen et al. 2024) names dilated attention after LongNet (Ding et al. 2023, section 2). Its released file does
something else: it lets every 64th token attend to each other, which on a grid of 8³ is one column along depth, and lays
the results down column by column without putting them back. Both are here, without a relative position bias, as there.

Tokens are counted along width first, then height, then depth.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.errors import BadInput
from volsam.models.fused import Linear
from volsam.models.shapes import Shape, Tokens

Order: TypeAlias = Literal["restored", "published"]
"""`restored` puts what a token collects where the token is. `published` leaves the results column by column: that of
the j-th token of column s lands at place 8 s + j of 512 instead of s + 64 j, a transposed volume."""


class ColumnAttention(nn.Module):
    """Every token attends to those a multiple of `columns` places away. 64 on 8³ tokens is one column along depth.

    `qkv` and `project` may be replaced by any layers that map tokens one by one.
    """

    def __init__(self, width: int, heads: int, grid: Shape, columns: int = 64, order: Order = "restored") -> None:
        super().__init__()
        self.heads = heads
        self.columns = columns
        self.order = order
        self.qkv = Linear(width, 3 * width)
        self.project = Linear(width, width)
        self._check(math.prod(grid))

    def forward(self, x: Tokens) -> Tokens:
        """What each token collects from its column; same shape."""
        _, d, h, w, _ = x.shape
        self._check(d * h * w)
        q, k, v = rearrange(
            rearrange(self.qkv(x), "b d h w e -> b (d h w) e"),
            "b (j s) (part n c) -> part (b s) n j c",
            part=3,
            n=self.heads,
            s=self.columns,
        )
        collected = F.scaled_dot_product_attention(q, k, v)
        places = "b (j s) (n c)" if self.order == "restored" else "b (s j) (n c)"
        together = rearrange(collected, f"(b s) n j c -> {places}", s=self.columns)
        return self.project(rearrange(together, "b (d h w) c -> b d h w c", d=d, h=h, w=w))

    def _check(self, tokens: int) -> None:
        if tokens % self.columns:
            raise BadInput(
                f"{tokens} tokens do not fall into {self.columns} columns of one length: use a grid whose tokens are a "
                f"multiple of {self.columns}, or another number of columns"
            )


class DilatedAttention(nn.Module):
    """LongNet's attention: several branches, each cutting the tokens into segments and reading every r-th of one.

    In the branch of dilation r head n begins at token n mod r, so that the heads together miss no token. Branches are
    merged by the sums of exponentials that their softmaxes divide by (Ding et al. 2023, section 2): the result is
    one softmax over all keys that any branch shows a token, a key counting once for each branch that does.

    segments: tokens of a segment in each branch; those longer than the grid mean the whole grid. dilations: one for
    each; one of them is 1, lest a token reads nothing. `qkv` and `project` may be replaced as in `ColumnAttention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        grid: Shape,
        segments: tuple[int, ...] = (64, 128, 256, 512),
        dilations: tuple[int, ...] = (1, 2, 4, 8),
    ) -> None:
        super().__init__()
        if len(segments) != len(dilations) or 1 not in dilations:
            raise BadInput(
                f"dilated attention needs one dilation a segment length and 1 among them, got segments {segments} and "
                f"dilations {dilations}"
            )
        self.heads = heads
        self.branches = tuple(zip(segments, dilations, strict=True))
        self.qkv = Linear(width, 3 * width)
        self.project = Linear(width, width)
        self._fitting(math.prod(grid))

    def forward(self, x: Tokens) -> Tokens:
        """What each token collects from all branches; same shape."""
        _, d, h, w, _ = x.shape
        qkv = rearrange(self.qkv(x), "b d h w (part n c) -> part b n (d h w) c", part=3, n=self.heads)
        q, k, v = qkv
        branches = [attend_dilated(q, k, v, segment, dilation) for segment, dilation in self._fitting(d * h * w)]
        weights = torch.stack([total for _, total in branches]).softmax(dim=0)
        merged = sum(
            rearrange(weight, "b n l -> b n l 1") * out for (out, _), weight in zip(branches, weights, strict=True)
        )
        return self.project(rearrange(merged, "b n (d h w) c -> b d h w (n c)", d=d, h=h, w=w))

    def _fitting(self, tokens: int) -> list[tuple[int, int]]:
        """Branches with segments no longer than there are tokens."""
        branches = [(min(segment, tokens), dilation) for segment, dilation in self.branches]
        for segment, dilation in branches:
            if tokens % segment or segment % dilation:
                raise BadInput(
                    f"segments of {segment} tokens read in steps of {dilation} do not fit {tokens} tokens: segments "
                    "must divide the tokens, and dilations their segment"
                )
        return branches


def attend_dilated(
    q: Float[Tensor, "b n l c"], k: Float[Tensor, "b n l c"], v: Float[Tensor, "b n l c"], segment: int, dilation: int
) -> tuple[Float[Tensor, "b n l c"], Float[Tensor, "b n l"]]:
    """One branch: what each token collects, and the log of the sum its softmax divides by; 0 and -∞ where the token
    has no part in the branch.
    """
    heads = torch.arange(q.shape[1], device=q.device)
    chosen = (heads, heads % dilation)
    parts = (rearrange(part, "b n (s j r) c -> n r b s j c", j=segment // dilation, r=dilation) for part in (q, k, v))
    asking, keys, values = (part[chosen] for part in parts)
    logits = asking @ keys.mT * q.shape[-1] ** -0.5
    total = logits.logsumexp(dim=-1)
    collected = (logits - rearrange(total, "n b s j -> n b s j 1")).exp() @ values
    full = (q.shape[1], dilation, *total.shape[1:])
    out = collected.new_zeros(*full, q.shape[-1]).index_put(chosen, collected)
    totals = total.new_full(full, -torch.inf).index_put(chosen, total)
    return rearrange(out, "n r b s j c -> b n (s j r) c"), rearrange(totals, "n r b s j -> b n (s j r)")
