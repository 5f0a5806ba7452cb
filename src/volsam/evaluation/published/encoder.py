"""Image encoders: SAM's (2D), SAM-Med3D's and FastSAM3D's student's (3D), and SAM-Med2D's adapter.

Images are (b c h w) or (b c d h w), as the originals have them; the rank is a number here, since nothing else differs.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.evaluation.published.attention import Attention, in_windows


def convolution(rank: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """The class of convolutions of a rank."""
    return nn.Conv2d if rank == 2 else nn.Conv3d


class ChannelNorm(nn.Module):
    """Layer norm over the channels of an image, in separate steps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        each = (-1, *[1] * (x.ndim - 2))
        return self.weight.view(each) * x + self.bias.view(each)


class Patches(nn.Module):
    """A convolution whose stride is its kernel, then channels last."""

    def __init__(self, channels: int, width: int, patch: int, rank: int) -> None:
        super().__init__()
        self.proj = convolution(rank)(channels, width, patch, patch)

    def forward(self, image: Tensor) -> Tensor:
        """(b c *size) to (b *grid width)."""
        return self.proj(image).movedim(1, -1)


class MLP(nn.Module):
    """Two linear layers of a transformer block."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return self.lin2(self.act(self.lin1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; `window` of 0 tokens is attention to the whole grid."""

    def __init__(self, width: int, heads: int, window: int, grid: int, rank: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, [window or grid] * rank)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, 4 * width)

    def attend(self, x: Tensor) -> Tensor:
        """What attention adds to the stream."""
        x = self.norm1(x)
        return in_windows(self.attn, x, self.window) if self.window else self.attn(x)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        x = x + self.attend(x)
        return x + self.mlp(self.norm2(x))


class StudentBlock(Block):
    """FastSAM3D's block: the MLP is added to the normed stream."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        x = self.norm2(x + self.attend(x))
        return x + self.mlp(x)


class MLPBlock(nn.Module):
    """The first blocks of FastSAM3D's student: no attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        x = self.norm2(x)
        return x + self.mlp(x)


class Adapter2D(nn.Module):
    """SAM-Med2D's adapter: a gate on the channels, then a strided convolution and its way back, beside the MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, width // 4, bias=False), nn.ReLU(), nn.Linear(width // 4, width, bias=False), nn.Sigmoid()
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b h w c), same shape."""
        image = x.permute(0, 3, 1, 2)
        gated = self.channel(F.adaptive_avg_pool2d(image, 1).flatten(1))[:, :, None, None] * image
        return self.norm(x + self.spatial(gated).permute(0, 2, 3, 1))


class AdaptedBlock(Block):
    """SAM-Med2D's block."""

    def __init__(self, width: int, heads: int, window: int, grid: int, rank: int) -> None:
        super().__init__(width, heads, window, grid, rank)
        self.Adapter = Adapter2D(width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        x = x + self.attend(x)
        normed = self.norm2(x)
        return x + self.mlp(normed) + self.Adapter(normed)


class Encoder(nn.Module):
    """Image to embedding.

    grid: tokens along each axis of the image; wide: blocks that attend to the whole grid; window: of the other ones,
    0 for the whole grid; skip: first blocks without attention; block: the kind of the others.
    """

    def __init__(
        self,
        rank: int,
        *,
        grid: int,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        window: int = 14,
        wide: Collection[int] = (2, 5, 8, 11),
        out: int = 256,
        skip: int = 0,
        block: type[Block] = Block,
    ) -> None:
        super().__init__()
        conv = convolution(rank)
        self.patch_embed = Patches(3 if rank == 2 else 1, width, patch, rank)
        self.pos_embed = nn.Parameter(torch.zeros(1, *[grid] * rank, width))
        self.blocks = nn.ModuleList(
            MLPBlock(width) if index < skip else block(width, heads, 0 if index in wide else window, grid, rank)
            for index in range(depth)
        )
        self.neck = nn.Sequential(
            conv(width, out, 1, bias=False),
            ChannelNorm(out),
            conv(out, out, 3, padding=1, bias=False),
            ChannelNorm(out),
        )

    def stages(self, image: Tensor) -> list[Tensor]:
        """Tokens (b *grid c) after the patch embedding and after every block, last the embedding (b out *grid)."""
        stages = [self.patch_embed(image) + self.pos_embed]
        for block in self.blocks:
            stages.append(block(stages[-1]))
        return [*stages, self.neck(stages[-1].movedim(-1, 1))]

    def forward(self, image: Tensor) -> Tensor:
        """The embedding (b out *grid)."""
        x = self.patch_embed(image) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.movedim(-1, 1))
