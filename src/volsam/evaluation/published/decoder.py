"""The mask decoder of SAM and its relatives: two-way transformer, transposed convolutions, a network for each mask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.evaluation.published.encoder import MLP, ChannelNorm


class TokenAttention(nn.Module):
    """Attention between token lists at an inner width; scores and softmax in separate steps."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(b q c), (b k c), (b k c) to (b q c)."""
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        )
        scores = q @ k.transpose(-2, -1)
        scores = (scores / q.shape[-1] ** 0.5).softmax(dim=-1)
        return self.out_proj((scores @ v).transpose(1, 2).flatten(2))


class TwoWayLayer(nn.Module):
    """Tokens among themselves, tokens from image, MLP, image from tokens; a norm after each."""

    def __init__(self, width: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = TokenAttention(width, heads, width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = TokenAttention(width, heads, width // 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = TokenAttention(width, heads, width // 2)

    def forward(self, tokens: Tensor, image: Tensor, code: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (b t c) and image (b l c); the first layer has no code for its self-attention."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            coded = tokens + code
            tokens = tokens + self.self_attn(coded, coded, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + code, image + position, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + position, tokens + code, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Layers of both ways, then a last look of the tokens at the image."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(width, heads, hidden, first=index == 0) for index in range(depth))
        self.final_attn_token_to_image = TokenAttention(width, heads, width // 2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, image: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image and its position code (b c *grid) and tokens (b t c) to tokens and image (b l c)."""
        image, position = (x.flatten(2).transpose(1, 2) for x in (image, position))
        code = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, code, position)
        read = self.final_attn_token_to_image(tokens + code, image + position, image)
        return self.norm_final_attn(tokens + read), image


class HeadMLP(nn.Module):
    """Linear layers with ReLU between."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(b c) to (b e)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def upscaling(rank: int, width: int, widths: Sequence[int]) -> nn.Sequential:
    """Doublings by transposed convolutions; norm and GELU between, GELU at the end."""
    conv = nn.ConvTranspose2d if rank == 2 else nn.ConvTranspose3d
    layers: list[nn.Module] = []
    for index, (a, b) in enumerate(pairwise((width, *widths)), start=1):
        layers.append(conv(a, b, 2, 2))
        if index < len(widths):
            layers.append(ChannelNorm(b))
        layers.append(nn.GELU())
    return nn.Sequential(*layers)


class MaskDecoder(nn.Module):
    """Embedding and prompts to masks and their foretold IoU.

    masks: how many are computed; groups: token groups beyond the masks that share the networks (AutoSAM: one a class);
    upscale: channels after each doubling.
    """

    def __init__(
        self,
        rank: int,
        *,
        width: int,
        masks: int = 4,
        groups: int = 1,
        upscale: Sequence[int] | None = None,
        depth: int = 2,
        heads: int = 8,
        hidden: int = 2048,
        quality_width: int = 256,
    ) -> None:
        super().__init__()
        widths = upscale or (width // 4, width // 8)
        self.groups = groups
        self.transformer = TwoWayTransformer(width, depth, heads, hidden)
        self.iou_token = nn.Embedding(groups, width)
        self.mask_tokens = nn.Embedding(groups * masks, width)
        self.output_upscaling = upscaling(rank, width, widths)
        self.output_hypernetworks_mlps = nn.ModuleList(HeadMLP((width, width, width, widths[-1])) for _ in range(masks))
        self.iou_prediction_head = HeadMLP((width, quality_width, quality_width, masks))

    def forward(self, embedding: Tensor, position: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """embedding and dense: (b c *grid), position: (1 c *grid); sparse: (b t c). Gives all masks (b m *size) and
        qualities (b m).

        Either one embedding is repeated for many prompts and token groups, or one set of tokens is broadcast over many
        embeddings.
        """
        own = torch.cat(
            [self.iou_token.weight[:, None], self.mask_tokens.weight.unflatten(0, (self.groups, -1))], dim=1
        )
        tokens = torch.cat([own.repeat(len(sparse), 1, 1), sparse.repeat_interleave(self.groups, dim=0)], dim=1)
        image = embedding.repeat_interleave(len(tokens), dim=0) + dense
        position = position.repeat_interleave(len(tokens), dim=0)
        tokens, read = self.transformer(image, position, tokens)
        enlarged = self.output_upscaling(read.transpose(1, 2).reshape(image.shape))
        networks = enumerate(self.output_hypernetworks_mlps, start=1)
        hyper = torch.stack([network(tokens[:, index]) for index, network in networks], dim=1)
        masks = (hyper @ enlarged.flatten(2)).unflatten(2, enlarged.shape[2:])
        return masks, self.iou_prediction_head(tokens[:, 0])
