"""Attention of one list of tokens to another."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.fused import is_linear


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
