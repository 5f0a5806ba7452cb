"""3DSAM-adapter (Gong et al. 2024): SAM's frozen 2D weights in shifted cubic windows, with a 3D adapter in each block.

Tokens are (b h w d c): the slices come last, as in the release.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.evaluation.published.attention import join_heads, partition, relative_rows, split_heads, unpartition
from volsam.evaluation.published.decoder import TokenAttention
from volsam.evaluation.published.encoder import MLP, ChannelNorm, Patches


class VolumeAttention(nn.Module):
    """Attention with a relative position table for every axis, height, width and depth, times one scalar."""

    def __init__(self, width: int, heads: int, extent: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * extent - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * extent - 1, width // heads))
        self.rel_pos_d = nn.Parameter(torch.zeros(2 * extent - 1, width // heads))
        self.lr = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: windows ((b windows) h w d c); mask: (windows l l), added to the scores."""
        batch, grid = x.shape[0], x.shape[1:-1]
        q, k, v = split_heads(self.qkv(x.flatten(1, -2)), self.heads)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        scores = self._biased(scores, q, tuple(grid))
        if mask is not None:
            parted = scores.unflatten(0, (-1, len(mask), self.heads)) + mask[None, :, None]
            scores = parted.flatten(0, 2)
        return self.proj(join_heads(scores.softmax(dim=-1) @ v, batch, grid))

    def _biased(self, scores: Tensor, q: Tensor, grid: tuple[int, ...]) -> Tensor:
        q = q.unflatten(1, grid)
        by_height = torch.einsum("bhwdc,hkc->bhwdk", q, relative_rows(self.rel_pos_h, grid[0]))
        by_width = torch.einsum("bhwdc,wkc->bhwdk", q, relative_rows(self.rel_pos_w, grid[1]))
        by_depth = torch.einsum("bhwdc,dkc->bhwdk", q, relative_rows(self.rel_pos_d, grid[2]))
        scores = scores.unflatten(2, grid).unflatten(1, grid)
        scores = scores + self.lr * by_height[:, :, :, :, :, None, None] + self.lr * by_width[:, :, :, :, None, :, None]
        return (scores + self.lr * by_depth[:, :, :, :, None, None, :]).flatten(4).flatten(1, 3)


