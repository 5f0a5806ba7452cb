"""Heads without prompts, from an embedding to a logit for every class and pixel (AutoSAM, Hu et al. 2023, section 3.2).

Its third head is a `MaskHead` that asks for every class by itself.
"""

from __future__ import annotations

from itertools import pairwise

from einops import rearrange
from jaxtyping import Float
from pydantic import BaseModel, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.encoder import MLP, Image
from volsam.models.mask_head import Upscaling
from volsam.models.shapes import Shape


class ConvHeadConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a convolutional head."""

    width: PositiveInt
    """Channels of the embedding."""
    widths: tuple[int, ...]
    """Channels of the first stage and after every stage; each stage halves them in AutoSAM."""
    doublings: PositiveInt = 2
    """How many of the stages, the last ones, double the image."""
    classes: PositiveInt
    """Classes, background included."""
    step: Shape = (1, 2, 2)
    """What a doubling doubles: (1, 2, 2) for slices."""


class ConvHead(nn.Module):
    """AutoSAM's CNN head: a decoder of convolutions without connections across; works at full width first."""

    def __init__(self, config: ConvHeadConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.widths[0], config.widths[-1]
        kernel = _kernel(config.step)
        self.widen = nn.ModuleList([nn.Conv3d(config.width, first, 1), nn.Conv3d(first, first, 1)])
        plain = len(config.widths) - 1 - config.doublings
        self.stages = nn.ModuleList(
            Stage(a, b, config.step, doubles=index >= plain) for index, (a, b) in enumerate(pairwise(config.widths))
        )
        self.mix = nn.Conv3d(last, last, kernel, padding="same")
        self.classify = nn.Conv3d(last, config.classes, 1)

    def forward(self, embedding: Image) -> Float[Tensor, "b classes z y x"]:
        """Logits at the size the doublings reach."""
        x = embedding
        for layer in self.widen:
            x = F.relu(layer(x))
        for stage in self.stages:
            x = stage(x)
        return self.classify(self.mix(x))


class Stage(nn.Module):
    """Two convolutions and, where the stage doubles the image, a transposed one; the last changes the channels."""

    def __init__(self, a: int, b: int, step: Shape, doubles: bool) -> None:
        super().__init__()
        kernel = _kernel(step)
        self.first = nn.Conv3d(a, a, kernel, padding="same")
        self.second = nn.Conv3d(a, a if doubles else b, kernel, padding="same")
        self.enlarge = nn.ConvTranspose3d(a, b, step, step) if doubles else None

    def forward(self, x: Image) -> Float[Tensor, "b e z y x"]:
        """From a to b channels."""
        x = F.relu(self.second(F.relu(self.first(x))))
        return x if self.enlarge is None else self.enlarge(x)


def _kernel(step: Shape) -> Shape:
    """Three along every axis that is doubled."""
    d, h, w = (3 if size > 1 else 1 for size in step)
    return d, h, w


class LinearHeadConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a linear head."""

    width: PositiveInt
    """Channels of the embedding."""
    upscale: tuple[int, ...]
    """Channels after each doubling of the image."""
    classes: PositiveInt
    """Classes, background included."""
    step: Shape = (1, 2, 2)
    """What a doubling doubles: (1, 2, 2) for slices."""


class LinearHead(nn.Module):
    """AutoSAM's linear head: the doublings of SAM's mask decoder, then two layers over each pixel.

    Logits below zero are cut off, as published; the classes' order stays.
    """

    def __init__(self, config: LinearHeadConfig) -> None:
        super().__init__()
        self.config = config
        last = config.upscale[-1]
        self.upscaling = Upscaling(config.width, config.upscale, config.step)
        self.classify = MLP((last, last, config.classes))

    def forward(self, embedding: Image) -> Float[Tensor, "b classes z y x"]:
        """Logits at the size the doublings reach."""
        d, h, w = embedding.shape[2:]
        blocks = self.upscaling(rearrange(embedding, "b c d h w -> b (d h w) c"))
        logits = rearrange(F.relu(self.classify(blocks)), "b l s k -> b k (l s)")
        return self.upscaling.unfold(logits, (d, h, w))
