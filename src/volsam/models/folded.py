"""A two-way transformer for use alone: the same function in fewer, larger products, with weights that stay.

A GPU spends a click waiting for launches. The projections of a layer that read the same tokens become one product of
stacked weights, and wherever a code is added to what is projected, W (x + code) = W x + W code: the share of the
image's position, which never changes, is computed here once, that of the prompts once a click for all layers.
"""

from __future__ import annotations

import copy

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.errors import BadInput
from volsam.models.fused import is_linear
from volsam.models.segmenter import Segmenter
from volsam.models.token_attention import Attention
from volsam.models.two_way import ImageTokens, PromptTokens, TwoWayLayer, TwoWayTransformer


def folded(segmenter: Segmenter) -> Segmenter:
    """A segmenter that answers as the given one does now, for inference: it shares the weights of the other parts, and
    does not follow if those of its transformer change.
    """
    twin = copy.copy(segmenter)
    twin._modules = dict(segmenter._modules)
    twin.mask_head = copy.copy(segmenter.mask_head)
    twin.mask_head._modules = dict(segmenter.mask_head._modules)
    position = rearrange(segmenter.prompt_encoder.code.of_grid, "d h w c -> 1 (d h w) c")
    twin.mask_head.transformer = FoldedTwoWay(segmenter.mask_head.transformer, position)  # type: ignore[assignment]
    return twin


