"""The image encoder: a plain vision transformer over a grid of patches, with places where adapters can move in.

One class serves slices and volumes. A slice is a volume of depth 1: with patches of (1 16 16), windows of (1 14 14)
and a neck of (1 3 3) it is SAM's encoder (Kirillov et al. 2023, appendix A); with 16³, 14³ and 3³ it is SAM-Med3D's
(Wang et al. 2023), and without attention in its first blocks FastSAM3D's student (Shen et al. 2024).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import BaseModel, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from volsam.models.attention import GridAttention
from volsam.models.fused import Linear, PackedLinear, is_linear, linear, linear_gelu
from volsam.models.position_bias import PositionBias
from volsam.models.shapes import Shape, Tokens
from volsam.models.sparse_attention import ColumnAttention, DilatedAttention, Order

Image: TypeAlias = Float[Tensor, "b c d h w"]
"""Channels first: what the user's volume becomes, and what leaves the neck."""


class EncoderConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of an encoder; the defaults are those of a new 3D model."""

    image: Shape
    """Voxels of the image along depth, height and width."""
    channels: PositiveInt = 1
    """Channels of the image."""
    patch: Shape = (16, 16, 16)
    """Voxels of a patch; one patch is one token."""
    width: PositiveInt
    """Channels of a token."""
    depth: PositiveInt
    """Number of blocks."""
    heads: PositiveInt
    """Attention heads."""
    mlp_width: PositiveInt
    """Channels between the two layers of an MLP; SAM has four times the width."""
    window: Shape = (0, 0, 0)
    """Tokens of an attention window; 0 is the whole axis."""
    wide_window: Shape = (0, 0, 0)
    """The window of the blocks named in `wide_blocks`: (1, 0, 0) for slices, which must not see each other."""
    wide_blocks: tuple[int, ...] = ()
    """Blocks (from 0) that attend in `wide_window`; SAM calls them global."""
    shift: Shape = (0, 0, 0)
    """How many tokens the windows of the blocks named in `shifted_blocks` are moved on by."""
    shifted_blocks: tuple[int, ...] = ()
    """Blocks (from 0) whose windows are moved; every second one in 3DSAM-adapter."""
    bias_axes: Literal["", "d", "h", "w", "dh", "dw", "hw", "dhw"] = "dhw"
    """Axes with a relative position table; "hw" for slices."""
    bias: PositionBias = "aligned"
    """"published" for the released weights of SAM-Med3D and FastSAM3D, which were trained with mixed-up axes."""
    sparse: Literal["none", "columns", "published", "dilated"] = "none"
    """What attention reads: all of its window, or (FastSAM3D) a part of the grid, without position bias: `dilated` as
    its paper describes, `columns` along depth as in its release, and `published` with its misplaced results too."""
    segments: tuple[PositiveInt, ...] = (64, 128, 256, 512)
    """Tokens of a segment in each branch of dilated attention."""
    dilations: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    """Every how manieth token of a segment is read in each branch."""
    blocks_without_attention: int = 0
    """How many of the first blocks are an MLP alone: two in FastSAM3D's student, where attention early pays least."""
    shortcut: Literal["stream", "normed"] = "stream"
    """What the MLP is added to: the stream, or (FastSAM3D's weights need it) the stream after the second norm."""
    out: PositiveInt
    """Channels of the embedding."""
    neck_kernel: Shape = (3, 3, 3)
    """Kernel of the neck's convolution: (1, 3, 3) for slices."""
    taps: tuple[int, ...] = ()
    """Where tokens are kept on the way: after so many blocks, 0 being after the patch embedding."""

    @property
    def grid(self) -> Shape:
        """Tokens along depth, height and width."""
        d, h, w = (size // step for size, step in zip(self.image, self.patch, strict=True))
        return d, h, w


class Encoder(nn.Module):
    """Image to embedding, and the tokens at the taps.

    The learned position has one entry a token of `config.grid`; where the grid has depth 1 it is shared by all slices,
    so a stack of slices passes through an encoder of slices in one call.

    `at_taps` has a place for each tap, through which its tokens pass before they are kept; an adapter may fill it.
    With `recompute` a training step keeps only what passes from block to block, and computes the rest of each block
    again on the way back: the same gradients, in less memory and about a third more time.
    """

    recompute = False

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = PatchEmbedding(config.channels, config.width, config.patch, config.patch)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, *config.grid, config.width), std=0.02))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.at_taps = nn.ModuleList(nn.Identity() for _ in config.taps)
        self.neck = Neck(config.width, config.out, config.neck_kernel)

    def forward(
        self, image: Float[Tensor, "b channels D H W"]
    ) -> tuple[Float[Tensor, "b out d h w"], tuple[Tensor, ...]]:
        """The embedding, and the tokens (b d h w width) at `config.taps`, or what the places there make of them,
        shallowest first.
        """
        x = self.patches(image) + self.position
        taps = [self.at_taps[0](x)] if 0 in self.config.taps else []
        for passed, block in enumerate(self.blocks, start=1):
            x = recomputed(block, x) if self.recompute and torch.is_grad_enabled() else block(x)
            if passed in self.config.taps:
                taps.append(self.at_taps[len(taps)](x))
        return self.neck(x), tuple(taps)


def recomputed(block: nn.Module, x: Tokens) -> Tokens:
    """What a block gives, computed once more on the way back instead of being kept."""
    found: Tokens = checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _once_more()))
    return found


