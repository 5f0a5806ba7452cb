"""SAM's mask decoder for any rank (Kirillov et al. 2023, appendix A).

Tokens that ask for masks read the prompts and the image, the image grows, and each mask is the product of the two.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from pydantic import BaseModel, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.encoder import MLP
from volsam.models.fused import linear_gelu
from volsam.models.shapes import Shape
from volsam.models.two_way import TwoWayTransformer

Candidates: TypeAlias = Literal["one", "several", "all"]
"""Which masks a head gives: the one it holds best, the several for an ambiguous prompt, or both."""

_CHOSEN: dict[Candidates, slice] = {"one": slice(0, 1), "several": slice(1, None), "all": slice(None)}


class HeadConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a mask head."""

    width: PositiveInt
    """Channels of a token; those of the embedding."""
    depth: PositiveInt = 2
    """Layers of the two-way transformer."""
    heads: PositiveInt = 8
    """Attention heads."""
    mlp_width: PositiveInt = 2048
    """Channels between the two layers of an MLP."""
    inner: PositiveInt
    """Channels inside the attention between tokens and image; half the width in SAM."""
    masks: PositiveInt = 4
    """Mask tokens: one for a clear prompt, the others for an ambiguous one."""
    classes: PositiveInt = 1
    """Classes that are asked for one by one, each with tokens of its own and a copy of the image to read (AutoSAM)."""
    upscale: tuple[int, ...]
    """Channels after each doubling of the image."""
    step: Shape = (2, 2, 2)
    """What a doubling doubles: (1, 2, 2) for slices."""
    quality_width: PositiveInt = 256
    """Channels inside the MLP that predicts the quality of each mask."""
    quality_depth: PositiveInt = 3
    """Layers of that MLP."""


class MaskHead(nn.Module):
    """Embedding and prompts to mask logits and their predicted quality (IoU)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.quality_token = nn.Parameter(torch.randn(config.classes, width))
        self.mask_tokens = nn.Parameter(torch.randn(config.classes * config.masks, width))
        self.transformer = TwoWayTransformer(width, config.depth, config.heads, config.mlp_width, config.inner)
        self.upscaling = Upscaling(width, config.upscale, config.step)
        # One network a mask token: it turns the token into the weights of a mask.
        self.weights = nn.ModuleList(MLP((width, width, width, config.upscale[-1])) for _ in range(config.masks))
        self.quality = MLP((width, *[config.quality_width] * (config.quality_depth - 1), config.masks))

    def forward(
        self,
        embedding: Float[Tensor, "#b c d h w"],
        position: Float[Tensor, "d h w c"],
        prompts: Float[Tensor, "#b t c"],
        dense: Float[Tensor, "#b c #d #h #w"],
        candidates: Candidates = "one",
        absent: Bool[Tensor, "#b t"] | None = None,
    ) -> tuple[Float[Tensor, "b n z y x"], Float[Tensor, "b n"]]:
        """Mask logits at the size the doublings reach, and the predicted IoU of each; n runs over classes, then masks.

        An embedding of batch 1 serves any number of prompts, and prompts of batch 1 any number of embeddings. Prompts
        that are `absent` change nothing.
        """
        chosen = _CHOSEN[candidates]
        image = rearrange(embedding + dense, "b c d h w -> b (d h w) c")
        batch = max(image.shape[0], prompts.shape[0])
        classes = self.config.classes
        own = rearrange(self.mask_tokens, "(k m) c -> k m c", k=classes)
        asking = torch.cat([rearrange(self.quality_token, "k c -> k 1 c"), own], dim=1)
        said = repeat(prompts.expand(batch, -1, -1), "b t c -> (b k) t c", k=classes)
        tokens = torch.cat([repeat(asking, "k t c -> (b k) t c", b=batch), said], dim=1)
        image = repeat(image.expand(batch, -1, -1), "b l c -> (b k) l c", k=classes)
        if absent is not None:  # the asking tokens are not
            absent = F.pad(repeat(absent.expand(batch, -1), "b t -> (b k) t", k=classes), (asking.shape[1], 0))
        tokens, image = self.transformer(tokens, image, rearrange(position, "d h w c -> 1 (d h w) c"), absent)
        wanted = [network(tokens[:, 1 + index]) for index, network in list(enumerate(self.weights))[chosen]]
        masks = torch.stack(wanted, dim=1) @ rearrange(self.upscaling(image), "b l s c -> b (l s) c").transpose(-2, -1)
        d, h, w, _ = position.shape
        masks, quality = self.upscaling.unfold(masks, (d, h, w)), self.quality(tokens[:, 0])[:, chosen]
        masks = rearrange(masks, "(b k) n z y x -> b (k n) z y x", k=classes)
        return masks, rearrange(quality, "(b k) n -> b (k n)", k=classes)


class Upscaling(nn.Module):
    """Repeated doubling of an image by transposed convolutions whose stride is their kernel.

    Such a convolution gives every token its own block of voxels, a matrix product. The blocks stay beside their token
    until the masks are made: then `unfold` moves one number a voxel instead of all channels.
    """

    def __init__(self, width: int, widths: tuple[int, ...], step: Shape) -> None:
        super().__init__()
        self.step = step
        self.steps: Iterable[Doubling] = nn.ModuleList(  # type: ignore[assignment]
            Doubling(a, b, step, step) for a, b in pairwise((width, *widths))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=1e-6) for channels in widths[:-1])

    def forward(self, image: Float[Tensor, "b l c"]) -> Float[Tensor, "b l s e"]:
        """Tokens to blocks of voxels; s runs over the voxels of a token, doubling by doubling."""
        x = rearrange(image, "b l c -> b l 1 c")
        for index, step in enumerate(self.steps):
            weight, bias = step.as_linear()
            if index < len(self.norms):
                x = F.gelu(self.norms[index](_blocks(F.linear(x, weight, bias), self.step)))
            else:
                x = _blocks(linear_gelu(x, weight, bias), self.step)
        return x

    def unfold(self, masks: Float[Tensor, "b n ls"], grid: Shape) -> Float[Tensor, "b n z y x"]:
        """Blocks to an image: each doubling's voxels move between those of the doubling before."""
        d, h, w = grid
        p, q, r = self.step
        masks = rearrange(masks, "b n (d h w s) -> b n d h w s", d=d, h=h, w=w)
        for _ in self.steps:
            masks = rearrange(masks, "b n d h w (p q r s) -> b n (d p) (h q) (w r) s", p=p, q=q, r=r)
        return rearrange(masks, "b n z y x 1 -> b n z y x")


class Doubling(nn.ConvTranspose3d):
    """One transposed convolution whose stride is its kernel; bias included."""

    def as_linear(self) -> tuple[Float[Tensor, "te c"], Float[Tensor, " te"]]:
        """Weight and bias of the linear layer that makes a block of t voxels of every voxel."""
        assert self.bias is not None
        weight = rearrange(self.weight, "c e p q r -> (p q r e) c")
        return weight, repeat(self.bias, "e -> (block e)", block=math.prod(self.kernel_size))


def _blocks(x: Float[Tensor, "b l s te"], step: Shape) -> Float[Tensor, "b l st e"]:
    """Side by side: the t voxels that each of the s voxels became."""
    return rearrange(x, "b l s (t e) -> b l (s t) e", t=math.prod(step))
