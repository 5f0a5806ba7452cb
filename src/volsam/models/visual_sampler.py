"""Clicks that ask by example: what the features are like where the user clicked changes the features everywhere.

The prompt encoder of 3DSAM-adapter (Gong et al. 2024, section 3.3). Learned queries read the features at the clicks,
and every token of the image reads the queries. Clicks carry no sign: all of them lie in the object.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.encoder import MLP
from volsam.models.token_attention import Attention


class VisualSampler(nn.Module):
    """Features and positions of clicks to features that know of them."""

    def __init__(self, width: int, depth: int, heads: int, mlp_width: int, inner: int, queries: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SamplerLayer(width, heads, mlp_width, inner, queries) for _ in range(depth))

    def forward(
        self, features: Float[Tensor, "#b c d h w"], positions: Float[Tensor, "#b n 3"]
    ) -> Float[Tensor, "b c d h w"]:
        """positions: within the image along depth, height and width, 0 to 1 each from border to border.

        Features of batch 1 serve any number of clicks, and clicks of batch 1 any number of features.
        """
        batch, grid = max(features.shape[0], positions.shape[0]), features.shape[2:]
        features, positions = features.expand(batch, -1, -1, -1, -1), positions.expand(batch, -1, -1)
        points, image = sampled(features, positions), rearrange(features, "b c d h w -> b (d h w) c")
        for layer in self.layers:
            points, image = layer(points, image)
        return rearrange(image, "b (d h w) c -> b c d h w", d=grid[0], h=grid[1])


class SamplerLayer(nn.Module):
    """Queries and clicks read each other, the queries alone pass an MLP, the image reads the queries."""

    def __init__(self, width: int, heads: int, mlp_width: int, inner: int, queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.1 * torch.randn(queries, width))
        self.among_tokens = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP((width, mlp_width, width))
        self.norm3 = nn.LayerNorm(width)
        self.image_from_tokens = Attention(width, heads, inner)
        self.norm4 = nn.LayerNorm(width)

    def forward(
        self, points: Float[Tensor, "b n c"], image: Float[Tensor, "b l c"]
    ) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b l c"]]:
        """Clicks and image for the next layer; each layer has queries of its own."""
        count = len(self.queries)
        tokens = torch.cat([self.queries.expand(points.shape[0], -1, -1), points], dim=1)
        tokens = self.norm2(tokens + self.norm1(self.among_tokens(tokens, tokens, tokens)))
        queries, points = tokens[:, :count], tokens[:, count:]
        queries = self.norm3(queries + self.mlp(queries))
        return points, self.norm4(image + self.image_from_tokens(image, queries, queries))


def sampled(features: Float[Tensor, "b c d h w"], positions: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n c"]:
    """Features at positions (0 to 1 along depth, height and width), linearly interpolated.

    Beyond the outermost voxel centres they fade to zero, as in the release.
    """
    # The sampling of torch counts from -1 to 1 and names the last axis first.
    at = rearrange(2 * positions.flip(-1) - 1, "b n xyz -> b 1 1 n xyz")
    return rearrange(F.grid_sample(features, at, align_corners=False), "b c 1 1 n -> b n c")
