"""Prompt encoders of SAM (2D) and SAM-Med3D (3D): random Fourier codes of positions, and a mask as an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from volsam.evaluation.published.encoder import ChannelNorm, convolution


class FourierCode(nn.Module):
    """Position to code: sine and cosine of random projections; three dimensions repeat the sine."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, rank: int, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(rank, width // (2 if rank == 2 else 3)))

    def forward(self, unit: Tensor) -> Tensor:
        """Positions (… rank), 0 to 1 along each axis, to codes (… width)."""
        angles = 2 * math.pi * ((2 * unit - 1) @ self.positional_encoding_gaussian_matrix)
        waves = [angles.sin(), angles.cos()] + ([angles.sin()] if unit.shape[-1] == 3 else [])
        return torch.cat(waves, dim=-1)

    def of_grid(self, grid: int) -> Tensor:
        """The code (c *grid) of every token; made anew at each call, as released.

        Slices are coded as (x, y). In 3D the first two axes come swapped, unlike those of the clicks.
        """
        rank = len(self.positional_encoding_gaussian_matrix)
        ones = torch.ones([grid] * rank, device=self.positional_encoding_gaussian_matrix.device)
        along = [(ones.cumsum(axis) - 0.5) / grid for axis in range(rank)]
        order = (1, 0) if rank == 2 else (1, 0, 2)
        return self(torch.stack([along[axis] for axis in order], dim=-1)).movedim(-1, 0)


class PromptEncoder(nn.Module):
    """Points and boxes to tokens (b t c); a mask, or its absence, to an image (b c *grid)."""

    def __init__(self, rank: int, *, image: int, grid: int, width: int, mask_width: int = 16) -> None:
        super().__init__()
        conv = convolution(rank)
        self.image, self.grid, self.rank = image, grid, rank
        self.pe_layer = FourierCode(rank, width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4 if rank == 2 else 2))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            conv(1, mask_width // 4, 2, 2),
            ChannelNorm(mask_width // 4),
            nn.GELU(),
            conv(mask_width // 4, mask_width, 2, 2),
            ChannelNorm(mask_width),
            nn.GELU(),
            conv(mask_width, width, 1),
        )
        self.no_mask_embed = nn.Embedding(1, width)

    def dense_code(self) -> Tensor:
        """The position code of the embedding, (1 c *grid)."""
        return self.pe_layer.of_grid(self.grid)[None]

    def forward(
        self,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """points: (b n rank) in pixels, (x, y) for slices; labels: (b n), 1, 0 or -1; boxes: (b 4) x, y, x, y;
        mask: (b 1 *size) of four times the grid.
        """
        said = next((part for part in (points, boxes, mask) if part is not None), None)
        batch, width = 1 if said is None else len(said), self.no_mask_embed.weight.shape[1]
        sparse = torch.empty(batch, 0, width, device=self.no_mask_embed.weight.device)
        if points is not None and labels is not None:
            sparse = torch.cat([sparse, self._points(points, labels, fill=boxes is None)], dim=1)
        if boxes is not None:
            sparse = torch.cat([sparse, self._boxes(boxes)], dim=1)
        if mask is not None:
            return sparse, self.mask_downscaling(mask)
        nothing = self.no_mask_embed.weight.view(1, -1, *[1] * self.rank)
        return sparse, nothing.expand(batch, -1, *[self.grid] * self.rank)

    def _points(self, points: Tensor, labels: Tensor, fill: bool) -> Tensor:
        points = points + 0.5
        if fill:
            points = torch.cat([points, torch.zeros(len(points), 1, self.rank, device=points.device)], dim=1)
            labels = torch.cat([labels, -torch.ones(len(labels), 1, device=labels.device)], dim=1)
        code = self.pe_layer(points / self.image)
        # Boolean indices: on a GPU the host waits at each for the number of points it picks.
        code[labels == -1] = 0.0
        code[labels == -1] += self.not_a_point_embed.weight
        code[labels == 0] += self.point_embeddings[0].weight
        code[labels == 1] += self.point_embeddings[1].weight
        return code

    def _boxes(self, boxes: Tensor) -> Tensor:
        corners = self.pe_layer((boxes.reshape(-1, 2, 2) + 0.5) / self.image)
        corners[:, 0, :] += self.point_embeddings[2].weight
        corners[:, 1, :] += self.point_embeddings[3].weight
        return corners