class FoldedTwoWay(nn.Module):
    """`TwoWayTransformer` with the position of its image tokens built in."""

    code_weight: Float[Tensor, "e c"]

    @torch.no_grad()
    def __init__(self, transformer: TwoWayTransformer, position: Float[Tensor, "1 l c"]) -> None:
        super().__init__()
        layers: list[TwoWayLayer] = list(transformer.layers)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(FoldedLayer(layer, position, index == 0) for index, layer in enumerate(layers))
        self.last = FoldedLook(transformer.last_look, position)
        self.norm = transformer.norm
        weights = [weight for index, layer in enumerate(layers) for weight in _of_code(layer, first=index == 0)]
        weights.append(_plain(transformer.last_look.query).weight)
        self.shares = [len(weight) for weight in weights]
        self.register_buffer("code_weight", torch.cat(weights), persistent=False)

    def forward(
        self,
        tokens: PromptTokens,
        image: ImageTokens,
        position: Float[Tensor, "#b l c"],
        absent: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[PromptTokens, ImageTokens]:
        """Tokens and image after reading each other; `position` is what was built in."""
        present = None if absent is None else rearrange(~absent, "b t -> b 1 1 t")
        shares = list(F.linear(tokens, self.code_weight).split(self.shares, dim=-1))
        for layer in self.layers:
            used = [shares.pop(0) for _ in range(layer.codes)]  # type: ignore[arg-type]
            tokens, image = layer(tokens, image, used, present)
        k, v = self.last.of_image(image)
        tokens = tokens + self.last(self.last.query(tokens) + shares[0], k, v)
        return self.norm(tokens), image

    def weights_to(self, precision: torch.dtype) -> None:
        """Convert the stacked weights, in place; biases and the share of the position stay, they are added."""
        for module in self.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                if name.endswith("weight"):
                    module.register_buffer(name, buffer.to(precision), persistent=False)


class FoldedLook(nn.Module):
    """Tokens reading the image. The constant holds the share of the position, and the biases."""

    weight: Float[Tensor, "e c"]
    constant: Float[Tensor, "1 l e"]

    def __init__(self, attention: Attention, position: Float[Tensor, "1 l c"], asking: nn.Linear | None = None) -> None:
        super().__init__()
        self.heads = attention.heads
        self.query, self.project = _plain(attention.query), attention.project
        placed = [_plain(attention.key), *([asking] if asking is not None else [])]
        value = _plain(attention.value)
        self.shares = [len(layer.weight) for layer in (*placed, value)]
        constant = [layer(position) for layer in placed]
        constant.append(value.bias.expand(*position.shape[:2], -1))
        self.register_buffer("weight", torch.cat([layer.weight for layer in (*placed, value)]), persistent=False)
        self.register_buffer("constant", torch.cat(constant, dim=-1), persistent=False)

    def of_image(self, image: ImageTokens) -> list[Tensor]:
        """Keys, the queries of the image if it asks too, and values."""
        return list((F.linear(image, self.weight) + self.constant).split(self.shares, dim=-1))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What projected queries collect."""
        return self.project(_attend(q, k, v, self.heads))


class FoldedLayer(nn.Module):
    """`TwoWayLayer`; the code of the prompts comes as its shares of what is projected."""

    own_weight: Float[Tensor, "e c"]
    own_bias: Float[Tensor, " e"]
    back_weight: Float[Tensor, "e c"]
    back_bias: Float[Tensor, " e"]

    def __init__(self, layer: TwoWayLayer, position: Float[Tensor, "1 l c"], first: bool) -> None:
        super().__init__()
        own, back = layer.among_tokens, layer.image_from_tokens
        self.first = first
        self.codes = 2 if first else 3
        self.heads, self.project = own.heads, own.project
        self._stack("own", own.query, own.key, own.value)
        self.look = FoldedLook(layer.tokens_from_image, position, asking=_plain(back.query))
        self._stack("back", back.key, back.value)
        self.back_heads, self.back_project = back.heads, back.project
        self.mlp = layer.mlp
        self.norm1, self.norm2, self.norm3, self.norm4 = layer.norm1, layer.norm2, layer.norm3, layer.norm4

    def _stack(self, name: str, *layers: nn.Module) -> None:
        linear = [_plain(layer) for layer in layers]
        self.register_buffer(f"{name}_weight", torch.cat([layer.weight for layer in linear]), persistent=False)
        self.register_buffer(f"{name}_bias", torch.cat([layer.bias for layer in linear]), persistent=False)

    def forward(
        self,
        tokens: PromptTokens,
        image: ImageTokens,
        shares: list[Tensor],
        present: Bool[Tensor, "b 1 1 t"] | None = None,
    ) -> tuple[PromptTokens, ImageTokens]:
        """One round."""
        *of_own, of_look, of_back = shares
        own = F.linear(tokens, self.own_weight, self.own_bias)
        for share in of_own:  # queries and keys; the values have no code
            own = own + F.pad(share, (0, own.shape[-1] - share.shape[-1]))
        q, k, v = own.chunk(3, dim=-1)
        collected = self.project(_attend(q, k, v, self.heads, present))
        tokens = self.norm1(collected if self.first else tokens + collected)
        k, asking, v = self.look.of_image(image)
        tokens = self.norm2(tokens + self.look(self.look.query(tokens) + of_look, k, v))
        tokens = self.norm3(tokens + self.mlp(tokens))
        k, v = F.linear(tokens, self.back_weight, self.back_bias).chunk(2, dim=-1)
        image = self.norm4(image + self.back_project(_attend(asking, k + of_back, v, self.back_heads, present)))
        return tokens, image


def _of_code(layer: TwoWayLayer, first: bool) -> list[Tensor]:
    """The weights that meet the code: among tokens of later layers, then both looks."""
    own, look, back = layer.among_tokens, layer.tokens_from_image, layer.image_from_tokens
    among = [] if first else [torch.cat([_plain(own.query).weight, _plain(own.key).weight])]
    return [*among, _plain(look.query).weight, _plain(back.key).weight]


def _plain(layer: nn.Module) -> nn.Linear:
    if not is_linear(layer):
        raise BadInput(
            f"only plain linear layers can be folded, got {type(layer).__name__}: put the adapter into its layer first"
        )
    return layer


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, present: Tensor | None = None) -> Tensor:
    q, k, v = (rearrange(part, "b l (n c) -> b n l c", n=heads) for part in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v, present), "b n l c -> b l (n c)")