class VolumeAdapter(nn.Module):
    """Down, a depthwise convolution over 3³ tokens, up; ReLU after each, the last one included."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width // 2)
        self.conv = nn.Conv3d(width // 2, width // 2, 3, padding=1, groups=width // 2)
        self.linear2 = nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        change = F.relu(self.linear1(x)).permute(0, 4, 1, 2, 3)
        change = F.relu(self.conv(change)).permute(0, 2, 3, 4, 1)
        return x + F.relu(self.linear2(change))


class VolumeBlock(nn.Module):
    """Adapter, attention in cubic windows (shifted by half a window in every second block), MLP."""

    attn_mask: Tensor | None

    def __init__(self, width: int, heads: int, extent: int, window: int, grid: int, shifted: bool) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.adapter = VolumeAdapter(width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = VolumeAttention(width, heads, extent)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, 4 * width)
        self.register_buffer("attn_mask", shift_mask(grid, window, self.shift) if shifted else None)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        x = self.adapter(x)
        normed, axes = self.norm1(x), (1, 2, 3)
        if self.shift:
            normed = torch.roll(normed, [-self.shift] * 3, axes)
        windows, padded = partition(normed, self.window)
        read = unpartition(self.attn(windows, self.attn_mask), self.window, padded)
        if self.shift:
            read = torch.roll(read, [self.shift] * 3, axes)
        x = x + read
        return x + self.mlp(self.norm2(x))


def shift_mask(grid: int, window: int, shift: int) -> Tensor:
    """-100 for two tokens of a window that were not neighbours before the shift, else 0; (windows l l)."""
    part = torch.zeros(grid)
    part[grid - window : grid - shift] = 1
    part[grid - shift :] = 2
    region = 9 * part[:, None, None] + 3 * part[None, :, None] + part[None, None, :]
    of_token = partition(region[None, ..., None], window)[0].flatten(1)
    return torch.where(of_token[:, :, None] == of_token[:, None, :], 0.0, -100.0)


class VolumeEncoder(nn.Module):
    """Slices (s 3 h w), already enlarged, to four levels of features (1 out h w d).

    grid: tokens along every axis; slices: of patch embeddings merged into one token; the learned position is that of
    SAM, of twice the grid, averaged over 2 × 2.
    """

    def __init__(
        self,
        *,
        grid: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        extent: int = 14,
        wide: Sequence[int] = (2, 5, 8, 11),
        wide_extent: int = 64,
        window: int = 8,
        slices: int = 16,
        out: int = 256,
    ) -> None:
        super().__init__()
        self.patch_embed = Patches(3, width, 16, rank=2)
        self.slice_embed = nn.Conv3d(width, width, (1, 1, slices), (1, 1, slices), groups=width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 * grid, 2 * grid, width))
        self.depth_embed = nn.Parameter(torch.ones(1, grid, width))
        self.blocks = nn.ModuleList(
            VolumeBlock(width, heads, wide_extent if i in wide else extent, window, grid, shifted=i % 2 == 0)
            for i in range(depth)
        )
        self.neck_3d = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(width, out, 1, bias=False),
                ChannelNorm(out),
                nn.Conv3d(out, out, 3, padding=1, bias=False),
                ChannelNorm(out),
            )
            for _ in range(4)
        )

    def forward(self, slices: Tensor) -> list[Tensor]:
        """Features after every quarter of the blocks, shallowest first."""
        with torch.no_grad():  # the patch embedding is SAM's and stays so
            x = self.patch_embed(slices)
        x = self.slice_embed(x.permute(3, 1, 2, 0)[None]).permute(0, 2, 3, 4, 1)
        plane = F.avg_pool2d(self.pos_embed.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        x = x + plane[:, :, :, None, :] + self.depth_embed[:, None, None, :, :]
        features, each = [], len(self.blocks) // 4
        for index, block in enumerate(self.blocks, start=1):
            x = block(x)
            if index % each == 0:
                features.append(self.neck_3d[index // each - 1](x.permute(0, 4, 1, 2, 3)))
        return features


class SamplerLayer(nn.Module):
    """Ten learned queries read the clicks, and the image reads the queries."""

    def __init__(self, width: int, heads: int, hidden: int, queries: int) -> None:
        super().__init__()
        self.global_query = nn.Parameter(0.1 * torch.randn(1, queries, width))
        self.self_attn = TokenAttention(width, heads, width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = TokenAttention(width, heads, width // 2)  # stored, and never called
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = TokenAttention(width, heads, width // 2)

    def forward(self, points: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Points (b n c) and image (b l c), both renewed."""
        tokens = torch.cat([self.global_query, points], dim=1)
        tokens = self.norm2(tokens + self.norm1(self.self_attn(tokens, tokens, tokens)))
        count = self.global_query.shape[1]
        queries, points = tokens[:, :count], tokens[:, count:]
        queries = self.norm3(queries + self.mlp(queries))
        return points, self.norm4(image + self.cross_attn_image_to_token(image, queries, queries))