def is_once_more() -> bool:
    """Whether a block is being computed again, so that statistics of what passes have seen it already."""
    return _ONCE_MORE.get()


_ONCE_MORE = ContextVar("once more", default=False)


@contextmanager
def _once_more() -> Iterator[None]:
    before = _ONCE_MORE.set(True)
    try:
        yield
    finally:
        _ONCE_MORE.reset(before)


class PatchEmbedding(nn.Conv3d):
    """A convolution whose stride is its kernel, computed as one matrix product; gives tokens."""

    def __init__(self, channels: int, width: int, kernel_size: Shape, stride: Shape) -> None:
        super().__init__(channels, width, kernel_size, stride)

    def forward(self, image: Float[Tensor, "b channels D H W"]) -> Float[Tensor, "b d h w width"]:
        """Every patch of the image becomes one token."""
        p, q, r = self.kernel_size
        patches = rearrange(image, "b c (d p) (h q) (w r) -> b d h w (c p q r)", p=p, q=q, r=r)
        return linear(patches, self.weight.flatten(start_dim=1), self.bias)


class Block(nn.Module):
    """A pre-norm transformer block with empty places for adapters, which see the whole grid (b d h w c).

    | place            | sees                          | its output                        |
    |------------------|-------------------------------|-----------------------------------|
    | before_attention | the stream                    | replaces the stream               |
    | attention.qkv    | normed tokens                 | query, key and value              |
    | after_attention  | what attention gives          | is added to the stream            |
    | before_mlp       | the stream                    | replaces the stream               |
    | beside_mlp       | normed tokens, as the MLP     | is added to what the MLP gives    |
    | after_mlp        | what the MLP (and side) gives | is added to the stream            |
    | after_block      | the stream                    | replaces the stream               |

    All are `nn.Identity` until an adapter moves in, `beside_mlp` is None.
    """

    attention: GridAttention | ColumnAttention | DilatedAttention | None
    beside_mlp: nn.Module | None

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        width = config.width
        self.shortcut = config.shortcut
        self.before_attention = nn.Identity()
        if index < config.blocks_without_attention:
            self.attention = None
        else:
            self.norm1 = nn.LayerNorm(width, eps=1e-6)
            self.attention = _attention(config, index)
        self.after_attention = nn.Identity()
        self.before_mlp = nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP((width, config.mlp_width, width), F.gelu)
        self.beside_mlp = None
        self.after_mlp = nn.Identity()
        self.after_block = nn.Identity()

    def forward(self, x: Tokens) -> Tokens:
        """One step of the stream; same shape."""
        x = self.before_attention(x)
        if self.attention is not None:
            x = x + self.after_attention(self.attention(self.norm1(x)))
        x = self.before_mlp(x)
        normed = self.norm2(x)
        change = self.mlp(normed)
        if self.beside_mlp is not None:
            change = change + self.beside_mlp(normed)
        # FastSAM3D goes on from the normed tokens; its released weights were trained so.
        x = (normed if self.shortcut == "normed" else x) + self.after_mlp(change)
        return self.after_block(x)


def _attention(config: EncoderConfig, index: int) -> GridAttention | ColumnAttention | DilatedAttention:
    """The attention of a block."""
    if config.sparse == "dilated":
        return DilatedAttention(config.width, config.heads, config.grid, config.segments, config.dilations)
    if config.sparse != "none":
        order: Order = "published" if config.sparse == "published" else "restored"
        return ColumnAttention(config.width, config.heads, config.grid, order=order)
    window = config.wide_window if index in config.wide_blocks else config.window
    shift = config.shift if index in config.shifted_blocks else (0, 0, 0)
    return GridAttention(config.width, config.heads, window, config.grid, config.bias_axes, config.bias, shift)


class Neck(nn.Module):
    """Tokens to an embedding of fewer channels: project, norm, convolve, norm; no biases."""

    def __init__(self, width: int, out: int, kernel: Shape) -> None:
        super().__init__()
        self.project = nn.Linear(width, out, bias=False)
        self.norm1 = nn.LayerNorm(out, eps=1e-6)
        d, h, w = kernel
        self.mix = nn.Conv3d(out, out, kernel, padding=(d // 2, h // 2, w // 2), bias=False)
        self.norm2 = ChannelNorm(out)

    def forward(self, x: Float[Tensor, "b d h w width"]) -> Float[Tensor, "b out d h w"]:
        """Tokens to the embedding."""
        # In plain memory order, or the convolution would copy its weights into the order of the image at every call.
        image = rearrange(self.norm1(self.project(x)), "b d h w c -> b c d h w").contiguous()
        return self.norm2(self.mix(image))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of an image, at every voxel for itself."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Image) -> Image:
        """Same shape."""
        return rearrange(super().forward(rearrange(x, "b c d h w -> b d h w c")), "b d h w c -> b c d h w")


class MLP(nn.Module):
    """Linear layers over the last axis with an activation between each two."""

    def __init__(self, widths: tuple[int, ...], activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))
        self.activation = activation

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b e"]:
        """Widths from the first to the last."""
        for layer in self.layers[:-1]:
            if self.activation is F.gelu and (isinstance(layer, PackedLinear) or is_linear(layer)):
                x = linear_gelu(x, layer.weight, layer.bias)
            else:  # another activation, or a layer that an adapter has changed
                x = self.activation(layer(x))
        return self.layers[-1](x)