class Layers(nn.Module):
    """Holds the layers under the name the checkpoint has for them."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class VisualSampler(nn.Module):
    """Clicks look up the deepest features where they are, and change them; they carry no sign."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(
        self, *, width: int = 256, depth: int = 2, heads: int = 8, hidden: int = 2048, queries: int = 10
    ) -> None:
        super().__init__()
        self.transformer = Layers([SamplerLayer(width, heads, hidden, queries) for _ in range(depth)])
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, width // 2))  # never used

    def forward(self, features: Tensor, points: Tensor, edge: int) -> Tensor:
        """features: (1 c h w d); points: (1 n 3) in voxels of a cubic patch of that edge, the first coordinate along
        the last axis. Gives features of the same shape.
        """
        at = (points + 0.5) * 2 / edge - 1
        tokens = F.grid_sample(features, at[:, None, None], align_corners=False)[:, :, 0, 0].transpose(1, 2)
        image = features.flatten(2).transpose(1, 2)
        for layer in self.transformer.layers:
            tokens, image = layer(tokens, image)
        return image.transpose(1, 2).reshape(features.shape)


class MLAHead(nn.Module):
    """Two convolutions for each level of features, then twice the size."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        for level in range(2, 6):
            setattr(self, f"head{level}", normed_convolutions(width, channels, channels))

    def forward(self, features: Sequence[Tensor], factor: int) -> Tensor:
        """All levels beside each other, (1 4·channels h w d)."""
        heads = (getattr(self, f"head{level}") for level in range(2, 6))
        return torch.cat([enlarged(head(x), factor) for head, x in zip(heads, features, strict=True)], dim=1)


class AggregationDecoder(nn.Module):
    """Four levels of features and the raw image to the logits of two classes."""

    def __init__(self, *, width: int = 256, channels: int = 128, classes: int = 2) -> None:
        super().__init__()
        self.mlahead = MLAHead(width, channels)
        self.cls = normed_convolutions(4 * channels + 1, channels, classes, ends_in_norm=False)

    def forward(self, features: Sequence[Tensor], image: Tensor, factors: tuple[int, int] = (2, 2)) -> Tensor:
        """features: (1 c h w d) each; image: (1 1 *size) at `factors[0]` times their size. Logits at both factors."""
        return enlarged(self.cls(torch.cat([self.mlahead(features, factors[0]), image], dim=1)), factors[1])


def normed_convolutions(a: int, b: int, c: int, ends_in_norm: bool = True) -> nn.Sequential:
    """Two 3³ convolutions without bias, with instance norm and ReLU after the first, and after the second if wanted."""
    layers: list[nn.Module] = [nn.Conv3d(a, b, 3, padding=1, bias=False), nn.InstanceNorm3d(b), nn.ReLU()]
    layers.append(nn.Conv3d(b, c, 3, padding=1, bias=False))
    return nn.Sequential(*layers, *([nn.InstanceNorm3d(c), nn.ReLU()] if ends_in_norm else []))


def enlarged(x: Tensor, factor: int) -> Tensor:
    """Linear interpolation with corners aligned."""
    return F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=True)


class SamAdapter3D(nn.Module):
    """The whole of it. Four prompt encoders are stored, the last one is used."""

    def __init__(self, edge: int = 128) -> None:
        super().__init__()
        self.edge = edge
        self.image_encoder = VolumeEncoder(grid=edge // 4)
        self.prompt_encoders = nn.ModuleList(VisualSampler() for _ in range(4))
        self.mask_decoder = AggregationDecoder()

    def encode(self, volume: Tensor) -> list[Tensor]:
        """A crop (1 1 d h w) to features (1 c h w d): enlarged four times, in three equal channels, slice by slice."""
        volume = F.interpolate(volume.expand(-1, 3, -1, -1, -1), scale_factor=4, mode="trilinear")
        return self.image_encoder(volume[0].transpose(0, 1))

    def decode(self, volume: Tensor, features: Sequence[Tensor], points: Tensor) -> Tensor:
        """Logits (1 2 d h w) of the crop; points: (1 n 3), coordinates along depth, width and height."""
        prompted = self.prompt_encoders[-1](features[-1], points, self.edge)
        raw = F.interpolate(volume, scale_factor=0.5, mode="trilinear").permute(0, 1, 3, 4, 2)
        return self.mask_decoder([*features[:-1], prompted], raw).permute(0, 1, 4, 2, 3)
